package group

import (
	"maps"
	"slices"
	"time"

	"github.com/lockstepmq/lockstep/wire"
)

const (
	// MinMemberTimeout is the shortest silence after which a consumer is taken off the list
	// of members, however short the session timeout of its group is. Consumers say three
	// times in that time that they live, and that costs one partition for all of them.
	MinMemberTimeout = time.Second
	// maxEnrol bounds the bytes of the members that one entry lists.
	maxEnrol = 128 << 10
	// maxUnheard bounds how many bindings a coordinator can have lost that consumers know of.
	maxUnheard = 1 << 16
	// A binding names all members and all of them hear of it. Where there are many, the next
	// one waits for bindingPause per member: what comes meanwhile is one change, not many.
	bindingPause = 100 * time.Microsecond
	crowd        = 100
	// leaderLook is how often the coordinator of a group that is bound to local partitions
	// looks who leads them.
	leaderLook = time.Second
)

// Binder is the link of one consumer to the coordinator. Its methods are called in the
// owner's turn: they must not block, must not call back, and copy what they keep.
type Binder interface {
	// Bound answers the request. With an error it is the last call.
	Bound(r *wire.BindResponse, err error)
	Rebound(b *wire.GroupBinding)
	// Confirmed says that the coordinator has read the heartbeat of that number.
	Confirmed(number uint64)
	// Closed is the last call. A nil error ends what the consumer left by itself.
	Closed(err error)
}

// Coordinator says which consumers of one group have which partitions of the destination.
// It runs at the leader of one of them, whose log keeps the members and the binding. It
// proposes; who holds a record only the leader of the record's partition decides, and a
// consumer that is told to give up a partition finishes there what it has.
//
//	Bind, Leave, silence ──▶ MEMBER …, BINDING in one entry ──applied──▶ all links hear it
//
// One entry is on its way at a time; what comes meanwhile goes with the next.
//
// When another partition becomes the one that keeps the members, its Coordinator begins
// with a higher generation and an empty list. It waits until the members have had time to
// come to it, with what they have: then the first binding takes nothing from anybody. Until
// they hear of it they go on with the binding that they know; a partition that has a
// consumer of the new generation serves none of an older one. Owner only.
type Coordinator struct {
	g          *Group
	loads      func() []PartitionLoad
	generation uint32
	start      time.Duration // silence before does not count
	now        time.Duration
	leaders    []PartitionLoad // that a binding by leaders is of
	look       time.Duration   // when it is looked whether there are others; 0: they do not matter
	check      time.Duration   // when somebody may have been silent for too long; 0: nobody is listed
	pause      time.Duration   // nothing is proposed before
	links      map[Binder]*membership
	members    map[Session]*membership
	names      map[string]*membership
	asking     []*membership // listed ones that wait for an answer
	next       enrolment
	entry      *enrolment // on its way
	above      Binding    // somebody knows this one: ours must be newer
	stale      bool       // the binding is to be looked at
	version    uint64     // of what Uncovered depends on
	taken      uint64     // rules, see Without
}

// Term is which coordinator a group has.
type Term struct {
	// Generation is the binding's: it rises when another partition becomes the coordinator.
	Generation uint32
	// Since is the metadata index as of which it is the coordinator. A group that is younger
	// has no members elsewhere.
	Since wire.Index
}

// membership is a member as the coordinator knows it.
type membership struct {
	*Membership
	link                    Binder // nil: not connected
	asks                    bool   // its link waits for an answer
	listed, ending, leaving bool   // leaving: by its own wish
	ousted                  bool   // another consumer has its name now
	heard                   time.Duration
	told                    time.Duration // the timeout that it goes by
	had                     []uint32      // what the coordinator before has given it
}

// enrolment is what one entry changes.
type enrolment struct {
	joins []*membership
	gone  []*membership
}

