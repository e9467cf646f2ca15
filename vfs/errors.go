package vfs

import (
	"errors"
	"io/fs"

	"golang.org/x/sys/unix"
)

// spaceError is ENOSPC or EDQUOT: it is both that errno and ErrNoSpace, and
// says the text only once.
type spaceError struct{ errno unix.Errno }

func (e spaceError) Error() string        { return e.errno.Error() }
func (e spaceError) Unwrap() error        { return e.errno }
func (e spaceError) Is(target error) bool { return target == ErrNoSpace }

// pathError says which operation failed on which path. The errno inside
// answers errors.Is for fs.ErrExist, fs.ErrNotExist and fs.ErrPermission; a
// full device also answers for ErrNoSpace.
func pathError(op, path string, err error) error {
	if err == nil {
		return nil
	}
	var errno unix.Errno
	if errors.As(err, &errno) && (errno == unix.ENOSPC || errno == unix.EDQUOT) && !errors.Is(err, ErrNoSpace) {
		err = spaceError{errno}
	}
	return &fs.PathError{Op: op, Path: path, Err: err}
}

// ignoringEINTR repeats a call that a signal interrupted. The Go runtime sends
// itself signals to preempt goroutines, so any slow call may see one.
func ignoringEINTR(call func() error) error {
	for {
		err := call()
		if err != unix.EINTR {
			return err
		}
	}
}
