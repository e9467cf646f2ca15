package log

import (
	"fmt"

	"github.com/lockstepmq/lockstep/internal/invariants"
	"github.com/lockstepmq/lockstep/segment"
	"github.com/lockstepmq/lockstep/wire"
)

var padding [wire.FrameAlignment]byte

// maxScratchFrames is how many frames of scratch an idle log may keep.
const maxScratchFrames = 256

// Append writes entries behind the last one, or from entries[0].Index on if that
// is lower: then the entries from there on are taken back first, which must not
// be committed. It computes the frame headers (RULES L1) and writes with one
// pwritev for each segment touched. Nothing is durable when it returns, see
// Ticket. The log keeps Data by reference until Release; it must not change.
//
// ErrNotReady means that Reserve was not asked or that taking entries back has
// moved the place: nothing has happened, a job was submitted, and the same call
// will succeed after it. Malformed entry data is wire.ErrEntry and has no effect.
// Any other error is the fence.
func (l *Log) Append(entries []Entry) error {
	if l.closed {
		return ErrClosed
	}
	if l.err != nil {
		return l.err
	}
	if len(entries) == 0 {
		l.bumpTicket()
		return nil
	}
	first := entries[0].Index
	if first > l.LastIndex()+1 || first <= l.commit() {
		panic(fmt.Sprintf("log %s: append from %d, committed %d, last %d", l.o.Dir, first, l.commit(), l.LastIndex()))
	}
	from, ok := l.place(first - 1)
	if !ok {
		panic(fmt.Sprintf("log %s: no place for entry %d", l.o.Dir, first-1))
	}
	at := *from
	if err := l.encode(at.link, entries); err != nil {
		return err
	}
	split, ready := l.plan(&at, first <= l.LastIndex())
	if !ready {
		total, records := int64(0), false
		for i := range l.frames {
			total += l.frames[i].FrameSize()
			records = records || l.frames[i].Kind == wire.KindRecords
		}
		l.prepare(total, records, false, first <= l.LastIndex())
		return ErrNotReady
	}
	zeroTo := int64(0)
	if first <= l.LastIndex() {
		zeroTo = l.truncate(&at)
	}
	if err := l.write(entries[:split], 0); err != nil {
		return l.failed(err)
	}
	if zeroTo > 0 {
		// The rest of what was taken back must not follow the new frames after a crash.
		if err := l.active.Zero(l.activeFile, l.active.End(), zeroTo); err != nil {
			return l.failed(err)
		}
		// After the zeros, for a sync that starts in between would not cover them. Also
		// if no new frame goes there: they must be durable before new entries in another
		// segment are, or both would continue the log.
		l.markDirty(l.active, 0, 0)
	}
	if split < len(entries) {
		l.roll()
		if err := l.write(entries[split:], split); err != nil {
			return l.failed(err)
		}
	}
	l.noteAppend(first, entries)
	l.prepareAhead()
	if cap(l.frames) > maxScratchFrames {
		l.frames, l.headers, l.vector = nil, nil, nil
	}
	clear(l.vector[:cap(l.vector)])
	return nil
}

func (l *Log) failed(err error) error {
	l.fence(err)
	return l.err
}

// encode fills l.frames with the headers of the entries that follow link. Local
// words are set later, when the file is known.
func (l *Log) encode(link segment.Link, entries []Entry) error {
	l.frames = l.frames[:0]
	if need := len(entries) * wire.FrameHeaderSize; cap(l.headers) < need {
		l.headers = make([]byte, need)
	}
	for i := range entries {
		e := &entries[i]
		if e.Index != link.Index+1 || e.Term < link.Term {
			panic(fmt.Sprintf("log %s: entry %d of term %d after %d of term %d", l.o.Dir, e.Index, e.Term, link.Index, link.Term))
		}
		h := wire.FrameHeader{
			Kind: e.Kind, Term: e.Term, Index: e.Index, BaseOffset: link.Next,
			AppendTimeMs: link.TimeMs, PrevCRC: link.Chain,
		}
		body := e.Data
		switch e.Kind {
		case wire.KindRecords, wire.KindControl:
			kind, count, timeMs, rest, err := wire.ParseEntryPrefix(e.Data)
			if err != nil {
				return fmt.Errorf("log %s: entry %d: %w", l.o.Dir, e.Index, err)
			}
			if kind != e.Kind || count != 0 && kind != wire.KindRecords {
				return fmt.Errorf("log %s: entry %d: %w: prefix says %v with %d records", l.o.Dir, e.Index, wire.ErrEntry, kind, count)
			}
			h.RecordCount, h.AppendTimeMs, body = count, timeMs, rest
		case wire.KindConfiguration:
		case wire.KindNoOp:
			if len(e.Data) != 0 {
				return fmt.Errorf("log %s: entry %d: %w: no-op with %d bytes", l.o.Dir, e.Index, wire.ErrEntry, len(e.Data))
			}
		default:
			return fmt.Errorf("log %s: entry %d: %w: kind %d", l.o.Dir, e.Index, wire.ErrEntry, e.Kind)
		}
		h.BodyLength, h.BodyCRC = uint32(len(body)), e.BodyCRC
		if !e.Summed || invariants.Enabled {
			h.BodyCRC = wire.Checksum(body)
		}
		if e.Summed && h.BodyCRC != e.BodyCRC {
			panic(fmt.Sprintf("log %s: entry %d: the CRC of the body is %08x, not %08x as whoever appends it says", l.o.Dir, e.Index, h.BodyCRC, e.BodyCRC))
		}
		// Encoding sets the header CRC, which the next header needs.
		h.Encode(l.headers[i*wire.FrameHeaderSize:][:wire.FrameHeaderSize])
		l.frames = append(l.frames, h)
		link = segment.After(&h)
	}
	return nil
}

