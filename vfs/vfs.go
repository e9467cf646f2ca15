// Package vfs is the file system as the storage packages see it: few calls,
// each with a stated promise about durability, so that the real disk, anonymous
// kernel memory and a simulated disk that crashes can stand in for each other.
//
// OS is the disk. Memory keeps files in anonymous kernel memory (memfd) for
// destinations that never touch a disk. Simulated keeps two images of every
// file, what the process sees and what a power cut leaves, and injects errors.
//
// Nothing here retries: an fsync that failed once is not asked again, because
// the page cache then claims bytes that the disk does not have.
package vfs

import (
	"errors"
	"io"
	"io/fs"
)

// ErrNoSpace is wrapped by every error that means the device, or the budget of
// a memory file system, is full (ENOSPC, EDQUOT). Only Allocate and operations
// that create names return it in normal running: space is taken by allocation,
// never by a write. Besides them, whatever reaches into a hole can: a write
// or ZeroRange over punched space, a write that grows the file.
var ErrNoSpace = errors.New("no space left on device")

// ErrLocked is returned by Lock when another process holds the lock.
var ErrLocked = errors.New("locked by another process")

// FS is a file system. Paths use '/' and are relative to nothing: callers pass
// what they were given joined with their own names. All methods may be called
// from any goroutine and may block. Errors are *fs.PathError: they name the
// operation and the path and answer errors.Is for fs.ErrExist, fs.ErrNotExist,
// fs.ErrClosed and ErrNoSpace.
type FS interface {
	// Create makes a new file for reading and writing, mode 0600. It fails with
	// fs.ErrExist if the name is taken. The name is durable after SyncDir.
	Create(name string) (File, error)
	// Open opens an existing file for reading and writing.
	Open(name string) (File, error)
	// OpenReadOnly opens an existing file for reading.
	OpenReadOnly(name string) (File, error)
	// Rename replaces newname atomically: after a crash, it has happened or not.
	// It is durable after SyncDir of both parents. It may move a directory.
	Rename(oldname, newname string) error
	// Remove unlinks a file or an empty directory. It is durable after SyncDir.
	Remove(name string) error
	// RemoveAll removes a tree; a missing one is no error. It is durable after
	// SyncDir of the parent; before, a crash may leave any part of the tree.
	RemoveAll(name string) error
	// MkdirAll makes a directory and its parents, mode 0700. They are durable
	// after SyncDir of each parent.
	MkdirAll(dir string) error
	// List returns the names in a directory, sorted.
	List(dir string) ([]string, error)
	// Stat describes a file or directory.
	Stat(name string) (fs.FileInfo, error)
	// SyncDir makes creations, renames and removals in dir durable. On the disk it
	// works also while the process has no file descriptor left.
	SyncDir(dir string) error
	// Space returns the free and total bytes of the device that holds dir.
	Space(dir string) (free, total int64, err error)
	// Lock takes an exclusive lock that dies with the process, creating the
	// file if it is missing. It returns ErrLocked if another holder lives.
	Lock(name string) (io.Closer, error)
}

// File is an open file. Its methods may be called from several goroutines;
// callers keep writes to one range ordered themselves. A file whose name is removed
// or replaced lives on until its last handle is closed and its last mapping
// ended. Close beside other calls lets those finish; later ones return fs.ErrClosed.
type File interface {
	io.Closer
	// ReadAt reads like io.ReaderAt.
	ReadAt(p []byte, off int64) (int, error)
	// WriteAt writes like io.WriterAt.
	WriteAt(p []byte, off int64) (int, error)
	// WritevAt writes the slices one after the other at off, whole or with an error.
	WritevAt(bufs [][]byte, off int64) error
	// Sync makes the file's bytes and size durable (fdatasync). After an error
	// nothing that was written since the last success is known to be durable, and
	// nothing will make it so: a second Sync may succeed and mean nothing.
	Sync() error
	// Allocate takes space for [off, off+n) and grows the file over it. The range
	// reads as zeros where nothing was written. A failed call leaves the
	// file's size as it was and wraps ErrNoSpace if the device is full. To that
	// end it truncates, so nobody writes beyond the size while it runs.
	Allocate(off, n int64) error
	// Truncate sets the size; where it grows, the file reads as zeros and has no
	// space yet. It never shrinks a file that is mapped.
	Truncate(size int64) error
	// ZeroRange makes [off, off+n) read as zeros and keeps the space and the size.
	// Like a write, it is durable after Sync.
	ZeroRange(off, n int64) error
	// PunchHole gives the space of [off, off+n) back, in whole blocks; the range
	// reads as zeros and the size stays. Like a write, it is durable after Sync.
	PunchHole(off, n int64) error
	// Size returns the size in bytes.
	Size() (int64, error)
	// Map maps [0, n) read-only and shared, n > 0; n may lie beyond the size. Only
	// ranges below the size may be used, which may have grown since. The mapping
	// outlives the handle.
	Map(n int64) (Mapping, error)
}

// Mapping is a read-only shared mapping of a file. Its bytes are for the
// kernel (writev to a socket) only: Go code that touches a cold page stops the
// whole process at the next garbage collection. Whoever calls Unmap makes sure
// that no Populate runs and that nobody uses Bytes any more.
type Mapping interface {
	// Bytes is the mapped memory, valid until Unmap.
	Bytes() []byte
	// Populate reads [off, off+n) into memory. It may block on the disk and
	// returns an error where a touch would have been a SIGBUS.
	Populate(off, n int64) error
	// Unmap ends the mapping. In invariants builds the address range stays
	// reserved without access, so that a late touch faults and never reads
	// another file's bytes.
	Unmap() error
}
