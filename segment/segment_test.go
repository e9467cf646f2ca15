package segment

import (
	"bytes"
	"errors"
	"io"
	iofs "io/fs"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/internal/invariants"
	"github.com/lockstepmq/lockstep/vfs"
	"github.com/lockstepmq/lockstep/wire"
)

func newEnv(t *testing.T, fs vfs.FS, files, maps int) *Env {
	require.NoError(t, fs.MkdirAll("/d"))
	return &Env{FS: fs, Files: NewCache(files), Maps: NewCache(maps)}
}

// writer appends frames to a segment.
type writer struct {
	t    *testing.T
	s    *Segment
	link Link
	at   map[wire.Index]int64
}

func newWriter(t *testing.T, env *Env, sequence uint64, capacity int64) *writer {
	s, err := Create(env, "/d", testIdentity, sequence, sequence+100, capacity, capacity)
	require.NoError(t, err)
	return &writer{t: t, s: s, link: Seed(testIdentity), at: map[wire.Index]int64{}}
}

func (w *writer) append(kind wire.Kind, count uint32, timeMs int64, body []byte) wire.FrameHeader {
	w.t.Helper()
	h := wire.FrameHeader{
		Kind: kind, RecordCount: count, Term: 1, Index: w.link.Index + 1, BaseOffset: w.link.Next, AppendTimeMs: timeMs,
		BodyLength: uint32(len(body)), BodyCRC: wire.Checksum(body), PrevCRC: w.link.Chain,
	}
	b := make([]byte, h.FrameSize())
	h.Encode(b)
	PutMark(b, EncodeMark(w.s.FileID(), h.HeaderCRC, w.link.Index))
	copy(b[wire.FrameHeaderSize:], body)
	f, err := w.s.File()
	require.NoError(w.t, err)
	defer f.Release()
	pos := w.s.End()
	bufs, size := [][]byte{b}, int64(len(b))
	if pos == 0 {
		header := make([]byte, HeaderSize)
		w.s.Begin(w.link, header)
		bufs, size, pos = [][]byte{header, b}, size+HeaderSize, HeaderSize
	}
	require.NoError(w.t, w.s.Append(f, bufs, size))
	w.s.Note(&h, pos)
	w.at[h.Index] = pos
	w.link = After(&h)
	return h
}

func view(t *testing.T, s *Segment, from, end int64, maxBytes int) ([]byte, Position) {
	t.Helper()
	_, err := s.Populate(from, end, maxBytes)
	require.NoError(t, err)
	v := &View{}
	require.NoError(t, s.View(v, from, end, maxBytes, 0))
	var out []byte
	for _, b := range v.Slices {
		out = append(out, b...)
	}
	require.Len(t, out, v.Bytes)
	v.Release()
	return out, v.Next
}

func TestViewsLeaveOutFramesWithoutRecords(t *testing.T) {
	w := newWriter(t, newEnv(t, vfs.NewSimulated(1), 10, 10), 1, 1<<20)
	body := bytes.Repeat([]byte("x"), 100)
	w.append(wire.KindNoOp, 0, 0, nil)             // 1
	w.append(wire.KindRecords, 1, 1, body)         // 2
	w.append(wire.KindControl, 0, 2, body)         // 3
	w.append(wire.KindConfiguration, 0, 2, body)   // 4
	w.append(wire.KindRecords, 1, 3, body)         // 5
	w.append(wire.KindRecords, 1, 3, nil)          // 6
	w.append(wire.KindControl, 0, 3, []byte("ab")) // 7
	end := w.s.End()

	raw := make([]byte, end)
	f, err := w.s.File()
	require.NoError(t, err)
	_, err = f.File.ReadAt(raw, 0)
	require.NoError(t, err)
	f.Release()
	want := append(append([]byte(nil), raw[w.at[2]:w.at[3]]...), raw[w.at[5]:w.at[7]]...)

	got, next := view(t, w.s, HeaderSize, end, 1<<20)
	require.Equal(t, want, got)
	require.Equal(t, Position{Segment: 1, Byte: end}, next)

	for maxBytes := 1; maxBytes < len(want)+2; maxBytes++ {
		var viewed, read []byte
		for pos := int64(HeaderSize); pos < end; {
			b, next := view(t, w.s, pos, end, maxBytes)
			require.LessOrEqual(t, len(b), maxBytes)
			viewed = append(viewed, b...)
			require.Greater(t, next.Byte, pos)
			pos = next.Byte
		}
		require.Equal(t, want, viewed)
		for pos, buf := int64(HeaderSize), make([]byte, maxBytes); pos < end; {
			n, next, err := w.s.ReadAt(buf, pos, end)
			require.NoError(t, err)
			read = append(read, buf[:n]...)
			pos = next
		}
		require.Equal(t, want, read)
	}

	// A watermark between two frames of a run.
	got, next = view(t, w.s, w.at[3], w.at[4], 1000)
	require.Empty(t, got)
	require.Equal(t, w.at[4], next.Byte)
}

