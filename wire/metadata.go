package wire

import (
	"encoding/binary"
	"sort"
)

// METADATA (3), version 5: which nodes, destinations and aliases exist, who leads what,
// where the replicas are, and how keys map to partitions. Version 1 had no pages and no way
// to ask for the nodes alone, version 2 only the addresses of nodes, and no replicas,
// version 3 did not say who is to lead, and whether the replicas are automatic, version 4,
// which is still understood, nothing about dead letters and aliases.

// DestinationKind says what a destination is.
type DestinationKind uint8

const (
	// Queue is a destination whose records are removed when its one group has
	// acknowledged them.
	Queue DestinationKind = 1
	// Topic is a destination whose records are kept by time and size.
	Topic DestinationKind = 2
)

func (k DestinationKind) String() string {
	switch k {
	case Queue:
		return "queue"
	case Topic:
		return "topic"
	}
	return "unknown"
}

// Storage says where a destination's records live.
type Storage uint8

const (
	// StorageDisk keeps segments in files.
	StorageDisk Storage = 0
	// StorageMemory keeps segments in memory; they die with the process.
	StorageMemory Storage = 1
)

func (s Storage) String() string {
	switch s {
	case StorageDisk:
		return "disk"
	case StorageMemory:
		return "memory"
	}
	return "unknown"
}

// SyncMode says when record entries are made durable.
type SyncMode uint8

const (
	// SyncQuorumFsync acknowledges after a quorum has synced to disk.
	SyncQuorumFsync SyncMode = 0
	// SyncInterval syncs in the background, at short intervals.
	SyncInterval SyncMode = 1
	// SyncOS leaves writing back to the operating system.
	SyncOS SyncMode = 2
)

func (s SyncMode) String() string {
	switch s {
	case SyncQuorumFsync:
		return "quorum-fsync"
	case SyncInterval:
		return "interval"
	case SyncOS:
		return "os"
	}
	return "unknown"
}

// RecordIndexMode says whether producers attach a record index to their batches.
type RecordIndexMode uint8

const (
	// RecordIndexDefault means on for queues, off for topics.
	RecordIndexDefault RecordIndexMode = 0
	// RecordIndexOn always attaches the index.
	RecordIndexOn RecordIndexMode = 1
	// RecordIndexOff never attaches it.
	RecordIndexOff RecordIndexMode = 2
)

func (m RecordIndexMode) String() string {
	switch m {
	case RecordIndexDefault:
		return "default"
	case RecordIndexOn:
		return "on"
	case RecordIndexOff:
		return "off"
	}
	return "unknown"
}

// Unlimited switches a retention setting off.
const Unlimited = -1

// Settings are what a destination was created or altered with. Values are not
// judged by the codec; the broker answers INVALID_SETTING.
//
//	partitions u32 | replicas u8 | storage u8 | sync u8 | retentionTimeMs i64 | retentionBytes i64 |
//	maxRecordBytes u32 | segmentBytes u64 | recordIndex u8 | thresholdRecords u64 | thresholdBytes u64 |
//	deliveryLimit u32 | deadLetterMode u8 | deadLetter string
//
// Bodies of older versions end before deliveryLimit.
type Settings struct {
	Partitions      uint32
	Replicas        uint8 // 0 = automatic
	Storage         Storage
	Sync            SyncMode
	RetentionTimeMs int64  // Unlimited (-1) keeps records however old they are
	RetentionBytes  int64  // of each partition; Unlimited (-1) keeps records however many they are
	MaxRecordBytes  uint32 // 0 = DefaultMaxRecordBytes
	SegmentBytes    uint64 // 0 = the broker's default
	RecordIndex     RecordIndexMode
	// ThresholdRecords and ThresholdBytes are what a partition may hold before it
	// refuses more with PARTITION_FULL; 0 is no threshold.
	ThresholdRecords uint64 `json:",omitempty"`
	ThresholdBytes   uint64 `json:",omitempty"`
	// DeliveryLimit, DeadLetterMode and DeadLetter are those of GroupSettings, for groups
	// that have none of their own.
	DeliveryLimit  uint32         `json:",omitempty"`
	DeadLetterMode DeadLetterMode `json:",omitempty"`
	DeadLetter     string         `json:",omitempty"`
}

