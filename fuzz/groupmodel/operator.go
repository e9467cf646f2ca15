package groupmodel

func (t *step) operation() bool {
	if t.s.left.operations == 0 || t.current().ready == 0 {
		return false
	}
	t.s.left.operations--
	return true
}

// asksSeek stops dispatch until everything may be delivered from the beginning again.
func (t *step) asksSeek() bool {
	if !t.operation() {
		return false
	}
	t.current().draining |= drainSeek
	return true
}

// proposesSeek proposes the seek once nothing is leased and nobody is waited for.
func (t *step) proposesSeek() bool {
	l := t.current()
	if l.draining&drainSeek == 0 || !l.room(2) || l.pending(seek) {
		return false
	}
	if l.wait != 0 && !t.off[seekInGrace] || l.pendingAcks()|l.pendingEnds() != 0 {
		return false
	}
	for k := range t.scopes {
		if l.leases[k].session != 0 && !t.off[seekWithoutDrain] {
			return false
		}
	}
	l.propose(entry{kind: seek})
	if t.off[seekWithoutDrain] {
		l.leases = [maxRecords]lease{}
	}
	return true
}

// parks stops a scope. With now the holder is revoked first.
func (t *step) parks(scope int, now bool) bool {
	l := t.current()
	if l.state.parked&(1<<scope) != 0 || t.parking(l, scope) || !l.room(3) {
		return false
	}
	if have := l.leases[scope]; now {
		if have.session == 0 || !t.ends(l, scope, !t.off[parkWithoutRevoke]) {
			return false
		}
	}
	if !t.operation() {
		return false
	}
	l.propose(entry{kind: park, arg: uint8(scope)})
	return true
}

// ends takes a scope from its holder, who can be told.
func (t *step) ends(l *leader, scope int, revoke bool) bool {
	have := l.leases[scope]
	ci := consumerOf(have.session)
	c := &t.s.consumers[ci]
	if l.ending(have.session) || (l.pendingAcks()|l.pendingEnds())&have.records != 0 || c.session != have.session {
		return false
	}
	if revoke {
		if c.link != l.term || c.attached == 0 || c.condition != working {
			return false
		}
		for r := range t.records {
			if have.records&(1<<r) != 0 && c.held[r].progress >= acked {
				return false // its ack is under way
			}
		}
		t.cancels(ci, scope, have.epoch)
	}
	l.propose(entry{kind: giveBack, records: have.records, counted: 1, session: have.session, epoch: have.epoch})
	return true
}

func (t *step) unparks(scope int) bool {
	l := t.current()
	if l.ready == 0 || l.state.parked&(1<<scope) == 0 || l.pending(unpark) || !l.room(2) {
		return false
	}
	l.propose(entry{kind: unpark, arg: uint8(scope)})
	return true
}

// skips settles the head of a scope. A holder is revoked first; while somebody may
// hold it without this leader's knowledge, the skip waits.
func (t *step) skips(scope int) bool {
	l := t.current()
	r := t.first(l, scope)
	if r < 0 || !l.room(3) || t.waits(l, r) && !t.off[skipInGrace] {
		return false
	}
	if l.leases[scope].session != 0 {
		if !t.off[skipHeld] && !t.ends(l, scope, true) {
			return false
		}
	} else if (l.pendingAcks()|l.pendingEnds())&t.members[scope] != 0 {
		return false
	}
	if !t.operation() {
		return false
	}
	l.propose(entry{kind: settle, records: 1 << r})
	return true
}

// handsOver begins a planned move: dispatch stops and the leases go into the log.
func (t *step) handsOver() bool {
	l := t.current()
	if l.wait != 0 && !t.off[moveInGrace] || l.draining != 0 || !l.room(2) || int(l.term) >= t.terms || l.tails != 0 {
		return false
	}
	if !t.operation() {
		return false
	}
	l.propose(entry{kind: handOver})
	l.table = l.leases
	if !t.off[moveGoesOn] {
		l.draining |= drainMove
	}
	return true
}

// transfers makes another node the leader, with everything this one has proposed.
func (t *step) transfers() bool {
	old := *t.current()
	if old.state.tableFor != 1 || int(old.term) >= t.terms || old.pending(void) || int(old.tails) > maxTail-2 {
		return false
	}
	t.succeeds(&old, int(old.tails), false)
	return true
}

// givesUp ends a planned move without one.
func (t *step) givesUp() bool {
	l := t.current()
	if l.draining&drainMove == 0 || l.state.tableFor != 1 || l.pending(void) || !l.room(2) {
		return false
	}
	if t.off[voidVolatile] {
		l.draining &^= drainMove
		return true
	}
	l.propose(entry{kind: void})
	return true
}

// unbinds is the coordinator's word that a consumer should leave the partition.
func (t *step) unbinds(ci int) bool {
	if t.s.unbound != 0 || !t.operation() {
		return false
	}
	t.s.unbound |= 1 << ci
	return true
}

// dismisses takes a consumer off the list that is unbound and holds nothing.
func (t *step) dismisses(l *leader, ci int) bool {
	s := t.s.consumers[ci].session
	if t.s.unbound&(1<<ci) == 0 || l.ready == 0 || !l.room(2) || !l.state.listed(s) || l.ending(s) {
		return false
	}
	e := entry{kind: remove, session: s}
	if l.wait&bit(s) != 0 {
		return false
	}
	for k := range t.scopes {
		if l.leases[k].session == s && !t.off[unboundAtOnce] {
			return false
		}
	}
	t.takes(l, &e, s)
	l.propose(e)
	return true
}
