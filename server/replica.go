package server

import (
	"cmp"
	"errors"
	"strings"
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

// partitionReplica is one partition on this node: it introduces the partition's
// state machine, the Raft group and the log to each other, and carries out the
// owner's turns. Methods that are not marked owner only may be called from any
// goroutine.
type partitionReplica struct {
	owner
	peering
	broker      *broker
	destination uuid.UUID
	name        string // "orders/3", for logs
	number      uint32
	identity    cluster.Partition
	replicaID   uint64
	dir         string
	storage     wire.Storage
	node        uint32
	verified    batchHeaders

	records  *log.Log
	group    *replication.Group
	part     *partition.Partition
	state    *partition.State
	reads    *line
	stall    stall
	metadata *cluster.Metadata
	clock    func() time.Time

	epoch      atomic.Uint32
	status     atomic.Uint32         // wire.PartitionState
	requests   atomic.Uint32         // request… bits for the next turn
	down       atomic.Pointer[error] // why it serves no longer
	confirming atomic.Bool           // the metadata is told that the directory exists
	stalled    atomic.Bool           // it lacks space or descriptors to elect or to write
	start      atomic.Uint64         // first readable offset
	unattended atomic.Bool           // as producers are told
	restless   atomic.Int32          // ticks until it counts as idle, 0 once it does
	moved      atomic.Bool           // the log has grown since retention was asked for last
	retained   uint64                // start when retention was asked for last; the ticker only

	// Owner only.
	campaigned bool
	forgotten  int64 // as producers knows it
	stood      bool  // the disk stood still in the last turn
	slept      int64 // see stoodStill
	covering   int   // checkpoints that may still be written so that trimmed segments can go
	erasures   erasures
	mark       *log.Watermark // as of the last wake
	stopping   bool
	stopAsked  bool           // askStop's
	stopCode   wire.ErrorCode // set before requestStop
	stopped    chan struct{}  // when it is closed, the right is that of finish

	parkedMu sync.Mutex
	parked   map[waiter]struct{}
	// spareParked is an empty map that parked takes turns with. Owner only.
	spareParked map[waiter]struct{}
	settings    atomic.Pointer[wire.Settings]
	groupsOf    atomic.Pointer[cluster.Destination] // whose groups the partition was told of
	letters     letters
	uncovered   uncovered
	expired     atomic.Uint64 // records that retention took before the groups led here were done with them
	confirms    confirms
	asked       map[*[]func(error)]struct{} // taken from confirms, and not answered; owner only

	// Of a replica that is not the only one of its partition, and has others to talk to.
	mending  mending
	intent   atomic.Pointer[cluster.Partition] // as of the newest metadata
	leads    atomic.Bool                       // leads, as of the last turn
	waits    bool                              // for its `active` to be committed (RULES R10); owner only, as the next
	follows  *cluster.Partition                // the intent that was carried out
	sinceFix int                               // ticks since the configuration was compared with the intent
	fixed    bool                              // they are the same
	alone    bool                              // the only voter
	reports  atomic.Bool                       // a report of the configuration is on its way
	transfer atomic.Uint64                     // replica that somebody wants to lead
	handing  handOver
	wanted   wantedLead
	orphaned int // ticks without a leader
	cramped  int // ticks without space for records, see lacksSpace
	loss     loss
	endsMu   sync.Mutex
	ends     []func(*wire.RemainingReplica) // that asked where the log ends, see tellEnd

	diskStalled *atomic.Bool                                // the broker's; nil for a partition in memory
	producers   *producerIDs                                // the broker's
	damage      *damageCounters                             // the broker's
	condemned   atomic.Pointer[error]                       // damage that the owner has to stop for
	verifying   atomic.Bool                                 // a reported frame is being examined
	settled     atomic.Pointer[map[wire.Offset]wire.Offset] // damaged records that are erased in the state, see harm
}

// What a turn may be asked to do besides its inputs.
const (
	requestActivate = 1 << iota // elect a leader
	requestIdleMark
	requestRetain
	requestSync
	requestSettings
	requestCheckpoint
	requestStop
	requestIntent   // the metadata says something else about the partition's replicas
	requestTransfer // hand the leadership over
	requestConfirm  // reads wait for the leader to be confirmed
	requestEnd      // somebody asks where the log ends
	requestDamage   // something is damaged: of what is nobody needs
)

// checkpointsKept is how many checkpoints a log keeps: so many have to be written
// until the older one covers what was trimmed.
const checkpointsKept = 2

// turn is one owner turn: inputs, consensus, proposals, wakes. Owner only.
func (r *partitionReplica) turn() (again bool) {
	r.finishJobs()
	asked := r.requests.Swap(0)
	if r.stopping {
		r.finishStop()
		return false
	}
	r.wakeUp(r.broker)
	if r.broker.stoodStill(&r.slept) {
		r.part.Groups().Resumed()
	}
	ticks := r.takeTicks()
	if ticks > 0 {
		r.group.Tick(ticks)
	}
	r.group.Turn()
	if asked&requestConfirm != 0 {
		r.confirmReads()
	}
	if asked&requestEnd != 0 {
		r.tellEnd()
	}
	if asked&requestDamage != 0 {
		r.noteSettled()
	}
	if asked&requestStop != 0 {
		r.beginStop()
		return false
	}
	err := r.group.Err()
	if cause := r.condemned.Load(); err == nil && cause != nil {
		err = *cause
	}
	if err != nil {
		r.fence(err)
		r.stepAside()
		return false
	}
	if asked&requestCheckpoint != 0 {
		r.group.Checkpoint()
	}
	nowMs := r.clock().UnixMilli()
	if asked&requestSettings != 0 {
		r.applySettings()
		asked |= requestRetain // whoever shortens retention wants the space now
	}
	lack := r.group.Stalled()
	if r.inbox != nil {
		r.takePart(asked, ticks)
	}
	if !r.campaigned && (asked&requestActivate != 0 || r.part.Waiting() > 0) {
		lack = r.activate()
	}
	if errors.Is(lack, log.ErrNotReady) {
		lack = nil // a job is at it, its end brings the next turn
	}
	_, leading := r.group.Leading()
	if lack != nil && !leading {
		r.part.Reject(lack)
	}
	r.stalled.Store(lack != nil)
	stands := leading && r.stall.stalled()
	if r.stood && !stands {
		r.part.Groups().Resumed() // consumers were heard, and nobody listened
	}
	if r.stood = stands; !stands { // else the watch brings a turn when it is over
		again = r.part.Turn(nowMs, time.Duration(monotonic()))
		if due := int64(r.part.Groups().Deadline()); due > 0 {
			r.broker.alarm.set(due, monotonic())
		}
	}
	if err := r.group.Err(); err != nil {
		r.fence(err)
		return false
	}
	if asked&requestRetain != 0 {
		r.covering = checkpointsKept
		r.part.Retain(nowMs)
		r.considerErasing(nowMs)
	}
	if r.covering > 0 && !r.records.CheckpointPending() && (r.records.AwaitsCheckpoint() || r.erasures.wanted) {
		r.covering--
		r.group.Checkpoint()
	}
	r.erase()
	if asked&requestSync != 0 {
		r.records.SyncNow()
	}
	r.observe(asked&requestIdleMark != 0)
	return again
}

// activate elects the only voter once the log has room for the first entry of
// its term, and otherwise returns what it lacks. A partition that was never
// written does this at its first use, so that it has no files before.
func (r *partitionReplica) activate() error {
	if err := r.records.Reserve(wire.FrameHeaderSize, false); err != nil {
		r.requests.Or(requestActivate) // for the next turn, whoever brings it
		return err
	}
	r.campaigned = true
	r.group.Campaign()
	return r.group.Stalled()
}

// observe publishes what other goroutines read and wakes who waits for it.
func (r *partitionReplica) observe(idleMark bool) {
	term, leading := r.group.Leading()
	if leading && r.epoch.Load() != uint32(term) {
		r.epoch.Store(uint32(term))
		r.status.CompareAndSwap(uint32(wire.PartitionStarting), uint32(wire.PartitionActive))
	}
	if r.inbox != nil {
		r.showLead(leading)
		// As of now: what was proposed in this turn has woken the group.
		r.quiet.Store(r.group.Quiet() && (r.fixed || !leading) && r.handing.stage == noHandOver && !r.wanted.open && r.cramped == 0)
	}
	r.start.Store(uint64(r.state.Start()))
	if f := r.state.Forgotten(); f > r.forgotten {
		r.forgotten = f
		r.producers.skip(f)
	}
	if mark := r.records.Watermark(); mark != r.mark {
		r.mark = mark
		r.moved.Store(true)
		r.restless.Store(idleTicks)
		r.wake()
	} else if idleMark && r.part.Idle() {
		r.records.MarkIdle()
	}
}

func (r *partitionReplica) wake() {
	r.parkedMu.Lock()
	if len(r.parked) == 0 {
		r.parkedMu.Unlock()
		return
	}
	woken := r.parked
	r.parked, r.spareParked = r.spareParked, nil
	r.parkedMu.Unlock()
	for w := range woken {
		w.Wake()
	}
	clear(woken)
	r.spareParked = woken
}

// fence stops serving after a storage error or a panic. The log has recorded it. Where
// there are other replicas one of them takes over, and knows what became of that which is
// not answered.
func (r *partitionReplica) fence(err error) {
	if r.status.Swap(uint32(wire.PartitionFenced)) != uint32(wire.PartitionFenced) {
		code := wire.CodePartitionFenced
		if !r.alone {
			code = wire.CodeUnavailable
		}
		r.shut(&wire.Error{Code: code, Detail: err.Error()})
		r.logger.Error("partition fenced; it stays down until its cause is mended and the broker restarts", "err", corruptAdvice(err, r.dir))
		r.part.Close(code)
		r.endConfirms()
		r.wake()
		if r.inbox != nil {
			r.showLead(false)
			r.broker.lost(r.intent.Load(), r.destination, r.replicaID, err)
		}
	}
}

// stepAside asks another replica to lead in the place of one that is shut and whose group goes
// on: what the metadata is told may take its time. Owner only.
func (r *partitionReplica) stepAside() {
	if r.inbox == nil || r.alone || r.group.Err() != nil {
		return
	}
	r.quiet.Store(false)
	if _, leading := r.group.Leading(); leading && !r.group.Paused() {
		if err := r.group.Transfer(0); err != nil {
			r.logger.Debug("no replica can lead in the place of this one yet", "err", err)
		}
	}
}

// shut says why the replica serves no longer; links learn it when they wake.
func (r *partitionReplica) shut(err error) { r.down.CompareAndSwap(nil, &err) }

func (r *partitionReplica) applySettings() {
	s := r.settings.Load()
	r.records.SetSync(syncMode(s.Sync))
	r.part.SetPolicy(retentionOf(s), synced(s))
	r.part.SetThreshold(thresholdOf(s))
	r.part.SetSendDisabled(r.intent.Load().SendDisabled)
}

func (r *partitionReplica) beginStop() {
	r.stopping = true
	r.endConfirms()
	r.shut(&wire.Error{Code: r.stopCode})
	r.part.Close(r.stopCode)
	r.wake()
	if r.inbox != nil {
		r.showLead(false)
	}
	r.group.Checkpoint()
	r.finishStop()
}

func (r *partitionReplica) finishStop() {
	select {
	case <-r.stopped:
		return
	default:
	}
	if !r.busy() {
		r.ended = r.stopped
	}
}

// ask makes the owner do something in its next turn.
func (r *partitionReplica) ask(request uint32) {
	r.requests.Or(request)
	r.schedule()
}

// stop ends the replica: what waits is answered with code, a checkpoint is written, the
// log is synced and closed. It blocks on the disk.
func (r *partitionReplica) stop(code wire.ErrorCode) error {
	r.askStop(code)
	return r.finish()
}

// askStop is the first half of stop: when it returns, no record is taken any more.
// The first code counts. One goroutine at a time.
func (r *partitionReplica) askStop(code wire.ErrorCode) {
	if r.stopAsked {
		return
	}
	r.stopAsked, r.stopCode = true, code
	r.part.Refuse(code)
	r.ask(requestStop)
}

// finish is the second half of stop. It has the owner's right while it closes the
// log: the store's journal may hand a sync back meanwhile, or ask for one.
func (r *partitionReplica) finish() error {
	<-r.stopped
	defer r.release(true)
	defer r.part.Forget()
	return recovered(r.logger, "closing", func() error { return r.records.Close(r.group.Err() == nil) })
}

// Append implements replica. A producer ID that nobody was given would take a place
// in the dedupe table, and the batches of whoever gets it later would be taken for
// duplicates.
func (r *partitionReplica) Append(a partition.Append) error {
	if r.inbox != nil && !r.Leading() {
		if l, ok := r.broker.hints.of(r.intent.Load()); ok && l.node != r.node {
			return wire.NotLeader(l.node, l.Epoch)
		}
	}
	if id := a.Info.ProducerID; id >= 0 && id < wire.LetterProducers && !r.metadata.HandedOut(id) {
		if r.inbox != nil && !r.broker.meta.leads.Load() && r.metadata.HandedOut(id-cluster.MaxNodes*cluster.ProducerIDBlock) {
			return wire.Errorf(wire.CodeRetry, "another node may have handed out producer ID %d, and its news are on their way", id)
		}
		return wire.Errorf(wire.CodeUnknownProducer, "producer ID %d was never handed out; ask for one", id)
	}
	return r.part.Append(a)
}

// Kick implements replica.
func (r *partitionReplica) Kick(inline bool) {
	if inline && (r.diskStalled == nil || !r.diskStalled.Load()) {
		r.runInline()
	} else {
		r.schedule()
	}
}

// Log implements replica.
func (r *partitionReplica) Log() partitionLog { return r.records }

// StartOffset implements replica.
func (r *partitionReplica) StartOffset() wire.Offset { return wire.Offset(r.start.Load()) }

// Err implements replica.
func (r *partitionReplica) Err() error {
	if cause := r.down.Load(); cause != nil {
		return *cause
	}
	return nil
}

// batchHeaders implements replica.
func (r *partitionReplica) batchHeaders() *batchHeaders { return &r.verified }

// Park implements replica.
func (r *partitionReplica) Park(w waiter) bool {
	r.parkedMu.Lock()
	defer r.parkedMu.Unlock()
	if r.records.Watermark().Position != w.position() || r.Err() != nil {
		return false
	}
	if r.parked == nil {
		r.parked = make(map[waiter]struct{})
	}
	r.parked[w] = struct{}{}
	return true
}

// Unpark implements replica.
func (r *partitionReplica) Unpark(w waiter) {
	r.parkedMu.Lock()
	delete(r.parked, w)
	r.parkedMu.Unlock()
}

// Blocking implements replica.
func (r *partitionReplica) Blocking(f func()) {
	r.reads.submit(func() { r.guarded("a read", f) })
}

// Epoch implements replica.
func (r *partitionReplica) Epoch() uint32 { return r.epoch.Load() }

// Leading implements replica. A partition that nobody else has a replica of is led
// from here even before its first election, which comes with its first record.
func (r *partitionReplica) Leading() bool { return r.State() == wire.PartitionActive }

// State implements replica.
func (r *partitionReplica) State() wire.PartitionState {
	return wire.PartitionState(r.status.Load())
}

// info describes the partition to clients.
func (r *partitionReplica) info() wire.PartitionInfo {
	leader := r.node
	if r.inbox != nil && !r.Leading() {
		leader = 0
	}
	var flags wire.PartitionFlags
	if r.part.Full() {
		flags = wire.PartitionFull
	}
	if r.unattended.Load() {
		flags |= wire.PartitionUnattended
	}
	return wire.PartitionInfo{
		Number: r.number, Flags: flags, Leader: leader, Epoch: r.Epoch(), State: r.State(),
		StartOffset: r.StartOffset(), NextOffset: r.records.Watermark().Next,
		Bytes: uint64(r.records.Bytes()), Damaged: uint32(len(r.harm())), Problem: cmp.Or(problem(r.Err()), r.stall.problem(), r.loss.problem()),
	}
}

// maxProblemBytes bounds what metadata tells about one partition.
const maxProblemBytes = 300

// problem is an error for the metadata.
func problem(err error) string {
	if err == nil {
		return ""
	}
	s := err.Error()
	var known *wire.Error
	if errors.As(err, &known) && known.Detail != "" {
		s = known.Detail
	}
	return strings.ToValidUTF8(s[:min(len(s), maxProblemBytes)], "")
}

// stateMachine is the partition as replication sees it.
type stateMachine struct {
	*partition.State
	part *partition.Partition
	// snapshot is told, in the owner's turn, that a checkpoint of the state is taken.
	snapshot func()
}

// Snapshot implements replication.StateMachine.
func (s *stateMachine) Snapshot() func(dst []byte) []byte {
	s.snapshot()
	return s.State.Snapshot()
}

func (s *stateMachine) Apply(e replication.Entry) { s.part.Apply(partition.Entry(e)) }

// synced reports whether quorum acknowledgements mean stable storage.
func synced(s *wire.Settings) bool {
	return s.Sync == wire.SyncQuorumFsync && s.Storage == wire.StorageDisk
}

func syncMode(s wire.SyncMode) log.SyncMode {
	switch s {
	case wire.SyncInterval:
		return log.SyncInterval
	case wire.SyncOS:
		return log.SyncOS
	}
	return log.SyncQuorum
}

func thresholdOf(s *wire.Settings) partition.Threshold {
	return partition.Threshold{Records: s.ThresholdRecords, Bytes: s.ThresholdBytes}
}

func retentionOf(s *wire.Settings) partition.Retention {
	var r partition.Retention
	if s.RetentionTimeMs > 0 {
		r.Age = time.Duration(min(s.RetentionTimeMs, int64(1<<63-1)/int64(time.Millisecond))) * time.Millisecond
	}
	if s.RetentionBytes > 0 {
		r.Bytes = s.RetentionBytes
	}
	return r
}
