package server

import (
	"errors"
	"slices"
	"sync/atomic"

	"github.com/lockstepmq/lockstep/cluster"
	"github.com/lockstepmq/lockstep/replication"
	"github.com/lockstepmq/lockstep/wire"
)

// network is what the broker needs of the connections to other nodes. *peerSet is one;
// tests connect brokers of one process. Its methods do not block.
type network interface {
	replication.Transport
	// SetMembers says who the other nodes are.
	SetMembers(members []peerMember)
	// Alive reports whether a node is up and hears this one.
	Alive(node uint32) bool
	// LacksSpace reports whether a node said last that its disk refuses records.
	LacksSpace(node uint32) bool
	// Request asks a node. then is called once, on any goroutine.
	Request(node uint32, op wire.PeerOp, body []byte, then func(code wire.ErrorCode, body []byte))
	// Announce tells all nodes what has changed of what this one leads.
	Announce(changed []wire.PeerLeader)
	// Tick is the passing of 100 ms.
	Tick()
	stop()
}

// peering is what a replica of a group with members on other nodes has beside its
// group. The zero value is right for one that is alone.
type peering struct {
	inbox *replication.Inbox
	ticks atomic.Int32
	quiet atomic.Bool // needs no ticks
	still int64       // see stoodStill; owner only
}

// wakeUp asks whether this replica still leads, if the process has stood still.
func (p *peering) wakeUp(b *broker) {
	if p.inbox != nil && b.stoodStill(&p.still) {
		p.inbox.PutEvent(replication.PeerEvent{Kind: replication.PeerResumed})
	}
}

// maxTurnTicks bounds the ticks of one turn: a process that slept for a minute must
// not hold as many elections as would have fit into it.
const maxTurnTicks = 2

// tick notes that 100 ms have passed. It reports whether the owner needs a turn.
func (p *peering) tick() bool {
	if p.inbox == nil || p.quiet.Load() {
		return false
	}
	p.ticks.Add(1)
	return true
}

// takeTicks takes the ticks since the last turn. Owner only.
func (p *peering) takeTicks() int { return int(min(p.ticks.Swap(0), maxTurnTicks)) }

// Message implements peerHandler.
func (b *broker) Message(m *replication.Message) kicker {
	if m.Meta {
		if m.To != b.identity.metaID() || !b.meta.inbox.Put(m) {
			return nil
		}
		return b.meta
	}
	r := b.replicaByID(m.To)
	if r == nil || !r.inbox.Put(m) {
		return nil
	}
	return r
}

// Beat implements peerHandler.
func (b *broker) Beat(h replication.Heartbeat) kicker {
	if h.Meta {
		if h.To != b.identity.metaID() || !b.meta.inbox.PutBeat(h) {
			return nil
		}
		return b.meta
	}
	r := b.replicaByID(h.To)
	if r == nil || !r.inbox.PutBeat(h) {
		return nil
	}
	return r
}

// Dropped implements peerHandler.
func (b *broker) Dropped(meta bool, replica uint64, node uint32) {
	e := replication.PeerEvent{Kind: replication.PeerUnreachable, Node: node}
	if meta {
		b.meta.inbox.PutEvent(e)
	} else if r := b.replicaByID(replica); r != nil {
		r.inbox.PutEvent(e)
	}
}

// Node implements peerHandler.
func (b *broker) Node(e replication.PeerEvent) {
	switch e.Kind {
	case replication.PeerDown:
		b.hints.forgetNode(e.Node)
	case replication.PeerUnreachable:
		b.hints.interrupted(e.Node)
	}
	b.meta.inbox.PutEvent(e)
	b.meta.schedule()
	b.each(func(r *partitionReplica) {
		if r.inbox != nil && r.hasPeerOn(e.Node) {
			r.inbox.PutEvent(e)
			r.schedule()
		}
	})
	b.leadersChanged()
}

// Leaders implements peerHandler.
func (b *broker) Leaders(node uint32, leaders []wire.PeerLeader) {
	changed := b.hints.note(node, leaders)
	if len(leaders) == 0 {
		changed = b.hints.said(node)
	}
	if changed {
		b.leadersChanged()
	}
}

