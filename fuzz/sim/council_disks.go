package sim

import (
	"slices"

	"github.com/lockstepmq/lockstep/cluster"
)

// Disks of a council's nodes fill up, and somebody makes room there again. What is on a full
// disk stays and votes; a replica that learns there gets no further. Nodes know of each
// other's disks what they heard last. In the end everything comes to rest twice: with the
// disks as they are, and with room on all of them.

// councilFull is how many disks are full at the same time: with five machines three others
// have room.
const councilFull = 2

// fill fills the disk of a node, or makes room there.
func (c *council) fill(s *seat) {
	full := 0
	for _, other := range c.seats {
		if other.full {
			full++
		}
	}
	switch {
	case s.full:
		c.counts[CouncilEmptied]++
		s.full = false
	case full < councilFull:
		c.counts[CouncilFilled]++
		s.full = true
	}
	c.fleet.trace.add("the disk of %s is full: %v", s, s.full)
}

// makeRoom empties all disks.
func (c *council) makeRoom() {
	c.fleet.trace.add("there is room on all disks")
	for _, s := range c.seats {
		s.full = false
	}
}

// lacksSpace reports whether a node's disk is full, as it said last to this one.
func (s *seat) lacksSpace(node uint32) bool {
	other := s.council.seatOf(node)
	if other == nil {
		return false
	}
	if s.hearsOf(other) && !(s.short[node] && s.council.fleet.options.Mutant == RoomUnheard) {
		s.short[node] = other.full
	}
	return s.short[node]
}

// gives checks what a controller has planned: a node without space gets nothing that its
// controller knows another place for.
func (s *seat) gives(v *cluster.View, commands []cluster.Command, transfers []cluster.Transfer) {
	f := s.council.fleet
	for _, command := range commands {
		if command.Move == nil {
			continue
		}
		for _, node := range command.Move.Add {
			if s.lacksSpace(node) {
				f.fail("%s gives node %d a replica, whose disk is full: %+v", s, node, *command.Move)
			}
		}
	}
	for _, t := range transfers {
		d, _ := v.DestinationByID(t.Destination)
		if to := d.Partitions[t.Partition].Replica(t.To); to != nil && s.lacksSpace(to.Node) && !s.lacksSpace(t.Node) {
			f.fail("%s gives node %d the lead of %s/%d, whose disk is full, and that of node %d is not", s, to.Node, d.Name, t.Partition, t.Node)
		}
	}
}

// heir is the living voter that a leader without space asks to lead, 0 if its node knows of
// none with space.
func (sh *shard) heir() uint64 {
	c := sh.council
	s := c.seatOf(c.owners[sh.leader].node)
	if !s.full {
		return 0
	}
	for _, id := range sh.voters {
		if id != sh.leader && sh.lives(id) && !s.lacksSpace(c.owners[id].node) {
			return id
		}
	}
	return 0
}

// waits reports whether a partition needs room on a full disk to become what the metadata
// say: there is no other place for its next replica, or one that it could do without is on its
// way there.
func (sh *shard) waits(v *cluster.View, d *cluster.Destination, p *cluster.Partition) bool {
	c := sh.council
	full, sound, arrives := false, 0, false
	for _, r := range p.Replicas {
		n, member := v.Node(r.Node)
		cramped := c.seatOf(r.Node) != nil && c.seatOf(r.Node).full
		switch {
		case r.State == cluster.ReplicaJoining || r.State == cluster.ReplicaNew && !p.FoundedBy(r.ID):
			arrives = arrives || cramped
		case (r.State == cluster.ReplicaActive || r.State == cluster.ReplicaLeaving) && member && n.State != cluster.NodeLeaving:
			sound++
		}
	}
	if arrives && sound >= int(d.Settings.Replicas) {
		return true
	}
	for _, s := range c.seats {
		n, member := v.Node(s.node)
		switch {
		case s.full:
			full = true
		case member && n.Up() && !slices.ContainsFunc(p.Replicas, func(r cluster.Replica) bool { return r.Node == s.node && r.State != cluster.ReplicaLost }):
			return false
		}
	}
	return full
}

// cramped reports whether a partition is led where there is no space, and need not be.
func (sh *shard) cramped() bool {
	c := sh.council
	return c.seatOf(c.owners[sh.leader].node).full && slices.ContainsFunc(sh.voters, func(id uint64) bool {
		return sh.lives(id) && !c.seatOf(c.owners[id].node).full
	})
}

// spread checks, at rest and with room everywhere, that every node has got its share of
// replicas and of leaderships: none could be moved to another one that has three fewer.
func (c *council) spread() {
	held, led, sum := map[uint32]int{}, map[uint32]int{}, 0
	v := c.seats[0].view()
	for _, d := range v.Destinations {
		for i := range d.Partitions {
			led[c.owners[c.shards[d.Partitions[i].ID].leader].node]++
			sum++
			for _, r := range d.Partitions[i].Replicas {
				held[r.Node]++
			}
		}
	}
	for _, d := range v.Destinations {
		for i := range d.Partitions {
			p := &d.Partitions[i]
			leader := c.owners[c.shards[p.ID].leader].node
			for _, n := range v.Nodes {
				r := p.On(n.ID)
				if c.seatOf(n.ID) == nil {
					continue // a late request let it join again; nobody is it
				}
				if r != nil && led[leader]*len(c.seats) > sum && led[leader] >= led[n.ID]+3 {
					c.fleet.fail("node %d leads %d partitions, one of them %s/%d, and node %d only %d%s", leader, led[leader], d.Name, p.Number, n.ID, led[n.ID], c.state())
				}
				for _, from := range p.Replicas {
					if r == nil && held[from.Node] >= held[n.ID]+3 {
						c.fleet.fail("node %d has %d replicas, one of them of %s/%d, and node %d only %d%s", from.Node, held[from.Node], d.Name, p.Number, n.ID, held[n.ID], c.state())
					}
				}
			}
		}
	}
}
