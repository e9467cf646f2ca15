package log

import (
	"errors"
	"fmt"
	iofs "io/fs"
	"path"
	"runtime/debug"
	"sync"
	"sync/atomic"

	"github.com/lockstepmq/lockstep/segment"
	"github.com/lockstepmq/lockstep/vfs"
	"github.com/lockstepmq/lockstep/wire"
)

const (
	// defaultJournalBytes is the size of a journal file, maxJournalFiles how many a
	// store uses in one run, journalStep how far ahead of its end space is taken.
	defaultJournalBytes = 64 << 20
	leastJournalBytes   = 32 << 10
	maxJournalFiles     = 3
	journalStep         = 1 << 20
	// defaultJournalLogs is how many logs must wait for a sync at the same time
	// before they share one: fewer are served as well by their own.
	defaultJournalLogs = 4
	// maxJournalEntry is how much a log may add to one group, in bytes: more is
	// worth a sync of its own. maxJournalGroup bounds a group.
	maxJournalEntry = 80 << 10
	maxJournalGroup = 4 << 20
	// maxSettling is how many logs at a time are asked to sync their segments so
	// that a full journal file becomes free.
	maxSettling = 4
)

// journal is the sync journal of a store (RULES P2): logs that wait for a sync at
// the same time have what they appended written to one file as well, and are
// durable with its one fdatasync. Their segments are synced later, when the
// journal file is full. A start merges the journal into the segments before it
// judges their tails.
//
//	Sync ──▶ offer ──▶ waiting ─┐ groupJob: copy from the segments, one write, one fdatasync
//	                            └▶ each log's executor ──▶ Done
//	file full ──▶ settleJob in turns of its logs ──▶ they sync their segments ──▶ settled ──▶ file free
//
// What holds a file: a log with frames in it whose segment was not synced since.
// A log that is fenced holds it until the next start, because then the journal may
// have the only durable copy; so does a log of an earlier run that was not opened
// in this one. Nothing is deleted by inference.
//
// An error of the journal's own write or sync fences the logs of that group, whose
// durability is unknown, and ends the use of the journal until the next start; so
// does a panic.
// Without space for a journal file, and while all files are held, logs sync their
// own segments as if there were no journal.
type journal struct {
	store    *Store
	executor Executor // nil: nothing is written
	bytes    int64    // of a file
	logs     int32    // from which on they share
	seed     uint32

	// For metrics.
	groups, records, written atomic.Uint64

	mu       sync.Mutex     // not held across I/O
	waiting  []*syncJob     // at most one of each log
	running  bool           // the groupJob is submitted or runs
	closed   bool           // by an error, or by Close
	full     bool           // no space or no free file; spaceGen says since when
	spaceGen uint64         //
	active   *journalFile   // written by the groupJob
	held     []*journalFile // of this run: full, oldest first
	spare    []*journalFile // of this run: free to be used again
	old      []*journalFile // of earlier runs, read only
	settling map[*Log]struct{}

	// Of the groupJob.
	group  []*syncJob
	taken  []*syncJob
	buffer []byte
}

// zeros is what new space of a journal file is filled with.
var zeros [256 << 10]byte

// journalFile is one file. Its fields belong to the groupJob but for the sets,
// which journal.mu guards.
type journalFile struct {
	sequence  uint64
	file      vfs.File
	allocated int64
	end       int64 // behind the last durable block
	chain     uint32

	logs  map[*Log]struct{} // open logs that hold it
	named []*Log            // the same in order, with some that do not any more
	kept  map[[16]byte]bool // identities without an open log that hold it

	index map[[16]byte][]journalSpan // of a file of an earlier run
}

// journalSpan is where the frames of a record lie.
type journalSpan struct {
	pos    int64
	length uint32
	fresh  bool
	fileID uint64
}

