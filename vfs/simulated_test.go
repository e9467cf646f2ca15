package vfs

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

var errInjected = errors.New("injected")

// dump describes all files and directories, for comparison. Missing bytes of a
// file are what they read as.
func dump(t *testing.T, s *Simulated) map[string]string {
	t.Helper()
	all := map[string]string{}
	var walk func(dir string)
	walk = func(dir string) {
		names, err := s.List(dir)
		require.NoError(t, err)
		for _, name := range names {
			name = path.Join(dir, name)
			info, err := s.Stat(name)
			require.NoError(t, err)
			if info.IsDir() {
				all[name] = "directory"
				walk(name)
			} else {
				all[name] = contentOf(t, s, name)
			}
		}
	}
	walk("/")
	return all
}

// settle makes everything durable that a test prepared.
func settle(t *testing.T, s *Simulated, files ...File) {
	t.Helper()
	for _, f := range files {
		require.NoError(t, f.Sync())
	}
	var walk func(dir string)
	walk = func(dir string) {
		require.NoError(t, s.SyncDir(dir))
		names, err := s.List(dir)
		require.NoError(t, err)
		for _, name := range names {
			if info, err := s.Stat(path.Join(dir, name)); err == nil && info.IsDir() {
				walk(path.Join(dir, name))
			}
		}
	}
	walk("/")
}

// outcomes runs a scenario once per seed and counts what it returned.
func outcomes(seeds uint64, scenario func(seed uint64) string) map[string]int {
	seen := map[string]int{}
	for seed := range seeds {
		seen[scenario(seed)]++
	}
	return seen
}

func keys(seen map[string]int) []string {
	var all []string
	for k := range seen {
		all = append(all, k)
	}
	return all
}

// Durable: bytes after Sync and names after SyncDir survive every crash.
func TestWhatWasSyncedSurvivesEveryCrash(t *testing.T) {
	for seed := range uint64(200) {
		s := NewSimulated(seed)
		require.NoError(t, s.MkdirAll("/d/e"))
		f := create(t, s, "/d/e/a", strings.Repeat("abcdefg", 1000))
		settle(t, s, f)
		s.Crash()
		require.Equal(t, map[string]string{
			"/d": "directory", "/d/e": "directory", "/d/e/a": strings.Repeat("abcdefg", 1000),
		}, dump(t, s))
		s.Crash() // a crash without anything unsynced changes nothing
		require.Equal(t, strings.Repeat("abcdefg", 1000), contentOf(t, s, "/d/e/a"))
	}
}

// Not durable: overwritten sectors are lost or kept one by one.
func TestUnsyncedSectorsAreTorn(t *testing.T) {
	seen := outcomes(300, func(seed uint64) string {
		s := NewSimulated(seed)
		f := create(t, s, "/a", strings.Repeat("o", 4*512))
		settle(t, s, f)
		_, err := f.WriteAt(bytes.Repeat([]byte{'n'}, 4*512), 0)
		require.NoError(t, err)
		s.Crash()
		got := contentOf(t, s, "/a")
		short := ""
		for sector := 0; sector < len(got); sector += 512 {
			require.Equal(t, strings.Repeat(got[sector:sector+1], 512), got[sector:sector+512], "a sector is whole")
			short += got[sector : sector+1]
		}
		return short
	})
	require.Len(t, seen, 16, "all subsets of four sectors occur: %v", seen)
	require.Greater(t, seen["oooo"], 30, "nothing survived")
	require.Greater(t, seen["nnnn"], 30, "everything survived")
}

// Only the sectors that a write touches are at risk, not their neighbours.
func TestWritesRiskOnlyTheirSectors(t *testing.T) {
	for seed := range uint64(100) {
		s := NewSimulated(seed)
		f := create(t, s, "/a", strings.Repeat("o", 10*512))
		settle(t, s, f)
		_, err := f.WriteAt([]byte("nn"), 3*512-1)
		require.NoError(t, err)
		s.Crash()
		got := contentOf(t, s, "/a")
		require.Equal(t, strings.Repeat("o", 3*512-1), got[:3*512-1])
		require.Equal(t, strings.Repeat("o", 7*512-1), got[3*512+1:])
	}
}

// A file that grew without Sync has any size between, and no byte that was never written.
func TestUnsyncedGrowth(t *testing.T) {
	seen := outcomes(300, func(seed uint64) string {
		s := NewSimulated(seed)
		f := create(t, s, "/a", strings.Repeat("o", 512))
		settle(t, s, f)
		_, err := f.WriteAt([]byte(strings.Repeat("n", 2*512+100)), 512)
		require.NoError(t, err)
		s.Crash()
		got := contentOf(t, s, "/a")
		require.Equal(t, strings.Repeat("o", 512), got[:512])
		require.Empty(t, strings.Trim(got[512:], "n\x00"))
		return fmt.Sprint(len(got))
	})
	require.ElementsMatch(t, []string{"512", "1024", "1536", "1636"}, keys(seen))
}

