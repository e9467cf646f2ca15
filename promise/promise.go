// Package promise checks what consumers of a group observed against what
// Lockstep promises them. It looks from outside: it sees deliveries, acks and their
// answers, never the log or the broker's memory, so that the same check serves
// simulations, tests of real processes, and users who check their own cluster.
//
// One Checker watches one group on one partition, where epochs and offsets have a
// meaning. Observe takes one Event after another, in the order in which they happened,
// and reports the first promise that is broken:
//
//	G1  Per record one ack is accepted, from the newest lease delivered of its scope;
//	    accepted acks of a scope follow the order of offsets and their epochs never
//	    fall; after OK the record does not come again under a current epoch; no two
//	    sessions share an epoch of a scope.
//	G2  At most one live session processes a scope.
//	G3  No record is started under a current epoch before those before it in its
//	    scope are settled; the same session waits for the answer.
//	G4  A record that was started comes again only if its session gave it back, lost
//	    it, or failed: a broker's failure alone repeats nothing.
//	G5  Nothing is lost: Unsettled lists what nobody finished.
//
// # What an observer can know
//
// An answer travels. That B starts r1 before A hears of the OK for r0 is no
// violation: A's ack may have been committed. The checker then assumes that r0 is
// settled and remembers it; should r0 come again under an epoch that is not lower, the
// assumption was wrong and r1 came too early. So every verdict stands on events alone:
// what a record's own session reports before it sends, and after it has received.
// For that to be sound each Kind says whether it is reported before or after the deed.
// Deliveries of a deposed leader are no violation as long as their epoch is lower
// than that of the rightful holder: this is what epochs are for.
//
// # What it costs
//
// A lookup and a few comparisons per event. Memory is bounded by the records that are
// not settled, and by Options.Remember settled ones; what is forgotten is no longer
// compared. A Checker starts no goroutine and reads no clock.
package promise

import (
	"cmp"
	"fmt"
	"slices"
	"sync"
)

// Order is the group's setting of the same name, with its two grades of replay.
type Order uint8

const (
	// Strict is the default: the next record of a scope starts when the ack of the one
	// before it is confirmed.
	Strict Order = iota
	// ReplayOnReceipt lets the same holder start the next record when its ack is sent.
	// If holder and leader fail together, records may be repeated after later ones.
	ReplayOnReceipt
	// ReplayUngated lets a holder work on all that was prefetched. If it fails, the
	// batch is repeated.
	ReplayUngated
)

// Options are the settings of the group that is watched. The zero value is a serial
// group in strict order.
type Options struct {
	// Shared says that every record is a scope of its own.
	Shared bool
	// Order is what the group promises about the order inside a scope.
	Order Order
	// Steady says that no consumer fails, is slow, or is out of reach for longer than the
	// grace, and that no operator interferes. Then nothing may be taken from a session, and
	// Revoked, Removed or STALE break G4.
	Steady bool
	// Flags says that Delivered events tell whether the delivery was flagged as a
	// redelivery. Then a record that was started must not come again without the flag.
	Flags bool
	// Remember is how many settled records are still compared with what comes later;
	// the oldest are forgotten first. 0 means 100,000. Each takes less than 1 KiB.
	Remember int
}

const defaultRemember = 100_000

// Violation is a broken promise. It is an error.
type Violation struct {
	// Promise is "G1" to "G4", or "flag" for a redelivery that looks like a first delivery.
	Promise string
	// What is broken, in one sentence.
	What string
	// Number counts events from 1; Event is the one that showed the violation.
	Number uint64
	Event  Event
}

func (v *Violation) Error() string {
	return fmt.Sprintf("%s is broken at event %d (%s): %s", v.Promise, v.Number, v.Event, v.What)
}

// Checker compares events with the promises. It may be used by several goroutines;
// the order of calls is the order of events. Make one with New.
type Checker struct {
	options Options

	mu       sync.Mutex
	number   uint64 // events so far
	broken   *Violation
	scopes   map[scopeID]*scope
	sessions map[string]*session
	settled  []place // oldest first, for forgetting
	lost     uint64  // number of the last LeaderLost
	fence    uint64  // Epoch of the last Sought
}

