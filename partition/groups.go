package partition

import (
	"container/heap"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lockstepmq/lockstep/log"
	"github.com/lockstepmq/lockstep/partition/group"
	"github.com/lockstepmq/lockstep/wire"
)

// Limits of the groups of one partition.
const (
	// MaxInboxItems and MaxInboxBytes bound what waits for the owner. Beyond them links
	// get ErrMailboxFull, except for the news that they have ended.
	MaxInboxItems = 64 << 10
	MaxInboxBytes = 8 << 20
	// MaxUnknown bounds the attaches that wait for a group that the partition does not
	// have yet, and unknownWait is how long they do.
	MaxUnknown  = 64
	unknownWait = 2 * time.Second
	// controlBytes is what must have come in before a further control entry is proposed
	// while an earlier one is not applied. Less than that goes with the next entry.
	controlBytes = 16 << 10
	// maxControls bounds the control entries that are not applied.
	maxControls = 8
	// controlRounds is how often one turn goes from what was applied to what that makes
	// possible; the next turn goes on.
	controlRounds = 4
	// scanRetry is after how long a scan that failed is tried again.
	scanRetry = 500 * time.Millisecond
	// feedIdle is how long the feed is kept when nobody consumes any more.
	feedIdle = 10 * time.Second
)

// Groups is the shell around the groups of one partition: it takes what links bring,
// gives the Leaders their turns while this replica leads, proposes what they want to have
// committed, and takes what is applied to them.
//
//	links ──Put──▶ inbox ──turn──▶ Leaders ──commands──▶ one control entry ──▶ Proposer
//	                                  ▲                                           │ committed
//	                                  └──────────── State ◀────── applied ◀───────┘
//
// What links bring in one turn becomes one entry. While an entry is on its way to the disk,
// what comes joins the next one: so it takes no timer for few entries to settle many
// records.
//
// Put, Intend, Resumed and Deadline may be called from any goroutine. The rest is the
// owner's.
type Groups struct {
	p       *Partition
	effects Effects // nil: there are no groups

	inbox    inbox
	deadline atomic.Int64
	deserted atomic.Int64 // see Deserted

	leads    map[group.ID]*lead
	links    map[group.Consumer]*lead
	binders  map[group.Binder]*lead
	ready    []*lead // that have something to do
	spare    []*lead // the array of ready in the turn before
	wanting  []*lead // that have something to propose
	asking   []*lead // that want a quorum round
	due      deadlines
	now      time.Duration
	nowMs    int64
	end      wire.Offset // of the records that the Leaders know of
	leading  bool        // there are Leaders
	unknown  []unknown
	arrived  bool       // a group that may be waited for
	changed  bool       // groups, by the entry that is being applied
	controls []*control // proposed and not applied, oldest first
	since    int        // bytes of inputs since the last one
	scratch  []byte

	intents   []Intent
	at        wire.Index               // of the metadata that the intents are of, 0: there was none yet
	commands  []byte                   // that bring the groups closer to the intents
	commanded bool                     // some are on their way
	located   map[group.ID]wire.Offset // where groups begin that begin at a time
	locating  map[group.ID]bool
	compare   bool // the intents or the groups have changed

	taken []group.Rule // see Without

	feed     feed
	scans    []wire.Offset // wanted
	scanning bool
	stale    bool          // what is being scanned may be known by an outdated list of damage
	searches []*lead       // whose search is not over
	looking  bool          // it can answer more by now
	keyed    bool          // there is a Leader that asks for keys or publishers
	retry    time.Duration // of what has failed; 0: nothing has
	resting  []*lead       // whose letters could not be written
	queued   bool          // letters on their way back wait for those of another group
	redrives *lead         // whose order to send letters back is being committed
	heads    map[asked][]func(wire.Offset, bool, error)
	quiet    time.Duration // when the feed is given up, as nobody consumes; 0: somebody does, or it is
}

// lead is a group that is led here.
type lead struct {
	*group.Leader
	group *group.Group
	// coordinator is set where the members of the group are kept, and somebody is one.
	coordinator *group.Coordinator
	shares      []share // of control entries, as they were proposed
	looked      uint64  // version of the coordinator's list that uncovered is of
	uncovered   []uint32
	links       int
	ready       bool
	wants       bool          // it is in wanting
	timer       time.Duration // its entry in due
	letters     letters
	search      search
	remains     bool // of a group that is removed
	closed      bool
}

