package client

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"iter"
	"math/bits"
	"slices"
	"sync"
	"time"

	"github.com/lockstepmq/lockstep/wire"
)

// Consumer takes records of a destination as a member of a group, and says what became
// of each. Partitions and leaders may come and go; what it holds stays its own as long
// as a broker confirms it within the session timeout.
//
// In a serial group records of one scope come one at a time, in order: the next one
// comes when the outcome of the one before is committed. All methods may be called
// concurrently.
type Consumer struct {
	conn          *Conn
	destination   string
	destinationID [16]byte
	scope         scope // what it was asked for by
	options       consumerOptions
	flags         wire.AttachFlags
	events        *dispatcher
	ctx           context.Context
	cancel        context.CancelFunc
	wake          chan struct{} // capacity 1, for the upkeep
	signal        chan struct{} // capacity 1, for one who waits in Next; he passes it on
	began         time.Time
	wg            sync.WaitGroup

	mu          sync.Mutex // before a session's
	attachments []*attachment
	bind        *bindLink // nil: all partitions are the consumer's
	binding     binding
	revokeGrace time.Duration // between the end of the ack wait and the nack
	ready       readyList
	waiting     int       // in Next
	look        time.Time // when the upkeep looks again by itself; zero: it does not
	running     runningList
	working     uint32 // how many run at once, at most, so far, rounded up: see begin
	paused      bool   // nobody asks for records: brokers send none
	closing     bool
	err         error // why there will be no other record
	retryAt     time.Time
	want        bool          // to know who leads
	asking      bool          // METADATA is on its way
	seen        uint64        // generation of the topology before it was asked for
	started     chan struct{} // closed when a partition is attached, or on an error
	gone        chan struct{} // closed when everything is left
	idle        chan struct{} // closed when nothing is held, for Close; nil: nobody waits
}

// Consumer joins a group of a destination, and creates the group if there is none. It
// returns when the first partition has taken it in. Errors: wire.CodeUnknownDestination,
// wire.CodeUnknownGroup without Create, wire.CodeGroupMismatch if the group has
// another mode, scope or binding, wire.CodeSerialNeedsOnePartition, or ctx's.
func (c *Conn) Consumer(ctx context.Context, destination string, opts ...ConsumerOption) (*Consumer, error) {
	x, err := c.newConsumer(ctx, destination, opts)
	if err != nil {
		return nil, fmt.Errorf("consumer of %q: %w", destination, err)
	}
	return x, nil
}

func (c *Conn) newConsumer(ctx context.Context, destination string, opts []ConsumerOption) (*Consumer, error) {
	o, err := newConsumerOptions(opts)
	if err != nil {
		return nil, err
	}
	scope, l, err := c.scoped(ctx, destination)
	if err != nil {
		return nil, err
	}
	destination = scope.destination
	settings, err := c.ensureGroup(ctx, destination, &o)
	if err != nil {
		return nil, err
	}
	x := &Consumer{
		conn: c, scope: scope, destination: destination, destinationID: l.id, options: o, flags: o.flags,
		wake: make(chan struct{}, 1), signal: make(chan struct{}, 1),
		started: make(chan struct{}), gone: make(chan struct{}), began: time.Now(),
		seen: l.generation, revokeGrace: time.Duration(settings.RevokeMs) * time.Millisecond, working: 1,
	}
	if settings.Binding == wire.BindingGather || len(scope.partitions) > 0 {
		for i, n := range l.partitions {
			if !scope.has(n) {
				continue
			}
			x.attachments = append(x.attachments, newAttachment(x, n, l.leaders[i]))
		}
	} else {
		x.bind = newBindLink(x, l)
	}
	x.ctx, x.cancel = context.WithCancel(context.Background())
	c.mu.Lock()
	if c.closing {
		c.mu.Unlock()
		x.cancel()
		return nil, ErrClosed
	}
	c.consumers[x] = struct{}{}
	c.mu.Unlock()
	x.events = newDispatcher(o.events)
	x.wg.Add(1)
	go x.upkeep()

	select {
	case <-x.started:
	case <-ctx.Done():
		err = ctx.Err()
	}
	x.mu.Lock()
	if err == nil {
		err = x.err
	}
	x.mu.Unlock()
	if err != nil {
		x.end()
		return nil, err
	}
	return x, nil
}

