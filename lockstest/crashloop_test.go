package lockstest_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/client"
)

// crashing loses a consumer over one record again and again: that one becomes a dead letter,
// and none of those that the consumers had only prefetched.
func (s *stage) crashing(t *testing.T) {
	const limit, records = 3, 8
	queue, dead := s.queue(t, 1), s.queue(t, 1)
	s.group(t, queue, client.GroupSettings{Mode: client.Shared, BackoffMs: 1, BackoffMaxMs: 1, DeliveryLimit: limit, DeadLetter: dead})
	s.send(t, queue, append([]string{"k poison"}, numbered("k", records)...)...)
	handled, crashes := 0, 0
	for handled < records {
		c, die := s.mortal(t, queue, client.Prefetch(records+1))
		if crashes == 0 {
			s.leased(t, queue, records+1)
		}
		for handled < records {
			d := take(t, c)
			if string(d.Value) == "k poison" {
				crashes++
				die()
				break
			}
			handled++
			require.Zero(t, d.Attempts)
			if require.NoError(t, d.Ack()); handled == records {
				leave(t, c)
			}
		}
	}
	require.LessOrEqual(t, crashes, limit)
	for ; crashes < limit; crashes++ { // it was behind the others
		c, die := s.mortal(t, queue)
		take(t, c)
		die()
	}
	letters, err := s.conn.Consumer(t.Context(), dead, client.Group("g"))
	require.NoError(t, err)
	letter := take(t, letters)
	require.Equal(t, "k poison", string(letter.Value))
	done(t, letter)
	idle(t, letters)
	leave(t, letters)
}
