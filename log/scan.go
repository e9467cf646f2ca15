package log

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/lockstepmq/lockstep/segment"
	"github.com/lockstepmq/lockstep/wire"
)

// Batch describes one stored body batch without its records.
type Batch struct {
	At         Position // of the 8-byte header in front of it
	IndexBytes int
	BatchBytes int
	Base       wire.Offset // of its first record
	Count      int
	Publisher  uint64 // hash, 0 for none
	Compressed bool
	// Damaged says that the frame is not to be read: its records are lost, or cannot be
	// told apart. Nothing but Base and Count is known then.
	Damaged bool
	// Erased says that the records were acknowledged and are gone; as above.
	Erased bool
	// Index are the entries of the record index, 16 bytes for each record; empty if there
	// is none that agrees with the batch. A view of Scanned's memory.
	Index []byte
}

// Next is the offset behind the batch.
func (b *Batch) Next() wire.Offset { return b.Base + wire.Offset(b.Count) }

// Scanned is what a Scan has found: batches by ascending offset, one behind the other.
type Scanned struct {
	Batches []Batch
	Bytes   int // of all indexes
}

// MaxScanIndexBytes is where a Scan ends, with the batch that reaches it: more than the
// indexes of 65,536 records.
const MaxScanIndexBytes = 1 << 20

// Scan describes the batches from the one that holds o on: of maxRecords records at most,
// but at least one batch, and none at or above the watermark. It reads the headers and
// record indexes, and not the batches. At the watermark it finds nothing; below the
// start it returns *OutOfRangeError. Damaged frames are part of what it finds. Any
// goroutine; it may block.
func (l *Log) Scan(o wire.Offset, maxRecords int, into *Scanned) error {
	into.Batches, into.Bytes = into.Batches[:0], 0
	w := l.Watermark()
	for o < w.Next && maxRecords > 0 && into.Bytes < MaxScanIndexBytes {
		next, err := l.scanSegment(w, o, maxRecords, into)
		if err != nil {
			if len(into.Batches) > 0 {
				return nil // the next one begins with it
			}
			return err
		}
		maxRecords -= int(min(next-o, wire.Offset(maxRecords))) // an erased run may have more
		o = next
	}
	return nil
}

// scanSegment describes batches of the segment that holds o, and returns where the next
// ones begin.
func (l *Log) scanSegment(w *Watermark, o wire.Offset, maxRecords int, into *Scanned) (next wire.Offset, err error) {
	p, _, err := l.Locate(o)
	var known *DamagedError
	if errors.As(err, &known) {
		d := &known.Damage
		n := min(d.Next, w.Next) - o
		into.Batches = append(into.Batches, Batch{Base: o, Count: int(n), Damaged: true})
		return o + n, nil
	}
	if gone := (*ErasedError)(nil); errors.As(err, &gone) {
		n := min(gone.Next, w.Next) - o
		into.Batches = append(into.Batches, Batch{Base: o, Count: int(n), Erased: true})
		return o + n, nil
	}
	if err != nil {
		return o, err
	}
	s, p, err := l.at(p, w)
	if err != nil {
		return o, err
	}
	if s == nil || !s.Acquire() {
		return o, l.outOfRange(o)
	}
	defer s.Release()
	f, err := s.File()
	if err != nil {
		return o, err
	}
	defer f.Release()
	end := readEnd(s, w)
	sc := s.Scan(f, p.Byte, end, nil)
	sc.PassBodies()
	for stop := o + wire.Offset(maxRecords); sc.Position() < end && o < stop && into.Bytes < MaxScanIndexBytes; {
		h, err := sc.Header()
		if err != nil {
			return o, l.damaged(s, sc.Position(), fmt.Errorf("segment %s: position %d: %w", s.Name(), sc.Position(), err))
		}
		if h.Kind == segment.KindErased && h.NextOffset() > o {
			into.Batches = append(into.Batches, Batch{Base: o, Count: int(h.NextOffset() - o), Erased: true})
			o = h.NextOffset()
		}
		if h.Kind == wire.KindRecords && h.NextOffset() > o {
			if d := l.damage.at(s.Sequence(), sc.Position()); d != nil {
				into.Batches = append(into.Batches, Batch{Base: h.BaseOffset, Count: int(h.RecordCount), Damaged: true})
			} else if err := scanFrame(sc, &h, s.Sequence(), o, into); err != nil {
				return o, err
			}
			o = h.NextOffset()
		}
		sc.Skip(&h)
	}
	return o, nil
}

