package cli

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/client"
	"github.com/lockstepmq/lockstep/wire"
)

// What a command with --wait sees, look by look, and how each look ends.
func TestWhoWaitsForANodeLearnsThatItWasCalledOff(t *testing.T) {
	n := func(state wire.NodeState, leaders, replicas int) *clusterJSON {
		return &clusterJSON{Nodes: []nodeJSON{{Node: 1, State: "up", Alive: true}, {Node: 2, State: state.String(), Alive: true, Leaders: leaders, Replicas: replicas}}}
	}
	gone := &clusterJSON{Nodes: []nodeJSON{{Node: 1, State: "up", Alive: true}}}
	for _, c := range []struct {
		name   string
		action client.NodeAction
		looks  []*clusterJSON
		want   string // "done", what is left, or the error
	}{
		{"a node that leaves", client.NodeDecommission, []*clusterJSON{n(wire.NodeLeaving, 0, 3)}, "node 2 still has 3 replicas"},
		{"a node that has left its replicas", client.NodeDecommission, []*clusterJSON{n(wire.NodeLeaving, 0, 0)}, "node 2 has no replicas any more and is to be removed"},
		{"a node that is gone", client.NodeDecommission, []*clusterJSON{n(wire.NodeLeaving, 0, 0), gone}, "done"},
		{"a decommission that is not known here yet", client.NodeDecommission, []*clusterJSON{n(wire.NodeUp, 1, 3)}, "node 2 still has 3 replicas"},
		{"a decommission that was called off", client.NodeDecommission, []*clusterJSON{n(wire.NodeLeaving, 0, 3), n(wire.NodeUp, 1, 3)}, "it was called off: node 2 is up now, by another command"},
		{"a decommission that became a drain", client.NodeDecommission, []*clusterJSON{n(wire.NodeLeaving, 0, 3), n(wire.NodeDraining, 0, 3)}, "it was called off: node 2 is draining now, by another command"},
		{"a node that drains", client.NodeDrain, []*clusterJSON{n(wire.NodeDraining, 2, 3)}, "node 2 still leads 2 partitions"},
		{"a node that is drained", client.NodeDrain, []*clusterJSON{n(wire.NodeDraining, 2, 3), n(wire.NodeDraining, 0, 3)}, "done"},
		{"a drain that was called off", client.NodeDrain, []*clusterJSON{n(wire.NodeDraining, 2, 3), n(wire.NodeUp, 2, 3)}, "it was called off: node 2 is up now, by another command"},
		{"a drain of a node that was removed", client.NodeDrain, []*clusterJSON{n(wire.NodeDraining, 2, 3), gone}, "node 2 was removed from the cluster meanwhile"},
		{"a node that is back", client.NodeUndrain, []*clusterJSON{n(wire.NodeUp, 0, 3)}, "done"},
		{"one that was removed instead", client.NodeUndrain, []*clusterJSON{gone}, "node 2 was removed from the cluster meanwhile"},
	} {
		t.Run(c.name, func(t *testing.T) {
			look := nodeOutlook(2, c.action)
			var last outlook
			for _, s := range c.looks {
				last = look(s)
			}
			require.Equal(t, c.want, ending(last))
		})
	}
}

func TestWhoWaitsForAMoveLearnsThatItWasCalledOff(t *testing.T) {
	const active, joining, leaving, lost = wire.ReplicaActive, wire.ReplicaJoining, wire.ReplicaLeaving, wire.ReplicaLost
	on := func(replicas ...client.Replica) []client.Destination {
		return []client.Destination{{Name: "orders", Partitions: []client.PartitionInfo{{Number: 0}, {Number: 1, Replicas: replicas}}}}
	}
	r := func(node uint32, state wire.ReplicaState) client.Replica {
		return client.Replica{Node: node, State: state}
	}
	under := on(r(1, leaving), r(2, active), r(4, joining))
	for _, c := range []struct {
		name  string
		looks [][]client.Destination
		want  string
	}{
		{"under way", [][]client.Destination{under}, "the replica on node 4 is joining"},
		{"not known here yet", [][]client.Destination{on(r(1, active), r(2, active))}, "node 1 still holds its replica"},
		{"filled", [][]client.Destination{under, on(r(1, leaving), r(2, active), r(4, active))}, "node 1 still holds its replica"},
		{"moved", [][]client.Destination{under, on(r(2, active), r(4, active))}, "done"},
		{"its node lost what it had and gets it again", [][]client.Destination{under, on(r(1, leaving), r(2, active), r(4, lost), r(4, joining))}, "the replica on node 4 is lost"},
		{"moved, beside one that was lost", [][]client.Destination{under, on(r(2, active), r(4, lost), r(4, active))}, "done"},
		{"another node gets it", [][]client.Destination{under, on(r(1, leaving), r(2, active), r(3, joining))}, "it was called off: node 4 is to hold no replica of orders/1 any more; lockstep partition ls orders shows which do"},
		{"the destination is deleted", [][]client.Destination{under, nil}, "orders was removed meanwhile"},
	} {
		t.Run(c.name, func(t *testing.T) {
			look := moveOutlook("orders", 1, 1, 4)
			var last outlook
			for _, all := range c.looks {
				last = look(all)
			}
			require.Equal(t, c.want, ending(last))
		})
	}
}

// A leadership that is handed over by hand and taken back for balance before anybody looks is
// told from one that is still on its way.
func TestWhoWaitsForALeaderLearnsThatItDidNotStay(t *testing.T) {
	at := func(leader, epoch uint32) *client.PartitionInfo {
		return &client.PartitionInfo{Leader: leader, Epoch: epoch}
	}
	const again = "it did not stay: node 3 leads now, by an election or because the cluster keeps leaderships balanced; to keep it "
	for _, c := range []struct {
		name   string
		before *client.PartitionInfo
		to     uint32
		look   *client.PartitionInfo
		want   string
	}{
		{"not known here yet", at(3, 5), 2, at(3, 5), "node 3 leads orders/0"},
		{"no leader meanwhile", at(3, 5), 2, at(0, 0), "nobody leads orders/0"},
		{"handed over", at(3, 5), 2, at(2, 6), "done"},
		{"handed over before it was asked for", at(3, 5), 3, at(3, 5), "done"},
		{"moved by another just before", at(3, 5), 2, at(1, 6), "node 1 leads orders/0"},
		{"taken back before anybody looked", at(3, 5), 2, at(3, 7), again + "there: lockstep partition alter orders/0 --preferred-leader 2"},
		{"to any other", at(3, 5), 0, at(1, 6), "done"},
		{"to any other, later than the next", at(3, 5), 0, at(1, 9), "done"},
		{"to any other, not known here yet", at(3, 5), 0, at(3, 5), "node 3 leads orders/0"},
		{"to any other, taken back", at(3, 5), 0, at(3, 7), again + "elsewhere: lockstep partition alter orders/0 --preferred-leader NODE"},
		{"nobody led when it was asked for", at(0, 0), 2, at(3, 7), "node 3 leads orders/0"},
		{"the destination is deleted", at(3, 5), 2, nil, "orders was removed meanwhile"},
	} {
		t.Run(c.name, func(t *testing.T) {
			require.Equal(t, c.want, ending(transferOutlook("orders", 0, *c.before, c.to)(c.look)))
		})
	}
}

// ending is what a look says, in one word or text.
func ending(o outlook) string {
	switch {
	case o.err != nil:
		return o.err.Error()
	case o.done:
		return "done"
	}
	return o.left
}
