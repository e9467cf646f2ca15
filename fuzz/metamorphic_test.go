package fuzz

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/client"
	"github.com/lockstepmq/lockstep/internal/invariants"
	"github.com/lockstepmq/lockstep/lockstest"
	"github.com/lockstepmq/lockstep/segment"
	"github.com/lockstepmq/lockstep/server"
	"github.com/lockstepmq/lockstep/wire"
)

var (
	metaSeeds = flag.Uint64("meta.seeds", 1, "how many sequences of operations TestMetamorphic tries")
	metaFirst = flag.Uint64("meta.first", 1, "the first of its seeds")
)

const (
	metaPartitions = 2
	metaProducers  = 3
	metaOperations = 40
)

// variant is one way to run the same operations. None of it may show in what
// consumers get.
type variant struct {
	name         string
	segmentBytes uint64
	sync         wire.SyncMode
	loops        int
	pread        bool // no maps
	little       bool // read-ahead of the clients: as little as there may be
	producer     []client.ProducerOption

	// A mutant changes what is sent, or where a reader begins.
	send func(*client.Record)
	seek func(offset uint64) uint64
}

var variants = []variant{
	{name: "as it comes", segmentBytes: 64 << 20, sync: wire.SyncQuorumFsync, loops: 1},
	{name: "small segments, batches of one, no syncs", segmentBytes: 1 << 20, sync: wire.SyncOS, loops: 2,
		producer: []client.ProducerOption{client.BatchBytes(1)}},
	{name: "snappy, lingering, syncs now and then", segmentBytes: 1 << 20, sync: wire.SyncInterval, loops: 2,
		producer: []client.ProducerOption{client.Compression(client.Snappy), client.Linger(2 * time.Millisecond)}},
	{name: "zstd, large batches, no maps", segmentBytes: 2 << 20, sync: wire.SyncQuorumFsync, loops: 1, pread: true,
		producer: []client.ProducerOption{client.Compression(client.Zstd), client.BatchBytes(1 << 20), client.Linger(time.Millisecond)}},
	{name: "small segments, no maps, one batch in flight", segmentBytes: 1 << 20, sync: wire.SyncOS, loops: 3, pread: true, little: true,
		producer: []client.ProducerOption{client.BatchBytes(1000), client.InFlight(1)}},
}

// seen is a record as a consumer gets it, without what the broker's clock and
// elections put in.
type seen struct {
	offset     uint64
	key, value []byte
	headers    []client.Header
	timestamp  int64
	attributes int8
}

func seenAs(r *client.Record) seen {
	r = r.Clone()
	return seen{r.Offset, r.Key, r.Value, r.Headers, r.Timestamp.UnixMilli(), r.Attributes}
}

// metaRun carries out the operations of a seed in one variant.
type metaRun struct {
	variant
	t         testing.TB
	broker    *lockstest.Broker
	conn      *client.Conn
	producers [metaProducers]*client.Producer
	want      [metaPartitions][]seen // by receipts
}

// TestMetamorphic carries out the same operations under different segment sizes, batch
// sizes, codecs, sync modes, loops, and with and without maps: consumers get the same
// history, whole, from any offset and from any time.
func TestMetamorphic(t *testing.T) {
	for seed := *metaFirst; seed < *metaFirst+*metaSeeds; seed++ {
		var first [metaPartitions][]seen
		for i, v := range variants {
			ok := t.Run(fmt.Sprintf("seed %d, %s", seed, v.name), func(t *testing.T) { // its broker ends with it
				history, err := runVariant(t, seed, v)
				require.NoError(t, err)
				if i == 0 {
					first = history
				}
				require.NoError(t, same(first, history))
			})
			if !ok {
				return
			}
		}
		t.Logf("seed %d: %d and %d records in %d variants", seed, len(first[0]), len(first[1]), len(variants))
	}
}

func TestMetamorphicCatches_EmptyValuesThatGetLost(t *testing.T) {
	v := variants[0]
	v.send = func(r *client.Record) {
		if len(r.Value) == 0 {
			r.Value = nil
		}
	}
	mustDiffer(t, v)
}

func TestMetamorphicCatches_HeadersThatGetLost(t *testing.T) {
	v := variants[0]
	v.send = func(r *client.Record) {
		if n := len(r.Headers); n > 0 && len(r.Headers[n-1].Value) == 0 {
			r.Headers = r.Headers[:n-1]
		}
	}
	mustDiffer(t, v)
}

