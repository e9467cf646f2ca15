package wire

import "encoding/binary"

// A record batch is Kafka's record batch of magic 2, byte for byte. All integers
// are big-endian.
//
//	 0             8              12             16      17       21
//	+-------------+--------------+--------------+-------+--------+------------+
//	| base offset | batch length | leader epoch | magic | CRC32C | attributes |
//	+-------------+--------------+--------------+-------+--------+------------+
//	| last offset delta | base timestamp | max timestamp | producer ID         23
//	+-------------------+----------------+---------------+--------------------+
//	| producer epoch | base sequence | record count | records                 51
//	+----------------+---------------+--------------+-------------------------+
//	51               53              57             61
//
// base offset i64, batch length i32 (bytes after its own field), leader epoch i32,
// magic i8 (2), CRC u32, attributes i16, last offset delta i32 (23), base
// timestamp i64 (27, ms), max timestamp i64 (35, ms), producer ID i64 (43, -1 =
// none), producer epoch i16, base sequence i32, record count i32.
//
// The CRC covers bytes [21, end). Base offset and leader epoch lie before it: the
// broker sets them (PatchBatch) and leaves the producer's checksum as it is.
// Attributes: bits 0-2 codec; bit 3 (timestamps set by the broker), bit 4
// (transactional), bit 5 (control), bit 6 (delete horizon) and the rest are not
// supported and must be zero.
const (
	// BatchHeaderSize is the number of bytes in front of the records.
	BatchHeaderSize = 61
	// BatchMagic is the only record batch version.
	BatchMagic = 2
	// LetterProducers is the lowest ID of producers that write dead letters. A partition takes
	// nothing of one that it was not told of by a fence, and forgets none because it is silent.
	LetterProducers int64 = 1 << 62
	// NoProducerID is the producer ID of batches that are not deduplicated.
	NoProducerID = -1

	batchAtLength          = 8
	batchAtEpoch           = 12
	batchAtMagic           = 16
	batchAtCRC             = 17
	batchAtAttributes      = 21
	batchAtLastOffsetDelta = 23
	batchAtBaseTimestamp   = 27
	batchAtMaxTimestamp    = 35
	batchAtProducerID      = 43
	batchAtProducerEpoch   = 51
	batchAtBaseSequence    = 53
	batchAtRecordCount     = 57

	batchLengthPrefix = 12   // bytes that batch length does not count
	batchCodecBits    = 0x07 // of the attributes
)

// BatchInfo is the decoded header of a record batch.
//
//	RecordCount = LastOffsetDelta + 1, 1 ≤ RecordCount ≤ MaxBatchRecords
type BatchInfo struct {
	BaseOffset      Offset
	LeaderEpoch     int32
	LastOffsetDelta int32
	RecordCount     uint32
	ProducerID      int64 // NoProducerID (-1) = not deduplicated
	ProducerEpoch   int16 // not negative if ProducerID is not
	BaseSequence    int32 // not negative if ProducerID is not
	Codec           Codec
	BaseTimestamp   int64 // ms since 1970; record timestamps are relative to it
	MaxTimestamp    int64 // ms since 1970, as the producer states it
	Length          int   // bytes of the whole batch
}

// NextOffset is one past the last record of the batch.
func (i *BatchInfo) NextOffset() Offset { return i.BaseOffset + Offset(i.RecordCount) }

// Records is the records section of a batch that ParseBatch accepted, compressed
// as its codec says. It is a view.
func Records(batch []byte) []byte { return batch[BatchHeaderSize:] }

// ParseBatch decodes the header of the batch that fills b. It looks at the header
// only and does not verify the CRC. Everything in the result is bounded: the
// counts agree with each other, and an uncompressed section is long enough for
// them. Errors are an *Error: CodeMalformed, CodeUnsupported for another magic, a
// codec or an attribute that Lockstep does not have, or CodeTooMany.
func ParseBatch(b []byte) (BatchInfo, error) { return ParseBatchHeader(b, len(b)) }

// ParseBatchHeader is ParseBatch of a batch of length bytes of which b has at least the
// header.
func ParseBatchHeader(b []byte, length int) (BatchInfo, error) {
	if err := checkBatchFrame(b, length); err != nil {
		return BatchInfo{}, err
	}
	return parseBatchHeader(b, length)
}

