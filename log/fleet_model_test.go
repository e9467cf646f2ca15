package log

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"path"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lockstepmq/lockstep/vfs"
	"github.com/lockstepmq/lockstep/wire"
)

// fleetModel runs several logs that share one sync journal through lives that end
// in kills and power cuts, also during a start, with one kind of storage fault in
// some of them: each log is checked against its own crashModel after every start.
// Logs take suffixes back, are removed, and stay closed for a life or two.
type fleetModel struct {
	t      testing.TB
	seed   uint64
	random *rand.Rand
	fs     *vfs.Simulated
	store  *Store
	jobs   *loose
	boots  int
	logs   []*crashModel
	bytes  int64
	share  int
	stats  map[string]int // what happened, over all seeds
}

func newFleetModel(t testing.TB, seed uint64, stats map[string]int) *fleetModel {
	f := &fleetModel{t: t, seed: seed, random: rand.New(rand.NewPCG(seed, 77)), fs: vfs.NewSimulated(seed), stats: stats}
	f.bytes = leastJournalBytes
	f.share = 1 + f.random.IntN(2)
	n := 2 + f.random.IntN(4)
	for range n {
		f.add()
	}
	return f
}

func (f *fleetModel) add() {
	m := &crashModel{t: f.t, seed: f.seed, random: f.random, fs: f.fs, mode: SyncQuorum, first: 1}
	m.segment = []int64{2000, 10_000, 200_000}[f.random.IntN(3)]
	m.uniform = f.random.IntN(2) == 1
	f.logs = append(f.logs, m)
}

func (f *fleetModel) options(i int) Options {
	id := testPartition
	id[15], id[14] = byte(i), byte(i>>8)
	return Options{
		Store: f.store, Dir: fmt.Sprintf("%s/partitions/p-%d", testDir, i), PartitionID: id, Incarnation: 1, ReplicaID: 7,
		Sync: f.logs[i].mode, SegmentBytes: f.logs[i].segment, Executor: f.jobs, Logger: quiet, RecoverFence: true,
	}
}

func (f *fleetModel) openStore() error {
	f.jobs = &loose{random: f.random}
	var err error
	f.store, err = OpenStore(StoreOptions{
		FS: f.fs, Dir: testDir, UUID: [16]byte{1}, BootID: fmt.Sprint(f.boots), MinFreeBytes: -1, ReserveBytes: -1, Logger: quiet,
		Executor: f.jobs, JournalLogs: f.share, JournalBytes: f.bytes,
	})
	return err
}

func (f *fleetModel) fatal(format string, args ...any) {
	f.t.Helper()
	f.t.Fatalf("seed %d: %s", f.seed, fmt.Sprintf(format, args...))
}

// down ends the process or the machine.
func (f *fleetModel) down() {
	f.fs.StopAt(0)
	f.fs.Inject(nil)
	if _, err := f.fs.Stat(testDir); err == nil && f.random.IntN(2) == 0 && f.store != nil {
		f.stats["kill"]++
		_ = f.store.lock.Close()
		if f.random.IntN(2) == 0 {
			f.fs.EvictLost()
		}
		return
	}
	f.stats["power"]++
	f.boots++
	switch f.random.IntN(4) {
	case 0:
		f.fs.CrashLoseAll()
	case 1:
		f.fs.CrashKeepAll()
	default:
		f.fs.Crash()
	}
}

func (f *fleetModel) run() {
	for life := range 8 {
		if life == 7 {
			f.fs.StopAt(0)
		}
		// A start that the power interrupts.
		if life < 7 && f.random.IntN(4) == 0 {
			f.fs.StopAt(f.fs.Ops() + 1 + int64(f.random.IntN(150)))
		}
		if err := f.openStore(); err != nil {
			if !errors.Is(err, vfs.ErrCrashed) {
				f.fatal("store: %v", err)
			}
			f.store = nil
			f.fs.StopAt(0)
			f.fs.Crash()
			f.boots++
			continue
		}
		crashed := false
		opened := map[int]bool{}
		for i, m := range f.logs {
			if m == nil || life < 7 && f.random.IntN(4) == 0 {
				continue
			}
			l, err := Open(f.options(i))
			if err != nil {
				if errors.Is(err, vfs.ErrCrashed) {
					crashed = true
					break
				}
				f.fatal("life %d boot %d: open %d: %v", life, f.boots, i, err)
			}
			m.log, m.store, m.jobs = l, f.store, f.jobs
			opened[i] = true
		}
		if _, err := f.fs.Stat(testDir); err != nil {
			crashed = true
		}
		if crashed {
			f.down()
			continue
		}
		f.fs.StopAt(0)
		for i := range f.logs {
			if opened[i] {
				f.logs[i].verify()
			}
		}
		if life == 7 {
			return
		}
		f.live(opened)
		g, s, _ := f.store.JournalStats()
		f.stats["groups"] += int(g)
		f.stats["syncs"] += int(s)
		f.down()
	}
}

