package groupmodel

import (
	"github.com/lockstepmq/lockstep/promise"
)

type order uint8

const (
	strict  order = iota
	replay        // next on receipt of the ack
	ungated       // next at once
)

// Config is the size of a world and what may happen in it.
type Config struct {
	Consumers int
	// Scopes gives each record its scope, by offset: {0, 0, 1} is two records of one
	// key and one of another. In mode shared every record has its own.
	Scopes []int
	// Terms is the highest term a leader may have.
	Terms int
	// Credit is how many records a session may hold.
	Credit int
	// Faults is how many of the faults below may happen, Nacks and Timeouts how many
	// of those, and Operations how many of an operator's.
	Faults, Nacks, Timeouts, Operations int

	// Kinds of faults.
	Break, Crash, Hang, Stick, LeaderCrash, LeaderStays bool
	// Late lets the attach of a broken link be read later.
	Late bool
	// Kinds of operations.
	Seek, Park, Skip, Move, Unbind bool

	// Order is the group's.
	Order order
	// Sticky is one active session for everything.
	Sticky bool
	// Limit is the number of attempts after which a record is dead-lettered, 0 for none.
	Limit int
	// Low begins with a horizon below all records.
	Low bool
	// Latecomers are consumers whose session is not on the list at the beginning.
	Latecomers int
	// Patient consumers come back in time: none reaches its deadline.
	Patient bool
	// Timeless leaves the timing assumption out: sessions may be removed while they
	// live. G2 and G4 do not hold then, all others must.
	Timeless bool
}

// model is a Config ready for use, with the rules that are off.
type model struct {
	Config
	off       [rules]bool
	consumers int
	records   int
	scopes    int
	scope     [maxRecords]int
	members   [maxRecords]records
	terms     int
	credit    int
	limit     int
	order     order
	sticky    bool
	timeless  bool
	late      bool

	watched bool    // tell what consumers see
	exact   bool    // epochs are not renumbered
	only    Promise // if set, nothing else is checked

	// The step that is being made, and its outcome.
	next state
	bad  *broken
	edge bool // the model's own limits are in the way
	told []promise.Event
}

func newModel(c Config, off ...Rule) *model {
	m := &model{
		Config: c, consumers: c.Consumers, records: len(c.Scopes), terms: c.Terms, credit: c.Credit,
		limit: c.Limit, sticky: c.Sticky, timeless: c.Timeless, late: c.Late,
	}
	for r, k := range c.Scopes {
		m.scope[r] = k
		m.members[k] |= 1 << r
		m.scopes = max(m.scopes, k+1)
	}
	m.order = c.Order
	for _, r := range off {
		m.off[r] = true
	}
	m.exact = m.off[epochIsTerm] || m.off[epochForgotten]
	return m
}

// initial is a world in which nothing has happened: the leader has applied its no-op,
// consumers are on the list and have links.
func (m *model) initial() *state {
	s := new(state)
	l := &s.leaders[0]
	l.term, l.ready = 1, 1
	l.state.index = 1
	if m.off[claimOfThisTerm] {
		l.fresh = 1
	}
	l.state.horizon = uint8(m.records)
	if m.Low {
		l.state.horizon = 0
	}
	for ci := range m.consumers {
		c := &s.consumers[ci]
		c.condition = working
		c.session = sessionOf(ci, 0)
		if ci >= m.consumers-m.Latecomers {
			continue
		}
		c.joined, c.attached, c.link, c.term = 1, 1, 1, 1
		l.state.sessions |= bit(c.session)
	}
	s.left = budget{
		faults: uint8(m.Faults), nacks: uint8(m.Nacks), timeouts: uint8(m.Timeouts), operations: uint8(m.Operations),
	}
	return s
}

// finished reports whether all records are done.
func (m *model) finished(s *state) bool {
	return s.leaders[0].state.done == 1<<m.records-1
}

// hopeful reports whether G6 speaks about a state: some consumer works.
func (m *model) hopeful(s *state) bool {
	for ci := range m.consumers {
		c := &s.consumers[ci]
		if c.condition == working && c.stuck == 0 && s.unbound&(1<<ci) == 0 {
			return true
		}
	}
	return false
}

// successors calls f for every action that is possible and the state that it leads
// to, which f may look at until it returns.
func (m *model) successors(s *state, f func(a action, next *state)) {
	m.actions(s, func(kind actionKind, x, y int) {
		a := action{kind, uint8(x), uint8(y)}
		if next := m.after(s, a); next != nil {
			f(a, next)
		}
	})
}

// after is the state that an action leads to, valid until the next call, or nil if the
// action is not possible.
func (m *model) after(s *state, a action) *state {
	m.next = *s
	m.bad, m.edge, m.told = nil, false, nil
	t := step{m, &m.next}
	if !t.performs(a) {
		return nil
	}
	t.forget()
	if !m.exact {
		m.next.renumber()
	}
	return &m.next
}