// NewCoordinator begins the term of a coordinator. Loads gives the partitions of the
// destination as they are; it is called in turns and must not block.
func NewCoordinator(g *Group, loads func() []PartitionLoad, term Term, now time.Duration) *Coordinator {
	c := &Coordinator{
		g: g, loads: loads, generation: max(term.Generation, 1), start: now, now: now, stale: true, version: 1,
		links: make(map[Binder]*membership), members: make(map[Session]*membership), names: make(map[string]*membership),
	}
	if g.Members != nil {
		for _, m := range g.Members.List {
			c.know(&membership{Membership: m, listed: true, heard: now})
			c.check = now + c.timeout()
		}
	}
	if c.generation > 1 && c.binding().Generation < c.generation && wire.Index(g.ID) < term.Since {
		c.pause = now + c.timeout()
	}
	return c
}

// know notes a member.
func (c *Coordinator) know(m *membership) {
	c.members[m.Session] = m
	if m.Name != "" {
		c.names[m.Name] = m
	}
}

func (c *Coordinator) timeout() time.Duration {
	return max(MinMemberTimeout, time.Duration(c.g.Settings.SessionMs)*time.Millisecond)
}

func (c *Coordinator) binding() (b Binding) {
	if c.g.Members != nil {
		b = c.g.Members.Binding
	}
	return b
}

// Bind begins the link of a consumer. It is answered with Bound once the consumer is
// listed.
func (c *Coordinator) Bind(b Binder, r *wire.BindRequest, now time.Duration) {
	m := c.members[Session(r.Session)]
	known := Binding{r.Generation, r.Counter}
	switch {
	case r.Generation > max(c.generation, c.binding().Generation) && c.keeps(RuleNewest):
		b.Bound(nil, wire.Errorf(wire.CodeRetry, "group %s has a coordinator of generation %d, this one is of %d: it is about to hear of it", c.g.Name, r.Generation, c.generation))
		return
	case c.unheardOf(known):
		b.Bound(nil, wire.Errorf(wire.CodeInvalidRequest, "group %s has come to binding %d.%d, no consumer can have heard of %d.%d: start the consumer anew",
			c.g.Name, c.binding().Generation, c.binding().Counter, known.Generation, known.Counter))
		return
	case m == nil && len(c.members) >= MaxSessions:
		b.Bound(nil, wire.Errorf(wire.CodeTooMany, "group %s has %d consumers, that is its limit", c.g.Name, MaxSessions))
		return
	case m == nil && c.namesake(r):
		b.Bound(nil, wire.CodeFenced)
		return
	case m == nil && c.occupied(r):
		b.Bound(nil, soleConsumer(c.g))
		return
	case m == nil:
		m = c.join(r)
	case m.ending:
		b.Bound(nil, wire.CodeSessionGone)
		return
	default:
		c.stale = c.stale || m.link == nil // it gets its share again
		c.unlink(m, wire.Errorf(wire.CodeDuplicate, "the consumer has bound itself again"))
		if m.listed {
			c.asking = append(c.asking, m)
		}
	}
	m.link, m.asks, m.heard = b, true, max(m.heard, now)
	if c.links[b] = m; known.Generation < c.generation {
		m.had = r.Partitions
	}
	if c.binding().Before(known) && c.above.Before(known) && c.keeps(RuleAbove) {
		c.above, c.stale = known, true
	}
	if !c.keeps(RuleEnrolled) {
		m.asks = false
		b.Bound(&wire.BindResponse{Generation: c.binding().Generation, Counter: c.binding().Counter, Partitions: c.spread(&enrolment{joins: c.next.joins})[m.Session]}, nil)
	}
}

// unheardOf reports whether nobody can know of a binding. The next one would be above it: a
// counter at its end has none, and consumers would wait for that for ever.
func (c *Coordinator) unheardOf(known Binding) bool {
	last := c.binding()
	if known.Generation > last.Generation {
		last = Binding{Generation: known.Generation} // it begins with 1
	}
	return known.Generation == last.Generation && uint64(known.Counter) > uint64(last.Counter)+maxUnheard
}

