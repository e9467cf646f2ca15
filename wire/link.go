package wire

import "encoding/binary"

// LINK_OPEN (11), LINK_CREDIT (12), LINK_CLOSE (13), DELIVER (14) and LINK_CLOSED
// (15), since version 1: a link streams one partition to one session. The broker
// pushes stored frames as they lie on disk, as far as the client has granted
// credit, and never past the high watermark.

// LinkOpenRequest starts a stream at an offset.
//
//	handle u32 | offset u64 | credit u32 | incarnation u32
type LinkOpenRequest struct {
	Handle uint32
	Offset Offset // the stream begins with the frame that holds it
	Credit uint32 // bytes of stream the client is ready to take
	// Incarnation is that of the partition when the client learned the offset, 0 if it
	// does not know.
	Incarnation uint32
}

// Append implements Message.
func (m *LinkOpenRequest) Append(dst []byte) []byte {
	dst = binary.LittleEndian.AppendUint32(dst, m.Handle)
	dst = binary.LittleEndian.AppendUint64(dst, uint64(m.Offset))
	dst = binary.LittleEndian.AppendUint32(dst, m.Credit)
	return binary.LittleEndian.AppendUint32(dst, m.Incarnation)
}

// Parse implements Message.
func (m *LinkOpenRequest) Parse(src []byte) error {
	r := reader{src: src}
	m.Handle = r.uint32()
	m.Offset = Offset(r.uint64())
	m.Credit = r.uint32()
	m.Incarnation = r.uint32()
	return r.done("LINK_OPEN request")
}

// LinkOpenResponse names the link.
//
//	link u32 | startOffset u64 | nextOffset u64
type LinkOpenResponse struct {
	Link        uint32 // ID of the frames that belong to the link
	StartOffset Offset // first readable offset of the partition
	NextOffset  Offset // high watermark
}

// Append implements Message.
func (m *LinkOpenResponse) Append(dst []byte) []byte {
	dst = binary.LittleEndian.AppendUint32(dst, m.Link)
	dst = binary.LittleEndian.AppendUint64(dst, uint64(m.StartOffset))
	return binary.LittleEndian.AppendUint64(dst, uint64(m.NextOffset))
}

// Parse implements Message.
func (m *LinkOpenResponse) Parse(src []byte) error {
	r := reader{src: src}
	m.Link = r.uint32()
	m.StartOffset = Offset(r.uint64())
	m.NextOffset = Offset(r.uint64())
	return r.done("LINK_OPEN response")
}

// LinkCredit grants more bytes of stream. It is not answered.
//
//	credit u32
type LinkCredit struct {
	Credit uint32 // bytes, added to what is left
}

// Append implements Message.
func (m *LinkCredit) Append(dst []byte) []byte {
	return binary.LittleEndian.AppendUint32(dst, m.Credit)
}

// Parse implements Message.
func (m *LinkCredit) Parse(src []byte) error {
	r := reader{src: src}
	m.Credit = r.uint32()
	return r.done("LINK_CREDIT")
}

// LinkClose ends a link from the client's side. The broker answers with
// LINK_CLOSED, code OK, after the last DELIVER.
type LinkClose = Empty

// Deliver carries a piece of the partition's stored frames. Pieces follow each
// other without gaps; a frame may span several. A link that has reached the high
// watermark gets one empty piece, so that the reader knows it is at the end.
//
//	nextOffset u64 | stream, up to MaxDeliverBytes
type Deliver struct {
	NextOffset Offset // high watermark when the piece was sent
	Stream     []byte
}

// DeliverPrefixSize is the number of bytes in front of the stream.
const DeliverPrefixSize = 8

// Append implements Message.
func (m *Deliver) Append(dst []byte) []byte { return append(m.AppendPrefix(dst), m.Stream...) }

// AppendPrefix appends the fields in front of the stream, for senders that hand
// the stream to the socket as slices of its own.
func (m *Deliver) AppendPrefix(dst []byte) []byte {
	return binary.LittleEndian.AppendUint64(dst, uint64(m.NextOffset))
}

// Parse implements Message. Stream is a view into src.
func (m *Deliver) Parse(src []byte) error {
	r := reader{src: src}
	m.NextOffset = Offset(r.uint64())
	m.Stream = r.take(len(r.src))
	return r.done("DELIVER")
}

// LinkClosed says that a link has ended and why. No frame of the link follows it.
//
//	code i16 | detail string
type LinkClosed = ErrorBody