func newJournal(s *Store) *journal {
	g := &journal{store: s, executor: s.o.Executor, bytes: s.o.JournalBytes, logs: int32(s.o.JournalLogs), settling: map[*Log]struct{}{}}
	if g.bytes == 0 {
		g.bytes = defaultJournalBytes
	}
	g.bytes = max(g.bytes, leastJournalBytes) &^ (journalPage - 1)
	if g.logs == 0 {
		g.logs = defaultJournalLogs
	}
	return g
}

// syncBegins and syncEnds count the logs that wait for a sync.
func (s *Store) syncBegins() { s.syncs.Add(1) }
func (s *Store) syncEnds()   { s.syncs.Add(-1) }

func (f *journalFile) isHeld() bool { return len(f.logs)+len(f.kept) > 0 }

func (g *journal) path(sequence uint64) string {
	return path.Join(g.store.join(journalName), journalFileName(sequence))
}

// open finds the files of earlier runs. What they hold is kept until each of its
// logs was opened, or was removed by a committed command: then it has no
// hard-state slot any more, and a log gets into the journal only with one.
func (g *journal) open() error {
	states := g.store.states
	err := g.find(states.uuid, func(identity [16]byte) bool { return states.rotten > 0 || states.find(identity) != nil })
	if err != nil {
		return err
	}
	var empty []*journalFile
	for _, f := range g.old {
		if !f.isHeld() {
			empty = append(empty, f)
		}
	}
	for _, f := range empty {
		g.old = without(g.old, f)
	}
	return g.remove(empty)
}

// find reads the files of earlier runs of the store uuid and keeps what they hold of
// the logs named by keep.
func (g *journal) find(uuid [16]byte, keep func(identity [16]byte) bool) error {
	s := g.store
	g.seed = wire.Checksum(uuid[:])
	names, err := s.fs.List(s.join(journalName))
	if err != nil {
		return err
	}
	for _, name := range names {
		sequence, ok := parseJournalName(name)
		if !ok {
			continue
		}
		f := &journalFile{sequence: sequence, index: map[[16]byte][]journalSpan{}, kept: map[[16]byte]bool{}}
		if f.file, err = s.fs.OpenReadOnly(g.path(sequence)); err != nil {
			return err
		}
		g.old = append(g.old, f)
		if f.end, err = f.file.Size(); err != nil {
			return err
		}
		scan, err := scanJournal(f.file, sequence, g.seed, f.end, func(r journalRecord, pos int64, frames []byte) {
			f.index[r.identity] = append(f.index[r.identity], journalSpan{pos, r.length, r.fresh, r.fileID})
			if keep(r.identity) {
				f.kept[r.identity] = true
			}
		})
		if err != nil {
			return fmt.Errorf("%s: %w", g.path(sequence), err)
		}
		if scan.damaged > 0 {
			s.logger.Warn("the sync journal is damaged; logs that miss entries will say so", "file", g.path(sequence), "blocks", scan.damaged)
		}
	}
	return nil
}

func without(list []*journalFile, f *journalFile) []*journalFile {
	kept := list[:0:0]
	for _, x := range list {
		if x != f {
			kept = append(kept, x)
		}
	}
	return kept
}

// remove deletes files that nobody holds, durably. It may block.
func (g *journal) remove(files []*journalFile) error {
	if len(files) == 0 {
		return nil
	}
	var errs []error
	for _, f := range files {
		errs = append(errs, f.file.Close(), g.store.fs.Remove(g.path(f.sequence)))
	}
	return errors.Join(append(errs, g.store.fs.SyncDir(g.store.join(journalName)))...)
}

// close ends the use of the journal and removes the files that nobody holds: after
// a stop in order, all of them.
func (g *journal) close() error {
	if g == nil {
		return nil
	}
	g.mu.Lock()
	g.closed = true
	files := append(append(append([]*journalFile(nil), g.held...), g.spare...), g.old...)
	if g.active != nil {
		files = append(files, g.active)
	}
	g.held, g.spare, g.old, g.active = nil, nil, nil, nil
	var free []*journalFile
	var errs []error
	for _, f := range files {
		if f.isHeld() {
			errs = append(errs, f.file.Close())
		} else {
			free = append(free, f)
		}
	}
	g.mu.Unlock()
	return errors.Join(append(errs, g.remove(free))...)
}

