package wire

import "encoding/binary"

// PeerFencing is the body of FENCE, a request: the epochs of a producer below one are to end
// in a partition. A broker that does not lead it passes the request on, unless it has come
// over MaxForwardHops nodes already.
//
// The answer to one that ends a producer of dead letters is its next sequence, u32; others have none.
//
//	destination 16 | partition u32 | epoch i16 | hops u8 | zero u8 | producerID i64
type PeerFencing struct {
	Destination [16]byte
	Partition   uint32
	Epoch       int16 // the first that does not end
	Hops        uint8 // brokers that have sent it
	ProducerID  int64
}

// Append implements Message.
func (m *PeerFencing) Append(dst []byte) []byte {
	dst = append(dst, m.Destination[:]...)
	dst = binary.LittleEndian.AppendUint32(dst, m.Partition)
	dst = binary.LittleEndian.AppendUint16(dst, uint16(m.Epoch))
	dst = append(dst, m.Hops, 0)
	return binary.LittleEndian.AppendUint64(dst, uint64(m.ProducerID))
}

// Parse implements Message.
func (m *PeerFencing) Parse(src []byte) error {
	r := reader{src: src}
	m.Destination = r.uuid()
	m.Partition = r.uint32()
	m.Epoch = int16(r.uint16())
	m.Hops = r.uint8()
	peerReserved(&r, uint32(r.uint8()))
	m.ProducerID = int64(r.uint64())
	return r.done("peer FENCE")
}
