package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"
	"sync"
	"time"

	"github.com/lockstepmq/lockstep/wire"
	"github.com/lockstepmq/lockstep/wire/inflate"
)

// Reader reads the records of a destination's partitions, in order inside each.
// Partitions with records to return take turns, a piece of at most 256 KiB each.
// It resumes by itself after a disconnect, at the record after the last one it
// received.
//
// What is verified: every frame header by its own CRC, its place by index, term
// and offset, and every batch by the CRC that its producer computed. The frame's
// body CRC is not computed: the bytes it covers beyond those of the batches are
// lengths, base offsets and the record index; a reader does not use the index, and
// checks the others against the header and each other. So every byte is summed
// once, and by the checksum that spans the whole way from the producer.
//
// Next and Records belong to one goroutine; Close may be called from any.
type Reader struct {
	conn        *Conn
	destination string
	scope       scope    // what it was asked for by
	id          [16]byte // of the destination
	options     readerOptions
	window      int64 // bytes of credit per partition
	creditStep  int64 // taken bytes after which credit is returned
	ctx         context.Context
	cancel      context.CancelFunc
	wake        chan struct{} // capacity 1, for the upkeep
	signal      chan struct{} // capacity 1, for Next
	wg          sync.WaitGroup

	mu       sync.Mutex // before a session's
	streams  []*stream
	ready    []*stream // with frames to return, in turn
	active   int       // streams that are not done
	err      error     // what Next returns when all that was received is returned
	retryAt  time.Time
	want     bool   // to know who leads
	asking   bool   // METADATA is on its way
	seen     uint64 // generation of the topology before it was asked for
	free     []*chunk
	freeSize int64         // bytes of free
	located  chan struct{} // closed when all streams are located, or on an error
	missing  int           // streams that are not

	// The application's goroutine walks down: region, frame, batch, record.
	current    *stream
	region     []byte // frames that are left of it
	body       []byte // batches that are left of the frame
	head       wire.FrameHeader
	appendTime time.Time
	base       wire.Offset // of the batch at hand
	next       wire.Offset // of the next batch of the frame
	from       wire.Offset // records below were asked for by nobody
	to         wire.Offset // nor those from here on
	records    wire.RecordReader
	view       wire.Record
	record     Record
	headers    []Header
	inflated   []byte
	keys       map[string]string // header keys that were seen
}

// headerKeys bounds the header keys a reader remembers so as not to allocate them
// for every record.
const headerKeys = 256

// Reader opens a reader. When it returns, the place where reading starts is known
// for every partition. Errors: wire.CodeUnknownDestination, ErrUnknownPartition,
// *OutOfRangeError, or ctx's.
func (c *Conn) Reader(ctx context.Context, destination string, opts ...ReaderOption) (*Reader, error) {
	r, err := c.newReader(ctx, destination, opts)
	if err != nil {
		return nil, fmt.Errorf("reader for %q: %w", destination, err)
	}
	return r, nil
}

func (c *Conn) newReader(ctx context.Context, destination string, opts []ReaderOption) (*Reader, error) {
	o, err := newReaderOptions(opts)
	if err != nil {
		return nil, err
	}
	scope, l, err := c.scoped(ctx, destination)
	if err != nil {
		return nil, err
	}
	r := &Reader{
		conn:        c,
		destination: scope.destination,
		scope:       scope,
		options:     o,
		window:      int64(o.readAhead),
		creditStep:  min(creditBytes, int64(o.readAhead)/2),
		wake:        make(chan struct{}, 1),
		signal:      make(chan struct{}, 1),
		located:     make(chan struct{}),
		keys:        make(map[string]string),
	}
	wanted := l.partitions
	if len(scope.partitions) > 0 {
		wanted = scope.partitions
	}
	if len(o.partitions) > 0 {
		wanted = slices.Compact(slices.Sorted(slices.Values(o.partitions)))
	}
	for _, n := range wanted {
		if !slices.Contains(l.partitions, n) || !scope.has(n) {
			return nil, fmt.Errorf("%w: %d", ErrUnknownPartition, n)
		}
		r.streams = append(r.streams, &stream{reader: r, partition: n, leader: l.leaders[slices.Index(l.partitions, n)]})
	}
	r.seen, r.id = l.generation, l.id
	r.active, r.missing = len(r.streams), len(r.streams)
	r.ctx, r.cancel = context.WithCancel(context.Background())
	c.mu.Lock()
	if c.closing {
		c.mu.Unlock()
		r.cancel()
		return nil, ErrClosed
	}
	c.readers[r] = struct{}{}
	c.mu.Unlock()
	r.wg.Add(1)
	go r.upkeep()

	select {
	case <-r.located:
	case <-ctx.Done():
		r.Close()
		return nil, ctx.Err()
	}
	r.mu.Lock()
	err = r.err
	missing := r.missing
	r.mu.Unlock()
	if err != nil && missing > 0 {
		r.Close()
		return nil, err
	}
	return r, nil
}

