package cluster

import (
	"slices"

	"github.com/google/uuid"

	"github.com/lockstepmq/lockstep/wire"
)

// How replicas come and go. The metadata holds the intent, the leader of the
// partition carries it out in the partition's own log and reports the outcome:
//
//	Move          add: new        remove: leaving
//	Activate      new → joining: the directory exists; the leader may add it
//	Reconfigured  joining → active: it votes;  leaving, lost → left: it does no more
//	Bury          left → gone: the directory is removed
//
// A directory is removed only after that: nothing is deleted by inference.

// Move adds replicas of a partition on nodes and takes others away. Taking away
// replicas that have no vote yet calls an earlier move off.
type Move struct {
	Destination uuid.UUID `json:"destination"`
	Partition   uint32    `json:"partition"`
	Add         []uint32  `json:"add,omitempty"`    // nodes
	Remove      []uint64  `json:"remove,omitempty"` // replicas
}

// Reconfigured is the configuration of a partition as its leader has applied it.
type Reconfigured struct {
	Destination uuid.UUID  `json:"destination"`
	Partition   uint32     `json:"partition"`
	Voters      []uint64   `json:"voters"`
	Learners    []uint64   `json:"learners,omitempty"`
	Index       wire.Index `json:"index"` // of the partition's log up to which this is so
}

// Lost says that a replica will not come back: its directory is gone, or it cannot be
// trusted any more.
type Lost struct {
	Destination uuid.UUID `json:"destination"`
	Partition   uint32    `json:"partition"`
	Replica     uint64    `json:"replica"`
	Reason      string    `json:"reason"`
}

// SetPlacement says who should lead a partition, or all of a destination, and which
// records it gets.
type SetPlacement struct {
	Destination uuid.UUID      `json:"destination"`
	Partition   uint32         `json:"partition"` // or wire.AllPartitions
	Placement   wire.Placement `json:"placement"`
}

// SetReplicas raises the number of replicas that a destination wants, of one that leaves
// it to the cluster. Moves follow, partition by partition.
type SetReplicas struct {
	Destination uuid.UUID `json:"destination"`
	Replicas    uint8     `json:"replicas"`
}

// found makes the replicas that there are the founders of the partition's log.
func (p *Partition) found() {
	p.Founders, p.Learners, p.ConfIndex = nil, nil, 0
	for _, r := range p.Replicas {
		if r.State != ReplicaLost && r.State != ReplicaLeft {
			p.Founders = append(p.Founders, r.ID)
		}
	}
	p.Voters = slices.Clone(p.Founders)
}

// Founded reports whether a replica is one of those that the partition began with.
func (p *Partition) FoundedBy(replica uint64) bool {
	if len(p.Founders) == 0 {
		return len(p.Replicas) == 1 && p.Replicas[0].ID == replica
	}
	return slices.Contains(p.Founders, replica)
}

// Replica finds a replica by its ID, or returns nil.
func (p *Partition) Replica(id uint64) *Replica {
	for i := range p.Replicas {
		if p.Replicas[i].ID == id {
			return &p.Replicas[i]
		}
	}
	return nil
}

// On finds the replica that a node holds or is to hold, or returns nil. One that was
// lost or has left does not count.
func (p *Partition) On(node uint32) *Replica {
	for i := range p.Replicas {
		if r := &p.Replicas[i]; r.Node == node && r.State != ReplicaLost && r.State != ReplicaLeft {
			return r
		}
	}
	return nil
}

// joins reports whether a replica is on its way in.
func (p *Partition) joins(r *Replica) bool {
	return r.State == ReplicaJoining || r.State == ReplicaNew && !p.FoundedBy(r.ID)
}

// Moving reports whether a replica is on its way in or out.
func (p *Partition) Moving() bool {
	return slices.ContainsFunc(p.Replicas, func(r Replica) bool {
		return r.State == ReplicaLeaving || p.joins(&r)
	})
}

// partition finds a partition in a copy of its destination.
func (s *State) partition(destination uuid.UUID, number uint32) (*Destination, *Partition, error) {
	for _, d := range s.Destinations {
		if d.ID == destination && number < uint32(len(d.Partitions)) {
			d = d.clone()
			return d, &d.Partitions[number], nil
		}
	}
	return nil, nil, refuse(wire.CodeDestinationGone, "partition %d of destination %s was deleted", number, destination).Err
}

