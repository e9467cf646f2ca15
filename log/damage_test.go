package log

import (
	"errors"
	"io"
	"path"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/segment"
	"github.com/lockstepmq/lockstep/vfs"
	"github.com/lockstepmq/lockstep/wire"
)

// durableLog makes a log of eight records entries of two records each, in
// segments of segmentBytes, all of it durable and published, and dies.
func durableLog(t *testing.T, fs vfs.FS, segmentBytes int64) *rig {
	r := newRig(t, fs, func(o *Options) { o.SegmentBytes = segmentBytes }).open()
	r.term(1)
	for i := wire.Index(1); i <= 8; i++ {
		r.append(records(i, 1, 2, 50))
		r.commit()
	}
	r.log.MarkIdle()
	r.jobs.drain()
	return r
}

// readable streams from an offset on and returns the indexes of the entries up to
// the end or to damage.
func (r *rig) readable(from wire.Offset) (entries []wire.Index, err error) {
	r.t.Helper()
	at, _, err := r.log.Locate(from)
	if err != nil {
		return nil, err
	}
	var stream []byte
	for buf := make([]byte, 70); ; {
		var n int
		if n, at, err = r.log.ReadAt(at, buf); err != nil || n == 0 {
			break
		}
		stream = append(stream, buf[:n]...)
	}
	for len(stream) > 0 {
		h, e := wire.ParseFrameHeader(stream)
		require.NoError(r.t, e)
		require.Equal(r.t, h.BodyCRC, wire.Checksum(stream[wire.FrameHeaderSize:][:h.BodyLength]))
		entries = append(entries, h.Index)
		stream = stream[h.FrameSize():]
	}
	return entries, err
}

func TestRuleL8_ADamagedBodyCostsItsRecordsAndNothingElse(t *testing.T) {
	for _, segmentBytes := range []int64{1 << 20, 400} {
		fs := vfs.NewSimulated(1)
		r := durableLog(t, fs, segmentBytes)
		name, from, to := r.frame(3)
		r.kill()
		require.NoError(t, fs.Corrupt(name, from+wire.FrameHeaderSize+7, 2))
		r.open()
		require.Equal(t, wire.Index(8), r.log.LastIndex())
		r.log.Publish(8)

		entries, err := r.readable(0)
		require.Equal(t, []wire.Index{1, 2}, entries)
		var damage *DamagedError
		require.ErrorAs(t, err, &damage)
		require.ErrorIs(t, err, ErrCorrupt)
		require.Equal(t, []wire.Offset{4, 6}, []wire.Offset{damage.Damage.Base, damage.Damage.Next})
		require.Equal(t, []int64{from, to}, []int64{damage.Damage.Position, damage.Damage.End})
		require.Contains(t, err.Error(), "records at offsets 4 to 5 are damaged on the disk ("+damage.Damage.File+", position ")
		for _, o := range []wire.Offset{4, 5} {
			_, _, err = r.log.Locate(o)
			require.ErrorAs(t, err, &damage)
		}
		entries, err = r.readable(damage.Damage.Next)
		require.NoError(t, err)
		require.Equal(t, []wire.Index{4, 5, 6, 7, 8}, entries)

		// A view ends where the damage begins, and there is none inside.
		at, _, err := r.log.Locate(2)
		require.NoError(t, err)
		require.NoError(t, r.log.Populate(at, 1<<20))
		v, err := r.log.View(at, 1<<20)
		require.NoError(t, err)
		require.Equal(t, int(r.frameSize(2)), v.Bytes)
		next := v.Next
		v.Release()
		if segmentBytes > 400 {
			require.Equal(t, from, next.Byte)
		}
		require.NoError(t, r.log.Populate(next, 1<<20))
		_, err = r.log.View(next, 1<<20)
		require.ErrorAs(t, err, &damage)

		// Replay knows of the entry and not what it said.
		var lost []wire.Index
		require.NoError(t, r.log.Replay(1, func(h wire.FrameHeader, body []byte) error {
			if body == nil {
				lost = append(lost, h.Index)
			}
			return nil
		}))
		require.Equal(t, []wire.Index{3}, lost)

		// The log goes on, and remembers.
		r.append(records(9, 1, 2, 50))
		r.commit()
		r.checkpoint()
		r.close(true)
		r.open()
		r.log.Publish(9)
		require.Len(t, r.log.Damage(), 1)
		_, err = r.readable(4)
		require.ErrorAs(t, err, &damage)
		r.close(true)
	}
}

