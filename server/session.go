package server

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/panjf2000/gnet/v2"
	"golang.org/x/sys/unix"

	"github.com/lockstepmq/lockstep/wire"
)

// phase is how far a session has come. It only moves forward.
type phase uint8

const (
	phasePreface   phase = iota // nothing of the protocol has arrived
	phaseHello                  // the preface has; HELLO must follow
	phaseOpen                   // requests
	phaseClosing                // an error frame is on its way out; input is dropped
	phaseLingering              // it is out and our side is shut; input is dropped until the client hangs up
	phaseClosed
)

// session is one client connection and its state.
//
//	preface ──▶ HELLO ──▶ requests ──▶ closed
//	   └───────────┴─────────┴──▶ error frame ──▶ lingering ──▶ closed
//
// Bytes arrive in traffic. Whole frames are handled where they lie in the loop's
// read buffer; of a frame that has not arrived completely, what is there is kept
// in rest, which grows only with what has arrived. When the client has as much in
// flight as it may, its socket is not read, and what was read too much waits in
// rest too.
//
// Everything here is done by the session's loop, except where it says otherwise.
type session struct {
	connBase
	engine  *engine
	release func()    // gives the place at the acceptor back, and all else; once
	conn    gnet.Conn // nil once gnet has closed it
	remote  string
	name    string // the client's, from HELLO

	features  uint64 // that the client asked for and gets
	forwarded bool   // another node hands its requests on
	hops      uint8  // nodes that do so, one to the other

	phase      phase
	full       bool // no further request is handled for now
	paused     bool // the socket is not read
	ended      bool // by the client, or by the kernel for it: its last byte, or a reset
	halfClosed bool // and we hold the socket ourselves
	streaming  bool // in loop.streams
	reason     closeReason
	cause      error // for the log

	rest    *buffer // unparsed bytes; nil if there are none
	parsed  int     // of rest, handled already
	dropped int     // bytes dropped while closing

	// Deadlines; zero means that the clock is not running.
	openedAt     time.Duration
	readAt       time.Duration // last bytes
	frameSince   time.Duration // first byte of a frame that is not complete
	blockedSince time.Duration // the socket took nothing of what waits, since
	closingSince time.Duration

	out     outbox
	sending *buffer // taken from the outbox, [sent:] not written yet
	sent    int
	cut     cutFrame // a DELIVER that the socket has taken a part of; before sending
	held    int      // bytes counted in counters.outbound

	handles  []*handle // by number − 1
	handleOf map[handleKey]*handle
	touched  []*handle // got batches in this callback; their owners need a turn

	links    map[uint32]*link
	nextLink uint32
	opening  int // LINK_OPENs, and the like that are forwarded, in flight

	groupLinks map[uint32]*groupLink // by the IDs that links do not have

	temporary map[uint32]*temporaryQueue // that the client receives from, by link IDs that the others do not have

	reads     []sessionRead   // that wait for their turn: at most two for each link, and the requests in flight
	reading   int             // at work or in their partition's line
	readingOf map[replica]int // of these; without those of which there are none

	active []streamer // those that could send, in turn

	upstreams      map[uint32]*upstream      // to other nodes, by ID
	dirty          []*upstream               // have something to write
	forwardedLinks map[uint32]*forwardedLink // by the client's ID, which those in links do not have
}

// newSession makes the session of an accepted connection. released is called
// once, when the session is over.
func newSession(e *engine, remote string, released func()) *session {
	s := &session{engine: e, remote: remote}
	s.fd, s.timer.conn = -1, s
	s.release = func() {
		s.release = func() {}
		s.forget()
		released()
	}
	return s
}

// open is called on the loop that serves the connection from now on.
func (s *session) open(l *loop, c gnet.Conn) {
	defer s.recovered("opening")
	s.loop, s.conn, s.fd = l, c, c.Fd()
	s.openedAt, s.readAt = l.now, l.now
	boundUnsent(s.fd)
	l.sessions[s] = struct{}{}
	s.engine.counters.sessions.Add(1)
	s.opened.Store(true)
	l.wheel.schedule(&s.timer, l.now+s.engine.limits.HandshakeTimeout)
}

