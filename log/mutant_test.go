package log

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/internal/invariants"
	"github.com/lockstepmq/lockstep/segment"
	"github.com/lockstepmq/lockstep/vfs"
	"github.com/lockstepmq/lockstep/wire"
)

// Mutants take one protection away. The test of the same row must then fail.

// lyingDisk claims to have done what it has not.
type lyingDisk struct {
	vfs.FS
	noSync       bool // File.Sync does nothing
	hideSyncFail bool // File.Sync fails and does not say so
	noSyncDir    bool // FS.SyncDir does nothing
}

type lyingFile struct {
	vfs.File
	disk *lyingDisk
}

func (d *lyingDisk) Create(name string) (vfs.File, error) {
	f, err := d.FS.Create(name)
	if err != nil {
		return nil, err
	}
	return &lyingFile{f, d}, nil
}

func (d *lyingDisk) Open(name string) (vfs.File, error) {
	f, err := d.FS.Open(name)
	if err != nil {
		return nil, err
	}
	return &lyingFile{f, d}, nil
}

func (d *lyingDisk) SyncDir(dir string) error {
	if d.noSyncDir {
		return nil
	}
	return d.FS.SyncDir(dir)
}

func (f *lyingFile) Sync() error {
	if f.disk.noSync {
		return nil
	}
	err := f.File.Sync()
	if f.disk.hideSyncFail {
		return nil
	}
	return err
}

// expectedFailure ends a run that has noticed the mutant.
type expectedFailure struct{}

// failing is a test that is meant to fail.
type failing struct{ testing.TB }

func (f *failing) Errorf(string, ...any) { panic(expectedFailure{}) }
func (f *failing) FailNow()              { panic(expectedFailure{}) }
func (f *failing) Fatalf(string, ...any) { panic(expectedFailure{}) }

func fails(t *testing.T, run func(testing.TB)) (failed bool) {
	defer func() {
		p := recover()
		if _, failed = p.(expectedFailure); p != nil && !failed {
			panic(p)
		}
	}()
	run(&failing{t})
	return false
}

// caught runs a mutant with one seed after the other until the test notices it.
func caught(t *testing.T, seeds uint64, run func(t testing.TB, seed uint64)) {
	t.Helper()
	for seed := range seeds {
		if fails(t, func(t testing.TB) { run(t, seed) }) {
			t.Logf("caught with seed %d", seed)
			return
		}
	}
	t.Fatalf("not caught in %d seeds", seeds)
}

func TestF5_Catches_AHiddenSyncError(t *testing.T) {
	caught(t, 200, func(t testing.TB, n uint64) {
		failCall(t, int64(n)+1, func(fs vfs.FS) vfs.FS { return &lyingDisk{FS: fs, hideSyncFail: true} })
	})
}

func TestF6_Catches_ASyncThatDoesNothing(t *testing.T) {
	caught(t, 10, func(t testing.TB, seed uint64) {
		m := newCrashModel(t, seed, SyncQuorum)
		m.mutate = func(fs vfs.FS) vfs.FS { return &lyingDisk{FS: fs, noSync: true} }
		m.crashes()
	})
}

// The odd seeds of the crash model have frames of one size: what was taken back lies
// exactly where the new ones lie, and only the chain tells them apart.
func TestF7_Catches_AnIgnoredChain(t *testing.T) {
	if !invariants.Enabled {
		t.Skip("release builds cannot ignore the chain")
	}
	segment.IgnoreChain(true)
	defer segment.IgnoreChain(false)
	caught(t, 200, func(t testing.TB, seed uint64) { newCrashModel(t, 2*seed+1, SyncQuorum).crashes() })
}

