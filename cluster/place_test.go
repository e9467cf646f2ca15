package cluster

import (
	"fmt"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/wire"
)

func everybody(Node) string { return "" }

// R-WLS-1: thirty destinations on three nodes, with one partition each: every node
// leads ten, give or take two.
func TestR_WLS_1_ThirtyDestinationsAreLedByAllNodes(t *testing.T) {
	s := clusterOf(t, 3)
	leaders, replicas := map[uint32]int{}, map[uint32]int{}
	for i := range 30 {
		places, err := Spread(newView(s), []uuid.UUID{uuid.NewSHA1(id(2), []byte{byte(i)})}, 3, everybody)
		require.NoError(t, err)
		d := placed(t, s, fmt.Sprintf("d%02d", i), places...)
		leaders[d.Partitions[0].Preferred]++
		for _, r := range d.Partitions[0].Replicas {
			replicas[r.Node]++
		}
	}
	require.Equal(t, map[uint32]int{1: 10, 2: 10, 3: 10}, leaders)
	require.Equal(t, map[uint32]int{1: 30, 2: 30, 3: 30}, replicas)
}

func TestReplicasGoToDifferentRacks(t *testing.T) {
	s := clusterOf(t, 6)
	for i, rack := range []string{"a", "a", "a", "b", "b", "c"} {
		s.Nodes[uint32(i+1)].Rack = rack
	}
	places, err := Spread(newView(s), ids(60), 3, everybody)
	require.NoError(t, err)
	for _, nodes := range places {
		racks := map[string]bool{}
		for _, n := range nodes {
			racks[s.Nodes[n].Rack] = true
		}
		require.Len(t, racks, 3, "%v", nodes)
	}
	places, err = Spread(newView(s), ids(60), 2, everybody)
	require.NoError(t, err)
	for _, nodes := range places {
		require.NotEqual(t, s.Nodes[nodes[0]].Rack, s.Nodes[nodes[1]].Rack)
	}
}

func TestNodesThatMayNotHoldReplicasGetNone(t *testing.T) {
	s := clusterOf(t, 5)
	s.Nodes[2].Role, s.Nodes[3].State = RoleGateway, NodeDraining
	dead := func(n Node) string {
		if n.ID == 4 {
			return "does not answer"
		}
		return ""
	}
	places, err := Spread(newView(s), ids(10), 2, dead)
	require.NoError(t, err)
	for _, nodes := range places {
		require.ElementsMatch(t, []uint32{1, 5}, nodes)
	}
	_, err = Spread(newView(s), ids(1), 3, dead)
	require.ErrorIs(t, err, wire.CodeInvalidSetting)
	require.ErrorContains(t, err, "replicas 3: the cluster has 2 brokers that can take one; ask for fewer (--replicas 2), or add a node, or see to the others: node 3 is draining, node 4 does not answer")
}

// A new node has fewer replicas than the others, so it gets those of new partitions.
func TestNewPartitionsFillTheEmptiestNodes(t *testing.T) {
	s := clusterOf(t, 2)
	placed(t, s, "old", []uint32{1}, []uint32{2}, []uint32{1}, []uint32{2})
	apply(t, s, Command{Join: joinOf(3, 3)})
	places, err := Spread(newView(s), ids(5), 1, everybody)
	require.NoError(t, err)
	count := map[uint32]int{}
	for _, nodes := range places {
		count[nodes[0]]++
	}
	require.Equal(t, map[uint32]int{1: 1, 2: 1, 3: 3}, count)
}
