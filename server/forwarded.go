package server

import "github.com/lockstepmq/lockstep/wire"

// forwarded turns a connection to the port for other nodes into the session of a
// client that another node forwards, from the bytes behind the preface on.
func (c *peerConn) forwarded() {
	released := c.release
	c.release = func() {}
	e := c.set.engine
	s := newSession(e, c.remote, released)
	s.forwarded, s.phase = true, phaseHello
	c.phase = peerClosed
	c.loop.wheel.remove(&c.timer)
	c.set.counters.open.Add(-1)
	e.counters.peers.Add(-1)
	c.conn.SetContext(s)
	s.open(c.loop, c.conn)
	c.successor = s
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
