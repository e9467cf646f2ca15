package log

import (
	"errors"
	"fmt"
	"io"
	"path"
	"slices"

	"github.com/lockstepmq/lockstep/segment"
	"github.com/lockstepmq/lockstep/wire"
)

// What recovery writes once it has judged: the tail behind the last good frame is cut
// and zeroed, a fenced log is copied into fresh files, and what only the page cache
// may have is written again. All of it is durable before anything is served.

// cut ends the log behind the last good frame, durably: what follows is zeroed, so
// that no stale suffix can continue what will be written there, and all that was
// read becomes durable, because it may only be in the page cache.
func (r *recovery) cut() error {
	l := r.l
	written := len(r.segments)
	fenced := r.slot.flags&slotFenced != 0
	firm := r.firm()
	var gone []string
	for k := range r.segments {
		s := r.segments[k]
		// A segment that ends at the limit may have been truncated there, which is
		// not durable yet.
		if r.clean || k+1 < written && r.segments[k+1].Previous().Index < firm {
			continue
		}
		if fenced && r.link.Index > firm {
			gone = append(gone, s.Name())
			if err := r.copyFenced(k); err != nil {
				return fmt.Errorf("copy what the fenced log holds above entry %d: %w", firm, err)
			}
			continue
		}
		to := int64(0)
		if k+1 == written {
			to = s.Allocated()
		}
		if err := r.writeAgain(s, firm); err != nil {
			return fmt.Errorf("write again what the log holds above entry %d: %w", firm, err)
		}
		if err := r.settle(s, s.End(), to); err != nil {
			return err
		}
	}
	if r.cause != nil && r.pos > 0 && !r.clean && !errors.Is(r.cause, wire.ErrFrameMagic) && !errors.Is(r.cause, io.EOF) {
		l.logger.Info("log ends at a torn frame", "dir", l.o.Dir, "segment", r.found[r.at].name(), "position", r.pos, "last", r.link.Index, "cause", r.cause)
	}
	// A last segment without a frame stays prepared, others go.
	for i := range r.found {
		f := &r.found[i]
		if slices.Contains(r.used, i) {
			continue
		}
		if fenced || i+1 < len(r.found) {
			l.logger.Info("segment is not part of the log, removed", "dir", l.o.Dir, "segment", f.name())
			gone = append(gone, f.name())
			continue
		}
		l.next = segment.Adopt(&l.store.env, l.o.Dir, l.id, f.sequence, f.fileID, l.o.SegmentBytes, f.size)
		if !r.clean {
			if err := r.settle(l.next, 0, f.size); err != nil {
				return err
			}
		}
	}
	if len(gone) == 0 {
		return nil
	}
	l.segments.Store(&r.segments)
	m := l.manifest()
	if err := l.store.withReserve(func() error { return l.writeManifest(m) }); err != nil {
		return err
	}
	for _, name := range gone {
		if err := l.store.quarantine(r.path(name), path.Base(l.o.Dir)+"-"+name); err != nil {
			return err
		}
	}
	return nil
}

