package group

import (
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/wire"
)

// Runs are what a map of records would be, whatever is put in, cut out and left out, and
// nothing is looked for behind the last one.
func TestRunsAgreeWithAMap(t *testing.T) {
	const seed, size = 7, 120
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	var r runs
	model := map[wire.Offset]Returned{}
	for range 2_000 {
		from := wire.Offset(random.Uint64N(size))
		to := min(size, from+1+wire.Offset(random.Uint64N(15)))
		r.cut(nil, from, to)
		for o := from; o < to; o++ {
			delete(model, o)
		}
		switch known := (Returned{Deliveries: 1, Fence: wire.Index(random.Uint64N(3))}); random.IntN(8) {
		case 0:
			r.keep(func(x *run) bool { return x.Fence > known.Fence })
			for o, of := range model {
				if of.Fence <= known.Fence {
					delete(model, o)
				}
			}
		case 1, 2, 3:
			r.put(run{from: from, to: to, Returned: known})
			for o := from; o < to; o++ {
				model[o] = known
			}
		}
		var end wire.Offset
		for o := range wire.Offset(size + 2) {
			x, ok := r.at(o)
			want, there := model[o]
			if there != ok || ok && want != x.Returned {
				require.Fail(t, "another run", "record %d: %t %+v, expected %t %+v", o, ok, x.Returned, there, want)
			}
			if ok {
				end = o + 1
			}
		}
		require.Equal(t, end, r.end)
	}
}

// What a record costs that is given out while a lower one waits to be tried again.
func BenchmarkRecordBehindAReturnedOne(b *testing.B) {
	g := &Group{}
	g.returned.put(run{from: 5, to: 6, Returned: Returned{Attempts: 3}})
	for n := range b.N {
		if _, known := g.Record(wire.Offset(100 + n)); known {
			b.Fatal("nothing was returned there")
		}
	}
}
