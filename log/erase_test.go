package log

import (
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/segment"
	"github.com/lockstepmq/lockstep/vfs"
	"github.com/lockstepmq/lockstep/wire"
)

// erasable is a log of n records of 4,000 bytes in segments of 256 KiB, some 62 in each,
// with both checkpoints at its end.
func erasable(t testing.TB, fs vfs.FS, n wire.Index) *rig {
	r := newRig(t, fs, func(o *Options) { o.SegmentBytes = 256 << 10 }).open()
	r.term(1)
	for i := wire.Index(1); i <= n; i++ {
		r.append(records(i, 1, 1, 4000))
		if i%20 == 0 || i == n {
			r.commit()
		}
	}
	r.checkpoint()
	r.checkpoint()
	return r
}

// erase erases what is done, and says how many bytes that were.
func (r *rig) erase(done ...Records) int64 {
	r.t.Helper()
	before := r.log.ErasedBytes()
	r.log.Erase(done)
	r.jobs.drain()
	return r.log.ErasedBytes() - before
}

// offsets are those of the records that can be read, by Locate and by Scan, which must
// agree with each other, with views and with preads.
func (r *rig) offsets() (there []wire.Offset) {
	r.t.Helper()
	var s Scanned
	erased := map[wire.Offset]bool{}
	next := r.log.Watermark().Next
	for o := wire.Offset(0); o < next; {
		require.NoError(r.t, r.log.Scan(o, 50, &s))
		require.NotEmpty(r.t, s.Batches)
		for _, b := range s.Batches {
			require.Equal(r.t, o, b.Base)
			for ; o < b.Next(); o++ {
				erased[o] = b.Erased
			}
		}
	}
	for o := wire.Offset(0); o < next; o++ {
		p, _, err := r.log.Locate(o)
		var gone *ErasedError
		if errors.As(err, &gone) {
			require.True(r.t, erased[o], "offset %d", o)
			require.True(r.t, gone.Base <= o && o < gone.Next, "offset %d in %v", o, gone)
			continue
		}
		require.NoError(r.t, err)
		require.False(r.t, erased[o], "offset %d", o)
		b := make([]byte, wire.FrameSize(4000))
		n, _, err := r.log.ReadAt(p, b)
		require.NoError(r.t, err)
		require.Len(r.t, b, n)
		h, err := wire.ParseFrameHeader(b)
		require.NoError(r.t, err, "offset %d", o)
		require.Equal(r.t, o, h.BaseOffset)
		require.Equal(r.t, h.BodyCRC, wire.Checksum(b[wire.FrameHeaderSize:][:h.BodyLength]))
		v, err := r.log.View(p, len(b))
		if errors.Is(err, ErrCold) {
			require.NoError(r.t, r.log.Populate(p, len(b)))
			v, err = r.log.View(p, len(b))
		}
		require.NoError(r.t, err)
		require.Equal(r.t, len(b), v.Bytes)
		v.Release()
		there = append(there, o)
	}
	return there
}

// scrubbed verifies everything that is stored.
func (r *rig) scrubbed() (bytes int64) {
	r.t.Helper()
	for pass := r.log.NewScrub(); ; {
		n, err := pass.Next(100_000)
		if bytes += n; errors.Is(err, io.EOF) {
			require.Empty(r.t, r.log.Damage())
			return bytes
		}
		require.NoError(r.t, err)
	}
}

func span(from, to wire.Offset) (list []wire.Offset) {
	for ; from < to; from++ {
		list = append(list, from)
	}
	return list
}

