package segment

import (
	"encoding/binary"
	"errors"
	"fmt"
	iofs "io/fs"
	"math"
	"path"
	"sort"

	"github.com/lockstepmq/lockstep/vfs"
	"github.com/lockstepmq/lockstep/wire"
)

// Erased is a run of frames of one term whose bytes were given back to the disk, headers
// included. What stood before and behind it is kept, so the chain goes on over it.
type Erased struct {
	From, To      int64 // positions: a multiple of the frame alignment
	Before, After Link
}

const (
	// KindErased is the kind of the header that a Scanner makes up for an erased run, and of
	// the one frame that a replica stores which was given such a run, see Passed.
	KindErased wire.Kind = 0
	// MinErased is the least number of bytes that is given back at a time.
	MinErased = 64 << 10
	// MaxErased bounds the runs of one segment that are erased there; beyond it nothing more
	// of it is given back. MaxListed bounds those in its list, with the frames of Passed.
	MaxErased = 8192
	MaxListed = 1 << 20
	// MaxErasedBytes bounds one run, so that a frame header can stand for it.
	MaxErasedBytes = 1 << 30
)

// Records is how many records were in the run.
func (e *Erased) Records() uint64 { return uint64(e.After.Next - e.Before.Next) }

// header stands for the whole run: it continues what stands before the run, and what
// stands behind the run continues it.
func (e *Erased) header() wire.FrameHeader {
	return wire.FrameHeader{
		Kind: KindErased, RecordCount: uint32(e.Records()), Term: e.After.Term, Index: e.After.Index, BaseOffset: e.Before.Next,
		AppendTimeMs: e.After.TimeMs, BodyLength: uint32(e.To - e.From - wire.FrameHeaderSize), BodyCRC: e.After.Chain,
		PrevCRC: e.Before.Chain, HeaderCRC: e.After.Chain,
	}
}

// Passed is the header of the frame that a replica stores in the place of entries that
// another one has erased: the entries behind before, up to the one that leaves after. It
// has no body, and in the field of that one's checksum the chain value that after has.
func Passed(before, after *Link) wire.FrameHeader {
	return wire.FrameHeader{
		Kind: KindErased, RecordCount: uint32(after.Next - before.Next), Term: after.Term, Index: after.Index, BaseOffset: before.Next,
		AppendTimeMs: after.TimeMs, BodyCRC: after.Chain, PrevCRC: before.Chain,
	}
}

// NotePassed enters a frame of Passed, which stands at pos, in the list of erased runs: so
// readers pass over it too. The list gets durable when the segment is sealed; until then
// whoever walks the frames finds it again. Owner only.
func (s *Segment) NotePassed(before Link, h *wire.FrameHeader, pos int64) {
	runs := s.Erased()
	if r := findErased(runs, pos); r != nil && r.From <= pos {
		return
	}
	// What readers have of the list stays as it is: it only gets longer.
	s.SetErased(append(runs, Erased{From: pos, To: pos + h.FrameSize(), Before: before, After: After(h)}))
	s.unlisted.Store(true)
}

// follows reports whether the run may stand where a link ends.
func (e *Erased) follows(l *Link) error {
	if *l != e.Before {
		return fmt.Errorf("%w: an erased run behind entry %d, chain %08x, where entry %d ends with %08x", ErrChain, e.Before.Index, e.Before.Chain, l.Index, l.Chain)
	}
	return nil
}

// ErasedError is what reading inside an erased run returns: the records in [Base, Next)
// are gone. They are none if the two are equal.
type ErasedError struct{ Base, Next wire.Offset }

func (e *ErasedError) Error() string {
	return fmt.Sprintf("records at offsets %d to %d were acknowledged and erased", e.Base, e.Next-1)
}

// findErased returns the run that holds a position, or else the first behind it; nil if
// there is none.
func findErased(runs []Erased, pos int64) *Erased {
	i := sort.Search(len(runs), func(i int) bool { return runs[i].To > pos })
	if i == len(runs) {
		return nil
	}
	return &runs[i]
}

// Erased are the erased runs, by position; what it returns does not change. Any goroutine:
// who holds a reference and looks after that never reads a run that is not in the list and
// given back meanwhile, see Punch.
func (s *Segment) Erased() []Erased {
	if list := s.erased.Load(); list != nil {
		return *list
	}
	return nil
}

