package sim

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/lockstepmq/lockstep/log"
	"github.com/lockstepmq/lockstep/partition"
	"github.com/lockstepmq/lockstep/partition/group"
	"github.com/lockstepmq/lockstep/wire"
)

// groups are the consumers of the queue that the partition of a fleet is, and what all of
// them have seen. The machines' clocks go as they like, so nothing is said about time:
// only what holds without it (GROUPS G1, G3, G5, G6).
type groups struct {
	fleet     *fleet
	settings  wire.GroupSettings
	version   uint64 // of the settings
	consumers []*consumer
	workers   []*worker // whose consumers they are, where a coordinator binds them
	told      map[bindingKey][]uint32
	sessions  int
	counts    GroupCounts
}

// ledger is what consumers have seen of one partition.
type ledger struct {
	groups   *groups
	cell     *cell
	keys     []uint64                      // of the committed records
	acked    map[wire.Offset]bool          // somebody has sent an acknowledgement
	accepted map[wire.Offset]group.Session // whose was confirmed
	since    map[wire.Offset]wire.Index    // and what was applied where it was
	given    map[grantKey]group.Session
	newest   map[wire.Offset]wire.Index // epoch that a record was given with
	checked  wire.Offset                // everything below it that is gone was acknowledged
}

func newLedger(g *groups, c *cell) *ledger {
	return &ledger{
		groups: g, cell: c, acked: map[wire.Offset]bool{}, accepted: map[wire.Offset]group.Session{}, since: map[wire.Offset]wire.Index{}, given: map[grantKey]group.Session{}, newest: map[wire.Offset]wire.Index{},
	}
}

// GroupCounts say what has happened to the consumers of a fleet.
type GroupCounts struct {
	Attached    int // attaches that were sent
	Granted     int // runs of records
	Nacked      int // records that were given back
	Consumed    int // acknowledgements that were accepted
	Stale       int // outcomes that were not
	Heard       int // heartbeats that were confirmed
	SessionGone int // sessions that hear that they were removed
	HandedOver  int // leaderships that were given away with the leases
	Bound       int // workers that a coordinator has taken
	Rebound     int // bindings that a worker took over
	Outdated    int // consumers that were told that there is a newer binding
	Altered     int // settings that replaced others
	Reshaped    int // consumers that heard of another mode or scope than before
}

// Add adds another run's counts.
func (c *GroupCounts) Add(o *GroupCounts) {
	c.Attached += o.Attached
	c.Granted += o.Granted
	c.Nacked += o.Nacked
	c.Consumed += o.Consumed
	c.Stale += o.Stale
	c.Heard += o.Heard
	c.SessionGone += o.SessionGone
	c.HandedOver += o.HandedOver
	c.Bound += o.Bound
	c.Rebound += o.Rebound
	c.Outdated += o.Outdated
	c.Altered += o.Altered
	c.Reshaped += o.Reshaped
}

// grantKey names what only one session may have: an epoch of a scope.
type grantKey struct {
	scope uint64
	epoch wire.Index
}

// consumer is one consumer that does what a client has to.
type consumer struct {
	groups      *groups
	ledger      *ledger
	worker      *worker // nil: it has the partition anyway
	session     group.Session
	predecessor group.Session
	attempt     uint64
	term        wire.Term
	link        *fleetLink
	terms       terms // as it has heard last
	attached    bool
	held        map[wire.Offset]*holding
	number      uint64

	// The lowest generation of a binding that the session can have been listed with: it has
	// attached with this one before it was served.
	least  uint32
	listed bool

	leaving bool // the partition is another worker's
	left    bool
}

// terms are what the scopes of a group depend on.
type terms struct {
	mode  wire.GroupMode
	scope wire.GroupScope
}

// holding is a record that a consumer has, and what it has said of it.
type holding struct {
	epoch wire.Index
	kind  wire.OutcomeKind
	terms terms // that it was given under
}

// fleetLink is a link of a consumer to a member. What the member says waits until the
// consumer reads it.
type fleetLink struct {
	c          *consumer
	m          *member
	life       int
	generation uint32 // of the binding that it was begun with
	served     bool   // by that member, whatever the consumer has read of it
	terms      terms  // as that member said when it served it
	frames     []func()
}

