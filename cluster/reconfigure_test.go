package cluster

import (
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/wire"
)

func partitionOf(s *State, name string) *Partition { return &s.Destinations[name].Partitions[0] }

func states(p *Partition) map[uint64]ReplicaState {
	m := map[uint64]ReplicaState{}
	for _, r := range p.Replicas {
		m[r.ID] = r.State
	}
	return m
}

func TestCreatedReplicasFoundTheirPartition(t *testing.T) {
	s := clusterOf(t, 3)
	d := placed(t, s, "orders", []uint32{2, 3, 1})
	p := d.Partitions[0]
	require.Equal(t, []Replica{{1, 2, ReplicaActive}, {2, 3, ReplicaActive}, {3, 1, ReplicaActive}}, p.Replicas)
	require.Equal(t, []uint64{1, 2, 3}, p.Founders)
	require.Equal(t, []uint64{1, 2, 3}, p.Voters)
	require.Equal(t, uint32(2), p.Preferred)
	require.True(t, p.FoundedBy(3))
	require.False(t, p.FoundedBy(4))

	again := s.Apply(50, &Command{Create: &Create{Name: "orders", Kind: wire.Queue, ID: d.ID}})
	require.NoError(t, again.Err, "sent again because the answer was lost")
	require.Same(t, d, again.Destination)
	require.ErrorIs(t, s.Apply(50, &Command{Create: &Create{Name: "orders", Kind: wire.Queue, ID: id(77)}}).Err, wire.CodeAlreadyExists)
}

// A move, step by step: what each party may rely on is in the states.
func TestAMoveGoesThroughAllItsStates(t *testing.T) {
	s := clusterOf(t, 4)
	d := placed(t, s, "orders", []uint32{1, 2, 3})
	report := func(index wire.Index, voters, learners []uint64) Result {
		return apply(t, s, Command{Reconfigured: &Reconfigured{Destination: d.ID, Voters: voters, Learners: learners, Index: index}})
	}
	apply(t, s, Command{Move: &Move{Destination: d.ID, Add: []uint32{4}, Remove: []uint64{2}}})
	require.Equal(t, map[uint64]ReplicaState{1: "active", 2: "leaving", 3: "active", 4: "new"}, states(partitionOf(s, "orders")))
	require.True(t, partitionOf(s, "orders").Moving())
	require.ErrorContains(t, s.Apply(50, &Command{Move: &Move{Destination: d.ID, Add: []uint32{4}}}).Err, "is being moved")

	apply(t, s, Command{Activate: &Activate{Replicas: []uint64{4}}})
	require.Equal(t, ReplicaJoining, states(partitionOf(s, "orders"))[4])
	require.True(t, report(20, []uint64{1, 2, 3}, []uint64{4}).Changed)
	require.Equal(t, map[uint64]ReplicaState{1: "active", 2: "leaving", 3: "active", 4: "joining"}, states(partitionOf(s, "orders")))
	require.True(t, report(30, []uint64{1, 3, 4}, nil).Changed)
	require.Equal(t, map[uint64]ReplicaState{1: "active", 2: "left", 3: "active", 4: "active"}, states(partitionOf(s, "orders")))
	require.False(t, report(25, []uint64{1, 2, 3}, []uint64{4}).Changed, "a deposed leader reports what was before")
	require.False(t, partitionOf(s, "orders").Moving())
	require.Nil(t, partitionOf(s, "orders").On(2))

	require.False(t, apply(t, s, Command{Bury: &Bury{Node: 3, Replicas: []uint64{2}}}).Changed, "another node's")
	require.True(t, apply(t, s, Command{Bury: &Bury{Node: 2, Replicas: []uint64{2}}}).Changed)
	require.Equal(t, map[uint64]ReplicaState{1: "active", 3: "active", 4: "active"}, states(partitionOf(s, "orders")))
	require.Equal(t, []uint64{1, 2, 3}, partitionOf(s, "orders").Founders, "who founded it does not change")
	require.Equal(t, 1, s.replicasOn(4))
	require.Zero(t, s.replicasOn(2))
}

