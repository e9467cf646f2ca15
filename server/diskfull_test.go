package server

import (
	"errors"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/vfs"
	"github.com/lockstepmq/lockstep/wire"
)

// fillUp leaves not one free block, and nothing of the reserve, as another process
// does that fills the disk after the reserve was given back.
func fillUp(t *testing.T, disk *vfs.Simulated) {
	t.Helper()
	f, err := disk.Open("data/reserve")
	require.NoError(t, err)
	require.NoError(t, f.Truncate(0))
	require.NoError(t, f.Close())
	free, total, err := disk.Space("data")
	require.NoError(t, err)
	disk.SetSpace(total - free)
	free, _, err = disk.Space("data")
	require.NoError(t, err)
	require.Zero(t, free)
}

// exhaust writes records and changes settings until what is allocated is used up.
func exhaust(t *testing.T, b *broker) {
	t.Helper()
	for produce(t, b, 0) != wire.CodeDiskFull {
	}
	for produce(t, b, 1) != wire.CodeDiskFull {
	}
	for !errors.Is(administer(b, &wire.AlterRequest{Name: "orders", Kind: wire.Queue}), wire.CodeDiskFull) {
	}
}

// RELIABILITY F12: a restart with a full disk works, also when the reserve is used
// up: reads and deletes are served, records refused, and writes resume by themselves.
func TestF12_ARestartOnADiskWithoutAFreeBlock(t *testing.T) {
	disk := vfs.NewSimulated(1)
	disk.SetSpace(1 << 30)
	b := testBroker(t, disk)
	createOrders(t, b)
	require.NoError(t, createNamed(b, "events"))
	require.Equal(t, wire.CodeOK, produce(t, b, 0))
	require.Equal(t, wire.CodeOK, produce(t, b, 1))
	fillUp(t, disk)
	exhaust(t, b)
	next := orders(t, b, 0).records.Watermark().Next
	require.NoError(t, b.close())

	for round := range 20 { // each takes some of the room that was left
		b = testBroker(t, disk)
		eventually(t, "the partitions lead", func() bool { return orders(t, b, 0).Leading() && orders(t, b, 1).Leading() })
		require.Equal(t, next, orders(t, b, 0).records.Watermark().Next, "reads are served")
		require.Equal(t, wire.CodeDiskFull, produce(t, b, 0), "restart %d", round)
		if round%2 == 0 {
			require.NoError(t, b.close())
			continue
		}
		disk.CrashKeepAll()
		_ = b.close()
	}
	b = testBroker(t, disk)
	defer func() { require.NoError(t, b.close()) }()
	require.NoError(t, deleteNamed(b, "events"), "deletes are served")
	disk.SetSpace(1 << 30)
	eventually(t, "writes resume", func() bool { return produce(t, b, 0) == wire.CodeOK })
	require.NoError(t, createNamed(b, "more"))
}

// Restarts without end use up even the room that was left for them. Then the broker
// still starts and serves reads, and elects when there is space.
func TestF12_ARestartWithoutRoomToElect(t *testing.T) {
	disk := vfs.NewSimulated(1)
	disk.SetSpace(1 << 30)
	b := testBroker(t, disk)
	createOrders(t, b)
	require.Equal(t, wire.CodeOK, produce(t, b, 0))
	require.Equal(t, wire.CodeOK, produce(t, b, 1))
	fillUp(t, disk)
	exhaust(t, b)
	next := orders(t, b, 0).records.Watermark().Next
	require.NoError(t, b.close())
	for round := 0; ; round++ {
		require.Less(t, round, 1000, "the room is never used up")
		b = testBroker(t, disk)
		require.Equal(t, next, orders(t, b, 0).records.Watermark().Next, "reads are served")
		if b.meta.stalled.Load() {
			break
		}
		require.NoError(t, b.close())
	}
	defer func() { require.NoError(t, b.close()) }()
	require.Equal(t, wire.PartitionStarting, orders(t, b, 0).State())
	require.Equal(t, wire.CodeDiskFull, produce(t, b, 0))
	require.ErrorIs(t, deleteNamed(b, "orders"), wire.CodeDiskFull)
	disk.SetSpace(1 << 30)
	eventually(t, "it leads without a producer", func() bool { return orders(t, b, 0).Leading() && orders(t, b, 1).Leading() })
	require.Equal(t, wire.CodeOK, produce(t, b, 0))
	require.NoError(t, deleteNamed(b, "orders"))
}

// A delete needs no free block: it is what makes some.
func TestF12_DeletesAreServedOnADiskWithoutAFreeBlock(t *testing.T) {
	disk := vfs.NewSimulated(1)
	disk.SetSpace(1 << 30)
	b := testBroker(t, disk)
	createOrders(t, b)
	require.NoError(t, createNamed(b, "events"))
	require.Equal(t, wire.CodeOK, produce(t, b, 0))
	require.NoError(t, b.close())
	fillUp(t, disk)
	b = testBroker(t, disk)
	defer func() { require.NoError(t, b.close()) }()
	require.NoError(t, deleteNamed(b, "orders"))
	eventually(t, "its directories are gone", func() bool { return len(b.View().Deleted) == 0 })
	names, err := disk.List("data/partitions")
	require.NoError(t, err)
	require.Len(t, names, 2)
}

// Nobody sends anything any more: what could not elect for want of space does so
// when there is some.
func TestF12_APartitionThatLackedSpaceElectsByItself(t *testing.T) {
	disk := vfs.NewSimulated(1)
	b := testBroker(t, disk)
	defer func() { require.NoError(t, b.close()) }()
	createOrders(t, b)
	var full atomic.Bool
	full.Store(true)
	disk.Inject(func(op vfs.Op, name string) error {
		if full.Load() && op == vfs.OpAllocate && strings.HasPrefix(name, "data/partitions/") {
			return errors.Join(vfs.ErrNoSpace, syscall.ENOSPC)
		}
		return nil
	})
	require.Equal(t, wire.CodeDiskFull, produce(t, b, 0))
	require.Zero(t, orders(t, b, 0).Epoch())
	full.Store(false)
	eventually(t, "it leads", func() bool { return orders(t, b, 0).Epoch() > 0 })
}
