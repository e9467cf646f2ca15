package client

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lockstepmq/lockstep/wire"
)

const (
	// controlBytes bounds the small requests that wait for the writer. Above
	// it calls fail at once with errControlFull: the connection is stuck, and
	// the keepalive will find out.
	controlBytes = 1 << 20
)

var errControlFull = errors.New("too many requests wait for the connection")

// session is one live connection to one broker, after its handshake. It has
// two goroutines: a reader that hands every answer to the one who waits for
// it, and a writer that gathers what is to be sent: small requests from a
// buffer, record batches straight from the accumulators that have registered
// with ready. Batches are taken at the last moment, when the socket is free,
// so whatever gathers while a write is under way travels in the next one. Where
// records come one by one, each is written by the goroutine that
// brought it (writeNow): waking the writer costs more than the write.
//
// A session dies once, with the first error, and then tells everybody who
// waits. It never comes back: the Conn makes another one.
type session struct {
	conn     net.Conn
	address  string
	hello    wire.HelloResponse
	versions [256]wire.OpcodeRange // of bodies that the broker understands, by opcode
	onEvent  func(*session, wire.Event)
	input    *bufio.Reader // with what the handshake read too much

	received *atomic.Uint64 // reads that brought something, for the keepalive
	sent     atomic.Uint64  // writes, for the keepalive
	bound    atomic.Int64   // on the patience, by consumers, in nanoseconds; 0: none
	hurried  chan struct{}  // capacity 1, for the keepalive: bound is less than before
	wake     chan struct{}  // capacity 1, for the writer
	done     chan struct{}  // closed when the session has died and all waiters know
	ended    chan struct{}  // closed when the Conn and its listener know as well
	wg       sync.WaitGroup

	writing sync.Mutex // the right to gather and write; before a Producer's mutex
	g       gathered   // of who has it

	mu            sync.Mutex // held for moments only; never while holding it is a Producer's or a Reader's taken
	err           error      // why the session died
	control       []byte     // encoded requests for the writer
	ready         []*accumulator
	waiters       map[uint32]waiter
	talkers       []*attachment // that have outcomes to send
	links         map[uint32]link
	nextID        uint32
	inFlightBytes int64 // of unanswered batches
	held          bool  // the writer waits for an answer because of the broker's limits
	blind         bool  // batches without an answer were written: nothing tells whether the socket is free
}

// waiter waits for the answer to one request. Exactly one of the methods is
// called, once, by the session's reader or by the goroutine that found the
// session dead. They must not block.
type waiter interface {
	// answered brings the answer. body is valid during the call; err is the
	// *wire.Error of an error answer.
	answered(s *session, body []byte, err error)
	// lost says that no answer will come.
	lost(s *session, err error)
}

// link is what receives frames that a broker sends without being asked each time. Its
// methods are called by the session's reader.
type link interface {
	// closed says that the broker has ended the link, and why; nil: as it was asked to.
	closed(s *session, err error)
	// lost says that the session has ended.
	lost(s *session)
}

// member is a link that gets frames of a group, or of a temporary queue.
type member interface {
	link
	// frame brings one. body is valid during the call; an error means that it is none.
	frame(s *session, op wire.Opcode, body []byte) error
}

func newSession(conn net.Conn, input *bufio.Reader, address string, hello wire.HelloResponse, onEvent func(*session, wire.Event)) *session {
	s := &session{
		conn:     conn,
		address:  address,
		hello:    hello,
		onEvent:  onEvent,
		input:    input,
		received: new(atomic.Uint64),
		wake:     make(chan struct{}, 1),
		hurried:  make(chan struct{}, 1),
		done:     make(chan struct{}),
		ended:    make(chan struct{}),
		waiters:  make(map[uint32]waiter),
		links:    make(map[uint32]link),
	}
	for _, o := range hello.Opcodes {
		s.versions[o.Opcode] = o
	}
	return s
}

// start begins reading and writing. Before it nobody hears of the session: what
// the broker sends meanwhile waits in the socket.
func (s *session) start() {
	s.wg.Add(2)
	go s.readLoop(s.input)
	go s.writeLoop()
}

// patience is how long the broker may be silent before it counts as dead.
func (s *session) patience() time.Duration {
	p := detectionTime
	if idle := time.Duration(s.hello.IdleTimeoutMs) * time.Millisecond; idle > 0 {
		p = min(p, idle)
	}
	if bound := time.Duration(s.bound.Load()); bound > 0 {
		p = min(p, bound)
	}
	return max(p, silentTicks*time.Millisecond)
}

