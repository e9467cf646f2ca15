package group

import (
	"encoding/binary"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/lockstepmq/lockstep/promise"
	"github.com/lockstepmq/lockstep/wire"
)

// The harness runs Leaders of one group against consumers that follow the protocol, in
// virtual time and with every fault that the rules are about: links that break and lose
// what is on them, consumers that die or stand still, leaders that are replaced and keep
// any prefix of what was not committed, and deposed leaders that go on. Everything
// follows from the seed. What the consumers see is checked against what groups promise.

const (
	harnessGroup   ID = 7
	harnessSession    = time.Second
)

// logEntry is one entry of the partition's log.
type logEntry struct {
	term    wire.Term
	records []uint64 // key hashes; nil: no records
	control []byte
	from    *broker // that proposed it, nil for others
}

// broker is one leader of the partition, in office or deposed.
type broker struct {
	h             *harness
	number        int
	term          wire.Term
	state         *State
	leader        *Leader
	applied       int // entries
	places        []Place
	known         map[wire.Offset]bool // bases of the batches that the feed has
	scans         []wire.Offset
	finds         []Find
	confirm       []func(error)
	deposed       bool
	moving, ready bool // it hands over; its leases are committed
	altering      bool // new settings are on their way
	links         []*fakeLink
	letters       []Letter
}

// At implements Feed.
func (b *broker) At(o wire.Offset) (*Place, bool) {
	i := slices.IndexFunc(b.places, func(p Place) bool { return o < p.Next() })
	if i < 0 {
		panic(fmt.Sprintf("asked for offset %d behind the end", o))
	}
	if !b.known[b.places[i].Base] {
		return nil, false
	}
	p := b.places[i]
	return &p, true
}

func (b *broker) end() wire.Offset {
	if len(b.places) == 0 {
		return 0
	}
	return b.places[len(b.places)-1].Next()
}

// apply applies the next committed entry.
func (b *broker) apply() {
	e := &b.h.log[b.applied]
	b.applied++
	i := wire.Index(b.applied)
	b.state.Term(e.term)
	switch {
	case e.records != nil:
		p := Place{Base: b.end(), Count: len(e.records), BatchBytes: 100 * len(e.records)}
		for _, k := range e.records {
			p.Index = binary.LittleEndian.AppendUint64(p.Index, k)
			p.Index = append(p.Index, 0, 0, 0, 0, 0, 0, 0, 0)
		}
		b.places = append(b.places, p)
		b.known[p.Base] = b.h.chance(0.8)
		b.state.Appended(b.end())
	case e.control != nil:
		for rest := e.control; len(rest) > 0; {
			n := binary.LittleEndian.Uint32(rest[4:])
			if Command(rest[0]) == CommandSeek && b != b.h.follower && !b.h.sought[i] {
				b.h.seeks(i, wire.Offset(binary.LittleEndian.Uint64(rest[16:])))
			}
			if Command(rest[0]) == CommandRemove && rest[32] == reasonSilent && i > b.h.reached {
				b.h.silent(Session(rest[16:32]))
			}
			b.state.Apply(i, Command(rest[0]), rest[1], rest[8:8+n])
			if Command(rest[0]) == CommandLetter && b != b.h.follower {
				b.h.letters(b, i)
			}
			rest = rest[8+n:]
		}
		last := b.h.shapes[len(b.h.shapes)-1]
		if k := kindOf(&b.state.Group(harnessGroup).Settings); i > last.from && k != last.kind {
			b.h.trace("entry %d makes the group another: %+v", i, b.state.Group(harnessGroup).Settings)
			b.h.shapes = append(b.h.shapes, shape{i, k})
		}
		if e.from == b && b.leader != nil {
			b.leader.Applied(i)
		}
	}
	b.h.reached = max(b.h.reached, i)
}

// turn is one owner's turn.
func (b *broker) turn() {
	l := b.leader
	for range 4 {
		again := l.Turn(b.h.now, wire.Index(b.applied), b.end())
		for l.Pending() {
			data, ok := l.Propose(nil, b.h.room)
			if !ok {
				break
			}
			if b.h.chance(b.h.faults * 0.1) {
				l.Dropped()
				break
			}
			if !b.deposed {
				b.h.pending = append(b.h.pending, logEntry{term: b.term, control: data, from: b})
			}
		}
		w := l.Wants()
		b.scans = append(b.scans, w.Scan...)
		b.finds = append(b.finds, w.Find...)
		b.letters = append(b.letters, w.Letters...)
		if w.Confirm {
			b.confirm = append(b.confirm, l.Confirmed)
		}
		if !again {
			return
		}
	}
}

// effects brings what was asked for.
func (b *broker) effects() {
	for _, o := range b.scans {
		for i := range b.places {
			if p := &b.places[i]; o < p.Next() {
				b.known[p.Base] = true
				if p.Base >= o+64 {
					break
				}
			}
		}
	}
	b.scans = nil
	for _, f := range b.finds {
		if n := uint64(f.After+f.Below) % 4; n > 0 { // a sweep brings some at once
			found, upTo := b.findSome(f, int(n))
			b.leader.FoundMore(f.Scope, f.After, found, upTo)
			continue
		}
		at, ok := b.find(f)
		b.leader.Found(f.Scope, f.After, at, ok)
	}
	b.finds = nil
	if !b.deposed {
		for _, f := range b.confirm {
			f(nil)
		}
		b.confirm = nil
		for _, letter := range b.letters {
			b.h.lettered[letter.Offset]++
			b.leader.LetterWritten(letter.Number)
		}
		b.letters = nil
	}
}

