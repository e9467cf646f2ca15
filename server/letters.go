package server

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cespare/xxhash/v2"
	"github.com/google/uuid"

	"github.com/lockstepmq/lockstep/cluster"
	"github.com/lockstepmq/lockstep/log"
	"github.com/lockstepmq/lockstep/partition"
	"github.com/lockstepmq/lockstep/partition/group"
	"github.com/lockstepmq/lockstep/wire"
)

// A dead letter is written exactly once (RULES Q3). The log of the source partition names a
// producer and the order in which it may send which letters, and whoever leads that partition
// sends them, as often as it takes: so the partition that they go to drops what came before.
// Before letters are written in another way, because they go elsewhere now or one of them
// cannot be written, the producer's last epoch is ended by a fence where it wrote; the answer
// says what of it is there, and nothing of it will be from then on.

// letters are the rounds of writing dead letters of a replica: those of one group never run
// beside each other.
type letters struct {
	mu      sync.Mutex
	running int
	waiting []*partition.LetterRound // no more than one of each group
	told    map[group.ID]int64       // when, of at most maxLettersTold
}

const (
	// maxLetterRounds bounds the rounds of one partition that run at the same time, and the
	// records that they hold.
	maxLetterRounds = 8
	// letterNews is how often the log says that letters of a group are not written, in
	// milliseconds.
	letterNews = 60_000
	// maxLettersTold is of how many groups of a partition that is remembered. Beyond it the log
	// says it again of some.
	maxLettersTold = 1000
	// letterFlight bounds the bytes of the letters of a round that are on their way at the same
	// time; one always may be.
	letterFlight = 1 << 20
	// maxLetterFlight is how many letters of all rounds of a node are on their way at the same
	// time, but for one of each round: requests to another node are limited (peerCallLimit).
	maxLetterFlight = 256
	// letterFence bounds the wait for a fence in the way of letters.
	letterFence = 5 * time.Second
	// The producer of letters writes under the first epoch, until the next one begins.
	letterEpoch, letterEnd = 0, 1
)

// Letters implements partition.Effects.
func (r groupEffects) Letters(round *partition.LetterRound) {
	q := &r.letters
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.running == maxLetterRounds {
		q.waiting = append(q.waiting, round)
		return
	}
	q.running++
	r.begin(round)
}

// begin runs a round, off the owner's turn.
func (r groupEffects) begin(round *partition.LetterRound) {
	l := &letterRound{groupEffects: r, LetterRound: round}
	r.Blocking(l.run)
}

// letterRound is a round that runs. One goroutine at a time has it.
type letterRound struct {
	groupEffects
	*partition.LetterRound
	result partition.LetterResult
	source letterReader
	next   int  // in Sent
	looked bool // at Fresh
}

// run begins or goes on. It may block for the disk.
func (l *letterRound) run() {
	if l.next == 0 {
		d, to, err := l.target()
		switch {
		case err != nil:
			l.end(err)
			return
		case l.Renew || l.Path.Producer < 0 || d != l.Path.Destination || to != l.Path.Partition:
			l.leave(func(next uint32) { l.enter(next, d, to) })
			return
		}
	}
	if l.next < len(l.Sent) {
		l.send()
		return
	}
	l.look()
	l.end(nil)
}

// look finds out which fresh letters can be sent.
func (l *letterRound) look() {
	for i := range l.Fresh {
		if _, err := l.encode(&l.Fresh[i], wire.ProducerIdentity{ID: wire.NoProducerID}); err != nil {
			l.refuse(&l.Fresh[i], err)
		} else {
			l.result.Ready = append(l.result.Ready, l.Fresh[i].Number)
		}
	}
	l.looked = true
}

