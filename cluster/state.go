package cluster

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/google/uuid"

	"github.com/lockstepmq/lockstep/log"
	"github.com/lockstepmq/lockstep/wire"
)

// Version is the newest metadata version this build reads.
const Version = 4

// ErrState is returned for saved metadata that does not decode, or in which
// something is missing that the rest relies on.
var ErrState = errors.New("metadata is malformed")

// State is the metadata that all nodes agree on at one index. A *Destination in
// it is replaced, never changed: views share them.
type State struct {
	Version        int                        `json:"version"` // the oldest that can be read by
	Epoch          wire.Index                 `json:"epoch"`   // index of the last change
	ClusterID      uuid.UUID                  `json:"cluster_id"`
	Nodes          map[uint32]*Node           `json:"nodes"`
	Destinations   map[string]*Destination    `json:"destinations"`
	NextReplicaID  uint64                     `json:"next_replica_id"`
	NextProducerID int64                      `json:"next_producer_id"`
	Producers      map[string]ProducerSession `json:"producers"`
	// Deleted are destinations whose directories some node still has to remove.
	Deleted map[uuid.UUID]*Deleted `json:"deleted,omitempty"`
	// Since version 2.
	Level             int    `json:"level,omitempty"` // 0: LevelAlone
	NextMetaReplicaID uint64 `json:"next_meta_replica_id,omitempty"`
	NextNodeID        uint32 `json:"next_node_id,omitempty"`
	// Since version 4. By name; the list is replaced, never changed: views share it.
	Aliases []*Alias `json:"aliases,omitempty"`

	// Not part of the state, but computed from it.
	touched []string       // destinations that changed since the last view; above patchLimit not all
	held    map[uint32]int // replicas by node, nil when it must be counted anew
	// Mutants: what is deleted is not compared with what was meant; the feature level rises
	// without asking who knows it.
	careless, leaping bool
}

// ProducerSession is the identity a named producer writes under.
type ProducerSession struct {
	ID    int64 `json:"id"`
	Epoch int16 `json:"epoch"`
	// Holder is who opened the name last; 0 is nobody in particular.
	Holder uint64 `json:"holder,omitempty"`
	// Wrapped says that the name had the ID Before until its epochs were used up. Nothing is
	// written under that any more: a fence at EndedEpoch ends it. Since level LevelFences.
	Wrapped bool  `json:"wrapped,omitempty"`
	Before  int64 `json:"before,omitempty"`
}

// EndedEpoch is above all epochs that a name gets: who fences with it ends a producer ID.
const EndedEpoch = 1<<15 - 1

// NewState is the metadata of a cluster before its first command.
func NewState() *State {
	return &State{
		Version: 1, Nodes: map[uint32]*Node{}, Destinations: map[string]*Destination{},
		NextReplicaID: 1, Producers: map[string]ProducerSession{},
	}
}

// Command is one change. Exactly one field is set.
type Command struct {
	Register     *Register     `json:"register,omitempty"`
	Create       *Create       `json:"create,omitempty"`
	Alter        *Alter        `json:"alter,omitempty"`
	Delete       *Delete       `json:"delete,omitempty"`
	Activate     *Activate     `json:"activate,omitempty"`
	AllocateIDs  *AllocateIDs  `json:"allocate_ids,omitempty"`
	OpenProducer *OpenProducer `json:"open_producer,omitempty"`
	// Late, if set, says that nobody waits for the command any more: then it is not proposed.
	Late           func() bool  `json:"-"`
	ResetMemory    *ResetMemory `json:"reset_memory,omitempty"`
	Bury           *Bury        `json:"bury,omitempty"`
	Reform         *Reform      `json:"reform,omitempty"`
	MinimumVersion int          `json:"minimum_version,omitempty"` // of a build that can apply it
	// Since version 2.
	Join         *Join         `json:"join,omitempty"`
	SetNode      *SetNode      `json:"set_node,omitempty"`
	RemoveNode   *RemoveNode   `json:"remove_node,omitempty"`
	SetLevel     *SetLevel     `json:"set_level,omitempty"`
	Move         *Move         `json:"move,omitempty"`
	Reconfigured *Reconfigured `json:"reconfigured,omitempty"`
	Lost         *Lost         `json:"lost,omitempty"`
	SetPlacement *SetPlacement `json:"set_placement,omitempty"`
	SetReplicas  *SetReplicas  `json:"set_replicas,omitempty"`
	// Since version 3.
	SetGroup        *SetGroup        `json:"set_group,omitempty"`
	RemoveGroup     *RemoveGroup     `json:"remove_group,omitempty"`
	MoveCoordinator *MoveCoordinator `json:"move_coordinator,omitempty"`
	Recover         *Recover         `json:"recover,omitempty"`
	// Since version 4.
	SetAlias    *SetAlias    `json:"set_alias,omitempty"`
	RemoveAlias *RemoveAlias `json:"remove_alias,omitempty"`
}

