package log

import (
	"errors"
	"fmt"
	"io"
	iofs "io/fs"
	"path"
	"slices"
	"sync"

	"github.com/lockstepmq/lockstep/segment"
	"github.com/lockstepmq/lockstep/wire"
)

// Open creates a log or recovers it. It blocks.
//
// Errors: *CorruptionError for damage to something that was durable, ErrTooNew,
// *FencedError if the log was fenced before and Options.RecoverFence is not set,
// ErrIdentity, ErrMissing; anything else comes from the file system. Nothing is
// changed in the directory before it is clear that the log can be opened, but
// files that the manifest does not name are moved to quarantine.
func Open(o Options) (*Log, error) {
	if err := o.validate(); err != nil {
		return nil, err
	}
	l := &Log{
		o: o, store: o.Store, fs: o.Store.fs, logger: o.Logger,
		id:        segment.Identity{PartitionID: o.PartitionID, Incarnation: o.Incarnation},
		startLink: segment.Seed(segment.Identity{PartitionID: o.PartitionID, Incarnation: o.Incarnation}), nextSequence: 1,
		newestName: 1,
	}
	l.identity = slotIdentity(l.id, o.ReplicaID)
	l.gate.cond = sync.NewCond(&l.gate.mu)
	l.pending.cut = noIndex
	l.segments.Store(&[]*segment.Segment{})
	r := &recovery{l: l}
	if err := r.open(); err != nil {
		for _, s := range r.segments {
			s.Release()
		}
		var damage *CorruptionError
		if errors.As(err, &damage) && path.Dir(damage.File) == o.Dir {
			return nil, err // it names the directory: clients get the beginning of a message only
		}
		return nil, fmt.Errorf("log %s: %w", o.Dir, err)
	}
	l.store.journal.forget(l.identity)
	return l, nil
}

// recovery is what Open knows while it works.
type recovery struct {
	l        *Log
	manifest *manifest
	found    []foundSegment
	saved    *savedCheckpoint // the newest valid checkpoint, nil if there is none
	ahead    []aheadCheckpoint
	passed   wire.Index // the last entry of the log that is erased
	slot     slotState
	clean    bool

	journaled *journaled    // nil if the store's journal holds nothing of the log
	merged    []mergedFrame // taken from it

	segments []*segment.Segment // built so far, each with frames
	used     []int              // their numbers in found
	buffer   []byte

	// Where the scan stands, and where it ended.
	link  segment.Link
	at    int // number in found
	pos   int64
	cause error
	limit wire.Index // entries up to here were durable
	// searched says that the marks behind the first damage are in limit.
	searched bool
}

// aheadCheckpoint is one that another replica wrote, and that counts if the log passes over
// the entry that it names. That the log reaches this entry is not enough: it may have others
// there, which nobody has committed.
type aheadCheckpoint struct {
	*savedCheckpoint
	name    int
	content []byte
}

// foundSegment is a segment that the manifest names.
type foundSegment struct {
	manifestSegment
	header *segment.Header // nil if the file is blank
	size   int64
	erased []segment.Erased
}

func (f *foundSegment) name() string { return segment.Name(f.sequence, f.fileID) }

func (r *recovery) path(name string) string { return path.Join(r.l.o.Dir, name) }

func (r *recovery) corrupt(name string, pos int64, cause error) error {
	return &CorruptionError{File: r.path(name), Position: pos, Cause: cause}
}

