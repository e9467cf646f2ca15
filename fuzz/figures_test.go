package fuzz

import (
	"context"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lockstepmq/lockstep/bench"
	"github.com/lockstepmq/lockstep/client"
	"github.com/lockstepmq/lockstep/wire"
)

// The figures of a cluster of three processes on this machine that docs/performance.md
// has. By default each is a small run that shows no more than that the measurement works;
// `make figures` gives them their counts and a release build. They assert what must not
// depend on the machine: that nothing is lost, nothing is twice, nothing fails.
var (
	figureKills      = flag.Int("figure.kills", 2, "how often TestFigure_Kills kills the leader of a partition")
	figureTransfers  = flag.Int("figure.transfers", 5, "how often TestFigure_Transfers hands a leadership over")
	figurePartitions = flag.Int("figure.partitions", 20, "partitions of three replicas in TestFigure_IdlePartitions")
	figureIdle       = flag.Duration("figure.idle", time.Second, "for how long TestFigure_IdlePartitions looks at them")
	figureBehind     = flag.Int64("figure.behind", 8<<20, "bytes that a follower in TestFigure_CatchUp has missed")
	figureBaseline   = flag.Duration("figure.baseline", time.Second/2, "for how long TestFigure_CatchUp measures each time with nobody catching up")
	figureCatchUps   = flag.Int("figure.catchups", 1, "in how many rounds, with and without it, TestFigure_CatchUp measures the follower that catches up")
)

// figureRate is how many records of figureRecord bytes a second the foreground of
// TestFigure_CatchUp sends.
const (
	figureRate   = 2000
	figureRecord = 1024
)

// machineLoad is what else the machine did, as people read it.
func machineLoad() string {
	load, _ := os.ReadFile("/proc/loadavg")
	fields := strings.Fields(string(load))
	return "load average " + strings.Join(fields[:min(3, len(fields))], " ")
}

// quantile is the value that a share p of all does not exceed.
func quantile(all []time.Duration, p float64) time.Duration {
	sorted := slices.Sorted(slices.Values(all))
	return sorted[max(0, int(float64(len(sorted))*p+0.999999)-1)]
}

func spread(all []time.Duration) string {
	return fmt.Sprintf("p50 %v, p99 %v, at worst %v", quantile(all, 0.5).Round(time.Millisecond), quantile(all, 0.99).Round(time.Millisecond), slices.Max(all).Round(time.Millisecond))
}

// withMetrics gives every broker of a cluster to be an address for its metrics.
func withMetrics(t *testing.T, args ...string) (*clusterProcess, []string) {
	var addresses []string
	c := newClusterProcess(t, func(b *brokerProcess) {
		addresses = append(addresses, freeAddress(t))
		b.args = append(b.args, append(args, "--http", addresses[len(addresses)-1])...)
	})
	return c, addresses
}

// metric reads a metric, or the sum of its series.
func metric(t *testing.T, address, name string) float64 {
	t.Helper()
	v, err := bench.FromMetrics(address, name)(t.Context())
	require.NoError(t, err)
	return v
}

// leaderOf is who leads the first partition of a destination.
func leaderOf(t *testing.T, conn *client.Conn, destination string) uint32 {
	t.Helper()
	var leader uint32
	require.Eventually(t, func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		d, err := conn.Destination(ctx, destination)
		if err == nil {
			leader = d.Partitions[0].Leader
		}
		return leader != 0
	}, startTimeout, 10*time.Millisecond)
	return leader
}

// pulse sends one record after the other and notes when each is acknowledged.
type pulse struct {
	mu     sync.Mutex
	last   time.Time
	widest time.Duration // gap between two receipts since rest
	count  uint64
	failed error
	done   sync.WaitGroup
}

// startPulse begins with the first receipt.
func startPulse(t *testing.T, ctx context.Context, conn *client.Conn, destination string) *pulse {
	t.Helper()
	producer, err := conn.Producer(t.Context(), destination, client.DeliveryTimeout(killDelivery))
	require.NoError(t, err)
	p := &pulse{}
	beat := func() error {
		_, err := producer.Send(t.Context(), &client.Record{Value: make([]byte, 100)})
		p.mu.Lock()
		defer p.mu.Unlock()
		now := time.Now()
		if !p.last.IsZero() {
			p.widest = max(p.widest, now.Sub(p.last))
		}
		p.last = now
		p.count++
		return err
	}
	require.NoError(t, beat())
	p.done.Go(func() {
		for every := time.NewTicker(time.Millisecond); ctx.Err() == nil; <-every.C {
			if err := beat(); err != nil {
				p.failed = err
				return
			}
		}
	})
	return p
}

