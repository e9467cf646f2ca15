package group

import (
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/lockstepmq/lockstep/wire"
)

// ExplainScope says what holds up one scope.
func (l *Leader) ExplainScope(h Scope, nowMs int64) []wire.Reason {
	e := &explainer{l: l, nowMs: nowMs}
	if e.group(); l.scopes[h] != nil {
		e.scope(l.scopes[h])
	} else {
		e.parked(h)
	}
	return e.out
}

// explainer collects what holds records up, the first thing first.
type explainer struct {
	l     *Leader
	nowMs int64
	out   []wire.Reason
	stops bool // nothing of the whole group goes out, as was said
}

// Explain says why the group, a key, a publisher or a record stands still. NowMs is the
// time of day: times in the answer are of that clock, in milliseconds.
func (l *Leader) Explain(q *wire.ExplainRequest, nowMs int64) wire.ExplainResponse {
	e := &explainer{l: l, nowMs: nowMs}
	switch {
	case q.Offset != nil:
		e.record(wire.Offset(*q.Offset))
	case q.Key != nil:
		e.hash(*q.Key, wire.ScopeKey)
	case q.Publisher != nil:
		e.hash(*q.Publisher, wire.ScopePublisher)
	default:
		e.group()
		e.scopes()
	}
	return wire.ExplainResponse{Reasons: e.out, NowMs: nowMs}
}

// say adds a reason. Since and until are of the Leader's clock, 0 for none.
func (e *explainer) say(code, object string, since, until time.Duration, text string, args ...any) *wire.Reason {
	e.out = append(e.out, wire.Reason{Code: code, Text: fmt.Sprintf(text, args...), Object: object, SinceMs: e.at(since), UntilMs: e.at(until), Advice: wire.Advice(code)})
	return &e.out[len(e.out)-1]
}

func (e *explainer) at(t time.Duration) int64 {
	if t == 0 {
		return 0
	}
	return e.nowMs + (t - e.l.now).Milliseconds()
}

// of names a session.
func of(m *member) string {
	id := hex.EncodeToString(m.session[:])
	if m.name != "" {
		return m.name + " (" + id + ")"
	}
	return id
}

// count is a number before what there is one of, or more.
func count(n int, one, more string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, more)
}

// group says what holds up everything.
func (e *explainer) group() {
	l := e.l
	e.stops = l.g.Paused || l.frozen || l.aside != leads || l.order != nil
	if l.g.Paused {
		e.say("paused", l.g.Name, 0, 0, "The group is paused.")
	}
	if l.frozen {
		e.say("draining", "move", 0, 0, "Another replica is about to lead: nothing is given out until it does.")
	}
	if l.aside != leads {
		e.say("no_quorum", "", 0, 0, "A consumer knows of a later leader of the partition: nothing is given out until a majority of its replicas confirms that this one leads.")
	}
	if l.order != nil {
		leased := 0
		for _, m := range l.members {
			leased += m.held
		}
		e.say("draining", l.order.Reason.String(), 0, 0, "The group stops for a change (%s): %s still with consumers.", l.order.Reason, count(leased, "record is", "records are"))
	}
	linked, by := 0, ""
	for _, m := range l.sorted() {
		if m.waiting {
			e.say("waiting_for_session", of(m), l.start, max(m.heard, l.start)+l.session(),
				"The leader has changed, and session %s may still work on records that the one before gave it: it has to come back, or to be taken for dead.", of(m))
		}
		if m.link != nil {
			linked, by = linked+1, of(m)
		}
	}
	e.stops = e.stops || linked == 0
	if linked == 0 && l.waiting == 0 && l.g.Done.Next(l.g.Done.Floor()) < l.end {
		e.say("no_consumer", "", 0, 0, "No consumer is attached to this partition.")
	}
	switch active := l.members[l.g.Active]; {
	case l.kind != single || !l.sticky() || linked == 0:
	case l.activating:
		e.say("standby", "", 0, 0, "Which session is the active one is being committed.")
	case active == nil:
		e.say("standby", "", 0, 0, "No session is the active one yet: one that can be has to attach.")
	case active.link == nil:
		e.say("standby", of(active), active.heard, max(active.heard, l.start)+l.session(),
			"Session %s is the active one and has no link: until it comes back or is taken for dead nobody gets records.", of(active))
	}
	if limit := min(l.end, l.g.Horizon); l.scan < l.end && l.scan >= limit && linked > 0 {
		e.say("horizon_not_committed", "", 0, 0, "Records from offset %d on may go out when a higher horizon is committed.", limit)
	}
	if linked > 0 && len(l.eligible) == 0 && l.g.Done.Floor() < l.end {
		text := "The only consumer holds as many records as it asked for."
		if linked > 1 {
			text, by = fmt.Sprintf("All %d consumers hold as many records as they asked for.", linked), ""
		}
		e.say("no_credit", by, 0, 0, "%s", text)
	}
	if o, ok := l.unreadable(); ok {
		what := "what lies behind it waits"
		if l.kind == shared || o < l.scan {
			what = "others pass it"
		}
		e.unreadable("", o, what)
	}
	if lost := l.g.Lost; lost.To > lost.From && lost.To == l.g.Done.Floor() {
		e.say("data_expired", "", 0, 0, "Retention has removed the records at offsets %d to %d before the group was done with them; it goes on at %d. %s so far.",
			lost.From, lost.To-1, lost.To, count(int(l.g.Expired), "record has expired", "records have expired"))
	}
	if n := len(l.g.Letters.Open); n > 0 {
		e.say("letter_not_accepted", l.g.Settings.DeadLetter, 0, 0, "%s: %s.", l.waitingLetters(n), l.advice(nil))
	}
}

