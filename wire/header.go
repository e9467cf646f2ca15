package wire

import (
	"encoding/binary"
	"errors"
)

// Preface is what a client sends once, before its first frame. The line end
// makes a text protocol on the wrong port stop early, and nothing that another
// protocol sends first looks like it.
const Preface = "LKSTEP\r\n"

// The range of protocol versions that this build speaks.
const (
	MinProtocolVersion = 1
	MaxProtocolVersion = 1
)

// A protocol frame is a 16-byte header and a body. All integers are
// little-endian.
//
//	0              4        5       6          8
//	+--------------+--------+-------+----------+
//	| length       | opcode | flags | version  |
//	+--------------+--------+-------+----------+
//	| ID           | header CRC32C             |
//	+--------------+---------------------------+
//	8              12                         16
//	| body, length - 12 bytes                  |
//
// The length counts the bytes after its own field. The version is that of the
// opcode's body. The ID is the correlation ID of a request and of its answer, the
// link ID of LINK_CREDIT, LINK_CLOSE, DELIVER and LINK_CLOSED and of GROUP_OUTCOME to
// GROUP_LEAVE and GROUP_BINDING, and zero in an EVENT and a REPORT_DAMAGE. The CRC covers bytes [0, 12): with it, a length is never believed that
// nobody wrote.
const (
	// HeaderSize is the size of a protocol frame's header in bytes.
	HeaderSize = 16

	lengthSize      = 4
	minFrameLength  = HeaderSize - lengthSize
	headerChecksum  = 12 // bytes under the header CRC
	definedFlagBits = FlagResponse | FlagError
)

// Flags of a protocol frame.
type Flags uint8

const (
	// FlagResponse marks an answer to a request.
	FlagResponse Flags = 1 << 0
	// FlagError marks an answer whose body is an ErrorBody.
	FlagError Flags = 1 << 1
)

// Opcode says what a frame is.
type Opcode uint8

// The opcodes. Numbers are never reused.
const (
	OpHello          Opcode = 1
	OpPing           Opcode = 2
	OpMetadata       Opcode = 3
	OpCreate         Opcode = 4
	OpAlter          Opcode = 5
	OpDelete         Opcode = 6
	OpInitProducer   Opcode = 7
	OpOpenPartition  Opcode = 8
	OpProduce        Opcode = 9
	OpListOffsets    Opcode = 10
	OpLinkOpen       Opcode = 11
	OpLinkCredit     Opcode = 12
	OpLinkClose      Opcode = 13
	OpDeliver        Opcode = 14
	OpLinkClosed     Opcode = 15
	OpEvent          Opcode = 16
	OpReportDamage   Opcode = 17
	OpJoin           Opcode = 18
	OpNodeAdmin      Opcode = 19
	OpPartAdmin      Opcode = 20
	OpClusterStatus  Opcode = 21
	OpAlias          Opcode = 22
	OpGroupAttach    Opcode = 23
	OpGroupOutcome   Opcode = 24
	OpGroupAnswer    Opcode = 25
	OpGroupDeliver   Opcode = 26
	OpGroupCapacity  Opcode = 27
	OpGroupRevoke    Opcode = 28
	OpGroupLost      Opcode = 29
	OpGroupHeartbeat Opcode = 30
	OpGroupLeave     Opcode = 31
	OpGroupAdmin     Opcode = 32
	OpGroupOrder     Opcode = 33
	OpGroupBind      Opcode = 34
	OpGroupBinding   Opcode = 35
	OpTempOpen       Opcode = 36
	OpTempDeliver    Opcode = 37
	OpTempTaken      Opcode = 38
	OpTempSend       Opcode = 39
	OpPartRecover    Opcode = 40
)

var opcodeNames = [...]string{
	OpHello: "HELLO", OpPing: "PING", OpMetadata: "METADATA", OpCreate: "CREATE", OpAlter: "ALTER",
	OpDelete: "DELETE", OpInitProducer: "INIT_PRODUCER", OpOpenPartition: "OPEN_PARTITION",
	OpProduce: "PRODUCE", OpListOffsets: "LIST_OFFSETS", OpLinkOpen: "LINK_OPEN",
	OpLinkCredit: "LINK_CREDIT", OpLinkClose: "LINK_CLOSE", OpDeliver: "DELIVER",
	OpLinkClosed: "LINK_CLOSED", OpEvent: "EVENT",
	OpReportDamage: "REPORT_DAMAGE", OpJoin: "JOIN", OpNodeAdmin: "NODE_ADMIN", OpPartAdmin: "PARTITION_ADMIN",
	OpClusterStatus: "CLUSTER_STATUS", OpAlias: "ALIAS",
	OpGroupAttach: "GROUP_ATTACH", OpGroupOutcome: "GROUP_OUTCOME", OpGroupAnswer: "GROUP_ANSWER", OpGroupDeliver: "GROUP_DELIVER",
	OpGroupCapacity: "GROUP_CAPACITY", OpGroupRevoke: "GROUP_REVOKE", OpGroupLost: "GROUP_LOST", OpGroupHeartbeat: "GROUP_HEARTBEAT",
	OpGroupLeave: "GROUP_LEAVE", OpGroupAdmin: "GROUP_ADMIN", OpGroupOrder: "GROUP_ORDER", OpGroupBind: "GROUP_BIND", OpGroupBinding: "GROUP_BINDING",
	OpTempOpen: "TEMPORARY_OPEN", OpTempDeliver: "TEMPORARY_DELIVER", OpTempTaken: "TEMPORARY_TAKEN", OpTempSend: "TEMPORARY_SEND",
	OpPartRecover: "PARTITION_RECOVER",
}

