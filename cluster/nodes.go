package cluster

import (
	"cmp"
	"fmt"
	"maps"
	"slices"

	"github.com/google/uuid"

	"github.com/lockstepmq/lockstep/wire"
)

// Role says what a node is for. The empty one is RoleBroker.
type Role string

const (
	// RoleBroker holds replicas of partitions.
	RoleBroker Role = "broker"
	// RoleGateway serves clients and holds none.
	RoleGateway Role = "gateway"
)

// NodeState says what an operator wants of a node. The empty one is NodeUp.
type NodeState string

const (
	// NodeUp takes part in everything.
	NodeUp NodeState = "up"
	// NodeDraining gives its leaderships away and gets no new replica; those that it
	// has stay where they are.
	NodeDraining NodeState = "draining"
	// NodeLeaving gives its replicas away as well, and is removed after that.
	NodeLeaving NodeState = "leaving"
)

// Node is a member of the cluster.
type Node struct {
	ID      uint32    `json:"id"`
	Store   uuid.UUID `json:"store"`
	Address string    `json:"address"` // for clients
	// Boots counts the starts of the node's process.
	Boots       uint64    `json:"boots"`
	PeerAddress string    `json:"peer_address,omitempty"` // for other nodes; empty if it has none
	HTTP        string    `json:"http,omitempty"`
	Rack        string    `json:"rack,omitempty"`
	Role        Role      `json:"role,omitempty"`
	State       NodeState `json:"state,omitempty"`
	// MinLevel and MaxLevel are the feature levels that the node's build can work at.
	MinLevel int `json:"min_level,omitempty"`
	MaxLevel int `json:"max_level,omitempty"`
	// MetaReplica is the node's replica of group 0, see MetaID.
	MetaReplica uint64 `json:"meta_replica,omitempty"`
	// Retired are the data directories that the node had before: at most maxRetired, the
	// newest last. They do not come back.
	Retired []uuid.UUID `json:"retired,omitempty"`
}

// Broker reports whether the node may hold replicas at all.
func (n *Node) Broker() bool { return n.Role == "" || n.Role == RoleBroker }

// Up reports whether nobody wants the node to do less than it can.
func (n *Node) Up() bool { return n.State == "" || n.State == NodeUp }

// FounderMetaID is the replica of group 0 on the node that founded the cluster. Its
// IDs are apart from those of partitions.
const FounderMetaID = 1

// MetaID is the node's replica of group 0. One that is not written is the founder's.
func (n *Node) MetaID() uint64 { return cmp.Or(n.MetaReplica, FounderMetaID) }

// maxRetired bounds the directories that a node remembers to have lost.
const maxRetired = 16

// Register announces a node's start. The first one founds the cluster.
type Register struct {
	ClusterID   uuid.UUID `json:"cluster_id"` // used by the first only
	Node        uint32    `json:"node"`
	Store       uuid.UUID `json:"store"`
	Address     string    `json:"address"`
	PeerAddress string    `json:"peer_address,omitempty"`
	HTTP        string    `json:"http,omitempty"`
	Rack        string    `json:"rack,omitempty"`
	Role        Role      `json:"role,omitempty"`
	MinLevel    int       `json:"min_level,omitempty"`
	MaxLevel    int       `json:"max_level,omitempty"`
}

func (s *State) register(c *Register) Result {
	if err := checkRole(c.Role); err != nil {
		return Result{Err: err}
	}
	if c.MaxLevel != 0 {
		if err := checkLevels(s.level(), c.MinLevel, c.MaxLevel); err != nil {
			return Result{Err: err}
		}
	}
	n := Node{ID: c.Node, Store: c.Store, Boots: 1}
	if old := s.Nodes[c.Node]; old == nil && len(s.Nodes) > 0 {
		return refuse(wire.CodeNotMember, "node %d is no member: it never joined, or was removed", c.Node)
	} else if old != nil {
		if old.Store != c.Store {
			return refuse(wire.CodeInvalidSetting, "node %d is registered with another data directory", c.Node)
		}
		n = *old
		n.Boots++
	}
	n.Address, n.PeerAddress, n.HTTP, n.Rack, n.Role = c.Address, c.PeerAddress, c.HTTP, c.Rack, c.Role
	n.MinLevel, n.MaxLevel = c.MinLevel, c.MaxLevel
	if s.ClusterID == uuid.Nil {
		s.ClusterID = c.ClusterID
	}
	s.Nodes[c.Node] = &n
	return Result{Changed: true, Node: &n}
}

func checkRole(r Role) error {
	if r != "" && r != RoleBroker && r != RoleGateway {
		return refuse(wire.CodeInvalidRequest, "role %q is neither %s nor %s", r, RoleBroker, RoleGateway).Err
	}
	return nil
}

