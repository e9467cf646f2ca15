package server

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lockstepmq/lockstep/cluster"
	"github.com/lockstepmq/lockstep/wire"
)

const (
	// controlPeriod lies between two plans of the controller.
	controlPeriod = 500 * time.Millisecond
	// busyPeriod lies between them while there is something to do: what was asked for in
	// one plan is mostly done in the next.
	busyPeriod = 100 * time.Millisecond
)

// livelyTicks is how long a node may be silent until another takes its vote on the
// metadata: 30 s.
const livelyTicks = 300

// nodeWatch counts for how long nodes have been silent, in ticks of this node.
type nodeWatch struct {
	tick atomic.Uint64
	mu   sync.Mutex
	down map[uint32]int
	said map[uint64]wire.PeerLeader // what was announced
}

// watchNodes looks who is there. Once a tick.
func (b *broker) watchNodes() {
	w := &b.nodes
	w.tick.Add(1)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.down == nil {
		w.down = map[uint32]int{}
	}
	seen := make(map[uint32]int, len(w.down))
	for _, n := range b.View().Nodes {
		seen[n.ID] = 0
		if !b.reachable(n.ID) {
			seen[n.ID] = w.down[n.ID] + 1
		}
	}
	w.down = seen
}

// downFor is for how many ticks a node has been silent.
func (b *broker) downFor(node uint32) int {
	b.nodes.mu.Lock()
	defer b.nodes.mu.Unlock()
	return b.nodes.down[node]
}

// lively reports whether a node is there, or was a moment ago.
func (b *broker) lively(node uint32) bool { return b.downFor(node) < livelyTicks }

// keepControl runs the controller while this node leads the metadata.
func (b *broker) keepControl(ctx context.Context) {
	var control *cluster.Controller
	for period := controlPeriod; pause(ctx, period); {
		period = controlPeriod
		if !b.meta.leads.Load() {
			control = nil // it forgets everything with the leadership
			continue
		}
		if control == nil {
			control = &cluster.Controller{ReplaceAfter: int(b.cfg.ReplaceAfter / tickPeriod)}
		}
		if b.control(ctx, control) {
			period = busyPeriod
		}
	}
}

// control plans once, and reports whether there was something to do.
func (b *broker) control(ctx context.Context, c *cluster.Controller) (busy bool) {
	v := b.View()
	health := cluster.Health{
		Alive: b.reachable, DownFor: b.downFor, Gone: b.givenUp, LacksSpace: b.lacksSpace,
		Leader: func(p *cluster.Partition) uint64 {
			l, _ := b.hints.of(p)
			return l.Replica
		},
	}
	commands, transfers := c.Plan(v, health, b.nodes.tick.Load())
	var wait sync.WaitGroup
	for _, c := range commands {
		if c.RemoveNode != nil && c.RemoveNode.Node == b.identity.NodeID {
			continue // another leads the metadata first
		}
		wait.Add(1)
		b.submit(c, func(r cluster.Result) {
			if r.Err != nil {
				b.logger.Warn("the controller's plan was refused; it plans again", "err", r.Err)
			}
			wait.Done()
		})
	}
	for _, t := range transfers {
		b.transfer(t.Node, t.From, t.To)
	}
	done := make(chan struct{})
	go func() { wait.Wait(); close(done) }()
	select {
	case <-done:
	case <-ctx.Done():
	}
	return len(commands)+len(transfers) > 0
}

// transfer asks the node of a leading replica to hand the leadership to another.
func (b *broker) transfer(node uint32, from, to uint64) {
	if node == b.identity.NodeID {
		_ = b.transferHere(from, to)
		return
	}
	body := (&wire.PeerFetch{Replica: from, To: to}).Append(nil)
	b.network.Request(node, wire.PeerTransfer, body, func(code wire.ErrorCode, body []byte) {
		if code != wire.CodeOK {
			b.logger.Debug("a leadership is not handed over", "node", node, "err", string(body))
		}
	})
}

// transferHere hands the leadership of a replica of this node to another, 0 for the
// best.
func (b *broker) transferHere(from, to uint64) error {
	r := b.replicaByID(from)
	if r == nil || !r.leads.Load() {
		return wire.Errorf(wire.CodeNotLeader, "replica %d does not lead here", from)
	}
	r.transfer.Store(to)
	r.ask(requestTransfer)
	return nil
}

