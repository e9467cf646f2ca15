package cluster

import (
	"cmp"
	"math"
	"slices"

	"github.com/google/uuid"

	"github.com/lockstepmq/lockstep/wire"
)

// Limits of what the controller has going on at the same time, in counts.
const (
	// MaxMoves bounds the partitions that are being moved.
	MaxMoves = 8
	// MaxTransfers bounds the leaderships that are being handed over.
	MaxTransfers = 16
	// maxRaised bounds the destinations whose replicas are raised in one plan.
	maxRaised = 16
)

// AutoReplicas is how many replicas a destination gets that leaves it to the cluster,
// where there are brokers for them. It has one where there are not.
const AutoReplicas = 3

// Times of the controller, in ticks of 100 ms.
const (
	// ReplaceAfterTicks is how long a node is dead before its replicas are replaced, if
	// Controller.ReplaceAfter is 0: 5 minutes.
	ReplaceAfterTicks = 3000
	// settleTicks lie between the coming or going of a node and the next look at the
	// balance of leaders: one that starts first hears what it has missed.
	settleTicks = 20
	// transferTicks is how long a transfer is given until it counts as failed, and is
	// asked for again.
	transferTicks = 20
)

// Health is what the controller's node knows about the others. Its functions are
// called by Plan only.
type Health struct {
	// Alive reports whether a node answers.
	Alive func(node uint32) bool
	// DownFor is the number of ticks since a node answered last; 0 if it does.
	DownFor func(node uint32) int
	// Gone reports whether a majority of the nodes that vote about the metadata does not
	// hear a node, and nobody does. It may take its time, and is asked of nodes that were
	// down for long, and of those that leave and do not answer.
	Gone func(node uint32) bool
	// LacksSpace reports whether a node's disk refuses records.
	LacksSpace func(node uint32) bool
	// Leader is the replica that leads a partition, 0 if none is known to.
	Leader func(p *Partition) uint64
}

// Transfer asks the leader of a partition to hand its leadership to another replica.
type Transfer struct {
	Destination uuid.UUID
	Partition   uint32
	From, To    uint64 // replicas
	Node        uint32 // that holds From
}

// Controller compares the metadata with the health of the cluster and plans what
// brings them together. It runs beside the leader of group 0, has no clock and forgets
// everything with that leadership: what it asks for is safe to ask for twice, and what
// two of them ask for is decided by the metadata's log. One goroutine at a time.
type Controller struct {
	// ReplaceAfter is how many ticks a node is dead before its replicas are replaced.
	ReplaceAfter int

	asked   map[partitionKey]asked // transfers of the last transferTicks
	usable  []uint32               // nodes that could lead at the last plan
	settled uint64                 // tick from which on leaders may be balanced
	silent  map[uuid.UUID]uint64   // tick since when coordinators of groups have no leader
}

// asked is a transfer that was asked for.
type asked struct {
	tick     uint64
	from, to uint64 // replicas
}

type partitionKey struct {
	destination uuid.UUID
	number      uint32
}

// plan is what one call of Plan knows and decides.
type plan struct {
	c       *Controller
	v       *View
	h       Health
	tick    uint64
	census  *census
	led     map[uint32]int  // leaderships by node, as they are when what was asked for is done
	moves   int             // partitions that are being moved
	waiting int             // partitions whose move waits for space, or for a majority
	going   int             // leaderships that are being handed over
	word    map[uint32]bool // what Health.Gone has said

	commands  []Command
	transfers []Transfer
}

