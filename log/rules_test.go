package log

import (
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/segment"
	"github.com/lockstepmq/lockstep/vfs"
	"github.com/lockstepmq/lockstep/wire"
)

// file returns the path of the segment that holds entry i, the frame's position
// and the position behind it.
func (r *rig) frame(i wire.Index) (name string, from, to int64) {
	r.t.Helper()
	p, ok := r.log.place(i)
	require.True(r.t, ok)
	before, ok := r.log.place(i - 1)
	require.True(r.t, ok)
	from = segment.HeaderSize
	if before.seg == p.seg {
		from = before.end
	}
	return r.options.Dir + "/" + p.seg.Name(), from, p.end
}

func (r *rig) writeAt(name string, pos int64, b []byte) {
	r.t.Helper()
	f, err := r.fs.Open(name)
	require.NoError(r.t, err)
	_, err = f.WriteAt(b, pos)
	require.NoError(r.t, err)
	require.NoError(r.t, f.Sync())
	require.NoError(r.t, f.Close())
}

func (r *rig) readAt(name string, pos int64, n int) []byte {
	r.t.Helper()
	f, err := r.fs.OpenReadOnly(name)
	require.NoError(r.t, err)
	defer f.Close()
	b := make([]byte, n)
	_, err = f.ReadAt(b, pos)
	require.NoError(r.t, err)
	return b
}

// kill ends the process: nothing is closed, the page cache lives on.
func (r *rig) kill() {
	r.t.Helper()
	require.NoError(r.t, r.store.lock.Close())
}

func TestRuleL1_ReplicasWriteIdenticalFrames(t *testing.T) {
	entries := []Entry{
		noOp(1, 1), records(2, 1, 3, 100), control(3, 1, 33), configuration(4, 1, "voters 1 2 3"),
		records(5, 1, 1, 0), noOp(6, 4), records(7, 4, 2, 1000), records(8, 4, 1, 7),
	}
	var want []byte
	for n, segmentBytes := range []int64{300, 1500, 1 << 20} {
		r := newRig(t, vfs.NewSimulated(uint64(n)), func(o *Options) {
			o.SegmentBytes, o.ReplicaID = segmentBytes, uint64(n)
		}).open()
		r.term(1)
		// Each replica gets the entries in other pieces, and one takes some back first.
		if n == 1 {
			r.append(entries[:3]...)
			r.append(records(4, 1, 9, 50), records(5, 1, 9, 50))
			r.append(entries[3:]...)
		} else {
			for _, e := range entries {
				r.append(e)
			}
		}
		r.sync()
		var got []byte
		for i := wire.Index(1); i <= 8; i++ {
			name, from, to := r.frame(i)
			b := r.readAt(name, from, int(to-from))
			segment.PutMark(b, 0) // the one field that is the replica's own
			got = append(got, b...)
		}
		if want == nil {
			want = got
		}
		require.Equal(t, want, got)
	}
	// Entries that Raft makes itself repeat the predecessor's time and have the next offset.
	h, err := wire.ParseFrameHeader(want)
	require.NoError(t, err)
	require.Equal(t, wire.FrameHeader{
		Kind: wire.KindNoOp, Term: 1, Index: 1, HeaderCRC: h.HeaderCRC,
		PrevCRC: segment.Seed(segment.Identity{PartitionID: testPartition, Incarnation: 1}).Chain,
	}, h)
	h, err = wire.ParseFrameHeader(want[h.FrameSize():])
	require.NoError(t, err)
	require.Equal(t, int64(2000), h.AppendTimeMs)
	require.Equal(t, wire.Offset(0), h.BaseOffset)
}

func TestRuleL1_MalformedEntriesHaveNoEffect(t *testing.T) {
	r := newRig(t, vfs.NewSimulated(1), nil).open()
	require.NoError(t, r.reserve(1000, true))
	short := records(1, 1, 1, 10)
	short.Data = short.Data[:15]
	wrongKind := records(1, 1, 1, 10)
	wrongKind.Kind = wire.KindControl
	counted := control(1, 1, 10)
	counted.Data[4] = 1
	for _, e := range []Entry{short, wrongKind, counted, {Index: 1, Term: 1, Kind: wire.KindNoOp, Data: []byte("x")}, {Index: 1, Term: 1, Kind: 9}} {
		require.ErrorIs(t, r.log.Append([]Entry{e}), wire.ErrEntry)
	}
	require.NoError(t, r.log.Err())
	require.Equal(t, wire.Index(0), r.log.LastIndex())
	r.append(records(1, 1, 1, 10))
}

// threeDurable makes a log with entries 1 to 3 marked durable and 4 to 5 above.
func threeDurable(t *testing.T, fs vfs.FS) *rig {
	r := newRig(t, fs, nil).open()
	r.term(1)
	for i := wire.Index(1); i <= 3; i++ {
		r.append(records(i, 1, 1, 50))
	}
	r.commit()
	r.log.MarkIdle()
	r.jobs.drain()
	for i := wire.Index(4); i <= 5; i++ {
		r.append(records(i, 1, 1, 50))
	}
	return r
}

func TestRuleL2_TornTailIsCutAtEveryByte(t *testing.T) {
	r := threeDurable(t, vfs.NewSimulated(1))
	_, from, to := r.frame(5)
	for cut := from; cut < to; cut++ {
		for _, garbage := range []bool{false, true} {
			fs := vfs.NewSimulated(1)
			r := threeDurable(t, fs)
			name, _, _ := r.frame(5)
			rest := make([]byte, to-cut)
			if garbage {
				for i := range rest {
					rest[i] = byte(7 * (i + 1))
				}
			}
			r.writeAt(name, cut, rest)
			r.kill()
			r.open()
			want := wire.Index(4)
			if !garbage && cut >= to-(to-from-wire.FrameHeaderSize-50) {
				want = 5 // only zero padding was cut off, and padding is zero
			}
			if garbage && cut >= from+wire.FrameHeaderSize+50 {
				want = 5 // padding is under no checksum and means nothing
			}
			require.Equal(t, want, r.log.LastIndex(), "cut at %d of [%d, %d)", cut, from, to)
			require.Len(t, r.replayed(1), int(want))
			// The cut is durable, and the log goes on.
			r.append(records(want+1, 2, 1, 500))
			r.commit()
			r.close(false)
			fs.CrashLoseAll()
			r.open()
			require.Equal(t, want+1, r.log.LastIndex())
		}
	}
}