// control is a control entry on its way.
type control struct {
	leads    []*lead
	commands bool // it has commands that bring groups closer to the intents
	fences   []Fence
	at       time.Duration
}

// deadline is when a Leader has a timer.
type deadline struct {
	at   time.Duration
	lead *lead
}

// deadlines is a heap, the first on top.
type deadlines []deadline

func (h deadlines) Len() int           { return len(h) }
func (h deadlines) Less(i, j int) bool { return h[i].at < h[j].at }
func (h deadlines) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *deadlines) Push(x any)        { *h = append(*h, x.(deadline)) }
func (h *deadlines) Pop() any {
	old := *h
	last := old[len(old)-1]
	old[len(old)-1] = deadline{}
	*h = old[:len(old)-1]
	return last
}

// unknown is an attach to a group that the partition does not have yet.
type unknown struct {
	in    Input
	until time.Duration
}

// inbox is what the owner takes in one turn, at any time.
type inbox struct {
	mu       sync.Mutex
	items    []Input
	results  []func() // of effects: no more than were asked for
	bytes    int
	closed   error
	intents  []Intent
	at       wire.Index
	intended bool
	resumed  bool
	repaired group.Span // holds all records that were repaired
}

// empty reports whether nothing waits. The caller holds the mutex.
func (b *inbox) emptyLocked() bool {
	return len(b.items)+len(b.results) == 0 && !b.intended && !b.resumed && b.repaired.From == b.repaired.To
}

// Groups are the groups of the partition.
func (p *Partition) Groups() *Groups { return &p.groups }

// Put takes what a link has for its group. When it returns nil the owner will see it; the
// caller sees to it that it takes a turn. That a link has ended is always taken.
func (g *Groups) Put(in Input) error {
	b := &g.inbox
	b.mu.Lock()
	defer b.mu.Unlock()
	must := in.Kind == InputGone || in.Kind == InputLeave
	switch {
	case b.closed != nil:
		return b.closed
	case g.effects == nil:
		return wire.CodeUnsupported
	case !must && (len(b.items) >= MaxInboxItems || b.bytes >= MaxInboxBytes):
		return ErrMailboxFull
	}
	b.items = append(b.items, in)
	b.bytes += in.Size()
	return nil
}

// Intend says which groups the partition is to have, as the metadata has it at an index.
// What is older than what was said before is ignored. The caller sees to a turn.
func (g *Groups) Intend(at wire.Index, v []Intent) {
	b := &g.inbox
	b.mu.Lock()
	defer b.mu.Unlock()
	if at >= b.at {
		b.at, b.intents, b.intended = at, v, true
	}
}

// Resumed says that this broker or its disk stood still: the silence of consumers says
// nothing about them until they have had time again. The caller sees to a turn.
func (g *Groups) Resumed() {
	b := &g.inbox
	b.mu.Lock()
	defer b.mu.Unlock()
	b.resumed = true
}

// Repaired says that some of the records [from, to), which could not be read, were written
// again. The caller sees to a turn.
func (g *Groups) Repaired(from, to wire.Offset) {
	b := &g.inbox
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.repaired.From < b.repaired.To {
		from, to = min(from, b.repaired.From), max(to, b.repaired.To)
	}
	b.repaired = group.Span{From: from, To: to}
}

// Deadline is when the groups need a turn at the latest, on the clock of Partition.Turn; 0
// if they need none.
func (g *Groups) Deadline() time.Duration { return time.Duration(g.deadline.Load()) }

// Any reports whether the partition has groups. Owner only.
func (g *Groups) Any() bool { return g.p.state.groups.Len() > 0 }

// waiting is how many bytes of inputs wait.
func (g *Groups) waiting() int64 {
	g.inbox.mu.Lock()
	defer g.inbox.mu.Unlock()
	return int64(g.inbox.bytes)
}

// result has f called in the owner's next turn.
func (g *Groups) result(f func()) {
	b := &g.inbox
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed == nil {
		b.results = append(b.results, f)
	}
}

// Scanned brings what Effects.Scan has found, or why it could not. Any goroutine; the
// caller sees to a turn.
func (p *Partition) Scanned(batches []log.Batch, err error) {
	g := &p.groups
	g.result(func() {
		g.scanning = false
		g.scans = g.scans[:0]
		if g.stale {
			g.stale = false
			g.wakeAll() // they ask for what they still need
			return
		}
		if err != nil || len(batches) == 0 {
			g.retry = g.now + scanRetry
			return
		}
		g.feed.scanned(batches)
		g.looking = len(g.searches) > 0
		g.wakeAll()
	})
}

