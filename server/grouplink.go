package server

import (
	"errors"
	"slices"
	"sync/atomic"

	"github.com/lockstepmq/lockstep/log"
	"github.com/lockstepmq/lockstep/partition"
	"github.com/lockstepmq/lockstep/partition/group"
	"github.com/lockstepmq/lockstep/wire"
)

// groupLink is the link of one session of a group to the leader of one partition.
//
//	frames of the client ──Input──▶ the partition's groups ──Deliver──▶ orders ──pump──▶ the client
//	                                                      ──Answer, …──▶ outbox ──────▶
//
// The owner of the partition says, in its turn, which stored batches the session gets and
// what of them is its own. Here that becomes an order, and when the session has its turn
// to write, one GROUP_DELIVER: head and grants in Go memory in front of the stored bytes,
// which go from the map to the kernel as those of other links do. What the owner takes back
// waits behind the deliveries that it concerns, so that the client hears both in the order
// in which they came about. Answers overtake deliveries, but nothing that was taken back: the
// answer to a nack lets a consumer go on with what lies behind the record. Heartbeats wait
// for nothing.
//
// It is not kept how far the client has read. A session that attaches anew says what it
// holds, and the leader takes the rest for lost.
//
// Fields are the loop's, except where it says otherwise.
type groupLink struct {
	session *session
	id      uint32
	request uint32 // correlation ID of the attach
	replica replica
	log     partitionLog
	binds   bool // it is to the coordinator: nothing is delivered on it

	streaming
	loading bool // a worker makes what is next resident, or reads it
	missed  bool // it did, and what is next is still not in the map

	queue  []order // [head:] is to be sent
	head   int
	grants []wire.Grant // of queue
	write  uint64       // the last write that has pieces of ours

	over atomic.Bool // Closed was called, or an attach refused: nothing more comes
	coming
}

// coming is what the owner has for a link, guarded by the mutex of its session's outbox.
type coming struct {
	orders   []order
	granted  []wire.Grant // of orders
	answered bool         // the attach is
	ordered  bool         // answers go in order: a frame that does was not written yet
	scoped   bool         // records go out in order: nothing goes on behind one that cannot be sent
	woken    bool         // the loop is about to look at orders
	why      error        // of Closed
	silent   bool         // the client knows already that there is no link
}

// order is one thing that is sent in its order: stored bytes with grants, or a frame as it
// is.
type order struct {
	at     log.Position // of a body batch
	size   int          // of it in bytes
	grant  int          // the first of its grants
	grants int
	cut    *runCut // at and size are those of a run of records of a batch
	frame  []byte  // of others
}

// kind is how the bytes are to be read.
func (o *order) kind() wire.DeliverKind {
	if o.cut != nil {
		return wire.DeliverRecords
	}
	return wire.DeliverBatches
}

// inFront is how many bytes go in front of the stored ones.
func (o *order) inFront() int {
	if o.cut != nil {
		return len(o.cut.head)
	}
	return 0
}

// next is the position behind the stored bytes.
func (o *order) next() log.Position {
	return log.Position{Segment: o.at.Segment, Byte: o.at.Byte + int64(o.size)}
}

// maxPieceGrants bounds the grants in one frame of several batches.
const maxPieceGrants = 1024

// queueOrder makes the loop look at what has come. The caller holds the outbox; it must
// release it and, if so told, push the session.
func (k *groupLink) queueOrder(o order) (notify bool) {
	k.orders = append(k.orders, o)
	return k.notifyOrders()
}

// notifyOrders makes the loop look at orders, as queueOrder does.
func (k *groupLink) notifyOrders() (notify bool) {
	if k.woken {
		return false
	}
	k.woken = true
	k.session.out.woken = append(k.session.out.woken, k)
	return k.session.out.notifyLocked()
}

// wanted reports whether somebody will hear what is queued. The caller holds the outbox.
func (k *groupLink) wantedLocked() bool { return !k.session.out.closed && !k.over.Load() }

// Attached implements group.Consumer. It allocates for the attach alone.
func (k *groupLink) Attached(r *wire.AttachResponse, err error) {
	o := &k.session.out
	o.mu.Lock()
	k.answered = true
	k.scoped = err == nil && r.Mode != wire.ModeShared
	o.mu.Unlock()
	if err != nil {
		k.session.finish(k.request, nil, err)
		k.finish(nil, true)
		return
	}
	answer := *r
	answer.Link = k.id
	k.session.finish(k.request, &answer, nil)
}

// Bound implements group.Binder.
func (k *groupLink) Bound(r *wire.BindResponse, err error) {
	o := &k.session.out
	o.mu.Lock()
	k.answered = true
	o.mu.Unlock()
	if err != nil {
		k.session.finish(k.request, nil, err)
		k.finish(nil, true)
		return
	}
	r.Link = k.id
	k.session.finish(k.request, r, nil)
}

