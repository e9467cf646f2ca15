package sim

import (
	"encoding/json"
	"fmt"
	"slices"

	"github.com/google/uuid"

	"github.com/lockstepmq/lockstep/cluster"
	"github.com/lockstepmq/lockstep/replication"
	"github.com/lockstepmq/lockstep/wire"
)

// council is the metadata of a cluster on the machines of a fleet. What they replicate is
// group 0: cluster.Metadata over the real log and consensus, on disks and a network that
// fail. A real cluster.Controller plans beside whoever leads it, also where two believe
// that they do, and each node does what its own view says, however old that is. Replicas
// of partitions are a model (see shard); their leaders take the real steps
// (cluster.StepTowards) and report them.
type council struct {
	fleet  *fleet
	seats  []*seat
	cells  []*cell // partitions that are real; with them there is one destination, and it stays
	shards map[uuid.UUID]*shard
	order  []*shard
	owners map[uint64]owner // of every replica ID there ever was
	// frugal runs have partitions of one replica, too, and lose no disk.
	frugal bool
	rounds int64             // chores and plans so far, by which nodes wait for answers
	asked  int64             // the round in which a destination was asked for last
	made   uint64            // names and identities
	plan   []cluster.Command // of the last round of settling
	calm   int               // rounds of settling in which nobody had anything to do
	counts CouncilCounts
}

// CouncilEvent is something that runs with a council must have seen happen.
type CouncilEvent int

// What operators and controllers did, and what came of it.
const (
	CouncilJoined      CouncilEvent = iota // nodes
	CouncilRemoved                         // nodes that were decommissioned
	CouncilDiskLost                        // with all replicas of a node
	CouncilCreated                         // destinations
	CouncilDeleted                         // destinations
	CouncilPlanned                         // commands of a controller
	CouncilTransferred                     // leaderships
	CouncilLearner                         // replicas that began to learn
	CouncilPromoted                        // replicas that became voters
	CouncilLeft                            // voters that were taken out
	CouncilReported                        // configurations
	CouncilBuried                          // directories
	CouncilRefused                         // commands
	CouncilFilled                          // disks
	CouncilEmptied                         // disks
	CouncilMadeWay                         // leaders whose disk was full
	CouncilEventCount
)

var councilEventNames = [CouncilEventCount]string{
	"node joined", "node removed", "disk lost", "destination created", "destination deleted", "command of a controller", "leadership moved",
	"learner", "voter", "voter taken out", "configuration reported", "directory removed", "command refused",
	"disk full", "disk with room again", "leader made way",
}

func (e CouncilEvent) String() string { return councilEventNames[e] }

// CouncilCounts says how often each event happened.
type CouncilCounts [CouncilEventCount]int64

// Add adds another run's counts.
func (c *CouncilCounts) Add(other *CouncilCounts) {
	for i := range c {
		c[i] += other[i]
	}
}

// owner is where a replica ID belongs.
type owner struct {
	partition uuid.UUID
	node      uint32
	active    bool // the metadata has called it active
}

// seat is a node of the cluster on a machine of the fleet.
type seat struct {
	council *council
	m       *member
	node    uint32     // its ID, 0: it is no member
	store   uuid.UUID  // another one when the disk was lost
	since   wire.Index // the view's epoch when the node was found in it with this store
	dirs    map[uint64]bool
	life    int // of the process that the metadata know
	said    map[string]int64
	full    bool            // its disk, see fill
	short   map[uint32]bool // whose disk was full when they were heard last
	control *cluster.Controller
}

func newCouncil(f *fleet) *council {
	c := &council{fleet: f, cells: f.cells[1:], shards: map[uuid.UUID]*shard{}, owners: map[uint64]owner{}}
	c.frugal = f.random.IntN(2) == 0
	for _, m := range f.cells[0].members {
		c.seats = append(c.seats, &seat{council: c, m: m, store: c.identity(), dirs: map[uint64]bool{}, said: map[string]int64{}, short: map[uint32]bool{}})
	}
	return c
}

func (c *council) identity() (id uuid.UUID) {
	c.made++
	id[0], id[6], id[7] = 0xc0, byte(c.made>>8), byte(c.made)
	return id
}

// councilMachine is group 0's state machine on one member, with the model looking on.
type councilMachine struct {
	*cluster.Metadata
	m *member
}

// stateEvery is how many entries lie between two that states are compared at.
const stateEvery = 8

func (s *councilMachine) Apply(e replication.Entry) {
	s.m.cell.truth.apply(s.m.id, e)
	s.Metadata.Apply(e)
	for _, n := range s.m.fleet.names {
		n.note(s.Metadata)
	}
	s.m.applied = max(s.m.applied, e.Index)
	if e.Index%stateEvery == 0 {
		s.m.cell.truth.state(s.m.id, e.Index, s.Save(nil))
	}
}

