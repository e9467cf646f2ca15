package group

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/wire"
)

// Orders that stop the group: how long they wait, and what they leave behind. Each test fails
// without one condition of the code that carries them out.

// seek has the group moved, and tells how that has ended.
func (r *rig) seek(to wire.Offset) *error {
	err := error(wire.CodeRetry)
	r.leader.Order(Order{Drain: true, Reason: wire.ReasonSeek, Command: AppendSeek(nil, 1, to, 0), Done: func(e error) { err = e }})
	r.settle()
	return &err
}

func TestRule29_OneOrderStopsTheGroupAtATime(t *testing.T) {
	r := newRig(t, sharedGroup)
	r.produce(0)
	a := r.attach('A', 1, 1)
	first, second := r.seek(0), r.seek(1)
	require.Equal(t, wire.CodeRetry, wire.CodeOf(*second))
	a.say(wire.OutcomeReleased, 0)
	r.settle()
	require.NoError(t, *first)
	require.Equal(t, []wire.Offset{0, 0}, a.offsets())
}

// Rule 29: what is not given back when it is asked for is taken when the grace is over, not earlier,
// at its time without any other reason to look, and counts as delivered.
func TestRule29_WhatAConsumerKeepsIsTakenWhenTheGraceIsOver(t *testing.T) {
	const grace = 10 * time.Second // longer than a session
	for _, s := range append(oneScope, keyGroup, sharedGroup) {
		s.RevokeMs = uint32(grace.Milliseconds())
		r := newRig(t, s)
		r.produce(1, 2, 1)
		a := r.attach('A', 1, 5)
		n := len(a.offsets())
		done := r.seek(0)
		due := r.now + grace
		r.heard(a, grace-1)
		require.LessOrEqual(t, r.leader.Deadline(), due)
		require.Empty(t, a.lost, "mode %v", s.Mode)
		require.Error(t, *done)
		r.heard(a, 1)
		require.NoError(t, *done)
		require.NotEmpty(t, a.lost)
		again := a.grants[len(a.grants)-1]
		require.Greater(t, len(a.offsets()), n)
		require.EqualValues(t, 2, again.Deliveries)
		require.EqualValues(t, 0, again.Attempts)
		require.NotZero(t, again.Flags&wire.GrantRedelivered)
	}
}

// Rule 29: who was asked for something before has its whole grace for what is asked for later.
func TestRule29_EachOrderHasItsOwnGrace(t *testing.T) {
	r := newRig(t, keyGroup)
	r.produce(5)
	a := r.attach('A', 1, 5)
	r.seek(0)
	a.say(wire.OutcomeReleased, 0)
	r.settle()
	require.Len(t, a.offsets(), 2)
	r.heard(a, 2*r.leader.patience())
	r.leader.Park(5, "stop", true, func(error) {})
	r.settle()
	r.heard(a, time.Second)
	require.Empty(t, a.lost)
	done := r.seek(0)
	r.heard(a, time.Second)
	require.Empty(t, a.lost, "it may still be at work on it")
	require.Error(t, *done)
}

// Rule 29: what an order asks back has its whole grace, also if the session was asked for something
// else shortly before: it may be at work on both.
func TestRule29_WhatAnOrderAsksForIsNotTakenWithWhatWasLate(t *testing.T) {
	const ackWait = wire.DefaultAckWaitMs * time.Millisecond
	for _, s := range []Settings{sharedGroup, keyGroup} {
		r := newRig(t, s)
		r.produce(1)
		a := r.attach('A', 1, 5)
		r.heard(a, ackWait-time.Second)
		r.produce(2)
		r.heard(a, time.Second)
		require.Equal(t, []wire.Offset{0, 1}, a.offsets())
		require.Len(t, a.revokes, 1, "record 0 takes too long")
		r.heard(a, r.leader.patience()-time.Second)
		done := r.seek(0)
		require.Len(t, a.revokes, 2, "and record 1 is wanted back")
		r.heard(a, r.leader.patience()-time.Second)
		for _, v := range a.lost {
			require.EqualValues(t, 0, v.Offset, "mode %v: it may still be at work on it", s.Mode)
		}
		require.Error(t, *done)
		r.heard(a, time.Second)
		require.NoError(t, *done)
	}
}