// Rebound implements group.Binder.
func (k *groupLink) Rebound(b *wire.GroupBinding) { k.tell(wire.OpGroupBinding, b) }

// count adds to what consumers were told of records.
func (k *groupLink) count(what groupCount, n uint64) {
	if n > 0 {
		k.session.engine.counters.groupRecords[what].Add(n)
	}
}

// Deliver implements group.Consumer.
func (k *groupLink) Deliver(d *group.Delivery) {
	var all, again uint64
	for i := range d.Grants {
		all += uint64(d.Grants[i].Count)
		if d.Grants[i].Flags&wire.GrantRedelivered != 0 {
			again += uint64(d.Grants[i].Count)
		}
	}
	k.count(groupDelivered, all)
	k.count(groupRedelivered, again)
	if d.Substitute != nil {
		k.inOrder(wire.OpGroupDeliver, &wire.GroupDeliver{
			Kind: wire.DeliverSubstitute, Next: k.log.Watermark().Next, Grants: d.Grants, Bytes: d.Substitute,
		})
		return
	}
	o := &k.session.out
	o.mu.Lock()
	notify := false
	if k.wantedLocked() {
		at := len(k.granted)
		k.granted = append(k.granted, d.Grants...)
		cuts, ok := cutOrders(k.orders, d, at)
		if ok {
			k.orders = cuts
			notify = k.notifyOrders()
		} else {
			notify = k.queueOrder(order{at: d.Place.At, size: wire.BodyBatchSize(d.Place.IndexBytes, d.Place.BatchBytes), grant: at, grants: len(d.Grants)})
		}
	}
	o.mu.Unlock()
	if notify {
		k.session.loop.push(k.session)
	}
}

// inOrder sends a frame behind what was delivered before.
func (k *groupLink) inOrder(op wire.Opcode, m wire.Message) {
	frame := wire.AppendFrame(nil, wire.Header{Opcode: op, Version: op.Version(), ID: k.id}, m)
	o := &k.session.out
	o.mu.Lock()
	notify := k.wantedLocked() && k.queueOrder(order{frame: frame})
	k.ordered = true
	o.mu.Unlock()
	if notify {
		k.session.loop.push(k.session)
	}
}

// Revoke implements group.Consumer.
func (k *groupLink) Revoke(r []wire.Revoke) {
	for i := range r {
		k.count(groupRevoked, uint64(r[i].Count))
	}
	for part := range slices.Chunk(r, wire.MaxGroupItems) {
		k.inOrder(wire.OpGroupRevoke, &wire.GroupRevoke{Revokes: part})
	}
}

// Lost implements group.Consumer.
func (k *groupLink) Lost(r []wire.Lost) {
	for i := range r {
		if r[i].Epoch > 0 {
			k.count(groupLost, uint64(r[i].Count))
		}
	}
	for part := range slices.Chunk(r, wire.MaxGroupItems) {
		k.inOrder(wire.OpGroupLost, &wire.GroupLost{Lost: part})
	}
}

// Answer implements group.Consumer.
func (k *groupLink) Answer(a []wire.OutcomeAnswer) {
	var settled, refused uint64
	for i := range a {
		if a[i].Code == wire.CodeOK {
			settled += uint64(a[i].Count)
		} else {
			refused += uint64(a[i].Count)
		}
	}
	k.count(groupSettled, settled)
	k.count(groupRefused, refused)
	o := &k.session.out
	o.mu.Lock()
	ordered := k.ordered // it becomes true in the owner's turns only, and this is one
	o.mu.Unlock()
	for part := range slices.Chunk(a, wire.MaxGroupItems) {
		if m := (&wire.GroupAnswers{Answers: part}); ordered {
			k.inOrder(wire.OpGroupAnswer, m)
		} else {
			k.tell(wire.OpGroupAnswer, m)
		}
	}
}

// Confirmed implements group.Consumer.
func (k *groupLink) Confirmed(number uint64) {
	k.tell(wire.OpGroupHeartbeat, &wire.GroupHeartbeat{Number: number})
}

// tell sends a frame at once.
func (k *groupLink) tell(op wire.Opcode, m wire.Message) {
	if !k.over.Load() {
		k.session.send(wire.Header{Opcode: op, Version: op.Version(), ID: k.id}, m)
	}
}

// Closed implements group.Consumer.
func (k *groupLink) Closed(err error) {
	o := &k.session.out
	o.mu.Lock()
	answered := k.answered
	k.answered = true
	o.mu.Unlock()
	if !answered {
		if err == nil {
			err = wire.Errorf(wire.CodeUnavailable, "the group let the session go before it was attached")
		}
		k.session.finish(k.request, nil, err)
	}
	k.finish(err, !answered)
}