func newGroups(f *fleet) *groups {
	g := &groups{fleet: f, version: 7}
	for _, c := range f.cells {
		if !c.metadata {
			c.ledger = newLedger(g, c)
		}
	}
	g.settings = wire.GroupSettings{SessionMs: 3000, BackoffMs: 200, BackoffMaxMs: 400}
	switch f.random.IntN(6) {
	case 0:
		g.settings.Mode = wire.ModeStream
	case 1:
		g.settings.Mode, g.settings.Scope, g.settings.Holder = wire.ModeSerial, wire.ScopeDestination, wire.HolderAny
	case 2, 3:
		g.settings.Mode, g.settings.Window = wire.ModeSerial, uint32(1+f.random.IntN(3))
	default:
		g.settings.Mode = wire.ModeShared
	}
	if f.random.IntN(2) == 0 && !f.options.Quiet { // in a hurry
		g.settings.AckWaitMs, g.settings.RevokeMs = 300, 100
	}
	if f.options.Cluster {
		g.hire()
		return g
	}
	g.settings = g.settings.WithDefaults()
	for range 1 + f.random.IntN(3) {
		c := &consumer{groups: g, ledger: f.cells[0].ledger, held: map[wire.Offset]*holding{}}
		c.renew(false)
		g.consumers = append(g.consumers, c)
	}
	return g
}

// intents are the groups that there are from the beginning.
func (g *groups) intents() []partition.Intent {
	return []partition.Intent{{ID: 7, Version: g.version, Name: "workers", Settings: g.settings}}
}

// alter gives the group other settings. Each node hears of it in its own time; one that
// knows already tells another.
func (g *groups) alter() {
	f := g.fleet
	if f.random.IntN(2) == 0 {
		s := g.settings
		switch n := f.random.IntN(4); {
		case n < 2 && f.erasing() != 2: // else an old record stays, see keeps
			s.Mode = wire.GroupMode(1 + f.random.IntN(3))
			s.Scope, s.Holder, s.Order = 0, 0, 0
			if s.Mode == wire.ModeSerial && f.random.IntN(3) == 0 && f.council == nil {
				s.Scope, s.Holder = wire.ScopeDestination, wire.HolderAny
			}
			s = s.WithDefaults()
		case n == 2:
			s.SessionMs = uint32(1000 * (1 + f.random.IntN(4)))
		default:
			s.AckWaitMs, s.Window = uint32(300*(1+f.random.IntN(100))), uint32(1+f.random.IntN(3))
		}
		g.settings = s
		g.version++
		g.counts.Altered++
		f.trace.add("the group is altered: %+v", s)
		if f.council != nil {
			f.council.alter(s)
		}
	}
	for _, m := range f.replicas() {
		if f.council == nil && m.up && !m.paused && f.random.IntN(3) > 0 {
			m.hear()
		}
	}
}

// hear brings what the group is to be now.
func (m *member) hear() {
	if g := m.fleet.groups; m.heard != g.version {
		m.heard = g.version
		m.part.Groups().Intend(13+wire.Index(g.version), g.intents())
	}
}

// committed takes in the keys of records.
func (g *ledger) committed(base wire.Offset, body []byte) {
	for ; len(body) > 0 && base == wire.Offset(len(g.keys)); base = wire.Offset(len(g.keys)) {
		b, rest, err := wire.NextBodyBatch(body)
		if err != nil {
			g.cell.fleet.fail("the committed records at offset %d: %v", base, err)
		}
		index, err := wire.ParseRecordIndex(b.Index)
		if err != nil {
			g.cell.fleet.fail("the index of the committed records at offset %d: %v", base, err)
		}
		for i := range index.Len() {
			g.keys = append(g.keys, index.Entry(i).KeyHash)
		}
		body = rest
	}
}

// scope is what only one session handles of at a time.
func (g *ledger) scope(o wire.Offset, t terms) uint64 {
	switch {
	case t.mode == wire.ModeShared:
		return simKeys + 1 + uint64(o)
	case t.mode == wire.ModeSerial && t.scope == wire.ScopeKey:
		return g.keys[o]
	}
	return 0
}