func TestRunsAreBounded(t *testing.T) {
	d := newDetails()
	for i := range int64(MaxRuns + 100) {
		d.addRun(i*100, i*100+50)
	}
	require.Equal(t, MaxRuns, d.runs.len())
	require.Equal(t, int64((MaxRuns-1)*100), d.runs.at(MaxRuns-1).from)
}

func TestAdjoiningRunsAreOne(t *testing.T) {
	d := newDetails()
	for i := range int64(100_000) {
		d.addRun(i*64, i*64+64)
	}
	require.Equal(t, 1, d.runs.len())
	require.Equal(t, int64(6_400_000), d.runs.at(0).to.Load())
}

func TestViewIsReleasedExactlyOnce(t *testing.T) {
	w := newWriter(t, newEnv(t, vfs.NewSimulated(1), 10, 10), 1, 1<<20)
	w.append(wire.KindRecords, 1, 1, []byte("body"))
	_, err := w.s.Populate(HeaderSize, w.s.End(), 100)
	require.NoError(t, err)
	for _, from := range []int64{HeaderSize, w.s.End()} {
		v := &View{}
		require.NoError(t, w.s.View(v, from, w.s.End(), 1000, 0))
		v.Release()
		require.Panics(t, v.Release)
	}
	require.True(t, w.s.Release(), "views have given their references back")
}

func TestSomeViewsArePoisonedOnRelease(t *testing.T) {
	if !invariants.Enabled {
		t.Skip("the check is off in release builds")
	}
	w := newWriter(t, newEnv(t, vfs.NewSimulated(1), 10, 10), 1, 1<<20)
	w.append(wire.KindRecords, 1, 1, []byte("body"))
	_, err := w.s.Populate(HeaderSize, w.s.End(), 100)
	require.NoError(t, err)
	poisoned := 0
	for range 2 * cloneEvery {
		v := &View{}
		require.NoError(t, w.s.View(v, HeaderSize, w.s.End(), 1000, 0))
		kept := v.Slices[0]
		v.Release()
		if kept[0] == poison {
			poisoned++
		}
	}
	require.Equal(t, 2, poisoned)
}

func TestViewNeverBlocks(t *testing.T) {
	fs := vfs.NewSimulated(1)
	env := newEnv(t, fs, 10, 10)
	w := newWriter(t, env, 1, 1<<20)
	w.append(wire.KindRecords, 1, 1, []byte("body"))
	end := w.s.End()
	v := &View{}
	require.ErrorIs(t, w.s.View(v, HeaderSize, end, 1000, 0), ErrCold, "not mapped")
	_, err := w.s.Populate(HeaderSize, end, 100)
	require.NoError(t, err)
	before := fs.Ops()
	require.NoError(t, w.s.View(v, HeaderSize, end, 1000, 0))
	v.Release()
	require.ErrorIs(t, w.s.View(&View{}, HeaderSize, end, 1000, end), nil, "populated though outside the window of appended bytes")
	env.Traffic.Add(populatedTraffic)
	require.ErrorIs(t, w.s.View(&View{}, HeaderSize, end, 1000, end), ErrCold, "populated too long ago")
	require.ErrorIs(t, w.s.View(&View{}, HeaderSize, end, 1000, 0), nil, "appended by this process and in the window")
	w.s.Recovered()
	require.ErrorIs(t, w.s.View(&View{}, HeaderSize, end, 1000, 0), ErrCold, "found at recovery")
	if !invariants.Enabled {
		require.Equal(t, before, fs.Ops())
	}
}