// Known reports whether this build knows the opcode.
func (o Opcode) Known() bool { return int(o) < len(opcodeNames) && opcodeNames[o] != "" }

func (o Opcode) String() string {
	if o.Known() {
		return opcodeNames[o]
	}
	return "UNKNOWN"
}

// Version is the version of the opcode's body that this build writes and reads:
// 5 for METADATA, which has changed four times, 4 for CREATE and ALTER, 3 for INIT_PRODUCER
// and CLUSTER_STATUS, 2 for DELETE, PARTITION_ADMIN and JOIN, which have changed once, 1 for
// all others.
func (o Opcode) Version() uint16 {
	switch o {
	case OpMetadata:
		return metadataWithLetters
	case OpCreate, OpAlter:
		return settingsWithLetters
	case OpInitProducer, OpClusterStatus:
		return 3
	case OpDelete, OpPartAdmin, OpJoin:
		return 2
	}
	return 1
}

// The versions of bodies since which settings have dead letters.
const (
	metadataWithLetters = 5
	settingsWithLetters = 4 // of CREATE and ALTER
)

// Oldest is the lowest version of the opcode's body that this build still understands.
func (o Opcode) Oldest() uint16 {
	switch o {
	case OpMetadata, OpCreate, OpAlter:
		return o.Version() - 1
	}
	return o.Version()
}

// SupportedOpcodes lists the opcodes of this build with the versions of their
// bodies, in ascending order. The caller owns the slice.
func SupportedOpcodes() []OpcodeRange {
	ranges := make([]OpcodeRange, 0, len(opcodeNames)-1)
	for i := range opcodeNames {
		if o := Opcode(i); o.Known() {
			ranges = append(ranges, OpcodeRange{Opcode: o, Min: o.Oldest(), Max: o.Version()})
		}
	}
	return ranges
}

var (
	// ErrHeaderShort is returned when fewer than HeaderSize bytes are given. It
	// only means that more bytes must arrive.
	ErrHeaderShort = errors.New("protocol frame header is cut short")
	// ErrHeaderChecksum is returned when a header does not match its CRC. The
	// stream cannot be trusted any more: close it without an answer.
	ErrHeaderChecksum = errors.New("protocol frame header checksum mismatch")
)

// Header is the decoded header of a protocol frame.
type Header struct {
	Length  uint32 // bytes after the length field: body length + 12
	Opcode  Opcode
	Flags   Flags
	Version uint16 // of the opcode's body, from 1
	ID      uint32 // correlation ID or link ID
}

// FrameLength is the length field of a frame with a body of n bytes.
func FrameLength(n int) uint32 { return uint32(n) + minFrameLength }

// BodySize is the number of bytes in the frame's body. It holds for headers that
// ParseHeader returned.
func (h *Header) BodySize() int { return int(h.Length) - minFrameLength }

// TotalSize is the number of bytes of header and body together.
func (h *Header) TotalSize() int { return int(h.Length) + lengthSize }

// PutHeader writes the header to dst[:HeaderSize].
func PutHeader(dst []byte, h Header) {
	_ = dst[HeaderSize-1]
	le := binary.LittleEndian
	le.PutUint32(dst[0:], h.Length)
	dst[4] = byte(h.Opcode)
	dst[5] = byte(h.Flags)
	le.PutUint16(dst[6:], h.Version)
	le.PutUint32(dst[8:], h.ID)
	le.PutUint32(dst[12:], Checksum(dst[:headerChecksum]))
}

// AppendHeader appends the header. h.Length must be set, see FrameLength.
func AppendHeader(dst []byte, h Header) []byte {
	dst = append(dst, make([]byte, HeaderSize)...)
	PutHeader(dst[len(dst)-HeaderSize:], h)
	return dst
}

// AppendFrame appends a frame with the message as its body and sets the length;
// h.Length is ignored.
func AppendFrame(dst []byte, h Header, m Message) []byte {
	start := len(dst)
	dst = append(dst, make([]byte, HeaderSize)...)
	dst = appendMessage(dst, m, h.Version)
	h.Length = FrameLength(len(dst) - start - HeaderSize)
	PutHeader(dst[start:], h)
	return dst
}

// ParseHeader decodes and verifies the header at the start of src. It allocates
// nothing for a good header and believes nothing before the CRC matched.
//
// Errors: ErrHeaderShort if more bytes must arrive first, ErrHeaderChecksum for
// bytes that nobody wrote as a header (close without an answer), and an *Error
// with CodeMalformed or CodeTooLarge (answer, then close). The limit that is
// checked is MaxFrameBytes; sessions with a lower one compare h.Length
// themselves. Opcode and version are not judged here.
func ParseHeader(src []byte) (Header, error) {
	if len(src) < HeaderSize {
		return Header{}, ErrHeaderShort
	}
	le := binary.LittleEndian
	if Checksum(src[:headerChecksum]) != le.Uint32(src[12:]) {
		return Header{}, ErrHeaderChecksum
	}
	h := Header{
		Length:  le.Uint32(src),
		Opcode:  Opcode(src[4]),
		Flags:   Flags(src[5]),
		Version: le.Uint16(src[6:]),
		ID:      le.Uint32(src[8:]),
	}
	switch {
	case h.Length < minFrameLength:
		return h, Errorf(CodeMalformed, "frame length %d is below the header's %d bytes", h.Length, minFrameLength)
	case h.Length > MaxFrameBytes:
		return h, Errorf(CodeTooLarge, "frame length %d is above the limit of %d bytes", h.Length, MaxFrameBytes)
	case h.Flags&^definedFlagBits != 0:
		return h, Errorf(CodeMalformed, "frame flags %#02x have reserved bits set", uint8(h.Flags))
	}
	return h, nil
}
