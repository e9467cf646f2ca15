package log

import (
	"errors"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/vfs"
	"github.com/lockstepmq/lockstep/wire"
)

// aLeader is the log of another replica whose start has moved to entry 40, with a
// checkpoint at 60 or above and the entries behind the start.
func aLeader(t *testing.T) (start Link, content []byte, entries []Entry) {
	l := newRig(t, vfs.NewSimulated(2), func(o *Options) { o.SegmentBytes, o.ReplicaID = 4096, 8 }).open()
	l.term(1)
	for i := wire.Index(1); i <= 90; i++ {
		l.append(records(i, 1, 2, 300))
		l.commit()
		if i == 40 || i == 60 || i == 70 {
			l.checkpoint()
		}
	}
	l.log.Trim(80)
	l.jobs.drain()
	l.log.MarkIdle()
	l.jobs.drain()
	start = l.log.Start()
	require.Greater(t, start.Index, wire.Index(20))
	content, err := l.log.ReadCheckpoint()
	require.NoError(t, err)
	require.Equal(t, wire.Index(70), l.log.SavedCheckpoint().Applied)
	require.Equal(t, wire.Checksum(content), l.log.SavedCheckpoint().CRC)
	require.Equal(t, int64(len(content)), l.log.SavedCheckpoint().Size)
	return start, content, l.replayed(start.Index + 1)
}

// behind is a log that ends at entry 12, of which 10 are committed.
func behind(t *testing.T, fs vfs.FS) *rig {
	r := newRig(t, fs, func(o *Options) { o.SegmentBytes = 4096 }).open()
	r.term(1)
	for i := wire.Index(1); i <= 10; i++ {
		r.append(records(i, 1, 2, 300))
	}
	r.commit()
	r.append(records(11, 1, 1, 10), records(12, 1, 1, 10))
	return r
}

func (r *rig) install(start Link, content []byte) error {
	for {
		err := r.log.Install(start, content)
		if !errors.Is(err, ErrNotReady) || !r.jobs.step() {
			return err
		}
	}
}

func TestALogIsReplacedByTheStartOfAnother(t *testing.T) {
	start, content, entries := aLeader(t)
	r := behind(t, vfs.NewSimulated(1))
	require.NoError(t, r.install(start, content))
	r.jobs.drain()
	check := func() {
		t.Helper()
		require.Equal(t, start.Index+1, r.log.FirstIndex())
		require.Equal(t, start.Index, r.log.LastIndex())
		require.Equal(t, start.Next, r.log.StartOffset())
		require.Equal(t, start.Next, r.log.NextOffset())
		require.Equal(t, start.Index, r.log.HardState().Commit)
		term, ok := r.log.Term(start.Index)
		require.True(t, ok)
		require.Equal(t, start.Term, term)
		require.Equal(t, wire.Index(70), r.log.Checkpoint().Applied)
		require.Equal(t, "state at 70", string(r.log.Checkpoint().State))
		require.Zero(t, r.log.Bytes())
	}
	require.Equal(t, wire.Index(70), r.log.SavedCheckpoint().Applied)
	check()
	require.NoError(t, r.install(start, content), "twice is once")
	r.close(false)
	r.open()
	check()
	names, err := r.fs.List(r.options.Dir)
	require.NoError(t, err)
	for _, name := range names {
		require.NotContains(t, name, ".segment")
	}

	// The log goes on with what the other one holds behind its start.
	r.term(2)
	r.append(entries[:10]...)
	r.sync()
	require.Equal(t, entries[:10], r.replayed(start.Index+1))
	r.close(false)
	r.open()
	require.Equal(t, entries[:10], r.replayed(start.Index+1), "below the checkpoint that was transferred")
	r.append(entries[10:]...)
	r.commit()
	r.checkpoint()
	r.close(false)
	r.open()
	require.Equal(t, entries, r.replayed(start.Index+1))
	require.Equal(t, wire.Index(90), r.log.Checkpoint().Applied)
}

