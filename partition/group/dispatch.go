package group

import (
	"math"
	"slices"
	"time"

	"github.com/lockstepmq/lockstep/wire"
)

// maxRow is how many records one session gets in a row, where one record of the partition is
// out at a time and any session may be next, while others wait: it gets the next one a leg
// earlier than they would, and would get all.
const maxRow = 64

// maxMisses bounds the waiting records of one turn whose batches are not known.
const maxMisses = 16

// open reports whether anything may be given out.
func (l *Leader) open() bool {
	return !l.g.Paused && (l.aside == leads || !l.keeps(RuleAside)) && (!l.frozen || !l.keeps(RuleFrozen)) && len(l.eligible) > 0 && l.order == nil && l.goesOn() && l.end > 0
}

// dispatch gives out records as far as consumers have room: those that wait behind the
// scan position, and those that the scan meets, as many of the one as of the other, so
// that neither a backlog nor what is new waits for ever. It reports whether it stopped
// only because it has looked at enough for one turn.
func (l *Leader) dispatch() (again bool) {
	if !l.open() {
		return false
	}
	budget, misses := turnRecords, 0
	waiting, scanned := 0, 0
	stuck, ahead := false, true // nothing that waits can go out; the scan can go on
	for budget > 0 && len(l.eligible) > 0 {
		waits := !stuck && l.ring.len()+l.redo.len() > 0
		if !waits && !ahead {
			break
		}
		if waits && (waiting <= scanned || !ahead) {
			if stuck = !l.giveWaiting(&misses); !stuck {
				waiting++
				budget--
			}
			continue
		}
		before := budget
		if ahead = l.giveScanned(&budget); ahead {
			scanned += before - budget
			stuck = false
		}
		if !waits {
			waiting = scanned
		}
	}
	l.send()
	return budget <= 0
}

// giveWaiting gives out one record that waits behind the scan position and reports whether
// it is worth to go on.
func (l *Leader) giveWaiting(misses *int) bool {
	if l.kind == single {
		return false
	}
	for *misses < maxMisses {
		ring := l.ring.len() > 0
		if ring && l.redo.len() > 0 {
			ring = l.ringNext
			l.ringNext = !ring
		}
		switch {
		case ring:
			if given, stop := l.giveScope(misses); given || stop {
				return given
			}
		case l.redo.len() > 0:
			if given, stop := l.giveRedo(misses); given || stop {
				return given
			}
		default:
			return false
		}
	}
	return false
}

// giveRedo gives out one record that is a scope of its own.
func (l *Leader) giveRedo(misses *int) (given, stop bool) {
	o := l.redo.pop()
	if l.g.Done.Has(o) || l.lettered[o] || o >= l.scan || l.grace.above && o < l.grace.bound || l.shelve(o) {
		return false, false
	}
	p, ok := l.feed.At(o)
	if !ok {
		l.wantScan(o)
		*misses++
		l.redo.push(o)
		return false, false
	}
	if p.Erased {
		l.pass(o, o+1)
		return false, false
	}
	if p.Damaged {
		l.cannotRead(o, o+1)
		if l.kind != shared { // else it waits with the others that were passed over
			l.readAgain(o)
			l.rest(o)
			l.timers.push(timer{at: l.now + rereadPause, record: o, round: l.round})
		}
		return false, false
	}
	if l.kind == hashed && l.hashOf(p, o) != 0 {
		return false, false
	}
	m := l.best()
	if m == nil {
		l.redo.push(o)
		return false, true
	}
	known, _ := l.g.Record(o)
	l.grant(m, p, o, o+1, known)
	return true, false
}

// giveScope gives out the next record of the scope at the front of the ring.
func (l *Leader) giveScope(misses *int) (given, stop bool) {
	s := l.ring.pop()
	s.inRing = false
	for s.n > 0 && !l.gives(s.next[0]) {
		s.pop()
	}
	if s.n == 0 || s.ending > 0 || l.isParked(s.hash) || l.stays(s.hash) || s.due > l.now || len(s.leased)-s.acked >= l.window() {
		l.ready(s)
		return false, false
	}
	o := s.next[0]
	var m *member
	if len(s.leased) > 0 && l.keeps(RuleSameHolder) {
		if m = s.holder; l.free(m) == 0 {
			return false, false // any session, when what it holds is settled
		}
	} else if m = l.best(); m == nil {
		s.inRing = true
		l.ring.push(s)
		return false, true
	}
	p, ok := l.feed.At(o)
	if !ok {
		l.wantScan(o)
		*misses++
		s.inRing = true
		l.ring.push(s)
		return false, false
	}
	if p.Erased {
		s.pop()
		l.pass(o, o+1)
		l.ready(s)
		return false, false
	}
	if s.unread = p.Damaged; s.unread { // the scan has passed it: the scope waits alone
		l.wantScan(o)
		s.due = l.now + rereadPause
		l.ready(s)
		return false, false
	}
	if l.hashOf(p, o) != s.hash { // it could not be read when it was found
		s.pop()
		l.ready(s)
		return false, false
	}
	s.pop()
	known, _ := l.g.Record(o)
	l.take(m, s, o)
	l.grant(m, p, o, o+1, known)
	l.ready(s)
	return true, false
}