// abort closes the files of a store that does not open.
func (g *journal) abort() {
	for _, f := range g.old {
		_ = f.file.Close()
	}
}

// offer takes a sync if it can be shared. The group it joins submits it to its own
// executor when it is done, or when it turns out that it needs a sync of its own
// after all.
func (g *journal) offer(j *syncJob) bool {
	if g == nil || g.executor == nil || g.store.syncs.Load() < g.logs || !j.l.shareable() {
		return false
	}
	g.mu.Lock()
	if g.closed || g.full && g.spaceGen == g.store.spaceGen.Load() || g.store.low.Load() {
		g.mu.Unlock()
		return false
	}
	g.full = false
	g.waiting = append(g.waiting, j)
	submit := !g.running
	g.running = true
	g.mu.Unlock()
	if submit {
		g.executor.Submit((*groupJob)(g))
	}
	return true
}

// groupJob makes durable what waits. There is one at a time.
type groupJob journal

func (j *groupJob) Run() {
	g := (*journal)(j)
	g.mu.Lock()
	g.group, g.waiting = g.waiting, g.group[:0]
	g.mu.Unlock()
	for rest := g.group; len(rest) > 0; {
		rest = g.commit(rest)
	}
	clear(g.group)
	g.mu.Lock()
	again := len(g.waiting) > 0
	g.running = again
	g.mu.Unlock()
	if again {
		g.executor.Submit(j)
	}
}

func (j *groupJob) Done() {}

// commit makes one block of as many syncs as fit and returns the rest. A panic in it
// fences the logs of the block, whose durability is unknown, and nobody else.
func (g *journal) commit(group []*syncJob) (rest []*syncJob) {
	g.buffer = append(g.buffer[:0], make([]byte, blockHeaderSize)...)
	limit := min(maxJournalGroup, int(g.bytes)) - journalPage
	g.taken = g.taken[:0]
	n, back := 0, 0
	defer func() {
		if cause := recover(); cause != nil {
			err := fmt.Errorf("the group commit of the sync journal panicked: %v", cause)
			g.store.logger.Error("a panic ends the use of the sync journal; please report it with this stack", "panic", cause, "stack", string(debug.Stack()))
			g.fail(err)
			for _, j := range g.taken[back:] {
				j.ran, j.err = true, err
				j.handBack()
			}
			for _, j := range group[n:] { // each syncs its own file
				if j.l.gate.enter() {
					j.handBack()
				}
			}
			rest = nil
		}
		clear(g.taken)
	}()
	for n < len(group) {
		j := group[n]
		if len(g.taken) > 0 && len(g.buffer)+recordHeaderSize+j.l.pendingBytes() > limit {
			break // what is appended until take makes a block that is a little larger
		}
		n++
		if !j.l.gate.enter() {
			continue // Close deals with it
		}
		g.taken = append(g.taken, j)
		b, ok := j.take(g.buffer)
		if g.buffer = b; !ok {
			g.taken = g.taken[:len(g.taken)-1]
			j.handBack()
		}
	}
	if len(g.taken) > 0 {
		shared, err := g.write()
		for ; back < len(g.taken); back++ {
			j := g.taken[back]
			j.ran, j.shared, j.err = shared || err != nil, shared, err
			j.handBack()
		}
	}
	return group[n:]
}

// handBack gives a sync to its log's executor. Close may go on after it.
func (j *syncJob) handBack() {
	l := j.l // the job may begin again as soon as it is back
	l.o.Executor.Submit(j)
	l.gate.leave()
}

