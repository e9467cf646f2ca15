package log

import (
	"fmt"
	"path"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/internal/invariants"
	"github.com/lockstepmq/lockstep/segment"
	"github.com/lockstepmq/lockstep/vfs"
	"github.com/lockstepmq/lockstep/wire"
)

// keyedLog has twelve entries of batches with 2, 3 and 5 records, in segments of two
// entries each, and tables of those that are sealed.
func keyedLog(t testing.TB, fs vfs.FS) *rig {
	r := newRig(t, fs, func(o *Options) { o.SegmentBytes = 1100 }).open()
	r.log.KeepKeys(true)
	r.term(1)
	fillKeyed(r)
	return r
}

func fillKeyed(r *rig) {
	for i := wire.Index(1); i <= 12; i++ {
		r.append(stored(i, wire.Offset(i-1)*10, 2, 3, 5))
		r.commit()
	}
}

// answers are what NextOf says of all hashes, one record after the other.
func answers(t testing.TB, l *Log) (all []string) {
	for _, publisher := range []bool{false, true} {
		for _, hash := range []uint64{1, 2, 5, 6, 100, 101, 102, 103} {
			after := ^wire.Offset(0)
			for {
				o, ok, err := l.NextOf(hash, publisher, after, 115, func(o wire.Offset) bool { return o%7 == 3 })
				require.NoError(t, err)
				if !ok {
					break
				}
				all = append(all, fmt.Sprintf("%d %t at %d", hash, publisher, o))
				after = o
			}
		}
	}
	return all
}

// keyFiles are the key tables in the log's directory.
func (r *rig) keyFiles() (names []string) {
	all, err := r.fs.List(r.options.Dir)
	require.NoError(r.t, err)
	for _, name := range all {
		if strings.HasSuffix(name, ".keys") {
			names = append(names, path.Join(r.options.Dir, name))
		}
	}
	return names
}

// untabled is what NextOf says if it has no tables.
func untabled(t testing.TB, l *Log) []string {
	list := *l.segments.Load()
	states := make([]int32, len(list))
	for i, s := range list {
		states[i] = s.Keys()
		s.SetKeys(segment.KeysNone)
	}
	found := answers(t, l)
	for i, s := range list {
		s.SetKeys(states[i])
	}
	return found
}

// tabled is how many segments are known to have a table.
func (r *rig) tabled() (n int) {
	for _, s := range *r.log.segments.Load() {
		if s.Keys() == segment.KeysThere {
			n++
		}
	}
	return n
}

func TestKeyTablesAnswerLikeTheSegmentsThemselves(t *testing.T) {
	r := keyedLog(t, vfs.NewSimulated(1))
	sealed := len(*r.log.segments.Load()) - 1
	require.GreaterOrEqual(t, sealed, 5)
	require.Equal(t, sealed, r.tabled())
	require.Len(t, r.keyFiles(), sealed)
	want := untabled(t, r.log)
	require.Greater(t, len(want), 50)
	require.Equal(t, want, answers(t, r.log))

	// Who starts without anybody who asks for keys makes none and loses none.
	r.close(true)
	r.open()
	r.log.Publish(r.log.LastIndex())
	r.jobs.drain()
	require.Zero(t, r.tabled())
	require.Len(t, r.keyFiles(), sealed)
	writes := 0
	r.fs.(*vfs.Simulated).Inject(func(op vfs.Op, _ string) error {
		if op == vfs.OpWrite {
			writes++
		}
		return nil
	})
	r.log.KeepKeys(true)
	r.jobs.drain()
	require.Zero(t, writes, "what is there is not made again")
	require.Equal(t, sealed, r.tabled())
	require.Equal(t, want, answers(t, r.log))

	// They go with their segments.
	r.checkpoint()
	r.checkpoint()
	r.log.Trim(70)
	r.jobs.drain()
	require.Len(t, r.keyFiles(), len(*r.log.segments.Load())-1)
	require.Equal(t, untabled(t, r.log), answers(t, r.log))
	require.Less(t, len(answers(t, r.log)), len(want)/2)
}

