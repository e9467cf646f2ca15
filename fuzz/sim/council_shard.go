package sim

import (
	"fmt"
	"slices"

	"github.com/google/uuid"

	"github.com/lockstepmq/lockstep/cluster"
	"github.com/lockstepmq/lockstep/replication"
	"github.com/lockstepmq/lockstep/wire"
)

// shard is the truth about a partition of a council: who its members are, and which of
// them have all of its log. Its consensus is not simulated (TestFleet does that): it has a
// leader if most of its voters live, and a change of its members takes effect as a whole.
type shard struct {
	council     *council
	name        string
	destination uuid.UUID
	number      uint32
	replicas    []uint64 // that the metadata have ever named
	voters      []uint64
	learners    []uint64
	whole       map[uint64]bool // who has all that it needs to vote
	leader      uint64
	index       wire.Index // of its log
	changed     wire.Index // where its members changed last
	reports     []cluster.Reconfigured
	deleted     bool
}

func (sh *shard) String() string { return sh.name }

// shard finds a partition that a view names, and takes notice of its replicas.
func (c *council) shard(d *cluster.Destination, p *cluster.Partition) *shard {
	sh := c.shards[p.ID]
	if sh == nil {
		sh = &shard{
			council: c, name: fmt.Sprintf("%s/%d", d.Name, p.Number), destination: d.ID, number: p.Number,
			voters: slices.Clone(p.Founders), whole: map[uint64]bool{}, index: 1, changed: 1,
		}
		c.shards[p.ID] = sh
		c.order = append(c.order, sh)
	}
	for i, r := range p.Replicas {
		o, known := c.owners[r.ID]
		switch {
		case !known:
			o = owner{partition: p.ID, node: r.Node}
			sh.replicas = append(sh.replicas, r.ID)
		case o.partition != p.ID || o.node != r.Node:
			c.fleet.fail("replica %d of %s on node %d was one of another partition, or on node %d", r.ID, sh, r.Node, o.node)
		}
		o.active = o.active || r.State == cluster.ReplicaActive
		c.owners[r.ID] = o
		if r.State != cluster.ReplicaLost && r.State != cluster.ReplicaLeft && slices.ContainsFunc(p.Replicas[:i], func(other cluster.Replica) bool {
			return other.Node == r.Node && other.State != cluster.ReplicaLost && other.State != cluster.ReplicaLeft
		}) {
			c.fleet.fail("%s has two replicas on node %d: %+v", sh, r.Node, p.Replicas)
		}
	}
	return sh
}

func (sh *shard) member(id uint64) bool {
	return slices.Contains(sh.voters, id) || slices.Contains(sh.learners, id)
}

// lives reports whether a replica takes part now.
func (sh *shard) lives(id uint64) bool {
	s := sh.council.seatOf(sh.council.owners[id].node)
	return s != nil && s.works() && s.dirs[id] && sh.whole[id]
}

func (sh *shard) living(ids []uint64) (n int) {
	for _, id := range ids {
		if sh.lives(id) {
			n++
		}
	}
	return n
}

// step is one thing that the partition's members do.
func (sh *shard) step() {
	c := sh.council
	f := c.fleet
	if sh.deleted {
		return
	}
	if sh.living(sh.voters) <= len(sh.voters)/2 {
		sh.leader = 0
		return
	}
	if !sh.lives(sh.leader) || !slices.Contains(sh.voters, sh.leader) {
		var able []uint64
		for _, id := range sh.voters {
			if sh.lives(id) {
				able = append(able, id)
			}
		}
		sh.leader = able[f.random.IntN(len(able))]
		sh.index++
		return
	}
	if heir := sh.heir(); heir != 0 && f.random.IntN(3) == 0 {
		c.counts[CouncilMadeWay]++
		f.trace.add("%s: the disk of its leader %d is full; %d leads", sh, sh.leader, heir)
		sh.leader = heir
		return
	}
	sh.index += wire.Index(f.random.IntN(3))
	for _, id := range sh.learners {
		if s := c.seatOf(c.owners[id].node); s != nil && s.works() && s.dirs[id] && !s.full && f.random.IntN(3) == 0 {
			sh.whole[id] = true
		}
	}
	s := c.seatOf(c.owners[sh.leader].node)
	d, known := s.view().DestinationByID(sh.destination)
	if !known {
		return
	}
	sh.follow(s, d, &d.Partitions[sh.number])
}

