package vfs

import (
	"errors"
	"fmt"
)

// ErrCrashed is returned by every handle from before a simulated crash, for
// ever, and by everything between a StopAt or PanicAt point and the Crash.
var ErrCrashed = errors.New("simulated machine has crashed")

// Op names an operation of a Simulated file system to its injection hook.
type Op uint8

// The operations. Close, Unmap, Bytes and Size ask nothing of the disk: they
// are neither counted nor offered to the hook.
const (
	OpCreate   Op = iota + 1 // FS.Create
	OpOpen                   // FS.Open, FS.OpenReadOnly
	OpRename                 // FS.Rename, with the old name
	OpRemove                 // FS.Remove, FS.RemoveAll
	OpMkdir                  // FS.MkdirAll
	OpList                   // FS.List
	OpStat                   // FS.Stat
	OpSyncDir                // FS.SyncDir
	OpSpace                  // FS.Space
	OpLock                   // FS.Lock
	OpRead                   // File.ReadAt
	OpWrite                  // File.WriteAt, File.WritevAt
	OpSync                   // File.Sync
	OpAllocate               // File.Allocate
	OpTruncate               // File.Truncate
	OpZero                   // File.ZeroRange
	OpPunch                  // File.PunchHole
	OpMap                    // File.Map
	OpPopulate               // Mapping.Populate
)

var opNames = [...]string{
	OpCreate: "create", OpOpen: "open", OpRename: "rename", OpRemove: "remove", OpMkdir: "mkdir",
	OpList: "list", OpStat: "stat", OpSyncDir: "sync directory", OpSpace: "statfs", OpLock: "lock",
	OpRead: "read", OpWrite: "write", OpSync: "sync", OpAllocate: "allocate", OpTruncate: "truncate",
	OpZero: "zero", OpPunch: "punch", OpMap: "map", OpPopulate: "populate",
}

func (o Op) String() string {
	if int(o) < len(opNames) && opNames[o] != "" {
		return opNames[o]
	}
	return fmt.Sprintf("operation %d", uint8(o))
}

// TornWrite, returned by an injection hook for OpWrite, lets the first N bytes
// of the write reach the file before the caller gets the error. For any other
// operation it is an error like all the others.
type TornWrite struct {
	// N is how many bytes are written; more than the write has means all of it.
	N int64
	// Err is the cause that errors.Is finds in what the caller gets; may be nil.
	Err error
}

func (t TornWrite) Error() string {
	if t.Err == nil {
		return fmt.Sprintf("write torn after %d bytes", t.N)
	}
	return fmt.Sprintf("write torn after %d bytes: %v", t.N, t.Err)
}

func (t TornWrite) Unwrap() error { return t.Err }
