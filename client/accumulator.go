package client

import "time"

const (
	// loneGap is how far apart two batches begin whose records nobody could have
	// sent together without making the first wait. It is some times what a write takes.
	loneGap = 50 * time.Microsecond
	// loneBatches is how many batches in a row must have held a single record until
	// the next is expected to.
	loneBatches = 2
)

// accumulator gathers the records of one partition into batches and knows where
// each of them stands.
//
// The queue holds the batches that are not answered yet, oldest first:
//
//	| in flight, stamped | to be sent again, stamped | closed | open |
//	0                    inFlight                                    len
//
// Batches are taken from it by the writer of the session the accumulator is
// attached to, in order and only in order. Once something goes wrong with one of
// them it is draining: nothing more is taken until all that is in flight is
// answered or lost, and then resolve decides what becomes of each (delivery.go).
// All fields are guarded by Producer.mu.
type accumulator struct {
	producer  *Producer
	partition uint32

	leader      leadership
	session     *session  // where batches go; nil: not attached
	handle      uint32    // of the partition in that session
	opening     *session  // OPEN_PARTITION is on its way there
	openAt      time.Time // not before, after a refusal
	askAt       time.Time // when to ask who leads if there is no session with the leader; zero: there is
	away        bool      // the session was lost, and there is no other yet
	since       time.Time // when one was first missed; zero: there is one, or none is needed
	unreachable bool      // that is long ago
	told        bool      // to the Conn's listener
	share       float64   // records without a key that it has had, over its weight
	listed      *session  // registered with that session's writer
	queue       batchQueue
	open        *batch    // takes records: the last of the queue, or nil
	inFlight    int       // batches taken and not settled
	flying      int       // records in them
	taken       time.Time // when the last batch that was taken began
	lone        int       // batches taken one after the other that held one record each
	draining    bool
	paused      bool      // until resumeAt, or until a new layout
	resumeAt    time.Time // zero: the new layout resumes it
	failures    int       // refusals in a row, for the backoff
	stall       error     // the refusal that made it stall; nil once a batch is stored
	announced   bool      // stall was told to the Conn's listener
	untold      int       // batches given up whose callers do not know yet
	cause       error     // why they were given up
	sequence    int32     // of the next record that is stamped
	lingerTime  *time.Timer
}

// batchQueue is a queue of batches that keeps its memory.
type batchQueue struct {
	items []*batch
	head  int
}

func (q *batchQueue) len() int        { return len(q.items) - q.head }
func (q *batchQueue) at(i int) *batch { return q.items[q.head+i] }

func (q *batchQueue) push(b *batch) {
	if q.head > 0 && len(q.items) == cap(q.items) {
		n := copy(q.items, q.items[q.head:])
		clear(q.items[n:])
		q.items, q.head = q.items[:n], 0
	}
	q.items = append(q.items, b)
}

func (q *batchQueue) remove(i int) {
	i += q.head
	copy(q.items[q.head+1:], q.items[q.head:i])
	q.items[q.head] = nil
	q.head++
	if q.head == len(q.items) {
		q.items, q.head = q.items[:0], 0
	}
}

// find returns the place of b, or -1.
func (q *batchQueue) find(b *batch) int {
	for i := range q.len() {
		if q.at(i) == b {
			return i
		}
	}
	return -1
}

// add puts a record into the open batch, or starts one. charge is what the record
// counts in the buffer. It reports false if no batch can hold the record. The
// caller lists the accumulator.
func (a *accumulator) add(r *Record, keyHash uint64, keyed bool, charge int64, pr promise) bool {
	p := a.producer
	b := a.open
	if b != nil && b.builder.Count() > 0 && !a.hasRoom(charge) {
		a.open, b = nil, nil
	}
	if b == nil {
		b = a.start()
	}
	if !b.append(r, keyHash, pr) {
		if b.builder.Count() == 0 {
			return false
		}
		b = a.start()
		if !b.append(r, keyHash, pr) {
			return false
		}
	}
	if keyed && !b.keyed {
		b.keyed, b.slot = true, p.slot(keyHash)
	}
	b.charge += charge
	p.bufferedBytes += charge
	p.bufferedRecords++
	if b.builder.Size() >= p.options.batchBytes {
		a.open = nil
	}
	return true
}

// hasRoom reports whether a batch with records in it is open and takes charge
// bytes more: a record without a key then joins it.
func (a *accumulator) hasRoom(charge int64) bool {
	b := a.open
	return b != nil && b.builder.Count() > 0 && b.builder.Size()+int(charge) <= a.producer.options.batchBytes
}

// start opens a batch. An empty one that is left open is used again.
func (a *accumulator) start() *batch {
	p := a.producer
	if n := a.queue.len(); n > 0 {
		if b := a.queue.at(n - 1); b.builder.Count() == 0 {
			a.open = b
			return b
		}
	}
	b := p.newBatch()
	b.lane = a
	b.started = time.Now()
	a.queue.push(b)
	a.open = b
	if p.options.linger > 0 {
		a.startLinger()
	}
	return b
}

