package group

import (
	"slices"
	"time"

	"github.com/lockstepmq/lockstep/internal/offsets"
	"github.com/lockstepmq/lockstep/wire"
)

// Limits of a Leader.
const (
	// MaxSessions bounds the sessions of a group in one partition.
	MaxSessions = 10_000
	// turnRecords bounds the records that one turn looks at; the next turn goes on.
	turnRecords = 4096
	// horizonStep is how far the horizon is raised at once, in records. It is raised when
	// less than half of it is left.
	horizonStep = 65_536
)

// Leader hands the records of one group to its consumers, on the leader of one partition
// and for one term of it: it is made when the term's first entry is applied and dropped
// with the leadership. All it knows beyond the Group is volatile: who holds what, who has
// room, what is proposed and not applied.
//
// Inputs only note; Turn acts; Propose says what must be committed, and Applied, in the
// same order, that it is. Nothing is answered before. Owner only.
type Leader struct {
	g    *Group
	feed Feed
	kind kind
	said terms // by which consumers that are attached go

	start   time.Duration // when this leader began
	now     time.Duration // of the last turn
	applied wire.Index    // of the last turn: the epoch of what is given in it
	end     wire.Offset   // one past the last committed record

	members  map[Session]*member
	links    map[Consumer]*attachment
	attaches []*attachment           // in the order of arrival, not answered
	asking   map[Session]*attachment // the newest of each session that is among them
	names    map[string]*member      // listed
	binding  Binding                 // the highest that a listed session goes by
	thinned  bool                    // sessions have left since binding was looked at
	waiting  int                     // members that have not come back since this leader began
	grace    grace                   // while there are some
	granted  Done                    // records below grace.bound that were leased since, while there are some
	draining []*member               // that leave when they hold nothing
	eligible []*member               // that have room for more
	turn     int                     // where the search for a member with room begins
	ringNext bool                    // the next waiting record comes from ring, if redo has some, too

	// scan is the lowest record that was not looked at; ahead are leases from there on.
	scan    wire.Offset
	ahead   leases
	redo    fifo[wire.Offset]    // records below scan without a scope that may go out again
	shelved map[wire.Offset]bool // records that are their own scope, and were passed over because they are parked
	scopes  map[Scope]*scope
	parking map[Scope]int // how many entries that park a scope are on their way
	// parkedAt is when scopes were parked since this leader began; those of before are not known.
	parkedAt map[Scope]time.Duration
	table    []lease            // taken over, whose scopes are not known yet
	frozen   bool               // the leases are on their way to the next leader
	strays   int                // how many more records that a session does not hold are looked at
	handed   int                // how often that was begun
	of       offsets.Map[scope] // leased records of scopes
	ring     fifo[*scope]       // that have a record to give
	spare    []*scope
	expired  uint64               // records that retention took, as far as consumers were told
	unread   Span                 // a damaged range that stops the scan, and that may be done or mended since
	passed   leases               // damaged records that a shared group has passed over; about as many runs as the log knows
	unreads  map[wire.Offset]bool // records that are scopes of their own, could not be read and have a timer
	reread   time.Duration        // when one that holds up others may be looked for again
	hold     time.Duration        // nothing goes out before, where the partition is one scope
	holder   *member              // that was given something last
	row      int                  // records that it was given since it is
	// backing is how many records are on their way back.
	backing    int
	activating bool        // another session is about to become the active one
	yields     bool        // the active session gets nothing more, see activate
	raising    bool        // a higher horizon is to be proposed, or is
	busy       bool        // there is more to do at once
	round      int         // how often it has begun anew, after orders
	step       wire.Offset // of the horizon
	number     uint64      // of the next dead letter
	outs       []*member   // that get something in this turn
	scratch    []Span
	settlers   []*member // with acks in the entry that is being taken in

	lettered    map[wire.Offset]bool // records that are dead letters and not done
	letterLimit int                  // MaxLetters
	parkLimit   int                  // MaxParked
	refusal     refusal              // why no letters are written
	refused     map[uint64]refusal   // why one is not, which others do not wait for
	firsts      firsts
	timers      timers

	next     *proposal   // what is to be proposed
	proposed []*proposal // and not applied, oldest first
	idle     []*proposal
	answers  []*member // with answers to send

	want  Want
	beats []beat // that wait for a confirmation
	asked int    // of them and of the attaches, how many the running one covers
	asks  bool   // a confirmation is running
	aside aside
	order *order

	taken uint64 // rules that a test has taken away
	stats Stats
}

