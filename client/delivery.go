package client

import (
	"fmt"
	"time"

	"github.com/lockstepmq/lockstep/wire"
)

// What becomes of a batch once its attempt has ended (RULES R3 to R7). All
// functions are called with Producer.mu held.
//
// The argument rests on three facts. The broker answers the batches of one
// producer in one partition in order, and refuses a batch whose sequence does not
// follow: so behind a batch that is known to be in no log, nothing of the same
// partition is in the log either. A batch with the same identity and sequence is
// stored once, however often it arrives. And a code's row in the error table says
// whether the request can still take effect (Rejected).
//
// Hence two kinds of stamped batches. A certain one was refused on every attempt:
// it gives its sequence back and is sent again, elsewhere or under another
// identity, or reported as NotSent. An uncertain one keeps its partition, identity
// and sequence until it is answered, or is reported as Unknown; its sequence is
// then used up or missing, nobody knows which, so the producer takes a new
// identity before it sends anything new, and takes it only when nothing is
// stamped any more.
//
// A batch that is given up takes everything behind it in its partition along
// (failFrom): what a producer has stored in a partition is a beginning of what it
// was given, never a text with lines missing in the middle.

const (
	// maxBackoff bounds the pause before a refused batch is sent again.
	maxBackoff = time.Second
	// stallRefusals is the number of refusals in a row after which a partition
	// counts as stalled. A lack of space counts at once.
	stallRefusals = 5
)

// settle ends the attempt of a batch when both the writer and the session have
// let go of it.
func (b *batch) settle() {
	if b.writing || !b.inFlight {
		return
	}
	a := b.lane
	a.land(b)
	if b.refusal == nil && b.lostErr == nil {
		a.failures = 0
		if a.stall != nil {
			a.stall = nil
			poke(a.producer.wake)
		}
		a.remove(b)
		b.complete(nil)
	} else {
		a.draining = true
		if b.lastCause = b.refusal; b.lastCause == nil {
			b.lastCause = b.lostErr
		}
		// At once: it may be given up before the others are answered.
		b.uncertain = b.uncertain || b.lostErr != nil && !b.untouched || b.refusal != nil && !codeOf(b.refusal).Rejected()
	}
	if a.draining {
		if a.inFlight == 0 {
			a.resolve()
		}
		return
	}
	a.signal()
}

// land takes a batch out of those in flight.
func (a *accumulator) land(b *batch) {
	b.inFlight, b.session = false, nil
	a.inFlight--
	a.flying -= b.builder.Count()
}

// remove takes a batch out of the queue.
func (a *accumulator) remove(b *batch) {
	i := a.queue.find(b)
	if i < 0 {
		panic(fmt.Sprintf("client: partition %d: batch of %d records is not in the queue of %d", a.partition, b.builder.Count(), a.queue.len()))
	}
	a.queue.remove(i)
	if a.open == b {
		a.open = nil
	}
	if a.queue.len() == 0 {
		a.failures = 0 // nobody is left to find out whether it takes records again
	}
	if b.stamped {
		a.producer.stamped--
		if a.producer.renew && a.producer.stamped == 0 {
			poke(a.producer.wake)
		}
	}
}

// resolve decides about all stamped batches, oldest first, when none is in
// flight.
func (a *accumulator) resolve() {
	p := a.producer
	a.draining = false
	var (
		pause   time.Duration
		certain bool  // a batch in front is in no log, so the rest is not either
		release int32 // the sequence of the first such batch
		lost    bool
	)
	for i := 0; i < a.queue.len() && a.queue.at(i).stamped; i++ {
		b := a.queue.at(i)
		lost = lost || b.lostErr != nil
		if certain && p.options.idempotent {
			b.uncertain = false
		}
		if !b.uncertain && !certain {
			certain, release = true, b.identity.Sequence
		}
	}
	for i := 0; i < a.queue.len() && a.queue.at(i).stamped; {
		b := a.queue.at(i)
		verdict, wait := a.judge(b, i > 0)
		switch verdict {
		case again:
			pause = max(pause, wait)
			b.refusal, b.lostErr = nil, nil
			if !b.uncertain {
				a.unstamp(b)
			}
			i++
		case applied:
			a.remove(b)
			b.fail(Applied, b.refusal)
		case failed:
			a.failFrom(i, b.lastCause)
		case allOver:
			return
		}
	}
	if certain {
		a.sequence = release
	}
	if p.renew {
		poke(p.wake)
	}
	switch {
	case lost:
		a.detach()
	case pause > 0:
		a.pause(pause)
	default:
		a.signal()
	}
}

// verdict is what judge says about a batch.
type verdict uint8

const (
	again   verdict = iota // it stays, to be sent again
	applied                // it is in the log, though the broker cannot say where
	failed                 // it is given up
	allOver                // the producer was ended, and with it every batch
)