// finish drops what was not sent and has the loop forget the link. Any goroutine.
func (k *groupLink) finish(why error, silent bool) {
	o := &k.session.out
	o.mu.Lock()
	k.why, k.silent = why, silent
	k.over.Store(true)
	k.orders, k.granted = nil, nil
	notify := false
	if !k.woken && !o.closed {
		k.woken = true
		o.woken = append(o.woken, k)
		notify = o.notifyLocked()
	}
	o.mu.Unlock()
	if notify {
		k.session.loop.push(k.session)
	}
}

// state implements streamer.
func (k *groupLink) state() *streaming { return &k.streaming }

// woke implements streamer.
func (k *groupLink) woke() {}

// take gets what has come when nothing is left to send. It reports whether there was
// something; with look, because not all is written yet, it takes nothing, and also reports
// whether answers wait for that.
func (k *groupLink) take(look bool) bool {
	o := &k.session.out
	o.mu.Lock()
	defer o.mu.Unlock()
	if look && k.ordered {
		return true
	}
	if len(k.orders) == 0 {
		k.woken, k.ordered = false, false
		return false
	}
	if look {
		return true
	}
	k.ordered = k.ordered && slices.ContainsFunc(k.orders, func(o order) bool { return o.frame != nil })
	clear(k.queue)
	k.queue, k.orders = k.orders, k.queue[:0]
	k.grants, k.granted = k.granted, k.grants[:0]
	k.head = 0
	return true
}

// next implements streamer.
func (k *groupLink) next(g *gather) (more bool) {
	s := k.session
	switch {
	case k.closed:
		return false
	case k.over.Load():
		s.endGroupLink(k)
		return false
	case k.loading:
		return false
	}
	if k.head == len(k.queue) {
		// What is in this write may have to be taken back: it stays until that is over.
		written := k.write != g.serial
		if !k.take(!written) {
			return false
		}
		if !written {
			g.full = true
			return true
		}
	}
	first := &k.queue[k.head]
	if first.frame != nil {
		k.put(g, piece{of: k, head: first.frame, order: k.head}, 1)
		return true
	}
	if first.cut != nil && !first.cut.fill(k.replica.batchHeaders()) {
		s.verifyOrder(k)
		return false
	}
	n, size, grants := k.run()
	prefix := wire.HeaderSize + wire.GroupDeliverPrefixSize + grants*wire.GrantSize + first.inFront()
	head := g.room(prefix)
	if head == nil {
		if g.n > 0 {
			g.full = true
			return true
		}
		head = make([]byte, 0, prefix)
	}
	view, err := k.log.View(first.at, size)
	if err == nil && view.Bytes < size {
		view.Release() // not all of it is in memory, or there is damage ahead
		view, err = nil, log.ErrCold
	}
	switch {
	case errors.Is(err, log.ErrCold) && !k.missed:
		s.loadOrder(k)
		return false
	case err != nil: // not to be mapped, or not whole: what there is to say about it a read tells
		if g.n > 0 {
			g.full = true // what precedes it goes first
			return true
		}
		s.readOrder(k)
		return false
	case len(g.slices)+1+len(view.Slices) > turnSlices:
		view.Release()
		g.full = true
		return true
	}
	k.missed = false
	k.put(g, piece{of: k, head: k.prefix(head, size, grants), view: view, order: k.head}, n)
	return true
}

// run is how many of the orders that are next lie one behind the other and go together:
// their number, and the bytes and grants of all.
func (k *groupLink) run() (n, size, grants int) {
	first := &k.queue[k.head]
	n, size, grants = 1, first.size, first.grants
	for next := first.next(); k.head+n < len(k.queue); n++ {
		o := &k.queue[k.head+n]
		if first.cut != nil || o.cut != nil || o.frame != nil || o.at != next || size+o.size > pieceBytes || grants+o.grants > maxPieceGrants {
			break
		}
		size += o.size
		grants += o.grants
		next = o.next()
	}
	return n, size, grants
}

// prefix appends the head of the GROUP_DELIVER that begins with the next order.
func (k *groupLink) prefix(head []byte, size, grants int) []byte {
	o := &k.queue[k.head]
	m := wire.GroupDeliver{Kind: o.kind(), Next: k.log.Watermark().Next, Grants: k.grants[o.grant : o.grant+grants]}
	head = wire.AppendHeader(head, wire.Header{
		Length: wire.FrameLength(wire.GroupDeliverPrefixSize + grants*wire.GrantSize + o.inFront() + size),
		Opcode: wire.OpGroupDeliver, Version: wire.OpGroupDeliver.Version(), ID: k.id,
	})
	head = m.AppendPrefix(head)
	if o.cut != nil {
		head = append(head, o.cut.head...)
	}
	return head
}

