package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lockstepmq/lockstep/replication"
	"github.com/lockstepmq/lockstep/wire"
)

// Between two attempts to connect to a node. After a loss the first is made at once.
const (
	minDialPause = 50 * time.Millisecond
	maxDialPause = time.Second
)

// peerMember is another node of the cluster, as the metadata has it.
type peerMember struct {
	Node    uint32
	Store   [16]byte // who has the ID now (RULES R10)
	Address string   // of its peer port; empty: it has to connect to us
}

// peerSelf is who this node is, as it tells others.
type peerSelf struct {
	Cluster, Store     [16]byte
	Node               uint32
	Boot               uint64 // grows with each start
	MinLevel, MaxLevel uint16
	ClientAddress      string
	PeerAddress        string
}

// peerOptions configure a peerSet.
type peerOptions struct {
	Engine  *engine
	Handler peerHandler
	Self    peerSelf
	Logger  *slog.Logger
	// Known is called once, when it is first known who the other nodes are. Default: nothing.
	Known func()
	// Removed is called once, when the others say for removedTicks that this process is not
	// the node that they know, with what they say. Default: nothing.
	Removed func(word peerWord)
	// LacksSpace reports whether this node's disk refuses records. Default: it never does.
	LacksSpace func() bool
	mutant     peerMutants // of tests
}

// removedTicks is for how long most of the other nodes say that this one is no member
// until it believes them, in ticks of 100 ms: 3 s. One that is just joining is not
// known everywhere at once.
const removedTicks = 30

// peerSet is the connections to all other nodes, one for each. It carries the
// messages of all groups (replication.Transport), watches who lives, and asks and
// answers requests.
//
//	owner's turn ──Send, Beat──▶ peerQueue ──loop──▶ socket ──▶ the other node's loop ──▶ peerHandler
//
// For each node one goroutine dials whenever there is no connection; both sides do.
// Everything else happens on event loops, and once a tick in Tick. The methods may
// be called on any goroutine and do not block.
type peerSet struct {
	engine   *engine
	handler  peerHandler
	self     peerSelf
	logger   *slog.Logger
	counters peerCounters
	tick     atomic.Uint32

	ctx    context.Context
	cancel context.CancelFunc
	done   sync.WaitGroup

	nodes atomic.Pointer[map[uint32]*peerNode] // never changed, only replaced, under mu

	lacksSpace func() bool // see peerOptions
	mutant     peerMutants // the same

	// judged is signalled, without waiting, when a node has said something of this one.
	judged chan struct{}

	mu      sync.Mutex
	stopped bool
	known   func()                     // nil once it was called
	removed func(peerWord)             // see peerOptions
	outcast int                        // ticks for which most others have said that this node is no member; Tick's
	leading map[uint64]wire.PeerLeader // what this node has announced
}

// peerMutants take protections away: the tests of the same rows must notice.
type peerMutants struct {
	anyPreface bool // clients are taken for nodes
	anyNode    bool // whoever uses the ID of a member is taken for it
	anyTwin    bool // so is a second process of its data directory
	anyChunk   bool // what comes in chunks is taken as it comes
	anySound   bool // a node that says something lives, whatever it hears
}

// peerCounters count what happens on connections to other nodes. All only grow,
// except open.
type peerCounters struct {
	open         atomic.Int64  // gauge: connections, those in their handshake included
	connected    atomic.Uint64 // handshakes that ended well
	lost         atomic.Uint64 // open connections that ended
	dialErrors   atomic.Uint64
	refused      atomic.Uint64 // nodes that were refused
	badInput     atomic.Uint64 // connections closed because of what came on them
	unknown      atomic.Uint64 // frames of unknown kinds
	framesIn     atomic.Uint64
	framesOut    atomic.Uint64
	bytesIn      atomic.Uint64
	bytesOut     atomic.Uint64
	stalls       atomic.Uint64 // times a socket took nothing
	dropped      atomic.Uint64 // messages for which there was no room
	unconnected  atomic.Uint64 // messages to nodes without a connection
	undelivered  atomic.Uint64 // messages for replicas that are not here, or whose inbox is full
	requests     atomic.Uint64
	strayChunks  atomic.Uint64 // of transfers that nobody waits for
	badTransfers atomic.Uint64 // ended by a chunk that did not fit
	downs        atomic.Uint64 // nodes that died or fell silent
}

