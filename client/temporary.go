package client

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"iter"
	"strings"
	"sync"
	"time"

	"github.com/lockstepmq/lockstep/wire"
	"github.com/lockstepmq/lockstep/wire/inflate"
)

const (
	// takenBytes is how many bytes of a temporary queue are taken before the broker is told
	// at once; fewer are told with the next look of the keepalive.
	takenBytes = 64 << 10
	// MaxGrace is how long a temporary queue waits for its consumer at most.
	MaxGrace = wire.MaxTemporaryGraceMs * time.Millisecond
)

// TemporaryQueue is a queue in the memory of one broker that belongs to this Conn: whoever
// knows its name may send to it, with Conn.Send, over any broker; only this Conn receives.
// It ends with the connection that it was made on, or, with Grace, when that was lost for so
// long; with its broker it ends in any case. What is sent to it later fails with
// wire.CodeDestinationGone. All methods may be called concurrently.
type TemporaryQueue struct {
	conn   *Conn
	token  [16]byte
	grace  time.Duration
	accept func(*Record) // called by the session's reader instead of queueing; nil: queue

	gone   chan struct{} // closed with err
	signal chan struct{} // capacity 1, for one who waits in Receive; he passes it on

	mu       sync.Mutex // before a session's
	name     string
	session  *session // nil while there is none
	link     uint32
	next     wire.Offset // of the record that is received next
	ready    []*Record
	handed   wire.Offset   // everything below is with the application
	told     wire.Offset   // what the broker knows of that
	handedIn int           // bytes handed out and not told
	left     chan struct{} // made by Close; closed when the broker has removed the queue, or the session is lost
	removed  bool          // the broker has said so
	err      error
}

// TemporaryOption configures a TemporaryQueue.
type TemporaryOption func(*TemporaryQueue)

// Grace lets a temporary queue survive the loss of its connection for so long, at most
// MaxGrace: what is sent meanwhile waits in the broker. Default: not at all.
func Grace(d time.Duration) TemporaryOption { return func(q *TemporaryQueue) { q.grace = d } }

// Resume takes up a queue that another Conn has made, perhaps of a process that died, by
// its Key. What that one had taken within its last seconds may come again. That Conn, if it
// lives, gets nothing any more.
func Resume(key string) TemporaryOption {
	return func(q *TemporaryQueue) {
		name, token, _ := strings.Cut(key, "#")
		_, err := hex.Decode(q.token[:], []byte(token[:min(len(token), 2*len(q.token))]))
		if _, invalid := wire.ParseTemporaryName(name); err != nil || invalid != nil || len(token) != 2*len(q.token) {
			q.err = fmt.Errorf("option Resume: %.80q is no key of a temporary queue", key)
		}
		q.name = name
	}
}

// TemporaryQueue makes a temporary queue on the broker that the Conn is connected to.
// Errors: wire.CodeTooMany if the connection or the broker has as many as it may,
// wire.CodeDestinationGone if the one to Resume is not there any more, or ctx's.
func (c *Conn) TemporaryQueue(ctx context.Context, opts ...TemporaryOption) (*TemporaryQueue, error) {
	q := &TemporaryQueue{conn: c, token: newSessionID(), gone: make(chan struct{}), signal: make(chan struct{}, 1)}
	for _, opt := range opts {
		opt(q)
	}
	err := q.err
	if err == nil && (q.grace < 0 || q.grace > MaxGrace) {
		err = fmt.Errorf("option Grace: %v is not in [0, %v]", q.grace, MaxGrace)
	}
	if err == nil {
		err = q.begin(ctx)
	}
	if err != nil {
		return nil, fmt.Errorf("temporary queue: %w", err)
	}
	return q, nil
}

// begin makes the queue, or takes it up.
func (q *TemporaryQueue) begin(ctx context.Context) error {
	for {
		s, err := q.conn.session(ctx)
		if err != nil {
			return err
		}
		err = q.open(ctx, s)
		if err == nil || ctx.Err() != nil || !transient(codeOf(err)) && !sessionLost(err, &q.conn.options) {
			return err
		}
		if err := q.conn.pause(ctx, retryPause); err != nil {
			return err
		}
	}
}

// open attaches the queue to a session. If it fails, nothing is left of it there.
func (q *TemporaryQueue) open(ctx context.Context, s *session) error {
	q.mu.Lock()
	request := wire.TemporaryOpenRequest{Name: q.name, Token: q.token, GraceMs: uint32(q.grace.Milliseconds()), Next: q.handed}
	q.mu.Unlock()
	opened := &temporaryOpened{queue: q, done: make(chan error, 1)}
	if _, err := s.request(wire.OpTempOpen, &request, opened); err != nil {
		return err
	}
	select {
	case err := <-opened.done:
		return err
	case <-ctx.Done():
		q.mu.Lock()
		opened.unwanted = true
		q.mu.Unlock()
		select {
		case err := <-opened.done: // it was there first
			return err
		default:
			return ctx.Err()
		}
	}
}

