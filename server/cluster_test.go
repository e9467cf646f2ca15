package server

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/cluster"
	"github.com/lockstepmq/lockstep/partition"
	"github.com/lockstepmq/lockstep/vfs"
	"github.com/lockstepmq/lockstep/wire"
)

// crew is a cluster in one process.
type crew struct {
	t       *testing.T
	servers map[uint32]*Server
	dirs    map[uint32]string
	change  func(*Config)
}

func newCrew(t *testing.T, n int) *crew {
	c := &crew{t: t, servers: map[uint32]*Server{}, dirs: map[uint32]string{}}
	for i := 1; i <= n; i++ {
		c.start(uint32(i))
	}
	t.Cleanup(func() {
		for id := range c.servers {
			c.stop(id)
		}
	})
	return c
}

func (c *crew) config(node uint32) Config {
	if c.dirs[node] == "" {
		c.dirs[node] = c.t.TempDir()
	}
	cfg := Config{
		DataDir: c.dirs[node], Listen: "127.0.0.1:0", HTTP: "off", MinFreeBytes: -1, NodeID: node,
		PeerListen: "127.0.0.1:0", ScrubInterval: -1, Logger: testLogger(node),
	}
	for id, s := range c.servers {
		if id != node {
			cfg.Join = append(cfg.Join, s.Addr())
		}
	}
	if c.change != nil {
		c.change(&cfg)
	}
	return cfg
}

func testLogger(node uint32) *slog.Logger {
	if !testing.Verbose() {
		return slog.New(slog.DiscardHandler)
	}
	return slog.New(slog.NewTextHandler(os.Stderr, nil)).With("node", node)
}

func (c *crew) start(node uint32) *Server {
	c.t.Helper()
	s, err := Start(c.t.Context(), c.config(node))
	require.NoError(c.t, err)
	c.servers[node] = s
	return s
}

func (c *crew) stop(node uint32) {
	s := c.servers[node]
	delete(c.servers, node)
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	require.NoError(c.t, s.Close(ctx))
}

func (c *crew) broker(node uint32) *broker { return c.servers[node].broker }

// ask hands an administrative request to a node.
func (c *crew) ask(node uint32, m wire.Message) (wire.Message, error) {
	type answer struct {
		m   wire.Message
		err error
	}
	answers := make(chan answer, 1)
	c.broker(node).Admin(m, func(m wire.Message, err error) { answers <- answer{m, err} })
	a := <-answers
	return a.m, a.err
}

func (c *crew) create(node uint32, name string, partitions uint32, replicas uint8) *wire.DestinationInfo {
	c.t.Helper()
	c.await("all hear each other", func() bool { // who does not is given no replica
		for _, s := range c.servers {
			for other := range c.servers {
				if !s.broker.reachable(other) {
					return false
				}
			}
		}
		return true
	})
	m, err := c.ask(node, &wire.CreateRequest{Name: name, Kind: wire.Queue, Settings: wire.Settings{
		Partitions: partitions, Replicas: replicas, RetentionTimeMs: wire.Unlimited, RetentionBytes: wire.Unlimited,
	}})
	require.NoError(c.t, err)
	return m.(*wire.DestinationInfo)
}

func (c *crew) await(what string, ok func() bool) {
	c.t.Helper()
	require.Eventually(c.t, ok, 60*time.Second, 10*time.Millisecond, what)
}

// leaders counts the partitions of a destination that each node leads, as node knows.
func (c *crew) leaders(node uint32, name string) map[uint32]int {
	led := map[uint32]int{}
	b := c.broker(node)
	d, ok := b.View().Destination(name)
	if !ok {
		return led
	}
	for _, p := range b.Describe(d).Partitions {
		led[p.Leader]++
	}
	return led
}

func TestClusterOfThreeBrokersForms(t *testing.T) {
	t.Parallel()
	c := newCrew(t, 3)
	for node := range c.servers {
		c.await("every node knows all of them", func() bool {
			v := c.broker(node).View()
			for _, n := range v.Nodes {
				if n.Boots == 0 {
					return false
				}
			}
			return len(v.Nodes) == 3
		})
	}
	c.create(2, "orders", 6, 3)
	for node := range c.servers {
		c.await("all partitions have leaders, on all nodes", func() bool {
			led := c.leaders(node, "orders")
			return led[0] == 0 && led[1] > 0 && led[2] > 0 && led[3] > 0
		})
	}
	v := c.broker(1).View()
	d, _ := v.Destination("orders")
	require.Len(t, d.Partitions, 6)
	for _, p := range d.Partitions {
		require.Len(t, p.Replicas, 3)
	}
	require.Equal(t, cluster.MaxLevel, v.Level)
}

