package server

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// RULES R8: an owner that takes its turn after a standstill, before anybody has told it
// of that, notices it, so that it asks whether it leads still before it does anything
// else.
func TestRuleR8_OwnersNoticeAStandstillThemselves(t *testing.T) {
	b, seen := &broker{}, int64(0)
	require.False(t, b.stoodStill(&seen), "before the first tick there was no sleep")
	b.ticked.Store(monotonic())
	require.False(t, b.stoodStill(&seen))

	asleep := monotonic() - 2*int64(standstill)
	b.ticked.Store(asleep)
	require.True(t, b.stoodStill(&seen))
	require.False(t, b.stoodStill(&seen), "once for each time")
	other := int64(0)
	require.True(t, b.stoodStill(&other), "and for each owner")
	b.ticked.Store(asleep + 1)
	require.True(t, b.stoodStill(&seen), "it slept again")
	(&peering{}).wakeUp(b) // who is alone has nobody to ask
}

// A leader that notices it stays leader once the others have confirmed it.
func TestRuleR8_ALeaderGoesOnAfterAStandstill(t *testing.T) {
	t.Parallel()
	c := newCrew(t, 3)
	c.create(1, "orders", 3, 3)
	c.fill("orders", 1)
	before := c.leaders(1, "orders")
	for range 3 {
		for node := range c.servers {
			c.broker(node).ticked.Store(monotonic() - 2*int64(standstill))
			c.broker(node).each(func(r *partitionReplica) { r.schedule() })
		}
		c.fill("orders", 1)
	}
	require.Equal(t, before, c.leaders(1, "orders"))
}
