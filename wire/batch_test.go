package wire

import (
	"bytes"
	"encoding/binary"
	"math"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// goldenBatch holds three records: one plain, one without key and value but with
// headers, one with both empty.
const goldenBatch = `
	00 00 00 00 00 00 00 00 // base offset
	00 00 00 54             // batch length 84 = 96 - 12
	00 00 00 00             // leader epoch
	02                      // magic 2
	d4 aa e0 42             // CRC32C of everything below
	00 00                   // attributes: no compression
	00 00 00 02             // last offset delta
	00 00 01 8b cf e5 68 00 // base timestamp 1,700,000,000,000 ms
	00 00 01 8b cf e5 69 2c // max timestamp, 300 ms later
	11 22 33 44 55 66 77 88 // producer ID
	00 03                   // producer epoch 3
	00 00 00 09             // base sequence 9
	00 00 00 03             // 3 records

	18                      // length 12
	00                      // attributes
	00                      // timestamp delta 0
	00                      // offset delta 0
	02 6b                   // key "k"
	0a 76 61 6c 75 65       // value "value"
	00                      // no headers

	1a                      // length 13
	05                      // attributes 5
	01                      // timestamp delta -1
	02                      // offset delta 1
	01                      // no key
	01                      // no value
	04                      // 2 headers
	02 68 02 78             // "h" = "x"
	02 6e 01                // "n" without value

	0e                      // length 7
	00                      // attributes
	d8 04                   // timestamp delta 300
	04                      // offset delta 2
	00                      // empty key
	00                      // empty value
	00                      // no headers
`

const goldenIndex = `
	01                      // version 1
	00                      // flags
	03 00                   // 3 records
	be 21 10 1b             // CRC32C of everything else
	08 07 06 05 04 03 02 01 // publisher hash

	ef cd ab 00 00 00 00 00 // key hash 0xabcdef
	0d 00 00 00             // 13 bytes
	8a f1 d4 b6             // CRC32C of the record
	00 00 00 00 00 00 00 00 // no key
	0e 00 00 00             // 14 bytes
	4c b4 0c 31             // CRC32C
	01 00 00 00 00 00 00 00 // an empty key, whose hash is given as 0
	08 00 00 00             // 8 bytes
	2c 85 17 54             // CRC32C
`

func buildGolden(b *BatchBuilder) (batch, index []byte) {
	b.Reset(true)
	b.Append(1_700_000_000_000, 0, []byte("k"), []byte("value"), nil, 0xabcdef)
	b.Append(1_699_999_999_999, 5, nil, nil, []RecordHeader{{"h", []byte("x")}, {"n", nil}}, 99)
	b.Append(1_700_000_000_300, 0, []byte{}, []byte{}, nil, 0)
	return b.Finish(ProducerIdentity{ID: 0x1122334455667788, Epoch: 3, Sequence: 9}, 0x0102030405060708, CodecNone, nil)
}

func TestBatchAndIndexGolden(t *testing.T) {
	var b BatchBuilder
	for range 2 { // the second time in the buffers of the first
		batch, index := buildGolden(&b)
		require.Equal(t, unhex(t, goldenBatch), batch)
		require.Equal(t, unhex(t, goldenIndex), index)
		require.Equal(t, 3, b.Count())
		require.True(t, b.Indexed())
		require.Equal(t, len(batch)+len(index), b.Size())
	}

	batch, index := unhex(t, goldenBatch), unhex(t, goldenIndex)
	want := BatchInfo{
		LastOffsetDelta: 2, RecordCount: 3, ProducerID: 0x1122334455667788, ProducerEpoch: 3, BaseSequence: 9,
		BaseTimestamp: 1_700_000_000_000, MaxTimestamp: 1_700_000_000_300, Length: 96,
	}
	for name, parse := range map[string]func() (BatchInfo, error){
		"ParseBatch":    func() (BatchInfo, error) { return ParseBatch(batch) },
		"VerifyBatch":   func() (BatchInfo, error) { return VerifyBatch(batch) },
		"ValidateBatch": func() (BatchInfo, error) { return ValidateBatch(batch, nil, BatchLimits{}) },
		"ValidateBatch with index": func() (BatchInfo, error) {
			return ValidateBatch(batch, index, BatchLimits{RequireIndex: true, VerifyIndexChecksums: true})
		},
		"ValidateBatch by lengths": func() (BatchInfo, error) {
			return ValidateBatch(batch, index, BatchLimits{LengthsOnly: true})
		},
	} {
		info, err := parse()
		require.NoError(t, err, name)
		require.Equal(t, want, info, name)
	}

	x, err := ParseRecordIndex(index)
	require.NoError(t, err)
	require.Equal(t, 3, x.Len())
	require.Equal(t, uint64(0x0102030405060708), x.PublisherHash)
	entries := []IndexEntry{{0xabcdef, 13, 0xb6d4f18a}, {0, 14, 0x310cb44c}, {1, 8, 0x5417852c}}
	for i, e := range entries {
		require.Equal(t, e, x.Entry(i))
	}
	require.Equal(t, index, AppendRecordIndex(nil, 0x0102030405060708, entries))
	require.Len(t, index, RecordIndexSize(3))
}

func TestRecordReaderGolden(t *testing.T) {
	batch := unhex(t, goldenBatch)
	PatchBatch(batch, 1000, 7)
	info, err := VerifyBatch(batch)
	require.NoError(t, err, "offset and epoch lie outside the CRC")
	require.Equal(t, Offset(1000), info.BaseOffset)
	require.Equal(t, int32(7), info.LeaderEpoch)
	require.Equal(t, Offset(1003), info.NextOffset())

	section := Records(batch)
	var r RecordReader
	var rec Record
	r.Reset(&info, section)

	require.True(t, r.Next(&rec))
	require.Equal(t, Offset(1000), rec.Offset)
	require.Equal(t, int64(1_700_000_000_000), rec.TimestampMs)
	require.Equal(t, int8(0), rec.Attributes)
	require.Equal(t, "k", string(rec.Key))
	require.Equal(t, "value", string(rec.Value))
	require.Zero(t, rec.HeaderCount)
	require.Equal(t, section[:13], rec.Encoding)
	require.Same(t, &section[5], &rec.Key[0], "a view")
	require.Equal(t, 1, cap(rec.Key), "a view that cannot grow")
	require.Equal(t, 5, cap(rec.Value))

	require.True(t, r.Next(&rec))
	require.Equal(t, Offset(1001), rec.Offset)
	require.Equal(t, int64(1_699_999_999_999), rec.TimestampMs)
	require.Equal(t, int8(5), rec.Attributes)
	require.Nil(t, rec.Key)
	require.Nil(t, rec.Value)
	require.Equal(t, []RecordHeader{{"h", []byte("x")}, {"n", nil}}, rec.AppendHeaders(nil))
	for key := range rec.Headers() {
		require.Equal(t, "h", string(key))
		break // stopping early is allowed
	}
	require.Equal(t, section[13:27], rec.Encoding)

	require.True(t, r.Next(&rec))
	require.Equal(t, Offset(1002), rec.Offset)
	require.Equal(t, int64(1_700_000_000_300), rec.TimestampMs)
	require.NotNil(t, rec.Key)
	require.Empty(t, rec.Key)
	require.NotNil(t, rec.Value)
	require.Empty(t, rec.Value)
	require.Equal(t, section[27:], rec.Encoding)

	require.False(t, r.Next(&rec))
	require.NoError(t, r.Err())
	require.False(t, r.Next(&rec), "and stays at the end")

	var zero RecordReader
	require.False(t, zero.Next(&rec))
	require.NoError(t, zero.Err())
}

// seal makes length and CRC of a batch match its content.
func seal(b []byte) []byte {
	if len(b) >= BatchHeaderSize {
		binary.BigEndian.PutUint32(b[batchAtLength:], uint32(len(b)-batchLengthPrefix))
		binary.BigEndian.PutUint32(b[batchAtCRC:], Checksum(b[batchAtAttributes:]))
	}
	return b
}

// batchWith is a sealed batch with any records section and record count.
func batchWith(codec Codec, count int32, section []byte) []byte {
	b := make([]byte, BatchHeaderSize, BatchHeaderSize+len(section))
	b[batchAtMagic] = BatchMagic
	binary.BigEndian.PutUint16(b[batchAtAttributes:], uint16(codec))
	binary.BigEndian.PutUint32(b[batchAtLastOffsetDelta:], uint32(count-1))
	binary.BigEndian.PutUint32(b[batchAtRecordCount:], uint32(count))
	putProducer(b, ProducerIdentity{ID: NoProducerID})
	return seal(append(b, section...))
}

// change is the golden batch with bytes replaced, sealed again.
func change(tb testing.TB, at int, bytes ...byte) []byte {
	b := unhex(tb, goldenBatch)
	copy(b[at:], bytes)
	return seal(b)
}

// The rows of the bad-input catalogue (RELIABILITY §6.4) that concern a batch, with
// their exact reaction, and their neighbours.
func TestValidateBatchRefuses(t *testing.T) {
	golden := unhex(t, goldenBatch)
	unsealed := func(at int, value byte) []byte {
		b := append([]byte(nil), golden...)
		b[at] ^= value
		return b
	}
	records := Records(golden)
	const noCodec = CodecNone
	for _, test := range []struct {
		name  string
		batch []byte
		want  ErrorCode
	}{
		{"row 12: CRC wrong", unsealed(batchAtCRC, 1), CodeCorrupt},
		{"row 12: record changed", unsealed(len(golden)-1, 1), CodeCorrupt},
		{"row 12: count changed on the way", unsealed(batchAtRecordCount+3, 1), CodeCorrupt},

		{"row 13: count 2^31-1 with 10 bytes", batchWith(noCodec, math.MaxInt32, make([]byte, 10)), CodeMalformed},
		{"row 13: the same, compressed", batchWith(CodecZstd, math.MaxInt32, make([]byte, 10)), CodeMalformed},
		{"row 13: the same without bytes", batchWith(CodecSnappy, math.MaxInt32, nil), CodeMalformed},
		{"row 13: count one too many for the bytes", batchWith(noCodec, 6, records), CodeMalformed},
		{"row 13: count 0", batchWith(noCodec, 0, records), CodeMalformed},
		{"row 13: count negative", batchWith(noCodec, -1, records), CodeMalformed},
		{"row 13: count and last offset delta differ", change(t, batchAtLastOffsetDelta, 0, 0, 0, 3), CodeMalformed},
		{"row 13: more records than the limit, all present",
			batchWith(noCodec, MaxBatchRecords+1, bytes.Repeat([]byte{0x0c, 0, 0, 0, 1, 1, 0}, MaxBatchRecords+1)), CodeTooMany},
		{"row 13: more records than the limit, compressed", batchWith(CodecZstd, MaxBatchRecords+1, make([]byte, 10)), CodeTooMany},

		{"row 14: records end before the batch", batchWith(noCodec, 3, append(append([]byte(nil), records...), 0)), CodeMalformed},
		{"row 14: another record behind the last", batchWith(noCodec, 2, records), CodeMalformed},
		{"row 14: batch ends inside a record", batchWith(noCodec, 3, records[:len(records)-1]), CodeMalformed},
		{"row 14: length field below the batch", func() []byte {
			b := append([]byte(nil), golden...)
			b[batchAtLength+3]--
			return b
		}(), CodeMalformed},
		{"row 14: length field negative", func() []byte {
			b := append([]byte(nil), golden...)
			b[batchAtLength] = 0x80
			return b
		}(), CodeMalformed},

		{"row 15: record length negative", change(t, 61, 0x01), CodeMalformed},
		{"row 15: record length -2^31", batchWith(noCodec, 1, append([]byte{0xff, 0xff, 0xff, 0xff, 0x0f}, records...)), CodeMalformed},
		{"row 15: record length 2^31-1", batchWith(noCodec, 1, append([]byte{0xfe, 0xff, 0xff, 0xff, 0x0f}, records...)), CodeMalformed},
		{"row 15: record length 0", batchWith(noCodec, 1, make([]byte, 7)), CodeMalformed},
		{"row 15: key length 2^31-1", batchWith(noCodec, 1, []byte{20, 0, 0, 0, 0xfe, 0xff, 0xff, 0xff, 0x0f, 0, 0}), CodeMalformed},
		{"row 15: key length -2", batchWith(noCodec, 1, []byte{12, 0, 0, 0, 3, 0, 0}), CodeMalformed},
		{"row 15: key longer than its record", change(t, 65, 0x10), CodeMalformed},
		{"row 15: value length -2", batchWith(noCodec, 1, []byte{12, 0, 0, 0, 0, 3, 0}), CodeMalformed},
		{"row 15: value reaches into the next record", change(t, 67, 0x0e), CodeMalformed},
		{"row 15: header count -1", batchWith(noCodec, 1, []byte{12, 0, 0, 0, 0, 0, 1}), CodeMalformed},
		{"row 15: header count 2^31-1", batchWith(noCodec, 1, []byte{20, 0, 0, 0, 0, 0, 0xfe, 0xff, 0xff, 0xff, 0x0f}), CodeMalformed},
		{"row 15: header key length -1", batchWith(noCodec, 1, []byte{16, 0, 0, 0, 0, 0, 2, 1, 0}), CodeMalformed},
		{"row 15: header key too long", batchWith(noCodec, 1, []byte{16, 0, 0, 0, 0, 0, 2, 4, 0}), CodeMalformed},
		{"row 15: header value length -2", batchWith(noCodec, 1, []byte{16, 0, 0, 0, 0, 0, 2, 0, 3}), CodeMalformed},
		{"row 15: header value too long", batchWith(noCodec, 1, []byte{16, 0, 0, 0, 0, 0, 2, 0, 2}), CodeMalformed},
		{"row 15: bytes behind the last header", batchWith(noCodec, 1, []byte{18, 0, 0, 0, 0, 0, 2, 0, 1, 0}), CodeMalformed},

		{"row 16: overlong length", batchWith(noCodec, 1, []byte{0x8c, 0x00, 0, 0, 0, 0, 0, 0}), CodeMalformed},
		{"row 16: length of six bytes", batchWith(noCodec, 1, []byte{0x8c, 0x80, 0x80, 0x80, 0x80, 0x01, 0, 0, 0, 0, 0, 0}), CodeMalformed},
		{"row 16: length of 33 bits", batchWith(noCodec, 1, []byte{0x8c, 0x80, 0x80, 0x80, 0x10, 0, 0, 0, 0, 0, 0, 0}), CodeMalformed},
		{"row 16: overlong timestamp delta", batchWith(noCodec, 1, []byte{14, 0, 0x80, 0x00, 0, 0, 0, 0}), CodeMalformed},
		{"row 16: timestamp delta of 11 bytes", batchWith(noCodec, 1,
			[]byte{32, 0, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x01, 0, 0, 0, 0}), CodeMalformed},
		{"row 16: timestamp delta of 65 bits", batchWith(noCodec, 1,
			[]byte{30, 0, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x02, 0, 0, 0, 0}), CodeMalformed},
		{"row 16: overlong offset delta", batchWith(noCodec, 1, []byte{14, 0, 0, 0x80, 0x00, 0, 0, 0}), CodeMalformed},
		{"row 16: overlong key length", batchWith(noCodec, 1, []byte{14, 0, 0, 0, 0x80, 0x00, 0, 0}), CodeMalformed},
		{"row 16: overlong value length", batchWith(noCodec, 1, []byte{14, 0, 0, 0, 0, 0x80, 0x00, 0}), CodeMalformed},
		{"row 16: overlong header count", batchWith(noCodec, 1, []byte{14, 0, 0, 0, 0, 0, 0x80, 0x00}), CodeMalformed},
		{"row 16: varint without end", batchWith(noCodec, 1, bytes.Repeat([]byte{0x80}, 20)), CodeMalformed},

		{"row 17: gzip", batchWith(1, 1, records), CodeUnsupported},
		{"row 17: lz4", batchWith(3, 1, records), CodeUnsupported},
		{"row 17: codec 5", batchWith(5, 1, records), CodeUnsupported},
		{"row 17: codec 7", batchWith(7, 1, records), CodeUnsupported},
		{"row 17: a message set of magic 1, which can nest", change(t, batchAtMagic, 1), CodeUnsupported},
		{"magic 3", change(t, batchAtMagic, 3), CodeUnsupported},
		{"timestamps set by the broker", change(t, batchAtAttributes, 0, 1<<3), CodeUnsupported},
		{"transactional", change(t, batchAtAttributes, 0, 1<<4), CodeUnsupported},
		{"control", change(t, batchAtAttributes, 0, 1<<5), CodeUnsupported},
		{"delete horizon", change(t, batchAtAttributes, 0, 1<<6), CodeUnsupported},
		{"reserved attribute", change(t, batchAtAttributes, 0x80, 0), CodeUnsupported},

		{"offset deltas that do not start at 0", change(t, 64, 0x02), CodeMalformed},
		{"offset deltas that repeat", change(t, 77, 0x00), CodeMalformed},
		{"producer ID -2", change(t, batchAtProducerID, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xfe), CodeMalformed},
		{"producer epoch negative", change(t, batchAtProducerEpoch, 0x80), CodeMalformed},
		{"base sequence negative", change(t, batchAtBaseSequence, 0x80), CodeMalformed},
		{"nothing", nil, CodeMalformed},
		{"a header that is cut short", golden[:BatchHeaderSize-1], CodeMalformed},
		{"two batches at once", append(append([]byte(nil), golden...), golden...), CodeMalformed},
	} {
		t.Run(test.name, func(t *testing.T) {
			info, err := ValidateBatch(test.batch, nil, BatchLimits{})
			require.ErrorIs(t, err, test.want)
			require.Zero(t, info)
			var typed *Error
			require.ErrorAs(t, err, &typed)
			require.NotEmpty(t, typed.Detail)
		})
	}

	t.Run("row 12: any flipped bit under the CRC", func(t *testing.T) {
		for bit := batchAtCRC * 8; bit < len(golden)*8; bit++ {
			_, err := ValidateBatch(unsealed(bit/8, 1<<(bit%8)), nil, BatchLimits{})
			require.ErrorIs(t, err, CodeCorrupt, "bit %d", bit)
		}
	})
	t.Run("any cut", func(t *testing.T) {
		for n := range len(golden) {
			_, err := ValidateBatch(golden[:n], nil, BatchLimits{})
			require.ErrorIs(t, err, CodeMalformed, "%d bytes", n)
		}
	})
	t.Run("row 39, which is stored: timestamps of any year", func(t *testing.T) {
		var b BatchBuilder
		for _, ms := range []int64{math.MinInt64, -1, 0, 253_402_300_799_000, math.MaxInt64} {
			require.True(t, b.Append(ms, 0, nil, nil, nil, 0))
		}
		batch, _ := b.Finish(ProducerIdentity{ID: NoProducerID}, 0, CodecNone, nil)
		info, err := ValidateBatch(batch, nil, BatchLimits{})
		require.NoError(t, err)
		var r RecordReader
		var rec Record
		r.Reset(&info, Records(batch))
		for _, ms := range []int64{math.MinInt64, -1, 0, 253_402_300_799_000, math.MaxInt64} {
			require.True(t, r.Next(&rec))
			require.Equal(t, ms, rec.TimestampMs)
		}
	})
}

// What ParseBatch promises holds without ValidateBatch: recovery and readers use it alone.
func TestParseBatchRefusesByItself(t *testing.T) {
	_, err := ParseBatch(batchWith(CodecNone, 0, nil))
	require.ErrorIs(t, err, CodeMalformed, "no records")
	_, err = ParseBatch(batchWith(CodecZstd, 1, nil))
	require.ErrorIs(t, err, CodeMalformed, "a record in a section of nothing")
	_, err = ParseBatch(batchWith(CodecZstd, 1, []byte{0}))
	require.NoError(t, err, "what is in a compressed section nobody knows")
	_, err = ParseBatch(batchWith(CodecNone, 1, make([]byte, minRecordSize)))
	require.NoError(t, err)
	_, err = ParseBatch(batchWith(CodecNone, 1, make([]byte, minRecordSize-1)))
	require.ErrorIs(t, err, CodeMalformed)
	for _, p := range []ProducerIdentity{{ID: 0, Epoch: -1}, {ID: 0, Sequence: -1}, {ID: -2}} {
		b := batchWith(CodecNone, 1, make([]byte, minRecordSize))
		putProducer(b, p)
		_, err = ParseBatch(b)
		require.ErrorIs(t, err, CodeMalformed, "%+v", p)
	}
}

// A header's key has a length. One that is negative leads back into what was read before,
// which says here that the record ends where it does.
func TestAHeaderKeyOfANegativeLengthIsRefused(t *testing.T) {
	section := []byte{
		0x12,       // length 9
		0, 0, 0, 1, // attributes, deltas, no key
		2, 6, // a value of one byte: 3 as a length
		2,    // one header
		5, 0, // its key has -3 bytes
	}
	_, err := ValidateBatch(batchWith(CodecNone, 1, section), nil, BatchLimits{})
	require.ErrorIs(t, err, CodeMalformed)
	require.ErrorContains(t, err, "header key")
}

// A reader may be given anything: what ValidateBatch would have refused ends it.
func TestARecordReaderChecksWhatItReads(t *testing.T) {
	info, err := ParseBatch(unhex(t, goldenBatch))
	require.NoError(t, err)
	golden := Records(unhex(t, goldenBatch))
	for name, change := range map[string]func(b []byte) []byte{
		"another offset":           func(b []byte) []byte { b[16] = 4; return b },
		"a key longer than it all": func(b []byte) []byte { b[4] = 0x7e; return b },
		"the last is missing":      func(b []byte) []byte { return b[:27] },
		"bytes behind the last":    func(b []byte) []byte { return append(b, 0) },
		"an unfinished length":     func(b []byte) []byte { return append(b[:27], 0x8e) },
	} {
		var reader RecordReader
		var record Record
		section := change(bytes.Clone(golden))
		reader.Reset(&info, section[:len(section):len(section)])
		for reader.Next(&record) {
		}
		require.ErrorIs(t, reader.Err(), CodeMalformed, name)
		require.False(t, reader.Next(&record), name)
	}
	for _, b := range [][]byte{{}, {0x80}, {0x80, 0x80}} {
		_, p := shortVarint(b, 0)
		require.Equal(t, -1, p)
	}
}

// A record as large as it may be, in each way of looking at it, and one byte more.
func TestTheLargestRecordIsTaken(t *testing.T) {
	const largest = 14 // of the golden batch
	batch, index := unhex(t, goldenBatch), unhex(t, goldenIndex)
	for _, limits := range []BatchLimits{{}, {LengthsOnly: true}} {
		limits.MaxRecordBytes = largest
		_, err := ValidateBatch(batch, index, limits)
		require.NoError(t, err)
		limits.MaxRecordBytes--
		_, err = ValidateBatch(batch, index, limits)
		require.ErrorIs(t, err, CodeTooLarge)
	}
	x, err := ParseRecordIndex(AppendRecordIndex(nil, 0, []IndexEntry{{Length: minRecordSize}, {Length: largest}}))
	require.NoError(t, err)
	const size = minRecordSize + largest
	require.NoError(t, checkIndexLengths(x, size, true, largest))
	require.NoError(t, checkIndexLengths(x, size+1, false, largest), "a bound may be above")
	require.ErrorIs(t, checkIndexLengths(x, size, true, largest-1), CodeTooLarge)
	require.ErrorIs(t, checkIndexLengths(x, size+1, true, largest), CodeMalformed)
	require.ErrorIs(t, checkIndexLengths(x, size-1, true, largest), CodeMalformed)
	require.ErrorIs(t, checkIndexLengths(x, size-1, false, largest), CodeMalformed)
	x, err = ParseRecordIndex(AppendRecordIndex(nil, 0, []IndexEntry{{Length: minRecordSize - 1}}))
	require.NoError(t, err)
	require.ErrorIs(t, checkIndexLengths(x, 100, false, largest), CodeMalformed)
}

func TestValidateBatchByLengthsFindsWrongLengthsOnly(t *testing.T) {
	limits := BatchLimits{LengthsOnly: true}
	records := Records(unhex(t, goldenBatch))
	back := make([]byte, 32) // a length of 30, one of -3 behind it, and 2 where that leads, which ends where the batch does
	back[0], back[29], back[31] = 30<<1, 2<<1, 5
	for name, batch := range map[string][]byte{
		"negative length":                 change(t, 61, 0x01),
		"overlong length":                 batchWith(CodecNone, 1, []byte{0x8c, 0x00, 0, 0, 0, 0, 0, 0}),
		"records that end before the end": batchWith(CodecNone, 2, records),
		"a batch that ends inside":        batchWith(CodecNone, 3, records[:len(records)-1]),
		"a length that leads back":        batchWith(CodecNone, 3, back),
		"a short record and a long one":   batchWith(CodecNone, 2, append([]byte{4 << 1, 0, 0, 0, 0, 20 << 1}, make([]byte, 20)...)),
		"a record too short to be one":    batchWith(CodecNone, 1, []byte{8, 0, 0, 0, 0, 8, 0, 0, 0, 0}),
	} {
		_, err := ValidateBatch(batch, nil, limits)
		require.ErrorIs(t, err, CodeMalformed, name)
	}
	_, err := ValidateBatch(unhex(t, goldenBatch), nil, BatchLimits{LengthsOnly: true, MaxRecordBytes: 13})
	require.ErrorIs(t, err, CodeTooLarge)

	inside := change(t, 65, 0x10) // a key longer than its record
	_, err = ValidateBatch(inside, nil, limits)
	require.NoError(t, err)
	_, err = ValidateBatch(inside, nil, BatchLimits{})
	require.ErrorIs(t, err, CodeMalformed)
}

func TestValidateBatchLimits(t *testing.T) {
	batch, index := unhex(t, goldenBatch), unhex(t, goldenIndex)
	for _, test := range []struct {
		name   string
		index  []byte
		limits BatchLimits
		want   error
	}{
		{"a batch as large as its limit", nil, BatchLimits{MaxBatchBytes: 96}, nil},
		{"a batch above its limit", nil, BatchLimits{MaxBatchBytes: 95}, CodeTooLarge},
		{"a record as large as its limit", nil, BatchLimits{MaxRecordBytes: 14}, nil},
		{"a record above its limit", nil, BatchLimits{MaxRecordBytes: 13}, CodeTooLarge},
		{"an indexed record above its limit", index, BatchLimits{MaxRecordBytes: 13}, CodeTooLarge},
		{"no index where one is required", nil, BatchLimits{RequireIndex: true}, CodeInvalidRequest},
		{"an index where none is required", index, BatchLimits{}, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := ValidateBatch(batch, test.index, test.limits)
			if test.want == nil {
				require.NoError(t, err)
				return
			}
			require.ErrorIs(t, err, test.want)
		})
	}
}