func TestRuleL8_RotAtOrBelowTheMarkIsNeverTakenForATornTail(t *testing.T) {
	r := threeDurable(t, vfs.NewSimulated(1))
	name, first, _ := r.frame(1)
	_, _, end := r.frame(5)
	for pos := first; pos < end; pos++ {
		inPadding, inLocal, inBody := false, false, false
		entry := wire.Index(0)
		for i := wire.Index(1); i <= 5; i++ {
			if _, from, to := r.frame(i); pos >= from && pos < to {
				entry = i
				inPadding = pos >= from+wire.FrameHeaderSize+50
				inLocal = pos >= from+56 && pos < from+64
				inBody = pos >= from+wire.FrameHeaderSize
			}
		}
		for _, bit := range []int{0, 5} {
			fs := vfs.NewSimulated(1)
			damaged := threeDurable(t, fs)
			damaged.kill()
			require.NoError(t, fs.Corrupt(name, pos, bit))
			err := damaged.tryOpen()
			switch {
			case inPadding || inLocal:
				require.NoError(t, err)
				require.Equal(t, wire.Index(5), damaged.log.LastIndex())
			case entry <= 3 && inBody:
				// The header holds the chain: the log is open, and its end is whole.
				require.NoError(t, err)
				require.Equal(t, wire.Index(5), damaged.log.LastIndex())
				_, from, to := r.frame(entry)
				runs := damaged.log.Damage()
				require.Len(t, runs, 1)
				require.Equal(t, []int64{from, to}, []int64{runs[0].Position, runs[0].End})
				require.Equal(t, []wire.Offset{wire.Offset(entry - 1), wire.Offset(entry)}, []wire.Offset{runs[0].Base, runs[0].Next})
				// The damage can be repaired and is gone then.
				damaged.kill()
				require.NoError(t, fs.Corrupt(name, pos, bit))
				require.NoError(t, damaged.tryOpen())
				require.Empty(t, damaged.log.Damage())
			case entry <= 3:
				var corrupt *CorruptionError
				require.ErrorAs(t, err, &corrupt, "position %d", pos)
				require.Equal(t, name, corrupt.File)
				_, from, _ := r.frame(entry)
				require.Equal(t, from, corrupt.Position)
				// Nothing was changed: the damage can be repaired and is gone then.
				require.NoError(t, fs.Corrupt(name, pos, bit))
				require.NoError(t, damaged.tryOpen())
				require.Equal(t, wire.Index(5), damaged.log.LastIndex())
			default:
				require.NoError(t, err)
				require.Equal(t, entry-1, damaged.log.LastIndex())
			}
		}
	}
}

func TestRuleL2_MarksInFramesBehindTheDamageCount(t *testing.T) {
	// Neither the slot nor a checkpoint says that entry 2 was durable: only the
	// frames behind it do, in the same file and in the next.
	for _, segmentBytes := range []int64{1 << 20, 400} {
		fs := vfs.NewSimulated(1)
		r := newRig(t, fs, func(o *Options) { o.SegmentBytes = segmentBytes }).open()
		for i := wire.Index(1); i <= 8; i++ {
			r.append(records(i, 1, 1, 50))
			r.sync()
			r.log.Publish(i)
		}
		require.False(t, r.log.slot.written)
		name, from, _ := r.frame(2)
		r.kill()
		require.NoError(t, fs.Corrupt(name, from+20, 1))
		err := r.tryOpen()
		var corrupt *CorruptionError
		require.ErrorAs(t, err, &corrupt)
		require.Equal(t, from, corrupt.Position)
		require.Contains(t, err.Error(), "entries up to 7 were durable")
	}
}

func TestRuleL2_AMarkIsNeverAboveTheCommit(t *testing.T) {
	// Entries 4 and 5 are durable, then taken back by another leader, and the power
	// goes before that is durable. Their marks must not make the torn tail look like rot.
	for seed := range uint64(200) {
		fs := vfs.NewSimulated(seed)
		r := newRig(t, fs, nil).open()
		r.term(1)
		for i := wire.Index(1); i <= 3; i++ {
			r.append(records(i, 1, 1, 300))
		}
		r.commit()
		for i := wire.Index(4); i <= 8; i++ {
			r.append(records(i, 1, 1, 300))
			r.sync()
		}
		r.log.MarkIdle()
		r.jobs.drain()
		r.term(2)
		r.append(records(4, 2, 1, 300))
		fs.Crash()
		r.open()
		require.GreaterOrEqual(t, r.log.LastIndex(), wire.Index(3), "seed %d", seed)
	}
}

func TestRuleL2_TheEndOfTheLogIsChecked(t *testing.T) {
	// The last entries vanish as if never written: the slot knows better.
	fs := vfs.NewSimulated(1)
	r := threeDurable(t, fs)
	name, from, _ := r.frame(3)
	_, _, end := r.frame(5)
	r.kill()
	r.writeAt(name, from, make([]byte, end-from))
	err := r.tryOpen()
	require.ErrorIs(t, err, ErrCorrupt)
	require.Contains(t, err.Error(), "entry 3 is damaged or missing, entries up to 3 were durable")
}

// A segment with the first entry of a term alone, because the first records did not fit
// behind it, ends at offset 0, where the log starts. Without it a new replica could not
// be given the log as a whole.
func TestRuleL3_EntriesBeforeTheFirstRecordStayUntilSomethingIsTrimmed(t *testing.T) {
	r := newRig(t, vfs.NewSimulated(1), func(o *Options) { o.SegmentBytes = 1000 }).open()
	r.term(1)
	r.append(noOp(1, 1))
	r.commit()
	for i := wire.Index(2); i <= 9; i++ {
		r.append(records(i, 1, 1, 900))
		r.commit()
		r.checkpoint()
	}
	require.Equal(t, wire.Index(1), r.log.FirstIndex())
	require.False(t, r.log.AwaitsCheckpoint())
	r.log.Trim(3)
	r.jobs.drain()
	require.Equal(t, wire.Index(5), r.log.FirstIndex())
}

// A log that never held a record, as that of the metadata, goes with its checkpoints.
func TestRuleL3_ALogWithoutRecordsIsDroppedUpToItsOlderCheckpoint(t *testing.T) {
	r := newRig(t, vfs.NewSimulated(1), func(o *Options) { o.SegmentBytes = 1000 }).open()
	r.term(1)
	for i := wire.Index(1); i <= 9; i++ {
		r.append(control(i, 1, 900))
		r.commit()
		r.checkpoint()
	}
	require.Equal(t, wire.Index(9), r.log.FirstIndex(), "one entry fits into a segment; the older checkpoint covers 8")
}

