package cluster

import (
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/log"
	"github.com/lockstepmq/lockstep/wire"
)

func joinOf(node uint32, store byte) *Join {
	port := func(n uint32) string { return "10.0.0." + string(rune('0'+n)) }
	return &Join{
		ClusterID: id(1), Node: node, Store: id(store), Address: port(node) + ":7400", PeerAddress: port(node) + ":7401",
		MinLevel: MinLevel, MaxLevel: MaxLevel,
	}
}

// replacing is a Join with an empty data directory in the place of one that was found gone.
func replacing(node uint32, gone, store byte) *Join {
	j := joinOf(node, store)
	j.Judged = id(gone)
	return j
}

func apply(t *testing.T, s *State, c Command) Result {
	t.Helper()
	c.stamp()
	r := s.Apply(s.Epoch+1, &c)
	require.NoError(t, r.Err)
	s.Epoch++
	return r
}

// clusterOf has n nodes, of which the first is the founder: node k has data directory k.
func clusterOf(t *testing.T, n int) *State {
	t.Helper()
	s := NewState()
	apply(t, s, Command{Register: &Register{
		ClusterID: id(1), Node: 1, Store: id(1), Address: "10.0.0.1:7400", PeerAddress: "10.0.0.1:7401", MinLevel: 1, MaxLevel: MaxLevel,
	}})
	for k := 2; k <= n; k++ {
		apply(t, s, Command{Join: joinOf(uint32(k), byte(k))})
	}
	if n > 1 { // as its controller does at once
		apply(t, s, Command{SetLevel: &SetLevel{Level: MaxLevel}})
	}
	return s
}

// placed creates a destination whose partitions have their replicas on nodes, and
// activates them.
func placed(t *testing.T, s *State, name string, nodes ...[]uint32) *Destination {
	t.Helper()
	d := founded(t, s, name, nodes...)
	activate := &Activate{}
	for _, p := range d.Partitions {
		for _, r := range p.Replicas {
			activate.Replicas = append(activate.Replicas, r.ID)
		}
	}
	apply(t, s, Command{Activate: activate})
	return s.Destinations[name]
}

// founded is placed before any replica has begun.
func founded(t *testing.T, s *State, name string, nodes ...[]uint32) *Destination {
	t.Helper()
	c := settings(uint32(len(nodes)))
	c.Replicas = uint8(len(nodes[0]))
	return apply(t, s, Command{Create: &Create{
		Name: name, Kind: wire.Queue, Settings: c, ID: uuid.NewSHA1(id(1), []byte(name)), PartitionIDs: ids(len(nodes)), Placement: nodes,
	}}).Destination
}

func TestAJoinedNodeGetsItsReplicaOfTheMetadata(t *testing.T) {
	s := clusterOf(t, 2)
	require.Equal(t, 2, s.Version)
	require.Equal(t, MaxLevel, s.level())
	require.Equal(t, uint64(1), s.Nodes[1].MetaID())
	require.Equal(t, Node{
		ID: 2, Store: id(2), Address: "10.0.0.2:7400", PeerAddress: "10.0.0.2:7401", MinLevel: 1, MaxLevel: MaxLevel, MetaReplica: 2,
	}, *s.Nodes[2])

	again := apply(t, s, Command{Join: joinOf(2, 2)}).Node
	require.Equal(t, uint64(2), again.MetaReplica, "the answer was lost, it asks again")
	chosen := joinOf(3, 3)
	chosen.Node = 0
	n := apply(t, s, Command{Join: chosen}).Node
	require.Equal(t, []uint64{3, 3}, []uint64{uint64(n.ID), n.MetaReplica})
	n = apply(t, s, Command{Join: chosen}).Node
	require.Equal(t, uint32(3), n.ID, "the same data directory is the same node")
	n = apply(t, s, Command{Register: &Register{Node: 3, Store: id(3), Address: "a:1", PeerAddress: "a:2", MaxLevel: MaxLevel}}).Node
	require.Equal(t, []uint64{1, 3}, []uint64{n.Boots, n.MetaReplica})
}

