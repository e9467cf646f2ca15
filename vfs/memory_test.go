package vfs

import (
	"fmt"
	"path"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
)

const mib = 1 << 20

// account is a budget that remembers what is out and refuses above its limit.
type account struct {
	limit int64
	out   atomic.Int64
	calls []int64
	mu    sync.Mutex
}

func (a *account) ask(delta int64) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.calls = append(a.calls, delta)
	if delta > 0 && a.out.Load()+delta > a.limit {
		return fmt.Errorf("memory budget of %d bytes: %w", a.limit, ErrNoSpace)
	}
	a.out.Add(delta)
	return nil
}

func newAccount(limit int64) (*account, FS) {
	a := &account{limit: limit}
	return a, NewMemory(a.ask)
}

func TestMemoryIsChargedInStepsBeforeItGrows(t *testing.T) {
	a, fsys := newAccount(100 * mib)
	f := create(t, fsys, "/a", "")
	require.Zero(t, a.out.Load())
	for _, c := range []struct {
		what string
		call func() error
		out  int64
	}{
		{"first byte", func() error { _, err := f.WriteAt([]byte{1}, 0); return err }, 1 * mib},
		{"rest of the step", func() error { return f.WritevAt([][]byte{make([]byte, mib-1)}, 1) }, 1 * mib},
		{"a byte over the border", func() error { _, err := f.WriteAt([]byte{1, 2}, mib-1); return err }, 2 * mib},
		{"far away", func() error { _, err := f.WriteAt([]byte{1}, 10*mib); return err }, 3 * mib},
		{"into the gap", func() error { _, err := f.WriteAt([]byte{1}, 5*mib); return err }, 4 * mib},
		{"allocation over all of it", func() error { return f.Allocate(0, 11*mib) }, 11 * mib},
		{"nothing", func() error { return f.WritevAt(nil, 20*mib) }, 11 * mib},
		{"longer", func() error { return f.Truncate(12 * mib) }, 12 * mib},
		{"shorter inside a step", func() error { return f.Truncate(11*mib + 1) }, 12 * mib},
		{"shorter", func() error { return f.Truncate(8 * mib) }, 8 * mib},
		{"hole inside steps", func() error { return f.PunchHole(mib/2, mib) }, 8 * mib},
		{"hole over steps", func() error { return f.PunchHole(mib/2, 3*mib) }, 6 * mib},
		{"zeros into the hole", func() error { return f.ZeroRange(mib, mib) }, 7 * mib},
		{"zeros beyond the end", func() error { return f.ZeroRange(20*mib, mib) }, 7 * mib},
		{"empty", func() error { return f.Truncate(0) }, 0},
	} {
		require.NoError(t, c.call(), c.what)
		require.Equal(t, c.out, a.out.Load(), c.what)
	}
	closeAll(t, f)
}

func TestRefusedMemoryChangesNothing(t *testing.T) {
	a, fsys := newAccount(2 * mib)
	f := create(t, fsys, "/a", "abc")
	for what, call := range map[string]func() error{
		"write":    func() error { _, err := f.WriteAt(make([]byte, 3*mib), 0); return err },
		"writev":   func() error { return f.WritevAt([][]byte{{1}, make([]byte, 3*mib)}, 0) },
		"allocate": func() error { return f.Allocate(0, 3*mib) },
		"truncate": func() error { return f.Truncate(3 * mib) },
	} {
		require.ErrorIs(t, call(), ErrNoSpace, what)
		require.Equal(t, "abc", content(t, f), what)
		require.EqualValues(t, mib, a.out.Load(), what)
	}
	require.NoError(t, f.Allocate(0, 2*mib))
	closeAll(t, f)
}

func TestMemoryComesBackWithTheLastReference(t *testing.T) {
	for _, c := range []struct {
		name  string
		steps func(t *testing.T, fsys FS, f File, m Mapping)
	}{
		{"name, handle, mapping", func(t *testing.T, fsys FS, f File, m Mapping) {
			require.NoError(t, fsys.Remove("/d/a"))
			closeAll(t, f)
			require.NoError(t, m.Unmap())
		}},
		{"mapping, handle, name", func(t *testing.T, fsys FS, f File, m Mapping) {
			require.NoError(t, m.Unmap())
			closeAll(t, f)
			require.NoError(t, fsys.Remove("/d/a"))
		}},
		{"handle, mapping, tree", func(t *testing.T, fsys FS, f File, m Mapping) {
			closeAll(t, f)
			require.NoError(t, m.Unmap())
			require.NoError(t, fsys.RemoveAll("/d"))
		}},
		{"handle, mapping, replaced", func(t *testing.T, fsys FS, f File, m Mapping) {
			closeAll(t, f)
			require.NoError(t, m.Unmap())
			closeAll(t, create(t, fsys, "/b", ""))
			require.NoError(t, fsys.Rename("/b", "/d/a"))
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			a, fsys := newAccount(10 * mib)
			require.NoError(t, fsys.MkdirAll("/d"))
			f := create(t, fsys, "/d/a", "abc")
			m, err := f.Map(mib)
			require.NoError(t, err)
			c.steps(t, fsys, f, m)
			require.Zero(t, a.out.Load())
			require.Equal(t, []int64{mib, -mib}, a.calls, "charged once and given back once, at the end")
		})
	}
}

func TestMemorySpaceStaysChargedWhileAnythingIsLeft(t *testing.T) {
	a, fsys := newAccount(10 * mib)
	f := create(t, fsys, "/a", "abc")
	m, err := f.Map(mib)
	require.NoError(t, err)
	require.NoError(t, fsys.Remove("/a"))
	require.EqualValues(t, mib, a.out.Load())
	closeAll(t, f)
	require.EqualValues(t, mib, a.out.Load())
	require.Equal(t, "abc", string(m.Bytes()[:3]))
	require.NoError(t, m.Unmap())
	require.Zero(t, a.out.Load())
}

// Whatever the goroutines do, in the end everything is given back and the limit
// was never exceeded.
func TestMemoryBudgetUnderConcurrency(t *testing.T) {
	a, fsys := newAccount(6 * mib)
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			name := path.Join("/", fmt.Sprint(i))
			for round := range int64(50) {
				f, err := fsys.Create(name)
				if err != nil {
					panic(err)
				}
				_ = f.Allocate(0, round%5*mib)
				_, _ = f.WriteAt([]byte("abc"), round%3*mib)
				_ = f.PunchHole(0, 2*mib)
				_ = f.Truncate(round % 2 * mib)
				_ = fsys.Remove(name)
				_ = f.Close()
			}
		})
	}
	wg.Wait()
	require.Zero(t, a.out.Load())
}

func TestMeminfo(t *testing.T) {
	available, total, err := parseMeminfo("MemTotal:       49452904 kB\nMemFree:        31000000 kB\nMemAvailable:   45000000 kB\nBuffers: 1 kB\n")
	require.NoError(t, err)
	require.EqualValues(t, 45000000*1024, available)
	require.EqualValues(t, 49452904*1024, total)
	for _, text := range []string{"", "MemTotal: 5 kB\n", "MemTotal: x kB\nMemAvailable: 5 kB\n", "NotMemTotal: 5 kB\nMemAvailable: 5 kB\n"} {
		_, _, err := parseMeminfo(text)
		require.ErrorContains(t, err, "/proc/meminfo: Mem", text)
	}
}
