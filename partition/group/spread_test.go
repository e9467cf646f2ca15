package group

import (
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/wire"
)

func memberAt(id byte, node uint32) *Membership { return &Membership{Session: session(id), Node: node} }

func TestSpreadOverPartitions(t *testing.T) {
	three := []PartitionLoad{{Number: 0, Leader: 1}, {Number: 1, Leader: 2}, {Number: 2, Leader: 3}}
	a, b, c, d := session(1), session(2), session(3), session(4)
	cover, strict := wire.BindingCover, wire.BindingStrict
	for _, step := range []struct {
		name       string
		policy     wire.BindingPolicy
		members    []*Membership
		partitions []PartitionLoad
		old, want  map[Session][]uint32
	}{
		{"one has all", cover, []*Membership{memberAt(1, 2)}, three, nil, map[Session][]uint32{a: {0, 1, 2}}},
		{"a second takes what is local to it", cover, []*Membership{memberAt(1, 2), memberAt(2, 1)}, three,
			map[Session][]uint32{a: {0, 1, 2}}, map[Session][]uint32{a: {1, 2}, b: {0}}},
		{"a third one each", cover, []*Membership{memberAt(1, 2), memberAt(2, 1), memberAt(3, 0)}, three,
			map[Session][]uint32{a: {1, 2}, b: {0}}, map[Session][]uint32{a: {1}, b: {0}, c: {2}}},
		{"one leaves", cover, []*Membership{memberAt(1, 2), memberAt(3, 0)}, three,
			map[Session][]uint32{a: {1}, b: {0}, c: {2}}, map[Session][]uint32{a: {0, 1}, c: {2}}},
		{"more members than partitions", cover, []*Membership{memberAt(1, 2), memberAt(2, 1), memberAt(3, 0), memberAt(4, 3)}, three,
			map[Session][]uint32{a: {1}, b: {0}, c: {2}}, map[Session][]uint32{a: {1}, b: {0}, c: {2}, d: {2}}},
		{"a partition is added", cover, []*Membership{memberAt(1, 0), memberAt(2, 0)}, append(slices.Clone(three), PartitionLoad{Number: 3}),
			map[Session][]uint32{a: {0, 1}, b: {2}}, map[Session][]uint32{a: {0, 1}, b: {2, 3}}},
		{"strict: the local one", strict, []*Membership{memberAt(1, 3)}, three, nil, map[Session][]uint32{a: {2}}},
		{"strict: fewest, then backlog", strict, []*Membership{memberAt(1, 0), memberAt(2, 0), memberAt(3, 0)},
			[]PartitionLoad{{Number: 0}, {Number: 1, Backlog: 9}, {Number: 2, Backlog: 5}}, map[Session][]uint32{a: {0}},
			map[Session][]uint32{a: {0}, b: {1}, c: {2}}},
		{"strict: nobody moves when one leaves", strict, []*Membership{memberAt(1, 0), memberAt(2, 0)}, three,
			map[Session][]uint32{a: {1}, b: {1}, c: {2}}, map[Session][]uint32{a: {1}, b: {1}}},
		{"gather", wire.BindingGather, []*Membership{memberAt(1, 0), memberAt(2, 0)}, three, nil, map[Session][]uint32{{}: {0, 1, 2}}},
		{"local: what is led elsewhere nobody has", wire.BindingLocal, []*Membership{memberAt(1, 2)}, three, nil, map[Session][]uint32{a: {1}}},
		{"local: members of a node share what it leads", wire.BindingLocal, []*Membership{memberAt(1, 1), memberAt(2, 1), memberAt(3, 3)},
			[]PartitionLoad{{Number: 0, Leader: 1}, {Number: 1, Leader: 2}, {Number: 2, Leader: 1}}, nil, map[Session][]uint32{a: {0}, b: {2}}},
		{"local: it goes with the leader, and stays while there is none", wire.BindingLocal, []*Membership{memberAt(1, 1), memberAt(2, 2)},
			[]PartitionLoad{{Number: 0, Leader: 2}, {Number: 1}, {Number: 2, Leader: 3}}, map[Session][]uint32{a: {0, 1}, b: {2}}, map[Session][]uint32{a: {1}, b: {0}}},
		{"what is local is kept first", cover, []*Membership{memberAt(1, 1), memberAt(2, 0)}, []PartitionLoad{{Number: 0, Leader: 5}, {Number: 1, Leader: 1}},
			map[Session][]uint32{a: {0, 1}}, map[Session][]uint32{a: {1}, b: {0}}},
		{"no leader is local to nobody: kept", cover, []*Membership{memberAt(1, 0), memberAt(2, 0)}, []PartitionLoad{{Number: 0, Leader: 5}, {Number: 1}},
			map[Session][]uint32{a: {0, 1}}, map[Session][]uint32{a: {0}, b: {1}}},
		{"no leader is local to nobody: given away", cover, []*Membership{memberAt(1, 3), memberAt(2, 0)}, []PartitionLoad{{Number: 0}, {Number: 1, Leader: 5}},
			map[Session][]uint32{a: {0, 1}}, map[Session][]uint32{a: {0}, b: {1}}},
		{"no leader is local to nobody: taken", cover, []*Membership{memberAt(1, 3), memberAt(2, 0)}, []PartitionLoad{{Number: 0}, {Number: 1}},
			nil, map[Session][]uint32{a: {0}, b: {1}}},
		{"strict: no leader is local to nobody", strict, []*Membership{memberAt(1, 0)}, []PartitionLoad{{Number: 0, Leader: 5}, {Number: 1}}, nil, map[Session][]uint32{a: {0}}},
		{"the largest backlogs go out first, to who has fewest", cover, []*Membership{memberAt(1, 0), memberAt(2, 0)},
			[]PartitionLoad{{Number: 0, Backlog: 1}, {Number: 1, Backlog: 9}, {Number: 2, Backlog: 5}}, nil, map[Session][]uint32{a: {0, 1}, b: {2}}},
		{"what is new goes to who is there", cover, []*Membership{memberAt(1, 1), memberAt(2, 2)}, []PartitionLoad{{Number: 0, Leader: 2}, {Number: 1, Leader: 1}},
			nil, map[Session][]uint32{a: {1}, b: {0}}},
		{"nobody", cover, nil, three, map[Session][]uint32{a: {0}}, map[Session][]uint32{}},
	} {
		require.Equal(t, step.want, Spread(step.policy, step.members, step.partitions, step.old, nil), step.name)
		members, partitions := slices.Clone(step.members), slices.Clone(step.partitions)
		slices.Reverse(members)
		slices.Reverse(partitions)
		require.Equal(t, step.want, Spread(step.policy, members, partitions, step.old, nil), "%s, in any order", step.name)
	}
}

