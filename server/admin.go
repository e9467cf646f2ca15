package server

import (
	"fmt"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/lockstepmq/lockstep/cluster"
	"github.com/lockstepmq/lockstep/wire"
)

// Admin implements backend: it turns administrative requests into metadata
// commands. reply is called once, on any goroutine.
func (b *broker) Admin(request wire.Message, reply func(wire.Message, error)) {
	switch m := request.(type) {
	case *wire.CreateRequest:
		b.create(m, reply)
	case *wire.AlterRequest:
		b.submit(cluster.Command{Alter: &cluster.Alter{
			Name: m.Name, Kind: m.Kind, Mask: m.Mask, Settings: m.Settings,
		}}, b.replyWithDestination(reply))
	case *wire.DeleteRequest:
		if m.ID == uuid.Nil { // which to the metadata means any
			reply(nil, wire.Errorf(wire.CodeRefused, "the request to delete %v %q does not say which of that name", m.Kind, m.Name))
			return
		}
		b.submit(cluster.Command{Delete: &cluster.Delete{Name: m.Name, Kind: m.Kind, ID: m.ID}}, func(r cluster.Result) {
			if r.Err != nil {
				reply(nil, r.Err)
				return
			}
			b.whenSettled(b.View().Epoch, func() { reply(&wire.DeleteResponse{}, nil) })
		})
	case *wire.InitProducerRequest:
		b.initProducer(m, reply)
	case *wire.JoinRequest:
		b.takeIn(m, reply)
	case *wire.NodeAdminRequest:
		b.nodeAdmin(m, reply)
	case *wire.PartitionAdminRequest:
		b.partitionAdmin(m, reply)
	case *wire.PartitionRecoverRequest:
		b.recoverPartition(m, reply)
	case *wire.AliasRequest:
		b.alias(m, reply)
	case *wire.GroupAdminRequest:
		b.groupAdmin(m, reply)
	case *wire.ClusterStatusRequest:
		b.clusterStatus(reply)
	default:
		reply(nil, &wire.Error{Code: wire.CodeUnsupported, Detail: fmt.Sprintf("%T", request)})
	}
}

func (b *broker) create(m *wire.CreateRequest, reply func(wire.Message, error)) {
	// Checked here too, so that a bad count draws no identities.
	settings := m.Settings
	err := wire.ValidateName(m.Name)
	if err == nil {
		err = cluster.ValidateSettings(m.Kind, &settings)
	}
	if err != nil {
		reply(nil, err)
		return
	}
	c := &cluster.Create{
		Name: m.Name, Kind: m.Kind, Settings: settings, ID: uuid.New(), Node: b.identity.NodeID,
		PartitionIDs: make([]uuid.UUID, settings.Partitions), Automatic: m.Settings.Replicas == 0,
	}
	for i := range c.PartitionIDs {
		c.PartitionIDs[i] = uuid.New()
	}
	if v := b.View(); len(v.Nodes) > 1 {
		if c.Automatic {
			c.Settings.Replicas = b.autoReplicas(v, c.Settings.Storage)
		}
		c.Placement, err = cluster.Spread(v, c.PartitionIDs, int(c.Settings.Replicas), b.unfitFor(c.Settings.Storage))
		if err != nil {
			reply(nil, err)
			return
		}
	}
	b.submit(cluster.Command{Create: c}, b.replyWithDestination(reply))
}

// unfitFor says why nodes cannot take a replica on a storage, if they cannot.
func (b *broker) unfitFor(s wire.Storage) func(cluster.Node) string {
	return func(n cluster.Node) string {
		switch {
		case !b.reachable(n.ID):
			return "does not answer"
		case s == wire.StorageDisk && b.lacksSpace(n.ID):
			return "has no disk space left for records"
		}
		return ""
	}
}

// alias makes, changes or removes one.
func (b *broker) alias(m *wire.AliasRequest, reply func(wire.Message, error)) {
	// Here, because metadata in JSON would make another name of one that is not UTF-8.
	if err := wire.ValidateName(m.Alias.Name); err != nil {
		reply(nil, err)
		return
	}
	c := cluster.Command{SetAlias: &cluster.SetAlias{
		Name: m.Alias.Name, Destination: m.Alias.Destination, Partitions: m.Alias.Partitions, Create: m.Op == wire.AliasCreate,
	}}
	if m.Op == wire.AliasRemove {
		c = cluster.Command{RemoveAlias: &cluster.RemoveAlias{Name: m.Alias.Name}}
	}
	b.submit(c, func(r cluster.Result) {
		if r.Err != nil {
			reply(nil, r.Err)
			return
		}
		reply(&wire.Empty{}, nil)
	})
}

