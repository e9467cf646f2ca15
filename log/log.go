package log

import (
	"errors"
	"fmt"
	"log/slog"
	"math"
	"sync"
	"sync/atomic"

	"github.com/lockstepmq/lockstep/internal/invariants"
	"github.com/lockstepmq/lockstep/segment"
	"github.com/lockstepmq/lockstep/vfs"
	"github.com/lockstepmq/lockstep/wire"
)

// SyncMode says when records count as stable. It governs appends that hold
// nothing but records; terms, votes, configuration, control and no-op entries and
// checkpoints are synced in every mode.
type SyncMode uint8

const (
	// SyncQuorum ("quorum-fsync") makes records stable by fdatasync. The default.
	SyncQuorum SyncMode = iota
	// SyncInterval ("interval") makes records stable when they are written; the
	// broker calls SyncNow periodically.
	SyncInterval
	// SyncOS ("os") makes records stable when they are written; the kernel decides
	// when they reach the disk.
	SyncOS
)

func (m SyncMode) String() string {
	switch m {
	case SyncQuorum:
		return "quorum-fsync"
	case SyncInterval:
		return "interval"
	case SyncOS:
		return "os"
	}
	return "unknown"
}

const (
	defaultSegmentBytes = 64 << 20
	defaultTailBytes    = 8 << 20
	maxSegmentBytes     = 1 << 40

	// hotWindowBytes is how far behind the tail bytes that this process appended
	// count as being in memory.
	hotWindowBytes = 16 << 20
	// keepPlaces is how many published entries keep their position in memory, so
	// that a checkpoint a little behind the watermark needs no search.
	keepPlaces = 1024
)

// Options configure one log.
type Options struct {
	// Store is the data directory that holds the log.
	Store *Store
	// Dir is the log's own directory, a full path such as
	// DATA/partitions/<destination-id>-<n>. It is created if its parent exists.
	Dir string
	// PartitionID, Incarnation and ReplicaID say whose log it is. The first two
	// seed the chain and are the same on all replicas.
	PartitionID [16]byte
	Incarnation uint32
	ReplicaID   uint64
	// Sync says when records are stable.
	Sync SyncMode
	// SegmentBytes is the capacity of new segments. Zero means 64 MiB. An append
	// that is larger gets a larger segment.
	SegmentBytes int64
	// TailBytes bounds the entry data kept in memory: above it Reserve answers
	// ErrTailFull for records. Zero means 8 MiB.
	TailBytes int64
	// EraseLeast is how many bytes are erased at a time at least. Zero means
	// segment.MinErased.
	EraseLeast int64
	// Existing makes Open return ErrMissing instead of creating an empty log.
	Existing bool
	// RecoverFence lets Open bring back a log that is fenced: what lies above the
	// durable mark is copied into fresh files and synced before anything is
	// served. It is for replicas without peers (RULES L9); without it Open returns
	// a *FencedError.
	RecoverFence bool
	// StrictRecovery distrusts the disk: after every stop that was not clean, of the
	// process alone too and in every mode, the log is Uncertain (RELIABILITY F9).
	StrictRecovery bool
	// Executor carries out the jobs.
	Executor Executor
	// Logger gets what recovery decided and the fence. Nil means slog.Default().
	Logger *slog.Logger
}

