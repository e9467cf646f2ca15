package server

import (
	"context"
	"time"

	"github.com/lockstepmq/lockstep/replication"
	"github.com/lockstepmq/lockstep/wire"
)

// Periods of the broker's own work.
const (
	tickPeriod      = 100 * time.Millisecond
	spacePeriod     = 500 * time.Millisecond // between looks at the free space
	syncPeriod      = time.Second            // of destinations with sync=interval
	retentionPeriod = 10 * time.Second
	retryPeriod     = 2 * time.Second  // of partitions that lacked space or descriptors to open
	stopPatience    = 15 * time.Second // of a shutdown in which nothing stops any more
)

// idleTicks is how many ticks after its last append a partition counts as idle, and
// its durable mark is written: after 100 to 200 ms. Ticks are counted, for the
// broker's clock may be set.
const idleTicks = 2

// standstill is from how long a gap between two ticks on others may have elected
// leaders meanwhile: their election timeout.
const standstill = silentTicks * tickPeriod

// resumed tells all groups that this process stood still (RULES R8): who leads asks the
// others whether that is so still before it answers. Ticks do not say it, for those of
// a pause are not made up for. Consumers that were not heard meanwhile may have spoken all
// the same.
func (b *broker) resumed(gap time.Duration) {
	e := replication.PeerEvent{Kind: replication.PeerResumed}
	if b.network != nil {
		b.logger.Warn("this process has stood still; it asks who leads", "for", gap)
		b.meta.inbox.PutEvent(e)
		b.meta.schedule()
	}
	b.each(func(r *partitionReplica) {
		if b.network != nil {
			r.inbox.PutEvent(e)
		}
		r.part.Groups().Resumed()
		r.schedule()
	})
}

// stoodStill reports whether this process has stood still since the last tick, once for
// each time: an owner that wakes may take a turn before keepTime does. seen is the
// owner's, of the tick before the last such gap.
func (b *broker) stoodStill(seen *int64) bool {
	last := b.ticked.Load()
	if last == 0 || last == *seen || time.Duration(monotonic()-last) <= standstill {
		return false
	}
	*seen = last
	return true
}

// keepTime turns the passing of time into requests to owners. An idle partition
// costs it three atomic loads a tick.
func (b *broker) keepTime(ctx context.Context) {
	ticker := time.NewTicker(tickPeriod)
	defer ticker.Stop()
	fine := time.NewTimer(time.Hour)
	defer fine.Stop()
	var sinceSpace, sinceSync, sinceRetention, sinceRetry time.Duration
	storeFailed := false
	for last := monotonic(); ; {
		select {
		case <-ctx.Done():
			return
		case <-b.alarm.closer:
			if pause := b.alarm.pause(monotonic()); pause > 0 {
				fine.Reset(pause)
			}
			continue
		case <-fine.C:
			b.ring(monotonic())
			continue
		case <-ticker.C:
		}
		now := monotonic()
		b.ticked.Store(now)
		if gap := time.Duration(now - last); gap > standstill {
			b.resumed(gap)
		}
		last = now
		sinceSpace += tickPeriod
		sinceSync += tickPeriod
		sinceRetention += tickPeriod
		if sinceSpace >= spacePeriod {
			sinceSpace = 0
			if err := b.disk.RefreshSpace(); err != nil {
				b.logger.Warn("free space cannot be read", "err", err)
			}
			b.wakeStalled()
			b.makeWay()
		}
		if err := b.disk.Err(); err != nil && !storeFailed {
			storeFailed = true
			b.logger.Error("the hard states cannot be written; every partition on this disk and the metadata are fenced until its cause is mended and the broker restarts",
				"err", err)
			b.meta.schedule()
			b.each(func(r *partitionReplica) { r.schedule() })
		}
		var every uint32
		if sinceSync >= syncPeriod {
			sinceSync = 0
			every |= requestSync
		}
		if sinceRetry += tickPeriod; sinceRetry >= retryPeriod {
			sinceRetry = 0
			b.retryFailed()
		}
		if sinceRetention >= b.cfg.RetentionPeriod {
			sinceRetention = 0
			every |= requestRetain
		}
		b.meta.tickMark()
		if b.meta.tick() {
			b.meta.schedule()
		}
		var moved []*partitionReplica
		b.each(func(r *partitionReplica) {
			if r.attended(now) {
				moved = append(moved, r)
			}
			due := r.part.Groups().Deadline()
			if r.tick() || due > 0 && int64(due) <= now {
				r.schedule()
			}
			var ask uint32
			if n := r.restless.Load(); n > 0 && r.restless.CompareAndSwap(n, n-1) && n == 1 {
				ask |= requestIdleMark
			}
			if every&requestSync != 0 && len(r.records.Damage()) > 0 {
				b.repair(r)
				ask |= requestDamage
			}
			if every&requestSync != 0 && r.settings.Load().Sync == wire.SyncInterval {
				ask |= requestSync
			}
			if s := r.settings.Load(); every&requestRetain != 0 {
				// Groups move the start of a queue without being asked; what lies before it goes
				// when checkpoints cover it, which an idle log does not write by itself.
				if start := r.start.Load(); s.RetentionTimeMs > 0 || s.RetentionBytes > 0 || start != r.retained || r.part.Queue() && r.moved.Swap(false) {
					r.retained = start
					ask |= requestRetain
				}
			}
			if ask != 0 {
				r.ask(ask)
			}
		})
		if b.network != nil {
			b.watchNodes()
			b.announce()
			b.network.Tick()
			b.catchUp.tick()
		}
		b.attendance(moved)
	}
}

// desertedAfter is for how long a partition of a queue is without a consumer until producers
// are told: consumers that find a new leader take less.
const desertedAfter = 500 * time.Millisecond

// attended looks whether somebody consumes from the partition, and reports whether that is
// news. Once a tick.
func (r *partitionReplica) attended(now int64) (news bool) {
	since := int64(r.part.Groups().Deserted())
	is := since > 0 && now-since >= int64(desertedAfter)
	return r.unattended.Load() != is && r.unattended.CompareAndSwap(!is, is)
}

// attendance tells other nodes and clients that partitions have consumers that had none, or
// the other way round.
func (b *broker) attendance(moved []*partitionReplica) {
	switch {
	case len(moved) == 0:
	case b.network == nil:
		b.leadersChanged()
	default:
		b.say(moved)
	}
}

// wakeStalled lets those try again that lacked space or descriptors: nobody else
// does if no producer is there.
func (b *broker) wakeStalled() {
	if b.meta.stalled.Load() {
		b.meta.schedule()
	}
	b.each(func(r *partitionReplica) {
		if r.stalled.Load() {
			r.schedule()
		}
	})
}