// Who is away may be dead: it keeps what it had, and others take what becomes free.
func TestSpreadGivesNothingToThoseThatAreAway(t *testing.T) {
	a, b, c := session(1), session(2), session(3)
	all := []*Membership{memberAt(1, 0), memberAt(2, 0), memberAt(3, 0)}
	four := []PartitionLoad{{Number: 0}, {Number: 1}, {Number: 2}, {Number: 3}}
	for _, step := range []struct {
		name       string
		policy     wire.BindingPolicy
		members    []*Membership
		partitions []PartitionLoad
		away       map[Session]bool
		old, want  map[Session][]uint32
	}{
		{"what becomes free goes to who is there", wire.BindingCover, all[:2], four, map[Session]bool{b: true},
			map[Session][]uint32{a: {0}, b: {1}, c: {2, 3}}, map[Session][]uint32{a: {0, 2, 3}, b: {1}}},
		{"it keeps no more than its share", wire.BindingCover, all[:2], four, map[Session]bool{a: true},
			map[Session][]uint32{a: {0, 1, 2, 3}}, map[Session][]uint32{a: {0, 1}, b: {2, 3}}},
		{"it has its share again when it is back", wire.BindingCover, all[:2], four, nil,
			map[Session][]uint32{a: {0, 2, 3}, b: {1}}, map[Session][]uint32{a: {0, 2}, b: {1, 3}}},
		{"nobody is there: all are alike", wire.BindingCover, all[:2], four, map[Session]bool{a: true, b: true},
			map[Session][]uint32{a: {0}, b: {1}, c: {2, 3}}, map[Session][]uint32{a: {0, 2}, b: {1, 3}}},
		{"to a free partition goes one that is there", wire.BindingCover, all, four[:2], map[Session]bool{c: true},
			map[Session][]uint32{a: {0}, b: {0}, c: {0}}, map[Session][]uint32{a: {0}, b: {1}, c: {0}}},
		{"who is there chooses first", wire.BindingStrict, all[:2], four[:2], map[Session]bool{a: true}, nil, map[Session][]uint32{a: {1}, b: {0}}},
		{"local: none of its node", wire.BindingLocal, []*Membership{memberAt(1, 1), memberAt(2, 1)}, []PartitionLoad{{Number: 0, Leader: 1}, {Number: 1, Leader: 1}},
			map[Session]bool{b: true}, nil, map[Session][]uint32{a: {0, 1}, b: nil}},
	} {
		require.Equal(t, step.want, Spread(step.policy, step.members, step.partitions, step.old, step.away), step.name)
	}
}

// A spread of a group in which nothing has changed changes nothing, also if who is there
// has taken up so much that it has more than those that are away.
func TestASecondSpreadMovesNothing(t *testing.T) {
	members := []*Membership{memberAt(1, 1), memberAt(2, 1), memberAt(3, 1)}
	a, b, c := session(1), session(2), session(3)
	seven := make([]PartitionLoad, 7)
	for i := range seven {
		seven[i] = PartitionLoad{Number: uint32(i), Leader: 1}
	}
	for _, policy := range []wire.BindingPolicy{wire.BindingCover, wire.BindingLocal} {
		away := map[Session]bool{a: true, b: true}
		first := Spread(policy, members, seven, map[Session][]uint32{a: {0, 1, 2}}, away)
		require.Equal(t, map[Session][]uint32{a: {0, 1, 2}, b: nil, c: {3, 4, 5, 6}}, first)
		require.Equal(t, first, Spread(policy, members, seven, first, away))
	}
}

