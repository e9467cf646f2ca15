package group

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/wire"
)

// RULES Q1: a consumer that goes by an old binding, and attaches again and again in vain, keeps nothing from
// others that it does not claim any more.
func TestRuleQ1_WhoIsRefusedForItsBindingKeepsNothing(t *testing.T) {
	r := newRig(t, keyGroup)
	r.produce(5, 5)
	attach := func(name byte, attempt uint64, b Binding, claims ...wire.Outcome) *recorder {
		c := &recorder{r: r, session: Session{name}}
		r.leader.Attach(c, &wire.AttachRequest{Session: c.session, Attempt: attempt, Term: 1, Capacity: 1, Claims: claims, Generation: b.Generation, Counter: b.Counter, Flags: wire.AttachKnown * wire.AttachFlags(min(attempt-1, 1))}, "", 1, r.now)
		r.settle()
		return c
	}
	a := attach('A', 1, Binding{1, 9})
	require.Len(t, a.grants, 1)
	b := attach('B', 1, Binding{2, 1})
	require.ErrorIs(t, a.reason, wire.CodeStaleBinding)
	attach('A', 2, Binding{1, 9}) // it has dropped what it held
	require.Len(t, b.grants, 1)
}

// Rule 28: what a session has seen of an earlier loss does not lift the fence of a later one in the same entry.
func TestRule28_WhatWasSeenBeforeLiftsNoNewerFence(t *testing.T) {
	for _, said := range []bool{false, true} {
		r := newRig(t, sharedGroup)
		r.produce(0)
		a := r.attach('A', 1, 5)
		r.overdue(a)
		r.settle() // lost
		rest := func() {
			r.now += 3 * time.Second
			r.leader.Heard(a, r.now)
			r.settle()
		}
		rest() // given to A again
		require.Len(t, a.grants, 2)
		if said {
			r.leader.Outcomes(a, []wire.Outcome{{Offset: 0, Count: 1, Epoch: a.grants[0].Epoch, Kind: wire.OutcomeLostSeen}}, r.now)
			r.settle()
		}
		a.revokes = nil
		r.overdue(a)
		b := r.attach('B', 1, 5)
		r.settle()
		rest()
		require.NotNil(t, b.response)
		require.Len(t, b.grants, 1)
		b.say(wire.OutcomeAck, 0)
		r.settle()
		require.Equal(t, wire.CodeOK, b.code(0))
		r.leader.Gone(a, false) // A has not heard of the second loss
		again := r.attach('A', 2, 5, wire.Outcome{Offset: 0, Count: 1, Epoch: a.grants[1].Epoch, Kind: wire.OutcomeAck})
		require.Equal(t, map[wire.Offset]wire.ErrorCode{0: wire.CodeStaleEpoch}, again.refusals(), "said %v", said)
	}
}

// What one link could not send is not taken from others, who have got theirs.
func TestRuleL8_WhatOneLinkCouldNotSendStaysWithOthers(t *testing.T) {
	r := newRig(t, sharedGroup)
	r.produce(0, 0, 0)
	a := r.attach('A', 1, 1)
	b := r.attach('B', 1, 1)
	c := r.attach('C', 1, 1)
	require.Equal(t, []any{[]wire.Offset{0}, []wire.Offset{1}, []wire.Offset{2}}, []any{a.offsets(), b.offsets(), c.offsets()})
	r.leader.Damaged(a, 0, 3)
	r.settle()
	d := r.attach('D', 1, 5)
	r.now += 2 * time.Second
	for _, x := range []*recorder{a, b, c, d} {
		r.leader.Heard(x, r.now)
	}
	r.settle()
	require.Empty(t, b.lost)
	require.Equal(t, []wire.Offset{0}, d.offsets())
}

// RULES L8, GROUPS rule 15: a record that is claimed while its batch cannot be read holds its scope when that is repaired.
func TestRuleL8_AClaimInADamagedBatchHoldsItsScope(t *testing.T) {
	r := newRig(t, keyGroup)
	r.produce(5)
	r.produce(5)
	a := r.attach('A', 1, 5)
	require.Equal(t, []wire.Offset{0}, a.offsets())
	epoch := a.grants[0].Epoch
	r.lead()
	whole := r.places[0]
	r.places[0].Damaged, r.places[0].Index = true, nil
	a = r.attach('A', 2, 5, claimed(0, 1, epoch))
	b := r.attach('B', 1, 5)
	r.settle()
	r.places[0] = whole
	r.leader.Repaired(0, 1)
	for range 5 {
		r.now += time.Second
		r.leader.Heard(a, r.now)
		r.leader.Heard(b, r.now)
		r.settle()
	}
	require.Empty(t, b.offsets())
	r.leader.Outcomes(a, []wire.Outcome{{Offset: 0, Count: 1, Epoch: epoch, Kind: wire.OutcomeAck}}, r.now)
	r.settle()
	require.Equal(t, []wire.Offset{1}, append(a.offsets(), b.offsets()...))
}

// The same after a planned move.
func TestRuleL8_AMovedLeaseInADamagedBatchHoldsItsScope(t *testing.T) {
	r := newRig(t, keyGroup)
	r.produce(5)
	r.produce(5)
	a := r.attach('A', 1, 5)
	require.Equal(t, []wire.Offset{0}, a.offsets())
	epoch := a.grants[0].Epoch
	whole := r.places[0]
	r.moved()
	r.places[0].Damaged, r.places[0].Index = true, nil
	a = r.attach('A', 2, 5, claimed(0, 1, epoch))
	b := r.attach('B', 1, 5)
	r.places[0] = whole
	r.leader.Repaired(0, 1)
	for range 5 {
		r.now += time.Second
		r.leader.Heard(a, r.now)
		r.leader.Heard(b, r.now)
		r.settle()
	}
	require.Empty(t, b.offsets())
	r.leader.Outcomes(a, []wire.Outcome{{Offset: 0, Count: 1, Epoch: epoch, Kind: wire.OutcomeAck}}, r.now)
	r.settle()
	require.Equal(t, []wire.Offset{1}, append(a.offsets(), b.offsets()...))
}

// What is on its way back when its scope becomes known holds up what is behind it, also where a scope has a window.
func TestRuleL8_WhatIsOnItsWayBackHoldsItsScope(t *testing.T) {
	settings := keyGroup
	settings.Window = 2
	r := newRig(t, settings)
	r.produce(5)
	a := r.attach('A', 1, 5)
	epoch := a.grants[0].Epoch
	r.produce(5)
	r.lead()
	whole := r.places[0]
	r.places[0].Damaged, r.places[0].Index = true, nil
	a = r.attach('A', 2, 5, claimed(0, 1, epoch))
	b := r.attach('B', 1, 5)
	r.leader.Outcomes(a, []wire.Outcome{{Offset: 0, Count: 1, Epoch: epoch, Kind: wire.OutcomeReleased}}, r.now)
	r.turn() // not applied
	r.places[0] = whole
	r.leader.Repaired(0, 1)
	r.turn()
	require.Empty(t, append(a.offsets(), b.offsets()...))
	r.settle()
	require.Equal(t, []wire.Offset{0, 1}, append(a.offsets(), b.offsets()...))
}
