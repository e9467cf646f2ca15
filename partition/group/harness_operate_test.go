package group

import (
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/lockstepmq/lockstep/promise"
	"github.com/lockstepmq/lockstep/wire"
)

// What the harness does beside records and leaders: checkpoints, dead letters, and operators
// that park.

// checkpoint is the state of a replica after some entries.
type checkpoint struct {
	save    func([]byte) []byte
	content []byte // what save has brought, once it was asked
	applied int
	places  []Place
}

// checkpoint takes one of a broker that applies what is committed, in office or not.
func (h *harness) checkpoint() {
	b := h.brokers[h.rand.IntN(len(h.brokers))]
	h.saved = &checkpoint{save: b.state.Snapshot(), applied: b.applied, places: slices.Clone(b.places)}
	h.trace("checkpoint of leader %d behind entry %d", b.number, b.applied)
}

// install begins a replica with a checkpoint. It was captured a while ago and is encoded now.
func (b *broker) install(c *checkpoint) {
	if c.content == nil {
		c.content = c.save(nil)
	}
	var err error
	if b.state, err = Restore(c.content); err != nil {
		panic(fmt.Sprintf("a checkpoint does not restore: %v", err))
	}
	if g := b.state.Group(harnessGroup); g != nil && b.h.forgets != nil {
		b.h.forgets(g)
	}
	b.applied, b.places = c.applied, slices.Clone(c.places)
	for i := range b.places {
		b.known[b.places[i].Base] = b.h.chance(0.8)
	}
	b.h.trace("leader %d begins with the checkpoint behind entry %d", b.number, c.applied)
}

// letters tells the checker of records that are dead letters, or on their way back, by the entry
// at i. What consumers saw of the record before says nothing any more.
func (h *harness) letters(b *broker, i wire.Index) {
	for number, l := range b.state.Group(harnessGroup).Letters.Open {
		if l.Since != i || h.settled[number] {
			continue
		}
		h.settled[number] = true
		t := &taken{offset: l.Offset, epoch: i}
		for k := range b.places {
			if p := &b.places[k]; p.Base <= l.Offset && l.Offset < p.Next() {
				t.hash = binary.LittleEndian.Uint64(p.Index[16*(l.Offset-p.Base):])
			}
		}
		h.event(promise.Settled, nil, t, 0)
	}
}

// write has all dead letters written that are not known to be.
func (b *broker) write() {
	open := b.state.Group(harnessGroup).Letters.Open
	for _, number := range sorted(open) {
		b.letters = append(b.letters, open[number])
	}
}

// park stops a scope, or lets it go on.
func (h *harness) park() {
	b := h.brokers[h.rand.IntN(len(h.brokers))]
	if b.end() == 0 {
		return
	}
	scope := destinationScope
	switch kindOf(&b.state.Group(harnessGroup).Settings) {
	case hashed:
		scope = Scope(1 + h.rand.IntN(h.keys))
	case shared:
		scope = Scope(h.rand.IntN(int(b.end())))
	}
	done := func(error) {}
	if h.chance(0.5) {
		h.trace("leader %d parks %d", b.number, scope)
		b.leader.Park(scope, "by hand", h.chance(0.5), done)
	} else {
		h.trace("leader %d lets %d go on", b.number, scope)
		b.leader.Unpark(scope, done)
	}
}
