package vfs

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"path"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// imageModel is the plain description of one file's durability: two byte slices.
type imageModel struct {
	volatile, durable []byte
}

// Random operations on one file against the plain model: what is read is the
// volatile image, and after a crash every sector is the durable or the volatile one.
func TestImageAgainstModel(t *testing.T) {
	rounds := 400
	if testing.Short() {
		rounds = 50
	}
	for seed := range uint64(rounds) {
		random := rand.New(rand.NewPCG(seed, 1))
		s := NewSimulated(seed)
		f := create(t, s, "/a", "")
		settle(t, s, f)
		var model imageModel
		for range 60 {
			off := random.Int64N(20000)
			n := random.Int64N(6000)
			switch random.IntN(10) {
			case 0, 1, 2, 3:
				p := bytes.Repeat([]byte{byte(1 + random.IntN(255))}, int(n))
				_, err := f.WriteAt(p, off)
				require.NoError(t, err)
				if n > 0 {
					model.volatile = extend(model.volatile, off+n)
					copy(model.volatile[off:], p)
				}
			case 4:
				require.NoError(t, f.ZeroRange(off, n))
				zeroModel(model.volatile, off, n)
			case 5:
				require.NoError(t, f.PunchHole(off, n))
				zeroModel(model.volatile, off, n)
			case 6:
				require.NoError(t, f.Truncate(off))
				model.volatile = extend(model.volatile, off)[:off]
			case 7:
				require.NoError(t, f.Allocate(off, n))
				if n > 0 {
					model.volatile = extend(model.volatile, off+n)
				}
			case 8:
				require.NoError(t, f.Sync())
				model.durable = bytes.Clone(model.volatile)
			case 9:
				s.Crash()
				var err error
				f, err = s.Open("/a")
				require.NoError(t, err)
				model.survived(t, seed, []byte(content(t, f)))
			}
			require.Equal(t, string(model.volatile), content(t, f), "seed %d", seed)
			image := &f.(*simHandle).file.image
			require.Equal(t, image.count*4096, s.used, "seed %d", seed)
		}
	}
}

func extend(p []byte, size int64) []byte {
	if grow := size - int64(len(p)); grow > 0 {
		p = append(p, make([]byte, grow)...)
	}
	return p
}

func zeroModel(p []byte, off, n int64) {
	size := int64(len(p))
	clear(p[min(off, size):min(off+n, size)])
}

// survived checks what a crash left and makes it both images.
func (m *imageModel) survived(t *testing.T, seed uint64, got []byte) {
	t.Helper()
	require.GreaterOrEqual(t, len(got), min(len(m.durable), len(m.volatile)), "seed %d", seed)
	require.LessOrEqual(t, len(got), max(len(m.durable), len(m.volatile)), "seed %d", seed)
	size := int64(len(got))
	durable, volatile := extend(m.durable, size)[:size], extend(m.volatile, size)[:size]
	for at := 0; at < len(got); at += 512 {
		end := min(at+512, len(got))
		if !bytes.Equal(got[at:end], durable[at:end]) && !bytes.Equal(got[at:end], volatile[at:end]) {
			require.Failf(t, "a sector is neither durable nor volatile", "seed %d: position %d", seed, at)
		}
	}
	m.durable, m.volatile = bytes.Clone(got), bytes.Clone(got)
}

