package server

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"time"

	"github.com/panjf2000/gnet/v2"
	"golang.org/x/sys/unix"

	"github.com/lockstepmq/lockstep/wire"
)

// Limits of forwarding.
const (
	// maxUpstreams is how many nodes one session forwards to at the same time.
	maxUpstreams = 64
	// forwardedSessions is how many connections for forwarding this node has open to
	// others, all sessions together; beyond it a request is answered RETRY.
	forwardedSessions = 1024
	// upstreamDialTimeout bounds a connection attempt: a stopped process accepts
	// connections and does not answer, and that is found out by the handshake.
	upstreamDialTimeout = time.Second
	// upstreamPing is after how long an upstream that owes something and is silent is
	// asked for a sign of life, and upstreamSilence after how long it is given up.
	upstreamPing    = 2 * time.Second
	upstreamSilence = 6 * time.Second
	// upstreamIdle is after how long without anything to do it is closed.
	upstreamIdle = 20 * time.Second
	// upstreamUnread is how much may wait for the client before its upstreams are not
	// read. It is less than what replies may take: as long as the client takes a tenth
	// of it a second, the leader does not take it for one that has stopped reading.
	upstreamUnread = 128 << 10
)

// upstreamPhase is how far an upstream has come. It only moves forward.
type upstreamPhase uint8

const (
	upstreamDialing upstreamPhase = iota
	upstreamHello                 // HELLO is out
	upstreamOpen
	upstreamClosed
)

// upstream carries the requests of one session to the node that leads their
// partitions, for a client that does not go there itself.
//
//	client ──session──▶ upstream ═══ connection of its own ═══▶ session of the leader
//
// Requests get the leader's handle and an ID of ours, answers and streams the client's.
// Credit travels from end to end, and while the client does not take what waits for it
// the upstream is not read: a slow client holds up nobody but itself. Nothing is kept
// here: an acknowledgement is the leader's, and when the connection is lost, what was
// sent and not answered has an unknown outcome.
//
// It lives on its session's loop and everything is done there.
type upstream struct {
	connBase
	session *session
	node    uint32
	conn    gnet.Conn
	phase   upstreamPhase

	out    *buffer // to be written
	sent   int     // of it
	dirty  bool    // in session.dirty
	held   int     // bytes counted in counters.outbound
	rest   *buffer // of a frame that has not arrived completely
	need   int     // bytes that rest must have to go on
	paused bool    // not read, because the client does not read

	nextID  uint32
	pending map[uint32]forwarded // that wait for an answer, by our ID
	handles map[*handle]*leaderHandle
	links   map[uint32]*forwardedLink // by the leader's ID

	readAt  time.Duration
	wroteAt time.Duration
	usedAt  time.Duration
}

// forwarded is a request that the leader has not answered yet.
type forwarded struct {
	opcode wire.Opcode
	id     uint32 // of the client's request, unless it is one of ours
	ours   bool   // nobody waits for the answer but the upstream
	handle *handle
}

// leaderHandle is a partition as the leader's session knows it.
type leaderHandle struct {
	number  uint32  // 0 until the leader has answered
	waiting *buffer // frames that wait for that
}

// forwardedLink is a link whose stream comes from another node.
type forwardedLink struct {
	up     *upstream
	id     uint32  // the client's
	remote uint32  // the leader's
	handle *handle // nil: a temporary queue
}

var (
	errUpstreamSilent = errors.New("it does not answer")
	errUpstreamIdle   = errors.New("it was not used")
)

// forward hands a request on to the leader of a partition. It is in flight already
// if it is one that is answered.
func (s *session) forward(h wire.Header, t *handle, body []byte, answered bool) {
	s.forwardTo(t.node, h, t, body, answered)
}

// forwardTo hands a request on to a node. Without a handle it is one that does not begin
// with the number of one.
func (s *session) forwardTo(node uint32, h wire.Header, t *handle, body []byte, answered bool) {
	u, err := s.upstreamTo(node)
	if err == nil {
		s.engine.counters.forwarded.Add(1)
		h.Flags, u.usedAt = 0, s.loop.now
		if answered {
			h.ID = u.note(forwarded{opcode: h.Opcode, id: h.ID, handle: t})
		}
		if opensLink(h.Opcode) {
			s.opening++
		}
		if t == nil || h.Opcode == wire.OpOpenPartition {
			u.put(h, body)
		} else {
			u.putFor(t, h, body)
		}
		return
	}
	if answered {
		s.finish(h.ID, nil, err)
	} else {
		s.engine.counters.countError(errorBody(err).Code)
	}
}