func TestRuleL3_SegmentsGoOnlyBelowTheOlderCheckpoint(t *testing.T) {
	fs := vfs.NewSimulated(1)
	r := newRig(t, fs, func(o *Options) { o.SegmentBytes = 1000 }).open()
	r.term(1)
	fillTo := func(last wire.Index) {
		for i := r.log.LastIndex() + 1; i <= last; i++ {
			r.append(records(i, 1, 1, 300))
			r.commit()
		}
	}
	fillTo(10)
	r.checkpoint()
	r.log.Trim(8)
	r.jobs.drain()
	require.Equal(t, wire.Index(1), r.log.FirstIndex(), "there is one checkpoint only")
	require.Equal(t, wire.Offset(8), r.log.StartOffset())
	_, _, err := r.log.Locate(7)
	var out *OutOfRangeError
	require.ErrorAs(t, err, &out)
	require.Equal(t, OutOfRangeError{Offset: 7, Start: 8, Next: 10}, *out)
	fillTo(20)
	r.checkpoint()
	require.Equal(t, wire.Index(9), r.log.FirstIndex())
	term, ok := r.log.Term(8)
	require.True(t, ok)
	require.Equal(t, wire.Term(1), term)
	_, ok = r.log.Term(7)
	require.False(t, ok)

	// The newer checkpoint is damaged: the older one still finds its entries.
	r.close(true)
	require.NoError(t, fs.Corrupt(r.options.Dir+"/checkpoint.1", 100, 0))
	r.open()
	require.Equal(t, wire.Index(10), r.log.Checkpoint().Applied)
	require.Equal(t, []byte("state at 10"), r.log.Checkpoint().State)
	require.Len(t, r.replayed(11), 10)
	r.log.Publish(20)
	require.Len(t, r.stream(mustLocate(t, r.log, 8), 10_000), 12)
	// The next one replaces the damaged one.
	r.checkpoint()
	r.close(true)
	r.open()
	require.Equal(t, wire.Index(20), r.log.Checkpoint().Applied)
	r.close(true)

	require.NoError(t, fs.Corrupt(r.options.Dir+"/checkpoint.0", 100, 0))
	require.NoError(t, fs.Corrupt(r.options.Dir+"/checkpoint.1", 100, 0))
	require.ErrorIs(t, r.tryOpen(), ErrCorrupt, "the log's start cannot be reached without a checkpoint")
}

func mustLocate(t *testing.T, l *Log, o wire.Offset) Position {
	t.Helper()
	p, _, err := l.Locate(o)
	require.NoError(t, err)
	return p
}

func TestRuleL3_TheCommitIsDurableBeforeTheStartMoves(t *testing.T) {
	fs := vfs.NewSimulated(1)
	var steps []string
	r := newRig(t, fs, func(o *Options) { o.SegmentBytes = 1000 }).open()
	r.term(1)
	for i := wire.Index(1); i <= 12; i++ {
		r.append(records(i, 1, 1, 300))
		r.commit()
		if i == 8 || i == 10 {
			r.checkpoint()
		}
	}
	require.Less(t, r.log.slot.last.commit, wire.Index(6))
	fs.Inject(func(op vfs.Op, name string) error {
		if op == vfs.OpSync && strings.HasSuffix(name, "hardstate") || op == vfs.OpRename && strings.HasSuffix(name, "manifest.tmp") {
			steps = append(steps, op.String())
		}
		return nil
	})
	r.log.Trim(6)
	r.jobs.drain()
	require.Equal(t, wire.Index(7), r.log.FirstIndex())
	require.Equal(t, []string{"sync", "rename"}, steps)
	require.GreaterOrEqual(t, r.log.slot.last.commit, wire.Index(6))
}

func TestRuleL3_ADamagedManifestIsCorruption(t *testing.T) {
	fs := vfs.NewSimulated(1)
	r := newRig(t, fs, nil).open()
	r.append(records(1, 1, 1, 10))
	r.commit()
	r.close(true)
	require.NoError(t, fs.Corrupt(r.options.Dir+"/manifest", 50, 2))
	require.ErrorIs(t, r.tryOpen(), ErrCorrupt)
	require.NoError(t, fs.Corrupt(r.options.Dir+"/manifest", 50, 2))
	require.NoError(t, fs.Rename(r.options.Dir+"/manifest", r.options.Dir+"/manifest.old"))
	require.ErrorIs(t, r.tryOpen(), ErrCorrupt, "a lost manifest does not make an empty log")
}

func TestF4_ALostHardStateFileIsCorruption(t *testing.T) {
	fs := vfs.NewSimulated(1)
	r := newRig(t, fs, nil).open()
	r.close(true)
	require.NoError(t, fs.Remove(testDir+"/hardstate"))
	require.ErrorIs(t, r.tryOpen(), ErrCorrupt)
}

func TestF4_ARottenVoteIsCorruption(t *testing.T) {
	fs := vfs.NewSimulated(1)
	r := newRig(t, fs, nil).open()
	r.term(1)
	r.append(records(1, 1, 1, 10))
	r.commit()
	r.term(2)
	r.sync()
	r.close(false)
	s := r.log.slot
	for _, copyB := range []bool{false, true} {
		require.NoError(t, fs.Corrupt(testDir+"/hardstate", s.position(copyB)+33, 1))
		require.ErrorIs(t, r.tryOpen(), ErrCorrupt)
		require.NoError(t, fs.Corrupt(testDir+"/hardstate", s.position(copyB)+33, 1))
	}
	require.NoError(t, fs.Corrupt(testDir+"/hardstate", s.position(false)+33, 1))
	require.NoError(t, fs.Corrupt(testDir+"/hardstate", s.position(true)+33, 1))
	require.ErrorIs(t, r.tryOpen(), ErrCorrupt)
}

func TestRuleL4_NoFileBeforeTheFirstWrite(t *testing.T) {
	fs := vfs.NewSimulated(1)
	r := newRig(t, fs, nil).open()
	r.term(1)
	r.sync()
	names, err := fs.List(r.options.Dir)
	require.NoError(t, err)
	require.Equal(t, []string{"manifest"}, names)
	require.Equal(t, int64(0), r.log.Bytes())
	v, err := r.log.View(Position{}, 100)
	require.NoError(t, err)
	require.Zero(t, v.Bytes)
	v.Release()
	r.append(noOp(1, 1))
	r.sync()
	names, err = fs.List(r.options.Dir)
	require.NoError(t, err)
	require.Len(t, names, 2)
	info, err := fs.Stat(r.options.Dir + "/" + names[0])
	require.NoError(t, err)
	require.Equal(t, int64(64<<10), info.Size())
}