// held counts the replicas of a destination on each node, those on their way not.
func (c *crew) held(node uint32, name string) map[uint32]int {
	held := map[uint32]int{}
	d, ok := c.broker(node).View().Destination(name)
	if !ok {
		return held
	}
	for _, p := range d.Partitions {
		for _, r := range p.Replicas {
			if r.State != cluster.ReplicaActive {
				held[0]++
			}
			held[r.Node]++
		}
	}
	return held
}

// fill appends n records to every partition of a destination, wherever it is led.
func (c *crew) fill(name string, n int) {
	c.t.Helper()
	for node := range c.servers {
		d, ok := c.broker(node).View().Destination(name)
		require.True(c.t, ok)
		for i := range d.Partitions {
			for range n {
				c.append(d, uint32(i))
			}
		}
		return
	}
}

// append appends one record and waits for it, following the leader.
func (c *crew) append(d *cluster.Destination, number uint32) {
	c.t.Helper()
	batch, index := testBatch(c.t, "value")
	info, err := wire.ValidateBatch(batch, index, wire.BatchLimits{MaxRecordBytes: wire.DefaultMaxRecordBytes})
	require.NoError(c.t, err)
	c.await("an append to "+d.Name, func() bool {
		for node := range c.servers {
			r, err := c.broker(node).Route(d.ID, number)
			if err != nil || r.local == nil {
				continue
			}
			done := make(chan wire.ErrorCode, 1)
			if r.local.Append(partition.Append{Batch: batch, Index: index, Info: info, Acks: wire.AcksQuorum, Receiver: codeReceiver(done)}) != nil {
				continue
			}
			r.local.Kick(false)
			if <-done == wire.CodeOK {
				return true
			}
		}
		return false
	})
}

type codeReceiver chan wire.ErrorCode

func (r codeReceiver) Appended(_ uint64, _ wire.Receipt, code wire.ErrorCode) { r <- code }

// same waits until all replicas of a destination hold at least n records.
func (c *crew) same(name string, n wire.Offset) {
	c.t.Helper()
	for node, s := range c.servers {
		c.await("every replica has what was acknowledged", func() bool {
			d, _ := s.broker.View().Destination(name)
			for i := range d.Partitions {
				if mine := d.Partitions[i].On(node); mine == nil {
					continue
				}
				r := s.broker.local(d.ID, uint32(i))
				if r == nil || r.records.Watermark().Next < n {
					return false
				}
			}
			return true
		})
	}
}

// R-IS-5, small: a fourth node joins and takes its share of replicas and leaders.
func TestR_IS_5_AFourthNodeJoinsAndTakesItsShare(t *testing.T) {
	t.Parallel()
	c := newCrew(t, 3)
	c.create(1, "orders", 12, 3)
	c.fill("orders", 3)
	c.start(4)
	c.await("replicas are spread over four nodes", func() bool {
		held := c.held(1, "orders")
		return held[0] == 0 && held[1] <= 10 && held[2] <= 10 && held[3] <= 10 && held[4] >= 8
	})
	c.same("orders", 3)
	c.fill("orders", 1)
	c.same("orders", 4)
	c.await("the new node leads its share", func() bool { return c.leaders(2, "orders")[4] >= 2 })
}

// ends waits until a node ends because it was removed.
func (c *crew) ends(node uint32) {
	c.t.Helper()
	s := c.servers[node]
	select {
	case <-s.Done():
	case <-time.After(60 * time.Second):
		c.t.Fatal("a node that was removed goes on")
	}
	delete(c.servers, node)
	require.ErrorIs(c.t, s.Err(), wire.CodeNotMember)
	require.ErrorContains(c.t, s.Err(), fmt.Sprintf("node %d was removed from the cluster", node))
}

// A broker that stops waits for successors only where there are any.
func TestTheLastBrokerHasNoSuccessor(t *testing.T) {
	t.Parallel()
	c := newCrew(t, 3)
	c.await("three nodes vote on the metadata", func() bool { return c.broker(1).meta.voters.Load() == 3 })
	c.create(1, "orders", 3, 3)
	c.fill("orders", 1)
	leaders := func() (n int) {
		c.broker(1).each(func(r *partitionReplica) {
			if r.leads.Load() && r.hasSuccessor() {
				n++
			}
		})
		return n
	}
	c.await("one of three leaders is here, and others could lead", func() bool { return leaders() == 1 })
	require.True(t, c.broker(1).meta.hasSuccessor())
	for _, node := range []uint32{2, 3} {
		c.stop(node)
	}
	c.await("nobody is left", func() bool { return leaders() == 0 && !c.broker(1).meta.hasSuccessor() })
}

