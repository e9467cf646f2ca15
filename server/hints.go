package server

import (
	"slices"
	"sync"

	"github.com/lockstepmq/lockstep/cluster"
	"github.com/lockstepmq/lockstep/wire"
)

// hints is who leads which partition, as the leaders themselves say. It is no
// metadata: a new leader announces itself to all nodes, the highest epoch wins, and a
// hint makes nobody serve, only the group of a replica does.
type hints struct {
	mu     sync.RWMutex
	leader map[uint64]hint // by replica
	gone   map[uint64]hint // what dead nodes have said last
}

// hint is what a leader says of itself.
type hint struct {
	node uint32
	wire.PeerLeader
	interrupted bool // it was said on a connection that has ended
}

// note takes what a node says. It reports whether anybody leads now who did not.
func (h *hints) note(node uint32, leaders []wire.PeerLeader) (changed bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.leader == nil {
		h.leader = make(map[uint64]hint)
	}
	for _, l := range leaders {
		old, known := h.leader[l.Replica]
		switch {
		case l.Epoch == 0:
			delete(h.leader, l.Replica)
			delete(h.gone, l.Replica)
			changed = changed || known
		case !known || l.Epoch >= old.Epoch || old.interrupted:
			h.leader[l.Replica] = hint{node: node, PeerLeader: l}
			changed = changed || !known || l.Epoch != old.Epoch || l.State != old.State || l.Full != old.Full || l.Unattended != old.Unattended
		}
	}
	return changed
}

// interrupted notes that a connection to a node has ended: what it has said last may have been
// lost. On the next one it says everything.
func (h *hints) interrupted(node uint32) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for id, l := range h.leader {
		if l.node == node {
			l.interrupted = true
			h.leader[id] = l
		}
	}
}

// said forgets what a node has said on earlier connections and not on this one, on which it
// has said everything now. It reports whether there was anything.
func (h *hints) said(node uint32) (changed bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for id, l := range h.leader {
		if l.node == node && l.interrupted {
			delete(h.leader, id)
			changed = true
		}
	}
	return changed
}

// forgetNode forgets what a dead node has said.
func (h *hints) forgetNode(node uint32) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.gone == nil {
		h.gone = make(map[uint64]hint)
	}
	for id, l := range h.gone {
		if l.node == node {
			delete(h.gone, id)
		}
	}
	for id, l := range h.leader {
		if l.node == node {
			h.gone[id] = l
			delete(h.leader, id)
		}
	}
}

// last is what the partition's last leader has said, on a node that is dead by now. Where a
// log that is left has an entry of a later term, another has led after it, unheard.
func (h *hints) last(p *cluster.Partition, left []wire.RemainingReplica) (best hint, ok bool) {
	h.mu.RLock()
	defer h.mu.RUnlock()
	for i := range p.Replicas {
		if l, known := h.gone[p.Replicas[i].ID]; known && (!ok || l.Epoch > best.Epoch) {
			best, ok = l, true
		}
	}
	later := func(r wire.RemainingReplica) bool { return r.Term > uint64(best.Epoch) }
	return best, ok && !slices.ContainsFunc(left, later)
}

// of is the hint of the partition's leader: of those of its replicas the one with the
// highest epoch.
func (h *hints) of(p *cluster.Partition) (best hint, ok bool) {
	h.mu.RLock()
	defer h.mu.RUnlock()
	for i := range p.Replicas {
		l, known := h.leader[p.Replicas[i].ID]
		if known && l.node == p.Replicas[i].Node && (!ok || l.Epoch > best.Epoch) {
			best, ok = l, true
		}
	}
	return best, ok
}
