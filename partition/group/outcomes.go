package group

import (
	"slices"
	"time"

	"github.com/lockstepmq/lockstep/wire"
)

// Limits of what a session says that it cannot.
const (
	// maxStrays bounds the records of one frame that the session does not hold and that are
	// looked at one by one, and maxElsewhere those for which others are asked.
	maxStrays    = 2 * wire.MaxGroupCapacity
	maxElsewhere = 256
	// maxSeen bounds the runs that sessions know to have lost and that are not proposed yet.
	maxSeen = 1 << 16
	// maxBeats bounds the heartbeats that wait for a quorum round. Further ones are not
	// answered.
	maxBeats = 1 << 16
)

// cause says why records are taken back, and what of it counts.
type cause struct {
	reason  wire.LeaseReason
	counted bool   // it was delivered once more
	attempt bool   // and the record has failed
	delayed bool   // delayMs is set
	delayMs uint32 // before the next attempt, in the place of the group's backoff
	rest    bool   // a failed record rests before the next attempt
	asked   bool   // by the session itself: it knows
	silent  bool   // the session never had it: it is told nothing
	verdict wire.OutcomeKind
	text    string
}

// back is a run of records on its way back: what is to be proposed, and who is told.
type back struct {
	member *member
	ret    Return
	epoch  wire.Index
	asked  bool // the session knows: it is answered OK
	lost   bool // the session is told that it has lost them
	reason wire.LeaseReason
}

// Outcomes takes in what became of records.
func (l *Leader) Outcomes(c Consumer, o []wire.Outcome, now time.Duration) {
	a := l.links[c]
	if a == nil || !a.open {
		return
	}
	m := a.member
	m.heard = max(m.heard, now)
	m.worked = m.heard
	m.suspect = false
	l.outcomes(m, o)
	l.room(m)
}

// outcomes decides on what a session says, run by run, as the table of the rules has it.
func (l *Leader) outcomes(m *member, items []wire.Outcome) {
	l.strays = maxStrays
	for i := range items {
		o := &items[i]
		if o.Kind == wire.OutcomeLostSeen {
			l.saw(m, o.Offset, o.Next())
			continue
		}
		for from, to := o.Offset, o.Next(); from < to; {
			piece, ok := m.leases.within(from, to)
			if !ok {
				piece.from, piece.to = to, to
			}
			if from < piece.from {
				l.unheld(m, from, piece.from, o.Epoch)
			}
			if ok {
				l.outcome(m, piece, o)
			}
			from = piece.to
		}
	}
}

// outcome decides on what a session says of records that it holds.
func (l *Leader) outcome(m *member, piece lease, o *wire.Outcome) {
	switch {
	case o.Epoch < piece.epoch:
		l.answer(m, piece.from, piece.to, o.Epoch, wire.CodeStaleEpoch)
	case o.Epoch > piece.epoch:
		l.answer(m, piece.from, piece.to, o.Epoch, wire.CodeNotOwner)
	case piece.state == ending && l.keeps(RuleStale):
		// It comes too late, and hears so when the end is applied: what is lost, or that the
		// session is gone. Told at once it would forget what it has done, and if the entry died
		// with this leader, nobody would know that the records were started.
	case piece.state == settling, piece.state == returning:
		// It was said before: the one answer follows when that is applied.
	case o.Kind == wire.OutcomeAck:
		l.ack(m, piece)
	case o.Kind == wire.OutcomeExtend:
		l.extend(m, piece, o.DelayMs)
	default:
		c := cause{reason: wire.ReasonReturned, counted: true, asked: true, verdict: o.Kind, text: o.Text}
		c.attempt = o.Kind != wire.OutcomeReleased || piece.revoked == wire.ReasonAckWait && m.works()
		if c.rest = c.attempt; o.DelayMs > 0 {
			c.delayed, c.delayMs = true, o.DelayMs
		}
		for from := piece.from; from < piece.to; {
			if l.kind == shared {
				l.takeBack(m, piece, c)
				return
			}
			p := piece
			p.from, p.to = from, from+1
			if now := m.leases.find(from); now != nil && now.state == held {
				l.giveBack(m, p, c)
			}
			from++
		}
	}
}

// maxExtendMs bounds by how long work on a record is extended at once.
const maxExtendMs = 24 * 60 * 60 * 1000

// extend gives a session longer for what it holds, from now on. What it was asked to give
// back it has to all the same, see overdue and drained. A yes is no answer: the session could
// take it for that to an outcome.
func (l *Leader) extend(m *member, piece lease, byMs uint32) {
	until := m.heard + time.Duration(min(byMs, maxExtendMs))*time.Millisecond
	m.leases.change(piece.from, piece.to, func(x *lease) { x.until = until })
	if l.workDue(m) < m.check {
		l.watch(m)
	}
}

