package vfs

import (
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

const (
	// fileMode and directoryMode keep message data from other users of the machine.
	fileMode      = 0o600
	directoryMode = 0o700
)

// OS returns the machine's own file system. Nothing is cached: each call is one
// system call or a short loop of them.
func OS() FS { return osFS{populateRead: populateReadWorks()} }

// osFS implements FS on system calls.
type osFS struct {
	// populateRead is false on kernels before 5.14, which cannot report a
	// failed page read as an error of madvise; see mapping.Populate.
	populateRead bool
}

func (o osFS) Create(name string) (File, error) {
	return o.open("create", name, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL)
}

func (o osFS) Open(name string) (File, error) {
	return o.open("open", name, unix.O_RDWR)
}

func (o osFS) OpenReadOnly(name string) (File, error) {
	return o.open("open", name, unix.O_RDONLY)
}

func (o osFS) open(op, name string, flags int) (File, error) {
	d, err := openDescriptor(name, flags)
	if err != nil {
		return nil, pathError(op, name, err)
	}
	return &osFile{name: name, d: d, populateRead: o.populateRead}, nil
}

func (osFS) Rename(oldname, newname string) error {
	err := ignoringEINTR(func() error { return unix.Rename(oldname, newname) })
	if err != nil {
		return pathError("rename", oldname, fmt.Errorf("to %s: %w", newname, err))
	}
	return nil
}

func (osFS) Remove(name string) error {
	if err := os.Remove(name); err != nil {
		return repackage("remove", name, err)
	}
	return nil
}

func (osFS) RemoveAll(name string) error {
	if err := os.RemoveAll(name); err != nil {
		return repackage("remove all", name, err)
	}
	return nil
}

func (osFS) MkdirAll(dir string) error {
	if err := os.MkdirAll(dir, directoryMode); err != nil {
		return repackage("mkdir", dir, err)
	}
	return nil
}

func (osFS) List(dir string) ([]string, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, repackage("list", dir, err)
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	if err != nil {
		return nil, repackage("list", dir, err)
	}
	slices.Sort(names)
	return names, nil
}

func (osFS) Stat(name string) (fs.FileInfo, error) {
	info, err := os.Stat(name)
	if err != nil {
		return nil, repackage("stat", name, err)
	}
	return info, nil
}

// SyncDir uses fsync, not fdatasync: what counts in a directory is metadata.
func (osFS) SyncDir(dir string) error {
	if skipped() {
		return nil
	}
	return pathError("sync directory", dir, withDirectory(dir, func(fd int) error {
		return ignoringEINTR(func() error { return unix.Fsync(fd) })
	}))
}

// Space counts as free what an unprivileged process may take (f_bavail).
func (osFS) Space(dir string) (free, total int64, err error) {
	var st unix.Statfs_t
	if err := ignoringEINTR(func() error { return unix.Statfs(dir, &st) }); err != nil {
		return 0, 0, pathError("statfs", dir, err)
	}
	unit := int64(st.Frsize)
	if unit == 0 {
		unit = int64(st.Bsize)
	}
	return int64(st.Bavail) * unit, int64(st.Blocks) * unit, nil
}

// Lock uses flock, which belongs to the open file: a second Lock is refused
// within one process too, and the kernel lets go when the process dies. The
// holder's process ID is written into the file, for people; failing to write it
// (a full disk) is not a failure to lock. The file is never unlinked: between
// an unlink and a create two processes could lock two different files.
func (o osFS) Lock(name string) (io.Closer, error) {
	d, err := openDescriptor(name, unix.O_RDWR|unix.O_CREAT)
	if err != nil {
		return nil, pathError("lock", name, err)
	}
	err = ignoringEINTR(func() error { return unix.Flock(d.fd, unix.LOCK_EX|unix.LOCK_NB) })
	if err == unix.EWOULDBLOCK {
		err = ErrLocked
		if holder := lockHolder(d); holder != 0 {
			err = fmt.Errorf("%w (process %d)", ErrLocked, holder)
		}
		d.release()
		return nil, pathError("lock", name, err)
	}
	if err != nil {
		d.release()
		return nil, pathError("lock", name, err)
	}
	if unix.Ftruncate(d.fd, 0) == nil {
		_, _ = unix.Pwrite(d.fd, fmt.Appendf(nil, "%d\n", os.Getpid()), 0)
	}
	return &osLock{name: name, d: d}, nil
}

// Locked tells whether a process holds the lock that is called name, and which, 0
// if that cannot be told. It creates and writes nothing; a missing lock is not held.
// To find out it shares the lock for an instant, in which Lock fails with ErrLocked.
func Locked(name string) (held bool, process int, err error) {
	d, err := openDescriptor(name, unix.O_RDONLY)
	if err == unix.ENOENT {
		return false, 0, nil
	}
	if err != nil {
		return false, 0, pathError("look at lock", name, err)
	}
	defer d.release()
	err = ignoringEINTR(func() error { return unix.Flock(d.fd, unix.LOCK_SH|unix.LOCK_NB) })
	if err == unix.EWOULDBLOCK {
		return true, lockHolder(d), nil
	}
	return false, 0, pathError("look at lock", name, err)
}

// lockHolder reads the process ID that the holder of a lock left in its file, 0 if
// there is none.
func lockHolder(d *descriptor) int {
	var buf [32]byte
	n, err := unix.Pread(d.fd, buf[:], 0)
	if err != nil || n <= 0 {
		return 0
	}
	pid, err := strconv.Atoi(string(bytes.TrimSpace(buf[:n])))
	if err != nil {
		return 0
	}
	return pid
}

type osLock struct {
	name   string
	d      *descriptor
	closed atomic.Bool
}

// Close lets go of the lock by closing the file that carries it.
func (l *osLock) Close() error {
	if l.closed.Swap(true) {
		return pathError("unlock", l.name, fs.ErrClosed)
	}
	return pathError("unlock", l.name, l.d.release())
}

// repackage gives an error of package os our operation name and the
// ErrNoSpace mark; the path stays the one that package os was working on.
func repackage(op, name string, err error) error {
	if inner, ok := err.(*fs.PathError); ok {
		return pathError(op, inner.Path, inner.Err)
	}
	return pathError(op, name, err)
}