// autoReplicas is how many replicas a destination gets that does not say: three where
// there are nodes for them, as the controller raises them later. A node that is away for a
// moment counts: nobody is given fewer because another one restarts.
func (b *broker) autoReplicas(v *cluster.View, s wire.Storage) uint8 {
	brokers := 0
	for i := range v.Nodes {
		n := &v.Nodes[i]
		if n.Broker() && n.Up() && b.lively(n.ID) && (s != wire.StorageDisk || !b.lacksSpace(n.ID)) {
			brokers++
		}
	}
	if brokers >= cluster.AutoReplicas {
		return cluster.AutoReplicas
	}
	return 1
}

// nodeAdmin carries out what an operator wants of a node.
func (b *broker) nodeAdmin(m *wire.NodeAdminRequest, reply func(wire.Message, error)) {
	state := [...]cluster.NodeState{wire.NodeUndrain: cluster.NodeUp, wire.NodeDrain: cluster.NodeDraining, wire.NodeDecommission: cluster.NodeLeaving}[m.Action]
	if m.Action == wire.NodeDecommission {
		if err := b.majorityWithout(m.Node); err != nil {
			reply(nil, err)
			return
		}
	}
	b.submit(cluster.Command{SetNode: &cluster.SetNode{Node: m.Node, State: state}}, func(r cluster.Result) {
		if r.Err != nil {
			reply(nil, r.Err)
			return
		}
		reply(&wire.Empty{}, nil)
	})
}

// majorityWithout refuses to let a node go if most of the others are not there: what is
// left could decide nothing, not even to take it back.
func (b *broker) majorityWithout(node uint32) error {
	others, alive := 0, 0
	for _, n := range b.View().Nodes {
		if n.ID == node || n.State == cluster.NodeLeaving {
			continue
		}
		others++
		if b.reachable(n.ID) {
			alive++
		}
	}
	if alive <= others/2 {
		return wire.Errorf(wire.CodeRefused, "without node %d only %d of %d nodes could be reached, no majority; start others first", node, alive, others)
	}
	return nil
}

// partitionAdmin moves a replica or a leadership, or says who is to lead.
func (b *broker) partitionAdmin(m *wire.PartitionAdminRequest, reply func(wire.Message, error)) {
	d, ok := b.View().Destination(m.Destination)
	if !ok {
		reply(nil, wire.Errorf(wire.CodeUnknownDestination, "destination %q not found", m.Destination))
		return
	}
	if m.Partition >= uint32(len(d.Partitions)) && (m.Partition != wire.AllPartitions || m.Action != wire.PartitionPlace) {
		reply(nil, wire.Errorf(wire.CodeUnknownPartition, "%s %q has partitions 0 to %d", d.Kind, d.Name, len(d.Partitions)-1))
		return
	}
	if m.Action == wire.PartitionPlace {
		b.submit(cluster.Command{SetPlacement: &cluster.SetPlacement{Destination: d.ID, Partition: m.Partition, Placement: m.Placement}}, func(r cluster.Result) {
			if r.Err != nil {
				reply(nil, r.Err)
				return
			}
			b.whenSettled(r.Destination.Version, func() { reply(&wire.Empty{}, nil) })
		})
		return
	}
	p := &d.Partitions[m.Partition]
	if m.Action == wire.PartitionTransfer {
		b.adminTransfer(d, p, m.To, reply)
		return
	}
	if b.shortOfSpace(d, m.To, reply) {
		return
	}
	from := p.On(m.From)
	if from == nil {
		reply(nil, wire.Errorf(wire.CodeInvalidRequest, "node %d holds no replica of %s/%d; lockstep partition ls %s shows which nodes do", m.From, d.Name, p.Number, d.Name))
		return
	}
	b.submit(cluster.Command{Move: &cluster.Move{Destination: d.ID, Partition: p.Number, Add: []uint32{m.To}, Remove: []uint64{from.ID}}}, func(r cluster.Result) {
		if r.Err != nil {
			reply(nil, r.Err)
			return
		}
		reply(&wire.Empty{}, nil)
	})
}

