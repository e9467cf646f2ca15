package vfs

import (
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"slices"
	"sync"

	"golang.org/x/sys/unix"
)

// unlimitedSpace is the size that Space reports while no limit is set.
const unlimitedSpace = 1 << 40

// Simulated is a file system in process memory that can lose power. It is the
// twin of the disk in tests: everything is as the disk promises and nothing is
// better than that.
//
//   - Bytes and the size of a file are durable after Sync. At a crash, each
//     512-byte sector written since then is kept or lost by the seed, and the
//     file may have any size between the durable one and the last.
//   - Creations, renames and removals are durable after SyncDir of every
//     directory concerned. At a crash, each of them since then has happened or
//     not, in any order between different names. An unlinked file may be
//     back; a file that was synced may be without its name.
//   - A Sync that fails leaves the unsynced sectors clean but lost: reads go
//     on showing them, later Syncs succeed, and the disk never gets them.
//
// Crash then closes all handles, releases all locks, and the same object is the
// disk after the reboot. Mappings show the volatile bytes, as those of a disk do.
//
// A Simulated starts no goroutine and reads no clock: the same calls in the same
// order with the same seed give the same result. It may be used from
// several goroutines, whose order is then part of what decides. The hook
// of Inject is called without a lock and may call anything, Crash included.
type Simulated struct {
	mu     sync.Mutex
	random *rand.Rand
	root   *simNode
	names  nameLog

	// epoch counts crashes; a handle of an older one is dead.
	epoch uint64
	// soiled lists the files whose images may differ. A file is in it once.
	soiled []*simFile
	locks  map[*simFile]*simLock

	total int64 // space limit in bytes; 0: none
	used  int64 // blocks of all files that have a name or an open handle

	hook    func(op Op, name string) error
	ops     int64
	stopAt  int64 // the operation at which everything stops; 0: none
	panics  bool  // stop by panic
	stopped bool
}

// simFile is one file, reachable by name or by handle. Directories have none.
type simFile struct {
	image image
	// links counts the names in the volatile tree, open the handles and mappings.
	links, open int
	// unlinked is set when the removal of its last name is durable.
	unlinked bool
	soiledAt int // position in Simulated.soiled plus one; 0: not in it
	mappings []*simMapping
}

// NewSimulated returns an empty file system whose crashes are decided by seed.
func NewSimulated(seed uint64) *Simulated {
	return &Simulated{
		random: rand.New(rand.NewPCG(seed, 0x6c6f636b73746570)),
		root:   &simNode{entries: map[string]*simNode{}},
		locks:  map[*simFile]*simLock{},
	}
}

// Inject sets the hook that is called before every operation with the name it
// was called or opened with; nil removes it. What it returns is what the caller
// gets, and the operation has not happened, except that a failed OpSync loses
// the unsynced sectors (see Simulated), a failed OpSyncDir leaves the unsynced
// names of that directory in doubt for good, and a TornWrite writes a part.
func (s *Simulated) Inject(hook func(op Op, name string) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hook = hook
}

// Ops returns how many operations have begun, refused and failed ones included.
func (s *Simulated) Ops() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ops
}

// StopAt makes operation number n, counted as by Ops, and everything after it
// return ErrCrashed without effect, until Crash. Zero takes the point back.
func (s *Simulated) StopAt(n int64) { s.setStop(n, false) }

// PanicAt is StopAt, but operation number n panics with ErrCrashed, for callers
// that go on after errors; what follows returns ErrCrashed.
func (s *Simulated) PanicAt(n int64) { s.setStop(n, true) }

func (s *Simulated) setStop(n int64, panics bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stopAt, s.panics = n, panics
}

// SetSpace limits the space of all files to total bytes, in blocks of 4 KiB; zero
// means no limit. Files that are already larger keep what they have.
func (s *Simulated) SetSpace(total int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.total = total
}

// OpenCount returns how many file handles and mappings are open, for tests that
// look for leaks.
func (s *Simulated) OpenCount() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	count := 0
	s.eachFile(s.root, func(f *simFile) { count += f.open })
	return count
}

// Crash cuts the power: the seed decides what of the unsynced state survives,
// all handles and mappings are dead, all locks are free, and the stop point is
// gone. The injection hook, the operation count and the space limit stay.
// The bytes of a dead mapping stay readable until it is garbage.
func (s *Simulated) Crash() {
	s.crash(func() nameSurvival { return randomNameSurvival(s.random) },
		func() survival { return randomSurvival(s.random) })
}

// CrashKeepAll is a Crash that everything survives, as when only the process
// dies. What a failed Sync lost is lost all the same.
func (s *Simulated) CrashKeepAll() {
	s.crash(func() nameSurvival { return nameSurvival{kind: keepAll} },
		func() survival { return survival{kind: keepAll} })
}

// CrashLoseAll is a Crash that nothing survives but what was promised.
func (s *Simulated) CrashLoseAll() {
	s.crash(func() nameSurvival { return nameSurvival{kind: loseAll} },
		func() survival { return survival{kind: loseAll} })
}

