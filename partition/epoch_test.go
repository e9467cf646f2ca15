package partition

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/wire"
)

// While a fence is on its way it ends the epochs below its own, and no others: also if a lower
// one is on its way too, and also when one of two has landed.
func TestRuleR5_FencesOnTheirWay(t *testing.T) {
	t.Run("the new epoch may begin", func(t *testing.T) {
		h := newHarness(t)
		h.fence(7, 1)
		h.part.Turn(1000, 0)
		first := h.send(7, 1, 0, 1)
		h.part.Turn(1000, 0)
		h.log.commit(len(h.log.proposed))
		require.Equal(t, []outcome{ok(first, 0)}, h.got.take())
	})
	t.Run("a lower one changes nothing", func(t *testing.T) {
		h := newHarness(t)
		h.fence(7, 5)
		h.part.Turn(1000, 0)
		h.fence(7, 3)
		h.part.Turn(1000, 0)
		late := h.send(7, 4, 0, 1)
		h.part.Turn(1000, 0)
		require.Equal(t, []outcome{refused(late, wire.CodeFenced)}, h.got.take())
	})
	t.Run("the second when the first has landed", func(t *testing.T) {
		h := newHarness(t)
		h.fence(7, 1)
		h.part.Turn(1000, 0)
		h.fence(7, 5)
		h.part.Turn(1000, 0)
		h.log.commit(1)
		late := h.send(7, 4, 0, 1)
		h.part.Turn(1000, 0)
		require.Equal(t, []outcome{refused(late, wire.CodeFenced)}, h.got.take())
	})
}

// The epoch of a name that was forgotten is in force: who fences with a lower one hears so.
func TestRuleR5_AForgottenEpochIsInForce(t *testing.T) {
	h := newHarness(t)
	h.fence(7, 3)
	h.part.Turn(1000, 0)
	h.log.commit(1)
	h.part.state.producers.removeAll()
	lower, same := h.fence(7, 2), h.fence(7, 3)
	h.part.Turn(1000, 0)
	require.Empty(t, h.log.proposed)
	require.Equal(t, []wire.ErrorCode{wire.CodeFenced}, *lower)
	require.Equal(t, []wire.ErrorCode{wire.CodeOK}, *same)
}

// What was stored under an epoch answers no batch of the next one: a sequence that both have
// is another record, whether a fence lies between them or only the first batch.
func TestF16_SequencesOfTwoEpochsAreTwoRecords(t *testing.T) {
	for name, fenced := range map[string]bool{"fenced": true, "by the first batch": false} {
		t.Run(name, func(t *testing.T) {
			h := newHarness(t)
			before := h.send(7, 0, 0, 10)
			h.part.Turn(1000, 0)
			h.log.commit(1)
			if fenced {
				h.fence(7, 1)
				h.part.Turn(1000, 0)
				h.log.commit(1)
			}
			first := h.send(7, 1, 0, 1)
			h.part.Turn(1000, 0)
			h.log.commit(1)
			gap := h.send(7, 1, 5, 1)
			h.part.Turn(1000, 0)
			require.Equal(t, []outcome{ok(before, 0), ok(first, 10), refused(gap, wire.CodeOutOfSequence)}, h.got.take())
		})
	}
}

// The producer with the highest ID that was forgotten is among those that were.
func TestF16_TheLastForgottenProducerDoesNotBeginAgain(t *testing.T) {
	h := newHarness(t)
	before := h.send(7, 0, 0, 1)
	h.part.Turn(1000, 0)
	h.log.commit(1)
	h.part.state.producers.removeAll()
	again, other := h.send(7, 0, 0, 1), h.send(8, 0, 0, 1)
	h.part.Turn(1000, 0)
	h.log.commit(len(h.log.proposed))
	require.ElementsMatch(t, []outcome{ok(before, 0), refused(again, wire.CodeUnknownProducer), ok(other, 1)}, h.got.take())
}

// While the leadership moves a fence waits, like a record.
func TestRuleR5_AFenceWaitsWhileTheLeadershipMoves(t *testing.T) {
	h := newHarness(t)
	h.log.paused = true
	fence := h.fence(7, 1)
	h.part.Turn(1000, 0)
	require.Empty(t, h.log.proposed)
	require.Empty(t, *fence)
	h.log.paused = false
	h.part.Turn(1000, 0)
	h.log.commit(1)
	require.Equal(t, []wire.ErrorCode{wire.CodeOK}, *fence)
}
