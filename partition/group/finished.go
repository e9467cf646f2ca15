package group

import (
	"slices"

	"github.com/lockstepmq/lockstep/wire"
)

// finishedSteps bounds what one call of Finished or Erased looks at.
const finishedSteps = 16 << 10

// Finished lists runs of records from an offset on that all groups of a queue are done with,
// and that are not erased, in ascending order: nobody is given them again unless an operator
// wants it. A dead letter that is not written yet is not done. next is where another call
// goes on; it is 0 behind the last record. Of a partition without groups, or of a topic,
// nothing is finished.
func (s *State) Finished(from wire.Offset) (runs []Span, next wire.Offset) {
	for _, g := range s.byID {
		if !g.Queue {
			return nil, 0
		}
	}
	if len(s.byID) == 0 {
		return nil, 0
	}
	from = max(from, s.start)
	letters := s.letters()
	for steps := 0; from < s.next; steps += 1 + len(s.byID) {
		if steps >= finishedSteps {
			return runs, from
		}
		if at := min(s.erased.Next(from), s.next); at > from {
			from = at
			continue
		}
		to := s.erased.Following(from, s.next)
		skipped := false
		for _, g := range s.byID {
			if at := g.Done.Following(from, s.next); at > from {
				from, skipped = at, true
			}
		}
		if at, _ := slices.BinarySearch(letters, from); at < len(letters) {
			if letters[at] == from {
				from, skipped = from+1, true
			} else {
				to = min(to, letters[at])
			}
		}
		if skipped {
			continue // somebody may not be done with what lies there now
		}
		for _, g := range s.byID {
			to = min(to, g.Done.Next(from))
		}
		runs = append(runs, Span{From: from, To: to})
		from = to
	}
	return runs, 0
}

// finished reports whether all groups, and there are some, are done with a run. After it
// was proposed that it is erased a group may have been made or moved back to it.
func (s *State) finished(r Span, letters []wire.Offset) bool {
	at, _ := slices.BinarySearch(letters, r.From)
	done := len(s.byID) > 0 && s.start <= r.From && r.To <= s.next && (at == len(letters) || letters[at] >= r.To)
	for _, g := range s.byID {
		done = done && g.Queue && g.Done.Next(r.From) >= r.To
	}
	return done
}

// Erase notes that replicas may give the records of runs back, of each if all groups are done
// with it. From then on they are done for groups that are made, or moved back, later, whichever
// replica leads: some may still have the records, and others not.
func (s *State) Erase(runs ...Span) {
	letters := s.letters()
	for _, r := range runs {
		if s.finished(r, letters) || s.erasesAll {
			s.erased.Add(r.From, r.To)
		}
	}
}

// Erased lists the runs from an offset on that replicas may give back, in ascending order;
// none touches another. next is where another call goes on, 0 behind the last run.
func (s *State) Erased(from wire.Offset) (runs []Span, next wire.Offset) {
	from = s.erased.Following(max(from, s.start), s.next)
	for steps := 0; from < s.next; steps++ {
		if steps == finishedSteps {
			return runs, from
		}
		to := min(s.erased.Next(from), s.next)
		runs = append(runs, Span{From: from, To: to})
		from = s.erased.Following(to, s.next)
	}
	return runs, 0
}

// HasErased reports whether something is erased behind the start.
func (s *State) HasErased() bool { return s.erased.Floor() > s.start || s.erased.Above() > 0 }

// settleErased makes a group done with what is erased.
func (s *State) settleErased(g *Group) {
	g.Done.Raise(min(s.erased.Floor(), s.next))
	for from, to := range s.erased.Runs() {
		g.Done.Add(from, to)
	}
}

// settleRedriven makes a group that begins done with the dead letters that another one, which
// may be removed, has on their way back: else they would go back again by this one.
func (s *State) settleRedriven(g *Group) {
	for _, other := range s.byID {
		for _, l := range other.Letters.Open {
			if l.Reason == Redriven {
				g.Done.Add(l.Offset, l.Offset+1)
			}
		}
	}
}

// redriven erases a dead letter that went back or was given up, if all groups are done with it:
// the group that sent it may be removed before the start of the partition has come so far, and
// one that is made then must not have it.
func (s *State) redriven(l *Letter) {
	if l.Reason != Redriven || l.Offset < s.start || l.Offset >= s.next {
		return
	}
	for _, g := range s.byID {
		if !g.Queue || !g.Done.Has(l.Offset) || g.Redrives(l.Offset) {
			return
		}
	}
	s.erased.Add(l.Offset, l.Offset+1)
}

// letters are the records, ascending, of which a dead letter is still to be written: after a
// seek the groups may be done with them all the same.
func (s *State) letters() (all []wire.Offset) {
	for _, g := range s.byID {
		for _, l := range g.Letters.Open {
			all = append(all, l.Offset)
		}
	}
	slices.Sort(all)
	return all
}
