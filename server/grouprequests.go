package server

import (
	"slices"

	"github.com/lockstepmq/lockstep/partition"
	"github.com/lockstepmq/lockstep/wire"
)

// groupAttach begins the link of a session of a group. The answer comes when the group has
// listed the session.
func (s *session) groupAttach(h wire.Header, body []byte) error {
	m := new(wire.AttachRequest)
	if err := m.Parse(body); err != nil {
		return err
	}
	if !s.begin(h, inFlight{bytes: len(body)}) {
		return nil
	}
	t, err := s.groupHandle(m.Handle, m.Group, m.Name)
	switch {
	case err != nil:
		s.finish(h.ID, nil, err)
		return nil
	case t.replica == nil:
		s.forward(h, t, body, true)
		return nil
	case m.Session == [16]byte{}:
		s.finish(h.ID, nil, wire.Errorf(wire.CodeInvalidRequest, "the session has no ID"))
		return nil
	}
	if c := t.dest.Coordinates(); m.Generation > max(c.Generation, 1) {
		s.finish(h.ID, nil, wire.Errorf(wire.CodeRetry, "the binding is of a coordinator of generation %d, this node knows of %d: it is about to hear of it", m.Generation, c.Generation))
		return nil
	}
	m.Capacity, m.Bytes = min(m.Capacity, wire.MaxGroupCapacity), groupBytes(m.Bytes)
	k := s.newGroupLink(h, t)
	k.input(partition.Input{Kind: partition.InputAttach, Group: m.Group, Attach: m, Client: s.remote})
	return nil
}

// groupBind begins the link of a consumer to the coordinator of its group, the leader of
// one partition of the destination. The answer comes when the group has listed it.
func (s *session) groupBind(h wire.Header, body []byte) error {
	m := new(wire.BindRequest)
	if err := m.Parse(body); err != nil {
		return err
	}
	if !s.begin(h, inFlight{bytes: len(body)}) {
		return nil
	}
	t, err := s.groupHandle(m.Handle, m.Group, m.Name)
	if err == nil {
		err = coordinates(t.dest, t.key.partition)
	}
	switch {
	case err != nil:
		s.finish(h.ID, nil, err)
		return nil
	case t.replica == nil:
		s.forward(h, t, body, true)
		return nil
	case m.Session == [16]byte{}:
		s.finish(h.ID, nil, wire.Errorf(wire.CodeInvalidRequest, "the session has no ID"))
		return nil
	}
	k := s.newGroupLink(h, t)
	k.binds = true
	k.input(partition.Input{Kind: partition.InputBind, Group: m.Group, Bind: m})
	return nil
}

// newGroupLink opens a link for a request.
func (s *session) newGroupLink(h wire.Header, t *handle) *groupLink {
	s.nextLink++
	k := &groupLink{session: s, id: s.nextLink, request: h.ID, replica: t.replica, log: t.replica.Log()}
	if s.groupLinks == nil {
		s.groupLinks = make(map[uint32]*groupLink)
	}
	s.groupLinks[k.id] = k
	s.engine.counters.groupLinks.Add(1)
	return k
}

// groupBytes is how many bytes a session may hold that asks for n.
func groupBytes(n uint32) uint32 {
	if n == 0 {
		return wire.MaxGroupCapacityBytes
	}
	return min(n, wire.MaxGroupCapacityBytes)
}

// groupHandle finds the partition of a request that opens a link of a group.
func (s *session) groupHandle(number uint32, name, consumer string) (*handle, error) {
	t, err := s.handle(number)
	if err != nil {
		return nil, err
	}
	if err := wire.ValidateName(name); err != nil {
		return nil, err
	}
	if consumer != "" {
		if err := wire.ValidateName(consumer); err != nil {
			return nil, wire.Errorf(wire.CodeOf(err), "of the consumer: %v", err)
		}
	}
	if open := len(s.links) + len(s.forwardedLinks) + len(s.groupLinks) + len(s.temporary); open+s.opening >= s.engine.limits.Links {
		return nil, wire.Errorf(wire.CodeTooMany, "%d links are open; one connection may have %d", open, s.engine.limits.Links)
	}
	return t, nil
}