func TestRuleL4_TheNextSegmentIsPreparedAhead(t *testing.T) {
	fs := vfs.NewSimulated(1)
	r := newRig(t, fs, func(o *Options) { o.SegmentBytes = 100_000 }).open()
	r.term(1)
	for r.log.active == nil || r.log.active.End() < 70_000 {
		r.append(records(r.log.LastIndex()+1, 1, 1, 1000))
	}
	r.jobs.drain()
	require.Nil(t, r.log.next)
	for r.log.active.End() < 76_000 {
		r.append(records(r.log.LastIndex()+1, 1, 1, 1000))
	}
	r.jobs.drain()
	require.NotNil(t, r.log.next)
	before := fs.Ops()
	require.NoError(t, r.log.Reserve(80_000, true))
	require.NoError(t, r.log.Append([]Entry{records(r.log.LastIndex()+1, 1, 1, 79_000)}))
	require.Equal(t, before+1, fs.Ops(), "a roll costs the owner nothing but the write")
}

func TestRuleL4_RecycledFilesAreUsedAgain(t *testing.T) {
	fs := vfs.NewSimulated(1)
	r := newRig(t, fs, func(o *Options) { o.SegmentBytes = 70_000 }).open()
	r.term(1)
	renames := 0
	fs.Inject(func(op vfs.Op, name string) error {
		if op == vfs.OpRename && strings.HasPrefix(name, testDir+"/recycled/") {
			renames++
		}
		return nil
	})
	for i := wire.Index(1); i <= 400; i++ {
		r.append(records(i, 1, 1, 2000))
		r.commit()
		if i%20 == 0 {
			r.checkpoint()
			r.log.Trim(wire.Offset(i - 19))
			r.jobs.drain()
		}
	}
	require.Greater(t, renames, 5)
	// Their stale frames are whole, of this very partition, and never count.
	p, _ := r.log.place(400)
	stale := r.readAt(r.options.Dir+"/"+p.seg.Name(), p.end, 64)
	require.NotEqual(t, make([]byte, 64), stale)
	want := r.replayed(r.log.FirstIndex())
	r.kill()
	r.open()
	require.Equal(t, want, r.replayed(r.log.FirstIndex()))
	require.LessOrEqual(t, len(r.store.pool), maxRecycled)
}

func TestRuleL4_FilesInUseAreNotRecycled(t *testing.T) {
	fs := vfs.NewSimulated(1)
	r := newRig(t, fs, func(o *Options) { o.SegmentBytes = 70_000 }).open()
	r.term(1)
	for i := wire.Index(1); i <= 100; i++ {
		r.append(records(i, 1, 1, 2000))
		r.commit()
		if i == 60 || i == 80 {
			r.checkpoint()
		}
	}
	require.NoError(t, r.log.Populate(Position{}, 100))
	v, err := r.log.View(Position{}, 5000)
	require.NoError(t, err)
	r.log.Trim(50)
	r.jobs.drain()
	require.Equal(t, wire.Index(34), r.log.FirstIndex())
	require.Empty(t, r.store.pool, "a view holds the first segment")
	h, err := wire.ParseFrameHeader(v.Slices[0])
	require.NoError(t, err)
	require.Equal(t, wire.Index(1), h.Index)
	v.Release()
	_, err = r.log.View(Position{Segment: 1, Byte: 128}, 5000)
	require.ErrorIs(t, err, ErrOffsetOutOfRange)
	_, err = r.log.View(Position{}, 5000)
	require.ErrorIs(t, err, ErrOffsetOutOfRange)
}

func TestRuleL5_WhatAModeHoldsStable(t *testing.T) {
	for _, c := range []struct {
		mode   SyncMode
		entry  Entry
		atOnce bool
	}{
		{SyncQuorum, records(1, 1, 1, 10), false},
		{SyncInterval, records(1, 1, 1, 10), true},
		{SyncOS, records(1, 1, 1, 10), true},
		{SyncOS, configuration(1, 1, "change"), false},
		{SyncOS, control(1, 1, 10), false},
		{SyncInterval, noOp(1, 1), false},
	} {
		t.Run(fmt.Sprint(c.mode, " ", c.entry.Kind), func(t *testing.T) {
			fs := vfs.NewSimulated(1)
			r := newRig(t, fs, func(o *Options) { o.Sync = c.mode }).open()
			r.append(c.entry)
			require.Equal(t, uint64(1), r.log.Ticket())
			if c.atOnce {
				require.Equal(t, uint64(1), r.log.DurableTicket())
				require.Equal(t, wire.Index(1), r.log.DurableIndex())
				r.log.Sync()
				require.Empty(t, r.jobs.jobs, "nobody waits for a sync")
				r.log.SyncNow()
				require.Len(t, r.jobs.jobs, 1)
				require.NoError(t, r.log.Append([]Entry{records(2, 1, 1, 10)}))
				require.Equal(t, uint64(2), r.log.DurableTicket(), "the periodic sync delays nobody")
			} else {
				require.Equal(t, uint64(0), r.log.DurableTicket())
				require.Equal(t, wire.Index(0), r.log.DurableIndex())
				r.log.Sync()
			}
			r.jobs.drain()
			require.Equal(t, r.log.Ticket(), r.log.DurableTicket())
			require.Equal(t, r.log.LastIndex(), r.log.synced)
			// A vote is synced in every mode.
			r.term(1)
			require.Equal(t, r.log.Ticket()-1, r.log.DurableTicket())
			r.sync()
			require.Equal(t, r.log.Ticket(), r.log.DurableTicket())
			fs.CrashLoseAll()
			r.boot = "boot-2"
			r.open()
			require.Equal(t, HardState{Term: 1, Vote: 7}, r.log.HardState())
		})
	}
}

func TestRuleL5_ACheckpointIsDurableNoEarlierThanItsEntries(t *testing.T) {
	fs := vfs.NewSimulated(1)
	r := newRig(t, fs, func(o *Options) { o.Sync = SyncOS }).open()
	r.append(records(1, 1, 1, 100))
	r.log.Publish(1)
	r.log.WriteCheckpoint(r.checkpointAt(1))
	require.True(t, r.log.CheckpointPending())
	var steps []string
	fs.Inject(func(op vfs.Op, name string) error {
		if op == vfs.OpSync || op == vfs.OpRename {
			steps = append(steps, op.String()+" "+name[strings.LastIndexByte(name, '.'):])
		}
		return nil
	})
	r.jobs.drain()
	require.False(t, r.log.CheckpointPending())
	require.Equal(t, []string{"sync .segment", "sync .tmp", "rename .tmp"}, steps)
}

