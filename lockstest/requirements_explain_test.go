package lockstest_test

import (
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/client"
	"github.com/lockstepmq/lockstep/lockstest"
	"github.com/lockstepmq/lockstep/wire"
)

// R-X-7: whatever holds a record up, one question names it, and what blocks. Each part
// injects a cause.

// because waits until the answer names the cause, and returns it.
func (s *stage) because(t *testing.T, queue, code string, ask client.ExplainRequest) (reason client.Reason) {
	t.Helper()
	awaitThat(t, "explain says "+code, func() bool {
		var said client.ExplainResponse
		if err := s.conn.GroupOrder(t.Context(), wire.OrderExplain, queue, 0, "g", ask, &said); err != nil {
			return false // the partition has not heard of the group yet
		}
		i := slices.IndexFunc(said.Reasons, func(r client.Reason) bool { return r.Code == code })
		if i >= 0 {
			reason = said.Reasons[i]
		}
		return i >= 0
	})
	require.NotEmpty(t, reason.Text)
	return reason
}

// sessionOf is how explain names the only session of the group.
func (s *stage) sessionOf(t *testing.T, queue string) string {
	t.Helper()
	sessions := s.state(t, queue, 0).Sessions
	require.Len(t, sessions, 1)
	return sessions[0].ID
}

func (s *stage) explained(t *testing.T) {
	serial := client.GroupSettings{Mode: client.Serial, SessionMs: 60_000, BackoffMs: 60_000, BackoffMaxMs: 60_000}
	begin := func(t *testing.T, settings client.GroupSettings) string {
		queue := s.queue(t, 1)
		s.group(t, queue, settings)
		s.send(t, queue, "a 0", "a 1", "b 0")
		return queue
	}
	key := func(k string) client.ExplainRequest { b := []byte(k); return client.ExplainRequest{Key: &b} }
	record := func(o uint64) client.ExplainRequest { return client.ExplainRequest{Offset: &o} }
	whole := client.ExplainRequest{}

	for _, c := range []struct {
		cause string
		show  func(t *testing.T)
	}{
		{"no_consumer", func(t *testing.T) {
			s.because(t, begin(t, serial), "no_consumer", whole)
		}},
		{"paused", func(t *testing.T) {
			queue := begin(t, serial)
			c := s.join(t, queue, client.Prefetch(1))
			_, err := s.conn.PauseGroup(t.Context(), queue, "g", true)
			require.NoError(t, err)
			require.Equal(t, "g", s.because(t, queue, "paused", key("a")).Object)
			leave(t, c)
		}},
		{"held", func(t *testing.T) {
			queue := begin(t, serial)
			c := s.join(t, queue)
			a, b := take(t, c), take(t, c)
			r := s.because(t, queue, "held", key("a"))
			require.Equal(t, s.sessionOf(t, queue), r.Object)
			require.EqualValues(t, 0, *r.Offset)
			require.NotZero(t, r.SinceMs)
			require.Equal(t, r.Object, s.because(t, queue, "held", record(2)).Object)
			done(t, a, b)
			done(t, take(t, c))
			leave(t, c)
		}},
		{"no_credit", func(t *testing.T) {
			queue := begin(t, serial)
			c := s.join(t, queue, client.Prefetch(1))
			d := take(t, c)
			s.because(t, queue, "no_credit", key("b"))
			require.Equal(t, s.sessionOf(t, queue), s.because(t, queue, "no_credit", whole).Object)
			require.NoError(t, d.Release())
			leave(t, c)
		}},
		{"backoff", func(t *testing.T) {
			queue := begin(t, serial)
			c := s.join(t, queue)
			require.NoError(t, take(t, c).Nack())
			r := s.because(t, queue, "backoff", key("a"))
			require.EqualValues(t, 0, *r.Offset)
			require.Greater(t, r.UntilMs, time.Now().UnixMilli())
			leave(t, c)
		}},
		{"parked", func(t *testing.T) {
			settings := serial
			settings.DeliveryLimit, settings.DeadLetterMode = 1, client.ParkScope
			queue := begin(t, settings)
			c := s.join(t, queue)
			require.NoError(t, take(t, c).Reject("no such customer"))
			r := s.because(t, queue, "parked", key("a"))
			require.EqualValues(t, 0, *r.Offset)
			require.Contains(t, r.Text, "no such customer")
			leave(t, c)
		}},
		{"letter_not_accepted", func(t *testing.T) {
			settings := serial
			settings.DeliveryLimit, settings.DeadLetter = 1, "nowhere"
			queue := begin(t, settings)
			c := s.join(t, queue)
			require.NoError(t, take(t, c).Nack())
			require.Equal(t, "nowhere", s.because(t, queue, "letter_not_accepted", record(0)).Object)
			leave(t, c)
		}},
		{"draining", func(t *testing.T) {
			queue := begin(t, serial)
			c := s.join(t, queue)
			d := take(t, c)
			_, err := s.conn.AlterGroup(t.Context(), queue, "g", client.GroupIntent{Settings: client.GroupSettings{Mode: client.Shared}})
			require.NoError(t, err)
			require.Equal(t, "settings", s.because(t, queue, "draining", whole).Object)
			require.NoError(t, d.Release())
			leave(t, c)
		}},
		{"revoking", func(t *testing.T) {
			queue := begin(t, serial)
			c := s.join(t, queue)
			d := take(t, c)
			name := []byte("a")
			require.NoError(t, s.conn.GroupOrder(t.Context(), wire.OrderPark, queue, 0, "g", client.ScopeRequest{Key: &name, Reason: "looked at", Now: true}, nil))
			require.Equal(t, s.sessionOf(t, queue), s.because(t, queue, "revoking", record(0)).Object)
			require.NoError(t, d.Release())
			leave(t, c)
		}},
		{"standby", func(t *testing.T) {
			settings := stickyOne
			settings.SessionMs = 60_000
			queue := begin(t, settings)
			c, die := s.mortal(t, queue)
			take(t, c)
			id := s.sessionOf(t, queue)
			other := s.join(t, queue)
			die()
			r := s.because(t, queue, "standby", whole)
			require.Equal(t, id, r.Object)
			require.Greater(t, r.UntilMs, time.Now().UnixMilli())
			leave(t, other)
		}},
		{"done and not there", func(t *testing.T) {
			queue := begin(t, serial)
			c := s.join(t, queue)
			done(t, take(t, c))
			s.because(t, queue, "done", record(0))
			s.because(t, queue, "not_there", record(3))
			leave(t, c)
		}},
		{"behind_scan", func(t *testing.T) {
			queue := begin(t, client.GroupSettings{Mode: client.Shared})
			c := s.join(t, queue, client.Prefetch(1))
			d := take(t, c)
			s.because(t, queue, "behind_scan", record(2))
			require.NoError(t, d.Release())
			leave(t, c)
		}},
		{"waiting_for_session", func(t *testing.T) {
			broker := lockstest.Start(t)
			own := &stage{broker: broker, conn: connectTo(t, broker.URL())}
			queue := own.queue(t, 1)
			own.group(t, queue, serial)
			own.send(t, queue, "a 0")
			c, _ := own.mortal(t, queue) // which ends with the broker
			take(t, c)
			id := own.sessionOf(t, queue)
			broker.Restart()
			other := own.join(t, queue)
			require.Equal(t, id, own.because(t, queue, "waiting_for_session", record(0)).Object)
			leave(t, other)
		}},
	} {
		t.Run(c.cause, func(t *testing.T) {
			t.Parallel()
			c.show(t)
		})
	}
}