// waitingLetters says how many letters are not written.
func (l *Leader) waitingLetters(n int) string {
	back := 0
	for _, x := range l.g.Letters.Open {
		if x.Reason == Redriven {
			back++
		}
	}
	failed := fmt.Sprintf("%s not written to %q yet", count(n-back, "record has failed too often and is", "records have failed too often and are"), l.g.Settings.DeadLetter)
	redriven := count(back, "dead letter is", "dead letters are") + " on the way back, and not there yet"
	switch {
	case back == 0:
		return failed
	case back == n:
		return redriven
	}
	return failed + ", and " + redriven
}

// goesBack reports whether the record at o is a dead letter on its way back, and to which
// destination.
func (l *Leader) goesBack(o wire.Offset) (to string, back bool) {
	for _, x := range l.g.Letters.Open {
		if x.Offset == o && x.Reason == Redriven {
			to, _, back = x.Target()
		}
	}
	return to, back
}

// unreadable says that a record is damaged on this replica's disk, and what that holds up.
func (e *explainer) unreadable(object string, o wire.Offset, what string) {
	v := uint64(o)
	e.say("corrupt_range", object, 0, 0, "The record at offset %d cannot be read here, it is damaged on the disk; %s.", o, what).Offset = &v
}

func (l *Leader) sorted() []*member {
	out := make([]*member, 0, len(l.members))
	for _, m := range l.members {
		out = append(out, m)
	}
	slices.SortFunc(out, func(a, b *member) int { return compareSessions(a.session, b.session) })
	return out
}

// scopes says what holds up the keys or publishers that wait, the longest first, up to
// ten.
func (e *explainer) scopes() {
	l := e.l
	e.alone()
	if l.kind != hashed { // then they are records, or the whole partition
		e.first()
		all := l.parkedScopes()
		for _, h := range all[:min(10, len(all))] {
			e.parked(h)
		}
		return
	}
	var waiting []*scope
	for _, s := range l.scopes {
		if s.n > 0 || s.more || s.parked > 0 || len(s.leased) > 0 && l.scan < l.end {
			waiting = append(waiting, s)
		}
	}
	slices.SortFunc(waiting, func(a, b *scope) int {
		if a.since != b.since {
			return int(min(1, max(-1, a.since-b.since)))
		}
		return int(min(1, max(-1, int64(a.hash)-int64(b.hash))))
	})
	for _, s := range waiting[:min(10, len(waiting))] {
		e.scope(s)
	}
}

// first says what holds up the first record where a whole partition goes in order.
func (e *explainer) first() {
	l := e.l
	if l.kind != single || l.scan >= l.end {
		return
	}
	if l.hold > l.now {
		e.rests(l.scan, 1, l.hold)
		return
	}
	var first *lease
	var by *member
	for _, m := range l.sorted() {
		if all := m.leases.all(); len(all) > 0 && (first == nil || all[0].from < first.from) {
			first, by = &all[0], m
		}
	}
	if first != nil {
		e.leased(by, first.from, max(first.since, by.worked))
	}
}

