package log

import (
	"fmt"
	"slices"

	"github.com/lockstepmq/lockstep/wire"
)

// syncJob makes everything durable that was written before it started. There is
// one for each log, in flight or not.
type syncJob struct {
	l *Log

	// Filled by Run, read by Done.
	ran    bool
	ticket uint64
	index  wire.Index
	files  []dirtyFile
	marked bool
	shared bool // made durable by the store's journal
	err    error
}

// Sync submits a sync if something waits for it and none is in flight; if one is,
// another follows by itself if that one does not cover everything asked for.
func (l *Log) Sync() {
	if l.closed || l.err != nil {
		return
	}
	if l.syncing != nil {
		l.syncWanted = true
		return
	}
	l.pending.Lock()
	needed := l.pending.need.ticket != 0 || l.pending.force
	l.pending.Unlock()
	if needed {
		l.submitSync()
	}
}

// SyncNow syncs what was written even if nothing waits for it: the periodic sync
// of mode interval.
func (l *Log) SyncNow() {
	if l.closed || l.err != nil || l.settled == l.LastIndex() {
		return
	}
	l.pending.Lock()
	l.pending.force = true
	l.pending.Unlock()
	l.Sync()
}

// MarkIdle makes the durable mark and the commit durable in the hard-state slot,
// with one sync. It is called when the log has been idle for 100 ms: no later
// frame carries the mark of the last one. The log gives its open file back to the
// store's limits until it is used again.
func (l *Log) MarkIdle() {
	if l.closed || l.err != nil {
		return
	}
	l.sleepy = true
	if l.syncing == nil && l.settled == l.LastIndex() {
		l.pending.Lock()
		l.refreshSlotLocked()
		done := l.slot.last.says(&l.pending.slot)
		l.pending.Unlock()
		if done {
			l.sleep()
			return
		}
	}
	l.wantMark()
}

// wantMark asks for a sync that ends with the slot.
func (l *Log) wantMark() {
	l.pending.Lock()
	l.pending.mark, l.pending.force = true, true
	l.pending.Unlock()
	l.Sync()
}

// sleep lets go of the open files: they stay open as long as the limits allow.
func (l *Log) sleep() {
	if l.activeFile != nil {
		l.activeFile.Release()
		l.activeFile = nil
	}
	if l.nextFile != nil {
		l.nextFile.Release()
		l.nextFile = nil
	}
}

func (l *Log) submitSync() {
	j := &l.syncJob
	*j = syncJob{l: l, files: j.files[:0]}
	l.syncing = j
	l.syncWanted = false
	l.store.syncBegins()
	if !l.store.journal.offer(j) {
		l.o.Executor.Submit(j)
	}
}

// shareable says whether the store's journal can make durable what is pending: a
// few bytes of frames behind durable ones, and nothing else. The hard state is
// not dirty, because it must be durable before the frames are.
func (l *Log) shareable() bool {
	l.pending.Lock()
	defer l.pending.Unlock()
	return l.shareableLocked()
}

func (l *Log) shareableLocked() bool {
	p := &l.pending
	return len(p.files) == 1 && !p.whole && p.from < p.to && p.to-p.from <= maxJournalEntry &&
		!p.force && !p.mark && !p.stateDirty && l.slot.written
}

// pendingBytes is how much of the active segment waits for a sync.
func (l *Log) pendingBytes() int {
	l.pending.Lock()
	defer l.pending.Unlock()
	return int(l.pending.to - l.pending.from)
}

// take begins the job for the journal: a record with what is pending is put behind
// dst. It is false if the job needs a sync of its own after all, which then
// covers the same and more.
//
// The bytes are read back from the file, so that Append keeps nothing for the
// journal. If entries are taken back meanwhile, what is read of them may be
// anything: recovery checks every frame, and nobody is told that they are durable.
func (j *syncJob) take(dst []byte) ([]byte, bool) {
	l := j.l
	p := &l.pending
	p.Lock()
	if !l.shareableLocked() {
		p.Unlock()
		return dst, false
	}
	// The file stays open: only a sync of it, of which there is one at a time, takes
	// it out of the pending ones.
	f, from, n := p.files[0], p.from, int(p.to-p.from)
	j.ticket, j.index = p.ticket, p.index
	p.from = p.to
	p.takeNeed()
	p.cut = noIndex
	p.Unlock()

	start := len(dst)
	dst = slices.Grow(dst, recordHeaderSize+n)[:start+recordHeaderSize+n]
	if _, err := f.ref.File.ReadAt(dst[start+recordHeaderSize:], from); err != nil {
		return dst[:start], false
	}
	r := journalRecord{
		identity: l.identity, fileID: f.seg.FileID(), length: uint32(n),
		fresh: l.journaled.Load() == nil,
	}
	r.encode(dst[start:])
	return dst, true
}

