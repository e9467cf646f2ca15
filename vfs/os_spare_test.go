package vfs

import (
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// RELIABILITY F24: what has been renamed has to be made durable, whether the process
// has a descriptor left or not.
func TestF24_DirectoriesAreSyncedWithoutADescriptor(t *testing.T) {
	fs, dir := OS(), t.TempDir()
	require.NoError(t, fs.SyncDir(dir))
	var before unix.Rlimit
	require.NoError(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &before))
	lowered := before
	lowered.Cur = 64
	require.NoError(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &lowered))
	defer func() { require.NoError(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &before)) }()
	var taken []*os.File
	defer func() {
		for _, f := range taken {
			require.NoError(t, f.Close())
		}
	}()
	for {
		f, err := os.Open("/dev/null")
		if errors.Is(err, unix.EMFILE) {
			break
		}
		require.NoError(t, err)
		taken = append(taken, f)
	}
	_, err := fs.Open(filepath.Join(dir, "x"))
	require.ErrorIs(t, err, unix.EMFILE)
	for range 3 {
		var all sync.WaitGroup
		failed := make(chan error, spareDescriptors)
		for range spareDescriptors {
			all.Go(func() { failed <- fs.SyncDir(dir) })
		}
		all.Wait()
		for range spareDescriptors {
			require.NoError(t, <-failed)
		}
	}
	require.ErrorIs(t, fs.SyncDir(filepath.Join(dir, "missing")), unix.ENOENT)
	require.NoError(t, fs.SyncDir(dir))
	require.Len(t, spare().free, spareDescriptors, "all are spare again")
}
