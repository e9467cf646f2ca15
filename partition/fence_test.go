package partition

import (
	"encoding/hex"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/log"
	"github.com/lockstepmq/lockstep/wire"
)

// fence asks for one and returns where its outcome will be.
func (h *harness) fence(id int64, epoch int16) *[]wire.ErrorCode {
	h.t.Helper()
	var codes []wire.ErrorCode
	require.NoError(h.t, h.part.Fence(Fence{ID: id, Epoch: epoch, Then: func(code wire.ErrorCode) { codes = append(codes, code) }}))
	return &codes
}

// RULES R5: whatever of the epoch before is ever committed lies before the fence, and the
// new epoch begins behind it.
func TestRuleR5_AFenceLiesBetweenTwoEpochs(t *testing.T) {
	h := newHarness(t)
	before := h.send(7, 0, 0, 2)
	h.part.Turn(1000, 0)
	fence := h.fence(7, 1)
	h.part.Turn(1000, 0)
	require.Equal(t, 2, len(h.log.proposed))
	late := h.send(7, 0, 2, 1)
	require.NotZero(t, h.part.Waiting())
	h.log.commit(1)
	h.part.Turn(1000, 0)
	require.Equal(t, []outcome{ok(before, 0), refused(late, wire.CodeFenced)}, h.got.take(), "while the fence is on its way")
	require.Empty(t, *fence)
	h.log.commit(1)
	require.Equal(t, []wire.ErrorCode{wire.CodeOK}, *fence)
	require.Empty(t, h.part.fences.proposed)

	late = h.send(7, 0, 2, 1)
	first := h.send(7, 1, 0, 1)
	h.part.Turn(1000, 0)
	h.log.commit(1)
	require.Equal(t, []outcome{refused(late, wire.CodeFenced), ok(first, 2)}, h.got.take())

	again, lower := h.fence(7, 1), h.fence(7, 0)
	h.part.Turn(1000, 0)
	require.Empty(t, h.log.proposed, "what is in force takes no entry")
	require.Equal(t, []wire.ErrorCode{wire.CodeOK}, *again)
	require.Equal(t, []wire.ErrorCode{wire.CodeFenced}, *lower)
}

// Two who open a name at once: the later one is in force, and the other hears of it.
func TestRuleR5_TheHigherOfTwoFencesIsInForce(t *testing.T) {
	h := newHarness(t)
	high, low := h.fence(7, 5), h.fence(7, 4)
	h.part.Turn(1000, 0)
	h.log.commit(1)
	require.Equal(t, []wire.ErrorCode{wire.CodeOK}, *high)
	require.Equal(t, []wire.ErrorCode{wire.CodeFenced}, *low)
	tag := h.send(7, 4, 0, 1)
	h.part.Turn(1000, 0)
	require.Equal(t, []outcome{refused(tag, wire.CodeFenced)}, h.got.take())
}

// A fence holds without a batch behind it: in a checkpoint, and of a producer that is
// forgotten.
func TestRuleR5_AFenceIsPartOfTheState(t *testing.T) {
	h := newHarness(t)
	fence := h.fence(7, 3)
	h.part.Turn(1000, 0)
	h.log.commit(1)
	require.Equal(t, []wire.ErrorCode{wire.CodeOK}, *fence)
	saved := h.part.state.Save(nil)
	require.Equal(t, "02000000"+"0000000000000000"+"0000000000000000"+ // version, start, next
		"01000000"+"0700000000000000"+"0300"+"0000"+"00000000"+"e803000000000000"+"00000000"+ // one producer, no runs
		"0000000000000000"+"00000000", hex.EncodeToString(saved))
	s := NewState()
	require.NoError(t, s.Restore(saved))
	require.Equal(t, saved, s.Save(nil))

	h.part.state.producers.removeAll()
	old := h.send(7, 2, 0, 1)
	h.part.Turn(1000, 0)
	require.Equal(t, []outcome{refused(old, wire.CodeFenced)}, h.got.take(), "the epoch is kept of a name that is forgotten")
	require.Nil(t, s.producers.byID[7].runs)
}

// Fences wait like records do, and everybody is answered.
func TestRuleR5_EveryFenceIsAnswered(t *testing.T) {
	h := newHarness(t)
	h.log.reserve = log.ErrNotReady
	waits := h.fence(7, 1)
	h.part.Turn(1000, 0)
	require.Empty(t, *waits)
	h.log.reserve = nil
	h.part.Turn(1000, 0)
	lost := h.fence(8, 1)
	h.part.Turn(1000, 0)
	h.log.following = true
	h.part.Turn(1000, 0)
	require.Equal(t, []wire.ErrorCode{wire.CodeUnavailable}, *waits, "another leader may have it")
	require.Equal(t, []wire.ErrorCode{wire.CodeUnavailable}, *lost)
	require.Empty(t, h.part.fences.proposed)

	follower := h.fence(9, 1)
	h.part.Turn(1000, 0)
	require.Empty(t, *follower)
	h.part.Reject(wire.NotLeader(2, 3))
	require.Equal(t, []wire.ErrorCode{wire.CodeNotLeader}, *follower)

	h.log.following, h.log.term = false, 4
	h.log.propose = wire.CodeUnavailable
	dropped := h.fence(9, 1)
	h.part.Turn(1000, 0)
	require.Equal(t, []wire.ErrorCode{wire.CodeUnavailable}, *dropped)
	require.Empty(t, h.part.fences.proposed)

	full := 0
	for range MaxFences {
		require.NoError(t, h.part.Fence(Fence{ID: 9, Epoch: 1, Then: func(wire.ErrorCode) { full++ }}))
	}
	require.ErrorIs(t, h.part.Fence(Fence{}), ErrMailboxFull)
	h.log.propose, h.log.proposed, h.log.immediate = nil, nil, true
	require.True(t, h.part.Turn(1000, 0), "an entry holds some of them")
	require.Equal(t, maxEntryFences, full)
	h.part.Close(wire.CodeShuttingDown)
	require.Equal(t, MaxFences, full)
	require.ErrorIs(t, h.part.Fence(Fence{}), wire.CodeShuttingDown)
}

// Producers of dead letters that have ended are forgotten before those that may still write.
func TestEndedProducersOfLettersGoFirst(t *testing.T) {
	const a, b, c = wire.LetterProducers, wire.LetterProducers + 1, wire.LetterProducers + 2
	p := newProducers()
	for _, id := range []int64{a, b, c} {
		p.fence(id, 0, 1)
	}
	p.fence(b, 1, 2)
	for id := int64(c + 1); len(p.byID) < MaxLetterProducers; id++ {
		p.fence(id, 0, 3)
	}
	restored, rest, err := restoreProducers(saveProducers(nil, p.picture()), 2)
	require.NoError(t, err)
	require.Empty(t, rest)
	for _, p := range []*producers{p, restored} {
		p.fence(c+MaxLetterProducers, 0, 4)
		require.NotContains(t, p.byID, int64(b))
		p.fence(c+MaxLetterProducers+1, 0, 4)
		require.NotContains(t, p.byID, int64(a))
		require.Contains(t, p.byID, int64(c))
		require.Len(t, p.byID, MaxLetterProducers)
	}
}
