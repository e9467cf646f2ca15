package wire

import "encoding/binary"

// Administration of a cluster. Any node takes these requests; what changes the
// metadata travels on to the node that leads it.

// JOIN (18), since version 1: a node with an empty data directory asks a member to
// take it in. The answer is all it needs to talk to the others.

// JoinRequest introduces a node.
//
//	clusterID 16 | node u32 | store 16 | address string | peerAddress string | http string | rack string |
//	role string | minLevel u16 | maxLevel u16
type JoinRequest struct {
	ClusterID   [16]byte // zero: whichever it is
	Node        uint32   // 0: the cluster chooses
	Store       [16]byte // of its data directory
	Address     string   // for clients
	PeerAddress string   // for nodes
	HTTP        string   // for health and metrics; may be empty
	Rack        string   // may be empty
	Role        string   // "broker" or "gateway"; empty is the former
	MinLevel    uint16   // range of feature levels that its build knows
	MaxLevel    uint16
	MinPeer     uint16 // range of versions of the peer protocol that it speaks
	MaxPeer     uint16
}

// Append implements Message.
func (m *JoinRequest) Append(dst []byte) []byte {
	le := binary.LittleEndian
	dst = append(dst, m.ClusterID[:]...)
	dst = le.AppendUint32(dst, m.Node)
	dst = append(dst, m.Store[:]...)
	for _, s := range []string{m.Address, m.PeerAddress, m.HTTP, m.Rack, m.Role} {
		dst = appendString(dst, s)
	}
	for _, n := range [...]uint16{m.MinLevel, m.MaxLevel, m.MinPeer, m.MaxPeer} {
		dst = le.AppendUint16(dst, n)
	}
	return dst
}

// Parse implements Message.
func (m *JoinRequest) Parse(src []byte) error {
	r := reader{src: src}
	m.ClusterID = r.uuid()
	m.Node = r.uint32()
	m.Store = r.uuid()
	m.Address, m.PeerAddress, m.HTTP, m.Rack, m.Role = r.string(), r.string(), r.string(), r.string(), r.string()
	m.MinLevel, m.MaxLevel, m.MinPeer, m.MaxPeer = r.uint16(), r.uint16(), r.uint16(), r.uint16()
	return r.done("JOIN request")
}

// JoinResponse takes a node in.
//
//	clusterID 16 | node u32 | metaReplica u64 | count u32, each: node u32 | store 16 |
//	metaReplica u64 | peerAddress string
type JoinResponse struct {
	ClusterID   [16]byte
	Node        uint32
	MetaReplica uint64 // the node's replica of the metadata group
	Members     []JoinMember
}

// JoinMember is another node of the cluster.
type JoinMember struct {
	Node        uint32
	Store       [16]byte
	MetaReplica uint64
	PeerAddress string
}

const joinMemberSize = 4 + 16 + 8 + 2

// Append implements Message.
func (m *JoinResponse) Append(dst []byte) []byte {
	le := binary.LittleEndian
	dst = append(dst, m.ClusterID[:]...)
	dst = le.AppendUint32(dst, m.Node)
	dst = le.AppendUint64(dst, m.MetaReplica)
	dst = le.AppendUint32(dst, uint32(len(m.Members)))
	for i := range m.Members {
		dst = le.AppendUint32(dst, m.Members[i].Node)
		dst = append(dst, m.Members[i].Store[:]...)
		dst = le.AppendUint64(dst, m.Members[i].MetaReplica)
		dst = appendString(dst, m.Members[i].PeerAddress)
	}
	return dst
}

// Parse implements Message.
func (m *JoinResponse) Parse(src []byte) error {
	r := reader{src: src}
	m.ClusterID = r.uuid()
	m.Node = r.uint32()
	m.MetaReplica = r.uint64()
	m.Members = nil
	if n := r.count(joinMemberSize); n > 0 {
		m.Members = make([]JoinMember, n)
		for i := range m.Members {
			m.Members[i] = JoinMember{Node: r.uint32(), Store: r.uuid(), MetaReplica: r.uint64(), PeerAddress: r.string()}
		}
	}
	return r.done("JOIN response")
}

// NODE_ADMIN (19), since version 1: what an operator wants of a node. It is answered
// with an empty body once it is decided; what comes of it takes its time.