// HasLetters reports whether the settings say anything about dead letters.
func (s *Settings) HasLetters() bool {
	return s.DeliveryLimit > 0 || s.DeadLetterMode > 0 || s.DeadLetter != ""
}

const (
	oldSettingsSize = 4 + 1 + 1 + 1 + 8 + 8 + 4 + 8 + 1 + 8 + 8
	settingsMinSize = oldSettingsSize + 4 + 1 + 2
)

// append appends the settings; letters says whether the body's version has dead letters.
func (s *Settings) append(dst []byte, letters bool) []byte {
	le := binary.LittleEndian
	dst = le.AppendUint32(dst, s.Partitions)
	dst = append(dst, s.Replicas, byte(s.Storage), byte(s.Sync))
	dst = le.AppendUint64(dst, uint64(s.RetentionTimeMs))
	dst = le.AppendUint64(dst, uint64(s.RetentionBytes))
	dst = le.AppendUint32(dst, s.MaxRecordBytes)
	dst = le.AppendUint64(dst, s.SegmentBytes)
	dst = append(dst, byte(s.RecordIndex))
	dst = le.AppendUint64(dst, s.ThresholdRecords)
	dst = le.AppendUint64(dst, s.ThresholdBytes)
	if !letters {
		return dst
	}
	dst = append(le.AppendUint32(dst, s.DeliveryLimit), byte(s.DeadLetterMode))
	return appendString(dst, s.DeadLetter)
}

func (s *Settings) read(r *reader, letters bool) {
	s.Partitions = r.uint32()
	s.Replicas = r.uint8()
	s.Storage = Storage(r.uint8())
	s.Sync = SyncMode(r.uint8())
	s.RetentionTimeMs = int64(r.uint64())
	s.RetentionBytes = int64(r.uint64())
	s.MaxRecordBytes = r.uint32()
	s.SegmentBytes = r.uint64()
	s.RecordIndex = RecordIndexMode(r.uint8())
	s.ThresholdRecords = r.uint64()
	s.ThresholdBytes = r.uint64()
	s.DeliveryLimit, s.DeadLetterMode, s.DeadLetter = 0, 0, ""
	if letters {
		s.DeliveryLimit = r.uint32()
		s.DeadLetterMode = DeadLetterMode(r.uint8())
		s.DeadLetter = r.string()
	}
}

// SlotRun maps the key slots from FirstSlot to the next run's FirstSlot, or to
// SlotCount, to one partition.
type SlotRun struct {
	FirstSlot uint16
	Partition uint32
}

const slotRunSize = 2 + 4

// SlotPartition finds the partition of a slot in runs as DestinationInfo holds
// them. It reports false if the runs are empty or the slot is not below
// SlotCount.
func SlotPartition(runs []SlotRun, slot uint16) (uint32, bool) {
	if slot >= SlotCount {
		return 0, false
	}
	i := sort.Search(len(runs), func(i int) bool { return runs[i].FirstSlot > slot })
	if i == 0 {
		return 0, false
	}
	return runs[i-1].Partition, true
}

// PartitionState says whether a partition serves.
type PartitionState uint8

const (
	// PartitionStarting is recovering or electing a leader.
	PartitionStarting PartitionState = 0
	// PartitionActive serves reads and writes.
	PartitionActive PartitionState = 1
	// PartitionFenced stopped after a storage error and needs an operator or a peer.
	PartitionFenced PartitionState = 2
	// PartitionUnavailable has no leader.
	PartitionUnavailable PartitionState = 3
)

func (s PartitionState) String() string {
	switch s {
	case PartitionStarting:
		return "starting"
	case PartitionActive:
		return "active"
	case PartitionFenced:
		return "fenced"
	case PartitionUnavailable:
		return "unavailable"
	}
	return "unknown"
}

// ReplicaState says what a replica of a partition is about.
type ReplicaState uint8

