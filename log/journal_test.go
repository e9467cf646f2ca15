package log

import (
	"encoding/binary"
	"errors"
	"fmt"
	"path"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/segment"
	"github.com/lockstepmq/lockstep/vfs"
	"github.com/lockstepmq/lockstep/wire"
)

// fleet is a store with several logs that share its journal.
type fleet struct {
	t     testing.TB
	fs    *vfs.Simulated
	store *Store
	jobs  *queue
	logs  []*Log
	bytes int64
	share int          // StoreOptions.JournalLogs
	ends  []wire.Index // what each log has promised to keep
}

func newFleet(t testing.TB, fs *vfs.Simulated, n int) *fleet {
	return &fleet{t: t, fs: fs, logs: make([]*Log, n), ends: make([]wire.Index, n), bytes: leastJournalBytes, share: 1}
}

func (f *fleet) tryOpen() error {
	f.jobs = &queue{}
	var err error
	f.store, err = OpenStore(StoreOptions{
		FS: f.fs, Dir: testDir, UUID: [16]byte{1}, BootID: "boot", MinFreeBytes: -1, ReserveBytes: -1, Logger: quiet,
		Executor: f.jobs, JournalLogs: f.share, JournalBytes: f.bytes,
	})
	if err != nil {
		return err
	}
	for i := range f.logs {
		if f.logs[i], err = f.openLog(i); err != nil {
			return err
		}
	}
	return nil
}

func (f *fleet) openLog(i int) (*Log, error) {
	id := testPartition
	id[15] = byte(i)
	return Open(Options{
		Store: f.store, Dir: fmt.Sprintf("%s/partitions/p-%d", testDir, i), PartitionID: id, Incarnation: 1, ReplicaID: 7,
		RecoverFence: true, SegmentBytes: 64 << 10, Executor: f.jobs, Logger: quiet,
	})
}

// open opens store and logs, and gives each log its first, really synced entry.
func (f *fleet) open() *fleet {
	f.t.Helper()
	require.NoError(f.t, f.tryOpen())
	for i, l := range f.logs {
		if l.LastIndex() == 0 {
			l.SetHardState(HardState{Term: 1, Vote: 7}, true)
			f.append(i, 100)
			l.Sync()
			f.jobs.drain()
			require.Equal(f.t, wire.Index(1), l.DurableIndex())
		}
	}
	return f
}

func entryOf(i int, index wire.Index, size int) Entry {
	e := records(index, 1, 1, size)
	e.Data[len(e.Data)-1] = byte(i)
	return e
}

// append appends one entry to log i.
func (f *fleet) append(i, size int) {
	f.t.Helper()
	require.NoError(f.t, f.tryAppend(i, size))
}

func (f *fleet) tryAppend(i, size int) error {
	l := f.logs[i]
	e := entryOf(i, l.LastIndex()+1, size)
	for {
		err := l.Reserve(frameSize(e), true)
		if err == nil {
			err = l.Append([]Entry{e})
		}
		if !errors.Is(err, ErrNotReady) || !f.jobs.step() {
			return err
		}
	}
}

// round appends an entry of size bytes to every log and syncs them together.
func (f *fleet) round(size int) {
	f.t.Helper()
	for i := range f.logs {
		f.append(i, size)
	}
	f.sync()
}

func (f *fleet) sync() {
	for _, l := range f.logs {
		l.Sync()
	}
	f.jobs.drain()
	f.observe()
}

func (f *fleet) observe() {
	for i, l := range f.logs {
		f.ends[i] = max(f.ends[i], l.DurableIndex())
	}
}

// journalFiles lists the journal's files.
func (f *fleet) journalFiles() []string {
	names, err := f.fs.List(testDir + "/journal")
	require.NoError(f.t, err)
	return names
}

// calls counts what happens to segments and to the journal.
func (f *fleet) calls() map[string]int {
	count := map[string]int{}
	f.fs.Inject(func(op vfs.Op, name string) error {
		count[op.String()+path.Ext(name)]++
		return nil
	})
	return count
}

