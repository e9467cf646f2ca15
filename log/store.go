package log

import (
	"errors"
	"fmt"
	iofs "io/fs"
	"log/slog"
	"path"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/lockstepmq/lockstep/segment"
	"github.com/lockstepmq/lockstep/vfs"
	"github.com/lockstepmq/lockstep/wire"
)

const (
	lockName       = "lock"
	partitionsName = "partitions"
	metaName       = "meta"
	quarantineName = "quarantine"
	recycledName   = "recycled"

	// maxRecycled bounds the pool of recycled segment files.
	maxRecycled = 4

	defaultOpenSegments = 1024
)

// DefaultMappedSegments is StoreOptions.MappedSegments where it is zero.
const DefaultMappedSegments = 1024

// StoreOptions configure one data directory.
type StoreOptions struct {
	// FS is the file system; vfs.OS() in the broker.
	FS vfs.FS
	// Dir is the data directory. It is created if its parent exists.
	Dir string
	// UUID becomes the identity of a store that is created. An existing store
	// keeps its own, see Store.UUID.
	UUID [16]byte
	// BootID names this boot of the machine: it changes when the machine loses its
	// memory and not when only the process dies.
	BootID string
	// MinFreeBytes is the free space below which records are refused. Zero means
	// 5 % of the device and at least 1 GiB; negative means no minimum.
	MinFreeBytes int64
	// ReserveBytes is set aside for control entries, checkpoints and manifests on
	// a full disk. Zero means 64 MiB; negative means none.
	ReserveBytes int64
	// OpenSegments and MappedSegments bound the open files and maps. Those in use
	// may exceed them. Zero means 1,024 each.
	OpenSegments, MappedSegments int
	// Memory says that FS keeps nothing over a restart: there is no lock, no
	// reserve and no minimum of free space.
	Memory bool
	// Reap runs f where it may block, later; see segment.Env. Nil runs it at once.
	Reap func(f func())
	// Executor carries out the group commits of the sync journal, whose Done does
	// nothing and may be called anywhere. Nil means that no journal is written; one
	// that is there is merged into the logs all the same.
	Executor Executor
	// JournalBytes is the size of a journal file, at least 32 KiB. Zero means 64 MiB.
	JournalBytes int64
	// JournalLogs is how many logs must wait for a sync at the same time before they
	// share the journal. Zero means 4.
	JournalLogs int
	// CheckpointBytes bounds a checkpoint file. Zero means MaxCheckpointBytes.
	CheckpointBytes int64
	// Logger gets what recovery decided. Nil means slog.Default().
	Logger *slog.Logger
}

// Store is one data directory: what its logs share. Its methods may be called
// from any goroutine and block.
//
//	DATA/lock                     held by the broker that uses the directory
//	DATA/hardstate                votes and marks of all partitions
//	DATA/journal/                 entries whose segments are not synced yet
//	DATA/reserve                  space for a full disk
//	DATA/recycled/                segment files without a use, at most 4
//	DATA/quarantine/              what was removed or not understood, until it is purged
//	DATA/meta/, DATA/partitions/  the logs
type Store struct {
	o      StoreOptions
	fs     vfs.FS
	logger *slog.Logger
	lock   interface{ Close() error }
	states *hardStates
	env    segment.Env
	boot   uint32

	fileIDs  atomic.Uint32 // file IDs given out in this run
	low      atomic.Bool   // free space is below the minimum
	short    atomic.Bool   // records are refused for want of space, and the log says so
	spaceGen atomic.Uint64 // counts RefreshSpace: failed allocations may be tried again

	tableMu sync.Mutex // held while a key table is made
	poolMu  sync.Mutex // not held across I/O
	pool    []pooled

	reserve reserve
	syncs   atomic.Int32 // logs whose sync is on its way
	// checkpointsFailed counts checkpoints that were not written.
	checkpointsFailed atomic.Uint64
	journal           *journal // nil in a memory store
}

// pooled is a file in recycled/.
type pooled struct {
	name string
	size int64
}