// namesake reports whether r is from a consumer that was taken off the list, and whose name
// another one that lives has had since: whoever has started last has it.
func (c *Coordinator) namesake(r *wire.BindRequest) bool {
	if r.Name == "" || r.Predecessor == (Session{}) {
		return false
	}
	m := c.names[r.Name]
	return m != nil && !m.ending && m.link != nil && m.Session != Session(r.Predecessor)
}

// occupied reports whether a group that takes but one consumer has one, and r is not to
// take its place.
func (c *Coordinator) occupied(r *wire.BindRequest) bool {
	if c.g.Settings.Holder != wire.HolderSole {
		return false
	}
	for _, m := range c.members {
		if !m.ending && m.Session != Session(r.Predecessor) && (r.Name == "" || m.Name != r.Name) {
			return true
		}
	}
	return false
}

// join has a consumer listed, in the place of its predecessor. Who starts again under its
// name takes its own place.
func (c *Coordinator) join(r *wire.BindRequest) *membership {
	m := &membership{Membership: &Membership{
		Session: Session(r.Session), Predecessor: Session(r.Predecessor), Name: r.Name, Node: r.Node, Flags: uint8(r.Flags),
	}}
	if other := c.names[r.Name]; r.Name != "" && other != nil && !other.ending {
		other.ousted = m.Predecessor != other.Session
		m.Predecessor = other.Session
	}
	if before := c.members[m.Predecessor]; before != nil {
		c.remove(before)
	}
	c.know(m)
	c.next.joins = append(c.next.joins, m)
	return m
}

// Heartbeat notes that a consumer lives.
func (c *Coordinator) Heartbeat(b Binder, number uint64, now time.Duration) {
	if m := c.links[b]; m != nil {
		m.heard = max(m.heard, now)
		b.Confirmed(number)
	}
}

// Leave ends a membership by the consumer's own wish.
func (c *Coordinator) Leave(b Binder) {
	if m := c.links[b]; m != nil {
		m.leaving = true
		c.remove(m)
	}
}

// Gone notes that a link has ended; dead says that the consumer has too, as far as its
// node can tell.
func (c *Coordinator) Gone(b Binder, dead bool) {
	m := c.links[b]
	if m == nil {
		return
	}
	delete(c.links, b)
	m.link, m.asks = nil, false
	if dead && released(wire.AttachFlags(m.Flags), c.g.Settings.Mode) {
		c.remove(m)
	}
}

// Reconsider says that there are other partitions than before, other settings, or a higher
// generation.
func (c *Coordinator) Reconsider(generation uint32) {
	c.stale, c.generation = true, max(c.generation, generation)
	c.version++
}

// Version changes when other partitions may be without a consumer.
func (c *Coordinator) Version() uint64 { return c.version }

// Resumed says that the broker could not work for a while: silence until now says nothing.
func (c *Coordinator) Resumed(now time.Duration) { c.start = max(c.start, now) }

// remove has a member taken off the list.
func (c *Coordinator) remove(m *membership) {
	if m.ending {
		return
	}
	m.ending = true
	if i := slices.Index(c.next.joins, m); i >= 0 {
		c.next.joins = slices.Delete(c.next.joins, i, i+1)
		c.forget(m)
		return
	}
	c.next.gone = append(c.next.gone, m)
}

// forget drops a member that is not listed.
func (c *Coordinator) forget(m *membership) {
	if c.members[m.Session] == m {
		delete(c.members, m.Session)
	}
	if c.names[m.Name] == m {
		delete(c.names, m.Name)
	}
	switch {
	case m.leaving:
		c.unlink(m, nil)
	case m.ousted:
		c.unlink(m, wire.CodeFenced)
	default:
		c.unlink(m, wire.CodeSessionGone)
	}
}