func (b *broker) find(f Find) (wire.Offset, bool) {
	g := b.leader.Group()
	for i := range b.places {
		p := &b.places[i]
		for o := max(p.Base, f.After+1); o < min(p.Next(), f.Below); o++ {
			if Scope(binary.LittleEndian.Uint64(p.Index[16*(o-p.Base):])) == f.Scope && !g.Done.Has(o) {
				return o, true
			}
		}
	}
	return 0, false
}

// findSome returns up to n records, and how far it has looked.
func (b *broker) findSome(f Find, n int) (found []wire.Offset, upTo wire.Offset) {
	for len(found) < n {
		at, ok := b.find(f)
		if !ok {
			return found, f.Below - 1
		}
		found = append(found, at)
		f.After = at
	}
	return found, f.After
}

// fakeLink is the link of a consumer to a broker: two queues that keep their order and
// are lost as a whole. Of what goes to the consumer, answers may overtake deliveries, and
// heartbeats everything, as on a server's link.
type fakeLink struct {
	c        *consumer
	life     int // of the consumer
	b        *broker
	toClient []func()
	ordered  int // of toClient, how many nothing but a heartbeat may overtake
	toBroker []func(*Leader)
	// broken: nothing moves any more. told: the broker has heard of it. closed: the broker
	// has ended it.
	broken, told, closed bool
	left                 bool // by the consumer: what it has sent may still arrive
}

func (k *fakeLink) send(f func()) {
	if k.closed {
		panic("a closed link was used")
	}
	k.toClient = append(k.toClient, f)
}

// inOrder sends what answers may not overtake.
func (k *fakeLink) inOrder(f func()) {
	if k.send(f); !k.c.h.hasty {
		k.ordered = len(k.toClient)
	}
}

// overtake sends what may come before some of what was sent, from the given place on.
func (k *fakeLink) overtake(from int, f func()) (at int) {
	k.send(f)
	if at = len(k.toClient) - 1; k.c.h.chance(0.5) {
		at = from + k.c.h.rand.IntN(at-from+1)
		copy(k.toClient[at+1:], k.toClient[at:])
		k.toClient[at] = f
	}
	return at
}

// next takes the first message to the consumer.
func (k *fakeLink) next() func() {
	f := k.toClient[0]
	k.toClient = k.toClient[1:]
	k.ordered = max(0, k.ordered-1)
	return f
}

// ends says whether the end of the link looks like that of the consumer. Who is released then
// may be at work all the same, and that is what it has asked for.
func (k *fakeLink) ends() (dead bool) {
	if k.b.deposed || !k.c.h.chance(0.5) {
		return false
	}
	if k.life == k.c.life && (k.c.chosen&wire.AttachReleaseOnDisconnect != 0 || k.c.chosen == 0 && k.b.state.Group(harnessGroup).Settings.Mode == wire.ModeShared) {
		k.c.h.event(promise.Stopped, k.c, nil, 0)
	}
	return true
}

func (k *fakeLink) Attached(r *wire.AttachResponse, err error) {
	k.send(func() { k.c.attached(k, r, err) })
	k.ordered = len(k.toClient)
	k.closed = err != nil
}

func (k *fakeLink) Deliver(d *Delivery) {
	index := slices.Clone(d.Place.Index)
	base, grants := d.Place.Base, slices.Clone(d.Grants)
	k.send(func() {
		for _, g := range grants {
			for o := g.Offset; o < g.Offset+wire.Offset(g.Count); o++ {
				k.c.delivered(k, o, binary.LittleEndian.Uint64(index[16*(o-base):]), g)
			}
		}
	})
}

func (k *fakeLink) Answer(a []wire.OutcomeAnswer) {
	a = slices.Clone(a)
	k.ordered = k.overtake(k.ordered, func() { k.c.answered(k, a) }) + 1
}

func (k *fakeLink) Revoke(r []wire.Revoke) {
	r = slices.Clone(r)
	k.inOrder(func() { k.c.revoked(k, r) })
}

func (k *fakeLink) Lost(v []wire.Lost) {
	v = slices.Clone(v)
	k.inOrder(func() { k.c.lost(k, v) })
}

func (k *fakeLink) Confirmed(n uint64) {
	if k.overtake(0, func() { k.c.confirmed(k, n) }) < k.ordered {
		k.ordered++
	}
}

func (k *fakeLink) Closed(err error) {
	k.inOrder(func() { k.c.closed(k, err) })
	k.closed = true
}

// taken is a record that a consumer holds.
type taken struct {
	offset  wire.Offset
	hash    uint64
	epoch   wire.Index
	outcome wire.OutcomeKind // held: queued or running
	running bool
	kind    kind          // of the group, when it was given
	until   time.Duration // at work, if it takes long
}

// consumer follows the protocol as the client library has to.
type consumer struct {
	h         *harness
	name      string
	session   Session
	before    Session // predecessor
	life      int
	attempt   uint64
	term      wire.Term
	link      *fakeLink
	attachedK bool
	known     bool          // it was attached once, in this life
	asked     time.Duration // when it attached
	away      time.Duration // until when it does not
	held      []*taken      // ascending
	beats     map[uint64]time.Duration
	beat      uint64
	valid     time.Duration // until when it may work
	lastBeat  time.Duration
	stopped   bool // it stands still
	dead      bool
	stubborn  bool // it works on although it was told not to
	capacity  uint32
	most      uint32 // the highest capacity that it has named on this link
	timeout   time.Duration
	kind      kind             // of the group, as it has heard when it attached
	chosen    wire.AttachFlags // about the end of its connection
	excused   bool             // others may have what it works on (G2)
	out       []wire.Outcome   // to be sent
}

