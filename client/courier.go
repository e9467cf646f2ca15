package client

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/lockstepmq/lockstep/wire"
)

// newTemporaryProducer is the Producer of a temporary queue. Such a queue has no partition
// that could be opened and no memory of what it has got, so that batches go one after the
// other, each when the one before is answered: their order is kept, and what an answer was
// lost of may come twice.
func (c *Conn) newTemporaryProducer(name string, o producerOptions) (*Producer, error) {
	switch _, err := wire.ParseTemporaryName(name); {
	case err != nil:
		return nil, err
	case o.fixed, o.name != "":
		return nil, errors.New("a temporary queue has no partitions and fences nobody; leave out the options Partition and ProducerName")
	}
	o.idempotent, o.linger, o.codec = false, 0, NoCompression
	o.batchBytes = min(o.batchBytes, wire.DefaultMaxRecordBytes/2) // it holds 4 MiB
	p := c.bareProducer(name, o, &layout{
		destination: name, partitions: []uint32{0}, leaders: make([]leadership, 1), takes: []bool{true}, attended: []bool{true},
		weights: []uint8{1}, slots: make([]uint32, wire.SlotCount), maxRecordBytes: wire.DefaultMaxRecordBytes,
	})
	return p, p.start((*Producer).carry)
}

// carry is the goroutine that sends what is accepted, in the place of upkeep.
func (p *Producer) carry() {
	defer p.wg.Done()
	a := p.lanes[0]
	for {
		p.mu.Lock()
		b := a.load()
		p.mu.Unlock()
		if b == nil {
			select {
			case <-p.wake:
				continue
			case <-p.ctx.Done():
				return
			}
		}
		base, err := p.deliver(b)
		p.mu.Lock()
		a.delivered(b, base, err)
		p.unlockAndFinish()
	}
}

// load takes the oldest batch, nil if there is none.
func (a *accumulator) load() *batch {
	if a.queue.len() == 0 || a.queue.at(0).builder.Count() == 0 {
		return nil
	}
	b := a.queue.at(0)
	if b == a.open {
		a.open = nil
	}
	b.request.Acks = AcksLeader // it has a receipt
	b.inFlight = true
	a.inFlight++
	a.flying += b.builder.Count()
	return b
}

// deliver sends a batch until it is answered for good, as long as the delivery timeout allows.
func (p *Producer) deliver(b *batch) (wire.Offset, error) {
	ctx, cancel := context.WithDeadline(p.ctx, b.started.Add(p.options.deliveryTimeout))
	defer cancel()
	b.data, _ = b.builder.Finish(wire.ProducerIdentity{ID: wire.NoProducerID}, 0, NoCompression, nil)
	request := wire.TemporarySendRequest{Name: p.destination, Batch: b.data}
	for open := false; ; {
		var response wire.TemporarySendResponse
		err := p.conn.do(ctx, wire.OpTempSend, &request, &response, true)
		if open = open || wasOpen(err); err != nil && open {
			err = &openError{err}
		}
		if full(codeOf(err)) && p.options.waitForSpace && p.conn.pause(ctx, retryPause) == nil {
			continue
		}
		if err != nil && ctx.Err() != nil {
			err = fmt.Errorf("%w after %v: %w", ErrDeliveryTimeout, p.options.deliveryTimeout, err)
		}
		return response.Base, err
	}
}

// delivered completes a batch. One that failed takes what waits behind it along, and the
// Producer, if the queue is gone. p.mu is held.
func (a *accumulator) delivered(b *batch, base wire.Offset, err error) {
	p := a.producer
	switch {
	case b.completed: // the Producer has ended meanwhile
	case err == nil:
		a.land(b)
		a.remove(b)
		b.receipt = wire.Receipt{BaseOffset: base, AppendTimeMs: time.Now().UnixMilli()}
		b.complete(nil)
	default:
		if nowhere(err) {
			a.land(b)
		}
		if errors.Is(err, wire.CodeDestinationGone) || errors.Is(err, ErrClosed) {
			p.fail(err)
			return
		}
		a.failFrom(0, err)
	}
}