func (o *Options) validate() error {
	switch {
	case o.Store == nil:
		return errors.New("log options: Store is required")
	case o.Dir == "":
		return errors.New("log options: Dir is required")
	case o.Executor == nil:
		return errors.New("log options: Executor is required")
	case o.Sync > SyncOS:
		return fmt.Errorf("log options: Sync has the unknown value %d", o.Sync)
	case o.SegmentBytes < 0 || o.SegmentBytes > maxSegmentBytes:
		return fmt.Errorf("log options: SegmentBytes = %d", o.SegmentBytes)
	case o.TailBytes < 0:
		return fmt.Errorf("log options: TailBytes = %d", o.TailBytes)
	}
	if o.SegmentBytes == 0 {
		o.SegmentBytes = defaultSegmentBytes
	}
	o.SegmentBytes = max(o.SegmentBytes, segment.HeaderSize+wire.FrameHeaderSize)
	if o.TailBytes == 0 {
		o.TailBytes = defaultTailBytes
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	return nil
}

// Entry is one Raft entry. Data is what Raft carries: prefix and body for records
// and control entries (wire.PutEntryPrefix), the bare change for configuration
// entries, nothing for no-ops.
type Entry struct {
	Index wire.Index
	Term  wire.Term
	Kind  wire.Kind
	Data  []byte
	// BodyCRC is the CRC32C of the body, without the prefix, if Summed is set: whoever
	// appends may have verified it already. The log sets both.
	BodyCRC uint32
	Summed  bool
	// Loaded says that the log itself has made Data, at a start: it is not given back.
	Loaded bool
	// Pin, if there is one, says who else reads Data. Release does not give the data
	// back before nobody does.
	Pin *Pin
}

// HardState is what Raft must not forget. Vote is a replica ID, 0 for none.
type HardState struct {
	Term   wire.Term
	Vote   uint64
	Commit wire.Index
}

// Position is a place in a log. The zero Position is the start of a log that
// never lost its first segment.
type Position = segment.Position

// Link is where a log stands between two entries.
type Link = segment.Link

// View is a range of committed records frames, ready to be sent.
type View = segment.View

// Watermark is what readers may see: everything before it is committed, stable
// here and immutable. A Watermark does not change.
type Watermark struct {
	Next     wire.Offset // one past the last readable record
	Index    wire.Index  // last readable entry
	Position Position    // behind that entry
}

// place is where the log stands after an entry.
type place struct {
	link      segment.Link
	seg       *segment.Segment // nil before the first entry of the log
	end       int64
	maxTimeMs int64 // of the segment up to here
}

func (p *place) position() Position {
	if p.seg == nil {
		return Position{}
	}
	return Position{Segment: p.seg.Sequence(), Byte: p.end}
}

// Log is one partition's log. Methods are for the owner, who calls one at a
// time, unless they say "any goroutine".
//
//	start.Index ≤ published ≤ last,  settled ≤ synced ≤ last,  the marks in frames ≤ min(synced, commit)
type Log struct {
	o      Options
	store  *Store
	fs     vfs.FS
	logger *slog.Logger
	id     segment.Identity
	// identity is what the hard states and the journal know the replica by.
	identity [16]byte

	// For readers: replaced, never changed.
	segments  atomic.Pointer[[]*segment.Segment] // written segments, by sequence
	watermark atomic.Pointer[Watermark]
	found     atomic.Pointer[Watermark] // where the log ended when it was opened, or was cut since
	start     atomic.Uint64             // logical start, an offset
	written   atomic.Int64              // bytes of the log since it was opened at its first segment
	trimmed   atomic.Int64              // of those, bytes in segments that were dropped
	erased    atomic.Int64              // of the others, bytes that were given back
	damage    damages
	// savedCheckpoint is the newest checkpoint file.
	savedCheckpoint atomic.Pointer[SavedCheckpoint]

	// The rest is the owner's.
	startLink    segment.Link // before the first entry
	nextSequence uint64
	places       deque[place] // consecutive entries; the front is at or below published
	runs         terms        // of [startLink.Index, last], the first run may start earlier
	tail         deque[Entry] // consecutive entries kept by reference
	tailBytes    int64
	leaving      deque[Entry] // out of the tail, but somebody may still read them, or they were taken back

	active     *segment.Segment // last of segments, nil if there is none
	activeFile *segment.FileRef // nil while the log sleeps
	next       *segment.Segment // prepared and blank, named in the manifest
	nextFile   *segment.FileRef

	hs        HardState
	slot      *slot
	uncertain bool
	volatile  bool // records may have been taken for stable that are not durable
	ticket    uint64
	synced    wire.Index // really synced, in every mode: in the segments or by the store's journal
	settled   wire.Index // synced in the segments
	err       *FencedError
	closed    bool

	structural  bool               // a job that writes the manifest is in flight
	removed     []*segment.Segment // cut off by truncation, to be dropped from the manifest
	dying       []*segment.Segment // out of the manifest and the list, to be recycled
	prepareErr  [2]spaceFailure    // of the last preparation, for control and for records
	sealing     bool
	sealNext    int  // number in segments of the first that is not yet sealed
	tables      bool // key tables are wanted, see KeepKeys
	tabulating  bool
	tableNext   int         // number in segments of the first whose table nobody has looked for
	tableGen    uint64      // one more than that of the store's space when a table did not fit; 0: it did
	tableLost   atomic.Bool // one could not be read
	checkpoint  *Checkpoint
	newest      wire.Index // applied index of the newest checkpoint, 0 if none
	older       wire.Index // of the one before
	newestName  int        // which of the two names holds the newest
	saving      *checkpointJob
	savedBytes  int64 // written, when the newest checkpoint was taken
	fenceSaving bool
	installErr  error                 // of the last installation, which passes
	erasing     bool                  // an eraseJob is on its way
	eraseFailed bool                  // nothing more is erased before the next start
	startFirst  bool                  // mutant: an installation writes the manifest first
	punchFirst  bool                  // mutant: what is erased is given back before that is on record
	passFirst   bool                  // mutant: entries are passed over before the checkpoint that has them is there
	aheadOf     bool                  // mutant: entries above the checkpoints are erased
	anyBody     bool                  // mutant: a repair takes what it is given
	holds       map[uint64]wire.Index // entries behind them stay, see HoldStart

	syncing    *syncJob // the one in flight
	syncJob    syncJob
	syncWanted bool
	sleepy     bool  // MarkIdle was called and nothing written since
	askedMs    int64 // when RetentionPoint was asked last, by its caller's clock; 0: never

	pending pendingSync
	gate    gate
	// journaled is the newest file of the store's journal that this log holds.
	journaled atomic.Pointer[journalFile]

	// Scratch of Append.
	headers []byte
	vector  [][]byte
	frames  []wire.FrameHeader
}

// spaceFailure is a preparation that failed for want of space or descriptors; it
// is not repeated before the store has looked again.
type spaceFailure struct {
	err error
	gen uint64
}

// pendingSync is what the next sync will cover. The owner adds to it, the job
// takes it when it starts, so that one sync covers all that was written before.
type pendingSync struct {
	sync.Mutex // not held across I/O

	ticket uint64
	index  wire.Index
	files  []dirtyFile
	// [from, to) of the last file is what was written since the last sync. The
	// journal may stand in for a sync if nothing else is new; whole says that it may
	// not: something is new that only a sync of the files makes durable, such as
	// another file, the header of one, or entries taken back.
	from, to int64
	whole    bool

	slot slotState // what to write if stateDirty, and the base of a mark
	// stateDirty asks for the slot before the files, mark for the slot after them.
	stateDirty bool
	mark       bool
	clean      bool
	force      bool       // sync even if nothing waits for it
	commit     wire.Index // of Log.commit

	// need describes the first call that only a real sync makes stable, taken the
	// same for the job that has started.
	need, taken need
	// cut is the lowest index that was truncated since the job started.
	cut wire.Index
}

type dirtyFile struct {
	seg *segment.Segment
	ref *segment.FileRef
}

// need is a ticket that waits for a sync, 0 for none, and the last entry that is
// stable without it.
type need struct {
	ticket uint64
	stable wire.Index
}

const noIndex = wire.Index(math.MaxUint64)

// takeNeed moves the need to the job that starts. A job that was taken by the journal
// and could not be served there starts twice.
func (p *pendingSync) takeNeed() {
	if p.need.ticket == 0 {
		return
	}
	p.taken.ask(p.need.ticket, p.need.stable)
	p.need = need{}
}

func (n *need) ask(ticket uint64, stable wire.Index) {
	if n.ticket == 0 {
		*n = need{ticket: ticket, stable: stable}
	}
	n.stable = min(n.stable, stable)
}

// gate lets Close wait for the jobs that run, and turns away those that start
// later.
type gate struct {
	mu      sync.Mutex
	cond    *sync.Cond
	running int
	closed  bool
}

func (g *gate) enter() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return false
	}
	g.running++
	return true
}

