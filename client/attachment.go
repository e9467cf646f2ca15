package client

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/lockstepmq/lockstep/internal/offsets"
	"github.com/lockstepmq/lockstep/wire"
)

const (
	// attachPauseMin and Max are the pauses before an attachment that was refused is tried
	// again; each is twice the one before.
	attachPauseMin = 10 * time.Millisecond
	attachPauseMax = time.Second
	// validPart is the part of the session timeout for which a confirmation counts. The
	// rest is for clocks that run at other rates, and for being woken late.
	validPart = 0.9
)

var (
	errUnconfirmed = errors.New("no broker has confirmed the consumer for its session timeout")
	errAckWait     = errors.New("the group's ack wait is over")
)

// attachment is one partition of a Consumer: a session with whoever leads the partition,
// and the records that it has leased.
//
// Links come and go with connections and leaders; the session, its attempt number and
// what is held outlive them. With each new link everything that is held is claimed, also
// outcomes that were not confirmed. What arrives on any link but the newest goes to
// nobody. A confirmation counts from when it was asked for, so that a consumer stops
// before its broker gives up on it; then everything that is held and has no outcome is
// lost. (The rules are those of the protocol of groups: 9, 11 to 17, 22, 24, T1.)
//
// Everything is guarded by Consumer.mu.
type attachment struct {
	consumer  *Consumer
	partition uint32

	leader  leadership
	session *session // the link's; nil: there is none
	opening *session // one is being opened there
	tries   uint64   // how often one was
	claimed bool     // an attach that claims what is held is on its way there
	link    uint32
	handle  uint32
	retryAt time.Time
	pause   time.Duration // before the attempt after the next

	id          [16]byte // of the session that the broker lists
	predecessor [16]byte // that was lost before
	attempt     uint64
	term        wire.Term // highest that an attach was sent for
	timeout     time.Duration
	ackWait     time.Duration
	serial      bool
	scope       wire.GroupScope
	order       wire.GroupOrder
	valid       time.Time // until when what is held is the consumer's
	attached    bool      // at least once, in this session
	lapsed      bool      // nobody has confirmed what is held in time, and that was said
	beat        time.Time // when the next heartbeat is due
	beats       []heartbeat
	beatNumber  uint64
	leaving     bool
	left        bool
	without     time.Time // since when there is no link; zero: there is one
	blocked     bool      // Blocked was sent for it
	why         error     // the last refusal since then

	held     offsets.Map[Delivery] // until their outcome is confirmed or they are lost
	gates    map[uint64]*gate      // of scopes with records that are held
	freeGate []*gate
	outcomes []wire.Outcome // to be said, in any order
	talking  *session       // whose writer knows of outcomes; nil: none does
	said     wire.GroupOutcomes
	deliver  wire.GroupDeliver // of the session's reader
}

// heartbeat is one that was not answered yet.
type heartbeat struct {
	number uint64
	sent   time.Time
}

// gate holds back the later records of a scope.
type gate struct {
	busy *Delivery // handed out or about to be, or settled and not confirmed
	// queue are those behind it. One that was given back stays, until that is confirmed:
	// what was on its way then waits behind it.
	queue []*Delivery
}

func newAttachment(c *Consumer, partition uint32, leader leadership) *attachment {
	return &attachment{consumer: c, partition: partition, leader: leader, id: newSessionID(), gates: make(map[uint64]*gate)}
}

// --- the link ---

// open opens the partition in a session, and attaches there.
func (at *attachment) open(s *session) {
	at.opening, at.claimed = s, false
	at.tries++
	s.hurry(at.timeout)
	c := at.consumer
	var opened wire.OpenPartitionResponse
	at.ask(s, wire.OpOpenPartition, &wire.OpenPartitionRequest{Destination: c.destination, Partition: at.partition}, &opened, func() {
		if opened.DestinationID != c.destinationID {
			c.fail(wire.Errorf(wire.CodeDestinationGone, "destination %q was deleted and created again", c.destination))
			return
		}
		at.handle = opened.Handle
		at.attach(s, wire.Term(opened.Epoch))
	})
}