// target is where letters go: to one partition for each partition that they come from, or back.
func (l *letterRound) target() (d uuid.UUID, number uint32, err error) {
	v := l.broker.View()
	to, ok := v.Destination(l.To)
	switch {
	case !ok || len(to.Partitions) == 0:
		return d, 0, wire.Errorf(wire.CodeUnknownDestination, "destination %q not found", l.To)
	case l.Back && l.Number >= uint32(len(to.Partitions)):
		return d, 0, wire.Errorf(wire.CodeUnknownPartition, "destination %q has no partition %d", l.To, l.Number)
	}
	if v.Level < cluster.LevelFences && len(v.Nodes) > 1 {
		return d, 0, wire.Errorf(wire.CodeUnavailable, "a node runs a build that knows no fences; upgrade it first")
	}
	if l.Back {
		return to.ID, l.Number, nil
	}
	return to.ID, uint32(binary.LittleEndian.Uint64(l.identity.ID[:]) % uint64(len(to.Partitions))), nil
}

// leave ends the epoch of the producer that letters were written by, and calls then with its
// next sequence. If there is none, or its destination is deleted with all that it held, none
// of what was sent is there.
func (l *letterRound) leave(then func(next uint32)) {
	p := &l.Path
	v := l.broker.View()
	_, there := v.DestinationByID(p.Destination)
	switch {
	case p.Producer < 0 || l.broker.unclosed.Load():
		then(p.Sequence)
		return
	case !there && v.Epoch >= p.Metadata:
		then(p.Sequence)
		return
	case !there:
		l.end(wire.Errorf(wire.CodeUnavailable, "this node has not heard yet where dead letters of %q went", l.Name))
		return
	}
	m := &wire.PeerFencing{Destination: p.Destination, Partition: p.Partition, Epoch: letterEnd, ProducerID: p.Producer}
	l.fence(m, func(code wire.ErrorCode, answer []byte) {
		if code != wire.CodeOK || len(answer) != 4 {
			l.end(wire.Errorf(cmp.Or(code, wire.CodeUnavailable), "what was written before is not known yet"))
			return
		}
		then(binary.LittleEndian.Uint32(answer))
	})
}

// enter begins a producer in a partition. Of the one before, next is the next sequence.
func (l *letterRound) enter(next uint32, d uuid.UUID, number uint32) {
	at := l.broker.View().Epoch
	l.broker.producerID(func(id int64, err error) {
		if err != nil {
			l.end(err)
			return
		}
		p := group.Path{Producer: wire.LetterProducers | id, Destination: d, Partition: number, Metadata: at}
		m := &wire.PeerFencing{Destination: d, Partition: number, Epoch: letterEpoch, ProducerID: p.Producer}
		l.fence(m, func(code wire.ErrorCode, _ []byte) {
			if code != wire.CodeOK {
				l.end(wire.Errorf(code, "dead letters to %q", l.To))
				return
			}
			l.result.Path, l.result.Next = &p, next
			l.end(nil)
		})
	})
}

// fence commits a fence and calls then once, at the latest after letterFence.
func (l *letterRound) fence(m *wire.PeerFencing, then func(code wire.ErrorCode, answer []byte)) {
	type fenced struct {
		code   wire.ErrorCode
		answer []byte
	}
	inTime(time.Now().Add(letterFence), fenced{code: wire.CodeTimeout}, func(answer func(fenced)) {
		l.broker.fenceAt(m, 0, func(code wire.ErrorCode, body []byte) { answer(fenced{code, body}) })
	}, func(f fenced) { then(f.code, f.answer) })
}

