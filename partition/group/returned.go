package group

import (
	"slices"

	"github.com/google/btree"

	"github.com/lockstepmq/lockstep/wire"
)

// Limits of what a group remembers of records that were taken back.
const (
	// MaxReturned bounds the runs of unfinished records that were taken back. Beyond it
	// the half that was taken back first is forgotten: those are delivered as if it were
	// not known how often they have been.
	MaxReturned = 1 << 20
	// MaxSettled bounds the runs of finished records whose fence is still kept. Beyond
	// it the half with the lowest fences is forgotten.
	MaxSettled = 1 << 16
)

// Returned is what is known of a record that was given and taken back.
type Returned struct {
	Deliveries uint16     // so far
	Attempts   uint16     // so far: how often it was the head of what was taken back
	DelayMs    uint32     // how long it rests after it was taken back
	Fence      wire.Index // of the last time it was taken back
	InDoubt    bool       // Deliveries is "at least"; not in what is stored
}

// run is a stretch of records [from, to) of which the same is known.
type run struct {
	from, to wire.Offset
	Returned
	// taken are the sessions that the records were taken from and that may not know
	// it. Nil for none; it is never changed.
	taken *[]Session
}

func (r *run) equals(o *run) bool {
	if r.Returned != o.Returned || (r.taken == nil) != (o.taken == nil) {
		return false
	}
	return r.taken == o.taken || slices.Equal(*r.taken, *o.taken)
}

// runs are stretches of records that do not overlap. Neighbours differ.
type runs struct {
	tree *btree.BTreeG[run]
	end  wire.Offset // of the last one: most records that are given out lie behind it
}

func newRuns() runs {
	return runs{tree: btree.NewG(32, func(a, b run) bool { return a.from < b.from })}
}

// snapshot returns the same runs, for another goroutine, however r goes on.
func (r *runs) snapshot() runs {
	if r.tree == nil {
		return runs{}
	}
	return runs{tree: r.tree.Clone(), end: r.end}
}

func (r *runs) len() int {
	if r.tree == nil {
		return 0
	}
	return r.tree.Len()
}

// at returns the run that holds o.
func (r *runs) at(o wire.Offset) (found run, ok bool) {
	if o >= r.end {
		return found, false
	}
	return r.find(o)
}

// find is at for what does not lie behind the end: it allocates what it returns.
func (r *runs) find(o wire.Offset) (found run, ok bool) {
	r.tree.DescendLessOrEqual(run{from: o}, func(x run) bool {
		found, ok = x, o < x.to
		return false
	})
	return found, ok
}

// all yields what lies in [from, to), cut to it.
func (r *runs) all(from, to wire.Offset, yield func(run) bool) {
	if r.tree == nil || from >= to {
		return
	}
	if x, ok := r.at(from); ok && x.from < from {
		x.from, x.to = from, min(x.to, to)
		if !yield(x) {
			return
		}
	}
	r.tree.AscendRange(run{from: from}, run{from: to}, func(x run) bool {
		x.to = min(x.to, to)
		return yield(x)
	})
}

// cut removes what lies in [from, to) and returns it, appended to dst.
func (r *runs) cut(dst []run, from, to wire.Offset) []run {
	n := len(dst)
	r.all(from, to, func(x run) bool {
		dst = append(dst, x)
		return true
	})
	for i := n; i < len(dst); i++ {
		x := &dst[i]
		// The run that the piece is of may reach beyond it, on either side.
		whole, _ := r.at(x.from)
		r.tree.Delete(whole)
		if whole.from < x.from {
			left := whole
			left.to = x.from
			r.tree.ReplaceOrInsert(left)
		}
		if x.to < whole.to {
			right := whole
			right.from = x.to
			r.tree.ReplaceOrInsert(right)
		}
	}
	if len(dst) > n {
		r.ends()
	}
	return dst
}

// ends finds the end again after runs were removed.
func (r *runs) ends() {
	last, _ := r.tree.Max()
	r.end = last.to
}

// put adds a run where none is, and joins it with neighbours that are equal.
func (r *runs) put(x run) {
	if x.from >= x.to {
		return
	}
	if r.tree == nil {
		*r = newRuns()
	}
	if x.from > 0 {
		if left, ok := r.at(x.from - 1); ok && left.equals(&x) {
			r.tree.Delete(left)
			x.from = left.from
		}
	}
	if right, ok := r.at(x.to); ok && right.equals(&x) {
		r.tree.Delete(right)
		x.to = right.to
	}
	r.tree.ReplaceOrInsert(x)
	r.end = max(r.end, x.to)
}

// shed removes the half with the lowest fences, and returns the highest fence that it
// removed.
func (r *runs) shed() wire.Index {
	fences := make([]wire.Index, 0, r.len())
	r.tree.Ascend(func(x run) bool {
		fences = append(fences, x.Fence)
		return true
	})
	slices.Sort(fences)
	limit := fences[len(fences)/2]
	r.keep(func(x *run) bool { return x.Fence > limit })
	return limit
}

// keep removes all runs but those that want says.
func (r *runs) keep(want func(*run) bool) {
	if r.tree == nil {
		return
	}
	var drop []run
	r.tree.Ascend(func(x run) bool {
		if !want(&x) {
			drop = append(drop, x)
		}
		return true
	})
	for _, x := range drop {
		r.tree.Delete(x)
	}
	r.ends()
}

