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

// Rules 2, 31: what is to be committed with an order comes behind all that was decided before it,
// however many entries that takes: a leader that begins behind a hand-over knows the acks, what was
// taken back, what is parked and which letters are written.
func TestRule2_AnOrderComesBehindWhatWasDecidedBefore(t *testing.T) {
	const records = 80
	each := func(do func(o wire.Offset)) {
		for o := range wire.Offset(records) {
			do(o * 3 % records) // so that no two are one run
		}
	}
	say := func(a *recorder, kind wire.OutcomeKind) {
		each(func(o wire.Offset) {
			a.r.leader.Outcomes(a, []wire.Outcome{{Offset: o, Count: 1, Epoch: a.grants[0].Epoch, Kind: kind}}, a.r.now)
		})
	}
	for name, decide := range map[string]func(r *rig, a *recorder) (undone func() bool){
		"acks": func(r *rig, a *recorder) func() bool {
			say(a, wire.OutcomeAck)
			return func() bool { return r.state.Group(1).Done.Floor() < records }
		},
		"backs": func(r *rig, a *recorder) func() bool {
			say(a, wire.OutcomeReleased)
			return func() bool { return r.leader.backing > 0 }
		},
		"parks": func(r *rig, a *recorder) func() bool {
			each(func(o wire.Offset) { r.leader.Park(Scope(o), "by hand", false, func(error) {}) })
			return func() bool { return len(r.state.Group(1).Parked) < records }
		},
		"letters": func(r *rig, a *recorder) func() bool {
			say(a, wire.OutcomeReject)
			return func() bool { return len(r.state.Group(1).Letters.Open) < records }
		},
		"written": func(r *rig, a *recorder) func() bool {
			say(a, wire.OutcomeReject)
			r.settle()
			each(func(o wire.Offset) { r.leader.LetterWritten(uint64(o)) })
			return func() bool { return len(r.state.Group(1).Letters.Open) > 0 }
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, lettered)
			r.produce(make([]uint64, records)...)
			a := r.attach('A', 1, records)
			require.Len(t, a.offsets(), records)
			undone := decide(r, a)
			ordered := false
			r.leader.Order(Order{Command: AppendTableVoid(nil, 1), Done: func(err error) {
				require.NoError(t, err)
				require.False(t, undone())
				ordered = true
			}})
			entries := 0
			for ; !ordered; entries++ {
				data, ok := r.leader.Propose(nil, 1000)
				require.True(t, ok)
				r.apply(data)
				r.leader.Applied(r.applied)
			}
			require.Greater(t, entries, 1)
		})
	}
}

// Rule 31: of a session that has left between the hand-over and the end of the term nothing is
// taken over.
func TestRule31_WhoHasLeftSinceHasNoLeases(t *testing.T) {
	r := newRig(t, sharedGroup)
	r.produce(1)
	a := r.attach('A', 1, 1)
	r.leader.HandOver(func(err error) { require.NoError(t, err) })
	r.settle()
	a.say(wire.OutcomeReleased, 0) // so that no fence says that it is over
	r.settle()
	r.leader.Leave(a, false, r.now)
	r.settle()
	require.NotEmpty(t, r.state.Group(1).Table)
	r.state.Term(2)
	r.lead()
	require.Equal(t, []wire.Offset{0}, r.attach('B', 1, 1).offsets())
}

// Rules 15, 31: a record that was given again in the turn that its return was applied in has the
// epoch of its fence. That is no stale lease.
func TestRule31_AnEpochThatIsTheFenceIsTakenOver(t *testing.T) {
	r := newRig(t, sharedGroup)
	r.produce(1)
	a := r.attach('A', 1, 1)
	require.Equal(t, []wire.Offset{0}, a.offsets())
	b := r.attach('B', 1, 1)
	r.leader.Gone(a, true)
	r.settle()
	require.Equal(t, []wire.Offset{0}, b.offsets())
	require.Equal(t, r.state.Group(1).FenceOf(0), b.grants[0].Epoch)
	r.moved()
	require.Empty(t, r.attach('C', 1, 1).offsets(), "it is B's")
}

// Rule 31: the scopes of what was taken over are looked for turn by turn, and the leader goes on by
// itself until it knows all.
func TestRule31_ManyLeasesAreTakenOverInSomeTurns(t *testing.T) {
	r := newRig(t, keyGroup)
	keys := make([]uint64, turnRecords+1)
	for i := range keys {
		keys[i] = uint64(i + 1)
	}
	r.produce(keys...)
	a := r.attach('A', 1, uint32(len(keys)))
	require.Len(t, a.offsets(), len(keys))
	r.moved()
	require.True(t, r.leader.Turn(r.now, r.applied, r.end), "there is more to do")
	require.NotEmpty(t, r.leader.table)
	require.False(t, r.leader.Turn(r.now, r.applied, r.end))
	require.Empty(t, r.leader.table)
}
