package group

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/wire"
)

// What may be erased is what every group of a queue is done with, and nothing of a topic.
func TestFinishedIsWhatAllGroupsAreDoneWith(t *testing.T) {
	s := NewState()
	s.Appended(100)
	runs, next := s.Finished(0)
	require.Empty(t, runs, "there is no group")
	require.Zero(t, next)

	add := func(id ID, queue bool, done ...Span) *Group {
		g := newGroup(id, string(rune('a'+id)))
		g.Queue = queue
		for _, d := range done {
			g.Done.Add(d.From, d.To)
		}
		s.byID[id] = g
		return g
	}
	add(1, true, Span{10, 40}, Span{50, 60}, Span{90, 100})
	runs, _ = s.Finished(0)
	require.Equal(t, []Span{{10, 40}, {50, 60}, {90, 100}}, runs)
	runs, _ = s.Finished(55)
	require.Equal(t, []Span{{55, 60}, {90, 100}}, runs)

	other := add(2, true, Span{20, 55}, Span{95, 100})
	runs, _ = s.Finished(0)
	require.Equal(t, []Span{{20, 40}, {50, 55}, {95, 100}}, runs)
	for r, finished := range map[Span]bool{{10, 40}: false, {30, 40}: true, {39, 41}: false, {96, 100}: true, {96, 101}: false} {
		require.Equal(t, finished, s.finished(r, s.letters()), "%v", r)
	}
	other.Done = Done{} // it was moved back
	require.False(t, s.finished(Span{20, 40}, s.letters()))
	runs, _ = s.Finished(0)
	require.Empty(t, runs)

	delete(s.byID, 2)
	add(3, false, Span{0, 100})
	runs, _ = s.Finished(0)
	require.Empty(t, runs, "a topic is nobody's to erase")
	require.False(t, s.finished(Span{10, 40}, s.letters()))
}

// What is erased is done for whoever comes later, also behind a restart: a replica that gave
// it back cannot give it to anybody, one that still has it must not.
func TestRuleL7_WhatIsErasedIsDoneForGroupsThatComeLater(t *testing.T) {
	b := newBook(t, 200_000)
	b.group(1, PutQueue)
	b.apply(AppendOutcomes(nil, 1, []Span{{1, 100}, {150, 190_000}}, nil))
	runs, _ := b.Finished(0)
	require.Equal(t, []Span{{1, 100}, {150, 190_000}}, joined(runs))
	b.Erase(Span{1, 50})
	b.Erase(Span{150, 170_000})
	b.Erase(Span{95, 105})          // not all of it is done
	b.Erase(Span{199_000, 300_000}) // nor is there so much
	again := func(s *State) {
		t.Helper()
		erased, next := s.Erased(0)
		require.Equal(t, []Span{{1, 50}, {150, 170_000}}, erased)
		require.Zero(t, next)
		erased, _ = s.Erased(40)
		require.Equal(t, []Span{{40, 50}, {150, 170_000}}, erased)
		runs, _ = s.Finished(0)
		require.Equal(t, []Span{{50, 100}, {170_000, 190_000}}, joined(runs))
	}
	again(b.State)
	restored, err := Restore(b.Save(nil))
	require.NoError(t, err)
	again(restored)
	require.Equal(t, b.Save(nil), restored.Save(nil))

	for _, s := range []*State{b.State, restored} {
		at := &book{State: s, t: t, index: 90}
		other := at.group(2, PutQueue)
		require.Equal(t, []Span{{0, 1}, {50, 150}, {170_000, 200_000}}, lacks(other, s.next))
		at.apply(AppendSeek(nil, 1, 20, 0))
		require.Equal(t, []Span{{50, 150}, {170_000, 200_000}}, lacks(s.Group(1), s.next))
		require.Equal(t, wire.Offset(50), s.Group(1).Done.Floor())
		s.Erase(Span{60, 70})
		require.False(t, s.finished(Span{60, 70}, s.letters()))
		erased, _ := s.Erased(0)
		require.Equal(t, []Span{{1, 50}, {150, 170_000}}, erased, "it has been moved back to the rest")

		// The last group goes, and what it was done with stays erased.
		at.apply(AppendRemoveGroup(nil, 1))
		at.apply(AppendRemoveGroup(nil, 2))
		s.Trimmed(40)
		require.True(t, s.HasErased())
		empty, err := Restore(s.Save(nil))
		require.NoError(t, err)
		require.Equal(t, s.Save(nil), empty.Save(nil))
		at = &book{State: empty, t: t, index: 95}
		require.Equal(t, []Span{{50, 150}, {170_000, 200_000}}, lacks(at.group(3, PutQueue), s.next))
		empty.Trimmed(180_000)
		require.False(t, empty.HasErased())
	}
}

