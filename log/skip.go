package log

import (
	"errors"
	"fmt"
	iofs "io/fs"
	"log/slog"
	"math/bits"
	"path"

	"github.com/lockstepmq/lockstep/segment"
	"github.com/lockstepmq/lockstep/vfs"
	"github.com/lockstepmq/lockstep/wire"
)

// A damaged header breaks the chain: the log does not know where its next frame
// begins, and the partition is down (RULES L8). Skip is the operator's decision to
// go on without the records in between. It needs a frame behind the damage that is
// whole, or a segment header or a checkpoint that knows how the chain goes on; then
// it writes headers into the gap that continue from the last whole frame and lead
// to that value. Their bodies stay as they are and do not match, which makes
// the gap an ordinary range of damaged bodies: readers get CORRUPT and the offset
// behind it, everything else is served and the log is written to.
//
// What the store's sync journal has of the log is no gap: its frames are written to
// their places first, as a start would do.
//
// The chain value of the last new header must be the one that the next frame names.
// A CRC can be met by choosing any 32 bits that it covers: the body's checksum.

// Skip closes all gaps that damaged headers tore into the log in dir, which lies in
// the data directory data, and returns them in order; none is no error. Damage with
// nothing whole behind it is left: nobody can say how many records are lost there, or
// that any are. Only damaged headers are overwritten, and what was written is durable
// when Skip returns. A Skip that is cut short by a crash is simply repeated. Errors:
// ErrLocked while a broker uses the directory, *CorruptionError for damage to what is
// not a frame, ErrTooNew, those of the file system.
func Skip(fs vfs.FS, data, dir string) (gaps []Damage, err error) {
	lock, err := fs.Lock(path.Join(data, lockName))
	if errors.Is(err, vfs.ErrLocked) {
		return nil, fmt.Errorf("%w: %w", ErrLocked, err)
	}
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	s := &skipping{fs: fs, dir: dir}
	b, err := readFile(fs, path.Join(dir, manifestName), manifestFixed+maxSegments*manifestEntry+4)
	if err != nil {
		return nil, err
	}
	if s.manifest, err = parseManifest(b); err != nil {
		return nil, fmt.Errorf("%s: %w", path.Join(dir, manifestName), err)
	}
	if err := s.readCheckpoints(); err != nil {
		return nil, err
	}
	if err := s.readHeaders(); err != nil {
		return nil, err
	}
	g, err := s.readJournal(data)
	defer g.abort()
	if err != nil {
		return nil, fmt.Errorf("sync journal: %w", err)
	}
	s.link = s.manifest.start
	for k := range s.found {
		if err := s.segment(k); err != nil {
			return s.gaps, err
		}
	}
	if len(s.gaps) == 0 {
		return nil, nil
	}
	return s.gaps, s.saveDamage()
}

// skipping is what Skip knows while it works.
type skipping struct {
	fs          vfs.FS
	dir         string
	manifest    *manifest
	checkpoints []*savedCheckpoint
	found       []foundSegment // with frames
	journaled   *journaled     // nil if the journal holds nothing of the log
	link        segment.Link
	gaps        []Damage
	buffer      []byte
}

// readCheckpoints takes those that can be read: each says how the chain stands
// behind one frame.
func (s *skipping) readCheckpoints() error {
	for _, name := range checkpointNames {
		b, err := readFile(s.fs, path.Join(s.dir, name), MaxCheckpointBytes)
		if errors.Is(err, iofs.ErrNotExist) || errors.Is(err, ErrCorrupt) {
			continue
		}
		if err != nil {
			return err
		}
		c, id, err := parseCheckpoint(b)
		if errors.Is(err, ErrTooNew) {
			return fmt.Errorf("%s: %w", path.Join(s.dir, name), err)
		}
		if err == nil && id == s.manifest.Identity && c.Applied > 0 && !c.transferred {
			s.checkpoints = append(s.checkpoints, c)
		}
	}
	return nil
}

