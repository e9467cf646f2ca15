package log

import (
	"errors"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/vfs"
	"github.com/lockstepmq/lockstep/wire"
)

// anEraser is the log of another replica with 200 records, of which those in the sealed
// segments are erased but for the first one.
func anEraser(t testing.TB) (run ErasedRun, content []byte, first Entry, rest []Entry) {
	l := erasable(t, vfs.NewSimulated(2), 200)
	l.options.ReplicaID = 8
	entries, err := l.log.Entries(1, 1)
	require.NoError(t, err)
	require.Positive(t, l.erase(Records{1, 200}))
	_, ok := l.log.ErasedRun(1)
	require.False(t, ok)
	run, ok = l.log.ErasedRun(2)
	require.True(t, ok)
	require.Equal(t, wire.Index(1), run.Before.Index)
	list := *l.log.segments.Load()
	require.Equal(t, list[len(list)-1].Previous(), run.After, "runs of segments that follow each other are one")
	middle, ok := l.log.ErasedRun(run.After.Index)
	require.True(t, ok)
	require.Equal(t, run.After, middle.After)
	_, ok = l.log.ErasedRun(run.After.Index + 1)
	require.False(t, ok)
	content, err = l.log.ReadCheckpoint()
	require.NoError(t, err)
	return run, content, entries[0], l.replayed(run.After.Index + 1)
}

func (r *rig) pass(run ErasedRun, content []byte) error {
	for {
		err := r.log.Pass(run, content)
		if !errors.Is(err, ErrNotReady) || !r.jobs.step() {
			return err
		}
	}
}

// lagging is a log with the first entry of another, and n more that are not committed and
// that the other one does not have.
func lagging(t testing.TB, fs vfs.FS, first Entry, n wire.Index, change func(*Options)) *rig {
	r := newRig(t, fs, change).open()
	r.term(1)
	r.append(first)
	r.commit()
	for i := wire.Index(2); i <= 1+n; i++ {
		r.append(records(i, 1, 3, 700))
	}
	r.sync()
	return r
}

// A replica that lacks what another one has erased gets one frame for it, and has the same
// log as the other one from there on, over restarts of each kind.
func TestRuleL7_ARunIsPassedOver(t *testing.T) {
	run, content, first, rest := anEraser(t)
	for _, c := range []struct {
		name  string
		extra wire.Index
		size  int64
	}{
		{"in step up to the run", 0, 256 << 10},
		{"with entries of its own in the run", 9, 256 << 10},
		{"with segments of its own in the run", 9, 4096},
		{"with entries of its own behind the run", 250, 128 << 10},
	} {
		t.Run(c.name, func(t *testing.T) {
			fs := vfs.NewSimulated(1)
			r := lagging(t, fs, first, c.extra, func(o *Options) { o.SegmentBytes = c.size })
			require.NoError(t, r.pass(run, content))
			require.NoError(t, r.pass(run, content), "twice is once")
			require.Equal(t, wire.Index(200), r.log.Checkpoint().Applied)
			require.Less(t, r.log.DurableIndex(), run.After.Index)
			r.sync()
			r.jobs.drain()
			require.Equal(t, run.After.Index, r.log.DurableIndex())
			end := run.After.Index
			check := func() {
				t.Helper()
				require.Equal(t, wire.Index(1), r.log.FirstIndex())
				require.Equal(t, end, r.log.LastIndex())
				require.Equal(t, wire.Index(200), r.log.Checkpoint().Applied)
				require.Equal(t, "state at 200", string(r.log.Checkpoint().State))
				require.GreaterOrEqual(t, r.log.HardState().Commit, run.After.Index)
				for _, i := range []wire.Index{1, 2, 100, end} {
					term, ok := r.log.Term(i)
					require.True(t, ok)
					require.Equal(t, wire.Term(1), term)
				}
				mine, ok := r.log.ErasedRun(end/2 + 1)
				require.True(t, ok)
				require.Equal(t, run.After, mine.After)
				_, _, err := r.log.Locate(50)
				require.EqualError(t, err, fmt.Sprintf("records at offsets 1 to %d were acknowledged and erased", run.After.Next-1))
				entries, err := r.log.Entries(1, 1)
				require.NoError(t, err)
				require.Equal(t, first.Data, entries[0].Data)
			}
			check()
			r.append(rest[0])
			end++
			r.commit()
			reopen := func(clean bool) {
				t.Helper()
				r.close(clean)
				r.open()
				r.log.Publish(r.log.LastIndex())
				r.jobs.drain()
			}
			reopen(true)
			check()
			r.append(rest[1:]...)
			end += wire.Index(len(rest) - 1)
			r.commit()
			reopen(false)
			check()
			require.Equal(t, rest, r.replayed(run.After.Index+1))
			require.Equal(t, append([]wire.Offset{0}, span(run.After.Next, 200)...), r.offsets())
			r.scrubbed()
			for i := range wire.Index(200) { // fills and seals segments; those are read by their indexes then
				r.append(records(201+i, 1, 1, 4000))
				if i%20 == 0 {
					r.commit()
				}
			}
			r.commit()
			r.checkpoint()
			r.checkpoint()
			reopen(true)
			require.Equal(t, append([]wire.Offset{0}, span(run.After.Next, 400)...), r.offsets())
			r.scrubbed()
			r.close(true)
			erased := 0
			require.NoError(t, Inspect(fs, r.options.Dir, func(f InspectedFrame) error {
				if f.Erased {
					erased++
					require.EqualValues(t, run.After.Index, f.Header.Index)
				}
				return f.Problem
			}))
			require.Equal(t, 1, erased)
			gaps, err := Skip(fs, testDir, r.options.Dir)
			require.NoError(t, err)
			require.Empty(t, gaps)
			r.open()
			r.log.Publish(r.log.LastIndex())
			r.log.Fence(errors.New("input/output error")) // and copied
			r.jobs.drain()
			r.kill()
			r.options.RecoverFence = true
			r.open()
			r.log.Publish(r.log.LastIndex())
			require.Equal(t, append([]wire.Offset{0}, span(run.After.Next, 400)...), r.offsets())
			r.scrubbed()
			if c.size < 128<<10 {
				return
			}
			require.Positive(t, r.erase(Records{1, 400}), "what this replica has more of is erased with it")
			require.Equal(t, wire.Offset(0), r.offsets()[0])
			reopen(false)
			r.scrubbed()
			mine, ok := r.log.ErasedRun(2)
			require.True(t, ok)
			require.Greater(t, mine.After.Index, run.After.Index)
		})
	}
}