// One old record stays, and what was acknowledged behind it gives its disk back, but for
// the segment that is not sealed. Everything else is served, verified and appended to, now
// and after a restart of each kind.
func TestRuleL7_AcknowledgedRunsGiveTheirSpaceBack(t *testing.T) {
	fs := vfs.NewSimulated(1)
	r := erasable(t, fs, 200)
	require.Equal(t, span(0, 200), r.offsets())
	free, _, err := fs.Space(testDir)
	require.NoError(t, err)
	before := r.log.Bytes()
	n, _ := r.log.Erasable([]Records{{1, 200}})
	require.Greater(t, n, int64(600<<10))
	erased := r.erase(Records{1, 200})
	require.Greater(t, erased, int64(600<<10))
	require.Equal(t, before-erased, r.log.Bytes())
	n, left := r.log.Erasable([]Records{{1, 200}})
	require.Zero(t, n, "there is nothing left to do")
	require.False(t, left)
	now, _, err := fs.Space(testDir)
	require.NoError(t, err)
	require.Greater(t, now, free+600<<10)
	first := (*r.log.segments.Load())[3].Previous().Next // of the last segment
	there := append([]wire.Offset{0}, span(first, 200)...)
	check := func() {
		t.Helper()
		require.Equal(t, there, r.offsets())
		require.Equal(t, erased, r.log.ErasedBytes())
		require.Less(t, r.scrubbed(), int64(200<<10))
		last := r.log.LastIndex()
		r.append(records(last+1, r.log.HardState().Term, 1, 4000))
		r.commit()
		there = append(there, wire.Offset(last))
		require.Equal(t, there, r.offsets())
	}
	check()

	v, err := r.log.View(Position{}, 1<<20)
	require.NoError(t, err)
	require.EqualValues(t, wire.FrameSize(4000), v.Bytes, "a view ends before the run")
	v.Release()
	_, err = r.log.View(v.Next, 1<<20)
	require.EqualError(t, err, "records at offsets 1 to 63 were acknowledged and erased")
	_, _, err = r.log.ReadAt(v.Next, make([]byte, 100))
	require.EqualError(t, err, "records at offsets 1 to 63 were acknowledged and erased")
	_, err = r.log.Entries(3, 100)
	require.EqualError(t, err, "records at offsets 1 to 63 were acknowledged and erased")
	d, err := r.log.Verify(30)
	require.NoError(t, err)
	require.Nil(t, d)

	reopen := func(clean bool) {
		t.Helper()
		r.close(clean)
		r.open()
		r.log.Publish(r.log.LastIndex())
		r.jobs.drain()
	}
	reopen(true)
	check()
	reopen(false)
	check()
	names, err := fs.List(r.options.Dir)
	require.NoError(t, err)
	for _, name := range names {
		if strings.HasSuffix(name, ".sparse") {
			require.NoError(t, fs.Remove(r.options.Dir+"/"+name))
		}
	}
	r.boot = "boot-2"
	r.close(false)
	fs.Crash()
	r.open()
	r.log.Publish(r.log.LastIndex())
	check()

	// The old record is done: what was erased goes with its segments, and is not used again.
	r.checkpoint()
	r.checkpoint()
	r.log.Trim(199)
	r.jobs.drain()
	require.Len(t, *r.log.segments.Load(), 1)
	require.Zero(t, r.log.ErasedBytes())
	names, err = fs.List(testDir + "/recycled")
	require.NoError(t, err)
	require.Empty(t, names)
	names, err = fs.List(r.options.Dir)
	require.NoError(t, err)
	require.NotContains(t, strings.Join(names, " "), ".erased")
}

func TestRuleL7_WhatStays(t *testing.T) {
	r := erasable(t, vfs.NewSimulated(1), 130)
	require.Zero(t, r.erase(Records{1, 16}), "60 KiB are too few")
	require.Equal(t, 17*wire.FrameSize(4000), r.erase(Records{1, 18}))
	require.Zero(t, r.erase(Records{1, 30}), "and so are 48 KiB more")
	require.Equal(t, 17*wire.FrameSize(4000), r.erase(Records{1, 35}), "which join the run before them")
	require.Len(t, (*r.log.segments.Load())[0].Erased(), 1)
	there := append([]wire.Offset{0}, span(35, 130)...)
	require.Equal(t, there, r.offsets())

	t.Run("what the older checkpoint does not cover", func(t *testing.T) {
		r := newRig(t, vfs.NewSimulated(1), func(o *Options) { o.SegmentBytes = 256 << 10 }).open()
		r.term(1)
		for i := wire.Index(1); i <= 130; i++ {
			r.append(records(i, 1, 1, 4000))
			r.commit()
			if i == 40 || i == 130 {
				require.Zero(t, r.erase(Records{1, 130}), "there are not two checkpoints")
				r.checkpoint()
			}
		}
		require.Equal(t, 39*wire.FrameSize(4000), r.erase(Records{1, 130}))
		require.Equal(t, append([]wire.Offset{0}, span(40, 130)...), r.offsets())
	})
	t.Run("changes of the configuration", func(t *testing.T) {
		r := newRig(t, vfs.NewSimulated(1), func(o *Options) { o.SegmentBytes = 256 << 10 }).open()
		r.term(1)
		for i := wire.Index(1); i <= 70; i++ {
			if e := records(i, 1, 1, 4000); i == 30 {
				r.append(configuration(i, 1, strings.Repeat("c", 100)))
			} else {
				r.append(e)
			}
			r.commit()
		}
		r.checkpoint()
		r.checkpoint()
		r.erase(Records{0, 69})
		list := (*r.log.segments.Load())[0].Erased()
		require.Len(t, list, 2)
		require.Equal(t, []wire.Index{0, 29, 30}, []wire.Index{list[0].Before.Index, list[0].After.Index, list[1].Before.Index})
		entries, err := r.log.Entries(30, 1)
		require.NoError(t, err)
		require.Equal(t, configuration(30, 1, strings.Repeat("c", 100)).Data, entries[0].Data)
	})
}

