package partition

import (
	"container/list"
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/lockstepmq/lockstep/wire"
)

// Limits of the dedupe table.
const (
	// MaxProducers bounds the producers a partition remembers. The one that has
	// been silent longest goes first.
	MaxProducers = 10_000
	// MaxRuns bounds the runs kept for one producer: how far back a resent
	// batch is recognised with its offset.
	MaxRuns = 64
	// ProducerExpiryMs is after how long without a batch, by append time, a
	// producer is forgotten: seven days.
	ProducerExpiryMs = 7 * 24 * 3600 * 1000
	// MaxLetterProducers bounds the producers of dead letters a partition remembers beside
	// the others, however silent they are: first goes the one that was ended first, then the
	// one that wrote least lately.
	MaxLetterProducers = 10_000
	// MaxRetired bounds the epochs that are kept of forgotten producers with a name.
	// The one that was forgotten first goes first.
	MaxRetired = 10_000
)

// run is a stretch of records of one producer that lie one after the other both
// by sequence and by offset. Batches in between from other producers end it.
type run struct {
	sequence int32
	count    uint32
	offset   wire.Offset
}

// producer is what the partition remembers of one producer ID.
type producer struct {
	id      int64
	epoch   int16
	next    int32 // the sequence its next batch must carry
	lastMs  int64 // append time of its last batch or fence
	runs    []run // oldest first; none if it was fenced and has not sent since
	element *list.Element
	// generation is that of the table when the producer was made or copied: one of
	// an older generation belongs to a snapshot too and must not change.
	generation uint64
}

// find returns the offset of a batch the producer has appended before.
func (p *producer) find(sequence int32, count uint32) (wire.Offset, bool) {
	for i := len(p.runs) - 1; i >= 0; i-- {
		r := p.runs[i]
		distance := uint32(sequence-r.sequence) & sequenceMask
		if distance < r.count && count <= r.count-distance {
			return r.offset + wire.Offset(distance), true
		}
	}
	return 0, false
}

func (p *producer) add(sequence int32, count uint32, offset wire.Offset) {
	p.next = addSequence(sequence, count)
	if n := len(p.runs); n > 0 {
		last := &p.runs[n-1]
		if addSequence(last.sequence, last.count) == sequence &&
			last.offset+wire.Offset(last.count) == offset && last.count+count < 1<<30 {
			last.count += count
			return
		}
		if n == MaxRuns || p.id >= wire.LetterProducers { // whose letters only have to be there
			copy(p.runs, p.runs[1:])
			p.runs = p.runs[:n-1]
		}
	}
	p.runs = append(p.runs, run{sequence: sequence, count: count, offset: offset})
}

// Sequences are non-negative int32 and wrap from 2^31−1 to 0.
const sequenceMask = 1<<31 - 1

func addSequence(s int32, n uint32) int32 { return int32((uint32(s) + n) & sequenceMask) }

// producers is the dedupe table: every idempotent producer that wrote to the
// partition, ordered by when it last did.
//
// A producer that was forgotten must not be taken for one that begins: a resent
// first batch would be stored twice, and one of an old epoch after the new one. IDs
// are handed out in rising order, so an ID below forgotten is one that may have been
// here. Only a name comes back with its ID, and then with an epoch above 0, of which
// retired knows what to compare it with.
type producers struct {
	byID       map[int64]*producer
	lru        *list.List // front is the most silent
	letters    *list.List // the same, of those that write dead letters
	ended      *list.List // of those that did: front is the one that was ended first
	generation uint64     // counts the snapshots
	forgotten  int64      // one past the highest ID that was forgotten
	// retired are those forgotten with an epoch above 0, first the one forgotten
	// first. It grows at its end only: a snapshot may hold a part of it.
	retired []retired
}

// retired is the last epoch of a producer that was forgotten.
type retired struct {
	id    int64
	epoch int16
}

// judge says whether a producer that is not in the table may begin with a batch:
// wire.CodeOK if it has certainly not written here under this epoch.
func (t *producers) judge(info *wire.BatchInfo) wire.ErrorCode {
	if info.ProducerID >= wire.LetterProducers {
		return wire.CodeUnknownProducer // it begins with a fence
	}
	last, known := t.retiredEpoch(info.ProducerID)
	known = known || info.ProducerID < t.forgotten
	switch {
	case known && info.ProducerEpoch < last:
		return wire.CodeFenced
	case info.BaseSequence != 0 || known && info.ProducerEpoch == last:
		return wire.CodeUnknownProducer
	}
	return wire.CodeOK
}