// upstreamTo finds or makes the upstream to a node.
func (s *session) upstreamTo(node uint32) (*upstream, error) {
	if u := s.upstreams[node]; u != nil {
		return u, nil
	}
	e := s.engine
	n, ok := e.backend.View().Node(node)
	switch {
	case !ok || n.PeerAddress == "":
		return nil, wire.Errorf(wire.CodeRetry, "the request is for node %d, and where it is to be reached is not known yet", node)
	case len(s.upstreams) >= maxUpstreams:
		return nil, wire.Errorf(wire.CodeTooMany, "requests are forwarded to %d nodes; one connection may have them forwarded to %d", len(s.upstreams), maxUpstreams)
	case e.counters.upstreams.Add(1) > forwardedSessions:
		e.counters.upstreams.Add(-1)
		return nil, wire.Errorf(wire.CodeRetry, "%d sessions are forwarded, as many as may be; connect to node %d at %s, or follow redirects", forwardedSessions, node, n.Address)
	}
	u := &upstream{
		session: s, node: node, pending: make(map[uint32]forwarded), handles: make(map[*handle]*leaderHandle),
		links: make(map[uint32]*forwardedLink), readAt: s.loop.now, usedAt: s.loop.now,
	}
	u.fd, u.timer.conn, u.loop = -1, u, s.loop
	if s.upstreams == nil {
		s.upstreams = make(map[uint32]*upstream)
	}
	s.upstreams[node] = u
	e.dial(s.loop, n.PeerAddress, u, u.failed)
	return u, nil
}

// dial connects to an address and hands the connection to a loop; failed is called on
// the loop if that does not succeed.
func (e *engine) dial(l *loop, address string, c loopConn, failed func(error)) {
	e.dials.Go(func() {
		dialer := net.Dialer{Timeout: upstreamDialTimeout}
		conn, err := dialer.DialContext(e.dialing, "tcp", address)
		if err == nil {
			err = e.enroll(l, conn, c)
		}
		if err != nil {
			l.post(func() { failed(err) })
		}
	})
}

// open implements loopConn.
func (u *upstream) open(l *loop, c gnet.Conn) {
	defer u.recovered("opening")
	u.conn, u.fd = c, c.Fd()
	u.opened.Store(true)
	if u.phase == upstreamClosed { // the session has ended meanwhile
		_ = l.gnet.Close(c)
		return
	}
	s := u.session
	info := s.engine.backend.Info()
	u.phase, u.readAt = upstreamHello, l.now
	b := newBuffer(wire.MaxHandshakeFrameBytes)
	defer b.free()
	b.bytes = append(b.bytes, wire.ForwardPreface...)
	b.bytes = wire.AppendFrame(b.bytes, wire.Header{Opcode: wire.OpHello, Version: wire.OpHello.Version()}, &wire.ForwardRequest{
		HelloRequest: wire.HelloRequest{
			MinVersion: wire.MinProtocolVersion, MaxVersion: wire.MaxProtocolVersion, ClientName: s.name, ClusterID: info.ClusterID,
		},
		Node: info.NodeID, Hops: s.hops + 1, ClientAddress: s.remote,
	})
	if n, err := unix.Write(u.fd, b.bytes); err != nil || n < len(b.bytes) { // a new socket takes 4 KiB
		u.drop(fmt.Errorf("HELLO was not taken: %w", err))
		return
	}
	l.wheel.schedule(&u.timer, l.now+upstreamPing)
}

// failed ends an upstream that did not come about.
func (u *upstream) failed(err error) {
	if u.phase != upstreamClosed {
		u.drop(err)
	}
}

func (u *upstream) recovered(where string) {
	if r := recover(); r != nil {
		u.session.engine.panicked(fmt.Sprintf("forwarding of session %s to node %d while %s", u.session.remote, u.node, where), r)
		u.failed(fmt.Errorf("panic while %s", where))
	}
}

// note gives a request an ID of ours.
func (u *upstream) note(f forwarded) uint32 {
	u.nextID++
	u.pending[u.nextID] = f
	u.usedAt = u.loop.now
	return u.nextID
}