// newPeerSet makes a set without members. stop ends it.
func newPeerSet(o peerOptions) *peerSet {
	p := &peerSet{engine: o.Engine, handler: o.Handler, self: o.Self, logger: o.Logger, known: o.Known, removed: o.Removed, lacksSpace: o.LacksSpace, mutant: o.mutant,
		judged: make(chan struct{}, 1), leading: make(map[uint64]wire.PeerLeader)}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	p.nodes.Store(&map[uint32]*peerNode{})
	return p
}

// stop ends all connections and dialing. The engine must still run.
func (p *peerSet) stop() {
	p.mu.Lock()
	p.stopped = true
	p.mu.Unlock()
	p.cancel()
	for _, n := range *p.nodes.Load() {
		n.remove(errPeerStopped)
	}
	p.done.Wait()
}

// SetMembers says who the other nodes are. Connections to nodes that are no longer
// named, or that have another store, end.
func (p *peerSet) SetMembers(members []peerMember) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stopped {
		return
	}
	old := *p.nodes.Load()
	nodes := make(map[uint32]*peerNode, len(members))
	for _, m := range members {
		if m.Node == p.self.Node {
			continue
		}
		n := old[m.Node]
		if n != nil && n.store == m.Store {
			n.setAddress(m.Address)
			nodes[m.Node] = n
			continue
		}
		n = &peerNode{set: p, id: m.Node, store: m.Store, address: m.Address, wake: make(chan struct{}, 1)}
		n.ctx, n.cancel = context.WithCancel(p.ctx)
		nodes[m.Node] = n
		p.done.Go(n.keepDialing)
	}
	p.nodes.Store(&nodes)
	for id, n := range old {
		if nodes[id] != n {
			n.remove(errPeerRemoved)
		}
	}
	if p.known != nil {
		p.known()
		p.known = nil
	}
	p.wasJudged()
}

func (p *peerSet) node(id uint32) *peerNode { return (*p.nodes.Load())[id] }

// connTo is the open connection to a node, or nil.
func (p *peerSet) connTo(node uint32) *peerConn {
	if n := p.node(node); n != nil {
		return n.conn.Load()
	}
	return nil
}

// Alive reports whether a node is up and has heard this one within the last second.
func (p *peerSet) Alive(node uint32) bool {
	n := p.node(node)
	return n != nil && n.alive.Load()
}

// Send implements replication.Transport.
func (p *peerSet) Send(node uint32, m *replication.Message) {
	c := p.connTo(node)
	if c == nil {
		p.counters.unconnected.Add(1)
		m.Done()
		return
	}
	kind := replication.KindOf(m.Type)
	if kind == 0 { // nobody asks for what would send one
		p.counters.dropped.Add(1)
		p.logger.Error("a message of a kind that does not travel is not sent", "type", m.Type, "to", node)
		m.Done()
		return
	}
	if kind == wire.PeerKindRaft {
		small := replication.RaftMessage(m)
		taken, notify := c.queue.putRaft(&small)
		if !taken {
			p.counters.dropped.Add(1)
		}
		m.Done()
		if notify {
			c.loop.push(c)
		}
		return
	}
	head := newBuffer(minPeerFrame + peerEntryTable*len(m.Entries))
	head.bytes = replication.AppendFrame(head.bytes, m)
	f := peerFrame{head: head, size: len(head.bytes)}
	if kind == wire.PeerKindAppend {
		f.message = m
		for i := range m.Entries {
			f.size += len(m.Entries[i].Data)
		}
	} else {
		defer m.Done()
	}
	meta, from := m.Meta, m.From
	if f.size > wire.MaxPeerFrameBytes {
		p.counters.dropped.Add(1)
		f.free()
		p.logger.Error("a message is longer than a frame may be; it is not sent", "bytes", f.size, "to", node)
		return
	}
	if !c.put(peerEntries, f) {
		p.counters.dropped.Add(1)
		p.handler.Dropped(meta, from, node)
	}
}

