package server

import (
	"github.com/lockstepmq/lockstep/replication"
	"github.com/lockstepmq/lockstep/wire"
)

// peerHandler is what the connections to other nodes hand their frames to. Its
// methods are called on an event loop and do not block; what they are given refers
// to the frame and is valid during the call only.
type peerHandler interface {
	// Message takes a message for a replica of this node.
	Message(m *replication.Message)
	// Beat takes one heartbeat for a replica of this node.
	Beat(h replication.Heartbeat)
	// Leaders takes what a node says about the partitions it leads.
	Leaders(node uint32, leaders []wire.PeerLeader)
	// Request takes a request of a node. reply is called once, on any goroutine.
	Request(node uint32, op wire.PeerOp, body []byte, reply func(code wire.ErrorCode, body []byte))
	// Node says that a node can be talked to, or that it is dead: refused says for
	// certain.
	Node(node uint32, up, refused bool)
}
