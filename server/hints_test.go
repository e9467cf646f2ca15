package server

import (
	"errors"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/cluster"
	"github.com/lockstepmq/lockstep/wire"
)

// What a dead leader has said is not what is lost if another has led after it: a log that is
// left shows that by its last term.
func TestRuleL5_OnlyWhatTheLastLeaderSaidTellsWhatIsLost(t *testing.T) {
	p := &cluster.Partition{Replicas: []cluster.Replica{{ID: 1, Node: 7}, {ID: 2, Node: 8}, {ID: 3, Node: 9}}}
	var h hints
	h.note(7, []wire.PeerLeader{{Replica: 1, Epoch: 3, Next: 40}})
	h.forgetNode(7)
	left := func(term uint64) []wire.RemainingReplica {
		return []wire.RemainingReplica{{Replica: 1, Node: 7}, {Replica: 2, Node: 8}, {Replica: 3, Node: 9, Reached: true, Term: term}}
	}
	for term, known := range map[uint64]bool{2: true, 3: true, 4: false} {
		last, ok := h.last(p, left(term))
		require.Equal(t, known, ok, "a log whose last term is %d", term)
		require.Equal(t, uint32(7), last.node)
	}
	_, ok := (&hints{}).last(p, left(0))
	require.False(t, ok, "nobody was heard")
}

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

// Who leads is said of partitions that there are: those of a destination that was deleted are
// forgotten by all nodes, and no longer said to those that connect.
func TestWhoLedWhatIsDeletedIsForgottenEverywhere(t *testing.T) {
	t.Parallel()
	c := newCrew(t, 2)
	known := func() (n int) {
		for _, s := range c.servers {
			b := s.broker
			b.hints.mu.RLock()
			n += len(b.hints.leader)
			b.hints.mu.RUnlock()
			b.nodes.mu.Lock()
			n += len(b.nodes.said)
			b.nodes.mu.Unlock()
			p := b.network.(*peerSet)
			p.mu.Lock()
			n += len(p.leading)
			p.mu.Unlock()
		}
		return n
	}
	require.Zero(t, known())
	info := c.create(1, "orders", 4, 1)
	c.await("both nodes know who leads", func() bool { return known() == 4*(2+1+1) })
	_, err := c.ask(1, &wire.DeleteRequest{Name: "orders", Kind: info.Kind, ID: info.ID})
	require.NoError(t, err)
	c.await("nobody knows it any more", func() bool { return known() == 0 })
}