func (c *consumer) id() string { return fmt.Sprintf("%s/%d", c.name, c.life) }

func (h *harness) event(k promise.Kind, c *consumer, t *taken, answer promise.Answer) {
	e := promise.Event{Kind: k}
	if c != nil {
		e.Session = c.id()
		c.excused = c.excused || k == promise.Stopped
	}
	if t != nil {
		e.Record, e.Epoch, e.Scope, e.Answer = uint64(t.offset), uint64(t.epoch), scopeName(t.kind, t), answer
	}
	if k == promise.Started {
		h.alone(c, t)
	}
	h.trace("%s", e)
	if err := h.check.Observe(e); err != nil && h.failure == nil {
		h.failure = err
	}
}

// alone checks what the checker cannot see, for which a scope of another shape is another
// one: that nobody is at work who was given something of a scope before the group changed.
func (h *harness) alone(c *consumer, t *taken) {
	for _, other := range h.consumers {
		for _, x := range other.held {
			if other != c && !other.excused && !c.excused && x.running && x.kind != t.kind && (x.offset == t.offset || scopeName(t.kind, x) == scopeName(t.kind, t)) {
				h.fail("%s starts record %d under epoch %d, and %s works on record %d under epoch %d from before the change", c.id(), t.offset, t.epoch, other.id(), x.offset, x.epoch)
			}
		}
	}
}

// silent checks that a consumer which works on something, and whose session is removed because
// it was not heard, knows that it may not go on (T1, T2).
func (h *harness) silent(s Session) {
	for _, c := range h.consumers {
		if c.session == s && h.now < c.valid && slices.ContainsFunc(c.held, func(t *taken) bool { return t.running }) {
			h.fail("%s is removed at %s, and was told that it may work until %s", c.id(), h.now, c.valid)
		}
	}
}

// shape is one that the group has from an entry on.
type shape struct {
	from wire.Index
	kind kind
}

// kindAt is what the group was for who leases under an epoch.
func (h *harness) kindAt(epoch wire.Index) kind {
	at := h.shapes[0].kind
	for _, s := range h.shapes {
		if s.from <= epoch {
			at = s.kind
		}
	}
	return at
}

func scopeName(k kind, t *taken) string {
	switch k {
	case single:
		return "all"
	case hashed:
		if t.hash != 0 {
			return fmt.Sprintf("key%d", t.hash)
		}
	}
	return fmt.Sprintf("record%d", t.offset)
}

func (c *consumer) same(a, b *taken) bool { return scopeName(c.kind, a) == scopeName(c.kind, b) }

// fresh begins a new life of the consumer.
func (c *consumer) fresh(predecessor bool) {
	c.before = Session{}
	if predecessor {
		c.before = c.session
	}
	c.life++
	binary.LittleEndian.PutUint64(c.session[:], c.h.rand.Uint64())
	binary.LittleEndian.PutUint64(c.session[8:], c.h.rand.Uint64())
	c.held, c.out, c.link, c.attachedK, c.known = nil, nil, nil, false, false
	c.beats, c.valid = make(map[uint64]time.Duration), 0
	c.attempt, c.stubborn, c.excused = 0, false, false
}

// fence ends the work of a consumer that does not know whether it is alive to the broker.
func (c *consumer) fence() {
	for _, t := range c.held {
		if t.running {
			c.h.event(promise.Finished, c, t, 0)
		}
	}
	c.h.event(promise.Removed, c, nil, 0)
	c.cut()
	c.fresh(true)
}

func (c *consumer) cut() {
	if c.link != nil {
		if c.link.left = true; !c.h.chance(c.h.faults) {
			c.link.broken = true
		}
		c.link = nil
	}
	c.attachedK = false
}

// attach goes to a broker that may lead.
func (c *consumer) attach(b *broker) {
	if b.term < c.term {
		return
	}
	c.cut()
	c.asked = c.h.now
	c.term = b.term
	c.attempt++
	r := &wire.AttachRequest{
		Session: c.session, Predecessor: c.before, Attempt: c.attempt, Term: c.term, Capacity: c.capacity, Refill: c.capacity / 2,
	}
	if c.known {
		r.Flags |= wire.AttachKnown
	}
	r.Flags |= c.chosen
	c.most = max(c.capacity, uint32(len(c.held)))
	if c.session[0]&1 == 1 { // half of them would rather not be active
		r.Flags |= wire.AttachStandby
	}
	for _, t := range c.held {
		if n := len(r.Claims); n > 0 {
			if last := &r.Claims[n-1]; last.Next() == t.offset && last.Epoch == t.epoch && last.Kind == t.outcome {
				last.Count++
				continue
			}
		}
		r.Claims = append(r.Claims, wire.Outcome{Offset: t.offset, Count: 1, Epoch: t.epoch, Kind: t.outcome})
	}
	c.out = nil
	k := &fakeLink{c: c, life: c.life, b: b}
	c.link = k
	c.beats = make(map[uint64]time.Duration)
	b.links = append(b.links, k)
	k.toBroker = append(k.toBroker, func(l *Leader) { l.Attach(k, r, c.name, b.term, c.h.now) })
	c.h.trace("%s attaches to leader %d with %d claims", c.id(), b.number, len(r.Claims))
}

func (c *consumer) attached(k *fakeLink, r *wire.AttachResponse, err error) {
	if c.link != k {
		return
	}
	if err != nil {
		c.link, c.attachedK = nil, false
		c.h.trace("%s is refused: %s", c.id(), err)
		if err == wire.CodeSessionGone {
			c.fence()
		}
		return
	}
	c.attachedK, c.known = true, true
	if c.terms(r); c.link != k {
		return
	}
	for _, a := range r.Refused {
		c.decided(a)
	}
	c.heartbeat()
}