// retiredEpoch is the last epoch of a producer that was forgotten, if that was above 0.
func (t *producers) retiredEpoch(id int64) (epoch int16, known bool) {
	for i := len(t.retired) - 1; i >= 0; i-- {
		if r := &t.retired[i]; r.id == id {
			return r.epoch, true
		}
	}
	return 0, false
}

func newProducers() *producers {
	return &producers{byID: make(map[int64]*producer), lru: list.New(), letters: list.New(), ended: list.New()}
}

// listOf is the list that a producer is in.
func (t *producers) listOf(p *producer) *list.List {
	switch {
	case p.id < wire.LetterProducers:
		return t.lru
	case p.epoch > 0:
		return t.ended
	}
	return t.letters
}

// append records an applied batch. It never refuses: the leader has screened it.
// The producer is the latest before others expire: one that sends is not silent, even
// if the clock has jumped since its last batch.
func (t *producers) append(info *wire.BatchInfo, offset wire.Offset, appendTimeMs int64) {
	p := t.touch(info.ProducerID, info.ProducerEpoch)
	if info.ProducerEpoch != p.epoch {
		p.epoch, p.runs = info.ProducerEpoch, p.runs[:0]
	}
	p.add(info.BaseSequence, uint32(info.RecordCount), offset)
	t.latest(p, appendTimeMs)
}

// touch returns a producer that may change, and makes it if there is none.
func (t *producers) touch(id int64, epoch int16) *producer {
	p := t.byID[id]
	if p == nil {
		p = &producer{id: id, epoch: epoch, generation: t.generation}
		p.element = t.listOf(p).PushBack(p)
		t.byID[id] = p
	}
	if p.generation != t.generation {
		p = t.unshare(p)
	}
	return p
}

// latest makes a producer the one that was here last, and forgets others for it.
func (t *producers) latest(p *producer, appendTimeMs int64) {
	p.lastMs = appendTimeMs
	t.listOf(p).MoveToBack(p.element)
	t.expire(appendTimeMs)
	if t.lru.Len() > MaxProducers {
		t.remove(t.lru.Front().Value.(*producer))
	}
	switch all := t.letters.Len() + t.ended.Len(); {
	case all <= MaxLetterProducers:
	case t.ended.Len() > 0:
		t.remove(t.ended.Front().Value.(*producer))
	default:
		t.remove(t.letters.Front().Value.(*producer))
	}
}

func (t *producers) expire(nowMs int64) {
	for front := t.lru.Front(); front != nil; front = t.lru.Front() {
		p := front.Value.(*producer)
		if nowMs-p.lastMs < ProducerExpiryMs {
			return
		}
		t.remove(p)
	}
}

// unshare puts a copy that may change in the place of a producer of a snapshot.
func (t *producers) unshare(p *producer) *producer {
	c := *p
	c.generation, c.runs = t.generation, slices.Clone(p.runs)
	c.element.Value = &c
	t.byID[c.id] = &c
	return &c
}

// picture is what is saved of a table.
type picture struct {
	producers []*producer // as they are saved
	forgotten int64
	retired   []retired
}

// picture is the table as it is until it changes.
func (t *producers) picture() picture {
	return picture{producers: t.list(), forgotten: t.forgotten, retired: t.retired}
}

func (t *producers) list() []*producer {
	all := make([]*producer, 0, len(t.byID))
	for _, l := range []*list.List{t.lru, t.ended, t.letters} {
		for e := l.Front(); e != nil; e = e.Next() {
			all = append(all, e.Value.(*producer))
		}
	}
	return all
}

// snapshot is a picture that does not change any more.
func (t *producers) snapshot() picture {
	t.generation++
	return t.picture()
}

// remove forgets a producer.
func (t *producers) remove(p *producer) {
	t.listOf(p).Remove(p.element)
	delete(t.byID, p.id)
	if p.id >= wire.LetterProducers {
		return // it never begins again
	}
	t.forgotten = max(t.forgotten, p.id+1)
	if p.epoch > 0 {
		t.retired = append(t.retired, retired{p.id, p.epoch})
		t.retired = t.retired[max(0, len(t.retired)-MaxRetired):]
	}
}

// removeAll forgets every producer.
func (t *producers) removeAll() {
	for _, p := range t.list() {
		t.remove(p)
	}
}

