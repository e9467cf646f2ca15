package log

import (
	"errors"
	"flag"
	"fmt"
	"path"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/internal/invariants"
	"github.com/lockstepmq/lockstep/vfs"
	"github.com/lockstepmq/lockstep/wire"
)

var raceFetches = flag.Int64("race.fetches", 20_000, "how many fetches TestF25 races against the writer, on disk and in memory each")

// RELIABILITY F25: what readers were given stays what it was while segments are rolled,
// cut, dropped, used again and unmapped behind their backs. In invariants builds an
// unmapped range keeps its addresses without access, so that a late touch faults, and a
// fault is an error of the reader here.
func TestF25_ReadersRaceWithAppendRollTruncateAndTrim(t *testing.T) {
	for _, memory := range []bool{false, true} {
		r := &race{fs: vfs.OS(), dir: t.TempDir() + "/data", fetches: *raceFetches}
		if memory {
			r.fs, r.dir, r.memory = vfs.NewMemory(func(int64) error { return nil }), "/data", true
		}
		require.NoError(t, r.run(t), "memory %t", memory)
		t.Logf("memory %t: %d fetches of %d frames beside %d appends, %d truncations, %d files unlinked or used again",
			memory, r.fetched.Load(), r.frames.Load(), r.appended, r.truncated, r.first-1)
	}
}

// A view that is released before its bytes are sent may be unmapped by then.
func TestF25_Catches_AViewThatIsReleasedEarly(t *testing.T) {
	if !invariants.Enabled {
		t.Skip("release builds neither poison nor reserve what is released")
	}
	r := &race{fs: vfs.OS(), dir: t.TempDir() + "/data", fetches: 1e7, early: true}
	err := r.run(t)
	require.Error(t, err)
	t.Logf("caught after %d fetches: %v", r.fetched.Load(), err)
}

// The last view of a dropped segment keeps its range: once it is unmapped before, the
// next touch faults.
func TestF25_Catches_AMapThatGoesUnderItsReaders(t *testing.T) {
	if !invariants.Enabled {
		t.Skip("release builds do not reserve what is unmapped")
	}
	disk := &hastyDisk{FS: vfs.OS(), unmap: true}
	r := &race{fs: disk, dir: t.TempDir() + "/data", fetches: 1e7}
	err := r.run(t)
	require.ErrorContains(t, err, "fault")
	t.Logf("caught after %d fetches: %v", r.fetched.Load(), err)
}

// A file that somebody reads is unlinked; were it used again, readers would get the
// bytes of others.
func TestF25_Catches_AFileThatIsUsedAgainUnderItsReaders(t *testing.T) {
	disk := &hastyDisk{FS: vfs.OS(), reuse: true}
	r := &race{fs: disk, dir: t.TempDir() + "/data", fetches: 1e7}
	err := r.run(t)
	require.Error(t, err)
	require.NotContains(t, err.Error(), "fault")
	t.Logf("caught after %d fetches: %v", r.fetched.Load(), err)
}

// hastyDisk does not wait for the readers of a segment.
type hastyDisk struct {
	vfs.FS
	unmap bool // its maps go when the name of a file does
	reuse bool // another log writes into the file when its name goes

	mu    sync.Mutex
	files []*hastyFile
}

// wrap keeps a file that was opened.
func (d *hastyDisk) wrap(f vfs.File, name string, err error) (vfs.File, error) {
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.files = append(d.files, &hastyFile{File: f, disk: d, name: name})
	return d.files[len(d.files)-1], nil
}

func (d *hastyDisk) Create(name string) (vfs.File, error) {
	f, err := d.FS.Create(name)
	return d.wrap(f, name, err)
}

func (d *hastyDisk) Open(name string) (vfs.File, error) {
	f, err := d.FS.Open(name)
	return d.wrap(f, name, err)
}

func (d *hastyDisk) Rename(from, to string) error {
	d.mu.Lock()
	for _, f := range d.files {
		if f.name == from {
			f.name = to
		}
	}
	d.mu.Unlock()
	return d.FS.Rename(from, to)
}

