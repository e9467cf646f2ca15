package client

import (
	"fmt"
	"time"

	"github.com/lockstepmq/lockstep/wire"
	"github.com/lockstepmq/lockstep/wire/inflate"
)

// damageDelay is when a record that arrived damaged is to be delivered again.
const damageDelay = time.Second

// receive takes a GROUP_DELIVER. It is called by the session's reader; body is the
// attachment's to keep. An error means that it is no such frame.
func (at *attachment) receive(s *session, body []byte) error {
	m := &at.deliver
	if err := m.Parse(body); err != nil {
		return err
	}
	switch m.Kind {
	case wire.DeliverBatches, wire.DeliverSubstitute:
	case wire.DeliverRecords:
		return at.receiveRun(s, m)
	default:
		return fmt.Errorf("GROUP_DELIVER of kind %d", m.Kind)
	}
	c := at.consumer
	grants := m.Grants
	for rest := m.Bytes; len(rest) > 0; {
		b, after, err := wire.NextBodyBatch(rest)
		if err != nil {
			return err
		}
		rest = after
		info, err := wire.ParseBatch(b.Batch)
		if err != nil {
			return err
		}
		n := 0
		for n < len(grants) && grants[n].Offset < info.NextOffset() {
			if next := grants[n].Offset + wire.Offset(grants[n].Count); grants[n].Offset < info.BaseOffset || next > info.NextOffset() {
				return fmt.Errorf("records [%d, %d) were granted, and [%d, %d) sent", grants[n].Offset, next, info.BaseOffset, info.NextOffset())
			}
			n++
		}
		batch := batchOf{at: at, info: info}
		if err := batch.open(b); err != nil {
			c.mu.Lock()
			batch.damaged(s, grants[:n], err)
			c.mu.Unlock()
		} else {
			batch.read(s, grants[:n])
		}
		grants = grants[n:]
	}
	if len(grants) > 0 {
		return fmt.Errorf("record %d was granted and not sent", grants[0].Offset)
	}
	return nil
}

// receiveRun takes a GROUP_DELIVER of some records of a batch.
func (at *attachment) receiveRun(s *session, m *wire.GroupDeliver) error {
	run, err := wire.ParseRecordRun(m.Bytes)
	if err != nil {
		return err
	}
	last := &m.Grants[len(m.Grants)-1]
	if from, to := m.Grants[0].Offset, last.Offset+wire.Offset(last.Count); from < run.Base() || to > run.Base()+wire.Offset(run.Count) {
		return fmt.Errorf("records [%d, %d) were granted, and [%d, %d) sent", from, to, run.Base(), run.Base()+wire.Offset(run.Count))
	}
	b := batchOf{at: at, info: run.Info, run: &run}
	run.Read(&b.reader)
	b.read(s, m.Grants)
	return nil
}

// batchOf reads the records of one batch.
type batchOf struct {
	at      *attachment
	info    wire.BatchInfo
	index   wire.RecordIndex
	indexed bool
	run     *wire.RecordRun // of records of the batch, and not all of them; nil: all
	reader  wire.RecordReader
}

// open verifies a batch.
func (b *batchOf) open(body wire.BodyBatch) error {
	var err error
	if len(body.Index) > 0 { // first: it says of which keys a damaged batch is
		if b.index, err = wire.ParseRecordIndex(body.Index); err != nil {
			return err
		}
		b.indexed = true
	}
	if _, err = wire.VerifyBatch(body.Batch); err != nil {
		return err
	}
	section := wire.Records(body.Batch)
	if b.info.Codec != NoCompression {
		if section, err = inflate.Records(nil, b.info.Codec, section); err != nil {
			return err
		}
	}
	b.reader.Reset(&b.info, section)
	return nil
}