func (f *fleetModel) live(opened map[int]bool) {
	switch f.random.IntN(5) {
	case 0, 1:
		f.fs.StopAt(f.fs.Ops() + 1 + int64(f.random.IntN(500)))
	case 2: // EIO somewhere
		at, kind := f.fs.Ops()+int64(f.random.IntN(400)), f.random.IntN(4)
		done := false
		f.fs.Inject(func(op vfs.Op, name string) error {
			if done || f.fs.Ops() < at {
				return nil
			}
			if strings.HasSuffix(name, "hardstate") {
				return nil
			}
			o := op.String()
			if kind == 0 && o == "sync" && path.Ext(name) == ".journal" || kind == 1 && o == "sync" ||
				kind == 2 && o == "write" || kind == 3 && path.Ext(name) == ".journal" {
				done = true
				f.stats["eio "+o+path.Ext(name)]++
				return unix.EIO
			}
			return nil
		})
	case 3: // no space for a while
		from := f.fs.Ops() + int64(f.random.IntN(300))
		to := from + int64(f.random.IntN(200))
		f.fs.Inject(func(op vfs.Op, name string) error {
			if n := f.fs.Ops(); n < from || n > to {
				return nil
			}
			if o := op.String(); o == "allocate" || o == "create" {
				f.stats["enospc "+o+path.Ext(name)]++
				return unix.ENOSPC
			}
			return nil
		})
	}
	defer func() {
		if p := recover(); p != nil {
			f.fatal("panic: %v", p)
		}
	}()
	for range 100 + f.random.IntN(600) {
		i := f.random.IntN(len(f.logs))
		m := f.logs[i]
		if m == nil || !opened[i] {
			continue
		}
		if f.random.IntN(40) == 0 {
			_ = f.store.RefreshSpace()
		}
		if m.log.Err() != nil {
			f.jobs.step()
			continue
		}
		if f.random.IntN(400) == 0 { // removed
			delete(opened, i)
			_ = m.log.Close(true)
			dir := f.options(i).Dir
			f.logs[i] = nil
			switch err := f.store.Quarantine(dir); {
			case err == nil:
				_ = f.store.PurgeQuarantine() // a fault shows in the next life
				f.stats["removed"]++
			case !errors.Is(err, vfs.ErrCrashed) && !errors.Is(err, unix.EIO) && !errors.Is(err, unix.ENOSPC):
				f.fatal("quarantine: %v", err)
			}
			continue
		}
		f.act(m)
		f.observeAll(opened)
	}
	if f.random.IntN(4) == 0 {
		for i := range opened {
			m := f.logs[i]
			if m != nil && m.log.Err() == nil && f.random.IntN(2) == 0 {
				if m.log.Close(f.random.IntN(2) == 0) == nil {
					m.durable = m.log.LastIndex()
					m.versions, m.hsDurable, m.hsTickets = nil, m.hs, nil
				}
			}
		}
	}
}

func (f *fleetModel) observeAll(opened map[int]bool) {
	for i := range f.logs {
		if opened[i] && f.logs[i] != nil {
			f.logs[i].observe()
		}
	}
}

func (f *fleetModel) act(m *crashModel) {
	l := m.log
	switch n := f.random.IntN(100); {
	case n < 35:
		m.append(l.LastIndex() + 1)
	case n < 37:
		if last := l.LastIndex(); last > m.committed {
			m.setTerm()
			m.append(m.committed + 1 + wire.Index(f.random.IntN(int(last-m.committed))))
		}
	case n < 38:
		m.setTerm()
	case n < 60:
		l.Sync()
	case n < 62:
		l.MarkIdle()
	case n < 63:
		for f.jobs.step() && f.random.IntN(30) > 0 {
		}
	case n < 85:
		f.jobs.step()
	default:
		m.act()
	}
}

// RULES P2, L2, L9: what was durable is there after every kill and power cut, with
// the journal in use, full, failing and without space.
func TestRuleP2_LogsThatShareAJournalLoseNothing(t *testing.T) {
	stats := map[string]int{}
	for seed := range max(*crashSeeds/4, 20) {
		newFleetModel(t, uint64(seed), stats).run()
	}
	t.Log(stats)
	require.Positive(t, stats["groups"], "the journal was used")
}