func (r *rig) frameSize(i wire.Index) int64 {
	_, from, to := r.frame(i)
	return to - from
}

// A log that was busy when it was killed: that the damaged entry was durable stands
// nowhere but in the marks of the frames behind it.
func TestRuleL8_ADamagedBodyThatOnlyLaterMarksCallDurable(t *testing.T) {
	fs := vfs.NewSimulated(1)
	r := newRig(t, fs, func(o *Options) { o.SegmentBytes = 700 }).open()
	r.term(1)
	for i := wire.Index(1); i <= 12; i++ {
		r.append(records(i, 1, 2, 50))
		r.commit()
	}
	name, from, _ := r.frame(6) // the second of its segment, with another segment before
	r.kill()
	require.NoError(t, fs.Corrupt(name, from+wire.FrameHeaderSize+7, 2))
	r.open()
	require.Equal(t, wire.Index(12), r.log.LastIndex())
	r.log.Publish(12)
	entries, err := r.readable(12)
	require.NoError(t, err)
	require.Equal(t, []wire.Index{7, 8, 9, 10, 11, 12}, entries)
	require.Len(t, r.log.Damage(), 1)
}

func TestRuleL8_NeighboursInOneRunAreOneRange(t *testing.T) {
	fs := vfs.NewSimulated(1)
	r := durableLog(t, fs, 1<<20)
	for _, i := range []wire.Index{3, 5, 4, 7} {
		name, from, _ := r.frame(i)
		require.NoError(t, fs.Corrupt(name, from+wire.FrameHeaderSize, 0))
	}
	// As readers report it.
	for _, o := range []wire.Offset{4, 8, 6, 12, 13, 4} {
		d, err := r.log.Verify(o)
		require.NoError(t, err)
		require.NotNil(t, d)
	}
	runs := r.log.Damage()
	require.Len(t, runs, 2)
	require.Equal(t, []wire.Offset{4, 10, 12, 14}, []wire.Offset{runs[0].Base, runs[0].Next, runs[1].Base, runs[1].Next})
	d, err := r.log.Verify(10)
	require.NoError(t, err)
	require.Nil(t, d, "the frame is whole: the reader's wire was not")
}

func TestRuleL8_TooMuchDamageIsTheLogs(t *testing.T) {
	var d damages
	for i := range maxDamage {
		_, err := d.add(Damage{segment: 1, Position: int64(1000 * (i + 1)), End: int64(1000*(i+1) + 10)})
		require.NoError(t, err)
	}
	_, err := d.add(Damage{segment: 2, Position: 100, End: 200})
	require.ErrorIs(t, err, errTooMuchDamage)
	// A neighbour needs no place of its own.
	news, err := d.add(Damage{segment: 1, Position: 1010, End: 1020})
	require.NoError(t, err)
	require.True(t, news)
	require.Len(t, d.all(), maxDamage)
}

func TestRuleL8_ADamagedHeaderIsTheLogs(t *testing.T) {
	fs := vfs.NewSimulated(1)
	r := durableLog(t, fs, 1<<20)
	name, from, _ := r.frame(3)
	require.NoError(t, fs.Corrupt(name, from+20, 0))
	_, err := r.log.Verify(4)
	var corrupt *CorruptionError
	require.ErrorAs(t, err, &corrupt)
	require.Equal(t, from, corrupt.Position)
	require.Empty(t, r.log.Damage())
}

