package group

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/wire"
)

// What becomes of records that a session says something about at an awkward moment: each test
// fails without one condition of the code that takes that in.

// many says one outcome of several records, all under the epoch of the first grant.
func (c *recorder) many(kind wire.OutcomeKind, o wire.Offset, count uint32) {
	c.r.leader.Outcomes(c, []wire.Outcome{{Offset: o, Count: count, Epoch: c.grants[0].Epoch, Kind: kind}}, c.r.now)
	c.r.turn()
}

// answered is how often a record was answered.
func (c *recorder) answered(o wire.Offset) (n int) {
	for _, a := range c.answers {
		if a.Offset <= o && o < a.Offset+wire.Offset(a.Count) {
			n++
		}
	}
	return n
}

// Rule 4: what is on its way back is not taken back again: it would free credit twice, and its
// second end would be that of a lease that somebody has by then.
func TestRule4_WhatIsOnItsWayBackIsNotTakenBackAgain(t *testing.T) {
	for name, say := range map[string]func(*recorder){
		"all at once":         func(a *recorder) { a.many(wire.OutcomeNack, 0, 3) },
		"the last ones first": func(a *recorder) { a.say(wire.OutcomeReleased, 1); a.say(wire.OutcomeNack, 0) },
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, Settings{Mode: wire.ModeSerial, Window: 3, BackoffMs: 1, BackoffMaxMs: 1})
			r.produce(1, 1, 1)
			a := r.attach('A', 1, 10)
			require.Len(t, r.leader.members[a.session].leases.all(), 1)
			r.produce(2, 3)
			r.settle()
			require.Equal(t, []wire.Offset{0, 1, 2, 3, 4}, a.offsets())
			say(a)
			r.settle()
			require.Equal(t, 2, r.leader.members[a.session].held, "it has the other keys")
			deliveries, _ := r.counts()
			require.Equal(t, []uint16{1, 1, 1, 0, 0}, deliveries)
			require.Equal(t, 1, a.answered(0))
			r.pass(time.Millisecond)
			require.Equal(t, []wire.Offset{0, 1, 2, 3, 4, 0, 1, 2}, a.offsets())
		})
	}
}

// Rule 16: what a session has given back, and was not answered for, it says again on its next
// link, and is answered there: it was not refused, or it would take the record for lost.
func TestRule16_ANackOnItsWayIsAnsweredOnTheNextLink(t *testing.T) {
	r := newRig(t, keyGroup)
	r.produce(1)
	a := r.attach('A', 1, 5)
	a.say(wire.OutcomeNack, 0)
	again := &recorder{r: r, session: a.session}
	r.leader.Attach(again, &wire.AttachRequest{
		Session: a.session, Attempt: 2, Term: 1, Capacity: 5, Claims: []wire.Outcome{{Offset: 0, Count: 1, Epoch: a.grants[0].Epoch, Kind: wire.OutcomeNack}},
	}, "", 1, r.now)
	r.turn()
	require.NotNil(t, again.response, "it need not wait")
	require.Empty(t, again.response.Refused)
	require.Equal(t, 0, again.answered(0))
	r.settle()
	require.Equal(t, wire.CodeOK, again.code(0))
	require.Equal(t, 1, again.answered(0))
}

// Rule 27: the first that a session says counts; an ack behind a nack that is on its way does not.
func TestRule27_AnAckBehindANackDoesNotCount(t *testing.T) {
	for _, s := range append(oneScope, keyGroup, sharedGroup) {
		r := newRig(t, s)
		r.produce(1)
		a := r.attach('A', 1, 5)
		a.say(wire.OutcomeNack, 0)
		a.say(wire.OutcomeAck, 0)
		r.settle()
		require.False(t, r.state.Group(1).Done.Has(0), "mode %v", s.Mode)
		require.Equal(t, 1, a.answered(0))
	}
}

// Rule 27: a session that is about to attach anew is heard on its new link when that is open.
func TestRule27_ALinkThatIsNotOpenIsNotHeard(t *testing.T) {
	r := newRig(t, sharedGroup)
	r.produce(0)
	a := r.attach('A', 1, 5)
	r.unheard = true
	again := &recorder{r: r, session: a.session}
	r.leader.Attach(again, &wire.AttachRequest{
		Session: a.session, Attempt: 2, Term: 1, Capacity: 5, Claims: []wire.Outcome{{Offset: 0, Count: 1, Epoch: a.grants[0].Epoch}},
	}, "", 1, r.now)
	r.turn()
	again.sayUnder(wire.OutcomeAck, 0, a.grants[0].Epoch)
	r.settle()
	require.False(t, r.state.Group(1).Done.Has(0))
	r.leader.Confirmed(nil)
	r.settle()
	again.sayUnder(wire.OutcomeAck, 0, a.grants[0].Epoch)
	r.settle()
	require.True(t, r.state.Group(1).Done.Has(0))
}

