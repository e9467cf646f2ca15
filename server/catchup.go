package server

import (
	"sync"
	"time"

	"github.com/lockstepmq/lockstep/log"
	"github.com/lockstepmq/lockstep/replication"
	"github.com/lockstepmq/lockstep/wire"
)

// Limits of what replicas that lag are given (RELIABILITY F21): a node that restarts
// with 2,000 partitions must not slow down those that serve.
const (
	// catchUpStreams is how many reads for followers that lag, and of checkpoints for
	// other nodes, one node has at work. Beyond it a group asks again later, and a node
	// is answered BUSY.
	catchUpStreams = 8
	// catchUpRate is how many bytes a second are read for followers while producers
	// wait; without such it is not limited.
	catchUpRate = 64 << 20
	// catchUpBurst is how far ahead of that rate a read may be.
	catchUpBurst = time.Second / 4
)

// catchUp reads entries and checkpoints for replicas on other nodes that lag. It has
// workers of its own: reads for clients do not wait for it. Any goroutine.
type catchUp struct {
	line  *line
	busy  func() bool                 // producers wait
	now   func() int64                // ns, as monotonic
	after func(time.Duration, func()) // runs later
	ask   func(node uint32, op wire.PeerOp, body []byte, then func(wire.ErrorCode, []byte))
	done  sync.WaitGroup

	mu      sync.Mutex
	work    int   // reads at work, or waiting for their time
	next    int64 // when the next read is in time, by the rate
	stopped bool
}

// newCatchUp makes it. ask is a request to another node.
func newCatchUp(pool *blockingPool, busy func() bool, ask func(uint32, wire.PeerOp, []byte, func(wire.ErrorCode, []byte))) *catchUp {
	return &catchUp{
		line: &line{pool: pool, limit: catchUpStreams}, busy: busy, now: monotonic, ask: ask,
		after: func(d time.Duration, f func()) { time.AfterFunc(d, f) },
	}
}

// begin takes a place among the streams, beyond the limit if it is for a replica that
// waits for nothing else.
func (c *catchUp) begin(urgent bool) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.stopped || c.work >= catchUpStreams && !urgent {
		return false
	}
	c.work++
	c.done.Add(1)
	return true
}

// end gives it back.
func (c *catchUp) end() {
	c.mu.Lock()
	c.work--
	c.mu.Unlock()
	c.done.Done()
}

// stop waits for the reads at work, and lets no other begin: the logs are about to be
// closed. It takes as long as the rate holds up what waits, half a second at most.
func (c *catchUp) stop() {
	c.mu.Lock()
	c.stopped = true
	c.mu.Unlock()
	c.done.Wait()
}

// delay is how long a read of n bytes has to wait for its time.
func (c *catchUp) delay(n int) time.Duration {
	if !c.busy() {
		return 0
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.now()
	c.next = max(c.next, now-int64(catchUpBurst)) + int64(n)*int64(time.Second)/catchUpRate
	return time.Duration(max(c.next-now, 0))
}

// paced runs a read of n bytes on a worker when its time has come.
func (c *catchUp) paced(n int, read func()) {
	if d := c.delay(n); d > 0 {
		c.after(d, func() { c.run(read) })
		return
	}
	c.run(read)
}

// run runs a read on a worker.
func (c *catchUp) run(read func()) {
	c.line.submit(func() {
		defer c.end()
		read()
	})
}

// lagging is what one group needs to serve followers that lag, and to catch up itself.
// It implements replication.Feed.
type lagging struct {
	*catchUp
	meta  bool
	own   uint64 // the replica's ID
	inbox *replication.Inbox
	wake  func() // gives the owner a turn
}

// Read implements replication.Feed.
func (g lagging) Read(l *log.Log, to uint64, first wire.Index, maxBytes int) bool {
	if !g.begin(to == g.own) {
		return false
	}
	read := func() {
		entries, err := l.Stored(first, maxBytes)
		g.inbox.PutFed(replication.Fed{To: to, First: first, Entries: entries, Err: err})
		g.wake()
	}
	if to == g.own {
		g.run(read)
	} else {
		g.paced(maxBytes, read)
	}
	return true
}

// fetch asks the node of an offered checkpoint for it: replication.Config.Fetch.
func (g lagging) fetch(node uint32, offer replication.SnapshotOffer) {
	m := wire.PeerFetch{Meta: g.meta, Replica: offer.From, From: uint64(offer.Applied)}
	g.ask(node, wire.PeerFetchCheckpoint, m.Append(nil), func(code wire.ErrorCode, body []byte) {
		f := replication.Fetched{Offer: offer, Content: body}
		if code != wire.CodeOK {
			f.Content, f.Err = nil, &wire.Error{Code: code, Detail: string(body)}
		}
		g.inbox.PutFetched(f)
		g.wake()
	})
}

// checkpoint answers FETCH_CHECKPOINT with the newest checkpoint of a log, which must
// be at least at an index.
func (c *catchUp) checkpoint(l *log.Log, least wire.Index, reply func(wire.ErrorCode, []byte)) {
	saved := l.SavedCheckpoint()
	switch {
	case saved == nil || saved.Applied < least:
		reply(wire.CodeRetry, []byte("there is no checkpoint that new"))
		return
	case !c.begin(false):
		reply(wire.CodeBusy, []byte("as many replicas as may be are being caught up"))
		return
	}
	c.paced(int(min(saved.Size, catchUpRate/4)), func() {
		content, err := l.ReadCheckpoint()
		if err != nil {
			reply(wire.CodeUnavailable, []byte(err.Error()))
			return
		}
		reply(wire.CodeOK, content)
	})
}
