package client

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/lockstepmq/lockstep/wire"
)

// eagerOpens is the number of partitions up to which a producer opens all of
// them at once; of larger destinations it opens those it has records for.
const eagerOpens = 64

// openPatience bounds how long a broker is given for an identity.
const openPatience = 10 * time.Minute

// upkeep is the producer's goroutine for everything that is not the usual case:
// it opens partitions in new sessions, takes identities, follows the topology,
// ends pauses and enforces the delivery timeout. It never waits for an answer:
// requests are sent, and what comes back pokes it.
func (p *Producer) upkeep() {
	defer p.wg.Done()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		s, changed, err := p.conn.peek()
		p.mu.Lock()
		if err != nil {
			p.fail(err)
			p.unlockAndFinish()
			<-p.ctx.Done()
			return
		}
		var dead <-chan struct{}
		if s != nil {
			dead = s.done
			p.tend(s)
		}
		next := p.checkTimes(time.Now(), s != nil)
		p.spill(time.Now())
		p.announce()
		p.unlockAndFinish()

		timer.Stop()
		if next > 0 {
			timer.Reset(next)
		}
		select {
		case <-p.wake:
		case <-timer.C:
		case <-changed:
		case <-dead:
		case <-p.ctx.Done():
			return
		}
	}
}

// checkTimes ends pauses and expires batches. It returns when to look again, 0
// for not before something else happens. connected says whether tend has anybody to
// ask.
func (p *Producer) checkTimes(now time.Time, connected bool) (next time.Duration) {
	for _, a := range p.lanes {
		a.expire(now)
		if connected {
			next = shorter(shorter(next, until(a.openAt, now)), until(a.askAt, now))
		}
		if a.paused && !a.resumeAt.IsZero() {
			if left := a.resumeAt.Sub(now); left > 0 {
				next = shorter(next, left)
			} else {
				a.resume()
			}
		}
	}
	if connected {
		next = shorter(shorter(next, until(p.retryAt, now)), until(p.lookAt, now))
	}
	if p.ticking = p.bufferedRecords > 0; p.ticking {
		next = shorter(next, max(min(p.options.deliveryTimeout/16, time.Second), time.Millisecond))
	}
	return next
}

// announce tells the Conn's listener which partitions have begun or ceased to
// stall.
func (p *Producer) announce() {
	for _, a := range p.lanes {
		if stalled := a.stall != nil; stalled != a.announced {
			a.announced = stalled
			if stalled {
				p.conn.events.send(ProducerStalled{Destination: p.destination, Partition: a.partition, Err: a.stall})
			} else {
				p.conn.events.send(ProducerResumed{Destination: p.destination, Partition: a.partition})
			}
		}
		if a.unreachable != a.told {
			if a.told = a.unreachable; a.told {
				p.conn.unavailable(DestinationUnavailable{Destination: p.destination, Partition: a.partition})
			}
		}
	}
}

// shorter is the smaller of two times, of which 0 means never.
func shorter(a, b time.Duration) time.Duration {
	if a == 0 || b == 0 {
		return max(a, b)
	}
	return min(a, b)
}

// until is the time until then, at least 1 ms; 0 if then is zero, which means never.
func until(then, now time.Time) time.Duration {
	if then.IsZero() {
		return 0
	}
	return max(then.Sub(now), time.Millisecond)
}

// tend asks for whatever is missing: the home, s, and the leaders of partitions.
func (p *Producer) tend(s *session) {
	now := time.Now()
	p.askHome(s, now)
	if s.hello.NodeID != p.choices.home {
		p.spread(s.hello.NodeID)
	}
	for i, a := range p.lanes {
		if a.queue.len() > 0 || len(p.lanes) <= eagerOpens && (!p.options.fixed || i == p.fixedLane) {
			a.attach(now)
		} else {
			a.openAt, a.askAt, a.since = time.Time{}, time.Time{}, time.Time{}
			a.away, a.unreachable = false, false
		}
	}
}

// askHome asks for an identity and for the layout, if need be.
func (p *Producer) askHome(s *session, now time.Time) {
	if now.Before(p.retryAt) {
		return
	}
	p.retryAt = time.Time{}
	if !p.lookAt.IsZero() && !now.Before(p.lookAt) {
		p.lookAt, p.wantLayout = time.Time{}, true
	}
	if p.renew && p.stamped == 0 && !p.renewing {
		p.renewing = true
		p.ask(s, wire.OpInitProducer, p.init(true), p.gotIdentity)
	}
	if (p.wantLayout || p.layout.generation != p.conn.topology.generation.Load()) && !p.askingLayout {
		p.askingLayout = true
		generation := p.conn.topology.generation.Load()
		p.ask(s, wire.OpMetadata, p.scope.ask(), func(_ *session, body []byte, err error) {
			p.gotLayout(generation, body, err)
		})
	}
}