// VerifyBatch is ParseBatch and the check of the CRC: what a reader does before it
// believes a batch. Bytes under the CRC are not interpreted before it matched.
// The error for a mismatch is an *Error with CodeCorrupt.
func VerifyBatch(b []byte) (BatchInfo, error) {
	if err := checkBatchFrame(b, len(b)); err != nil {
		return BatchInfo{}, err
	}
	if got, want := Checksum(b[batchAtAttributes:]), binary.BigEndian.Uint32(b[batchAtCRC:]); got != want {
		return BatchInfo{}, Errorf(CodeCorrupt, "record batch: CRC32C is %08x, the header says %08x", got, want)
	}
	return parseBatchHeader(b, len(b))
}

// checkBatchFrame checks what lies before the CRC of a batch of length bytes.
func checkBatchFrame(b []byte, length int) error {
	if len(b) < BatchHeaderSize {
		return Errorf(CodeMalformed, "record batch: %d bytes are shorter than the header", len(b))
	}
	if b[batchAtMagic] != BatchMagic {
		return Errorf(CodeUnsupported, "record batch: magic %d, only %d is supported", int8(b[batchAtMagic]), BatchMagic)
	}
	if n := int32(binary.BigEndian.Uint32(b[batchAtLength:])); int64(n) != int64(length-batchLengthPrefix) {
		return Errorf(CodeMalformed, "record batch: length field %d in a batch of %d bytes", n, length)
	}
	return nil
}

// parseBatchHeader decodes the header of a batch that checkBatchFrame accepted.
func parseBatchHeader(b []byte, length int) (BatchInfo, error) {
	be := binary.BigEndian
	attributes := be.Uint16(b[batchAtAttributes:])
	count := int32(be.Uint32(b[batchAtRecordCount:]))
	info := BatchInfo{
		BaseOffset:      Offset(be.Uint64(b)),
		LeaderEpoch:     int32(be.Uint32(b[batchAtEpoch:])),
		LastOffsetDelta: int32(be.Uint32(b[batchAtLastOffsetDelta:])),
		RecordCount:     uint32(count),
		ProducerID:      int64(be.Uint64(b[batchAtProducerID:])),
		ProducerEpoch:   int16(be.Uint16(b[batchAtProducerEpoch:])),
		BaseSequence:    int32(be.Uint32(b[batchAtBaseSequence:])),
		Codec:           Codec(attributes & batchCodecBits),
		BaseTimestamp:   int64(be.Uint64(b[batchAtBaseTimestamp:])),
		MaxTimestamp:    int64(be.Uint64(b[batchAtMaxTimestamp:])),
		Length:          length,
	}
	section := length - BatchHeaderSize
	switch {
	case attributes&^batchCodecBits != 0:
		return BatchInfo{}, Errorf(CodeUnsupported, "record batch: attributes %#04x ask for more than compression", attributes)
	case !info.Codec.Supported():
		return BatchInfo{}, Errorf(CodeUnsupported, "record batch: compression %s (%d) is not supported", info.Codec, uint8(info.Codec))
	case count < 1:
		return BatchInfo{}, Errorf(CodeMalformed, "record batch: record count %d", count)
	case info.LastOffsetDelta != count-1:
		return BatchInfo{}, Errorf(CodeMalformed, "record batch: last offset delta %d with %d records", info.LastOffsetDelta, count)
	case info.Codec == CodecNone && int64(count)*minRecordSize > int64(section),
		info.Codec != CodecNone && (section == 0 || count > MaxUncompressedBytes/minRecordSize):
		return BatchInfo{}, Errorf(CodeMalformed, "record batch: %d records cannot be in %d bytes", count, section)
	case count > MaxBatchRecords:
		return BatchInfo{}, Errorf(CodeTooMany, "record batch: %d records, the limit is %d", count, MaxBatchRecords)
	case info.ProducerID < NoProducerID,
		info.ProducerID >= 0 && (info.ProducerEpoch < 0 || info.BaseSequence < 0):
		return BatchInfo{}, Errorf(CodeMalformed, "record batch: producer ID %d with epoch %d and sequence %d",
			info.ProducerID, info.ProducerEpoch, info.BaseSequence)
	}
	return info, nil
}

