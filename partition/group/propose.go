package group

import (
	"slices"

	"github.com/lockstepmq/lockstep/wire"
)

// proposal is what one entry holds of a group: what is to be settled and taken back
// first, then who is removed, then who joins.
type proposal struct {
	acks    []acked
	backs   []back
	seen    []seen
	letters []sent
	parks   []park
	written []uint64 // letters that are done
	passed  []Span   // records that are erased, see Leader.pass
	removes []removal
	joins   []joining
	horizon wire.Offset
	active  *activation
	orders  []Order
}

type acked struct {
	member   *member
	from, to wire.Offset
	epoch    wire.Index
}

type seen struct {
	session Session
	span    Span
}

// sent is a record that becomes a dead letter.
type sent struct {
	back
	letter Letter
}

type park struct {
	scope  Scope
	head   wire.Offset
	reason string
	done   func(error) // may be nil
}

type removal struct {
	member *member
	reason uint8
	doubt  wire.Offset
}

type joining struct {
	member, predecessor *member
	record              Member
}

type activation struct {
	session Session
}

func (p *proposal) empty() bool {
	return len(p.acks) == 0 && len(p.backs) == 0 && len(p.letters) == 0 && len(p.parks) == 0 && len(p.written) == 0 && len(p.passed) == 0 &&
		len(p.removes) == 0 && len(p.joins) == 0 && p.horizon == 0 && p.active == nil && len(p.orders) == 0 && len(p.seen) < 1024
}

// ack takes in a run of acked records.
func (p *proposal) ack(m *member, from, to wire.Offset, epoch wire.Index) {
	if n := len(p.acks); n > 0 {
		if a := &p.acks[n-1]; a.member == m && a.epoch == epoch && a.to == from {
			a.to = to
			return
		}
	}
	p.acks = append(p.acks, acked{m, from, to, epoch})
}

// Sizes of commands, as they are reckoned before they are made, in bytes.
const (
	roomOfCommand = 64
	roomOfSpan    = 20
	roomOfReturn  = 32
	roomOfMember  = 128
)

// plan notes what the Leader itself wants to have committed.
func (l *Leader) plan() {
	if l.raising || len(l.g.Sessions) == 0 && len(l.next.joins) == 0 {
		return
	}
	if l.g.Horizon < l.scan+l.step/2 {
		l.next.horizon = max(l.g.Horizon, l.scan) + l.step
		l.raising = true
	}
}

// Pending reports whether Propose has something to say.
func (l *Leader) Pending() bool { return !l.next.empty() }

