package fuzz

import (
	"flag"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/bench"
	"github.com/lockstepmq/lockstep/client"
	"github.com/lockstepmq/lockstep/wire"
)

var xPhase = flag.Duration("x.phase", 4*time.Second, "")
var xRounds = flag.Int("x.rounds", 5, "")

func TestXCatchUp(t *testing.T) {
	c, addresses := withMetrics(t)
	conn := c.connect()
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
				time.Sleep(pause)
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
	cpus := func() (out [3]float64) {
		for i, b := range c.nodes {
			if b.command != nil && b.command.Process != nil {
				out[i], _ = bench.CPUOfProcess(b.command.Process.Pid)(t.Context())
			}
		}
		return out
	}
	in := func(n int) float64 {
		v, _ := bench.FromMetrics(addresses[n], `lockstep_peer_bytes_total{direction="in"}`)(t.Context())
		return v
	}
	after := func(d time.Duration) func() bool {
		end := time.Now().Add(d)
		return func() bool { return time.Now().After(end) }
	}
	leader := int(leaderOf(t, conn, "figure")) - 1
	away := (leader + 1) % clusterNodes
	third := (leader + 2) % clusterNodes
	measure := func(name string) []time.Duration {
		before := cpus()
		from := in(away)
		began := time.Now()
		took := foreground(after(*xPhase))
		s := time.Since(began).Seconds()
		to := in(away)
		now := cpus()
		half := ""
		for i := 0; i < 4; i++ {
			half += fmt.Sprint(" ", quantile(took[i*len(took)/4:(i+1)*len(took)/4], 0.99).Round(time.Millisecond/10))
		}
		t.Logf("%-9s %s p90 %v; quarters' p99%s; %.0f MiB/s; CPU leader %.0f%% third %.0f%% away %.0f%%; %s", name, spread(took), quantile(took, 0.9).Round(time.Millisecond/10), half,
			(to-from)/s/(1<<20), 100*(now[leader]-before[leader])/s, 100*(now[third]-before[third])/s, 100*(now[away]-before[away])/s, machineLoad())
		return took
	}
	foreground(after(time.Second / 4))
	measure("three")
	c.nodes[away].kill()
	fill, err := c.connect().Producer(t.Context(), "figure", client.DeliveryTimeout(killDelivery))
	require.NoError(t, err)
	for filled := int64(0); filled < *figureBehind; filled += figureRecord {
		require.NoError(t, fill.SendFunc(t.Context(), &client.Record{Value: make([]byte, figureRecord)}, func(_ client.Receipt, err error) {
			if err != nil {
				t.Errorf("filling: %v", err)
			}
		}))
	}
	require.NoError(t, fill.Close(t.Context()))
	var two, catching []time.Duration
	for range *xRounds {
		two = append(two, measure("two")...)
		c.nodes[away].start()
		_ = c.nodes[away].connect().Close()
		foreground(after(time.Second / 2))
		catching = append(catching, measure("catching")...)
		c.nodes[away].kill()
		foreground(after(time.Second / 4))
	}
	t.Logf("ALL two %s", spread(two))
	t.Logf("ALL catching %s; ratio p99 %.1f p90 %.1f p50 %.1f", spread(catching), float64(quantile(catching, 0.99))/float64(quantile(two, 0.99)), float64(quantile(catching, 0.9))/float64(quantile(two, 0.9)), float64(quantile(catching, 0.5))/float64(quantile(two, 0.5)))
}
