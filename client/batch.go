package client

import (
	"context"
	"fmt"
	"time"

	"github.com/lockstepmq/lockstep/wire"
)

// batch is records for one partition that travel, succeed and fail together.
//
// It is filled while it is its accumulator's open batch, stamped with a producer
// identity and a sequence when it is first taken by a session's writer, and
// keeps both as long as the broker may have seen them: that is what makes a
// resend recognisable. Fields are guarded by Producer.mu, except that from take
// to written the writer alone touches builder, data and head.
type batch struct {
	lane     *accumulator
	builder  wire.BatchBuilder
	promises []promise
	callback bool      // some promise is a function
	charge   int64     // bytes counted against the producer's buffer
	started  time.Time // when the first record came
	keyed    bool      // some record was placed by its key
	slot     uint16    // of the first of those
	due      bool      // lingered long enough

	stamped  bool // identity is set, and the broker may have seen it
	identity wire.ProducerIdentity

	writing   bool   // in the hands of a writer
	inFlight  bool   // taken by the writer of session and not settled
	id        uint32 // correlation ID there; guarded by session.mu meanwhile
	session   *session
	finished  bool // builder has finished; sealed says with which identity
	sealed    wire.ProducerIdentity
	data      []byte // the finished batch, a view of builder
	index     []byte // its record index, a view of builder
	request   wire.ProduceRequest
	head      [wire.HeaderSize + wire.ProducePrefixSize]byte
	pieces    [3][]byte
	uncertain bool // an attempt was written, and what became of it is unknown

	// The end of the newest attempt, kept here until written.
	ended     bool
	lostErr   error // the session died
	refusal   error // the broker, or this client, refused it
	untouched bool  // not one byte of it was written
	receipt   wire.Receipt
	lastCause error // of any attempt that failed, for the report of a timeout
	completed bool  // the outcome is known; err and receipt hold it
	abandoned bool  // a session may still have something to tell it: the batch is not used again
	untold    bool  // counted in lane.untold until the functions were called
	err       error
}

// promise is who wants to know about one record: a function or a ticket.
type promise struct {
	call   func(Receipt, error)
	ticket *Ticket
}

// Ticket stands for a record on its way.
type Ticket struct {
	done    chan struct{}
	reused  bool // by Send: done gets a value instead of being closed
	receipt Receipt
	err     error
}

// Done is closed when the outcome is known.
func (t *Ticket) Done() <-chan struct{} { return t.done }

// Wait returns the outcome, or ctx's error if that is done first; the record
// stays on its way then. It may be called again, and concurrently.
func (t *Ticket) Wait(ctx context.Context) (Receipt, error) {
	select {
	case <-t.done:
		return t.receipt, t.err
	default:
	}
	select {
	case <-t.done:
		return t.receipt, t.err
	case <-ctx.Done():
		return Receipt{}, ctx.Err()
	}
}

// newReceipt is the receipt of a batch's first record.
func newReceipt(partition uint32, r *wire.Receipt) Receipt {
	return Receipt{
		Partition:  partition,
		Offset:     uint64(r.BaseOffset),
		Epoch:      r.Epoch,
		Replicas:   int(r.Replicas),
		Synced:     r.Synced,
		Duplicate:  r.Duplicate,
		AppendTime: time.UnixMilli(r.AppendTimeMs),
	}
}

func (t *Ticket) complete(r Receipt, err error) {
	t.receipt, t.err = r, err
	if t.reused {
		t.done <- struct{}{}
	} else {
		close(t.done)
	}
}

// reset makes a batch from the pool ready for its next life. The builder and the
// slices keep their memory.
func (b *batch) reset(indexed bool) {
	*b = batch{builder: b.builder, promises: b.promises[:0]}
	b.builder.Reset(indexed)
}

// recycle puts a batch that nobody refers to any more into the pool.
func (b *batch) recycle() {
	clear(b.promises) // what the functions hold on to is not kept alive
	b.lane, b.session = nil, nil
	batches.Put(b)
}

// size is the number of bytes that the batch counts in the session's limits.
func (b *batch) size() int64 { return int64(len(b.data) + len(b.index)) }

// answerable reports whether the broker answers the batch.
func (b *batch) answerable() bool { return b.request.Acks != AcksNone }

// seal finishes the batch for its identity. Only the writer calls it, between
// take and written.
func (b *batch) seal() {
	if !b.finished {
		p := b.lane.producer
		codec := p.options.codec
		if p.kind == Queue && b.builder.Size() < minQueueCompression {
			codec = NoCompression
		}
		b.data, b.index = b.builder.Finish(b.identity, p.publisher, codec, compressor(codec))
		b.finished, b.sealed = true, b.identity
	}
	if b.sealed != b.identity {
		wire.SetProducer(b.data, b.identity)
		b.sealed = b.identity
	}
	b.request.Index, b.request.Batch = b.index, b.data
}

// frame is the PRODUCE frame in pieces: head, index, batch. The pieces are views.
func (b *batch) frame(id uint32) [][]byte {
	wire.PutHeader(b.head[:], wire.Header{
		Length:  wire.FrameLength(b.request.BodySize()),
		Opcode:  wire.OpProduce,
		Version: wire.OpProduce.Version(),
		ID:      id,
	})
	b.request.AppendPrefix(b.head[:wire.HeaderSize])
	b.pieces = [3][]byte{b.head[:], b.index, b.data}
	return b.pieces[:]
}

// answered implements waiter.
func (b *batch) answered(s *session, body []byte, err error) {
	var receipt wire.Receipt
	if err == nil {
		if parseErr := receipt.Parse(body); parseErr != nil {
			// A broker that cannot write receipts: what it did is unknown.
			err = fmt.Errorf("%w: %w", ErrProtocol, parseErr)
			s.fail(err)
			b.lost(s, &lostError{err})
			return
		}
	}
	p := b.lane.producer
	p.mu.Lock()
	if b.session == s && b.inFlight {
		b.ended, b.receipt, b.refusal = true, receipt, err
		b.settle()
	}
	p.unlockAndFinish()
}

// lost implements waiter.
func (b *batch) lost(s *session, err error) {
	p := b.lane.producer
	p.mu.Lock()
	if b.session == s && b.inFlight {
		b.ended, b.lostErr = true, err
		b.settle()
	}
	p.unlockAndFinish()
}

// written is called by the writer when it lets go of the batch. touched says
// whether any byte of it may have left; err is why not all have, if so.
func (b *batch) written(touched bool, err error) {
	p := b.lane.producer
	p.mu.Lock()
	b.writing = false
	if err != nil {
		b.abandoned = true // the session, which has failed, may be about to tell it so: no other life
	}
	if !b.completed { // else it timed out meanwhile
		if !b.ended && (err != nil || !b.answerable()) {
			b.ended = true
			if err != nil {
				b.lostErr = &lostError{err}
			}
		}
		b.untouched = !touched
		if b.ended {
			b.settle()
		}
	}
	p.unlockAndFinish()
}

// refuse is written for a batch that this client itself does not send.
func (b *batch) refuse(err error) {
	p := b.lane.producer
	p.mu.Lock()
	b.writing = false
	if !b.completed {
		b.ended, b.refusal = true, err
		b.settle()
	}
	p.unlockAndFinish()
}
