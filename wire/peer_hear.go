package wire

import "encoding/binary"

// PeerHears is the body of HEAR, a request: does the other broker hear a node with a data
// directory?
//
//	node u32 | store 16
type PeerHears struct {
	Node  uint32
	Store [16]byte
}

// Append implements Message.
func (m *PeerHears) Append(dst []byte) []byte {
	return append(binary.LittleEndian.AppendUint32(dst, m.Node), m.Store[:]...)
}

// Parse implements Message.
func (m *PeerHears) Parse(src []byte) error {
	r := reader{src: src}
	m.Node = r.uint32()
	m.Store = r.uuid()
	return r.done("peer HEAR")
}

// PeerHeard is the answer: it is up and hears the broker that was asked, too.
//
//	heard bool
type PeerHeard struct{ Heard bool }

// Append implements Message.
func (m *PeerHeard) Append(dst []byte) []byte { return appendBool(dst, m.Heard) }

// Parse implements Message.
func (m *PeerHeard) Parse(src []byte) error {
	r := reader{src: src}
	m.Heard = r.bool()
	return r.done("peer HEARD")
}
