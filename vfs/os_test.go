package vfs

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"strings"
	"testing"

	"github.com/lockstepmq/lockstep/internal/invariants"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// mountTmpfs mounts a tmpfs of the given size, or skips the test.
func mountTmpfs(t *testing.T, size string) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("none", dir, "tmpfs", 0, "size="+size); err != nil {
		t.Skipf("cannot mount a tmpfs here (root is needed): %v", err)
	}
	unmountAfter(t, dir)
	return dir
}

// mountExt4 makes an ext4 of 64 MiB in a file and mounts it, or skips the test.
func mountExt4(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	disk, mnt := filepath.Join(dir, "disk"), filepath.Join(dir, "mnt")
	require.NoError(t, os.Mkdir(mnt, 0o700))
	require.NoError(t, os.WriteFile(disk, nil, 0o600))
	require.NoError(t, os.Truncate(disk, 64<<20))
	if out, err := exec.Command("mkfs.ext4", "-q", "-F", disk).CombinedOutput(); err != nil {
		t.Skipf("cannot make an ext4: %v %s", err, out)
	}
	if out, err := exec.Command("mount", "-o", "loop", disk, mnt).CombinedOutput(); err != nil {
		t.Skipf("cannot mount a loop device here (root is needed): %v %s", err, out)
	}
	unmountAfter(t, mnt)
	return mnt
}

// unmountAfter unmounts when the test ends, also when it failed with files open:
// then the mount goes with the last of them.
func unmountAfter(t *testing.T, dir string) {
	t.Cleanup(func() { require.NoError(t, unix.Unmount(dir, unix.MNT_DETACH)) })
}

func blocksOf(t *testing.T, name string) int64 {
	t.Helper()
	var st unix.Stat_t
	require.NoError(t, unix.Stat(name, &st))
	return st.Blocks * 512
}

// RELIABILITY: an ext4 that fills up during fallocate keeps what it got.
func TestAllocationThatFailsIsCutBack(t *testing.T) {
	for kind, mount := range map[string]func(*testing.T) string{
		"tmpfs": func(t *testing.T) string { return mountTmpfs(t, "32m") },
		"ext4":  mountExt4,
	} {
		t.Run(kind, func(t *testing.T) {
			dir := mount(t)
			name := filepath.Join(dir, "a")
			f := create(t, OS(), name, "abc")
			require.NoError(t, f.Allocate(0, 1<<20))
			require.NoError(t, f.Sync())
			before, total, err := OS().Space(dir)
			require.NoError(t, err)
			require.Less(t, total, int64(70<<20))

			err = f.Allocate(1<<20, 256<<20)
			require.ErrorIs(t, err, ErrNoSpace)
			require.ErrorIs(t, err, unix.ENOSPC)
			require.Contains(t, err.Error(), name)
			size, err := f.Size()
			require.NoError(t, err)
			require.EqualValues(t, 1<<20, size)
			require.LessOrEqual(t, blocksOf(t, name), int64(1<<20+64<<10))
			after, _, err := OS().Space(dir)
			require.NoError(t, err)
			require.InDelta(t, before, after, 1<<20, "the space is free again")

			// What was allocated before can be written with the device full.
			filler := create(t, OS(), filepath.Join(dir, "filler"), "")
			for step := int64(8 << 20); step >= 4096; {
				size, err := filler.Size()
				require.NoError(t, err)
				if filler.Allocate(size, step) != nil {
					step /= 2
				}
			}
			_, err = f.WriteAt(make([]byte, 1<<20), 0)
			require.NoError(t, err)
			require.NoError(t, f.ZeroRange(0, 1<<20))
			require.NoError(t, f.Sync())
			_, err = filler.WriteAt(make([]byte, 1<<20), 128<<20)
			require.ErrorIs(t, err, ErrNoSpace)
			closeAll(t, f, filler)
		})
	}
}

