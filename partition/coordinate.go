package partition

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/lockstepmq/lockstep/partition/group"
	"github.com/lockstepmq/lockstep/wire"
)

// One partition of a destination coordinates its groups: there a lead has a Coordinator
// beside its Leader. What both want to have committed goes into the same entry.

// share says who of a lead has something in a control entry.
type share struct{ leader, coordinator bool }

// Turn gives both their turn.
func (l *lead) Turn(now time.Duration, applied wire.Index, end wire.Offset) (again bool) {
	if l.coordinator != nil {
		l.coordinator.Turn(now)
	}
	return l.Leader.Turn(now, applied, end)
}

// Pending reports whether Propose may have something to say.
func (l *lead) Pending() bool {
	return l.Leader.Pending() || l.coordinator != nil && l.coordinator.Pending()
}

// Propose appends what both want to have committed.
func (l *lead) Propose(dst []byte, room int) ([]byte, bool) {
	var s share
	before := len(dst)
	dst, s.leader = l.Leader.Propose(dst, room)
	if l.coordinator != nil {
		dst, s.coordinator = l.coordinator.Propose(dst, room-(len(dst)-before))
	}
	if !s.leader && !s.coordinator {
		return dst, false
	}
	l.shares = append(l.shares, s)
	return dst, true
}

// Dropped takes back what the last Propose has appended.
func (l *lead) Dropped() {
	s := l.shares[len(l.shares)-1]
	l.shares = l.shares[:len(l.shares)-1]
	if s.leader {
		l.Leader.Dropped()
	}
	if s.coordinator && l.coordinator != nil {
		l.coordinator.Dropped()
	}
}

// Applied takes in that the oldest of what Propose has appended is applied.
func (l *lead) Applied(i wire.Index) {
	s := l.shares[0]
	l.shares = shift(l.shares)
	if s.leader {
		l.Leader.Applied(i)
	}
	if s.coordinator && l.coordinator != nil {
		l.coordinator.Applied()
	}
}

// Deadline is when one of them has a timer, 0 if none has.
func (l *lead) Deadline() time.Duration {
	at := l.Leader.Deadline()
	if l.coordinator != nil {
		if own := l.coordinator.Deadline(); own > 0 && (at == 0 || own < at) {
			at = own
		}
	}
	return at
}

// Resumed tells both that the broker stood still.
func (l *lead) Resumed(now time.Duration) {
	l.Leader.Resumed(now)
	if l.coordinator != nil {
		l.coordinator.Resumed(now)
	}
}

// Close ends all links.
func (l *lead) Close(err error) {
	if l.coordinator != nil {
		l.coordinator.Close(err)
	}
	l.Leader.Close(err)
}

// coordinate begins the Coordinator of a group, if this partition is the one that keeps
// its members. Otherwise it returns CodeNotCoordinator.
func (g *Groups) coordinate(l *lead) error {
	term, err := g.effects.Coordinates()
	if err != nil || l.coordinator != nil {
		return err
	}
	if slices.ContainsFunc(l.shares, func(s share) bool { return s.coordinator }) {
		return wire.Errorf(wire.CodeRetry, "what the coordinator before has proposed is not applied yet")
	}
	l.coordinator = group.NewCoordinator(l.group, g.effects.Partitions, term, g.now)
	g.wake(l)
	return nil
}

// bind begins the link of a consumer to the coordinator of its group.
func (g *Groups) bind(in *Input) {
	s := g.p.state.groups.Named(in.Group)
	if s == nil {
		g.await(in)
		return
	}
	l := g.lead(s)
	if err := g.coordinate(l); err != nil {
		in.refuse(err)
		return
	}
	if g.binders == nil {
		g.binders = make(map[group.Binder]*lead)
	}
	g.binders[in.Binder] = l
	l.coordinator.Bind(in.Binder, in.Bind, g.now)
	g.wake(l)
}

// bound takes what comes on the link of a consumer to the coordinator.
func (g *Groups) bound(in *Input) {
	l := g.binders[in.Binder]
	if l == nil {
		if in.Kind == InputGone {
			g.unknown = slices.DeleteFunc(g.unknown, func(u unknown) bool { return u.in.Binder == in.Binder })
		}
		return // of a link that has been closed
	}
	switch in.Kind {
	case InputHeartbeat:
		l.coordinator.Heartbeat(in.Binder, in.Number, g.now)
		return // nothing else comes of it
	case InputLeave:
		l.coordinator.Leave(in.Binder)
	case InputGone:
		delete(g.binders, in.Binder)
		l.coordinator.Gone(in.Binder, in.Dead)
	}
	g.wake(l)
}

// reconsider has all bindings looked at: there may be other partitions, or this one may
// keep the members no longer.
func (g *Groups) reconsider() {
	var term group.Term
	var err error
	asked := false
	for _, l := range g.leads {
		if l.coordinator == nil {
			continue
		}
		if !asked {
			term, err = g.effects.Coordinates()
			asked = true
		}
		if err == nil {
			l.coordinator.Reconsider(term.Generation)
			g.wake(l)
			continue
		}
		maps.DeleteFunc(g.binders, func(_ group.Binder, of *lead) bool { return of == l })
		l.coordinator.Close(err)
		l.coordinator, l.looked = nil, 0
		g.uncovered(l)
	}
}

// uncovered tells the world when other partitions than before have no consumer.
func (g *Groups) uncovered(l *lead) {
	var list []uint32
	if l.coordinator != nil && !l.closed {
		if l.coordinator.Version() == l.looked {
			return
		}
		l.looked = l.coordinator.Version()
		list = l.coordinator.Uncovered()
	}
	if !slices.Equal(list, l.uncovered) {
		l.uncovered = list
		g.effects.Uncovered(l.group.Name, list)
	}
}

// covered says who coordinates a group where it does, and what no consumer has.
func (l *lead) covered(d *wire.GroupPartition) {
	m := l.group.Members
	if l.coordinator == nil || m == nil {
		return
	}
	d.Binding = fmt.Sprintf("%s %d.%d", l.group.Settings.Binding, m.Binding.Generation, m.Binding.Counter)
	switch n := len(m.List); n {
	case 0:
		d.Binding += ", no consumers"
	case 1:
		d.Binding += " of 1 consumer"
	default:
		d.Binding += fmt.Sprintf(" of %d consumers", n)
	}
	d.Uncovered = l.coordinator.Uncovered()
}
