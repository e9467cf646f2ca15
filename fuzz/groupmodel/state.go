package groupmodel

import "math/bits"

// Limits of the model. Everything is a byte, so that a state is one block of memory
// that can be copied, compared and hashed.
const (
	maxConsumers    = 3
	maxRecords      = 3
	maxIncarnations = 3 // sessions of one consumer
	maxTail         = 6 // entries that are not committed
	maxIn           = 2 // messages under way from a consumer
	maxOut          = 3 // messages under way to a consumer
)

// session is one life of a consumer towards the broker; 0 is none.
type session = uint8

func sessionOf(consumer, incarnation int) session {
	return session(1 + consumer*maxIncarnations + incarnation)
}

func consumerOf(s session) int { return int(s-1) / maxIncarnations }

func bit(s session) uint16 { return 1 << (s - 1) }

// records is a set of records, bit by offset.
type records = uint8

// state is the whole world: two leaders, consumers with their links, what is left of
// the budgets, and what the invariants remember.
type state struct {
	leaders   [2]leader // the current one, and one that was deposed and does not know it
	consumers [maxConsumers]consumer
	// unbound consumers should leave the partition, by the coordinator's word.
	unbound uint8
	left    budget
	seen    memory
	_       uint8 // makes the size even: a state is hashed as a block of bytes
}

// budget bounds what the environment may still do.
type budget struct {
	faults, nacks, timeouts, operations uint8
}

// replicated is the state that the applied entries make. index is that of the last one.
type replicated struct {
	sessions uint16
	index    uint8
	done     records
	fence    [maxRecords]uint8
	count    [maxRecords]uint8 // 1 if deliveries were given back
	attempts [maxRecords]uint8
	doubt    uint8 // offset
	horizon  uint8 // offset
	parked   uint8 // scopes
	active   session
	sought   uint8 // index of the last seek: the fence of the whole group
	// table is what a planned move hands over; tableFor is 0 if there is none, 1
	// until the next no-op, and 2 when that has been applied.
	tableFor uint8
	table    [maxRecords]lease
}

// lease gives a scope to a session.
type lease struct {
	session session
	epoch   uint8
	records records
}

type entryKind uint8

const (
	noEntry  entryKind = iota
	noop               // of term
	join               // session, predecessor, records, doubt
	remove             // session, records, doubt
	ack                // records (one), session and epoch for the answer only
	giveBack           // records, counted
	settle             // records (one): skip or the verdict of a dead letter
	park               // scope in arg
	unpark             // scope in arg
	seek               //
	activate           // session
	raise              // horizon in arg
	handOver           // the table
	void               // the table is void
)

// entry is what a leader proposes. All that apply needs is in it.
type entry struct {
	kind        entryKind
	term        uint8
	session     session
	predecessor session
	records     records
	epoch       uint8
	arg         uint8
	counted     uint8 // 1 if a give-back is an attempt of its first record
}

// leader is one node that believes to lead: what it has applied, what it has proposed,
// and what it keeps in memory.
type leader struct {
	state replicated
	wait  uint16 // sessions whose claims are missing
	term  uint8  // 0: there is none
	ready uint8  // its no-op is applied
	fresh uint8  // index of its no-op
	tail  [maxTail]entry
	tails uint8

	leases   [maxRecords]lease // by scope
	old      uint8             // the horizon that its no-op found
	attempt  [maxConsumers]uint8
	suspect  uint8 // consumers
	debt     [maxConsumers]uint8
	draining uint8 // bit 0 for a seek, bit 1 for a move
	table    [maxRecords]lease
	parting  uint8 // scopes that are to be parked when their head is free
}

type condition uint8

const (
	dead condition = iota
	working
	hung
)

type progress uint8

const (
	nothing progress = iota
	queued
	running
	acked  // finished, not confirmed
	nacked // given back, not confirmed
)

// hold is a record in a consumer's hands.
type hold struct {
	progress progress
	epoch    uint8
	again    uint8 // the delivery said that it was delivered before
}

