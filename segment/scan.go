package segment

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/lockstepmq/lockstep/wire"
)

const (
	// scanWindow is how much a Scanner reads at a time, in bytes.
	scanWindow = 256 << 10
	// headerWindow is how much it reads for a header alone, in bytes, where bodies
	// are passed over that are larger than largeFrame. Smaller ones come with the
	// window: a read for each would cost more than the bytes.
	headerWindow = 4 << 10
	largeFrame   = 16 << 10
)

// Scanner walks the frames of a file by pread in large reads. It verifies what
// it is asked to and nothing else. Not for concurrent use.
type Scanner struct {
	r      io.ReaderAt
	pos    int64 // of the frame that Header looks at
	end    int64 // nothing at or beyond is read
	window []byte
	at     int64 // position of window[0]
	ahead  int   // bytes to read at least
	bare   bool  // bodies are passed over
	erased []Erased
	run    *Erased // the last Header stands for it
}

// NewScanner starts at pos and stops at end. A buffer may be passed in for
// reuse (see Buffer).
func NewScanner(r io.ReaderAt, pos, end int64, buffer []byte) *Scanner {
	return &Scanner{r: r, pos: pos, end: end, window: buffer[:0], ahead: scanWindow}
}

// PassBodies makes the Scanner read no large body that nobody asks for. It is for
// walks from header to header.
func (s *Scanner) PassBodies() { s.bare, s.ahead = true, headerWindow }

// PassErased makes Header give one header of KindErased for each of the runs, which
// ascend; Check knows it, Skip moves behind the run. A position inside a run becomes the
// beginning of it.
func (s *Scanner) PassErased(runs []Erased) {
	s.erased = runs
	if r := findErased(runs, s.pos); r != nil && r.From < s.pos {
		s.pos = r.From
	}
}

// Check reports whether what Header has just given may follow a link.
func (s *Scanner) Check(link *Link, h *wire.FrameHeader) error {
	if s.run != nil {
		return s.run.follows(link)
	}
	return link.Check(h)
}

// Buffer gives the buffer back for the next Scanner.
func (s *Scanner) Buffer() []byte { return s.window }

// Position is where Header looks.
func (s *Scanner) Position() int64 { return s.pos }

// MoveTo moves to another position.
func (s *Scanner) MoveTo(pos int64) { s.pos = pos }

// Header reads and verifies the frame header here, without looking at the chain
// or the body. An erased run has one header of KindErased. io.EOF means that no further header fits before the end. Errors of
// package wire say what is wrong with the bytes; others come from the disk.
func (s *Scanner) Header() (wire.FrameHeader, error) {
	s.run = nil
	if len(s.erased) > 0 {
		if r := findErased(s.erased, s.pos); r != nil && r.From == s.pos && r.To <= s.end {
			s.run = r
			return r.header(), nil
		}
	}
	if s.pos+wire.FrameHeaderSize > s.end {
		return wire.FrameHeader{}, io.EOF
	}
	b, err := s.fetch(s.pos, wire.FrameHeaderSize)
	if err != nil {
		return wire.FrameHeader{}, err
	}
	h, err := wire.ParseFrameHeader(b)
	if err != nil {
		return h, err
	}
	if h.FrameSize() > s.end-s.pos {
		return h, fmt.Errorf("%w: %d bytes of body in %d", wire.ErrFrameShort, h.BodyLength, s.end-s.pos-wire.FrameHeaderSize)
	}
	if h.Kind == KindErased && h.BodyLength != 0 {
		return h, fmt.Errorf("%w: kind %d", ErrChain, h.Kind)
	}
	return h, nil
}

// PrevOf returns the index and the chain value of the header here without
// verifying anything. It serves to tell a frame of a newer version that
// continues the log from a stale one; both fields keep their place.
func (s *Scanner) PrevOf() (wire.Index, uint32, error) {
	b, err := s.fetch(s.pos, wire.FrameHeaderSize)
	if err != nil {
		return 0, 0, err
	}
	return wire.Index(binary.LittleEndian.Uint64(b[16:])), binary.LittleEndian.Uint32(b[48:]), nil
}