// verify replays every log and compares it with what was appended.
func (f *fleet) verify(size int) {
	f.t.Helper()
	for i, l := range f.logs {
		require.GreaterOrEqual(f.t, l.LastIndex(), f.ends[i], "log %d", i)
		require.NoError(f.t, f.replay(i, l, size))
	}
}

func (f *fleet) replay(i int, l *Log, size int) error {
	return l.Replay(l.FirstIndex(), func(h wire.FrameHeader, body []byte) error {
		want := entryOf(i, h.Index, size)
		if h.Index == 1 {
			want = entryOf(i, 1, 100)
		}
		if got := rebuilt(h, body); !same(got, want) {
			return fmt.Errorf("log %d: entry %d differs", i, h.Index)
		}
		return nil
	})
}

func TestRuleP2_LogsThatWaitTogetherShareOneSync(t *testing.T) {
	f := newFleet(t, vfs.NewSimulated(1), 5).open()
	count := f.calls()
	for range 3 {
		f.round(1000)
	}
	require.Equal(t, 3, count["sync.journal"])
	require.Equal(t, 1+3, count["write.journal"], "its space is zeroed once")
	require.Zero(t, count["sync.segment"])
	groups, syncs, bytes := f.store.JournalStats()
	require.Equal(t, []uint64{3, 15, 3 * 8192}, []uint64{groups, syncs, bytes}) // 40 + 5 * (40 + 1064) bytes in pages
	for i, l := range f.logs {
		require.Equal(t, wire.Index(4), l.DurableIndex(), "log %d", i)
		require.Equal(t, l.Ticket(), l.DurableTicket(), "log %d", i)
	}
	f.fs.Inject(nil)
	f.fs.CrashLoseAll()
	f.open().verify(1000)
	require.Equal(t, []wire.Index{4, 4, 4, 4, 4}, f.ends)
	require.Empty(t, f.journalFiles(), "every log is open and durable in its segments")
	f.fs.CrashLoseAll()
	f.open().verify(1000)
}

func TestRuleP2_TheMarkCountsWhatTheJournalMadeDurable(t *testing.T) {
	f := newFleet(t, vfs.NewSimulated(1), 2).open()
	for range 3 {
		f.round(100)
		for _, l := range f.logs {
			l.Publish(l.LastIndex())
		}
	}
	f.fs.CrashLoseAll()
	for _, name := range f.journalFiles() {
		require.NoError(t, f.fs.Remove(testDir+"/journal/"+name))
	}
	// The frames are gone with the journal, but not what the segments say; here they
	// say nothing, because they were never synced. With the segments kept, they do.
	f = newFleet(t, vfs.NewSimulated(1), 2).open()
	for range 3 {
		f.round(100)
		for _, l := range f.logs {
			l.Publish(l.LastIndex())
		}
	}
	f.fs.CrashKeepAll()
	for _, name := range f.journalFiles() {
		require.NoError(t, f.fs.Remove(testDir+"/journal/"+name))
	}
	names, err := f.fs.List(testDir + "/partitions/p-0")
	require.NoError(t, err)
	file, err := f.fs.Open(path.Join(testDir, "partitions/p-0", names[0]))
	require.NoError(t, err)
	require.NoError(t, file.ZeroRange(128+164+4, 8)) // in the header of entry 2
	require.NoError(t, file.Close())
	require.ErrorIs(t, f.tryOpen(), ErrCorrupt)
}

