package client

import (
	"context"
	"errors"
	"fmt"

	"github.com/lockstepmq/lockstep/wire"
)

// Sentinels of the client's own conditions. Codes that a broker answers are
// wire.Error values instead: errors.Is(err, wire.CodeUnknownDestination).
var (
	// ErrClosed is returned by every call on a Conn, Producer or Reader that
	// was closed.
	ErrClosed = errors.New("closed")
	// ErrDisconnected is returned when the connection to the broker broke
	// while an answer was outstanding, and at once by every call after a loss
	// when reconnecting is off.
	ErrDisconnected = errors.New("connection to the broker lost")
	// ErrKeepalive is the cause of a disconnect when the broker sent nothing,
	// not even the answer to a ping, for the detection time.
	ErrKeepalive = errors.New("broker stopped answering")
	// ErrProtocol is the cause of a disconnect when the peer sent bytes that
	// are not this protocol.
	ErrProtocol = errors.New("peer does not speak the protocol")
	// ErrVersion is returned by Connect when client and broker share no
	// protocol version.
	ErrVersion = errors.New("no common protocol version")
	// ErrClusterMismatch is returned when a broker belongs to another cluster
	// than the one this Conn first spoke to.
	ErrClusterMismatch = errors.New("broker belongs to another cluster")
	// ErrRecordTooLarge is returned for a record above the destination's
	// record limit or the frame limit. Nothing was sent.
	ErrRecordTooLarge = errors.New("record is too large")
	// ErrDeliveryTimeout is the cause of a SendError when a record found no
	// answer within the producer's delivery timeout.
	ErrDeliveryTimeout = errors.New("delivery timeout")
	// ErrFenced is returned to one who was the holder of something and is not any more:
	// by a named producer after another process opened the same name, which then cannot
	// be used again, by a named Consumer after another one took its name, and for the outcome
	// of a record that a Consumer has lost.
	ErrFenced = errors.New("fenced by a newer holder")
	// ErrCorrupt is returned by a Reader when bytes do not match their checksum
	// or their layout; the error is a *CorruptError.
	ErrCorrupt = errors.New("corrupt data")
	// ErrUnknownPartition is returned for a partition number that the
	// destination does not have.
	ErrUnknownPartition = errors.New("destination has no such partition")
	// ErrOutsideAlias is the cause of a SendError of a record whose key or publisher belongs
	// to a partition that the producer's alias does not have.
	ErrOutsideAlias = errors.New("the record belongs to a partition outside of the alias")
	// ErrAliasMoved has ended what was opened by an alias that stands for something else now,
	// or for nothing, and does not follow it: see Alias. It can be opened again.
	ErrAliasMoved = errors.New("the alias has moved")
	// ErrNoFunction is returned by a call that was given nil in the place of the function
	// that it has to call.
	ErrNoFunction = errors.New("a function has to be given, not nil")
	// ErrAddress is returned by Connect for a server list it cannot use.
	ErrAddress = errors.New("invalid server address")
)

// Outcome says what is known about a record whose Send failed.
type Outcome uint8

const (
	// NotSent means that the record is in no partition and never will be: it
	// may be sent again without any risk of a duplicate.
	NotSent Outcome = 1
	// Unknown means that the record was written to a connection and no answer
	// came: it may or may not be stored.
	Unknown Outcome = 2
	// Applied means that the record is stored although the call failed.
	Applied Outcome = 3
)

func (o Outcome) String() string {
	switch o {
	case NotSent:
		return "not sent"
	case Unknown:
		return "outcome unknown"
	case Applied:
		return "applied"
	}
	return fmt.Sprintf("Outcome(%d)", uint8(o))
}

// SendError is the error of every failed Send, SendAsync and SendFunc.
type SendError struct {
	Outcome Outcome
	Err     error // the cause; never nil
}

func (e *SendError) Error() string { return e.Outcome.String() + ": " + e.Err.Error() }

func (e *SendError) Unwrap() error { return e.Err }

// OutOfRangeError is returned by a Reader whose position is outside of what
// the partition holds: retention removed the record, or the groups of a queue that were
// done with it, or the position never existed. It unwraps to the broker's wire.Error,
// whose detail says which.
type OutOfRangeError struct {
	Partition uint32
	Offset    uint64 // where the reader wanted to read
	Next      uint64 // if [Offset, Next) is gone: where reading can go on; else 0
	Err       error
}

