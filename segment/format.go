package segment

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"strconv"
	"strings"

	"github.com/lockstepmq/lockstep/wire"
)

// A segment file is a header, then frames (wire.FrameHeader) one after the
// other, then space that is allocated and not yet written. The header is written
// together with the first frame; a file without a valid header of its own file
// ID is blank: prepared, or recycled, and never written. All integers are
// little-endian.
//
//	 0                                8        10       12          16
//	+--------------------------------+--------+--------+-----------+
//	| magic "LKSEGMT\n"              | version| zero   |incarnation|
//	+--------------------------------+--------+--------+-----------+
//	| partition ID, 16 bytes                                       |  16
//	+--------------------------------+-----------------------------+
//	| sequence                       | file ID                     |  32
//	+--------------------------------+-----------------------------+
//	| base index                     | base offset                 |  48
//	+--------------------------------+-----------------------------+
//	| previous term                  | previous append time (ms)   |  64
//	+----------------+---------------+-----------------------------+
//	| previous chain | zero          | capacity in bytes           |  80
//	+----------------+---------------+-----------------------------+
//	| zero                                                         |  96
//	+------------------------------------------------+-------------+
//	| zero                                           | CRC32C      | 112
//	+------------------------------------------------+-------------+
//	| first frame                                                  | 128
//
// The previous fields describe the frame before the first one: the last of the
// preceding segment, or for the first entry of a partition term 0, time 0 and
// the seed of the chain. The CRC covers bytes [0, 124). Size, magic, version,
// file ID and CRC keep their place in every version.
const (
	// HeaderSize is the size of a segment header, and so the position of the
	// first frame, in bytes.
	HeaderSize = 128
	// Version is the newest segment version that this build writes and reads.
	Version = 1

	headerMagic   = "LKSEGMT\n"
	headerChecked = HeaderSize - 4
)

var (
	// ErrBlank is returned for a file that does not start with a segment header:
	// prepared and never written, or damaged.
	ErrBlank = errors.New("no segment header")
	// ErrTooNew is returned for a file that a newer build wrote.
	ErrTooNew = errors.New("written by a newer version")
	// ErrChecksum is returned when a header or an index does not match its CRC.
	ErrChecksum = errors.New("checksum mismatch")
	// ErrFormat is returned when fields contradict each other under a good CRC.
	ErrFormat = errors.New("malformed")
)

// Identity says whose file it is. It guards against files in the wrong place.
type Identity struct {
	PartitionID [16]byte
	Incarnation uint32
}

// Header is the decoded header of a segment file.
type Header struct {
	Identity
	Sequence uint64
	FileID   uint64
	Previous Link // what the first frame continues from
	Capacity int64
}

// Encode writes the header to dst[:HeaderSize].
func (h *Header) Encode(dst []byte) {
	dst = dst[:HeaderSize]
	clear(dst)
	le := binary.LittleEndian
	copy(dst, headerMagic)
	le.PutUint16(dst[8:], Version)
	le.PutUint32(dst[12:], h.Incarnation)
	copy(dst[16:], h.PartitionID[:])
	le.PutUint64(dst[32:], h.Sequence)
	le.PutUint64(dst[40:], h.FileID)
	le.PutUint64(dst[48:], uint64(h.Previous.Index+1))
	le.PutUint64(dst[56:], uint64(h.Previous.Next))
	le.PutUint64(dst[64:], uint64(h.Previous.Term))
	le.PutUint64(dst[72:], uint64(h.Previous.TimeMs))
	le.PutUint32(dst[80:], h.Previous.Chain)
	le.PutUint64(dst[88:], uint64(h.Capacity))
	le.PutUint32(dst[headerChecked:], wire.Checksum(dst[:headerChecked]))
}

// ParseHeader decodes and verifies the header at the start of src.
func ParseHeader(src []byte) (Header, error) {
	if len(src) < HeaderSize || string(src[:8]) != headerMagic {
		return Header{}, ErrBlank
	}
	le := binary.LittleEndian
	if wire.Checksum(src[:headerChecked]) != le.Uint32(src[headerChecked:]) {
		return Header{}, fmt.Errorf("segment header: %w", ErrChecksum)
	}
	if v := le.Uint16(src[8:]); v == 0 || v > Version {
		return Header{}, fmt.Errorf("segment header: version %d, this build reads up to %d: %w", v, Version, ErrTooNew)
	}
	h := Header{
		Sequence: le.Uint64(src[32:]),
		FileID:   le.Uint64(src[40:]),
		Previous: Link{
			Index:  wire.Index(le.Uint64(src[48:])) - 1,
			Next:   wire.Offset(le.Uint64(src[56:])),
			Term:   wire.Term(le.Uint64(src[64:])),
			TimeMs: int64(le.Uint64(src[72:])),
			Chain:  le.Uint32(src[80:]),
		},
		Capacity: int64(le.Uint64(src[88:])),
	}
	h.Incarnation = le.Uint32(src[12:])
	copy(h.PartitionID[:], src[16:])
	if h.Capacity < HeaderSize || h.Previous.Index+1 == 0 {
		return Header{}, fmt.Errorf("segment header: capacity %d, base index %d: %w", h.Capacity, h.Previous.Index+1, ErrFormat)
	}
	return h, nil
}

