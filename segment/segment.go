package segment

import (
	"errors"
	"fmt"
	iofs "io/fs"
	"path"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/lockstepmq/lockstep/vfs"
	"github.com/lockstepmq/lockstep/wire"
)

const (
	// FirstStep and MaxStep bound the steps in which a segment is allocated, in
	// bytes: each step doubles the file until steps reach the maximum.
	FirstStep = 64 << 10
	MaxStep   = 8 << 20

	// populateAhead is how much Populate reads at least, in bytes.
	populateAhead = 1 << 20
	// populatedTraffic is after how many bytes appended and populated in the whole
	// store a populated range no longer counts as being in memory.
	populatedTraffic = 256 << 20
	// maxWindows is how many populated ranges a segment remembers: so many readers
	// can lag in one segment without taking each other's range away.
	maxWindows = 16
)

var (
	// ErrCold is returned by View when the file is not mapped or the bytes may not
	// be in memory.
	ErrCold = errors.New("range may not be in memory")
	// ErrDropped is returned for a segment whose last reference is gone.
	ErrDropped = errors.New("segment was dropped")
)

// Env is what all segments of a store share.
type Env struct {
	FS      vfs.FS
	Files   *Cache
	Maps    *Cache
	Memory  bool         // FS is memory: nothing is ever cold
	Traffic atomic.Int64 // bytes appended and populated by this process

	// Reap runs what closes a file or map whose last user was a view: that frees
	// the pages, and the blocks of a file that has lost its name, and views are
	// released where nothing may block. Nil runs it at once.
	Reap func(func())

	views atomic.Uint64 // counts views in invariants builds; not per process, so that simulations repeat
}

// FileRef is a reference to an open file. Release it exactly once.
type FileRef struct {
	resource
	File vfs.File
}

// Release gives the reference back.
func (r *FileRef) Release() { r.release() }

type mapRef struct {
	resource
	mapping vfs.Mapping
}

// window is a range that Populate has brought into memory.
type window struct {
	from, to int64
	stamp    int64 // Env.Traffic at that time
}

// Segment is one file of frames. It starts with one reference, that of the log
// which lists it.
//
// Positions: HeaderSize ≤ end ≤ allocated ≤ capacity once something is written;
// a blank segment has end 0.
type Segment struct {
	env  *Env
	dir  string
	name string

	sequence uint64
	fileID   uint64
	identity Identity
	recycled bool

	refs       atomic.Int64
	dropped    atomic.Bool  // the name goes
	end        atomic.Int64 // behind the last frame; written by the owner
	allocated  atomic.Int64 // size of the file; written by jobs, one at a time
	capacity   atomic.Int64 // fixed with the first frame
	maxTimeMs  atomic.Int64
	rollTimeMs int64 // owner only
	details    atomic.Pointer[details]
	persisted  atomic.Bool // the sparse index file is complete: details may be dropped

	keys atomic.Int32 // what is known of the key table
	// erased are the runs that were given back, erasedBytes their sum.
	erased      atomic.Pointer[[]Erased]
	erasedBytes atomic.Int64
	unpunched   atomic.Bool // some of them were not given back yet
	unlisted    atomic.Bool // frames of Passed are not in the list on the disk
	eraseTried  uint64      // see EraseTried; owner only
	previous    Link        // what the first frame continues from; fixed with the first frame
	start       int64       // Env-independent count of the log's bytes before this segment, set by the log
	// appendedFrom is the first position that this process wrote: what lies before
	// was found at recovery and may be cold.
	appendedFrom atomic.Int64

	file      atomic.Pointer[FileRef]
	mapped    atomic.Pointer[mapRef]
	populated atomic.Pointer[[]window]

	// mu serialises opening and mapping, which may block. Nothing else is held
	// while it is.
	mu sync.Mutex
}

