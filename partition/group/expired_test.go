package group

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/wire"
)

// RULES Q4: retention goes before groups, and one that it has moved says so: to who consumes
// at that time, to who comes before the group has gone on, and to who asks why; also under
// another leader, from a checkpoint.
func TestRuleQ4_AGroupSaysWhatItHasLostToRetention(t *testing.T) {
	lost := func(c *recorder) (out []wire.Lost) {
		for _, x := range c.lost {
			if x.Epoch == 0 {
				out = append(out, x)
			}
		}
		return out
	}
	said := func(r *rig) (codes []string) {
		for _, reason := range r.leader.Explain(&wire.ExplainRequest{}, 0).Reasons {
			codes = append(codes, reason.Code)
		}
		return codes
	}
	r := newRig(t, sharedGroup)
	r.produce(0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
	a := r.attach('A', 1, 4)
	a.say(wire.OutcomeAck, 1)
	r.settle()
	require.Empty(t, lost(a))
	require.NotContains(t, said(r), "data_expired")

	require.EqualValues(t, 5, r.state.Trimmed(6), "one was done")
	r.leader.Trimmed()
	r.settle()
	all := []wire.Lost{{Offset: 0, Count: 6, Reason: wire.ReasonExpired}}
	require.Equal(t, all, lost(a))
	require.Equal(t, wire.Lost{Offset: 0, Count: 1, Epoch: a.grants[0].Epoch, Reason: wire.ReasonExpired}, a.lost[1], "and its leases")
	require.Contains(t, said(r), "data_expired")

	saved := r.state.Save(nil)
	restored, err := Restore(saved)
	require.NoError(t, err)
	require.Equal(t, saved, restored.Save(nil))
	require.Equal(t, Span{0, 6}, restored.Group(1).Lost)
	r.state = restored
	r.lead()
	b := r.attach('B', 1, 4)
	require.Equal(t, all, lost(b), "who comes later hears it too")
	require.Contains(t, said(r), "data_expired")
	r.attach('A', 2, 4)

	r.state.Trimmed(7)
	r.leader.Trimmed()
	r.settle()
	require.Equal(t, []wire.Lost{all[0], {Offset: 0, Count: 7, Reason: wire.ReasonExpired}}, lost(b), "it has not gone on, so it is one range")
	b.say(wire.OutcomeAck, 7)
	r.settle()
	require.NotContains(t, said(r), "data_expired")
	c := r.attach('C', 1, 4)
	require.Empty(t, lost(c), "the group has gone on")
	require.EqualValues(t, 6, r.state.Group(1).Expired)
	r.state.Trimmed(9)
	r.leader.Trimmed()
	r.settle()
	require.Equal(t, []wire.Lost{{Offset: 8, Count: 1, Reason: wire.ReasonExpired}}, lost(c))
}

// Rule 20: what has expired while it waited for its next delivery is not given.
func TestRule20_WhatExpiredWhileItWaitedIsNotGiven(t *testing.T) {
	r := newRig(t, sharedGroup)
	r.produce(0)
	r.produce(0)
	a := r.attach('A', 1, 2)
	require.Equal(t, []wire.Offset{0, 1}, a.offsets())
	r.leader.Leave(a, true, r.now)
	a.say(wire.OutcomeReleased, 0)
	r.settle()
	r.state.Trimmed(1)
	r.leader.Trimmed()
	require.Empty(t, r.attach('B', 1, 2).offsets())
	a.say(wire.OutcomeReleased, 1)
	r.settle()
	require.Equal(t, []wire.Offset{1}, r.attach('B', 2, 2).offsets())
}