func TestRuleP2_WhatNeedsASyncOfItsOwn(t *testing.T) {
	tests := []struct {
		name string
		do   func(f *fleet)
	}{
		{"more than 80 KiB of a log", func(f *fleet) { f.round(maxJournalEntry) }},
		{"a vote", func(f *fleet) {
			for i, l := range f.logs {
				f.append(i, 100)
				l.SetHardState(HardState{Term: 2, Vote: 7}, true)
			}
			f.sync()
		}},
		{"a durable mark", func(f *fleet) {
			for i, l := range f.logs {
				f.append(i, 100)
				l.MarkIdle()
			}
			f.jobs.drain()
		}},
		{"entries taken back", func(f *fleet) {
			for i, l := range f.logs {
				f.append(i, 100)
				require.NoError(f.t, l.Append([]Entry{records(2, 2, 1, 100)}))
			}
			f.sync()
		}},
		{"the first frame of a segment", func(f *fleet) {
			for i, l := range f.logs {
				for l.active.Sequence() == 1 {
					f.append(i, 5000)
				}
				f.append(i, 100)
			}
			f.sync()
		}},
		{"a checkpoint", func(f *fleet) {
			for _, l := range f.logs {
				l.Publish(1)
			}
			f.round(100)
			f.fs.Inject(nil)
			count := f.calls()
			for _, l := range f.logs {
				term, _ := l.Term(2)
				l.Publish(2)
				l.WriteCheckpoint(Checkpoint{Applied: 2, Term: term, NextOffset: 2})
			}
			f.jobs.drain()
			require.Equal(f.t, 3, count["sync.segment"])
			require.Zero(f.t, count["write.journal"])
		}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			f := newFleet(t, vfs.NewSimulated(1), 3).open()
			count := f.calls()
			test.do(f)
			if test.name != "a checkpoint" {
				require.Zero(t, count["write.journal"])
			}
			for _, l := range f.logs {
				require.NoError(t, l.Err())
			}
			require.Equal(t, f.logs[0].LastIndex(), f.logs[0].DurableIndex())
		})
	}
}

func TestRuleP2_FewLogsSyncTheirOwnFiles(t *testing.T) {
	f := newFleet(t, vfs.NewSimulated(1), 6)
	f.share = 4
	f.open()
	count := f.calls()
	for i := range 3 {
		f.append(i, 100)
		f.logs[i].Sync()
	}
	f.jobs.drain()
	require.Zero(t, count["write.journal"])
	require.Equal(t, 3, count["sync.segment"])
	f.round(100) // the first three submit theirs before the fourth waits with them
	require.Equal(t, 6, count["sync.segment"])
	require.Equal(t, 1, count["sync.journal"])
	_, syncs, _ := f.store.JournalStats()
	require.Equal(t, uint64(3), syncs)
}

func TestRuleP2_AStopInOrderLeavesNoJournal(t *testing.T) {
	f := newFleet(t, vfs.NewSimulated(1), 3).open()
	f.round(100)
	require.Len(t, f.journalFiles(), 1)
	for _, l := range f.logs {
		require.NoError(t, l.Close(true))
	}
	require.NoError(t, f.store.Close())
	require.Empty(t, f.journalFiles())
	f.fs.CrashLoseAll()
	f.open().verify(100)
}

func TestRuleP2_CloseTakesASyncThatWaitsForTheJournal(t *testing.T) {
	f := newFleet(t, vfs.NewSimulated(1), 3).open()
	for i, l := range f.logs {
		f.append(i, 100)
		l.Sync()
	}
	for _, l := range f.logs[1:] {
		require.NoError(t, l.Close(true))
	}
	f.jobs.drain()
	require.NoError(t, f.logs[0].Close(true))
	require.NoError(t, f.store.Close())
	f.fs.CrashLoseAll()
	f.ends = []wire.Index{2, 2, 2}
	f.open().verify(100)
}

func TestRuleP2_AJournalIsKeptForLogsThatAreNotOpened(t *testing.T) {
	f := newFleet(t, vfs.NewSimulated(1), 3).open()
	f.round(100)
	f.fs.CrashLoseAll()
	all := f.logs
	for range 2 {
		f.logs = all[:2] // the third stays away
		require.NoError(t, f.tryOpen())
		require.Len(t, f.journalFiles(), 1)
		f.fs.CrashLoseAll()
	}
	t.Run("until they are", func(t *testing.T) {
		f.logs = all
		f.open().verify(100)
		require.Empty(t, f.journalFiles())
	})
}