// recovered ends the session, and only it, when a callback panics.
func (s *session) recovered(where string) {
	if r := recover(); r != nil {
		s.engine.panicked("session "+s.remote+" while "+where, r)
		s.close(closedPanic, fmt.Errorf("panic while %s", where))
	}
}

// traffic takes bytes that have arrived. They are valid until it returns.
func (s *session) traffic(in []byte) {
	defer s.recovered("reading")
	if len(in) > 0 {
		s.readAt = s.loop.now
		s.engine.counters.bytesIn.Add(uint64(len(in)))
	}
	s.parse(in)
}

// parse handles the whole frames in rest and in, and keeps what is left. The
// partitions that got batches get their turn, also if a frame panics.
func (s *session) parse(in []byte) {
	defer s.kick()
	arrived := len(in)
	for s.phase < phaseClosing && !s.full {
		rest := s.rest.size() - s.parsed
		if rest == 0 {
			if len(in) == 0 {
				break
			}
			used, _ := s.frame(in)
			if used == 0 {
				break
			}
			in = in[used:]
			continue
		}
		used, size := s.frame(s.rest.bytes[s.parsed:])
		if used > 0 {
			s.parsed += used
			s.trim()
			continue
		}
		if len(in) == 0 || s.phase >= phaseClosing {
			break
		}
		n := min(size-rest, len(in))
		s.keep(in[:n])
		in = in[n:]
	}
	if s.phase >= phaseClosing {
		s.drop(len(in))
		return
	}
	s.keep(in)
	switch {
	case s.phase >= phaseClosing:
	case s.halfClosed && !s.full: // a frame cut short
		s.freeRest()
	case s.full:
		s.frameSince = 0
		if !s.paused || arrived > 0 {
			s.pause()
		}
	case s.rest == nil:
		s.frameSince = 0
	case s.frameSince == 0:
		s.frameSince = s.loop.now
		s.loop.wheel.schedule(&s.timer, s.frameSince+s.engine.limits.FrameTimeout)
	}
}

// keep appends bytes to rest.
func (s *session) keep(in []byte) {
	if len(in) == 0 {
		return
	}
	if s.parsed > 0 && s.rest.size()+len(in) > cap(s.rest.bytes) {
		s.rest.bytes = append(s.rest.bytes[:0], s.rest.bytes[s.parsed:]...)
		s.parsed = 0
	}
	before := s.rest.capacity()
	s.rest = s.rest.room(len(in))
	s.rest.bytes = append(s.rest.bytes, in...)
	if grown := s.rest.capacity() - before; grown > 0 {
		total := s.engine.counters.inbound.Add(int64(grown))
		if total > int64(s.engine.limits.InboundBytes) && s.rest.capacity() > fairBytes {
			s.fail(0, 0, wire.Errorf(wire.CodeBusy, "unfinished frames of all clients take %d bytes", total))
		}
	}
}

// freeRest drops what is unparsed.
func (s *session) freeRest() {
	s.engine.counters.inbound.Add(-int64(s.rest.capacity()))
	s.rest.free()
	s.rest, s.parsed = nil, 0
}

// trim frees rest once all of it is parsed.
func (s *session) trim() {
	if s.parsed == s.rest.size() {
		s.freeRest()
	}
}

