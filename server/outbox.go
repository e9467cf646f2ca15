package server

import (
	"cmp"
	"encoding/binary"
	"sync"

	"github.com/lockstepmq/lockstep/wire"
)

// outbox is where answers to a client wait for the loop to write them. They come
// from any goroutine: the loop itself, the owner of a partition, a worker. The
// bytes are laid out as they will be sent, so that the loop writes all that has
// gathered with one call.
//
// It also knows which requests are in flight, because the goroutine that answers
// one must find out whether it is still wanted, and how much room it gives back.
//
// Any goroutine may call its methods. The mutex is held for the time it takes to
// append a few bytes, never across I/O; it is taken before no other lock.
type outbox struct {
	mu       sync.Mutex
	pending  *buffer             // frames to be written; nil while there are none
	unsent   int                 // bytes that the loop has taken from pending and the socket has not
	requests map[uint32]inFlight // by correlation ID
	bytes    int                 // held by requests
	inbox    int                 // bytes for groups that no owner has taken yet
	woken    []streamer          // to be looked at again
	queued   bool                // the loop knows that there is something to do
	closed   bool                // nothing more will be sent
}

// inFlight is a request that waits for its answer.
type inFlight struct {
	opcode  wire.Opcode
	version uint16 // of the body; 0: the newest
	handle  uint32 // for the receipt of a PRODUCE
	bytes   int
}

// begin registers a request. It returns false if its correlation ID is taken.
// full says that no further request should be read now.
func (o *outbox) begin(l *Limits, id uint32, r inFlight) (ok, full bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if _, taken := o.requests[id]; taken {
		return false, false
	}
	o.requests[id] = r
	o.bytes += r.bytes
	return true, o.fullLocked(l)
}

// inFlight reports whether a request with this correlation ID waits.
func (o *outbox) inFlight(id uint32) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	_, taken := o.requests[id]
	return taken
}

// waiting is how many requests wait for their answer.
func (o *outbox) waiting() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.requests)
}

// takeLocked ends a request. It returns false if nobody waits for it any more.
func (o *outbox) takeLocked(id uint32) (inFlight, bool) {
	r, ok := o.requests[id]
	if !ok || o.closed {
		return r, false
	}
	delete(o.requests, id)
	o.bytes -= r.bytes
	return r, true
}

func (o *outbox) full(l *Limits) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.fullLocked(l)
}

// fullLocked reports whether a cap is reached: requests or bytes in flight, or
// answers that the client does not read.
func (o *outbox) fullLocked(l *Limits) bool {
	return len(o.requests) >= l.InFlightRequests || o.bytes >= l.InFlightBytes || o.inbox >= l.GroupInboxBytes || o.pending.size()+o.unsent >= l.OutboxBytes
}

// unread is how many bytes wait for the client to take them.
func (o *outbox) unread() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.pending.size() + o.unsent
}

// roomLocked reports whether every cap is at most half used: reading resumes.
func (o *outbox) roomLocked(l *Limits) bool {
	return len(o.requests) <= l.InFlightRequests/2 && o.bytes <= l.InFlightBytes/2 && o.inbox <= l.GroupInboxBytes/2 && o.pending.size()+o.unsent <= l.OutboxBytes/2
}

// notifyLocked reports whether the loop must be told of the session.
func (o *outbox) notifyLocked() bool {
	if o.queued || o.closed {
		return false
	}
	o.queued = true
	return true
}

// send queues one frame. Any goroutine.
func (s *session) send(h wire.Header, m wire.Message) {
	o := &s.out
	o.mu.Lock()
	if o.closed {
		o.mu.Unlock()
		return
	}
	o.pending = o.pending.room(wire.HeaderSize)
	o.pending.bytes = wire.AppendFrame(o.pending.bytes, h, m)
	notify := o.notifyLocked()
	o.mu.Unlock()
	if notify {
		s.loop.push(s)
	}
}

// tell sends an event, except to a client that does not read what it has, and reports whether
// it did. One that has as many requests in flight as it may is only busy. Loop only.
func (s *session) tell(event *wire.Event) bool {
	if s.phase != phaseOpen {
		return false
	}
	if s.out.unread() >= s.engine.limits.OutboxBytes {
		s.engine.counters.eventsSuppressed.Add(1)
		return false
	}
	s.send(wire.Header{Opcode: wire.OpEvent, Version: wire.OpEvent.Version()}, event)
	return true
}

// reply answers a request that is not registered as in flight. Loop only.
func (s *session) reply(op wire.Opcode, id uint32, m wire.Message) {
	s.send(wire.Header{Opcode: op, Flags: wire.FlagResponse, Version: op.Version(), ID: id}, m)
	s.checkFull()
}