// New returns a checker that has seen nothing.
func New(o Options) *Checker {
	if o.Remember == 0 {
		o.Remember = defaultRemember
	}
	return &Checker{options: o, scopes: map[scopeID]*scope{}, sessions: map[string]*session{}}
}

type scopeID struct {
	name   string
	record uint64 // in mode shared
}

type place struct {
	scope  scopeID
	record *record
}

// session is one life of a consumer. A number is that of the event, 0 if there was none.
type session struct {
	ended   uint64 // Removed or Died
	stopped uint64
}

// scope is what was seen of one scope.
type scope struct {
	records []*record // by offset
	// open is the number of leading records that are settled: all before it are.
	open int
	// grants are the epochs seen, ascending, with whom they were delivered to first.
	grants  []grant
	running []run
}

type grant struct {
	epoch   uint64
	session string
	number  uint64
}

// run is a handler at work.
type run struct {
	session string
	record  uint64
	number  uint64
}

type record struct {
	offset   uint64
	leases   []*lease
	accepted *lease // whose ack got OK
	settled  uint64 // OK, Settled, or 0
	fence    uint64 // Epoch of Settled, 0 if unknown
	// passed is the lowest epoch under which a later record was started, on the
	// assumption that this one was settled. passedAt is that event, 0 for none.
	passed   uint64
	passedAt uint64
}

// lease is one delivery of a record to a session.
type lease struct {
	session   string
	epoch     uint64
	delivered uint64
	started   uint64
	acked     uint64 // first sent
	ok        uint64
	returned  uint64 // Nacked or Revoked
	sought    uint64 // a seek came after it
}

// Err returns the first violation, or nil.
func (c *Checker) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.errLocked()
}

// Events is the number of events observed.
func (c *Checker) Events() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.number
}

// Unsettled returns the offsets of all records that were published or delivered and
// that nothing has settled, ascending. At the end of a run, when all consumers have
// finished, each is a lost record (G5).
func (c *Checker) Unsettled() []uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []uint64
	for _, s := range c.scopes {
		for _, r := range s.records[s.open:] {
			if r.settled == 0 {
				out = append(out, r.offset)
			}
		}
	}
	slices.Sort(out)
	return out
}

// Observe takes in one event. It returns the first violation, a *Violation, of this
// event or an earlier one; after that events are counted and not looked at.
func (c *Checker) Observe(e Event) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.number++
	if c.broken != nil {
		return c.broken
	}
	c.take(e)
	return c.errLocked()
}

func (c *Checker) errLocked() error {
	if c.broken == nil {
		return nil // not a nil *Violation in an error
	}
	return c.broken
}

func (c *Checker) take(e Event) {
	switch e.Kind {
	case Delivered:
		c.delivered(e)
	case Started:
		c.started(e)
	case Finished:
		c.stops(c.scope(e), e.Session, e.Record)
	case Acked:
		c.acked(e)
	case Answered:
		c.answered(e)
	case Nacked:
		c.gaveBack(e)
	case Revoked:
		c.taken(e)
		c.gaveBack(e)
	case Removed:
		c.taken(e)
		c.ends(e.Session)
	case Died:
		c.ends(e.Session)
		for _, s := range c.scopes {
			s.running = slices.DeleteFunc(s.running, func(r run) bool { return r.session == e.Session })
		}
	case Stopped:
		c.session(e.Session).stopped = c.number
	case Settled:
		s := c.scope(e)
		r := s.record(e.Record)
		r.fence = max(r.fence, e.Epoch)
		c.settles(e, s, r)
	case Sought:
		c.sought(e)
	case Published:
		c.scope(e).record(e.Record)
	case LeaderLost:
		c.lost = c.number
	default:
		panic(fmt.Sprintf("promise: event %d has %s", c.number, e.Kind))
	}
}

func (c *Checker) fail(promise string, e Event, what string, args ...any) {
	if c.broken == nil {
		c.broken = &Violation{Promise: promise, What: fmt.Sprintf(what, args...), Number: c.number, Event: e}
	}
}

func (c *Checker) session(name string) *session {
	s := c.sessions[name]
	if s == nil {
		s = new(session)
		c.sessions[name] = s
	}
	return s
}

func (c *Checker) ends(name string) {
	if s := c.session(name); s.ended == 0 {
		s.ended = c.number
	}
}

