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
	campaigned bool // owner only
	stopping   atomic.Bool
	stopped    chan struct{}
	stopOnce   bool // owner only
}

// metadataReplicaID is the replica of group 0 on a one-node cluster.
const metadataReplicaID = 1

func openMetadata(b *broker) (*metadataReplica, error) {
	m := &metadataReplica{
		owner:    owner{turns: b.turns, disk: b.jobs, logger: b.logger.With("partition", "metadata")},
		metadata: cluster.NewMetadata(b.metadataChanged),
		stopped:  make(chan struct{}),
	}
	m.owner.turn = m.turn
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
	m.metadata.Bind(m.group)
	m.release(false)
	return m, nil
}

func (m *metadataReplica) turn() (again bool) {
	m.finishJobs()
	m.group.Turn()
	if err := m.group.Err(); err != nil {
		m.metadata.Close(&wire.Error{Code: wire.CodeUnavailable, Detail: fmt.Sprintf("metadata is fenced: %v", err)})
	}
	if m.stopping.Load() {
		m.finishStop()
		return false
	}
	if !m.campaigned && m.group.Err() == nil {
		switch err := m.records.Reserve(wire.FrameHeaderSize, false); {
		case err == nil:
			m.campaigned = true
			m.group.Campaign()
		case err == log.ErrNotReady:
		default:
			m.metadata.Close(&wire.Error{Code: wire.CodeDiskFull, Detail: fmt.Sprintf("metadata: %v", err)})
		}
	}
	m.metadata.Turn()
	return false
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
			close(m.stopped)
		}
	}
}

// stop ends the replica and closes its log. It blocks on the disk.
func (m *metadataReplica) stop() error {
	m.stopping.Store(true)
	m.schedule()
	<-m.stopped
	return m.records.Close(m.group.Err() == nil)
}