// The check that the groups are still done with it is needed.
func TestRuleL7_Catches_ErasingWhatIsNotDone(t *testing.T) {
	for _, mutant := range []bool{false, true} {
		b := newBook(t, 100)
		b.group(1, PutQueue)
		b.apply(AppendOutcomes(nil, 1, []Span{{1, 50}}, nil))
		runs, _ := b.Finished(0) // a leader proposes that they are erased
		b.apply(AppendSeek(nil, 1, 10, 0))
		b.erasesAll = mutant
		b.Erase(runs[0])
		erased, _ := b.Erased(0)
		require.Equal(t, mutant, len(erased) > 0)
	}
}

// lacks are the runs that a group is not done with.
func lacks(g *Group, next wire.Offset) (runs []Span) {
	g.Done.unfinished(0, next, func(from, to wire.Offset) { runs = append(runs, Span{from, to}) })
	return runs
}

// joined makes one of runs that touch.
func joined(runs []Span) (out []Span) {
	for _, r := range runs {
		if n := len(out); n > 0 && out[n-1].To == r.From {
			out[n-1].To = r.To
		} else {
			out = append(out, r)
		}
	}
	return out
}

// A walk over scattered records ends after a while and is continued.
func TestFinishedIsBounded(t *testing.T) {
	s := NewState()
	s.Appended(100_000)
	g := newGroup(1, "a")
	g.Queue = true
	s.byID[1] = g
	for o := wire.Offset(1); o < 100_000; o += 2 {
		g.Done.Add(o, o+1)
	}
	var all []Span
	calls := 0
	for next := wire.Offset(0); ; {
		runs, then := s.Finished(next)
		require.LessOrEqual(t, len(runs), finishedSteps)
		all = append(all, runs...)
		calls++
		if next = then; next == 0 {
			break
		}
	}
	require.Len(t, all, 50_000)
	require.Greater(t, calls, 2)
	require.Equal(t, Span{99_999, 100_000}, all[len(all)-1])
}

// A redrive that was killed may have its group removed while letters are on their way, and the
// next one makes another: that has none of them, whether they are back by then or not.
func TestRuleQ3_AGroupThatBeginsHasNoLetterThatWentBack(t *testing.T) {
	b := newBook(t, 10)
	b.group(1, PutQueue)
	for n, o := range []wire.Offset{2, 5, 7} {
		b.apply(AppendLetter(nil, 1, Session{}, &Letter{Number: uint64(n), Offset: o, Reason: Redriven, Text: TargetText("orders", 0)}))
	}
	b.apply(AppendLetterDone(nil, 1, 0))
	b.apply(AppendRemoveGroup(nil, 1))
	b.apply(AppendLetterDone(nil, 1, 1))
	b.group(2, PutQueue)
	for o, done := range map[wire.Offset]bool{1: false, 2: true, 3: false, 5: true, 6: false, 7: true, 8: false} {
		require.Equal(t, done, b.Group(2).Done.Has(o), "offset %d", o)
	}
	b.apply(AppendLetterDone(nil, 1, 2))
	require.Nil(t, b.Group(1))
	erased, _ := b.Erased(0)
	require.Equal(t, []Span{{2, 3}, {5, 6}, {7, 8}}, erased)
}
