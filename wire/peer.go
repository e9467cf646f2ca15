package wire

import "encoding/binary"

// The peer protocol is what brokers of one cluster say to each other, on a port of
// its own. The dialer begins with PeerPreface and HELLO; the other side answers
// WELCOME or REFUSED; after WELCOME frames of any kind go both ways. A frame is a
// 16-byte header and a body, all integers little-endian:
//
//	0              4      5       6          8            12          16
//	+--------------+------+-------+----------+------------+-----------+
//	| length       | kind | flags | version  | number     | CRC32C    |
//	+--------------+------+-------+----------+------------+-----------+
//	| body, length - 12 bytes                                         |
//
// The length counts the bytes after its own field. The version is that of the
// kind's body. The number is that of a request and of all that answers it, else
// zero. Flags are reserved and zero. The CRC covers bytes [0, 12).

// PeerPreface is what a broker sends once before its first frame to another one.
// The port for clients refuses it, as the peer port refuses Preface.
const PeerPreface = "LKPEER\r\n"

// ForwardPreface begins a connection to the peer port that carries one client's
// session on to the broker that can serve it: what follows is the protocol for
// clients and not the peer protocol.
const ForwardPreface = "LKFWRD\r\n"

// The range of versions of the peer protocol that this build speaks. The layout of a kind's
// body belongs to a version: who changes one raises both, until there is a release whose
// layout has to be understood. 2 has the state in HEARTBEATS.
const (
	MinPeerVersion = 2
	MaxPeerVersion = 2
)

// Limits of the peer protocol.
const (
	// MaxPeerFrameBytes is the largest value of a peer frame's length field, in
	// bytes: the longest entry with the header and the fields around it.
	MaxPeerFrameBytes = MaxBodyBytes + 64<<10
	// MaxPeerContextBytes is the longest context of a message or heartbeat.
	MaxPeerContextBytes = 24
	// MaxPeerBeatsBytes is where a HEARTBEATS, RAFT or LEADERS frame is cut: what is
	// left follows in another one.
	MaxPeerBeatsBytes = 64 << 10
	// PeerChunkBytes is the data of one CHUNK at most.
	PeerChunkBytes = 64 << 10
	// PeerChunkWindow is how many CHUNKs of one transfer may be on their way: the
	// sender waits for an ACK before it sends more.
	PeerChunkWindow = 4
)

// PeerKind says what a peer frame is. Numbers are never reused.
type PeerKind uint8

// The kinds of peer frames.
const (
	PeerKindHello      PeerKind = 1
	PeerKindWelcome    PeerKind = 2
	PeerKindRefused    PeerKind = 3
	PeerKindAppend     PeerKind = 4
	PeerKindRaft       PeerKind = 5
	PeerKindHeartbeats PeerKind = 6
	PeerKindSnapshot   PeerKind = 7
	PeerKindLeaders    PeerKind = 8
	PeerKindRequest    PeerKind = 9
	PeerKindResponse   PeerKind = 10
	PeerKindChunk      PeerKind = 11
	PeerKindAck        PeerKind = 12
)

var peerKindNames = [...]string{
	PeerKindHello: "HELLO", PeerKindWelcome: "WELCOME", PeerKindRefused: "REFUSED", PeerKindAppend: "APPEND",
	PeerKindRaft: "RAFT", PeerKindHeartbeats: "HEARTBEATS", PeerKindSnapshot: "SNAPSHOT", PeerKindLeaders: "LEADERS",
	PeerKindRequest: "REQUEST", PeerKindResponse: "RESPONSE", PeerKindChunk: "CHUNK", PeerKindAck: "ACK",
}

// Known reports whether this build knows the kind. A frame of an unknown kind is
// counted and passed over: a newer broker may say more than an older one understands.
func (k PeerKind) Known() bool { return k != 0 && int(k) < len(peerKindNames) }

func (k PeerKind) String() string {
	if k.Known() {
		return peerKindNames[k]
	}
	return "UNKNOWN"
}

// PeerHeader is the decoded header of a peer frame.
type PeerHeader struct {
	Length  uint32 // bytes after the length field: body length + 12
	Kind    PeerKind
	Version uint16 // of the kind's body, from 1
	Number  uint32 // of the request, else 0
}

// BodySize is the number of bytes in the frame's body. It holds for headers that
// ParsePeerHeader returned.
func (h *PeerHeader) BodySize() int { return int(h.Length) - minFrameLength }

// TotalSize is the number of bytes of header and body together.
func (h *PeerHeader) TotalSize() int { return int(h.Length) + lengthSize }

// PutPeerHeader writes the header to dst[:HeaderSize].
func PutPeerHeader(dst []byte, h PeerHeader) {
	_ = dst[HeaderSize-1]
	le := binary.LittleEndian
	le.PutUint32(dst[0:], h.Length)
	dst[4], dst[5] = byte(h.Kind), 0
	le.PutUint16(dst[6:], h.Version)
	le.PutUint32(dst[8:], h.Number)
	le.PutUint32(dst[12:], Checksum(dst[:headerChecksum]))
}

// AppendPeerFrame appends a whole frame with the message as its body.
func AppendPeerFrame(dst []byte, kind PeerKind, number uint32, m Message) []byte {
	start := len(dst)
	dst = append(dst, make([]byte, HeaderSize)...)
	dst = m.Append(dst)
	PutPeerHeader(dst[start:], PeerHeader{Length: FrameLength(len(dst) - start - HeaderSize), Kind: kind, Version: 1, Number: number})
	return dst
}