// ensureGroup finds the group or creates it, and returns its settings.
func (c *Conn) ensureGroup(ctx context.Context, destination string, o *consumerOptions) (wire.GroupSettings, error) {
	var info GroupInfo
	var err error
	if o.create {
		intent := GroupIntent{Settings: o.settings, Exists: true}
		if o.startSet {
			intent.Start = o.start.groupStart()
		}
		if info, err = c.createGroup(ctx, destination, o.group, intent); err == nil && info.Created {
			err = c.begun(ctx, destination, &info)
		}
	} else {
		err = c.groupAdmin(ctx, wire.GroupDescribe, destination, o.group, nil, &info, true)
	}
	if err != nil {
		return info.Settings, err
	}
	return info.Settings.WithDefaults(), nil
}

// groupStart is the query as the place where a group begins.
func (q OffsetQuery) groupStart() wire.GroupStart {
	switch q.kind {
	case wire.OffsetEarliest:
		return wire.GroupStart{To: "earliest"}
	case wire.OffsetLatest:
		return wire.GroupStart{To: "latest"}
	}
	return wire.GroupStart{To: "time", TimeMs: q.time.UnixMilli()}
}

func newSessionID() (id [16]byte) {
	rand.Read(id[:])
	return id
}

// Next returns the next record, and waits for one if need be. Errors: ctx's, after which
// Next may be called again; anything else has ended the Consumer: ErrClosed,
// wire.CodeGroupGone, wire.CodeDestinationGone, or ErrDisconnected without reconnecting.
func (c *Consumer) Next(ctx context.Context) (*Delivery, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		d := c.take(c.now())
		if d != nil || c.err != nil {
			if c.ready.len() > 0 || c.err != nil {
				c.rouse()
			}
			return d, c.err
		}
		c.resume()
		c.waiting++
		c.mu.Unlock()
		var err error
		select {
		case <-c.signal:
		case <-ctx.Done():
			err = ctx.Err()
		}
		c.mu.Lock()
		c.waiting--
		if err != nil {
			return nil, err
		}
	}
}

// rouse wakes one who waits in Next, if somebody does. c.mu is held.
func (c *Consumer) rouse() {
	if c.waiting > 0 {
		poke(c.signal)
	}
}

// now is the time, at half the price of time.Now: its wall clock is as of when the
// Consumer began.
func (c *Consumer) now() time.Time { return c.began.Add(time.Since(c.began)) }

// take hands out the next record that is ready, nil if none is. c.mu is held.
func (c *Consumer) take(now time.Time) *Delivery {
	for c.err == nil && c.ready.len() > 0 {
		d := c.ready.pop()
		if d.state != leaseQueued {
			continue // lost meanwhile
		}
		at := d.at
		if !now.Before(at.valid) {
			at.expire()
			continue
		}
		d.state = leaseRunning
		d.due = now.Add(at.ackWait)
		c.running.insert(d)
		if c.running.n > int(c.working) {
			c.begin()
		}
		if c.look.IsZero() || d.due.Before(c.look) {
			poke(c.wake)
		}
		return d
	}
	return nil
}

// begin tells the brokers that more records are worked on at once than before, ahead of the
// one that makes it so: should the consumer die, as many of those that it was given first
// count as failed. It says the next power of two, and so seldom. c.mu is held.
func (c *Consumer) begin() {
	c.working = 1 << bits.Len32(uint32(c.running.n-1))
	for _, at := range c.attachments {
		at.setCapacity()
	}
}

// Fetch returns up to max records: those that are there, or, if there are none, what
// comes first within the time given. None is no error. With a time of 0 it does not wait.
// Errors: those of Next.
func (c *Consumer) Fetch(ctx context.Context, max int, wait time.Duration) ([]*Delivery, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	list, err := c.takeReady(nil, max)
	if len(list) > 0 || err != nil || wait <= 0 || max < 1 {
		return list, err
	}
	limited, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	first, err := c.Next(limited)
	switch {
	case err != nil && ctx.Err() == nil && errors.Is(err, context.DeadlineExceeded):
		return nil, nil
	case err != nil:
		return nil, err
	}
	return c.takeReady([]*Delivery{first}, max)
}

// takeReady adds records that are there to a list of up to max; if it stays empty, it asks
// for some, and says why there will be none.
func (c *Consumer) takeReady(list []*Delivery, max int) ([]*Delivery, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.now()
	for len(list) < max {
		d := c.take(now)
		if d == nil {
			break
		}
		list = append(list, d)
	}
	if len(list) > 0 {
		return list, nil
	}
	c.resume()
	return nil, c.err
}

// Messages yields records as Next returns them. An error is yielded once and ends the
// loop. When the loop is left, what was sent ahead goes back to the group at once, and
// no more is asked for until somebody calls Next, Fetch or Messages again.
func (c *Consumer) Messages(ctx context.Context) iter.Seq2[*Delivery, error] {
	return func(yield func(*Delivery, error) bool) {
		defer c.pause()
		for {
			d, err := c.Next(ctx)
			if !yield(d, err) || err != nil {
				return
			}
		}
	}
}