// Records yields records as Next returns them. With StopAtEnd the loop ends after
// the last one; any error is yielded once, with a nil record, and ends it too. A
// loop that is left holds nothing: another one, or Next, goes on behind the record
// that was yielded last, and Close ends the Reader.
func (r *Reader) Records(ctx context.Context) iter.Seq2[*Record, error] {
	return func(yield func(*Record, error) bool) {
		for {
			record, err := r.Next(ctx)
			if errors.Is(err, io.EOF) {
				return
			}
			if !yield(record, err) || err != nil {
				return
			}
		}
	}
}

// Next returns the next record and waits for it if need be. The record and its
// slices are valid until the next call; see Record.Clone. Errors: io.EOF at the
// end with StopAtEnd; ctx's, after which Next may be called again; anything else
// has ended the Reader: *OutOfRangeError, *CorruptError,
// *DataLostError, ErrClosed, ErrDisconnected
// without reconnecting, or a wire.Error.
func (r *Reader) Next(ctx context.Context) (*Record, error) {
	for {
		for r.records.Next(&r.view) {
			if r.view.Offset >= r.from && r.view.Offset < r.to {
				r.fill()
				return &r.record, nil
			}
		}
		err := r.records.Err()
		if err == nil {
			err = r.nextBatch()
		} else {
			err = r.corrupt(r.next, err)
		}
		if err == errRegionEnd {
			err = r.nextRegion(ctx)
		}
		if err != nil {
			return nil, err
		}
	}
}

// fill turns the view into the record that is returned.
func (r *Reader) fill() {
	v, rec := &r.view, &r.record
	rec.Key, rec.Value, rec.Attributes = v.Key, v.Value, v.Attributes
	rec.Timestamp = time.UnixMilli(v.TimestampMs)
	rec.Partition = r.current.partition
	rec.Offset = uint64(v.Offset)
	rec.Epoch = uint32(r.head.Term)
	rec.AppendTime = r.appendTime
	rec.Headers = nil
	if v.HeaderCount > 0 {
		r.headers = r.headers[:0]
		for key, value := range v.Headers() {
			r.headers = append(r.headers, Header{Key: r.intern(key), Value: value})
		}
		rec.Headers = r.headers
	}
}

// intern makes a string of a header key, the same one each time.
func (r *Reader) intern(key []byte) string {
	if s, ok := r.keys[string(key)]; ok {
		return s
	}
	s := string(key)
	if len(r.keys) < headerKeys {
		r.keys[s] = s
	}
	return s
}

// errRegionEnd says that the region has no more batches. It never leaves Next.
var errRegionEnd = errors.New("end of region")

// nextBatch opens the next batch of the region that holds wanted records.
func (r *Reader) nextBatch() error {
	for {
		if len(r.body) == 0 {
			if err := r.nextFrame(); err != nil {
				return err
			}
		}
		r.base = r.next
		b, rest, err := wire.NextBodyBatch(r.body)
		if err != nil {
			return r.corrupt(r.head.NextOffset(), err)
		}
		r.body = rest
		info, err := wire.ParseBatch(b.Batch)
		if err != nil {
			return r.corrupt(r.head.NextOffset(), err)
		}
		skip := info.NextOffset() <= r.from || r.next >= r.to
		if !skip {
			if info, err = wire.VerifyBatch(b.Batch); err != nil {
				return r.corrupt(r.head.NextOffset(), err)
			}
		}
		if info.BaseOffset != r.next || info.LeaderEpoch != int32(r.head.Term) || info.NextOffset() > r.head.NextOffset() ||
			len(rest) == 0 && info.NextOffset() != r.head.NextOffset() {
			return r.corrupt(r.head.NextOffset(), fmt.Errorf("batch holds offsets [%d, %d) of epoch %d, in a frame of [%d, %d) and term %d, expected %d",
				info.BaseOffset, info.NextOffset(), info.LeaderEpoch, r.head.BaseOffset, r.head.NextOffset(), r.head.Term, r.next))
		}
		r.next = info.NextOffset()
		if skip {
			continue
		}
		section := wire.Records(b.Batch)
		if info.Codec != NoCompression {
			if r.inflated, err = inflate.Records(r.inflated, info.Codec, section); err != nil {
				return r.corrupt(r.next, err)
			}
			section = r.inflated
		}
		r.records.Reset(&info, section)
		return nil
	}
}

