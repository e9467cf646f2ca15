package groupmodel

// step is one action in the making: the state that it leads to, and what it broke.
type step struct {
	*model
	s *state
}

func (t *step) current() *leader { return &t.s.leaders[0] }

// epoch is what a lease gets that is granted now.
func (t *step) epoch(l *leader, record int) uint8 {
	switch {
	case t.off[epochIsTerm]:
		return l.term
	case t.off[epochForgotten]:
		return 4*l.term + l.state.count[record]
	}
	return l.state.index
}

// listed reports whether a session is on the list, as a leader sees it.
func (t *step) listed(l *leader, s session) bool {
	if t.off[joinVolatile] && l.joining(s) {
		return true
	}
	return l.state.listed(s)
}

func (t *step) pendingEnds(l *leader) records {
	if t.off[endedTwice] || t.off[appliedOnly] {
		return 0
	}
	return l.pendingEnds()
}

// fenced reports whether an epoch is below the record's fence.
func (t *step) fenced(l *leader, record int, epoch uint8) bool {
	if epoch < l.state.sought && !t.off[seekWithoutFence] {
		return true
	}
	if t.off[fencePerScope] {
		for r := range t.records {
			if t.scope[r] == t.scope[record] && epoch < l.state.fence[r] {
				return true
			}
		}
		return false
	}
	return epoch < l.state.fence[record]
}

// first is the scope's first record that is not done, or -1.
func (t *step) first(l *leader, scope int) int {
	for r := range t.records {
		if t.scope[r] == scope && l.state.done&(1<<r) == 0 {
			return r
		}
	}
	return -1
}

// reads takes the first message that a consumer has sent to its leader. It reports
// false if the leader cannot answer it yet.
func (t *step) reads(l *leader, ci int) bool {
	c := &t.s.consumers[ci]
	m := c.in[0]
	if l.ready == 0 && !t.off[beforeNoop] {
		return false
	}
	if !l.room(maxRecords+1) || c.outs == maxOut || t.undecided(l, &m) {
		return false
	}
	switch m.kind {
	case attachMessage:
		switch t.readsAttach(l, ci, &m, true) {
		case blocked:
			return false
		case stays:
			return true
		}
	case claimsMessage:
		t.claims(l, ci, &m, true)
	case ackMessage:
		t.readsAck(l, ci, &m)
	case nackMessage:
		t.readsNack(l, ci, &m)
	}
	l.suspect &^= 1 << ci
	c.said()
	return true
}

// ending reports whether the session's removal is proposed, as a leader sees it.
func (t *step) ending(l *leader, s session) bool { return l.ending(s) && !t.off[appliedOnly] }

// undecided reports whether a message speaks of a lease whose end is proposed. The
// answer waits until that is applied: told STALE_EPOCH at once, a consumer would drop
// what it has finished, and if the entry dies with this leader nobody knows that the
// record was started.
func (t *step) undecided(l *leader, m *message) bool {
	if t.off[staleAtOnce] {
		return false
	}
	ends := t.pendingEnds(l)
	if t.off[ackOfEnding] && m.kind == ackMessage {
		ends = 0
	}
	switch m.kind {
	case ackMessage, nackMessage:
		return ends&(1<<m.record) != 0
	}
	for r := range t.records {
		if m.claims[r].progress != nothing && ends&(1<<r) != 0 {
			return true
		}
	}
	return false
}

// reading is what became of an attach.
type reading uint8

const (
	blocked reading = iota // nothing
	stays                  // an entry is proposed, and the attach waits for it
	taken
)

// readsAttach brings a session in, or back. linked says that the attach came over
// the link that the consumer has now.
func (t *step) readsAttach(l *leader, ci int, m *message, linked bool) reading {
	c := &t.s.consumers[ci]
	if m.attempt < l.attempt[ci] && !t.off[attemptIgnored] {
		return taken
	}
	if t.ending(l, m.session) {
		return blocked
	}
	if !t.listed(l, m.session) {
		if m.fresh == 0 && !t.off[goneIsTold] && !t.off[removedComesBack] {
			if linked {
				c.hear(note{kind: goneNote})
			}
			return taken
		}
		if m.fresh != 0 || t.off[removedComesBack] {
			if l.joining(m.session) {
				return blocked // until it is committed
			}
			t.join(l, m)
			if !t.off[joinVolatile] {
				return stays
			}
		}
	}
	if !t.off[attemptIgnored] {
		l.attempt[ci] = m.attempt
	}
	if t.off[attachBeforeClaims] {
		l.wait &^= bit(m.session)
		if linked {
			c.attached = 1
		}
		return taken
	}
	t.claims(l, ci, m, linked)
	return taken
}