// rest returns the widest gap so far and begins anew.
func (p *pulse) rest() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	widest := p.widest
	p.widest = 0
	return widest
}

// beats is how many receipts came.
func (p *pulse) beats() uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.count
}

// goesOn waits for some more receipts.
func (p *pulse) goesOn(t *testing.T, n uint64) {
	t.Helper()
	want := p.beats() + n
	require.Eventually(t, func() bool { return p.beats() >= want }, startTimeout, time.Millisecond)
}

// stop ends it and requires that every record was acknowledged and is there once.
func (p *pulse) stop(t *testing.T, stop context.CancelFunc, conn *client.Conn, destination string) {
	t.Helper()
	stop()
	p.done.Wait()
	require.NoError(t, p.failed)
	next, err := conn.Offsets(t.Context(), destination, client.Latest())
	require.NoError(t, err)
	require.Equal(t, map[uint32]uint64{0: p.count}, next, "records sent one by one and records there")
}

// TestFigure_Kills measures for how long a producer that sends one record after the other
// gets no receipt when the leader of its partition is killed.
func TestFigure_Kills(t *testing.T) {
	c := newClusterProcess(t)
	conn := c.connect()
	c.create(conn, "figure", 1)
	running, stop := context.WithCancel(t.Context())
	defer stop()
	p := startPulse(t, running, c.connect(), "figure")
	var gaps []time.Duration
	for range *figureKills {
		p.goesOn(t, 100)
		p.rest()
		victim := c.nodes[leaderOf(t, conn, "figure")-1]
		victim.kill()
		p.goesOn(t, 20)
		gaps = append(gaps, p.rest())
		victim.start()
		_ = victim.connect().Close()
	}
	p.stop(t, stop, conn, "figure")
	t.Logf("%d kills of a leader: no receipt for %s; %s", len(gaps), spread(gaps), machineLoad())
}

// TestFigure_Transfers measures the same for planned transfers, beside producers that
// keep their partitions busy.
func TestFigure_Transfers(t *testing.T) {
	c := newClusterProcess(t)
	conn := c.connect()
	c.create(conn, "figure", 1)
	c.create(conn, "load", killPartitions)
	running, stop := context.WithCancel(t.Context())
	defer stop()
	var logs []*partitionLog
	for n := range uint32(killPartitions) {
		logs = append(logs, &partitionLog{destination: "load", partition: n, keyedOnly: true})
	}
	var producers []*killProducer
	for k := range uint32(killProducers) {
		p := &killProducer{id: k, receipts: map[uint64]place{}}
		producers = append(producers, p)
		p.start(t, running, c.connect(), "load")
	}
	p := startPulse(t, running, c.connect(), "figure")
	p.goesOn(t, 200)
	usual := p.rest()
	var gaps []time.Duration
	for range *figureTransfers {
		p.goesOn(t, 50)
		p.rest()
		from := leaderOf(t, conn, "figure")
		for _, name := range []string{"figure", "load"} {
			ctx, cancel := context.WithTimeout(t.Context(), startTimeout)
			require.NoError(t, conn.TransferLeader(ctx, name, 0, from%clusterNodes+1))
			cancel()
		}
		require.Eventually(t, func() bool { return leaderOf(t, conn, "figure") != from }, startTimeout, time.Millisecond)
		p.goesOn(t, 20)
		gaps = append(gaps, p.rest())
	}
	stop()
	for _, k := range producers {
		k.finish(t)
	}
	verify(t, conn, logs, producers)
	p.stop(t, stop, conn, "figure")
	t.Logf("%d transfers under load: no receipt for %s (without a transfer %v); no error, no duplicate; %s", len(gaps), spread(gaps), usual.Round(time.Millisecond), machineLoad())
}

