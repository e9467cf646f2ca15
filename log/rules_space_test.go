package log

import (
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/vfs"
	"github.com/lockstepmq/lockstep/wire"
)

func TestRuleL10_AFullDiskStopsRecordsOnly(t *testing.T) {
	fs := vfs.NewSimulated(1)
	r := newRig(t, fs, nil)
	r.jobs = &queue{}
	open := func() {
		var err error
		r.store, err = OpenStore(StoreOptions{FS: fs, Dir: testDir, UUID: [16]byte{1}, BootID: "b", MinFreeBytes: 1 << 20, ReserveBytes: 24 << 20, Logger: quiet})
		require.NoError(t, err)
		o := r.options
		o.Store, o.Executor = r.store, r.jobs
		r.log, err = Open(o)
		require.NoError(t, err)
	}
	open()
	fs.SetSpace(100 << 20)
	require.NoError(t, r.store.RefreshSpace())
	r.term(1)
	i := wire.Index(0)
	var err error
	for {
		i++
		if i%50 == 0 {
			require.NoError(t, r.store.RefreshSpace())
		}
		if err = r.tryAppend(records(i, 1, 1, 100_000)); err != nil {
			break
		}
		r.commit()
	}
	require.ErrorIs(t, err, ErrDiskFull)
	require.NoError(t, r.log.Err(), "a full disk is no fence")
	require.Greater(t, i, wire.Index(500))
	require.ErrorIs(t, r.reserve(100_000, true), ErrDiskFull, "no job is submitted again and again")
	require.Empty(t, r.jobs.jobs)

	// Control entries, votes and checkpoints go on, with the reserve.
	left := r.store.ReserveLeft()
	for range 100 {
		r.append(control(i, 1, 100_000))
		i++
		r.commit()
	}
	r.term(2)
	r.sync()
	r.checkpoint()
	require.Less(t, r.store.ReserveLeft(), left)
	require.Equal(t, i-1, r.log.Checkpoint0(t).Applied)

	// A restart with a full disk works.
	r.close(true)
	open()
	r.log.Publish(i - 1)
	require.NotEmpty(t, r.stream(Position{}, 1<<20))

	// Space comes back by retention.
	require.NoError(t, r.store.RefreshSpace())
	r.append(control(i, 2, 10))
	r.commit()
	r.checkpoint()
	r.log.Trim(r.log.Watermark().Next)
	r.jobs.drain()
	require.NoError(t, r.store.RefreshSpace())
	r.append(records(i+1, 2, 1, 100_000))
	r.commit()
	require.Equal(t, int64(24<<20), r.store.ReserveLeft())
}

// Checkpoint0 is the newest checkpoint on disk.
func (l *Log) Checkpoint0(t *testing.T) *savedCheckpoint {
	b, err := readFile(l.fs, l.o.Dir+"/"+checkpointNames[l.newestName], 1<<20)
	require.NoError(t, err)
	c, _, err := parseCheckpoint(b)
	require.NoError(t, err)
	return c
}

// Between two looks at the free space, half a second, much can be written.
func TestRuleL10_RecordsNeverTakeTheMinimum(t *testing.T) {
	fs := vfs.NewSimulated(1)
	r := newRig(t, fs, nil).open()
	var told strings.Builder
	r.store.logger = slog.New(slog.NewTextHandler(&told, nil))
	const least = 50 << 20
	r.store.o.MinFreeBytes = least
	fs.SetSpace(100 << 20)
	require.NoError(t, r.store.RefreshSpace())
	r.term(1)
	var err error
	i := wire.Index(1)
	for ; err == nil; i++ {
		if err = r.tryAppend(records(i, 1, 1, 100_000)); err == nil {
			r.commit()
		}
	}
	require.ErrorIs(t, err, ErrDiskFull)
	free, _, err := fs.Space(testDir)
	require.NoError(t, err)
	require.GreaterOrEqual(t, free, int64(least))
	require.Greater(t, i, wire.Index(100))
	require.NoError(t, r.log.Reserve(1000, false), "control entries go on")
	require.Equal(t, 1, strings.Count(told.String(), "the disk is full: records are refused"), told.String())
	require.NoError(t, r.store.RefreshSpace())
	require.NotContains(t, told.String(), "space again")
	fs.SetSpace(200 << 20)
	require.NoError(t, r.store.RefreshSpace())
	require.NoError(t, r.store.RefreshSpace())
	require.Equal(t, 1, strings.Count(told.String(), "there is space again"), told.String())
}

