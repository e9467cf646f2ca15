package server

import (
	"sync/atomic"

	"github.com/lockstepmq/lockstep/cluster"
	"github.com/lockstepmq/lockstep/wire"
)

// When the machines of several replicas have stopped while records were not synced, no
// majority can say what was acknowledged. The replicas wait for each other, the one with
// the longest log goes on, and before it leads the metadata gets a new incarnation of the
// partition, by which readers learn that records from its end on may be gone (RULES L5).

// waitsForAll says what an uncertain partition without a leader waits for.
const waitsForAll = "machines stopped while records were not synced: the partition goes on with the longest log when all of its replicas can be reached"

// loss is what a replica does about records that several replicas may have lost.
type loss struct {
	waits atomic.Bool // the partition has no leader because of it
	known atomic.Bool // the metadata has the new incarnation
	asked atomic.Bool
	next  wire.Offset // that it begins at; owner only
}

func (l *loss) problem() string {
	if l.waits.Load() {
		return waitsForAll
	}
	return ""
}

// mayReform implements replication.Config.Reform. Owner only.
func (r *partitionReplica) mayReform(next wire.Offset) bool {
	l := &r.loss
	if l.known.Load() && l.next == next {
		return true
	}
	if l.asked.Swap(true) {
		return false
	}
	l.known.Store(false)
	l.next = next
	r.broker.submit(cluster.Command{Reform: &cluster.Reform{
		Destination: r.destination, Partition: r.number, Replica: r.replicaID, Next: next, Several: true, Incarnation: r.identity.Incarnation,
	}}, func(result cluster.Result) {
		l.asked.Store(false)
		if result.Err != nil {
			r.logger.Warn("the metadata does not know yet that records may be lost; it is told again", "err", result.Err)
			return
		}
		l.known.Store(true)
		if !result.Changed {
			return
		}
		r.damage.reformed.Add(1)
		r.logger.Warn("the machines of several replicas stopped while records were not synced: the newest may be lost; readers above the end get DATA_LOST",
			"next_offset", next, "incarnation", result.Destination.Partitions[r.number].Incarnation)
	})
	return false
}