// join proposes that a session is put on the list, in the place of its predecessor.
func (t *step) join(l *leader, m *message) {
	e := entry{kind: join, session: m.session, predecessor: m.predecessor}
	if p := m.predecessor; p != 0 && l.state.listed(p) && !l.ending(p) {
		t.takes(l, &e, p)
	} else {
		e.predecessor = 0
	}
	l.propose(e)
}

// takes fills in what the removal of a session returns.
func (t *step) takes(l *leader, e *entry, s session) {
	pending := l.pendingAcks() | t.pendingEnds(l)
	for k := range t.scopes {
		if l.leases[k].session == s {
			e.records |= l.leases[k].records &^ pending
		}
	}
	if l.wait&bit(s) != 0 {
		e.arg = l.old // the doubt mark
	}
	if t.off[removalLooksAtLeases] {
		e.records = 0
	}
	if t.off[noDoubt] {
		e.arg = 0
	}
}

// claims grants what a returning session may keep and answers for the rest.
func (t *step) claims(l *leader, ci int, m *message, linked bool) {
	c := &t.s.consumers[ci]
	s := m.session
	ends, acks := t.pendingEnds(l), l.pendingAcks()
	var granted, refused, confirmed, given records
	for r := range t.records {
		claim := m.claims[r]
		if claim.progress == nothing {
			continue
		}
		b := records(1 << r)
		if l.state.done&b != 0 {
			if claim.progress == acked && t.settledBy(l, r, claim.epoch) {
				confirmed |= b
			} else {
				refused |= b
			}
			continue
		}
		k := t.scope[r]
		have := l.leases[k]
		switch {
		case ends&b != 0,
			t.fenced(l, r, claim.epoch) && !t.off[claimUnfenced],
			have.session != 0 && have.session != s,
			have.session == s && have.epoch != claim.epoch && !t.off[claimGetsNewEpoch],
			t.earlier(l, r)&^granted&^acks != 0,
			t.off[claimOfThisTerm] && claim.epoch < l.fresh:
			refused |= b
			continue
		}
		granted |= b
		if have.session != s {
			l.leases[k] = lease{session: s, epoch: claim.epoch}
			if t.off[claimGetsNewEpoch] {
				l.leases[k].epoch = t.epoch(l, r)
			}
		}
		l.leases[k].records |= b
		switch claim.progress {
		case acked:
			if acks&b == 0 {
				l.propose(entry{kind: ack, records: b, session: s, epoch: claim.epoch})
			}
		case nacked:
			given |= b
		}
	}
	// A nack gives back what comes after it in the lease.
	for k := range t.scopes {
		if in := given & t.members[k]; in != 0 {
			head := in & -in
			back := l.leases[k].records &^ (head - 1) &^ acks
			e := entry{kind: giveBack, records: back, counted: 1, session: s}
			e.epoch = m.claims[e.record()].epoch
			l.propose(e)
			ends |= back
		}
	}
	// What this leader sent and nobody claims was lost on the way.
	var lost records
	for k := range t.scopes {
		if l.leases[k].session == s {
			lost |= l.leases[k].records &^ granted &^ ends &^ l.pendingAcks()
		}
	}
	if lost != 0 && !t.off[lostStays] {
		l.propose(entry{kind: giveBack, records: lost})
	}
	l.wait &^= bit(s)
	if linked {
		c.attached = 1
		c.hear(note{kind: attachedNote, ok: confirmed, refused: refused})
	}
	for r := range t.records {
		if confirmed&(1<<r) != 0 {
			t.saysOK(l, r, s, m.claims[r].epoch)
		}
		if refused&(1<<r) != 0 {
			t.refuses(l, r, s, m.claims[r].epoch)
		}
	}
}

// earlier are the records before one in its scope that are not done.
func (t *step) earlier(l *leader, record int) records {
	return t.members[t.scope[record]] & (1<<record - 1) &^ l.state.done
}

// settledBy reports whether the ack of a done record was this holder's.
func (t *step) settledBy(l *leader, record int, epoch uint8) bool {
	return t.off[noFenceForDone] || !t.off[doneIsStale] && !t.fenced(l, record, epoch)
}

