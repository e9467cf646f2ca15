package client

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lockstepmq/lockstep/wire"
)

// The headers of requests and replies. A server in another language copies the correlation
// ID and sends to where the reply is wanted; nothing else is asked of it.
const (
	ReplyToHeader     = "lockstep-reply-to"    // in a request: where the reply goes
	CorrelationHeader = "lockstep-correlation" // in both: which request it answers
	ErrorHeader       = "lockstep-error"       // in a reply: the request failed, and why
)

const (
	// inboxGrace is how long the inbox for replies survives the loss of its connection.
	inboxGrace = 10 * time.Second
	// maxSenders is how many producers a Conn keeps for requests and for Conn.Send.
	maxSenders = 64
	// maxErrorText is how much of an error travels in a reply, in bytes.
	maxErrorText = 4 << 10
)

// RequestError is what a server answered instead of a reply: the request was handled, and
// the handler has failed.
type RequestError struct {
	Text  string  // of the server
	Reply *Record // with its headers
}

func (e *RequestError) Error() string { return "the server answered with an error: " + e.Text }

// NoReplyError says that no reply has come in time. It unwraps to the error of the ctx. The
// request stays in the destination: a server may still handle it.
type NoReplyError struct {
	Destination string
	Receipt     Receipt // where the request is, if Stored
	Stored      bool    // the broker has it
	Err         error   // of the ctx
}

func (e *NoReplyError) Error() string {
	if !e.Stored {
		return fmt.Sprintf("no reply from %q: it is not known whether the request was stored: %v", e.Destination, e.Err)
	}
	return fmt.Sprintf("no reply from %q in time: the request is stored at partition %d offset %d, and nobody has answered it: %v", e.Destination, e.Receipt.Partition, e.Receipt.Offset, e.Err)
}

func (e *NoReplyError) Unwrap() error { return e.Err }

// RequestStats counts what became of the requests of a Conn.
type RequestStats struct {
	Late    uint64 // replies that nobody waited for: too late, or a second one
	Resent  uint64 // requests that were sent again, because the broker with the inbox was lost
	Waiting int    // requests without a reply
}

// requester is what a Conn keeps for requests: one inbox for all replies, told apart by
// their correlation IDs.
//
//	Request ──producer──▶ destination ──▶ server ──Conn.Send──▶ inbox ──accept──▶ Request
type requester struct {
	late, resent atomic.Uint64

	mu      sync.Mutex // before no other
	inbox   *TemporaryQueue
	opening chan struct{} // closed when somebody has tried to open one; nil: nobody does
	prefix  string        // of correlation IDs
	number  uint64
	waiting map[string]chan *Record // by correlation ID; each has room for one

	senders map[string]*sender
}

// sender is a producer that requests share.
type sender struct {
	producer *Producer
	users    int
	worked   bool // it has sent something: its destination was there
	dropped  bool // who is the last user closes it
}

// Request sends a record to a destination and waits for the reply of whoever serves it (see
// Serve), as long as ctx allows. The reply belongs to the caller.
//
// The request is stored like any record and handled at least once. If the broker that has
// the inbox is lost meanwhile, it is sent again with another inbox: then it may be handled
// twice. A reply that comes after Request has returned is counted and dropped.
//
// Errors: a *RequestError if the server answered with an error; a *NoReplyError when ctx is
// done; or those of Producer.Send.
func (c *Conn) Request(ctx context.Context, destination string, r *Record) (*Record, error) {
	q := &c.requests
	request := *r
	for again := false; ; again = true {
		inbox, err := c.inbox(ctx)
		if err != nil {
			return nil, fmt.Errorf("request to %q: %w", destination, err)
		}
		if again {
			q.resent.Add(1)
		}
		id, reply := q.expect()
		request.Headers = append(slices.Clip(r.Headers), Header{Key: ReplyToHeader, Value: []byte(inbox.Name())}, Header{Key: CorrelationHeader, Value: []byte(id)})
		answer, err := c.exchange(ctx, destination, &request, reply, inbox.gone)
		q.forget(id)
		switch {
		case errors.Is(err, errInboxGone) && c.ctx.Err() == nil:
			continue
		case errors.Is(err, errInboxGone):
			err = ErrClosed
		}
		if err != nil {
			var late *NoReplyError
			if errors.As(err, &late) {
				return nil, err
			}
			return nil, fmt.Errorf("request to %q: %w", destination, err)
		}
		if text, failed := headerOf(answer, ErrorHeader); failed {
			return nil, &RequestError{Text: string(text), Reply: answer}
		}
		return answer, nil
	}
}

// errInboxGone says that the reply can not come any more. It does not leave Request.
var errInboxGone = errors.New("the inbox is gone")

