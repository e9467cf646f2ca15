package partition

import (
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/log"
	"github.com/lockstepmq/lockstep/partition/group"
	"github.com/lockstepmq/lockstep/wire"
)

// A scan that fails is repeated, for whoever waits for what it brings: the scan of a group, a key whose next record
// is to be sent, and one whose next record is looked for.
func TestAScanThatFailsIsRepeated(t *testing.T) {
	const records = 12
	h, w := newGroups(t)
	h.log.immediate = true
	keyed := intent(7, "workers")
	keyed.Settings = wire.GroupSettings{Mode: wire.ModeSerial, Scope: wire.ScopeKey}.WithDefaults()
	h.part.Groups().Intend(20, []Intent{keyed})
	h.send(-1, 0, 0, records)
	index := make([]byte, records*wire.RecordIndexEntrySize)
	for n := range records {
		index[n*wire.RecordIndexEntrySize] = 1
	}
	fails := 0
	w.scan = func(wire.Offset) {
		if fails++; fails%2 == 1 {
			h.part.Scanned(nil, errors.New("the disk does not answer"))
			return
		}
		h.part.Scanned([]log.Batch{{Base: 0, Count: records, Index: index}}, nil)
	}
	c := h.attach("workers", 1)
	ms := 0
	for n := range records {
		h.turns(ms)
		require.Empty(t, c.grants, "record %d", n)
		require.Equal(t, time.Duration(ms)*time.Millisecond+scanRetry, h.part.Groups().Deadline())
		ms += int(scanRetry / time.Millisecond)
		h.turns(ms)
		require.Equal(t, 1, c.records(), "record %d", n)
		h.ack(c)
		h.part.groups.feed.drop(0, records)
	}
}

// A consumer that is gone before its group is there does not come back with it; others wait on.
func TestWhoWaitsForAGroupAndIsGone(t *testing.T) {
	h, _ := newGroups(t)
	h.log.immediate = true
	gone, stays, other := h.attach("workers", 1), h.attach("workers", 2), h.attach("nobody", 3)
	h.turns(0)
	h.put(Input{Kind: InputGone, Consumer: gone})
	h.turns(1)
	h.part.Groups().Intend(20, []Intent{intent(7, "workers")})
	h.turns(2)
	require.Nil(t, gone.attached)
	require.NotNil(t, stays.attached)
	require.Len(t, h.part.state.groups.Named("workers").Sessions, 1)
	require.False(t, other.over)
	h.put(Input{Kind: InputGone, Consumer: stays})
	h.turns(3)
	require.Zero(t, h.part.groups.leads[7].links)
	h.turns(int(unknownWait / time.Millisecond))
	require.ErrorIs(t, other.closed, wire.CodeUnknownGroup)
}

// Who waits for a group where the leadership is lost is sent away.
func TestWhoWaitsForAGroupHearsThatTheLeadershipIsLost(t *testing.T) {
	h, _ := newGroups(t)
	h.log.immediate = true
	c := h.attach("workers", 1)
	h.turns(0)
	h.log.following = true
	h.part.Reject(wire.NotLeader(2, 4))
	require.ErrorIs(t, c.closed, wire.CodeNotLeader)
}

// Another consumer holds nobody up while its leader is being confirmed; the feed stays as long as somebody is linked.
func TestAnAttachHoldsUpNobody(t *testing.T) {
	h, w := newGroups(t)
	h.log.immediate = true
	h.part.Groups().Intend(20, []Intent{intent(7, "workers")})
	first := h.attach("workers", 1)
	h.turns(0)
	w.hold = true
	h.attach("workers", 2)
	h.send(-1, 0, 0, 3)
	h.turns(1)
	require.Equal(t, 3, first.records())
	for _, at := range []time.Duration{feedIdle, 3 * feedIdle} {
		h.turns(int(at / time.Millisecond))
	}
	require.True(t, h.part.groups.feed.on)
}

// A topic is not without consumers: whether somebody reads it is nobody's business.
func TestATopicIsNotDeserted(t *testing.T) {
	for _, queue := range []bool{true, false} {
		h, _ := newGroups(t)
		h.log.immediate = true
		h.part.queue = queue
		h.part.Groups().Intend(20, []Intent{intent(7, "workers")})
		h.turns(5)
		require.Equal(t, queue, h.part.Groups().Deserted() > 0)
	}
}

// The letters of a group are written by the next leader also if nobody consumes it any more.
func TestANewLeaderWritesTheLettersOfAGroupWithoutConsumers(t *testing.T) {
	h, w := newGroups(t)
	h.log.immediate = true
	h.send(-1, 0, 0, 3)
	h.part.Groups().Intend(20, []Intent{intent(7, "dlq")})
	h.turns(0)
	h.redrive(1, "dlq", 0, "orders")
	require.Len(t, w.rounds, 1)
	require.Empty(t, h.part.state.groups.Named("dlq").Sessions)
	h.log.following = true
	h.turns(2)
	w.rounds = nil
	h.log.term, h.log.following = 4, false
	h.noOp()
	h.turns(3)
	require.Len(t, w.rounds, 1)
	require.Equal(t, group.ID(7), w.rounds[0].Group)
}
