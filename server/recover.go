package server

import (
	"slices"
	"sync"
	"time"

	"github.com/lockstepmq/lockstep/cluster"
	"github.com/lockstepmq/lockstep/replication"
	"github.com/lockstepmq/lockstep/wire"
)

// The last resort for a partition of which a majority is gone for good: its operator
// chooses a replica that goes on alone (RULES L5). The metadata say so first, with which
// all others are given up; the replica carries it out and reports; then others are made
// from it.

// recoverPatience bounds the wait for what other nodes say of their replicas.
const recoverPatience = 2 * time.Second

// recoverPartition answers PARTITION_RECOVER.
func (b *broker) recoverPartition(m *wire.PartitionRecoverRequest, reply func(wire.Message, error)) {
	d, ok := b.View().Destination(m.Destination)
	switch {
	case !ok:
		reply(nil, wire.Errorf(wire.CodeUnknownDestination, "destination %q not found", m.Destination))
		return
	case m.Partition >= uint32(len(d.Partitions)):
		reply(nil, wire.Errorf(wire.CodeUnknownPartition, "%s %q has partitions 0 to %d", d.Kind, d.Name, len(d.Partitions)-1))
		return
	}
	p := &d.Partitions[m.Partition]
	if len(p.Founders) == 0 || b.network == nil {
		reply(nil, wire.Errorf(wire.CodeRefused, "%s/%d has one replica: there is no majority to be without", d.Name, p.Number))
		return
	}
	if l, known := b.hints.of(p); known && b.reachable(l.node) {
		reply(nil, wire.Errorf(wire.CodeRefused, "node %d leads %s/%d: there is nothing to recover", l.node, d.Name, p.Number))
		return
	}
	b.remains(p, func(found []wire.RemainingReplica) {
		from, err := chooseRemaining(d, p, found, m.Node)
		if err != nil {
			reply(nil, err)
			return
		}
		answer := &wire.PartitionRecovery{Node: from.Node, Next: from.Next, Replicas: found}
		if last, known := b.hints.last(p, found); known {
			answer.HeardNode, answer.HeardEpoch, answer.HeardNext = last.node, last.Epoch, uint64(last.Next)
		}
		if !m.Accept {
			reply(answer, nil)
			return
		}
		b.submit(cluster.Command{Recover: &cluster.Recover{Destination: d.ID, Partition: p.Number, Replica: from.Replica, Incarnation: p.Incarnation}}, func(r cluster.Result) {
			if r.Err != nil {
				reply(nil, r.Err)
				return
			}
			b.logger.Warn("a partition goes on with one replica, as its operator wants; what only the others had is lost",
				"partition", d.Name, "number", p.Number, "node", from.Node, "replica", from.Replica, "next_offset", from.Next)
			reply(answer, nil)
		})
	})
}

// remains asks the nodes of a partition's replicas where their logs end. then is called
// once, on any goroutine.
func (b *broker) remains(p *cluster.Partition, then func([]wire.RemainingReplica)) {
	var found []wire.RemainingReplica
	for _, r := range p.Replicas {
		if r.State != cluster.ReplicaLeft && r.State != cluster.ReplicaLost {
			found = append(found, wire.RemainingReplica{Replica: r.ID, Node: r.Node, Votes: slices.Contains(p.Voters, r.ID)})
		}
	}
	var mu sync.Mutex
	waiting, answer := len(found)+1, slices.Clone(found)
	done := func(i int, said *wire.RemainingReplica) {
		mu.Lock()
		defer mu.Unlock()
		if waiting == 0 {
			return
		}
		if said != nil {
			said.Reached, said.Node, said.Votes = true, found[i].Node, found[i].Votes
			answer[i] = *said
		}
		if waiting--; i < 0 {
			waiting = 0
		}
		if waiting == 0 {
			then(answer)
		}
	}
	for i, r := range found {
		if r.Node == b.identity.NodeID {
			b.endOf(r.Replica, func(end *wire.RemainingReplica) { done(i, end) })
			continue
		}
		b.network.Request(r.Node, wire.PeerEnd, (&wire.PeerFetch{Replica: r.Replica}).Append(nil), func(code wire.ErrorCode, body []byte) {
			var said wire.RemainingReplica
			if code != wire.CodeOK || said.Parse(body) != nil || said.Replica != r.Replica {
				done(i, nil)
				return
			}
			done(i, &said)
		})
	}
	if mu.Lock(); waiting == 1 {
		mu.Unlock()
		done(-1, nil)
		return
	}
	mu.Unlock()
	time.AfterFunc(recoverPatience, func() { done(-1, nil) })
}