func TestF11_AnErrorUnderAMapIsAnError(t *testing.T) {
	fs := vfs.NewSimulated(1)
	w := newWriter(t, newEnv(t, fs, 10, 10), 1, 1<<20)
	w.append(wire.KindRecords, 1, 1, []byte("body"))
	eio := errors.New("input/output error")
	for _, op := range []vfs.Op{vfs.OpPopulate, vfs.OpMap} {
		fs.Inject(func(o vfs.Op, _ string) error {
			if o == op {
				return eio
			}
			return nil
		})
		_, err := w.s.Populate(HeaderSize, w.s.End(), 100)
		require.ErrorIs(t, err, eio)
		w.s.CloseResources()
		fs.Inject(nil)
	}
	// The bytes can be read all the same.
	buf := make([]byte, 1000)
	n, _, err := w.s.ReadAt(buf, HeaderSize, w.s.End())
	require.NoError(t, err)
	require.Equal(t, int(w.s.End()-HeaderSize), n)
}

func TestF11_AViewThatTheKernelCouldNotReadIsCold(t *testing.T) {
	w := newWriter(t, newEnv(t, vfs.NewSimulated(1), 10, 10), 1, 1<<20)
	w.append(wire.KindRecords, 1, 1, []byte("body"))
	_, err := w.s.Populate(HeaderSize, w.s.End(), 100)
	require.NoError(t, err)
	v := &View{}
	require.NoError(t, w.s.View(v, HeaderSize, w.s.End(), 1000, 0))
	v.Cold()
	v.Release()
	require.ErrorIs(t, w.s.View(&View{}, HeaderSize, w.s.End(), 1000, 0), ErrCold)
	_, err = w.s.Populate(HeaderSize, w.s.End(), 100)
	require.NoError(t, err)
	again := &View{}
	require.NoError(t, w.s.View(again, HeaderSize, w.s.End(), 1000, 0))
	again.Release()
	(&View{}).Cold()
}

func TestADroppedSegmentStaysReadableWhileItIsHeld(t *testing.T) {
	fs := vfs.NewSimulated(1)
	w := newWriter(t, newEnv(t, fs, 10, 10), 1, 1<<20)
	w.append(wire.KindRecords, 1, 1, []byte("body"))
	_, err := w.s.Populate(HeaderSize, w.s.End(), 100)
	require.NoError(t, err)
	v := &View{}
	require.NoError(t, w.s.View(v, HeaderSize, w.s.End(), 1000, 0))
	require.False(t, w.s.Release(), "a view is held")
	require.True(t, bytes.Contains(v.Slices[0], []byte("body")))
	require.True(t, w.s.Acquire(), "as long as anybody holds it")
	require.False(t, w.s.Release())
	v.Release()
	require.False(t, w.s.Acquire())
	require.ErrorIs(t, w.s.View(&View{}, HeaderSize, w.s.End(), 1000, 0), ErrCold)
	require.Zero(t, fs.OpenCount())
	require.Panics(t, func() { w.s.Release() })
}

// Views are released on event loops, which must not wait for the disk: what closes
// the files of a dropped segment is handed over.
func TestTheLastViewOfADroppedSegmentClosesNothingItself(t *testing.T) {
	fs := vfs.NewSimulated(1)
	env := newEnv(t, fs, 10, 10)
	var reaped []func()
	env.Reap = func(f func()) { reaped = append(reaped, f) }
	w := newWriter(t, env, 1, 1<<20)
	w.append(wire.KindRecords, 1, 1, []byte("body"))
	_, err := w.s.Populate(HeaderSize, w.s.End(), 100)
	require.NoError(t, err)
	v, other := &View{}, &View{}
	require.NoError(t, w.s.View(v, HeaderSize, w.s.End(), 1000, 0))
	require.NoError(t, w.s.View(other, HeaderSize, w.s.End(), 1000, 0))
	require.False(t, w.s.Drop())
	open := fs.OpenCount()
	require.Positive(t, open)
	other.Release()
	require.Empty(t, reaped, "it was not the last")
	v.Release()
	require.NotEmpty(t, reaped)
	require.Equal(t, open, fs.OpenCount(), "nothing is closed yet")
	for _, f := range reaped {
		f()
	}
	require.Zero(t, fs.OpenCount())

	// A map that the cache has given up closes with its last view, and not by it.
	w = newWriter(t, env, 2, 1<<20)
	w.append(wire.KindRecords, 1, 1, []byte("body"))
	_, err = w.s.Populate(HeaderSize, w.s.End(), 100)
	require.NoError(t, err)
	v, reaped = &View{}, nil
	require.NoError(t, w.s.View(v, HeaderSize, w.s.End(), 1000, 0))
	w.s.CloseResources()
	open = fs.OpenCount()
	v.Release()
	require.Len(t, reaped, 1)
	require.Equal(t, open, fs.OpenCount())
	reaped[0]()
	require.Less(t, fs.OpenCount(), open)
	w.s.Release()
}

