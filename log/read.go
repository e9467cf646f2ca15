package log

import (
	"errors"
	"fmt"
	"io"
	"path"
	"sort"

	"github.com/lockstepmq/lockstep/segment"
	"github.com/lockstepmq/lockstep/wire"
)

// The methods here may be called from any goroutine and do not wait for the
// owner. Each loads the watermark first and the list of segments second: the list
// is then at least as new, so it holds the watermark's segment, which is neither
// truncated nor dropped. What lies below the watermark never changes; a segment
// that is dropped meanwhile is either acquired before, and then stays readable, or
// answers with OutOfRangeError.

// outOfRange says what can be read now.
func (l *Log) outOfRange(o wire.Offset) error {
	return &OutOfRangeError{Offset: o, Start: l.StartOffset(), Next: l.Watermark().Next}
}

// readEnd is where the readable bytes of a segment end.
func readEnd(s *segment.Segment, w *Watermark) int64 {
	if s.Sequence() == w.Position.Segment {
		return w.Position.Byte
	}
	return s.End()
}

// at finds the segment of a position and moves a position at the end of a
// segment, or at the start of the log, to the next frame. It is nil if the
// position is the watermark's or behind it.
func (l *Log) at(p Position, w *Watermark) (*segment.Segment, Position, error) {
	if p.Segment > w.Position.Segment || p == w.Position {
		return nil, p, nil
	}
	list := *l.segments.Load()
	i := sort.Search(len(list), func(i int) bool { return list[i].Sequence() >= p.Segment })
	if p == (Position{}) {
		if len(list) == 0 || list[0].Previous().Index > 0 {
			return nil, p, l.outOfRange(0)
		}
		p = Position{Segment: list[0].Sequence(), Byte: segment.HeaderSize}
	}
	for {
		if i == len(list) || list[i].Sequence() != p.Segment {
			return nil, p, l.outOfRange(0)
		}
		s := list[i]
		if p.Byte < readEnd(s, w) {
			return s, p, nil
		}
		if s.Sequence() >= w.Position.Segment {
			return nil, p, nil
		}
		if i++; i < len(list) {
			p = Position{Segment: list[i].Sequence(), Byte: segment.HeaderSize}
		}
	}
}

// Locate returns the position of the frame that holds offset o and that frame's
// base offset; for the watermark's offset the watermark's position. Below the
// logical start and above the watermark it returns *OutOfRangeError, in a damaged
// range *DamagedError, in an erased one *ErasedError. It may block.
func (l *Log) Locate(o wire.Offset) (Position, wire.Offset, error) {
	w := l.Watermark()
	if o > w.Next || o < l.StartOffset() {
		return Position{}, 0, l.outOfRange(o)
	}
	if o == w.Next {
		return w.Position, o, nil
	}
	list := *l.segments.Load()
	// The last segment that starts at or below o: one before it may start there too
	// and hold no records.
	i := sort.Search(len(list), func(i int) bool {
		return list[i].Sequence() > w.Position.Segment || list[i].Previous().Next > o
	}) - 1
	if i < 0 || !list[i].Acquire() {
		return Position{}, 0, l.outOfRange(o)
	}
	s := list[i]
	defer s.Release()
	pos, h, err := s.Find(readEnd(s, w),
		func(e *segment.SparseEntry) bool { return e.Offset > o },
		func(_ int64, h *wire.FrameHeader) bool { return o < h.NextOffset() })
	if errors.Is(err, io.EOF) {
		err = fmt.Errorf("segment %s: no frame holds offset %d: %w", s.Name(), o, errNoEntry)
	}
	if err != nil {
		return Position{}, 0, l.dropped(l.damaged(s, pos, err))
	}
	if h.Kind == segment.KindErased {
		return Position{}, 0, &ErasedError{Base: h.BaseOffset, Next: h.NextOffset()}
	}
	if d := l.damage.at(s.Sequence(), pos); d != nil {
		return Position{}, 0, &DamagedError{Damage: *d}
	}
	return Position{Segment: s.Sequence(), Byte: pos}, h.BaseOffset, nil
}

