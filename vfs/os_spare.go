package vfs

import (
	"errors"
	"sync"

	"golang.org/x/sys/unix"
)

// A directory has to be opened to be synced, after the change in it that the sync is
// for: at that moment there is no way back, and a process that has run out of
// descriptors would have to say that the disk has failed. So this process keeps a few
// that nothing else can take.

// spareDescriptors is how many directories can be synced at the same time while the
// process has no descriptor left.
const spareDescriptors = 4

// spares are open descriptors without a use.
type spares struct {
	null int      // what they are copies of
	free chan int // of those that nobody uses
}

// spare returns this process's, opened at the first call. There may be none.
var spare = sync.OnceValue(func() *spares {
	s := &spares{free: make(chan int, spareDescriptors)}
	var err error
	if s.null, err = unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0); err != nil {
		return s
	}
	for range spareDescriptors {
		s.refill()
	}
	return s
})

// refill replaces a spare descriptor that was lost, if there is one to be had.
func (s *spares) refill() {
	if len(s.free) == cap(s.free) {
		return
	}
	fd, err := unix.FcntlInt(uintptr(s.null), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return
	}
	select {
	case s.free <- fd:
	default: // somebody was faster
		_ = unix.Close(fd)
	}
}

// withDirectory calls f with a descriptor of an open directory. It uses a spare one if
// the process has no other.
func withDirectory(dir string, f func(fd int) error) error {
	open := func() (fd int, err error) {
		err = ignoringEINTR(func() (err error) {
			fd, err = unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
			return err
		})
		return fd, err
	}
	s := spare()
	fd, err := open()
	if err == nil {
		defer s.refill()
		defer unix.Close(fd)
		return f(fd)
	}
	// Whoever opens something in the moment between close and open gets the spare one,
	// and this goes on with the next.
	for errors.Is(err, unix.EMFILE) {
		select {
		case given := <-s.free:
			_ = unix.Close(given)
		default:
			return err
		}
		if fd, err = open(); err != nil {
			s.refill()
			continue
		}
		defer func() {
			// In one step, so that nobody gets it: what was the directory is spare again.
			err := ignoringEINTR(func() error { return unix.Dup3(s.null, fd, unix.O_CLOEXEC) })
			if err != nil {
				_ = unix.Close(fd)
				return
			}
			select {
			case s.free <- fd:
			default: // refilled meanwhile
				_ = unix.Close(fd)
			}
		}()
		return f(fd)
	}
	return err
}