func (c *Checker) scopeOf(e Event) scopeID {
	if c.options.Shared {
		return scopeID{record: e.Record}
	}
	return scopeID{name: e.Scope}
}

func (c *Checker) scope(e Event) *scope {
	id := c.scopeOf(e)
	s := c.scopes[id]
	if s == nil {
		s = new(scope)
		c.scopes[id] = s
	}
	return s
}

func (s *scope) find(offset uint64) (int, bool) {
	return slices.BinarySearchFunc(s.records, offset, func(r *record, o uint64) int { return cmp.Compare(r.offset, o) })
}

// record returns what is known of an offset, which it makes known.
func (s *scope) record(offset uint64) *record {
	i, found := s.find(offset)
	if !found {
		s.records = slices.Insert(s.records, i, &record{offset: offset})
		s.open = min(s.open, i)
	}
	return s.records[i]
}

// lease returns the session's latest delivery of the record under an epoch, or nil.
func (r *record) lease(e Event) *lease {
	for _, l := range slices.Backward(r.leases) {
		if l.session == e.Session && l.epoch == e.Epoch {
			return l
		}
	}
	return nil
}

// delivered checks a delivery against what the record and its scope have seen.
func (c *Checker) delivered(e Event) {
	s := c.scope(e)
	r := s.record(e.Record)
	c.granted(e, s)
	if a := r.accepted; a != nil && e.Epoch >= a.epoch {
		c.fail("G1", e, "its ack from session %s under epoch %d got OK at event %d", a.session, a.epoch, a.ok)
	}
	if r.fence != 0 && e.Epoch >= r.fence {
		c.fail("G1", e, "it was settled at event %d, under epoch %d", r.settled, r.fence)
	}
	if r.passedAt != 0 && e.Epoch >= r.passed && !c.replays(r) {
		c.fail("G3", e, "a later record of the scope was started under epoch %d at event %d, so this one should have been settled",
			r.passed, r.passedAt)
	}
	for _, l := range r.leases {
		if l.epoch > e.Epoch || l.started == 0 || l.sought != 0 {
			continue
		}
		if c.options.Flags && !e.Redelivered {
			c.fail("flag", e, "session %s started it at event %d, and the delivery looks like a first one", l.session, l.started)
		}
		if !c.holds(l) {
			continue
		}
		c.fail("G4", e, "session %s started it under epoch %d at event %d, and has neither failed nor lost it",
			l.session, l.epoch, l.started)
	}
	r.leases = append(r.leases, &lease{session: e.Session, epoch: e.Epoch, delivered: c.number})
}

// granted notes to whom an epoch of a scope belongs.
func (c *Checker) granted(e Event, s *scope) {
	i, found := slices.BinarySearchFunc(s.grants, e.Epoch, func(g grant, epoch uint64) int { return cmp.Compare(g.epoch, epoch) })
	if !found {
		s.grants = slices.Insert(s.grants, i, grant{e.Epoch, e.Session, c.number})
	} else if g := s.grants[i]; g.session != e.Session {
		c.fail("G1", e, "session %s has this epoch of the scope since event %d", g.session, g.number)
	}
}

// started checks that nobody else works in the scope and that all before it is settled.
func (c *Checker) started(e Event) {
	s := c.scope(e)
	r := s.record(e.Record)
	l := r.lease(e)
	if l == nil {
		c.delivered(e)
		l = r.lease(e)
	}
	if l.started != 0 && l.sought == 0 {
		c.fail("G4", e, "the same session started it at event %d under the same epoch", l.started)
	}
	if l.returned != 0 && l.sought == 0 {
		c.fail("G3", e, "the same session gave it back at event %d", l.returned)
	}
	for _, other := range s.running {
		if other.session != e.Session && c.session(other.session).stopped == 0 && c.session(e.Session).stopped == 0 {
			c.fail("G2", e, "session %s works on record %d of the scope since event %d", other.session, other.record, other.number)
		}
	}
	c.inOrder(e, s, r)
	l.started = c.number
	s.running = append(s.running, run{e.Session, e.Record, c.number})
}