// take notes that a record of a scope is leased to m.
func (l *Leader) take(m *member, s *scope, o wire.Offset) {
	if len(s.leased) == s.acked {
		s.since = l.now
	}
	s.holder = m
	if i, found := slices.BinarySearch(s.leased, o); !found {
		s.leased = slices.Insert(s.leased, i, o)
	}
	l.of.Put(o, s)
}

// limit is one past the last record that may be given.
func (l *Leader) limit() wire.Offset {
	if !l.keeps(RuleHorizon) {
		return l.end
	}
	return min(l.end, l.g.Horizon)
}

// giveScanned goes on with the scan by one batch, or what is left of it, and reports
// whether it is worth to go on.
func (l *Leader) giveScanned(budget *int) bool {
	if l.keeps(RuleDone) {
		l.scan = l.g.Done.Next(l.scan)
	}
	limit := l.limit()
	if l.scan >= limit {
		return false
	}
	p, ok := l.feed.At(l.scan)
	if !ok {
		l.wantScan(l.scan)
		return false
	}
	stop := min(p.Next(), limit, l.scan+wire.Offset(*budget))
	before := l.scan
	switch {
	case p.Erased:
		l.pass(l.scan, stop)
		l.scan = stop
	case p.Damaged:
		l.cannotRead(l.scan, stop)
		if l.kind != shared { // nobody knows what is behind a record of which the scope is not known
			l.readAgain(l.scan)
			return false
		}
		l.scan = stop
	case l.kind == shared:
		l.scanShared(p, stop)
	case l.kind == single:
		l.scanSingle(p, stop)
	default:
		l.scanHashed(p, stop)
	}
	*budget -= int(min(l.scan-before, math.MaxInt32))
	if !l.ahead.empty() {
		l.ahead.remove(0, l.scan)
	}
	return l.scan > before
}

// rereadPause is when a record that could not be read, and holds up others, is looked for again.
const rereadPause = time.Second

// cannotRead notes records that cannot be read. A shared group passes them over, and all of
// them wait for their repair; others stop, and the lowest that are known and not done are
// noted for those who ask.
func (l *Leader) cannotRead(from, to wire.Offset) {
	if l.kind == shared {
		l.passed.remove(0, l.g.Done.Floor())
		l.passed.remove(from, to)
		l.passed.add(lease{from: from, to: to, order: uint64(from)}) // so that neighbours join
		return
	}
	if o, ok := l.unreadable(); !ok || from < o {
		l.unread = Span{from, to}
	}
}

// unreadable is the first record that is known to be unreadable and is not done.
func (l *Leader) unreadable() (o wire.Offset, ok bool) {
	for _, r := range l.passed.all() {
		if o = l.g.Done.Next(r.from); o < r.to {
			return o, true
		}
	}
	o = l.g.Done.Next(l.unread.From)
	return o, o < l.unread.To
}

// Repaired says that some of the records [from, to) may be read again, of which the feed has
// forgotten what it knew. What was passed over goes out, and a scan or a scope that stopped goes on,
// as soon as the feed knows them again; what is still damaged waits on. The scopes that wait for
// sessions are looked for anew if they may have been hidden.
func (l *Leader) Repaired(from, to wire.Offset) {
	l.reread = 0
	if f := &l.firsts; from < f.unread.To && f.unread.From < to {
		l.firsts = firsts{}
	}
	var rest []*scope
	for _, s := range l.scopes {
		if s.unread && s.n > 0 && from <= s.next[0] && s.next[0] < to {
			rest = append(rest, s)
		}
	}
	slices.SortFunc(rest, func(a, b *scope) int { return compareOffsets(a.next[0], b.next[0]) })
	for _, s := range rest {
		s.unread, s.due = false, 0
		l.ready(s)
	}
	for i := range l.timers.heap { // what is a scope of its own goes out, and its timer does nothing
		t := &l.timers.heap[i]
		if t.member != nil || t.scope != nil || t.wake || t.round != l.round || t.record < from || t.record >= to || !l.unreads[t.record] {
			continue
		}
		t.wake = true
		l.rested(t.record)
	}
	for r, ok := l.passed.within(from, to); ok; r, ok = l.passed.within(from, to) {
		l.passed.remove(r.from, r.to)
		for o := l.g.Done.Next(r.from); o < r.to; o = l.g.Done.Next(o + 1) {
			l.redo.push(o)
		}
	}
}