// Random operations on names. Every file carries its own number as content and is
// synced, so that the tree after a crash can be checked: directories that were
// synced last are exact, and no file is in two places.
func TestNamesAgainstPromises(t *testing.T) {
	rounds := 1000
	if testing.Short() {
		rounds = 100
	}
	for seed := range uint64(rounds) {
		random := rand.New(rand.NewPCG(seed, 2))
		s := NewSimulated(seed)
		dirs := []string{"/", "/d", "/e", "/d/f"}
		require.NoError(t, s.MkdirAll("/d/f"))
		require.NoError(t, s.MkdirAll("/e"))
		settle(t, s)
		name := func() string { return path.Join(dirs[random.IntN(len(dirs))], string(rune('u'+random.IntN(4)))) }
		number := 0
		for range 5 {
			onlyRenamed := map[string]bool{}
			for _, content := range dump(t, s) {
				onlyRenamed[content] = content != "directory"
			}
			for range random.IntN(12) {
				a, b := name(), name()
				switch random.IntN(4) {
				case 0:
					if f, err := s.Create(a); err == nil {
						number++
						_, err = f.WriteAt(fmt.Append(nil, number), 0)
						require.NoError(t, err)
						require.NoError(t, f.Sync())
						closeAll(t, f)
					}
				case 1:
					if f, err := s.Open(a); err == nil {
						delete(onlyRenamed, content(t, f))
						closeAll(t, f)
						require.NoError(t, s.Remove(a))
					}
				case 2:
					replaced := ""
					if f, err := s.Open(b); err == nil {
						replaced = content(t, f)
						closeAll(t, f)
					}
					if s.Rename(a, b) == nil && a != b {
						delete(onlyRenamed, replaced)
					}
				case 3:
					require.NoError(t, s.SyncDir(path.Dir(a)))
				}
			}
			// Every other time everything is synced and must be as it was.
			exact := random.IntN(2) == 0
			if exact {
				for _, dir := range dirs {
					require.NoError(t, s.SyncDir(dir))
				}
				require.Empty(t, s.names.pending)
			}
			before := dump(t, s)
			s.Crash()
			after := dump(t, s)
			if exact {
				require.Equal(t, before, after, "seed %d", seed)
			}
			seen := map[string]bool{}
			for name, content := range after {
				if content != "directory" {
					require.False(t, seen[content], "seed %d: file %s is at %s and elsewhere", seed, content, name)
					seen[content] = true
				}
			}
			for content, is := range onlyRenamed {
				require.True(t, !is || seen[content], "seed %d: file %s was durable, was only renamed and is lost", seed, content)
			}
		}
	}
}

// The same calls with the same seed leave the same disk; other seeds another.
func TestSeedDecidesEverything(t *testing.T) {
	run := func(seed uint64) string {
		random := rand.New(rand.NewPCG(7, 7)) // the same script for every seed
		s := NewSimulated(seed)
		var all strings.Builder
		for range 5 {
			for i := range 10 {
				name := fmt.Sprintf("/%d", i)
				f, err := s.Create(name)
				if err != nil {
					f, err = s.Open(name)
				}
				require.NoError(t, err)
				_, err = f.WriteAt(bytes.Repeat([]byte{byte('a' + random.IntN(26))}, random.IntN(9000)), random.Int64N(5000))
				require.NoError(t, err)
				if random.IntN(3) == 0 {
					require.NoError(t, f.Sync())
				}
				if random.IntN(3) == 0 {
					require.NoError(t, s.Rename(name, fmt.Sprintf("/%d", random.IntN(10))))
				}
				if random.IntN(5) == 0 {
					require.NoError(t, s.SyncDir("/"))
				}
			}
			s.Crash()
			fmt.Fprintf(&all, "%v\n", dump(t, s))
		}
		return all.String()
	}
	seen := map[string]bool{}
	for seed := range uint64(20) {
		first := run(seed)
		require.Equal(t, first, run(seed))
		seen[first] = true
	}
	require.Len(t, seen, 20)
}

// What a simulated crash costs: one small log directory with a 64 MiB segment,
// a few writes since the last sync.
func BenchmarkCrashCycle(b *testing.B) {
	s := NewSimulated(1)
	s.MkdirAll("/d")
	f := must(s.Create("/d/segment"))
	f.Allocate(0, 64<<20)
	p := bytes.Repeat([]byte{1}, 1000)
	for off := int64(0); off < 8<<20; off += 1000 {
		f.WriteAt(p, off)
	}
	f.Sync()
	s.SyncDir("/")
	s.SyncDir("/d")
	b.ReportAllocs()
	for b.Loop() {
		f = must(s.Open("/d/segment"))
		for i := range int64(20) {
			f.WriteAt(p, i*1000)
		}
		s.RemoveAll("/d/temp") // the last crash may have left it
		t := must(s.Create("/d/temp"))
		t.WriteAt(p, 0)
		t.Sync()
		s.Rename("/d/temp", "/d/manifest")
		s.Crash()
	}
}
