package client

import (
	"context"
	"fmt"
	"time"

	"github.com/cespare/xxhash/v2"

	"github.com/lockstepmq/lockstep/wire"
)

// slotShift leaves the top 14 bits of a hash: one of wire.SlotCount key slots.
const slotShift = 64 - 14

// PartitionOf is the partition of a destination that records with a key go to, and those
// of a publisher of that name.
func (c *Conn) PartitionOf(ctx context.Context, destination string, key []byte) (uint32, error) {
	l, err := c.layout(ctx, destination)
	if err != nil {
		return 0, err
	}
	return l.partitions[l.slots[xxhash.Sum64(key)>>slotShift]], nil
}

// route chooses the accumulator for a record and returns the hash of its key.
//
// A fixed partition comes first, then the slot of the producer's publisher, if it has
// one. A record with a key goes where the slot of its
// key lies, so that all records of a key are in one partition, in order. Records
// without a key stick to one partition until their batch is on its way, then
// another is chosen (balance.go): whole batches are spread, not single records. A
// partition that does not take records at the moment is passed over if another one
// does.
//
// The caller holds p.mu.
func (p *Producer) route(r *Record, charge int64) (a *accumulator, keyHash uint64, keyed bool) {
	if r.Key != nil {
		keyHash = xxhash.Sum64(r.Key)
	}
	switch {
	case p.options.fixed:
		return p.lanes[p.fixedLane], keyHash, false
	case r.Key != nil, p.publisher != 0:
		return p.lanes[p.layout.slots[p.slot(keyHash)]], keyHash, true
	}
	a = p.lanes[p.sticky]
	if (p.stuck && !a.hasRoom(charge) || a.stalled()) && p.options.affinity != PerProducer {
		p.sticky = p.choose()
		a = p.lanes[p.sticky]
	}
	p.stuck = true
	if !p.choices.equal {
		a.share += 1 / float64(p.layout.weights[p.sticky])
	}
	return a, 0, false
}

// slot is where a record whose key has this hash lies.
func (p *Producer) slot(keyHash uint64) uint16 {
	if p.publisher != 0 {
		keyHash = p.publisher
	}
	return uint16(keyHash >> slotShift)
}

// publisherHash is what the record index says about a publisher: 0 means none.
func publisherHash(name string) uint64 {
	if name == "" {
		return 0
	}
	return max(xxhash.Sum64String(name), 1)
}

// sign is the record with the header that names the publisher, as a view that is valid
// until the next call. The caller holds p.mu.
func (p *Producer) sign(r *Record) *Record {
	p.signed = *r
	p.headers = p.headers[:0]
	for _, h := range r.Headers {
		if h.Key != wire.PublisherHeader { // of a record that somebody else published and this one passes on
			p.headers = append(p.headers, h)
		}
	}
	p.headers = append(p.headers, Header{Key: wire.PublisherHeader, Value: p.name})
	p.signed.Headers = p.headers
	return &p.signed
}

// reader walks the records of a batch that no writer has.
func (b *batch) reader() wire.RecordReader {
	raw, _ := b.builder.Finish(wire.ProducerIdentity{ID: wire.NoProducerID}, 0, NoCompression, nil)
	b.finished = false
	info, err := wire.ParseBatch(raw)
	if err != nil {
		panic(fmt.Sprintf("client: partition %d: own batch of %d records: %v", b.lane.partition, b.builder.Count(), err))
	}
	var r wire.RecordReader
	r.Reset(&info, wire.Records(raw))
	return r
}

// misplaced reports whether a layout puts some record of the batch elsewhere.
func (b *batch) misplaced(l *layout) bool {
	if b.lane.producer.publisher != 0 {
		return l.partitions[l.slots[b.slot]] != b.lane.partition
	}
	var rec wire.Record
	for r := b.reader(); r.Next(&rec); {
		if rec.Key != nil && l.partitions[l.slots[xxhash.Sum64(rec.Key)>>slotShift]] != b.lane.partition {
			return true
		}
	}
	return false
}

// place puts the records of a batch that was taken out of its queue where the
// layout wants them now. They keep their promises and their time.
func (p *Producer) place(b *batch) {
	p.bufferedBytes -= b.charge
	p.bufferedRecords -= int64(len(b.promises))
	var rec wire.Record
	i := 0
	for r := b.reader(); r.Next(&rec); i++ {
		moved := Record{
			Key:        rec.Key,
			Value:      rec.Value,
			Headers:    rec.AppendHeaders(nil),
			Timestamp:  time.UnixMilli(rec.TimestampMs),
			Attributes: rec.Attributes,
		}
		charge := wire.EncodedSizeBound(moved.Key, moved.Value, moved.Headers)
		a, keyHash, keyed := p.route(&moved, int64(charge))
		if !a.add(&moved, keyHash, keyed, int64(charge), b.promises[i]) {
			panic(fmt.Sprintf("client: partition %d: record of %d bytes does not fit into a batch any more", a.partition, charge))
		}
		if last := a.queue.at(a.queue.len() - 1); b.started.Before(last.started) {
			last.started = b.started
		}
		a.signal()
	}
	b.recycle()
}
