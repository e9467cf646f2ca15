package cluster

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/wire"
)

// world is a cluster that does what the controller asks for: partitions follow the
// intent of the metadata as their leaders would.
type world struct {
	t       *testing.T
	state   *State
	control Controller
	down    map[uint32]int    // ticks since a node was heard
	leaders map[string]uint64 // by partition
	tick    uint64
	index   wire.Index
	heard   map[uint32]bool // nodes that somebody else hears
	full    uint32          // a node whose disk refuses records
	unseen  bool            // nobody says so
	given   int             // leaderships and replicas that were given to that node
	slow    bool            // transfers take until the next plan is made
	going   []Transfer
	unasked int // partitions that began to move without the controller

	commands, transfers int
}

func newWorld(t *testing.T, s *State) *world {
	w := &world{t: t, state: s, down: map[uint32]int{}, leaders: map[string]uint64{}}
	w.elect()
	return w
}

func keyOf(p *Partition) string { return p.ID.String() }

func (w *world) alive(node uint32) bool { return w.down[node] == 0 }

func (w *world) health() Health {
	return Health{
		Alive: w.alive, DownFor: func(n uint32) int { return w.down[n] }, Gone: func(n uint32) bool { return !w.heard[n] },
		LacksSpace: func(n uint32) bool { return n == w.full && !w.unseen },
		Leader:     func(p *Partition) uint64 { return w.leaders[keyOf(p)] },
	}
}

// elect gives partitions a leader that have none, the first that lives. Who has no space
// makes way.
func (w *world) elect() {
	for _, name := range w.state.names() {
		for i := range w.state.Destinations[name].Partitions {
			p := &w.state.Destinations[name].Partitions[i]
			if r := p.Replica(w.leaders[keyOf(p)]); r != nil && w.alive(r.Node) && r.Node != w.full && r.State != ReplicaLeft && r.State != ReplicaLost {
				continue
			}
			delete(w.leaders, keyOf(p))
			for _, r := range p.Replicas {
				if (r.State == ReplicaActive || r.State == ReplicaLeaving) && w.alive(r.Node) && r.Node != w.full {
					w.leaders[keyOf(p)] = r.ID
					break
				}
			}
		}
	}
}

// step is one plan and what comes of it.
func (w *world) step() (planned int) {
	w.tick += 10
	for n := range w.down {
		if w.down[n] > 0 {
			w.down[n] += 10
		}
	}
	w.elect()
	commands, transfers := w.control.Plan(newView(w.state), w.health(), w.tick)
	require.LessOrEqual(w.t, len(transfers)+len(w.going), MaxTransfers)
	arrived := transfers
	if w.slow {
		arrived, w.going = w.going, transfers
	}
	for _, c := range commands {
		if c.Move != nil && slices.Contains(c.Move.Add, w.full) {
			w.given++
		}
		apply(w.t, w.state, c)
	}
	w.commands, w.transfers = w.commands+len(commands), w.transfers+len(transfers)
	moving := 0
	for _, name := range w.state.names() {
		d := w.state.Destinations[name]
		for i := range d.Partitions {
			p := &d.Partitions[i]
			if slices.ContainsFunc(p.Replicas, func(r Replica) bool { return p.joins(&r) }) && (w.unseen || !w.stuck(p)) && w.decides(p) {
				moving++
			}
			for _, x := range arrived {
				if x.Destination == d.ID && x.Partition == p.Number {
					require.Equal(w.t, w.leaders[keyOf(p)], x.From)
					require.True(w.t, w.alive(p.Replica(x.To).Node))
					w.leaders[keyOf(p)] = x.To
					if p.Replica(x.To).Node == w.full {
						w.given++
					}
				}
			}
		}
	}
	require.LessOrEqual(w.t, moving, MaxMoves+w.unasked)
	w.follow()
	return len(commands) + len(transfers)
}

// follow lets nodes and leaders do their part.
func (w *world) follow() {
	for _, name := range w.state.names() {
		d := w.state.Destinations[name]
		for i := range d.Partitions {
			p := &w.state.Destinations[name].Partitions[i]
			for _, r := range p.Replicas {
				if !w.alive(r.Node) {
					continue
				}
				switch r.State {
				case ReplicaNew:
					apply(w.t, w.state, Command{Activate: &Activate{Replicas: []uint64{r.ID}}})
				case ReplicaLeft:
					apply(w.t, w.state, Command{Bury: &Bury{Node: r.Node, Replicas: []uint64{r.ID}}})
				}
			}
			p = &w.state.Destinations[name].Partitions[i]
			leader := p.Replica(w.leaders[keyOf(p)])
			if leader == nil || !w.alive(leader.Node) || !p.Moving() && !spare(d, p) || w.stuck(p) {
				continue
			}
			var voters []uint64
			for _, r := range p.Replicas {
				if r.State == ReplicaActive || r.State == ReplicaJoining && w.alive(r.Node) || r.ID == leader.ID {
					voters = append(voters, r.ID)
				}
			}
			w.index++
			apply(w.t, w.state, Command{Reconfigured: &Reconfigured{Destination: d.ID, Partition: p.Number, Voters: voters, Index: p.ConfIndex + 1}})
		}
	}
}