// stamp sets MinimumVersion: what an older build would not understand, or would
// understand in another way, it must not apply.
func (c *Command) stamp() {
	switch {
	case c.SetAlias != nil, c.RemoveAlias != nil:
		c.MinimumVersion = 4
	case c.SetGroup != nil, c.RemoveGroup != nil, c.MoveCoordinator != nil, c.Recover != nil, c.Create != nil && c.Create.Settings.HasLetters(), c.Alter != nil && c.Alter.Mask&wire.MaskLetters != 0:
		c.MinimumVersion = 3
	case c.Join != nil, c.SetNode != nil, c.RemoveNode != nil, c.SetLevel != nil, c.Move != nil, c.Reconfigured != nil,
		c.Lost != nil, c.SetPlacement != nil, c.SetReplicas != nil, c.Create != nil && c.Create.Placement != nil, c.Bury != nil && c.Bury.Replicas != nil,
		c.Reform != nil && c.Reform.Several:
		c.MinimumVersion = 2
	}
}

// Repeatable reports whether a command may be applied twice: the second time it
// changes nothing that matters, and its result is as good.
func (c *Command) Repeatable() bool {
	return c.Register != nil || c.Create != nil || c.Activate != nil || c.AllocateIDs != nil || c.ResetMemory != nil || c.Bury != nil ||
		c.Join != nil || c.SetNode != nil || c.Reconfigured != nil || c.Lost != nil || c.SetPlacement != nil || c.SetReplicas != nil || c.Reform != nil && c.Reform.Several ||
		c.SetAlias != nil && !c.SetAlias.Create || c.SetGroup != nil && (c.SetGroup.Exists || !c.SetGroup.Create && c.SetGroup.IfVersion == 0)
}

// Create makes a destination.
type Create struct {
	Name         string               `json:"name"`
	Kind         wire.DestinationKind `json:"kind"`
	Settings     wire.Settings        `json:"settings"`
	ID           uuid.UUID            `json:"id"`
	PartitionIDs []uuid.UUID          `json:"partition_ids"`
	Node         uint32               `json:"node"` // that gets the only replicas
	// Placement names the nodes of each partition, the first to lead first. None means
	// Node for all of them.
	Placement [][]uint32 `json:"placement,omitempty"`
	// Automatic says that nobody asked for a number of replicas: see SetReplicas.
	Automatic bool `json:"automatic,omitempty"`
}

// Alter changes settings of a destination: those named in Mask.
type Alter struct {
	Name     string               `json:"name"`
	Kind     wire.DestinationKind `json:"kind"`
	Mask     wire.SettingsMask    `json:"mask"`
	Settings wire.Settings        `json:"settings"`
}

// Delete removes a destination. If ID is set it must match.
type Delete struct {
	Name string               `json:"name"`
	Kind wire.DestinationKind `json:"kind"`
	ID   uuid.UUID            `json:"id"`
}

// Activate says that the directories of replicas exist.
type Activate struct {
	Replicas []uint64 `json:"replicas"`
}