func (b *batch) append(r *Record, keyHash uint64, pr promise) bool {
	timestamp := b.started
	if !r.Timestamp.IsZero() {
		timestamp = r.Timestamp
	}
	if !b.builder.Append(timestamp.UnixMilli(), r.Attributes, r.Key, r.Value, r.Headers, keyHash) {
		return false
	}
	b.promises = append(b.promises, pr)
	b.callback = b.callback || pr.call != nil
	return true
}

// startLinger makes the open batch due after the linger time.
func (a *accumulator) startLinger() {
	if a.lingerTime == nil {
		a.lingerTime = time.AfterFunc(a.producer.options.linger, a.lingered)
	} else {
		a.lingerTime.Reset(a.producer.options.linger)
	}
}

func (a *accumulator) lingered() {
	p := a.producer
	p.mu.Lock()
	if b := a.open; b != nil {
		// The timer may be that of a batch which filled up before its time. Then
		// this one is sent early by what it is younger, which harms nothing.
		b.due = true
		a.signal()
	}
	p.mu.Unlock()
}

// sendable reports whether there is a batch that may be taken now.
func (a *accumulator) sendable() bool {
	p := a.producer
	limit := min(a.queue.len(), p.options.inFlight)
	if a.failures > 0 {
		limit = min(limit, 1) // one batch asks whether the trouble is over
	}
	if a.session == nil || a.draining || a.paused || a.inFlight >= limit {
		return false
	}
	b := a.queue.at(a.inFlight)
	switch {
	case b.builder.Count() == 0:
		return false
	case b.stamped:
		return true
	case p.renew:
		return false // it must not get the old identity
	case b != a.open, b.due, p.flushing > 0, len(p.waiting) > 0:
		return true
	}
	return p.options.linger == 0 && a.follows(b)
}

// follows reports whether the open batch b need not wait for the answers to those in
// flight: there are none, or b holds as many records as they do together, so that what
// is on its way grows as fast as it is brought, or b is not of the same burst.
func (a *accumulator) follows(b *batch) bool {
	return b.builder.Count() >= a.flying || b.started.Sub(a.taken) >= loneGap
}

// lonely reports whether the records of this partition come one by one. Then the
// goroutine that brings one writes it, which is sooner done than waking the
// writer; else the writer does, and takes what came until it was awake.
func (a *accumulator) lonely() bool { return a.lone >= loneBatches }

// signal makes the session's writer take a batch if there is one.
func (a *accumulator) signal() {
	if s := a.list(); s != nil {
		poke(s.wake)
	}
}

// list registers with the session if there is something to write that it does not
// know of. It returns the session that is to write then.
func (a *accumulator) list() *session {
	if a.session == nil || a.listed == a.session || !a.sendable() {
		return nil
	}
	a.listed = a.session
	a.session.enqueue(a)
	return a.session
}

// take hands the next batch to the writer of s, stamped and counted as in
// flight. more says whether the accumulator stays registered: without a batch, that
// the next one has more than largest bytes.
func (a *accumulator) take(s *session, largest int) (b *batch, more bool) {
	p := a.producer
	p.mu.Lock()
	defer p.mu.Unlock()
	if a.session != s {
		return nil, false
	}
	if a.sendable() {
		b = a.queue.at(a.inFlight)
		if b.builder.Size() > largest {
			return nil, true
		}
		if b == a.open {
			a.open = nil
		}
		if !b.stamped {
			a.stamp(b)
		}
		a.taken = b.started
		if a.lone++; b.builder.Count() > 1 {
			a.lone = 0
		}
		a.inFlight++
		a.flying += b.builder.Count()
		b.inFlight, b.writing, b.session, b.id = true, true, s, 0
		b.ended, b.untouched, b.lostErr, b.refusal = false, false, nil, nil
		b.request.Handle, b.request.Acks = a.handle, p.options.acks
		b.request.Keyed, b.request.Slot, b.request.SlotVersion = b.keyed, b.slot, p.layout.slotVersion
	}
	more = a.sendable()
	if !more {
		a.listed = nil
	}
	return b, more
}

// stamp gives a batch its identity and the next sequence.
func (a *accumulator) stamp(b *batch) {
	p := a.producer
	b.stamped = true
	p.stamped++
	b.identity = p.identity
	if p.options.idempotent {
		b.identity.Sequence = a.sequence
		a.sequence = nextSequence(a.sequence, b.builder.Count())
	}
}

// unstamp takes them back from a batch that is in no log. The caller sets
// a.sequence.
func (a *accumulator) unstamp(b *batch) {
	b.stamped = false
	a.producer.stamped--
}

// nextSequence counts records; after 2^31-1 comes 0.
func nextSequence(sequence int32, records int) int32 {
	return int32((int64(sequence) + int64(records)) & (1<<31 - 1))
}

// stalled reports whether records would have to wait here for trouble to pass.
func (a *accumulator) stalled() bool {
	return a.draining || a.paused || a.failures > 0 || a.away || a.unreachable
}

// detach makes the upkeep open the partition again.
func (a *accumulator) detach() {
	a.session, a.listed, a.away = nil, nil, true
	poke(a.producer.wake)
}
