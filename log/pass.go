package log

import (
	"errors"
	"fmt"
	"sort"

	"github.com/lockstepmq/lockstep/segment"
	"github.com/lockstepmq/lockstep/vfs"
	"github.com/lockstepmq/lockstep/wire"
)

// A replica that lacks entries which its leader has erased is given the run, and a
// checkpoint at or above its end, because nobody can apply what is gone (RULES L7). The
// entries before the run stay, and one frame without a body stands for the run:
//
//	1. The checkpoint is written over the older of the two, marked as transferred and with
//	   the last entry of the run. A log that does not reach that entry does not look at it:
//	   nothing has happened.
//	2. The frame is appended, like any other: what of the log was not committed is taken
//	   back first. With it the log reaches the entry.
//
// Neither erases anything here: what this replica had of the run is what it has taken back,
// or stays before the frame.

// ErasedRun is what stood before and behind consecutive erased entries of one term.
type ErasedRun struct{ Before, After Link }

// maxErasedRun bounds the records of an ErasedRun, so that one frame can stand for them.
const maxErasedRun = 1 << 31

// BehindGone returns the first entry from i on that is neither erased here nor before the first
// segment. Any goroutine.
func (l *Log) BehindGone(i wire.Index) wire.Index {
	if list := *l.segments.Load(); len(list) > 0 {
		i = max(i, list[0].Previous().Index+1)
	}
	for {
		run, ok := l.ErasedRun(i)
		if !ok {
			return i
		}
		i = run.After.Index + 1
	}
}

// ErasedRun returns the run that holds entry i, with those of the same term that follow it
// at once. It is false if the entry is not erased here. Any goroutine.
func (l *Log) ErasedRun(i wire.Index) (run ErasedRun, ok bool) {
	list := *l.segments.Load()
	n := max(sort.Search(len(list), func(n int) bool { return list[n].Previous().Index >= i })-1, 0)
	for ; n < len(list); n++ {
		runs := list[n].Erased()
		k := sort.Search(len(runs), func(k int) bool { return runs[k].After.Index >= i })
		for ; k < len(runs); k++ {
			r := &runs[k]
			switch {
			case !ok && r.Before.Index < i:
				run, ok = ErasedRun{Before: r.Before, After: r.After}, true
			case !ok || r.Before != run.After || r.After.Term != run.After.Term || r.After.Next-run.Before.Next > maxErasedRun:
				return run, ok
			default:
				run.After = r.After
			}
			i = run.After.Index + 1
		}
		if n+1 == len(list) || !ok || list[n+1].Previous() != run.After {
			return run, ok
		}
	}
	return run, ok
}

// Pass appends a run of entries that another replica has erased, so that the log ends with
// the last of them. What the log holds behind max(run.Before, what is committed) is taken
// back; up to there it must be what the other one had. content is the file of a checkpoint
// of another replica at or above the run's end; it is not looked at if a checkpoint here
// lies there, which Checkpoint returns otherwise. nil means that it is written, and not that
// it is durable, see Ticket; the checkpoint is. All other results are as those of Install.
// Owner only.
func (l *Log) Pass(run ErasedRun, content []byte) error {
	if l.closed {
		return ErrClosed
	}
	if l.err != nil {
		return l.err
	}
	if l.last().link == run.After {
		return nil
	}
	if err := l.installErr; err != nil {
		l.installErr = nil
		return err
	}
	if run.After.Index <= l.commit() {
		panic(fmt.Sprintf("log %s: entries up to %d are passed over, committed %d", l.o.Dir, run.After.Index, l.commit()))
	}
	if l.newest < run.After.Index && !l.passFirst {
		return l.fetchedAhead(run.After.Index, content)
	}
	from := min(max(l.commit(), run.Before.Index), l.LastIndex())
	if term, ok := l.Term(run.Before.Index); from < run.Before.Index || ok && term != run.Before.Term {
		return fmt.Errorf("log %s: %w: entries behind %d of term %d are passed over, the log ends at %d", l.o.Dir, errFields, run.Before.Index, run.Before.Term, l.LastIndex())
	}
	at, ok := l.place(from)
	if !ok {
		panic(fmt.Sprintf("log %s: no place for entry %d", l.o.Dir, from))
	}
	return l.pass(*at, run.After)
}