// temporaryOpened waits for the answer to TEMPORARY_OPEN. It is called by the session's
// reader, so that the link is known before its first frame is looked at.
type temporaryOpened struct {
	queue    *TemporaryQueue
	done     chan error
	unwanted bool // guarded by queue.mu
}

func (o *temporaryOpened) answered(s *session, body []byte, err error) {
	var m wire.TemporaryOpenResponse
	if err == nil {
		err = m.Parse(body)
	}
	if err == nil {
		q := o.queue
		q.mu.Lock()
		if q.left != nil || o.unwanted {
			s.tell(wire.OpLinkClose, m.Link, &wire.LinkClose{})
			err = ErrClosed
		} else {
			q.session, q.link, q.name = s, m.Link, m.Name
			s.attachLink(m.Link, q)
		}
		q.mu.Unlock()
	}
	o.done <- err
}

func (o *temporaryOpened) lost(_ *session, err error) { o.done <- err }

// Name is where others send to.
func (q *TemporaryQueue) Name() string {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.name
}

// Key is what Resume needs. Who knows it can take the queue away; the Name can be given to
// everybody.
func (q *TemporaryQueue) Key() string { return q.Name() + "#" + hex.EncodeToString(q.token[:]) }

// Gone is closed when the queue has ended; Receive then says why.
func (q *TemporaryQueue) Gone() <-chan struct{} { return q.gone }

