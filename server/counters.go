package server

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lockstepmq/lockstep/wire"
)

// closeReason says why a session ended.
type closeReason uint8

const (
	closedByClient    closeReason = iota // end of stream or reset
	closedBadPreface                     // not our protocol
	closedBadChecksum                    // a frame header nobody wrote
	closedWithError                      // bad input, answered with an error frame
	closedHandshake                      // no HELLO in time
	closedFrame                          // a frame did not complete in time
	closedIdle                           // silent for too long
	closedWrite                          // did not take what waited for it
	closedPanic                          // a panic in a callback
	closedIO                             // the socket failed
	closedShutdown                       // the broker stops
	closeReasons
)

var closeReasonNames = [closeReasons]string{
	"client", "bad-preface", "bad-checksum", "error", "handshake-timeout", "frame-timeout",
	"idle-timeout", "write-timeout", "panic", "io-error", "shutdown",
}

func (r closeReason) String() string { return closeReasonNames[r] }

// opcodeCount is one more than the highest opcode that is counted by itself.
const opcodeCount = int(wire.OpPartRecover) + 1

// groupCount is what a consumer in a group was told of a record.
type groupCount uint8

const (
	groupDelivered   groupCount = iota
	groupRedelivered            // of these, those that were, or may have been, delivered before
	groupSettled                // outcomes that are committed
	groupRefused                // outcomes that came too late, or were never due
	groupRevoked
	groupLost
	groupCounts
)

var groupCountNames = [groupCounts]string{
	groupDelivered: "delivered", groupRedelivered: "redelivered", groupSettled: "settled", groupRefused: "refused", groupRevoked: "revoked", groupLost: "lost",
}

// counters of the session layer. All only grow, except the gauges at the top.
type counters struct {
	sessions    atomic.Int64 // gauge: open sessions
	peers       atomic.Int64 // gauge: open connections of the peer protocol
	links       atomic.Int64 // gauge: open links
	groupLinks  atomic.Int64 // gauge: open links of groups
	paused      atomic.Int64 // gauge: sessions whose socket is not read
	inFlight    atomic.Int64 // gauge: requests waiting for their answer
	upstreams   atomic.Int64 // gauge: connections to other nodes for forwarding
	forwardedIn atomic.Int64 // gauge: sessions that other nodes forward here
	inbound     atomic.Int64 // gauge: bytes of memory for unfinished frames
	outbound    atomic.Int64 // gauge: bytes of memory for replies that sockets did not take

	accepted         atomic.Uint64               // connections admitted
	refusedTotal     atomic.Uint64               // connections beyond the cap or the descriptor limit
	refusedAddress   atomic.Uint64               // connections beyond the cap of their address
	acceptErrors     atomic.Uint64               // failed accepts, EMFILE among them
	registerErrors   atomic.Uint64               // connections that no loop took
	closed           [closeReasons]atomic.Uint64 // ended sessions
	panics           atomic.Uint64               // recovered panics
	requests         [opcodeCount]atomic.Uint64  // by opcode; 0 counts the unknown ones
	errors           [64]atomic.Uint64           // error answers by code
	groupRecords     [groupCounts]atomic.Uint64  // what consumers in groups were told of records
	forwarded        atomic.Uint64               // requests handed on to other nodes
	bytesIn          atomic.Uint64               // read from sockets
	bytesOut         atomic.Uint64               // handed to sockets or to gnet
	streamBytes      atomic.Uint64               // of these, stored frames on links
	pauses           atomic.Uint64               // times a socket was no longer read
	stalls           atomic.Uint64               // times a socket did not take all
	cold             atomic.Uint64               // times a stream waited for a range to become resident
	preads           atomic.Uint64               // pieces read by pread instead of written from the map
	unackedRefused   atomic.Uint64               // batches with acks=none that were not taken
	halfClosed       atomic.Uint64               // sessions that were answered after the client's end of stream
	logSuppressed    atomic.Uint64               // log lines that were only counted
	triggers         atomic.Uint64               // wake-ups of event loops
	inlineKicks      atomic.Uint64               // owner turns offered to the loop itself
	handedKicks      atomic.Uint64               // owner turns handed to a worker
	gatheredKicks    atomic.Uint64               // wake-ups that turns of several sessions waited for
	deliveredEmpty   atomic.Uint64               // DELIVER frames that say "at the end"
	eventsSuppressed atomic.Uint64               // events not sent to clients that do not read
}

func (c *counters) countError(code wire.ErrorCode) {
	if int(code) < len(c.errors) && code >= 0 {
		c.errors[code].Add(1)
	}
}

// complaints is a logger for what clients do wrong: each kind may write a few
// lines a second, so that bad peers cannot fill the disk with our own log.
type complaints struct {
	logger   *slog.Logger
	counters *counters
	perSec   int

	mu    sync.Mutex
	kinds map[string]*complaintWindow
}

type complaintWindow struct {
	second     int64
	lines      int
	suppressed uint64
}

// log writes one line of the given kind. The kinds are constants: their number
// bounds the memory.
func (c *complaints) log(kind string, attributes ...slog.Attr) {
	now := time.Now().Unix()
	c.mu.Lock()
	w := c.kinds[kind]
	if w == nil {
		w = &complaintWindow{}
		c.kinds[kind] = w
	}
	if w.second != now {
		w.second, w.lines = now, 0
	}
	if w.lines >= c.perSec {
		w.suppressed++
		c.mu.Unlock()
		c.counters.logSuppressed.Add(1)
		return
	}
	w.lines++
	suppressed := w.suppressed
	w.suppressed = 0
	c.mu.Unlock()
	if suppressed > 0 {
		attributes = append(attributes, slog.Uint64("suppressed", suppressed))
	}
	c.logger.LogAttrs(context.Background(), slog.LevelWarn, kind, attributes...)
}
