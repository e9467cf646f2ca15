package group

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/wire"
)

type spreadFunc func(wire.BindingPolicy, []*Membership, []PartitionLoad, map[Session][]uint32, map[Session]bool) map[Session][]uint32

// spreadStep is one change of a group: what there is, who had what and who has it now.
type spreadStep struct {
	policy  wire.BindingPolicy
	members []*Membership
	loads   []PartitionLoad
	away    map[Session]bool
	old, of map[Session][]uint32
}

// fault says what a spread breaks of the promises of its policy.
func (s *spreadStep) fault(of spreadFunc) error {
	if again := of(s.policy, s.members, s.loads, s.of, s.away); !sameSpread(again, s.of) {
		return fmt.Errorf("nothing has changed, and it moves again: %v", again)
	}
	if s.policy != wire.BindingLocal {
		return s.faultAmong(s.members, s.loads)
	}
	if slices.ContainsFunc(s.loads, func(p PartitionLoad) bool { return p.Leader == 0 }) {
		return nil // they count where they were
	}
	nodes := make(map[uint32][]*Membership)
	for _, m := range s.members {
		nodes[m.Node] = append(nodes[m.Node], m)
	}
	for node, members := range nodes {
		led := slices.DeleteFunc(slices.Clone(s.loads), func(p PartitionLoad) bool { return p.Leader != node })
		if err := s.faultAmong(members, led); err != nil {
			return fmt.Errorf("node %d: %w", node, err)
		}
	}
	return nil
}

// faultAmong looks at members that share partitions.
func (s *spreadStep) faultAmong(members []*Membership, loads []PartitionLoad) error {
	there := slices.DeleteFunc(slices.Clone(members), func(m *Membership) bool { return s.away[m.Session] })
	if len(members) == 0 || len(loads) == 0 {
		return nil
	}
	holders := make(map[uint32]int)
	for _, m := range members {
		for _, n := range s.of[m.Session] {
			holders[n]++
		}
	}
	counts := make([]int, 0, len(there))
	for _, m := range there {
		counts = append(counts, len(s.of[m.Session]))
	}
	lost := 0
	for _, m := range members {
		list, had := s.of[m.Session], s.old[m.Session]
		for _, n := range had {
			if slices.ContainsFunc(loads, func(p PartitionLoad) bool { return p.Number == n }) && !slices.Contains(list, n) {
				lost++
			}
		}
		if s.policy == wire.BindingStrict && len(had) == 1 && !slices.Equal(had, list) {
			return fmt.Errorf("strict: %x moves from %v to %v", m.Session[:1], had, list)
		}
		if !s.away[m.Session] || len(there) == 0 || len(members) > len(loads) {
			continue
		}
		if most := (len(loads) + len(members) - 1) / len(members); s.policy != wire.BindingStrict && len(list) > most {
			return fmt.Errorf("%x is away and has %d of %d", m.Session[:1], len(list), len(loads))
		}
		for _, n := range list {
			if s.policy != wire.BindingStrict && !slices.Contains(had, n) {
				return fmt.Errorf("%x is away and is given %d", m.Session[:1], n)
			}
		}
	}
	switch {
	case s.policy == wire.BindingStrict:
		return nil
	case len(holders) != len(loads):
		return fmt.Errorf("%d of %d partitions have a member", len(holders), len(loads))
	case len(counts) > 0 && slices.Min(counts) == 0:
		return fmt.Errorf("a member has nothing")
	case len(members) > len(loads):
		return nil
	case len(counts) > 0 && (slices.Min(counts) < len(loads)/len(members) || slices.Max(counts)-slices.Min(counts) > 1):
		return fmt.Errorf("those that are there have %v", counts)
	}
	for n, k := range holders {
		if k > 1 {
			return fmt.Errorf("%d members have partition %d", k, n)
		}
	}
	if most := fewestLost(members, loads, s.old, s.away); lost > most {
		return fmt.Errorf("%d partitions are taken from a member, %d need to be", lost, most)
	}
	return nil
}

// fewestLost is how many partitions members must lose: the fewest for all numbers that the
// members may have. Of several members with the same partition all but one lose it.
func fewestLost(members []*Membership, loads []PartitionLoad, old map[Session][]uint32, away map[Session]bool) int {
	there := 0
	for _, m := range members {
		if !away[m.Session] {
			there++
		}
	}
	least, most := len(loads)/len(members), (len(loads)+len(members)-1)/len(members)
	fewest := len(loads) * len(members)
	has := make([]int, len(members))
	var try func(p, lost int)
	try = func(p, lost int) {
		if lost >= fewest {
			return
		}
		if p == len(loads) {
			low, high := len(loads), 0
			for i, m := range members {
				switch {
				case there == 0:
					if has[i] < least || has[i] > most {
						return
					}
				case away[m.Session]:
					if has[i] > most {
						return
					}
				default:
					low, high = min(low, has[i]), max(high, has[i])
				}
			}
			if there == 0 || low >= least && high-low <= 1 {
				fewest = lost
			}
			return
		}
		n, holders := loads[p].Number, 0
		for _, m := range members {
			if slices.Contains(old[m.Session], n) {
				holders++
			}
		}
		for i, m := range members {
			had := slices.Contains(old[m.Session], n)
			if there > 0 && away[m.Session] && !had {
				continue
			}
			has[i]++
			if had {
				try(p+1, lost+holders-1)
			} else {
				try(p+1, lost+holders)
			}
			has[i]--
		}
	}
	try(0, 0)
	return fewest
}

