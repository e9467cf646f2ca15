package server

import "github.com/lockstepmq/lockstep/wire"

// tempOpen creates a temporary queue on this node, or takes one up again wherever it is.
func (s *session) tempOpen(h wire.Header, body []byte) error {
	var m wire.TemporaryOpenRequest
	if err := m.Parse(body); err != nil {
		return err
	}
	if !s.begin(h, inFlight{bytes: len(body)}) {
		return nil
	}
	if err := s.openTemporary(h, &m, body); err != nil {
		s.finish(h.ID, nil, err)
	}
	return nil
}

// openTemporary answers a request, or hands it on, or returns an error.
func (s *session) openTemporary(h wire.Header, m *wire.TemporaryOpenRequest, body []byte) error {
	limits, self := &s.engine.limits, s.engine.backend.Info().NodeID
	if open := len(s.links) + len(s.forwardedLinks) + len(s.groupLinks) + len(s.temporary); open+s.opening >= limits.Links {
		return wire.Errorf(wire.CodeTooMany, "%d links are open; one connection may have %d", open, limits.Links)
	}
	if len(s.temporary) >= limits.TemporaryQueues {
		return wire.Errorf(wire.CodeTooMany, "the connection has %d temporary queues, as many as one may have: one serves any number of requests", len(s.temporary))
	}
	if m.Token == [16]byte{} {
		return wire.Errorf(wire.CodeInvalidRequest, "a temporary queue needs a token")
	}
	link := s.nextLink + 1
	var q *temporaryQueue
	var err error
	if m.Name == "" {
		q, err = s.engine.temporaries.create(self, m, s, link)
	} else {
		var node uint32
		if node, err = s.temporaryNode(m.Name); err == nil && node != self {
			s.forwardTo(node, h, nil, body, true)
			return nil
		}
		if err == nil {
			q, err = s.engine.temporaries.find(m.Name)
		}
		if err == nil {
			err = q.take(m, s, link)
		}
	}
	if err != nil {
		return err
	}
	s.nextLink = link
	if s.temporary == nil {
		s.temporary = make(map[uint32]*temporaryQueue)
	}
	s.temporary[link] = q
	s.finish(h.ID, &wire.TemporaryOpenResponse{Link: link, Name: q.name, GraceMs: uint32(q.grace.Milliseconds())}, nil)
	q.begin(s, link)
	return nil
}

// temporaryNode is the node on which a temporary queue lives. A queue whose node is dead, or
// no member any more, died with it. Errors: INVALID_NAME, DESTINATION_GONE, NOT_LEADER in a
// circle.
func (s *session) temporaryNode(name string) (uint32, error) {
	node, err := wire.ParseTemporaryName(name)
	switch self := s.engine.backend.Info().NodeID; {
	case err != nil || node == self:
	case !s.engine.backend.Alive(node):
		err = errTemporaryGone(name)
	case s.hops >= wire.MaxForwardHops:
		err = errCircle(s.hops)
	}
	return node, err
}

// tempTaken notes what the consumer of a temporary queue has. One whose link is not there
// was sent before the client heard of its end.
func (s *session) tempTaken(h wire.Header, body []byte) error {
	var m wire.TemporaryTaken
	if err := m.Parse(body); err != nil {
		return err
	}
	if q := s.temporary[h.ID]; q != nil {
		q.taken(s, h.ID, m.Next)
		s.checkFull()
	} else if k := s.forwardedLinks[h.ID]; k != nil {
		k.up.control(h.Opcode, k.remote, body)
	}
	return nil
}

// tempSend puts a batch into a temporary queue, wherever it is.
func (s *session) tempSend(h wire.Header, body []byte) error {
	var m wire.TemporarySendRequest
	if err := m.Parse(body); err != nil {
		return err
	}
	if !s.begin(h, inFlight{bytes: len(body)}) {
		return nil
	}
	node, err := s.temporaryNode(m.Name)
	if err == nil && node != s.engine.backend.Info().NodeID {
		s.forwardTo(node, h, nil, body, true)
		return nil
	}
	var base wire.Offset
	if err == nil {
		base, err = s.engine.temporaries.append(m.Name, m.Batch)
	}
	s.finish(h.ID, &wire.TemporarySendResponse{Base: base}, err)
	return nil
}

// closeTemporary ends a queue because its client is done with it, whatever its grace.
func (s *session) closeTemporary(link uint32, q *temporaryQueue) {
	delete(s.temporary, link)
	q.leave(s, link, s.loop.now, true)
	s.linkClosed(link, wire.ErrorBody{})
}

// leaveTemporary gives up the temporary queues of a connection that ends.
func (s *session) leaveTemporary() {
	for link, q := range s.temporary {
		delete(s.temporary, link)
		q.leave(s, link, s.loop.now, false)
	}
}