// rests says that n records were given back and rest, the one at o until due, before the others.
func (e *explainer) rests(o wire.Offset, n int, due time.Duration) {
	text := fmt.Sprintf("Record %d has failed and rests before the next attempt.", o)
	if n > 1 {
		text = fmt.Sprintf("%d records have failed and rest before the next attempt, record %d the shortest.", n, o)
	}
	v := uint64(o)
	e.say("backoff", "", 0, due, "%s", text).Offset = &v
}

// alone says that records which are scopes of their own rest.
func (e *explainer) alone() {
	l, n, next := e.l, 0, timer{}
	for _, t := range l.timers.heap {
		if l.resting(&t) && !l.g.Done.Has(t.record) {
			if n++; n == 1 || t.at < next.at {
				next = t
			}
		}
	}
	if n > 0 {
		e.rests(next.record, n, next.at)
	}
}

// resting reports whether a timer is that of a record which is a scope of its own, and rests.
func (l *Leader) resting(t *timer) bool {
	return t.member == nil && t.scope == nil && !t.wake && t.round == l.round && !l.unreads[t.record]
}

// hash says what holds up a key or a publisher.
func (e *explainer) hash(name []byte, of wire.GroupScope) {
	l := e.l
	if l.kind != hashed || l.g.Settings.Scope != of {
		e.say("not_there", "", 0, 0, "The group does not go by %s.", of)
		e.group()
		return
	}
	e.group()
	s := l.scopes[HashOf(name)]
	if s == nil && l.stays(HashOf(name)) {
		return // for a session, as was said
	}
	if s == nil && l.scan >= l.end {
		e.say("done", "", 0, 0, "The group is done with every record of it that there is.")
		return
	}
	if s == nil {
		e.say("behind_scan", "", 0, 0, "No record of it below offset %d waits; the group has not come to what lies from there on.", l.scan)
		return
	}
	e.scope(s)
}

// parked says that a scope is parked, if it is.
func (e *explainer) parked(h Scope) bool {
	l := e.l
	p, ok := l.g.Parked[h]
	if !ok {
		return false
	}
	why := ""
	if p.Reason != "" {
		why = ": " + strings.TrimSuffix(p.Reason, ".")
	}
	var text string
	place, known := l.feed.At(p.Head)
	switch {
	case l.kind == single:
		text = fmt.Sprintf("The whole partition is parked from offset %d on%s.", p.Head, why)
	case Scope(p.Head) == h:
		text = fmt.Sprintf("Record %d is parked%s.", p.Head, why)
	case known && l.hashOf(place, p.Head) == h:
		text = fmt.Sprintf("The %s of the record at offset %d, which browse shows, is parked from there on%s.", l.g.Settings.Scope, p.Head, why)
	default: // nobody had met a record of it
		text = fmt.Sprintf("A %s is parked from offset %d on%s.", l.g.Settings.Scope, p.Head, why)
	}
	head := uint64(p.Head)
	e.say("parked", fmt.Sprintf("%016x", uint64(h)), l.parkedAt[h], 0, "%s", text).Offset = &head
	return true
}

// scope says what holds up one scope.
func (e *explainer) scope(s *scope) {
	l, name := e.l, fmt.Sprintf("%016x", uint64(s.hash))
	offset := func(r *wire.Reason, o wire.Offset) {
		v := uint64(o)
		r.Offset = &v
	}
	what := l.g.Settings.Scope
	switch {
	case s.parked > 0 && e.parked(s.hash):
	case len(s.leased) > 0:
		e.leased(s.holder, s.leased[0], s.since)
	case s.unread && s.n > 0:
		e.unreadable(name, s.next[0], fmt.Sprintf("the rest of its %s waits", what))
	case s.due > l.now && s.n > 0:
		offset(e.say("backoff", name, 0, s.due, "Record %d has failed and rests before the next attempt.", s.next[0]), s.next[0])
	case s.finding:
		e.say("finding_next", name, 0, 0, "The next record of the %s above offset %d is being looked for.", what, s.after)
	case s.n > 0 && !e.stops:
		offset(e.say("no_credit", name, 0, 0, "Record %d can go out as soon as a consumer has room.", s.next[0]), s.next[0])
	}
}

