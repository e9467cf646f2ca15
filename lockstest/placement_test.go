package lockstest_test

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/client"
	"github.com/lockstepmq/lockstep/lockstest"
	"github.com/lockstepmq/lockstep/wire"
)

// counts is how many records each partition has.
func counts(ctx context.Context, t *testing.T, conn *client.Conn, name string) []int {
	t.Helper()
	next, err := conn.Offsets(ctx, name, client.Latest())
	require.NoError(t, err)
	n := make([]int, len(next))
	for partition, offset := range next {
		n[partition] = int(offset)
	}
	return n
}

// sendSingly sends records without a key, each after the answer to the one before, to
// any partition, as a producer that is opened now.
func sendSingly(ctx context.Context, t *testing.T, conn *client.Conn, name string, n int, options ...client.ProducerOption) error {
	t.Helper()
	producer, err := conn.Producer(ctx, name, append([]client.ProducerOption{client.LocalPreference(false), client.WaitForSpace(false)}, options...)...)
	require.NoError(t, err)
	defer func() { _ = producer.Close(ctx) }()
	for range n {
		if _, err := producer.Send(ctx, &client.Record{Value: []byte("x")}); err != nil {
			return err
		}
	}
	return nil
}

func placementCluster(t *testing.T) (context.Context, *lockstest.Cluster, *client.Conn) {
	c := lockstest.StartCluster(t, 3)
	ctx, cancel := context.WithTimeout(context.Background(), 2*timeout)
	t.Cleanup(cancel)
	conn, err := client.Connect(ctx, c.URL())
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	return ctx, c, conn
}

func relaxed(partitions uint32) client.Settings {
	return client.Settings{Partitions: partitions, Replicas: 3, Sync: wire.SyncOS}
}

func TestPlacementOfPartitions(t *testing.T) {
	t.Parallel()
	ctx, _, conn := placementCluster(t)

	// R-MQC-5: weighted 3:1 gives 75/25.
	t.Run("R_MQC_5", func(t *testing.T) {
		create(ctx, t, conn, client.Destination{Name: "weighted", Kind: wire.Topic, Settings: relaxed(2)})
		require.NoError(t, conn.PlacePartition(ctx, "weighted", 1, client.Placement{Mask: wire.MaskWeight, Weight: 3}))
		require.NoError(t, sendSingly(ctx, t, conn, "weighted", 1000))
		n := counts(ctx, t, conn, "weighted")
		require.InDelta(t, 750, n[1], 20, "%v", n)
		require.Equal(t, 1000, n[0]+n[1])
	})

	// R-SIB-4, R-SIB-3: a partition that is closed to new records gets none, and its share
	// again once it is open.
	t.Run("R_SIB_4", func(t *testing.T) {
		create(ctx, t, conn, client.Destination{Name: "closed", Kind: wire.Topic, Settings: relaxed(3)})
		require.NoError(t, conn.PlacePartition(ctx, "closed", 0, client.Placement{Mask: wire.MaskSend, SendDisabled: true}))
		require.NoError(t, sendSingly(ctx, t, conn, "closed", 60, client.LocalPreference(true)))
		require.NoError(t, sendSingly(ctx, t, conn, "closed", 60))
		n := counts(ctx, t, conn, "closed")
		require.Zero(t, n[0])
		require.Equal(t, 120, n[1]+n[2])
		require.ErrorIs(t, sendSingly(ctx, t, conn, "closed", 1, client.Partition(0)), wire.CodeSendDisabled, "also from who insists")
		d, err := conn.Destination(ctx, "closed")
		require.NoError(t, err)
		require.Equal(t, wire.PartitionSendDisabled, d.Partitions[0].Flags)

		require.NoError(t, conn.PlacePartition(ctx, "closed", client.AllPartitions, client.Placement{Mask: wire.MaskSend}))
		require.NoError(t, sendSingly(ctx, t, conn, "closed", 60))
		require.Equal(t, 20, counts(ctx, t, conn, "closed")[0])
	})

	// R-SIB-25: records without a key go to partitions that have room; those that may go
	// to one only are refused, and so is everything when all are full.
	t.Run("R_SIB_25", func(t *testing.T) {
		settings := relaxed(3)
		settings.ThresholdRecords = 10
		create(ctx, t, conn, client.Destination{Name: "full", Kind: wire.Queue, Settings: settings})
		require.NoError(t, sendSingly(ctx, t, conn, "full", 10, client.Partition(1)))
		require.ErrorIs(t, sendSingly(ctx, t, conn, "full", 1, client.Partition(1)), wire.CodePartitionFull)
		require.NoError(t, sendSingly(ctx, t, conn, "full", 20, client.WaitForSpace(true)))
		require.Equal(t, []int{10, 10, 10}, counts(ctx, t, conn, "full"))
		require.ErrorIs(t, sendSingly(ctx, t, conn, "full", 1), wire.CodePartitionFull)

		// Whoever waits for room goes on once there is some.
		done := make(chan error, 1)
		go func() { done <- sendSingly(ctx, t, conn, "full", 3, client.WaitForSpace(true)) }()
		settings.ThresholdRecords, settings.ThresholdBytes = 0, 1<<30
		d, err := conn.AlterDestination(ctx, client.Destination{Name: "full", Kind: wire.Queue, Settings: settings}, wire.MaskThresholdRecords|wire.MaskThresholdBytes)
		require.NoError(t, err)
		require.Equal(t, []uint64{0, 1 << 30}, []uint64{d.Settings.ThresholdRecords, d.Settings.ThresholdBytes})
		require.NoError(t, <-done)
		n := counts(ctx, t, conn, "full")
		require.Equal(t, 33, n[0]+n[1]+n[2])
	})
}