func TestAMoveIsCalledOff(t *testing.T) {
	s := clusterOf(t, 4)
	d := placed(t, s, "orders", []uint32{1, 2, 3})
	apply(t, s, Command{Move: &Move{Destination: d.ID, Add: []uint32{4}, Remove: []uint64{2}}})
	apply(t, s, Command{Move: &Move{Destination: d.ID, Remove: []uint64{4}}})
	require.Equal(t, map[uint64]ReplicaState{1: "active", 2: "active", 3: "active", 4: "left"}, states(partitionOf(s, "orders")))
	require.ErrorContains(t, s.Apply(50, &Command{Move: &Move{Destination: d.ID, Add: []uint32{4}}}).Err, "that is left",
		"the directory of the first attempt is still there")
	apply(t, s, Command{Bury: &Bury{Node: 4, Replicas: []uint64{4}}})

	apply(t, s, Command{Move: &Move{Destination: d.ID, Add: []uint32{4}, Remove: []uint64{2}}})
	apply(t, s, Command{Activate: &Activate{Replicas: []uint64{5}}})
	apply(t, s, Command{Reconfigured: &Reconfigured{Destination: d.ID, Voters: []uint64{1, 2, 3}, Learners: []uint64{5}, Index: 9}})
	apply(t, s, Command{Move: &Move{Destination: d.ID, Remove: []uint64{5}}})
	require.Equal(t, map[uint64]ReplicaState{1: "active", 2: "active", 3: "active", 5: "leaving"}, states(partitionOf(s, "orders")),
		"it is in the configuration: the leader takes it out")
	apply(t, s, Command{Reconfigured: &Reconfigured{Destination: d.ID, Voters: []uint64{1, 2, 3}, Index: 12}})
	require.Equal(t, ReplicaLeft, states(partitionOf(s, "orders"))[5])
}

// The only replica of a partition moves: the founder is named before there are two.
func TestASingleReplicaMoves(t *testing.T) {
	s := clusterOf(t, 2)
	d := created(t, s, "orders", 1)
	apply(t, s, Command{Activate: &Activate{Replicas: []uint64{1}}})
	apply(t, s, Command{Move: &Move{Destination: d.ID, Add: []uint32{2}, Remove: []uint64{1}}})
	require.Equal(t, []uint64{1}, partitionOf(s, "orders").Founders)
	require.True(t, partitionOf(s, "orders").FoundedBy(1))
	require.False(t, partitionOf(s, "orders").FoundedBy(2))
	require.ErrorIs(t, s.Apply(50, &Command{Move: &Move{Destination: d.ID, Remove: []uint64{2, 1}}}).Err, wire.CodeRefused)
}

func TestRefusedMovesChangeNothing(t *testing.T) {
	for name, c := range map[string]struct {
		move Move
		code wire.ErrorCode
	}{
		"of no destination":       {Move{Destination: id(77)}, wire.CodeDestinationGone},
		"of no partition":         {Move{Partition: 5}, wire.CodeDestinationGone},
		"to nobody":               {Move{Add: []uint32{9}}, wire.CodeInvalidRequest},
		"to a gateway":            {Move{Add: []uint32{5}}, wire.CodeInvalidRequest},
		"to a node that drains":   {Move{Add: []uint32{4}}, wire.CodeRefused},
		"to a node that holds it": {Move{Add: []uint32{3}, Remove: []uint64{1}}, wire.CodeRefused},
		"of another's replica":    {Move{Remove: []uint64{77}}, wire.CodeInvalidRequest},
		"of all replicas":         {Move{Remove: []uint64{1, 2, 3}}, wire.CodeRefused},
	} {
		t.Run(name, func(t *testing.T) {
			s := clusterOf(t, 4)
			gateway := joinOf(5, 5)
			gateway.Role = RoleGateway
			apply(t, s, Command{Join: gateway})
			apply(t, s, Command{SetNode: &SetNode{Node: 4, State: NodeDraining}})
			d := placed(t, s, "orders", []uint32{1, 2, 3})
			if c.move.Destination == uuid.Nil {
				c.move.Destination = d.ID
			}
			before := s.Save(nil)
			require.ErrorIs(t, s.Apply(50, &Command{Move: &c.move}).Err, c.code)
			require.Equal(t, string(before), string(s.Save(nil)))
		})
	}
}

