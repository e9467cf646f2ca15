package server

import (
	"slices"
	"testing"

	"github.com/google/uuid"
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
		MinPeer: wire.MinPeerVersion, MaxPeer: wire.MaxPeerVersion,
	}
	for _, asked := range []uint32{leader, third} {
		_, err := c.ask(asked, join)
		require.ErrorIs(t, err, wire.CodeRefused)
		require.ErrorContains(t, err, "is a member with another data directory, and alive")
	}
	command, refused := &cluster.Join{Node: living, Store: testStore(99)}, make(chan error, 1)
	c.broker(third).propose(cluster.Command{Join: command}, func(r cluster.Result) { refused <- r.Err })
	var elsewhere *cluster.NotController
	require.ErrorAs(t, <-refused, &elsewhere)
	require.False(t, command.Alive, "who does not lead the metadata does not judge, though it hears the node")
	require.False(t, b.givenUp(living))
	require.False(t, b.saidGone(living))
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

// keepsItsVote lets a fourth node join, and cuts the node that leads the metadata off from a
// voter, which the others hear. Nobody takes its vote, though that node alone has not heard
// it for 30 s (RULES R10); without the others' word the fourth one does.
func keepsItsVote(t *testing.T, c *crew, k *cables) {
	c.start(4)
	votes := func(b *broker, node uint32) bool {
		n, member := b.View().Node(node)
		return member && slices.Contains(b.meta.voting.sets.Load()[0], n.MetaID())
	}
	apart := func() (b *broker, voter uint32) {
		leader := c.controller()
		b = c.broker(leader)
		c.await("all hear each other", func() bool {
			for id := range c.servers {
				for other := range c.servers {
					if !c.broker(id).reachable(other) {
						return false
					}
				}
			}
			return true
		})
		if voter = leader%4 + 1; !votes(b, voter) {
			voter = voter%4 + 1 // one of the three others does not vote
		}
		k.set(leader, voter, true)
		c.await("one node does not hear another, the others do", func() bool {
			for id := range c.servers {
				if id != voter && c.broker(id).reachable(voter) != (id != leader) {
					return false
				}
			}
			return true
		})
		b.nodes.mu.Lock()
		b.nodes.down[voter] = livelyTicks
		b.nodes.mu.Unlock()
		b.words.mu.Lock()
		before := b.words.spared
		b.words.mu.Unlock()
		c.await("the others were asked, and their word was looked at", func() bool {
			b.words.mu.Lock()
			defer b.words.mu.Unlock()
			return b.words.spared >= before+2 || !b.meta.leads.Load()
		})
		return b, voter
	}
	var b *broker
	var voter uint32
	for range 5 {
		if b, voter = apart(); b.meta.leads.Load() {
			break
		}
		k.set(b.identity.NodeID, voter, false) // another leads by now
	}
	require.True(t, votes(b, voter))
	t.Run("Catches_OneOpinion", func(t *testing.T) {
		b.oneOpinion.Store(true)
		defer b.oneOpinion.Store(false)
		c.await("another takes its vote", func() bool { return !votes(b, voter) })
	})
	k.set(b.identity.NodeID, voter, false)
}

// A node that was taken in a moment ago, and has not started, is silent. Nobody takes its
// place for that (RULES R10); a node that does not wait gives its ID to another directory,
// and the one that was taken in never becomes a member.
func TestRuleR10_ANodeThatWasJustTakenInKeepsItsPlace(t *testing.T) {
	c := newCrew(t, 1)
	b := c.broker(1)
	join := func(store uint32, port string) error {
		_, err := c.ask(1, &wire.JoinRequest{
			Node: 2, Store: testStore(store), Address: "127.0.0.3:74" + port, PeerAddress: "127.0.0.3:75" + port, MinLevel: cluster.MinLevel, MaxLevel: cluster.MaxLevel,
			MinPeer: wire.MinPeerVersion, MaxPeer: wire.MaxPeerVersion,
		})
		return err
	}
	holder := func() uuid.UUID {
		n, _ := b.View().Node(2)
		return n.Store
	}
	require.NoError(t, join(98, "00"))
	err := join(99, "01")
	require.ErrorIs(t, err, wire.CodeRetry)
	require.ErrorContains(t, err, "it may have joined a moment ago")
	require.Equal(t, uuid.UUID(testStore(98)), holder())

	t.Run("Catches_OneOpinion", func(t *testing.T) {
		b.oneOpinion.Store(true)
		defer b.oneOpinion.Store(false)
		require.NoError(t, join(99, "01"))
		require.Equal(t, uuid.UUID(testStore(99)), holder(), "who was taken in first is no member any more")
	})
}