func TestRefusedNodeCommandsChangeNothingAndSayWhy(t *testing.T) {
	change := func(f func(*Join)) Command {
		j := joinOf(4, 4)
		f(j)
		return Command{Join: j}
	}
	for name, c := range map[string]struct {
		command Command
		code    wire.ErrorCode
		says    string
	}{
		"another cluster":           {change(func(j *Join) { j.ClusterID = id(9) }), wire.CodeClusterMismatch, "this is cluster"},
		"an ID in use":              {change(func(j *Join) { j.Node, j.Judged, j.Alive = 2, id(2), true }), wire.CodeRefused, "choose another --node-id"},
		"an ID of another by now":   {change(func(j *Join) { j.Node, j.Judged = 2, id(8) }), wire.CodeRetry, "ask again"},
		"its own address":           {change(func(j *Join) { j.Address = "10.0.0.1:7400" }), wire.CodeRefused, "node 1 has the address"},
		"a peer address in use":     {change(func(j *Join) { j.PeerAddress = "10.0.0.3:7401" }), wire.CodeRefused, "or --node-id 3 if it takes the place of that one"},
		"somebody's data directory": {change(func(j *Join) { j.Store = id(2) }), wire.CodeRefused, "belongs to node 2"},
		"an old build":              {change(func(j *Join) { j.MaxLevel = 1 }), wire.CodeUnsupported, "upgrade this broker"},
		"a build that is too new":   {change(func(j *Join) { j.MinLevel, j.MaxLevel = MaxLevel+1, MaxLevel+2 }), wire.CodeUnsupported, "upgrade the other brokers"},
		"a member's older build":    {Command{Register: &Register{Node: 2, Store: id(2), MinLevel: 1, MaxLevel: 1}}, wire.CodeUnsupported, "works at feature level 6, this build knows up to 1; upgrade this broker"},
		"an unknown role":           {change(func(j *Join) { j.Role = "king" }), wire.CodeInvalidRequest, "king"},
		"no peer address":           {change(func(j *Join) { j.PeerAddress = "" }), wire.CodeInvalidRequest, "peers"},
		"draining nobody":           {Command{SetNode: &SetNode{Node: 9, State: NodeDraining}}, wire.CodeInvalidRequest, "not a member"},
		"an unknown state":          {Command{SetNode: &SetNode{Node: 2, State: "asleep"}}, wire.CodeInvalidRequest, "asleep"},
		"leaving two for three":     {Command{SetNode: &SetNode{Node: 2, State: NodeLeaving}}, wire.CodeRefused, "wants 3 replicas, and 2 brokers would be left"},
		"leaving two for three that nobody asked for": {Command{SetNode: &SetNode{Node: 2, State: NodeLeaving}}, wire.CodeRefused,
			`"orders" has 3 replicas, a number that the cluster chose when it had the brokers for it, and 2 brokers would be left; add a node first`},
		"removing without leaving": {Command{RemoveNode: &RemoveNode{Node: 2}}, wire.CodeRefused, "decommission it first"},
		"a level nobody knows":     {Command{SetLevel: &SetLevel{Level: MaxLevel + 1}}, wire.CodeRefused, "does not know feature level 7"},
	} {
		t.Run(name, func(t *testing.T) {
			s := clusterOf(t, 3)
			placed(t, s, "orders", []uint32{1, 2, 3})
			s.Destinations["orders"].Automatic = name == "leaving two for three that nobody asked for"
			before := s.Save(nil)
			r := s.Apply(99, &c.command)
			require.ErrorIs(t, r.Err, c.code)
			require.ErrorContains(t, r.Err, c.says)
			require.False(t, r.Changed)
			require.Equal(t, string(before), string(s.Save(nil)))
		})
	}
}