func (t *step) readsAck(l *leader, ci int, m *message) {
	c := &t.s.consumers[ci]
	r, k, b := int(m.record), t.scope[m.record], records(1<<m.record)
	have := l.leases[k]
	if !t.listed(l, m.session) {
		if t.off[goneIsTold] && l.state.done&b != 0 {
			t.answers(l, c, okNote, m)
			return
		}
		c.hear(note{kind: goneNote})
		return
	}
	ending := (t.ending(l, m.session) || t.pendingEnds(l)&b != 0) && !t.off[ackOfEnding]
	switch {
	case have.session == m.session && have.records&b != 0 && !ending && (have.epoch == m.epoch || t.off[ackOfAnyEpoch]):
		if l.pendingAcks()&b != 0 {
			return // one answer, when it is applied
		}
		if t.earlier(l, r)&^l.pendingAcks() != 0 {
			t.answers(l, c, staleNote, m) // OUT_OF_ORDER
			return
		}
		to := l
		if forward := t.current(); t.off[forwarded] && forward.term != l.term && forward.room(2) {
			to = forward
		}
		to.propose(entry{kind: ack, records: b, session: m.session, epoch: m.epoch})
		if t.off[okOnReceipt] {
			t.accepts(r, m.session, m.epoch)
			t.answers(l, c, okNote, m)
		}
		if t.off[nextOnReceipt] {
			t.release(l, b)
		}
	case l.state.done&b != 0 && t.settledBy(l, r, m.epoch):
		t.answers(l, c, okNote, m)
	default:
		t.answers(l, c, staleNote, m)
	}
}

// answers says OK or STALE about an ack.
func (t *step) answers(l *leader, c *consumer, kind noteKind, m *message) {
	if kind == okNote {
		t.saysOK(l, int(m.record), m.session, m.epoch)
	} else {
		t.refuses(l, int(m.record), m.session, m.epoch)
	}
	c.hear(note{kind: kind, record: m.record, epoch: m.epoch})
}

func (t *step) readsNack(l *leader, ci int, m *message) {
	c := &t.s.consumers[ci]
	k, b := t.scope[m.record], records(1<<m.record)
	have := l.leases[k]
	if !t.listed(l, m.session) {
		c.hear(note{kind: goneNote})
		return
	}
	if have.session != m.session || have.epoch != m.epoch || have.records&b == 0 || (l.pendingEnds()|l.pendingAcks())&b != 0 || l.ending(m.session) {
		c.hear(note{kind: nackedNote, record: m.record, epoch: m.epoch})
		return
	}
	back := have.records &^ (b - 1)
	if t.off[nackOfOne] {
		back = b
	}
	l.propose(entry{kind: giveBack, records: back, counted: 1, session: m.session, epoch: m.epoch})
	if t.off[returnOnReceipt] {
		t.release(l, back)
	}
}

// release takes records out of the leases on them; an empty lease ends.
func (t *step) release(l *leader, set records) {
	for k := range t.scopes {
		have := &l.leases[k]
		have.records &^= set
		if have.records == 0 {
			*have = lease{}
		}
	}
}

// applies commits the leader's oldest entry and carries it out.
func (t *step) applies(l *leader) {
	e := l.tail[0]
	copy(l.tail[:], l.tail[1:])
	l.tails--
	l.tail[maxTail-1] = entry{}
	r := &l.state
	r.index++
	switch e.kind {
	case noop:
		t.appliesNoop(l, &e)
	case join, remove:
		gone := e.predecessor
		if e.kind == remove {
			gone = e.session
		} else {
			r.sessions |= bit(e.session)
		}
		if gone != 0 {
			t.appliesEnd(l, &e, gone)
		}
	case ack:
		t.appliesAck(l, &e)
	case giveBack:
		t.appliesReturn(l, &e)
	case settle:
		r.done |= e.records
		r.fence[e.record()] = r.index
		t.settles(&e)
		t.release(l, e.records)
	case park:
		r.parked |= 1 << e.arg
	case unpark:
		r.parked &^= 1 << e.arg
	case seek:
		r.done = 0
		r.sought = r.index
		r.count, r.attempts = [maxRecords]uint8{}, [maxRecords]uint8{}
		l.draining &^= drainSeek
		t.soughtTo(r.index)
	case activate:
		r.active = e.session
	case raise:
		r.horizon = max(r.horizon, e.arg)
	case handOver:
		r.tableFor = 1
		r.table = l.table
		if t.off[emptyTable] {
			r.table = [maxRecords]lease{}
		}
	case void:
		r.tableFor = 0
		if e.term == l.term {
			l.draining &^= drainMove
		}
	}
	if r.tableFor == 0 {
		r.table = [maxRecords]lease{}
	}
}