// frame handles the frame at the start of b if it is there completely, and
// returns its size. Otherwise it returns how many bytes must be there to go on,
// or has ended the session.
func (s *session) frame(b []byte) (used, size int) {
	if s.phase == phasePreface {
		n := min(len(b), len(wire.Preface))
		switch {
		case string(b[:n]) != wire.Preface[:n]:
			s.close(closedBadPreface, fmt.Errorf("not the Lockstep protocol: %s", guessProtocol(b)))
			return 0, 0
		case n < len(wire.Preface):
			return 0, len(wire.Preface)
		}
		s.phase = phaseHello
		return n, 0
	}
	h, err := wire.ParseHeader(b)
	switch {
	case errors.Is(err, wire.ErrHeaderShort):
		return 0, wire.HeaderSize
	case errors.Is(err, wire.ErrHeaderChecksum):
		s.close(closedBadChecksum, err)
		return 0, 0
	case err != nil:
		s.fail(h.Opcode, h.ID, err)
		return 0, 0
	case s.phase == phaseHello && h.Length > wire.MaxHandshakeFrameBytes:
		s.fail(h.Opcode, h.ID, wire.Errorf(wire.CodeTooLarge, "frame length %d is above the %d bytes allowed before HELLO", h.Length, wire.MaxHandshakeFrameBytes))
		return 0, 0
	case h.Flags != 0:
		s.fail(h.Opcode, h.ID, wire.Errorf(wire.CodeMalformed, "request has flags %#02x", uint8(h.Flags)))
		return 0, 0
	}
	size = h.TotalSize()
	if len(b) < size {
		return 0, size
	}
	s.frameSince = 0
	s.request(h, b[wire.HeaderSize:size:size])
	return size, size
}

// guessProtocol is a hint for the log: what else begins like this.
func guessProtocol(b []byte) string {
	switch {
	case b[0] == 0x16:
		return "it looks like TLS; this port is plain"
	case bytes.HasPrefix(b, []byte("AMQP")):
		return "it looks like AMQP"
	case bytes.HasPrefix(b, []byte("GET ")), bytes.HasPrefix(b, []byte("POST")), bytes.HasPrefix(b, []byte("HEAD")), bytes.HasPrefix(b, []byte("PUT ")):
		return "it looks like HTTP; health and metrics are on another port"
	case len(b) >= 8 && b[0] == 0 && b[4] == 0:
		return "it looks like Kafka"
	}
	return fmt.Sprintf("it begins with %q", b[:min(len(b), len(wire.Preface))])
}

// kick lets the loop give the owners of the partitions that got batches their turn.
func (s *session) kick() {
	for _, h := range s.touched {
		h.kick(s.loop)
	}
	clear(s.touched)
	s.touched = s.touched[:0]
	if len(s.dirty) > 0 {
		s.flushUpstreams()
	}
}

// turn does what others, or the session itself, have left to do: write what
// waits, read on if there is room again, stream.
func (s *session) turn() {
	defer s.recovered("writing")
	if s.phase == phaseClosed {
		return
	}
	room := s.flush()
	switch {
	case s.phase == phaseClosing:
		s.linger()
		return
	case s.phase != phaseOpen:
		return
	case s.halfClosed && s.answered():
		s.close(closedByClient, nil)
		return
	case room && s.full:
		s.full = false
		s.parse(nil)
		if !s.full && s.phase == phaseOpen {
			s.resume()
		}
	}
	if len(s.active) > 0 && s.phase == phaseOpen {
		s.loop.addStream(s)
	}
}

// flush writes what waits in the outbox, as far as the socket takes it. It
// reports whether the client's requests may be read on.
func (s *session) flush() (room bool) {
	l := &s.engine.limits
	for s.phase != phaseClosed {
		s.out.mu.Lock()
		s.out.queued = false
		if s.sending == nil && s.out.pending != nil {
			s.sending, s.sent, s.out.pending = s.out.pending, 0, nil
		}
		s.out.unsent = s.sending.size() - s.sent
		behind := s.out.pending.capacity()
		for _, k := range s.out.woken {
			s.activate(k)
		}
		clear(s.out.woken)
		s.out.woken = s.out.woken[:0]
		room = s.out.roomLocked(l)
		s.out.mu.Unlock()
		if !s.writeCut() {
			if s.phase != phaseClosed {
				s.hold(s.sending.capacity() + behind)
			}
			return false
		}
		if s.sending == nil {
			s.hold(0)
			if len(s.active) == 0 {
				s.blockedSince = 0
			}
			if len(s.upstreams) > 0 {
				s.resumeUpstreams()
			}
			return room
		}
		n, ok := s.write(s.sending.bytes[s.sent:])
		if !ok {
			return false
		}
		s.sent += n
		if s.sent < s.sending.size() {
			s.block(n > 0)
			if s.phase != phaseClosed {
				s.hold(s.sending.capacity() + behind)
			}
			return false
		}
		s.blockedSince = 0
		s.sending.free()
		s.sending, s.sent = nil, 0
	}
	return false
}

