package log

import (
	"errors"
	"fmt"
	"path"
	"time"

	"github.com/lockstepmq/lockstep/segment"
	"github.com/lockstepmq/lockstep/wire"
)

// clockSlack is how far in the future an append time is believed: beyond it
// retention goes by the time at which the segment was sealed.
const clockSlack = time.Hour

// Trim moves the logical start of the log, which never moves back. Segments below
// it are removed, the manifest first, once the older checkpoint covers them
// (RULES L3).
func (l *Log) Trim(start wire.Offset) {
	if start <= l.StartOffset() {
		return
	}
	l.start.Store(uint64(start))
	l.maybeDrop()
}

// RetentionPoint says where a trim should put the start so that the log keeps to
// maxAge and maxBytes; either may be negative for unlimited. It is the base
// offset of a segment, behind sealed and published ones, and false if nothing
// should go.
func (l *Log) RetentionPoint(nowMs int64, maxAge time.Duration, maxBytes int64) (wire.Offset, bool) {
	list := *l.segments.Load()
	w := l.watermark.Load()
	point := l.StartOffset()
	size := l.Bytes()
	kept := false
	jumped := l.askedMs != 0 && max(nowMs-l.askedMs, l.askedMs-nowMs) > clockSlack.Milliseconds()
	l.askedMs = nowMs
	for i := 0; i+1 < len(list) && list[i].Sequence() < w.Position.Segment; i++ {
		size -= list[i].End() - list[i].ErasedBytes()
		next := list[i+1].Previous().Next
		timeMs := l.segmentTime(list[i], nowMs, jumped) // of each: it may be the first time somebody asks
		if kept || next <= l.StartOffset() {
			continue
		}
		old := maxAge >= 0 && timeMs <= nowMs-maxAge.Milliseconds()
		if kept = !old && (maxBytes < 0 || size < maxBytes); !kept {
			point = next
		}
	}
	return point, point > l.StartOffset()
}

// segmentTime is the time by which a segment ages: its largest append time, or
// if that lies in the future the time at which it was sealed, and if that is not
// known either the first time somebody asked. When the clock has jumped since it was
// asked last, by more than clockSlack, what it said before is no measure of age: then
// such a segment begins to age anew.
func (l *Log) segmentTime(s *segment.Segment, nowMs int64, jumped bool) int64 {
	believed := nowMs + clockSlack.Milliseconds()
	if t := s.MaxTimeMs(); t <= believed {
		return t
	}
	if t := s.RollTimeMs(); t > 0 && t <= believed && !jumped {
		return t
	}
	s.SetRollTimeMs(nowMs)
	return nowMs
}

// dropJob writes a manifest that no longer names some segments.
type dropJob struct {
	l        *Log
	manifest *manifest
	start    segment.Link
	fromHead int                // so many of the head go
	cut      []*segment.Segment // and these, taken back by truncation
	ran      bool
	err      error
}

// recycleJob takes files out of the directory that the manifest no longer names.
type recycleJob struct {
	l     *Log
	files []*segment.Segment
	ran   bool
	err   error
}

// maybeDrop submits what is to be removed: files that the manifest has forgotten,
// or else a manifest that forgets more.
func (l *Log) maybeDrop() {
	if l.structural || l.closed || l.err != nil {
		return
	}
	if len(l.dying) > 0 {
		l.structural = true
		l.o.Executor.Submit(&recycleJob{l: l, files: l.dying})
		l.dying = nil
		return
	}
	n := l.droppable()
	if n > 0 {
		// Raft does not start with a commit below the log's start (RULES L3).
		if start := (*l.segments.Load())[n].Previous(); l.durableCommit() < start.Index {
			if l.syncing == nil {
				l.wantMark()
			} else {
				l.pending.Lock()
				l.pending.mark, l.pending.force = true, true
				l.pending.Unlock()
				l.syncWanted = true
			}
			n = 0
		}
	}
	if n == 0 && len(l.removed) == 0 {
		return
	}
	j := &dropJob{l: l, fromHead: n, cut: l.removed, start: l.startLink}
	l.removed = nil
	m := l.manifest()
	if n > 0 {
		j.start = (*l.segments.Load())[n].Previous()
	}
	m.start = j.start
	m.segments = m.segments[n:]
	j.manifest = m
	l.structural = true
	l.o.Executor.Submit(j)
}

// durableCommit is the commit that the slot on disk holds. While a sync may be
// writing it nobody knows.
func (l *Log) durableCommit() wire.Index {
	if l.syncing != nil || !l.slot.written {
		return 0
	}
	return l.slot.last.commit
}

// AwaitsCheckpoint reports whether a trimmed segment stays only until the older
// checkpoint covers it, which a log that does not grow would never see. Owner only.
func (l *Log) AwaitsCheckpoint() bool {
	list := *l.segments.Load()
	if len(list) < 2 || l.CheckpointPending() || l.err != nil {
		return false
	}
	next := list[1].Previous()
	return l.below(next) && next.Index > l.older
}

// below says that what lies before a link is below the logical start. Entries without
// records before the first one are not, as long as nothing was trimmed: without them
// the log could not be given to others as a whole.
func (l *Log) below(next segment.Link) bool {
	start := l.StartOffset()
	return next.Next <= start && (start > 0 || l.NextOffset() == 0)
}

