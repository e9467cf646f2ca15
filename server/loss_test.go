package server

import (
	"context"
	"fmt"
	"path"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/cluster"
	"github.com/lockstepmq/lockstep/vfs"
	"github.com/lockstepmq/lockstep/wire"
)

// darkCrew is a crew whose machines can lose power.
type darkCrew struct {
	*crew
	disks     map[uint32]*vfs.Simulated
	addresses map[uint32][2]string
	boots     int
}

func newDarkCrew(t *testing.T, n int, change func(*Config)) *darkCrew {
	d := &darkCrew{disks: map[uint32]*vfs.Simulated{}, addresses: map[uint32][2]string{}}
	d.crew = &crew{t: t, servers: map[uint32]*Server{}, dirs: map[uint32]string{}}
	d.change = func(cfg *Config) {
		node := cfg.NodeID
		if d.disks[node] == nil {
			disk := vfs.NewSimulated(uint64(node))
			require.NoError(d.t, disk.MkdirAll(cfg.DataDir))
			for dir := cfg.DataDir; dir != "/"; {
				dir = path.Dir(dir)
				require.NoError(d.t, disk.SyncDir(dir))
			}
			d.disks[node] = disk
		}
		cfg.fs, cfg.bootID = d.disks[node], fmt.Sprintf("boot %d of %d", d.boots, node)
		if a, known := d.addresses[node]; known {
			cfg.Listen, cfg.PeerListen, cfg.Join = a[0], a[1], nil
		}
		if change != nil {
			change(cfg)
		}
	}
	for i := 1; i <= n; i++ {
		s := d.start(uint32(i))
		d.addresses[uint32(i)] = [2]string{s.Addr(), s.PeerAddr()}
	}
	t.Cleanup(func() {
		for id := range d.servers {
			d.end(id)
		}
	})
	return d
}

// end stops a node; what it says about its disk is of no interest.
func (d *darkCrew) end(nodes ...uint32) {
	var all sync.WaitGroup
	for _, id := range nodes {
		s := d.servers[id]
		delete(d.servers, id)
		all.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
			defer cancel()
			_ = s.Close(ctx)
		})
	}
	all.Wait()
}

// blackout cuts the power of all machines.
func (d *darkCrew) blackout() {
	d.boots++
	var nodes []uint32
	for id := range d.servers {
		nodes = append(nodes, id)
		d.disks[id].CrashLoseAll()
	}
	d.end(nodes...)
}

// leader is the node that leads a destination's only partition, 0 if none does.
func (d *darkCrew) leader(name string) uint32 {
	for node := range d.leaders(1, name) {
		return node
	}
	return 0
}

func (d *darkCrew) partition(node uint32, name string) *cluster.Partition {
	dest, ok := d.broker(node).View().Destination(name)
	require.True(d.t, ok)
	return &dest.Partitions[0]
}

