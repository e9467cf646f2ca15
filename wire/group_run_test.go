package wire

import (
	"encoding/binary"
	"testing"

	"github.com/stretchr/testify/require"
)

// runBatch is a batch of four records, from offset 40 on, with its index.
func runBatch() (batch, index []byte) {
	var b BatchBuilder
	b.Reset(true)
	for i, value := range []string{"zero", "one", "two", "three"} {
		b.Append(int64(1000+i), 0, []byte("key"), []byte(value), nil, uint64(i+10))
	}
	batch, index = b.Finish(ProducerIdentity{ID: NoProducerID}, 77, CodecNone, nil)
	PatchBatch(batch, 40, 3)
	return batch, index
}

// run is records [first, first+count) of runBatch as DeliverRecords has them.
func run(first, count int) []byte {
	batch, index := runBatch()
	entries := index[RecordIndexHeaderSize:]
	x, _ := ParseRecordIndex(index)
	from := BatchHeaderSize
	for i := range first {
		from += int(x.Entry(i).Length)
	}
	to := from
	for i := range count {
		to += int(x.Entry(first + i).Length)
	}
	out := AppendRecordRun(nil, first, 77, batch[:BatchHeaderSize], entries[first*RecordIndexEntrySize:(first+count)*RecordIndexEntrySize])
	return append(out, batch[from:to]...)
}

func TestARecordRunReadsAsInItsBatch(t *testing.T) {
	b := run(1, 2)
	require.Len(t, b, RecordRunPrefixSize(2)+len(b[RecordRunPrefixSize(2):]))
	require.Equal(t, []byte{1, 0, 0, 0, 2, 0, 0, 0, 77, 0, 0, 0, 0, 0, 0, 0}, b[:RecordRunHeaderAt])
	r, err := ParseRecordRun(b)
	require.NoError(t, err)
	require.Equal(t, []any{1, 2, uint64(77), Offset(41)}, []any{r.First, r.Count, r.Publisher, r.Base()})
	require.EqualValues(t, 11, r.Entry(0).KeyHash)
	var reader RecordReader
	var record Record
	r.Read(&reader)
	for i, want := range []string{"one", "two"} {
		require.True(t, reader.Next(&record))
		require.Equal(t, want, string(record.Value))
		require.Equal(t, Offset(41+i), record.Offset)
		require.EqualValues(t, 1001+i, record.TimestampMs)
		require.NoError(t, r.Check(i, &record))
	}
	require.False(t, reader.Next(&record))
	require.NoError(t, reader.Err())
	b[len(b)-2] ^= 1 // of the value of the last record
	r, err = ParseRecordRun(b)
	require.NoError(t, err)
	r.Read(&reader)
	require.True(t, reader.Next(&record))
	require.True(t, reader.Next(&record))
	require.ErrorIs(t, r.Check(1, &record), CodeCorrupt)
}

func TestARecordRunOfAnythingElseIsRefused(t *testing.T) {
	good := run(1, 2)
	for n := range RecordRunPrefixSize(2) {
		_, err := ParseRecordRun(good[:n])
		require.ErrorIs(t, err, CodeMalformed, "%d bytes", n)
	}
	for name, at := range map[string]int{"zero": RecordRunPrefixSize(0) - 1, "codec": RecordRunHeaderAt + 22, "first": 0, "count": 4} {
		b := append([]byte(nil), good...)
		b[at] |= 4
		_, err := ParseRecordRun(b)
		require.Error(t, err, name)
	}
	b := append([]byte(nil), good...)
	binary.LittleEndian.PutUint32(b[RecordRunPrefixSize(0)+8:], 1)
	r, err := ParseRecordRun(b)
	require.NoError(t, err)
	var reader RecordReader
	var record Record
	r.Read(&reader)
	require.True(t, reader.Next(&record))
	require.ErrorIs(t, r.Check(0, &record), CodeCorrupt, "a length that is not the record's, with its CRC")
	_, err = ParseRecordRun(run(1, 3))
	require.NoError(t, err, "up to the last record of the batch")
	b = append([]byte(nil), good...)
	b[4] = 4
	_, err = ParseRecordRun(b)
	require.ErrorIs(t, err, CodeMalformed, "more records than the batch has behind the first")
	b = append([]byte(nil), good...)
	b[4] = 0
	_, err = ParseRecordRun(b)
	require.ErrorIs(t, err, CodeMalformed, "no records")
}

// FuzzRecordRun: records lie inside of the bytes, and there are no more than it says.
func FuzzRecordRun(f *testing.F) {
	f.Add(run(0, 4))
	f.Add(run(1, 2))
	f.Fuzz(func(t *testing.T, src []byte) {
		r, err := ParseRecordRun(src[:len(src):len(src)])
		if err != nil {
			return
		}
		require.Positive(t, r.Count)
		require.LessOrEqual(t, r.Count, len(src)/RecordIndexEntrySize)
		var reader RecordReader
		var record Record
		r.Read(&reader)
		n := 0
		for ; reader.Next(&record); n++ {
			require.Equal(t, r.Base()+Offset(n), record.Offset)
			_ = r.Check(n, &record)
		}
		require.LessOrEqual(t, n, r.Count)
	})
}