func (c *Coordinator) unlink(m *membership, err error) {
	link, asks := m.link, m.asks
	if link == nil {
		return
	}
	delete(c.links, link)
	m.link, m.asks = nil, false
	switch {
	case !asks:
		link.Closed(err)
	case err == nil:
		link.Bound(nil, wire.CodeSessionGone)
	default:
		link.Bound(nil, err)
	}
}

// Turn does what is due at now.
func (c *Coordinator) Turn(now time.Duration) {
	c.now = max(c.now, now)
	for _, m := range c.asking {
		c.answer(m)
	}
	clear(c.asking)
	c.asking = c.asking[:0]
	if c.pause > 0 && c.pause <= c.now {
		c.pause = 0
	}
	c.follow()
	if c.check == 0 || c.check > c.now {
		return
	}
	c.check = 0
	for _, m := range c.members {
		if at := c.silentAt(m); !m.listed || m.ending || !c.keeps(RuleQuiet) {
			continue
		} else if at <= c.now {
			c.remove(m)
		} else if c.check == 0 || at < c.check {
			c.check = at
		}
	}
}

// follow has the binding looked at when partitions are led elsewhere, where that decides.
func (c *Coordinator) follow() {
	if c.g.Settings.Binding != wire.BindingLocal || len(c.members) == 0 {
		c.look = 0
		return
	}
	if c.look > c.now {
		return
	}
	c.look = c.now + leaderLook
	loads := c.loads()
	if !slices.EqualFunc(loads, c.leaders, func(a, b PartitionLoad) bool { return a.Number == b.Number && a.Leader == b.Leader }) {
		c.leaders, c.stale = loads, true
		c.version++
	}
}

// silentAt is when a member that is not heard any more is taken off the list. It may go by
// a timeout that is longer than the group's is by now.
func (c *Coordinator) silentAt(m *membership) time.Duration {
	return max(m.heard, c.start) + max(m.told, c.timeout())
}

// Deadline is when the next turn is due, 0 if none is.
func (c *Coordinator) Deadline() time.Duration {
	next := c.check
	for _, at := range [...]time.Duration{c.pause, c.look} {
		if at > 0 && (next == 0 || at < next) {
			next = at
		}
	}
	return next
}

// answer tells a listed member what it asked for, unless somebody knows of a newer binding:
// then the next one is the answer.
func (c *Coordinator) answer(m *membership) {
	if m.link == nil || !m.asks || !m.listed || m.ending || c.binding().Before(c.above) {
		return
	}
	m.asks, m.told = false, c.timeout()
	b := c.g.Members.Binding
	m.link.Bound(&wire.BindResponse{
		Generation: b.Generation, Counter: b.Counter, Binding: c.g.Settings.Binding, SessionMs: uint32(m.told.Milliseconds()), Partitions: c.g.Members.Of(m.Session), Uncovered: c.named(),
	}, nil)
}

// Pending reports whether Propose may have something to say.
func (c *Coordinator) Pending() bool {
	return c.entry == nil && c.pause == 0 && (c.stale || len(c.next.joins)+len(c.next.gone) > 0)
}

// Propose appends the commands that are to be committed, if they fit in room bytes.
func (c *Coordinator) Propose(dst []byte, room int) ([]byte, bool) {
	if !c.Pending() {
		return dst, false
	}
	e := &enrolment{gone: c.next.gone}
	out := dst
	for _, m := range e.gone {
		out = AppendMember(out, c.g.ID, false, &Membership{Session: m.Session})
	}
	for _, m := range c.next.joins {
		if len(out)-len(dst) > maxEnrol {
			break
		}
		e.joins = append(e.joins, m)
		out = AppendMember(out, c.g.ID, true, m.Membership)
	}
	partitions := c.spread(e)
	b := c.binding()
	if c.g.Members == nil || b.Generation < c.generation || b.Before(c.above) || !maps.EqualFunc(partitions, c.g.Members.Partitions, slices.Equal) {
		if b.Before(c.above) {
			b = c.above
		}
		if b.Generation < c.generation {
			b = Binding{Generation: c.generation}
		}
		out = AppendBinding(out, c.g.ID, Binding{b.Generation, b.Counter + 1}, partitions)
	}
	switch {
	case len(out)-len(dst) > room:
		return dst, false
	case len(out) == len(dst): // it is as it should be
		c.stale = false
		return dst, false
	}
	c.next.joins, c.next.gone = slices.Clone(c.next.joins[len(e.joins):]), nil
	c.entry, c.stale = e, false
	return out, true
}

