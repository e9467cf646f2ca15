package server

import (
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/cluster"
	"github.com/lockstepmq/lockstep/wire"
)

// Two of three replicas are gone for good with their nodes. What is left goes on when
// that is accepted, others are made from it, and those that come back are not heard.
func TestRuleL5_APartitionIsRecoveredFromAMinority(t *testing.T) {
	t.Parallel()
	c := newCrew(t, 5)
	c.await("five vote about the metadata", func() bool { return c.broker(1).meta.voters.Load() == 5 })
	// Of three replicas on 1, 2, 3 two are to go; 4 and 5 keep the majority of nodes.
	c.create(1, "orders", 1, 3)
	place := func() *cluster.Partition {
		d, ok := c.broker(1).View().Destination("orders")
		require.True(t, ok)
		return &d.Partitions[0]
	}
	var on []uint32
	for _, r := range place().Replicas {
		on = append(on, r.Node)
	}
	survivor := on[slices.IndexFunc(on, func(n uint32) bool { return c.leaders(1, "orders")[n] == 0 })] // a follower
	c.fill("orders", 7)
	c.same("orders", 7)
	request := func(accept bool) (*wire.PartitionRecovery, error) {
		m, err := c.ask(survivor, &wire.PartitionRecoverRequest{Destination: "orders", Accept: accept})
		if err != nil {
			return nil, err
		}
		return m.(*wire.PartitionRecovery), nil
	}
	_, err := request(true)
	require.ErrorIs(t, err, wire.CodeRefused, "somebody leads it")

	var gone []uint32
	dirs := map[uint32]string{}
	for _, n := range on {
		if n != survivor {
			gone = append(gone, n)
		}
	}
	addresses := map[uint32][2]string{}
	for _, n := range gone {
		addresses[n] = [2]string{c.servers[n].Addr(), c.servers[n].PeerAddr()}
		dirs[n] = c.dirs[n]
		c.stop(n)
	}
	c.await("nobody leads", func() bool {
		return c.leaders(survivor, "orders")[0] == 1 && !c.broker(survivor).reachable(gone[0]) && !c.broker(survivor).reachable(gone[1])
	})
	var found *wire.PartitionRecovery
	c.await("what is left is told", func() bool { found, err = request(false); return err == nil })
	require.Equal(t, survivor, found.Node)
	require.Equal(t, uint64(7), found.Next)
	require.Len(t, found.Replicas, 3)
	for _, r := range found.Replicas {
		require.Equal(t, r.Node == survivor, r.Reached)
		require.True(t, r.Votes)
	}
	_, err = c.ask(survivor, &wire.PartitionRecoverRequest{Destination: "orders", Node: gone[0], Accept: true})
	require.ErrorIs(t, err, wire.CodeRefused, "a node that does not answer")
	p := c.broker(survivor).View().Destinations
	require.Nil(t, p[0].Partitions[0].Recovery, "to ask changes nothing")

	before := c.leaderEpoch(survivor)
	_, err = request(true)
	require.NoError(t, err)
	c.await("it leads", func() bool { return c.leaders(survivor, "orders")[survivor] == 1 })
	require.Greater(t, c.leaderEpoch(survivor), before+1000, "above what the others may have reached")
	c.await("it is counted", func() bool { return c.broker(survivor).damage.recovered.Load() == 1 })
	c.fill("orders", 3)
	c.await("others are made from it", func() bool {
		d, _ := c.broker(survivor).View().Destination("orders")
		active := 0
		for _, r := range d.Partitions[0].Replicas {
			if r.State == cluster.ReplicaActive && !slices.Contains(gone, r.Node) {
				active++
			}
		}
		return active == 3
	})
	d, _ := c.broker(survivor).View().Destination("orders")
	require.Equal(t, uint32(2), d.Partitions[0].Incarnation, "readers learn that something may be gone")
	require.True(t, d.Partitions[0].Recovery.Done)
	c.same("orders", 10)

	// The others come back with what they had, and leave it.
	for _, n := range gone {
		c.change = func(cfg *Config) { cfg.Listen, cfg.PeerListen, cfg.Join = addresses[n][0], addresses[n][1], nil }
		c.start(n)
	}
	c.change = nil
	c.await("what they had is removed", func() bool {
		for _, n := range gone {
			d, ok := c.broker(n).View().Destination("orders")
			if !ok || len(d.Partitions[0].Replicas) != 3 || d.Partitions[0].On(n) != nil || c.broker(n).local(d.ID, 0) != nil {
				return false
			}
		}
		return true
	})
	c.fill("orders", 1)
	c.same("orders", 11)
}

// leaderEpoch is the epoch in which the only partition of "orders" is led, as its node has
// it, 0 if it is not.
func (c *crew) leaderEpoch(node uint32) uint32 {
	d, _ := c.broker(node).View().Destination("orders")
	if r := c.broker(node).local(d.ID, 0); r != nil {
		return r.Epoch()
	}
	return 0
}

func TestRecoveryIsRefusedWhereAMajorityIsThere(t *testing.T) {
	d := &cluster.Destination{Name: "q"}
	p := &cluster.Partition{Voters: []uint64{1, 2, 3}}
	at := func(node uint32, reached, uncertain bool, term, index uint64) wire.RemainingReplica {
		return wire.RemainingReplica{Replica: uint64(node), Node: node, Votes: node <= 3, Reached: reached, Uncertain: uncertain, Term: term, Index: index}
	}
	for _, c := range []struct {
		name  string
		found []wire.RemainingReplica
		node  uint32
		want  uint32 // 0: refused
	}{
		{"all answer", []wire.RemainingReplica{at(1, true, true, 1, 9), at(2, true, true, 1, 9), at(3, true, true, 1, 9)}, 0, 0},
		{"two of three answer", []wire.RemainingReplica{at(1, true, false, 1, 9), at(2, true, false, 1, 9), at(3, false, false, 0, 0)}, 0, 0},
		{"two of three that lost power, the longer log", []wire.RemainingReplica{at(1, true, true, 1, 8), at(2, true, true, 1, 9), at(3, false, false, 0, 0)}, 0, 2},
		{"a later term before a longer log", []wire.RemainingReplica{at(1, true, true, 2, 8), at(2, true, true, 1, 9), at(3, false, false, 0, 0)}, 0, 1},
		{"the one that was asked for", []wire.RemainingReplica{at(1, true, true, 2, 8), at(2, true, true, 1, 9), at(3, false, false, 0, 0)}, 2, 2},
		{"one of three", []wire.RemainingReplica{at(1, false, false, 0, 0), at(2, true, false, 1, 9), at(3, false, false, 0, 0)}, 0, 2},
		{"a replica that was lost votes as well", []wire.RemainingReplica{at(1, true, false, 1, 9)}, 0, 1},
		{"a learner", []wire.RemainingReplica{at(1, false, false, 0, 0), at(2, false, false, 0, 0), at(4, true, false, 1, 9)}, 0, 4},
		{"none", []wire.RemainingReplica{at(1, false, false, 0, 0)}, 0, 0},
		{"not the one that was asked for", []wire.RemainingReplica{at(1, true, false, 0, 0)}, 2, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := chooseRemaining(d, p, c.found, c.node)
			if c.want == 0 {
				require.ErrorIs(t, err, wire.CodeRefused)
				t.Log(err)
				return
			}
			require.NoError(t, err)
			require.Equal(t, c.want, got.Node)
		})
	}
}
