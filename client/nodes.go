package client

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"time"

	"github.com/lockstepmq/lockstep/wire"
)

// A Conn has one session that it keeps, the home, for everything that any broker
// can answer, and one for each other node that leads a partition somebody uses.
// Those are opened when a producer or reader asks for one, by a goroutine of their
// own, and closed when none has used them for a while. Who leads what is known to
// the lanes and streams (topology.go); here is only where the nodes are.

const (
	// unusedTimeout is how long a session with a node stays open that nobody uses.
	unusedTimeout = time.Minute
	// leaderPause is how often one who finds no session with the leader of a partition
	// asks who leads it now.
	leaderPause = 100 * time.Millisecond
	// fleePause is how long a home at least stays the home, if it lives.
	fleePause = time.Second
)

// errUnused is the cause of the end of a session that nobody used.
var errUnused = errors.New("not used any more")

// node is what a Conn knows of a member of the cluster. It is guarded by Conn.mu.
type node struct {
	wire.Node
	session *session      // newest, dead or alive; nil: none yet
	dialing bool          // a goroutine is about to make one
	pause   time.Duration // before the next attempt: none at first, and after a session that lasted
	retryAt time.Time
}

// delay puts off the next attempt to connect to the node.
func (n *node) delay(o *connOptions) {
	n.retryAt = time.Now().Add(jittered(n.pause))
	n.pause = o.longer(n.pause)
}

// longer is the pause after the given one.
func (o *connOptions) longer(pause time.Duration) time.Duration {
	return min(max(2*pause, o.backoffMin), o.backoffMax)
}

// jittered shortens a pause by up to half at random.
func jittered(pause time.Duration) time.Duration {
	return pause - time.Duration(rand.Int64N(int64(pause)/2+1))
}

// sessionTo returns a live session with a node, 0 for the home. If there is none it
// begins to make one and returns nil; who tells about it is the channel that peek
// returned before. Without redirects every node is reached through the home.
func (c *Conn) sessionTo(id uint32) *session {
	c.mu.Lock()
	defer c.mu.Unlock()
	if id == 0 || !c.options.redirect {
		return alive(c.current)
	}
	n := c.nodes[id]
	if n != nil {
		if s := alive(n.session); s != nil {
			return s
		}
	}
	if c.current.hello.NodeID == id {
		return alive(c.current) // else keepHome is at it
	}
	if n != nil {
		c.begin(n, id)
	}
	return nil
}

// begin makes a goroutine connect to a node, unless one does or it is too early. The
// caller holds c.mu.
func (c *Conn) begin(n *node, id uint32) {
	if !n.dialing && n.Address != "" && c.err == nil && c.ctx.Err() == nil && !time.Now().Before(n.retryAt) {
		n.dialing = true
		c.wg.Add(1)
		go c.dial(n, id, n.Address)
	}
}

// alive is a session that has not died, or nil.
func alive(s *session) *session {
	if s != nil {
		select {
		case <-s.done:
		default:
			return s
		}
	}
	return nil
}

// dial makes a session with a node.
func (c *Conn) dial(n *node, id uint32, address string) {
	defer c.wg.Done()
	s, err := open(c.ctx, &c.options, address, c.clusterID, c.brokerEvent)
	if err == nil && s.hello.NodeID != id {
		s.conn.Close()
		err = fmt.Errorf("%w: %s is the address of node %d, and node %d answers there", ErrProtocol, address, id, s.hello.NodeID)
	}
	c.mu.Lock()
	n.dialing = false
	if err != nil {
		n.delay(&c.options)
		c.tellChanged()
		c.mu.Unlock()
		c.options.logger.Warn("connect failed", "node", id, "error", err)
		return
	}
	n.session = s
	c.tellChanged()
	c.mu.Unlock()
	c.run(s)
}

// run starts a session and whoever watches over it. Of a home the listener has heard
// before, so that it hears of it before it hears of anything that came over it.
func (c *Conn) run(s *session) {
	c.options.logger.Info("connected", "server", s.address, "node", s.hello.NodeID, "cluster", s.hello.ClusterID)
	s.start()
	c.wg.Add(1)
	go c.watch(s)
}