// peerEntryTable is what one entry takes in the table of an APPEND.
const peerEntryTable = 24

// Beat implements replication.Transport.
func (p *peerSet) Beat(node uint32, b replication.Heartbeat) {
	c := p.connTo(node)
	if c == nil {
		p.counters.unconnected.Add(1)
		return
	}
	beat := replication.PeerBeat(&b)
	pulse := c.pulse()
	if !c.queue.putBeat(&beat, pulse) {
		p.counters.dropped.Add(1)
		return
	}
	if b.Context != nil && c.queue.flushBeats(pulse) {
		c.loop.push(c)
	}
}

// pulse is what the next HEARTBEATS say of this node.
func (c *peerConn) pulse() pulse {
	p := pulse{tick: c.set.tick.Load(), heard: c.heard.Load()}
	if c.set.lacksSpace != nil && c.set.lacksSpace() {
		p.state = wire.PeerLacksSpace
	}
	return p
}

// LacksSpace reports whether a node said last that its disk refuses records.
func (p *peerSet) LacksSpace(node uint32) bool {
	n := p.node(node)
	return n != nil && n.lacksSpace.Load()
}

// Tick is the passing of 100 ms: it sends the heartbeats that have gathered, and
// looks who has fallen silent. One goroutine calls it.
func (p *peerSet) Tick() {
	tick := p.tick.Add(1)
	for _, n := range *p.nodes.Load() {
		n.passed(tick)
		if c := n.conn.Load(); c != nil {
			c.calls.expire(tick)
			if c.queue.flushBeats(c.pulse()) {
				c.loop.push(c)
			}
		}
	}
	if o := p.standing(); !o.disowned() {
		p.outcast = 0
	} else if p.outcast++; p.outcast == removedTicks && p.removed != nil {
		p.removed(o.word)
		p.removed = nil
	}
}

// standing is what the other nodes say of this one.
type standing struct {
	nodes    int      // others that there are
	member   bool     // one is connected
	unasked  int      // have not been tried yet
	stranger int      // do not take it for the member that they know
	word     peerWord // of one of these, the one that says most
}

func (p *peerSet) standing() standing {
	nodes := *p.nodes.Load()
	s := standing{nodes: len(nodes)}
	for _, n := range nodes {
		s.member = s.member || n.conn.Load() != nil
		switch word := peerWord(n.word.Load()); word {
		case wordNone:
			s.unasked++
		case wordStranger, wordTwin, wordReplaced:
			s.stranger++
			s.word = max(s.word, word)
		}
	}
	return s
}

// disowned reports whether most of the other nodes take this one for a stranger, and
// none is connected. Those that lag behind do not know that it has joined; a majority
// does not lag.
func (s standing) disowned() bool { return !s.member && s.stranger > s.nodes/2 }

// awaitWelcome waits until a node has taken this one for a member, or all were tried and
// none that answers takes it for a stranger. It also ends when one of the channels is
// closed.
func (p *peerSet) awaitWelcome(givenUp, removed <-chan struct{}) {
	for said := false; ; {
		s := p.standing()
		if s.member || s.unasked+s.stranger == 0 {
			return
		}
		if s.stranger > 0 && !said {
			said = true
			p.logger.Warn("a node does not take this one for a member of the cluster; it serves nobody before one does", "node", p.self.Node)
		}
		select {
		case <-p.judged:
		case <-givenUp:
			return
		case <-removed:
			return
		}
	}
}

// wasJudged wakes awaitWelcome.
func (p *peerSet) wasJudged() {
	select {
	case p.judged <- struct{}{}:
	default:
	}
}

