package wire

import "encoding/binary"

// ALIAS (22), since version 1: names that stand for a destination or for some of its
// partitions. The answer is empty and comes when the node that gives it knows of the change;
// METADATA tells what aliases there are.

// AliasOp is what is to become of an alias.
type AliasOp uint8

// The operations.
const (
	AliasCreate AliasOp = 0 // it must not exist
	AliasAlter  AliasOp = 1 // it must exist, and stands for something else from one moment on
	AliasRemove AliasOp = 2 // only the name counts
)

// Alias is a name for some partitions of a destination.
//
//	name string | destination string | count u32, each: partition u32
type Alias struct {
	Name        string
	Destination string
	Partitions  []uint32 // ascending in answers; none: all
}

const (
	aliasMinSize      = 2 + 2 + 4
	aliasPartitionLen = 4
)

// Size is the number of bytes of the alias in a message.
func (m *Alias) Size() int {
	return aliasMinSize + len(m.Name) + len(m.Destination) + aliasPartitionLen*len(m.Partitions)
}

func (m *Alias) append(dst []byte) []byte {
	dst = appendString(appendString(dst, m.Name), m.Destination)
	dst = binary.LittleEndian.AppendUint32(dst, uint32(len(m.Partitions)))
	for _, n := range m.Partitions {
		dst = binary.LittleEndian.AppendUint32(dst, n)
	}
	return dst
}

func (m *Alias) read(r *reader) {
	m.Name, m.Destination, m.Partitions = r.string(), r.string(), nil
	if n := r.count(aliasPartitionLen); n > 0 {
		m.Partitions = make([]uint32, n)
		for i := range m.Partitions {
			m.Partitions[i] = r.uint32()
		}
	}
}

// AliasRequest asks for an operation.
//
//	op u8 | alias
type AliasRequest struct {
	Op    AliasOp
	Alias Alias
}

// Append implements Message.
func (m *AliasRequest) Append(dst []byte) []byte { return m.Alias.append(append(dst, byte(m.Op))) }

// Parse implements Message.
func (m *AliasRequest) Parse(src []byte) error {
	r := reader{src: src}
	if m.Op = AliasOp(r.uint8()); m.Op > AliasRemove {
		r.fail("no such operation")
	}
	m.Alias.read(&r)
	return r.done("ALIAS request")
}
