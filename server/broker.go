package server

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"

	"github.com/lockstepmq/lockstep/cluster"
	"github.com/lockstepmq/lockstep/log"
	"github.com/lockstepmq/lockstep/partition"
	"github.com/lockstepmq/lockstep/replication"
	"github.com/lockstepmq/lockstep/vfs"
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
	failed   map[replicaKey]error // replicas that did not open
	failedID map[replicaKey]uint64

	gone   []*partitionReplica // retired, not closed yet
	goneAt *cluster.View       // that does not name them
	unsaid atomic.Bool         // the metadata has to be told something again
	// telling are the replicas of which the metadata is being told that they are lost.
	telling sync.Map
	reset   atomic.Bool // the metadata knows that what was in memory is gone

	removed  chan struct{} // closed when the other nodes say that this one is no member
	replaced bool          // they say that another data directory has its ID; set before removed is closed
	began    int64         // monotonic time
	ticked   atomic.Int64  // monotonic time of the last tick, 0 before the first
	alarm    *alarm        // of deadlines between ticks
	dirty    chan struct{} // the metadata changed
	unfit    chan error    // why the cluster does not take this build
	untidy   chan struct{} // there is something to remove
	stops    chan struct{} // close has stopped something
	viewed   func(*cluster.View)
	// oneOpinion is a mutant: this node alone says whether another is gone.
	oneOpinion atomic.Bool
	// unfenced is a mutant: fences are answered, and not committed.
	unfenced atomic.Bool
	// unclosed is a mutant: letters are written in another way without asking what is there.
	unclosed atomic.Bool
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

