package sim

import (
	"cmp"
	"errors"
	"fmt"
	"slices"

	"github.com/lockstepmq/lockstep/cluster"
	"github.com/lockstepmq/lockstep/partition"
	"github.com/lockstepmq/lockstep/partition/group"
	"github.com/lockstepmq/lockstep/wire"
)

// worker is a consumer of a destination with several partitions, as a client is one: the
// coordinator of its group says which of them it has (RULES Q1), and it has a session in
// each of these. Who coordinates is in the metadata of the fleet, as the node that it asks
// knows them.
type worker struct {
	groups      *groups
	session     group.Session
	predecessor group.Session
	at          uint32 // the partition that it takes for the coordinator's
	link        *bindingLink
	bound       bool // the link is answered
	waited      int
	number      uint64
	binding     wire.GroupBinding
	parts       []*consumer
}

// bindingLink is a worker's link to the coordinator. What that one says waits until the
// worker reads it.
type bindingLink struct {
	w      *worker
	m      *member
	life   int
	frames []func()
}

// bindingKey names what a coordinator tells one session once and for all.
type bindingKey struct {
	generation, counter uint32
	session             group.Session
}

func (w *worker) String() string { return fmt.Sprintf("worker %x", w.session[:2]) }

// hire begins with workers that no coordinator knows.
func (g *groups) hire() {
	f := g.fleet
	if g.settings.Scope == wire.ScopeDestination && g.settings.Mode == wire.ModeSerial {
		g.settings = wire.GroupSettings{SessionMs: 3000, BackoffMs: 200, BackoffMaxMs: 400, Mode: wire.ModeSerial, Window: 2}
	}
	g.settings.Binding = wire.BindingCover // strict ones may leave a partition without a worker
	if f.random.IntN(4) == 0 {
		g.settings.Binding = wire.BindingGather
	}
	if f.options.Quiet {
		g.settings.SessionMs = 20_000 // nobody is given up
	}
	g.settings = g.settings.WithDefaults()
	g.told = map[bindingKey][]uint32{}
	for range 2 + f.random.IntN(2) {
		w := &worker{groups: g}
		w.renew(false)
		g.workers = append(g.workers, w)
	}
	for i, c := range f.cells[1:] {
		f.clients = append(f.clients, &producer{fleet: f, cell: c, id: int64(cellSpan + i)})
	}
}

// intend hands on what the metadata of the node say of the groups, as a broker does.
func (m *member) intend() {
	v := m.replicas[0].metadata.View()
	d, known := v.Destination(cellsName)
	if !known || d == m.intended {
		return
	}
	m.intended = d
	var list []partition.Intent
	for name, g := range d.Groups {
		list = append(list, partition.Intent{ID: group.ID(g.ID), Version: uint64(g.Version), Name: name, Settings: d.Resolved(g), Start: wire.GroupStart{To: "earliest"}})
	}
	slices.SortFunc(list, func(a, b partition.Intent) int { return cmp.Compare(a.ID, b.ID) })
	m.part.Groups().Intend(v.Epoch, list)
}

// cellEffects are fleetEffects where there are several partitions.
type cellEffects struct{ fleetEffects }

func (g *groups) effects(m *member) partition.Effects {
	if g.fleet.options.Cluster {
		return cellEffects{fleetEffects{m}}
	}
	return fleetEffects{m}
}

func (e cellEffects) destination() (*cluster.Destination, bool) {
	return e.m.replicas[0].metadata.View().Destination(cellsName)
}

// Coordinates implements partition.Effects.
func (e cellEffects) Coordinates() (group.Term, error) {
	d, known := e.destination()
	if !known {
		return group.Term{}, wire.CodeDestinationGone
	}
	c := d.Coordinates()
	if c.Partition != e.m.cell.number {
		return group.Term{}, &wire.Error{Code: wire.CodeNotCoordinator, Next: wire.Offset(c.Partition)}
	}
	return group.Term{Generation: c.Generation, Since: c.Since}, nil
}

// Partitions implements partition.Effects: each node goes by what its own replicas know.
func (e cellEffects) Partitions() (list []group.PartitionLoad) {
	for _, r := range e.m.replicas[1:] {
		load := group.PartitionLoad{Number: r.cell.number, Backlog: uint64(r.log.Watermark().Next - r.state.Start())}
		if lead, _ := r.lead(); lead > 0 {
			load.Leader = uint32(lead - r.cell.base)
		}
		list = append(list, load)
	}
	return list
}