// R-SIB-13: without a local partition the load decides.
func TestR_SIB_13_SixRemoteConsumersOverThreePartitionsAreTwoEach(t *testing.T) {
	loads := []PartitionLoad{{Number: 0, Leader: 1, Backlog: 10}, {Number: 1, Leader: 2, Backlog: 30}, {Number: 2, Leader: 3, Backlog: 20}}
	for _, policy := range []wire.BindingPolicy{wire.BindingStrict, wire.BindingCover} {
		var of map[Session][]uint32
		var members []*Membership
		for i := range byte(6) {
			members = append(members, memberAt(i+1, 9))
			of = Spread(policy, members, loads, of, nil)
			if i == 0 && policy == wire.BindingStrict {
				require.Equal(t, []uint32{1}, of[session(1)], "the largest backlog is served first")
			}
		}
		counts := make(map[uint32]int)
		for _, list := range of {
			require.Len(t, list, 1)
			counts[list[0]]++
		}
		require.Equal(t, map[uint32]int{0: 2, 1: 2, 2: 2}, counts)
	}
}

// moved is how many partitions members lose that are still there.
func moved(old, now map[Session][]uint32, partitions int) (n int) {
	for s, list := range now {
		for _, p := range old[s] {
			if int(p) < partitions && !slices.Contains(list, p) {
				n++
			}
		}
	}
	return n
}

// fewestMoves tries every even spread of the partitions over the members.
func fewestMoves(members []*Membership, partitions int, old map[Session][]uint32) int {
	fewest := 1 << 30
	owner := make([]int, partitions)
	var try func(p int)
	try = func(p int) {
		if p == partitions {
			of := make(map[Session][]uint32)
			for i, m := range members {
				of[m.Session] = nil
				for q, o := range owner {
					if o == i {
						of[m.Session] = append(of[m.Session], uint32(q))
					}
				}
				if n := len(of[m.Session]); n < partitions/len(members) || n > (partitions+len(members)-1)/len(members) {
					return
				}
			}
			fewest = min(fewest, moved(old, of, partitions))
			return
		}
		for owner[p] = range members {
			try(p + 1)
		}
	}
	try(0)
	return fewest
}

// Members come and go, partitions are added: after each step what the policies promise
// holds, and where it can be counted, nothing has moved that could have stayed.
func TestSpreadsAreEvenAndMoveLittle(t *testing.T) {
	const seed = 7
	random := rand.New(rand.NewPCG(seed, seed))
	for run := range 600 {
		policy := []wire.BindingPolicy{wire.BindingCover, wire.BindingStrict}[run%2]
		partitions := 1 + random.IntN(4)
		var members []*Membership
		of := map[Session][]uint32{}
		for id := range byte(24) {
			switch k := random.IntN(8); {
			case k < 3 && len(members) > 0:
				members = slices.Delete(members, 0, 1)
			case k == 3 && partitions < 5:
				partitions++
			case k == 4 && len(members) > 2: // several at once
				members = members[2:]
			default:
				members = append(slices.Clone(members), memberAt(id+1, uint32(random.IntN(4))))
			}
			if len(members) > 0 {
				members[0], members[len(members)-1] = members[len(members)-1], members[0]
			}
			loads := make([]PartitionLoad, partitions)
			for i := range loads {
				loads[i] = PartitionLoad{Number: uint32(i), Leader: uint32(random.IntN(4)), Backlog: random.Uint64N(100)}
			}
			old := of
			of = Spread(policy, members, loads, old, nil)
			require.Len(t, of, len(members), "seed %d run %d", seed, run)
			count := make([]int, partitions)
			for _, m := range members {
				list := of[m.Session]
				require.NotEmpty(t, list)
				require.True(t, slices.IsSorted(list))
				for _, p := range list {
					count[p]++
				}
				if policy == wire.BindingStrict {
					require.Len(t, list, 1)
					if had := old[m.Session]; len(had) > 0 {
						require.Equal(t, had, list, "a strict binding stays")
					}
				}
			}
			if policy == wire.BindingStrict || len(members) == 0 {
				continue
			}
			require.NotZero(t, slices.Min(count), "seed %d run %d: %v over %d", seed, run, of, partitions)
			if len(members) > partitions {
				require.LessOrEqual(t, slices.Max(count)-slices.Min(count), 1)
				continue
			}
			require.Equal(t, 1, slices.Max(count))
			if len(members) <= 4 {
				require.Equal(t, fewestMoves(members, partitions, old), moved(old, of, partitions),
					"seed %d run %d: from %v to %v over %d", seed, run, old, of, partitions)
			}
		}
	}
}