// Entries without records are erased with those around them, and a stretch of them is no
// hole to a reader.
func TestRuleL7_EntriesWithoutRecords(t *testing.T) {
	r := newRig(t, vfs.NewSimulated(1), func(o *Options) { o.SegmentBytes = 256 << 10 }).open()
	r.term(1)
	r.append(records(1, 1, 1, 4000))
	for i := wire.Index(2); i <= 40; i++ {
		r.append(control(i, 1, 4000))
	}
	r.append(records(41, 1, 1, 4000))
	for i := wire.Index(42); i <= 70; i++ {
		r.append(records(i, 1, 1, 4000))
	}
	r.commit()
	r.checkpoint()
	r.checkpoint()
	require.Greater(t, r.erase(Records{2, 32}), int64(220<<10))
	require.Equal(t, []wire.Offset{0, 1}, r.offsets()[:2])
	v, err := r.log.View(Position{}, 4064)
	require.NoError(t, err)
	v.Release()
	v, err = r.log.View(v.Next, 1<<20)
	require.NoError(t, err)
	require.EqualValues(t, wire.FrameSize(4000), v.Bytes)
	v.Release()
}

// A view that somebody holds keeps its bytes: the run is on record at once and given back
// when the view is gone.
func TestRuleL7_ViewsKeepTheirBytes(t *testing.T) {
	r := erasable(t, vfs.NewSimulated(1), 130)
	p := mustLocateIn(t, r.log, 5)
	v, err := r.log.View(p, 10_000)
	if errors.Is(err, ErrCold) {
		require.NoError(t, r.log.Populate(p, 10_000))
		v, err = r.log.View(p, 10_000)
	}
	require.NoError(t, err)
	require.Positive(t, r.erase(Records{1, 130}))
	h, err := wire.ParseFrameHeader(v.Slices[0])
	require.NoError(t, err)
	require.Equal(t, wire.Offset(5), h.BaseOffset)
	_, _, err = r.log.Locate(5)
	require.EqualError(t, err, "records at offsets 1 to 63 were acknowledged and erased")
	_, left := r.log.Erasable(nil)
	require.True(t, left)
	v.Release()
	r.erase()
	_, left = r.log.Erasable(nil)
	require.False(t, left)
}

func mustLocateIn(t testing.TB, l *Log, o wire.Offset) Position {
	t.Helper()
	p, _, err := l.Locate(o)
	require.NoError(t, err)
	return p
}

