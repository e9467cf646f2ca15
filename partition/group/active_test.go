package group

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/wire"
)

// Which session is the active one where one gets everything (T7). Each test fails without one
// condition of the code that decides on it.

// oneActive are groups of which one session gets everything.
var oneActive = []Settings{{Mode: wire.ModeStream}, {Mode: wire.ModeSerial, Scope: wire.ScopeDestination}}

// active is the letter of the active session, 0 for none.
func (r *rig) active() byte { return r.state.Group(1).Active[0] }

// stands attaches a session that would rather stand by.
func (r *rig) stands(name byte, attempt uint64) *recorder {
	c := &recorder{r: r, session: Session{name}}
	r.leader.Attach(c, &wire.AttachRequest{Session: c.session, Attempt: attempt, Term: 1, Capacity: 5, Flags: wire.AttachStandby}, "", 1, r.now)
	r.settle()
	return c
}

// T7, T4: who let a record time out, and got it again because nobody else was there, is at work on
// it: another one that comes gets it when that is over, not before.
func TestRuleT7_ASuspectThatIsAtWorkIsWaitedFor(t *testing.T) {
	for _, s := range oneActive {
		s.BackoffMs, s.BackoffMaxMs = 1, 1
		begin := func() (r *rig, a, b *recorder) {
			r = newRig(t, s)
			r.produce(1, 1)
			a = r.attach('A', 1, 1)
			r.overdue(a)
			r.settle()
			r.heard(a, time.Second)
			require.Equal(t, []wire.Offset{0, 0}, a.offsets())
			a.lost, a.revokes = nil, nil
			b = r.attach('B', 1, 1)
			require.Empty(t, a.lost, "mode %v", s.Mode)
			require.Empty(t, b.offsets())
			return r, a, b
		}
		t.Run("it finishes", func(t *testing.T) {
			r, a, b := begin()
			a.say(wire.OutcomeAck, 0)
			r.settle()
			require.Equal(t, []wire.Offset{0, 0, 1}, a.offsets(), "it is no suspect any more")
			require.Empty(t, b.offsets())
		})
		t.Run("it hangs", func(t *testing.T) {
			r, a, b := begin()
			for range 40 {
				r.leader.Heard(b, r.now)
				r.heard(a, time.Second)
			}
			require.Len(t, a.revokes, 1, "it is asked first")
			require.Equal(t, []wire.Offset{0}, b.offsets())
			require.EqualValues(t, 'B', r.active())
		})
		t.Run("it has lost its link", func(t *testing.T) {
			r, a, b := begin()
			r.leader.Gone(a, false)
			r.settle()
			require.Empty(t, b.offsets(), "it may be at work")
			a = r.attach('A', 2, 1, wire.Outcome{Offset: 0, Count: 1, Epoch: a.grants[1].Epoch, Kind: wire.OutcomeAck})
			require.Equal(t, wire.CodeOK, a.code(0))
		})
	}
}

// T7: a fresh session takes over from one that let a record time out.
func TestRuleT7_WhoLetsARecordTimeOutIsReplaced(t *testing.T) {
	for _, s := range oneActive {
		s.BackoffMs, s.BackoffMaxMs = 1, 1
		r := newRig(t, s)
		r.produce(1)
		a := r.attach('A', 1, 1)
		b := r.attach('B', 1, 1)
		for range 40 {
			r.leader.Heard(b, r.now)
			r.heard(a, time.Second)
		}
		require.EqualValues(t, 'B', r.active(), "mode %v", s.Mode)
		require.Equal(t, []wire.Offset{0}, b.offsets())
		for range 40 { // the other one is no better, and it stays
			r.leader.Heard(a, r.now)
			r.heard(b, time.Second)
		}
		require.EqualValues(t, 'B', r.active())
		r.leader.Leave(b, false, r.now)
		r.settle()
		require.EqualValues(t, 'A', r.active(), "a suspect is better than nobody")
		require.Equal(t, []wire.Offset{0, 0}, a.offsets())
	}
}

// T7: who has no link is not made the active one, of others who asked to stand by comes last, and
// a change that is on its way is not proposed again.
func TestRuleT7_TheNextOneIsThere(t *testing.T) {
	for _, s := range oneActive {
		r := newRig(t, s)
		a := r.attach('A', 1, 1)
		b := r.attach('B', 1, 1)
		r.stands('C', 1)
		r.attach('D', 1, 1)
		r.leader.Gone(b, false)
		r.leader.Leave(a, false, r.now)
		for range 2 {
			r.turn()
			require.Len(t, r.entries, 1, "the second time it is on its way")
		}
		r.settle()
		require.EqualValues(t, 'D', r.active(), "mode %v", s.Mode)
	}
}

// T7: a new leader chooses when all have come back: the first that comes may be one that stands by.
func TestRuleT7_ANewLeaderWaitsWithItsChoice(t *testing.T) {
	for _, s := range oneActive {
		r := newRig(t, s)
		a := r.attach('A', 1, 1)
		r.leader.Gone(r.stands('B', 1), false)
		r.leader.Gone(r.attach('C', 1, 1), false)
		r.leader.Leave(a, false, r.now)
		r.settle()
		require.Zero(t, r.active(), "nobody has a link")
		r.lead()
		r.stands('B', 2)
		require.Zero(t, r.active())
		r.attach('C', 2, 1)
		require.EqualValues(t, 'C', r.active(), "mode %v", s.Mode)
	}
}

// T7: who makes way, or is a suspect while another one is there, gets nothing behind what it has; and
// nobody gets anything while the change is on its way.
func TestRuleT7_WhoMakesWayGetsNothingMore(t *testing.T) {
	for _, s := range oneActive {
		s.Failback = true
		r := newRig(t, s)
		a := r.stands('A', 1)
		r.produce(1)
		r.settle()
		require.Equal(t, []wire.Offset{0}, a.offsets())
		b := r.attach('B', 1, 5)
		r.produce(1)
		r.settle()
		a.say(wire.OutcomeAck, 0)
		r.settle()
		require.Equal(t, []wire.Offset{0}, a.offsets(), "mode %v", s.Mode)
		require.Equal(t, []wire.Offset{1}, b.offsets())

		r = newRig(t, s)
		a = r.stands('A', 1)
		require.EqualValues(t, 'A', r.active())
		b = &recorder{r: r, session: Session{'B'}}
		r.leader.Attach(b, &wire.AttachRequest{Session: b.session, Attempt: 1, Term: 1, Capacity: 5}, "", 1, r.now)
		for r.turn(); b.response == nil; r.turn() { // it is listed, and attached
			r.apply(r.entries[0])
			r.entries = r.entries[1:]
			r.leader.Applied(r.applied)
		}
		require.Len(t, r.entries, 1, "the change is proposed")
		r.produce(1)
		r.turn()
		require.Empty(t, a.offsets())
		r.settle()
		require.Empty(t, a.offsets())
		require.Equal(t, []wire.Offset{0}, b.offsets())

		s.BackoffMs, s.BackoffMaxMs, s.Failback, s.Window = 1, 1, false, 5
		r = newRig(t, s)
		r.produce(1)
		a = r.attach('A', 1, 5)
		r.overdue(a)
		r.settle()
		r.heard(a, time.Second)
		r.attach('B', 1, 5)
		r.produce(1)
		r.settle()
		require.Equal(t, []wire.Offset{0, 0}, a.offsets())
	}
}