// Rule R10: a known node ID with a new data directory, while the old one is not
// connected, is a replacement: all replicas of the old one are lost.
func TestRuleR10_ANewDataDirectoryReplacesALostOne(t *testing.T) {
	s := clusterOf(t, 3)
	placed(t, s, "orders", []uint32{1, 2, 3}, []uint32{2, 3, 1})
	n := apply(t, s, Command{Join: replacing(2, 2, 7)}).Node
	require.Equal(t, []uuid.UUID{id(2)}, n.Retired)
	require.Equal(t, uint64(4), n.MetaReplica)
	d := s.Destinations["orders"]
	require.Equal(t, Replica{ID: 2, Node: 2, State: ReplicaLost}, d.Partitions[0].Replicas[1])
	require.Equal(t, Replica{ID: 4, Node: 2, State: ReplicaLost}, d.Partitions[1].Replicas[0])
	require.Equal(t, ReplicaActive, d.Partitions[0].Replicas[0].State)
	require.ErrorIs(t, s.Apply(99, &Command{Join: joinOf(2, 2)}).Err, wire.CodeRefused, "the old one does not come back")
	require.ErrorIs(t, s.Apply(99, &Command{Join: joinOf(5, 2)}).Err, wire.CodeRefused, "nor as another node")
}

// Rule R10: a node remembers the directories that it has lost, the last ones of many.
func TestRuleR10_DirectoriesThatWereReplacedStayOut(t *testing.T) {
	s := clusterOf(t, 3)
	last := byte(2)
	for store := byte(10); store < 10+maxRetired; store++ {
		apply(t, s, Command{Join: replacing(2, last, store)})
		last = store
		require.ErrorIs(t, s.Apply(99, &Command{Join: joinOf(0, 2)}).Err, wire.CodeRefused, "with the first of %d", len(s.Nodes[2].Retired))
	}
	require.Len(t, s.Nodes[2].Retired, maxRetired)
	apply(t, s, Command{Join: replacing(2, last, 99)})
	require.Len(t, s.Nodes[2].Retired, maxRetired)
	require.Equal(t, id(last), s.Nodes[2].Retired[maxRetired-1])
	require.Equal(t, id(10), s.Nodes[2].Retired[0])
}

// Nobody waits for a directory to remove what was deleted that is gone itself.
func TestRuleR10_ALostDirectoryHasNothingToRemove(t *testing.T) {
	for name, lose := range map[string]func(s *State){
		"replaced": func(s *State) { apply(t, s, Command{Join: replacing(2, 2, 7)}) },
		"removed": func(s *State) {
			apply(t, s, Command{SetNode: &SetNode{Node: 2, State: NodeLeaving}})
			apply(t, s, Command{RemoveNode: &RemoveNode{Node: 2}})
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := clusterOf(t, 3)
			d := placed(t, s, "orders", []uint32{1, 2, 3})
			apply(t, s, Command{Delete: &Delete{Name: "orders", Kind: wire.Queue}})
			require.Equal(t, []uint32{1, 2, 3}, s.Deleted[d.ID].Nodes)
			lose(s)
			require.Equal(t, []uint32{1, 3}, s.Deleted[d.ID].Nodes)
		})
	}
}

func TestRuleR10_WhoIsNoMemberDoesNotRegister(t *testing.T) {
	s := clusterOf(t, 2)
	r := s.Apply(9, &Command{Register: &Register{Node: 3, Store: id(3), Address: "a:1", MinLevel: 1, MaxLevel: MaxLevel}})
	require.ErrorIs(t, r.Err, wire.CodeNotMember)
	require.Len(t, s.Nodes, 2)
}