// BatchLimits bound what ValidateBatch accepts. The zero value means the limits of
// the protocol.
type BatchLimits struct {
	MaxBatchBytes  int // of the batch as it travels; 0 = MaxBatchBytes
	MaxRecordBytes int // of one encoded, uncompressed record; 0 = MaxRecordBytes
	// RequireIndex refuses batches without a record index.
	RequireIndex bool
	// LengthsOnly walks the lengths of records and not their fields, for a quarter of
	// the time (see BenchmarkValidateBatch). What is wrong inside a record then
	// shows when a reader takes it apart, with CodeMalformed.
	LengthsOnly bool
	// VerifyIndexChecksums compares the record CRCs in the index with the records
	// of uncompressed batches. Off, a wrong one shows when a reader verifies the
	// slice. It reads every byte a second time.
	VerifyIndexChecksums bool
}

// ValidateBatch checks a batch from a producer, with its record index or an empty
// one, before anything of it is stored. It allocates nothing for a good batch.
//
// Checked are the CRC; the header, as ParseBatch does; for uncompressed batches
// the whole structure of every record: lengths that add up, minimal varints,
// offset deltas that count from zero; for compressed batches, without inflating
// them, that the section is framed as its codec says and cannot inflate beyond
// MaxUncompressedBytes; and that the record index agrees with the batch.
//
// Errors are an *Error:
//
//   - CodeCorrupt: the CRC of the batch or of the index does not match, or a
//     compressed section is damaged or lies about its size;
//   - CodeMalformed: counts, lengths or varints are wrong;
//   - CodeUnsupported: magic, codec, attributes or index version;
//   - CodeTooLarge: batch, record, inflated size or zstd window above the limit;
//   - CodeTooMany: more than MaxBatchRecords;
//   - CodeInvalidRequest: no index where one is required.
func ValidateBatch(b, index []byte, limits BatchLimits) (BatchInfo, error) {
	maxBatch, maxRecord := limits.MaxBatchBytes, limits.MaxRecordBytes
	if maxBatch == 0 {
		maxBatch = MaxBatchBytes
	}
	if maxRecord == 0 {
		maxRecord = MaxRecordBytes
	}
	if len(b) > maxBatch {
		return BatchInfo{}, Errorf(CodeTooLarge, "record batch: %d bytes, the limit is %d", len(b), maxBatch)
	}
	info, err := VerifyBatch(b)
	if err != nil {
		return BatchInfo{}, err
	}
	size, exact := len(b)-BatchHeaderSize, true
	if info.Codec != CodecNone {
		if size, exact, err = UncompressedSize(info.Codec, Records(b)); err != nil {
			return BatchInfo{}, err
		}
		if exact && int64(size) < int64(info.RecordCount)*minRecordSize {
			return BatchInfo{}, Errorf(CodeMalformed, "record batch: %d records cannot be in %d bytes", info.RecordCount, size)
		}
	}

	var x RecordIndex
	switch {
	case len(index) > 0:
		if x, err = ParseRecordIndex(index); err != nil {
			return BatchInfo{}, err
		}
		if x.Len() != int(info.RecordCount) {
			return BatchInfo{}, Errorf(CodeMalformed, "record index: %d entries for %d records", x.Len(), info.RecordCount)
		}
	case limits.RequireIndex:
		return BatchInfo{}, Errorf(CodeInvalidRequest, "record batch: the destination requires a record index")
	}
	switch {
	case info.Codec != CodecNone:
		err = checkIndexLengths(x, size, exact, maxRecord)
	case limits.LengthsOnly:
		err = walkLengths(Records(b), int(info.RecordCount), maxRecord)
	default:
		err = walkRecords(Records(b), int(info.RecordCount), maxRecord)
	}
	if err == nil && info.Codec == CodecNone && x.Len() > 0 {
		err = compareIndex(Records(b), x, limits.VerifyIndexChecksums)
	}
	if err != nil {
		return BatchInfo{}, err
	}
	return info, nil
}

// walkRecords checks every record of an uncompressed section.
func walkRecords(section []byte, count, maxRecord int) error {
	var f recordFields
	p := 0
	for i := range count {
		next, fault := f.split(section, p)
		if fault != "" {
			return recordFault(i, fault)
		}
		if f.offsetDelta != int32(i) {
			return offsetDeltaFault(i, f.offsetDelta)
		}
		if next-p > maxRecord {
			return recordTooLarge(i, next-p, maxRecord)
		}
		p = next
	}
	return checkSectionEnd(section, p, count)
}