// replyVersion is reply in the version of the request.
func (s *session) replyVersion(request wire.Header, m wire.Message) {
	s.send(wire.Header{Opcode: request.Opcode, Flags: wire.FlagResponse, Version: request.Version, ID: request.ID}, m)
	s.checkFull()
}

// refuse answers such a request with an error. Loop only.
func (s *session) refuse(op wire.Opcode, id uint32, err error) {
	body := errorBody(err)
	s.engine.counters.countError(body.Code)
	s.send(wire.Header{Opcode: op, Flags: wire.FlagResponse | wire.FlagError, Version: op.Version(), ID: id}, &body)
	s.checkFull()
}

// finish answers a request in flight: with m, or with err if it is not nil. Any
// goroutine.
func (s *session) finish(id uint32, m wire.Message, err error) {
	o := &s.out
	o.mu.Lock()
	r, ok := o.takeLocked(id)
	if !ok {
		o.mu.Unlock()
		return
	}
	h := wire.Header{Opcode: r.opcode, Flags: wire.FlagResponse, Version: cmp.Or(r.version, r.opcode.Version()), ID: id}
	if err != nil {
		body := errorBody(err)
		s.engine.counters.countError(body.Code)
		h.Flags |= wire.FlagError
		m = &body
	}
	o.pending = o.pending.room(wire.HeaderSize)
	o.pending.bytes = wire.AppendFrame(o.pending.bytes, h, m)
	notify := o.notifyLocked()
	o.mu.Unlock()
	s.engine.counters.inFlight.Add(-1)
	if notify {
		s.loop.push(s)
	}
}

// answer answers a request in flight with what another node has answered: a body, or
// with FlagError an ErrorBody. A receipt gets the client's handle. Loop only.
func (s *session) answer(id uint32, flags wire.Flags, body []byte) {
	o := &s.out
	o.mu.Lock()
	r, ok := o.takeLocked(id)
	if !ok {
		o.mu.Unlock()
		return
	}
	flags &= wire.FlagError
	at := o.pending.size() + wire.HeaderSize
	o.appendLocked(wire.Header{Opcode: r.opcode, Flags: wire.FlagResponse | flags, Version: r.opcode.Version(), ID: id}, body)
	if r.opcode == wire.OpProduce && flags == 0 && len(body) >= 4 {
		binary.LittleEndian.PutUint32(o.pending.bytes[at:], r.handle)
	}
	notify := o.notifyLocked()
	o.mu.Unlock()
	s.engine.counters.inFlight.Add(-1)
	if flags != 0 && len(body) >= 2 {
		s.engine.counters.countError(wire.ErrorCode(binary.LittleEndian.Uint16(body)))
	}
	if notify {
		s.loop.push(s)
	}
}

// pass queues a frame of another node. Loop only.
func (s *session) pass(h wire.Header, body []byte) {
	o := &s.out
	o.mu.Lock()
	if o.closed {
		o.mu.Unlock()
		return
	}
	o.appendLocked(h, body)
	notify := o.notifyLocked()
	o.mu.Unlock()
	if notify {
		s.loop.push(s)
	}
}

func (o *outbox) appendLocked(h wire.Header, body []byte) {
	h.Length = wire.FrameLength(len(body))
	o.pending = o.pending.room(wire.HeaderSize + len(body))
	o.pending.bytes = append(wire.AppendHeader(o.pending.bytes, h), body...)
}

// Appended implements partition.Receiver: the tag is the correlation ID. It
// allocates nothing.
func (s *session) Appended(tag uint64, receipt wire.Receipt, code wire.ErrorCode) {
	id := uint32(tag)
	switch code {
	case wire.CodeOK:
	case wire.CodeNotLeader:
		s.finish(id, nil, wire.NotLeader(uint32(receipt.BaseOffset>>32), uint32(receipt.BaseOffset)))
		return
	default:
		s.finish(id, nil, code)
		return
	}
	o := &s.out
	o.mu.Lock()
	r, ok := o.takeLocked(id)
	if !ok {
		o.mu.Unlock()
		return
	}
	receipt.Handle = r.handle
	o.pending = o.pending.room(wire.HeaderSize + wire.ReceiptSize)
	b := wire.AppendHeader(o.pending.bytes, wire.Header{
		Length: wire.FrameLength(wire.ReceiptSize), Opcode: wire.OpProduce, Flags: wire.FlagResponse, Version: wire.OpProduce.Version(), ID: id,
	})
	o.pending.bytes = receipt.Append(b)
	notify := o.notifyLocked()
	o.mu.Unlock()
	s.engine.counters.inFlight.Add(-1)
	if notify {
		s.loop.push(s)
	}
}

// checkFull stops handling requests if a cap is reached. Loop only.
func (s *session) checkFull() {
	if s.out.full(&s.engine.limits) {
		s.full = true
	}
}
