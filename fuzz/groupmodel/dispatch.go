package groupmodel

const (
	drainSeek = 1 << iota
	drainMove
)

// reachable reports whether the leader has a link to the consumer over which it may
// deliver to its session.
func (t *step) reachable(l *leader, ci int) bool {
	c := &t.s.consumers[ci]
	if l.ready == 0 && !t.off[beforeNoop] {
		return false
	}
	if c.condition == dead || c.outs == maxOut || !t.listed(l, c.session) {
		return false
	}
	if t.off[formerLink] && c.former == l.term {
		return true
	}
	return c.link == l.term && c.attached != 0
}

// gated reports whether dispatch stands still for this session or for everybody.
func (t *step) gated(l *leader, ci int) bool {
	s := t.s.consumers[ci].session
	if t.ending(l, s) && !t.off[deliverEnding] {
		return true
	}
	return l.draining != 0 && !(t.off[seekWithoutDrain] && l.draining == drainSeek) ||
		l.pending(seek, activate, handOver, void) && !t.off[moveGoesOn] || t.s.unbound&(1<<ci) != 0
}

// spare reports whether the session has credit left: how many records the session may still get.
func (t *step) spare(l *leader, ci int) bool {
	n := l.debt[ci]
	for k := range t.scopes {
		if l.leases[k].session == t.s.consumers[ci].session {
			for r := range t.records {
				n += l.leases[k].records >> r & 1
			}
		}
	}
	return int(n) < t.credit
}

// waits reports whether a record of the scope may be in hands that this leader
// does not know.
func (t *step) waits(l *leader, record int) bool {
	return l.wait != 0 && record < int(l.old) && !t.off[unclaimedAtOnce]
}

// busy are the records whose fate is proposed and not decided.
func (t *step) busy(l *leader) records {
	if t.off[appliedOnly] {
		return 0
	}
	busy := l.pendingAcks()
	if !t.off[returnOnReceipt] && !t.off[removalOnReceipt] && !t.off[endedTwice] {
		busy |= l.pendingEnds()
	}
	if t.off[nextOnReceipt] {
		busy &^= l.pendingAcks()
	}
	return busy
}

// next is the record that the scope goes on with, or -1.
func (t *step) next(l *leader, scope int) int {
	var decided records
	if t.off[nextOnReceipt] {
		decided = l.pendingAcks()
	}
	if t.off[settleOnReceipt] {
		l.proposed(func(e *entry) bool {
			if e.kind == settle {
				decided |= e.records
			}
			return false
		})
	}
	for r := range t.records {
		if t.scope[r] == scope && (l.state.done|decided)&(1<<r) == 0 {
			return r
		}
	}
	return -1
}

// dispatches gives a free scope to a session.
func (t *step) dispatches(l *leader, scope, ci int) bool {
	if !t.reachable(l, ci) || t.gated(l, ci) || !t.spare(l, ci) || l.leases[scope].session != 0 {
		return false
	}
	r := t.next(l, scope)
	for t.off[oldRecordsAlone] && r >= 0 && t.waits(l, r) {
		for r++; r < t.records && (t.scope[r] != scope || l.state.done&(1<<r) != 0); r++ {
		}
		if r == t.records {
			r = -1
		}
	}
	if r < 0 || t.waits(l, r) || l.state.parked&(1<<scope) != 0 {
		return false
	}
	busy := t.busy(l) & t.members[scope]
	if t.off[settleOnReceipt] {
		busy &^= 1<<r - 1
	}
	if busy != 0 || t.parking(l, scope) || t.deadly(l, r) {
		return false
	}
	if r >= int(l.state.horizon) && !t.off[horizonVolatile] {
		return false
	}
	s := t.s.consumers[ci].session
	if t.sticky && l.state.active != s && !t.off[activeVolatile] {
		return false
	}
	if l.suspect&(1<<ci) != 0 && (t.off[suspectExcluded] || t.better(l, ci)) {
		return false
	}
	e := t.epoch(l, r)
	l.leases[scope] = lease{session: s, epoch: e, records: 1 << r}
	t.grants(l, r, s, e)
	t.delivers(l, ci, r, e)
	return true
}

