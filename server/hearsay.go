package server

import (
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"

	"github.com/lockstepmq/lockstep/cluster"
	"github.com/lockstepmq/lockstep/replication"
	"github.com/lockstepmq/lockstep/wire"
)

// Whether a node is gone is not for one node to say, whose own links may be broken: it is
// gone if no node says that it hears it, and a majority of those that vote about the
// metadata says that it does not (RULES R10). Before a data directory takes the place of
// another, before replicas of a node that was silent for long are made anew, before another
// takes its vote on the metadata, and before a node that leaves and does not answer is
// removed, the metadata's leader asks all nodes that it can reach.

// hearsayPatience bounds the wait for what the others say.
const hearsayPatience = 2 * time.Second

// voting is who votes about the metadata.
type voting struct {
	sets atomic.Pointer[[2][]uint64] // replicas; the second set is empty unless voters are exchanged
}

func (v *voting) note(m replication.Members) { v.sets.Store(&[2][]uint64{m.Voters, m.Outgoing}) }

// hearing is one question about a node.
type hearing struct {
	broker *broker
	node   uint32

	mu     sync.Mutex
	left   int
	silent map[uint32]bool // nodes that do not hear it
	then   func(heard bool, err error)
}

// hears asks whether anybody hears a node with a data directory. then is called once, on any
// goroutine: with an error if nobody does, and fewer than a majority could be asked.
func (b *broker) hears(node uint32, store uuid.UUID, then func(heard bool, err error)) {
	if b.hearsHere(node, store) || b.oneOpinion.Load() {
		then(b.hearsHere(node, store), nil)
		return
	}
	h := &hearing{broker: b, node: node, left: 1, silent: map[uint32]bool{b.identity.NodeID: true}, then: then}
	timer := time.AfterFunc(hearsayPatience, func() { h.end(false) })
	h.then = func(heard bool, err error) { timer.Stop(); then(heard, err) }
	body := (&wire.PeerHears{Node: node, Store: store}).Append(nil)
	for _, n := range b.View().Nodes {
		if n.ID == b.identity.NodeID || n.ID == node || b.network == nil || !b.network.Alive(n.ID) {
			continue
		}
		h.mu.Lock()
		h.left++
		h.mu.Unlock()
		b.network.Request(n.ID, wire.PeerHear, body, func(code wire.ErrorCode, body []byte) {
			var m wire.PeerHeard
			if code != wire.CodeOK || m.Parse(body) != nil {
				h.said(n.ID, false, false)
				return
			}
			h.said(n.ID, m.Heard, !m.Heard)
		})
	}
	h.said(b.identity.NodeID, false, true)
}

// hearsHere reports whether this node hears another one with a data directory.
func (b *broker) hearsHere(node uint32, store uuid.UUID) bool {
	n, member := b.View().Node(node)
	return member && n.Store == store && b.reachable(node)
}

// said takes what a node says.
func (h *hearing) said(node uint32, heard, silent bool) {
	h.mu.Lock()
	if silent {
		h.silent[node] = true
	}
	h.left--
	over := h.left == 0
	h.mu.Unlock()
	if heard || over {
		h.end(heard)
	}
}

// end decides, once.
func (h *hearing) end(heard bool) {
	h.mu.Lock()
	then := h.then
	h.then = nil
	var err error
	for _, voters := range h.broker.meta.voting.sets.Load() {
		silent := 0
		for _, id := range voters {
			if h.silent[h.broker.nodeOfMeta(id)] {
				silent++
			}
		}
		if len(voters) > 0 && silent <= len(voters)/2 && !heard {
			err = wire.Errorf(wire.CodeUnavailable, "whether node %d is gone is not known: %d of %d nodes that vote about the metadata say so, no majority; start the others and try again", h.node, silent, len(voters))
		}
	}
	h.mu.Unlock()
	if then != nil {
		then(heard, err)
	}
}

// replaceTicks is for how long nobody must have heard a node before another takes its place:
// 3 s. One that has just been taken in is heard when it has started.
const replaceTicks = 30

// judgeJoin finds out whether the node that a joining one takes the place of is alive, and
// notes which data directory that is: another may have the ID when the command is applied.
func (b *broker) judgeJoin(c *cluster.Join, then func(error)) {
	c.Judged, c.Alive = uuid.Nil, false
	old, member := b.View().Node(c.Node)
	if !member || old.Store == c.Store {
		then(nil)
		return
	}
	c.Judged = old.Store
	b.hears(c.Node, old.Store, func(heard bool, err error) {
		c.Alive = heard
		if err == nil && !heard && b.downFor(c.Node) < replaceTicks && !b.oneOpinion.Load() {
			err = wire.Errorf(wire.CodeRetry, "node %d is silent since less than 3 s: it may have joined a moment ago, or be about to come back; ask again", c.Node)
		}
		then(err)
	})
}

// propose has a command proposed here, if this node leads the metadata. Only that node judges
// a Join: one that is proposed without, by who has just begun to lead, replaces nobody.
func (b *broker) propose(c cluster.Command, reply func(cluster.Result)) {
	submit := func() {
		b.meta.metadata.Submit(c, reply)
		b.meta.schedule()
	}
	if c.Join == nil {
		submit()
		return
	}
	if !b.meta.leads.Load() {
		c.Join.Judged, c.Join.Alive = uuid.Nil, false // of an earlier attempt
		submit()
		return
	}
	b.judgeJoin(c.Join, func(err error) {
		if err != nil {
			reply(cluster.Result{Err: err})
			return
		}
		submit()
	})
}

// givenUp reports whether a majority says that a node is gone. It waits for the answers.
func (b *broker) givenUp(node uint32) bool {
	n, member := b.View().Node(node)
	if !member {
		return true
	}
	said := make(chan bool, 1)
	b.hears(node, n.Store, func(heard bool, err error) { said <- !heard && err == nil })
	select {
	case gone := <-said:
		return gone
	case <-b.closing:
		return false
	}
}

// wordTicks is for how long the word of a majority counts for a turn: 3 s.
const wordTicks = 30

// words are what majorities said of nodes, for turns that cannot wait for it.
type words struct {
	mu     sync.Mutex
	asking map[uint32]bool
	gone   map[uint32]uint64 // nodes of which a majority has said so last, and at which tick
	spared int               // answers of another kind, for tests
}

// saidGone reports whether a majority has said a moment ago that a node is gone. It does not
// wait: each call asks, and what it hears counts for later ones.
func (b *broker) saidGone(node uint32) bool {
	n, member := b.View().Node(node)
	if !member {
		return true
	}
	w := &b.words
	w.mu.Lock()
	at, gone := w.gone[node]
	gone = gone && b.nodes.tick.Load()-at <= wordTicks
	ask := !w.asking[node]
	if w.asking == nil {
		w.asking, w.gone = map[uint32]bool{}, map[uint32]uint64{}
	}
	w.asking[node] = true
	w.mu.Unlock()
	if ask {
		b.hears(node, n.Store, func(heard bool, err error) {
			w.mu.Lock()
			defer w.mu.Unlock()
			delete(w.asking, node)
			now := b.nodes.tick.Load()
			maps.DeleteFunc(w.gone, func(n uint32, at uint64) bool { return n == node || now-at > wordTicks })
			if heard || err != nil {
				w.spared++
				return
			}
			w.gone[node] = now
		})
	}
	return gone
}
