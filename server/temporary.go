package server

import (
	"bytes"
	"crypto/rand"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lockstepmq/lockstep/wire"
)

// temporaryWindow is how many bytes of a temporary queue are on their way to its consumer
// at most, one larger batch alone.
const temporaryWindow = 256 << 10

// temporaries are the temporary queues of this node. They are in its memory and nowhere
// else: the metadata does not know them, nothing is written, and when the process ends
// they are gone, all at once.
//
//	any node ── TEMPORARY_SEND, by the node in the name ──▶ queue ── outbox of the consumer's session
//
// A queue belongs to the session that has created it and goes with that session, or, if it
// was given a grace, when nobody with its token has taken it up again in time.
//
// All methods may be called on any goroutine. A queue's mutex comes before that of an
// outbox and before mu.
type temporaries struct {
	limits *Limits
	bytes  atomic.Int64 // of batches that wait, of all queues
	mutant temporaryMutant

	mu     sync.Mutex
	queues map[string]*temporaryQueue
	alone  int // queues without a session
}

// temporaryQueue is one of them. Batches wait from taken on; those below sent are on their
// way to the consumer:
//
//	taken ≤ sent ≤ next
type temporaryQueue struct {
	of    *temporaries
	name  string
	token [16]byte
	grace time.Duration

	mu       sync.Mutex
	gone     bool
	consumer *session // nil while its connection is lost
	link     uint32
	told     bool          // its client knows of the link: batches may go there
	lost     time.Duration // when the connection was lost
	batches  []temporaryBatch
	sent     int // of batches
	onWay    int // bytes of those
	bytes    int // of batches
	next     wire.Offset
}

type temporaryBatch struct {
	next  wire.Offset // behind its last record
	base  wire.Offset
	bytes []byte
}

// temporaryMutant takes a protection away, for the tests that must notice.
type temporaryMutant struct {
	immortal bool // queues stay when their connection ends
	unasked  bool // nobody asks for the token
	hoards   bool // there is no limit to what waits
}

// errTemporaryGone says that there is no such queue any more.
func errTemporaryGone(name string) error {
	return wire.Errorf(wire.CodeDestinationGone, "temporary queue %s is gone: the connection that it belonged to has ended, or its node was stopped; "+
		"nobody waits for what is sent there: drop it, and let who wants an answer ask again", name)
}

// create makes a queue for a session. Errors: TOO_MANY.
func (t *temporaries) create(node uint32, m *wire.TemporaryOpenRequest, s *session, link uint32) (*temporaryQueue, error) {
	var nonce [16]byte
	_, _ = rand.Read(nonce[:]) // it never fails
	q := &temporaryQueue{
		of: t, name: wire.TemporaryName(node, nonce), token: m.Token, consumer: s, link: link,
		grace: time.Duration(min(m.GraceMs, wire.MaxTemporaryGraceMs)) * time.Millisecond,
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.queues) >= t.limits.NodeTemporaryQueues {
		return nil, wire.Errorf(wire.CodeTooMany, "node %d has %d temporary queues, as many as one node may have: use one for all requests of a connection, or connect to another node", node, len(t.queues))
	}
	if t.queues == nil {
		t.queues = make(map[string]*temporaryQueue)
	}
	t.queues[q.name] = q
	return q, nil
}

// find returns a queue. Errors: DESTINATION_GONE.
func (t *temporaries) find(name string) (*temporaryQueue, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if q := t.queues[name]; q != nil {
		return q, nil
	}
	return nil, errTemporaryGone(name)
}

// len is how many there are.
func (t *temporaries) len() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.queues)
}

// count moves how many queues have no session.
func (t *temporaries) count(alone int) {
	t.mu.Lock()
	t.alone += alone
	t.mu.Unlock()
}

// take gives a queue to a session that knows its token. Who had it before gets nothing any
// more. Errors: NOT_OWNER, DESTINATION_GONE.
func (q *temporaryQueue) take(m *wire.TemporaryOpenRequest, s *session, link uint32) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	switch {
	case q.token != m.Token && !q.of.mutant.unasked:
		return wire.Errorf(wire.CodeNotOwner, "temporary queue %s belongs to another connection: only who has created it receives from it, everybody may send", q.name)
	case q.gone:
		return errTemporaryGone(q.name)
	case q.consumer == nil:
		defer q.of.count(-1)
	}
	q.consumer, q.link, q.told = s, link, false
	q.drop(m.Next)
	q.sent, q.onWay = 0, 0
	return nil
}

// begin delivers from here on: the session has told its client of the link.
func (q *temporaryQueue) begin(s *session, link uint32) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.consumer == s && q.link == link {
		q.told = true
		q.deliver()
	}
}