// Stats count what a Leader has done.
type Stats struct {
	Delivered, Redelivered, Acked, Returned uint64
}

// kind is how records become scopes.
type kind uint8

const (
	shared kind = iota // a record is a scope
	hashed             // a key or a publisher is
	single             // the whole partition is
)

func kindOf(s *Settings) kind {
	switch {
	case s.Mode == wire.ModeShared:
		return shared
	case s.Mode == wire.ModeStream, s.Scope == wire.ScopeDestination:
		return single
	}
	return hashed
}

// Hashed reports whether a key or a publisher is a scope of the group: then the Leader asks
// for the next record of one.
func (l *Leader) Hashed() bool { return l.kind == hashed }

// member is a session that is listed, or about to be.
type member struct {
	session Session
	name    string
	link    Consumer // nil: not attached at the moment
	attempt uint64   // of the newest attach
	heard   time.Duration
	// waiting: listed when this leader began and not back. listed: in the Group. ending: its
	// removal is proposed. draining: it wants nothing more. suspect: it let a record time out.
	waiting, listed, ending, draining, suspect bool
	looks                                      bool // it works on nothing
	leaving                                    bool // closed with OK when removed
	flags                                      wire.AttachFlags
	binding                                    Binding // that it goes by

	leases    leases
	held      int // records that count against the capacity
	heldBytes int
	capacity  int
	refill    int
	working   int    // how many it has worked on at once, at most; 0: maybe all that it holds
	given     uint64 // records so far
	bytes     int
	full      bool // it had no room and has not come down to refill
	place     int  // in Leader.eligible, +1; 0: not there

	worked time.Duration // last outcome, or attach
	// revoke is when all that was revoked on this link is taken: each further revoke puts it off,
	// so that everything has its whole grace. 0: nothing was.
	revoke time.Duration
	check  time.Duration // when it is looked at

	out     []Delivery // of this turn
	answers []wire.OutcomeAnswer
	lost    []wire.Lost
	queued  bool   // it is in Leader.answers
	settled []Span // its acks of the entry that is being taken in
}

// works reports whether the session may have begun to work on what it has.
func (m *member) works() bool { return !m.looks }

type beat struct {
	consumer Consumer
	number   uint64
}

// NewLeader begins the term of a leader that has applied the first entry of its term. All
// listed sessions are waited for, except after a planned move, whose table says who holds
// what.
func NewLeader(g *Group, feed Feed, now time.Duration, applied wire.Index) *Leader {
	l := &Leader{
		g: g, feed: feed, kind: kindOf(&g.Settings), start: now, now: now, applied: applied, scan: g.Done.Floor(), expired: g.Expired,
		members: make(map[Session]*member), links: make(map[Consumer]*attachment), scopes: make(map[Scope]*scope), parking: make(map[Scope]int), shelved: make(map[wire.Offset]bool), asking: make(map[Session]*attachment), names: make(map[string]*member),
		step: horizonStep, lettered: make(map[wire.Offset]bool), letterLimit: MaxLetters, parkLimit: MaxParked, next: new(proposal),
	}
	sessions := make([]Session, 0, len(g.Sessions))
	for s := range g.Sessions {
		sessions = append(sessions, s)
	}
	slices.SortFunc(sessions, compareSessions)
	for _, s := range sessions {
		m := l.member(s)
		m.listed = true
		l.lists(m, g.Sessions[s])
		if g.Table == nil {
			m.waiting = true
			l.waiting++
		}
		l.watch(m)
	}
	l.takeOver(g.Table)
	l.known()
	return l
}

func (l *Leader) member(s Session) *member {
	m := &member{session: s, heard: l.now}
	l.members[s] = m
	return m
}

// Group is the group that is led.
func (l *Leader) Group() *Group { return l.g }

// Stats are the counts so far.
func (l *Leader) Stats() Stats { return l.stats }

// Heard notes that a frame came from a consumer.
func (l *Leader) Heard(c Consumer, now time.Duration) {
	if a := l.links[c]; a != nil && a.member != nil {
		a.member.heard = max(a.member.heard, now)
	}
}

