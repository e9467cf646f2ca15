package log

import (
	"errors"
	"fmt"
	"path"
	"syscall"

	"github.com/lockstepmq/lockstep/segment"
	"github.com/lockstepmq/lockstep/vfs"
)

// ErrResources is returned by Reserve when the process has run out of file
// descriptors, maps or memory. Like ErrDiskFull it ends by itself and is no fence.
var ErrResources = errors.New("out of file descriptors or memory")

// Reserve says whether n more frame bytes (the sum of wire.FrameSize of the bodies) can be
// appended without taking space. records tells entries that a full disk stops from those it
// must not.
//
// nil means yes. ErrNotReady means that a job was submitted: ask again in the
// turn of its Done. ErrDiskFull and ErrResources mean that asking again makes
// sense after the next Store.RefreshSpace; ErrTailFull, after Release. Any other error is the fence.
func (l *Log) Reserve(n int64, records bool) error {
	if l.closed {
		return ErrClosed
	}
	if l.err != nil {
		return l.err
	}
	if records {
		if l.store.low.Load() {
			return l.store.full()
		}
		if l.tailBytes > l.o.TailBytes {
			return ErrTailFull
		}
	}
	l.sleepy = false
	if l.hasSpace(n) {
		return nil
	}
	if f := &l.prepareErr[kindOf(records)]; f.err != nil {
		if f.gen == l.store.spaceGen.Load() {
			return f.err
		}
		f.err = nil
	}
	l.prepare(n, records, false, false)
	return ErrNotReady
}

func kindOf(records bool) int {
	if records {
		return 1
	}
	return 0
}

// hasSpace says whether n bytes fit behind the tail, in the active segment or,
// where that is full, in the prepared one.
func (l *Log) hasSpace(n int64) bool {
	if l.active != nil {
		if l.activeFile == nil {
			l.activeFile = l.active.TryFile()
		}
		if l.activeFile == nil {
			return false
		}
		if l.active.End()+n <= l.active.Allocated() {
			return true
		}
		if l.active.Allocated() < l.active.Capacity() {
			return false
		}
	}
	if l.next == nil {
		return false
	}
	if l.nextFile == nil {
		l.nextFile = l.next.TryFile()
	}
	return l.nextFile != nil && segment.HeaderSize+n <= l.next.Allocated()
}

// prepareAhead submits the preparation of what will be needed soon.
func (l *Log) prepareAhead() {
	if l.structural || l.active == nil || l.store.low.Load() {
		return
	}
	end, capacity := l.active.End(), l.active.Capacity()
	if f := l.prepareErr[kindOf(true)]; f.err != nil && f.gen == l.store.spaceGen.Load() {
		return
	}
	allocated := l.active.Allocated()
	short := allocated < capacity && allocated-end < min(allocated, segment.MaxStep)/2
	if short || l.next == nil && end > capacity/4*3 {
		l.prepare(0, true, true, false)
	}
}

// prepareJob takes space: it extends the active segment, opens files, and creates
// the next segment and names it in the manifest.
type prepareJob struct {
	l       *Log
	records bool
	ahead   bool

	open     []*segment.Segment
	extend   *segment.Segment // nil: none
	extendTo int64
	grow     *segment.Segment // the prepared segment, to be extended
	growTo   int64
	create   bool
	sequence uint64
	fileID   uint64
	capacity int64
	allocate int64
	mapped   bool
	manifest *manifest

	ran     bool
	created *segment.Segment
	// files keeps what Run opened open until Done has its own references: other
	// logs may be over the store's limit meanwhile, and would close it for ever.
	files []*segment.FileRef
	err   error
}

// keep opens the file of a segment until Done.
func (j *prepareJob) keep(s *segment.Segment) error {
	f, err := s.File()
	if err == nil {
		j.files = append(j.files, f)
	}
	return err
}

// prepare submits the job for n more bytes: ahead of the need, or with all of
// them in the next segment. One structural job runs at a time; if one does, its
// Done is as good a turn to ask again.
func (l *Log) prepare(n int64, records, ahead, allNext bool) {
	if l.structural {
		return
	}
	j := &prepareJob{l: l, records: records, ahead: ahead}
	nextNeeded := l.active == nil || allNext
	if a := l.active; a != nil {
		j.open = append(j.open, a)
		allocated := a.Allocated()
		need := min(a.End()+n, a.Capacity())
		if allocated < a.Capacity() && (need > allocated || ahead) {
			j.extend, j.extendTo = a, a.NextStep(max(need, allocated+1))
		}
		nextNeeded = allNext || a.End()+n > a.Capacity() || a.End() > a.Capacity()/4*3
	}
	// An append that takes entries back may continue in an earlier segment.
	if list := *l.segments.Load(); len(list) > 1 && !ahead {
		j.open = append(j.open, list[len(list)-2])
	}
	if nextNeeded {
		need := segment.HeaderSize + n
		if l.next == nil {
			j.create = true
			j.capacity = max(l.o.SegmentBytes, need)
			j.allocate = max(segment.FirstStep, need)
			if a := l.active; a != nil {
				// A partition that fills segments will fill this one too.
				j.allocate = max(j.allocate, segment.MaxStep)
				j.mapped = a.Mapped()
			}
			j.allocate = min(j.allocate, j.capacity)
			j.sequence, j.fileID = l.nextSequence, l.store.nextFileID()
			l.nextSequence++
			m := l.manifest()
			m.segments = append(m.segments, manifestSegment{sequence: j.sequence, fileID: j.fileID})
			j.manifest = m
		} else {
			j.open = append(j.open, l.next)
			if need > l.next.Allocated() {
				l.next.Grow(need)
				j.grow, j.growTo = l.next, l.next.NextStep(need)
			}
		}
	}
	l.structural = true
	l.o.Executor.Submit(j)
}