func TestCacheClosesTheLeastRecentlyUsed(t *testing.T) {
	fs := vfs.NewSimulated(1)
	env := newEnv(t, fs, 3, 2)
	var writers []*writer
	for n := range uint64(6) {
		w := newWriter(t, env, n+1, 1<<16)
		w.append(wire.KindRecords, 1, 1, []byte("body"))
		_, err := w.s.Populate(HeaderSize, w.s.End(), 10)
		require.NoError(t, err)
		writers = append(writers, w)
		require.LessOrEqual(t, env.Files.Len(), 3)
		require.LessOrEqual(t, env.Maps.Len(), 2)
		// The first one is used all the time.
		f, err := writers[0].s.File()
		require.NoError(t, err)
		f.Release()
	}
	require.NotNil(t, writers[0].s.TryFile())
	require.Nil(t, writers[1].s.TryFile())
	require.False(t, writers[1].s.Mapped())
	require.True(t, writers[5].s.Mapped())
	// What is in use exceeds the limit rather than being closed.
	var held []*FileRef
	for _, w := range writers {
		f, err := w.s.File()
		require.NoError(t, err)
		held = append(held, f)
	}
	require.Equal(t, 6, env.Files.Len())
	for _, f := range held {
		_, err := f.File.Size()
		require.NoError(t, err)
		f.Release()
	}
	// All of them can be read, whatever is open.
	for _, w := range writers {
		b, _ := view(t, w.s, HeaderSize, w.s.End(), 1000)
		require.Len(t, b, int(w.s.End()-HeaderSize))
	}
}

func TestRuleL4_AllocationGrowsInDoublingSteps(t *testing.T) {
	env := newEnv(t, vfs.NewSimulated(1), 10, 10)
	s, err := Create(env, "/d", testIdentity, 1, 1, 64<<20, FirstStep)
	require.NoError(t, err)
	var sizes []int64
	for s.Allocated() < 64<<20 {
		sizes = append(sizes, s.Allocated()>>10)
		require.NoError(t, s.Extend(s.NextStep(s.Allocated()+1)))
	}
	require.Equal(t, []int64{64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 24576, 32768, 40960, 49152, 57344}, sizes)
	require.Equal(t, int64(64<<20), s.NextStep(1<<40))
}

func TestRuleL10_AFailedAllocationChangesNothing(t *testing.T) {
	fs := vfs.NewSimulated(1)
	env := newEnv(t, fs, 10, 10)
	s, err := Create(env, "/d", testIdentity, 1, 1, 64<<20, FirstStep)
	require.NoError(t, err)
	fs.SetSpace(1 << 20)
	require.ErrorIs(t, s.Extend(8<<20), vfs.ErrNoSpace)
	require.Equal(t, int64(FirstStep), s.Allocated())
	_, err = Create(env, "/d", testIdentity, 2, 2, 64<<20, 8<<20)
	require.ErrorIs(t, err, vfs.ErrNoSpace)
	names, err := fs.List("/d")
	require.NoError(t, err)
	require.Equal(t, []string{Name(1, 1)}, names)
}

