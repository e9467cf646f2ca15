package sim

import (
	"bytes"
	"fmt"
	"slices"

	"github.com/lockstepmq/lockstep/log"
	"github.com/lockstepmq/lockstep/wire"
)

// finish ends all faults. Then a leader must be found, everything that was sent must
// be acknowledged, and all replicas must hold the same bytes: once as they are, and
// once more after the power of all machines was cut, which takes all that was not
// promised.
func (f *fleet) finish() {
	f.settling = true
	for _, m := range f.hosts {
		m.stopAt = 0
		m.disk.StopAt(0)
		m.paused = false
	}
	if f.random.IntN(2) == 0 {
		f.trace.add("the end begins with a blackout")
		f.darkness()
	}
	f.settle()
	f.equal()
	if f.council != nil {
		f.council.makeRoom()
	}
	f.trace.add("the end: the power is cut, and everything promised is there")
	f.darkness()
	f.settle()
	f.equal()
	if f.council != nil && len(f.council.cells) == 0 && !f.options.Voters {
		f.council.spread()
	}
	for number := int64(1); number <= int64(f.lastBatch); number++ {
		if b := f.batches[number]; b.originals > 0 && !b.landed {
			f.fail("batch %d of producer %d was acknowledged and is nowhere", number, b.producer.ID)
		}
	}
}

// darkness cuts the power of all machines; nothing survives but what was promised.
func (f *fleet) darkness() {
	for _, m := range f.hosts {
		if m.up {
			m.machineBoot++
			m.disk.CrashLoseAll()
			m.ended(false)
		}
	}
}

// settleTicks is how long a healthy group takes at most to come to rest, in ticks
// of 100 ms.
const settleTicks = 300

// councilTicks is the same for the metadata of a cluster: partitions are moved one after
// the other, and nodes are given up after a while.
const councilTicks = 500

// settle lets time pass until a leader has committed all that clients have sent and
// everybody knows.
func (f *fleet) settle() {
	f.heal()
	for _, m := range f.hosts {
		if !m.up {
			m.start()
		}
	}
	ticks := settleTicks
	if f.council != nil {
		ticks, f.council.calm = councilTicks, 0
	}
	for tick := range ticks {
		for _, c := range slices.Clone(f.clients) {
			if c.flying > 0 && tick%20 == 19 {
				c.leave() // an attempt was lost with the mailbox of an old leader
			}
			if len(c.queue) > 0 {
				if c.flying == 0 {
					c.draining = true
				}
				c.act()
			}
		}
		for _, n := range f.names {
			for _, h := range slices.Clone(n.holders) {
				h.act()
			}
		}
		f.reconfigure()
		f.exhaust()
		if f.council != nil {
			f.council.round()
			f.exhaust()
		}
		for n := 0; f.groups != nil && n < 20 && !f.groups.rest(); n++ {
			for _, c := range f.groups.consumers {
				c.act()
			}
			for _, w := range f.groups.workers {
				w.act()
			}
			f.exhaust()
		}
		if f.settled() {
			return
		}
		for _, m := range f.hosts {
			m.tick(1)
		}
	}
	state := ""
	for _, m := range f.replicas() {
		lead, term := m.group.Lead()
		state += fmt.Sprintf("\n%s: term %d led by %d, %d entries, %d applied, stalled %v, uncertain %v, members %+v, %+v", m, term, lead, m.log.LastIndex(), m.group.Applied(), m.group.Stalled(), m.group.Uncertain(), m.group.Members(), m.group.Drops())
	}
	if f.groups != nil {
		state += f.groups.state()
	}
	if f.council != nil {
		state += f.council.state()
	}
	f.fail("the group does not come to rest within %d ticks; %d batches are unanswered; replacing %+v%s", ticks, f.unanswered(), f.replacing, state)
}

func (f *fleet) unanswered() (n int) {
	for _, c := range f.clients {
		n += len(c.queue)
	}
	return n
}

// settled reports whether everybody has applied everything and nobody waits.
func (f *fleet) settled() bool {
	for _, c := range f.cells {
		if len(c.leaders(0)) != 1 {
			return false
		}
		for _, m := range c.members {
			if m.group.Applied() != c.truth.last() || m.log.LastIndex() != c.truth.last() {
				return false
			}
		}
	}
	return f.unanswered() == 0 && f.unopened() == 0 && f.replacing == nil && (f.groups == nil || f.groups.rest()) && (f.council == nil || f.council.rest())
}

// exhaust runs jobs and turns and delivers frames until nothing is left to do without
// the passing of time.
func (f *fleet) exhaust() {
	for round := 0; ; round++ {
		if round == 100_000 {
			f.fail("the members do not come to rest")
		}
		again := false
		for _, m := range f.hosts {
			if !m.up || m.paused || m.stopped() {
				continue
			}
			for len(m.jobs) > 0 {
				m.work(0)
				again = true
			}
			again = m.turn() || again || len(m.jobs) > 0
		}
		for _, l := range f.network.busy() {
			for len(l.parcels) > 0 {
				l.deliver()
				again = true
			}
		}
		if !again {
			return
		}
	}
}

// equal compares the logs of all replicas byte for byte, what is local to each aside,
// with one another and with the truth.
func (f *fleet) equal() {
	if f.council != nil {
		f.council.equal()
	}
	for _, c := range f.cells {
		c.equal()
	}
}

// equal is the same for one cell.
func (c *cell) equal() {
	f := c.fleet
	there, chains := make([]log.Entry, c.truth.last()+1), make(map[wire.Index]uint32)
	for _, m := range c.members {
		next := m.walk(func(e log.Entry) {
			k := c.truth.at(e.Index)
			if k == nil || k.term != e.Term || e.Kind != wire.KindConfiguration && k.body != e.BodyCRC { // a state machine is not shown what those say
				f.fail("%s: entry %d is %+v; committed is %v", m, e.Index, e, k)
			}
			if first := &there[e.Index]; first.Index == 0 {
				*first = e
			} else if first.Kind != e.Kind || !bytes.Equal(first.Data, e.Data) {
				f.fail("%s: entry %d is %+v; another replica has %+v", m, e.Index, e, *first)
			}
			if chain, ok := m.log.Chain(e.Index); ok {
				if first := chains[e.Index]; first != 0 && first != chain {
					f.fail("%s: the chain value of entry %d is %08x; another replica has %08x", m, e.Index, chain, first)
				}
				chains[e.Index] = chain
			}
		})
		if next != c.truth.last()+1 {
			f.fail("%s: its log ends before entry %d; %d are committed", m, next, c.truth.last())
		}
	}
}