// What a session says of records that it never had costs a bounded search for who has them.
func TestRule27_TheSearchForWhoHasARecordIsBounded(t *testing.T) {
	r := newRig(t, sharedGroup)
	const records = maxStrays + 1000
	r.places = append(r.places, Place{Count: records, BatchBytes: records})
	r.end = records
	r.state.Appended(r.end)
	a := r.attach('A', 1, maxElsewhere+10)
	require.Len(t, a.offsets(), maxElsewhere+10)
	b := r.attach('B', 1, 1)
	b.many(wire.OutcomeAck, 0, maxElsewhere+10)
	require.Equal(t, []wire.OutcomeAnswer{
		{Offset: 0, Count: maxElsewhere, Epoch: b.grants[0].Epoch, Code: wire.CodeStaleEpoch},
		{Offset: maxElsewhere, Count: 10, Epoch: b.grants[0].Epoch, Code: wire.CodeNotOwner},
	}, b.answers)
	b.many(wire.OutcomeNack, maxElsewhere+11, records)
	require.Zero(t, r.leader.strays)
	require.Equal(t, wire.CodeNotOwner, b.code(records-1))
	require.Equal(t, wire.CodeOutOfRange, b.code(records))
}

// Rule 25: an ack need not wait until the one before is applied, and of several that come too early
// each is refused once.
func TestRule25_AcksFollowEachOtherBeforeTheyAreApplied(t *testing.T) {
	for _, s := range oneScope {
		s.Window = 3
		r := newRig(t, s)
		r.produce(1, 1, 1)
		a := r.attach('A', 1, 5)
		require.Equal(t, []wire.Offset{0, 1, 2}, a.offsets())
		epoch := a.grants[0].Epoch
		a.many(wire.OutcomeAck, 1, 2)
		require.Equal(t, []wire.OutcomeAnswer{{Offset: 1, Count: 2, Epoch: epoch, Code: wire.CodeOutOfOrder}}, a.answers, "mode %v", s.Mode)
		a.answers = nil
		a.say(wire.OutcomeAck, 0)
		a.say(wire.OutcomeAck, 1)
		require.Empty(t, a.answers)
		r.settle()
		for o := range wire.Offset(2) {
			require.Equal(t, wire.CodeOK, a.code(o))
			require.Equal(t, 1, a.answered(o))
		}
	}
}

// A consumer that leaves with records in hand has failed at none of them.
func TestLeavingIsNoFailure(t *testing.T) {
	for _, s := range append(oneScope, keyGroup, sharedGroup) {
		r := newRig(t, s)
		r.produce(1)
		r.leader.Leave(r.attach('A', 1, 5), false, r.now)
		r.settle()
		deliveries, attempts := r.counts()
		require.Equal(t, [][]uint16{{1}, {0}}, [][]uint16{deliveries, attempts}, "mode %v", s.Mode)
	}
}

// A consumer holds as many bytes as it asked for, and the one that reaches beyond; what is settled
// makes room.
func TestWhatASessionHoldsIsBoundedInBytes(t *testing.T) {
	r := newRig(t, sharedGroup)
	for range 6 {
		r.produce(0) // of 100 bytes
	}
	a := &recorder{r: r, session: Session{'A'}}
	r.leader.Attach(a, &wire.AttachRequest{Session: a.session, Attempt: 1, Term: 1, Capacity: 10, Refill: 9, Bytes: 250}, "", 1, r.now)
	r.settle()
	require.Equal(t, []wire.Offset{0, 1, 2}, a.offsets())
	for o := range wire.Offset(3) {
		a.say(wire.OutcomeAck, o)
		r.settle()
		require.Len(t, a.offsets(), 4+int(o))
	}
	require.Equal(t, 300, r.leader.members[a.session].heldBytes)
}

// Rule 17: what was lost on the way is nobody's, and leaves no fence behind that somebody would
// have to take off.
func TestRule17_WhatWasLostOnTheWayLeavesNoFence(t *testing.T) {
	for _, s := range oneScope {
		r := newRig(t, s)
		r.produce(1, 1)
		r.attach('A', 1, 5)
		a := r.attach('A', 2, 5)
		require.Equal(t, []wire.Offset{0, 1}, a.offsets())
		require.Empty(t, a.lost)
		for o := range wire.Offset(2) {
			require.EqualValues(t, 1, a.grants[len(a.grants)-1].Deliveries, "it was never there")
			a.say(wire.OutcomeAck, o)
			r.settle()
			require.Equal(t, wire.CodeOK, a.code(o))
		}
		require.Zero(t, r.state.Group(1).settled.len(), "mode %v", s.Mode)
	}
}