// leadChanged tells everybody that a replica of this node leads now, or no longer.
func (b *broker) leadChanged(r *partitionReplica) { b.say([]*partitionReplica{r}) }

func (r *partitionReplica) saysOfItself() wire.PeerLeader {
	l := wire.PeerLeader{Replica: r.replicaID}
	if r.leads.Load() {
		info := r.info()
		// One that is alone leads before its first election.
		l.Full, l.Unattended = info.Flags&wire.PartitionFull != 0, info.Flags&wire.PartitionUnattended != 0
		l.Epoch, l.State, l.Start, l.Next, l.Bytes = max(info.Epoch, 1), wire.PartitionActive, info.StartOffset, info.NextOffset, info.Bytes
	}
	return l
}

// announcePeriod is after how many ticks the ends of what this node leads are told.
const announcePeriod = 10

// announce tells the other nodes how far what this one leads has come. Once a tick.
func (b *broker) announce() {
	if b.nodes.tick.Load()%announcePeriod != 0 {
		return
	}
	var all []*partitionReplica
	b.each(func(r *partitionReplica) { all = append(all, r) })
	b.say(all)
}

// say tells the other nodes, and this one, what they do not know yet of its replicas. What is said
// last of a replica is how it ended: that one has stopped is said by its last turn.
func (b *broker) say(replicas []*partitionReplica) {
	w := &b.nodes
	w.mu.Lock()
	if w.said == nil {
		w.said = map[uint64]wire.PeerLeader{}
	}
	var news []wire.PeerLeader
	for _, r := range replicas {
		l := r.saysOfItself()
		old, known := w.said[l.Replica]
		if old == l || l.Epoch == 0 && !known {
			continue
		}
		if w.said[l.Replica] = l; l.Epoch == 0 {
			delete(w.said, l.Replica)
		}
		news = append(news, l)
	}
	changed := false
	if len(news) > 0 {
		b.network.Announce(news)
		changed = b.hints.note(b.identity.NodeID, news)
	}
	w.mu.Unlock()
	if changed {
		b.leadersChanged()
	}
}

// leadersChanged lets sessions tell their clients that leaders changed.
func (b *broker) leadersChanged() {
	b.mu.RLock()
	moved := b.leadersMoved
	b.mu.RUnlock()
	if moved != nil {
		moved()
	}
}

// hasSuccessor reports whether there is anybody who could lead instead.
func (r *partitionReplica) hasSuccessor() bool {
	p := r.intent.Load()
	return slices.ContainsFunc(p.Voters, func(id uint64) bool {
		o := p.Replica(id)
		return o != nil && id != r.replicaID && r.broker.network.Alive(o.Node)
	})
}

// hasSuccessor reports whether another node could lead the metadata.
func (m *metadataReplica) hasSuccessor() bool {
	if m.voters.Load() <= 1 {
		return false
	}
	for _, n := range m.broker.View().Nodes {
		if n.ID != m.broker.identity.NodeID && m.broker.network.Alive(n.ID) {
			return true
		}
	}
	return false
}

// handOverPatience bounds how long a broker that stops waits for others to lead.
const handOverPatience = 2 * time.Second

// handOver gives the leaderships of this node away before it stops: then the others do
// not have to find out that it is gone.
func (b *broker) handOver() {
	if b.network == nil {
		return
	}
	has := func(r *partitionReplica) bool { return r.leads.Load() && r.hasSuccessor() }
	leading := func() (n int) {
		b.each(func(r *partitionReplica) {
			if has(r) {
				n++
			}
		})
		return n
	}
	b.each(func(r *partitionReplica) {
		if has(r) {
			r.transfer.Store(0)
			r.ask(requestTransfer)
		}
	})
	b.meta.handOver.Store(true)
	b.meta.schedule()
	for until := time.Now().Add(handOverPatience); time.Now().Before(until) && (leading() > 0 || b.meta.leads.Load() && b.meta.hasSuccessor()); {
		time.Sleep(tickPeriod / 10)
	}
}