func TestValidateBatchHoldsTheIndexAgainstTheRecords(t *testing.T) {
	batch := unhex(t, goldenBatch)
	entries := []IndexEntry{{0xabcdef, 13, 0xb6d4f18a}, {0, 14, 0x310cb44c}, {1, 8, 0x5417852c}}
	with := func(change func(e []IndexEntry) []IndexEntry) []byte {
		return AppendRecordIndex(nil, 0, change(append([]IndexEntry(nil), entries...)))
	}
	strict := BatchLimits{VerifyIndexChecksums: true}
	for _, test := range []struct {
		name   string
		index  []byte
		limits BatchLimits
		want   error
	}{
		{"as it should be", with(func(e []IndexEntry) []IndexEntry { return e }), strict, nil},
		{"an entry too few", with(func(e []IndexEntry) []IndexEntry { return e[:2] }), strict, CodeMalformed},
		{"an entry too many", with(func(e []IndexEntry) []IndexEntry { return append(e, e[0]) }), strict, CodeMalformed},
		{"no entries", AppendRecordIndex(nil, 0, nil), strict, CodeMalformed},
		{"a wrong length", with(func(e []IndexEntry) []IndexEntry { e[1].Length++; return e }), strict, CodeMalformed},
		{"lengths swapped, the sum right", with(func(e []IndexEntry) []IndexEntry {
			e[0].Length, e[1].Length = e[1].Length, e[0].Length
			return e
		}), strict, CodeMalformed},
		{"a length of 2^32-1", with(func(e []IndexEntry) []IndexEntry { e[1].Length = math.MaxUint32; return e }), strict, CodeMalformed},
		{"a wrong CRC, if that is looked at", with(func(e []IndexEntry) []IndexEntry { e[2].CRC++; return e }), strict, CodeCorrupt},
		{"a wrong CRC, if it is not", with(func(e []IndexEntry) []IndexEntry { e[2].CRC++; return e }), BatchLimits{}, nil},
		{"a wrong key hash, which harms only that key", with(func(e []IndexEntry) []IndexEntry { e[2].KeyHash++; return e }), strict, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			for _, lengthsOnly := range []bool{false, true} {
				limits := test.limits
				limits.LengthsOnly = lengthsOnly
				_, err := ValidateBatch(batch, test.index, limits)
				if test.want == nil {
					require.NoError(t, err)
					continue
				}
				require.ErrorIs(t, err, test.want)
			}
		})
	}
}

