package fuzz

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/client"
	"github.com/lockstepmq/lockstep/internal/invariants"
)

var (
	repairFlips = flag.Int("repair.flips", 2, "how many bits TestRX5 flips")
	repairSeed  = flag.Uint64("repair.seed", 0, "draws them; 0 takes the clock's")
)

// TestRX5_BitsThatRotOnOneReplicaAreMendedUnderLoad flips bits in sealed segments of one
// of three brokers while producers write and the other two serve. Each is found by the
// scrubber. A body is mended from another replica until the file is what it was, and
// counted; a replica whose header rotted, so that nothing vouches for what follows, is
// given up and made anew. Every record that was acknowledged is read, once and in order,
// from the leaders and in the end from the broker whose disk rotted.
func TestRX5_BitsThatRotOnOneReplicaAreMendedUnderLoad(t *testing.T) {
	t.Parallel()
	seed := *repairSeed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("repair.seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 5))
	c, addresses := withMetrics(t, "--scrub-interval", "1s")
	conn := c.connect()
	const name = "rotten"
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
	const rotten = clusterNodes - 1
	replaced := 0 // replicas whose chain was broken
	mended := func() float64 { return metric(t, addresses[rotten], "lockstep_damage_repaired_total") }
	for flip := range *repairFlips {
		for p := range uint32(killPartitions) { // a leader that is given up fails what is on its way, see PARTITION_FENCED
			c.lead(conn, name, p, 1+p%rotten)
		}
		var sealed []string
		require.Eventually(t, func() bool {
			sealed = sealedSegments(t, c.nodes[rotten].data)
			return len(sealed) > 0
		}, startTimeout, 20*time.Millisecond)
		file := sealed[random.IntN(len(sealed))]
		before, err := os.ReadFile(file)
		require.NoError(t, err)
		at := random.IntN(len(bytes.TrimRight(before, "\x00")))
		bit := byte(1) << random.IntN(8)
		count := mended()
		f, err := os.OpenFile(file, os.O_WRONLY, 0)
		require.NoError(t, err)
		_, err = f.WriteAt([]byte{before[at] ^ bit}, int64(at))
		require.NoError(t, err)
		require.NoError(t, f.Close())
		what := fmt.Sprintf("flip %d: bit %08b at %d of %s", flip, bit, at, file)
		if awaitMended(t, file, before, func() bool { return mended() == count+1 }, startTimeout, what) {
			replaced++
		}
		healthy(t, c.nodes[0])
		c.progress(producers)
		verify(t, conn, logs, producers)
	}
	stop()
	for _, p := range producers {
		p.finish(t)
	}
	verify(t, conn, logs, producers)
	sent := uint64(0)
	for _, p := range producers {
		sent += p.sent
	}
	for _, l := range logs {
		c.lead(conn, name, l.partition, rotten+1)
		again := &partitionLog{destination: name, partition: l.partition, keyedOnly: true}
		again.read(t, conn)
		require.Equal(t, l.records, again.records, "partition %d", l.partition)
	}
	t.Logf("%d bits: %v bodies were mended, %d replicas made anew; %d records", *repairFlips, mended(), replaced, sent)
}

// awaitMended waits until a file is what it was before, and counted is true, or until its
// replica was made anew.
func awaitMended(t testing.TB, file string, before []byte, counted func() bool, patience time.Duration, what string) (replaced bool) {
	t.Helper()
	require.Eventually(t, func() bool {
		now, err := os.ReadFile(file)
		if replaced = os.IsNotExist(err); replaced {
			return true
		}
		return err == nil && bytes.Equal(before, now) && counted()
	}, patience, 20*time.Millisecond, what)
	return replaced
}

// TestRX5_Catches_DamageThatNobodyMends shows that the check would notice a broker that
// finds rot and leaves it.
func TestRX5_Catches_DamageThatNobodyMends(t *testing.T) {
	t.Parallel()
	if !invariants.Enabled {
		t.Skip("release builds always repair")
	}
	c := newClusterProcess(t, func(b *brokerProcess) { b.args = append(b.args, "--scrub-interval", "1s") })
	conn := c.connect()
	c.create(conn, "rotten", 1)
	producer, err := conn.Producer(t.Context(), "rotten", client.DeliveryTimeout(killDelivery))
	require.NoError(t, err)
	b := c.nodes[clusterNodes-1]
	var sealed []string
	for len(sealed) == 0 {
		for range 256 {
			require.NoError(t, producer.SendFunc(t.Context(), &client.Record{Value: make([]byte, 4096)}, func(client.Receipt, error) {}))
		}
		require.NoError(t, producer.Flush(t.Context()))
		sealed = sealedSegments(t, b.data)
	}
	b.end()
	b.binary, b.role = os.Args[0], roleBroker+" repairs"
	b.start()
	_ = b.connect().Close()
	before, err := os.ReadFile(sealed[0])
	require.NoError(t, err)
	rotten := bytes.Clone(before)
	rotten[len(bytes.TrimRight(before, "\x00"))/2] ^= 1 // a record has 4 KiB, its header 64 B
	require.NoError(t, os.WriteFile(sealed[0], rotten, 0o600))
	require.Eventually(t, func() bool { return strings.Contains(b.stderr.String(), "stored records are damaged") }, startTimeout, 20*time.Millisecond, "it is found")
	require.True(t, fails(t, func(t testing.TB) {
		awaitMended(t, sealed[0], before, func() bool { return true }, mutantPatience/2, "")
	}))
}

// sealedSegments are the segments of partitions in a data directory that are written to
// no more.
func sealedSegments(t *testing.T, data string) (sealed []string) {
	t.Helper()
	partitions, err := filepath.Glob(filepath.Join(data, "partitions", "*"))
	require.NoError(t, err)
	for _, dir := range partitions {
		names, err := filepath.Glob(filepath.Join(dir, "*.segment"))
		require.NoError(t, err)
		if len(names) > 2 { // the newest, and the one made ahead of it
			sealed = append(sealed, names[:len(names)-2]...)
		}
	}
	return sealed
}
