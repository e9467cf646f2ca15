package segment

import (
	"encoding/binary"
	"fmt"
	"math"
	"sort"
	"sync/atomic"

	"github.com/lockstepmq/lockstep/wire"
)

const (
	// SparseInterval is the distance of sparse index entries, in bytes: a lookup
	// walks at most so many bytes of headers and one frame.
	SparseInterval = 64 << 10
	// MaxRuns bounds the runs of frames without records that a segment remembers.
	// Beyond it such frames are no longer left out of views: readers get them and
	// skip them.
	MaxRuns = 4096
)

// NoTime is the maximum append time of a segment without frames.
const NoTime = int64(math.MinInt64)

// SparseEntry describes one frame of about every SparseInterval bytes.
type SparseEntry struct {
	Position  int64
	Index     wire.Index
	Offset    wire.Offset // base offset of the frame
	MaxTimeMs int64       // largest append time of the segment's frames before this one, or NoTime
}

// run is a stretch of frames that hold no records: [from, to). The last one
// grows while the segment is written.
type run struct {
	from int64
	to   atomic.Int64
}

// details is what reading a segment needs beyond its summary. Active segments
// always have them; sealed ones load them when they are read.
type details struct {
	sparse *list[SparseEntry]
	runs   *list[run]
}

func newDetails() *details {
	return &details{sparse: newList[SparseEntry](), runs: newList[run]()}
}

func (d *details) addSparse(e SparseEntry) {
	*d.sparse.next() = e
	d.sparse.commit()
}

// addRun adds a frame without records, to the last run if it adjoins it.
func (d *details) addRun(from, to int64) {
	n := d.runs.len()
	if n > 0 {
		if last := d.runs.at(n - 1); last.to.Load() == from {
			last.to.Store(to)
			return
		}
	}
	if n == MaxRuns {
		return
	}
	r := d.runs.next()
	r.from = from
	r.to.Store(to)
	d.runs.commit()
}

// note enters a frame.
func (d *details) note(h *wire.FrameHeader, pos, maxTimeMs int64) {
	n := d.sparse.len()
	if n == 0 || pos-d.sparse.at(n-1).Position >= SparseInterval {
		d.addSparse(SparseEntry{Position: pos, Index: h.Index, Offset: h.BaseOffset, MaxTimeMs: maxTimeMs})
	}
	if h.Kind != wire.KindRecords && h.RecordCount == 0 { // not an erased run with records
		d.addRun(pos, pos+h.FrameSize())
	}
}

// before returns a copy that describes only frames before pos.
func (d *details) before(pos int64) *details {
	c := newDetails()
	for i := 0; i < d.sparse.len() && d.sparse.at(i).Position < pos; i++ {
		c.addSparse(*d.sparse.at(i))
	}
	for i := 0; i < d.runs.len() && d.runs.at(i).from < pos; i++ {
		r := d.runs.at(i)
		c.addRun(r.from, min(r.to.Load(), pos))
	}
	return c
}

// floor returns the last sparse entry for which less is not true, or the first
// frame of the segment.
func (d *details) floor(beyond func(*SparseEntry) bool) (SparseEntry, bool) {
	n := d.sparse.len()
	i := sort.Search(n, func(i int) bool { return beyond(d.sparse.at(i)) })
	if i == 0 {
		return SparseEntry{}, false
	}
	return *d.sparse.at(i - 1), true
}

// firstRun returns the number of the first run that ends behind pos.
func (d *details) firstRun(pos int64) int {
	return sort.Search(d.runs.len(), func(i int) bool { return d.runs.at(i).to.Load() > pos })
}

// TermRun says that entries from Index on have Term, up to the next run.
type TermRun struct {
	From wire.Index
	Term wire.Term
}

// Summary is what a log keeps in memory about a sealed segment.
type Summary struct {
	Header     Header
	End        int64     // position behind the last frame
	Last       Link      // of the last frame
	MaxTimeMs  int64     // largest append time, or NoTime
	RollTimeMs int64     // when the segment was sealed, by the file system's clock; 0 if unknown
	Terms      []TermRun // of the frames in this segment
}

// A sparse index file lies beside a sealed segment and can be made again from
// it. All integers are little-endian.
//
//	+-----------------------------------------------+
//	| segment header, 128 bytes, magic "LKSPARS\n"   |   0
//	+-----------------------+-----------------------+
//	| end position          | last index            | 128
//	+-----------------------+-----------------------+
//	| last term             | next offset           | 144
//	+-----------------------+-----------------------+
//	| last append time (ms) | max append time (ms)  | 160
//	+-----------------------+-----------+-----------+
//	| roll time (ms)        | last chain| entries   | 176
//	+-----------+-----------+-----------+-----------+
//	| runs      | term runs | entries: position,     | 192
//	+-----------+-----------+ index, base offset,    |
//	| max append time before it; 4 x 8 bytes each    | 200
//	+-----------------------------------------------+
//	| runs without records: from, to; 2 x 8 bytes    |
//	+-----------------------------------------------+
//	| term runs: first index, term; 2 x 8 bytes      |
//	+-----------------------------------------------+
//	| CRC32C of all bytes before it, 4 bytes         |
//	+-----------------------------------------------+
//
// The version is that of the segment header; the CRC is last in every version.
const (
	sparseMagic      = "LKSPARS\n"
	sparseFixed      = 200
	sparseEntrySize  = 32
	sparseRunSize    = 16
	sparseMaxEntries = 1 << 24
	// maxSparseBytes bounds the sparse index file that is believed: a hundred times
	// that of the largest segment. A larger one is not read, the segment is.
	maxSparseBytes = 64 << 20
)