// plan decides how many of l.frames go behind the place, the rest goes into the
// prepared segment. It is false if space must be taken or the file opened first.
func (l *Log) plan(at *place, truncates bool) (split int, ready bool) {
	seg, pos := at.seg, at.end
	if truncates {
		seg, pos = l.cutPlace(at)
	}
	if seg != nil && !l.isOpen(seg) {
		return 0, false
	}
	for split < len(l.frames) && seg != nil {
		size := l.frames[split].FrameSize()
		if pos+size > seg.Allocated() {
			if seg == l.active && pos+size <= seg.Capacity() {
				return 0, false
			}
			break
		}
		pos += size
		split++
	}
	if split == len(l.frames) {
		return split, true
	}
	rest := int64(segment.HeaderSize)
	for i := split; i < len(l.frames); i++ {
		rest += l.frames[i].FrameSize()
	}
	return split, l.next != nil && l.nextFile != nil && rest <= l.next.Allocated()
}

// cutPlace is where the first frame behind the place lies: where new ones go when
// it is taken back.
func (l *Log) cutPlace(at *place) (*segment.Segment, int64) {
	cut, _ := l.place(at.link.Index + 1)
	if cut.seg != at.seg {
		return cut.seg, segment.HeaderSize
	}
	return at.seg, at.end
}

// isOpen says whether the owner can write to a listed segment now.
func (l *Log) isOpen(seg *segment.Segment) bool {
	if seg == l.active {
		return l.activeFile != nil
	}
	ref := seg.TryFile()
	if ref == nil {
		return false
	}
	ref.Release()
	return true
}

// write appends the entries, whose headers are in l.frames from number base on, to
// the active segment.
func (l *Log) write(entries []Entry, base int) error {
	if len(entries) == 0 {
		return nil
	}
	seg := l.active
	mark := l.mark()
	l.vector = l.vector[:0]
	size := int64(0)
	link := l.last().link
	blank := seg.End() == 0
	if blank {
		header := make([]byte, segment.HeaderSize)
		seg.Begin(link, header)
		l.vector = append(l.vector, header)
		size = segment.HeaderSize
	}
	pos := seg.End() + size
	for i := range entries {
		h := &l.frames[base+i]
		header := l.headers[(base+i)*wire.FrameHeaderSize:][:wire.FrameHeaderSize]
		h.Local = segment.EncodeMark(seg.FileID(), h.HeaderCRC, mark)
		segment.PutMark(header, h.Local)
		body := entries[i].Data[len(entries[i].Data)-int(h.BodyLength):]
		l.vector = append(l.vector, header)
		if len(body) > 0 {
			l.vector = append(l.vector, body)
		}
		if pad := h.FrameSize() - wire.FrameHeaderSize - int64(len(body)); pad > 0 {
			l.vector = append(l.vector, padding[:pad])
		}
		size += h.FrameSize()
	}
	if err := seg.Append(l.activeFile, l.vector, size); err != nil {
		return err
	}
	for i := range entries {
		h := &l.frames[base+i]
		seg.Note(h, pos)
		pos += h.FrameSize()
		l.places.push(place{link: segment.After(h), seg: seg, end: pos, maxTimeMs: seg.MaxTimeMs()})
		l.runs.add(h.Index, h.Term)
		l.tail.push(entries[i])
		l.tail.back().BodyCRC, l.tail.back().Summed = h.BodyCRC, true
		l.tailBytes += int64(len(entries[i].Data))
	}
	l.written.Store(seg.Start() + seg.End())
	from := pos - size
	if blank {
		l.listActive()
		from = 0
	}
	l.markDirty(seg, from, pos)
	return nil
}