// nextFrame opens the next frame of the region.
func (r *Reader) nextFrame() error {
	if len(r.region) == 0 {
		return errRegionEnd
	}
	h, err := wire.ParseFrameHeader(r.region)
	if err != nil { // it was whole when it was received
		r.base = r.next
		return r.corrupt(0, err)
	}
	r.head, r.base, r.next = h, h.BaseOffset, h.BaseOffset
	r.appendTime = time.UnixMilli(h.AppendTimeMs)
	r.body = r.region[wire.FrameHeaderSize : wire.FrameHeaderSize+int(h.BodyLength)]
	r.region = r.region[h.FrameSize():]
	if len(r.body) == 0 {
		return r.corrupt(h.NextOffset(), fmt.Errorf("frame of %d records has no body", h.RecordCount))
	}
	return nil
}

// nextRegion gives back the region that was read and waits for another one.
func (r *Reader) nextRegion(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if st := r.current; st != nil {
		r.current = nil
		st.release()
		st.from = max(st.from, r.head.NextOffset())
		r.finishIfDone(st)
		if st.queued = !st.done && st.unread(); st.queued {
			r.ready = append(r.ready, st)
		}
	}
	for {
		switch {
		case len(r.ready) > 0:
			st := r.ready[0]
			n := copy(r.ready, r.ready[1:])
			r.ready[n] = nil
			r.ready = r.ready[:n]
			if st.done {
				continue
			}
			r.current = st // it counts as queued while it is read
			r.region = st.region()
			r.body = nil
			r.from, r.to = st.from, ^wire.Offset(0)
			if r.options.stopAtEnd {
				r.to = st.end
			}
			return nil
		case r.err != nil:
			return r.err
		case r.active == 0:
			return io.EOF
		}
		r.mu.Unlock()
		var err error
		select {
		case <-r.signal:
		case <-ctx.Done():
			err = ctx.Err()
		}
		r.mu.Lock()
		if err != nil {
			return err
		}
	}
}

// finishIfDone ends a stream that has reached its end. r.mu is held.
func (r *Reader) finishIfDone(st *stream) {
	if r.options.stopAtEnd && st.located && !st.done && st.from >= st.end {
		st.done = true
		r.active--
		st.unlink()
		for len(st.chunks) > 1 || len(st.chunks) == 1 && !st.filling {
			st.dropChunk()
		}
		poke(r.signal)
	}
}

// corrupt ends the reader because of damage in the batch at hand. Behind it, reading
// can go on at next; 0 if nobody knows.
func (r *Reader) corrupt(next wire.Offset, err error) error {
	err = &CorruptError{Partition: r.current.partition, Offset: uint64(r.base), Next: uint64(next), Err: err}
	r.mu.Lock()
	r.current.report(r.base)
	r.fail(err)
	r.ready = nil // nothing behind damage is returned
	r.region, r.body = nil, nil
	r.records = wire.RecordReader{}
	r.mu.Unlock()
	return err
}

// fail ends the reader; the first error counts. r.mu is held.
func (r *Reader) fail(err error) {
	if r.err == nil {
		r.err = err
		if r.missing > 0 {
			close(r.located)
		}
	}
	poke(r.signal)
	poke(r.wake)
}

// newChunk returns memory for at least size bytes. r.mu is held.
func (r *Reader) newChunk(size int) *chunk {
	for i := len(r.free) - 1; i >= 0; i-- {
		if c := r.free[i]; len(c.buf) >= size {
			r.free = slices.Delete(r.free, i, i+1)
			r.freeSize -= int64(len(c.buf))
			return c
		}
	}
	unit := int(min(chunkBytes, r.window))
	return &chunk{buf: make([]byte, (size+unit-1)/unit*unit)}
}

// freeChunk keeps a chunk for reuse, if there are not too many. r.mu is held.
func (r *Reader) freeChunk(c *chunk) {
	if n := int64(len(c.buf)); r.freeSize+n <= r.window+freeBytes {
		c.read, c.ready = 0, 0
		r.free = append(r.free, c)
		r.freeSize += n
	}
}

// later puts off what tend does next after an error, unless that was the death
// of the session.
func (r *Reader) later(err error) {
	if !errors.Is(err, ErrDisconnected) {
		r.retryAt = time.Now().Add(retryPause)
	}
	poke(r.wake)
}