func TestRuleL8_TheScrubberReadsWhatNobodyElseDoes(t *testing.T) {
	scrub := func(r *rig, n int64) (bytes int64, errs []error) {
		for c := r.log.NewScrub(); ; {
			read, err := c.Next(n)
			bytes += read
			if errors.Is(err, io.EOF) {
				return bytes, errs
			}
			if err != nil {
				errs = append(errs, err)
			}
		}
	}
	for _, n := range []int64{1, 200, 1 << 20} {
		fs := vfs.NewSimulated(1)
		r := durableLog(t, fs, 400)
		all := int64(0)
		list := *r.log.segments.Load()
		require.Greater(t, len(list), 3)
		for _, s := range list {
			all += s.End() - segment.HeaderSize
		}
		bytes, errs := scrub(r, n)
		require.Equal(t, all, bytes, "what is appended to is read as far as it is readable")
		require.Empty(t, errs)
		require.Empty(t, r.log.Damage())

		// A body is damaged, and in a later segment a header.
		name, from, _ := r.frame(1)
		require.NoError(t, fs.Corrupt(name, from+wire.FrameHeaderSize+3, 5))
		name, from, _ = r.frame(4)
		require.NoError(t, fs.Corrupt(name, from+16, 1))
		_, errs = scrub(r, n)
		require.Len(t, errs, 1)
		var corrupt *CorruptionError
		require.ErrorAs(t, errs[0], &corrupt)
		require.Equal(t, from, corrupt.Position)
		runs := r.log.Damage()
		require.Len(t, runs, 1)
		require.Equal(t, []wire.Offset{0, 2}, []wire.Offset{runs[0].Base, runs[0].Next})
		require.NoError(t, r.log.Close(true))
		_, err := r.log.NewScrub().Next(n)
		require.ErrorIs(t, err, io.EOF)
	}
}

func TestRuleL8_RangesGoWithTheirSegments(t *testing.T) {
	fs := vfs.NewSimulated(1)
	r := durableLog(t, fs, 400)
	for _, i := range []wire.Index{1, 8} {
		name, from, _ := r.frame(i)
		require.NoError(t, fs.Corrupt(name, from+wire.FrameHeaderSize, 0))
		_, err := r.log.Verify(wire.Offset(2 * (i - 1)))
		require.NoError(t, err)
	}
	require.Len(t, r.log.Damage(), 2)
	r.checkpoint()
	r.checkpoint()
	r.log.Trim(10)
	r.jobs.drain()
	require.Greater(t, r.log.FirstIndex(), wire.Index(1))
	runs := r.log.Damage()
	require.Len(t, runs, 1)
	require.Equal(t, wire.Offset(14), runs[0].Base)
	r.close(true)
	r.open()
	require.Len(t, r.log.Damage(), 1)
}

func TestRuleL8_ADamagedTailThatWasNotDurableIsCut(t *testing.T) {
	r := threeDurable(t, vfs.NewSimulated(1))
	fs := r.fs.(*vfs.Simulated)
	name, from, _ := r.frame(4)
	r.kill()
	require.NoError(t, fs.Corrupt(name, from+wire.FrameHeaderSize, 0))
	r.open()
	require.Equal(t, wire.Index(3), r.log.LastIndex())
	require.Empty(t, r.log.Damage())
}

// Where records are not synced, the machine may take damaged ones with it. What is
// written in their place is whole, and stays so when it is torn in its turn.
func TestRuleL8_DamageBehindALostEndIsForgotten(t *testing.T) {
	fs := vfs.NewSimulated(1)
	r := newRig(t, fs, func(o *Options) { o.Sync = SyncOS }).open()
	r.term(1)
	for i := wire.Index(1); i <= 8; i++ {
		r.append(records(i, 1, 2, 50))
		r.commit()
		if i == 5 {
			r.log.SyncNow()
			r.jobs.drain()
		}
	}
	for _, i := range []wire.Index{2, 5, 6, 8} {
		name, from, _ := r.frame(i)
		require.NoError(t, fs.Corrupt(name, from+wire.FrameHeaderSize+7, 2))
		d, err := r.log.Verify(wire.Offset(2*i - 2))
		require.NoError(t, err)
		require.NotNil(t, d)
	}
	require.Len(t, r.log.Damage(), 3, "5 and 6 are one range")
	fs.CrashLoseAll()
	for _, c := range []struct {
		boot string
		last wire.Index
	}{{"boot-2", 5}, {"boot-3", 6}} { // a new term is synced, and with it the first entry of it
		r.boot = c.boot
		r.open()
		require.Equal(t, c.last, r.log.LastIndex())
		runs := r.log.Damage()
		require.Len(t, runs, 2)
		_, from, to := r.frame(5)
		require.Equal(t, []int64{from, to}, []int64{runs[1].Position, runs[1].End})
		require.Equal(t, []wire.Offset{2, 4, 8, 10}, []wire.Offset{runs[0].Base, runs[0].Next, runs[1].Base, runs[1].Next})
		term := r.log.HardState().Term + 1
		r.term(term)
		for i := c.last + 1; i <= 9; i++ {
			r.append(records(i, term, 2, 50))
			r.commit()
		}
		entries, err := r.readable(10)
		require.NoError(t, err)
		require.Equal(t, []wire.Index{6, 7, 8, 9}, entries)
		fs.CrashLoseAll()
	}
}