// send sends letters, none waiting for the answer to the one before: the partition takes them in
// their sequence only, so none is there without those before it.
func (l *letterRound) send() {
	var flight []*wire.PeerBatch
	for bytes := 0; l.next+len(flight) < len(l.Sent) && bytes < letterFlight; {
		n := l.next + len(flight)
		sequence := int32((l.Path.Sequence + uint32(n)) & (1<<31 - 1))
		m, err := l.encode(&l.Sent[n], wire.ProducerIdentity{ID: l.Path.Producer, Epoch: letterEpoch, Sequence: sequence})
		if err != nil {
			if len(flight) > 0 {
				break // its turn comes when those before it are there
			}
			l.failed(&l.Sent[n], err)
			return
		}
		if l.broker.letterFlight.Add(1) > maxLetterFlight && len(flight) > 0 {
			l.broker.letterFlight.Add(-1)
			break
		}
		flight = append(flight, m)
		bytes += len(m.Batch)
	}
	codes := make([]wire.ErrorCode, len(flight))
	var open atomic.Int32
	open.Store(int32(len(flight)) + 1)
	over := func() {
		if open.Add(-1) == 0 {
			l.broker.letterFlight.Add(-int64(len(codes)))
			l.sent(codes)
		}
	}
	last := l.next+len(flight) == len(l.Sent)
	for i, m := range flight {
		l.broker.produce(m, func(code wire.ErrorCode) {
			if l.broker.deaf.Load() {
				code = wire.CodeUnavailable
			}
			codes[i] = code
			over()
		})
	}
	if last { // while these are on their way
		l.look()
	}
	over()
}

// sent takes in what became of the letters that were on their way. The first that is not there
// says why the others are not.
func (l *letterRound) sent(codes []wire.ErrorCode) {
	for _, code := range codes {
		x := &l.Sent[l.next]
		if code != wire.CodeOK && code != wire.CodeDuplicate { // of which the offset is forgotten
			l.failed(x, wire.Errorf(code, "dead letters to %q", l.To))
			return
		}
		l.next++
		l.part.LetterWritten(l.LetterRound, x.Number)
	}
	if l.looked {
		l.end(nil)
		return
	}
	l.schedule()
	l.Blocking(l.run)
}

// failed ends the round at a letter that is not there.
func (l *letterRound) failed(x *group.Letter, err error) {
	l.result.Ready = nil // what is noted behind it waits with it
	switch code := wire.CodeOf(err); {
	case itsOwn(code):
		l.refuse(x, err)
		l.result.Renew = true
		l.end(nil)
	case code == wire.CodeUnknownProducer || code == wire.CodeOutOfSequence || code == wire.CodeFenced:
		l.result.Renew = true
		l.end(nil)
	default:
		l.end(err)
	}
}

// itsOwn reports whether a letter could not be written for what it is: others may.
func itsOwn(code wire.ErrorCode) bool {
	return code == wire.CodeTooLarge || code == wire.CodeCorrupt || code == wire.CodeErased
}

func (l *letterRound) refuse(x *group.Letter, err error) {
	if l.result.Refused == nil {
		l.result.Refused = make(map[uint64]error)
	}
	l.result.Refused[x.Number] = err
	l.tell(err, "offset", x.Offset)
}

// end ends the round, with why nothing can be written, and begins one that waits.
func (l *letterRound) end(err error) {
	if l.result.Err = err; err != nil {
		l.tell(err)
	}
	l.part.LettersDone(l.LetterRound, l.result)
	l.schedule()
	q := &l.letters
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.waiting) == 0 {
		q.running--
		return
	}
	next := q.waiting[0]
	q.waiting = append(q.waiting[:0], q.waiting[1:]...)
	l.begin(next)
}

// tell has the log say now and then that letters are not written.
func (l *letterRound) tell(err error, more ...any) {
	q := &l.letters
	q.mu.Lock()
	defer q.mu.Unlock()
	now := monotonic() / int64(time.Millisecond)
	if last, told := q.told[l.Group]; told && now-last < letterNews {
		return
	}
	if q.told == nil || len(q.told) >= maxLettersTold { // groups come and go, and get new IDs
		q.told = make(map[group.ID]int64)
	}
	q.told[l.Group] = now
	l.logger.Warn("dead letters are not written; they are tried again, and explain says why", append([]any{"group", l.Name, "to", l.To, "err", err}, more...)...)
}