// Body reads and verifies the body of the frame here, whose header was just
// returned. The slice is valid until the next call. A body that does not match its
// checksum is returned with the error. An erased run has none.
func (s *Scanner) Body(h *wire.FrameHeader) ([]byte, error) {
	if s.run != nil || h.Kind == KindErased {
		return nil, nil
	}
	b, err := s.fetch(s.pos+wire.FrameHeaderSize, int(h.BodyLength))
	if err != nil {
		return nil, err
	}
	if wire.Checksum(b) != h.BodyCRC {
		return b, fmt.Errorf("body: %w", wire.ErrFrameChecksum)
	}
	return b, nil
}

// Skip moves behind the frame here.
func (s *Scanner) Skip(h *wire.FrameHeader) {
	s.pos += h.FrameSize()
	if s.bare && s.run == nil {
		s.ahead = scanWindow
		if h.FrameSize() > largeFrame {
			s.ahead = headerWindow
		}
	}
}

// Find moves forward in steps of the frame alignment to the next bytes that
// parse as a whole frame header, and returns it. io.EOF means there is none.
func (s *Scanner) Find() (wire.FrameHeader, error) {
	for s.pos = (s.pos + wire.FrameAlignment - 1) &^ (wire.FrameAlignment - 1); s.pos+wire.FrameHeaderSize <= s.end; {
		n := min(int64(scanWindow), s.end-s.pos)
		b, err := s.fetch(s.pos, int(n))
		if err != nil {
			return wire.FrameHeader{}, err
		}
		i := 0
		for ; i+wire.FrameHeaderSize <= len(b); i += wire.FrameAlignment {
			if binary.LittleEndian.Uint16(b[i:]) != wire.FrameMagic {
				continue
			}
			if h, err := wire.ParseFrameHeader(b[i:]); err == nil {
				s.pos += int64(i)
				return h, nil
			}
		}
		s.pos += int64(i)
	}
	return wire.FrameHeader{}, io.EOF
}

// fetch returns n bytes at pos from the window, which it moves if necessary. The
// caller has checked that they lie before the end.
func (s *Scanner) fetch(pos int64, n int) ([]byte, error) {
	if pos >= s.at && pos+int64(n) <= s.at+int64(len(s.window)) {
		return s.window[pos-s.at:][:n], nil
	}
	want := int(min(int64(max(n, s.ahead)), s.end-pos))
	if cap(s.window) < want {
		s.window = make([]byte, want)
	}
	s.window = s.window[:want]
	s.at = pos
	got, err := s.r.ReadAt(s.window, pos)
	if got < want {
		s.window = s.window[:max(got, 0)]
	}
	if got < n {
		if err == nil || errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("%w: file ends at %d", wire.ErrFrameShort, pos+int64(got))
		}
		return nil, err
	}
	return s.window[:n], nil
}

// IsDamage tells an error about the bytes of a frame from an error of the disk.
func IsDamage(err error) bool {
	return errors.Is(err, wire.ErrFrameMagic) || errors.Is(err, wire.ErrFrameChecksum) ||
		errors.Is(err, wire.ErrFrameShort) || errors.Is(err, wire.ErrFrameVersion) ||
		errors.Is(err, ErrChain) || errors.Is(err, io.EOF)
}

// At reads n bytes at a position before the end, without moving. The slice is valid until
// the next call.
func (s *Scanner) At(pos int64, n int) ([]byte, error) {
	if pos+int64(n) > s.end {
		return nil, fmt.Errorf("%w: %d bytes at %d, the end is %d", wire.ErrFrameShort, n, pos, s.end)
	}
	return s.fetch(pos, n)
}