func (r *recovery) open() error {
	l := r.l
	exists, err := r.readManifest()
	if err != nil {
		return err
	}
	if !exists {
		if err := r.create(); err != nil {
			return err
		}
		return r.finish()
	}
	if err := r.findSlot(); err != nil {
		return err
	}
	if err := r.readCheckpoints(); err != nil {
		return err
	}
	if err := r.readHeaders(); err != nil {
		return err
	}
	l.startLink, l.nextSequence = r.manifest.start, r.manifest.nextSequence
	if err := r.readDamage(); err != nil {
		return err
	}
	if !r.clean {
		var err error
		if r.journaled, err = l.store.journal.read(l.identity); err != nil {
			return err
		}
	}
	r.knownDurable()
	if err := r.scan(); err != nil {
		return err
	}
	if err := r.judge(); err != nil {
		return err
	}
	if err := r.catchUp(); err != nil {
		return err
	}
	if err := r.quarantineStrangers(); err != nil {
		return err
	}
	if err := r.writeMerged(); err != nil {
		return err
	}
	if err := r.eraseAgain(); err != nil {
		return err
	}
	if err := r.cut(); err != nil {
		return err
	}
	return r.finish()
}

// readManifest is false if there is no log here.
func (r *recovery) readManifest() (bool, error) {
	l := r.l
	b, err := readFile(l.fs, r.path(manifestName), manifestFixed+maxSegments*manifestEntry+4)
	if errors.Is(err, iofs.ErrNotExist) {
		return false, r.checkEmpty()
	}
	if err != nil {
		return false, err
	}
	m, err := parseManifest(b)
	if errors.Is(err, ErrTooNew) {
		return false, fmt.Errorf("%s: %w", r.path(manifestName), err)
	}
	if err != nil {
		return false, r.corrupt(manifestName, 0, err)
	}
	if m.Identity != l.id || m.replicaID != l.o.ReplicaID {
		return false, fmt.Errorf("%w: partition %x incarnation %d replica %d", ErrIdentity, m.PartitionID, m.Incarnation, m.replicaID)
	}
	r.manifest = m
	return true, nil
}

// checkEmpty makes sure that a directory without a manifest never held a log.
func (r *recovery) checkEmpty() error {
	l := r.l
	if l.o.Existing {
		return ErrMissing
	}
	if s := l.store.states.find(l.identity); s != nil && s.written {
		return r.corrupt(manifestName, 0, errors.New("file is missing, but the replica has a hard state"))
	}
	names, err := l.fs.List(l.o.Dir)
	if err != nil && !errors.Is(err, iofs.ErrNotExist) {
		return err
	}
	for _, name := range names {
		if !isTemp(name) {
			return r.corrupt(manifestName, 0, fmt.Errorf("file is missing, but there is %s", name))
		}
	}
	return nil
}

// create makes an empty log. A segment comes with the first write.
func (r *recovery) create() error {
	l := r.l
	if err := l.fs.MkdirAll(l.o.Dir); err != nil {
		return err
	}
	if err := l.fs.SyncDir(path.Dir(l.o.Dir)); err != nil {
		return err
	}
	m := l.manifest()
	if err := l.store.withReserve(func() error { return l.writeManifest(m) }); err != nil {
		return err
	}
	var err error
	l.slot, err = l.store.states.take(l.identity, l.store.withReserve)
	r.clean = true
	r.link = l.startLink
	r.pushPlace(nil, 0, segment.NoTime)
	return err
}

// findSlot reads the hard state.
func (r *recovery) findSlot() error {
	l := r.l
	states := l.store.states
	s := states.find(l.identity)
	if s == nil && states.rotten > 0 {
		return &CorruptionError{File: states.path, Cause: fmt.Errorf("no slot of this replica, and %d slots are damaged", states.rotten)}
	}
	if s == nil {
		var err error
		if s, err = states.take(l.identity, l.store.withReserve); err != nil {
			return err
		}
	}
	if s.damaged {
		return &CorruptionError{File: states.path, Position: s.position(false), Cause: errors.New("a copy of the slot is damaged: a vote may be forgotten")}
	}
	l.slot, r.slot = s, s.last
	r.clean = s.last.flags&slotClean != 0
	if s.last.flags&slotFenced != 0 && !l.o.RecoverFence {
		return &FencedError{Dir: l.o.Dir}
	}
	return nil
}