// cutPassing cuts the power at storage call n of passing over a run. It returns what is
// wrong with the log after that: it may end before the run, or pass over it with the
// checkpoint that has it.
func cutPassing(t testing.TB, n int64, extra wire.Index, mutate func(*Log)) (passed bool, err error) {
	run, content, first, rest := anEraser(t)
	fs := vfs.NewSimulated(uint64(n))
	r := lagging(t, fs, first, extra, func(o *Options) { o.SegmentBytes = 64 << 10 })
	if mutate != nil {
		mutate(r.log)
	}
	fs.StopAt(fs.Ops() + n)
	if r.pass(run, content) == nil {
		r.log.Sync()
		r.jobs.drain()
	}
	r.jobs.drain()
	done := r.log.Err() == nil && r.log.DurableIndex() == run.After.Index
	fs.StopAt(0)
	fs.Crash()
	r.boot = "boot-2"
	if err := r.tryOpen(); err != nil {
		return false, err
	}
	passed = r.log.LastIndex() == run.After.Index
	if done && !passed {
		return passed, errors.New("a run that was passed over durably is not any more")
	}
	if c := r.log.Checkpoint(); passed != (c != nil && c.Applied == 200) {
		return passed, fmt.Errorf("the log ends at %d, its checkpoint is %v", r.log.LastIndex(), c)
	}
	require.NoError(t, r.pass(run, content), "it is done again")
	r.term(3)
	r.append(rest...)
	r.commit()
	require.Equal(t, rest, r.replayed(run.After.Index+1))
	r.close(false)
	r.open()
	require.Equal(t, wire.Index(200), r.log.LastIndex())
	require.Equal(t, wire.Index(200), r.log.Checkpoint().Applied)
	return passed && done, nil
}

func TestF1_PowerCutsWhilePassingOverARun(t *testing.T) {
	cuts := 0
	for _, extra := range []wire.Index{0, 5} {
		for n := int64(1); ; n++ {
			cuts++
			done, err := cutPassing(t, n, extra, nil)
			require.NoError(t, err, "cut at call %d", n)
			if done {
				break
			}
		}
	}
	t.Logf("%d power cuts", cuts)
}

func TestF1_Catches_ARunThatIsPassedOverBeforeItsCheckpoint(t *testing.T) {
	for n := int64(1); n < 200; n++ {
		if _, err := cutPassing(t, n, 5, func(l *Log) { l.passFirst = true }); err != nil {
			t.Logf("cut at call %d: %v", n, err)
			return
		}
	}
	t.Fatal("nobody has noticed")
}

// A checkpoint that was fetched for a run does not count in a log that only happens to
// reach the run's end, with entries of its own.
func TestRuleL7_AFetchedCheckpointNeedsItsRun(t *testing.T) {
	run, content, first, _ := anEraser(t)
	r := lagging(t, vfs.NewSimulated(1), first, 250, nil)
	require.ErrorIs(t, r.log.Pass(run, content), ErrNotReady)
	r.jobs.drain() // the checkpoint is there, the frame is not
	r.close(false)
	r.open()
	require.Equal(t, wire.Index(251), r.log.LastIndex())
	require.Nil(t, r.log.Checkpoint())
	require.NoError(t, r.pass(run, content))
	require.Equal(t, run.After.Index, r.log.LastIndex())
}