// checkPlacement counts the replicas that each node would get.
func (s *State) checkPlacement(c *Create) (map[uint32]int, error) {
	added := map[uint32]int{}
	if c.Placement == nil && c.Settings.Replicas > 1 {
		return nil, refuse(wire.CodeInvalidSetting, "replicas %d: this cluster has one node; use --replicas 1", c.Settings.Replicas).Err
	}
	if c.Placement != nil && len(c.Placement) != len(c.PartitionIDs) {
		return nil, refuse(wire.CodeInvalidSetting, "%d partitions with places for %d", len(c.PartitionIDs), len(c.Placement)).Err
	}
	for i := range c.PartitionIDs {
		nodes := c.nodesOf(i)
		if len(nodes) != int(c.Settings.Replicas) {
			return nil, refuse(wire.CodeInvalidSetting, "partition %d has places for %d of %d replicas", i, len(nodes), c.Settings.Replicas).Err
		}
		for j, n := range nodes {
			if c.Placement != nil {
				if err := s.mayHold(n); err != nil {
					return nil, err
				}
			}
			if slices.Contains(nodes[:j], n) {
				return nil, refuse(wire.CodeInvalidSetting, "partition %d has two replicas on node %d", i, n).Err
			}
			added[n]++
		}
	}
	for _, nodes := range c.Placement {
		for _, n := range nodes {
			if err := s.hasRoom(n, added[n]); err != nil {
				return nil, err
			}
		}
	}
	return added, s.hasRoom(c.Node, added[c.Node])
}

// nodesOf are the nodes of a partition's replicas.
func (c *Create) nodesOf(partition int) []uint32 {
	if c.Placement == nil {
		return []uint32{c.Node}
	}
	return c.Placement[partition]
}

// mayHold says why a node does not get replicas, or returns nil.
func (s *State) mayHold(node uint32) error {
	n := s.Nodes[node]
	switch {
	case n == nil:
		return refuse(wire.CodeInvalidRequest, "node %d is not a member; lockstep node ls shows which are", node).Err
	case !n.Broker():
		return refuse(wire.CodeInvalidRequest, "node %d is a %s: it holds no partitions", node, n.Role).Err
	case !n.Up():
		return refuse(wire.CodeRefused, "node %d is %s", node, n.State).Err
	}
	return nil
}

func (s *State) hasRoom(node uint32, added int) error {
	if held := s.replicasOn(node); added > 0 && held+added > MaxPartitionsPerNode {
		return refuse(wire.CodeTooMany, "node %d would hold %d partitions; its limit is %d", node, held+added, MaxPartitionsPerNode).Err
	}
	return nil
}

func (s *State) move(c *Move) Result {
	d, p, err := s.partition(c.Destination, c.Partition)
	if err != nil {
		return Result{Err: err}
	}
	if d.Settings.Storage == wire.StorageMemory && len(p.Founders) == 0 {
		return refuse(wire.CodeRefused, "%s/%d is in the memory of one node: it cannot be moved", d.Name, p.Number)
	}
	calledOff := len(c.Add) == 0 && len(c.Remove) > 0
	for _, id := range c.Remove {
		r := p.Replica(id)
		if r == nil || r.State == ReplicaLeft {
			return refuse(wire.CodeInvalidRequest, "replica %d is not one of %s/%d", id, d.Name, p.Number)
		}
		calledOff = calledOff && p.joins(r)
	}
	if len(c.Add) > 0 && p.Moving() {
		return refuse(wire.CodeRefused, "%s/%d is being moved; wait until that is done", d.Name, p.Number)
	}
	if len(p.Founders) == 0 {
		p.found()
	}
	for _, id := range c.Remove {
		if r := p.Replica(id); s.level() >= LevelGroups && r.State == ReplicaNew && len(p.Voters) == 1 && p.Voters[0] == id {
			return refuse(wire.CodeRefused, "%s/%d is being made on node %d; wait until that is done", d.Name, p.Number, r.Node)
		}
	}
	next := s.NextReplicaID
	for _, id := range c.Remove {
		switch r := p.Replica(id); {
		case r.State == ReplicaLost:
		case !slices.Contains(p.Voters, id) && !slices.Contains(p.Learners, id) && r.State == ReplicaNew:
			r.State = ReplicaLeft // its leader was never told of it
		default:
			r.State = ReplicaLeaving
		}
	}
	if calledOff {
		p.stay()
	}
	for _, node := range c.Add {
		if err := s.mayHold(node); err != nil {
			return Result{Err: err}
		}
		if err := s.hasRoom(node, 1); err != nil {
			return Result{Err: err}
		}
		for i := range p.Replicas {
			if r := &p.Replicas[i]; r.Node == node && r.State != ReplicaLost {
				return refuse(wire.CodeRefused, "node %d holds a replica of %s/%d that is %s", node, d.Name, p.Number, r.State)
			}
		}
		p.Replicas = append(p.Replicas, Replica{ID: next, Node: node, State: ReplicaNew})
		next++
	}
	staying := 0
	for _, r := range p.Replicas {
		if r.State == ReplicaActive || r.State == ReplicaNew || r.State == ReplicaJoining {
			staying++
		}
	}
	if s.level() >= LevelGroups && len(c.Add) == 0 && !calledOff && staying < int(d.Settings.Replicas) {
		return refuse(wire.CodeRefused, "%s/%d would have %d replicas of %d; name a node that takes one", d.Name, p.Number, staying, d.Settings.Replicas)
	}
	if staying == 0 || staying > MaxReplicas {
		return refuse(wire.CodeRefused, "%s/%d would have %d replicas", d.Name, p.Number, staying)
	}
	s.NextReplicaID = next
	s.put(d)
	s.held = nil
	return Result{Destination: d, Changed: true}
}

