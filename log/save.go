package log

import (
	"errors"
	"fmt"

	"github.com/lockstepmq/lockstep/segment"
	"github.com/lockstepmq/lockstep/wire"
)

// checkpointJob writes a checkpoint over the older of the two.
type checkpointJob struct {
	l          *Log
	checkpoint savedCheckpoint
	known      bool // position and link are filled in
	name       int
	written    int64 // Log.written when it was asked for
	submitted  bool
	ran        bool
	content    []byte
	err        error
}

// WriteCheckpoint writes a checkpoint by a job, after the log is durable through
// Applied (RULES L5), which it makes so if necessary. Two are kept; once it is
// durable, segments below the older one that were trimmed are removed. The log
// keeps the slices until CheckpointPending is false again. Only one may be
// pending. A full disk loses the checkpoint with a warning; the older ones stay.
func (l *Log) WriteCheckpoint(c Checkpoint) {
	if l.saving != nil {
		panic(fmt.Sprintf("log %s: checkpoint at %d while one at %d is pending", l.o.Dir, c.Applied, l.saving.checkpoint.Applied))
	}
	if c.Applied > l.LastIndex() || c.Applied < l.newest {
		panic(fmt.Sprintf("log %s: checkpoint at %d, newest %d, last %d", l.o.Dir, c.Applied, l.newest, l.LastIndex()))
	}
	if l.closed || l.err != nil {
		return
	}
	j := &checkpointJob{l: l, checkpoint: savedCheckpoint{Checkpoint: c}, name: 1 - l.newestName, written: l.written.Load()}
	if p, ok := l.place(c.Applied); ok {
		j.known = true
		j.checkpoint.position = p.position()
		j.checkpoint.chain = p.link.Chain
		j.checkpoint.timeMs = p.link.TimeMs
		if c.Term != p.link.Term || c.NextOffset != p.link.Next {
			panic(fmt.Sprintf("log %s: checkpoint at %d says term %d and next offset %d, the log %d and %d",
				l.o.Dir, c.Applied, c.Term, c.NextOffset, p.link.Term, p.link.Next))
		}
	}
	l.saving = j
	l.startSaving()
	if !j.submitted {
		if l.syncing != nil {
			l.pending.Lock()
			l.pending.force = true
			l.pending.Unlock()
			l.syncWanted = true
			return
		}
		l.SyncNow()
	}
}

// startSaving submits the pending checkpoint when the segments are durable through
// it: a start takes what lies below a checkpoint from them and not from the journal.
func (l *Log) startSaving() {
	j := l.saving
	if j == nil || j.submitted || l.settled < j.checkpoint.Applied {
		return
	}
	j.submitted = true
	l.o.Executor.Submit(j)
}

func (j *checkpointJob) Run() {
	if !j.l.gate.enter() {
		return
	}
	defer j.l.gate.leave()
	j.ran = true
	j.err = j.run()
}

func (j *checkpointJob) run() error {
	l := j.l
	c := &j.checkpoint
	if !j.known {
		if err := j.find(); err != nil {
			return err
		}
	}
	if c.Save != nil {
		c.State = c.Save(nil)
	}
	j.content = c.append(nil, l.id)
	if n := int64(len(j.content)); n > l.store.o.CheckpointBytes {
		return fmt.Errorf("checkpoint at %d: %w: %d bytes, the limit is %d; let groups or producers of the partition expire", c.Applied, ErrCheckpointTooLarge, n, l.store.o.CheckpointBytes)
	}
	err := l.store.withReserve(func() error { return replaceFile(l.fs, l.o.Dir, checkpointNames[j.name], j.content) })
	if err != nil {
		return fmt.Errorf("checkpoint at %d: %w", c.Applied, err)
	}
	return nil
}

// find looks for the entry at Applied in its segment.
func (j *checkpointJob) find() error {
	c := &j.checkpoint
	pos, h, err := j.l.findIndex(c.Applied)
	if err != nil {
		return fmt.Errorf("checkpoint at %d: %w", c.Applied, err)
	}
	if h.Term != c.Term || h.NextOffset() != c.NextOffset {
		return fmt.Errorf("checkpoint at %d says term %d and next offset %d, the log %d and %d",
			c.Applied, c.Term, c.NextOffset, h.Term, h.NextOffset())
	}
	c.position = Position{Segment: pos.Segment, Byte: pos.Byte + h.FrameSize()}
	c.chain, c.timeMs = segment.After(&h).Chain, h.AppendTimeMs
	return nil
}

func (j *checkpointJob) Done() {
	l := j.l
	if l.saving != j {
		return
	}
	l.saving = nil
	if l.closed || l.err != nil || !j.ran {
		return
	}
	if j.err != nil {
		if !isPassing(j.err) && !errors.Is(j.err, ErrCheckpointTooLarge) {
			l.fence(j.err)
			return
		}
		l.store.checkpointsFailed.Add(1)
		l.logger.Warn("checkpoint is not written", "dir", l.o.Dir, "cause", j.err)
		return
	}
	l.older, l.newest, l.newestName = l.newest, j.checkpoint.Applied, j.name
	l.savedBytes = j.written
	l.noteSaved(j.name, j.content, &j.checkpoint.Checkpoint)
	if l.checkpoint != nil {
		kept := *l.checkpoint
		kept.State, kept.ConfState = nil, nil
		l.checkpoint = &kept
	}
	l.maybeDrop()
}

// Checkpoint is the newest one as of Open, nil if there was none. State and
// ConfState are nil once a newer one was written.
func (l *Log) Checkpoint() *Checkpoint { return l.checkpoint }

// CheckpointPending says that a checkpoint is being written.
func (l *Log) CheckpointPending() bool { return l.saving != nil }

// BytesSinceCheckpoint is how much has been appended since the newest checkpoint:
// what a restart would have to read.
func (l *Log) BytesSinceCheckpoint() int64 { return l.written.Load() - l.savedBytes }

// findIndex finds the frame of an entry that is not taken back meanwhile. It may
// block. Any goroutine.
func (l *Log) findIndex(i wire.Index) (Position, wire.FrameHeader, error) {
	for _, s := range *l.segments.Load() {
		if s.Previous().Index >= i {
			break
		}
		if !s.Acquire() {
			continue
		}
		pos, h, err := s.Find(s.End(),
			func(e *segment.SparseEntry) bool { return e.Index > i },
			func(_ int64, h *wire.FrameHeader) bool { return h.Index == i })
		s.Release()
		if err == nil {
			return Position{Segment: s.Sequence(), Byte: pos}, h, nil
		}
		if !segment.IsDamage(err) {
			return Position{}, h, err
		}
	}
	return Position{}, wire.FrameHeader{}, fmt.Errorf("entry %d: %w", i, errNoEntry)
}