// follow is what the leader does about the view of its node.
func (sh *shard) follow(s *seat, d *cluster.Destination, p *cluster.Partition) {
	c := sh.council
	f := c.fleet
	members := replication.Members{Voters: slices.Clone(sh.voters), Learners: slices.Clone(sh.learners), Index: sh.changed}
	for _, id := range slices.Concat(sh.voters, sh.learners) {
		members.Progress = append(members.Progress, replication.Progress{Replica: id, Active: sh.lives(id), InStep: sh.lives(id)})
	}
	change, transfer := cluster.StepTowards(p, sh.leader, int(d.Settings.Replicas), &members)
	switch {
	case transfer:
		for _, id := range sh.voters {
			if id != sh.leader && sh.lives(id) {
				c.counts[CouncilTransferred]++
				sh.leader = id
				return
			}
		}
	case len(change.AddLearners)+len(change.Promote)+len(change.Remove) > 0:
		sh.change(d, p, &change)
	case !cluster.Reported(p, &members):
		report := cluster.Reconfigured{Destination: sh.destination, Partition: sh.number, Voters: members.Voters, Learners: members.Learners, Index: sh.index}
		sh.reports = append(sh.reports, report)
		s.submit(cluster.Command{Reconfigured: &report}, func(cluster.Result) { c.counts[CouncilReported]++ })
	case len(sh.reports) > 1 && f.random.IntN(2) == 0 && !f.settling:
		// One that was on its way for long arrives.
		late := sh.reports[f.random.IntN(len(sh.reports))]
		if f.options.Mutant == LateReports {
			late.Index = sh.index
		}
		s.submit(cluster.Command{Reconfigured: &late}, nil)
	}
}

// change carries a change of the members out, as replication.Group.Reconfigure would.
func (sh *shard) change(d *cluster.Destination, p *cluster.Partition, change *replication.Membership) {
	c := sh.council
	f := c.fleet
	if len(change.AddLearners) > 0 {
		sh.learners = append(sh.learners, change.AddLearners...)
		c.counts[CouncilLearner]++
		sh.done(change)
		return
	}
	for _, id := range change.Promote {
		if !sh.lives(id) {
			return
		}
	}
	gone := func(id uint64) bool { return slices.Contains(change.Remove, id) }
	before := sh.voters
	after := slices.DeleteFunc(slices.Concat(before, change.Promote), gone)
	if sh.living(after) <= len(after)/2 {
		return
	}
	if want := min(len(before), int(d.Settings.Replicas)); len(after) < want {
		f.fail("%s has voters %d, and changes to %d: it is to have %d; the metadata say %+v", sh, before, after, want, *p)
	}
	var nodes []uint32
	for _, id := range after {
		if node := c.owners[id].node; !sh.whole[id] {
			continue // it is lost, and may be replaced where it was
		} else if slices.Contains(nodes, node) {
			f.fail("%s has two voters on node %d: %d", sh, node, after)
		} else {
			nodes = append(nodes, node)
		}
	}
	c.counts[CouncilPromoted] += int64(len(change.Promote))
	for _, id := range before {
		if gone(id) {
			c.counts[CouncilLeft]++
		}
	}
	sh.voters = after
	sh.learners = slices.DeleteFunc(slices.Clone(sh.learners), func(id uint64) bool { return gone(id) || slices.Contains(change.Promote, id) })
	sh.done(change)
}

func (sh *shard) done(change *replication.Membership) {
	sh.index++
	sh.changed = sh.index
	sh.council.fleet.trace.add("%s: %+v: voters %d, learners %d at %d", sh, *change, sh.voters, sh.learners, sh.index)
}
