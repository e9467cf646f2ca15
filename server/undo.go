package server

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/lockstepmq/lockstep/vfs"
)

// newDataDir is a data directory that held nothing when a broker was started on it. It
// is looked at before the start makes anything, so that a start which is refused can
// leave what it found.
type newDataDir struct {
	dir     string
	empty   bool     // it was missing, or there was nothing in it
	missing []string // it and the directories above that were not there, deepest first
}

// lockName is the file in a data directory that the broker which uses it has locked; see
// log.Store.
const lockName = "lock"

func lookBefore(dir string) newDataDir {
	d := newDataDir{dir: dir}
	names, err := os.ReadDir(dir)
	d.empty = errors.Is(err, fs.ErrNotExist) || err == nil && len(names) == 0
	for at := filepath.Clean(dir); ; at = filepath.Dir(at) {
		if _, err := os.Lstat(at); !errors.Is(err, fs.ErrNotExist) {
			return d
		}
		d.missing = append(d.missing, at)
	}
}

// undo removes what a start that ended with cause has made. It leaves a directory that
// belongs to a node: one with an identity, one in use, and one whose UUID a cluster may
// know although the answer to JOIN was lost. What cannot be removed stays: cause is
// what must be said.
func (d *newDataDir) undo(cause error) {
	if !d.empty {
		return
	}
	if names, err := os.ReadDir(d.dir); err == nil && len(names) > 0 && !d.clear(cause) {
		return
	}
	for _, dir := range d.missing {
		if os.Remove(dir) != nil { // others may have put something there
			return
		}
	}
}

// clear empties the directory, and reports whether it did.
func (d *newDataDir) clear(cause error) bool {
	lock, err := vfs.OS().Lock(filepath.Join(d.dir, lockName))
	if err != nil {
		return false
	}
	defer lock.Close()
	var outside notTakenIn
	for name, may := range map[string]bool{"node.json": false, joiningName: errors.As(cause, &outside)} {
		if _, err := os.Lstat(filepath.Join(d.dir, name)); !may && !errors.Is(err, fs.ErrNotExist) {
			return false
		}
	}
	names, err := os.ReadDir(d.dir)
	if err != nil {
		return false
	}
	for _, n := range names {
		if n.Name() != lockName {
			err = errors.Join(err, os.RemoveAll(filepath.Join(d.dir, n.Name())))
		}
	}
	return errors.Join(err, os.Remove(filepath.Join(d.dir, lockName))) == nil // last: until then nobody else begins here
}
