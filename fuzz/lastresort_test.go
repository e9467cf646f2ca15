package fuzz

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/client"
	"github.com/lockstepmq/lockstep/wire"
)

// Five brokers, a partition on three of them. The two others that have a replica die for
// good, the leader among them: nobody leads until an operator accepts the loss. All that
// the rest has is there then, in order; what is lost lies above the offset that was said,
// and a reader that was further learns it. Those that come back are not heard (RULES L5).
func TestRuleL5_AnOperatorAcceptsTheLoss(t *testing.T) {
	t.Parallel()
	c := newClusterProcess(t)
	c.add()
	c.add()
	conn := c.connect()
	var d client.Destination
	require.Eventually(t, func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		status, err := conn.ClusterStatus(ctx)
		if err != nil || len(status.Voters) != 5 {
			return false
		}
		d, err = conn.CreateDestination(ctx, client.Destination{Name: "last", Kind: wire.Topic, Settings: client.Settings{Partitions: 1, Replicas: 3}})
		return err == nil
	}, startTimeout, 20*time.Millisecond)
	leader := leaderOf(t, conn, "last")
	var others []uint32 // of the replicas, the leader first
	for _, r := range d.Partitions[0].Replicas {
		others = append(others, r.Node)
	}
	i := slices.Index(others, leader)
	others[0], others[i] = others[i], others[0]
	survivor := others[2]
	producer, err := conn.Producer(t.Context(), "last", client.DeliveryTimeout(killDelivery))
	require.NoError(t, err)
	send := func(value string) uint64 {
		receipt, err := producer.Send(t.Context(), &client.Record{Value: []byte(value)})
		require.NoError(t, err)
		return receipt.Offset
	}
	for range 100 {
		send("before")
	}
	require.Eventually(t, func() bool { // the survivor has them all; then it misses some
		ends, err := conn.Offsets(t.Context(), "last", client.Latest())
		return err == nil && ends[0] == 100
	}, startTimeout, 10*time.Millisecond)
	c.nodes[survivor-1].kill()
	var acknowledged uint64
	for range 20 {
		acknowledged = send("without the survivor")
	}
	c.nodes[leader-1].kill()
	c.nodes[others[1]-1].kill()
	c.nodes[survivor-1].start()

	direct := c.nodes[survivor-1].connect()
	var found client.PartitionRecovery
	require.Eventually(t, func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		found, err = direct.RecoverPartition(ctx, "last", 0, 0, false)
		return err == nil
	}, startTimeout, 50*time.Millisecond, "%v", err)
	require.Equal(t, survivor, found.Node)
	require.LessOrEqual(t, found.Next, uint64(100), "it has none of those that it missed")
	require.Greater(t, acknowledged, found.Next)
	_, err = conn.RecoverPartition(t.Context(), "last", 0, 0, true)
	require.NoError(t, err)
	require.Equal(t, found.Next, send("after"), "the next record gets the first offset that was lost")
	// Those that were given up come back, with more than the partition has.
	for _, n := range others[:2] {
		c.nodes[n-1].start()
		_ = c.nodes[n-1].connect().Close()
	}
	for range 10 {
		send("after")
	}
	require.Eventually(t, func() bool {
		d, err = conn.Destination(t.Context(), "last")
		if err != nil || len(d.Partitions[0].Replicas) != 3 {
			return false
		}
		return !slices.ContainsFunc(d.Partitions[0].Replicas, func(r client.Replica) bool { return r.State != wire.ReplicaActive })
	}, startTimeout, 50*time.Millisecond, "others are made from it")
	reader, err := conn.Reader(t.Context(), "last", client.FromOffset(0))
	require.NoError(t, err)
	for want := range found.Next + 11 {
		ctx, cancel := context.WithTimeout(t.Context(), startTimeout)
		r, err := reader.Next(ctx)
		cancel()
		require.NoError(t, err)
		require.Equal(t, want, r.Offset)
		value := "before"
		if want >= found.Next {
			value = "after"
		}
		require.Equal(t, value, string(r.Value))
	}
	require.NoError(t, reader.Close())
}