// encode makes the request that writes a letter: the record as it was, and headers that
// say where it comes from and why.
func (l *letterRound) encode(x *group.Letter, producer wire.ProducerIdentity) (*wire.PeerBatch, error) {
	d, ok := l.broker.View().Destination(l.To)
	if !ok || l.Path.Destination != d.ID {
		return nil, wire.Errorf(wire.CodeUnknownDestination, "destination %q not found", l.To)
	}
	rec, publisher, err := l.source.read(l.partitionReplica, x.Offset, l.Repaired[x.Offset])
	if err != nil {
		return nil, err
	}
	var hash uint64
	if rec.Key != nil {
		hash = xxhash.Sum64(rec.Key)
	}
	var builder wire.BatchBuilder
	builder.Reset(true)
	if !builder.Append(rec.TimestampMs, rec.Attributes, rec.Key, rec.Value, l.headers(x, rec.AppendHeaders(nil)), hash) {
		return nil, wire.CodeTooLarge
	}
	m := &wire.PeerBatch{Destination: d.ID, Partition: l.Path.Partition}
	m.Batch, m.Index = builder.Finish(producer, publisher, wire.CodecNone, nil)
	_, err = wire.ValidateBatch(m.Batch, m.Index, limitsOf(d))
	return m, err
}

// headers are those that a letter is written with. One that goes back has those that its record
// had, and one that says which letter it was.
func (l *letterRound) headers(x *group.Letter, stored []wire.RecordHeader) []wire.RecordHeader {
	if !l.Back {
		return append(stored, l.origin(x)...)
	}
	for i := len(stored) - 1; i >= 0; i-- { // the last one: a letter may have been one before
		if stored[i].Key == wire.LetterOrigin {
			stored = stored[:i]
			break
		}
	}
	at := fmt.Sprintf("%s@%d", l.name, x.Offset)
	return append(stored, wire.RecordHeader{Key: wire.RedrivenHeader, Value: []byte(at)})
}

// origin are the headers of a letter.
func (l *letterRound) origin(x *group.Letter) []wire.RecordHeader {
	text := func(key, value string) wire.RecordHeader {
		return wire.RecordHeader{Key: wire.LetterHeader + key, Value: []byte(value)}
	}
	return []wire.RecordHeader{
		text("origin", l.name), text("offset", strconv.FormatUint(uint64(x.Offset), 10)), text("group", l.Name), text("reason", x.Reason.String()), text("text", x.Text),
		text("number", strconv.FormatUint(x.Number, 10)),
		text("deliveries", strconv.Itoa(int(x.Deliveries))), text("attempts", strconv.Itoa(int(x.Attempts))),
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
	info, err := wire.ValidateBatch(m.Batch, m.Index, limitsOf(d))
	if err != nil {
		then(errorBody(err).Code)
		return
	}
	if err := r.Append(partition.Append{Batch: m.Batch, Index: m.Index, Info: info, Acks: wire.AcksQuorum, Receiver: produced(then)}); err != nil {
		then(errorBody(err).Code)
		return
	}
	r.Kick(false)
}

// nextOf looks in the log for the next sequence of a producer of letters that the partition
// has forgotten: one past the highest that is there, 0 if none is. It may block.
func (r *partitionReplica) nextOf(producer int64) (next uint32, err error) {
	var s log.Scanned
	var body []byte
	for o := r.StartOffset(); ; {
		if err := r.records.Scan(o, partition.ScanRecords, &s); err != nil || len(s.Batches) == 0 {
			return next, err
		}
		for i := range s.Batches {
			b := &s.Batches[i]
			if o = b.Next(); b.Damaged || b.Erased || b.Compressed || b.Count != 1 { // letters are none of it
				continue
			}
			stored, err := r.readBatch(b, &body)
			if err != nil {
				return 0, err
			}
			if info, err := wire.ParseBatch(stored.Batch); err == nil && info.ProducerID == producer {
				next = uint32(info.BaseSequence+1) & (1<<31 - 1)
			}
		}
	}
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
