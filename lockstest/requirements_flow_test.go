package lockstest_test

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/client"
	"github.com/lockstepmq/lockstep/wire"
)

// Where records go, and what holds them up: R-MQC, R-WLS and R-X.

// attended takes the consumer of one of three partitions away: what has no key goes to the
// others until somebody consumes there again, or nobody anywhere.
func (s *stage) attended(t *testing.T) {
	queue := s.queue(t, 3)
	s.group(t, queue, client.GroupSettings{Mode: client.Shared, Binding: client.StrictlyOne})
	var members []*client.Consumer
	for range 3 {
		members = append(members, s.join(t, queue))
	}
	var of [3]*client.Consumer // by partition
	awaitThat(t, "each has a partition", func() bool {
		p, err := s.conn.Producer(t.Context(), queue, client.LocalPreference(false), client.BatchBytes(1))
		require.NoError(t, err)
		for i := range 6 {
			_, err := p.Send(t.Context(), &client.Record{Value: fmt.Append(nil, i)})
			require.NoError(t, err)
		}
		require.NoError(t, p.Close(t.Context()))
		for _, m := range members {
			list, err := m.Fetch(t.Context(), 10, idleWait)
			require.NoError(t, err)
			for _, d := range list {
				of[d.Partition] = m
			}
			done(t, list...)
		}
		return of[0] != nil && of[1] != nil && of[2] != nil
	})

	p, err := s.conn.Producer(t.Context(), queue, client.LocalPreference(false), client.BatchBytes(1))
	require.NoError(t, err)
	send := func(key string) (counts [3]int) {
		for i := range 30 {
			r := client.Record{Value: fmt.Append(nil, i)}
			if key != "" {
				r.Key = []byte(key)
			}
			receipt, err := p.Send(t.Context(), &r)
			require.NoError(t, err)
			counts[receipt.Partition]++
		}
		return counts
	}
	require.Equal(t, [3]int{10, 10, 10}, send(""))
	leave(t, of[1])
	awaitThat(t, "partition 1 is left out", func() bool { return send("") == [3]int{15, 0, 15} })
	d, err := s.conn.Destination(t.Context(), queue)
	require.NoError(t, err)
	require.Equal(t, wire.PartitionUnattended, d.Partitions[1].Flags)
	kept := false
	for i := 0; !kept; i++ { // the key of a record decides, whoever consumes
		kept = send(fmt.Sprint(i))[1] == 30
	}
	again := s.join(t, queue)
	awaitThat(t, "partition 1 has its share", func() bool { return send("") == [3]int{10, 10, 10} })
	leave(t, again, of[0], of[2])
	awaitThat(t, "without any consumer all are alike", func() bool {
		d, err := s.conn.Destination(t.Context(), queue)
		require.NoError(t, err)
		for i := range d.Partitions {
			if d.Partitions[i].Flags != wire.PartitionUnattended {
				return false
			}
		}
		return send("") == [3]int{10, 10, 10}
	})
	require.NoError(t, p.Close(t.Context()))
}