// put adds a piece that carries out n orders.
func (k *groupLink) put(g *gather, p piece, n int) {
	g.put(p)
	k.head += n
	k.write = g.serial
}

// undo implements streamer.
func (k *groupLink) undo(p *piece) { k.head = p.order }

// reread implements streamer.
func (k *groupLink) reread() {
	if k.loading || k.head == len(k.queue) || k.queue[k.head].frame != nil {
		return
	}
	if c := k.queue[k.head].cut; c != nil && !c.fill(k.replica.batchHeaders()) {
		k.session.verifyOrder(k)
		return
	}
	k.session.readOrder(k)
}

// loadOrder makes the stored bytes that are next resident on a worker.
func (s *session) loadOrder(k *groupLink) {
	s.engine.counters.cold.Add(1)
	k.loading = true
	_, size, _ := k.run()
	at, records := k.queue[k.head].at, k.log
	s.blocking(k.replica, func() error { return records.Populate(at, max(size, populateBytes)) }, func(error) {
		k.loading, k.missed = false, true // what the disk does not give, the read finds out
		s.run(k)
	})
}

// readOrder is the way around the map: a worker reads the batch that is next, which then
// waits in the outbox like a reply.
func (s *session) readOrder(k *groupLink) {
	k.loading = true
	o := k.queue[k.head]
	records := k.log
	front := o.inFront()
	b := newBuffer(front + o.size)
	s.blocking(k.replica, func() error {
		b.bytes = b.bytes[:front+o.size]
		if o.cut != nil {
			copy(b.bytes, o.cut.head)
		}
		return readWhole(records, o.at, b.bytes[front:])
	}, func(err error) {
		defer b.free()
		k.loading, k.missed = false, false
		switch {
		case k.closed:
			return
		case err == nil:
			s.engine.counters.preads.Add(1)
			s.engine.counters.streamBytes.Add(uint64(o.size))
			if !k.over.Load() {
				s.send(wire.Header{Opcode: wire.OpGroupDeliver, Version: wire.OpGroupDeliver.Version(), ID: k.id}, &wire.GroupDeliver{
					Kind: o.kind(), Next: k.log.Watermark().Next, Grants: k.grants[o.grant : o.grant+o.grants], Bytes: b.bytes,
				})
			}
		default:
			if k.unreadable(k.grants[o.grant:o.grant+o.grants], err); k.closed {
				return
			}
		}
		k.head++
		s.run(k)
	})
}

// unreadable tells the leader of records that it has granted and that cannot be sent.
// Those that retention has removed it knows of. Where records go out in order the link ends:
// what waits behind them here may be of the same scope, and so may what the leader grants
// until it hears of it. The session says what it has got when it attaches anew.
func (k *groupLink) unreadable(grants []wire.Grant, err error) {
	if errors.Is(err, log.ErrOffsetOutOfRange) || len(grants) == 0 {
		return
	}
	s := k.session
	for i := range grants {
		if k.closed {
			return
		}
		k.input(partition.Input{Kind: partition.InputDamaged, From: grants[i].Offset, To: grants[i].Offset + wire.Offset(grants[i].Count)})
	}
	s.out.mu.Lock()
	scoped := k.scoped
	s.out.mu.Unlock()
	if scoped && !k.closed {
		s.forgetGroupLink(k, false)
		s.groupLinkClosed(k, wire.Errorf(wire.CodeRetry, "the record at offset %d cannot be read: attach anew, it and what lies behind it are given out again", grants[0].Offset))
	}
}

// input hands something to the group. A link whose inputs do not fit any more ends: the
// session says what it holds when it attaches anew. Loop only.
func (k *groupLink) input(in partition.Input) {
	if k.binds {
		in.Binder = k
	} else {
		in.Consumer = k
	}
	in.Sender = k
	k.session.groupWaits(in.Size())
	if err := k.replica.Group(in); err != nil {
		k.Taken(in.Size())
		if in.Kind != partition.InputGone {
			s := k.session
			s.forgetGroupLink(k, false)
			s.groupLinkClosed(k, err)
		}
		return
	}
	k.session.loop.kick(k.replica, 1)
}

// Taken implements partition.Sender.
func (k *groupLink) Taken(bytes int) {
	s := k.session
	o := &s.out
	o.mu.Lock()
	before := o.inbox
	o.inbox -= bytes
	half := s.engine.limits.GroupInboxBytes / 2
	notify := before > half && o.inbox <= half && o.notifyLocked() // it may be read on
	o.mu.Unlock()
	if notify {
		s.loop.push(s)
	}
}

// groupWaits counts what waits for the owners of partitions, and stops reading where that is
// too much: whoever has many consumers on one connection takes no room from others.
// Loop only.
func (s *session) groupWaits(bytes int) {
	s.out.mu.Lock()
	s.out.inbox += bytes
	s.out.mu.Unlock()
	s.checkFull()
}
