package group

import (
	"slices"

	"github.com/lockstepmq/lockstep/wire"
)

// finishedSteps bounds what one call of Finished looks at.
const finishedSteps = 16 << 10

// Finished lists runs of records from an offset on that all groups of a queue are done with,
// in ascending order: nobody is given them again unless an operator wants it. A dead letter
// that is not written yet is not done. next is where another call goes on; it is 0 behind
// the last record. Of a partition without groups, or of a topic, nothing is finished.
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
	for steps := 0; from < s.next; steps += len(s.byID) {
		if steps >= finishedSteps {
			return runs, from
		}
		to := s.next
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

// StillFinished drops the runs of which a group is not done with everything, since a seek,
// or because it is new.
func (s *State) StillFinished(runs []Span) (kept []Span) {
	letters := s.letters()
	for _, r := range runs {
		at, _ := slices.BinarySearch(letters, r.From)
		done := len(s.byID) > 0 && (at == len(letters) || letters[at] >= r.To)
		for _, g := range s.byID {
			done = done && g.Queue && g.Done.Next(r.From) >= r.To
		}
		if done {
			kept = append(kept, r)
		}
	}
	return kept
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
