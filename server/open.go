package server

import (
	"errors"
	"fmt"
	"path"

	"github.com/google/uuid"

	"github.com/lockstepmq/lockstep/cluster"
	"github.com/lockstepmq/lockstep/log"
	"github.com/lockstepmq/lockstep/partition"
	"github.com/lockstepmq/lockstep/replication"
	"github.com/lockstepmq/lockstep/wire"
)

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
	feed, fetch := b.lagging(false, mine.ID, r.inbox, &r.owner)
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