// watch keeps a session alive, and tells everybody when it has ended.
func (c *Conn) watch(s *session) {
	defer c.wg.Done()
	opened := time.Now()
	c.keepAlive(s)
	s.wg.Wait()
	s.mu.Lock()
	err := s.err
	s.mu.Unlock()
	c.options.logger.Log(context.Background(), levelOf(err), "disconnected", "server", s.address, "node", s.hello.NodeID, "error", err)
	c.mu.Lock()
	home := c.current == s
	c.mu.Unlock()
	switch {
	case home:
		c.events.send(Disconnected{Address: s.address, Node: s.hello.NodeID, Err: err})
	case !errors.Is(err, errUnused) && !errors.Is(err, ErrClosed):
		c.events.send(NodeLost{Address: s.address, Node: s.hello.NodeID, Err: err})
	}
	c.topology.forget() // leaders and slots may have moved unseen
	c.mu.Lock()
	if n := c.nodes[s.hello.NodeID]; n != nil && n.session == s {
		if time.Since(opened) > c.options.backoffMax {
			n.pause = 0
		}
		n.delay(&c.options)
	}
	c.tellChanged()
	c.mu.Unlock()
	close(s.ended)
}

// tellChanged tells all who wait for a session that they should look again. The
// caller holds c.mu.
func (c *Conn) tellChanged() {
	close(c.changed)
	c.changed = make(chan struct{})
}

// adopt makes the session with some node the home, if there is one with a node that is
// wanted.
func (c *Conn) adopt() *session {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, n := range c.nodes {
		if s := alive(n.session); s != nil && c.options.target.wants(&n.Node) {
			c.current = s
			c.lastErr, c.retries = nil, 0
			c.tellChanged()
			return s
		}
	}
	return nil
}

// outnumbered reports whether a node that answers METADATA hears no majority of the
// brokers: it cannot know who leads now.
func outnumbered(m *wire.MetadataResponse) bool {
	brokers, alive := 0, 0
	for i := range m.Nodes {
		if m.Nodes[i].Role == wire.RoleBroker {
			brokers++
			if m.Nodes[i].Alive {
				alive++
			}
		}
	}
	return 2*alive <= brokers
}

// flee makes another node the home of a Conn whose home is cut off from the others, or
// begins to connect to one. Where that is no better, the next answer says so. The
// session with the old home stays, for what it leads. The caller holds c.mu.
func (c *Conn) flee() {
	now := time.Now()
	old := c.current
	if old == nil || !c.options.redirect || now.Sub(c.fled) < fleePause {
		return // Connect looks for one yet
	}
	for id, n := range c.nodes { // in any order
		s := alive(n.session)
		if id == old.hello.NodeID || s == nil || !c.options.target.wants(&n.Node) {
			continue
		}
		if left := c.nodes[old.hello.NodeID]; left != nil && alive(left.session) == nil {
			left.session = old
		}
		c.fled = now
		c.current = s
		c.tellChanged()
		c.options.logger.Warn("the home is cut off from the others; another node is the home now", "was", old.address, "server", s.address, "node", s.hello.NodeID)
		return
	}
	for id, n := range c.nodes {
		if id != old.hello.NodeID && c.options.target.wants(&n.Node) {
			c.begin(n, id)
		}
	}
}

// learn takes over what METADATA says about the members of the cluster.
func (c *Conn) learn(m *wire.MetadataResponse) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if outnumbered(m) {
		c.flee()
	}
	if m.Version < c.version {
		return // by a node that lags
	}
	c.version = m.Version
	left := c.nodes
	c.nodes = make(map[uint32]*node, len(m.Nodes))
	for _, info := range m.Nodes {
		n := left[info.ID]
		if n == nil {
			n = &node{}
		}
		if info.Alive && !n.Alive {
			n.pause, n.retryAt = 0, time.Time{} // it is back, and others can talk to it
		}
		n.Node = info
		c.nodes[info.ID] = n
		delete(left, info.ID)
	}
	for id, n := range left { // what is under way there ends by itself
		if n.dialing || alive(n.session) != nil {
			n.Address = ""
			c.nodes[id] = n
		}
	}
}

