package cluster

import (
	"encoding/json"
	"fmt"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/log"
	"github.com/lockstepmq/lockstep/wire"
)

func id(n byte) uuid.UUID { return uuid.UUID{15: n} }

func ids(n int) []uuid.UUID {
	out := make([]uuid.UUID, n)
	for i := range out {
		out[i] = uuid.UUID{14: 1, 15: byte(i)}
	}
	return out
}

func settings(partitions uint32) wire.Settings {
	return wire.Settings{Partitions: partitions, Replicas: 1, RetentionTimeMs: wire.Unlimited, RetentionBytes: wire.Unlimited}
}

func created(t *testing.T, s *State, name string, partitions uint32) *Destination {
	t.Helper()
	r := s.Apply(7, &Command{Create: &Create{
		Name: name, Kind: wire.Queue, Settings: settings(partitions), ID: id(9), PartitionIDs: ids(int(partitions)), Node: 1,
	}})
	require.NoError(t, r.Err)
	require.True(t, r.Changed)
	return r.Destination
}

func TestCreateGivesEveryPartitionAnIdentityAndOneReplica(t *testing.T) {
	s := NewState()
	d := created(t, s, "orders", 3)
	require.Equal(t, wire.Index(7), d.Version)
	require.Len(t, d.Partitions, 3)
	require.Equal(t, Partition{
		Number: 2, ID: uuid.UUID{14: 1, 15: 2}, Incarnation: 1,
		Replicas: []Replica{{ID: 3, Node: 1, State: ReplicaNew}},
	}, d.Partitions[2])
	require.Equal(t, uint64(4), s.NextReplicaID)
}

func TestKeySlotsAreSpreadEvenlyAndCoverAll(t *testing.T) {
	require.Equal(t, []wire.SlotRun{{FirstSlot: 0, Partition: 0}}, evenSlots(1))
	require.Equal(t, []wire.SlotRun{
		{FirstSlot: 0, Partition: 0}, {FirstSlot: 5461, Partition: 1}, {FirstSlot: 10922, Partition: 2},
	}, evenSlots(3))
	runs := evenSlots(MaxPartitions)
	require.Equal(t, wire.SlotRun{FirstSlot: 16, Partition: 1}, runs[1])
	require.Equal(t, wire.SlotRun{FirstSlot: 16368, Partition: 1023}, runs[1023])
}

