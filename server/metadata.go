package server

import (
	"errors"
	"fmt"
	"path"
	"sync/atomic"

	"github.com/lockstepmq/lockstep/cluster"
	"github.com/lockstepmq/lockstep/log"
	"github.com/lockstepmq/lockstep/replication"
	"github.com/lockstepmq/lockstep/wire"
)

// metadataReplica is this node's replica of group 0.
type metadataReplica struct {
	owner
	peering
	broker     *broker
	records    *log.Log
	group      *replication.Group
	metadata   *cluster.Metadata
	campaigned bool        // owner only
	reported   bool        // owner only: the fence was logged
	stalled    atomic.Bool // it lacks space or descriptors to elect or to write
	stall      stall
	stopping   atomic.Bool
	stopped    chan struct{} // when it is closed, the right is that of stop

	// For the durable mark of a group that has come to rest (RULES L2).
	seen   *log.Watermark                // keepTime's, as of the last tick
	marked atomic.Pointer[log.Watermark] // for which it was asked last
	idle   atomic.Bool                   // it is asked for

	leads      atomic.Bool   // this node leads the metadata
	voters     atomic.Int32  // how many replicas vote about the metadata, as of the last tick
	voting     voting        // which
	leader     atomic.Uint32 // node that leads the metadata, 0 if none is known to
	handOver   atomic.Bool   // somebody else should lead
	leaderless int           // ticks without a leader; owner only, as the next
	sinceLook  int           // ticks since the configuration was looked at
	seenView   *cluster.View

	stopOnce bool // owner only
}

const (
	// metaLookTicks lie between two looks at the configuration of group 0.
	metaLookTicks = 5
	// maxLeaderlessTicks is how long a command waits for a leader to be known.
	maxLeaderlessTicks = 50
)

func openMetadata(b *broker) (*metadataReplica, error) {
	m := &metadataReplica{
		owner:    owner{turns: b.turns[wire.StorageDisk], disk: newLine(b.jobs[wire.StorageDisk]), logger: b.logger.With("partition", "metadata")},
		metadata: cluster.NewMetadata(b.metadataChanged),
		stopped:  make(chan struct{}),
		broker:   b,
	}
	if b.network != nil {
		m.inbox = replication.NewInbox(nil)
	} else {
		m.leader.Store(b.identity.NodeID)
	}
	m.owner.turn = m.turn
	m.stall = stall{lines: [2]*line{m.owner.disk}, turn: &m.owner.began}
	m.hold()
	var err error
	m.records, err = log.Open(log.Options{
		Store: b.disk, Dir: path.Join(b.cfg.DataDir, "meta"), PartitionID: b.identity.ClusterID, Incarnation: 1, StrictRecovery: b.cfg.StrictRecovery && b.cfg.PeerListen != "",
		ReplicaID: b.identity.metaID(), Sync: log.SyncQuorum, SegmentBytes: 4 << 20, RecoverFence: true, Executor: &m.owner, Logger: b.logger,
	})
	if err != nil {
		return nil, fmt.Errorf("metadata: %w", err)
	}
	feed, fetch := b.lagging(true, b.identity.metaID(), m.inbox, &m.owner)
	m.group, err = replication.Open(replication.Config{
		ReplicaID: b.identity.metaID(), Voters: []uint64{cluster.FounderMetaID}, Log: m.records, State: m.metadata,
		Meta: true, Node: b.identity.NodeID, Transport: b.transport(), Inbox: m.inbox, Peers: b.metaPeers(m.metadata.View()), Feed: feed, Fetch: fetch,
		Uncertain: m.records.Uncertain(), CheckpointBytes: 1 << 20, Logger: b.logger,
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("metadata: %w", err), m.records.Close(false))
	}
	m.owner.fenced = m.group.Fence
	m.metadata.Bind(m.group, b.identity.metaID())
	m.noteVoters()
	m.campaigned = !votesAlone(m.group, b.identity.metaID())
	m.release(false)
	return m, nil
}

func (m *metadataReplica) turn() (again bool) {
	m.finishJobs()
	m.wakeUp(m.broker)
	ticks := m.takeTicks()
	if ticks > 0 {
		m.group.Tick(ticks)
	}
	m.group.Turn()
	if m.stopping.Load() {
		m.finishStop()
		return false
	}
	if err := m.group.Err(); err != nil {
		m.fence(err)
		return false
	}
	lack := m.group.Stalled()
	if !m.campaigned {
		if lack = m.records.Reserve(wire.FrameHeaderSize, false); lack == nil {
			m.campaigned = true
			m.group.Campaign()
			lack = m.group.Stalled()
		}
	}
	if errors.Is(lack, log.ErrNotReady) {
		lack = nil // a job is at it, its end brings the next turn
	}
	m.stalled.Store(lack != nil)
	if _, leading := m.group.Leading(); lack != nil && !leading {
		m.metadata.Reject(&wire.Error{Code: codeOfLack(lack), Detail: fmt.Sprintf("metadata: %v", lack)})
	}
	m.metadata.Turn()
	if m.inbox != nil {
		m.lookAround(ticks)
	}
	if m.idle.Load() {
		m.records.MarkIdle()
		m.idle.Store(false)
	}
	if err := m.group.Err(); err != nil {
		m.fence(err)
	}
	return false
}