// attach claims what is held, under the highest term that is known.
func (at *attachment) attach(s *session, term wire.Term) {
	c := at.consumer
	now := time.Now()
	if at.attached && !now.Before(at.valid) {
		at.expire()
	}
	at.attempt++
	at.term = max(at.term, term)
	at.outcomes = at.outcomes[:0] // they are in the claims, or come from there
	room := c.room()
	request := wire.AttachRequest{
		Handle: at.handle, Group: c.options.group, Session: at.id, Predecessor: at.predecessor, Attempt: at.attempt, Term: at.term,
		Flags: c.flags, Capacity: room.Records, Refill: room.Refill, Bytes: room.Bytes, Working: room.Working,
		Name: c.options.name, Claims: at.claims(), Generation: c.binding.generation, Counter: c.binding.counter,
	}
	if at.attached {
		request.Flags |= wire.AttachKnown
	}
	at.claimed = true
	id := at.id
	var response wire.AttachResponse
	at.ask(s, wire.OpGroupAttach, &request, &response, func() {
		at.opening = nil
		if id != at.id || at.left || c.err != nil && !c.closing && at.held.Len() == 0 {
			s.tell(wire.OpGroupLeave, response.Link, &wire.GroupLeave{})
			return
		}
		at.session, at.link = s, response.Link
		s.attachLink(at.link, at)
		at.attached, at.pause = true, 0
		at.predecessor = [16]byte{}
		timeout := time.Duration(response.SessionMs) * time.Millisecond
		if timeout < at.timeout {
			at.valid = time.Time{} // what was confirmed for the longer time does not count on
		}
		at.timeout = timeout
		s.hurry(at.timeout)
		at.allow(time.Duration(response.AckWaitMs) * time.Millisecond)
		at.serial, at.scope, at.order = response.Mode != wire.ModeShared, response.Scope, response.Order
		if response.Mode == wire.ModeStream {
			at.scope = wire.ScopeDestination
		}
		at.confirmed(now)
		at.beats = at.beats[:0]
		at.beat = now.Add(at.timeout / 3)
		if c.room() != room { // it has changed since that was said
			at.setCapacity()
		}
		at.answered(response.Refused)
		for d := c.running.first; d != nil; d = d.next {
			if d.at == at && d.extended && d.revoked == 0 { // another leader does not know
				d.sayExtend(d.due.Sub(now))
			}
		}
		if at.leaving {
			s.tell(wire.OpGroupLeave, at.link, &wire.GroupLeave{Drain: at.held.Len() > 0})
		}
		if len(at.outcomes) > 0 {
			at.talk()
		}
		c.joined(at)
	})
}

// allow takes in the ack wait of the group. It counts from the start of each handler, also of
// those at work, unless they have asked for another time.
func (at *attachment) allow(ackWait time.Duration) {
	more := ackWait - at.ackWait
	at.ackWait = ackWait
	if more == 0 || !at.attached {
		return
	}
	c := at.consumer
	var concerned []*Delivery
	for d := c.running.first; d != nil; d = d.next {
		if d.at == at && !d.extended && d.revoked == 0 {
			concerned = append(concerned, d)
		}
	}
	for _, d := range concerned {
		c.running.remove(d)
		d.due = d.due.Add(more)
		c.running.insert(d)
	}
	poke(c.wake)
}

// ask sends a request for the attachment; then gets the parsed answer with Consumer.mu
// held. Errors go to refused. What comes when the partition is being opened anew, be it in the same
// session because its broker leads again, is not waited for any more.
func (at *attachment) ask(s *session, op wire.Opcode, request, response wire.Message, then func()) {
	try, id := at.tries, at.id
	handle := func(body []byte, err error) {
		if err == nil {
			err = response.Parse(body)
		}
		switch {
		case at.opening != s || at.tries != try:
			// The next attach ends the link of this one; to leave would end the session.
			if attached, ok := response.(*wire.AttachResponse); ok && err == nil && (at.id != id || at.left) {
				s.tell(wire.OpGroupLeave, attached.Link, &wire.GroupLeave{})
			}
		case err != nil:
			at.opening = nil
			at.refused(err)
		default:
			then()
		}
	}
	if _, err := s.request(op, request, &memberReply{at.consumer, handle}); err != nil {
		handle(nil, err)
	}
}

// memberReply is a waiter that calls a function with Consumer.mu held.
type memberReply struct {
	c    *Consumer
	call func(body []byte, err error)
}

func (m *memberReply) answered(_ *session, body []byte, err error) {
	m.c.mu.Lock()
	defer m.c.mu.Unlock()
	m.call(body, err)
}

