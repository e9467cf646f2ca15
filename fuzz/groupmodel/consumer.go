package groupmodel

import "github.com/lockstepmq/lockstep/promise"

// connects links a consumer to a leader and sends its attach.
func (t *step) connects(ci, li int) bool {
	c, l := &t.s.consumers[ci], &t.s.leaders[li]
	if c.condition != working || l.term == 0 || c.link == l.term {
		return false
	}
	if li == 1 && c.link == t.current().term {
		return false // it has nothing to look for there
	}
	if l.term < c.term && !t.off[termNotKept] {
		return false
	}
	if t.s.unbound&(1<<ci) != 0 && c.joined == 0 {
		return false
	}
	if t.off[formerLink] && c.link != 0 {
		c.former = c.link
	}
	c.unlink()
	c.link = l.term
	c.term = max(c.term, l.term)
	if t.late {
		c.attempt++
	}
	t.sendsAttach(ci)
	return true
}

func (t *step) sendsAttach(ci int) {
	c := &t.s.consumers[ci]
	m := message{kind: attachMessage, attempt: c.attempt, predecessor: c.predecessor, fresh: 1 - c.joined}
	for r, h := range c.held {
		if h.progress == nothing || t.off[outcomesForgotten] && h.progress >= acked {
			continue
		}
		m.claims[r] = hold{progress: h.progress, epoch: h.epoch}
	}
	c.say(m)
	if t.off[attachBeforeClaims] {
		m.kind = claimsMessage
		c.say(m)
	}
}

// hears takes the first note that its leader has sent.
func (t *step) hears(ci int) {
	c := &t.s.consumers[ci]
	switch n := c.heard(); n.kind {
	case attachedNote:
		c.joined, c.predecessor = 1, 0
		for r := range t.records {
			b := records(1 << r)
			if n.ok&b != 0 {
				t.observeAnswer(ci, note{kind: okNote, record: uint8(r), epoch: c.held[r].epoch})
				c.held[r] = hold{}
			}
			if n.refused&b != 0 {
				t.drops(ci, r)
			}
		}
	case deliverNote:
		t.receives(ci, n)
	case okNote:
		if h := &c.held[n.record]; h.progress == acked && h.epoch == n.epoch {
			*h = hold{}
		}
		t.observeAnswer(ci, n)
	case staleNote, nackedNote:
		t.observeAnswer(ci, n)
		for r := int(n.record); r < t.records; r++ {
			if t.scope[r] == t.scope[n.record] && c.held[r].epoch == n.epoch {
				t.drops(ci, r) // also what came after the nack was sent
			}
			if t.off[nackForgotten] {
				break
			}
		}
	case goneNote:
		t.observeEnd(ci, promise.Removed)
		for r := range t.records {
			t.drops(ci, r)
		}
		c.unlink()
		if t.s.unbound&(1<<ci) != 0 {
			*c = consumer{session: c.session}
			return
		}
		t.joinsAnew(ci, 0)
	}
}

func (t *step) receives(ci int, n note) {
	c := &t.s.consumers[ci]
	c.held[n.record] = hold{progress: queued, epoch: n.epoch, again: n.again}
	t.observeDelivery(ci, n)
}

// drops lets go of a record, whatever was done with it.
func (t *step) drops(ci, record int) {
	c := &t.s.consumers[ci]
	if c.held[record].progress == nothing {
		return
	}
	t.observeDrop(ci, record)
	c.held[record] = hold{}
}

// joinsAnew begins the consumer's next session.
func (t *step) joinsAnew(ci int, predecessor session) {
	c := &t.s.consumers[ci]
	if incarnation := int(c.session-1) % maxIncarnations; incarnation == maxIncarnations-1 {
		t.edge = true
		return
	}
	c.session++
	c.predecessor = predecessor
	c.joined, c.attempt, c.excused = 0, 0, 0
}

// mayStart reports whether the library gives a queued record to a handler.
func (t *step) mayStart(ci, record int) bool {
	c := &t.s.consumers[ci]
	if c.condition != working || c.held[record].progress != queued {
		return false
	}
	for r, h := range c.held {
		if h.progress == nothing || t.scope[r] != t.scope[record] || r == record {
			continue
		}
		if h.progress == running && t.order != ungated {
			return false
		}
		confirmed := t.order == ungated && h.progress != queued || h.progress == acked && (t.order == replay || t.off[startsUnconfirmed]) ||
			h.progress == nacked && t.off[nackKeepsRest]
		if r < record && !confirmed {
			return false
		}
	}
	return true
}

func (t *step) finishes(ci, record int) bool {
	c := &t.s.consumers[ci]
	h := &c.held[record]
	if c.condition != working || c.stuck != 0 || h.progress != running || c.link != 0 && c.ins == maxIn {
		return false
	}
	for r := range record {
		if c.held[r].progress == running && t.scope[r] == t.scope[record] {
			return false // acks are sent in order, whatever runs beside
		}
	}
	h.progress = acked
	if h.epoch >= t.s.seen.sought {
		t.s.seen.finished |= 1 << record
	}
	t.observeFinish(ci, record, true)
	if c.link != 0 {
		c.say(message{kind: ackMessage, record: uint8(record), epoch: h.epoch})
	}
	return true
}

func (t *step) nacks(ci, record int) bool {
	c := &t.s.consumers[ci]
	h := &c.held[record]
	if c.condition != working || h.progress != running || t.s.left.nacks == 0 || c.link != 0 && c.ins == maxIn {
		return false
	}
	t.s.left.nacks--
	t.observeFinish(ci, record, false)
	h.progress = nacked
	t.s.seen.alive[record] = 0
	for r := record + 1; r < t.records; r++ {
		if t.scope[r] == t.scope[record] && c.held[r].epoch == h.epoch && !t.off[nackKeepsRest] {
			t.drops(ci, r)
		}
	}
	if c.link != 0 {
		c.say(message{kind: nackMessage, record: uint8(record), epoch: h.epoch})
	}
	return true
}

// expires is the consumer's own deadline: it has no word from a leader that asked a
// quorum, cancels its handlers and begins a new session. A link to the current leader
// keeps it alive.
func (t *step) expires(ci int) bool {
	c := &t.s.consumers[ci]
	if c.condition != working || c.joined == 0 || t.Patient || t.off[noDeadline] || !c.holds() && c.excused == 0 {
		return false // one that holds nothing has nothing to do at its deadline
	}
	if c.link == t.current().term && c.attached != 0 && c.excused == 0 {
		return false
	}
	if t.off[staleConfirms] && c.link != 0 {
		return false
	}
	t.parts(ci)
	return true
}

// parts ends the consumer's session from its own side.
func (t *step) parts(ci int) {
	c := &t.s.consumers[ci]
	old := c.session
	t.fails(ci, promise.Removed)
	for r := range t.records {
		if t.off[queueSurvives] && c.held[r].progress == queued {
			continue
		}
		t.drops(ci, r)
	}
	c.unlink()
	t.joinsAnew(ci, old)
}

// restarts begins a new life of a process that died. It knows the session before.
func (t *step) restarts(ci int) bool {
	c := &t.s.consumers[ci]
	if c.condition != dead || c.session == 0 || t.s.unbound&(1<<ci) != 0 {
		return false
	}
	c.condition = working
	t.joinsAnew(ci, c.session)
	return true
}