// TestF3_LostAndRottenKeyTablesAreMadeAgain takes tables away, cuts them, and flips bits:
// nobody notices but the one who has to read more.
func TestF3_LostAndRottenKeyTablesAreMadeAgain(t *testing.T) {
	for name, hurt := range map[string]func(*vfs.Simulated, string, []byte) error{
		"missing": func(fs *vfs.Simulated, file string, _ []byte) error { return fs.Remove(file) },
		"torn": func(fs *vfs.Simulated, file string, b []byte) error {
			return segment.WriteFile(fs, file, append(b[:len(b)/2:len(b)/2], make([]byte, len(b)-len(b)/2)...))
		},
		"cut":   func(fs *vfs.Simulated, file string, b []byte) error { return segment.WriteFile(fs, file, b[:len(b)/2]) },
		"empty": func(fs *vfs.Simulated, file string, b []byte) error { return segment.WriteFile(fs, file, nil) },
		"of the first page a bit": func(fs *vfs.Simulated, file string, _ []byte) error {
			return fs.Corrupt(file, 150, 1)
		},
		"of the keys a bit": func(fs *vfs.Simulated, file string, _ []byte) error { return fs.Corrupt(file, 4096+1, 1) },
		"of the runs a bit": func(fs *vfs.Simulated, file string, _ []byte) error { return fs.Corrupt(file, 2*4096+1, 1) },
	} {
		t.Run(name, func(t *testing.T) {
			fs := vfs.NewSimulated(1)
			r := keyedLog(t, fs)
			want := untabled(t, r.log)
			files := r.keyFiles()
			for _, restart := range []bool{false, true} {
				if restart {
					r.close(true)
				}
				for _, file := range files {
					b, err := segment.ReadFile(fs, file, 1<<20)
					require.NoError(t, err)
					require.NoError(t, hurt(fs, file, b))
				}
				if restart {
					r.open()
					r.log.Publish(r.log.LastIndex())
					r.log.KeepKeys(true)
					r.jobs.drain()
				}
				require.Equal(t, want, answers(t, r.log))
				r.log.KeepKeys(true)
				r.jobs.drain()
				require.Equal(t, want, answers(t, r.log))
				r.log.KeepKeys(true)
				r.jobs.drain()
				require.Equal(t, len(files), r.tabled())
				require.Equal(t, files, r.keyFiles())
			}
			require.NoError(t, r.log.Err())
		})
	}
}

// TestF12_WithoutSpaceThereIsNoKeyTable refuses space for tables: the log goes on, and
// makes them when there is some.
func TestF12_WithoutSpaceThereIsNoKeyTable(t *testing.T) {
	fs := vfs.NewSimulated(1)
	full := true
	fs.Inject(func(op vfs.Op, name string) error {
		if full && op == vfs.OpAllocate && strings.HasSuffix(name, ".keys") {
			return fmt.Errorf("%s: %w", name, vfs.ErrNoSpace)
		}
		return nil
	})
	r := keyedLog(t, fs)
	require.NoError(t, r.log.Err())
	require.Empty(t, r.keyFiles())
	require.Zero(t, r.tabled())
	want := answers(t, r.log)
	r.log.KeepKeys(true)
	require.Empty(t, r.jobs.jobs, "not before space was looked at again")
	full = false
	require.NoError(t, r.store.RefreshSpace())
	r.log.KeepKeys(true)
	r.jobs.drain()
	require.Equal(t, len(*r.log.segments.Load())-1, r.tabled())
	require.Equal(t, want, answers(t, r.log))
}

// keysCut cuts the power at storage call n of a log that makes key tables, and requires
// that afterwards the answers are those of the segments. It reports whether the workload
// ended before.
func keysCut(t testing.TB, seed uint64, n int64) (ended bool) {
	fs := vfs.NewSimulated(seed)
	r := newRig(t, fs, func(o *Options) { o.SegmentBytes = 1100 }).open()
	r.log.KeepKeys(true)
	r.term(1)
	fs.StopAt(fs.Ops() + n)
	for i := wire.Index(1); i <= 6 && r.log.Err() == nil; i++ {
		if r.tryAppend(stored(i, wire.Offset(i-1)*10, 2, 3, 5)) != nil {
			break
		}
		r.log.Sync()
		r.jobs.drain()
		if r.log.Err() == nil {
			r.log.Publish(r.log.LastIndex())
			r.log.Release(r.log.LastIndex(), nil)
			r.jobs.drain()
		}
	}
	ended = r.log.Err() == nil && r.log.LastIndex() == 6
	fs.Crash()
	require.NoError(t, r.tryOpen(), "seed %d, cut at call %d", seed, n)
	r.log.Publish(r.log.LastIndex())
	r.log.KeepKeys(true)
	r.jobs.drain()
	require.Equal(t, untabled(t, r.log), answers(t, r.log), "seed %d, cut at call %d", seed, n)
	require.Equal(t, max(0, len(*r.log.segments.Load())-1), r.tabled(), "seed %d, cut at call %d", seed, n)
	return ended
}