// silent reports whether a session was not heard when its heartbeat was due.
func (e *explainer) silent(m *member) bool {
	return e.l.now-max(m.heard, e.l.start) > e.l.session()/2
}

// leased says who has a record.
func (e *explainer) leased(m *member, o wire.Offset, since time.Duration) {
	l := e.l
	r := m.leases.find(o)
	if r == nil {
		return
	}
	var reason *wire.Reason
	switch {
	case r.state == settling:
		reason = e.say("ack_not_committed", of(m), 0, 0, "Session %s has acknowledged record %d; that is not committed yet.", of(m), o)
	case r.state == returning, r.state == ending:
		reason = e.say("revoking", of(m), 0, 0, "Record %d is taken back from session %s; that is not committed yet.", o, of(m))
	case r.revoked != 0:
		reason = e.say("revoking", of(m), max(0, m.revoke-l.patience()), m.revoke, "Session %s was asked to give record %d back (%s).", of(m), o, r.revoked)
	case e.silent(m):
		reason = e.say("silent", of(m), m.heard, max(m.heard, l.start)+l.session(),
			"Session %s has record %d under epoch %d, and was not heard for more than half of its session timeout: it is taken for dead when that is over.", of(m), o, r.epoch)
	default:
		reason = e.say("held", of(m), since, 0, "Session %s has record %d under epoch %d.", of(m), o, r.epoch)
	}
	v := uint64(o)
	reason.Offset = &v
}

// record says what holds up one record.
func (e *explainer) record(o wire.Offset) {
	l := e.l
	switch {
	case o >= l.end:
		e.say("not_there", "", 0, 0, "The partition ends at offset %d.", l.end)
		return
	case l.g.Done.Has(o):
		e.say("done", "", 0, 0, "The group is done with it.")
		return
	case l.lettered[o]:
		if to, back := l.goesBack(o); back {
			e.say("letter_not_accepted", to, 0, 0, "It is on its way back to %q, and not there yet: %s.", to, l.advice(&o))
			return
		}
		e.say("letter_not_accepted", l.g.Settings.DeadLetter, 0, 0, "It has failed too often and is not written to %q yet: %s.", l.g.Settings.DeadLetter, l.advice(&o))
		return
	}
	for _, m := range l.sorted() {
		if r := m.leases.find(o); r != nil {
			since := r.since
			if l.kind == single {
				since = max(since, m.worked)
			}
			if s := l.of.Get(o); s != nil && s.isHead(o) {
				since = s.since
			} else if s != nil {
				since = 0 // it is sent ahead, and nobody works on it
			}
			e.leased(m, o, since)
			return
		}
	}
	e.group()
	p, ok := l.feed.At(o)
	own := Scope(o)
	if l.kind == single {
		own = destinationScope
	}
	if e.parked(own) {
		return
	}
	if ok && l.kind == hashed {
		if s := l.scopes[l.hashOf(p, o)]; s != nil && l.hashOf(p, o) != 0 {
			e.scope(s)
			return
		}
	}
	if l.grace.above && l.waiting > 0 && (o < l.grace.bound || !l.goesOn()) {
		return // it waits for a session, as was said
	}
	if o >= l.scan {
		if e.first(); l.hold > l.now && o == l.scan {
			return
		}
		e.say("behind_scan", "", 0, 0, "The group has not come to it yet: it has looked at the records below offset %d so far.", l.scan)
		return
	}
	for _, s := range l.scopes {
		if s.unread && s.n > 0 && s.next[0] == o {
			e.scope(s)
			return
		}
	}
	if l.unreads[o] || l.passed.find(o) != nil {
		if said, _ := l.unreadable(); said != o {
			e.unreadable("", o, "others pass it")
		}
		return
	}
	for _, t := range l.timers.heap {
		if t.record == o && l.resting(&t) {
			e.rests(o, 1, t.at)
			return
		}
	}
	switch {
	case l.kind == hashed && !ok: // which scope it is of is not in memory
		e.say("behind_key", "", 0, 0, "It waits for earlier records of its %s, or for a consumer with room.", l.g.Settings.Scope)
	case !e.stops:
		e.say("no_credit", "", 0, 0, "It can go out as soon as a consumer has room.")
	}
}