// readCheckpoints finds the newest valid checkpoint.
func (r *recovery) readCheckpoints() error {
	l := r.l
	var damaged error
	for n, name := range checkpointNames {
		b, err := readFile(l.fs, r.path(name), MaxCheckpointBytes)
		if errors.Is(err, iofs.ErrNotExist) {
			continue
		}
		var c *savedCheckpoint
		var id segment.Identity
		if err == nil {
			c, id, err = parseCheckpoint(b)
			if err == nil && id != l.id {
				err = errFields
			}
			if errors.Is(err, ErrTooNew) {
				return fmt.Errorf("%s: %w", r.path(name), err)
			}
			if err != nil {
				err = r.corrupt(name, 0, err)
			}
		}
		if err == nil && c.transferred && r.manifest.start.Index < wire.Index(c.position.Byte) {
			// It belongs to a log that was not installed any more, or to entries that the log
			// passes over (Pass): that shows when it was read.
			r.ahead = append(r.ahead, aheadCheckpoint{c, n, b})
			continue
		}
		if err != nil {
			var corrupt *CorruptionError
			if !errors.As(err, &corrupt) {
				return err
			}
			l.logger.Warn("checkpoint is damaged", "dir", l.o.Dir, "file", name, "cause", err)
			damaged = err
			continue
		}
		switch {
		case r.saved == nil:
			r.saved, l.newestName = c, n
			l.noteSaved(n, b, &c.Checkpoint)
		case c.Applied > r.saved.Applied:
			l.older, r.saved, l.newestName = r.saved.Applied, c, n
			l.noteSaved(n, b, &c.Checkpoint)
		default:
			l.older = c.Applied
		}
	}
	if len(r.ahead) == 0 {
		if err := r.covered(damaged); err != nil {
			return err
		}
	}
	if r.saved != nil {
		l.newest = r.saved.Applied
		l.checkpoint = &r.saved.Checkpoint
	}
	return nil
}

// catchUp makes a checkpoint count that was fetched to pass over erased entries, if the log
// has come to pass over them.
func (r *recovery) catchUp() error {
	l := r.l
	for _, c := range r.ahead {
		if r.passed < wire.Index(c.position.Byte) || r.saved != nil && r.saved.Applied >= c.Applied {
			continue
		}
		if r.saved != nil {
			l.older = r.saved.Applied
		}
		r.saved, l.newest, l.newestName, l.checkpoint = c.savedCheckpoint, c.Applied, c.name, &c.Checkpoint
		l.noteSaved(c.name, c.content, &c.Checkpoint)
	}
	return r.covered(nil)
}

// covered makes sure that there is a checkpoint at or above the start of the log. damaged is
// why there may be none.
func (r *recovery) covered(damaged error) error {
	start := r.manifest.start.Index
	if start == 0 || r.saved != nil && r.saved.Applied >= start {
		return nil
	}
	if damaged != nil {
		return damaged
	}
	return r.corrupt(checkpointNames[0], 0, fmt.Errorf("no checkpoint at or above the log's start at %d", start))
}

// readHeaders reads the header of every segment that the manifest names.
func (r *recovery) readHeaders() error {
	for _, m := range r.manifest.segments {
		f := foundSegment{manifestSegment: m}
		file, err := r.l.fs.OpenReadOnly(r.path(f.name()))
		if errors.Is(err, iofs.ErrNotExist) {
			return r.corrupt(f.name(), 0, errors.New("file is missing"))
		}
		if err != nil {
			return err
		}
		f.header, f.size, err = readHeader(file, r.l.id, m.sequence, m.fileID)
		if err = errors.Join(err, file.Close()); err != nil {
			return fmt.Errorf("segment %s: %w", f.name(), err)
		}
		if f.header != nil {
			f.erased, err = segment.ReadErased(r.l.fs, r.l.o.Dir, f.header)
			if err = erasedError(r.l.o.Dir, f.header, err); err != nil {
				return err
			}
		}
		r.found = append(r.found, f)
	}
	return nil
}