// After a crash the bytes beyond the size are gone, not waiting for the file to grow again.
func TestNothingReturnsFromBeyondTheSize(t *testing.T) {
	for seed := range uint64(100) {
		s := NewSimulated(seed)
		f := create(t, s, "/a", "")
		settle(t, s, f)
		_, err := f.WriteAt(bytes.Repeat([]byte{'n'}, 20000), 0)
		require.NoError(t, err)
		s.Crash()
		f, err = s.Open("/a")
		require.NoError(t, err)
		before := content(t, f)
		require.NoError(t, f.Truncate(30000))
		require.Equal(t, before+string(make([]byte, 30000-len(before))), content(t, f))
	}
}

func TestUnsyncedTruncateMayBeUndone(t *testing.T) {
	seen := outcomes(200, func(seed uint64) string {
		s := NewSimulated(seed)
		f := create(t, s, "/a", strings.Repeat("o", 20*512))
		settle(t, s, f)
		require.NoError(t, f.Truncate(700))
		s.Crash()
		got := contentOf(t, s, "/a")
		require.Equal(t, strings.Repeat("o", 700), got[:700])
		return fmt.Sprint(len(got), strings.Count(got, "\x00") == 0)
	})
	require.Contains(t, seen, "10240 true", "undone with all bytes")
	require.Contains(t, seen, "10240 false", "undone in part")
	require.Contains(t, seen, "700 true", "done")
	require.Len(t, seen, 3)
}

func TestUnsyncedZeroingMayBeUndone(t *testing.T) {
	for what, erase := range map[string]func(f File) error{
		"zero":  func(f File) error { return f.ZeroRange(4096, 8192) },
		"punch": func(f File) error { return f.PunchHole(4096, 8192) },
	} {
		seen := outcomes(200, func(seed uint64) string {
			s := NewSimulated(seed)
			s.SetSpace(16384)
			f := create(t, s, "/a", strings.Repeat("o", 16384))
			settle(t, s, f)
			require.NoError(t, erase(f))
			s.Crash()
			got := contentOf(t, s, "/a")
			require.Len(t, got, 16384)
			require.Equal(t, strings.Repeat("o", 4096), got[:4096])
			require.Equal(t, strings.Repeat("o", 4096), got[12288:])
			require.Empty(t, strings.Trim(got, "o\x00"))
			switch zeros := strings.Count(got, "\x00"); zeros {
			case 0:
				free, _, err := s.Space("/")
				require.NoError(t, err)
				require.Zero(t, free, "bytes that came back have their space back")
				return "undone"
			case 8192:
				return "done"
			}
			return "torn"
		})
		require.ElementsMatch(t, []string{"undone", "done", "torn"}, keys(seen), what)
		// Synced, it stays.
		s := NewSimulated(1)
		f := create(t, s, "/a", strings.Repeat("o", 16384))
		settle(t, s, f)
		require.NoError(t, erase(f))
		require.NoError(t, f.Sync())
		s.CrashLoseAll()
		require.Equal(t, 8192, strings.Count(contentOf(t, s, "/a"), "\x00"), what)
	}
}

// A file may be synced and still have no name after the crash.
func TestCreationWithoutSyncDirMayBeLost(t *testing.T) {
	seen := outcomes(100, func(seed uint64) string {
		s := NewSimulated(seed)
		require.NoError(t, s.MkdirAll("/d"))
		settle(t, s)
		f := create(t, s, "/d/a", "abc")
		require.NoError(t, f.Sync())
		s.Crash()
		return fmt.Sprint(dump(t, s))
	})
	require.ElementsMatch(t, []string{"map[/d:directory]", "map[/d:directory /d/a:abc]"}, keys(seen))
}

// SyncDir without Sync: the name is there, the bytes need not be.
func TestSyncDirDoesNotSyncBytes(t *testing.T) {
	seen := outcomes(100, func(seed uint64) string {
		s := NewSimulated(seed)
		create(t, s, "/a", "abc")
		require.NoError(t, s.SyncDir("/"))
		s.Crash()
		return contentOf(t, s, "/a")
	})
	require.Contains(t, seen, "")
	require.Contains(t, seen, "abc")
	require.Contains(t, seen, "\x00\x00\x00", "the size is there and the sector is not")
	require.Len(t, seen, 3)
}

