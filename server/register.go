package server

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/lockstepmq/lockstep/cluster"
	"github.com/lockstepmq/lockstep/wire"
)

// errGivenUp is how a start ends that nobody waits for any more.
var errGivenUp = errors.New("this node was told to stop before it was ready")

// register announces this node in the metadata. It ends early when givenUp is closed.
func (b *broker) register(givenUp <-chan struct{}) error {
	c := &cluster.Register{
		ClusterID: b.identity.ClusterID, Node: b.identity.NodeID, Store: b.identity.StoreID, Address: cmp.Or(b.cfg.Advertise, b.cfg.Listen),
		PeerAddress: b.cfg.PeerAdvertise, Rack: b.cfg.Rack, Role: cluster.Role(b.cfg.Role),
	}
	if b.network != nil {
		c.MinLevel, c.MaxLevel = cluster.MinLevel, cluster.MaxLevel
		if b.cfg.HTTP != "off" {
			c.HTTP = b.cfg.HTTP
		}
	}
	result := b.commandUntil(cluster.Command{Register: c}, givenUp)
	for until := time.Now().Add(joinPatience); b.network != nil && errors.Is(result.Err, wire.CodeUnavailable) && time.Now().Before(until); {
		b.logger.Info("waiting for the metadata", "err", result.Err)
		result = b.commandUntil(cluster.Command{Register: c}, givenUp)
	}
	switch {
	case result.Err == nil:
	case errors.Is(result.Err, errGivenUp):
		return result.Err
	case errors.Is(result.Err, wire.CodeDiskFull) && b.registered():
		b.logger.Warn("disk is full, also what is set aside for starting; partitions that lack room to elect only serve reads until there is space",
			"err", result.Err)
	default:
		return fmt.Errorf("register node %d: %w", b.identity.NodeID, result.Err)
	}
	result = b.commandUntil(cluster.Command{ResetMemory: &cluster.ResetMemory{Node: b.identity.NodeID}}, givenUp)
	if result.Err != nil && !(errors.Is(result.Err, wire.CodeDiskFull) && b.registered()) {
		return fmt.Errorf("reset memory partitions: %w", result.Err)
	}
	b.reset.Store(true)
	b.metadataChanged(nil)
	return nil
}

// known reports whether the metadata knows this node, as far as it is here.
func (b *broker) known() bool {
	v := b.View()
	node, ok := v.Node(b.identity.NodeID)
	return ok && node.Store == b.identity.StoreID && len(v.Nodes) > 1
}

// registered reports whether the metadata would learn nothing that matters from
// the start of this node.
func (b *broker) registered() bool {
	v := b.View()
	node, ok := v.Node(b.identity.NodeID)
	return ok && node.Store == b.identity.StoreID && node.Address == b.cfg.Listen &&
		!slices.ContainsFunc(v.Destinations, func(d *cluster.Destination) bool { return d.Settings.Storage == wire.StorageMemory })
}

// errRemoved is how a broker ends that the other nodes do not take for a member of its cluster.
func (b *broker) errRemoved() error {
	switch b.outcast {
	case wordTwin:
		return wire.Errorf(wire.CodeAlreadyExists, "node %d runs already: another process has a copy of this data directory, and the other nodes are connected to that one; "+
			"stop it if this directory is to serve, or give this machine an empty data directory and let it join under another --node-id", b.identity.NodeID)
	case wordReplaced:
		return wire.Errorf(wire.CodeNotMember, "node %d was replaced: another data directory has its ID in the cluster now, and this one holds nothing that counts; "+
			"stop it for good, or give this machine an empty data directory and let it join under another --node-id", b.identity.NodeID)
	}
	return wire.Errorf(wire.CodeNotMember, "node %d was removed from the cluster: the other nodes do not know it any more, and it holds nothing that counts; "+
		"stop it for good, or let it join again with --join and an empty data directory", b.identity.NodeID)
}
