package server

import (
	"sync"
	"time"

	"github.com/lockstepmq/lockstep/cluster"
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
	// write to this node. What producers waited at the 99th percentile at twice and at
	// eight times as much is in docs/performance.md.
	catchUpRate = 8 << 20
	// catchUpTicks is for how many ticks of 100 ms what producers write is measured. A node
	// to which nobody has written for as long reads as fast as it can.
	catchUpTicks = int(time.Second / tickPeriod)
	// catchUpCharge is the most that one read costs of the rate, whatever its size.
	catchUpCharge = 4 << 20
	// catchUpNodes is for how many nodes at most the rate rises with what producers write:
	// the followers that one partition has, and a replica that is being added.
	catchUpNodes = cluster.MaxReplicas
)

// catchUp reads entries and checkpoints for replicas on other nodes that lag. It has
// workers of its own: reads for clients do not wait for it. Any goroutine.
//
// While producers write to this node reads take turns, oldest first, at catchUpRate or,
// if that is more, at one and a half times the bytes a second that arrive for each node
// whose replicas have read within the last second. A node has at most one replica of a
// partition, so all that lag together lack at most what arrives, once a node: they get
// more than that and catch up, however busy this node is.
type catchUp struct {
	submit  func(func())                // runs on a worker
	arrived func() uint64               // bytes that clients have brought for logs so far
	now     func() int64                // ns, as monotonic
	after   func(time.Duration, func()) // runs later
	ask     func(node uint32, op wire.PeerOp, body []byte, then func(wire.ErrorCode, []byte))
	done    sync.WaitGroup

	mu       sync.Mutex
	work     int         // reads at work, or waiting for their time
	waiting  []pacedRead // oldest first, at most catchUpStreams
	due      int64       // when the next of them is in time, by the rate
	alarm    int64       // when they are looked at again, 0: nothing waits for its time
	ticks    int
	before   [catchUpTicks]uint64 // what had arrived at the last ticks
	arriving int64                // bytes since the oldest of them, which is a second
	readers  map[uint32]int       // nodes whose replicas lag: the tick at which they last read
	stopped  bool
}

// pacedRead is a read that waits for its time.
type pacedRead struct {
	node uint32                 // whose replica lags, 0 if it is not counted
	most int                    // bytes that it may read
	read func(limited bool) int // returns how many it has read; limited: the rate made it wait, or would have
}