func TestRuleL5_UncertainAfterTheMachineStopped(t *testing.T) {
	for _, c := range []struct {
		name      string
		mode      SyncMode
		boot      string
		clean     bool
		uncertain bool
	}{
		{"the machine lost power", SyncOS, "boot-2", false, true},
		{"the machine lost power, interval", SyncInterval, "boot-2", false, true},
		{"only the process died", SyncOS, "boot-1", false, false},
		{"the log was closed before", SyncOS, "boot-2", true, false},
		{"records are synced", SyncQuorum, "boot-2", false, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, vfs.NewSimulated(1), func(o *Options) { o.Sync = c.mode }).open()
			r.term(1)
			r.append(noOp(1, 1), records(2, 1, 1, 10))
			r.commit()
			if c.clean {
				r.close(true)
			} else {
				r.kill()
			}
			r.boot = c.boot
			r.open()
			require.Equal(t, c.uncertain, r.log.Uncertain())
			// It stays so over a restart of the process, until it caught up.
			r.kill()
			r.open()
			require.Equal(t, c.uncertain, r.log.Uncertain())
			r.log.SetCertain()
			r.sync()
			r.kill()
			r.open()
			require.False(t, r.log.Uncertain())
		})
	}
}

// What a failed sync has lost is shown by the page cache until it drops it: readers of a mode
// that does not wait for the disk have read it by then, and must be told (RELIABILITY F5).
func TestRuleL5_UncertainAfterAFailedSyncToo(t *testing.T) {
	for _, c := range []struct {
		mode      SyncMode
		uncertain bool
	}{
		{SyncOS, true},
		{SyncInterval, true},
		{SyncQuorum, false}, // nobody has read entry 3
	} {
		fs := vfs.NewSimulated(1)
		r := newRig(t, fs, func(o *Options) { o.Sync = c.mode }).open()
		r.term(1)
		r.append(noOp(1, 1), records(2, 1, 1, 10))
		r.commit()
		r.sync()
		r.append(records(3, 1, 1, 10))
		fs.Inject(func(op vfs.Op, name string) error {
			if op == vfs.OpSync && strings.HasSuffix(name, ".segment") {
				return errEIO
			}
			return nil
		})
		r.log.SyncNow()
		r.jobs.drain()
		require.ErrorIs(t, r.log.Err(), ErrFenced)
		fs.Inject(nil)
		r.kill()
		fs.EvictLost()
		r.options.RecoverFence = true
		r.open() // on the same machine
		require.Equal(t, wire.Index(2), r.log.LastIndex())
		require.Equal(t, c.uncertain, r.log.Uncertain(), c.mode)
		r.kill()
		r.open()
		require.Equal(t, c.uncertain, r.log.Uncertain(), "until the incarnation is committed")
		r.log.SetCertain()
		r.sync()
		r.kill()
		r.open()
		require.False(t, r.log.Uncertain())
	}
}

func TestRuleL5_TheCommitIsClampedOnlyInVolatileModes(t *testing.T) {
	for _, mode := range []SyncMode{SyncQuorum, SyncOS} {
		fs := vfs.NewSimulated(1)
		r := newRig(t, fs, func(o *Options) { o.Sync = mode }).open()
		r.term(1)
		r.append(records(1, 1, 1, 10))
		r.commit()
		r.append(records(2, 1, 1, 10))
		r.commit()
		r.log.MarkIdle()
		r.jobs.drain()
		require.Equal(t, wire.Index(2), r.log.slot.last.commit)
		r.kill()
		// A slot whose commit is above the log, but whose mark is not.
		s := r.log.slot.last
		s.mark = 1
		s.sequence++
		var b [slotSize]byte
		s.encode(b[:])
		r.writeAt(testDir+"/hardstate", r.log.slot.position(s.sequence&1 == 1), b[:])
		name, from, to := r.frame(2)
		r.writeAt(name, from, make([]byte, to-from))
		err := r.tryOpen()
		if mode == SyncQuorum {
			require.ErrorIs(t, err, ErrCorrupt)
			continue
		}
		require.NoError(t, err)
		require.Equal(t, wire.Index(1), r.log.HardState().Commit)
	}
}

func TestRuleL9_TheFenceSurvivesARestart(t *testing.T) {
	fs := vfs.NewSimulated(1)
	r := newRig(t, fs, nil).open()
	r.term(1)
	r.append(records(1, 1, 1, 100), records(2, 1, 1, 100))
	r.commit()
	r.append(records(3, 1, 1, 100))
	eio := errors.New("input/output error")
	fs.Inject(func(op vfs.Op, name string) error {
		if op == vfs.OpSync && strings.HasSuffix(name, ".segment") {
			return eio
		}
		return nil
	})
	r.log.Sync()
	r.jobs.drain()
	require.ErrorIs(t, r.log.Err(), ErrFenced)
	require.ErrorIs(t, r.log.Err(), eio)
	require.Equal(t, wire.Index(2), r.log.DurableIndex())
	require.ErrorIs(t, r.log.Append([]Entry{records(4, 1, 1, 10)}), ErrFenced)
	require.ErrorIs(t, r.log.Reserve(10, false), ErrFenced)
	fs.Inject(nil)
	r.kill()

	require.ErrorIs(t, r.tryOpen(), ErrFenced)
	r.options.RecoverFence = true
	r.open()
	// The page cache showed entry 3: it is served from a fresh file now.
	require.Equal(t, wire.Index(3), r.log.LastIndex())
	name, _, _ := r.frame(3)
	require.NotContains(t, name, "-0000000100000001")
	want := []Entry{records(1, 1, 1, 100), records(2, 1, 1, 100), records(3, 1, 1, 100)}
	require.Equal(t, want, r.replayed(1))
	names, err := fs.List(testDir + "/quarantine")
	require.NoError(t, err)
	require.Equal(t, []string{"orders-0-0000000000000001-0000000100000001.segment"}, names)
	r.append(records(4, 1, 1, 100))
	r.commit()
	r.kill()
	fs.EvictLost()
	r.options.RecoverFence = false
	r.open()
	require.Equal(t, append(want, records(4, 1, 1, 100)), r.replayed(1))
}

