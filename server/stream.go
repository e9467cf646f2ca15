package server

import (
	"cmp"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/lockstepmq/lockstep/log"
	"github.com/lockstepmq/lockstep/wire"
)

// link streams one partition to one client.
//
//	idle ──credit, records──▶ active ──written──▶ active … ──at the end──▶ parked
//	  ▲                         │                                            │
//	  └────── no credit ────────┘◀───────────── the watermark moved ─────────┘
//
// An active link waits in its session's list for a turn. A turn (pump) lays one
// DELIVER header in Go memory in front of the mapped slices of each piece and
// hands all of it to the kernel with one writev: the payload is not copied by us,
// and nothing is done for each record. No Go code ever loads from the mapped
// slices.
//
// When the socket does not take everything, the rest of the piece it stopped in
// waits as the mapped slices it is (cut), and everything after it was not touched.
// So a client that does not read costs no memory of ours. What it costs is that the
// segment of that one piece stays, should retention remove it meanwhile, until the
// client has read the piece or its write deadline ends the session.
//
// Fields are the loop's, except in Wake and position.
type link struct {
	session *session
	id      uint32
	handle  *handle
	replica replica // that it streams from
	log     partitionLog
	credit  int64 // bytes of stream that may be sent
	at      log.Position

	streaming
	parked  bool
	told    bool // the client knows that it is at the end
	loading bool // a worker makes the next range resident, or reads it

	// A link that replays old records has the range before it made resident while
	// it sends the one it has. warm is where that ends; it counts while ahead of at.
	warm    log.Position
	warming bool
}

// position implements waiter.
func (k *link) position() log.Position { return k.at }

// Wake implements waiter: the watermark has moved, or the partition has stopped.
// Any goroutine.
func (k *link) Wake() {
	o := &k.session.out
	o.mu.Lock()
	o.woken = append(o.woken, k)
	notify := o.notifyLocked()
	o.mu.Unlock()
	if notify {
		k.session.loop.push(k.session)
	}
}

// streamer is what sends out of the map, in turn with others of its session: a link, or
// a link of a group. Its methods are called on the session's loop.
type streamer interface {
	// state is what the session notes about it.
	state() *streaming
	// woke says that it was woken, and waits for nothing any more.
	woke()
	// next adds its next piece to a write. It reports whether it could go on.
	next(g *gather) (more bool)
	// undo takes a piece back of which nothing was written.
	undo(p *piece)
	// reread does by pread what the kernel could not do from the map. Its pieces were
	// taken back.
	reread()
}

// streaming is where a streamer stands.
type streaming struct {
	active bool // in session.active
	closed bool // it sends nothing any more
}

// activate gives a streamer that was woken a place in its session's list of those that
// could send.
func (s *session) activate(k streamer) {
	k.woke()
	if st := k.state(); !st.closed && !st.active {
		st.active = true
		s.active = append(s.active, k)
	}
}

// run puts a streamer to work.
func (s *session) run(k streamer) {
	s.activate(k)
	s.loop.addStream(s)
}

// state implements streamer.
func (k *link) state() *streaming { return &k.streaming }

// woke implements streamer.
func (k *link) woke() { k.parked = false }