type settleWaiter struct {
	epoch wire.Index
	then  func()
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
		replicas: make(map[replicaKey]*partitionReplica), byID: make(map[uint64]*partitionReplica), failed: make(map[replicaKey]error), failedID: make(map[replicaKey]uint64),
		began: monotonic(), removed: make(chan struct{}), unfit: make(chan error, 1),
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
	if level := b.View().Level; level > cluster.MaxLevel {
		return fmt.Errorf("the cluster works at feature level %d, this build knows up to %d; upgrade this broker", level, cluster.MaxLevel)
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
					b.unfit <- err
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

// known reports whether the metadata knows this node, as far as it is here.
func (b *broker) known() bool {
	v := b.View()
	node, ok := v.Node(b.identity.NodeID)
	return ok && node.Store == b.identity.StoreID && len(v.Nodes) > 1
}

// errGivenUp is how a start ends that nobody waits for any more.
var errGivenUp = errors.New("this node was told to stop before it was ready")

// register announces this node in the metadata. It ends early when givenUp is closed.
func (b *broker) register(givenUp <-chan struct{}) error {
	c := &cluster.Register{
		ClusterID: b.identity.ClusterID, Node: b.identity.NodeID, Store: b.identity.StoreID, Address: cmp.Or(b.cfg.Advertise, b.cfg.Listen),
		PeerAddress: b.cfg.PeerAdvertise, Rack: b.cfg.Rack, Role: cluster.Role(b.cfg.Role),
	}
	if b.network != nil {
		c.MinLevel, c.MaxLevel = cluster.MinLevel, cluster.MaxLevel
		if b.cfg.HTTP != "off" {
			c.HTTP = b.cfg.HTTP
		}
	}
	result := b.commandUntil(cluster.Command{Register: c}, givenUp)
	for until := time.Now().Add(joinPatience); b.network != nil && errors.Is(result.Err, wire.CodeUnavailable) && time.Now().Before(until); {
		b.logger.Info("waiting for the metadata", "err", result.Err)
		result = b.commandUntil(cluster.Command{Register: c}, givenUp)
	}
	switch {
	case result.Err == nil:
	case errors.Is(result.Err, errGivenUp):
		return result.Err
	case errors.Is(result.Err, wire.CodeDiskFull) && b.registered():
		b.logger.Warn("disk is full, also what is set aside for starting; partitions that lack room to elect only serve reads until there is space",
			"err", result.Err)
	default:
		return fmt.Errorf("register node %d: %w", b.identity.NodeID, result.Err)
	}
	result = b.commandUntil(cluster.Command{ResetMemory: &cluster.ResetMemory{Node: b.identity.NodeID}}, givenUp)
	if result.Err != nil && !(errors.Is(result.Err, wire.CodeDiskFull) && b.registered()) {
		return fmt.Errorf("reset memory partitions: %w", result.Err)
	}
	b.reset.Store(true)
	b.metadataChanged(nil)
	return nil
}

// errRemoved is how a broker ends that is no member of its cluster any more.
func (b *broker) errRemoved() error {
	if b.replaced {
		return wire.Errorf(wire.CodeNotMember, "node %d was replaced: another data directory has its ID in the cluster now, and this one holds nothing that counts; "+
			"stop it for good, or give this machine an empty data directory and let it join under another --node-id", b.identity.NodeID)
	}
	return wire.Errorf(wire.CodeNotMember, "node %d was removed from the cluster: the other nodes do not know it any more, and it holds nothing that counts; "+
		"stop it for good, or let it join again with --join and an empty data directory", b.identity.NodeID)
}

// registered reports whether the metadata would learn nothing that matters from
// the start of this node.
func (b *broker) registered() bool {
	v := b.View()
	node, ok := v.Node(b.identity.NodeID)
	return ok && node.Store == b.identity.StoreID && node.Address == b.cfg.Listen &&
		!slices.ContainsFunc(v.Destinations, func(d *cluster.Destination) bool { return d.Settings.Storage == wire.StorageMemory })
}

// View implements backend.
func (b *broker) View() *cluster.View { return b.meta.metadata.View() }

// whenSettled calls then once the replicas are in step with the metadata of epoch.
func (b *broker) whenSettled(epoch wire.Index, then func()) {
	b.mu.Lock()
	if b.settled < epoch {
		b.settling = append(b.settling, settleWaiter{epoch, then})
		b.mu.Unlock()
		return
	}
	b.mu.Unlock()
	then()
}

// metadataChanged is called in the metadata owner's turn.
func (b *broker) metadataChanged(*cluster.View) {
	select {
	case b.dirty <- struct{}{}:
	default:
	}
}

// keepInStep opens, changes and removes replicas as the metadata says.
func (b *broker) keepInStep(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-b.dirty:
		}
		v := b.View()
		b.introduce(v)
		b.reconcile(v)
		b.mu.Lock()
		b.settled = v.Epoch
		var now []settleWaiter
		rest := b.settling[:0]
		for _, w := range b.settling {
			if w.epoch <= v.Epoch {
				now = append(now, w)
			} else {
				rest = append(rest, w)
			}
		}
		b.settling = rest
		b.mu.Unlock()
		for _, w := range now {
			w.then()
		}
		b.mu.RLock()
		viewed := b.viewed
		b.mu.RUnlock()
		if viewed != nil {
			viewed(v)
		}
	}
}

// retryFailed opens partitions again that did not open for want of space or
// descriptors: that passes without anybody's doing. It tells the metadata again
// what it refused to hear.
func (b *broker) retryFailed() {
	b.mu.Lock()
	retry := b.unsaid.Swap(false)
	for key, err := range b.failed {
		if errors.Is(err, vfs.ErrNoSpace) || errors.Is(err, log.ErrDiskFull) || errors.Is(err, log.ErrResources) {
			delete(b.failed, key)
			retry = true
		}
	}
	b.mu.Unlock()
	if retry {
		b.metadataChanged(nil)
	}
}

// onView names who hears of every metadata change that this node follows, and of
// partitions that have another leader.
func (b *broker) onView(f func(*cluster.View), leadersMoved func()) {
	b.mu.Lock()
	b.viewed, b.leadersMoved = f, leadersMoved
	b.mu.Unlock()
}