func (d *hastyDisk) Remove(name string) error {
	if d.reuse && strings.HasSuffix(name, ".segment") {
		if f, err := d.FS.Open(name); err == nil {
			_, _ = f.WriteAt(make([]byte, 20_000), 0)
			_ = f.Close()
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, f := range d.files {
		if f.name == name && d.unmap {
			for _, m := range f.maps {
				_ = m.Unmap()
			}
		}
	}
	return d.FS.Remove(name)
}

type hastyFile struct {
	vfs.File
	disk *hastyDisk
	name string // under disk.mu
	maps []vfs.Mapping
}

// Map keeps the mapping of the file; the segment may unmap it again.
func (f *hastyFile) Map(n int64) (vfs.Mapping, error) {
	m, err := f.File.Map(n)
	if err != nil {
		return nil, err
	}
	f.disk.mu.Lock()
	defer f.disk.mu.Unlock()
	f.maps = append(f.maps, &mappingOnce{Mapping: m})
	return f.maps[len(f.maps)-1], nil
}

// mappingOnce is unmapped by whoever comes first.
type mappingOnce struct {
	vfs.Mapping
	once sync.Once
}

func (m *mappingOnce) Unmap() (err error) {
	m.once.Do(func() { err = m.Mapping.Unmap() })
	return err
}

// race is a log with a writer, which does everything a log can do, and readers.
type race struct {
	fs      vfs.FS
	dir     string
	memory  bool
	fetches int64 // to be reached
	early   bool  // views are released before they are read

	log             *Log
	pool            *pool
	stop            atomic.Bool
	fetched, frames atomic.Int64
	views           atomic.Int64
	failures        chan error

	mu     sync.RWMutex
	bodies map[wire.Index]body // as appended last

	appended, truncated int
	first               wire.Index
}

// body says what an entry is.
type body struct {
	term wire.Term
	crc  uint32
}

// run races until the fetches are done and returns what a reader has noticed first.
func (r *race) run(t *testing.T) error {
	t.Helper()
	store, err := OpenStore(StoreOptions{FS: r.fs, Dir: r.dir, BootID: "b", MinFreeBytes: -1, ReserveBytes: -1, OpenSegments: 4, MappedSegments: 3, Memory: r.memory, Logger: quiet})
	require.NoError(t, err)
	r.pool, r.bodies, r.failures = newPool(3), map[wire.Index]body{}, make(chan error, 10)
	r.log, err = Open(Options{Store: store, Dir: path.Join(r.dir, "partitions/p"), PartitionID: testPartition, SegmentBytes: 20_000, Executor: r.pool, Logger: quiet})
	require.NoError(t, err)
	var readers sync.WaitGroup
	for reader := range 4 {
		readers.Go(func() {
			if err := r.read(reader); err != nil {
				r.failures <- err
			}
		})
	}
	r.write(t)
	r.stop.Store(true)
	readers.Wait()
	close(r.failures)
	if err := <-r.failures; err != nil {
		close(r.pool.jobs)
		r.pool.wait.Wait() // before the directory goes
		return err
	}
	require.NoError(t, r.log.Err())
	r.first = r.log.FirstIndex()
	require.NoError(t, r.log.Close(true))
	close(r.pool.jobs)
	r.pool.wait.Wait()
	r.pool.turn(false)
	files, maps := store.OpenFiles()
	require.Zero(t, files+maps, "everything is closed")
	require.NoError(t, store.Close())
	return nil
}

// write appends, cuts, publishes, takes checkpoints and trims until the readers have
// had their share and segments have gone.
func (r *race) write(t *testing.T) {
	l := r.log
	hs := HardState{Term: 1}
	l.SetHardState(hs, true)
	for i := wire.Index(1); (r.fetched.Load() < r.fetches || int64(r.appended) < r.fetches/50 || l.FirstIndex() == 1) && len(r.failures) == 0; r.appended++ {
		if r.appended%50 == 49 && l.LastIndex() > l.commit() {
			hs.Term++
			l.SetHardState(hs, true)
			i = l.commit() + 1
			r.truncated++
		}
		e := records(i, hs.Term, 1, int(i*37%700))
		if i%5 == 0 {
			e = control(i, hs.Term, 20)
		}
		r.append(t, e)
		i++
		l.Sync()
		r.pool.turn(r.appended%3 == 0)
		if stable := l.DurableIndex(); stable > 3 && r.appended%3 == 0 {
			l.Publish(stable - 1)
			l.Release(stable-1, nil)
		}
		if c := l.Watermark().Index; r.appended%100 == 0 && c > l.newest && !l.CheckpointPending() {
			pl, _ := l.place(c)
			l.WriteCheckpoint(Checkpoint{Applied: c, Term: pl.link.Term, NextOffset: pl.link.Next})
			if pl.link.Next > 60 {
				l.Trim(pl.link.Next - 60)
			}
		}
		if r.appended%200 == 0 {
			l.MarkIdle()
		}
	}
}

func (r *race) append(t *testing.T, e Entry) {
	for {
		err := r.log.Reserve(frameSize(e), true)
		if err == nil {
			r.note(e)
			err = r.log.Append([]Entry{e})
		}
		if err == nil {
			return
		}
		require.ErrorIs(t, err, ErrNotReady)
		r.pool.turn(true)
	}
}

// note remembers which entry has an index, before anybody can read it.
func (r *race) note(e Entry) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.bodies[e.Index] = body{e.Term, wire.Checksum(e.Data[wire.EntryPrefixSize:])}
}

// is reports whether a frame is the one that was appended with its index.
func (r *race) is(h *wire.FrameHeader) bool {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.bodies[h.Index] == body{h.Term, h.BodyCRC}
}

// read follows the log and checks every frame it sees. Every second reader uses
// views, the others copies.
func (r *race) read(reader int) (err error) {
	debug.SetPanicOnFault(true) // of this goroutine
	defer func() {
		if fault := recover(); fault != nil {
			err = fmt.Errorf("reader %d: fault: %v", reader, fault)
		}
	}()
	l, buf := r.log, make([]byte, 3000)
	for round := 0; !r.stop.Load(); round++ {
		start := l.StartOffset()
		p, base, err := l.Locate(start)
		if errors.Is(err, ErrOffsetOutOfRange) {
			continue
		}
		if err != nil {
			return fmt.Errorf("locate %d: %w", start, err)
		}
		if reader == 3 {
			if _, err := l.LocateTime(int64(round)); err != nil {
				return err
			}
		}
		var stream []byte
		waited := 0
		for !r.stop.Load() {
			before := len(stream)
			if reader%2 == 0 {
				stream, p, err = r.view(stream, p)
			} else {
				var n int
				n, p, err = l.ReadAt(p, buf)
				stream = append(stream, buf[:n]...)
			}
			if errors.Is(err, ErrOffsetOutOfRange) {
				break // dropped: start again
			}
			if err != nil {
				return fmt.Errorf("reader %d at %v: %w", reader, p, err)
			}
			if len(stream) > before {
				r.fetched.Add(1)
			}
			for len(stream) >= wire.FrameHeaderSize {
				h, err := wire.ParseFrameHeader(stream)
				if err != nil {
					return fmt.Errorf("reader %d at %v: %w", reader, p, err)
				}
				if int64(len(stream)) < h.FrameSize() {
					break
				}
				if h.BaseOffset != base || wire.Checksum(stream[wire.FrameHeaderSize:][:h.BodyLength]) != h.BodyCRC {
					return fmt.Errorf("reader %d at %v: offset %d, want %d", reader, p, h.BaseOffset, base)
				}
				if !r.is(&h) {
					return fmt.Errorf("reader %d at %v: foreign bytes: offset %d holds entry %d of term %d", reader, p, h.BaseOffset, h.Index, h.Term)
				}
				base = h.NextOffset()
				r.frames.Add(1)
				stream = stream[h.FrameSize():]
				before = -1
			}
			if len(stream) == before {
				if waited++; round%3 == 0 || waited == 3 {
					break // at the watermark, or where it was cold: look from the start again
				}
			}
		}
	}
	return nil
}

// view appends to the stream what is at a position. Now and then it holds the view
// until the segments of that time are gone.
func (r *race) view(stream []byte, p Position) ([]byte, Position, error) {
	v, err := r.log.View(p, 2500)
	if errors.Is(err, ErrCold) {
		return stream, p, r.log.Populate(p, 2500)
	}
	if err != nil {
		return stream, p, err
	}
	slices, next := v.Slices, v.Next
	if r.early {
		v.Release()
	} else {
		defer v.Release()
	}
	if len(slices) > 0 && r.views.Add(1)%101 == 0 {
		// What a drop lets go is removed before the next drop.
		dropped := next.Segment + 1
		for r.oldest() < dropped && !r.stop.Load() {
			time.Sleep(50 * time.Microsecond) // the owner tells nobody when it drops
			if dropped == next.Segment+1 && r.oldest() >= dropped {
				dropped = r.oldest() + 1
			}
		}
	}
	for _, s := range slices {
		stream = append(stream, s...)
	}
	return stream, next, nil
}

// oldest is the sequence of the oldest segment.
func (r *race) oldest() uint64 { return (*r.log.segments.Load())[0].Sequence() }

func viewed(l *Log, stream []byte, p Position) ([]byte, Position, error) {
	return (&race{log: l}).view(stream, p)
}
