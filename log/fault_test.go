package log

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/vfs"
	"github.com/lockstepmq/lockstep/wire"
)

var faultEntries = flag.Int("faultentries", 40, "entries of the log whose every storage call fails in TestF5 and TestF8; at least 40")

var errEIO = fmt.Errorf("injected: %w", syscall.EIO)

// workload drives a log through everything that touches the disk: appends, rolls,
// syncs, marks, checkpoints, trims, a truncation. It stops at the fence and returns
// what the log had promised by then.
func workload(r *rig) (durable, committed wire.Index, err error) {
	l := r.log
	var term wire.Term = 1
	hs := HardState{Term: term, Vote: 7}
	l.SetHardState(hs, true)
	for i := wire.Index(1); i <= wire.Index(*faultEntries); i++ {
		if i == 30 {
			// Another leader takes back one entry.
			if err = r.tryAppend(records(i, term, 1, 350)); err != nil {
				break
			}
			term, hs.Term = 2, 2
			l.SetHardState(hs, true)
		}
		if err = r.tryAppend(records(i, term, 1, 300)); err != nil {
			break
		}
		l.Sync()
		r.jobs.drain()
		if err = l.Err(); err != nil {
			break
		}
		durable = max(durable, l.DurableIndex())
		committed = durable
		if i == 29 {
			committed--
		}
		hs.Commit = committed
		l.SetHardState(hs, false)
		l.Publish(committed)
		l.Release(committed, nil)
		switch i % 8 {
		case 2:
			l.MarkIdle()
		case 4:
			l.WriteCheckpoint(r.checkpointAt(committed))
		case 6:
			if committed > 6 {
				l.Trim(wire.Offset(committed - 6))
			}
		case 0:
			// An error of reading is the reader's.
			for _, read := range []func(*Log, []byte, Position) ([]byte, Position, error){viewed, pread} {
				_, err := readAll(l, read)
				require.True(r.t, err == nil || errors.Is(err, errEIO) || errors.Is(err, vfs.ErrCrashed), "%v", err)
			}
		}
		r.jobs.drain()
		if err = l.Err(); err != nil {
			break
		}
	}
	return durable, committed, err
}

func TestF5_TheFirstErrorFencesAndNothingIsRepeated(t *testing.T) {
	fs := vfs.NewSimulated(1)
	r := newRig(t, fs, func(o *Options) { o.SegmentBytes = 3000 }).open()
	before := fs.Ops()
	_, committed, err := workload(r)
	require.NoError(t, err)
	require.Equal(t, wire.Index(*faultEntries), committed)
	total := fs.Ops() - before
	require.Greater(t, total, int64(150))

	failed := map[vfs.Op]int{}
	for n := int64(1); n <= total; n++ {
		failed[failCall(t, n, nil)]++
	}
	t.Logf("%d storage calls, each failed once", total)
	for _, op := range []vfs.Op{
		vfs.OpWrite, vfs.OpSync, vfs.OpAllocate, vfs.OpRename, vfs.OpSyncDir, vfs.OpZero, vfs.OpCreate, vfs.OpRead, vfs.OpMap, vfs.OpPopulate,
	} {
		require.NotZero(t, failed[op], "%v was never made to fail", op)
	}
}

