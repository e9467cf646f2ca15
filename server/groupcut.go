package server

import (
	"encoding/binary"
	"sync"

	"github.com/lockstepmq/lockstep/log"
	"github.com/lockstepmq/lockstep/partition/group"
	"github.com/lockstepmq/lockstep/wire"
)

// A batch goes to a consumer as it is stored, and if little of it is the consumer's then as
// runs of records: with 10,000 keys a batch of 10,000 records would else be sent to each
// consumer twenty times over. The record index says where records lie. The header of
// the batch comes with each run, and only the batch's checksum covers it: so a worker
// verifies a batch before the first run of it is sent, once for all consumers.
const (
	// cutShare is how much of a batch its runs may have at most, as a divisor: what is
	// larger goes whole.
	cutShare = 2
	// cutGap is how many bytes that are not the consumer's go with what is, to spare a
	// frame of their own.
	cutGap = 256
	// maxBatchHeaders bounds the headers of verified batches that a replica remembers.
	maxBatchHeaders = 4096
)

// runCut makes an order one of a run of records.
type runCut struct {
	head  []byte       // what AppendRecordRun makes, without the batch's header until ready is set
	ready bool         // the batch was verified
	batch log.Position // of the whole body batch
	size  int          // of it
	index int          // bytes of it in front of the batch
}

// cutOrders appends the orders for the runs of a delivery, or false if the batch should go
// whole. grant is where its grants begin.
func cutOrders(dst []order, d *group.Delivery, grant int) ([]order, bool) {
	p := &d.Place
	if d.Whole || p.Compressed || len(p.Index) != p.Count*wire.RecordIndexEntrySize {
		return dst, false
	}
	whole := wire.BodyBatchSize(p.IndexBytes, p.BatchBytes)
	records := p.BatchBytes - wire.BatchHeaderSize
	lies := log.Position{Segment: p.At.Segment, Byte: p.At.Byte + 8 + int64(p.IndexBytes) + wire.BatchHeaderSize}
	made, sent := len(dst), 0
	at, i := 0, 0 // byte and number of the next record that the index says something about
	length := func(n int) int {
		return int(binary.LittleEndian.Uint32(p.Index[n*wire.RecordIndexEntrySize+8:]))
	}
	from, start, end := 0, 0, 0 // the run that is open: its first record, and its bytes
	last := -1                  // behind its last record
	first := 0                  // of its grants
	flush := func(grants int) {
		if last < 0 {
			return
		}
		entries := p.Index[from*wire.RecordIndexEntrySize : last*wire.RecordIndexEntrySize]
		sent += end - start + wire.RecordRunPrefixSize(last-from)
		dst = append(dst, order{
			at: log.Position{Segment: lies.Segment, Byte: lies.Byte + int64(start)}, size: end - start, grant: grant + first, grants: grants - first,
			cut: &runCut{
				head:  wire.AppendRecordRun(make([]byte, 0, wire.RecordRunPrefixSize(last-from)), from, p.Publisher, nil, entries),
				batch: p.At, size: whole, index: p.IndexBytes,
			},
		})
	}
	for n := range d.Grants {
		g := &d.Grants[n]
		if g.Deliveries > 1 { // also what the index may say wrongly: whole, it can be read
			return dst[:made], false
		}
		a, b := int(g.Offset-p.Base), int(g.Offset-p.Base)+int(g.Count)
		for ; i < a; i++ {
			at += length(i)
		}
		if last < 0 || at-end > cutGap {
			flush(n)
			from, start, first = a, at, n
		}
		for ; i < b; i++ {
			at += length(i)
		}
		if end, last = at, b; end > records || (sent+end-start)*cutShare > whole {
			return dst[:made], false
		}
	}
	flush(len(d.Grants))
	if sent*cutShare > whole {
		return dst[:made], false
	}
	return dst, true
}

// batchHeaders are the headers of batches that were verified. Any goroutine.
type batchHeaders struct {
	mu    sync.Mutex
	known map[log.Position][wire.BatchHeaderSize]byte
	order []log.Position // as they came; a ring
	next  int
}

// get copies the header of a batch to dst, if it is known.
func (h *batchHeaders) get(at log.Position, dst []byte) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	header, ok := h.known[at]
	copy(dst, header[:])
	return ok
}

func (h *batchHeaders) put(at log.Position, header []byte) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.known == nil {
		h.known = make(map[log.Position][wire.BatchHeaderSize]byte)
	}
	if _, ok := h.known[at]; ok {
		return
	}
	if len(h.order) < maxBatchHeaders {
		h.order = append(h.order, at)
	} else {
		delete(h.known, h.order[h.next])
		h.order[h.next] = at
		h.next = (h.next + 1) % maxBatchHeaders
	}
	h.known[at] = [wire.BatchHeaderSize]byte(header)
}

// fill puts the header of its batch into a run, if it is known.
func (c *runCut) fill(h *batchHeaders) bool {
	c.ready = c.ready || h.get(c.batch, c.head[wire.RecordRunHeaderAt:][:wire.BatchHeaderSize])
	return c.ready
}

// verifyOrder has a worker read the batch of the run that is next. If it is not whole, it
// goes to the consumer as it is, who finds that too and reports it.
func (s *session) verifyOrder(k *groupLink) {
	k.loading = true
	o := &k.queue[k.head]
	c, records, headers := o.cut, k.log, k.replica.batchHeaders()
	s.blocking(k.replica, func() error {
		b := newBuffer(c.size)
		defer b.free()
		if err := readWhole(records, c.batch, b.bytes[:c.size]); err != nil {
			return err
		}
		batch := b.bytes[8+c.index : c.size]
		if _, err := wire.VerifyBatch(batch[:binary.LittleEndian.Uint32(b.bytes[4:c.size])]); err != nil {
			return err
		}
		headers.put(c.batch, batch[:wire.BatchHeaderSize])
		c.ready = copy(c.head[wire.RecordRunHeaderAt:], batch[:wire.BatchHeaderSize]) > 0
		return nil
	}, func(err error) {
		k.loading = false
		if err != nil && !k.closed {
			o.at, o.size, o.cut = c.batch, c.size, nil
		}
		s.run(k)
	})
}

// readWhole fills b with stored bytes.
func readWhole(records partitionLog, at log.Position, b []byte) error {
	for len(b) > 0 {
		n, next, err := records.ReadAt(at, b)
		if err == nil && n == 0 {
			err = log.ErrCorrupt // the rest of the batch is not to be read
		}
		if err != nil {
			return err
		}
		b, at = b[n:], next
	}
	return nil
}