// AllocateIDs takes a block of ProducerIDBlock producer IDs.
type AllocateIDs struct {
	Node uint32 `json:"node"`
}

// OpenProducer raises the epoch of a named producer and makes Holder its holder. One
// that renews must be that already: whoever was paused while another opened the name
// does not take it back.
type OpenProducer struct {
	Name   string `json:"name"`
	Holder uint64 `json:"holder,omitempty"`
	Renews bool   `json:"renews,omitempty"`
}

// ResetMemory says that the replicas of a node's memory partitions died with its
// process (RULES L6).
type ResetMemory struct {
	Node uint32 `json:"node"`
}

// Reform begins a new incarnation of a partition whose only replica may have lost
// its newest records with the machine: what it holds is what there is (RULES L5). With
// Several it is the replica that all voters agree on, because its log is the longest.
type Reform struct {
	Destination uuid.UUID   `json:"destination"`
	Partition   uint32      `json:"partition"`
	Replica     uint64      `json:"replica"`
	Next        wire.Offset `json:"next"` // where its log ends
	// Several goes with the incarnation that the replica knew when it was opened: another
	// replica with the same log may have said the same already.
	Several     bool   `json:"several,omitempty"`
	Incarnation uint32 `json:"incarnation,omitempty"`
}

// Bury says that a node has removed the directories of a deleted destination, or
// those of replicas that have left their partitions.
type Bury struct {
	ID       uuid.UUID `json:"id"`
	Node     uint32    `json:"node"`
	Replicas []uint64  `json:"replicas,omitempty"`
}

// Result is what a command led to.
type Result struct {
	Err         error        // a *wire.Error, or nil
	Destination *Destination // Create, Alter, Delete, Reform, Move
	Node        *Node        // Register, Join, SetNode
	Group       *Group       // SetGroup
	Producer    ProducerSession
	FirstID     int64 // AllocateIDs
	Changed     bool  // the view is a new one
	// Index is that of the command, 0 if it did not get one. Apply leaves it to Metadata.
	Index wire.Index
}

func refuse(code wire.ErrorCode, format string, args ...any) Result {
	return Result{Err: &wire.Error{Code: code, Detail: fmt.Sprintf(format, args...)}}
}

// termsPerIncarnation lies between the first terms of two incarnations. One
// incarnation of a memory partition elects far less often than that.
const termsPerIncarnation = 1 << 10

// Apply carries out one command at the given index. It is deterministic; a
// command that breaks a rule changes nothing and its Result says why. It panics
// with log.ErrTooNew for a command that only a newer build can apply.
func (s *State) Apply(index wire.Index, c *Command) Result {
	if c.MinimumVersion > Version {
		panic(fmt.Errorf("metadata entry %d needs metadata version %d, this build knows %d: %w; upgrade this broker",
			index, c.MinimumVersion, Version, log.ErrTooNew))
	}
	r := s.apply(index, c)
	if r.Changed {
		s.Version = max(s.Version, c.MinimumVersion)
	}
	return r
}

