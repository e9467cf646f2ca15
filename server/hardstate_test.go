package server

import (
	"errors"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/log"
	"github.com/lockstepmq/lockstep/vfs"
	"github.com/lockstepmq/lockstep/wire"
)

// RELIABILITY F5: the votes of all partitions lie in one file. After its first failed
// sync all of them are fenced at once, and it is never synced again.
func TestF5_AFailedSyncOfTheHardStatesFencesTheWholeStoreAtOnce(t *testing.T) {
	disk := vfs.NewSimulated(1)
	b := testBroker(t, disk)
	createOrders(t, b)
	require.NoError(t, createNamed(b, "idle"))
	require.Equal(t, wire.CodeOK, produce(t, b, 0))
	require.Equal(t, wire.CodeOK, produce(t, b, 1))
	var failed, later atomic.Int64
	disk.Inject(func(op vfs.Op, name string) error {
		if !strings.HasSuffix(name, "/hardstate") || op != vfs.OpSync {
			return nil
		}
		if failed.Load() > 0 {
			later.Add(1)
			return nil
		}
		failed.Add(1)
		return syscall.EIO
	})
	// The mark of an idle partition goes there. All the others are idle by then.
	require.Equal(t, wire.CodeOK, produce(t, b, 0))
	eventually(t, "all partitions are fenced", func() bool {
		fenced := 0
		b.each(func(r *partitionReplica) {
			if r.State() == wire.PartitionFenced {
				fenced++
			}
		})
		return fenced == 4
	})
	require.Equal(t, wire.CodePartitionFenced, produce(t, b, 1))
	eventually(t, "metadata is fenced", func() bool { return errors.Is(createNamed(b, "more"), wire.CodeUnavailable) })
	require.ErrorIs(t, b.close(), log.ErrFenced)
	require.Equal(t, int64(1), failed.Load())
	require.Zero(t, later.Load(), "syncs after the one that failed")

	disk.Inject(nil)
	b = testBroker(t, disk)
	require.Equal(t, wire.Offset(2), orders(t, b, 0).records.Watermark().Next)
	require.Equal(t, wire.CodeOK, produce(t, b, 0))
	require.NoError(t, b.close())
}