func TestPunchedSpaceIsFreeAndZeroedSpaceIsKept(t *testing.T) {
	for kind, mount := range map[string]func(*testing.T) string{
		"tmpfs": func(t *testing.T) string { return mountTmpfs(t, "32m") },
		"ext4":  mountExt4,
	} {
		t.Run(kind, func(t *testing.T) {
			name := filepath.Join(mount(t), "a")
			f := create(t, OS(), name, strings.Repeat("x", 4<<20))
			require.NoError(t, f.Sync())
			full := blocksOf(t, name)
			require.GreaterOrEqual(t, full, int64(4<<20))
			require.NoError(t, f.ZeroRange(0, 4<<20))
			require.NoError(t, f.Sync())
			require.GreaterOrEqual(t, blocksOf(t, name), int64(4<<20))
			require.NoError(t, f.PunchHole(1<<20, 2<<20))
			require.LessOrEqual(t, blocksOf(t, name), full-2<<20)
			closeAll(t, f)
		})
	}
}

func TestFilesAreForTheOwnerOnly(t *testing.T) {
	dir := t.TempDir()
	closeAll(t, create(t, OS(), filepath.Join(dir, "a"), ""))
	require.NoError(t, OS().MkdirAll(filepath.Join(dir, "d", "e")))
	l, err := OS().Lock(filepath.Join(dir, "lock"))
	require.NoError(t, err)
	closeAll(t, l)
	for name, mode := range map[string]os.FileMode{"a": 0o600, "lock": 0o600, "d": 0o700 | os.ModeDir, "d/e": 0o700 | os.ModeDir} {
		info, err := os.Stat(filepath.Join(dir, name))
		require.NoError(t, err)
		require.Equal(t, mode, info.Mode(), name)
	}
}

// pwritev is a fake kernel that writes into disk and plays a script of results.
type pwritev struct {
	disk   []byte
	script []func(batch [][]byte) (int, error)
	calls  int
}

func (p *pwritev) call(batch [][]byte, off int64) (int, error) {
	all := 0
	for _, b := range batch {
		all += len(b)
	}
	n, err := all, error(nil)
	if p.calls < len(p.script) {
		n, err = p.script[p.calls](batch)
	}
	p.calls++
	left := n
	for _, b := range batch {
		b = b[:min(len(b), left)]
		copy(p.disk[off:], b)
		off += int64(len(b))
		left -= len(b)
	}
	return n, err
}

func TestWritevGoesOnAfterShortWrites(t *testing.T) {
	short := func(n int) func([][]byte) (int, error) {
		return func([][]byte) (int, error) { return n, nil }
	}
	fails := func(err error) func([][]byte) (int, error) {
		return func([][]byte) (int, error) { return 0, err }
	}
	for _, c := range []struct {
		name   string
		script []func([][]byte) (int, error)
		want   string
		err    error
		calls  int
	}{
		{"whole", nil, "..abcdefghij", nil, 1},
		{"in the middle of a slice", []func([][]byte) (int, error){short(4)}, "..abcdefghij", nil, 2},
		{"at a border", []func([][]byte) (int, error){short(3)}, "..abcdefghij", nil, 2},
		{"byte by byte", []func([][]byte) (int, error){short(1), short(1), short(1), short(1), short(1)}, "..abcdefghij", nil, 6},
		{"interrupted", []func([][]byte) (int, error){fails(unix.EINTR), short(5), fails(unix.EINTR)}, "..abcdefghij", nil, 4},
		{"error at once", []func([][]byte) (int, error){fails(unix.EIO)}, "............", unix.EIO, 1},
		{"error after a part", []func([][]byte) (int, error){short(5), fails(unix.ENOSPC)}, "..abcde.....", unix.ENOSPC, 2},
		{"nothing written", []func([][]byte) (int, error){short(2), short(0)}, "..ab........", io.ErrShortWrite, 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			k := &pwritev{disk: []byte(strings.Repeat(".", 12)), script: c.script}
			bufs := [][]byte{[]byte("abc"), {}, []byte("defg"), []byte("hij"), nil}
			err := writevFull(bufs, 2, k.call)
			require.ErrorIs(t, err, c.err)
			require.Equal(t, c.want, string(k.disk))
			require.Equal(t, c.calls, k.calls)
			require.Equal(t, [][]byte{[]byte("abc"), {}, []byte("defg"), []byte("hij"), nil}, bufs, "the list is the caller's")
		})
	}
}