func TestRefusedCommandsChangeNothingAndSayWhy(t *testing.T) {
	long := settings(1)
	long.RetentionTimeMs = 0
	many := settings(1_000_000_000)
	placed := func(replicas uint8, nodes ...uint32) Command {
		s := settings(1)
		s.Replicas = replicas
		return Command{MinimumVersion: 2, Create: &Create{Name: "x", Kind: wire.Queue, Settings: s, ID: id(8), PartitionIDs: ids(1), Placement: [][]uint32{nodes}}}
	}
	three := settings(1)
	three.Replicas = 3
	for name, c := range map[string]struct {
		command Command
		code    wire.ErrorCode
	}{
		"a name that is taken":         {Command{Create: &Create{Name: "orders", Kind: wire.Topic, Settings: settings(1), PartitionIDs: ids(1)}}, wire.CodeAlreadyExists},
		"a name with an empty level":   {Command{Create: &Create{Name: "a//b", Kind: wire.Queue, Settings: settings(1), PartitionIDs: ids(1)}}, wire.CodeInvalidName},
		"no partitions":                {Command{Create: &Create{Name: "x", Kind: wire.Queue, Settings: settings(0)}}, wire.CodeInvalidSetting},
		"a billion partitions":         {Command{Create: &Create{Name: "x", Kind: wire.Queue, Settings: many}}, wire.CodeInvalidSetting},
		"more replicas than nodes":     {Command{Create: &Create{Name: "x", Kind: wire.Queue, Settings: three, PartitionIDs: ids(1)}}, wire.CodeInvalidSetting},
		"two replicas on one node":     {placed(2, 1, 1), wire.CodeInvalidSetting},
		"a replica on no member":       {placed(2, 1, 9), wire.CodeInvalidRequest},
		"fewer places than replicas":   {placed(3, 1), wire.CodeInvalidSetting},
		"more replicas than the limit": {placed(8, 1, 2, 3, 4, 5, 6, 7, 8), wire.CodeInvalidSetting},
		"retention of nothing":         {Command{Create: &Create{Name: "x", Kind: wire.Queue, Settings: long, PartitionIDs: ids(1)}}, wire.CodeInvalidSetting},
		"an unknown kind":              {Command{Create: &Create{Name: "x", Kind: 9, Settings: settings(1), PartitionIDs: ids(1)}}, wire.CodeInvalidSetting},
		"too few identities":           {Command{Create: &Create{Name: "x", Kind: wire.Queue, Settings: settings(2), PartitionIDs: ids(1)}}, wire.CodeInvalidSetting},
		"altering what is not there":   {Command{Alter: &Alter{Name: "nothing", Kind: wire.Queue}}, wire.CodeUnknownDestination},
		"altering a queue as a topic":  {Command{Alter: &Alter{Name: "orders", Kind: wire.Topic}}, wire.CodeKindMismatch},
		"altering the partition count": {Command{Alter: &Alter{Name: "orders", Kind: wire.Queue, Mask: wire.MaskPartitions, Settings: settings(9)}}, wire.CodeInvalidSetting},
		"deleting what is not there":   {Command{Delete: &Delete{Name: "nothing", Kind: wire.Queue}}, wire.CodeUnknownDestination},
		"deleting a predecessor":       {Command{Delete: &Delete{Name: "orders", Kind: wire.Queue, ID: id(1)}}, wire.CodeRefused},
		"a node with another store":    {Command{Register: &Register{Node: 1, Store: id(2)}}, wire.CodeInvalidSetting},
	} {
		t.Run(name, func(t *testing.T) {
			s := NewState()
			require.NoError(t, s.Apply(1, &Command{Register: &Register{ClusterID: id(1), Node: 1, Store: id(1)}}).Err)
			created(t, s, "orders", 1)
			before := s.Save(nil)
			r := s.Apply(8, &c.command)
			require.ErrorIs(t, r.Err, c.code)
			require.False(t, r.Changed)
			require.Equal(t, string(before), string(s.Save(nil)))
		})
	}
}

func TestAlterChangesOnlyWhatTheMaskNames(t *testing.T) {
	s := NewState()
	old := created(t, s, "orders", 2)
	r := s.Apply(12, &Command{Alter: &Alter{
		Name: "orders", Kind: wire.Queue, Mask: wire.MaskRetentionBytes,
		Settings: wire.Settings{RetentionBytes: 1 << 20, Sync: wire.SyncOS},
	}})
	require.NoError(t, r.Err)
	require.Equal(t, int64(1<<20), r.Destination.Settings.RetentionBytes)
	require.Equal(t, wire.SyncQuorumFsync, r.Destination.Settings.Sync)
	require.Equal(t, wire.Index(12), r.Destination.Version)
	require.Equal(t, int64(wire.Unlimited), old.Settings.RetentionBytes, "views share destinations: the old one stays as it was")
}

// Rule L6: a memory partition whose replicas died begins anew, with other replica
// IDs, a higher incarnation, and epochs that still rise.
func TestRuleL6_MemoryPartitionsBeginAnewAtARestart(t *testing.T) {
	s := NewState()
	m := settings(2)
	m.Storage = wire.StorageMemory
	require.NoError(t, s.Apply(3, &Command{Create: &Create{Name: "fast", Kind: wire.Queue, Settings: m, ID: id(3), PartitionIDs: ids(2), Node: 1}}).Err)
	disk := created(t, s, "orders", 1)
	r := s.Apply(9, &Command{ResetMemory: &ResetMemory{Node: 1}})
	require.True(t, r.Changed)
	p := s.Destinations["fast"].Partitions[1]
	require.Equal(t, uint32(2), p.Incarnation)
	require.Equal(t, wire.Term(1024), p.FirstTerm)
	require.Equal(t, []Replica{{ID: 5, Node: 1, State: ReplicaNew}}, p.Replicas)
	require.Same(t, disk, s.Destinations["orders"])
}