// reconcile makes the replicas of this node what v says. Only keepInStep calls it.
// What goes is stopped and removed in the background, by keepTidy.
func (b *broker) reconcile(v *cluster.View) {
	type missing struct {
		destination *cluster.Destination
		partition   *cluster.Partition
		replica     *cluster.Replica
	}
	var open []missing
	var created []*partitionReplica // the metadata does not know yet that they exist
	if me, ok := v.Node(b.identity.NodeID); !ok || me.Store != b.identity.StoreID {
		return // a picture from before this directory became the node's
	}
	wanted := make(map[replicaKey]uint64)
	for _, d := range v.Destinations {
		for i := range d.Partitions {
			p := &d.Partitions[i]
			mine := p.On(b.identity.NodeID)
			if mine == nil || d.Settings.Storage == wire.StorageMemory && len(p.Founders) > 0 && !b.reset.Load() {
				continue // of what was in memory the IDs change first
			}
			key := replicaKey{d.ID, p.Number}
			wanted[key] = mine.ID
			b.mu.RLock()
			r, failed := b.replicas[key], b.failed[key]
			if b.failedID[key] != mine.ID {
				failed = nil // that was another replica
			}
			b.mu.RUnlock()
			switch {
			case r != nil && r.replicaID == mine.ID:
				old, settings := r.intent.Load(), d.Settings
				r.follow(p)
				if *r.settings.Load() != settings || old.SendDisabled != p.SendDisabled {
					r.settings.Store(&settings)
					r.ask(requestSettings)
				}
				r.intend(v.Epoch, d)
				if mine.State == cluster.ReplicaNew {
					created = append(created, r)
				}
				if r.inbox != nil && r.State() == wire.PartitionFenced {
					b.lost(p, d.ID, mine.ID, r.Err())
				}
			case failed == nil:
				open = append(open, missing{d, p, mine})
			case givesUp(failed):
				b.lost(p, d.ID, mine.ID, failed)
			}
		}
	}
	b.retire(wanted, v)
	opened := make([]*partitionReplica, len(open))
	b.inParallel(len(open), func(i int) {
		d, p, mine := open[i].destination, open[i].partition, open[i].replica
		key := replicaKey{d.ID, p.Number}
		var r *partitionReplica
		err := recovered(b.logger, "opening", func() (err error) {
			r, err = b.openReplica(d, p, mine)
			return err
		})
		b.mu.Lock()
		defer b.mu.Unlock()
		if err != nil {
			b.failed[key], b.failedID[key] = err, mine.ID
			if givesUp(err) {
				b.lost(p, d.ID, mine.ID, err)
			}
			b.logger.Error("partition does not open; it stays down until its cause is mended and the broker restarts",
				"partition", fmt.Sprintf("%s/%d", d.Name, p.Number), "err", corruptAdvice(err, b.partitionDir(d.Settings.Storage, d.ID, p.Number)))
			return
		}
		r.intend(v.Epoch, d)
		b.replicas[key], b.byID[mine.ID] = r, r
		delete(b.failed, key)
		if mine.State == cluster.ReplicaNew {
			opened[i] = r
		}
	})
	b.confirm(append(created, opened...))
}

// givesUp reports whether a replica that did not open never will.
func givesUp(err error) bool {
	return errors.Is(err, log.ErrCorrupt) || errors.Is(err, log.ErrFenced) || errors.Is(err, log.ErrMissing)
}

