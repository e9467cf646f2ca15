package vfs

import (
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// node is a file or directory of the file systems that keep their names in
// process memory. A name is an entry in its directory's node, so that renaming
// a directory moves what lies below it. The root always exists; "a" and "/a" are
// the same name. Whoever owns the tree guards it with one lock.
type node[F any] struct {
	// entries is nil in a file and never nil in a directory.
	entries map[string]*node[F]
	// file is what the file system hangs on a file or directory.
	file F
}

func (n *node[F]) isDirectory() bool { return n.entries != nil }

// sorted returns the names in a directory in order: nothing that a caller can
// see follows the order of a map.
func (n *node[F]) sorted() []string { return slices.Sorted(maps.Keys(n.entries)) }

// split cuts a path into its elements; the root has none.
func split(name string) []string {
	name = strings.TrimPrefix(path.Clean("/"+name), "/")
	if name == "" {
		return nil
	}
	return strings.Split(name, "/")
}

// walk follows elements from a directory. It fails with ENOENT, or with ENOTDIR
// where a file stands in the way.
func (n *node[F]) walk(elements []string) (*node[F], error) {
	for _, element := range elements {
		if !n.isDirectory() {
			return nil, unix.ENOTDIR
		}
		next, exists := n.entries[element]
		if !exists {
			return nil, unix.ENOENT
		}
		n = next
	}
	return n, nil
}

// find returns the node at name below the root n.
func (n *node[F]) find(name string) (*node[F], error) { return n.walk(split(name)) }

// findFile is find for a name that must be a file.
func (n *node[F]) findFile(name string) (*node[F], error) {
	found, err := n.find(name)
	if err == nil && found.isDirectory() {
		return nil, unix.EISDIR
	}
	return found, err
}

// findDirectory is find for a name that must be a directory.
func (n *node[F]) findDirectory(name string) (*node[F], error) {
	found, err := n.find(name)
	if err == nil && !found.isDirectory() {
		return nil, unix.ENOTDIR
	}
	return found, err
}

// parent returns the directory that holds or would hold name, and the last element.
func (n *node[F]) parent(name string) (directory *node[F], base string, err error) {
	elements := split(name)
	if len(elements) == 0 {
		return nil, "", unix.EBUSY // the root itself
	}
	last := len(elements) - 1
	directory, err = n.walk(elements[:last])
	if err != nil {
		return nil, "", err
	}
	if !directory.isDirectory() {
		return nil, "", unix.ENOTDIR
	}
	return directory, elements[last], nil
}

// vacant is parent for a name that must not exist yet.
func (n *node[F]) vacant(name string) (directory *node[F], base string, err error) {
	directory, base, err = n.parent(name)
	if err == nil && directory.entries[base] != nil {
		err = unix.EEXIST
	}
	return directory, base, err
}

// removable is parent for a name that may be removed: a file, or an empty directory.
func (n *node[F]) removable(name string) (directory *node[F], base string, err error) {
	directory, base, err = n.parent(name)
	switch {
	case err != nil:
	case directory.entries[base] == nil:
		err = unix.ENOENT
	case len(directory.entries[base].entries) > 0:
		err = unix.ENOTEMPTY
	}
	return directory, base, err
}

// removableTree is parent for a name that may be removed with all below it. It is
// false, without an error, if there is none.
func (n *node[F]) removableTree(name string) (directory *node[F], base string, exists bool, err error) {
	directory, base, err = n.parent(name)
	if err == unix.ENOENT {
		return nil, "", false, nil
	}
	return directory, base, err == nil && directory.entries[base] != nil, err
}

// makeAll makes every directory on the way to dir that is missing, through attach.
func (n *node[F]) makeAll(dir string, attach func(at *node[F], name string, made *node[F])) error {
	for _, element := range split(dir) {
		next := n.entries[element]
		if next == nil {
			next = &node[F]{entries: map[string]*node[F]{}}
			attach(n, element, next)
		}
		if !next.isDirectory() {
			return unix.ENOTDIR
		}
		n = next
	}
	return nil
}

// list returns the names in the directory dir, in order.
func (n *node[F]) list(dir string) ([]string, error) {
	found, err := n.findDirectory(dir)
	if err != nil {
		return nil, err
	}
	return found.sorted(), nil
}

// stat describes a file or directory; size asks for the bytes of a file.
func (n *node[F]) stat(name string, size func(F) (int64, error)) (fs.FileInfo, error) {
	found, err := n.find(name)
	if err != nil {
		return nil, err
	}
	info := fileInfo{name: path.Base(path.Clean("/" + name)), directory: found.isDirectory()}
	if !info.directory {
		info.size, err = size(found.file)
	}
	return info, err
}

// lockFile finds the file that stands for a lock, made by create if it is missing.
func (n *node[F]) lockFile(name string, create func(directory *node[F], base string) (F, error)) (file F, err error) {
	directory, base, err := n.parent(name)
	if err != nil {
		return file, err
	}
	found := directory.entries[base]
	switch {
	case found == nil:
		return create(directory, base)
	case found.isDirectory():
		return file, unix.EISDIR
	}
	return found.file, nil
}

// renaming is a checked rename: what moves, from where, to where, and what it
// replaces there, if anything.
type renaming[F any] struct {
	from, to         *node[F]
	oldBase, newBase string
	moved, replaced  *node[F]
}

// prepareRename checks what rename(2) checks.
func (n *node[F]) prepareRename(oldname, newname string) (r renaming[F], err error) {
	if r.from, r.oldBase, err = n.parent(oldname); err != nil {
		return r, err
	}
	if r.to, r.newBase, err = n.parent(newname); err != nil {
		return r, err
	}
	var exists bool
	if r.moved, exists = r.from.entries[r.oldBase]; !exists {
		return r, unix.ENOENT
	}
	if r.moved.isDirectory() && r.moved.contains(r.to) {
		return r, unix.EINVAL // into itself
	}
	r.replaced = r.to.entries[r.newBase]
	switch {
	case r.replaced == nil || r.replaced == r.moved:
	case r.replaced.isDirectory() && !r.moved.isDirectory():
		return r, unix.EISDIR
	case !r.replaced.isDirectory() && r.moved.isDirectory():
		return r, unix.ENOTDIR
	case len(r.replaced.entries) > 0:
		return r, unix.ENOTEMPTY
	}
	return r, nil
}

// contains reports whether other is n or lies below it.
func (n *node[F]) contains(other *node[F]) bool {
	if n == other {
		return true
	}
	for _, child := range n.entries {
		if child.contains(other) {
			return true
		}
	}
	return false
}

// fileInfo is what Stat of these file systems returns. The modification time is
// zero: they read no clock.
type fileInfo struct {
	name      string
	size      int64
	directory bool
}

func (i fileInfo) Name() string       { return i.name }
func (i fileInfo) Size() int64        { return i.size }
func (i fileInfo) ModTime() time.Time { return time.Time{} }
func (i fileInfo) IsDir() bool        { return i.directory }
func (i fileInfo) Sys() any           { return nil }
func (i fileInfo) Mode() fs.FileMode {
	if i.directory {
		return fs.ModeDir | directoryMode
	}
	return fileMode
}