func TestRenameWithoutSyncDirMayBeUndone(t *testing.T) {
	seen := outcomes(100, func(seed uint64) string {
		s := NewSimulated(seed)
		old, fresh := create(t, s, "/manifest", "old"), create(t, s, "/temp", "new")
		settle(t, s, old, fresh)
		require.NoError(t, s.Rename("/temp", "/manifest"))
		s.Crash()
		return fmt.Sprint(dump(t, s))
	})
	require.ElementsMatch(t, []string{"map[/manifest:old /temp:new]", "map[/manifest:new]"}, keys(seen))
}

// The unsynced temp file renamed over a good one: the classic way to lose both.
func TestRenameOfAnUnsyncedFileMayLeaveAnEmptyOne(t *testing.T) {
	seen := outcomes(200, func(seed uint64) string {
		s := NewSimulated(seed)
		old := create(t, s, "/manifest", "old")
		settle(t, s, old)
		create(t, s, "/temp", "new")
		require.NoError(t, s.Rename("/temp", "/manifest"))
		require.NoError(t, s.SyncDir("/"))
		s.Crash()
		return contentOf(t, s, "/manifest")
	})
	require.ElementsMatch(t, []string{"new", "", "\x00\x00\x00"}, keys(seen))
}

func TestUnlinkedFileMayComeBack(t *testing.T) {
	seen := outcomes(100, func(seed uint64) string {
		s := NewSimulated(seed)
		f := create(t, s, "/a", "abc")
		settle(t, s, f)
		closeAll(t, f)
		require.NoError(t, s.Remove("/a"))
		s.Crash()
		return fmt.Sprint(dump(t, s))
	})
	require.ElementsMatch(t, []string{"map[]", "map[/a:abc]"}, keys(seen))

	s := NewSimulated(1)
	f := create(t, s, "/a", "abc")
	settle(t, s, f)
	require.NoError(t, s.Remove("/a"))
	require.NoError(t, s.SyncDir("/"))
	s.Crash()
	require.Empty(t, dump(t, s), "but not after SyncDir")
}

// Two operations on different names survive in any combination.
func TestNameOperationsSurviveInAnyOrder(t *testing.T) {
	seen := outcomes(200, func(seed uint64) string {
		s := NewSimulated(seed)
		a, b := create(t, s, "/a", "A"), create(t, s, "/b", "B")
		settle(t, s, a, b)
		require.NoError(t, s.Remove("/a"))
		require.NoError(t, s.Rename("/b", "/c"))
		s.Crash()
		return fmt.Sprint(dump(t, s))
	})
	require.ElementsMatch(t, []string{
		"map[/a:A /b:B]", "map[/b:B]", "map[/a:A /c:B]", "map[/c:B]",
	}, keys(seen))
}

// Operations on one name stay in order: a file that was only renamed is never lost.
func TestOperationsOnOneNameKeepTheirOrder(t *testing.T) {
	seen := outcomes(200, func(seed uint64) string {
		s := NewSimulated(seed)
		f := create(t, s, "/a", "first")
		settle(t, s, f)
		require.NoError(t, s.Rename("/a", "/b"))
		second := create(t, s, "/a", "second")
		require.NoError(t, second.Sync())
		s.Crash()
		return fmt.Sprint(dump(t, s))
	})
	require.ElementsMatch(t, []string{
		"map[/a:first]", "map[/b:first]", "map[/a:second /b:first]",
	}, keys(seen))
}

func TestRenameBetweenDirectoriesNeedsBothSynced(t *testing.T) {
	for synced, want := range map[string][]string{
		"":       {"from", "to"},
		"/from":  {"from", "to"},
		"/to":    {"from", "to"},
		"/from,": {"to"}, // and /to, below
	} {
		seen := outcomes(60, func(seed uint64) string {
			s := NewSimulated(seed)
			require.NoError(t, s.MkdirAll("/from"))
			require.NoError(t, s.MkdirAll("/to"))
			f := create(t, s, "/from/a", "abc")
			settle(t, s, f)
			require.NoError(t, s.Rename("/from/a", "/to/a"))
			if synced != "" {
				require.NoError(t, s.SyncDir(strings.TrimSuffix(synced, ",")))
			}
			if strings.HasSuffix(synced, ",") {
				require.NoError(t, s.SyncDir("/to"))
			}
			s.Crash()
			_, from := s.Stat("/from/a")
			_, to := s.Stat("/to/a")
			require.NotEqual(t, from == nil, to == nil, "in one place, never in both or none")
			if from == nil {
				return "from"
			}
			return "to"
		})
		require.ElementsMatch(t, want, keys(seen), "synced %q", synced)
	}
}