// lookAround is what group 0 does beside its work when it has other members.
func (m *metadataReplica) lookAround(ticks int) {
	leader, _ := m.group.Lead()
	_, leading := m.group.Leading()
	if v := m.metadata.View(); v != m.seenView {
		m.seenView = v
		m.group.SetPeers(m.broker.metaPeers(v))
	}
	m.leader.Store(m.broker.nodeOfMeta(leader))
	if m.leads.Swap(leading) != leading && leading {
		m.logger.Info("this node leads the metadata")
	}
	if ticks > 0 {
		m.noteVoters()
	}
	if m.leaderless += ticks; leader != 0 {
		m.leaderless = 0
	}
	if m.leaderless > maxLeaderlessTicks {
		m.leaderless = 0
		m.metadata.Reject(&wire.Error{Code: wire.CodeUnavailable, Detail: "the metadata has no leader: most of the nodes that vote on it cannot be reached"})
	}
	if leading && m.handOver.Swap(false) && m.voters.Load() > 1 {
		if err := m.group.Transfer(m.successor()); err != nil && m.broker.network != nil {
			m.logger.Info("the metadata's leadership is not handed over", "err", err)
		}
		return
	}
	if m.sinceLook += ticks; leading && m.sinceLook >= metaLookTicks && !m.group.Paused() {
		m.sinceLook = 0
		m.reconfigure()
	}
}

// reconfigure brings the configuration of group 0 to what it should be, one step at a
// time.
func (m *metadataReplica) reconfigure() {
	v, self := m.metadata.View(), m.broker.identity.metaID()
	members := m.group.Members()
	change, handOver := cluster.StepMeta(v, self, &members, m.broker.lively, m.broker.saidGone)
	if handOver {
		if err := m.group.Transfer(m.successor()); err != nil {
			m.logger.Warn("the metadata's leadership is not handed over yet", "err", err)
		}
		return
	}
	if len(change.AddLearners)+len(change.Promote)+len(change.Remove) == 0 {
		return
	}
	switch err := m.group.Reconfigure(change); {
	case err == nil:
		m.logger.Info("the metadata changes its members", "learners", change.AddLearners, "promote", change.Promote, "remove", change.Remove)
	case !errors.Is(err, replication.ErrBusy):
		m.logger.Debug("the metadata cannot change its members yet", "err", err)
	}
}

// successor is a voter on a node that is there, 0 if there is none. Raft itself knows of
// nobody in a group that sleeps.
func (m *metadataReplica) successor() uint64 {
	for _, id := range m.group.Members().Voters {
		if node := m.broker.nodeOfMeta(id); id != m.broker.identity.metaID() && m.broker.network.Alive(node) {
			return id
		}
	}
	return 0
}

// noteVoters notes who votes. Owner only.
func (m *metadataReplica) noteVoters() {
	members := m.group.Members()
	m.voters.Store(countVoters(members))
	m.voting.note(members)
}

// countVoters is how many replicas vote. While they are exchanged both majorities are
// needed, and the smaller group counts.
func countVoters(m replication.Members) int32 {
	if len(m.Outgoing) > 0 {
		return int32(min(len(m.Voters), len(m.Outgoing)))
	}
	return int32(len(m.Voters))
}

// votesAlone reports whether a replica is the only voter of its group.
func votesAlone(g *replication.Group, id uint64) bool {
	members := g.Members()
	return len(members.Voters) == 1 && members.Voters[0] == id && len(members.Outgoing) == 0
}

// tickMark asks for the durable mark once nothing was committed between two ticks:
// without it, rot in the last command would be taken for a torn tail.
func (m *metadataReplica) tickMark() {
	mark := m.records.Watermark()
	if mark != m.seen {
		m.seen = mark
		return
	}
	if m.marked.Swap(mark) != mark {
		m.idle.Store(true)
		m.schedule()
	}
}

func codeOfLack(err error) wire.ErrorCode {
	if errors.Is(err, log.ErrDiskFull) {
		return wire.CodeDiskFull
	}
	return wire.CodeUnavailable
}

// fence answers every command from now on. Partitions of a broker that is alone go on as they
// are. One of several would serve from metadata that grows old, and hear of nothing that is
// created, changed or moved: if its log failed, or holds what only a newer build knows, it ends, so
// that others lead what it leads, and everybody sees it. What else panics here may do so on each
// node: that ends none of them.
func (m *metadataReplica) fence(err error) {
	m.metadata.Close(&wire.Error{Code: wire.CodeUnavailable, Detail: fmt.Sprintf("metadata is fenced: %v", err)})
	if m.reported {
		return
	}
	m.reported = true
	m.logger.Error("metadata fenced; nothing can be created, changed or deleted until its cause is mended and the broker restarts", "err", err)
	m.leads.Store(false)
	m.leader.Store(0)
	switch b := m.broker; {
	case len(m.metadata.View().Nodes) < 2:
	case errors.Is(err, log.ErrTooNew):
		b.end(fmt.Errorf("this node cannot follow the cluster's metadata any more: %w", err))
	case errors.Is(err, log.ErrFenced):
		b.end(fmt.Errorf("the storage of the cluster's metadata failed, and this node cannot follow the others any more; see whether the disk under %s is in order, then start the broker again: %w", b.cfg.DataDir, err))
	}
}

func (m *metadataReplica) finishStop() {
	if !m.stopOnce {
		m.stopOnce = true
		m.metadata.Close(&wire.Error{Code: wire.CodeShuttingDown})
		m.group.Checkpoint()
	}
	select {
	case <-m.stopped:
	default:
		if !m.busy() {
			m.ended = m.stopped
		}
	}
}

// stop ends the replica and closes its log. It blocks on the disk.
func (m *metadataReplica) stop() error {
	m.stopping.Store(true)
	m.schedule()
	<-m.stopped
	defer m.release(true)
	return recovered(m.logger, "closing", func() error { return m.records.Close(m.group.Err() == nil) })
}

// Kick implements kicker.
func (m *metadataReplica) Kick(inline bool) {
	if inline && !m.broker.diskStalled.Load() {
		m.runInline()
	} else {
		m.schedule()
	}
}