func (m *memberReply) lost(s *session, err error) { m.answered(s, nil, err) }

// claims are all records that are held, by offset.
func (at *attachment) claims() []wire.Outcome {
	claims := make([]wire.Outcome, 0, at.held.Len())
	for _, d := range at.held.List() {
		claim := wire.Outcome{Offset: wire.Offset(d.Offset), Count: 1, Epoch: d.epoch, Kind: wire.OutcomeHeld}
		switch {
		case d.state != leaseSettled:
		case d.text != "": // a claim has no room for it: the record is claimed, and the outcome said again behind that
			at.outcomes = append(at.outcomes, d.outcome())
		default:
			claim.Kind, claim.DelayMs = d.kind, d.delay
		}
		claims = append(claims, claim)
	}
	return mergeOutcomes(claims)
}

// refused decides what an error about the attachment means: it is tried again, or the
// consumer has ended.
func (at *attachment) refused(err error) {
	c := at.consumer
	at.why = err
	switch code := codeOf(err); {
	case code == wire.CodeNotLeader && at.leader.follow(err):
	case code == wire.CodeSessionGone && at.leaving:
		at.depart(ErrClosed)
	case code == wire.CodeSessionGone:
		at.gone(err)
	case code == wire.CodeStaleBinding:
		c.stale(at, err)
	case code == 0 || code.Retriable() || code == wire.CodeUnknownHandle || code == wire.CodeNotLeader || code == wire.CodeDuplicate:
		c.want = c.want || code == wire.CodeNotLeader || code == wire.CodeUnavailable
		if !errors.Is(err, ErrDisconnected) {
			at.pause = min(max(2*at.pause, attachPauseMin), attachPauseMax)
			at.retryAt = time.Now().Add(jittered(at.pause))
		}
	default:
		c.fail(err)
		at.depart(err) // so that Close has nobody to wait for
	}
	poke(c.wake)
}

// gone ends the session: the broker does not list it any more. The next one names it.
func (at *attachment) gone(why error) {
	for _, d := range at.held.List() {
		at.lose(d, why)
	}
	at.held.Clear()
	clear(at.gates)
	at.outcomes = at.outcomes[:0]
	at.predecessor, at.id = at.id, newSessionID()
	at.attempt, at.attached = 0, false
	at.unlink()
}

// unlink forgets the link.
func (at *attachment) unlink() {
	if at.session != nil {
		at.session.dropLink(at.link)
		at.session = nil
	}
}

// closed implements link.
func (at *attachment) closed(s *session, err error) {
	c := at.consumer
	c.mu.Lock()
	defer c.mu.Unlock()
	if at.session != s {
		return
	}
	at.session = nil
	switch {
	case err == nil && at.leaving:
		at.depart(ErrClosed)
	case err == nil:
		at.gone(wire.Errorf(wire.CodeSessionGone, "the broker has removed the consumer"))
	default:
		at.refused(err)
	}
	poke(c.wake)
}

// depart ends the attachment for good; what is still held is lost because of why.
func (at *attachment) depart(why error) {
	at.left = true
	for _, d := range at.held.List() {
		at.lose(d, why)
	}
	at.held.Clear()
	clear(at.gates)
	at.unlink()
	at.consumer.departed()
}

// lost implements link.
func (at *attachment) lost(s *session) {
	c := at.consumer
	c.mu.Lock()
	defer c.mu.Unlock()
	if at.session == s {
		at.session = nil
		if !c.conn.options.reconnect {
			c.fail(&lostError{ErrDisconnected})
		}
	}
	poke(c.wake)
}

// --- frames ---