// errNotBatches says that what a frame holds is not what an entry of records holds.
var errNotBatches = errors.New("the frame's batches do not agree with its header")

// scanFrame describes the batches of a frame that end behind o. One whose bytes contradict
// its header, which is checked, is damaged; an error is the disk's.
func scanFrame(sc *segment.Scanner, h *wire.FrameHeader, sequence uint64, o wire.Offset, into *Scanned) error {
	found, bytes := len(into.Batches), into.Bytes
	pos := sc.Position() + wire.FrameHeaderSize
	end := pos + int64(h.BodyLength)
	base := h.BaseOffset
	var err error
	for pos < end && err == nil {
		var b Batch
		if b, err = scanBatch(sc, Position{Segment: sequence, Byte: pos}, end, base, o); err == nil {
			pos += int64(wire.BodyBatchSize(b.IndexBytes, b.BatchBytes))
			base = b.Next()
			if base > o {
				into.Batches = append(into.Batches, b)
				into.Bytes += len(b.Index)
			}
		}
	}
	if err == nil && base == h.NextOffset() {
		return nil
	}
	var known *wire.Error
	if err != nil && !errors.Is(err, errNotBatches) && !errors.As(err, &known) && !segment.IsDamage(err) {
		return err
	}
	into.Batches, into.Bytes = append(into.Batches[:found], Batch{Base: h.BaseOffset, Count: int(h.RecordCount), Damaged: true}), bytes
	return nil
}

// scanBatch describes the body batch at a position whose first record is base. The index
// is read if the batch ends behind o.
func scanBatch(sc *segment.Scanner, at Position, end int64, base, o wire.Offset) (Batch, error) {
	const lengths = 8
	b := Batch{At: at, Base: base}
	if end-at.Byte < lengths {
		return b, errNotBatches
	}
	head, err := sc.At(at.Byte, lengths)
	if err != nil {
		return b, err
	}
	index, batch := int64(binary.LittleEndian.Uint32(head)), int64(binary.LittleEndian.Uint32(head[4:]))
	if index+batch > end-at.Byte-lengths || batch < wire.BatchHeaderSize {
		return b, errNotBatches
	}
	b.IndexBytes, b.BatchBytes = int(index), int(batch)
	head, err = sc.At(at.Byte+lengths+index, wire.BatchHeaderSize)
	if err != nil {
		return b, err
	}
	info, err := wire.ParseBatchHeader(head, int(batch))
	if err != nil || info.BaseOffset != base {
		return b, errors.Join(errNotBatches, err)
	}
	b.Count = int(info.RecordCount)
	b.Compressed = info.Codec != wire.CodecNone
	if index == 0 || b.Next() <= o {
		return b, nil
	}
	stored, err := sc.At(at.Byte+lengths, int(index))
	if err != nil {
		return b, err
	}
	b.Publisher, b.Index = IndexEntries(stored, b.Count)
	b.Index = append([]byte(nil), b.Index...)
	return b, nil
}

// IndexEntries are the entries of an encoded record index, 16 bytes for each of count
// records, and the hash of the publisher: nothing if the index is damaged or is one of
// another number of records. The entries are a view.
func IndexEntries(stored []byte, count int) (publisher uint64, entries []byte) {
	index, err := wire.ParseRecordIndex(stored)
	if err != nil || index.Len() != count {
		return 0, nil
	}
	return index.PublisherHash, stored[wire.RecordIndexHeaderSize:]
}

// BodyAt is where the body of applied entry i lies, which has bodyBytes bytes. It is false
// if its place is not in memory any more. Owner only.
func (l *Log) BodyAt(i wire.Index, bodyBytes int) (Position, bool) {
	p, ok := l.place(i)
	if !ok || p.seg == nil {
		return Position{}, false
	}
	at := p.position()
	at.Byte += wire.FrameHeaderSize - wire.FrameSize(bodyBytes)
	return at, true
}