// terms takes in what the group is: what was confirmed for a higher session timeout does not
// count on.
func (c *consumer) terms(r *wire.AttachResponse) {
	c.kind = kindOf(&Settings{Mode: r.Mode, Scope: r.Scope})
	timeout := time.Duration(r.SessionMs) * time.Millisecond
	if timeout < c.timeout {
		c.valid = 0
	}
	c.timeout = timeout
	if c.valid = max(c.valid, c.asked+c.timeout*9/10); c.h.now >= c.valid {
		c.fence()
	}
}

// decided takes in an answer about records.
func (c *consumer) decided(a wire.OutcomeAnswer) {
	for o := a.Offset; o < a.Offset+wire.Offset(a.Count); o++ {
		t := c.find(o)
		if t == nil || t.epoch != a.Epoch {
			continue
		}
		stale := a.Code == wire.CodeStaleEpoch
		switch {
		case a.Code == wire.CodeOK:
			if t.outcome == wire.OutcomeAck {
				c.h.event(promise.Answered, c, t, promise.OK)
			} else if t.outcome == wire.OutcomeHeld {
				// It was done before this session knew that its ack was lost: impossible, for it
				// has none. Settled by somebody else would be STALE.
				c.h.fail("%s is told OK for record %d, which it holds", c.id(), o)
			}
			c.drop(t)
			continue
		case !stale && a.Code != wire.CodeAlreadyDone:
			c.h.fail("%s is told %s for record %d under epoch %d", c.id(), a.Code, o, a.Epoch)
			return
		}
		if t.outcome == wire.OutcomeAck {
			c.h.event(promise.Answered, c, t, promise.Stale)
		}
		c.loses(t)
	}
}

// loses drops a record that was taken away, and what is queued behind it.
func (c *consumer) loses(t *taken) {
	if t.running {
		c.h.event(promise.Finished, c, t, 0)
	}
	c.h.event(promise.Revoked, c, t, 0)
	c.drop(t)
	c.dropBehind(t)
	c.out = append(c.out, wire.Outcome{Offset: t.offset, Count: 1, Epoch: t.epoch, Kind: wire.OutcomeLostSeen})
}

func (c *consumer) dropBehind(t *taken) {
	for _, other := range slices.Clone(c.held) {
		if other.offset > t.offset && c.same(other, t) && other.outcome == wire.OutcomeHeld && !other.running {
			c.drop(other)
		}
	}
}

func (c *consumer) find(o wire.Offset) *taken {
	for _, t := range c.held {
		if t.offset == o {
			return t
		}
	}
	return nil
}

func (c *consumer) drop(t *taken) {
	c.held = slices.DeleteFunc(c.held, func(x *taken) bool { return x == t })
}

func (c *consumer) delivered(k *fakeLink, o wire.Offset, hash uint64, g wire.Grant) {
	if c.link != k {
		return
	}
	t := &taken{offset: o, hash: hash, epoch: g.Epoch, kind: c.h.kindAt(g.Epoch)}
	if old := c.find(o); old != nil {
		if old.epoch >= g.Epoch {
			c.h.fail("%s gets record %d under epoch %d and has it under %d", c.id(), o, g.Epoch, old.epoch)
			return
		}
		if old.outcome == wire.OutcomeHeld {
			c.h.fail("%s gets record %d again and still holds it", c.id(), o)
			return
		}
		c.drop(old)
	}
	if before := c.h.started[o]; before > 0 && before < g.Epoch && g.Flags&wire.GrantRedelivered == 0 {
		c.h.fail("%s gets record %d under epoch %d without the flag, it was started under %d", c.id(), o, g.Epoch, before)
		return
	}
	c.h.event(promise.Delivered, c, t, 0)
	i, _ := slices.BinarySearchFunc(c.held, o, func(t *taken, o wire.Offset) int { return compareOffsets(t.offset, o) })
	c.held = slices.Insert(c.held, i, t)
	n := 0
	for _, t := range c.held {
		if t.outcome == wire.OutcomeHeld {
			n++
		}
	}
	if n > int(c.most) && !c.stubborn {
		c.h.fail("%s holds %d records, it has room for %d", c.id(), n, c.most)
	}
}

func (c *consumer) answered(k *fakeLink, a []wire.OutcomeAnswer) {
	if c.link != k {
		return
	}
	for _, a := range a {
		c.decided(a)
	}
}

func (c *consumer) revoked(k *fakeLink, r []wire.Revoke) {
	if c.link != k {
		return
	}
	for _, r := range r {
		for o := r.Offset; o < r.Offset+wire.Offset(r.Count); o++ {
			if t := c.find(o); t != nil && t.epoch == r.Epoch && t.outcome == wire.OutcomeHeld {
				if t.running && c.h.chance(c.h.faults) { // its handler does not listen
					c.stubborn = true
					c.h.event(promise.Stopped, c, nil, 0)
					continue
				}
				c.finish(t, wire.OutcomeReleased)
			}
		}
	}
}

func (c *consumer) lost(k *fakeLink, v []wire.Lost) {
	if c.link != k {
		return
	}
	for _, v := range v {
		for o := v.Offset; o < v.Offset+wire.Offset(v.Count); o++ {
			if t := c.find(o); t != nil && t.epoch == v.Epoch {
				c.loses(t)
			} else {
				c.out = append(c.out, wire.Outcome{Offset: o, Count: 1, Epoch: v.Epoch, Kind: wire.OutcomeLostSeen})
			}
		}
	}
}