// Announce tells all nodes, and those that connect later, which partitions this node
// leads: what has changed since the last call. The epoch 0 is of one that it leads no
// longer.
func (p *peerSet) Announce(changed []wire.PeerLeader) {
	if len(changed) == 0 {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, l := range changed {
		if l.Epoch == 0 {
			delete(p.leading, l.Replica)
		} else {
			p.leading[l.Replica] = l
		}
	}
	for _, n := range *p.nodes.Load() {
		if c := n.conn.Load(); c != nil {
			c.sendLeaders(changed)
		}
	}
}

// announceTo tells a node that has connected everything, and that this was all: it may have
// heard on another connection of what this node led then.
func (p *peerSet) announceTo(c *peerConn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	c.sendLeaders(slices.Collect(maps.Values(p.leading)))
	c.sendLeadersFrame(nil)
}

// leadersInFrame is how many leaders one LEADERS frame tells of.
const leadersInFrame = wire.MaxPeerBeatsBytes / 40

func (c *peerConn) sendLeaders(leaders []wire.PeerLeader) {
	for piece := range slices.Chunk(leaders, leadersInFrame) {
		if !c.sendLeadersFrame(piece) {
			return
		}
	}
}

func (c *peerConn) sendLeadersFrame(leaders []wire.PeerLeader) bool {
	if !c.send(wire.PeerKindLeaders, &wire.PeerLeaders{Leaders: leaders}) {
		c.set.counters.dropped.Add(1)
		c.shut(errors.New("too much waits for the node")) // what it knows would stay wrong
		return false
	}
	return true
}

// hello is what this node says of itself.
func (p *peerSet) hello(attempt uint32) wire.PeerHello {
	s := &p.self
	return wire.PeerHello{
		MinVersion: wire.MinPeerVersion, MaxVersion: wire.MaxPeerVersion, MinLevel: s.MinLevel, MaxLevel: s.MaxLevel,
		Cluster: s.Cluster, Node: s.Node, Store: s.Store, Boot: s.Boot, Attempt: attempt,
		ClientAddress: s.ClientAddress, PeerAddress: s.PeerAddress,
	}
}

// common checks what must hold of both HELLO and WELCOME.
func (p *peerSet) common(h *wire.PeerHello) *wire.Error {
	s := &p.self
	switch {
	case h.MaxVersion < wire.MinPeerVersion || h.MinVersion > wire.MaxPeerVersion:
		return wire.Errorf(wire.CodeVersion, "node %d speaks versions %d to %d of the peer protocol, node %d speaks %d to %d; upgrade the older one",
			h.Node, h.MinVersion, h.MaxVersion, s.Node, wire.MinPeerVersion, wire.MaxPeerVersion)
	case h.MaxLevel < s.MinLevel || h.MinLevel > s.MaxLevel:
		return wire.Errorf(wire.CodeVersion, "node %d knows feature levels %d to %d, node %d knows %d to %d; upgrade the older one",
			h.Node, h.MinLevel, h.MaxLevel, s.Node, s.MinLevel, s.MaxLevel)
	case h.Cluster != s.Cluster:
		return wire.Errorf(wire.CodeClusterMismatch, "node %d belongs to another cluster than node %d; check where it was told to join", h.Node, s.Node)
	}
	return nil
}

// admit decides on the HELLO of an accepted connection: it answers WELCOME, and makes
// c the connection to its node, or REFUSED. Of two connections one stays: that of the
// node with the higher ID if both dial at once, otherwise the newer.
func (p *peerSet) admit(c *peerConn) (*wire.PeerHello, *wire.PeerRefused) {
	h := &c.theirs
	refuse := func(code wire.ErrorCode, format string, args ...any) (*wire.PeerHello, *wire.PeerRefused) {
		return nil, &wire.PeerRefused{Code: code, Detail: fmt.Sprintf(format, args...)}
	}
	if err := p.common(h); err != nil {
		return refuse(err.Code, "%s", err.Detail)
	}
	if h.Node == p.self.Node {
		if h.Store == p.self.Store {
			return refuse(wire.CodeRefused, "node %d has connected to itself; its list of peers or what it advertises is wrong", h.Node)
		}
		return refuse(wire.CodeRefused, "node ID %d is in use by another data directory; give this node another --node-id", h.Node)
	}
	n := p.node(h.Node)
	if n == nil {
		return refuse(wire.CodeNotMember, "node %d is no member of the cluster as far as node %d knows; it must join first", h.Node, p.self.Node)
	}
	if n.store != h.Store && !p.mutant.anyNode {
		return refuse(wire.CodeFenced, "node ID %d belongs to another data directory; it must join again to replace that one", h.Node)
	}
	return n.accept(c)
}

// check judges the WELCOME of the node that was dialled.
func (p *peerSet) check(n *peerNode, h *wire.PeerHello) error {
	if err := p.common(h); err != nil {
		return err
	}
	if h.Node != n.id || h.Store != n.store {
		return wire.Errorf(wire.CodeRefused, "the address of node %d is answered by node %d or another data directory; check what it advertises", n.id, h.Node)
	}
	return nil
}

// peerNode is one other node.
type peerNode struct {
	set    *peerSet
	id     uint32
	store  [16]byte
	ctx    context.Context
	cancel context.CancelFunc
	wake   chan struct{} // the connection was lost: dial at once

	conn  atomic.Pointer[peerConn] // open; written under mu
	alive atomic.Bool              // live.up, for readers
	// word is what came of dialling the node last, a peerWord.
	word atomic.Uint32
	// lacksSpace is what it said last of its disk.
	lacksSpace atomic.Bool

	// mu guards the following. The handler hears of the node under it, so that what it
	// hears is in order.
	mu      sync.Mutex
	address string
	attempt uint32    // of our last HELLO or WELCOME
	dialing *peerConn // its HELLO is out and not answered
	boot    uint64    // of the node, as of the last connection
	theirs  uint32    // its attempt of then
	live    liveness
	removed bool
}

// peerWord is what came of dialling a node.
type peerWord uint32

const (
	wordNone     peerWord = iota // it was not tried
	wordTried                    // it is connected, or cannot be reached, or has other worries
	wordStranger                 // it says that this node is no member
	wordTwin                     // it hears another process of the same data directory
	wordReplaced                 // it says that this node's ID belongs to another data directory
)

// wordOf is what a node's refusal says of this one.
func wordOf(err error) peerWord {
	switch {
	case errors.Is(err, wire.CodeNotMember):
		return wordStranger
	case errors.Is(err, wire.CodeFenced):
		return wordReplaced
	case errors.Is(err, wire.CodeAlreadyExists):
		return wordTwin
	}
	return wordTried
}

// note keeps what came of dialling the node.
func (n *peerNode) note(word peerWord) {
	n.word.Store(uint32(word))
	n.set.wasJudged()
}

func (n *peerNode) setAddress(address string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.address = address
}

// remove ends the connection and dialing.
func (n *peerNode) remove(cause error) {
	n.mu.Lock()
	n.removed = true
	n.mu.Unlock()
	n.cancel()
	if c := n.conn.Load(); c != nil {
		c.shut(cause)
	}
}

// beginHandshake asks whether a connection that was dialled is still wanted.
func (n *peerNode) beginHandshake(c *peerConn) (hello wire.PeerHello, ok bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.removed || n.conn.Load() != nil || n.dialing != nil {
		return hello, false
	}
	n.dialing = c
	n.attempt++
	return n.set.hello(n.attempt), true
}

// accept decides whether c, whose HELLO has come, becomes the connection.
func (n *peerNode) accept(c *peerConn) (*wire.PeerHello, *wire.PeerRefused) {
	n.mu.Lock()
	defer n.mu.Unlock()
	duplicate := &wire.PeerRefused{Code: wire.CodeDuplicate, Detail: "another connection between the two nodes is kept"}
	switch {
	case n.removed:
		return nil, &wire.PeerRefused{Code: wire.CodeRefused, Detail: "the node is no member any more, or the broker stops"}
	case n.dialing != nil && n.set.self.Node < n.id:
		return nil, duplicate
	case n.twinLocked(c):
		return nil, &wire.PeerRefused{Code: wire.CodeAlreadyExists, Detail: fmt.Sprintf("node %d runs already, from %s: two processes have copies of its data directory", n.id, n.conn.Load().remote)}
	case !n.newerLocked(c):
		return nil, duplicate
	}
	c.node = n
	n.attempt++
	welcome := n.set.hello(n.attempt)
	return &welcome, nil
}

// newerLocked reports whether c is newer than the connection there is, or was: a
// HELLO that has waited somewhere for longer than the connection lasted is stale.
func (n *peerNode) newerLocked(c *peerConn) bool {
	if c.theirs.Boot == n.boot {
		return c.theirs.Attempt > n.theirs
	}
	return !n.twinLocked(c)
}

// twinLocked reports whether c is of another process than the connection there is. The
// connection of a process that has ended is closed by its kernel, and one whose machine is
// gone after a second of silence; until then what comes in its name may be a copy of its
// data directory, which would acknowledge what the other one does not have.
func (n *peerNode) twinLocked(c *peerConn) bool {
	return n.conn.Load() != nil && c.theirs.Boot != n.boot && !n.set.mutant.anyTwin
}

// welcomed decides whether c, which was dialled and is welcome, becomes the connection.
func (n *peerNode) welcomed(c *peerConn) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.removed || n.dialing != c || !n.newerLocked(c) {
		return false
	}
	n.dialing = nil
	return true
}