// Join makes a node a member, or puts a new data directory in the place of one that
// a member has lost. The node registers once it has caught up with the metadata.
type Join struct {
	ClusterID   uuid.UUID `json:"cluster_id"` // zero: whichever it is
	Node        uint32    `json:"node"`       // 0: give me one
	Store       uuid.UUID `json:"store"`
	Address     string    `json:"address"`
	PeerAddress string    `json:"peer_address"`
	HTTP        string    `json:"http,omitempty"`
	Rack        string    `json:"rack,omitempty"`
	Role        Role      `json:"role,omitempty"`
	MinLevel    int       `json:"min_level"`
	MaxLevel    int       `json:"max_level"`
	// Alive says that some node hears the one that has the ID: it is not known in the
	// state, and what follows from it must be.
	Alive bool `json:"alive,omitempty"`
	// Judged is the data directory that Alive is about: the one that had the ID when the
	// others were asked. Zero: nobody had the ID, or nobody was asked.
	Judged uuid.UUID `json:"judged,omitzero"`
}

func (s *State) join(c *Join) Result {
	if s.ClusterID == uuid.Nil {
		return refuse(wire.CodeUnavailable, "the cluster is not founded yet")
	}
	if c.ClusterID != uuid.Nil && c.ClusterID != s.ClusterID {
		return refuse(wire.CodeClusterMismatch, "this is cluster %s, not %s; join with an empty data directory, or name a member of that cluster", s.ClusterID, c.ClusterID)
	}
	if c.Store == uuid.Nil || c.PeerAddress == "" || c.Address == "" {
		return refuse(wire.CodeInvalidRequest, "a node joins with a data directory, an address for clients and one for peers")
	}
	if err := checkRole(c.Role); err != nil {
		return Result{Err: err}
	}
	level := max(s.level(), LevelCluster)
	if err := checkLevels(level, c.MinLevel, c.MaxLevel); err != nil {
		return Result{Err: err}
	}
	number := c.Node
	for _, n := range s.Nodes {
		if n.Store == c.Store {
			if number != 0 && number != n.ID {
				return refuse(wire.CodeRefused, "this data directory belongs to node %d; start it with --node-id %d, or take an empty directory", n.ID, n.ID)
			}
			number = n.ID
		}
	}
	if number == 0 {
		number = s.nextNodeID()
	}
	old := s.Nodes[number]
	for _, n := range s.Nodes {
		if n.ID != number && (n.Address == c.Address || n.PeerAddress == c.PeerAddress) {
			return refuse(wire.CodeRefused, "node %d has the address %s; give this node its own with --listen and --peer-listen, or --advertise and --peer-advertise, or --node-id %d if it takes the place of that one", n.ID, n.Address, n.ID)
		}
		if slices.Contains(n.Retired, c.Store) {
			return refuse(wire.CodeRefused, "this data directory was replaced by another one of node %d; start with an empty directory", n.ID)
		}
	}
	switch {
	case old == nil && len(s.Nodes) >= MaxNodes:
		return refuse(wire.CodeTooMany, "the cluster has %d nodes, its limit", MaxNodes)
	case old != nil && old.Store != c.Store && old.Store != c.Judged:
		return refuse(wire.CodeRetry, "whether node %d is gone is not known: its data directory is another one than when this one asked to take its place; ask again", number)
	case old != nil && old.Store != c.Store && c.Alive:
		return refuse(wire.CodeRefused, "node %d is a member with another data directory, and alive; choose another --node-id, or stop that node if this one replaces it", number)
	}
	n := Node{ID: number, Store: c.Store}
	switch {
	case old == nil:
		n.MetaReplica = s.newMetaReplica()
	case old.Store == c.Store:
		n = *old // asked again: the answer was lost
	default:
		n.Retired = slices.Clone(old.Retired[max(0, len(old.Retired)+1-maxRetired):])
		n.Retired = append(n.Retired, old.Store)
		n.MetaReplica = s.newMetaReplica()
		s.loseNode(number)
	}
	n.Address, n.PeerAddress, n.HTTP, n.Rack, n.Role = c.Address, c.PeerAddress, c.HTTP, c.Rack, c.Role
	n.MinLevel, n.MaxLevel = c.MinLevel, c.MaxLevel
	s.Nodes[number] = &n
	s.NextNodeID = max(s.NextNodeID, number+1)
	s.Level = level
	return Result{Changed: true, Node: &n}
}

// checkLevels refuses a build that cannot work at a level.
func checkLevels(level, least, most int) error {
	switch {
	case most < level:
		return refuse(wire.CodeUnsupported, "the cluster works at feature level %d, this build knows up to %d; upgrade this broker", level, most).Err
	case least > level:
		return refuse(wire.CodeUnsupported, "the cluster works at feature level %d, this build needs %d; upgrade the other brokers first", level, least).Err
	}
	return nil
}

// nextNodeID is an ID that no node has or had.
func (s *State) nextNodeID() uint32 {
	next := s.NextNodeID
	for id := range s.Nodes {
		next = max(next, id+1)
	}
	return next
}

