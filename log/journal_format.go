package log

import (
	"encoding/binary"
	"fmt"
	"strconv"
	"strings"

	"github.com/lockstepmq/lockstep/vfs"
	"github.com/lockstepmq/lockstep/wire"
)

// A journal file, DATA/journal/<sequence>.journal, is a row of blocks. A block is
// one group commit: what several logs had to make durable at the same time. It
// begins at a multiple of 4,096 bytes, so that no write touches a page of a block
// that is durable, and is padded with zeros. All integers are little-endian.
//
//	 0               4       6       8                             16
//	+---------------+-------+-------+------------------------------+
//	| magic "LKJN"  |version| zero  | sequence of the file         |
//	+---------------+-------+-------+---------------+--------------+
//	| length        | records       | previous CRC  | payload CRC  |  16 (4 x 4)
//	+---------------+---------------+---------------+--------------+
//	| zero          | header CRC    |                                 32
//	+---------------+---------------+
//	| payload: records                                             |  40
//
// Length is that of header and payload without padding. The previous CRC is the
// header CRC of the block before it in the file, 0 for the first. The CRC32C of
// the header covers bytes [0, 36) and continues from that of the store's UUID: a
// block of another store, or one that a client made up, is none. Magic, version,
// sequence and header CRC keep their place in every version.
//
//	record:
//	+--------------------------------------------------------------+
//	| identity, 16 bytes, as in the hard-state slot                |   0
//	+------------------------------+---------------+-------+-------+
//	| file ID of the segment       | length        | flags | zero  |  16 (8+4+2+2)
//	+------------------------------+---------------+-------+-------+
//	| zero          | CRC32C of 0..36                              |  32
//	+---------------+----------------------------------------------+
//	| frames, byte for byte as in the segment                      |  40
//	+--------------------------------------------------------------+
//
// Flag 1 says that all older records of the same identity are void: what they held
// is durable in segments.
//
// A file that is used again gets a new sequence and with it a new name; blocks of
// another sequence than that in the name are what it held before.
const (
	journalName    = "journal"
	journalSuffix  = ".journal"
	journalMagic   = 0x4e4a4b4c
	journalVersion = 1

	journalPage         = 4096
	blockHeaderSize     = 40
	blockHeaderChecked  = 36
	recordHeaderSize    = 40
	recordHeaderChecked = 36
	recordFresh         = 1 << 0

	// maxBlockBytes bounds what a reader takes for a block.
	maxBlockBytes = 16 << 20
)

type blockHeader struct {
	sequence   uint64
	length     uint32
	records    uint32
	previous   uint32
	payloadCRC uint32
	crc        uint32
}

// padded is what the block occupies in its file.
func (h *blockHeader) padded() int64 { return padToPage(int64(h.length)) }

func padToPage(n int64) int64 { return (n + journalPage - 1) &^ (journalPage - 1) }

// sealBlock completes a block whose header space and records are in b, and pads it.
func sealBlock(b []byte, h *blockHeader, seed uint32) []byte {
	h.length = uint32(len(b))
	h.payloadCRC = wire.Checksum(b[blockHeaderSize:])
	le := binary.LittleEndian
	clear(b[:blockHeaderSize])
	le.PutUint32(b, journalMagic)
	le.PutUint16(b[4:], journalVersion)
	le.PutUint64(b[8:], h.sequence)
	le.PutUint32(b[16:], h.length)
	le.PutUint32(b[20:], h.records)
	le.PutUint32(b[24:], h.previous)
	le.PutUint32(b[28:], h.payloadCRC)
	h.crc = wire.UpdateChecksum(seed, b[:blockHeaderChecked])
	le.PutUint32(b[36:], h.crc)
	return append(b, make([]byte, h.padded()-int64(len(b)))...)
}

// parseBlock decodes and verifies the header of a block, not its payload.
func parseBlock(src []byte, seed uint32) (blockHeader, error) {
	le := binary.LittleEndian
	if len(src) < blockHeaderSize || le.Uint32(src) != journalMagic {
		return blockHeader{}, errMagic
	}
	h := blockHeader{
		sequence: le.Uint64(src[8:]), length: le.Uint32(src[16:]), records: le.Uint32(src[20:]),
		previous: le.Uint32(src[24:]), payloadCRC: le.Uint32(src[28:]), crc: le.Uint32(src[36:]),
	}
	if wire.UpdateChecksum(seed, src[:blockHeaderChecked]) != h.crc {
		return h, errChecksum
	}
	if v := le.Uint16(src[4:]); v == 0 || v > journalVersion {
		return h, fmt.Errorf("journal block version %d, this build reads up to %d: %w", v, journalVersion, ErrTooNew)
	}
	if h.length < blockHeaderSize || h.length > maxBlockBytes {
		return h, errLength
	}
	return h, nil
}

// journalRecord says whose frames follow.
type journalRecord struct {
	identity [16]byte
	fileID   uint64
	length   uint32 // of the frames
	fresh    bool
}

