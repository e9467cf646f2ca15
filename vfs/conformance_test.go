package vfs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

// everywhere runs a test on every file system, with an empty directory to work in.
func everywhere(t *testing.T, test func(t *testing.T, fsys FS, dir string)) {
	t.Run("os", func(t *testing.T) { test(t, OS(), t.TempDir()) })
	t.Run("os without populate", func(t *testing.T) { test(t, osFS{populateRead: false}, t.TempDir()) })
	t.Run("memory", func(t *testing.T) {
		fsys := NewMemory(nil)
		require.NoError(t, fsys.MkdirAll("/data"))
		test(t, fsys, "/data")
	})
	t.Run("simulated", func(t *testing.T) {
		fsys := NewSimulated(1)
		require.NoError(t, fsys.MkdirAll("/data"))
		test(t, fsys, "/data")
	})
}

func create(t *testing.T, fsys FS, name string, content string) File {
	t.Helper()
	f, err := fsys.Create(name)
	require.NoError(t, err)
	if content != "" {
		n, err := f.WriteAt([]byte(content), 0)
		require.NoError(t, err)
		require.Equal(t, len(content), n)
	}
	return f
}

func content(t *testing.T, f File) string {
	t.Helper()
	size, err := f.Size()
	require.NoError(t, err)
	p := make([]byte, size)
	n, err := f.ReadAt(p, 0)
	require.NoError(t, err)
	require.Equal(t, int(size), n)
	return string(p)
}

func contentOf(t *testing.T, fsys FS, name string) string {
	t.Helper()
	f, err := fsys.OpenReadOnly(name)
	require.NoError(t, err)
	defer func() { require.NoError(t, f.Close()) }()
	return content(t, f)
}

func closeAll(t *testing.T, closers ...io.Closer) {
	t.Helper()
	for _, c := range closers {
		require.NoError(t, c.Close())
	}
}

func TestCreateIsExclusive(t *testing.T) {
	everywhere(t, func(t *testing.T, fsys FS, dir string) {
		name := path.Join(dir, "a")
		f := create(t, fsys, name, "one")
		_, err := fsys.Create(name)
		require.ErrorIs(t, err, fs.ErrExist)
		require.Equal(t, "one", contentOf(t, fsys, name))
		_, err = fsys.Create(dir)
		require.ErrorIs(t, err, fs.ErrExist)
		closeAll(t, f)
	})
}

func TestMissingNamesAreNotExist(t *testing.T) {
	everywhere(t, func(t *testing.T, fsys FS, dir string) {
		missing := path.Join(dir, "missing")
		for what, call := range map[string]func() error{
			"open":            func() error { _, err := fsys.Open(missing); return err },
			"open read-only":  func() error { _, err := fsys.OpenReadOnly(missing); return err },
			"create below":    func() error { _, err := fsys.Create(path.Join(missing, "a")); return err },
			"rename":          func() error { return fsys.Rename(missing, path.Join(dir, "b")) },
			"remove":          func() error { return fsys.Remove(missing) },
			"list":            func() error { _, err := fsys.List(missing); return err },
			"stat":            func() error { _, err := fsys.Stat(missing); return err },
			"sync directory":  func() error { return fsys.SyncDir(missing) },
			"space":           func() error { _, _, err := fsys.Space(missing); return err },
			"lock in missing": func() error { _, err := fsys.Lock(path.Join(missing, "lock")); return err },
		} {
			err := call()
			require.ErrorIs(t, err, fs.ErrNotExist, what)
			require.Contains(t, err.Error(), missing, what)
		}
		require.NoError(t, fsys.RemoveAll(missing))
		require.NoError(t, fsys.RemoveAll(path.Join(missing, "below")))
	})
}

func TestReadEndsAtTheSize(t *testing.T) {
	everywhere(t, func(t *testing.T, fsys FS, dir string) {
		f := create(t, fsys, path.Join(dir, "a"), "0123456789")
		p := make([]byte, 4)
		n, err := f.ReadAt(p, 3)
		require.NoError(t, err)
		require.Equal(t, "3456", string(p[:n]))
		n, err = f.ReadAt(p, 6)
		require.NoError(t, err)
		require.Equal(t, "6789", string(p[:n]))
		n, err = f.ReadAt(p, 8)
		require.Equal(t, io.EOF, err)
		require.Equal(t, "89", string(p[:n]))
		n, err = f.ReadAt(p, 10)
		require.Equal(t, io.EOF, err)
		require.Zero(t, n)
		n, err = f.ReadAt(p, 1<<30)
		require.Equal(t, io.EOF, err)
		require.Zero(t, n)
		n, err = f.ReadAt(nil, 5)
		require.NoError(t, err)
		require.Zero(t, n)
		_, err = f.ReadAt(p, -1)
		require.Error(t, err)
		_, err = f.WriteAt(p, -1)
		require.Error(t, err)
		closeAll(t, f)
	})
}

