package group

import (
	"fmt"
	"slices"
	"time"

	"github.com/lockstepmq/lockstep/wire"
)

// attachment is one link on its way from the attach to its end.
type attachment struct {
	consumer Consumer
	session  Session
	request  *wire.AttachRequest // nil once it is answered
	client   string
	term     wire.Term
	member   *member // nil until the session is known
	open     bool    // it was answered and is the session's newest
	// needs: the answer waits for a quorum round. asked: one is running that began after
	// the attach was read. confirmed: it has ended well.
	needs, asked, confirmed bool
	joining                 bool // the entry that lists it is to be proposed, or was
	returned                bool // what it does not claim is on its way back
	// scopes of the claimed records, as far as they are known: of the record in question
	// the next is claims[claim].Offset + within.
	scopes map[wire.Offset]Scope
	claim  int
	within uint32
	gap    wire.Offset // what lies below is finished, or leased to the session
}

// Attach begins the link of a session. It is answered with Attached. The request and what
// it holds belong to the Leader from now on. Client is where it comes from, for people.
func (l *Leader) Attach(c Consumer, m *wire.AttachRequest, client string, term wire.Term, now time.Duration) {
	if m.Term > term {
		c.Attached(nil, &wire.Error{Code: wire.CodeNotLeader})
		return
	}
	var records uint64
	for i := range m.Claims {
		records += uint64(m.Claims[i].Count)
	}
	if records > 2*wire.MaxGroupCapacity {
		c.Attached(nil, wire.Errorf(wire.CodeMalformed, "a session claims %d records, it may hold %d", records, wire.MaxGroupCapacity))
		return
	}
	session := Session(m.Session)
	if known := l.members[session]; known != nil {
		if m.Attempt < known.attempt && l.keeps(RuleAttempt) {
			c.Attached(nil, wire.Errorf(wire.CodeDuplicate, "the session has attached again since"))
			return
		}
		known.attempt = m.Attempt
		known.heard = max(known.heard, now)
		known.suspect = false
		l.unlink(known, wire.Errorf(wire.CodeDuplicate, "the session has attached again"))
	}
	if a := l.asking[session]; a != nil && l.links[a.consumer] == a && !a.open {
		delete(l.links, a.consumer)
		a.consumer.Attached(nil, wire.Errorf(wire.CodeDuplicate, "the session has attached again"))
	}
	a := &attachment{consumer: c, session: session, request: m, client: client, term: term}
	l.links[c], l.asking[session] = a, a
	l.attaches = append(l.attaches, a)
}

// unlink ends the open link of a member.
func (l *Leader) unlink(m *member, err error) {
	if m.link == nil {
		return
	}
	c := m.link
	m.link, m.answers, m.lost = nil, m.answers[:0], m.lost[:0]
	m.revoke = 0 // who cannot hear is not asked
	delete(l.links, c)
	l.room(m)
	c.Closed(err)
}

// terms are what consumers are told when they attach, and go by while they are.
type terms struct {
	shape                        Shape
	window, sessionMs, ackWaitMs uint32
}

func termsOf(s *Settings) terms { return terms{ShapeOf(s), s.Window, s.SessionMs, s.AckWaitMs} }

// announce ends the links of all consumers if they go by terms that are not those of the
// group any more: each attaches again, with what it holds, and hears the new ones.
func (l *Leader) announce() {
	now := termsOf(&l.g.Settings)
	if now == l.said || !l.keeps(RuleAnnounce) {
		return
	}
	l.said = now
	sessions := make([]Session, 0, len(l.members))
	for s, m := range l.members {
		if m.link != nil {
			sessions = append(sessions, s)
		}
	}
	slices.SortFunc(sessions, compareSessions)
	for _, s := range sessions {
		l.unlink(l.members[s], wire.Errorf(wire.CodeRetry, "group %s has other settings now: attach again", l.g.Name))
	}
}

// released reports whether a consumer with the flags is to be taken for dead when its
// connection ends: as it has chosen, or else in a shared group, where nothing but the record
// itself depends on it.
func released(flags wire.AttachFlags, mode wire.GroupMode) bool {
	if flags&wire.AttachReleaseChosen != 0 {
		return flags&wire.AttachReleaseOnDisconnect != 0
	}
	return mode == wire.ModeShared
}

