package client

import (
	"fmt"
	"slices"

	"github.com/lockstepmq/lockstep/wire"
)

// departure is where a Producer goes once everything that it has accepted has an outcome.
type departure struct {
	scope  scope
	layout *layout
	err    error // why it goes nowhere, and ends
}

// placed looks at what the Producer's name stands for in an answer to METADATA, which is the
// layout to install: of where the records go that it has. It is nil if the Producer has
// departed. p.mu is held.
func (p *Producer) placed(generation uint64, m *wire.MetadataResponse) (*layout, error) {
	here := destinationIn(m, p.destination)
	if here != nil && here.ID != p.layout.id {
		here = nil
	}
	if !p.scope.follows() {
		switch {
		case here != nil:
			return newLayout(generation, here)
		case p.conn.newerThan(m):
			return nil, wire.Errorf(wire.CodeRetry, "the answer is older than what is known")
		case destinationIn(m, p.destination) != nil:
			return nil, wire.Errorf(wire.CodeDestinationGone, "destination %q was deleted and created again", p.destination)
		}
		return nil, wire.Errorf(wire.CodeUnknownDestination, "destination %q not found", p.destination)
	}
	if m.Version < p.scope.version {
		return nil, wire.Errorf(wire.CodeRetry, "the answer is older than what is known")
	}
	to := &departure{}
	scope, info, err := p.scope.in(m)
	to.scope = scope
	switch {
	case codeOf(err) == wire.CodeUnknownDestination:
		to.err = fmt.Errorf("%w: alias %q was removed", ErrAliasMoved, scope.name)
	case err != nil:
		to.err = fmt.Errorf("%w: %w", ErrAliasMoved, err)
	case p.options.fixed && (!scope.has(p.options.partition) || !slices.ContainsFunc(info.Partitions, func(n wire.PartitionInfo) bool { return n.Number == p.options.partition })):
		to.err = fmt.Errorf("%w: alias %q stands for %s, without partition %d", ErrAliasMoved, scope.name, &scope, p.options.partition)
	case info.ID == p.layout.id:
		p.stay()
		p.scope = scope
		return newLayout(generation, info)
	case p.options.name != "":
		to.err = fmt.Errorf("%w: alias %q stands for %s; what producer %q had open there before is fenced when it is opened again", ErrAliasMoved, scope.name, &scope, p.options.name)
	case info.Kind != p.kind:
		to.err = fmt.Errorf("%w: alias %q stands for %s, a %s and no %s", ErrAliasMoved, scope.name, &scope, info.Kind, p.kind)
	default:
		if to.layout, err = newLayout(generation, info); err != nil {
			return nil, err
		}
	}
	p.stay()
	p.moving = to
	p.flushing++
	if here == nil { // nobody will ever answer for what it still has
		for _, a := range p.lanes {
			a.giveUp(wire.Errorf(wire.CodeDestinationGone, "destination %q was deleted", p.destination))
		}
	}
	for _, a := range p.lanes {
		a.signal()
	}
	if p.bufferedRecords == 0 {
		p.depart()
		p.wakeWaiting()
		return nil, p.err
	}
	if here == nil {
		return nil, wire.Errorf(wire.CodeRetry, "what was accepted for %q has no outcome yet", p.destination)
	}
	return newLayout(generation, here)
}

// stay calls a departure off.
func (p *Producer) stay() {
	if p.moving != nil {
		p.moving = nil
		p.flushing--
		p.wakeWaiting()
	}
}

// depart goes where the scope leads: nothing is on its way any more. The identity is a new
// one, for the sequences begin anew. p.mu is held.
func (p *Producer) depart() {
	to := p.moving
	p.moving = nil
	p.flushing--
	if to.err != nil {
		p.fail(to.err)
		return
	}
	for _, a := range p.lanes {
		a.leave()
		a.opening, a.open = nil, nil
		if a.lingerTime != nil {
			a.lingerTime.Stop()
		}
	}
	p.scope, p.destination, p.layout = to.scope, to.scope.destination, to.layout
	p.lanes = nil
	for i, n := range p.layout.partitions {
		p.lanes = append(p.lanes, &accumulator{producer: p, partition: n, leader: p.layout.leaders[i]})
		if p.options.fixed && n == p.options.partition {
			p.fixedLane = i
		}
	}
	p.renew = p.options.idempotent
	p.wantLayout = false
	p.spread(p.choices.home)
	p.begin()
	poke(p.wake)
}
