package server

import (
	"context"
	"log/slog"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/cluster"
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
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
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
	m, err := c.ask(node, &wire.CreateRequest{Name: name, Kind: wire.Queue, Settings: wire.Settings{
		Partitions: partitions, Replicas: replicas, RetentionTimeMs: wire.Unlimited, RetentionBytes: wire.Unlimited,
	}})
	require.NoError(c.t, err)
	return m.(*wire.DestinationInfo)
}

func (c *crew) await(what string, ok func() bool) {
	c.t.Helper()
	require.Eventually(c.t, ok, 20*time.Second, 10*time.Millisecond, what)
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
	require.Equal(t, cluster.LevelCluster, v.Level)
}