// hold notes how much memory waits for a client that does not read: of the outbox
// and of what is being sent. If that is too much for all clients together, those
// that hold more than their share go.
func (s *session) hold(n int) {
	total := s.engine.counters.outbound.Add(int64(n - s.held))
	s.held = n
	if total > int64(s.engine.limits.OutboundBytes) && n > fairBytes {
		s.close(closedWrite, fmt.Errorf("replies to clients that do not read take %d bytes", total))
	}
}

// write writes to the socket what it takes now: nothing while it is awaited. If it
// fails the session is over and ok is false.
func (s *session) write(b []byte) (n int, ok bool) {
	if s.awaiting.Load() {
		return 0, true
	}
	for {
		n, err := unix.Write(s.fd, b)
		switch err {
		case nil:
			s.engine.counters.bytesOut.Add(uint64(n))
			return n, true
		case unix.EINTR:
		case unix.EAGAIN:
			return 0, true
		default:
			s.close(closedIO, fmt.Errorf("write: %w", err))
			return 0, false
		}
	}
}

// block awaits the socket, which did not take all, and starts the write deadline,
// anew if there was progress.
func (s *session) block(progress bool) {
	if s.blockedSince == 0 {
		s.engine.counters.stalls.Add(1)
	}
	if s.blockedSince == 0 || progress {
		s.blockedSince = s.loop.now
		s.loop.wheel.schedule(&s.timer, s.blockedSince+s.engine.limits.WriteTimeout)
	}
	if err := s.engine.writables.await(s); err != nil {
		s.close(closedIO, err)
	}
}

// drained reports whether nothing of ours waits before the socket.
func (s *session) drained() bool {
	return s.sending == nil && len(s.cut.rest) == 0
}

// answered reports whether the client has got everything it asked for.
func (s *session) answered() bool {
	s.out.mu.Lock()
	defer s.out.mu.Unlock()
	return len(s.out.requests) == 0 && s.out.pending == nil && s.drained() && s.rest == nil
}

// pause stops reading the socket. What the client sends piles up in the kernel,
// and then in the client.
func (s *session) pause() {
	if s.rest.size()-s.parsed > wire.MaxFrameBytes+2*readBufferBytes {
		s.fail(0, 0, wire.Errorf(wire.CodeTooMany, "more requests than the %d or %d bytes that may be in flight",
			s.engine.limits.InFlightRequests, s.engine.limits.InFlightBytes))
		return
	}
	if !s.paused {
		s.paused = true
		s.engine.counters.paused.Add(1)
		s.engine.counters.pauses.Add(1)
	}
	s.watch()
}

// resume reads the socket again.
func (s *session) resume() {
	if !s.paused {
		return
	}
	s.paused = false
	s.readAt = s.loop.now
	s.engine.counters.paused.Add(-1)
	s.watch()
}

// watch tells the loop's epoll whether the socket is read.
func (s *session) watch() {
	if s.halfClosed || s.loop.epoll < 0 {
		return
	}
	if err := watch(s.loop.epoll, s.fd, !s.paused); err != nil {
		s.close(closedIO, fmt.Errorf("epoll_ctl: %w", err))
	}
}