// damaged turns a frame that does not check into corruption: what is read here was
// verified when it was written or recovered.
func (l *Log) damaged(s *segment.Segment, pos int64, err error) error {
	if segment.IsDamage(err) {
		return &CorruptionError{File: path.Join(l.o.Dir, s.Name()), Position: pos, Cause: err}
	}
	return err
}

// LocateTime returns the first offset whose frame, or an earlier one of its
// segment, was appended at or after ms; the watermark's offset if there is none.
// It may block.
func (l *Log) LocateTime(ms int64) (wire.Offset, error) {
	w := l.Watermark()
	for _, s := range *l.segments.Load() {
		if s.Sequence() > w.Position.Segment {
			break
		}
		if s.MaxTimeMs() < ms || !s.Acquire() {
			continue
		}
		latest := segment.NoTime
		pos, h, err := s.Find(readEnd(s, w),
			func(e *segment.SparseEntry) bool { return e.MaxTimeMs >= ms },
			func(_ int64, h *wire.FrameHeader) bool { latest = max(latest, h.AppendTimeMs); return latest >= ms })
		s.Release()
		if err == nil {
			return min(max(h.BaseOffset, l.StartOffset()), w.Next), nil
		}
		// A segment that retention drops meanwhile holds nothing that can be read.
		if !errors.Is(err, io.EOF) && !errors.Is(err, segment.ErrDropped) {
			return 0, l.damaged(s, pos, err)
		}
	}
	return w.Next, nil
}

// View returns at most maxBytes of committed records frames from p on, out of one
// segment; it may end in the middle of a frame. At the watermark it is empty. It
// never blocks: ErrCold means that Populate must be called first, where blocking is
// allowed. *OutOfRangeError means that p was dropped, *DamagedError that what is
// there is damaged, *ErasedError that it was erased; a view ends before either. The view is released exactly once.
func (l *Log) View(p Position, maxBytes int) (*View, error) {
	w := l.Watermark()
	v := &View{}
	for {
		s, at, err := l.at(p, w)
		if err != nil {
			return nil, err
		}
		if s == nil {
			v.Next = at
			return v, nil
		}
		end, err := l.damage.clear(s.Sequence(), at.Byte, readEnd(s, w))
		if err != nil {
			return nil, err
		}
		if err := s.View(v, at.Byte, end, maxBytes, l.hotFrom(s)); err != nil {
			return nil, l.dropped(err)
		}
		// Nothing but frames without records to the end of the segment: go on.
		if v.Bytes > 0 || v.Next == at && maxBytes <= 0 || v.Next == w.Position {
			return v, nil
		}
		p = v.Next
	}
}

// hotFrom is the position from which a segment lies in the window behind the
// tail.
func (l *Log) hotFrom(s *segment.Segment) int64 {
	return l.written.Load() - hotWindowBytes - s.Start()
}

func (l *Log) dropped(err error) error {
	switch {
	case errors.Is(err, segment.ErrCold):
		return ErrCold
	case errors.Is(err, segment.ErrDropped):
		return l.outOfRange(0)
	}
	return err
}

// Populate makes [p, p+n) ready for View: it maps the segment, reads its sparse
// index and brings the bytes into memory, and some behind them. It may block. An
// error of the disk is returned where a touch would have killed the process; if
// the map fails for want of memory, ReadAt still works.
func (l *Log) Populate(p Position, n int) error {
	w := l.Watermark()
	// What a view needs to pass over a segment goes with the segment's file: opening
	// the next one must not push it out again.
	var passed []*segment.FileRef
	defer func() {
		for _, f := range passed {
			f.Release()
		}
	}()
	for {
		s, at, err := l.at(p, w)
		if err != nil || s == nil {
			return err
		}
		if !s.Acquire() {
			return l.outOfRange(0)
		}
		end := readEnd(s, w)
		next, err := s.Populate(at.Byte, end, n)
		if f := s.TryFile(); f != nil {
			passed = append(passed, f)
		}
		s.Release()
		if err != nil || next < end {
			return l.dropped(err)
		}
		// Nothing here for a view: it will go on in the next segment.
		p = Position{Segment: at.Segment, Byte: end}
	}
}