func TestWritevPassesAtMost1024Slices(t *testing.T) {
	var batches []int
	bufs := make([][]byte, 2500)
	for i := range bufs {
		bufs[i] = []byte{byte(i)}
	}
	require.NoError(t, writevFull(bufs, 0, func(batch [][]byte, off int64) (int, error) {
		batches = append(batches, len(batch))
		return len(batch), nil
	}))
	require.Equal(t, []int{1024, 1024, 452}, batches)
}

func TestFullDeviceErrors(t *testing.T) {
	for errno, full := range map[unix.Errno]bool{unix.ENOSPC: true, unix.EDQUOT: true, unix.EIO: false} {
		err := pathError("allocate", "/a", fmt.Errorf("[0, 5): %w", errno))
		require.Equal(t, full, errors.Is(err, ErrNoSpace), errno)
		require.ErrorIs(t, err, errno)
	}
	require.Equal(t, "allocate /a: no space left on device", pathError("allocate", "/a", unix.ENOSPC).Error())
	require.NoError(t, pathError("allocate", "/a", nil))
}

// touch reads one byte and reports a fault as false instead of dying.
func touch(p *byte) (ok bool) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() { ok = recover() == nil }()
	return *p != 0 || true
}

func TestEndedMappingsKeepTheirAddresses(t *testing.T) {
	if !invariants.Enabled {
		t.Skip("release builds unmap at once")
	}
	everywhere(t, func(t *testing.T, fsys FS, dir string) {
		f := create(t, fsys, filepath.Join(dir, "a"), strings.Repeat("x", 4096))
		m, err := f.Map(4096)
		require.NoError(t, err)
		stale := m.Bytes()
		require.True(t, touch(&stale[0]))
		require.NoError(t, m.Unmap())
		require.False(t, touch(&stale[0]), "a late touch faults")
		again, err := f.Map(4096)
		require.NoError(t, err)
		require.NotSame(t, &stale[0], &again.Bytes()[0])
		require.False(t, touch(&stale[0]), "and never shows another mapping")
		require.NoError(t, again.Unmap())
		closeAll(t, f)
	})
}

func TestReservedAddressesAreBounded(t *testing.T) {
	page := int(pageSize)
	r := reservation{maxBytes: 10 * uintptr(page), maxRanges: 3}
	sizes := []int{1, 2, 3, 4, 5, 11, 2}
	// Ranges kept after each step, oldest first, in pages.
	want := [][]uintptr{{1}, {1, 2}, {1, 2, 3}, {2, 3, 4}, {4, 5}, nil, {2}}
	for i, pages := range sizes {
		addr, err := unix.MmapPtr(-1, 0, nil, uintptr(pages*page), unix.PROT_READ, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
		require.NoError(t, err)
		require.NoError(t, r.take(addr, uintptr(pages*page)))
		var got []uintptr
		sum := uintptr(0)
		for _, kept := range r.ranges {
			got = append(got, kept.length/uintptr(page))
			sum += kept.length
		}
		require.Equal(t, want[i], got, "after step %d", i)
		require.Equal(t, sum, r.bytes)
	}
	require.NoError(t, unix.MunmapPtr(r.ranges[0].addr, r.ranges[0].length))
}

// holdLock is the name in the environment that turns the test binary into a
// process that holds a lock until it is killed.
const holdLock = "LOCKSTEP_TEST_HOLD_LOCK"

func TestMain(m *testing.M) {
	if name := os.Getenv(holdLock); name != "" {
		if _, err := OS().Lock(name); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println("locked")
		select {}
	}
	os.Exit(m.Run())
}

func TestLockDiesWithItsProcess(t *testing.T) {
	name := filepath.Join(t.TempDir(), "lock")
	holder := exec.Command(os.Args[0])
	holder.Env = append(os.Environ(), holdLock+"="+name)
	out, err := holder.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, holder.Start())
	line, err := bufio.NewReader(out).ReadString('\n')
	require.NoError(t, err)
	require.Equal(t, "locked\n", line)

	held, process, err := Locked(name)
	require.NoError(t, err)
	require.True(t, held)
	require.Equal(t, holder.Process.Pid, process)
	_, err = OS().Lock(name)
	require.ErrorIs(t, err, ErrLocked)
	require.Equal(t, fmt.Sprintf("lock %s: locked by another process (process %d)", name, holder.Process.Pid), err.Error())

	require.NoError(t, holder.Process.Kill())
	require.Error(t, holder.Wait())
	held, _, err = Locked(name)
	require.NoError(t, err)
	require.False(t, held, "what is left is only a file")
	l, err := OS().Lock(name)
	require.NoError(t, err)
	pid, err := os.ReadFile(name)
	require.NoError(t, err)
	require.Equal(t, fmt.Sprintf("%d\n", os.Getpid()), string(pid))
	closeAll(t, l)
}