func (s *Simulated) crash(survivingNames func() nameSurvival, survivingBytes func() survival) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.epoch++
	s.stopAt, s.panics, s.stopped = 0, false, false
	clear(s.locks)
	s.names.crash(survivingNames())
	for _, f := range s.soiled {
		f.soiledAt = 0
		f.dropMappings()
		f.image.crash(survivingBytes())
	}
	clear(s.soiled)
	s.soiled = s.soiled[:0]
	s.used = 0
	s.eachFile(s.root, func(f *simFile) { f.links, f.open, f.unlinked = 0, 0, false })
	s.eachFile(s.root, func(f *simFile) {
		f.links++
		if f.links == 1 {
			f.dropMappings()
			s.used += f.image.count * blockSize
		}
	})
}

// eachFile visits each name of a file below n. The order is that of a map, so
// what is done must not depend on it.
func (s *Simulated) eachFile(n *simNode, visit func(*simFile)) {
	for _, child := range n.entries {
		if child.isDirectory() {
			s.eachFile(child, visit)
		} else {
			visit(child.file)
		}
	}
}

// Corrupt flips one bit (0 to 7) of the byte at off, in what is read and in what
// is on the disk. It is not an operation: no hook, no count.
func (s *Simulated) Corrupt(name string, off int64, bit int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	found, err := s.root.findFile(name)
	if err == nil && (off < 0 || off >= found.file.image.size || bit < 0 || bit > 7) {
		err = fmt.Errorf("bit %d of byte %d of %d: %w", bit, off, found.file.image.size, unix.EINVAL)
	}
	if err != nil {
		return pathError("corrupt", name, err)
	}
	found.file.image.flip(off, uint(bit))
	return nil
}

// EvictLost makes reads show the disk's bytes where a failed Sync lost newer
// ones, as happens when the page cache drops pages that it believes are clean.
func (s *Simulated) EvictLost() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range s.soiled {
		f.image.evictLost()
	}
}

// begin counts an operation and asks the hook. The lock is not held while the
// hook runs.
func (s *Simulated) begin(op Op, name string) error {
	s.mu.Lock()
	if s.stopped {
		s.mu.Unlock()
		return pathError(op.String(), name, ErrCrashed)
	}
	s.ops++
	if s.stopAt > 0 && s.ops >= s.stopAt {
		s.stopped = true
		panics := s.panics
		s.mu.Unlock()
		if panics {
			panic(ErrCrashed)
		}
		return pathError(op.String(), name, ErrCrashed)
	}
	hook := s.hook
	s.mu.Unlock()
	if hook == nil {
		return nil
	}
	return hook(op, name)
}

func (s *Simulated) Create(name string) (File, error) {
	if err := s.begin(OpCreate, name); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	directory, base, err := s.root.vacant(name)
	if err != nil {
		return nil, pathError("create", name, err)
	}
	return s.handleLocked(name, s.createLocked(directory, base), false), nil
}

func (s *Simulated) createLocked(directory *simNode, base string) *simFile {
	f := &simFile{links: 1}
	f.image.onChange = f.updateMappings
	s.names.add(nil, binding{nameKey: nameKey{directory, base}, after: &simNode{file: f}})
	return f
}

func (s *Simulated) Open(name string) (File, error)         { return s.open(name, false) }
func (s *Simulated) OpenReadOnly(name string) (File, error) { return s.open(name, true) }

func (s *Simulated) open(name string, readOnly bool) (File, error) {
	if err := s.begin(OpOpen, name); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	found, err := s.root.findFile(name)
	if err != nil {
		return nil, pathError("open", name, err)
	}
	return s.handleLocked(name, found.file, readOnly), nil
}

func (s *Simulated) Rename(oldname, newname string) error {
	if err := s.begin(OpRename, oldname); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	r, err := s.root.prepareRename(oldname, newname)
	if err != nil {
		return pathError("rename", oldname, fmt.Errorf("to %s: %w", newname, err))
	}
	if r.replaced == r.moved {
		return nil
	}
	var emptied *simNode
	if r.replaced != nil && r.replaced.isDirectory() {
		emptied = r.replaced
	}
	s.names.add(emptied,
		binding{nameKey: nameKey{r.from, r.oldBase}, before: r.moved},
		binding{nameKey: nameKey{r.to, r.newBase}, before: r.replaced, after: r.moved})
	if r.replaced != nil {
		s.unlinkLocked(r.replaced)
	}
	return nil
}

func (s *Simulated) Remove(name string) error {
	if err := s.begin(OpRemove, name); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	directory, base, err := s.root.removable(name)
	if err != nil {
		return pathError("remove", name, err)
	}
	s.removeLocked(directory, base)
	return nil
}

// RemoveAll is one operation to the hook and the count, but removes name by
// name: a crash may keep any part of the tree.
func (s *Simulated) RemoveAll(name string) error {
	if err := s.begin(OpRemove, name); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	directory, base, exists, err := s.root.removableTree(name)
	if !exists {
		return pathError("remove all", name, err)
	}
	s.removeTreeLocked(directory, base)
	return nil
}

