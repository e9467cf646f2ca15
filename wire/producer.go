package wire

import "encoding/binary"

// INIT_PRODUCER (7), since version 1, with the holder since 2 and the partitions since 3: gives a
// producer the identity under which its batches are deduplicated.

// InitProducerRequest asks for a producer ID.
//
//	name string | destination string | partitions: count u32, each u32 | holder u64 |
//	renews bool | patience ms u32
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
	// Destination is where the producer will write. The epochs before are fenced in its
	// Partitions, all if there are none, before the answer. Empty: nowhere; what the
	// producer writes then fences them where it writes.
	Destination string
	Partitions  []uint32
	// PatienceMs is how long the fences may take, in milliseconds; 0: as the broker has it.
	PatienceMs uint32
}

// Append implements Message.
func (m *InitProducerRequest) Append(dst []byte) []byte {
	dst = appendString(dst, m.Name)
	dst = appendNumbers(appendString(dst, m.Destination), m.Partitions)
	dst = binary.LittleEndian.AppendUint64(dst, m.Holder)
	return binary.LittleEndian.AppendUint32(appendBool(dst, m.Renews), m.PatienceMs)
}

// Parse implements Message.
func (m *InitProducerRequest) Parse(src []byte) error {
	r := reader{src: src}
	m.Name = r.string()
	m.Destination = r.string()
	m.Partitions = r.numbers()
	m.Holder = r.uint64()
	m.Renews = r.bool()
	m.PatienceMs = r.uint32()
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
