package server

import (
	"bytes"
	"math"
	"sync"

	"github.com/lockstepmq/lockstep/log"
	"github.com/lockstepmq/lockstep/wire"
)

// Limits of requests between nodes.
const (
	// peerCallLimit bounds the requests to one node that wait for their answer, and
	// those of one node that are being answered. Beyond it: BUSY.
	peerCallLimit = 1024
	// peerCallTicks is how long an answer may take, and how long a transfer may stand
	// still: 30 s. Then TIMEOUT.
	peerCallTicks = 300
	// peerTransferBytes bounds the answer to one request: any checkpoint that can be
	// written can be sent. Longer: TOO_LARGE.
	peerTransferBytes = log.MaxCheckpointBytes

	// peerAbandon is the ACK of who wants no more of a transfer.
	peerAbandon = math.MaxUint64
)

// peerReply is called once with the answer to a request, on any goroutine, and must
// not block. body is the callee's; with a code other than OK it is a text for people.
// UNAVAILABLE and TIMEOUT say nothing of whether the request was carried out.
type peerReply func(code wire.ErrorCode, body []byte)

// peerCall is a request that waits for its answer.
type peerCall struct {
	then     peerReply
	deadline uint32 // tick
	data     []byte // of the chunks so far
}

// peerCalls are the requests on one connection, which die with it: what was asked on
// one is never answered on another. Any goroutine.
type peerCalls struct {
	set *peerSet

	mu      sync.Mutex
	last    uint32 // number of the last request
	waiting map[uint32]*peerCall
	ended   bool

	answering int // requests of the other node that the handler has
}

// Request asks another node. It does not block.
func (p *peerSet) Request(node uint32, op wire.PeerOp, body []byte, then func(code wire.ErrorCode, body []byte)) {
	c := p.connTo(node)
	if c == nil {
		then(wire.CodeUnavailable, []byte("the node is not connected"))
		return
	}
	q := &c.calls
	q.mu.Lock()
	if q.ended || len(q.waiting) >= peerCallLimit {
		code := wire.CodeBusy
		if q.ended {
			code = wire.CodeUnavailable
		}
		q.mu.Unlock()
		then(code, []byte("the node cannot be asked now"))
		return
	}
	if q.waiting == nil {
		q.waiting = make(map[uint32]*peerCall)
	}
	for q.last++; q.last == 0 || q.waiting[q.last] != nil; q.last++ {
	}
	number := q.last
	q.waiting[number] = &peerCall{then: then, deadline: p.tick.Load() + peerCallTicks}
	q.mu.Unlock()
	p.counters.requests.Add(1)
	if !c.sendNumbered(peerUrgent, wire.PeerKindRequest, number, &wire.PeerRequest{Op: op, Body: body}) {
		q.finish(number, wire.CodeBusy, []byte("too much waits for the node"))
	}
}

// finish answers one request, if it still waits.
func (q *peerCalls) finish(number uint32, code wire.ErrorCode, body []byte) {
	q.mu.Lock()
	call := q.waiting[number]
	delete(q.waiting, number)
	q.mu.Unlock()
	if call != nil {
		call.then(code, body)
	}
}

// end answers all that wait; nothing is asked any more.
func (q *peerCalls) end(code wire.ErrorCode, detail string) {
	q.mu.Lock()
	waiting := q.waiting
	q.waiting, q.ended = nil, true
	q.mu.Unlock()
	for _, call := range waiting {
		call.then(code, []byte(detail))
	}
}

// expire answers those that have waited for too long.
func (q *peerCalls) expire(tick uint32) {
	var late []uint32
	q.mu.Lock()
	for number, call := range q.waiting {
		if tick > call.deadline {
			late = append(late, number)
		}
	}
	q.mu.Unlock()
	for _, number := range late {
		q.finish(number, wire.CodeTimeout, []byte("the node has not answered within 30 s"))
	}
}

// responded takes the answer to a request of ours. Loop only, as all below.
func (c *peerConn) responded(number uint32, m *wire.PeerResponse) {
	c.calls.finish(number, m.Code, bytes.Clone(m.Body))
}