func (s *skipping) readHeaders() error {
	for i, m := range s.manifest.segments {
		f := foundSegment{manifestSegment: m}
		file, err := s.fs.OpenReadOnly(path.Join(s.dir, f.name()))
		if err != nil {
			return err
		}
		f.header, f.size, err = readHeader(file, s.manifest.Identity, m.sequence, m.fileID)
		if f.header != nil {
			f.erased, err = s.readErased(f.header)
		}
		if err = errors.Join(err, file.Close()); err != nil {
			return fmt.Errorf("segment %s: %w", f.name(), err)
		}
		switch {
		case f.header != nil:
			s.found = append(s.found, f)
		case i+1 < len(s.manifest.segments):
			return s.corrupt(&f, 0, segment.ErrBlank)
		} // the last one may be prepared and not written yet
	}
	return nil
}

// readErased reads the list of erased runs of a segment. One that is damaged is removed:
// then what was erased is a gap like any other.
func (s *skipping) readErased(h *segment.Header) ([]segment.Erased, error) {
	runs, err := segment.ReadErased(s.fs, s.dir, h)
	if err = erasedError(s.dir, h, err); !errors.Is(err, ErrCorrupt) {
		return runs, err
	}
	return nil, errors.Join(s.fs.Remove(path.Join(s.dir, segment.ErasedName(h.Sequence, h.FileID))), s.fs.SyncDir(s.dir))
}

// readJournal finds what the store's journal holds of the log. The caller ends the
// journal with abort, also after an error. A copy of a log without the rest of its
// store has none.
func (s *skipping) readJournal(data string) (*journal, error) {
	g := newJournal(&Store{o: StoreOptions{Dir: data}, fs: s.fs, logger: slog.New(slog.DiscardHandler)})
	identity := slotIdentity(s.manifest.Identity, s.manifest.replicaID)
	uuid, err := storeUUID(s.fs, data)
	if err == nil {
		err = g.find(uuid, func(id [16]byte) bool { return id == identity })
	}
	if err == nil {
		s.journaled, err = g.read(identity)
	}
	return g, ignoreMissing(err)
}

// restore writes the journal's frame that continues the log in segment k at pos, and
// returns its size, or 0 if there is none.
func (s *skipping) restore(k int, file vfs.File, pos int64) (int64, error) {
	f := &s.found[k]
	if k+1 < len(s.found) && s.found[k+1].header.Previous == s.link {
		return 0, nil
	}
	m, ok := s.journaled.after(s.link, f.fileID)
	if size := m.header.FrameSize(); !ok || pos+size > f.size {
		return 0, nil
	}
	b := make([]byte, m.header.FrameSize())
	if n, err := m.file.file.ReadAt(b, m.pos); n < len(b) {
		return 0, fmt.Errorf("sync journal %s: position %d: read: %w", journalFileName(m.file.sequence), m.pos, err)
	}
	if _, err := file.WriteAt(b, pos); err != nil {
		return 0, fmt.Errorf("segment %s: position %d: write: %w", f.name(), pos, err)
	}
	s.link = segment.After(&m.header)
	return int64(len(b)), nil
}

func (s *skipping) corrupt(f *foundSegment, pos int64, cause error) error {
	return &CorruptionError{File: path.Join(s.dir, f.name()), Position: pos, Cause: cause}
}