const (
	// ReplicaNew has no directory yet.
	ReplicaNew ReplicaState = 0
	// ReplicaActive has a vote, and may lead.
	ReplicaActive ReplicaState = 1
	// ReplicaJoining copies what the others hold and has no vote yet.
	ReplicaJoining ReplicaState = 2
	// ReplicaLeaving is being removed.
	ReplicaLeaving ReplicaState = 3
	// ReplicaLost has lost what it held and is to be replaced.
	ReplicaLost ReplicaState = 4
)

func (s ReplicaState) String() string {
	switch s {
	case ReplicaNew:
		return "new"
	case ReplicaActive:
		return "active"
	case ReplicaJoining:
		return "joining"
	case ReplicaLeaving:
		return "leaving"
	case ReplicaLost:
		return "lost"
	}
	return "unknown"
}

// ReplicaInfo is one copy of a partition.
//
//	replica u64 | node u32 | state u8
type ReplicaInfo struct {
	Replica uint64 // its ID, never used again
	Node    uint32
	State   ReplicaState
}

const replicaInfoSize = 8 + 4 + 1

// PartitionFlags are reasons not to send records without a key to a partition that
// serves. Bits that this build does not know are kept.
type PartitionFlags uint8

const (
	// PartitionFull says that it holds as much as its destination allows.
	PartitionFull PartitionFlags = 1 << 0
	// PartitionSendDisabled says that an operator has closed it to new records.
	PartitionSendDisabled PartitionFlags = 1 << 1
	// PartitionUnattended says that it is a queue's, which has groups, and that no consumer
	// of any of them is attached: records without a key rather go where some are.
	PartitionUnattended PartitionFlags = 1 << 2
)

// LeaderPolicy says what a partition's preferred leader means once the partition has
// one.
type LeaderPolicy uint8

const (
	// LeaderAny lets whoever leads go on: the preferred node led first.
	LeaderAny LeaderPolicy = 0
	// LeaderFailback gives the leadership back to the preferred node when it returns.
	LeaderFailback LeaderPolicy = 1
	// LeaderPinned does that too, and keeps a replica there whatever the balance says.
	LeaderPinned LeaderPolicy = 2
)

func (p LeaderPolicy) String() string {
	switch p {
	case LeaderAny:
		return "any"
	case LeaderFailback:
		return "failback"
	case LeaderPinned:
		return "pinned"
	}
	return "unknown"
}

// PartitionInfo is one partition as the answering node sees it.
//
//	number u32 | leader u32 | epoch u32 | state u8 | startOffset u64 | nextOffset u64 | bytes u64 |
//	damaged u32 | problem string | count u32, each: replica | flags u8 | weight u8 | preferred u32 | policy u8
type PartitionInfo struct {
	Number      uint32
	Leader      uint32 // node ID, 0 if none is known
	Epoch       uint32
	State       PartitionState
	StartOffset Offset // first readable offset
	NextOffset  Offset // high watermark: one past the last readable offset
	Bytes       uint64 // size of the log on the leader, including what retention may drop
	Damaged     uint32 // ranges of offsets that answer CORRUPT
	Problem     string // why the partition does not serve, for people; empty while it does
	Replicas    []ReplicaInfo
	Flags       PartitionFlags
	Weight      uint8  // its share of the records without a key, relative to the others'; 0 counts as 1
	Preferred   uint32 // node that is to lead, 0 if it does not matter
	Policy      LeaderPolicy
}

const partitionInfoMinSize = 4 + 4 + 4 + 1 + 8 + 8 + 8 + 4 + 2 + 4 + 1 + 1 + 4 + 1

// DestinationInfo describes a destination. It is the answer to CREATE and ALTER
// and an element of the answer to METADATA.
//
//	name string | id 16 | kind u8 | version u64 | settings | automatic bool | slotVersion u32 |
//	count u32, each: firstSlot u16 | partition u32 |
//	count u32, each: partition
type DestinationInfo struct {
	Name        string
	ID          [16]byte // differs between a destination and its successor of the same name
	Kind        DestinationKind
	Version     uint64 // raised by every change of settings or placement
	Settings    Settings
	Automatic   bool      // the cluster chose the number of replicas, and raises it when it can
	SlotVersion uint32    // raised by every change of Slots; keyed produces carry it
	Slots       []SlotRun // FirstSlot ascending from 0, all below SlotCount
	Partitions  []PartitionInfo
}