type consumer struct {
	condition   condition
	stuck       uint8 // its handler never ends
	session     session
	predecessor session
	joined      uint8 // it knows that the session is on the list
	excused     uint8 // it stood still, so G2 is not for it
	term        uint8 // the highest it sent an attach to
	attempt     uint8
	link        uint8 // term of the leader it is connected to, 0 for none
	attached    uint8 // that leader has taken this link's attach
	former      uint8 // term of a leader whose link it should have forgotten
	held        [maxRecords]hold
	in          [maxIn]message // to the leader
	ins         uint8
	out         [maxOut]note // to the consumer
	outs        uint8
	late        message // an attach whose link is gone, not read yet
	lateTerm    uint8
}

type messageKind uint8

const (
	noMessage messageKind = iota
	attachMessage
	claimsMessage // only where attach and claims are two
	ackMessage
	nackMessage
)

type message struct {
	kind        messageKind
	record      uint8
	epoch       uint8
	session     session
	predecessor session
	attempt     uint8
	fresh       uint8 // the session may not be on the list yet
	claims      [maxRecords]hold
}

type noteKind uint8

const (
	noNote noteKind = iota
	attachedNote
	deliverNote
	okNote
	staleNote
	nackedNote
	goneNote
)

type note struct {
	kind    noteKind
	record  uint8
	epoch   uint8
	again   uint8
	ok      records // of an attachedNote
	refused records
}

// memory is what the invariants remember of the past; the protocol never looks at it.
type memory struct {
	newest    [maxRecords]uint8   // per scope: highest epoch granted
	holder    [maxRecords]session // per scope: to whom
	accepted  [maxRecords]session // whose ack was accepted
	under     [maxRecords]uint8   // and under which epoch
	confirmed records             // OK was said
	finished  records             // a handler came to its end
	started   records             // at least once
	alive     [maxRecords]uint8   // consumer + 1 that started it and has not failed since
	sought    uint8               // index of the last seek
}

// listed reports whether the applied entries have the session on the list.
func (r *replicated) listed(s session) bool { return r.sessions&bit(s) != 0 }

func (l *leader) propose(e entry) {
	e.term = l.term
	l.tail[l.tails] = e
	l.tails++
}

// room reports whether n entries can be proposed.
func (l *leader) room(n int) bool { return int(l.tails)+n <= maxTail }

// proposed calls f for each entry that this leader has proposed and not applied, until
// it returns true.
func (l *leader) proposed(f func(e *entry) bool) bool {
	for i := range l.tails {
		if l.tail[i].term == l.term && f(&l.tail[i]) {
			return true
		}
	}
	return false
}

func (l *leader) pendingAcks() (set records) {
	l.proposed(func(e *entry) bool {
		if e.kind == ack {
			set |= e.records
		}
		return false
	})
	return set
}

// pendingEnds are the records whose lease ends with an entry that is proposed.
func (l *leader) pendingEnds() (set records) {
	l.proposed(func(e *entry) bool {
		switch e.kind {
		case giveBack, remove, join, settle:
			set |= e.records
		}
		return false
	})
	return set
}

// ending reports whether the session's removal is proposed.
func (l *leader) ending(s session) bool {
	return l.proposed(func(e *entry) bool {
		return e.kind == remove && e.session == s || e.kind == join && e.predecessor == s
	})
}

func (l *leader) joining(s session) bool {
	return l.proposed(func(e *entry) bool { return e.kind == join && e.session == s })
}

func (l *leader) pending(kinds ...entryKind) bool {
	return l.proposed(func(e *entry) bool {
		for _, k := range kinds {
			if e.kind == k {
				return true
			}
		}
		return false
	})
}

func (c *consumer) say(m message) {
	m.session = c.session
	c.in[c.ins] = m
	c.ins++
}

// hear puts a note on the link. A consumer that stands still and lets it fill up
// loses it.
func (c *consumer) hear(n note) {
	if c.outs == maxOut {
		c.unlink()
		return
	}
	c.out[c.outs] = n
	c.outs++
}

func (c *consumer) said() message {
	m := c.in[0]
	copy(c.in[:], c.in[1:])
	c.ins--
	c.in[maxIn-1] = message{}
	return m
}