// R-SIB-23: a preferred leader leads, loses the leadership with its node, and gets it
// back if the policy says so.
func TestR_SIB_23_LeadersComeBackAsThePolicySays(t *testing.T) {
	t.Parallel()
	ctx, c, conn := placementCluster(t)
	create(ctx, t, conn, client.Destination{Name: "orders", Kind: wire.Topic, Settings: relaxed(3)})
	prefer := func(partition uint32, policy wire.LeaderPolicy) {
		require.NoError(t, conn.PlacePartition(ctx, "orders", partition, client.Placement{
			Mask: wire.MaskPreferred | wire.MaskPolicy, Preferred: 3, Policy: policy,
		}))
	}
	leaders := func() (n [3]uint32) {
		if d, err := conn.Destination(ctx, "orders"); err == nil {
			n = [3]uint32{d.Partitions[0].Leader, d.Partitions[1].Leader, d.Partitions[2].Leader}
		}
		return n
	}
	await := func(what string, ok func([3]uint32) bool) {
		t.Helper()
		require.Eventually(t, func() bool { return ok(leaders()) }, timeout, 10*time.Millisecond, what)
	}
	prefer(0, wire.LeaderPinned)
	prefer(1, wire.LeaderFailback)
	prefer(2, wire.LeaderFailback)
	await("the preferred node leads", func(n [3]uint32) bool { return n == [3]uint32{3, 3, 3} })
	require.ErrorIs(t, conn.PlacePartition(ctx, "orders", 0, client.Placement{Mask: wire.MaskPreferred, Preferred: 9}), wire.CodeInvalidSetting)

	c.Stop(3)
	await("others lead", func(n [3]uint32) bool { return !slices.Contains(n[:], 3) && !slices.Contains(n[:], 0) })
	require.NoError(t, sendSingly(ctx, t, conn, "orders", 10))
	prefer(1, wire.LeaderAny)
	other := leaders()[1]
	c.Start(3)
	await("it gets back what is pinned, and what fails back", func(n [3]uint32) bool { return n[0] == 3 && n[2] == 3 })
	require.Equal(t, other, leaders()[1], "who leads goes on where the policy says any")
}