// spare reports whether a replica that is lost votes, and is not needed for that.
func spare(d *Destination, p *Partition) bool {
	staying, lost := 0, false
	for i := range p.Replicas {
		r := &p.Replicas[i]
		lost = lost || r.State == ReplicaLost && slices.Contains(p.Voters, r.ID)
		if r.staying() {
			staying++
		}
	}
	return lost && staying >= int(d.Settings.Replicas)
}

// stuck reports whether a partition waits for a replica that its disk has no space for.
func (w *world) stuck(p *Partition) bool {
	return slices.ContainsFunc(p.Replicas, func(r Replica) bool { return p.joins(&r) && r.Node == w.full })
}

// decides reports whether a majority of a partition's voters is there.
func (w *world) decides(p *Partition) bool {
	voters, alive := 0, 0
	for i := range p.Replicas {
		if r := &p.Replicas[i]; len(p.Voters) == 0 || slices.Contains(p.Voters, r.ID) {
			voters++
			if r.State != ReplicaLost && r.State != ReplicaLeft && w.alive(r.Node) {
				alive++
			}
		}
	}
	return alive > voters/2
}

// settle plans until nothing is left to do for a while.
func (w *world) settle() {
	idle := 0
	for range 2000 {
		if w.step() > 0 {
			idle = 0
		} else if idle++; idle > 20 {
			return
		}
	}
	w.t.Fatal("the controller does not come to rest")
}

// led counts the leaderships of each node, held its replicas.
func (w *world) led() map[uint32]int {
	count := map[uint32]int{}
	for _, d := range w.state.Destinations {
		for i := range d.Partitions {
			if r := d.Partitions[i].Replica(w.leaders[keyOf(&d.Partitions[i])]); r != nil {
				count[r.Node]++
			}
		}
	}
	return count
}

func (w *world) held() map[uint32]int {
	count := map[uint32]int{}
	for _, d := range w.state.Destinations {
		for _, p := range d.Partitions {
			for _, r := range p.Replicas {
				count[r.Node]++
			}
		}
	}
	return count
}

// spread makes a world of n nodes with partitions placed by Spread.
func spreadWorld(t *testing.T, n int, partitions int, replicas int) *world {
	s := clusterOf(t, n)
	places, err := Spread(newView(s), ids(partitions), replicas, everybody)
	require.NoError(t, err)
	placed(t, s, "orders", places...)
	return newWorld(t, s)
}

func TestAHealthyClusterIsLeftAlone(t *testing.T) {
	w := spreadWorld(t, 3, 12, 3)
	w.settle()
	require.Zero(t, w.commands)
	require.Zero(t, w.transfers)
	require.Equal(t, map[uint32]int{1: 4, 2: 4, 3: 4}, w.led())
}

func TestLeadersAreBalancedAfterANodeReturned(t *testing.T) {
	w := spreadWorld(t, 3, 30, 3)
	w.down[2] = 1
	w.step()
	require.Zero(t, w.led()[2])
	w.down[2] = 0
	w.settle()
	require.Zero(t, w.commands, "nobody is replaced")
	for n, count := range w.led() {
		require.InDelta(t, 10, count, 1, "node %d", n)
	}
}

// Leaderships that are on their way count as arrived: nothing goes to and fro.
func TestManyLeadershipsReturnAtABoundedRate(t *testing.T) {
	w := spreadWorld(t, 3, 240, 3)
	w.slow = true
	apply(t, w.state, Command{SetNode: &SetNode{Node: 2, State: NodeDraining}})
	w.settle()
	require.Equal(t, map[uint32]int{1: 120, 3: 120}, w.led())
	require.Equal(t, 80, w.transfers)
	apply(t, w.state, Command{SetNode: &SetNode{Node: 2, State: NodeUp}})
	w.transfers = 0
	w.settle()
	require.InDelta(t, 80, w.led()[2], 8)
	require.Equal(t, w.led()[2], w.transfers, "each went once")
}