// Plan is what should be done at a tick. The commands are to be committed and the
// transfers asked for before the next call.
func (c *Controller) Plan(v *View, h Health, tick uint64) ([]Command, []Transfer) {
	p := &plan{c: c, v: v, h: h, tick: tick, census: newCensus(v), led: map[uint32]int{}, word: map[uint32]bool{}}
	p.forget()
	p.each(func(d *Destination, part *Partition) {
		switch {
		case part.Moving() && (p.waits(d, part) || !p.movable(d, part)):
			p.waiting++
		case part.Moving():
			p.moves++
		}
		leader := p.leader(part)
		if leader == nil {
			return
		}
		if a, ok := c.asked[partitionKey{d.ID, part.Number}]; ok && a.from == leader.ID {
			p.going++
			if to := part.Replica(a.to); to != nil {
				leader = to
			}
		}
		p.led[leader.Node]++
	})
	p.raiseReplicas()
	p.each(p.mend)
	p.each(p.vacate)
	p.each(p.failBack)
	p.balanceLeaders()
	p.balanceReplicas()
	p.removeNodes()
	p.raiseLevel()
	p.replaceCoordinators()
	return p.commands, p.transfers
}

// forget drops what was asked for long ago, and looks who has come or gone.
func (p *plan) forget() {
	for key, a := range p.c.asked {
		if p.tick-a.tick >= transferTicks {
			delete(p.c.asked, key)
		}
	}
	var usable []uint32
	for _, n := range p.v.Nodes {
		if p.roomy(n) {
			usable = append(usable, n.ID)
		}
	}
	if !slices.Equal(usable, p.c.usable) {
		p.c.usable, p.c.settled = usable, p.tick+settleTicks
	}
}

func (p *plan) each(f func(d *Destination, part *Partition)) {
	for _, d := range p.v.Destinations {
		for i := range d.Partitions {
			f(d, &d.Partitions[i])
		}
	}
}

func (p *plan) leader(part *Partition) *Replica {
	if id := p.h.Leader(part); id != 0 {
		return part.Replica(id)
	}
	return nil
}

func (p *plan) replaceAfter() int { return cmp.Or(p.c.ReplaceAfter, ReplaceAfterTicks) }

// dead reports whether a node is given up: one that leaves as soon as it is down, any other
// after a while, and both by the word of a majority.
func (p *plan) dead(node uint32) bool {
	n, member := p.v.Node(node)
	switch {
	case !member:
		return true
	case n.State == NodeLeaving:
		return !p.h.Alive(node) && p.gone(node)
	}
	return p.h.DownFor(node) > p.replaceAfter() && p.gone(node)
}

// gone asks for the others' word once in a plan.
func (p *plan) gone(node uint32) bool {
	gone, asked := p.word[node]
	if !asked {
		gone = p.h.Gone(node)
		p.word[node] = gone
	}
	return gone
}

// roomy reports whether a node can take its share of replicas and leaderships now.
func (p *plan) roomy(n Node) bool { return n.holds() && p.h.Alive(n.ID) && !p.h.LacksSpace(n.ID) }

// fits reports whether a node can take a replica, or the leadership, of a destination now.
func (p *plan) fits(d *Destination, n Node) bool {
	return p.roomy(n) || n.holds() && p.h.Alive(n.ID) && d.Settings.Storage == wire.StorageMemory
}

// movable reports whether the partition's leader can carry a move out: a majority of
// its voters is there, and a partition in the memory of one node is never moved.
func (p *plan) movable(d *Destination, part *Partition) bool {
	if d.Settings.Storage == wire.StorageMemory && len(part.Founders) == 0 {
		return false
	}
	voters, alive := 0, 0
	for i := range part.Replicas {
		r := &part.Replicas[i]
		if len(part.Voters) > 0 && !slices.Contains(part.Voters, r.ID) {
			continue
		}
		voters++
		if r.State != ReplicaLost && r.State != ReplicaLeft && p.h.Alive(r.Node) {
			alive++
		}
	}
	return alive > voters/2
}

// move plans one and reports whether it may.
func (p *plan) move(d *Destination, part *Partition, add []uint32, remove []uint64) {
	p.commands = append(p.commands, Command{Move: &Move{Destination: d.ID, Partition: part.Number, Add: add, Remove: remove}})
	if len(add) > 0 {
		p.moves++
		for _, n := range add {
			p.census.replicas[n]++
		}
	}
}