func TestACountOfNodesHasALimit(t *testing.T) {
	s := clusterOf(t, 3)
	for n := uint32(10); len(s.Nodes) < MaxNodes-1; n++ {
		s.Nodes[n] = &Node{ID: n, Store: uuid.NewSHA1(id(2), []byte{byte(n)}), MaxLevel: MaxLevel}
	}
	last := joinOf(8, 8)
	apply(t, s, Command{Join: last})
	require.Len(t, s.Nodes, MaxNodes)
	require.ErrorIs(t, s.Apply(99, &Command{Join: joinOf(9, 9)}).Err, wire.CodeTooMany)
	apply(t, s, Command{Join: last})
	apply(t, s, Command{Join: replacing(2, 2, 7)})
	require.Len(t, s.Nodes, MaxNodes)
}

// The first node of a cluster has the ID that it wants, which may be above those that follow.
func TestTheIDOfAFounderThatLeftIsNotGivenAway(t *testing.T) {
	s := NewState()
	apply(t, s, Command{Register: &Register{
		ClusterID: id(1), Node: 7, Store: id(1), Address: "10.0.0.1:7400", PeerAddress: "10.0.0.1:7401", MinLevel: 1, MaxLevel: MaxLevel,
	}})
	apply(t, s, Command{Join: joinOf(2, 2)})
	s.Nodes[7].State = NodeLeaving
	apply(t, s, Command{RemoveNode: &RemoveNode{Node: 7}})
	require.EqualValues(t, 8, s.nextNodeID())
}

// Rule R10: of two empty data directories that ask for one ID at the same time, the second does
// not take the place of the first, which nobody found gone: neither when the ID was free when
// they asked, nor when both replace a third.
func TestRuleR10_OfTwoJoinsThatAreJudgedTogetherOneIsTaken(t *testing.T) {
	for name, join := range map[string]func(store byte) *Join{
		"a new ID":     func(store byte) *Join { return joinOf(4, store) },
		"a lost one's": func(store byte) *Join { return replacing(3, 3, store) },
	} {
		t.Run(name, func(t *testing.T) {
			s := clusterOf(t, 3)
			placed(t, s, "orders", []uint32{1, 2, 3})
			first := apply(t, s, Command{Join: join(8)}).Node
			before := s.Save(nil)
			r := s.Apply(99, &Command{Join: join(9)})
			require.ErrorIs(t, r.Err, wire.CodeRetry)
			require.ErrorContains(t, r.Err, "whether node")
			require.Equal(t, string(before), string(s.Save(nil)))

			again := apply(t, s, Command{Join: join(8)}).Node
			require.Equal(t, id(8), again.Store)
			require.Equal(t, first.MetaID(), again.MetaID(), "the first lost the answer, and asks again")
		})
	}
}

// RULES R10: the ID of a node that was removed may be used again, by another data directory
// that gets replica IDs of its own; the old one stays out.
func TestRuleR10_TheIDOfARemovedNodeMayBeUsedAgain(t *testing.T) {
	s := clusterOf(t, 3)
	before := s.Nodes[3].MetaID()
	apply(t, s, Command{SetNode: &SetNode{Node: 3, State: NodeLeaving}})
	apply(t, s, Command{RemoveNode: &RemoveNode{Node: 3}})
	require.EqualValues(t, 4, s.nextNodeID(), "nobody gets it who does not ask for it")
	apply(t, s, Command{Join: joinOf(3, 9)})
	require.Equal(t, id(9), s.Nodes[3].Store)
	require.NotEqual(t, before, s.Nodes[3].MetaID())
	err := s.Apply(90, &Command{Register: &Register{Node: 3, Store: id(3), MinLevel: 1, MaxLevel: MaxLevel}}).Err
	require.ErrorIs(t, err, wire.CodeInvalidSetting)
	require.ErrorContains(t, err, "registered with another data directory")
}