// admit goes on with the attaches that wait.
func (l *Leader) admit() {
	keep := l.attaches[:0]
	for i, a := range l.attaches {
		if l.links[a.consumer] == a && !a.open && (i >= turnRecords || !l.advance(a)) {
			keep = append(keep, a)
		} else if l.asking[a.session] == a { // answered, replaced, or gone
			delete(l.asking, a.session)
		}
	}
	clear(l.attaches[len(keep):])
	l.attaches = keep
}

// refuse answers an attach with an error, which ends the link.
func (l *Leader) refuse(a *attachment, err error) bool {
	delete(l.links, a.consumer)
	a.consumer.Attached(nil, err)
	return true
}

// advance takes an attach as far as it goes and reports whether it is answered.
func (l *Leader) advance(a *attachment) bool {
	m := l.members[a.session]
	switch {
	case m == nil:
		return l.join(a)
	case !m.listed:
		if len(a.request.Claims) > 0 { // it waits for the entry that an earlier attach has caused
			return l.refuse(a, wire.CodeSessionGone)
		}
		if l.keeps(RuleJoin) {
			return false
		}
		l.attached(a, m, nil)
		return true
	case m.ending && l.keeps(RuleEnding):
		return false // the outcome comes first
	}
	if !a.returned { // also of one that is refused, and attaches again and again
		a.returned = true
		l.returnUnclaimed(a, m)
	}
	if err := l.outdated(bindingOf(a.request), true); err != nil {
		return l.refuse(a, err)
	}
	a.member = m
	if l.undecided(a, m) || !l.resolve(a) {
		return false
	}
	if !a.confirmed {
		if !a.needs {
			a.needs = true
			l.confirm()
		}
		return false
	}
	l.attached(a, m, l.settleClaims(a, m))
	return true
}

// join has a session listed that is not. What it claims it cannot have.
func (l *Leader) join(a *attachment) bool {
	r := a.request
	if len(r.Claims) > 0 || r.Flags&wire.AttachKnown != 0 && l.keeps(RuleKnown) {
		return l.refuse(a, wire.CodeSessionGone)
	}
	if len(l.members) >= MaxSessions {
		return l.refuse(a, wire.Errorf(wire.CodeTooMany, "group %s has %d consumers at this partition, that is its limit: attach some elsewhere", l.g.Name, MaxSessions))
	}
	binding := bindingOf(r)
	if err := l.outdated(binding, false); err != nil {
		return l.refuse(a, err)
	}
	predecessor := l.members[Session(r.Predecessor)]
	if predecessor == nil {
		predecessor = l.names[r.Name]
	}
	if predecessor != nil && predecessor.ending {
		return false // who comes in its place may have the name by then
	}
	if err := l.occupied(predecessor); err != nil {
		return l.refuse(a, err)
	}
	m := l.member(a.session)
	m.attempt = r.Attempt
	j := joining{member: m, record: Member{
		ID: a.session, Name: r.Name, Client: a.client, Binding: binding, Flags: r.Flags,
	}}
	if predecessor != nil {
		j.record.Predecessor = predecessor.session
		j.predecessor = predecessor
		l.unlink(predecessor, wire.CodeSessionGone)
		l.endAll(predecessor, cause{reason: wire.ReasonRemoved, counted: true, attempt: predecessor.works()})
		predecessor.ending = true
	}
	l.next.joins = append(l.next.joins, j)
	a.joining = true
	if !l.keeps(RuleJoin) {
		l.attached(a, m, nil)
		return true
	}
	return false
}

// occupied is the error for a consumer that would be the second of a group which takes but
// one, unless it takes the place of the first.
func (l *Leader) occupied(predecessor *member) error {
	if l.g.Settings.Holder != wire.HolderSole || !l.keeps(RuleSole) {
		return nil
	}
	for _, m := range l.members {
		if m != predecessor && !m.ending {
			return soleConsumer(l.g)
		}
	}
	return nil
}

func soleConsumer(g *Group) error {
	return wire.Errorf(wire.CodeRefused, "group %s takes one consumer (holder sole), and has one; it is free when that one leaves or is silent for the session timeout, or use holder sticky to stand by", g.Name)
}

func bindingOf(r *wire.AttachRequest) Binding { return Binding{r.Generation, r.Counter} }