// chunk takes a piece of the answer to a request of ours. One that does not fit ends
// the transfer: whoever wants it asks again.
func (c *peerConn) chunk(number uint32, body []byte) {
	var m wire.PeerChunk
	err := m.Parse(body)
	q := &c.calls
	q.mu.Lock()
	call := q.waiting[number]
	if call == nil {
		q.mu.Unlock()
		c.set.counters.strayChunks.Add(1)
		c.sendNumbered(peerUrgent, wire.PeerKindAck, number, &wire.PeerAck{Offset: peerAbandon})
		return
	}
	switch have := uint64(len(call.data)); {
	case c.set.mutant.anyChunk:
		err = nil
	case err != nil:
	case m.Offset != have:
		err = wire.Errorf(wire.CodeMalformed, "peer CHUNK at %d, where %d is next", m.Offset, have)
	case have+uint64(len(m.Data)) > peerTransferBytes:
		err = wire.Errorf(wire.CodeTooLarge, "a transfer has more than %d bytes", peerTransferBytes)
	case len(m.Data) == 0 && !m.Last:
		err = wire.Errorf(wire.CodeMalformed, "peer CHUNK at %d is empty and not the last", m.Offset)
	}
	if err != nil {
		q.mu.Unlock()
		c.set.counters.badTransfers.Add(1)
		c.sendNumbered(peerUrgent, wire.PeerKindAck, number, &wire.PeerAck{Offset: peerAbandon})
		q.finish(number, wire.CodeOf(err), []byte(err.Error()))
		return
	}
	call.data = append(call.data, m.Data...)
	call.deadline = c.set.tick.Load() + peerCallTicks
	offset, data := uint64(len(call.data)), call.data
	q.mu.Unlock()
	c.sendNumbered(peerUrgent, wire.PeerKindAck, number, &wire.PeerAck{Offset: offset})
	if m.Last {
		q.finish(number, wire.CodeOK, data)
	}
}

// transferOut is an answer that travels in chunks.
type transferOut struct {
	body        []byte
	sent, acked int
}

// requested hands a request of the other node to the handler.
func (c *peerConn) requested(number uint32, m *wire.PeerRequest) {
	q := &c.calls
	q.mu.Lock()
	busy := q.answering >= peerCallLimit
	if !busy {
		q.answering++
	}
	q.mu.Unlock()
	switch {
	case busy:
		c.respond(number, wire.CodeBusy, []byte("too many requests of this node wait for their answer"))
		return
	case !m.Op.Known():
		c.answered(number, wire.CodeUnsupported, []byte("unknown request; upgrade this broker"))
		return
	}
	once := sync.Once{}
	c.set.handler.Request(c.node.id, m.Op, bytes.Clone(m.Body), func(code wire.ErrorCode, body []byte) {
		once.Do(func() { c.answered(number, code, body) })
	})
}

// answered sends the handler's answer. Any goroutine.
func (c *peerConn) answered(number uint32, code wire.ErrorCode, body []byte) {
	c.calls.mu.Lock()
	c.calls.answering--
	c.calls.mu.Unlock()
	switch {
	case code != wire.CodeOK || len(body) <= wire.PeerChunkBytes:
		c.respond(number, code, body)
	case len(body) > peerTransferBytes:
		c.respond(number, wire.CodeTooLarge, []byte("the answer is too long"))
	default:
		c.loop.post(func() {
			if c.phase != peerOpen {
				return
			}
			if c.outgoing == nil {
				c.outgoing = make(map[uint32]*transferOut)
			}
			t := &transferOut{body: body}
			c.outgoing[number] = t
			c.sendChunks(number, t)
		})
	}
}

func (c *peerConn) respond(number uint32, code wire.ErrorCode, body []byte) {
	c.sendNumbered(peerUrgent, wire.PeerKindResponse, number, &wire.PeerResponse{Code: code, Body: body})
}

// sendChunks fills the window of a transfer.
func (c *peerConn) sendChunks(number uint32, t *transferOut) {
	for t.sent < len(t.body) && t.sent-t.acked < wire.PeerChunkWindow*wire.PeerChunkBytes {
		n := min(len(t.body)-t.sent, wire.PeerChunkBytes)
		m := wire.PeerChunk{Offset: uint64(t.sent), Last: t.sent+n == len(t.body), Data: t.body[t.sent : t.sent+n]}
		if !c.sendNumbered(peerBulk, wire.PeerKindChunk, number, &m) {
			delete(c.outgoing, number)
			c.respond(number, wire.CodeBusy, []byte("too much waits for this node"))
			return
		}
		t.sent += n
	}
}

// acked takes how far the other node has a transfer of ours.
func (c *peerConn) acked(number uint32, offset uint64) {
	t := c.outgoing[number]
	switch {
	case t == nil:
	case offset > uint64(t.sent), offset == uint64(len(t.body)):
		delete(c.outgoing, number) // abandoned or done
	case offset > uint64(t.acked):
		t.acked = int(offset)
		c.sendChunks(number, t)
	}
}
