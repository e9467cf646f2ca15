package server

import (
	"context"
	"fmt"
	"sort"
	"sync/atomic"
	"time"

	"github.com/lockstepmq/lockstep/wire"
)

// A disk that has stalled answers late or never, and an error only in the end.
// Nothing can be done about that but to keep it where it is: storage jobs and reads
// of one partition have a share of the workers (line.go), destinations in memory
// have workers of their own, and once a stall is known,
//
//   - event loops take no turn of a partition on disk any more, for the write in it
//     might wait: what the kernel usually takes at once, it does not take of a file
//     whose sync it has begun and cannot end;
//   - the partition concerned proposes nothing, so that what producers send stays in
//     its mailbox, which is bounded, and not in memory that waits for a write;
//   - people are told which partition it is, and since when.

const (
	// stallAfter is how long a storage job, a read or a turn may take until the disk
	// counts as stalled. File systems wait for their own journal after five seconds.
	stallAfter = time.Second
	// stallPeriod lies between two looks.
	stallPeriod = 250 * time.Millisecond
	// stallLines is how many partitions one look names in the log.
	stallLines = 5
)

// stall watches one partition's disk.
type stall struct {
	lines [2]*line
	turn  *atomic.Int64 // when the turn at work began, as monotonic has it; 0: none
	since atomic.Int64  // the stall, as monotonic has it; 0: none
}

// look reports whether the disk has begun to stall or has gone on since the last
// look. One goroutine at a time.
func (s *stall) look(now int64, after time.Duration) (changed bool) {
	oldest := s.turn.Load()
	for _, l := range s.lines {
		if l == nil {
			continue
		}
		if began := l.oldest.Load(); began != 0 && (oldest == 0 || began < oldest) {
			oldest = began
		}
	}
	if oldest != 0 && now-oldest < int64(after) {
		oldest = 0
	}
	return (s.since.Swap(oldest) == 0) != (oldest == 0)
}

// stalled reports whether the disk has stalled. Any goroutine.
func (s *stall) stalled() bool { return s.since.Load() != 0 }

// problem describes the stall for people, or is empty. Any goroutine.
func (s *stall) problem() string {
	since := s.since.Load()
	if since == 0 {
		return ""
	}
	lasts := time.Duration(monotonic() - since)
	return fmt.Sprintf("its disk has not answered since %s (%s)", time.Now().Add(-lasts).UTC().Format(time.RFC3339), lasts.Round(time.Second))
}

// keepWatch looks for stalls. It must not wait for a disk itself.
func (b *broker) keepWatch(ctx context.Context) {
	ticker := time.NewTicker(stallPeriod)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			b.watch()
		}
	}
}

// watch is one look at all partitions on disk, the metadata and the journal.
func (b *broker) watch() {
	now := monotonic()
	var begun []*partitionReplica
	disk := false
	for name, s := range b.sharedStalls() {
		if s.look(now, b.cfg.stallAfter) {
			if s.stalled() {
				b.logger.Warn("the disk has stalled; what needs it waits", "what", name, "problem", s.problem())
			} else {
				b.logger.Info("the disk goes on", "what", name)
			}
		}
		disk = disk || s.stalled()
	}
	b.each(func(r *partitionReplica) {
		if r.storage != wire.StorageDisk {
			return // a turn that takes this long waits for a processor
		}
		if r.stall.look(now, b.cfg.stallAfter) {
			if r.stall.stalled() {
				begun = append(begun, r)
			} else {
				r.logger.Info("the disk of a partition goes on")
				r.schedule() // for what was held back
			}
		}
		disk = disk || r.stall.stalled()
	})
	b.diskStalled.Store(disk)
	for i, r := range begun {
		if i == stallLines {
			b.logger.Warn("the disk of more partitions has stalled", "partitions", len(begun)-stallLines)
			break
		}
		r.logger.Warn("the disk of a partition has stalled; it proposes nothing until the disk goes on, other partitions are served", "problem", r.stall.problem())
	}
}

// sharedStalls are the stalls of what partitions share, by what it is.
func (b *broker) sharedStalls() map[string]*stall {
	return map[string]*stall{"metadata": &b.meta.stall, "journal": &b.journalStall}
}

// stalledPartition is a stall for metrics.
type stalledPartition struct {
	name  string
	lasts time.Duration
}

// stalls lists what waits for a disk that has stalled, the longest first.
func (b *broker) stalls() (list []stalledPartition) {
	now := monotonic()
	add := func(name string, s *stall) {
		if since := s.since.Load(); since != 0 {
			list = append(list, stalledPartition{name, time.Duration(now - since)})
		}
	}
	for name, s := range b.sharedStalls() {
		add(name, s)
	}
	b.each(func(r *partitionReplica) { add(r.name, &r.stall) })
	sort.Slice(list, func(i, j int) bool { return list[i].lasts > list[j].lasts })
	return list
}
