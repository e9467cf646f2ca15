package fuzz

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/client"
	"github.com/lockstepmq/lockstep/wire"
)

var (
	clusterFaults = flag.Int("cluster.faults", 4, "how often TestClusterOfProcesses kills or stops brokers")
	clusterSeed   = flag.Uint64("cluster.seed", 0, "draws victims and moments; 0 takes the clock's")
)

// Figures of TestClusterOfProcesses.
const (
	clusterNodes    = 3
	clusterProgress = 40               // records that must be acknowledged before and during each fault
	clusterPatience = 40 * time.Second // for that; it is no claim, only the end of hope
	mutantPatience  = 6 * time.Second  // for that, where it is hoped that nothing goes on
)

// given are the ports that freeAddress has given: a broker that is down needs its own again.
var given sync.Map

// freeAddress is a port that is free now and that nobody takes while its broker is down:
// below those that Linux gives to outgoing connections and those of package cli's tests.
func freeAddress(t *testing.T) string {
	t.Helper()
	for range 100 {
		port := 10_000 + rand.IntN(10_000)
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			continue
		}
		defer l.Close()
		if _, taken := given.LoadOrStore(port, true); !taken {
			return l.Addr().String()
		}
	}
	require.Fail(t, "no port is free")
	return ""
}

// clusterProcess is a cluster of real brokers on one machine.
type clusterProcess struct {
	t     *testing.T
	nodes []*brokerProcess
}

func newClusterProcess(t *testing.T, configure ...func(*brokerProcess)) *clusterProcess {
	t.Helper()
	c := &clusterProcess{t: t}
	for range clusterNodes {
		c.add(configure...)
	}
	return c
}

// add starts another node, the first one of all or one that joins the others, and returns
// it when it answers.
func (c *clusterProcess) add(configure ...func(*brokerProcess)) *brokerProcess {
	c.t.Helper()
	b := newBroker(c.t)
	b.args = []string{"--node-id", fmt.Sprint(len(c.nodes) + 1), "--peer-listen", freeAddress(c.t)}
	for _, other := range c.nodes {
		b.args = append(b.args, "--join", other.address)
	}
	for _, f := range configure {
		f(b)
	}
	b.start()
	_ = b.connect().Close()
	c.nodes = append(c.nodes, b)
	return b
}

// formed waits until the metadata has a majority without the broker that founded the
// cluster. It takes the others in as voters some seconds after they have joined; until
// then nothing is left of the cluster if that one is.
func formed(t *testing.T, conn *client.Conn) {
	t.Helper()
	require.Eventually(t, func() bool {
		status, err := conn.ClusterStatus(t.Context())
		return err == nil && len(status.Voters) >= clusterNodes
	}, clusterPatience, 20*time.Millisecond, "the metadata has no majority without its founder")
}