// groupFrame takes a frame of the client that belongs to a link of a group. One whose link
// is not there was sent before the client heard of its end.
func (s *session) groupFrame(h wire.Header, body []byte) error {
	in := partition.Input{}
	var err error
	switch h.Opcode {
	case wire.OpGroupOutcome:
		if len(body) > wire.MaxOutcomeBytes {
			return wire.Errorf(wire.CodeTooLarge, "GROUP_OUTCOME of %d bytes; the limit is %d", len(body), wire.MaxOutcomeBytes)
		}
		m := &s.loop.outcomes
		err = m.Parse(body)
		in.Kind, in.Outcomes = partition.InputOutcomes, m.Outcomes
	case wire.OpGroupCapacity:
		err = in.Capacity.Parse(body)
		in.Kind = partition.InputCapacity
		in.Capacity.Records, in.Capacity.Bytes = min(in.Capacity.Records, wire.MaxGroupCapacity), groupBytes(in.Capacity.Bytes)
	case wire.OpGroupHeartbeat:
		var m wire.GroupHeartbeat
		err = m.Parse(body)
		in.Kind, in.Number = partition.InputHeartbeat, m.Number
	case wire.OpGroupLeave:
		var m wire.GroupLeave
		err = m.Parse(body)
		in.Kind, in.Drain = partition.InputLeave, m.Drain
	}
	if err != nil {
		return err
	}
	if k := s.groupLinks[h.ID]; k != nil && k.binds && (in.Kind == partition.InputOutcomes || in.Kind == partition.InputCapacity) {
		return nil // nothing is held by it
	} else if k != nil {
		in.Outcomes = slices.Clone(in.Outcomes)
		if in.Kind != partition.InputOutcomes || len(in.Outcomes) > 0 {
			k.input(in)
		}
		s.checkFull() // who does not read the answers is not read either
	} else if k := s.forwardedLinks[h.ID]; k != nil {
		k.up.control(h.Opcode, k.remote, body)
	}
	return nil
}

// groupOrder hands what somebody asks of a group to the leader of a partition.
func (s *session) groupOrder(h wire.Header, body []byte) error {
	m := new(wire.GroupOrderRequest)
	if err := m.Parse(body); err != nil {
		return err
	}
	if !s.begin(h, inFlight{bytes: len(body)}) {
		return nil
	}
	t, err := s.handle(m.Handle)
	if err == nil {
		err = wire.ValidateName(m.Group)
	}
	if err == nil && t.replica == nil {
		s.forward(h, t, body, true)
		return nil
	}
	if err == nil {
		m.JSON = slices.Clone(m.JSON)
		err = t.replica.Group(partition.Input{Kind: partition.InputOrder, Group: m.Group, Order: m, Reply: func(json []byte, err error) {
			s.finish(h.ID, &wire.GroupJSON{JSON: json}, err)
		}})
	}
	if err != nil {
		s.finish(h.ID, nil, err)
		return nil
	}
	s.loop.kick(t.replica, len(body))
	return nil
}

// endGroupLink forgets a link that the group has closed, and tells the client.
func (s *session) endGroupLink(k *groupLink) {
	s.out.mu.Lock()
	why, silent := k.why, k.silent
	s.out.mu.Unlock()
	s.forgetGroupLink(k, false)
	if !silent {
		s.groupLinkClosed(k, why)
	}
}

func (s *session) groupLinkClosed(k *groupLink, why error) {
	var body wire.ErrorBody
	if why != nil {
		body = errorBody(why)
		s.engine.counters.countError(body.Code)
	}
	s.out.mu.Lock()
	answered := k.answered
	k.answered = true
	s.out.mu.Unlock()
	if !answered {
		s.finish(k.request, nil, body.Err())
		return
	}
	s.linkClosed(k.id, body)
}

// forgetGroupLink takes a link out of the session; dead says that the client has ended with
// it. The owner of the partition hears of it last, also if the group has closed the link:
// it keeps a link until then, unless it has lost the leadership and all links with it.
func (s *session) forgetGroupLink(k *groupLink, dead bool) {
	if k.closed {
		return
	}
	k.closed = true
	delete(s.groupLinks, k.id)
	s.engine.counters.groupLinks.Add(-1)
	if over := k.over.Swap(true); !over || k.replica.Leading() {
		k.input(partition.Input{Kind: partition.InputGone, Dead: dead && !over})
	}
}

// closeGroupLinks ends all links to groups without a word: the connection ends with them.
func (s *session) closeGroupLinks() {
	for _, k := range s.groupLinks {
		s.forgetGroupLink(k, s.ended && !s.forwarded)
		s.out.mu.Lock()
		answered := k.answered
		k.answered = true
		s.out.mu.Unlock()
		if !answered { // of a client that has ended its side, and reads on
			s.finish(k.request, nil, wire.Errorf(wire.CodeUnavailable, "the client ended its side of the connection before the session was attached"))
		}
	}
}
