package group

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/wire"
)

// What the next leader makes of the leases that it was handed. Each test fails without one
// condition of the code that takes them over.

// moved is a planned move: the leases are committed, and another leader begins.
func (r *rig) moved() {
	err := error(wire.CodeRetry)
	r.leader.HandOver(func(e error) { err = e })
	r.settle()
	require.NoError(r.t, err)
	r.state.Term(r.state.term + 1)
	r.lead()
}

// Rule 31: what a session was given before the move counts against what it has room for.
func TestRule31_LeasesThatAreTakenOverTakeRoom(t *testing.T) {
	for _, s := range []Settings{sharedGroup, keyGroup} {
		r := newRig(t, s)
		r.produce(1, 2)
		a := r.attach('A', 1, 2)
		require.Len(t, a.offsets(), 2)
		r.moved()
		r.produce(3, 4)
		a = r.attach('A', 2, 2, wire.Outcome{Offset: 0, Count: 2, Epoch: a.grants[0].Epoch})
		require.Empty(t, a.response.Refused)
		require.Empty(t, a.offsets(), "mode %v", s.Mode)
	}
}

// Rule 31: where one record is out at a time, the next waits for the one that was handed over,
// whoever is there.
func TestRule31_TheHolderIsHandedOver(t *testing.T) {
	r := newRig(t, Settings{Mode: wire.ModeSerial, Scope: wire.ScopeDestination, Holder: wire.HolderAny})
	r.produce(1, 1)
	a := r.attach('A', 1, 2)
	require.Len(t, a.offsets(), 1)
	r.moved()
	b := r.attach('B', 1, 2)
	require.Empty(t, b.offsets())
	r.attach('A', 2, 0, wire.Outcome{Offset: 0, Count: 1, Epoch: a.grants[0].Epoch, Kind: wire.OutcomeAck})
	r.settle()
	require.Equal(t, []wire.Offset{1}, b.offsets())
}

// Rule 31: a move that is given up and begun again before that is committed is a move: nothing goes
// out behind its table.
func TestRule31_AMoveThatBeginsAgainIsNotGivenUp(t *testing.T) {
	r := newRig(t, sharedGroup)
	a := r.attach('A', 1, 5)
	r.leader.HandOver(func(error) {})
	r.settle()
	r.leader.Stay()
	r.leader.HandOver(func(error) {})
	r.produce(0)
	r.settle()
	require.Empty(t, a.offsets())
	r.leader.Stay()
	r.settle()
	require.Equal(t, []wire.Offset{0}, a.offsets())
}