// TestFigure_IdlePartitions measures what partitions cost in which nothing happens.
func TestFigure_IdlePartitions(t *testing.T) {
	const perDestination = 1000
	c, addresses := withMetrics(t)
	conn := c.connect()
	counts := []int{*figurePartitions / 10, *figurePartitions}
	made := 0
	for _, count := range counts {
		for made < count {
			n := min(perDestination, count-made)
			name := fmt.Sprintf("idle-%d", made)
			c.create(conn, name, uint32(n))
			made += n
			// Each is written to once, so that it is no mere promise.
			ctx, cancel := context.WithTimeout(t.Context(), 10*startTimeout)
			for k := range n {
				p, err := conn.Producer(ctx, name, client.Partition(uint32(k)))
				require.NoError(t, err)
				_, err = p.Send(ctx, &client.Record{Value: []byte("once")})
				require.NoError(t, err)
				require.NoError(t, p.Close(ctx))
			}
			cancel()
		}
		require.NoError(t, c.nodes[0].run(nil, nil, "cluster", "health", "--watch", "--exit-when-healthy", "--timeout", "5m"))
		rest(t, addresses)
		frames, cpu := make([]float64, clusterNodes), make([]float64, clusterNodes)
		read := func(sign float64) {
			for i, b := range c.nodes {
				frames[i] += sign * metric(t, addresses[i], `lockstep_peer_frames_total{direction="out"}`)
				used, err := bench.CPUOfProcess(b.command.Process.Pid)(t.Context())
				require.NoError(t, err)
				cpu[i] += sign * used
			}
		}
		read(-1)
		began := time.Now()
		time.Sleep(*figureIdle) // that nothing happens is what is measured
		read(1)
		took := time.Since(began).Seconds()
		for i, b := range c.nodes {
			memory, err := bench.ResidentOfProcess(b.command.Process.Pid)()
			require.NoError(t, err)
			anonymous, err := bench.AnonymousOfProcess(b.command.Process.Pid)()
			require.NoError(t, err)
			t.Logf("%d partitions, node %d: %.2f %% of a core, %.1f frames/s to other nodes, %d MiB resident, %d MiB of them anonymous",
				count, i+1, 100*cpu[i]/took, frames[i]/took, memory>>20, anonymous>>20)
		}
	}
	t.Log(machineLoad())
}

// rest waits until nodes have nothing to tell each other but that they live.
func rest(t *testing.T, addresses []string) {
	t.Helper()
	require.Eventually(t, func() bool {
		before := metric(t, addresses[0], `lockstep_peer_frames_total{direction="out"}`)
		time.Sleep(time.Second) // frames of a second are counted
		return metric(t, addresses[0], `lockstep_peer_frames_total{direction="out"}`)-before < 100
	}, 5*time.Minute, time.Second)
}

