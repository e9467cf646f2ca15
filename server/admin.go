package server

import (
	"fmt"
	"sync"

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
		PartitionIDs: make([]uuid.UUID, settings.Partitions),
	}
	for i := range c.PartitionIDs {
		c.PartitionIDs[i] = uuid.New()
	}
	b.submit(cluster.Command{Create: c}, b.replyWithDestination(reply))
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
			info := b.Describe(d)
			reply(&info, nil)
		})
	}
}

// Describe implements backend: a destination with the state of its partitions.
func (b *broker) Describe(d *cluster.Destination) wire.DestinationInfo {
	info := wire.DestinationInfo{
		Name: d.Name, ID: d.ID, Kind: d.Kind, Version: uint64(d.Version), Settings: d.Settings,
		SlotVersion: d.SlotVersion, Slots: d.Slots, Partitions: make([]wire.PartitionInfo, len(d.Partitions)),
	}
	for i := range d.Partitions {
		number := d.Partitions[i].Number
		if r := b.local(d.ID, number); r != nil {
			info.Partitions[i] = r.info()
		} else {
			b.mu.RLock()
			failed := b.failed[replicaKey{d.ID, number}]
			b.mu.RUnlock()
			state := wire.PartitionStarting
			if failed != nil {
				state = wire.PartitionFenced
			}
			info.Partitions[i] = wire.PartitionInfo{Number: number, Leader: b.identity.NodeID, State: state, Problem: problem(failed)}
		}
		info.Partitions[i].Replicas, info.Partitions[i].Weight = describeReplicas(&d.Partitions[i]), 1
	}
	return info
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
	fetching  bool
	waiting   []func(int64, error)
}

func (b *broker) initProducer(m *wire.InitProducerRequest, reply func(wire.Message, error)) {
	if m.Name != "" {
		if err := wire.ValidateName(m.Name); err != nil {
			reply(nil, err)
			return
		}
		b.submit(cluster.Command{OpenProducer: &cluster.OpenProducer{Name: m.Name, Holder: m.Holder, Renews: m.Renews}}, func(r cluster.Result) {
			if r.Err != nil {
				reply(nil, r.Err)
				return
			}
			reply(&wire.InitProducerResponse{ProducerID: r.Producer.ID, Epoch: r.Producer.Epoch}, nil)
		})
		return
	}
	b.producerID(func(id int64, err error) {
		if err != nil {
			reply(nil, err)
			return
		}
		reply(&wire.InitProducerResponse{ProducerID: id}, nil)
	})
}

func (b *broker) producerID(then func(int64, error)) {
	p := &b.producers
	p.mu.Lock()
	if p.next < p.end {
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
