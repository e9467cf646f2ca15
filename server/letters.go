package server

import (
	"encoding/binary"
	"errors"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/cespare/xxhash/v2"
	"github.com/google/uuid"

	"github.com/lockstepmq/lockstep/log"
	"github.com/lockstepmq/lockstep/partition"
	"github.com/lockstepmq/lockstep/partition/group"
	"github.com/lockstepmq/lockstep/wire"
	"github.com/lockstepmq/lockstep/wire/inflate"
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
	producer wire.ProducerIdentity
	repaired []byte // the body batch to write instead of what is stored; nil: as it is
}

// letters are the dead letters that a replica has to write: one at a time, those of a
// group in the order of their numbers. Of one group there are no more than the partition
// hands on at once.
type letters struct {
	mu      sync.Mutex
	waiting []letter
	busy    bool
	naming  map[group.ID]bool // groups that get a producer
	told    map[group.ID]int64
}

// letterNews is how often the log says that letters of a group are not written, in
// milliseconds.
const letterNews = 60_000

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
		Letter: l, group: g.ID, name: g.Name, to: g.Settings.DeadLetter,
		producer: wire.ProducerIdentity{ID: g.Letters.Producer, Epoch: g.Letters.Epoch, Sequence: g.Letters.Sequence(l.Number)},
		repaired: g.Substitutes[l.Offset],
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
	written := func(err error) {
		if errors.Is(err, wire.CodeDuplicate) { // of which the offset is forgotten
			err = nil
		}
		if err != nil {
			r.refused(&l, err)
		}
		r.part.LetterWritten(l.group, l.Number, err)
		r.schedule()
		r.Blocking(r.writeLetter)
	}
	request, err := r.encode(&l)
	if err != nil {
		written(err)
		return
	}
	r.broker.produce(request, func(code wire.ErrorCode) {
		if code == wire.CodeOK {
			written(nil)
			return
		}
		written(wire.Errorf(code, "dead letters to %q", l.to))
	})
}

// refused takes the letters of a group that are behind one that was not written out of the
// way: they come again with it. The log says so now and then.
func (r groupEffects) refused(l *letter, err error) {
	q := &r.letters
	q.mu.Lock()
	defer q.mu.Unlock()
	q.waiting = slices.DeleteFunc(q.waiting, func(x letter) bool { return x.group == l.group })
	now := monotonic() / int64(time.Millisecond)
	if last, told := q.told[l.group]; told && now-last < letterNews {
		return
	}
	if q.told == nil {
		q.told = make(map[group.ID]int64)
	}
	q.told[l.group] = now
	r.logger.Warn("dead letters are not written; they are tried again, and explain says why", "group", l.name, "offset", l.Offset, "to", l.to, "err", err)
}

// encode makes the request that writes a letter: the record as it was, and headers that
// say where it comes from and why.
func (r groupEffects) encode(l *letter) (*wire.PeerBatch, error) {
	d, ok := r.broker.View().Destination(l.to)
	if !ok || len(d.Partitions) == 0 {
		return nil, wire.Errorf(wire.CodeUnknownDestination, "destination %q not found", l.to)
	}
	var s log.Scanned
	if err := r.records.Scan(l.Offset, 1, &s); err != nil {
		return nil, err
	}
	if len(s.Batches) == 0 || s.Batches[0].Damaged {
		return nil, wire.CodeCorrupt
	}
	if s.Batches[0].Erased {
		return nil, wire.CodeErased
	}
	b := &s.Batches[0]
	var body []byte
	stored, err := r.readBatch(b, &body)
	if l.repaired != nil {
		stored, _, err = wire.NextBodyBatch(l.repaired)
	}
	if err != nil {
		return nil, err
	}
	info, err := wire.VerifyBatch(stored.Batch)
	if err != nil {
		return nil, err
	}
	var reader wire.RecordReader
	var rec wire.Record
	section := wire.Records(stored.Batch)
	if info.Codec != wire.CodecNone {
		// One at a time in each partition, and no more than wire.MaxUncompressedBytes.
		if section, err = inflate.Records(nil, info.Codec, section); err != nil {
			return nil, err
		}
	}
	reader.Reset(&info, section)
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
	m.Batch, m.Index = builder.Finish(l.producer, b.Publisher, wire.CodecNone, nil)
	return m, nil
}