// fail answers with an error frame and ends the session: what follows in its
// stream cannot be trusted. op and id are those of the request at fault, or zero.
func (s *session) fail(op wire.Opcode, id uint32, err error) {
	if s.phase >= phaseClosing {
		return
	}
	body := errorBody(err)
	s.engine.counters.countError(body.Code)
	if s.reason == closedByClient {
		s.reason = closedWithError
	}
	s.cause = err
	s.out.mu.Lock()
	s.out.pending = s.out.pending.room(wire.HeaderSize)
	s.out.pending.bytes = connectionError(s.out.pending.bytes, op, id, &body)
	notify := s.out.notifyLocked()
	s.out.closed = true
	s.engine.counters.inFlight.Add(-int64(len(s.out.requests)))
	clear(s.out.requests)
	s.out.mu.Unlock()
	s.phase = phaseClosing
	s.closingSince = s.loop.now
	s.freeRest()
	s.closeLinks()
	s.resume() // to see the client hang up
	s.loop.wheel.schedule(&s.timer, s.closingSince+s.engine.limits.WriteTimeout)
	if notify {
		s.loop.push(s)
	}
}

// connectionError appends the last frame of a connection. One that no request is
// to blame for is an EVENT with the ID 0.
func connectionError(dst []byte, op wire.Opcode, id uint32, body *wire.ErrorBody) []byte {
	if op == 0 {
		op = wire.OpEvent
	}
	return wire.AppendFrame(dst, wire.Header{Opcode: op, Flags: wire.FlagResponse | wire.FlagError, Version: op.Version(), ID: id}, body)
}

// linger shuts our side once the error frame is out. Then the client is given a
// moment to read it: closing at once would send a reset if more input is waiting,
// and a reset destroys what the client has not read yet.
func (s *session) linger() {
	if !s.drained() {
		return
	}
	if s.halfClosed {
		s.close(s.reason, s.cause)
		return
	}
	if err := unix.Shutdown(s.fd, unix.SHUT_WR); err != nil {
		s.close(s.reason, s.cause)
		return
	}
	s.phase = phaseLingering
	s.closingSince = s.loop.now
	s.loop.wheel.schedule(&s.timer, s.closingSince+s.engine.limits.LingerTimeout)
}

// drop counts input that is no longer wanted.
func (s *session) drop(n int) {
	if s.phase == phaseClosed {
		return
	}
	if s.dropped += n; s.dropped > s.engine.limits.LingerBytes {
		s.close(s.reason, s.cause)
	}
}

// checkDeadlines runs when the session's timer fires: it ends the session if a
// deadline has passed and sets the timer for the next one otherwise.
func (s *session) checkDeadlines() {
	defer s.recovered("checking deadlines")
	l, now := &s.engine.limits, s.loop.now
	next := time.Duration(1<<63 - 1)
	passed := func(since, timeout time.Duration) bool {
		if since+timeout > now {
			next = min(next, since+timeout)
			return false
		}
		return true
	}
	switch {
	case s.phase == phaseClosed:
		return
	case s.phase < phaseOpen:
		if passed(s.openedAt, l.HandshakeTimeout) {
			s.close(closedHandshake, fmt.Errorf("no HELLO within %v", l.HandshakeTimeout))
			return
		}
	case s.phase == phaseClosing:
		if passed(s.closingSince, l.WriteTimeout) {
			s.close(s.reason, s.cause)
			return
		}
	case s.phase == phaseLingering:
		if passed(s.closingSince, l.LingerTimeout) {
			s.close(s.reason, s.cause)
			return
		}
	default:
		if s.halfClosed && passed(s.closingSince, l.IdleTimeout) {
			s.close(closedByClient, fmt.Errorf("half-closed for %v and not answered", l.IdleTimeout))
			return
		}
		if s.blockedSince != 0 && passed(s.blockedSince, l.WriteTimeout) {
			s.close(closedWrite, fmt.Errorf("took nothing of what waited for %v", l.WriteTimeout))
			return
		}
		if s.frameSince != 0 && !s.paused && passed(s.frameSince, l.FrameTimeout) {
			s.close(closedFrame, fmt.Errorf("frame not complete within %v", l.FrameTimeout))
			return
		}
		if s.paused || s.out.waiting() > 0 {
			s.readAt = now // it is our turn, not the client's
		}
		if passed(s.readAt, l.IdleTimeout) {
			s.reason = closedIdle
			s.fail(0, 0, wire.Errorf(wire.CodeIdle, "nothing was sent for %v", l.IdleTimeout))
			return
		}
	}
	s.loop.wheel.schedule(&s.timer, next)
}