// newCatchUp makes it. ask is a request to another node.
func newCatchUp(pool *blockingPool, arrived func() uint64, ask func(uint32, wire.PeerOp, []byte, func(wire.ErrorCode, []byte))) *catchUp {
	return &catchUp{
		submit: (&line{pool: pool, limit: catchUpStreams}).submit, arrived: arrived, now: monotonic, ask: ask,
		after:   func(d time.Duration, f func()) { time.AfterFunc(d, f) },
		readers: map[uint32]int{},
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

// stop carries out at once what waits, waits for the reads at work, and lets no other
// begin: the logs are about to be closed.
func (c *catchUp) stop() {
	c.mu.Lock()
	c.stopped = true
	c.mu.Unlock()
	c.start()
	c.done.Wait()
}

// tick measures what producers write, and forgets the nodes that have not read for as
// long. Called every 100 ms, from one goroutine.
func (c *catchUp) tick() {
	arrived := c.arrived()
	c.mu.Lock()
	oldest := &c.before[c.ticks%catchUpTicks]
	c.arriving = int64(arrived - *oldest)
	*oldest = arrived
	c.ticks++
	for _, r := range c.waiting {
		c.readsLocked(r.node)
	}
	for node, last := range c.readers {
		if c.ticks-last >= catchUpTicks {
			delete(c.readers, node)
		}
	}
	c.mu.Unlock()
	c.start()
}

// rateLocked is how many bytes a second may be read, 0 if that is not limited.
func (c *catchUp) rateLocked() int64 {
	if c.stopped || c.arriving == 0 {
		return 0
	}
	nodes := int64(min(max(len(c.readers), 1), catchUpNodes))
	return max(catchUpRate, nodes*(c.arriving+c.arriving/2))
}

// readsLocked notes that a replica on a node lags and reads.
func (c *catchUp) readsLocked(node uint32) {
	if node != 0 {
		c.readers[node] = c.ticks
	}
}

// paced runs a read of at most so many bytes on a worker when its time has come. It is
// for a follower on a node, or for none that is counted: 0. What it has not read costs
// nothing: a node that comes back with 2,000 partitions, each a little behind, would
// wait for a minute.
func (c *catchUp) paced(node uint32, most int, read func(limited bool) int) {
	c.mu.Lock()
	c.readsLocked(node)
	c.waiting = append(c.waiting, pacedRead{node: node, most: min(most, catchUpCharge), read: read})
	c.mu.Unlock()
	c.start()
}

// start starts the reads that are in time.
func (c *catchUp) start() {
	for {
		r, cost, ok := c.next()
		if !ok {
			return
		}
		c.run(func() {
			n := r.read(cost > 0)
			c.mu.Lock()
			c.due -= cost * int64(max(r.most-n, 0)) / int64(max(r.most, 1))
			c.mu.Unlock()
			c.start()
		})
	}
}

// next takes the oldest read if it is in time, and what it costs of the rate, in ns.
// If it is not, it is looked at again when it is.
func (c *catchUp) next() (r pacedRead, cost int64, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.waiting) == 0 {
		return r, 0, false
	}
	now := c.now()
	if rate := c.rateLocked(); rate > 0 {
		if c.due > now {
			c.alarmLocked(now)
			return r, 0, false
		}
		cost = int64(c.waiting[0].most) * int64(time.Second) / rate
	}
	c.due = max(c.due, now) + cost
	r, c.waiting = c.waiting[0], c.waiting[1:]
	return r, cost, true
}

// alarmLocked has what waits looked at when it is due. An alarm for later that was set
// before finds nothing to do.
func (c *catchUp) alarmLocked(now int64) {
	at := c.due
	if c.alarm != 0 && c.alarm <= at {
		return
	}
	c.alarm = at
	c.after(time.Duration(at-now), func() {
		c.mu.Lock()
		if c.alarm == at {
			c.alarm = 0
		}
		c.mu.Unlock()
		c.start()
	})
}

// run runs a read on a worker.
func (c *catchUp) run(read func()) {
	c.submit(func() {
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
	owner *owner
}

// Read implements replication.Feed.
func (g lagging) Read(l *log.Log, to uint64, node uint32, first wire.Index, maxBytes int) bool {
	if !g.begin(to == g.own) {
		return false
	}
	read := func(limited bool) (n int) {
		g.owner.guarded("a read for another replica", func() {
			entries, err := l.Stored(first, maxBytes)
			for i := range entries {
				n += len(entries[i].Data)
			}
			g.inbox.PutFed(replication.Fed{To: to, First: first, Entries: entries, Paced: limited, Err: err})
			g.owner.schedule()
		})
		return n
	}
	if to == g.own {
		g.run(func() { read(false) })
	} else {
		g.paced(node, maxBytes, read)
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
		g.owner.schedule()
	})
}

// checkpoint answers FETCH_CHECKPOINT with the newest checkpoint of a log, which must
// be at least at an index.
func (c *catchUp) checkpoint(o *owner, l *log.Log, least wire.Index, reply func(wire.ErrorCode, []byte)) {
	saved := l.SavedCheckpoint()
	switch {
	case saved == nil || saved.Applied < least:
		reply(wire.CodeRetry, []byte("there is no checkpoint that new"))
		return
	case !c.begin(false):
		reply(wire.CodeBusy, []byte("as many replicas as may be are being caught up"))
		return
	}
	c.paced(0, int(min(saved.Size, catchUpCharge)), func(bool) int {
		var content []byte
		err := errReadPanicked
		o.guarded("a read for another replica", func() { content, err = l.ReadCheckpoint() })
		if err != nil {
			reply(wire.CodeUnavailable, []byte(err.Error()))
			return 0
		}
		reply(wire.CodeOK, content)
		return len(content)
	})
}
