package server

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/panjf2000/gnet/v2"
	"golang.org/x/sys/unix"

	"github.com/lockstepmq/lockstep/replication"
	"github.com/lockstepmq/lockstep/wire"
)

const (
	// peerUnsentBytes is how much a socket to another node takes beyond what the
	// other's window lets it send: enough for a burst, little enough that heartbeats
	// do not wait behind it.
	peerUnsentBytes = 1 << 20
	// peerBatchBytes is what one look at the queue takes, and peerTurnBytes what a
	// connection writes in one turn of its loop.
	peerBatchBytes = 256 << 10
	peerTurnBytes  = 1 << 20
	// peerDialTimeout bounds a connection attempt, and then its handshake: a stopped
	// process accepts connections and does not answer.
	peerDialTimeout = time.Second
)

// peerPhase is how far a connection to another node has come. It only moves forward.
type peerPhase uint8

const (
	peerPreface peerPhase = iota // accepted: nothing has arrived
	peerHello                    // accepted: the preface has; HELLO must follow
	peerWelcome                  // dialled: HELLO is out; WELCOME or REFUSED must follow
	peerOpen                     // frames both ways
	peerClosing                  // REFUSED is on its way out
	peerClosed
)

// peerConn is one connection to another node.
//
//	accepted: preface ──▶ HELLO ──▶ WELCOME ──▶ open ──▶ closed
//	                        └─────▶ REFUSED ──▶ closed
//	dialled:  HELLO ──▶ WELCOME ──▶ open ──▶ closed
//
// Nothing but the handshake flows before WELCOME, so no frame is ever on a
// connection that turns out to be one too many. Bytes are handled as in a session:
// whole frames where they lie in the loop's read buffer, of others what has arrived
// is kept. Everything here is done by the connection's loop, except where it says
// otherwise.
type peerConn struct {
	connBase
	set     *peerSet
	release func() // gives the place at the acceptor back; once
	conn    gnet.Conn
	remote  string

	phase  peerPhase
	node   *peerNode // once it is known
	theirs wire.PeerHello
	cause  error

	// outcome gets how a dialled connection's handshake ended, once. nil for accepted ones.
	outcome chan error

	rest *buffer // of a frame that has not arrived completely
	need int     // bytes that rest must have to go on

	heard  atomic.Uint32 // highest tick of the other node
	queue  peerQueue
	batch  peerBatch
	openAt time.Duration

	successor *session // that serves the connection, if it is a client's that another node forwards

	// Scratch.
	decoder replication.Decoder
	beats   wire.PeerBeats
	leaders wire.PeerLeaders

	outgoing map[uint32]*transferOut // answers in chunks that we send, by number
	calls    peerCalls
}

var (
	errPeerReplaced  = errors.New("another connection between the two nodes is kept")
	errPeerHandshake = errors.New("the handshake took too long")
	errPeerStopped   = errors.New("the broker stops")
	errPeerSilent    = fmt.Errorf("it has not heard us for %v", silentTicks*tickPeriod)
	errPeerRemoved   = errors.New("the node is no member any more")
)

// newPeerConn makes the peer side of an accepted connection, or of one that was
// dialled to node.
func newPeerConn(p *peerSet, conn net.Conn, node *peerNode, released func()) *peerConn {
	c := &peerConn{set: p, remote: conn.RemoteAddr().String(), node: node}
	c.fd, c.timer.conn = -1, c
	c.calls.set = p
	if node != nil {
		c.outcome = make(chan error, 1)
	}
	c.release = func() {
		c.release = func() {}
		released()
	}
	return c
}