// Found brings what Effects.NextOf has found: at, if ok, and else that there is nothing.
// Any goroutine; the caller sees to a turn.
func (p *Partition) Found(id group.ID, s group.Scope, after, at wire.Offset, ok bool) {
	g := &p.groups
	g.result(func() {
		l, err := g.leads[id], error(nil)
		if l == nil {
			err = wire.CodeGroupGone
		}
		g.headFound(asked{id, s, after}, at, ok, err)
		if l != nil {
			l.Leader.Found(s, after, at, ok)
			g.wake(l)
		}
	})
}

// wake gives a Leader a turn.
func (g *Groups) wake(l *lead) {
	if !l.ready && !l.closed {
		l.ready = true
		g.ready = append(g.ready, l)
	}
}

func (g *Groups) wakeAll() {
	for _, l := range g.leads {
		g.wake(l)
	}
}

// turn is the groups' part of a turn of the partition.
func (g *Groups) turn(term wire.Term, nowMs int64, now time.Duration) (again bool) {
	if g.effects == nil {
		return false
	}
	g.now, g.nowMs = max(g.now, now), nowMs
	if g.p.appliedTerm != term { // what its predecessors have committed is not all applied yet
		return false
	}
	if !g.leading {
		g.begin()
	}
	g.receive(term)
	g.expire()
	if g.end != g.p.state.next {
		g.end = g.p.state.next
		for _, l := range g.leads {
			if l.links > 0 {
				g.wake(l)
			}
		}
	}
	for range controlRounds {
		if g.arrived {
			g.welcome(term)
		}
		g.dispatch()
		if g.find() {
			g.dispatch()
		}
		if g.compare {
			g.reconcile()
		}
		if !g.propose(nowMs, MaxEntryBytes) {
			break
		}
	}
	if g.keyed {
		g.p.log.KeepKeys(true) // each time: what is missing is made when it can be
	}
	g.confirm()
	g.scan()
	g.schedule()
	return g.arrived || g.looking || len(g.ready) > 0
}

// begin makes the Leaders of a new term.
func (g *Groups) begin() {
	g.leading, g.compare = true, true
	for s := range g.p.state.groups.All {
		if len(s.Sessions) > 0 || len(s.Letters.Open) > 0 {
			g.lead(s)
		}
		if s.Members != nil {
			_ = g.coordinate(g.lead(s)) // another partition may do so by now
		}
	}
}

// lead returns the Leader of a group.
func (g *Groups) lead(s *group.Group) *lead {
	l := g.leads[s.ID]
	if l == nil {
		l = &lead{Leader: group.NewLeader(s, &g.feed, g.now, g.p.applied), group: s, remains: s.Removed}
		l.search.told = func(what group.Find, found []wire.Offset, upTo wire.Offset) {
			l.FoundMore(what.Scope, what.After, found, upTo)
		}
		l.Without(g.taken...)
		if ignored := rulesIgnored.Load(); ignored != nil {
			l.Without(*ignored...)
		}
		if g.leads == nil {
			g.leads, g.links = make(map[group.ID]*lead), make(map[group.Consumer]*lead)
		}
		g.leads[s.ID] = l
		g.writeLetters(l)
		g.wake(l)
	}
	l.Reaches(g.p.state.next, g.now) // what was appended since its last turn, for who asks now
	return l
}

// drop ends the Leader of a group.
func (g *Groups) drop(l *lead, err error) {
	l.closed = true
	delete(g.leads, l.group.ID)
	if len(g.leads) == 0 && g.keyed {
		g.keyed = false
		g.p.log.KeepKeys(false)
	}
	for c, of := range g.links {
		if of == l {
			delete(g.links, c)
		}
	}
	for b, of := range g.binders {
		if of == l {
			delete(g.binders, b)
		}
	}
	l.Close(err)
	g.uncovered(l)
}

