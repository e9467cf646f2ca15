package group

import (
	"cmp"
	"container/heap"
	"math"
	"time"

	"github.com/lockstepmq/lockstep/wire"
)

// timer is something to look at, at a time: a member, a scope whose head rests, or else
// a record of its own scope that rests.
type timer struct {
	at     time.Duration
	member *member
	scope  *scope
	record wire.Offset
	wake   bool // nothing else
	round  int  // of the Leader when a record was given this timer
}

type timers struct{ heap timerHeap }

type timerHeap []timer

func (h timerHeap) Len() int           { return len(h) }
func (h timerHeap) Less(i, j int) bool { return h[i].at < h[j].at }
func (h timerHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *timerHeap) Push(x any)        { *h = append(*h, x.(timer)) }
func (h *timerHeap) Pop() any {
	old := *h
	last := len(old) - 1
	t := old[last]
	old[last] = timer{}
	*h = old[:last]
	return t
}

func (t *timers) push(x timer) { heap.Push(&t.heap, x) }

// watch sets the timer of a member for the next time it has to be looked at. Each has one
// from the time it is listed.
func (l *Leader) watch(m *member) {
	at := max(max(m.heard, l.start)+l.session(), l.now+1)
	if due := l.workDue(m); due > 0 {
		at = min(at, max(due, l.now+1))
	}
	m.check = at
	l.timers.push(timer{at: at, member: m})
}

// session is how long a session may be silent.
func (l *Leader) session() time.Duration {
	return time.Duration(l.g.Settings.SessionMs) * time.Millisecond
}

func (l *Leader) ackWait() time.Duration {
	return time.Duration(l.g.Settings.AckWaitMs) * time.Millisecond
}

// Deadline is when the next timer is due, 0 if none is set.
func (l *Leader) Deadline() time.Duration {
	if len(l.timers.heap) == 0 {
		return 0
	}
	return max(1, l.timers.heap[0].at)
}

// Resumed says that the broker could not work for a while, because it or its disk stood
// still: silence until now says nothing about consumers.
func (l *Leader) Resumed(now time.Duration) { l.start = max(l.start, now) }

// expire does what timers are due for.
func (l *Leader) expire() {
	for len(l.timers.heap) > 0 && l.timers.heap[0].at <= l.now {
		t := heap.Pop(&l.timers.heap).(timer)
		switch {
		case t.wake, t.member == nil && t.scope == nil && t.round != l.round:
		case t.member != nil:
			if t.at == t.member.check { // else it was set anew
				l.check(t.member)
			}
		case t.scope != nil && l.scopes[t.scope.hash] != t.scope:
		case t.scope != nil:
			if t.scope.timed = false; t.scope.due > l.now {
				t.scope.timed = true
				l.timers.push(timer{at: t.scope.due, scope: t.scope})
				continue
			}
			l.ready(t.scope)
		default:
			l.rested(t.record)
		}
	}
}

// check looks at a member whose timer is due, and sets it anew.
func (l *Leader) check(m *member) {
	if max(m.heard, l.start)+l.session() <= l.now && (l.keeps(RuleSilent) || !m.waiting) {
		l.remove(m, reasonSilent)
		return
	}
	l.overdue(m)
	l.watch(m)
}

// workDue is when a member that says nothing about what it holds is looked at, 0: never.
// The consumer itself measures its handlers; this is for consumers that do not.
func (l *Leader) workDue(m *member) time.Duration {
	switch {
	case m.held == 0 || m.link == nil:
		return 0
	case m.revoke > 0:
		return m.revoke
	}
	first := time.Duration(math.MaxInt64)
	for _, r := range m.leases.all() {
		if r.state == held {
			first = min(first, l.due(m, &r))
		}
	}
	return first
}

// due is when a member has held a run for too long: that counts from when it was given, or from
// the last word about others, for it may have waited behind them.
func (l *Leader) due(m *member, r *lease) time.Duration {
	return cmp.Or(r.until, max(r.since, m.worked)+l.ackWait())
}

// overdue asks a member for what it has held for too long without a word, and takes it
// when the grace is over.
func (l *Leader) overdue(m *member) {
	if due := l.workDue(m); due == 0 || due > l.now {
		return
	}
	if m.revoke == 0 {
		m.revoke = l.now + l.patience()
		l.revoke(m, wire.ReasonAckWait, func(r *lease) bool { return l.due(m, r) <= l.now })
		return
	}
	m.revoke = 0
	begun := m.begun()
	for _, r := range m.leases.held(0) {
		if r.revoked == 0 {
			continue
		}
		end := begun.end(&r)
		slow := r.revoked == wire.ReasonAckWait // and not wanted back by an operator
		m.suspect = m.suspect || slow
		for o := r.from; o < r.to; o++ {
			one := r
			one.from, one.to = o, o+1
			if now := m.leases.find(o); now == nil || now.state != held {
				continue
			}
			failed := slow && m.works() && o < end // of a scope the head alone was asked for
			l.giveBack(m, one, cause{reason: r.revoked, counted: true, attempt: failed, rest: failed})
		}
	}
}

// isHead reports whether the record at o is the first of its scope that is held.
func (l *Leader) isHead(m *member, o wire.Offset) bool {
	switch l.kind {
	case single:
		return l.firstHeld(m, o)
	case hashed:
		s := l.of.Get(o)
		return s == nil || s.isHead(o)
	}
	return true
}

// Why a session is removed, as the log has it.
const (
	reasonSilent   uint8 = 1 // it was not heard for the session's time
	reasonLeft     uint8 = 2
	reasonGone     uint8 = 3 // its connection ended, and it wanted that to count
	reasonReplaced uint8 = 4
)

// remove has a listed session taken off the list; what it holds goes to others when that is
// applied.
func (l *Leader) remove(m *member, reason uint8) {
	if m.ending {
		return
	}
	m.ending = true
	l.endAll(m, cause{reason: wire.ReasonRemoved, counted: true, attempt: reason != reasonLeft && m.works()})
	l.room(m)
	l.next.removes = append(l.next.removes, removal{member: m, reason: reason})
}
