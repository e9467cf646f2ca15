package sim

import (
	"bytes"
	"hash/fnv"

	"github.com/lockstepmq/lockstep/replication"
	"github.com/lockstepmq/lockstep/wire"
)

// truth is what is known about a cell, over all replicas and all their lives.
// An entry is learned when the first replica applies it; from then on every replica
// that has an entry at this index below its commit has this one.
type truth struct {
	fleet     *fleet
	cell      *cell
	entries   []known
	leaders   map[wire.Term]uint64 // who has led a term
	producers map[int64]*landing
	// seen is the last entry that somebody outside knows to be committed.
	seen wire.Index
	// dirty is an entry that a DirtyRead saw.
	dirty     wire.Index
	dirtyTerm wire.Term
}

func (t *truth) last() wire.Index { return wire.Index(len(t.entries)) }

func (t *truth) at(i wire.Index) *known {
	if i == 0 || i > t.last() {
		return nil
	}
	return &t.entries[i-1]
}

// leads takes notice that a replica acts as the leader of a term.
func (t *truth) leads(id uint64, term wire.Term) {
	if other, known := t.leaders[term]; known && other != id {
		t.fleet.fail("replicas %d and %d both lead term %d", other, id, term)
	} else if !known {
		t.leaders[term] = id
		t.fleet.counts[FleetElected]++
		t.fleet.trace.add("replica %d leads term %d", id, term)
	}
}

// apply takes in an entry that a replica applies, before its partition sees it.
func (t *truth) apply(id uint64, e replication.Entry) {
	if e.Kind == wire.KindConfiguration {
		e.Kind = wire.KindNoOp // a state machine is shown nothing of them
	}
	now := known{
		kind: e.Kind, term: e.Term, base: e.BaseOffset, count: e.RecordCount,
		timeMs: e.AppendTimeMs, body: wire.Checksum(e.Body), bytes: wire.FrameSize(len(e.Body)),
	}
	if old := t.at(e.Index); old != nil {
		if !old.same(&now) {
			t.fleet.fail("entry %d of replica %d is %s; it is committed as %s", e.Index, id, &now, old)
		}
		return
	}
	previous := known{}
	if k := t.at(t.last()); k != nil {
		previous = *k
	}
	switch {
	case e.Index != t.last()+1:
		t.fleet.fail("replica %d applies entry %d; the last committed one is %d", id, e.Index, t.last())
	case now.term < previous.term:
		t.fleet.fail("entry %d has term %d after term %d", e.Index, now.term, previous.term)
	case now.base != previous.next():
		t.fleet.fail("entry %d begins at offset %d; the next one is %d", e.Index, now.base, previous.next())
	}
	if e.Index == t.dirty && e.Term != t.dirtyTerm {
		t.fleet.fail("entry %d of term %d was read; committed is %s", e.Index, t.dirtyTerm, &now)
	}
	t.entries = append(t.entries, now)
	t.fleet.counts[FleetCommitted]++
	t.held(e.Index)
	if e.Kind == wire.KindRecords {
		t.records(e)
	}
}

func (k *known) same(other *known) bool {
	return k.kind == other.kind && k.term == other.term && k.base == other.base && k.count == other.count &&
		k.timeMs == other.timeMs && k.body == other.body
}

// held checks that a majority has promised an entry that was just committed: it is
// durable there, and what each has promised is looked for when it starts again.
func (t *truth) held(i wire.Index) {
	n := 0
	for _, m := range t.cell.members {
		if m.holds(i, t.at(i).term) {
			n++
		}
	}
	if n < t.cell.quorum() {
		t.fleet.fail("entry %d is committed, and durable on %d of %d replicas only", i, n, len(t.cell.members))
	}
}

// records checks the batches of an entry against what was sent.
func (t *truth) records(e replication.Entry) {
	f, k, offset := t.fleet, t.at(e.Index), e.BaseOffset
	for body := e.Body; len(body) > 0; {
		stored, rest, err := wire.NextBodyBatch(body)
		if err != nil {
			f.fail("entry %d: %v", e.Index, err)
		}
		body = rest
		info, err := wire.VerifyBatch(stored.Batch)
		if err != nil {
			f.fail("entry %d: batch at offset %d: %v", e.Index, offset, err)
		}
		b := f.batches[info.BaseTimestamp]
		switch {
		case b == nil:
			f.fail("entry %d: nobody has sent the batch at offset %d", e.Index, offset)
		case !bytes.Equal(stored.Batch[unpatched:], b.bytes[unpatched:]):
			f.fail("batch %d at offset %d is not what was sent", b.number, offset)
		case info.BaseOffset != offset || info.LeaderEpoch != int32(e.Term):
			f.fail("batch %d at offset %d of term %d says offset %d, epoch %d", b.number, offset, e.Term, info.BaseOffset, info.LeaderEpoch)
		case b.landed:
			f.fail("batch %d is at offset %d and again at offset %d", b.number, b.offset, offset)
		}
		b.landed, b.offset, b.index = true, offset, e.Index
		l := t.producers[b.producer.ID]
		if l == nil {
			l = &landing{}
			t.producers[b.producer.ID] = l
		}
		switch epoch := b.producer.Epoch; {
		case epoch < l.epoch:
			f.fail("batch %d of producer %d landed in %s with epoch %d behind epoch %d", b.number, b.producer.ID, t.cell, epoch, l.epoch)
		case epoch > l.epoch:
			l.epoch, l.next = epoch, 0
		}
		if b.ends != nil && b.producer.Epoch < b.ends.ended[t.cell] {
			f.fail("batch %d of producer %d landed in %s with epoch %d; the opening of epoch %d was answered before", b.number, b.producer.ID, t.cell, b.producer.Epoch, b.ends.ended[t.cell])
		}
		if b.producer.Sequence != l.next {
			f.fail("batch %d of producer %d landed with sequence %d; the next one is %d", b.number, b.producer.ID, b.producer.Sequence, l.next)
		}
		l.next += int32(b.count)
		offset += wire.Offset(info.RecordCount)
	}
	if offset != k.next() {
		f.fail("entry %d: records end at offset %d, its header says %d", e.Index, offset, k.next())
	}
}

// state compares the state after an entry with that of the replica that came there
// first.
func (t *truth) state(id uint64, i wire.Index, saved []byte) {
	sum := fnv.New64a()
	_, _ = sum.Write(saved)
	switch k := t.at(i); {
	case k == nil:
		t.fleet.fail("replica %d has a state as of entry %d; the last committed one is %d", id, i, t.last())
	case k.state == 0:
		k.state = sum.Sum64()
	case k.state != sum.Sum64():
		t.fleet.fail("the state of replica %d after entry %d is not that of another replica:\n%q", id, i, saved)
	}
}
