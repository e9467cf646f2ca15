package wire

import (
	"encoding/binary"
	"slices"
)

// BatchBuilder makes record batches one after another in buffers it keeps: after
// the first batches of a producer it allocates nothing. The zero value is ready
// for a batch without a record index. It is not safe for concurrent use.
type BatchBuilder struct {
	records       []byte // room for the header, then the encoded records
	compressed    []byte // room for the header, then the compressed records
	index         []byte // room for the header, then an entry for each record
	indexed       bool
	plain         bool
	crc           uint32 // of records[BatchHeaderSize:summed], if plain
	summed        int
	count         int
	baseTimestamp int64
	maxTimestamp  int64
}

// Reset drops what was appended and starts a batch, with a record index or
// without. What Finish returned before is invalid from now on.
func (b *BatchBuilder) Reset(indexed bool) {
	b.records, b.index = b.records[:0], b.index[:0]
	b.indexed, b.plain = indexed, false
	b.count = 0
}

// Plain says, before the first record, that the batch will not be compressed: then its
// checksum is taken while the records are still in the processor's cache, which costs a
// third of doing it at the end.
func (b *BatchBuilder) Plain() { b.plain = true }

// sumBytes is how much is summed up at once: small enough for the first-level cache, and
// large enough that many small records share it.
const sumBytes = 4 << 10

// sum brings the checksum of a plain batch up to date.
func (b *BatchBuilder) sum() {
	b.crc = UpdateChecksum(b.crc, b.records[b.summed:])
	b.summed = len(b.records)
}

// Count is the number of records appended.
func (b *BatchBuilder) Count() int { return b.count }

// Indexed reports whether the batch gets a record index.
func (b *BatchBuilder) Indexed() bool { return b.indexed }

// Size is the number of bytes of the batch and its index if it is not compressed.
func (b *BatchBuilder) Size() int {
	if b.count == 0 {
		return 0
	}
	return len(b.records) + len(b.index)
}

// EncodedSizeBound is at least the number of bytes a record takes in a batch.
func EncodedSizeBound(key, value []byte, headers []RecordHeader) int {
	// The five varints of 32 bits, one of 64 and the attributes.
	n := 5*5 + 10 + 1 + len(key) + len(value)
	for i := range headers {
		n += 2*5 + len(headers[i].Key) + len(headers[i].Value)
	}
	return n
}

// Append encodes a record into the batch and keeps none of the slices. A nil key or
// value means none. The key hash is needed only if the batch is indexed: xxhash64
// of the key, ignored if there is none. It returns false, and appends nothing, if
// the batch would then exceed MaxBatchBytes or MaxBatchRecords, or together with
// its index what fits into a PRODUCE frame.
func (b *BatchBuilder) Append(timestampMs int64, attributes int8, key, value []byte, headers []RecordHeader, keyHash uint64) bool {
	if b.count == 0 {
		b.begin(timestampMs)
	}
	timestampDelta := zigzag64(timestampMs - b.baseTimestamp)
	offsetDelta := uint64(zigzag32(int32(b.count)))
	length := 1 + uvarintSize(timestampDelta) + uvarintSize(offsetDelta) +
		bytesSize(len(key)) + bytesSize(len(value)) + uvarintSize(uint64(len(headers))<<1)
	for i := range headers {
		length += bytesSize(len(headers[i].Key)) + bytesSize(len(headers[i].Value))
	}
	size := uvarintSize(uint64(length)<<1) + length
	start := len(b.records)
	if b.count == MaxBatchRecords || start+size > MaxBatchBytes ||
		b.indexed && start+size+len(b.index)+RecordIndexEntrySize > maxProducePayload {
		return false
	}

	b.records = slices.Grow(b.records, size)[:start+size]
	dst := b.records[start:]
	p := putUvarint(dst, 0, uint64(length)<<1)
	dst[p] = byte(attributes)
	p = putUvarint(dst, p+1, timestampDelta)
	p = putUvarint(dst, p, offsetDelta)
	p = putBytes(dst, p, key)
	p = putBytes(dst, p, value)
	p = putUvarint(dst, p, uint64(len(headers))<<1)
	for i := range headers {
		h := &headers[i]
		p = putUvarint(dst, p, uint64(len(h.Key))<<1)
		p += copy(dst[p:], h.Key)
		p = putBytes(dst, p, h.Value)
	}

	if b.indexed {
		switch {
		case key == nil:
			keyHash = 0
		case keyHash == 0:
			keyHash = 1
		}
		b.index = appendIndexEntry(b.index, IndexEntry{KeyHash: keyHash, Length: uint32(size), CRC: Checksum(dst)})
	}
	if b.plain && len(b.records)-b.summed >= sumBytes {
		b.sum()
	}
	b.maxTimestamp = max(b.maxTimestamp, timestampMs)
	b.count++
	return true
}