func TestWritesLandWhereTheyShould(t *testing.T) {
	everywhere(t, func(t *testing.T, fsys FS, dir string) {
		f := create(t, fsys, path.Join(dir, "a"), "")
		// Over a block border, into a gap, over itself.
		_, err := f.WriteAt(bytes.Repeat([]byte{'x'}, 5000), 3000)
		require.NoError(t, err)
		_, err = f.WriteAt([]byte("yyy"), 4095)
		require.NoError(t, err)
		want := append(make([]byte, 3000), bytes.Repeat([]byte{'x'}, 5000)...)
		copy(want[4095:], "yyy")
		require.Equal(t, string(want), content(t, f))
		require.NoError(t, f.Sync())
		require.Equal(t, string(want), content(t, f))
		closeAll(t, f)
	})
}

func TestWritevTakesAnyNumberOfSlices(t *testing.T) {
	everywhere(t, func(t *testing.T, fsys FS, dir string) {
		f := create(t, fsys, path.Join(dir, "a"), "head")
		var bufs [][]byte
		var want bytes.Buffer
		want.WriteString("head")
		for i := range 3000 {
			b := fmt.Appendf(nil, "%d,", i)
			if i%7 == 0 {
				b = nil
			}
			bufs = append(bufs, b)
			want.Write(b)
		}
		require.NoError(t, f.WritevAt(bufs, 4))
		require.Equal(t, want.String(), content(t, f))
		require.Equal(t, "1,", string(bufs[1]), "the list is the caller's")
		require.NoError(t, f.WritevAt(nil, 0))
		require.NoError(t, f.WritevAt([][]byte{nil, {}}, 0))
		require.Equal(t, want.String(), content(t, f))
		closeAll(t, f)
	})
}

func TestAllocateGrowsWithZerosAndKeepsBytes(t *testing.T) {
	everywhere(t, func(t *testing.T, fsys FS, dir string) {
		f := create(t, fsys, path.Join(dir, "a"), "abc")
		require.NoError(t, f.Allocate(0, 10000))
		require.Equal(t, "abc"+string(make([]byte, 9997)), content(t, f))
		require.NoError(t, f.Allocate(0, 100))
		size, err := f.Size()
		require.NoError(t, err)
		require.EqualValues(t, 10000, size, "allocation never shrinks a file")
		require.NoError(t, f.Allocate(20000, 5))
		size, err = f.Size()
		require.NoError(t, err)
		require.EqualValues(t, 20005, size)
		require.NoError(t, f.Allocate(0, 40<<20))
		size, err = f.Size()
		require.NoError(t, err)
		require.EqualValues(t, 40<<20, size)
		require.Error(t, f.Allocate(-1, 5))
		require.Error(t, f.Allocate(0, -5))
		closeAll(t, f)
	})
}

func TestTruncateForgetsWhatItCuts(t *testing.T) {
	everywhere(t, func(t *testing.T, fsys FS, dir string) {
		f := create(t, fsys, path.Join(dir, "a"), string(bytes.Repeat([]byte{'x'}, 9000)))
		require.NoError(t, f.Truncate(5000))
		require.Equal(t, string(bytes.Repeat([]byte{'x'}, 5000)), content(t, f))
		require.NoError(t, f.Truncate(9500))
		require.Equal(t, string(bytes.Repeat([]byte{'x'}, 5000))+string(make([]byte, 4500)), content(t, f))
		require.NoError(t, f.Truncate(0))
		require.Equal(t, "", content(t, f))
		require.Error(t, f.Truncate(-1))
		closeAll(t, f)
	})
}

func TestZeroRangeAndPunchHoleKeepTheSize(t *testing.T) {
	everywhere(t, func(t *testing.T, fsys FS, dir string) {
		for what, erase := range map[string]func(f File, off, n int64) error{
			"zero":  func(f File, off, n int64) error { return f.ZeroRange(off, n) },
			"punch": func(f File, off, n int64) error { return f.PunchHole(off, n) },
		} {
			f := create(t, fsys, path.Join(dir, what), string(bytes.Repeat([]byte{'x'}, 20000)))
			want := bytes.Repeat([]byte{'x'}, 20000)
			require.NoError(t, erase(f, 100, 10000), what)
			copy(want[100:], make([]byte, 10000))
			require.Equal(t, string(want), content(t, f), what)
			require.NoError(t, erase(f, 19000, 5000), what)
			copy(want[19000:], make([]byte, 1000))
			require.Equal(t, string(want), content(t, f), what)
			require.NoError(t, erase(f, 0, 0), what)
			_, err := f.WriteAt([]byte("again"), 5000)
			require.NoError(t, err)
			copy(want[5000:], "again")
			require.Equal(t, string(want), content(t, f), what)
			require.Error(t, erase(f, -1, 10), what)
			closeAll(t, f)
		}
	})
}

