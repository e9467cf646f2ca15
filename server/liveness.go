package server

// silentTicks is how many ticks a node may be silent until it counts as dead: 1 s.
const silentTicks = 10

// liveness is what one node knows about the life of another, in ticks of its own:
// it has no clock. The life is two-way: what counts is that the other says in its
// heartbeats that it hears ours (RULES R8), so a connection that works in one
// direction only is dead.
//
//	unknown ──welcomed──▶ up ──lost, and its port is closed───────────▶ down (refused)
//	                      │──10 ticks in which it heard nothing new──▶ down (silent)
//	                      ◀── welcomed
//
// A lost connection by itself says nothing: it may come back at once.
type liveness struct {
	up    bool
	moved uint32 // our tick at which it last said something new of what it hears
	said  uint32 // the highest of our ticks that it says to have heard, on this connection
}

// welcomed notes a new connection. It reports whether the node has come up.
func (l *liveness) welcomed(tick uint32) (changed bool) {
	changed = !l.up
	l.up, l.moved, l.said = true, tick, 0
	return changed
}

// beat notes a HEARTBEATS frame on the connection: the highest of our ticks that the
// node has heard.
func (l *liveness) beat(tick, said uint32) {
	if said > l.said && said <= tick {
		l.said, l.moved = said, tick
	}
}

// refused notes that the node's port is closed. It reports whether that brings it down.
func (l *liveness) refused() (changed bool) {
	changed, l.up = l.up, false
	return changed
}

// passed looks whether the node has been silent for too long.
func (l *liveness) passed(tick uint32) (changed bool) {
	if !l.up || tick-l.moved <= silentTicks {
		return false
	}
	l.up = false
	return true
}
