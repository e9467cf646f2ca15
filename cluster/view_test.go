package cluster

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/wire"
)

// Views are patched from one to the next; each must be what the state says.
func TestAPatchedViewIsTheViewOfTheState(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	s := NewState()
	v := newView(s)
	for i := range wire.Index(2000) {
		for range 1 + random.IntN(3)*random.IntN(10) { // now and then more than patchLimit
			name := fmt.Sprintf("d%d", random.IntN(40))
			c := &Command{Delete: &Delete{Name: name, Kind: wire.Topic}}
			switch random.IntN(4) {
			case 0, 1:
				c = &Command{Create: &Create{Name: name, Kind: wire.Topic, Settings: settings(2), ID: [16]byte{byte(random.IntN(256)), byte(i), byte(i >> 8), byte(random.IntN(256))}, PartitionIDs: ids(2), Node: 1}}
			case 2:
				c = &Command{Alter: &Alter{Name: name, Kind: wire.Topic}}
			}
			s.Apply(i, c)
		}
		s.Epoch = i
		v = v.next(s)
		require.Equal(t, newView(s), v, "step %d", i)
		held := 0
		for _, d := range v.Destinations {
			held += len(d.Partitions)
			found, ok := v.DestinationByID(d.ID)
			require.True(t, ok)
			require.Same(t, d, found)
			found, ok = v.Destination(d.Name)
			require.True(t, ok)
			require.Same(t, d, found)
		}
		require.Equal(t, held, s.replicasOn(1))
	}
	_, ok := v.Destination("nobody")
	require.False(t, ok)
	restored := NewState()
	require.NoError(t, restored.Restore(s.Save(nil)))
	require.Equal(t, newView(restored), newView(NewState()).next(restored))
}
