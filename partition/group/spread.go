package group

import (
	"cmp"
	"slices"
	"sort"

	"github.com/lockstepmq/lockstep/wire"
)

// PartitionLoad is one partition of a destination as its groups are spread over it. What
// is not known is 0: that costs locality and nothing else.
type PartitionLoad struct {
	Number  uint32
	Leader  uint32 // node
	Backlog uint64 // records
}

// Spread says which partitions each member has, given what they had.
//
//	cover   every partition has a member and every member a partition: the partitions are
//	        shared out evenly, or, if there are fewer of them than members, the members are
//	strict  every member has one partition and keeps it
//	gather  every member has all; that is kept once, under the zero session
//	local   cover, for each node by itself: its members have the partitions that are led there
//
// A member keeps what it has as far as that allows. A partition goes to a member at its
// leader's node if there is one, else to the one with the fewest; a member to a partition
// that is led at its node, else to the one with the fewest members, of these to the one
// with the largest backlog. Without partitions or members nobody has anything.
//
// A member that is away may be dead. While others are there it is given nothing that it
// did not have: that would have to wait for the session timeout once more.
func Spread(policy wire.BindingPolicy, members []*Membership, partitions []PartitionLoad, old map[Session][]uint32, away map[Session]bool) map[Session][]uint32 {
	s := spread{
		members: slices.SortedFunc(slices.Values(members), func(a, b *Membership) int { return compareSessions(a.Session, b.Session) }),
		loads:   slices.SortedFunc(slices.Values(partitions), func(a, b PartitionLoad) int { return cmp.Compare(a.Number, b.Number) }),
		of:      make(map[Session][]uint32, len(members)),
		at:      make(map[uint32]*PartitionLoad, len(partitions)),
	}
	if slices.ContainsFunc(members, func(m *Membership) bool { return !away[m.Session] }) {
		s.away = away
	}
	if len(members) == 0 || len(partitions) == 0 {
		return s.of
	}
	for i := range s.loads {
		s.at[s.loads[i].Number] = &s.loads[i]
	}
	switch {
	case policy == wire.BindingGather:
		s.of[Session{}] = s.numbers()
	case policy == wire.BindingLocal:
		s.apart(old)
	case policy == wire.BindingCover && len(members) <= len(partitions):
		s.shareOut(old)
	default:
		s.place(old, policy == wire.BindingStrict)
	}
	return s.of
}

type spread struct {
	members []*Membership
	away    map[Session]bool // empty if nobody is there
	loads   []PartitionLoad
	at      map[uint32]*PartitionLoad
	of      map[Session][]uint32
}

func (s *spread) numbers() []uint32 {
	list := make([]uint32, len(s.loads))
	for i := range s.loads {
		list[i] = s.loads[i].Number
	}
	return list
}

// had are the partitions of old that there are.
func (s *spread) had(m *Membership, old map[Session][]uint32) []uint32 {
	return slices.DeleteFunc(slices.Clone(old[m.Session]), func(n uint32) bool { return s.at[n] == nil })
}

// apart spreads what each node leads over the members there. A partition without a leader
// stays with whoever had it.
func (s *spread) apart(old map[Session][]uint32) {
	members := make(map[uint32][]*Membership)
	loads := make(map[uint32][]PartitionLoad)
	homes := make(map[uint32]uint32) // of partitions without a leader
	for _, m := range s.members {
		members[m.Node] = append(members[m.Node], m)
		for _, n := range s.had(m, old) {
			homes[n] = m.Node
		}
	}
	for _, p := range s.loads {
		node := p.Leader
		if node == 0 {
			node = homes[p.Number]
		}
		loads[node] = append(loads[node], p)
	}
	for node, of := range members {
		for session, list := range Spread(wire.BindingCover, of, loads[node], old, s.away) {
			s.of[session] = list
		}
	}
}

