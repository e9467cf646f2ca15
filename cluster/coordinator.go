package cluster

import (
	"slices"

	"github.com/google/uuid"

	"github.com/lockstepmq/lockstep/wire"
)

// coordinatorTicks is how long the partition that keeps the members of groups is without
// a leader before another keeps them: 6 s, as long as a consumer may be silent.
const coordinatorTicks = 60

// Coordinator says which partition keeps the members of a destination's groups, and which
// of its partitions have consumers. Bindings of a higher generation are newer, whatever
// their counters.
type Coordinator struct {
	Partition  uint32 `json:"partition"`
	Generation uint32 `json:"generation"`
	// Since is the metadata index as of which it is the coordinator.
	Since wire.Index `json:"since,omitempty"`
}

// MoveCoordinator has another partition keep the members of groups. Generation is the one
// that follows that of the coordinator which the controller has seen: of two such commands
// the first counts.
type MoveCoordinator struct {
	Destination uuid.UUID `json:"destination"`
	Coordinator
}

// Coordinates is the coordinator of the destination's groups. The first one is the first
// partition, in generation 1.
func (d *Destination) Coordinates() Coordinator {
	if c := d.Coordinator; c.Generation > 0 {
		return c
	}
	return Coordinator{Partition: d.Partitions[0].Number, Generation: 1}
}

func (s *State) moveCoordinator(index wire.Index, c *MoveCoordinator) Result {
	for _, d := range s.Destinations {
		if d.ID != c.Destination {
			continue
		}
		known := slices.ContainsFunc(d.Partitions, func(p Partition) bool { return p.Number == c.Partition })
		if now := d.Coordinates(); !known || c.Generation != now.Generation+1 {
			return refuse(wire.CodeRefused, "partition %d of %q coordinates its groups in generation %d by now", now.Partition, d.Name, now.Generation)
		}
		moved := *d
		moved.Version, moved.Coordinator = index, Coordinator{c.Partition, c.Generation, index}
		s.put(&moved)
		return Result{Destination: &moved, Changed: true}
	}
	return refuse(wire.CodeUnknownDestination, "the destination was deleted")
}

// replaceCoordinators names another coordinator where there are groups and the partition
// that keeps their members has had no leader for a while.
func (p *plan) replaceCoordinators() {
	silent := make(map[uuid.UUID]uint64)
	for _, d := range p.v.Destinations {
		now := d.Coordinates()
		i := slices.IndexFunc(d.Partitions, func(part Partition) bool { return part.Number == now.Partition })
		if len(d.Groups) == 0 || i >= 0 && p.leads(&d.Partitions[i]) {
			continue
		}
		since, known := p.c.silent[d.ID]
		if !known {
			since = p.tick
		}
		silent[d.ID] = since
		if p.tick-since < coordinatorTicks {
			continue
		}
		if i := slices.IndexFunc(d.Partitions, func(part Partition) bool { return p.leads(&part) }); i >= 0 {
			p.commands = append(p.commands, Command{MoveCoordinator: &MoveCoordinator{
				Destination: d.ID, Coordinator: Coordinator{Partition: d.Partitions[i].Number, Generation: now.Generation + 1},
			}})
		}
	}
	p.c.silent = silent
}

// leads reports whether a partition has a leader that answers.
func (p *plan) leads(part *Partition) bool {
	leader := p.leader(part)
	return leader != nil && p.h.Alive(leader.Node)
}