func (s *Simulated) removeTreeLocked(directory *simNode, base string) {
	n := directory.entries[base]
	for _, name := range n.sorted() {
		s.removeTreeLocked(n, name)
	}
	s.removeLocked(directory, base)
}

// removeLocked removes a file or an empty directory.
func (s *Simulated) removeLocked(directory *simNode, base string) {
	n := directory.entries[base]
	var emptied *simNode
	if n.isDirectory() {
		emptied = n
	}
	s.names.add(emptied, binding{nameKey: nameKey{directory, base}, before: n})
	s.unlinkLocked(n)
}

// unlinkLocked drops a name from a node's account; the space goes with the last
// of names and handles.
func (s *Simulated) unlinkLocked(n *simNode) {
	if n.isDirectory() {
		return
	}
	n.file.links--
	if n.file.links == 0 && n.file.open == 0 {
		s.used -= n.file.image.count * blockSize
	}
}

func (s *Simulated) MkdirAll(dir string) error {
	if err := s.begin(OpMkdir, dir); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return pathError("mkdir", dir, s.root.makeAll(dir, func(at *simNode, name string, made *simNode) {
		s.names.add(nil, binding{nameKey: nameKey{at, name}, after: made})
	}))
}

func (s *Simulated) List(dir string) ([]string, error) {
	if err := s.begin(OpList, dir); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	names, err := s.root.list(dir)
	return names, pathError("list", dir, err)
}

func (s *Simulated) Stat(name string) (fs.FileInfo, error) {
	if err := s.begin(OpStat, name); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	info, err := s.root.stat(name, func(file *simFile) (int64, error) { return file.image.size, nil })
	if err != nil {
		return nil, pathError("stat", name, err)
	}
	return info, nil
}

func (s *Simulated) SyncDir(dir string) error {
	injected := s.begin(OpSyncDir, dir)
	s.mu.Lock()
	defer s.mu.Unlock()
	found, err := s.root.findDirectory(dir)
	if injected != nil {
		if err == nil {
			s.names.doubt(found)
		}
		return injected
	}
	if err != nil {
		return pathError("sync directory", dir, err)
	}
	s.names.sync(found, s.goneLocked)
	return nil
}

// goneLocked is told that a name which meant n is durably something else. A file
// without any name is not worth remembering at the next crash.
func (s *Simulated) goneLocked(n *simNode) {
	if n.isDirectory() || n.file.links > 0 {
		return
	}
	n.file.unlinked = true
	s.forgetLocked(n.file)
}

// forgetLocked drops the unsynced state of a file that nobody can reach any more.
func (s *Simulated) forgetLocked(f *simFile) {
	if f.unlinked && f.open == 0 {
		s.cleanLocked(f)
	}
}

// soilLocked and cleanLocked keep the list of files whose images may differ.
func (s *Simulated) soilLocked(f *simFile) {
	if f.soiledAt == 0 {
		s.soiled = append(s.soiled, f)
		f.soiledAt = len(s.soiled)
	}
}

func (s *Simulated) cleanLocked(f *simFile) {
	if f.soiledAt == 0 {
		return
	}
	last := s.soiled[len(s.soiled)-1]
	s.soiled[f.soiledAt-1] = last
	last.soiledAt = f.soiledAt
	s.soiled = slices.Delete(s.soiled, len(s.soiled)-1, len(s.soiled))
	f.soiledAt = 0
}

func (s *Simulated) Space(dir string) (free, total int64, err error) {
	if err := s.begin(OpSpace, dir); err != nil {
		return 0, 0, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, err := s.root.findDirectory(dir); err != nil {
		return 0, 0, pathError("statfs", dir, err)
	}
	total = s.totalLocked()
	return max(0, total-s.used), total, nil
}

func (s *Simulated) totalLocked() int64 {
	if s.total == 0 {
		return unlimitedSpace
	}
	return s.total / blockSize * blockSize
}

// takeLocked gives [off, end) of a file space of its own, whole or not at all.
func (s *Simulated) takeLocked(f *simFile, off, end int64) error {
	missing := f.image.missing(off, end) * blockSize
	if missing == 0 {
		return nil
	}
	if s.used+missing > s.totalLocked() {
		return noSpace
	}
	f.image.take(off, end)
	s.used += missing
	return nil
}

func (s *Simulated) Lock(name string) (io.Closer, error) {
	if err := s.begin(OpLock, name); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	file, err := s.root.lockFile(name, func(directory *simNode, base string) (*simFile, error) {
		return s.createLocked(directory, base), nil
	})
	if err == nil && s.locks[file] != nil {
		err = ErrLocked
	}
	if err != nil {
		return nil, pathError("lock", name, err)
	}
	l := &simLock{fs: s, name: name, file: file}
	s.locks[file] = l
	return l, nil
}

type simLock struct {
	fs   *Simulated
	name string
	file *simFile
}

// Close lets go of the lock. A crash has done so already, and another holder
// may have it.
func (l *simLock) Close() error {
	l.fs.mu.Lock()
	defer l.fs.mu.Unlock()
	if l.fs.locks[l.file] != l {
		return pathError("unlock", l.name, fs.ErrClosed)
	}
	delete(l.fs.locks, l.file)
	return nil
}