// droppable is the number of segments at the head that lie below the logical
// start, the older checkpoint and every reader at the watermark. While some are being
// erased it is none.
func (l *Log) droppable() int {
	if l.erasing {
		return 0
	}
	list := *l.segments.Load()
	w := l.watermark.Load()
	n := 0
	for n+1 < len(list) && n < l.sealed() {
		next := list[n+1].Previous()
		if !l.below(next) || next.Index > l.older || l.holdsAbove(next.Index) || list[n].Sequence() >= w.Position.Segment {
			break
		}
		n++
	}
	return n
}

// holdsAbove says that somebody needs an entry at or below i.
func (l *Log) holdsAbove(i wire.Index) bool {
	for _, held := range l.holds {
		if held < i {
			return true
		}
	}
	return false
}

// sealed is the number of segments whose sparse index is written.
func (l *Log) sealed() int {
	if l.sealing {
		return l.sealNext - 1
	}
	return l.sealNext
}

func (j *dropJob) Run() {
	if !j.l.gate.enter() {
		return
	}
	defer j.l.gate.leave()
	j.ran = true
	j.err = j.l.store.withReserve(func() error { return j.l.writeManifest(j.manifest) })
}

func (j *dropJob) Done() {
	l := j.l
	l.structural = false
	if l.closed || l.err != nil || !j.ran {
		if l.closed {
			releaseAll(j.cut)
		}
		return
	}
	if j.err != nil {
		l.removed = append(j.cut, l.removed...)
		if !isPassing(j.err) {
			l.fence(j.err)
			return
		}
		// The next Publish or Trim that passes a segment tries again.
		l.logger.Warn("log cannot drop segments", "dir", l.o.Dir, "cause", j.err)
		return
	}
	if j.fromHead > 0 {
		list := *l.segments.Load()
		for _, s := range list[:j.fromHead] {
			l.trimmed.Add(s.End())
			l.erased.Add(-s.ErasedBytes())
		}
		kept := append([]*segment.Segment(nil), list[j.fromHead:]...)
		l.segments.Store(&kept)
		l.dying = append(l.dying, list[:j.fromHead]...)
		l.sealNext -= j.fromHead
		l.tableNext = max(0, l.tableNext-j.fromHead)
		l.startLink = j.start
		l.damage.forget(j.start.Index)
		l.runs.trim(j.start.Index + 1)
	}
	l.dying = append(l.dying, j.cut...)
	l.maybeDrop()
}

func releaseAll(list []*segment.Segment) {
	for _, s := range list {
		s.Release()
	}
}

func (j *recycleJob) Run() {
	if !j.l.gate.enter() {
		return
	}
	defer j.l.gate.leave()
	j.ran = true
	for _, s := range j.files {
		// The last reference: nobody can acquire the segment any more. Views that are
		// held keep the unlinked file; only a file without any is used again.
		var err error
		if s.Drop() {
			err = j.l.store.recycle(j.l.o.Dir, s)
		} else {
			err = j.l.store.unlink(j.l.o.Dir, s)
		}
		if err != nil {
			j.err = errors.Join(j.err, fmt.Errorf("remove %s: %w", path.Join(j.l.o.Dir, s.Name()), err))
		}
	}
}

func (j *recycleJob) Done() {
	l := j.l
	l.structural = false
	if !j.ran {
		releaseAll(j.files)
	}
	if l.closed || l.err != nil {
		return
	}
	if j.err != nil {
		if !isPassing(j.err) {
			l.fence(j.err)
			return
		}
		// What stays behind is quarantined at the next Open.
		l.logger.Warn("log cannot remove segments", "dir", l.o.Dir, "cause", j.err)
	}
	l.maybeDrop()
}

// sealJob writes the sparse index of a segment that will not change any more.
type sealJob struct {
	l       *Log
	seg     *segment.Segment
	summary *segment.Summary
	ran     bool
	err     error
}

// seal submits the next sealJob: for segments that lie wholly below the
// watermark, one at a time.
func (l *Log) seal() {
	list := *l.segments.Load()
	if l.sealing || l.closed || l.err != nil || l.sealNext+1 >= len(list) {
		return
	}
	s := list[l.sealNext]
	if s.Sequence() >= l.watermark.Load().Position.Segment {
		return
	}
	l.sealNext++
	if !s.Acquire() {
		return
	}
	last := list[l.sealNext].Previous()
	l.sealing = true
	l.o.Executor.Submit(&sealJob{
		l: l, seg: s,
		summary: s.Summary(last, 0, l.runs.within(s.Previous().Index+1, last.Index+1)),
	})
}

func (j *sealJob) Run() {
	if !j.l.gate.enter() {
		return
	}
	defer j.l.gate.leave()
	j.ran = true
	if info, err := j.l.fs.Stat(path.Join(j.l.o.Dir, j.seg.Name())); err == nil && !info.ModTime().IsZero() {
		j.summary.RollTimeMs = info.ModTime().UnixMilli()
	}
	j.err = j.seg.WriteSparse(j.summary)
}

func (j *sealJob) Done() {
	l := j.l
	l.sealing = false
	j.seg.SetRollTimeMs(j.summary.RollTimeMs)
	j.seg.Release()
	if l.closed || l.err != nil || !j.ran {
		return
	}
	if j.err != nil && !isPassing(j.err) {
		l.fence(j.err)
		return
	}
	l.seal()
	l.tabulate()
	l.maybeDrop()
}
