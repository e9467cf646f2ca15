package partition

import (
	"github.com/lockstepmq/lockstep/partition/group"
	"github.com/lockstepmq/lockstep/wire"
)

// propose makes one entry of what is to be committed, at most room bytes of it, and
// reports whether it is applied already: then there may be more to do.
func (g *Groups) propose(nowMs int64, room int) (applied bool) {
	p := g.p
	if len(g.wanting)+len(g.commands) == 0 || p.proposer.Paused() {
		return false
	}
	if n := len(g.controls); n > 0 && g.since < controlBytes || n >= maxControls {
		return false // it goes with the entry after the one that is on its way
	}
	data := append(g.scratch[:0], make([]byte, wire.EntryPrefixSize)...)
	c := new(control)
	if len(g.commands) > 0 && len(g.commands) < room {
		data = append(data, g.commands...)
		c.commands = true
	}
	rest := g.wanting[:0]
	for i, l := range g.wanting {
		l.wants = false
		if l.closed {
			continue
		}
		var some bool
		if data, some = l.Propose(data, room-len(data)); some {
			c.leads = append(c.leads, l)
		}
		if l.Pending() {
			l.wants = true
			rest = append(rest, l)
		}
		if len(data) >= room-controlBytes/4 {
			rest = append(rest, g.wanting[i+1:]...)
			break
		}
	}
	clear(g.wanting[len(rest):])
	g.wanting, g.scratch = rest, data[:0]
	if len(data) == wire.EntryPrefixSize {
		return false
	}
	wire.PutEntryPrefix(data, wire.KindControl, 0, nowMs)
	if p.log.Reserve(wire.FrameSize(len(data)-wire.EntryPrefixSize)+ElectionRoom, false) != nil {
		g.withdraw(c) // a later turn tries again
		return false
	}
	entry := p.account.control(data)
	if entry == nil {
		g.withdraw(c)
		return room > bufferClasses[0]/2 && g.propose(nowMs, bufferClasses[0]/2)
	}
	if c.commands {
		g.commands, g.commanded = g.commands[:0], true
	}
	p.account.took(len(entry))
	// Applying may happen inside Propose, so the entry is on its way before it.
	c.at = g.now
	g.controls = append(g.controls, c)
	g.since = 0
	if _, err := p.proposer.Propose(entry); err != nil {
		if g.forget(c) {
			if cap(entry) >= bufferClasses[0] {
				p.account.give(int64(cap(entry))) // not recycled: consensus may still have looked at it
			}
			g.withdraw(c)
		}
		return false
	}
	return len(g.controls) == 0 || g.controls[len(g.controls)-1] != c
}

// forget takes the entry that was to be proposed last off the list, if it is still there.
func (g *Groups) forget(c *control) bool {
	n := len(g.controls)
	if n == 0 || g.controls[n-1] != c {
		return false // it was applied, or abandoned with the leadership
	}
	g.controls = g.controls[:n-1]
	return true
}

// control copies the data of a control entry to where it can stay, or returns nil if
// there is no memory for it. What is smaller than the buffers costs nothing: it may not
// have to wait for memory that records hold.
func (a *account) control(data []byte) []byte {
	if len(data) < bufferClasses[0] {
		entry := make([]byte, len(data))
		copy(entry, data)
		return entry
	}
	if !a.take(int64(bufferCapacity(len(data)))) {
		return nil
	}
	return append(newBuffer(len(data)), data...)
}

// withdraw takes an entry back that is not in the log.
func (g *Groups) withdraw(c *control) {
	if c.commands {
		g.commanded, g.compare = false, true
	}
	for _, l := range c.leads {
		if l.closed {
			continue
		}
		l.Dropped()
		if !l.wants {
			l.wants = true
			g.wanting = append(g.wanting, l)
		}
	}
}

// applied takes in that a control entry is applied. Those of this term are ours, and come
// in the order in which they were proposed.
func (g *Groups) applied(e *Entry) {
	if g.changed {
		g.changed = false
		var remain []*group.Group // which have letters to write
		for id, l := range g.leads {
			switch {
			case g.p.state.groups.Group(id) != l.group:
				g.drop(l, wire.CodeGroupGone)
			case l.group.Removed && !l.remains:
				g.drop(l, wire.CodeGroupGone)
				remain = append(remain, l.group)
			default:
				g.wake(l)
			}
		}
		for _, s := range remain {
			g.lead(s)
		}
		g.reconsider() // the policy may be another
	}
	defer g.dequeue()
	if len(g.controls) == 0 || e.Term != g.p.term {
		return
	}
	c := g.controls[0]
	g.controls = shift(g.controls)
	g.p.landFences(c)
	if c.commands {
		g.commanded, g.compare = false, true
	}
	for _, l := range c.leads {
		if !l.closed {
			l.Applied(e.Index)
			if len(l.letters.written) > 0 {
				g.writeLetters(l) // those behind the ones that are done
			}
			g.wake(l)
		}
	}
}

// effect takes in what a command has changed.
func (g *Groups) effect(e group.Effect) {
	if !g.leading {
		return
	}
	switch e.Kind {
	case group.Command(commandTrim):
		for _, l := range g.leads {
			l.Trimmed()
			g.wake(l)
		}
		if e.Expired > 0 {
			g.effects.Expired(e.Expired)
		}
	case group.CommandPut, group.CommandRemoveGroup:
		g.compare, g.arrived, g.changed = true, true, true
	}
	g.changed = g.changed || e.Removed
}

// abandon drops everything that belongs to a leadership. What was proposed may be applied
// all the same: the next leader answers for it.
func (g *Groups) abandon(err error) {
	for _, c := range g.controls {
		g.p.endFences(c, wire.CodeUnavailable)
	}
	g.controls = nil
	if !g.leading {
		return
	}
	g.leading = false
	clear(g.links)
	clear(g.binders)
	for _, l := range g.leads {
		g.drop(l, err)
	}
	g.ready, g.wanting, g.asking, g.due, g.resting = nil, nil, nil, nil, nil
	g.commands, g.commanded, g.located, g.locating = nil, false, nil, nil
	g.searches, g.looking, g.queued = nil, false, false
	for key := range g.heads {
		g.headFound(key, 0, false, err)
	}
	g.retry = 0
	g.feed.use(false)
	g.schedule()
}