// Rule L5: a partition that may have lost its newest records goes on with its log
// under a new incarnation, and knows from where on its offsets mean something else.
func TestRuleL5_APartitionThatLostRecordsBeginsANewIncarnation(t *testing.T) {
	s := NewState()
	d := created(t, s, "orders", 2)
	replica := d.Partitions[1].Replicas[0].ID
	reform := func(next wire.Offset) *Partition {
		r := s.Apply(9, &Command{Reform: &Reform{Destination: d.ID, Partition: 1, Replica: replica, Next: next}})
		require.NoError(t, r.Err)
		require.True(t, r.Changed)
		return &r.Destination.Partitions[1]
	}
	since := func(p *Partition, incarnation uint32) any {
		if o, lost := p.LostSince(incarnation); lost {
			return int(o)
		}
		return nil
	}
	p := reform(100)
	require.Equal(t, []uint32{2, 1}, []uint32{p.Incarnation, p.LogIncarnation()})
	require.Equal(t, []any{nil, 100, nil}, []any{since(p, 0), since(p, 1), since(p, 2)})
	p = reform(300)
	require.Equal(t, []any{100, 300, nil}, []any{since(p, 1), since(p, 2), since(p, 3)})
	p = reform(50)
	require.Equal(t, []any{50, 50, 50, nil}, []any{since(p, 1), since(p, 2), since(p, 3), since(p, 4)})
	require.Len(t, p.Cuts, 1)
	for i := range wire.Offset(40) {
		p = reform(60 + i)
	}
	require.Len(t, p.Cuts, maxCuts)
	require.Equal(t, []any{50, 50, 99, nil}, []any{since(p, 1), since(p, 4), since(p, 43), since(p, 44)})
	require.Equal(t, uint32(1), p.LogIncarnation())
	require.Equal(t, uint32(1), d.Partitions[1].Incarnation, "views share destinations")
	require.Zero(t, s.Destinations["orders"].Partitions[0].Cuts)

	require.ErrorIs(t, s.Apply(9, &Command{Reform: &Reform{Destination: id(77)}}).Err, wire.CodeDestinationGone)
	require.ErrorIs(t, s.Apply(9, &Command{Reform: &Reform{Destination: d.ID, Partition: 1, Replica: 99}}).Err, wire.CodeInvalidRequest)
	require.ErrorIs(t, s.Apply(9, &Command{Reform: &Reform{Destination: d.ID, Partition: 1, Replica: 99, Several: true}}).Err, wire.CodeInvalidRequest)
	d.Partitions[1].Voters = []uint64{replica}
	s.Destinations["orders"] = d
	for range 2 { // the second time by another with the same log
		r := s.Apply(9, &Command{Reform: &Reform{Destination: d.ID, Partition: 1, Replica: replica, Next: 7, Several: true, Incarnation: d.Partitions[1].Incarnation}})
		require.NoError(t, r.Err)
		require.Equal(t, d.Partitions[1].Incarnation+1, r.Destination.Partitions[1].Incarnation)
	}
	// The same offset once more is another loss for who knows of the first, and so is another
	// offset for who does not.
	for _, again := range []Reform{{Next: 7, Incarnation: d.Partitions[1].Incarnation + 1}, {Next: 5, Incarnation: d.Partitions[1].Incarnation}} {
		again.Destination, again.Partition, again.Replica, again.Several = d.ID, 1, replica, true
		before := s.Destinations["orders"].Partitions[1].Incarnation
		r := s.Apply(9, &Command{Reform: &again})
		require.NoError(t, r.Err)
		require.True(t, r.Changed)
		require.Equal(t, before+1, r.Destination.Partitions[1].Incarnation)
	}
	several := Command{Reform: &Reform{Several: true}}
	several.stamp()
	require.Equal(t, 2, several.MinimumVersion, "an older build would refuse it")
}