// opened makes c the connection of the node. Nothing is sent on it before.
func (n *peerNode) opened(c *peerConn) {
	n.mu.Lock()
	old := n.conn.Swap(c)
	n.boot, n.theirs = c.theirs.Boot, c.theirs.Attempt
	n.set.counters.connected.Add(1)
	up := n.live.welcomed(n.set.tick.Load())
	n.alive.Store(true)
	n.note(wordTried)
	if old != nil {
		n.set.handler.Node(replication.PeerEvent{Kind: replication.PeerUnreachable, Node: n.id})
	}
	if up {
		n.set.logger.Info("node connected", "node", n.id, "address", c.remote)
		n.set.handler.Node(replication.PeerEvent{Kind: replication.PeerUp, Node: n.id})
	}
	removed := n.removed // since the handshake began
	n.mu.Unlock()
	if old != nil {
		old.shut(errPeerReplaced)
	}
	if removed {
		c.shut(errPeerRemoved)
	}
	n.set.announceTo(c)
}

// lost notes the end of a connection.
func (n *peerNode) lost(c *peerConn, open bool) {
	n.mu.Lock()
	if n.dialing == c {
		n.dialing = nil
	}
	if open {
		n.set.counters.lost.Add(1)
	}
	if n.conn.CompareAndSwap(c, nil) {
		n.set.handler.Node(replication.PeerEvent{Kind: replication.PeerUnreachable, Node: n.id})
		if !n.removed {
			n.set.logger.Info("connection to node lost", "node", n.id, "cause", c.cause)
		}
	}
	if n.removed && n.conn.Load() == nil && n.live.refused() {
		n.alive.Store(false)
		n.set.handler.Node(replication.PeerEvent{Kind: replication.PeerDown, Node: n.id})
	}
	n.mu.Unlock()
	if !open {
		return
	}
	select {
	case n.wake <- struct{}{}:
	default:
	}
}