// upkeep is the goroutine that opens links, and opens them again. Like the
// producer's it never waits for an answer.
func (r *Reader) upkeep() {
	defer r.wg.Done()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		s, changed, err := r.conn.peek()
		r.mu.Lock()
		if err != nil {
			r.fail(err)
			r.mu.Unlock()
			return
		}
		var dead <-chan struct{}
		var pause time.Duration
		if s != nil {
			dead = s.done
			pause = r.tend(s, time.Now())
		}
		r.mu.Unlock()

		timer.Stop()
		if pause > 0 {
			timer.Reset(pause)
		}
		select {
		case <-r.wake:
		case <-timer.C:
		case <-changed:
		case <-dead:
		case <-r.ctx.Done():
			return
		}
	}
}

// tend opens links to the leaders of partitions, and asks the home, s, who they are,
// if that is in doubt. It returns when to look again, 0 for not before something else
// happens. r.mu is held.
func (r *Reader) tend(s *session, now time.Time) time.Duration {
	if pause := until(r.retryAt, now); pause > 0 && now.Before(r.retryAt) {
		return pause
	}
	var pause time.Duration
	r.want = r.want || r.scope.follows() && r.seen != r.conn.topology.generation.Load()
	for _, st := range r.streams {
		if st.session != nil || st.done || r.err != nil {
			continue
		}
		r.want = r.want || r.seen != r.conn.topology.generation.Load()
		leader := r.conn.sessionTo(st.leader.node)
		pause = leaderPause
		if missed := st.missed(now); leader == nil {
			r.want = r.want || missed >= leaderPause // perhaps there is another leader
		} else if st.opening != leader {
			st.open(leader)
		}
	}
	if r.want && !r.asking && r.err == nil {
		r.ask(s)
	}
	return pause
}

// missed is for how long the stream has had no link. After a while that is told, and
// ends the reader if nobody is to reconnect. r.mu is held.
func (st *stream) missed(now time.Time) time.Duration {
	if st.since.IsZero() {
		st.since = now
	}
	r := st.reader
	missed := now.Sub(st.since)
	if missed >= unreachableAfter && !st.told {
		st.told = true
		r.conn.unavailable(DestinationUnavailable{Destination: r.destination, Partition: st.partition})
		if !r.conn.options.reconnect {
			r.fail(errUnreachable(r.destination, st.partition))
		}
	}
	return missed
}

// ask asks the home who leads the partitions. r.mu is held.
func (r *Reader) ask(s *session) {
	r.want, r.asking = false, true
	r.seen = r.conn.topology.generation.Load()
	reply := &leadersReply{r}
	if _, err := s.request(wire.OpMetadata, r.scope.ask(), reply); err != nil {
		r.asking = false
	}
}

// leadersReply waits for the answer to ask.
type leadersReply struct{ r *Reader }

func (l *leadersReply) answered(_ *session, body []byte, err error) {
	r := l.r
	r.mu.Lock()
	defer r.mu.Unlock()
	r.asking = false
	var response wire.MetadataResponse
	if err == nil {
		err = response.Parse(body)
	}
	if err != nil {
		r.want = true
		r.later(err)
		return
	}
	r.conn.learn(&response)
	if err := r.scope.moved(&response, r.id); err != nil && !r.options.stopAtEnd {
		r.fail(err)
		return
	}
	if d := destinationIn(&response, r.destination); d != nil {
		for _, p := range d.Partitions {
			for _, st := range r.streams {
				if st.partition == p.Number {
					st.leader.learn(leadership{p.Leader, p.Epoch})
				}
			}
		}
	}
	poke(r.wake)
}

func (l *leadersReply) lost(s *session, err error) { l.answered(s, nil, err) }

// linkReply is a waiter that calls a function with Reader.mu held.
type linkReply struct {
	st   *stream
	call func(body []byte, err error)
}

func (l *linkReply) answered(_ *session, body []byte, err error) {
	r := l.st.reader
	r.mu.Lock()
	defer r.mu.Unlock()
	l.call(body, err)
}

func (l *linkReply) lost(s *session, err error) { l.answered(s, nil, err) }