// exchange sends a request and waits for the reply.
func (c *Conn) exchange(ctx context.Context, destination string, request *Record, reply <-chan *Record, gone <-chan struct{}) (*Record, error) {
	for {
		s, err := c.sender(ctx, destination)
		if err != nil {
			return nil, err
		}
		ticket, failed := s.producer.SendAsync(ctx, request)
		var answer *Record
		if err = failed; err == nil {
			answer, err = ticket.reply(ctx, destination, reply, gone)
			select {
			case <-ticket.done:
				failed = ticket.err
			default: // the reply was faster, or nobody waits any more: the record goes its way
			}
		}
		if again := c.release(destination, s, failed); !again || !errors.Is(err, failed) {
			return answer, err
		}
	}
}

// reply waits for the reply to a request.
func (t *Ticket) reply(ctx context.Context, destination string, reply <-chan *Record, gone <-chan struct{}) (*Record, error) {
	stored := t.done
	for {
		select {
		case answer := <-reply:
			return answer, nil
		case <-stored:
			if t.err != nil {
				return nil, t.err
			}
			stored = nil
		case <-gone:
			return nil, errInboxGone
		case <-ctx.Done():
			return nil, &NoReplyError{Destination: destination, Receipt: t.receiptOf(stored == nil), Stored: stored == nil, Err: ctx.Err()}
		}
	}
}

// receiptOf is the receipt of a ticket that is done.
func (t *Ticket) receiptOf(done bool) Receipt {
	if !done {
		return Receipt{}
	}
	return t.receipt
}

// RequestStats counts what became of the requests so far.
func (c *Conn) RequestStats() RequestStats {
	q := &c.requests
	q.mu.Lock()
	defer q.mu.Unlock()
	return RequestStats{Late: q.late.Load(), Resent: q.resent.Load(), Waiting: len(q.waiting)}
}

// expect makes a correlation ID and waits for its reply.
func (q *requester) expect() (id string, reply chan *Record) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.prefix == "" {
		var b [8]byte
		rand.Read(b[:])
		q.prefix, q.waiting = hex.EncodeToString(b[:])+"-", make(map[string]chan *Record)
	}
	q.number++
	id, reply = q.prefix+strconv.FormatUint(q.number, 10), make(chan *Record, 1)
	q.waiting[id] = reply
	return id, reply
}

func (q *requester) forget(id string) {
	q.mu.Lock()
	delete(q.waiting, id)
	q.mu.Unlock()
}

// accept takes what comes to the inbox. It is called by a session's reader.
func (q *requester) accept(r *Record) {
	id, _ := headerOf(r, CorrelationHeader)
	q.mu.Lock()
	reply := q.waiting[string(id)]
	delete(q.waiting, string(id))
	q.mu.Unlock()
	if reply == nil {
		q.late.Add(1)
		return
	}
	reply <- r
}

// inbox is where the replies of this Conn go. The first request makes it, and the first one
// after it has ended.
func (c *Conn) inbox(ctx context.Context) (*TemporaryQueue, error) {
	q := &c.requests
	for {
		q.mu.Lock()
		if q.inbox != nil {
			select {
			case <-q.inbox.gone:
				q.inbox = nil
			default:
				inbox := q.inbox
				q.mu.Unlock()
				return inbox, nil
			}
		}
		if opening := q.opening; opening != nil {
			q.mu.Unlock()
			select {
			case <-opening:
			case <-ctx.Done():
				return nil, ctx.Err()
			}
			continue
		}
		q.opening = make(chan struct{})
		q.mu.Unlock()
		inbox, err := c.TemporaryQueue(ctx, Grace(inboxGrace), func(t *TemporaryQueue) { t.accept = q.accept })
		q.mu.Lock()
		if err == nil {
			q.inbox = inbox
		}
		close(q.opening)
		q.opening = nil
		q.mu.Unlock()
		if err != nil {
			return nil, err
		}
	}
}

// Send sends one record to any destination, a temporary queue among them, over a producer
// that the Conn keeps for the name; if the destination is deleted and made again, the next
// record goes to the new one, and so does one that was on its way. It waits for the receipt,
// which for a temporary queue has the offset alone. To a temporary queue a record is sent again when a connection breaks, so that
// it may come twice. Errors: those of Producer.Send; wire.CodeDestinationGone if the temporary
// queue has ended, wire.CodePartitionFull if it is full.
func (c *Conn) Send(ctx context.Context, destination string, r *Record) (Receipt, error) {
	if wire.IsTemporary(destination) {
		return c.sendTemporary(ctx, destination, r)
	}
	for {
		s, err := c.sender(ctx, destination)
		if err != nil {
			return Receipt{}, &SendError{Outcome: NotSent, Err: err}
		}
		receipt, err := s.producer.Send(ctx, r)
		if again := c.release(destination, s, err); !again {
			return receipt, err
		}
	}
}

