package wire

// Nodes talk to each other on the peer port, with a protocol of their own: one
// connection for each pair of nodes. Integers are little-endian. The dialer begins
// with PeerPreface; then frames travel both ways.
//
//	0              4      5       6          8            12          16
//	+--------------+------+-------+----------+------------+-----------+
//	| length       | kind | flags | version  | number     | CRC32C    |   of bytes 0 to 12
//	+--------------+------+-------+----------+------------+-----------+
//
// length counts the bytes after its field. number is the request of REQUEST,
// RESPONSE, CHUNK and ACK, else 0.
const (
	// PeerPreface opens a connection between two nodes.
	PeerPreface = "LKPEER\r\n"
	// ForwardPreface opens a connection on which a node forwards the requests of a
	// client: the client protocol follows.
	ForwardPreface = "LKFWRD\r\n"
	// PeerHeaderSize is the header of a peer frame, in bytes.
	PeerHeaderSize = 16
	// MaxPeerFrameBytes bounds the length field of a peer frame: entries of one
	// message with what surrounds them.
	MaxPeerFrameBytes = MaxBodyBytes + 64<<10
)

// PeerKind is what a peer frame holds.
type PeerKind uint8

// The kinds of peer frames.
const (
	PeerHello      PeerKind = 1
	PeerWelcome    PeerKind = 2
	PeerRefused    PeerKind = 3
	PeerAppend     PeerKind = 4
	PeerRaft       PeerKind = 5
	PeerHeartbeats PeerKind = 6
	PeerSnapshot   PeerKind = 7
	PeerLeaders    PeerKind = 8
	PeerRequest    PeerKind = 9
	PeerResponse   PeerKind = 10
	PeerChunk      PeerKind = 11
	PeerAck        PeerKind = 12
)

// PeerOp is what a REQUEST between nodes asks for.
type PeerOp uint8

// The operations of peer requests.
const (
	PeerSubmit          PeerOp = 1 // a command for the leader of the metadata group
	PeerFetchCheckpoint PeerOp = 2
	PeerFetchFrames     PeerOp = 3
	PeerTransfer        PeerOp = 4
	PeerStatus          PeerOp = 5
)

// PeerLeader is what a node says about a partition that it leads.
type PeerLeader struct {
	Replica      uint64 // its own
	Epoch        uint32 // 0: it leads no longer
	State        PartitionState
	Full         bool
	SendDisabled bool
	Start, Next  Offset
	Bytes        uint64
}
