package wire

import "encoding/binary"

// INIT_PRODUCER (7), since version 1, with the holder since 2: gives a producer the identity under which
// its batches are deduplicated.

// InitProducerRequest asks for a producer ID.
//
//	name string | reserved count u32, zero | holder u64 | renews bool
type InitProducerRequest struct {
	// Name makes the identity durable: the next request with this name gets the
	// same ID with a higher epoch and fences this one. Empty = a fresh ID.
	Name string
	// Holder tells those apart that open a name: a random number that one of them
	// draws once. Without a name it says nothing.
	Holder uint64
	// Renews asks for a higher epoch for the holder that opened the name last; any
	// other gets FENCED, and nothing changes. Otherwise the name changes its holder.
	Renews bool
}

// Append implements Message.
func (m *InitProducerRequest) Append(dst []byte) []byte {
	dst = appendString(dst, m.Name)
	dst = binary.LittleEndian.AppendUint32(dst, 0)
	dst = binary.LittleEndian.AppendUint64(dst, m.Holder)
	return appendBool(dst, m.Renews)
}

// Parse implements Message.
func (m *InitProducerRequest) Parse(src []byte) error {
	r := reader{src: src}
	m.Name = r.string()
	if r.uint32() != 0 {
		r.fail("reserved list of partitions is not empty")
	}
	m.Holder = r.uint64()
	m.Renews = r.bool()
	return r.done("INIT_PRODUCER request")
}

// InitProducerResponse is the identity.
//
//	producerID i64 | epoch i16
type InitProducerResponse struct {
	ProducerID int64 // never negative
	Epoch      int16
}

// Append implements Message.
func (m *InitProducerResponse) Append(dst []byte) []byte {
	dst = binary.LittleEndian.AppendUint64(dst, uint64(m.ProducerID))
	return binary.LittleEndian.AppendUint16(dst, uint16(m.Epoch))
}

// Parse implements Message.
func (m *InitProducerResponse) Parse(src []byte) error {
	r := reader{src: src}
	m.ProducerID = int64(r.uint64())
	m.Epoch = int16(r.uint16())
	return r.done("INIT_PRODUCER response")
}