// shortOfSpace refuses to give a node something that its disk has no space for.
func (b *broker) shortOfSpace(d *cluster.Destination, to uint32, reply func(wire.Message, error)) bool {
	if d.Settings.Storage != wire.StorageDisk || !b.lacksSpace(to) {
		return false
	}
	reply(nil, wire.Errorf(wire.CodeRefused, "node %d has no disk space left for records; free some there, or choose another node", to))
	return true
}

func (b *broker) adminTransfer(d *cluster.Destination, p *cluster.Partition, to uint32, reply func(wire.Message, error)) {
	if b.shortOfSpace(d, to, reply) {
		return
	}
	l, known := b.hints.of(p)
	if !known || b.network == nil {
		reply(nil, wire.Errorf(wire.CodeUnavailable, "%s/%d has no leader that could hand over", d.Name, p.Number))
		return
	}
	target := uint64(0)
	if to != 0 {
		r := p.On(to)
		if r == nil || r.State != cluster.ReplicaActive {
			reply(nil, wire.Errorf(wire.CodeInvalidRequest, "node %d holds no replica of %s/%d that could lead; lockstep partition ls %s shows which nodes do", to, d.Name, p.Number, d.Name))
			return
		}
		target = r.ID
	}
	if target == l.Replica {
		reply(&wire.Empty{}, nil)
		return
	}
	b.transfer(l.node, l.Replica, target)
	reply(&wire.Empty{}, nil)
}

// replyWithDestination answers once this node's replicas follow the change.
func (b *broker) replyWithDestination(reply func(wire.Message, error)) func(cluster.Result) {
	return func(r cluster.Result) {
		if r.Err != nil {
			reply(nil, r.Err)
			return
		}
		d := r.Destination
		b.whenSettled(d.Version, func() {
			b.whenLed(d, time.Now().Add(leaderPatience), func() {
				info := b.Describe(d)
				reply(&info, nil)
			})
		})
	}
}

const (
	// leaderPatience bounds the wait for the leaders of a new destination. It exists
	// without them.
	leaderPatience = 2 * time.Second
	// leaderPause lies between two looks.
	leaderPause = 10 * time.Millisecond
)

// whenLed calls then when every partition of a destination has a leader that this node
// knows, or patience is over. A broker that runs alone does not wait.
func (b *broker) whenLed(d *cluster.Destination, until time.Time, then func()) {
	if b.network != nil && time.Now().Before(until) {
		for i := range d.Partitions {
			if _, known := b.hints.of(&d.Partitions[i]); !known {
				time.AfterFunc(leaderPause, func() { b.whenLed(d, until, then) })
				return
			}
		}
	}
	then()
}

// Describe implements backend: a destination with the state of its partitions.
func (b *broker) Describe(d *cluster.Destination) wire.DestinationInfo {
	info := wire.DestinationInfo{
		Name: d.Name, ID: d.ID, Kind: d.Kind, Version: uint64(d.Version), Settings: d.Settings, Automatic: d.Automatic,
		SlotVersion: d.SlotVersion, Slots: d.Slots, Partitions: make([]wire.PartitionInfo, len(d.Partitions)),
	}
	for i := range d.Partitions {
		p, said := &d.Partitions[i], &info.Partitions[i]
		*said = b.describePartition(d, p)
		said.Replicas, said.Weight, said.Preferred, said.Policy = describeReplicas(p), max(p.Weight, 1), p.Preferred, p.Policy
		if p.SendDisabled {
			said.Flags |= wire.PartitionSendDisabled
		}
	}
	return info
}

// describePartition is the state of a partition: as its leader has it if that is here,
// else as its leader says, else as far as this node knows.
func (b *broker) describePartition(d *cluster.Destination, p *cluster.Partition) wire.PartitionInfo {
	r := b.local(d.ID, p.Number)
	if r != nil && (r.inbox == nil || r.Leading()) {
		return r.info()
	}
	if l, ok := b.hints.of(p); ok {
		info := wire.PartitionInfo{
			Number: p.Number, Leader: l.node, Epoch: l.Epoch, State: l.State, StartOffset: l.Start, NextOffset: l.Next, Bytes: l.Bytes,
		}
		if l.Full {
			info.Flags |= wire.PartitionFull
		}
		if l.Unattended {
			info.Flags |= wire.PartitionUnattended
		}
		// Leaders say how far they are now and then, and send their replicas all at once.
		if on := p.On(b.identity.NodeID); r != nil && on != nil && on.ID == r.replicaID {
			info.NextOffset = max(info.NextOffset, r.records.Watermark().Next)
		}
		return info
	}
	if r != nil {
		return r.info()
	}
	if p.On(b.identity.NodeID) == nil {
		return wire.PartitionInfo{Number: p.Number, State: wire.PartitionStarting}
	}
	b.mu.RLock()
	failed := b.failed[replicaKey{d.ID, p.Number}]
	b.mu.RUnlock()
	state := wire.PartitionStarting
	if failed != nil {
		state = wire.PartitionFenced
	}
	return wire.PartitionInfo{Number: p.Number, Leader: b.identity.NodeID, State: state, Problem: problem(failed)}
}

