package client

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/lockstepmq/lockstep/wire"
)

// ErrSettled is returned for an outcome of a record that has another one already.
var ErrSettled = errors.New("the record has an outcome already")

// errRevoked is why the context of a record is cancelled that the broker wants back.
var errRevoked = errors.New("the broker asked for the record back")

// RevokedError is the cause of the end of a record's context that the broker wants back: work on
// it takes longer than the ack wait, the group is moved or changed, its scope is parked, or its
// partition goes to another consumer.
type RevokedError struct{ Reason wire.LeaseReason }

func (e *RevokedError) Error() string { return errRevoked.Error() + ": " + e.Reason.String() }

func (e *RevokedError) Unwrap() error { return errRevoked }

// leaseState is how far a Delivery has come. It moves downwards only.
type leaseState uint8

const (
	leaseQueued  leaseState = iota // received, not handed out
	leaseRunning                   // with the application
	leaseSettled                   // has an outcome that is not confirmed
	leaseOver                      // confirmed, or lost
)

// Delivery is a record that was leased to a Consumer. It stays valid; its methods may be
// called from any goroutine. Exactly one outcome counts: Ack, Nack, Reject or Release.
// What has none is taken back when the group's ack wait is over.
// AppendTime is not known here: only batches travel, not the frames that have it.
type Delivery struct {
	Record
	// Deliveries counts how often the record was sent to a consumer, this time included,
	// and Attempts how often work on it has failed. Both are lower bounds if AtLeast.
	Deliveries, Attempts int
	Redelivered          bool // it was, or may have been, delivered before
	AtLeast              bool

	at    *attachment
	epoch wire.Index
	scope uint64 // 0: ordered with no other

	// Guarded by Consumer.mu.
	state      leaseState
	kind       wire.OutcomeKind
	delay      uint32
	text       string
	due        time.Time        // when the ack wait is over; then when the revoke grace is
	revoked    wire.LeaseReason // 0 if nobody wants it back
	extended   bool             // the leader is to know of due
	err        error            // why it is lost
	done       chan struct{}
	told       func(error)
	ctx        context.Context
	cancel     context.CancelCauseFunc
	prev, next *Delivery // of those that run, by due
}

// Epoch is the fencing token of the lease: a holder of the same scope that came later
// has a higher one. A system that remembers the highest epoch of each scope, and refuses
// lower ones, is safe from holders that stood still and woke up.
func (d *Delivery) Epoch() uint64 { return uint64(d.epoch) }

// Context is cancelled when the record is not to be worked on any more: the broker wants
// it back, the lease is lost, or an outcome was given; after an Ack when that is confirmed,
// so that AckSync may be given it. The context of a handler ends at the latest when the handler
// returns.
func (d *Delivery) Context() context.Context {
	c := d.at.consumer
	c.mu.Lock()
	defer c.mu.Unlock()
	return d.context(context.Background())
}

// context makes the context of the record. Consumer.mu is held.
func (d *Delivery) context(parent context.Context) context.Context {
	if d.ctx == nil {
		d.ctx, d.cancel = context.WithCancelCause(parent)
		switch {
		case d.err != nil:
			d.cancel(d.err)
		case d.revoked != 0:
			d.cancel(&RevokedError{d.revoked})
		case d.state == leaseOver || d.state == leaseSettled && d.kind != wire.OutcomeAck:
			d.cancel(nil)
		}
	}
	return d.ctx
}

// Ack says that the record is done. It returns at once; the outcome is on its way, and
// is sent again until it is confirmed. Errors: ErrFenced if the record is somebody
// else's by now, ErrSettled after another outcome.
func (d *Delivery) Ack() error { return d.settle(wire.OutcomeAck, 0, "") }

// AckSync is Ack, and waits until a quorum has it. Then the record is never delivered
// again. Errors also: ctx's, after which nothing is known; wire.CodeAlreadyDone if the record
// is settled and the group has forgotten by whom: another session may have handled it too.
func (d *Delivery) AckSync(ctx context.Context) error {
	c := d.at.consumer
	c.mu.Lock()
	if d.done == nil {
		d.done = make(chan struct{})
		if d.state == leaseOver {
			close(d.done)
		}
	}
	done := d.done
	c.mu.Unlock()
	if err := d.Ack(); err != nil {
		return err
	}
	select {
	case <-done:
		c.mu.Lock()
		defer c.mu.Unlock()
		return d.err
	case <-ctx.Done():
		c.mu.Lock()
		defer c.mu.Unlock()
		if d.state == leaseOver { // which has ended ctx, if it is the record's own
			return d.err
		}
		return ctx.Err()
	}
}

// AckFunc is Ack, and calls f once when it is known what has come of it: nil if a quorum
// has it, ErrFenced if the record was lost, wire.CodeAlreadyDone as in AckSync. f is called before the next record of the
// scope is handed out, by the goroutine that reads the connection: it must not block, nor
// call the Consumer. Where that is known already, of a record that was acknowledged before, f is
// called by AckFunc. If an error is returned, f is not called.
func (d *Delivery) AckFunc(f func(error)) error {
	c := d.at.consumer
	c.mu.Lock()
	known := d.state == leaseOver
	if before := d.told; before == nil {
		d.told = f
	} else if !known {
		d.told = func(err error) { before(err); f(err) }
	}
	c.mu.Unlock()
	err := d.Ack()
	if err == nil && known {
		f(nil)
	}
	return err
}

// NackOption says more about a failure.
type NackOption func(*Delivery)