func (s *State) newMetaReplica() uint64 {
	s.NextMetaReplicaID = max(s.NextMetaReplicaID, FounderMetaID+1) + 1
	return s.NextMetaReplicaID - 1
}

// loseNode marks all replicas of a node whose directory is gone.
func (s *State) loseNode(node uint32) {
	for _, name := range s.names() {
		s.changeReplicas(name, func(p *Partition) bool {
			changed := false
			p.Replicas = slices.DeleteFunc(p.Replicas, func(r Replica) bool {
				if r.Node == node && r.State == ReplicaLeft {
					changed = true
					return true
				}
				return false
			})
			for i := range p.Replicas {
				if r := &p.Replicas[i]; r.Node == node && r.State != ReplicaLost {
					s.lose(p, r)
					changed = true
				}
			}
			return changed
		})
	}
	s.forget(node)
}

// forget ends the wait for a node to remove the directories of deleted destinations.
func (s *State) forget(node uint32) {
	for _, id := range slices.SortedFunc(maps.Keys(s.Deleted), func(a, b uuid.UUID) int { return slices.Compare(a[:], b[:]) }) {
		s.bury(&Bury{ID: id, Node: node})
	}
}

// names are the names of all destinations in order: what depends on the order is then
// the same on every node.
func (s *State) names() []string { return slices.Sorted(maps.Keys(s.Destinations)) }

// changeReplicas calls change for the partitions of a copy of a destination, which
// takes its place if change reports true for any of them.
func (s *State) changeReplicas(name string, change func(p *Partition) bool) bool {
	d := s.Destinations[name].clone()
	changed := false
	for i := range d.Partitions {
		changed = change(&d.Partitions[i]) || changed
	}
	if changed {
		s.put(d)
		s.held = nil
	}
	return changed
}

// SetNode is what an operator wants of a node.
type SetNode struct {
	Node  uint32    `json:"node"`
	State NodeState `json:"state"`
}

func (s *State) setNode(c *SetNode) Result {
	old := s.Nodes[c.Node]
	if old == nil {
		return refuse(wire.CodeInvalidRequest, "node %d is not a member; lockstep node ls shows which are", c.Node)
	}
	switch c.State {
	case "", NodeUp:
	case NodeDraining, NodeLeaving:
		others := 0
		for _, n := range s.Nodes {
			if n.ID != c.Node && n.Broker() && n.Up() {
				others++
			}
		}
		if old.Broker() && others == 0 {
			return refuse(wire.CodeRefused, "no other broker would be left to lead what node %d leads; add one first", c.Node)
		}
		if c.State == NodeLeaving && old.Broker() {
			for _, name := range s.names() {
				d := s.Destinations[name]
				wanted := int(d.Settings.Replicas)
				if wanted <= others || !s.heldBy(name, c.Node) {
					continue
				}
				if d.Automatic {
					return refuse(wire.CodeRefused, "%q has %d replicas, a number that the cluster chose when it had the brokers for it, and %s would be left; add a node first", name, wanted, brokers(others))
				}
				return refuse(wire.CodeRefused, "%q wants %d replicas, and %s would be left; add a node first", name, wanted, brokers(others))
			}
		}
	default:
		return refuse(wire.CodeInvalidRequest, "node state %q is unknown", c.State)
	}
	if old.State == c.State {
		return Result{Node: old}
	}
	n := *old
	n.State = c.State
	s.Nodes[c.Node] = &n
	return Result{Changed: true, Node: &n}
}

func brokers(n int) string {
	if n == 1 {
		return "one broker"
	}
	return fmt.Sprintf("%d brokers", n)
}

// heldBy reports whether a node holds a replica of a destination.
func (s *State) heldBy(name string, node uint32) bool {
	return slices.Contains(nodesOf(s.Destinations[name]), node)
}

// RemoveNode ends the membership of a node that is leaving and holds nothing more.
type RemoveNode struct {
	Node uint32 `json:"node"`
}

func (s *State) removeNode(c *RemoveNode) Result {
	n := s.Nodes[c.Node]
	switch {
	case n == nil:
		return Result{}
	case n.State != NodeLeaving:
		return refuse(wire.CodeRefused, "node %d is not leaving; decommission it first", c.Node)
	}
	for _, name := range s.names() {
		for i := range s.Destinations[name].Partitions {
			for _, r := range s.Destinations[name].Partitions[i].Replicas {
				if r.Node == c.Node && r.State != ReplicaLeft {
					return refuse(wire.CodeRefused, "node %d still holds a replica of %s/%d", c.Node, name, i)
				}
			}
		}
	}
	s.loseNode(c.Node) // nobody is left to remove directories
	s.NextNodeID = s.nextNodeID()
	delete(s.Nodes, c.Node)
	return Result{Changed: true}
}
