package log

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/vfs"
	"github.com/lockstepmq/lockstep/wire"
)

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
