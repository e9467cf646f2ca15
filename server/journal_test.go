package server

import (
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/partition"
	"github.com/lockstepmq/lockstep/vfs"
	"github.com/lockstepmq/lockstep/wire"
)

// TestRuleP2_ManyPartitionsShareSyncs lets many senders wait for synced records of
// many partitions, with the broker's own threads, cuts the power, and looks for
// what was acknowledged.
func TestRuleP2_ManyPartitionsShareSyncs(t *testing.T) {
	const partitions, rounds = 24, 20 // and one record before
	disk := vfs.NewSimulated(1)
	open := func() *broker {
		cfg, err := Config{DataDir: "/data", MinFreeBytes: -1, Logger: slog.New(slog.DiscardHandler)}.withDefaults()
		require.NoError(t, err)
		cfg.fs, cfg.memoryFS, cfg.bootID = disk, vfs.NewMemory(func(int64) error { return nil }), "boot"
		b, err := openBroker(cfg)
		require.NoError(t, err)
		return b
	}
	b := open()
	created := make(chan error, 1)
	b.Admin(&wire.CreateRequest{Name: "orders", Kind: wire.Topic, Settings: wire.Settings{
		Partitions: partitions, RetentionTimeMs: wire.Unlimited, RetentionBytes: wire.Unlimited,
	}}, func(_ wire.Message, err error) { created <- err })
	require.NoError(t, <-created)
	d, ok := b.View().Destination("orders")
	require.True(t, ok)
	batch, info := benchBatch(t, 100)
	errs := make(chan error, 2*partitions)
	send := func(rounds int) {
		var senders sync.WaitGroup
		for i := range uint32(partitions) {
			r := b.local(d.ID, i)
			senders.Go(func() {
				got := make(waitingReceiver, 1)
				for range rounds {
					err := r.Append(partition.Append{Batch: batch, Info: info, Acks: wire.AcksQuorum, Receiver: got})
					if err == nil {
						r.Kick(false)
						if code := <-got; code != wire.CodeOK {
							err = fmt.Errorf("partition %d: %v", i, code)
						}
					}
					if err != nil {
						errs <- err
						return
					}
				}
			})
		}
		senders.Wait()
	}
	send(1) // into new segments, which sync themselves
	// The simulated disk is too fast for syncs to meet: let them take until some do.
	met := make(chan struct{})
	var once sync.Once
	disk.Inject(func(op vfs.Op, name string) error {
		switch {
		case op == vfs.OpWrite && strings.HasSuffix(name, ".journal"):
			once.Do(func() { close(met) })
		case op == vfs.OpSync && strings.HasSuffix(name, ".segment"):
			<-met
		}
		return nil
	})
	send(rounds)
	disk.Inject(nil)
	require.Empty(t, errs)
	groups, syncs, _ := b.disk.JournalStats()
	require.NotZero(t, groups)
	t.Logf("%d syncs in %d groups", syncs, groups)

	disk.CrashLoseAll()
	_ = b.close() // its disk is gone
	b = open()
	for i := range uint32(partitions) {
		r := b.local(d.ID, i)
		require.Eventually(t, func() bool { return r.records.Watermark().Next == rounds+1 }, time.Minute, time.Millisecond, "partition %d", i)
	}
	require.NoError(t, b.close())
	names, err := disk.List("/data/journal")
	require.NoError(t, err)
	require.Empty(t, names)
}