// A directory that was never made durable takes its files with it.
func TestMkdirWithoutSyncDirMayBeLost(t *testing.T) {
	seen := outcomes(100, func(seed uint64) string {
		s := NewSimulated(seed)
		require.NoError(t, s.MkdirAll("/d/e"))
		f := create(t, s, "/d/e/a", "abc")
		require.NoError(t, f.Sync())
		require.NoError(t, s.SyncDir("/d/e"))
		require.NoError(t, s.SyncDir("/d"))
		s.Crash()
		return fmt.Sprint(dump(t, s))
	})
	require.ElementsMatch(t, []string{"map[]", "map[/d:directory /d/e:directory /d/e/a:abc]"}, keys(seen))
}

// The quarantine case: moved into a directory that itself was not durable. Without
// any SyncDir the file is at the old place or at the new one.
func TestMoveIntoAnUnsyncedDirectoryLosesNothing(t *testing.T) {
	seen := outcomes(200, func(seed uint64) string {
		s := NewSimulated(seed)
		f := create(t, s, "/a", "abc")
		settle(t, s, f)
		require.NoError(t, s.MkdirAll("/q"))
		require.NoError(t, s.Rename("/a", "/q/a"))
		s.Crash()
		return fmt.Sprint(dump(t, s))
	})
	require.ElementsMatch(t, []string{
		"map[/a:abc]", "map[/a:abc /q:directory]", "map[/q:directory /q/a:abc]",
	}, keys(seen))
}

func TestRemoveAllMaySurviveInPart(t *testing.T) {
	seen := outcomes(400, func(seed uint64) string {
		s := NewSimulated(seed)
		require.NoError(t, s.MkdirAll("/d"))
		settle(t, s, create(t, s, "/d/a", "A"), create(t, s, "/d/b", "B"))
		require.NoError(t, s.RemoveAll("/d"))
		s.Crash()
		return fmt.Sprint(dump(t, s))
	})
	require.ElementsMatch(t, []string{
		"map[/d:directory /d/a:A /d/b:B]", "map[/d:directory /d/a:A]", "map[/d:directory /d/b:B]",
		"map[/d:directory]", "map[]",
	}, keys(seen))
}

// The same without any SyncDir: the removal may be undone, the file never lost.
func TestUndurableRmdirLosesNothing(t *testing.T) {
	seen := outcomes(200, func(seed uint64) string {
		s := NewSimulated(seed)
		require.NoError(t, s.MkdirAll("/d"))
		settle(t, s, create(t, s, "/d/a", "A"))
		require.NoError(t, s.Rename("/d/a", "/a"))
		require.NoError(t, s.Remove("/d"))
		s.Crash()
		return fmt.Sprint(dump(t, s))
	})
	require.ElementsMatch(t, []string{"map[/d:directory /d/a:A]", "map[/a:A /d:directory]", "map[/a:A]"}, keys(seen))
}

// A directory is removed only when it is empty, on the disk too: the SyncDir that
// makes the removal durable makes the renames out of it durable.
func TestDurableRmdirKeepsWhatMovedOut(t *testing.T) {
	for seed := range uint64(50) {
		s := NewSimulated(seed)
		require.NoError(t, s.MkdirAll("/d"))
		require.NoError(t, s.MkdirAll("/e"))
		settle(t, s, create(t, s, "/d/a", "A"))
		require.NoError(t, s.Rename("/d/a", "/e/a"))
		require.NoError(t, s.Remove("/d"))
		require.NoError(t, s.SyncDir("/"))
		s.Crash()
		require.Equal(t, map[string]string{"/e": "directory", "/e/a": "A"}, dump(t, s))
	}
}

func TestCrashKeepAllAndLoseAll(t *testing.T) {
	for crash, want := range map[string]map[string]string{
		"keep": {"/b": "newnew", "/c": "C"},
		"lose": {"/a": "oldold"},
	} {
		s := NewSimulated(1)
		f := create(t, s, "/a", "oldold")
		settle(t, s, f)
		_, err := f.WriteAt([]byte("newnew"), 0)
		require.NoError(t, err)
		require.NoError(t, s.Rename("/a", "/b"))
		create(t, s, "/c", "C")
		if crash == "keep" {
			s.CrashKeepAll()
		} else {
			s.CrashLoseAll()
		}
		require.Equal(t, want, dump(t, s), crash)
	}
}

