package log

import (
	"errors"
	"fmt"
	iofs "io/fs"
	"sync"

	"github.com/lockstepmq/lockstep/segment"
	"github.com/lockstepmq/lockstep/vfs"
)

const (
	reserveName         = "reserve"
	defaultReserveBytes = 64 << 20
	reserveStep         = 8 << 20 // given back at a time
	leastMinFree        = 1 << 30
)

// reserve is a preallocated file: space that only control entries, checkpoints,
// manifests and votes may turn into theirs when the disk is full (RULES L10).
type reserve struct {
	want int64

	// mu is held across I/O: it is taken only on a full disk and by
	// RefreshSpace, never in an owner's turn.
	mu   sync.Mutex
	file vfs.File
	size int64
}

func (r *reserve) init(o StoreOptions) {
	switch {
	case o.ReserveBytes > 0:
		r.want = o.ReserveBytes
	case o.ReserveBytes == 0:
		r.want = defaultReserveBytes
	}
}

// open finds or makes the file. A disk without space for it is not an error.
func (r *reserve) open(s *Store) error {
	if r.want == 0 {
		return nil
	}
	name := s.join(reserveName)
	f, err := s.fs.Open(name)
	if errors.Is(err, iofs.ErrNotExist) {
		if f, err = s.fs.Create(name); err == nil {
			err = s.fs.SyncDir(s.o.Dir)
		}
	}
	if errors.Is(err, vfs.ErrNoSpace) {
		return nil
	}
	if err != nil {
		return err
	}
	r.file = f
	if r.size, err = f.Size(); err != nil {
		return err
	}
	return r.fill()
}

// fill takes the space up to what is wanted.
func (r *reserve) fill() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.file == nil || r.size >= r.want {
		return nil
	}
	err := r.file.Allocate(r.size, r.want-r.size)
	if errors.Is(err, vfs.ErrNoSpace) {
		return nil
	}
	if err == nil {
		r.size = r.want
	}
	return err
}

// missing is how much of the reserve is not there.
func (r *reserve) missing() int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.file == nil {
		return 0
	}
	return r.want - r.size
}

// give frees a step of the reserve, and is false if nothing is left.
func (r *reserve) give() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.file == nil || r.size == 0 {
		return false
	}
	size := max(r.size-reserveStep, 0)
	if r.file.Truncate(size) != nil {
		return false
	}
	r.size = size
	return true
}

func (r *reserve) close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.file == nil {
		return nil
	}
	f := r.file
	r.file = nil
	return f.Close()
}

// ReserveLeft returns how many bytes of the reserve are not in use, for metrics.
func (s *Store) ReserveLeft() int64 {
	s.reserve.mu.Lock()
	defer s.reserve.mu.Unlock()
	return s.reserve.size
}

// withReserve repeats an allocation with space of the reserve while the device is
// full.
func (s *Store) withReserve(allocate func() error) error {
	for {
		err := allocate()
		if !errors.Is(err, vfs.ErrNoSpace) {
			return err
		}
		if s.drainPool() == nil {
			if err = allocate(); !errors.Is(err, vfs.ErrNoSpace) {
				return err
			}
		}
		if !s.reserve.give() {
			return err
		}
	}
}

// RefreshSpace looks at the free space and decides whether records are taken.
// The broker calls it about every 500 ms: allocations that failed for want of
// space are tried again afterwards. Under the minimum, recycled files are given
// back; above it, the reserve is filled again.
func (s *Store) RefreshSpace() error {
	defer s.spaceGen.Add(1)
	free, total, err := s.fs.Space(s.o.Dir)
	if err != nil {
		return err
	}
	least := MinFree(s.o.MinFreeBytes, total)
	low := least > 0 && free < least
	s.low.Store(low)
	if low {
		s.tellShort(free, least)
		return s.drainPool()
	}
	if free >= least+segment.MaxStep && s.short.CompareAndSwap(true, false) {
		s.logger.Info("there is space again: records are taken", "dir", s.o.Dir, "freeBytes", free, "minFreeBytes", least)
	}
	if err := s.reserve.fill(); err != nil || s.reserve.missing() <= 0 {
		return err
	}
	// The reserve is worth more than recycled files.
	if err := s.drainPool(); err != nil {
		return err
	}
	return s.reserve.fill()
}

// MinFree is the free space below which records are refused on a device of total
// bytes, 0 or less for none. configured is StoreOptions.MinFreeBytes.
func MinFree(configured, total int64) int64 {
	if configured != 0 {
		return configured
	}
	return max(total/20, leastMinFree)
}

// keepFree is vfs.ErrNoSpace if n more bytes for records would leave less than the
// minimum. RefreshSpace alone would notice half a second of writing too late.
func (s *Store) keepFree(n int64) error {
	if s.o.MinFreeBytes < 0 || n == 0 {
		return nil
	}
	free, total, err := s.fs.Space(s.o.Dir)
	if err != nil {
		return nil // the allocation itself will tell
	}
	if least := MinFree(s.o.MinFreeBytes, total); free-n < least {
		s.tellShort(free, least)
		return fmt.Errorf("%d bytes are free, %d more for records would leave less than the minimum of %d: %w", free, n, least, vfs.ErrNoSpace)
	}
	return nil
}

// tellShort logs, once until there is space again, why producers get DISK_FULL.
func (s *Store) tellShort(free, least int64) {
	if s.short.CompareAndSwap(false, true) {
		s.logger.Warn("the disk is full: records are refused until there is space; delete or shorten the retention of destinations, or free space beside them",
			"dir", s.o.Dir, "freeBytes", free, "minFreeBytes", least)
	}
}

// full is what is said when there is no space.
func (s *Store) full() error {
	if s.o.Memory {
		return ErrMemoryFull
	}
	return ErrDiskFull
}

// Short says that records were refused for want of space, or free space was below the minimum,
// and that there has not been room for a segment's next step since.
func (s *Store) Short() bool { return s.short.Load() }

// Low says that free space is below the minimum: records get ErrDiskFull.
func (s *Store) Low() bool { return s.low.Load() }
