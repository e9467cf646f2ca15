package server

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/cluster"
	"github.com/lockstepmq/lockstep/wire"
)

// majoritysWord cuts the node that leads the metadata off from another one, which the third
// hears. An empty node that comes with the ID of that one is refused, and its replicas stay
// (RULES R10). Without the others' word both would be otherwise.
func majoritysWord(t *testing.T, c *crew, k *cables) {
	leader := c.controller()
	living, third := leader%3+1, (leader+1)%3+1
	b := c.broker(leader)
	k.set(leader, living, true)
	c.await("one node does not hear another, the third does", func() bool { return !b.reachable(living) && c.broker(third).reachable(living) })
	join := &wire.JoinRequest{
		Node: living, Store: testStore(99), Address: "127.0.0.3:7400", PeerAddress: "127.0.0.3:7401", MinLevel: cluster.MinLevel, MaxLevel: cluster.MaxLevel,
	}
	for _, asked := range []uint32{leader, third} {
		_, err := c.ask(asked, join)
		require.ErrorIs(t, err, wire.CodeRefused)
		require.ErrorContains(t, err, "is a member with another data directory, and alive")
	}
	require.False(t, b.givenUp(living))
	judged := func() (bool, error) {
		command, said := &cluster.Join{Node: living, Store: testStore(99)}, make(chan error, 1)
		b.judgeJoin(command, func(err error) { said <- err })
		err := <-said
		return command.Alive, err
	}
	t.Run("Catches_OneOpinion", func(t *testing.T) {
		b.oneOpinion.Store(true)
		defer b.oneOpinion.Store(false)
		alive, err := judged()
		require.NoError(t, err)
		require.False(t, alive, "the empty node would be taken in")
		require.True(t, b.givenUp(living), "its replicas would be made anew")
	})

	k.set(third, living, true)
	c.await("nobody hears it", func() bool { return !c.broker(third).reachable(living) })
	c.await("it may be replaced", func() bool {
		alive, err := judged()
		return !alive && err == nil && b.givenUp(living)
	})

	k.set(leader, third, true)
	c.await("nobody can be asked", func() bool { return !b.reachable(third) })
	_, err := judged()
	require.ErrorIs(t, err, wire.CodeUnavailable)
	require.ErrorContains(t, err, "1 of 3 nodes that vote about the metadata say so, no majority")
	require.False(t, b.givenUp(living))
	for _, pair := range [][2]uint32{{leader, living}, {third, living}, {leader, third}} {
		k.set(pair[0], pair[1], false)
	}
}
