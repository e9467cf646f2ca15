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
	require.Equal(t, []Span{{30, 40}, {96, 100}}, s.StillFinished([]Span{{10, 40}, {30, 40}, {39, 41}, {96, 100}}))
	other.Done = Done{} // it was moved back
	require.Empty(t, s.StillFinished(runs))
	runs, _ = s.Finished(0)
	require.Empty(t, runs)

	delete(s.byID, 2)
	add(3, false, Span{0, 100})
	runs, _ = s.Finished(0)
	require.Empty(t, runs, "a topic is nobody's to erase")
	require.Empty(t, s.StillFinished([]Span{{10, 40}}))
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
