package log

import (
	"errors"
	"fmt"

	"github.com/lockstepmq/lockstep/segment"
	"github.com/lockstepmq/lockstep/wire"
)

var (
	// ErrNotReady is returned by Reserve when space must first be taken by a job,
	// which has been submitted: the owner tries again in the turn of its Done.
	// Append returns it, without any effect, when Reserve was not asked.
	ErrNotReady = errors.New("log space is not ready yet")
	// ErrTailFull is returned by Reserve for records while the entries kept in
	// memory exceed Options.TailBytes. It is an ErrNotReady that ends with Release.
	ErrTailFull = fmt.Errorf("%w: the in-memory tail is full", ErrNotReady)
	// ErrDiskFull is returned by Reserve when the free space is below the
	// store's minimum (records only) or used up (everything). It ends by itself
	// when RefreshSpace sees space again. It is never a fence.
	ErrDiskFull = errors.New("disk is full")
	// ErrMemoryFull is the ErrDiskFull of a memory store, and matches it: its budget is
	// used up.
	ErrMemoryFull error = memoryFull{}
	// ErrFenced is matched by the error of every operation on a log after its
	// first failed write or sync, also after a restart.
	ErrFenced = errors.New("log is fenced after a storage error")
	// ErrTooNew is matched by the error for a file that a newer build wrote. It
	// is not corruption: nothing was changed.
	ErrTooNew = errors.New("written by a newer version")
	// ErrMissing is returned by Open when Options.Existing is set and there is
	// no such log: a lost replica is reported, never created empty.
	ErrMissing = errors.New("log does not exist")
	// ErrIdentity is returned by Open for a directory that belongs to another
	// partition, incarnation or replica than Options says.
	ErrIdentity = errors.New("log belongs to another replica")
	// ErrCold is returned by View when the bytes may not be in memory: call
	// Populate where blocking is allowed, then View again.
	ErrCold = errors.New("range may not be in memory")
	// ErrClosed is returned by operations on a closed log or store.
	ErrClosed = errors.New("log is closed")
	// ErrOffsetOutOfRange is matched by *OutOfRangeError.
	ErrOffsetOutOfRange = errors.New("offset out of range")
	// ErrLocked is returned by OpenStore when another broker uses the directory.
	ErrLocked = errors.New("data directory is in use by another broker")
	// ErrCheckpointTooLarge is the warning of a log whose state machine has outgrown
	// StoreOptions.CheckpointBytes. The log goes on with its older checkpoints and keeps
	// all behind them; Store.CheckpointsFailed counts it.
	ErrCheckpointTooLarge = errors.New("checkpoint is too large")
	// ErrCorrupt is matched by every *CorruptionError.
	ErrCorrupt = errors.New("corrupt")
)

type memoryFull struct{}

func (memoryFull) Error() string        { return "memory budget is used up" }
func (memoryFull) Is(target error) bool { return target == ErrDiskFull }

// CorruptionError says that something which was durable is damaged. The file is
// left as it is.
type CorruptionError struct {
	File     string // with its directory
	Position int64  // bytes from the start of the file
	Cause    error
}

func (e *CorruptionError) Error() string {
	return fmt.Sprintf("%s: position %d: corrupt: %v", e.File, e.Position, e.Cause)
}

func (e *CorruptionError) Unwrap() error { return e.Cause }

// Is makes errors.Is(err, ErrCorrupt) true.
func (e *CorruptionError) Is(target error) bool { return target == ErrCorrupt }

// FencedError is the state of a log after its first failed write or sync.
type FencedError struct {
	Dir   string
	Cause error // nil if the fence comes from an earlier run
}

func (e *FencedError) Error() string {
	if e.Cause == nil {
		return fmt.Sprintf("log %s: %v in an earlier run", e.Dir, ErrFenced)
	}
	return fmt.Sprintf("log %s: %v: %v", e.Dir, ErrFenced, e.Cause)
}

func (e *FencedError) Unwrap() error { return e.Cause }

// Is makes errors.Is(err, ErrFenced) true.
func (e *FencedError) Is(target error) bool { return target == ErrFenced }

// OutOfRangeError says which offsets a log can answer: [Start, Next].
type OutOfRangeError struct {
	Offset wire.Offset // what was asked for
	Start  wire.Offset // first offset that is still readable
	Next   wire.Offset // the high watermark
}

func (e *OutOfRangeError) Error() string {
	return fmt.Sprintf("offset %d: %v: readable are [%d, %d)", e.Offset, ErrOffsetOutOfRange, e.Start, e.Next)
}

// Is makes errors.Is(err, ErrOffsetOutOfRange) true.
func (e *OutOfRangeError) Is(target error) bool { return target == ErrOffsetOutOfRange }

// ErasedError is what reading records returns that were acknowledged and whose space was
// given back while an older record stays: those in [Base, Next) are gone.
type ErasedError = segment.ErasedError

// errNoEntry is wrapped when an entry is not in the log.
var errNoEntry = errors.New("not in the log")