// A destination that leaves the number of its replicas to the cluster gets three when
// there are three brokers, all at once and in the background.
func TestAutomaticReplicasAreRaised(t *testing.T) {
	s := clusterOf(t, 1)
	for i, name := range []string{"automatic", "explicit", "memory"} {
		c := settings(2)
		if name == "memory" {
			c.Storage = wire.StorageMemory
		}
		d := apply(t, s, Command{Create: &Create{
			Name: name, Kind: wire.Queue, Settings: c, ID: id(byte(50 + i)), PartitionIDs: ids(6)[2*i : 2*i+2], Node: 1, Automatic: name != "explicit",
		}}).Destination
		apply(t, s, Command{Activate: &Activate{Replicas: []uint64{d.Partitions[0].Replicas[0].ID, d.Partitions[1].Replicas[0].ID}}})
	}
	w := newWorld(t, s)
	count := func(name string) (n [2]int) {
		for i, p := range s.Destinations[name].Partitions {
			for _, r := range p.Replicas {
				if r.State == ReplicaActive && slices.Contains(p.Voters, r.ID) || len(p.Voters) == 0 {
					n[i]++
				}
			}
		}
		return n
	}
	gateway := joinOf(2, 2)
	gateway.Role = RoleGateway
	apply(t, s, Command{Join: gateway})
	apply(t, s, Command{Join: joinOf(3, 3)})
	w.settle()
	require.Equal(t, [2]int{1, 1}, count("automatic"), "two brokers are not enough")
	apply(t, s, Command{Join: joinOf(4, 4)})
	w.down[4] = 1
	w.settle()
	require.Equal(t, [2]int{1, 1}, count("automatic"), "nor is one that does not answer")
	w.down[4] = 0
	w.settle()
	require.Equal(t, uint8(3), s.Destinations["automatic"].Settings.Replicas)
	require.Equal(t, [2]int{3, 3}, count("automatic"))
	require.Equal(t, [2]int{1, 1}, count("explicit"))
	require.Equal(t, [2]int{1, 1}, count("memory"), "it cannot leave its process")
	require.Equal(t, uint8(1), s.Destinations["memory"].Settings.Replicas)
	for _, bad := range []SetReplicas{{id(51), 3}, {id(52), 3}, {id(50), 9}, {id(99), 3}} {
		require.Error(t, s.Apply(90, &Command{SetReplicas: &bad}).Err)
	}
	require.False(t, apply(t, s, Command{SetReplicas: &SetReplicas{id(50), 2}}).Changed, "it is never lowered")
}

func TestADeadNodeIsReplacedAfterAWhile(t *testing.T) {
	w := spreadWorld(t, 4, 12, 3)
	w.down[3] = 1
	for w.down[3] <= ReplaceAfterTicks-20 {
		w.step()
	}
	require.Zero(t, w.commands, "it may come back")
	w.settle()
	for _, p := range w.state.Destinations["orders"].Partitions {
		active := 0
		for _, r := range p.Replicas {
			if r.State == ReplicaActive {
				require.NotEqual(t, uint32(3), r.Node)
				active++
			}
		}
		require.Equal(t, 3, active)
	}
	w.down[3] = 0
	w.settle()
	require.Equal(t, 36, w.held()[1]+w.held()[2]+w.held()[3]+w.held()[4], "what was left on it is removed")
	require.InDelta(t, 9, w.held()[3], 1)
}

// silentForOne lets a node be silent for the controller's node alone, for twice as long as a
// dead one is waited for, and counts the replicas that it loses.
func silentForOne(t *testing.T, oneOpinion bool) (lost int) {
	w := spreadWorld(t, 4, 12, 3)
	active := func() (n int) {
		for _, p := range w.state.Destinations["orders"].Partitions {
			for _, r := range p.Replicas {
				if r.Node == 3 && r.State == ReplicaActive {
					n++
				}
			}
		}
		return n
	}
	before := active()
	require.NotZero(t, before)
	w.down[3], w.heard = 2*ReplaceAfterTicks, map[uint32]bool{3: !oneOpinion}
	for range 50 {
		w.step()
	}
	return before - active()
}

// A node that another one hears is not dead, whatever the controller's links are like.
func TestRuleR10_ANodeThatSomebodyHearsIsNotReplaced(t *testing.T) {
	require.Zero(t, silentForOne(t, false))
}

func TestRuleR10_Catches_OneOpinionOfADeath(t *testing.T) {
	require.Positive(t, silentForOne(t, true))
}