func (s *session) linkOpen(h wire.Header, body []byte) error {
	var m wire.LinkOpenRequest
	if err := m.Parse(body); err != nil {
		return err
	}
	if !s.begin(h, inFlight{bytes: len(body)}) {
		return nil
	}
	t, err := s.handle(m.Handle)
	if open := len(s.links) + len(s.forwardedLinks) + len(s.groupLinks) + len(s.temporary); err == nil && open+s.opening >= s.engine.limits.Links {
		err = wire.Errorf(wire.CodeTooMany, "%d links are open; one connection may have %d", open, s.engine.limits.Links)
	}
	if err != nil {
		s.finish(h.ID, nil, err)
		return nil
	}
	if t.replica == nil {
		s.forward(h, t, body, true)
		return nil
	}
	info := t.replica.info()
	if err := t.lost(&m, &info); err != nil {
		s.finish(h.ID, nil, err)
		return nil
	}
	if m.Offset > info.NextOffset && !t.replica.Leading() {
		// A leader that has just started may not know yet how far its log is
		// committed: the client's position is not wrong, only early.
		s.finish(h.ID, nil, wire.Errorf(wire.CodeRetry, "offset %d may be above the next offset %d only for now", m.Offset, info.NextOffset))
		return nil
	}
	if m.Offset < info.StartOffset || m.Offset > info.NextOffset {
		why := s.readError(t, &log.OutOfRangeError{Offset: m.Offset, Start: info.StartOffset, Next: info.NextOffset})
		s.finish(h.ID, nil, why.Err())
		return nil
	}
	s.opening++
	r := t.replica
	records := r.Log()
	var at log.Position
	s.blocking(r, func() (err error) {
		at, _, err = records.Locate(m.Offset)
		return err
	}, func(err error) {
		s.opening--
		if s.phase != phaseOpen {
			return
		}
		if err == nil && s.halfClosed {
			err = wire.Errorf(wire.CodeUnavailable, "the client ended its side of the connection before the link was open")
		}
		if err != nil {
			why := s.readError(t, err)
			s.finish(h.ID, nil, why.Err())
			return
		}
		s.startLink(h.ID, t, r, at, m.Credit)
	})
	return nil
}

// startLink answers LINK_OPEN and begins to send.
func (s *session) startLink(id uint32, t *handle, r replica, at log.Position, credit uint32) {
	s.nextLink++
	k := &link{session: s, id: s.nextLink, handle: t, replica: r, log: r.Log(), at: at}
	k.grant(credit)
	if s.links == nil {
		s.links = make(map[uint32]*link)
	}
	s.links[k.id] = k
	s.engine.counters.links.Add(1)
	info := r.info()
	s.finish(id, &wire.LinkOpenResponse{Link: k.id, StartOffset: info.StartOffset, NextOffset: info.NextOffset}, nil)
	s.run(k)
}

// grant adds credit, up to the limit.
func (k *link) grant(credit uint32) {
	k.credit = min(k.credit+int64(credit), int64(k.session.engine.limits.LinkCredit))
}

func (s *session) linkCredit(h wire.Header, body []byte) error {
	var m wire.LinkCredit
	if err := m.Parse(body); err != nil {
		return err
	}
	// A link that is not there was closed while the credit was on its way.
	if k := s.links[h.ID]; k != nil {
		k.grant(m.Credit)
		if !k.parked && !k.loading {
			s.run(k)
		}
	} else if k := s.forwardedLinks[h.ID]; k != nil {
		k.up.control(h.Opcode, k.remote, body)
	}
	return nil
}

func (s *session) linkClose(h wire.Header, body []byte) error {
	var m wire.LinkClose
	if err := m.Parse(body); err != nil {
		return err
	}
	k := s.links[h.ID]
	if f := s.forwardedLinks[h.ID]; f != nil {
		f.up.control(h.Opcode, f.remote, nil) // LINK_CLOSED comes from there
		return nil
	}
	if g := s.groupLinks[h.ID]; g != nil { // the session stays until it is missed
		s.forgetGroupLink(g, false)
		s.linkClosed(h.ID, wire.ErrorBody{})
		return nil
	}
	if q := s.temporary[h.ID]; q != nil {
		s.closeTemporary(h.ID, q)
		return nil
	}
	if k == nil {
		s.linkClosed(h.ID, wire.ErrorBody{Code: wire.CodeUnknownLink})
		return nil
	}
	s.closeLink(k, wire.ErrorBody{})
	return nil
}

// closeLink ends a link and tells the client why.
func (s *session) closeLink(k *link, why wire.ErrorBody) {
	s.forgetLink(k)
	s.engine.counters.countError(why.Code)
	s.linkClosed(k.id, why)
}

func (s *session) linkClosed(id uint32, why wire.ErrorBody) {
	s.send(wire.Header{Opcode: wire.OpLinkClosed, Version: wire.OpLinkClosed.Version(), ID: id}, &why)
	s.checkFull()
}

