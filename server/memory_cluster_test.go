package server

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/cluster"
	"github.com/lockstepmq/lockstep/wire"
)

// A destination in memory with three replicas lives as long as a majority of them. One
// process less costs nothing, two take all of it, and readers learn that (RULES L6).
func TestRuleL6_AMemoryPartitionLivesWithAMajorityOfItsProcesses(t *testing.T) {
	t.Parallel()
	c := newCrew(t, 3)
	_, err := c.ask(1, &wire.CreateRequest{Name: "fast", Kind: wire.Topic, Settings: wire.Settings{
		Partitions: 1, Replicas: 3, Storage: wire.StorageMemory, RetentionTimeMs: wire.Unlimited, RetentionBytes: wire.Unlimited,
	}})
	require.NoError(t, err)
	partition := func() *cluster.Partition {
		d, ok := c.broker(1).View().Destination("fast")
		require.True(t, ok)
		return &d.Partitions[0]
	}
	three := func() {
		t.Helper()
		c.await("three replicas vote", func() bool {
			p := partition()
			return len(p.Replicas) == 3 && len(p.Voters) == 3 && !p.Moving() && c.leaders(1, "fast")[0] == 0
		})
	}
	c.fill("fast", 10)
	c.same("fast", 10)
	c.await("three nodes vote on the metadata", func() bool { return c.broker(1).meta.voters.Load() == 3 })
	before := partition().Replicas

	c.stop(3)
	c.fill("fast", 2)
	c.start(3)
	three()
	c.same("fast", 12)
	require.Equal(t, uint32(1), partition().Incarnation)
	require.NotEqual(t, before, partition().Replicas, "a replica that forgot everything has another ID")

	c.stop(2)
	c.stop(3)
	c.start(2)
	c.start(3)
	c.await("a new incarnation", func() bool { return partition().Incarnation > 1 })
	three()
	next, lost := partition().LostSince(1)
	require.True(t, lost)
	require.Zero(t, next)
	c.fill("fast", 3)
	c.same("fast", 3)
	for node := range c.servers {
		d, _ := c.broker(node).View().Destination("fast")
		require.Equal(t, wire.Offset(3), c.broker(node).local(d.ID, 0).records.Watermark().Next)
	}
}