// failCall runs the workload with an error at storage call n and checks that nothing
// is acknowledged after it, nothing synced again, and nothing acknowledged lost. It
// returns what the call was.
func failCall(t testing.TB, n int64, mutate func(vfs.FS) vfs.FS) (badOp vfs.Op) {
	fs := vfs.NewSimulated(1)
	disk := vfs.FS(fs)
	if mutate != nil {
		disk = mutate(disk)
	}
	r := newRig(t, disk, func(o *Options) { o.SegmentBytes = 3000 }).open()
	var count int64
	var badName string
	again := 0
	fs.Inject(func(op vfs.Op, name string) error {
		count++
		if count == n {
			badOp, badName = op, name
			return errEIO
		}
		if count > n && op == vfs.OpSync && badOp == vfs.OpSync && name == badName {
			again++
		}
		return nil
	})
	durable, committed, err := workload(r)
	what := fmt.Sprintf("call %d: %v %s", n, badOp, badName)
	fenced := r.log.Err() != nil
	if fenced {
		require.ErrorIs(t, r.log.Err(), ErrFenced, what)
		require.ErrorIs(t, r.log.Err(), syscall.EIO, what)
		require.ErrorIs(t, err, ErrFenced, what)
	} else {
		require.Contains(t, []vfs.Op{vfs.OpStat, vfs.OpOpen, vfs.OpRead, vfs.OpMap, vfs.OpPopulate, vfs.OpRemove, vfs.OpCreate}, badOp, what)
	}
	require.Zero(t, again, "%s: synced again", what)
	ticket, index := r.log.DurableTicket(), r.log.DurableIndex()
	require.LessOrEqual(t, index, r.log.LastIndex())
	fs.Inject(nil)
	if fenced {
		// Nothing becomes durable afterwards.
		r.log.Sync()
		r.log.SyncNow()
		r.log.MarkIdle()
		r.log.SetHardState(r.log.HardState(), true)
		r.jobs.drain()
		require.Equal(t, ticket, r.log.DurableTicket(), what)
		require.Equal(t, index, r.log.DurableIndex(), what)
		require.ErrorIs(t, r.tryAppend(records(r.log.LastIndex()+1, 9, 1, 10)), ErrFenced)
		require.ErrorIs(t, r.log.Close(true), ErrFenced)
		require.NoError(t, r.store.Close())
	} else {
		r.close(false)
	}
	r.jobs.drain()
	require.Zero(t, fs.OpenCount(), "%s: files are left open", what)
	// What the disk really has.
	fs.CrashLoseAll()
	r.options.RecoverFence = true
	require.NoError(t, r.tryOpen(), what)
	require.GreaterOrEqual(t, r.log.LastIndex(), committed, what)
	if durable < 29 {
		require.GreaterOrEqual(t, r.log.LastIndex(), durable, what)
	}
	for _, e := range r.replayed(r.log.FirstIndex()) {
		if e.Index <= committed {
			term := wire.Term(1)
			if e.Index >= 30 {
				term = 2
			}
			require.Equal(t, records(e.Index, term, 1, 300), e, what)
		}
	}
	r.append(records(r.log.LastIndex()+1, 9, 1, 10))
	r.commit()
	return badOp
}

func TestF5_ATornWriteFences(t *testing.T) {
	for n := range int64(200) {
		fs := vfs.NewSimulated(1)
		r := newRig(t, fs, nil).open()
		r.term(1)
		r.append(records(1, 1, 1, 100))
		r.commit()
		fs.Inject(func(op vfs.Op, name string) error {
			if op == vfs.OpWrite && strings.HasSuffix(name, ".segment") {
				return vfs.TornWrite{N: n, Err: errEIO}
			}
			return nil
		})
		require.ErrorIs(t, r.tryAppend(records(2, 1, 1, 100)), ErrFenced)
		fs.Inject(nil)
		require.Equal(t, wire.Index(1), r.log.DurableIndex())
		r.jobs.drain()
		r.kill()
		require.ErrorIs(t, r.tryOpen(), ErrFenced)
		r.options.RecoverFence = true
		r.open()
		last := wire.Index(1)
		if n >= 164 {
			last = 2
		}
		require.Equal(t, last, r.log.LastIndex())
	}
}

