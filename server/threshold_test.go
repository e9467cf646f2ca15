package server

import (
	"log/slog"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/wire"
)

// R-SIB-25: at its threshold a partition answers PARTITION_FULL and METADATA says so; a
// higher threshold makes room.
func TestR_SIB_25_APartitionAtItsThresholdIsFull(t *testing.T) {
	s, err := Start(t.Context(), Config{
		DataDir: filepath.Join(t.TempDir(), "data"), Listen: "127.0.0.1:0", HTTP: "off", MinFreeBytes: -1, Logger: slog.New(slog.DiscardHandler),
	})
	require.NoError(t, err)
	defer s.Close(t.Context())
	c := dialOpen(t, s.Addr())
	settings := wire.Settings{
		Partitions: 1, Replicas: 1, RetentionTimeMs: wire.Unlimited, RetentionBytes: wire.Unlimited, ThresholdRecords: 3,
	}
	var d wire.DestinationInfo
	c.send(wire.OpCreate, 2, &wire.CreateRequest{Name: "events", Kind: wire.Topic, Settings: settings})
	c.ok(c.answer(2), &d)
	require.EqualValues(t, 3, d.Settings.ThresholdRecords)
	h := c.open("events", 0)
	batch, _ := testBatch(t, "a", "b")
	id := uint32(10)
	produce := func() wire.ErrorCode {
		id++
		c.send(wire.OpProduce, id, &wire.ProduceRequest{Handle: h, Acks: wire.AcksQuorum, Batch: batch})
		return c.answer(id).code()
	}
	flags := func() wire.PartitionFlags {
		id++
		c.send(wire.OpMetadata, id, &wire.MetadataRequest{Scope: wire.MetadataNamed, Names: []string{"events"}})
		var m wire.MetadataResponse
		c.ok(c.answer(id), &m)
		return m.Destinations[0].Partitions[0].Flags
	}
	require.Equal(t, wire.CodeOK, produce())
	require.Zero(t, flags())
	require.Equal(t, wire.CodeOK, produce())
	require.Equal(t, wire.CodePartitionFull, produce())
	require.Equal(t, wire.PartitionFull, flags())

	settings.ThresholdRecords = 5
	c.send(wire.OpAlter, 3, &wire.AlterRequest{Name: "events", Kind: wire.Topic, Mask: wire.MaskThresholdRecords, Settings: settings})
	c.ok(c.answer(3), &d)
	eventually(t, "room", func() bool { return produce() == wire.CodeOK })
	require.Equal(t, wire.CodePartitionFull, produce())
}