// inOrder checks a start against the records before it.
func (c *Checker) inOrder(e Event, s *scope, r *record) {
	s.advance()
	for _, before := range s.records[s.open:] {
		if before.offset >= r.offset {
			return
		}
		if before.settled != 0 {
			continue
		}
		if own := before.holder(e.Session); own != nil && c.holds(own) {
			switch {
			case c.options.Order == Strict:
				c.fail("G3", e, "the same session has no OK yet for record %d before it", before.offset)
			case own.acked == 0 && c.options.Order == ReplayOnReceipt:
				c.fail("G3", e, "the same session has not acknowledged record %d before it", before.offset)
			}
		} else if held := before.newest(); held != nil && held.epoch <= e.Epoch && held.started != 0 && held.acked == 0 && c.holds(held) {
			c.fail("G3", e, "session %s has record %d before it since event %d, and has neither finished nor lost it",
				held.session, before.offset, held.delivered)
		}
		if before.passedAt == 0 || e.Epoch < before.passed {
			before.passed, before.passedAt = e.Epoch, c.number
		}
	}
}

// holder is the latest delivery of the record if it went to that session.
func (r *record) holder(session string) *lease {
	if n := len(r.leases); n > 0 && r.leases[n-1].session == session && r.leases[n-1].sought == 0 {
		return r.leases[n-1]
	}
	return nil
}

// newest is the record's delivery with the highest epoch, or nil.
func (r *record) newest() (newest *lease) {
	for _, l := range r.leases {
		if newest == nil || l.epoch >= newest.epoch {
			newest = l
		}
	}
	return newest
}

// holds reports whether nothing that an observer can see has ended a delivery, but
// perhaps an ack. What stands still may have been removed without being told.
func (c *Checker) holds(l *lease) bool {
	s := c.sessions[l.session]
	return l.sought == 0 && l.returned == 0 && (s == nil || s.ended == 0 && s.stopped == 0)
}

func (c *Checker) ended(name string) bool {
	s := c.sessions[name]
	return s != nil && s.ended != 0
}

// replays reports whether the group's order allows the record to come again although
// a later one was started.
func (c *Checker) replays(r *record) bool {
	if c.options.Order == Strict {
		return false
	}
	if slices.ContainsFunc(r.leases, c.holds) {
		return false
	}
	return c.options.Order == ReplayUngated || c.lost > 0
}

func (c *Checker) stops(s *scope, session string, offset uint64) {
	s.running = slices.DeleteFunc(s.running, func(r run) bool { return r.session == session && r.record == offset })
}

func (c *Checker) acked(e Event) {
	if l := c.scope(e).record(e.Record).lease(e); l != nil && l.acked == 0 {
		l.acked = c.number
	}
}

// taken checks that the broker had a reason.
func (c *Checker) taken(e Event) {
	if c.options.Steady {
		c.fail("G4", e, "no consumer has failed")
	}
}

// gaveBack ends the session's deliveries from a record on.
func (c *Checker) gaveBack(e Event) {
	s := c.scope(e)
	i, _ := s.find(e.Record)
	for _, r := range s.records[i:] {
		for _, l := range r.leases {
			if l.session == e.Session && l.returned == 0 && l.ok == 0 {
				l.returned = c.number
			}
		}
	}
}

// answered checks that an accepted ack was the rightful one, and that an accepted one
// is not refused later.
func (c *Checker) answered(e Event) {
	s := c.scope(e)
	r := s.record(e.Record)
	l := r.lease(e)
	if l == nil {
		if e.Answer == OK {
			c.fail("G1", e, "this session never got the record under this epoch")
		}
		return
	}
	if e.Answer == Stale && l.ok != 0 && l.sought == 0 && !c.ended(e.Session) {
		c.fail("G1", e, "the same ack got OK at event %d", l.ok)
	}
	if e.Answer == Stale && l.returned == 0 {
		c.taken(e)
	}
	if e.Answer != OK || l.ok != 0 {
		return
	}
	if l.sought != 0 {
		if l.acked == 0 || l.acked > l.sought {
			c.fail("G1", e, "the ack was sent after the seek at event %d, and the delivery was before it", l.sought)
		}
		return // accepted before the seek
	}
	if a := r.accepted; a != nil {
		c.fail("G1", e, "session %s got OK for it under epoch %d at event %d", a.session, a.epoch, a.ok)
	}
	if l.epoch < c.fence {
		c.fail("G1", e, "a seek has fenced everything below epoch %d", c.fence)
	}
	for _, other := range r.leases {
		if other.epoch > l.epoch {
			c.fail("G1", e, "session %s got the record under epoch %d, which is newer, at event %d",
				other.session, other.epoch, other.delivered)
		}
	}
	for _, g := range slices.Backward(s.grants) {
		if g.epoch <= l.epoch {
			break
		}
		if g.session != e.Session && l.acked != 0 && g.number < l.acked {
			c.fail("G1", e, "the ack was sent at event %d, after session %s had the scope under epoch %d, which is newer",
				l.acked, g.session, g.epoch)
		}
	}
	l.ok = c.number
	r.accepted = l
	c.acceptedInOrder(e, s, r)
	c.settles(e, s, r)
}

