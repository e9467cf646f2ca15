package sim

import (
	"errors"
	"fmt"
	"slices"

	"github.com/lockstepmq/lockstep/cluster"
	"github.com/lockstepmq/lockstep/replication"
	"github.com/lockstepmq/lockstep/wire"
)

// With Options.Voters the machines are nodes on racks from the beginning, more of them than
// vote about the metadata, and nothing is in the metadata but names. Who leads them does what
// cluster.StepMeta says: a voter that is gone by the word of a majority loses its vote to a
// learner.

const (
	votersRacks = 3
	// swapTicks is for how long a voter is silent before anybody is asked about it.
	swapTicks = 30
)

// rack is where a node stands.
func (s *seat) rack() string {
	if !s.council.fleet.options.Voters {
		return ""
	}
	return fmt.Sprintf("rack-%d", s.m.node%votersRacks)
}

// vote is one step of somebody.
func (c *council) vote(s *seat) {
	switch n := c.fleet.random.IntN(100); {
	case n < 30:
		s.chores()
	case n < 60:
		for _, s := range c.seats {
			s.swap()
		}
	case s.works():
		c.made++
		s.submit(cluster.Command{OpenProducer: &cluster.OpenProducer{Name: fmt.Sprintf("name%d", c.made%20), Holder: c.made}}, nil)
	}
}

// hearsOf reports whether a node has heard another one since its last tick.
func (s *seat) hearsOf(other *seat) bool { return s == other || s.m.silent[other.m.host] == 0 }

// gone is the word of a majority of the voters about a node: most of them can be asked and
// do not hear it, and nobody who can be asked does.
func (s *seat) gone(target *seat, voters []uint64) bool {
	c := s.council
	if c.fleet.options.Mutant == OneOpinion {
		return true
	}
	deaf := 0
	for _, other := range c.seats {
		if other == target || other != s && !(other.works() && s.m.hears(other.m.host) && other.m.hears(s.m.host)) {
			continue
		}
		if other.hearsOf(target) {
			return false
		}
		if slices.Contains(voters, other.m.id) {
			deaf++
		}
	}
	return deaf > len(voters)/2
}

// swap changes the members of group 0, where a node leads it, and reports whether there was
// anything to change.
func (s *seat) swap() bool {
	c := s.council
	f := c.fleet
	if !s.works() || s.m.group.Paused() {
		return false
	}
	if _, leading := s.m.group.Leading(); !leading {
		return false
	}
	members := s.m.group.Members()
	v := s.view()
	if len(v.Nodes) < len(c.seats) {
		return false // all vote until then
	}
	if f.options.Mutant == NoRacks {
		blind := *v
		blind.Nodes = slices.Clone(v.Nodes)
		for i := range blind.Nodes {
			blind.Nodes[i].Rack = ""
		}
		v = &blind
	}
	alive := func(node uint32) bool {
		other := c.seats[node-1]
		return other == s || s.m.silent[other.m.host] < swapTicks
	}
	change, handOver := cluster.StepMeta(v, s.m.id, &members, alive, func(node uint32) bool { return s.gone(c.seats[node-1], members.Voters) })
	if handOver {
		_ = s.m.group.Transfer(0)
		s.m.look()
		return true
	}
	if len(change.AddLearners)+len(change.Promote)+len(change.Remove) == 0 {
		return false
	}
	c.judge(s, &members, &change, alive)
	err := s.m.group.Reconfigure(change)
	switch {
	case err == nil:
		f.trace.add("%s changes the members of the metadata: %+v", s, change)
		c.counts[CouncilPromoted] += int64(len(change.Promote))
		c.counts[CouncilLearner] += int64(len(change.AddLearners))
		c.counts[CouncilLeft] += int64(len(change.Remove))
	case s.m.group.Err() == nil && !errors.Is(err, replication.ErrBusy) && !errors.Is(err, replication.ErrMembership) && !errors.Is(err, replication.ErrProposalDropped):
		f.fail("%s: the members of the metadata %+v: %v", s, change, err)
	}
	s.m.look()
	return true
}

// judge looks at a change: no vote is lost that others are there for, none is taken from a
// node that most voters hear, and none goes to a rack that has more than another one.
func (c *council) judge(s *seat, members *replication.Members, change *replication.Membership, alive func(uint32) bool) {
	f := c.fleet
	after := slices.DeleteFunc(slices.Concat(members.Voters, change.Promote), func(id uint64) bool { return slices.Contains(change.Remove, id) })
	if want := min(len(members.Voters), wire.MaxMetadataVoters); len(after) < want {
		f.fail("%s changes the voters %d of the metadata to %d, fewer than %d", s, members.Voters, after, want)
	}
	seat := func(id uint64) *seat { return c.seats[id-1] }
	for _, id := range change.Remove {
		hear := 0
		for _, voter := range members.Voters {
			if voter != id && seat(voter).works() && seat(voter).hearsOf(seat(id)) {
				hear++
			}
		}
		if slices.Contains(members.Voters, id) && len(members.Voters) <= wire.MaxMetadataVoters && hear > len(members.Voters)/2 {
			f.fail("%s takes the vote of %s, which %d of the voters %d hear", s, seat(id), hear, members.Voters)
		}
	}
	racks := map[string]int{}
	for _, id := range after {
		racks[seat(id).rack()]++
	}
	for _, id := range change.Promote {
		for _, other := range c.seats {
			if !slices.Contains(after, other.m.id) && !slices.Contains(change.Remove, other.m.id) && alive(other.m.node) && racks[seat(id).rack()] > racks[other.rack()]+1 {
				f.fail("%s gives %s a vote in %s, which has %d with it; %s lives in %s, which has %d", s, seat(id), seat(id).rack(), racks[seat(id).rack()], other, other.rack(), racks[other.rack()])
			}
		}
	}
}

// balanced reports whether all nodes are there and as many vote as should.
func (c *council) balanced() bool {
	for _, s := range c.seats {
		if s.since == 0 || s.life != s.m.life {
			return false
		}
		if s.m.id != 1 && s.m.id != s.view().Nodes[s.node-1].MetaID() {
			c.fleet.fail("%s has replica %d of the metadata, and %d in them", s, s.m.id, s.view().Nodes[s.node-1].MetaID())
		}
	}
	for _, s := range c.seats {
		if _, leading := s.m.group.Leading(); leading {
			members := s.m.group.Members()
			return len(members.Outgoing) == 0 && len(members.Voters) == wire.MaxMetadataVoters && len(members.Learners) == len(c.seats)-wire.MaxMetadataVoters
		}
	}
	return false
}
