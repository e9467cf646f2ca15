package log

import (
	"encoding/binary"
	"sort"

	"github.com/lockstepmq/lockstep/segment"
	"github.com/lockstepmq/lockstep/wire"
)

// findRecords is how many records NextOf describes at a time.
const findRecords = 16 << 10

// NextOf returns the first record in (after, below) with a hash that is not 0: of its key,
// or of its publisher. Records of which skip is true do not count. One that is damaged counts
// unless a key table says that its hash is another: who passes it over may overtake it. It is
// false if there is none. A segment with a key table costs some reads of 4 KiB, any other 16
// bytes of reading for each record. Any goroutine; it may block.
func (l *Log) NextOf(hash uint64, publisher bool, after, below wire.Offset, skip func(wire.Offset) bool) (wire.Offset, bool, error) {
	var s Scanned
	for o := max(after+1, l.StartOffset()); o < below; {
		if seg, next := l.tableOf(o); seg != nil {
			at, known := l.lookUp(seg, hash, publisher, o, min(below, next), skip)
			seg.Release()
			if known && at < below {
				return at, true, nil
			}
			if known {
				o = next
				continue
			}
		}
		if err := l.Scan(o, int(min(below-o, findRecords)), &s); err != nil {
			return 0, false, err
		}
		if len(s.Batches) == 0 {
			return 0, false, nil // the watermark
		}
		for i := range s.Batches {
			b := &s.Batches[i]
			if at, ok := b.find(hash, publisher, max(o, after+1), below, skip); ok {
				return at, true, nil
			}
			o = max(o, b.Next())
		}
	}
	return 0, false, nil
}

// lookUp returns the first record of a segment in [from, below) with a hash, or noOffset.
// It is false if the segment's key table does not tell.
func (l *Log) lookUp(s *segment.Segment, hash uint64, publisher bool, from, below wire.Offset, skip func(wire.Offset) bool) (at wire.Offset, known bool) {
	at = noOffset
	erased := s.Erased()
	known = l.runsOf(s, hash, publisher, from, func(a, b wire.Offset) bool {
		for o := max(a, from); o < min(b, below); o++ {
			if !skip(o) && !erasedAt(erased, o) {
				at = o
				return false
			}
		}
		return b < below
	})
	return at, known
}

// noOffset is above every offset.
const noOffset = ^wire.Offset(0)

// erasedAt reports whether a record lies in one of the runs, which ascend.
func erasedAt(runs []segment.Erased, o wire.Offset) bool {
	i := sort.Search(len(runs), func(i int) bool { return runs[i].After.Next > o })
	return i < len(runs) && runs[i].Before.Next <= o
}

// find returns the first record of the batch in [from, below) with a hash, or that may have it.
func (b *Batch) find(hash uint64, publisher bool, from, below wire.Offset, skip func(wire.Offset) bool) (wire.Offset, bool) {
	whole := b.Damaged || publisher && b.Publisher == hash
	if !whole && (publisher || len(b.Index) == 0) {
		return 0, false
	}
	for o := max(from, b.Base); o < min(below, b.Next()); o++ {
		if (whole || b.key(o) == hash) && !skip(o) {
			return o, true
		}
	}
	return 0, false
}

// key is the hash of the key of a record in a batch with an index.
func (b *Batch) key(o wire.Offset) uint64 {
	return binary.LittleEndian.Uint64(b.Index[(o-b.Base)*wire.RecordIndexEntrySize:])
}