// check finds records that are gone although nobody has acknowledged them.
func (g *ledger) check(m *member) {
	for start := m.state.Start(); g.checked < start; g.checked++ {
		if !g.acked[g.checked] {
			g.cell.fleet.fail("%s begins at offset %d, and nobody has acknowledged record %d", m, start, g.checked)
		}
	}
}

// rest reports whether everything is consumed.
func (g *groups) rest() bool {
	for _, m := range g.fleet.replicas() {
		if m.cell.ledger != nil && m.state.Start() != m.log.Watermark().Next {
			return false
		}
	}
	return true
}

// state says how the group stands, for whoever looks for what it waits for.
func (g *groups) state() (text string) {
	for _, m := range g.fleet.replicas() {
		if m.cell.ledger != nil {
			text += fmt.Sprintf("\n%s begins at offset %d of %d", m, m.state.Start(), m.log.Watermark().Next)
			m.part.Groups().Show("workers", func(shown *wire.GroupPartition) { text += fmt.Sprintf(": %+v", *shown) })
		}
	}
	for _, w := range g.workers {
		text += fmt.Sprintf("\n%s: linked %t, asks partition %d, bound to %+v", w, w.link != nil, w.at, w.binding)
	}
	for _, c := range g.consumers {
		text += fmt.Sprintf("\n%s: attached %t, linked %t, holds", c, c.attached, c.link != nil)
		for _, o := range slices.Sorted(maps.Keys(c.held)) {
			text += fmt.Sprintf(" %d:%+v", o, *c.held[o])
		}
	}
	return fmt.Sprintf("\n%s, %s: %s", g.settings.Mode, g.settings.Scope, text)
}

func (c *consumer) String() string { return fmt.Sprintf("consumer %x", c.session[:2]) }

// renew begins a new session. It drops all that it held.
func (c *consumer) renew(known bool) {
	c.predecessor = group.Session{}
	if known {
		c.predecessor = c.session
	}
	c.groups.sessions++
	c.session = group.Session{byte(c.groups.sessions), byte(c.groups.sessions >> 8), 15: 1}
	clear(c.held)
	c.least, c.listed = 0, false
}

// act does the consumer's next thing.
func (c *consumer) act() {
	f := c.groups.fleet
	if l := c.link; l != nil && (!l.m.up || l.m.life != l.life || f.random.IntN(60) == 0 && !f.settling && !f.options.Quiet) {
		c.unlink()
	}
	if c.link == nil && c.leaving && len(c.held) == 0 {
		c.left = true
		return
	}
	if c.link == nil {
		c.attach()
		return
	}
	for n := 1 + f.random.IntN(8); (n > 0 || f.settling) && c.link != nil && len(c.link.frames) > 0; n-- {
		next := c.link.frames[0]
		c.link.frames = c.link.frames[1:]
		next()
	}
	if c.link == nil || !c.attached {
		return
	}
	if f.random.IntN(3) == 0 || f.settling {
		c.number++
		c.put(partition.Input{Kind: partition.InputHeartbeat, Consumer: c.link, Number: c.number})
	}
	if c.worker == nil && f.random.IntN(300) == 0 && !f.settling {
		f.trace.add("%s leaves, and comes back as another", c)
		c.put(partition.Input{Kind: partition.InputLeave, Consumer: c.link})
		c.unlink()
		c.renew(f.random.IntN(2) == 0)
		return
	}
	c.handle()
}

// unlink ends the link without a word, so far as the consumer knows.
func (c *consumer) unlink() {
	l := c.link
	if l == nil {
		return
	}
	c.link, c.attached = nil, false
	if l.m.up && l.m.life == l.life {
		_ = l.m.part.Groups().Put(partition.Input{Kind: partition.InputGone, Consumer: l}) // a closed partition has dropped it
	}
}