func newSegment(env *Env, dir string, id Identity, sequence, fileID uint64) *Segment {
	s := &Segment{env: env, dir: dir, name: Name(sequence, fileID), sequence: sequence, fileID: fileID, identity: id}
	s.refs.Store(1)
	s.maxTimeMs.Store(NoTime)
	s.details.Store(newDetails())
	return s
}

// Create makes a blank segment file with the given number of bytes allocated and
// synced. The caller syncs the directory. It may block. On failure no file is
// left; a full device is vfs.ErrNoSpace.
func Create(env *Env, dir string, id Identity, sequence, fileID uint64, capacity, allocate int64) (*Segment, error) {
	s := newSegment(env, dir, id, sequence, fileID)
	s.capacity.Store(capacity)
	f, err := env.FS.Create(s.path())
	if err != nil {
		return nil, fmt.Errorf("segment %s: create: %w", s.name, err)
	}
	if err = f.Allocate(0, min(allocate, capacity)); err == nil {
		err = Final(f.Sync())
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("segment %s: allocate: %w", s.name, err), f.Close(), env.FS.Remove(s.path()))
	}
	s.allocated.Store(min(allocate, capacity))
	s.adopt(f).Release()
	return s, nil
}

// Final marks the error of a write or a sync as one that must not be repeated: it
// no longer matches vfs.ErrNoSpace or the lack of descriptors and memory, which
// callers take as a reason to try again.
func Final(err error) error {
	if err == nil || !errors.Is(err, vfs.ErrNoSpace) && !errors.Is(err, syscall.EMFILE) &&
		!errors.Is(err, syscall.ENFILE) && !errors.Is(err, syscall.ENOMEM) {
		return err
	}
	return fmt.Errorf("%v", err) //nolint:errorlint // hiding the cause is the purpose
}

// Adopt makes a blank segment of a file that lies in dir under its new name
// already: recycled, or found by recovery without a frame worth keeping. Its old
// bytes are of another file ID, or zeroed. size is the size of the file.
func Adopt(env *Env, dir string, id Identity, sequence, fileID uint64, capacity, size int64) *Segment {
	s := newSegment(env, dir, id, sequence, fileID)
	s.capacity.Store(max(capacity, size))
	s.allocated.Store(size)
	s.recycled = true
	return s
}

// Restore makes a segment of a file that holds the frames that the summary
// describes. Without details they are loaded from the sparse index when needed.
func Restore(env *Env, dir string, sum *Summary, size int64) *Segment {
	h := &sum.Header
	s := newSegment(env, dir, h.Identity, h.Sequence, h.FileID)
	s.capacity.Store(max(h.Capacity, size))
	s.allocated.Store(size)
	s.previous = h.Previous
	s.end.Store(sum.End)
	s.maxTimeMs.Store(sum.MaxTimeMs)
	s.rollTimeMs = sum.RollTimeMs
	s.appendedFrom.Store(sum.End)
	s.details.Store(nil)
	return s
}

// Rebuild makes a segment of a file with a valid header, whose frames the caller
// enters one by one with Note. Recovered ends that.
func Rebuild(env *Env, dir string, h *Header, size int64) *Segment {
	s := newSegment(env, dir, h.Identity, h.Sequence, h.FileID)
	s.capacity.Store(max(h.Capacity, size))
	s.allocated.Store(size)
	s.previous = h.Previous
	s.end.Store(HeaderSize)
	return s
}

// Recovered says that all frames found in the file are entered: whether they are
// in memory nobody knows.
func (s *Segment) Recovered() { s.appendedFrom.Store(s.end.Load()) }

func (s *Segment) path() string { return path.Join(s.dir, s.name) }

// Name is the file's name in its directory.
func (s *Segment) Name() string { return s.name }

// Sequence orders the segments of a partition.
func (s *Segment) Sequence() uint64 { return s.sequence }

// FileID is new for every use of a file.
func (s *Segment) FileID() uint64 { return s.fileID }