func TestTheLastBrokerCannotDrain(t *testing.T) {
	s := clusterOf(t, 1)
	gateway := joinOf(2, 2)
	gateway.Role = RoleGateway
	apply(t, s, Command{Join: gateway})
	require.ErrorIs(t, s.Apply(9, &Command{SetNode: &SetNode{Node: 1, State: NodeDraining}}).Err, wire.CodeRefused)
	require.True(t, apply(t, s, Command{SetNode: &SetNode{Node: 2, State: NodeLeaving}}).Changed)
	require.True(t, apply(t, s, Command{RemoveNode: &RemoveNode{Node: 2}}).Changed)
	require.Equal(t, uint32(3), s.nextNodeID(), "IDs are not used again")
	require.False(t, apply(t, s, Command{RemoveNode: &RemoveNode{Node: 2}}).Changed)
}

// A state of version 2 with everything in it that version 1 does not have.
const goldenState2 = `{"version":2,"epoch":9,"cluster_id":"00000000-0000-0000-0000-000000000001",` +
	`"nodes":{"2":{"id":2,"store":"00000000-0000-0000-0000-000000000002","address":"a:7400","boots":3,"peer_address":"a:7401",` +
	`"http":"a:7402","rack":"r1","role":"gateway","state":"draining","min_level":1,"max_level":2,"meta_replica":4,` +
	`"retired":["00000000-0000-0000-0000-000000000007"]}},` +
	`"destinations":{"orders":{"name":"orders","id":"00000000-0000-0000-0000-000000000003","kind":1,` +
	`"settings":{"Partitions":1,"Replicas":3,"Storage":0,"Sync":0,"RetentionTimeMs":-1,"RetentionBytes":-1,` +
	`"MaxRecordBytes":0,"SegmentBytes":0,"RecordIndex":0},"automatic":true,"version":4,"slot_version":1,` +
	`"slots":[{"FirstSlot":0,"Partition":0}],"partitions":[{"number":0,"id":"00000000-0000-0000-0000-000000000004",` +
	`"incarnation":1,"first_term":0,"replicas":[{"id":1,"node":1,"state":"active"},{"id":2,"node":2,"state":"leaving"},` +
	`{"id":3,"node":3,"state":"lost"},{"id":4,"node":4,"state":"joining"},{"id":5,"node":5,"state":"left"}],` +
	`"founders":[1,2,3],"voters":[1,2,3],"learners":[4],"conf_index":77,"preferred":1,"policy":2,"weight":3,"send_disabled":true}]}},` +
	`"next_replica_id":6,"next_producer_id":0,"producers":{},"level":2,"next_meta_replica_id":5,"next_node_id":6}`

func TestGoldenMetadataOfVersion2(t *testing.T) {
	s := NewState()
	require.NoError(t, s.Restore([]byte(goldenState2)))
	require.Equal(t, goldenState2, string(s.Save(nil)))
	require.Equal(t, wire.Index(77), s.Destinations["orders"].Partitions[0].ConfIndex)
	require.Equal(t, []uuid.UUID{id(7)}, s.Nodes[2].Retired)

	alone := NewState()
	require.NoError(t, alone.Restore([]byte(goldenState)))
	apply(t, alone, Command{Register: &Register{Node: 1, Store: id(2), Address: "127.0.0.1:7400"}})
	require.Equal(t, 1, alone.Version, "a node that stays alone writes what older builds read")
	apply(t, alone, Command{Join: joinOf(2, 8)})
	require.Equal(t, 2, alone.Version)
	require.ErrorIs(t, NewState().Restore([]byte(`{"version":5}`)), log.ErrTooNew)
}

// Who names a node that is none learns where to look.
func TestANodeThatIsNoMemberIsRefusedWithANextStep(t *testing.T) {
	s := clusterOf(t, 3)
	err := s.Apply(20, &Command{SetNode: &SetNode{Node: 99, State: NodeLeaving}}).Err
	require.ErrorIs(t, err, wire.CodeInvalidRequest)
	require.ErrorContains(t, err, "node 99 is not a member; lockstep node ls shows which are")
}