func TestF5_AFailedVoteFencesEveryLogOfTheStore(t *testing.T) {
	fs := vfs.NewSimulated(1)
	r := newRig(t, fs, nil).open()
	o := r.options
	o.Store, o.Executor = r.store, r.jobs
	o.Dir, o.PartitionID[0] = testDir+"/partitions/orders-1", 0xff
	other, err := Open(o)
	require.NoError(t, err)
	fail := true
	fs.Inject(func(op vfs.Op, name string) error {
		if fail && op == vfs.OpSync && strings.HasSuffix(name, hardStateName) {
			return errEIO
		}
		return nil
	})
	r.term(1)
	r.log.Sync()
	r.jobs.drain()
	require.ErrorIs(t, r.log.Err(), ErrFenced)
	fail = false
	other.SetHardState(HardState{Term: 1}, true)
	other.Sync()
	r.jobs.drain()
	require.ErrorIs(t, other.Err(), syscall.EIO, "a sync after a failed one proves nothing")
	require.Zero(t, other.DurableTicket())
}

func TestF24_ExhaustedDescriptorsAreNoFence(t *testing.T) {
	fs := vfs.NewSimulated(1)
	r := newRig(t, fs, nil).open()
	r.term(1)
	r.append(records(1, 1, 1, 100))
	r.commit()
	r.log.MarkIdle()
	r.jobs.drain()
	r.log.MarkIdle()
	require.Nil(t, r.log.activeFile, "an idle log holds no file")
	r.log.active.CloseResources()
	fs.Inject(func(op vfs.Op, _ string) error {
		if op == vfs.OpOpen {
			return fmt.Errorf("open: %w", syscall.EMFILE)
		}
		return nil
	})
	require.ErrorIs(t, r.reserve(100, true), ErrResources)
	require.ErrorIs(t, r.reserve(100, false), ErrResources)
	require.NoError(t, r.log.Err())
	fs.Inject(nil)
	require.ErrorIs(t, r.reserve(100, true), ErrResources, "not before the store has looked again")
	require.NoError(t, r.store.RefreshSpace())
	r.append(records(2, 1, 1, 100))
	r.commit()
}

func TestF12_NoSpaceAtAnyAllocationIsNoFence(t *testing.T) {
	for n := 1; ; n++ {
		fs := vfs.NewSimulated(1)
		r := newRig(t, fs, func(o *Options) { o.SegmentBytes = 3000 }).open()
		count := 0
		fs.Inject(func(op vfs.Op, name string) error {
			if op == vfs.OpAllocate || op == vfs.OpCreate || op == vfs.OpRename {
				if count++; count == n {
					return fmt.Errorf("%v %s: %w", op, name, vfs.ErrNoSpace)
				}
			}
			return nil
		})
		last := wire.Index(0)
		for i := wire.Index(1); i <= 30; i++ {
			err := r.tryAppend(records(i, 1, 1, 300))
			if err != nil {
				require.ErrorIs(t, err, ErrDiskFull)
				require.NoError(t, r.store.RefreshSpace())
				r.append(records(i, 1, 1, 300))
			}
			r.commit()
			if i%9 == 0 && !r.log.CheckpointPending() {
				r.log.WriteCheckpoint(r.checkpointAt(i))
				r.log.Trim(wire.Offset(i - 5))
				r.jobs.drain()
			}
			last = i
		}
		require.NoError(t, r.log.Err())
		fs.Inject(nil)
		want := r.replayed(r.log.FirstIndex())
		r.kill()
		fs.CrashLoseAll()
		r.open()
		require.Equal(t, last, r.log.LastIndex())
		got := r.replayed(r.log.FirstIndex())
		require.Equal(t, want[len(want)-len(got):], got)
		if count < n {
			require.Greater(t, n, 20)
			return
		}
	}
}

// pool is an executor with goroutines; Done comes back through a channel.
type pool struct {
	jobs chan Job
	done chan Job
	wait sync.WaitGroup
}

func newPool(workers int) *pool {
	p := &pool{jobs: make(chan Job, 100), done: make(chan Job, 100)}
	for range workers {
		p.wait.Go(func() {
			for j := range p.jobs {
				j.Run()
				p.done <- j
			}
		})
	}
	return p
}

func (p *pool) Submit(j Job) { p.jobs <- j }

