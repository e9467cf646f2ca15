package groupmodel

import (
	"fmt"

	"github.com/lockstepmq/lockstep/promise"
)

// Promise is what a step can break.
type Promise string

const (
	G1 Promise = "G1" // one accepted ack, epochs
	G2 Promise = "G2" // one live session at work in a scope
	G3 Promise = "G3" // order
	G4 Promise = "G4" // no repetition by a broker's failure alone
	G5 Promise = "G5" // no loss
	G6 Promise = "G6" // everything can still be finished
	// Counts is what G1 to G6 do not say and rules 2, 19 and 24 do: a record that comes
	// again says so, and none is buried untried.
	Counts Promise = "counts"
)

// broken is a promise with the sentence that says how.
type broken struct {
	promise Promise
	what    string
}

func (t *step) fail(p Promise, what string, args ...any) {
	if t.bad == nil && (t.only == "" || t.only == p) {
		t.bad = &broken{p, fmt.Sprintf(what, args...)}
	}
}

// grants is called when a leader gives a scope to a session anew.
func (t *step) grants(l *leader, record int, s session, epoch uint8) {
	k, m := t.scope[record], &t.s.seen
	if m.newest[k] != 0 && epoch == m.newest[k] && s != m.holder[k] {
		t.fail(G1, "%s and %s share epoch %d of scope %d", sessionName(m.holder[k]), sessionName(s), epoch, k)
	}
	if l.term == t.current().term && epoch < m.newest[k] {
		t.fail(G1, "scope %d gets epoch %d after epoch %d", k, epoch, m.newest[k])
	}
	if epoch >= m.newest[k] {
		m.newest[k], m.holder[k] = epoch, s
	}
}

// comesAgain is called when a record is delivered.
func (t *step) comesAgain(record int, epoch uint8) {
	m := &t.s.seen
	if t.current().state.done&(1<<record) != 0 && m.accepted[record] == 0 && epoch >= m.newest[t.scope[record]] {
		t.fail(G1, "r%d is delivered under epoch %d, and it was settled long ago", record, epoch)
	}
	if (m.accepted[record] != 0 || m.confirmed&(1<<record) != 0) && epoch >= m.under[record] {
		t.fail(G1, "r%d is delivered under epoch %d after its ack was accepted under epoch %d", record, epoch, m.under[record])
	}
}

// acceptsCommitted is called when the entry of an ack settles a record, or comes
// from somebody else than the one that did.
func (t *step) acceptsCommitted(record int, e *entry) {
	m := &t.s.seen
	if a := m.accepted[record]; a != 0 && (a != e.session || m.under[record] != e.epoch) {
		t.fail(G1, "r%d has accepted acks of %s under epoch %d and of %s under epoch %d",
			record, sessionName(a), m.under[record], sessionName(e.session), e.epoch)
	}
	if k := t.scope[record]; e.epoch < m.newest[k] {
		t.fail(G1, "the ack of r%d by %s is accepted under epoch %d; epoch %d of the scope is newer",
			record, sessionName(e.session), e.epoch, m.newest[k])
	}
	if e.epoch < m.sought {
		t.fail(G1, "the ack of r%d by %s under epoch %d is from before the seek and settles the replayed record",
			record, sessionName(e.session), e.epoch)
	}
	if earlier := t.earlier(t.current(), record); earlier != 0 {
		t.fail(G1, "the ack of r%d is accepted before those of earlier records", record)
	}
	if m.finished&(1<<record) == 0 {
		t.fail(G5, "r%d is acknowledged and nobody finished it", record)
	}
	m.accepted[record], m.under[record] = e.session, e.epoch
}

// accepts is for leaders that say OK before they know.
func (t *step) accepts(record int, s session, epoch uint8) {
	m := &t.s.seen
	m.accepted[record], m.under[record] = s, epoch
}

// saysOK is called when a leader tells a session that its ack counted.
func (t *step) saysOK(l *leader, record int, s session, epoch uint8) {
	m := &t.s.seen
	if l.state.sought < m.sought {
		return // a deposed leader speaks of what was before the seek
	}
	if m.accepted[record] != s || m.under[record] != epoch {
		t.fail(G1, "%s is told OK for r%d under epoch %d; the ack that counted is that of %s under epoch %d",
			sessionName(s), record, epoch, sessionName(m.accepted[record]), m.under[record])
	}
	m.confirmed |= 1 << record
}