// A node may die between the command that creates a destination on it and the word that its
// directories exist.
func TestAFounderThatDiesBeforeItBeganIsReplaced(t *testing.T) {
	for _, leaving := range []bool{false, true} {
		s := clusterOf(t, 4)
		d := founded(t, s, "orders", []uint32{1, 2, 3})
		founders := d.Partitions[0].Replicas
		apply(t, s, Command{Activate: &Activate{Replicas: []uint64{founders[0].ID, founders[1].ID}}})
		w := newWorld(t, s)
		w.down[3] = 1
		if leaving {
			apply(t, s, Command{SetNode: &SetNode{Node: 3, State: NodeLeaving}})
		}
		w.down[3] = 2 * ReplaceAfterTicks
		w.settle()
		require.Zero(t, w.whole(3))
		require.Equal(t, !leaving, s.Nodes[3] != nil, "a node that leaves is removed")
	}
}

func TestMovesToANodeThatLeavesAreCalledOff(t *testing.T) {
	s := clusterOf(t, 4)
	d := placed(t, s, "orders", []uint32{1, 2, 3})
	apply(t, s, Command{Move: &Move{Destination: d.ID, Add: []uint32{4}, Remove: []uint64{d.Partitions[0].Replicas[2].ID}}})
	apply(t, s, Command{SetNode: &SetNode{Node: 4, State: NodeLeaving}})
	w := newWorld(t, s)
	commands, _ := w.control.Plan(newView(s), w.health(), 1)
	require.Equal(t, &Move{Destination: d.ID, Remove: []uint64{partitionOf(s, "orders").On(4).ID}}, commands[0].Move)
	w.settle()
	require.Equal(t, map[uint32]int{1: 1, 2: 1, 3: 1}, w.held())
	require.NotContains(t, s.Nodes, uint32(4))
}

// A replica that was lost where another one has left, and is still to be removed, is replaced
// elsewhere: the metadata would refuse it there.
func TestALostReplicaIsNotReplacedWhereOneStillLeaves(t *testing.T) {
	s := clusterOf(t, 4)
	placed(t, s, "orders", []uint32{1, 2, 3})
	p := partitionOf(s, "orders")
	p.Replicas[2].State = ReplicaLost
	p.Replicas = append(p.Replicas, Replica{ID: s.NextReplicaID, Node: 3, State: ReplicaLeft})
	s.NextReplicaID++
	w := newWorld(t, s)
	commands, _ := w.control.Plan(newView(s), w.health(), 1)
	require.Equal(t, []uint32{4}, commands[0].Move.Add)
	apply(t, s, commands[0])
}

func TestADeadNodeWithoutASpareIsWaitedFor(t *testing.T) {
	w := spreadWorld(t, 3, 6, 3)
	w.down[3] = 10 * ReplaceAfterTicks
	w.settle()
	require.Zero(t, w.commands)
}

func TestNothingIsMovedWithoutAMajority(t *testing.T) {
	w := spreadWorld(t, 5, 6, 3)
	w.down[1], w.down[2], w.down[3] = 10*ReplaceAfterTicks, 10*ReplaceAfterTicks, 10*ReplaceAfterTicks
	commands, _ := w.control.Plan(newView(w.state), w.health(), 1)
	for _, c := range commands {
		p := w.state.Destinations["orders"].Partitions[c.Move.Partition]
		alive := 0
		for _, r := range p.Replicas {
			if w.alive(r.Node) {
				alive++
			}
		}
		require.GreaterOrEqual(t, alive, 2)
	}
}

// A second node dies while as many partitions as may be move because of the first. Those that
// have no majority then wait for it, and keep nobody else from getting back what is lost.
func TestMovesWithoutAMajorityHoldNothingUp(t *testing.T) {
	s := clusterOf(t, 7)
	var places [][]uint32
	for range MaxMoves {
		places = append(places, []uint32{1, 2, 3})
	}
	for range 4 {
		places = append(places, []uint32{1, 4, 5})
	}
	placed(t, s, "orders", places...)
	w := newWorld(t, s)
	w.down[1] = 2 * ReplaceAfterTicks
	moved := func() (partitions []uint32) {
		w.elect()
		w.tick++
		commands, _ := w.control.Plan(newView(w.state), w.health(), w.tick)
		for _, c := range commands {
			require.NotNil(t, c.Move)
			partitions = append(partitions, c.Move.Partition)
			apply(t, w.state, c)
		}
		return partitions
	}
	require.Equal(t, []uint32{0, 1, 2, 3, 4, 5, 6, 7}, moved(), "as many as may be")
	w.down[2] = 1
	require.Equal(t, []uint32{8, 9, 10, 11}, moved())
}