func TestFindByIndexOffsetAndTime(t *testing.T) {
	w := newWriter(t, newEnv(t, vfs.NewSimulated(1), 10, 10), 1, 8<<20)
	body := make([]byte, 10_000)
	// Offsets 0, 3, 6, ...; times rise to 1500, fall back, rise again.
	times := map[int]int64{}
	for i := range 300 {
		times[i] = int64(1000 + 10*i)
		if i >= 50 && i < 100 {
			times[i] = int64(500 + i)
		}
		w.append(wire.KindRecords, 3, times[i], body)
	}
	require.Greater(t, w.s.details.Load().sparse.len(), 20)
	for _, reload := range []bool{false, true} {
		if reload {
			require.NoError(t, w.s.WriteSparse(w.s.Summary(w.link, 0, []TermRun{{From: 1, Term: 1}})))
			w.s.details.Store(nil)
		}
		for o := range wire.Offset(900) {
			pos, h, err := w.s.Find(w.s.End(),
				func(e *SparseEntry) bool { return e.Offset > o },
				func(_ int64, h *wire.FrameHeader) bool { return o < h.NextOffset() })
			require.NoError(t, err)
			require.Equal(t, wire.Index(o/3+1), h.Index)
			require.Equal(t, w.at[h.Index], pos)
		}
		for ms := int64(990); ms < 4100; ms += 7 {
			want, latest := 0, NoTime
			for want < 300 && latest < ms {
				latest = max(latest, times[want])
				want++
			}
			latest2 := NoTime
			_, h, err := w.s.Find(w.s.End(),
				func(e *SparseEntry) bool { return e.MaxTimeMs >= ms },
				func(_ int64, h *wire.FrameHeader) bool { latest2 = max(latest2, h.AppendTimeMs); return latest2 >= ms })
			if latest < ms {
				require.ErrorIs(t, err, io.EOF)
				continue
			}
			require.NoError(t, err)
			require.Equal(t, wire.Index(want), h.Index, "time %d", ms)
		}
	}
}

func TestTheSparseIndexIsMadeAgain(t *testing.T) {
	fs := vfs.NewSimulated(1)
	env := newEnv(t, fs, 10, 10)
	w := newWriter(t, env, 1, 8<<20)
	for i := range 100 {
		w.append(wire.KindRecords, 1, int64(i), make([]byte, 3000))
		if i%10 == 0 {
			w.append(wire.KindControl, 0, int64(i), make([]byte, 30))
		}
	}
	sum := w.s.Summary(w.link, 77, []TermRun{{From: 1, Term: 1}})
	require.NoError(t, w.s.WriteSparse(sum))
	h := w.s.Header()
	got, err := ReadSparse(fs, "/d", &h)
	require.NoError(t, err)
	require.Equal(t, sum, got)
	want := appendSparse(nil, sum, w.s.details.Load())

	require.NoError(t, fs.Corrupt("/d/"+SparseName(1, 101), 300, 3))
	_, err = ReadSparse(fs, "/d", &h)
	require.ErrorIs(t, err, ErrChecksum)
	restored := Restore(env, "/d", sum, w.s.Allocated())
	d, err := restored.load()
	require.NoError(t, err)
	require.Equal(t, want, appendSparse(nil, sum, d))
}

func TestScannerFindsFramesBehindDamage(t *testing.T) {
	fs := vfs.NewSimulated(1)
	w := newWriter(t, newEnv(t, fs, 10, 10), 1, 1<<20)
	for range 5 {
		w.append(wire.KindRecords, 1, 1, bytes.Repeat([]byte("y"), 333))
	}
	require.NoError(t, fs.Corrupt("/d/"+w.s.Name(), w.at[2]+10, 0))
	f, err := w.s.File()
	require.NoError(t, err)
	defer f.Release()
	sc := NewScanner(f.File, HeaderSize, w.s.Allocated(), nil)
	h, err := sc.Header()
	require.NoError(t, err)
	sc.Skip(&h)
	_, err = sc.Header()
	require.ErrorIs(t, err, wire.ErrFrameChecksum)
	require.True(t, IsDamage(err))
	h, err = sc.Find()
	require.NoError(t, err)
	require.Equal(t, wire.Index(3), h.Index)
	require.Equal(t, w.at[3], sc.Position())
	for h.Index < 5 {
		sc.Skip(&h)
		h, err = sc.Header()
		require.NoError(t, err)
	}
	sc.Skip(&h)
	_, err = sc.Find()
	require.ErrorIs(t, err, io.EOF)
	_, err = sc.Header()
	require.ErrorIs(t, err, io.EOF)
}

// countingReader counts the bytes that are read through it.
type countingReader struct {
	io.ReaderAt
	bytes int
}

func (r *countingReader) ReadAt(b []byte, at int64) (int, error) {
	n, err := r.ReaderAt.ReadAt(b, at)
	r.bytes += n
	return n, err
}

