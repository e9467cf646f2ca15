package log

import (
	"cmp"
	"errors"
	"fmt"
	"path"
	"sort"

	"github.com/lockstepmq/lockstep/segment"
	"github.com/lockstepmq/lockstep/wire"
)

// One old record that stays keeps the whole log behind it. What was acknowledged there
// would keep its disk, although nobody may ask for it again. So runs of frames of which
// every record was acknowledged are erased: their bytes, headers included, are given back,
// and a list beside the segment says what stood before and behind each run. The headers
// that are left do not change, nor does the chain (RULES L7).
//
//	1. The list with the new runs is made durable.
//	2. Readers that come now see it. As soon as nobody holds the segment who may have come
//	   before, the runs are given back.
//
// A crash after 1 leaves bytes that the next start gives back. Only sealed segments are
// looked at, and only entries at or below the older of the two checkpoints: no start that
// one of them allows has to apply an entry that is gone.

// Records is a run of records [From, To).
type Records struct{ From, To wire.Offset }

// maxEraseSegments bounds the segments that one eraseJob looks at.
const maxEraseSegments = 256

// OlderCheckpoint is the applied index of the older of the two checkpoints, 0 if there is
// none. Owner only.
func (l *Log) OlderCheckpoint() wire.Index { return l.older }

// Erasable is about how many bytes Erase would give back, once the checkpoints allow it, in
// segments where that is enough to be worth it, and whether some that were erased are not
// given back yet. Owner only; it takes a binary search for each segment.
func (l *Log) Erasable(done []Records) (bytes int64, left bool) {
	list := *l.segments.Load()
	for n := range l.erasable(list) {
		more, _ := worth(list[n], list[n+1].Previous(), done, l.eraseLeast())
		bytes += more
		left = left || !list[n].Punched()
	}
	return bytes, left
}

// ErasableBelow is the offset behind the last segment in which something may be erased.
// Owner only.
func (l *Log) ErasableBelow() wire.Offset {
	list := *l.segments.Load()
	n := l.erasable(list)
	if n == 0 {
		return 0
	}
	return list[n].Previous().Next
}

func (l *Log) eraseLeast() int64 { return cmp.Or(l.o.EraseLeast, segment.MinErased) }

// erasable is the number of segments at the head in which runs may be erased.
func (l *Log) erasable(list []*segment.Segment) int {
	if l.eraseFailed {
		return 0
	}
	w := l.watermark.Load()
	n := 0
	for n+1 < len(list) && n < l.sealed() && list[n].Sequence() < w.Position.Segment {
		n++
	}
	return n
}

// worth is about how many bytes of a segment, which the next one continues at last, are done
// and were not when it was looked at before, 0 if they are less than least; and how many of its
// records are done.
func worth(s *segment.Segment, last segment.Link, done []Records, least int64) (bytes int64, records uint64) {
	base := s.Previous().Next
	left := s.End() - segment.HeaderSize - s.ErasedBytes()
	for i := sort.Search(len(done), func(i int) bool { return done[i].To > base }); i < len(done) && done[i].From < last.Next; i++ {
		records += uint64(min(done[i].To, last.Next) - max(done[i].From, base))
	}
	known := s.EraseTried()
	var gone uint64
	for _, r := range s.Erased() {
		gone += r.Records()
	}
	total := uint64(last.Next-base) - gone
	if known = max(known, gone); records <= known || left < least || total == 0 {
		return 0, records
	}
	if bytes = int64(float64(left) * float64(records-known) / float64(total)); bytes < least {
		return 0, records
	}
	return bytes, records
}

// Erasing reports whether Erase would do nothing now: a segment is erased, or dropped, but not
// both at once. Owner only.
func (l *Log) Erasing() bool { return l.erasing || l.structural }

// Erase gives the space of frames back whose records are all in done, ascending runs that
// do not touch and that the older checkpoint, and with it the newer, knows to be done. It
// submits a job, one at a time, and nothing if there is nothing to do. Owner only.
func (l *Log) Erase(done []Records) {
	if l.Erasing() || l.closed || l.err != nil {
		return
	}
	list := *l.segments.Load()
	j := &eraseJob{l: l, done: done, limit: l.older}
	if l.aheadOf {
		j.limit = noIndex
	}
	for n := range l.erasable(list) {
		s := list[n]
		bytes, records := worth(s, list[n+1].Previous(), done, l.eraseLeast())
		if bytes == 0 && s.Punched() || s.Previous().Index >= j.limit {
			continue
		}
		if len(j.segments) == maxEraseSegments || !s.Acquire() {
			break
		}
		s.SetEraseTried(records)
		j.segments = append(j.segments, s)
	}
	if len(j.segments) > 0 {
		l.erasing = true
		l.o.Executor.Submit(j)
	}
}

// eraseJob erases what it can of some sealed segments.
type eraseJob struct {
	l        *Log
	segments []*segment.Segment
	done     []Records
	limit    wire.Index
	buffer   []byte
	erased   int64
	err      error // of reading, or of giving space back
	unsaid   error // of the list of what is erased
}

func (j *eraseJob) Run() {
	if !j.l.gate.enter() {
		return
	}
	defer j.l.gate.leave()
	for _, s := range j.segments {
		if err := j.segment(s); err != nil {
			j.err = errors.Join(j.err, err)
			return
		}
	}
}