// putFor queues a request that begins with a handle. If the leader has not opened the
// partition for us, it is asked to first.
func (u *upstream) putFor(t *handle, h wire.Header, body []byte) {
	p := u.handles[t]
	if p == nil {
		p = new(leaderHandle)
		u.handles[t] = p
		id := u.note(forwarded{opcode: wire.OpOpenPartition, ours: true, handle: t})
		request := wire.OpenPartitionRequest{Destination: t.dest.Name, Partition: t.key.partition}
		u.put(wire.Header{Opcode: wire.OpOpenPartition, Version: wire.OpOpenPartition.Version(), ID: id}, request.Append(nil))
		if u.phase == upstreamClosed {
			return
		}
	}
	if p.number != 0 {
		u.put(h, body)
		if u.phase != upstreamClosed {
			end := len(u.out.bytes)
			binary.LittleEndian.PutUint32(u.out.bytes[end-len(body):], p.number)
		}
		return
	}
	p.waiting = appendForwarded(p.waiting, h, body)
	u.bound()
}

func appendForwarded(b *buffer, h wire.Header, body []byte) *buffer {
	b = b.room(wire.HeaderSize + len(body))
	h.Length = wire.FrameLength(len(body))
	b.bytes = append(wire.AppendHeader(b.bytes, h), body...)
	return b
}

// put queues a frame. If there is no room for it, it takes that of what was sent, as long as
// moving the rest costs little for each byte: a leader that is always a little behind leaves
// no moment in which everything is.
func (u *upstream) put(h wire.Header, body []byte) {
	if n := u.sent; n > 0 && len(u.out.bytes)+wire.HeaderSize+len(body) > cap(u.out.bytes) && 4*n >= len(u.out.bytes) {
		u.out.bytes = append(u.out.bytes[:0], u.out.bytes[n:]...)
		u.sent = 0
	}
	u.out = appendForwarded(u.out, h, body)
	if !u.dirty {
		u.dirty = true
		u.session.dirty = append(u.session.dirty, u)
	}
	u.bound()
}

// bound ends an upstream that holds more than what a session may have in flight, or
// more than its share of what all may hold together.
func (u *upstream) bound() {
	l := &u.session.engine.limits
	n := u.out.capacity()
	for _, p := range u.handles {
		if p.waiting != nil {
			n += p.waiting.capacity()
		}
	}
	total := u.session.engine.counters.outbound.Add(int64(n - u.held))
	u.held = n
	if n > 2*(l.InFlightBytes+wire.MaxFrameBytes) || total > int64(l.OutboundBytes) && n > fairBytes {
		u.drop(fmt.Errorf("it does not take what is sent: %d bytes wait", n))
	}
}

// flush writes what waits, as far as the socket takes it.
func (u *upstream) flush() {
	u.dirty = false
	for u.phase == upstreamOpen && u.out != nil && !u.awaiting.Load() {
		n, err := unix.Write(u.fd, u.out.bytes[u.sent:])
		switch {
		case err == unix.EINTR:
			continue
		case err == unix.EAGAIN:
			n = 0
		case err != nil:
			u.drop(fmt.Errorf("write: %w", err))
			return
		}
		if u.sent += n; u.sent < len(u.out.bytes) {
			if err := u.session.engine.writables.await(u); err != nil {
				u.drop(err)
			}
			return
		}
		u.out.free()
		u.out, u.sent, u.wroteAt = nil, 0, u.loop.now
		u.bound()
	}
}

// turn implements loopConn: the socket takes more.
func (u *upstream) turn() {
	defer u.recovered("writing")
	u.flush()
}

// traffic implements loopConn.
func (u *upstream) traffic(in []byte) {
	defer u.recovered("reading")
	u.readAt = u.loop.now
	for len(in) > 0 && u.phase < upstreamClosed {
		if u.rest == nil {
			used, size := u.frame(in)
			if used == 0 {
				u.keep(in, size)
				break
			}
			in = in[used:]
			continue
		}
		n := min(max(u.need-u.rest.size(), 0), len(in))
		u.keep(in[:n], u.need)
		in = in[n:]
		if u.rest.size() < u.need {
			break
		}
		used, size := u.frame(u.rest.bytes)
		if used == 0 {
			u.need = size
			continue
		}
		u.rest.free()
		u.rest = nil
	}
	if u.phase != upstreamClosed && u.session.out.unread() >= upstreamUnread {
		u.watch(true)
	}
}

// keep keeps bytes of a frame that needs so many.
func (u *upstream) keep(in []byte, need int) {
	if u.phase == upstreamClosed || len(in) == 0 {
		return
	}
	u.need = need
	u.rest = u.rest.room(len(in))
	u.rest.bytes = append(u.rest.bytes, in...)
}

