package sim

import (
	"errors"
	"fmt"
	"slices"

	"github.com/lockstepmq/lockstep/partition"
	"github.com/lockstepmq/lockstep/wire"
)

// producer is one idempotent client. It sends to whoever leads, as far as it knows
// the newest term; what is unanswered when that ends is sent again to the next
// leader, in order, under the same sequences.
type producer struct {
	fleet    *fleet
	cell     *cell
	id       int64
	epoch    int16
	holder   *holder // of a name, nil: it has none
	sequence int32   // of the next new batch

	queue    []*batch // unanswered, oldest first
	at       *member  // whom it sends to, nil: nobody
	session  int      // counts the changes of at
	term     wire.Term
	flying   int  // attempts without an answer in this session
	draining bool // something failed: nothing new before the queue was sent again
	idle     int  // times that it has waited for an answer
}

// sending is one attempt to have a batch appended.
type sending struct {
	client  *producer
	batch   *batch
	session int
	first   bool // all before it were answered when it was sent
	landed  bool // it was committed before
	late    bool // the leader's node knew that its epoch was over
}

func (c *producer) String() string {
	if c.holder != nil {
		return fmt.Sprintf("%s with epoch %d in %s", c.holder, c.epoch, c.cell)
	}
	return fmt.Sprintf("producer %d", c.id)
}

// leave ends the session: what is on its way is uncertain.
func (c *producer) leave() {
	c.at, c.flying, c.idle = nil, 0, 0
	c.session++
	c.draining = true
}

// patience is how often a client looks for an answer before it looks for another leader.
const patience = 25

// act does the client's next thing.
func (c *producer) act() {
	f := c.fleet
	if c.at != nil {
		if term, leading := c.at.group.Leading(); !leading || term != c.term {
			c.leave()
		}
	}
	if c.at == nil {
		c.find()
	}
	switch {
	case c.at == nil:
	case c.flying > 0 && (c.draining || len(c.queue) >= clientWindow):
		if c.idle++; c.idle > patience {
			f.counts[FleetTimeout]++
			f.trace.add("%s gives up waiting for replica %d", c, c.at.id)
			c.leave()
		}
	case c.draining:
		c.draining = false
		for _, b := range slices.Clone(c.queue) {
			if !c.draining {
				c.send(b)
			}
		}
	case c.holder != nil && c.holder.renews:
	case len(c.queue) < clientWindow:
		b := c.fresh()
		c.queue = append(c.queue, b)
		c.send(b)
	}
}

// find looks for a leader of a term that is not older than the newest one known.
func (c *producer) find() {
	leaders := c.cell.leaders(c.term)
	if len(leaders) > 0 {
		c.at = leaders[c.fleet.random.IntN(len(leaders))]
		c.term, _ = c.at.group.Leading()
		c.session++
		c.fleet.trace.add("%s writes to replica %d, leader of term %d", c, c.at.id, c.term)
	}
}

func (c *producer) fresh() *batch {
	f := c.fleet
	records, size := 1+f.random.IntN(8), f.random.IntN(200)
	switch f.random.IntN(20) {
	case 0:
		size = f.random.IntN(20_000)
	case 1:
		records, size = 1, f.random.IntN(int(f.config.segmentBytes)*5/4)
	}
	f.lastBatch++
	b := buildBatch(f.lastBatch, wire.ProducerIdentity{ID: c.id, Epoch: c.epoch, Sequence: c.sequence}, wire.AcksQuorum, records, size, f.groups != nil)
	if c.holder != nil {
		b.ends = c.holder.name
	}
	c.sequence += int32(records)
	f.batches[int64(b.number)] = b
	b.sent = f.moment()
	return b
}