func (t *step) parking(l *leader, scope int) bool {
	return l.proposed(func(e *entry) bool { return e.kind == park && int(e.arg) == scope })
}

// deadly reports whether the record has had all its attempts.
func (t *step) deadly(l *leader, record int) bool {
	return t.limit != 0 && int(l.state.attempts[record]) >= t.limit
}

// better reports whether a session that is not suspect could be given work.
func (t *step) better(l *leader, ci int) bool {
	for other := range t.consumers {
		if other != ci && l.suspect&(1<<other) == 0 && t.reachable(l, other) && t.spare(l, other) && t.s.unbound&(1<<other) == 0 &&
			(!t.sticky || l.state.active == t.s.consumers[other].session) {
			return true
		}
	}
	return false
}

// sendsAhead adds the scope's next record to the lease of its holder.
func (t *step) sendsAhead(l *leader, scope int) bool {
	have := &l.leases[scope]
	if have.session == 0 {
		return false
	}
	ci := consumerOf(have.session)
	if t.s.consumers[ci].session != have.session || !t.reachable(l, ci) || t.gated(l, ci) || !t.spare(l, ci) {
		return false
	}
	if l.state.parked&(1<<scope) != 0 || t.parking(l, scope) || l.pendingEnds()&t.members[scope] != 0 && !t.off[deliverEnding] {
		return false
	}
	for r := range t.records {
		b := records(1 << r)
		if t.scope[r] != scope || l.state.done&b != 0 || have.records&b != 0 {
			continue
		}
		if r >= int(l.state.horizon) || t.waits(l, r) || t.deadly(l, r) || t.pendingEnds(l)&b != 0 {
			return false
		}
		if t.fenced(l, r, have.epoch) && !t.off[aheadOfFence] {
			return false
		}
		if t.order == replay && t.earlier(l, r)&^l.pendingAcks() != 0 {
			return false // the ack has not been received
		}
		have.records |= b
		t.delivers(l, ci, r, have.epoch)
		return true
	}
	return false
}

// delivers puts a record on its way.
func (t *step) delivers(l *leader, ci, record int, epoch uint8) {
	n := note{kind: deliverNote, record: uint8(record), epoch: epoch}
	if l.state.count[record] > 0 || record < int(l.state.doubt) {
		n.again = 1
	}
	t.comesAgain(record, epoch)
	if c := &t.s.consumers[ci]; c.link == l.term {
		c.hear(n)
	} else {
		t.receives(ci, n) // over the former link, which has no queue in the model
	}
}

// lapsed reports whether the time of a session is over: its consumer is dead, stands
// still, has another session, or has seen its own deadline pass, which the timing
// of T1 puts before the removal.
func (t *step) lapsed(l *leader, s session) bool {
	c := &t.s.consumers[consumerOf(s)]
	if c.session != s || c.condition != working || c.excused != 0 {
		return true
	}
	here := c.link == l.term && c.attached != 0
	if c.joined == 0 && t.s.unbound&(1<<consumerOf(s)) != 0 {
		return !here // it was unbound before it knew that it is on the list, and does not come
	}
	if !here && !t.Patient && !c.holds() && c.joined != 0 && (c.link == 0 || c.link == t.current().term) {
		// Its deadline has passed, too. It had nothing to drop.
		t.parts(consumerOf(s))
		return true
	}
	switch {
	case t.timeless, t.off[noDeadline]:
		return !here
	case t.off[brokenIsDead]:
		return c.link == 0
	case t.off[staleConfirms]:
		return c.link != 0 && !here
	}
	return false
}

// removes proposes the end of a session.
func (t *step) removes(l *leader, s session) bool {
	if l.ready == 0 || !l.room(2) || !l.state.listed(s) || l.ending(s) || !t.lapsed(l, s) {
		return false
	}
	if t.off[removalOfAttached] && l.wait&bit(s) != 0 {
		return false
	}
	if t.off[removalVolatile] {
		any := false
		for k := range t.scopes {
			if l.leases[k].session == s {
				l.leases[k], any = lease{}, true
			}
		}
		return any
	}
	e := entry{kind: remove, session: s}
	t.takes(l, &e, s)
	l.propose(e)
	if t.off[removalOnReceipt] {
		t.release(l, e.records)
	}
	return true
}