func TestCrashEndsHandlesLocksAndMappings(t *testing.T) {
	s := NewSimulated(1)
	f := create(t, s, "/a", strings.Repeat("x", 4096))
	l, err := s.Lock("/lock")
	require.NoError(t, err)
	m, err := f.Map(4096)
	require.NoError(t, err)
	settle(t, s, f)
	require.Equal(t, 2, s.OpenCount())
	s.Crash()
	require.Equal(t, 0, s.OpenCount())

	again, err := s.Lock("/lock")
	require.NoError(t, err, "the lock died with the machine")
	require.Error(t, l.Close())
	_, err = s.Lock("/lock")
	require.ErrorIs(t, err, ErrLocked, "the dead holder's Close did not free the new holder's lock")
	closeAll(t, again)

	second, err := s.Open("/a")
	require.NoError(t, err)
	for range 2 {
		p := make([]byte, 1)
		_, readErr := f.ReadAt(p, 0)
		_, writeErr := f.WriteAt(p, 0)
		_, sizeErr := f.Size()
		_, mapErr := f.Map(4096)
		for what, err := range map[string]error{
			"read": readErr, "write": writeErr, "writev": f.WritevAt([][]byte{p}, 0), "sync": f.Sync(),
			"allocate": f.Allocate(0, 1), "truncate": f.Truncate(0), "zero": f.ZeroRange(0, 1),
			"punch": f.PunchHole(0, 1), "size": sizeErr, "map": mapErr, "close": f.Close(),
			"populate": m.Populate(0, 1), "unmap": m.Unmap(),
		} {
			require.ErrorIs(t, err, ErrCrashed, what)
		}
		s.Crash() // for ever
		second, err = s.Open("/a")
		require.NoError(t, err)
	}
	require.Equal(t, strings.Repeat("x", 4096), content(t, second))
	require.NoError(t, second.Truncate(100), "the dead mapping does not count")
	require.Equal(t, "x", string(m.Bytes()[4095:]), "its bytes stay as they were")
}

// Measured on ext4: fsync EIO, EIO, OK; the page cache shows the new bytes and
// the disk has the old ones.
func TestFailedSyncLosesTheSectorsForGood(t *testing.T) {
	for seed := range uint64(50) {
		s := NewSimulated(seed)
		f := create(t, s, "/a", strings.Repeat("o", 3*512))
		settle(t, s, f)
		_, err := f.WriteAt(bytes.Repeat([]byte{'n'}, 2*512), 0)
		require.NoError(t, err)

		s.Inject(func(op Op, name string) error {
			if op == OpSync {
				return errInjected
			}
			return nil
		})
		require.Equal(t, errInjected, f.Sync())
		s.Inject(nil)
		require.NoError(t, f.Sync(), "the second sync succeeds")
		require.Equal(t, strings.Repeat("n", 2*512)+strings.Repeat("o", 512), content(t, f), "and reads show the new bytes")

		// A sector that is written again is dirty again and can be synced.
		_, err = f.WriteAt([]byte("again"), 512)
		require.NoError(t, err)
		require.NoError(t, f.Sync())
		if seed%2 == 0 {
			s.EvictLost()
			require.Equal(t, strings.Repeat("o", 512), content(t, f)[:512], "the page cache dropped its clean pages")
		}
		if seed%3 == 0 {
			s.CrashKeepAll()
		} else {
			s.Crash()
		}
		require.Equal(t, strings.Repeat("o", 512)+"again"+strings.Repeat("n", 512-5)+strings.Repeat("o", 512), contentOf(t, s, "/a"))
	}
}

func TestFailedSyncDirStaysInDoubt(t *testing.T) {
	seen := outcomes(50, func(seed uint64) string {
		s := NewSimulated(seed)
		f := create(t, s, "/a", "abc")
		require.NoError(t, f.Sync())
		failures := 1
		s.Inject(func(op Op, name string) error {
			if op == OpSyncDir && failures > 0 {
				failures--
				return errInjected
			}
			return nil
		})
		require.Equal(t, errInjected, s.SyncDir("/"))
		require.NoError(t, s.SyncDir("/"))
		s.Crash()
		return fmt.Sprint(dump(t, s))
	})
	require.ElementsMatch(t, []string{"map[]", "map[/a:abc]"}, keys(seen))
}

