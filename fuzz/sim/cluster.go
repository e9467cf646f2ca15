package sim

import (
	"fmt"

	"github.com/google/uuid"

	"github.com/lockstepmq/lockstep/cluster"
	"github.com/lockstepmq/lockstep/wire"
)

// identities are producer IDs [first, next) that somebody was given: a block for
// anonymous producers, or one for a name.
type identities struct {
	first, next int64
	name        string
}

// metadataRefused decides whether a metadata command may be refused this way.
func (s *Simulation) metadataRefused(err error) {
	s.trace.add("metadata command refused: %v", err)
	if code, ok := errorCode(err); ok && code == wire.CodeUnavailable && !s.excused() && !s.faults.full {
		s.fail("metadata: %v without any fault", err)
	}
}

// sessionOpened checks that producer identities are never handed out twice.
func (s *Simulation) sessionOpened(c *client, session cluster.ProducerSession) {
	now := identities{first: session.ID, next: session.ID + 1, name: c.name}
	if c.kind == anonymous {
		now = identities{first: session.ID, next: session.ID + cluster.ProducerIDBlock}
	}
	for _, old := range s.handedOut {
		again := old == now && c.kind == named
		if again && session.Epoch <= s.epochs[session.ID] {
			s.fail("metadata: producer %q got epoch %d after epoch %d", c.name, session.Epoch, s.epochs[session.ID])
		}
		if !again && now.first < old.next && old.first < now.next {
			s.fail("metadata: producer IDs %+v are handed out again after %+v", now, old)
		}
	}
	s.handedOut = append(s.handedOut, now)
	s.epochs[session.ID] = session.Epoch
}

// destinationsAre follows a committed change of the metadata.
func (s *Simulation) destinationsAre(v *cluster.View) {
	now := map[uuid.UUID]bool{}
	for _, d := range v.Destinations {
		now[d.ID] = true
		if alive, known := s.live[d.ID]; known && !alive {
			s.fail("metadata: destination %s is back after its deletion", d.ID)
		}
		s.live[d.ID] = true
		for _, p := range d.Partitions {
			owner := fmt.Sprintf("%s/%d", d.ID, p.Number)
			if was, known := s.replicas[p.Replicas[0].ID]; known && was != owner {
				s.fail("metadata: replica ID %d of %s is given to %s", p.Replicas[0].ID, was, owner)
			}
			s.replicas[p.Replicas[0].ID] = owner
		}
	}
	for id := range s.live {
		s.live[id] = now[id]
	}
}

// modelOf finds or makes the model of a partition.
func (s *Simulation) modelOf(d *cluster.Destination, p *cluster.Partition) *partitionModel {
	for _, m := range s.partitions {
		if m.destination == d.ID && m.identity.Number == p.Number {
			return m
		}
	}
	m := &partitionModel{
		history:     history{sim: s, name: fmt.Sprintf("%s/%d", d.Name, p.Number)},
		destination: d.ID, identity: *p, producers: map[int64]*landing{}, lost: map[int64]bool{},
	}
	s.partitions = append(s.partitions, m)
	kinds := []clientKind{anonymous, anonymous, named, named, leader, none}
	for i, kind := range kinds[:2+s.random.IntN(len(kinds)-1)] {
		name := fmt.Sprintf("%s.%d", m.name, i)
		if kind == named {
			name = fmt.Sprintf("%s.name", m.name)
		}
		m.clients = append(m.clients, &client{sim: s, name: name, kind: kind, model: m})
	}
	return m
}
