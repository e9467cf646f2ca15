package log

import (
	"errors"
	"slices"

	"github.com/lockstepmq/lockstep/segment"
)

// Close ends the log. It blocks: jobs that run are waited for, those that have not
// started will do nothing. Unless the log is fenced, everything is synced, and
// with clean the slot says so, which spares the next Open most of its work. Views
// that are held stay valid. Jobs may still be handed back with Done.
func (l *Log) Close(clean bool) error {
	if l.closed {
		return ErrClosed
	}
	l.gate.close()
	if j := l.syncing; j != nil {
		l.syncing = nil
		l.store.syncEnds()
		l.finishSync(j)
	}
	l.closed = true
	var err error
	if l.err == nil {
		j := &syncJob{l: l}
		l.pending.Lock()
		l.pending.mark, l.pending.clean = clean || l.slot.written, clean
		l.refreshSlotLocked()
		l.pending.Unlock()
		j.run()
		l.closed = false // so that a failure fences
		l.finishSync(j)
		l.closed = true
	}
	if l.err != nil {
		err = l.err
		(&fenceJob{l: l}).write()
	}
	l.sleep()
	l.pending.Lock()
	for _, f := range l.pending.files {
		f.ref.Release()
	}
	l.pending.files = nil
	l.pending.Unlock()
	all := append([]*segment.Segment(nil), *l.segments.Load()...)
	if l.active != nil && !slices.Contains(all, l.active) {
		all = append(all, l.active) // the write of its first frame has failed
	}
	all = append(all, l.removed...)
	all = append(all, l.dying...)
	if l.next != nil {
		all = append(all, l.next)
	}
	l.segments.Store(&[]*segment.Segment{})
	for _, s := range all {
		s.Release()
	}
	return errors.Join(err)
}
