package replication

import (
	"fmt"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/log"
	"github.com/lockstepmq/lockstep/vfs"
	"github.com/lockstepmq/lockstep/wire"
)

// nothing is a state machine without state.
type nothing struct{}

func (nothing) Apply(Entry)          {}
func (nothing) Restore([]byte) error { return nil }
func (nothing) Snapshot() func(dst []byte) []byte {
	return func(dst []byte) []byte { return dst }
}

// BenchmarkOneVoter shows what consensus with one voter adds to an entry: the same
// entries into the same log, with a Raft group in front and without.
//
//	go test ./replication -tags release -run '^$' -bench OneVoter -benchmem
func BenchmarkOneVoter(b *testing.B) {
	for _, size := range []int{100, 1 << 10, 64 << 10} {
		b.Run(fmt.Sprintf("entry=%dB/log-alone", size), func(b *testing.B) { benchAppend(b, size, false) })
		b.Run(fmt.Sprintf("entry=%dB/with-raft", size), func(b *testing.B) { benchAppend(b, size, true) })
	}
}

func benchAppend(b *testing.B, size int, consensus bool) {
	dir := b.TempDir()
	store, err := log.OpenStore(log.StoreOptions{FS: vfs.OS(), Dir: dir, BootID: "bench", MinFreeBytes: -1, ReserveBytes: -1})
	require.NoError(b, err)
	var exec queueExecutor
	l, err := log.Open(log.Options{
		Store: store, Dir: filepath.Join(dir, "partitions", "p-0"), PartitionID: [16]byte{1}, Incarnation: 1,
		ReplicaID: 1, Sync: log.SyncOS, Executor: &exec,
	})
	require.NoError(b, err)
	g, err := Open(Config{ReplicaID: 1, Voters: []uint64{1}, Log: l, State: nothing{}, CheckpointBytes: 1 << 40})
	require.NoError(b, err)
	work := func() {
		for len(exec.jobs) > 0 {
			j := exec.jobs[0]
			exec.jobs = exec.jobs[1:]
			j.Run()
			j.Done()
			g.Turn()
		}
	}
	reserve := func() {
		for l.Reserve(wire.FrameSize(size), true) != nil {
			work()
		}
	}
	reserve()
	g.Campaign()
	work()
	data := make([]byte, wire.EntryPrefixSize+size)
	wire.PutEntryPrefix(data, wire.KindRecords, 1, 1)
	entries := make([]log.Entry, 1)
	b.SetBytes(int64(size))
	b.ReportAllocs()
	kept := wire.Offset(0)
	for b.Loop() {
		reserve()
		if consensus {
			if _, err := g.Propose(data); err != nil {
				b.Fatal(err)
			}
		} else {
			entries[0] = log.Entry{Index: l.LastIndex() + 1, Term: 1, Kind: wire.KindRecords, Data: data}
			if err := l.Append(entries); err != nil {
				b.Fatal(err)
			}
			l.Publish(l.LastIndex())
			l.Release(l.LastIndex(), nil)
		}
		if next := l.NextOffset(); next-kept > 1<<14 { // do not fill the disk
			kept = next
			l.Trim(next)
			work()
		}
	}
	b.StopTimer()
	work()
	require.NoError(b, l.Close(true))
	require.NoError(b, store.Close())
}