func sameSpread(a, b map[Session][]uint32) bool {
	return maps.EqualFunc(a, b, func(a, b []uint32) bool { return slices.Equal(a, b) })
}

// spreadsOf lets members join, leave, go away and come back, leaders move and partitions be
// added, all in an order that the seed says, and returns the first fault.
func spreadsOf(seed uint64, of spreadFunc) error {
	random := rand.New(rand.NewPCG(seed, seed))
	policies := []wire.BindingPolicy{wire.BindingCover, wire.BindingLocal, wire.BindingStrict}
	s := spreadStep{policy: policies[random.IntN(len(policies))], away: make(map[Session]bool)}
	nodes := 1 + uint32(random.IntN(3))
	leader := func() uint32 { return 1 + random.Uint32N(nodes) }
	for range 1 + random.IntN(5) {
		s.loads = append(s.loads, PartitionLoad{Number: uint32(len(s.loads)), Leader: leader()})
	}
	for step := range byte(20) {
		switch k := random.IntN(12); {
		case k < 5 && len(s.members) < 5:
			s.members = append(s.members, memberAt(byte(1+random.IntN(250)), leader()))
			if last := s.members[len(s.members)-1]; slices.ContainsFunc(s.members[:len(s.members)-1], func(m *Membership) bool { return m.Session == last.Session }) {
				s.members = s.members[:len(s.members)-1]
			}
		case k < 7 && len(s.members) > 0:
			i := random.IntN(len(s.members))
			delete(s.away, s.members[i].Session)
			s.members = slices.Delete(slices.Clone(s.members), i, i+1)
		case k < 9 && len(s.members) > 0:
			m := s.members[random.IntN(len(s.members))]
			if s.away[m.Session] = !s.away[m.Session]; !s.away[m.Session] {
				delete(s.away, m.Session)
			}
		case k == 9 && len(s.loads) < 6:
			s.loads = append(slices.Clone(s.loads), PartitionLoad{Number: uint32(len(s.loads)), Leader: leader()})
		case k == 10:
			s.loads = slices.Clone(s.loads)
			s.loads[random.IntN(len(s.loads))].Leader = leader() * random.Uint32N(2)
		}
		s.loads[random.IntN(len(s.loads))].Backlog = random.Uint64N(100)
		random.Shuffle(len(s.members), func(i, j int) { s.members[i], s.members[j] = s.members[j], s.members[i] })
		s.old = s.of
		s.of = of(s.policy, s.members, s.loads, s.old, s.away)
		if err := s.fault(of); err != nil {
			return fmt.Errorf("seed %d step %d: policy %d, %d members, away %v, from %v to %v: %w", seed, step, s.policy, len(s.members), s.away, s.old, s.of, err)
		}
	}
	return nil
}

const spreadSeeds = 1500

func TestSpreadKeepsItsPromisesInAnyOrderOfJoinsAndLeaves(t *testing.T) {
	for seed := range uint64(spreadSeeds) {
		require.NoError(t, spreadsOf(seed, Spread))
	}
}

func TestSpread_Catches(t *testing.T) {
	// last is the member that has most of several, the last of those.
	last := func(of map[Session][]uint32) (found Session) {
		for _, s := range sortedSessions(of) {
			if len(of[s]) > 0 && len(of[s]) >= len(of[found]) {
				found = s
			}
		}
		return found
	}
	for name, mutant := range map[string]spreadFunc{
		"what nobody keeps": func(policy wire.BindingPolicy, members []*Membership, loads []PartitionLoad, _ map[Session][]uint32, away map[Session]bool) map[Session][]uint32 {
			return Spread(policy, members, loads, nil, away)
		},
		"what is given to those that are away": func(policy wire.BindingPolicy, members []*Membership, loads []PartitionLoad, old map[Session][]uint32, _ map[Session]bool) map[Session][]uint32 {
			return Spread(policy, members, loads, old, nil)
		},
		"what nobody has": func(policy wire.BindingPolicy, members []*Membership, loads []PartitionLoad, old map[Session][]uint32, away map[Session]bool) map[Session][]uint32 {
			of := Spread(policy, members, loads, old, away)
			if s := last(of); len(of[s]) > 1 {
				of[s] = of[s][1:]
			}
			return of
		},
		"who has nothing": func(policy wire.BindingPolicy, members []*Membership, loads []PartitionLoad, old map[Session][]uint32, away map[Session]bool) map[Session][]uint32 {
			of := Spread(policy, members, loads, old, away)
			for _, m := range members {
				if s := last(of); len(of[m.Session]) == 1 && s != m.Session {
					of[s], of[m.Session] = slices.Sorted(slices.Values(append(of[s], of[m.Session]...))), nil
					break
				}
			}
			return of
		},
	} {
		var err error
		for seed := uint64(0); err == nil && seed < spreadSeeds; seed++ {
			err = spreadsOf(seed, mutant)
		}
		require.Error(t, err, name)
	}
}
