package sim

import (
	"slices"

	"github.com/lockstepmq/lockstep/cluster"
	"github.com/lockstepmq/lockstep/wire"
)

// With real partitions beside them, the metadata know one destination, with a replica of
// each partition on each node from the beginning. Who leads is moved, and nothing else.

// cellsName is what the destination is called.
const cellsName = "orders"

// settle is what a node does about the destination: it asks for it once all are there, and
// has the directories of its replicas.
func (s *seat) settle(v *cluster.View) {
	c := s.council
	if len(v.Nodes) < len(c.seats) || v.Level < cluster.MaxLevel {
		return // its controller raises the level at once
	}
	d, known := v.Destination(cellsName)
	if !known {
		create := &cluster.Create{
			Name: cellsName, Kind: wire.Queue, ID: [16]byte{0xce},
			Settings: wire.Settings{Partitions: uint32(len(c.cells)), Replicas: uint8(len(c.seats)), RetentionBytes: wire.Unlimited, RetentionTimeMs: wire.Unlimited},
		}
		for _, cell := range c.cells {
			create.PartitionIDs = append(create.PartitionIDs, cell.partition)
		}
		placement, err := cluster.Spread(v, create.PartitionIDs, len(c.seats), func(cluster.Node) string { return "" })
		if err != nil {
			c.fleet.fail("there is no room for a replica on each of %d nodes: %v", len(c.seats), err)
		}
		create.Placement = placement
		s.submit(cluster.Command{Create: create}, func(cluster.Result) { c.counts[CouncilCreated]++ })
		return
	}
	var fresh []uint64
	for i := range d.Partitions {
		if r := d.Partitions[i].On(s.node); r != nil && r.State == cluster.ReplicaNew {
			fresh = append(fresh, r.ID)
		}
	}
	if len(fresh) > 0 {
		s.submit(cluster.Command{Activate: &cluster.Activate{Replicas: fresh}}, nil)
	}
	if g := c.fleet.groups; g != nil && len(d.Groups) == 0 {
		s.submit(cluster.Command{SetGroup: &cluster.SetGroup{Destination: cellsName, Group: "workers", Create: true, Exists: true, Settings: g.settings, Start: wire.GroupStart{To: "earliest"}}}, nil)
	}
}

// coordinate names another coordinator, as a controller does that sees no leader where the
// one before is, rightly or not.
func (c *council) coordinate(s *seat) {
	if d, known := s.view().Destination(cellsName); known && s.works() {
		now := d.Coordinates()
		s.submit(cluster.Command{MoveCoordinator: &cluster.MoveCoordinator{
			Destination: d.ID, Coordinator: cluster.Coordinator{Partition: (now.Partition + 1) % uint32(len(c.cells)), Generation: now.Generation + 1},
		}}, nil)
	}
}

// alter asks a node to give the group other settings. The request may be lost.
func (c *council) alter(settings wire.GroupSettings) {
	if s := c.seats[c.fleet.random.IntN(len(c.seats))]; s.works() {
		s.submit(cluster.Command{SetGroup: &cluster.SetGroup{Destination: cellsName, Group: "workers", Settings: settings}}, nil)
	}
}

// prepare lets everything work until the nodes are there and what they are to begin with,
// before anything fails.
func (c *council) prepare() {
	f := c.fleet
	for range councilTicks {
		f.exhaust()
		c.round()
		f.exhaust()
		if c.agreed() {
			return
		}
		for _, m := range f.hosts {
			m.tick(1)
		}
	}
	f.fail("the cluster does not stand within %d ticks%s", councilTicks, c.state())
}

// leader is the replica that leads a partition, as the metadata call it, 0 if none does.
func (c *council) leader(p *cluster.Partition) uint64 {
	for _, m := range c.cells[p.Number].leaders(0) {
		for _, s := range c.seats {
			if r := p.On(s.node); s.m.host == m.host && s.works() && r != nil {
				return r.ID
			}
		}
	}
	return 0
}

// transfer moves a leadership as the controller wants it.
func (c *council) transfer(v *cluster.View, t cluster.Transfer) {
	d, known := v.DestinationByID(t.Destination)
	if !known {
		return
	}
	cell := c.cells[t.Partition]
	i := slices.IndexFunc(d.Partitions[t.Partition].Replicas, func(r cluster.Replica) bool { return r.ID == t.To })
	if i < 0 {
		return
	}
	to := c.seatOf(d.Partitions[t.Partition].Replicas[i].Node)
	for _, m := range cell.leaders(0) {
		if to != nil && !m.paused {
			c.counts[CouncilTransferred]++
			if cell.ledger != nil && !c.fleet.settling {
				if m.moving == 0 {
					m.handOver()
				}
				continue
			}
			_ = m.group.Transfer(cell.members[to.m.node-1].id)
			m.look()
		}
	}
}

// standing reports whether the destination is there as it is to be, on every node.
func (c *council) standing() bool {
	for _, s := range c.seats {
		d, known := s.view().Destination(cellsName)
		if !known || s.since == 0 || s.life != s.m.life || c.fleet.groups != nil && len(d.Groups) == 0 {
			return false
		}
		for i := range d.Partitions {
			for _, r := range d.Partitions[i].Replicas {
				if r.State != cluster.ReplicaActive {
					return false
				}
			}
		}
	}
	return true
}
