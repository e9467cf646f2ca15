package sim

import (
	"errors"
	"fmt"
	"slices"

	"github.com/lockstepmq/lockstep/cluster"
	"github.com/lockstepmq/lockstep/partition"
	"github.com/lockstepmq/lockstep/wire"
)

// clientKind says how a client produces.
type clientKind int

const (
	anonymous clientKind = iota // idempotent, with a producer ID of its own
	named                       // idempotent, with an ID it shares with earlier holders of the name
	leader                      // acks=leader, not idempotent
	none                        // acks=none
	clientKinds
)

var clientKindNames = [clientKinds]string{"anonymous", "named", "leader", "none"}

// Limits of one client, in batches.
const (
	clientWindow = 5 // on their way at once
	clientRecent = 4 // answered ones that may still be sent again
)

// client is one producer of one partition. It keeps going over restarts of the
// node: what is unanswered is sent again, in order, under the same sequences.
type client struct {
	sim   *Simulation
	name  string // of a named producer: shared by its successive holders
	kind  clientKind
	model *partitionModel

	id       int64
	epoch    int16
	sequence int32 // of the next new batch
	opened   bool  // has an ID
	opening  bool  // has asked for one, in this life of the node

	queue    []*batch // idempotent and unanswered, oldest first
	recent   []*batch // answered
	flying   int      // attempts without an answer in this life of the node
	draining bool     // something failed: nothing new before the queue was sent again
}

// attempt is one sending of a batch.
type attempt struct {
	client *client
	batch  *batch
	landed bool // the batch was in the log before this attempt
}

func (c *client) idempotent() bool { return c.kind == anonymous || c.kind == named }

// open asks for a producer ID.
func (c *client) open(n *node) {
	command := cluster.Command{AllocateIDs: &cluster.AllocateIDs{Node: nodeID}}
	if c.kind == named {
		command = cluster.Command{OpenProducer: &cluster.OpenProducer{Name: c.name}}
	}
	c.opening = true
	n.meta.metadata.Submit(command, func(r cluster.Result) {
		c.opening = false
		if r.Err != nil {
			c.sim.metadataRefused(r.Err)
			return
		}
		session := r.Producer
		if c.kind == anonymous {
			session = cluster.ProducerSession{ID: r.FirstID}
		}
		c.sim.sessionOpened(c, session)
		c.id, c.epoch, c.sequence = session.ID, session.Epoch, 0
		c.opened, c.draining = true, false
		c.queue, c.recent = nil, nil
		c.sim.trace.add("%s writes as producer %d epoch %d", c, c.id, c.epoch)
	})
}

// act does the client's next thing: a new batch, or all unanswered ones again.
func (c *client) act(r *replica) {
	switch {
	case !c.idempotent():
		c.send(r, c.fresh())
	case !c.opened:
		if !c.opening {
			c.open(c.sim.node)
		}
	case c.draining:
		if c.flying > 0 {
			return
		}
		c.draining = false
		for _, b := range c.queue {
			if !c.draining {
				c.send(r, b)
			}
		}
	case len(c.queue) < clientWindow:
		b := c.fresh()
		c.queue = append(c.queue, b)
		c.send(r, b)
	}
}

// repeat sends a batch again that is on its way or answered, as after a timeout.
func (c *client) repeat(r *replica) {
	if all := len(c.queue) + len(c.recent); c.opened && !c.draining && all > 0 {
		i := c.sim.random.IntN(all)
		if i < len(c.queue) {
			c.send(r, c.queue[i])
		} else {
			c.send(r, c.recent[i-len(c.queue)])
		}
	}
}

// fresh makes a batch that was never sent.
func (c *client) fresh() *batch {
	s := c.sim
	records, size := 1+s.random.IntN(8), s.random.IntN(200)
	switch s.random.IntN(20) {
	case 0:
		size = s.random.IntN(20_000)
	case 1:
		records, size = 1, s.random.IntN(int(s.config.segmentBytes)*5/4)
	}
	id := wire.ProducerIdentity{ID: wire.NoProducerID}
	acks := wire.AcksQuorum
	switch c.kind {
	case leader:
		acks = wire.AcksLeader
	case none:
		acks = wire.AcksNone
	default:
		id = wire.ProducerIdentity{ID: c.id, Epoch: c.epoch, Sequence: c.sequence}
		c.sequence += int32(records)
	}
	s.lastBatch++
	b := newBatch(s.lastBatch, id, acks, records, size)
	b.client = c
	s.batches[int64(b.number)] = b
	return b
}

func (c *client) send(r *replica, b *batch) {
	s := c.sim
	s.lastAttempt++
	tag := s.lastAttempt
	a := partition.Append{Batch: b.bytes, Info: b.info, Acks: b.acks, Receiver: c, Tag: tag}
	if b.acks == wire.AcksNone {
		a.Receiver = nil
	} else {
		s.attempts[tag] = &attempt{client: c, batch: b, landed: b.landed}
		c.flying++
	}
	s.trace.add("%s sends batch %d: %d records of %d bytes, sequence %d", c, b.number, b.count, len(b.bytes), b.producer.Sequence)
	if err := r.part.Append(a); err != nil {
		delete(s.attempts, tag)
		if b.acks != wire.AcksNone {
			c.flying--
		}
		c.draining = true
		s.trace.add("%s: not taken: %v", c, err)
		var code wire.ErrorCode
		if !errors.Is(err, partition.ErrMailboxFull) && !errors.As(err, &code) {
			s.fail("%s: append: %v", c, err)
		}
	}
}