// attach turns to whoever leads, as far as it knows the newest term.
func (c *consumer) attach() {
	f := c.groups.fleet
	leaders := c.ledger.cell.leaders(c.term)
	if len(leaders) == 0 {
		return
	}
	m := leaders[f.random.IntN(len(leaders))]
	c.term, _ = m.group.Leading()
	c.attempt++
	r := &wire.AttachRequest{
		Group: "workers", Session: c.session, Predecessor: c.predecessor, Attempt: c.attempt, Term: c.term, Capacity: 50, Refill: 50, Bytes: 1 << 20, Claims: c.outcomes(func(*holding) bool { return true }),
	}
	if w := c.worker; w != nil {
		r.Generation, r.Counter = w.binding.Generation, w.binding.Counter
		if d, known := m.replicas[0].metadata.View().Destination(cellsName); !known || r.Generation > d.Coordinates().Generation {
			return // the node is about to hear of it
		}
		if !c.listed {
			c.least = min(cmp.Or(c.least, r.Generation), r.Generation)
		}
	}
	f.trace.add("%s attaches to %s of term %d with %d claims", c, m, c.term, len(r.Claims))
	c.link = &fleetLink{c: c, m: m, life: m.life, generation: r.Generation}
	f.groups.counts.Attached++
	c.put(partition.Input{Kind: partition.InputAttach, Consumer: c.link, Group: "workers", Attach: r})
}

func (c *consumer) put(in partition.Input) {
	m := c.link.m
	if err := m.part.Groups().Put(in); err != nil {
		c.link, c.attached = nil, false
		return
	}
	if c.groups.fleet.random.IntN(3) > 0 && !m.stopped() {
		m.turn()
	}
}

// outcomes are records that the consumer has, in order, with what it says of them.
func (c *consumer) outcomes(which func(*holding) bool) (list []wire.Outcome) {
	for _, o := range slices.Sorted(maps.Keys(c.held)) {
		if h := c.held[o]; which(h) {
			list = append(list, wire.Outcome{Offset: o, Count: 1, Epoch: h.epoch, Kind: h.kind})
		}
	}
	return list
}

// handle settles some of what the consumer has.
func (c *consumer) handle() {
	f, g := c.groups.fleet, c.ledger
	said := map[*holding]bool{}
	passed := map[uint64]bool{} // scopes of which an earlier record waits
	for _, o := range slices.Sorted(maps.Keys(c.held)) {
		h := c.held[o]
		if h == nil || h.kind != wire.OutcomeHeld || passed[g.scope(o, h.terms)] {
			continue
		}
		if f.random.IntN(3) == 0 && !f.settling || f.keeps(o) && !f.settling {
			passed[g.scope(o, h.terms)] = true
			continue
		}
		said[h] = true
		h.kind = wire.OutcomeAck
		if f.random.IntN(12) == 0 && !f.settling && !f.options.Quiet {
			h.kind = wire.OutcomeNack
			if f.random.IntN(2) == 0 {
				h.kind = wire.OutcomeReleased
			}
			f.groups.counts.Nacked++
			// What is behind it in its scope is given back with it.
			maps.DeleteFunc(c.held, func(other wire.Offset, _ *holding) bool {
				return other > o && g.scope(other, h.terms) == g.scope(o, h.terms)
			})
			continue
		}
		g.acked[o] = true
	}
	if len(said) > 0 {
		c.put(partition.Input{Kind: partition.InputOutcomes, Consumer: c.link, Outcomes: c.outcomes(func(h *holding) bool { return said[h] })})
	}
}

// settle takes in an answer to what the consumer has said, or claimed.
func (c *consumer) settle(a wire.OutcomeAnswer, applied wire.Index) (gone bool) {
	f, g := c.groups.fleet, c.ledger
	for o := a.Offset; o < a.Offset+wire.Offset(a.Count); o++ {
		h := c.held[o]
		if h == nil || h.epoch != a.Epoch {
			continue
		}
		delete(c.held, o)
		if a.Code != wire.CodeOK {
			f.groups.counts.Stale++
			gone = gone || a.Code == wire.CodeSessionGone
			if a.Code == wire.CodeOutOfOrder {
				f.fail("%s: the outcome of record %d is out of order", c, o)
			}
			continue
		}
		if h.kind != wire.OutcomeAck {
			continue
		}
		f.groups.counts.Consumed++
		if who, before := g.accepted[o]; before && who != c.session {
			f.fail("%s: its acknowledgement of record %d is accepted, and that of %x was", c, o, who[:2])
		}
		if a.Epoch < g.newest[o] {
			f.fail("%s: its acknowledgement of record %d with epoch %d is accepted, and it was given with epoch %d since", c, o, a.Epoch, g.newest[o])
		}
		g.accepted[o] = c.session
		if g.since[o] == 0 {
			g.since[o] = applied
		}
		if h.terms.mode != wire.ModeShared {
			for before := g.checked; before < o; before++ {
				if !g.acked[before] && g.scope(before, h.terms) == g.scope(o, h.terms) {
					f.fail("%s: its acknowledgement of record %d is accepted, and nobody has acknowledged record %d", c, o, before)
				}
			}
		}
	}
	return gone
}