// take notes that records were taken back from a session by the entry at i: those of
// them that are not done. The session is nil if it needs no fence: it is no longer
// listed.
func (g *Group) take(i wire.Index, r *Return, session *[]Session) {
	g.Done.unfinished(r.From, r.To, func(from, to wire.Offset) {
		g.pieces = g.returned.cut(g.pieces[:0], from, to)
		value := Returned{Deliveries: r.Deliveries, Attempts: r.Attempts, DelayMs: r.DelayMs, Fence: i}
		for k := range g.pieces {
			x := &g.pieces[k]
			g.returned.put(run{from: from, to: x.from, Returned: value, taken: session})
			g.returned.put(run{from: x.from, to: x.to, Returned: value, taken: g.also(x.taken, session)})
			from = x.to
		}
		g.returned.put(run{from: from, to: to, Returned: value, taken: session})
	})
	if g.returned.len() > MaxReturned {
		g.Forgotten = max(g.Forgotten, g.returned.shed())
		g.Doubt = max(g.Doubt, g.Horizon)
	}
}

// also joins two sets of sessions that records were taken from; those that are not
// listed any more need no fence.
func (g *Group) also(old, session *[]Session) *[]Session {
	listed := g.listed(old)
	switch {
	case listed == nil:
		return session
	case session == nil:
		return listed
	}
	both := *listed
	for _, s := range *session {
		if !slices.Contains(both, s) {
			both = append(slices.Clip(both), s)
		}
	}
	return &both
}

// listed is what is left of a set of sessions, nil if nothing.
func (g *Group) listed(taken *[]Session) *[]Session {
	if taken == nil {
		return nil
	}
	gone := func(s Session) bool { return g.Sessions[s] == nil }
	if !slices.ContainsFunc(*taken, gone) {
		return taken
	}
	left := slices.DeleteFunc(slices.Clone(*taken), gone)
	if len(left) == 0 {
		return nil
	}
	return &left
}

// settle notes that records are done: their counts are forgotten, their fences kept for
// those sessions that may still bring an outcome of a lease they have lost.
func (g *Group) settle(from, to wire.Offset) {
	if g.returned.len() == 0 {
		return
	}
	g.pieces = g.returned.cut(g.pieces[:0], from, to)
	for k := range g.pieces {
		x := &g.pieces[k]
		if taken := g.listed(x.taken); taken != nil {
			g.settled.put(run{from: x.from, to: x.to, Returned: Returned{Fence: x.Fence}, taken: taken})
			g.sweep()
		}
	}
}

// sweep drops fences that nobody needs, now and then, and the lowest if there are too
// many. When it does depends on nothing but how many there are.
func (g *Group) sweep() {
	n := g.settled.len()
	if n < 64 || n&(n-1) != 0 {
		return
	}
	g.settled.keep(func(x *run) bool { return g.listed(x.taken) != nil })
	if g.settled.len() >= MaxSettled {
		g.Forgotten = max(g.Forgotten, g.settled.shed())
	}
}

// seen notes that a session knows that it has lost records.
func (g *Group) seen(session Session, from, to wire.Offset) {
	without := func(taken *[]Session) *[]Session {
		if taken == nil || !slices.Contains(*taken, session) {
			return taken
		}
		if len(*taken) == 1 {
			return nil
		}
		left := slices.DeleteFunc(slices.Clone(*taken), func(s Session) bool { return s == session })
		return &left
	}
	g.pieces = g.returned.cut(g.pieces[:0], from, to)
	for _, x := range g.pieces {
		x.taken = without(x.taken)
		g.returned.put(x)
	}
	g.pieces = g.settled.cut(g.pieces[:0], from, to)
	for _, x := range g.pieces {
		if x.taken = without(x.taken); x.taken != nil {
			g.settled.put(x)
		}
	}
}

// Record returns what is known of the unfinished record at o; false means that it was
// never taken back, and Deliveries is 0. In doubt it may have been delivered more often.
func (g *Group) Record(o wire.Offset) (r Returned, ok bool) {
	x, ok := g.returned.at(o)
	if ok {
		r = x.Returned
	}
	r.InDoubt = o < g.Doubt
	return r, ok
}

// Returned yields the unfinished records of [from, to) that were taken back, as runs
// [from, to) of which the same is known, in ascending order.
func (g *Group) Returned(from, to wire.Offset, yield func(from, to wire.Offset, r Returned) bool) {
	g.returned.all(from, to, func(x run) bool {
		if x.from < g.Doubt && g.Doubt < x.to {
			sure := x
			sure.from, x.to = g.Doubt, g.Doubt
			x.InDoubt = true
			return yield(x.from, x.to, x.Returned) && yield(sure.from, sure.to, sure.Returned)
		}
		x.InDoubt = x.from < g.Doubt
		return yield(x.from, x.to, x.Returned)
	})
}

// FenceOf is what the epoch of a lease on the record at o must not be below, done or
// not, as far as it is known (see Forgotten).
func (g *Group) FenceOf(o wire.Offset) wire.Index {
	fence := g.Fence
	if x, ok := g.returned.at(o); ok {
		fence = max(fence, x.Fence)
	}
	if x, ok := g.settled.at(o); ok {
		fence = max(fence, x.Fence)
	}
	return fence
}

// Late is the answer to an outcome of the record at o, below the end, under a lease that
// the session does not hold (any more) since the epoch.
func (g *Group) Late(o wire.Offset, epoch wire.Index) wire.ErrorCode {
	fence := g.FenceOf(o)
	done := g.Done.Has(o)
	switch {
	case epoch < fence:
		return wire.CodeStaleEpoch
	case epoch < g.Forgotten && done:
		return wire.CodeAlreadyDone
	case epoch < g.Forgotten:
		return wire.CodeStaleEpoch
	case done:
		return wire.CodeOK
	}
	return wire.CodeNotOwner
}
