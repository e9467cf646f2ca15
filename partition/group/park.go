package group

import (
	"cmp"
	"maps"
	"math"
	"slices"
	"time"

	"github.com/cespare/xxhash/v2"

	"github.com/lockstepmq/lockstep/wire"
)

// destinationScope is the scope of every record where the whole partition is one.
const destinationScope Scope = 1

// ScopeOf is the scope that a request names. In a group whose records are scopes of their
// own it is their offset.
func (l *Leader) ScopeOf(q *wire.ScopeRequest) (Scope, error) {
	by := l.g.Settings.Scope
	switch {
	case l.kind == single && q.Key == nil && q.Publisher == nil:
		return destinationScope, nil
	case l.kind == single: // its record may not be the next one
		return 0, wire.Errorf(wire.CodeInvalidSetting, "group %s handles a whole partition in order, and none of its keys or publishers by itself: name the --partition alone", l.g.Name)
	case q.Scope != nil:
		return Scope(*q.Scope), nil
	case l.kind == hashed && q.Key != nil && by == wire.ScopeKey:
		return HashOf(*q.Key), nil
	case l.kind == hashed && q.Publisher != nil && by == wire.ScopePublisher:
		return HashOf(*q.Publisher), nil
	case l.kind == shared:
		return 0, wire.Errorf(wire.CodeInvalidSetting, "group %s takes every record by itself: name its --partition and --offset", l.g.Name)
	}
	return 0, wire.Errorf(wire.CodeInvalidSetting, "group %[1]s goes by %[2]s: name a %[2]s (of a publisher with --publisher), or one record by its --partition and --offset", l.g.Name, by)
}

// HashOf is the scope of a key or publisher.
func HashOf(name []byte) Scope {
	if h := xxhash.Sum64(name); h != 0 {
		return Scope(h)
	}
	return 1 // as the record index has it: 0 is no key
}

// Reaches says where the partition ends and what time it is, between turns: a group without
// consumers takes none for what is appended.
func (l *Leader) Reaches(end wire.Offset, now time.Duration) {
	l.end, l.now = max(l.end, end), max(l.now, now)
}

// Deliveries is how often the record at o was delivered, with the delivery that has not ended.
func (l *Leader) Deliveries(o wire.Offset) uint16 {
	known, _ := l.g.Record(o)
	if known.Deliveries < math.MaxUint16 && l.isLeased(o) {
		known.Deliveries++
	}
	return known.Deliveries
}

// Head is the lowest record of a scope that is not done, as far as it was looked for.
func (l *Leader) Head(h Scope) (wire.Offset, bool) {
	switch l.kind {
	case single:
		head := l.g.Done.Next(l.g.Done.Floor())
		for l.lettered[head] {
			head = l.g.Done.Next(head + 1)
		}
		return head, head < l.end
	case shared:
		o := wire.Offset(h)
		return o, o < l.end && !l.g.Done.Has(o) && !l.lettered[o]
	}
	s := l.scopes[h]
	switch {
	case s == nil:
		return 0, false
	case len(s.leased) > s.acked:
		return s.leased[s.acked], true
	case s.n > 0:
		return s.next[0], true
	}
	return 0, false
}

// Loose reports whether the record at o, which the batch holds, is a scope of its own in a
// group by keys or publishers.
func (l *Leader) Loose(p *Place, o wire.Offset) bool { return l.hashOf(p, o) == 0 }

// Park stops a scope: nothing of it goes out from now on, and who has a record of it may
// finish; with now it is revoked. Done is called when that is committed.
func (l *Leader) Park(h Scope, reason string, now bool, done func(error)) {
	if !l.isParked(h) && l.parked() >= l.parkLimit {
		done(wire.Errorf(wire.CodeTooMany, "%d are parked in this partition, that is the limit: let some go on, or skip or repair them", l.parkLimit))
		return
	}
	head, ok := l.Head(h)
	if !ok {
		head = l.scan
	}
	p := park{scope: h, head: head, reason: reason, done: done}
	l.parking[h]++
	if now {
		for _, m := range l.members {
			l.revokeScope(m, h)
		}
	}
	l.next.parks = append(l.next.parks, p)
}

