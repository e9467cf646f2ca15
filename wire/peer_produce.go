package wire

import "encoding/binary"

// PeerBatch is the body of PRODUCE, a request: a node has something to append to a partition that
// another one leads.
//
//	destination 16 | partition u32 | index length u32 | index | batch
type PeerBatch struct {
	Destination  [16]byte
	Partition    uint32
	Index, Batch []byte // views when parsed
}

// Append implements Message.
func (m *PeerBatch) Append(dst []byte) []byte {
	dst = append(dst, m.Destination[:]...)
	dst = binary.LittleEndian.AppendUint32(dst, m.Partition)
	dst = binary.LittleEndian.AppendUint32(dst, uint32(len(m.Index)))
	return append(append(dst, m.Index...), m.Batch...)
}

// Parse implements Message.
func (m *PeerBatch) Parse(src []byte) error {
	r := reader{src: src}
	m.Destination = r.uuid()
	m.Partition = r.uint32()
	m.Index = r.take(r.count(1))
	m.Batch = r.take(len(r.src))
	return r.done("peer PRODUCE")
}
