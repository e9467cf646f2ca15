package log

import (
	"errors"
	"fmt"

	"github.com/lockstepmq/lockstep/segment"
	"github.com/lockstepmq/lockstep/wire"
)

// ErrRepair is why a log must not be used any more whose active segment could not be
// repaired.
var ErrRepair = errors.New("repair of the segment that is appended to")

// FrameBody is the body of the stored frame of an entry. The same entry has the same
// body on every replica.
type FrameBody struct {
	Index wire.Index
	Body  []byte
}

// FrameBody is the body that the entry's frame has.
func (e *Entry) FrameBody() FrameBody {
	body := e.Data
	if (e.Kind == wire.KindRecords || e.Kind == wire.KindControl) && len(body) >= wire.EntryPrefixSize {
		body = body[wire.EntryPrefixSize:]
	}
	return FrameBody{Index: e.Index, Body: body}
}

// Repair writes the bodies of damaged frames again, which another replica has whole,
// and says of how many entries (RULES L8). Bodies that are not those of the frames,
// by length and checksum, are passed over; so are entries that are not damaged.
//
// The bytes go to their place in the file: what stands there cannot be read, the
// right body is the only one that the header accepts, and until it is synced and was
// read again the frame stays on the list, so that a crash in between changes nothing.
// What is readable does not change otherwise, also in the segment that is appended to.
// An error leaves the rest as it was; in that segment it is an ErrRepair: the owner's
// syncs may miss what one of ours has met, so the log must not be used any more. It may
// block. Any goroutine, one at a time.
func (l *Log) Repair(bodies []FrameBody) (repaired int, err error) {
	if !l.gate.enter() {
		return 0, ErrClosed
	}
	defer l.gate.leave()
	byIndex := make(map[wire.Index][]byte, len(bodies))
	for _, b := range bodies {
		byIndex[b.Index] = b.Body
	}
	w := l.Watermark()
	for _, d := range l.Damage() {
		if d.segment > w.Position.Segment || d.segment == w.Position.Segment && d.End > w.Position.Byte {
			break
		}
		for _, s := range *l.segments.Load() {
			if s.Sequence() != d.segment || !s.Acquire() {
				continue
			}
			n, e := l.repairRun(s, &d, byIndex)
			s.Release()
			if e != nil && d.segment == w.Position.Segment && !errors.Is(e, ErrCorrupt) {
				e = fmt.Errorf("%w: %w", ErrRepair, e)
			}
			repaired += n
			err = errors.Join(err, e)
		}
	}
	if repaired > 0 {
		l.saveDamage()
	}
	return repaired, err
}

// repairRun repairs what it can of one run of damaged frames.
func (l *Log) repairRun(s *segment.Segment, d *Damage, bodies map[wire.Index][]byte) (repaired int, err error) {
	f, err := s.File()
	if err != nil {
		return 0, err
	}
	defer f.Release()
	type frame struct {
		pos    int64
		link   segment.Link
		header wire.FrameHeader
	}
	var written []frame
	link := d.before
	sc := segment.NewScanner(f.File, d.Position, min(d.End, s.End()), nil)
	for sc.Position() < d.End {
		h, err := sc.Header()
		if err == nil {
			err = link.Check(&h)
		}
		if err != nil {
			return 0, l.damaged(s, sc.Position(), err)
		}
		body, ok := bodies[h.Index]
		if ok && len(body) == int(h.BodyLength) && (wire.Checksum(body) == h.BodyCRC || l.anyBody) {
			if _, err := f.File.WriteAt(body, sc.Position()+wire.FrameHeaderSize); err != nil {
				return 0, fmt.Errorf("segment %s: position %d: repair: %w", s.Name(), sc.Position(), err)
			}
			written = append(written, frame{sc.Position(), link, h})
		}
		link = segment.After(&h)
		sc.Skip(&h)
	}
	if len(written) == 0 {
		return 0, nil
	}
	if err := f.File.Sync(); err != nil {
		return 0, fmt.Errorf("segment %s: repair: %w", s.Name(), err)
	}
	for _, w := range written {
		again := segment.NewScanner(f.File, w.pos, w.pos+w.header.FrameSize(), nil)
		if _, err := again.Body(&w.header); err != nil {
			return repaired, fmt.Errorf("segment %s: position %d: it is damaged again as soon as it was repaired: %w", s.Name(), w.pos, err)
		}
		l.damage.heal(s.Sequence(), w.pos, w.link, &w.header)
		repaired++
		l.logger.Info("a damaged frame was repaired from another replica", "dir", l.o.Dir, "file", s.Name(), "position", w.pos, "entry", w.header.Index)
	}
	return repaired, nil
}