func (s *councilMachine) Restore(state []byte) error {
	s.m.fleet.counts[FleetCheckpointRestored]++
	return s.Metadata.Restore(state)
}

// works reports whether a node does anything now.
func (s *seat) works() bool { return s.m.up && !s.m.paused && !s.m.stopped() }

func (s *seat) view() *cluster.View { return s.m.metadata.View() }

func (s *seat) String() string { return fmt.Sprintf("node %d", s.node) }

func (c *council) seatOf(node uint32) *seat {
	for _, s := range c.seats {
		if node != 0 && s.node == node {
			return s
		}
	}
	return nil
}

// act is one step of somebody.
func (c *council) act() {
	f := c.fleet
	c.rounds++
	s := c.seats[f.random.IntN(len(c.seats))]
	if f.options.Voters {
		c.vote(s)
		return
	}
	switch n := f.random.IntN(100); {
	case len(c.cells) > 0 && n >= 97 && f.groups != nil && !f.options.Quiet:
		c.coordinate(s)
	case n < 40, len(c.cells) > 0 && n >= 60:
		s.chores()
	case n < 60:
		for _, s := range c.seats {
			s.govern()
		}
	case n < 85:
		if len(c.order) > 0 {
			c.order[f.random.IntN(len(c.order))].step()
		}
	case n < 98 || f.options.Quiet:
		c.operate(s)
	case n < 99:
		c.fill(s)
	default:
		c.loseDisk(s)
	}
}

// answerRounds is for how many rounds a node waits for an answer before it says the same
// again: the command, or its answer, was lost.
const answerRounds = 40

// submit hands a command to whom the node takes for the controller.
func (s *seat) submit(command cluster.Command, done func(cluster.Result)) {
	s.ask(command, func(r cluster.Result) {
		if r.Err == nil && done != nil {
			done(r)
		}
	})
}

// ask is submit for who wants to hear of a refusal, too.
func (s *seat) ask(command cluster.Command, done func(cluster.Result)) {
	c := s.council
	body, err := json.Marshal(&command)
	if err != nil {
		c.fleet.fail("a command does not marshal: %v", err)
	}
	key := string(body)
	if at, waits := s.said[key]; waits && c.rounds-at < answerRounds {
		return
	}
	for _, to := range c.seats {
		if !to.works() || to != s && !(s.m.hears(to.m.host) && to.m.hears(s.m.host)) {
			continue
		}
		if _, leading := to.m.group.Leading(); !leading {
			continue
		}
		s.said[key] = c.rounds
		life := s.m.life
		to.m.metadata.Submit(command, func(r cluster.Result) {
			if s.m.life != life {
				return // nobody waits any more
			}
			delete(s.said, key)
			if r.Err != nil {
				c.counts[CouncilRefused]++
				c.fleet.trace.add("%s: %s is refused: %v", s, key, r.Err)
			}
			done(r)
		})
		to.m.turn()
		return
	}
}

func (s *seat) address(what string) string { return fmt.Sprintf("%s-%s:1", what, s.store) }

// chores are what a node does by itself: it joins, it makes and removes directories as the
// metadata say, and says so.
func (s *seat) chores() {
	c := s.council
	if !s.works() {
		return
	}
	v := s.view()
	if v.ClusterID == uuid.Nil {
		if s == c.seats[0] {
			s.submit(cluster.Command{Register: &cluster.Register{
				ClusterID: clusterID, Node: 1, Store: s.store, Address: s.address("client"), PeerAddress: s.address("peer"), Rack: s.rack(), MinLevel: cluster.MinLevel, MaxLevel: cluster.MaxLevel,
			}}, nil)
		}
		return
	}
	i := slices.IndexFunc(v.Nodes, func(n cluster.Node) bool { return n.Store == s.store })
	switch {
	case i < 0 && s.since != 0 && v.Epoch > s.since:
		s.removed()
		return
	case i < 0 && s.since != 0:
		return // the view is from before it joined
	case i < 0 && c.fleet.options.Voters && len(v.Nodes) != int(s.m.node)-1:
		return // they come in the order of their replicas
	case i < 0:
		old, _ := v.Node(s.node)
		s.submit(cluster.Command{Join: &cluster.Join{
			ClusterID: clusterID, Node: s.node, Store: s.store, Judged: old.Store, Address: s.address("client"), PeerAddress: s.address("peer"), Rack: s.rack(), MinLevel: cluster.MinLevel, MaxLevel: cluster.MaxLevel,
		}}, nil)
		return
	case s.since == 0 || s.node != v.Nodes[i].ID: // or it was removed, and a late request let it join again
		c.counts[CouncilJoined]++
		s.node, s.since, s.life = v.Nodes[i].ID, v.Epoch, s.m.life
		c.fleet.trace.add("%s has joined with directory %s", s, s.store)
	case s.life != s.m.life:
		life := s.m.life
		s.submit(cluster.Command{Register: &cluster.Register{
			Node: s.node, Store: s.store, Address: s.address("client"), PeerAddress: s.address("peer"), Rack: s.rack(), MinLevel: cluster.MinLevel, MaxLevel: cluster.MaxLevel,
		}}, func(cluster.Result) { s.life = life })
	}
	switch {
	case c.fleet.options.Voters:
	case len(c.cells) > 0:
		s.settle(v)
	default:
		s.tidy(v)
	}
}

