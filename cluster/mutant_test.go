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

// A Create whose answer was lost is sent again; its destination may have been deleted by then, and
// its directories are being removed.
func TestRow43_ACreateSentAgainDoesNotMakeADeletedDestinationAgain(t *testing.T) {
	s := clusterOf(t, 3)
	c := Command{Create: &Create{Name: "orders", Kind: wire.Queue, Settings: settings(1), ID: id(77), PartitionIDs: ids(1), Node: 1}}
	require.True(t, c.Repeatable())
	d := apply(t, s, c).Destination
	require.Equal(t, d, apply(t, s, c).Destination, "sent again")
	apply(t, s, Command{Delete: &Delete{Name: "orders", Kind: wire.Queue, ID: d.ID}})
	require.Contains(t, s.Deleted, d.ID)
	require.ErrorIs(t, s.Apply(90, &c).Err, wire.CodeDestinationGone)
	require.Empty(t, s.Destinations)
}

// A command that is refused late has not raised the feature level, nor named the cluster, before.
func TestRefusedCommandsLeaveLevelAndClusterAlone(t *testing.T) {
	s := clusterOf(t, 1)
	apply(t, s, Command{Create: &Create{Name: "orders", Kind: wire.Queue, Settings: settings(1), ID: id(77), PartitionIDs: ids(1), Node: 1}})
	letters := settings(1)
	letters.DeadLetter, letters.Replicas = "dead", 2
	loop := letters
	loop.DeadLetter = "orders"
	fresh := NewState()
	for _, c := range []struct {
		state   *State
		command Command
	}{
		{s, Command{Create: &Create{Name: "late", Kind: wire.Queue, Settings: letters, ID: id(78), PartitionIDs: ids(1), Node: 1}}},
		{s, Command{Alter: &Alter{Name: "orders", Kind: wire.Queue, Mask: wire.MaskLetters, Settings: loop}}},
		{fresh, Command{Register: &Register{ClusterID: id(1), Node: 1, Store: id(1), MinLevel: MaxLevel, MaxLevel: MaxLevel}}},
	} {
		before := string(c.state.Save(nil))
		require.Error(t, c.state.Apply(90, &c.command).Err)
		require.Equal(t, before, string(c.state.Save(nil)))
	}
}

// upgradeAndBack upgrades two of three nodes to a build that knows one more feature
// level, while a controller asks for that level in each step, and then takes the first
// one back. It returns whether the old build is taken.
func upgradeAndBack(t *testing.T, leaping bool) (taken bool) {
	s := clusterOf(t, 3)
	s.leaping = leaping
	register := func(node uint32, most int) error {
		n := s.Nodes[node]
		return s.Apply(80, &Command{Register: &Register{
			Node: node, Store: n.Store, Address: n.Address, PeerAddress: n.PeerAddress, MinLevel: MinLevel, MaxLevel: most,
		}}).Err
	}
	raise := func() { s.Apply(81, &Command{SetLevel: &SetLevel{Level: MaxLevel + 1}}) }
	for _, node := range []uint32{1, 2} {
		require.NoError(t, register(node, MaxLevel+1))
		raise()
	}
	if register(1, MaxLevel) != nil {
		return false
	}
	raise()
	require.Equal(t, MaxLevel, s.level())
	for node := uint32(1); node <= 3; node++ {
		require.NoError(t, register(node, MaxLevel+1))
	}
	raise()
	require.Equal(t, MaxLevel+1, s.level(), "everybody knows it")
	require.ErrorContains(t, register(1, MaxLevel), "upgrade this broker")
	return true
}

func TestF26_ANodeGoesBackWhileOthersAreOld(t *testing.T) { require.True(t, upgradeAndBack(t, false)) }

func TestF26_Catches_ALevelThatRisesTooEarly(t *testing.T) {
	require.False(t, upgradeAndBack(t, true))
}