// unheld answers for records that the session does not hold.
func (l *Leader) unheld(m *member, from, to wire.Offset, epoch wire.Index) {
	for from < to {
		code := wire.CodeOutOfRange
		next := to
		switch {
		case from >= l.end:
		case l.strays <= 0: // no session can have lost so much
			code, next = wire.CodeNotOwner, min(to, l.end)
		default:
			code = l.late(m, from, epoch)
			next = from + 1
		}
		l.answer(m, from, next, epoch, code)
		from = next
	}
}

// late is the answer about a record that the session does not hold. Of the first
// maxElsewhere in a row it says too that another one has it.
func (l *Leader) late(m *member, o wire.Offset, epoch wire.Index) wire.ErrorCode {
	l.strays--
	code := l.g.Late(o, epoch)
	if code == wire.CodeNotOwner && l.strays >= maxStrays-maxElsewhere && l.leasedElsewhere(m, o) {
		code = wire.CodeStaleEpoch
	}
	return code
}

// leasedElsewhere reports whether another session holds the record at o. It is asked for
// those only that say what they may not.
func (l *Leader) leasedElsewhere(m *member, o wire.Offset) bool {
	for _, other := range l.members {
		if other != m && other.leases.find(o) != nil {
			return true
		}
	}
	return false
}

// ack takes in that records held under one epoch are done.
func (l *Leader) ack(m *member, piece lease) {
	if l.kind == shared {
		l.settle(m, piece.from, piece.to, piece.epoch)
		return
	}
	for from := piece.from; from < piece.to; {
		next := from + 1
		var ok bool
		if l.kind == single {
			next = piece.to
			ok = l.firstHeld(m, from)
		} else {
			ok = l.inOrder(from)
		}
		if !ok && l.keeps(RuleInOrder) {
			l.answer(m, from, next, piece.epoch, wire.CodeOutOfOrder)
		} else {
			l.settle(m, from, next, piece.epoch)
		}
		from = next
	}
}

// firstHeld reports whether nothing that the session holds and has not settled lies
// before o.
func (l *Leader) firstHeld(m *member, o wire.Offset) bool {
	for _, r := range m.leases.all() {
		if r.from >= o {
			return true
		}
		if r.state == held && r.from < o {
			return false
		}
	}
	return true
}

// inOrder reports whether the record at o is the first of its scope that is leased and
// not acked, and notes that it is acked now.
func (l *Leader) inOrder(o wire.Offset) bool {
	s := l.of.Get(o)
	if s == nil {
		return true // a scope of its own
	}
	if s.acked < len(s.leased) && s.leased[s.acked] == o {
		s.acked++
		s.since = l.now
		l.ready(s)
		return true
	}
	return !l.keeps(RuleInOrder)
}

// settle has an ack proposed. Its credit is free at once, its answer comes when it is
// applied.
func (l *Leader) settle(m *member, from, to wire.Offset, epoch wire.Index) {
	m.leases.change(from, to, func(x *lease) { x.state = settling })
	l.release(m, int(to-from))
	l.next.ack(m, from, to, epoch)
	l.stats.Acked += uint64(to - from)
	if !l.keeps(RuleCommitted) {
		l.answer(m, from, to, epoch, wire.CodeOK)
	}
}

// release frees the credit of n records.
func (l *Leader) release(m *member, n int) {
	if n = min(n, m.held); n == 0 || !l.keeps(RuleCredit) {
		return
	}
	m.heldBytes -= int(int64(m.heldBytes) * int64(n) / int64(m.held))
	m.held -= n
	l.room(m)
}

// giveBack takes a record back, and with it all later ones that its session holds of its
// scope. Those go first: their entry is not a later one, and what is answered for the record
// comes when the session knows that it has lost them.
func (l *Leader) giveBack(m *member, piece lease, c cause) {
	switch l.kind {
	case single:
		l.tail(m, piece.to, c)
	case hashed:
		s := l.of.Get(piece.from)
		if s == nil || !l.keeps(RuleTail) {
			break
		}
		rest := c.behind()
		for _, o := range s.leased {
			if o < piece.to {
				continue
			}
			if r, ok := m.leases.within(o, o+1); ok && r.state == held {
				l.takeBack(m, r, rest)
			}
		}
	}
	l.takeBack(m, piece, c)
}

// behind is the cause for the records behind the one that c is about: they go back with
// it, uncounted as attempts, and the session is told, for it has not asked for that.
func (c cause) behind() cause {
	return cause{reason: c.reason, counted: c.counted, silent: c.silent}
}

// tail takes back everything that the session holds from o on.
func (l *Leader) tail(m *member, o wire.Offset, c cause) {
	if !l.keeps(RuleTail) {
		return
	}
	rest := c.behind()
	for _, r := range m.leases.held(o) {
		l.takeBack(m, r, rest)
	}
}