// revokes ends a lease that takes too long: the holder is told, and cancels, before
// the return is proposed. One that stands still cannot answer; it is not waited for.
func (t *step) revokes(l *leader, scope int) bool {
	have := l.leases[scope]
	if l.ready == 0 || !l.room(2) || have.session == 0 || l.ending(have.session) {
		return false
	}
	if (l.pendingAcks()|t.pendingEnds(l))&have.records != 0 {
		return false
	}
	ci := consumerOf(have.session)
	c := &t.s.consumers[ci]
	if c.session != have.session || c.condition == dead {
		return false
	}
	head := entry{records: have.records}
	switch {
	case c.condition == working && c.excused == 0:
		if c.held[head.record()].progress != running {
			return false
		}
		here := c.link == l.term && c.attached != 0
		if !here && !t.off[deadlineOfAbsent] {
			return false // its removal will come
		}
		if here && !t.off[withoutRevoke] {
			t.cancels(ci, scope, have.epoch)
		}
	}
	l.propose(entry{kind: giveBack, records: have.records, counted: 1, session: have.session, epoch: have.epoch})
	l.suspect |= 1 << ci
	if t.off[creditKept] {
		l.debt[ci]++
	}
	return true
}

// cancels makes a consumer stop its handler, release the record, and drop what is queued
// or under way behind it. The release is an outcome like others: it is claimed until
// its return is confirmed.
func (t *step) cancels(ci, scope int, epoch uint8) {
	c := &t.s.consumers[ci]
	for r := range t.records {
		if t.scope[r] != scope || c.held[r].epoch != epoch {
			continue
		}
		switch h := &c.held[r]; h.progress {
		case running:
			t.observeFinish(ci, r, false)
			h.progress = nacked
			t.s.seen.alive[r] = 0
		case queued:
			t.drops(ci, r)
		}
	}
	var kept [maxOut]note
	outs := uint8(0)
	for _, n := range c.out[:c.outs] {
		if n.kind == deliverNote && t.scope[n.record] == scope {
			continue
		}
		kept[outs] = n
		outs++
	}
	c.out, c.outs = kept, outs
}

// raises proposes a higher horizon.
func (t *step) raises(l *leader) bool {
	if l.ready == 0 || !l.room(2) || int(l.state.horizon) >= t.records || l.pending(raise) {
		return false
	}
	l.propose(entry{kind: raise, arg: l.state.horizon + 1})
	return true
}

// buries proposes the verdict on a record that has had all its attempts.
func (t *step) buries(l *leader, scope int) bool {
	r := t.first(l, scope)
	if l.ready == 0 || !l.room(2) || r < 0 || !t.deadly(l, r) || l.leases[scope].session != 0 || t.waits(l, r) {
		return false
	}
	if l.pendingEnds()&(1<<r) != 0 {
		return false
	}
	l.propose(entry{kind: settle, records: 1 << r, arg: 1})
	return true
}

// activates proposes another active session for a sticky group.
func (t *step) activates(l *leader, ci int) bool {
	if !t.sticky || l.ready == 0 || !l.room(2) || !t.reachable(l, ci) || l.wait != 0 || l.pending(activate) {
		return false
	}
	s := t.s.consumers[ci].session
	a := l.state.active
	if l.ending(s) || a == s || l.suspect&(1<<ci) != 0 || t.s.unbound&(1<<ci) != 0 {
		return false
	}
	if a != 0 && (l.suspect&(1<<consumerOf(a)) == 0 || t.off[activeForever]) {
		return false
	}
	for k := range t.scopes {
		if l.leases[k].session != 0 {
			return false
		}
	}
	if l.pendingEnds()|l.pendingAcks() != 0 {
		return false
	}
	l.propose(entry{kind: activate, session: s})
	return true
}
