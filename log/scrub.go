package log

import (
	"errors"
	"fmt"
	"io"

	"github.com/lockstepmq/lockstep/segment"
	"github.com/lockstepmq/lockstep/wire"
)

// Verify reads the frame that holds offset o again, from the file, because
// somebody received it damaged. It returns the damage, now known to all readers,
// or nil if the frame is whole here. *CorruptionError means that the log itself is
// damaged there, a header or the chain, and must not be used any more. It may
// block. Any goroutine.
func (l *Log) Verify(o wire.Offset) (*Damage, error) {
	if !l.gate.enter() {
		return nil, ErrClosed
	}
	defer l.gate.leave()
	p, _, err := l.Locate(o)
	var known *DamagedError
	if errors.As(err, &known) {
		return &known.Damage, nil
	}
	if gone := (*ErasedError)(nil); errors.As(err, &gone) {
		return nil, nil // acknowledged since
	}
	w := l.Watermark()
	if err != nil || p == w.Position {
		return nil, err
	}
	s, p, err := l.at(p, w)
	if err != nil || s == nil {
		return nil, err
	}
	if !s.Acquire() {
		return nil, l.outOfRange(o)
	}
	defer s.Release()
	f, err := s.File()
	if err != nil {
		return nil, err
	}
	defer f.Release()
	// The header that this frame's own continues from, so that the damage can be
	// looked at again after a restart.
	link := s.Previous()
	sc := s.Scan(f, segment.HeaderSize, readEnd(s, w), nil)
	for {
		h, err := sc.Header()
		if err == nil {
			err = sc.Check(&link, &h)
		}
		if err != nil {
			return nil, l.damaged(s, sc.Position(), err)
		}
		if h.Kind == segment.KindErased && sc.Position()+h.FrameSize() > p.Byte {
			return nil, nil
		}
		if sc.Position() < p.Byte {
			link = segment.After(&h)
			sc.Skip(&h)
			continue
		}
		if err := l.verifyBody(s, sc, link, &h); err != nil {
			return nil, err
		}
		return l.damage.at(s.Sequence(), p.Byte), nil
	}
}

// verifyBody notes a body that is damaged.
func (l *Log) verifyBody(s *segment.Segment, sc *segment.Scanner, link segment.Link, h *wire.FrameHeader) error {
	_, err := sc.Body(h)
	if errors.Is(err, wire.ErrFrameChecksum) {
		return l.noteDamage(frameDamage(s.Sequence(), s.FileID(), sc.Position(), link, h), err)
	}
	return err
}

// Scrub is one pass over what was readable in a log when the pass began: it does not
// change any more, and nothing else would read it again before a consumer does. It is
// for one goroutine, which may block.
type Scrub struct {
	l      *Log
	until  *Watermark
	at     Position
	link   segment.Link // what the frame at at continues
	buffer []byte
}

// NewScrub starts a pass at the first segment. Any goroutine.
func (l *Log) NewScrub() *Scrub { return &Scrub{l: l, until: l.Watermark()} }

// Next verifies about n bytes more, chain and bodies, and says how many it read;
// io.EOF ends the pass. Damaged bodies are noted and the pass goes on.
// *CorruptionError means that the log itself is damaged: a header, the chain, or
// too many bodies. A log that is closed ends the pass.
func (c *Scrub) Next(n int64) (int64, error) {
	l := c.l
	if !l.gate.enter() {
		return 0, io.EOF
	}
	defer l.gate.leave()
	for _, s := range *l.segments.Load() {
		if s.Sequence() > c.until.Position.Segment {
			break
		}
		if end := readEnd(s, c.until); end <= segment.HeaderSize || s.Sequence() < c.at.Segment || s.Sequence() == c.at.Segment && c.at.Byte >= end || !s.Acquire() {
			continue
		}
		read, err := c.scan(s, n)
		s.Release()
		return read, err
	}
	return 0, io.EOF
}

func (c *Scrub) scan(s *segment.Segment, n int64) (int64, error) {
	if s.Sequence() != c.at.Segment {
		c.at, c.link = Position{Segment: s.Sequence(), Byte: segment.HeaderSize}, s.Previous()
	}
	f, err := s.File()
	if err != nil {
		return 0, err
	}
	defer f.Release()
	end := readEnd(s, c.until)
	sc := s.Scan(f, c.at.Byte, end, c.buffer)
	if sc.Position() < c.at.Byte { // what was verified was erased since, and more behind it
		h, err := sc.Header()
		if err != nil {
			return 0, c.failed(s, sc.Position(), c.l.damaged(s, sc.Position(), err))
		}
		c.link = segment.After(&h)
		sc.Skip(&h)
		c.at.Byte = sc.Position()
	}
	defer func() { c.buffer = sc.Buffer() }()
	from := c.at.Byte
	for sc.Position() < end && sc.Position() < from+n {
		h, err := sc.Header()
		if err == nil {
			err = sc.Check(&c.link, &h)
		}
		if err != nil {
			return sc.Position() - from, c.failed(s, sc.Position(), c.l.damaged(s, sc.Position(), err))
		}
		if h.Kind == segment.KindErased {
			from += h.FrameSize() // nothing was read of it
		} else if err := c.l.verifyBody(s, sc, c.link, &h); err != nil {
			return sc.Position() - from, c.failed(s, sc.Position(), err)
		}
		c.link = segment.After(&h)
		sc.Skip(&h)
		c.at.Byte = sc.Position()
	}
	return c.at.Byte - from, nil
}

// failed makes the pass go on in the next segment.
func (c *Scrub) failed(s *segment.Segment, pos int64, err error) error {
	c.at.Byte = readEnd(s, c.until)
	if errors.Is(err, ErrCorrupt) {
		return err
	}
	return fmt.Errorf("segment %s: position %d: %w", s.Name(), pos, err)
}