func TestRuleP2_ARemovedLogLetsGoOfTheJournal(t *testing.T) {
	f := newFleet(t, vfs.NewSimulated(1), 3).open()
	f.round(100)
	f.fs.CrashLoseAll()
	f.logs = f.logs[:2]
	require.NoError(t, f.tryOpen())
	require.Len(t, f.journalFiles(), 1)
	require.NoError(t, f.store.Quarantine(testDir+"/partitions/p-2"))
	require.Empty(t, f.journalFiles())
	// Also if it was removed before the crash, while another log held the file.
	f = newFleet(t, vfs.NewSimulated(1), 3).open()
	f.round(100)
	require.NoError(t, f.logs[2].Close(true))
	require.NoError(t, f.store.Quarantine(testDir+"/partitions/p-2"))
	f.fs.CrashLoseAll()
	f.logs = f.logs[:2]
	f.open().verify(100)
	require.Empty(t, f.journalFiles())
}

// journaledGroups makes two groups in one journal file and cuts the power. It
// returns the name of the file and position and length of the second block.
func journaledGroups(t *testing.T) (f *fleet, name string, second, length int64) {
	f = newFleet(t, vfs.NewSimulated(1), 3).open()
	f.round(100)
	f.round(100)
	f.fs.CrashLoseAll()
	names := f.journalFiles()
	require.Len(t, names, 1)
	name = testDir + "/journal/" + names[0]
	return f, name, 4096, blockHeaderSize + 3*(recordHeaderSize+168)
}

func TestRuleP2_ATornLastBlockIsCutAtEveryByte(t *testing.T) {
	for cut := int64(0); ; cut++ {
		f, name, second, length := journaledGroups(t)
		file, err := f.fs.Open(name)
		require.NoError(t, err)
		require.NoError(t, file.ZeroRange(second+cut, second-cut))
		require.NoError(t, file.Sync())
		require.NoError(t, file.Close())
		f.ends = []wire.Index{2, 2, 2}
		f.open().verify(100)
		if cut >= length {
			require.Equal(t, wire.Index(3), f.logs[2].LastIndex())
			return
		}
		for _, l := range f.logs {
			// The last bytes of the block are padding of a frame.
			require.Equal(t, wire.Index(2), min(l.LastIndex(), 2), "cut at %d", cut)
		}
	}
}

func TestRuleP2_NoFlippedBitOfTheJournalIsServed(t *testing.T) {
	for at := int64(0); at < 4096+800; at++ {
		f, name, second, length := journaledGroups(t)
		if at == length {
			at = second
		}
		require.NoError(t, f.fs.Corrupt(name, at, int(at%8)))
		err := f.tryOpen()
		if err != nil {
			require.True(t, errors.Is(err, ErrCorrupt) || errors.Is(err, ErrTooNew), "bit of byte %d: %v", at, err)
			continue
		}
		for i, l := range f.logs {
			require.NoError(t, f.replay(i, l, 100), "bit of byte %d", at)
			if at >= second {
				require.GreaterOrEqual(t, l.LastIndex(), wire.Index(2), "bit of byte %d: the first block is whole", at)
			}
		}
	}
}

func TestRuleP2_ADamagedBlockGivesWhatIsWholeInIt(t *testing.T) {
	f, name, _, _ := journaledGroups(t)
	// The frame of the second log in the first block.
	require.NoError(t, f.fs.Corrupt(name, blockHeaderSize+recordHeaderSize+168+recordHeaderSize+100, 3))
	require.NoError(t, f.tryOpen())
	require.Equal(t, wire.Index(3), f.logs[0].LastIndex())
	require.Equal(t, wire.Index(1), f.logs[1].LastIndex()) // nothing was committed, so no mark tells
	require.Equal(t, wire.Index(3), f.logs[2].LastIndex())
}

