package cluster

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	"github.com/google/uuid"

	"github.com/lockstepmq/lockstep/wire"
)

// Limits of the metadata, in counts.
const (
	// MaxDestinations bounds the destinations of a cluster.
	MaxDestinations = 10_000
	// MaxPartitions bounds the partitions of one destination.
	MaxPartitions = 1_024
	// MaxPartitionsPerNode bounds the replicas one node holds.
	MaxPartitionsPerNode = 10_000
	// MaxNamedProducers bounds the names of producers that are remembered.
	MaxNamedProducers = 100_000
	// MaxReplicas bounds the replicas of one partition.
	MaxReplicas = 7
	// MaxNodes bounds the nodes of a cluster.
	MaxNodes = 64
	// maxCuts bounds the ends of earlier incarnations of a partition that are remembered.
	maxCuts = 16
	// ProducerIDBlock is how many producer IDs a node takes at a time.
	ProducerIDBlock = 1_000
)

// ReplicaState says how far a replica has come.
type ReplicaState string

const (
	// ReplicaNew has no directory yet: its node creates it.
	ReplicaNew ReplicaState = "new"
	// ReplicaJoining has one, and was added to the partition later than the founders:
	// it learns, and has no vote before its leader has made it a voter.
	ReplicaJoining ReplicaState = "joining"
	// ReplicaActive has one, and a vote. If it is missing the replica is lost and never
	// created empty (RULES R10).
	ReplicaActive ReplicaState = "active"
	// ReplicaLeaving is to be taken out of the partition's configuration.
	ReplicaLeaving ReplicaState = "leaving"
	// ReplicaLost has lost its directory, or what it held. It is still named in the
	// partition's configuration, until another takes its place.
	ReplicaLost ReplicaState = "lost"
	// ReplicaLeft is out of the configuration. Its node still has to remove what is left
	// of its directory.
	ReplicaLeft ReplicaState = "left"
)

// Replica is one copy of a partition.
type Replica struct {
	ID    uint64       `json:"id"` // never reused
	Node  uint32       `json:"node"`
	State ReplicaState `json:"state"`
}

// Partition is one shard of a destination.
type Partition struct {
	Number uint32    `json:"number"`
	ID     uuid.UUID `json:"id"`
	// Incarnation rises when the partition lost records that it had given out: what
	// its offsets mean from some point on is not what they meant before.
	Incarnation uint32 `json:"incarnation"`
	// Founded is the incarnation that its log was founded in, which seeds the chain:
	// 0 means Incarnation. A partition that was cut back keeps its log.
	Founded uint32 `json:"founded,omitempty"`
	// Cuts are the ends of earlier incarnations, oldest first: at most maxCuts, with
	// rising offsets, because a cut undoes those behind it.
	Cuts []Cut `json:"cuts,omitempty"`
	// FirstTerm is the term above which this incarnation elects, so that epochs rise.
	FirstTerm wire.Term `json:"first_term"`
	Replicas  []Replica `json:"replicas"`
	// Founders are the replicas that the partition began with: they start with each
	// other as voters, all others wait to hear from the leader. None means: the only
	// replica.
	Founders []uint64 `json:"founders,omitempty"`
	// Voters and Learners are the configuration as its leader reported it last, as of
	// ConfIndex of the partition's log.
	Voters    []uint64   `json:"voters,omitempty"`
	Learners  []uint64   `json:"learners,omitempty"`
	ConfIndex wire.Index `json:"conf_index,omitempty"`
	// Recovery is set once a majority was given up, see Recover. Since version 3.
	Recovery *Recovery `json:"recovery,omitempty"`
	// Preferred is the node that leads first, 0 if it does not matter; Policy says what
	// it means later.
	Preferred uint32            `json:"preferred,omitempty"`
	Policy    wire.LeaderPolicy `json:"policy,omitempty"`
	// Weight is the partition's share of the records without a key, relative to the
	// others'; 0 counts as 1. SendDisabled closes it to new records.
	Weight       uint8 `json:"weight,omitempty"`
	SendDisabled bool  `json:"send_disabled,omitempty"`
}

// Cut is where an incarnation began.
type Cut struct {
	Incarnation uint32      `json:"incarnation"`
	Offset      wire.Offset `json:"offset"` // what was below it is as it was
}

// LogIncarnation is the incarnation that seeds the chain of the partition's log.
func (p *Partition) LogIncarnation() uint32 { return cmp.Or(p.Founded, p.Incarnation) }

// LostSince returns the offset from which on records may not be those that a reader
// of an earlier incarnation knew; false if that is still going on, or unknown (0).
func (p *Partition) LostSince(incarnation uint32) (wire.Offset, bool) {
	for _, c := range p.Cuts {
		if incarnation > 0 && c.Incarnation > incarnation {
			return c.Offset, true // the lowest of those that follow
		}
	}
	return 0, false
}

// cut begins a new incarnation at an offset.
func (p *Partition) cut(offset wire.Offset) {
	p.Incarnation++
	cuts := slices.DeleteFunc(slices.Clone(p.Cuts), func(c Cut) bool { return c.Offset >= offset })
	cuts = append(cuts, Cut{Incarnation: p.Incarnation, Offset: offset})
	if len(cuts) > maxCuts {
		// Readers of the oldest incarnations are told of a cut that is lower than theirs.
		cuts[1].Offset = cuts[0].Offset
		cuts = cuts[1:]
	}
	p.Cuts = cuts
}