func (c *consumer) confirmed(k *fakeLink, n uint64) {
	if c.link == k {
		if sent, ok := c.beats[n]; ok {
			c.valid = max(c.valid, sent+c.timeout*9/10)
		}
	}
}

func (c *consumer) closed(k *fakeLink, err error) {
	if c.link != k {
		return
	}
	c.link, c.attachedK = nil, false
	c.h.trace("%s: its link is closed: %v", c.id(), err)
	if err == wire.CodeSessionGone {
		c.fence()
	}
}

func (c *consumer) heartbeat() {
	c.beat++
	n := c.beat
	c.beats[n] = c.h.now
	c.lastBeat = c.h.now
	k := c.link
	k.toBroker = append(k.toBroker, func(l *Leader) { l.Heartbeat(k, n, c.h.now) })
}

// finish gives a record an outcome.
func (c *consumer) finish(t *taken, kind wire.OutcomeKind) {
	if t.running {
		t.running = false
		c.h.event(promise.Finished, c, t, 0)
	}
	t.outcome = kind
	if kind == wire.OutcomeAck {
		c.h.event(promise.Acked, c, t, 0)
	} else {
		c.h.event(promise.Nacked, c, t, 0)
		c.dropBehind(t)
	}
	c.out = append(c.out, wire.Outcome{Offset: t.offset, Count: 1, Epoch: t.epoch, Kind: kind})
}

// flush sends what is to be sent.
func (c *consumer) flush() {
	if c.link == nil || !c.attachedK || len(c.out) == 0 {
		return
	}
	items := c.out
	c.out = nil
	// A frame ascends: what does not is the next frame.
	for len(items) > 0 {
		n := 1
		for n < len(items) && items[n].Offset >= items[n-1].Next() {
			n++
		}
		frame := items[:n]
		k := c.link
		k.toBroker = append(k.toBroker, func(l *Leader) { l.Outcomes(k, frame, c.h.now) })
		items = items[n:]
	}
}

// work does one thing that a consumer may do now.
func (c *consumer) work() {
	if c.dead || c.stopped {
		return
	}
	if c.valid > 0 && c.h.now >= c.valid {
		c.fence()
		return
	}
	if c.link == nil || c.link.closed && len(c.link.toClient) == 0 {
		if c.h.now < c.away {
			c.handle()
			return
		}
		c.attach(c.h.somebody(c.term))
		return
	}
	if !c.attachedK || c.valid == 0 {
		if c.h.now >= c.asked+c.timeout { // nobody answers: another may
			c.attach(c.h.somebody(c.term))
			return
		}
		if !c.attachedK {
			return
		}
	}
	if c.h.now >= c.lastBeat+c.timeout/3 {
		c.heartbeat()
	}
	c.flush()
	c.handle()
}

// handle goes on with one of the records that the consumer holds, with a link or without.
func (c *consumer) handle() {
	if c.valid == 0 || len(c.held) == 0 {
		return
	}
	t := c.held[c.h.rand.IntN(len(c.held))]
	switch {
	case t.outcome != wire.OutcomeHeld:
	case !t.running:
		for _, other := range c.held {
			if other.offset < t.offset && c.same(other, t) {
				return // the gate
			}
		}
		t.running = true
		if c.h.chance(c.h.faults * 0.3) { // it takes long
			t.until = c.h.now + time.Duration(c.h.rand.IntN(1000))*time.Millisecond
		}
		c.h.started[t.offset] = max(c.h.started[t.offset], t.epoch)
		c.h.event(promise.Started, c, t, 0)
	case c.h.now < t.until && c.h.faults > 0:
	case c.h.chance(c.h.nacks):
		c.finish(t, wire.OutcomeNack)
	case c.h.chance(c.h.nacks):
		c.finish(t, wire.OutcomeReleased)
	default:
		c.finish(t, wire.OutcomeAck)
	}
	c.flush()
}

// harness is one run.
type harness struct {
	rand      *rand.Rand
	settings  Settings
	shapes    []shape // that the group had so far
	check     *promise.Checker
	now       time.Duration
	log       []logEntry // committed
	pending   []logEntry // of the leader in office
	brokers   []*broker  // the last is in office
	follower  *broker
	consumers []*consumer
	room      int
	keys      int
	faults    float64
	nacks     float64
	without   []Rule
	hasty     bool // answers overtake also what was taken back
	failure   error
	lines     []string
	started   map[wire.Offset]wire.Index // the highest epoch
	lettered  map[wire.Offset]int
	sought    map[wire.Index]bool
	settled   map[uint64]bool // letters of which the checker knows
	saved     *checkpoint     // the newest
	forgets   func(*Group)    // mutant: what of a group a checkpoint does not keep
	orders    int
	version   uint64     // of the newest settings
	reached   wire.Index // that a replica has applied
	moves     int
}

func (h *harness) trace(format string, args ...any) {
	if len(h.lines) > 8000 {
		h.lines = slices.Delete(h.lines, 0, 4000)
	}
	h.lines = append(h.lines, fmt.Sprintf("%8s  ", h.now)+fmt.Sprintf(format, args...))
}

func (h *harness) fail(format string, args ...any) {
	if h.failure == nil {
		h.failure = fmt.Errorf(format, args...)
		h.trace("FAILED: %s", h.failure)
	}
}

func (h *harness) chance(p float64) bool { return p > 0 && h.rand.Float64() < p }

func (h *harness) office() *broker { return h.brokers[len(h.brokers)-1] }

// somebody is a broker that says that it leads: mostly the right one.
func (h *harness) somebody(term wire.Term) *broker {
	if h.chance(h.faults) {
		b := h.brokers[h.rand.IntN(len(h.brokers))]
		if b.term >= term {
			return b
		}
	}
	return h.office()
}

