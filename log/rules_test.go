package log

import (
	"fmt"
	"testing"

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

// summed is an entry as the tail has it.
func summed(e Entry) Entry {
	body := e.Data
	if e.Kind == wire.KindRecords {
		body = body[wire.EntryPrefixSize:]
	}
	e.BodyCRC, e.Summed = wire.Checksum(body), true
	return e
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

// aFollowersStop is a log that was closed in order when all of its 12 entries were durable
// and it knew of 5 of them that they are committed.
func aFollowersStop(t *testing.T) (r *rig, fs *vfs.Simulated) {
	fs = vfs.NewSimulated(1)
	r = newRig(t, fs, nil).open()
	r.term(1)
	for i := wire.Index(1); i <= 12; i++ {
		r.append(records(i, 1, 1, 100))
		if i <= 5 {
			r.commit()
		}
	}
	r.sync()
	r.close(true)
	r.open()
	require.Equal(t, wire.Index(12), r.log.LastIndex())
	require.Equal(t, wire.Index(5), r.log.HardState().Commit)
	return r, fs
}

// What a stop in order leaves is all durable: nothing of it can be a tail that never was
// confirmed. A follower has acknowledged it, and may not know yet that it is committed.
func TestRuleL2_AfterACleanStopDamageIsNoTornTail(t *testing.T) {
	for _, part := range []struct {
		name  string
		at    int64
		until wire.Index
	}{
		{"body", wire.FrameHeaderSize + 7, 12},
		{"header", 20, 11}, // behind the last one there is none to tell
	} {
		for i := wire.Index(6); i <= part.until; i++ {
			r, fs := aFollowersStop(t)
			name, from, _ := r.frame(i)
			r.close(true)
			require.NoError(t, fs.Corrupt(name, from+part.at, 2))
			err := r.tryOpen()
			require.ErrorIs(t, err, ErrCorrupt, "the %s of entry %d", part.name, i)
			require.ErrorContains(t, err, fmt.Sprintf("entry %d is damaged or missing", i))
			// Without peers the rest is served, as after any damage.
			r.options.RecoverFence = true
			if part.name == "header" {
				gaps, err := Skip(fs, testDir, r.options.Dir)
				require.NoError(t, err)
				require.Len(t, gaps, 1)
			}
			r.open()
			require.Equal(t, wire.Index(12), r.log.LastIndex())
			require.Len(t, r.log.Damage(), 1)
			require.Equal(t, i, r.log.Damage()[0].FirstIndex)
			require.Equal(t, i, r.log.Damage()[0].LastIndex)
		}
	}
}

// What was taken back is zeroed before a stop in order, or lies in a segment that is none of
// the log's any more.
func TestRuleL2_AfterACleanStopWhatWasTakenBackIsNoDamage(t *testing.T) {
	for _, size := range []int64{700, 64 << 10} {
		r := newRig(t, vfs.NewSimulated(1), func(o *Options) { o.SegmentBytes = size }).open()
		r.term(1)
		for i := wire.Index(1); i <= 20; i++ {
			r.append(records(i, 1, 1, 100))
		}
		r.sync()
		r.term(2)
		r.append(records(8, 2, 1, 90))
		r.sync()
		r.close(true)
		r.open()
		require.Equal(t, wire.Index(8), r.log.LastIndex())
		require.Empty(t, r.log.Damage())
	}
}