const destinationInfoMinSize = 2 + 16 + 1 + 8 + settingsMinSize + 1 + 4 + 4 + 4

// Size is the number of bytes that Append appends.
func (m *DestinationInfo) Size() int {
	size := destinationInfoMinSize + len(m.Name) + len(m.Settings.DeadLetter) + len(m.Slots)*slotRunSize + len(m.Partitions)*partitionInfoMinSize
	for i := range m.Partitions {
		size += len(m.Partitions[i].Problem) + len(m.Partitions[i].Replicas)*replicaInfoSize
	}
	return size
}

// Append implements Message.
func (m *DestinationInfo) Append(dst []byte) []byte { return m.append(dst, true) }

// appendVersion implements versioned.
func (m *DestinationInfo) appendVersion(dst []byte, version uint16) []byte {
	return m.append(dst, version >= settingsWithLetters)
}

func (m *DestinationInfo) append(dst []byte, letters bool) []byte {
	le := binary.LittleEndian
	dst = appendString(dst, m.Name)
	dst = append(dst, m.ID[:]...)
	dst = append(dst, byte(m.Kind))
	dst = le.AppendUint64(dst, m.Version)
	dst = m.Settings.append(dst, letters)
	dst = appendBool(dst, m.Automatic)
	dst = le.AppendUint32(dst, m.SlotVersion)
	dst = le.AppendUint32(dst, uint32(len(m.Slots)))
	for _, s := range m.Slots {
		dst = le.AppendUint16(dst, s.FirstSlot)
		dst = le.AppendUint32(dst, s.Partition)
	}
	dst = le.AppendUint32(dst, uint32(len(m.Partitions)))
	for i := range m.Partitions {
		p := &m.Partitions[i]
		dst = le.AppendUint32(dst, p.Number)
		dst = le.AppendUint32(dst, p.Leader)
		dst = le.AppendUint32(dst, p.Epoch)
		dst = append(dst, byte(p.State))
		dst = le.AppendUint64(dst, uint64(p.StartOffset))
		dst = le.AppendUint64(dst, uint64(p.NextOffset))
		dst = le.AppendUint64(dst, p.Bytes)
		dst = le.AppendUint32(dst, p.Damaged)
		dst = appendString(dst, p.Problem)
		dst = le.AppendUint32(dst, uint32(len(p.Replicas)))
		for _, replica := range p.Replicas {
			dst = le.AppendUint64(dst, replica.Replica)
			dst = le.AppendUint32(dst, replica.Node)
			dst = append(dst, byte(replica.State))
		}
		dst = append(dst, byte(p.Flags), p.Weight)
		dst = le.AppendUint32(dst, p.Preferred)
		dst = append(dst, byte(p.Policy))
	}
	return dst
}

// Parse implements Message.
func (m *DestinationInfo) Parse(src []byte) error { return m.parseVersion(src, settingsWithLetters) }

// parseVersion implements versioned.
func (m *DestinationInfo) parseVersion(src []byte, version uint16) error {
	r := reader{src: src}
	m.read(&r, version >= settingsWithLetters)
	return r.done("destination")
}

func (m *DestinationInfo) read(r *reader, letters bool) {
	m.Name = r.string()
	m.ID = r.uuid()
	m.Kind = DestinationKind(r.uint8())
	m.Version = r.uint64()
	m.Settings.read(r, letters)
	m.Automatic = r.bool()
	m.SlotVersion = r.uint32()
	m.Slots, m.Partitions = nil, nil
	if n := r.count(slotRunSize); n > 0 {
		m.Slots = make([]SlotRun, n)
		for i := range m.Slots {
			s := SlotRun{FirstSlot: r.uint16(), Partition: r.uint32()}
			if i == 0 && s.FirstSlot != 0 || i > 0 && s.FirstSlot <= m.Slots[i-1].FirstSlot || s.FirstSlot >= SlotCount {
				r.fail("slot runs do not ascend from 0")
				return
			}
			m.Slots[i] = s
		}
	}
	if n := r.count(partitionInfoMinSize); n > 0 {
		m.Partitions = make([]PartitionInfo, n)
		for i := range m.Partitions {
			m.Partitions[i] = PartitionInfo{
				Number:      r.uint32(),
				Leader:      r.uint32(),
				Epoch:       r.uint32(),
				State:       PartitionState(r.uint8()),
				StartOffset: Offset(r.uint64()),
				NextOffset:  Offset(r.uint64()),
				Bytes:       r.uint64(),
				Damaged:     r.uint32(),
				Problem:     r.string(),
				Replicas:    r.replicas(),
				Flags:       PartitionFlags(r.uint8()),
				Weight:      r.uint8(),
				Preferred:   r.uint32(),
				Policy:      LeaderPolicy(r.uint8()),
			}
		}
	}
}