// Previous is the link that the first frame continues. It is undefined while the
// segment is blank.
func (s *Segment) Previous() Link { return s.previous }

// End is the position behind the last frame; 0 if the segment is blank.
func (s *Segment) End() int64 { return s.end.Load() }

// Allocated is the size of the file: frames may be written below it.
func (s *Segment) Allocated() int64 { return s.allocated.Load() }

// Capacity is the largest size the file may take.
func (s *Segment) Capacity() int64 { return s.capacity.Load() }

// MaxTimeMs is the largest append time of the frames, or NoTime.
func (s *Segment) MaxTimeMs() int64 { return s.maxTimeMs.Load() }

// RollTimeMs is when the segment was sealed, 0 if unknown. Owner only.
func (s *Segment) RollTimeMs() int64 { return s.rollTimeMs }

// SetRollTimeMs says when the segment was sealed. Owner only.
func (s *Segment) SetRollTimeMs(ms int64) { s.rollTimeMs = ms }

// Start is the number of the log's bytes before this segment, as SetStart said.
func (s *Segment) Start() int64 { return s.start }

// SetStart is called before the segment is published to readers.
func (s *Segment) SetStart(n int64) { s.start = n }

// Acquire takes a reference. It is false if the segment was dropped.
func (s *Segment) Acquire() bool {
	for {
		n := s.refs.Load()
		if n == 0 {
			return false
		}
		if s.refs.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

// Release gives a reference back. The file is closed and unmapped with the last.
// It reports whether it was the last: then nobody reads the file any more and
// nobody will under this name, so it may be recycled.
func (s *Segment) Release() bool {
	if !s.unref() {
		return false
	}
	s.CloseResources()
	return true
}

// unref gives a reference back and reports whether it was the last.
func (s *Segment) unref() bool {
	n := s.refs.Add(-1)
	if n < 0 {
		panic(fmt.Sprintf("segment %s: released more often than acquired", s.name))
	}
	return n == 0
}

// reap runs f where it may block.
func (e *Env) reap(f func()) {
	if e.Reap == nil {
		f()
		return
	}
	e.Reap(f)
}

// Drop gives the log's own reference back, as Release does, and says that the file
// is about to lose its name: those who still hold the segment can read what is
// open, and get ErrDropped for what is not.
func (s *Segment) Drop() bool {
	s.dropped.Store(true)
	return s.Release()
}

// openErr tells a file that was removed on purpose from one that is lost.
func (s *Segment) openErr(err error) error {
	if s.dropped.Load() && errors.Is(err, iofs.ErrNotExist) {
		return ErrDropped
	}
	return fmt.Errorf("segment %s: open: %w", s.name, err)
}

// CloseResources closes the file and the map as soon as nobody uses them. They
// are opened again when needed.
func (s *Segment) CloseResources() {
	if m := s.mapped.Swap(nil); m != nil {
		s.env.Maps.retire(&m.resource)
	}
	if f := s.file.Swap(nil); f != nil {
		s.env.Files.retire(&f.resource)
	}
}

// TryFile returns the open file without blocking, or nil.
func (s *Segment) TryFile() *FileRef {
	if f := s.file.Load(); f != nil && f.acquire() {
		return f
	}
	return nil
}

// File returns the open file, opening it if necessary, which may block.
func (s *Segment) File() (*FileRef, error) {
	if f := s.TryFile(); f != nil {
		return f, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if f := s.TryFile(); f != nil {
		return f, nil
	}
	f, err := s.env.FS.Open(s.path())
	if err != nil {
		return nil, s.openErr(err)
	}
	return s.adopt(f), nil
}

// adopt puts an open file into the cache and returns a reference to it.
func (s *Segment) adopt(f vfs.File) *FileRef {
	r := &FileRef{File: f}
	r.close = func() {
		// Nothing is written through a file without references that was not synced
		// through it, so an error of close(2) has nothing to tell.
		_ = f.Close()
		if s.persisted.Load() {
			s.details.Store(nil)
		}
	}
	s.file.Store(r)
	s.env.Files.insert(&r.resource)
	return r
}

// Begin makes a blank segment the place of the frames after previous and returns
// its header, which the caller puts before the first frame. Owner only.
func (s *Segment) Begin(previous Link, header []byte) {
	if s.end.Load() != 0 {
		panic(fmt.Sprintf("segment %s: begun twice, end %d", s.name, s.end.Load()))
	}
	// A segment that was truncated back to blank may still be read by number, and
	// continues from the same frame as before.
	if s.previous != previous {
		s.previous = previous
	}
	h := s.Header()
	h.Encode(header)
}

// Header is the header of a segment that is not blank.
func (s *Segment) Header() Header {
	return Header{Identity: s.identity, Sequence: s.sequence, FileID: s.fileID, Previous: s.previous, Capacity: s.capacity.Load()}
}

// Append writes the slices, size bytes in all, behind the last frame with one
// pwritev; before the first frame they start with the header. The space must be
// allocated. Nothing is durable when it returns, and after an error nobody knows
// what was written. Owner only; it does not keep the slices.
func (s *Segment) Append(f *FileRef, bufs [][]byte, size int64) error {
	at := s.end.Load()
	if at+size > s.allocated.Load() {
		panic(fmt.Sprintf("segment %s: %d bytes at %d exceed the %d allocated", s.name, size, at, s.allocated.Load()))
	}
	if err := f.File.WritevAt(bufs, at); err != nil {
		return fmt.Errorf("segment %s: position %d: write: %w", s.name, at, err)
	}
	s.env.Traffic.Add(size)
	return nil
}

// Note enters a frame that was written at pos, which is the end. Owner only.
func (s *Segment) Note(h *wire.FrameHeader, pos int64) {
	s.details.Load().note(h, pos, s.maxTimeMs.Load())
	if h.AppendTimeMs > s.maxTimeMs.Load() {
		s.maxTimeMs.Store(h.AppendTimeMs)
	}
	s.end.Store(pos + h.FrameSize())
}

// Truncate takes the frames at and behind pos out of the segment; maxTimeMs is
// that of the rest. With pos = HeaderSize the segment is blank again. The bytes
// stay until they are overwritten or zeroed. Owner only.
func (s *Segment) Truncate(pos, maxTimeMs int64) {
	s.details.Store(s.details.Load().before(pos))
	s.maxTimeMs.Store(maxTimeMs)
	s.persisted.Store(false)
	if pos <= HeaderSize {
		pos, maxTimeMs = 0, NoTime
		s.maxTimeMs.Store(NoTime)
	}
	s.end.Store(pos)
	if s.appendedFrom.Load() > pos {
		s.appendedFrom.Store(pos)
	}
}

// Zero makes [from, to) read as zeros, keeping the space. It may block; the
// zeros are durable with the next sync.
func (s *Segment) Zero(f *FileRef, from, to int64) error {
	if from >= to {
		return nil
	}
	if err := f.File.ZeroRange(from, to-from); err != nil {
		return fmt.Errorf("segment %s: position %d: zero %d bytes: %w", s.name, from, to-from, err)
	}
	return nil
}

// NextStep is the size to which the file should grow next, at least to need.
func (s *Segment) NextStep(need int64) int64 {
	to := s.allocated.Load()
	for to < need {
		to += min(max(to, FirstStep), MaxStep)
	}
	return min(to, s.capacity.Load())
}

// Grow raises the capacity of a blank segment. Owner only.
func (s *Segment) Grow(capacity int64) {
	if s.end.Load() != 0 {
		panic(fmt.Sprintf("segment %s: capacity of a written segment changed", s.name))
	}
	if capacity <= s.capacity.Load() {
		return
	}
	s.capacity.Store(capacity)
	if m := s.mapped.Swap(nil); m != nil {
		s.env.Maps.retire(&m.resource)
	}
}

// Extend allocates space up to the given size, at most the capacity. It may
// block. A full device is vfs.ErrNoSpace and leaves the size as it was. One at a
// time.
func (s *Segment) Extend(to int64) error {
	from := s.allocated.Load()
	to = min(to, s.capacity.Load())
	if to <= from {
		return nil
	}
	f, err := s.File()
	if err != nil {
		return err
	}
	defer f.Release()
	if err := f.File.Allocate(from, to-from); err != nil {
		return fmt.Errorf("segment %s: allocate to %d: %w", s.name, to, err)
	}
	s.allocated.Store(to)
	return nil
}

// Summary describes a segment with its frames. last is the link of its last
// frame. Owner only.
func (s *Segment) Summary(last Link, rollTimeMs int64, terms []TermRun) *Summary {
	return &Summary{
		Header: s.Header(), End: s.end.Load(), Last: last,
		MaxTimeMs: s.maxTimeMs.Load(), RollTimeMs: rollTimeMs, Terms: terms,
	}
}

// WriteSparse writes the sparse index file of a sealed segment. It may block. The
// file is not needed after a crash: its absence only costs a scan.
func (s *Segment) WriteSparse(sum *Summary) error {
	d := s.details.Load()
	if d == nil {
		return nil
	}
	if s.unlisted.Load() { // who reads the sparse index walks no frames
		if err := s.WriteErased(s.Erased()); err != nil {
			return err
		}
	}
	name := path.Join(s.dir, SparseName(s.sequence, s.fileID))
	if err := WriteFile(s.env.FS, name, appendSparse(nil, sum, d)); err != nil {
		return fmt.Errorf("segment %s: sparse index: %w", s.name, err)
	}
	s.persisted.Store(true)
	return nil
}

// ReadSparse reads the sparse index file of a segment and checks that it is of
// this file. It may block.
func ReadSparse(fs vfs.FS, dir string, h *Header) (*Summary, error) {
	sum, _, err := readSparse(fs, dir, h)
	return sum, err
}

func readSparse(fs vfs.FS, dir string, h *Header) (*Summary, *details, error) {
	name := path.Join(dir, SparseName(h.Sequence, h.FileID))
	b, err := ReadFile(fs, name, maxSparseBytes)
	if err != nil {
		return nil, nil, err
	}
	sum, d, err := parseSparse(b)
	if err != nil {
		return nil, nil, err
	}
	if sum.Header != *h {
		return nil, nil, fmt.Errorf("sparse index: of another file: %w", ErrFormat)
	}
	return sum, d, nil
}

// load returns the details, reading the sparse index or walking the headers if
// they are not in memory. It may block.
func (s *Segment) load() (*details, error) {
	if d := s.details.Load(); d != nil {
		return d, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if d := s.details.Load(); d != nil {
		return d, nil
	}
	h := s.Header()
	if sum, d, err := readSparse(s.env.FS, s.dir, &h); err == nil && sum.End == s.end.Load() {
		s.details.Store(d)
		s.persisted.Store(true)
		return d, nil
	}
	f, err := s.env.FS.OpenReadOnly(s.path())
	if err != nil {
		return nil, s.openErr(err)
	}
	defer f.Close()
	d := newDetails()
	maxTime := NoTime
	link := s.previous
	sc := NewScanner(f, HeaderSize, s.end.Load(), nil)
	for sc.PassErased(s.Erased()); sc.Position() < s.end.Load(); {
		h, err := sc.Header()
		if err == nil {
			err = sc.Check(&link, &h)
		}
		if err != nil {
			return nil, fmt.Errorf("segment %s: position %d: %w", s.name, sc.Position(), err)
		}
		d.note(&h, sc.Position(), maxTime)
		maxTime = max(maxTime, h.AppendTimeMs)
		link = After(&h)
		sc.Skip(&h)
	}
	s.details.Store(d)
	return d, nil
}