func (s *State) apply(index wire.Index, c *Command) Result {
	switch {
	case c.Register != nil:
		return s.register(c.Register)
	case c.Create != nil:
		return s.create(index, c.Create)
	case c.Alter != nil:
		return s.alter(index, c.Alter)
	case c.Delete != nil:
		return s.delete(c.Delete)
	case c.Activate != nil:
		return s.activate(c.Activate)
	case c.AllocateIDs != nil:
		first := s.NextProducerID
		s.NextProducerID += ProducerIDBlock
		return Result{FirstID: first}
	case c.OpenProducer != nil:
		return s.openProducer(c.OpenProducer)
	case c.ResetMemory != nil:
		return s.resetMemory(c.ResetMemory)
	case c.Bury != nil:
		return s.bury(c.Bury)
	case c.Reform != nil:
		return s.reform(c.Reform)
	case c.Join != nil:
		return s.join(c.Join)
	case c.SetNode != nil:
		return s.setNode(c.SetNode)
	case c.RemoveNode != nil:
		return s.removeNode(c.RemoveNode)
	case c.SetLevel != nil:
		return s.setLevel(c.SetLevel)
	case c.Move != nil:
		return s.move(c.Move)
	case c.Reconfigured != nil:
		return s.reconfigured(c.Reconfigured)
	case c.Lost != nil:
		return s.lost(c.Lost)
	case c.SetPlacement != nil:
		return s.setPlacement(index, c.SetPlacement)
	case c.SetReplicas != nil:
		return s.setReplicas(index, c.SetReplicas)
	case c.SetGroup != nil:
		return s.setGroup(index, c.SetGroup)
	case c.RemoveGroup != nil:
		return s.removeGroup(index, c.RemoveGroup)
	case c.MoveCoordinator != nil:
		return s.moveCoordinator(index, c.MoveCoordinator)
	case c.Recover != nil:
		return s.recover(c.Recover)
	case c.SetAlias != nil:
		return s.setAlias(index, c.SetAlias)
	case c.RemoveAlias != nil:
		return s.removeAlias(c.RemoveAlias)
	}
	panic(fmt.Errorf("metadata entry %d holds no command this build knows: %w; upgrade this broker", index, log.ErrTooNew))
}

func (s *State) create(index wire.Index, c *Create) Result {
	if err := wire.ValidateName(c.Name); err != nil {
		return Result{Err: err}
	}
	if d := s.Destinations[c.Name]; d != nil {
		if d.ID == c.ID && c.ID != uuid.Nil {
			return Result{Destination: d} // sent again: the answer was lost
		}
		return refuse(wire.CodeAlreadyExists, "%s %q exists", d.Kind, c.Name)
	}
	if s.Deleted[c.ID] != nil {
		// Sent again, and deleted in between: its directories are being removed.
		return refuse(wire.CodeDestinationGone, "%s %q was created, and deleted again meanwhile", c.Kind, c.Name)
	}
	if a, taken := findAlias(s.Aliases, c.Name); taken {
		return refuse(wire.CodeAlreadyExists, "alias %q exists and stands for %q; choose another name", c.Name, a.Destination)
	}
	if len(s.Destinations) >= MaxDestinations {
		return refuse(wire.CodeTooMany, "the cluster holds %d destinations, its limit", MaxDestinations)
	}
	if err := ValidateSettings(c.Kind, &c.Settings); err != nil {
		return Result{Err: err}
	}
	if c.Settings.HasLetters() {
		if err := s.allowLetters(c.Name, &c.Settings); err != nil {
			return Result{Err: err}
		}
	}
	if int(c.Settings.Partitions) != len(c.PartitionIDs) {
		return refuse(wire.CodeInvalidSetting, "%d partitions with %d identities", c.Settings.Partitions, len(c.PartitionIDs))
	}
	added, err := s.checkPlacement(c)
	if err != nil {
		return Result{Err: err}
	}
	d := &Destination{
		Name: c.Name, ID: c.ID, Kind: c.Kind, Settings: c.Settings, Version: index,
		SlotVersion: 1, Slots: evenSlots(c.Settings.Partitions), Automatic: c.Automatic,
	}
	if err := s.checkLoop(d); err != nil {
		return Result{Err: err}
	}
	for number, id := range c.PartitionIDs {
		p := Partition{Number: uint32(number), ID: id, Incarnation: 1}
		for _, node := range c.nodesOf(number) {
			p.Replicas = append(p.Replicas, Replica{ID: s.NextReplicaID, Node: node, State: ReplicaNew})
			s.NextReplicaID++
		}
		if c.Placement != nil {
			p.found()
			p.Preferred = p.Replicas[0].Node
		}
		d.Partitions = append(d.Partitions, p)
	}
	if c.Settings.HasLetters() {
		s.Level = max(s.Level, LevelGroups)
	}
	s.put(d)
	for node, n := range added {
		s.held[node] += n
	}
	return Result{Destination: d, Changed: true}
}

