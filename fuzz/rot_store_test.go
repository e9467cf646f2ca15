package fuzz

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"path"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/log"
	"github.com/lockstepmq/lockstep/vfs"
	"github.com/lockstepmq/lockstep/wire"
)

const (
	rotDir     = "data"
	rotEntries = 30 // of each log
	// rotKnown is an entry of the first log that is known to be damaged beforehand, so
	// that there is a list of damage to rot.
	rotKnown = 26
)

// rotShape is how the broker ended that left the directory.
type rotShape string

const (
	rotStopped rotShape = "stopped in order"
	rotIdle    rotShape = "killed while idle"
	rotBusy    rotShape = "killed while busy, without a journal"
	rotCut     rotShape = "power cut, the newest entries only in the journal"
)

// rotStore is a data directory with two logs, byte by byte, and what is in it.
type rotStore struct {
	shape rotShape
	names []string
	files map[string][]byte
	dirs  []string
	logs  [2]rotLog
}

// rotLog is what one log holds, all of it acknowledged.
type rotLog struct {
	dir      string
	id       [16]byte
	identity [16]byte // of its slot
	first    wire.Index
	last     wire.Index
	start    wire.Offset
	next     wire.Offset
	entries  map[wire.Index]*rotEntry
}

// rotEntry is an entry as it was appended and, if it reached the segment, where.
type rotEntry struct {
	header wire.FrameHeader
	body   []byte
	file   string
	at     int64
}

// rotLife is a store that is open.
type rotLife struct {
	fs    *vfs.Simulated
	jobs  *atOnce
	store *log.Store
	logs  [2]*log.Log
	errs  [2]error
}

func newRotStore(t testing.TB, shape rotShape) *rotStore {
	s := &rotStore{shape: shape, files: map[string][]byte{}}
	for i := range s.logs {
		l := &s.logs[i]
		l.dir = fmt.Sprintf("%s/partitions/p-%d", rotDir, i)
		l.id = [16]byte{7, byte(i)}
		id := binary.LittleEndian.AppendUint32(bytes.Clone(l.id[:]), 1)
		sum := sha256.Sum256(binary.LittleEndian.AppendUint64(id, 3))
		l.identity = [16]byte(sum[:16])
		l.entries = map[wire.Index]*rotEntry{}
	}
	fs := vfs.NewSimulated(1)
	life, err := s.open(fs)
	require.NoError(t, err)
	random := rand.New(rand.NewPCG(3, 3))
	for i := range s.logs {
		life.logs[i].SetHardState(log.HardState{Term: 1, Vote: 3}, true)
	}
	for n := wire.Index(1); n <= rotEntries; n++ {
		for i, l := range life.logs {
			s.append(t, life, i, random)
			if n == 14 || n == 22 {
				c := log.Checkpoint{Applied: n, Term: 1, NextOffset: l.NextOffset(), ConfState: []byte("conf"), State: bytes.Repeat([]byte("state"), 20)}
				l.WriteCheckpoint(c)
				life.jobs.drain()
			}
			if n == 24 {
				l.Trim(s.logs[i].entries[13].header.BaseOffset)
				life.jobs.drain()
			}
			if n == rotKnown && i == 0 {
				s.locate(t, fs)
				e := s.logs[0].entries[rotKnown]
				require.NotEmpty(t, e.file)
				require.NoError(t, fs.Corrupt(e.file, e.at+wire.FrameHeaderSize+90, 3))
				d, err := l.Verify(e.header.BaseOffset)
				require.NoError(t, err)
				require.NotNil(t, d)
			}
			if shape == rotCut && n < rotEntries-3 {
				l.MarkIdle() // synced in its segment: only the newest are left to the journal
				life.jobs.drain()
			}
		}
	}
	for i, l := range life.logs {
		require.NoError(t, l.Err())
		require.Greater(t, l.FirstIndex(), wire.Index(1))
		s.logs[i].first, s.logs[i].last = l.FirstIndex(), l.LastIndex()
		s.logs[i].start, s.logs[i].next = l.StartOffset(), l.NextOffset()
	}
	switch shape {
	case rotStopped:
		for _, l := range life.logs {
			require.NoError(t, l.Close(true))
		}
		life.jobs.drain()
		require.NoError(t, life.store.Close())
	case rotIdle:
		for _, l := range life.logs {
			l.MarkIdle()
		}
		life.jobs.drain()
	case rotCut:
		fs.CrashLoseAll()
	}
	s.locate(t, fs)
	s.collect(t, fs, rotDir)
	return s
}

func (s *rotStore) logOf(name string) int {
	for i := range s.logs {
		if path.Dir(name) == s.logs[i].dir {
			return i
		}
	}
	return -1
}

// open opens the store and what can be opened of the logs.
func (s *rotStore) open(fs *vfs.Simulated) (*rotLife, error) {
	quiet := slog.New(slog.DiscardHandler)
	life := &rotLife{fs: fs, jobs: &atOnce{}}
	var err error
	o := log.StoreOptions{FS: fs, Dir: rotDir, UUID: [16]byte{1}, BootID: "a", MinFreeBytes: -1, ReserveBytes: -1, Logger: quiet}
	if s.shape != rotBusy {
		o.Executor, o.JournalLogs, o.JournalBytes = life.jobs, 1, 256<<10
	}
	life.store, err = log.OpenStore(o)
	if err != nil {
		return nil, err
	}
	for i := range s.logs {
		life.logs[i], life.errs[i] = log.Open(log.Options{
			Store: life.store, Dir: s.logs[i].dir, PartitionID: s.logs[i].id, Incarnation: 1, ReplicaID: 3,
			SegmentBytes: 4 << 10, Executor: life.jobs, Logger: quiet,
		})
	}
	return life, nil
}