// What one of several replicas has lost the others may have: it is not for it alone to say.
func TestRuleL5_OneOfSeveralReplicasBeginsNoIncarnationAlone(t *testing.T) {
	s := clusterOf(t, 3)
	d := placed(t, s, "orders", []uint32{1, 2, 3})
	r := s.Apply(99, &Command{Reform: &Reform{Destination: d.ID, Replica: d.Partitions[0].Replicas[0].ID, Next: 7}})
	require.ErrorIs(t, r.Err, wire.CodeInvalidRequest)
	require.Equal(t, uint32(1), s.Destinations["orders"].Partitions[0].Incarnation)
}

// RELIABILITY F26: what only a newer build understands is not applied by half.
func TestF26_ACommandOfANewerBuildIsNotApplied(t *testing.T) {
	s := NewState()
	before := s.Save(nil)
	defer func() {
		err, _ := recover().(error)
		require.ErrorIs(t, err, log.ErrTooNew)
		require.Equal(t, string(before), string(s.Save(nil)))
	}()
	s.Apply(1, &Command{MinimumVersion: Version + 1, AllocateIDs: &AllocateIDs{Node: 1}})
	t.Fatal("it was applied")
}

func TestRuleR5_NamesAreBounded(t *testing.T) {
	s := NewState()
	for i := range MaxNamedProducers - 1 {
		s.Producers[fmt.Sprint(i)] = ProducerSession{ID: int64(i)}
	}
	open := func(name string) error {
		return s.Apply(1, &Command{OpenProducer: &OpenProducer{Name: name}}).Err
	}
	require.NoError(t, open("last"))
	require.ErrorIs(t, open("one more"), wire.CodeTooMany)
	require.NoError(t, open("7"), "whoever is known goes on")
}

func TestProducerIDsAreNeverHandedOutTwice(t *testing.T) {
	s := NewState()
	first := s.Apply(1, &Command{AllocateIDs: &AllocateIDs{Node: 1}}).FirstID
	named := s.Apply(2, &Command{OpenProducer: &OpenProducer{Name: "billing"}}).Producer
	second := s.Apply(3, &Command{AllocateIDs: &AllocateIDs{Node: 1}}).FirstID
	require.Equal(t, int64(0), first)
	require.Equal(t, ProducerSession{ID: ProducerIDBlock}, named)
	require.Equal(t, int64(ProducerIDBlock+1), second)
	again := s.Apply(4, &Command{OpenProducer: &OpenProducer{Name: "billing"}}).Producer
	require.Equal(t, ProducerSession{ID: ProducerIDBlock, Epoch: 1}, again)
}

// RELIABILITY F16: who was paused while another opened its name does not take it back.
func TestF16_ANameIsRenewedByItsHolderOnly(t *testing.T) {
	s := NewState()
	open := func(holder uint64, renews bool) Result {
		return s.Apply(1, &Command{OpenProducer: &OpenProducer{Name: "billing", Holder: holder, Renews: renews}})
	}
	require.ErrorIs(t, open(7, true).Err, wire.CodeFenced, "nobody has opened it")
	require.Equal(t, ProducerSession{Holder: 7}, open(7, false).Producer)
	require.Equal(t, ProducerSession{Epoch: 1, Holder: 7}, open(7, true).Producer)
	require.Equal(t, ProducerSession{Epoch: 2, Holder: 7}, open(7, true).Producer, "the first answer was lost")
	require.Equal(t, ProducerSession{Epoch: 3, Holder: 8}, open(8, false).Producer)
	require.ErrorIs(t, open(7, true).Err, wire.CodeFenced)
	require.Equal(t, ProducerSession{Epoch: 4, Holder: 8}, open(8, true).Producer, "a refusal changes nothing")
}

