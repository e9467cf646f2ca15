package partition

import (
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/partition/group"
	"github.com/lockstepmq/lockstep/wire"
)

// order asks a group for something, and reports what it was answered, when it is.
func (h *harness) order(name string, op wire.GroupOrderOp, ask any) (answer *wire.LettersResponse, err *error) {
	h.t.Helper()
	body, e := json.Marshal(ask)
	require.NoError(h.t, e)
	answer, err = new(wire.LettersResponse), new(error)
	*err = fmt.Errorf("not answered yet")
	h.put(Input{Kind: InputOrder, Group: name, Order: &wire.GroupOrderRequest{Op: op, Group: name, JSON: body}, Reply: func(body []byte, e error) {
		if *err = e; e == nil {
			require.NoError(h.t, json.Unmarshal(body, answer))
		}
	}})
	return answer, err
}

// redrive has a letter sent back by a group, when the others are done with it.
func (h *harness) redrive(ms int, name string, offset uint64, to string) {
	h.t.Helper()
	for other := range h.part.state.groups.All {
		if other.Name != name && !other.Removed {
			_, err := h.order(other.Name, wire.OrderSettle, wire.SettleRequest{Spans: []wire.OffsetSpan{{From: offset, To: offset + 1}}})
			h.turns(ms)
			require.NoError(h.t, *err)
		}
	}
	_, err := h.order(name, wire.OrderRedrive, wire.RedriveRequest{Letters: []wire.Redriven{{Offset: offset, To: to}}})
	h.turns(ms)
	require.NoError(h.t, *err)
}

// writes ends the rounds that are under way as if their letters could be written, and those that
// follow, and returns the offsets of what was written, in order.
func (w *world) writes(ms int) (written []wire.Offset) {
	w.h.t.Helper()
	for len(w.rounds) > 0 {
		r := w.rounds[0]
		w.rounds = w.rounds[1:]
		var result LetterResult
		if r.Renew || r.Path.Producer < 0 {
			result.Path = &group.Path{Producer: wire.LetterProducers | 1}
		} else {
			for _, x := range r.Sent {
				written = append(written, x.Offset)
				w.h.part.LetterWritten(r, x.Number)
			}
			for _, x := range r.Fresh {
				result.Ready = append(result.Ready, x.Number)
			}
		}
		w.h.part.LettersDone(r, result)
		w.h.turns(ms)
	}
	return written
}

// overtaking has one letter sent back by a group that is removed then, and one behind it by the
// next group. It returns their offsets in the order in which they are written, if the rounds of
// the second group end first.
func overtaking(t *testing.T, to ...string) (*harness, *world, []wire.Offset) {
	h, w := newGroups(t)
	h.log.immediate = true
	h.send(-1, 0, 0, 3)
	h.part.Groups().Intend(20, []Intent{intent(7, "dlq")})
	h.turns(0)
	h.redrive(1, "dlq", 0, to[0])
	stuck := w.rounds // of a redrive that is killed: its letter is on its way
	require.Len(t, stuck, 1)
	w.rounds = nil
	h.part.Groups().Intend(30, []Intent{intent(25, "dlq")})
	h.turns(2)
	stuck = w.rounds // of what is left of it
	require.Len(t, stuck, 1)
	w.rounds = nil
	h.redrive(3, "dlq", 1, to[1])
	first := w.writes(4)
	w.rounds = stuck
	return h, w, append(first, w.writes(5)...)
}

// RULES Q3 of the way back: letters arrive in the order in which they were sent back, also if the
// group that has sent the first is removed before they are there.
func TestRuleQ3_LettersOfTwoRedrivesKeepTheirOrder(t *testing.T) {
	_, _, written := overtaking(t, "orders", "orders")
	require.Equal(t, []wire.Offset{0, 1}, written)
	_, _, written = overtaking(t, "orders", "returns")
	require.Equal(t, []wire.Offset{1, 0}, written, "nothing waits for what goes elsewhere")
}

// The same where nobody looks at what other groups have on their way.
func TestRuleQ3_Catches_RedrivesThatOvertakeEachOther(t *testing.T) {
	IgnoreWays(true)
	defer IgnoreWays(false)
	_, _, written := overtaking(t, "orders", "orders")
	require.Equal(t, []wire.Offset{1, 0}, written)
}