// segment closes the gaps of one segment and leaves link behind its last frame.
func (s *skipping) segment(k int) (err error) {
	f := &s.found[k]
	if f.header.Previous != s.link {
		return s.corrupt(f, 0, fmt.Errorf("header continues entry %d, the log is at %d", f.header.Previous.Index, s.link.Index))
	}
	file, err := s.fs.Open(path.Join(s.dir, f.name()))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	sum, _ := segment.ReadSparse(s.fs, s.dir, f.header) // nil if it cannot be read
	before := len(s.gaps)
	restored := false
	sc := segment.NewScanner(file, segment.HeaderSize, f.size, s.buffer)
	sc.PassErased(f.erased)
	defer func() { s.buffer = sc.Buffer() }()
	for {
		h, err := sc.Header()
		if err == nil {
			err = sc.Check(&s.link, &h)
		}
		if err == nil {
			s.link = segment.After(&h)
			sc.Skip(&h)
			continue
		}
		pos := sc.Position()
		if !segment.IsDamage(err) {
			return fmt.Errorf("segment %s: position %d: %w", f.name(), pos, err)
		}
		if errors.Is(err, wire.ErrFrameVersion) {
			if index, prev, e := sc.PrevOf(); e == nil && index == s.link.Index+1 && prev == s.link.Chain {
				return fmt.Errorf("segment %s: position %d: %w: %w", f.name(), pos, ErrTooNew, err)
			}
		}
		n, e := s.restore(k, file, pos)
		if e != nil {
			return e
		}
		if n > 0 {
			restored = true
			sc = segment.NewScanner(file, pos+n, f.size, sc.Buffer())
			sc.PassErased(f.erased)
			continue
		}
		end, after, ok, e := s.continuation(k, sum, sc)
		if e != nil {
			return e
		}
		if !ok {
			break
		}
		if after.Index <= s.link.Index {
			return s.corrupt(f, pos, fmt.Errorf("what follows continues entry %d, the log is at %d: %w", after.Index, s.link.Index, err))
		}
		if len(s.gaps) == before {
			// They may name frames that are not there any more; they are made again.
			err := ignoreMissing(s.fs.Remove(path.Join(s.dir, segment.SparseName(f.sequence, f.fileID))))
			err = errors.Join(err, ignoreMissing(s.fs.Remove(path.Join(s.dir, segment.KeysName(f.sequence, f.fileID)))))
			if err = errors.Join(err, s.fs.SyncDir(s.dir)); err != nil {
				return err
			}
		}
		if err := s.close(f, file, pos, end, after); err != nil {
			return err
		}
		sc = segment.NewScanner(file, end, f.size, sc.Buffer())
		sc.PassErased(f.erased)
	}
	if len(s.gaps) == before && !restored {
		return nil
	}
	return file.Sync()
}

func ignoreMissing(err error) error {
	if errors.Is(err, iofs.ErrNotExist) {
		return nil
	}
	return err
}

// continuation finds where the log goes on behind damage in segment k, at the
// scanner's position, and what the frame there continues. It is false at the end of
// the log, or of a segment that the next one continues.
func (s *skipping) continuation(k int, sum *segment.Summary, sc *segment.Scanner) (end int64, after segment.Link, ok bool, err error) {
	f := &s.found[k]
	pos := sc.Position()
	end = f.size
	if k+1 < len(s.found) {
		if after = s.found[k+1].header.Previous; after == s.link {
			return 0, after, false, nil
		}
		if sum != nil && sum.Last == after && sum.End <= f.size {
			end = sum.End
		}
		ok = true
	}
	for _, c := range s.checkpoints {
		if at := c.position; at.Segment == f.sequence && pos < at.Byte && at.Byte <= f.size && (!ok || at.Byte < end) {
			end, after, ok = at.Byte, c.link(), true
		}
	}
	for i := range f.erased {
		if e := &f.erased[i]; pos < e.From && (!ok || e.From < end) {
			end, after, ok = e.From, e.Before, true
		}
	}
	in := inspection{}
	for sc.MoveTo(pos + wire.FrameAlignment); ; sc.MoveTo(sc.Position() + wire.FrameAlignment) {
		found, h, err := in.findNext(sc, f.fileID)
		if err != nil {
			return 0, after, false, err
		}
		if !found || ok && sc.Position() >= end {
			return end, after, ok, nil
		}
		// Not a frame that a body holds, nor one that was taken back.
		if h.Index > s.link.Index+1 && h.Term >= s.link.Term && h.BaseOffset >= s.link.Next {
			after = segment.Link{Index: h.Index - 1, Term: s.link.Term, Next: h.BaseOffset, TimeMs: s.link.TimeMs, Chain: h.PrevCRC}
			return sc.Position(), after, true, nil
		}
	}
}