// read has the consumer hear something later, if the link is still its newest.
func (l *fleetLink) read(what func()) {
	l.frames = append(l.frames, func() {
		if l.c.link == l {
			what()
		}
	})
}

// Attached implements group.Consumer.
func (l *fleetLink) Attached(r *wire.AttachResponse, err error) {
	applied := l.m.group.Applied()
	if l.served = err == nil; l.served {
		l.terms = terms{r.Mode, r.Scope}
	}
	l.c.listed = l.c.listed || l.served && l.c.link == l
	l.read(func() {
		c := l.c
		if err != nil {
			c.groups.fleet.trace.add("%s: %s does not take it: %v", c, l.m, err)
			c.link = nil
			var e *wire.Error
			switch {
			case errors.Is(err, wire.CodeSessionGone):
				c.renew(true)
			case errors.Is(err, wire.CodeStaleBinding) && errors.As(err, &e) && c.worker != nil:
				c.groups.counts.Outdated++
				c.worker.outdated(uint32(e.Next >> 32))
			}
			return
		}
		c.attached = true
		if c.terms != (terms{}) && c.terms != l.terms {
			c.groups.counts.Reshaped++
		}
		c.terms = l.terms
		for _, a := range r.Refused {
			if c.settle(a, applied) {
				c.unlink()
				c.renew(true)
				return
			}
		}
	})
}

// Deliver implements group.Consumer.
func (l *fleetLink) Deliver(d *group.Delivery) {
	grants := slices.Clone(d.Grants)
	f, g := l.c.groups.fleet, l.c.ledger
	session := l.c.session
	if w := l.c.worker; w != nil {
		w.groups.older(l)
	}
	for _, x := range grants {
		for o := x.Offset; o < x.Offset+wire.Offset(x.Count); o++ {
			key := grantKey{scope: g.scope(o, l.terms), epoch: x.Epoch}
			if who, before := g.given[key]; before && who != session {
				f.fail("%s: record %d is given to %x with epoch %d, which %x has", l.m, o, session[:2], x.Epoch, who[:2])
			}
			g.given[key] = session
			if before := g.newest[o]; f.options.Quiet && !f.settling && before > 0 && x.Epoch > before {
				f.fail("%s: record %d is given with epoch %d and was given with epoch %d; nobody has failed or given it back", l.m, o, x.Epoch, before)
			}
			g.newest[o] = max(g.newest[o], x.Epoch)
			if at, ok := g.since[o]; ok && x.Epoch > at {
				f.fail("%s: record %d is given with epoch %d; it was acknowledged at entry %d", l.m, o, x.Epoch, at)
			}
		}
	}
	l.read(func() {
		for _, x := range grants {
			for o := x.Offset; o < x.Offset+wire.Offset(x.Count); o++ {
				l.c.held[o] = &holding{epoch: x.Epoch, terms: l.terms}
			}
			f.groups.counts.Granted++
		}
	})
}

// Answer implements group.Consumer.
func (l *fleetLink) Answer(a []wire.OutcomeAnswer) {
	answers, applied := slices.Clone(a), l.m.group.Applied()
	l.read(func() {
		for _, x := range answers {
			if l.c.settle(x, applied) {
				l.c.unlink()
				l.c.renew(true)
				return
			}
		}
	})
}

// Revoke implements group.Consumer: handlers here are over at once, or take their time.
func (l *fleetLink) Revoke([]wire.Revoke) {}

