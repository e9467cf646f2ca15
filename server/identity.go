package server

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path"

	"github.com/google/uuid"

	"github.com/lockstepmq/lockstep/cluster"
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
	// Of a node that has joined: its replica of group 0, and the members that there
	// were, who know the others.
	MetaReplica uint64   `json:"meta_replica,omitempty"`
	Members     []member `json:"members,omitempty"`
}

// member is another node, as the answer to JOIN named it.
type member struct {
	Node        uint32    `json:"node"`
	Store       uuid.UUID `json:"store"`
	MetaReplica uint64    `json:"meta_replica"`
	PeerAddress string    `json:"peer_address"`
}

// metaID is the node's replica of group 0.
func (id *identity) metaID() uint64 { return cmp.Or(id.MetaReplica, cluster.FounderMetaID) }

// loadIdentity reads DATA/node.json or, in a directory that never held data, gets a
// new identity and makes it durable: as the founder of a cluster, or from the members
// of the one that it joins.
func loadIdentity(cfg *Config) (identity, error) {
	id, err := readIdentity(cfg.fs, cfg.DataDir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return createIdentity(cfg)
	case errors.Is(err, ErrNewerFormat):
		err = fmt.Errorf("%w; start the newer version, or choose another --data", err)
	case err == nil && cfg.NodeID != 0 && cfg.NodeID != id.NodeID:
		err = fmt.Errorf("%s belongs to node %d, not %d; start it with --node-id %d, or choose another --data",
			path.Join(cfg.DataDir, "node.json"), id.NodeID, cfg.NodeID, id.NodeID)
	case err == nil:
		err = joinsItsOwn(cfg, &id)
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

// DataIdentity returns the cluster and the node that a data directory belongs to, and
// fs.ErrNotExist if no broker has used it yet. It changes nothing and may run beside a
// broker.
func DataIdentity(dir string) (clusterID string, node uint32, err error) {
	id, err := readIdentity(vfs.OS(), dir)
	return id.ClusterID.String(), id.NodeID, err
}

// readIdentity returns fs.ErrNotExist if there is none.
func readIdentity(files vfs.FS, dir string) (identity, error) {
	name := path.Join(dir, "node.json")
	b, err := readSmall(files, name)
	if err != nil {
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

func createIdentity(cfg *Config) (identity, error) {
	name, meta := path.Join(cfg.DataDir, "node.json"), path.Join(cfg.DataDir, "meta")
	if names, err := cfg.fs.List(meta); err == nil && len(names) > 0 {
		return identity{}, fmt.Errorf("%s is missing although %s holds metadata; restore it from a copy", name, meta)
	}
	if len(cfg.Join) == 0 {
		id := identity{FormatVersion: FormatVersion, ClusterID: uuid.New(), NodeID: cmp.Or(cfg.NodeID, 1), StoreID: uuid.New()}
		return id, writeDurably(cfg.fs, name, &id)
	}
	store, err := joiningStore(cfg)
	if err != nil {
		return identity{}, err
	}
	id, err := askToJoin(cfg, store)
	if err != nil {
		return id, err
	}
	if err := writeDurably(cfg.fs, name, &id); err != nil {
		return id, err
	}
	return id, cfg.fs.Remove(path.Join(cfg.DataDir, joiningName))
}

// joiningName is where a node that asks to join keeps the UUID of its data directory:
// when it asks again after a crash, the cluster knows it by that.
const joiningName = "joining.json"

func joiningStore(cfg *Config) (uuid.UUID, error) {
	name := path.Join(cfg.DataDir, joiningName)
	var saved struct {
		StoreID uuid.UUID `json:"store_id"`
	}
	b, err := readSmall(cfg.fs, name)
	if err == nil && json.Unmarshal(b, &saved) == nil && saved.StoreID != uuid.Nil {
		return saved.StoreID, nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return uuid.Nil, err
	}
	saved.StoreID = uuid.New()
	return saved.StoreID, writeDurably(cfg.fs, name, &saved)
}

// writeDurably replaces a file by the JSON of v.
func writeDurably(files vfs.FS, name string, v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	temp := name + ".new"
	if err := files.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := files.Create(temp)
	if err != nil {
		return err
	}
	if _, err := f.WriteAt(append(b, '\n'), 0); err != nil {
		return errors.Join(err, f.Close())
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := files.Rename(temp, name); err != nil {
		return err
	}
	return files.SyncDir(path.Dir(name))
}

// readSmall reads a file of at most maxIdentityBytes.
func readSmall(files vfs.FS, name string) ([]byte, error) {
	f, err := files.OpenReadOnly(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	size, err := f.Size()
	if err != nil {
		return nil, err
	}
	if size > maxIdentityBytes {
		return nil, fmt.Errorf("%s: %d bytes is no identity", name, size)
	}
	b := make([]byte, size)
	_, err = f.ReadAt(b, 0)
	return b, err
}

const maxIdentityBytes = 64 << 10