// replicas reads those of one partition.
func (r *reader) replicas() []ReplicaInfo {
	n := r.count(replicaInfoSize)
	if n == 0 {
		return nil
	}
	replicas := make([]ReplicaInfo, n)
	for i := range replicas {
		replicas[i] = ReplicaInfo{Replica: r.uint64(), Node: r.uint32(), State: ReplicaState(r.uint8())}
	}
	return replicas
}

// MetadataScope says which destinations METADATA is asked about. The nodes are
// always in the answer.
type MetadataScope uint8

const (
	// MetadataNodes asks for no destination.
	MetadataNodes MetadataScope = 0
	// MetadataNamed asks for the destinations that are named.
	MetadataNamed MetadataScope = 1
	// MetadataAll asks for all destinations.
	MetadataAll MetadataScope = 2
)

// MetadataRequest asks about some destinations or all. The answer comes in pages:
// an answer that is not the last says where the next page begins, and the same
// request with that name in After gets it.
//
//	scope u8 | after string | count u32, each: name string
type MetadataRequest struct {
	Scope MetadataScope
	After string   // only destinations whose names come after it, in the order of bytes
	Names []string // at most MaxMetadataNames; empty unless the scope is MetadataNamed
}

// Append implements Message.
func (m *MetadataRequest) Append(dst []byte) []byte {
	dst = append(dst, byte(m.Scope))
	dst = appendString(dst, m.After)
	dst = binary.LittleEndian.AppendUint32(dst, uint32(len(m.Names)))
	for _, name := range m.Names {
		dst = appendString(dst, name)
	}
	return dst
}

// Parse implements Message. More than MaxMetadataNames are refused with
// CodeTooMany before anything is allocated for them.
func (m *MetadataRequest) Parse(src []byte) error {
	r := reader{src: src}
	m.Scope = MetadataScope(r.uint8())
	m.After = r.string()
	m.Names = nil
	n := r.count(2)
	switch {
	case m.Scope > MetadataAll:
		r.fail("unknown scope")
	case n > 0 && m.Scope != MetadataNamed:
		r.fail("names in a request that asks for none")
	case n > MaxMetadataNames:
		return Errorf(CodeTooMany, "METADATA request: %d names, the limit is %d: ask in several requests", n, MaxMetadataNames)
	}
	if n > 0 {
		m.Names = make([]string, n)
		for i := range m.Names {
			m.Names[i] = r.string()
		}
	}
	return r.done("METADATA request")
}

// NodeRole says what a node is for.
type NodeRole uint8

const (
	// RoleBroker holds replicas of partitions.
	RoleBroker NodeRole = 0
	// RoleGateway serves clients and holds none.
	RoleGateway NodeRole = 1
)

func (r NodeRole) String() string {
	switch r {
	case RoleBroker:
		return "broker"
	case RoleGateway:
		return "gateway"
	}
	return "unknown"
}

// NodeState says what an operator wants of a node.
type NodeState uint8

const (
	// NodeUp takes part in everything.
	NodeUp NodeState = 0
	// NodeDraining gives its leaderships away.
	NodeDraining NodeState = 1
	// NodeLeaving gives its replicas away and is removed then.
	NodeLeaving NodeState = 2
)

