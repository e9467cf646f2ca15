package wire

import "encoding/binary"

// GROUP_DELIVER (26), since version 1: records of a group on their way to a consumer, as
// they are stored. The grants say which of them are the consumer's; the others it skips.

// DeliverKind is how the bytes of a GROUP_DELIVER are to be read. Numbers are never reused.
type DeliverKind uint8

// The kinds.
const (
	// DeliverBatches: stored body batches, whole, one after the other, see NextBodyBatch.
	DeliverBatches DeliverKind = 1
	// DeliverRecords: a run of records of one batch that is not compressed, see RecordRun:
	//
	//	first u32 | count u32 | publisher u64 | batch header 61 | zero 3 | count × index entry 16 | records
	DeliverRecords DeliverKind = 2
	// DeliverSubstitute: a batch of one record that an operator has put in the place of the
	// stored one.
	DeliverSubstitute DeliverKind = 3
)

// GrantFlags say what is known of the deliveries before.
type GrantFlags uint8

// The flags.
const (
	// GrantRedelivered: the record was, or may have been, delivered before.
	GrantRedelivered GrantFlags = 1 << 0
	// GrantAtLeast: the number of deliveries is a lower bound.
	GrantAtLeast GrantFlags = 1 << 1
)

// Grant is a lease of a range of records. As an item:
//
//	offset u64 | count u32 | epoch u64 | deliveries u16 | attempts u16 | flags u8 | zero 3
type Grant struct {
	Offset     Offset
	Count      uint32 // at least 1
	Epoch      Index
	Deliveries uint16 // including this one; 1<<16 - 1 stands for all above
	Attempts   uint16 // that have failed
	Flags      GrantFlags
}

// GrantSize is the number of bytes of one grant.
const GrantSize = 28

// GroupDeliver is the body of GROUP_DELIVER.
//
//	kind u8 | zero u8 | grants u16 | next u64 | grants × 28 | bytes
type GroupDeliver struct {
	Kind DeliverKind
	// Next is the partition's next offset when the frame was made: what a consumer lags
	// behind.
	Next   Offset
	Grants []Grant // by ascending offset, none twice
	Bytes  []byte
}

// GroupDeliverPrefixSize is the number of bytes in front of the grants.
const GroupDeliverPrefixSize = 12

// AppendPrefix appends everything in front of the bytes, for senders that hand those to
// the socket as slices of their own. At most 65,535 grants fit.
func (m *GroupDeliver) AppendPrefix(dst []byte) []byte {
	le := binary.LittleEndian
	dst = append(dst, byte(m.Kind), 0)
	dst = le.AppendUint16(dst, uint16(len(m.Grants)))
	dst = le.AppendUint64(dst, uint64(m.Next))
	for i := range m.Grants {
		g := &m.Grants[i]
		dst = appendSpan(dst, g.Offset, g.Count, g.Epoch)
		dst = le.AppendUint16(dst, g.Deliveries)
		dst = le.AppendUint16(dst, g.Attempts)
		dst = append(dst, byte(g.Flags), 0, 0, 0)
	}
	return dst
}

// Append implements Message.
func (m *GroupDeliver) Append(dst []byte) []byte { return append(m.AppendPrefix(dst), m.Bytes...) }

// Parse implements Message. Bytes is a view into src; the memory of m.Grants is used again.
func (m *GroupDeliver) Parse(src []byte) error {
	r := reader{src: src}
	m.Kind = DeliverKind(r.uint8())
	r.zero(1)
	n := int(r.uint16())
	m.Next = Offset(r.uint64())
	m.Grants = m.Grants[:0]
	if n == 0 || n*GrantSize > len(r.src) {
		m.Grants = nil
		if n > 0 {
			r.fail("count is larger than the bytes that follow")
		}
		n = 0
	}
	end := Offset(0)
	for range n {
		var g Grant
		var next Offset
		g.Offset, g.Count, g.Epoch, next = r.span()
		r.ascending(g.Offset, end)
		g.Deliveries = r.uint16()
		g.Attempts = r.uint16()
		g.Flags = GrantFlags(r.uint8())
		r.zero(3)
		if r.fault != "" {
			break
		}
		end = next
		m.Grants = append(m.Grants, g)
	}
	m.Bytes = r.take(len(r.src))
	return r.done("GROUP_DELIVER")
}
