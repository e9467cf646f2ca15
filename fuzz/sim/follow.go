package sim

import (
	"errors"
	"math"

	"github.com/lockstepmq/lockstep/cluster"
	"github.com/lockstepmq/lockstep/wire"
)

// follower is a reader that keeps its place over all lives of the node, as a client
// does: an offset, and the incarnation under which it learned it (RULES L5).
type follower struct {
	offset      wire.Offset
	incarnation uint32
	// intact is one past the records that are still what the follower has read.
	intact wire.Offset
}

var errMetadataDown = errors.New("metadata is down")

// reform begins a new incarnation of a partition, as the broker does with a log that
// may have lost records with the machine, and waits until that is committed.
func (n *node) reform(r *replica, d *cluster.Destination, p *cluster.Partition) error {
	if n.sim.options.Mutant == NoReform {
		return nil
	}
	var result *cluster.Result
	n.meta.metadata.Submit(cluster.Command{Reform: &cluster.Reform{
		Destination: d.ID, Partition: p.Number, Replica: r.replicaID, Next: r.log.NextOffset(),
	}}, func(res cluster.Result) { result = &res })
	for rounds := 0; result == nil; rounds++ {
		if rounds == 1000 || n.meta.closed || n.sim.stopped() {
			return errMetadataDown
		}
		n.meta.turn()
		n.meta.runAll()
		n.shared.runAll()
		n.shared.finish()
	}
	return result.Err
}

// follow lets the follower of a partition go on where it stands. It must learn
// that what it has read is lost before it reads something else in its place, and
// is told so only then.
func (s *Simulation) follow() {
	r := s.anyReplica()
	if r == nil || r.closed {
		return
	}
	d, ok := s.node.meta.metadata.View().DestinationByID(r.model.destination)
	if !ok {
		return
	}
	p, t := &d.Partitions[r.model.identity.Number], &r.model.tail
	start, next := r.state.Start(), r.log.Watermark().Next
	if t.incarnation > 0 {
		cut, since := p.LostSince(t.incarnation)
		told := since && t.offset > cut
		if t.offset > t.intact && !(told && cut <= t.intact) {
			s.fail("%s: a reader at offset %d of incarnation %d is not told that records from offset %d on are lost: %v", r.model.name, t.offset, t.incarnation, t.intact, p.Cuts)
		}
		const maxCuts = 16 // with as many, the oldest two were made one
		if told && t.offset <= t.intact && len(p.Cuts) < maxCuts {
			s.fail("%s: a reader at offset %d of incarnation %d is told of a loss from offset %d on, and nothing is lost: %v", r.model.name, t.offset, t.incarnation, cut, p.Cuts)
		}
		if told {
			s.counts[Told]++
			s.trace.add("%s: its reader at offset %d is told that it goes on at offset %d", r.model.name, t.offset, cut)
			t.offset = cut
		}
	}
	t.offset = max(t.offset, start)
	if t.offset < next {
		t.offset += 1 + wire.Offset(s.random.Uint64N(uint64(next-t.offset)))
	}
	t.incarnation, t.intact = p.Incarnation, math.MaxUint64
}
