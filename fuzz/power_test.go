package fuzz

import (
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lockstepmq/lockstep/fuzz/sim"
	"github.com/lockstepmq/lockstep/log"
	"github.com/lockstepmq/lockstep/vfs"
	"github.com/lockstepmq/lockstep/wire"
)

var (
	powerCycles = flag.Int("power.cycles", 5, "how often TestF1 cuts the power")
	powerFor    = flag.Duration("power.for", time.Hour, "after how long TestF1 is content with fewer cuts")
	powerSeed   = flag.Uint64("power.seed", 0, "draws the moments of the cuts; 0 takes the clock's")
)

const (
	// powerImage is the size of the file system that loses power, in bytes: the
	// least that mkfs.xfs takes.
	powerImage = 300 << 20
	// powerSegment is small, so that cuts fall into rolls and trims too.
	powerSegment = 64 << 10
	// powerKeep is how many records retention leaves.
	powerKeep = 400
	// powerWindow bounds how long a life lasts before the power goes.
	powerWindow = 80 * time.Millisecond
)

// fileSystem says how a file system is made that can be shut down.
type fileSystem struct {
	maker string
	flags []string
}

var (
	ext4 = fileSystem{"mkfs.ext4", []string{"-q", "-F"}}
	xfs  = fileSystem{"mkfs.xfs", []string{"-q", "-f"}}
)

// TestF1_PowerCutsLoseNothingAcknowledged runs a real log on a real file system of
// its own and shuts that down under it, journal unflushed, at random moments
// (RELIABILITY F1, F8). What fdatasync has confirmed by then must be there when the
// file system is mounted again: the entries, whole and in order, the hard state,
// and the start that retention has moved.
func TestF1_PowerCutsLoseNothingAcknowledged(t *testing.T) { powerCuts(t, ext4) }

func TestF1_PowerCutsOfXFSLoseNothingAcknowledged(t *testing.T) { powerCuts(t, xfs) }

func powerCuts(t *testing.T, kind fileSystem) {
	withPrivateMounts(t, kind, func(t *testing.T) {
		p := newPowerRun(t, kind)
		began := time.Now()
		cuts := 0
		for ; cuts < *powerCycles && time.Since(began) < *powerFor; cuts++ {
			p.cycle(t, p.random.Int64N(int64(powerWindow)))
		}
		p.boot(t)
		t.Logf("%d power cuts of %d, %d entries synced, %d syncs by the journal, %d trims, %.1f s",
			cuts, *powerCycles, p.acknowledged, p.shared, p.trims, time.Since(began).Seconds())
		require.NotZero(t, p.acknowledged)
	})
}

// TestF1_Catches_NoSync shows that the cuts are real: without fdatasync
// something acknowledged is lost within ten of them.
func TestF1_Catches_NoSync(t *testing.T) {
	withPrivateMounts(t, ext4, func(t *testing.T) {
		p := newPowerRun(t, ext4)
		p.mutant = sim.NoSync
		for cut := range 10 {
			if fails(t, func(t testing.TB) { p.cycle(t, int64(powerWindow)); p.boot(t) }) {
				t.Logf("caught after %d cuts", cut+1)
				return
			}
		}
		t.Fatal("not caught")
	})
}

// withPrivateMounts runs a test again in a child process that mounts file systems.
func withPrivateMounts(t *testing.T, kind fileSystem, run func(*testing.T)) {
	inNamespaces(t, syscall.CLONE_NEWNS, []string{kind.maker, "mount"}, func(t *testing.T) {
		privateMounts(t)
		run(t)
	})
}

// powerRun is a log on a file system that loses power, and what was confirmed of it.
type powerRun struct {
	seed   uint64
	random *rand.Rand
	mutant sim.Mutant
	image  string
	mount  string

	// dark is set just before the cut. What is confirmed later counts for nothing:
	// after a power cut nobody would hear of it, and a file system that is shut down
	// in the middle of a sync may call it done (ext4 does, now and then).
	dark  atomic.Bool
	lives int
	store *log.Store
	log   *log.Log
	jobs  *atOnce

	terms        []wire.Term // by index, of all entries that were appended
	durable      wire.Index  // confirmed
	committed    wire.Index
	hardState    log.HardState // confirmed
	first        wire.Index    // confirmed by a trim
	acknowledged int
	shared       uint64
	trims        int
}