// SetErased says which runs are erased: those that ErasedFile has durably.
func (s *Segment) SetErased(runs []Erased) {
	n := int64(0)
	for i := range runs {
		n += runs[i].To - runs[i].From
	}
	s.erased.Store(&runs)
	s.erasedBytes.Store(n)
}

// ErasedBytes is the sum of the erased runs. Any goroutine.
func (s *Segment) ErasedBytes() int64 { return s.erasedBytes.Load() }

// Scan returns a Scanner over the file of the segment that passes over erased runs.
func (s *Segment) Scan(f *FileRef, pos, end int64, buffer []byte) *Scanner {
	sc := NewScanner(f.File, pos, end, buffer)
	sc.PassErased(s.Erased())
	return sc
}

// readable passes over erased runs without records at pos, as over stored frames without
// records, and cuts [pos, end) before the next run. At one that held records it is an
// *ErasedError.
func (s *Segment) readable(pos, end int64) (int64, int64, error) {
	runs := s.Erased()
	if len(runs) == 0 {
		return pos, end, nil
	}
	for r := findErased(runs, pos); r != nil && r.From < end; r = findErased(runs, pos) {
		switch {
		case r.From > pos:
			return pos, r.From, nil
		case r.Records() > 0:
			return pos, end, &ErasedError{Base: r.Before.Next, Next: r.After.Next}
		}
		pos = min(r.To, end)
	}
	return pos, end, nil
}

// WriteErased makes a list of runs durable, in the place of the one before, and publishes
// it. Nothing is given back by it, see Punch. It may block; one at a time.
func (s *Segment) WriteErased(runs []Erased) error {
	h := s.Header()
	name := path.Join(s.dir, ErasedName(s.sequence, s.fileID))
	err := WriteFile(s.env.FS, name+TempSuffix, appendErased(nil, &h, runs))
	if err == nil {
		err = s.env.FS.Rename(name+TempSuffix, name)
	}
	if err == nil {
		err = Final(s.env.FS.SyncDir(s.dir))
	}
	if err != nil {
		return fmt.Errorf("segment %s: list of erased runs: %w", s.name, err)
	}
	s.unpunched.Store(true)
	s.unlisted.Store(false)
	s.SetErased(runs)
	return nil
}

// TempSuffix ends the names of files that are being written.
const TempSuffix = ".tmp"

// Punch gives the space of the erased runs back unless somebody holds the segment beside
// the log and the caller: then it is to be called again, see Punched. Who takes a
// reference later looks at the list of runs after that. It may block.
func (s *Segment) Punch() error {
	if s.refs.Load() > 2 {
		return nil
	}
	f, err := s.File()
	if err != nil {
		return err
	}
	defer f.Release()
	if err := PunchErased(f.File, s.name, s.Erased()); err != nil {
		return err
	}
	s.unpunched.Store(false)
	return nil
}

// Punched reports whether all erased runs were given back. Any goroutine.
func (s *Segment) Punched() bool { return !s.unpunched.Load() }

// EraseTried is how many records of the segment were done when somebody last looked for
// what can be erased. Owner only.
func (s *Segment) EraseTried() uint64 { return s.eraseTried }

// SetEraseTried says that somebody looks now. Owner only.
func (s *Segment) SetEraseTried(records uint64) { s.eraseTried = records }

// PunchErased gives the space of runs back. It may be repeated.
func PunchErased(f vfs.File, name string, runs []Erased) error {
	for i := range runs {
		if runs[i].To-runs[i].From == wire.FrameHeaderSize {
			continue // a frame of Passed
		}
		if err := f.PunchHole(runs[i].From, runs[i].To-runs[i].From); err != nil {
			return fmt.Errorf("segment %s: position %d: give %d bytes back: %w", name, runs[i].From, runs[i].To-runs[i].From, err)
		}
	}
	return nil
}

// A list of erased runs lies beside its segment. It is written beside, synced and renamed
// before the bytes of a run that it adds are given back. All integers are little-endian.
//
//	+-----------------------------------------------+
//	| segment header, 128 bytes, magic "LKERASE\n"   |   0
//	+-----------+-----------+-----------------------+
//	| runs      | zero      | runs, 96 bytes each:   | 128
//	+-----------+-----------+-----------------------+
//	| from                  | to                    |   0
//	+-----------------------+-----------------------+
//	| index before          | term before           |  16
//	+-----------------------+-----------------------+
//	| base offset           | append time before    |  32
//	+-----------+-----------+-----------------------+
//	| chain bef.| chain beh.| last index            |  48
//	+-----------+-----------+-----------------------+
//	| term of the run       | next offset           |  64
//	+-----------------------+-----------------------+
//	| append time behind    | zero                  |  80
//	+-----------------------+-----------------------+
//	| CRC32C of all bytes before it, 4 bytes         |
//	+-----------------------------------------------+
//
// The version is that of the segment header; the CRC is last in every version. Nothing
// can make a list again that is lost.
const (
	erasedMagic = "LKERASE\n"
	erasedFixed = HeaderSize + 8
	erasedEntry = 96
)

