package group

import (
	"maps"
	"math"
	"sort"
	"time"

	"github.com/lockstepmq/lockstep/wire"
)

// Order is a command that somebody else than a consumer wants to have committed: a seek,
// new settings, a pause.
type Order struct {
	// Command is the encoded command. With Make, which only one that drains may have, it is
	// made when nothing is leased and everything decided before is applied.
	Command []byte
	Make    func() []byte
	// Drain asks that nothing is leased when it is committed and that no session is waited
	// for: until then nothing is given out, and what is held is asked back for Reason.
	Drain  bool
	Reason wire.LeaseReason
	// Done is called once, in a turn: with nil when the command is applied.
	Done func(error)
}

// order is an Order that waits until nothing is leased.
type order struct {
	Order
	proposed bool
}

// Order carries out an order. One that drains the group waits for no other one that does:
// it is refused with RETRY.
func (l *Leader) Order(o Order) {
	if !o.Drain {
		l.next.orders = append(l.next.orders, o)
		return
	}
	if l.order != nil {
		o.Done(wire.Errorf(wire.CodeRetry, "group %s is being stopped for another order", l.g.Name))
		return
	}
	l.order = &order{Order: o}
}

// Stops reports whether an order is under way that stops the group.
func (l *Leader) Stops() bool { return l.order != nil }

// command goes on with the order that drains the group.
func (l *Leader) command() {
	o := l.order
	if o == nil || o.proposed {
		return
	}
	if l.keeps(RuleDrain) && !l.drained() {
		return
	}
	if o.proposed = true; o.Make != nil {
		o.Command = o.Make()
	}
	l.next.orders = append(l.next.orders, o.Order)
}

// drained asks consumers for what they hold, and reports whether nothing is leased and
// nobody is waited for. What they keep is taken when their time is over (overdue). Who has no
// link cannot be asked and may be at work: what it holds ends with its removal.
func (l *Leader) drained() bool {
	o := l.order
	drained := l.waiting == 0
	for _, m := range l.members {
		if m.leases.empty() {
			continue
		}
		drained = false
		if l.revoke(m, o.Reason, func(*lease) bool { return true }) {
			m.revoke = l.now + l.patience() // also of what it was asked for before
			l.watch(m)
		}
	}
	return drained
}

// patience is how long a revoke waits for its answer. It is not less than the time of a
// session: the link may be broken already and nobody knows, and a consumer that has
// not heard the revoke works on until its deadline. That comes before, because only what
// follows the revoke on the same link could move it.
func (l *Leader) patience() time.Duration {
	return max(l.session(), time.Duration(l.g.Settings.RevokeMs)*time.Millisecond)
}

// revoke asks a member for what it holds, was not asked for, and is meant, and reports
// whether there was something. What takes too long is the first record of its scope: those
// behind it were not begun, and go on or back with it.
func (l *Leader) revoke(m *member, reason wire.LeaseReason, meant func(*lease) bool) bool {
	if m.link == nil {
		return false
	}
	var revokes []wire.Revoke
	for _, r := range m.leases.held(0) {
		if r.revoked != 0 || !meant(&r) {
			continue
		}
		for from := r.from; from < r.to && len(revokes) < wire.MaxGroupItems; {
			some := r
			some.from = from
			if reason == wire.ReasonAckWait && l.kind != shared {
				some.to = from + 1
			}
			if from = some.to; reason == wire.ReasonAckWait && !l.isHead(m, some.from) {
				continue
			}
			m.leases.change(some.from, some.to, func(x *lease) { x.revoked = reason })
			revokes = append(revokes, l.revokeOf(some, reason))
		}
	}
	if len(revokes) == 0 {
		return false
	}
	m.link.Revoke(revokes)
	return true
}

func (l *Leader) revokeOf(r lease, reason wire.LeaseReason) wire.Revoke {
	return wire.Revoke{Offset: r.from, Count: uint32(r.to - r.from), Epoch: r.epoch, Reason: reason, GraceMs: l.g.Settings.RevokeMs}
}

// revokeAgain repeats on a new link what was revoked on an earlier one, where it may have
// been lost.
func (l *Leader) revokeAgain(m *member) {
	var revokes []wire.Revoke
	for _, r := range m.leases.held(0) {
		if r.revoked != 0 {
			revokes = append(revokes, l.revokeOf(r, r.revoked))
		}
	}
	if len(revokes) > 0 {
		m.revoke = l.now + l.patience()
		l.watch(m)
		m.link.Revoke(revokes)
	}
}

// ordered ends an order, whose command is applied. After one that has drained the group,
// everything begins anew: it may be another kind of group now, and elsewhere.
func (l *Leader) ordered(o *Order) {
	if o.Drain {
		l.order = nil
		l.restart()
	}
	if o.Done != nil {
		o.Done(nil)
	}
}

// restart forgets what is known of records of which none is leased.
func (l *Leader) restart() {
	l.kind = kindOf(&l.g.Settings)
	l.scan, l.ahead, l.hold, l.holder = l.g.Done.Floor(), leases{}, 0, nil
	l.redo.clear()
	l.unread, l.passed = Span{}, leases{}
	clear(l.shelved)
	l.ring.clear()
	clear(l.scopes)
	l.start = l.now
	l.round++
	for _, m := range l.members {
		l.watch(m)
		l.room(m)
	}
	l.known()
	if l.keeps(RuleDrain) {
		return
	}
	for _, m := range l.members {
		for _, r := range m.leases.all() {
			l.ahead.add(lease{from: r.from, to: r.to})
		}
	}
}