// What waits for a letter of another group says so, and goes on when that waits for itself.
func TestALetterOnItsWayBackSaysWhatItWaitsFor(t *testing.T) {
	h, w := newGroups(t)
	h.log.immediate = true
	h.send(-1, 0, 0, 3)
	h.part.Groups().Intend(20, []Intent{intent(7, "dlq"), intent(8, "other")})
	h.turns(0)
	h.redrive(1, "other", 0, "orders")
	first := w.rounds
	w.rounds = nil
	h.redrive(2, "dlq", 1, "orders")
	require.Empty(t, w.rounds)
	d, err := h.order("dlq", wire.OrderLetters, wire.LettersRequest{})
	h.turns(3)
	require.NoError(t, *err)
	require.Contains(t, d.Letters[0].Problem, "what another group has sent back before goes first")

	h.part.LettersDone(first[0], LetterResult{Path: &group.Path{Producer: wire.LetterProducers | 1}})
	h.turns(4)
	require.Len(t, w.rounds, 1)
	h.part.LettersDone(w.rounds[0], LetterResult{Refused: map[uint64]error{0: wire.CodeTooLarge}})
	w.rounds = nil
	h.turns(5)
	require.Equal(t, []wire.Offset{1}, w.writes(6))
}

// The letters of groups that are removed are shown with why they wait, and can be given up.
func TestLettersOfRemovedGroupsAreSeenAndGivenUp(t *testing.T) {
	h, w := newGroups(t)
	h.log.immediate = true
	h.send(-1, 0, 0, 3)
	h.part.Groups().Intend(20, []Intent{intent(7, "dlq"), intent(8, "other")})
	h.turns(0)
	h.redrive(1, "dlq", 0, "orders")
	h.redrive(2, "other", 1, "returns")
	h.part.Groups().Intend(30, nil)
	w.rounds = nil
	h.turns(3)
	for _, r := range w.rounds {
		h.part.LettersDone(r, LetterResult{Err: wire.CodeUnknownDestination})
	}
	h.turns(4)
	d, err := h.order("dlq", wire.OrderLetters, wire.LettersRequest{Removed: true})
	h.turns(5)
	require.NoError(t, *err)
	require.Len(t, d.Removed, 2)
	require.Equal(t, []string{"dlq", "other"}, []string{d.Removed[0].Group, d.Removed[1].Group})
	require.EqualValues(t, 1, d.Removed[0].Count)
	require.Contains(t, d.Removed[0].Letters[0].Problem, `"orders", where they come from, is gone`)

	d, err = h.order("dlq", wire.OrderLetters, wire.LettersRequest{Removed: true, GiveUp: true})
	h.turns(6)
	require.NoError(t, *err)
	require.EqualValues(t, 1, d.Count)
	d, _ = h.order("dlq", wire.OrderLetters, wire.LettersRequest{Removed: true})
	h.turns(7)
	require.Len(t, d.Removed, 1)
	require.Equal(t, "other", d.Removed[0].Group)
	d, err = h.order("dlq", wire.OrderLetters, wire.LettersRequest{Removed: true, GiveUp: true})
	h.turns(8)
	require.NoError(t, *err)
	require.Zero(t, d.Count, "none are left")
}

// A stream of letters that go to one partition does not hold up one that goes to another for
// longer than they may overtake it, although there are always some on their way and some to be noted.
func TestLettersThatGoElsewhereHaveTheirTurn(t *testing.T) {
	h, w := newGroups(t)
	h.log.immediate = true
	h.part.Groups().Intend(20, []Intent{intent(7, "dlq")})
	h.turns(0)
	overtaken, sent := 0, uint64(0)
	stream := func(to string, n int) {
		h.send(-1, 0, 0, n)
		var ask wire.RedriveRequest
		for range n {
			ask.Letters = append(ask.Letters, wire.Redriven{Offset: sent, To: to})
			sent++
		}
		_, err := h.order("dlq", wire.OrderRedrive, ask)
		h.turns(1)
		require.NoError(t, *err)
	}
	stream("orders", wire.MaxRedrive)
	stream("returns", 1)
	for producer := int64(0); ; {
		stream("orders", wire.MaxRedrive)
		require.NotEmpty(t, w.rounds)
		r := w.rounds[0]
		w.rounds = nil
		var result LetterResult
		for _, x := range r.Sent {
			if r.To == "returns" {
				require.LessOrEqual(t, overtaken, maxOvertaken+2*maxLetters)
				return
			}
			overtaken++
			h.part.LetterWritten(r, x.Number)
		}
		if r.Path.Producer < 0 || r.To == "returns" && r.Path.Partition == 0 {
			producer++
			result.Path = &group.Path{Producer: wire.LetterProducers | producer}
			if r.To == "returns" {
				result.Path.Partition = 1
			}
		} else {
			for _, x := range r.Fresh {
				result.Ready = append(result.Ready, x.Number)
			}
		}
		h.part.LettersDone(r, result)
		h.turns(1)
		require.Less(t, overtaken, 3*maxOvertaken, "it never goes")
	}
}

