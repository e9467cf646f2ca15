package fuzz

import (
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/client"
	"github.com/lockstepmq/lockstep/wire"
)

var (
	killCycles = flag.Int("kill.cycles", 10, "how often TestKill kills the broker")
	killFor    = flag.Duration("kill.for", time.Hour, "after how long TestKill is content with fewer cycles")
	killSeed   = flag.Uint64("kill.seed", 0, "draws the moments of the kills; 0 takes the clock's")
)

// What a killed broker is under: destinations of every sync mode, each with some
// partitions and producers.
const (
	killPartitions = 2
	killProducers  = 2                    // per destination
	killBurst      = 8                    // records that a producer sends at once
	killPause      = 4 * time.Millisecond // between bursts
	killRecord     = 120                  // bytes of a value
	killDelivery   = 2 * time.Minute      // a record that takes longer is lost to its producer
)

// TestKill ends the real broker with SIGKILL at random moments under load and
// starts it again on the same directory. Only the process dies, so in every sync
// mode each acknowledged record must be readable at the offset that its receipt
// said, once, in the order in which its producer sent it. Producers are those of
// the first life: they reconnect and resend.
func TestKill(t *testing.T) {
	seed := *killSeed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("kill.seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	broker := newBroker(t)
	broker.start()
	conn := broker.connect()

	var logs []*partitionLog
	var producers []*killProducer
	running, stop := context.WithCancel(t.Context())
	defer stop()
	for n, mode := range []wire.SyncMode{wire.SyncQuorumFsync, wire.SyncInterval, wire.SyncOS} {
		name := fmt.Sprintf("kill-%s", mode)
		_, err := conn.CreateDestination(t.Context(), client.Destination{
			Name: name, Kind: wire.Topic,
			Settings: client.Settings{Partitions: killPartitions, Replicas: 1, Sync: mode, SegmentBytes: 1 << 20},
		})
		require.NoError(t, err)
		for p := range uint32(killPartitions) {
			logs = append(logs, &partitionLog{destination: name, partition: p})
		}
		for k := range killProducers {
			p := &killProducer{id: uint32(n*killProducers + k), receipts: map[uint64]place{}}
			producers = append(producers, p)
			p.start(t, running, broker.connect(), name)
		}
	}

	started := time.Now()
	cycles := 0
	for ; cycles < *killCycles && time.Since(started) < *killFor; cycles++ {
		if random.IntN(4) == 0 {
			time.Sleep(time.Duration(random.Int64N(int64(30 * time.Millisecond)))) // while it recovers
		} else {
			broker.ready(conn)
			time.Sleep(time.Duration(random.Int64N(int64(250 * time.Millisecond)))) // under load
		}
		broker.kill()
		broker.start()
		if cycles%20 == 19 {
			broker.ready(conn)
			verify(t, conn, logs, producers)
		}
	}
	broker.ready(conn)
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
	t.Logf("%d kills of %d, %d records, %.1f s", cycles, *killCycles, sent, time.Since(started).Seconds())
}

// place is where a receipt says that a record lies.
type place struct {
	partition uint32
	offset    uint64
}

// killProducer sends numbered records until it is stopped.
type killProducer struct {
	id       uint32
	producer *client.Producer
	done     chan struct{}
	sent     uint64 // numbers below were sent

	mu       sync.Mutex
	receipts map[uint64]place // by number, those that verify has not seen
	verified uint64           // receipts that it has
	failed   error
}

func (p *killProducer) start(t *testing.T, ctx context.Context, conn *client.Conn, destination string) {
	t.Helper()
	var err error
	p.producer, err = conn.Producer(t.Context(), destination, client.DeliveryTimeout(killDelivery), client.MaxBufferedRecords(2000))
	require.NoError(t, err)
	p.done = make(chan struct{})
	go func() {
		defer close(p.done)
		pause := time.NewTicker(killPause)
		defer pause.Stop()
		for ctx.Err() == nil {
			for range killBurst {
				if err := p.send(t.Context()); err != nil {
					p.fail(err)
					return
				}
			}
			<-pause.C
		}
	}()
}

func (p *killProducer) send(ctx context.Context) error {
	number := p.sent
	p.sent++
	value := make([]byte, killRecord)
	binary.LittleEndian.PutUint32(value, p.id)
	binary.LittleEndian.PutUint64(value[4:], number)
	r := &client.Record{Value: value}
	if number%3 == 0 {
		r.Key = value[4:12]
	}
	return p.producer.SendFunc(ctx, r, func(receipt client.Receipt, err error) {
		if err != nil {
			p.fail(fmt.Errorf("record %d: %w", number, err))
			return
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		p.receipts[number] = place{receipt.Partition, receipt.Offset}
	})
}

func (p *killProducer) fail(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.failed = errors.Join(p.failed, err)
}

// finish waits until everything that was sent is acknowledged.
func (p *killProducer) finish(t *testing.T) {
	t.Helper()
	<-p.done
	ctx, cancel := context.WithTimeout(t.Context(), killDelivery)
	defer cancel()
	require.NoError(t, p.producer.Flush(ctx), "producer %d", p.id)
	require.NoError(t, p.producer.Close(ctx), "producer %d", p.id)
	require.NoError(t, p.failed, "producer %d", p.id)
}

// partitionLog is what was read from one partition so far.
type partitionLog struct {
	destination string
	partition   uint32
	next        uint64 // the next offset to read
	records     []stored
	newest      map[uint32]uint64 // by producer: one past its last number here
	// keyedOnly holds only records with a key to the order of their producer: those
	// without may be given to this partition late, when another has no leader (client.Spill).
	keyedOnly bool
}

// stored is one record as it was read: whose and which.
type stored struct {
	producer uint32
	number   uint64
}

// verify reads what is new in every partition and holds the new receipts against
// what was read. What older ones were held against stays as it is, see read.
func verify(t testing.TB, conn *client.Conn, logs []*partitionLog, producers []*killProducer) {
	t.Helper()
	// Receipts first: what is acknowledged by now must be readable afterwards.
	receipts := make([]map[uint64]place, len(producers))
	for i, p := range producers {
		p.mu.Lock()
		failed := p.failed
		receipts[i], p.receipts = p.receipts, map[uint64]place{}
		p.verified += uint64(len(receipts[i]))
		p.mu.Unlock()
		require.NoError(t, failed, "producer %d", p.id)
	}
	for _, l := range logs {
		l.read(t, conn)
	}
	for i := range producers {
		mine := logs[i/killProducers*killPartitions:][:killPartitions]
		for number, at := range receipts[i] {
			l := mine[at.partition]
			require.Less(t, at.offset, l.next, "producer %d: record %d is acknowledged at %s/%d offset %d",
				producers[i].id, number, l.destination, l.partition, at.offset)
			require.Equal(t, stored{producers[i].id, number}, l.records[at.offset], "%s/%d offset %d", l.destination, l.partition, at.offset)
		}
	}
}

// read reads on to the end. What was read before is read again now and then, to
// show that it stays.
func (l *partitionLog) read(t testing.TB, conn *client.Conn) {
	t.Helper()
	if l.newest == nil {
		l.newest = map[uint32]uint64{}
	}
	from := l.next
	if from%4 == 0 {
		from = 0
	}
	ctx, cancel := context.WithTimeout(t.Context(), startTimeout)
	defer cancel()
	reader, err := conn.Reader(ctx, l.destination, client.Partitions(l.partition), client.FromOffset(from), client.StopAtEnd())
	require.NoError(t, err)
	defer reader.Close()
	for offset := from; ; offset++ {
		r, err := reader.Next(ctx)
		if errors.Is(err, io.EOF) {
			require.GreaterOrEqual(t, offset, l.next, "%s/%d ends before records that were read", l.destination, l.partition)
			return
		}
		require.NoError(t, err, "%s/%d offset %d", l.destination, l.partition, offset)
		require.Equal(t, offset, r.Offset, "%s/%d has a gap", l.destination, l.partition)
		require.Len(t, r.Value, killRecord)
		s := stored{binary.LittleEndian.Uint32(r.Value), binary.LittleEndian.Uint64(r.Value[4:])}
		if offset < l.next {
			require.Equal(t, l.records[offset], s, "%s/%d offset %d has changed", l.destination, l.partition, offset)
			continue
		}
		if !l.keyedOnly || r.Key != nil {
			require.GreaterOrEqual(t, s.number, l.newest[s.producer], "%s/%d offset %d: a record of producer %d is there twice or out of order",
				l.destination, l.partition, offset, s.producer)
			l.newest[s.producer] = s.number + 1
		}
		l.records = append(l.records, s)
		l.next++
	}
}

// TestKillCatches_RecordsInMemory shows that the checks above would notice a loss:
// the destination keeps its records in memory, and the kill takes them.
func TestKillCatches_RecordsInMemory(t *testing.T) {
	broker := newBroker(t)
	broker.start()
	conn := broker.connect()
	_, err := conn.CreateDestination(t.Context(), client.Destination{
		Name: "kill", Kind: wire.Topic,
		Settings: client.Settings{Partitions: killPartitions, Replicas: 1, Storage: wire.StorageMemory},
	})
	require.NoError(t, err)
	var logs []*partitionLog
	for n := range uint32(killPartitions) {
		logs = append(logs, &partitionLog{destination: "kill", partition: n})
	}
	p := &killProducer{receipts: map[uint64]place{}}
	p.producer, err = conn.Producer(t.Context(), "kill")
	require.NoError(t, err)
	p.done = make(chan struct{})
	close(p.done)
	for range 100 {
		require.NoError(t, p.send(t.Context()))
	}
	p.finish(t)
	verify(t, conn, logs, []*killProducer{p})
	broker.kill()
	broker.start()
	broker.ready(conn)
	require.True(t, fails(t, func(t testing.TB) { verify(t, conn, logs, []*killProducer{p}) }))
}