// receive takes what has come in since the last turn.
func (g *Groups) receive(term wire.Term) {
	b := &g.inbox
	b.mu.Lock()
	if b.emptyLocked() {
		b.mu.Unlock()
		return
	}
	items, results := b.items, b.results
	b.items, b.results = nil, nil
	g.since += b.bytes
	b.bytes = 0
	if b.intended {
		g.intents, g.at, g.compare = b.intents, b.at, true
		b.intended = false
		defer g.reconsider()
	}
	resumed, repaired := b.resumed, b.repaired
	b.resumed, b.repaired = false, group.Span{}
	b.mu.Unlock()
	if resumed {
		for _, l := range g.leads {
			l.Resumed(g.now)
		}
	}
	if repaired.From < repaired.To {
		g.feed.drop(repaired.From, repaired.To)
		g.stale = g.scanning // it may have met what was repaired meanwhile
		for _, l := range g.leads {
			l.Repaired(repaired.From, repaired.To)
			g.wake(l)
		}
	}
	for _, f := range results {
		f()
	}
	for i := range items {
		items[i].taken()
		g.input(&items[i], term)
	}
}

// input hands one input to the Leader that it is for.
func (g *Groups) input(in *Input, term wire.Term) {
	switch in.Kind {
	case InputAttach:
		g.attach(in, term)
		return
	case InputOrder:
		g.order(in)
		return
	case InputBind:
		g.bind(in)
		return
	}
	if in.Binder != nil {
		g.bound(in)
		return
	}
	l := g.links[in.Consumer]
	if l == nil {
		if in.Kind == InputGone {
			g.unknown = slices.DeleteFunc(g.unknown, func(u unknown) bool { return u.in.Consumer == in.Consumer })
		}
		return // of a link that has been closed
	}
	switch in.Kind {
	case InputOutcomes:
		l.Outcomes(in.Consumer, in.Outcomes, g.now)
	case InputCapacity:
		l.Capacity(in.Consumer, &in.Capacity)
	case InputHeartbeat:
		l.Heartbeat(in.Consumer, in.Number, g.now)
	case InputLeave:
		l.Leave(in.Consumer, in.Drain, g.now)
	case InputGone:
		delete(g.links, in.Consumer)
		l.links--
		l.Gone(in.Consumer, in.Dead)
	case InputDamaged:
		g.feed.drop(in.From, in.To) // the next scan finds out
		l.Damaged(in.Consumer, in.From, in.To)
	}
	g.wake(l)
}

// attach begins a link.
func (g *Groups) attach(in *Input, term wire.Term) {
	s := g.p.state.groups.Named(in.Group)
	if s == nil {
		g.await(in)
		return
	}
	l := g.lead(s)
	g.links[in.Consumer] = l
	l.links++
	g.feed.use(true)
	l.Attach(in.Consumer, in.Attach, in.Client, term, g.now)
	g.wake(l)
	if in.Attach.Term > term { // rule 13: one may lead the partition by now that was elected later
		for _, l := range g.leads {
			l.StepAside()
			g.wake(l)
		}
	}
}

// await keeps what begins a link until the group is there.
func (g *Groups) await(in *Input) {
	if len(g.unknown) == MaxUnknown {
		in.refuse(wire.Errorf(wire.CodeRetry, "%d consumers wait for groups that this partition does not have yet", MaxUnknown))
		return
	}
	g.unknown = append(g.unknown, unknown{*in, g.now + unknownWait})
}

// expire does what is due.
func (g *Groups) expire() {
	for len(g.due) > 0 && g.due[0].at <= g.now {
		d := heap.Pop(&g.due).(deadline)
		if d.at == d.lead.timer {
			d.lead.timer = 0
			g.wake(d.lead)
		}
	}
	if g.retry > 0 && g.retry <= g.now {
		g.retry = 0
		g.looking = len(g.searches) > 0
		g.wakeAll() // they ask for what they still need
	}
	g.retryLetters()
	keep := g.unknown[:0]
	for _, u := range g.unknown {
		if u.until > g.now {
			keep = append(keep, u)
			continue
		}
		u.in.refuse(wire.Errorf(wire.CodeUnknownGroup, "the destination has no group %q", u.in.Group))
	}
	clear(g.unknown[len(keep):])
	g.unknown = keep
	switch {
	case len(g.links) > 0 || !g.feed.on:
		g.quiet = 0
	case g.quiet == 0:
		g.quiet = g.now + feedIdle
	case g.quiet <= g.now:
		g.quiet = 0
		g.feed.use(false)
	}
}

