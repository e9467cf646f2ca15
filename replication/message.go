package replication

import (
	"go.etcd.io/raft/v3/raftpb"

	"github.com/lockstepmq/lockstep/log"
	"github.com/lockstepmq/lockstep/wire"
)

// Message is what one replica of a group says to another, heartbeats excepted.
// From and To are replica IDs; Entries carry their data by reference.
type Message struct {
	raftpb.Message
	// Meta says that the IDs are those of the metadata group, which has its own.
	Meta bool
	// Chain is the header CRC of the entry that the entries follow, Message.Index,
	// as the sender has it. MsgApp only; ChainKnown is false if the sender no longer
	// has it in memory.
	Chain      uint32
	ChainKnown bool
	// Checks holds for each entry the CRC32C of its body continued over its prefix
	// (see EntryCheck).
	Checks []uint32
	// Snapshot comes with MsgSnap only, which has no Data of its own.
	Snapshot *SnapshotOffer
	// Uncertain says that the sender may have lost what it acknowledged earlier
	// (RULES L5).
	Uncertain bool

	pins []*log.Pin
}

// Done says that nothing reads the data of the entries through this message any
// more: it is written, copied or dropped. Whoever got the message from a Group
// calls it once, on any goroutine.
func (m *Message) Done() {
	for _, p := range m.pins {
		p.Free()
	}
	m.pins = nil
}

// SnapshotOffer describes a checkpoint that a follower may fetch which is behind the start
// of its leader's log, or lacks entries that the leader has erased; and where it goes on.
type SnapshotOffer struct {
	From, To  uint64     // replica IDs
	Term      wire.Term  // of the leader that offers
	Start     log.Link   // before the first entry of the leader's log, or what the erased run leaves
	Over      *log.Link  // before the run, of which index, term and chain count; nil if nothing is erased
	Applied   wire.Index // of the checkpoint: Start.Index ≤ Applied
	Size      int64      // bytes of the checkpoint's file
	CRC       uint32     // CRC32C of all of them
	ConfState []byte     // of the checkpoint, a raftpb.ConfState
}

// Heartbeat is a heartbeat of one group, or the answer to one. Those of all groups
// between two nodes travel together.
type Heartbeat struct {
	Meta     bool
	To, From uint64
	Term     wire.Term
	Commit   wire.Index
	Response bool
	// Quiet says that the leader sleeps at Commit, Wake that one side does not.
	Quiet, Wake bool
	// Context belongs to a read of the leader (ReadIndex), at most 24 bytes.
	Context []byte
}

// PeerEventKind says what a group is told about another node.
type PeerEventKind uint8

const (
	// PeerUnreachable is a lost connection: messages on it may be lost.
	PeerUnreachable PeerEventKind = iota + 1
	// PeerDown is a node that is known or supposed to be dead.
	PeerDown
	// PeerUp is a node that can be talked to again.
	PeerUp
	// PeerResumed says that this process itself stood still for longer than ticks
	// can say.
	PeerResumed
)

// PeerEvent is something that happened to another node.
type PeerEvent struct {
	Kind PeerEventKind
	Node uint32
	// Refused says that the node's port was closed: its process is dead for certain.
	Refused bool
}
