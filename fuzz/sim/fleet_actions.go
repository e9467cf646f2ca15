package sim

import (
	"errors"
	"slices"

	"github.com/lockstepmq/lockstep/log"
	"github.com/lockstepmq/lockstep/replication"
	"github.com/lockstepmq/lockstep/wire"
)

// fleetAction is one kind of step of a fleet.
type fleetAction struct {
	name   string
	weight int
	kind   actionKind
	do     func(*fleet)
}

// fleetActions are what a step may be. It is filled in by init because the actions
// refer to it.
var fleetActions []fleetAction

func init() {
	fleetActions = []fleetAction{
		{"deliver", 900, usual, (*fleet).deliver},
		{"run a job", 400, usual, (*fleet).runJob},
		{"take a turn", 200, usual, func(f *fleet) { f.someone().turn() }},
		{"produce", 250, usual, (*fleet).produce},
		{"tick", 130, usual, (*fleet).tick},
		{"start", 40, mending, (*fleet).restart},
		{"resume", 30, mending, (*fleet).resume},
		{"heal", 10, mending, (*fleet).heal},
		{"reconfigure", 40, usual, (*fleet).reconfigure},
		{"read", 20, swarming, (*fleet).read},
		{"checkpoint", 10, swarming, (*fleet).checkpoint},
		{"idle mark", 10, swarming, (*fleet).idleMark},
		{"retention", 10, swarming, func(f *fleet) { f.living(func(m *member) { m.part.Retain(m.nowMs) }) }},
		{"confirm", 15, swarming, (*fleet).confirm},
		{"rest", 1, swarming, (*fleet).rest},
		{"transfer", 6, swarming, (*fleet).transfer},
		{"drop", 30, fault, (*fleet).drop},
		{"duplicate", 20, fault, (*fleet).duplicate},
		{"reorder", 30, fault, (*fleet).reorder},
		{"damage", 80, fault, (*fleet).damage},
		{"cut a link", 3, fault, func(f *fleet) { f.cut(true) }},
		{"cut one way", 3, fault, func(f *fleet) { f.cut(false) }},
		{"isolate", 3, fault, (*fleet).isolate},
		{"silence", 3, fault, (*fleet).silence},
		{"pause", 4, fault, (*fleet).pause},
		{"stand still for long", 1, fault, (*fleet).standStill},
		{"replace", 1, fault, (*fleet).replace},
		{"replace while the leader dies", 0, fault, (*fleet).replaceWhileTheLeaderDies},
		{"crash", 3, fault, func(f *fleet) { f.alive(func(m *host) { m.crash() }) }},
		{"power cut", 4, fault, func(f *fleet) { f.alive(func(m *host) { m.powerCut() }) }},
		{"power cut at a call", 4, fault, (*fleet).cutPowerSoon},
		{"blackout", 1, fault, (*fleet).blackout},
		{"clean stop", 2, fault, func(f *fleet) { f.alive(func(m *host) { m.stop() }) }},
		{"govern", 1200, governing, func(f *fleet) { f.council.act() }},
		{"open a name", 6, naming, (*fleet).open},
		{"hold a name", 300, naming, (*fleet).hold},
		{"consume", 400, consuming, (*fleet).consume},
		{"alter", 3, consuming, (*fleet).alter},
		{"erase", 15, giving, (*fleet).erase},
		{"leave behind", 1, giving, (*fleet).leaveBehind},
	}
}

func (f *fleet) someone() *host { return f.hosts[f.random.IntN(len(f.hosts))] }

// one is one of the replicas on a host.
func (f *fleet) one(on *host) *member {
	if len(on.replicas) == 1 {
		return on.replicas[0]
	}
	return on.replicas[f.random.IntN(len(on.replicas))]
}

// alive does something to a member that is up, and not paused, if the one that was
// picked is.
func (f *fleet) alive(do func(*host)) {
	if m := f.someone(); m.up && !m.paused {
		do(m)
	}
}

// living is alive for one of its replicas.
func (f *fleet) living(do func(*member)) {
	f.alive(func(on *host) { do(f.one(on)) })
}

// deliver takes a frame off a link. Usually the receiver takes a turn then.
func (f *fleet) deliver() {
	links := f.network.busy()
	if len(links) == 0 {
		return
	}
	l := links[f.random.IntN(len(links))]
	l.deliver()
	if f.random.IntN(4) > 0 {
		l.to.turn()
	}
}

func (f *fleet) runJob() {
	var busy []*host
	for _, m := range f.hosts {
		if m.up && !m.paused && len(m.jobs) > 0 {
			busy = append(busy, m)
		}
	}
	if len(busy) == 0 {
		return
	}
	m := busy[f.random.IntN(len(busy))]
	m.work(f.random.IntN(len(m.jobs)))
	if f.random.IntN(4) > 0 {
		m.turn()
	}
}

