package server

import (
	"github.com/lockstepmq/lockstep/cluster"
	"github.com/lockstepmq/lockstep/log"
	"github.com/lockstepmq/lockstep/partition"
	"github.com/lockstepmq/lockstep/wire"
)

// The session layer sees the broker through these interfaces and nothing else,
// so that it can be tested against fakes.

// backend is the broker as a session sees it. Its methods are called on event
// loops: they take no lock that is held across I/O.
type backend interface {
	// View is the metadata as of now. It is immutable.
	View() *cluster.View
	// Route says where requests for a partition go. Errors are a *wire.Error:
	// UNKNOWN_PARTITION, PARTITION_FENCED, UNAVAILABLE. An answer holds until the
	// engine hears of other metadata or leaders.
	Route(destination [16]byte, number uint32) (route, error)
	// Admin carries out a *wire.CreateRequest, *wire.AlterRequest,
	// *wire.DeleteRequest or *wire.InitProducerRequest. reply is called once, on
	// any goroutine, after the change is committed, and does not block.
	Admin(request wire.Message, reply func(response wire.Message, err error))
	// Describe is a destination as clients see it, with the state of its partitions.
	Describe(d *cluster.Destination) wire.DestinationInfo
	// Alive reports whether a node is this one, or one that can be talked to.
	Alive(node uint32) bool
	// Info is who we are.
	Info() serverInfo
}

// serverInfo is what HELLO tells a client.
type serverInfo struct {
	ClusterID string
	NodeID    uint32
	Version   string
}

// replica is one partition as a session sees it.
type replica interface {
	// Append copies a batch into the mailbox. If it returns nil the outcome goes to
	// a.Receiver, on any goroutine. Errors: partition.ErrMailboxFull, or any that
	// codeOf knows.
	Append(a partition.Append) error
	// Group brings something to the groups of the partition. If it returns an error the
	// input was not taken. The caller sees to it that the owner takes a turn.
	Group(in partition.Input) error
	// Kick gives the owner a turn: on this goroutine if inline is set and nobody
	// else has it, else on a worker.
	Kick(inline bool)
	// Log is what links read from.
	Log() partitionLog
	// Park wakes w once, on any goroutine, as soon as the watermark has moved off
	// w.position() or the partition has stopped serving. It returns false, and does
	// not wake, if that is so already.
	Park(w waiter) (parked bool)
	// Unpark takes w back. It may be woken all the same if it races with a wake-up.
	Unpark(w waiter)
	// ReportDamage has the frame that holds o read again. It does not block.
	ReportDamage(o wire.Offset)
	// Blocking runs f on a worker that may wait for the disk.
	Blocking(f func())
	// Confirm calls then, once, when this node is confirmed to have led the partition at
	// some time since the call: what is readable then is all that was committed before it
	// (RULES R8). Otherwise it says RETRY. then may be called before Confirm returns, or
	// on any goroutine, and does not block.
	Confirm(then func(error))
	// Epoch is the term of the leader, 0 if none is known.
	Epoch() uint32
	// Leading reports whether this node leads the partition and has applied the
	// first entry of its term.
	Leading() bool
	// State says whether the partition serves.
	State() wire.PartitionState
	// batchHeaders are the headers of batches that were verified, see runCut.
	batchHeaders() *batchHeaders
	// info describes the partition to clients.
	info() wire.PartitionInfo
}

// partitionLog is the reading side of *log.Log: any goroutine, and only View and
// Watermark do not block.
type partitionLog interface {
	Watermark() *log.Watermark
	View(p log.Position, maxBytes int) (*log.View, error)
	Populate(p log.Position, n int) error
	ReadAt(p log.Position, buf []byte) (n int, next log.Position, err error)
	Locate(o wire.Offset) (log.Position, wire.Offset, error)
	LocateTime(ms int64) (wire.Offset, error)
}

// waiter waits at the watermark of a partition. Wake is called at most once for
// each Park and must not block.
type waiter interface {
	Wake()
	position() log.Position
}
