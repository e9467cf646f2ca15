package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
)

// A stored frame is one Raft entry: a 64-byte header and the entry's body,
// padded with zeros to a multiple of eight bytes. Consumers receive frames as
// they are stored. All integers are little-endian.
//
//	 0        2      3      4              8
//	+--------+------+------+--------------+
//	| magic  | ver  | kind | record count |
//	+--------+------+------+--------------+
//	| term                                |  8
//	+-------------------------------------+
//	| index                               | 16
//	+-------------------------------------+
//	| base offset                         | 24
//	+-------------------------------------+
//	| append time (ms since 1970)         | 32
//	+------------------+------------------+
//	| body length      | body CRC32C      | 40
//	+------------------+------------------+
//	| prev header CRC  | header CRC32C    | 48
//	+------------------+------------------+
//	| replica-local word                  | 56
//	+-------------------------------------+
//	| body, zero padding to 8 bytes       | 64
//
// The header CRC covers bytes [0, 52) and with them `prev`, the header CRC of
// the predecessor: headers form a chain, and because a header holds the CRC of
// its body, the chain covers every byte but the replica-local word. Everything
// except that word is a pure function of the predecessor's header and the Raft
// entry, so all replicas write identical frames.
//
// Every version keeps magic, version and header CRC where they are, so that a
// newer frame is known as such and not taken for damage.
const (
	// FrameHeaderSize is the size of a stored frame's header in bytes.
	FrameHeaderSize = 64
	// FrameAlignment is the alignment of every frame in a segment, in bytes.
	FrameAlignment = 8
	// FrameMagic are the first two bytes of every stored frame.
	FrameMagic = 0x534c // "LS" on disk
	// FrameVersion is the newest stored frame version this build writes and reads.
	FrameVersion = 1

	frameChained = 52 // bytes under the header CRC
)

var (
	// ErrFrameMagic is returned when the bytes do not start a stored frame:
	// zeros after the tail, or damage.
	ErrFrameMagic = errors.New("not a stored frame")
	// ErrFrameVersion is returned for a frame that a newer build wrote. It is
	// not corruption.
	ErrFrameVersion = errors.New("stored frame version is newer than this build")
	// ErrFrameChecksum is returned when a header or body does not match its CRC.
	ErrFrameChecksum = errors.New("stored frame checksum mismatch")
	// ErrFrameShort is returned when fewer bytes are given than the frame holds.
	ErrFrameShort = errors.New("stored frame is cut short")
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Checksum is the CRC32C (Castagnoli) of b, the only checksum of all formats.
func Checksum(b []byte) uint32 { return crc32.Checksum(b, castagnoli) }

// UpdateChecksum continues a CRC32C with more bytes.
func UpdateChecksum(crc uint32, b []byte) uint32 { return crc32.Update(crc, castagnoli, b) }

// FrameHeader is the decoded header of a stored frame.
type FrameHeader struct {
	Kind         Kind
	RecordCount  uint32 // records in the body; 0 unless Kind is KindRecords
	Term         Term
	Index        Index
	BaseOffset   Offset // offset of the first record, or the next offset for other kinds
	AppendTimeMs int64  // leader's clock; entries raft makes itself repeat their predecessor's
	BodyLength   uint32 // bytes, without padding
	BodyCRC      uint32
	PrevCRC      uint32 // header CRC of the predecessor
	HeaderCRC    uint32 // set by Encode and ParseFrameHeader
	Local        uint64 // replica-local word, under no checksum, undefined to receivers
}

// NextOffset is one past the last record of the frame.
func (h *FrameHeader) NextOffset() Offset { return h.BaseOffset + Offset(h.RecordCount) }

// FrameSize is the number of bytes the frame occupies in a segment, padding included.
func (h *FrameHeader) FrameSize() int64 { return FrameSize(int(h.BodyLength)) }

// FrameSize is the number of bytes a frame with the given body length occupies.
func FrameSize(bodyLength int) int64 {
	return FrameHeaderSize + (int64(bodyLength)+FrameAlignment-1)&^(FrameAlignment-1)
}

// Encode writes the header to dst[:FrameHeaderSize] and sets h.HeaderCRC.
func (h *FrameHeader) Encode(dst []byte) {
	_ = dst[FrameHeaderSize-1]
	le := binary.LittleEndian
	le.PutUint16(dst[0:], FrameMagic)
	dst[2] = FrameVersion
	dst[3] = byte(h.Kind)
	le.PutUint32(dst[4:], h.RecordCount)
	le.PutUint64(dst[8:], uint64(h.Term))
	le.PutUint64(dst[16:], uint64(h.Index))
	le.PutUint64(dst[24:], uint64(h.BaseOffset))
	le.PutUint64(dst[32:], uint64(h.AppendTimeMs))
	le.PutUint32(dst[40:], h.BodyLength)
	le.PutUint32(dst[44:], h.BodyCRC)
	le.PutUint32(dst[48:], h.PrevCRC)
	h.HeaderCRC = Checksum(dst[:frameChained])
	le.PutUint32(dst[52:], h.HeaderCRC)
	le.PutUint64(dst[56:], h.Local)
}

// ParseFrameHeader decodes and verifies the header at the start of src. It
// checks neither the chain nor the body.
func ParseFrameHeader(src []byte) (FrameHeader, error) {
	if len(src) < FrameHeaderSize {
		return FrameHeader{}, ErrFrameShort
	}
	le := binary.LittleEndian
	if le.Uint16(src) != FrameMagic {
		return FrameHeader{}, ErrFrameMagic
	}
	h := FrameHeader{
		Kind:         Kind(src[3]),
		RecordCount:  le.Uint32(src[4:]),
		Term:         Term(le.Uint64(src[8:])),
		Index:        Index(le.Uint64(src[16:])),
		BaseOffset:   Offset(le.Uint64(src[24:])),
		AppendTimeMs: int64(le.Uint64(src[32:])),
		BodyLength:   le.Uint32(src[40:]),
		BodyCRC:      le.Uint32(src[44:]),
		PrevCRC:      le.Uint32(src[48:]),
		HeaderCRC:    le.Uint32(src[52:]),
		Local:        le.Uint64(src[56:]),
	}
	if Checksum(src[:frameChained]) != h.HeaderCRC {
		return FrameHeader{}, ErrFrameChecksum
	}
	if src[2] == 0 || src[2] > FrameVersion {
		return FrameHeader{}, fmt.Errorf("%w: version %d, this build reads up to %d", ErrFrameVersion, src[2], FrameVersion)
	}
	return h, nil
}
