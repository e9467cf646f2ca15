package server

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"github.com/lockstepmq/lockstep/cluster"
	"github.com/lockstepmq/lockstep/log"
	"github.com/lockstepmq/lockstep/wire"
)

// retire takes replicas that the metadata no longer names out of service. From
// here on they take no records; keepTidy does what takes long.
func (b *broker) retire(wanted map[replicaKey]uint64, v *cluster.View) {
	b.mu.Lock()
	var gone []*partitionReplica
	for key, r := range b.replicas {
		if id, ok := wanted[key]; !ok || id != r.replicaID {
			gone = append(gone, r)
			b.leaving[r.dir] = false
			delete(b.replicas, key)
			delete(b.byID, r.replicaID)
		}
	}
	for key := range b.failedID {
		if _, ok := wanted[key]; !ok {
			delete(b.failed, key)
			delete(b.failedID, key)
		}
	}
	b.gone = append(b.gone, gone...)
	b.goneAt = v
	b.mu.Unlock()
	for _, r := range gone {
		r.askStop(wire.CodeDestinationGone)
	}
	select {
	case b.untidy <- struct{}{}:
	default:
	}
}

// keepTidy closes retired replicas and removes the directories of deleted
// destinations, one delete after the other, a few partitions of it at a time: a
// large one holds up nothing but the deletes behind it.
func (b *broker) keepTidy(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-b.untidy:
		}
		b.mu.Lock()
		gone, v := b.gone, b.goneAt
		b.gone = nil
		b.mu.Unlock()
		b.inParallel(len(gone), func(i int) { b.remove(gone[i]) })
		if err := b.memory.PurgeQuarantine(); err != nil {
			b.logger.Error("the memory of removed partitions stays", "err", err)
		}
		b.bury(v)
		b.buryLeft(v)
	}
}

// buryLeft removes the directories of replicas that have left their partitions, which
// the partition's leader and the metadata have decided, and says so.
func (b *broker) buryLeft(v *cluster.View) {
	c := &cluster.Bury{Node: b.identity.NodeID}
	for _, d := range v.Destinations {
		for i := range d.Partitions {
			p := &d.Partitions[i]
			for _, left := range p.Replicas {
				if left.Node != b.identity.NodeID || left.State != cluster.ReplicaLeft {
					continue
				}
				if err := b.removeReplica(d, p, left.ID); err != nil {
					b.logger.Error("the directory of a replica that left stays until the next start", "partition", fmt.Sprintf("%s/%d", d.Name, p.Number), "err", err)
					continue
				}
				c.Replicas = append(c.Replicas, left.ID)
			}
		}
	}
	if len(c.Replicas) == 0 {
		return
	}
	b.submit(cluster.Command{Bury: c}, func(result cluster.Result) {
		if result.Err != nil {
			b.unsaid.Store(true)
			b.logger.Warn("metadata does not know yet that replicas are removed; it is told again", "replicas", len(c.Replicas), "err", result.Err)
		}
	})
}

// removeReplica removes the directory of one replica, if it is there and its own.
func (b *broker) removeReplica(d *cluster.Destination, p *cluster.Partition, replica uint64) error {
	if d.Settings.Storage == wire.StorageMemory {
		return nil // it went with the replica
	}
	dir := b.partitionDir(wire.StorageDisk, d.ID, p.Number)
	owner, err := log.ReplicaIn(b.cfg.fs, dir)
	if errors.Is(err, fs.ErrNotExist) || err == nil && owner != replica {
		return nil
	}
	if err != nil {
		b.logger.Warn("whose directory it is cannot be read; the metadata says that it is to go", "dir", dir, "err", err)
		if p.On(b.identity.NodeID) != nil {
			return nil // another replica lives there, or will
		}
	}
	if err := b.disk.Quarantine(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return b.disk.PurgeQuarantine()
}

// remove closes a retired replica. Its directory stays, bury removes it; memory has
// no directory that anybody would find again, so it is given back here.
func (b *broker) remove(r *partitionReplica) {
	if err := r.finish(); err != nil {
		b.logger.Warn("closing a removed partition", "partition", r.name, "err", err)
	}
	if r.storage == wire.StorageMemory {
		if err := b.memory.Quarantine(r.dir); err != nil {
			b.logger.Error("a removed partition's memory stays", "partition", r.name, "err", err)
		}
	}
	b.mu.Lock()
	wanted := b.leaving[r.dir]
	delete(b.leaving, r.dir)
	b.mu.Unlock()
	if wanted {
		b.metadataChanged(nil)
	}
	b.stopped()
}

// bury removes the directories of destinations that were deleted by a committed
// command and says so in the metadata. Until then they are remembered there, so
// that a crash in between leaves nothing behind. The replicas that v does not name
// are closed.
func (b *broker) bury(v *cluster.View) {
	for _, d := range v.Deleted {
		if !slices.Contains(d.Nodes, b.identity.NodeID) {
			continue
		}
		if err := b.removeDirectories(d); err != nil {
			b.logger.Error("directories of a removed destination stay until the next start", "destination", d.ID, "err", err)
			continue
		}
		b.submit(cluster.Command{Bury: &cluster.Bury{ID: d.ID, Node: b.identity.NodeID}}, func(result cluster.Result) {
			if result.Err != nil {
				b.unsaid.Store(true)
				b.logger.Warn("metadata does not know yet that directories are removed; it is told again", "destination", d.ID, "err", result.Err)
			}
		})
	}
}

// removeDirectories moves them into quarantine first: what is half removed is
// never taken for a partition.
func (b *broker) removeDirectories(d *cluster.Deleted) error {
	errs := make([]error, d.Partitions)
	b.inParallel(len(errs), func(i int) {
		dir := b.partitionDir(wire.StorageDisk, d.ID, uint32(i))
		_, err := b.cfg.fs.Stat(dir)
		if err == nil {
			err = b.disk.Quarantine(dir)
		}
		if !errors.Is(err, fs.ErrNotExist) {
			errs[i] = err
		}
	})
	return errors.Join(append(errs, b.disk.PurgeQuarantine())...)
}