// Propose appends the commands that are to be committed, up to about room bytes, and
// reports whether it has appended any. What it has appended counts as proposed until
// Applied or Dropped.
func (l *Leader) Propose(dst []byte, room int) ([]byte, bool) {
	n := l.next
	if n.empty() {
		return dst, false
	}
	p := l.newProposal()
	id := l.g.ID
	room = min(room, MaxPayload/2) - 2*roomOfCommand
	if room < 2*roomOfMember {
		return dst, false
	}
	take := func(have, each int) int {
		k := min(have, max(0, room/each))
		room -= k * each
		return k
	}
	k := take(len(n.acks), roomOfSpan)
	p.acks, n.acks = append(p.acks, n.acks[:k]...), cutFront(n.acks, k)
	k = take(len(n.backs), roomOfReturn)
	p.backs, n.backs = append(p.backs, n.backs[:k]...), cutFront(n.backs, k)
	if len(p.acks) > 0 || len(p.backs) > 0 || len(n.seen) > 0 {
		k = take(len(n.seen), roomOfReturn)
		p.seen, n.seen = append(p.seen, n.seen[:k]...), cutFront(n.seen, k)
		slices.SortFunc(p.acks, func(a, b acked) int { return compareOffsets(a.from, b.from) })
		dst = AppendOutcomes(dst, id, l.spans(p.acks), l.takens(p))
	}
	if k = take(len(n.passed), roomOfSpan); k > 0 {
		p.passed, n.passed = append(p.passed, n.passed[:k]...), cutFront(n.passed, k)
		slices.SortFunc(p.passed, func(a, b Span) int { return compareOffsets(a.From, b.From) })
		dst = AppendOutcomes(dst, id, p.passed, nil)
	}
	for len(n.letters) > 0 && room > roomOfMember+len(n.letters[0].letter.Text) {
		s := n.letters[0]
		n.letters = cutFront(n.letters, 1)
		room -= roomOfMember + len(s.letter.Text)
		p.letters = append(p.letters, s)
		dst = AppendLetter(dst, id, s.member.session, &s.letter)
	}
	for len(n.parks) > 0 && room > roomOfMember+len(n.parks[0].reason) {
		s := n.parks[0]
		n.parks = cutFront(n.parks, 1)
		room -= roomOfMember + len(s.reason)
		p.parks = append(p.parks, s)
		if s.head == unpark {
			dst = AppendUnpark(dst, id, s.scope)
		} else {
			dst = AppendPark(dst, id, s.scope, s.head, s.reason)
		}
	}
	for len(n.written) > 0 && room > roomOfCommand {
		p.written = append(p.written, n.written[0])
		dst = AppendLetterDone(dst, id, n.written[0])
		n.written = cutFront(n.written, 1)
		room -= roomOfCommand
	}
	// What a session held goes back before it is removed.
	if len(n.acks)+len(n.backs)+len(n.letters)+len(n.parks)+len(n.written) == 0 {
		dst = l.proposeSessions(dst, p, n, &room)
	}
	l.proposed = append(l.proposed, p)
	return dst, true
}

func (l *Leader) proposeSessions(dst []byte, p, n *proposal, room *int) []byte {
	id := l.g.ID
	for len(n.removes) > 0 && *room > roomOfMember {
		r := n.removes[0]
		n.removes = cutFront(n.removes, 1)
		*room -= roomOfMember
		r.doubt = l.doubtOf(r.member)
		p.removes = append(p.removes, r)
		dst = AppendRemove(dst, id, r.member.session, r.reason, r.doubt, nil)
	}
	for len(n.joins) > 0 && *room > roomOfMember+len(n.joins[0].record.Name)+len(n.joins[0].record.Client) {
		j := n.joins[0]
		n.joins = cutFront(n.joins, 1)
		*room -= roomOfMember + len(j.record.Name) + len(j.record.Client)
		var doubt wire.Offset
		if j.predecessor != nil {
			doubt = l.doubtOf(j.predecessor)
		}
		p.joins = append(p.joins, j)
		dst = AppendJoin(dst, id, &j.record, doubt, nil)
	}
	if n.active != nil {
		p.active, n.active = n.active, nil
		dst = AppendActive(dst, id, p.active.session, nil)
	}
	if n.horizon > 0 {
		p.horizon, n.horizon = n.horizon, 0
		dst = AppendHorizon(dst, id, p.horizon)
	}
	for len(n.orders) > 0 && len(n.joins)+len(n.removes) == 0 && (*room > len(n.orders[0].Command) || len(p.orders) == 0) {
		p.orders = append(p.orders, n.orders[0])
		dst = append(dst, n.orders[0].Command...)
		*room -= len(n.orders[0].Command)
		n.orders = cutFront(n.orders, 1)
	}
	return dst
}

// doubtOf is the doubt mark that the removal of a session brings: a session that did not
// come back may have been given whatever lies below the horizon.
func (l *Leader) doubtOf(m *member) wire.Offset {
	if !m.waiting || !l.keeps(RuleDoubt) {
		return 0
	}
	return l.grace.bound
}

// cutFront drops the first k elements and keeps the array if that leaves it empty.
func cutFront[T any](s []T, k int) []T {
	if k == len(s) {
		clear(s)
		return s[:0]
	}
	return s[k:]
}

// spans are the records of ascending acks, neighbours as one.
func (l *Leader) spans(acks []acked) []Span {
	l.scratch = l.scratch[:0]
	for i := range acks {
		a := &acks[i]
		if n := len(l.scratch); n > 0 && a.from <= l.scratch[n-1].To {
			l.scratch[n-1].To = max(a.to, l.scratch[n-1].To)
			continue
		}
		l.scratch = append(l.scratch, Span{a.from, a.to})
	}
	return l.scratch
}

