package group

import (
	"encoding/binary"
	"maps"
	"math"
)

// Members are the consumers of a group in all partitions of its destination, and which
// of them has which partitions. One partition of the destination keeps them.
type Members struct {
	List    map[Session]*Membership
	Binding Binding
	// Partitions are those that the binding gives to each session, ascending.
	Partitions map[Session][]uint32
}

// Membership is one consumer of a group. It is not changed once it is in Members.
type Membership struct {
	Session, Predecessor Session
	Name                 string
	Node                 uint32 // that its connection is to
	Flags                uint8
}

func newMembers() *Members {
	return &Members{List: make(map[Session]*Membership), Partitions: make(map[Session][]uint32)}
}

func (m *Members) clone() *Members {
	return &Members{List: maps.Clone(m.List), Binding: m.Binding, Partitions: maps.Clone(m.Partitions)}
}

// enrol lists a consumer in the place of its predecessor, or takes it off the list.
func (m *Members) enrol(on bool, c *Membership) {
	if !on {
		delete(m.List, c.Session)
		return
	}
	delete(m.List, c.Predecessor)
	m.List[c.Session] = c
}

// AppendMember appends the command that lists a consumer, or takes it off the list.
//
//	group u64 | on u8 | session 16 | name string | node u32 | flags u8 | predecessor 16
func AppendMember(dst []byte, id ID, on bool, c *Membership) []byte {
	dst, at := begin(dst, CommandMember, id)
	dst = appendBool(dst, on)
	return end(appendMembership(dst, c), at)
}

func appendMembership(dst []byte, c *Membership) []byte {
	dst = appendString(append(dst, c.Session[:]...), c.Name)
	dst = append(binary.LittleEndian.AppendUint32(dst, c.Node), c.Flags)
	return append(dst, c.Predecessor[:]...)
}

// AppendBinding appends the command that replaces the binding.
//
//	group u64 | generation u32 | counter u32 | count u32, each: session 16, count uvarint, partitions uvarint…
func AppendBinding(dst []byte, id ID, b Binding, partitions map[Session][]uint32) []byte {
	dst, at := begin(dst, CommandBinding, id)
	return end(appendBinding(dst, b, partitions), at)
}

func appendBinding(dst []byte, b Binding, partitions map[Session][]uint32) []byte {
	dst = binary.LittleEndian.AppendUint32(dst, b.Generation)
	dst = binary.LittleEndian.AppendUint32(dst, b.Counter)
	dst = binary.LittleEndian.AppendUint32(dst, uint32(len(partitions)))
	for _, session := range sortedSessions(partitions) {
		dst = append(dst, session[:]...)
		dst = binary.AppendUvarint(dst, uint64(len(partitions[session])))
		for _, p := range partitions[session] {
			dst = binary.AppendUvarint(dst, uint64(p))
		}
	}
	return dst
}

func (r *reader) membership() *Membership {
	c := &Membership{Session: r.session(), Name: r.string(), Node: r.uint32(), Flags: r.uint8()}
	c.Predecessor = r.session()
	return c
}

func (r *reader) binding() (b Binding, partitions map[Session][]uint32) {
	b = Binding{Generation: r.uint32(), Counter: r.uint32()}
	n := r.count(uint64(r.uint32()), 16+1)
	partitions = make(map[Session][]uint32, n)
	var last Session
	for k := range n {
		session := r.session()
		if k > 0 && compareSessions(last, session) >= 0 {
			r.fail("sessions do not ascend")
		}
		last = session
		list := make([]uint32, 0, r.count(r.uvarint(), 1))
		for range cap(list) {
			list = append(list, uint32(r.below(math.MaxUint32)))
		}
		partitions[session] = list
	}
	return b, partitions
}
