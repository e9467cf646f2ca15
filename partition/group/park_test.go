package group

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/wire"
)

// Rule 30: whoever has a record of a scope that is parked may finish it.
func TestRule30_TheHolderOfAParkedScopeFinishes(t *testing.T) {
	r := newRig(t, keyGroup)
	r.produce(5, 5)
	a := r.attach('A', 1, 5)
	r.leader.Park(5, "stop", false, nil)
	r.settle()
	require.Empty(t, a.revokes)
	a.say(wire.OutcomeAck, 0)
	r.settle()
	require.Equal(t, []any{wire.CodeOK, []wire.Offset{0}}, []any{a.code(0), a.offsets()})
	r.leader.Unpark(5, nil)
	r.settle()
	require.Equal(t, []wire.Offset{0, 1}, a.offsets())
}

// Rule 30: a scope stands still from the order on, also while an order before it, that lets it go on, is committed.
func TestRule30_AScopeThatIsParkedAnewStandsStill(t *testing.T) {
	r := newRig(t, keyGroup)
	a := r.attach('A', 1, 5)
	r.produce(5)
	for _, order := range []func(){
		func() { r.leader.Park(5, "stop", false, nil) },
		func() { r.leader.Unpark(5, nil) },
		func() { r.leader.Park(5, "stop again", false, nil) },
	} {
		order()
		r.turn()
	}
	require.Len(t, r.entries, 3)
	for len(r.entries) > 0 {
		r.apply(r.entries[0])
		r.entries = r.entries[1:]
		r.leader.Applied(r.applied)
		r.turn()
		require.Empty(t, a.offsets())
	}
	r.leader.Unpark(5, nil)
	r.settle()
	require.Equal(t, []wire.Offset{0}, a.offsets())
}

// A scope that is parked again is parked since it was first.
func TestAScopeIsParkedSinceTheFirstOrder(t *testing.T) {
	r := newRig(t, keyGroup)
	r.produce(5)
	for range 2 {
		r.leader.Park(5, "stop", false, nil)
		r.settle()
		r.now += time.Second
		r.leader.Reaches(r.end, r.now)
	}
	r.leader.Reaches(0, 0) // said later, and older
	var d wire.GroupPartition
	r.leader.Describe(&d)
	require.EqualValues(t, 2000, d.ParkedScopes[0].ForMs)
}

// What is the head of a scope: the lowest record that is neither done, nor about to be, nor waits for its letter.
func TestTheHeadOfAScope(t *testing.T) {
	type head struct {
		o     wire.Offset
		known bool
	}
	at := func(r *rig, h Scope) head {
		o, known := r.leader.Head(h)
		return head{o, known}
	}
	s := lettered
	s.Mode = wire.ModeStream
	r := newRig(t, s)
	r.produce(0, 0)
	a := r.attach('A', 1, 5)
	require.Equal(t, head{0, true}, at(r, destinationScope))
	a.say(wire.OutcomeReject, 0)
	r.settle()
	require.Equal(t, head{1, true}, at(r, destinationScope), "a record that waits for its letter is not given to anybody")
	a.say(wire.OutcomeAck, 1)
	r.settle()
	require.Equal(t, head{2, false}, at(r, destinationScope))

	s.Mode = wire.ModeShared
	r = newRig(t, s)
	r.produce(0, 0, 0)
	a = r.attach('A', 1, 5)
	a.say(wire.OutcomeReject, 0)
	a.say(wire.OutcomeAck, 1)
	r.settle()
	require.Equal(t, []head{{0, false}, {1, false}, {2, true}, {3, false}}, []head{at(r, 0), at(r, 1), at(r, 2), at(r, 3)})

	r = newRig(t, keyGroup)
	r.produce(5, 5, 5)
	require.Equal(t, head{}, at(r, 5), "nobody has looked for it")
	a = r.attach('A', 1, 5)
	require.Equal(t, head{0, true}, at(r, 5))
	a.say(wire.OutcomeAck, 0)
	r.turn() // proposed, not applied
	require.Equal(t, head{1, true}, at(r, 5))
	a.say(wire.OutcomeAck, 1)
	a.say(wire.OutcomeAck, 2)
	r.settle()
	require.Equal(t, head{}, at(r, 5))
}

// Letters that are given up do not go back; those that are on their way to the group's own dead-letter destination do, and
// so do others.
func TestWhatIsGivenUpDoesNotGoBack(t *testing.T) {
	r := newRig(t, lettered)
	r.produce(0, 0, 0, 0)
	a := r.attach('A', 1, 1)
	a.say(wire.OutcomeReject, 0)
	r.leader.Capacity(a, &wire.GroupCapacity{})
	r.settle()
	redrive := []Letter{{Offset: 1, Text: TargetText("orders", 0)}, {Offset: 2, Text: TargetText("orders", 0)}}
	a.say(wire.OutcomeReleased, 1)
	r.settle()
	r.leader.Redrive(redrive, func(wire.Offset) (bool, error) { return false, nil }, func(err error) { require.NoError(t, err) })
	r.settle()
	open := func() (out []wire.Offset) {
		for _, o := range []wire.Offset{0, 1, 2} {
			for _, l := range r.state.Group(1).Letters.Open {
				if l.Offset == o {
					out = append(out, o)
				}
			}
		}
		return out
	}
	require.Equal(t, []wire.Offset{0, 1, 2}, open())
	r.leader.GiveUp([]Span{{0, 2}}, func() error { return nil }, func(err error) { require.NoError(t, err) })
	r.settle()
	require.Equal(t, []wire.Offset{0, 2}, open())
}