func (r *journalRecord) encode(dst []byte) {
	dst = dst[:recordHeaderSize]
	clear(dst)
	le := binary.LittleEndian
	copy(dst, r.identity[:])
	le.PutUint64(dst[16:], r.fileID)
	le.PutUint32(dst[24:], r.length)
	if r.fresh {
		le.PutUint16(dst[28:], recordFresh)
	}
	le.PutUint32(dst[recordHeaderChecked:], wire.Checksum(dst[:recordHeaderChecked]))
}

func parseRecord(src []byte) (journalRecord, error) {
	if len(src) < recordHeaderSize {
		return journalRecord{}, errLength
	}
	le := binary.LittleEndian
	if wire.Checksum(src[:recordHeaderChecked]) != le.Uint32(src[recordHeaderChecked:]) {
		return journalRecord{}, errChecksum
	}
	r := journalRecord{
		identity: [16]byte(src), fileID: le.Uint64(src[16:]), length: le.Uint32(src[24:]),
		fresh: le.Uint16(src[28:])&recordFresh != 0,
	}
	if int64(r.length) > int64(len(src)-recordHeaderSize) {
		return journalRecord{}, errLength
	}
	return r, nil
}

func journalFileName(sequence uint64) string {
	return fmt.Sprintf("%016x%s", sequence, journalSuffix)
}

func parseJournalName(name string) (sequence uint64, ok bool) {
	stem, ok := strings.CutSuffix(name, journalSuffix)
	if !ok {
		return 0, false
	}
	sequence, err := strconv.ParseUint(stem, 16, 64)
	return sequence, err == nil && journalFileName(sequence) == name
}

// journalScan counts the blocks of a file: whole ones, and those that were durable
// and do not verify.
type journalScan struct{ blocks, damaged int }

// scanJournal reads the blocks of a journal file up to size and calls each for
// every record whose header verifies, with the position of its frames and a view
// of them. buffer is scratch.
//
// A group is written only after the sync of the group before it has succeeded. So
// a block that does not verify and is followed by a good one was durable and is
// damaged: the records in it that verify are reported, and it is counted. One that
// nothing follows may be a write that never was confirmed, and is left out; if
// it was confirmed after all, nobody can tell from this file. The frames carry
// checksums and a chain of their own, so nothing here decides whether a frame is
// good.
func scanJournal(file vfs.File, sequence uint64, seed uint32, size int64, each func(r journalRecord, pos int64, frames []byte)) (journalScan, error) {
	var scan journalScan
	var buffer []byte
	var header [blockHeaderSize]byte
	read := func(b []byte, pos int64) error {
		if n, err := file.ReadAt(b, pos); n < len(b) {
			return fmt.Errorf("position %d: read: %w", pos, err)
		}
		return nil
	}
	report := func(pos int64, payload []byte) {
		at := pos + blockHeaderSize
		for len(payload) > 0 {
			r, err := parseRecord(payload)
			if err != nil {
				return
			}
			n := recordHeaderSize + int64(r.length)
			each(r, at+recordHeaderSize, payload[recordHeaderSize:n])
			payload, at = payload[n:], at+n
		}
	}
	chain, chained := uint32(0), true
	for pos := int64(0); pos+blockHeaderSize <= size; {
		if err := read(header[:], pos); err != nil {
			return scan, err
		}
		h, err := parseBlock(header[:], seed)
		ours := h.sequence == sequence && pos+int64(h.length) <= size
		if ours && err != nil && err != errMagic && err != errChecksum && err != errLength {
			return scan, fmt.Errorf("position %d: %w", pos, err)
		}
		ours = ours && err == nil && (!chained || h.previous == chain)
		var payload []byte
		good, behind := false, pos+journalPage
		if ours {
			if int(h.length) > cap(buffer) {
				buffer = make([]byte, h.length)
			}
			buffer = buffer[:h.length]
			if err := read(buffer, pos); err != nil {
				return scan, err
			}
			payload = buffer[blockHeaderSize:]
			good = wire.Checksum(payload) == h.payloadCRC
			behind = pos + h.padded()
		}
		if !good {
			next, err := nextBlock(read, sequence, seed, behind, size)
			if err != nil {
				return scan, err
			}
			if next < 0 {
				return scan, nil
			}
			scan.damaged++
			report(pos, payload)
			pos, chained = next, false
			continue
		}
		report(pos, payload)
		scan.blocks++
		pos, chain, chained = behind, h.crc, true
	}
	return scan, nil
}

// nextBlock finds the next whole block header of the file at or behind pos; -1 if
// there is none.
func nextBlock(read func([]byte, int64) error, sequence uint64, seed uint32, pos, size int64) (int64, error) {
	const window = 256 * journalPage
	buffer := make([]byte, 0, window)
	for pos+blockHeaderSize <= size {
		buffer = buffer[:min(window, size-pos)]
		if err := read(buffer, pos); err != nil {
			return 0, err
		}
		for i := 0; i+blockHeaderSize <= len(buffer); i += journalPage {
			if h, err := parseBlock(buffer[i:], seed); err == nil && h.sequence == sequence {
				return pos + int64(i), nil
			}
		}
		pos += window
	}
	return -1, nil
}
