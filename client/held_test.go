package client

import (
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/wire"
)

func held(o uint64) *Delivery { return &Delivery{Record: Record{Offset: o}} }

func TestHeldRecordsAreFoundByOffsetAndListedInOrder(t *testing.T) {
	var h heldRecords
	require.Nil(t, h.get(0))
	require.Empty(t, h.list())
	h.remove(7) // nothing is there
	far, zero, next, one := held(1<<40), held(0), held(32), held(1)
	for _, d := range []*Delivery{far, zero, next, one} {
		h.put(d)
	}
	require.Equal(t, 4, h.len())
	require.Same(t, one, h.get(1))
	require.Same(t, next, h.get(32))
	require.Same(t, far, h.get(1<<40))
	require.Nil(t, h.get(2))
	require.Nil(t, h.get(33+1<<40))
	require.Equal(t, []*Delivery{zero, one, next, far}, h.list())

	h.remove(1)
	h.remove(1)
	h.remove(32)
	require.Equal(t, []*Delivery{zero, far}, h.list())
	require.Nil(t, h.get(32))
	require.Equal(t, 2, h.len())
	h.put(next)
	require.Same(t, next, h.get(32))

	h.clear()
	require.Zero(t, h.len())
	require.Nil(t, h.get(0))
	require.Empty(t, h.list())
}

// What a map would hold is held, whatever comes and goes, and blocks that are empty are
// not kept beyond the bound.
func TestHeldRecordsAgreeWithAMap(t *testing.T) {
	const seed = 11
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	var h heldRecords
	model := map[wire.Offset]*Delivery{}
	for range 20_000 {
		o := wire.Offset(random.Uint64N(40) * 16 * random.Uint64N(40))
		switch d := h.get(o); {
		case d != nil:
			require.Same(t, model[o], d)
			h.remove(o)
			delete(model, o)
		default:
			require.Nil(t, model[o])
			model[o] = held(uint64(o))
			h.put(model[o])
		}
		require.Equal(t, len(model), h.len())
		require.LessOrEqual(t, len(h.spare), maxHeldSpare)
	}
	list := h.list()
	require.Len(t, list, len(model))
	for i, d := range list {
		require.Same(t, model[wire.Offset(d.Offset)], d)
		require.True(t, i == 0 || list[i-1].Offset < d.Offset)
	}
}