// hurry has the session's broker noticed when it is silent for a third of a session
// timeout: the confirmation that counts may be as old again, and the rest is for finding
// another leader. A session stays as impatient as the hastiest consumer made it; 0 changes nothing.
func (s *session) hurry(timeout time.Duration) {
	if timeout <= 0 {
		return
	}
	bound := int64(max(timeout/3, detectionMin))
	for old := s.bound.Load(); old == 0 || bound < old; old = s.bound.Load() {
		if s.bound.CompareAndSwap(old, bound) {
			poke(s.hurried)
			return
		}
	}
}

// fail ends the session; only the first error counts. All who wait have been
// told when it returns, or, if another goroutine was first, soon after. Streams are
// told by the reader when it ends.
func (s *session) fail(err error) {
	s.mu.Lock()
	if s.err != nil {
		s.mu.Unlock()
		return
	}
	s.err = err
	waiters := s.waiters
	s.waiters, s.ready, s.talkers = nil, nil, nil
	s.mu.Unlock()

	s.conn.Close()
	lost := &lostError{err}
	for _, w := range waiters {
		w.lost(s, lost)
	}
	close(s.done)
}

// speaks says why the broker does not understand a request as this client writes it, or
// returns nil.
func (s *session) speaks(op wire.Opcode) error {
	v, mine := s.versions[op], op.Version()
	switch {
	case v.Max == 0:
		return wire.Errorf(wire.CodeUnsupported, "broker %s does not know %v; upgrade the broker", s.address, op)
	case v.Max < mine:
		return wire.Errorf(wire.CodeUnsupported, "broker %s is older than this client: it understands %v up to version %d, not %d; upgrade the broker", s.address, op, v.Max, mine)
	case v.Min > mine:
		return wire.Errorf(wire.CodeUnsupported, "this client is older than broker %s, which understands %v from version %d on, not %d; upgrade the client", s.address, op, v.Min, mine)
	}
	return nil
}

// request encodes one request and hands it to the writer. The waiter is told
// exactly once unless an error is returned, or forget is called first.
func (s *session) request(op wire.Opcode, m wire.Message, w waiter) (id uint32, err error) {
	if err := s.speaks(op); err != nil {
		return 0, err
	}
	s.mu.Lock()
	if s.err != nil {
		err = &lostError{s.err}
	} else if len(s.control) > controlBytes {
		err = errControlFull
	} else {
		id = s.register(w)
		s.control = wire.AppendFrame(s.control, wire.Header{Opcode: op, Version: op.Version(), ID: id}, m)
	}
	s.mu.Unlock()
	if err == nil {
		poke(s.wake)
	}
	return id, err
}

// register gives a waiter its correlation ID. The caller holds s.mu.
func (s *session) register(w waiter) uint32 {
	for {
		s.nextID++
		if _, taken := s.waiters[s.nextID]; !taken && s.nextID != 0 {
			s.waiters[s.nextID] = w
			return s.nextID
		}
	}
}

// forget drops a waiter; an answer that still comes is ignored.
func (s *session) forget(id uint32) {
	s.mu.Lock()
	if b, ok := s.waiters[id].(*batch); ok {
		s.inFlightBytes -= b.size()
	}
	delete(s.waiters, id)
	s.mu.Unlock()
}

// forgetBatch is forget for a batch that the writer may be about to register.
func (s *session) forgetBatch(b *batch) {
	s.mu.Lock()
	id := b.id
	s.mu.Unlock()
	s.forget(id)
}

// tell sends a frame that has no answer. On a dead session it does nothing.
func (s *session) tell(op wire.Opcode, id uint32, m wire.Message) {
	s.mu.Lock()
	if s.err == nil {
		s.control = wire.AppendFrame(s.control, wire.Header{Opcode: op, Version: op.Version(), ID: id}, m)
	}
	s.mu.Unlock()
	poke(s.wake)
}

// tellBehind is tell for a frame that goes behind what f appends.
func (s *session) tellBehind(f func(dst []byte) []byte, op wire.Opcode, id uint32, m wire.Message) {
	s.mu.Lock()
	if s.err == nil {
		s.control = wire.AppendFrame(f(s.control), wire.Header{Opcode: op, Version: op.Version(), ID: id}, m)
	}
	s.mu.Unlock()
	poke(s.wake)
}

// enqueue registers an accumulator that has a batch to send. The accumulator
// makes sure that it is registered once, and that the batch is written then.
func (s *session) enqueue(a *accumulator) {
	s.mu.Lock()
	if s.err == nil {
		s.ready = append(s.ready, a)
	}
	s.mu.Unlock()
}