func TestRuleP2_AJournalThatIsTooNewIsNoDamage(t *testing.T) {
	f, name, _, _ := journaledGroups(t)
	file, err := f.fs.Open(name)
	require.NoError(t, err)
	b := make([]byte, blockHeaderSize)
	_, err = file.ReadAt(b, 0)
	require.NoError(t, err)
	binary.LittleEndian.PutUint16(b[4:], journalVersion+1)
	seed := wire.Checksum(f.store.states.uuid[:])
	binary.LittleEndian.PutUint32(b[36:], wire.UpdateChecksum(seed, b[:blockHeaderChecked]))
	_, err = file.WriteAt(b, 0)
	require.NoError(t, err)
	require.NoError(t, file.Close())
	err = f.tryOpen()
	require.ErrorIs(t, err, ErrTooNew)
	require.NotErrorIs(t, err, ErrCorrupt)
}

// fail makes the next op on the journal fail, and calls meanwhile before it. Nothing
// may follow on that file.
func (f *fleet) fail(op vfs.Op, failures *int, meanwhile func()) func(vfs.Op, string) error {
	return func(o vfs.Op, name string) error {
		if o != vfs.OpWrite && o != vfs.OpSync || !strings.HasSuffix(name, journalSuffix) {
			return nil
		}
		require.Zero(f.t, *failures, "%v after the failure", o)
		if o != op {
			return nil
		}
		*failures++
		meanwhile()
		return errEIO
	}
}

func TestF5_AFailedJournalFencesItsGroupAndIsNotUsedAgain(t *testing.T) {
	for _, op := range []vfs.Op{vfs.OpWrite, vfs.OpSync} {
		t.Run(op.String(), func(t *testing.T) {
			f := newFleet(t, vfs.NewSimulated(1), 5).open()
			f.round(100)
			failures := 0
			for i := range 3 {
				f.append(i, 100)
				f.logs[i].Sync()
			}
			meanwhile := func() { // one more waits while the group fails
				f.append(3, 100)
				f.logs[3].Sync()
			}
			f.fs.Inject(f.fail(op, &failures, meanwhile))
			f.jobs.drain()
			require.Equal(t, 1, failures)
			for _, l := range f.logs[:3] {
				require.ErrorIs(t, l.Err(), ErrFenced)
				require.Equal(t, wire.Index(2), l.DurableIndex())
			}
			f.append(4, 100) // the others go on
			f.sync()
			for _, l := range f.logs[3:] {
				require.NoError(t, l.Err())
				require.Equal(t, wire.Index(3), l.DurableIndex())
			}
			f.fs.Inject(nil)
			f.fs.CrashLoseAll()
			f.open().verify(100)
			f.round(100)
			f.fs.CrashLoseAll()
			f.open().verify(100)
		})
	}
}

// A panic in the group commit is a fault of ours: it costs the logs of its group,
// whose durability nobody knows, and not the process.
func TestRuleR2_APanickedGroupCommitFencesItsGroup(t *testing.T) {
	for _, op := range []vfs.Op{vfs.OpRead, vfs.OpWrite, vfs.OpSync} {
		t.Run(op.String(), func(t *testing.T) {
			f := newFleet(t, vfs.NewSimulated(1), 5).open()
			f.round(100)
			for i := range 3 {
				f.append(i, 100)
				f.logs[i].Sync()
			}
			panicked := false
			f.fs.Inject(func(o vfs.Op, name string) error {
				if o == op && !panicked && (op == vfs.OpRead || strings.HasSuffix(name, journalSuffix)) {
					panicked = true
					panic("a fault of ours")
				}
				return nil
			})
			f.jobs.drain()
			require.True(t, panicked)
			f.fs.Inject(nil)
			fenced := 0
			for _, l := range f.logs {
				if l.Err() != nil {
					require.ErrorContains(t, l.Err(), "the group commit of the sync journal panicked: a fault of ours")
					require.Equal(t, wire.Index(2), l.DurableIndex())
					fenced++
				}
			}
			want := map[vfs.Op]int{vfs.OpRead: 1, vfs.OpWrite: 3, vfs.OpSync: 3}[op]
			require.Equal(t, want, fenced, "the others of a group that was not written sync their own files")
			for i, l := range f.logs { // the others go on
				if l.Err() == nil {
					f.append(i, 100)
				}
			}
			f.sync()
			for _, l := range f.logs {
				if l.Err() == nil {
					require.Equal(t, l.LastIndex(), l.DurableIndex())
				}
			}
			f.fs.CrashLoseAll()
			f.open().verify(100)
		})
	}
}