// close ends the session at once.
func (s *session) close(reason closeReason, cause error) {
	if s.phase == phaseClosed {
		return
	}
	s.reason, s.cause = reason, cause
	if s.conn == nil {
		s.end()
		return
	}
	_ = s.loop.gnet.Close(s.conn) // calls disconnected before it returns
}

// disconnected is called when gnet closes the connection, for whatever reason.
// At the client's end of stream gnet closes both directions, but the client may
// be waiting for answers. Then we take over the socket until it has them.
func (s *session) disconnected(endOfStream bool, err error) {
	defer s.recovered("closing")
	if s.phase == phaseClosed {
		return
	}
	s.ended = endOfStream || s.reason == closedByClient && resetByPeer(err)
	if endOfStream && s.phase == phaseOpen && s.takeOver() {
		return
	}
	if s.reason == closedByClient && s.cause == nil && !endOfStream {
		s.cause = err
	}
	s.end()
}

// resetByPeer reports whether the other side's kernel has answered that nobody has the
// connection any more. It does so for a process that ends before it has read everything;
// one that has gets an end of stream.
func resetByPeer(err error) bool {
	return errors.Is(err, unix.ECONNRESET) || errors.Is(err, unix.EPIPE)
}

// takeOver duplicates the socket if something is owed to the client.
func (s *session) takeOver() bool {
	s.closeLinks()
	if !s.full {
		s.freeRest() // a frame cut short
	}
	if s.answered() {
		return false
	}
	fd, err := unix.FcntlInt(uintptr(s.fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return false
	}
	s.engine.writables.forget(s)
	s.fd, s.conn, s.halfClosed = fd, nil, true
	s.closingSince = s.loop.now
	s.engine.counters.halfClosed.Add(1)
	s.loop.wheel.schedule(&s.timer, s.loop.now+s.engine.limits.WriteTimeout)
	s.loop.push(s)
	return true
}

// end forgets the session. gnet closes its socket, or we do.
func (s *session) end() {
	if s.reason != closedByClient && s.reason != closedShutdown {
		s.engine.bad.log("session closed", slog.String("reason", s.reason.String()), slog.String("address", s.remote),
			slog.String("client", s.name), slog.Any("cause", s.cause))
	}
	s.release()
}

// forget gives everything back that the session holds. Called once.
func (s *session) forget() {
	if s.loop == nil {
		return
	}
	s.engine.writables.forget(s)
	if s.halfClosed {
		_ = unix.Close(s.fd)
	}
	if s.forwarded {
		s.engine.counters.forwardedIn.Add(-1)
	}
	s.closeLinks()
	s.dropUpstreams()
	s.cut.release()
	s.phase = phaseClosed
	s.conn, s.fd = nil, -1
	s.engine.counters.sessions.Add(-1)
	s.engine.counters.closed[s.reason].Add(1)
	if s.paused {
		s.engine.counters.paused.Add(-1)
	}
	s.loop.wheel.remove(&s.timer)
	delete(s.loop.sessions, s)
	s.freeRest()
	s.sending.free()
	s.sending = nil
	s.hold(0)
	s.out.mu.Lock()
	s.out.closed = true
	s.out.pending.free()
	s.out.pending = nil
	s.engine.counters.inFlight.Add(-int64(len(s.out.requests)))
	s.out.requests = nil
	s.out.mu.Unlock()
	s.handles, s.handleOf, s.reads = nil, nil, nil
}