// Appended implements partition.Receiver.
func (c *client) Appended(tag uint64, r wire.Receipt, code wire.ErrorCode) {
	s := c.sim
	a := s.attempts[tag]
	if a == nil || a.client != c {
		s.fail("%s: attempt %d is answered twice, or was never made", c, tag)
	}
	delete(s.attempts, tag)
	c.flying--
	if code != wire.CodeOK {
		c.refused(a, code)
		return
	}
	s.trace.add("%s: batch %d is at offset %d, synced %t, duplicate %t", c, a.batch.number, r.BaseOffset, r.Synced, r.Duplicate)
	s.counts[Acknowledged]++
	c.acknowledged(a, &r)
}

func (c *client) acknowledged(a *attempt, r *wire.Receipt) {
	s, b := c.sim, a.batch
	if b.acks == wire.AcksLeader {
		if r.Synced || r.Duplicate || b.landed && b.offset != r.BaseOffset {
			s.fail("%s: batch %d: acks=leader answered with %+v", c, b.number, *r)
		}
		b.promise, b.promised = true, r.BaseOffset
		return
	}
	switch {
	case !b.landed:
		s.fail("%s: batch %d is acknowledged at offset %d before it is committed", c, b.number, r.BaseOffset)
	case b.offset != r.BaseOffset:
		s.fail("%s: batch %d is acknowledged at offset %d and lies at %d", c, b.number, r.BaseOffset, b.offset)
	case !r.Duplicate && (wire.Term(r.Epoch) != c.model.at(b.index).term || r.AppendTimeMs != c.model.at(b.index).timeMs):
		s.fail("%s: batch %d is acknowledged with %+v; its entry is %s", c, b.number, *r, c.model.at(b.index))
	case r.Replicas != 1 || r.Synced && !c.model.durableMode():
		s.fail("%s: batch %d is acknowledged with %+v", c, b.number, *r)
	case a.landed && !r.Duplicate:
		s.fail("%s: batch %d was in the log at offset %d before it was sent again, and is no duplicate", c, b.number, b.offset)
	}
	if r.Duplicate {
		s.counts[Duplicate]++
	} else if b.originals++; b.originals > 1 && !b.gone {
		s.fail("%s: batch %d is acknowledged as an original twice", c, b.number)
	}
	if r.Synced {
		c.model.lasts(b.index)
	}
	if i := slices.Index(c.queue, b); i >= 0 {
		c.queue = append(c.queue[:i], c.queue[i+1:]...)
		c.recent = append(c.recent, b)
		if len(c.recent) > clientRecent {
			c.recent = c.recent[1:]
		}
	}
}

// refused decides whether a refusal was justified.
func (c *client) refused(a *attempt, code wire.ErrorCode) {
	s, b := c.sim, a.batch
	s.trace.add("%s: batch %d is refused: %v", c, b.number, code)
	c.draining = true
	switch code {
	case wire.CodeDiskFull:
		s.counts[DiskFullAnswer]++
		if !s.faults.full && !s.excused() {
			s.fail("%s: batch %d: DISK_FULL on a disk with room", c, b.number)
		}
	case wire.CodeFenced:
		s.counts[ProducerFenced]++
		if s.epochs[b.producer.ID] <= b.producer.Epoch {
			s.fail("%s: batch %d: epoch %d of producer %d is fenced, and no later one was handed out", c, b.number, b.producer.Epoch, b.producer.ID)
		}
		if b.producer.Epoch == c.epoch {
			c.opened = false
			c.queue, c.recent = nil, nil
		}
	case wire.CodeOutOfSequence, wire.CodeUnknownProducer:
		c.outOfSequence(b, code)
	case wire.CodeUnavailable, wire.CodePartitionFenced:
		if !s.excused() {
			s.fail("%s: batch %d: %v without any fault", c, b.number, code)
		}
	case wire.CodeDuplicate:
		// The producer was forgotten while a later batch of it was on its way.
		if !s.jumped || !b.landed {
			s.fail("%s: batch %d: %v without a reason to forget its offset", c, b.number, code)
		}
		c.queue = slices.DeleteFunc(c.queue, func(q *batch) bool { return q == b })
	case wire.CodeShuttingDown, wire.CodeDestinationGone:
	default:
		s.fail("%s: batch %d: %v is no answer to it", c, b.number, code)
	}
}

// outOfSequence is right while something before the batch was refused or is
// missing. For the oldest unanswered batch of a producer that means that the
// partition has lost records, which only some sync modes may, or that the clock has
// jumped, and the producer is forgotten: for one that was silent too long.
func (c *client) outOfSequence(b *batch, code wire.ErrorCode) {
	s := c.sim
	if len(c.queue) == 0 || c.queue[0] != b || b.producer.ID != c.id || b.producer.Epoch != c.epoch {
		return
	}
	forgotten := code == wire.CodeUnknownProducer && s.jumped
	if forgotten {
		s.counts[Forgotten]++
	}
	if !forgotten && !c.model.lost[b.producer.ID] && s.epochs[c.id] <= c.epoch {
		s.fail("%s: batch %d with sequence %d is answered %v, and nothing before it is missing", c, b.number, b.producer.Sequence, code)
	}
	s.counts[SequenceLost]++
	c.opened = false
	c.queue, c.recent = nil, nil
}

// cut is the end of the node's life: what is on its way will not be answered.
func (c *client) cut() {
	c.flying, c.opening = 0, false
	c.draining = len(c.queue) > 0
}

func (c *client) String() string { return fmt.Sprintf("%s client %s", clientKindNames[c.kind], c.name) }
