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

// Rule L6: what memory destinations hold is charged before it is taken. Above the
// budget their producers get MEMORY_FULL, and those of the disk notice nothing;
// nothing of a memory partition is ever on the disk, and deleting makes room.
func TestRuleL6_AboveTheBudgetProducersGetMemoryFull(t *testing.T) {
	const most = 8 << 20
	memory := newBudget(most)
	used := func() int64 {
		memory.mu.Lock()
		defer memory.mu.Unlock()
		return memory.used
	}
	disk := vfs.NewSimulated(1)
	b, err := openTestBroker(disk, func(c *Config) { c.memoryFS = vfs.NewMemory(memory.charge) })
	require.NoError(t, err)
	for name, storage := range map[string]wire.Storage{"disk": wire.StorageDisk, "memory": wire.StorageMemory} {
		require.NoError(t, administer(b, &wire.CreateRequest{Name: name, Kind: wire.Topic, Settings: wire.Settings{
			Partitions: 1, RetentionTimeMs: wire.Unlimited, RetentionBytes: wire.Unlimited, Storage: storage,
		}}))
	}
	n := startNode(t, Limits{}, func(o *engineOptions) { o.Backend = b })
	c := dialOpen(t, n.address)
	inMemory, onDisk := c.open("memory", 0), c.open("disk", 0)
	batch, _ := testBatch(t, strings.Repeat("x", 100_000))
	produce := func(h uint32) wire.ErrorCode {
		c.send(wire.OpProduce, 7, &wire.ProduceRequest{Handle: h, Acks: wire.AcksQuorum, Batch: batch})
		return c.answer(7).code()
	}
	code, sent := wire.CodeOK, 0
	for code == wire.CodeOK {
		if code = produce(inMemory); code == wire.CodeOK {
			sent++
		}
	}
	require.Equal(t, wire.CodeMemoryFull, code)
	require.Greater(t, sent, most/4/100_000) // allocation goes in steps
	require.LessOrEqual(t, used(), int64(most))
	require.Equal(t, wire.CodeOK, produce(onDisk))
	names, err := disk.List("data/partitions")
	require.NoError(t, err)
	require.Len(t, names, 1, "only the one on the disk")

	require.NoError(t, deleteNamed(b, "memory"))
	eventually(t, "the memory is given back", func() bool { return used() < most/4 })
	require.NoError(t, c.conn.Close())
	eventually(t, "session gone", func() bool { return n.engine.counters.sessions.Load() == 0 })
	require.NoError(t, b.close())
}
