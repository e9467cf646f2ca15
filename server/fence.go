package server

import (
	"sync"
	"time"

	"github.com/lockstepmq/lockstep/wire"
)

// Who opens a named producer ends the epoch of whoever had the name, in every partition
// and before it is answered (RULES R5). The metadata says which epoch is the newest; a
// leader refuses batches of earlier ones as soon as its node knows. The opener is answered
// when all nodes that can be reached know, and what their partitions had proposed before is
// applied: so the new holder finds everything that the old one will ever have written.
//
// A partition that nobody leads for the moment is not waited for: what its last leader had
// proposed may still be committed by the next one. It has an answer no more.

// fencePatience bounds how long the opener of a named producer waits.
const fencePatience = 5 * time.Second

// drains wait until what a partition has proposed so far is applied, or it is clear that
// this replica is not the one that will do it.
type drains struct {
	mu     sync.Mutex
	asked  []func()
	closed bool

	waiting []drain // owner only
}

type drain struct {
	index wire.Index
	then  func()
}

// drained calls then, once and in a turn or here, when nothing that was proposed before
// is on its way. then does not block.
func (r *partitionReplica) drained(then func()) {
	d := &r.drains
	d.mu.Lock()
	if d.closed {
		d.mu.Unlock()
		then()
		return
	}
	d.asked = append(d.asked, then)
	d.mu.Unlock()
	r.schedule()
}

// settleDrains is called at the end of every turn. Owner only.
func (r *partitionReplica) settleDrains() {
	d := &r.drains
	d.mu.Lock()
	asked := d.asked
	d.asked = nil
	d.mu.Unlock()
	for _, then := range asked {
		d.waiting = append(d.waiting, drain{r.group.NextIndex() - 1, then})
	}
	if len(d.waiting) == 0 {
		return
	}
	leader, _ := r.group.Lead()
	applied := r.group.Applied()
	kept := d.waiting[:0]
	for _, w := range d.waiting {
		if leader == r.replicaID && applied < w.index {
			kept = append(kept, w)
			continue
		}
		w.then()
	}
	clear(d.waiting[len(kept):])
	d.waiting = kept
}

// endDrains lets everybody go. Owner only.
func (r *partitionReplica) endDrains() {
	d := &r.drains
	d.mu.Lock()
	d.closed = true
	asked := d.asked
	d.asked = nil
	d.mu.Unlock()
	for _, w := range d.waiting {
		asked = append(asked, w.then)
	}
	d.waiting = nil
	for _, then := range asked {
		then()
	}
}

// fenceHere calls then when this node knows the metadata up to an index, and nothing of
// what its partitions had proposed before is on its way. Any goroutine.
func (b *broker) fenceHere(index wire.Index, then func()) {
	b.meta.metadata.WhenApplied(index, func() {
		all := countdown{left: 1, then: then}
		b.each(func(r *partitionReplica) {
			all.add()
			r.drained(all.done)
		})
		all.done()
	})
}

// fenceAll is fenceHere on every node that can be reached. err says which one has not
// answered in time.
func (b *broker) fenceAll(index wire.Index, then func(err error)) {
	var once sync.Once
	finish := func(err error) { once.Do(func() { then(err) }) }
	timer := time.AfterFunc(fencePatience, func() {
		finish(wire.Errorf(wire.CodeRetry, "not every node has heard of the new holder of the name within %s", fencePatience))
	})
	all := countdown{left: 1, then: func() { timer.Stop(); finish(nil) }}
	all.add()
	b.fenceHere(index, all.done)
	if b.network != nil {
		body := (&wire.PeerFetch{From: uint64(index)}).Append(nil)
		for _, n := range b.View().Nodes {
			if n.ID == b.identity.NodeID || !n.Broker() || !b.network.Alive(n.ID) {
				continue
			}
			all.add()
			b.network.Request(n.ID, wire.PeerFence, body, func(code wire.ErrorCode, _ []byte) {
				if code == wire.CodeOK || !b.network.Alive(n.ID) {
					all.done()
					return
				}
				finish(wire.Errorf(wire.CodeRetry, "node %d has not heard of the new holder of the name: %v", n.ID, code))
			})
		}
	}
	all.done()
}

// countdown calls then when as many have called done as were added.
type countdown struct {
	mu   sync.Mutex
	left int
	then func()
}

func (c *countdown) add() {
	c.mu.Lock()
	c.left++
	c.mu.Unlock()
}

func (c *countdown) done() {
	c.mu.Lock()
	c.left--
	last := c.left == 0
	c.mu.Unlock()
	if last {
		c.then()
	}
}