func newPowerRun(t *testing.T, kind fileSystem) *powerRun {
	t.Helper()
	seed := *powerSeed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("power.seed %d", seed)
	dir := os.Getenv(childVariable)
	p := &powerRun{
		seed: seed, random: rand.New(rand.NewPCG(seed, 1)),
		image: filepath.Join(dir, "image"), mount: filepath.Join(dir, "mount"), terms: []wire.Term{0},
	}
	require.NoError(t, os.Mkdir(p.mount, 0o755))
	f, err := os.Create(p.image)
	require.NoError(t, err)
	require.NoError(t, f.Truncate(powerImage))
	require.NoError(t, f.Close())
	out, err := exec.Command(kind.maker, append(kind.flags, p.image)...).CombinedOutput()
	require.NoError(t, err, "%s", out)
	t.Cleanup(func() { _ = unix.Unmount(p.mount, unix.MNT_DETACH) })
	if out, err := p.mounted(); err != nil {
		t.Skipf("a loop device cannot be mounted here: %v: %s", err, out)
	}
	p.unmount(t)
	return p
}

func (p *powerRun) mounted() ([]byte, error) {
	return exec.Command("mount", "-n", "-o", "loop", p.image, p.mount).CombinedOutput()
}

func (p *powerRun) unmount(t testing.TB) {
	t.Helper()
	err := unix.Unmount(p.mount, 0)
	for try := 0; errors.Is(err, unix.EBUSY) && len(p.held()) == 0 && try < 100; try++ {
		time.Sleep(10 * time.Millisecond) // the kernel itself still holds it: it writes back
		err = unix.Unmount(p.mount, 0)
	}
	require.NoError(t, err, "still open: %v", p.held())
}

// held lists the files of the mount that this process has open or mapped.
func (p *powerRun) held() (names []string) {
	descriptors, _ := filepath.Glob("/proc/self/fd/*")
	for _, d := range descriptors {
		if name, err := os.Readlink(d); err == nil && strings.HasPrefix(name, p.mount) {
			names = append(names, name)
		}
	}
	maps, _ := os.ReadFile("/proc/self/maps")
	for line := range strings.Lines(string(maps)) {
		if _, name, ok := strings.Cut(line, p.mount); ok {
			names = append(names, "map of "+strings.TrimSpace(name))
		}
	}
	return names
}

// cut shuts the file system down at once: nothing that waits in memory, the journal
// included, reaches the device any more.
func (p *powerRun) cut(t testing.TB) { cutPower(t, p.mount) }

// cutPower is cut for whatever is mounted somewhere.
func cutPower(t testing.TB, mount string) {
	const (
		shutdown   = 0x8004587d // EXT4_IOC_SHUTDOWN, the same number on XFS
		noLogFlush = 2
	)
	root, err := os.Open(mount)
	require.NoError(t, err)
	defer root.Close()
	require.NoError(t, unix.IoctlSetPointerInt(int(root.Fd()), shutdown, noLogFlush))
}

// cycle is one life: mount, recover, check, write until the power goes.
func (p *powerRun) cycle(t testing.TB, window int64) {
	out, err := p.mounted()
	require.NoError(t, err, "%s", out)
	p.open(t)
	p.dark.Store(false)
	off := make(chan struct{})
	time.AfterFunc(time.Duration(window), func() {
		defer close(off)
		p.dark.Store(true)
		p.cut(t)
	})
	p.write(t)
	<-off
	_ = p.log.Close(false)
	p.jobs.drain()
	_, shared, _ := p.store.JournalStats()
	p.shared += shared
	_ = p.store.Close()
	p.unmount(t)
}

// boot mounts, recovers, checks and unmounts in order.
func (p *powerRun) boot(t testing.TB) {
	out, err := p.mounted()
	require.NoError(t, err, "%s", out)
	p.open(t)
	require.NoError(t, p.log.Close(false))
	p.jobs.drain()
	require.NoError(t, p.store.Close())
	p.unmount(t)
}