// rest notes a record that could not be read and waits on a timer for that.
func (l *Leader) rest(o wire.Offset) {
	if l.unreads == nil {
		l.unreads = make(map[wire.Offset]bool)
	}
	l.unreads[o] = true
}

// rested has a record that is a scope of its own looked at again, whose timer is over.
func (l *Leader) rested(o wire.Offset) {
	delete(l.unreads, o)
	if o >= l.scan {
		l.ahead.remove(o, o+1)
	} else {
		l.redo.push(o)
	}
}

// readAgain has a batch looked for again in a while: another replica may have repaired it.
func (l *Leader) readAgain(o wire.Offset) {
	if l.reread <= l.now {
		l.reread = l.now + rereadPause
		l.timers.push(timer{at: l.reread, wake: true})
		l.wantScan(o)
	}
}

// plain reports whether nothing is known of any record from o on, except of some that they
// are done: none was taken back, is leased, parked or a letter, or of doubtful count. Then
// a run of them is as good as one record.
func (l *Leader) plain(o wire.Offset) bool {
	return l.keeps(RuleDone) && l.ahead.empty() && len(l.lettered) == 0 && len(l.g.Parked)+len(l.parking) == 0 && len(l.g.Substitutes) == 0 && o >= l.g.Doubt && l.g.returned.len() == 0
}

// pass settles records that were erased because all groups were done with them: the group
// is new since, or was moved back to them.
func (l *Leader) pass(from, to wire.Offset) {
	if n := len(l.next.passed); n > 0 && l.next.passed[n-1].To == from {
		l.next.passed[n-1].To = to
		return
	}
	l.next.passed = append(l.next.passed, Span{from, to})
}

// skips reports whether the scan leaves out the record at o, and puts it where it waits if
// it may go out later.
func (l *Leader) skips(o wire.Offset, known Returned) bool {
	if l.g.Done.Has(o) && l.keeps(RuleDone) || l.lettered[o] || l.ahead.find(o) != nil {
		return true
	}
	if known.DelayMs > 0 && l.kind == shared {
		// It was taken back under another leader: its rest begins anew.
		if due := l.start + time.Duration(known.DelayMs)*time.Millisecond; due > l.now {
			l.timers.push(timer{at: due, record: o, round: l.round})
			return true
		}
	}
	return l.kind == shared && l.shelve(o)
}

// scanShared gives the records [scan, stop) of a batch to those with most room, as many
// as one takes at once.
func (l *Leader) scanShared(p *Place, stop wire.Offset) {
	plain := l.plain(l.scan)
	for l.scan < stop {
		m := l.best()
		if m == nil {
			return
		}
		if plain {
			if l.scan = l.g.Done.Next(l.scan); l.scan >= stop {
				return
			}
			to := l.g.Done.Following(l.scan, min(stop, l.scan+wire.Offset(l.free(m))))
			l.grant(m, p, l.scan, to, Returned{})
			l.scan = to
			continue
		}
		known, _ := l.g.Record(l.scan)
		if l.skips(l.scan, known) {
			l.scan++
			continue
		}
		l.grant(m, p, l.scan, l.scan+1, known)
		l.scan++
	}
}

// scanSingle gives the records [scan, stop) of a batch to the one session that may have
// them.
func (l *Leader) scanSingle(p *Place, stop wire.Offset) {
	for l.scan < stop && l.hold <= l.now {
		if l.skips(l.scan, Returned{}) {
			l.scan++
			continue
		}
		if l.isParked(destinationScope) {
			return
		}
		known, _ := l.g.Record(l.scan)
		// Taken back under another leader: its rest begins anew.
		if due := l.start + time.Duration(known.DelayMs)*time.Millisecond; known.DelayMs > 0 && due > l.now {
			l.hold = due
			l.timers.push(timer{at: due, wake: true})
			return
		}
		m := l.best()
		if m == nil {
			return
		}
		to := l.scan + 1
		if l.plain(l.scan) && l.g.Settings.Mode == wire.ModeStream {
			to = l.g.Done.Following(l.scan, min(stop, l.scan+wire.Offset(l.free(m))))
		}
		l.grant(m, p, l.scan, to, known)
		l.scan = to
	}
}

