package server

import (
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/partition"
	"github.com/lockstepmq/lockstep/vfs"
	"github.com/lockstepmq/lockstep/wire"
)

// tenYears is how far the clocks of these tests are off.
const tenYears = 10 * 365 * 24 * time.Hour

// setClock is a clock that a test sets.
type setClock struct{ ms atomic.Int64 }

func (c *setClock) now() time.Time          { return time.UnixMilli(c.ms.Load()) }
func (c *setClock) advance(d time.Duration) { c.ms.Add(d.Milliseconds()) }

// clockBroker opens a broker with one partition that keeps records for an hour in
// segments of 1 MiB, on a clock of its own.
func clockBroker(t *testing.T) (*partitionReplica, *setClock) {
	t.Helper()
	_, r, clock := brokerWithClock(t)
	return r, clock
}

func brokerWithClock(t *testing.T) (*broker, *partitionReplica, *setClock) {
	t.Helper()
	clock := &setClock{}
	clock.ms.Store(1_700_000_000_000)
	b, err := openTestBroker(vfs.NewSimulated(1), func(c *Config) { c.clock, c.RetentionPeriod = clock.now, 1000*time.Hour })
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, b.close()) })
	require.NoError(t, administer(b, &wire.CreateRequest{Name: "orders", Kind: wire.Topic, Settings: wire.Settings{
		Partitions: 1, RetentionTimeMs: time.Hour.Milliseconds(), RetentionBytes: wire.Unlimited, SegmentBytes: 1 << 20,
	}}))
	d, ok := b.View().Destination("orders")
	require.True(t, ok)
	return b, b.local(d.ID, 0), clock
}

// appendAt appends a record of 300 KB with a client's timestamp.
func appendAt(t *testing.T, r *partitionReplica, clientMs int64) {
	t.Helper()
	var builder wire.BatchBuilder
	builder.Reset(false)
	require.True(t, builder.Append(clientMs, 0, nil, make([]byte, 300_000), nil, 0))
	batch, _ := builder.Finish(wire.ProducerIdentity{ID: wire.NoProducerID}, 0, wire.CodecNone, nil)
	info, err := wire.ParseBatch(batch)
	require.NoError(t, err)
	require.Equal(t, clientMs, info.MaxTimestamp)
	got := make(waitingReceiver, 1)
	require.NoError(t, r.Append(partition.Append{Batch: batch, Info: info, Acks: wire.AcksQuorum, Receiver: got}))
	r.Kick(false)
	require.Equal(t, wire.CodeOK, <-got)
}

// keepsAnHour writes ten segments, with timestamps of clients that are off, over 50
// minutes, and says what retention does wrong. stamped lets a record have the time of
// its client.
func keepsAnHour(t *testing.T, off time.Duration, stamped bool) error {
	r, clock := clockBroker(t)
	began := clock.ms.Load()
	for range 10 {
		ms := clock.now().Add(off).UnixMilli()
		before := clock.ms.Load()
		for range 3 { // fill a segment
			if stamped {
				clock.ms.Store(ms)
			}
			appendAt(t, r, ms)
		}
		clock.ms.Store(before)
		clock.advance(5 * time.Minute)
	}
	point := func(after time.Duration) (point wire.Offset) {
		owned(&r.owner, func() { point, _ = r.records.RetentionPoint(began+after.Milliseconds(), time.Hour, -1) })
		return point
	}
	if got := point(50 * time.Minute); got != 0 {
		return fmt.Errorf("records below offset %d go before their time", got)
	}
	if got := point(time.Hour + 11*time.Minute); got != 9 {
		return fmt.Errorf("after 71 minutes what lies below offset %d goes, not below 9: three segments of three records", got)
	}
	return nil
}

// RELIABILITY F19: what a client says of the time neither holds its records nor
// takes those of others along.
func TestF19_AClientsTimeIsNotTheBrokers(t *testing.T) {
	for _, off := range []time.Duration{0, tenYears, -tenYears} {
		require.NoError(t, keepsAnHour(t, off, false), "clients are off by %v", off)
	}
}

func TestF19_Catches_RecordsStampedByTheirClients(t *testing.T) {
	require.ErrorContains(t, keepsAnHour(t, tenYears, true), "after 71 minutes what lies below offset 0 goes")
	require.ErrorContains(t, keepsAnHour(t, -tenYears, true), "go before their time")
}

// The durable mark of a partition that has come to rest is written however the
// clock is set: it decides what a start after a crash may cut off.
func TestF19_AClockThatGoesBackDoesNotKeepAPartitionAwake(t *testing.T) {
	r, clock := clockBroker(t)
	appendAt(t, r, 0)
	clock.advance(-tenYears)
	eventually(t, "idle mark", func() bool { return r.restless.Load() == 0 })
	appendAt(t, r, 0)
	clock.advance(2 * tenYears)
	eventually(t, "idle mark", func() bool { return r.restless.Load() == 0 })
}

// A name gets its ID behind the block that others get theirs from. Once it is
// forgotten, who asks for an ID must not get one of those that may have been here, or
// it would be refused until the block is used up (decision 10).
func TestF16_NobodyIsGivenAForgottenID(t *testing.T) {
	b, r, clock := brokerWithClock(t)
	open := func(name string) wire.InitProducerResponse {
		t.Helper()
		got := make(chan *wire.InitProducerResponse, 1)
		b.Admin(&wire.InitProducerRequest{Name: name, Holder: 1}, func(m wire.Message, err error) {
			require.NoError(t, err)
			got <- m.(*wire.InitProducerResponse)
		})
		return *<-got
	}
	produce := func(p wire.InitProducerResponse, sequence int32) wire.ErrorCode {
		t.Helper()
		batch, _ := testBatch(t, "x")
		wire.SetProducer(batch, wire.ProducerIdentity{ID: p.ProducerID, Epoch: p.Epoch, Sequence: sequence})
		info, err := wire.ParseBatch(reseal(batch))
		require.NoError(t, err)
		got := make(waitingReceiver, 1)
		require.NoError(t, r.Append(partition.Append{Batch: batch, Info: info, Acks: wire.AcksQuorum, Receiver: got}))
		r.Kick(false)
		return <-got
	}
	early := open("")
	named := open("billing")
	require.Greater(t, named.ProducerID, early.ProducerID)
	require.Equal(t, wire.CodeOK, produce(early, 0))
	require.Equal(t, wire.CodeOK, produce(named, 0))
	clock.advance(tenYears)
	require.Equal(t, wire.CodeOK, produce(early, 1), "who sends is not forgotten")
	require.Equal(t, wire.CodeUnknownProducer, produce(named, 1))
	eventually(t, "the node knows what its partition has forgotten", func() bool {
		b.producers.mu.Lock()
		defer b.producers.mu.Unlock()
		return b.producers.forgotten > named.ProducerID
	})
	for range 3 {
		late := open("")
		require.Equal(t, wire.CodeOK, produce(late, 0), "producer %d", late.ProducerID)
	}
}