// Heartbeat notes a heartbeat, to be confirmed.
func (l *Leader) Heartbeat(c Consumer, number uint64, now time.Duration) {
	if a := l.links[c]; a == nil || !a.open {
		return
	}
	l.Heard(c, now)
	if len(l.beats) >= maxBeats {
		return
	}
	l.beats = append(l.beats, beat{c, number})
	l.confirm()
}

// confirm asks for a quorum round unless one is running, which is too old.
func (l *Leader) confirm() {
	if !l.asks {
		l.want.Confirm = true
	}
}

// aside says whether a leader gives something out. One that hears of a later leader does not,
// until a quorum round that began after that says that it leads all the same.
type aside uint8

const (
	leads        aside = iota
	steppedAside       // a quorum round is to be asked for
	asideAsked         // it is running
)

// StepAside notes that a consumer knows of a later leader of the partition.
func (l *Leader) StepAside() {
	l.aside = steppedAside
	l.confirm()
}

// Confirmed ends the quorum round that a Want has asked for. An error says that this may
// be no leader any more; the round is asked for again.
func (l *Leader) Confirmed(err error) {
	l.asks = false
	if l.aside == asideAsked {
		l.aside = leads
		if err != nil {
			l.StepAside()
		}
	}
	if err == nil {
		for _, b := range l.beats[:l.asked] {
			if l.links[b.consumer] != nil {
				b.consumer.Confirmed(b.number)
			}
		}
		l.beats = l.beats[:copy(l.beats, l.beats[l.asked:])]
		for _, a := range l.attaches {
			a.confirmed = a.confirmed || a.asked
		}
	}
	if len(l.beats) > 0 {
		l.confirm()
	}
	if l.aside == steppedAside {
		l.confirm() // the round that ended began before
	}
	for _, a := range l.attaches {
		a.asked = false
		if a.needs && !a.confirmed && !a.open {
			l.confirm()
		}
	}
	l.asked = 0
}

// Capacity replaces what a consumer said that it can hold. One that wanted to leave when it
// holds nothing stays.
func (l *Leader) Capacity(c Consumer, n *wire.GroupCapacity) {
	if a := l.links[c]; a != nil && a.open && a.member != nil {
		a.member.draining = false
		a.member.limits(n)
		l.room(a.member)
	}
}

func (m *member) limits(n *wire.GroupCapacity) {
	m.capacity = int(min(n.Records, wire.MaxGroupCapacity))
	m.refill = min(int(n.Refill), m.capacity-1)
	m.bytes = int(n.Bytes)
	if m.bytes == 0 || m.bytes > wire.MaxGroupCapacityBytes {
		m.bytes = wire.MaxGroupCapacityBytes
	}
	m.working = int(n.Working)
	m.full = m.held >= m.capacity
}

// free is how many more records a member may get now.
func (l *Leader) free(m *member) int {
	if m.link == nil || m.draining || m.ending && l.keeps(RuleEnding) || m.heldBytes >= m.bytes {
		return 0
	}
	if !l.keeps(RuleCapacity) {
		return max(1, m.capacity)
	}
	if m.full {
		return 0
	}
	return max(0, m.capacity-m.held)
}

// room keeps the list of members with room true for one of them.
func (l *Leader) room(m *member) {
	if m.full && m.held <= max(m.refill, 0) && m.held < m.capacity {
		m.full = false
	}
	if m.held >= m.capacity {
		m.full = true
	}
	switch has := l.free(m) > 0; {
	case has && m.place == 0:
		l.eligible = append(l.eligible, m)
		m.place = len(l.eligible)
	case !has && m.place > 0:
		last := len(l.eligible) - 1
		moved := l.eligible[last]
		l.eligible[m.place-1], moved.place = moved, m.place
		l.eligible[last] = nil
		l.eligible = l.eligible[:last]
		m.place = 0
	}
}

// best returns a member with room, the one with most of it, or nil. A suspect one counts
// only if there is no other. Of many members a part is looked at, beginning where the
// last search ended.
func (l *Leader) best() *member {
	const few = 64
	if only := l.only(); only != nil {
		if only.place == 0 || only.suspect && !l.keeps(RuleSuspect) || !l.may(only) {
			return nil
		}
		return only
	}
	var found *member
	n := len(l.eligible)
	for i := range min(n, few) {
		m := l.eligible[(l.turn+i)%n]
		if m.suspect && !l.keeps(RuleSuspect) {
			continue
		}
		if l.kind == single && !l.may(m) {
			continue
		}
		if found == nil || found.suspect && !m.suspect || found.suspect == m.suspect && l.free(m) > l.free(found) {
			found = m
		}
	}
	if n > 0 {
		l.turn = (l.turn + 1) % n
	}
	return found
}

