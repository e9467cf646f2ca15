package segment

import (
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	"github.com/lockstepmq/lockstep/internal/invariants"
	"github.com/lockstepmq/lockstep/wire"
)

const (
	// MaxSlices bounds the slices of one View, so that it always fits one writev.
	MaxSlices = 256

	// cloneEvery is how often a view is a poisoned-on-release copy in invariants
	// builds.
	cloneEvery = 5
	poison     = 0xdb
	pageSize   = 4096
)

// Position is a place in a log: a byte position in the segment with a sequence.
// The zero Position lies before everything.
type Position struct {
	Segment uint64
	Byte    int64
}

// View is a range of records frames as slices of a mapped file. The slices are
// read-only, for the kernel to send, never for Go code to read, and valid until
// Release. A view may start and end in the middle of a frame.
type View struct {
	Slices [][]byte
	Bytes  int      // length of all slices
	Next   Position // where the next view starts

	seg    *Segment
	held   *mapRef
	clones [][]byte
	done   atomic.Bool
	inline [4][]byte
}

// Release ends the use of the slices. Every view is released exactly once, the
// empty one too; a second release panics. It does not block: the file of a segment
// that was dropped meanwhile is closed by Env.Reap. Any goroutine.
func (v *View) Release() {
	if v.done.Swap(true) {
		panic("segment: view released twice")
	}
	for _, c := range v.clones {
		for i := range c {
			c[i] = poison
		}
	}
	if v.held != nil {
		v.seg.letGo(v.held)
	}
}

// Cold says that the kernel could not read the slices: what was believed to be in
// memory is not, and the disk may not give it back. Views of it answer ErrCold from
// now on, until Populate has had an answer. Any goroutine, before Release.
func (v *View) Cold() {
	s := v.seg
	if s == nil {
		return
	}
	s.populated.Store(nil)
	for end := s.End(); ; {
		from := s.appendedFrom.Load()
		if from >= end || s.appendedFrom.CompareAndSwap(from, end) {
			return
		}
	}
}

// letGo gives back what a view holds: the map, and the segment. It does not block.
func (s *Segment) letGo(m *mapRef) {
	if m.unref() {
		s.env.reap(m.close)
	}
	if s.unref() {
		s.env.reap(s.CloseResources)
	}
}

// View fills v with at most maxBytes of records frames from [from, end), leaving
// out the runs of other frames, and says in v.Next how far it came. hotFrom is
// the position from which bytes that this process appended still count as being
// in memory. The caller holds a reference and end is immutable. It never blocks:
// ErrCold means that Populate must be called first, *ErasedError that the records there
// are gone; a view ends before such a run.
func (s *Segment) View(v *View, from, end int64, maxBytes int, hotFrom int64) error {
	v.Slices = v.inline[:0]
	v.Next = Position{Segment: s.sequence, Byte: from}
	if from >= end || maxBytes <= 0 {
		return nil
	}
	d := s.details.Load()
	if d == nil {
		return ErrCold
	}
	i, n := d.firstRun(from), d.runs.len()
	pos := from
	if i < n && d.runs.at(i).from <= pos {
		pos = min(d.runs.at(i).to.Load(), end)
	}
	pos, end, err := s.readable(pos, end)
	v.Next.Byte = pos
	if err != nil || pos >= end {
		return err
	}
	hot := s.hotUntil(pos, end, hotFrom)
	if hot <= pos {
		return ErrCold
	}
	end = min(end, hot)
	m := s.mapped.Load()
	if m == nil || !m.acquire() {
		return ErrCold
	}
	if !s.Acquire() {
		if m.unref() {
			s.env.reap(m.close)
		}
		return ErrDropped
	}
	v.seg, v.held = s, m
	// Again, now that nobody gives more of the segment back.
	if pos, end, err = s.readable(pos, end); err != nil {
		v.seg, v.held = nil, nil
		s.letGo(m)
		return err
	}
	i = d.firstRun(pos)
	mem := m.mapping.Bytes()
	cloned := invariants.Enabled && s.env.views.Add(1)%cloneEvery == 0
	for pos < end && v.Bytes < maxBytes && len(v.Slices) < MaxSlices {
		to, after := end, end
		if i < n {
			if r := d.runs.at(i); r.from < end {
				to, after = r.from, min(r.to.Load(), end)
			}
			i++
		}
		if left := int64(maxBytes - v.Bytes); to-pos > left {
			to = pos + left
			after = to
		}
		if to > pos {
			v.Slices = append(v.Slices, mem[pos:to:to])
			v.Bytes += int(to - pos)
			if invariants.Enabled && cloned {
				s.cloneLast(v, pos)
			}
		}
		pos = after
	}
	v.Next.Byte = pos
	if v.Bytes == 0 {
		v.seg, v.held = nil, nil
		s.letGo(m)
	}
	return nil
}