// Destination is a queue or a topic.
type Destination struct {
	Name     string               `json:"name"`
	ID       uuid.UUID            `json:"id"`
	Kind     wire.DestinationKind `json:"kind"`
	Settings wire.Settings        `json:"settings"`
	// Automatic says that the cluster chose the number of replicas, and raises it once
	// there are nodes for more.
	Automatic bool `json:"automatic,omitempty"`
	// Version is the metadata index of the last change.
	Version wire.Index `json:"version"`
	// SlotVersion changes with Slots.
	SlotVersion uint32            `json:"slot_version"`
	Slots       []wire.SlotRun    `json:"slots"`
	Partitions  []Partition       `json:"partitions"`
	Labels      map[string]string `json:"labels,omitempty"`
	// Groups are by name. A *Group is replaced, never changed, and so is the map.
	Groups map[string]*Group `json:"groups,omitempty"`
	// Coordinator is the partition that keeps the members of groups, once it is another
	// than the first: see Coordinates.
	Coordinator Coordinator `json:"coordinator,omitzero"`
}

// Deleted is a destination that a committed command has removed. It is remembered
// until every node has removed its directories: nothing else may, because nothing
// is deleted by inference.
type Deleted struct {
	ID         uuid.UUID `json:"id"`
	Partitions uint32    `json:"partitions"`
	Nodes      []uint32  `json:"nodes"` // that have not answered yet
}

// View is the metadata after one applied entry. It is never changed.
type View struct {
	// Epoch is the index of the last entry that changed anything.
	Epoch        wire.Index
	ClusterID    uuid.UUID
	Level        int            // of features that may be used, see level.go
	Nodes        []Node         // by ID
	Destinations []*Destination // by name
	Deleted      []*Deleted     // by ID
	byID         []*Destination // the same, in the order of their IDs
	Aliases      []*Alias       // by name
}

// Destination finds a destination by name.
func (v *View) Destination(name string) (*Destination, bool) {
	return find(v.Destinations, &Destination{Name: name}, byName)
}

// DestinationByID finds a destination by its ID.
func (v *View) DestinationByID(id uuid.UUID) (*Destination, bool) {
	return find(v.byID, &Destination{ID: id}, byID)
}

func find(list []*Destination, d *Destination, compare func(a, b *Destination) int) (*Destination, bool) {
	i, ok := slices.BinarySearchFunc(list, d, compare)
	if !ok {
		return nil, false
	}
	return list[i], true
}

// Node finds a node by ID.
func (v *View) Node(id uint32) (Node, bool) {
	i, ok := slices.BinarySearchFunc(v.Nodes, id, func(n Node, id uint32) int { return int(n.ID) - int(id) })
	if !ok {
		return Node{}, false
	}
	return v.Nodes[i], true
}

// evenSlots spreads all key slots over n partitions in contiguous ranges whose
// sizes differ by at most one.
func evenSlots(n uint32) []wire.SlotRun {
	ranges := make([]wire.SlotRun, n)
	for p := range n {
		ranges[p] = wire.SlotRun{FirstSlot: uint16(uint64(p) * wire.SlotCount / uint64(n)), Partition: p}
	}
	return ranges
}

// newView is the view of a state.
func newView(s *State) *View {
	v := baseView(s)
	for _, d := range s.Destinations {
		v.Destinations = append(v.Destinations, d)
	}
	v.byID = slices.Clone(v.Destinations)
	slices.SortFunc(v.Destinations, byName)
	slices.SortFunc(v.byID, byID)
	return v
}

// patchLimit is how many destinations next changes one by one.
const patchLimit = 16

// next is the view of the state after changes since v: usually of one destination of
// many, so that it is patched into copies of the sorted lists.
func (v *View) next(s *State) *View {
	touched := s.touched
	s.touched = nil
	if len(touched) > patchLimit {
		return newView(s)
	}
	n := baseView(s)
	n.Destinations, n.byID = slices.Clone(v.Destinations), slices.Clone(v.byID)
	for _, name := range touched {
		probe := &Destination{Name: name}
		if i, ok := slices.BinarySearchFunc(n.Destinations, probe, byName); ok {
			n.byID = without(n.byID, n.Destinations[i], byID)
			n.Destinations = slices.Delete(n.Destinations, i, i+1)
		}
		if d := s.Destinations[name]; d != nil {
			n.Destinations = with(n.Destinations, d, byName)
			n.byID = with(n.byID, d, byID)
		}
	}
	return n
}

// baseView is a view without its destinations.
func baseView(s *State) *View {
	v := &View{Epoch: s.Epoch, ClusterID: s.ClusterID, Level: s.level(), Aliases: s.Aliases}
	for _, id := range slices.Sorted(maps.Keys(s.Nodes)) {
		v.Nodes = append(v.Nodes, *s.Nodes[id])
	}
	for _, d := range s.Deleted {
		v.Deleted = append(v.Deleted, d)
	}
	slices.SortFunc(v.Deleted, func(a, b *Deleted) int { return slices.Compare(a.ID[:], b.ID[:]) })
	return v
}

func byName(a, b *Destination) int { return strings.Compare(a.Name, b.Name) }
func byID(a, b *Destination) int   { return slices.Compare(a.ID[:], b.ID[:]) }

// with and without add to and take from a list in the order of compare.
func with(list []*Destination, d *Destination, compare func(a, b *Destination) int) []*Destination {
	i, _ := slices.BinarySearchFunc(list, d, compare)
	return slices.Insert(list, i, d)
}

func without(list []*Destination, d *Destination, compare func(a, b *Destination) int) []*Destination {
	i, ok := slices.BinarySearchFunc(list, d, compare)
	if !ok {
		return list
	}
	return slices.Delete(list, i, i+1)
}