func TestAWipedNodeGetsItsReplicasAnew(t *testing.T) {
	w := spreadWorld(t, 3, 6, 3)
	apply(t, w.state, Command{Join: replacing(2, 2, 9)})
	w.settle()
	for _, p := range w.state.Destinations["orders"].Partitions {
		require.Len(t, p.Replicas, 3)
		for _, r := range p.Replicas {
			require.Equal(t, ReplicaActive, r.State)
		}
		require.Greater(t, p.On(2).ID, uint64(18), "under a new ID")
	}
}

func TestADrainedNodeLeadsNothingAndKeepsItsReplicas(t *testing.T) {
	w := spreadWorld(t, 3, 30, 3)
	apply(t, w.state, Command{SetNode: &SetNode{Node: 2, State: NodeDraining}})
	w.settle()
	require.Zero(t, w.commands)
	require.Equal(t, map[uint32]int{1: 15, 3: 15}, w.led())
	apply(t, w.state, Command{SetNode: &SetNode{Node: 2, State: NodeUp}})
	w.settle()
	require.InDelta(t, 10, w.led()[2], 1)
}

func TestADecommissionedNodeGivesEverythingAway(t *testing.T) {
	for _, replicas := range []int{1, 3} {
		t.Run(fmt.Sprint(replicas), func(t *testing.T) {
			w := spreadWorld(t, 4, 30, replicas)
			apply(t, w.state, Command{SetNode: &SetNode{Node: 2, State: NodeLeaving}})
			w.settle()
			require.NotContains(t, w.state.Nodes, uint32(2))
			require.NotContains(t, w.held(), uint32(2))
			for _, n := range []uint32{1, 3, 4} {
				require.InDelta(t, 10*replicas, w.held()[n], 1, "replicas of node %d", n)
				require.InDelta(t, 10, w.led()[n], 1, "leaders of node %d", n)
			}
		})
	}
}

func TestADeadNodeIsDecommissioned(t *testing.T) {
	w := spreadWorld(t, 4, 12, 3)
	w.down[2] = 50
	apply(t, w.state, Command{SetNode: &SetNode{Node: 2, State: NodeLeaving}})
	w.settle()
	require.NotContains(t, w.state.Nodes, uint32(2))
	require.Equal(t, map[uint32]int{1: 12, 3: 12, 4: 12}, w.held())
}

// cramp fills the disk of node 2 of four, whose leaders make way, lets another one die and a
// third one drain: the world counts what node 2 is given meanwhile. With unseen nobody knows of
// its disk.
func cramp(t *testing.T, unseen bool) *world {
	w := spreadWorld(t, 4, 24, 3)
	w.settle()
	d := w.state.Destinations["orders"]
	apply(t, w.state, Command{SetPlacement: &SetPlacement{
		Destination: d.ID, Partition: uint32(slices.IndexFunc(d.Partitions, func(p Partition) bool { return p.On(2) != nil })),
		Placement: wire.Placement{Mask: wire.MaskPreferred | wire.MaskPolicy, Preferred: 2, Policy: wire.LeaderFailback},
	}})
	w.full, w.unseen = 2, unseen
	some := func() {
		for range 200 {
			w.step()
		}
	}
	some()
	w.down[1] = 2 * ReplaceAfterTicks
	some()
	w.down[1] = 0
	apply(t, w.state, Command{SetNode: &SetNode{Node: 3, State: NodeDraining}})
	some()
	apply(t, w.state, Command{SetNode: &SetNode{Node: 3, State: NodeUp}})
	return w
}

// RULES L10: a node whose disk refuses records is given neither leaderships nor replicas, be it
// for balance, in the place of another, or because it is preferred. It gets its share with its
// space.
func TestRuleL10_ANodeWithoutSpaceIsGivenNothing(t *testing.T) {
	w := cramp(t, false)
	require.Zero(t, w.given)
	w.full = 0
	w.settle()
	require.InDelta(t, 6, w.led()[2], 2)
	require.InDelta(t, 18, w.held()[2], 1)
}

func TestRuleL10_Catches_AControllerThatKnowsNothingOfSpace(t *testing.T) {
	require.Positive(t, cramp(t, true).given)
}

// whole makes sure that every partition has three replicas that are active, none of them on a
// node, and returns how many move.
func (w *world) whole(without uint32) (moving int) {
	for _, d := range w.state.Destinations {
		for i := range d.Partitions {
			p := &d.Partitions[i]
			active := 0
			for _, r := range p.Replicas {
				if r.State == ReplicaActive || r.State == ReplicaLeaving {
					require.NotEqual(w.t, without, r.Node, "%+v", p.Replicas)
					active++
				}
			}
			require.Equal(w.t, 3, active, "%+v", p.Replicas)
			if p.Moving() {
				moving++
			}
		}
	}
	return moving
}