// describeReplicas are a partition's copies as METADATA shows them.
func describeReplicas(p *cluster.Partition) []wire.ReplicaInfo {
	replicas := make([]wire.ReplicaInfo, 0, len(p.Replicas))
	for _, r := range p.Replicas {
		if state, ok := replicaStates[r.State]; ok {
			replicas = append(replicas, wire.ReplicaInfo{Replica: r.ID, Node: r.Node, State: state})
		}
	}
	return replicas
}

// replicaStates are the states of those that are part of their partition still.
var replicaStates = map[cluster.ReplicaState]wire.ReplicaState{
	cluster.ReplicaNew:     wire.ReplicaNew,
	cluster.ReplicaActive:  wire.ReplicaActive,
	cluster.ReplicaJoining: wire.ReplicaJoining,
	cluster.ReplicaLeaving: wire.ReplicaLeaving,
	cluster.ReplicaLost:    wire.ReplicaLost,
}

// Info implements backend.
func (b *broker) Info() serverInfo {
	return serverInfo{ClusterID: b.identity.ClusterID.String(), NodeID: b.identity.NodeID, Version: Version()}
}

// producerIDs hands out producer IDs from blocks taken in the metadata, so that
// a producer costs no metadata entry of its own.
type producerIDs struct {
	mu        sync.Mutex
	next, end int64
	forgotten int64 // what some partition has forgotten lies below it
	fetching  bool
	waiting   []func(int64, error)
}

// skip leaves out the IDs that a partition may have forgotten: whoever got one would
// be refused there. Names take theirs from behind the block, so these may lie in it.
func (p *producerIDs) skip(forgotten int64) {
	p.mu.Lock()
	p.forgotten = max(p.forgotten, forgotten)
	p.mu.Unlock()
}

func (b *broker) initProducer(m *wire.InitProducerRequest, reply func(wire.Message, error)) {
	if m.Name != "" {
		if err := wire.ValidateName(m.Name); err != nil {
			reply(nil, err)
			return
		}
		b.openName(m, openUntil(m), reply)
		return
	}
	type identity struct {
		id  int64
		err error
	}
	inTime(openUntil(m), identity{err: errNoIdentity}, func(then func(identity)) {
		b.producerID(func(id int64, err error) { then(identity{id, err}) })
	}, func(got identity) {
		if got.err != nil {
			reply(nil, got.err)
			return
		}
		reply(&wire.InitProducerResponse{ProducerID: got.id}, nil)
	})
}

func (b *broker) producerID(then func(int64, error)) {
	p := &b.producers
	p.mu.Lock()
	if p.next = max(p.next, p.forgotten); p.next < p.end {
		id := p.next
		p.next++
		p.mu.Unlock()
		then(id, nil)
		return
	}
	p.waiting = append(p.waiting, then)
	fetch := !p.fetching
	p.fetching = true
	p.mu.Unlock()
	if fetch {
		b.submit(cluster.Command{AllocateIDs: &cluster.AllocateIDs{Node: b.identity.NodeID}}, b.gotProducerIDs)
	}
}

func (b *broker) gotProducerIDs(r cluster.Result) {
	p := &b.producers
	p.mu.Lock()
	p.fetching = false
	if r.Err == nil {
		p.next, p.end = r.FirstID, r.FirstID+cluster.ProducerIDBlock
		p.forgotten = min(p.forgotten, p.next) // nothing higher was handed out
	}
	waiting := p.waiting
	p.waiting = nil
	p.mu.Unlock()
	for _, then := range waiting {
		if r.Err != nil {
			then(0, r.Err)
		} else {
			b.producerID(then)
		}
	}
}