// A name whose epochs are used up goes on with another ID, and the metadata know which it had:
// nothing is written under that any more (RULES R5). Nobody gets the epoch that ends it.
func TestRuleR5_ANameThatUsedUpItsEpochsRemembersItsID(t *testing.T) {
	m := NewMetadata(func(*View) {})
	open := func(holder uint64) ProducerSession {
		p := m.state.Apply(1, &Command{OpenProducer: &OpenProducer{Name: "billing", Holder: holder}}).Producer
		m.noteProducer(p)
		return p
	}
	m.state.Level, m.state.NextProducerID = LevelFences, 5
	open(1)
	m.state.Producers["billing"] = ProducerSession{ID: 5, Epoch: 32_765, Holder: 1}
	require.Equal(t, ProducerSession{ID: 5, Epoch: 32_766, Holder: 2}, open(2))
	require.False(t, m.Fenced(5, 32_766))
	require.Equal(t, ProducerSession{ID: 6, Holder: 3, Wrapped: true, Before: 5}, open(3))
	require.True(t, m.Fenced(5, 32_766))
	require.False(t, m.Fenced(6, 0))
	require.Equal(t, ProducerSession{ID: 6, Epoch: 1, Holder: 4, Wrapped: true, Before: 5}, open(4))

	again := NewMetadata(func(*View) {})
	require.NoError(t, again.Restore(m.Save(nil)))
	require.True(t, again.Fenced(5, 32_766))
	require.True(t, again.Fenced(6, 0))
}

func TestActivateMarksExactlyTheNamedReplicas(t *testing.T) {
	s := NewState()
	created(t, s, "orders", 2)
	require.True(t, s.Apply(8, &Command{Activate: &Activate{Replicas: []uint64{2}}}).Changed)
	d := s.Destinations["orders"]
	require.Equal(t, ReplicaNew, d.Partitions[0].Replicas[0].State)
	require.Equal(t, ReplicaActive, d.Partitions[1].Replicas[0].State)
	require.False(t, s.Apply(9, &Command{Activate: &Activate{Replicas: []uint64{2, 99}}}).Changed)
}

func TestADeletedDestinationIsRememberedUntilItsNodesHaveRemovedIt(t *testing.T) {
	s := NewState()
	created(t, s, "orders", 3)
	require.NoError(t, s.Apply(8, &Command{Delete: &Delete{Name: "orders", Kind: wire.Queue}}).Err)
	require.Equal(t, []*Deleted{{ID: id(9), Partitions: 3, Nodes: []uint32{1}}}, newView(s).Deleted)
	restored := NewState()
	require.NoError(t, restored.Restore(s.Save(nil)))
	require.Equal(t, newView(s).Deleted, newView(restored).Deleted)
	require.False(t, s.Apply(9, &Command{Bury: &Bury{ID: id(9), Node: 2}}).Changed, "not one of its nodes")
	require.True(t, s.Apply(9, &Command{Bury: &Bury{ID: id(9), Node: 1}}).Changed)
	require.Empty(t, newView(s).Deleted)
	require.False(t, s.Apply(10, &Command{Bury: &Bury{ID: id(9), Node: 1}}).Changed)
}

func TestSavedStateRestoresToEqualBytes(t *testing.T) {
	s := NewState()
	require.NoError(t, s.Apply(1, &Command{Register: &Register{ClusterID: id(1), Node: 1, Store: id(1), Address: "127.0.0.1:7400"}}).Err)
	created(t, s, "orders", 2)
	s.Apply(5, &Command{OpenProducer: &OpenProducer{Name: "p"}})
	saved := s.Save(nil)
	r := NewState()
	require.NoError(t, r.Restore(saved))
	require.Equal(t, string(saved), string(r.Save(nil)))
}

