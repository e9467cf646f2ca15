package sim

import (
	"errors"
	"fmt"
	"path"

	"github.com/google/uuid"

	"github.com/lockstepmq/lockstep/cluster"
	"github.com/lockstepmq/lockstep/log"
	"github.com/lockstepmq/lockstep/vfs"
	"github.com/lockstepmq/lockstep/wire"
)

const dataDir = "data"

// node is one life of the broker's process, without sessions and threads.
type node struct {
	sim      *Simulation
	store    *log.Store
	shared   queue // group commits of the store
	meta     *metadata
	replicas []*replica // in the order in which they were opened
	failed   []failedReplica
	dirty    bool // the metadata changed
	// wantsSpace is set while a new replica waits for space.
	wantsSpace bool
}

// failedReplica is one that did not open; it stays down for this life.
type failedReplica struct {
	id  uint64
	err error
}

func directoryOf(destination uuid.UUID, number uint32) string {
	return path.Join(dataDir, "partitions", fmt.Sprintf("%s-%d", destination, number))
}

// openNode starts a process on the data directory.
func openNode(s *Simulation) (*node, error) {
	n := &node{sim: s, dirty: true, shared: queue{sim: s, name: "store"}}
	if names, err := s.disk.List(path.Join(dataDir, "journal")); err == nil && len(names) > 0 {
		s.counts[JournalFound]++
	}
	var err error
	n.store, err = log.OpenStore(log.StoreOptions{
		FS: s.fs, Dir: dataDir, UUID: [16]byte{0xd1, 15: 1}, BootID: fmt.Sprintf("boot-%d", s.machineBoot),
		MinFreeBytes: minFreeBytes, ReserveBytes: reserveBytes, OpenSegments: s.config.openSegments, MappedSegments: s.config.openSegments,
		Executor: &n.shared, JournalBytes: s.config.journalBytes, JournalLogs: s.config.journalLogs,
		Logger: s.trace.logger(),
	})
	if err != nil {
		return nil, err
	}
	if n.meta, err = n.openMetadata(); err != nil {
		return nil, err
	}
	return n, nil
}

// reconcile makes the replicas what the metadata says.
func (n *node) reconcile() {
	n.dirty = false
	view := n.meta.metadata.View()
	wanted := map[uint64]bool{}
	var created []uint64
	for _, d := range view.Destinations {
		for i := range d.Partitions {
			p := &d.Partitions[i]
			mine := &p.Replicas[0]
			wanted[mine.ID] = true
			if r := n.replica(mine.ID); r != nil {
				if r.settings != d.Settings {
					r.alter(d.Settings)
				}
				continue
			}
			if n.hasFailed(mine.ID) {
				continue
			}
			r, err := n.openReplica(d, p, mine)
			if n.sim.faults.full && (errors.Is(err, vfs.ErrNoSpace) && mine.State == cluster.ReplicaNew || errors.Is(err, wire.CodeDiskFull)) {
				n.wantsSpace = true
				continue
			}
			if err != nil {
				n.failed = append(n.failed, failedReplica{mine.ID, err})
				n.sim.trace.add("%s/%d does not open: %v", d.Name, p.Number, err)
				if !n.sim.modelOf(d, p).mayStayDown(err) {
					n.sim.fail("%s/%d does not open: %v", d.Name, p.Number, err)
				}
				continue
			}
			n.replicas = append(n.replicas, r)
			n.sim.trace.add("%s: opened with %d entries, replica %d", r.model.name, r.log.LastIndex(), mine.ID)
			if mine.State == cluster.ReplicaNew {
				created = append(created, mine.ID)
			}
		}
	}
	if len(created) > 0 {
		n.meta.metadata.Submit(cluster.Command{Activate: &cluster.Activate{Replicas: created}}, func(cluster.Result) {})
	}
	n.removeUnwanted(wanted)
}

// removeUnwanted moves what a committed command deleted into quarantine.
func (n *node) removeUnwanted(wanted map[uint64]bool) {
	kept := n.replicas[:0:0]
	var gone []*replica
	for _, r := range n.replicas {
		if wanted[r.replicaID] {
			kept = append(kept, r)
		} else {
			gone = append(gone, r)
		}
	}
	n.replicas = kept
	for _, r := range gone {
		if err := r.stop(wire.CodeDestinationGone); err != nil {
			n.sim.trace.add("%s: closing it after its deletion: %v", r.model.name, err)
		}
		if err := n.store.Quarantine(r.dir); err != nil {
			n.sim.trace.add("%s: quarantine: %v", r.model.name, err)
		} else {
			n.sim.counts[DirectoryQuarantined]++
		}
	}
	if len(gone) > 0 {
		if err := n.store.PurgeQuarantine(); err != nil {
			n.sim.trace.add("purging the quarantine: %v", err)
		}
	}
}

func (n *node) replica(id uint64) *replica {
	for _, r := range n.replicas {
		if r.replicaID == id {
			return r
		}
	}
	return nil
}

func (n *node) hasFailed(id uint64) bool {
	for _, f := range n.failed {
		if f.id == id {
			return true
		}
	}
	return false
}

// running is how many jobs are in the middle of their work.
func (n *node) running() int {
	sum := n.meta.running + n.shared.running
	for _, r := range n.replicas {
		sum += r.running
	}
	return sum
}

// replicaOf finds the replica that a model is about, or nil.
func (n *node) replicaOf(p *partitionModel) *replica {
	for _, r := range n.replicas {
		if r.model == p {
			return r
		}
	}
	return nil
}

// stop ends the process in order.
func (n *node) stop() error {
	for _, r := range n.replicas {
		if err := r.stop(wire.CodeShuttingDown); err != nil {
			return fmt.Errorf("%s: %w", r.model.name, err)
		}
	}
	if err := n.meta.stop(); err != nil {
		return fmt.Errorf("metadata: %w", err)
	}
	n.shared.runAll()
	return n.store.Close()
}

// settle runs jobs and turns until nothing is left to do without the passing of
// time or another request.
func (n *node) settle() {
	for round := 0; ; round++ {
		if round == 10_000 {
			n.sim.fail("the node does not come to rest")
		}
		again := n.dirty
		if n.dirty {
			n.reconcile()
		}
		n.meta.turn()
		again = n.meta.runAll() || again
		for _, r := range n.replicas {
			again = r.turn() || again
			again = r.runAll() || again
		}
		again = n.shared.runAll() || again
		n.shared.finish()
		if !again {
			return
		}
	}
}