func (c *producer) send(b *batch) {
	f := c.fleet
	f.lastAttempt++
	tag := f.lastAttempt
	a := &sending{client: c, batch: b, session: c.session, first: c.queue[0] == b, landed: b.landed}
	if c.holder != nil {
		a.late = c.at.replicas[0].metadata.Fenced(c.id, c.epoch)
		if c.holder.name.raised > c.epoch {
			f.named.Late++
		}
	}
	f.attempts[tag] = a
	c.flying++
	c.idle = 0
	acks := wire.AcksQuorum
	if f.options.Mutant == AckBeforeQuorum {
		acks = wire.AcksLeader
	}
	f.trace.add("%s sends batch %d to replica %d: %d records of %d bytes, sequence %d", c, b.number, c.at.id, b.count, len(b.bytes), b.producer.Sequence)
	err := c.at.part.Append(partition.Append{Batch: b.bytes, Index: b.records, Info: b.info, Acks: acks, Receiver: c, Tag: tag})
	if err == nil {
		return
	}
	delete(f.attempts, tag)
	c.flying--
	c.draining = true
	f.trace.add("%s: not taken: %v", c, err)
	var code wire.ErrorCode
	if !errors.Is(err, partition.ErrMailboxFull) && !errors.Is(err, partition.ErrMemoryFull) && !errors.As(err, &code) {
		f.fail("%s: append: %v", c, err)
	}
}

// Appended implements partition.Receiver.
func (c *producer) Appended(tag uint64, r wire.Receipt, code wire.ErrorCode) {
	f := c.fleet
	a := f.attempts[tag]
	if a == nil || a.client != c {
		f.fail("%s: attempt %d is answered twice, or was never made", c, tag)
	}
	delete(f.attempts, tag)
	current := a.session == c.session
	if current {
		c.flying--
	}
	if code != wire.CodeOK {
		c.refused(a, code, current)
		return
	}
	b := a.batch
	if b.answered == 0 {
		b.answered = f.moment()
	}
	f.trace.add("%s: batch %d is at offset %d, duplicate %t", c, b.number, r.BaseOffset, r.Duplicate)
	f.counts[FleetAcknowledged]++
	switch {
	case f.options.Mutant == AckBeforeQuorum && !b.landed:
		b.promise, b.promised = true, r.BaseOffset
	case !b.landed:
		f.fail("%s: batch %d is acknowledged at offset %d before it is committed", c, b.number, r.BaseOffset)
	case b.offset != r.BaseOffset:
		f.fail("%s: batch %d is acknowledged at offset %d and lies at %d", c, b.number, r.BaseOffset, b.offset)
	case a.landed && !r.Duplicate:
		f.fail("%s: batch %d was committed at offset %d before it was sent again, and is no duplicate", c, b.number, b.offset)
	case a.late && !r.Duplicate:
		f.fail("%s: batch %d is acknowledged by a leader that knew of a later epoch before it was sent", c, b.number)
	case !r.Synced && f.options.Mutant != AckBeforeQuorum:
		f.fail("%s: batch %d is acknowledged and not synced", c, b.number)
	}
	c.cell.truth.seen = max(c.cell.truth.seen, b.index)
	if r.Duplicate {
		f.counts[FleetDuplicate]++
	} else if b.originals++; b.originals > 1 {
		f.fail("%s: batch %d is acknowledged as an original twice", c, b.number)
	}
	if i := slices.Index(c.queue, b); i >= 0 {
		c.queue = append(c.queue[:i], c.queue[i+1:]...)
	}
}

// refused decides whether a refusal was justified. Attempts of an earlier session are
// answered by a replica that may lead no longer.
func (c *producer) refused(a *sending, code wire.ErrorCode, current bool) {
	f, b := c.fleet, a.batch
	f.trace.add("%s: batch %d is refused: %v", c, b.number, code)
	f.counts[FleetRefused]++
	if current {
		c.draining = true
	}
	switch code {
	case wire.CodeUnavailable, wire.CodeNotLeader, wire.CodeShuttingDown, wire.CodePartitionFenced:
	case wire.CodeFenced:
		f.named.Refused++
		switch {
		case c.holder == nil || c.holder.name.raised <= c.epoch:
			f.fail("%s: batch %d is fenced, and no later epoch was given", c, b.number)
		case current && c.holder.stage == nameHeld && c.holder.identity.Epoch == c.epoch:
			c.holder.superseded()
		}
	case wire.CodeOutOfSequence, wire.CodeUnknownProducer, wire.CodeDuplicate:
		if current && a.first {
			f.fail("%s: batch %d with sequence %d is answered %v, and all before it were acknowledged", c, b.number, b.producer.Sequence, code)
		}
	default:
		f.fail("%s: batch %d: %v is no answer to it", c, b.number, code)
	}
}
