package vfs

import (
	"fmt"
	"io"
	"io/fs"
	"math/bits"
	"os"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// memoryStep is the unit in which files of kernel memory grow and are charged.
const memoryStep = 1 << 20

// NewMemory returns a file system whose files are anonymous kernel memory
// (memfd), so that they are written, mapped and sent like files on a disk, and
// are gone when the process ends. Names exist in this process only. Sync and
// SyncDir do nothing.
//
// budget is called with a positive number of bytes, a multiple of 1 MiB, before
// a file grows, and may refuse with an error that wraps ErrNoSpace; the growing
// call then returns that error and nothing has changed. It is called with a
// negative number when memory was given back: by Truncate and PunchHole for
// whole MiB steps, and for the rest when the last of the name, the open handles
// and the mappings is gone. It is called from any goroutine, under a lock of the
// file, and must not call back into the file system. Nil means no limit.
func NewMemory(budget func(delta int64) error) FS {
	if budget == nil {
		budget = func(int64) error { return nil }
	}
	return &memoryFS{
		root:   &node[*memory]{entries: map[string]*node[*memory]{}},
		locks:  map[*memory]bool{},
		budget: budget,
	}
}

type memoryFS struct {
	budget func(int64) error

	mu    sync.Mutex // guards the tree and locks
	root  *node[*memory]
	locks map[*memory]bool // lock files that are held
}

// memory is one memfd and the account of its steps.
type memory struct {
	// d is referenced by the name while there is one, by each handle and by each mapping.
	d      *descriptor
	budget func(int64) error

	mu sync.Mutex // orders what changes the size or the charge
	// charged has a bit for each step of memoryStep bytes that the budget has
	// granted. Every byte that was written lies in a charged step.
	charged []uint64
}

func (m *memoryFS) Create(name string) (File, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	directory, base, err := m.root.vacant(name)
	if err != nil {
		return nil, pathError("create", name, err)
	}
	file, err := m.createLocked(directory, base)
	if err != nil {
		return nil, pathError("create", name, err)
	}
	return file.handle(name, false), nil
}

func (m *memoryFS) createLocked(directory *node[*memory], base string) (*memory, error) {
	fd, err := unix.MemfdCreate("lockstep", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	file := &memory{d: newDescriptor(fd), budget: m.budget}
	file.d.onClose = file.giveBackAll
	directory.entries[base] = &node[*memory]{file: file}
	return file, nil
}

func (m *memoryFS) Open(name string) (File, error)         { return m.open(name, false) }
func (m *memoryFS) OpenReadOnly(name string) (File, error) { return m.open(name, true) }

func (m *memoryFS) open(name string, readOnly bool) (File, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	found, err := m.root.findFile(name)
	if err != nil {
		return nil, pathError("open", name, err)
	}
	return found.file.handle(name, readOnly), nil
}

func (m *memoryFS) Rename(oldname, newname string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	r, err := m.root.prepareRename(oldname, newname)
	if err != nil {
		return pathError("rename", oldname, fmt.Errorf("to %s: %w", newname, err))
	}
	if r.replaced == r.moved {
		return nil
	}
	delete(r.from.entries, r.oldBase)
	r.to.entries[r.newBase] = r.moved
	if r.replaced != nil {
		return pathError("rename", newname, r.replaced.file.unlink())
	}
	return nil
}

func (m *memoryFS) Remove(name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	directory, base, err := m.root.removable(name)
	if err != nil {
		return pathError("remove", name, err)
	}
	removed := directory.entries[base]
	delete(directory.entries, base)
	return pathError("remove", name, removed.file.unlink())
}

func (m *memoryFS) RemoveAll(name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	directory, base, exists, err := m.root.removableTree(name)
	if !exists {
		return pathError("remove all", name, err)
	}
	removed := directory.entries[base]
	delete(directory.entries, base)
	return pathError("remove all", name, unlinkTree(removed))
}

// unlinkTree drops the names of a tree that is already out of reach.
func unlinkTree(n *node[*memory]) error {
	first := n.file.unlink()
	for _, name := range n.sorted() {
		if err := unlinkTree(n.entries[name]); first == nil {
			first = err
		}
	}
	return first
}

func (m *memoryFS) MkdirAll(dir string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return pathError("mkdir", dir, m.root.makeAll(dir, func(at *node[*memory], name string, made *node[*memory]) {
		at.entries[name] = made
	}))
}

func (m *memoryFS) List(dir string) ([]string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	names, err := m.root.list(dir)
	return names, pathError("list", dir, err)
}

func (m *memoryFS) Stat(name string) (fs.FileInfo, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	info, err := m.root.stat(name, func(file *memory) (int64, error) { return sizeOf(file.d.fd) })
	if err != nil {
		return nil, pathError("stat", name, err)
	}
	return info, nil
}

func (m *memoryFS) SyncDir(dir string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	_, err := m.root.findDirectory(dir)
	return pathError("sync directory", dir, err)
}

// Space describes the machine's memory, not the budget: free is what the kernel
// estimates it can still give, page cache included (MemAvailable).
func (m *memoryFS) Space(dir string) (free, total int64, err error) {
	m.mu.Lock()
	_, err = m.root.findDirectory(dir)
	m.mu.Unlock()
	if err != nil {
		return 0, 0, pathError("statfs", dir, err)
	}
	meminfo, err := os.ReadFile("/proc/meminfo")
	if err == nil {
		free, total, err = parseMeminfo(string(meminfo))
	}
	if err != nil {
		return 0, 0, repackage("statfs", dir, err)
	}
	return free, total, nil
}

// parseMeminfo finds the available and the total bytes in the text of /proc/meminfo,
// whose lines are "Name:   number kB".
func parseMeminfo(text string) (available, total int64, err error) {
	for name, to := range map[string]*int64{"MemAvailable:": &available, "MemTotal:": &total} {
		_, rest, _ := strings.Cut("\n"+text, "\n"+name)
		if _, err := fmt.Sscanf(rest, "%d kB", to); err != nil {
			return 0, 0, fmt.Errorf("/proc/meminfo: %s %w", name, err)
		}
		*to <<= 10
	}
	return available, total, nil
}

func (m *memoryFS) Lock(name string) (io.Closer, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	file, err := m.root.lockFile(name, m.createLocked)
	if err == nil && m.locks[file] {
		err = ErrLocked
	}
	if err != nil {
		return nil, pathError("lock", name, err)
	}
	m.locks[file] = true
	return &memoryLock{fs: m, name: name, file: file}, nil
}

type memoryLock struct {
	fs     *memoryFS
	name   string
	file   *memory
	closed atomic.Bool
}

func (l *memoryLock) Close() error {
	if l.closed.Swap(true) {
		return pathError("unlock", l.name, fs.ErrClosed)
	}
	l.fs.mu.Lock()
	defer l.fs.mu.Unlock()
	delete(l.fs.locks, l.file)
	return nil
}

// handle opens the file once more. The name still holds a reference, so there
// is one to add to.
func (m *memory) handle(name string, readOnly bool) *memoryFile {
	if !m.d.acquire() {
		panic("vfs: memory file " + name + " has a name and no descriptor")
	}
	return &memoryFile{
		osFile:   osFile{name: name, d: m.d, populateRead: populateReadWorks()},
		memory:   m,
		readOnly: readOnly,
	}
}

// unlink drops the reference of the name; m is nil for a directory.
func (m *memory) unlink() error {
	if m == nil {
		return nil
	}
	return m.d.release()
}

// chargeLocked asks the budget for the steps of [off, end) that are not charged yet,
// all or none.
func (m *memory) chargeLocked(off, end int64) error {
	if end <= off {
		return nil
	}
	first, last := off/memoryStep, (end-1)/memoryStep
	missing := int64(0)
	for step := first; step <= last; step++ {
		if !m.isCharged(step) {
			missing++
		}
	}
	if missing == 0 {
		return nil
	}
	if err := m.budget(missing * memoryStep); err != nil {
		return err
	}
	for int64(len(m.charged)) <= last/64 {
		m.charged = append(m.charged, 0)
	}
	for step := first; step <= last; step++ {
		m.charged[step/64] |= 1 << (step % 64)
	}
	return nil
}

func (m *memory) isCharged(step int64) bool {
	return step/64 < int64(len(m.charged)) && m.charged[step/64]&(1<<(step%64)) != 0
}

// giveBackLocked returns the charge of the steps that lie wholly in [off, end).
// The budget cannot refuse what it gets back.
func (m *memory) giveBackLocked(off, end int64) {
	back := int64(0)
	for step := (off + memoryStep - 1) / memoryStep; (step+1)*memoryStep <= end; step++ {
		if step/64 >= int64(len(m.charged)) {
			break
		}
		if m.isCharged(step) {
			m.charged[step/64] &^= 1 << (step % 64)
			back += memoryStep
		}
	}
	if back > 0 {
		_ = m.budget(-back)
	}
}

// giveBackAll returns the whole charge; the descriptor is closed and nobody is left.
func (m *memory) giveBackAll() {
	m.mu.Lock()
	defer m.mu.Unlock()
	back := int64(0)
	for _, word := range m.charged {
		back += int64(bits.OnesCount64(word)) * memoryStep
	}
	m.charged = nil
	if back > 0 {
		_ = m.budget(-back)
	}
}

// memoryFile is a handle: an osFile on the memfd that asks the budget before it grows.
type memoryFile struct {
	osFile
	memory   *memory
	readOnly bool
}

// reserve charges [off, off+n) for op. A step stays charged if the operation
// then fails: another call may already be writing into it.
func (f *memoryFile) reserve(op string, off, n int64) error {
	if f.readOnly {
		return pathError(op, f.name, unix.EBADF)
	}
	if off < 0 || n < 0 {
		return pathError(op, f.name, unix.EINVAL)
	}
	if err := f.begin(); err != nil {
		return pathError(op, f.name, err)
	}
	defer f.d.release()
	f.memory.mu.Lock()
	defer f.memory.mu.Unlock()
	return pathError(op, f.name, f.memory.chargeLocked(off, off+n))
}

func (f *memoryFile) WriteAt(p []byte, off int64) (int, error) {
	if err := f.reserve("write", off, int64(len(p))); err != nil {
		return 0, err
	}
	return f.osFile.WriteAt(p, off)
}

func (f *memoryFile) WritevAt(bufs [][]byte, off int64) error {
	n := int64(0)
	for _, b := range bufs {
		n += int64(len(b))
	}
	if err := f.reserve("write", off, n); err != nil {
		return err
	}
	return f.osFile.WritevAt(bufs, off)
}

// Sync does nothing: kernel memory has no durable image.
func (f *memoryFile) Sync() error {
	if f.closed.Load() {
		return pathError("sync", f.name, fs.ErrClosed)
	}
	return nil
}

func (f *memoryFile) Allocate(off, n int64) error {
	if err := f.reserve("allocate", off, n); err != nil {
		return err
	}
	if err := f.begin(); err != nil {
		return pathError("allocate", f.name, err)
	}
	defer f.d.release()
	f.memory.mu.Lock() // the sizing lock of osFile is this handle's only
	defer f.memory.mu.Unlock()
	return f.osFile.Allocate(off, n)
}

// Truncate charges what it grows over, since mapped reads of a hole take pages,
// and gives back the steps it cuts off.
func (f *memoryFile) Truncate(size int64) error {
	if f.readOnly {
		return pathError("truncate", f.name, unix.EINVAL)
	}
	if err := f.begin(); err != nil {
		return pathError("truncate", f.name, err)
	}
	defer f.d.release()
	f.memory.mu.Lock()
	defer f.memory.mu.Unlock()
	before, err := sizeOf(f.d.fd)
	if err == nil {
		err = f.memory.chargeLocked(before, size)
	}
	if err == nil {
		err = ignoringEINTR(func() error { return unix.Ftruncate(f.d.fd, size) })
	}
	if err != nil {
		return pathError("truncate", f.name, err)
	}
	f.memory.giveBackLocked(size, int64(len(f.memory.charged))*64*memoryStep)
	return nil
}

// ZeroRange writes zeros as far as the file reaches: tmpfs cannot zero by itself.
func (f *memoryFile) ZeroRange(off, n int64) error {
	size, err := f.Size()
	if err != nil {
		return err
	}
	if err := f.reserve("zero", off, max(0, min(n, size-off))); err != nil {
		return err
	}
	return f.osFile.ZeroRange(off, n)
}

// PunchHole gives back the charge of the steps that it empties whole. Writing
// there again charges them again.
func (f *memoryFile) PunchHole(off, n int64) error {
	if f.readOnly {
		return pathError("punch", f.name, unix.EBADF)
	}
	if err := f.begin(); err != nil { // outlives the lock: the last release takes it
		return pathError("punch", f.name, err)
	}
	defer f.d.release()
	f.memory.mu.Lock()
	defer f.memory.mu.Unlock()
	if err := f.osFile.PunchHole(off, n); err != nil {
		return err
	}
	f.memory.giveBackLocked(off, off+n)
	return nil
}

// Map makes the mapping hold the descriptor: its pages count against the budget
// for as long as they are mapped.
func (f *memoryFile) Map(n int64) (Mapping, error) {
	return f.mapWith(n, func(m *mapping) { m.keep(f.d) })
}
