package client

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/lockstepmq/lockstep/wire"
)

// batches keeps batches with their buffers for reuse by all producers. How many
// are in use at once is bounded by the producers' buffers; the garbage collector
// takes those that have not been in use for a while.
var batches = sync.Pool{New: func() any { return new(batch) }}

// Producer sends records to one destination.
//
// A record is copied once, into the open batch of its partition. Batches leave
// when the session's writer takes them, so there is no goroutine per producer on
// the way of a record; one (upkeep.go) sees to everything that is not the usual
// case: new sessions, timeouts, identities. A second one calls the functions given
// to SendFunc.
//
// Records of one partition are stored in the order of the calls that sent them,
// resends included, and without holes: a refusal that may pass is asked again until
// the delivery timeout, and when a record fails for good, everything that waits
// behind it in its partition fails too. Without idempotence,
// batches in flight behind a refused one may be stored before it, or without it.
// All methods may be called concurrently.
type Producer struct {
	conn        *Conn
	destination string
	scope       scope      // what it was asked for by
	moving      *departure // where the scope leads now; nil: it leads here
	kind        Kind       // of the destination
	options     producerOptions
	publisher   uint64          // hash of its name; 0: none
	name        []byte          // of the publisher
	ctx         context.Context // done when the Producer has ended
	cancel      context.CancelFunc
	wake        chan struct{} // capacity 1, for the upkeep
	finish      chan struct{} // capacity 1, for the callbacks
	wg          sync.WaitGroup
	tickets     sync.Pool // of *Ticket, for Send

	mu        sync.Mutex // before a session's; never held while a promise is kept
	err       error      // why nothing is accepted any more
	layout    *layout
	lanes     []*accumulator // one for each of layout.partitions
	fixedLane int
	sticky    int  // lane of records without a key
	stuck     bool // one went there already
	choices   choices
	share     float64   // of the lane that was chosen last, when it was
	lookAt    time.Time // when the layout is asked for because some partitions take no records

	identity     wire.ProducerIdentity // without sequence
	holder       uint64                // of the name: this Producer and nobody else
	renew        bool                  // a new identity is needed before anything new is stamped
	renewing     bool                  // INIT_PRODUCER is on its way
	stamped      int                   // batches that are
	wantLayout   bool                  // key slots or leaders have moved
	askingLayout bool                  // METADATA is on its way
	retryAt      time.Time             // when tend asks again after a failure

	signed  Record   // see sign
	headers []Header // of signed

	flushing        int  // calls of Flush that wait
	ticking         bool // the upkeep looks at the clock now and then
	bufferedBytes   int64
	bufferedRecords int64
	waiting         []*spaceWaiter  // sends that found no space, oldest first
	flushed         []chan struct{} // closed when nothing is buffered
	completed       []*batch        // completed under this lock, not finished yet
	callbacks       []*batch        // for the callback goroutine; bounded by the buffer
}

// Producer opens a producer for a destination. One with a name begins when whoever had the
// name before can store nothing more in the partitions that this one may write to: with ctx's
// error comes wire.CodeUnavailable and what is missing. One for a temporary queue, by its name,
// sends one batch at a time, without idempotence; when the queue has ended, it ends with
// wire.CodeDestinationGone. Errors: wire.CodeUnknownDestination,
// ErrUnknownPartition for the option Partition, or ctx's.
func (c *Conn) Producer(ctx context.Context, destination string, opts ...ProducerOption) (*Producer, error) {
	p, err := c.newProducer(ctx, destination, opts)
	if err != nil {
		return nil, fmt.Errorf("producer for %q: %w", destination, err)
	}
	return p, nil
}

func (c *Conn) newProducer(ctx context.Context, destination string, opts []ProducerOption) (*Producer, error) {
	o, err := newProducerOptions(opts)
	if err != nil {
		return nil, err
	}
	if wire.IsTemporary(destination) {
		return c.newTemporaryProducer(destination, o)
	}
	scope, l, err := c.scoped(ctx, destination)
	if err != nil {
		return nil, err
	}
	p := c.bareProducer(scope.destination, o, l)
	p.scope = scope
	if o.fixed && (p.lanes[p.fixedLane].partition != o.partition || !scope.has(o.partition)) {
		return nil, fmt.Errorf("%w: %d", ErrUnknownPartition, o.partition)
	}
	p.spread(c.Info().Node)
	p.begin()
	if o.idempotent {
		if err := p.open(ctx); err != nil {
			return nil, err
		}
	}
	return p, p.start((*Producer).upkeep)
}

