package lockstest_test

import (
	"context"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/client"
	"github.com/lockstepmq/lockstep/wire"
)

// redriven sends dead letters back from a queue that has two groups, and is interrupted in
// the middle: each letter is back once, and both groups are done with it.
func (s *stage) redriven(t *testing.T) {
	queue, dead := s.queue(t, 1), s.queue(t, 1)
	s.group(t, queue, client.GroupSettings{Mode: client.Serial, DeadLetterMode: client.DeadLetter, DeadLetter: dead})
	for _, name := range []string{"first", "second"} {
		_, err := s.conn.CreateGroup(t.Context(), dead, name, client.GroupIntent{})
		require.NoError(t, err)
	}
	const letters = 5
	c := s.join(t, queue)
	for i := range letters {
		s.send(t, queue, fmt.Sprintf("key-%d once", i))
		d := take(t, c)
		require.NoError(t, d.Reject("no good"))
	}
	backlog := func(group string) uint64 {
		info, err := s.conn.DescribeGroup(t.Context(), dead, group)
		require.NoError(t, err)
		return info.Partitions[0].Backlog
	}
	awaitThat(t, "all letters are written, for both groups", func() bool { return backlog("first") == letters && backlog("second") == letters })

	interrupted, interrupt := context.WithCancel(t.Context())
	n := 0
	back, err := s.conn.Redrive(interrupted, dead, client.LetterFilter{}, func(*client.Letter, error) {
		if n++; n == 3 {
			interrupt()
		}
	})
	require.ErrorIs(t, err, context.Canceled)
	require.Equal(t, 3, back)
	require.EqualValues(t, letters-3, backlog("first"))
	require.EqualValues(t, letters-3, backlog("second"))
	back, err = s.conn.Redrive(t.Context(), dead, client.LetterFilter{}, nil)
	require.NoError(t, err)
	require.Equal(t, letters-3, back)
	require.Zero(t, backlog("first"))
	require.Zero(t, backlog("second"))
	for i := range letters {
		d := take(t, c)
		require.Equal(t, fmt.Sprintf("key-%d once", i), string(d.Value))
		require.EqualValues(t, letters+i, d.Offset)
		done(t, d)
	}
	idle(t, c)
	leave(t, c)
}

// begunAmid makes a group of a dead letter queue while a redrive is at work that has listed the
// groups before: what goes back from then on is not the new group's, and the next redrive, which
// goes by it, finds nothing.
func (s *stage) begunAmid(t *testing.T) {
	queue, dead := s.queue(t, 1), s.queue(t, 1)
	const letters = 2*wire.MaxRedrive + 1
	p, err := s.conn.Producer(t.Context(), dead)
	require.NoError(t, err)
	for i := range letters {
		p.SendFunc(t.Context(), &client.Record{Value: fmt.Append(nil, i), Headers: []client.Header{
			{Key: wire.LetterOrigin, Value: []byte(queue + "/0")}, {Key: wire.LetterHeader + "offset", Value: []byte("0")}, {Key: wire.LetterHeader + "group", Value: []byte("g")},
		}}, func(_ client.Receipt, err error) {
			if err != nil {
				t.Error(err)
			}
		})
	}
	require.NoError(t, p.Close(t.Context()))
	n := 0
	back, err := s.conn.Redrive(t.Context(), dead, client.LetterFilter{}, func(*client.Letter, error) {
		if n++; n == wire.MaxRedrive+1 { // the first order is committed
			_, err := s.conn.CreateGroup(t.Context(), dead, "clerks", client.GroupIntent{Start: client.GroupStart{To: "earliest"}})
			require.NoError(t, err)
		}
	})
	require.NoError(t, err)
	require.Equal(t, letters, back)
	groups, err := s.conn.Groups(t.Context(), dead)
	require.NoError(t, err)
	require.Len(t, groups, 1, "the group that the redrive has made is gone")
	require.Equal(t, "clerks", groups[0].Name)
	back, err = s.conn.Redrive(t.Context(), dead, client.LetterFilter{}, nil)
	require.NoError(t, err)
	require.Zero(t, back)
	var got []string
	for r, err := range s.conn.Browse(t.Context(), queue, client.BrowseOptions{}) {
		require.NoError(t, err)
		got = append(got, string(r.Value))
	}
	require.Len(t, got, letters)
	for i, value := range got {
		require.Equal(t, fmt.Sprint(i), value)
	}
}