func (s *State) reconfigured(c *Reconfigured) Result {
	d, p, err := s.partition(c.Destination, c.Partition)
	if err != nil {
		return Result{Err: err}
	}
	if c.Index <= p.ConfIndex || len(c.Voters) == 0 || p.Recovery.obsolete(c.Voters) {
		return Result{} // another leader has reported what came later
	}
	if p.Recovering() {
		p.Recovery = &Recovery{Replica: p.Recovery.Replica, Before: p.Recovery.Before, Done: true}
	}
	p.Voters, p.Learners, p.ConfIndex = slices.Clone(c.Voters), slices.Clone(c.Learners), c.Index
	if s.level() >= LevelGroups {
		p.complete(int(d.Settings.Replicas))
	}
	for i := range p.Replicas {
		r := &p.Replicas[i]
		votes, learns := slices.Contains(c.Voters, r.ID), slices.Contains(c.Learners, r.ID)
		switch {
		case votes && r.State == ReplicaJoining:
			r.State = ReplicaActive
		case !votes && !learns && (r.State == ReplicaLeaving || r.State == ReplicaLost):
			r.State = ReplicaLeft
		}
	}
	s.put(d)
	return Result{Destination: d, Changed: true}
}

// complete takes notice of a move that was called off too late: its leader had carried it
// out by then. Who was to stay is out of the configuration, and cannot come back with what
// it has; who was to leave stays, if the partition would not have its replicas otherwise.
func (p *Partition) complete(replicas int) {
	if slices.ContainsFunc(p.Voters, func(id uint64) bool { return p.Replica(id) == nil }) {
		return // they are those of an earlier incarnation
	}
	staying := 0
	for i := range p.Replicas {
		r := &p.Replicas[i]
		if r.State == ReplicaActive && !slices.Contains(p.Voters, r.ID) && !slices.Contains(p.Learners, r.ID) {
			r.State = ReplicaLeft
		}
		if r.staying() {
			staying++
		}
	}
	for i := range p.Replicas {
		if r := &p.Replicas[i]; staying < replicas && r.State == ReplicaLeaving && slices.Contains(p.Voters, r.ID) {
			r.State = ReplicaActive
			staying++
		}
	}
}

// lose marks a replica as lost. If it was to take the place of others, these stay: a
// partition is not left with fewer voters because of a move that cannot end.
func (s *State) lose(p *Partition, r *Replica) {
	joins := p.joins(r)
	r.State = ReplicaLost
	if joins && s.level() >= LevelGroups {
		p.stay()
	}
}

// stay calls the leaving of voters off.
func (p *Partition) stay() {
	for i := range p.Replicas {
		if r := &p.Replicas[i]; r.State == ReplicaLeaving && slices.Contains(p.Voters, r.ID) {
			r.State = ReplicaActive
		}
	}
}

func (s *State) lost(c *Lost) Result {
	d, p, err := s.partition(c.Destination, c.Partition)
	if err != nil {
		return Result{Err: err}
	}
	r := p.Replica(c.Replica)
	if r == nil || r.State == ReplicaLost || r.State == ReplicaLeft {
		return Result{}
	}
	if len(p.Replicas) == 1 {
		return refuse(wire.CodeInvalidRequest, "replica %d is the only one of %s/%d: there is nothing to make another from", c.Replica, d.Name, p.Number)
	}
	s.lose(p, r)
	s.put(d)
	return Result{Destination: d, Changed: true}
}

func (s *State) setPlacement(index wire.Index, c *SetPlacement) Result {
	number := c.Partition
	if number == wire.AllPartitions {
		number = 0
	}
	d, _, err := s.partition(c.Destination, number)
	if err != nil {
		return Result{Err: err}
	}
	for i := range d.Partitions {
		if c.Partition != wire.AllPartitions && c.Partition != uint32(i) {
			continue
		}
		if err := d.Partitions[i].place(d.Name, &c.Placement); err != nil {
			return Result{Err: err}
		}
	}
	d.Version = index
	s.put(d)
	return Result{Destination: d, Changed: true}
}

