package cluster

import (
	"slices"

	"github.com/google/uuid"

	"github.com/lockstepmq/lockstep/wire"
)

// Recover lets a partition go on with one replica that its operator has chosen because a
// majority is gone for good: what only the others had is lost. The others are lost with
// it, also those that come back: none of their messages counts any more.
type Recover struct {
	Destination uuid.UUID `json:"destination"`
	Partition   uint32    `json:"partition"`
	Replica     uint64    `json:"replica"` // that goes on
	Incarnation uint32    `json:"incarnation"`
}

// Recovery is what a Recover has left behind in a partition, for ever.
type Recovery struct {
	Replica uint64 `json:"replica"` // that went on
	// Before is the replica ID that was next at that time: lower ones but Replica are
	// those of the others.
	Before uint64 `json:"before"`
	// Done says that the replica has reported that it is the only voter.
	Done bool `json:"done,omitempty"`
}

// Outcast reports whether a replica was given up in favour of another.
func (r *Recovery) Outcast(replica uint64) bool {
	return r != nil && replica < r.Before && replica != r.Replica
}

// Recovering reports whether the partition waits for a replica to go on alone.
func (p *Partition) Recovering() bool { return p.Recovery != nil && !p.Recovery.Done }

func (s *State) recover(c *Recover) Result {
	d, p, err := s.partition(c.Destination, c.Partition)
	if err != nil {
		return Result{Err: err}
	}
	for _, n := range s.Nodes {
		if n.MaxLevel < LevelGroups {
			return refuse(wire.CodeUnsupported, "node %d runs a build that does not know how partitions are recovered; upgrade it first", n.ID)
		}
	}
	r := p.Replica(c.Replica)
	switch {
	case p.Recovering() && p.Recovery.Replica == c.Replica:
		return Result{Destination: d}
	case p.Incarnation != c.Incarnation:
		return refuse(wire.CodeRefused, "%s/%d has begun a new incarnation meanwhile; look at it again", d.Name, p.Number)
	case len(p.Founders) == 0:
		return refuse(wire.CodeRefused, "%s/%d has one replica: there is no majority to be without", d.Name, p.Number)
	case r == nil || r.State != ReplicaActive && r.State != ReplicaLeaving && r.State != ReplicaJoining:
		return refuse(wire.CodeInvalidRequest, "replica %d of %s/%d has no log to go on with", c.Replica, d.Name, p.Number)
	}
	r.State = ReplicaActive
	for i := range p.Replicas {
		if o := &p.Replicas[i]; o.ID != c.Replica && o.State != ReplicaLeft {
			o.State = ReplicaLost
		}
	}
	// What was reported before counts no more, however long the log was then.
	p.Voters, p.Learners, p.ConfIndex = []uint64{c.Replica}, nil, 0
	p.Recovery = &Recovery{Replica: c.Replica, Before: s.NextReplicaID}
	s.Level = max(s.Level, LevelGroups)
	s.put(d)
	s.held = nil
	return Result{Destination: d, Changed: true}
}

// obsolete reports whether a configuration is one that a Recover has ended: that of a
// leader which does not know it yet, or of the replica itself before it goes on alone.
func (r *Recovery) obsolete(voters []uint64) bool {
	return r != nil && (slices.ContainsFunc(voters, r.Outcast) || !r.Done && !slices.Equal(voters, []uint64{r.Replica}))
}
