package server

import (
	"context"
	"errors"
	"fmt"

	"github.com/lockstepmq/lockstep/cluster"
	"github.com/lockstepmq/lockstep/log"
	"github.com/lockstepmq/lockstep/vfs"
	"github.com/lockstepmq/lockstep/wire"
)

type settleWaiter struct {
	epoch wire.Index
	then  func()
}

// whenSettled calls then once the replicas are in step with the metadata of epoch.
func (b *broker) whenSettled(epoch wire.Index, then func()) {
	b.mu.Lock()
	if b.settled < epoch {
		b.settling = append(b.settling, settleWaiter{epoch, then})
		b.mu.Unlock()
		return
	}
	b.mu.Unlock()
	then()
}

// metadataChanged is called in the metadata owner's turn.
func (b *broker) metadataChanged(*cluster.View) {
	select {
	case b.dirty <- struct{}{}:
	default:
	}
}

// keepInStep opens, changes and removes replicas as the metadata says.
func (b *broker) keepInStep(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-b.dirty:
		}
		v := b.View()
		b.introduce(v)
		b.reconcile(v)
		b.mu.Lock()
		b.settled = v.Epoch
		var now []settleWaiter
		rest := b.settling[:0]
		for _, w := range b.settling {
			if w.epoch <= v.Epoch {
				now = append(now, w)
			} else {
				rest = append(rest, w)
			}
		}
		b.settling = rest
		b.mu.Unlock()
		for _, w := range now {
			w.then()
		}
		b.mu.RLock()
		viewed := b.viewed
		b.mu.RUnlock()
		if viewed != nil {
			viewed(v)
		}
	}
}

// retryFailed opens partitions again that did not open for want of space or
// descriptors, or because the metadata had no leader to hear of it (reform): that
// passes without anybody's doing. It tells the metadata again what it refused to hear.
func (b *broker) retryFailed() {
	b.mu.Lock()
	retry := b.unsaid.Swap(false)
	for key, err := range b.failed {
		if errors.Is(err, vfs.ErrNoSpace) || errors.Is(err, log.ErrDiskFull) || errors.Is(err, log.ErrResources) || errors.Is(err, wire.CodeUnavailable) {
			delete(b.failed, key)
			retry = true
		}
	}
	b.mu.Unlock()
	if retry {
		b.metadataChanged(nil)
	}
}

// onView names who hears of every metadata change that this node follows, and of
// partitions that have another leader.
func (b *broker) onView(f func(*cluster.View), leadersMoved func()) {
	b.mu.Lock()
	b.viewed, b.leadersMoved = f, leadersMoved
	b.mu.Unlock()
}

// reconcile makes the replicas of this node what v says. Only keepInStep calls it.
// What goes is stopped and removed in the background, by keepTidy.
func (b *broker) reconcile(v *cluster.View) {
	type missing struct {
		destination *cluster.Destination
		partition   *cluster.Partition
		replica     *cluster.Replica
	}
	var open []missing
	var created []*partitionReplica // the metadata does not know yet that they exist
	if me, ok := v.Node(b.identity.NodeID); !ok || me.Store != b.identity.StoreID {
		return // a picture from before this directory became the node's
	}
	wanted := make(map[replicaKey]uint64)
	for _, d := range v.Destinations {
		for i := range d.Partitions {
			p := &d.Partitions[i]
			mine := p.On(b.identity.NodeID)
			if mine == nil || d.Settings.Storage == wire.StorageMemory && len(p.Founders) > 0 && !b.reset.Load() {
				continue // of what was in memory the IDs change first
			}
			key := replicaKey{d.ID, p.Number}
			wanted[key] = mine.ID
			b.mu.RLock()
			r, failed := b.replicas[key], b.failed[key]
			if b.failedID[key] != mine.ID {
				failed = nil // that was another replica
			}
			b.mu.RUnlock()
			switch {
			case r != nil && r.replicaID == mine.ID:
				old, settings := r.intent.Load(), d.Settings
				r.follow(p)
				if *r.settings.Load() != settings || old.SendDisabled != p.SendDisabled {
					r.settings.Store(&settings)
					r.ask(requestSettings)
				}
				r.intend(v.Epoch, d)
				if mine.State == cluster.ReplicaNew {
					created = append(created, r)
				}
				if r.inbox != nil && r.State() == wire.PartitionFenced {
					b.lost(p, d.ID, mine.ID, r.Err())
				}
			case failed == nil:
				open = append(open, missing{d, p, mine})
			case givesUp(failed):
				b.lost(p, d.ID, mine.ID, failed)
			}
		}
	}
	b.retire(wanted, v)
	opened := make([]*partitionReplica, len(open))
	b.inParallel(len(open), func(i int) {
		d, p, mine := open[i].destination, open[i].partition, open[i].replica
		key := replicaKey{d.ID, p.Number}
		if b.awaitsAnother(b.partitionDir(d.Settings.Storage, d.ID, p.Number)) {
			return
		}
		var r *partitionReplica
		err := recovered(b.logger, "opening", func() (err error) {
			r, err = b.openReplica(d, p, mine)
			return err
		})
		b.mu.Lock()
		defer b.mu.Unlock()
		if err != nil {
			b.failed[key], b.failedID[key] = err, mine.ID
			if givesUp(err) {
				b.lost(p, d.ID, mine.ID, err)
			}
			b.logger.Error("partition does not open; it stays down until its cause is mended and the broker restarts",
				"partition", fmt.Sprintf("%s/%d", d.Name, p.Number), "err", corruptAdvice(err, b.partitionDir(d.Settings.Storage, d.ID, p.Number)))
			return
		}
		r.intend(v.Epoch, d)
		b.replicas[key], b.byID[mine.ID] = r, r
		delete(b.failed, key)
		delete(b.failedID, key)
		if mine.State == cluster.ReplicaNew {
			opened[i] = r
		}
	})
	b.confirm(append(created, opened...))
}

// awaitsAnother reports whether a directory is that of a retired replica which is not closed yet: it
// would go on to write there, and into what is the next one's by then. Its end brings the next
// reconcile.
func (b *broker) awaitsAnother(dir string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	_, leaving := b.leaving[dir]
	if leaving {
		b.leaving[dir] = true
	}
	return leaving
}

// givesUp reports whether a replica that did not open never will.
func givesUp(err error) bool {
	return errors.Is(err, log.ErrCorrupt) || errors.Is(err, log.ErrFenced) || errors.Is(err, log.ErrMissing)
}

// confirm says in the metadata that the directories of new replicas exist. What
// cannot be said now is said by a later reconcile, see retryFailed.
func (b *broker) confirm(replicas []*partitionReplica) {
	var said []*partitionReplica
	c := &cluster.Activate{}
	for _, r := range replicas {
		if r != nil && (r.storage == wire.StorageDisk || len(r.intent.Load().Founders) > 0) && !r.confirming.Swap(true) {
			said = append(said, r)
			c.Replicas = append(c.Replicas, r.replicaID)
		}
	}
	if len(said) == 0 {
		return
	}
	b.submit(cluster.Command{Activate: c}, func(result cluster.Result) {
		if result.Err == nil {
			return
		}
		for _, r := range said {
			r.confirming.Store(false)
		}
		b.unsaid.Store(true)
		b.logger.Warn("metadata does not know yet that partitions were created; it is told again", "partitions", len(said), "err", result.Err)
	})
}