func newHarness(seed uint64, s Settings, without ...Rule) *harness {
	h := &harness{
		rand: rand.New(rand.NewPCG(seed, 1)), settings: s.WithDefaults(), without: without, room: 1 << 16, keys: 1 + int(seed%7),
		faults: 0.3, nacks: 0.1, started: make(map[wire.Offset]wire.Index), lettered: make(map[wire.Offset]int), sought: make(map[wire.Index]bool),
		settled: make(map[uint64]bool),
	}
	h.settings.SessionMs = uint32(harnessSession / time.Millisecond)
	if s.AckWaitMs == 0 {
		h.settings.AckWaitMs = 600_000 // a consumer that holds something for ever is seen as such
	}
	h.settings.BackoffMs, h.settings.BackoffMaxMs = 20, 500
	if seed%2 == 1 { // handlers take too long
		h.settings.AckWaitMs, h.settings.RevokeMs = 120, 60
	}
	switch seed % 4 {
	case 2:
		h.settings.DeliveryLimit, h.settings.DeadLetterMode, h.settings.DeadLetter = 2, wire.DeadLetterRecord, "dead"
	case 3:
		h.settings.DeliveryLimit, h.settings.DeadLetterMode = 2, wire.DeadLetterPark
	}
	h.check = promise.New(promise.Options{}) // in a shared group each record has a name of its own
	h.shapes = []shape{{kind: kindOf(&h.settings)}}
	h.version = 1
	put := AppendPut(nil, harnessGroup, h.version, "g", &h.settings, 0, PutQueue)
	h.log = []logEntry{{term: 1, control: put}}
	h.follower = h.replica()
	h.brokers = []*broker{h.replica()}
	h.lead()
	for i := range 2 + int(seed/7%2) {
		c := &consumer{h: h, name: string(rune('A' + i)), capacity: uint32(1 + h.rand.IntN(8)), timeout: harnessSession, kind: kindOf(&h.settings)}
		c.chosen = []wire.AttachFlags{0, wire.AttachReleaseChosen, wire.AttachReleaseChosen | wire.AttachReleaseOnDisconnect}[h.rand.IntN(3)]
		c.fresh(false)
		h.consumers = append(h.consumers, c)
	}
	return h
}

// replica makes one that has the log from its start, or from the newest checkpoint on.
func (h *harness) replica() *broker {
	b := &broker{h: h, known: make(map[wire.Offset]bool), state: NewState(), number: h.moves}
	if h.saved != nil && h.chance(0.7) {
		b.install(h.saved)
	}
	return b
}

// lead has the last broker take office: what survives is committed, and the first entry
// of its term.
func (h *harness) lead() {
	b := h.office()
	b.term = wire.Term(2 + h.moves)
	h.log = append(h.log, logEntry{term: b.term})
	for b.applied < len(h.log) {
		b.apply()
	}
	b.leader = NewLeader(b.state.Group(harnessGroup), b, h.now, wire.Index(b.applied))
	b.leader.Without(h.without...)
	b.leader.step = 8
	b.write()
	h.trace("leader %d begins term %d with entry %d", b.number, b.term, b.applied)
}

// replace makes another broker the leader. A prefix of what was not committed survives.
func (h *harness) replace() {
	h.event(promise.LeaderLost, nil, nil, 0)
	old := h.office()
	old.deposed = true
	h.moves++
	n := h.rand.IntN(len(h.pending) + 1)
	h.trace("leader %d is deposed, %d of %d entries survive", old.number, n, len(h.pending))
	h.log = append(h.log, h.pending[:n]...)
	h.pending = nil
	b := h.replica()
	h.brokers = append(h.brokers, b)
	h.lead()
	if len(h.brokers) > 3 { // the oldest is gone, its links with it
		gone := h.brokers[0]
		h.brokers = slices.Delete(h.brokers, 0, 1)
		for _, k := range gone.links {
			k.broken = true
		}
	}
}

// commit has the oldest entry committed and applied.
func (h *harness) commit() {
	if len(h.pending) == 0 {
		return
	}
	h.log = append(h.log, h.pending[0])
	h.pending = slices.Delete(h.pending, 0, 1)
	for b := h.office(); b.applied < len(h.log); {
		b.apply()
	}
}

func (h *harness) produce() {
	n := 1 + h.rand.IntN(5)
	keys := make([]uint64, n)
	for i := range keys {
		keys[i] = uint64(h.rand.IntN(h.keys + 1)) // 0 is no key
	}
	h.pending = append(h.pending, logEntry{term: h.office().term, records: keys})
}

// move passes one message over a link.
func (h *harness) move(k *fakeLink) {
	if k.broken {
		k.toClient, k.toBroker, k.ordered = nil, nil, 0
		if !k.told && h.chance(0.3) {
			k.told = true
			if !k.closed {
				k.closed = true
				k.b.leader.Gone(k, k.ends())
			}
		}
		return
	}
	if k.left && len(k.toBroker) == 0 {
		k.broken = true
		return
	}
	if len(k.toBroker) > 0 && h.chance(0.6) {
		f := k.toBroker[0]
		k.toBroker = k.toBroker[1:]
		if !k.closed {
			f(k.b.leader)
		}
		return
	}
	if len(k.toClient) > 0 && !k.c.stopped && !k.c.dead {
		if k.c.link == k && k.c.valid > 0 && h.now >= k.c.valid {
			k.c.fence()
			return
		}
		k.next()()
	}
}