func (c *consumer) heard() note {
	n := c.out[0]
	copy(c.out[:], c.out[1:])
	c.outs--
	c.out[maxOut-1] = note{}
	return n
}

// unlink cuts the consumer's connection; what was under way is lost.
func (c *consumer) unlink() {
	c.link, c.attached, c.ins, c.outs = 0, 0, 0, 0
	c.in, c.out = [maxIn]message{}, [maxOut]note{}
}

func (c *consumer) holds() bool {
	for _, h := range c.held {
		if h.progress != nothing {
			return true
		}
	}
	return false
}

// forget clears what cannot matter any more, so that fewer states differ.
func (t *step) forget() {
	s := t.s
	deposed := &s.leaders[1]
	for ci := range t.consumers {
		// Whether a consumer may turn to the deposed leader is all that its term says.
		if c := &s.consumers[ci]; deposed.term == 0 || c.term <= deposed.term {
			c.term = 0
		} else {
			c.term = s.leaders[0].term
		}
	}
	if t.Seek {
		return // what is done may not stay done
	}
	var busy records
	for ci := range t.consumers {
		c := &s.consumers[ci]
		for r := range t.records {
			b := records(1 << r)
			if c.held[r].progress|c.late.claims[r].progress != nothing {
				busy |= b
			}
			for i := range c.ins {
				if c.in[i].claims[r].progress != nothing || c.in[i].kind >= ackMessage && c.in[i].record == uint8(r) {
					busy |= b
				}
			}
			for i := range c.outs {
				if n := &c.out[i]; n.kind != attachedNote && n.record == uint8(r) || (n.ok|n.refused)&b != 0 {
					busy |= b
				}
			}
		}
	}
	current := &s.leaders[0]
	busy |= current.pendingAcks() | current.pendingEnds()
	over := current.state.done &^ busy
	if deposed.term != 0 {
		over &= deposed.state.done
	}
	for r := range t.records {
		if over&(1<<r) == 0 {
			continue
		}
		for i := range s.leaders {
			state := &s.leaders[i].state
			state.fence[r], state.count[r], state.attempts[r] = 0, 0, 0
		}
		s.seen.accepted[r], s.seen.under[r], s.seen.alive[r] = 0, 0, 0
	}
	for k := range t.scopes {
		if t.members[k]&^over == 0 {
			s.seen.newest[k], s.seen.holder[k] = 0, 0
		}
	}
}

// renumber gives the epochs and indexes that occur anywhere the numbers 1, 2, 3 … in
// their order. Only their order counts, so states that differ in nothing else are one.
func (s *state) renumber() {
	var used uint64
	s.indexes(func(v *uint8) { used |= 1 << *v })
	used &^= 1
	s.indexes(func(v *uint8) {
		if *v != 0 {
			*v = uint8(bits.OnesCount64(used & (2<<*v - 1)))
		}
	})
}

// indexes calls f for each field that holds an index of an entry or 0.
func (s *state) indexes(f func(*uint8)) {
	for i := range s.leaders {
		l := &s.leaders[i]
		if l.term == 0 {
			continue
		}
		r := &l.state
		f(&r.index)
		f(&l.fresh)
		f(&r.sought)
		for k := range maxRecords {
			f(&r.fence[k])
			f(&r.table[k].epoch)
			f(&l.leases[k].epoch)
			f(&l.table[k].epoch)
		}
		for k := range l.tails {
			f(&l.tail[k].epoch)
		}
	}
	for i := range s.consumers {
		c := &s.consumers[i]
		if c.session == 0 {
			continue
		}
		for k := range c.held {
			f(&c.held[k].epoch)
			f(&c.late.claims[k].epoch)
		}
		for k := range c.ins {
			f(&c.in[k].epoch)
			for j := range maxRecords {
				f(&c.in[k].claims[j].epoch)
			}
		}
		for k := range c.outs {
			f(&c.out[k].epoch)
		}
	}
	for k := range maxRecords {
		f(&s.seen.newest[k])
		f(&s.seen.under[k])
	}
	f(&s.seen.sought)
}