// waits reports whether a move cannot go on before there is space on the disk of a node that
// takes a replica. It keeps no other move from its turn.
func (p *plan) waits(d *Destination, part *Partition) bool {
	return d.Settings.Storage == wire.StorageDisk && slices.ContainsFunc(part.Replicas, func(r Replica) bool {
		return part.joins(&r) && p.h.Alive(r.Node) && p.h.LacksSpace(r.Node)
	})
}

// whole reports whether a partition has its replicas also without those on their way in,
// on nodes that stay.
func (p *plan) whole(d *Destination, part *Partition) bool {
	sound := 0
	for i := range part.Replicas {
		if r := &part.Replicas[i]; (r.State == ReplicaActive || r.State == ReplicaLeaving) && p.mayStay(r.Node) && !p.dead(r.Node) {
			sound++
		}
	}
	return sound >= int(d.Settings.Replicas)
}

// elsewhere reports whether a replica on its way in should be somewhere else: its node has
// gone or goes, or its disk is full, the partition needs it, and another node could take it.
// One that is moved for balance waits: it would only be sent there again.
func (p *plan) elsewhere(d *Destination, part *Partition, r *Replica) bool {
	if p.dead(r.Node) || !p.mayStay(r.Node) {
		return true
	}
	if !p.waits(d, part) || !p.h.LacksSpace(r.Node) || p.whole(d, part) {
		return false
	}
	_, ok := p.place(d, part, nil)
	return ok
}

// mend replaces replicas that are lost or whose node is given up, and calls off moves
// to such a node, or to one without space.
func (p *plan) mend(d *Destination, part *Partition) {
	if !p.movable(d, part) {
		return
	}
	var off, gone []uint64
	staying := 0
	for i := range part.Replicas {
		r := &part.Replicas[i]
		switch {
		case part.joins(r) && p.elsewhere(d, part, r):
			off = append(off, r.ID)
		case r.State == ReplicaLost, r.staying() && p.dead(r.Node): // a founder may have died before it began
			gone = append(gone, r.ID)
		case r.staying():
			staying++
		}
	}
	if len(off) > 0 {
		p.move(d, part, nil, off)
		return
	}
	if part.Moving() || p.moves >= MaxMoves {
		return
	}
	switch {
	case len(gone) > 0 && staying < int(d.Settings.Replicas):
		if add, ok := p.place(d, part, gone[:1]); ok {
			p.move(d, part, []uint32{add}, gone[:1])
		}
	case staying < int(d.Settings.Replicas):
		// All at once: with two voters none of them could be missed.
		var add []uint32
		for range int(d.Settings.Replicas) - staying {
			if node, ok := p.place(d, part, nil, add...); ok {
				add = append(add, node)
			}
		}
		if len(add) > 0 {
			p.move(d, part, add, nil)
		}
	default:
		p.trim(d, part)
	}
}

// trim takes away what a partition has more than its replicas: a node that was leaving it
// came back without its memory and got a new one, or of several that were on their way in
// some were called off. Who is silent goes first, then who leaves, then where it costs no rack.
func (p *plan) trim(d *Destination, part *Partition) {
	active, least := 0, 0
	var out *Replica
	for i := range part.Replicas {
		r := &part.Replicas[i]
		if r.State != ReplicaActive {
			continue
		}
		active++
		cost := 0
		for bit, is := range []bool{!p.keepsRacks(part, r, 0), part.Preferred == r.Node, p.mayStay(r.Node), p.h.Alive(r.Node)} {
			if is {
				cost |= 1 << bit
			}
		}
		if out == nil || cmp.Or(cmp.Compare(cost, least), cmp.Compare(p.census.replicas[out.Node], p.census.replicas[r.Node])) < 0 {
			out, least = r, cost
		}
	}
	if active > int(d.Settings.Replicas) {
		p.move(d, part, nil, []uint64{out.ID})
	}
}

// mayStay reports whether a node is not about to lose its replicas.
func (p *plan) mayStay(node uint32) bool {
	n, member := p.v.Node(node)
	return member && n.Broker() && n.State != NodeLeaving
}