func TestF8_PowerCutsWhileKeyTablesAreWritten(t *testing.T) {
	cuts := 0
	for seed := range uint64(max(1, *crashSeeds/100)) {
		for n := int64(1); ; n++ {
			cuts++
			if keysCut(t, seed, n) {
				break
			}
		}
	}
	t.Logf("%d power cuts", cuts)
}

// TestF5_AFailedWriteOfAKeyTableFencesTheLog: a disk that fails a write is not trusted,
// whatever the file.
func TestF5_AFailedWriteOfAKeyTableFencesTheLog(t *testing.T) {
	fs := vfs.NewSimulated(1)
	fs.Inject(func(op vfs.Op, name string) error {
		if op == vfs.OpSync && strings.HasSuffix(name, ".keys") {
			return errEIO
		}
		return nil
	})
	r := newRig(t, fs, func(o *Options) { o.SegmentBytes = 1100 }).open()
	r.log.KeepKeys(true)
	r.term(1)
	for i := wire.Index(1); i <= 6 && r.log.Err() == nil; i++ {
		require.NoError(t, r.tryAppend(stored(i, wire.Offset(i-1)*10, 2, 3, 5)))
		r.log.Sync()
		r.jobs.drain()
		r.log.Publish(r.log.LastIndex())
		r.jobs.drain()
	}
	require.ErrorIs(t, r.log.Err(), errEIO)
}

// TestRuleL8_NobodyPassesDamagedRecords: a search ends at a damaged record that may be what it looks for. A table that
// was made before says which are; one that is made then would miss what a repair brings back.
func TestRuleL8_NobodyPassesDamagedRecords(t *testing.T) {
	fs := vfs.NewSimulated(1)
	r := keyedLog(t, fs)
	sealed := r.tabled()
	whole := answers(t, r.log)
	name, at, _ := r.frame(2) // records [10, 20)
	require.NoError(t, fs.Corrupt(name, at+wire.FrameHeaderSize+100, 1))
	d, err := r.log.Verify(12)
	require.NoError(t, err)
	require.NotNil(t, d)
	require.Equal(t, whole, answers(t, r.log))
	found := untabled(t, r.log)
	for _, hash := range []string{"1 false", "6 false", "103 true"} { // 6 is nobody's key
		for _, o := range []int{11, 12, 19} {
			require.Contains(t, found, fmt.Sprintf("%s at %d", hash, o))
		}
	}
	require.NotContains(t, found, "1 false at 10", "it is skipped")
	require.NotContains(t, found, "6 false at 20")
	for _, file := range r.keyFiles() {
		require.NoError(t, fs.Remove(file))
	}
	require.Equal(t, found, answers(t, r.log))
	r.log.KeepKeys(true)
	r.jobs.drain()
	require.Equal(t, sealed-1, r.tabled())
	require.Equal(t, found, answers(t, r.log))
}

// TestF3_Catches_KeyTablesThatAreBelievedUnseen takes the checksums of the pages away.
func TestF3_Catches_KeyTablesThatAreBelievedUnseen(t *testing.T) {
	if !invariants.Enabled {
		t.Skip("release builds cannot ignore the checksums of key tables")
	}
	segment.IgnoreKeySums(true)
	defer segment.IgnoreKeySums(false)
	fs := vfs.NewSimulated(1)
	r := keyedLog(t, fs)
	want := untabled(t, r.log)
	wrong := false
	for bit := range 8 {
		for _, file := range r.keyFiles() {
			require.NoError(t, fs.Corrupt(file, int64(4096+bit%3), bit))
		}
		wrong = wrong || fmt.Sprint(want) != fmt.Sprint(answers(t, r.log))
	}
	require.True(t, wrong)
}
