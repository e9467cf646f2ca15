package server

import (
	"github.com/lockstepmq/lockstep/replication"
	"github.com/lockstepmq/lockstep/wire"
)

// peerHandler is what the connections to other nodes hand their frames to. Its
// methods do not block; Message, Beat, Leaders and Request are called on an event
// loop, and what they are given refers to the frame: it is valid during the call only.
type peerHandler interface {
	// Message takes a message for a replica of this node. It returns whose owner needs
	// a turn for it, nil if nobody's.
	Message(m *replication.Message) kicker
	// Beat takes one heartbeat for a replica of this node, like Message.
	Beat(h replication.Heartbeat) kicker
	// Leaders takes what a node says about the partitions it leads. Without any it has said
	// all since it was connected.
	Leaders(node uint32, leaders []wire.PeerLeader)
	// Request takes a request of a node. reply is called once, on any goroutine, and
	// does not block; body belongs to the connection from then on. With a code other
	// than OK it is a text for people.
	Request(node uint32, op wire.PeerOp, body []byte, reply func(code wire.ErrorCode, body []byte))
	// Node says that the connection to a node was lost, that it can be talked to, or
	// that it is dead. It is called on any goroutine.
	Node(e replication.PeerEvent)
	// Dropped says that a message of a replica of this node to another node was
	// dropped because too much waits for that node. It is called within the replica's
	// own turn.
	Dropped(meta bool, replica uint64, node uint32)
}

// dispatch hands a frame of an open connection on. Loop only.
func (c *peerConn) dispatch(h wire.PeerHeader, body []byte) error {
	p := c.set
	switch h.Kind {
	case wire.PeerKindAppend, wire.PeerKindRaft, wire.PeerKindSnapshot:
		return c.decoder.Decode(h.Kind, body, func(m *replication.Message) {
			k := p.handler.Message(m)
			if k == nil {
				p.counters.undelivered.Add(1)
				return
			}
			n := 0
			for i := range m.Entries {
				n += len(m.Entries[i].Data)
			}
			c.loop.kick(k, n)
		})
	case wire.PeerKindHeartbeats:
		if err := c.beats.Parse(body); err != nil {
			return err
		}
		c.node.heard(c, &c.beats)
		for i := range c.beats.Beats {
			if k := p.handler.Beat(replication.HeartbeatOf(&c.beats.Beats[i])); k != nil {
				c.loop.kick(k, 0)
			} else {
				p.counters.undelivered.Add(1)
			}
		}
		return nil
	case wire.PeerKindLeaders:
		if err := c.leaders.Parse(body); err != nil {
			return err
		}
		c.node.leads(c, c.leaders.Leaders)
		return nil
	case wire.PeerKindRequest:
		var m wire.PeerRequest
		if err := m.Parse(body); err != nil {
			return err
		}
		c.requested(h.Number, &m)
		return nil
	case wire.PeerKindResponse:
		var m wire.PeerResponse
		if err := m.Parse(body); err != nil {
			return err
		}
		c.responded(h.Number, &m)
		return nil
	case wire.PeerKindChunk:
		c.chunk(h.Number, body)
		return nil
	case wire.PeerKindAck:
		var m wire.PeerAck
		if err := m.Parse(body); err != nil {
			return err
		}
		c.acked(h.Number, m.Offset)
		return nil
	case wire.PeerKindHello, wire.PeerKindWelcome, wire.PeerKindRefused:
		return wire.Errorf(wire.CodeMalformed, "peer %v after the handshake", h.Kind)
	}
	p.counters.unknown.Add(1) // of a newer broker
	return nil
}
