package cluster

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/wire"
)

// deleteOfAnother deletes what a client saw before it was deleted and created again, and
// reports whether the new one is still there (RELIABILITY 6.4, row 43).
func deleteOfAnother(t *testing.T, careless bool) (kept bool) {
	s := clusterOf(t, 3)
	s.careless = careless
	seen := placed(t, s, "precious", []uint32{1, 2, 3})
	apply(t, s, Command{Delete: &Delete{Name: "precious", Kind: wire.Queue, ID: seen.ID}})
	c := settings(1)
	now := apply(t, s, Command{Create: &Create{Name: "precious", Kind: wire.Queue, Settings: c, ID: id(77), PartitionIDs: ids(1), Node: 1}}).Destination
	require.NotEqual(t, seen.ID, now.ID)
	r := s.Apply(90, &Command{Delete: &Delete{Name: "precious", Kind: wire.Queue, ID: seen.ID}})
	kept = s.Destinations["precious"] != nil
	require.Equal(t, kept, r.Err != nil)
	return kept
}

func TestRow43_ADestinationIsDeletedByItsID(t *testing.T) { require.True(t, deleteOfAnother(t, false)) }

func TestRow43_Catches_ADeleteByName(t *testing.T) { require.False(t, deleteOfAnother(t, true)) }