// frame implements member.
func (at *attachment) frame(s *session, op wire.Opcode, body []byte) error {
	c := at.consumer
	c.mu.Lock()
	defer c.mu.Unlock()
	if at.session != s {
		return nil
	}
	switch op {
	case wire.OpGroupAnswer:
		var m wire.GroupAnswers
		if err := m.Parse(body); err != nil {
			return err
		}
		at.answered(m.Answers)
	case wire.OpGroupRevoke:
		var m wire.GroupRevoke
		if err := m.Parse(body); err != nil {
			return err
		}
		for i := range m.Revokes {
			at.revoke(&m.Revokes[i])
		}
	case wire.OpGroupLost:
		var m wire.GroupLost
		if err := m.Parse(body); err != nil {
			return err
		}
		for _, l := range m.Lost {
			why := wire.CodeStaleEpoch
			if l.Reason == wire.ReasonExpired {
				why = wire.CodeDataExpired
			}
			if l.Epoch == 0 {
				c.events.send(DataExpired{Destination: c.destination, Group: c.options.group, Partition: at.partition, From: uint64(l.Offset), To: uint64(l.Offset) + uint64(l.Count)})
				continue
			}
			at.each(l.Offset, l.Count, l.Epoch, func(d *Delivery) {
				at.drop(d, wire.Errorf(why, "%v", l.Reason))
			})
			// Also of what was dropped behind another one: its fence is not needed any more.
			at.say(wire.Outcome{Offset: l.Offset, Count: l.Count, Epoch: l.Epoch, Kind: wire.OutcomeLostSeen})
		}
	case wire.OpGroupHeartbeat:
		var m wire.GroupHeartbeat
		if err := m.Parse(body); err != nil {
			return err
		}
		for i, b := range at.beats {
			if b.number == m.Number {
				at.confirmed(b.sent)
				at.beats = slices.Delete(at.beats, 0, i+1)
				break
			}
		}
	}
	return nil
}

// confirmed takes note that a quorum has confirmed the session after the given time.
func (at *attachment) confirmed(sent time.Time) {
	if until := sent.Add(time.Duration(float64(at.timeout) * validPart)); until.After(at.valid) {
		at.valid, at.lapsed = until, false
	}
}

// each calls f for the records of a range that are held under an epoch.
func (at *attachment) each(o wire.Offset, count uint32, epoch wire.Index, f func(*Delivery)) {
	if int(count) > at.held.Len() { // a broker may say more than was ever held
		for _, d := range at.held.List() {
			if wire.Offset(d.Offset) >= o && wire.Offset(d.Offset)-o < wire.Offset(count) && d.epoch == epoch {
				f(d)
			}
		}
		return
	}
	for end := o + wire.Offset(count); o < end; o++ {
		if d := at.held.Get(o); d != nil && d.epoch == epoch {
			f(d)
		}
	}
}

// answered takes what outcomes have come to, and claims that were decided.
func (at *attachment) answered(answers []wire.OutcomeAnswer) {
	for _, a := range answers {
		at.each(a.Offset, a.Count, a.Epoch, func(d *Delivery) {
			switch a.Code {
			case wire.CodeOK, wire.CodeAlreadyDone:
				if d.state == leaseSettled {
					at.held.Remove(wire.Offset(d.Offset))
					if a.Code == wire.CodeOK {
						d.over(nil)
					} else { // nothing is left to claim, and nobody knows whose outcome counted
						err := fmt.Errorf("partition %d: offset %d: %w", at.partition, d.Offset, wire.Errorf(a.Code, "the record is settled, perhaps by another session"))
						at.tellLost(d, err)
						d.over(err)
					}
					at.advance(d)
					return
				}
				at.remove(d, wire.Errorf(wire.CodeAlreadyDone, "the record is settled"))
			default:
				at.remove(d, wire.Errorf(a.Code, "the broker refused the outcome"))
			}
		})
	}
	at.consumer.settled()
}

// revoke gives back records that the broker asks for.
func (at *attachment) revoke(r *wire.Revoke) {
	c := at.consumer
	at.each(r.Offset, r.Count, r.Epoch, func(d *Delivery) {
		switch d.state {
		case leaseQueued: // also behind another, whose ack may be about to be confirmed
			d.conclude(wire.OutcomeReleased, 0, "")
		case leaseRunning:
			d.revoked = cmp.Or(r.Reason, wire.ReasonAckWait)
			d.stop(&RevokedError{d.revoked})
			c.running.remove(d)
			d.due = time.Now() // when the grace is over, it is given back whatever the handler does
			if r.GraceMs > 0 {
				d.due = d.due.Add(time.Duration(r.GraceMs) * time.Millisecond)
			}
			c.running.insert(d)
			poke(c.wake)
		}
	})
}

// remove ends the lease of a record that is held, and says so: it is not the consumer's any more.
func (at *attachment) remove(d *Delivery, why error) {
	at.drop(d, why)
	at.say(wire.Outcome{Offset: wire.Offset(d.Offset), Count: 1, Epoch: d.epoch, Kind: wire.OutcomeLostSeen})
}