func TestRuleL7_ARunThatDoesNotFollowIsRefused(t *testing.T) {
	run, content, first, _ := anEraser(t)
	r := lagging(t, vfs.NewSimulated(1), first, 0, nil)
	other := run
	other.Before.Index = 3
	require.ErrorIs(t, r.pass(other, content), errFields, "an entry before the run is missing")
	other = run
	other.Before.Term, other.After.Term = 7, 7
	require.ErrorIs(t, r.pass(other, content), errFields)
	require.NoError(t, r.log.Err())
	require.Equal(t, wire.Index(1), r.log.LastIndex())
}

// Rot over two entries that follow each other is one range of damage. The first was
// acknowledged, and the other replica has erased it; the second it has, and gives.
func TestRuleL8_DamageThatBeginsWithWhatOthersHaveErased(t *testing.T) {
	other := erasable(t, vfs.NewSimulated(2), 200)
	fs := vfs.NewSimulated(3)
	r := erasable(t, fs, 200) // the same entries
	const old = wire.Offset(60)
	require.Positive(t, other.erase(Records{0, old}, Records{old + 1, 200}))
	var names []string
	var at []int64
	for _, i := range []wire.Index{wire.Index(old), wire.Index(old) + 1} { // offsets 59 and 60
		name, from, _ := r.frame(i)
		names, at = append(names, name), append(at, from)
	}
	r.kill()
	for i := range names {
		require.NoError(t, fs.Corrupt(names[i], at[i]+wire.FrameHeaderSize+7, 2))
	}
	r.open()
	r.log.Publish(200)
	for pass := r.log.NewScrub(); ; {
		if _, err := pass.Next(1 << 20); err != nil {
			break
		}
	}
	damage := r.log.Damage()
	require.Len(t, damage, 1)
	require.Equal(t, wire.Index(old), damage[0].FirstIndex)
	require.Equal(t, wire.Index(old)+1, damage[0].LastIndex)

	first := other.log.BehindGone(damage[0].FirstIndex)
	require.Equal(t, wire.Index(old)+1, first)
	entries, err := other.log.Entries(first, 1)
	require.NoError(t, err)
	n, err := r.log.Repair([]FrameBody{entries[0].FrameBody()})
	require.NoError(t, err)
	require.Equal(t, 1, n)
	require.Equal(t, wire.Index(old), r.log.Damage()[0].LastIndex, "only what is done stays damaged")

	require.Greater(t, other.log.BehindGone(first+1), damage[0].LastIndex, "of what is behind it nothing is there")
}

// The run that is offered grows while the disk is slow: the other replica erases more. Until
// the log reaches what the fetched checkpoint was for durably, the one before it is the only
// one that counts after a power cut, and no third is written over it.
func TestF1_ARunThatGrowsBeforeItIsDurableCostsNoCheckpoint(t *testing.T) {
	other := erasable(t, vfs.NewSimulated(2), 200)
	require.Positive(t, other.erase(Records{100, 200}))
	grown, ok := other.log.ErasedRun(101)
	require.True(t, ok)
	run := ErasedRun{Before: grown.Before, After: (*other.log.segments.Load())[1].Erased()[0].After}
	require.Less(t, run.After.Index, grown.After.Index)
	content, err := other.log.ReadCheckpoint()
	require.NoError(t, err)
	first, id, err := parseCheckpoint(content)
	require.NoError(t, err)
	first.Applied = run.After.Index

	for steps, done := 0, false; !done; steps++ {
		require.Less(t, steps, 20)
		fs := vfs.NewSimulated(1)
		r := erasable(t, fs, 100) // the same entries
		r.log.Trim(80)
		r.jobs.drain()
		require.Greater(t, r.log.FirstIndex(), wire.Index(1))
		require.NoError(t, r.pass(run, first.append(nil, id)))
		require.Less(t, r.log.DurableIndex(), run.After.Index)
		for range steps {
			if done = r.log.Pass(grown, content) == nil; done {
				break
			}
			require.True(t, r.jobs.step())
		}
		fs.CrashLoseAll()
		r.boot = "boot-2"
		require.NoError(t, r.tryOpen(), "after a power cut behind job %d", steps)
		if r.log.LastIndex() < run.After.Index {
			require.NoError(t, r.pass(run, first.append(nil, id)))
		}
		require.NoError(t, r.pass(grown, content))
		r.sync()
		fs.CrashLoseAll()
		r.open()
		require.Equal(t, grown.After.Index, r.log.LastIndex())
		require.Equal(t, wire.Index(200), r.log.Checkpoint().Applied)
	}
}
