package server

import (
	"errors"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/wire"
)

// What a node has said on connections that have ended counts until it has said on the next
// one all that it leads: what it did not say again is over, whatever got lost.
func TestHintsOfEndedConnectionsAreForgottenOnceAllIsSaid(t *testing.T) {
	leads := func(replica uint64, epoch uint32) []wire.PeerLeader {
		return []wire.PeerLeader{{Replica: replica, Epoch: epoch, State: wire.PartitionActive}}
	}
	var h hints
	for replica := range uint64(4) {
		require.True(t, h.note(7, leads(replica, 5)))
	}
	require.True(t, h.note(8, leads(9, 5)))
	h.interrupted(7)
	require.Len(t, h.leader, 5, "nobody is sent elsewhere because a connection was lost")
	require.False(t, h.note(7, leads(0, 5)))
	require.True(t, h.note(7, leads(1, 6)))
	require.True(t, h.note(7, leads(2, 4)), "what it says now is newer, whatever it says")
	require.True(t, h.said(7))
	require.False(t, h.said(7))
	require.Len(t, h.leader, 4)
	for replica, epoch := range []uint32{5, 6, 4} {
		require.Equal(t, epoch, h.leader[uint64(replica)].Epoch)
	}
	require.NotContains(t, h.leader, uint64(3))
	require.Contains(t, h.leader, uint64(9), "of another node")
	require.False(t, h.note(7, leads(1, 5)), "on one connection the highest epoch counts")
	require.EqualValues(t, 6, h.leader[1].Epoch)
}

// That a replica leads no longer may be lost with the connection. The nodes hear it with the
// next one, and keep what still holds.
func TestWhoLeadsNoLongerIsForgottenWithTheNextConnection(t *testing.T) {
	t.Parallel()
	c := newCrew(t, 2)
	c.create(1, "orders", 2, 1)
	d, _ := c.broker(1).View().Destination("orders")
	ended, other := &d.Partitions[0], &d.Partitions[1]
	leader := ended.Replicas[0]
	hears := leader.Node%2 + 1
	known := func() bool { _, known := c.broker(hears).hints.of(ended); return known }
	c.await("the other node knows who leads", known)
	p := c.broker(leader.Node).network.(*peerSet)
	p.mu.Lock()
	require.Contains(t, p.leading, leader.ID)
	delete(p.leading, leader.ID) // and what says so got lost
	p.mu.Unlock()
	require.True(t, known())
	p.connTo(hears).shut(errors.New("lost"))
	c.await("the other node hears it", func() bool { return !known() })
	_, still := c.broker(hears).hints.of(other)
	require.True(t, still)
}