// open recovers the log and holds it to what was confirmed.
func (p *powerRun) open(t testing.TB) {
	p.lives++
	quiet := slog.New(slog.DiscardHandler)
	fs := p.mutant.MutateFS(vfs.OS())
	p.jobs = &atOnce{}
	stored := log.StoreOptions{
		FS: fs, Dir: filepath.Join(p.mount, "data"), UUID: [16]byte{1}, BootID: fmt.Sprint("boot ", p.lives),
		MinFreeBytes: -1, ReserveBytes: -1, Logger: quiet,
	}
	if p.lives%2 == 0 { // in every other life what may go through the sync journal does
		stored.Executor, stored.JournalLogs, stored.JournalBytes = p.jobs, 1, 256<<10
	}
	var err error
	p.store, err = log.OpenStore(stored)
	require.NoError(t, err)
	o := log.Options{
		Store: p.store, Dir: filepath.Join(p.mount, "data", "partitions", "one"), PartitionID: [16]byte{2}, Incarnation: 1,
		ReplicaID: 3, SegmentBytes: powerSegment, Executor: p.jobs, Logger: quiet,
	}
	p.log, err = log.Open(o)
	if errors.Is(err, log.ErrFenced) {
		o.RecoverFence = true
		p.log, err = log.Open(o)
	}
	require.NoError(t, err)

	last := p.log.LastIndex()
	require.GreaterOrEqual(t, last, p.durable, "seed %d: entries up to %d were synced", p.seed, p.durable)
	require.Less(t, int(last), len(p.terms), "seed %d", p.seed)
	next := p.log.FirstIndex()
	require.LessOrEqual(t, next, p.durable+1, "seed %d", p.seed)
	require.GreaterOrEqual(t, next, p.first, "seed %d: entries that were dropped are back", p.seed)
	require.NoError(t, p.log.Replay(next, func(h wire.FrameHeader, body []byte) error {
		require.Equal(t, next, h.Index, "seed %d", p.seed)
		require.Equal(t, p.terms[next], h.Term, "seed %d: entry %d", p.seed, next)
		require.Equal(t, powerBody(h.Index, h.Term), body, "seed %d: entry %d", p.seed, next)
		next++
		return nil
	}))
	require.Equal(t, last+1, next, "seed %d: replay ends early", p.seed)
	hs := p.log.HardState()
	require.GreaterOrEqual(t, hs.Term, p.hardState.Term, "seed %d", p.seed)
	p.terms = p.terms[:last+1]
	p.durable, p.committed = last, min(p.committed, last)
}

// powerBody is the content of an entry: nothing but its index and term decide it.
func powerBody(i wire.Index, term wire.Term) []byte {
	random := rand.New(rand.NewPCG(uint64(i), uint64(term)))
	body := make([]byte, 8+random.IntN(6000))
	for k := 0; k+8 <= len(body); k += 8 {
		binary.LittleEndian.PutUint64(body[k:], random.Uint64())
	}
	return body
}

// write appends, syncs, commits, saves and trims until the log fails.
func (p *powerRun) write(t testing.TB) {
	l := p.log
	term := p.hardState.Term + 1
	hs := log.HardState{Term: term, Vote: 3, Commit: p.committed}
	l.SetHardState(hs, true)
	ticket := l.Ticket()
	for l.Err() == nil {
		p.append(t, term)
		l.Sync()
		p.jobs.drain()
		if durable := l.DurableIndex(); durable > p.durable && !p.dark.Load() {
			p.acknowledged += int(durable - p.durable)
			p.durable = durable
		}
		if l.DurableTicket() >= ticket && !p.dark.Load() {
			p.hardState = hs
		}
		p.committed = p.durable
		hs.Commit = p.committed
		l.SetHardState(hs, false)
		l.Publish(p.committed)
		l.Release(p.committed, nil)
		switch p.random.IntN(20) {
		case 0:
			p.save(t)
		case 1:
			l.MarkIdle()
		}
		p.jobs.drain()
	}
}

// append adds a few entries, unless the log fails.
func (p *powerRun) append(t testing.TB, term wire.Term) {
	l := p.log
	for range 1 + p.random.IntN(3) {
		i := l.LastIndex() + 1
		body := powerBody(i, term)
		data := make([]byte, wire.EntryPrefixSize, wire.EntryPrefixSize+len(body))
		wire.PutEntryPrefix(data, wire.KindRecords, 1, int64(i))
		data = append(data, body...)
		err := l.Reserve(wire.FrameSize(len(data)), true)
		for errors.Is(err, log.ErrNotReady) && len(p.jobs.jobs) > 0 {
			p.jobs.drain()
			err = l.Reserve(wire.FrameSize(len(data)), true)
		}
		if err == nil {
			p.terms = append(p.terms[:i], term) // before the bytes: a failed write may have left them
			err = l.Append([]log.Entry{{Index: i, Term: term, Kind: wire.KindRecords, Data: data}})
		}
		if err != nil {
			require.Error(t, l.Err(), "%v", err)
			return
		}
	}
}

// save writes a checkpoint and drops what is old.
func (p *powerRun) save(t testing.TB) {
	l := p.log
	if l.CheckpointPending() || p.committed < 2 || l.FirstIndex() > p.committed {
		return
	}
	term, ok := l.Term(p.committed)
	require.True(t, ok)
	// Every entry is one record: the offset behind entry i is i.
	l.WriteCheckpoint(log.Checkpoint{Applied: p.committed, Term: term, NextOffset: wire.Offset(p.committed), State: []byte("state")})
	p.jobs.drain()
	if p.committed > powerKeep && l.Err() == nil {
		l.Trim(wire.Offset(p.committed - powerKeep))
		p.jobs.drain()
		if first := l.FirstIndex(); first > p.first && l.Err() == nil && !p.dark.Load() {
			p.first = first
			p.trims++
		}
	}
}