func TestHookRefusesEveryOperation(t *testing.T) {
	s := NewSimulated(1)
	f := create(t, s, "/a", strings.Repeat("x", 4096))
	m, err := f.Map(4096)
	require.NoError(t, err)
	settle(t, s, f)
	type call struct {
		op   Op
		name string
	}
	var calls []call
	s.Inject(func(op Op, name string) error {
		calls = append(calls, call{op, name})
		return errInjected
	})
	before := s.Ops()
	for _, c := range []struct {
		call
		err func() error
	}{
		{call{OpCreate, "/b"}, func() error { _, err := s.Create("/b"); return err }},
		{call{OpOpen, "/a"}, func() error { _, err := s.Open("/a"); return err }},
		{call{OpOpen, "/a"}, func() error { _, err := s.OpenReadOnly("/a"); return err }},
		{call{OpRename, "/a"}, func() error { return s.Rename("/a", "/b") }},
		{call{OpRemove, "/a"}, func() error { return s.Remove("/a") }},
		{call{OpRemove, "/a"}, func() error { return s.RemoveAll("/a") }},
		{call{OpMkdir, "/d"}, func() error { return s.MkdirAll("/d") }},
		{call{OpList, "/"}, func() error { _, err := s.List("/"); return err }},
		{call{OpStat, "/a"}, func() error { _, err := s.Stat("/a"); return err }},
		{call{OpSyncDir, "/"}, func() error { return s.SyncDir("/") }},
		{call{OpSpace, "/"}, func() error { _, _, err := s.Space("/"); return err }},
		{call{OpLock, "/lock"}, func() error { _, err := s.Lock("/lock"); return err }},
		{call{OpRead, "/a"}, func() error { _, err := f.ReadAt(make([]byte, 1), 0); return err }},
		{call{OpWrite, "/a"}, func() error { _, err := f.WriteAt([]byte("y"), 0); return err }},
		{call{OpWrite, "/a"}, func() error { return f.WritevAt([][]byte{[]byte("y")}, 0) }},
		{call{OpSync, "/a"}, func() error { return f.Sync() }},
		{call{OpAllocate, "/a"}, func() error { return f.Allocate(0, 8192) }},
		{call{OpTruncate, "/a"}, func() error { return f.Truncate(8192) }},
		{call{OpZero, "/a"}, func() error { return f.ZeroRange(0, 10) }},
		{call{OpPunch, "/a"}, func() error { return f.PunchHole(0, 10) }},
		{call{OpMap, "/a"}, func() error { _, err := f.Map(4096); return err }},
		{call{OpPopulate, "/a"}, func() error { return m.Populate(0, 10) }},
	} {
		calls = nil
		require.Equal(t, errInjected, c.err(), c.op.String())
		require.Equal(t, []call{c.call}, calls)
	}
	require.EqualValues(t, 22, s.Ops()-before)
	s.Inject(nil)
	require.Equal(t, map[string]string{"/a": strings.Repeat("x", 4096)}, dump(t, s), "nothing has happened")
	require.Equal(t, "operation 99", Op(99).String())
}

func TestTornWriteWritesAPart(t *testing.T) {
	for torn, want := range map[int64]string{0: "......", 1: "a.....", 4: "abcd..", 6: "abcdef", 99: "abcdef", -1: "......"} {
		s := NewSimulated(1)
		f := create(t, s, "/a", "......")
		s.Inject(func(op Op, name string) error {
			if op == OpWrite {
				return TornWrite{N: torn, Err: unix.EIO}
			}
			return nil
		})
		err := f.WritevAt([][]byte{[]byte("abc"), nil, []byte("def")}, 0)
		require.ErrorIs(t, err, unix.EIO)
		require.Contains(t, err.Error(), "torn")
		require.Equal(t, want, content(t, f), "torn after %d", torn)
		n, err := f.WriteAt([]byte("abcdef"), 0)
		require.Error(t, err)
		require.EqualValues(t, max(0, min(torn, 6)), n)
	}
	require.Equal(t, "write torn after 3 bytes", TornWrite{N: 3}.Error())
}

func TestStopAtTheNthOperation(t *testing.T) {
	script := func(s *Simulated) error {
		f, err := s.Create("/a") // 1
		if err != nil {
			return err
		}
		if _, err := f.WriteAt([]byte("abc"), 0); err != nil { // 2
			return err
		}
		if err := f.Sync(); err != nil { // 3
			return err
		}
		return s.SyncDir("/") // 4
	}
	for n, want := range []map[string]string{
		1: {}, 2: {}, 3: {}, 4: {}, 5: {"/a": "abc"},
	} {
		if n == 0 {
			continue
		}
		for _, panics := range []bool{false, true} {
			s := NewSimulated(1)
			if panics {
				s.PanicAt(int64(n))
				func() {
					defer func() {
						if n < 5 {
							require.Equal(t, any(ErrCrashed), recover())
						}
					}()
					require.NoError(t, script(s))
				}()
			} else {
				s.StopAt(int64(n))
				if err := script(s); n < 5 {
					require.ErrorIs(t, err, ErrCrashed)
				} else {
					require.NoError(t, err)
				}
			}
			if n < 5 {
				require.EqualValues(t, n, s.Ops())
				require.ErrorIs(t, s.MkdirAll("/x"), ErrCrashed, "everything after it fails too")
				require.EqualValues(t, n, s.Ops())
			}
			s.CrashLoseAll()
			require.Equal(t, want, dump(t, s), "stopped at operation %d", n)
		}
	}
}

// A stop is a power cut, not a failed sync: what was dirty may still survive it.
func TestStopDoesNotLoseSectorsForGood(t *testing.T) {
	s := NewSimulated(1)
	f := create(t, s, "/a", "abc")
	s.StopAt(s.Ops() + 1)
	require.ErrorIs(t, f.Sync(), ErrCrashed)
	require.ErrorIs(t, s.SyncDir("/"), ErrCrashed)
	s.CrashKeepAll()
	require.Equal(t, map[string]string{"/a": "abc"}, dump(t, s))
}