// bareProducer is a Producer that does nothing yet.
func (c *Conn) bareProducer(destination string, o producerOptions, l *layout) *Producer {
	p := &Producer{
		conn:        c,
		destination: destination,
		layout:      l,
		options:     o,
		publisher:   publisherHash(o.publisher),
		name:        []byte(o.publisher),
		wake:        make(chan struct{}, 1),
		finish:      make(chan struct{}, 1),
		identity:    wire.ProducerIdentity{ID: wire.NoProducerID},
		holder:      rand.Uint64(),
	}
	p.tickets.New = func() any { return &Ticket{done: make(chan struct{}, 1), reused: true} }
	p.kind = p.layout.kind
	for i, n := range p.layout.partitions {
		p.lanes = append(p.lanes, &accumulator{producer: p, partition: n, leader: p.layout.leaders[i]})
		if o.fixed && n == o.partition {
			p.fixedLane = i
		}
	}
	p.choices = choices{active: []int{0}, equal: true}
	return p
}

// start lets the Producer work, as long as its Conn is open.
func (p *Producer) start(upkeep func(*Producer)) error {
	c := p.conn
	p.ctx, p.cancel = context.WithCancel(context.Background())
	c.mu.Lock()
	if c.closing {
		c.mu.Unlock()
		p.cancel()
		return ErrClosed
	}
	c.producers[p] = struct{}{}
	c.mu.Unlock()
	p.wg.Add(2)
	go upkeep(p)
	go p.runCallbacks()
	return nil
}

// Send sends a record and waits for its receipt. The error is a *SendError. When
// ctx ends while the record is on its way its Outcome is Unknown: it may still be
// stored.
func (p *Producer) Send(ctx context.Context, r *Record) (Receipt, error) {
	t := p.tickets.Get().(*Ticket)
	if err := p.send(ctx, r, promise{ticket: t}); err != nil {
		p.tickets.Put(t)
		return Receipt{}, err
	}
	select {
	case <-t.done:
		receipt, err := t.receipt, t.err
		t.receipt, t.err = Receipt{}, nil
		p.tickets.Put(t)
		return receipt, err
	case <-ctx.Done():
		return Receipt{}, &SendError{Outcome: Unknown, Err: ctx.Err()}
	}
}

// SendAsync hands a record over and returns a Ticket for its outcome. It waits
// only for space in the buffer. An error, a *SendError, says that the record was
// not taken.
func (p *Producer) SendAsync(ctx context.Context, r *Record) (*Ticket, error) {
	t := &Ticket{done: make(chan struct{})}
	if err := p.send(ctx, r, promise{ticket: t}); err != nil {
		return nil, err
	}
	return t, nil
}

// SendFunc hands a record over; done is called once with its outcome, or never if
// an error is returned. It waits only for space in the buffer, and allocates
// nothing for a record. The functions of a producer are called one after another
// from one goroutine: while one blocks, the others wait and the buffer fills, so
// done must not wait for the same producer: no Send, Flush or Close, and SendFunc
// only with a ctx that ends.
//
// After a failure the partition takes no records until done has returned, and none
// whose ctx has ended by then: a sender whose done cancels its ctx has stored a
// beginning of what it sent. A failed record is sent again from elsewhere than done.
//
// Errors: ErrNoFunction if done is nil, else a *SendError.
func (p *Producer) SendFunc(ctx context.Context, r *Record, done func(Receipt, error)) error {
	if done == nil {
		return fmt.Errorf("SendFunc: %w; one that does nothing does not wait for the outcome", ErrNoFunction)
	}
	return p.send(ctx, r, promise{call: done})
}

// send gets a record into the buffer.
func (p *Producer) send(ctx context.Context, r *Record, pr promise) error {
	p.mu.Lock()
	a, err := p.accept(ctx, r, pr)
	if err != nil {
		p.wakeWaiting() // the space that it was called for is the next one's
		p.mu.Unlock()
		return &SendError{Outcome: NotSent, Err: err}
	}
	s := a.list()
	now := a.lonely()
	p.mu.Unlock()
	switch {
	case s == nil:
	case now:
		s.writeNow()
	default:
		poke(s.wake)
	}
	return nil
}

