package groupmodel

import "github.com/lockstepmq/lockstep/promise"

func (t *step) fault() bool {
	if t.s.left.faults == 0 {
		return false
	}
	t.s.left.faults--
	return true
}

// breaks cuts a link that both ends may still believe in. With late an attach that
// was under way is read by the leader all the same, some time.
func (t *step) breaks(ci int, late bool) bool {
	c := &t.s.consumers[ci]
	if c.condition == dead || c.link == 0 {
		return false
	}
	if late && (c.ins == 0 || c.in[0].kind != attachMessage || c.late.kind != noMessage) {
		return false
	}
	if !t.fault() {
		return false
	}
	if late {
		c.late, c.lateTerm = c.in[0], c.link
	}
	if t.off[activeVolatile] {
		for i := range t.s.leaders {
			l := &t.s.leaders[i]
			for k := range t.scopes {
				if l.term == c.link && l.leases[k].session == c.session {
					l.leases[k] = lease{}
				}
			}
		}
	}
	if t.off[formerLink] {
		c.former = c.link
	}
	c.unlink()
	return true
}

// readsLate lets a leader read an attach whose link is gone.
func (t *step) readsLate(ci int) bool {
	c := &t.s.consumers[ci]
	if c.late.kind == noMessage {
		return false
	}
	m := c.late
	for i := range t.s.leaders {
		l := &t.s.leaders[i]
		if l.term != c.lateTerm || l.term == 0 {
			continue
		}
		if l.ready == 0 || !l.room(maxRecords+1) || t.undecided(l, &m) {
			return false
		}
		switch t.readsAttach(l, ci, &m, false) {
		case blocked:
			return false
		case stays:
			return true
		}
	}
	c.late, c.lateTerm = message{}, 0
	return true
}

func (t *step) crashes(ci int) bool {
	c := &t.s.consumers[ci]
	if c.condition == dead || !t.fault() {
		return false
	}
	t.fails(ci, promise.Died)
	for r := range t.records {
		t.drops(ci, r)
	}
	*c = consumer{session: c.session, late: c.late, lateTerm: c.lateTerm}
	return true
}

func (t *step) hangs(ci int) bool {
	c := &t.s.consumers[ci]
	if c.condition != working || !t.fault() {
		return false
	}
	t.fails(ci, promise.Stopped)
	c.condition, c.excused = hung, 1
	return true
}

func (t *step) sticks(ci int) bool {
	c := &t.s.consumers[ci]
	if c.condition != working || c.stuck != 0 || !t.fault() {
		return false
	}
	c.stuck = 1
	return true
}

func (t *step) wakes(ci int) bool {
	c := &t.s.consumers[ci]
	if c.condition != hung {
		return false
	}
	c.condition = working
	return true
}

// elects gives the partition a new leader, which has a prefix of what the old one
// proposed. The old one is dead, or stays on and does not know.
func (t *step) elects(prefix int, stays bool) bool {
	old := *t.current()
	if int(old.term) >= t.terms || prefix > int(old.tails) || prefix > maxTail-2 || !t.fault() {
		return false
	}
	t.observeLeaderLost()
	t.succeeds(&old, prefix, stays)
	return true
}

func (t *step) succeeds(old *leader, prefix int, stays bool) {
	next := leader{term: old.term + 1, state: old.state, table: old.table}
	copy(next.tail[:], old.tail[:prefix])
	next.tails = uint8(prefix)
	next.propose(entry{kind: noop})
	if t.off[beforeNoop] {
		next.wait, next.old = next.state.sessions, next.state.horizon
	}
	gone := t.s.leaders[1].term
	t.s.leaders[1] = leader{}
	if stays {
		t.s.leaders[1] = *old
	}
	t.s.leaders[0] = next
	for ci := range t.consumers {
		c := &t.s.consumers[ci]
		if c.link != 0 && (c.link == gone || c.link == old.term && !stays) {
			c.unlink()
		}
		if c.late.kind != noMessage && (c.lateTerm == gone || c.lateTerm == old.term && !stays) {
			c.late, c.lateTerm = message{}, 0
		}
		if c.former != 0 && (c.former == gone || c.former == old.term && !stays) {
			c.former = 0
		}
	}
}