// watch stops reading the leader's connection while its client does not read, and
// begins again.
func (u *upstream) watch(pause bool) {
	if u.paused == pause || u.loop.epoll < 0 || u.fd < 0 {
		return
	}
	u.paused = pause
	if !pause {
		u.readAt = u.loop.now
	}
	if err := watch(u.loop.epoll, u.fd, !pause); err != nil {
		u.drop(fmt.Errorf("epoll_ctl: %w", err))
	}
}

// frame handles the frame at the start of b if it is there completely, and returns
// its size. Otherwise it returns how many bytes must be there to go on, or has ended
// the upstream.
func (u *upstream) frame(b []byte) (used, size int) {
	h, err := wire.ParseHeader(b)
	switch {
	case errors.Is(err, wire.ErrHeaderShort):
		return 0, wire.HeaderSize
	case err != nil:
		u.drop(err)
		return 0, 0
	}
	size = h.TotalSize()
	if len(b) < size {
		return 0, size
	}
	body := b[wire.HeaderSize:size:size]
	if u.phase == upstreamHello {
		err = u.hello(h, body)
	} else {
		err = u.received(h, body)
	}
	if err != nil {
		u.drop(err)
	}
	return size, size
}

// hello handles the answer to HELLO.
func (u *upstream) hello(h wire.Header, body []byte) error {
	if h.Flags&wire.FlagError != 0 {
		return leaderError(body)
	}
	var m wire.HelloResponse
	if err := m.Parse(body); err != nil {
		return err
	}
	u.phase, u.wroteAt = upstreamOpen, u.loop.now
	u.flush()
	return nil
}

// leaderError is the error that a frame carries.
func leaderError(body []byte) error {
	var m wire.ErrorBody
	if err := m.Parse(body); err != nil {
		return err
	}
	return m.Err()
}

// received handles a frame of the leader. An error ends the upstream.
func (u *upstream) received(h wire.Header, body []byte) error {
	switch h.Opcode {
	case wire.OpEvent:
		if h.Flags&wire.FlagError != 0 {
			return leaderError(body)
		}
		return nil // this node has news of its own
	case wire.OpDeliver, wire.OpGroupDeliver, wire.OpGroupAnswer, wire.OpGroupRevoke, wire.OpGroupLost, wire.OpGroupHeartbeat, wire.OpGroupBinding, wire.OpTempDeliver:
		if k := u.links[h.ID]; k != nil {
			u.session.pass(wire.Header{Opcode: h.Opcode, Version: h.Version, ID: k.id}, body)
		}
		return nil
	case wire.OpLinkClosed:
		if k := u.links[h.ID]; k != nil {
			delete(u.links, k.remote)
			delete(u.session.forwardedLinks, k.id)
			u.session.pass(wire.Header{Opcode: h.Opcode, Version: h.Version, ID: k.id}, body)
		}
		return nil
	}
	f, ok := u.pending[h.ID]
	if !ok || h.Flags&wire.FlagResponse == 0 || h.Opcode != f.opcode {
		return wire.Errorf(wire.CodeMalformed, "%v with the ID %d answers nothing", h.Opcode, h.ID)
	}
	delete(u.pending, h.ID)
	err := u.answered(f, h, body)
	if err != nil {
		u.fail(f, wire.Errorf(wire.CodeUnavailable, "the answer of node %d cannot be read: %v", u.node, err))
	}
	return err
}

// answered hands an answer to the client.
func (u *upstream) answered(f forwarded, h wire.Header, body []byte) error {
	s := u.session
	failed := h.Flags&wire.FlagError != 0
	switch f.opcode {
	case wire.OpPing:
		return nil
	case wire.OpOpenPartition:
		return u.openedPartition(f, failed, body)
	case wire.OpLinkOpen, wire.OpGroupAttach, wire.OpGroupBind, wire.OpTempOpen:
		return u.openedLink(f, failed, body)
	}
	s.answer(f.id, h.Flags, body)
	return nil
}