// place finds a node for a replica in the place of those that go, beside the nodes that
// are chosen already. A replica that was lost on a node that lives is best replaced
// there.
func (p *plan) place(d *Destination, part *Partition, going []uint64, chosen ...uint32) (uint32, bool) {
	var nodes, taken []Node
	vacant := func(n Node) bool {
		return !slices.ContainsFunc(part.Replicas, func(r Replica) bool { return r.Node == n.ID && r.State != ReplicaLost })
	}
	for i := range part.Replicas {
		r := &part.Replicas[i]
		n, member := p.v.Node(r.Node)
		if !member {
			continue
		}
		if r.State == ReplicaLost && slices.Contains(going, r.ID) && p.fits(d, n) && vacant(n) {
			return n.ID, true
		}
		if !slices.Contains(going, r.ID) && r.staying() {
			taken = append(taken, n)
		}
	}
	for _, n := range p.v.Nodes {
		if slices.Contains(chosen, n.ID) {
			taken = append(taken, n)
			continue
		}
		if p.fits(d, n) && p.census.replicas[n.ID] < MaxPartitionsPerNode && vacant(n) {
			nodes = append(nodes, n)
		}
	}
	n, ok := p.census.best(part.ID, nodes, taken)
	return n.ID, ok
}

// vacate takes leaderships from nodes that drain, and replicas too from those that
// leave.
func (p *plan) vacate(d *Destination, part *Partition) {
	if leader := p.leader(part); leader != nil {
		if n, member := p.v.Node(leader.Node); member && !n.Up() || leader.State == ReplicaLeaving {
			p.transferToBest(d, part, leader)
		}
	}
	if p.moves >= MaxMoves || part.Moving() || p.movedAlready(d, part) || !p.movable(d, part) {
		return
	}
	for i := range part.Replicas {
		r := &part.Replicas[i]
		n, member := p.v.Node(r.Node)
		if !member || n.State != NodeLeaving || r.State != ReplicaActive {
			continue
		}
		if add, ok := p.place(d, part, []uint64{r.ID}); ok {
			p.move(d, part, []uint32{add}, []uint64{r.ID})
			return
		}
	}
}

func (p *plan) movedAlready(d *Destination, part *Partition) bool {
	return slices.ContainsFunc(p.commands, func(c Command) bool {
		return c.Move != nil && c.Move.Destination == d.ID && c.Move.Partition == part.Number
	})
}

// transferToBest gives a leadership to the voter whose node leads least. A node without space
// gets it from another one without only.
func (p *plan) transferToBest(d *Destination, part *Partition, leader *Replica) {
	var to *Replica
	cramped := p.h.LacksSpace(leader.Node)
	for i := range part.Replicas {
		r := &part.Replicas[i]
		n, member := p.v.Node(r.Node)
		if r.ID == leader.ID || !member || !p.fits(d, n) && !(cramped && n.holds() && p.h.Alive(n.ID)) || !p.votes(part, r) {
			continue
		}
		if to == nil || p.led[r.Node] < p.led[to.Node] {
			to = r
		}
	}
	if to != nil {
		p.transfer(d, part, leader, to)
	}
}

func (p *plan) votes(part *Partition, r *Replica) bool {
	return r.State == ReplicaActive && (len(part.Voters) == 0 || slices.Contains(part.Voters, r.ID))
}

// transfer plans one, unless the partition was asked for one a moment ago.
func (p *plan) transfer(d *Destination, part *Partition, from, to *Replica) bool {
	key := partitionKey{d.ID, part.Number}
	if _, before := p.c.asked[key]; before || p.going >= MaxTransfers {
		return false
	}
	if p.c.asked == nil {
		p.c.asked = map[partitionKey]asked{}
	}
	p.c.asked[key] = asked{p.tick, from.ID, to.ID}
	p.going++
	p.transfers = append(p.transfers, Transfer{Destination: d.ID, Partition: part.Number, From: from.ID, To: to.ID, Node: from.Node})
	p.led[from.Node]--
	p.led[to.Node]++
	return true
}