// may reports whether a session may have the next record of a group whose scope is the
// whole partition.
func (l *Leader) may(m *member) bool {
	if l.sticky() && (m.session != l.g.Active || l.yields) || l.backing > 0 || l.activating && l.keeps(RuleActive) {
		return false
	}
	if l.holder != nil && l.holder != m && !l.holder.leases.empty() && l.keeps(RuleSameHolder) {
		return false
	}
	if l.holder == m && l.row >= maxRow && !l.sticky() && l.others(m) {
		return false
	}
	return l.g.Settings.Mode == wire.ModeStream || l.unsettled(m) < l.window()
}

// others reports whether there is anybody else with room who did not let a record time out.
func (l *Leader) others(m *member) bool {
	return slices.ContainsFunc(l.eligible, func(x *member) bool { return x != m && !x.suspect })
}

// unsettled is how many records m holds that are not acked, up to the window.
func (l *Leader) unsettled(m *member) int {
	n := 0
	for _, r := range m.leases.all() {
		if r.state == held {
			n += int(r.to - r.from)
		}
	}
	return n
}

// scanHashed gives those records of [scan, stop) away whose scopes are free, all of a
// batch to one session as far as it has room, and notes the others.
func (l *Leader) scanHashed(p *Place, stop wire.Offset) {
	plain := l.plain(l.scan)
	var m *member
	for ; l.scan < stop; l.scan++ {
		o := l.scan
		var known Returned
		if !plain {
			known, _ = l.g.Record(o)
		}
		if l.skips(o, known) {
			l.adopt(p, o)
			continue
		}
		h := l.hashOf(p, o)
		if h != 0 {
			if l.stays(h) {
				continue
			}
			s := l.scopes[h]
			if s == nil && !plain && l.isParked(h) {
				s = l.newScope(h)
			}
			if s != nil {
				s.note(o)
				l.ready(s)
				continue
			}
			if known.DelayMs > 0 {
				if due := l.start + time.Duration(known.DelayMs)*time.Millisecond; due > l.now {
					s := l.newScope(h)
					s.due = due
					s.note(o)
					l.ready(s)
					continue
				}
			}
		} else if !plain && l.shelve(o) {
			continue
		} else if known.DelayMs > 0 {
			if due := l.start + time.Duration(known.DelayMs)*time.Millisecond; due > l.now {
				l.timers.push(timer{at: due, record: o, round: l.round})
				continue
			}
		}
		if m == nil || l.free(m) == 0 {
			if m = l.best(); m == nil {
				return
			}
		}
		if h != 0 {
			l.take(m, l.newScope(h), o)
		}
		l.grant(m, p, o, o+1, known)
	}
}

// adopt gives a leased record that the scan passes its scope, if that is not known: it was claimed, or
// handed over, while its batch could not be read. What lies behind it in its scope is not looked at yet.
func (l *Leader) adopt(p *Place, o wire.Offset) {
	if l.ahead.find(o) == nil || l.of.Get(o) != nil {
		return
	}
	h := l.hashOf(p, o)
	if h == 0 {
		return
	}
	for _, m := range l.members {
		r := m.leases.find(o)
		if r == nil {
			continue
		}
		s := l.scopes[h]
		if s == nil {
			s = l.newScope(h)
		}
		l.take(m, s, o)
		if r.state == ending || r.state == returning {
			s.ending++
		}
		return
	}
}

// grant leases the records [from, to) of a batch, of all of which the same is known, to m.
func (l *Leader) grant(m *member, p *Place, from, to wire.Offset, known Returned) {
	n := int(to - from)
	if l.unread.From <= from && from < l.unread.To { // it was mended
		l.unread = Span{}
	}
	m.lease(lease{from: from, to: to, epoch: l.applied, since: l.now})
	if l.waiting > 0 && from < l.grace.bound {
		l.granted.Add(from, min(to, l.grace.bound))
	}
	if m.held += n; l.now+l.ackWait() < m.check {
		l.watch(m)
	}
	m.heldBytes += int(int64(p.BatchBytes) * int64(n) / int64(max(1, p.Count)))
	if l.holder != m {
		l.row = 0
	}
	l.holder = m
	l.row += n
	l.stats.Delivered += uint64(n)
	g := wire.Grant{Offset: from, Count: uint32(n), Epoch: l.applied, Deliveries: known.Deliveries, Attempts: known.Attempts}
	if g.Deliveries < math.MaxUint16 {
		g.Deliveries++
	}
	if known.Deliveries > 0 {
		g.Flags |= wire.GrantRedelivered
	}
	if from < l.g.Doubt {
		g.Flags |= wire.GrantRedelivered | wire.GrantAtLeast
	}
	if g.Flags&wire.GrantRedelivered != 0 {
		l.stats.Redelivered += uint64(n)
	}
	m.delivery(l, p, from, to).add(g)
	l.room(m)
}