// Receive returns the next record, which belongs to the caller, and waits for one if need
// be. Errors: ctx's, after which Receive may be called again; anything else has ended the
// queue: wire.CodeDestinationGone, or ErrClosed.
func (q *TemporaryQueue) Receive(ctx context.Context) (*Record, error) {
	for {
		q.mu.Lock()
		if len(q.ready) > 0 {
			r := q.ready[0]
			if q.ready = q.ready[1:]; len(q.ready) == 0 {
				q.ready = nil
			} else {
				poke(q.signal)
			}
			q.hand(r)
			q.mu.Unlock()
			return r, nil
		}
		err := q.err
		q.mu.Unlock()
		if err != nil {
			return nil, err
		}
		select {
		case <-q.signal:
		case <-q.gone:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// Records yields records as Receive returns them. An error is yielded once and ends the
// loop.
func (q *TemporaryQueue) Records(ctx context.Context) iter.Seq2[*Record, error] {
	return func(yield func(*Record, error) bool) {
		for {
			r, err := q.Receive(ctx)
			if !yield(r, err) || err != nil {
				return
			}
		}
	}
}

// Close removes the queue, with what waits in it. When it returns nil the broker has done so,
// and whoever sends to it gets wire.CodeDestinationGone. Errors: ctx's; ErrDeliveryTimeout
// if the broker does not answer within 5 s; ErrDisconnected if there is no connection with it, and
// the queue waits there for its grace, or for the broker to notice. To call it again waits again.
func (q *TemporaryQueue) Close(ctx context.Context) error {
	q.mu.Lock()
	s, name := q.session, q.name
	gone := errors.Is(q.err, wire.CodeDestinationGone)
	if q.left == nil {
		q.left = make(chan struct{})
		if s != nil {
			s.tell(wire.OpLinkClose, q.link, &wire.LinkClose{})
		} else {
			close(q.left)
		}
	}
	left := q.left
	q.end(ErrClosed)
	q.mu.Unlock()
	t := time.NewTimer(goneTimeout)
	defer t.Stop()
	var err error
	select {
	case <-left:
		q.mu.Lock()
		if !q.removed && !gone {
			err = ErrDisconnected
		}
		q.mu.Unlock()
	case <-t.C:
		err = ErrDeliveryTimeout
	case <-ctx.Done():
		err = ctx.Err()
	}
	if err != nil {
		err = fmt.Errorf("closing the temporary queue %s: %w", name, err)
	}
	return err
}

// end says that there will be no other record. q.mu is held, as in hand and tell.
func (q *TemporaryQueue) end(err error) {
	if q.err == nil {
		q.err = err
		close(q.gone)
	}
}

// hand notes that the application has a record.
func (q *TemporaryQueue) hand(r *Record) {
	q.handed = wire.Offset(r.Offset) + 1
	if q.handedIn += len(r.Key) + len(r.Value) + 64; q.handedIn >= takenBytes {
		q.tell()
	}
}

// tell tells the broker what it may forget.
func (q *TemporaryQueue) tell() {
	if q.session != nil && q.told < q.handed {
		q.session.tell(wire.OpTempTaken, q.link, &wire.TemporaryTaken{Next: q.handed})
		q.told, q.handedIn = q.handed, 0
	}
}

// tellTaken lets the temporary queues of a session say what they have taken, and reports
// whether there are any.
func (s *session) tellTaken() bool {
	var queues []*TemporaryQueue
	s.mu.Lock()
	for _, l := range s.links {
		if q, ok := l.(*TemporaryQueue); ok {
			queues = append(queues, q)
		}
	}
	s.mu.Unlock()
	for _, q := range queues {
		q.mu.Lock()
		q.tell()
		q.mu.Unlock()
	}
	return len(queues) > 0
}

// frame implements member.
func (q *TemporaryQueue) frame(s *session, op wire.Opcode, body []byte) error {
	var m wire.TemporaryDeliver
	if op != wire.OpTempDeliver {
		return nil
	}
	if err := m.Parse(body); err != nil {
		return err
	}
	info, err := wire.VerifyBatch(m.Batch)
	if err != nil {
		return err
	}
	batch := bytes.Clone(m.Batch)
	section := wire.Records(batch)
	if info.Codec != NoCompression {
		if section, err = inflate.Records(nil, info.Codec, section); err != nil {
			return err
		}
	}
	var reader wire.RecordReader
	var view wire.Record
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.session != s || q.left != nil {
		return nil
	}
	reader.Reset(&info, section)
	for o := m.Base; reader.Next(&view); o++ {
		if o < q.next {
			continue // it came on the connection before
		}
		q.next = o + 1
		r := &Record{Key: view.Key, Value: view.Value, Attributes: view.Attributes, Timestamp: time.UnixMilli(view.TimestampMs), Offset: uint64(o)}
		if view.HeaderCount > 0 {
			r.Headers = view.AppendHeaders(nil)
		}
		if q.accept != nil {
			q.hand(r)
			q.accept(r)
			continue
		}
		q.ready = append(q.ready, r)
	}
	poke(q.signal)
	return reader.Err()
}

// closed implements link: the broker has ended the link, because its connection to the
// queue's node was lost, or because Close has asked for it.
func (q *TemporaryQueue) closed(s *session, err error) {
	q.mu.Lock()
	q.removed = q.session == s && q.left != nil && err == nil
	q.mu.Unlock()
	q.parted(s, err)
}

// lost implements link.
func (q *TemporaryQueue) lost(s *session) {
	s.mu.Lock()
	err := s.err
	s.mu.Unlock()
	q.parted(s, err)
}

// parted takes the queue up again if it has a grace, else it has ended.
func (q *TemporaryQueue) parted(s *session, err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.session != s {
		return
	}
	q.session = nil
	if q.left != nil {
		close(q.left)
		return
	}
	c := q.conn
	switch {
	case c.ctx.Err() != nil:
		q.end(ErrClosed)
	case q.grace == 0 || !c.options.reconnect:
		q.end(q.errGone(err))
	default:
		c.mu.Lock()
		closing := c.closing
		if !closing {
			c.wg.Add(1)
		}
		c.mu.Unlock()
		if closing {
			q.end(ErrClosed)
			return
		}
		go q.takeUp(err)
	}
}

// takeUp attaches the queue to another connection, as long as the broker keeps it.
func (q *TemporaryQueue) takeUp(why error) {
	c := q.conn
	defer c.wg.Done()
	ctx, cancel := context.WithTimeout(c.ctx, q.grace)
	defer cancel()
	err := q.begin(ctx)
	for err != nil && ctx.Err() == nil && sessionLost(err, &c.options) && c.pause(ctx, retryPause) == nil {
		err = q.begin(ctx) // without redirects there is an error while nobody is connected
	}
	if err == nil {
		return
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	switch {
	case c.ctx.Err() != nil:
		q.end(ErrClosed)
	case errors.Is(err, wire.CodeDestinationGone):
		q.end(err)
	default:
		q.end(q.errGone(fmt.Errorf("%w; then %w", why, err)))
	}
}

// errGone says why the queue has ended. q.mu is held.
func (q *TemporaryQueue) errGone(cause error) error {
	return wire.Errorf(wire.CodeDestinationGone, "temporary queue %s is gone: %v; make another one, and tell its name to those who are to send", q.name, cause)
}