func TestMetamorphicCatches_AnIndexThatIsOffByOne(t *testing.T) {
	v := variants[0]
	v.seek = func(offset uint64) uint64 { return offset + 1 }
	_, err := runVariant(t, 1, v)
	require.ErrorContains(t, err, "began at")
}

func mustDiffer(t *testing.T, mutant variant) {
	t.Helper()
	right, err := runVariant(t, 1, variants[0])
	require.NoError(t, err)
	wrong, err := runVariant(t, 1, mutant)
	require.NoError(t, err)
	err = same(right, wrong)
	require.Error(t, err)
	t.Logf("caught: %v", err)
}

func same(want, got [metaPartitions][]seen) error {
	for n := range want {
		if len(want[n]) != len(got[n]) {
			return fmt.Errorf("partition %d has %d records, not %d", n, len(got[n]), len(want[n]))
		}
		for i := range want[n] {
			if !reflect.DeepEqual(want[n][i], got[n][i]) {
				return fmt.Errorf("partition %d: %.200s instead of %.200s", n, fmt.Sprintf("%+v", got[n][i]), fmt.Sprintf("%+v", want[n][i]))
			}
		}
	}
	return nil
}

// runVariant returns the history of both partitions, and what was wrong with it in
// itself.
func runVariant(t testing.TB, seed uint64, v variant) (history [metaPartitions][]seen, err error) {
	segment.RefuseMaps(v.pread)
	defer segment.RefuseMaps(false)
	r := &metaRun{variant: v, t: t}
	r.broker = lockstest.Start(t, lockstest.Configure(func(c *server.Config) { c.EventLoops, c.HTTP = v.loops, "127.0.0.1:0" }))
	r.conn, err = client.Connect(t.Context(), r.broker.URL(), client.WithReconnectBackoff(5*time.Millisecond, 50*time.Millisecond))
	require.NoError(t, err)
	defer func() { _ = r.conn.Close() }()
	_, err = r.conn.CreateDestination(t.Context(), client.Destination{Name: "meta", Kind: wire.Topic, Settings: client.Settings{
		Partitions: metaPartitions, Replicas: 1, Sync: v.sync, SegmentBytes: v.segmentBytes,
	}})
	require.NoError(t, err)
	for i := range r.producers {
		r.producers[i], err = r.conn.Producer(t.Context(), "meta", v.producer...)
		require.NoError(t, err)
	}
	random := rand.New(rand.NewPCG(seed, 0))
	for range metaOperations {
		switch n := random.IntN(10); {
		case n == 0:
			r.broker.Restart()
		case n < 3:
			err = r.consume(uint32(random.IntN(metaPartitions)), random.Float64())
		case n < 5:
			err = r.lookUp(uint32(random.IntN(metaPartitions)), random.Float64())
		default:
			r.produce(random)
		}
		if err != nil {
			return history, err
		}
	}
	for n := range uint32(metaPartitions) {
		records, _, err := r.read(n, client.FromEarliest(), 1<<30)
		if err != nil {
			return history, err
		}
		history[n] = records
	}
	// Release builds map whatever they are told.
	require.Equal(t, v.pread && invariants.Enabled, r.preads() > 0, "reads go by pread without maps, and only then")
	if v.send != nil {
		return history, nil // what was sent is not what was meant
	}
	return history, same(r.want, history)
}

// preads is how many pieces the broker has read for want of a map.
func (r *metaRun) preads() (n int) {
	response, err := http.Get("http://" + r.broker.HTTPAddr() + "/metrics")
	require.NoError(r.t, err)
	defer func() { _ = response.Body.Close() }()
	for s := bufio.NewScanner(response.Body); s.Scan(); {
		if name, value, ok := strings.Cut(s.Text(), "} "); ok && strings.HasSuffix(name, `session_events_total{kind="pread"`) {
			n, err = strconv.Atoi(value)
			require.NoError(r.t, err)
			return n
		}
	}
	require.FailNow(r.t, "no such counter")
	return 0
}