// NodeAction is what should become of a node.
type NodeAction uint8

// The actions.
const (
	NodeUndrain      NodeAction = 0 // it takes part in everything
	NodeDrain        NodeAction = 1 // it gives its leaderships away
	NodeDecommission NodeAction = 2 // it gives its replicas away and is removed then
)

// NodeAdminRequest asks for an action.
//
//	node u32 | action u8
type NodeAdminRequest struct {
	Node   uint32
	Action NodeAction
}

// Append implements Message.
func (m *NodeAdminRequest) Append(dst []byte) []byte {
	return append(binary.LittleEndian.AppendUint32(dst, m.Node), byte(m.Action))
}

// Parse implements Message.
func (m *NodeAdminRequest) Parse(src []byte) error {
	r := reader{src: src}
	m.Node = r.uint32()
	if m.Action = NodeAction(r.uint8()); m.Action > NodeDecommission {
		r.fail("no such action")
	}
	return r.done("NODE_ADMIN request")
}

// PARTITION_ADMIN (20), version 2: moves a replica of a partition or its leadership, or
// says who is to lead it and which records it gets. It is answered like NODE_ADMIN.
// Version 1 had no placement.

// PartitionAction is what should be done with a partition.
type PartitionAction uint8

// The actions.
const (
	PartitionMove     PartitionAction = 0 // a replica from one node to another
	PartitionTransfer PartitionAction = 1 // the leadership to a node that holds a replica, 0: any
	PartitionPlace    PartitionAction = 2 // nothing: Placement changes
)

// AllPartitions in place of a partition's number means each of the destination.
// PartitionPlace takes it.
const AllPartitions = 1<<32 - 1

// PlacementMask names the fields of a Placement that a request changes.
type PlacementMask uint8

// The bits of a PlacementMask.
const (
	MaskPreferred PlacementMask = 1 << iota
	MaskPolicy
	MaskWeight
	MaskSend

	// MaskPlacement has the bits of all fields.
	MaskPlacement PlacementMask = 1<<iota - 1
)

// Placement says who is to lead a partition and which records it gets.
//
//	mask u8 | preferred u32 | policy u8 | weight u8 | sendDisabled bool
type Placement struct {
	Mask         PlacementMask // fields outside it are ignored
	Preferred    uint32        // node that leads first, 0: any
	Policy       LeaderPolicy
	Weight       uint8 // share of the records without a key, relative to the other partitions'; 0 counts as 1
	SendDisabled bool  // closed to new records
}

// PartitionAdminRequest asks for an action.
//
//	destination string | partition u32 | action u8 | from u32 | to u32 | placement
type PartitionAdminRequest struct {
	Destination string
	Partition   uint32
	Action      PartitionAction
	From, To    uint32 // nodes
	Placement   Placement
}

// Append implements Message.
func (m *PartitionAdminRequest) Append(dst []byte) []byte {
	le := binary.LittleEndian
	dst = appendString(dst, m.Destination)
	dst = le.AppendUint32(dst, m.Partition)
	dst = append(dst, byte(m.Action))
	dst = le.AppendUint32(dst, m.From)
	dst = le.AppendUint32(dst, m.To)
	p := &m.Placement
	dst = append(dst, byte(p.Mask))
	dst = le.AppendUint32(dst, p.Preferred)
	return appendBool(append(dst, byte(p.Policy), p.Weight), p.SendDisabled)
}

// Parse implements Message.
func (m *PartitionAdminRequest) Parse(src []byte) error {
	r := reader{src: src}
	m.Destination = r.string()
	m.Partition = r.uint32()
	if m.Action = PartitionAction(r.uint8()); m.Action > PartitionPlace {
		r.fail("no such action")
	}
	m.From, m.To = r.uint32(), r.uint32()
	p := &m.Placement
	p.Mask, p.Preferred, p.Policy = PlacementMask(r.uint8()), r.uint32(), LeaderPolicy(r.uint8())
	p.Weight, p.SendDisabled = r.uint8(), r.bool()
	if p.Mask&^MaskPlacement != 0 || p.Policy > LeaderPinned {
		r.fail("no such placement")
	}
	return r.done("PARTITION_ADMIN request")
}