// attach opens the partition where its leader is, if that is another session than the
// one that the lane is attached to. What is in flight stays where it is until it is
// answered or lost: a leader that was deposed refuses it.
func (a *accumulator) attach(now time.Time) {
	p := a.producer
	if a.inFlight > 0 && a.session != nil || now.Before(a.openAt) {
		return
	}
	a.openAt = time.Time{}
	s := p.conn.sessionTo(a.leader.node)
	if s != nil && a.session == s {
		return
	}
	if a.since.IsZero() {
		a.since = now
	} else if now.Sub(a.since) >= unreachableAfter {
		a.unreachable = true
		if !p.conn.options.reconnect && a.queue.len() > 0 && now.Sub(a.queue.at(0).started) >= unreachableAfter {
			a.giveUp(errUnreachable(p.destination, a.partition))
		}
	}
	if s == nil {
		switch {
		case a.askAt.IsZero():
			a.askAt = now.Add(leaderPause)
		case !now.Before(a.askAt):
			a.askAt = now.Add(leaderPause)
			p.wantLayout = true // perhaps there is another leader
			poke(p.wake)
		}
		a.leave()
		return
	}
	a.askAt = time.Time{}
	if a.opening == s || a.inFlight > 0 {
		return
	}
	a.leave()
	a.opening = s
	p.ask(s, wire.OpOpenPartition, &wire.OpenPartitionRequest{Destination: p.destination, Partition: a.partition}, a.opened)
}

// leave takes the lane from its session.
func (a *accumulator) leave() {
	a.away = a.away || a.session != nil
	a.session, a.listed = nil, nil
}

// reply is a waiter that calls a function with p.mu held.
type reply struct {
	p    *Producer
	call func(s *session, body []byte, err error)
}

func (r *reply) answered(s *session, body []byte, err error) {
	r.p.mu.Lock()
	r.call(s, body, err)
	poke(r.p.wake)
	r.p.unlockAndFinish()
}

func (r *reply) lost(s *session, err error) { r.answered(s, nil, err) }

// ask sends a request whose answer is handled with p.mu held. The caller holds it
// too; a session that is dead already is taken for one that dies now.
func (p *Producer) ask(s *session, op wire.Opcode, m wire.Message, call func(s *session, body []byte, err error)) {
	if _, err := s.request(op, m, &reply{p, call}); err != nil {
		call(s, nil, err)
	}
}

// later puts off what tend does next after an error, unless that was the death
// of the session.
func (p *Producer) later(err error) {
	if !errors.Is(err, ErrDisconnected) {
		p.retryAt = time.Now().Add(retryPause)
	}
}

// init asks for an identity. One that renews does not take the name back from who has
// opened it since: a process that was paused must not fence its successor.
func (p *Producer) init(renews bool) *wire.InitProducerRequest {
	if p.options.name == "" {
		return &wire.InitProducerRequest{}
	}
	return &wire.InitProducerRequest{Name: p.options.name, Holder: p.holder, Renews: renews}
}

// open asks for the first identity. Of a name the broker fences the holder before in the
// partitions that this Producer may write to, and gives up in time to say where it cannot.
func (p *Producer) open(ctx context.Context) error {
	request := p.init(false)
	if p.options.name != "" {
		request.Destination = p.destination
		if p.options.fixed {
			request.Partitions = []uint32{p.options.partition}
		}
	}
	if end, ok := ctx.Deadline(); ok {
		left := time.Until(end)
		request.PatienceMs = uint32(max(min(left-left/8, openPatience).Milliseconds(), 1))
	}
	var r wire.InitProducerResponse
	err := p.conn.do(ctx, wire.OpInitProducer, request, &r, true)
	var over *overdueError
	if errors.As(err, &over) {
		err = fmt.Errorf("%w (%w)", over.last, over.err) // what the broker said, for errors.Is too
	}
	p.identity.ID, p.identity.Epoch = r.ProducerID, r.Epoch
	return err
}

// gotIdentity handles the answer to INIT_PRODUCER.
func (p *Producer) gotIdentity(_ *session, body []byte, err error) {
	p.renewing = false
	var r wire.InitProducerResponse
	if err == nil {
		err = r.Parse(body)
	}
	if err != nil {
		if code := codeOf(err); code != 0 && !code.Retriable() {
			if code == wire.CodeFenced {
				err = fmt.Errorf("%w: %w", ErrFenced, err)
			}
			p.fail(fmt.Errorf("new producer identity: %w", err))
			return
		}
		p.later(err)
		return
	}
	p.identity.ID, p.identity.Epoch = r.ProducerID, r.Epoch
	p.renew = false
	for _, a := range p.lanes {
		a.sequence = 0
		a.signal()
	}
}