func (e *OutOfRangeError) Error() string {
	return fmt.Sprintf("partition %d: offset %d: %v", e.Partition, e.Offset, e.Err)
}

func (e *OutOfRangeError) Unwrap() error { return e.Err }

// DataLostError is returned by a Reader that had read further than what its
// partition still holds: at most the records in [Next, Offset) are lost, because the
// broker's machine stopped, or its disk failed, before they were on the disk, or
// because they were in memory only. Others may stand at these offsets by now: to
// read on, open a Reader of this partition with FromOffset(Next). It unwraps to the
// broker's wire.Error, with CodeDataLost or CodePartitionReset.
type DataLostError struct {
	Partition uint32
	Offset    uint64 // of the record that was to be read next
	Next      uint64 // where reading can go on
	Err       error
}

func (e *DataLostError) Error() string {
	return fmt.Sprintf("partition %d: offset %d: %v", e.Partition, e.Offset, e.Err)
}

func (e *DataLostError) Unwrap() error { return e.Err }

// CorruptError reports damage, in received data or on the broker's disk, with the
// place in the partition where it was found. It matches ErrCorrupt and its cause.
// To read what follows, open a Reader of this partition with FromOffset(Next).
type CorruptError struct {
	Partition uint32
	Offset    uint64 // of the first record that cannot be read
	Next      uint64 // where intact records may follow; 0 if that is not known
	Err       error
}

func (e *CorruptError) Error() string {
	return fmt.Sprintf("partition %d: offset %d: %v: %v", e.Partition, e.Offset, ErrCorrupt, e.Err)
}

func (e *CorruptError) Unwrap() []error { return []error{ErrCorrupt, e.Err} }

// errUnreachable says that the leader of a partition is not found.
func errUnreachable(destination string, partition uint32) error {
	return wire.Errorf(wire.CodeUnavailable, "the leader of %q partition %d is not known or does not answer", destination, partition)
}

// openError is the last error of a request of which an attempt before may have had its effect.
type openError struct{ error }

func (e *openError) Unwrap() error { return e.error }

func wasOpen(err error) bool {
	var e *openError
	return errors.As(err, &e)
}

// overdueError is ctx's error after answers that promised better ones. It unwraps to ctx's
// error only: what was asked last may have been carried out.
type overdueError struct{ err, last error }

func (e *overdueError) Error() string { return fmt.Sprintf("%v; the last answer: %v", e.err, e.last) }
func (e *overdueError) Unwrap() error { return e.err }

// LastAnswer is what a broker said before the time was over.
func (e *overdueError) LastAnswer() error { return e.last }

// overdue is err, with the last answer if ctx is done.
func overdue(ctx context.Context, err, last error) error {
	if ctx.Err() == nil || last == nil {
		return err
	}
	return &overdueError{err, last}
}

// codeOf is the broker's error code behind err, or 0 if err is not an answer.
func codeOf(err error) wire.ErrorCode {
	var e *wire.Error
	if errors.As(err, &e) {
		return e.Code
	}
	return 0
}

// lostError is what everybody gets who waits for a session that died. It matches ErrDisconnected and the cause.
type lostError struct{ cause error }

func (e *lostError) Error() string {
	if errors.Is(e.cause, ErrDisconnected) {
		return e.cause.Error()
	}
	return fmt.Sprintf("%v: %v", ErrDisconnected, e.cause)
}

func (e *lostError) Unwrap() []error { return []error{ErrDisconnected, e.cause} }

// transient reports whether a request that was answered with the code is worth
// repeating without asking anybody.
func transient(code wire.ErrorCode) bool { return code.Retriable() && !full(code) }

// full reports whether the code says that there is no room for new records, which may
// last.
func full(code wire.ErrorCode) bool {
	return code == wire.CodeDiskFull || code == wire.CodeMemoryFull || code == wire.CodePartitionFull || code == wire.CodeSendDisabled
}

// sessionLost reports whether err is the death of a session that the Conn will
// replace.
func sessionLost(err error, o *connOptions) bool {
	return o.reconnect && errors.Is(err, ErrDisconnected) && !errors.Is(err, ErrClosed)
}