// put puts a destination in the place of the one of its name.
func (s *State) put(d *Destination) {
	s.Destinations[d.Name] = d
	s.touch(d.Name)
}

// touch says that a destination has changed, see View.next.
func (s *State) touch(name string) {
	if len(s.touched) <= patchLimit {
		s.touched = append(s.touched, name)
	}
}

// replicasOn counts the replicas that a node holds.
func (s *State) replicasOn(node uint32) int {
	if s.held == nil {
		s.held = make(map[uint32]int)
		for _, d := range s.Destinations {
			for i := range d.Partitions {
				for _, r := range d.Partitions[i].Replicas {
					s.held[r.Node]++
				}
			}
		}
	}
	return s.held[node]
}

// find returns the destination of that name if it is of the kind asked for.
func (s *State) find(name string, kind wire.DestinationKind) (*Destination, error) {
	d := s.Destinations[name]
	if d == nil {
		return nil, s.notFound(name)
	}
	if d.Kind != kind {
		return nil, &wire.Error{Code: wire.CodeKindMismatch, Detail: fmt.Sprintf("%q is a %s, not a %s", name, d.Kind, kind)}
	}
	return d, nil
}

// fixedSettings cannot be altered: they are built into a destination's partitions.
const fixedSettings = wire.MaskPartitions | wire.MaskReplicas | wire.MaskStorage | wire.MaskSegmentBytes

func (s *State) alter(index wire.Index, c *Alter) Result {
	old, err := s.find(c.Name, c.Kind)
	if err != nil {
		return Result{Err: err}
	}
	if fixed := c.Mask & fixedSettings; fixed != 0 || c.Mask&^wire.MaskAll != 0 {
		return refuse(wire.CodeInvalidSetting, "partitions, replicas, storage and segment size of %q cannot be changed", c.Name)
	}
	settings := old.Settings.Merge(c.Settings, c.Mask)
	if err := ValidateSettings(c.Kind, &settings); err != nil {
		return Result{Err: err}
	}
	d := *old
	d.Settings, d.Version = settings, index
	if c.Mask&wire.MaskLetters != 0 {
		if err := s.allowLetters(c.Name, &settings); err != nil {
			return Result{Err: err}
		}
		if err := d.resolveAgain(index, old); err != nil {
			return Result{Err: err}
		}
		if err := s.checkLoop(&d); err != nil {
			return Result{Err: err}
		}
		s.Level = max(s.Level, LevelGroups)
	}
	s.put(&d)
	return Result{Destination: &d, Changed: true}
}

func (s *State) delete(c *Delete) Result {
	d, err := s.find(c.Name, c.Kind)
	if err != nil {
		return Result{Err: err}
	}
	if c.ID != uuid.Nil && c.ID != d.ID && !s.careless {
		return refuse(wire.CodeRefused, "%s %q was deleted and created again meanwhile: it is another one now", d.Kind, c.Name)
	}
	if err := s.checkUnaliased(d); err != nil {
		return Result{Err: err}
	}
	delete(s.Destinations, c.Name)
	s.touch(c.Name)
	s.held = nil
	if d.Settings.Storage == wire.StorageDisk {
		if s.Deleted == nil {
			s.Deleted = map[uuid.UUID]*Deleted{}
		}
		s.Deleted[d.ID] = &Deleted{ID: d.ID, Partitions: uint32(len(d.Partitions)), Nodes: nodesOf(d)}
	}
	return Result{Destination: d, Changed: true}
}

// nodesOf lists the nodes that hold replicas of a destination, each once, in order.
func nodesOf(d *Destination) []uint32 {
	var nodes []uint32
	for i := range d.Partitions {
		for _, r := range d.Partitions[i].Replicas {
			nodes = append(nodes, r.Node)
		}
	}
	slices.Sort(nodes)
	return slices.Compact(nodes)
}