// markDirty makes the file of a segment part of the next sync: its frames in
// [from, to) are new, and with from = 0 anything may be.
func (l *Log) markDirty(seg *segment.Segment, from, to int64) {
	l.pending.Lock()
	defer l.pending.Unlock()
	p := &l.pending
	n := len(p.files)
	known := n > 0 && p.files[n-1].seg == seg
	if p.from == p.to {
		p.from = from
	}
	p.to = to
	p.whole = p.whole || from == 0 || n > 0 && !known
	if known {
		return
	}
	ref := seg.TryFile()
	if ref == nil {
		panic(fmt.Sprintf("log %s: file of %s was closed while it was written", l.o.Dir, seg.Name()))
	}
	l.pending.files = append(l.pending.files, dirtyFile{seg: seg, ref: ref})
}

// noteAppend says what the next sync covers and whether anybody waits for it.
func (l *Log) noteAppend(first wire.Index, entries []Entry) {
	l.ticket++
	synced := l.o.Sync == SyncQuorum
	for i := range entries {
		synced = synced || entries[i].Kind != wire.KindRecords
	}
	l.pending.Lock()
	defer l.pending.Unlock()
	l.pending.ticket = l.ticket
	l.pending.index = l.LastIndex()
	if synced {
		l.pending.need.ask(l.ticket, first-1)
	}
}

func (l *Log) bumpTicket() {
	l.ticket++
	l.pending.Lock()
	defer l.pending.Unlock()
	l.pending.ticket = l.ticket
}

// listActive shows the active segment, which has its first frame now, to readers.
func (l *Log) listActive() {
	old := *l.segments.Load()
	if n := len(old); n > 0 && old[n-1] == l.active {
		return
	}
	list := make([]*segment.Segment, len(old)+1)
	copy(list, old)
	list[len(old)] = l.active
	l.segments.Store(&list)
}

// unlistActive takes the active segment, which is blank again, out of the log.
func (l *Log) unlistActive() {
	old := *l.segments.Load()
	n := len(old)
	if n == 0 || old[n-1] != l.active {
		return
	}
	kept := make([]*segment.Segment, n-1)
	copy(kept, old)
	l.segments.Store(&kept)
	l.removed = append(l.removed, l.active)
}

// roll makes the prepared segment the active one.
func (l *Log) roll() {
	start := int64(0)
	if l.active != nil {
		start = l.active.Start() + l.active.End()
		l.activeFile.Release()
		if l.active.End() == 0 {
			// All its entries were taken back and the new ones do not fit.
			l.unlistActive()
		}
	}
	l.active, l.activeFile = l.next, l.nextFile
	l.next, l.nextFile = nil, nil
	l.active.SetStart(start)
}

// truncate takes the entries behind at out of the log and returns up to which
// position of the active segment old frames remain to be zeroed.
func (l *Log) truncate(at *place) (zeroTo int64) {
	first := at.link.Index + 1
	base := l.places.at(0).link.Index
	seg, pos := l.cutPlace(at)
	maxTime := at.maxTimeMs
	if seg != at.seg {
		maxTime = segment.NoTime
	}
	zeroTo = seg.End()
	if seg != l.active {
		l.cutSegments(seg)
	}
	seg.Truncate(pos, maxTime)
	l.written.Store(seg.Start() + seg.End())
	if l.found.Load().Index >= first {
		l.found.Store(&Watermark{Next: at.link.Next, Index: at.link.Index, Position: at.position()})
	}
	l.places.truncate(int(first - base))
	l.runs.truncate(first)
	for l.tail.len() > 0 && l.tail.back().Index >= first {
		l.tailBytes -= int64(len(l.tail.back().Data))
		l.leaving.push(*l.tail.back())
		l.tail.truncate(l.tail.len() - 1)
	}
	l.synced, l.settled = min(l.synced, at.link.Index), min(l.settled, at.link.Index)
	l.pending.Lock()
	defer l.pending.Unlock()
	p := &l.pending
	p.whole = true
	p.cut = min(p.cut, first)
	p.index = min(p.index, at.link.Index)
	p.need.stable = min(p.need.stable, at.link.Index)
	p.taken.stable = min(p.taken.stable, at.link.Index)
	return zeroTo
}

// cutSegments makes seg the active segment and removes those behind it.
func (l *Log) cutSegments(seg *segment.Segment) {
	list := *l.segments.Load()
	n := len(list)
	for list[n-1] != seg {
		n--
		l.removed = append(l.removed, list[n])
	}
	kept := make([]*segment.Segment, n)
	copy(kept, list)
	l.segments.Store(&kept)
	l.sealNext = min(l.sealNext, n-1)
	l.tableNext = min(l.tableNext, l.sealNext)
	if l.activeFile != nil {
		l.activeFile.Release()
	}
	l.active, l.activeFile = seg, seg.TryFile()
}
