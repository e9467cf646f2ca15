package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"

	"github.com/lockstepmq/lockstep/cluster"
	"github.com/lockstepmq/lockstep/log"
	"github.com/lockstepmq/lockstep/partition"
	"github.com/lockstepmq/lockstep/replication"
	"github.com/lockstepmq/lockstep/wire"
)

// broker is everything behind the sessions: the stores, the metadata group, and
// the replicas this node holds. It keeps the replicas in step with the metadata.
type broker struct {
	cfg      Config
	identity identity
	disk     *log.Store
	memory   *log.Store
	turns    [2]*turnPool     // by wire.Storage, as the next two
	jobs     [2]*blockingPool // storage jobs
	reads    [2]*blockingPool // reads for clients
	shared   storeExecutor    // group commits of the disk store
	pending  *partition.Memory
	meta     *metadataReplica
	clock    func() time.Time
	logger   *slog.Logger

	network network // nil if the broker runs alone, as the next
	catchUp *catchUp
	hints   hints
	nodes   nodeWatch
	words   words

	mu       sync.RWMutex
	replicas map[replicaKey]*partitionReplica
	byID     map[uint64]*partitionReplica // the same
	settled  wire.Index                   // metadata epoch that the replicas are in step with
	settling []settleWaiter
	failed   map[replicaKey]error  // replicas that did not open
	failedID map[replicaKey]uint64 // which these were; also of those that are tried again

	gone   []*partitionReplica // retired, not closed yet
	goneAt *cluster.View       // that does not name them
	// leaving are the directories of retired replicas that are not closed yet, which nobody
	// else may open, and whether somebody wants to.
	leaving map[string]bool
	unsaid  atomic.Bool // the metadata has to be told something again
	// telling are the replicas of which the metadata is being told that they are lost.
	telling sync.Map
	reset   atomic.Bool // the metadata knows that what was in memory is gone

	removed chan struct{} // closed when the other nodes do not take this one for a member
	outcast peerWord      // what they say; set before removed is closed
	began   int64         // monotonic time
	ticked  atomic.Int64  // monotonic time of the last tick, 0 before the first
	alarm   *alarm        // of deadlines between ticks
	dirty   chan struct{} // the metadata changed
	fatal   chan error    // why this node cannot go on, said once
	untidy  chan struct{} // there is something to remove
	stops   chan struct{} // close has stopped something
	viewed  func(*cluster.View)
	// oneOpinion is a mutant: this node alone says whether another is gone.
	oneOpinion atomic.Bool
	// unfenced is a mutant: fences are answered, and not committed.
	unfenced atomic.Bool
	// unclosed is a mutant: letters are written in another way without asking what is there.
	unclosed     atomic.Bool
	letterFlight atomic.Int64 // letters that are on their way
	// deaf has the answers to letters that are written lost, for tests.
	deaf         atomic.Bool
	leadersMoved func()
	cancel       context.CancelFunc
	closing      <-chan struct{} // closed by cancel
	done         sync.WaitGroup

	producers producerIDs
	damage    damageCounters

	journalStall stall
	diskStalled  atomic.Bool // something waits for the disk: no turn of it on a loop
}

type replicaKey struct {
	destination uuid.UUID
	number      uint32
}

// diskParallel bounds the partitions that are opened, stopped or removed at the
// same time.
const diskParallel = 8

// openBroker opens the data directory and brings every partition up.
func openBroker(cfg Config) (*broker, error) {
	b := &broker{
		cfg: cfg, clock: cfg.clock, logger: cfg.Logger,
		turns: [2]*turnPool{newTurnPool(), newTurnPool()}, jobs: byStorage(cfg.StorageWorkers), reads: byStorage(cfg.ReadWorkers),
		shared:   storeExecutor{newLine(newBlockingPool(1))},
		pending:  partition.NewMemory(cfg.PendingBytes),
		replicas: make(map[replicaKey]*partitionReplica), byID: make(map[uint64]*partitionReplica), failed: make(map[replicaKey]error), failedID: make(map[replicaKey]uint64), leaving: make(map[string]bool),
		began: monotonic(), removed: make(chan struct{}), fatal: make(chan error, 1),
		alarm: newAlarm(), dirty: make(chan struct{}, 1), untidy: make(chan struct{}, 1), stops: make(chan struct{}, 1),
	}
	b.journalStall = stall{lines: [2]*line{b.shared.line}, turn: new(atomic.Int64)}
	if b.clock == nil {
		b.clock = time.Now
	}
	var ctx context.Context
	ctx, b.cancel = context.WithCancel(context.Background())
	b.closing = ctx.Done()
	if err := b.open(ctx); err != nil {
		return nil, errors.Join(err, b.close())
	}
	return b, nil
}