// Request implements peerHandler.
func (b *broker) Request(node uint32, op wire.PeerOp, body []byte, reply func(code wire.ErrorCode, body []byte)) {
	switch op {
	case wire.PeerSubmit:
		b.submitRequest(body, reply)
	case wire.PeerFetchCheckpoint:
		var m wire.PeerFetch
		if err := m.Parse(body); err != nil {
			reply(wire.CodeMalformed, []byte(err.Error()))
			return
		}
		records, owner := b.meta.records, &b.meta.owner
		if !m.Meta {
			r := b.replicaByID(m.Replica)
			if r == nil {
				reply(wire.CodeUnavailable, []byte("the replica is not here"))
				return
			}
			records, owner = r.records, &r.owner
		}
		b.catchUp.checkpoint(owner, records, wire.Index(m.From), reply)
	case wire.PeerFetchFrames:
		var m wire.PeerFetch
		if err := m.Parse(body); err != nil {
			reply(wire.CodeMalformed, []byte(err.Error()))
			return
		}
		r := b.replicaByID(m.Replica)
		if r == nil {
			reply(wire.CodeUnavailable, []byte("the replica is not here"))
			return
		}
		b.catchUp.frames(&r.owner, r.records, wire.Index(m.From), wire.Index(m.To), reply)
	case wire.PeerStatus:
		s := b.ownStatus()
		reply(wire.CodeOK, s.Append(nil))
	case wire.PeerEnd:
		var m wire.PeerFetch
		if err := m.Parse(body); err != nil {
			reply(wire.CodeMalformed, []byte(err.Error()))
			return
		}
		b.endOf(m.Replica, func(end *wire.RemainingReplica) {
			if end == nil {
				reply(wire.CodeUnavailable, []byte("the replica is not here"))
				return
			}
			reply(wire.CodeOK, end.Append(nil))
		})
	case wire.PeerProduce:
		var m wire.PeerBatch
		if err := m.Parse(body); err != nil {
			reply(wire.CodeMalformed, []byte(err.Error()))
			return
		}
		b.produceHere(&m, func(code wire.ErrorCode) { reply(code, nil) })
	case wire.PeerFence:
		var m wire.PeerFencing
		if err := m.Parse(body); err != nil {
			reply(wire.CodeMalformed, []byte(err.Error()))
			return
		}
		b.fenceAt(&m, 0, reply)
	case wire.PeerHear:
		var m wire.PeerHears
		if err := m.Parse(body); err != nil {
			reply(wire.CodeMalformed, []byte(err.Error()))
			return
		}
		reply(wire.CodeOK, (&wire.PeerHeard{Heard: b.hearsHere(m.Node, m.Store)}).Append(nil))
	case wire.PeerTransfer:
		var m wire.PeerFetch
		if err := m.Parse(body); err != nil {
			reply(wire.CodeMalformed, []byte(err.Error()))
			return
		}
		if err := b.transferHere(m.Replica, m.To); err != nil {
			code := wire.CodeUnavailable
			_ = errors.As(err, &code)
			reply(code, []byte(err.Error()))
			return
		}
		reply(wire.CodeOK, nil)
	default:
		reply(wire.CodeUnsupported, []byte("no such request: "+op.String()))
	}
}

// lagging is what a group of this node needs to serve followers that lag.
func (b *broker) lagging(meta bool, own uint64, inbox *replication.Inbox, o *owner) (replication.Feed, func(uint32, replication.SnapshotOffer)) {
	if b.network == nil {
		return nil, nil
	}
	l := lagging{catchUp: b.catchUp, meta: meta, own: own, inbox: inbox, owner: o}
	return l, l.fetch
}

// reachable reports whether a node is this one or can be talked to.
func (b *broker) reachable(node uint32) bool {
	return node == b.identity.NodeID || b.network != nil && b.network.Alive(node)
}

// lacksSpace reports whether a node, this one or another, has said that its disk refuses
// records.
func (b *broker) lacksSpace(node uint32) bool {
	if node == b.identity.NodeID {
		return b.disk.Short()
	}
	return b.network != nil && b.network.LacksSpace(node)
}

// introduce tells the network who the other nodes are.
func (b *broker) introduce(v *cluster.View) {
	if b.network == nil {
		return
	}
	var members []peerMember
	for _, n := range v.Nodes {
		if n.ID != b.identity.NodeID {
			members = append(members, peerMember{Node: n.ID, Store: n.Store, Address: n.PeerAddress})
		}
	}
	if len(v.Nodes) == 0 { // nothing of the metadata has come yet
		for _, m := range b.identity.Members {
			members = append(members, peerMember{Node: m.Node, Store: m.Store, Address: m.PeerAddress})
		}
	}
	b.network.SetMembers(members)
}

// metaPeers are the nodes of the other replicas of group 0.
func (b *broker) metaPeers(v *cluster.View) map[uint64]uint32 {
	peers := map[uint64]uint32{}
	for _, m := range b.identity.Members {
		peers[m.MetaReplica] = m.Node
	}
	for _, n := range v.Nodes {
		peers[n.MetaID()] = n.ID
	}
	delete(peers, b.identity.metaID())
	return peers
}

// peersOf are the nodes of the other replicas of a partition.
func peersOf(p *cluster.Partition, mine uint64) map[uint64]uint32 {
	peers := map[uint64]uint32{}
	for _, r := range p.Replicas {
		if r.ID != mine && r.State != cluster.ReplicaLeft {
			peers[r.ID] = r.Node
		}
	}
	return peers
}

// founders is the configuration that a partition's log begins with.
func founders(p *cluster.Partition) []uint64 {
	if len(p.Founders) > 0 {
		return slices.Clone(p.Founders)
	}
	return []uint64{p.Replicas[0].ID}
}