// MaxParked bounds the scopes of a group that are parked in one partition. A record that is
// to be parked beyond it is tried again after its backoff.
const MaxParked = 10_000

// parked is how many scopes are parked, or about to be.
func (l *Leader) parked() int { return len(l.g.Parked) + len(l.parking) }

// revokeScope asks a member for what it holds of a scope. One that has no link is asked when
// it is back.
func (l *Leader) revokeScope(m *member, h Scope) {
	var revokes []wire.Revoke
	for _, r := range m.leases.held(0) {
		for o := r.from; o < r.to; o++ {
			if l.scopeOf(o) != h || r.revoked != 0 {
				continue
			}
			m.leases.change(o, o+1, func(x *lease) { x.revoked = wire.ReasonPark })
			one := r
			one.from, one.to = o, o+1
			revokes = append(revokes, l.revokeOf(one, wire.ReasonPark))
		}
	}
	if m.link == nil || len(revokes) == 0 {
		return
	}
	m.revoke = l.now + l.patience()
	l.watch(m)
	m.link.Revoke(revokes)
}

// scopeOf is the scope of a leased record.
func (l *Leader) scopeOf(o wire.Offset) Scope {
	switch l.kind {
	case single:
		return destinationScope
	case hashed:
		if s := l.of.Get(o); s != nil {
			return s.hash
		}
	}
	return Scope(o)
}

// Unpark lets a scope go on.
func (l *Leader) Unpark(h Scope, done func(error)) {
	l.next.parks = append(l.next.parks, park{scope: h, head: unpark, done: done})
}

// Settle makes records done, which nobody has to handle any more. The group stops for it:
// no handler is at work when the next record goes out. A scope that is parked goes on.
func (l *Leader) Settle(spans []Span, goesOn *Scope, done func(error)) {
	l.Order(Order{Drain: true, Reason: wire.ReasonPark, Done: done, Make: func() []byte {
		return l.alsoUnpark(AppendOutcomes(nil, l.g.ID, spans, nil), goesOn)
	}})
}

// GiveUp is Settle of dead letters: those that are on their way back need not get there. It
// is refused with the error of others, if there is one when the group has stopped.
func (l *Leader) GiveUp(spans []Span, others func() error, done func(error)) {
	var refused error
	l.Order(Order{Drain: true, Reason: wire.ReasonPark, Done: func(err error) { done(cmp.Or(err, refused)) }, Make: func() []byte {
		if refused = others(); refused != nil {
			return AppendOutcomes(nil, l.g.ID, nil, nil)
		}
		command := AppendOutcomes(nil, l.g.ID, spans, nil)
		for number, x := range l.g.Letters.Open {
			if x.Reason == Redriven && slices.ContainsFunc(spans, func(s Span) bool { return s.From <= x.Offset && x.Offset < s.To }) {
				command = AppendLetterDone(command, l.g.ID, number)
			}
		}
		return command
	}})
}

// alsoUnpark appends that a scope goes on, if it is given and parked. It is asked when the group
// has stopped: until then whoever holds the head may fail and have it parked.
func (l *Leader) alsoUnpark(dst []byte, h *Scope) []byte {
	if h != nil && l.isParked(*h) {
		dst = AppendUnpark(dst, l.g.ID, *h)
	}
	return dst
}

// Limits of what a group delivers instead of what is stored, in bytes: of one record and of
// all in a partition.
const (
	MaxSubstituteBytes  = 512 << 10
	MaxSubstitutesBytes = 4 << 20
)

// Repair has a batch of one record delivered in the place of the one at o, as the head of a
// scope that goes on if it is parked. The group stops for it.
func (l *Leader) Repair(h Scope, o wire.Offset, batch []byte, done func(error)) {
	all := len(batch)
	for at, other := range l.g.Substitutes {
		if at != o {
			all += len(other)
		}
	}
	switch {
	case len(batch) > MaxSubstituteBytes:
		done(wire.Errorf(wire.CodeTooLarge, "a record of %d bytes with what belongs to it; what is repaired may have %d", len(batch), MaxSubstituteBytes))
	case all > MaxSubstitutesBytes:
		done(wire.Errorf(wire.CodeTooMany, "repaired records that are not done take %d bytes, and %d are kept; let the group finish some first", all, MaxSubstitutesBytes))
	default:
		l.Order(Order{Drain: true, Reason: wire.ReasonPark, Done: done, Make: func() []byte {
			return l.alsoUnpark(AppendSubstitute(nil, l.g.ID, o, batch), &h)
		}})
	}
}

