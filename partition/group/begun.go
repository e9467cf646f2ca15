package group

import (
	"sort"

	"github.com/lockstepmq/lockstep/wire"
)

// A consumer holds more records than it works on. What it had not begun when it died, or
// when its time was over, has not failed: else a consumer that crashes on one record takes
// those that it had only prefetched to the dead letters (decision 25). It says how many it
// works on at once, at most, and begins with those that it was given first.

// begun is what a session may have begun to work on: what lies before a place in the order in
// which it was given its records.
type begun struct {
	all   bool
	epoch wire.Index
	order uint64
}

// lease takes in records that a session is given.
func (m *member) lease(n lease) {
	n.order = m.given
	m.given += uint64(n.to - n.from)
	m.leases.add(n)
}

// begun finds out what of that which a session holds it may have begun.
func (m *member) begun() begun {
	if m.working == 0 {
		return begun{all: true}
	}
	runs := m.leases.held(0)
	sort.Slice(runs, func(i, j int) bool { return runs[i].before(runs[j].epoch, runs[j].order) })
	left := m.working
	for _, r := range runs {
		if n := int(r.to - r.from); n < left {
			left -= n
			continue
		}
		return begun{epoch: r.epoch, order: r.order + uint64(left)}
	}
	return begun{all: true}
}

// before reports whether the first record of the run was given before another one. Epochs
// come first: a session has those of an earlier leader, too, which has counted by itself.
func (r *lease) before(epoch wire.Index, order uint64) bool {
	return r.epoch < epoch || r.epoch == epoch && r.order < order
}

// end is behind the last record of a run that may have begun: its first ones may have.
func (b begun) end(r *lease) wire.Offset {
	switch {
	case b.all || r.epoch < b.epoch:
		return r.to
	case !r.before(b.epoch, b.order):
		return r.from
	}
	return min(r.to, r.from+wire.Offset(b.order-r.order))
}
