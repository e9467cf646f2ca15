package server

import "github.com/lockstepmq/lockstep/wire"

// route is where requests for a partition go: to the replica on this node, or to
// the node that leads it.
type route struct {
	local replica // nil if another node leads
	node  uint32  // that leads, 0 if none is known
	epoch uint32  // of the leader, 0 if none is known
}

// Route finds where requests for a partition go.
func (b *broker) Route(destination [16]byte, number uint32) (route, error) {
	r, err := b.Partition(destination, number)
	if b.network != nil && (err != nil || !r.Leading()) {
		d, ok := b.View().DestinationByID(destination)
		if ok && number < uint32(len(d.Partitions)) {
			p := &d.Partitions[number]
			l, known := b.hints.of(p)
			switch {
			case known && l.node != b.identity.NodeID:
				return route{node: l.node, epoch: l.Epoch}, nil
			case err == nil && len(p.Replicas) > 1 && r.State() == wire.PartitionStarting, err != nil && p.On(b.identity.NodeID) == nil:
				return route{}, nil // nobody leads, as far as is known here
			}
		}
	}
	if err != nil {
		return route{}, err
	}
	return route{local: r, node: b.identity.NodeID, epoch: r.Epoch()}, nil
}

// Alive implements backend.
func (b *broker) Alive(node uint32) bool { return b.reachable(node) }