func TestHookMayCrashTheMachine(t *testing.T) {
	s := NewSimulated(1)
	f := create(t, s, "/a", "abc")
	settle(t, s, f)
	for _, call := range []func() error{
		func() error { return f.Sync() },
		func() error { _, err := f.WriteAt([]byte("xyz"), 0); return err },
		func() error { return f.Truncate(0) },
	} {
		s.Inject(func(Op, string) error { s.Inject(nil); s.Crash(); return nil })
		require.ErrorIs(t, call(), ErrCrashed)
		require.Equal(t, map[string]string{"/a": "abc"}, dump(t, s))
		var err error
		f, err = s.Open("/a")
		require.NoError(t, err)
	}
}

func TestSpaceIsTakenByAllocationAndGrowth(t *testing.T) {
	s := NewSimulated(1)
	s.SetSpace(10 * 4096)
	free := func() int64 {
		free, total, err := s.Space("/")
		require.NoError(t, err)
		require.EqualValues(t, 10*4096, total)
		return free / 4096
	}
	f := create(t, s, "/a", "")
	require.EqualValues(t, 10, free())
	require.NoError(t, f.Allocate(0, 4*4096+1))
	require.EqualValues(t, 5, free())
	require.NoError(t, f.Allocate(4096, 4096))
	require.EqualValues(t, 5, free(), "what is allocated costs nothing again")

	err := f.Allocate(0, 11*4096)
	require.ErrorIs(t, err, ErrNoSpace)
	require.ErrorIs(t, err, unix.ENOSPC)
	size, err := f.Size()
	require.NoError(t, err)
	require.EqualValues(t, 4*4096+1, size)
	require.EqualValues(t, 5, free(), "all or nothing")

	g := create(t, s, "/b", strings.Repeat("x", 5*4096))
	require.EqualValues(t, 0, free())
	_, err = g.WriteAt([]byte("y"), 5*4096)
	require.ErrorIs(t, err, ErrNoSpace, "growing needs space")
	_, err = f.WriteAt(bytes.Repeat([]byte{'z'}, 5*4096), 0)
	require.NoError(t, err, "allocated space can always be written")
	require.NoError(t, f.Sync())
	closeAll(t, create(t, s, "/c", ""), must(s.Lock("/lock")))
	require.NoError(t, s.Rename("/c", "/d"))

	require.NoError(t, f.PunchHole(100, 3*4096))
	require.EqualValues(t, 2, free(), "whole blocks of the hole")
	require.NoError(t, g.ZeroRange(0, 5*4096))
	require.EqualValues(t, 2, free(), "zeroing keeps the space")
	require.NoError(t, g.Truncate(4096+1))
	require.EqualValues(t, 5, free())
	require.NoError(t, g.Truncate(100*4096))
	require.EqualValues(t, 5, free(), "a hole takes none")
	require.ErrorIs(t, g.ZeroRange(0, 100*4096), ErrNoSpace, "zeroing a hole takes space")

	require.NoError(t, s.Remove("/b"))
	require.EqualValues(t, 5, free(), "an open file keeps its space")
	m, err := g.Map(4096)
	require.NoError(t, err)
	closeAll(t, g)
	require.EqualValues(t, 5, free(), "a mapped one too")
	require.NoError(t, m.Unmap())
	require.EqualValues(t, 7, free())
	closeAll(t, f)
	require.NoError(t, s.Remove("/a"))
	require.EqualValues(t, 10, free())
	s.CrashLoseAll()
	require.EqualValues(t, 10, free(), "none of the names was durable")
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// After a crash the account is what the files really have.
func TestSpaceAfterCrash(t *testing.T) {
	for seed := range uint64(100) {
		s := NewSimulated(seed)
		s.SetSpace(1000 * 4096)
		f := create(t, s, "/a", "")
		require.NoError(t, f.Allocate(0, 10*4096))
		settle(t, s, f)
		require.NoError(t, f.Allocate(0, 30*4096))
		g := create(t, s, "/b", strings.Repeat("x", 4096))
		require.NoError(t, g.Sync())
		s.Crash()
		want := int64(0)
		for name, content := range dump(t, s) {
			if name == "/a" {
				require.GreaterOrEqual(t, len(content), 10*4096)
			}
			want += (int64(len(content)) + 4095) / 4096
		}
		free, total, err := s.Space("/")
		require.NoError(t, err)
		require.Equal(t, want*4096, total-free)
	}
}

func TestCorruptFlipsTheDurableBitToo(t *testing.T) {
	s := NewSimulated(1)
	f := create(t, s, "/a", strings.Repeat("\x00", 1024))
	settle(t, s, f)
	m, err := f.Map(1024)
	require.NoError(t, err)
	_, err = f.WriteAt([]byte{0xf0}, 600) // dirty, so that the images differ
	require.NoError(t, err)
	ops := s.Ops()
	require.NoError(t, s.Corrupt("/a", 5, 0))
	require.NoError(t, s.Corrupt("/a", 600, 7))
	require.Equal(t, ops, s.Ops())
	require.Equal(t, byte(0x01), m.Bytes()[5])
	require.Equal(t, byte(0x70), m.Bytes()[600])
	got := content(t, f)
	require.Equal(t, "\x01", got[5:6])
	require.Equal(t, "\x70", got[600:601])
	s.CrashLoseAll()
	got = contentOf(t, s, "/a")
	require.Equal(t, "\x01", got[5:6])
	require.Equal(t, "\x80", got[600:601])

	require.Error(t, s.Corrupt("/a", 1024, 0))
	require.Error(t, s.Corrupt("/a", 0, 8))
	require.ErrorIs(t, s.Corrupt("/missing", 0, 0), fs.ErrNotExist)
}

func TestShrinkingAMappedFileIsAProgrammerError(t *testing.T) {
	s := NewSimulated(1)
	f := create(t, s, "/a", "abc")
	m, err := f.Map(4096)
	require.NoError(t, err)
	require.PanicsWithValue(t, "vfs: /a: truncated from 3 to 2 bytes while it is mapped 1 times", func() { _ = f.Truncate(2) })
	require.True(t, s.mu.TryLock(), "the panic leaves no lock behind")
	s.mu.Unlock()
	require.NoError(t, m.Unmap())
	require.NoError(t, f.Truncate(2))
}

// One name means one file however the path is written.
func TestPathsAreCleaned(t *testing.T) {
	s := NewSimulated(1)
	require.NoError(t, s.MkdirAll("a/b/"))
	closeAll(t, create(t, s, "/a/./b//c", "abc"))
	require.Equal(t, "abc", contentOf(t, s, "a/b/../b/c"))
	require.Error(t, s.Remove("/"))
	require.Error(t, s.Rename("/a", "/"))
}

// A 64 MiB segment of which little is written costs little.
func TestMemoryFollowsWhatIsWritten(t *testing.T) {
	s := NewSimulated(1)
	f := create(t, s, "/a", "")
	require.NoError(t, f.Allocate(0, 64<<20))
	_, err := f.WriteAt([]byte("abc"), 64<<20-3)
	require.NoError(t, err)
	require.NoError(t, f.ZeroRange(0, 32<<20))
	used := 0
	image := &f.(*simHandle).file.image
	for _, b := range image.blocks {
		if b != nil {
			used++
		}
	}
	require.Equal(t, 1, used)
	require.EqualValues(t, 16384, image.count)
	require.Len(t, image.dirty, 1)
}

// A crash forgets files that nobody can reach, and so does a durable removal.
func TestNothingIsRememberedOfRemovedFiles(t *testing.T) {
	s := NewSimulated(1)
	for range 10 {
		f := create(t, s, "/a", "abc")
		require.NoError(t, s.Remove("/a"))
		require.NoError(t, s.SyncDir("/"))
		closeAll(t, f)
	}
	for range 10 {
		f := create(t, s, "/a", "abc")
		closeAll(t, f)
		require.NoError(t, s.Remove("/a"))
		require.NoError(t, s.SyncDir("/"))
	}
	require.Empty(t, s.soiled)
	require.Empty(t, s.names.pending)
	require.Zero(t, s.used)
}

// Several goroutines may use it while another crashes it.
func TestCrashBesideOtherGoroutines(t *testing.T) {
	s := NewSimulated(1)
	done := make(chan error, 4)
	for i := range 4 {
		go func() {
			name := fmt.Sprintf("/%d", i)
			for range 200 {
				f, err := s.Create(name)
				if errors.Is(err, fs.ErrExist) {
					f, err = s.Open(name)
				}
				if errors.Is(err, fs.ErrNotExist) {
					continue // the crash took it in between
				}
				if err != nil {
					done <- err
					return
				}
				_, _ = f.WriteAt([]byte("abc"), 1000)
				if m, err := f.Map(8192); err == nil {
					_ = m.Populate(0, 4096)
					_ = m.Unmap()
				}
				_ = f.Sync()
				_ = s.SyncDir("/")
				_ = f.Close()
			}
			done <- nil
		}()
	}
	for range 100 {
		s.Crash()
	}
	for range 4 {
		require.NoError(t, <-done)
	}
	s.Crash()
	require.Zero(t, s.OpenCount())
}