// What clients have asked for is carried out before a broker that stops leaves the
// others: without them it could not even be told whether it was.
func TestRequestsOnTheirWayAreAnsweredWhenABrokerStops(t *testing.T) {
	t.Parallel()
	c := newCrew(t, 3)
	asker := uint32(1)
	for c.broker(asker).meta.leads.Load() {
		asker++
	}
	client := dialFollowing(t, c.servers[asker].Addr())
	const requests = 100
	var b []byte
	for i := range uint32(requests) {
		b = append(b, frameOf(wire.OpCreate, 10+i, &wire.CreateRequest{Name: fmt.Sprint("q", i), Kind: wire.Queue, Settings: wire.Settings{
			Partitions: 1, Replicas: 1, RetentionTimeMs: wire.Unlimited, RetentionBytes: wire.Unlimited,
		}})...)
	}
	client.write(b)
	eventually(t, "requests on their way", func() bool { return c.servers[asker].engine.counters.inFlight.Load() > requests/2 })
	stopped := make(chan error, 1)
	s := c.servers[asker]
	delete(c.servers, asker)
	go func() { stopped <- s.Close(context.Background()) }()
	for answers := 0; answers < requests; {
		if f := client.read(); f.Opcode == wire.OpCreate {
			require.Equal(t, wire.CodeOK, f.code())
			answers++
		}
	}
	require.NoError(t, <-stopped)
}

func TestANodeIsDrainedAndDecommissioned(t *testing.T) {
	t.Parallel()
	c := newCrew(t, 4)
	c.create(1, "orders", 8, 3)
	c.create(1, "single", 4, 1)
	c.fill("orders", 2)
	c.fill("single", 2)
	_, err := c.ask(3, &wire.NodeAdminRequest{Node: 2, Action: wire.NodeDrain})
	require.NoError(t, err)
	c.await("a drained node leads nothing", func() bool { return c.leaders(3, "orders")[2] == 0 })
	_, err = c.ask(3, &wire.NodeAdminRequest{Node: 2, Action: wire.NodeUndrain})
	require.NoError(t, err)
	_, err = c.ask(1, &wire.NodeAdminRequest{Node: 2, Action: wire.NodeDecommission})
	require.NoError(t, err)
	c.await("a node that left is no member", func() bool {
		for _, node := range []uint32{1, 3, 4} {
			if _, member := c.broker(node).View().Node(2); member {
				return false
			}
		}
		return true
	})
	require.Zero(t, c.held(1, "orders")[2]+c.held(1, "single")[2])
	c.ends(2)
	_, err = Start(t.Context(), c.config(2)) // whatever its own metadata say
	require.ErrorIs(t, err, wire.CodeNotMember)
	require.ErrorContains(t, err, "node 2 was removed from the cluster")
	c.fill("orders", 1)
	c.same("orders", 3)
	c.fill("single", 1)
	_, err = c.ask(1, &wire.NodeAdminRequest{Node: 3, Action: wire.NodeDecommission})
	require.ErrorIs(t, err, wire.CodeRefused)
	require.ErrorContains(t, err, "wants 3 replicas, and 2 brokers would be left")

	c.dirs[2] = "" // RULES R10: another directory may take the ID that is free
	c.start(2)
	c.await("the others hear it", func() bool { return c.broker(1).reachable(2) && c.broker(3).reachable(2) })
}

// RELIABILITY F10: the disk of one of three nodes is wiped. Started again under its ID,
// the node gets its replicas anew, under other IDs, and holds what the others hold.
func TestF10_AWipedNodeIsReplaced(t *testing.T) {
	t.Parallel()
	c := newCrew(t, 3)
	c.await("three nodes vote on the metadata", func() bool { return c.broker(1).meta.voters.Load() == 3 })
	c.create(1, "orders", 3, 3)
	c.fill("orders", 5)
	before := map[uint64]bool{}
	d, _ := c.broker(1).View().Destination("orders")
	for _, p := range d.Partitions {
		before[p.On(3).ID] = true
	}
	c.stop(3)
	c.dirs[3] = ""
	c.fill("orders", 1)
	c.start(3)
	c.await("every replica of the node is another one", func() bool {
		d, _ := c.broker(1).View().Destination("orders")
		for _, p := range d.Partitions { // at first they are those that it had
			if on := p.On(3); on == nil || before[on.ID] {
				return false
			}
		}
		held := c.held(1, "orders")
		return held[0] == 0 && held[1] == 3 && held[2] == 3 && held[3] == 3
	})
	c.same("orders", 6)
	c.fill("orders", 1)
	c.same("orders", 7)
}

