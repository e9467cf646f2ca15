package log

import (
	"sort"

	"github.com/lockstepmq/lockstep/segment"
	"github.com/lockstepmq/lockstep/wire"
)

// terms maps indexes to terms: one run for each change of term, ascending in
// both. Terms change at elections, so there are few.
type terms []segment.TermRun

// add enters the term of the next entry.
func (t *terms) add(i wire.Index, term wire.Term) {
	if n := len(*t); n == 0 || (*t)[n-1].Term != term {
		*t = append(*t, segment.TermRun{From: i, Term: term})
	}
}

// truncate forgets the entries from i on.
func (t *terms) truncate(i wire.Index) {
	n := sort.Search(len(*t), func(k int) bool { return (*t)[k].From >= i })
	*t = (*t)[:n]
}

// trim forgets the entries below i.
func (t *terms) trim(i wire.Index) {
	n := sort.Search(len(*t), func(k int) bool { return (*t)[k].From > i })
	if n == 0 {
		return
	}
	kept := append(terms(nil), (*t)[n-1:]...)
	kept[0].From = max(kept[0].From, i)
	*t = kept
}

// at returns the term of entry i, which must not lie before the first run.
func (t terms) at(i wire.Index) wire.Term {
	n := sort.Search(len(t), func(k int) bool { return t[k].From > i })
	return t[n-1].Term
}

// within copies the runs of [base, next).
func (t terms) within(base, next wire.Index) []segment.TermRun {
	var out []segment.TermRun
	for k, r := range t {
		if r.From >= next {
			break
		}
		if k+1 < len(t) && t[k+1].From <= base {
			continue
		}
		out = append(out, segment.TermRun{From: max(r.From, base), Term: r.Term})
	}
	return out
}