// close writes headers over [pos, end) that lead from link to after: one for each
// missing entry, the last of which holds all missing records and has the space.
func (s *skipping) close(f *foundSegment, file vfs.File, pos, end int64, after segment.Link) error {
	gap := frameDamage(f.sequence, f.fileID, pos, s.link, &wire.FrameHeader{Index: s.link.Index + 1, BaseOffset: s.link.Next})
	gap.End, gap.LastIndex, gap.Next = end, after.Index, after.Next
	count := int64(after.Index - s.link.Index)
	last := end - count*wire.FrameHeaderSize - pos // bytes of the last body
	lost := after.Next - s.link.Next
	if last < 0 || last == 0 && lost > 0 || lost > 1<<32-1 || last > 1<<32-1 {
		return s.corrupt(f, pos, fmt.Errorf("entries %d to %d with %d records cannot have been in %d bytes", gap.FirstIndex, gap.LastIndex, lost, end-pos))
	}
	var block [wire.FrameHeaderSize]byte
	for s.link.Index < after.Index {
		h := wire.FrameHeader{
			Kind: wire.KindNoOp, Term: s.link.Term, Index: s.link.Index + 1, BaseOffset: s.link.Next,
			AppendTimeMs: s.link.TimeMs, PrevCRC: s.link.Chain,
		}
		if h.Index == after.Index {
			h.Term, h.AppendTimeMs, h.BodyLength = after.Term, after.TimeMs, uint32(last)
			switch {
			case lost > 0:
				h.Kind, h.RecordCount = wire.KindRecords, uint32(lost)
			case last > 0:
				h.Kind = wire.KindControl
			}
			chooseBodyCRC(&h, after.Chain)
		}
		h.Encode(block[:])
		segment.PutMark(block[:], segment.EncodeMark(f.fileID, h.HeaderCRC, 0))
		if _, err := file.WriteAt(block[:], pos); err != nil {
			return err
		}
		pos += h.FrameSize()
		s.link = segment.After(&h)
	}
	s.gaps = append(s.gaps, gap)
	return nil
}

// chooseBodyCRC sets the body's checksum to the one with which the header's is crc.
// The second is a linear function of the first, so that one value for each of its
// bits tells all (elimination over GF(2)).
func chooseBodyCRC(h *wire.FrameHeader, crc uint32) {
	var block [wire.FrameHeaderSize]byte
	sum := func(bodyCRC uint32) uint32 {
		h.BodyCRC = bodyCRC
		h.Encode(block[:])
		return h.HeaderCRC
	}
	none := sum(0)
	type row struct{ change, by uint32 }
	var rows [33]row // by length of change
	reduce := func(r row) row {
		for r.change != 0 && rows[bits.Len32(r.change)].by != 0 {
			other := rows[bits.Len32(r.change)]
			r.change, r.by = r.change^other.change, r.by^other.by
		}
		return r
	}
	for i := range 32 {
		r := reduce(row{change: sum(1<<i) ^ none, by: 1 << i})
		rows[bits.Len32(r.change)] = r
	}
	sum(reduce(row{change: none ^ crc}).by)
}

// saveDamage adds the gaps to the list of what is damaged, so that the first reader
// is told at once.
func (s *skipping) saveDamage() error {
	var d damages
	b, err := readFile(s.fs, path.Join(s.dir, damageName), damageFixed+maxDamage*damageEntry+4)
	if err == nil {
		if list, id, err := parseDamage(b); err == nil && id == s.manifest.Identity {
			d.list.Store(&list)
		}
	} else if !errors.Is(err, iofs.ErrNotExist) && !errors.Is(err, ErrCorrupt) {
		return err
	}
	for _, gap := range s.gaps {
		if _, err := d.add(gap); err != nil {
			return &CorruptionError{File: path.Join(s.dir, gap.File), Position: gap.Position, Cause: err}
		}
	}
	return replaceFile(s.fs, s.dir, damageName, encodeDamage(s.manifest.Identity, d.all()))
}
