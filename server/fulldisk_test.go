package server

import (
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/vfs"
	"github.com/lockstepmq/lockstep/wire"
)

// filledDisk is a disk of the machine that says that it has no free byte as long as full is
// set.
type filledDisk struct {
	vfs.FS
	full *atomic.Bool
}

func (d filledDisk) Space(path string) (free, total int64, err error) {
	free, total, err = d.FS.Space(path)
	if d.full.Load() {
		free = 0
	}
	return free, total, err
}

// RULES L10: a leader without space hands the leadership to a replica with space. Its
// producers are not refused for as long as its disk is full. Nobody gives the node anything
// meanwhile, and it gets its share back with its space.
func TestRuleL10_AFullDiskLeadsNothing(t *testing.T) {
	t.Parallel()
	var full atomic.Bool
	c := newCrew(t, 2)
	c.change = func(cfg *Config) { cfg.fs, cfg.MinFreeBytes = filledDisk{vfs.OS(), &full}, 1 }
	c.start(3)
	c.change = nil
	d := c.create(1, "orders", 6, 3)
	prefer := &wire.PartitionAdminRequest{
		Destination: "orders", Partition: 0, Action: wire.PartitionPlace,
		Placement: wire.Placement{Mask: wire.MaskPreferred | wire.MaskPolicy, Preferred: 3, Policy: wire.LeaderFailback},
	}
	_, err := c.ask(1, prefer)
	require.NoError(t, err)
	c.await("it leads what it is to lead", func() bool { return c.leaders(1, "orders")[3] > 0 })
	full.Store(true)
	c.await("it leads nothing, and all partitions are led", func() bool {
		led := c.leaders(1, "orders")
		return led[0] == 0 && led[3] == 0 && led[1]+led[2] == 6
	})
	require.True(t, c.broker(3).disk.Low())
	c.await("everybody knows", func() bool {
		return c.broker(1).lacksSpace(3) && c.broker(2).lacksSpace(3) && c.broker(3).lacksSpace(3) && !c.broker(3).lacksSpace(1)
	})
	c.fill("orders", 2)

	settings := d.Settings
	settings.Partitions = 4
	_, err = c.ask(2, &wire.CreateRequest{Name: "events", Kind: wire.Topic, Settings: settings})
	require.ErrorIs(t, err, wire.CodeInvalidSetting)
	require.ErrorContains(t, err, "2 brokers that can take one; ask for fewer (--replicas 2), or add a node, or see to the others: node 3 has no disk space left for records")
	c.create(2, "payments", 4, 1)
	require.Zero(t, c.held(1, "payments")[3])
	require.EqualValues(t, 1, c.create(2, "defaults", 2, 0).Settings.Replicas, "nobody asked for more than there is")
	require.Zero(t, c.held(1, "defaults")[3])
	_, err = c.ask(2, &wire.PartitionAdminRequest{Destination: "payments", Partition: 0, Action: wire.PartitionMove, From: firstHolder(c, "payments"), To: 3})
	require.ErrorIs(t, err, wire.CodeRefused)
	require.ErrorContains(t, err, "node 3 has no disk space left for records; free some there, or choose another node")
	_, err = c.ask(2, &wire.PartitionAdminRequest{Destination: "orders", Partition: 1, Action: wire.PartitionTransfer, To: 3})
	require.ErrorIs(t, err, wire.CodeRefused)
	m, err := c.ask(1, &wire.ClusterStatusRequest{})
	require.NoError(t, err)
	for _, n := range m.(*wire.ClusterStatus).Nodes {
		require.Equal(t, []any{n.Node == 3, n.Node == 3}, []any{n.LacksSpace, n.KeptBytes == 1}, "node %d", n.Node)
	}

	full.Store(false)
	c.await("it leads what it is to lead again", func() bool { return c.leaders(1, "orders")[3] > 0 })
	c.await("it has its share of what was made meanwhile", func() bool { return c.held(1, "defaults")[3] == 2 })
}

// firstHolder is the node that holds the first partition of a destination.
func firstHolder(c *crew, name string) uint32 {
	d, _ := c.broker(1).View().Destination(name)
	return d.Partitions[0].Replicas[0].Node
}