// gotLayout handles the answer to METADATA.
func (p *Producer) gotLayout(generation uint64, body []byte, err error) {
	p.askingLayout = false
	var response wire.MetadataResponse
	if err == nil {
		err = response.Parse(body)
	}
	var l *layout
	if err == nil {
		p.conn.learn(&response)
		l, err = p.placed(generation, &response)
	}
	switch code := codeOf(err); {
	case err == nil && l != nil:
		p.install(l)
	case err == nil, errors.Is(err, ErrAliasMoved):
	case code == wire.CodeUnknownDestination || code == wire.CodeDestinationGone:
		p.fail(err)
	default:
		p.later(err)
	}
}

// install makes a new layout the producer's. Records whose key slot has moved are
// placed anew, in their order, if they are known to be in no log.
func (p *Producer) install(l *layout) {
	old := p.layout
	p.layout = l
	p.wantLayout = false
	lanes := make([]*accumulator, len(l.partitions))
	byNumber := make(map[uint32]*accumulator, len(p.lanes))
	for _, a := range p.lanes {
		byNumber[a.partition] = a
	}
	for i, n := range l.partitions {
		if lanes[i] = byNumber[n]; lanes[i] == nil {
			lanes[i] = &accumulator{producer: p, partition: n}
		}
		lanes[i].leader.learn(l.leaders[i])
		delete(byNumber, n)
		if p.options.fixed && n == p.options.partition {
			p.fixedLane = i
		}
	}
	for _, a := range byNumber { // partitions do not vanish; if one does, its records must not
		lanes = append(lanes, a)
	}
	p.lanes = lanes
	p.sticky = min(p.sticky, len(l.partitions)-1)
	p.spread(p.choices.home)
	p.lookAt = time.Time{}
	if l.partial && !p.options.fixed {
		p.lookAt = time.Now().Add(layoutPause)
	}

	var moved []*batch
	for _, a := range lanes {
		free := func(i int) bool { b := a.queue.at(i); return !b.stamped && b.keyed }
		first := 0
		for first < a.queue.len() && (!free(first) || !a.queue.at(first).misplaced(l)) {
			first++
		}
		for i := a.queue.len() - 1; i >= first; i-- { // what stays must not overtake what is placed behind it
			if free(i) {
				b := a.queue.at(i)
				a.remove(b)
				moved = append(moved, b)
			}
		}
	}
	for i := len(moved) - 1; i >= 0; i-- {
		p.place(moved[i])
	}
	for _, a := range lanes {
		if a.paused && a.resumeAt.IsZero() {
			if l.slotVersion == old.slotVersion {
				a.resumeAt = time.Now().Add(retryPause) // the broker knows no better yet
			} else {
				a.resume()
			}
		}
	}
}

// opened handles the answer to OPEN_PARTITION.
func (a *accumulator) opened(s *session, body []byte, err error) {
	p := a.producer
	if a.opening != s {
		return // another node leads by now
	}
	a.opening = nil
	var r wire.OpenPartitionResponse
	if err == nil {
		err = r.Parse(body)
	}
	if err == nil && r.DestinationID != p.layout.id {
		err = wire.Errorf(wire.CodeDestinationGone, "destination %q was deleted and created again", p.destination)
	}
	switch code := codeOf(err); {
	case err == nil:
		a.session, a.handle, a.openAt, a.since = s, r.Handle, time.Time{}, time.Time{}
		a.away, a.unreachable = false, false
		if r.RecordIndex != p.layout.recordIndex || r.SlotVersion != p.layout.slotVersion {
			p.wantLayout = true
		}
		a.signal()
	case code == wire.CodeDestinationGone:
		p.fail(err)
	case code == wire.CodeNotLeader && a.leader.follow(err):
		p.choices.home = 0
	case code == 0 || code.Retriable():
		p.wantLayout = p.wantLayout || code == wire.CodeNotLeader || code == wire.CodeUnavailable
		a.openLater(err)
	default:
		a.failFrom(0, err)
		a.openLater(err)
	}
}

// openLater puts off the next attempt to open the partition after an error, unless
// that was the death of the session.
func (a *accumulator) openLater(err error) {
	if !errors.Is(err, ErrDisconnected) {
		a.openAt = time.Now().Add(retryPause)
	}
}
