package wire

import "encoding/binary"

// A record index travels beside a batch, uncompressed. With it the broker
// dispatches records by key or publisher, and slices and verifies one record,
// without inflating the others. All integers are little-endian.
//
//	 0         1       2              4          8                16
//	+---------+-------+--------------+----------+----------------+
//	| version | flags | record count | CRC32C   | publisher hash |
//	+---------+-------+--------------+----------+----------------+
//	| key hash                       | length   | record CRC32C  |  16, for each record
//	+--------------------------------+----------+----------------+
//
// version is 1, flags are zero. The CRC covers bytes [0, 4) and [8, end). Hashes
// are xxhash64; zero means no publisher, or a record without a key, and a hash that
// happens to be zero is written as 1. Length and CRC are those of the record's
// uncompressed encoding, its length field included.
const (
	// RecordIndexHeaderSize is the number of bytes in front of the entries.
	RecordIndexHeaderSize = 16
	// RecordIndexEntrySize is the number of bytes for each record.
	RecordIndexEntrySize = 16
	// RecordIndexVersion is the newest version this build writes and reads.
	RecordIndexVersion = 1
)

// RecordIndexSize is the number of bytes of an index for n records.
func RecordIndexSize(n int) int { return RecordIndexHeaderSize + n*RecordIndexEntrySize }

// IndexEntry is what the index says about one record.
type IndexEntry struct {
	KeyHash uint64 // 0 = no key
	Length  uint32 // bytes of the record's encoding
	CRC     uint32 // CRC32C of the record's encoding
}

// RecordIndex is a view of an encoded index.
type RecordIndex struct {
	PublisherHash uint64 // 0 = none
	entries       []byte
}

// ParseRecordIndex decodes and verifies the index that fills b. The result is a
// view. What the entries say is the producer's statement and is compared with
// nothing here. Errors are an *Error: CodeMalformed, CodeUnsupported for a newer
// version, CodeCorrupt for a checksum mismatch.
func ParseRecordIndex(b []byte) (RecordIndex, error) {
	if len(b) < RecordIndexHeaderSize {
		return RecordIndex{}, Errorf(CodeMalformed, "record index: %d bytes are shorter than the header", len(b))
	}
	le := binary.LittleEndian
	if got, want := recordIndexChecksum(b), le.Uint32(b[4:]); got != want {
		return RecordIndex{}, Errorf(CodeCorrupt, "record index: CRC32C is %08x, the header says %08x", got, want)
	}
	switch count := le.Uint16(b[2:]); {
	case b[0] == 0 || b[0] > RecordIndexVersion:
		return RecordIndex{}, Errorf(CodeUnsupported, "record index: version %d, this build reads up to %d", b[0], RecordIndexVersion)
	case b[1] != 0:
		return RecordIndex{}, Errorf(CodeUnsupported, "record index: flags %#02x", b[1])
	case len(b) != RecordIndexSize(int(count)):
		return RecordIndex{}, Errorf(CodeMalformed, "record index: %d entries in %d bytes", count, len(b))
	}
	return RecordIndex{PublisherHash: le.Uint64(b[8:]), entries: b[RecordIndexHeaderSize:]}, nil
}

func recordIndexChecksum(b []byte) uint32 { return UpdateChecksum(Checksum(b[:4]), b[8:]) }

// Len is the number of records.
func (x RecordIndex) Len() int { return len(x.entries) / RecordIndexEntrySize }

// Entry is what the index says about record i of [0, Len).
func (x RecordIndex) Entry(i int) IndexEntry {
	e := x.entries[i*RecordIndexEntrySize:][:RecordIndexEntrySize]
	return IndexEntry{
		KeyHash: binary.LittleEndian.Uint64(e),
		Length:  binary.LittleEndian.Uint32(e[8:]),
		CRC:     binary.LittleEndian.Uint32(e[12:]),
	}
}

// AppendRecordIndex appends an index with at most MaxBatchRecords entries.
func AppendRecordIndex(dst []byte, publisherHash uint64, entries []IndexEntry) []byte {
	start := len(dst)
	var header [RecordIndexHeaderSize]byte
	dst = append(dst, header[:]...)
	for _, e := range entries {
		dst = appendIndexEntry(dst, e)
	}
	finishRecordIndex(dst[start:], publisherHash)
	return dst
}

func appendIndexEntry(dst []byte, e IndexEntry) []byte {
	dst = binary.LittleEndian.AppendUint64(dst, e.KeyHash)
	dst = binary.LittleEndian.AppendUint32(dst, e.Length)
	return binary.LittleEndian.AppendUint32(dst, e.CRC)
}

// finishRecordIndex fills the header of an index whose entries are in place.
func finishRecordIndex(b []byte, publisherHash uint64) {
	b[0], b[1] = RecordIndexVersion, 0
	binary.LittleEndian.PutUint16(b[2:], uint16((len(b)-RecordIndexHeaderSize)/RecordIndexEntrySize))
	binary.LittleEndian.PutUint64(b[8:], publisherHash)
	binary.LittleEndian.PutUint32(b[4:], recordIndexChecksum(b))
}