// origin are the headers of a letter.
func (r groupEffects) origin(l *letter) []wire.RecordHeader {
	text := func(key, value string) wire.RecordHeader {
		return wire.RecordHeader{Key: wire.LetterHeader + key, Value: []byte(value)}
	}
	return []wire.RecordHeader{
		text("origin", r.name), text("offset", strconv.FormatUint(uint64(l.Offset), 10)), text("group", l.name), text("reason", l.Why()), text("text", l.Text),
		text("number", strconv.FormatUint(l.Number, 10)),
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

// produceHere appends a batch to a partition that this node leads. One of a producer that
// begins again is looked for first: the letter may be one that the partition has taken
// before it forgot the producer.
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
	if err != nil {
		then(errorBody(err).Code)
		return
	}
	add := func() {
		if err := r.Append(partition.Append{Batch: m.Batch, Index: m.Index, Info: info, Acks: wire.AcksQuorum, Receiver: produced(then)}); err != nil {
			then(errorBody(err).Code)
			return
		}
		r.Kick(false)
	}
	if info.ProducerEpoch == 0 || info.BaseSequence != 0 || b.unsearched.Load() {
		add()
		return
	}
	m.Batch, m.Index = slices.Clone(m.Batch), slices.Clone(m.Index) // for later
	r.Blocking(func() {
		switch there, err := r.holdsLetter(&info, m.Batch); {
		case err != nil:
			then(errorBody(err).Code)
		case there:
			then(wire.CodeOK)
		default:
			add()
		}
	})
}

// holdsLetter reports whether the partition has a letter already: a record of the same
// producer with the same number. A letter that was consumed and is gone is not found. It
// may block.
func (r *partitionReplica) holdsLetter(info *wire.BatchInfo, batch []byte) (bool, error) {
	number, ok := letterNumber(info, batch)
	if !ok {
		return false, nil
	}
	var s log.Scanned
	var body []byte
	for o := max(r.StartOffset(), 0); ; {
		if err := r.records.Scan(o, partition.ScanRecords, &s); err != nil {
			return false, err
		}
		if len(s.Batches) == 0 {
			return false, nil
		}
		for i := range s.Batches {
			b := &s.Batches[i]
			if o = b.Next(); b.Damaged || b.Erased || b.Compressed || b.Count != 1 { // letters are none of it
				continue
			}
			stored, err := r.readBatch(b, &body)
			if err != nil {
				return false, err
			}
			other, err := wire.ParseBatch(stored.Batch)
			if err != nil || other.ProducerID != info.ProducerID {
				continue
			}
			if n, ok := letterNumber(&other, stored.Batch); ok && n == number {
				return true, nil
			}
		}
	}
}

// letterNumber is the number of the letter that a batch holds.
func letterNumber(info *wire.BatchInfo, batch []byte) (uint64, bool) {
	var reader wire.RecordReader
	var rec wire.Record
	reader.Reset(info, wire.Records(batch))
	if info.Codec != wire.CodecNone || info.RecordCount != 1 || !reader.Next(&rec) {
		return 0, false
	}
	for key, value := range rec.Headers() {
		if string(key) == wire.LetterHeader+"number" {
			n, err := strconv.ParseUint(string(value), 10, 64)
			return n, err == nil
		}
	}
	return 0, false
}

// readBatch reads a batch that Scan has found, into memory that it may grow. It may block.
func (r *partitionReplica) readBatch(b *log.Batch, into *[]byte) (wire.BodyBatch, error) {
	body := slices.Grow((*into)[:0], wire.BodyBatchSize(b.IndexBytes, b.BatchBytes))[:wire.BodyBatchSize(b.IndexBytes, b.BatchBytes)]
	*into = body
	for at, n := b.At, 0; n < len(body); {
		got, next, err := r.records.ReadAt(at, body[n:])
		if err == nil && got == 0 {
			err = log.ErrCorrupt
		}
		if err != nil {
			return wire.BodyBatch{}, err
		}
		n, at = n+got, next
	}
	stored, _, err := wire.NextBodyBatch(body)
	return stored, err
}

// produced hears the receipt of a batch.
type produced func(wire.ErrorCode)

// Appended implements partition.Receiver.
func (p produced) Appended(_ uint64, _ wire.Receipt, code wire.ErrorCode) { p(code) }