func (s *State) bury(c *Bury) Result {
	if c.Replicas != nil {
		return s.buryReplicas(c)
	}
	old := s.Deleted[c.ID]
	if old == nil || !slices.Contains(old.Nodes, c.Node) {
		return Result{}
	}
	rest := &Deleted{ID: old.ID, Partitions: old.Partitions}
	for _, n := range old.Nodes {
		if n != c.Node {
			rest.Nodes = append(rest.Nodes, n)
		}
	}
	if s.Deleted[c.ID] = rest; len(rest.Nodes) == 0 {
		delete(s.Deleted, c.ID)
	}
	return Result{Changed: true}
}

func (s *State) reform(c *Reform) Result {
	for _, d := range s.Destinations {
		if d.ID != c.Destination {
			continue
		}
		if c.Partition >= uint32(len(d.Partitions)) {
			break
		}
		switch p := &d.Partitions[c.Partition]; {
		case c.Several && !slices.Contains(p.Voters, c.Replica):
			return refuse(wire.CodeInvalidRequest, "replica %d is no voter of partition %d", c.Replica, c.Partition)
		case c.Several && p.Incarnation > c.Incarnation && len(p.Cuts) > 0 && p.Cuts[len(p.Cuts)-1].Offset == c.Next:
			return Result{Destination: d}
		case !c.Several && (len(p.Replicas) != 1 || p.Replicas[0].ID != c.Replica):
			return refuse(wire.CodeInvalidRequest, "replica %d is not the only one of partition %d", c.Replica, c.Partition)
		}
		d = d.clone()
		p := &d.Partitions[c.Partition]
		p.Founded = p.LogIncarnation()
		p.cut(c.Next)
		s.put(d)
		return Result{Destination: d, Changed: true}
	}
	return refuse(wire.CodeDestinationGone, "partition %d of destination %s was deleted", c.Partition, c.Destination)
}

// clone copies a destination deeply enough to change its partitions.
func (d *Destination) clone() *Destination {
	c := *d
	c.Partitions = slices.Clone(d.Partitions)
	for i := range c.Partitions {
		c.Partitions[i].Replicas = slices.Clone(c.Partitions[i].Replicas)
	}
	return &c
}

func (s *State) openProducer(c *OpenProducer) Result {
	p, known := s.Producers[c.Name]
	switch {
	case c.Renews && (!known || p.Holder != c.Holder):
		return refuse(wire.CodeFenced, "producer %q was opened by another holder since", c.Name)
	case !known && len(s.Producers) >= MaxNamedProducers:
		return refuse(wire.CodeTooMany, "the cluster knows %d named producers, its limit", MaxNamedProducers)
	case !known:
		p = ProducerSession{ID: s.NextProducerID}
		s.NextProducerID++
	case p.Epoch == EndedEpoch || p.Epoch == EndedEpoch-1 && s.level() >= LevelFences:
		p = ProducerSession{ID: s.NextProducerID, Wrapped: s.level() >= LevelFences, Before: p.ID}
		s.NextProducerID++
	default:
		p.Epoch++
	}
	p.Holder = c.Holder
	s.Producers[c.Name] = p
	// Where there are several nodes, the level rises when all of them know it.
	raised := p.Epoch > 0 && len(s.Nodes) == 1 && s.level() < LevelFences
	if raised {
		s.Level = LevelFences
	}
	return Result{Producer: p, Changed: raised}
}

