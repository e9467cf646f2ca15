package client

import (
	"context"
	"fmt"

	"github.com/lockstepmq/lockstep/wire"
)

// NodeAction is what AdministerNode may ask for.
type NodeAction = wire.NodeAction

// The actions.
const (
	NodeUndrain      = wire.NodeUndrain      // it takes part in everything again
	NodeDrain        = wire.NodeDrain        // it gives its leaderships away
	NodeDecommission = wire.NodeDecommission // it gives its replicas away and leaves the cluster
)

// AdministerNode asks the cluster for an action on a node. When it returns, the
// cluster has decided to do it; Nodes and Destinations show how far it is. Errors:
// wire.CodeRefused with the reason.
func (c *Conn) AdministerNode(ctx context.Context, node uint32, action NodeAction) error {
	request := wire.NodeAdminRequest{Node: node, Action: action}
	if err := c.do(ctx, wire.OpNodeAdmin, &request, &wire.Empty{}, false); err != nil {
		return fmt.Errorf("node %d: %w", node, err)
	}
	return nil
}

// MoveReplica asks the cluster to move the replica of a partition that node from holds
// to node to. It returns when that is decided. Errors: wire.CodeRefused with the reason,
// CodeUnknownDestination, CodeUnknownPartition.
func (c *Conn) MoveReplica(ctx context.Context, destination string, partition, from, to uint32) error {
	request := wire.PartitionAdminRequest{Destination: destination, Partition: partition, Action: wire.PartitionMove, From: from, To: to}
	return c.administerPartition(ctx, &request)
}

// TransferLeader asks for the leadership of a partition to go to a node that holds a
// replica of it; 0 is any other than the one that leads. It returns when that has begun.
func (c *Conn) TransferLeader(ctx context.Context, destination string, partition, to uint32) error {
	request := wire.PartitionAdminRequest{Destination: destination, Partition: partition, Action: wire.PartitionTransfer, To: to}
	return c.administerPartition(ctx, &request)
}

// AllPartitions in place of a partition's number means each of the destination, for
// PlacePartition.
const AllPartitions = wire.AllPartitions

// Placement says who is to lead a partition and which records it gets; only what its
// Mask names is changed.
type Placement = wire.Placement

// PlacePartition changes the placement of a partition, or of AllPartitions. When it
// returns, the broker that answers knows of it. Errors: wire.CodeInvalidSetting if the
// preferred leader holds no replica, CodeUnknownDestination, CodeUnknownPartition.
func (c *Conn) PlacePartition(ctx context.Context, destination string, partition uint32, p Placement) error {
	request := wire.PartitionAdminRequest{Destination: destination, Partition: partition, Action: wire.PartitionPlace, Placement: p}
	return c.administerPartition(ctx, &request)
}

func (c *Conn) administerPartition(ctx context.Context, request *wire.PartitionAdminRequest) error {
	if err := c.do(ctx, wire.OpPartAdmin, request, &wire.Empty{}, false); err != nil {
		return fmt.Errorf("partition %s/%d: %w", request.Destination, request.Partition, err)
	}
	return nil
}

// PartitionRecovery is what is left of a partition, and which replica goes on or would.
type PartitionRecovery = wire.PartitionRecovery

// RecoverPartition asks what is left of a partition of which a majority of replicas is gone
// for good. With accept one of them goes on alone, that of a node or, for node 0, the one
// with the longest log: what only the others had is lost, acknowledged or not, and they are
// not listened to any more if they come back. It returns when that is decided. Errors:
// wire.CodeRefused with the reason where there is nothing to recover, or nothing is left.
func (c *Conn) RecoverPartition(ctx context.Context, destination string, partition, node uint32, accept bool) (PartitionRecovery, error) {
	var found PartitionRecovery
	request := wire.PartitionRecoverRequest{Destination: destination, Partition: partition, Node: node, Accept: accept}
	if err := c.do(ctx, wire.OpPartRecover, &request, &found, !accept); err != nil {
		return found, fmt.Errorf("partition %s/%d: %w", destination, partition, err)
	}
	return found, nil
}

// ClusterStatus is what the nodes of a cluster know of themselves.
type ClusterStatus = wire.ClusterStatus

// ClusterStatus asks all nodes what they know of themselves, by way of the home. Nodes
// that do not answer within a second have Answered false.
func (c *Conn) ClusterStatus(ctx context.Context) (ClusterStatus, error) {
	var status ClusterStatus
	if err := c.do(ctx, wire.OpClusterStatus, &wire.ClusterStatusRequest{}, &status, true); err != nil {
		return status, fmt.Errorf("status of the cluster: %w", err)
	}
	return status, nil
}