// talk registers an attachment that has outcomes to send, and wakes the writer. The
// attachment makes sure that it is registered once.
func (s *session) talk(at *attachment) {
	s.mu.Lock()
	if s.err == nil {
		s.talkers = append(s.talkers, at)
	}
	s.mu.Unlock()
	poke(s.wake)
}

// attachLink makes someone receive the frames of a link. It is called by the
// reader, before it looks at the next frame.
func (s *session) attachLink(id uint32, l link) {
	s.mu.Lock()
	s.links[id] = l
	s.mu.Unlock()
}

// dropLink ends that; what still arrives is discarded.
func (s *session) dropLink(id uint32) {
	s.mu.Lock()
	delete(s.links, id)
	s.mu.Unlock()
}

// linkOf is who receives the frames of a link, nil if nobody does.
func (s *session) linkOf(id uint32) link {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.links[id]
}

// --- reader ---

func (s *session) readLoop(r *bufio.Reader) {
	defer s.wg.Done()
	for {
		if err := s.readFrame(r); err != nil {
			s.fail(err)
			break
		}
	}
	// Only now a stream may go on in another session: its assembly has one user.
	s.mu.Lock()
	links := s.links
	s.links = nil
	s.mu.Unlock()
	for _, l := range links {
		l.lost(s)
	}
}

func (s *session) readFrame(r *bufio.Reader) error {
	head, err := r.Peek(wire.HeaderSize)
	if err != nil {
		return disconnected(err)
	}
	h, err := wire.ParseHeader(head)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrProtocol, err)
	}
	r.Discard(wire.HeaderSize)
	switch h.Opcode {
	case wire.OpDeliver:
		return s.readDeliver(r, h)
	case wire.OpGroupDeliver:
		return s.readGroupDeliver(r, h)
	}
	body, err := readBody(r, h.BodySize())
	if err != nil {
		return disconnected(err)
	}
	err = s.handle(h, body)
	if h.BodySize() <= r.Size() {
		r.Discard(h.BodySize())
	}
	return err
}

// readBody returns a frame's body: a view of the read buffer if it fits there,
// which the caller discards after use, else a slice of its own.
func readBody(r *bufio.Reader, n int) ([]byte, error) {
	if n <= r.Size() {
		return r.Peek(n)
	}
	b := make([]byte, n)
	_, err := io.ReadFull(r, b)
	return b, err
}

func (s *session) handle(h wire.Header, body []byte) error {
	if h.Flags&wire.FlagResponse != 0 {
		return s.handleAnswer(h, body)
	}
	switch h.Opcode {
	case wire.OpLinkClosed:
		var closed wire.LinkClosed
		if err := closed.Parse(body); err != nil {
			return fmt.Errorf("%w: %w", ErrProtocol, err)
		}
		s.mu.Lock()
		l := s.links[h.ID]
		delete(s.links, h.ID)
		s.mu.Unlock()
		if l != nil {
			l.closed(s, closed.Err())
		}
		return nil
	case wire.OpGroupAnswer, wire.OpGroupRevoke, wire.OpGroupLost, wire.OpGroupHeartbeat, wire.OpGroupBinding, wire.OpTempDeliver:
		if m, ok := s.linkOf(h.ID).(member); ok {
			if err := m.frame(s, h.Opcode, body); err != nil {
				return fmt.Errorf("%w: %w", ErrProtocol, err)
			}
		}
		return nil
	case wire.OpEvent:
		var e wire.Event
		if err := e.Parse(body); err != nil {
			return fmt.Errorf("%w: %w", ErrProtocol, err)
		}
		s.onEvent(s, e)
		return nil
	case wire.OpPing: // a broker may ask as well
		s.mu.Lock()
		if s.err == nil {
			s.control = wire.AppendFrame(s.control, wire.Header{Opcode: wire.OpPing, Flags: wire.FlagResponse, Version: wire.OpPing.Version(), ID: h.ID}, &wire.Empty{})
		}
		s.mu.Unlock()
		poke(s.wake)
		return nil
	}
	if h.Flags&wire.FlagError != 0 {
		return brokerError(body)
	}
	return fmt.Errorf("%w: unexpected %v from the broker", ErrProtocol, h.Opcode)
}