// readHeader returns nil for a blank file.
func readHeader(file interface {
	io.ReaderAt
	Size() (int64, error)
}, id segment.Identity, sequence, fileID uint64) (*segment.Header, int64, error) {
	size, err := file.Size()
	if err != nil || size < segment.HeaderSize {
		return nil, size, err
	}
	var b [segment.HeaderSize]byte
	if n, err := file.ReadAt(b[:], 0); n < len(b) {
		return nil, size, err
	}
	if segment.HeaderFileID(b[:]) != fileID {
		return nil, size, nil
	}
	h, err := segment.ParseHeader(b[:])
	if errors.Is(err, segment.ErrTooNew) {
		return nil, size, fmt.Errorf("%w: %w", ErrTooNew, err)
	}
	if err != nil || h.Identity != id || h.Sequence != sequence {
		return nil, size, nil
	}
	return &h, size, nil
}

// scan builds the segments. Those below the newest checkpoint are taken from their
// sparse indexes, everything behind it is verified frame by frame.
//
// A segment follows another if its header continues from that one's last frame.
// The manifest may also name segments that were taken back by a truncation and
// not yet forgotten: nothing continues into them, they are passed over. If two
// continue from the same frame the later is the one that was written to last.
func (r *recovery) scan() error {
	l := r.l
	from, pos, err := r.scanStart()
	if err != nil {
		return err
	}
	r.link, r.cause = l.startLink, errors.New("no segment continues the log")
	for k := -1; ; {
		next := len(r.found)
		if k < from {
			next = from + 1
		}
		for next--; next > k; next-- {
			if h := r.found[next].header; h != nil && h.Previous == r.link {
				break
			}
		}
		if next == k || next < 0 {
			break
		}
		k = next
		r.at = k
		if k < from {
			err = r.restore(k)
		} else {
			prefix := int64(segment.HeaderSize)
			if k == from {
				prefix = pos
			}
			err = r.scanSegment(&r.found[k], prefix)
		}
		if err != nil {
			return err
		}
		if n := len(r.used); n == 0 || r.used[n-1] != k {
			break // there was nothing in it
		}
	}
	if r.saved != nil && !r.saved.transferred && l.places.len() == 0 && r.saved.Applied != r.link.Index {
		name := manifestName
		if len(r.found) > 0 {
			name = r.found[r.at].name()
		}
		return r.corrupt(name, r.pos, fmt.Errorf("the log ends at entry %d, below the checkpoint at %d: %w", r.link.Index, r.saved.Applied, r.cause))
	}
	if l.places.len() == 0 {
		r.pushPlace(nil, 0, segment.NoTime)
	}
	return nil
}

// scanStart finds the segment and position at which the newest checkpoint stands;
// -1 if that is the start of the log.
func (r *recovery) scanStart() (int, int64, error) {
	if r.saved == nil || r.saved.Applied == 0 || r.saved.transferred {
		return -1, 0, nil
	}
	c := r.saved
	for k := range r.found {
		f := &r.found[k]
		if f.sequence != c.position.Segment {
			continue
		}
		if f.header == nil || c.position.Byte > f.size {
			return 0, 0, r.corrupt(f.name(), 0, fmt.Errorf("checkpoint at %d stands in this file: %w", c.Applied, segment.ErrBlank))
		}
		return k, c.position.Byte, nil
	}
	// The checkpoint may stand at the end of a segment that is gone.
	if r.manifest.start == c.link() {
		return -1, 0, nil
	}
	return 0, 0, r.corrupt(manifestName, 0, fmt.Errorf("checkpoint at %d stands in segment %d, which is not listed", c.Applied, c.position.Segment))
}

