package server

import (
	"errors"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/vfs"
	"github.com/lockstepmq/lockstep/wire"
)

// A partition that does not open because the disk is full opens by itself once
// there is space; one that is damaged does not.
func TestPartitionsThatLackedSpaceAreOpenedAgain(t *testing.T) {
	cfg, err := Config{DataDir: "data", MinFreeBytes: -1}.withDefaults()
	require.NoError(t, err)
	disk := vfs.NewSimulated(1)
	require.NoError(t, disk.MkdirAll("data"))
	cfg.fs, cfg.memoryFS, cfg.bootID = disk, vfs.NewMemory(func(int64) error { return nil }), "boot"
	b, err := openBroker(cfg)
	require.NoError(t, err)
	defer func() { require.NoError(t, b.close()) }()

	var full atomic.Bool
	full.Store(true)
	disk.Inject(func(op vfs.Op, name string) error {
		if full.Load() && op == vfs.OpCreate && strings.Contains(name, "manifest") && !strings.Contains(name, "meta") {
			return errors.Join(vfs.ErrNoSpace, syscall.ENOSPC)
		}
		return nil
	})
	created := make(chan error, 1)
	b.Admin(&wire.CreateRequest{Name: "orders", Kind: wire.Queue, Settings: wire.Settings{
		Partitions: 1, RetentionTimeMs: wire.Unlimited, RetentionBytes: wire.Unlimited,
	}}, func(_ wire.Message, err error) { created <- err })
	require.NoError(t, <-created)
	d, ok := b.View().Destination("orders")
	require.True(t, ok)
	_, err = b.Partition(d.ID, 0)
	require.ErrorIs(t, err, wire.CodePartitionFenced)
	full.Store(false)
	require.Eventually(t, func() bool {
		_, err := b.Partition(d.ID, 0)
		return err == nil
	}, 10*time.Second, 20*time.Millisecond)
}