// openedPartition handles the answer to OPEN_PARTITION.
func (u *upstream) openedPartition(f forwarded, failed bool, body []byte) error {
	s := u.session
	var m wire.OpenPartitionResponse
	var refused error
	if failed {
		if refused = leaderError(body); refused == nil {
			refused = wire.CodeUnknown
		}
	} else if err := m.Parse(body); err != nil {
		return err
	} else if f.handle.key.destination != m.DestinationID {
		refused = wire.Errorf(wire.CodeRetry, "node %d knows another destination of the name %q", u.node, f.handle.dest.Name)
	}
	if !f.ours {
		number := m.Handle
		m.Handle = f.handle.number
		s.finish(f.id, &m, refused)
		m.Handle = number
	}
	p := u.handles[f.handle]
	switch {
	case refused == nil && p == nil:
		u.handles[f.handle] = &leaderHandle{number: m.Handle}
	case refused == nil:
		p.number = m.Handle
		u.release(p)
	case f.ours: // what waits for it cannot be sent
		delete(u.handles, f.handle)
		u.refuse(p, refused)
	}
	return nil
}

// frames calls f with each of the frames in b and frees it.
func frames(b *buffer, f func(h wire.Header, body []byte)) {
	if b == nil {
		return
	}
	for rest := b.bytes; len(rest) > 0; {
		h, err := wire.ParseHeader(rest)
		if err != nil {
			panic(fmt.Sprintf("server: a frame of ours: %v", err))
		}
		f(h, rest[wire.HeaderSize:h.TotalSize()])
		rest = rest[h.TotalSize():]
	}
	b.free()
}

// release sends what waited for a partition to be opened.
func (u *upstream) release(p *leaderHandle) {
	b := p.waiting
	p.waiting = nil
	frames(b, func(h wire.Header, body []byte) {
		binary.LittleEndian.PutUint32(body, p.number)
		if u.phase != upstreamClosed {
			u.put(h, body)
		}
	})
	if u.phase != upstreamClosed {
		u.flush()
	}
}

// refuse answers what waited for a partition that is not opened.
func (u *upstream) refuse(p *leaderHandle, why error) {
	b := p.waiting
	p.waiting = nil
	frames(b, func(h wire.Header, _ []byte) {
		if f, ok := u.pending[h.ID]; ok {
			delete(u.pending, h.ID)
			u.fail(f, why)
		}
	})
}

// fail answers a request of the client with an error.
func (u *upstream) fail(f forwarded, why error) {
	if f.ours {
		return
	}
	if opensLink(f.opcode) {
		u.session.opening--
	}
	u.session.finish(f.id, nil, why)
}

// opensLink reports whether the answer to a request begins with the ID of a link.
func opensLink(op wire.Opcode) bool {
	return op == wire.OpLinkOpen || op == wire.OpGroupAttach || op == wire.OpGroupBind || op == wire.OpTempOpen
}

// openedLink handles the answer to LINK_OPEN and the like.
func (u *upstream) openedLink(f forwarded, failed bool, body []byte) error {
	s := u.session
	if failed {
		s.opening--
		s.answer(f.id, wire.FlagError, body)
		return nil
	}
	if len(body) < 4 {
		return wire.Errorf(wire.CodeMalformed, "an answer to %v of %d bytes", f.opcode, len(body))
	}
	remote := binary.LittleEndian.Uint32(body)
	s.opening--
	if s.phase != phaseOpen || s.halfClosed {
		if f.handle != nil { // a temporary queue outlives its link
			u.control(wire.OpLinkClose, remote, nil)
		}
		s.finish(f.id, nil, wire.Errorf(wire.CodeUnavailable, "the client ended its side of the connection before the link was open"))
		return nil
	}
	s.nextLink++
	k := &forwardedLink{up: u, id: s.nextLink, remote: remote, handle: f.handle}
	u.links[k.remote] = k
	if s.forwardedLinks == nil {
		s.forwardedLinks = make(map[uint32]*forwardedLink)
	}
	s.forwardedLinks[k.id] = k
	body = slices.Clone(body)
	binary.LittleEndian.PutUint32(body, k.id)
	s.answer(f.id, 0, body)
	return nil
}

// control sends what the client says on a link of the leader.
func (u *upstream) control(op wire.Opcode, link uint32, body []byte) {
	u.put(wire.Header{Opcode: op, Version: op.Version(), ID: link}, body)
	if u.phase != upstreamClosed {
		u.flush()
	}
}

// closeForwarded ends a link that another node serves, and tells the client why.
func (s *session) closeForwarded(k *forwardedLink, why wire.ErrorBody) {
	s.forgetForwarded(k)
	s.engine.counters.countError(why.Code)
	s.linkClosed(k.id, why)
}