func TestParseRecordIndexRefuses(t *testing.T) {
	golden := unhex(t, goldenIndex)
	signed := func(at int, value byte) []byte {
		b := append([]byte(nil), golden...)
		b[at] = value
		binary.LittleEndian.PutUint32(b[4:], recordIndexChecksum(b))
		return b
	}
	for _, test := range []struct {
		name string
		src  []byte
		want ErrorCode
	}{
		{"version 0", signed(0, 0), CodeUnsupported},
		{"a newer version", signed(0, 2), CodeUnsupported},
		{"flags", signed(1, 1), CodeUnsupported},
		{"a count below the entries", signed(2, 2), CodeMalformed},
		{"a count above the entries", signed(3, 0xff), CodeMalformed},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := ParseRecordIndex(test.src)
			require.ErrorIs(t, err, test.want)
		})
	}
	t.Run("any flipped bit", func(t *testing.T) {
		for bit := range len(golden) * 8 {
			b := append([]byte(nil), golden...)
			b[bit/8] ^= 1 << (bit % 8)
			_, err := ParseRecordIndex(b)
			require.ErrorIs(t, err, CodeCorrupt, "bit %d", bit)
		}
	})
	t.Run("any cut", func(t *testing.T) {
		for n := range len(golden) {
			_, err := ParseRecordIndex(golden[:n])
			require.Error(t, err, "%d bytes", n)
		}
	})
}