func (j *syncJob) Run() {
	if j.ran {
		return // the journal has dealt with it
	}
	l := j.l
	if !l.gate.enter() {
		return
	}
	defer l.gate.leave()
	j.run()
}

// run takes what is pending and makes it durable: the hard state first, because
// entries must not outlive the term they were accepted in, then the files, oldest
// first, then the mark, which may only say what is durable already.
func (j *syncJob) run() {
	l := j.l
	p := &l.pending
	p.Lock()
	j.ran = true
	j.ticket, j.index = p.ticket, p.index
	j.files = append(j.files[:0], p.files...)
	clear(p.files)
	p.files = p.files[:0]
	p.from, p.to, p.whole = 0, 0, false
	slot, stateDirty, mark, clean := p.slot, p.stateDirty, p.mark, p.clean
	p.stateDirty, p.mark, p.force = false, false, false
	p.takeNeed()
	p.cut = noIndex
	durable := min(p.commit, j.index) // when the files are synced
	p.Unlock()

	if stateDirty && !mark || stateDirty && len(j.files) > 0 {
		if j.err = l.writeSlot(slot); j.err != nil {
			return
		}
	}
	for _, f := range j.files {
		if err := f.ref.File.Sync(); err != nil {
			j.err = fmt.Errorf("segment %s: sync: %w", f.seg.Name(), err)
			return
		}
	}
	if !mark {
		return
	}
	j.marked = true
	slot.commit = max(slot.commit, durable)
	slot.mark = max(slot.mark, durable)
	if clean {
		slot.flags |= slotClean
	}
	j.err = l.writeSlot(slot)
}

// writeSlot makes a state durable in the slot. It may block; jobs only, one at a
// time.
func (l *Log) writeSlot(s slotState) error {
	if err := l.store.states.write(l.slot, s); err != nil {
		return err
	}
	return l.store.states.sync()
}

func (j *syncJob) Done() {
	l := j.l
	if l.syncing != j {
		return // Close has dealt with it
	}
	l.syncing = nil
	l.store.syncEnds()
	l.finishSync(j)
	marked := j.marked // the job is used again by the next sync, which may begin here
	if l.closed || l.err != nil {
		l.saveFence()
		return
	}
	l.startSaving()
	l.maybeDrop()
	if marked && l.sleepy {
		l.sleep()
	}
	if l.syncWanted {
		l.Sync()
	}
}

// finishSync takes the result of a job that ran. After the fence results are
// ignored.
func (l *Log) finishSync(j *syncJob) {
	for i := range j.files {
		j.files[i].ref.Release()
		j.files[i] = dirtyFile{}
	}
	if l.err == nil && j.ran && j.err != nil {
		l.fence(j.err)
	}
	if l.err != nil {
		l.store.journal.abandon(l) // the sync may have ended after the fence
		return
	}
	if !j.ran {
		return
	}
	if !j.shared {
		l.store.journal.settled(l)
	}
	p := &l.pending
	p.Lock()
	defer p.Unlock()
	p.taken = need{}
	l.synced = max(l.synced, min(j.index, p.cut-1))
	if !j.shared {
		l.settled = l.synced
	}
	l.refreshSlotLocked()
}

// fenceJob writes the fence into the hard-state slot, if that is possible, so
// that it survives a restart (RULES L9).
type fenceJob struct {
	l   *Log
	err error
}

// saveFence submits the fenceJob when nobody else uses the slot.
func (l *Log) saveFence() {
	if l.err == nil || l.closed || l.fenceSaving || l.syncing != nil || l.store.states.failed.Load() {
		return
	}
	l.fenceSaving = true
	l.o.Executor.Submit(&fenceJob{l: l})
}

func (j *fenceJob) Run() {
	if !j.l.gate.enter() {
		return
	}
	defer j.l.gate.leave()
	j.write()
}

func (j *fenceJob) write() {
	s := j.l.slot.last
	s.flags = s.flags&^slotClean | slotFenced
	s.boot = j.l.store.boot
	j.err = j.l.writeSlot(s)
}

func (j *fenceJob) Done() {
	if j.err != nil {
		j.l.logger.Error("the fence could not be saved", "dir", j.l.o.Dir, "cause", j.err)
	}
}
