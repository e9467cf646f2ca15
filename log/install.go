package log

import (
	"errors"
	"fmt"
	"path"
	"slices"

	"github.com/lockstepmq/lockstep/segment"
	"github.com/lockstepmq/lockstep/vfs"
	"github.com/lockstepmq/lockstep/wire"
)

// A replica that is behind the start of its leader's log gets that start and a
// checkpoint at or above it, and then the entries from the start on. Its own log is
// thrown away. Install does that so that a crash leaves the old log or the new one:
//
//	1. The checkpoint is written over the older of the two, marked as transferred and
//	   with the start that it belongs to. A log that begins below that start does not
//	   look at it: nothing has happened.
//	2. The manifest is replaced by one that begins at the start and names no segment.
//	   From here on this is the log.
//	3. The old segments are removed; if that is cut short they are strangers at the
//	   next start and go to quarantine.
//
// The term of the leader is durable before all that, because the hard state goes
// first. A commit at or above the start needs no place of its own: a log that
// begins there says so.

// installJob carries out steps 1 and 2.
type installJob struct {
	l        *Log
	start    segment.Link
	content  []byte // of the checkpoint file
	saved    *savedCheckpoint
	manifest *manifest
	name     int
	ran      bool
	err      error
}

// ParseCheckpoint decodes a checkpoint file of another replica of this log. The
// slices of the result are views into content. Any goroutine.
func (l *Log) ParseCheckpoint(content []byte) (*Checkpoint, error) {
	c, err := l.parseForeign(content)
	if err != nil {
		return nil, err
	}
	return &c.Checkpoint, nil
}

func (l *Log) parseForeign(content []byte) (*savedCheckpoint, error) {
	c, id, err := parseCheckpoint(content)
	if err != nil {
		return nil, fmt.Errorf("log %s: checkpoint of another replica: %w", l.o.Dir, err)
	}
	if id != l.id {
		return nil, fmt.Errorf("log %s: %w: checkpoint of partition %x incarnation %d", l.o.Dir, ErrIdentity, id.PartitionID, id.Incarnation)
	}
	return c, nil
}

// Install replaces the log by one that begins behind start, with the checkpoint in
// content, the file of another replica at or above it. Everything that the log held
// must be below what is committed elsewhere. nil means that it is done, durably, and
// Checkpoint is the new one; then the log has no entry. ErrNotReady means that
// something has to end first, or that a job was submitted: the same call belongs into
// the turn of its Done. ErrDiskFull and ErrResources pass. Owner only.
func (l *Log) Install(start Link, content []byte) error {
	if l.closed {
		return ErrClosed
	}
	if l.err != nil {
		return l.err
	}
	if l.startLink == start && l.places.len() == 1 {
		return nil
	}
	if start.Index <= l.commit() {
		panic(fmt.Sprintf("log %s: a log from %d on is installed, committed %d", l.o.Dir, start.Index, l.commit()))
	}
	if err := l.installErr; err != nil {
		l.installErr = nil
		return err
	}
	l.pending.Lock()
	dirty := len(l.pending.files) > 0 || l.pending.need.ticket != 0
	l.pending.force = l.pending.force || dirty
	l.pending.Unlock()
	if dirty && l.syncing == nil {
		l.submitSync()
	}
	if dirty || l.syncing != nil || l.structural || l.sealing || l.erasing || l.saving != nil {
		return ErrNotReady
	}
	saved, err := l.parseForeign(content)
	if err != nil {
		return err
	}
	if saved.Applied < start.Index {
		return fmt.Errorf("log %s: %w: checkpoint at %d for a log from %d on", l.o.Dir, errFields, saved.Applied, start.Index)
	}
	saved.transferred = true
	saved.position = Position{Byte: int64(start.Index)}
	m := l.manifest()
	m.start, m.segments = start, nil
	l.structural = true
	l.o.Executor.Submit(&installJob{l: l, start: start, content: saved.append(nil, l.id), saved: saved, manifest: m, name: 1 - l.newestName})
	return ErrNotReady
}

func (j *installJob) Run() {
	if !j.l.gate.enter() {
		return
	}
	defer j.l.gate.leave()
	j.ran = true
	steps := []func() error{j.writeCheckpoint, func() error { return j.l.writeManifest(j.manifest) }}
	if j.l.startFirst {
		slices.Reverse(steps)
	}
	j.err = j.l.store.withReserve(func() error {
		for _, step := range steps {
			if err := step(); err != nil {
				return err
			}
		}
		return nil
	})
}