// copyFenced replaces a segment by a synced copy in a fresh file. After a failed
// sync the page cache shows bytes that the disk may not have: nothing but writing
// them again elsewhere makes them durable (RULES L9).
func (r *recovery) copyFenced(k int) error {
	l := r.l
	old := r.segments[k]
	from, err := old.File()
	if err != nil {
		return err
	}
	defer from.Release()
	h := old.Header()
	h.FileID = l.store.nextFileID()
	s, err := segment.Create(&l.store.env, l.o.Dir, l.id, h.Sequence, h.FileID, h.Capacity, max(old.End(), segment.FirstStep))
	if err != nil {
		return err
	}
	defer s.Release()
	to, err := s.File()
	if err != nil {
		return err
	}
	defer to.Release()
	buffer := make([]byte, segment.HeaderSize)
	h.Encode(buffer)
	if _, err := to.File.WriteAt(buffer, 0); err != nil {
		return err
	}
	fresh := segment.Rebuild(&l.store.env, l.o.Dir, &h, s.Allocated())
	fresh.SetErased(old.Erased())
	sc := old.Scan(from, segment.HeaderSize, old.End(), nil)
	link := old.Previous()
	for sc.Position() < old.End() {
		fh, err := sc.Header()
		if err != nil {
			fresh.Release()
			return err
		}
		if fh.Kind == segment.KindErased {
			fresh.Note(&fh, sc.Position()) // the fresh file has a hole there
			link = segment.After(&fh)
			sc.Skip(&fh)
			continue
		}
		body, err := sc.Body(&fh)
		if errors.Is(err, wire.ErrFrameChecksum) && r.saved != nil && fh.Index <= r.saved.Applied && l.damage.at(h.Sequence, sc.Position()) == nil {
			// Below the checkpoint the scan has looked at headers only.
			d := frameDamage(h.Sequence, old.FileID(), sc.Position(), link, &fh)
			if _, err := l.damage.add(d); err != nil {
				fresh.Release()
				return r.corrupt(old.Name(), sc.Position(), err)
			}
			l.sayDamaged(&d, err)
		}
		if err != nil && (body == nil || l.damage.at(h.Sequence, sc.Position()) == nil) {
			fresh.Release()
			return err
		}
		mark, _ := segment.DecodeMark(old.FileID(), fh.HeaderCRC, fh.Local)
		fh.Local = segment.EncodeMark(h.FileID, fh.HeaderCRC, mark)
		buffer = append(buffer[:0], make([]byte, fh.FrameSize())...)
		fh.Encode(buffer)
		copy(buffer[wire.FrameHeaderSize:], body)
		if _, err := to.File.WriteAt(buffer, sc.Position()); err != nil {
			fresh.Release()
			return err
		}
		fresh.Note(&fh, sc.Position())
		link = segment.After(&fh)
		sc.Skip(&fh)
	}
	if err := to.File.Sync(); err != nil {
		fresh.Release()
		return err
	}
	if runs := old.Erased(); len(runs) > 0 {
		err := segment.PunchErased(to.File, fresh.Name(), runs) // Create has allocated it
		if err = errors.Join(err, fresh.WriteErased(runs)); err != nil {
			fresh.Release()
			return err
		}
	}
	fresh.Recovered()
	fresh.SetStart(old.Start())
	for i := range l.places.len() {
		if p := l.places.at(i); p.seg == old {
			p.seg = fresh
		}
	}
	r.segments[k] = fresh
	old.Release()
	return l.fs.SyncDir(l.o.Dir)
}

// writeAgain writes the frames of a segment above the entry firm once more, as
// they are, if the process died and the machine did not. Had a sync failed before,
// and the fence with it, the page cache would show bytes that the disk does not
// have and call them clean, and the sync that follows would do nothing (RULES L9).
// After the machine stopped the cache holds what was read from the disk. The mark
// itself is beyond doubt: it was written after a sync that succeeded.
func (r *recovery) writeAgain(s *segment.Segment, firm wire.Index) error {
	l := r.l
	if l.store.env.Memory || l.slot.written && r.slot.boot != l.store.boot {
		return nil
	}
	from := int64(-1)
	for i := range l.places.len() {
		p := l.places.at(i)
		if p.seg != s || p.link.Index <= firm {
			continue
		}
		from = 0 // the segment's header went with its first frame
		if i > 0 && l.places.at(i-1).seg == s {
			from = l.places.at(i - 1).end
		}
		break
	}
	if from < 0 {
		return nil
	}
	f, err := s.File()
	if err != nil {
		return err
	}
	defer f.Release()
	buffer := make([]byte, min(s.End()-from, rewriteBytes))
	for from < s.End() {
		b := buffer[:min(s.End()-from, rewriteBytes)]
		if n, err := f.File.ReadAt(b, from); n < len(b) {
			return fmt.Errorf("segment %s: position %d: read: %w", s.Name(), from, err)
		}
		if _, err := f.File.WriteAt(b, from); err != nil {
			return fmt.Errorf("segment %s: position %d: write: %w", s.Name(), from, err)
		}
		from += int64(len(b))
	}
	return nil
}

// rewriteBytes is how much writeAgain moves at a time.
const rewriteBytes = 1 << 20

// settle zeroes a range of a segment and makes the whole file durable.
func (r *recovery) settle(s *segment.Segment, from, to int64) error {
	f, err := s.File()
	if err != nil {
		return err
	}
	defer f.Release()
	if err := s.Zero(f, from, to); err != nil {
		return err
	}
	if err := f.File.Sync(); err != nil {
		return fmt.Errorf("segment %s: sync: %w", s.Name(), err)
	}
	return nil
}