// heard notes a HEARTBEATS frame on c.
func (n *peerNode) heard(c *peerConn, b *wire.PeerBeats) {
	c.heard.Store(max(c.heard.Load(), b.Tick))
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.conn.Load() == c {
		n.live.beat(n.set.tick.Load(), b.Heard)
		n.lacksSpace.Store(b.State&wire.PeerLacksSpace != 0)
		if n.set.mutant.anySound {
			n.live.moved = n.set.tick.Load()
		}
	}
}

// leads hands on what the node says on c of what it leads, unless another connection has taken
// the place of c or the node is down: what it says when it is connected again is newer, and is
// everything.
func (n *peerNode) leads(c *peerConn, leaders []wire.PeerLeader) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.conn.Load() == c && n.alive.Load() {
		n.set.handler.Leaders(n.id, leaders)
	}
}

// passed looks whether the node has fallen silent.
func (n *peerNode) passed(tick uint32) {
	n.mu.Lock()
	silent := n.live.passed(tick)
	if silent {
		n.downLocked(false, errPeerSilent)
	}
	n.mu.Unlock()
	if c := n.conn.Load(); silent && c != nil {
		c.shut(errPeerSilent) // the next one tells sooner when it hears us again
	}
}

// portClosed notes that nothing listens on the node's port.
func (n *peerNode) portClosed(err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.conn.Load() == nil && n.live.refused() {
		n.downLocked(true, err)
	}
}

