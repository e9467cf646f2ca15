package wire

import "encoding/binary"

// A node that does not lead a partition forwards the requests of clients that do not
// follow redirects. It connects to the leader's port for other nodes, sends
// ForwardPreface and HELLO with the body below, and speaks the protocol for clients
// from then on.

// MaxForwardHops is how many nodes may forward a request one to the other: what one
// says about a leader may be old, but what two say in a row is a circle.
const MaxForwardHops = 2

// ForwardRequest is the HELLO of a session that is forwarded. It is answered with
// HelloResponse.
//
//	minVersion u16 | maxVersion u16 | features u64 | clientName string | clusterID string |
//	node u32 | hops u8 | clientAddress string
type ForwardRequest struct {
	HelloRequest         // of the client, as the node that forwards understood it; ClusterID is that node's
	Node          uint32 // that forwards
	Hops          uint8  // nodes that have forwarded, that one included: from 1
	ClientAddress string // for logs
}

// Append implements Message.
func (m *ForwardRequest) Append(dst []byte) []byte {
	dst = m.HelloRequest.Append(dst)
	dst = binary.LittleEndian.AppendUint32(dst, m.Node)
	dst = append(dst, m.Hops)
	return appendString(dst, m.ClientAddress)
}

// Parse implements Message.
func (m *ForwardRequest) Parse(src []byte) error {
	r := reader{src: src}
	m.HelloRequest.read(&r)
	m.Node = r.uint32()
	m.Hops = r.uint8()
	m.ClientAddress = r.string()
	return r.done("HELLO request of a forwarded session")
}