// parked reports whether nothing of a scope goes out: it is parked, or that is on its way.
func (l *Leader) isParked(h Scope) bool {
	if len(l.parking) > 0 && l.parking[h] > 0 {
		return true
	}
	_, parked := l.g.Parked[h]
	return parked
}

// appliedPark takes in that a scope is parked, or goes on.
func (l *Leader) appliedPark(p park) {
	on := p.head != unpark
	if on && l.parking[p.scope] > 0 {
		if l.parking[p.scope]--; l.parking[p.scope] == 0 {
			delete(l.parking, p.scope)
		}
	}
	l.noteParked(p.scope, on)
	switch l.kind {
	case shared:
		l.unshelve(p)
	case hashed:
		l.unshelve(p) // if it is a record without a key
		s := l.scopes[p.scope]
		if s == nil && on {
			s = l.newScope(p.scope)
		}
		if s == nil {
			break
		}
		if s.parked = 0; on {
			s.parked = p.head + 1
		}
		l.ready(s)
	}
	if p.done != nil {
		p.done(nil)
	}
}

// shelve reports whether a record that is its own scope is parked, and notes that whoever has
// met it has passed it over.
func (l *Leader) shelve(o wire.Offset) bool {
	parked := l.isParked(Scope(o))
	if parked {
		l.shelved[o] = true
	}
	return parked
}

// unshelve has a record go out that was passed over, if p lets it go on. Any other that p may
// mean is leased, rests, or waits already, or the scan will meet it: it would go to two sessions.
func (l *Leader) unshelve(p park) {
	o := wire.Offset(p.scope)
	if p.head != unpark || !l.shelved[o] {
		return
	}
	if delete(l.shelved, o); o < l.scan { // else the scan has gone back to the floor since
		l.redo.push(o)
	}
}

// noteParked remembers when a scope was parked. What is parked no more, because it is done or
// the group was moved, is forgotten when there would be too many.
func (l *Leader) noteParked(h Scope, on bool) {
	if !on {
		delete(l.parkedAt, h)
		return
	}
	if len(l.parkedAt) >= l.parkLimit {
		maps.DeleteFunc(l.parkedAt, func(h Scope, _ time.Duration) bool { return !l.isParked(h) })
	}
	if l.parkedAt == nil {
		l.parkedAt = make(map[Scope]time.Duration)
	}
	if _, known := l.parkedAt[h]; !known {
		l.parkedAt[h] = l.now
	}
}

// parkedScopes are the scopes that are parked, in the order in which they were.
func (l *Leader) parkedScopes() []Scope {
	return slices.SortedFunc(maps.Keys(l.g.Parked), func(a, b Scope) int {
		return cmp.Or(cmp.Compare(l.g.Parked[a].Since, l.g.Parked[b].Since), cmp.Compare(a, b))
	})
}

// describeParked lists what is parked, at most wire.MaxParkedShown.
func (l *Leader) describeParked() []wire.ParkedScope {
	var out []wire.ParkedScope
	scopes := l.parkedScopes()
	for _, h := range scopes[:min(len(scopes), wire.MaxParkedShown)] {
		p := l.g.Parked[h]
		at, known := l.parkedAt[h]
		if !known {
			at = l.start
		}
		out = append(out, wire.ParkedScope{Scope: uint64(h), Offset: uint64(p.Head), Reason: p.Reason, ForMs: uint64(max(0, l.now-at).Milliseconds()), AtLeast: !known})
	}
	return out
}

// isLeased reports whether some session has the record at o.
func (l *Leader) isLeased(o wire.Offset) bool {
	for _, m := range l.members {
		if m.leases.find(o) != nil {
			return true
		}
	}
	return false
}