func (s NodeState) String() string {
	switch s {
	case NodeUp:
		return "up"
	case NodeDraining:
		return "draining"
	case NodeLeaving:
		return "leaving"
	}
	return "unknown"
}

// Node is one member of the cluster.
//
//	id u32 | address string | rack string | role u8 | state u8 | alive bool | level u16
type Node struct {
	ID      uint32
	Address string // host:port for clients
	Rack    string // may be empty
	Role    NodeRole
	State   NodeState
	Alive   bool   // the answering node hears it
	Level   uint16 // the highest feature level that its build can work at
}

const nodeMinSize = 4 + 2 + 2 + 1 + 1 + 1 + 2

func (m *Node) append(dst []byte) []byte {
	le := binary.LittleEndian
	dst = le.AppendUint32(dst, m.ID)
	dst = appendString(dst, m.Address)
	dst = appendString(dst, m.Rack)
	dst = append(dst, byte(m.Role), byte(m.State))
	dst = appendBool(dst, m.Alive)
	return le.AppendUint16(dst, m.Level)
}

func (m *Node) read(r *reader) {
	m.ID = r.uint32()
	m.Address = r.string()
	m.Rack = r.string()
	m.Role = NodeRole(r.uint8())
	m.State = NodeState(r.uint8())
	m.Alive = r.bool()
	m.Level = r.uint16()
}

// MetadataResponse answers MetadataRequest. Names that do not exist are left out,
// a name given twice is answered once, and destinations and aliases come by name, in the
// order of bytes. One that exists through all pages is in exactly one. Who asks for an
// alias by name is told of the destination, too, as both were at one moment.
//
//	version u64 | count u32, each: node | count u32, each: destination |
//	count u32, each: alias | next string
//
// Version 4 has no aliases.
type MetadataResponse struct {
	Version      uint64 // of the cluster's metadata; raised by every change
	Nodes        []Node
	Destinations []DestinationInfo
	Aliases      []Alias
	Next         string // for After in the request for the next page; empty in the last one
}

// Append implements Message.
func (m *MetadataResponse) Append(dst []byte) []byte {
	return m.appendVersion(dst, metadataWithLetters)
}

// appendVersion implements versioned.
func (m *MetadataResponse) appendVersion(dst []byte, version uint16) []byte {
	le := binary.LittleEndian
	dst = le.AppendUint64(dst, m.Version)
	dst = le.AppendUint32(dst, uint32(len(m.Nodes)))
	for i := range m.Nodes {
		dst = m.Nodes[i].append(dst)
	}
	dst = le.AppendUint32(dst, uint32(len(m.Destinations)))
	for i := range m.Destinations {
		dst = m.Destinations[i].append(dst, version >= metadataWithLetters)
	}
	if version >= metadataWithLetters {
		dst = le.AppendUint32(dst, uint32(len(m.Aliases)))
		for i := range m.Aliases {
			dst = m.Aliases[i].append(dst)
		}
	}
	return appendString(dst, m.Next)
}

// Parse implements Message.
func (m *MetadataResponse) Parse(src []byte) error { return m.parseVersion(src, metadataWithLetters) }

// parseVersion implements versioned.
func (m *MetadataResponse) parseVersion(src []byte, version uint16) error {
	r := reader{src: src}
	m.Version = r.uint64()
	m.Nodes, m.Destinations, m.Aliases = nil, nil, nil
	if n := r.count(nodeMinSize); n > 0 {
		m.Nodes = make([]Node, n)
		for i := range m.Nodes {
			m.Nodes[i].read(&r)
		}
	}
	least := destinationInfoMinSize
	if version < metadataWithLetters {
		least -= settingsMinSize - oldSettingsSize
	}
	if n := r.count(least); n > 0 {
		m.Destinations = make([]DestinationInfo, n)
		for i := range m.Destinations {
			m.Destinations[i].read(&r, version >= metadataWithLetters)
		}
	}
	if version >= metadataWithLetters {
		if n := r.count(aliasMinSize); n > 0 {
			m.Aliases = make([]Alias, n)
			for i := range m.Aliases {
				m.Aliases[i].read(&r)
			}
		}
	}
	m.Next = r.string()
	return r.done("METADATA response")
}