func TestF5_AFencedLogIsRecoveredFromTheJournal(t *testing.T) {
	for _, crash := range []func(*vfs.Simulated){(*vfs.Simulated).CrashKeepAll, (*vfs.Simulated).CrashLoseAll} {
		f := newFleet(t, vfs.NewSimulated(1), 3).open()
		f.round(100)
		for _, l := range f.logs {
			l.Publish(2)
		}
		f.round(100)
		f.fs.Inject(func(op vfs.Op, name string) error {
			if op == vfs.OpSync && strings.Contains(name, "p-0/") {
				return errEIO
			}
			return nil
		})
		f.logs[0].SyncNow()
		f.jobs.drain()
		require.ErrorIs(t, f.logs[0].Err(), ErrFenced)
		f.fs.Inject(nil)
		for _, l := range f.logs {
			_ = l.Close(true)
		}
		require.NoError(t, f.store.Close())
		require.Len(t, f.journalFiles(), 1, "the fenced log's entries may be nowhere else")
		crash(f.fs)
		f.open().verify(100)
		require.Equal(t, wire.Index(3), f.logs[0].LastIndex())
		require.Empty(t, f.journalFiles())
		f.fs.CrashLoseAll()
		f.open().verify(100)
	}
}

// TestRuleL9_WhatOnlyTheJournalHadIsWrittenAgain: a sync of the segment fails, the
// fence cannot be saved, and the next process finds all frames in the page cache,
// which calls them clean. The marks in them count what the journal had made durable.
func TestRuleL9_WhatOnlyTheJournalHadIsWrittenAgain(t *testing.T) {
	f := newFleet(t, vfs.NewSimulated(1), 2).open()
	for range 3 {
		f.round(2000)
		for _, l := range f.logs {
			l.Publish(l.LastIndex())
		}
	}
	f.fs.Inject(func(op vfs.Op, name string) error {
		if op == vfs.OpSync && strings.Contains(name, "p-0/") || op == vfs.OpWrite && strings.HasSuffix(name, hardStateName) {
			return errEIO
		}
		return nil
	})
	f.logs[0].SyncNow()
	f.jobs.drain()
	require.ErrorIs(t, f.logs[0].Err(), ErrFenced)
	f.fs.Inject(nil)
	for _, l := range f.logs {
		_ = l.Close(true)
	}
	require.NoError(t, f.store.Close())
	f.open().verify(2000)
	require.Empty(t, f.journalFiles())
	f.fs.CrashLoseAll()
	f.open().verify(2000)
}

func TestRuleP2_ASyncThatEndsAfterTheFenceVoidsNothing(t *testing.T) {
	f := newFleet(t, vfs.NewSimulated(1), 2).open()
	f.round(100)
	f.round(100)
	f.append(0, 100)
	f.logs[0].Sync()
	f.logs[0].Fence(errEIO) // while the sync waits for its group
	f.jobs.drain()
	require.Equal(t, wire.Index(3), f.logs[0].DurableIndex())
	f.fs.CrashLoseAll()
	f.open().verify(100)
}

