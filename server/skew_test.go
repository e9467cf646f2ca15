package server

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/wire"
)

// R-LSN-3: the broker's wall clock jumps by five minutes, forth and twice as far back, while
// consumers hold records and others rest. Nobody loses a lease or a session by it, and
// nothing that rests comes earlier: the times of groups are distances, and consumers do
// not say what time it is.
func TestR_LSN_3_FiveMinutesMoreOrLessAreNothingToAGroup(t *testing.T) {
	const skew = 5 * time.Minute
	clock := &setClock{}
	clock.ms.Store(time.Now().UnixMilli())
	s, err := Start(t.Context(), Config{
		DataDir: t.TempDir(), Listen: "127.0.0.1:0", HTTP: "off", MinFreeBytes: -1, ScrubInterval: -1, Logger: testLogger(1), clock: clock.now,
	})
	require.NoError(t, err)
	t.Cleanup(func() { closeMember(t, s) })
	createGroup(t, s.Addr(), wire.GroupSettings{Mode: wire.ModeShared, BackoffMs: 1})
	produceKeyed(t, s.Addr(), "held", "rests")
	k := attachTo(t, s.Addr(), 1)
	k.keepAlive()
	first := k.next(2)
	rests := outcome(first[len(first)-1], wire.OutcomeNack)
	rests.Offset, rests.Count, rests.DelayMs = 1, 1, uint32((skew / 2).Milliseconds())
	require.Equal(t, wire.CodeOK, k.say(rests)[0].Code)
	for i, jump := range []time.Duration{skew, -2 * skew, skew} {
		clock.advance(jump)
		produceKeyed(t, s.Addr(), "new")
		g := k.next(1)[0]
		require.EqualValues(t, 2+i, g.Offset, "the one that rests goes on resting")
		require.Equal(t, wire.CodeOK, k.say(ack(g))[0].Code)
	}
	held := outcome(first[0], wire.OutcomeAck)
	held.Offset, held.Count = 0, 1
	require.Equal(t, wire.CodeOK, k.say(held)[0].Code, "the lease is what it was")
}