func TestRuleL9_ATailThatNobodyFencedIsWrittenAgain(t *testing.T) {
	// Every sync fails, so that the fence cannot be saved either. The next process on
	// the same machine finds a perfect log in the page cache.
	eio := errors.New("input/output error")
	for _, segmentBytes := range []int64{1 << 20, 400} {
		fs := vfs.NewSimulated(1)
		r := newRig(t, fs, func(o *Options) { o.SegmentBytes = segmentBytes }).open()
		r.term(1)
		r.append(records(1, 1, 1, 100), records(2, 1, 1, 100))
		r.commit()
		r.append(records(3, 1, 1, 100))
		r.log.SetHardState(HardState{Term: 2, Vote: 9}, true)
		fs.Inject(func(op vfs.Op, _ string) error {
			if op == vfs.OpSync {
				return eio
			}
			return nil
		})
		r.log.Sync()
		r.jobs.drain()
		require.ErrorIs(t, r.log.Err(), eio)
		fs.Inject(nil)
		r.kill()
		r.open()
		require.Equal(t, wire.Index(3), r.log.LastIndex(), "what is there may be served")
		state := r.log.HardState()
		r.log.Publish(3)
		r.kill()
		fs.EvictLost()
		r.open()
		require.Equal(t, []Entry{records(1, 1, 1, 100), records(2, 1, 1, 100), records(3, 1, 1, 100)}, r.replayed(1))
		require.Equal(t, state, r.log.HardState())
	}
}

func TestRuleL9_IfTheTailCannotBeWrittenAgainTheLogStaysDown(t *testing.T) {
	eio := errors.New("input/output error")
	fs := vfs.NewSimulated(1)
	r := threeDurable(t, fs)
	r.kill()
	fs.Inject(func(op vfs.Op, name string) error {
		if op == vfs.OpWrite && strings.HasSuffix(name, ".segment") {
			return eio
		}
		return nil
	})
	err := r.tryOpen()
	require.ErrorIs(t, err, eio)
	require.ErrorContains(t, err, "write again what the log holds above entry 3")
	fs.Inject(nil)
	r.open()
	require.Equal(t, wire.Index(5), r.log.LastIndex())
}

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

func TestF7_AStaleSuffixNeverComesBack(t *testing.T) {
	for seed := range uint64(*crashSeeds) {
		staleSuffix(t, seed)
	}
	t.Logf("seeds 0 to %d, one power cut each", *crashSeeds-1)
}

// staleSuffix replaces a longer suffix by a shorter one of frames of the same size,
// and what of the new frames and of the zeros behind them reaches the disk is
// chance. Either the old suffix is there or the new one, up to some entry; never
// some of both.
func staleSuffix(t testing.TB, seed uint64) {
	fs := vfs.NewSimulated(seed)
	r := newRig(t, fs, nil).open()
	r.term(1)
	for i := wire.Index(1); i <= 20; i++ {
		r.append(records(i, 1, 1, 448))
	}
	r.sync()
	r.log.Publish(5)
	r.term(2)
	r.append(records(6, 2, 1, 448), records(7, 2, 1, 448))
	fs.Crash()
	r.open()
	entries := r.replayed(1)
	require.GreaterOrEqual(t, len(entries), 5, "seed %d", seed)
	renewed := len(entries) > 5 && entries[5].Term == 2
	for k, e := range entries {
		want := wire.Term(1)
		if k >= 5 && renewed {
			want = 2
		}
		require.Equal(t, records(wire.Index(k+1), want, 1, 448), e, "seed %d", seed)
	}
	if renewed {
		require.LessOrEqual(t, len(entries), 7, "seed %d", seed)
	}
}