// maxProducePayload is what index and batch may take together in a PRODUCE frame.
const maxProducePayload = MaxFrameBytes - minFrameLength - ProducePrefixSize

func (b *BatchBuilder) begin(timestampMs int64) {
	var header [BatchHeaderSize]byte
	b.records = append(b.records[:0], header[:]...)
	b.index = b.index[:0]
	if b.indexed {
		b.index = append(b.index, header[:RecordIndexHeaderSize]...)
	}
	b.baseTimestamp, b.maxTimestamp = timestampMs, timestampMs
	b.crc, b.summed = 0, BatchHeaderSize
}

// bytesSize is the size of a length and n bytes; a missing slice takes as much as
// an empty one.
func bytesSize(n int) int { return uvarintSize(uint64(n)<<1) + n }

func putBytes(dst []byte, p int, b []byte) int {
	if b == nil {
		dst[p] = 1 // zigzag of -1
		return p + 1
	}
	p = putUvarint(dst, p, uint64(len(b))<<1)
	return p + copy(dst[p:], b)
}

// Finish completes a batch of at least one record. With a codec other than
// CodecNone, compress appends the compressed src to dst and returns it; if that
// does not make the batch smaller, the records stay as they are and the batch says
// so. publisherHash goes into the record index, 0 if there is none. The index is
// empty unless the batch is indexed.
//
// Both results belong to the builder and are valid until Reset. Base offset and
// leader epoch are zero; SetProducer may still change the producer.
func (b *BatchBuilder) Finish(producer ProducerIdentity, publisherHash uint64, codec Codec, compress func(dst, src []byte) []byte) (batch, index []byte) {
	if b.count == 0 {
		panic("wire: BatchBuilder.Finish without records")
	}
	batch = b.records
	if codec != CodecNone {
		b.compressed = slices.Grow(b.compressed[:0], BatchHeaderSize)[:BatchHeaderSize]
		b.compressed = compress(b.compressed, Records(b.records))
		if len(b.compressed) < len(b.records) {
			batch = b.compressed
		} else {
			codec = CodecNone
		}
	}
	be := binary.BigEndian
	PatchBatch(batch, 0, 0)
	be.PutUint32(batch[batchAtLength:], uint32(len(batch)-batchLengthPrefix))
	batch[batchAtMagic] = BatchMagic
	be.PutUint16(batch[batchAtAttributes:], uint16(codec))
	be.PutUint32(batch[batchAtLastOffsetDelta:], uint32(b.count-1))
	be.PutUint64(batch[batchAtBaseTimestamp:], uint64(b.baseTimestamp))
	be.PutUint64(batch[batchAtMaxTimestamp:], uint64(b.maxTimestamp))
	be.PutUint32(batch[batchAtRecordCount:], uint32(b.count))
	if b.plain && codec == CodecNone && b.summed > BatchHeaderSize {
		b.sum()
		putProducer(batch, producer)
		head := Checksum(batch[batchAtAttributes:BatchHeaderSize])
		be.PutUint32(batch[batchAtCRC:], JoinChecksums(head, b.crc, len(batch)-BatchHeaderSize))
	} else {
		SetProducer(batch, producer)
	}
	if b.indexed {
		finishRecordIndex(b.index, publisherHash)
	}
	return batch, b.index
}