// actions calls try for each action that may be possible.
func (m *model) actions(s *state, try func(kind actionKind, x, y int)) {
	for li := range s.leaders {
		if s.leaders[li].term != 0 {
			m.leaderActions(s, li, try)
		}
	}
	for ci := range m.consumers {
		m.consumerActions(s, ci, try)
	}
	m.environmentActions(s, try)
	m.operatorActions(s, try)
}

func (m *model) leaderActions(s *state, li int, try func(kind actionKind, x, y int)) {
	l := &s.leaders[li]
	for ci := range m.consumers {
		c := &s.consumers[ci]
		if c.link == l.term && c.ins > 0 {
			try(leaderReads, li, ci)
		}
		for k := range m.scopes {
			if l.leases[k].session == 0 {
				try(leaderDelivers, 8*li+k, ci)
			}
		}
	}
	for k := range m.scopes {
		if l.leases[k].session == 0 {
			continue
		}
		if m.credit > 1 {
			try(leaderSendsAhead, li, k)
		}
		if s.consumers[consumerOf(l.leases[k].session)].stuck != 0 {
			try(leaderRevokes, li, k)
		} else if s.left.timeouts > 0 {
			try(leaderTimesOut, li, k)
		}
	}
	if li == 0 || m.off[removalVolatile] || m.off[removalOnReceipt] {
		for s := session(1); s <= session(m.consumers*maxIncarnations); s++ {
			if l.state.listed(s) {
				try(leaderRemoves, li, int(s))
			}
		}
	}
	if li != 0 {
		return
	}
	if l.tails > 0 && m.heardAfterApply(s, l) {
		try(leaderCommits, int(l.tail[0].kind), 0)
	}
	if m.Low {
		try(leaderRaises, 0, 0)
	}
	for k := range m.scopes {
		if m.limit > 0 {
			try(leaderBuries, k, 0)
		}
		if m.Park {
			try(operatorUnparks, k, 0)
		}
	}
	for ci := range m.consumers {
		if m.sticky {
			try(leaderActivates, ci, 0)
		}
		if m.Unbind {
			try(leaderDismisses, ci, 0)
		}
	}
	if m.Seek {
		try(leaderSeeks, 0, 0)
	}
	if m.Move {
		try(leaderTransfers, 0, 0)
		try(leaderGivesUp, 0, 0)
	}
}

// heardAfterApply reports whether there is room for the answer that the oldest entry
// will cause. The model's queues are short; that must not look like a loss.
func (m *model) heardAfterApply(s *state, l *leader) bool {
	e := &l.tail[0]
	if e.session == 0 {
		return true
	}
	c := &s.consumers[consumerOf(e.session)]
	return c.link != l.term || c.outs < maxOut || c.condition == hung
}

func (m *model) consumerActions(s *state, ci int, try func(kind actionKind, x, y int)) {
	c := &s.consumers[ci]
	if c.condition == working {
		for li := range s.leaders {
			try(consumerConnects, ci, li)
		}
		if c.outs > 0 {
			try(consumerReads, ci, int(c.out[0].kind))
		}
		for r := range m.records {
			switch c.held[r].progress {
			case queued:
				try(consumerStarts, ci, r)
			case running:
				try(consumerAcks, ci, r)
				if s.left.nacks > 0 {
					try(consumerNacks, ci, r)
				}
			}
		}
		try(consumerExpires, ci, 0)
	}
	if c.late.kind != noMessage {
		try(leaderReadsLate, ci, 0)
	}
	switch c.condition {
	case dead:
		try(consumerRestarts, ci, 0)
	case hung:
		try(consumerWakes, ci, 0)
	}
}

func (m *model) environmentActions(s *state, try func(kind actionKind, x, y int)) {
	if s.left.faults == 0 {
		return
	}
	for ci := range m.consumers {
		c := &s.consumers[ci]
		if c.condition == dead {
			continue
		}
		if m.Break && c.link != 0 {
			try(linkBreaks, ci, 0)
			if m.late {
				try(linkBreaks, ci, 1)
			}
		}
		if m.Crash {
			try(consumerCrashes, ci, 0)
		}
		if m.Hang {
			try(consumerHangs, ci, 0)
		}
		if m.Stick {
			try(consumerSticks, ci, 0)
		}
	}
	if l := &s.leaders[0]; int(l.term) < m.terms {
		for prefix := range int(l.tails) + 1 {
			if m.LeaderCrash {
				try(leaderCrashes, prefix, 0)
			}
			if m.LeaderStays {
				try(leaderIsDeposed, prefix, 0)
			}
		}
	}
}

func (m *model) operatorActions(s *state, try func(kind actionKind, x, y int)) {
	if s.left.operations == 0 {
		return
	}
	if m.Seek {
		try(operatorSeeks, 0, 0)
	}
	if m.Move {
		try(operatorMoves, 0, 0)
	}
	for k := range m.scopes {
		if m.Park {
			try(operatorParks, k, 0)
			try(operatorParks, k, 1)
		}
		if m.Skip {
			try(operatorSkips, k, 0)
		}
	}
	if m.Unbind {
		for ci := range m.consumers {
			try(operatorUnbinds, ci, 0)
		}
	}
}
