package fuzz

import (
	"context"
	"flag"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lockstepmq/lockstep/bench"
	"github.com/lockstepmq/lockstep/client"
)

var (
	stormPartitions = flag.Int("storm.partitions", 40, "partitions of three replicas in TestF21")
	stoppedBytes    = flag.Uint64("stopped.bytes", 256<<20, "how many bytes TestF22 writes while a follower is stopped")
)

// TestF21_ARestartedNodeDisturbsNobody kills one of three brokers that hold many
// partitions and starts it again while producers write to those that the others lead: none
// of these changes its leader more than for balance, once when the node goes and once
// when it returns (RELIABILITY F21). Latencies are for people.
func TestF21_ARestartedNodeDisturbsNobody(t *testing.T) {
	c := newClusterProcess(t)
	conn := c.connect()
	c.create(conn, "storm", uint32(*stormPartitions))
	healthy(t, c.nodes[0])
	const victim = clusterNodes
	var others []uint32
	epochs := map[uint32]uint32{}
	look := func() client.Destination {
		d, err := conn.Destination(t.Context(), "storm")
		require.NoError(t, err)
		return d
	}
	for _, p := range look().Partitions {
		if p.Leader != victim {
			others = append(others, p.Number)
			epochs[p.Number] = p.Epoch
		}
	}
	require.NotEmpty(t, others)
	require.Less(t, len(others), *stormPartitions)
	producers := make([]*client.Producer, 0, len(others))
	for _, n := range others[:min(8, len(others))] {
		p, err := conn.Producer(t.Context(), "storm", client.Partition(n), client.DeliveryTimeout(killDelivery))
		require.NoError(t, err)
		producers = append(producers, p)
	}
	latencies := func(enough func() bool) (took []time.Duration) {
		for !enough() {
			for _, p := range producers {
				began := time.Now()
				_, err := p.Send(t.Context(), &client.Record{Value: make([]byte, 100)})
				require.NoError(t, err)
				took = append(took, time.Since(began))
			}
		}
		return took
	}
	n := 0
	before := latencies(func() bool { n++; return n > 50 })
	c.nodes[victim-1].kill()
	for _, n := range others { // every partition has something to catch up with
		p, err := conn.Producer(t.Context(), "storm", client.Partition(n), client.DeliveryTimeout(killDelivery))
		require.NoError(t, err)
		_, err = p.Send(t.Context(), &client.Record{Value: make([]byte, 100)})
		require.NoError(t, err)
		require.NoError(t, p.Close(t.Context()))
	}
	c.nodes[victim-1].start()
	whole := make(chan struct{})
	go func() {
		defer close(whole)
		_ = c.nodes[victim-1].connect().Close()
		healthy(t, c.nodes[0])
	}()
	during := latencies(func() bool {
		select {
		case <-whole:
			return true
		default:
			return false
		}
	})
	moved := 0
	for _, p := range look().Partitions {
		// Some are handed over in order, to share the leaderships of the node that is away,
		// and those of all once it is back: one change each.
		if epoch, known := epochs[p.Number]; known && p.Epoch != epoch {
			moved++
			require.LessOrEqual(t, p.Epoch, epoch+2, "partition %d changed its leader again and again: node %d leads it", p.Number, p.Leader)
		}
	}
	t.Logf("%d partitions, %d led by others, of which %d were handed over; a record before: %s; while the node comes back: %s; %s", *stormPartitions, len(others), moved, spread(before), spread(during), machineLoad())
}

// f22Budget is how much more anonymous memory a broker may take while a follower is
// stopped: the garbage collector's share of what goes through it, 163 MiB at the most, and
// none of what the follower lacks.
const f22Budget = 192 << 20

// TestF22_AStoppedFollowerTakesNoMemory stops a follower of one partition with SIGSTOP
// while a producer writes as quickly as it can: the others go on, their memory stays within
// a budget, and the follower has everything in the end (RELIABILITY F22).
func TestF22_AStoppedFollowerTakesNoMemory(t *testing.T) {
	c := newClusterProcess(t)
	conn := c.connect()
	c.create(conn, "full", 1)
	leader := leaderOf(t, conn, "full")
	follower := c.nodes[int(leader)%clusterNodes]
	producer, err := conn.Producer(t.Context(), "full", client.DeliveryTimeout(killDelivery))
	require.NoError(t, err)
	value, sent := make([]byte, 1024), uint64(0)
	load := func(bytes uint64) {
		for end := sent + bytes/uint64(len(value)); sent < end; sent++ {
			require.NoError(t, producer.SendFunc(t.Context(), &client.Record{Value: value}, func(_ client.Receipt, err error) {
				if err != nil {
					t.Error(err)
				}
			}))
		}
		require.NoError(t, producer.Flush(t.Context()))
	}
	anonymous := func() (all []int64) {
		for _, b := range c.nodes {
			if b == follower {
				continue
			}
			n, err := bench.AnonymousOfProcess(b.command.Process.Pid)()
			require.NoError(t, err)
			all = append(all, int64(n))
		}
		return all
	}
	load(32 << 20)
	before := anonymous()
	require.NoError(t, follower.command.Process.Signal(unix.SIGSTOP))
	load(*stoppedBytes)
	after := anonymous()
	require.NoError(t, follower.command.Process.Signal(unix.SIGCONT))
	for i := range after {
		require.Less(t, after[i]-before[i], int64(f22Budget), "anonymous memory of a broker beside a stopped follower")
	}
	healthy(t, c.nodes[0])
	c.lead(conn, "full", 0, uint32(int(leader)%clusterNodes+1))
	require.Eventually(t, func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		ends, err := conn.Offsets(ctx, "full", client.Latest())
		return err == nil && ends[0] == sent
	}, startTimeout, 50*time.Millisecond)
	t.Logf("%d MiB written beside a stopped follower; the others' anonymous memory grew by %d and %d MiB", *stoppedBytes>>20, (after[0]-before[0])>>20, (after[1]-before[1])>>20)
}
