package server

import (
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/partition"
	"github.com/lockstepmq/lockstep/vfs"
	"github.com/lockstepmq/lockstep/wire"
)

// waitingReceiver lets one sender wait for its batch.
type waitingReceiver chan wire.ErrorCode

func (w waitingReceiver) Appended(_ uint64, _ wire.Receipt, code wire.ErrorCode) { w <- code }

func benchBatch(b testing.TB, size int) ([]byte, wire.BatchInfo) {
	var builder wire.BatchBuilder
	builder.Reset(false)
	require.True(b, builder.Append(0, 0, nil, make([]byte, size), nil, 0))
	batch, _ := builder.Finish(wire.ProducerIdentity{ID: wire.NoProducerID}, 0, wire.CodecNone, nil)
	info, err := wire.ParseBatch(batch)
	require.NoError(b, err)
	return batch, info
}

// BenchmarkRuleP2 measures what sharing syncs across partitions would bring: n
// partitions of the real broker with one synced record outstanding each, against
// n writers that share one file and its group commit.
//
//	go test ./server -run '^$' -bench RuleP2 -benchtime 20000x
func BenchmarkRuleP2(b *testing.B) {
	dir := os.Getenv("LOCKSTEP_BENCH_DIR") // a real disk, if the temporary directory is not on one
	for _, n := range []int{1, 64, 1000} {
		b.Run(fmt.Sprintf("partitions=%d/files=own", n), func(b *testing.B) { benchOwnFiles(b, dir, n) })
		b.Run(fmt.Sprintf("partitions=%d/files=shared", n), func(b *testing.B) { benchSharedFile(b, dir, n) })
	}
}

func benchDir(b *testing.B, dir string) string {
	if dir == "" {
		return b.TempDir()
	}
	d, err := os.MkdirTemp(dir, "bench-")
	require.NoError(b, err)
	b.Cleanup(func() { _ = os.RemoveAll(d) })
	return d
}

func benchOwnFiles(b *testing.B, dir string, n int) {
	cfg, err := Config{DataDir: benchDir(b, dir), MinFreeBytes: -1}.withDefaults()
	require.NoError(b, err)
	cfg.Limits.DescriptorReserve = 4096
	cfg.fs, cfg.memoryFS, cfg.bootID = vfs.OS(), vfs.NewMemory(func(int64) error { return nil }), "bench"
	broker, err := openBroker(cfg)
	require.NoError(b, err)
	defer func() { require.NoError(b, broker.close()) }()
	created := make(chan error, 1)
	broker.Admin(&wire.CreateRequest{Name: "bench", Kind: wire.Topic, Settings: wire.Settings{
		Partitions: uint32(n), RetentionTimeMs: wire.Unlimited, RetentionBytes: wire.Unlimited,
	}}, func(_ wire.Message, err error) { created <- err })
	require.NoError(b, <-created)
	d, _ := broker.View().Destination("bench")
	batch, info := benchBatch(b, 1024)
	senders := make([]func(), n)
	for i := range senders {
		r := broker.local(d.ID, uint32(i))
		got := make(waitingReceiver, 1)
		a := partition.Append{Batch: batch, Info: info, Acks: wire.AcksQuorum, Receiver: got}
		senders[i] = func() {
			if err := r.Append(a); err != nil {
				panic(err)
			}
			r.Kick(false)
			if code := <-got; code != wire.CodeOK {
				panic(code)
			}
		}
	}
	benchSenders(b, senders)
	if groups, syncs, _ := broker.disk.JournalStats(); groups > 0 {
		b.ReportMetric(float64(syncs)/float64(groups), "syncs/group")
		b.ReportMetric(float64(syncs)/float64(b.N), "shared")
	}
}

// benchSharedFile is the other side: the same records in one file, one
// fdatasync for all that wait.
func benchSharedFile(b *testing.B, dir string, n int) {
	f, err := vfs.OS().Create(filepath.Join(benchDir(b, dir), "shared"))
	require.NoError(b, err)
	defer f.Close()
	frame := make([]byte, wire.FrameSize(1200))
	var mu sync.Mutex
	cond := sync.NewCond(&mu)
	var position int64
	var written, synced int
	syncing := false
	send := func() {
		mu.Lock()
		defer mu.Unlock()
		if position%(8<<20) < int64(len(frame)) {
			if err := f.Allocate(position, 9<<20); err != nil {
				panic(err)
			}
		}
		if _, err := f.WriteAt(frame, position); err != nil {
			panic(err)
		}
		position += int64(len(frame))
		written++
		for mine := written; synced < mine; {
			if syncing {
				cond.Wait()
				continue
			}
			syncing = true
			upto := written
			mu.Unlock()
			err := f.Sync()
			mu.Lock()
			if err != nil {
				panic(err)
			}
			synced, syncing = upto, false
			cond.Broadcast()
		}
	}
	senders := make([]func(), n)
	for i := range senders {
		senders[i] = send
	}
	benchSenders(b, senders)
}

func benchSenders(b *testing.B, senders []func()) {
	for _, send := range senders {
		send() // elections and first segments are not measured
	}
	b.ResetTimer()
	started := time.Now()
	var all sync.WaitGroup
	for _, send := range senders {
		all.Go(func() {
			for range max(1, b.N/len(senders)) {
				send()
			}
		})
	}
	all.Wait()
	b.ReportMetric(float64(max(len(senders), b.N))/time.Since(started).Seconds(), "records/s")
}
