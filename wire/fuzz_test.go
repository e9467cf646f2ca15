package wire

import (
	"encoding/binary"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// reseal makes the length and CRC of fuzzed bytes match, so that fuzzing gets behind
// them.
func reseal(b []byte) []byte { return seal(append([]byte(nil), b...)) }

func addBatches(f *testing.F) {
	golden := unhex(f, goldenBatch)
	index := unhex(f, goldenIndex)
	f.Add(golden, index)
	f.Add(golden, []byte(nil))
	for _, codec := range []Codec{CodecSnappy, CodecZstd} {
		batch, index := build(f, codec, samples()[6:30])
		f.Add(batch, index)
	}
	f.Add(batchWith(CodecNone, 0x7fffffff, make([]byte, 10)), []byte(nil))
	f.Add(batchWith(CodecNone, 1, []byte{32, 0, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x01, 0, 0, 0, 0}), []byte(nil))
}

// FuzzValidateBatch: what is accepted can be read to its end, by our reader and by
// kmsg, and adds up to the batch.
func FuzzValidateBatch(f *testing.F) {
	addBatches(f)
	f.Fuzz(func(t *testing.T, batch, index []byte) {
		for _, batch := range [][]byte{batch, reseal(batch)} {
			info, err := ValidateBatch(batch, index, BatchLimits{VerifyIndexChecksums: true})
			_, shallowErr := ValidateBatch(batch, index, BatchLimits{LengthsOnly: true, VerifyIndexChecksums: true})
			if err != nil {
				require.NotEqual(t, CodeUnknown, CodeOf(err))
				continue
			}
			require.NoError(t, shallowErr, "the cheap walk accepts what the full walk accepts")
			require.Equal(t, len(batch), info.Length)
			require.Equal(t, int32(info.RecordCount-1), info.LastOffsetDelta)
			require.LessOrEqual(t, info.RecordCount, uint32(MaxBatchRecords))
			parsed, err := ParseBatch(batch)
			require.NoError(t, err)
			require.Equal(t, info, parsed)

			var kafka kmsg.RecordBatch
			require.NoError(t, kafka.ReadFrom(batch))
			require.Equal(t, batch, kafka.AppendTo(nil))
			if info.Codec != CodecNone {
				continue
			}
			var r RecordReader
			var rec Record
			r.Reset(&info, Records(batch))
			size, n := 0, 0
			for r.Next(&rec) {
				size += len(rec.Encoding)
				n++
				requireKafkaRecord(t, &rec)
			}
			require.NoError(t, r.Err())
			require.Equal(t, int(info.RecordCount), n)
			require.Equal(t, len(batch)-BatchHeaderSize, size)
			rebuild(t, &info, batch)
		}
	})
}

// requireKafkaRecord compares a record with what kmsg sees in the same bytes.
func requireKafkaRecord(t *testing.T, rec *Record) {
	var kafka kmsg.Record
	require.NoError(t, kafka.ReadFrom(rec.Encoding))
	require.Equal(t, kafka.Attributes, rec.Attributes)
	require.Equal(t, string(kafka.Key), string(rec.Key))
	require.Equal(t, kafka.Key == nil, rec.Key == nil)
	require.Equal(t, string(kafka.Value), string(rec.Value))
	require.Equal(t, kafka.Value == nil, rec.Value == nil)
	require.Len(t, kafka.Headers, rec.HeaderCount)
	i := 0
	for key, value := range rec.Headers() {
		require.Equal(t, kafka.Headers[i].Key, string(key))
		require.Equal(t, string(kafka.Headers[i].Value), string(value))
		require.Equal(t, kafka.Headers[i].Value == nil, value == nil)
		i++
	}
	require.Equal(t, i, rec.HeaderCount)
}

// rebuild encodes the records of a batch again: decode(encode(x)) = x, and the same
// bytes wherever the batch is as a builder would write it.
func rebuild(t *testing.T, info *BatchInfo, batch []byte) {
	var b BatchBuilder
	var r RecordReader
	var rec, again Record
	r.Reset(info, Records(batch))
	for r.Next(&rec) {
		require.True(t, b.Append(rec.TimestampMs, rec.Attributes, rec.Key, rec.Value, rec.AppendHeaders(nil), 0))
	}
	rebuilt, _ := b.Finish(ProducerIdentity{ID: info.ProducerID, Epoch: info.ProducerEpoch, Sequence: info.BaseSequence}, 0, CodecNone, nil)
	PatchBatch(rebuilt, info.BaseOffset, info.LeaderEpoch)
	rebuiltInfo, err := ValidateBatch(rebuilt, nil, BatchLimits{})
	require.NoError(t, err)
	var r2 RecordReader
	r.Reset(info, Records(batch))
	r2.Reset(&rebuiltInfo, Records(rebuilt))
	for r.Next(&rec) {
		require.True(t, r2.Next(&again))
		require.Equal(t, rec.Offset, again.Offset)
		require.Equal(t, rec.TimestampMs, again.TimestampMs)
		require.Equal(t, rec.Attributes, again.Attributes)
		require.Equal(t, rec.Key, again.Key)
		require.Equal(t, rec.Value, again.Value)
		require.Equal(t, rec.AppendHeaders(nil), again.AppendHeaders(nil))
	}
	require.False(t, r2.Next(&again))
	if rebuiltInfo.BaseTimestamp == info.BaseTimestamp {
		require.Equal(t, Records(batch), Records(rebuilt))
	}
}

// FuzzParseBatch: a header that parses is bounded.
func FuzzParseBatch(f *testing.F) {
	golden := unhex(f, goldenBatch)
	f.Add(golden)
	f.Add(batchWith(CodecZstd, 0x7fffffff, make([]byte, 10)))
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, b := range [][]byte{b, reseal(b)} {
			info, err := ParseBatch(b)
			if err != nil {
				continue
			}
			require.GreaterOrEqual(t, info.RecordCount, uint32(1))
			require.LessOrEqual(t, info.RecordCount, uint32(MaxBatchRecords))
			require.True(t, info.Codec.Supported())
			require.Len(t, b, info.Length)
			if info.ProducerID >= 0 {
				require.GreaterOrEqual(t, info.ProducerEpoch, int16(0))
				require.GreaterOrEqual(t, info.BaseSequence, int32(0))
			}
			p := append([]byte(nil), b...)
			PatchBatch(p, 1, 2)
			require.Equal(t, b[batchAtMagic:], p[batchAtMagic:])
			require.Equal(t, b[8:12], p[8:12])
		}
	})
}