func compareOffsets(a, b wire.Offset) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// takens are the returns and what sessions have seen, for each session. What a session
// has asked for itself needs no fence for it and has none.
func (l *Leader) takens(p *proposal) []Taken {
	if len(p.backs) == 0 && len(p.seen) == 0 {
		return nil
	}
	at := make(map[Session]int)
	var out []Taken
	of := func(s Session) *Taken {
		i, ok := at[s]
		if !ok {
			i = len(out)
			at[s] = i
			out = append(out, Taken{Session: s})
		}
		return &out[i]
	}
	for i := range p.backs {
		b := &p.backs[i]
		var s Session
		if b.lost {
			s = b.member.session
		}
		t := of(s)
		if n := len(t.Returns); n > 0 {
			if r := &t.Returns[n-1]; r.To == b.ret.From && r.Deliveries == b.ret.Deliveries && r.Attempts == b.ret.Attempts && r.DelayMs == b.ret.DelayMs {
				r.To = b.ret.To
				continue
			}
		}
		t.Returns = append(t.Returns, b.ret)
	}
	for i := range p.seen {
		t := of(p.seen[i].session)
		t.Seen = append(t.Seen, p.seen[i].span)
	}
	for i := range out {
		t := &out[i]
		slices.SortFunc(t.Returns, func(a, b Return) int { return compareOffsets(a.From, b.From) })
		slices.SortFunc(t.Seen, func(a, b Span) int { return compareOffsets(a.From, b.From) })
		n := 0
		for _, s := range t.Seen {
			if n > 0 && s.From <= t.Seen[n-1].To {
				t.Seen[n-1].To = max(s.To, t.Seen[n-1].To)
				continue
			}
			t.Seen[n] = s
			n++
		}
		t.Seen = t.Seen[:n]
	}
	return out
}

func (l *Leader) newProposal() *proposal {
	if n := len(l.idle); n > 0 {
		p := l.idle[n-1]
		l.idle = l.idle[:n-1]
		return p
	}
	return new(proposal)
}

// Dropped takes back what the last Propose has appended: it is not in the log, and will be
// proposed again.
func (l *Leader) Dropped() {
	n := len(l.proposed)
	if n == 0 {
		return
	}
	p, q := l.proposed[n-1], l.next
	l.proposed[n-1] = nil
	l.proposed = l.proposed[:n-1]
	q.acks = slices.Concat(p.acks, q.acks)
	q.backs = slices.Concat(p.backs, q.backs)
	q.seen = slices.Concat(p.seen, q.seen)
	q.letters = slices.Concat(p.letters, q.letters)
	q.parks = slices.Concat(p.parks, q.parks)
	q.written = slices.Concat(p.written, q.written)
	q.passed = slices.Concat(p.passed, q.passed)
	q.removes = slices.Concat(p.removes, q.removes)
	q.joins = slices.Concat(p.joins, q.joins)
	q.horizon = max(p.horizon, q.horizon)
	if p.active != nil {
		q.active = p.active
	}
	q.orders = slices.Concat(p.orders, q.orders)
}

// Applied takes in that the oldest entry that Propose has filled is applied, and so is the
// Group. Only now are its outcomes answered, and what it frees may go to others.
func (l *Leader) Applied(i wire.Index) {
	p := l.proposed[0]
	l.proposed = shift(l.proposed)
	l.appliedAcks(p.acks)
	for k := range p.backs {
		l.appliedBack(&p.backs[k])
	}
	for k := range p.letters {
		l.appliedLetter(&p.letters[k])
	}
	for _, s := range p.parks {
		l.appliedPark(s)
	}
	if len(p.written) > 0 {
		l.appliedWritten()
	}
	for _, r := range p.removes {
		l.removed(r.member)
	}
	for _, j := range p.joins {
		if j.predecessor != nil {
			l.removed(j.predecessor)
		}
		l.joined(j)
	}
	if p.active != nil {
		l.activating = false
	}
	if p.horizon > 0 {
		l.raising = false
	}
	for k := range p.orders {
		l.ordered(&p.orders[k])
	}
	l.flush()
	l.reuse(p)
}