// ReadAt fills buf with the bytes that View would give from p on, by pread, out of
// one segment. It may block.
func (l *Log) ReadAt(p Position, buf []byte) (n int, next Position, err error) {
	w := l.Watermark()
	for {
		s, at, err := l.at(p, w)
		if err != nil || s == nil {
			return 0, at, err
		}
		if !s.Acquire() {
			return 0, p, l.outOfRange(0)
		}
		n, end := 0, at.Byte
		clear, err := l.damage.clear(s.Sequence(), at.Byte, readEnd(s, w))
		if err == nil {
			n, end, err = s.ReadAt(buf, at.Byte, clear)
		}
		s.Release()
		p = Position{Segment: at.Segment, Byte: end}
		if err != nil || n > 0 || len(buf) == 0 || p == w.Position {
			return n, p, l.dropped(err)
		}
	}
}

// Replay calls fn for every entry from the given one on, committed or not, read
// from the disk and verified. body is the frame's body, without the prefix of the
// Raft entry, and valid during the call; nil if it is known to be damaged. It may block; it is for boot, before
// anything is appended.
func (l *Log) Replay(from wire.Index, fn func(h wire.FrameHeader, body []byte) error) error {
	return l.replay(from, false, fn)
}

// ReplayHeaders is Replay for who looks at headers only: bodies are neither verified nor, if
// they are large, read.
func (l *Log) ReplayHeaders(from wire.Index, fn func(h wire.FrameHeader) error) error {
	return l.replay(from, true, func(h wire.FrameHeader, _ []byte) error { return fn(h) })
}

func (l *Log) replay(from wire.Index, bare bool, fn func(h wire.FrameHeader, body []byte) error) error {
	if from <= l.startLink.Index {
		return fmt.Errorf("log %s: replay from %d, first is %d: %w", l.o.Dir, from, l.FirstIndex(), errNoEntry)
	}
	var buffer []byte
	for _, s := range *l.segments.Load() {
		last, err := l.replaySegment(s, from, bare, &buffer, fn)
		if err != nil {
			return err
		}
		from = max(from, last+1)
	}
	return nil
}

func (l *Log) replaySegment(s *segment.Segment, from wire.Index, bare bool, buffer *[]byte, fn func(wire.FrameHeader, []byte) error) (last wire.Index, err error) {
	if !s.Acquire() {
		return 0, nil
	}
	defer s.Release()
	pos, _, err := s.Find(s.End(),
		func(e *segment.SparseEntry) bool { return e.Index > from },
		func(_ int64, h *wire.FrameHeader) bool { return h.Index >= from })
	if errors.Is(err, io.EOF) {
		return 0, nil
	}
	if err != nil {
		return 0, l.damaged(s, pos, err)
	}
	f, err := s.File()
	if err != nil {
		return 0, err
	}
	defer f.Release()
	sc := s.Scan(f, pos, s.End(), *buffer)
	defer func() { *buffer = sc.Buffer() }()
	if bare {
		sc.PassBodies()
	}
	for sc.Position() < s.End() {
		h, err := sc.Header()
		var body []byte
		if err == nil && h.Kind == segment.KindErased {
			err = fmt.Errorf("%w: entries up to %d are to be applied and were erased", segment.ErrChain, h.Index)
		}
		if err == nil && !bare {
			body, err = sc.Body(&h)
			if err != nil && l.damage.at(s.Sequence(), sc.Position()) != nil {
				body, err = nil, nil
			}
		}
		if err != nil {
			if segment.IsDamage(err) {
				return last, &CorruptionError{File: path.Join(l.o.Dir, s.Name()), Position: sc.Position(), Cause: err}
			}
			return last, fmt.Errorf("segment %s: position %d: %w", s.Name(), sc.Position(), err)
		}
		if err := fn(h, body); err != nil {
			return last, err
		}
		last = h.Index
		sc.Skip(&h)
	}
	return last, nil
}