// cutCall cuts the power at storage call n of the workload, whose segments are small:
// most calls belong to rolls, checkpoints and the removal of segments. It reports
// whether the workload ended before.
func cutCall(t testing.TB, seed uint64, n int64, mutate func(vfs.FS) vfs.FS) (ended bool) {
	fs := vfs.NewSimulated(seed)
	disk := vfs.FS(fs)
	if mutate != nil {
		disk = mutate(disk)
	}
	r := newRig(t, disk, func(o *Options) { o.SegmentBytes = 1500 }).open()
	fs.StopAt(fs.Ops() + n)
	durable, committed, err := workload(r)
	first := wire.Index(1)
	if r.log.Err() == nil {
		first = r.log.FirstIndex() // in the manifest, and durably so
	}
	fs.Crash()
	require.NoError(t, r.tryOpen(), "seed %d, cut at call %d", seed, n)
	l := r.log
	require.GreaterOrEqual(t, l.FirstIndex(), first, "seed %d, cut at call %d: removed segments are back", seed, n)
	require.LessOrEqual(t, l.FirstIndex(), max(committed, 1), "seed %d, cut at call %d", seed, n)
	require.GreaterOrEqual(t, l.LastIndex(), committed, "seed %d, cut at call %d", seed, n)
	if durable < 29 {
		require.GreaterOrEqual(t, l.LastIndex(), durable, "seed %d, cut at call %d", seed, n)
	}
	next := l.FirstIndex()
	for _, e := range r.replayed(next) {
		require.Equal(t, next, e.Index, "seed %d, cut at call %d: a gap", seed, n)
		next++
	}
	require.Equal(t, l.LastIndex()+1, next, "seed %d, cut at call %d: replay ends early", seed, n)
	r.append(records(l.LastIndex()+1, 9, 1, 10))
	r.commit()
	return err == nil
}

func TestF8_PowerCutsDuringRollsAndRemovals(t *testing.T) {
	cuts := 0
	for seed := range uint64(max(1, *crashSeeds/100)) {
		for n := int64(1); ; n++ {
			cuts++
			if cutCall(t, seed, n, nil) {
				break
			}
		}
	}
	t.Logf("%d power cuts", cuts)
}

func TestF8_Catches_ADirectorySyncThatDoesNothing(t *testing.T) {
	caught(t, 200, func(t testing.TB, n uint64) {
		cutCall(t, n, int64(n)+1, func(fs vfs.FS) vfs.FS { return &lyingDisk{FS: fs, noSyncDir: true} })
	})
}

// TestF11_AnErrorWhileReadingReachesTheReaderOnly fails every storage call of readers,
// one after the other: the reader hears of it, the log goes on, and the next reader
// gets everything.
func TestF11_AnErrorWhileReadingReachesTheReaderOnly(t *testing.T) {
	fs := vfs.NewSimulated(1)
	r := newRig(t, fs, func(o *Options) { o.SegmentBytes = 3000 }).open()
	r.term(1)
	for i := wire.Index(1); i <= 40; i++ {
		r.append(records(i, 1, 1, 300))
		r.commit()
	}
	readers := map[string]func() (int, error){
		"views":  func() (int, error) { return readAll(r.log, viewed) },
		"preads": func() (int, error) { return readAll(r.log, pread) },
	}
	for name, read := range readers {
		whole, err := read()
		require.NoError(t, err)
		failures := 0
		for n := 1; ; n++ {
			r.close(true)
			r.open()
			r.log.Publish(r.log.LastIndex())
			count := 0
			fs.Inject(func(op vfs.Op, _ string) error {
				if count++; count == n {
					return errEIO
				}
				return nil
			})
			_, err := read()
			fs.Inject(nil)
			require.NoError(t, r.log.Err(), "%s, call %d", name, n)
			again, againErr := read()
			require.NoError(t, againErr, "%s, call %d", name, n)
			require.Equal(t, whole, again, "%s, call %d", name, n)
			if err != nil {
				require.ErrorIs(t, err, errEIO, "%s, call %d", name, n)
				failures++
			}
			if count < n {
				break
			}
		}
		require.Greater(t, failures, 3, name)
	}
}

func pread(l *Log, stream []byte, p Position) ([]byte, Position, error) {
	buffer := make([]byte, 2500)
	n, next, err := l.ReadAt(p, buffer)
	return append(stream, buffer[:n]...), next, err
}

// readAll reads what is published and returns how many bytes that are.
func readAll(l *Log, read func(*Log, []byte, Position) ([]byte, Position, error)) (int, error) {
	p, _, err := l.Locate(l.StartOffset())
	var stream []byte
	// The first call at a place may only have warmed it up.
	for still := 0; err == nil && still < 2; {
		before := p
		if stream, p, err = read(l, stream, p); p == before {
			still++
		} else {
			still = 0
		}
	}
	return len(stream), err
}