func (h *harness) links() (out []*fakeLink) {
	for _, b := range h.brokers {
		b.links = slices.DeleteFunc(b.links, func(k *fakeLink) bool {
			return k.broken && (k.told || k.closed) || k.closed && len(k.toClient) == 0
		})
		out = append(out, b.links...)
	}
	return out
}

// seeks notes that a seek is committed.
func (h *harness) seeks(i wire.Index, floor wire.Offset) {
	h.sought[i] = true
	h.started = make(map[wire.Offset]wire.Index)
	h.trace("entry %d seeks to %d", i, floor)
	// All records are named: an OK from before the seek may still be on its way to its session.
	if err := h.check.Observe(promise.Event{Kind: promise.Sought, Epoch: uint64(i)}); err != nil && h.failure == nil {
		h.failure = err
	}
}

// order gives an order to a broker.
func (h *harness) order() {
	b := h.brokers[h.rand.IntN(len(h.brokers))]
	floor := wire.Offset(h.rand.IntN(int(b.end()) + 1))
	o := Order{Drain: true, Done: func(err error) { h.trace("order at leader %d: %v", b.number, err) }}
	if h.chance(0.2) {
		h.orders++
		h.trace("leader %d is ordered to send record %d back", b.number, floor)
		if floor < b.end() {
			b.leader.Redrive([]Letter{{Offset: floor, Text: "origin/0"}}, func(wire.Offset) (bool, error) { return false, nil }, func(err error) {
				o.Done(err)
				b.write()
			})
		}
		return
	}
	if h.orders++; h.chance(0.7) {
		o.Command, o.Reason = AppendSeek(nil, harnessGroup, floor, 0), wire.ReasonSeek
		h.trace("leader %d is ordered: %s", b.number, o.Reason)
		b.leader.Order(o)
		return
	}
	h.alter(b)
}

// alter gives the group other settings: one order at a time, as a partition does.
func (h *harness) alter(b *broker) {
	if b.altering || b.leader.Stops() {
		return
	}
	s := b.state.Group(harnessGroup).Settings
	switch h.rand.IntN(3) {
	case 0:
		other := leaderKinds[h.rand.IntN(len(leaderKinds))].settings.WithDefaults()
		s.Mode, s.Scope, s.Holder, s.Order, s.Window, s.Failback = other.Mode, other.Scope, other.Holder, other.Order, other.Window, other.Failback
	case 1:
		s.SessionMs = []uint32{300, 1000, 2000}[h.rand.IntN(3)]
		if c := h.consumers[h.rand.IntN(len(h.consumers))]; !c.stopped { // one does not hear of it
			h.trace("the link of %s breaks", c.id())
			c.cut()
			c.away = h.now + time.Duration(500+h.rand.IntN(500))*time.Millisecond
			for _, t := range c.held {
				t.until = c.away
			}
		}
	default:
		s.AckWaitMs = []uint32{120, 300, 600_000}[h.rand.IntN(3)]
	}
	h.version++
	h.trace("leader %d is ordered: %+v", b.number, s)
	b.altering = true
	b.leader.Order(Order{
		Command: AppendPut(nil, harnessGroup, h.version, "g", &s, 0, PutQueue), Drain: b.state.Group(harnessGroup).Drains(&s, h.without...), Reason: wire.ReasonSettings,
		Done: func(err error) {
			b.altering = false
			h.trace("settings at leader %d: %v", b.number, err)
		},
	})
}

// handOver has the leader in office give its leases to the next one, by plan.
func (h *harness) handOver() {
	b := h.office()
	if h.moves >= 6 || b.moving {
		return
	}
	b.moving = true
	h.trace("leader %d hands over", b.number)
	b.leader.HandOver(func(err error) {
		h.trace("leader %d may go: %v", b.number, err)
		b.ready = err == nil
	})
}

// moved goes on with a hand-over whose leases are committed: another broker takes over, or
// this one stays.
func (h *harness) moved() {
	b := h.office()
	if !b.ready {
		return
	}
	b.ready = false
	if h.chance(0.7) && h.moves < 6 {
		h.replace()
		return
	}
	h.trace("leader %d stays", b.number)
	b.leader.Stay()
	b.moving = false
}

// tick lets time pass. A consumer that is not stopped meets its deadline.
func (h *harness) tick(d time.Duration) {
	h.now += d
	for _, c := range h.consumers {
		if !c.stopped && !c.dead && c.valid > 0 && h.now >= c.valid {
			c.fence()
		}
	}
}

// step does one random thing.
func (h *harness) step() {
	if h.chance(0.1) {
		h.moved()
	}
	switch n := h.rand.IntN(100); {
	case n < 35:
		if links := h.links(); len(links) > 0 {
			h.move(links[h.rand.IntN(len(links))])
		}
	case n < 60:
		h.consumers[h.rand.IntN(len(h.consumers))].work()
	case n < 75:
		h.brokers[h.rand.IntN(len(h.brokers))].turn()
	case n < 85:
		h.commit()
	case n < 90:
		h.brokers[h.rand.IntN(len(h.brokers))].effects()
	case n < 94:
		h.tick(time.Duration(h.rand.IntN(40)) * time.Millisecond)
	case n < 96:
		if h.office().end() < 60 {
			h.produce()
		}
	default:
		if h.chance(h.faults) {
			h.fault()
		}
	}
}