// append appends an entry of one or two batches, or a control entry, makes it
// durable and publishes it.
func (s *rotStore) append(t testing.TB, life *rotLife, i int, random *rand.Rand) {
	t.Helper()
	l := life.logs[i]
	n := l.LastIndex() + 1
	data := make([]byte, wire.EntryPrefixSize)
	next := l.NextOffset()
	kind, count := wire.KindRecords, uint32(0)
	if n%9 == 0 {
		kind = wire.KindControl
		data = append(data, "a command of the leader"...)
	}
	for range 1 + random.IntN(2) {
		if kind == wire.KindControl {
			break
		}
		var b wire.BatchBuilder
		b.Reset(random.IntN(2) == 0)
		records := 1 + random.IntN(3)
		for r := range records {
			value := make([]byte, 20+random.IntN(150))
			for k := range value {
				value[k] = byte(random.Uint32())
			}
			require.True(t, b.Append(1000*int64(n), 0, []byte{byte(r)}, value, nil, uint64(r)))
		}
		batch, index := b.Finish(wire.ProducerIdentity{ID: int64(i), Sequence: int32(next)}, 0, wire.CodecNone, nil)
		wire.PatchBatch(batch, next, 1)
		data = wire.AppendBodyBatch(data, index, batch)
		next += wire.Offset(records)
		count += uint32(records)
	}
	wire.PutEntryPrefix(data, kind, count, 1000*int64(n))
	for errors.Is(l.Reserve(wire.FrameSize(len(data)), kind == wire.KindRecords), log.ErrNotReady) {
		life.jobs.drain()
	}
	base := l.NextOffset()
	require.NoError(t, l.Append([]log.Entry{{Index: n, Term: 1, Kind: kind, Data: data}}))
	body := bytes.Clone(data[wire.EntryPrefixSize:])
	s.logs[i].entries[n] = &rotEntry{body: body, header: wire.FrameHeader{Index: n, BaseOffset: base, RecordCount: count, Term: 1, Kind: kind, AppendTimeMs: 1000 * int64(n)}}
	l.Sync()
	life.jobs.drain()
	require.Equal(t, n, l.DurableIndex())
	l.SetHardState(log.HardState{Term: 1, Vote: 3, Commit: n}, false)
	l.Publish(n)
	l.Release(n, nil)
	life.jobs.drain()
}

// locate finds the frames in the segments.
func (s *rotStore) locate(t testing.TB, fs *vfs.Simulated) {
	t.Helper()
	for i := range s.logs {
		l := &s.logs[i]
		for _, e := range l.entries {
			e.file = ""
		}
		require.NoError(t, log.Inspect(fs, l.dir, func(f log.InspectedFrame) error {
			if e := l.entries[f.Header.Index]; e != nil && (f.Problem == nil || f.Header.Index == rotKnown) && f.Header.HeaderCRC != 0 {
				e.header, e.file, e.at = f.Header, path.Join(l.dir, f.File), f.Position
			}
			return nil
		}))
	}
}

// collect copies the files below dir.
func (s *rotStore) collect(t testing.TB, fs *vfs.Simulated, dir string) {
	t.Helper()
	s.dirs = append(s.dirs, dir)
	names, err := fs.List(dir)
	require.NoError(t, err)
	for _, name := range names {
		name = path.Join(dir, name)
		info, err := fs.Stat(name)
		require.NoError(t, err)
		switch {
		case info.IsDir():
			s.collect(t, fs, name)
		case strings.HasSuffix(name, "/lock") || info.Size() == 0:
		default:
			s.names = append(s.names, name)
			s.files[name] = readWhole(t, fs, name)
		}
	}
}

func readWhole(t testing.TB, fs vfs.FS, name string) []byte {
	t.Helper()
	f, err := fs.OpenReadOnly(name)
	require.NoError(t, err)
	size, err := f.Size()
	require.NoError(t, err)
	content := make([]byte, size)
	if size > 0 {
		_, err = f.ReadAt(content, 0)
		require.NoError(t, err)
	}
	require.NoError(t, f.Close())
	return content
}

// restore writes the files to a new disk.
func (s *rotStore) restore(t testing.TB) *vfs.Simulated {
	t.Helper()
	fs := vfs.NewSimulated(2)
	for _, dir := range s.dirs {
		require.NoError(t, fs.MkdirAll(dir))
	}
	for _, name := range s.names {
		f, err := fs.Create(name)
		require.NoError(t, err)
		_, err = f.WriteAt(s.files[name], 0)
		require.NoError(t, err)
		require.NoError(t, f.Sync())
		require.NoError(t, f.Close())
	}
	for _, dir := range append([]string{"."}, s.dirs...) {
		require.NoError(t, fs.SyncDir(dir))
	}
	return fs
}