// cloneLast replaces the last slice, which starts at pos, by a copy that Release
// poisons, so that a use after release shows.
func (s *Segment) cloneLast(v *View, pos int64) {
	f := s.TryFile()
	if f == nil {
		return
	}
	defer f.Release()
	last := &v.Slices[len(v.Slices)-1]
	c := make([]byte, len(*last))
	if n, _ := f.File.ReadAt(c, pos); n == len(c) {
		*last = c
		v.clones = append(v.clones, c)
	}
}

// hotUntil says up to which position before end the bytes from pos on are
// probably in memory.
func (s *Segment) hotUntil(pos, end, hotFrom int64) int64 {
	if s.env.Memory || pos >= max(s.appendedFrom.Load(), hotFrom) {
		return end
	}
	until := pos
	if list := s.populated.Load(); list != nil {
		traffic := s.env.Traffic.Load()
		for _, w := range *list {
			if pos >= w.from && pos < w.to && traffic-w.stamp < populatedTraffic {
				until = max(until, min(end, w.to))
			}
		}
	}
	return until
}

// Populate maps the file, reads its sparse index and brings [from, from+n) into
// memory, and a little more, up to end. It returns the position of the first
// records frame at or behind from, or end. It may block. An error of the disk comes
// back as an error instead of a fault.
func (s *Segment) Populate(from, end int64, n int) (next int64, err error) {
	d, err := s.load()
	if err != nil {
		return from, err
	}
	m, err := s.mapping()
	if err != nil {
		return from, err
	}
	defer m.release()
	if i := d.firstRun(from); i < d.runs.len() && d.runs.at(i).from <= from {
		from = min(d.runs.at(i).to.Load(), end)
	}
	next = from
	to := min(from+int64(max(n, populateAhead)), end)
	if from = from &^ (pageSize - 1); from >= to {
		return next, nil
	}
	if !s.env.Memory {
		if err := m.mapping.Populate(from, to-from); err != nil {
			return next, fmt.Errorf("segment %s: position %d: populate %d bytes: %w", s.name, from, to-from, err)
		}
	}
	s.noteWindow(window{from: from, to: to, stamp: s.env.Traffic.Add(to - from)})
	return next, nil
}

// noteWindow remembers a populated range: it continues an earlier one, or takes
// the place of the oldest when there are too many.
func (s *Segment) noteWindow(w window) {
	for {
		old := s.populated.Load()
		var kept []window
		if old != nil {
			kept = *old
		}
		list := make([]window, 0, maxWindows)
		for _, o := range kept {
			if o.from <= w.from && w.from <= o.to && w.to >= o.to && w.stamp-o.stamp < populatedTraffic/2 {
				w.from, w.stamp = o.from, o.stamp
			} else if w.stamp-o.stamp < populatedTraffic && (o.from < w.from || o.to > w.to) {
				list = append(list, o)
			}
		}
		if len(list) == maxWindows {
			list = append(list[:0], list[1:]...)
		}
		list = append(list, w)
		if s.populated.CompareAndSwap(old, &list) {
			return
		}
	}
}

// mapsRefused is set by RefuseMaps.
var (
	mapsRefused    atomic.Bool
	errMapsRefused = errors.New("maps are refused")
)

// RefuseMaps lets no further file be mapped, as if the system had no maps left, or
// brings them back: everything is then read by pread. It is for tests, and does nothing
// in release builds.
func RefuseMaps(refuse bool) { mapsRefused.Store(refuse) }