func (c *clusterProcess) connect(opts ...client.Option) *client.Conn {
	c.t.Helper()
	var addresses []string
	for _, b := range c.nodes {
		addresses = append(addresses, b.address)
	}
	ctx, cancel := context.WithTimeout(c.t.Context(), startTimeout)
	defer cancel()
	conn, err := client.Connect(ctx, strings.Join(addresses, ","), append(opts, client.WithReconnectBackoff(5*time.Millisecond, 50*time.Millisecond))...)
	require.NoError(c.t, err)
	c.t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// create makes a topic on all nodes as soon as they are there.
func (c *clusterProcess) create(conn *client.Conn, name string, partitions uint32) {
	c.t.Helper()
	for deadline := time.Now().Add(startTimeout); ; time.Sleep(50 * time.Millisecond) { // nodes that come up tell nobody here
		_, err := conn.CreateDestination(c.t.Context(), client.Destination{
			Name: name, Kind: wire.Topic,
			Settings: client.Settings{Partitions: partitions, Replicas: uint8(len(c.nodes)), SegmentBytes: 1 << 20},
		})
		if err == nil || errors.Is(err, wire.CodeAlreadyExists) { // an attempt whose answer was lost has made it
			return
		}
		require.True(c.t, time.Now().Before(deadline), "create %s: %v", name, err)
	}
}

// progress waits until producers have got some more receipts.
func (c *clusterProcess) progress(producers []*killProducer) time.Duration {
	c.t.Helper()
	return progress(c.t, producers)
}

func progress(t testing.TB, producers []*killProducer) time.Duration {
	t.Helper()
	patience := clusterPatience
	if _, mutant := t.(*failing); mutant {
		patience = mutantPatience
	}
	began := time.Now()
	want := map[*killProducer]uint64{}
	for _, p := range producers {
		want[p] = p.acknowledged() + clusterProgress
	}
	require.Eventually(t, func() bool {
		for _, p := range producers {
			if p.acknowledged() < want[p] {
				return false
			}
		}
		return true
	}, patience, 5*time.Millisecond, "a majority of the brokers is enough to go on")
	return time.Since(began)
}

// lead makes a node the leader of a partition.
func (c *clusterProcess) lead(conn *client.Conn, destination string, partition, node uint32) {
	c.t.Helper()
	var err error
	require.Eventually(c.t, func() bool {
		ctx, cancel := context.WithTimeout(c.t.Context(), 5*time.Second)
		defer cancel()
		d, failed := conn.Destination(ctx, destination)
		if err = failed; err != nil {
			return false
		}
		if d.Partitions[partition].Leader == node {
			return true
		}
		err = conn.TransferLeader(ctx, destination, partition, node)
		return false
	}, clusterPatience, 20*time.Millisecond, "%s/%d to node %d: %v", destination, partition, node, err)
}

// acknowledged is how many receipts a producer has got.
func (p *killProducer) acknowledged() uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.verified + uint64(len(p.receipts))
}

// TestClusterOfProcesses kills or stops one of three real brokers at random moments
// under load and goes on only when records are acknowledged without it; at times it
// kills all of them. Each
// acknowledged record must be readable at the offset that its receipt said, once, and those
// with a key in the order in which their producer sent them (RELIABILITY F2, F16).
func TestClusterOfProcesses(t *testing.T) {
	t.Parallel()
	seed := *clusterSeed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("cluster.seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	c := newClusterProcess(t)
	conn := c.connect()
	const name = "cluster"
	c.create(conn, name, killPartitions)
	var logs []*partitionLog
	for p := range uint32(killPartitions) {
		logs = append(logs, &partitionLog{destination: name, partition: p, keyedOnly: true})
	}
	running, stop := context.WithCancel(t.Context())
	defer stop()
	var producers []*killProducer
	for k := range uint32(killProducers) {
		p := &killProducer{id: k, receipts: map[uint64]place{}}
		producers = append(producers, p)
		p.start(t, running, c.connect(), name)
	}
	var worst time.Duration
	stops, all := 0, 0
	for range *clusterFaults {
		c.progress(producers)
		time.Sleep(time.Duration(random.Int64N(int64(100 * time.Millisecond)))) // a random moment
		victim := c.nodes[random.IntN(clusterNodes)]
		switch random.IntN(6) {
		case 0:
			all++
			for _, b := range c.nodes {
				b.kill()
			}
			for _, b := range c.nodes {
				b.start()
			}
			c.progress(producers)
		case 1, 2:
			stops++
			require.NoError(t, victim.command.Process.Signal(syscall.SIGSTOP))
			worst = max(worst, c.progress(producers))
			require.NoError(t, victim.command.Process.Signal(syscall.SIGCONT))
		default:
			victim.kill()
			worst = max(worst, c.progress(producers))
			victim.start()
		}
		_ = victim.connect().Close()
		verify(t, conn, logs, producers)
	}
	stop()
	for _, p := range producers {
		p.finish(t)
	}
	verify(t, conn, logs, producers)
	var sent, read uint64
	for _, p := range producers {
		sent += p.sent
		require.Equal(t, p.sent, p.verified, "producer %d: every record is acknowledged in the end", p.id)
	}
	for _, l := range logs {
		read += l.next
	}
	require.Equal(t, sent, read, "records sent and records read")
	t.Logf("%d kills, %d of all, %d stops, %d records, at worst %v without %d receipts for everybody", *clusterFaults-stops-all, all, stops, sent, worst.Round(time.Millisecond), clusterProgress)
}