// A log that was opened with more than the other one's start, none of it committed, forgets
// where it ended then: its own end counts, for followers that are fed from it.
func TestRuleR2_AnInstalledLogIsReadToItsOwnEnd(t *testing.T) {
	start, content, entries := aLeader(t)
	r := behind(t, vfs.NewSimulated(1))
	for i := wire.Index(13); i <= 200; i++ {
		r.append(records(i, 1, 1, 10))
	}
	r.close(false)
	r.open()
	require.Equal(t, wire.Index(200), r.log.LastIndex())
	require.NoError(t, r.install(start, content))
	r.jobs.drain()
	r.term(2)
	r.append(entries...)
	r.commit()
	got, err := r.log.Stored(start.Index+1, 1<<20)
	require.NoError(t, err)
	require.Len(t, got, len(entries))
}

// After a crash at any step there is the old log or the new one.
func TestF20_AnInstallationIsThereAsAWholeOrNotAtAll(t *testing.T) {
	require.NoError(t, installAndCrash(t, false))
}

func TestF20_Catches_AnInstallationThatBeginsWithTheManifest(t *testing.T) {
	require.ErrorIs(t, installAndCrash(t, true), ErrCorrupt)
}

// installAndCrash stops an installation at every step and returns the first error of
// a start after that.
func installAndCrash(t *testing.T, mutant bool) error {
	start, content, entries := aLeader(t)
	old, installed := 0, 0
	for stop := int64(1); ; stop++ {
		fs := vfs.NewSimulated(uint64(stop))
		r := behind(t, fs)
		r.log.startFirst = mutant
		r.sync()
		fs.StopAt(fs.Ops() + stop)
		err := r.install(start, content)
		r.jobs.drain()
		done := err == nil && r.log.Err() == nil && fs.Ops() < stop
		fs.StopAt(0)
		fs.Crash()
		if err := r.tryOpen(); err != nil {
			return err
		}
		if r.log.FirstIndex() == 1 {
			require.False(t, done)
			old++
			require.Equal(t, wire.Index(12), r.log.LastIndex())
			require.Nil(t, r.log.Checkpoint())
			require.NoError(t, r.install(start, content), "it is done again")
			r.jobs.drain()
		} else {
			installed++
		}
		require.Equal(t, start, r.log.Start())
		require.Equal(t, wire.Index(70), r.log.Checkpoint().Applied)
		r.term(3)
		r.append(entries...)
		r.commit()
		require.Equal(t, entries, r.replayed(start.Index+1))
		r.close(false)
		r.open()
		require.Equal(t, wire.Index(90), r.log.LastIndex())
		if err == nil && stop > 60 {
			break
		}
	}
	t.Logf("%d crashes left the old log, %d the new one", old, installed)
	require.Positive(t, old)
	require.Positive(t, installed)
	return nil
}

func TestAForeignCheckpointIsRefused(t *testing.T) {
	start, content, _ := aLeader(t)
	r := behind(t, vfs.NewSimulated(1))
	other := r.log.id
	r.log.id.Incarnation++
	_, err := r.log.ParseCheckpoint(content)
	require.ErrorIs(t, err, ErrIdentity)
	r.log.id = other
	content[len(content)/2] ^= 1
	_, err = r.log.ParseCheckpoint(content)
	require.ErrorIs(t, err, errChecksum)
	require.Error(t, r.install(start, content))
	require.NoError(t, r.log.Err())
	require.Equal(t, wire.Index(12), r.log.LastIndex())
}

func TestAHeldStartIsNotTrimmed(t *testing.T) {
	r := newRig(t, vfs.NewSimulated(1), func(o *Options) { o.SegmentBytes = 4096 }).open()
	r.term(1)
	for i := wire.Index(1); i <= 60; i++ {
		r.append(records(i, 1, 1, 300))
		r.commit()
		if i%20 == 0 {
			r.checkpoint()
		}
	}
	r.log.HoldStart(5, 0)
	r.log.Trim(40)
	r.jobs.drain()
	r.log.MarkIdle()
	r.jobs.drain()
	require.Equal(t, wire.Index(1), r.log.FirstIndex())
	r.log.FreeStart(5)
	r.jobs.drain()
	require.Greater(t, r.log.FirstIndex(), wire.Index(20))
}
