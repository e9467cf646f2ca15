package log

import (
	"errors"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/segment"
	"github.com/lockstepmq/lockstep/vfs"
	"github.com/lockstepmq/lockstep/wire"
)

func benchLog(b *testing.B, memory bool) *rig {
	r := &rig{t: b, fs: vfs.OS(), jobs: &queue{}}
	dir := b.TempDir() + "/data"
	if memory {
		r.fs = vfs.NewMemory(func(int64) error { return nil })
	}
	var err error
	r.store, err = OpenStore(StoreOptions{FS: r.fs, Dir: dir, BootID: "b", MinFreeBytes: -1, ReserveBytes: -1, Memory: memory, Logger: quiet})
	require.NoError(b, err)
	r.log, err = Open(Options{Store: r.store, Dir: dir + "/partitions/p", PartitionID: testPartition, Sync: SyncOS, Executor: r.jobs, Logger: quiet})
	require.NoError(b, err)
	b.Cleanup(func() {
		require.NoError(b, r.log.Close(false))
		r.jobs.drain()
		require.NoError(b, r.store.Close())
	})
	return r
}

// BenchmarkAppend writes entries, publishes them, and retains about 256 MiB, so
// that files are recycled. On the disk a checkpoint every 128 MiB syncs in line,
// which is most of the time; in memory it is the package's own cost and the copy.
func BenchmarkAppend(b *testing.B) {
	for _, c := range []struct {
		name   string
		memory bool
		size   int
	}{{"disk/1KiB", false, 1 << 10}, {"disk/64KiB", false, 64 << 10}, {"memory/1KiB", true, 1 << 10}, {"memory/64KiB", true, 64 << 10}} {
		b.Run(c.name, func(b *testing.B) {
			r := benchLog(b, c.memory)
			l := r.log
			e := []Entry{records(1, 1, 64, c.size)}
			size := frameSize(e[0])
			b.SetBytes(int64(c.size))
			b.ReportAllocs()
			for i := wire.Index(1); b.Loop(); i++ {
				for errors.Is(l.Reserve(size, true), ErrNotReady) {
					r.jobs.drain()
				}
				e[0].Index = i
				if err := l.Append(e); err != nil {
					b.Fatal(err)
				}
				l.Publish(i)
				l.Release(i, nil)
				if l.BytesSinceCheckpoint() > 128<<20 && !l.CheckpointPending() {
					l.WriteCheckpoint(Checkpoint{Applied: i, Term: 1, NextOffset: l.NextOffset()})
					if o := l.NextOffset(); o > wire.Offset(64*(128<<20)/c.size) {
						l.Trim(o - wire.Offset(64*(128<<20)/c.size))
					}
					r.jobs.drain()
				}
			}
		})
	}
}

// BenchmarkView takes views of 256 KiB from the end of a log of 64 KiB entries.
func BenchmarkView(b *testing.B) {
	r := benchLog(b, false)
	l := r.log
	for i := wire.Index(1); i <= 200; i++ {
		e := records(i, 1, 64, 64<<10)
		if i%20 == 0 {
			e = control(i, 1, 100)
		}
		r.append(e)
		l.Publish(i)
		l.Release(i, nil)
	}
	start := Position{Segment: 1, Byte: 128}
	require.NoError(b, l.Populate(start, 16<<20))
	p := start
	b.ReportAllocs()
	bytes := int64(0)
	n := 0
	for b.Loop() {
		v, err := l.View(p, 256<<10)
		if err != nil {
			b.Fatal(err)
		}
		bytes += int64(v.Bytes)
		n++
		p = v.Next
		if v.Bytes == 0 {
			p = start
		}
		v.Release()
	}
	b.SetBytes(bytes / int64(n))
}

// BenchmarkLocate finds offsets through the sparse index.
func BenchmarkLocate(b *testing.B) {
	r := benchLog(b, false)
	for i := wire.Index(1); i <= 5000; i++ {
		r.append(records(i, 1, 1, 4<<10))
		r.log.Publish(i)
		r.log.Release(i, nil)
	}
	b.ReportAllocs()
	for n := wire.Offset(0); b.Loop(); n += 7919 {
		if _, _, err := r.log.Locate(n % 5000); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkRawWrite is what BenchmarkAppend can reach at most: pwritev of the
// same bytes into files of 64 MiB, allocated in steps of 8 MiB, in turns.
func BenchmarkRawWrite(b *testing.B) {
	for _, c := range []struct {
		name string
		size int
	}{{"1KiB", 1 << 10}, {"64KiB", 64 << 10}, {"1MiB", 1 << 20}} {
		b.Run(c.name, func(b *testing.B) {
			fs := vfs.OS()
			dir := b.TempDir()
			var files []vfs.File
			for n := range 5 {
				f, err := fs.Create(dir + "/" + string(rune('a'+n)))
				require.NoError(b, err)
				defer f.Close()
				files = append(files, f)
			}
			buf := make([]byte, c.size)
			b.SetBytes(int64(c.size))
			pos, n := int64(0), 0
			for b.Loop() {
				if pos+int64(c.size) > 64<<20 {
					pos, n = 0, (n+1)%len(files)
				}
				if size, _ := files[n].Size(); pos+int64(c.size) > size {
					require.NoError(b, files[n].Allocate(size, 8<<20))
				}
				if err := files[n].WritevAt([][]byte{buf[:64], buf[64:]}, pos); err != nil {
					b.Fatal(err)
				}
				pos += int64(c.size)
			}
		})
	}
}

// BenchmarkNextOf finds the next record of a key among 10,000 that lies 2 million records
// of 100 bytes behind the last one, in the last but one of some six segments, by key
// tables and without them.
func BenchmarkNextOf(b *testing.B) {
	const batches, each, keys = 20_000, 100, 10_000
	r := benchLog(b, false)
	l := r.log
	l.KeepKeys(true)
	value := make([]byte, 80)
	var builder wire.BatchBuilder
	var index wire.Index
	for n := range batches {
		builder.Reset(true)
		for k := range each {
			hash := uint64(n*each+k)%keys + 2
			if n == 0 && k == 0 || n == batches-batches/8 && k == 0 {
				hash = 1
			}
			builder.Append(0, 0, []byte("key-0123"), value, nil, hash*0x9e3779b97f4a7c15)
		}
		batch, records := builder.Finish(wire.ProducerIdentity{ID: wire.NoProducerID}, 7, wire.CodecNone, nil)
		wire.PatchBatch(batch, wire.Offset(n*each), 1)
		body := wire.AppendBodyBatch(nil, records, batch)
		index++
		e := prefixed(wire.KindRecords, index, 1, each, 1000, len(body))
		copy(e.Data[wire.EntryPrefixSize:], body)
		r.append(e)
		l.Publish(index)
		l.Release(index, nil)
		r.jobs.drain()
	}
	find := func(b *testing.B) {
		for b.Loop() {
			at, ok, err := l.NextOf(0x9e3779b97f4a7c15, false, 0, batches*each, func(wire.Offset) bool { return false })
			if err != nil || !ok || at != (batches-batches/8)*each {
				b.Fatal(at, ok, err)
			}
		}
	}
	b.Run("tables", find)
	for _, s := range *l.segments.Load() {
		s.SetKeys(segment.KeysNone)
	}
	b.Run("indexes", find)
}