// Lost implements group.Consumer.
func (l *fleetLink) Lost(r []wire.Lost) {
	lost := slices.Clone(r)
	l.read(func() {
		var seen []wire.Outcome
		for _, x := range lost {
			for o := x.Offset; o < x.Offset+wire.Offset(x.Count); o++ {
				if h := l.c.held[o]; h != nil && h.epoch == x.Epoch {
					delete(l.c.held, o)
				}
			}
			seen = append(seen, wire.Outcome{Offset: x.Offset, Count: x.Count, Epoch: x.Epoch, Kind: wire.OutcomeLostSeen})
		}
		slices.SortFunc(seen, func(a, b wire.Outcome) int { return int(a.Offset) - int(b.Offset) })
		l.c.put(partition.Input{Kind: partition.InputOutcomes, Consumer: l, Outcomes: seen})
	})
}

// Confirmed implements group.Consumer.
func (l *fleetLink) Confirmed(uint64) { l.c.groups.counts.Heard++ }

// Closed implements group.Consumer.
func (l *fleetLink) Closed(err error) {
	l.served = false
	l.read(func() {
		c := l.c
		c.groups.fleet.trace.add("%s: its link is closed: %v", c, err)
		c.link, c.attached = nil, false
		var e *wire.Error
		switch {
		case c.leaving && len(c.held) == 0, c.leaving && err == nil:
			c.left = true
		case errors.Is(err, wire.CodeSessionGone):
			c.groups.counts.SessionGone++
			c.renew(true)
		case errors.Is(err, wire.CodeStaleBinding) && errors.As(err, &e) && c.worker != nil:
			c.groups.counts.Outdated++
			c.worker.outdated(uint32(e.Next >> 32))
		}
	})
}

// fleetEffects are what groups need of a member.
type fleetEffects struct{ m *member }

// Scan implements partition.Effects.
func (e fleetEffects) Scan(from wire.Offset, limit int) {
	e.m.Submit(&scanJob{part: e.m.part, log: e.m.log, from: from, limit: limit})
}

type scanJob struct {
	part  *partition.Partition
	log   *log.Log
	from  wire.Offset
	limit int
	found log.Scanned
	err   error
}

func (j *scanJob) Run()  { j.err = j.log.Scan(j.from, j.limit, &j.found) }
func (j *scanJob) Done() { j.part.Scanned(j.found.Batches, j.err) }

// Confirm implements partition.Effects.
func (e fleetEffects) Confirm(then func(error)) {
	e.m.group.ReadIndex(func(_ wire.Index, err error) { then(err) })
}

// NextOf implements partition.Effects.
func (e fleetEffects) NextOf(g group.ID, s group.Scope, publisher bool, after, below wire.Offset, done func(wire.Offset) bool) {
	e.m.Submit(&findJob{part: e.m.part, log: e.m.log, group: g, scope: s, publisher: publisher, after: after, below: below, done: done})
}

type findJob struct {
	part         *partition.Partition
	log          *log.Log
	group        group.ID
	scope        group.Scope
	publisher    bool
	after, below wire.Offset
	done         func(wire.Offset) bool
	at           wire.Offset
	ok           bool
	err          error
}

func (j *findJob) Run() {
	j.at, j.ok, j.err = j.log.NextOf(uint64(j.scope), j.publisher, j.after, j.below, j.done)
}

func (j *findJob) Done() {
	if j.err == nil { // else the machine has no power any more
		j.part.Found(j.group, j.scope, j.after, j.at, j.ok)
	}
}

// Partitions: the consumers of the fleet gather.
func (fleetEffects) Expired(uint64)                    {}
func (fleetEffects) Uncovered(string, []uint32)        {}
func (fleetEffects) Coordinates() (group.Term, error)  { return group.Term{Generation: 1}, nil }
func (fleetEffects) Partitions() []group.PartitionLoad { return nil }

// Locate implements partition.Effects.
func (e fleetEffects) Locate(int64, func(wire.Offset, error)) {}

// Letters implements partition.Effects: no record fails for good.
func (e fleetEffects) Letters(*partition.LetterRound) {}