// A replica that takes the place of a dead one goes on to another node if the disk of its own
// fills up on the way.
func TestRuleL10_AReplicaOnItsWayGoesWhereThereIsSpace(t *testing.T) {
	w := spreadWorld(t, 5, 20, 3)
	w.settle()
	w.full, w.unseen = 2, true
	w.down[1] = 2 * ReplaceAfterTicks
	for range 50 {
		w.step()
	}
	require.Positive(t, w.given, "it is full before anybody knows")
	w.unseen, w.given = false, 0
	w.settle()
	require.Zero(t, w.given)
	require.Zero(t, w.whole(1))
}

// Moves for balance wait for space on the node that they go to, and keep nobody from replacing
// what is dead. With space they go on.
func TestRuleL10_MovesThatWaitForSpaceHoldNothingUp(t *testing.T) {
	s := clusterOf(t, 5)
	apply(t, s, Command{SetNode: &SetNode{Node: 5, State: NodeDraining}})
	places, err := Spread(newView(s), ids(40), 3, everybody)
	require.NoError(t, err)
	placed(t, s, "orders", places...)
	apply(t, s, Command{SetNode: &SetNode{Node: 5, State: NodeUp}})
	w := newWorld(t, s)
	w.full, w.unseen = 5, true
	w.settle()
	require.Equal(t, MaxMoves, w.whole(0), "as many as may be wait for space that nobody misses")
	w.unseen = false
	w.settle()
	require.Equal(t, MaxMoves, w.whole(0), "they wait on")
	w.down[1] = 2 * ReplaceAfterTicks
	w.settle()
	require.LessOrEqual(t, w.whole(1), MaxMoves)
	w.full = 0
	w.settle()
	require.Zero(t, w.whole(1))
	require.InDelta(t, 30, w.held()[5], 1)
}

// leavingForOne lets the controller's node alone not hear a node that leaves, and reports
// whether it is removed before it has removed what it held.
func leavingForOne(t *testing.T, oneOpinion bool) (removed bool) {
	w := spreadWorld(t, 4, 12, 3)
	w.down[2], w.heard = 50, map[uint32]bool{2: !oneOpinion}
	apply(t, w.state, Command{SetNode: &SetNode{Node: 2, State: NodeLeaving}})
	for range 100 {
		w.step()
	}
	_, member := w.state.Nodes[2]
	return !member
}

// A node that leaves and that somebody hears is waited for, whatever the controller's links
// are like.
func TestRuleR10_ANodeThatLeavesAndSomebodyHearsIsWaitedFor(t *testing.T) {
	require.False(t, leavingForOne(t, false))
}

func TestRuleR10_Catches_OneOpinionOfALeaving(t *testing.T) {
	require.True(t, leavingForOne(t, true))
}

// R-IS-5, the planning half: a fourth node takes its share, of replicas and leaders.
func TestR_IS_5_AFourthNodeTakesItsShare(t *testing.T) {
	w := spreadWorld(t, 3, 40, 3)
	apply(t, w.state, Command{Join: joinOf(4, 4)})
	w.settle()
	for n, count := range w.held() {
		require.InDelta(t, 30, count, 1, "replicas of node %d", n)
	}
	for n, count := range w.led() {
		require.InDelta(t, 10, count, 2, "leaders of node %d", n)
	}
}

func TestMovesAreCalledOffWhoseTargetDied(t *testing.T) {
	w := spreadWorld(t, 5, 1, 3)
	p := partitionOf(w.state, "orders")
	var spare []uint32
	for n := range w.state.Nodes {
		if p.On(n) == nil {
			spare = append(spare, n)
		}
	}
	apply(t, w.state, Command{Move: &Move{Destination: w.state.Destinations["orders"].ID, Add: []uint32{spare[0]}, Remove: []uint64{2}}})
	w.down[spare[0]] = 10 * ReplaceAfterTicks
	w.down[p.Replica(2).Node] = 0
	commands, _ := w.control.Plan(newView(w.state), w.health(), 1)
	require.Len(t, commands, 1)
	require.Equal(t, []uint64{4}, commands[0].Move.Remove)
	apply(t, w.state, commands[0])
	require.Equal(t, ReplicaActive, partitionOf(w.state, "orders").Replica(2).State)
}