// judge says what becomes of a batch and how long the accumulator pauses. behind
// says that an older batch stays as well.
func (a *accumulator) judge(b *batch, behind bool) (verdict, time.Duration) {
	p := a.producer
	switch {
	case b.refusal == nil && (!b.uncertain || p.options.idempotent) && p.conn.options.reconnect:
		return again, 0 // lost
	case b.refusal == nil:
		return failed, 0 // a resend could be a duplicate, or nobody wants one
	case b.uncertain && !p.options.idempotent:
		return failed, 0 // a resend could be a duplicate
	}
	code := codeOf(b.refusal)
	switch code {
	case wire.CodeDuplicate:
		return applied, 0
	case wire.CodeFenced:
		p.fail(fmt.Errorf("%w: %w", ErrFenced, b.refusal))
		return allOver, 0
	case wire.CodeOutOfSequence, wire.CodeUnknownProducer:
		if behind {
			return again, 0 // the older batch has to go first, that is all
		}
		p.renew = p.options.idempotent
		if !b.uncertain && p.options.idempotent {
			return again, a.backoff(b.refusal)
		}
	case wire.CodeWrongPartition:
		if !b.uncertain {
			p.wantLayout = true
			a.paused, a.resumeAt = true, time.Time{}
			poke(p.wake)
			return again, 0
		}
	case wire.CodeUnknownHandle:
		a.detach()
		return again, a.backoff(b.refusal)
	case wire.CodeNotLeader:
		a.detach()
		if a.leader.follow(b.refusal) {
			p.choices.home = 0
			return again, 0
		}
		p.wantLayout = true
		return again, a.backoff(b.refusal)
	default:
		if code.Retriable() && (p.options.waitForSpace || !full(code)) {
			return again, a.backoff(b.refusal)
		}
	}
	return failed, 0
}

// backoff is the pause after another refusal.
func (a *accumulator) backoff(refusal error) time.Duration {
	a.failures++
	if full(codeOf(refusal)) || a.failures == stallRefusals {
		a.stall = refusal // the upkeep, which the pause wakes, tells
	}
	return min(retryPause<<min(a.failures-1, 10), maxBackoff)
}

// pause holds the accumulator back for a while.
func (a *accumulator) pause(d time.Duration) {
	if a.paused && a.resumeAt.IsZero() {
		return // a new layout resumes it
	}
	a.paused, a.resumeAt = true, time.Now().Add(d)
	poke(a.producer.wake)
}

// resume ends a pause.
func (a *accumulator) resume() {
	a.paused, a.resumeAt = false, time.Time{}
	a.signal()
}

// expire gives up when the delivery timeout of the oldest batch has passed.
func (a *accumulator) expire(now time.Time) {
	p := a.producer
	if a.queue.len() == 0 {
		return
	}
	b := a.queue.at(0)
	if b.builder.Count() == 0 {
		return
	}
	if !p.conn.options.redirect {
		if err := p.conn.connectError(); err != nil {
			a.giveUp(&lostError{err})
			return
		}
	}
	if now.Sub(b.started) < p.options.deliveryTimeout {
		return
	}
	cause := fmt.Errorf("%w after %v", ErrDeliveryTimeout, p.options.deliveryTimeout)
	if b.lastCause != nil {
		cause = fmt.Errorf("%w: last: %w", cause, b.lastCause)
	}
	if err := p.conn.connectError(); err != nil {
		cause = fmt.Errorf("%w: not connected: %w", cause, err)
	}
	a.giveUp(cause)
}

// giveUp fails everything in the partition.
func (a *accumulator) giveUp(cause error) {
	a.failFrom(0, cause)
	if a.draining {
		a.resolve()
	}
}

// failFrom gives up batch i of the queue and all behind it, with one cause. Until
// the functions given to SendFunc have been called, the partition takes no more
// records: what is sent by one who cannot know of the failure yet fails as well.
func (a *accumulator) failFrom(i int, cause error) {
	a.failures = 0
	for a.queue.len() > i {
		b := a.queue.at(i)
		if b.callback {
			b.untold = true
			a.untold++
			a.cause = cause
		}
		a.abandon(b, cause)
	}
}

// abandon takes a batch out of the queue and completes it with what is known
// about it.
func (a *accumulator) abandon(b *batch, cause error) {
	p := a.producer
	outcome := NotSent
	if b.inFlight || b.stamped && b.uncertain {
		outcome = Unknown
		p.renew = p.options.idempotent
	}
	if b.inFlight {
		if b.session != nil {
			b.session.forgetBatch(b)
		}
		a.land(b)
		b.abandoned = true // the answer may be on its way to it: no other life
	}
	a.remove(b)
	if b.builder.Count() > 0 {
		b.fail(outcome, cause)
	}
}

// fail completes a batch with an error.
func (b *batch) fail(outcome Outcome, cause error) {
	b.complete(&SendError{Outcome: outcome, Err: cause})
}

// complete puts the batch among those whose promises are kept as soon as the
// lock is released.
func (b *batch) complete(err error) {
	if b.completed {
		panic(fmt.Sprintf("client: partition %d: batch of %d records completed twice", b.lane.partition, b.builder.Count()))
	}
	b.completed = true
	b.err = err
	p := b.lane.producer
	p.completed = append(p.completed, b)
}