// appendSparse encodes a sparse index file.
func appendSparse(dst []byte, s *Summary, d *details) []byte {
	start := len(dst)
	dst = append(dst, make([]byte, HeaderSize)...)
	s.Header.Encode(dst[start:])
	copy(dst[start:], sparseMagic)
	le := binary.LittleEndian
	dst = le.AppendUint64(dst, uint64(s.End))
	dst = le.AppendUint64(dst, uint64(s.Last.Index))
	dst = le.AppendUint64(dst, uint64(s.Last.Term))
	dst = le.AppendUint64(dst, uint64(s.Last.Next))
	dst = le.AppendUint64(dst, uint64(s.Last.TimeMs))
	dst = le.AppendUint64(dst, uint64(s.MaxTimeMs))
	dst = le.AppendUint64(dst, uint64(s.RollTimeMs))
	dst = le.AppendUint32(dst, s.Last.Chain)
	dst = le.AppendUint32(dst, uint32(d.sparse.len()))
	dst = le.AppendUint32(dst, uint32(d.runs.len()))
	dst = le.AppendUint32(dst, uint32(len(s.Terms)))
	for i := range d.sparse.len() {
		e := d.sparse.at(i)
		dst = le.AppendUint64(dst, uint64(e.Position))
		dst = le.AppendUint64(dst, uint64(e.Index))
		dst = le.AppendUint64(dst, uint64(e.Offset))
		dst = le.AppendUint64(dst, uint64(e.MaxTimeMs))
	}
	for i := range d.runs.len() {
		r := d.runs.at(i)
		dst = le.AppendUint64(dst, uint64(r.from))
		dst = le.AppendUint64(dst, uint64(r.to.Load()))
	}
	for _, t := range s.Terms {
		dst = le.AppendUint64(dst, uint64(t.From))
		dst = le.AppendUint64(dst, uint64(t.Term))
	}
	return le.AppendUint32(dst, wire.Checksum(dst[start:]))
}

// parseSparse decodes and verifies a sparse index file.
func parseSparse(src []byte) (*Summary, *details, error) {
	if len(src) < sparseFixed+4 || string(src[:8]) != sparseMagic {
		return nil, nil, fmt.Errorf("sparse index: %w", ErrFormat)
	}
	le := binary.LittleEndian
	if n := len(src) - 4; wire.Checksum(src[:n]) != le.Uint32(src[n:]) {
		return nil, nil, fmt.Errorf("sparse index: %w", ErrChecksum)
	}
	var header [HeaderSize]byte
	copy(header[:], src)
	copy(header[:], headerMagic)
	h, err := ParseHeader(header[:])
	if err != nil {
		return nil, nil, fmt.Errorf("sparse index: %w", err)
	}
	s := &Summary{Header: h}
	s.End = int64(le.Uint64(src[128:]))
	s.Last.Index = wire.Index(le.Uint64(src[136:]))
	s.Last.Term = wire.Term(le.Uint64(src[144:]))
	s.Last.Next = wire.Offset(le.Uint64(src[152:]))
	s.Last.TimeMs = int64(le.Uint64(src[160:]))
	s.MaxTimeMs = int64(le.Uint64(src[168:]))
	s.RollTimeMs = int64(le.Uint64(src[176:]))
	s.Last.Chain = le.Uint32(src[184:])
	entries, runs, terms := le.Uint32(src[188:]), le.Uint32(src[192:]), le.Uint32(src[196:])
	if entries > sparseMaxEntries || runs > MaxRuns || terms > sparseMaxEntries ||
		int64(len(src)) != sparseFixed+4+int64(entries)*sparseEntrySize+int64(runs+terms)*sparseRunSize {
		return nil, nil, fmt.Errorf("sparse index: %d entries, %d runs, %d terms in %d bytes: %w", entries, runs, terms, len(src), ErrFormat)
	}
	d := newDetails()
	src = src[sparseFixed:]
	for range entries {
		d.addSparse(SparseEntry{
			Position:  int64(le.Uint64(src)),
			Index:     wire.Index(le.Uint64(src[8:])),
			Offset:    wire.Offset(le.Uint64(src[16:])),
			MaxTimeMs: int64(le.Uint64(src[24:])),
		})
		src = src[sparseEntrySize:]
	}
	for range runs {
		r := d.runs.next()
		r.from = int64(le.Uint64(src))
		r.to.Store(int64(le.Uint64(src[8:])))
		d.runs.commit()
		src = src[sparseRunSize:]
	}
	for range terms {
		s.Terms = append(s.Terms, TermRun{From: wire.Index(le.Uint64(src)), Term: wire.Term(le.Uint64(src[8:]))})
		src = src[sparseRunSize:]
	}
	if s.End < HeaderSize || s.Last.Index < h.Previous.Index || s.Last.Next < h.Previous.Next {
		return nil, nil, fmt.Errorf("sparse index: end %d, last index %d: %w", s.End, s.Last.Index, ErrFormat)
	}
	return s, d, nil
}
