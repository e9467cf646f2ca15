package server

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// RULES L10: a leader without space hands the leadership to a replica with space. Its
// producers are not refused for as long as its disk is full.
func TestRuleL10_AFullDiskLeadsNothing(t *testing.T) {
	t.Parallel()
	c := newCrew(t, 2)
	c.change = func(cfg *Config) { cfg.MinFreeBytes = 1 << 62 } // no disk has that
	c.start(3)
	c.change = nil
	c.create(1, "orders", 6, 3)
	c.await("it leads nothing, and all partitions are led", func() bool {
		led := c.leaders(1, "orders")
		return led[0] == 0 && led[3] == 0 && led[1]+led[2] == 6
	})
	require.True(t, c.broker(3).disk.Low())
	c.fill("orders", 2)
}