// leave takes a queue from a session, unless another one has it by now. It goes at once if
// it has no grace, or if the client is done with it.
func (q *temporaryQueue) leave(s *session, link uint32, now time.Duration, done bool) {
	q.mu.Lock()
	mine := q.consumer == s && q.link == link
	if mine {
		q.consumer, q.lost = nil, now
		q.gone = done || q.grace == 0 && !q.of.mutant.immortal
	}
	gone := q.gone
	q.mu.Unlock()
	if mine {
		q.of.count(1)
		if gone {
			q.remove()
		}
	}
}

// remove forgets a queue that is gone, with all that waits in it.
func (q *temporaryQueue) remove() {
	t := q.of
	t.mu.Lock()
	delete(t.queues, q.name)
	t.alone--
	t.mu.Unlock()
	q.mu.Lock()
	t.bytes.Add(-int64(q.bytes))
	q.batches, q.bytes, q.sent, q.onWay = nil, 0, 0, 0
	q.mu.Unlock()
}

// expire removes the queues that have waited for their consumer for as long as they may.
func (t *temporaries) expire(now time.Duration) {
	var alone []*temporaryQueue
	t.mu.Lock()
	if t.alone > 0 {
		for _, q := range t.queues {
			alone = append(alone, q)
		}
	}
	t.mu.Unlock()
	for _, q := range alone {
		q.mu.Lock()
		over := q.consumer == nil && !q.gone && now-q.lost >= q.grace && !q.of.mutant.immortal
		q.gone = q.gone || over // from here on nobody takes it
		q.mu.Unlock()
		if over {
			q.remove()
		}
	}
}

// append copies a batch into a queue. Errors: DESTINATION_GONE, PARTITION_FULL,
// MEMORY_FULL, and those of wire.ValidateBatch.
func (t *temporaries) append(name string, batch []byte) (wire.Offset, error) {
	q, err := t.find(name)
	if err != nil {
		return 0, err
	}
	info, err := wire.ValidateBatch(batch, nil, wire.BatchLimits{MaxRecordBytes: wire.DefaultMaxRecordBytes})
	if err != nil {
		return 0, err
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	switch {
	case q.gone:
		return 0, errTemporaryGone(name)
	case q.bytes > 0 && q.bytes+len(batch) > t.limits.TemporaryBytes && !t.mutant.hoards:
		return 0, wire.Errorf(wire.CodePartitionFull, "temporary queue %s holds %d bytes that its consumer has not taken; it may hold %d: wait until it does", name, q.bytes, t.limits.TemporaryBytes)
	case t.bytes.Add(int64(len(batch))) > int64(t.limits.NodeTemporaryBytes):
		t.bytes.Add(-int64(len(batch)))
		return 0, wire.Errorf(wire.CodeMemoryFull, "the temporary queues of the node hold %d bytes, as many as they may together: wait until their consumers take some", t.limits.NodeTemporaryBytes)
	}
	base := q.next
	q.next += wire.Offset(info.RecordCount)
	q.batches = append(q.batches, temporaryBatch{next: q.next, base: base, bytes: bytes.Clone(batch)})
	q.bytes += len(batch)
	q.deliver()
	return base, nil
}

// taken drops what the consumer on a link has, and sends what follows.
func (q *temporaryQueue) taken(s *session, link uint32, next wire.Offset) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.consumer == s && q.link == link && !q.gone {
		q.drop(next)
		q.deliver()
	}
}

// drop forgets the batches below an offset. q.mu is held, as in deliver.
func (q *temporaryQueue) drop(next wire.Offset) {
	n := 0
	for n < len(q.batches) && q.batches[n].next <= next {
		size := len(q.batches[n].bytes)
		q.bytes -= size
		q.of.bytes.Add(-int64(size))
		if n < q.sent {
			q.onWay -= size
		}
		n++
	}
	clear(q.batches[:n])
	if q.batches = q.batches[n:]; len(q.batches) == 0 {
		q.batches = nil
	}
	q.sent = max(0, q.sent-n)
}

// deliver sends what the window allows.
func (q *temporaryQueue) deliver() {
	for q.consumer != nil && q.told && q.sent < len(q.batches) {
		b := &q.batches[q.sent]
		if q.onWay > 0 && q.onWay+len(b.bytes) > temporaryWindow {
			return
		}
		q.sent++
		q.onWay += len(b.bytes)
		q.consumer.send(wire.Header{Opcode: wire.OpTempDeliver, Version: wire.OpTempDeliver.Version(), ID: q.link}, &wire.TemporaryDeliver{Base: b.base, Batch: b.bytes})
	}
}