func (p *pool) turn(block bool) {
	for {
		select {
		case j := <-p.done:
			j.Done()
			block = false
			continue
		default:
		}
		if !block {
			return
		}
		j := <-p.done
		j.Done()
		block = false
	}
}

func TestInspectGoesOnBehindDamage(t *testing.T) {
	fs := vfs.NewSimulated(1)
	r := newRig(t, fs, func(o *Options) { o.SegmentBytes = 2000 }).open()
	r.term(1)
	for i := wire.Index(1); i <= 20; i++ {
		r.append(records(i, 1, 1, 200))
		r.commit()
	}
	look := func() (whole []wire.Index, problems []string) {
		require.NoError(t, Inspect(fs, r.options.Dir, func(f InspectedFrame) error {
			if f.Problem != nil {
				problems = append(problems, fmt.Sprintf("%s %d: %v", f.File[13:16], f.Position, f.Problem))
				return nil
			}
			require.Len(t, f.Body, 200)
			require.Equal(t, f.Header.Index-1, f.Mark)
			whole = append(whole, f.Header.Index)
			return nil
		}))
		return whole, problems
	}
	whole, problems := look()
	require.Len(t, whole, 20)
	require.Empty(t, problems)
	body, bodyFrom, _ := r.frame(3)
	head, headFrom, _ := r.frame(10)
	require.NoError(t, fs.Corrupt(body, bodyFrom+100, 0))
	require.NoError(t, fs.Corrupt(head, headFrom+10, 0))
	ops := fs.Ops()
	whole, problems = look()
	require.Equal(t, []wire.Index{1, 2, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20}, whole)
	require.Equal(t, []string{
		"001 656: body: stored frame checksum mismatch",
		"002 656: entries 10 to 10: stored frame checksum mismatch",
	}, problems)
	require.Greater(t, fs.Ops(), ops)
	stop := errors.New("enough")
	require.ErrorIs(t, Inspect(fs, r.options.Dir, func(InspectedFrame) error { return stop }), stop)
	require.Error(t, Inspect(fs, "/nowhere", func(InspectedFrame) error { return io.EOF }))
}

func TestVotesOfManyPartitionsShareSyncs(t *testing.T) {
	fs := vfs.NewSimulated(1)
	store, err := OpenStore(StoreOptions{FS: fs, Dir: testDir, BootID: "b", MinFreeBytes: -1, ReserveBytes: -1, Logger: quiet})
	require.NoError(t, err)
	h := store.states
	const partitions, rounds = 600, 3 // more than one step of slots
	var slots []*slot
	for n := range partitions {
		s, err := h.take([16]byte{byte(n), byte(n >> 8), 1}, store.withReserve)
		require.NoError(t, err)
		slots = append(slots, s)
	}
	// A sync takes until all votes of its round are written.
	var syncs atomic.Int64
	var written sync.WaitGroup
	fs.Inject(func(op vfs.Op, _ string) error {
		if op == vfs.OpSync {
			syncs.Add(1)
			written.Wait()
		}
		return nil
	})
	for round := range rounds {
		var done sync.WaitGroup
		written.Add(partitions)
		for _, s := range slots {
			done.Go(func() {
				err := h.write(s, slotState{term: wire.Term(round + 1)})
				written.Done()
				if err == nil {
					err = h.sync()
				}
				if err != nil {
					t.Error(err)
				}
			})
		}
		done.Wait()
	}
	require.LessOrEqual(t, syncs.Load(), int64(2*rounds), "one that began too early, and one for all the others")
	fs.Inject(nil)
	fs.CrashLoseAll()
	store, err = OpenStore(StoreOptions{FS: fs, Dir: testDir, BootID: "b", MinFreeBytes: -1, ReserveBytes: -1, Logger: quiet})
	require.NoError(t, err)
	for n, s := range slots {
		found := store.states.find([16]byte{byte(n), byte(n >> 8), 1})
		require.NotNil(t, found)
		require.Equal(t, s.number, found.number)
		require.Equal(t, wire.Term(rounds), found.last.term)
	}
}