func (s *session) handleAnswer(h wire.Header, body []byte) error {
	var answerErr error
	if h.Flags&wire.FlagError != 0 {
		answerErr = brokerError(body)
		body = nil
	}
	s.mu.Lock()
	w := s.waiters[h.ID]
	delete(s.waiters, h.ID)
	if b, ok := w.(*batch); ok {
		s.inFlightBytes -= b.size()
	}
	held := s.held
	s.held = false
	s.mu.Unlock()
	if held {
		poke(s.wake)
	}
	if w == nil {
		if answerErr != nil && h.ID == 0 {
			return answerErr // the broker complains about the connection as a whole
		}
		return nil // whoever asked has given up
	}
	w.answered(s, body, answerErr)
	return nil
}

// brokerError parses the body of an error answer.
func brokerError(body []byte) error {
	var e wire.ErrorBody
	if err := e.Parse(body); err != nil {
		return fmt.Errorf("%w: %w", ErrProtocol, err)
	}
	if err := e.Err(); err != nil {
		return err
	}
	return fmt.Errorf("%w: error answer without a code", ErrProtocol)
}

func (s *session) readDeliver(r *bufio.Reader, h wire.Header) error {
	n := h.BodySize() - wire.DeliverPrefixSize
	if n < 0 || n > wire.MaxDeliverBytes {
		return fmt.Errorf("%w: DELIVER with a body of %d bytes", ErrProtocol, h.BodySize())
	}
	prefix, err := r.Peek(wire.DeliverPrefixSize)
	if err != nil {
		return disconnected(err)
	}
	var d wire.Deliver
	if err := d.Parse(prefix); err != nil {
		return fmt.Errorf("%w: %w", ErrProtocol, err)
	}
	r.Discard(wire.DeliverPrefixSize)
	st, ok := s.linkOf(h.ID).(*stream)
	if !ok {
		_, err = r.Discard(n)
		return disconnected(err)
	}
	return disconnected(st.receive(s, r, n))
}

// readGroupDeliver reads records of a group into memory that they keep.
func (s *session) readGroupDeliver(r *bufio.Reader, h wire.Header) error {
	at, ok := s.linkOf(h.ID).(*attachment)
	if !ok {
		_, err := r.Discard(h.BodySize())
		return disconnected(err)
	}
	body := make([]byte, h.BodySize())
	if _, err := io.ReadFull(r, body); err != nil {
		return disconnected(err)
	}
	if err := at.receive(s, body); err != nil {
		return fmt.Errorf("%w: %w", ErrProtocol, err)
	}
	return nil
}

// disconnected marks an error of the socket as the loss of the connection.
func disconnected(err error) error {
	if err == nil || errors.Is(err, ErrProtocol) {
		return err
	}
	if errors.Is(err, io.EOF) {
		return fmt.Errorf("%w: closed by the broker", ErrDisconnected)
	}
	return fmt.Errorf("%w: %w", ErrDisconnected, err)
}

// --- writer ---

// gathered is what the writer sends in one turn. Its memory is reused.
type gathered struct {
	control []byte
	ready   []*accumulator
	talkers []*attachment
	batches []*batch
	starts  []int64     // starts[i]: bytes in front of batches[i]
	buffers net.Buffers // of this turn; WriteTo consumes it
	backing [][]byte    // keeps the array behind buffers
	size    int64
}

func (s *session) writeLoop() {
	defer s.wg.Done()
	for {
		s.writing.Lock()
		n, err := s.writeOnce(writeBytes, math.MaxInt)
		s.writing.Unlock()
		if err != nil {
			return
		}
		if n == 0 {
			select {
			case <-s.wake:
			case <-s.done:
				return
			}
		}
	}
}

// nowBytes is the most that is written by the goroutine that brought a record, the
// largest batch, and the most that may be on its way before: a socket takes so much
// without blocking. What is larger waits for a broker that does not read, whatever
// the sender's ctx says, so the writer sends it.
const nowBytes = 16 << 10

// writeNow writes what waits on the calling goroutine if little is on its way and
// nobody else is writing; else the writer does.
func (s *session) writeNow() {
	s.mu.Lock()
	quiet := s.err == nil && !s.blind && s.inFlightBytes <= nowBytes && len(s.control) == 0
	s.mu.Unlock()
	if !quiet || !s.writing.TryLock() {
		poke(s.wake)
		return
	}
	_, err := s.writeOnce(nowBytes, nowBytes)
	s.writing.Unlock()
	s.mu.Lock()
	more := len(s.ready) > 0 || len(s.control) > 0 || len(s.talkers) > 0
	s.mu.Unlock()
	if more || err != nil {
		poke(s.wake)
	}
}

