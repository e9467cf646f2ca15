package group

import "github.com/lockstepmq/lockstep/wire"

// grace is what a new leader may give out before all sessions have come back that were
// listed when it began, and that the leaders before it may have given something to. Those
// gave nothing from bound on: it is the horizon, or the end of the records that were there
// when this leader began, for a leader gives only what it has applied. So a scope of which
// no unfinished record lies below bound is in nobody's hands, and goes on; all others wait.
//
// Where the partition has many scopes the scan begins at bound and passes over the records
// of those that wait. When everybody is back, or removed, it returns to the floor, and
// meets what it has passed over.
type grace struct {
	begun bool
	bound wire.Offset
	above bool // the scan has to return to the floor
}

// beginGrace is part of the first turn: then the end of the records is known.
func (l *Leader) beginGrace() {
	l.grace.begun = true
	if l.waiting == 0 {
		return
	}
	l.grace.bound = min(l.g.Horizon, l.end)
	if l.kind != single && l.keeps(RuleWait) {
		l.grace.above = true
		l.scan = max(l.scan, l.grace.bound)
	}
}

// goesOn reports whether there is anything that may be given out although sessions are
// waited for.
func (l *Leader) goesOn() bool {
	switch {
	case l.waiting == 0, !l.keeps(RuleWait):
		return true
	case l.kind == single:
		return l.g.Done.Floor() >= l.grace.bound
	case l.kind == hashed && l.keeps(RuleOld):
		return l.firsts.scan >= l.grace.bound && !l.firsts.partial
	}
	return true
}

// stays reports whether a scope waits for sessions that have not come back. It is asked
// while goesOn.
func (l *Leader) stays(h Scope) bool {
	if !l.grace.above || l.waiting == 0 || !l.keeps(RuleOld) {
		return false
	}
	_, old := l.firsts.of[h]
	return old
}

// prepare looks for the scopes that wait, by as much as one turn may, as soon as somebody
// has come whom it may serve.
func (l *Leader) prepare() {
	if l.waiting > 0 && len(l.links) > 0 && l.kind == hashed && l.grace.above && !l.firsts.partial {
		l.lookUp(l.grace.bound)
	}
}

// endGrace returns to the floor when nobody is waited for any more. What lies between and
// is leased, or rests, is left out; what scopes have noted will be met again.
func (l *Leader) endGrace() {
	if !l.grace.above || l.waiting > 0 {
		return
	}
	l.grace.above = false
	l.firsts = firsts{}
	top := l.scan
	l.scan, l.passed = l.g.Done.Floor(), leases{}
	for _, m := range l.members {
		for _, r := range m.leases.all() {
			if r.from < top {
				l.ahead.add(lease{from: r.from, to: min(r.to, top)})
			}
		}
	}
	for i := range l.timers.heap {
		t := &l.timers.heap[i]
		if t.member == nil && t.scope == nil && !t.wake && t.round == l.round && t.record < top && l.ahead.find(t.record) == nil {
			l.ahead.add(lease{from: t.record, to: t.record + 1})
		}
	}
	for _, s := range l.scopes {
		s.n, s.more, s.finding = 0, false, false
		l.ready(s)
	}
}