// write makes the block in g.buffer durable. It is false without an error if there
// is no room for it; an error means that nobody knows what is on the disk.
func (g *journal) write() (bool, error) {
	f := g.room(padToPage(int64(len(g.buffer))))
	if f == nil {
		return false, nil
	}
	h := blockHeader{sequence: f.sequence, records: uint32(len(g.taken)), previous: f.chain}
	g.buffer = sealBlock(g.buffer, &h, g.seed)
	_, err := f.file.WriteAt(g.buffer, f.end)
	if err == nil {
		err = f.file.Sync()
	}
	if err != nil {
		err = fmt.Errorf("%s: position %d: %w", g.path(f.sequence), f.end, segment.Final(err))
		g.fail(err)
		return false, err
	}
	g.groups.Add(1)
	g.records.Add(uint64(len(g.taken)))
	g.written.Add(uint64(len(g.buffer)))
	g.mu.Lock()
	defer g.mu.Unlock()
	f.end += int64(len(g.buffer))
	f.chain = h.crc
	for _, j := range g.taken {
		if l := j.l; l.journaled.Swap(f) != f {
			f.logs[l] = struct{}{}
			f.named = append(f.named, l)
		}
	}
	return true, nil
}

// fail ends the use of the journal. What it holds stays for the next start.
func (g *journal) fail(err error) {
	g.mu.Lock()
	g.closed = true
	g.mu.Unlock()
	g.store.logger.Error("the sync journal is not used any more until the next start; partitions sync their own files", "cause", err)
}

// room returns the active file if n more bytes fit, or makes another one the
// active file, or nil.
func (g *journal) room(n int64) *journalFile {
	g.mu.Lock()
	closed := g.closed // also while syncs were waiting
	g.mu.Unlock()
	if closed || n > g.bytes {
		return nil // a single entry may be larger than a small file
	}
	f := g.active
	if f == nil || f.end+n > g.bytes {
		f = g.nextFile()
	}
	if f == nil || f.end+n <= f.allocated {
		return f
	}
	more := min(max(journalStep, f.end+n-f.allocated), g.bytes-f.allocated)
	err := f.file.Allocate(f.allocated, more)
	// Blocks that were written before are synced without a commit of the file system's
	// own journal, in about half the time.
	for to := f.allocated + more; err == nil && f.allocated < to; {
		var n int
		n, err = f.file.WriteAt(zeros[:min(int64(len(zeros)), to-f.allocated)], f.allocated)
		err = segment.Final(err)
		f.allocated += int64(n)
	}
	if err != nil {
		g.cannot(err)
		return nil
	}
	return f
}