// known takes over what the Group knows of records and scopes.
func (l *Leader) known() {
	clear(l.lettered)
	for _, letter := range l.g.Letters.Open {
		if l.g.lettered(&letter) {
			l.lettered[letter.Offset] = true
		}
	}
	for s, p := range l.g.Parked {
		if l.kind == hashed {
			l.newScope(s).parked = p.Head + 1
		}
	}
}

// Damaged says that the records [from, to) cannot be read, so that a consumer was not sent
// them: what it has of them goes back, with what lies behind it in its scope, and is looked for
// again after rereadPause. Others may have got theirs.
func (l *Leader) Damaged(c Consumer, from, to wire.Offset) {
	a := l.links[c]
	if a == nil || !a.open {
		return
	}
	m := a.member
	again := cause{reason: wire.ReasonReturned, delayed: true, delayMs: uint32(rereadPause.Milliseconds())}
	for _, r := range m.leases.held(from) {
		if r.from >= to {
			break
		}
		r.to = min(r.to, to)
		if l.kind == shared {
			again.silent = true
			l.takeBack(m, r, again)
			continue
		}
		for o := r.from; o < r.to; o++ {
			if one, ok := m.leases.within(o, o+1); ok && one.state == held {
				if s := l.of.Get(o); s == nil {
					l.rest(o)
				} else if s.isHead(o) {
					s.unread = true
				}
				l.giveBack(m, one, again) // it may have some of what is behind
			}
		}
	}
}

// Trimmed says that retention has moved the start of the partition: leases of records
// below it are over, and the consumers hear which records their group has lost.
func (l *Leader) Trimmed() {
	floor := l.g.Done.Floor()
	if l.g.Expired > l.expired {
		l.expired = l.g.Expired
		for _, m := range l.members {
			if m.link != nil {
				l.tellLost(m)
			}
		}
	}
	for _, m := range l.members {
		for _, r := range m.leases.held(0) { // the end of the others is on its way
			if r.from >= floor {
				break
			}
			r.to = min(r.to, floor)
			m.leases.remove(r.from, r.to)
			l.release(m, int(r.to-r.from))
			l.lose(m, r.from, r.to, r.epoch, wire.ReasonExpired)
			for o := r.from; o < r.to && l.of.Len() > 0; o++ {
				if s := l.leave(o); s != nil {
					l.ready(s)
				}
			}
		}
	}
	if !l.ahead.empty() {
		l.ahead.remove(0, floor)
	}
	maps.DeleteFunc(l.shelved, func(o wire.Offset, _ bool) bool { return o < floor })
	l.appliedWritten() // nobody writes letters about records that have expired
	l.flush()
}

// tellLost tells a consumer which records its group has lost to retention, as long as it has
// done none behind them: who comes later, or hears it twice, learns of the same range.
func (l *Leader) tellLost(m *member) {
	lost := l.g.Lost
	if lost.To != l.g.Done.Floor() {
		return
	}
	for from := lost.From; from < lost.To; {
		to := min(lost.To, from+math.MaxUint32)
		l.lose(m, from, to, 0, wire.ReasonExpired)
		from = to
	}
}

// activate has a session made the active one of a sticky group that has none, or whose one
// is going or has let a record time out. One that is there gets nothing more from then on, and
// the other one is active when it holds nothing: it may be at work.
func (l *Leader) activate() {
	l.yields = false
	if l.kind != single || !l.sticky() || l.activating || l.frozen || l.waiting > 0 && l.keeps(RuleWait) || l.order != nil {
		return
	}
	now := l.members[l.g.Active]
	if now != nil && !now.ending && !now.draining && !now.suspect && !l.makesWay(now) {
		return
	}
	best := l.candidate(func(m *member) bool { return !m.suspect && m != now })
	if best == nil && now == nil {
		best = l.candidate(func(*member) bool { return true }) // even a suspect one is better than none
	}
	if best == nil {
		return
	}
	if now != nil && !now.leases.empty() && l.keeps(RuleActive) {
		l.yields = true
		return
	}
	l.activating = true
	l.next.active = &activation{session: best.session}
}

// candidate is the member that should rather be the active session than all others that fit, or
// nil.
func (l *Leader) candidate(fits func(*member) bool) (best *member) {
	for _, m := range l.members {
		if m.listed && !m.ending && !m.draining && m.link != nil && fits(m) && (best == nil || l.before(m, best)) {
			best = m
		}
	}
	return best
}

// makesWay reports whether the active session would rather stand by, and there is one that
// would not: then it gets nothing more, and the other one is the active session when it
// holds nothing. The group asks for that with Failback.
func (l *Leader) makesWay(now *member) bool {
	if now == nil || !l.g.Settings.Failback || now.flags&wire.AttachStandby == 0 {
		return false
	}
	return l.candidate(func(m *member) bool { return !m.suspect && m.flags&wire.AttachStandby == 0 }) != nil
}

// before reports whether a should rather be the active session than b: those that did not
// ask to stand by, then the one that was listed first.
func (l *Leader) before(a, b *member) bool {
	x, y := a.flags&wire.AttachStandby, b.flags&wire.AttachStandby
	if x != y {
		return x == 0
	}
	if p, q := l.g.Sessions[a.session], l.g.Sessions[b.session]; p != nil && q != nil && p.Since != q.Since {
		return p.Since < q.Since
	}
	return compareSessions(a.session, b.session) < 0
}

func (l *Leader) sticky() bool {
	return l.g.Settings.Holder != wire.HolderAny || l.g.Settings.Mode == wire.ModeStream
}

// sortTable orders leases by offset.
func sortTable(t []TableLease) {
	sort.Slice(t, func(i, j int) bool { return t[i].From < t[j].From })
}