func TestALostReplicaIsReplacedOnItsOwnNode(t *testing.T) {
	s := clusterOf(t, 3)
	d := placed(t, s, "orders", []uint32{1, 2, 3})
	require.True(t, apply(t, s, Command{Lost: &Lost{Destination: d.ID, Replica: 3, Reason: "fenced"}}).Changed)
	require.False(t, apply(t, s, Command{Lost: &Lost{Destination: d.ID, Replica: 3}}).Changed)
	apply(t, s, Command{Move: &Move{Destination: d.ID, Add: []uint32{3}, Remove: []uint64{3}}})
	require.Equal(t, map[uint64]ReplicaState{1: "active", 2: "active", 3: "lost", 4: "new"}, states(partitionOf(s, "orders")))
	require.Equal(t, uint64(4), partitionOf(s, "orders").On(3).ID)

	alone := placed(t, s, "alone", []uint32{1})
	require.ErrorContains(t, s.Apply(50, &Command{Lost: &Lost{Destination: alone.ID, Replica: 5}}).Err, "nothing to make another from")
}

// Rule L6 with several replicas: while a majority lives, the one that died is replaced
// under a new ID; without one the partition begins anew.
func TestRuleL6_AReplicaInMemoryThatDiedIsReplaced(t *testing.T) {
	s := clusterOf(t, 3)
	m := settings(1)
	m.Storage, m.Replicas = wire.StorageMemory, 3
	d := apply(t, s, Command{Create: &Create{Name: "fast", Kind: wire.Queue, Settings: m, ID: id(5), PartitionIDs: ids(1), Placement: [][]uint32{{1, 2, 3}}}}).Destination
	require.False(t, apply(t, s, Command{ResetMemory: &ResetMemory{Node: 9}}).Changed)
	apply(t, s, Command{ResetMemory: &ResetMemory{Node: 2}})
	p := partitionOf(s, "fast")
	require.Equal(t, []Replica{{1, 1, "new"}, {2, 2, "lost"}, {3, 3, "new"}, {4, 2, "new"}}, p.Replicas)
	require.Equal(t, uint32(1), p.Incarnation)
	require.Equal(t, d.Partitions[0].Founders, p.Founders)

	apply(t, s, Command{ResetMemory: &ResetMemory{Node: 3}})
	p = partitionOf(s, "fast")
	require.Equal(t, []Replica{{5, 1, "new"}, {6, 2, "new"}, {7, 3, "new"}}, p.Replicas)
	require.Equal(t, uint32(2), p.Incarnation)
	require.Equal(t, wire.Term(1024), p.FirstTerm)
	require.Equal(t, []uint64{5, 6, 7}, p.Founders)
	require.Equal(t, []uint64{5, 6, 7}, p.Voters)
}

// R-SIB-23: the policies are settings of partitions.
func TestR_SIB_23_PlacementIsSetForOneOrAllPartitions(t *testing.T) {
	s := clusterOf(t, 3)
	placed(t, s, "orders", []uint32{1, 2, 3}, []uint32{2, 3, 1})
	d := func() *Destination { return s.Destinations["orders"] }
	set := func(partition uint32, p wire.Placement) error {
		return s.Apply(50, &Command{SetPlacement: &SetPlacement{Destination: d().ID, Partition: partition, Placement: p}}).Err
	}
	both := wire.MaskPreferred | wire.MaskPolicy
	require.NoError(t, set(1, wire.Placement{Mask: both, Preferred: 3, Policy: wire.LeaderFailback}))
	require.Equal(t, []uint32{1, 3}, []uint32{d().Partitions[0].Preferred, d().Partitions[1].Preferred})
	require.Equal(t, wire.Index(50), d().Version)
	require.NoError(t, set(wire.AllPartitions, wire.Placement{Mask: both, Preferred: 2, Policy: wire.LeaderPinned, Weight: 9, SendDisabled: true}))
	for _, p := range d().Partitions {
		require.Equal(t, []any{uint32(2), wire.LeaderPinned, uint8(0), false}, []any{p.Preferred, p.Policy, p.Weight, p.SendDisabled})
	}
	require.NoError(t, set(0, wire.Placement{Mask: wire.MaskWeight | wire.MaskSend, Weight: 9, SendDisabled: true}))
	p := d().Partitions[0]
	require.Equal(t, []any{uint32(2), wire.LeaderPinned, uint8(9), true}, []any{p.Preferred, p.Policy, p.Weight, p.SendDisabled})
	require.NoError(t, set(0, wire.Placement{Mask: wire.MaskPreferred}))
	require.Equal(t, wire.LeaderAny, d().Partitions[0].Policy, "a policy for nobody")
	for _, bad := range []struct {
		partition uint32
		placement wire.Placement
	}{
		{2, wire.Placement{Mask: wire.MaskWeight, Weight: 2}},
		{0, wire.Placement{Mask: wire.MaskPreferred, Preferred: 9}},
		{0, wire.Placement{Mask: wire.MaskPolicy, Policy: wire.LeaderPinned}},
		{wire.AllPartitions, wire.Placement{Mask: wire.MaskPolicy, Policy: wire.LeaderPinned}},
	} {
		before := d()
		require.Error(t, set(bad.partition, bad.placement))
		require.Same(t, before, d(), "nothing of it is done")
	}
}