func TestRuleP2_ABodyThatTheSegmentLostComesFromTheJournal(t *testing.T) {
	f := newFleet(t, vfs.NewSimulated(1), 2).open()
	for range 3 {
		f.round(100)
		for _, l := range f.logs {
			l.Publish(l.LastIndex())
		}
	}
	f.fs.CrashKeepAll() // then lose the body of entry 3
	names, err := f.fs.List(testDir + "/partitions/p-0")
	require.NoError(t, err)
	file, err := f.fs.Open(path.Join(testDir, "partitions/p-0", names[0]))
	require.NoError(t, err)
	require.NoError(t, file.ZeroRange(128+2*168+wire.FrameHeaderSize, 100))
	require.NoError(t, file.Close())
	f.open().verify(100)
	require.Empty(t, f.logs[0].Damage())
}

// It is whole from then on, also if the log knew of the damage before; what lay
// beside it in the same range stays damaged.
func TestRuleL8_DamageThatTheJournalHealsIsForgotten(t *testing.T) {
	f := newFleet(t, vfs.NewSimulated(1), 2).open()
	frame := wire.FrameSize(100)
	damage := func(entry int64) {
		names, err := f.fs.List(testDir + "/partitions/p-0")
		require.NoError(t, err)
		file, err := f.fs.Open(path.Join(testDir, "partitions/p-0", names[0]))
		require.NoError(t, err)
		require.NoError(t, file.ZeroRange(segment.HeaderSize+(entry-1)*frame+wire.FrameHeaderSize, 100))
		require.NoError(t, file.Close())
	}
	for range 4 {
		f.round(100)
	}
	f.logs[0].Publish(f.logs[0].LastIndex())
	for entry := int64(1); entry <= 5; entry++ { // the first one is not in the journal
		damage(entry)
		d, err := f.logs[0].Verify(wire.Offset(entry - 1))
		require.NoError(t, err)
		require.NotNil(t, d)
	}
	require.Len(t, f.logs[0].Damage(), 1)
	f.fs.CrashKeepAll()
	for range 2 {
		f.open()
		l := f.logs[0]
		require.Len(t, l.Damage(), 1)
		require.Equal(t, []wire.Offset{0, 1}, []wire.Offset{l.Damage()[0].Base, l.Damage()[0].Next})
		l.Publish(l.LastIndex())
		_, _, err := l.Locate(0)
		require.ErrorIs(t, err, ErrCorrupt)
		for o := range wire.Offset(4) {
			_, _, err := l.Locate(o + 1)
			require.NoError(t, err)
		}
		f.fs.CrashKeepAll()
	}
}

func TestF12_WithoutSpaceForAJournalLogsSyncTheirOwnFiles(t *testing.T) {
	for _, op := range []vfs.Op{vfs.OpCreate, vfs.OpAllocate} {
		f := newFleet(t, vfs.NewSimulated(1), 3).open()
		full := true
		f.fs.Inject(func(o vfs.Op, name string) error {
			if full && o == op && strings.HasSuffix(name, journalSuffix) {
				return vfs.ErrNoSpace
			}
			return nil
		})
		f.round(100)
		f.round(100)
		require.Equal(t, []wire.Index{3, 3, 3}, f.ends)
		groups, _, _ := f.store.JournalStats()
		require.Zero(t, groups)
		full = false
		require.NoError(t, f.store.RefreshSpace())
		f.round(100)
		groups, _, _ = f.store.JournalStats()
		require.Equal(t, uint64(1), groups)
	}
}

// A file is never written beyond the space that was taken for it, also by an entry
// that is larger than a whole file.
func TestF12_AnEntryLargerThanAJournalFileIsSyncedByItself(t *testing.T) {
	f := newFleet(t, vfs.NewSimulated(1), 2).open()
	f.round(100)
	f.append(0, 40_000)
	free, total, err := f.fs.Space(testDir)
	require.NoError(t, err)
	f.fs.SetSpace(total - free + 36<<10)
	f.sync()
	require.NoError(t, f.logs[0].Err())
	require.Equal(t, wire.Index(3), f.logs[0].DurableIndex())
}

