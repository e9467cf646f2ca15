package log

import (
	"math/rand/v2"
	"path"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/segment"
	"github.com/lockstepmq/lockstep/vfs"
	"github.com/lockstepmq/lockstep/wire"
)

// What a damaged header hid is a range like that of a damaged body once it was
// skipped: everything before and behind it is served, and the log goes on.
func TestRuleL8_ADamagedHeaderIsSkipped(t *testing.T) {
	for _, c := range []struct {
		name         string
		segmentBytes int64
		first, last  wire.Index // entries with a damaged header
		checkpoint   bool       // at the end of the log
	}{
		{name: "the first entry", segmentBytes: 1 << 20, first: 1, last: 1},
		{name: "an entry in the middle", segmentBytes: 1 << 20, first: 4, last: 4},
		{name: "three in a row", segmentBytes: 1 << 20, first: 3, last: 5},
		{name: "below a checkpoint", segmentBytes: 1 << 20, first: 4, last: 4, checkpoint: true},
		{name: "the last one below a checkpoint", segmentBytes: 1 << 20, first: 8, last: 8, checkpoint: true},
		{name: "the last one of a segment", segmentBytes: 400, first: 2, last: 2},
		{name: "the first one of a segment", segmentBytes: 400, first: 3, last: 3},
		{name: "a whole segment", segmentBytes: 400, first: 3, last: 4},
		{name: "the last one of a segment below a checkpoint", segmentBytes: 400, first: 2, last: 2, checkpoint: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			fs := vfs.NewSimulated(1)
			r := durableLog(t, fs, c.segmentBytes)
			for i := c.first; i <= c.last; i++ {
				name, from, _ := r.frame(i)
				require.NoError(t, fs.Corrupt(name, from+20, 2))
			}
			name, from, _ := r.frame(c.first)
			last, _, to := r.frame(c.last)
			if c.segmentBytes == 400 {
				before, _, _ := r.frame(2)
				behind, _, _ := r.frame(3)
				require.NotEqual(t, before, behind, "two entries fill a segment")
			}
			if c.checkpoint {
				r.checkpoint()
			}
			r.close(c.checkpoint)
			if !c.checkpoint {
				require.ErrorIs(t, r.tryOpen(), ErrCorrupt)
			}
			lock, err := fs.Lock(testDir + "/" + lockName)
			require.NoError(t, err)
			_, err = Skip(fs, testDir, r.options.Dir)
			require.ErrorIs(t, err, ErrLocked)
			require.NoError(t, lock.Close())

			gaps, err := Skip(fs, testDir, r.options.Dir)
			require.NoError(t, err)
			require.Len(t, gaps, 1)
			d := gaps[0]
			require.Equal(t, []wire.Index{c.first, c.last}, []wire.Index{d.FirstIndex, d.LastIndex})
			require.Equal(t, []wire.Offset{wire.Offset(2*c.first - 2), wire.Offset(2 * c.last)}, []wire.Offset{d.Base, d.Next})
			require.Equal(t, r.options.Dir+"/"+d.File, name)
			require.Equal(t, from, d.Position)
			if last == name {
				require.Equal(t, to, d.End)
			}
			again, err := Skip(fs, testDir, r.options.Dir)
			require.NoError(t, err)
			require.Empty(t, again, "nothing is left to skip")

			r.open()
			require.Equal(t, wire.Index(8), r.log.LastIndex())
			r.log.Publish(8)
			require.Len(t, r.log.Damage(), 1)
			entries, err := r.readable(0)
			var damage *DamagedError
			require.ErrorAs(t, err, &damage)
			require.Equal(t, d.Next, damage.Damage.Next)
			require.Equal(t, indexes(1, c.first-1), entries)
			entries, err = r.readable(d.Next)
			require.NoError(t, err)
			require.Equal(t, indexes(c.last+1, 8), entries)

			r.append(records(9, 1, 2, 50))
			r.commit()
			entries, err = r.readable(d.Next)
			require.NoError(t, err)
			require.Equal(t, indexes(c.last+1, 9), entries)
			r.close(true)
			r.open()
			require.Len(t, r.log.Damage(), 1)
			r.close(true)
		})
	}
}

func indexes(from, to wire.Index) (all []wire.Index) {
	for ; from <= to; from++ {
		all = append(all, from)
	}
	return all
}

// Where nothing whole follows, nobody knows what is missing: the log stays down.
func TestRuleL8_DamageAtTheEndIsNotSkipped(t *testing.T) {
	fs := vfs.NewSimulated(1)
	r := durableLog(t, fs, 1<<20)
	name, from, _ := r.frame(8)
	r.close(true)
	require.NoError(t, fs.Corrupt(name, from+20, 2))
	require.ErrorIs(t, r.tryOpen(), ErrCorrupt)
	gaps, err := Skip(fs, testDir, r.options.Dir)
	require.NoError(t, err)
	require.Empty(t, gaps)
	require.ErrorIs(t, r.tryOpen(), ErrCorrupt)
}