func TestDamageGoldenBytes(t *testing.T) {
	id := segment.Identity{PartitionID: testPartition, Incarnation: 3}
	list := []Damage{{
		segment: 1, Position: 200, End: 300, FirstIndex: 5, LastIndex: 6, Base: 7, Next: 9,
		before: segment.Link{Index: 4, Term: 2, Next: 7, TimeMs: 1000, Chain: 0x01020304},
	}}
	want := golden(t, `
		4c 4b 44 41 4d 41 47 0a 01 00 00 00 03 00 00 00
		a1 b2 c3 04 05 06 07 08 09 0a 0b 0c 0d 0e 0f 10
		01 00 00 00 00 00 00 00
		01 00 00 00 00 00 00 00 c8 00 00 00 00 00 00 00
		2c 01 00 00 00 00 00 00 05 00 00 00 00 00 00 00
		06 00 00 00 00 00 00 00 07 00 00 00 00 00 00 00
		09 00 00 00 00 00 00 00 02 00 00 00 00 00 00 00
		e8 03 00 00 00 00 00 00 04 03 02 01 00 00 00 00`)
	got := encodeDamage(id, list)
	require.Equal(t, want, got[:len(got)-4])
	parsed, parsedID, err := parseDamage(got)
	require.NoError(t, err)
	require.Equal(t, id, parsedID)
	require.Equal(t, list, parsed)
	for i := range got {
		bad := append([]byte(nil), got...)
		bad[i] ^= 1
		_, _, err := parseDamage(bad)
		require.Error(t, err)
	}
}

func TestAnUnreadableListOfDamageIsMadeAgain(t *testing.T) {
	fs := vfs.NewSimulated(1)
	r := durableLog(t, fs, 1<<20)
	name, from, _ := r.frame(3)
	r.kill()
	require.NoError(t, fs.Corrupt(name, from+wire.FrameHeaderSize, 0))
	r.open()
	r.kill()
	require.NoError(t, fs.Corrupt(r.options.Dir+"/"+damageName, 50, 0))
	r.open()
	require.Len(t, r.log.Damage(), 1, "the log is scanned from its start")
	r.kill()
	list, _, err := parseDamage(r.readAt(r.options.Dir+"/"+damageName, 0, damageFixed+damageEntry+4))
	require.NoError(t, err)
	require.Len(t, list, 1)
}

// A fenced log is copied as a whole. A body below the checkpoint that turns out to be
// damaged then costs its records, as everywhere, and not the copy.
func TestRuleL8_AFencedLogIsCopiedWithItsDamage(t *testing.T) {
	fs := vfs.NewSimulated(1)
	r := durableLog(t, fs, 1<<20)
	r.options.RecoverFence = true
	r.checkpoint()
	r.append(records(9, 1, 2, 50))
	fs.Inject(func(op vfs.Op, name string) error {
		if op == vfs.OpSync && strings.HasSuffix(name, ".segment") {
			return errEIO
		}
		return nil
	})
	r.log.Sync()
	r.jobs.drain()
	require.ErrorIs(t, r.log.Err(), ErrFenced)
	fs.Inject(nil)
	old, from, _ := r.frame(3)
	r.kill()
	require.NoError(t, fs.Corrupt(old, from+wire.FrameHeaderSize+7, 2))
	for range 2 {
		r.open()
		require.Equal(t, wire.Index(9), r.log.LastIndex())
		name, _, _ := r.frame(9)
		require.NotEqual(t, old, name)
		r.log.Publish(9)
		entries, err := r.readable(0)
		require.Equal(t, []wire.Index{1, 2}, entries)
		var damage *DamagedError
		require.ErrorAs(t, err, &damage)
		require.Equal(t, path.Base(name), damage.Damage.File)
		require.Equal(t, []wire.Offset{4, 6}, []wire.Offset{damage.Damage.Base, damage.Damage.Next})
		entries, err = r.readable(6)
		require.NoError(t, err)
		require.Equal(t, indexes(4, 9), entries)
		r.close(true)
	}
}
