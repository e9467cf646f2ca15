package lockstest_test

import (
	"errors"
	"fmt"
	"io"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/client"
)

// alias has a name for two of three partitions: what is sent by that name goes there alone,
// in turn, what is received by it comes from there alone, and a key that lives elsewhere
// is refused.
func (s *stage) alias(t *testing.T) {
	queue := s.queue(t, 3)
	s.group(t, queue, client.GroupSettings{Mode: client.Shared})
	conn, err := client.Connect(t.Context(), s.broker.URL(), client.WithAlias("east", queue, 2, 0), client.WithAlias("nowhere", queue, 3))
	require.NoError(t, err)
	defer func() { _ = conn.Close() }()
	p, err := conn.Producer(t.Context(), "east")
	require.NoError(t, err)
	const records = 40
	count := map[uint32]int{}
	for i := range records {
		r, err := p.Send(t.Context(), &client.Record{Value: fmt.Append(nil, i)})
		require.NoError(t, err)
		count[r.Partition]++
	}
	require.Equal(t, map[uint32]int{0: records / 2, 2: records / 2}, count)

	refused, sent := 0, records
	for i := range 30 {
		key := fmt.Append(nil, i)
		home, err := conn.PartitionOf(t.Context(), queue, key)
		require.NoError(t, err)
		r, err := p.Send(t.Context(), &client.Record{Key: key, Value: key})
		if home == 1 {
			require.ErrorIs(t, err, client.ErrOutsideAlias)
			var failed *client.SendError
			require.True(t, errors.As(err, &failed))
			require.Equal(t, client.NotSent, failed.Outcome)
			refused++
			continue
		}
		require.NoError(t, err)
		require.Equal(t, home, r.Partition)
		sent++
	}
	require.NotZero(t, refused)
	require.NoError(t, p.Close(t.Context()))
	s.send(t, queue, numbered("k", 1)...) // by the name of the queue, to any partition
	whole, err := s.conn.Producer(t.Context(), queue, client.Partition(1))
	require.NoError(t, err)
	_, err = whole.Send(t.Context(), &client.Record{Value: []byte("elsewhere")})
	require.NoError(t, err)
	home, err := conn.PartitionOf(t.Context(), queue, []byte("k"))
	require.NoError(t, err)
	if home != 1 {
		sent++
	}

	r, err := conn.Reader(t.Context(), "east", client.FromEarliest(), client.StopAtEnd())
	require.NoError(t, err)
	read := 0
	for {
		rec, err := r.Next(t.Context())
		if errors.Is(err, io.EOF) {
			break
		}
		require.NoError(t, err)
		require.NotEqual(t, uint32(1), rec.Partition)
		read++
	}
	require.Equal(t, sent, read)
	r.Close()

	c, err := conn.Consumer(t.Context(), "east", client.Group("g"))
	require.NoError(t, err)
	for range sent {
		d := take(t, c)
		require.NotEqual(t, uint32(1), d.Partition)
		done(t, d)
	}
	idle(t, c)
	require.Equal(t, []uint32{0, 2}, c.Partitions())
	leave(t, c)

	_, err = conn.Producer(t.Context(), "nowhere")
	require.ErrorIs(t, err, client.ErrUnknownPartition)
	_, err = conn.Producer(t.Context(), "east", client.Partition(1))
	require.ErrorIs(t, err, client.ErrUnknownPartition)
	_, err = conn.Reader(t.Context(), "east", client.Partitions(1))
	require.ErrorIs(t, err, client.ErrUnknownPartition)
}