// R-SIB-23: where the leader is, after its node died and after it came back.
func TestR_SIB_23_FailbackAndPinnedLeadersReturn(t *testing.T) {
	for name, c := range map[string]struct {
		policy  wire.LeaderPolicy
		returns bool
	}{
		"preferred only": {wire.LeaderAny, false},
		"failback":       {wire.LeaderFailback, true},
		"pinned":         {wire.LeaderPinned, true},
	} {
		t.Run(name, func(t *testing.T) {
			w := spreadWorld(t, 3, 1, 3)
			apply(t, w.state, Command{SetPlacement: &SetPlacement{
				Destination: w.state.Destinations["orders"].ID, Partition: wire.AllPartitions,
				Placement: wire.Placement{Mask: wire.MaskPreferred | wire.MaskPolicy, Preferred: 2, Policy: c.policy},
			}})
			p := func() *Partition { return partitionOf(w.state, "orders") }
			w.leaders[keyOf(p())] = p().On(2).ID
			w.down[2] = 1
			w.settle()
			require.NotZero(t, w.led()[1]+w.led()[3])
			w.down[2] = 0
			w.settle()
			require.Equal(t, c.returns, w.led()[2] == 1)
		})
	}
}

// R-SIB-23: what a policy keeps from being balanced when a node joins.
func TestR_SIB_23_PinnedStaysWhereOthersAreBalanced(t *testing.T) {
	for name, c := range map[string]struct {
		policy    wire.LeaderPolicy
		led, held int // by the preferred node, of 40
	}{
		"preferred only": {wire.LeaderAny, 10, 30},
		"failback":       {wire.LeaderFailback, 30, 30},
		"pinned":         {wire.LeaderPinned, 40, 40},
	} {
		t.Run(name, func(t *testing.T) {
			w := spreadWorld(t, 3, 40, 3)
			apply(t, w.state, Command{SetPlacement: &SetPlacement{
				Destination: w.state.Destinations["orders"].ID, Partition: wire.AllPartitions,
				Placement: wire.Placement{Mask: wire.MaskPreferred | wire.MaskPolicy, Preferred: 2, Policy: c.policy},
			}})
			apply(t, w.state, Command{Join: joinOf(4, 4)})
			w.settle()
			require.InDelta(t, c.led, w.led()[2], 2)
			require.InDelta(t, c.held, w.held()[2], 1)
			if c.policy == wire.LeaderPinned {
				require.Equal(t, []int{40, 40}, []int{w.led()[2], w.held()[2]})
			}
		})
	}
}

func TestReplicasStayOnDifferentRacks(t *testing.T) {
	s := clusterOf(t, 5)
	for i, rack := range []string{"a", "b", "c", "c", "c"} {
		s.Nodes[uint32(i+1)].Rack = rack
	}
	places, err := Spread(newView(s), ids(20), 3, everybody)
	require.NoError(t, err)
	placed(t, s, "orders", places...)
	w := newWorld(t, s)
	apply(t, s, Command{SetNode: &SetNode{Node: 4, State: NodeLeaving}})
	w.settle()
	for _, p := range s.Destinations["orders"].Partitions {
		racks := map[string]bool{}
		for _, r := range p.Replicas {
			racks[s.Nodes[r.Node].Rack] = true
		}
		require.Len(t, racks, 3)
	}
}

func TestTheLevelRisesWhenEveryNodeKnowsIt(t *testing.T) {
	s := clusterOf(t, 2)
	s.Level = 1
	s.Nodes[2].MaxLevel = 1
	w := newWorld(t, s)
	w.step()
	require.Equal(t, 1, s.level())
	s.Nodes[2].MaxLevel = 2
	w.step()
	require.Equal(t, 2, s.level())
}

// Two controllers, of which one is deposed and sees an old view, do no harm: what they
// ask for is refused, or is what the other asked for.
func TestADeposedControllerDoesNoHarm(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	for range 30 {
		w := spreadWorld(t, 5, 10, 3)
		var old Controller
		stale := newView(w.state)
		dead := uint32(1 + random.IntN(5))
		w.down[dead] = 10 * ReplaceAfterTicks
		for range 60 {
			if random.IntN(3) == 0 {
				stale = newView(w.state)
			}
			commands, _ := old.Plan(stale, w.health(), w.tick)
			for _, c := range commands {
				c.stamp()
				w.state.Apply(w.state.Epoch+1, &c)
			}
			w.step()
			for _, p := range w.state.Destinations["orders"].Partitions {
				staying := 0
				for i := range p.Replicas {
					if p.Replicas[i].staying() {
						staying++
					}
				}
				require.GreaterOrEqual(t, staying, 3)
				require.LessOrEqual(t, staying, 4)
			}
		}
		w.settle()
		require.Equal(t, 30, w.held()[1]+w.held()[2]+w.held()[3]+w.held()[4]+w.held()[5]-leftOn(w.state, dead))
	}
}

