package server

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/partition"
	"github.com/lockstepmq/lockstep/wire"
)

// retried sends a request until it is not answered with one of the errors that pass.
func retried(t *testing.T, c *rawClient, op wire.Opcode, m wire.Message) rawFrame {
	t.Helper()
	var f rawFrame
	id := uint32(1000)
	eventually(t, fmt.Sprintf("an answer to %v", op), func() bool {
		id++
		c.send(op, id, m)
		f = c.answer(id)
		return !f.code().Retriable()
	})
	return f
}

// openRetried opens a partition as soon as it has a leader.
func openRetried(t *testing.T, c *rawClient, name string, number uint32) uint32 {
	var m wire.OpenPartitionResponse
	c.ok(retried(t, c, wire.OpOpenPartition, &wire.OpenPartitionRequest{Destination: name, Partition: number}), &m)
	return m.Handle
}

// Records sent to any node of a cluster arrive at the leader, whoever that is, and
// their receipts count the replicas (R-X-11); when the leader's node stops, the same
// session goes on with the next one.
func TestClusterServesEveryPartitionByWayOfEveryNode(t *testing.T) {
	c := newCrew(t, 3)
	c.create(1, "orders", 3, 3)
	batch, index := testBatch(t, "a")
	for node := range c.servers {
		client := dialOpen(t, c.servers[node].Addr())
		for p := range uint32(3) {
			h := openRetried(t, client, "orders", p)
			f := retried(t, client, wire.OpProduce, &wire.ProduceRequest{Handle: h, Acks: wire.AcksQuorum, Batch: batch, Index: index})
			var r wire.Receipt
			client.ok(f, &r)
			require.GreaterOrEqual(t, r.Replicas, uint8(2), "a quorum")
			require.True(t, r.Synced)
			require.Equal(t, h, r.Handle)
		}
	}
	// What was acknowledged is at once the end of the partition, on every node (R8).
	for node := range c.servers {
		client := dialOpen(t, c.servers[node].Addr())
		for other := range c.servers {
			writer := dialOpen(t, c.servers[other].Addr())
			var receipt wire.Receipt
			writer.ok(retried(t, writer, wire.OpProduce, &wire.ProduceRequest{
				Handle: openRetried(t, writer, "orders", 1), Acks: wire.AcksQuorum, Batch: batch, Index: index,
			}), &receipt)
			var latest wire.ListOffsetsResponse
			client.ok(retried(t, client, wire.OpListOffsets, &wire.ListOffsetsRequest{
				Handle: openRetried(t, client, "orders", 1), Kind: wire.OffsetLatest,
			}), &latest)
			require.Equal(t, receipt.BaseOffset+1, latest.Offset)
		}
	}
	// Of a client that stays, the leader of partition 0 goes.
	b := c.broker(1)
	d, _ := b.View().Destination("orders")
	leader := b.Describe(d).Partitions[0].Leader
	stays := leader%3 + 1
	client := dialOpen(t, c.servers[stays].Addr())
	h := openRetried(t, client, "orders", 0)
	c.stop(leader)
	f := retried(t, client, wire.OpProduce, &wire.ProduceRequest{Handle: h, Acks: wire.AcksQuorum, Batch: batch, Index: index})
	var r wire.Receipt
	client.ok(f, &r)
	require.Equal(t, uint8(2), r.Replicas)
	require.GreaterOrEqual(t, r.BaseOffset, wire.Offset(3))

	// F15: the last node alone acknowledges nothing, and does not say where the end is.
	for node := range c.servers {
		if node != stays {
			c.stop(node)
		}
	}
	for i := range uint32(20) {
		client.send(wire.OpProduce, 5000+i, &wire.ProduceRequest{Handle: h, Acks: wire.AcksQuorum, Batch: batch, Index: index})
	}
	for i := range uint32(20) {
		require.NotEqual(t, wire.CodeOK, client.answer(5000+i).code())
	}
	client.send(wire.OpListOffsets, 6000, &wire.ListOffsetsRequest{Handle: h, Kind: wire.OffsetLatest})
	require.NotEqual(t, wire.CodeOK, client.answer(6000).code())
}

// A producer ID may come from a block that another node has taken a moment ago: a
// leader that has not heard of it yet must not make the producer take a new one.
func TestClusterWaitsForNewsOfProducerIDs(t *testing.T) {
	c := newCrew(t, 2)
	c.create(1, "orders", 4, 1)
	codes := map[bool]map[wire.ErrorCode]bool{true: {}, false: {}}
	for node := range c.servers {
		b := c.broker(node)
		b.each(func(r *partitionReplica) {
			for _, id := range []int64{5_000, 5_000_000} {
				err := r.Append(partition.Append{Info: wire.BatchInfo{ProducerID: id}})
				require.Error(t, err)
				if id == 5_000_000 {
					require.ErrorIs(t, err, wire.CodeUnknownProducer, "no node is that far ahead")
				} else {
					codes[b.meta.leads.Load()][wire.CodeOf(err)] = true
				}
			}
		})
	}
	require.Equal(t, map[bool]map[wire.ErrorCode]bool{
		true: {wire.CodeUnknownProducer: true}, false: {wire.CodeRetry: true},
	}, codes, "by whether the node leads the metadata")
}