// Rules 29, T3: who had no link while it was asked has its whole grace when it is asked again.
func TestRule29_TheGraceBeginsAnewOnANewLink(t *testing.T) {
	for name, breaks := range map[string]func(*rig, *recorder){
		"the link has ended":           func(r *rig, a *recorder) { r.leader.Gone(a, false) },
		"nobody knows that it is over": func(*rig, *recorder) {},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, keyGroup)
			r.produce(5)
			a := r.attach('A', 1, 5)
			r.seek(0)
			r.heard(a, r.leader.patience()-time.Second)
			breaks(r, a)
			a = r.attach('A', 2, 5, wire.Outcome{Offset: 0, Count: 1, Epoch: a.grants[0].Epoch})
			require.Len(t, a.revokes, 1)
			r.heard(a, 2*time.Second)
			require.Empty(t, a.lost, "it has just heard of it")
			r.heard(a, r.leader.patience())
			require.Len(t, a.lost, 1)
		})
	}
}

// A record that was passed over because it was parked is met again after a seek: what was known of
// it before would give it to a second session.
func TestRule29_WhatWasParkedBeforeASeekIsGivenOnce(t *testing.T) {
	r := newRig(t, sharedGroup)
	r.produce(0)
	r.leader.Park(0, "stop", false, func(error) {})
	r.settle()
	a, b := r.attach('A', 1, 5), r.attach('B', 1, 5)
	require.NoError(t, *r.seek(1)) // past it: it is not parked any more
	require.NoError(t, *r.seek(0))
	r.leader.Unpark(0, func(error) {})
	r.settle()
	require.Len(t, append(a.offsets(), b.offsets()...), 1)
}

// A rest belongs to the record that has failed: it goes on after a change of the settings, and holds
// nothing else up after a seek.
func TestRule29_ARestOutlastsAnOrder(t *testing.T) {
	const rest = 5 * time.Second
	for _, s := range append(oneScope, keyGroup, sharedGroup) {
		begin := func() (*rig, *recorder) {
			r := newRig(t, s)
			r.produce(1, 1)
			a := r.attach('A', 1, 1)
			r.heard(a, rest)
			r.leader.Outcomes(a, []wire.Outcome{{Offset: 0, Count: 1, Epoch: a.grants[0].Epoch, Kind: wire.OutcomeNack, DelayMs: uint32(rest.Milliseconds())}}, r.now)
			r.settle()
			a.grants = nil
			return r, a
		}
		r, a := begin()
		if s.Mode != wire.ModeShared { // where the next record does not wait
			require.NoError(t, *r.seek(0))
			r.heard(a, rest-1)
			require.Empty(t, a.offsets(), "mode %v", s.Mode)
			r.heard(a, 1)
			require.Equal(t, []wire.Offset{0}, a.offsets())
		}
		r, a = begin()
		if s.Mode != wire.ModeShared {
			require.NoError(t, *r.seek(1))
			require.Equal(t, []wire.Offset{1}, a.offsets(), "mode %v", s.Mode)
		}
	}
}

// A lower session timeout counts for who is silent from when it is in force.
func TestRule29_ALowerSessionTimeoutEndsTheSilent(t *testing.T) {
	s := sharedGroup
	s.SessionMs = 60_000
	r := newRig(t, s)
	r.attach('A', 1, 1)
	s.SessionMs = 1000
	s = s.WithDefaults()
	r.leader.Order(Order{Drain: true, Reason: wire.ReasonSettings, Command: AppendPut(nil, 1, 2, "g", &s, 0, PutQueue)})
	r.settle()
	require.Equal(t, r.now+time.Second, r.leader.Deadline())
	r.pass(time.Second)
	r.settle()
	require.Empty(t, r.state.Group(1).Sessions)
}

// Consumers hear of what they go by, once, and of nothing else.
func TestConsumersHearOfTheTermsThatChange(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*Settings)
		hears  bool
	}{
		"window":          {func(s *Settings) { s.Window = 3 }, true},
		"session timeout": {func(s *Settings) { s.SessionMs = 60_000 }, true},
		"ack wait":        {func(s *Settings) { s.AckWaitMs = 60_000 }, true},
		"backoff":         {func(s *Settings) { s.BackoffMs = 5 }, false},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, keyGroup)
			a := r.attach('A', 1, 1)
			s := keyGroup
			c.change(&s)
			r.alter(s)
			require.Equal(t, c.hears, a.closed)
			if c.hears {
				require.Equal(t, wire.CodeRetry, wire.CodeOf(a.reason))
				a = r.attach('A', 2, 1)
			}
			r.settle()
			require.False(t, a.closed)
		})
	}
}
