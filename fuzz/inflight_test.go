package fuzz

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/client"
)

// R-MQC-7: the process of a consumer is killed while it works on a record, and the broker after
// it. When the record was back by then, it comes again with a delivery count that is one more, and
// what nobody had comes for the first time. When it was not, the broker cannot know what the
// consumer had: either comes as what may have been delivered, with a count that is a lower bound
// (rule 19).
func TestR_MQC_7_AKilledConsumersRecordIsCountedByABrokerThatWasKilled(t *testing.T) {
	for _, c := range []struct {
		name string
		back bool // before the broker is killed
	}{{"back", true}, {"not back", false}} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			b := newBroker(t)
			b.start()
			conn := b.connect()
			_, err := conn.CreateDestination(patient(t), client.Destination{Name: "jobs", Kind: client.Queue})
			require.NoError(t, err)
			_, err = conn.CreateGroup(patient(t), "jobs", takerGroup, client.GroupIntent{
				Settings: client.GroupSettings{Mode: client.Serial, Scope: client.ByDestination, SessionMs: 1000, BackoffMs: 1, BackoffMaxMs: 1}})
			require.NoError(t, err)
			p := producer(t, conn, &client.Destination{Name: "jobs"})
			for n := range 2 {
				_, err := p.Send(patient(t), &client.Record{Value: []byte{'0' + byte(n)}})
				require.NoError(t, err)
			}
			lost := startTaker(t, "lost", b.address, "jobs", takerHolds, 0)
			eventually(t, "it works", func() bool { return len(lost.holds()) > 0 })
			lost.kill()
			if c.back {
				eventually(t, "the record is back", func() bool {
					info, err := conn.DescribeGroup(t.Context(), "jobs", takerGroup)
					return err == nil && len(info.Partitions[0].Sessions) == 0
				})
			}
			b.kill()
			b.start()
			next, err := conn.Consumer(patient(t), "jobs", client.Group(takerGroup))
			require.NoError(t, err)
			for n := range 2 {
				d, err := next.Next(patient(t))
				require.NoError(t, err)
				require.Equal(t, string(rune('0'+n)), string(d.Value))
				require.Equal(t, !c.back, d.AtLeast)
				require.Equal(t, n == 0 || !c.back, d.Redelivered)
				if c.back {
					require.Equal(t, 2-n, d.Deliveries)
				}
				require.NoError(t, d.AckSync(patient(t)))
			}
			require.NoError(t, next.Close(patient(t)))
		})
	}
}
