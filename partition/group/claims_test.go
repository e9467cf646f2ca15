package group

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/wire"
)

// What sessions claim when they attach (rules 15 and 16). Each test fails without one condition of
// the code that judges it.

// claimed is a claim of records that a session works on.
func claimed(o wire.Offset, count uint32, epoch wire.Index) wire.Outcome {
	return wire.Outcome{Offset: o, Count: count, Epoch: epoch}
}

// refusals are the codes of the records that were refused.
func (c *recorder) refusals() map[wire.Offset]wire.ErrorCode {
	out := map[wire.Offset]wire.ErrorCode{}
	for _, a := range c.response.Refused {
		for i := range a.Count {
			out[a.Offset+wire.Offset(i)] = a.Code
		}
	}
	return out
}

// holds are the records that a session has leases of.
func (r *rig) holds(s Session) (out []wire.Offset) {
	for _, x := range r.leader.members[s].leases.all() {
		for o := x.from; o < x.to; o++ {
			out = append(out, o)
		}
	}
	return out
}

// Rule 15: what cannot have been given is not granted, and does not hold up the attach: it lies
// behind the end or the horizon, or was given by a leader to come.
func TestRule15_WhatWasNeverGivenIsNotGranted(t *testing.T) {
	for _, s := range append(oneScope, keyGroup, sharedGroup) {
		r := newRig(t, s)
		r.leader.step = 4
		r.produce(1, 2, 3, 4, 5, 6)
		epoch := r.attach('A', 1, 1).grants[0].Epoch
		require.EqualValues(t, 4, r.state.Group(1).Horizon)
		r.lead()
		a := r.attach('A', 2, 1, claimed(0, 1, r.applied+1), claimed(4, 3, epoch))
		require.Equal(t, map[wire.Offset]wire.ErrorCode{0: wire.CodeNotOwner, 4: wire.CodeNotOwner, 5: wire.CodeNotOwner, 6: wire.CodeOutOfRange}, a.refusals(), "mode %v", s.Mode)
	}
}

// Rules 15, 28: a claim counts for the lease that it names, also when that is settled and not
// applied; and for no other.
func TestRule15_AClaimNamesItsLease(t *testing.T) {
	for later, want := range map[int]map[wire.Offset]wire.ErrorCode{-1: {0: wire.CodeStaleEpoch}, 0: {}, 1: {0: wire.CodeNotOwner}} {
		r := newRig(t, sharedGroup)
		r.produce(0)
		a := r.attach('A', 1, 5)
		a.say(wire.OutcomeAck, 0)
		again := r.ask(wire.AttachRequest{Session: a.session, Attempt: 2, Claims: []wire.Outcome{claimed(0, 1, a.grants[0].Epoch+wire.Index(later))}})
		require.Equal(t, want, again.refusals())
	}
}

// Rule 16: a claim of what is done says so, and leases nothing, also if the record itself is gone.
func TestRule16_WhatIsDoneIsAnsweredAndNotLeased(t *testing.T) {
	for _, s := range append(oneScope, keyGroup, sharedGroup) {
		r := newRig(t, s)
		r.produce(1)
		a := r.attach('A', 1, 5)
		a.say(wire.OutcomeAck, 0)
		r.settle()
		r.attach('B', 1, 5) // is waited for
		r.hidden = map[wire.Offset]bool{0: true}
		r.lead()
		again := r.ask(wire.AttachRequest{Session: a.session, Attempt: 2, Claims: []wire.Outcome{{Offset: 0, Count: 1, Epoch: a.grants[0].Epoch, Kind: wire.OutcomeAck}}})
		require.NotNil(t, again.response, "mode %v", s.Mode)
		require.Equal(t, map[wire.Offset]wire.ErrorCode{0: wire.CodeOK}, again.refusals())
		require.Empty(t, r.holds(a.session))
		require.Empty(t, r.leader.next.acks)
	}
}

// Rule 27: where fences were forgotten nobody knows whether a record was taken away.
func TestRule27_AClaimFromBeforeWhatWasForgottenIsRefused(t *testing.T) {
	r := newRig(t, sharedGroup)
	r.produce(0)
	a := r.attach('A', 1, 5)
	r.state.Group(1).Forgotten = a.grants[0].Epoch + 1
	r.lead()
	again := r.attach('A', 2, 5, claimed(0, 1, a.grants[0].Epoch))
	require.Equal(t, map[wire.Offset]wire.ErrorCode{0: wire.CodeStaleEpoch}, again.refusals())
}

