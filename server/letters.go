package server

import (
	"encoding/binary"
	"slices"
	"strconv"
	"sync"

	"github.com/cespare/xxhash/v2"
	"github.com/google/uuid"

	"github.com/lockstepmq/lockstep/log"
	"github.com/lockstepmq/lockstep/partition"
	"github.com/lockstepmq/lockstep/partition/group"
	"github.com/lockstepmq/lockstep/wire"
)

// A dead letter is written exactly once (RULES Q3): the source partition has numbered it
// in its log, and whoever leads that partition writes it, as often as it takes, with that
// number as the sequence of a producer that the log names too. So the partition that it
// goes to drops what came before.

// letter is a dead letter on its way.
type letter struct {
	group.Letter
	group    group.ID
	name     string // of the group
	to       string // destination
	producer int64
	epoch    int16
}

// letters are the dead letters that a replica has to write: one at a time, those of a
// group in the order of their numbers.
type letters struct {
	mu      sync.Mutex
	waiting []letter
	busy    bool
	naming  map[group.ID]bool // groups that get a producer
}

// Letter implements partition.Effects.
func (r groupEffects) Letter(g *group.Group, l group.Letter) {
	if g.Letters.Producer < 0 {
		r.nameProducer(g.ID)
		return // its letters come again when the producer is committed
	}
	q := &r.letters
	q.mu.Lock()
	defer q.mu.Unlock()
	q.waiting = append(q.waiting, letter{
		Letter: l, group: g.ID, name: g.Name, to: g.Settings.DeadLetter, producer: g.Letters.Producer, epoch: g.Letters.Epoch,
	})
	if !q.busy {
		q.busy = true
		r.Blocking(r.writeLetter)
	}
}

// nameProducer gets a producer for the letters of a group, once at a time. What was handed
// out for nothing, because the leadership was lost, nobody uses.
func (r groupEffects) nameProducer(id group.ID) {
	q := &r.letters
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.naming[id] {
		return
	}
	if q.naming == nil {
		q.naming = make(map[group.ID]bool)
	}
	q.naming[id] = true
	go r.broker.producerID(func(producer int64, err error) {
		q.mu.Lock()
		delete(q.naming, id)
		q.mu.Unlock()
		r.part.LetterProducer(id, producer, err)
		r.schedule()
	})
}

// writeLetter writes the letter that is next. It may block.
func (r groupEffects) writeLetter() {
	q := &r.letters
	q.mu.Lock()
	if len(q.waiting) == 0 {
		q.busy = false
		q.mu.Unlock()
		return
	}
	next := 0
	for i := range q.waiting {
		if q.waiting[i].group == q.waiting[next].group && q.waiting[i].Number < q.waiting[next].Number {
			next = i
		}
	}
	l := q.waiting[next]
	q.waiting = slices.Delete(q.waiting, next, next+1)
	q.mu.Unlock()
	written := func(code wire.ErrorCode) {
		var err error
		if code != wire.CodeOK && code != wire.CodeDuplicate { // of which the offset is forgotten
			err = code
			r.logger.Warn("a dead letter is not written; it is tried again", "group", l.name, "offset", l.Offset, "to", l.to, "code", code)
		}
		r.part.LetterWritten(l.group, l.Number, err)
		r.schedule()
		r.Blocking(r.writeLetter)
	}
	request, err := r.encode(&l)
	if err != nil {
		written(wire.CodeOf(err))
		return
	}
	r.broker.produce(request, written)
}