// OpenStore takes the lock, reads the hard states, creating what is missing, and
// returns ErrLocked if another broker has the directory. A full disk is no reason to fail,
// except for a directory that must be created.
func OpenStore(o StoreOptions) (*Store, error) {
	if o.FS == nil || o.Dir == "" {
		return nil, errors.New("store options: FS and Dir are required")
	}
	if o.OpenSegments == 0 {
		o.OpenSegments = defaultOpenSegments
	}
	if o.MappedSegments == 0 {
		o.MappedSegments = DefaultMappedSegments
	}
	if o.CheckpointBytes == 0 {
		o.CheckpointBytes = MaxCheckpointBytes
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if o.Memory {
		o.ReserveBytes, o.MinFreeBytes = -1, -1
	}
	s := &Store{o: o, fs: o.FS, logger: o.Logger}
	s.env.FS = o.FS
	s.env.Files = segment.NewCache(o.OpenSegments)
	s.env.Maps = segment.NewCache(o.MappedSegments)
	s.env.Memory = o.Memory
	s.env.Reap = o.Reap
	s.boot = wire.Checksum([]byte(o.BootID))
	s.reserve.init(o)
	if !o.Memory {
		s.journal = newJournal(s)
	}
	if err := s.open(); err != nil {
		if s.states != nil {
			err = errors.Join(err, s.states.close())
		}
		if s.journal != nil {
			s.journal.abort()
		}
		if s.lock != nil {
			err = errors.Join(err, s.lock.Close())
		}
		return nil, fmt.Errorf("store %s: %w", o.Dir, err)
	}
	return s, nil
}

func (s *Store) open() error {
	if err := s.fs.MkdirAll(s.o.Dir); err != nil {
		return err
	}
	// The parent may be a directory that we may not even read, such as /var/lib.
	if err := s.fs.SyncDir(path.Dir(s.o.Dir)); err != nil && !errors.Is(err, iofs.ErrPermission) {
		return err
	}
	if !s.o.Memory {
		lock, err := s.fs.Lock(s.join(lockName))
		if errors.Is(err, vfs.ErrLocked) {
			return fmt.Errorf("%w: %w", ErrLocked, err)
		}
		if err != nil {
			return err
		}
		s.lock = lock
	}
	if err := s.refuseLostStates(); err != nil {
		return err
	}
	for _, name := range []string{partitionsName, quarantineName, recycledName, journalName} {
		if err := s.fs.MkdirAll(s.join(name)); err != nil {
			return err
		}
	}
	if err := s.fs.SyncDir(s.o.Dir); err != nil {
		return err
	}
	var err error
	if s.states, err = openHardStates(s.fs, s.o.Dir, s.o.UUID); err != nil {
		return err
	}
	if s.states.rotten > 0 {
		s.logger.Warn("hard-state slots are damaged", "file", s.join(hardStateName), "slots", s.states.rotten)
	}
	if err := s.openPool(); err != nil {
		return err
	}
	if s.journal != nil {
		if err := s.journal.open(); err != nil {
			return fmt.Errorf("sync journal: %w", err)
		}
	}
	return s.reserve.open(s)
}

// refuseLostStates keeps a store whose hard-state file has vanished from
// starting as if nobody had ever voted.
func (s *Store) refuseLostStates() error {
	if _, err := s.fs.Stat(s.join(hardStateName)); !errors.Is(err, iofs.ErrNotExist) {
		return err
	}
	lost := func() error {
		return &CorruptionError{File: s.join(hardStateName), Cause: errors.New("file is missing, but there are partitions")}
	}
	if _, err := s.fs.Stat(path.Join(s.join(metaName), manifestName)); err == nil {
		return lost()
	}
	names, err := s.fs.List(s.join(partitionsName))
	if err != nil && !errors.Is(err, iofs.ErrNotExist) {
		return err
	}
	if len(names) > 0 {
		return lost()
	}
	return nil
}

func (s *Store) join(name string) string { return path.Join(s.o.Dir, name) }

// UUID is the identity that the store was created with.
func (s *Store) UUID() [16]byte { return s.states.uuid }

// Dir is the data directory.
func (s *Store) Dir() string { return s.o.Dir }

// Close gives the lock back. All logs must be closed and all jobs done.
func (s *Store) Close() error {
	err := errors.Join(s.journal.close(), s.states.close(), s.reserve.close())
	if s.lock != nil {
		err = errors.Join(err, s.lock.Close())
	}
	return err
}

// Err is the first failed write or sync of the hard states, nil if there was none.
// After it nothing can be promised any more in this store, and nothing is tried.
func (s *Store) Err() error {
	s.states.mu.Lock()
	defer s.states.mu.Unlock()
	return s.states.err
}

// CheckpointsFailed counts the checkpoints that were asked for and not written, because
// the disk was full or they would have been too large.
func (s *Store) CheckpointsFailed() uint64 { return s.checkpointsFailed.Load() }

// OpenFiles returns how many segment files and maps are open, for metrics.
func (s *Store) OpenFiles() (files, maps int) { return s.env.Files.Len(), s.env.Maps.Len() }

// nextFileID returns a number that this store has never given out before: the
// high half counts the runs, the low half the files of a run.
func (s *Store) nextFileID() uint64 {
	return s.states.opens<<32 | uint64(s.fileIDs.Add(1))
}

// openPool finds the recycled files, and removes those that are too many.
func (s *Store) openPool() error {
	dir := s.join(recycledName)
	names, err := s.fs.List(dir)
	if err != nil {
		return err
	}
	removed := false
	for _, name := range names {
		info, err := s.fs.Stat(path.Join(dir, name))
		if err != nil {
			return err
		}
		if len(s.pool) == maxRecycled {
			if err := s.fs.Remove(path.Join(dir, name)); err != nil {
				return err
			}
			removed = true
			continue
		}
		s.pool = append(s.pool, pooled{name: name, size: info.Size()})
	}
	if removed {
		return s.fs.SyncDir(dir)
	}
	return nil
}

// recycle moves a segment file that nobody reads any more out of its directory,
// into the pool if it has room, and makes that durable. It may block.
func (s *Store) recycle(dir string, seg *segment.Segment) error {
	from := path.Join(dir, seg.Name())
	size := seg.Allocated()
	if err := s.removeMade(dir, seg); err != nil {
		return err
	}
	s.poolMu.Lock()
	room := len(seg.Erased()) == 0 && len(s.pool) < maxRecycled && size == seg.Capacity() && !s.low.Load() && !s.o.Memory
	s.poolMu.Unlock()
	if !room {
		return s.unlink(dir, seg)
	}
	name := fmt.Sprintf("%016x", s.nextFileID())
	if err := s.fs.Rename(from, path.Join(s.join(recycledName), name)); err != nil {
		return err
	}
	if err := errors.Join(s.fs.SyncDir(dir), s.fs.SyncDir(s.join(recycledName))); err != nil {
		return err
	}
	s.poolMu.Lock()
	defer s.poolMu.Unlock()
	s.pool = append(s.pool, pooled{name: name, size: size})
	return nil
}

// unlink removes a segment file and what lies beside it, durably. Views that are
// still held keep the bytes until they are released.
func (s *Store) unlink(dir string, seg *segment.Segment) error {
	if err := s.removeMade(dir, seg); err != nil {
		return err
	}
	if err := s.fs.Remove(path.Join(dir, seg.Name())); err != nil {
		return err
	}
	return s.fs.SyncDir(dir)
}

// removeMade removes what was made of a segment and lies beside it.
func (s *Store) removeMade(dir string, seg *segment.Segment) error {
	for _, name := range []string{
		segment.SparseName(seg.Sequence(), seg.FileID()), segment.KeysName(seg.Sequence(), seg.FileID()), segment.ErasedName(seg.Sequence(), seg.FileID()),
	} {
		if err := ignoreMissing(s.fs.Remove(path.Join(dir, name))); err != nil {
			return err
		}
	}
	return nil
}

// takeRecycled moves a recycled file of exactly the given size to a new name, and
// is false if there is none. The caller syncs the new directory.
func (s *Store) takeRecycled(size int64, to string) (bool, error) {
	s.poolMu.Lock()
	var found *pooled
	for i, p := range s.pool {
		if p.size == size {
			found = &p
			s.pool = append(s.pool[:i], s.pool[i+1:]...)
			break
		}
	}
	s.poolMu.Unlock()
	if found == nil {
		return false, nil
	}
	dir := s.join(recycledName)
	if err := s.fs.Rename(path.Join(dir, found.name), to); err != nil {
		return false, err
	}
	return true, s.fs.SyncDir(dir)
}

// drainPool gives the space of the recycled files back.
func (s *Store) drainPool() error {
	s.poolMu.Lock()
	pool := s.pool
	s.pool = nil
	s.poolMu.Unlock()
	if len(pool) == 0 {
		return nil
	}
	dir := s.join(recycledName)
	var errs []error
	for _, p := range pool {
		errs = append(errs, s.fs.Remove(path.Join(dir, p.name)))
	}
	return errors.Join(append(errs, s.fs.SyncDir(dir))...)
}

// Quarantine moves a partition's directory into quarantine/ durably and frees
// its hard-state slot. The log must be closed. A directory that does not exist
// is no error.
func (s *Store) Quarantine(dir string) error {
	identity, known := s.identityOf(dir)
	if _, err := s.fs.Stat(dir); errors.Is(err, iofs.ErrNotExist) {
		return nil
	}
	if err := s.quarantine(dir, path.Base(dir)); err != nil {
		return fmt.Errorf("quarantine %s: %w", dir, err)
	}
	if !known {
		return nil
	}
	// Only after the directory is gone for good: a directory without its slot would
	// look like one whose votes were lost.
	return s.forget(identity)
}

// identityOf reads whose directory this is.
func (s *Store) identityOf(dir string) (identity [16]byte, ok bool) {
	b, err := readFile(s.fs, path.Join(dir, manifestName), manifestFixed+maxSegments*manifestEntry+4)
	if err != nil {
		return identity, false
	}
	m, err := parseManifest(b)
	if err != nil {
		return identity, false
	}
	return slotIdentity(m.Identity, m.replicaID), true
}

// forget frees the slot of a removed log and what the journal holds of it.
func (s *Store) forget(identity [16]byte) error {
	if err := s.states.drop(identity); err != nil {
		return err
	}
	s.journal.forget(identity)
	return nil
}

// quarantine moves a file or directory into quarantine/ under a name that is
// free there.
func (s *Store) quarantine(from, name string) error {
	dir := s.join(quarantineName)
	to := path.Join(dir, name)
	for n := 1; ; n++ {
		if _, err := s.fs.Stat(to); errors.Is(err, iofs.ErrNotExist) {
			break
		} else if err != nil {
			return err
		}
		to = path.Join(dir, fmt.Sprintf("%s.%d", name, n))
	}
	if err := s.fs.Rename(from, to); err != nil {
		return err
	}
	return errors.Join(s.fs.SyncDir(path.Dir(from)), s.fs.SyncDir(dir))
}

// PurgeQuarantine deletes everything in quarantine/. It ends removals that a crash
// cut short: a log that came here and still has its slot lets go of it first.
func (s *Store) PurgeQuarantine() error {
	dir := s.join(quarantineName)
	names, err := s.fs.List(dir)
	if err != nil || len(names) == 0 {
		return err
	}
	for _, name := range names {
		removed := path.Join(dir, name)
		if identity, ok := s.identityOf(removed); ok && s.states.find(identity) != nil {
			alive, err := s.alive(identity)
			if err != nil {
				return err
			}
			if !alive {
				if err := s.forget(identity); err != nil {
					return err
				}
			}
		}
		if err := s.fs.RemoveAll(removed); err != nil {
			return err
		}
	}
	return s.fs.SyncDir(dir)
}

// alive reports whether a partition's directory has this identity: somebody may
// have copied it back out of quarantine/.
func (s *Store) alive(identity [16]byte) (bool, error) {
	dir := s.join(partitionsName)
	names, err := s.fs.List(dir)
	if err != nil {
		return false, err
	}
	for _, name := range names {
		if id, ok := s.identityOf(path.Join(dir, name)); ok && id == identity {
			return true, nil
		}
	}
	return false, nil
}

// isTemp tells names of files that were being written when a crash came.
func isTemp(name string) bool { return strings.HasSuffix(name, tempSuffix) }