func appendErased(dst []byte, h *Header, runs []Erased) []byte {
	start := len(dst)
	dst = append(dst, make([]byte, HeaderSize)...)
	h.Encode(dst[start:])
	copy(dst[start:], erasedMagic)
	le := binary.LittleEndian
	dst = le.AppendUint32(dst, uint32(len(runs)))
	dst = le.AppendUint32(dst, 0)
	for i := range runs {
		r := &runs[i]
		for _, v := range [...]uint64{
			uint64(r.From), uint64(r.To), uint64(r.Before.Index), uint64(r.Before.Term), uint64(r.Before.Next), uint64(r.Before.TimeMs),
			uint64(r.Before.Chain) | uint64(r.After.Chain)<<32, uint64(r.After.Index), uint64(r.After.Term), uint64(r.After.Next), uint64(r.After.TimeMs), 0,
		} {
			dst = le.AppendUint64(dst, v)
		}
	}
	return le.AppendUint32(dst, wire.Checksum(dst[start:]))
}

func parseErased(src []byte, h *Header) ([]Erased, error) {
	if len(src) < erasedFixed+4 || string(src[:8]) != erasedMagic {
		return nil, fmt.Errorf("list of erased runs: %w", ErrFormat)
	}
	le := binary.LittleEndian
	if n := len(src) - 4; wire.Checksum(src[:n]) != le.Uint32(src[n:]) {
		return nil, fmt.Errorf("list of erased runs: %w", ErrChecksum)
	}
	var block [HeaderSize]byte
	copy(block[:], src)
	copy(block[:], headerMagic)
	of, err := ParseHeader(block[:])
	if err != nil {
		return nil, fmt.Errorf("list of erased runs: %w", err)
	}
	count := le.Uint32(src[HeaderSize:])
	if of != *h || count > MaxListed || len(src) != erasedFixed+int(count)*erasedEntry+4 {
		return nil, fmt.Errorf("list of erased runs: %d runs in %d bytes, or of another file: %w", count, len(src), ErrFormat)
	}
	runs := make([]Erased, count)
	end, link := int64(HeaderSize), h.Previous
	for i := range runs {
		b := src[erasedFixed+i*erasedEntry:]
		v := func(n int) uint64 { return le.Uint64(b[8*n:]) }
		r := Erased{
			From: int64(v(0)), To: int64(v(1)),
			Before: Link{Index: wire.Index(v(2)), Term: wire.Term(v(3)), Next: wire.Offset(v(4)), TimeMs: int64(v(5)), Chain: uint32(v(6))},
			After:  Link{Index: wire.Index(v(7)), Term: wire.Term(v(8)), Next: wire.Offset(v(9)), TimeMs: int64(v(10)), Chain: uint32(v(6) >> 32)},
		}
		if r.From < end || r.To < r.From+wire.FrameHeaderSize || r.To-r.From > MaxErasedBytes || (r.From|r.To)%wire.FrameAlignment != 0 ||
			r.Before.Index < link.Index || r.After.Index <= r.Before.Index || r.Before.Next < link.Next || r.After.Next < r.Before.Next ||
			r.Records() > math.MaxUint32 || r.After.Term < r.Before.Term || r.Before.Term < link.Term {
			return nil, fmt.Errorf("list of erased runs: run %d of entries %d to %d: %w", i, r.Before.Index+1, r.After.Index, ErrFormat)
		}
		end, link = r.To, r.After
		runs[i] = r
	}
	return runs, nil
}

// ReadErased reads the list of erased runs beside a segment with a header; no file is an
// empty list. What is wrong with it is ErrFormat, ErrChecksum or ErrTooNew. It may block.
func ReadErased(fs vfs.FS, dir string, h *Header) ([]Erased, error) {
	b, err := ReadFile(fs, path.Join(dir, ErasedName(h.Sequence, h.FileID)), erasedFixed+MaxListed*erasedEntry+4)
	if errors.Is(err, iofs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return parseErased(b, h)
}