// spread is what the binding is to be when e is applied. Who takes the place of another
// takes its partitions.
func (c *Coordinator) spread(e *enrolment) map[Session][]uint32 {
	list := make(map[Session]*Membership)
	old := make(map[Session][]uint32)
	if c.g.Members != nil {
		maps.Copy(list, c.g.Members.List)
		maps.Copy(old, c.g.Members.Partitions)
	}
	for _, m := range e.gone {
		delete(list, m.Session)
	}
	away := make(map[Session]bool)
	for _, m := range c.members {
		away[m.Session] = m.link == nil && c.keeps(RuleThere)
	}
	for _, m := range e.joins {
		if delete(list, m.Predecessor); len(old[m.Predecessor]) > 0 && m.Predecessor != (Session{}) && c.keeps(RuleInherits) {
			old[m.Session] = old[m.Predecessor]
		}
		if len(old[m.Session]) == 0 {
			old[m.Session] = m.had
		}
		list[m.Session] = m.Membership
	}
	return Spread(c.g.Settings.Binding, slices.Collect(maps.Values(list)), c.loads(), old, away)
}

// Dropped takes back what the last Propose has appended.
func (c *Coordinator) Dropped() {
	e := c.entry
	if e == nil {
		return
	}
	c.entry, c.stale = nil, true
	if !c.keeps(RuleAgain) {
		return
	}
	var joins []*membership
	for _, m := range e.joins {
		if !m.ending {
			joins = append(joins, m)
			continue
		}
		c.next.gone = slices.DeleteFunc(c.next.gone, func(other *membership) bool { return other == m })
		c.forget(m)
	}
	c.next.joins, c.next.gone = append(joins, c.next.joins...), append(e.gone, c.next.gone...)
}

// Applied takes in that what Propose has appended is applied.
func (c *Coordinator) Applied() {
	e := c.entry
	if e == nil {
		return
	}
	c.entry = nil
	c.version++
	if n := len(c.members); n >= crowd {
		c.pause = c.now + time.Duration(n)*bindingPause
	}
	for _, m := range e.gone {
		m.listed = false
		c.forget(m)
	}
	for _, m := range e.joins {
		m.listed, m.heard, m.had = true, max(m.heard, c.now), nil
		if at := c.silentAt(m); c.check == 0 || at < c.check {
			c.check = at
		}
	}
	b := c.g.Members.Binding
	none := c.named()
	for _, m := range c.members {
		switch {
		case !m.listed || m.ending || m.link == nil:
		case m.asks:
			c.answer(m)
		case c.keeps(RuleTold):
			m.link.Rebound(&wire.GroupBinding{Generation: b.Generation, Counter: b.Counter, Partitions: c.g.Members.Of(m.Session), Uncovered: none})
		}
	}
}

// Uncovered are the partitions that no consumer has, while there are consumers.
func (c *Coordinator) Uncovered() []uint32 {
	if c.g.Members == nil || len(c.g.Members.List) == 0 {
		return nil
	}
	return c.g.Members.Uncovered(c.loads())
}

// named are those of Uncovered that members are told of.
func (c *Coordinator) named() []uint32 {
	list := c.Uncovered()
	return list[:min(len(list), wire.MaxUncovered)]
}

// Close ends all links with err. The Coordinator is not used any more.
func (c *Coordinator) Close(err error) {
	for _, m := range c.members {
		c.unlink(m, err)
	}
}
