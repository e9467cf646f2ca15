package lockstest_test

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/client"
)

// begins makes groups of a topic, which begin behind its latest record, and sends at once:
// each has all that is sent after it was made, in every partition, also if another of its name
// was removed the moment before.
func (s *stage) begins(t *testing.T) {
	const partitions, groups = 8, 5
	topic := s.destination(t, client.Topic, partitions)
	p, err := s.conn.Producer(t.Context(), topic)
	require.NoError(t, err)
	send := func() {
		for n := range uint32(partitions) {
			_, err := p.Send(t.Context(), &client.Record{Partition: n, Value: []byte("v")})
			require.NoError(t, err)
		}
	}
	for i := range groups {
		for range 2 {
			group, err := s.conn.CreateGroup(t.Context(), topic, "made", client.GroupIntent{})
			require.NoError(t, err)
			send()
			info, err := s.conn.DescribeGroup(t.Context(), topic, "made")
			require.NoError(t, err)
			for _, of := range info.Partitions {
				require.Equal(t, group.ID, of.GroupID)
				require.EqualValues(t, 1, of.Backlog, "partition %d", of.Number)
			}
			require.NoError(t, s.conn.RemoveGroup(t.Context(), topic, "made"))
		}

		c, err := s.conn.Consumer(t.Context(), topic, client.Group(fmt.Sprintf("consumed-%d", i)))
		require.NoError(t, err)
		send()
		for range partitions {
			done(t, take(t, c))
		}
		idle(t, c)
		leave(t, c)
	}
	require.NoError(t, p.Close(t.Context()))
}