func TestLockedMakesNoLock(t *testing.T) {
	name := filepath.Join(t.TempDir(), "lock")
	held, _, err := Locked(name)
	require.NoError(t, err)
	require.False(t, held)
	require.NoFileExists(t, name)
}

func TestBootIDIsTheKernels(t *testing.T) {
	id, err := BootID()
	require.NoError(t, err)
	raw, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	require.NoError(t, err)
	require.Equal(t, strings.TrimSuffix(string(raw), "\n"), id)
	require.Len(t, id, 36)
}

func TestKindsByMagic(t *testing.T) {
	for magic, want := range map[int64]Kind{
		unix.EXT4_SUPER_MAGIC:      {Name: "ext4", Magic: unix.EXT4_SUPER_MAGIC},
		unix.XFS_SUPER_MAGIC:       {Name: "xfs", Magic: unix.XFS_SUPER_MAGIC},
		unix.TMPFS_MAGIC:           {Name: "tmpfs", Magic: unix.TMPFS_MAGIC, Volatile: true},
		unix.NFS_SUPER_MAGIC:       {Name: "nfs", Magic: unix.NFS_SUPER_MAGIC, Network: true},
		unix.FUSE_SUPER_MAGIC:      {Name: "fuse", Magic: unix.FUSE_SUPER_MAGIC, FUSE: true},
		unix.BTRFS_SUPER_MAGIC:     {Name: "btrfs", Magic: unix.BTRFS_SUPER_MAGIC},
		int64(int32(-0x6edc97c2)):  {Name: "btrfs", Magic: unix.BTRFS_SUPER_MAGIC}, // as a 32-bit field shows it
		unix.OVERLAYFS_SUPER_MAGIC: {Name: "overlay", Magic: unix.OVERLAYFS_SUPER_MAGIC},
		unix.V9FS_MAGIC:            {Name: "9p", Magic: unix.V9FS_MAGIC, Network: true},
		unix.SMB2_SUPER_MAGIC:      {Name: "smb2", Magic: unix.SMB2_SUPER_MAGIC, Network: true},
		0x12345:                    {Name: "0x12345", Magic: 0x12345},
		unix.CEPH_SUPER_MAGIC:      {Name: "ceph", Magic: unix.CEPH_SUPER_MAGIC, Network: true},
		unix.F2FS_SUPER_MAGIC:      {Name: "f2fs", Magic: unix.F2FS_SUPER_MAGIC},
		unix.OCFS2_SUPER_MAGIC:     {Name: "ocfs2", Magic: unix.OCFS2_SUPER_MAGIC, Network: true},
	} {
		require.Equal(t, want, kindOfMagic(magic))
	}
	_, err := KindOf("/missing")
	require.Error(t, err)
	k, err := KindOf(t.TempDir())
	require.NoError(t, err)
	require.NotEmpty(t, k.Name)
	k, err = KindOf(mountTmpfs(t, "1m"))
	require.NoError(t, err)
	require.Equal(t, "tmpfs", k.Name)
}