// shareOut gives every partition to one member, each as many as the others or one more,
// but none to those that are away.
func (s *spread) shareOut(old map[Session][]uint32) {
	type share struct {
		*Membership
		had, has []uint32
		room     int
	}
	shares := make([]*share, len(s.members))
	taken := make(map[uint32]bool, len(s.loads))
	near := make(map[uint32]bool) // nodes with members
	for i, m := range s.members {
		near[m.Node] = m.Node != 0
		shares[i] = &share{Membership: m}
	}
	for i, m := range s.members { // of several with the same partition one had it
		for _, n := range s.had(m, old) {
			if !taken[n] {
				taken[n] = true
				shares[i].had = append(shares[i].had, n)
			}
		}
	}
	// Those that have most may have one more: that moves least.
	slices.SortStableFunc(shares, func(a, b *share) int { return cmp.Compare(len(b.had), len(a.had)) })
	clear(taken)
	// Of those that are away the first have the larger shares. Counted among all, who is away
	// would fall behind who takes up what others do not, and lose more each time.
	rest, away := len(s.loads), 0
	for _, m := range shares {
		if s.away[m.Session] {
			m.room = min(len(m.had), evenly(len(s.loads), len(shares), away))
			rest -= m.room
			away++
		}
	}
	of := len(shares) - away
	there := of
	for _, m := range shares {
		if !s.away[m.Session] {
			m.room = evenly(rest, of, of-there)
			there--
		}
		// It keeps first what is local to it, and gives away first what is local to another.
		rank := func(n uint32) int {
			switch leader := s.at[n].Leader; {
			case leader != 0 && leader == m.Node:
				return 0
			case near[leader]:
				return 2
			}
			return 1
		}
		slices.SortStableFunc(m.had, func(a, b uint32) int { return cmp.Compare(rank(a), rank(b)) })
		for _, n := range m.had[:min(m.room, len(m.had))] {
			taken[n] = true
			m.has = append(m.has, n)
		}
		m.room -= len(m.has)
	}
	free := slices.DeleteFunc(slices.Clone(s.loads), func(p PartitionLoad) bool { return taken[p.Number] })
	sort.SliceStable(free, func(i, j int) bool { return free[i].Backlog > free[j].Backlog })
	give := func(p *PartitionLoad, local bool) bool {
		var to *share
		for _, m := range shares {
			if m.room > 0 && (!local || p.Leader != 0 && m.Node == p.Leader) && (to == nil || len(m.has) < len(to.has)) {
				to = m
			}
		}
		if to == nil {
			return false
		}
		to.has = append(to.has, p.Number)
		to.room--
		return true
	}
	free = slices.DeleteFunc(free, func(p PartitionLoad) bool { return give(&p, true) })
	for i := range free {
		give(&free[i], false)
	}
	for _, m := range shares {
		slices.Sort(m.has)
		s.of[m.Session] = m.has
	}
}

// evenly is the share of number i when n are shared out among of.
func evenly(n, of, i int) int {
	if i < n%of {
		return n/of + 1
	}
	return n / of
}

// place gives every member one partition: evenly, or, if loose, where it is best for it.
func (s *spread) place(old map[Session][]uint32, loose bool) {
	each, more := len(s.members)/len(s.loads), len(s.members)%len(s.loads) // more may have one more
	has := make(map[uint32]int, len(s.loads))
	room := func(n uint32) bool { return loose || has[n] < each || has[n] == each && more > 0 }
	put := func(m *Membership, n uint32) {
		s.of[m.Session] = []uint32{n}
		if has[n] == each {
			more--
		}
		has[n]++
	}
	// better reports whether a is better than b for a member of the node.
	better := func(node uint32, a, b *PartitionLoad) bool {
		local := func(p *PartitionLoad) bool { return node != 0 && p.Leader == node }
		switch {
		case local(a) != local(b):
			return local(a)
		case has[a.Number] != has[b.Number]:
			return has[a.Number] < has[b.Number]
		}
		return a.Backlog > b.Backlog
	}
	best := func(m *Membership, among []uint32) (found *PartitionLoad) {
		for _, n := range among {
			if p := s.at[n]; room(n) && (found == nil || better(m.Node, p, found)) {
				found = p
			}
		}
		return found
	}
	// Who is away stays first and moves last: those that are there go where nobody is.
	byPresence := func(a, b *Membership) int {
		switch {
		case s.away[a.Session] == s.away[b.Session]:
			return 0
		case s.away[a.Session]:
			return -1
		}
		return 1
	}
	slices.SortStableFunc(s.members, byPresence)
	var rest []*Membership
	for _, m := range s.members {
		if p := best(m, s.had(m, old)); p != nil {
			put(m, p.Number)
		} else {
			rest = append(rest, m)
		}
	}
	slices.SortStableFunc(rest, func(a, b *Membership) int { return byPresence(b, a) })
	all := s.numbers()
	for _, m := range rest {
		put(m, best(m, all).Number)
	}
}

// Uncovered are the partitions that no member has.
func (m *Members) Uncovered(partitions []PartitionLoad) (list []uint32) {
	has := make(map[uint32]bool, len(partitions))
	for _, numbers := range m.Partitions {
		for _, n := range numbers {
			has[n] = true
		}
	}
	for i := range partitions {
		if n := partitions[i].Number; !has[n] {
			list = append(list, n)
		}
	}
	return list
}

// Of are the partitions of a session.
func (m *Members) Of(session Session) []uint32 {
	if all, gathers := m.Partitions[Session{}]; gathers {
		return all
	}
	return m.Partitions[session]
}
