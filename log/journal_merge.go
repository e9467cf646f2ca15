package log

import (
	"errors"
	"fmt"

	"github.com/lockstepmq/lockstep/segment"
	"github.com/lockstepmq/lockstep/wire"
)

// journaled is what the store's journal holds of one log that is being opened: its
// frames by what they continue, and the highest durable mark in them.
//
// A frame counts only where it continues the log: index, previous header CRC, term
// and offset fit, and header and body verify (segment.Link). So nothing that is
// served depends on whether the journal is undamaged.
//
// Nor does a suffix come back that was taken back. What replaces it is made durable
// by a sync of the segments, never by the journal (pendingSync.whole). Before that
// sync has ended the truncation has not happened for anybody else, and either
// version may be what a crash leaves. After it the segments say how the log goes
// on behind the last entry that both versions share: in the same segment, where the
// scan finds the new frame, or in another one that continues there, which is asked
// first (recovery.continues). The old frames continue neither, because the chain
// differs. Should the log later return to the very entry that an old frame continues,
// it returns to the version of the leader who wrote both, and a follower may always
// hold one entry more of such a leader. Besides, the first record after a sync of
// the segments voids all before it. What remains is rot: if a new frame is damaged
// on the disk before anything was journaled again, an old one may take its place,
// unless a mark tells.
type journaled struct {
	frames map[journalKey]journaledFrame
	first  wire.Index // lowest of the frames; what lies below is durable in the segments
	mark   wire.Index
}

// journalKey says what a frame continues, and in which segment: the frame behind it
// may lie at the start of the next one.
type journalKey struct {
	fileID uint64
	index  wire.Index
	prev   uint32
}

type journaledFrame struct {
	header wire.FrameHeader
	file   *journalFile
	pos    int64
}

// read finds the frames of an identity that is kept. It may block.
func (g *journal) read(identity [16]byte) (*journaled, error) {
	if g == nil {
		return nil, nil
	}
	type source struct {
		f     *journalFile
		spans []journalSpan
		end   int64
	}
	g.mu.Lock()
	var sources []source
	for _, f := range g.old {
		if f.kept[identity] {
			sources = append(sources, source{f, f.index[identity], f.end})
		}
	}
	// A log that was fenced in this run and is opened again.
	for _, f := range append(append([]*journalFile(nil), g.held...), g.active) {
		if f != nil && f.kept[identity] {
			sources = append(sources, source{f, nil, f.end})
		}
	}
	g.mu.Unlock()
	if len(sources) == 0 {
		return nil, nil
	}
	out := &journaled{frames: map[journalKey]journaledFrame{}, first: noIndex}
	buffer := make([]byte, 0, maxJournalEntry)
	for _, s := range sources {
		if s.spans == nil {
			_, err := scanJournal(s.f.file, s.f.sequence, g.seed, s.end, func(r journalRecord, pos int64, _ []byte) {
				if r.identity == identity {
					s.spans = append(s.spans, journalSpan{pos, r.length, r.fresh, r.fileID})
				}
			})
			if err != nil {
				return nil, fmt.Errorf("%s: %w", g.path(s.f.sequence), err)
			}
		}
		for _, span := range s.spans {
			if uint32(cap(buffer)) < span.length {
				buffer = make([]byte, span.length)
			}
			buffer = buffer[:span.length]
			if _, err := s.f.file.ReadAt(buffer, span.pos); err != nil {
				return nil, fmt.Errorf("%s: position %d: read: %w", g.path(s.f.sequence), span.pos, err)
			}
			if span.fresh {
				clear(out.frames)
				out.first = noIndex
			}
			if err := out.add(s.f, span, buffer); err != nil {
				return nil, fmt.Errorf("%s: position %d: %w", g.path(s.f.sequence), span.pos, err)
			}
		}
	}
	return out, nil
}