// renew begins another session with the coordinator.
func (w *worker) renew(known bool) {
	w.predecessor = group.Session{}
	if known {
		w.predecessor = w.session
	}
	w.groups.sessions++
	w.session = group.Session{byte(w.groups.sessions), byte(w.groups.sessions >> 8), 15: 2}
}

// act does the worker's next thing.
func (w *worker) act() {
	f := w.groups.fleet
	if l := w.link; l != nil && (!l.m.up || l.m.life != l.life || f.random.IntN(100) == 0 && !f.settling && !f.options.Quiet) {
		w.unlink(false)
	}
	switch {
	case w.link == nil:
		w.bind()
	default:
		for len(w.link.frames) > 0 {
			next := w.link.frames[0]
			w.link.frames = w.link.frames[1:]
			if next(); w.link == nil {
				break
			}
		}
		if w.waited++; w.link != nil && !w.bound && w.waited > patience {
			w.unlink(false)
			w.at = (w.at + 1) % uint32(len(f.cells)-1)
		}
	}
	if w.link != nil && w.bound && (f.random.IntN(3) == 0 || f.settling) {
		w.number++
		w.put(partition.Input{Kind: partition.InputHeartbeat, Binder: w.link, Number: w.number})
	}
	if f.random.IntN(400) == 0 && !f.settling && !f.options.Quiet {
		w.replace()
		return
	}
	for _, c := range slices.Clone(w.parts) {
		if f.settling || f.random.IntN(2) == 0 {
			c.act()
		}
	}
	w.parts = slices.DeleteFunc(w.parts, func(c *consumer) bool { return c.left })
}

// replace ends the worker, with or without a word, and lets another one come.
func (w *worker) replace() {
	f := w.groups.fleet
	f.trace.add("%s ends, and another one comes", w)
	said := f.random.IntN(2) == 0
	for _, c := range w.parts {
		if said && c.link != nil && c.attached {
			c.put(partition.Input{Kind: partition.InputLeave, Consumer: c.link})
		}
		c.unlink()
	}
	w.unlink(said)
	w.parts, w.binding = nil, wire.GroupBinding{}
	w.renew(false)
}

// unlink ends the link to the coordinator, and the membership if that is said.
func (w *worker) unlink(leave bool) {
	l := w.link
	if l == nil {
		return
	}
	if leave && w.bound {
		w.put(partition.Input{Kind: partition.InputLeave, Binder: l})
	}
	w.link, w.bound = nil, false
	if l.m.up && l.m.life == l.life {
		_ = l.m.part.Groups().Put(partition.Input{Kind: partition.InputGone, Binder: l}) // a closed partition has dropped it
	}
}

// bind turns to whoever leads the partition that coordinates, as far as the worker knows.
func (w *worker) bind() {
	f := w.groups.fleet
	leaders := f.cells[1+w.at].leaders(0)
	if len(leaders) == 0 {
		if f.random.IntN(10) == 0 {
			w.at = (w.at + 1) % uint32(len(f.cells)-1)
		}
		return
	}
	m := leaders[f.random.IntN(len(leaders))]
	w.link, w.waited = &bindingLink{w: w, m: m, life: m.life}, 0
	f.trace.add("%s binds at %s, partition %d, with %d.%d", w, m, w.at, w.binding.Generation, w.binding.Counter)
	w.put(partition.Input{Kind: partition.InputBind, Binder: w.link, Group: "workers", Bind: &wire.BindRequest{
		Group: "workers", Session: w.session, Predecessor: w.predecessor, Generation: w.binding.Generation, Counter: w.binding.Counter, Partitions: w.binding.Partitions,
	}})
}

func (w *worker) put(in partition.Input) {
	m := w.link.m
	if err := m.part.Groups().Put(in); err != nil {
		w.link, w.bound = nil, false
		return
	}
	if w.groups.fleet.random.IntN(3) > 0 && !m.stopped() {
		m.turn()
	}
}

