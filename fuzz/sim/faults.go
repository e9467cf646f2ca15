package sim

import (
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/lockstepmq/lockstep/vfs"
)

// faults is what goes wrong with the storage, and what the storage calls tell
// about the broker.
type faults struct {
	// countdown is how many storage calls succeed before one fails; negative: none fails.
	countdown int
	torn      int64 // bytes of a failing write that reach the file; negative: none
	injected  bool  // an error was returned in this life of the process
	full      bool  // the space was limited in this life of the process
	limited   bool  // the space is limited
	stopAt    int64 // storage call at which the power goes; 0: none
	starting  bool  // the process is starting
	// broken are files whose sync failed in this life: none may be asked again.
	broken map[string]bool
	// evicted is set when the cache dropped what a failed sync has lost: until the
	// log notices, readers see the disk's older bytes, and their checksums tell.
	evicted bool
	// interrupt says how often a job is interrupted by turns, in percent.
	interrupt   int
	interrupted bool // no interruption inside an interruption
	reading     bool // a reader is at work: turns may interrupt it too
}

// excused reports whether the node may fail: something was done to it.
func (s *Simulation) excused() bool { return s.faults.injected || s.stopped() }

// stopped reports whether the power is gone.
func (s *Simulation) stopped() bool {
	return s.faults.stopAt > 0 && s.disk.Ops() >= s.faults.stopAt
}

// storageCall is called before every storage call that is not after a power cut.
func (s *Simulation) storageCall(op vfs.Op, name string) error {
	if s.options.Calls {
		s.trace.add("        %s %s", op, name)
	}
	s.observe(op, name)
	s.saving.note(op, name, s.disk.Ops())
	f := &s.faults
	s.interrupt(op)
	if s.options.FailAt > 0 && s.disk.Ops() == s.options.FailAt {
		f.countdown, f.torn = 0, -1
	}
	if f.countdown < 0 || op == vfs.OpLock || op == vfs.OpSpace || op == vfs.OpStat || op == vfs.OpList || op == vfs.OpMkdir {
		return nil
	}
	if f.countdown > 0 {
		f.countdown--
		return nil
	}
	f.countdown = -1
	f.injected = true
	s.trace.add("EIO: %s %s", op, name)
	s.counts[faultOf(op)]++
	if f.starting {
		s.counts[ErrorInRecovery]++
	}
	switch {
	case op == vfs.OpSync:
		f.broken[name] = true
	case op == vfs.OpWrite && f.torn >= 0 && path.Base(name) != "hardstate":
		// A slot of the hard-state file lies in one sector: it is never torn.
		s.counts[TornWrite]++
		return vfs.TornWrite{N: f.torn, Err: unix.EIO}
	}
	return unix.EIO
}

func faultOf(op vfs.Op) Event {
	switch op {
	case vfs.OpWrite, vfs.OpZero, vfs.OpPunch, vfs.OpTruncate:
		return WriteError
	case vfs.OpSync:
		return SyncError
	case vfs.OpSyncDir:
		return SyncDirError
	case vfs.OpAllocate:
		return AllocateError
	case vfs.OpCreate, vfs.OpRename, vfs.OpRemove:
		return NameError
	}
	return ReadError
}

// observe counts what the broker does and checks what it must never do.
func (s *Simulation) observe(op vfs.Op, name string) {
	base := path.Base(name)
	segment := strings.HasSuffix(base, ".segment")
	switch op {
	case vfs.OpCreate:
		delete(s.faults.broken, name)
		if segment {
			s.counts[SegmentCreated]++
		}
		if strings.HasPrefix(base, "checkpoint") {
			s.counts[CheckpointWritten]++
		}
	case vfs.OpRename, vfs.OpRemove:
		switch {
		case strings.HasSuffix(base, ".journal") && op == vfs.OpRename:
			s.counts[JournalReused]++
		case path.Base(path.Dir(name)) == "recycled" && op == vfs.OpRename:
			s.counts[SegmentRecycled]++
		case segment:
			s.counts[SegmentRemoved]++
		case path.Dir(name) == path.Join(dataDir, "partitions"):
			s.directoryRemoved(base)
		}
	case vfs.OpSync:
		if strings.HasSuffix(base, ".journal") {
			s.counts[JournalGroup]++
		}
		if s.faults.broken[name] {
			s.broken("%s is synced again after its sync has failed", name)
		}
	}
}

// saving finds the storage calls at which checkpoints are on their way to the disk.
type saving struct {
	renamed map[string]bool // directories with one on its way: has it its name?
	calls   []int64
}

func (s *saving) note(op vfs.Op, name string, number int64) {
	dir, base := path.Split(name)
	dir = path.Clean(dir)
	if strings.HasPrefix(base, "checkpoint") && (op == vfs.OpCreate || op == vfs.OpRename) {
		if s.renamed == nil {
			s.renamed = map[string]bool{}
		}
		s.renamed[dir] = op == vfs.OpRename
	}
	if len(s.renamed) > 0 {
		s.calls = append(s.calls, number)
	}
	if op == vfs.OpSyncDir && s.renamed[path.Clean(name)] {
		delete(s.renamed, path.Clean(name))
	}
}

// directoryRemoved checks that a partition's directory goes only after a
// committed deletion (RELIABILITY F4).
func (s *Simulation) directoryRemoved(base string) {
	for _, p := range s.partitions {
		if path.Base(directoryOf(p.destination, p.identity.Number)) == base && s.live[p.destination] {
			s.broken("%s: its directory is removed, and no deletion is committed", p.name)
		}
	}
}

// evict drops from the cache what a failed sync has lost.
func (s *Simulation) evict() {
	if len(s.faults.broken) > 0 {
		s.counts[CacheEvicted]++
		s.faults.evicted = true
	}
	s.disk.EvictLost()
}

// interrupt lets an owner take a turn, or a client send, while a job or a reader is
// between two storage calls: what they share with the owner's turn must bear that.
// Turns make storage calls too, and those are not interrupted again.
func (s *Simulation) interrupt(op vfs.Op) {
	f := &s.faults
	if f.interrupt == 0 || f.interrupted || f.starting || s.node == nil || !f.reading && s.node.running() == 0 ||
		s.random.IntN(100) >= f.interrupt {
		return
	}
	f.interrupted = true
	defer func() { f.interrupted = false }()
	s.trace.add("meanwhile, before %s:", op)
	s.counts[JobInterrupted]++
	if s.random.IntN(2) == 0 {
		s.produce()
	}
	s.takeTurn()
}