// pass appends the frame behind a place.
func (l *Log) pass(at place, after Link) error {
	if after.Term < at.link.Term || after.Next < at.link.Next || after.Next-at.link.Next > maxErasedRun {
		return fmt.Errorf("log %s: %w: entries up to %d are passed over behind %d", l.o.Dir, errFields, after.Index, at.link.Index)
	}
	h := segment.Passed(&at.link, &after)
	truncates := at.link.Index < l.LastIndex()
	l.frames = append(l.frames[:0], h)
	split, ready := l.plan(&at, truncates)
	if !ready {
		l.prepare(h.FrameSize(), false, false, truncates)
		return ErrNotReady
	}
	zeroTo := int64(0)
	if truncates {
		zeroTo = l.truncate(&at)
	}
	zero := func() error {
		if err := l.active.Zero(l.activeFile, l.active.End(), zeroTo); err != nil || zeroTo == 0 {
			return err
		}
		l.markDirty(l.active, 0, 0)
		zeroTo = 0
		return nil
	}
	if split == 0 {
		if zeroTo > 0 {
			if err := zero(); err != nil {
				return l.failed(err)
			}
		}
		l.roll()
	}
	seg, mark := l.active, l.mark()
	if len(seg.Erased()) >= segment.MaxListed {
		return l.failed(fmt.Errorf("segment %s: it passes over %d runs, which is the limit", seg.Name(), segment.MaxListed))
	}
	var vector [][]byte
	size, pos := h.FrameSize(), seg.End()
	if seg.End() == 0 {
		header := make([]byte, segment.HeaderSize)
		seg.Begin(at.link, header)
		vector = append(vector, header)
		size, pos = size+segment.HeaderSize, segment.HeaderSize
	}
	frame := make([]byte, wire.FrameHeaderSize)
	h.Encode(frame)
	segment.PutMark(frame, segment.EncodeMark(seg.FileID(), h.HeaderCRC, mark))
	if err := seg.Append(l.activeFile, append(vector, frame), size); err != nil {
		return l.failed(err)
	}
	seg.NotePassed(at.link, &h, pos)
	seg.Note(&h, pos)
	if err := zero(); err != nil {
		return l.failed(err)
	}
	if len(vector) > 0 {
		l.listActive()
	}
	l.passed(seg, &h, at.link.Index)
	return nil
}

// passed makes the log end with a frame that was written.
func (l *Log) passed(seg *segment.Segment, h *wire.FrameHeader, from wire.Index) {
	end := place{link: segment.After(h), seg: seg, end: seg.End(), maxTimeMs: seg.MaxTimeMs()}
	l.places.truncate(0) // they have no holes
	l.places.push(end)
	l.runs.add(from+1, h.Term)
	for l.tail.len() > 0 {
		l.leaving.push(*l.tail.at(0))
		l.tail.popFront()
	}
	l.tailBytes = 0
	l.written.Store(seg.Start() + seg.End())
	l.erased.Add(h.FrameSize())
	l.hs.Commit = max(l.hs.Commit, h.Index)
	l.watermark.Store(&Watermark{Next: end.link.Next, Index: h.Index, Position: end.position()})
	l.markDirty(seg, 0, 0) // not for the journal, whose frames have one entry each
	l.ticket++
	l.pending.Lock()
	l.pending.ticket, l.pending.index, l.pending.commit = l.ticket, h.Index, l.commit()
	l.pending.need.ask(l.ticket, from)
	l.pending.Unlock()
	l.seal()
	l.prepareAhead()
}

// aheadJob writes the checkpoint of step 1.
type aheadJob struct {
	l       *Log
	content []byte
	saved   *savedCheckpoint
	name    int
	ran     bool
	err     error
}

// fetchedAhead submits it.
func (l *Log) fetchedAhead(reaches wire.Index, content []byte) error {
	if l.settled < l.LastIndex() {
		// The newest checkpoint may be one that counts with the log's end only: the older one,
		// which gives way, is needed until that is durable.
		l.SyncNow()
		return ErrNotReady
	}
	if l.structural || l.saving != nil {
		return ErrNotReady
	}
	saved, err := l.parseForeign(content)
	if err != nil {
		return err
	}
	if saved.Applied < reaches {
		return fmt.Errorf("log %s: %w: checkpoint at %d for entries up to %d that are erased", l.o.Dir, errFields, saved.Applied, reaches)
	}
	saved.transferred = true
	saved.position = Position{Byte: int64(reaches)}
	l.structural = true
	l.o.Executor.Submit(&aheadJob{l: l, content: saved.append(nil, l.id), saved: saved, name: 1 - l.newestName})
	return ErrNotReady
}

func (j *aheadJob) Run() {
	if !j.l.gate.enter() {
		return
	}
	defer j.l.gate.leave()
	j.ran = true
	j.err = j.l.store.withReserve(func() error { return replaceFile(j.l.fs, j.l.o.Dir, checkpointNames[j.name], j.content) })
}

func (j *aheadJob) Done() {
	l := j.l
	l.structural = false
	if l.closed || l.err != nil || !j.ran {
		return
	}
	switch {
	case errors.Is(j.err, vfs.ErrNoSpace):
		l.installErr = fmt.Errorf("%w: %w", l.store.full(), j.err)
	case j.err != nil && isExhausted(j.err):
		l.installErr = fmt.Errorf("%w: %w", ErrResources, j.err)
	case j.err != nil:
		l.fence(fmt.Errorf("checkpoint at %d: %w", j.saved.Applied, j.err))
	default:
		checkpoint := j.saved.Checkpoint
		l.checkpoint = &checkpoint
		l.older, l.newest, l.newestName = l.newest, j.saved.Applied, j.name
		l.noteSaved(j.name, j.content, &checkpoint)
		l.maybeDrop()
	}
}