// pause gives back what was not handed out.
func (c *Consumer) pause() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil {
		c.askNoMore()
	}
	c.releaseQueued()
}

// askNoMore tells brokers to send nothing. c.mu is held.
func (c *Consumer) askNoMore() {
	if !c.paused {
		c.paused = true
		for _, at := range c.attachments {
			at.setCapacity()
		}
	}
}

// stop ends the consumer, but for what it has handed out. c.mu is held.
func (c *Consumer) stop(err error) {
	c.fail(err)
	c.askNoMore()
	c.releaseQueued()
}

// resume asks for records again. c.mu is held.
func (c *Consumer) resume() {
	if c.paused {
		c.paused = false
		for _, at := range c.attachments {
			at.setCapacity()
		}
	}
}

// setCapacity tells the broker how much it may send ahead; to one that drains the session
// that would say that it stays.
func (at *attachment) setCapacity() {
	if at.session == nil || at.leaving {
		return
	}
	room := at.consumer.room()
	at.session.tell(wire.OpGroupCapacity, at.link, &room)
}

// room is what a broker may send ahead: nothing to one that rests or has ended. c.mu is held.
func (c *Consumer) room() wire.GroupCapacity {
	m := wire.GroupCapacity{Working: c.working}
	if !c.paused && c.err == nil {
		m.Records, m.Refill, m.Bytes = uint32(c.options.prefetch), uint32(c.options.refill), uint32(c.options.bytes)
	}
	return m
}

// releaseQueued gives back everything that was not handed out. c.mu is held.
func (c *Consumer) releaseQueued() {
	for _, at := range c.attachments {
		at.releaseQueued()
	}
}

func (at *attachment) releaseQueued() {
	for _, d := range at.held.List() {
		if d.state == leaseQueued { // else it went with the one before it
			d.conclude(wire.OutcomeReleased, 0, "")
		}
	}
}

// RunOption configures Run.
type RunOption func(*runOptions)

type runOptions struct{ workers int }

// Workers is how many records are handled at once. Default: 1.
func Workers(n int) RunOption { return func(o *runOptions) { o.workers = max(n, 1) } }

// Run calls the handler for each record, until ctx is done or the Consumer ends. A record
// whose handler returns nil is acknowledged, and one whose handler fails is given back
// with the group's backoff, unless the handler has settled it itself. Records of one
// scope are never with two workers. The handler's context ends when the record is wanted
// back, is lost, or ctx is done: then it has to return, and the record is released.
// Run returns when all handlers have. Errors: ctx's, those of Next, or ErrNoFunction.
func (c *Consumer) Run(ctx context.Context, handler func(context.Context, *Delivery) error, opts ...RunOption) error {
	if handler == nil {
		return fmt.Errorf("Run: %w", ErrNoFunction)
	}
	o := runOptions{workers: 1}
	for _, opt := range opts {
		opt(&o)
	}
	errs := make([]error, o.workers)
	var wg sync.WaitGroup
	for i := range o.workers {
		wg.Go(func() { errs[i] = c.work(ctx, handler) })
	}
	wg.Wait()
	c.pause()
	return errs[0]
}

func (c *Consumer) work(ctx context.Context, handler func(context.Context, *Delivery) error) error {
	for {
		d, err := c.Next(ctx)
		if err != nil {
			return err
		}
		c.mu.Lock()
		handling := d.context(ctx)
		c.mu.Unlock()
		err = handler(handling, d)
		switch {
		case err == nil:
			d.Ack()
		case ctx.Err() != nil || errors.Is(context.Cause(handling), errRevoked):
			d.Release()
		default:
			d.Nack()
		}
		d.cancel(nil) // also if the ack is not confirmed yet
	}
}

// --- the end ---

