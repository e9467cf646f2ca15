package server

import (
	"errors"

	"github.com/lockstepmq/lockstep/wire"
)

// nodesShare is the part of the places at the port for other nodes, one over it, that
// forwarded sessions leave to these: clients must not keep nodes apart by their number.
const nodesShare = 8

var errForwardedMany = errors.New("other nodes forward as many sessions here as they may")

// forwarded turns a connection to the port for other nodes into the session of a
// client that another node forwards, from the bytes behind the preface on. It reports
// false if there are too many.
func (c *peerConn) forwarded() bool {
	e := c.set.engine
	places := e.peerLimits.Connections
	if e.counters.forwardedIn.Add(1) > int64(places-places/nodesShare) {
		e.counters.forwardedIn.Add(-1)
		return false
	}
	released := c.release
	c.release = func() {}
	s := newSession(e, c.remote, released)
	s.forwarded, s.phase = true, phaseHello
	c.phase = peerClosed
	c.loop.wheel.remove(&c.timer)
	c.set.counters.open.Add(-1)
	e.counters.peers.Add(-1)
	c.conn.SetContext(s)
	s.open(c.loop, c.conn)
	c.successor = s
	return true
}

// helloForwarded handles the first frame of a forwarded session.
func (s *session) helloForwarded(h wire.Header, body []byte) {
	var m wire.ForwardRequest
	if err := m.Parse(body); err != nil {
		s.fail(h.Opcode, h.ID, err)
		return
	}
	if (m.Hops == 0 || m.Hops > wire.MaxForwardHops) && !s.engine.endless.Load() {
		s.fail(h.Opcode, h.ID, errCircle(m.Hops))
		return
	}
	s.hops = m.Hops
	if m.ClientAddress != "" {
		s.remote = m.ClientAddress[:min(len(m.ClientAddress), wire.MaxNameBytes)] + " by way of " + s.remote
	}
	s.greet(h, &m.HelloRequest)
}

// errCircle says that a request has been forwarded as often as may be.
func errCircle(hops uint8) error {
	return wire.Errorf(wire.CodeNotLeader, "forwarded in a circle: %d nodes, one after the other, took another for the leader; ask again shortly", hops)
}