func (s *session) forgetLink(k *link) {
	k.closed = true
	if k.parked {
		k.parked = false
		k.replica.Unpark(k)
	}
	delete(s.links, k.id)
	s.engine.counters.links.Add(-1)
}

// closeLinks ends all links without a word: the connection ends with them.
func (s *session) closeLinks() {
	for _, k := range s.links {
		s.forgetLink(k)
	}
	for _, k := range s.forwardedLinks {
		s.forgetForwarded(k)
	}
	s.closeGroupLinks()
	s.leaveTemporary()
	s.active = nil
}

// topologyChanged looks at links whose destination may be gone, or led from elsewhere.
func (s *session) topologyChanged() {
	defer s.recovered("looking at new metadata")
	for _, k := range s.links {
		s.follow(k)
	}
	for _, k := range s.forwardedLinks {
		s.followForwarded(k)
	}
}

// tellOrphans tells a client that wants to know of partitions that it has open and that
// have had no leader for orphanTicks. Each is told of once, until it has one again.
func (s *session) tellOrphans() {
	defer s.recovered("looking for partitions without a leader")
	if s.phase != phaseOpen || s.features&wire.FeatureTopologyEvents == 0 {
		return
	}
	for _, t := range s.handles {
		r, err := s.engine.backend.Route(t.key.destination, t.key.partition)
		was := t.orphaned
		t.orphaned = err == nil && r.local == nil && r.node == 0
		if t.orphaned {
			s.engine.orphans.Store(true) // look again
		}
		switch {
		case !t.orphaned:
			t.toldOf = false
		case was && !t.toldOf:
			t.toldOf = s.tell(&wire.Event{
				Kind: wire.EventDestinationUnavailable, Version: s.engine.topology.Load(), Destination: t.dest.Name,
				Detail: fmt.Sprintf("partition %d has no leader", t.key.partition),
			})
		}
	}
}

// follow closes a link whose partition is not served from where it streams any more,
// and reports whether it goes on.
func (s *session) follow(k *link) bool {
	err := s.refresh(k.handle)
	switch {
	case err != nil || k.replica == k.handle.replica:
	case k.handle.replica == nil:
		err = wire.NotLeader(k.handle.node, 0)
	default:
		err = wire.Errorf(wire.CodeUnavailable, "the partition was opened anew")
	}
	if err != nil {
		s.closeLink(k, errorBody(err))
	}
	return err == nil
}

// turnPieces bounds the pieces of one write.
const turnPieces = 64

// deliverHead is what precedes each piece: frame header and watermark.
const deliverHead = wire.HeaderSize + wire.DeliverPrefixSize

// gather is one write in the making. It belongs to a loop and is used by one
// session at a time.
type gather struct {
	pieces [turnPieces]piece
	n      int
	slices [][]byte
	bytes  int
	full   bool // what comes next needs a write of its own
	heads  []byte
	serial uint64 // of the write
}

// piece is one DELIVER or GROUP_DELIVER frame of a write.
type piece struct {
	of   streamer
	head []byte    // in front of the view
	view *log.View // nil for a frame without stored bytes

	from  log.Position // of a link: of the stream bytes
	told  bool         // of a link: what it was before
	order int          // of a group's link: the first of the orders that are carried out
}

func (p *piece) bytes() int {
	if p.view == nil {
		return 0
	}
	return p.view.Bytes
}

// turnHeads is how much memory the heads of one write have: that of all pieces of links,
// or fewer pieces of groups with many grants.
const turnHeads = 64 << 10

// room returns memory for a head of n bytes, or nil if this write has none left. Heads
// stay where they are until the write is over.
func (g *gather) room(n int) []byte {
	if g.heads == nil {
		g.heads = make([]byte, 0, turnHeads)
	}
	at := len(g.heads)
	if at+n > cap(g.heads) {
		return nil
	}
	g.heads = g.heads[:at+n]
	return g.heads[at : at : at+n]
}

// put appends a frame.
func (g *gather) put(p piece) {
	g.pieces[g.n] = p
	g.n++
	g.slices = append(g.slices, p.head)
	g.bytes += len(p.head) + p.bytes()
	if p.view != nil {
		g.slices = append(g.slices, p.view.Slices...)
	}
}

