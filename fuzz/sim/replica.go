package sim

import (
	"errors"
	"time"

	"github.com/lockstepmq/lockstep/cluster"
	"github.com/lockstepmq/lockstep/log"
	"github.com/lockstepmq/lockstep/partition"
	"github.com/lockstepmq/lockstep/replication"
	"github.com/lockstepmq/lockstep/wire"
)

// replica is one partition in one life of the node: the wiring of the broker
// without its threads.
type replica struct {
	queue
	model     *partitionModel
	dir       string
	replicaID uint64
	settings  wire.Settings

	log   *log.Log
	group *replication.Group
	part  *partition.Partition
	state *partition.State

	activate   bool // elect a leader
	campaigned bool
	closed     bool           // its partition answers no more
	mark       *log.Watermark // as of the last turn
	unsynced   wire.Index     // readable entries from before the mode became quorum-fsync
}

// machine is the state machine of a replica as its group sees it, with the model
// looking on.
type machine struct {
	*partition.State
	r      *replica
	before func([]byte) []byte // EarlierState: the state before the entry applied last
}

func (m *machine) Snapshot() func(dst []byte) []byte {
	if m.r.sim.options.Mutant == EarlierState && m.before != nil {
		return m.before
	}
	return m.State.Snapshot()
}

func (m *machine) Apply(e replication.Entry) {
	if m.r.sim.options.Mutant == EarlierState {
		saved := m.State.Save(nil)
		m.before = func(dst []byte) []byte { return append(dst, saved...) }
	}
	fresh := m.r.model.apply(e, m.r.synced())
	start := m.Start()
	m.r.part.Apply(partition.Entry(e))
	if fresh && m.Start() > start {
		m.r.model.trimmed(e, start, m.Start())
	}
	if m.r.sim.options.Mutant == BeginAgain {
		if err := m.State.Restore(withoutForgotten(m.State.Save(nil))); err != nil {
			m.r.sim.fail("%s: %v", m.r.model.name, err)
		}
	}
	m.r.model.state(e.Index, m.State.Save(nil))
}

func (m *machine) Restore(state []byte) error {
	m.r.sim.counts[CheckpointRestored]++
	if m.r.sim.options.Mutant == ForgottenProducers {
		state = withoutProducers(state)
	}
	return m.State.Restore(state)
}

// openReplica opens or creates a replica, as the broker does.
func (n *node) openReplica(d *cluster.Destination, p *cluster.Partition, mine *cluster.Replica) (*replica, error) {
	s := n.sim
	model := s.modelOf(d, p)
	r := &replica{
		queue: queue{sim: s, name: model.name}, model: model, dir: directoryOf(d.ID, p.Number), replicaID: mine.ID, settings: d.Settings,
	}
	mode := syncMode(d.Settings.Sync)
	if s.options.Mutant == AckBeforeSync {
		mode = log.SyncOS
	}
	var err error
	r.log, err = log.Open(log.Options{
		Store: n.store, Dir: r.dir, PartitionID: p.ID, Incarnation: p.LogIncarnation(), ReplicaID: mine.ID,
		Existing: mine.State == cluster.ReplicaActive, RecoverFence: true, Sync: mode,
		SegmentBytes: s.config.segmentBytes, TailBytes: s.config.tailBytes, Executor: r, Logger: s.trace.logger(),
	})
	if err != nil {
		return nil, err
	}
	if r.log.Uncertain() {
		s.counts[Uncertain]++
		if err := n.reform(r, d, p); err != nil {
			return nil, errors.Join(err, r.log.Close(false))
		}
		r.log.SetCertain()
	}
	r.model.check(r.log)
	r.state = partition.NewState()
	r.model.policies = append(r.model.policies, retention(&d.Settings))
	r.part = partition.New(partition.Config{Log: s.options.Mutant.mutateLog(r.log), State: r.state, Synced: r.synced(), Retention: retention(&d.Settings)})
	r.group, err = replication.Open(replication.Config{
		ReplicaID: mine.ID, Voters: []uint64{mine.ID}, Log: r.log, State: &machine{State: r.state, r: r},
		CheckpointBytes: s.config.checkpointBytes, Logger: s.trace.logger(),
	})
	if err != nil {
		return nil, err
	}
	r.group.OnRelease(r.part.Recycle)
	r.part.Bind(r.group)
	if c := r.log.Checkpoint(); c != nil && r.group.Applied() == c.Applied {
		r.model.state(c.Applied, r.state.Save(nil))
	}
	if r.synced() {
		r.model.lasts(r.group.Applied()) // readers see all of it from here on
	}
	r.mark = r.log.Watermark()
	r.activate = r.log.LastIndex() > 0
	return r, nil
}