// begunAmid has a group begin after a redrive has listed the groups, and before its order. It
// returns how often the letter goes back, if what that group has is sent back too.
func begunAmid(t testing.TB, applied bool) (back int) {
	h, w := newGroups(t)
	h.log.immediate = true
	h.send(-1, 0, 0, 3)
	h.part.Groups().Intend(20, []Intent{intent(7, "dlq")})
	h.turns(0)
	h.log.immediate = false
	h.part.Groups().Intend(30, []Intent{intent(7, "dlq"), intent(25, "clerks")})
	h.part.Turn(1000, time.Millisecond)
	require.Len(t, h.log.proposed, 1, "the group begins")
	if applied {
		h.log.commit(1)
	}
	ask := wire.RedriveRequest{Letters: []wire.Redriven{{Offset: 0, To: "orders"}}}
	send := func(name string) (*wire.LettersResponse, *error) { return h.order(name, wire.OrderRedrive, ask) }
	_, err := send("dlq")
	h.part.Turn(1000, 2*time.Millisecond)
	h.log.immediate = true
	h.log.commit(len(h.log.proposed))
	h.turns(3)
	if *err != nil {
		require.Equal(t, wire.CodeRefused, wire.CodeOf(*err))
		require.ErrorContains(t, *err, `"clerks"`)
		require.Empty(t, w.writes(4), "nothing goes back")
		_, err = h.order("clerks", wire.OrderSettle, wire.SettleRequest{Spans: []wire.OffsetSpan{{From: 0, To: 1}}})
		h.turns(5)
		require.NoError(t, *err)
		_, err = send("dlq")
		h.turns(6)
		require.NoError(t, *err)
	}
	back += len(w.writes(7))
	_, err = send("clerks")
	h.turns(8)
	require.NoError(t, *err)
	return back + len(w.writes(9))
}

// RULES Q3 of the way back: a group that begins amid a redrive, which has not heard of it, has no
// letter that goes back: what it is not done with does not go.
func TestRuleQ3_AGroupThatBeginsAmidARedriveSendsNoLetterTwice(t *testing.T) {
	for name, applied := range map[string]bool{"begun": true, "about to begin": false} {
		t.Run(name, func(t *testing.T) { require.Equal(t, 1, begunAmid(t, applied)) })
	}
}

// The same where the partition goes by the groups that the redrive knows.
func TestRuleQ3_Catches_LettersThatAGroupHasStill(t *testing.T) {
	IgnoreBegun(true)
	defer IgnoreBegun(false)
	require.Equal(t, 2, begunAmid(t, true))
	require.Equal(t, 2, begunAmid(t, false))
}

// purgedAmid has a group begin after a purge has listed the groups, and before its order. It
// reports whether the group is done with the letter in the end.
func purgedAmid(t testing.TB, applied bool) (done bool) {
	h, _ := newGroups(t)
	h.log.immediate = true
	h.send(-1, 0, 0, 3)
	h.part.Groups().Intend(20, []Intent{intent(7, "dlq")})
	h.turns(0)
	h.log.immediate = false
	h.part.Groups().Intend(30, []Intent{intent(7, "dlq"), intent(25, "clerks")})
	h.part.Turn(1000, time.Millisecond)
	require.Len(t, h.log.proposed, 1, "the group begins")
	if applied {
		h.log.commit(1)
	}
	ask := wire.SettleRequest{Spans: []wire.OffsetSpan{{From: 0, To: 1}}, GiveUp: true, Last: true}
	_, err := h.order("dlq", wire.OrderSettle, ask)
	h.part.Turn(1000, 2*time.Millisecond)
	h.log.immediate = true
	h.log.commit(len(h.log.proposed))
	h.turns(3)
	if *err != nil {
		require.Equal(t, wire.CodeRefused, wire.CodeOf(*err))
		require.ErrorContains(t, *err, `"clerks"`)
		require.False(t, h.part.state.groups.Group(7).Done.Has(0), "nothing is given up")
		for _, q := range []struct {
			name string
			last bool
		}{{"clerks", false}, {"dlq", true}} {
			ask.Last = q.last
			_, err = h.order(q.name, wire.OrderSettle, ask)
			h.turns(4)
			require.NoError(t, *err)
		}
	}
	require.True(t, h.part.state.groups.Group(7).Done.Has(0))
	return h.part.state.groups.Group(25).Done.Has(0)
}

// A group that begins amid a purge, which has not heard of it, keeps none of the letters.
func TestR_MQC_12_AGroupThatBeginsAmidAPurgeHasNothingOfIt(t *testing.T) {
	require.True(t, purgedAmid(t, true))
	require.True(t, purgedAmid(t, false))
}

// The same where the partition goes by the groups that the purge knows.
func TestR_MQC_12_Catches_LettersThatAGroupKeepsAfterAPurge(t *testing.T) {
	IgnoreBegun(true)
	defer IgnoreBegun(false)
	require.False(t, purgedAmid(t, true))
	require.False(t, purgedAmid(t, false))
}