func TestF5_AJournalThatCannotBeMadeFencesNobody(t *testing.T) {
	for _, op := range []vfs.Op{vfs.OpCreate, vfs.OpAllocate, vfs.OpWrite, vfs.OpSyncDir} {
		f := newFleet(t, vfs.NewSimulated(1), 3).open()
		failures := 0
		f.fs.Inject(func(o vfs.Op, name string) error {
			if o == op && (strings.HasSuffix(name, journalSuffix) || strings.HasSuffix(name, "/journal")) {
				failures++
				return errEIO
			}
			return nil
		})
		f.round(100)
		f.round(100)
		require.Equal(t, 1, failures, "%v", op)
		require.Equal(t, []wire.Index{3, 3, 3}, f.ends)
	}
}

func TestRuleP2_FullJournalFilesAreUsedAgain(t *testing.T) {
	f := newFleet(t, vfs.NewSimulated(1), 12).open()
	count := f.calls()
	for range 60 { // 5 groups fill a file
		f.round(300)
		require.LessOrEqual(t, len(f.journalFiles()), maxJournalFiles)
	}
	require.LessOrEqual(t, count["create.journal"], maxJournalFiles)
	require.Greater(t, count["rename.journal"], 5)
	groups, _, _ := f.store.JournalStats()
	require.Greater(t, groups, uint64(50))
	f.fs.Inject(nil)
	f.fs.CrashLoseAll()
	f.open().verify(300)
}

func TestRuleP2_AFencedLogHoldsJournalFilesAndTheOthersGoOn(t *testing.T) {
	f := newFleet(t, vfs.NewSimulated(1), 4).open()
	f.round(300)
	f.logs[0].Fence(errEIO)
	f.logs = f.logs[1:]
	f.ends = f.ends[1:]
	for range 60 {
		for _, l := range f.logs {
			e := records(l.LastIndex()+1, 1, 1, 300)
			require.NoError(t, l.Reserve(frameSize(e), true))
			require.NoError(t, l.Append([]Entry{e}))
			l.Sync()
		}
		f.jobs.drain()
	}
	for _, l := range f.logs {
		require.NoError(t, l.Err())
		require.Equal(t, l.LastIndex(), l.DurableIndex())
	}
	require.LessOrEqual(t, len(f.journalFiles()), maxJournalFiles)
	groups, _, _ := f.store.JournalStats()
	require.Equal(t, uint64(61), groups)
}

func TestRuleP2_APowerCutAtAnyCallOfTrimmingLosesNothing(t *testing.T) {
	run := func(f *fleet) {
		for range 30 {
			for i, l := range f.logs {
				if l.Err() != nil || f.tryAppend(i, 2000) != nil {
					return
				}
			}
			f.sync()
		}
	}
	f := newFleet(t, vfs.NewSimulated(1), 4).open()
	first := f.fs.Ops()
	count := f.calls()
	run(f)
	last := f.fs.Ops()
	require.Greater(t, count["rename.journal"], 0)
	for stop := first + 1; stop <= last; stop += 3 {
		f := newFleet(t, vfs.NewSimulated(uint64(stop)), 4).open()
		f.fs.StopAt(stop)
		run(f)
		f.observe()
		f.fs.StopAt(0)
		switch stop % 3 {
		case 0:
			f.fs.CrashLoseAll()
		case 1:
			f.fs.Crash()
		default:
			f.fs.CrashKeepAll()
		}
		require.NoError(t, f.tryOpen(), "stopped at call %d", stop)
		f.verify(2000)
		f.fs.CrashLoseAll()
		require.NoError(t, f.tryOpen(), "stopped at call %d", stop)
		f.verify(2000)
	}
}