// openSegments is how many segment files may stay open: half of the descriptors
// that connections leave alone, the rest is for files in use beyond that, for
// directories, HTTP and the loops.
func openSegments(reserve int) int { return min(max(reserve/2, 16), 1024) }

func (b *broker) open(ctx context.Context) error {
	var err error
	b.disk, err = log.OpenStore(log.StoreOptions{
		FS: b.cfg.fs, Dir: b.cfg.DataDir, BootID: b.cfg.bootID,
		MinFreeBytes: b.cfg.MinFreeBytes, OpenSegments: openSegments(b.cfg.Limits.DescriptorReserve),
		Reap: newLine(b.jobs[wire.StorageDisk]).submit, Executor: b.shared, Logger: b.logger,
	})
	if err != nil {
		return err
	}
	// Records are refused from the first on if there is no space for them.
	if err := b.disk.RefreshSpace(); err != nil {
		return fmt.Errorf("free space: %w", err)
	}
	if b.identity, err = loadIdentity(&b.cfg); err != nil {
		return err
	}
	if b.cfg.connect != nil {
		if b.network, err = b.cfg.connect(b); err != nil {
			return err
		}
		b.catchUp = newCatchUp(newBlockingPool(catchUpStreams), b.pending.Arrived, b.network.Request)
	}
	b.memory, err = log.OpenStore(log.StoreOptions{
		FS: b.cfg.memoryFS, Dir: memoryDir, BootID: b.cfg.bootID, Memory: true, Reap: newLine(b.jobs[wire.StorageMemory]).submit, Logger: b.logger,
	})
	if err != nil {
		return err
	}
	if b.meta, err = openMetadata(b); err != nil {
		return err
	}
	b.introduce(b.View())
	b.done.Go(func() { b.keepInStep(ctx) })
	b.done.Go(func() { b.keepTidy(ctx) })
	b.done.Go(func() { b.keepTime(ctx) })
	b.done.Go(func() { b.keepScrubbing(ctx) })
	b.done.Go(func() { b.keepWatch(ctx) })
	if b.network != nil {
		b.done.Go(func() { b.keepControl(ctx) })
	}
	b.meta.schedule()
	if b.network != nil && b.known() {
		// The others may be down, and partitions need no metadata to elect.
		b.done.Go(func() {
			for again := true; again; again = pause(ctx, joinPause) {
				err := b.register(nil)
				if errors.Is(err, wire.CodeUnsupported) {
					b.end(err)
				}
				if err == nil || errors.Is(err, wire.CodeUnsupported) {
					return
				}
			}
		})
	} else if err := b.register(b.cfg.givenUp); err != nil {
		return err
	}
	settled := make(chan struct{})
	b.whenSettled(b.View().Epoch, func() { close(settled) })
	select {
	case <-settled:
	case <-b.cfg.givenUp:
		return errGivenUp
	}
	return nil
}

// end has the broker stop, because of what it cannot mend itself. It does not block.
func (b *broker) end(cause error) {
	select {
	case b.fatal <- cause:
	default: // it stops already
	}
}

// View implements backend.
func (b *broker) View() *cluster.View { return b.meta.metadata.View() }

// Partition implements backend.
func (b *broker) Partition(destination [16]byte, number uint32) (replica, error) {
	key := replicaKey{destination, number}
	b.mu.RLock()
	r, failed := b.replicas[key], b.failed[key]
	b.mu.RUnlock()
	switch {
	case r != nil:
		return r, nil
	case failed != nil:
		return nil, &wire.Error{Code: wire.CodePartitionFenced, Detail: failed.Error()}
	}
	d, ok := b.View().DestinationByID(destination)
	switch {
	case !ok:
		return nil, &wire.Error{Code: wire.CodeDestinationGone, Detail: "the destination was deleted"}
	case number >= uint32(len(d.Partitions)):
		return nil, &wire.Error{Code: wire.CodeUnknownPartition,
			Detail: fmt.Sprintf("%s %q has partitions 0 to %d", d.Kind, d.Name, len(d.Partitions)-1)}
	}
	return nil, &wire.Error{Code: wire.CodeUnavailable, Detail: "the partition is being opened"}
}