// TestRuleL5_AClusterThatLostPowerSaysWhatItLost: records of a destination with sync=os
// and three replicas are acknowledged and on no disk when all machines lose power.
func TestRuleL5_AClusterThatLostPowerSaysWhatItLost(t *testing.T) {
	c := newDarkCrew(t, 3, nil)
	create := func(name string, sync wire.SyncMode) {
		_, err := c.ask(1, &wire.CreateRequest{Name: name, Kind: wire.Topic, Settings: wire.Settings{
			Partitions: 1, Replicas: 3, Sync: sync, RetentionTimeMs: wire.Unlimited, RetentionBytes: wire.Unlimited,
		}})
		require.NoError(t, err)
		c.await("a leader", func() bool { return c.leader(name) != 0 })
		c.fill(name, 10)
		c.same(name, 10)
	}
	create("fast", wire.SyncOS)
	create("safe", wire.SyncQuorumFsync)
	c.await("three vote on the metadata", func() bool { return c.broker(1).meta.voters.Load() == 3 })
	c.fill("fast", 5) // that nobody has synced
	c.blackout()

	c.start(1)
	c.start(2)
	c.await("the partition says what it waits for", func() bool {
		d, ok := c.broker(1).View().Destination("fast")
		if !ok {
			return false
		}
		r := c.broker(1).local(d.ID, 0)
		return r != nil && r.info().Problem == waitsForAll
	})
	c.await("what was synced is served by two", func() bool { return c.leader("safe") != 0 })
	require.Zero(t, c.leader("fast"), "the third may hold more")
	require.Equal(t, uint32(1), c.partition(1, "fast").Incarnation)

	c.start(3)
	c.await("a leader", func() bool { return c.leader("fast") != 0 })
	leader := c.leader("fast")
	p := c.partition(leader, "fast")
	require.Equal(t, uint32(2), p.Incarnation)
	require.Equal(t, uint32(1), p.LogIncarnation())
	next, lost := p.LostSince(1)
	require.True(t, lost)
	require.Less(t, next, wire.Offset(15))
	reformed := uint64(0)
	for node := range c.servers {
		reformed += c.broker(node).damage.reformed.Load()
	}
	require.Equal(t, uint64(1), reformed)
	require.Equal(t, uint32(1), c.partition(leader, "safe").Incarnation)

	// A reader that stood above the end learns it, whatever stands there by now.
	c.fill("fast", 20)
	c.same("fast", next+20)
	c.same("safe", 10)
	raw := dialOpen(t, c.servers[leader].Addr())
	link := func(name string, offset wire.Offset) wire.ErrorBody {
		var m wire.OpenPartitionResponse
		raw.send(wire.OpOpenPartition, 5, &wire.OpenPartitionRequest{Destination: name})
		raw.ok(raw.answer(5), &m)
		raw.send(wire.OpLinkOpen, 9, &wire.LinkOpenRequest{Handle: m.Handle, Offset: offset, Incarnation: 1})
		f := raw.answer(9)
		var e wire.ErrorBody
		if f.Flags&wire.FlagError != 0 {
			require.NoError(t, e.Parse(f.body))
		}
		return e
	}
	e := link("fast", 15)
	require.Equal(t, wire.CodeDataLost, e.Code)
	require.Equal(t, uint64(next), uint64(e.Next))
	require.Equal(t, wire.CodeOK, link("fast", next).Code)
}

// TestRuleL5_AReplicaAloneIsServedOnceTheMetadataHaveALeader: a partition with one replica that
// may have lost records needs the metadata before it serves. After a power cut its machine may be
// the first that is back, long before a majority.
func TestRuleL5_AReplicaAloneIsServedOnceTheMetadataHaveALeader(t *testing.T) {
	c := newDarkCrew(t, 3, nil)
	_, err := c.ask(1, &wire.CreateRequest{Name: "one", Kind: wire.Topic, Settings: wire.Settings{
		Partitions: 1, Replicas: 1, Sync: wire.SyncOS, RetentionTimeMs: wire.Unlimited, RetentionBytes: wire.Unlimited,
	}})
	require.NoError(t, err)
	c.await("a leader", func() bool { return c.leader("one") != 0 })
	home := c.leader("one")
	c.fill("one", 5)
	c.await("three vote on the metadata", func() bool { return c.broker(1).meta.voters.Load() == 3 })
	c.blackout()

	c.start(home)
	d, ok := c.broker(home).View().Destination("one")
	require.True(t, ok)
	key := replicaKey{d.ID, 0}
	c.await("the metadata have no leader to say it to", func() bool {
		b := c.broker(home)
		b.mu.RLock()
		defer b.mu.RUnlock()
		return b.failed[key] != nil
	})
	for node := uint32(1); node <= 3; node++ {
		if node != home {
			c.start(node)
		}
	}
	c.await("it is served", func() bool {
		r := c.broker(home).local(d.ID, 0)
		return r != nil && r.Leading()
	})
	require.Equal(t, uint32(2), c.partition(home, "one").Incarnation)
}
