package segment

import (
	"errors"
	"fmt"
	"io"
	iofs "io/fs"

	"github.com/lockstepmq/lockstep/vfs"
)

// WriteFile makes name a file of the given content and syncs it, but not its
// directory. What was there before is lost, also on failure: then there is no file.
// It may block. The error of a write or a sync is Final.
func WriteFile(fs vfs.FS, name string, content []byte) error {
	f, err := createAnew(fs, name)
	if err != nil {
		return err
	}
	if err = writeAllocated(f, content, 0); err == nil {
		err = Final(f.Sync())
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return errors.Join(err, fs.Remove(name))
	}
	return nil
}

// createAnew makes an empty file, also where there is one.
func createAnew(fs vfs.FS, name string) (vfs.File, error) {
	f, err := fs.Create(name)
	if errors.Is(err, iofs.ErrExist) {
		if err = fs.Remove(name); err == nil {
			f, err = fs.Create(name)
		}
	}
	return f, err
}

// writeAllocated writes content at the end of a file. Taking the space first turns a full
// disk into a failed allocation, which may be repeated; a failed write may not, and is
// Final.
func writeAllocated(f vfs.File, content []byte, at int64) error {
	if err := f.Allocate(at, int64(len(content))); err != nil {
		return err
	}
	_, err := f.WriteAt(content, at)
	return Final(err)
}

// ReadFile reads a file of at most limit bytes; a larger one is ErrFormat, and
// nothing is allocated for it. It may block.
func ReadFile(fs vfs.FS, name string, limit int64) ([]byte, error) {
	f, err := fs.OpenReadOnly(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	size, err := f.Size()
	if err != nil {
		return nil, err
	}
	if size > limit {
		return nil, fmt.Errorf("%d bytes exceed the limit of %d: %w", size, limit, ErrFormat)
	}
	b := make([]byte, size)
	if n, err := f.ReadAt(b, 0); int64(n) < size {
		return nil, errors.Join(io.ErrUnexpectedEOF, err)
	}
	return b, nil
}