// A replica knows of records that its leader has not told the other nodes of yet: that is
// done once a second.
func TestAFollowerTellsWhatItHas(t *testing.T) {
	t.Parallel()
	c := newCrew(t, 2)
	c.create(1, "orders", 1, 2)
	c.fill("orders", 3)
	c.same("orders", 3)
	for node := range c.servers {
		b := c.broker(node)
		d, _ := b.View().Destination("orders")
		if l, ok := b.hints.of(&d.Partitions[0]); ok && l.node != node {
			l.Next = 0
			b.hints.note(l.node, []wire.PeerLeader{l.PeerLeader}) // as before the first record
			require.Equal(t, wire.Offset(3), b.Describe(d).Partitions[0].NextOffset)
		}
	}
}

// An address that stands for all of a machine's is to listen on and not to be told to others:
// each of them would find itself there.
func TestANodeTellsOthersAnAddressThatLeadsToIt(t *testing.T) {
	for _, c := range []struct {
		name string
		cfg  Config
		says string // empty: accepted
	}{
		{"alone", Config{Listen: "0.0.0.0:7400"}, ""},
		{"clients find themselves", Config{Listen: "0.0.0.0:7400", PeerListen: "10.0.0.1:7401"}, "0.0.0.0:7400 stands for every address of a machine, and others would connect to themselves; give the one they reach this node at with --advertise"},
		{"nodes find themselves", Config{Listen: "10.0.0.1:7400", PeerListen: "[::]:7401"}, "with --peer-advertise"},
		{"no host", Config{Listen: "10.0.0.1:7400", PeerListen: ":7401"}, "with --peer-advertise"},
		{"advertised itself", Config{PeerListen: "10.0.0.1:7401", Advertise: "0.0.0.0:7400"}, "with --advertise"},
		{"advertised", Config{Listen: "0.0.0.0:7400", PeerListen: ":7401", Advertise: "one.example:7400", PeerAdvertise: "10.0.0.1:7401"}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := c.cfg.Check()
			if c.says == "" {
				require.NoError(t, err)
				return
			}
			require.ErrorContains(t, err, c.says)
		})
	}
}

func TestJoiningIsRefusedWithTheReason(t *testing.T) {
	t.Parallel()
	c := newCrew(t, 2)
	refused := func(says string, change func(*Config)) {
		t.Helper()
		cfg := c.config(9)
		change(&cfg)
		_, err := Start(t.Context(), cfg)
		require.ErrorContains(t, err, says)
	}
	refused("node 2 is a member with another data directory, and alive", func(cfg *Config) { cfg.NodeID = 2 })
	refused("has the address", func(cfg *Config) { cfg.Advertise, cfg.Join = c.servers[1].Addr(), []string{c.servers[2].Addr()} })
	refused("is the address of this node itself", func(cfg *Config) {
		cfg.Advertise = "127.0.0.1:7999"
		cfg.Join = []string{"localhost:7999"}
	})
	refused("leave one of them out", func(cfg *Config) { cfg.Bootstrap = true })
	refused("needs an address for the others", func(cfg *Config) { cfg.PeerListen = "" })
	refused("belongs to node 1, not 5", func(cfg *Config) {
		cfg.NodeID = 5
		dir := t.TempDir()
		b, err := os.ReadFile(filepath.Join(c.dirs[1], "node.json"))
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(filepath.Join(dir, "node.json"), b, 0o600))
		cfg.DataDir = dir
	})

	alone, err := Start(t.Context(), Config{DataDir: t.TempDir(), Listen: "127.0.0.1:0", HTTP: "off", MinFreeBytes: -1})
	require.NoError(t, err)
	defer func() { require.NoError(t, alone.Close(t.Context())) }()
	refused("this broker runs alone", func(cfg *Config) { cfg.Join = []string{alone.Addr()} })
	for _, versions := range [][2]uint16{{wire.MaxPeerVersion + 1, wire.MaxPeerVersion + 2}, {0, wire.MinPeerVersion - 1}} {
		_, err := c.ask(2, &wire.JoinRequest{
			Node: 9, Store: testStore(9), Address: "127.0.0.9:7400", PeerAddress: "127.0.0.9:7401",
			MinLevel: cluster.MinLevel, MaxLevel: cluster.MaxLevel, MinPeer: versions[0], MaxPeer: versions[1],
		})
		require.ErrorIs(t, err, wire.CodeUnsupported)
		require.ErrorContains(t, err, fmt.Sprintf("the one that joins %d to %d; upgrade the older one", versions[0], versions[1]))
	}
	require.Len(t, c.broker(1).View().Nodes, 2)

	elsewhere := c.config(9)
	elsewhere.DataDir, elsewhere.Join = t.TempDir(), nil
	other, err := Start(t.Context(), elsewhere)
	require.NoError(t, err)
	require.NoError(t, other.Close(t.Context()))
	refused(elsewhere.DataDir+": it belongs to cluster ", func(cfg *Config) { cfg.DataDir = elsewhere.DataDir })
	again, err := Start(t.Context(), elsewhere)
	require.NoError(t, err, "without --join it goes on")
	require.NoError(t, again.Close(t.Context()))
}

