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

// modelSectors is the length of the file that the model can describe.
const modelSectors = 64

// imageModel is the plain description of one file's durability: both images in
// full, and for each sector whether it was touched since the last Sync or
// belongs to a Sync that failed.
type imageModel struct {
	volatile, durable [modelSectors * 512]byte
	size, durableSize int64
	dirty, lost       [modelSectors]bool
}

// touch is what every change of [off, end) does to its sectors.
func (m *imageModel) touch(off, end int64) {
	for sector := off / 512; sector*512 < end; sector++ {
		m.dirty[sector], m.lost[sector] = true, false
	}
}

func (m *imageModel) write(p []byte, off int64) {
	if len(p) > 0 {
		m.touch(off, off+int64(len(p)))
		copy(m.volatile[off:], p)
		m.size = max(m.size, off+int64(len(p)))
	}
}

func (m *imageModel) zero(off, end int64) {
	if end = min(end, m.size); off < end {
		m.touch(off, end)
		clear(m.volatile[off:end])
	}
}

func (m *imageModel) truncate(size int64) {
	m.zero(size, m.size)
	m.size = size
}

func (m *imageModel) sync() {
	for sector := range m.dirty {
		if m.dirty[sector] {
			copy(m.durable[sector*512:][:512], m.volatile[sector*512:])
		}
	}
	m.dirty = [modelSectors]bool{}
	m.durableSize = m.size
}

func (m *imageModel) failSync() {
	for sector := range m.dirty {
		m.lost[sector] = m.lost[sector] || m.dirty[sector]
	}
	m.dirty = [modelSectors]bool{}
}

func (m *imageModel) evict() {
	for sector := range m.lost {
		if m.lost[sector] {
			copy(m.volatile[sector*512:][:512], m.durable[sector*512:])
		}
	}
	clear(m.volatile[m.size:])
}

// crash checks what a crash left and makes it both images.
func (m *imageModel) crash(t *testing.T, seed uint64, got []byte) {
	t.Helper()
	size := int64(len(got))
	require.GreaterOrEqual(t, size, min(m.durableSize, m.size), "seed %d", seed)
	require.LessOrEqual(t, size, max(m.durableSize, m.size), "seed %d", seed)
	for sector := range m.dirty {
		from, end := min(int64(sector)*512, size), min(int64(sector)*512+512, size)
		isDurable := bytes.Equal(got[from:end], m.durable[from:end])
		isVolatile := bytes.Equal(got[from:end], m.volatile[from:end])
		if !isDurable && !(m.dirty[sector] && isVolatile) {
			require.Failf(t, "a sector has bytes it cannot have", "seed %d: sector %d: dirty %t, lost %t, durable %t, volatile %t",
				seed, sector, m.dirty[sector], m.lost[sector], isDurable, isVolatile)
		}
	}
	*m = imageModel{size: size, durableSize: size}
	copy(m.volatile[:], got)
	copy(m.durable[:], got)
}

// Random operations on one file against the plain model: reads show the volatile
// image, and after a crash every sector has the durable bytes or, if it was
// dirty, perhaps the volatile ones.
func TestImageAgainstModel(t *testing.T) {
	rounds := 600
	if testing.Short() {
		rounds = 60
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
			switch random.IntN(12) {
			case 0, 1, 2, 3:
				p := bytes.Repeat([]byte{byte(1 + random.IntN(255))}, int(n))
				_, err := f.WriteAt(p, off)
				require.NoError(t, err)
				model.write(p, off)
			case 4:
				require.NoError(t, f.ZeroRange(off, n))
				model.zero(off, off+n)
			case 5:
				require.NoError(t, f.PunchHole(off, n))
				model.zero(off, off+n)
			case 6:
				require.NoError(t, f.Truncate(off))
				model.truncate(off)
			case 7:
				require.NoError(t, f.Allocate(off, n))
				if n > 0 {
					model.size = max(model.size, off+n)
				}
			case 8:
				require.NoError(t, f.Sync())
				model.sync()
			case 9:
				s.Inject(func(Op, string) error { return errInjected })
				require.Equal(t, errInjected, f.Sync())
				s.Inject(nil)
				model.failSync()
			case 10:
				if n < 1000 {
					s.EvictLost()
					model.evict()
				}
			case 11:
				s.Crash()
				var err error
				f, err = s.Open("/a")
				require.NoError(t, err)
				model.crash(t, seed, []byte(content(t, f)))
			}
			require.True(t, string(model.volatile[:model.size]) == content(t, f), "seed %d: reads differ from the model", seed)
			require.Equal(t, f.(*simHandle).file.image.count*4096, s.used, "seed %d", seed)
		}
	}
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