func TestSetProducerKeepsTheBatchSound(t *testing.T) {
	batch := unhex(t, goldenBatch)
	SetProducer(batch, ProducerIdentity{ID: 5, Epoch: 6, Sequence: 7})
	info, err := ValidateBatch(batch, nil, BatchLimits{})
	require.NoError(t, err)
	require.Equal(t, int64(5), info.ProducerID)
	require.Equal(t, int16(6), info.ProducerEpoch)
	require.Equal(t, int32(7), info.BaseSequence)

	SetProducer(batch, ProducerIdentity{ID: NoProducerID, Epoch: 6, Sequence: 7})
	info, err = ValidateBatch(batch, nil, BatchLimits{})
	require.NoError(t, err)
	require.Equal(t, int64(-1), info.ProducerID)
	require.Equal(t, int16(-1), info.ProducerEpoch)
	require.Equal(t, int32(-1), info.BaseSequence)
}

func TestBuilderKeepsWithinTheLimits(t *testing.T) {
	t.Run("records", func(t *testing.T) {
		var b BatchBuilder
		b.Reset(true)
		for range MaxBatchRecords {
			require.True(t, b.Append(0, 0, nil, nil, nil, 0))
		}
		size := b.Size()
		require.False(t, b.Append(0, 0, nil, nil, nil, 0))
		require.Equal(t, size, b.Size())
		batch, index := b.Finish(ProducerIdentity{ID: 1}, 0, CodecNone, nil)
		info, err := ValidateBatch(batch, index, BatchLimits{})
		require.NoError(t, err)
		require.Equal(t, uint32(MaxBatchRecords), info.RecordCount)
	})
	t.Run("bytes", func(t *testing.T) {
		for _, indexed := range []bool{false, true} {
			var b BatchBuilder
			b.Reset(indexed)
			value := make([]byte, 100_000)
			for b.Append(0, 0, nil, value, nil, 0) {
			}
			for n := len(value); n > 0; n /= 2 {
				for b.Append(0, 0, nil, value[:n], nil, 0) {
				}
			}
			batch, index := b.Finish(ProducerIdentity{ID: 1}, 0, CodecNone, nil)
			require.Greater(t, len(batch), MaxBatchBytes-100)
			_, err := ValidateBatch(batch, index, BatchLimits{RequireIndex: indexed})
			require.NoError(t, err)
			body := ProduceRequest{Index: index, Batch: batch}
			require.LessOrEqual(t, int(FrameLength(body.BodySize())), MaxFrameBytes)
		}
	})
	t.Run("small records with an index, limited by the frame", func(t *testing.T) {
		var b BatchBuilder
		b.Reset(true)
		value := make([]byte, 200)
		for b.Append(0, 0, nil, value, nil, 0) {
		}
		require.Less(t, b.Count(), MaxBatchRecords)
		batch, index := b.Finish(ProducerIdentity{ID: 1}, 0, CodecNone, nil)
		body := ProduceRequest{Index: index, Batch: batch}
		require.LessOrEqual(t, int(FrameLength(body.BodySize())), MaxFrameBytes)
		require.Greater(t, int(FrameLength(body.BodySize())), MaxFrameBytes-300)
	})
	t.Run("one record that is too large", func(t *testing.T) {
		var b BatchBuilder
		b.Reset(true)
		require.False(t, b.Append(0, 0, nil, make([]byte, MaxBatchBytes), nil, 0))
		require.Zero(t, b.Count())
		require.Zero(t, b.Size())
		require.True(t, b.Append(0, 0, nil, make([]byte, MaxRecordBytes-20), nil, 0), "the largest record fits with its index")
	})
}