func (j *installJob) writeCheckpoint() error {
	if err := replaceFile(j.l.fs, j.l.o.Dir, checkpointNames[j.name], j.content); err != nil {
		return fmt.Errorf("checkpoint at %d: %w", j.saved.Applied, err)
	}
	return nil
}

func (j *installJob) Done() {
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
		l.fence(j.err)
	default:
		l.begin(j)
		l.maybeDrop()
	}
}

// begin makes the log one without entries behind the start of an installation.
func (l *Log) begin(j *installJob) {
	l.sleep()
	l.dying = append(l.dying, *l.segments.Load()...)
	l.dying = append(l.dying, l.removed...)
	if l.active != nil && !slices.Contains(l.dying, l.active) {
		l.dying = append(l.dying, l.active) // the write of its first frame has failed
	}
	if l.next != nil {
		l.dying = append(l.dying, l.next)
	}
	l.segments.Store(&[]*segment.Segment{})
	l.removed, l.active, l.next = nil, nil, nil
	l.sealNext, l.tableNext = 0, 0
	l.startLink = j.start
	l.places.truncate(0)
	l.places.push(place{link: j.start, maxTimeMs: segment.NoTime})
	l.runs = nil
	for l.tail.len() > 0 {
		l.leaving.push(*l.tail.at(0))
		l.tail.popFront()
	}
	l.tailBytes = 0
	l.synced, l.settled = j.start.Index, j.start.Index
	l.store.journal.settled(l)
	l.damage.forget(noIndex)
	l.written.Store(0)
	l.trimmed.Store(0)
	l.erased.Store(0)
	l.savedBytes = 0
	l.start.Store(uint64(j.start.Next))
	begins := &Watermark{Next: j.start.Next, Index: j.start.Index}
	l.watermark.Store(begins)
	l.found.Store(begins)
	checkpoint := j.saved.Checkpoint
	l.checkpoint = &checkpoint
	l.older, l.newest, l.newestName = 0, j.saved.Applied, j.name
	l.noteSaved(j.name, j.content, &checkpoint)
	l.hs.Commit = max(l.hs.Commit, j.start.Index)
	l.pending.Lock()
	defer l.pending.Unlock()
	l.pending.index, l.pending.cut = j.start.Index, noIndex
	l.pending.from, l.pending.to, l.pending.whole = 0, 0, false
	l.refreshSlotLocked()
}

// SavedCheckpoint describes the newest checkpoint file.
type SavedCheckpoint struct {
	Applied   wire.Index
	ConfState []byte
	Size      int64  // bytes of the file
	CRC       uint32 // CRC32C of all of them

	name int
}

// SavedCheckpoint is the newest durable checkpoint, nil if there is none. What it
// points to does not change. Any goroutine.
func (l *Log) SavedCheckpoint() *SavedCheckpoint { return l.savedCheckpoint.Load() }

// noteSaved remembers what the newest checkpoint file holds.
func (l *Log) noteSaved(name int, content []byte, c *Checkpoint) {
	l.savedCheckpoint.Store(&SavedCheckpoint{
		Applied: c.Applied, ConfState: append([]byte(nil), c.ConfState...),
		Size: int64(len(content)), CRC: wire.Checksum(content), name: name,
	})
}

// ReadCheckpoint reads the newest checkpoint file, for another replica. It may
// block. Any goroutine.
func (l *Log) ReadCheckpoint() ([]byte, error) {
	saved := l.SavedCheckpoint()
	if saved == nil {
		return nil, fmt.Errorf("log %s: there is no checkpoint", l.o.Dir)
	}
	content, err := readFile(l.fs, path.Join(l.o.Dir, checkpointNames[saved.name]), MaxCheckpointBytes)
	if err != nil {
		return nil, err
	}
	// It may have been replaced by a newer one, which is as good.
	if _, err := l.parseForeign(content); err != nil {
		return nil, err
	}
	return content, nil
}

// HoldStart keeps the entries behind an index for a holder, whatever is trimmed,
// until FreeStart. Owner only.
func (l *Log) HoldStart(holder uint64, i wire.Index) {
	if l.holds == nil {
		l.holds = make(map[uint64]wire.Index)
	}
	l.holds[holder] = i
}

// FreeStart ends HoldStart.
func (l *Log) FreeStart(holder uint64) {
	if _, held := l.holds[holder]; held {
		delete(l.holds, holder)
		l.maybeDrop()
	}
}

// Start is what stands before the first entry.
func (l *Log) Start() Link { return l.startLink }
