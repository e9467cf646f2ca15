package sim

import (
	"errors"
	"fmt"
	"slices"

	"github.com/lockstepmq/lockstep/cluster"
	"github.com/lockstepmq/lockstep/partition"
	"github.com/lockstepmq/lockstep/wire"
)

// name is one that processes write under, one after the other and side by side. The
// metadata of the fleet give it epochs, and its partitions commit the fences. Once an
// opening is answered, nothing of an earlier epoch is taken any more in the partitions that
// it named; elsewhere not by a leader whose node has heard of it (RULES R5).
type name struct {
	fleet   *fleet
	text    string
	holders []*holder
	id      int64
	given   bool            // the ID is known
	raised  int16           // the newest epoch that any node's metadata have had
	ended   map[*cell]int16 // epochs below it are over there
}

// NameCounts say what has happened to the names of a fleet.
type NameCounts struct {
	Opened     int // openings that were answered
	Fenced     int // of those, with fences
	Renewed    int // of those, by who had the name
	Superseded int // holders that heard that another one has the name
	Refused    int // batches of an epoch that was over
	Late       int // batches of an older epoch that were sent when another had opened the name
}

// Add adds another run's counts.
func (c *NameCounts) Add(o *NameCounts) {
	c.Opened += o.Opened
	c.Fenced += o.Fenced
	c.Renewed += o.Renewed
	c.Superseded += o.Superseded
	c.Refused += o.Refused
	c.Late += o.Late
}

// nameStage is what a holder is about.
type nameStage int

const (
	nameWanted  nameStage = iota // nobody is asked
	nameAsked                    // the metadata are
	nameFencing                  // and have answered
	nameHeld                     // it writes
	nameOver                     // another one has it
)

// note takes notice of what a node knows of the name.
func (n *name) note(m *cluster.Metadata) {
	for n.given && m.Fenced(n.id, n.raised) {
		n.raised++
	}
}

// holder is a process that opens a name on some node, as server.broker does for it, and
// then writes. It knows nothing of other holders.
type holder struct {
	name   *name
	number uint64
	cells  []*cell // that it writes to, and names
	stage  nameStage

	at       *seat // that it asks
	life     int   // of the process there
	attempt  int   // counts what it has asked
	waited   int
	renews   bool // it wants another epoch, and begins nothing under this one
	identity cluster.ProducerSession
	left     map[*cell]int // acts since its leader was asked for a fence; no entry: it is there
	writers  []*producer
}

const (
	fleetNames  = 2
	nameHolders = 3 // of a name, that are left to themselves
)

func (h *holder) String() string { return fmt.Sprintf("holder %d of %q", h.number, h.name.text) }

// open lets another process want a name.
func (f *fleet) open() {
	n := f.names[f.random.IntN(len(f.names))]
	if v := f.council.seats[0].view(); f.settling || len(v.Destinations) == 0 || v.Level < cluster.LevelFences {
		return // before, nobody is fenced
	}
	if len(n.holders) == nameHolders {
		n.holders[0].end()
	}
	f.lastHolder++
	h := &holder{name: n, number: f.lastHolder, cells: f.cells[1:]}
	if f.random.IntN(3) == 0 {
		h.cells = h.cells[:1]
	}
	n.holders = append(n.holders, h)
	f.trace.add("%s begins, for %d partitions", h, len(h.cells))
}

// hold is the next thing that a holder does beside its writing.
func (f *fleet) hold() {
	if n := f.names[f.random.IntN(len(f.names))]; len(n.holders) > 0 {
		n.holders[f.random.IntN(len(n.holders))].act()
	}
}

// lost reports whether the node that the holder has asked will not answer.
func (h *holder) lost() bool { return !h.at.m.up || h.at.m.life != h.life || h.waited > patience }

func (h *holder) act() {
	f := h.name.fleet
	h.waited++
	switch h.stage {
	case nameWanted:
		h.ask()
	case nameAsked:
		if h.lost() {
			h.stage = nameWanted
		}
	case nameFencing:
		if !h.at.m.up || h.at.m.life != h.life || h.waited > 10*patience && !f.settling {
			h.stage = nameWanted // it is opened again
			return
		}
		for _, c := range h.cells {
			if since, missing := h.left[c]; missing {
				if h.left[c] = since + 1; since%patience == 0 {
					h.fence(c)
				}
			}
		}
	case nameHeld:
		if h.renews && !slices.ContainsFunc(h.writers, func(c *producer) bool { return len(c.queue) > 0 }) {
			h.stage = nameWanted
		}
		h.renews = h.renews || f.random.IntN(25) == 0 && !f.settling
	}
}