// TestFigure_CatchUp measures what a producer notices of a follower that was away and
// reads what it has missed.
func TestFigure_CatchUp(t *testing.T) {
	c, addresses := withMetrics(t)
	conn := c.connect()
	formed(t, conn)
	_, err := conn.CreateDestination(t.Context(), client.Destination{
		Name: "figure", Kind: wire.Topic, Settings: client.Settings{Partitions: 1, Replicas: clusterNodes},
	})
	require.NoError(t, err)
	producer, err := c.connect().Producer(t.Context(), "figure", client.DeliveryTimeout(killDelivery))
	require.NoError(t, err)
	var sent atomic.Int64
	foreground := func(enough func() bool) []time.Duration {
		var mu sync.Mutex
		var took []time.Duration
		began := time.Now()
		for n := 0; !enough(); n++ {
			due := began.Add(time.Duration(n) * time.Second / figureRate)
			if pause := time.Until(due); pause > time.Millisecond {
				time.Sleep(pause) // the rate
			}
			sent.Add(1)
			require.NoError(t, producer.SendFunc(t.Context(), &client.Record{Value: make([]byte, figureRecord)}, func(_ client.Receipt, err error) {
				if err != nil {
					t.Errorf("foreground: %v", err)
				}
				mu.Lock()
				defer mu.Unlock()
				took = append(took, time.Since(due))
			}))
		}
		require.NoError(t, producer.Flush(t.Context()))
		mu.Lock()
		defer mu.Unlock()
		return took
	}
	after := func(d time.Duration) func() bool {
		end := time.Now().Add(d)
		return func() bool { return time.Now().After(end) }
	}
	foreground(after(time.Second / 4)) // to begin with
	baseline := foreground(after(*figureBaseline))

	leader := leaderOf(t, conn, "figure")
	away := int(leader % clusterNodes)
	received := bench.FromMetrics(addresses[away], `lockstep_peer_bytes_total{direction="in"}`)
	c.nodes[away].kill()
	known := sent.Load()
	// The control: a plain file takes as many bytes as quickly, synced as often, beside two
	// nodes that catch nobody up. What that does to the producer is the machine's.
	var wrote atomic.Bool
	control := make(chan error, 1)
	go func() {
		control <- writePlainly(t.TempDir(), min(*figureBehind, figureControl))
		wrote.Store(true)
	}()
	beside := foreground(wrote.Load)
	require.NoError(t, <-control)
	fill, err := c.connect().Producer(t.Context(), "figure", client.DeliveryTimeout(killDelivery))
	require.NoError(t, err)
	for filled := int64(0); filled < *figureBehind; filled += figureRecord {
		sent.Add(1)
		require.NoError(t, fill.SendFunc(t.Context(), &client.Record{Value: make([]byte, figureRecord)}, func(_ client.Receipt, err error) {
			if err != nil {
				t.Errorf("filling: %v", err)
			}
		}))
	}
	require.NoError(t, fill.Close(t.Context()))

	// Rounds of two equal phases, with two nodes and beside the one that catches up: what
	// else the machine does changes within minutes. The last one goes on to the end.
	var without, during []time.Duration
	var ratios []float64
	var fetched, seconds float64
	for round := range *figureCatchUps {
		quiet := foreground(after(*figureBaseline))
		c.nodes[away].start()
		_ = c.nodes[away].connect().Close()
		began := time.Now()
		enough := after(*figureBaseline)
		var caught atomic.Bool
		watched := make(chan struct{})
		if round == *figureCatchUps-1 {
			enough = func() bool { return caught.Load() || time.Since(began) > figurePatience }
			missed := float64((sent.Load()-known)*figureRecord) - fetched
			go func() {
				defer close(watched)
				for !caught.Load() && time.Since(began) < figurePatience {
					n, err := received(t.Context())
					caught.Store(err == nil && n >= missed)
					time.Sleep(20 * time.Millisecond) // a metric of another process is asked again
				}
			}()
		} else {
			close(watched)
		}
		catching := foreground(enough)
		<-watched
		require.True(t, caught.Load() || round < *figureCatchUps-1, "it has not caught up in %v", figurePatience)
		seconds += time.Since(began).Seconds()
		n, err := received(t.Context())
		require.NoError(t, err)
		fetched += n
		without, during = append(without, quiet...), append(during, catching...)
		ratios = append(ratios, float64(quantile(catching, 0.99))/float64(quantile(quiet, 0.99)))
		if round < *figureCatchUps-1 {
			c.nodes[away].kill()
		}
	}
	t.Logf("a follower %d MiB behind had them after %.1f s (%.0f MiB/s); %d records/s of %d bytes meanwhile; p99 while it catches up by that with two nodes, %d rounds: %.1f; %s",
		*figureBehind>>20, seconds, fetched/(1<<20)/seconds, figureRate, figureRecord, *figureCatchUps, ratios, machineLoad())
	for _, phase := range []struct {
		name string
		took []time.Duration
	}{{"before", baseline}, {"with two nodes", without}, {"with two nodes, beside a plain writer of the same bytes", beside}, {"while it catches up", during}, {"after", foreground(after(*figureBaseline))}} {
		t.Logf("%s: %s", phase.name, spread(phase.took))
	}
}

// figurePatience is for how long a follower may catch up in TestFigure_CatchUp.
const figurePatience = 30 * time.Minute

// figureControl is how much the control of TestFigure_CatchUp writes at most.
const figureControl = 1 << 30

// writePlainly writes files as a follower that catches up does: 512 KiB at a time, synced
// with every eighth, at the rate at which a leader reads for it.
func writePlainly(dir string, total int64) error {
	const rate, step, synced, segment = 8 << 20, 512 << 10, 4 << 20, 64 << 20
	began := time.Now()
	var f *os.File
	for written := int64(0); written < total; written += step {
		if written%segment == 0 {
			if f != nil {
				_ = f.Close()
			}
			var err error
			if f, err = os.Create(fmt.Sprintf("%s/%d", dir, written/segment)); err != nil {
				return err
			}
			defer f.Close()
			if err := unix.Fallocate(int(f.Fd()), 0, 0, segment); err != nil {
				return err
			}
		}
		if _, err := f.WriteAt(make([]byte, step), written%segment); err != nil {
			return err
		}
		if (written+step)%synced == 0 {
			if err := unix.Fdatasync(int(f.Fd())); err != nil {
				return err
			}
		}
		time.Sleep(time.Until(began.Add(time.Duration(written) * time.Second / rate))) // the rate
	}
	return nil
}