// confirm says in the metadata that the directories of new replicas exist. What
// cannot be said now is said by a later reconcile, see retryFailed.
func (b *broker) confirm(replicas []*partitionReplica) {
	var said []*partitionReplica
	c := &cluster.Activate{}
	for _, r := range replicas {
		if r != nil && (r.storage == wire.StorageDisk || len(r.intent.Load().Founders) > 0) && !r.confirming.Swap(true) {
			said = append(said, r)
			c.Replicas = append(c.Replicas, r.replicaID)
		}
	}
	if len(said) == 0 {
		return
	}
	b.submit(cluster.Command{Activate: c}, func(result cluster.Result) {
		if result.Err == nil {
			return
		}
		for _, r := range said {
			r.confirming.Store(false)
		}
		b.unsaid.Store(true)
		b.logger.Warn("metadata does not know yet that partitions were created; it is told again", "partitions", len(said), "err", result.Err)
	})
}

// retire takes replicas that the metadata no longer names out of service. From
// here on they take no records; keepTidy does what takes long.
func (b *broker) retire(wanted map[replicaKey]uint64, v *cluster.View) {
	b.mu.Lock()
	var gone []*partitionReplica
	for key, r := range b.replicas {
		if id, ok := wanted[key]; !ok || id != r.replicaID {
			gone = append(gone, r)
			delete(b.replicas, key)
			delete(b.byID, r.replicaID)
		}
	}
	for key := range b.failed {
		if _, ok := wanted[key]; !ok {
			delete(b.failed, key)
		}
	}
	b.gone = append(b.gone, gone...)
	b.goneAt = v
	b.mu.Unlock()
	for _, r := range gone {
		r.askStop(wire.CodeDestinationGone)
	}
	select {
	case b.untidy <- struct{}{}:
	default:
	}
}

// keepTidy closes retired replicas and removes the directories of deleted
// destinations, one delete after the other, a few partitions of it at a time: a
// large one holds up nothing but the deletes behind it.
func (b *broker) keepTidy(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-b.untidy:
		}
		b.mu.Lock()
		gone, v := b.gone, b.goneAt
		b.gone = nil
		b.mu.Unlock()
		b.inParallel(len(gone), func(i int) { b.remove(gone[i]) })
		if err := b.memory.PurgeQuarantine(); err != nil {
			b.logger.Error("the memory of removed partitions stays", "err", err)
		}
		b.bury(v)
		b.buryLeft(v)
	}
}

// buryLeft removes the directories of replicas that have left their partitions, which
// the partition's leader and the metadata have decided, and says so.
func (b *broker) buryLeft(v *cluster.View) {
	c := &cluster.Bury{Node: b.identity.NodeID}
	for _, d := range v.Destinations {
		for i := range d.Partitions {
			p := &d.Partitions[i]
			for _, left := range p.Replicas {
				if left.Node != b.identity.NodeID || left.State != cluster.ReplicaLeft {
					continue
				}
				if err := b.removeReplica(d, p, left.ID); err != nil {
					b.logger.Error("the directory of a replica that left stays until the next start", "partition", fmt.Sprintf("%s/%d", d.Name, p.Number), "err", err)
					continue
				}
				c.Replicas = append(c.Replicas, left.ID)
			}
		}
	}
	if len(c.Replicas) == 0 {
		return
	}
	b.submit(cluster.Command{Bury: c}, func(result cluster.Result) {
		if result.Err != nil {
			b.unsaid.Store(true)
			b.logger.Warn("metadata does not know yet that replicas are removed; it is told again", "replicas", len(c.Replicas), "err", result.Err)
		}
	})
}

