package wire

import "encoding/binary"

// GROUP_BIND (34) and GROUP_BINDING (35), since version 1: a consumer joins a group at
// the group's coordinator, the leader of one of the destination's partitions, and is told
// which partitions to attach to. The link is kept alive with GROUP_HEARTBEAT and ends
// with GROUP_LEAVE.

// BindRequest asks for partitions. A partition that does not coordinate the group answers
// NOT_COORDINATOR, with the number of the one that does as the next of the error.
//
//	handle u32 | group string | session 16 | predecessor 16 | name string | node u32 | flags u8 |
//	generation u32 | counter u32 | count u32, each: partition u32
type BindRequest struct {
	Handle      uint32
	Group       string
	Session     [16]byte
	Predecessor [16]byte // the session that this one takes the place of, zero: none
	Name        string   // of the consumer, may be empty
	Node        uint32   // that the consumer is nearest to, 0: none
	Flags       AttachFlags
	Generation  uint32 // of the binding that it knows, 0 and 0: none
	Counter     uint32
	Partitions  []uint32 // that the binding gives it, so that a new coordinator can leave them to it
}

// Append implements Message.
func (m *BindRequest) Append(dst []byte) []byte {
	le := binary.LittleEndian
	dst = le.AppendUint32(dst, m.Handle)
	dst = appendString(dst, m.Group)
	dst = append(dst, m.Session[:]...)
	dst = append(dst, m.Predecessor[:]...)
	dst = appendString(dst, m.Name)
	dst = le.AppendUint32(dst, m.Node)
	dst = append(dst, byte(m.Flags))
	dst = le.AppendUint32(dst, m.Generation)
	dst = le.AppendUint32(dst, m.Counter)
	return appendNumbers(dst, m.Partitions)
}

// Parse implements Message.
func (m *BindRequest) Parse(src []byte) error {
	r := reader{src: src}
	m.Handle = r.uint32()
	m.Group = r.string()
	m.Session = r.uuid()
	m.Predecessor = r.uuid()
	m.Name = r.string()
	m.Node = r.uint32()
	m.Flags = AttachFlags(r.uint8())
	m.Generation = r.uint32()
	m.Counter = r.uint32()
	m.Partitions = r.numbers()
	return r.done("GROUP_BIND request")
}

// BindResponse names the link and says which partitions are the consumer's.
//
//	link u32 | generation u32 | counter u32 | binding u8 | sessionMs u32 | count u32, each: partition u32 |
//	count u32, each: partition u32, that no consumer has
type BindResponse struct {
	Link       uint32
	Generation uint32
	Counter    uint32
	Binding    BindingPolicy
	SessionMs  uint32 // silence after which the consumer is taken off the list
	Partitions []uint32
	Uncovered  []uint32 // that no consumer of the group has, the first MaxUncovered of them
}

// Append implements Message.
func (m *BindResponse) Append(dst []byte) []byte {
	le := binary.LittleEndian
	dst = le.AppendUint32(dst, m.Link)
	dst = le.AppendUint32(dst, m.Generation)
	dst = le.AppendUint32(dst, m.Counter)
	dst = append(dst, byte(m.Binding))
	dst = le.AppendUint32(dst, m.SessionMs)
	return appendNumbers(appendNumbers(dst, m.Partitions), m.Uncovered)
}

// Parse implements Message.
func (m *BindResponse) Parse(src []byte) error {
	r := reader{src: src}
	m.Link = r.uint32()
	m.Generation = r.uint32()
	m.Counter = r.uint32()
	m.Binding = BindingPolicy(r.uint8())
	m.SessionMs = r.uint32()
	m.Partitions = r.numbers()
	m.Uncovered = r.numbers()
	return r.done("GROUP_BIND response")
}

// GroupBinding is the body of GROUP_BINDING: other partitions than before.
//
//	generation u32 | counter u32 | count u32, each: partition u32 |
//	count u32, each: partition u32, that no consumer has
type GroupBinding struct {
	Generation uint32
	Counter    uint32
	Partitions []uint32
	Uncovered  []uint32 // as in BindResponse
}

// MaxUncovered is how many partitions without a consumer a binding names.
const MaxUncovered = 64

// Append implements Message.
func (m *GroupBinding) Append(dst []byte) []byte {
	dst = binary.LittleEndian.AppendUint32(dst, m.Generation)
	dst = binary.LittleEndian.AppendUint32(dst, m.Counter)
	return appendNumbers(appendNumbers(dst, m.Partitions), m.Uncovered)
}

// Parse implements Message.
func (m *GroupBinding) Parse(src []byte) error {
	r := reader{src: src}
	m.Generation = r.uint32()
	m.Counter = r.uint32()
	m.Partitions = r.numbers()
	m.Uncovered = r.numbers()
	return r.done("GROUP_BINDING")
}

func appendNumbers(dst []byte, list []uint32) []byte {
	dst = binary.LittleEndian.AppendUint32(dst, uint32(len(list)))
	for _, v := range list {
		dst = binary.LittleEndian.AppendUint32(dst, v)
	}
	return dst
}

func (r *reader) numbers() (list []uint32) {
	for range r.count(4) {
		list = append(list, r.uint32())
	}
	return list
}
