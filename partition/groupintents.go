package partition

import (
	"github.com/lockstepmq/lockstep/partition/group"
	"github.com/lockstepmq/lockstep/wire"
)

// reconcile makes the commands that bring the groups closer to the intents. Only the
// leader does it, and only what is applied counts: commands of a leader before may still
// have been on their way.
func (g *Groups) reconcile() {
	if g.at == 0 || g.commanded {
		return // what is on its way is compared when it is applied
	}
	g.compare = false
	g.commands = g.commands[:0]
	wanted := make(map[group.ID]bool, len(g.intents))
	for i := range g.intents {
		v := &g.intents[i]
		wanted[v.ID] = true
		if len(g.commands) > MaxEntryBytes/2 {
			continue // the rest when these are applied
		}
		s := g.p.state.groups.Group(v.ID)
		var start wire.Offset
		switch {
		case s == nil:
			var known bool
			if start, known = g.locate(v); !known {
				continue
			}
		case v.Version <= s.Version:
			continue
		case g.stops(v.ID):
			continue // what stops it may change it: compared again when that is over
		case s.Drains(&v.Settings, g.taken...):
			g.change(g.lead(s), group.Order{Command: g.putCommand(nil, v, 0), Drain: true, Reason: wire.ReasonSettings})
			continue
		}
		g.commands = g.putCommand(g.commands, v, start)
	}
	for id := range g.located {
		if g.p.state.groups.Group(id) != nil || !wanted[id] {
			delete(g.located, id) // it has begun there, or will not
		}
	}
	for s := range g.p.state.groups.All {
		// One that is newer than the intents is not missing in them.
		if !wanted[s.ID] && wire.Index(s.ID) <= g.at && !s.Removed {
			g.commands = group.AppendRemoveGroup(g.commands, s.ID)
		}
	}
}

// stops reports whether an order is under way that stops a group.
func (g *Groups) stops(id group.ID) bool {
	l := g.leads[id]
	return l != nil && l.Stops()
}

// putCommand appends the command that makes a group what the metadata says.
func (g *Groups) putCommand(dst []byte, v *Intent, start wire.Offset) []byte {
	var flags uint8
	if v.Paused {
		flags |= group.PutPaused
	}
	if g.p.queue {
		flags |= group.PutQueue
	}
	return group.AppendPut(dst, v.ID, v.Version, v.Name, &v.Settings, start, flags)
}

// change carries out an order that stops the group, one at a time.
func (g *Groups) change(l *lead, o group.Order) {
	o.Done = g.over(o.Done)
	l.Order(o)
	g.wake(l)
}

// over is what an order that stops the group calls at its end: what was to be changed in
// the meantime is compared again. done may be nil.
func (g *Groups) over(done func(error)) func(error) {
	return func(err error) {
		g.compare = true
		if done != nil {
			done(err)
		}
	}
}

// locate is where a group begins; false if that is not known yet.
func (g *Groups) locate(v *Intent) (start wire.Offset, known bool) {
	to := v.Start.To
	if to == "" {
		to = "latest"
		if g.p.queue {
			to = "earliest"
		}
	}
	switch to {
	case "earliest":
		return g.p.state.start, true
	case "offset":
		return wire.Offset(v.Start.Offset), true
	case "time":
		if start, known = g.located[v.ID]; known || g.locating[v.ID] {
			return start, known
		}
		if g.locating == nil {
			g.located, g.locating = make(map[group.ID]wire.Offset), make(map[group.ID]bool)
		}
		id := v.ID
		g.locating[id] = true
		g.effects.Locate(v.Start.TimeMs, func(start wire.Offset, err error) {
			delete(g.locating, id)
			g.compare = true
			if err == nil {
				g.located[id] = start
			}
		})
		return 0, false
	}
	return g.p.state.next, true
}
