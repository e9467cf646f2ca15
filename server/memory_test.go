package server

import (
	"errors"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/partition"
	"github.com/lockstepmq/lockstep/vfs"
	"github.com/lockstepmq/lockstep/wire"
)

// A disk that has stalled makes every partition hold what producers send. Together
// they hold what PendingBytes allows, producers are told to slow down before a
// batch is copied, and what was taken is appended once the disk goes on.
func TestF13_AStalledDiskDoesNotFillTheMemory(t *testing.T) {
	disk := vfs.NewSimulated(1)
	b := testBroker(t, disk)
	defer func() { require.NoError(t, b.close()) }()
	b.pending = partition.NewMemory(minPendingBytes)
	require.NoError(t, administer(b, &wire.CreateRequest{Name: "events", Kind: wire.Topic, Settings: wire.Settings{
		Partitions: 32, RetentionTimeMs: wire.Unlimited, RetentionBytes: wire.Unlimited, MaxRecordBytes: wire.MaxRecordBytes,
	}}))
	d, _ := b.View().Destination("events")
	batch, _ := testBatch(t, strings.Repeat("x", 2<<20))
	info, err := wire.ParseBatch(batch)
	require.NoError(t, err)

	stalled := make(chan struct{})
	disk.Inject(func(op vfs.Op, name string) error {
		if op == vfs.OpSync && strings.Contains(name, "partitions") {
			<-stalled
		}
		return nil
	})
	got := make(outcomes, 4*32)
	taken, refused := 0, 0
	for range 4 {
		for number := range uint32(32) {
			r, err := b.Partition(d.ID, number)
			require.NoError(t, err)
			err = r.Append(partition.Append{Batch: batch, Info: info, Acks: wire.AcksQuorum, Receiver: got})
			if err == nil {
				taken++
				r.Kick(false)
			} else {
				refused++
				require.True(t, errors.Is(err, partition.ErrMemoryFull), err)
				body := errorBody(err)
				require.Equal(t, wire.CodeMailboxFull, body.Code)
				require.Contains(t, body.Detail, "--pending-bytes")
			}
			require.LessOrEqual(t, b.pending.Used(), int64(minPendingBytes))
		}
	}
	require.Positive(t, refused)
	require.Greater(t, taken, 24)
	close(stalled)
	for range taken {
		require.Equal(t, wire.CodeOK, <-got)
	}
	eventually(t, "all memory back", func() bool { return b.pending.Used() == 0 })
}