// Commands without records keep their place in the log, and nothing is known to be
// lost with them.
func TestRuleL8_SkippedEntriesWithoutRecords(t *testing.T) {
	for _, c := range []struct {
		lost Entry
		kind wire.Kind
	}{{noOp(2, 1), wire.KindNoOp}, {control(2, 1, 30), wire.KindControl}} {
		fs := vfs.NewSimulated(1)
		r := newRig(t, fs, nil).open()
		r.term(1)
		for _, e := range []Entry{records(1, 1, 2, 50), c.lost, records(3, 1, 2, 50)} {
			r.append(e)
			r.commit()
		}
		r.log.MarkIdle()
		r.jobs.drain()
		name, from, _ := r.frame(2)
		require.NoError(t, fs.Corrupt(name, from+20, 2))
		r.kill()
		gaps, err := Skip(fs, testDir, r.options.Dir)
		require.NoError(t, err)
		require.Len(t, gaps, 1)
		require.Equal(t, gaps[0].Base, gaps[0].Next)
		r.open()
		var kinds []wire.Kind
		require.NoError(t, r.log.Replay(1, func(h wire.FrameHeader, body []byte) error {
			kinds = append(kinds, h.Kind)
			if h.Index == 2 {
				require.Empty(t, body)
			}
			return nil
		}))
		require.Equal(t, []wire.Kind{wire.KindRecords, c.kind, wire.KindRecords}, kinds)
		r.close(true)
	}
}

func TestABodyChecksumIsFoundForEveryHeaderChecksum(t *testing.T) {
	h := wire.FrameHeader{Kind: wire.KindRecords, RecordCount: 3, Term: 5, Index: 70, BaseOffset: 900, AppendTimeMs: 1e12, BodyLength: 1000, PrevCRC: 77}
	for _, crc := range []uint32{0, 1, 0xffffffff, 0xdeadbeef, 1 << 31} {
		chooseBodyCRC(&h, crc)
		require.Equal(t, crc, h.HeaderCRC)
	}
}

// Whatever sectors a disk loses, what is served after a skip is what was written,
// and nothing but what they hid is missing.
func TestRuleL8_SkippingLostSectors(t *testing.T) {
	lost := 0
	for seed := range uint64(100) {
		random := rand.New(rand.NewPCG(seed, 1))
		fs := vfs.NewSimulated(seed)
		r := newRig(t, fs, func(o *Options) { o.SegmentBytes = []int64{2000, 1 << 20}[seed%2] }).open()
		r.term(1)
		const count = 40
		for i := wire.Index(1); i <= count; i++ {
			switch {
			case random.IntN(10) == 0:
				r.append(control(i, 1, random.IntN(50)))
			case random.IntN(10) == 0:
				r.append(noOp(i, 1))
			default:
				r.append(records(i, 1, 2, 1+random.IntN(200)))
			}
			r.commit()
		}
		if seed%3 > 0 {
			r.checkpoint()
		}
		want := r.replayed(1)
		hit := map[wire.Index]bool{}
		for range 1 + random.IntN(3) {
			name, from, to := r.frame(1 + wire.Index(random.IntN(count-5)))
			sector := (from + random.Int64N(to-from)) / 128 * 128
			sector = max(sector, segment.HeaderSize)
			for i := wire.Index(1); i <= count; i++ {
				if file, from, to := r.frame(i); file == name && from < sector+128 && sector < to {
					hit[i] = true
				}
			}
			r.writeAt(name, sector, make([]byte, 128))
		}
		r.close(seed%3 == 2)
		gaps, err := Skip(fs, testDir, r.options.Dir)
		require.NoError(t, err, "seed %d", seed)
		for _, gap := range gaps {
			for i := gap.FirstIndex; i <= gap.LastIndex; i++ {
				require.True(t, hit[i], "seed %d: entry %d was skipped and is whole", seed, i)
			}
		}
		r.open()
		require.Equal(t, wire.Index(count), r.log.LastIndex(), "seed %d", seed)
		r.close(true)
		next := wire.Index(1)
		require.NoError(t, Inspect(fs, r.options.Dir, func(f InspectedFrame) error {
			require.Equal(t, next, f.Header.Index, "seed %d", seed)
			next++
			if hit[f.Header.Index] {
				lost++
				return nil
			}
			require.NoError(t, f.Problem, "seed %d: entry %d", seed, f.Header.Index)
			require.Equal(t, want[f.Header.Index-1], rebuilt(f.Header, f.Body), "seed %d: entry %d", seed, f.Header.Index)
			return nil
		}))
		require.Equal(t, wire.Index(count+1), next)
	}
	t.Logf("%d entries lost", lost)
	require.Positive(t, lost)
}

// What the segments have lost and the sync journal has is no gap.
func TestRuleL8_SkippingKeepsWhatTheJournalHas(t *testing.T) {
	f := newFleet(t, vfs.NewSimulated(1), 2).open()
	for range 5 {
		f.round(100)
		for _, l := range f.logs {
			l.Publish(l.LastIndex())
		}
	}
	f.fs.CrashKeepAll()
	dir := testDir + "/partitions/p-0"
	names, err := f.fs.List(dir)
	require.NoError(t, err)
	segmentName := path.Join(dir, names[0])
	frame := wire.FrameSize(100)
	file, err := f.fs.Open(segmentName)
	require.NoError(t, err)
	require.NoError(t, file.ZeroRange(segment.HeaderSize+3*frame, 2*frame)) // entries 4 and 5
	require.NoError(t, file.Close())
	require.NoError(t, f.fs.Corrupt(segmentName, segment.HeaderSize+20, 1)) // the first entry is in the segment only
	require.ErrorIs(t, f.tryOpen(), ErrCorrupt)
	require.NoError(t, f.store.Close())

	gaps, err := Skip(f.fs, testDir, dir)
	require.NoError(t, err)
	require.Len(t, gaps, 1)
	require.Equal(t, []wire.Index{1, 1}, []wire.Index{gaps[0].FirstIndex, gaps[0].LastIndex})
	f.fs.CrashLoseAll()
	require.NoError(t, f.tryOpen())
	require.Equal(t, wire.Index(6), f.logs[0].LastIndex())
	require.Len(t, f.logs[0].Damage(), 1)
	require.Equal(t, wire.Index(1), f.logs[0].Damage()[0].LastIndex)
}
