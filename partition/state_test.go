package partition

import (
	"encoding/binary"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/log"
	"github.com/lockstepmq/lockstep/partition/group"
	"github.com/lockstepmq/lockstep/wire"
)

// withGroups is a state of 100 records with the groups 7 and 8 of a queue.
func withGroups() *State {
	s := NewState()
	s.applyDamaged(0, 100)
	for id := group.ID(7); id < 9; id++ {
		s.applyControl(1, 0, group.AppendPut(nil, id, 1, string(rune('a'+id)), &wire.GroupSettings{Mode: wire.ModeShared}, 0, group.PutQueue), func(group.Effect) {})
	}
	return s
}

func acks(id group.ID, from, to wire.Offset) []byte {
	return group.AppendOutcomes(nil, id, []group.Span{{From: from, To: to}}, nil)
}

// A record of a queue is removed when all its groups are done with it, by the entry that
// says so of the last one.
func TestAQueueBeginsWhereItsGroupsAreNotDone(t *testing.T) {
	s := withGroups()
	nothing := func(group.Effect) {}
	s.applyControl(2, 0, acks(7, 0, 50), nothing)
	require.EqualValues(t, 0, s.Start())
	s.applyControl(3, 0, acks(8, 1, 30), nothing)
	require.EqualValues(t, 0, s.Start())
	s.applyControl(4, 0, append(acks(8, 0, 1), acks(8, 40, 50)...), nothing)
	require.EqualValues(t, 30, s.Start())
	require.EqualValues(t, 30, s.groups.Start())
	s.applyControl(5, 0, group.AppendRemoveGroup(nil, 8), nothing)
	require.EqualValues(t, 50, s.Start())
	s.applyControl(6, 0, group.AppendRemoveGroup(nil, 7), nothing)
	require.EqualValues(t, 50, s.Start())
}

// What retention removes is removed for groups too, and the leader hears of it.
func TestATrimReachesTheGroups(t *testing.T) {
	s := withGroups()
	var kinds []group.Command
	trim := appendCommand(nil, commandTrim, binary.LittleEndian.AppendUint64(nil, 20))
	s.applyControl(2, 0, append(trim, acks(7, 20, 30)...), func(e group.Effect) { kinds = append(kinds, e.Kind) })
	require.EqualValues(t, 20, s.Start())
	require.EqualValues(t, 20, s.groups.Group(8).Expired)
	require.EqualValues(t, 30, s.groups.Group(7).Done.Floor())
	require.Equal(t, []group.Command{group.Command(commandTrim), group.CommandOutcomes}, kinds)
}

// Version 3 is version 2 with the groups behind it; without groups there is no
// difference, and a broker that knows none can read it.
func TestAStateWithGroupsIsSaved(t *testing.T) {
	s := withGroups()
	saved := s.Save(nil)
	require.Equal(t, []byte{3, 0, 0, 0}, saved[:4])
	again := NewState()
	require.NoError(t, again.Restore(saved))
	require.Equal(t, saved, again.Save(nil))
	require.Equal(t, saved, s.Snapshot()(nil))
	for cut := range saved {
		require.ErrorIs(t, NewState().Restore(saved[:cut]), ErrState, "cut at %d", cut)
	}
	moved := append([]byte(nil), saved...)
	moved[4]++ // the partition begins where its groups do not
	require.ErrorIs(t, NewState().Restore(moved), ErrState)

	for id := group.ID(7); id < 9; id++ {
		s.applyControl(2, 0, group.AppendRemoveGroup(nil, id), func(group.Effect) {})
	}
	without := s.Save(nil)
	require.Equal(t, []byte{2, 0, 0, 0}, without[:4])
	require.NoError(t, again.Restore(without))
	require.Zero(t, again.groups.Len())
	require.EqualValues(t, 100, again.groups.Next())
}

func TestACommandThatIsTooNew(t *testing.T) {
	defer func() { require.ErrorIs(t, recover().(error), log.ErrTooNew) }()
	NewState().applyControl(1, 0, []byte{200, 1, 0, 0, 0, 0, 0, 0}, func(group.Effect) {})
}
