package log

import (
	"errors"
	"fmt"
	"io"
	"path"

	"github.com/lockstepmq/lockstep/segment"
	"github.com/lockstepmq/lockstep/wire"
)

// errTooMuch ends LoadTail.
var errTooMuch = errors.New("more than may be in memory")

// LoadTail reads entries from one on, up to the last, into the in-memory tail, as if
// they had just been appended, unless they have more than most bytes of data: then it
// reads none and is false, and Stored gives them in pieces. It blocks; it is for boot,
// before anything is appended. A damaged body among them is a *CorruptionError.
func (l *Log) LoadTail(from wire.Index, most int64) (loaded bool, err error) {
	if from > l.LastIndex() {
		return true, nil
	}
	err = l.Replay(from, func(h wire.FrameHeader, body []byte) error {
		if body == nil && h.BodyLength > 0 {
			return fmt.Errorf("log %s: entry %d: %w: its body is damaged, and it is not known to be committed", l.o.Dir, h.Index, ErrCorrupt)
		}
		e := frameEntry(&h, body)
		e.Loaded = true
		l.tail.push(e)
		l.tailBytes += int64(len(e.Data))
		if l.tailBytes > most {
			return errTooMuch
		}
		return nil
	})
	if errors.Is(err, errTooMuch) {
		l.tail.truncate(0)
		l.tailBytes = 0
		return false, nil
	}
	return err == nil, err
}

// frameEntry makes the Raft entry of a frame again, with data of its own.
func frameEntry(h *wire.FrameHeader, body []byte) Entry {
	e := Entry{Index: h.Index, Term: h.Term, Kind: h.Kind, BodyCRC: h.BodyCRC, Summed: true}
	switch h.Kind {
	case wire.KindRecords, wire.KindControl:
		e.Data = make([]byte, wire.EntryPrefixSize+len(body))
		wire.PutEntryPrefix(e.Data, h.Kind, h.RecordCount, h.AppendTimeMs)
		copy(e.Data[wire.EntryPrefixSize:], body)
	case wire.KindConfiguration:
		e.Data = append([]byte(nil), body...)
	}
	return e
}

// Entries reads readable entries from one on, as far as maxBytes of data but at
// least one, and verifies them. Their data is the caller's. None means that the
// entry is not readable yet; *OutOfRangeError that it is below the start;
// *ErasedError that it was erased, *CorruptionError that it is damaged, while entries before it are returned
// without an error. It may block. Any goroutine.
func (l *Log) Entries(from wire.Index, maxBytes int) ([]Entry, error) {
	return l.entriesBelow(l.Watermark(), from, maxBytes)
}

// Stored is Entries for whoever may also see what the log was opened with and is not
// known to be committed: the replica itself, which has to apply it, and followers. What
// is taken back meanwhile may be returned, or be an error; the caller compares the
// terms with the log's.
func (l *Log) Stored(from wire.Index, maxBytes int) ([]Entry, error) {
	w := l.Watermark()
	if found := l.found.Load(); found.Index > w.Index {
		w = found
	}
	return l.entriesBelow(w, from, maxBytes)
}

func (l *Log) entriesBelow(w *Watermark, from wire.Index, maxBytes int) ([]Entry, error) {
	var out []Entry
	size := 0
	for _, s := range *l.segments.Load() {
		if s.Sequence() > w.Position.Segment || from > w.Index {
			break
		}
		if len(out) == 0 && s.Previous().Index >= from {
			return nil, l.outOfRange(0)
		}
		if !s.Acquire() {
			continue
		}
		done, err := l.readEntries(s, readEnd(s, w), &from, maxBytes, &size, &out)
		s.Release()
		if err != nil && len(out) == 0 {
			return nil, l.dropped(err)
		}
		if err != nil || done {
			break
		}
	}
	return out, nil
}

// readEntries takes entries of one segment. It reports whether that is enough.
func (l *Log) readEntries(s *segment.Segment, end int64, from *wire.Index, maxBytes int, size *int, out *[]Entry) (done bool, err error) {
	want := *from
	pos, _, err := s.Find(end,
		func(e *segment.SparseEntry) bool { return e.Index > want },
		func(_ int64, h *wire.FrameHeader) bool { return h.Index >= want })
	if errors.Is(err, io.EOF) {
		return false, nil // it lies in a later segment
	}
	if err != nil {
		return false, l.damaged(s, pos, err)
	}
	f, err := s.File()
	if err != nil {
		return false, err
	}
	defer f.Release()
	sc := s.Scan(f, pos, end, nil)
	for sc.Position() < end {
		h, err := sc.Header()
		var body []byte
		if err == nil && h.Kind == segment.KindErased {
			return false, &ErasedError{Base: h.BaseOffset, Next: h.NextOffset()}
		}
		if err == nil && h.Index != *from {
			return false, fmt.Errorf("segment %s: position %d: entry %d where %d is expected", s.Name(), sc.Position(), h.Index, *from)
		}
		if err == nil && len(*out) > 0 && *size+int(h.BodyLength) > maxBytes {
			return true, nil
		}
		if err == nil {
			body, err = sc.Body(&h)
		}
		if err != nil {
			if segment.IsDamage(err) {
				return false, &CorruptionError{File: path.Join(l.o.Dir, s.Name()), Position: sc.Position(), Cause: err}
			}
			return false, fmt.Errorf("segment %s: position %d: %w", s.Name(), sc.Position(), err)
		}
		e := frameEntry(&h, body)
		*out = append(*out, e)
		*size += len(e.Data)
		*from++
		sc.Skip(&h)
		if *size >= maxBytes {
			return true, nil
		}
	}
	return false, nil
}