// open implements loopConn.
func (c *peerConn) open(l *loop, conn gnet.Conn) {
	defer c.recovered("opening")
	c.loop, c.conn, c.fd = l, conn, conn.Fd()
	c.openAt = l.now
	_ = unix.SetsockoptInt(c.fd, unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, peerUnsentBytes)
	c.set.counters.open.Add(1)
	c.set.engine.counters.peers.Add(1)
	c.opened.Store(true)
	timeout := c.set.engine.limits.HandshakeTimeout
	if c.outcome != nil {
		timeout = peerDialTimeout
	}
	l.wheel.schedule(&c.timer, c.openAt+timeout)
	if c.outcome == nil {
		return
	}
	c.phase = peerWelcome
	hello, ok := c.node.beginHandshake(c)
	if !ok {
		c.close(errPeerReplaced)
		return
	}
	b := newBuffer(wire.MaxHandshakeFrameBytes)
	b.bytes = append(b.bytes, wire.PeerPreface...)
	b.bytes = wire.AppendPeerFrame(b.bytes, wire.PeerKindHello, 0, &hello)
	c.put(peerUrgent, peerFrame{head: b, size: len(b.bytes)})
}

// recovered ends the connection, and only it, when a callback panics.
func (c *peerConn) recovered(where string) {
	if r := recover(); r != nil {
		c.set.engine.panicked("connection to node at "+c.remote+" while "+where, r)
		c.close(fmt.Errorf("panic while %s", where))
	}
}

// traffic implements loopConn.
func (c *peerConn) traffic(in []byte) {
	defer c.recovered("reading")
	c.set.counters.bytesIn.Add(uint64(len(in)))
	for len(in) > 0 && c.phase < peerClosing {
		if c.rest == nil {
			used, size := c.frame(in)
			if used == 0 {
				c.need = size
				c.keep(in)
				return
			}
			in = in[used:]
			continue
		}
		n := min(max(c.need-c.rest.size(), 0), len(in))
		c.keep(in[:n])
		in = in[n:]
		if c.rest.size() < c.need {
			return
		}
		used, size := c.frame(c.rest.bytes)
		if used == 0 {
			c.need = size
			continue
		}
		c.rest.free()
		c.rest = nil
	}
	if c.successor != nil {
		c.successor.traffic(in)
	}
}

// keep appends bytes to rest, which grows with what has arrived. Of a frame on an open
// connection a quarter must be there before all of it gets room: a message of 1 MiB
// comes in several reads and would be copied with each doubling.
func (c *peerConn) keep(in []byte) {
	if c.phase >= peerClosing || len(in) == 0 {
		return
	}
	n := len(in)
	if have := c.rest.size() + n; c.phase == peerOpen && have < c.need && 4*have >= c.need {
		n = c.need - c.rest.size()
	}
	c.rest = c.rest.room(n)
	c.rest.bytes = append(c.rest.bytes, in...)
}

// frame handles the frame at the start of b if it is there completely, and returns
// its size. Otherwise it returns how many bytes must be there to go on, or has ended
// the connection.
func (c *peerConn) frame(b []byte) (used, size int) {
	if c.phase == peerPreface {
		return c.preface(b)
	}
	h, err := wire.ParsePeerHeader(b)
	switch {
	case errors.Is(err, wire.ErrHeaderShort):
		return 0, wire.HeaderSize
	case err != nil:
		c.bad(err)
		return 0, 0
	case c.phase != peerOpen && h.Length > wire.MaxHandshakeFrameBytes:
		c.bad(wire.Errorf(wire.CodeTooLarge, "frame length %d is above the %d bytes allowed before WELCOME", h.Length, wire.MaxHandshakeFrameBytes))
		return 0, 0
	}
	size = h.TotalSize()
	if len(b) < size {
		return 0, size
	}
	body := b[wire.HeaderSize:size:size]
	c.set.counters.framesIn.Add(1)
	switch c.phase {
	case peerHello:
		err = c.takeHello(h, body)
	case peerWelcome:
		err = c.takeWelcome(h, body)
	default:
		err = c.dispatch(h, body)
	}
	if err != nil {
		c.bad(err)
	}
	return size, size
}

