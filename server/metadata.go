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

	stopOnce bool // owner only
}

// metadataReplicaID is the replica of group 0 on a one-node cluster.
const metadataReplicaID = 1

func openMetadata(b *broker) (*metadataReplica, error) {
	m := &metadataReplica{
		owner:    owner{turns: b.turns[wire.StorageDisk], disk: newLine(b.jobs[wire.StorageDisk]), logger: b.logger.With("partition", "metadata")},
		metadata: cluster.NewMetadata(b.metadataChanged),
		stopped:  make(chan struct{}),
	}
	m.owner.turn = m.turn
	m.stall = stall{lines: [2]*line{m.owner.disk}, turn: &m.owner.began}
	m.hold()
	var err error
	m.records, err = log.Open(log.Options{
		Store: b.disk, Dir: path.Join(b.cfg.DataDir, "meta"), PartitionID: b.identity.ClusterID, Incarnation: 1,
		ReplicaID: metadataReplicaID, Sync: log.SyncQuorum, SegmentBytes: 4 << 20, RecoverFence: true, Executor: &m.owner, Logger: b.logger,
	})
	if err != nil {
		return nil, fmt.Errorf("metadata: %w", err)
	}
	m.group, err = replication.Open(replication.Config{
		ReplicaID: metadataReplicaID, Voters: []uint64{metadataReplicaID}, Log: m.records, State: m.metadata,
		CheckpointBytes: 1 << 20, Logger: b.logger,
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("metadata: %w", err), m.records.Close(false))
	}
	m.owner.fenced = m.group.Fence
	m.metadata.Bind(m.group, metadataReplicaID)
	m.release(false)
	return m, nil
}

func (m *metadataReplica) turn() (again bool) {
	m.finishJobs()
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
	if m.idle.Load() {
		m.records.MarkIdle()
		m.idle.Store(false)
	}
	if err := m.group.Err(); err != nil {
		m.fence(err)
	}
	return false
}

// tick asks for the durable mark once nothing was committed between two ticks:
// without it, rot in the last command would be taken for a torn tail.
func (m *metadataReplica) tick() {
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

// fence answers every command from now on. Partitions go on as they are.
func (m *metadataReplica) fence(err error) {
	if !m.reported {
		m.reported = true
		m.logger.Error("metadata fenced; nothing can be created, changed or deleted until its cause is mended and the broker restarts", "err", err)
	}
	m.metadata.Close(&wire.Error{Code: wire.CodeUnavailable, Detail: fmt.Sprintf("metadata is fenced: %v", err)})
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