// add appends a frame of a link and moves the link past it.
func (k *link) add(g *gather, next wire.Offset, view *log.View) {
	p := piece{of: k, from: k.at, view: view, told: k.told}
	head := wire.AppendHeader(g.room(deliverHead), wire.Header{
		Length: wire.FrameLength(wire.DeliverPrefixSize + p.bytes()), Opcode: wire.OpDeliver, Version: wire.OpDeliver.Version(), ID: k.id,
	})
	p.head = (&wire.Deliver{NextOffset: next}).AppendPrefix(head)
	g.put(p)
	if view != nil {
		k.at = view.Next
		k.credit -= int64(view.Bytes)
	}
}

// fits reports whether one more piece may join.
func (g *gather) fits() bool {
	return !g.full && g.n < turnPieces && g.bytes < turnBytes && len(g.slices) < turnSlices-1 && len(g.heads)+deliverHead <= turnHeads
}

// reset releases all views.
func (g *gather) reset() {
	for i := range g.pieces[:g.n] {
		if v := g.pieces[i].view; v != nil {
			v.Release()
		}
		g.pieces[i] = piece{}
	}
	clear(g.slices)
	g.serial++
	g.n, g.slices, g.heads, g.bytes, g.full = 0, g.slices[:0], g.heads[:0], 0, false
}

// pump is one bounded turn of a session's links: they take turns, a piece each,
// until the write is full. It returns the bytes written.
func (s *session) pump() int {
	defer s.recovered("streaming")
	if s.phase != phaseOpen || s.halfClosed {
		return 0
	}
	s.flush() // replies first: a link's answer precedes its stream
	if s.phase != phaseOpen || len(s.active) == 0 {
		return 0
	}
	if (!s.drained() || s.awaiting.Load()) && !s.engine.hoard {
		return 0 // the next turn comes when the socket takes more
	}
	g := &s.loop.gather
	defer g.reset()
	for g.fits() && len(s.active) > 0 {
		k := s.active[0]
		s.active = append(s.active[:0], s.active[1:]...)
		st := k.state()
		st.active = false
		if k.next(g) {
			st.active = true
			s.active = append(s.active, k)
		}
	}
	written := s.writePieces(g)
	if s.phase == phaseOpen && len(s.active) > 0 && !s.awaiting.Load() {
		s.loop.addStream(s)
	}
	return written
}

// next implements streamer.
func (k *link) next(g *gather) (more bool) {
	s := k.session
	if k.closed || k.loading {
		return false
	}
	if !s.follow(k) {
		return false
	}
	if k.replica.State() == wire.PartitionFenced {
		code, why := wire.CodePartitionFenced, k.replica.info().Problem
		if len(k.handle.dest.Partitions[k.handle.key.partition].Replicas) > 1 {
			code = wire.CodeUnavailable // another replica takes over
		}
		s.closeLink(k, wire.ErrorBody{Code: code, Detail: cmp.Or(why, "the partition stopped after a storage error")})
		return false
	}
	mark := k.log.Watermark()
	if k.at != mark.Position {
		if k.credit <= 0 {
			return false // linkCredit goes on
		}
		view, err := k.log.View(k.at, int(min(k.credit, pieceBytes)))
		switch {
		case errors.Is(err, log.ErrCold):
			s.load(k)
			return false
		case errors.Is(err, log.ErrClosed), errors.Is(err, log.ErrFenced), errors.Is(err, log.ErrOffsetOutOfRange), errors.Is(err, log.ErrCorrupt):
			if g.n > 0 {
				g.full = true // what precedes the end of the link goes first
				return true
			}
			s.closeLink(k, s.readError(k.handle, err))
			return false
		case err != nil: // not to be mapped, for want of address space or of maps
			s.read(k)
			return false
		case view.Bytes > 0 && len(g.slices)+1+len(view.Slices) > turnSlices:
			view.Release()
			if g.n == 0 {
				s.read(k) // many tiny runs between control frames: copy them together
				return false
			}
			g.full = true
			return true
		case view.Bytes > 0:
			// The view may reach beyond the mark, but not beyond what is the watermark now.
			k.add(g, k.log.Watermark().Next, view)
			k.told = false
			s.warm(k)
			return true
		}
		// Nothing but control frames up to the watermark we looked at.
		view.Release()
		k.at = mark.Position
	}
	if !k.told {
		k.add(g, mark.Next, nil)
		k.told = true
		s.engine.counters.deliveredEmpty.Add(1)
	}
	return s.park(k)
}