func TestBuilderStartsOverAfterReset(t *testing.T) {
	var b BatchBuilder
	b.Reset(true)
	require.True(t, b.Append(9_999, 0, []byte("old"), []byte("old"), nil, 3))
	b.Reset(false)
	require.Zero(t, b.Size())
	require.Zero(t, b.Count())
	require.True(t, b.Append(5, 0, []byte("new"), nil, nil, 3))
	batch, index := b.Finish(ProducerIdentity{ID: NoProducerID}, 0, CodecNone, nil)
	require.Empty(t, index)
	info, err := ValidateBatch(batch, nil, BatchLimits{})
	require.NoError(t, err)
	require.Equal(t, uint32(1), info.RecordCount)
	require.Equal(t, int64(5), info.BaseTimestamp)
	require.Equal(t, int64(5), info.MaxTimestamp)
	require.Panics(t, func() {
		b.Reset(false)
		b.Finish(ProducerIdentity{}, 0, CodecNone, nil)
	})
}

func TestBuilderKeepsRecordsThatDoNotCompress(t *testing.T) {
	for codec, compress := range compressors(t) {
		if compress == nil {
			continue
		}
		var b BatchBuilder
		require.True(t, b.Append(1, 0, nil, []byte("q"), nil, 0))
		batch, _ := b.Finish(ProducerIdentity{ID: 1}, 0, codec, compress)
		info, err := ValidateBatch(batch, nil, BatchLimits{})
		require.NoError(t, err)
		require.Equal(t, CodecNone, info.Codec)

		b.Reset(false)
		require.True(t, b.Append(1, 0, nil, []byte(strings.Repeat("q", 1000)), nil, 0))
		batch, _ = b.Finish(ProducerIdentity{ID: 1}, 0, codec, compress)
		info, err = ValidateBatch(batch, nil, BatchLimits{})
		require.NoError(t, err)
		require.Equal(t, codec, info.Codec)
		require.Less(t, len(batch), 200)
	}
}