func TestAMoveKeepsToTheLimitOfReplicas(t *testing.T) {
	s := clusterOf(t, 9)
	d := placed(t, s, "orders", []uint32{1, 2, 3})
	move := &Move{Destination: d.ID, Add: []uint32{4, 5, 6, 7, 8}}
	require.ErrorContains(t, s.Apply(50, &Command{Move: move}).Err, "would have 8 replicas")
	move.Add = move.Add[1:]
	apply(t, s, Command{Move: move})
	require.Len(t, partitionOf(s, "orders").Replicas, MaxReplicas)
}

func TestWhoHasLeftDoesNotLeaveAgain(t *testing.T) {
	s := clusterOf(t, 4)
	d := placed(t, s, "orders", []uint32{1, 2, 3})
	partitionOf(s, "orders").Replicas[0].State = ReplicaLeft
	require.ErrorContains(t, s.Apply(50, &Command{Move: &Move{Destination: d.ID, Add: []uint32{4}, Remove: []uint64{1}}}).Err, "is not one of")
}

// A founder has a vote before its directory exists: it leaves as one that votes.
func TestAFounderThatIsNewLeavesTheConfigurationFirst(t *testing.T) {
	s := clusterOf(t, 4)
	d := founded(t, s, "orders", []uint32{1, 2, 3})
	apply(t, s, Command{Move: &Move{Destination: d.ID, Add: []uint32{4}, Remove: []uint64{3}}})
	require.Equal(t, ReplicaLeaving, partitionOf(s, "orders").Replica(3).State)
}

// What a leader says twice of the same index may have been said before somebody was to join.
func TestAReportThatComesTwiceEndsNoReplica(t *testing.T) {
	s := clusterOf(t, 4)
	d := placed(t, s, "orders", []uint32{1, 2, 3})
	report := Command{Reconfigured: &Reconfigured{Destination: d.ID, Voters: []uint64{1, 2, 3}, Index: 7}}
	apply(t, s, report)
	apply(t, s, Command{Move: &Move{Destination: d.ID, Add: []uint32{4}, Remove: []uint64{3}}})
	apply(t, s, Command{Activate: &Activate{Replicas: []uint64{4}}})
	apply(t, s, Command{Move: &Move{Destination: d.ID, Remove: []uint64{4}}})
	require.False(t, apply(t, s, report).Changed)
	require.Equal(t, ReplicaLeaving, partitionOf(s, "orders").Replica(4).State)
}

// A replica that leaves has what the partition holds until it is out; one that has left has
// nothing, and its node gets none again.
func TestWhatCountsWhenTheMemoryOfANodeIsGone(t *testing.T) {
	for _, c := range []struct {
		state       ReplicaState
		incarnation uint32
		nodes       []uint32
	}{{ReplicaLeaving, 1, []uint32{1, 2, 3, 3}}, {ReplicaLeft, 2, []uint32{2, 3}}} {
		s := clusterOf(t, 3)
		placed(t, s, "orders", []uint32{1, 2, 3})
		d := s.Destinations["orders"]
		d.Settings.Storage = wire.StorageMemory
		p := &d.Partitions[0]
		p.Replicas[0].State = c.state
		apply(t, s, Command{ResetMemory: &ResetMemory{Node: 3}})
		p = partitionOf(s, "orders")
		require.Equal(t, c.incarnation, p.Incarnation)
		var nodes []uint32
		for _, r := range p.Replicas {
			nodes = append(nodes, r.Node)
		}
		require.Equal(t, c.nodes, nodes)
	}
}