// appliesNoop begins or ends a term. Whoever comes back after it has to say what it holds.
func (t *step) appliesNoop(l *leader, e *entry) {
	r := &l.state
	usable := r.tableFor == 1 || r.tableFor != 0 && t.off[tableStays]
	if usable {
		r.tableFor = 2
	} else {
		r.tableFor = 0
	}
	if e.term != l.term {
		return
	}
	l.ready, l.old = 1, r.horizon
	if t.off[doubtVolatile] {
		r.doubt = 0
	}
	if t.off[claimOfThisTerm] {
		l.fresh = r.index
	}
	if t.off[beforeNoop] {
		// It has been acting already.
		l.wait &= r.sessions
		return
	}
	l.wait = r.sessions
	if t.off[waitForBound] {
		for ci := range t.consumers {
			if t.s.unbound&(1<<ci) != 0 {
				l.wait &^= bit(t.s.consumers[ci].session)
			}
		}
	}
	if usable {
		l.wait = 0
		for k := range t.scopes {
			have := r.table[k]
			for i := range t.records {
				if r.done&(1<<i) != 0 || have.epoch < r.fence[i] {
					have.records &^= 1 << i
				}
			}
			if have.session != 0 && r.listed(have.session) && have.records != 0 {
				l.leases[k] = have
			}
		}
	}
}

// appliesEnd takes a session off the list.
func (t *step) appliesEnd(l *leader, e *entry, s session) {
	r := &l.state
	r.sessions &^= bit(s)
	back := e.records
	if t.off[removalLooksAtLeases] {
		for k := range t.scopes {
			if l.leases[k].session == s {
				back |= l.leases[k].records
			}
		}
	}
	for i := range t.records {
		if back&(1<<i) != 0 && r.done&(1<<i) == 0 {
			t.fences(r, i)
			t.counts(r, i)
		}
	}
	r.doubt = max(r.doubt, e.arg)
	if r.active == s {
		r.active = 0
	}
	l.wait &^= bit(s)
	if c := &t.s.consumers[consumerOf(s)]; c.session == s && c.link == l.term && c.attached != 0 && !t.off[goneIsTold] {
		c.hear(note{kind: goneNote}) // as its next heartbeat would be told
	}
	t.release(l, back)
	for k := range t.scopes {
		if l.leases[k].session == s {
			l.leases[k] = lease{}
		}
	}
}

func (t *step) fences(r *replicated, record int) {
	if !t.off[claimUnfenced] || !t.off[noFenceForDone] {
		r.fence[record] = r.index
	}
}

func (t *step) counts(r *replicated, record int) {
	r.count[record] = 1
}

func (t *step) appliesAck(l *leader, e *entry) {
	r := &l.state
	record := e.record()
	if r.done&e.records == 0 {
		r.done |= e.records
		t.acceptsCommitted(record, e)
	} else if t.s.seen.accepted[record] != e.session || t.s.seen.under[record] != e.epoch {
		t.acceptsCommitted(record, e)
	}
	t.release(l, e.records)
	if t.off[okOnReceipt] || e.term != l.term {
		return
	}
	if c := &t.s.consumers[consumerOf(e.session)]; c.session == e.session && c.link == l.term && c.attached != 0 {
		t.saysOK(l, record, e.session, e.epoch)
		c.hear(note{kind: okNote, record: uint8(record), epoch: e.epoch})
	}
}

func (t *step) appliesReturn(l *leader, e *entry) {
	r := &l.state
	head := e.records & -e.records
	for i := range t.records {
		b := records(1 << i)
		if e.records&b == 0 || r.done&b != 0 {
			continue
		}
		t.fences(r, i)
		if e.counted != 0 {
			t.counts(r, i)
			if t.limit != 0 && (b == head || t.off[limitOnDeliveries]) {
				r.attempts[i] = min(2, r.attempts[i]+1)
			}
		}
	}
	t.release(l, e.records)
	if e.session != 0 && e.term == l.term {
		if c := &t.s.consumers[consumerOf(e.session)]; c.session == e.session && c.link == l.term && c.attached != 0 {
			c.hear(note{kind: nackedNote, record: uint8(e.record()), epoch: e.epoch})
		}
	}
}

// record is the first of an entry's records.
func (e *entry) record() int {
	for i := range maxRecords {
		if e.records&(1<<i) != 0 {
			return i
		}
	}
	return 0
}