// dispatch gives Leaders that have something to do their turn.
func (g *Groups) dispatch() {
	ready := g.ready
	g.ready = g.spare[:0]
	for _, l := range ready {
		l.ready = false
		if l.closed {
			continue
		}
		if l.Turn(g.now, g.p.applied, g.p.state.next) {
			g.wake(l)
		}
		g.keyed = g.keyed || l.Hashed()
		g.want(l)
		g.uncovered(l)
		if l.Pending() && !l.wants {
			l.wants = true
			g.wanting = append(g.wanting, l)
		}
		if at := l.Deadline(); at > 0 && at != l.timer {
			l.timer = at
			heap.Push(&g.due, deadline{at, l})
		}
	}
	clear(ready)
	g.spare = ready
}

// want asks the world for what a Leader needs.
func (g *Groups) want(l *lead) {
	w := l.Wants()
	if w.Empty() {
		return
	}
	if len(w.Scan) > 0 {
		g.feed.use(true) // also where nobody is linked: the leases of a planned move are looked at
	}
	for _, o := range w.Scan {
		if !g.scanning && !slices.Contains(g.scans, o) {
			g.scans = append(g.scans, o)
		}
	}
	for _, f := range w.Find {
		if l.search.ask(f); !l.search.listed {
			l.search.listed = true
			g.searches = append(g.searches, l)
		}
		g.looking = true
	}
	if len(w.Letters) > 0 {
		g.writeLetters(l)
	}
	if w.Confirm {
		g.asking = append(g.asking, l)
	}
}

// confirm begins one quorum round for all that want one.
func (g *Groups) confirm() {
	if len(g.asking) == 0 {
		return
	}
	asking := g.asking
	g.asking = nil
	g.effects.Confirm(func(err error) {
		for _, l := range asking {
			if !l.closed {
				l.Confirmed(err)
				g.wake(l)
			}
		}
	})
}

// scan fills the feed where Leaders do not know enough, one scan at a time. Whoever waits
// for more asks again when it has ended.
func (g *Groups) scan() {
	if g.scanning || g.retry > 0 || len(g.scans) == 0 {
		return
	}
	g.scanning = true
	from := slices.Min(g.scans)
	g.scans = g.scans[:0]
	g.effects.Scan(from, ScanRecords)
}

// welcome lets those in that wait for a group that is there now.
func (g *Groups) welcome(term wire.Term) {
	g.arrived = false
	waiting := g.unknown
	g.unknown = nil
	for _, u := range waiting {
		if g.p.state.groups.Named(u.in.Group) != nil {
			g.input(&u.in, term)
		} else {
			g.unknown = append(g.unknown, u)
		}
	}
}

// reject answers everything that waits. It is for replicas that do not lead.
func (g *Groups) reject(err error) {
	b := &g.inbox
	b.mu.Lock()
	items, results := b.items, b.results
	b.items, b.results, b.bytes = nil, nil, 0
	b.mu.Unlock()
	for _, f := range results {
		f()
	}
	for _, u := range g.unknown {
		items = append(items, u.in)
	}
	g.unknown = nil
	for i := range items {
		items[i].taken()
		items[i].refuse(err)
	}
}

// shut makes Put refuse everything with err.
func (g *Groups) shut(err error) {
	g.inbox.mu.Lock()
	defer g.inbox.mu.Unlock()
	if g.inbox.closed == nil {
		g.inbox.closed = err
	}
}

// Deserted is since when the partition, led here and of a queue, has groups and no consumer
// of any; 0 if it has one.
func (g *Groups) Deserted() time.Duration { return time.Duration(g.deserted.Load()) }

// schedule publishes when the next turn is due, and whether anybody consumes.
func (g *Groups) schedule() {
	switch {
	case !g.leading || g.p.state.groups.Len() == 0 || len(g.links) > 0 || !g.p.queue:
		g.deserted.Store(0)
	case g.deserted.Load() == 0:
		g.deserted.Store(int64(max(g.now, 1)))
	}
	var at time.Duration
	soonest := func(t time.Duration) {
		if t > 0 && (at == 0 || t < at) {
			at = t
		}
	}
	if g.leading {
		for len(g.due) > 0 && (g.due[0].lead.closed || g.due[0].at != g.due[0].lead.timer) {
			heap.Pop(&g.due)
		}
		if len(g.due) > 0 {
			soonest(g.due[0].at)
		}
		soonest(g.retry)
		for _, l := range g.resting {
			soonest(l.letters.wake)
		}
		soonest(g.quiet)
		if len(g.unknown) > 0 {
			soonest(g.unknown[0].until)
		}
	}
	g.deadline.Store(int64(at))
}