// Delay is when the record is to be tried again at the earliest, instead of what the
// group's backoff says. Later records of its scope wait with it.
func Delay(d time.Duration) NackOption {
	return func(x *Delivery) { x.delay = milliseconds(d) }
}

// Nack says that work on the record has failed and is to be tried again, after the
// group's backoff. Records of its scope that wait behind it are given back with it.
func (d *Delivery) Nack(opts ...NackOption) error {
	var said Delivery
	for _, opt := range opts {
		opt(&said)
	}
	return d.settle(wire.OutcomeNack, said.delay, "")
}

// Reject says that the record will never succeed: it is a dead letter, or its scope is
// parked, as the group is set up. In a group with neither it is as if Nack was said.
func (d *Delivery) Reject(reason string) error {
	return d.settle(wire.OutcomeReject, 0, reason[:min(len(reason), wire.MaxDetailBytes)])
}

// Release gives the record back untouched. That is not a failed attempt.
func (d *Delivery) Release() error { return d.settle(wire.OutcomeReleased, 0, "") }

// Extend lets work on the record take until the given time from now, in the place of what
// is left of the ack wait; a day at most. It may be called again. The record stays the
// consumer's, also with the next leader, as long as its session is confirmed. Errors:
// ErrFenced if the record is lost or the broker wants it back, ErrSettled after an outcome.
func (d *Delivery) Extend(by time.Duration) error {
	c := d.at.consumer
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case d.state != leaseRunning || d.err != nil:
		return d.refusal()
	case d.revoked != 0:
		return fenced(d.Partition, wire.Offset(d.Offset), &RevokedError{d.revoked})
	}
	c.running.remove(d)
	d.due, d.extended = time.Now().Add(by), true
	c.running.insert(d)
	poke(c.wake)
	d.sayExtend(by)
	return nil
}

// sayExtend tells the broker, which answers only if the record is not the consumer's.
func (d *Delivery) sayExtend(by time.Duration) {
	d.at.say(wire.Outcome{Offset: wire.Offset(d.Offset), Count: 1, Epoch: d.epoch, Kind: wire.OutcomeExtend, DelayMs: milliseconds(by)})
}

// refusal is why a record takes no outcome. Consumer.mu is held.
func (d *Delivery) refusal() error {
	if d.err != nil {
		return d.err
	}
	return ErrSettled
}

// settle gives the record its outcome.
func (d *Delivery) settle(kind wire.OutcomeKind, delay uint32, text string) error {
	c := d.at.consumer
	c.mu.Lock()
	defer c.mu.Unlock()
	if d.state != leaseRunning {
		if d.err == nil && d.kind == kind {
			return nil
		}
		return d.refusal()
	}
	if !c.now().Before(d.at.valid) {
		d.at.expire()
	}
	if d.err != nil {
		if d.state == leaseRunning {
			d.conclude(wire.OutcomeReleased, 0, "")
		}
		return d.err
	}
	d.conclude(kind, delay, text)
	return nil
}

// conclude gives a record that is queued or running its outcome. Consumer.mu is held.
func (d *Delivery) conclude(kind wire.OutcomeKind, delay uint32, text string) {
	if d.state == leaseRunning {
		d.at.consumer.running.remove(d)
	}
	d.state, d.kind, d.delay, d.text = leaseSettled, kind, delay, text
	if kind == wire.OutcomeAck {
		if d.at.order == wire.OrderReplay {
			d.at.advance(d)
		}
	} else {
		d.stop(nil)
		d.at.dropBehind(d) // before it is said: the broker gives them to others then
	}
	d.at.say(d.outcome())
}

// outcome is what was concluded, as it is said.
func (d *Delivery) outcome() wire.Outcome {
	return wire.Outcome{Offset: wire.Offset(d.Offset), Count: 1, Epoch: d.epoch, Kind: d.kind, DelayMs: d.delay, Text: d.text}
}

// stop cancels the context of a record, if there is one. Consumer.mu is held.
func (d *Delivery) stop(why error) {
	if d.cancel != nil {
		d.cancel(why)
	}
}

// over ends the lease: confirmed, or lost because of err. Consumer.mu is held.
func (d *Delivery) over(err error) {
	if d.state == leaseRunning {
		d.at.consumer.running.remove(d)
	}
	d.state = leaseOver
	if d.err == nil { // else its time was over before, and the broker has confirmed that it is back
		d.err = err
	}
	d.stop(err)
	if d.done != nil {
		close(d.done)
	}
	if d.told != nil && d.kind == wire.OutcomeAck {
		d.told(err)
	}
}

// fenced is the error of a record that is not the consumer's any more.
func fenced(partition uint32, offset wire.Offset, why error) error {
	return fmt.Errorf("partition %d: offset %d: %w: %w", partition, offset, ErrFenced, why)
}

// runningList holds the records that the application works on, by the time until which
// it may.
type runningList struct {
	first, last *Delivery
	n           int
}

func (l *runningList) insert(d *Delivery) {
	l.n++
	after := l.last
	for after != nil && d.due.Before(after.due) {
		after = after.prev
	}
	d.prev = after
	if after == nil {
		d.next, l.first = l.first, d
	} else {
		d.next, after.next = after.next, d
	}
	if d.next == nil {
		l.last = d
	} else {
		d.next.prev = d
	}
}

func (l *runningList) remove(d *Delivery) {
	l.n--
	if d.prev == nil {
		l.first = d.next
	} else {
		d.prev.next = d.next
	}
	if d.next == nil {
		l.last = d.prev
	} else {
		d.next.prev = d.prev
	}
	d.prev, d.next = nil, nil
}