func (j *prepareJob) Run() {
	if !j.l.gate.enter() {
		return
	}
	defer j.l.gate.leave()
	j.ran = true
	j.err = j.run()
}

func (j *prepareJob) run() error {
	s := j.l.store
	take := func(allocate func() error) error {
		if j.records {
			return allocate()
		}
		return s.withReserve(allocate)
	}
	if j.records {
		if err := s.keepFree(j.steps()); err != nil {
			return err
		}
	}
	for _, seg := range j.open {
		if err := j.keep(seg); err != nil {
			return err
		}
	}
	if j.extend != nil {
		if err := take(func() error { return j.extend.Extend(j.extendTo) }); err != nil {
			return err
		}
	}
	if j.grow != nil {
		if err := take(func() error { return j.grow.Extend(j.growTo) }); err != nil {
			return err
		}
	}
	if !j.create {
		return nil
	}
	if err := take(j.createNext); err != nil {
		return err
	}
	if err := take(func() error { return j.l.writeManifest(j.manifest) }); err != nil {
		if isPassing(err) {
			// The manifest was not replaced, so nobody knows the file.
			err = errors.Join(err, segment.Final(s.unlink(j.l.o.Dir, j.created)))
		}
		return err
	}
	if j.mapped {
		// Readers that follow the tail will want it; if it fails they will say so.
		_, _ = j.created.Populate(0, 0, 0)
	}
	return nil
}

// steps is how many bytes the job allocates at most.
func (j *prepareJob) steps() (n int64) {
	if j.extend != nil {
		n += j.extendTo - j.extend.Allocated()
	}
	if j.grow != nil {
		n += j.growTo - j.grow.Allocated()
	}
	if j.create {
		n += j.allocate
	}
	return n
}

// createNext makes the next segment of a recycled file or a new one, durably.
func (j *prepareJob) createNext() error {
	l := j.l
	name := path.Join(l.o.Dir, segment.Name(j.sequence, j.fileID))
	found, err := l.store.takeRecycled(j.capacity, name)
	if err != nil {
		return err
	}
	if found {
		j.created = segment.Adopt(&l.store.env, l.o.Dir, l.id, j.sequence, j.fileID, j.capacity, j.capacity)
	} else if j.created, err = segment.Create(&l.store.env, l.o.Dir, l.id, j.sequence, j.fileID, j.capacity, j.allocate); err != nil {
		return err
	}
	if err := j.keep(j.created); err != nil {
		return err
	}
	return segment.Final(l.fs.SyncDir(l.o.Dir))
}

func (j *prepareJob) Done() {
	l := j.l
	defer func() {
		for _, f := range j.files {
			f.Release()
		}
	}()
	l.structural = false
	if l.closed || l.err != nil || !j.ran {
		if j.created != nil {
			j.created.Release()
		}
		return
	}
	if j.err == nil && j.created != nil {
		l.next = j.created
	}
	// Also after a failure: there may be room for less in what was opened.
	if l.next != nil && l.nextFile == nil {
		l.nextFile = l.next.TryFile()
	}
	if l.active != nil && l.activeFile == nil {
		l.activeFile = l.active.TryFile()
	}
	if j.err != nil {
		if j.created != nil {
			j.created.Release()
		}
		l.prepareFailed(j)
		return
	}
	l.prepareErr = [2]spaceFailure{}
	l.maybeDrop()
}

// prepareFailed tells a full disk and exhausted resources, which pass, from
// storage errors, which fence.
func (l *Log) prepareFailed(j *prepareJob) {
	f := spaceFailure{gen: l.store.spaceGen.Load()}
	switch {
	case errors.Is(j.err, vfs.ErrNoSpace):
		f.err = fmt.Errorf("%w: %w", j.l.store.full(), j.err)
	case isExhausted(j.err):
		f.err = fmt.Errorf("%w: %w", ErrResources, j.err)
	default:
		l.fence(j.err)
		return
	}
	l.prepareErr[kindOf(j.records)] = f
	if !j.records {
		l.prepareErr[kindOf(true)] = f
	}
	if !j.ahead { // what is taken ahead of the need is not missed
		l.logger.Warn("log cannot take space", "dir", l.o.Dir, "records", j.records, "cause", j.err)
	}
}

// isPassing tells a full disk and exhausted resources from storage errors. It is
// never true for the error of a write or a sync.
func isPassing(err error) bool { return errors.Is(err, vfs.ErrNoSpace) || isExhausted(err) }

// isExhausted recognises errors that say nothing about the disk.
func isExhausted(err error) bool {
	return errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) || errors.Is(err, syscall.ENOMEM)
}

// manifest describes the log as it is.
func (l *Log) manifest() *manifest {
	m := &manifest{Identity: l.id, replicaID: l.o.ReplicaID, nextSequence: l.nextSequence, start: l.startLink}
	for _, s := range *l.segments.Load() {
		m.segments = append(m.segments, manifestSegment{sequence: s.Sequence(), fileID: s.FileID(), baseIndex: s.Previous().Index + 1})
	}
	if l.next != nil {
		m.segments = append(m.segments, manifestSegment{sequence: l.next.Sequence(), fileID: l.next.FileID()})
	}
	return m
}

// writeManifest replaces the manifest durably. It may block; one at a time.
func (l *Log) writeManifest(m *manifest) error {
	if err := replaceFile(l.fs, l.o.Dir, manifestName, m.append(nil)); err != nil {
		return fmt.Errorf("manifest: %w", err)
	}
	return nil
}