// Close leaves the group: what was not handed out goes back at once, outcomes of what is
// worked on are waited for as long as ctx allows, 5 s if it has no deadline, and what has none
// then goes to others. Messages and Run end with ErrClosed. A second Close waits for the first.
func (c *Consumer) Close(ctx context.Context) error {
	c.mu.Lock()
	if c.closing {
		c.mu.Unlock()
		select {
		case <-c.gone:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	c.closing = true
	c.releaseQueued()
	for d := c.running.first; d != nil && c.flags&wire.AttachLookOnly != 0; d = c.running.first {
		d.conclude(wire.OutcomeReleased, 0, "")
	}
	c.fail(ErrClosed)
	idle := make(chan struct{})
	c.idle = idle
	c.askNoMore()
	c.settled()
	c.mu.Unlock()

	ctx, cancel := c.patience(ctx)
	defer cancel()
	err := c.waitFor(ctx, idle)
	c.mu.Lock()
	for _, at := range c.attachments {
		at.leave()
	}
	if c.bind != nil {
		c.bind.leave()
	}
	c.departed()
	c.mu.Unlock()
	if err == nil {
		err = c.waitFor(ctx, c.gone)
	}
	c.end()
	return err
}

// goneTimeout is how long a Consumer that is closed waits for outcomes and its brokers, if
// its ctx has no deadline.
const goneTimeout = 5 * time.Second

// patience is a ctx for Close: as it was given, or with a deadline if it has none.
func (c *Consumer) patience(ctx context.Context) (context.Context, context.CancelFunc) {
	if _, bounded := ctx.Deadline(); bounded {
		return ctx, func() {}
	}
	return context.WithTimeoutCause(ctx, goneTimeout,
		fmt.Errorf("closing the consumer of %q: %w: outcomes may not have reached the broker; those records are delivered again", c.destination, ErrDeliveryTimeout))
}

func (c *Consumer) waitFor(ctx context.Context, done <-chan struct{}) error {
	if _, _, err := c.conn.peek(); err != nil {
		return err
	}
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		if cause := context.Cause(ctx); errors.Is(cause, ErrDeliveryTimeout) {
			return cause
		}
		return ctx.Err()
	}
}

// leave says that the session is over.
func (at *attachment) leave() {
	switch {
	case at.left:
	case at.session == nil && !at.attached:
		at.depart(ErrClosed)
	default:
		at.leaving = true
		if at.session != nil {
			at.session.tellBehind(at.takeOutcomes, wire.OpGroupLeave, at.link, &wire.GroupLeave{})
		}
	}
}

// settled tells Close when nothing is held any more. c.mu is held.
func (c *Consumer) settled() {
	if c.idle == nil {
		return
	}
	for _, at := range c.attachments {
		if at.held.Len() > 0 {
			return
		}
	}
	close(c.idle)
	c.idle = nil
}

// departed tells Close when all partitions are left. c.mu is held.
func (c *Consumer) departed() {
	if !c.closing {
		return
	}
	for _, at := range c.attachments {
		if !at.left {
			return
		}
	}
	select {
	case <-c.gone:
	default:
		close(c.gone)
	}
}

// end stops the goroutines. What is still held is lost.
func (c *Consumer) end() {
	c.mu.Lock()
	c.fail(ErrClosed)
	c.closing = true
	for _, at := range c.attachments {
		if !at.left {
			at.depart(ErrClosed)
		}
	}
	c.departed()
	c.mu.Unlock()
	c.cancel()
	c.wg.Wait()
	c.events.close()
	c.conn.mu.Lock()
	delete(c.conn.consumers, c)
	c.conn.mu.Unlock()
}

// fail ends the consumer; the first error counts. c.mu is held.
func (c *Consumer) fail(err error) {
	if c.err != nil {
		return // or upkeep, which finds the error of the connection each time, would wake itself for ever
	}
	c.err = err
	c.events.send(ConsumerClosed{Destination: c.destination, Group: c.options.group, Err: err})
	c.begun()
	c.rouse()
	poke(c.wake)
}

// Partitions are those that the consumer has, as far as it knows, in order: none while it
// waits for its part.
func (c *Consumer) Partitions() []uint32 {
	c.mu.Lock()
	defer c.mu.Unlock()
	list := []uint32{}
	for _, at := range c.attachments {
		if !at.leaving && !at.left {
			list = append(list, at.partition)
		}
	}
	slices.Sort(list)
	return list
}

// begun lets Conn.Consumer return. c.mu is held.
func (c *Consumer) begun() {
	select {
	case <-c.started:
	default:
		close(c.started)
	}
}

// joined takes note that a partition has taken the consumer in. c.mu is held.
func (c *Consumer) joined(at *attachment) {
	c.begun()
	c.events.send(Attached{Destination: c.destination, Group: c.options.group, Partition: at.partition})
	poke(c.wake)
}

// readyList holds records that may be handed out, oldest first.
type readyList struct {
	list []*Delivery
	head int
}

func (l *readyList) len() int { return len(l.list) - l.head }

func (l *readyList) push(d *Delivery) {
	if l.head > 0 && len(l.list) == cap(l.list) {
		n := copy(l.list, l.list[l.head:])
		clear(l.list[n:])
		l.list, l.head = l.list[:n], 0
	}
	l.list = append(l.list, d)
}

func (l *readyList) pop() *Delivery {
	d := l.list[l.head]
	l.list[l.head] = nil
	l.head++
	if l.head == len(l.list) {
		l.list, l.head = l.list[:0], 0
	}
	return d
}
