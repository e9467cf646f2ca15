package lockstest

import (
	"context"
	"log/slog"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lockstepmq/lockstep/client"
	"github.com/lockstepmq/lockstep/server"
)

// formTimeout bounds how long brokers take to become one cluster.
const formTimeout = 30 * time.Second

var errorsOnly = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError}))

// Cluster is several brokers that are one cluster, all in the test's process, on free
// loopback ports.
type Cluster struct {
	t       testing.TB
	brokers []*Broker
}

// StartCluster runs n brokers until the test ends. It returns when each of them sees
// all others alive, so that destinations with n replicas can be created. Every option
// is for each broker; DataDir is not for clusters. Errors alone go to standard error by
// default: that brokers come and go is what tests of a cluster are about.
func StartCluster(t testing.TB, n int, options ...Option) *Cluster {
	t.Helper()
	c := &Cluster{t: t}
	for node := range n {
		var join []string
		for _, b := range c.brokers {
			join = append(join, b.Addr())
		}
		member := Configure(func(cfg *server.Config) {
			cfg.NodeID, cfg.PeerListen, cfg.Join = uint32(node+1), freeAddress(t), join
		})
		b := newBroker(t, slices.Concat([]Option{Logger(errorsOnly)}, options, []Option{member}))
		b.start()
		t.Cleanup(b.stop)
		c.brokers = append(c.brokers, b)
	}
	c.Await()
	return c
}

// Broker returns the broker with a node ID, from 1.
func (c *Cluster) Broker(node int) *Broker { return c.brokers[node-1] }

// URL is what client.Connect takes: all brokers.
func (c *Cluster) URL() string {
	var addresses []string
	for _, b := range c.brokers {
		addresses = append(addresses, b.config.Listen)
	}
	return "lockstep://" + strings.Join(addresses, ",")
}

// Stop ends a broker in order, and Start runs it again on its data and addresses.
func (c *Cluster) Stop(node int) {
	c.t.Helper()
	c.brokers[node-1].stop()
}

// Start runs a broker again that was stopped. It does not wait for the others to
// notice, see Await.
func (c *Cluster) Start(node int) {
	c.t.Helper()
	c.brokers[node-1].start()
}

// Await returns when every broker that runs sees all of those alive, and so many of them
// vote about the metadata that it survives the loss of any one, if there are three.
func (c *Cluster) Await() {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), formTimeout)
	defer cancel()
	running := 0
	for _, b := range c.brokers {
		if b.server != nil {
			running++
		}
	}
	for _, b := range c.brokers {
		if b.server == nil {
			continue
		}
		if err := b.sees(ctx, running); err != nil {
			c.t.Fatalf("lockstest: %d brokers do not become a cluster: %v", len(c.brokers), err)
		}
		for running >= 3 && b.server.MetadataVoters() < 3 {
			select {
			case <-ctx.Done():
				c.t.Fatalf("lockstest: %d nodes vote about the metadata of %d brokers", b.server.MetadataVoters(), running)
			case <-time.After(10 * time.Millisecond):
			}
		}
	}
}

// sees waits until a broker sees n of them alive, itself included.
func (b *Broker) sees(ctx context.Context, n int) error {
	conn, err := client.Connect(ctx, b.URL(), client.AllowRedirect(false))
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	for {
		nodes, _, err := conn.Nodes(ctx)
		alive := 0
		for i := range nodes {
			if nodes[i].Alive {
				alive++
			}
		}
		if err == nil && alive >= n {
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(10 * time.Millisecond):
		}
	}
}
