package offsets

import (
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/wire"
)

func TestEntriesAreFoundByOffsetAndListedInOrder(t *testing.T) {
	var m Map[int]
	require.Nil(t, m.Get(0))
	require.Empty(t, m.List())
	require.Nil(t, m.Remove(7))
	far, zero, next, one := new(int), new(int), new(int), new(int)
	m.Put(1<<40, far)
	m.Put(0, zero)
	m.Put(32, next)
	m.Put(1, zero)
	m.Put(1, one) // in its place
	require.Equal(t, 4, m.Len())
	require.Same(t, one, m.Get(1))
	require.Same(t, next, m.Get(32))
	require.Same(t, far, m.Get(1<<40))
	require.Nil(t, m.Get(2))
	require.Nil(t, m.Get(1<<40+33))
	require.Equal(t, []*int{zero, one, next, far}, m.List())

	require.Same(t, one, m.Remove(1))
	require.Nil(t, m.Remove(1))
	require.Same(t, next, m.Remove(32))
	require.Equal(t, []*int{zero, far}, m.List())
	require.Nil(t, m.Get(32))
	require.Equal(t, 2, m.Len())
	m.Put(32, next)
	require.Same(t, next, m.Get(32))
	for o := range m.All() {
		require.Equal(t, wire.Offset(0), o)
		break
	}

	m.Clear()
	require.Zero(t, m.Len())
	require.Nil(t, m.Get(0))
	require.Empty(t, m.List())
}

// What a map holds is held, whatever comes and goes, and no more empty blocks are kept
// than the bound says.
func TestMapAgreesWithAMap(t *testing.T) {
	const seed = 11
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	var m Map[int]
	model := map[wire.Offset]*int{}
	for range 20_000 {
		o := wire.Offset(random.Uint64N(40) * 16 * random.Uint64N(40))
		if v := m.Get(o); v != nil {
			require.Same(t, model[o], v)
			require.Same(t, v, m.Remove(o))
			delete(model, o)
		} else {
			require.Nil(t, model[o])
			model[o] = new(int)
			m.Put(o, model[o])
		}
		require.Equal(t, len(model), m.Len())
		require.LessOrEqual(t, len(m.spare), maxSpare)
	}
	found, last := 0, wire.Offset(0)
	for o, v := range m.All() {
		require.Same(t, model[o], v)
		require.True(t, found == 0 || last < o)
		last = o
		found++
	}
	require.Equal(t, len(model), found)
}