func (l *Leader) reuse(p *proposal) {
	clear(p.acks)
	clear(p.backs)
	*p = proposal{acks: p.acks[:0], backs: p.backs[:0]}
	if len(l.idle) < 4 {
		l.idle = append(l.idle, p)
	}
}

// shift drops the first element and keeps the array.
func shift[T any](s []T) []T {
	copy(s, s[1:])
	clear(s[len(s)-1:])
	return s[:len(s)-1]
}

// appliedAcks takes in that records are done: acks ascend. What each session held of them
// leaves its leases in one pass.
func (l *Leader) appliedAcks(acks []acked) {
	tell := l.keeps(RuleCommitted)
	for i := range acks {
		a := &acks[i]
		m := a.member
		if len(m.settled) == 0 {
			l.settlers = append(l.settlers, m)
		}
		m.settled = append(m.settled, Span{a.from, a.to})
		if tell {
			l.answer(m, a.from, a.to, a.epoch, wire.CodeOK)
		}
		if !l.ahead.empty() {
			l.ahead.remove(a.from, a.to)
		}
		for o := a.from; o < a.to && l.of.Len() > 0; o++ {
			if s := l.leave(o); s != nil {
				l.ready(s)
			}
		}
	}
	for _, m := range l.settlers {
		m.leases.removeAll(m.settled)
		m.settled = m.settled[:0]
	}
	clear(l.settlers)
	l.settlers = l.settlers[:0]
}

func (l *Leader) appliedBack(b *back) {
	l.gone(b)
	if l.keeps(RuleHandOver) {
		l.freed(b.ret.From, b.ret.To, b.ret.DelayMs)
	}
}

// gone takes a run of records out of the hands of its session.
func (l *Leader) gone(b *back) {
	m, from, to := b.member, b.ret.From, b.ret.To
	m.leases.remove(from, to)
	l.release(m, int(to-from))
	l.stats.Returned += uint64(to - from)
	l.backing -= int(to - from)
	if l.kind == hashed {
		for o := from; o < to; o++ {
			if s := l.of.Get(o); s != nil {
				s.ending--
			}
		}
	}
	if b.lost {
		l.lose(m, from, to, b.epoch, b.reason)
	}
	if b.asked {
		l.answer(m, from, to, b.epoch, wire.CodeOK)
	}
}

// returns ends the wait for a session.
func (l *Leader) returns(m *member) {
	m.waiting = false
	if l.waiting--; l.waiting == 0 {
		l.granted = Done{}
	}
}

// removed ends a session that is off the list.
func (l *Leader) removed(m *member) {
	if m.waiting {
		l.returns(m)
	}
	delete(l.members, m.session)
	if l.names[m.name] == m {
		delete(l.names, m.name)
	}
	l.thinned = true
	l.flush()
	if m.leaving {
		l.unlink(m, nil)
	} else {
		l.unlink(m, wire.CodeSessionGone)
	}
}

// joined serves a session that is on the list now.
func (l *Leader) joined(j joining) {
	m := j.member
	m.listed = true
	m.heard = max(m.heard, l.now)
	l.watch(m)
	l.lists(m, &j.record)
	if a := l.asking[m.session]; a != nil && a.joining && l.links[a.consumer] == a && !a.open {
		if err := l.outdated(bindingOf(a.request), true); err != nil { // one of the same entry is of a newer generation
			l.refuse(a, err)
			return
		}
		l.attached(a, m, nil)
	}
}

// lists notes what a listed session is known by.
func (l *Leader) lists(m *member, record *Member) {
	if m.name = record.Name; m.name != "" {
		l.names[m.name] = m
	}
	m.looks = record.Flags&wire.AttachLookOnly != 0
	l.binds(m, record.Binding)
}
