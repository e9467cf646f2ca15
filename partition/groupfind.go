package partition

import (
	"encoding/binary"
	"slices"

	"github.com/lockstepmq/lockstep/partition/group"
	"github.com/lockstepmq/lockstep/wire"
)

const (
	// findRecords is how many records one turn looks at for those that Leaders ask for.
	findRecords = 32 << 10
	// findFar is how far away the next record of a scope may be before a reader looks for
	// it alone, and findFew how many scopes may be looked for then: more of them are found
	// faster by reading everything once.
	findFar = 4 * ScanRecords
	findFew = 64
	// findAtOnce is how many records of a scope one search brings.
	findAtOnce = 8
)

// search looks for the next records of the scopes of one group, of all at once: it sweeps
// over the feed from the lowest record that somebody asks for to the highest, so that with
// many keys a record is looked at once, and not once for each of them. Who asks for
// something behind the sweep waits for the next one. Owner only.
//
//	from of each swept find ≤ pos ≤ limit
type search struct {
	finds map[group.Scope]*find
	asked []*find // the same in the order in which they came, and some that are told
	// publisher says that the hashes are those of publishers, and not of keys.
	publisher bool
	pos       wire.Offset
	limit     wire.Offset
	some      []*find // that have found something in this turn
	listed    bool    // in Groups.searches
	// told takes what was found: all records of the scope up to upTo that are not done, of which the
	// last one may be another's if it is damaged.
	told func(what group.Find, found []wire.Offset, upTo wire.Offset)
}

// find is what is asked for one scope.
type find struct {
	what  group.Find
	from  wire.Offset
	swept bool // the sweep has not passed from when it was asked
	found [findAtOnce]wire.Offset
	n     int
}

// ask adds what a Leader asks for.
func (s *search) ask(what group.Find) {
	if s.finds == nil {
		s.finds = make(map[group.Scope]*find)
	}
	if len(s.finds) == 0 {
		s.pos, s.limit = what.After+1, what.After+1
	}
	s.publisher = what.Publisher
	f := &find{what: what, from: what.After + 1}
	if f.swept = f.from >= s.pos; f.swept {
		s.limit = max(s.limit, what.Below)
	}
	s.finds[what.Scope] = f
	if len(s.asked) > 2*len(s.finds)+findFew {
		s.asked = slices.DeleteFunc(s.asked, func(f *find) bool { return !s.is(f) })
	}
	s.asked = append(s.asked, f)
}

// is reports whether a find is still to be told.
func (s *search) is(f *find) bool { return s.finds[f.what.Scope] == f }

// again begins a sweep of everything that is asked for.
func (s *search) again() {
	s.pos, s.limit = ^wire.Offset(0), 0
	for _, f := range s.asked {
		f.swept = true
		s.pos, s.limit = min(s.pos, f.from), max(s.limit, f.what.Below)
	}
}

// findOutcome says how a sweep has stopped.
type findOutcome uint8

const (
	findDone    findOutcome = iota // nothing is asked for any more
	findUnknown                    // nobody has looked at what is next
	findTired                      // the budget is used up
)

// tell takes out a find and hands on what it has found up to upTo.
func (s *search) tell(f *find, upTo wire.Offset) {
	delete(s.finds, f.what.Scope)
	s.told(f.what, f.found[:f.n], upTo)
}

// note takes in a record, and tells when that is enough of its scope.
func (s *search) note(f *find, o wire.Offset) {
	if f.n == 0 {
		s.some = append(s.some, f)
	}
	f.found[f.n] = o
	if f.n++; f.n == findAtOnce {
		s.tell(f, o)
	}
}