// restore takes a segment wholly below the checkpoint from its sparse index, or
// walks its headers if that is missing or damaged.
func (r *recovery) restore(k int) error {
	l := r.l
	f := &r.found[k]
	sum, err := segment.ReadSparse(l.fs, l.o.Dir, f.header)
	if err == nil && sum.End <= f.size && r.continues(k, sum.Last) {
		r.link, r.pos = sum.Last, sum.End
		s := segment.Restore(&l.store.env, l.o.Dir, sum, f.size)
		s.SetErased(f.erased)
		if n := len(f.erased); n > 0 {
			r.passed = max(r.passed, f.erased[n-1].After.Index)
		}
		r.add(k, s, sum.Terms)
		return nil
	}
	s := segment.Rebuild(&l.store.env, l.o.Dir, f.header, f.size)
	s.SetErased(f.erased)
	var t terms
	r.link, r.pos, r.cause, err = r.walk(f, segment.HeaderSize, r.link, walkHeaders, r.saved.Applied, r.note(s, &t))
	if err != nil {
		s.Release()
		return err
	}
	s.Recovered()
	r.add(k, s, t)
	l.logger.Info("sparse index made again", "dir", l.o.Dir, "segment", f.name())
	if !r.continues(k, r.link) {
		return nil
	}
	if err := s.WriteSparse(s.Summary(r.link, 0, t)); err != nil {
		l.logger.Warn("sparse index is not written", "dir", l.o.Dir, "segment", f.name(), "cause", err)
	}
	return nil
}

// note returns what enters the frames of a segment, one after the other, of which the first
// continues where the scan stands.
func (r *recovery) note(s *segment.Segment, t *terms) func(h *wire.FrameHeader, pos int64) {
	link := r.link
	return func(h *wire.FrameHeader, pos int64) {
		if h.Kind == segment.KindErased {
			s.NotePassed(link, h, pos)
			r.passed = max(r.passed, h.Index)
		}
		s.Note(h, pos)
		t.add(link.Index+1, h.Term)
		link = segment.After(h)
	}
}

// continues says that a later segment continues from a link.
func (r *recovery) continues(k int, link segment.Link) bool {
	for _, f := range r.found[k+1:] {
		if f.header != nil && f.header.Previous == link {
			return true
		}
	}
	return false
}

// add enters a segment that will not change any more.
func (r *recovery) add(k int, s *segment.Segment, t []segment.TermRun) {
	l := r.l
	s.SetStart(l.written.Load())
	l.written.Add(s.End())
	l.erased.Add(s.ErasedBytes())
	r.segments, r.used = append(r.segments, s), append(r.used, k)
	for _, run := range t {
		l.runs.add(run.From, run.Term)
	}
	l.sealNext = len(r.segments)
}

