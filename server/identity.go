package server

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path"

	"github.com/google/uuid"

	"github.com/lockstepmq/lockstep/vfs"
)

// FormatVersion is the version of the data directory that this build writes. A
// directory of a newer version is refused, not touched.
const FormatVersion = 1

// ErrNewerFormat is returned for a data directory that a newer build wrote.
var ErrNewerFormat = errors.New("data directory was written by a newer version")

// identity is DATA/node.json: who this node is. It is written once.
type identity struct {
	FormatVersion int       `json:"format_version"`
	ClusterID     uuid.UUID `json:"cluster_id"`
	NodeID        uint32    `json:"node_id"`
	StoreID       uuid.UUID `json:"store_id"`
}

// loadIdentity reads DATA/node.json or, in a directory that never held data,
// draws a new identity and makes it durable.
func loadIdentity(files vfs.FS, dir string) (identity, error) {
	id, err := readIdentity(files, dir)
	if errors.Is(err, fs.ErrNotExist) {
		return createIdentity(files, dir, path.Join(dir, "node.json"))
	}
	if errors.Is(err, ErrNewerFormat) {
		err = fmt.Errorf("%w; start the newer version, or choose another --data", err)
	}
	return id, err
}

// DataFormat returns the format version of a data directory, 0 if no broker has
// used it yet. It changes nothing and may run beside a broker. It returns
// ErrNewerFormat for a directory that this build does not read.
func DataFormat(dir string) (int, error) {
	id, err := readIdentity(vfs.OS(), dir)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	return id.FormatVersion, err
}

// readIdentity returns fs.ErrNotExist if there is none.
func readIdentity(files vfs.FS, dir string) (identity, error) {
	name := path.Join(dir, "node.json")
	f, err := files.OpenReadOnly(name)
	if err != nil {
		return identity{}, err
	}
	defer f.Close()
	size, err := f.Size()
	if err != nil {
		return identity{}, err
	}
	if size > 64<<10 {
		return identity{}, fmt.Errorf("%s: %d bytes is no identity", name, size)
	}
	b := make([]byte, size)
	if _, err := f.ReadAt(b, 0); err != nil {
		return identity{}, err
	}
	id, err := parseIdentity(b)
	switch {
	case errors.Is(err, ErrNewerFormat):
		err = fmt.Errorf("%s: %w", name, err)
	case err != nil:
		err = fmt.Errorf("%s: %w; restore it from a copy, the other files are intact", name, err)
	}
	return id, err
}

// parseIdentity reads the content of node.json. The format version comes first:
// what else a newer build writes may have other types.
func parseIdentity(b []byte) (identity, error) {
	var envelope struct {
		FormatVersion int `json:"format_version"`
	}
	if err := json.Unmarshal(b, &envelope); err != nil {
		return identity{}, err
	}
	if envelope.FormatVersion > FormatVersion {
		return identity{}, fmt.Errorf("%w: format %d, this build reads up to %d", ErrNewerFormat, envelope.FormatVersion, FormatVersion)
	}
	var id identity
	if err := json.Unmarshal(b, &id); err != nil {
		return identity{}, err
	}
	if id.FormatVersion < 1 || id.ClusterID == uuid.Nil || id.NodeID == 0 || id.StoreID == uuid.Nil {
		return identity{}, errors.New("it names no format version, cluster, node or store")
	}
	return id, nil
}

func createIdentity(files vfs.FS, dir, name string) (identity, error) {
	id := identity{FormatVersion: FormatVersion, ClusterID: uuid.New(), NodeID: 1, StoreID: uuid.New()}
	if names, err := files.List(path.Join(dir, "meta")); err == nil && len(names) > 0 {
		return id, fmt.Errorf("%s is missing although %s holds metadata; restore it from a copy", name, path.Join(dir, "meta"))
	}
	b, err := json.MarshalIndent(&id, "", "  ")
	if err != nil {
		return id, err
	}
	temp := name + ".new"
	if err := files.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return id, err
	}
	f, err := files.Create(temp)
	if err != nil {
		return id, err
	}
	if _, err := f.WriteAt(append(b, '\n'), 0); err != nil {
		return id, errors.Join(err, f.Close())
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return id, err
	}
	if err := files.Rename(temp, name); err != nil {
		return id, err
	}
	return id, files.SyncDir(dir)
}