// failBack gives leaderships to the nodes that are to have them.
func (p *plan) failBack(d *Destination, part *Partition) {
	leader := p.leader(part)
	if leader == nil || part.Preferred == 0 || leader.Node == part.Preferred || part.Policy == wire.LeaderAny {
		return
	}
	n, member := p.v.Node(part.Preferred)
	if to := part.On(part.Preferred); member && p.fits(d, n) && to != nil && p.votes(part, to) {
		p.transfer(d, part, leader, to)
	}
}

// balanceLeaders lets every node that can lead have its share.
func (p *plan) balanceLeaders() {
	if p.tick < p.c.settled {
		return
	}
	sum, nodes := 0, 0
	for _, n := range p.v.Nodes {
		if p.roomy(n) {
			sum, nodes = sum+p.led[n.ID], nodes+1
		}
	}
	if nodes < 2 {
		return
	}
	fair := float64(sum) / float64(nodes)
	slack := math.Max(1, fair/10)
	p.each(func(d *Destination, part *Partition) {
		leader := p.leader(part)
		if leader == nil || float64(p.led[leader.Node]) <= fair || part.Policy != wire.LeaderAny && leader.Node == part.Preferred {
			return
		}
		var to *Replica
		for i := range part.Replicas {
			r := &part.Replicas[i]
			n, member := p.v.Node(r.Node)
			if member && p.roomy(n) && p.votes(part, r) && p.led[r.Node] < p.led[leader.Node]-1 && (to == nil || p.led[r.Node] < p.led[to.Node]) {
				to = r
			}
		}
		if to != nil && (float64(p.led[leader.Node])-fair > slack || fair-float64(p.led[to.Node]) > slack) {
			p.transfer(d, part, leader, to)
		}
	})
}

// balanceReplicas moves replicas from the nodes with the most to those with the
// fewest until nobody is more than one away from its share.
func (p *plan) balanceReplicas() {
	sum, nodes := 0, []Node{}
	for _, n := range p.v.Nodes {
		if p.roomy(n) {
			sum, nodes = sum+p.census.replicas[n.ID], append(nodes, n)
		}
	}
	if len(nodes) < 2 {
		return
	}
	fair := float64(sum) / float64(len(nodes))
	p.each(func(d *Destination, part *Partition) {
		if p.moves+p.waiting >= MaxMoves || part.Moving() || p.movedAlready(d, part) || !p.movable(d, part) {
			return
		}
		var from *Replica
		for i := range part.Replicas {
			r := &part.Replicas[i]
			if p.votes(part, r) && float64(p.census.replicas[r.Node]) > fair && p.h.Alive(r.Node) &&
				!(part.Policy == wire.LeaderPinned && part.Preferred == r.Node) && (from == nil || p.census.replicas[r.Node] > p.census.replicas[from.Node]) {
				from = r
			}
		}
		if from == nil {
			return
		}
		to, ok := p.place(d, part, []uint64{from.ID})
		if !ok || p.census.replicas[from.Node]-p.census.replicas[to] < 2 || !p.keepsRacks(part, from, to) {
			return
		}
		if float64(p.census.replicas[from.Node])-fair <= 1 && fair-float64(p.census.replicas[to]) <= 1 {
			return
		}
		p.move(d, part, []uint32{to}, []uint64{from.ID})
		p.census.replicas[from.Node]--
	})
}

// keepsRacks reports whether a move leaves a partition on as many racks as before.
func (p *plan) keepsRacks(part *Partition, from *Replica, to uint32) bool {
	racks := func(skip, add uint32) int {
		var seen []string
		note := func(node uint32) {
			if n, ok := p.v.Node(node); ok && n.Rack != "" && !slices.Contains(seen, n.Rack) {
				seen = append(seen, n.Rack)
			}
		}
		for i := range part.Replicas {
			if r := &part.Replicas[i]; r.staying() && r.Node != skip {
				note(r.Node)
			}
		}
		if add != 0 {
			note(add)
		}
		return len(seen)
	}
	return racks(from.Node, to) >= racks(0, 0)
}

