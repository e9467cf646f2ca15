package replication

import (
	"github.com/lockstepmq/lockstep/log"
	"github.com/lockstepmq/lockstep/wire"
)

// Transport carries the messages of a group to other nodes. Its methods are
// called in the owner's turn; they do not block and do not call back into the
// group. What they cannot take is dropped: raft repeats what matters.
type Transport interface {
	// Send takes a message for a node. The transport owns m from here on and calls
	// m.Done once, when its bytes are written, copied or dropped; m may come from a
	// pool, so nothing of it is used after that.
	Send(node uint32, m *Message)
	// Beat takes a heartbeat. Those without a context are gathered until the end of
	// the tick. The Context of b is not changed any more.
	Beat(node uint32, b Heartbeat)
}

// Buffers is the memory that the data of received entries lives in. Its methods
// are called on any goroutine.
type Buffers interface {
	// Get returns a buffer of length n that the caller owns, or nil if the budget has
	// no room: then the message is dropped, which bounds what a follower holds.
	Get(n int) []byte
	// Put gives a buffer back that nothing refers to.
	Put(data []byte)
}

// Feed reads entries that are not in memory: for followers that lag, and for the
// replica itself what it was opened with and could not apply yet.
type Feed interface {
	// Read reads entries of l from first on, at most maxBytes of data but at least one,
	// on another goroutine: it calls log.Log.Stored. to is the replica that they are
	// for, and node the one it is on, 0 if that is not known: if to is the reader's own,
	// it does nothing else until it has them. The result reaches the group by
	// Inbox.PutFed. It returns false, and does nothing, if too many reads are on their
	// way already: the group asks again.
	Read(l *log.Log, to uint64, node uint32, first wire.Index, maxBytes int) bool
}