// walkLengths checks that the records' lengths make up an uncompressed section.
func walkLengths(section []byte, count, maxRecord int) error {
	p := 0
	for i := range count {
		next, fault := skipRecord(section, p)
		if fault != "" {
			return recordFault(i, fault)
		}
		if next-p > maxRecord {
			return recordTooLarge(i, next-p, maxRecord)
		}
		p = next
	}
	return checkSectionEnd(section, p, count)
}

// compareIndex compares the index with an uncompressed section whose lengths are
// sound.
func compareIndex(section []byte, x RecordIndex, checksums bool) error {
	p := 0
	for i := range x.Len() {
		e := x.Entry(i)
		next, _ := skipRecord(section, p)
		if int64(e.Length) != int64(next-p) {
			return Errorf(CodeMalformed, "record index: entry %d has length %d, the record %d", i, e.Length, next-p)
		}
		if checksums && Checksum(section[p:next]) != e.CRC {
			return Errorf(CodeCorrupt, "record index: the CRC of entry %d does not match the record", i)
		}
		p = next
	}
	return nil
}

// checkIndexLengths compares the index of a compressed batch, if it has one, with
// what is known about the inflated section: its size, or a bound of it.
func checkIndexLengths(x RecordIndex, size int, exact bool, maxRecord int) error {
	if x.Len() == 0 {
		return nil
	}
	var sum int64
	for i := range x.Len() {
		n := int64(x.Entry(i).Length)
		if n < minRecordSize {
			return Errorf(CodeMalformed, "record index: entry %d has length %d", i, n)
		}
		if n > int64(maxRecord) {
			return recordTooLarge(i, int(n), maxRecord)
		}
		sum += n
	}
	if exact && sum != int64(size) || sum > int64(size) {
		return Errorf(CodeMalformed, "record index: the lengths add up to %d, the inflated records to %d", sum, size)
	}
	return nil
}

func checkSectionEnd(section []byte, p, count int) error {
	if p != len(section) {
		return Errorf(CodeMalformed, "record batch: %d records take %d of %d bytes", count, p, len(section))
	}
	return nil
}

func recordFault(i int, fault string) error {
	return Errorf(CodeMalformed, "record %d: %s", i, fault)
}

func offsetDeltaFault(i int, delta int32) error {
	return Errorf(CodeMalformed, "record %d: offset delta %d", i, delta)
}

func recordTooLarge(i, size, limit int) error {
	return Errorf(CodeTooLarge, "record %d: %d bytes, the limit is %d", i, size, limit)
}

// PatchBatch sets the base offset and the leader epoch of a batch in place. The
// CRC covers neither.
func PatchBatch(b []byte, baseOffset Offset, epoch int32) {
	_ = b[BatchHeaderSize-1]
	binary.BigEndian.PutUint64(b, uint64(baseOffset))
	binary.BigEndian.PutUint32(b[batchAtEpoch:], uint32(epoch))
}

// ProducerIdentity is what deduplication goes by. The sequence counts the records
// of one producer in one partition without gaps and wraps from 2^31-1 to 0.
type ProducerIdentity struct {
	ID       int64 // NoProducerID = no deduplication; the rest is ignored then
	Epoch    int16
	Sequence int32 // of the batch's first record
}

// SetProducer sets the producer fields of a finished batch in place and renews its
// CRC: for batches that get their sequence, or another epoch, when they are sent.
func SetProducer(b []byte, p ProducerIdentity) {
	putProducer(b, p)
	binary.BigEndian.PutUint32(b[batchAtCRC:], Checksum(b[batchAtAttributes:]))
}

func putProducer(b []byte, p ProducerIdentity) {
	_ = b[BatchHeaderSize-1]
	if p.ID == NoProducerID {
		p.Epoch, p.Sequence = -1, -1
	}
	binary.BigEndian.PutUint64(b[batchAtProducerID:], uint64(p.ID))
	binary.BigEndian.PutUint16(b[batchAtProducerEpoch:], uint16(p.Epoch))
	binary.BigEndian.PutUint32(b[batchAtBaseSequence:], uint32(p.Sequence))
}
