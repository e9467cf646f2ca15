package cluster

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/wire"
)

// A node that leaves a partition in memory and starts again has a new replica of it, beside the
// one that takes its place.
func TestAPartitionHasNoMoreReplicasThanItWants(t *testing.T) {
	for _, leaving := range []bool{false, true} {
		s := clusterOf(t, 4)
		c := settings(1)
		c.Replicas, c.Storage = 3, wire.StorageMemory
		d := apply(t, s, Command{Create: &Create{
			Name: "orders", Kind: wire.Queue, Settings: c, ID: id(50), PartitionIDs: ids(1), Placement: [][]uint32{{1, 2, 3}},
		}}).Destination
		var all []uint64
		for _, r := range d.Partitions[0].Replicas {
			all = append(all, r.ID)
		}
		apply(t, s, Command{Activate: &Activate{Replicas: all}})
		w := newWorld(t, s)
		w.settle()
		require.Zero(t, w.commands)
		if leaving {
			apply(t, s, Command{SetNode: &SetNode{Node: 3, State: NodeLeaving}})
		}
		apply(t, s, Command{Move: &Move{Destination: d.ID, Add: []uint32{4}, Remove: []uint64{all[2]}}})
		apply(t, s, Command{ResetMemory: &ResetMemory{Node: 3}})
		w.settle()
		require.Zero(t, w.whole(0))
		require.Equal(t, !leaving, s.Nodes[3] != nil, "a node that leaves is removed")
		require.Len(t, partitionOf(s, "orders").Voters, 3)
	}
}

// Of replicas that are too many the one goes that is missed least.
func TestWhichReplicaIsTooMany(t *testing.T) {
	for name, c := range map[string]struct {
		change func(w *world, p *Partition)
		goes   uint32
	}{
		"one whose node is silent": {func(w *world, p *Partition) {
			w.down[2] = 1
			apply(w.t, w.state, Command{SetNode: &SetNode{Node: 3, State: NodeLeaving}})
		}, 2},
		"one whose node leaves, also if it is preferred": {func(w *world, p *Partition) {
			p.Preferred = 3
			apply(w.t, w.state, Command{SetNode: &SetNode{Node: 3, State: NodeLeaving}})
		}, 3},
		"one that shares its rack": {func(w *world, p *Partition) {
			p.Preferred = 1
			for node, rack := range map[uint32]string{1: "a", 2: "b", 3: "a", 4: "c"} {
				w.state.Nodes[node].Rack = rack
			}
		}, 3},
		"one that is not preferred, also for a rack": {func(w *world, p *Partition) {
			p.Preferred = 1
			w.state.Nodes[4].Rack = "c"
			placed(w.t, w.state, "more", []uint32{1, 2}, []uint32{1, 2})
		}, 2},
		"one whose node has the most": {func(w *world, _ *Partition) {
			placed(w.t, w.state, "more", []uint32{3, 2}, []uint32{3, 1}, []uint32{3, 4})
		}, 3},
	} {
		t.Run(name, func(t *testing.T) {
			s := clusterOf(t, 4)
			placed(t, s, "orders", []uint32{1, 2, 3, 4})
			s.Destinations["orders"].Settings.Replicas = 3
			w := newWorld(t, s)
			c.change(w, partitionOf(s, "orders"))
			commands, _ := w.control.Plan(newView(s), w.health(), 1)
			p := partitionOf(s, "orders")
			require.Equal(t, &Move{Destination: s.Destinations["orders"].ID, Remove: []uint64{p.On(c.goes).ID}}, commands[0].Move)
		})
	}
}

// Its leader takes a lost one out without being told.
func TestALostReplicaIsNotTooMany(t *testing.T) {
	s := clusterOf(t, 4)
	placed(t, s, "orders", []uint32{1, 2, 3, 4})
	s.Destinations["orders"].Settings.Replicas = 3
	partitionOf(s, "orders").Replicas[1].State = ReplicaLost
	w := newWorld(t, s)
	commands, _ := w.control.Plan(newView(s), w.health(), 1)
	require.Empty(t, commands)
}