func TestMetadataOfANewerVersionIsRefused(t *testing.T) {
	for _, newer := range []string{`{"version": 5}`, `{"version":5,"nodes":["another type"]}`} {
		err := NewState().Restore([]byte(newer))
		require.ErrorIs(t, err, log.ErrTooNew)
		require.NotErrorIs(t, err, ErrState)
	}
	require.Panics(t, func() { NewState().Apply(1, &Command{MinimumVersion: 5}) })
	require.Panics(t, func() { NewState().Apply(1, &Command{}) })
}

func TestDamagedMetadataIsRefused(t *testing.T) {
	for _, damaged := range []string{
		``, `{`, `null`, `{"version":"2"}`, `{"version":0}`, `{"version":-1}`,
		`{"version":1,"nodes":null}`, `{"version":1,"nodes":{"1":null}}`, `{"version":1,"nodes":{"1":{"id":2}}}`,
		`{"version":1,"destinations":{"a":null}}`, `{"version":1,"destinations":{"a":{"name":"b"}}}`,
		`{"version":1,"producers":null}`, `{"version":1,"deleted":{"00000000-0000-0000-0000-000000000001":null}}`,
	} {
		s := NewState()
		created(t, s, "orders", 1)
		before := s.Save(nil)
		require.ErrorIs(t, s.Restore([]byte(damaged)), ErrState, damaged)
		require.Equal(t, string(before), string(s.Save(nil)), "%s: nothing has changed", damaged)
	}
}

// The names of persisted fields are a format: this is what version 1 wrote.
const goldenState = `{"version":1,"epoch":4,"cluster_id":"00000000-0000-0000-0000-000000000001",` +
	`"nodes":{"1":{"id":1,"store":"00000000-0000-0000-0000-000000000002","address":"127.0.0.1:7400","boots":3}},` +
	`"destinations":{"orders":{"name":"orders","id":"00000000-0000-0000-0000-000000000003","kind":1,` +
	`"settings":{"Partitions":1,"Replicas":1,"Storage":0,"Sync":2,"RetentionTimeMs":-1,"RetentionBytes":1024,` +
	`"MaxRecordBytes":0,"SegmentBytes":0,"RecordIndex":1},"version":4,"slot_version":1,` +
	`"slots":[{"FirstSlot":0,"Partition":0}],"partitions":[{"number":0,"id":"00000000-0000-0000-0000-000000000004",` +
	`"incarnation":1,"first_term":0,"replicas":[{"id":1,"node":1,"state":"active"}]}]}},` +
	`"next_replica_id":2,"next_producer_id":1000,"producers":{"p":{"id":5,"epoch":6}}}`

func TestGoldenMetadata(t *testing.T) {
	s := NewState()
	require.NoError(t, s.Restore([]byte(goldenState)))
	require.Equal(t, wire.SyncOS, s.Destinations["orders"].Settings.Sync)
	require.Equal(t, int64(1024), s.Destinations["orders"].Settings.RetentionBytes)
	require.Equal(t, ProducerSession{ID: 5, Epoch: 6}, s.Producers["p"])
	require.Equal(t, goldenState, string(s.Save(nil)))
	var c Command
	require.NoError(t, json.Unmarshal([]byte(`{"delete":{"name":"orders","kind":1,"id":"00000000-0000-0000-0000-000000000003"}}`), &c))
	require.NoError(t, s.Apply(9, &c).Err)
	require.Empty(t, s.Destinations)
}

// A node that is alone uses fences as soon as a name is opened again; where there are
// several, all of them must know fences first.
func TestTheFirstFenceRaisesTheLevelOfANodeThatIsAlone(t *testing.T) {
	for _, nodes := range []int{1, 3} {
		s := clusterOf(t, nodes)
		s.Level = LevelAlone
		open := &Command{OpenProducer: &OpenProducer{Name: "billing", Holder: 1}}
		require.False(t, s.Apply(50, open).Changed, "nobody is fenced")
		require.Equal(t, nodes == 1, s.Apply(51, open).Changed)
		require.Equal(t, map[int]int{1: LevelFences, 3: LevelAlone}[nodes], s.Level)
		require.False(t, s.Apply(52, open).Changed)
	}
}