// consume is the next thing that a consumer does, or one that is bound by a coordinator.
func (f *fleet) consume() {
	g := f.groups
	if len(g.workers) > 0 {
		g.workers[f.random.IntN(len(g.workers))].act()
		return
	}
	g.consumers[f.random.IntN(len(g.consumers))].act()
}

// alter changes the settings of the group.
func (f *fleet) alter() {
	if !f.options.Quiet {
		f.groups.alter()
	}
}

func (f *fleet) produce() {
	if len(f.clients) == 0 {
		return
	}
	f.clients[f.random.IntN(len(f.clients))].act()
}

// tick lets time pass on one machine; their clocks differ.
func (f *fleet) tick() {
	f.alive(func(m *host) { m.tick(1 + f.random.IntN(2)) })
}

func (f *fleet) restart() {
	if m := f.someone(); !m.up {
		m.start()
	}
}

func (f *fleet) pause() {
	f.alive(func(m *host) {
		f.trace.add("%s stands still", m)
		f.counts[FleetPaused]++
		m.paused = true
	})
}

func (f *fleet) resume() {
	if m := f.someone(); m.up && m.paused {
		f.wake(m)
		if f.random.IntN(2) == 0 {
			f.ask(f.one(m)) // before it hears what has happened
		}
	}
}

// wake lets a process that stood still go on.
func (f *fleet) wake(m *host) {
	if m.up && m.paused {
		f.trace.add("%s goes on", m)
		m.paused = false
		m.hear(replication.PeerEvent{Kind: replication.PeerResumed})
	}
}

// standStill pauses a leader until the others have another one, and lets it go on
// before it hears of that.
func (f *fleet) standStill() {
	m := f.one(f.someone())
	if lead, _ := m.lead(); lead != m.id || m.paused {
		return
	}
	f.counts[FleetPaused]++
	f.trace.add("%s stands still for long", m)
	m.paused = true
	for range 30 {
		for _, other := range f.hosts {
			if other.up && !other.paused && !other.stopped() {
				other.tick(1)
			}
		}
		f.exhaust()
		f.produce()
	}
	m.paused = false
	f.ask(m)
}

func (f *fleet) heal() {
	for _, l := range f.network.links {
		if l.cut {
			f.counts[FleetHealed]++
			l.cut = false
		}
	}
}

// cut ends what two members hear of each other, or one of the other.
func (f *fleet) cut(both bool) {
	l := f.network.links[f.random.IntN(len(f.network.links))]
	f.counts[FleetCutOneWay]++
	f.cutLink(l)
	if both {
		f.counts[FleetCut]++
		f.cutLink(f.network.link(l.to.node, l.from.node))
	}
}

func (f *fleet) cutLink(l *link) {
	f.trace.add("the way from %d to %d is cut", l.from.node, l.to.node)
	l.cut = true
	if f.random.IntN(2) == 0 {
		f.network.lose(l.from, l.to)
	}
}

// isolate cuts a member off from all others, preferably one that leads.
func (f *fleet) isolate() {
	m := f.someone()
	for _, c := range f.cells {
		for _, other := range c.members {
			if lead, _ := other.lead(); lead == other.id && f.random.IntN(2) == 0 {
				m = other.host
			}
		}
	}
	f.counts[FleetCut]++
	for _, l := range f.network.links {
		if l.from == m || l.to == m {
			f.cutLink(l)
		}
	}
}

// silence lets a member suppose that another one is dead, rightly or not.
func (f *fleet) silence() {
	a, b := f.someone(), f.someone()
	if a != b && a.up {
		a.silent[b] = max(a.silent[b], silenceTicks)
		a.hear(replication.PeerEvent{Kind: replication.PeerDown, Node: b.node})
	}
}

// onLink picks a link that has something.
func (f *fleet) onLink(do func(*link)) {
	if l := f.network.links[f.random.IntN(len(f.network.links))]; len(l.parcels) > 0 {
		do(l)
	}
}

func (f *fleet) drop() {
	f.onLink(func(l *link) {
		f.counts[FleetDropped]++
		l.drop(f.random.IntN(len(l.parcels)))
	})
}

func (f *fleet) duplicate() {
	f.onLink(func(l *link) {
		f.counts[FleetDuplicated]++
		i := f.random.IntN(len(l.parcels))
		l.parcels[i].encode()
		at := i + f.random.IntN(len(l.parcels)-i)
		l.parcels = slices.Insert(l.parcels, at, parcel{frame: slices.Clone(l.parcels[i].frame)})
	})
}

func (f *fleet) reorder() {
	f.onLink(func(l *link) {
		if len(l.parcels) > 1 {
			f.counts[FleetReordered]++
			i, j := f.random.IntN(len(l.parcels)), f.random.IntN(len(l.parcels))
			l.parcels[i], l.parcels[j] = l.parcels[j], l.parcels[i]
		}
	})
}