// park waits for the watermark. It returns true if that has moved already.
func (s *session) park(k *link) (more bool) {
	k.parked = true
	if !k.replica.Park(k) {
		k.parked = false
		return true
	}
	return false
}

// writePieces writes what was gathered and takes back what the socket refused.
func (s *session) writePieces(g *gather) int {
	if g.n == 0 {
		return 0
	}
	n, err := writev(s.fd, g.slices)
	if err == unix.EFAULT {
		s.readPieces(g)
		return 0
	}
	if err != nil {
		s.close(closedIO, fmt.Errorf("writev: %w", err))
		return 0
	}
	s.engine.counters.bytesOut.Add(uint64(n))
	left := n
	for i := range g.pieces[:g.n] {
		p := &g.pieces[i]
		size := len(p.head) + p.bytes()
		if left < size {
			for j := g.n - 1; j > i; j-- {
				s.takeBack(&g.pieces[j])
			}
			if left == 0 {
				s.takeBack(p)
			} else {
				s.engine.counters.streamBytes.Add(uint64(p.bytes()))
				s.cut.take(p, left)
			}
			s.block(n > 0)
			return n
		}
		left -= size
		s.engine.counters.streamBytes.Add(uint64(p.bytes()))
	}
	s.blockedSince = 0
	return n
}

// readPieces does by pread what the kernel could not do from the map: pages were
// dropped and the disk does not give them back. Which piece it was it does not say,
// but the link of that one will hear it (RELIABILITY F11).
func (s *session) readPieces(g *gather) {
	for i := g.n - 1; i >= 0; i-- {
		s.takeBack(&g.pieces[i])
	}
	for i := range g.pieces[:g.n] {
		p := &g.pieces[i]
		if p.view == nil {
			continue
		}
		p.view.Cold()
		if !p.of.state().closed {
			p.of.reread()
		}
	}
}

// reread implements streamer.
func (k *link) reread() {
	if !k.loading {
		k.session.read(k)
	}
}

// takeBack undoes a piece that was not written at all. Its streamer is the next to have
// a turn: where sockets take less than a turn, those behind it would never have one.
func (s *session) takeBack(p *piece) {
	k := p.of
	k.undo(p)
	st := k.state()
	if st.closed {
		return
	}
	if i := slices.Index(s.active, k); i >= 0 {
		s.active = slices.Delete(s.active, i, i+1)
	}
	st.active = true
	s.active = slices.Insert(s.active, 0, k)
}

// undo implements streamer.
func (k *link) undo(p *piece) {
	k.at, k.told = p.from, p.told
	k.credit += int64(p.bytes())
	if !k.closed && k.parked {
		k.replica.Unpark(k)
		k.parked = false
	}
}

// cutFrame is the rest of a DELIVER frame in which the socket stopped. The client has
// the beginning: nothing else can be sent before it. The zero cutFrame is empty.
type cutFrame struct {
	view *log.View // that the slices lie in
	head []byte
	rest [][]byte // what is left: of the head, of the view
}

// take makes a piece of a write the cut. The socket has taken so many bytes of it.
func (c *cutFrame) take(p *piece, written int) {
	c.head = append(c.head[:0], p.head...)
	c.rest = append(c.rest[:0], c.head)
	c.view, p.view = p.view, nil
	if c.view != nil {
		c.rest = append(c.rest, c.view.Slices...)
	}
	c.advance(written)
}

// advance drops what the socket has taken.
func (c *cutFrame) advance(written int) {
	for len(c.rest) > 0 && written >= len(c.rest[0]) {
		written -= len(c.rest[0])
		c.rest = c.rest[1:]
	}
	if len(c.rest) > 0 {
		c.rest[0] = c.rest[0][written:]
	}
}