func TestEncodedSizeBoundIsABound(t *testing.T) {
	for _, s := range samples() {
		var b BatchBuilder
		require.True(t, b.Append(0, 0, nil, nil, nil, 0))
		before := b.Size()
		require.True(t, b.Append(math.MinInt64, 0, s.key, s.value, s.headers, 0))
		size := b.Size() - before
		bound := EncodedSizeBound(s.key, s.value, s.headers)
		require.LessOrEqual(t, size, bound)
		require.Less(t, bound-size, 40+10*len(s.headers))
	}
}

func TestBatchesAllocateNothingInSteadyState(t *testing.T) {
	var b BatchBuilder
	var r RecordReader
	var rec Record
	key, value := []byte("key"), make([]byte, 1024)
	headers := []RecordHeader{{"name", []byte("value")}}
	sink := 0
	require.Zero(t, testing.AllocsPerRun(100, func() {
		b.Reset(true)
		for i := range 50 {
			if !b.Append(int64(i), 0, key, value, headers, 1) {
				t.Fatal("record does not fit")
			}
		}
		batch, index := b.Finish(ProducerIdentity{ID: 1}, 0, CodecNone, nil)
		info, err := ValidateBatch(batch, index, BatchLimits{VerifyIndexChecksums: true})
		if err != nil {
			t.Fatal(err)
		}
		PatchBatch(batch, 7, 1)
		r.Reset(&info, Records(batch))
		for r.Next(&rec) {
			for k, v := range rec.Headers() {
				sink += len(k) + len(v)
			}
		}
	}))
	require.Positive(t, sink)
}

