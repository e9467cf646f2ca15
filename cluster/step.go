package cluster

import (
	"slices"

	"github.com/lockstepmq/lockstep/replication"
)

// Reported reports whether the metadata knows the configuration, and has drawn its
// conclusions from it.
func Reported(p *Partition, members *replication.Members) bool {
	if len(p.Founders) == 0 {
		return true // the metadata names no voters of a partition that has one replica
	}
	if !known(p, members) {
		return false
	}
	for _, o := range p.Replicas {
		in := slices.Contains(members.Voters, o.ID) || slices.Contains(members.Learners, o.ID)
		if !in && (o.State == ReplicaLeaving || o.State == ReplicaLost) || o.State == ReplicaJoining && slices.Contains(members.Voters, o.ID) {
			return false
		}
	}
	return true
}

// known reports whether the metadata know the members that there are.
func known(p *Partition, members *replication.Members) bool {
	return p.ConfIndex >= members.Index && sameIDs(p.Voters, members.Voters) && sameIDs(p.Learners, members.Learners)
}

func sameIDs(a, b []uint64) bool {
	a, b = slices.Clone(a), slices.Clone(b)
	slices.Sort(a)
	slices.Sort(b)
	return slices.Equal(a, b)
}

// StepTowards is the next change of a partition's configuration towards its intent, as
// its leader self sees it; replicas is how many it is to have. With transfer the leader has to go first.
//
// Who leaves, or is lost, is taken out together with the promotion of who takes its
// place, so that the partition is never left with fewer voters than it has replicas.
// There is no step before the metadata know the members that there are: what they say may
// be older than what led to these, a move that was complete before it was called off for
// example, or the leader's view may be. They are told first, and say what follows.
func StepTowards(p *Partition, self uint64, replicas int, members *replication.Members) (change replication.Membership, transfer bool) {
	if len(p.Founders) > 0 && !known(p, members) {
		return replication.Membership{}, false
	}
	member := func(id uint64) bool {
		return slices.Contains(members.Voters, id) || slices.Contains(members.Learners, id)
	}
	var out []uint64 // that may go
	pending := false // somebody is on the way in
	promotable := true
	for _, o := range p.Replicas {
		switch o.State {
		case ReplicaNew:
			pending = pending || !p.FoundedBy(o.ID)
		case ReplicaJoining:
			switch {
			case !member(o.ID):
				change.AddLearners = append(change.AddLearners, o.ID)
			case slices.Contains(members.Learners, o.ID):
				change.Promote = append(change.Promote, o.ID)
				i := slices.IndexFunc(members.Progress, func(g replication.Progress) bool { return g.Replica == o.ID })
				promotable = promotable && i >= 0 && members.Progress[i].InStep
			}
		case ReplicaLeaving:
			if member(o.ID) {
				out = append(out, o.ID)
			}
		case ReplicaLost:
			if member(o.ID) {
				out = append(out, o.ID)
			}
		}
	}
	if len(change.AddLearners) > 0 {
		return replication.Membership{AddLearners: change.AddLearners[:1]}, false
	}
	if pending || !promotable {
		return replication.Membership{}, false
	}
	// A replica that the metadata has forgotten is no member either.
	for _, id := range slices.Concat(members.Voters, members.Learners) {
		if o := p.Replica(id); o == nil || o.State == ReplicaLeft {
			out = append(out, id)
		}
	}
	out = keep(p, members, replicas, len(change.Promote), out)
	change.Remove = out
	if !slices.Contains(out, self) {
		return change, false
	}
	// The leader cannot take itself out. Whoever is promoted may lead after that.
	change.Remove = slices.DeleteFunc(slices.Clone(out), func(id uint64) bool { return id == self })
	if len(change.Promote)+len(change.Remove) > 0 {
		return change, false
	}
	return replication.Membership{}, len(members.Voters) > 1
}

// keep leaves out of a list of members who go those voters that the partition cannot do
// without yet: it keeps as many as it has replicas that stay, those that are lost included
// as long as it is to have more than that. A lost one is
// only a vote missing; taking it out of three would leave two, of which both are needed.
// So who leaves goes first, who is lost last.
func keep(p *Partition, members *replication.Members, replicas, promoted int, out []uint64) []uint64 {
	lost := func(id uint64) bool { o := p.Replica(id); return o != nil && o.State == ReplicaLost }
	staying, missing := 0, 0
	for i := range p.Replicas {
		switch r := &p.Replicas[i]; {
		case r.staying():
			staying++
		case r.State == ReplicaLost && slices.Contains(members.Voters, r.ID):
			missing++
		}
	}
	left := len(members.Voters) + promoted
	want := min(len(members.Voters), max(staying, min(staying+missing, replicas)))
	slices.SortStableFunc(out, func(a, b uint64) int {
		switch la, lb := lost(a), lost(b); {
		case la == lb:
			return 0
		case lb:
			return -1
		}
		return 1
	})
	return slices.DeleteFunc(out, func(id uint64) bool {
		if !slices.Contains(members.Voters, id) {
			return false
		}
		left--
		if left < want {
			left++
			return true
		}
		return false
	})
}
