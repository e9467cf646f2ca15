package wire

import "encoding/binary"

// LIST_OFFSETS (10), since version 1: turns the start, the end or a time into an
// offset of one partition.

// OffsetKind says which offset is asked for.
type OffsetKind uint8

const (
	// OffsetEarliest is the first readable offset.
	OffsetEarliest OffsetKind = 0
	// OffsetLatest is the high watermark: one past the last readable offset.
	OffsetLatest OffsetKind = 1
	// OffsetAtTime is the first offset appended at or after a time, or the high
	// watermark if there is none.
	OffsetAtTime OffsetKind = 2
)

// ListOffsetsRequest asks for an offset.
//
//	handle u32 | kind u8 | timeMs i64
type ListOffsetsRequest struct {
	Handle uint32
	Kind   OffsetKind
	TimeMs int64 // ms since 1970, for OffsetAtTime
}

// Append implements Message.
func (m *ListOffsetsRequest) Append(dst []byte) []byte {
	dst = binary.LittleEndian.AppendUint32(dst, m.Handle)
	dst = append(dst, byte(m.Kind))
	return binary.LittleEndian.AppendUint64(dst, uint64(m.TimeMs))
}

// Parse implements Message.
func (m *ListOffsetsRequest) Parse(src []byte) error {
	r := reader{src: src}
	m.Handle = r.uint32()
	m.Kind = OffsetKind(r.uint8())
	m.TimeMs = int64(r.uint64())
	return r.done("LIST_OFFSETS request")
}

// ListOffsetsResponse is the offset.
//
//	offset u64 | epoch u32
type ListOffsetsResponse struct {
	Offset Offset
	Epoch  uint32
}

// Append implements Message.
func (m *ListOffsetsResponse) Append(dst []byte) []byte {
	dst = binary.LittleEndian.AppendUint64(dst, uint64(m.Offset))
	return binary.LittleEndian.AppendUint32(dst, m.Epoch)
}

// Parse implements Message.
func (m *ListOffsetsResponse) Parse(src []byte) error {
	r := reader{src: src}
	m.Offset = Offset(r.uint64())
	m.Epoch = r.uint32()
	return r.done("LIST_OFFSETS response")
}