// What was given back and is not on record is damage.
func TestRuleL7_AnUnrecordedHoleIsCorruption(t *testing.T) {
	fs := vfs.NewSimulated(1)
	r := erasable(t, fs, 130)
	r.erase(Records{1, 130})
	s := (*r.log.segments.Load())[0]
	name := r.options.Dir + "/" + segment.ErasedName(s.Sequence(), s.FileID())
	list := s.Erased()
	r.close(true)

	var inspected, problems int
	look := func() {
		inspected, problems = 0, 0
		require.NoError(t, Inspect(fs, r.options.Dir, func(f InspectedFrame) error {
			if f.Problem != nil {
				problems++
			} else if f.Erased {
				inspected++
				require.Equal(t, wire.Offset(1), min(f.Header.BaseOffset, 1))
			}
			return nil
		}))
	}
	look()
	require.Equal(t, []int{2, 0}, []int{inspected, problems})

	require.NoError(t, fs.Corrupt(name, 200, 1))
	require.ErrorIs(t, r.tryOpen(), ErrCorrupt)
	require.ErrorContains(t, r.tryOpen(), ".erased: position 0: corrupt")
	look()
	require.Positive(t, problems)
	require.NoError(t, fs.Remove(name))
	require.NoError(t, r.tryOpen(), "below a checkpoint the sparse index is believed, as with other damage")
	r.log.Publish(130)
	_, err := r.log.NewScrub().Next(1 << 20)
	require.ErrorIs(t, err, ErrCorrupt)
	r.close(true)

	// The operator gives it up.
	gaps, err := Skip(fs, testDir, r.options.Dir)
	require.NoError(t, err)
	require.Len(t, gaps, 1)
	require.Equal(t, []int64{list[0].From, list[0].To}, []int64{gaps[0].Position, gaps[0].End})
	r.open()
	r.log.Publish(130)
	_, _, err = r.log.Locate(10)
	require.ErrorIs(t, err, ErrCorrupt)
	_, _, err = r.log.Locate(100)
	require.ErrorContains(t, err, "were acknowledged and erased")
}

// A fenced log is copied with its holes.
func TestRuleL7_ACopyOfAFencedLogHasTheHoles(t *testing.T) {
	fs := vfs.NewSimulated(1)
	r := erasable(t, fs, 100)
	r.erase(Records{1, 100})
	require.Equal(t, append([]wire.Offset{0}, span(64, 100)...), r.offsets())
	for i := wire.Index(101); i <= 150; i++ { // fills the second segment, of which most is above the mark
		r.append(records(i, 1, 1, 4000))
	}
	r.log.Fence(errors.New("input/output error"))
	r.jobs.drain()
	r.kill()
	r.options.RecoverFence = true
	r.open()
	r.log.Publish(r.log.LastIndex())
	require.Equal(t, append([]wire.Offset{0}, span(64, wire.Offset(r.log.LastIndex()))...), r.offsets())
	r.scrubbed()
}

// cutErasing cuts the power at storage call n from the beginning of Erase on, in a log
// whose runs grow. It reports whether the erasing ended before.
func cutErasing(t testing.TB, seed uint64, n int64, mutate func(*Log)) (ended bool) {
	fs := vfs.NewSimulated(seed)
	r := erasable(t, fs, 190)
	if mutate != nil {
		mutate(r.log)
	}
	fs.StopAt(fs.Ops() + n)
	r.log.Erase([]Records{{1, 90}})
	r.jobs.drain()
	r.log.Erase([]Records{{1, 190}})
	r.jobs.drain()
	ended = r.log.ErasedBytes() > 400<<10 && r.log.Err() == nil && !r.log.eraseFailed
	fs.Crash()
	r.boot = "boot-2"
	require.NoError(t, r.tryOpen(), "seed %d, cut at call %d", seed, n)
	require.Equal(t, wire.Index(190), r.log.LastIndex())
	r.log.Publish(190)
	r.jobs.drain()
	there := r.offsets()
	require.Equal(t, wire.Offset(0), there[0])
	r.scrubbed()
	r.erase(Records{1, 190})
	require.Less(t, len(r.offsets()), 70, "seed %d, cut at call %d: it goes on", seed, n)
	return ended
}

func TestF1_PowerCutsWhileErasing(t *testing.T) {
	cuts := 0
	for seed := range uint64(max(1, *crashSeeds/200)) {
		for n := int64(1); ; n++ {
			cuts++
			if cutErasing(t, seed, n, nil) {
				break
			}
		}
	}
	t.Logf("%d power cuts", cuts)
}

func TestF1_Catches_AHoleThatIsNotOnRecord(t *testing.T) {
	caught(t, 100, func(t testing.TB, n uint64) {
		cutErasing(t, n, int64(n)+1, func(l *Log) { l.punchFirst = true })
	})
}