// preface handles what must come first on an accepted connection.
func (c *peerConn) preface(b []byte) (used, size int) {
	n := min(len(b), len(wire.PeerPreface))
	switch start := string(b[:n]); {
	case start == wire.PeerPreface[:n], start == wire.ForwardPreface[:n]:
		if n < len(wire.PeerPreface) {
			return 0, len(wire.PeerPreface)
		}
		if start == wire.ForwardPreface {
			if !c.forwarded() {
				c.close(errForwardedMany)
				return 0, 0
			}
			return n, 0
		}
	case start == wire.Preface[:n] && c.set.mutant.anyPreface:
	case start == wire.Preface[:n]:
		c.bad(fmt.Errorf("that is the protocol of the port for clients; clients connect to %s", c.set.self.ClientAddress))
		return 0, 0
	default:
		c.bad(fmt.Errorf("not the peer protocol: %s", guessProtocol(b)))
		return 0, 0
	}
	c.phase = peerHello
	return n, 0
}

// bad ends the connection because of what the other side sent.
func (c *peerConn) bad(err error) {
	c.set.counters.badInput.Add(1)
	c.set.engine.bad.log("bad input on the peer port", slog.String("address", c.remote), slog.Any("cause", err))
	c.close(err)
}

// takeHello answers the HELLO of another node.
func (c *peerConn) takeHello(h wire.PeerHeader, body []byte) error {
	if h.Kind != wire.PeerKindHello {
		return wire.Errorf(wire.CodeMalformed, "peer %v before HELLO", h.Kind)
	}
	if err := c.theirs.Parse(body); err != nil {
		return err
	}
	welcome, refused := c.set.admit(c)
	if refused != nil {
		c.phase = peerClosing
		c.cause = fmt.Errorf("refused: %s", refused.Detail)
		if refused.Code != wire.CodeDuplicate {
			c.set.counters.refused.Add(1)
		}
		switch refused.Code {
		case wire.CodeDuplicate:
		case wire.CodeNotMember: // it has joined, and this node has not heard of it; or it was removed, and learns that now
			c.set.logger.Debug("a node's connection is refused", "address", c.remote, "node", c.theirs.Node, "reason", refused.Detail)
		default:
			c.set.engine.bad.log("a node's connection is refused", slog.String("address", c.remote), slog.Int("node", int(c.theirs.Node)),
				slog.Any("reason", refused.Detail))
		}
		c.send(wire.PeerKindRefused, refused)
		return nil
	}
	c.phase = peerOpen
	c.send(wire.PeerKindWelcome, welcome)
	c.node.opened(c)
	return nil
}

// takeWelcome handles the answer to our HELLO.
func (c *peerConn) takeWelcome(h wire.PeerHeader, body []byte) error {
	switch h.Kind {
	case wire.PeerKindRefused:
		var m wire.PeerRefused
		if err := m.Parse(body); err != nil {
			return err
		}
		c.close(&wire.Error{Code: m.Code, Detail: m.Detail})
		return nil
	case wire.PeerKindWelcome:
	default:
		return wire.Errorf(wire.CodeMalformed, "peer %v instead of WELCOME", h.Kind)
	}
	if err := c.theirs.Parse(body); err != nil {
		return err
	}
	if err := c.set.check(c.node, &c.theirs); err != nil {
		return err
	}
	if !c.node.welcomed(c) {
		c.close(errPeerReplaced)
		return nil
	}
	c.phase = peerOpen
	c.tell(nil)
	c.node.opened(c)
	return nil
}

// tell tells the dialer how the handshake ended.
func (c *peerConn) tell(err error) {
	if c.outcome != nil {
		select {
		case c.outcome <- err:
		default: // it has been told
		}
	}
}

// send queues a frame that is only a message. Any goroutine. It reports false if the
// queue is full or closed.
func (c *peerConn) send(kind wire.PeerKind, m wire.Message) bool {
	return c.sendNumbered(peerUrgent, kind, 0, m)
}

