package sim

import (
	"bytes"
	"math"
	"slices"

	"github.com/google/uuid"

	"github.com/lockstepmq/lockstep/cluster"
	"github.com/lockstepmq/lockstep/log"
	"github.com/lockstepmq/lockstep/partition"
	"github.com/lockstepmq/lockstep/replication"
	"github.com/lockstepmq/lockstep/wire"
)

// partitionModel is the truth about one partition, over all lives of the node.
type partitionModel struct {
	history
	destination uuid.UUID
	identity    cluster.Partition
	start       wire.Offset // the start that readers have seen
	producers   map[int64]*landing
	// lost says whose records a power cut took, in a mode that may lose some.
	lost map[int64]bool
	// lossy is set when records that are not known to be synced may be gone at
	// the next start.
	lossy   bool
	clients []*client
	tail    follower
	// policies are those that ever were in force.
	policies []partition.Retention
}

// durableMode reports whether receipts may say that a record is synced.
func (p *partitionModel) durableMode() bool {
	r := p.sim.node.replicaOf(p)
	return r == nil || r.synced()
}

// landing is how far one producer has come in one partition.
type landing struct {
	epoch int16
	next  int32
}

// apply takes in one applied entry, before the partition itself sees it, and
// reports whether it is new.
func (p *partitionModel) apply(e replication.Entry, synced bool) (fresh bool) {
	k, fresh := p.learn(e)
	if e.Kind != wire.KindRecords || synced {
		// Only records may be acknowledged before they are synced.
		p.lasts(e.Index)
	}
	if !fresh || e.Kind != wire.KindRecords {
		return fresh
	}
	offset := e.BaseOffset
	for body := e.Body; len(body) > 0; {
		stored, rest, err := wire.NextBodyBatch(body)
		if err != nil {
			p.sim.fail("%s: entry %d: %v", p.name, e.Index, err)
		}
		body = rest
		info, err := wire.VerifyBatch(stored.Batch)
		if err != nil {
			p.sim.fail("%s: entry %d: batch at offset %d: %v", p.name, e.Index, offset, err)
		}
		b := p.sim.batches[info.BaseTimestamp]
		if b == nil || b.client.model != p {
			p.sim.fail("%s: entry %d: nobody has sent the batch at offset %d", p.name, e.Index, offset)
		}
		p.land(e, k, b, stored.Batch, &info, offset)
		offset += wire.Offset(info.RecordCount)
	}
	if offset != k.next() {
		p.sim.fail("%s: entry %d: records end at offset %d, its header says %d", p.name, e.Index, offset, k.next())
	}
	return true
}

// trimmed checks that a policy asks for a trim: that what went was old, or that
// enough is left.
func (p *partitionModel) trimmed(e replication.Entry, before, start wire.Offset) {
	// A time that lies in the future by more than this is not believed: records that
	// are of before a jump of the clock go by when that was noticed.
	believed := e.AppendTimeMs + 3600_000
	entries := p.entries[:e.Index-1]
	left := int64(0) // bytes behind the entry at hand
	excused := make([]bool, len(p.policies))
	for i := range excused {
		excused[i] = true
	}
	newest := int64(math.MinInt64)
	const headers = 16 << 10 // of segments, which count too
	for i := len(entries) - 1; i >= 0; i-- {
		k := &entries[i]
		if k.base < start && k.next() > before && k.timeMs <= believed {
			// Each went because it was old, or because enough was left behind it.
			newest = max(newest, k.timeMs)
			for n, policy := range p.policies {
				old := policy.Age > 0 && k.timeMs <= e.AppendTimeMs-policy.Age.Milliseconds()
				excused[n] = excused[n] && (old || policy.Bytes > 0 && left+headers >= policy.Bytes)
			}
		}
		left += k.bytes
	}
	p.sim.counts[Trimmed]++
	p.sim.trace.add("%s: records from offset %d to %d go", p.name, before, start)
	if !slices.Contains(excused, true) {
		p.sim.fail("%s: records from offset %d to %d go, the newest of %d ms; it is %d ms, and no policy of %+v asks for that",
			p.name, before, start, newest, e.AppendTimeMs, p.policies)
	}
}

// unpatched is where the part of a batch begins that the broker may not change.
const unpatched = 16

// land checks one batch of a new entry against what was sent.
func (p *partitionModel) land(e replication.Entry, k *known, b *batch, stored []byte, info *wire.BatchInfo, offset wire.Offset) {
	switch {
	case !bytes.Equal(stored[unpatched:], b.bytes[unpatched:]):
		p.sim.fail("%s: batch %d at offset %d is not what was sent", p.name, b.number, offset)
	case info.BaseOffset != offset || info.LeaderEpoch != int32(e.Term):
		p.sim.fail("%s: batch %d at offset %d of term %d says offset %d, epoch %d", p.name, b.number, offset, e.Term, info.BaseOffset, info.LeaderEpoch)
	case b.landed:
		p.sim.fail("%s: batch %d is at offset %d and again at offset %d", p.name, b.number, b.offset, offset)
	case b.promise && b.promised != offset:
		p.sim.fail("%s: batch %d is at offset %d; its leader had answered %d", p.name, b.number, offset, b.promised)
	}
	b.landed, b.offset, b.index = true, offset, e.Index
	k.batches = append(k.batches, b)
	if b.idempotent() {
		p.advance(b)
	}
}

// advance checks that a producer's batches land in order, without gaps, and
// never of an older epoch.
func (p *partitionModel) advance(b *batch) {
	l := p.producers[b.producer.ID]
	if l == nil {
		l = &landing{epoch: b.producer.Epoch}
		p.producers[b.producer.ID] = l
	}
	switch {
	case b.producer.Epoch < l.epoch:
		p.sim.fail("%s: batch %d of producer %d landed with epoch %d after epoch %d", p.name, b.number, b.producer.ID, b.producer.Epoch, l.epoch)
	case b.producer.Epoch > l.epoch:
		l.epoch, l.next = b.producer.Epoch, 0
	}
	if b.producer.Sequence != l.next {
		p.sim.fail("%s: batch %d of producer %d landed with sequence %d; the next one is %d", p.name, b.number, b.producer.ID, b.producer.Sequence, l.next)
	}
	l.next += int32(b.count)
}

// check compares the log, just opened, with what must be in it.
func (p *partitionModel) check(l *log.Log) {
	p.reopened(l, p.lossy)
	if p.lossy {
		p.forget(l.LastIndex())
		p.lossy = false
	}
}

// forget drops what a power cut took: entries above last.
func (p *partitionModel) forget(last wire.Index) {
	if last >= p.last() {
		return
	}
	p.sim.trace.add("%s: entries %d to %d are lost", p.name, last+1, p.last())
	for i := int(last); i < len(p.entries); i++ {
		for _, b := range p.entries[i].batches {
			b.landed, b.promise = false, false
			b.gone = true
			p.lost[b.producer.ID] = true
		}
	}
	p.entries = p.entries[:last]
	p.tail.intact = min(p.tail.intact, p.nextOffset())
	clear(p.producers)
	for i := range p.entries {
		for _, b := range p.entries[i].batches {
			if b.idempotent() {
				p.advance(b)
			}
		}
	}
}