// drop ends the lease of a record that is held.
func (at *attachment) drop(d *Delivery, why error) {
	at.held.Remove(wire.Offset(d.Offset))
	at.lose(d, why)
	at.advance(d)
}

// lose tells whoever works on a record that it is lost.
func (at *attachment) lose(d *Delivery, why error) {
	// What was given back may be gone, and of what has an error it was told.
	if d.err == nil && (d.state == leaseRunning || d.state == leaseSettled && d.kind != wire.OutcomeReleased) {
		at.tellLost(d, why)
	}
	d.over(fenced(at.partition, wire.Offset(d.Offset), why))
}

func (at *attachment) tellLost(d *Delivery, why error) {
	c := at.consumer
	c.events.send(LeaseLost{Destination: c.destination, Group: c.options.group, Partition: at.partition, Offset: d.Offset, Reason: why.Error()})
}

// expire drops everything that has no outcome: nobody has confirmed in time that it is
// the consumer's. What has one may still be claimed. While there is a link, its broker may not
// have given up on the consumer, which was only late: so it is told, or the records would be
// leased to nobody until their ack wait is over, and what is on its way behind them waits
// (rule 24). What the application works on is given back when it has ended, or after the revoke
// grace (T4). So it is while an attach that claims them is on its way: its broker will have it that
// the consumer holds them. Else, without a link, the next attach does not claim them.
func (at *attachment) expire() {
	if c := at.consumer; !at.lapsed && at.held.Len() > 0 {
		at.lapsed = true
		c.events.send(Unconfirmed{Destination: c.destination, Group: c.options.group, Partition: at.partition})
	}
	listed := at.session != nil || at.opening != nil && at.claimed
	for _, d := range at.held.List() {
		switch {
		case d.state == leaseSettled || d.state == leaseOver:
		case listed && d.state == leaseQueued:
			d.conclude(wire.OutcomeReleased, 0, "")
		case listed:
			if d.err != nil {
				continue
			}
			at.tellLost(d, errUnconfirmed)
			d.err = fenced(at.partition, wire.Offset(d.Offset), errUnconfirmed)
			d.stop(d.err)
			if d.revoked == 0 {
				d.revoked = wire.ReasonAckWait
				at.consumer.running.remove(d)
				d.due = at.consumer.now().Add(at.consumer.revokeGrace)
				at.consumer.running.insert(d)
				poke(at.consumer.wake)
			}
		default:
			at.held.Remove(wire.Offset(d.Offset))
			at.lose(d, errUnconfirmed)
		}
	}
	over := func(d *Delivery) bool { return d.state == leaseOver }
	for scope, g := range at.gates {
		g.queue = slices.DeleteFunc(g.queue, over)
		switch {
		case !over(g.busy):
		case len(g.queue) == 0:
			delete(at.gates, scope)
		default:
			g.busy, g.queue = g.queue[0], slices.Delete(g.queue, 0, 1)
		}
	}
}

// --- outcomes ---

// say has the session's writer send an outcome when the socket is free.
func (at *attachment) say(o wire.Outcome) {
	if n := len(at.outcomes); n > 0 && follows(&at.outcomes[n-1], &o) {
		at.outcomes[n-1].Count += o.Count
	} else {
		at.outcomes = append(at.outcomes, o)
	}
	at.talk()
}

func (at *attachment) talk() {
	if at.session != nil && at.talking != at.session { // one that has ended knows nothing any more
		at.talking = at.session
		at.session.talk(at)
	}
}

// follows reports whether an outcome continues the range of another.
func follows(a, b *wire.Outcome) bool {
	return a.Next() == b.Offset && a.Epoch == b.Epoch && a.Kind == b.Kind && a.DelayMs == b.DelayMs && a.Text == "" && b.Text == "" && a.Count+b.Count > a.Count
}

// mergeOutcomes makes ranges of sorted outcomes, in place.
func mergeOutcomes(list []wire.Outcome) []wire.Outcome {
	merged := list[:0]
	for i := range list {
		if n := len(merged); n > 0 && follows(&merged[n-1], &list[i]) {
			merged[n-1].Count += list[i].Count
		} else {
			merged = append(merged, list[i])
		}
	}
	return merged
}