// damage flips a bit of an entry on its way. What stands around the entries is under
// the protection of the connection only.
func (f *fleet) damage() {
	f.onLink(func(l *link) {
		p := &l.parcels[f.random.IntN(len(l.parcels))]
		if p.message == nil || len(p.message.Entries) == 0 {
			return
		}
		length := 0
		for i := range p.message.Entries {
			length += len(p.message.Entries[i].Data)
		}
		if length == 0 {
			return
		}
		p.encode()
		f.counts[FleetDamaged]++
		p.frame[len(p.frame)-1-f.random.IntN(length)] ^= 1 << f.random.IntN(8)
	})
}

func (f *fleet) cutPowerSoon() {
	f.alive(func(m *host) {
		m.stopAt = m.disk.Ops() + 1 + int64(f.random.IntN(20))
		m.disk.StopAt(m.stopAt)
	})
}

// blackout cuts the power of all machines at once.
func (f *fleet) blackout() {
	f.counts[FleetBlackout]++
	for _, m := range f.hosts {
		if m.up {
			m.powerCut()
		}
	}
}

func (f *fleet) checkpoint() {
	f.living(func(m *member) { m.group.Checkpoint() })
}

func (f *fleet) idleMark() {
	f.living(func(m *member) {
		if m.part.Idle() {
			m.log.MarkIdle()
		}
	})
}

func (f *fleet) transfer() {
	f.living(func(m *member) {
		if _, leading := m.group.Leading(); leading {
			f.counts[FleetTransferred]++
			if m.cell.ledger != nil && m.moving == 0 && f.random.IntN(3) > 0 {
				m.handOver()
				return
			}
			_ = m.group.Transfer(0)
			m.look()
		}
	})
}

// read compares readable entries of any replica with the truth.
func (f *fleet) read() {
	f.living(func(m *member) {
		mark := m.log.Watermark()
		first := m.log.FirstIndex()
		if mark.Index < first || m.stopped() {
			return
		}
		from := first + wire.Index(f.random.IntN(int(mark.Index-first)+1))
		entries, err := m.log.Entries(from, 32<<10)
		var gone *log.OutOfRangeError
		if m.stopped() || errors.As(err, &gone) && from < m.log.FirstIndex() {
			return
		}
		if run, erased := m.log.ErasedRun(from); erased {
			m.gone(run)
			return
		}
		if err != nil || len(entries) == 0 {
			f.fail("%s: entries from %d on, of %d readable ones: %v", m, from, mark.Index, err)
		}
		f.counts[FleetRead]++
		if f.options.Mutant == DirtyRead {
			m.cell.truth.dirty, m.cell.truth.dirtyTerm = m.log.LastIndex(), 0
			m.cell.truth.dirtyTerm, _ = m.log.Term(m.cell.truth.dirty)
		}
		for i := range entries {
			e := &entries[i]
			if k := m.cell.truth.at(e.Index); k == nil || k.term != e.Term || e.Kind != wire.KindConfiguration && k.body != e.BodyCRC {
				f.fail("%s: entry %d of term %d, body %08x, is readable; committed is %v", m, e.Index, e.Term, e.BodyCRC, k)
			}
		}
	})
}

// confirm asks a leader how far its log is committed, for a read that must see
// everything that anybody knows of.
func (f *fleet) confirm() {
	f.living(f.ask)
}

func (f *fleet) ask(m *member) {
	if _, leading := m.group.Leading(); !leading {
		return
	}
	seen := m.cell.truth.seen
	asked := f.moment()
	done := func(i wire.Index, err error) {
		if err != nil {
			return
		}
		f.counts[FleetConfirmed]++
		f.reads = append(f.reads, Operation{At: m.log.Watermark().Next, Call: asked, Return: f.moment()})
		if f.options.Mutant == DeposedRead {
			return // who looks at the history alone must find it
		}
		if i < seen {
			f.fail("%s confirms a read at entry %d; entry %d was known to be committed before it was asked", m, i, seen)
		}
		if applied := m.group.Applied(); i > applied {
			f.fail("%s confirms a read at entry %d and has applied %d", m, i, applied)
		}
		m.cell.truth.seen = max(m.cell.truth.seen, i)
	}
	if f.options.Mutant == StaleRead || f.options.Mutant == DeposedRead {
		done(m.group.Applied(), nil)
		return
	}
	m.group.ReadIndex(done)
	m.look()
}

// rest lets some seconds pass in which nobody produces and nothing fails, so that the
// group goes to sleep.
func (f *fleet) rest() {
	for range 60 {
		for _, m := range f.hosts {
			if m.up && !m.paused && !m.stopped() {
				m.tick(1)
			}
		}
		f.exhaust()
	}
}