func (g *gate) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.running--
	if g.running == 0 {
		g.cond.Broadcast()
	}
}

func (g *gate) close() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed = true
	for g.running > 0 {
		g.cond.Wait()
	}
}

// last is where the log ends.
func (l *Log) last() *place { return l.places.back() }

// place returns where the log stands after entry i, if that is in memory.
func (l *Log) place(i wire.Index) (*place, bool) {
	base := l.places.at(0).link.Index
	if i < base || i > l.last().link.Index {
		return nil, false
	}
	return l.places.at(int(i - base)), true
}

// HardState is what SetHardState said last, or what was recovered: then Term is at
// least that of the last entry and Commit at least the newest checkpoint's.
func (l *Log) HardState() HardState { return l.hs }

// SetHardState keeps a new hard state. With sync it becomes durable by the next
// sync, before the entries of that sync, and counts as a ticket; pass true when
// term or vote changed. A new commit alone is written when the slot is written
// anyway, and never above what is durable here.
func (l *Log) SetHardState(hs HardState, sync bool) {
	if hs.Term < l.hs.Term {
		panic(fmt.Sprintf("log %s: term goes from %d to %d", l.o.Dir, l.hs.Term, hs.Term))
	}
	hs.Commit = max(hs.Commit, l.hs.Commit)
	l.hs = hs
	if l.err != nil {
		if sync {
			l.ticket++
		}
		return
	}
	l.pending.Lock()
	defer l.pending.Unlock()
	l.refreshSlotLocked()
	if sync {
		l.ticket++
		l.pending.stateDirty = true
		l.pending.ticket = l.ticket
		l.pending.need.ask(l.ticket, noIndex)
	}
}

