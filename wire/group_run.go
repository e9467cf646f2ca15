package wire

import "encoding/binary"

// recordRunFixed is what is in front of the index entries of a DeliverRecords.
const recordRunFixed = 4 + 4 + 8 + BatchHeaderSize + 3

// RecordRunHeaderAt is where the batch header lies in what AppendRecordRun appends.
const RecordRunHeaderAt = 16

// RecordRunPrefixSize is the number of bytes in front of a run of n records.
func RecordRunPrefixSize(n int) int { return recordRunFixed + n*RecordIndexEntrySize }

// AppendRecordRun appends what is in front of records of a batch from first on: the hash of
// its publisher, its header, which may be filled in later, and its index entries of these
// records.
func AppendRecordRun(dst []byte, first int, publisher uint64, header, entries []byte) []byte {
	le := binary.LittleEndian
	dst = le.AppendUint32(dst, uint32(first))
	dst = le.AppendUint32(dst, uint32(len(entries)/RecordIndexEntrySize))
	dst = le.AppendUint64(dst, publisher)
	var fixed [BatchHeaderSize + 3]byte
	copy(fixed[:BatchHeaderSize], header)
	dst = append(dst, fixed[:]...)
	return append(dst, entries...)
}

// RecordRun is a run of records of one batch, the bytes of a DeliverRecords:
//
//	first u32 | count u32 | publisher u64 | batch header 61 | zero 3 | count × index entry 16 | records
//
// The batch's checksum cannot be verified here. Each record has one of its own in its entry,
// and the header is as good as who sends it: a broker cuts no batch that it has not verified.
type RecordRun struct {
	Info  BatchInfo
	First int // number of the first record in its batch
	Count int
	// Publisher is the hash of the batch's publisher, 0 for none.
	Publisher uint64
	entries   []byte
	records   []byte
}

// ParseRecordRun decodes a run. The result is a view. Errors are an *Error:
// CodeMalformed, or what ParseBatch says of the header.
func ParseRecordRun(b []byte) (RecordRun, error) {
	if len(b) < recordRunFixed {
		return RecordRun{}, Errorf(CodeMalformed, "run of records: %d bytes are shorter than what is in front of it", len(b))
	}
	le := binary.LittleEndian
	first, count := le.Uint32(b), le.Uint32(b[4:])
	header := b[RecordRunHeaderAt:][:BatchHeaderSize]
	length := int64(int32(binary.BigEndian.Uint32(header[batchAtLength:]))) + batchLengthPrefix
	if length < BatchHeaderSize {
		return RecordRun{}, Errorf(CodeMalformed, "run of records: its batch has %d bytes", length)
	}
	info, err := ParseBatchHeader(header, int(length))
	if err != nil {
		return RecordRun{}, err
	}
	rest := b[recordRunFixed:]
	switch {
	case info.Codec != CodecNone:
		return RecordRun{}, Errorf(CodeMalformed, "run of records: its batch is compressed")
	case b[recordRunFixed-1]|b[recordRunFixed-2]|b[recordRunFixed-3] != 0:
		return RecordRun{}, Errorf(CodeMalformed, "run of records: reserved bytes are not zero")
	case count == 0 || uint64(first)+uint64(count) > uint64(info.RecordCount):
		return RecordRun{}, Errorf(CodeMalformed, "run of records: %d from %d on, the batch has %d", count, first, info.RecordCount)
	case uint64(count)*RecordIndexEntrySize > uint64(len(rest)):
		return RecordRun{}, Errorf(CodeMalformed, "run of records: %d entries in %d bytes", count, len(rest))
	}
	at := int(count) * RecordIndexEntrySize
	return RecordRun{Info: info, First: int(first), Count: int(count), Publisher: le.Uint64(b[8:]), entries: rest[:at:at], records: rest[at:]}, nil
}

// Base is the offset of the first record.
func (r *RecordRun) Base() Offset { return r.Info.BaseOffset + Offset(r.First) }

// Entry is what the index says about record i of [0, Count).
func (r *RecordRun) Entry(i int) IndexEntry {
	return RecordIndex{entries: r.entries}.Entry(i)
}

// Read starts at the first record. The reader does not look at the checksums.
func (r *RecordRun) Read(reader *RecordReader) {
	*reader = RecordReader{
		section: r.records, read: r.First, count: r.First + r.Count,
		baseOffset: r.Info.BaseOffset, baseTimestamp: r.Info.BaseTimestamp,
	}
}

// Check compares a record with the checksum in its entry, the i-th. The error is an *Error
// with CodeCorrupt.
func (r *RecordRun) Check(i int, record *Record) error {
	e := r.Entry(i)
	if got := Checksum(record.Encoding); int(e.Length) != len(record.Encoding) || got != e.CRC {
		return Errorf(CodeCorrupt, "record %d: %d bytes with the CRC32C %08x, the index says %d and %08x", record.Offset, len(record.Encoding), got, e.Length, e.CRC)
	}
	return nil
}