func TestRuleL10_LowSpaceRefusesRecordsBeforeTheDiskIsFull(t *testing.T) {
	fs := vfs.NewSimulated(1)
	r := newRig(t, fs, nil).open()
	r.store.o.MinFreeBytes = 50 << 20
	fs.SetSpace(100 << 20)
	require.NoError(t, r.store.RefreshSpace())
	require.NoError(t, r.reserve(1000, true))
	fs.SetSpace(40 << 20)
	require.NoError(t, r.store.RefreshSpace())
	require.True(t, r.store.Low())
	require.ErrorIs(t, r.log.Reserve(1000, true), ErrDiskFull)
	require.NoError(t, r.log.Reserve(1000, false))
	fs.SetSpace(100 << 20)
	require.NoError(t, r.store.RefreshSpace())
	require.NoError(t, r.log.Reserve(1000, true))
}

func TestRetention(t *testing.T) {
	fs := vfs.NewSimulated(1)
	r := newRig(t, fs, func(o *Options) { o.SegmentBytes = 1000 }).open()
	r.term(1)
	// Two entries fit a segment: offsets 2k and 2k+1, the newer appended at 1000*(2k+2).
	for i := wire.Index(1); i <= 20; i++ {
		r.append(records(i, 1, 1, 300))
		r.commit()
	}
	list := *r.log.segments.Load()
	require.Len(t, list, 10)
	size := list[0].End()
	require.Equal(t, 10*size, r.log.Bytes())
	point := func(nowMs int64, age time.Duration, bytes int64) int {
		o, ok := r.log.RetentionPoint(nowMs, age, bytes)
		if !ok {
			require.Equal(t, r.log.StartOffset(), o)
			return -1
		}
		return int(o)
	}
	require.Equal(t, -1, point(1e9, -1, -1), "unlimited")
	require.Equal(t, -1, point(0, -1, 10*size))
	require.Equal(t, -1, point(0, -1, 9*size+1), "removing one would leave too little")
	require.Equal(t, 2, point(0, -1, 9*size))
	require.Equal(t, 8, point(0, -1, 6*size))
	require.Equal(t, 18, point(0, -1, 0), "the active segment stays")
	require.Equal(t, -1, point(11_999, 10*time.Second, -1))
	require.Equal(t, 2, point(12_000, 10*time.Second, -1))
	require.Equal(t, 4, point(14_500, 10*time.Second, -1))
	require.Equal(t, 8, point(14_500, 10*time.Second, 6*size), "either limit")
	r.log.Trim(8)
	require.Equal(t, -1, point(14_500, 10*time.Second, 6*size))
	require.Equal(t, 10, point(20_000, 10*time.Second, -1))
}

func TestF19_ATimeInTheFutureDoesNotHoldOrDrop(t *testing.T) {
	r := newRig(t, vfs.NewSimulated(1), func(o *Options) { o.SegmentBytes = 1000 }).open()
	r.term(1)
	year := int64(365 * 24 * 3600 * 1000)
	for i := wire.Index(1); i <= 6; i++ {
		r.append(prefixed(wire.KindRecords, i, 1, 1, 10*year, 300))
		r.commit()
	}
	now := int64(1_000_000)
	_, ok := r.log.RetentionPoint(now, time.Minute, -1)
	require.False(t, ok, "nothing is known about its age")
	_, ok = r.log.RetentionPoint(now+59_000, time.Minute, -1)
	require.False(t, ok)
	o, ok := r.log.RetentionPoint(now+60_000, time.Minute, -1)
	require.True(t, ok)
	require.Equal(t, wire.Offset(4), o)
}

