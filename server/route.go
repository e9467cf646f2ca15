package server

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
	if err != nil {
		return route{}, err
	}
	return route{local: r, node: b.identity.NodeID, epoch: r.Epoch()}, nil
}
