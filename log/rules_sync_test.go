package log

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/vfs"
	"github.com/lockstepmq/lockstep/wire"
)

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