// The clock jumps ten years ahead while records are written, then twenty back, then to
// where it belongs: nothing younger than the limit goes, and everything in its time.
func TestF19_JumpsOfTheClockDoNotAgeRecords(t *testing.T) {
	const (
		years  = 10 * 365 * 24 * 3600 * 1000
		now    = 1_700_000_000_000
		minute = 60_000
	)
	r := newRig(t, vfs.NewSimulated(1), func(o *Options) { o.SegmentBytes = 1000 }).open()
	r.term(1)
	for i, ms := range []int64{now, now + years, now, now - years, now, now} {
		r.append(prefixed(wire.KindRecords, wire.Index(i+1), 1, 1, ms, 800)) // a segment each
		r.commit()
	}
	ask := func(nowMs int64) int {
		o, ok := r.log.RetentionPoint(nowMs, time.Minute, -1)
		if !ok {
			return -1
		}
		return int(o)
	}
	require.Equal(t, -1, ask(now))
	require.Equal(t, -1, ask(now-years), "the clock went back")
	require.Equal(t, -1, ask(now-years+minute-1))
	require.Equal(t, -1, ask(now+1), "it came back: the guesses of meanwhile do not count")
	require.Equal(t, 1, ask(now+minute), "the first record is old, the one from the future is not known to be")
	require.Equal(t, 5, ask(now+minute+1), "all sealed segments")
}

func TestLocateAndTime(t *testing.T) {
	r := newRig(t, vfs.NewSimulated(1), func(o *Options) { o.SegmentBytes = 2000 }).open()
	r.term(1)
	p, o, err := r.log.Locate(0)
	require.NoError(t, err)
	require.Equal(t, Position{}, p)
	require.Equal(t, wire.Offset(0), o)
	base := map[wire.Offset]wire.Offset{}
	next := wire.Offset(0)
	for i := wire.Index(1); i <= 60; i++ {
		if i%4 == 0 {
			r.append(control(i, 1, 200))
		} else {
			count := uint32(i%3) + 1
			r.append(records(i, 1, count, 200))
			for k := range count {
				base[next+wire.Offset(k)] = next
			}
			next += wire.Offset(count)
		}
	}
	require.Equal(t, Position{}, r.log.Watermark().Position)
	_, _, err = r.log.Locate(1)
	require.ErrorIs(t, err, ErrOffsetOutOfRange, "not committed yet")
	r.commit()
	for o := range next {
		p, b, err := r.log.Locate(o)
		require.NoError(t, err)
		require.Equal(t, base[o], b)
		buf := make([]byte, wire.FrameHeaderSize)
		_, _, err = r.log.ReadAt(p, buf)
		require.NoError(t, err)
		h, err := wire.ParseFrameHeader(buf)
		require.NoError(t, err)
		require.Equal(t, base[o], h.BaseOffset)
		require.Less(t, o, h.NextOffset())
	}
	p, o, err = r.log.Locate(next)
	require.NoError(t, err)
	require.Equal(t, r.log.Watermark().Position, p)
	require.Equal(t, next, o)
	_, _, err = r.log.Locate(next + 1)
	require.ErrorIs(t, err, ErrOffsetOutOfRange)

	// Entry i was appended at 1000*i.
	at := func(ms int64) wire.Offset {
		o, err := r.log.LocateTime(ms)
		require.NoError(t, err)
		return o
	}
	require.Equal(t, wire.Offset(0), at(0))
	require.Equal(t, wire.Offset(0), at(1000))
	require.Equal(t, wire.Offset(2), at(1001))
	require.Equal(t, wire.Offset(6), at(4000), "a control entry stands where the next record will be")
	require.Equal(t, wire.Offset(6), at(5000))
	require.Equal(t, next, at(60_001))
}