// ask lets a node ask the metadata for the next epoch.
func (h *holder) ask() {
	f := h.name.fleet
	s := f.council.seats[f.random.IntN(len(f.council.seats))]
	if !s.works() {
		return
	}
	h.attempt++
	h.at, h.life, h.waited, h.stage = s, s.m.life, 0, nameAsked
	attempt, renews := h.attempt, h.renews
	open := &cluster.OpenProducer{Name: h.name.text, Holder: h.number, Renews: renews}
	if f.options.Mutant == AnyoneRenews {
		open.Renews = false
	}
	f.trace.add("%s asks %s, renews %t", h, s, renews)
	s.ask(cluster.Command{OpenProducer: open}, func(r cluster.Result) {
		if r.Err == nil && !h.name.given {
			h.name.id, h.name.given = r.Producer.ID, true
			for _, s := range f.council.seats {
				h.name.note(s.m.metadata)
			}
		}
		switch {
		case h.attempt != attempt || h.stage != nameAsked:
		case errors.Is(r.Err, wire.CodeFenced) && renews:
			h.superseded()
		case r.Err != nil:
			h.stage = nameWanted
		default:
			h.given(r.Producer, renews)
		}
	})
}

// given takes the answer of the metadata.
func (h *holder) given(p cluster.ProducerSession, renews bool) {
	if h.name.fleet.options.Mutant == EpochsNotRaised {
		p.Epoch = 0
	}
	h.identity, h.waited = p, 0
	if renews || p.Epoch == 0 {
		h.answered(renews)
		return
	}
	h.stage, h.left = nameFencing, map[*cell]int{}
	for _, c := range h.cells {
		h.left[c] = 0
	}
}

// fence asks who leads a partition for the fence: over the node that the holder asked, or
// over another one that this one and the leader hear.
func (h *holder) fence(c *cell) {
	f := h.name.fleet
	leaders := c.leaders(0)
	if len(leaders) == 0 {
		return
	}
	m := leaders[f.random.IntN(len(leaders))]
	reached := func() bool {
		return slices.ContainsFunc(f.hosts, func(over *host) bool { return h.at.m.host.reaches(over) && over.reaches(m.host) })
	}
	attempt := h.attempt
	then := func(code wire.ErrorCode) {
		f.trace.add("%s: the fence of epoch %d in %s: %v", h, h.identity.Epoch, c, code)
		switch {
		case h.attempt != attempt || h.stage != nameFencing || !reached() || f.random.IntN(10) == 0 && !f.settling:
		case code == wire.CodeFenced:
			h.superseded()
		case code == wire.CodeOK:
			if delete(h.left, c); len(h.left) == 0 {
				f.named.Fenced++
				h.answered(false)
			}
		}
	}
	switch {
	case m.paused || !reached():
	case f.options.Mutant == FencesNotCommitted:
		then(wire.CodeOK)
	case m.part.Fence(partition.Fence{ID: h.identity.ID, Epoch: h.identity.Epoch, Then: then}) == nil:
		m.turn()
	}
}

// answered is the end of an opening.
func (h *holder) answered(renews bool) {
	f, n := h.name.fleet, h.name
	f.trace.add("%s has epoch %d of producer %d", h, h.identity.Epoch, h.identity.ID)
	f.named.Opened++
	if renews {
		f.named.Renewed++
	}
	h.retire()
	h.stage, h.renews = nameHeld, false
	for _, c := range h.cells {
		n.ended[c] = max(n.ended[c], h.identity.Epoch)
		h.writers = append(h.writers, &producer{fleet: f, cell: c, id: h.identity.ID, epoch: h.identity.Epoch, holder: h})
	}
	f.clients = append(f.clients, h.writers...)
}

// retire ends the writing under an epoch.
func (h *holder) retire() {
	f := h.name.fleet
	f.clients = slices.DeleteFunc(f.clients, func(c *producer) bool { return c.holder == h })
	h.writers = nil
}

// superseded is what a holder hears when another one has the name.
func (h *holder) superseded() {
	if h.name.raised <= h.identity.Epoch {
		h.name.fleet.fail("%s is refused with epoch %d, and there is none behind it", h, h.identity.Epoch)
	}
	h.name.fleet.named.Superseded++
	h.end()
}

// end is the end of the process.
func (h *holder) end() {
	h.name.fleet.trace.add("%s is over", h)
	h.retire()
	h.stage = nameOver
	h.name.holders = slices.DeleteFunc(h.name.holders, func(other *holder) bool { return other == h })
}

// unopened is how many holders wait for a name.
func (f *fleet) unopened() (n int) {
	for _, name := range f.names {
		for _, h := range name.holders {
			if h.stage != nameHeld {
				n++
			}
		}
	}
	return n
}
