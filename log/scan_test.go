package log

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/vfs"
	"github.com/lockstepmq/lockstep/wire"
)

// stored makes an entry of batches, one for each number, which is how many records it has.
// The keys are hashed to 1, 2, ... from each batch's first record on.
func stored(i wire.Index, base wire.Offset, counts ...int) Entry {
	var body []byte
	next := base
	for n, count := range counts {
		var b wire.BatchBuilder
		b.Reset(true)
		for k := range count {
			b.Append(int64(k), 0, []byte("key"), []byte("value"), nil, uint64(k+1))
		}
		batch, index := b.Finish(wire.ProducerIdentity{ID: wire.NoProducerID}, uint64(n+100), wire.CodecNone, nil)
		wire.PatchBatch(batch, next, 1)
		if n == 1 { // one without an index
			index = nil
		}
		body = wire.AppendBodyBatch(body, index, batch)
		next += wire.Offset(count)
	}
	e := prefixed(wire.KindRecords, i, 1, uint32(next-base), int64(1000*uint64(i)), len(body))
	copy(e.Data[wire.EntryPrefixSize:], body)
	return e
}

// scannedLog has three entries of batches with 2+1+3, 4 and 100 records, and others between.
func scannedLog(t *testing.T, fs vfs.FS, segmentBytes int64) *rig {
	r := newRig(t, fs, func(o *Options) { o.SegmentBytes = segmentBytes }).open()
	r.term(1)
	r.append(noOp(1, 1), stored(2, 0, 2, 1, 3), control(3, 1, 40))
	r.commit()
	r.append(stored(4, 6, 4), stored(5, 10, 100))
	r.commit()
	r.log.MarkIdle()
	r.jobs.drain()
	return r
}

// scanAll scans in pieces of so many records, and says what was found without places.
func scanAll(t *testing.T, l *Log, from wire.Offset, records int) (found []string) {
	var s Scanned
	for o := from; ; {
		require.NoError(t, l.Scan(o, records, &s))
		if len(s.Batches) == 0 {
			require.Equal(t, l.Watermark().Next, o)
			return found
		}
		for i := range s.Batches {
			b := &s.Batches[i]
			found = append(found, fmt.Sprintf("%d+%d publisher %d, %d bytes of index, damaged %t", b.Base, b.Count, b.Publisher, len(b.Index), b.Damaged))
			o = b.Next()
		}
	}
}

func TestScanDescribesBatchesWithoutReadingThem(t *testing.T) {
	want := []string{
		"0+2 publisher 100, 32 bytes of index, damaged false",
		"2+1 publisher 0, 0 bytes of index, damaged false",
		"3+3 publisher 102, 48 bytes of index, damaged false",
		"6+4 publisher 100, 64 bytes of index, damaged false",
		"10+100 publisher 100, 1600 bytes of index, damaged false",
	}
	for _, segmentBytes := range []int64{1 << 20, 600} {
		r := scannedLog(t, vfs.NewSimulated(1), segmentBytes)
		for _, records := range []int{1, 3, 1000} {
			require.Equal(t, want, scanAll(t, r.log, 0, records))
		}
		require.Equal(t, want[2:], scanAll(t, r.log, 4, 1000), "from the middle of a batch")

		// The places are those of the bytes, and what an owner finds when it applies.
		var s Scanned
		require.NoError(t, r.log.Scan(0, 1000, &s))
		for i := range s.Batches {
			b := &s.Batches[i]
			buf := make([]byte, wire.BodyBatchSize(b.IndexBytes, b.BatchBytes))
			n, _, err := r.log.ReadAt(b.At, buf)
			require.NoError(t, err)
			require.Equal(t, len(buf), n)
			body, rest, err := wire.NextBodyBatch(buf)
			require.NoError(t, err)
			require.Empty(t, rest)
			info, err := wire.VerifyBatch(body.Batch)
			require.NoError(t, err)
			require.Equal(t, b.Base, info.BaseOffset)
			require.EqualValues(t, b.Count, info.RecordCount)
			require.Equal(t, body.Index[min(16, len(body.Index)):], append([]byte{}, b.Index...))
		}
		e := stored(5, 10, 100)
		at, ok := r.log.BodyAt(5, len(e.Data)-wire.EntryPrefixSize)
		require.True(t, ok)
		require.Equal(t, s.Batches[4].At, at)
		_, ok = r.log.BodyAt(6, 0)
		require.False(t, ok)
		require.ErrorIs(t, r.log.Scan(0, 0, &s), nil)
		require.Empty(t, s.Batches)
	}
}

func TestScanFindsDamage(t *testing.T) {
	fs := vfs.NewSimulated(1)
	r := scannedLog(t, fs, 1<<20)
	name, from, _ := r.frame(4)
	r.kill()
	// What a scan reads of a batch contradicts its frame, and nobody has read the body yet.
	require.NoError(t, fs.Corrupt(name, from+wire.FrameHeaderSize+2, 1))
	r.open()
	r.log.Publish(5)
	got := scanAll(t, r.log, 3, 1000)
	require.Equal(t, []string{
		"3+3 publisher 102, 48 bytes of index, damaged false",
		"6+4 publisher 0, 0 bytes of index, damaged true",
		"10+100 publisher 100, 1600 bytes of index, damaged false",
	}, got)
	require.Equal(t, got[1:], scanAll(t, r.log, 6, 1000))
}
