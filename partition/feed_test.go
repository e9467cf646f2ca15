package partition

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/log"
	"github.com/lockstepmq/lockstep/partition/group"
	"github.com/lockstepmq/lockstep/wire"
)

// feedEntry is an entry of records of batches with so many records each.
func feedEntry(base wire.Offset, counts ...int) *Entry {
	var body []byte
	next := base
	for n, count := range counts {
		var b wire.BatchBuilder
		b.Reset(true)
		for k := range count {
			b.Append(int64(k), 0, []byte("key"), []byte("value"), nil, uint64(next)+uint64(k)+1)
		}
		batch, index := b.Finish(wire.ProducerIdentity{ID: wire.NoProducerID}, uint64(n+100), wire.CodecNone, nil)
		wire.PatchBatch(batch, next, 1)
		body = wire.AppendBodyBatch(body, index, batch)
		next += wire.Offset(count)
	}
	return &Entry{Kind: wire.KindRecords, RecordCount: uint32(next - base), BaseOffset: base, Body: body}
}

// found is where the feed knows records of [from, to).
func found(f *feed, from, to wire.Offset) (known []wire.Offset) {
	for o := from; o < to; o++ {
		if p, ok := f.At(o); ok {
			if o < p.Base || o >= p.Next() {
				panic("a batch that does not hold what was asked for")
			}
			known = append(known, o)
		}
	}
	return known
}

func offsets(from, to wire.Offset) (list []wire.Offset) {
	for ; from < to; from++ {
		list = append(list, from)
	}
	return list
}

func TestAFeedKnowsWhatIsApplied(t *testing.T) {
	f := &feed{}
	e := feedEntry(0, 2, 3)
	f.applied(log.Position{Segment: 1, Byte: 100}, true, e)
	require.Empty(t, found(f, 0, 5), "nobody consumes")
	f.use(true)
	f.applied(log.Position{Segment: 1, Byte: 100}, true, e)
	clear(e.Body) // it was a view
	p, ok := f.At(3)
	require.True(t, ok)
	first, _ := f.At(0)
	require.Equal(t, &group.Place{
		At:         log.Position{Segment: 1, Byte: 100 + int64(wire.BodyBatchSize(16+2*16, first.BatchBytes))},
		IndexBytes: 16 + 3*16, BatchBytes: p.BatchBytes, Base: 2, Count: 3, Publisher: 101, Index: p.Index,
	}, p)
	require.Len(t, p.Index, 3*16)
	require.EqualValues(t, 3, p.Index[0], "the hash of the key of record 2")

	f.applied(log.Position{}, false, feedEntry(5, 1)) // of which it is not known where it lies
	f.applied(log.Position{Segment: 1, Byte: 900}, true, feedEntry(6, 2))
	f.applied(log.Position{}, false, &Entry{Kind: wire.KindRecords, RecordCount: 3, BaseOffset: 8, Damaged: true})
	require.Equal(t, append(offsets(0, 5), offsets(6, 11)...), found(f, 0, 20))
	p, _ = f.At(9)
	require.True(t, p.Damaged)
	f.use(true)
	require.NotEmpty(t, found(f, 0, 20))
	f.use(false)
	f.use(true)
	require.Empty(t, found(f, 0, 20))
}

func TestWhatIsScannedFillsTheGaps(t *testing.T) {
	scan := func(from, to wire.Offset) (list []log.Batch) {
		for ; from < to; from++ {
			list = append(list, log.Batch{Base: from, Count: 1, Index: make([]byte, 16)})
		}
		return list
	}
	f := &feed{}
	f.use(true)
	f.applied(log.Position{Segment: 1}, true, feedEntry(10, 5))
	f.scanned(scan(2, 6))
	f.scanned(scan(0, 3)) // parts of it are known
	require.Equal(t, append(offsets(0, 3), offsets(10, 15)...), found(f, 0, 20), "the newer scan counts")
	f.scanned(scan(3, 13)) // and what Apply has brought stays
	require.Equal(t, offsets(0, 15), found(f, 0, 20))
	f.applied(log.Position{Segment: 1, Byte: 500}, true, feedEntry(15, 2))
	require.Equal(t, offsets(0, 17), found(f, 0, 20))
	require.Len(t, f.chunks, 3)
	f.scanned(nil)
}

func TestAFeedHasALimit(t *testing.T) {
	f := &feed{}
	f.use(true)
	const counts = 4000
	for base := wire.Offset(0); base < 400*counts; base += counts {
		f.applied(log.Position{Segment: 1, Byte: int64(base)}, true, feedEntry(base, counts))
		f.At(0) // somebody looks at the beginning all the time
		f.last = nil
		require.LessOrEqual(t, f.bytes, MaxFeedBytes+chunkIndexBytes)
		sum := 0
		for _, c := range f.chunks {
			sum += c.bytes
		}
		require.Equal(t, sum, f.bytes)
	}
	_, ok := f.At(0)
	require.True(t, ok)
	_, ok = f.At(400*counts - 1)
	require.True(t, ok)
	_, ok = f.At(counts)
	require.False(t, ok)
	large := feedEntry(400*counts, 60_000)
	f.applied(log.Position{Segment: 2}, true, large)
	_, ok = f.At(400*counts + 59_999)
	require.True(t, ok)
}