// removeReplica removes the directory of one replica, if it is there and its own.
func (b *broker) removeReplica(d *cluster.Destination, p *cluster.Partition, replica uint64) error {
	if d.Settings.Storage == wire.StorageMemory {
		return nil // it went with the replica
	}
	dir := b.partitionDir(wire.StorageDisk, d.ID, p.Number)
	owner, err := log.ReplicaIn(b.cfg.fs, dir)
	if errors.Is(err, fs.ErrNotExist) || err == nil && owner != replica {
		return nil
	}
	if err != nil {
		b.logger.Warn("whose directory it is cannot be read; the metadata says that it is to go", "dir", dir, "err", err)
		if p.On(b.identity.NodeID) != nil {
			return nil // another replica lives there, or will
		}
	}
	if err := b.disk.Quarantine(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return b.disk.PurgeQuarantine()
}

// remove closes a retired replica. Its directory stays, bury removes it; memory has
// no directory that anybody would find again, so it is given back here.
func (b *broker) remove(r *partitionReplica) {
	if err := r.finish(); err != nil {
		b.logger.Warn("closing a removed partition", "partition", r.name, "err", err)
	}
	if r.storage == wire.StorageMemory {
		if err := b.memory.Quarantine(r.dir); err != nil {
			b.logger.Error("a removed partition's memory stays", "partition", r.name, "err", err)
		}
	}
	b.stopped()
}

// bury removes the directories of destinations that were deleted by a committed
// command and says so in the metadata. Until then they are remembered there, so
// that a crash in between leaves nothing behind. The replicas that v does not name
// are closed.
func (b *broker) bury(v *cluster.View) {
	for _, d := range v.Deleted {
		if !slices.Contains(d.Nodes, b.identity.NodeID) {
			continue
		}
		if err := b.removeDirectories(d); err != nil {
			b.logger.Error("directories of a removed destination stay until the next start", "destination", d.ID, "err", err)
			continue
		}
		b.submit(cluster.Command{Bury: &cluster.Bury{ID: d.ID, Node: b.identity.NodeID}}, func(result cluster.Result) {
			if result.Err != nil {
				b.unsaid.Store(true)
				b.logger.Warn("metadata does not know yet that directories are removed; it is told again", "destination", d.ID, "err", result.Err)
			}
		})
	}
}

// removeDirectories moves them into quarantine first: what is half removed is
// never taken for a partition.
func (b *broker) removeDirectories(d *cluster.Deleted) error {
	errs := make([]error, d.Partitions)
	b.inParallel(len(errs), func(i int) {
		dir := b.partitionDir(wire.StorageDisk, d.ID, uint32(i))
		_, err := b.cfg.fs.Stat(dir)
		if err == nil {
			err = b.disk.Quarantine(dir)
		}
		if !errors.Is(err, fs.ErrNotExist) {
			errs[i] = err
		}
	})
	return errors.Join(append(errs, b.disk.PurgeQuarantine())...)
}

// partitionDir is where the replica of a partition on this node lies.
func (b *broker) partitionDir(s wire.Storage, destination uuid.UUID, number uint32) string {
	return path.Join(b.dirOf(s), "partitions", fmt.Sprintf("%s-%d", destination, number))
}

func (b *broker) storeOf(s wire.Storage) *log.Store {
	if s == wire.StorageMemory {
		return b.memory
	}
	return b.disk
}

func (b *broker) dirOf(s wire.Storage) string {
	if s == wire.StorageMemory {
		return memoryDir
	}
	return b.cfg.DataDir
}

// memoryDir is the name under which memory partitions live in their file system.
const memoryDir = "memory"

// openReplica opens or creates one replica. It blocks on the disk.
func (b *broker) openReplica(d *cluster.Destination, p *cluster.Partition, mine *cluster.Replica) (*partitionReplica, error) {
	settings := d.Settings
	store := b.storeOf(settings.Storage)
	dir := b.partitionDir(settings.Storage, d.ID, p.Number)
	if settings.Storage == wire.StorageMemory {
		dir = fmt.Sprintf("%s-%d", dir, mine.ID)
	}
	r := &partitionReplica{
		owner: owner{
			turns: b.turns[settings.Storage], disk: newLine(b.jobs[settings.Storage]),
			logger: b.logger.With("partition", fmt.Sprintf("%s/%d", d.Name, p.Number)),
		},
		destination: d.ID, name: fmt.Sprintf("%s/%d", d.Name, p.Number), number: p.Number,
		identity: *p, replicaID: mine.ID, dir: dir, storage: settings.Storage, node: b.identity.NodeID, broker: b,
		reads: newLine(b.reads[settings.Storage]), clock: b.clock, metadata: b.meta.metadata,
		stopped: make(chan struct{}), damage: &b.damage, producers: &b.producers,
	}
	r.owner.turn = r.turn
	r.stall = stall{lines: [2]*line{r.owner.disk, r.reads}, turn: &r.owner.began}
	if settings.Storage == wire.StorageDisk {
		r.diskStalled = &b.diskStalled
	}
	r.hold()
	r.settings.Store(&settings)
	r.intent.Store(p)
	options := log.Options{
		Store: store, Dir: dir, PartitionID: p.ID, Incarnation: p.LogIncarnation(), ReplicaID: mine.ID,
		Existing: mine.State != cluster.ReplicaNew, RecoverFence: len(p.Replicas) == 1,
		StrictRecovery: b.cfg.StrictRecovery && len(p.Replicas) > 1,
		Sync:           syncMode(settings.Sync), SegmentBytes: int64(settings.SegmentBytes), Executor: &r.owner, Logger: r.logger,
	}
	var err error
	r.records, err = log.Open(options)
	if errors.Is(err, log.ErrIdentity) && mine.State == cluster.ReplicaNew && settings.Storage == wire.StorageDisk && len(p.Replicas) > 1 {
		// An earlier replica of the partition was lost here, and this one takes its place.
		if err = store.Quarantine(dir); err == nil {
			r.records, err = log.Open(options)
		}
	}
	if err != nil {
		return nil, err
	}
	single := len(p.Replicas) == 1
	if r.records.Uncertain() && single {
		if err := b.reform(r); err != nil {
			return nil, errors.Join(err, r.records.Close(false))
		}
	}
	if hard := r.records.HardState(); hard.Term < p.FirstTerm {
		r.records.SetHardState(log.HardState{Term: p.FirstTerm}, true)
	}
	r.state = partition.NewState()
	r.part = partition.New(partition.Config{
		Log: r.records, State: r.state, Retention: retentionOf(&settings),
		Fenced: b.meta.metadata.Fenced, Groups: groupEffects{r},
		Synced: synced(&settings), Memory: b.pending, Threshold: thresholdOf(&settings), SendDisabled: p.SendDisabled, Queue: d.Kind == wire.Queue,
	})
	if b.network != nil {
		r.inbox = replication.NewInbox(r.part.Buffers())
		r.waits = !single && mine.State == cluster.ReplicaNew && p.FoundedBy(mine.ID)
	}
	feed, fetch := b.lagging(false, mine.ID, r.inbox, r.schedule)
	r.group, err = replication.Open(replication.Config{
		ReplicaID: mine.ID, Voters: founders(p), Log: r.records,
		Peers: peersOf(p, mine.ID), Node: b.identity.NodeID, Transport: b.transport(), Inbox: r.inbox,
		Feed: feed, Fetch: fetch, Uncertain: r.records.Uncertain() && !single, Waiting: r.waits,
		Reform: r.mayReform,
		State:  &stateMachine{r.state, r.part, r.noteErasable}, CheckpointBytes: b.cfg.CheckpointBytes, Logger: r.logger,
	})
	if err != nil {
		return nil, errors.Join(err, r.records.Close(false))
	}
	disown(r.group, p)
	r.owner.fenced = r.group.Fence
	r.group.OnRelease(r.part.Recycle)
	bind := func() {
		r.part.Bind(r.group)
		r.start.Store(uint64(r.state.Start()))
	}
	bind()
	r.group.OnRestore(bind) // the start is in the state, the log learns it here
	r.alone = votesAlone(r.group, mine.ID)
	r.campaigned = !r.alone
	if !r.alone {
		r.ask(requestIntent)
	} else if r.records.LastIndex() > 0 {
		r.ask(requestActivate)
	} else {
		r.status.Store(uint32(wire.PartitionActive)) // elected at the first record
	}
	r.release(false)
	return r, nil
}

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