func (s *session) forgetForwarded(k *forwardedLink) {
	delete(s.forwardedLinks, k.id)
	delete(k.up.links, k.remote)
	if k.up.phase != upstreamClosed && k.handle != nil { // a temporary queue outlives its link
		k.up.control(wire.OpLinkClose, k.remote, nil)
	}
}

// followForwarded closes a link whose partition is not led from where its stream comes
// any more.
func (s *session) followForwarded(k *forwardedLink) {
	if k.handle == nil { // of a temporary queue, which stays where it is
		return
	}
	err := s.refresh(k.handle)
	if err == nil && k.handle.node != k.up.node {
		err = wire.NotLeader(k.handle.node, 0)
	}
	if err != nil {
		s.closeForwarded(k, errorBody(err))
	}
}

// checkDeadlines implements loopConn.
func (u *upstream) checkDeadlines() {
	defer u.recovered("checking deadlines")
	now := u.loop.now
	busy := len(u.pending) > 0 || len(u.links) > 0 || u.phase < upstreamOpen
	switch {
	case u.phase == upstreamClosed:
		return
	case u.paused: // it is the client that does not read
		u.readAt = now
	case busy && now-u.readAt >= upstreamSilence:
		u.drop(errUpstreamSilent)
		return
	case u.phase == upstreamOpen && busy && (now-u.readAt >= upstreamPing || now-u.wroteAt >= upstreamIdle):
		u.put(wire.Header{Opcode: wire.OpPing, Version: wire.OpPing.Version(), ID: u.note(forwarded{opcode: wire.OpPing, ours: true})}, nil)
		if u.phase != upstreamClosed {
			u.flush()
		}
	case !busy && now-u.usedAt >= upstreamIdle:
		u.drop(errUpstreamIdle)
		return
	}
	if u.phase != upstreamClosed {
		u.loop.wheel.schedule(&u.timer, now+upstreamPing)
	}
}

// disconnected implements loopConn.
func (u *upstream) disconnected(endOfStream bool, err error) {
	defer u.recovered("closing")
	if u.phase == upstreamClosed {
		return
	}
	if endOfStream || err == nil {
		err = errors.New("it closed the connection")
	}
	u.conn = nil // gnet closes it
	u.drop(err)
}

// drop ends the upstream. What the leader may have got has an unknown outcome, what it
// has not can be sent again.
func (u *upstream) drop(cause error) {
	s := u.session
	was := u.phase
	u.phase = upstreamClosed
	u.loop.wheel.remove(&u.timer)
	s.engine.counters.upstreams.Add(-1)
	s.engine.counters.outbound.Add(-int64(u.held))
	u.held = 0
	if u.fd >= 0 {
		s.engine.writables.forget(u)
		u.fd = -1
	}
	if c := u.conn; c != nil {
		u.conn = nil
		_ = u.loop.gnet.Close(c)
	}
	delete(s.upstreams, u.node)
	if cause != errUpstreamIdle && s.phase < phaseClosing {
		s.engine.bad.log("a session is not forwarded any more", slog.Int("node", int(u.node)), slog.String("address", s.remote), slog.Any("cause", cause))
	}
	certain := wire.Errorf(wire.CodeRetry, "node %d, which leads the partition or has the queue, cannot be reached: %v", u.node, cause)
	unknown := wire.Errorf(wire.CodeUnavailable, "the connection to node %d, which leads the partition or has the queue, was lost: %v", u.node, cause)
	for _, p := range u.handles {
		u.refuse(p, certain)
	}
	why := certain
	if was == upstreamOpen {
		why = unknown
	}
	for id, f := range u.pending {
		delete(u.pending, id)
		u.fail(f, why)
	}
	for _, k := range u.links {
		s.closeForwarded(k, errorBody(unknown))
	}
	u.out.free()
	u.rest.free()
	u.out, u.rest = nil, nil
}

// dropUpstreams ends all upstreams with their session.
func (s *session) dropUpstreams() {
	for _, u := range s.upstreams {
		u.drop(errors.New("the client is gone"))
	}
}

// flushUpstreams sends what the requests of this callback have brought.
func (s *session) flushUpstreams() {
	for _, u := range s.dirty {
		if u.phase != upstreamClosed {
			u.flush()
		}
	}
	clear(s.dirty)
	s.dirty = s.dirty[:0]
}

// resumeUpstreams reads the leaders' connections again when the client has taken
// what waited for it.
func (s *session) resumeUpstreams() {
	for _, u := range s.upstreams {
		u.watch(false)
	}
}