// What asks for more than there is, or would leave too little, is refused with the
// reason, and nothing comes of it.
func TestWhatAClusterCannotDoIsRefused(t *testing.T) {
	t.Parallel()
	c := newCrew(t, 3)
	c.create(1, "orders", 1, 1)
	create := func(partitions uint32, replicas uint8) error {
		_, err := c.ask(2, &wire.CreateRequest{Name: "x", Kind: wire.Topic, Settings: wire.Settings{Partitions: partitions, Replicas: replicas, RetentionTimeMs: wire.Unlimited, RetentionBytes: wire.Unlimited}})
		return err
	}
	for says, err := range map[string]error{
		"partitions 1000000000 is outside": create(1e9, 1),
		"partitions 4294967295 is outside": create(1<<32-1, 1),
		"the cluster has 3 brokers":        create(1, 4),
	} {
		require.ErrorIs(t, err, wire.CodeInvalidSetting)
		require.ErrorContains(t, err, says)
	}
	c.await("everybody sees everybody", func() bool { return c.broker(1).reachable(2) && c.broker(1).reachable(3) })
	c.stop(3)
	c.await("one is down", func() bool { return !c.broker(1).reachable(3) })
	_, err := c.ask(1, &wire.NodeAdminRequest{Node: 2, Action: wire.NodeDecommission})
	require.ErrorIs(t, err, wire.CodeRefused)
	require.ErrorContains(t, err, "without node 2 only 1 of 2 nodes could be reached, no majority")
	for _, n := range c.broker(1).View().Nodes {
		require.True(t, n.Up())
	}
	require.Len(t, c.broker(1).View().Destinations, 1)
}

// A destination that was created while there was one broker gets three replicas when
// there are three, with all that it holds. One that was asked to have one keeps it.
func TestReplicasAreRaisedWhenBrokersJoin(t *testing.T) {
	t.Parallel()
	c := newCrew(t, 1)
	require.True(t, c.create(1, "orders", 2, 0).Automatic)
	require.False(t, c.create(1, "single", 2, 1).Automatic)
	c.fill("orders", 5)
	c.fill("single", 5)
	c.start(2)
	c.start(3)
	c.await("three replicas", func() bool {
		held := c.held(1, "orders")
		return held[0] == 0 && held[1] == 2 && held[2] == 2 && held[3] == 2
	})
	c.fill("orders", 1)
	c.same("orders", 6)
	c.await("one replica", func() bool {
		held := c.held(1, "single")
		return held[0] == 0 && held[1]+held[2]+held[3] == 2
	})
	c.stop(1)
	c.fill("orders", 1)
	c.same("orders", 7)
}

// Any node tells what all of them know of themselves, and which do not answer.
func TestTheStatusOfTheClusterComesFromAllNodes(t *testing.T) {
	t.Parallel()
	c := newCrew(t, 3)
	c.create(1, "orders", 3, 3)
	c.fill("orders", 1)
	ask := func() *wire.ClusterStatus {
		m, err := c.ask(2, &wire.ClusterStatusRequest{})
		require.NoError(t, err)
		return m.(*wire.ClusterStatus)
	}
	c.await("everybody answers", func() bool {
		return !slices.ContainsFunc(ask().Nodes, func(n wire.NodeStatus) bool { return !n.Answered })
	})
	s := ask()
	require.Equal(t, uint16(c.broker(2).View().Level), s.Level)
	require.True(t, c.broker(s.Controller).meta.leads.Load())
	c.await("everybody votes about the metadata", func() bool { return slices.Equal([]uint32{1, 2, 3}, ask().Voters) })
	require.Len(t, s.Nodes, 3)
	for i, n := range s.Nodes {
		require.Equal(t, []any{uint32(i + 1), Version(), c.servers[n.Node].PeerAddr()}, []any{n.Node, n.Version, n.PeerAddress})
		require.Positive(t, n.StoredBytes)
		require.Greater(t, n.TotalBytes, n.FreeBytes)
	}
	stopped := c.servers[3].PeerAddr()
	c.stop(3)
	c.await("it is down", func() bool { return !c.broker(2).reachable(3) })
	require.Equal(t, wire.NodeStatus{Node: 3, PeerAddress: stopped}, ask().Nodes[2])
}

