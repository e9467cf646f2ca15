package sim

import (
	"errors"
	"path"

	"github.com/google/uuid"

	"github.com/lockstepmq/lockstep/cluster"
	"github.com/lockstepmq/lockstep/log"
	"github.com/lockstepmq/lockstep/replication"
	"github.com/lockstepmq/lockstep/wire"
)

// metadata is the replica of group 0 in one life of the node.
type metadata struct {
	queue
	log        *log.Log
	group      *replication.Group
	metadata   *cluster.Metadata
	campaigned bool
	closed     bool
}

const metadataReplicaID = 1

// metadataMachine is group 0's state machine with the model looking on.
type metadataMachine struct {
	*cluster.Metadata
	sim *Simulation
}

func (m *metadataMachine) Apply(e replication.Entry) {
	_, fresh := m.sim.meta.learn(e)
	m.sim.meta.lasts(e.Index)
	m.Metadata.Apply(e)
	m.sim.meta.state(e.Index, m.Save(nil))
	if fresh {
		m.sim.trace.add("metadata: entry %d of term %d: %s", e.Index, e.Term, e.Body)
		m.sim.destinationsAre(m.View())
	}
}

func (n *node) openMetadata() (*metadata, error) {
	s := n.sim
	m := &metadata{queue: queue{sim: s, name: "metadata"}, metadata: cluster.NewMetadata(func(*cluster.View) { n.dirty = true })}
	var err error
	m.log, err = log.Open(log.Options{
		Store: n.store, Dir: path.Join(dataDir, "meta"), PartitionID: clusterID, Incarnation: 1,
		ReplicaID: metadataReplicaID, SegmentBytes: s.config.segmentBytes, RecoverFence: true, Executor: m, Logger: s.trace.logger(),
	})
	if err != nil {
		return nil, err
	}
	s.meta.reopened(m.log, false)
	m.group, err = replication.Open(replication.Config{
		ReplicaID: metadataReplicaID, Voters: []uint64{metadataReplicaID}, Log: m.log,
		State: &metadataMachine{m.metadata, s}, CheckpointBytes: s.config.checkpointBytes, Logger: s.trace.logger(),
	})
	if err != nil {
		return nil, err
	}
	m.metadata.Bind(m.group, 1)
	return m, nil
}

// turn is one turn of group 0's owner.
func (m *metadata) turn() {
	m.finish()
	if m.closed {
		return
	}
	m.group.Turn()
	if err := m.group.Err(); err != nil {
		m.closed = true
		m.metadata.Close(&wire.Error{Code: wire.CodeUnavailable, Detail: err.Error()})
		m.sim.fenced(&m.sim.meta, m.log, err)
		return
	}
	if !m.campaigned {
		switch err := m.log.Reserve(wire.FrameHeaderSize, false); {
		case err == nil:
			m.campaigned = true
			m.group.Campaign()
		case errors.Is(err, log.ErrNotReady):
		default:
			m.sim.trace.add("metadata: no room to elect a leader: %v", err)
		}
	}
	m.metadata.Turn()
	m.sim.meta.durable(m.log)
}

// stop ends group 0 and closes its log.
func (m *metadata) stop() error {
	if !m.closed {
		m.closed = true
		m.metadata.Close(&wire.Error{Code: wire.CodeShuttingDown})
		m.group.Checkpoint()
	}
	for m.busy() {
		for len(m.submitted) > 0 {
			m.run(m.sim.random.IntN(len(m.submitted)))
		}
		m.turn()
	}
	return m.log.Close(m.group.Err() == nil)
}

// clusterID and nodeID are the identity of the one node.
var clusterID = uuid.UUID{0: 0xc1, 15: 1}

const nodeID = 1