// Rule 24: leases of an earlier leader were begun in the order of their epochs, whatever their
// offsets.
func TestRule24_WhatAnEarlierLeaderGaveFirstWasBegunFirst(t *testing.T) {
	for _, s := range []Settings{sharedGroup, keyGroup} {
		for working, want := range [][]uint16{1: {0, 1, 0}, 2: {1, 1, 0}} {
			if working == 0 {
				continue
			}
			r := newRig(t, s)
			r.produce(1, 2, 3)
			a := r.attach('A', 1, 3)
			first := a.grants[0].Epoch
			a.say(wire.OutcomeReleased, 0)
			a.say(wire.OutcomeReleased, 2)
			r.settle()
			require.Len(t, a.offsets(), 5)
			second := a.grants[len(a.grants)-1].Epoch
			require.Greater(t, second, first)
			r.lead()
			again := &recorder{r: r, session: a.session}
			r.leader.Attach(again, &wire.AttachRequest{
				Session: a.session, Attempt: 2, Term: 1, Capacity: 3, Working: uint32(working), Flags: wire.AttachReleaseChosen | wire.AttachReleaseOnDisconnect,
				Claims: []wire.Outcome{{Offset: 0, Count: 1, Epoch: second}, {Offset: 1, Count: 1, Epoch: first}, {Offset: 2, Count: 1, Epoch: second}},
			}, "", 1, r.now)
			r.settle()
			require.Empty(t, again.response.Refused)
			r.die(again)
			_, attempts := r.counts()
			require.Equal(t, want, attempts, "mode %v", s.Mode)
		}
	}
}

// T6: a session that lets a record time out comes after others, until it says something.
func TestRuleT6_AWordEndsTheSuspicion(t *testing.T) {
	r := newRig(t, sharedGroup)
	r.produce(0, 0)
	a := r.attach('A', 1, 10)
	r.overdue(a)
	r.settle()
	require.True(t, r.leader.members[a.session].suspect)
	b := r.attach('B', 1, 3)
	r.produce(0)
	r.settle()
	require.Contains(t, b.offsets(), wire.Offset(2), "A has more room, and is suspect")
	before := len(a.offsets())
	a.say(wire.OutcomeReleased, 7) // of nothing that it has
	r.produce(0)
	r.settle()
	require.Len(t, a.offsets(), before+1)
}

// T4: what waits behind another record of its scope is worked on when that is acknowledged, and
// its ack wait begins there.
func TestRuleT4_WhatWaitsBehindAnotherBeginsAtItsAck(t *testing.T) {
	const ackWait = wire.DefaultAckWaitMs * time.Millisecond
	for _, s := range oneScope {
		r := newRig(t, s)
		r.produce(1, 1)
		a := r.attach('A', 1, 5)
		require.Equal(t, []wire.Offset{0, 1}, a.offsets())
		r.heard(a, ackWait-time.Second)
		a.say(wire.OutcomeAck, 0)
		r.heard(a, ackWait-time.Second)
		require.Empty(t, a.revokes, "mode %v", s.Mode)
		r.heard(a, time.Second)
		require.Len(t, a.revokes, 1)
	}
}

// A failed record rests, also if it has failed because nobody said anything about it; what an
// operator wanted back has not failed, and whoever did not answer is not suspect.
func TestRuleT4_WhatTakesTooLongRests(t *testing.T) {
	const rest = 5 * time.Second
	for _, s := range []Settings{sharedGroup, keyGroup, {Mode: wire.ModeStream}} {
		s.BackoffMs, s.BackoffMaxMs = uint32(rest.Milliseconds()), uint32(rest.Milliseconds())
		r := newRig(t, s)
		r.produce(1)
		a := r.attach('A', 1, 5)
		r.overdue(a)
		r.settle()
		r.heard(a, rest-time.Second)
		require.Len(t, a.offsets(), 1, "mode %v", s.Mode)
		r.heard(a, time.Second)
		require.Len(t, a.offsets(), 2)

		r = newRig(t, s)
		r.produce(1)
		a = r.attach('A', 1, 5)
		scope := r.leader.scopeOf(0)
		r.leader.Park(scope, "stop", true, func(error) {})
		r.settle()
		require.Len(t, a.revokes, 1)
		r.leader.Unpark(scope, func(error) {})
		r.heard(a, r.leader.patience())
		require.Len(t, a.lost, 1)
		require.Len(t, a.offsets(), 2, "it does not rest")
		_, attempts := r.counts()
		require.Equal(t, []uint16{0}, attempts)
		require.False(t, r.leader.members[a.session].suspect)
	}
}