// CLUSTER_STATUS (21), since version 1: what the nodes know of themselves, which METADATA
// does not have. The broker that is asked asks the others. The request is empty. Version
// 3 has the nodes that vote, 2 had their number.

// MaxMetadataVoters is how many nodes vote about the metadata at most. A cluster with
// fewer nodes has an odd number of them.
const MaxMetadataVoters = 5

// ClusterStatus answers CLUSTER_STATUS.
//
//	controller u32 | level u16 | count u32, each voter: node u32 | count u32, each: node status
type ClusterStatus struct {
	Controller uint32   // node that leads the metadata, 0 if none is known to
	Level      uint16   // feature level that the cluster works at
	Voters     []uint32 // nodes that vote about the metadata, as far as the asked one knows, 0: one that it does not know
	Nodes      []NodeStatus
}

// NodeStatus is what a node says of itself; of one that does not answer, what the
// metadata has. It is also the answer to the peer request STATUS.
//
//	node u32 | answered bool | version string | uptimeMs u64 | storedBytes u64 | freeBytes u64 | totalBytes u64 |
//	peerAddress string | http string
type NodeStatus struct {
	Node        uint32
	Answered    bool   // the fields up to LacksSpace are known
	Version     string // of its build
	UptimeMs    uint64
	StoredBytes uint64 // in the logs of its replicas
	FreeBytes   uint64 // of the device that holds its data directory
	TotalBytes  uint64 // of that device
	KeptBytes   uint64 // that records leave free there
	LacksSpace  bool   // less is free: it takes no records, is given no replicas and leads nothing
	PeerAddress string
	HTTP        string // empty if it has no port for that
}

const nodeStatusMinSize = 4 + 1 + 2 + 8 + 8 + 8 + 8 + 8 + 1 + 2 + 2

// Append implements Message.
func (m *NodeStatus) Append(dst []byte) []byte {
	le := binary.LittleEndian
	dst = le.AppendUint32(dst, m.Node)
	dst = appendBool(dst, m.Answered)
	dst = appendString(dst, m.Version)
	for _, n := range []uint64{m.UptimeMs, m.StoredBytes, m.FreeBytes, m.TotalBytes, m.KeptBytes} {
		dst = le.AppendUint64(dst, n)
	}
	dst = appendBool(dst, m.LacksSpace)
	return appendString(appendString(dst, m.PeerAddress), m.HTTP)
}

// Parse implements Message.
func (m *NodeStatus) Parse(src []byte) error {
	r := reader{src: src}
	m.read(&r)
	return r.done("node status")
}

func (m *NodeStatus) read(r *reader) {
	*m = NodeStatus{
		Node: r.uint32(), Answered: r.bool(), Version: r.string(), UptimeMs: r.uint64(), StoredBytes: r.uint64(),
		FreeBytes: r.uint64(), TotalBytes: r.uint64(), KeptBytes: r.uint64(), LacksSpace: r.bool(), PeerAddress: r.string(), HTTP: r.string(),
	}
}

// Append implements Message.
func (m *ClusterStatus) Append(dst []byte) []byte {
	le := binary.LittleEndian
	dst = le.AppendUint32(dst, m.Controller)
	dst = le.AppendUint16(dst, m.Level)
	dst = le.AppendUint32(dst, uint32(len(m.Voters)))
	for _, n := range m.Voters {
		dst = le.AppendUint32(dst, n)
	}
	dst = le.AppendUint32(dst, uint32(len(m.Nodes)))
	for i := range m.Nodes {
		dst = m.Nodes[i].Append(dst)
	}
	return dst
}

// Parse implements Message.
func (m *ClusterStatus) Parse(src []byte) error {
	r := reader{src: src}
	*m = ClusterStatus{Controller: r.uint32(), Level: r.uint16()}
	for range r.count(4) {
		m.Voters = append(m.Voters, r.uint32())
	}
	if n := r.count(nodeStatusMinSize); n > 0 {
		m.Nodes = make([]NodeStatus, n)
		for i := range m.Nodes {
			m.Nodes[i].read(&r)
		}
	}
	return r.done("CLUSTER_STATUS response")
}

// ClusterStatusRequest asks for the status of the cluster. Its body is empty.
type ClusterStatusRequest struct{ Empty }