func TestReadOnlyHandlesRefuseWrites(t *testing.T) {
	everywhere(t, func(t *testing.T, fsys FS, dir string) {
		name := path.Join(dir, "a")
		closeAll(t, create(t, fsys, name, "abc"))
		f, err := fsys.OpenReadOnly(name)
		require.NoError(t, err)
		_, err = f.WriteAt([]byte("x"), 0)
		require.Error(t, err)
		require.Error(t, f.WritevAt([][]byte{{1}}, 0))
		require.Error(t, f.Allocate(0, 10))
		require.Error(t, f.Truncate(1))
		require.Error(t, f.ZeroRange(0, 1))
		require.Error(t, f.PunchHole(0, 1))
		require.Equal(t, "abc", content(t, f))
		closeAll(t, f)
	})
}

func TestRenameReplaces(t *testing.T) {
	everywhere(t, func(t *testing.T, fsys FS, dir string) {
		a, b := path.Join(dir, "a"), path.Join(dir, "b")
		closeAll(t, create(t, fsys, a, "new"))
		old := create(t, fsys, b, "old")
		require.NoError(t, fsys.Rename(a, b))
		require.Equal(t, "new", contentOf(t, fsys, b))
		require.Equal(t, "old", content(t, old), "the replaced file lives on in its handle")
		_, err := fsys.Stat(a)
		require.ErrorIs(t, err, fs.ErrNotExist)
		require.NoError(t, fsys.Rename(b, b))
		require.Equal(t, "new", contentOf(t, fsys, b))
		closeAll(t, old)
	})
}

func TestRenameMovesDirectories(t *testing.T) {
	everywhere(t, func(t *testing.T, fsys FS, dir string) {
		from, to := path.Join(dir, "from"), path.Join(dir, "to")
		require.NoError(t, fsys.MkdirAll(path.Join(from, "deep")))
		closeAll(t, create(t, fsys, path.Join(from, "deep", "a"), "abc"))
		closeAll(t, create(t, fsys, path.Join(dir, "file"), ""))
		require.NoError(t, fsys.Rename(from, to))
		require.Equal(t, "abc", contentOf(t, fsys, path.Join(to, "deep", "a")))

		require.Error(t, fsys.Rename(to, path.Join(to, "deep", "self")), "into itself")
		require.Error(t, fsys.Rename(to, path.Join(dir, "file")), "directory over file")
		require.Error(t, fsys.Rename(path.Join(dir, "file"), to), "file over directory")
		require.NoError(t, fsys.MkdirAll(path.Join(dir, "empty")))
		require.Error(t, fsys.Rename(path.Join(dir, "empty"), to), "over a directory that is not empty")
		require.NoError(t, fsys.Rename(to, path.Join(dir, "empty")))
		require.Equal(t, "abc", contentOf(t, fsys, path.Join(dir, "empty", "deep", "a")))
	})
}

func TestRemove(t *testing.T) {
	everywhere(t, func(t *testing.T, fsys FS, dir string) {
		sub := path.Join(dir, "sub")
		require.NoError(t, fsys.MkdirAll(path.Join(sub, "x")))
		closeAll(t, create(t, fsys, path.Join(sub, "x", "a"), "abc"))
		closeAll(t, create(t, fsys, path.Join(sub, "b"), "abc"))
		require.Error(t, fsys.Remove(sub), "a directory that is not empty")
		require.NoError(t, fsys.Remove(path.Join(sub, "x", "a")))
		require.NoError(t, fsys.Remove(path.Join(sub, "x")))
		names, err := fsys.List(sub)
		require.NoError(t, err)
		require.Equal(t, []string{"b"}, names)
		require.NoError(t, fsys.RemoveAll(sub))
		names, err = fsys.List(dir)
		require.NoError(t, err)
		require.Empty(t, names)
	})
}

func TestUnlinkedFileLivesInItsHandles(t *testing.T) {
	everywhere(t, func(t *testing.T, fsys FS, dir string) {
		name := path.Join(dir, "a")
		f := create(t, fsys, name, "abc")
		require.NoError(t, fsys.Remove(name))
		second := create(t, fsys, name, "another")
		_, err := f.WriteAt([]byte("def"), 3)
		require.NoError(t, err)
		require.NoError(t, f.Sync())
		require.Equal(t, "abcdef", content(t, f))
		require.Equal(t, "another", content(t, second))
		closeAll(t, f, second)
	})
}