// segment erases in one segment.
func (j *eraseJob) segment(s *segment.Segment) error {
	runs, news, err := j.find(s)
	if err != nil || len(runs) == 0 {
		return err
	}
	if j.l.punchFirst && news > 0 {
		f, err := s.File()
		if err != nil {
			return err
		}
		defer f.Release()
		if err := segment.PunchErased(f.File, s.Name(), runs); err != nil {
			return err
		}
	}
	if news > 0 {
		if j.unsaid = j.l.store.withReserve(func() error { return s.WriteErased(runs) }); j.unsaid != nil {
			return j.unsaid
		}
		j.l.erased.Add(news)
		j.erased += news
	}
	return s.Punch()
}

// find returns the runs of a segment as they are to be, and how many bytes are new. Frames
// of changes of the configuration stay, so that whoever needs the log's entries finds them,
// and damaged frames, which are mended or skipped.
func (j *eraseJob) find(s *segment.Segment) (runs []segment.Erased, news int64, err error) {
	l := j.l
	f, err := s.File()
	if err != nil {
		return nil, 0, err
	}
	defer f.Release()
	sc := s.Scan(f, segment.HeaderSize, s.End(), j.buffer)
	defer func() { j.buffer = sc.Buffer() }()
	sc.PassBodies()
	link := s.Previous()
	var old []segment.Erased // in the run that is being put together
	var run segment.Erased
	fresh := int64(0) // bytes of it
	flush := func() {
		if fresh >= l.eraseLeast() && len(runs) < segment.MaxErased {
			runs, news = append(runs, run), news+fresh
		} else {
			runs = append(runs, old...)
		}
		run, old, fresh = segment.Erased{}, nil, 0
	}
	for sc.Position() < s.End() {
		h, err := sc.Header()
		if err == nil {
			err = sc.Check(&link, &h)
		}
		if err != nil {
			return nil, 0, l.damaged(s, sc.Position(), err) // the scrubber says so
		}
		pos, size := sc.Position(), h.FrameSize()
		after := segment.After(&h)
		gone := h.Kind == segment.KindErased
		if !gone && !j.may(s, pos, &h) {
			flush()
		} else {
			if run.To > 0 && (run.After.Term != h.Term || run.To+size-run.From > segment.MaxErasedBytes || after.Next-run.Before.Next > 1<<31) {
				flush()
			}
			if run.To == 0 {
				run = segment.Erased{From: pos, Before: link}
			}
			if run.To, run.After = pos+size, after; gone {
				old = append(old, segment.Erased{From: pos, To: pos + size, Before: link, After: after})
			} else {
				fresh += size
			}
		}
		link = after
		sc.Skip(&h)
	}
	if flush(); len(runs) > segment.MaxErased {
		return s.Erased(), 0, nil
	}
	return runs, news, nil
}

// may says whether a frame may be erased.
func (j *eraseJob) may(s *segment.Segment, pos int64, h *wire.FrameHeader) bool {
	if h.Index > j.limit || h.Kind == wire.KindConfiguration || j.l.damage.at(s.Sequence(), pos) != nil {
		return false
	}
	i := sort.Search(len(j.done), func(i int) bool { return j.done[i].To >= h.NextOffset() })
	return h.RecordCount == 0 || i < len(j.done) && j.done[i].From <= h.BaseOffset
}

func (j *eraseJob) Done() {
	l := j.l
	l.erasing = false
	releaseAll(j.segments)
	if l.closed || l.err != nil {
		return
	}
	if j.erased > 0 {
		l.logger.Info("space of acknowledged records was given back", "dir", l.o.Dir, "bytes", j.erased, "up_to_entry", j.limit)
	}
	switch {
	case j.err == nil:
	case j.unsaid != nil && !isPassing(j.unsaid):
		l.fence(j.unsaid) // what a start would find nobody knows
	case isPassing(j.err):
		l.logger.Warn("space of acknowledged records is not given back yet", "dir", l.o.Dir, "cause", j.err)
	default:
		l.eraseFailed = true
		l.logger.Warn("space of acknowledged records is given back no longer, until the broker is started again", "dir", l.o.Dir, "cause", j.err)
	}
	l.maybeDrop()
}

// erasedError says what is wrong with a list of erased runs.
func erasedError(dir string, h *segment.Header, err error) error {
	switch name := path.Join(dir, segment.ErasedName(h.Sequence, h.FileID)); {
	case err == nil:
		return nil
	case errors.Is(err, segment.ErrTooNew):
		return fmt.Errorf("%s: %w: %w", name, ErrTooNew, err)
	case errors.Is(err, segment.ErrFormat), errors.Is(err, segment.ErrChecksum):
		return &CorruptionError{File: name, Cause: err}
	default:
		return err
	}
}

// eraseAgain gives the space of erased runs back once more: the log may have ended between
// their list and that.
func (r *recovery) eraseAgain() error {
	for _, k := range r.used {
		f := &r.found[k]
		if len(f.erased) == 0 {
			continue
		}
		file, err := r.l.fs.Open(r.path(f.name()))
		if err != nil {
			return err
		}
		if err := errors.Join(segment.PunchErased(file, f.name(), f.erased), file.Close()); err != nil {
			return err
		}
	}
	return nil
}