// ask sends a request for the stream; then gets the parsed answer with Reader.mu
// held. Errors go to refused. When the leader has changed meanwhile, or the Reader has ended,
// nobody cares for the answer, and a link that was opened is closed.
func (st *stream) ask(s *session, op wire.Opcode, request, response wire.Message, then func()) {
	r := st.reader
	handle := func(body []byte, err error) {
		if err == nil {
			err = response.Parse(body)
		}
		switch {
		case st.opening != s, r.err != nil, r.ctx.Err() != nil:
			if link, ok := response.(*wire.LinkOpenResponse); ok && err == nil {
				s.tell(wire.OpLinkClose, link.Link, &wire.LinkClose{})
			}
		case err != nil:
			st.opening = nil
			st.refused(err)
		default:
			then()
		}
	}
	if _, err := s.request(op, request, &linkReply{st, handle}); err != nil {
		handle(nil, err)
	}
}

// open opens the partition in a session, finds out where to start if that is not
// known yet, and opens a link. Reader.mu is held.
func (st *stream) open(s *session) {
	st.opening = s
	r := st.reader
	var opened wire.OpenPartitionResponse
	st.ask(s, wire.OpOpenPartition, &wire.OpenPartitionRequest{Destination: r.destination, Partition: st.partition}, &opened, func() {
		if opened.DestinationID != r.id {
			st.opening = nil
			st.refused(wire.Errorf(wire.CodeDestinationGone, "destination %q was deleted and created again", r.destination))
			return
		}
		moved := st.located && r.options.stopAtEnd && st.incarnation != opened.Incarnation
		begin := func() {
			if !st.located {
				st.find(s, &opened)
				return
			}
			if moved {
				st.end = min(st.end, opened.NextOffset) // the end may be gone
			}
			st.openLink(s, opened.Handle, opened.Incarnation)
		}
		if !moved && (st.located || !r.options.stopAtEnd && r.options.start != startLatest) {
			begin()
			return
		}
		// Opening is answered by whoever takes itself for the leader, also by one that
		// stood still and was deposed; the end must be one that a quorum has confirmed.
		var end wire.ListOffsetsResponse
		st.ask(s, wire.OpListOffsets, Latest().request(opened.Handle), &end, func() {
			opened.NextOffset = end.Offset
			begin()
		})
	})
}

// find finds out where the stream starts and ends.
func (st *stream) find(s *session, opened *wire.OpenPartitionResponse) {
	r := st.reader
	st.end = opened.NextOffset
	if r.options.start != startOffset {
		st.incarnation = opened.Incarnation
	}
	switch r.options.start {
	case startEarliest:
		st.locate(s, opened, opened.StartOffset)
	case startLatest:
		st.locate(s, opened, opened.NextOffset)
	case startOffset:
		st.locate(s, opened, wire.Offset(r.options.offset))
	case startTime:
		var found wire.ListOffsetsResponse
		st.ask(s, wire.OpListOffsets, AtTime(r.options.time).request(opened.Handle), &found, func() {
			st.locate(s, opened, found.Offset)
		})
	}
}

// locate fixes where the stream starts.
func (st *stream) locate(s *session, opened *wire.OpenPartitionResponse, next wire.Offset) {
	st.next, st.from, st.located = next, next, true
	if st.reader.options.stopAtEnd && next == st.end {
		st.opening = nil
		st.placed()
		return
	}
	st.openLink(s, opened.Handle, opened.Incarnation)
}

// placed tells Conn.Reader and the end's watch that the stream has its place.
func (st *stream) placed() {
	r := st.reader
	if !st.counted {
		st.counted = true
		if r.missing--; r.missing == 0 {
			close(r.located)
		}
	}
	r.finishIfDone(st)
}

// openLink opens the link at st.next.
func (st *stream) openLink(s *session, handle, incarnation uint32) {
	r := st.reader
	var link wire.LinkOpenResponse
	request := wire.LinkOpenRequest{Handle: handle, Offset: st.next, Credit: uint32(r.window), Incarnation: st.incarnation}
	st.ask(s, wire.OpLinkOpen, &request, &link, func() {
		st.opening = nil
		st.session, st.link, st.handle = s, link.Link, handle
		st.since, st.told = time.Time{}, false
		st.incarnation = incarnation
		st.granted, st.received, st.taken = r.window, 0, 0
		st.old = st.unreadBytes()
		st.startAssembly()
		s.attachLink(link.Link, st)
		st.placed()
	})
}

// Close ends the reader. A Next that waits returns ErrClosed.
func (r *Reader) Close() error {
	r.cancel()
	r.mu.Lock()
	r.fail(ErrClosed)
	for _, st := range r.streams {
		st.unlink()
	}
	r.mu.Unlock()
	r.wg.Wait()
	r.conn.mu.Lock()
	delete(r.conn.readers, r)
	r.conn.mu.Unlock()
	return nil
}