// delivery returns the delivery of this turn for the batch of records [from, to).
func (m *member) delivery(l *Leader, p *Place, from, to wire.Offset) *Delivery {
	if len(m.out) == 0 {
		l.outs = append(l.outs, m)
	}
	var substitute []byte
	if len(l.g.Substitutes) > 0 {
		substitute = l.g.Substitutes[from]
	}
	first, last := int(from-p.Base), int(to-p.Base)
	back := 8
	if l.kind == hashed && l.window() > 1 {
		back = 1 // else a record could overtake an earlier one of its scope
	}
	for i := len(m.out) - 1; i >= max(0, len(m.out)-back) && substitute == nil; i-- {
		if d := &m.out[i]; d.Place.Base == p.Base && d.Substitute == nil && len(d.Grants) < math.MaxUint16 {
			d.From, d.To = min(d.From, first), max(d.To, last)
			return d
		}
	}
	n := len(m.out)
	if n < cap(m.out) {
		m.out = m.out[:n+1]
	} else {
		m.out = append(m.out, Delivery{})
	}
	d := &m.out[n]
	*d = Delivery{
		Place: *p, From: first, To: last, Grants: d.Grants[:0], Substitute: substitute,
		Whole: p.Compressed || m.flags&wire.AttachWholeBatches != 0,
	}
	return d
}

// add takes a grant in, in order, and joins it with one that is alike.
func (d *Delivery) add(g wire.Grant) {
	n := len(d.Grants)
	if n > 0 && d.Grants[n-1].Offset > g.Offset {
		i, _ := slices.BinarySearchFunc(d.Grants, g.Offset, func(a wire.Grant, o wire.Offset) int {
			if a.Offset < o {
				return -1
			}
			return 1
		})
		d.Grants = slices.Insert(d.Grants, i, g)
		return
	}
	if n > 0 {
		last := &d.Grants[n-1]
		if last.Offset+wire.Offset(last.Count) == g.Offset && last.Epoch == g.Epoch && last.Deliveries == g.Deliveries &&
			last.Attempts == g.Attempts && last.Flags == g.Flags {
			last.Count += g.Count
			return
		}
	}
	d.Grants = append(d.Grants, g)
}

// send hands the deliveries of this turn over.
func (l *Leader) send() {
	for _, m := range l.outs {
		for i := range m.out {
			m.link.Deliver(&m.out[i])
			m.out[i].Place.Index = nil
		}
		m.out = m.out[:0]
	}
	clear(l.outs)
	l.outs = l.outs[:0]
}

// freed makes records that were taken back wait for their next delivery.
func (l *Leader) freed(from, to wire.Offset, delayMs uint32) {
	due := l.now + time.Duration(delayMs)*time.Millisecond
	for o := from; o < to; o++ {
		s := l.leave(o)
		if s != nil && delayMs > 0 {
			s.due = due
		}
		switch {
		case l.kind == single:
		case o >= l.scan && s == nil && delayMs > 0:
			l.timers.push(timer{at: due, record: o, round: l.round}) // the scan leaves it out until then
		case o >= l.scan:
			l.ahead.remove(o, o+1) // the scan will meet it, after what lies before it
		case s != nil:
			s.note(o)
		case delayMs > 0:
			l.timers.push(timer{at: due, record: o, round: l.round})
		default:
			l.redo.push(o)
		}
		if s != nil {
			l.ready(s)
		}
	}
	if l.kind == single {
		l.rewind(from)
		if delayMs > 0 {
			l.hold = due
			l.timers.push(timer{at: due, wake: true})
		}
	}
}

// rewind puts the scan back to o; what is leased behind it is left out.
func (l *Leader) rewind(o wire.Offset) {
	l.ahead = leases{}
	l.scan = min(l.scan, o)
	for _, m := range l.members {
		for _, r := range m.leases.all() {
			if r.to > l.scan {
				l.ahead.add(lease{from: max(r.from, l.scan), to: r.to})
			}
		}
	}
}
