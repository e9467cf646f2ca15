package server

import (
	"encoding/json"
	"fmt"
	"path"

	"github.com/lockstepmq/lockstep/cluster"
	"github.com/lockstepmq/lockstep/log"
	"github.com/lockstepmq/lockstep/vfs"
	"github.com/lockstepmq/lockstep/wire"
)

// RetainedBytes is how far retention lets the partitions in a data directory grow, in
// bytes, as its metadata says, without what has no limit by size. The directory may be
// a running broker's. It is 0 where no broker has been.
func RetainedBytes(dir string) (int64, error) {
	files := vfs.OS()
	node, err := readIdentity(files, dir)
	if err != nil {
		return 0, err
	}
	state := cluster.NewState()
	err = log.Replay(files, path.Join(dir, "meta"), state.Restore, func(f log.InspectedFrame) error {
		if f.Header.Kind != wire.KindControl {
			return nil
		}
		var c cluster.Command
		if err := json.Unmarshal(f.Body, &c); err != nil {
			return fmt.Errorf("metadata entry %d: %w", f.Header.Index, err)
		}
		state.Apply(f.Header.Index, &c)
		return nil
	})
	if err != nil {
		return 0, err
	}
	var total int64
	for _, d := range state.Destinations {
		if d.Settings.RetentionBytes <= 0 || d.Settings.Storage != wire.StorageDisk {
			continue
		}
		for _, p := range d.Partitions {
			for _, r := range p.Replicas {
				if r.Node == node.NodeID {
					total = min(total+d.Settings.RetentionBytes, 1<<62)
				}
			}
		}
	}
	return total, nil
}