// takeBack has one run of records that the session holds under one epoch taken back. To
// others it goes when that is applied.
func (l *Leader) takeBack(m *member, piece lease, c cause) {
	l.backing += int(piece.to - piece.from)
	if len(l.next.seen) > 0 {
		l.unsee(m, piece.from, piece.to)
	}
	state := ending
	if c.asked {
		state = returning
	}
	m.leases.change(piece.from, piece.to, func(x *lease) { x.state = state })
	if s := l.of.Get(piece.from); s != nil {
		s.ending++ // records that have a scope are taken one by one
	}
	l.eachReturn(piece, c, func(r Return) {
		if l.verdict(m, piece, r, c) {
			return
		}
		l.next.backs = append(l.next.backs, back{
			member: m, ret: r, epoch: piece.epoch, asked: c.asked, lost: !c.asked && !c.silent, reason: c.reason,
		})
		if !l.keeps(RuleHandOver) {
			l.freed(r.From, r.To, r.DelayMs)
		}
	})
}

// eachReturn yields what is to be known of the records of a run from now on, in runs of
// which it is the same.
func (l *Leader) eachReturn(piece lease, c cause, yield func(Return)) {
	next := func(from, to wire.Offset, known Returned) {
		if from >= to {
			return
		}
		r := Return{From: from, To: to, Deliveries: known.Deliveries, Attempts: known.Attempts}
		if c.counted && r.Deliveries < 1<<16-1 {
			r.Deliveries++
		}
		if c.attempt && r.Attempts < 1<<16-1 {
			r.Attempts++
		}
		if c.delayed {
			r.DelayMs = c.delayMs
		} else if c.rest {
			r.DelayMs = l.backoff(r.Attempts)
		}
		yield(r)
	}
	at := piece.from
	l.g.Returned(piece.from, piece.to, func(from, to wire.Offset, known Returned) bool {
		next(at, from, Returned{})
		next(from, to, known)
		at = to
		return true
	})
	next(at, piece.to, Returned{})
}

// backoff is how long a record rests after so many failed attempts, in milliseconds.
func (l *Leader) backoff(attempts uint16) uint32 {
	s := &l.g.Settings
	if attempts == 0 || s.BackoffMs == 0 {
		return 0
	}
	delay := uint64(s.BackoffMs) << min(uint64(attempts-1), 30)
	return uint32(min(delay, uint64(max(s.BackoffMaxMs, s.BackoffMs))))
}

// endAll takes back everything that a session holds, because it ends. What is settling
// or on its way back goes on as it was. What it has not begun has not failed.
func (l *Leader) endAll(m *member, c cause) {
	first := true
	begun := m.begun()
	for _, r := range m.leases.held(0) {
		switch l.kind {
		case shared:
			rest := r
			if r.to = begun.end(&r); r.from < r.to {
				l.takeBack(m, r, c)
			}
			if rest.begin(r.to); rest.from < rest.to {
				l.takeBack(m, rest, c.behind())
			}
		case single:
			if first && c.attempt {
				head := r
				head.to = head.from + 1
				l.takeBack(m, head, c)
				r.from = head.to
			}
			if r.from < r.to {
				l.takeBack(m, r, c.behind())
			}
			first = false
		case hashed:
			for o := r.from; o < r.to; o++ {
				one, this := r, c
				one.from, one.to = o, o+1
				if s := l.of.Get(o); s != nil && !s.isHead(o) || o >= begun.end(&r) {
					this = c.behind()
				}
				l.takeBack(m, one, this)
			}
		}
	}
}

// saw notes that a session knows that it has lost records. Behind the end there are none;
// if too much is noted already their fences stay until the session is removed.
func (l *Leader) saw(m *member, from, to wire.Offset) {
	for to = min(to, l.end); from < to && len(l.next.seen) < maxSeen; {
		next := to
		if r, held := m.leases.within(from, to); held { // under a later lease
			if next = r.from; next == from {
				from = r.to
				continue
			}
		}
		l.next.seen = append(l.next.seen, seen{m.session, Span{from, next}})
		from = next
	}
}

// unsee forgets what a session has seen of earlier losses of records that it loses now: in one
// entry that would count as having seen this loss, too.
func (l *Leader) unsee(m *member, from, to wire.Offset) {
	var rest []seen
	l.next.seen = slices.DeleteFunc(l.next.seen, func(x seen) bool {
		if x.session != m.session || x.span.To <= from || to <= x.span.From {
			return false
		}
		for _, s := range []Span{{x.span.From, from}, {to, x.span.To}} {
			if s.From < s.To {
				rest = append(rest, seen{x.session, s})
			}
		}
		return true
	})
	l.next.seen = append(l.next.seen, rest...)
}