func TestF1_Catches_ErasingAboveTheCheckpoint(t *testing.T) {
	run := func(t testing.TB, ahead bool) {
		r := newRig(t, vfs.NewSimulated(1), func(o *Options) { o.SegmentBytes = 256 << 10 }).open()
		r.term(1)
		for i := wire.Index(1); i <= 130; i++ {
			r.append(records(i, 1, 1, 4000))
			r.commit()
			if i == 20 || i == 30 {
				r.checkpoint()
			}
		}
		r.log.aheadOf = ahead
		r.erase(Records{1, 130})
		r.close(false)
		require.NoError(t, r.tryOpen())
		var applied []wire.Index
		require.NoError(t, r.log.Replay(31, func(h wire.FrameHeader, _ []byte) error {
			applied = append(applied, h.Index)
			return nil
		}))
		require.Len(t, applied, 100)
	}
	run(t, false)
	require.True(t, fails(t, func(t testing.TB) { run(t, true) }))
}

// Acknowledgements go on while space is given back: what is being erased may be dropped as a
// whole before that has ended. Neither gets in the way of the other, and the size is right.
func TestRuleL7_WhatIsBeingErasedIsDroppedAfterwards(t *testing.T) {
	fs := vfs.NewSimulated(1)
	r := erasable(t, fs, 400)
	r.close(true)
	r.open() // the files of sealed segments are closed
	r.log.Publish(400)
	r.jobs.drain()
	size := func() (n int64) {
		for _, s := range *r.log.segments.Load() {
			n += s.End() - s.ErasedBytes()
		}
		return n
	}
	require.Equal(t, size(), r.log.Bytes())
	r.log.Erase([]Records{{1, 400}})
	require.Len(t, r.jobs.jobs, 1)
	erase := r.jobs.jobs[0]
	r.jobs.jobs = nil
	r.log.Trim(200)
	r.log.MarkIdle()
	r.jobs.drain()
	erase.Run()
	erase.Done()
	r.jobs.drain()
	require.Greater(t, r.log.FirstIndex(), wire.Index(100), "segments are dropped all the same")
	require.Equal(t, size(), r.log.Bytes())
	require.False(t, r.log.eraseFailed)
	require.Positive(t, r.log.ErasedBytes(), "of those that are left")
	names, err := fs.List(r.options.Dir)
	require.NoError(t, err)
	known := map[string]bool{}
	for _, s := range *r.log.segments.Load() {
		known[segment.ErasedName(s.Sequence(), s.FileID())] = true
	}
	for _, name := range names {
		require.True(t, known[name] || !strings.HasSuffix(name, ".erased"), "%s is left of a segment that is gone", name)
	}
}

// And what is about to be dropped is not erased meanwhile.
func TestRuleL7_WhatIsBeingDroppedIsNotErased(t *testing.T) {
	r := erasable(t, vfs.NewSimulated(1), 400)
	r.log.Trim(200)
	r.log.MarkIdle()
	for dropping := false; !dropping; {
		require.NotEmpty(t, r.jobs.jobs)
		if _, dropping = r.jobs.jobs[0].(*dropJob); !dropping {
			r.jobs.step()
		}
	}
	require.True(t, r.log.Erasing())
	r.log.Erase([]Records{{1, 400}})
	require.Len(t, r.jobs.jobs, 1)
	r.jobs.drain()
	require.Greater(t, r.log.FirstIndex(), wire.Index(100))
	require.False(t, r.log.Erasing())
	require.Positive(t, r.erase(Records{1, 400}))
}

// Nor is a log replaced while space of it is being given back.
func TestRuleL7_AnInstalledLogHasNothingOfWhatWasErasedBefore(t *testing.T) {
	start, content, _ := aLeader(t)
	fs := vfs.NewSimulated(1)
	r := newRig(t, fs, func(o *Options) { o.SegmentBytes, o.EraseLeast = 4096, 1000 }).open()
	r.term(1)
	for i := wire.Index(1); i < 30; i++ {
		r.append(records(i, 1, 1, 1000))
	}
	r.commit()
	r.checkpoint()
	r.checkpoint()
	r.log.Erase([]Records{{1, 30}})
	require.Len(t, r.jobs.jobs, 1)
	erase := r.jobs.jobs[0]
	r.jobs.jobs = nil
	for range 20 {
		_ = r.log.Install(start, content)
		r.jobs.drain()
	}
	erase.Run()
	erase.Done()
	r.jobs.drain()
	require.NoError(t, r.install(start, content))
	r.jobs.drain()
	require.Equal(t, start, r.log.Start())
	require.Zero(t, r.log.Bytes())
	require.Zero(t, r.log.ErasedBytes())
}