func TestListIsSortedAndStatDescribes(t *testing.T) {
	everywhere(t, func(t *testing.T, fsys FS, dir string) {
		for _, name := range []string{"b", "a10", "c", "a9"} {
			closeAll(t, create(t, fsys, path.Join(dir, name), name))
		}
		require.NoError(t, fsys.MkdirAll(path.Join(dir, "b1")))
		require.NoError(t, fsys.MkdirAll(path.Join(dir, "b1")))
		names, err := fsys.List(dir)
		require.NoError(t, err)
		require.Equal(t, []string{"a10", "a9", "b", "b1", "c"}, names)
		require.NoError(t, fsys.SyncDir(dir))

		info, err := fsys.Stat(path.Join(dir, "a10"))
		require.NoError(t, err)
		require.Equal(t, "a10", info.Name())
		require.EqualValues(t, 3, info.Size())
		require.Equal(t, fs.FileMode(0o600), info.Mode())
		require.False(t, info.IsDir())
		info, err = fsys.Stat(path.Join(dir, "b1"))
		require.NoError(t, err)
		require.True(t, info.IsDir())
		require.Equal(t, fs.ModeDir|0o700, info.Mode())

		_, err = fsys.List(path.Join(dir, "b"))
		require.Error(t, err, "list of a file")
		require.Error(t, fsys.SyncDir(path.Join(dir, "b")), "sync of a file as a directory")
		require.Error(t, fsys.MkdirAll(path.Join(dir, "b")), "directory over a file")
		require.Error(t, fsys.MkdirAll(path.Join(dir, "b", "x")), "directory below a file")
		_, err = fsys.Open(path.Join(dir, "b1"))
		require.Error(t, err, "a directory is no file")
		free, total, err := fsys.Space(dir)
		require.NoError(t, err)
		require.Positive(t, total)
		require.LessOrEqual(t, free, total)
	})
}

func TestLockIsExclusive(t *testing.T) {
	everywhere(t, func(t *testing.T, fsys FS, dir string) {
		name := path.Join(dir, "lock")
		l, err := fsys.Lock(name)
		require.NoError(t, err)
		for range 2 {
			_, err = fsys.Lock(name)
			require.ErrorIs(t, err, ErrLocked)
			require.Contains(t, err.Error(), name)
		}
		other, err := fsys.Lock(path.Join(dir, "other"))
		require.NoError(t, err)
		closeAll(t, l, other)
		require.ErrorIs(t, l.Close(), fs.ErrClosed)
		l, err = fsys.Lock(name)
		require.NoError(t, err)
		names, err := fsys.List(dir)
		require.NoError(t, err)
		require.Equal(t, []string{"lock", "other"}, names)
		closeAll(t, l)
	})
}

func TestMapShowsLaterWrites(t *testing.T) {
	everywhere(t, func(t *testing.T, fsys FS, dir string) {
		f := create(t, fsys, path.Join(dir, "a"), "abc")
		require.NoError(t, f.Allocate(0, 8192))
		m, err := f.Map(1 << 20) // far beyond the size
		require.NoError(t, err)
		require.NoError(t, m.Populate(0, 8192))
		require.Len(t, m.Bytes(), 1<<20)
		require.Equal(t, "abc\x00", string(m.Bytes()[:4]))

		require.NoError(t, f.WritevAt([][]byte{[]byte("de"), []byte("fg")}, 4094))
		require.NoError(t, m.Populate(4094, 4))
		require.Equal(t, "\x00defg\x00", string(m.Bytes()[4093:4099]))
		require.NoError(t, f.ZeroRange(4095, 2))
		require.Equal(t, "d\x00\x00g", string(m.Bytes()[4094:4098]))

		require.Error(t, m.Populate(8192, 4096), "beyond the last page of the file")
		require.NoError(t, f.Allocate(0, 16384))
		require.NoError(t, m.Populate(8192, 8192), "the file has grown below the mapping")
		_, err = f.WriteAt([]byte("later"), 16000)
		require.NoError(t, err)
		require.Equal(t, "later", string(m.Bytes()[16000:16005]))

		require.NoError(t, m.Populate(0, 0))
		require.Error(t, m.Populate(-1, 2))
		require.Error(t, m.Populate(1<<20, 1))
		_, err = f.Map(0)
		require.Error(t, err)
		require.NoError(t, m.Unmap())
		require.ErrorIs(t, m.Unmap(), fs.ErrClosed)
		require.ErrorIs(t, m.Populate(0, 1), fs.ErrClosed)
		require.Nil(t, m.Bytes())
		closeAll(t, f)
	})
}

