package cluster

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/wire"
)

var restlessRuns = flag.Int("restless.runs", 100, "random histories that controllers are to bring to rest")

// restless is a world in which anything happens.
type restless struct {
	*world
	random *rand.Rand
	nodes  int
	fresh  int // identities handed out
}

func (w *restless) id() uuid.UUID {
	w.fresh++
	return uuid.NewSHA1(id(1), fmt.Append(nil, "restless", w.fresh))
}

func (w *restless) create() {
	partitions := make([]uuid.UUID, 1+w.random.IntN(4))
	for i := range partitions {
		partitions[i] = w.id()
	}
	c := settings(uint32(len(partitions)))
	c.Replicas = 3
	if w.random.IntN(2) == 0 {
		c.Storage = wire.StorageMemory
	}
	places, err := Spread(newView(w.state), partitions, 3, func(n Node) string {
		if w.down[n.ID] > 1 { // who is silent for longer is known to be
			return "is down"
		}
		return ""
	})
	if err == nil {
		d := w.id()
		apply(w.t, w.state, Command{Create: &Create{Name: d.String(), Kind: wire.Queue, Settings: c, ID: d, PartitionIDs: partitions, Placement: places}})
	}
}

// event is one, of a node or of a client. At most one node is down at a time.
func (w *restless) event() {
	number := uint32(1 + w.random.IntN(w.nodes))
	node := w.state.Nodes[number]
	switch what := w.random.IntN(8); {
	case what == 0:
		w.create()
	case node == nil:
		j := joinOf(number, 0)
		j.Store = w.id()
		apply(w.t, w.state, Command{Join: j})
	case what == 1 && len(w.down) == 0:
		w.down[number] = 1 + w.random.IntN(2)*2*ReplaceAfterTicks
		if w.random.IntN(2) == 0 {
			w.create() // before anybody knows
		}
	case what <= 3:
		clear(w.down)
	case what <= 5: // it may be refused
		state := []NodeState{NodeUp, NodeDraining, NodeLeaving}[w.random.IntN(3)]
		w.state.Apply(90, &Command{SetNode: &SetNode{Node: number, State: state}})
	case what == 6:
		j := joinOf(number, 0)
		j.Judged, j.Store = node.Store, w.id()
		apply(w.t, w.state, Command{Join: j})
		delete(w.down, number)
	case w.alive(number):
		apply(w.t, w.state, Command{Register: &Register{Node: number, Store: node.Store, Address: node.Address, PeerAddress: node.PeerAddress,
			Rack: []string{"", "a", "b"}[w.random.IntN(3)], MinLevel: MinLevel, MaxLevel: MaxLevel}})
		before := w.joining()
		apply(w.t, w.state, Command{ResetMemory: &ResetMemory{Node: number}})
		w.unasked += w.joining() - before
	}
}

func (w *restless) joining() (n int) {
	w.partitions(func(_ *Destination, p *Partition) {
		for i := range p.Replicas {
			if p.joins(&p.Replicas[i]) {
				n++
				return
			}
		}
	})
	return n
}

func (w *restless) partitions(f func(d *Destination, p *Partition)) {
	for _, name := range w.state.names() {
		for i := range w.state.Destinations[name].Partitions {
			f(w.state.Destinations[name], &w.state.Destinations[name].Partitions[i])
		}
	}
}

// sane compares the metadata with what holds at all times.
func (w *restless) sane() {
	seen := map[uint64]bool{}
	w.partitions(func(_ *Destination, p *Partition) {
		on := map[uint32]bool{}
		for _, r := range p.Replicas {
			require.False(w.t, seen[r.ID], "replica %d is there twice", r.ID)
			require.Less(w.t, r.ID, w.state.NextReplicaID)
			require.Contains(w.t, w.state.Nodes, r.Node)
			seen[r.ID] = true
			if r.State != ReplicaLost && r.State != ReplicaLeft {
				require.False(w.t, on[r.Node], "two replicas on node %d: %v", r.Node, p.Replicas)
				on[r.Node] = true
			}
		}
	})
	saved, again := w.state.Save(nil), NewState()
	require.NoError(w.t, again.Restore(saved))
	require.Equal(w.t, string(saved), string(again.Save(nil)))
	for node := range w.state.Nodes {
		require.Equal(w.t, again.replicasOn(node), w.state.replicasOn(node), "what is counted is not part of a checkpoint")
	}
}

// whole reports what is missing of partitions that have a majority, and space to be whole: they
// have as many replicas as they want, and nothing on its way.
func (w *restless) whole() {
	room := 0
	for _, n := range w.state.Nodes {
		if n.holds() && w.alive(n.ID) {
			room++
		}
	}
	w.partitions(func(d *Destination, p *Partition) {
		sound, active := 0, 0
		for i := range p.Replicas {
			r := &p.Replicas[i]
			if r.State == ReplicaActive && w.alive(r.Node) {
				active++
			}
			if w.alive(r.Node) && (r.State == ReplicaActive || r.State == ReplicaLeaving) && slices.Contains(p.Voters, r.ID) {
				sound++
			}
		}
		if sound <= len(p.Voters)/2 || room < int(d.Settings.Replicas) {
			return
		}
		require.Equal(w.t, int(d.Settings.Replicas), active, "%v of %d are down: %+v", w.down, room, p)
		require.False(w.t, p.Moving(), "%+v", p)
		for _, r := range p.Replicas {
			require.NotEqual(w.t, ReplicaNew, r.State, "%+v", p)
			require.True(w.t, r.State == ReplicaLeft || w.state.Nodes[r.Node].State != NodeLeaving, "%+v", p)
		}
	})
}

// Nodes join, die, come back with and without what they had, drain, leave and change their rack,
// while destinations are created. Whatever it was, the controller comes to rest, and then every
// partition is whole that can be.
func TestWhateverHappensTheControllerComesToRest(t *testing.T) {
	for seed := range *restlessRuns {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			w := &restless{random: rand.New(rand.NewPCG(uint64(seed), 1))}
			w.nodes = 4 + w.random.IntN(3)
			w.world = newWorld(t, clusterOf(t, w.nodes))
			for range 15 {
				w.event()
				w.sane()
				for range w.random.IntN(6) {
					w.step()
					w.sane()
				}
			}
			for node := range w.down {
				w.down[node] = 2 * ReplaceAfterTicks
			}
			w.settle()
			w.sane()
			w.whole()
		})
	}
}