// writeOnce gathers and writes about limit bytes, of batches up to largest. The
// caller has the right to write. An error has ended the session.
func (s *session) writeOnce(limit int64, largest int) (n int64, err error) {
	g := &s.g
	s.gather(g, limit, largest)
	if g.size == 0 {
		return 0, nil
	}
	n, err = g.buffers.WriteTo(s.conn)
	s.sent.Add(1)
	if err != nil {
		s.fail(disconnected(err)) // before anybody looks for a session to resend on
	}
	for i, b := range g.batches {
		b.written(n > g.starts[i], err)
	}
	clear(g.batches)
	clear(g.backing)
	return n, err
}

// goodbyeTimeout is how long a connection that is being closed may take for what
// was said and not yet written.
const goodbyeTimeout = 100 * time.Millisecond

// sendControl writes what waits besides batches, before the session is ended: a
// report of damage is worth most when the one who met it gives up over it.
func (s *session) sendControl() {
	s.conn.SetWriteDeadline(time.Now().Add(goodbyeTimeout)) // also for a write that hangs
	s.writing.Lock()
	s.writeOnce(0, 0) // without batches; an error has ended the session
	s.writing.Unlock()
}

// gather collects the requests that wait and batches from the accumulators in
// turn, one each, until limit bytes are together or a batch is above largest.
func (s *session) gather(g *gathered, limit int64, largest int) {
	g.batches, g.starts = g.batches[:0], g.starts[:0]
	g.backing = g.backing[:0]

	s.mu.Lock()
	s.control, g.control = g.control[:0], s.control
	s.ready, g.ready = g.ready[:0], s.ready
	s.talkers, g.talkers = g.talkers[:0], s.talkers
	alive := s.err == nil
	s.mu.Unlock()

	for i, at := range g.talkers {
		g.control = at.appendOutcomes(g.control, s)
		g.talkers[i] = nil
	}
	g.size = int64(len(g.control))
	if g.size > 0 {
		g.backing = append(g.backing, g.control)
	}
	full := false
	for !full && len(g.ready) > 0 {
		// One batch from each in turn; those that have more stay in the list.
		kept := 0
		for i, a := range g.ready {
			if full = !alive || g.size >= limit || !s.admits(); full {
				kept += copy(g.ready[kept:], g.ready[i:])
				break
			}
			b, more := a.take(s, largest)
			if full = b == nil && more; full { // it is too large
				kept += copy(g.ready[kept:], g.ready[i:])
				break
			}
			if more {
				g.ready[kept] = a
				kept++
			}
			if b != nil {
				alive = g.add(s, b)
			}
		}
		clear(g.ready[kept:])
		g.ready = g.ready[:kept]
	}
	if len(g.ready) > 0 {
		s.mu.Lock()
		if s.err == nil {
			s.ready = append(s.ready, g.ready...)
		}
		s.mu.Unlock()
		clear(g.ready)
		g.ready = g.ready[:0]
	}
	g.buffers = g.backing
}

// add finishes a batch and puts it behind what is gathered. It reports false
// when the session is dead.
func (g *gathered) add(s *session, b *batch) bool {
	b.seal()
	if n, limit := wire.FrameLength(b.request.BodySize()), s.hello.MaxFrameBytes; limit != 0 && n > limit {
		b.refuse(wire.Errorf(wire.CodeTooLarge, "batch of %d bytes, the broker takes %d", n, limit))
		return true
	}
	id, err := s.expect(b)
	if err != nil {
		b.written(false, err)
		return false
	}
	before := g.size
	for _, piece := range b.frame(id) {
		if len(piece) > 0 {
			g.backing = append(g.backing, piece)
			g.size += int64(len(piece))
		}
	}
	g.batches = append(g.batches, b)
	g.starts = append(g.starts, before)
	return true
}

// admits reports whether the broker's limits on unanswered requests leave room
// for another batch. Where they do not, the next answer wakes the writer.
func (s *session) admits() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	requests, bytes := int64(s.hello.MaxInFlightRequests), int64(s.hello.MaxInFlightBytes)
	s.held = requests != 0 && int64(len(s.waiters)) >= requests || bytes != 0 && s.inFlightBytes >= bytes
	return !s.held
}

// expect makes a batch wait for its answer, if it gets one.
func (s *session) expect(b *batch) (id uint32, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return 0, &lostError{s.err}
	}
	if !b.answerable() {
		s.blind = true
		return 0, nil
	}
	s.inFlightBytes += b.size()
	b.id = s.register(b)
	return b.id, nil
}