// newerThan reports whether an answer comes from a node that lags behind what was learned
// before: what is missing in it may exist.
func (c *Conn) newerThan(m *wire.MetadataResponse) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return m.Version < c.version
}

// askMembers asks a broker who the members are. Nobody waits for the answer.
func (c *Conn) askMembers(s *session) {
	s.request(wire.OpMetadata, &wire.MetadataRequest{Scope: wire.MetadataNodes}, members{c})
}

// members waits for the answer to askMembers.
type members struct{ c *Conn }

func (m members) answered(_ *session, body []byte, err error) {
	var response wire.MetadataResponse
	if err == nil && response.Parse(body) == nil {
		m.c.learn(&response)
	}
}

func (members) lost(*session, error) {}

// turn spreads the Conns of a process over the servers they are given.
var turn atomic.Uint32

func init() { turn.Store(rand.Uint32()) }

// servers lists the addresses where a new home may be, best first. Of those that
// Connect was given each Conn of a process begins with another, and goes on in any
// order, unless they are to be tried in theirs. When a home was lost, the other
// members come before them, and it itself last of them, or, in order, members behind them.
func (c *Conn) servers(lost bool) []string {
	given := slices.Clone(c.addresses)
	if n := len(given); n > 0 && !c.options.inOrder {
		first := int(turn.Add(1)) % n
		given[0], given[first] = given[first], given[0]
		rand.Shuffle(n-1, func(i, j int) { given[1+i], given[1+j] = given[1+j], given[1+i] })
	}
	given = append(given, c.options.retryServers...)
	if !lost || !c.options.redirect {
		return given
	}
	var living, others []string
	c.mu.Lock()
	old := c.current.address
	for id, n := range c.nodes { // in any order
		switch {
		case n.Address == "" || id == c.current.hello.NodeID || slices.Contains(given, n.Address):
		case n.Alive:
			living = append(living, n.Address)
		default:
			others = append(others, n.Address)
		}
	}
	c.mu.Unlock()
	if c.options.inOrder {
		return append(append(given, living...), others...)
	}
	if i := slices.Index(given, old); i >= 0 { // it may take a connection, and say nothing
		given = append(slices.Delete(given, i, i+1), old)
	}
	return append(append(living, given...), others...)
}

// unused reports whether nobody uses a session that is not the home.
func (c *Conn) unused(s *session) bool {
	c.mu.Lock()
	home := c.current == s
	producers := make([]*Producer, 0, len(c.producers))
	for p := range c.producers {
		producers = append(producers, p)
	}
	readers := make([]*Reader, 0, len(c.readers))
	for r := range c.readers {
		readers = append(readers, r)
	}
	consumers := slices.Collect(maps.Keys(c.consumers))
	c.mu.Unlock()
	if home || s.tellTaken() {
		return false
	}
	for _, p := range producers {
		p.mu.Lock()
		used := slices.ContainsFunc(p.lanes, func(a *accumulator) bool { return a.session == s || a.opening == s })
		p.mu.Unlock()
		if used {
			return false
		}
	}
	for _, r := range readers {
		r.mu.Lock()
		used := slices.ContainsFunc(r.streams, func(st *stream) bool { return st.session == s || st.opening == s })
		r.mu.Unlock()
		if used {
			return false
		}
	}
	for _, x := range consumers {
		x.mu.Lock()
		used := slices.ContainsFunc(x.attachments, func(at *attachment) bool { return at.session == s || at.opening == s }) ||
			x.bind != nil && (x.bind.session == s || x.bind.opening == s)
		x.mu.Unlock()
		if used {
			return false
		}
	}
	return true
}