// produce sends a burst of one producer and waits for it: that is what makes the order
// of the records of all producers the same in every variant.
func (r *metaRun) produce(random *rand.Rand) {
	p := r.producers[random.IntN(metaProducers)]
	type sent struct {
		record client.Record
		ticket *client.Ticket
	}
	var burst []sent
	for range 1 + random.IntN(60) {
		record := metaRecord(random)
		meant := record
		if r.send != nil {
			r.send(&record)
		}
		ticket, err := p.SendAsync(r.t.Context(), &record)
		require.NoError(r.t, err)
		burst = append(burst, sent{meant, ticket})
	}
	require.NoError(r.t, p.Flush(r.t.Context()))
	for _, s := range burst {
		receipt, err := s.ticket.Wait(r.t.Context())
		require.NoError(r.t, err)
		s.record.Offset = receipt.Offset
		r.want[receipt.Partition] = append(r.want[receipt.Partition], seenAs(&s.record))
	}
}

// metaRecord has a key, which chooses its partition whatever the batches are, and all
// that a codec could lose: nothing and empty are two things.
func metaRecord(random *rand.Rand) client.Record {
	some := func(most int) []byte {
		switch random.IntN(6) {
		case 0:
			return nil
		case 1:
			return []byte{}
		case 2: // does not get smaller
			b := make([]byte, random.IntN(most))
			for i := range b {
				b[i] = byte(random.Uint32())
			}
			return b
		}
		return bytes.Repeat([]byte{byte(random.Uint32())}, random.IntN(most))
	}
	r := client.Record{
		Key: some(40), Value: some(8000), Attributes: int8(random.IntN(256) - 128),
		Timestamp: time.UnixMilli(random.Int64N(1<<42) - 1<<41),
	}
	if r.Key == nil {
		r.Key = []byte{}
	}
	for range random.IntN(4) {
		r.Headers = append(r.Headers, client.Header{Key: []string{"", "a", "trace", "a long name of a header"}[random.IntN(4)], Value: some(60)})
	}
	return r
}

// consume reads some records from an offset, a fraction of what there is.
func (r *metaRun) consume(partition uint32, at float64) error {
	from := uint64(at * float64(len(r.want[partition])+1))
	start := from
	if r.seek != nil {
		start = min(r.seek(from), uint64(len(r.want[partition])))
	}
	got, _, err := r.read(partition, client.FromOffset(start), 100)
	if err != nil || len(r.want[partition]) == int(from) {
		return err
	}
	if len(got) == 0 || got[0].offset != from {
		return fmt.Errorf("reading partition %d from offset %d of %d began at %+.60v", partition, from, len(r.want[partition]), got)
	}
	if r.send != nil {
		return nil
	}
	for i := range got {
		if !reflect.DeepEqual(got[i], r.want[partition][from+uint64(i)]) {
			return fmt.Errorf("reading partition %d from offset %d gave %+v, not %+v", partition, from, got[i], r.want[partition][from+uint64(i)])
		}
	}
	return nil
}

// lookUp reads from the time at which a record was appended: that record, or the first
// one of the same millisecond, comes first.
func (r *metaRun) lookUp(partition uint32, at float64) error {
	_, times, err := r.read(partition, client.FromEarliest(), 1<<30)
	if err != nil || len(times) == 0 {
		return err
	}
	when := times[int(at*float64(len(times)))]
	want := uint64(0)
	for times[want].Before(when) {
		want++
	}
	got, _, err := r.read(partition, client.FromTime(when), 1)
	if err != nil {
		return err
	}
	if len(got) == 0 || got[0].offset != want {
		return fmt.Errorf("reading partition %d from %v began at %+.60v, not at offset %d", partition, when, got, want)
	}
	return nil
}

// read returns at most so many records, and when they were appended.
func (r *metaRun) read(partition uint32, from client.ReaderOption, most int) (records []seen, times []time.Time, err error) {
	options := []client.ReaderOption{client.Partitions(partition), from, client.StopAtEnd()}
	if r.little {
		options = append(options, client.ReadAhead(1024))
	}
	ctx, cancel := context.WithTimeout(r.t.Context(), startTimeout)
	defer cancel()
	reader, err := r.conn.Reader(ctx, "meta", options...)
	if err != nil {
		return nil, nil, err
	}
	defer func() { _ = reader.Close() }()
	for len(records) < most {
		record, err := reader.Next(ctx)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, nil, err
		}
		records = append(records, seenAs(record))
		times = append(times, record.AppendTime)
	}
	return records, times, nil
}