// A gateway serves clients and holds nothing.
func TestAGatewayHoldsNoReplicas(t *testing.T) {
	t.Parallel()
	c := newCrew(t, 2)
	c.change = func(cfg *Config) { cfg.Role = string(cluster.RoleGateway) }
	c.start(3)
	c.change = nil
	info := c.create(3, "orders", 4, 2)
	require.Len(t, info.Partitions, 4)
	c.fill("orders", 1)
	require.Zero(t, c.held(1, "orders")[3])
	_, err := c.ask(3, &wire.CreateRequest{Name: "more", Kind: wire.Queue, Settings: wire.Settings{
		Partitions: 1, Replicas: 3, RetentionTimeMs: wire.Unlimited, RetentionBytes: wire.Unlimited,
	}})
	require.ErrorContains(t, err, "replicas 3: the cluster has 2 brokers that can take one")
	c.await("leaders are known on the gateway", func() bool { return c.leaders(3, "orders")[0] == 0 })
	n, _ := c.broker(1).View().Node(3)
	require.Equal(t, cluster.RoleGateway, n.Role)
}

// The only replica of a partition leads from the beginning: its first election, which
// comes with its first record, is nothing that others see.
func TestALoneReplicaLeadsThroughItsFirstElection(t *testing.T) {
	t.Parallel()
	c := newCrew(t, 2)
	c.create(1, "orders", 20, 1)
	c.await("all are led", func() bool { return c.leaders(1, "orders")[0] == 0 })
	d, _ := c.broker(1).View().Destination("orders")
	var done atomic.Bool
	var watchers sync.WaitGroup
	for node := range c.servers {
		for i := range d.Partitions {
			if r := c.broker(node).local(d.ID, uint32(i)); r != nil {
				watchers.Go(func() {
					for !done.Load() {
						if !r.Leading() {
							t.Errorf("partition %d of node %d ceased to lead", i, node)
							return
						}
						runtime.Gosched()
					}
				})
			}
		}
	}
	c.fill("orders", 1)
	done.Store(true)
	watchers.Wait()
}

// A node that waits for somebody to take it in ends when it is told to.
func TestANodeThatWaitsToBeTakenInStopsWhenTold(t *testing.T) {
	t.Parallel()
	nobody, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	require.NoError(t, nobody.Close())
	ctx, stop := context.WithCancel(t.Context())
	_, err = Start(ctx, Config{
		DataDir: t.TempDir(), Listen: "127.0.0.1:0", PeerListen: "127.0.0.1:0", HTTP: "off", NodeID: 2, Join: []string{nobody.Addr().String()},
		Logger: slog.New(slog.NewTextHandler(waitingWriter(stop), nil)),
	})
	require.ErrorContains(t, err, "told to stop before it was taken in")
}

// leftBehind writes the directory of a node that joined the cluster of c as node, and has
// heard nothing since: members are all that it knows.
func (c *crew) leftBehind(clusterID uuid.UUID, node uint32, members ...member) Config {
	dir := c.t.TempDir()
	require.NoError(c.t, writeDurably(vfs.OS(), filepath.Join(dir, "node.json"), &identity{
		FormatVersion: FormatVersion, ClusterID: clusterID, NodeID: node, StoreID: uuid.New(), MetaReplica: 77, Members: members,
	}))
	c.dirs[node] = dir
	return c.config(node)
}

// A node that waits for the metadata ends when it is told to.
func TestANodeThatWaitsForTheMetadataStopsWhenTold(t *testing.T) {
	t.Parallel()
	nobody, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	require.NoError(t, nobody.Close())
	ctx, stop := context.WithCancel(t.Context())
	cfg := newCrew(t, 0).leftBehind(uuid.New(), 2, member{Node: 1, Store: uuid.New(), MetaReplica: 1, PeerAddress: nobody.Addr().String()})
	cfg.Logger = slog.New(slog.NewTextHandler(waitingWriter(stop), nil))
	_, err = Start(ctx, cfg)
	require.ErrorIs(t, err, errGivenUp)
}

// A directory whose ID another one has taken is told so by the members, and ends.
func TestRuleR10_ADirectoryThatWasReplacedEnds(t *testing.T) {
	t.Parallel()
	c := newCrew(t, 2)
	v := c.broker(1).View()
	first, ok := v.Node(1)
	require.True(t, ok)
	old := c.leftBehind(v.ClusterID, 2, member{Node: 1, Store: first.Store, MetaReplica: first.MetaID(), PeerAddress: first.PeerAddress})
	old.Join = nil
	_, err := Start(t.Context(), old)
	require.ErrorIs(t, err, wire.CodeNotMember)
	require.ErrorContains(t, err, "node 2 was replaced: another data directory has its ID in the cluster now")
}

