package fuzz

import (
	"flag"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lockstepmq/lockstep/client"
	"github.com/lockstepmq/lockstep/promise"
)

var listenerPause = flag.Duration("listener.pause", 0, "how long TestR_LSN_4 stops the primary at least; it is stopped until another one has taken over in any case")

// R-LSN-4: the primary of a listener is stopped in the middle of a record for longer than its
// session lasts. The other one takes over with that record; when the primary goes on it
// hears that the record is not its own, and of each record one acknowledgement is
// accepted.
func TestR_LSN_4_ALateFinisherIsFenced(t *testing.T) {
	b := newBroker(t)
	b.start()
	conn := b.connect()
	const queue, records = "jobs", 10
	_, err := conn.CreateDestination(patient(t), client.Destination{Name: queue, Kind: client.Queue})
	require.NoError(t, err)
	settings := client.GroupSettings{Mode: client.Serial, Scope: client.ByDestination, Holder: client.Sticky, SessionMs: 1000, BackoffMs: 1, BackoffMaxMs: 1}
	_, err = conn.CreateGroup(patient(t), queue, takerGroup, client.GroupIntent{Settings: settings})
	require.NoError(t, err)
	joined := func(n int) bool {
		info, err := conn.DescribeGroup(t.Context(), queue, takerGroup)
		return err == nil && len(info.Partitions[0].Sessions) == n
	}
	primary := startTaker(t, "primary", b.address, queue, takerHolds, 0)
	eventually(t, "there is a primary", func() bool { return joined(1) })
	second := startTaker(t, "second", b.address, queue, "-", 0)
	eventually(t, "another one stands by", func() bool { return joined(2) })
	p := producer(t, conn, &client.Destination{Name: queue})
	for n := range records {
		require.NoError(t, p.SendFunc(t.Context(), &client.Record{Value: fmt.Append(nil, n)}, func(_ client.Receipt, err error) { require.NoError(t, err) }))
	}
	require.NoError(t, p.Flush(patient(t)))
	eventually(t, "the primary works", func() bool { return len(primary.holds()) > 0 })
	began := time.Now()
	require.NoError(t, primary.command.Process.Signal(unix.SIGSTOP))
	eventually(t, "the other one takes over", func() bool { begun, _ := second.counts(); return begun > 0 })
	time.Sleep(time.Until(began.Add(*listenerPause))) // the length of the pause is the case
	require.NoError(t, primary.command.Process.Signal(unix.SIGCONT))
	eventually(t, "the primary hears that it is not", func() bool { _, fenced := primary.counts(); return fenced > 0 })
	eventually(t, "everything is done", func() bool {
		info, err := conn.DescribeGroup(t.Context(), queue, takerGroup)
		return err == nil && info.Partitions[0].Floor == records
	})
	accepted := map[uint64]int{}
	late := 0
	for _, k := range []*taker{primary, second} {
		k.kill()
		for _, e := range k.events {
			switch {
			case e.Kind == promise.Answered && e.Answer == promise.OK:
				accepted[e.Record]++
			case e.Kind == promise.Revoked, e.Kind == promise.Answered:
				late++
			}
		}
	}
	for n := range uint64(records) {
		require.LessOrEqual(t, accepted[n], 1, "record %d", n)
	}
	require.NotZero(t, late)
	t.Logf("%d records, %d acknowledgements seen accepted, %d records were refused to their holder", records, len(accepted), late)
}
