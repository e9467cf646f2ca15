package wire

import "encoding/binary"

// OPEN_PARTITION (8), since version 1: interns a partition in the session.
// PRODUCE, LIST_OFFSETS and LINK_OPEN name it by the handle from then on.

// OpenPartitionRequest names a partition. Opening it again gives the same handle.
//
//	destination string | partition u32
type OpenPartitionRequest struct {
	Destination string
	Partition   uint32
}

// Append implements Message.
func (m *OpenPartitionRequest) Append(dst []byte) []byte {
	dst = appendString(dst, m.Destination)
	return binary.LittleEndian.AppendUint32(dst, m.Partition)
}

// Parse implements Message.
func (m *OpenPartitionRequest) Parse(src []byte) error {
	r := reader{src: src}
	m.Destination = r.string()
	m.Partition = r.uint32()
	return r.done("OPEN_PARTITION request")
}

// OpenPartitionResponse is the handle and what a client needs to know about the
// partition.
//
//	handle u32 | destinationID 16 | epoch u32 | startOffset u64 | nextOffset u64 | slotVersion u32 |
//	recordIndex bool | maxRecordBytes u32 | incarnation u32
type OpenPartitionResponse struct {
	Handle         uint32 // valid in this session until the destination is deleted
	DestinationID  [16]byte
	Epoch          uint32
	StartOffset    Offset
	NextOffset     Offset // high watermark
	SlotVersion    uint32
	RecordIndex    bool   // batches must carry a record index
	MaxRecordBytes uint32 // largest encoded record
	Incarnation    uint32 // rises when acknowledged records were lost: give it back in LINK_OPEN
}

// Append implements Message.
func (m *OpenPartitionResponse) Append(dst []byte) []byte {
	le := binary.LittleEndian
	dst = le.AppendUint32(dst, m.Handle)
	dst = append(dst, m.DestinationID[:]...)
	dst = le.AppendUint32(dst, m.Epoch)
	dst = le.AppendUint64(dst, uint64(m.StartOffset))
	dst = le.AppendUint64(dst, uint64(m.NextOffset))
	dst = le.AppendUint32(dst, m.SlotVersion)
	dst = appendBool(dst, m.RecordIndex)
	dst = le.AppendUint32(dst, m.MaxRecordBytes)
	return le.AppendUint32(dst, m.Incarnation)
}

// Parse implements Message.
func (m *OpenPartitionResponse) Parse(src []byte) error {
	r := reader{src: src}
	m.Handle = r.uint32()
	m.DestinationID = r.uuid()
	m.Epoch = r.uint32()
	m.StartOffset = Offset(r.uint64())
	m.NextOffset = Offset(r.uint64())
	m.SlotVersion = r.uint32()
	m.RecordIndex = r.bool()
	m.MaxRecordBytes = r.uint32()
	m.Incarnation = r.uint32()
	return r.done("OPEN_PARTITION response")
}