// sendTemporary sends a record to a temporary queue: straight to its node if there is a
// session with it, else over the home.
func (c *Conn) sendTemporary(ctx context.Context, name string, r *Record) (Receipt, error) {
	node, err := wire.ParseTemporaryName(name)
	if err == nil {
		err = ctx.Err()
	}
	if err == nil && wire.EncodedSizeBound(r.Key, r.Value, r.Headers) > wire.DefaultMaxRecordBytes {
		err = fmt.Errorf("%w: a temporary queue takes up to %d bytes", ErrRecordTooLarge, wire.DefaultMaxRecordBytes)
	}
	if err != nil {
		return Receipt{}, &SendError{Outcome: NotSent, Err: err}
	}
	at := r.Timestamp
	if at.IsZero() {
		at = time.Now()
	}
	var builder wire.BatchBuilder
	if !builder.Append(at.UnixMilli(), r.Attributes, r.Key, r.Value, r.Headers, 0) {
		return Receipt{}, &SendError{Outcome: NotSent, Err: ErrRecordTooLarge}
	}
	batch, _ := builder.Finish(wire.ProducerIdentity{ID: wire.NoProducerID}, 0, NoCompression, nil)
	request := wire.TemporarySendRequest{Name: name, Batch: batch}
	var response wire.TemporarySendResponse
	if s := c.sessionTo(node); s != nil {
		err = s.send(wire.OpTempSend, &request).wait(ctx, &response)
		if code := codeOf(err); err == nil || ctx.Err() != nil || !sessionLost(err, &c.options) && !transient(code) {
			return temporaryReceipt(&response, err)
		}
	}
	open := err != nil && !codeOf(err).Rejected()
	if err = c.do(ctx, wire.OpTempSend, &request, &response, true); err != nil && open {
		err = &openError{err}
	}
	return temporaryReceipt(&response, err)
}

func temporaryReceipt(m *wire.TemporarySendResponse, err error) (Receipt, error) {
	if err == nil {
		return Receipt{Offset: uint64(m.Base)}, nil
	}
	outcome := Unknown
	if nowhere(err) {
		outcome = NotSent
	}
	return Receipt{}, &SendError{Outcome: outcome, Err: err}
}

// nowhere reports whether the answer to TEMPORARY_SEND says that the batch is in no queue.
func nowhere(err error) bool {
	code := codeOf(err)
	return code == wire.CodeDestinationGone || code.Rejected() && !wasOpen(err)
}

// sender finds or makes the producer for a destination. Whoever gets it gives it back with
// release.
func (c *Conn) sender(ctx context.Context, destination string) (*sender, error) {
	q := &c.requests
	q.mu.Lock()
	s := q.senders[destination]
	if s != nil {
		s.users++
	}
	q.mu.Unlock()
	if s != nil {
		return s, nil
	}
	p, err := c.newProducer(ctx, destination, nil)
	if err != nil {
		return nil, err
	}
	s = &sender{producer: p, users: 1}
	var idle *sender
	q.mu.Lock()
	if other := q.senders[destination]; other != nil { // somebody was faster
		s, idle = other, s
		s.users++
	} else {
		if q.senders == nil {
			q.senders = make(map[string]*sender)
		}
		for name, x := range q.senders {
			if len(q.senders) < maxSenders {
				break
			}
			if x.users == 0 {
				delete(q.senders, name)
				idle = x
			}
		}
		q.senders[destination] = s
	}
	q.mu.Unlock()
	if idle != nil {
		idle.close()
	}
	return s, nil
}

// release gives a sender back. One that has failed is not used again; again says that another
// one may send the record: the destination or alias that the sender has worked for is gone, there
// may be a new one of its name, and the record is in none that is left.
func (c *Conn) release(destination string, s *sender, err error) (again bool) {
	q := &c.requests
	q.mu.Lock()
	s.users--
	var e *SendError
	switch code := codeOf(err); {
	case err == nil:
		s.worked = true
	case errors.Is(err, ErrAliasMoved):
		again = s.worked && errors.As(err, &e) && e.Outcome == NotSent
	case code == wire.CodeUnknownDestination, code == wire.CodeDestinationGone:
		again = s.worked // where it may have been stored is deleted
	}
	if err != nil && !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded) && !s.dropped {
		s.dropped = true
		if q.senders[destination] == s {
			delete(q.senders, destination)
		}
	}
	over := s.dropped && s.users == 0
	q.mu.Unlock()
	if over {
		s.close()
	}
	return again
}

// close ends a producer that nobody uses: for what it has not sent nobody waits.
func (s *sender) close() {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_ = s.producer.Close(ctx)
}

// headerOf returns the first header of a record with a name.
func headerOf(r *Record, name string) (value []byte, ok bool) {
	for i := range r.Headers {
		if r.Headers[i].Key == name {
			return r.Headers[i].Value, true
		}
	}
	return nil, false
}
