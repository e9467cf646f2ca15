package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/lockstepmq/lockstep/cluster"
	"github.com/lockstepmq/lockstep/log"
	"github.com/lockstepmq/lockstep/wire"
)

// What the broker does about damage on its disks (RULES L8). It does not look at
// the bytes it streams; clients do, and a scrubber reads what nobody else reads. A
// damaged body costs the records in it, which answer CORRUPT. A damaged header
// breaks the chain: the partition stops.

const (
	// scrubBytesPerSecond bounds what the scrubber reads, all partitions together. A
	// pass that takes longer than the scrub interval is followed by the next at once.
	scrubBytesPerSecond = 64 << 20
	// scrubStep is how much it reads between two pauses.
	scrubStep = 1 << 20
	// scrubDelay is when the first pass begins at the latest: a broker that is
	// restarted daily scrubs too.
	scrubDelay = 10 * time.Minute
)

// damageCounters only grow.
type damageCounters struct {
	reported  atomic.Uint64 // frames that clients reported
	dropped   atomic.Uint64 // of these, while another of the partition was examined
	confirmed atomic.Uint64 // of these, damaged on the disk
	whole     atomic.Uint64 // of these, whole on the disk: damaged on their way
	scrubbed  atomic.Uint64 // bytes
	passes    atomic.Uint64 // of the scrubber
	failures  atomic.Uint64 // reads of the scrubber that failed
	asked     atomic.Uint64 // requests to other replicas for damaged frames
	repaired  atomic.Uint64 // damaged frames that were written again from another replica
	reformed  atomic.Uint64 // partitions that may have lost records with the machine
	recovered atomic.Uint64 // partitions that went on with a replica of this node, by an operator's decision
}

// reportDamage is a client's word that a frame arrived damaged. It is not
// answered.
func (s *session) reportDamage(h wire.Header, body []byte) error {
	var m wire.ReportDamage
	if err := m.Parse(body); err != nil {
		return err
	}
	t, err := s.handle(m.Handle)
	if err != nil {
		s.engine.counters.countError(errorBody(err).Code)
		return nil
	}
	if t.replica == nil {
		s.forward(h, t, body, false)
	} else {
		t.replica.ReportDamage(m.Offset)
	}
	return nil
}

// readError is what a client is told about an error of reading its partition. What the
// disk does not read is neither damage nor a reason to stop the partition: it may pass,
// as with a path that is lost, and everything else is served (RELIABILITY F11).
func (s *session) readError(t *handle, err error) wire.ErrorBody {
	body := errorBody(err)
	if body.Code == wire.CodeInternal {
		name := fmt.Sprintf("%s/%d", t.dest.Name, t.key.partition)
		s.engine.bad.log("a partition cannot be read", slog.String("partition", name), slog.Any("err", err))
		var cause syscall.Errno
		if errors.As(err, &cause) {
			body.Detail = fmt.Sprintf("%s: cannot be read there: %v", name, cause)
		}
	}
	var damaged *log.DamagedError
	if errors.As(err, &damaged) {
		d := &damaged.Damage
		body = wire.ErrorBody{Code: wire.CodeCorrupt, Next: d.Next, Detail: fmt.Sprintf(
			"%s/%d: %v; reading can go on at offset %d", t.dest.Name, t.key.partition, damaged, d.Next)}
	}
	if body.Code == wire.CodeOutOfRange && body.Next > 0 {
		body.Detail += fmt.Sprintf("; those before offset %d %s", body.Next, whyGone(t.dest))
	}
	if body.Code == wire.CodeErased {
		body.Detail = fmt.Sprintf("%s/%d: %s", t.dest.Name, t.key.partition, body.Detail)
	}
	return body
}

// whyGone says what has removed the first records of a destination, as far as it is known:
// nobody keeps which of two it was.
func whyGone(d *cluster.Destination) string {
	expires := d.Settings.RetentionTimeMs > 0 || d.Settings.RetentionBytes > 0
	switch {
	case d.Kind == wire.Topic:
		return "have expired"
	case expires:
		return "were consumed by the groups of the queue, which removes them, or have expired"
	}
	return "were consumed by the groups of the queue, which removes them"
}

// ReportDamage implements replica: a worker reads the frame again. One at a time
// is examined, others are dropped: a client that meets damage again reports it
// again.
func (r *partitionReplica) ReportDamage(o wire.Offset) {
	r.damage.reported.Add(1)
	if !r.verifying.CompareAndSwap(false, true) {
		r.damage.dropped.Add(1)
		return
	}
	r.Blocking(func() {
		defer r.verifying.Store(false)
		before := r.damagedFrames()
		d, err := r.records.Verify(o)
		switch {
		case err != nil:
			r.distrust(err)
		case d != nil:
			r.damage.confirmed.Add(1)
		default:
			r.damage.whole.Add(1)
			r.logger.Warn("a client received a damaged frame that is whole on the disk", "offset", o)
		}
		r.foundDamage(before)
	})
}

func (r *partitionReplica) damagedFrames() (n uint64) {
	for _, d := range r.records.Damage() {
		n += uint64(d.LastIndex - d.FirstIndex + 1)
	}
	return n
}

// foundDamage asks for a checkpoint if there is more damage than before: what the
// damaged entries did is known now and would not be at the next start.
func (r *partitionReplica) foundDamage(before uint64) {
	if r.damagedFrames() > before {
		r.ask(requestCheckpoint)
	}
}

