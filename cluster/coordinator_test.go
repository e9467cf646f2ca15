package cluster

import (
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/wire"
)

// The partition that keeps the members of groups has no leader for the session timeout:
// another keeps them, in a higher generation. It stays when the first comes back.
func TestAnotherPartitionCoordinatesWhenTheFirstHasNoLeader(t *testing.T) {
	s := clusterOf(t, 3)
	placed(t, s, "orders", []uint32{1}, []uint32{2}, []uint32{3})
	w := newWorld(t, s)
	coordinates := func() Coordinator { return s.Destinations["orders"].Coordinates() }
	w.down[1] = 1
	for range 2 * coordinatorTicks / 10 {
		w.step()
	}
	require.Equal(t, Coordinator{Partition: 0, Generation: 1}, coordinates(), "there are no groups")

	require.NoError(t, setGroup(s, 500, SetGroup{Group: "billing", Create: true, Settings: wire.GroupSettings{Mode: wire.ModeShared}}).Err)
	for range coordinatorTicks / 10 {
		require.Equal(t, Coordinator{Partition: 0, Generation: 1}, coordinates())
		w.step()
	}
	w.step()
	moved := coordinates()
	require.Equal(t, Coordinator{Partition: 1, Generation: 2, Since: moved.Since}, moved)
	require.NotZero(t, moved.Since)
	require.Equal(t, 3, s.Version, "an older build must not open it")

	w.down[1] = 0
	for range 2 * coordinatorTicks / 10 {
		w.step()
	}
	require.Equal(t, moved, coordinates())

	// What a controller has seen before is refused, and so is what is not there.
	late := &Command{MoveCoordinator: &MoveCoordinator{Destination: s.Destinations["orders"].ID, Coordinator: Coordinator{Partition: 2, Generation: 2}}}
	require.ErrorIs(t, s.Apply(900, late).Err, wire.CodeRefused)
	late.MoveCoordinator.Coordinator = Coordinator{Partition: 7, Generation: 3}
	require.ErrorIs(t, s.Apply(901, late).Err, wire.CodeRefused)
	late.MoveCoordinator.Destination = id(99)
	require.ErrorIs(t, s.Apply(902, late).Err, wire.CodeUnknownDestination)

	// It is in the checkpoint of the metadata.
	stored, err := json.Marshal(s.Destinations["orders"])
	require.NoError(t, err)
	var again Destination
	require.NoError(t, json.Unmarshal(stored, &again))
	require.Equal(t, moved, again.Coordinates())
}
