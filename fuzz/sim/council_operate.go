package sim

import (
	"bytes"
	"fmt"
	"slices"

	"github.com/lockstepmq/lockstep/cluster"
	"github.com/lockstepmq/lockstep/wire"
)

// Limits of what operators of a council do, in counts.
const (
	councilDestinations = 4
	councilReplicas     = 3
)

// operate is one thing that somebody asks a node for.
func (c *council) operate(s *seat) {
	f := c.fleet
	if !s.works() {
		return
	}
	v := s.view()
	if len(v.Nodes) < 2 || v.Level < cluster.MaxLevel {
		return // its controller raises the level at once
	}
	node := v.Nodes[f.random.IntN(len(v.Nodes))]
	if n := f.random.IntN(100); n < 30 || len(v.Destinations) == 0 {
		c.create(s, v)
		return
	} else if n < 40 {
		state := []cluster.NodeState{cluster.NodeUp, cluster.NodeUp, cluster.NodeDraining, cluster.NodeLeaving}[f.random.IntN(4)]
		s.submit(cluster.Command{SetNode: &cluster.SetNode{Node: node.ID, State: state}}, nil)
		return
	}
	d := v.Destinations[f.random.IntN(len(v.Destinations))]
	p := &d.Partitions[f.random.IntN(len(d.Partitions))]
	r := p.Replicas[f.random.IntN(len(p.Replicas))]
	switch f.random.IntN(12) {
	case 0:
		s.submit(cluster.Command{Delete: &cluster.Delete{Name: d.Name, Kind: d.Kind, ID: d.ID}}, func(cluster.Result) { c.counts[CouncilDeleted]++ })
	case 1:
		s.submit(cluster.Command{SetPlacement: &cluster.SetPlacement{Destination: d.ID, Partition: p.Number, Placement: wire.Placement{
			Mask: wire.MaskPreferred, Preferred: node.ID,
		}}}, nil)
	case 2: // call a move off
		var joining []uint64
		for _, r := range p.Replicas {
			if r.State == cluster.ReplicaJoining || r.State == cluster.ReplicaNew && !p.FoundedBy(r.ID) {
				joining = append(joining, r.ID)
			}
		}
		if len(joining) > 0 {
			s.submit(cluster.Command{Move: &cluster.Move{Destination: d.ID, Partition: p.Number, Remove: joining}}, nil)
		}
	default:
		if r.State != cluster.ReplicaActive || s.lacksSpace(node.ID) {
			return
		}
		s.submit(cluster.Command{Move: &cluster.Move{Destination: d.ID, Partition: p.Number, Add: []uint32{node.ID}, Remove: []uint64{r.ID}}}, nil)
	}
}

func (c *council) create(s *seat, v *cluster.View) {
	f := c.fleet
	if len(v.Destinations) >= councilDestinations || c.rounds-c.asked < answerRounds {
		return // enough, or more than the view shows
	}
	c.asked = c.rounds
	replicas := uint8(councilReplicas)
	if c.frugal {
		replicas = uint8(1 + 2*f.random.IntN(2))
	}
	create := &cluster.Create{
		Name: fmt.Sprintf("d%d", c.made), Kind: wire.Queue, ID: c.identity(),
		Settings: wire.Settings{Partitions: 1 + uint32(f.random.IntN(3)), Replicas: replicas, RetentionBytes: wire.Unlimited, RetentionTimeMs: wire.Unlimited},
	}
	for range create.Settings.Partitions {
		create.PartitionIDs = append(create.PartitionIDs, c.identity())
	}
	health := s.health()
	placement, err := cluster.Spread(v, create.PartitionIDs, int(create.Settings.Replicas), func(n cluster.Node) string {
		switch {
		case !health.Alive(n.ID):
			return "does not answer"
		case health.LacksSpace(n.ID):
			return "has no disk space left for records"
		}
		return ""
	})
	if err != nil {
		return // there are not enough nodes
	}
	for i, nodes := range placement {
		if j := slices.IndexFunc(nodes, s.lacksSpace); j >= 0 {
			f.fail("%s gives node %d a replica of %s/%d, whose disk is full", s, nodes[j], create.Name, i)
		}
	}
	create.Placement = placement
	s.submit(cluster.Command{Create: create}, func(cluster.Result) { c.counts[CouncilCreated]++ })
}