func (h *harness) fault() {
	c := h.consumers[h.rand.IntN(len(h.consumers))]
	switch h.rand.IntN(15) {
	case 11:
		if h.version < 6 {
			h.alter(h.office())
		}
	case 10: // it can take more, or less
		c.capacity = uint32(1 + h.rand.IntN(8))
		if c.most = max(c.most, c.capacity); c.link != nil && c.attachedK {
			k, n := c.link, &wire.GroupCapacity{Records: c.capacity, Refill: c.capacity / 2}
			h.trace("%s asks for up to %d records", c.id(), c.capacity)
			k.toBroker = append(k.toBroker, func(l *Leader) { l.Capacity(k, n) })
		}
	case 0, 1, 2: // its link breaks
		if !c.stopped && c.link != nil {
			h.trace("the link of %s breaks", c.id())
			c.cut()
			if h.chance(h.faults) { // it reaches nobody for a while
				c.away = h.now + time.Duration(h.rand.IntN(1000))*time.Millisecond
			}
		}
	case 3: // it dies, and is started again
		for _, t := range c.held {
			t.running = false
		}
		h.event(promise.Died, c, nil, 0)
		c.cut()
		c.stopped = false
		c.fresh(h.chance(0.5))
	case 4: // it stands still for a while
		if c.stopped = !c.stopped; c.stopped {
			h.event(promise.Stopped, c, nil, 0)
		}
	case 5, 6:
		if h.moves < 6 {
			h.replace()
		}
	case 7:
		h.handOver()
	case 8:
		if h.orders < 3 {
			h.order()
		}
	case 9:
		h.park()
	case 12, 13:
		h.checkpoint()
	default:
		h.tick(harnessSession)
	}
}

// heal ends all faults and lets everything finish; it fails if that takes too long.
func (h *harness) heal() {
	h.faults, h.nacks = 0, 0
	for _, c := range h.consumers {
		c.stopped, c.away = false, 0
	}
	for _, b := range h.brokers[:len(h.brokers)-1] {
		for _, k := range b.links {
			k.broken = k.broken || k.c.link != k // nobody there
		}
		b.leader.Close(wire.CodeNotLeader)
		for _, k := range b.links {
			if k.closed = true; k.c.link == k && len(k.toClient) == 0 {
				k.c.cut()
			}
		}
	}
	h.moved()
	if b := h.office(); b.moving {
		b.leader.Stay()
	}
	for round := range 4000 {
		if h.failure != nil {
			return
		}
		for _, c := range h.consumers {
			for range 4 {
				c.work()
			}
		}
		for range 4 {
			for _, k := range h.links() {
				h.move(k)
			}
		}
		b := h.office()
		for _, scope := range sorted(b.state.Group(harnessGroup).Parked) { // somebody looks after them
			b.leader.Unpark(scope, nil)
		}
		b.turn()
		b.effects()
		for len(h.pending) > 0 {
			h.commit()
		}
		b.turn()
		h.tick(10 * time.Millisecond)
		if round%8 == 0 && b.state.Group(harnessGroup).Done.Floor() == b.end() && b.leader.waiting == 0 && h.quiet() {
			h.rest()
			return
		}
	}
	g := h.office().state.Group(harnessGroup)
	for _, c := range h.consumers {
		h.trace("%s: linked %t, attached %t, valid until %s, holds %d", c.id(), c.link != nil, c.attachedK, c.valid, len(c.held))
		for _, t := range c.held {
			h.trace("   %+v", *t)
		}
	}
	for _, m := range h.office().leader.members {
		h.trace("member %x: %+v", m.session[:2], *m)
	}
	for _, sc := range h.office().leader.scopes {
		h.trace("scope %d: %+v", sc.hash, *sc)
	}
	h.fail("after all faults have ended, %d of %d records are done (floor)", g.Done.Floor(), h.office().end())
}

func (h *harness) quiet() bool {
	return len(h.pending) == 0 && !slices.ContainsFunc(h.consumers, func(c *consumer) bool { return len(c.held) > 0 })
}

// rest checks what is left when everything is done.
func (h *harness) rest() {
	l := h.office().leader
	switch {
	case len(l.scopes) > 0 || l.of.Len() > 0:
		h.fail("at rest there are %d scopes and %d leased records", len(l.scopes), l.of.Len())
	case l.backing != 0 || l.waiting != 0 || l.redo.len() > 0 && !slices.Contains([]kind{shared, hashed}, l.kind):
		h.fail("at rest %d records are on their way back, %d sessions are waited for", l.backing, l.waiting)
	case !l.ahead.empty():
		h.fail("at rest there are leases ahead of the scan at %d: %v", l.scan, l.ahead.all())
	}
	for _, s := range slices.SortedFunc(maps.Keys(l.members), compareSessions) {
		if m := l.members[s]; !m.leases.empty() || m.held != 0 || m.heldBytes != 0 {
			h.fail("at rest a session has %d leases, %d records, %d bytes", len(m.leases.all()), m.held, m.heldBytes)
		}
	}
	for h.follower.applied < len(h.log) {
		h.follower.apply()
	}
	if string(h.follower.state.Save(nil)) != string(h.office().state.Save(nil)) {
		h.fail("two replicas differ")
	}
	if lost := h.check.Unsettled(); len(lost) > 0 && h.failure == nil {
		for _, o := range lost {
			if h.lettered[wire.Offset(o)] == 0 && !h.office().state.Group(harnessGroup).Done.Has(wire.Offset(o)) {
				h.fail("record %d is lost", o)
			}
		}
	}
}

// run plays the whole game.
func (h *harness) run(steps int) error {
	defer func() {
		if r := recover(); r != nil {
			panic(fmt.Sprintf("%v\n%s", r, h.tail(60)))
		}
	}()
	for range steps {
		if h.step(); h.failure != nil {
			return h.failure
		}
	}
	h.heal()
	return h.failure
}

func (h *harness) tail(n int) string {
	lines := h.lines[max(0, len(h.lines)-n):]
	out := ""
	for _, l := range lines {
		out += l + "\n"
	}
	return out
}