// mapping returns the map with a reference, mapping the file at its full
// capacity if necessary, which may block.
func (s *Segment) mapping() (*mapRef, error) {
	if m := s.mapped.Load(); m != nil && m.acquire() {
		return m, nil
	}
	if invariants.Enabled && mapsRefused.Load() {
		return nil, fmt.Errorf("segment %s: map: %w", s.name, errMapsRefused)
	}
	f, err := s.File()
	if err != nil {
		return nil, err
	}
	defer f.Release()
	s.mu.Lock()
	defer s.mu.Unlock()
	if m := s.mapped.Load(); m != nil && m.acquire() {
		return m, nil
	}
	mapping, err := f.File.Map(s.capacity.Load())
	if err != nil {
		return nil, fmt.Errorf("segment %s: map: %w", s.name, err)
	}
	m := &mapRef{mapping: mapping}
	m.close = func() { _ = mapping.Unmap() }
	s.mapped.Store(m)
	s.env.Maps.insert(&m.resource)
	return m, nil
}

// Mapped says whether the file is mapped.
func (s *Segment) Mapped() bool {
	m := s.mapped.Load()
	return m != nil && m.refs.Load() > 0
}

// ReadAt fills buf with the same bytes that View gives from [from, end), by
// pread. It returns how many they are and the position behind them. Before bytes that
// the disk does not give it returns those it has, and the error next time. It may block.
func (s *Segment) ReadAt(buf []byte, from, end int64) (n int, next int64, err error) {
	d, err := s.load()
	if err != nil {
		return 0, from, err
	}
	f, err := s.File()
	if err != nil {
		return 0, from, err
	}
	defer f.Release()
	pos := from
	if pos, end, err = s.readable(pos, end); err != nil {
		return 0, pos, err
	}
	for i, runs := d.firstRun(pos), d.runs.len(); pos < end && n < len(buf); i++ {
		to, after := end, end
		if i < runs {
			if r := d.runs.at(i); r.from < end {
				to, after = max(r.from, pos), min(r.to.Load(), end)
			}
		}
		if left := int64(len(buf) - n); to-pos > left {
			to = pos + left
			after = to
		}
		if to > pos {
			got, err := f.File.ReadAt(buf[n:n+int(to-pos)], pos)
			if int64(got) < to-pos {
				if n += got; n > 0 {
					return n, pos + int64(got), nil // the next call begins with what cannot be read
				}
				return n, pos, fmt.Errorf("segment %s: position %d: read %d bytes: %w", s.name, pos, to-pos, errors.Join(io.ErrUnexpectedEOF, err))
			}
			n += int(to - pos)
		}
		pos = after
	}
	return n, pos, nil
}

// lookups holds the buffers of Find.
var lookups = sync.Pool{New: func() any { return new([]byte) }}

// Find returns the position and header of the first frame in [HeaderSize, end)
// for which found is true. beyond must be true for sparse entries behind such a
// frame; it bounds the walk. io.EOF means there is none. It may block.
func (s *Segment) Find(end int64, beyond func(*SparseEntry) bool, found func(pos int64, h *wire.FrameHeader) bool) (int64, wire.FrameHeader, error) {
	d, err := s.load()
	if err != nil {
		return 0, wire.FrameHeader{}, err
	}
	f, err := s.File()
	if err != nil {
		return 0, wire.FrameHeader{}, err
	}
	defer f.Release()
	from := int64(HeaderSize)
	if e, ok := d.floor(beyond); ok {
		from = e.Position
	}
	buffer := lookups.Get().(*[]byte)
	sc := s.Scan(f, from, end, *buffer)
	sc.ahead = SparseInterval
	defer func() {
		*buffer = sc.Buffer()
		lookups.Put(buffer)
	}()
	for sc.Position() < end {
		h, err := sc.Header()
		if err != nil {
			return sc.Position(), wire.FrameHeader{}, fmt.Errorf("segment %s: position %d: %w", s.name, sc.Position(), err)
		}
		if found(sc.Position(), &h) {
			return sc.Position(), h, nil
		}
		sc.Skip(&h)
	}
	return 0, wire.FrameHeader{}, io.EOF
}