// sweep goes on as far as it can, and tells what was found.
func (s *search) sweep(feed *feed, start wire.Offset, done func(wire.Offset) bool, budget *int) findOutcome {
	for {
		outcome := s.pass(feed, start, done, budget)
		for _, f := range s.some {
			if s.is(f) {
				s.tell(f, min(s.pos, f.what.Below)-1)
			}
		}
		clear(s.some)
		s.some = s.some[:0]
		if outcome != findDone {
			return outcome
		}
		for _, f := range s.asked {
			if f.swept && s.is(f) {
				s.tell(f, f.what.Below-1)
			}
		}
		s.asked = slices.DeleteFunc(s.asked, func(f *find) bool { return !s.is(f) })
		if len(s.finds) == 0 {
			return findDone
		}
		s.again()
	}
}

// pass looks at the records up to the limit.
func (s *search) pass(feed *feed, start wire.Offset, done func(wire.Offset) bool, budget *int) findOutcome {
	for s.pos = max(s.pos, start); s.pos < s.limit && len(s.finds) > 0; {
		p, ok := feed.At(s.pos)
		switch {
		case !ok:
			return findUnknown
		case *budget <= 0:
			return findTired
		}
		end := min(s.limit, p.Next())
		*budget--
		if p.Damaged {
			s.meet(s.pos, end, done)
			s.pos = end
			continue
		}
		for o := s.pos; o < end; o++ {
			*budget--
			hash := p.Publisher
			if !s.publisher {
				if len(p.Index) == 0 {
					break
				}
				hash = binary.LittleEndian.Uint64(p.Index[(o-p.Base)*wire.RecordIndexEntrySize:])
			}
			if f := s.finds[group.Scope(hash)]; f != nil && f.swept && o >= f.from && o < f.what.Below && !done(o) {
				s.note(f, o)
			}
		}
		s.pos = end
	}
	return findDone
}

// meet takes in records of a damaged batch: whose they are is not known, so that each scope stops
// at the first one, which may be its own.
func (s *search) meet(from, to wire.Offset, done func(wire.Offset) bool) {
	next := func(o wire.Offset) wire.Offset {
		for o < to && done(o) {
			o++
		}
		return o
	}
	if from = next(from); from == to { // once for all that began below
		return
	}
	for _, f := range s.asked {
		if !f.swept || !s.is(f) {
			continue
		}
		o := from
		if f.from > o {
			o = next(f.from)
		}
		if o < min(to, f.what.Below) {
			if s.note(f, o); s.is(f) {
				s.tell(f, o)
			}
		}
	}
}

// find looks in the feed for the records that Leaders ask for, as far as one turn may, and
// reports whether it found some. What the feed does not know is scanned, which serves many
// scopes at once; who has to look far is answered by a reader alone.
func (g *Groups) find() (some bool) {
	if !g.looking {
		return false
	}
	g.looking = false
	budget := findRecords
	keep := g.searches[:0]
	for _, l := range g.searches {
		s := &l.search
		if s.listed = !l.closed && len(s.finds) > 0; !s.listed {
			continue
		}
		before := len(s.finds)
		outcome := s.sweep(&g.feed, g.p.state.start, l.group.Done.Has, &budget)
		if len(s.finds) < before {
			g.wake(l)
			some = true
		}
		switch outcome {
		case findTired:
			g.looking = true
		case findUnknown:
			g.findAlone(l)
			if len(s.finds) > 0 && !g.scanning {
				g.scans = append(g.scans, s.pos)
			}
		}
		if s.listed = len(s.finds) > 0; s.listed {
			keep = append(keep, l)
		}
	}
	clear(g.searches[len(keep):])
	g.searches = keep
	return some
}

// findAlone has readers look for what lies far away, if that is not much.
func (g *Groups) findAlone(l *lead) {
	s := &l.search
	if len(s.finds) > findFew {
		return
	}
	var done func(wire.Offset) bool
	for _, f := range s.asked {
		if w := &f.what; f.swept && s.is(f) && s.pos-min(s.pos, w.After) > findFar {
			if done == nil {
				set := l.group.Done.Clone()
				done = set.Has
			}
			delete(s.finds, w.Scope)
			g.effects.NextOf(l.group.ID, w.Scope, w.Publisher, w.After, w.Below, done)
		}
	}
}
