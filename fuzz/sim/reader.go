package sim

import (
	"errors"
	"slices"

	"github.com/lockstepmq/lockstep/log"
	"github.com/lockstepmq/lockstep/wire"
)

// reading runs a reader, which turns may interrupt.
func (s *Simulation) reading(read func()) {
	s.faults.reading = true
	defer func() { s.faults.reading = false }()
	read()
}

// read reads from a random offset by copying.
func (s *Simulation) read() {
	if r := s.anyReplica(); r != nil && !r.closed && !s.faults.evicted {
		s.reading(func() { s.readFrom(r, s.someOffset(r), 1+s.random.IntN(6), r.copy) })
	}
}

// view reads from a random offset through mapped memory.
func (s *Simulation) view() {
	if r := s.anyReplica(); r != nil && !r.closed && !s.faults.evicted {
		s.reading(func() { s.readFrom(r, s.someOffset(r), 1+s.random.IntN(6), r.look) })
	}
}

// readAll reads everything there is, in pieces between what is damaged.
func (s *Simulation) readAll(r *replica) {
	for at, more := r.state.Start(), true; more; {
		at, more = s.readFrom(r, at, 1<<30, r.copy)
	}
}

func (s *Simulation) someOffset(r *replica) wire.Offset {
	start, next := r.state.Start(), r.log.Watermark().Next
	return start + wire.Offset(s.random.Uint64N(uint64(next-start)+1))
}

// readFrom reads pieces of the stream at an offset and compares every frame in
// them with the model. At damage it ends, and says where reading can go on.
func (s *Simulation) readFrom(r *replica, offset wire.Offset, pieces int, fetch func(log.Position, int) ([]byte, log.Position, error)) (behind wire.Offset, damaged bool) {
	h := &r.model.history
	mark := r.log.Watermark()
	at, base, err := r.log.Locate(offset)
	if err != nil {
		if behind, damaged = s.refused(h, offset, err); !damaged && !s.excused() && !r.gone(offset, err) {
			s.fail("%s: offset %d of [%d, %d) is not found: %v", h.name, offset, r.state.Start(), mark.Next, err)
		}
		return behind, damaged
	}
	next := base
	var stream []byte
	for range pieces {
		before := r.log.Watermark()
		piece, after, err := fetch(at, 1+s.random.IntN(64<<10))
		if err != nil {
			if behind, damaged = s.refused(h, next, err); !damaged && !s.excused() && !r.gone(next, err) {
				s.fail("%s: reading at %+v: %v", h.name, at, err)
			}
			return behind, damaged
		}
		ended := len(piece) == 0 && after == at
		stream, at = append(stream, piece...), after
		if stream, next, damaged = s.frames(h, stream, next); damaged {
			return s.report(r, next)
		}
		if !ended {
			continue
		}
		if len(stream) > 0 || next < before.Next || at == r.log.Watermark().Position && next != r.log.Watermark().Next {
			s.fail("%s: reading from offset %d ends at %+v with offset %d and %d bytes, the high watermark was %+v",
				h.name, offset, at, next, len(stream), *before)
		}
		break
	}
	if base > offset && offset < mark.Next {
		s.fail("%s: reading from offset %d began at %d", h.name, offset, base)
	}
	return 0, false
}

// gone reports whether the error is right because the start has passed an offset.
func (r *replica) gone(offset wire.Offset, err error) bool {
	return errors.Is(err, log.ErrOffsetOutOfRange) && offset < r.log.StartOffset()
}

// frames compares whole frames at the start of a stream, which begin at an offset,
// with the model, and returns what is left of both. It ends at a body that is
// damaged and ought to be.
func (s *Simulation) frames(h *history, stream []byte, next wire.Offset) (rest []byte, at wire.Offset, damaged bool) {
	for len(stream) >= wire.FrameHeaderSize {
		f, err := wire.ParseFrameHeader(stream)
		if err != nil {
			s.fail("%s: reading offset %d: %v", h.name, next, err)
		}
		if int64(len(stream)) < f.FrameSize() {
			break
		}
		body := stream[wire.FrameHeaderSize : wire.FrameHeaderSize+int(f.BodyLength)]
		k := h.at(f.Index)
		if k == nil {
			s.fail("%s: reading gave entry %d, which is not committed", h.name, f.Index)
		}
		if k.rotten && wire.Checksum(body) != f.BodyCRC {
			return nil, next, true
		}
		if f.Kind != wire.KindRecords || f.BaseOffset != next || wire.Checksum(body) != f.BodyCRC {
			s.fail("%s: reading offset %d gave %+v with body %08x", h.name, next, f, wire.Checksum(body))
		}
		h.compare(f.Index, k, &known{
			kind: f.Kind, term: f.Term, base: f.BaseOffset, count: f.RecordCount, timeMs: f.AppendTimeMs, body: f.BodyCRC,
		})
		s.counts[Read]++
		next = f.NextOffset()
		stream = stream[f.FrameSize():]
	}
	return stream, next, false
}

// copy fetches by ReadAt.
func (r *replica) copy(at log.Position, limit int) ([]byte, log.Position, error) {
	buf := make([]byte, limit)
	n, next, err := r.log.ReadAt(at, buf)
	return buf[:n], next, err
}

// look fetches by View.
func (r *replica) look(at log.Position, limit int) ([]byte, log.Position, error) {
	v, err := r.log.View(at, limit)
	if errors.Is(err, log.ErrCold) {
		if err = r.log.Populate(at, limit); err == nil {
			v, err = r.log.View(at, limit)
		}
	}
	if err != nil {
		return nil, at, err
	}
	defer v.Release()
	return slices.Concat(v.Slices...), v.Next, nil
}

// lookUpTime asks for the first offset at or after a time.
func (s *Simulation) lookUpTime() {
	r := s.anyReplica()
	if r == nil || r.closed || s.faults.evicted {
		return
	}
	h, mark := &r.model.history, r.log.Watermark()
	ms := s.nowMs - s.random.Int64N(30_000)
	if n := len(h.entries); n > 0 && s.random.IntN(2) == 0 {
		ms = h.entries[s.random.IntN(n)].timeMs // from before a jump, too
	}
	got, err := r.log.LocateTime(ms)
	if err != nil {
		if !s.excused() {
			s.fail("%s: time %d is not found: %v", h.name, ms, err)
		}
		return
	}
	want := mark.Next
	for i := range h.entries {
		if k := &h.entries[i]; k.kind == wire.KindRecords && k.timeMs >= ms && k.next() > r.state.Start() {
			want = max(k.base, r.state.Start())
			break
		}
	}
	// When the clock has jumped, a control entry may be younger than the records behind
	// it: the answer is then theirs. No record that was asked for lies before it.
	if want = min(want, mark.Next); got > want || !s.jumped && got != want {
		s.fail("%s: time %d is at offset %d, the model says %d", h.name, ms, got, want)
	}
	if later, err := r.log.LocateTime(ms + s.random.Int64N(maxJumpMs)); err == nil && later < got {
		s.fail("%s: time %d is at offset %d, and a later one at %d", h.name, ms, got, later)
	}
	s.counts[TimeLookup]++
}
