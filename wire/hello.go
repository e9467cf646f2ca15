package wire

import "encoding/binary"

// HELLO (1), since version 1: must be the first frame after the preface. The
// client states the protocol versions and features it knows, the broker chooses
// and announces its identity and limits. A broker that shares no version answers
// VERSION and closes.

// Features of a session, bits of HelloRequest.Features.
const (
	// FeatureFollowsRedirects says that the client goes to the node that NOT_LEADER
	// names; without it nodes forward its requests.
	FeatureFollowsRedirects = 1 << 0
	// FeatureTopologyEvents says that the client wants an EVENT when leaders change.
	FeatureTopologyEvents = 1 << 1
)

// HelloRequest opens a session.
//
//	minVersion u16 | maxVersion u16 | features u64 | clientName string | clusterID string
type HelloRequest struct {
	MinVersion uint16 // range of protocol versions the client speaks
	MaxVersion uint16
	Features   uint64 // bits the client understands; those that the broker does not know are ignored
	ClientName string // for logs and metrics; may be empty
	ClusterID  string // the cluster this client was connected to before; empty at first
}

// Append implements Message.
func (m *HelloRequest) Append(dst []byte) []byte {
	le := binary.LittleEndian
	dst = le.AppendUint16(dst, m.MinVersion)
	dst = le.AppendUint16(dst, m.MaxVersion)
	dst = le.AppendUint64(dst, m.Features)
	dst = appendString(dst, m.ClientName)
	return appendString(dst, m.ClusterID)
}

// Parse implements Message.
func (m *HelloRequest) Parse(src []byte) error {
	r := reader{src: src}
	m.read(&r)
	return r.done("HELLO request")
}

func (m *HelloRequest) read(r *reader) {
	m.MinVersion = r.uint16()
	m.MaxVersion = r.uint16()
	m.Features = r.uint64()
	m.ClientName = r.string()
	m.ClusterID = r.string()
}

// HelloResponse accepts a session.
//
//	version u16 | features u64 | clusterID string | nodeID u32 | serverVersion string |
//	maxFrameBytes u32 | maxRecordBytes u32 | maxInFlightRequests u32 | maxInFlightBytes u32 |
//	idleTimeoutMs u32 | count u32, each: opcode u8 | min u16 | max u16
type HelloResponse struct {
	Version             uint16 // protocol version of this session
	Features            uint64 // bits of the request that the broker grants
	ClusterID           string
	NodeID              uint32
	ServerVersion       string        // for people
	MaxFrameBytes       uint32        // largest length field the broker accepts
	MaxRecordBytes      uint32        // largest encoded record; a destination may allow less
	MaxInFlightRequests uint32        // requests without an answer; past it the broker stops reading
	MaxInFlightBytes    uint32        // bytes of those requests
	IdleTimeoutMs       uint32        // a session silent for so long is closed: send a PING before
	Opcodes             []OpcodeRange // what the broker understands
}

// OpcodeRange is the range of body versions that a broker understands.
type OpcodeRange struct {
	Opcode   Opcode
	Min, Max uint16 // inclusive
}

const opcodeRangeSize = 5

// Append implements Message.
func (m *HelloResponse) Append(dst []byte) []byte {
	le := binary.LittleEndian
	dst = le.AppendUint16(dst, m.Version)
	dst = le.AppendUint64(dst, m.Features)
	dst = appendString(dst, m.ClusterID)
	dst = le.AppendUint32(dst, m.NodeID)
	dst = appendString(dst, m.ServerVersion)
	dst = le.AppendUint32(dst, m.MaxFrameBytes)
	dst = le.AppendUint32(dst, m.MaxRecordBytes)
	dst = le.AppendUint32(dst, m.MaxInFlightRequests)
	dst = le.AppendUint32(dst, m.MaxInFlightBytes)
	dst = le.AppendUint32(dst, m.IdleTimeoutMs)
	dst = le.AppendUint32(dst, uint32(len(m.Opcodes)))
	for _, o := range m.Opcodes {
		dst = append(dst, byte(o.Opcode))
		dst = le.AppendUint16(dst, o.Min)
		dst = le.AppendUint16(dst, o.Max)
	}
	return dst
}

// Parse implements Message.
func (m *HelloResponse) Parse(src []byte) error {
	r := reader{src: src}
	m.Version = r.uint16()
	m.Features = r.uint64()
	m.ClusterID = r.string()
	m.NodeID = r.uint32()
	m.ServerVersion = r.string()
	m.MaxFrameBytes = r.uint32()
	m.MaxRecordBytes = r.uint32()
	m.MaxInFlightRequests = r.uint32()
	m.MaxInFlightBytes = r.uint32()
	m.IdleTimeoutMs = r.uint32()
	m.Opcodes = nil
	if n := r.count(opcodeRangeSize); n > 0 {
		m.Opcodes = make([]OpcodeRange, n)
		for i := range m.Opcodes {
			m.Opcodes[i] = OpcodeRange{Opcode: Opcode(r.uint8()), Min: r.uint16(), Max: r.uint16()}
		}
	}
	return r.done("HELLO response")
}