// refreshSlotLocked brings the slot content up to date. What is not durable here
// is left out of commit and mark: recovery takes them at their word.
func (l *Log) refreshSlotLocked() {
	s := &l.pending.slot
	s.boot = l.store.boot
	s.term, s.vote = l.hs.Term, l.hs.Vote
	s.commit = max(s.commit, l.mark())
	s.mark = max(s.mark, l.mark())
	s.flags = 0
	if l.uncertain {
		s.flags |= slotUncertain
	}
	if l.o.Sync == SyncQuorum && l.synced == l.LastIndex() {
		l.volatile = false
	}
	if l.volatile {
		s.flags |= slotVolatile
	}
	l.pending.commit = l.commit()
}

// mark is the durable mark: what is durable here and committed. An entry that is
// durable and not committed may still be truncated; a mark above it, surviving
// in a stale frame or in the slot, would make a tail that is merely torn look like
// rot. A committed entry is never truncated, so a mark is true for ever.
func (l *Log) mark() wire.Index { return min(l.synced, l.commit()) }

func (l *Log) commit() wire.Index { return max(l.hs.Commit, l.watermark.Load().Index) }

// Uncertain says that records may have been lost with the machine or by its disk: the
// log is in mode os or interval and was not closed before the machine stopped, or was
// fenced; or it was not closed at all with Options.StrictRecovery. The votes of its replica are no proof of anything
// before it has caught up (RULES L5).
func (l *Log) Uncertain() bool { return l.uncertain }

// SetCertain ends the uncertainty, durably with the next sync.
func (l *Log) SetCertain() {
	l.uncertain = false
	l.SetHardState(l.hs, true)
}

// Ticket counts the calls of Append and of SetHardState with sync.
func (l *Log) Ticket() uint64 { return l.ticket }

// DurableTicket is the ticket up to which everything is stable here. It does not
// move any more once the log is fenced.
func (l *Log) DurableTicket() uint64 {
	l.pending.Lock()
	defer l.pending.Unlock()
	if t := l.pending.taken.ticket; t != 0 {
		return t - 1
	}
	if t := l.pending.need.ticket; t != 0 {
		return t - 1
	}
	return l.pending.ticket
}

// DurableIndex is the last entry that is stable here.
func (l *Log) DurableIndex() wire.Index {
	l.pending.Lock()
	defer l.pending.Unlock()
	i := l.pending.index
	if l.pending.taken.ticket != 0 {
		i = min(i, l.pending.taken.stable)
	}
	if l.pending.need.ticket != 0 {
		i = min(i, l.pending.need.stable)
	}
	return i
}

// Err is the fence, nil if there is none. Once the hard states of the store cannot
// be written all of its logs are fenced.
func (l *Log) Err() error {
	if l.err == nil && l.store.states.failed.Load() {
		l.fence(l.store.Err())
	}
	if l.err == nil {
		return nil
	}
	return l.err
}

// FirstIndex is the first entry of the log; with an empty log one past
// LastIndex.
func (l *Log) FirstIndex() wire.Index { return l.startLink.Index + 1 }

// LastIndex is the last entry, committed or not.
func (l *Log) LastIndex() wire.Index { return l.last().link.Index }

// NextOffset is the offset of the next record, behind the last entry, committed
// or not.
func (l *Log) NextOffset() wire.Offset { return l.last().link.Next }

// StartOffset is the logical start: the first offset that is readable. After a
// restart it is the start of the first segment until Trim is called again. Any
// goroutine.
func (l *Log) StartOffset() wire.Offset { return wire.Offset(l.start.Load()) }

// Bytes is the size of the log's segments up to their last frames, without what was
// erased. Any goroutine.
func (l *Log) Bytes() int64 { return l.written.Load() - l.trimmed.Load() - l.erased.Load() }

// ErasedBytes is what of the log's segments was given back to the disk. Any goroutine.
func (l *Log) ErasedBytes() int64 { return l.erased.Load() }

// Term returns the term of entry i and is true for [FirstIndex-1, LastIndex].
func (l *Log) Term(i wire.Index) (wire.Term, bool) {
	if i == l.startLink.Index {
		return l.startLink.Term, true
	}
	if i < l.startLink.Index || i > l.LastIndex() {
		return 0, false
	}
	return l.runs.at(i), true
}

