package group

import (
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/wire"
)

func TestLeasesLoseAllSpansInOnePass(t *testing.T) {
	var l leases
	l.add(lease{from: 0, to: 10, epoch: 1})
	l.add(lease{from: 10, to: 20, epoch: 2})
	l.add(lease{from: 30, to: 40, epoch: 2})
	l.removeAll([]Span{{2, 4}, {6, 12}, {15, 16}, {19, 31}, {50, 60}})
	require.Equal(t, []lease{
		{from: 0, to: 2, epoch: 1}, {from: 4, to: 6, epoch: 1, order: 4}, {from: 12, to: 15, epoch: 2, order: 2}, {from: 16, to: 19, epoch: 2, order: 6}, {from: 31, to: 40, epoch: 2, order: 1},
	}, l.all())
	l.removeAll([]Span{{0, 2}, {4, 100}})
	require.True(t, l.empty())
}

// Leases are what a map of records would be, whatever is added, changed and removed.
func TestLeasesAgreeWithAMap(t *testing.T) {
	const seed, size = 5, 200
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	type one struct {
		epoch wire.Index
		state leaseState
	}
	span := func(longest uint64) (from, to wire.Offset) {
		from = wire.Offset(random.Uint64N(size))
		return from, min(size, from+1+wire.Offset(random.Uint64N(longest)))
	}
	var l leases
	model := map[wire.Offset]one{}
	for range 20_000 {
		from, to := span(12)
		switch random.IntN(4) {
		case 0:
			for o := from; o < to; o++ { // nothing of a run that is added is held
				if _, ok := model[o]; ok {
					to = o
				}
			}
			if from == to {
				continue
			}
			epoch := wire.Index(random.Uint64N(2))
			l.add(lease{from: from, to: to, epoch: epoch})
			for o := from; o < to; o++ {
				model[o] = one{epoch, held}
			}
		case 1:
			l.change(from, to, func(x *lease) { x.state = settling })
			for o := from; o < to; o++ {
				if v, ok := model[o]; ok {
					model[o] = one{v.epoch, settling}
				}
			}
		case 2:
			l.remove(from, to)
			for o := from; o < to; o++ {
				delete(model, o)
			}
		case 3:
			var spans []Span
			for at := from; at < size && len(spans) < 5; {
				next := min(size, at+1+wire.Offset(random.Uint64N(6)))
				spans = append(spans, Span{at, next})
				for o := at; o < next; o++ {
					delete(model, o)
				}
				at = next + wire.Offset(random.Uint64N(20))
			}
			l.removeAll(spans)
		}
		seen, last := 0, wire.Offset(0)
		for _, r := range l.all() {
			require.Less(t, r.from, r.to)
			require.LessOrEqual(t, last, r.from)
			last = r.to
			for o := r.from; o < r.to; o++ {
				require.Equal(t, model[o], one{r.epoch, r.state})
				seen++
			}
		}
		require.Len(t, model, seen)
	}
}