// appendOutcomes is called by the session's writer, and appends what is to be said.
func (at *attachment) appendOutcomes(dst []byte, s *session) []byte {
	c := at.consumer
	c.mu.Lock()
	defer c.mu.Unlock()
	if at.talking == s {
		at.talking = nil
	}
	if at.session != s {
		return dst
	}
	return at.takeOutcomes(dst)
}

// takeOutcomes appends what is to be said. Consumer.mu is held.
func (at *attachment) takeOutcomes(dst []byte) []byte {
	for len(at.outcomes) > 0 {
		slices.SortStableFunc(at.outcomes, func(a, b wire.Outcome) int { return cmp.Compare(a.Offset, b.Offset) })
		// What concerns a record a second time goes into the next frame.
		at.said.Outcomes = at.said.Outcomes[:0]
		later := at.outcomes[:0]
		end, size := wire.Offset(0), 0
		for _, o := range at.outcomes {
			if o.Offset < end || len(at.said.Outcomes) == wire.MaxGroupItems || size > wire.MaxOutcomeBytes-outcomeBytes {
				later = append(later, o)
				continue
			}
			at.said.Outcomes = append(at.said.Outcomes, o)
			end, size = o.Next(), size+outcomeBytes+len(o.Text)
		}
		at.outcomes = later
		at.said.Outcomes = mergeOutcomes(at.said.Outcomes)
		dst = wire.AppendFrame(dst, wire.Header{Opcode: wire.OpGroupOutcome, Version: wire.OpGroupOutcome.Version(), ID: at.link}, &at.said)
	}
	return dst
}

// outcomeBytes is what an outcome takes in a frame at most, without its text.
const outcomeBytes = 64

// --- the order of a scope ---

// admit takes a record that has arrived: it is ready, or waits for those of its scope
// that came before.
func (at *attachment) admit(d *Delivery) {
	if old := at.held.Get(wire.Offset(d.Offset)); old != nil { // of a lease that is over, or this would not be sent
		at.remove(old, errRevoked)
	}
	if !at.serial || d.scope == 0 {
		at.held.Put(wire.Offset(d.Offset), d)
		at.consumer.ready.push(d)
		return
	}
	g := at.gates[d.scope]
	if g == nil {
		g = at.newGate()
		at.gates[d.scope] = g
	}
	if g.busy == nil {
		g.busy = d
		at.consumer.ready.push(d)
	} else {
		g.queue = append(g.queue, d)
	}
	at.held.Put(wire.Offset(d.Offset), d)
}

// advance lets the next record of a scope go when d stands no longer before it.
func (at *attachment) advance(d *Delivery) {
	if d.scope == 0 {
		return
	}
	g := at.gates[d.scope]
	if g == nil {
		return
	}
	if g.busy != d {
		if i := slices.Index(g.queue, d); i >= 0 {
			g.queue = slices.Delete(g.queue, i, i+1)
		}
		return
	}
	g.busy = nil
	if len(g.queue) == 0 {
		delete(at.gates, d.scope)
		at.freeGate = append(at.freeGate, g)
		return
	}
	g.busy = g.queue[0]
	g.queue = slices.Delete(g.queue, 0, 1)
	if g.busy.state == leaseQueued {
		at.consumer.ready.push(g.busy)
		at.consumer.rouse()
	}
}

// dropBehind drops the records that wait behind d in its scope: the broker takes them
// back with it, and nobody starts them meanwhile. They are given back by name, too: if d has
// expired, the broker does not know of it what lies behind. Those that were on their way then wait
// behind d as well: GROUP_LOST names them before d is answered.
func (at *attachment) dropBehind(d *Delivery) {
	g := at.gates[d.scope]
	if g == nil {
		return
	}
	from := 0
	if g.busy != d {
		from = slices.Index(g.queue, d) + 1
	}
	g.queue = slices.DeleteFunc(g.queue, func(later *Delivery) bool {
		if from--; from >= 0 || later.state != leaseQueued {
			return false
		}
		at.held.Remove(wire.Offset(later.Offset))
		later.over(fenced(at.partition, wire.Offset(later.Offset), errRevoked))
		at.say(wire.Outcome{Offset: wire.Offset(later.Offset), Count: 1, Epoch: later.epoch, Kind: wire.OutcomeReleased})
		return true
	})
}

func (at *attachment) newGate() *gate {
	if n := len(at.freeGate); n > 0 {
		g := at.freeGate[n-1]
		at.freeGate = at.freeGate[:n-1]
		return g
	}
	return &gate{}
}