func TestTailIsKeptByReferenceAndBounded(t *testing.T) {
	r := newRig(t, vfs.NewSimulated(1), func(o *Options) { o.TailBytes = 1000 }).open()
	r.term(1)
	entries := []Entry{records(1, 1, 1, 300), records(2, 1, 1, 300), records(3, 1, 1, 300), noOp(4, 1)}
	r.append(entries...)
	require.Equal(t, int64(3*316), r.log.TailBytes())
	require.NoError(t, r.log.Reserve(10, true))
	r.append(records(5, 1, 1, 100))
	err := r.log.Reserve(10, true)
	require.ErrorIs(t, err, ErrTailFull)
	require.ErrorIs(t, err, ErrNotReady)
	require.NoError(t, r.log.Reserve(10, false))

	for i := range entries {
		entries[i] = summed(entries[i])
	}
	got, ok := r.log.Tail(1, 5, 1<<20)
	require.True(t, ok)
	require.Equal(t, entries, got)
	require.Same(t, &entries[0].Data[0], &got[0].Data[0])
	got, ok = r.log.Tail(2, 5, 1)
	require.True(t, ok)
	require.Equal(t, entries[1:2], got, "at least one")
	got, ok = r.log.Tail(2, 5, 632)
	require.True(t, ok)
	require.Equal(t, entries[1:4], got)
	for _, bad := range [][2]wire.Index{{0, 2}, {3, 3}, {3, 7}} {
		_, ok = r.log.Tail(bad[0], bad[1], 1000)
		require.False(t, ok)
	}
	var recycled [][]byte
	r.log.Release(2, func(b []byte) { recycled = append(recycled, b) })
	require.Equal(t, [][]byte{entries[0].Data, entries[1].Data}, recycled)
	_, ok = r.log.Tail(2, 5, 1000)
	require.False(t, ok)
	require.NoError(t, r.log.Reserve(10, true))
	// Taking entries back takes them out of the tail.
	r.log.Publish(0)
	r.append(records(4, 2, 1, 40))
	got, ok = r.log.Tail(3, 5, 1000)
	require.True(t, ok)
	require.Equal(t, []Entry{entries[2], summed(records(4, 2, 1, 40))}, got)
	require.Equal(t, int64(316+56), r.log.TailBytes())
}

func TestMemoryStore(t *testing.T) {
	used := int64(0)
	full := false
	fs := vfs.NewMemory(func(delta int64) error {
		if full && delta > 0 {
			return fmt.Errorf("memory budget: %w", vfs.ErrNoSpace)
		}
		used += delta
		return nil
	})
	store, err := OpenStore(StoreOptions{FS: fs, Dir: "/memory", BootID: "b", Memory: true, Logger: quiet})
	require.NoError(t, err)
	r := &rig{t: t, fs: fs, store: store, jobs: &queue{}}
	r.log, err = Open(Options{Store: store, Dir: "/memory/p", PartitionID: testPartition, SegmentBytes: 100_000, Executor: r.jobs, Logger: quiet})
	require.NoError(t, err)
	r.term(1)
	for i := wire.Index(1); i <= 200; i++ {
		r.append(records(i, 1, 1, 5000))
		r.commit()
		if i%20 == 0 {
			r.checkpoint()
			r.log.Trim(wire.Offset(i - 19))
			r.jobs.drain()
		}
	}
	require.Len(t, r.stream(mustLocate(t, r.log, 190), 1<<20), 10)
	require.Greater(t, used, int64(100_000))
	require.Less(t, used, int64(16<<20))
	full = true
	for err = nil; err == nil; {
		if err = r.tryAppend(records(r.log.LastIndex()+1, 1, 1, 50_000)); err == nil {
			r.commit()
		}
	}
	require.ErrorIs(t, err, ErrDiskFull)
	full = false
	require.NoError(t, store.RefreshSpace())
	require.NoError(t, r.tryAppend(records(r.log.LastIndex()+1, 1, 1, 50_000)))
	r.commit()
	require.NoError(t, r.log.Close(true))
	require.NoError(t, store.Close())
}

func TestRuleL10_TheMinimumIsATwentiethAndAtLeastAGibibyte(t *testing.T) {
	require.Equal(t, int64(1<<30), MinFree(0, 10<<30))
	require.Equal(t, int64(5<<30), MinFree(0, 100<<30))
	require.Equal(t, int64(7), MinFree(7, 100<<30))
	require.LessOrEqual(t, MinFree(-1, 100<<30), int64(0))
}