// The table is saved from the most silent producer to the latest, those of dead letters
// behind the others and of them those that have ended first, so that equal states have equal bytes on every replica:
//
//	count u32, then for each producer:
//	id i64, epoch i16, zero u16, next i32, last append time i64, run count u32,
//	then for each run: sequence i32, count u32, offset u64
//
// and behind them, since version 2 of the state:
//
//	forgotten i64, retired count u32, then for each: id i64, epoch i16
func saveProducers(dst []byte, t picture) []byte {
	le := binary.LittleEndian
	dst = le.AppendUint32(dst, uint32(len(t.producers)))
	for _, p := range t.producers {
		dst = le.AppendUint64(dst, uint64(p.id))
		dst = le.AppendUint32(dst, uint32(uint16(p.epoch)))
		dst = le.AppendUint32(dst, uint32(p.next))
		dst = le.AppendUint64(dst, uint64(p.lastMs))
		dst = le.AppendUint32(dst, uint32(len(p.runs)))
		for _, r := range p.runs {
			dst = le.AppendUint32(dst, uint32(r.sequence))
			dst = le.AppendUint32(dst, r.count)
			dst = le.AppendUint64(dst, uint64(r.offset))
		}
	}
	dst = le.AppendUint64(dst, uint64(t.forgotten))
	dst = le.AppendUint32(dst, uint32(len(t.retired)))
	for _, r := range t.retired {
		dst = le.AppendUint64(dst, uint64(r.id))
		dst = le.AppendUint16(dst, uint16(r.epoch))
	}
	return dst
}

const (
	savedProducerSize = 28
	savedRunSize      = 16
	savedRetiredSize  = 10
)

func restoreProducers(src []byte, version byte) (*producers, []byte, error) {
	le := binary.LittleEndian
	if len(src) < 4 {
		return nil, nil, fmt.Errorf("%w: producers: %d bytes", ErrState, len(src))
	}
	count := le.Uint32(src)
	src = src[4:]
	if count > MaxProducers+MaxLetterProducers || uint64(count)*savedProducerSize > uint64(len(src)) {
		return nil, nil, fmt.Errorf("%w: %d producers in %d bytes", ErrState, count, len(src))
	}
	t := newProducers()
	for range count {
		if len(src) < savedProducerSize {
			return nil, nil, fmt.Errorf("%w: producer cut short", ErrState)
		}
		p := &producer{
			id:     int64(le.Uint64(src)),
			epoch:  int16(le.Uint32(src[8:])),
			next:   int32(le.Uint32(src[12:])),
			lastMs: int64(le.Uint64(src[16:])),
		}
		runs := le.Uint32(src[24:])
		src = src[savedProducerSize:]
		if runs > MaxRuns || int(runs)*savedRunSize > len(src) || t.byID[p.id] != nil {
			return nil, nil, fmt.Errorf("%w: producer %d with %d runs", ErrState, p.id, runs)
		}
		for range runs {
			p.runs = append(p.runs, run{
				sequence: int32(le.Uint32(src)),
				count:    le.Uint32(src[4:]),
				offset:   wire.Offset(le.Uint64(src[8:])),
			})
			src = src[savedRunSize:]
		}
		p.element = t.listOf(p).PushBack(p)
		t.byID[p.id] = p
	}
	if t.lru.Len() > MaxProducers || t.letters.Len() > MaxLetterProducers {
		return nil, nil, fmt.Errorf("%w: %d producers, and %d of dead letters", ErrState, t.lru.Len(), t.letters.Len())
	}
	if version < 2 {
		return t, src, nil // it knew nothing of those it had forgotten
	}
	return restoreForgotten(t, src)
}

func restoreForgotten(t *producers, src []byte) (*producers, []byte, error) {
	const header = 8 + 4
	le := binary.LittleEndian
	if len(src) < header {
		return nil, nil, fmt.Errorf("%w: %d bytes about forgotten producers", ErrState, len(src))
	}
	t.forgotten = int64(le.Uint64(src))
	count := le.Uint32(src[8:])
	src = src[header:]
	if count > MaxRetired || int(count)*savedRetiredSize > len(src) {
		return nil, nil, fmt.Errorf("%w: %d forgotten producers in %d bytes", ErrState, count, len(src))
	}
	for range count {
		t.retired = append(t.retired, retired{id: int64(le.Uint64(src)), epoch: int16(le.Uint16(src[8:]))})
		src = src[savedRetiredSize:]
	}
	return t, src, nil
}