// damaged gives back records whose bytes do not match their checksum, and reports them. They
// are held until that is confirmed: they are claimed, and what lies behind them in their
// scope, as far as that is known, waits. Consumer.mu is held.
func (b *batchOf) damaged(s *session, grants []wire.Grant, err error) {
	at := b.at
	if at.session != s {
		return
	}
	at.consumer.conn.options.logger.Error("records arrived damaged", "destination", at.consumer.destination, "partition", at.partition, "error", err)
	base := b.info.BaseOffset
	if b.run != nil {
		base = b.run.Base()
	}
	for _, g := range grants {
		if s.speaks(wire.OpReportDamage) == nil {
			s.tell(wire.OpReportDamage, 0, &wire.ReportDamage{Handle: at.handle, Offset: g.Offset})
		}
		for o := g.Offset; o < g.Offset+wire.Offset(g.Count); o++ {
			d := &Delivery{at: at, epoch: g.Epoch, scope: b.scope(int(o - base))}
			d.Partition, d.Offset = at.partition, uint64(o)
			at.admit(d)
			d.conclude(wire.OutcomeReleased, milliseconds(damageDelay), "damaged") // no handler has failed
		}
	}
}

// slab is how many deliveries are allocated at once.
const slab = 128

// read hands the granted records of the batch to the consumer.
func (b *batchOf) read(s *session, grants []wire.Grant) {
	at := b.at
	c := at.consumer
	total := 0
	for _, g := range grants {
		total += int(g.Count)
	}
	var made []Delivery
	var view wire.Record
	c.mu.Lock()
	defer c.mu.Unlock()
	if at.session != s {
		return
	}
	was := c.ready.len()
	for i := 0; len(grants) > 0 && b.reader.Next(&view); i++ {
		g := &grants[0]
		if view.Offset < g.Offset {
			continue
		}
		if b.run != nil {
			if err := b.run.Check(i, &view); err != nil {
				g.Count -= uint32(view.Offset - g.Offset) // those before it are handed out
				g.Offset = view.Offset
				b.damaged(s, grants, err)
				grants = nil
				break
			}
		}
		if len(made) == 0 {
			made = make([]Delivery, min(total, slab))
			total -= len(made)
		}
		d := &made[0]
		made = made[1:]
		b.fill(d, &view, g)
		d.scope = b.scope(i)
		at.admit(d)
		if view.Offset+1 == g.Offset+wire.Offset(g.Count) {
			grants = grants[1:]
		}
	}
	if len(grants) > 0 {
		b.damaged(s, grants, b.reader.Err())
	}
	if c.paused { // it was on its way when that was said
		at.releaseQueued()
	}
	if c.ready.len() > was {
		c.rouse()
	}
}

// fill makes a delivery of a record.
func (b *batchOf) fill(d *Delivery, v *wire.Record, g *wire.Grant) {
	d.at, d.epoch = b.at, g.Epoch
	d.Key, d.Value, d.Attributes = v.Key, v.Value, v.Attributes
	d.Timestamp = time.UnixMilli(v.TimestampMs)
	d.Partition, d.Offset, d.Record.Epoch = b.at.partition, uint64(v.Offset), uint32(b.info.LeaderEpoch)
	if v.HeaderCount > 0 {
		d.Headers = v.AppendHeaders(nil)
	}
	d.Deliveries, d.Attempts = int(g.Deliveries), int(g.Attempts)
	d.Redelivered, d.AtLeast = g.Flags&wire.GrantRedelivered != 0, g.Flags&wire.GrantAtLeast != 0
}

// scope is what record i of the batch is ordered by, 0 for nothing.
func (b *batchOf) scope(i int) uint64 {
	switch {
	case !b.at.serial:
		return 0
	case b.at.scope == wire.ScopeDestination:
		return 1
	case b.run != nil && b.at.scope == wire.ScopePublisher:
		return b.run.Publisher
	case b.run != nil:
		return b.run.Entry(i).KeyHash
	case !b.indexed || i >= b.index.Len():
		return 0
	case b.at.scope == wire.ScopePublisher:
		return b.index.PublisherHash
	}
	return b.index.Entry(i).KeyHash
}
