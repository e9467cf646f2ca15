package group

import (
	"slices"
	"sort"
	"time"

	"github.com/lockstepmq/lockstep/wire"
)

// leaseState says how far the end of a lease has come.
type leaseState uint8

const (
	// held: delivered or on the way, and nothing is proposed about it.
	held leaseState = iota
	// settling: its ack is taken, and waits to be proposed or applied.
	settling
	// returning: its session has given it back, and that waits to be proposed or applied.
	returning
	// ending: it is taken from its session, and that waits to be proposed or applied.
	ending
)

// lease is a run of records [from, to) that one session was given under one epoch.
type lease struct {
	from, to wire.Offset
	epoch    wire.Index
	order    uint64 // how many records the session had been given before the first of them
	state    leaseState
	revoked  wire.LeaseReason // the consumer was told to stop; 0: it was not
	since    time.Duration    // when it was given, or claimed
	until    time.Duration    // the consumer has asked for so long; 0: it has not
}

// begin leaves out what lies before o.
func (r *lease) begin(o wire.Offset) {
	r.order += uint64(o - r.from)
	r.from = o
}

// leases are what one session holds: runs that ascend and do not overlap. Neighbours
// that are alike are one run. A record that is settled costs a binary search and, where
// it splits a run, a shift of what lies behind it; runs leave at the front for nothing.
type leases struct {
	runs    []lease // [head:] counts
	head    int
	scratch []lease // of removeAll
}

func (l *leases) empty() bool { return l.head == len(l.runs) }

func (l *leases) all() []lease { return l.runs[l.head:] }

// search returns the place of the first run that ends behind o.
func (l *leases) search(o wire.Offset) int {
	if l.head < len(l.runs) && l.runs[l.head].to > o {
		return l.head
	}
	return l.head + sort.Search(len(l.runs)-l.head, func(i int) bool { return l.runs[l.head+i].to > o })
}

// find returns the run that holds o, or nil. It is valid until the next change.
func (l *leases) find(o wire.Offset) *lease {
	if i := l.search(o); i < len(l.runs) && l.runs[i].from <= o {
		return &l.runs[i]
	}
	return nil
}

// within returns the first piece of what is held in [from, to), and false if there is
// none. Its bounds are cut to the question.
func (l *leases) within(from, to wire.Offset) (lease, bool) {
	i := l.search(from)
	if i == len(l.runs) || l.runs[i].from >= to {
		return lease{}, false
	}
	piece := l.runs[i]
	piece.begin(max(piece.from, from))
	piece.to = min(piece.to, to)
	return piece, true
}

// held returns a copy of what is held from o on and nothing is proposed about.
func (l *leases) held(o wire.Offset) []lease {
	var out []lease
	for _, r := range l.runs[l.search(o):] {
		if r.state == held {
			r.begin(max(r.from, o))
			out = append(out, r)
		}
	}
	return out
}

// add takes in a run of which nothing is held.
func (l *leases) add(n lease) {
	if last := len(l.runs) - 1; last >= l.head && l.runs[last].to <= n.from {
		if joins(&l.runs[last], &n) {
			l.runs[last].to = n.to
			return
		}
		l.push(n)
		return
	}
	i := l.search(n.from)
	if i == len(l.runs) {
		l.push(n)
		return
	}
	l.runs = slices.Insert(l.runs, i, n)
	l.join(i, i+1)
}

// push appends, and reuses the room in front before it takes more.
func (l *leases) push(n lease) {
	if len(l.runs) == cap(l.runs) && l.head > 0 {
		l.runs = l.runs[:copy(l.runs, l.runs[l.head:])]
		l.head = 0
	}
	l.runs = append(l.runs, n)
}

// cut makes o a border of runs and returns the place of the first run at or above it.
func (l *leases) cut(o wire.Offset) int {
	i := l.search(o)
	if i == len(l.runs) || l.runs[i].from >= o {
		return i
	}
	low := l.runs[i]
	low.to = o
	l.runs[i].begin(o)
	if i == l.head && l.head > 0 {
		l.head--
		l.runs[l.head] = low
		return i
	}
	l.runs = slices.Insert(l.runs, i, low)
	return i + 1
}

// change applies f to everything held in [from, to).
func (l *leases) change(from, to wire.Offset, f func(*lease)) {
	i := l.search(from)
	if i < len(l.runs) && l.runs[i].from == from && l.runs[i].to == to { // the usual case
		f(&l.runs[i])
		l.join(i, i+1)
		return
	}
	l.cut(from)
	l.cut(to)
	i, j := l.search(from), l.search(to)
	for k := i; k < j; k++ {
		f(&l.runs[k])
	}
	l.join(i, j)
}

// remove drops everything held in [from, to).
func (l *leases) remove(from, to wire.Offset) {
	l.cut(from)
	l.cut(to)
	i, j := l.search(from), l.search(to)
	switch {
	case i == j:
		return
	case i == l.head:
		l.head = j
	default:
		l.runs = slices.Delete(l.runs, i, j)
	}
	if l.head == len(l.runs) {
		l.runs, l.head = l.runs[:0], 0
	}
}

// removeAll drops everything held in any of the spans, which ascend and do not overlap. It
// passes over the runs once.
func (l *leases) removeAll(spans []Span) {
	if len(spans) == 1 {
		l.remove(spans[0].From, spans[0].To)
		return
	}
	i := l.search(spans[0].From)
	rest := append(l.scratch[:0], l.runs[i:]...)
	l.scratch = rest
	l.runs = l.runs[:i]
	for len(rest) > 0 {
		r := &rest[0]
		for len(spans) > 0 && spans[0].To <= r.from {
			spans = spans[1:]
		}
		if len(spans) == 0 {
			l.runs = append(l.runs, rest...)
			break
		}
		s := spans[0]
		if r.from < s.From { // what lies before the span stays
			before := *r
			before.to = min(r.to, s.From)
			l.runs = append(l.runs, before)
		}
		if r.to > s.To {
			r.begin(max(r.from, s.To))
		} else {
			rest = rest[1:]
		}
	}
	if l.head == len(l.runs) {
		l.runs, l.head = l.runs[:0], 0
	}
}

// join merges alike neighbours among the runs [i-1, j].
func (l *leases) join(i, j int) {
	i, j = max(i-1, l.head), min(j, len(l.runs)-1)
	write := i
	for k := i + 1; k <= j; k++ {
		if joins(&l.runs[write], &l.runs[k]) {
			l.runs[write].to = l.runs[k].to
			continue
		}
		write++
		l.runs[write] = l.runs[k]
	}
	if write < j {
		l.runs = slices.Delete(l.runs, write+1, j+1)
	}
}

func joins(a, b *lease) bool {
	return a.to == b.from && a.epoch == b.epoch && a.order+uint64(a.to-a.from) == b.order && a.state == b.state && a.revoked == b.revoked && a.since == b.since && a.until == b.until
}