// refuses is called when a leader tells a session that its ack is stale.
func (t *step) refuses(l *leader, record int, s session, epoch uint8) {
	m := &t.s.seen
	if l.state.sought < m.sought {
		return
	}
	if m.accepted[record] == s && m.under[record] == epoch && t.current().state.listed(s) {
		t.fail(G1, "%s is told STALE for r%d under epoch %d, and its ack was accepted", sessionName(s), record, epoch)
	}
}

// settles is called when something else than an ack settles a record.
func (t *step) settles(e *entry) {
	r := e.record()
	if e.arg == 1 && t.s.seen.started&(1<<r) == 0 {
		t.fail(Counts, "r%d is dead-lettered, and no handler has tried it", r)
	}
	t.observeSettled(r)
}

// soughtTo is called when a seek makes all records new again.
func (t *step) soughtTo(index uint8) {
	m := &t.s.seen
	m.accepted, m.under = [maxRecords]session{}, [maxRecords]uint8{}
	m.confirmed, m.finished, m.started = 0, 0, 0
	m.alive = [maxRecords]uint8{}
	m.sought = index
	t.observeSought(index)
}

// fails is called when a consumer gives a reason to do its work again.
func (t *step) fails(ci int, how promise.Kind) {
	for r := range t.records {
		if t.s.seen.alive[r] == uint8(ci+1) {
			t.s.seen.alive[r] = 0
		}
	}
	t.observeEnd(ci, how)
}

// starts gives a record to a handler.
func (t *step) starts(ci, record int) bool {
	if !t.mayStart(ci, record) {
		return false
	}
	c, m := &t.s.consumers[ci], &t.s.seen
	h := &c.held[record]
	k := t.scope[record]
	b := records(1 << record)
	t.observeStart(ci, record)
	if h.epoch >= m.newest[k] {
		switch {
		case t.order == strict:
			if earlier := t.earlier(t.current(), record); earlier != 0 {
				t.fail(G3, "%s starts r%d under epoch %d, which is current; a record before it is not settled",
					sessionName(c.session), record, h.epoch)
			}
		case m.started&t.members[k]&^(b<<1-1) != 0:
			t.fail(G3, "%s starts r%d after a later record was started", sessionName(c.session), record)
		}
	}
	t.alone(ci, k)
	if !t.timeless && m.alive[record] != 0 && c.excused == 0 {
		t.fail(G4, "%s starts r%d again, which %c had started; it has not failed since", sessionName(c.session), record, 'A'+m.alive[record]-1)
	}
	if m.started&b != 0 && h.again == 0 && h.epoch >= m.newest[k] {
		t.fail(Counts, "%s starts r%d a second time, and the delivery looks like the first", sessionName(c.session), record)
	}
	h.progress = running
	if h.epoch >= m.sought {
		m.started |= b // what is from before a seek does not count after it
	}
	m.alive[record] = uint8(ci + 1)
	if c.excused != 0 {
		m.alive[record] = 0
	}
	return true
}

// alone checks that no other session works in the scope in which a consumer starts a
// record. A process that has stood still is not meant.
func (t *step) alone(ci, scope int) {
	if t.timeless || t.s.consumers[ci].excused != 0 {
		return
	}
	for other := range t.consumers {
		c := &t.s.consumers[other]
		if other == ci || c.condition != working || c.excused != 0 {
			continue
		}
		for r, h := range c.held {
			if t.scope[r] == scope && h.progress == running {
				t.fail(G2, "%s starts work in scope %d, and %s works on r%d of it",
					sessionName(t.s.consumers[ci].session), scope, sessionName(c.session), r)
			}
		}
	}
}

func sessionName(s session) string {
	if s == 0 {
		return "nobody"
	}
	return fmt.Sprintf("%c%d", 'A'+consumerOf(s), int(s-1)%maxIncarnations+1)
}