// rebind takes over a binding: partitions that are not in it are left when nothing of them
// is held any more.
func (w *worker) rebind(b wire.GroupBinding) {
	before := group.Binding{Generation: w.binding.Generation, Counter: w.binding.Counter}
	if !before.Before(group.Binding{Generation: b.Generation, Counter: b.Counter}) {
		return
	}
	w.binding = b
	w.groups.counts.Rebound++
	for _, c := range w.parts {
		if !slices.Contains(b.Partitions, c.ledger.cell.number) {
			c.drain()
		}
	}
	for _, n := range b.Partitions {
		i := slices.IndexFunc(w.parts, func(c *consumer) bool { return c.ledger.cell.number == n && !c.left })
		if i >= 0 {
			w.parts[i].leaving = false
			continue
		}
		c := &consumer{groups: w.groups, ledger: w.groups.fleet.cells[1+n].ledger, worker: w, held: map[wire.Offset]*holding{}}
		c.renew(false)
		w.parts = append(w.parts, c)
	}
}

// outdated leaves a coordinator that does not know of a newer one.
func (w *worker) outdated(generation uint32) {
	if generation > w.binding.Generation && w.link != nil {
		w.unlink(true)
		w.at = (w.at + 1) % uint32(len(w.groups.fleet.cells)-1)
	}
}

// told takes notice of what the coordinator says: it says the same about a binding always.
func (l *bindingLink) told(b *wire.GroupBinding) wire.GroupBinding {
	g := l.w.groups
	key := bindingKey{b.Generation, b.Counter, l.w.session}
	now := wire.GroupBinding{Generation: b.Generation, Counter: b.Counter, Partitions: slices.Clone(b.Partitions)}
	if was, known := g.told[key]; known && !slices.Equal(was, now.Partitions) {
		g.fleet.fail("%s: binding %d.%d gives it partitions %d, and gave it %d", l.w, b.Generation, b.Counter, now.Partitions, was)
	}
	g.told[key] = now.Partitions
	return now
}

// read has the worker hear something later, if the link is still its newest.
func (l *bindingLink) read(what func()) {
	l.frames = append(l.frames, func() {
		if l.w.link == l {
			what()
		}
	})
}

// Bound implements group.Binder.
func (l *bindingLink) Bound(r *wire.BindResponse, err error) {
	w := l.w
	f := w.groups.fleet
	if err != nil {
		l.read(func() {
			f.trace.add("%s: %s does not bind it: %v", w, l.m, err)
			w.link = nil
			var e *wire.Error
			switch {
			case errors.Is(err, wire.CodeNotCoordinator) && errors.As(err, &e):
				w.at = uint32(e.Next)
			case errors.Is(err, wire.CodeSessionGone):
				w.renew(true)
			}
		})
		return
	}
	b := l.told(&wire.GroupBinding{Generation: r.Generation, Counter: r.Counter, Partitions: r.Partitions})
	l.read(func() {
		w.bound = true
		w.groups.counts.Bound++
		w.rebind(b)
	})
}

// Rebound implements group.Binder.
func (l *bindingLink) Rebound(b *wire.GroupBinding) {
	told := l.told(b)
	l.read(func() { l.w.rebind(told) })
}

// Confirmed implements group.Binder.
func (l *bindingLink) Confirmed(uint64) {}

// Closed implements group.Binder.
func (l *bindingLink) Closed(err error) {
	l.read(func() {
		w := l.w
		w.groups.fleet.trace.add("%s: its link to the coordinator is closed: %v", w, err)
		w.link, w.bound = nil, false
		if err == nil || errors.Is(err, wire.CodeSessionGone) {
			w.renew(true)
		}
	})
}

// older finds who is served with a binding of an earlier coordinator where a consumer is that
// was listed with one of a later.
func (g *groups) older(l *fleetLink) {
	for _, w := range g.workers {
		for _, c := range w.parts {
			if o := c.link; o != nil && o.served && o.m == l.m && o.life == l.life && !c.leaving && c.least > l.generation {
				g.fleet.fail("%s: %s is given records with a binding of generation %d; %s was listed with generation %d", l.m, l.c, l.generation, c, c.least)
			}
		}
	}
}

// drain leaves the partition when what the consumer has of it is settled.
func (c *consumer) drain() {
	if c.leaving || c.left {
		return
	}
	c.leaving = true
	switch {
	case c.link != nil && c.attached:
		c.put(partition.Input{Kind: partition.InputLeave, Consumer: c.link, Drain: true})
	case c.link == nil && len(c.held) == 0:
		c.left = true
	}
}
