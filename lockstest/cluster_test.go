package lockstest_test

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/client"
	"github.com/lockstepmq/lockstep/lockstest"
	"github.com/lockstepmq/lockstep/wire"
)

var (
	clusterStops = flag.Int("cluster.stops", 4, "how many brokers TestClusterLosesNothingWhenBrokersStop stops")
	clusterSeed  = flag.Uint64("cluster.seed", 1, "draws which")
)

// A producer that goes on while brokers stop and come back finds every record that
// was acknowledged where its receipt says, in order, once.
func TestClusterLosesNothingWhenBrokersStop(t *testing.T) {
	c := lockstest.StartCluster(t, 3)
	ctx, cancel := context.WithTimeout(context.Background(), 2*timeout)
	defer cancel()
	conn, err := client.Connect(ctx, c.URL())
	require.NoError(t, err)
	defer conn.Close()
	create(ctx, t, conn, client.Destination{Name: "orders", Kind: wire.Topic, Settings: client.Settings{Partitions: 2, Replicas: 3}})

	type place struct {
		partition uint32
		offset    uint64
	}
	var mu sync.Mutex
	receipts := map[string]place{}
	producer, err := conn.Producer(ctx, "orders")
	require.NoError(t, err)
	sent := 0
	send := func(n int) {
		t.Helper()
		for range n {
			value := fmt.Sprintf("%06d", sent)
			sent++
			require.NoError(t, producer.SendFunc(ctx, &client.Record{Value: []byte(value)}, func(r client.Receipt, err error) {
				if err != nil {
					t.Errorf("record %s: %v", value, err)
				}
				mu.Lock()
				defer mu.Unlock()
				receipts[value] = place{r.Partition, r.Offset}
			}))
		}
	}
	random := rand.New(rand.NewPCG(*clusterSeed, 0))
	for range *clusterStops {
		send(200)
		node := 1 + random.IntN(3)
		c.Stop(node)
		send(200)
		require.NoError(t, producer.Flush(ctx), "two of three brokers are enough")
		c.Start(node)
		c.Await()
	}
	require.NoError(t, producer.Close(ctx))
	require.Len(t, receipts, sent)

	read := readAll(ctx, t, conn, "orders")
	total := 0
	for partition, values := range read {
		total += len(values)
		for i, v := range values {
			require.Equal(t, place{partition, uint64(i)}, receipts[v], "record %s", v)
			if i > 0 {
				require.Less(t, values[i-1], v, "the order of the producer")
			}
		}
	}
	require.Equal(t, sent, total)
	t.Logf("seed %d: %d stops, %d records", *clusterSeed, *clusterStops, sent)
}

// Each broker of a cluster serves all of it.
func TestClusterServesEverythingOnEveryBroker(t *testing.T) {
	c := lockstest.StartCluster(t, 3)
	ctx, conn := connect(t, c.Broker(2))
	create(ctx, t, conn, client.Destination{Name: "orders", Kind: wire.Topic, Settings: client.Settings{Partitions: 3, Replicas: 3}})
	producer, err := conn.Producer(ctx, "orders")
	require.NoError(t, err)
	for i := range 30 {
		_, err := producer.Send(ctx, &client.Record{Key: fmt.Append(nil, i), Value: fmt.Append(nil, i)})
		require.NoError(t, err)
	}
	require.NoError(t, producer.Close(ctx))
	for node := 1; node <= 3; node++ {
		ctx, conn := connect(t, c.Broker(node))
		total := 0
		for _, values := range readAll(ctx, t, conn, "orders") {
			total += len(values)
		}
		require.Equal(t, 30, total, "through node %d", node)
	}
}