// accept is send with p.mu held; while it waits for space it is not. It returns the
// accumulator that has the record. ctx is looked
// at under the lock: one that a function given to SendFunc has ended, when told of
// a failure, ends every later send before the partition takes records again.
func (p *Producer) accept(ctx context.Context, r *Record, pr promise) (*accumulator, error) {
	size := wire.EncodedSizeBound(r.Key, r.Value, r.Headers)
	if p.publisher != 0 {
		size += wire.EncodedSizeBound(nil, p.name, nil) + len(wire.PublisherHeader)
	}
	charge := int64(size)
	for called := false; ; called = true {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if p.err != nil {
			return nil, p.err
		}
		if size > p.layout.maxRecordBytes {
			return nil, fmt.Errorf("%w: up to %d bytes encoded, the limit is %d", ErrRecordTooLarge, size, p.layout.maxRecordBytes)
		}
		if p.hasSpace(charge, called) {
			break
		}
		if err := p.waitForSpace(ctx, charge); err != nil {
			return nil, err
		}
	}
	if p.publisher != 0 {
		r = p.sign(r)
	}
	a, keyHash, keyed := p.route(r, charge)
	if keyed && !p.scope.has(a.partition) {
		return nil, fmt.Errorf("%w: partition %d of %q, and it has %v", ErrOutsideAlias, a.partition, p.destination, p.scope.partitions)
	}
	if a.untold > 0 {
		return nil, a.cause
	}
	if !a.add(r, keyHash, keyed, charge, pr) {
		return nil, fmt.Errorf("%w: no batch can hold it", ErrRecordTooLarge)
	}
	if !p.ticking || a.session == nil {
		p.ticking = true
		poke(p.wake)
	}
	return a, nil
}

// spaceWaiter is a send that waits for space.
type spaceWaiter struct {
	bytes int64
	ready chan struct{} // capacity 1
}

var spaceWaiters = sync.Pool{New: func() any { return &spaceWaiter{ready: make(chan struct{}, 1)} }}

// hasSpace reports whether a record fits into the buffer. Into an empty one any
// record does. Nobody overtakes those that wait, of whom those go on that were called, and
// before a move nothing fits.
func (p *Producer) hasSpace(bytes int64, called bool) bool {
	return p.moving == nil && (called || len(p.waiting) == 0) && (p.bufferedRecords == 0 ||
		p.bufferedBytes+bytes <= p.options.maxBufferedBytes && p.bufferedRecords < p.options.maxBufferedRecords)
}

// waitForSpace returns when the caller should look again, with p.mu held as
// before the call.
func (p *Producer) waitForSpace(ctx context.Context, bytes int64) error {
	w := spaceWaiters.Get().(*spaceWaiter)
	w.bytes = bytes
	p.waiting = append(p.waiting, w)
	for _, a := range p.lanes {
		a.signal()
	}
	p.mu.Unlock()
	var err error
	select {
	case <-w.ready:
	case <-ctx.Done():
		err = ctx.Err()
	}
	p.mu.Lock()
	i := slices.Index(p.waiting, w)
	p.waiting = slices.Delete(p.waiting, i, i+1)
	select {
	case <-w.ready: // called again, or when it gave up
	default:
	}
	spaceWaiters.Put(w)
	return err
}

// wakeWaiting calls those that find space now. They keep their places until they have
// looked, so that nobody takes it meanwhile.
func (p *Producer) wakeWaiting() {
	bytes, records := p.bufferedBytes, p.bufferedRecords
	for _, w := range p.waiting {
		fits := bytes+w.bytes <= p.options.maxBufferedBytes && records < p.options.maxBufferedRecords
		if (!fits && records > 0 || p.moving != nil) && p.err == nil {
			return
		}
		bytes += w.bytes
		records++
		poke(w.ready)
	}
}

// newBatch takes a batch from the pool.
func (p *Producer) newBatch() *batch {
	b := batches.Get().(*batch)
	b.reset(p.layout.recordIndex)
	if p.options.codec == NoCompression {
		b.builder.Plain()
	}
	return b
}

