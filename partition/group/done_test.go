package group

import (
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/wire"
)

func TestRecordsDoneInOrderCostNothing(t *testing.T) {
	var d Done
	d.Add(0, 10)
	d.Add(10, 20)
	require.EqualValues(t, 20, d.Floor())
	require.Empty(t, d.chunks)
	require.True(t, d.Has(19))
	require.False(t, d.Has(20))
}

func TestTheFloorFollowsWhatIsDoneAboveIt(t *testing.T) {
	var d Done
	d.Add(5, 8)
	d.Add(9, 12)
	require.EqualValues(t, 0, d.Floor())
	require.EqualValues(t, 6, d.Above())
	require.EqualValues(t, 8, d.Next(5))
	require.EqualValues(t, 12, d.Next(10))
	require.EqualValues(t, 4, d.Next(4))
	d.Add(0, 5)
	require.EqualValues(t, 8, d.Floor())
	require.EqualValues(t, 3, d.Above())
	d.Add(8, 9)
	require.EqualValues(t, 12, d.Floor())
	require.EqualValues(t, 0, d.Above())
}

func TestRecordsAcrossChunksAreDone(t *testing.T) {
	const border = wire.Offset(1) << 40
	var d Done
	d.Raise(border - 100)
	d.Add(border-50, border+chunkSize+50)
	require.Len(t, d.chunks, 3)
	require.True(t, d.Has(border-1))
	require.True(t, d.Has(border))
	require.EqualValues(t, border+chunkSize+50, d.Next(border-50))
	require.EqualValues(t, chunkSize+100, d.Above())
	require.EqualValues(t, 30, d.count(border-60, border-20))
	require.EqualValues(t, 70+chunkSize, d.count(border-20, border+chunkSize+1000))
	require.Same(t, full, d.chunks[uint64(border)/chunkSize])
	d.Add(border+7, border+9)
	require.Same(t, full, d.chunks[uint64(border)/chunkSize])
	d.Add(border-100, border-50)
	require.EqualValues(t, border+chunkSize+50, d.Floor())
	require.EqualValues(t, 0, d.Above())
	require.Len(t, d.chunks, 1)
}

// TestDoneAgainstAMap compares with the simplest set there is, in the first chunk and
// across the border to the next.
func TestDoneAgainstAMap(t *testing.T) {
	for seed := range uint64(200) {
		random := rand.New(rand.NewPCG(seed, 1))
		base := wire.Offset(random.IntN(2)) * (chunkSize - 500)
		var d Done
		d.Raise(base)
		model := map[wire.Offset]bool{}
		for range 60 {
			from := base + wire.Offset(random.IntN(1000))
			to := from + wire.Offset(random.IntN(1+random.IntN(60)))
			switch random.IntN(20) {
			case 0:
				d.Raise(from)
				for o := base; o < from; o++ {
					model[o] = true
				}
			case 1:
				c := d.Clone()
				c.Add(base, base+2000) // does not reach d
			default:
				d.Add(from, to)
				for o := from; o < to; o++ {
					model[o] = true
				}
			}
		}
		floor, above := base, uint64(0)
		for model[floor] {
			floor++
		}
		for o := range model {
			if o > floor {
				above++
			}
		}
		require.Equal(t, floor, d.Floor(), "seed %d", seed)
		require.Equal(t, above, d.Above(), "seed %d", seed)
		var spans []Span
		d.unfinished(base, base+1100, func(from, to wire.Offset) { spans = append(spans, Span{from, to}) })
		for o := base; o < base+1100; o++ {
			require.Equal(t, model[o], d.Has(o), "seed %d, offset %d", seed, o)
			if len(spans) > 0 && o == spans[0].To {
				spans = spans[1:]
			}
			in := len(spans) > 0 && spans[0].From <= o
			require.Equal(t, !model[o], in, "seed %d, offset %d", seed, o)
			if o >= floor {
				next := o
				for model[next] {
					next++
				}
				require.Equal(t, next, d.Next(o), "seed %d, offset %d", seed, o)
			}
		}
		to := base + wire.Offset(random.IntN(1100))
		var n uint64
		for o := base + 20; o < to; o++ {
			if model[o] {
				n++
			}
		}
		require.Equal(t, n, d.count(base+20, max(to, base+20)), "seed %d", seed)
	}
}

// Chunks that are equal are saved alike, whatever became of them in between, and take
// the shorter form.
func TestDoneIsSavedByWhatIsInIt(t *testing.T) {
	for seed := range uint64(12) {
		random := rand.New(rand.NewPCG(seed, 2))
		var spans []Span
		for o := wire.Offset(10); o < 3*chunkSize; {
			length := 1 + wire.Offset(random.IntN(1+int(seed)%7*30))
			spans = append(spans, Span{o, o + length})
			o += length + 1 + wire.Offset(random.IntN(1+int(seed)%5))
		}
		var saved []byte
		for range 2 {
			var d Done
			random.Shuffle(len(spans), func(i, j int) { spans[i], spans[j] = spans[j], spans[i] })
			for _, s := range spans {
				d.Add(s.From, s.To)
			}
			if saved == nil {
				saved = d.save(nil)
			}
			require.Equal(t, saved, d.save(nil))
			require.Less(t, len(saved), 4*(chunkSize/8+10))
		}
		var again Done
		r := reader{src: saved}
		r.doneSet(&again)
		require.NoError(t, r.done())
		require.Equal(t, saved, again.save(nil))
	}
}

func BenchmarkDoneOutOfOrder(b *testing.B) {
	var d Done
	at := wire.Offset(0)
	for b.Loop() { // 1,000 keys, each acknowledged a little before or after its neighbours
		o := at ^ 0x155
		d.Add(o, o+1)
		at++
	}
}