// tidy makes and removes directories.
func (s *seat) tidy(v *cluster.View) {
	c := s.council
	var fresh, gone []uint64
	for _, d := range v.Destinations {
		for i := range d.Partitions {
			p := &d.Partitions[i]
			sh := c.shard(d, p)
			for _, r := range p.Replicas {
				if r.Node != s.node {
					continue
				}
				switch {
				case r.State == cluster.ReplicaNew:
					s.make(sh, r.ID)
					fresh = append(fresh, r.ID)
				case r.State == cluster.ReplicaLeft, r.State == cluster.ReplicaLeaving && c.fleet.options.Mutant == EarlyBurial:
					s.bury(sh, r.ID)
					gone = append(gone, r.ID)
				case r.State != cluster.ReplicaLost && !s.dirs[r.ID] && len(p.Replicas) > 1:
					s.submit(cluster.Command{Lost: &cluster.Lost{Destination: d.ID, Partition: p.Number, Replica: r.ID, Reason: "its directory is gone"}}, nil)
				}
			}
		}
	}
	if len(fresh) > 0 {
		s.submit(cluster.Command{Activate: &cluster.Activate{Replicas: fresh}}, nil)
	}
	if len(gone) > 0 {
		s.submit(cluster.Command{Bury: &cluster.Bury{Node: s.node, Replicas: gone}}, nil)
	}
	for _, d := range v.Deleted {
		if slices.Contains(d.Nodes, s.node) {
			for _, sh := range c.order {
				if sh.destination == d.ID {
					sh.deleted = true
					for _, id := range sh.replicas {
						s.bury(sh, id)
					}
				}
			}
			s.submit(cluster.Command{Bury: &cluster.Bury{ID: d.ID, Node: s.node}}, nil)
		}
	}
}

// make creates the directory of a replica. One that was active is never made anew: it
// would have forgotten what it has promised (RULES R10).
func (s *seat) make(sh *shard, id uint64) {
	c := s.council
	if s.dirs[id] {
		return
	}
	if c.owners[id].active && sh.member(id) && !sh.deleted {
		c.fleet.fail("%s makes an empty directory for replica %d of %s, which was active and is a member", s, id, sh)
	}
	c.fleet.trace.add("%s makes the directory of replica %d of %s", s, id, sh)
	s.dirs[id] = true
	if slices.Contains(sh.voters, id) {
		sh.whole[id] = true // a founder begins with nothing, as the others
	}
}

// bury removes the directory of a replica. One that its partition counts on is not to go.
func (s *seat) bury(sh *shard, id uint64) {
	c := s.council
	if !s.dirs[id] {
		return
	}
	if slices.Contains(sh.voters, id) && !sh.deleted {
		c.fleet.fail("%s removes the directory of replica %d, which is a voter of %s: voters %d, learners %d", s, id, sh, sh.voters, sh.learners)
	}
	c.counts[CouncilBuried]++
	c.fleet.trace.add("%s removes the directory of replica %d of %s", s, id, sh)
	delete(s.dirs, id)
	delete(sh.whole, id)
}

// removed is the end of a node's membership. Nobody may count on what it holds. Its
// host is to join again, as another node.
func (s *seat) removed() {
	c := s.council
	for _, sh := range c.order {
		for _, id := range sh.voters {
			if _, named := s.view().DestinationByID(sh.destination); c.owners[id].node == s.node && named {
				c.fleet.fail("%s is no member any more, and holds voter %d of %s", s, id, sh)
			}
		}
	}
	c.counts[CouncilRemoved]++
	c.fleet.trace.add("%s has left the cluster", s)
	s.emptied()
	s.node = 0
}

// emptied gives a node another, empty directory.
func (s *seat) emptied() {
	for _, sh := range s.council.order {
		for id := range s.dirs {
			delete(sh.whole, id)
		}
	}
	clear(s.dirs)
	clear(s.said)
	s.store, s.since = s.council.identity(), 0
}

