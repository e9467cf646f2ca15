package groupmodel

import "fmt"

type actionKind uint8

const (
	leaderReads actionKind = iota
	leaderReadsLate
	leaderCommits
	leaderDelivers
	leaderSendsAhead
	leaderRemoves
	leaderRevokes
	leaderRaises
	leaderBuries
	leaderActivates
	leaderDismisses
	leaderSeeks
	leaderTransfers
	leaderGivesUp
	operatorUnparks
	consumerConnects
	consumerReads
	consumerStarts
	consumerAcks
	consumerExpires
	// What follows is not needed to get on: faults, and what nobody can rely on.
	leaderTimesOut
	consumerNacks
	consumerRestarts
	consumerWakes
	linkBreaks
	consumerCrashes
	consumerHangs
	consumerSticks
	leaderCrashes
	leaderIsDeposed
	operatorSeeks
	operatorMoves
	operatorParks
	operatorSkips
	operatorUnbinds
)

// helps reports whether G6 may count on the action.
func (k actionKind) helps() bool { return k < leaderTimesOut }

// action is one edge between two states.
type action struct {
	kind actionKind
	x, y uint8
}

// performs carries an action out and reports whether it is possible.
func (t *step) performs(a action) bool {
	x, y := int(a.x), int(a.y)
	switch a.kind {
	case leaderReads:
		return t.reads(&t.s.leaders[x], y)
	case leaderReadsLate:
		return t.readsLate(x)
	case leaderCommits:
		t.applies(t.current())
		return true
	case leaderDelivers:
		return t.dispatches(&t.s.leaders[x/8], x%8, y)
	case leaderSendsAhead:
		return t.sendsAhead(&t.s.leaders[x], y)
	case leaderRemoves:
		return t.removes(&t.s.leaders[x], a.y)
	case leaderRevokes:
		return t.revokes(&t.s.leaders[x], y)
	case leaderTimesOut:
		t.s.left.timeouts--
		return t.revokes(&t.s.leaders[x], y)
	case leaderRaises:
		return t.raises(t.current())
	case leaderBuries:
		return t.buries(t.current(), x)
	case leaderActivates:
		return t.activates(t.current(), x)
	case leaderDismisses:
		return t.dismisses(t.current(), x)
	case leaderSeeks:
		return t.proposesSeek()
	case leaderTransfers:
		return t.transfers()
	case leaderGivesUp:
		return t.givesUp()
	case consumerConnects:
		return t.connects(x, y)
	case consumerReads:
		t.hears(x)
		return true
	case consumerStarts:
		return t.starts(x, y)
	case consumerAcks:
		return t.finishes(x, y)
	case consumerNacks:
		return t.nacks(x, y)
	case consumerExpires:
		return t.expires(x)
	case consumerRestarts:
		return t.restarts(x)
	case consumerWakes:
		return t.wakes(x)
	case linkBreaks:
		return t.breaks(x, y == 1)
	case consumerCrashes:
		return t.crashes(x)
	case consumerHangs:
		return t.hangs(x)
	case consumerSticks:
		return t.sticks(x)
	case leaderCrashes:
		return t.elects(x, false)
	case leaderIsDeposed:
		return t.elects(x, true)
	case operatorSeeks:
		return t.asksSeek()
	case operatorMoves:
		return t.handsOver()
	case operatorParks:
		return t.parks(x, y == 1)
	case operatorUnparks:
		return t.unparks(x)
	case operatorSkips:
		return t.skips(x)
	case operatorUnbinds:
		return t.unbinds(x)
	}
	panic(fmt.Sprintf("groupmodel: action %d", a.kind))
}