// removeNodes ends the membership of nodes that have left.
func (p *plan) removeNodes() {
	for _, n := range p.v.Nodes {
		if n.State != NodeLeaving {
			continue
		}
		holds := false
		p.each(func(_ *Destination, part *Partition) {
			for _, r := range part.Replicas {
				holds = holds || r.Node == n.ID && (r.State != ReplicaLeft || !p.dead(n.ID))
			}
		})
		if !holds {
			p.commands = append(p.commands, Command{RemoveNode: &RemoveNode{Node: n.ID}})
		}
	}
}

// raiseReplicas gives destinations that leave the number of replicas to the cluster more
// of them once there are brokers to hold them. It is never lowered: what was safe is
// not made less so.
func (p *plan) raiseReplicas() {
	nodes := 0
	for _, n := range p.v.Nodes {
		if p.roomy(n) {
			nodes++
		}
	}
	if nodes < AutoReplicas || p.tick < p.c.settled {
		return
	}
	for _, d := range p.v.Destinations {
		if d.Automatic && d.Settings.Replicas < AutoReplicas && d.grows() && len(p.commands) < maxRaised {
			p.commands = append(p.commands, Command{SetReplicas: &SetReplicas{Destination: d.ID, Replicas: AutoReplicas}})
		}
	}
}

// grows reports whether a destination can have more replicas: not if it is in the
// memory of one node.
func (d *Destination) grows() bool {
	return d.Settings.Storage == wire.StorageDisk || !slices.ContainsFunc(d.Partitions, func(p Partition) bool { return len(p.Founders) == 0 })
}

// raiseLevel lets new features be used once every node knows them.
func (p *plan) raiseLevel() {
	level := MaxLevel
	for _, n := range p.v.Nodes {
		level = min(level, max(n.MaxLevel, LevelAlone))
	}
	if len(p.v.Nodes) > 1 && level > p.v.Level {
		p.commands = append(p.commands, Command{SetLevel: &SetLevel{Level: level}})
	}
}

// PlanMeta is the configuration that group 0 should have: an odd number of voters, up to
// wire.MaxMetadataVoters, on different racks where there are some, and everybody else as a
// learner. Brokers come before gateways, which come and go with those that use them. Who
// votes goes on voting among its like; who votes and is gone does so too until another can
// take its place, because fewer voters would not make the group any safer. That a voter is
// gone is a majority's word, asked for those only that are not alive; whom the asking node
// does not hear gets no vote. IDs are those of group 0.
func PlanMeta(v *View, voters []uint64, alive, gone func(node uint32) bool) (wanted, learners []uint64) {
	var candidates [5][]Node // brokers that vote, living ones that learn, gateways likewise, voters that are gone
	members := 0
	for _, n := range v.Nodes {
		votes := slices.Contains(voters, n.MetaID())
		if n.State == NodeLeaving || !votes && !alive(n.ID) {
			continue
		}
		members++
		class := 0
		if n.Role == RoleGateway {
			class = 2
		}
		if !votes {
			class++
		} else if !alive(n.ID) && gone(n.ID) {
			class = 4
		}
		candidates[class] = append(candidates[class], n)
	}
	count := min(wire.MaxMetadataVoters, members)
	count -= 1 - count%2
	var chosen []Node
	c := &census{}
	for _, from := range candidates {
		for len(chosen) < count {
			n, ok := c.best(v.ClusterID, from, chosen)
			if !ok {
				break
			}
			chosen = append(chosen, n)
		}
	}
	for _, n := range chosen {
		wanted = append(wanted, n.MetaID())
	}
	for _, n := range v.Nodes {
		if id := n.MetaID(); !slices.Contains(wanted, id) {
			learners = append(learners, id)
		}
	}
	slices.Sort(wanted)
	return wanted, learners
}