// Publish says that entries up to i are committed and stable: readers see them.
// The watermark never moves back.
func (l *Log) Publish(i wire.Index) {
	old := l.watermark.Load()
	if i <= old.Index {
		return
	}
	p, ok := l.place(i)
	if !ok {
		panic(fmt.Sprintf("log %s: publish %d of [%d, %d]", l.o.Dir, i, l.places.at(0).link.Index, l.LastIndex()))
	}
	if invariants.Enabled && l.err == nil && i > l.DurableIndex() {
		panic(fmt.Sprintf("log %s: publish %d, stable is %d", l.o.Dir, i, l.DurableIndex()))
	}
	l.watermark.Store(&Watermark{Next: p.link.Next, Index: i, Position: p.position()})
	l.pending.Lock()
	l.pending.commit = l.commit()
	l.pending.Unlock()
	for l.places.len() > 1 && l.places.at(1).link.Index+keepPlaces <= i {
		l.places.popFront()
	}
	if p.seg != nil && p.seg.Sequence() != old.Position.Segment {
		l.seal()
		l.maybeDrop()
	}
}

// Watermark is what readers may see. Any goroutine.
func (l *Log) Watermark() *Watermark { return l.watermark.Load() }

// Tail returns entries [lo, hi) by reference as far as maxBytes of data, at least
// one. It is false if they are not all in the in-memory tail. The slice is the
// caller's, the data is the log's until Release.
func (l *Log) Tail(lo, hi wire.Index, maxBytes uint64) ([]Entry, bool) {
	if l.tail.len() == 0 || lo >= hi || lo < l.tail.at(0).Index || hi > l.tail.back().Index+1 {
		return nil, false
	}
	first := int(lo - l.tail.at(0).Index)
	n, size := 0, uint64(0)
	for ; n < int(hi-lo); n++ {
		size += uint64(len(l.tail.at(first + n).Data))
		if n > 0 && size > maxBytes {
			break
		}
	}
	out := make([]Entry, n)
	for k := range out {
		out[k] = *l.tail.at(first + k)
	}
	return out, true
}

// TailBytes is the entry data in the in-memory tail.
func (l *Log) TailBytes() int64 { return l.tailBytes }

// InTail returns an entry of the in-memory tail, of which the caller may not keep
// the pointer.
func (l *Log) InTail(i wire.Index) (*Entry, bool) {
	if l.tail.len() == 0 || i < l.tail.at(0).Index || i > l.tail.back().Index {
		return nil, false
	}
	return l.tail.at(int(i - l.tail.at(0).Index)), true
}

// Chain is the header CRC of an entry, or of what stands before the first one. It is
// false for an entry whose place is no longer in memory.
func (l *Log) Chain(i wire.Index) (uint32, bool) {
	if i == l.startLink.Index {
		return l.startLink.Chain, true
	}
	p, ok := l.place(i)
	if !ok {
		return 0, false
	}
	return p.link.Chain, true
}

// Release takes entries up to upto out of the in-memory tail and hands their data
// to recycle, which may be nil: that of entries with a Pin by the first call at
// which nobody holds it, and then also that of entries which Append took back.
func (l *Log) Release(upto wire.Index, recycle func(data []byte)) {
	for l.tail.len() > 0 && l.tail.at(0).Index <= upto {
		e := l.tail.at(0)
		l.tailBytes -= int64(len(e.Data))
		switch {
		case recycle == nil || e.Loaded:
		case e.Pin.Held() || l.leaving.len() > 0:
			l.leaving.push(*e)
		default:
			recycle(e.Data)
		}
		l.tail.popFront()
	}
	for l.leaving.len() > 0 && !l.leaving.at(0).Pin.Held() {
		if e := l.leaving.at(0); recycle != nil && !e.Loaded {
			recycle(e.Data)
		}
		l.leaving.popFront()
	}
}

// Fence stops the log for good because whoever uses it cannot vouch for it any
// more, as a failed write does.
func (l *Log) Fence(cause error) { l.fence(cause) }

// fence stops the log for good after a failed write or sync. It panics never and
// repeats nothing; what is in flight may complete, its result is ignored.
func (l *Log) fence(cause error) {
	if l.err != nil || l.closed {
		return
	}
	l.err = &FencedError{Dir: l.o.Dir, Cause: cause}
	l.logger.Error("log is fenced", "dir", l.o.Dir, "partition", fmt.Sprintf("%x", l.o.PartitionID), "replica", l.o.ReplicaID, "cause", cause)
	// Nothing that is not durable yet ever will be reported so.
	l.pending.Lock()
	if l.pending.need.ticket == 0 {
		l.pending.need.ask(l.ticket+1, l.pending.index)
	}
	l.pending.Unlock()
	l.store.journal.abandon(l)
	l.saveFence()
}
