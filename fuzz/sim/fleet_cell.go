package sim

import (
	"fmt"

	"github.com/lockstepmq/lockstep/wire"
)

// cell is one raft group of a fleet: a replica on each machine, and what is known of them.
type cell struct {
	fleet     *fleet
	metadata  bool
	number    uint32 // of the partition
	partition [16]byte
	dir       string // of the logs
	base      uint64 // the replica of a machine has the ID base + node at first
	members   []*member
	truth     truth
	ledger    *ledger // nil: nobody consumes
}

func (c *cell) String() string { return fmt.Sprintf("partition %d", c.number) }

// cellSpan is how far the replica IDs of two cells lie apart.
const cellSpan = 1000

// found begins the cells, with a replica on each machine.
func (f *fleet) found() {
	count := 1
	if f.options.Cluster {
		count += f.options.Partitions
	}
	for i := range count {
		c := &cell{
			fleet: f, metadata: f.options.Cluster && i == 0, partition: [16]byte{byte(i + 1)},
			dir: fmt.Sprintf("%s/partitions/p-%d", dataDir, i), base: uint64(i) * cellSpan,
		}
		if f.options.Cluster {
			c.number = uint32(max(i, 1) - 1)
		}
		c.truth = truth{fleet: f, cell: c, leaders: map[wire.Term]uint64{}, producers: map[int64]*landing{}}
		for _, on := range f.hosts {
			m := &member{host: on, cell: c, id: c.base + uint64(on.node), votes: map[wire.Term]uint64{}}
			on.replicas = append(on.replicas, m)
			c.members = append(c.members, m)
		}
		f.cells = append(f.cells, c)
	}
	f.lastReplica = uint64(len(f.hosts))
}

// quorum is how many voters are a majority, or how many are at least where they change.
func (c *cell) quorum() int {
	if c.fleet.options.Voters {
		return wire.MaxMetadataVoters/2 + 1
	}
	return len(c.members)/2 + 1
}

// leaders are the members that take themselves for the leader of a term that is not older
// than one.
func (c *cell) leaders(than wire.Term) (list []*member) {
	for _, m := range c.members {
		if !m.up {
			continue
		}
		if term, leading := m.group.Leading(); leading && term >= than {
			list = append(list, m)
		}
	}
	return list
}

// replicas are those of all cells.
func (f *fleet) replicas() (list []*member) {
	for _, c := range f.cells {
		list = append(list, c.members...)
	}
	return list
}