var (
	messageNames  = [...]string{attachMessage: "ATTACH", claimsMessage: "CLAIMS", ackMessage: "ACK", nackMessage: "NACK"}
	noteNames     = [...]string{attachedNote: "ATTACHED", deliverNote: "DELIVER", okNote: "OK", staleNote: "STALE_EPOCH", nackedNote: "NACKED", goneNote: "STALE_EPOCH(session_gone)"}
	progressNames = [...]string{queued: "queued", running: "running", acked: "acked", nacked: "nacked"}
	entryNames    = [...]string{
		noop: "no-op", join: "join", remove: "removal", ack: "ack", giveBack: "return", settle: "settle", park: "park", unpark: "unpark",
		seek: "seek", activate: "activate", raise: "horizon", handOver: "hand-over", void: "void",
	}
)

// describe is the action as a line of a trace.
func (m *model) describe(a action, s *state) string {
	consumer := func(i uint8) string { return sessionName(s.consumers[i].session) }
	leader := func(i uint8) string { return fmt.Sprintf("L%d", s.leaders[i].term) }
	l := &s.leaders[0]
	switch a.kind {
	case leaderReads:
		return fmt.Sprintf("%s reads %s of %s", leader(a.x), m.message(&s.consumers[a.y].in[0]), consumer(a.y))
	case leaderReadsLate:
		c := &s.consumers[a.x]
		return fmt.Sprintf("L%d reads %s of %s, whose link is gone", c.lateTerm, m.message(&c.late), consumer(a.x))
	case leaderCommits:
		return fmt.Sprintf("L%d commits and applies %s", l.term, m.entry(&l.tail[0]))
	case leaderDelivers:
		return fmt.Sprintf("%s leases scope %d to %s and delivers r%d", leader(a.x/8), a.x%8, consumer(a.y), (&step{m, s}).next(&s.leaders[a.x/8], int(a.x%8)))
	case leaderSendsAhead:
		return fmt.Sprintf("%s sends ahead the next record of scope %d", leader(a.x), a.y)
	case leaderRemoves:
		return fmt.Sprintf("%s proposes the removal of %s, whose time is over", leader(a.x), sessionName(a.y))
	case leaderRevokes, leaderTimesOut:
		return fmt.Sprintf("%s times out the lease of scope %d of %s", leader(a.x), a.y, sessionName(s.leaders[a.x].leases[a.y].session))
	case leaderRaises:
		return fmt.Sprintf("L%d proposes horizon %d", l.term, l.state.horizon+1)
	case leaderBuries:
		return fmt.Sprintf("L%d proposes to dead-letter the head of scope %d", l.term, a.x)
	case leaderActivates:
		return fmt.Sprintf("L%d proposes %s as the active session", l.term, consumer(a.x))
	case leaderDismisses:
		return fmt.Sprintf("L%d proposes the removal of %s, which is unbound", l.term, consumer(a.x))
	case leaderSeeks:
		return fmt.Sprintf("L%d proposes the seek", l.term)
	case leaderTransfers:
		return fmt.Sprintf("L%d hands leadership to L%d", l.term, l.term+1)
	case leaderGivesUp:
		return fmt.Sprintf("L%d gives the move up", l.term)
	case operatorUnparks:
		return fmt.Sprintf("operator: unpark scope %d", a.x)
	case consumerConnects:
		return fmt.Sprintf("%s connects to %s and sends ATTACH %s", consumer(a.x), leader(a.y), m.held(&s.consumers[a.x].held))
	case consumerReads:
		return fmt.Sprintf("%s reads %s", consumer(a.x), m.note(&s.consumers[a.x].out[0]))
	case consumerStarts:
		return fmt.Sprintf("%s starts r%d under epoch %d", consumer(a.x), a.y, s.consumers[a.x].held[a.y].epoch)
	case consumerAcks:
		return fmt.Sprintf("%s finishes r%d and sends ACK", consumer(a.x), a.y)
	case consumerNacks:
		return fmt.Sprintf("%s gives r%d up and sends NACK", consumer(a.x), a.y)
	case consumerExpires:
		return fmt.Sprintf("%s reaches its deadline, drops everything, and begins a new session", consumer(a.x))
	case consumerRestarts:
		return fmt.Sprintf("%s's process starts again, with a new session", consumer(a.x))
	case consumerWakes:
		return fmt.Sprintf("%s goes on", consumer(a.x))
	case linkBreaks:
		if a.y != 0 {
			return fmt.Sprintf("%s's link breaks; its attach has arrived and is not read yet", consumer(a.x))
		}
		return fmt.Sprintf("%s's link breaks", consumer(a.x))
	case consumerCrashes:
		return fmt.Sprintf("%s dies", consumer(a.x))
	case consumerHangs:
		return fmt.Sprintf("%s stands still", consumer(a.x))
	case consumerSticks:
		return fmt.Sprintf("%s's handlers do not end any more", consumer(a.x))
	case leaderCrashes:
		return fmt.Sprintf("L%d dies; L%d has %d of its %d uncommitted entries", l.term, l.term+1, a.x, l.tails)
	case leaderIsDeposed:
		return fmt.Sprintf("L%d is deposed and does not know; L%d has %d of its %d uncommitted entries", l.term, l.term+1, a.x, l.tails)
	case operatorSeeks:
		return "operator: seek to the beginning"
	case operatorMoves:
		return fmt.Sprintf("operator: move the leader; L%d proposes its leases", l.term)
	case operatorParks:
		return fmt.Sprintf("operator: park scope %d%s", a.x, map[uint8]string{1: " now"}[a.y])
	case operatorSkips:
		return fmt.Sprintf("operator: skip the head of scope %d", a.x)
	case operatorUnbinds:
		return fmt.Sprintf("coordinator: %s leaves the partition", consumer(a.x))
	}
	return fmt.Sprintf("action %d", a.kind)
}