// scanSegment reads a segment that continues the log: up to prefix, which lies at
// or below the checkpoint, the headers, from there on everything.
func (r *recovery) scanSegment(f *foundSegment, prefix int64) (err error) {
	l := r.l
	s := segment.Rebuild(&l.store.env, l.o.Dir, f.header, f.size)
	s.SetErased(f.erased)
	s.SetStart(l.written.Load())
	note := r.note(s, &l.runs)
	defer func() {
		if n := len(r.segments); n == 0 || r.segments[n-1] != s {
			s.Release()
		}
	}()
	if prefix > segment.HeaderSize {
		link, pos, cause, err := r.walk(f, segment.HeaderSize, r.link, walkHeaders, r.saved.Applied, note)
		if err != nil {
			return err
		}
		if link != r.saved.link() || pos != prefix {
			if cause == nil {
				cause = errors.New("the log and the checkpoint differ")
			}
			return r.corrupt(f.name(), pos, fmt.Errorf("checkpoint at %d: %w", r.saved.Applied, cause))
		}
		r.link = link
	}
	base := l.places.len() == 0
	if base {
		r.pushPlace(s, prefix, s.MaxTimeMs())
		l.savedBytes = s.Start() + prefix
		if r.saved == nil {
			l.savedBytes = 0
		}
	}
	each := func(h *wire.FrameHeader, pos int64) {
		note(h, pos)
		if h.Kind == segment.KindErased {
			l.places.truncate(0) // what comes before it is committed, and places have no holes
		}
		l.places.push(place{link: segment.After(h), seg: s, end: pos + h.FrameSize(), maxTimeMs: s.MaxTimeMs()})
		if mark, ok := segment.DecodeMark(f.fileID, h.HeaderCRC, h.Local); ok {
			r.limit = max(r.limit, mark)
		}
	}
	for r.pos = prefix; ; {
		r.link, r.pos, r.cause, err = r.walk(f, r.pos, r.link, walkLog, noIndex, each)
		if err != nil {
			return err
		}
		if !r.merge(s, each) {
			break
		}
	}
	if s.End() == segment.HeaderSize {
		// Not one frame: what begins here is a prepared segment.
		if base {
			l.places.truncate(0)
		}
		return nil
	}
	s.Recovered()
	l.written.Add(s.End())
	l.erased.Add(s.ErasedBytes())
	r.segments, r.used = append(r.segments, s), append(r.used, r.at)
	return nil
}

func (r *recovery) pushPlace(s *segment.Segment, end, maxTimeMs int64) {
	r.l.places.push(place{link: r.link, seg: s, end: end, maxTimeMs: maxTimeMs})
}

// walkMode says what walk looks at besides the headers.
type walkMode uint8

const (
	walkHeaders walkMode = iota
	walkBodies
	// walkLog goes on behind a damaged body of something that was durable, and notes
	// it: the headers hold the chain (RULES L8).
	walkLog
)

// walk follows the frames of a segment from pos, which continue link, as long as
// they are whole, or up to the entry last. It returns where it stopped and why;
// err is an error of the disk, or a version that is too new.
func (r *recovery) walk(f *foundSegment, pos int64, link segment.Link, mode walkMode, last wire.Index, each func(*wire.FrameHeader, int64)) (segment.Link, int64, error, error) {
	file, err := r.l.fs.OpenReadOnly(r.path(f.name()))
	if err != nil {
		return link, pos, nil, err
	}
	defer file.Close()
	sc := segment.NewScanner(file, pos, f.size, r.buffer)
	sc.PassErased(f.erased)
	r.buffer = nil // the scanner's: what spare reads goes elsewhere
	defer func() { r.buffer = sc.Buffer() }()
	if mode == walkHeaders {
		sc.PassBodies()
	}
	for link.Index < last {
		h, err := sc.Header()
		newer := false
		if errors.Is(err, wire.ErrFrameVersion) {
			index, prev, e := sc.PrevOf()
			newer = e == nil && index == link.Index+1 && prev == link.Chain
		}
		if err == nil {
			err = sc.Check(&link, &h)
			newer = errors.Is(err, wire.ErrFrameVersion)
		}
		if newer {
			return link, sc.Position(), nil, fmt.Errorf("%s: position %d: %w: %w", r.path(f.name()), sc.Position(), ErrTooNew, err)
		}
		if err == nil && mode != walkHeaders {
			_, err = sc.Body(&h)
			if mode == walkLog && errors.Is(err, wire.ErrFrameChecksum) {
				err = r.spare(f, sc.Position(), link, &h, err)
			}
		}
		if err != nil {
			if !segment.IsDamage(err) {
				return link, sc.Position(), nil, fmt.Errorf("%s: position %d: %w", r.path(f.name()), sc.Position(), err)
			}
			return link, sc.Position(), err, nil
		}
		each(&h, sc.Position())
		link = segment.After(&h)
		sc.Skip(&h)
	}
	return link, sc.Position(), nil, nil
}