// A copy of a live node's data directory is refused, and the node goes on as it was. If the
// copy got in, what it acknowledged would be missing in the original, which then fences all
// that it has.
func TestRow41_ACopyOfALiveNodesDirectoryEnds(t *testing.T) {
	t.Parallel()
	c := newCrew(t, 3)
	c.create(1, "orders", 2, 3)
	c.fill("orders", 2)
	cfg := c.config(3)
	cfg.DataDir = t.TempDir()
	for _, part := range []string{"meta", "partitions"} {
		require.NoError(t, os.CopyFS(filepath.Join(cfg.DataDir, part), os.DirFS(filepath.Join(c.dirs[3], part))))
	}
	for _, file := range []string{"node.json", "hardstate"} {
		content, err := os.ReadFile(filepath.Join(c.dirs[3], file))
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(filepath.Join(cfg.DataDir, file), content, 0o600))
	}
	address, _ := c.broker(1).View().Node(3)
	_, err := Start(t.Context(), cfg)
	require.ErrorIs(t, err, wire.CodeAlreadyExists)
	require.ErrorContains(t, err, "node 3 runs already: another process has a copy of this data directory")
	now, _ := c.broker(1).View().Node(3)
	require.Equal(t, address, now, "nobody has heard of another address")
	c.fill("orders", 2)
	c.same("orders", 3)
	require.Empty(t, c.servers[3].Down())
	c.create(3, "more", 1, 3) // its metadata are as ever
}

// Who waits to be taken in says so once, not with each attempt.
func TestANodeThatWaitsToBeTakenInSaysItOnce(t *testing.T) {
	t.Parallel()
	mute, err := net.Listen("tcp", "127.0.0.1:0") // as the peer port of a broker
	require.NoError(t, err)
	defer mute.Close()
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	go func() {
		for range 4 {
			if conn, err := mute.Accept(); err == nil {
				_ = conn.Close()
			}
		}
		stop()
	}()
	var log lockedBuffer
	_, err = Start(ctx, Config{
		DataDir: t.TempDir(), Listen: "127.0.0.1:0", PeerListen: "127.0.0.1:0", HTTP: "off", NodeID: 2, Join: []string{mute.Addr().String()},
		Logger: slog.New(slog.NewTextHandler(&log, nil)),
	})
	require.ErrorContains(t, err, "told to stop before it was taken in")
	require.Equal(t, 1, strings.Count(log.String(), "waiting to be taken in"), log.String())
}

// Who is to join by the HTTP port of a broker is told so.
func TestJoiningByAnHTTPPortIsExplained(t *testing.T) {
	t.Parallel()
	other := httptest.NewServer(http.NotFoundHandler())
	defer other.Close()
	_, err := joinVia(t.Context(), other.Listener.Addr().String(), &wire.JoinRequest{})
	require.ErrorContains(t, err, "that is an HTTP port, as that of health and metrics (--http); name the client address of the member, its --listen")
}

// waitingWriter is called once something is logged.
type waitingWriter func()

func (w waitingWriter) Write(p []byte) (int, error) {
	w()
	return len(p), nil
}

// A replica that was alone, let others in, and lost the lead before it had looked at its
// configuration again, does not go on as the leader.
func TestAReplicaThatIsAloneNoMoreDoesNotClaimToLead(t *testing.T) {
	t.Parallel()
	c := newCrew(t, 3)
	c.create(1, "orders", 1, 3)
	c.fill("orders", 1)
	var follower uint32
	c.await("one leads", func() bool {
		for leader := range c.leaders(1, "orders") {
			follower = leader%3 + 1
			return leader != 0
		}
		return false
	})
	d, _ := c.broker(follower).View().Destination("orders")
	r := c.broker(follower).local(d.ID, 0)
	owned(&r.owner, func() {
		r.alone, r.campaigned = true, true
		r.showLead(true)
	})
	r.schedule()
	c.await("it follows", func() bool { return !r.Leading() })
}

// The node that leads the metadata dies; another does, and nodes come back to it.
func TestTheMetadataSurvivesItsLeader(t *testing.T) {
	t.Parallel()
	c := newCrew(t, 3)
	c.await("three nodes vote", func() bool { return c.broker(1).meta.voters.Load() == 3 })
	c.stop(1)
	c.create(2, "orders", 3, 1)
	c.start(1)
	c.await("the first node has caught up", func() bool {
		_, ok := c.broker(1).View().Destination("orders")
		return ok
	})
	c.create(1, "more", 1, 3)
	c.fill("more", 2)
	c.same("more", 2)
}