// HeaderFileID is the file ID that a header claims, verified or not. It tells a
// stale header of a recycled file from one of a newer version.
func HeaderFileID(src []byte) uint64 { return binary.LittleEndian.Uint64(src[40:]) }

// File names are two numbers of sixteen hexadecimal digits, the sequence and the
// file ID. The sequence orders a partition's segments and is never used twice;
// the file ID is new for every use of a file, recycled or not.
const (
	segmentSuffix = ".segment"
	sparseSuffix  = ".sparse"
	keysSuffix    = ".keys"
	erasedSuffix  = ".erased"
)

// Name is the name of a segment file.
func Name(sequence, fileID uint64) string {
	return fmt.Sprintf("%016x-%016x%s", sequence, fileID, segmentSuffix)
}

// SparseName is the name of the sparse index beside a segment file.
func SparseName(sequence, fileID uint64) string {
	return fmt.Sprintf("%016x-%016x%s", sequence, fileID, sparseSuffix)
}

// KeysName is the name of the key table beside a segment file.
func KeysName(sequence, fileID uint64) string {
	return fmt.Sprintf("%016x-%016x%s", sequence, fileID, keysSuffix)
}

// ErasedName is the name of the list of erased runs beside a segment file.
func ErasedName(sequence, fileID uint64) string {
	return fmt.Sprintf("%016x-%016x%s", sequence, fileID, erasedSuffix)
}

// ParseName splits the name of a segment file. It is false for other names.
func ParseName(name string) (sequence, fileID uint64, ok bool) {
	stem, ok := strings.CutSuffix(name, segmentSuffix)
	if !ok || len(stem) != 33 || stem[16] != '-' {
		return 0, 0, false
	}
	sequence, err := strconv.ParseUint(stem[:16], 16, 64)
	if err != nil {
		return 0, 0, false
	}
	fileID, err = strconv.ParseUint(stem[17:], 16, 64)
	if err != nil || Name(sequence, fileID) != name {
		return 0, 0, false
	}
	return sequence, fileID, true
}

// The replica-local word of a frame holds the durable mark: an index that was
// known to be durable here, and committed, when the frame was written. It tells
// recovery which damage is rot and which is a tail that never was confirmed.
//
//	 63      48 47                                 0
//	+----------+------------------------------------+
//	| tag      | durable index                      |
//	+----------+------------------------------------+
//
// The tag is folded from the CRC32C of the file ID, the frame's header CRC and
// the index. So a mark counts only in the file and for the frame it was written
// for, stale frames of a recycled file say nothing, and a flipped bit in the
// word, which is under no other checksum, is noticed.

// MaxMark is the largest index that a durable mark can hold.
const MaxMark = wire.Index(1)<<48 - 1

// EncodeMark makes the replica-local word.
func EncodeMark(fileID uint64, headerCRC uint32, durable wire.Index) uint64 {
	if durable > MaxMark {
		durable = MaxMark
	}
	return uint64(markTag(fileID, headerCRC, durable))<<48 | uint64(durable)
}

// DecodeMark reads the replica-local word. It is false if the word was not
// written for this frame of this file.
func DecodeMark(fileID uint64, headerCRC uint32, word uint64) (wire.Index, bool) {
	durable := wire.Index(word) & MaxMark
	if uint16(word>>48) != markTag(fileID, headerCRC, durable) {
		return 0, false
	}
	return durable, true
}

func markTag(fileID uint64, headerCRC uint32, durable wire.Index) uint16 {
	var b [20]byte
	binary.LittleEndian.PutUint64(b[0:], fileID)
	binary.LittleEndian.PutUint32(b[8:], headerCRC)
	binary.LittleEndian.PutUint64(b[12:], uint64(durable))
	// CRC32C, byte by byte: what hash/crc32 is given goes to the heap, which would be
	// an allocation for every frame.
	crc := ^uint32(0)
	for _, v := range b {
		crc = markTable[byte(crc)^v] ^ crc>>8
	}
	crc = ^crc
	return uint16(crc>>16) ^ uint16(crc)
}

var markTable = crc32.MakeTable(crc32.Castagnoli)

// PutMark writes the replica-local word into an encoded frame header.
func PutMark(header []byte, word uint64) {
	binary.LittleEndian.PutUint64(header[wire.FrameHeaderSize-8:wire.FrameHeaderSize], word)
}