// replicaByID finds a replica by its ID.
func (b *broker) replicaByID(id uint64) *partitionReplica {
	b.mu.RLock()
	defer b.mu.RUnlock()
	return b.byID[id]
}

// transport is what groups send through, nil if there is nobody to send to.
func (b *broker) transport() replication.Transport {
	if b.network == nil {
		return nil
	}
	return b.network
}

// local is the replica of a partition on this node, or nil.
func (b *broker) local(destination uuid.UUID, number uint32) *partitionReplica {
	b.mu.RLock()
	defer b.mu.RUnlock()
	return b.replicas[replicaKey{destination, number}]
}

// each calls f for every replica. f must not block.
func (b *broker) each(f func(*partitionReplica)) {
	b.mu.RLock()
	defer b.mu.RUnlock()
	for _, r := range b.replicas {
		f(r)
	}
}

// errWedged is returned by close when the disk, or a fault of ours, holds up the
// shutdown. The next start recovers what was not closed.
var errWedged = errors.New("shutdown is stuck; what was acknowledged is safe, the next start recovers it")

// close stops everything in order: replicas, metadata, pools, stores. Sessions
// must be gone. It gives up when nothing has stopped for stopPatience: then
// goroutines and the lock of the directory stay until the process ends.
func (b *broker) close() error {
	if b.network != nil {
		b.network.stop()
	}
	b.cancel()
	finished := make(chan error, 1)
	go func() { finished <- b.closeAll() }()
	patience := time.NewTimer(b.cfg.stopPatience)
	defer patience.Stop()
	for {
		select {
		case err := <-finished:
			return err
		case <-b.stops:
			patience.Reset(b.cfg.stopPatience)
		case <-patience.C:
			return fmt.Errorf("%w; nothing has stopped for %s, still open: %s", errWedged, b.cfg.stopPatience, b.stillOpen())
		}
	}
}

// stillOpen names what close waits for, for people.
func (b *broker) stillOpen() string {
	b.mu.RLock()
	defer b.mu.RUnlock()
	for _, r := range b.replicas {
		return fmt.Sprintf("%d partitions, one of them %s", len(b.replicas), r.name)
	}
	return "metadata or the data directory"
}

func (b *broker) closeAll() error {
	b.done.Wait()
	if b.catchUp != nil {
		b.catchUp.stop()
	}
	var replicas []*partitionReplica
	b.each(func(r *partitionReplica) { replicas = append(replicas, r) })
	replicas = append(replicas, b.gone...)
	var mu sync.Mutex
	var errs []error
	b.inParallel(len(replicas), func(i int) {
		r := replicas[i]
		err := r.stop(wire.CodeShuttingDown)
		b.mu.Lock()
		if key := (replicaKey{r.destination, r.number}); b.replicas[key] == r {
			delete(b.replicas, key)
		}
		b.mu.Unlock()
		b.stopped()
		if err != nil {
			mu.Lock()
			errs = append(errs, fmt.Errorf("%s: %w", r.name, err))
			mu.Unlock()
		}
	})
	if b.meta != nil {
		errs = append(errs, b.meta.stop())
	}
	b.stopped()
	for _, reads := range b.reads {
		reads.wait()
	}
	b.shared.pool.wait() // hands syncs back to their owners
	for _, jobs := range b.jobs {
		jobs.wait()
	}
	for _, turns := range b.turns {
		turns.close()
	}
	for _, s := range []*log.Store{b.memory, b.disk} {
		if s != nil {
			errs = append(errs, s.Close())
		}
	}
	return errors.Join(errs...)
}

func (b *broker) stopped() {
	select {
	case b.stops <- struct{}{}:
	default:
	}
}

// inParallel calls f for 0 to n-1, a few at a time, and waits.
func (b *broker) inParallel(n int, f func(i int)) {
	var all sync.WaitGroup
	slots := make(chan struct{}, diskParallel)
	for i := range n {
		slots <- struct{}{}
		all.Go(func() {
			defer func() { <-slots }()
			f(i)
		})
	}
	all.Wait()
}