// cannot takes note of a journal file that could not be made: for want of space,
// which passes, or else for good.
func (g *journal) cannot(err error) {
	if !isPassing(err) {
		g.fail(err)
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.full, g.spaceGen = true, g.store.spaceGen.Load()
}

// nextFile ends the active file and begins another: one that nobody holds any
// more, or a new one.
func (g *journal) nextFile() *journalFile {
	g.mu.Lock()
	if g.active != nil {
		g.held = append(g.held, g.active)
		g.active = nil
	}
	g.freeLocked()
	var f *journalFile
	if n := len(g.spare); n > 0 {
		f = g.spare[n-1]
		g.spare = g.spare[:n-1]
	}
	tooMany := f == nil && len(g.held) >= maxJournalFiles
	if tooMany {
		// Until a log settles. RefreshSpace lets us look again as well.
		g.full, g.spaceGen = true, g.store.spaceGen.Load()
	}
	g.mu.Unlock()
	g.settleMore()
	if tooMany {
		return nil
	}
	f, err := g.begin(f)
	if err != nil {
		g.cannot(err)
		return nil
	}
	g.mu.Lock()
	g.active = f
	g.mu.Unlock()
	return f
}

// begin makes a file, or gives a free one a new name, durably.
func (g *journal) begin(f *journalFile) (*journalFile, error) {
	fs, sequence := g.store.fs, g.store.nextFileID()
	if f == nil {
		file, err := fs.Create(g.path(sequence))
		if err != nil {
			return nil, err
		}
		f = &journalFile{file: file}
	} else if err := fs.Rename(g.path(f.sequence), g.path(sequence)); err != nil {
		return nil, errors.Join(err, f.file.Close())
	}
	*f = journalFile{sequence: sequence, file: f.file, allocated: f.allocated, logs: map[*Log]struct{}{}, kept: map[[16]byte]bool{}, named: f.named[:0]}
	if err := fs.SyncDir(g.store.join(journalName)); err != nil {
		return nil, errors.Join(segment.Final(err), f.file.Close())
	}
	return f, nil
}

// freeLocked moves the files that nobody holds any more to the spare ones.
func (g *journal) freeLocked() {
	kept := g.held[:0]
	for _, f := range g.held {
		if f.isHeld() {
			kept = append(kept, f)
			continue
		}
		clear(f.named)
		g.spare = append(g.spare, f)
		g.full = false
	}
	clear(g.held[len(kept):])
	g.held = kept
}

// settled says that the segments of a log were synced: it holds no file any more,
// and its next record voids those before. Owner of the log only, while no sync of it
// is on its way.
func (g *journal) settled(l *Log) {
	if g != nil && l.journaled.Swap(nil) != nil {
		g.letGo(l, false)
	}
}

// abandon says that a log is fenced: what the journal has of it may be nowhere
// else, and stays until the next start. A sync that is on its way may still add to
// it.
func (g *journal) abandon(l *Log) {
	if g != nil && l.journaled.Load() != nil {
		g.letGo(l, true)
	}
}

func (g *journal) letGo(l *Log, keep bool) {
	g.mu.Lock()
	for _, f := range append([]*journalFile{g.active}, g.held...) {
		if f == nil {
			continue
		}
		if _, ok := f.logs[l]; ok && keep {
			f.kept[l.identity] = true
		}
		delete(f.logs, l)
	}
	delete(g.settling, l)
	g.freeLocked()
	g.mu.Unlock()
	g.settleMore()
}

// settleMore asks the next logs that hold a full file to sync their segments, a few
// at a time, so that they do not get in the way of the others.
func (g *journal) settleMore() {
	g.mu.Lock()
	var ask []*Log
	for _, f := range g.held {
		for len(f.named) > 0 && len(g.settling) < maxSettling {
			l := f.named[0]
			f.named = f.named[1:]
			_, holds := f.logs[l]
			_, asked := g.settling[l]
			if holds && !asked && l.gate.enter() { // else it is being closed
				g.settling[l] = struct{}{}
				ask = append(ask, l)
			}
		}
	}
	g.mu.Unlock()
	for _, l := range ask {
		l.o.Executor.Submit(&settleJob{l})
		l.gate.leave()
	}
}

// settleJob brings the wish that the segments be synced into a turn of the owner.
type settleJob struct{ l *Log }

func (j *settleJob) Run() {}

func (j *settleJob) Done() {
	l := j.l
	if l.closed || l.err != nil || l.journaled.Load() == nil {
		return
	}
	l.pending.Lock()
	l.pending.force = true
	l.pending.Unlock()
	l.Sync()
}

// forget lets go of what is kept of an identity: its log was recovered and is
// durable in its segments, or was removed by a committed command. A file that
// cannot be removed is found at the next start. It may block.
func (g *journal) forget(identity [16]byte) {
	if g == nil {
		return
	}
	g.mu.Lock()
	var free []*journalFile
	for _, f := range g.old {
		delete(f.kept, identity)
		if !f.isHeld() {
			free = append(free, f)
		}
	}
	for _, f := range free {
		g.old = without(g.old, f)
	}
	for _, f := range append([]*journalFile{g.active}, g.held...) {
		if f != nil {
			delete(f.kept, identity)
		}
	}
	g.freeLocked()
	g.mu.Unlock()
	if err := g.remove(free); err != nil && !errors.Is(err, iofs.ErrNotExist) {
		g.store.logger.Warn("a journal file stays until the next start", "cause", err)
	}
}

// JournalStats says how much the sync journal has done in this run, for metrics:
// groups of syncs that shared one, syncs in them, and bytes written.
func (s *Store) JournalStats() (groups, syncs, bytes uint64) {
	if s.journal == nil {
		return 0, 0, 0
	}
	return s.journal.groups.Load(), s.journal.records.Load(), s.journal.written.Load()
}