func (c *peerConn) sendNumbered(class peerClass, kind wire.PeerKind, number uint32, m wire.Message) bool {
	b := newBuffer(minPeerFrame)
	b.bytes = wire.AppendPeerFrame(b.bytes, kind, number, m)
	return c.put(class, peerFrame{head: b, size: len(b.bytes)})
}

// minPeerFrame is the room that a frame gets at first.
const minPeerFrame = 256

// put queues a frame and frees it if the queue does not take it. Any goroutine.
func (c *peerConn) put(class peerClass, f peerFrame) bool {
	taken, notify := c.queue.put(class, f)
	if !taken {
		f.free()
	}
	if notify {
		c.loop.push(c)
	}
	return taken
}

// turn implements loopConn: it writes what waits.
func (c *peerConn) turn() {
	defer c.recovered("writing")
	for budget := peerTurnBytes; c.phase != peerClosed; {
		if len(c.batch.slices) == 0 {
			c.finishBatch()
			if budget <= 0 {
				c.loop.push(c) // others first
				return
			}
			c.queue.take(&c.batch, peerBatchBytes)
			if len(c.batch.slices) == 0 {
				if c.phase == peerClosing {
					c.close(c.cause)
				}
				return
			}
			budget -= c.batch.bytes
		}
		if c.awaiting.Load() {
			return
		}
		n, err := unix.Writev(c.fd, c.batch.slices[:min(len(c.batch.slices), peerSliceLimit)])
		switch {
		case err == unix.EINTR:
		case err == unix.EAGAIN:
			c.set.counters.stalls.Add(1)
			if err := c.loop.engine.writables.await(c); err != nil {
				c.close(err)
			}
			return
		case err != nil:
			c.close(fmt.Errorf("write: %w", err))
			return
		default:
			c.set.counters.bytesOut.Add(uint64(n))
			c.batch.advance(n)
		}
	}
}

// finishBatch gives back what a written batch holds.
func (c *peerConn) finishBatch() {
	if len(c.batch.frames) == 0 {
		return
	}
	c.set.counters.framesOut.Add(uint64(len(c.batch.frames)))
	c.queue.written(c.batch.bytes)
	c.batch.clear()
}

// checkDeadlines implements loopConn: the handshake, and the way out of REFUSED.
func (c *peerConn) checkDeadlines() {
	if c.phase != peerOpen && c.phase != peerClosed {
		if c.cause == nil {
			c.cause = errPeerHandshake
		}
		c.close(c.cause)
	}
}

// shut ends the connection. Any goroutine.
func (c *peerConn) shut(cause error) { c.loop.post(func() { c.close(cause) }) }

// close ends the connection at once.
func (c *peerConn) close(cause error) {
	if c.phase == peerClosed {
		return
	}
	c.cause = cause
	_ = c.loop.gnet.Close(c.conn) // calls disconnected before it returns
}

// disconnected implements loopConn.
func (c *peerConn) disconnected(endOfStream bool, err error) {
	defer c.recovered("closing")
	if c.phase == peerClosed {
		return
	}
	switch {
	case c.cause != nil:
	case endOfStream || err == nil:
		c.cause = io.EOF
	default:
		c.cause = err
	}
	was := c.phase
	c.phase = peerClosed
	c.set.counters.open.Add(-1)
	c.set.engine.counters.peers.Add(-1)
	c.loop.wheel.remove(&c.timer)
	c.loop.engine.writables.forget(c)
	c.rest.free()
	c.rest = nil
	c.batch.clear()
	c.queue.close()
	c.fd = -1
	c.release()
	c.tell(c.cause)
	if c.node != nil {
		c.node.lost(c, was == peerOpen)
	}
	c.outgoing = nil
	c.calls.end(wire.CodeUnavailable, "the connection to the node was lost")
}

// portClosed reports whether the error of a connection attempt says that the process
// behind the port is gone.
func portClosed(err error) bool {
	return errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.ECONNRESET)
}