// outdated is the error for a consumer that goes by a binding which is older than that of
// another one here; one that is listed may, as long as both are of one coordinator.
func (l *Leader) outdated(b Binding, listed bool) error {
	if b.Before(l.binding) && l.thinned { // who had the highest may have left
		l.thinned, l.binding = false, Binding{}
		for _, m := range l.members {
			if l.binding.Before(m.binding) {
				l.binding = m.binding
			}
		}
	}
	switch {
	case b == (Binding{}), !b.Before(l.binding), listed && b.Generation == l.binding.Generation, !l.keeps(RuleGeneration):
		return nil
	}
	return &wire.Error{Code: wire.CodeStaleBinding, Next: wire.Offset(l.binding.Generation)<<32 | wire.Offset(l.binding.Counter),
		Detail: fmt.Sprintf("binding %d.%d is older than %d.%d, which another consumer has", b.Generation, b.Counter, l.binding.Generation, l.binding.Counter)}
}

// binds notes the binding that a listed session goes by.
func (l *Leader) binds(m *member, b Binding) {
	m.binding = b
	if l.binding.Before(b) {
		deposes := l.binding.Generation < b.Generation
		if l.binding = b; deposes {
			l.depose()
		}
	}
}

// depose ends the links of consumers of an older generation: each has to hear from the
// coordinator what it has now.
func (l *Leader) depose() {
	for _, m := range l.members {
		if m.link != nil && l.links[m.link] != nil && l.links[m.link].open {
			if err := l.outdated(m.binding, true); err != nil {
				l.unlink(m, err)
			}
		}
	}
}

// attached answers an attach: from now on the session is served on this link. Leaving the
// wait set and granting the claims is one step.
func (l *Leader) attached(a *attachment, m *member, refused []wire.OutcomeAnswer) {
	r := a.request
	a.request, a.open, a.member, a.scopes = nil, true, m, nil
	m.link, m.flags = a.consumer, r.Flags
	l.binds(m, bindingOf(r))
	m.draining = false
	m.limits(&wire.GroupCapacity{Records: r.Capacity, Refill: r.Refill, Bytes: r.Bytes, Working: r.Working})
	if m.waiting {
		l.returns(m)
	}
	m.worked = l.now
	s := &l.g.Settings
	a.consumer.Attached(&wire.AttachResponse{
		Term: a.term, Group: uint64(l.g.ID), Mode: s.Mode, Scope: s.Scope, Order: s.Order, Window: s.Window,
		SessionMs: s.SessionMs, AckWaitMs: s.AckWaitMs, Refused: refused,
	}, nil)
	var unconfirmed []wire.Outcome
	for _, c := range r.Claims {
		if c.Kind != wire.OutcomeHeld {
			unconfirmed = append(unconfirmed, c)
		}
	}
	if len(unconfirmed) > 0 {
		l.outcomes(m, unconfirmed)
	}
	l.revokeAgain(m)
	l.tellLost(m)
	l.room(m)
}

// Leave ends a session by its own wish: at once, or when it holds nothing any more.
func (l *Leader) Leave(c Consumer, drain bool, now time.Duration) {
	l.Heard(c, now)
	a := l.links[c]
	if a == nil || !a.open {
		return
	}
	m := a.member
	if !m.draining {
		m.draining = true
		l.draining = append(l.draining, m)
	}
	l.room(m)
	if !drain {
		m.leaving = true
		l.remove(m, reasonLeft)
	}
}

// depart removes the sessions that wanted to leave and hold nothing any more.
func (l *Leader) depart() {
	keep := l.draining[:0]
	for _, m := range l.draining {
		switch {
		case !m.draining || m.ending: // it stays, or is removed
		case m.held > 0:
			keep = append(keep, m)
		default:
			m.leaving = true
			l.remove(m, reasonLeft)
		}
	}
	clear(l.draining[len(keep):])
	l.draining = keep
}

// Gone notes that a link has ended. Dead says that the consumer is, and not only its
// connection, as far as it has told us that this is to be believed.
func (l *Leader) Gone(c Consumer, dead bool) {
	a := l.links[c]
	if a == nil {
		return
	}
	delete(l.links, c)
	m := a.member
	if m == nil || !a.open {
		return
	}
	m.link, m.answers, m.lost = nil, m.answers[:0], m.lost[:0]
	m.revoke = 0 // who cannot hear is not asked
	l.room(m)
	flags := m.flags
	if !l.keeps(RuleChosen) {
		flags = 0
	}
	if dead && released(flags, l.g.Settings.Mode) {
		l.remove(m, reasonGone)
	}
}