// only is the one member that may have something, where the partition is one scope and
// there is such a one: it is found among any number of others.
func (l *Leader) only() *member {
	switch {
	case l.kind != single || !l.keeps(RuleActive):
	case l.sticky():
		return l.members[l.g.Active]
	case l.holder != nil && !l.holder.leases.empty() && l.keeps(RuleSameHolder):
		return l.holder
	}
	return nil
}

// Turn does what is due at now: timers, attaches, deliveries. Applied is the index of the
// last applied entry and end the offset behind the last applied record. It reports
// whether there is more to do at once.
func (l *Leader) Turn(now time.Duration, applied wire.Index, end wire.Offset) (again bool) {
	l.now, l.applied, l.end = max(l.now, now), applied, end
	if !l.grace.begun {
		l.beginGrace()
	}
	l.expire()
	l.announce()
	if l.resolveTable() {
		l.admit()
	}
	l.endGrace()
	l.prepare()
	l.depart()
	l.command()
	l.activate()
	again = l.dispatch() || l.busy
	l.busy = false
	l.flush()
	l.plan()
	return again
}

// flush hands over what was collected for the consumers.
func (l *Leader) flush() {
	for _, m := range l.answers {
		m.queued = false
		if m.link != nil {
			// First what is lost: an answer may let the consumer start what lies behind.
			if len(m.lost) > 0 {
				m.link.Lost(m.lost)
			}
			if len(m.answers) > 0 {
				m.link.Answer(m.answers)
			}
		}
		m.answers, m.lost = m.answers[:0], m.lost[:0]
	}
	clear(l.answers)
	l.answers = l.answers[:0]
}

func (l *Leader) touch(m *member) {
	if !m.queued {
		m.queued = true
		l.answers = append(l.answers, m)
	}
}

// answer tells a member what became of a run of records.
func (l *Leader) answer(m *member, from, to wire.Offset, epoch wire.Index, code wire.ErrorCode) {
	if n := len(m.answers); n > 0 {
		if a := &m.answers[n-1]; a.Code == code && a.Epoch == epoch && a.Offset+wire.Offset(a.Count) == from {
			a.Count += uint32(to - from)
			return
		}
	}
	m.answers = append(m.answers, wire.OutcomeAnswer{Offset: from, Count: uint32(to - from), Epoch: epoch, Code: code})
	l.touch(m)
}

// lose tells a member that it has lost a run of records.
func (l *Leader) lose(m *member, from, to wire.Offset, epoch wire.Index, reason wire.LeaseReason) {
	m.lost = append(m.lost, wire.Lost{Offset: from, Count: uint32(to - from), Epoch: epoch, Reason: reason})
	l.touch(m)
}

// Wants takes what is asked for.
func (l *Leader) Wants() Want {
	w := l.want
	l.want = Want{}
	if w.Confirm {
		l.asks, l.asked = true, len(l.beats)
		if l.aside == steppedAside {
			l.aside = asideAsked
		}
		for _, a := range l.attaches {
			a.asked = a.needs && !a.open
		}
	}
	return w
}

// wantScan asks for the batch that holds o.
func (l *Leader) wantScan(o wire.Offset) {
	if len(l.want.Scan) < 16 && !slices.Contains(l.want.Scan, o) {
		l.want.Scan = append(l.want.Scan, o)
	}
}

// Close ends all links with err. The Leader is not used any more.
func (l *Leader) Close(err error) {
	for _, a := range l.attaches {
		if l.links[a.consumer] == a && !a.open {
			delete(l.links, a.consumer)
			a.consumer.Attached(nil, err)
		}
	}
	for c := range l.links {
		c.Closed(err)
	}
	if l.order != nil && l.order.Done != nil && !l.order.proposed {
		l.order.Done(err)
	}
	for _, p := range append(l.proposed, l.next) {
		for i := range p.parks {
			if done := p.parks[i].done; done != nil {
				done(err)
			}
		}
		for i := range p.orders {
			if p.orders[i].Done != nil {
				p.orders[i].Done(err)
			}
		}
	}
	clear(l.links)
	for _, m := range l.members {
		m.link = nil
	}
}