// synced reports whether an acknowledgement means stable storage.
func (r *replica) synced() bool { return r.settings.Sync == wire.SyncQuorumFsync }

// turn is one turn of the owner.
func (r *replica) turn() (again bool) {
	r.finish()
	if r.closed {
		return false
	}
	r.group.Turn()
	if err := r.group.Err(); err != nil {
		r.fenced(err)
		return false
	}
	if !r.campaigned && (r.activate || r.part.Waiting() > 0) {
		r.elect()
	}
	again = r.part.Turn(r.sim.nowMs, time.Duration(r.sim.nowMs)*time.Millisecond)
	if err := r.group.Err(); err != nil {
		r.fenced(err)
		return false
	}
	r.check()
	return again
}

// elect makes the only voter leader once there is room for its first entry.
func (r *replica) elect() {
	switch err := r.log.Reserve(wire.FrameHeaderSize, false); {
	case err == nil:
		r.campaigned = true
		r.group.Campaign()
	case errors.Is(err, log.ErrNotReady):
		r.activate = true
	default:
		r.part.Reject(err)
	}
}

// fenced stops serving after a storage error.
func (r *replica) fenced(err error) {
	r.closed = true
	r.part.Close(wire.CodePartitionFenced)
	r.sim.fenced(&r.model.history, r.log, err)
	r.model.lossy = true
}

// alter follows a change of the destination's settings.
func (r *replica) alter(settings wire.Settings) {
	if !r.synced() {
		r.unsynced = r.model.last()
	}
	r.settings = settings
	if r.sim.options.Mutant != AckBeforeSync {
		r.log.SetSync(syncMode(settings.Sync))
	}
	r.model.policies = append(r.model.policies, retention(&settings))
	r.part.SetPolicy(retention(&settings), r.synced())
}

// check looks at what every turn must leave true.
func (r *replica) check() {
	h := &r.model.history
	mark := r.log.Watermark()
	if mark.Index < r.mark.Index || mark.Next < r.mark.Next || mark.Index > h.last() || mark.Next > h.nextOffset() {
		r.sim.fail("%s: high watermark moved from %+v to %+v; %d entries are committed", h.name, *r.mark, *mark, h.last())
	}
	if r.synced() && mark.Index > max(h.survives, r.unsynced) {
		r.sim.fail("%s: high watermark at entry %d, only %d are durable", h.name, mark.Index, h.survives)
	}
	r.mark = mark
	if start := r.state.Start(); start < r.model.start {
		r.sim.fail("%s: the start went back from offset %d to %d", h.name, r.model.start, start)
	} else {
		r.model.start = start
	}
	if r.log.StartOffset() < r.model.start {
		r.sim.fail("%s: the log is readable from offset %d, its start is %d", h.name, r.log.StartOffset(), r.model.start)
	}
	h.durable(r.log)
}

// stop ends the replica: storage jobs run to their end, the log is closed.
func (r *replica) stop(code wire.ErrorCode) error {
	if !r.closed {
		r.closed = true
		r.part.Close(code)
		r.group.Checkpoint()
	}
	for r.busy() {
		for len(r.submitted) > 0 {
			r.run(r.sim.random.IntN(len(r.submitted)))
		}
		r.turn()
	}
	return r.log.Close(r.group.Err() == nil)
}

func syncMode(m wire.SyncMode) log.SyncMode {
	switch m {
	case wire.SyncInterval:
		return log.SyncInterval
	case wire.SyncOS:
		return log.SyncOS
	}
	return log.SyncQuorum
}

func retention(s *wire.Settings) partition.Retention {
	var r partition.Retention
	if s.RetentionTimeMs > 0 {
		r.Age = time.Duration(s.RetentionTimeMs) * time.Millisecond
	}
	if s.RetentionBytes > 0 {
		r.Bytes = s.RetentionBytes
	}
	return r
}