// unlockAndFinish releases p.mu and keeps the promises of what was completed
// under it. Tickets are served here, functions in their own goroutine.
func (p *Producer) unlockAndFinish() {
	for len(p.completed) > 0 {
		b := p.completed[0]
		n := copy(p.completed, p.completed[1:])
		p.completed[n] = nil
		p.completed = p.completed[:n]
		if b.callback {
			p.callbacks = append(p.callbacks, b)
			poke(p.finish)
			continue
		}
		p.mu.Unlock()
		b.keepPromises()
		p.mu.Lock()
		p.release(b)
	}
	p.mu.Unlock()
}

// keepPromises tells everybody what became of their records.
func (b *batch) keepPromises() {
	r := Receipt{}
	if b.err == nil {
		r = newReceipt(b.lane.partition, &b.receipt)
	}
	for i := range b.promises {
		if pr := &b.promises[i]; pr.call != nil {
			pr.call(r, b.err)
		} else {
			pr.ticket.complete(r, b.err)
		}
		if b.err == nil && b.answerable() {
			r.Offset++
		}
	}
}

// runCallbacks calls the functions given to SendFunc.
func (p *Producer) runCallbacks() {
	defer p.wg.Done()
	for {
		p.mu.Lock()
		batches := p.callbacks
		p.callbacks = nil
		ended := p.ctx.Err() != nil
		p.mu.Unlock()
		for _, b := range batches {
			b.keepPromises()
			p.mu.Lock()
			p.release(b)
			p.mu.Unlock()
		}
		if len(batches) == 0 {
			if ended {
				return
			}
			select {
			case <-p.finish:
			case <-p.ctx.Done():
			}
		}
	}
}

// release gives back what a finished batch held. Producer.mu is held.
func (p *Producer) release(b *batch) {
	p.bufferedBytes -= b.charge
	p.bufferedRecords -= int64(len(b.promises))
	if p.bufferedBytes < 0 || p.bufferedRecords < 0 {
		panic(fmt.Sprintf("client: %d records of %d bytes are buffered", p.bufferedRecords, p.bufferedBytes))
	}
	if b.untold {
		b.lane.untold--
	}
	if !b.abandoned && !b.writing {
		b.recycle()
	}
	if p.bufferedRecords == 0 && p.moving != nil {
		p.depart()
	}
	p.wakeWaiting()
	if p.bufferedRecords == 0 {
		for _, c := range p.flushed {
			close(c)
		}
		p.flushed = nil
	}
}

// Flush sends what is buffered without waiting for batches to fill, and returns
// when every record has an outcome, those sent meanwhile included.
func (p *Producer) Flush(ctx context.Context) error {
	p.mu.Lock()
	if p.bufferedRecords == 0 {
		p.mu.Unlock()
		return nil
	}
	done := make(chan struct{})
	p.flushed = append(p.flushed, done)
	p.flushing++
	for _, a := range p.lanes {
		a.signal()
	}
	p.mu.Unlock()
	defer func() {
		p.mu.Lock()
		p.flushing--
		p.mu.Unlock()
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("flush: %w", ctx.Err())
	}
}

// Close takes no more records, waits until all have an outcome, and ends the
// producer. When ctx ends first, the records that are left fail and its error is
// returned. It waits for the functions given to SendFunc whatever ctx says, and must
// not be called from one of them.
func (p *Producer) Close(ctx context.Context) error {
	p.mu.Lock()
	if p.err == nil {
		p.err = ErrClosed
		p.wakeWaiting()
	}
	p.mu.Unlock()
	err := p.Flush(ctx)
	p.mu.Lock()
	p.fail(ErrClosed)
	p.unlockAndFinish()
	p.cancel()
	p.wg.Wait()
	p.conn.mu.Lock()
	delete(p.conn.producers, p)
	p.conn.mu.Unlock()
	return err
}

// fail completes everything that is unanswered and takes no more records. The
// first reason stays. The caller holds p.mu.
func (p *Producer) fail(err error) {
	if p.err == nil {
		p.err = err
	}
	for _, a := range p.lanes {
		for a.queue.len() > 0 {
			a.abandon(a.queue.at(0), err)
		}
		if a.lingerTime != nil {
			a.lingerTime.Stop()
		}
	}
	p.wakeWaiting()
}