// encode makes the request that writes a letter: the record as it was, and headers that
// say where it comes from and why.
func (r groupEffects) encode(l *letter) (*wire.PeerBatch, error) {
	d, ok := r.broker.View().Destination(l.to)
	if !ok || len(d.Partitions) == 0 {
		return nil, wire.CodeUnknownDestination
	}
	var s log.Scanned
	if err := r.records.Scan(l.Offset, 1, &s); err != nil {
		return nil, err
	}
	if len(s.Batches) == 0 || s.Batches[0].Damaged {
		return nil, wire.CodeCorrupt
	}
	b := &s.Batches[0]
	if b.Compressed {
		return nil, wire.Errorf(wire.CodeUnsupported, "the record is in a compressed batch")
	}
	body := make([]byte, wire.BodyBatchSize(b.IndexBytes, b.BatchBytes))
	for at, n := b.At, 0; n < len(body); {
		got, next, err := r.records.ReadAt(at, body[n:])
		if err == nil && got == 0 {
			err = log.ErrCorrupt
		}
		if err != nil {
			return nil, err
		}
		n, at = n+got, next
	}
	stored, _, err := wire.NextBodyBatch(body)
	if err != nil {
		return nil, err
	}
	info, err := wire.VerifyBatch(stored.Batch)
	if err != nil {
		return nil, err
	}
	var reader wire.RecordReader
	var rec wire.Record
	reader.Reset(&info, wire.Records(stored.Batch))
	for reader.Next(&rec) && rec.Offset != l.Offset {
	}
	if rec.Offset != l.Offset {
		return nil, wire.CodeCorrupt
	}
	var hash uint64
	if rec.Key != nil {
		hash = xxhash.Sum64(rec.Key)
	}
	var builder wire.BatchBuilder
	builder.Reset(true)
	if !builder.Append(rec.TimestampMs, rec.Attributes, rec.Key, rec.Value, append(rec.AppendHeaders(nil), r.origin(l)...), hash) {
		return nil, wire.CodeTooLarge
	}
	number := binary.LittleEndian.Uint64(r.identity.ID[:])
	m := &wire.PeerBatch{Destination: d.ID, Partition: uint32(number % uint64(len(d.Partitions)))}
	m.Batch, m.Index = builder.Finish(wire.ProducerIdentity{ID: l.producer, Epoch: l.epoch, Sequence: int32(l.Number & (1<<31 - 1))}, b.Publisher, wire.CodecNone, nil)
	return m, nil
}

// origin are the headers of a letter.
func (r groupEffects) origin(l *letter) []wire.RecordHeader {
	reason := "delivery limit"
	if l.Reason == 2 {
		reason = "rejected"
	}
	text := func(key, value string) wire.RecordHeader {
		return wire.RecordHeader{Key: "lockstep-dead-letter-" + key, Value: []byte(value)}
	}
	return []wire.RecordHeader{
		text("origin", r.name), text("offset", strconv.FormatUint(uint64(l.Offset), 10)), text("group", l.name), text("reason", reason), text("text", l.Text),
		text("deliveries", strconv.Itoa(int(l.Deliveries))), text("attempts", strconv.Itoa(int(l.Attempts))),
	}
}

// produce appends a batch to a partition, wherever it is led. then is called once, on any
// goroutine.
func (b *broker) produce(m *wire.PeerBatch, then func(wire.ErrorCode)) {
	to, err := b.Route(m.Destination, m.Partition)
	switch {
	case err != nil:
		then(wire.CodeOf(err))
	case to.local != nil:
		b.produceHere(m, then)
	case to.node == 0:
		then(wire.CodeNotLeader)
	default:
		b.network.Request(to.node, wire.PeerProduce, m.Append(nil), func(code wire.ErrorCode, _ []byte) { then(code) })
	}
}

// produceHere appends a batch to a partition that this node leads.
func (b *broker) produceHere(m *wire.PeerBatch, then func(wire.ErrorCode)) {
	d, ok := b.View().DestinationByID(m.Destination)
	if !ok || m.Partition >= uint32(len(d.Partitions)) {
		then(wire.CodeDestinationGone)
		return
	}
	r := b.local(uuid.UUID(m.Destination), m.Partition)
	if r == nil {
		then(wire.CodeNotLeader)
		return
	}
	var t handle
	t.bind(b.View(), d, route{local: r}, 0)
	info, err := wire.ValidateBatch(m.Batch, m.Index, t.limits)
	if err == nil {
		err = r.Append(partition.Append{Batch: m.Batch, Index: m.Index, Info: info, Acks: wire.AcksQuorum, Receiver: produced(then)})
	}
	if err != nil {
		then(errorBody(err).Code)
		return
	}
	r.Kick(false)
}

// produced hears the receipt of a batch.
type produced func(wire.ErrorCode)

// Appended implements partition.Receiver.
func (p produced) Appended(_ uint64, _ wire.Receipt, code wire.ErrorCode) { p(code) }
