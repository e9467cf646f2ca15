package partition

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/log"
	"github.com/lockstepmq/lockstep/partition/group"
	"github.com/lockstepmq/lockstep/wire"
)

// searcher is a search and what it tells.
type searcher struct {
	search
	feed  feed
	tells []string
}

func newSearcher() *searcher {
	s := &searcher{}
	s.feed.use(true)
	s.told = func(what group.Find, found []wire.Offset, upTo wire.Offset) {
		s.tells = append(s.tells, fmt.Sprintf("%d: %v up to %d", what.Scope, found, upTo))
	}
	return s
}

// go on with the sweep and return what it tells.
func (s *searcher) on(start wire.Offset, done func(wire.Offset) bool, budget int) (findOutcome, []string) {
	s.tells = nil
	outcome := s.sweep(&s.feed, start, done, &budget)
	return outcome, s.tells
}

func never(wire.Offset) bool { return false }

func TestASearchFindsTheRecordsOfAllScopesAtOnce(t *testing.T) {
	s := newSearcher()
	var batches []log.Batch
	for b := range wire.Offset(10) { // 10 records with the keys 1 to 10 in each batch
		index := make([]byte, 10*wire.RecordIndexEntrySize)
		for i := range 10 {
			index[i*wire.RecordIndexEntrySize] = byte(i + 1)
		}
		batches = append(batches, log.Batch{Base: 10 * b, Count: 10, Publisher: uint64(100 + b%2), Index: index})
	}
	s.feed.scanned(batches)
	for _, f := range []group.Find{{Scope: 3, After: 5, Below: 60}, {Scope: 4, After: 33, Below: 60}, {Scope: 77, After: 10, Below: 50}} {
		s.ask(f)
	}
	outcome, tells := s.on(0, func(o wire.Offset) bool { return o == 22 }, 1000)
	require.Equal(t, findDone, outcome)
	require.Equal(t, []string{"3: [12 32 42 52] up to 59", "4: [43 53] up to 59", "77: [] up to 49"}, tells)

	// Eight are enough; the rest is asked for again, and what lies behind the sweep waits.
	s.ask(group.Find{Scope: 3, After: 0, Below: 100})
	outcome, tells = s.on(0, never, 1000)
	require.Equal(t, findDone, outcome)
	require.Equal(t, []string{"3: [2 12 22 32 42 52 62 72] up to 72"}, tells)

	// A turn looks at so many; what it has found by then is told.
	s.ask(group.Find{Scope: 5, After: 9, Below: 100})
	s.ask(group.Find{Scope: 6, After: 9, Below: 100})
	outcome, tells = s.on(0, never, 15)
	require.Equal(t, findTired, outcome)
	require.Equal(t, []string{"5: [14 24] up to 29", "6: [15 25] up to 29"}, tells)
	s.ask(group.Find{Scope: 5, After: 29, Below: 100})
	s.ask(group.Find{Scope: 7, After: 10, Below: 100})
	outcome, tells = s.on(0, never, 25)
	require.Equal(t, findTired, outcome)
	require.Equal(t, []string{"5: [34 44 54] up to 59"}, tells)
	outcome, tells = s.on(0, never, 1000)
	require.Equal(t, findDone, outcome)
	require.Equal(t, []string{"7: [16 26 36 46 56 66 76 86] up to 86"}, tells)

	// What nobody has looked at is asked for; retention moves the beginning.
	s.ask(group.Find{Scope: 8, After: 50, Below: 120})
	outcome, tells = s.on(85, never, 1000)
	require.Equal(t, findUnknown, outcome)
	require.Equal(t, []string{"8: [87 97] up to 99"}, tells)

	s.ask(group.Find{Scope: 101, Publisher: true, After: 50, Below: 72})
	outcome, tells = s.on(0, never, 1000)
	require.Equal(t, findDone, outcome)
	require.Equal(t, []string{"101: [51 52 53 54 55 56 57 58] up to 58"}, tells)
}

// RULES L8: nobody knows whose damaged records are, so that a scope stops at the first that may be its own, and
// finds nothing behind it.
func TestRuleL8_ASearchStopsAtADamagedRecord(t *testing.T) {
	s := newSearcher()
	index := make([]byte, 2*wire.RecordIndexEntrySize)
	index[0], index[wire.RecordIndexEntrySize] = 1, 2
	s.feed.scanned([]log.Batch{{Base: 0, Count: 2, Index: index}, {Base: 2, Count: 3, Damaged: true}, {Base: 5, Count: 2, Index: index}})
	for _, f := range []group.Find{{Scope: 1, After: 0, Below: 7}, {Scope: 2, After: 0, Below: 7}, {Scope: 3, After: 3, Below: 7}, {Scope: 4, After: 4, Below: 7}, {Scope: 5, After: 0, Below: 3}} {
		s.ask(f)
	}
	outcome, tells := s.on(0, func(o wire.Offset) bool { return o == 2 }, 1000)
	require.Equal(t, findDone, outcome)
	require.Equal(t, []string{"1: [3] up to 3", "2: [1 3] up to 3", "3: [4] up to 4", "4: [] up to 6", "5: [] up to 2"}, tells)
}

// What is told and asked for again within one long sweep does not pile up.
func TestASearchIsBoundedByTheScopesItIsFor(t *testing.T) {
	s := newSearcher()
	for n := range wire.Offset(10_000) {
		s.ask(group.Find{Scope: group.Scope(n % 5), After: n, Below: 20_000})
		delete(s.finds, group.Scope(n%5))
	}
	require.LessOrEqual(t, len(s.asked), findFew+10)
}