func leftOn(s *State, node uint32) int {
	n := 0
	for _, d := range s.Destinations {
		for _, p := range d.Partitions {
			for _, r := range p.Replicas {
				if r.Node == node && r.State == ReplicaLeft {
					n++
				}
			}
		}
	}
	return n
}

func always(uint32) bool { return true }

// A voter that the metadata's leader alone does not hear keeps its vote, and one that nobody
// hears does not.
func TestRuleR10_AVoteIsTakenByTheWordOfAMajority(t *testing.T) {
	v, voters := newView(clusterOf(t, 4)), []uint64{1, 2, 3}
	silent := func(n uint32) bool { return n != 3 }
	wanted, _ := PlanMeta(v, voters, silent, func(uint32) bool { return false })
	require.Equal(t, voters, wanted)
	wanted, learners := PlanMeta(v, voters, silent, always)
	require.Equal(t, []uint64{1, 2, 4}, wanted)
	require.Equal(t, []uint64{3}, learners)
	wanted, _ = PlanMeta(v, []uint64{1, 2, 4}, silent, func(uint32) bool { return false })
	require.Equal(t, []uint64{1, 2, 4}, wanted, "who is not heard gets no vote, whatever others hear")
}

func TestTheMetadataGetsOneThreeAndFiveVoters(t *testing.T) {
	s := clusterOf(t, 7)
	view := newView(s)
	for name, c := range map[string]struct {
		nodes    []uint32 // that live, of all seven
		voters   []uint64
		wanted   []uint64
		learners []uint64
	}{
		"the founder alone":            {[]uint32{1}, []uint64{1}, []uint64{1}, []uint64{2, 3, 4, 5, 6, 7}},
		"two of them":                  {[]uint32{1, 2}, []uint64{1}, []uint64{1}, []uint64{2, 3, 4, 5, 6, 7}},
		"three become voters at once":  {[]uint32{1, 2, 3}, []uint64{1}, []uint64{1, 2, 3}, []uint64{4, 5, 6, 7}},
		"one of three dies":            {[]uint32{1, 3}, []uint64{1, 2, 3}, []uint64{1, 2, 3}, []uint64{4, 5, 6, 7}},
		"a spare takes its place":      {[]uint32{1, 3, 6}, []uint64{1, 2, 3}, []uint64{1, 3, 6}, []uint64{2, 4, 5, 7}},
		"two of three die":             {[]uint32{1}, []uint64{1, 2, 3}, []uint64{1, 2, 3}, []uint64{4, 5, 6, 7}},
		"four go on with three voters": {[]uint32{1, 2, 3, 7}, []uint64{1, 2, 3}, []uint64{1, 2, 3}, []uint64{4, 5, 6, 7}},
	} {
		t.Run(name, func(t *testing.T) {
			wanted, learners := PlanMeta(view, c.voters, func(n uint32) bool {
				for _, alive := range c.nodes {
					if alive == n {
						return true
					}
				}
				return false
			}, always)
			require.Equal(t, c.wanted, wanted)
			require.Equal(t, c.learners, learners)
		})
	}
	gateways := *view
	gateways.Nodes = slices.Clone(view.Nodes[:4])
	gateways.Nodes[1].Role = RoleGateway
	withGateway, _ := PlanMeta(&gateways, []uint64{1, 2, 3}, always, always)
	require.Equal(t, []uint64{1, 3, 4}, withGateway, "a broker votes in the place of a gateway")
	withGateway, _ = PlanMeta(&gateways, []uint64{1, 3, 4}, func(n uint32) bool { return n != 4 }, always)
	require.Equal(t, []uint64{1, 2, 3}, withGateway, "rather a gateway than one that is gone")
	five, _ := PlanMeta(view, []uint64{1, 2, 3}, always, always)
	require.Len(t, five, 5)
	require.Subset(t, five, []uint64{1, 2, 3})
	for i, rack := range []string{"a", "a", "a", "b", "c", "a", "a"} {
		s.Nodes[uint32(i+1)].Rack = rack
	}
	three, _ := PlanMeta(newView(s), []uint64{1}, func(n uint32) bool { return n <= 5 && n != 2 && n != 3 }, always)
	require.Equal(t, []uint64{1, 4, 5}, three)
	s.Nodes[1].State = NodeLeaving
	rest, learners := PlanMeta(newView(s), []uint64{1, 4, 5}, func(n uint32) bool { return n <= 5 }, always)
	require.Len(t, rest, 3)
	require.NotContains(t, rest, uint64(1))
	require.Contains(t, learners, uint64(1))
}