// loseDisk takes the directories of a node, if every partition has a majority without
// them and nobody is waiting for an earlier loss to be made good.
func (c *council) loseDisk(s *seat) {
	if c.frugal {
		return
	}
	for _, other := range c.seats {
		if other.since == 0 {
			return
		}
	}
	for _, sh := range c.order {
		if sh.deleted {
			continue
		}
		rest := 0
		for _, id := range sh.voters {
			if sh.whole[id] && c.owners[id].node != s.node {
				rest++
			}
		}
		if rest <= len(sh.voters)/2 {
			return
		}
	}
	c.counts[CouncilDiskLost]++
	c.fleet.trace.add("%s loses the directories of its partitions", s)
	s.emptied()
}

// govern plans, where a node leads the metadata.
func (s *seat) govern() (planned int) {
	c := s.council
	if !s.works() {
		return 0
	}
	if _, leading := s.m.group.Leading(); !leading || s.m.group.Paused() {
		s.control = nil
		return 0
	}
	if s.control == nil {
		s.control = &cluster.Controller{ReplaceAfter: 60}
	}
	v := s.view()
	commands, transfers := s.control.Plan(v, s.health(), uint64(s.m.nowMs/100))
	s.gives(v, commands, transfers)
	if c.fleet.options.Mutant == RestlessBalance {
		commands = append(commands, restless(v)...)
	}
	for _, command := range commands {
		if command.RemoveNode != nil && command.RemoveNode.Node == s.node {
			_ = s.m.group.Transfer(0) // another one does that
			continue
		}
		if c.fleet.options.Mutant == RemovalFirst && command.Move != nil && len(command.Move.Remove) > 0 && len(command.Move.Add) > 0 {
			command.Move.Add = nil
		}
		c.counts[CouncilPlanned]++
		c.plan = append(c.plan, command)
		s.submit(command, nil)
	}
	for _, t := range transfers {
		if len(c.cells) > 0 {
			c.transfer(v, t)
			continue
		}
		for _, sh := range c.order {
			if sh.destination == t.Destination && sh.number == t.Partition && sh.leader == t.From && sh.lives(t.To) && slices.Contains(sh.voters, t.To) {
				c.counts[CouncilTransferred]++
				sh.leader = t.To
			}
		}
	}
	return len(commands) + len(transfers)
}

// health is what a node knows of the others.
func (s *seat) health() cluster.Health {
	c := s.council
	silent := func(node uint32) int {
		switch other := c.seatOf(node); {
		case other == s:
			return 0
		case other == nil || other.since == 0:
			return 1 << 20
		default:
			return s.m.silent[other.m.host]
		}
	}
	return cluster.Health{
		Alive:      func(node uint32) bool { return silent(node) == 0 },
		DownFor:    silent,
		LacksSpace: func(node uint32) bool { return s.lacksSpace(node) && c.fleet.options.Mutant != SpaceUnheard },
		Gone: func(node uint32) bool { // by the word of those that can be asked
			target := c.seatOf(node)
			if target == nil || target.since == 0 {
				return true
			}
			deaf := 0
			for _, other := range c.seats {
				if other == s || other.works() && s.m.hears(other.m.host) && other.m.hears(s.m.host) {
					if other.m.silent[target.m.host] == 0 {
						return false
					}
					deaf++
				}
			}
			return deaf > len(c.seats)/2
		},
		Leader: func(p *cluster.Partition) uint64 {
			if len(c.cells) > 0 {
				return c.leader(p)
			}
			if sh := c.shards[p.ID]; sh != nil && sh.lives(sh.leader) {
				return sh.leader
			}
			return 0
		},
	}
}

// restless moves a replica from a node that has one more than another.
func restless(v *cluster.View) []cluster.Command {
	held := map[uint32]int{}
	for _, n := range v.Nodes {
		held[n.ID] = 0
	}
	for _, d := range v.Destinations {
		for i := range d.Partitions {
			for _, r := range d.Partitions[i].Replicas {
				held[r.Node]++
			}
		}
	}
	for _, d := range v.Destinations {
		for i := range d.Partitions {
			p := &d.Partitions[i]
			if p.Moving() {
				continue
			}
			for _, r := range p.Replicas {
				for _, n := range v.Nodes {
					if r.State == cluster.ReplicaActive && p.On(n.ID) == nil && held[r.Node] >= held[n.ID] {
						return []cluster.Command{{Move: &cluster.Move{Destination: d.ID, Partition: p.Number, Add: []uint32{n.ID}, Remove: []uint64{r.ID}}}}
					}
				}
			}
		}
	}
	return nil
}