// Rule 15: a scope has one holder, whoever claims it too, and however often.
func TestRule15_WhatOneSessionHasNoOtherClaims(t *testing.T) {
	for _, c := range []struct {
		settings Settings
		key      uint64
		second   wire.Offset // that the other one claims
	}{{sharedGroup, 0, 0}, {keyGroup, 0, 0}, {keyGroup, 1, 0}, {keyGroup, 1, 1}} {
		r := newRig(t, c.settings)
		r.produce(c.key, c.key)
		epoch := r.attach('A', 1, 1).grants[0].Epoch
		r.attach('B', 1, 1)
		r.attach('C', 1, 1) // is waited for
		r.lead()
		a := r.attach('A', 2, 1, claimed(0, 1, epoch))
		require.Empty(t, a.refusals())
		for attempt := range uint64(2) { // the second time it is not waited for
			b := r.attach('B', 2+attempt, 1, claimed(c.second, 1, epoch))
			want := wire.CodeStaleEpoch
			if attempt == 1 && c.second == 1 {
				want = wire.CodeNotOwner // that one is nobody's
			}
			require.Equal(t, map[wire.Offset]wire.ErrorCode{c.second: want}, b.refusals(), "%+v", c)
			require.NotContains(t, r.holds(b.session), c.second)
		}
		require.Equal(t, []wire.Offset{0}, r.holds(a.session))
	}
}

// Rule 15: a dead letter that is not written, and what has expired, is no gap before what its
// session goes on with.
func TestRule15_WhatHasLeftItsScopeIsNoGap(t *testing.T) {
	for _, s := range append(oneScope, keyGroup) {
		s.DeliveryLimit, s.DeadLetterMode, s.DeadLetter = 1, wire.DeadLetterRecord, "dead"
		r := newRig(t, s)
		r.produce(1)
		r.produce(1)
		a := r.attach('A', 1, 1)
		a.say(wire.OutcomeNack, 0)
		r.settle()
		require.Equal(t, []wire.Offset{0, 1}, a.offsets())
		r.lead()
		again := r.attach('A', 2, 1, claimed(1, 1, a.grants[1].Epoch))
		require.Empty(t, again.refusals(), "mode %v", s.Mode)
	}
	for _, window := range []uint32{3, 4} {
		s := keyGroup
		s.Window = window
		r := newRig(t, s)
		r.produce(1, 1, 1)
		epoch := r.attach('A', 1, 5).grants[0].Epoch
		r.attach('B', 1, 5)
		r.lead()
		r.attach('B', 2, 5) // has the scopes looked up
		r.state.Trimmed(1)
		r.leader.Trimmed()
		require.Empty(t, r.attach('A', 2, 5, claimed(1, 2, epoch)).refusals())
	}
}

// Rule 28: who was refused, and has not heard it, is no holder of what another one has done since.
func TestRule28_ARefusedClaimLeavesAFence(t *testing.T) {
	for _, s := range []Settings{keyGroup, {Mode: wire.ModeSerial, Scope: wire.ScopeDestination, Window: 2}} {
		r := newRig(t, s)
		r.produce(5, 5)
		a := r.attach('A', 1, 5)
		if len(a.offsets()) == 1 {
			a.say(wire.OutcomeAck, 0) // which dies with its leader
		}
		require.Equal(t, []wire.Offset{0, 1}, a.offsets())
		epoch := a.grants[len(a.grants)-1].Epoch
		r.lead()
		a = r.attach('A', 2, 5, claimed(1, 1, epoch))
		require.Equal(t, map[wire.Offset]wire.ErrorCode{1: wire.CodeStaleEpoch}, a.refusals(), "behind a gap")
		for o := range wire.Offset(2) { // whoever has them now
			a.say(wire.OutcomeAck, o)
			r.settle()
		}
		require.Equal(t, wire.GrantRedelivered, a.flags(1))
		require.EqualValues(t, 2, r.state.Group(1).Done.Floor())
		late := r.attach('A', 3, 5, wire.Outcome{Offset: 1, Count: 1, Epoch: epoch, Kind: wire.OutcomeAck})
		require.Equal(t, map[wire.Offset]wire.ErrorCode{1: wire.CodeStaleEpoch}, late.refusals(), "mode %v", s.Mode)
	}
}

// Rule 17: what is not claimed was lost on the way, also before what is claimed; that its session
// knows that it has lost a record is no claim of it.
func TestRule17_OnlyWhatIsClaimedStays(t *testing.T) {
	for name, first := range map[string][]wire.Outcome{
		"not claimed": nil, "known to be lost": {{Offset: 0, Count: 1, Kind: wire.OutcomeLostSeen}},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, sharedGroup)
			r.produce(0, 0, 0)
			epoch := r.attach('A', 1, 5).grants[0].Epoch
			for i := range first {
				first[i].Epoch = epoch
			}
			a := r.attach('A', 2, 5, append(first, claimed(1, 1, epoch))...)
			require.Empty(t, a.refusals())
			require.Equal(t, []wire.Offset{0, 2}, a.offsets())
			require.Equal(t, []wire.Offset{0, 1, 2}, r.holds(a.session))
			require.Equal(t, 3, r.leader.members[a.session].held)
		})
	}
}