// FuzzRecordReader walks any bytes as a section: views stay inside, and the walk
// ends.
func FuzzRecordReader(f *testing.F) {
	f.Add(Records(unhex(f, goldenBatch)), uint32(3))
	f.Add([]byte{0x0c, 0, 0, 0, 1, 1, 0}, uint32(0xffffffff))
	f.Fuzz(func(t *testing.T, section []byte, count uint32) {
		var r RecordReader
		var rec Record
		r.Reset(&BatchInfo{RecordCount: count, BaseOffset: 5}, section)
		position, n := 0, 0
		for r.Next(&rec) {
			require.Equal(t, Offset(5+n), rec.Offset)
			require.GreaterOrEqual(t, len(rec.Encoding), minRecordSize)
			require.Equal(t, len(rec.Encoding), cap(rec.Encoding))
			require.Equal(t, len(rec.Key), cap(rec.Key))
			require.Equal(t, len(rec.Value), cap(rec.Value))
			require.Same(t, &section[position], &rec.Encoding[0])
			size := len(rec.Key) + len(rec.Value)
			for key, value := range rec.Headers() {
				require.Equal(t, len(key), cap(key))
				require.Equal(t, len(value), cap(value))
				size += len(key) + len(value) + minHeaderSize
			}
			require.LessOrEqual(t, size+minRecordSize, len(rec.Encoding))
			position += len(rec.Encoding)
			n++
		}
		if r.Err() == nil {
			require.Equal(t, int(count), n)
			require.Equal(t, len(section), position)
		} else {
			require.ErrorIs(t, r.Err(), CodeMalformed)
			require.False(t, r.Next(&rec))
		}
	})
}

// FuzzRecordIndex: what parses encodes to the same bytes.
func FuzzRecordIndex(f *testing.F) {
	f.Add(unhex(f, goldenIndex))
	f.Add(AppendRecordIndex(nil, 0, nil))
	f.Fuzz(func(t *testing.T, src []byte) {
		signed := append([]byte(nil), src...)
		if len(signed) >= RecordIndexHeaderSize {
			binary.LittleEndian.PutUint32(signed[4:], recordIndexChecksum(signed))
		}
		for _, src := range [][]byte{src, signed} {
			x, err := ParseRecordIndex(src)
			if err != nil {
				continue
			}
			var entries []IndexEntry
			for i := range x.Len() {
				entries = append(entries, x.Entry(i))
			}
			require.Equal(t, src, AppendRecordIndex(nil, x.PublisherHash, entries))
		}
	})
}

// FuzzValidateName: a valid name survives the way over the wire and is bounded.
func FuzzValidateName(f *testing.F) {
	f.Add("orders/eu")
	f.Add("../a")
	f.Add("a\x00")
	f.Fuzz(func(t *testing.T, name string) {
		if err := ValidateName(name); err != nil {
			require.ErrorIs(t, err, CodeInvalidName)
			return
		}
		require.LessOrEqual(t, len(name), MaxNameBytes)
		var m OpenPartitionRequest
		require.NoError(t, m.Parse((&OpenPartitionRequest{Destination: name}).Append(nil)))
		require.Equal(t, name, m.Destination)
	})
}