func TestAWalkFromHeaderToHeaderReadsNoLargeBodies(t *testing.T) {
	w := newWriter(t, newEnv(t, vfs.NewSimulated(1), 10, 10), 1, 4<<20)
	for range 20 {
		w.append(wire.KindRecords, 1, 1, bytes.Repeat([]byte("y"), 100<<10))
	}
	for range 10 {
		w.append(wire.KindRecords, 1, 1, []byte("y"))
	}
	f, err := w.s.File()
	require.NoError(t, err)
	defer f.Release()
	r := &countingReader{ReaderAt: f.File}
	sc := NewScanner(r, HeaderSize, w.s.End(), nil)
	sc.PassBodies()
	for index := wire.Index(1); index <= 30; index++ {
		h, err := sc.Header()
		require.NoError(t, err)
		require.Equal(t, index, h.Index)
		if index == 7 { // asked for, it is read all the same
			body, err := sc.Body(&h)
			require.NoError(t, err)
			require.Len(t, body, 100<<10)
		}
		sc.Skip(&h)
	}
	_, err = sc.Header()
	require.ErrorIs(t, err, io.EOF)
	require.Less(t, r.bytes, 100<<10+22*4096, "a body, a page for every large frame, what is left for the small ones")
}

func TestScannerNeverReadsABodyBeyondTheEnd(t *testing.T) {
	h := wire.FrameHeader{Kind: wire.KindRecords, Index: 1, BodyLength: 1 << 30}
	b := make([]byte, 4096)
	h.Encode(b)
	sc := NewScanner(bytes.NewReader(b), 0, int64(len(b)), nil)
	_, err := sc.Header()
	require.ErrorIs(t, err, wire.ErrFrameShort)
	require.LessOrEqual(t, cap(sc.Buffer()), scanWindow)
}

func TestTruncateForgetsWhatFollows(t *testing.T) {
	w := newWriter(t, newEnv(t, vfs.NewSimulated(1), 10, 10), 1, 1<<20)
	w.append(wire.KindRecords, 1, 100, nil)
	w.append(wire.KindControl, 0, 200, nil)
	w.append(wire.KindControl, 0, 300, nil)
	w.append(wire.KindRecords, 1, 50, nil)
	w.s.Truncate(w.at[3], 200)
	require.Equal(t, w.at[3], w.s.End())
	require.Equal(t, int64(200), w.s.MaxTimeMs())
	d := w.s.details.Load()
	require.Equal(t, 1, d.runs.len())
	require.Equal(t, w.at[3], d.runs.at(0).to.Load())
	w.s.Truncate(HeaderSize, 0)
	require.Zero(t, w.s.End())
	require.Equal(t, NoTime, w.s.MaxTimeMs())
	require.Zero(t, w.s.details.Load().sparse.len())
}

func TestPopulatedRangesOfManyReaders(t *testing.T) {
	env := newEnv(t, vfs.NewSimulated(1), 10, 10)
	s, err := Create(env, "/d", testIdentity, 1, 1, 64<<20, 64<<20)
	require.NoError(t, err)
	for n := range int64(maxWindows + 3) {
		s.noteWindow(window{from: n << 21, to: n<<21 + 1000, stamp: env.Traffic.Load()})
	}
	hot := func(pos int64) int64 { return s.hotUntil(pos, 64<<20, 64<<20) }
	for n := range int64(maxWindows + 3) {
		want := n<<21 + 1000
		if n < 3 {
			want = n << 21
		}
		require.Equal(t, want, hot(n<<21), "range %d", n)
	}
	// One that continues another makes one of both.
	s.noteWindow(window{from: 10<<21 + 1000, to: 10<<21 + 5000, stamp: env.Traffic.Load()})
	require.Equal(t, int64(10<<21+5000), hot(10<<21))
	require.Len(t, *s.populated.Load(), maxWindows)
	env.Traffic.Add(populatedTraffic)
	require.Equal(t, int64(10<<21), hot(10<<21))
	s.noteWindow(window{from: 0, to: 10, stamp: env.Traffic.Load()})
	require.Len(t, *s.populated.Load(), 1)
}

func TestAFileThatIsTooLargeIsNotRead(t *testing.T) {
	fs := vfs.NewSimulated(1)
	require.NoError(t, WriteFile(fs, "a", []byte("first")))
	require.NoError(t, WriteFile(fs, "a", []byte("again")))
	b, err := ReadFile(fs, "a", 5)
	require.NoError(t, err)
	require.Equal(t, "again", string(b))
	_, err = ReadFile(fs, "a", 4)
	require.ErrorIs(t, err, ErrFormat)
	_, err = ReadFile(fs, "b", 4)
	require.ErrorIs(t, err, iofs.ErrNotExist)
}