// acceptedInOrder compares an accepted ack with those of its neighbours.
func (c *Checker) acceptedInOrder(e Event, s *scope, r *record) {
	i, _ := s.find(r.offset)
	l := r.accepted
	for _, later := range s.records[i+1:] {
		if a := later.accepted; a != nil {
			if a.epoch < l.epoch {
				c.fail("G1", e, "record %d after it was accepted under epoch %d, which is lower", later.offset, a.epoch)
			}
			if a.ok < l.acked {
				c.fail("G1", e, "record %d after it had its OK at event %d, before this ack was sent", later.offset, a.ok)
			}
			break
		}
	}
	for _, before := range slices.Backward(s.records[:i]) {
		if a := before.accepted; a != nil {
			if a.epoch > l.epoch {
				c.fail("G1", e, "record %d before it was accepted under epoch %d, which is higher", before.offset, a.epoch)
			}
			break
		}
	}
}

// settles notes that a record is done with.
func (c *Checker) settles(e Event, s *scope, r *record) {
	if r.settled != 0 {
		return
	}
	r.settled = c.number
	s.advance()
	c.settled = append(c.settled, place{c.scopeOf(e), r})
	if len(c.settled) <= c.options.Remember {
		return
	}
	c.forget(c.settled[0])
	c.settled = c.settled[1:]
}

// forget drops a settled record, and its scope if it was the last.
func (c *Checker) forget(p place) {
	s := c.scopes[p.scope]
	if s == nil {
		return
	}
	i, found := s.find(p.record.offset)
	if !found || s.records[i] != p.record {
		return // a seek has replaced it
	}
	if i == 0 {
		s.records = s.records[1:] // the usual case, and no copy
	} else {
		s.records = slices.Delete(s.records, i, i+1)
	}
	if i < s.open {
		s.open--
	}
	if len(s.records) == 0 && len(s.running) == 0 {
		delete(c.scopes, p.scope)
		return
	}
	if n := len(s.grants); n > 1 && p.record.accepted != nil {
		// Epochs below the one of a settled record are not current any more.
		i, _ := slices.BinarySearchFunc(s.grants, p.record.accepted.epoch, func(g grant, epoch uint64) int { return cmp.Compare(g.epoch, epoch) })
		s.grants = s.grants[min(i, n-1):]
	}
}

// advance moves open past settled records.
func (s *scope) advance() {
	for s.open < len(s.records) && s.records[s.open].settled != 0 {
		s.open++
	}
}

// sought makes the records from an offset on new again, and settles those before it: the
// group passes over what was not done. Deliveries from before stay known, so that an ack
// which was sent after the seek can be told from one before it.
func (c *Checker) sought(e Event) {
	c.fence = max(c.fence, e.Epoch)
	for id, s := range c.scopes {
		i, _ := s.find(e.Record)
		for j, r := range s.records {
			for _, l := range r.leases {
				if l.sought == 0 {
					l.sought = c.number
				}
			}
			if j >= i {
				s.records[j] = &record{offset: r.offset, leases: r.leases}
				continue
			}
			r.fence = max(r.fence, e.Epoch)
			if r.settled == 0 {
				r.settled = c.number
				c.settled = append(c.settled, place{id, r})
			}
		}
		s.open = min(s.open, i)
		s.advance()
	}
	for len(c.settled) > c.options.Remember {
		c.forget(c.settled[0])
		c.settled = c.settled[1:]
	}
}