// add enters the frames of a record, as far as they are whole. A later frame takes
// the place of an earlier one that continues the same.
func (jd *journaled) add(f *journalFile, span journalSpan, b []byte) error {
	for at := span.pos; len(b) > 0; {
		h, err := wire.ParseFrameHeader(b)
		if errors.Is(err, wire.ErrFrameVersion) {
			return fmt.Errorf("%w: %w", ErrTooNew, err)
		}
		if err != nil || h.FrameSize() > int64(len(b)) || wire.Checksum(b[wire.FrameHeaderSize:][:h.BodyLength]) != h.BodyCRC {
			return nil
		}
		jd.first = min(jd.first, h.Index)
		jd.frames[journalKey{span.fileID, h.Index, h.PrevCRC}] = journaledFrame{header: h, file: f, pos: at}
		if mark, ok := segment.DecodeMark(span.fileID, h.HeaderCRC, h.Local); ok {
			jd.mark = max(jd.mark, mark)
		}
		b, at = b[h.FrameSize():], at+h.FrameSize()
	}
	return nil
}

// after returns the frame that continues link in the segment with a file ID.
func (jd *journaled) after(link segment.Link, fileID uint64) (journaledFrame, bool) {
	if jd == nil {
		return journaledFrame{}, false
	}
	m, ok := jd.frames[journalKey{fileID, link.Index + 1, link.Chain}]
	if !ok || link.Check(&m.header) != nil {
		return m, false
	}
	return m, true
}

// mergedFrame is a frame of the journal and its place in a segment.
type mergedFrame struct {
	journaledFrame
	segment int // number in recovery.segments
	at      int64
}

// merge continues a scan that ended, or met damage, with frames of the journal: in
// memory, each is entered at the place where it belongs. It reports whether there
// were any; then the segment may go on behind them.
func (r *recovery) merge(s *segment.Segment, each func(*wire.FrameHeader, int64)) bool {
	found := false
	for {
		m, ok := r.journaled.after(r.link, s.FileID())
		if !ok || r.pos+m.header.FrameSize() > s.Capacity() || r.continues(r.at, r.link) {
			return found
		}
		r.merged = append(r.merged, mergedFrame{m, len(r.segments), r.pos})
		each(&m.header, r.pos)
		r.link, r.pos = segment.After(&m.header), r.pos+m.header.FrameSize()
		found = true
	}
}

// mergeBody takes a frame from the journal of which the segment has the header and
// not the body. It reports whether it could.
func (r *recovery) mergeBody(f *foundSegment, pos int64, link segment.Link, h *wire.FrameHeader) bool {
	m, ok := r.journaled.after(link, f.fileID)
	if !ok || m.header.HeaderCRC != h.HeaderCRC {
		return false
	}
	r.merged = append(r.merged, mergedFrame{m, len(r.segments), pos})
	r.l.damage.heal(f.sequence, pos, link, h)
	return true
}

// writeMerged writes what was merged into the segments. It is durable after cut.
func (r *recovery) writeMerged() error {
	if len(r.merged) == 0 {
		return nil
	}
	l := r.l
	var buffer []byte
	for _, m := range r.merged {
		s := r.segments[m.segment]
		size := m.header.FrameSize()
		if need := m.at + size; need > s.Allocated() {
			if err := l.store.withReserve(func() error { return s.Extend(s.NextStep(need)) }); err != nil {
				return err
			}
		}
		buffer = append(buffer[:0], make([]byte, size)...)
		if _, err := m.file.file.ReadAt(buffer, m.pos); err != nil {
			return fmt.Errorf("sync journal %s: position %d: read: %w", journalFileName(m.file.sequence), m.pos, err)
		}
		f, err := s.File()
		if err != nil {
			return err
		}
		_, err = f.File.WriteAt(buffer, m.at)
		f.Release()
		if err != nil {
			return fmt.Errorf("segment %s: position %d: write: %w", s.Name(), m.at, segment.Final(err))
		}
	}
	l.logger.Info("entries of the sync journal are written to the log", "dir", l.o.Dir,
		"entries", len(r.merged), "first", r.merged[0].header.Index, "last", r.link.Index)
	return nil
}

// firm is the last entry that is known to be durable in the segments themselves. A
// mark also counts what only the journal has made durable.
func (r *recovery) firm() wire.Index {
	if r.journaled == nil || r.journaled.first == noIndex {
		return r.limit
	}
	return min(r.limit, r.journaled.first-1)
}