// place changes what the mask names, or says why not.
func (p *Partition) place(name string, c *wire.Placement) error {
	if c.Mask&wire.MaskPreferred != 0 {
		if c.Preferred != 0 && p.On(c.Preferred) == nil {
			return refuse(wire.CodeInvalidSetting, "node %d holds no replica of %s/%d; move one there first, or prefer a node that has one", c.Preferred, name, p.Number).Err
		}
		if p.Preferred = c.Preferred; p.Preferred == 0 {
			p.Policy = wire.LeaderAny
		}
	}
	if c.Mask&wire.MaskPolicy != 0 {
		if c.Policy != wire.LeaderAny && p.Preferred == 0 {
			return refuse(wire.CodeInvalidSetting, "the policy %s of %s/%d needs a preferred leader", c.Policy, name, p.Number).Err
		}
		p.Policy = c.Policy
	}
	if c.Mask&wire.MaskWeight != 0 {
		p.Weight = c.Weight
	}
	if c.Mask&wire.MaskSend != 0 {
		p.SendDisabled = c.SendDisabled
	}
	return nil
}

func (s *State) setReplicas(index wire.Index, c *SetReplicas) Result {
	d, _, err := s.partition(c.Destination, 0)
	switch {
	case err != nil:
		return Result{Err: err}
	case !d.Automatic || !d.grows() || c.Replicas > MaxReplicas:
		return refuse(wire.CodeRefused, "%q keeps its %d replicas", d.Name, d.Settings.Replicas)
	case c.Replicas <= d.Settings.Replicas:
		return Result{}
	}
	d.Settings.Replicas, d.Version = c.Replicas, index
	s.put(d)
	return Result{Destination: d, Changed: true}
}

// activate says that directories exist: a founder takes part from here on, another
// one may be added to the configuration.
func (s *State) activate(c *Activate) Result {
	changed := false
	for _, name := range s.names() {
		d := s.Destinations[name]
		var fresh *Destination
		for i := range d.Partitions {
			for j, r := range d.Partitions[i].Replicas {
				if r.State != ReplicaNew || !slices.Contains(c.Replicas, r.ID) {
					continue
				}
				if fresh == nil {
					fresh = d.clone()
				}
				state := ReplicaActive
				if !d.Partitions[i].FoundedBy(r.ID) {
					state = ReplicaJoining
				}
				fresh.Partitions[i].Replicas[j].State = state
			}
		}
		if fresh != nil {
			s.put(fresh)
			changed = true
		}
	}
	return Result{Changed: changed}
}

// buryReplicas forgets replicas that have left and whose directories are removed.
func (s *State) buryReplicas(c *Bury) Result {
	changed := false
	for _, name := range s.names() {
		gone := func(r Replica) bool {
			return r.Node == c.Node && r.State == ReplicaLeft && slices.Contains(c.Replicas, r.ID)
		}
		if !slices.ContainsFunc(s.Destinations[name].Partitions, func(p Partition) bool { return slices.ContainsFunc(p.Replicas, gone) }) {
			continue
		}
		changed = s.changeReplicas(name, func(p *Partition) bool {
			n := len(p.Replicas)
			p.Replicas = slices.DeleteFunc(p.Replicas, gone)
			return len(p.Replicas) < n
		}) || changed
	}
	return Result{Changed: changed}
}

// resetMemory: a partition whose only replica died begins a new incarnation, and so
// does one that lost the majority of its voters. Where a majority lives, the replica is
// lost, and a new one on the same node takes its place.
func (s *State) resetMemory(c *ResetMemory) Result {
	s.held = nil
	changed := false
	for _, name := range s.names() { // replica IDs are handed out in this order on every node
		if s.Destinations[name].Settings.Storage != wire.StorageMemory {
			continue
		}
		changed = s.changeReplicas(name, func(p *Partition) bool { return s.resetPartition(p, c.Node) }) || changed
	}
	return Result{Changed: changed}
}

func (s *State) resetPartition(p *Partition, node uint32) bool {
	mine := p.On(node)
	if mine == nil {
		return false
	}
	alive := 0
	for _, id := range p.Voters {
		if r := p.Replica(id); r != nil && id != mine.ID && (r.State == ReplicaActive || r.State == ReplicaLeaving || r.State == ReplicaNew) {
			alive++
		}
	}
	next := func(node uint32) Replica {
		s.NextReplicaID++
		return Replica{ID: s.NextReplicaID - 1, Node: node, State: ReplicaNew}
	}
	if alive > len(p.Voters)/2 {
		mine.State = ReplicaLost
		p.Replicas = append(p.Replicas, next(node))
		return true
	}
	p.cut(0)
	p.FirstTerm += termsPerIncarnation
	var nodes []uint32
	for _, r := range p.Replicas {
		if r.State != ReplicaLeft && !slices.Contains(nodes, r.Node) {
			nodes = append(nodes, r.Node)
		}
	}
	p.Replicas = nil
	for _, n := range nodes {
		p.Replicas = append(p.Replicas, next(n))
	}
	if len(p.Founders) > 0 {
		p.found()
	}
	return true
}