func TestVarints(t *testing.T) {
	for _, test := range []struct {
		value int64
		hex   string
	}{
		{0, "00"}, {-1, "01"}, {1, "02"}, {-2, "03"}, {63, "7e"}, {-64, "7f"}, {64, "8001"}, {300, "d804"},
		{math.MaxInt32, "feffffff0f"}, {math.MinInt32, "ffffffff0f"},
		{math.MaxInt64, "feffffffffffffffff01"}, {math.MinInt64, "ffffffffffffffffff01"},
	} {
		want := unhex(t, test.hex)
		u := zigzag64(test.value)
		require.Equal(t, len(want), uvarintSize(u))
		got := make([]byte, len(want))
		require.Equal(t, len(want), putUvarint(got, 0, u))
		require.Equal(t, want, got)
		v, p := varint64(append(want, 0xff), 0)
		require.Equal(t, test.value, v)
		require.Equal(t, len(want), p)
		w, p := varint32(want, 0)
		if int64(int32(test.value)) == test.value {
			require.Equal(t, int32(test.value), w)
			require.Equal(t, len(want), p)
			require.Equal(t, u, uint64(zigzag32(w)))
		} else {
			require.Equal(t, -1, p)
		}
		for n := range want {
			_, p := varint64(want[:n], 0)
			require.Equal(t, -1, p, "cut to %d bytes", n)
		}
	}
	for _, overlong := range []string{"8000", "808000", "ff00", "8080808000", "80808080808080808000", "8080808080808080808001", "80808080808080808002"} {
		_, p := varint64(unhex(t, overlong), 0)
		require.Equal(t, -1, p, overlong)
	}
	_, p := varint32(unhex(t, "ffffffff10"), 0)
	require.Equal(t, -1, p, "33 bits")
	for _, at := range []int{-1, 1, 5} {
		_, p := varint32([]byte{0}, at)
		require.Equal(t, -1, p)
	}

	// The short form is the same function on what it takes.
	for a := range 256 {
		for b := range 256 {
			src := []byte{byte(a), byte(b)}
			u, p := shortVarint(src, 0)
			want, wantP := uvarint32(src, 0)
			require.Equal(t, wantP, p)
			require.Equal(t, want, u)
		}
	}
}