// spare notes a damaged body of something that was durable, unless the journal has
// it. It returns what ends the log here otherwise.
func (r *recovery) spare(f *foundSegment, pos int64, link segment.Link, h *wire.FrameHeader, cause error) error {
	if r.mergeBody(f, pos, link, h) {
		return nil
	}
	if r.l.damage.at(f.sequence, pos) != nil {
		return nil // it was committed when it was found, also if no mark says so
	}
	if r.limit < h.Index && !r.clean && !r.searched {
		r.pos = pos
		if err := r.searchMarks(h.Index); err != nil {
			return err
		}
		r.searched = true
	}
	if r.limit < h.Index {
		if !r.clean {
			return cause
		}
		r.limit = h.Index // it was durable
		if !r.l.o.RecoverFence {
			return cause // and others have it: see judge
		}
	}
	d := frameDamage(f.sequence, f.fileID, pos, link, h)
	news, err := r.l.damage.add(d)
	if err != nil {
		return r.corrupt(f.name(), pos, err)
	}
	if news {
		r.l.sayDamaged(&d, cause)
	}
	return nil
}

// knownDurable says what the slot and the checkpoints know to have been durable.
func (r *recovery) knownDurable() {
	r.limit = max(r.limit, r.slot.mark)
	if r.l.o.Sync == SyncQuorum {
		r.limit = max(r.limit, r.slot.commit)
	}
	if r.saved != nil && !r.saved.transferred {
		r.limit = max(r.limit, r.saved.Applied)
	}
	if r.journaled != nil {
		r.limit = max(r.limit, r.journaled.mark)
	}
}

// judge decides whether what follows the last good frame is a tail that never was
// confirmed, or damage to something that was durable (RULES L2).
func (r *recovery) judge() error {
	next := r.link.Index + 1
	if r.limit < next && (!r.clean || errors.Is(r.cause, wire.ErrFrameChecksum)) && len(r.found) > 0 {
		if err := r.searchMarks(next); err != nil {
			return err
		}
	}
	if r.limit < next {
		return nil
	}
	name, cause := manifestName, r.cause
	if len(r.found) > 0 {
		name = r.found[r.at].name()
	}
	if cause == nil {
		cause = io.ErrUnexpectedEOF
	}
	return r.corrupt(name, r.pos, fmt.Errorf("entry %d is damaged or missing, entries up to %d were durable: %w", next, r.limit, cause))
}

// searchMarks looks behind the damage for whole frames of the same files, whose
// marks say what was durable when they were written. Marks of entries that were
// taken back are true as well, because they never exceed the commit.
//
// After a clean stop everything was durable, committed or not, and what was taken back is
// zeroed where the log ends: a frame behind that is one of those that were.
//
// A producer can write bytes that look like a header with a mark, if it guesses the
// number of the file. They lie in the body of a frame, which is passed over where that
// frame's own header is whole. Where a power cut has lost the header and kept the body
// they are believed: then a tail that is merely torn is taken for damage, and the log
// stays down, or is made anew from its peers. Nothing is lost or served that should not
// be, so the mark carries no secret.
func (r *recovery) searchMarks(next wire.Index) error {
	for k := range r.found {
		f := &r.found[k]
		pos := int64(0)
		if k == r.at {
			pos = r.pos
		} else if r.clean || slices.Contains(r.used, k) {
			continue
		}
		file, err := r.l.fs.OpenReadOnly(r.path(f.name()))
		if err != nil {
			return err
		}
		sc := segment.NewScanner(file, pos, f.size, r.buffer)
		for err == nil {
			var h wire.FrameHeader
			if h, err = sc.Find(); err != nil {
				break
			}
			mark, ok := segment.DecodeMark(f.fileID, h.HeaderCRC, h.Local)
			if !ok {
				// A stale frame, or bytes in the body of a frame without a header.
				sc.MoveTo(sc.Position() + wire.FrameAlignment)
				continue
			}
			if h.Index > next && r.clean {
				r.limit = max(r.limit, h.Index)
			} else if h.Index > next && mark < h.Index {
				r.limit = max(r.limit, mark)
			}
			sc.MoveTo(sc.Position() + min(h.FrameSize(), f.size))
		}
		r.buffer = sc.Buffer()
		if err = errors.Join(ignoreEOF(err), file.Close()); err != nil {
			return fmt.Errorf("%s: %w", r.path(f.name()), err)
		}
	}
	return nil
}

func ignoreEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// quarantineStrangers moves files that the manifest does not name out of the way:
// segments that came back after their removal, or whatever else.
func (r *recovery) quarantineStrangers() error {
	l := r.l
	known := map[string]bool{manifestName: true, damageName: true, checkpointNames[0]: true, checkpointNames[1]: true}
	for _, f := range r.found {
		known[f.name()] = true
		known[segment.SparseName(f.sequence, f.fileID)] = true
		known[segment.KeysName(f.sequence, f.fileID)] = true
		known[segment.ErasedName(f.sequence, f.fileID)] = true
	}
	names, err := l.fs.List(l.o.Dir)
	if err != nil {
		return err
	}
	for _, name := range names {
		switch {
		case known[name]:
		case isTemp(name):
			if err := l.fs.Remove(r.path(name)); err != nil {
				return err
			}
		default:
			l.logger.Warn("file is not part of the log, moved to quarantine", "dir", l.o.Dir, "file", name)
			if err := l.store.quarantine(r.path(name), path.Base(l.o.Dir)+"-"+name); err != nil {
				return err
			}
		}
	}
	return nil
}

// finish sets what the owner starts with.
func (r *recovery) finish() error {
	l := r.l
	end := l.places.at(l.places.len() - 1)
	l.damage.cut(end.link, end.position())
	l.damage.rename(r.segments)
	if l.damage.unsaid {
		l.saveDamage()
	}
	l.segments.Store(&r.segments)
	if n := len(r.segments); n > 0 {
		l.active = r.segments[n-1]
	}
	if l.sealNext >= len(r.segments) {
		l.sealNext = max(len(r.segments)-1, 0)
	}
	last := r.link.Index
	l.synced, l.settled = last, last
	l.start.Store(uint64(l.startLink.Next))
	base := l.places.at(0)
	l.watermark.Store(&Watermark{Next: base.link.Next, Index: base.link.Index, Position: base.position()})
	l.found.Store(&Watermark{Next: end.link.Next, Index: end.link.Index, Position: end.position()})

	// What a mark calls durable was committed too, and the slot may lag far behind.
	known := max(r.slot.commit, r.limit)
	l.hs = HardState{Term: max(r.slot.term, r.link.Term), Commit: max(min(known, last), base.link.Index)}
	if r.slot.term == l.hs.Term {
		l.hs.Vote = r.slot.vote
	}
	// What was written before a write or a sync failed may be gone like what the machine took
	// with it: the page cache called it clean, and has shown it as long as it liked.
	lost := l.slot.written && last > 0 && (!r.clean && r.slot.boot != l.store.boot || r.slot.flags&slotFenced != 0)
	l.volatile = r.slot.flags&slotVolatile != 0 || l.o.Sync != SyncQuorum
	l.uncertain = r.slot.flags&slotUncertain != 0 || l.volatile && lost || l.o.StrictRecovery && l.slot.written && !r.clean

	l.pending.Lock()
	l.pending.index = last
	l.pending.slot = r.slot
	l.refreshSlotLocked()
	slot := l.pending.slot
	l.pending.Unlock()
	if l.slot.written && l.slot.last.flags != slot.flags || l.hs.Term > r.slot.term {
		// The slot must not say "clean" or hide an uncertainty once anything is
		// written; nor that the log is fenced when it is not any more. And a term
		// that only an entry told must outlive that entry.
		return l.writeSlot(slot)
	}
	return nil
}