func TestAReplicaAndALeadershipMoveWhenAsked(t *testing.T) {
	t.Parallel()
	c := newCrew(t, 4)
	c.create(1, "orders", 1, 3)
	c.fill("orders", 3)
	d, _ := c.broker(1).View().Destination("orders")
	spare, from := uint32(0), uint32(0)
	for node := range c.servers {
		if d.Partitions[0].On(node) == nil {
			spare = node
		} else {
			from = node
		}
	}
	_, err := c.ask(spare, &wire.PartitionAdminRequest{Destination: "orders", Action: wire.PartitionMove, From: from, To: spare})
	require.NoError(t, err)
	c.await("the replica is where it should be, and no trace of it where it was", func() bool {
		d, _ := c.broker(1).View().Destination("orders")
		p := &d.Partitions[0]
		return len(p.Replicas) == 3 && p.On(spare) != nil && p.On(spare).State == cluster.ReplicaActive && p.On(from) == nil
	})
	require.NoDirExists(t, c.broker(from).partitionDir(wire.StorageDisk, d.ID, 0))
	_, err = c.ask(from, &wire.PartitionAdminRequest{Destination: "orders", Action: wire.PartitionTransfer, To: spare})
	require.NoError(t, err)
	c.await("the new replica leads", func() bool { return c.leaders(from, "orders")[spare] == 1 })
	c.fill("orders", 1)
	c.same("orders", 4)
	_, err = c.ask(1, &wire.PartitionAdminRequest{Destination: "orders", Action: wire.PartitionTransfer, To: from})
	require.ErrorIs(t, err, wire.CodeInvalidRequest)
}

// A replica that is lost before its leader has heard of it is forgotten, also where nothing is
// produced and the configuration stays what the metadata has been told before.
func TestAReplicaThatNeverJoinedAnIdlePartitionIsForgotten(t *testing.T) {
	t.Parallel()
	c := newCrew(t, 2)
	c.create(1, "orders", 1, 1)
	partition := func() (*cluster.Destination, *cluster.Partition) {
		for _, d := range c.broker(1).View().Destinations {
			return d, &d.Partitions[0]
		}
		return nil, nil
	}
	alone := func() bool {
		_, p := partition()
		return len(p.Replicas) == 1 && p.Replicas[0].State == cluster.ReplicaActive
	}
	c.await("the replica is there", alone)
	_, p := partition()
	from := p.Replicas[0].Node
	_, err := c.ask(1, &wire.PartitionAdminRequest{Destination: "orders", Action: wire.PartitionMove, From: from, To: 3 - from})
	require.NoError(t, err)
	c.await("it has moved", func() bool {
		_, p := partition()
		return alone() && p.Replicas[0].Node == 3-from
	})
	var m *metadataReplica
	c.await("somebody leads the metadata", func() bool {
		for _, s := range c.servers {
			if s.broker.meta.leads.Load() {
				m = s.broker.meta
			}
		}
		return m != nil
	})
	d, p := partition()
	results := make(chan cluster.Result, 2)
	lost := p.Replicas[0].ID + 1
	for _, command := range []cluster.Command{ // in one turn
		{Move: &cluster.Move{Destination: d.ID, Add: []uint32{from}, Remove: []uint64{p.Replicas[0].ID}}},
		{Lost: &cluster.Lost{Destination: d.ID, Replica: lost}},
	} {
		m.metadata.Submit(command, func(r cluster.Result) { results <- r })
	}
	m.schedule()
	for range 2 {
		require.NoError(t, (<-results).Err)
	}
	c.await("it is forgotten", alone)
	_, p = partition()
	require.Equal(t, lost-1, p.Replicas[0].ID)
}

// Rule R10: a replica whose directory is gone is lost, and made anew under another ID;
// it is never made empty under its own.
func TestRuleR10_AMissingDirectoryIsALostReplica(t *testing.T) {
	t.Parallel()
	c := newCrew(t, 3)
	c.create(1, "orders", 2, 3)
	c.fill("orders", 4)
	d, _ := c.broker(1).View().Destination("orders")
	old := d.Partitions[1].On(2).ID
	dir := c.broker(2).partitionDir(wire.StorageDisk, d.ID, 1)
	c.stop(2)
	require.NoError(t, os.RemoveAll(dir))
	c.start(2)
	c.await("another replica has taken its place", func() bool {
		d, _ := c.broker(1).View().Destination("orders")
		p := &d.Partitions[1]
		return len(p.Replicas) == 3 && p.Replica(old) == nil && p.On(2) != nil && p.On(2).State == cluster.ReplicaActive
	})
	c.same("orders", 4)
}