// restRounds is for how long nobody must have anything to do: longer than the controller
// waits after a change, and for a transfer.
const restRounds = 60

// round lets everybody do what there is to do, and counts for how long there was nothing.
func (c *council) round() {
	c.rounds++
	planned := 0
	c.plan = nil
	for _, s := range c.seats {
		for _, n := range s.view().Nodes {
			if n.State == cluster.NodeDraining { // else there may be no room for what others leave
				s.submit(cluster.Command{SetNode: &cluster.SetNode{Node: n.ID, State: cluster.NodeUp}}, nil)
			}
		}
		s.chores()
		planned += s.govern()
		if c.fleet.options.Voters && s.swap() {
			planned++
		}
	}
	for _, sh := range c.order {
		for range 3 {
			sh.step()
		}
	}
	c.calm++
	if planned > 0 || !c.agreed() {
		c.calm = 0
	}
}

// rest reports whether the cluster has come to its end.
func (c *council) rest() bool { return c.calm >= restRounds }

// agreed reports whether the partitions are what the metadata say, as every node sees
// them.
func (c *council) agreed() bool {
	switch {
	case c.fleet.options.Voters:
		return c.balanced()
	case len(c.cells) > 0:
		return c.standing()
	}
	for _, s := range c.seats {
		if s.since == 0 || s.life != s.m.life {
			return false
		}
		v := s.view()
		stays := map[uint32]bool{} // what has no other place
		for _, d := range v.Destinations {
			for i := range d.Partitions {
				p := &d.Partitions[i]
				switch sh := c.shard(d, p); {
				case !sh.lives(sh.leader) || sh.cramped():
					return false
				case sh.waits(v, d, p):
					for _, r := range p.Replicas {
						stays[r.Node] = true
					}
				case !sh.as(d, p):
					return false
				}
			}
		}
		for _, n := range v.Nodes {
			if n.State == cluster.NodeLeaving && !stays[n.ID] || n.State == cluster.NodeDraining {
				return false
			}
		}
	}
	return true
}

// as reports whether a partition is what a view says, and whole.
func (sh *shard) as(d *cluster.Destination, p *cluster.Partition) bool {
	if len(sh.learners) > 0 || len(sh.voters) != int(d.Settings.Replicas) {
		return false
	}
	for _, r := range p.Replicas {
		if r.State != cluster.ReplicaActive || !slices.Contains(sh.voters, r.ID) || !slices.Contains(p.Voters, r.ID) || !sh.lives(r.ID) {
			return false
		}
	}
	return true
}

// equal compares what the nodes know.
func (c *council) equal() {
	first := c.seats[0].m.metadata.Save(nil)
	for _, s := range c.seats[1:] {
		if saved := s.m.metadata.Save(nil); !bytes.Equal(first, saved) {
			c.fleet.fail("%s and %s do not know the same:\n%s\n%s", c.seats[0], s, first, saved)
		}
	}
}

// state is what a council looks like that does not come to rest.
func (c *council) state() (out string) {
	for _, s := range c.seats {
		out += fmt.Sprintf("\n%s on machine %d: directory %s since %d, directories %v, full %v, view %d", s, s.m.node, s.store, s.since, s.dirs, s.full, s.view().Epoch)
	}
	for _, n := range c.seats[0].view().Nodes {
		out += fmt.Sprintf("\n%+v", n)
	}
	for _, d := range c.seats[0].view().Destinations {
		for i := range d.Partitions {
			p := &d.Partitions[i]
			if len(c.cells) > 0 {
				out += fmt.Sprintf("\n%+v", *p)
				continue
			}
			sh := c.shards[p.ID]
			out += fmt.Sprintf("\n%s: %+v; it has voters %d, learners %d, leader %d, whole %v", sh, *p, sh.voters, sh.learners, sh.leader, sh.whole)
		}
	}
	for i := range c.plan {
		out += fmt.Sprintf("\nplanned: %+v %+v", c.plan[i], c.plan[i].Move)
	}
	return out
}