func TestF8_RemovedFilesThatComeBackAreQuarantined(t *testing.T) {
	fs := vfs.NewSimulated(1)
	r := newRig(t, fs, func(o *Options) { o.SegmentBytes = 70_000 }).open()
	r.term(1)
	for i := wire.Index(1); i <= 100; i++ {
		r.append(records(i, 1, 1, 2000))
		r.commit()
		if i == 60 || i == 80 {
			r.checkpoint()
		}
	}
	old := r.options.Dir + "/" + (*r.log.segments.Load())[0].Name()
	content := r.readAt(old, 0, 70_000)
	r.log.Trim(50)
	r.jobs.drain()
	want := r.replayed(r.log.FirstIndex())
	r.kill()
	f, err := fs.Create(old)
	require.NoError(t, err)
	_, err = f.WriteAt(content, 0)
	require.NoError(t, err)
	require.NoError(t, f.Close())
	stranger, err := fs.Create(r.options.Dir + "/notes.txt")
	require.NoError(t, err)
	require.NoError(t, stranger.Close())
	r.open()
	require.Equal(t, wire.Index(34), r.log.FirstIndex())
	require.Equal(t, want, r.replayed(34))
	names, err := fs.List(testDir + "/quarantine")
	require.NoError(t, err)
	require.Equal(t, []string{"orders-0-0000000000000001-0000000100000001.segment", "orders-0-notes.txt"}, names)
	require.NoError(t, r.store.PurgeQuarantine())
	names, err = fs.List(testDir + "/quarantine")
	require.NoError(t, err)
	require.Empty(t, names)
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

func TestQuarantineFreesTheSlot(t *testing.T) {
	fs := vfs.NewSimulated(1)
	r := newRig(t, fs, nil).open()
	r.term(3)
	r.append(records(1, 3, 1, 10))
	r.commit()
	require.NoError(t, r.log.Close(true))
	number := r.log.slot.number
	require.NoError(t, r.store.Quarantine(r.options.Dir))
	require.NoError(t, r.store.Quarantine(r.options.Dir), "gone already")
	names, err := fs.List(testDir + "/quarantine")
	require.NoError(t, err)
	require.Equal(t, []string{"orders-0"}, names)
	fs.CrashLoseAll()
	r.options.ReplicaID = 8
	r.open()
	require.Equal(t, wire.Index(0), r.log.LastIndex())
	require.Equal(t, HardState{}, r.log.HardState(), "another replica, another vote")
	require.Equal(t, number, r.log.slot.number)
	r.close(true)
	r.options.ReplicaID = 7
	require.ErrorIs(t, r.tryOpen(), ErrIdentity)
}

func TestOpenRefusesAMissingLog(t *testing.T) {
	r := newRig(t, vfs.NewSimulated(1), func(o *Options) { o.Existing = true })
	require.ErrorIs(t, r.tryOpen(), ErrMissing)
	r.options.Existing = false
	r.open().close(true)
	r.options.Existing = true
	r.open().close(true)
}

func TestTwoBrokersOnOneDirectory(t *testing.T) {
	fs := vfs.NewSimulated(1)
	newRig(t, fs, nil).open()
	require.ErrorIs(t, newRig(t, fs, nil).tryOpen(), ErrLocked)
}

// summed is an entry as the tail has it.
func summed(e Entry) Entry {
	body := e.Data
	if e.Kind == wire.KindRecords {
		body = body[wire.EntryPrefixSize:]
	}
	e.BodyCRC, e.Summed = wire.Checksum(body), true
	return e
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

func TestASyncCoversWhatWasWrittenBeforeItStarted(t *testing.T) {
	fs := vfs.NewSimulated(1)
	r := newRig(t, fs, nil).open()
	r.append(records(1, 1, 1, 10))
	r.log.Sync()
	require.Len(t, r.jobs.jobs, 1)
	require.NoError(t, r.log.Append([]Entry{records(2, 1, 1, 10)}))
	r.log.Sync()
	require.Len(t, r.jobs.jobs, 1, "one is in flight")
	j := r.jobs.jobs[0]
	j.Run()
	require.NoError(t, r.log.Append([]Entry{records(3, 1, 1, 10)}))
	require.Equal(t, uint64(0), r.log.DurableTicket())
	r.jobs.jobs = nil
	j.Done()
	require.Equal(t, uint64(2), r.log.DurableTicket())
	require.Equal(t, wire.Index(2), r.log.DurableIndex())
	require.Len(t, r.jobs.jobs, 1, "another follows by itself")
	r.jobs.drain()
	require.Equal(t, wire.Index(3), r.log.DurableIndex())
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

func TestRuleL2_TheSlotsMarkHoldsInEveryMode(t *testing.T) {
	for _, mode := range []SyncMode{SyncQuorum, SyncInterval, SyncOS} {
		fs := vfs.NewSimulated(1)
		r := newRig(t, fs, func(o *Options) { o.Sync = mode }).open()
		r.term(1)
		r.append(records(1, 1, 1, 50), records(2, 1, 1, 50))
		r.commit()
		r.log.MarkIdle()
		r.jobs.drain()
		require.Equal(t, wire.Index(2), r.log.slot.last.mark)
		name, from, _ := r.frame(2)
		r.kill()
		require.NoError(t, fs.Corrupt(name, from+20, 1))
		require.ErrorIs(t, r.tryOpen(), ErrCorrupt, "%v", mode)
	}
}

func TestF7_ATruncationThatOnlyThePageCacheKnows(t *testing.T) {
	// Entries 4 and 5 are taken back at the durable mark and zeroed, the new entry 4
	// goes to the next segment. The process dies, another one recovers, then the
	// power goes: the zeros must have been made durable with the new entry.
	fs := vfs.NewSimulated(1)
	r := newRig(t, fs, func(o *Options) { o.SegmentBytes = 3000 }).open()
	r.term(1)
	for i := wire.Index(1); i <= 3; i++ {
		r.append(records(i, 1, 1, 300))
	}
	r.commit()
	r.log.MarkIdle()
	r.append(records(4, 1, 1, 300), records(5, 1, 1, 300))
	r.sync()
	r.term(2)
	r.append(records(4, 2, 1, 2500))
	require.Len(t, *r.log.segments.Load(), 2)
	r.kill()
	r.open()
	require.Equal(t, wire.Index(4), r.log.LastIndex())
	fs.CrashLoseAll()
	r.open()
	require.Equal(t, []Entry{records(1, 1, 1, 300), records(2, 1, 1, 300), records(3, 1, 1, 300), records(4, 2, 1, 2500)}, r.replayed(1))
}

func TestF7_ASyncBesideATruncationDoesNotCoverItsZeros(t *testing.T) {
	// The same, and a sync that was asked for before runs just before the zeros are
	// written: the next one must make them durable.
	fs := vfs.NewSimulated(1)
	r := newRig(t, fs, func(o *Options) { o.SegmentBytes = 3000 }).open()
	r.term(1)
	for i := wire.Index(1); i <= 3; i++ {
		r.append(records(i, 1, 1, 300))
	}
	r.commit()
	r.append(records(4, 1, 1, 300), records(5, 1, 1, 300))
	r.sync()
	r.term(2)
	r.sync()
	var beside Job
	fs.Inject(func(op vfs.Op, name string) error {
		if j := beside; op == vfs.OpZero && j != nil {
			beside = nil
			j.Run()
			r.jobs.jobs = append(r.jobs.jobs, finished{j})
		}
		return nil
	})
	for {
		err := r.reserve(frameSize(records(4, 2, 1, 2500)), true)
		if err == nil {
			r.jobs.drain()
			r.log.pending.Lock()
			r.log.pending.force = true
			r.log.pending.Unlock()
			r.log.Sync()
			require.Len(t, r.jobs.jobs, 1)
			beside, r.jobs.jobs = r.jobs.jobs[0], nil
			err = r.log.Append([]Entry{records(4, 2, 1, 2500)})
		}
		if !errors.Is(err, ErrNotReady) {
			require.NoError(t, err)
			break
		}
		if beside != nil {
			r.jobs.jobs = append([]Job{beside}, r.jobs.jobs...)
			beside = nil
		}
		r.jobs.drain()
	}
	require.Nil(t, beside, "the sync ran before the zeros")
	require.NoError(t, r.log.Err())
	require.Len(t, *r.log.segments.Load(), 2)
	fs.Inject(nil)
	r.sync()
	require.Equal(t, wire.Index(4), r.log.DurableIndex())
	fs.CrashLoseAll()
	r.open()
	require.Equal(t, records(4, 2, 1, 2500), r.replayed(4)[0])
}

// finished is a job that has run.
type finished struct{ Job }

func (finished) Run() {}

func TestRuleL5_AModeThatWasChangedIsRemembered(t *testing.T) {
	r := newRig(t, vfs.NewSimulated(1), nil).open()
	r.term(1)
	r.append(records(1, 1, 1, 10))
	r.commit()
	r.log.SetSync(SyncOS)
	require.NoError(t, r.reserve(1000, true))
	require.NoError(t, r.log.Append([]Entry{records(2, 1, 1, 10)}))
	require.Less(t, r.log.DurableTicket(), r.log.Ticket(), "the slot must say so first")
	r.sync()
	require.NoError(t, r.log.Append([]Entry{records(3, 1, 1, 10)}))
	require.Equal(t, r.log.Ticket(), r.log.DurableTicket())
	r.kill()
	// Whoever opens it next does not know the mode yet.
	r.boot = "boot-2"
	r.open()
	require.True(t, r.log.Uncertain())
	r.log.SetCertain()
	r.log.SetSync(SyncOS)
	r.log.SetSync(SyncQuorum)
	r.sync()
	r.log.MarkIdle()
	r.jobs.drain()
	r.kill()
	r.boot = "boot-3"
	r.open()
	require.False(t, r.log.Uncertain())
}

// What a replica must not forget is the higher of its slot and of its last entry:
// an entry may have come from a leader of a term in which it never voted.
func TestRuleL3_TheTermOfABootIsTheHigherOfSlotAndLastEntry(t *testing.T) {
	for _, c := range []struct {
		entry wire.Term
		want  HardState
	}{
		{entry: 9, want: HardState{Term: 9}},
		{entry: 3, want: HardState{Term: 5, Vote: 7}},
	} {
		r := newRig(t, vfs.NewSimulated(1), nil).open()
		r.term(5)
		r.append(records(1, c.entry, 1, 10))
		r.sync()
		r.kill()
		r.open()
		require.Equal(t, c.want, r.log.HardState(), "a vote counts in its own term only")
		// And it outlives that entry.
		r.kill()
		r.open()
		require.Equal(t, c.want, r.log.HardState())
		require.Equal(t, c.want.Term, r.log.slot.last.term)
	}
}

// Term and vote are synced before or with the entries beside them: at no storage call
// does a crash leave the promise of the entries without the vote.
func TestRuleL3_EntriesAreDurableNoEarlierThanTheVoteBesideThem(t *testing.T) {
	promised := 0
	for n := int64(1); ; n++ {
		fs := vfs.NewSimulated(uint64(n))
		r := newRig(t, fs, nil).open()
		r.term(1)
		r.append(records(1, 1, 1, 100))
		r.commit()
		fs.StopAt(fs.Ops() + n)
		vote := HardState{Term: 2, Vote: 3}
		r.log.SetHardState(vote, true)
		err := r.tryAppend(records(2, 2, 1, 100))
		r.log.Sync()
		r.jobs.drain()
		durable := r.log.DurableIndex()
		ended := err == nil && r.log.Err() == nil
		fs.CrashLoseAll()
		r.open()
		if durable == 2 {
			promised++
			require.Equal(t, wire.Index(2), r.log.LastIndex(), "call %d", n)
			require.Equal(t, vote.Term, r.log.HardState().Term, "call %d", n)
			require.Equal(t, vote.Vote, r.log.HardState().Vote, "call %d", n)
		}
		if ended {
			break
		}
	}
	require.NotZero(t, promised)
}

// A fenced log whose copy fails serves nothing and says why; once it can be written
// all of it is there.
func TestRuleL9_IfTheCopyOfAFencedLogFailsItStaysDown(t *testing.T) {
	eio := errors.New("input/output error")
	for n := 1; ; n++ {
		fs := vfs.NewSimulated(1)
		r := newRig(t, fs, nil).open()
		r.term(1)
		r.append(records(1, 1, 1, 100), records(2, 1, 1, 100))
		r.commit()
		r.append(records(3, 1, 1, 100))
		fs.Inject(func(op vfs.Op, name string) error {
			if op == vfs.OpSync && strings.HasSuffix(name, ".segment") {
				return eio
			}
			return nil
		})
		r.log.Sync()
		r.jobs.drain()
		require.ErrorIs(t, r.log.Err(), ErrFenced)
		r.kill()
		r.options.RecoverFence = true
		failed, writes := false, 0
		fs.Inject(func(op vfs.Op, name string) error {
			copies := strings.HasSuffix(name, ".segment") && (op == vfs.OpCreate || op == vfs.OpAllocate || op == vfs.OpWrite || op == vfs.OpSync)
			if copies {
				if writes++; writes == n {
					failed = true
					return eio
				}
			}
			return nil
		})
		err := r.tryOpen()
		fs.Inject(nil)
		if !failed {
			require.NoError(t, err)
			require.Greater(t, n, 3, "a copy is created, allocated, written and synced")
			return
		}
		require.ErrorIs(t, err, eio, "call %d", n)
		require.ErrorContains(t, err, "copy what the fenced log holds above entry ", "call %d", n)
		r.open()
		require.Equal(t, []Entry{records(1, 1, 1, 100), records(2, 1, 1, 100), records(3, 1, 1, 100)}, r.replayed(1), "call %d", n)
		r.kill()
		fs.EvictLost()
		r.open()
		require.Equal(t, wire.Index(3), r.log.LastIndex(), "call %d", n)
	}
}

func TestRuleL10_TheMinimumIsATwentiethAndAtLeastAGibibyte(t *testing.T) {
	require.Equal(t, int64(1<<30), MinFree(0, 10<<30))
	require.Equal(t, int64(5<<30), MinFree(0, 100<<30))
	require.Equal(t, int64(7), MinFree(7, 100<<30))
	require.LessOrEqual(t, MinFree(-1, 100<<30), int64(0))
}

// A clean stop and an idle log leave a mark in the slot that covers everything: rot in
// the very last entry is known as such.
func TestRuleL2_TheMarkOfAStopCoversTheLastEntry(t *testing.T) {
	for _, c := range []struct {
		name  string
		end   func(*rig)
		known bool
	}{
		{"stopped in order", func(r *rig) { r.close(true) }, true},
		{"killed when idle", func(r *rig) { r.log.MarkIdle(); r.jobs.drain(); r.kill() }, true},
		{"killed when busy", func(r *rig) { r.kill() }, false},
	} {
		fs := vfs.NewSimulated(1)
		r := newRig(t, fs, nil).open()
		r.term(1)
		for i := wire.Index(1); i <= 3; i++ {
			r.append(records(i, 1, 1, 100))
			r.commit()
		}
		name, from, _ := r.frame(3)
		c.end(r)
		require.NoError(t, fs.Corrupt(name, from+20, 1))
		err := r.tryOpen()
		if c.known {
			require.ErrorIs(t, err, ErrCorrupt, c.name)
			continue
		}
		require.NoError(t, err, c.name)
		require.Equal(t, wire.Index(2), r.log.LastIndex(), c.name)
	}
}

// A state that has outgrown the limit costs the checkpoint and nothing else.
func TestACheckpointThatIsTooLargeIsNotWritten(t *testing.T) {
	r := newRig(t, vfs.NewSimulated(1), nil).open()
	r.term(1)
	r.append(records(1, 1, 1, 300))
	r.commit()
	r.checkpoint()
	r.append(records(2, 1, 1, 300))
	r.commit()
	r.store.o.CheckpointBytes = 100
	r.checkpoint()
	require.NoError(t, r.log.Err())
	require.Equal(t, uint64(1), r.store.CheckpointsFailed())
	require.Equal(t, wire.Index(1), r.log.SavedCheckpoint().Applied)
	r.append(records(3, 1, 1, 300))
	r.commit()
	r.store.o.CheckpointBytes = MaxCheckpointBytes
	r.checkpoint()
	require.Equal(t, wire.Index(3), r.log.SavedCheckpoint().Applied)
}