// harm is the damage that matters to somebody. A damaged frame whose records are erased in the
// state (RULES L7) is none: nobody is given them any more, on any replica, and those that have
// given their disk back could not mend it. It stays on the log's list, which it leaves with the
// start of the log; a frame that others still have is repaired as any. Any goroutine.
func (r *partitionReplica) harm() []log.Damage {
	all := r.records.Damage()
	settled := r.settled.Load()
	if len(all) == 0 || settled == nil {
		return all
	}
	left := make([]log.Damage, 0, len(all))
	for _, d := range all {
		if (*settled)[d.Base] < d.Next || d.Base == d.Next {
			left = append(left, d)
		}
	}
	return left
}

// noteSettled notes which damaged records are erased in the state. Owner only, while something
// is damaged.
func (r *partitionReplica) noteSettled() {
	settled := map[wire.Offset]wire.Offset{}
	for _, d := range r.records.Damage() {
		if runs, _ := r.state.Erased(d.Base); len(runs) > 0 && runs[0].From == d.Base && runs[0].To >= d.Next {
			settled[d.Base] = d.Next
		}
	}
	r.settled.Store(&settled)
}

// distrust stops the partition if err says that its log is damaged beyond single
// bodies.
func (r *partitionReplica) distrust(err error) {
	if errors.Is(err, log.ErrCorrupt) || errors.Is(err, log.ErrRepair) {
		r.condemned.CompareAndSwap(nil, &err)
		r.schedule()
	} else if !errors.Is(err, log.ErrClosed) && !errors.Is(err, log.ErrOffsetOutOfRange) {
		r.logger.Warn("a frame could not be read again", "err", err)
	}
}

// corruptAdvice adds to the error of a damaged log what an operator can do about it.
// It is for our own log: the detail of a wire error has no room for it.
func corruptAdvice(err error, dir string) error {
	var damage *log.CorruptionError
	if !errors.As(err, &damage) || !strings.HasSuffix(damage.File, ".segment") {
		return err
	}
	return fmt.Errorf("%w; restore that file from a copy, or stop the broker and give up what is damaged: lockstep log skip --corrupt %s", err, dir)
}

// reform begins a new incarnation of a partition whose machine stopped, or whose disk
// failed, while records were not synced. With one replica the longest log is this one: what it
// holds is what there is (RULES L5). Readers that stand above its end learn it from
// the metadata, which is committed before anything is served; should the process
// die in between, the next one begins yet another incarnation.
func (b *broker) reform(r *partitionReplica) error {
	next := r.records.NextOffset()
	result := b.command(cluster.Command{Reform: &cluster.Reform{
		Destination: r.destination, Partition: r.number, Replica: r.replicaID, Next: next,
	}})
	if errors.Is(result.Err, wire.CodeDiskFull) {
		result.Err = fmt.Errorf("%w: %w", log.ErrDiskFull, result.Err) // that passes: it is tried again
	}
	if result.Err != nil {
		return fmt.Errorf("begin a new incarnation after the machine stopped or its disk failed: %w", result.Err)
	}
	b.damage.reformed.Add(1)
	r.logger.Warn("the machine stopped, or its disk failed, while records were not synced: the newest may be lost; readers above the end get DATA_LOST",
		"next_offset", next, "incarnation", result.Destination.Partitions[r.number].Incarnation)
	r.records.SetCertain()
	return nil
}

// lost is why a reader cannot go on at its offset: what it had read there is gone,
// with the machine or with the memory. Nil if it can.
func (t *handle) lost(m *wire.LinkOpenRequest, info *wire.PartitionInfo) error {
	p := &t.dest.Partitions[t.key.partition]
	next, cut := p.LostSince(m.Incarnation)
	if m.Incarnation == 0 && len(p.Cuts) > 0 && t.replica.Leading() {
		// A reader that brings its offset from elsewhere.
		next, cut = info.NextOffset, true
	}
	if !cut || m.Offset <= next {
		return nil
	}
	next = max(next, info.StartOffset)
	if t.dest.Settings.Storage == wire.StorageMemory {
		return &wire.Error{Code: wire.CodePartitionReset, Next: next, Detail: fmt.Sprintf(
			"%s/%d was in memory and began again, empty; reading can go on at offset %d", t.dest.Name, t.key.partition, next)}
	}
	return &wire.Error{Code: wire.CodeDataLost, Next: next, Detail: fmt.Sprintf(
		"%s/%d: the machine stopped, or its disk failed, before offsets from %d on were on its disk; reading can go on at offset %d", t.dest.Name, t.key.partition, next, next)}
}

// keepScrubbing reads all sealed segments once in every scrub interval.
func (b *broker) keepScrubbing(ctx context.Context) {
	if b.cfg.ScrubInterval < 0 {
		return
	}
	for wait := min(b.cfg.ScrubInterval, scrubDelay); pause(ctx, wait); {
		begun := time.Now()
		b.scrub(ctx)
		wait = b.cfg.ScrubInterval - time.Since(begun)
	}
}

// pause waits and reports whether ctx still goes on.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return ctx.Err() == nil
	}
}

// scrub is one pass over the partitions on disk.
func (b *broker) scrub(ctx context.Context) {
	var replicas []*partitionReplica
	b.each(func(r *partitionReplica) {
		if r.storage == wire.StorageDisk {
			replicas = append(replicas, r)
		}
	})
	for _, r := range replicas {
		before := r.damagedFrames()
		pass := r.records.NewScrub()
		for ctx.Err() == nil {
			n, err := int64(0), errReadPanicked
			r.guarded("the scrubber", func() { n, err = pass.Next(scrubStep) })
			b.damage.scrubbed.Add(uint64(n))
			if errors.Is(err, io.EOF) || errors.Is(err, errReadPanicked) {
				break
			}
			if err != nil {
				b.damage.failures.Add(1)
				r.distrust(err)
			}
			pause(ctx, time.Duration(n)*time.Second/scrubBytesPerSecond)
		}
		r.foundDamage(before)
	}
	b.damage.passes.Add(1)
}