func (m *model) message(msg *message) string {
	switch msg.kind {
	case ackMessage, nackMessage:
		return fmt.Sprintf("%s(r%d, epoch %d)", messageNames[msg.kind], msg.record, msg.epoch)
	}
	if msg.predecessor != 0 {
		return fmt.Sprintf("%s (predecessor %s) %s", messageNames[msg.kind], sessionName(msg.predecessor), m.held(&msg.claims))
	}
	return fmt.Sprintf("%s %s", messageNames[msg.kind], m.held(&msg.claims))
}

func (m *model) held(held *[maxRecords]hold) string {
	out := ""
	for r, h := range held {
		if h.progress != nothing {
			out += fmt.Sprintf(" r%d %s under epoch %d", r, progressNames[h.progress], h.epoch)
		}
	}
	if out == "" {
		return "claiming nothing"
	}
	return "claiming" + out
}

func (m *model) note(n *note) string {
	switch n.kind {
	case attachedNote:
		return fmt.Sprintf("ATTACHED (confirmed %s, refused %s)", m.set(n.ok), m.set(n.refused))
	case goneNote:
		return noteNames[n.kind]
	}
	return fmt.Sprintf("%s(r%d, epoch %d)", noteNames[n.kind], n.record, n.epoch)
}

func (m *model) entry(e *entry) string {
	switch e.kind {
	case noop:
		return fmt.Sprintf("the no-op of term %d", e.term)
	case join:
		if e.predecessor != 0 {
			return fmt.Sprintf("join of %s in the place of %s, returning %s", sessionName(e.session), sessionName(e.predecessor), m.set(e.records))
		}
		return fmt.Sprintf("join of %s", sessionName(e.session))
	case remove:
		return fmt.Sprintf("removal of %s, returning %s", sessionName(e.session), m.set(e.records))
	case ack:
		return fmt.Sprintf("ack of %s by %s under epoch %d", m.set(e.records), sessionName(e.session), e.epoch)
	case giveBack, settle:
		return fmt.Sprintf("%s of %s", entryNames[e.kind], m.set(e.records))
	case activate:
		return fmt.Sprintf("activate %s", sessionName(e.session))
	}
	return entryNames[e.kind]
}

func (m *model) set(set records) string {
	out := ""
	for r := range maxRecords {
		if set&(1<<r) != 0 {
			out += fmt.Sprintf(" r%d", r)
		}
	}
	if out == "" {
		return "nothing"
	}
	return out[1:]
}