func TestMappingOutlivesHandleAndName(t *testing.T) {
	everywhere(t, func(t *testing.T, fsys FS, dir string) {
		name := path.Join(dir, "a")
		f := create(t, fsys, name, "abc")
		m, err := f.Map(4096)
		require.NoError(t, err)
		second, err := f.Map(4096)
		require.NoError(t, err)
		closeAll(t, f)
		require.NoError(t, fsys.Remove(name))
		require.NoError(t, m.Populate(0, 3))
		require.Equal(t, "abc", string(m.Bytes()[:3]))
		require.NoError(t, m.Unmap())
		require.NoError(t, second.Populate(0, 3))
		require.Equal(t, "abc", string(second.Bytes()[:3]))
		require.NoError(t, second.Unmap())
	})
}

func TestClosedHandlesAreClosed(t *testing.T) {
	everywhere(t, func(t *testing.T, fsys FS, dir string) {
		f := create(t, fsys, path.Join(dir, "a"), "abc")
		closeAll(t, f)
		p := make([]byte, 1)
		_, readErr := f.ReadAt(p, 0)
		_, writeErr := f.WriteAt(p, 0)
		_, sizeErr := f.Size()
		_, mapErr := f.Map(4096)
		for what, err := range map[string]error{
			"read": readErr, "write": writeErr, "writev": f.WritevAt([][]byte{p}, 0), "sync": f.Sync(),
			"allocate": f.Allocate(0, 1), "truncate": f.Truncate(0), "zero": f.ZeroRange(0, 1),
			"punch": f.PunchHole(0, 1), "size": sizeErr, "map": mapErr, "close": f.Close(),
		} {
			require.ErrorIs(t, err, fs.ErrClosed, what)
			require.Contains(t, err.Error(), "/a", what)
		}
	})
}

func TestErrorsNameOperationAndPath(t *testing.T) {
	everywhere(t, func(t *testing.T, fsys FS, dir string) {
		name := path.Join(dir, "missing")
		_, err := fsys.Open(name)
		var pathErr *fs.PathError
		require.True(t, errors.As(err, &pathErr))
		require.Equal(t, "open", pathErr.Op)
		require.Equal(t, name, pathErr.Path)
		require.Equal(t, "open "+name+": no such file or directory", err.Error())
	})
}

// Callers on several goroutines each keep to their own range while others close
// handles of the same file.
func TestHandlesOnSeveralGoroutines(t *testing.T) {
	everywhere(t, func(t *testing.T, fsys FS, dir string) {
		name := path.Join(dir, "a")
		f := create(t, fsys, name, "")
		require.NoError(t, f.Allocate(0, 1<<20))
		var wg sync.WaitGroup
		failures := make(chan error, 8)
		for i := range 8 {
			wg.Go(func() {
				own := bytes.Repeat([]byte{byte('a' + i)}, 1000)
				got := make([]byte, 1000)
				for round := range 20 {
					h, err := fsys.Open(name)
					if err != nil {
						failures <- err
						return
					}
					at := int64(i)*100_000 + int64(round)*1000
					_, err = h.WriteAt(own, at)
					if err == nil {
						_, err = f.ReadAt(got, at)
					}
					if err == nil && !bytes.Equal(own, got) {
						err = fmt.Errorf("goroutine %d: position %d: read other bytes than were written", i, at)
					}
					if err = errors.Join(err, h.Sync(), h.Close()); err != nil {
						failures <- err
						return
					}
				}
			})
		}
		wg.Wait()
		close(failures)
		require.NoError(t, <-failures)
		closeAll(t, f)
	})
}

// A Close beside calls under way must neither crash nor hit another file.
func TestCloseBesideReads(t *testing.T) {
	everywhere(t, func(t *testing.T, fsys FS, dir string) {
		for round := range 50 {
			f := create(t, fsys, path.Join(dir, fmt.Sprint(round)), "abc")
			var wg sync.WaitGroup
			failures := make(chan error, 4)
			for range 4 {
				wg.Go(func() {
					p := make([]byte, 3)
					for {
						if _, err := f.ReadAt(p, 0); errors.Is(err, fs.ErrClosed) {
							return
						} else if err != nil || string(p) != "abc" {
							failures <- fmt.Errorf("read %q: %w", p, err)
							return
						}
					}
				})
			}
			closeAll(t, f)
			wg.Wait()
			close(failures)
			require.NoError(t, <-failures)
		}
	})
}