func (n *peerNode) downLocked(refused bool, cause error) {
	n.alive.Store(false)
	n.set.counters.downs.Add(1)
	n.set.logger.Warn("node is down", "node", n.id, "cause", cause)
	n.set.handler.Node(replication.PeerEvent{Kind: replication.PeerDown, Node: n.id, Refused: refused})
}

// wanted is the address to dial, empty while there is nothing to dial.
func (n *peerNode) wanted() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.conn.Load() != nil {
		return ""
	}
	return n.address
}

// keepDialing connects to the node whenever there is no connection.
func (n *peerNode) keepDialing() {
	pause := minDialPause
	said := "" // of what went wrong, since the last connection
	var began time.Time
	for n.ctx.Err() == nil {
		address := n.wanted()
		if address == "" {
			n.word.CompareAndSwap(uint32(wordNone), uint32(wordTried))
			n.set.wasJudged()
			pause, said = minDialPause, ""
			n.sleep(maxDialPause)
			continue
		}
		if early := minDialPause - time.Since(began); early > 0 { // connections that end as soon as they began
			if !n.sleep(early) {
				continue
			}
		}
		began = time.Now()
		err := n.dial(address)
		if err == nil {
			continue
		}
		if portClosed(err) {
			n.portClosed(err)
		}
		if !errors.Is(err, wire.CodeDuplicate) && !errors.Is(err, errPeerReplaced) && n.ctx.Err() == nil {
			n.set.counters.dialErrors.Add(1)
			n.note(wordOf(err))
			if text := err.Error(); text != said {
				said = text
				level, what := slog.LevelWarn, "a node cannot be reached; trying again until it can"
				if errors.Is(err, wire.CodeNotMember) { // or this node was removed: see Removed
					level, what = slog.LevelInfo, "a node does not know this one, as for a moment after joining; trying again until it does"
				}
				n.set.logger.Log(n.ctx, level, what, "node", n.id, "address", address, "err", err)
			}
		}
		n.sleep(pause)
		pause = min(2*pause, maxDialPause)
	}
}

// sleep waits for d, or until the connection is lost or nothing is wanted any more. It
// reports whether all of d has passed.
func (n *peerNode) sleep(d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-n.ctx.Done():
	case <-n.wake:
	case <-timer.C:
		return true
	}
	return false
}

// dial makes one attempt. It returns when the handshake has ended.
func (n *peerNode) dial(address string) error {
	dialer := net.Dialer{Timeout: peerDialTimeout}
	conn, err := dialer.DialContext(n.ctx, "tcp", address)
	if err != nil {
		return err
	}
	_ = addressOf(conn) // see there: gnet and zones
	c := newPeerConn(n.set, conn, n, func() {})
	if err := n.set.engine.register(conn, c); err != nil && !c.opened.Load() {
		return err
	}
	select {
	case err = <-c.outcome:
	case <-n.ctx.Done():
		c.shut(errPeerStopped)
		select {
		case err = <-c.outcome:
		case <-n.set.engine.stopped:
			err = errPeerStopped
		}
	}
	return err
}