// ParsePeerHeader decodes and verifies the header at the start of src. It allocates
// nothing for a good header and believes nothing before the CRC matched.
//
// Errors: ErrHeaderShort if more bytes must arrive first, ErrHeaderChecksum for
// bytes that nobody wrote as a header, and an *Error with CodeMalformed or
// CodeTooLarge. All but the first end the connection. Kind, version and number are
// not judged here.
func ParsePeerHeader(src []byte) (PeerHeader, error) {
	if len(src) < HeaderSize {
		return PeerHeader{}, ErrHeaderShort
	}
	le := binary.LittleEndian
	if Checksum(src[:headerChecksum]) != le.Uint32(src[12:]) {
		return PeerHeader{}, ErrHeaderChecksum
	}
	h := PeerHeader{Length: le.Uint32(src), Kind: PeerKind(src[4]), Version: le.Uint16(src[6:]), Number: le.Uint32(src[8:])}
	switch {
	case h.Length < minFrameLength:
		return h, Errorf(CodeMalformed, "peer frame length %d is below the header's %d bytes", h.Length, minFrameLength)
	case h.Length > MaxPeerFrameBytes:
		return h, Errorf(CodeTooLarge, "peer frame length %d is above the limit of %d bytes", h.Length, MaxPeerFrameBytes)
	case src[5] != 0:
		return h, Errorf(CodeMalformed, "peer frame flags %#02x are reserved", src[5])
	}
	return h, nil
}

// PeerHello opens a connection: HELLO of the dialer, WELCOME of the other side.
//
//	minVersion u16 | maxVersion u16 | minLevel u16 | maxLevel u16 | cluster 16 | node u32 | store 16 |
//	boot u64 | attempt u32 | clientAddress string | peerAddress string
type PeerHello struct {
	MinVersion, MaxVersion uint16   // range of peer protocol versions the broker speaks; both the chosen one in WELCOME
	MinLevel, MaxLevel     uint16   // range of feature levels the broker knows
	Cluster                [16]byte // all zero while the broker knows none
	Node                   uint32
	Store                  [16]byte
	// Boot grows with each start of the broker, Attempt with each HELLO and WELCOME
	// it sends to the other one: of two connections, the one with the higher pair is
	// the newer.
	Boot          uint64
	Attempt       uint32
	ClientAddress string // where the broker serves clients
	PeerAddress   string // where it serves peers
}

// Append implements Message.
func (m *PeerHello) Append(dst []byte) []byte {
	le := binary.LittleEndian
	dst = le.AppendUint16(dst, m.MinVersion)
	dst = le.AppendUint16(dst, m.MaxVersion)
	dst = le.AppendUint16(dst, m.MinLevel)
	dst = le.AppendUint16(dst, m.MaxLevel)
	dst = append(dst, m.Cluster[:]...)
	dst = le.AppendUint32(dst, m.Node)
	dst = append(dst, m.Store[:]...)
	dst = le.AppendUint64(dst, m.Boot)
	dst = le.AppendUint32(dst, m.Attempt)
	dst = appendString(dst, m.ClientAddress)
	return appendString(dst, m.PeerAddress)
}

// Parse implements Message.
func (m *PeerHello) Parse(src []byte) error {
	r := reader{src: src}
	m.MinVersion, m.MaxVersion = r.uint16(), r.uint16()
	m.MinLevel, m.MaxLevel = r.uint16(), r.uint16()
	m.Cluster = r.uuid()
	m.Node = r.uint32()
	m.Store = r.uuid()
	m.Boot = r.uint64()
	m.Attempt = r.uint32()
	m.ClientAddress = r.string()
	m.PeerAddress = r.string()
	return r.done("peer HELLO")
}

// PeerRefused answers a HELLO that is not welcome; the connection is closed after it.
//
//	code i16 | detail string
type PeerRefused struct {
	// Code is CLUSTER_MISMATCH, VERSION, REFUSED, NOT_MEMBER, FENCED if another data
	// directory has the broker's ID, or DUPLICATE if another connection between the two
	// brokers is kept.
	Code   ErrorCode
	Detail string // for people, at most MaxDetailBytes
}

// Append implements Message.
func (m *PeerRefused) Append(dst []byte) []byte {
	dst = binary.LittleEndian.AppendUint16(dst, uint16(m.Code))
	return appendDetail(dst, m.Detail)
}

// Parse implements Message.
func (m *PeerRefused) Parse(src []byte) error {
	r := reader{src: src}
	m.Code = ErrorCode(int16(r.uint16()))
	if m.Detail = r.string(); len(m.Detail) > MaxDetailBytes {
		r.fail("detail is too long")
	}
	return r.done("peer REFUSED")
}

// bytes splits n bytes off; of none it makes nil.
func (r *reader) bytes(n int) []byte {
	if n == 0 {
		return nil
	}
	return r.take(n)
}

// rest takes all that is left.
func (r *reader) rest() []byte { return r.bytes(len(r.src)) }

// peerReserved checks a field that must be zero.
func peerReserved(r *reader, v uint32) {
	if v != 0 {
		r.fail("reserved field is not zero")
	}
}