// chooseRemaining is the replica that goes on: that of a node, or the one with the longest
// log. It refuses where nothing is to be recovered.
func chooseRemaining(d *cluster.Destination, p *cluster.Partition, found []wire.RemainingReplica, node uint32) (*wire.RemainingReplica, error) {
	var best *wire.RemainingReplica
	voters, reached, uncertain := 0, 0, false
	for i := range found {
		r := &found[i]
		if r.Votes {
			voters++
		}
		if !r.Reached {
			continue
		}
		if r.Votes {
			reached++
			uncertain = uncertain || r.Uncertain
		}
		switch {
		case node != 0 && r.Node != node:
		case best == nil, r.Term > best.Term, r.Term == best.Term && r.Index > best.Index:
			best = r
		}
	}
	voters = max(voters, len(p.Voters)) // those that are lost vote too
	switch {
	case reached == voters:
		return nil, wire.Errorf(wire.CodeRefused, "all %d replicas of %s/%d that vote can be reached: they elect a leader by themselves", voters, d.Name, p.Number)
	case reached > voters/2 && !uncertain:
		return nil, wire.Errorf(wire.CodeRefused, "%d of %d replicas of %s/%d that vote can be reached, a majority: they elect a leader by themselves", reached, voters, d.Name, p.Number)
	case best == nil && node != 0:
		return nil, wire.Errorf(wire.CodeRefused, "node %d holds no replica of %s/%d that answers", node, d.Name, p.Number)
	case best == nil:
		return nil, wire.Errorf(wire.CodeRefused, "no replica of %s/%d can be reached; start a node that holds one", d.Name, p.Number)
	}
	return best, nil
}

// endOf asks a replica of this node where its log ends. reply is called once, with nil if
// the replica is not here.
func (b *broker) endOf(replica uint64, reply func(*wire.RemainingReplica)) {
	r := b.replicaByID(replica)
	if r == nil {
		reply(nil)
		return
	}
	r.endsMu.Lock()
	r.ends = append(r.ends, reply)
	r.endsMu.Unlock()
	r.ask(requestEnd)
}

// tellEnd answers who asked where the log ends. Owner only.
func (r *partitionReplica) tellEnd() {
	r.endsMu.Lock()
	asked := r.ends
	r.ends = nil
	r.endsMu.Unlock()
	last := r.records.LastIndex()
	term, _ := r.records.Term(last)
	for _, reply := range asked {
		reply(&wire.RemainingReplica{
			Replica: r.replicaID, Uncertain: r.group.Uncertain(), Term: uint64(term), Index: uint64(last), Next: uint64(r.records.NextOffset()),
		})
	}
}

// takeOver goes on alone if the metadata say so, one step in a turn. Owner only.
func (r *partitionReplica) takeOver(p *cluster.Partition) {
	_, leading := r.group.Leading()
	if !leading && !r.mayReform(r.group.NextOffset()) {
		return // readers have to learn it before anything is served
	}
	if !r.group.TookOver() {
		if err := r.group.TakeOver(outcastsOf(p)); err != nil {
			r.logger.Warn("the replica cannot go on alone yet", "err", err)
		}
		return
	}
	if r.reports.Swap(true) {
		return
	}
	r.alone = true
	report := &cluster.Reconfigured{Destination: r.destination, Partition: r.number, Voters: []uint64{r.replicaID}, Index: r.group.Applied()}
	r.broker.submit(cluster.Command{Reconfigured: report}, func(result cluster.Result) {
		r.reports.Store(false)
		switch {
		case result.Err != nil:
			r.logger.Warn("metadata does not know yet that the replica goes on alone; it is told again", "err", result.Err)
		case result.Changed:
			r.damage.recovered.Add(1)
			r.logger.Warn("the partition goes on with this replica; others are made from it", "incarnation", result.Destination.Partitions[r.number].Incarnation)
		}
	})
}

// outcastsOf are the replicas that were given up.
func outcastsOf(p *cluster.Partition) (ids []uint64) {
	for _, o := range p.Replicas {
		if p.Recovery.Outcast(o.ID) {
			ids = append(ids, o.ID)
		}
	}
	return ids
}

// disown has nothing count that replicas say which were given up. Owner only.
func disown(g *replication.Group, p *cluster.Partition) {
	if p.Recovery != nil {
		g.Disown(p.Recovery.Outcast)
	}
}