// release forgets the cut.
func (c *cutFrame) release() {
	if c.view != nil {
		c.view.Release()
	}
	c.view, c.rest = nil, nil
}

// writeCut writes the rest of a frame that was cut, as far as the socket takes it.
// It reports whether nothing is left of it.
func (s *session) writeCut() bool {
	if len(s.cut.rest) == 0 {
		return true
	}
	if s.awaiting.Load() {
		return false
	}
	n, err := writev(s.fd, s.cut.rest)
	if err == unix.EFAULT {
		// The client has half a frame that we cannot complete. Its next session is told
		// before it begins with one.
		s.cut.view.Cold()
	}
	if err != nil {
		s.close(closedIO, fmt.Errorf("writev: %w", err))
		return false
	}
	s.engine.counters.bytesOut.Add(uint64(n))
	if s.cut.advance(n); len(s.cut.rest) > 0 {
		s.block(n > 0)
		return false
	}
	s.cut.release()
	s.blockedSince = 0
	return true
}

// load makes the next range of a link resident on a worker.
func (s *session) load(k *link) {
	s.engine.counters.cold.Add(1)
	k.loading = true
	at, records := k.at, k.log
	s.blocking(k.replica, func() error { return records.Populate(at, populateBytes) }, func(err error) {
		k.loading = false
		switch {
		case k.closed:
		case err == nil:
			k.warm = log.Position{Segment: at.Segment, Byte: at.Byte + populateBytes}
			s.run(k)
		default: // what the disk gives is sent, and then the link hears of the rest
			s.read(k)
		}
	})
}

// warm makes the range behind the resident one resident too, before the link gets
// there. Without it a replay stood still once in every MiB until a worker had
// been woken, had read, and had woken the loop.
func (s *session) warm(k *link) {
	if k.warming || k.warm.Segment != k.at.Segment || k.at.Byte >= k.warm.Byte || k.at.Byte < k.warm.Byte-warmBytes {
		return
	}
	k.warming = true
	at, records := k.warm, k.log
	s.blocking(k.replica, func() error { return records.Populate(at, populateBytes) }, func(err error) {
		k.warming = false
		if err == nil { // otherwise the link meets the error itself
			k.warm.Byte += populateBytes
		}
	})
}

// read is the way around the map: a worker reads the next piece, which then
// waits in the outbox like a reply.
func (s *session) read(k *link) {
	k.loading = true
	at, records, size := k.at, k.log, int(min(k.credit, pieceBytes))
	var b *buffer
	var mark *log.Watermark
	var next log.Position
	var reached wire.Offset
	s.blocking(k.replica, func() (err error) {
		mark = records.Watermark()
		b = newBuffer(size)
		n := 0
		n, next, err = records.ReadAt(at, b.bytes[:size])
		b.bytes = b.bytes[:n]
		reached = records.Watermark().Next // at or above everything that was read
		return err
	}, func(err error) {
		defer b.free()
		k.loading = false
		n := b.size()
		switch {
		case k.closed:
			return
		case err != nil && n == 0:
			s.closeLink(k, s.readError(k.handle, err))
			return
		}
		if n == 0 {
			next = mark.Position // nothing but control frames up to there
		} else {
			s.engine.counters.preads.Add(1)
			s.engine.counters.streamBytes.Add(uint64(n))
			s.send(wire.Header{Opcode: wire.OpDeliver, Version: wire.OpDeliver.Version(), ID: k.id}, &wire.Deliver{NextOffset: reached, Stream: b.bytes})
			k.told = false
		}
		k.at = next
		k.credit -= int64(n)
		s.run(k)
	})
}

// writev writes the slices to a socket without blocking. A full socket is no
// error.
func writev(fd int, slices [][]byte) (int, error) {
	for {
		n, err := unix.Writev(fd, slices)
		switch err {
		case nil:
			return n, nil
		case unix.EINTR:
		case unix.EAGAIN:
			return 0, nil
		default:
			return 0, err
		}
	}
}
