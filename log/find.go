package log

import (
	"encoding/binary"

	"github.com/lockstepmq/lockstep/wire"
)

// findRecords is how many records NextOf describes at a time.
const findRecords = 16 << 10

// NextOf returns the first record in (after, below) with a hash: of its key, or of its
// publisher. Records of which skip is true do not count, nor do those that are damaged. It
// is false if there is none. It looks at the record indexes one after the other, which
// costs 16 bytes of reading for each record in between. Any goroutine; it may block.
func (l *Log) NextOf(hash uint64, publisher bool, after, below wire.Offset, skip func(wire.Offset) bool) (wire.Offset, bool, error) {
	var s Scanned
	for o := max(after+1, l.StartOffset()); o < below; {
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

// find returns the first record of the batch in [from, below) with a hash.
func (b *Batch) find(hash uint64, publisher bool, from, below wire.Offset, skip func(wire.Offset) bool) (wire.Offset, bool) {
	if publisher && b.Publisher != hash || !publisher && len(b.Index) == 0 {
		return 0, false
	}
	for o := max(from, b.Base); o < min(below, b.Next()); o++ {
		if !publisher && binary.LittleEndian.Uint64(b.Index[(o-b.Base)*wire.RecordIndexEntrySize:]) != hash {
			continue
		}
		if !skip(o) {
			return o, true
		}
	}
	return 0, false
}
