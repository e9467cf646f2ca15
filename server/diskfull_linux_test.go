package server

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/wire"
)

// smallDisk mounts an ext4 of the given size until the test ends.
func smallDisk(t testing.TB, bytes int64) string {
	t.Helper()
	dir := t.TempDir()
	image, mount := filepath.Join(dir, "image"), filepath.Join(dir, "mnt")
	require.NoError(t, os.WriteFile(image, nil, 0o600))
	require.NoError(t, os.Truncate(image, bytes))
	require.NoError(t, os.Mkdir(mount, 0o700))
	for _, c := range [][]string{{"mkfs.ext4", "-q", "-m", "0", image}, {"mount", "-o", "loop", image, mount}} {
		if out, err := exec.Command(c[0], c[1:]...).CombinedOutput(); err != nil {
			t.Skipf("a loop device cannot be mounted here: %v: %v: %s", c, err, out)
		}
	}
	t.Cleanup(func() {
		out, err := exec.Command("umount", "--lazy", mount).CombinedOutput() // a test that failed may have files open
		require.NoError(t, err, "%s", out)
	})
	return mount
}

// ballast fills a file system to its last block.
func ballast(name string) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	zeros := make([]byte, 1<<20)
	for size := len(zeros); size > 0; {
		if _, err = f.Write(zeros[:size]); err != nil {
			if !errors.Is(err, syscall.ENOSPC) {
				return errors.Join(err, f.Close())
			}
			size /= 2
		}
	}
	return errors.Join(f.Sync(), f.Close())
}

// RELIABILITY F12 on a real file system: restarts on a disk without a free block,
// the reserve used up, and space that returns.
func TestF12_ARestartOnAFullFileSystem(t *testing.T) {
	mount := smallDisk(t, 128<<20)
	start := func() *Server {
		s, err := Start(context.Background(), Config{
			DataDir: filepath.Join(mount, "data"), Listen: "127.0.0.1:0", HTTP: "off", MinFreeBytes: 1 << 20,
		})
		require.NoError(t, err)
		return s
	}
	s := start()
	createOrders(t, s.broker)
	require.NoError(t, createNamed(s.broker, "events"))
	require.Equal(t, wire.CodeOK, produce(t, s.broker, 0))
	require.Equal(t, wire.CodeOK, produce(t, s.broker, 1))

	require.NoError(t, ballast(filepath.Join(mount, "ballast.1")))
	eventually(t, "DISK_FULL", func() bool { return produce(t, s.broker, 0) == wire.CodeDiskFull })
	require.NoError(t, os.Truncate(filepath.Join(mount, "data", "reserve"), 0))
	require.NoError(t, ballast(filepath.Join(mount, "ballast.2")))
	next := orders(t, s.broker, 0).records.Watermark().Next
	require.NoError(t, s.Close(context.Background()))

	for range 3 {
		s = start()
		eventually(t, "the partitions lead", func() bool {
			return orders(t, s.broker, 0).Leading() && orders(t, s.broker, 1).Leading()
		})
		require.Equal(t, next, orders(t, s.broker, 0).records.Watermark().Next)
		require.Equal(t, wire.CodeDiskFull, produce(t, s.broker, 0))
		require.NoError(t, s.Close(context.Background()))
	}
	s = start()
	require.NoError(t, deleteNamed(s.broker, "events"))
	require.NoError(t, errors.Join(os.Remove(filepath.Join(mount, "ballast.1")), os.Remove(filepath.Join(mount, "ballast.2"))))
	eventually(t, "writes resume", func() bool { return produce(t, s.broker, 0) == wire.CodeOK })
	require.NoError(t, s.Close(context.Background()))
}