// ValidateSettings checks the settings of a destination and fills in defaults.
func ValidateSettings(kind wire.DestinationKind, s *wire.Settings) error {
	bad := func(format string, args ...any) error {
		return &wire.Error{Code: wire.CodeInvalidSetting, Detail: fmt.Sprintf(format, args...)}
	}
	if kind != wire.Queue && kind != wire.Topic {
		return bad("kind %d is neither queue nor topic", kind)
	}
	if s.Partitions == 0 || s.Partitions > MaxPartitions {
		return bad("partitions %d is outside 1..%d", s.Partitions, MaxPartitions)
	}
	if s.Replicas == 0 {
		s.Replicas = 1
	}
	if s.Replicas > MaxReplicas {
		return bad("replicas %d is above %d, the limit", s.Replicas, MaxReplicas)
	}
	if s.Storage > wire.StorageMemory {
		return bad("storage %d is unknown", s.Storage)
	}
	if s.Sync > wire.SyncOS {
		return bad("sync %d is unknown", s.Sync)
	}
	if s.RetentionTimeMs == 0 || s.RetentionTimeMs < -1 {
		return bad("retention time %d ms: give a positive duration, or -1 to keep everything", s.RetentionTimeMs)
	}
	if s.RetentionBytes == 0 || s.RetentionBytes < -1 {
		return bad("retention bytes %d: give a positive size, or -1 to keep everything", s.RetentionBytes)
	}
	if s.MaxRecordBytes > wire.MaxRecordBytes {
		return bad("max record bytes %d is above the limit of %d", s.MaxRecordBytes, wire.MaxRecordBytes)
	}
	if s.SegmentBytes != 0 && (s.SegmentBytes < MinSegmentBytes || s.SegmentBytes > MaxSegmentBytes) {
		return bad("segment bytes %d is outside %d..%d", s.SegmentBytes, MinSegmentBytes, MaxSegmentBytes)
	}
	return nil
}

// Bounds of a destination's segment size, in bytes.
const (
	MinSegmentBytes = 1 << 20
	MaxSegmentBytes = 1 << 30
)

// Save appends the state to dst. Equal states have equal bytes: JSON writes maps
// in the order of their keys.
func (s *State) Save(dst []byte) []byte {
	b, err := json.Marshal(s)
	if err != nil {
		panic(fmt.Sprintf("cluster: metadata does not marshal: %v", err))
	}
	return append(dst, b...)
}

// snapshot is a state that does not change: what its maps lead to is replaced, never
// changed.
func (s *State) snapshot() *State {
	c := *s
	c.Nodes, c.Destinations = maps.Clone(s.Nodes), maps.Clone(s.Destinations)
	c.Producers, c.Deleted = maps.Clone(s.Producers), maps.Clone(s.Deleted)
	c.touched, c.held = nil, nil
	return &c
}

// Restore replaces the state with a saved one.
func (s *State) Restore(src []byte) error {
	// The version comes first: what else a newer build writes may have other types.
	var envelope struct {
		Version int `json:"version"`
	}
	if err := json.Unmarshal(src, &envelope); err != nil {
		return fmt.Errorf("%w: %w", ErrState, err)
	}
	if envelope.Version > Version {
		return fmt.Errorf("metadata version %d, this build reads up to %d: %w; upgrade this broker", envelope.Version, Version, log.ErrTooNew)
	}
	if envelope.Version < 1 {
		return fmt.Errorf("%w: version %d", ErrState, envelope.Version)
	}
	fresh := NewState()
	if err := json.Unmarshal(src, fresh); err != nil {
		return fmt.Errorf("%w: %w", ErrState, err)
	}
	if err := fresh.check(); err != nil {
		return fmt.Errorf("%w: %w", ErrState, err)
	}
	*s = *fresh
	s.touched = make([]string, patchLimit+1) // everything
	return nil
}

// check looks for what JSON can leave out and the rest of the package relies on.
func (s *State) check() error {
	if s.Nodes == nil || s.Destinations == nil || s.Producers == nil {
		return errors.New("nodes, destinations or producers are missing")
	}
	for id, n := range s.Nodes {
		if n == nil || n.ID != id {
			return fmt.Errorf("node %d is not itself", id)
		}
	}
	if s.NextMetaReplicaID == 1 {
		return errors.New("the next replica of the metadata is the founder's")
	}
	for name, d := range s.Destinations {
		if d == nil || d.Name != name {
			return fmt.Errorf("destination %q is not itself", name)
		}
	}
	for id, d := range s.Deleted {
		if d == nil || d.ID != id {
			return fmt.Errorf("deleted destination %s is not itself", id)
		}
	}
	return s.checkAliases()
}
