package client

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/cespare/xxhash/v2"
	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/wire"
)

// outcomeOf is the outcome a failed send reports.
func outcomeOf(t testing.TB, err error) Outcome {
	t.Helper()
	var e *SendError
	require.ErrorAs(t, err, &e)
	return e.Outcome
}

// sendAll sends values one after another without waiting and returns the outcomes
// in their order.
func sendAll(t testing.TB, p *Producer, key []byte, values ...string) (receipts []Receipt, errs []error) {
	t.Helper()
	ctx := testContext(t)
	var tickets []*Ticket
	for _, v := range values {
		ticket, err := p.SendAsync(ctx, &Record{Key: key, Value: []byte(v)})
		require.NoError(t, err)
		tickets = append(tickets, ticket)
	}
	for _, ticket := range tickets {
		r, err := ticket.Wait(ctx)
		receipts, errs = append(receipts, r), append(errs, err)
	}
	return receipts, errs
}

func numbered(n int) []string {
	values := make([]string, n)
	for i := range values {
		values[i] = fmt.Sprintf("v%06d", i)
	}
	return values
}

// RULES R7: slot = xxhash64(key) >> 50.
func TestKeysGoToThePartitionOfTheirSlot(t *testing.T) {
	b := startBroker(t)
	b.create("q", Queue, 4) // slots [0, 4096) are partition 0, and so on
	c := connect(t, b)
	p := newTestProducer(t, c, "q")
	for _, k := range []struct {
		key  string
		hash uint64
		want uint32
	}{
		{"", 0xef46db3751d8e999, 3}, // published test vectors of xxhash64, seed 0
		{"a", 0xd24ec4f1a98c6e5b, 3},
		{"abc", 0x44bc2cf5ad770999, 1},
	} {
		require.Equal(t, k.hash, xxhash.Sum64String(k.key))
		for range 3 {
			r, err := p.Send(testContext(t), &Record{Key: []byte(k.key)})
			require.NoError(t, err)
			require.Equal(t, k.want, r.Partition, "key %q", k.key)
		}
	}
}

func TestRecordsWithoutAKeyAreSpreadBatchByBatch(t *testing.T) {
	b := startBroker(t)
	b.create("q", Topic, 3)
	c := connect(t, b)
	p := newTestProducer(t, c, "q")
	var partitions []uint32
	for range 6 {
		r, err := p.Send(testContext(t), &Record{Value: []byte("x")})
		require.NoError(t, err)
		partitions = append(partitions, r.Partition)
	}
	require.Equal(t, []uint32{0, 1, 2, 0, 1, 2}, partitions)

	lingering := newTestProducer(t, c, "q", Linger(time.Hour))
	ctx := testContext(t)
	var tickets []*Ticket
	for range 10 {
		ticket, err := lingering.SendAsync(ctx, &Record{Value: []byte("x")})
		require.NoError(t, err)
		tickets = append(tickets, ticket)
	}
	require.NoError(t, lingering.Flush(ctx))
	first, err := tickets[0].Wait(ctx)
	require.NoError(t, err)
	for _, ticket := range tickets {
		r, err := ticket.Wait(ctx)
		require.NoError(t, err)
		require.Equal(t, first.Partition, r.Partition)
	}
}

// A batch that nobody waits for in flight is as large as what is, unless it begins so
// much later that it would only have waited.
func TestABatchFollowsThoseInFlight(t *testing.T) {
	began := time.Now()
	a := &accumulator{flying: 3, taken: began}
	for _, c := range []struct {
		records int
		after   time.Duration
		follows bool
	}{
		{1, 0, false},
		{2, loneGap - 1, false},
		{3, 0, true},
		{1, loneGap, true},
	} {
		b := &batch{started: began.Add(c.after)}
		for range c.records {
			require.True(t, b.append(&Record{Value: []byte("v")}, 0, promise{}))
		}
		require.Equal(t, c.follows, a.follows(b), "%+v", c)
	}
}

func TestWithoutRoomInFlightRecordsGather(t *testing.T) {
	b := startBroker(t)
	b.create("q", Topic, 1)
	c := connect(t, b)
	p := newTestProducer(t, c, "q", InFlight(1))
	held := b.holdProduce(10)
	ctx := testContext(t)
	first, err := p.SendAsync(ctx, &Record{Value: []byte("alone")})
	require.NoError(t, err)
	q := <-held // it left although it is alone
	var tickets []*Ticket
	for i := range 5 {
		ticket, err := p.SendAsync(ctx, &Record{Value: fmt.Appendf(nil, "together %d", i)})
		require.NoError(t, err)
		tickets = append(tickets, ticket)
	}
	require.NoError(t, c.Ping(ctx)) // the connection is free, and still they wait
	require.Empty(t, held)
	q.handle()
	_, err = first.Wait(ctx)
	require.NoError(t, err)
	(<-held).handle()
	for _, ticket := range tickets {
		_, err := ticket.Wait(ctx)
		require.NoError(t, err)
	}
	infos := b.batchInfos("q", 0)
	require.Len(t, infos, 2)
	require.Equal(t, uint32(1), infos[0].RecordCount)
	require.Equal(t, uint32(5), infos[1].RecordCount)
}

func TestFullBatchesLeaveUpToTheInFlightLimit(t *testing.T) {
	b := startBroker(t)
	b.create("q", Topic, 1)
	c := connect(t, b)
	p := newTestProducer(t, c, "q", BatchBytes(1000), InFlight(3))
	held := b.holdProduce(100)
	ctx := testContext(t)
	var tickets []*Ticket
	for range 50 {
		ticket, err := p.SendAsync(ctx, &Record{Value: make([]byte, 400)}) // two fit
		require.NoError(t, err)
		tickets = append(tickets, ticket)
	}
	first, second, third := <-held, <-held, <-held
	require.NoError(t, c.Ping(ctx))
	require.Empty(t, held)
	first.handle()
	fourth := <-held
	second.handle()
	third.handle()
	fourth.handle()
	b.setScript(nil)
	go func() {
		for q := range held {
			q.handle()
		}
	}()
	for i, ticket := range tickets {
		r, err := ticket.Wait(ctx)
		require.NoError(t, err)
		require.Equal(t, uint64(i), r.Offset)
	}
	close(held)
}

func TestLingerSendsWhatIsNotFull(t *testing.T) {
	b := startBroker(t)
	b.create("q", Topic, 1)
	c := connect(t, b)
	p := newTestProducer(t, c, "q", Linger(5*time.Millisecond))
	start := time.Now()
	receipts, errs := sendAll(t, p, nil, "a", "b", "c")
	require.GreaterOrEqual(t, time.Since(start), 5*time.Millisecond)
	require.Equal(t, []error{nil, nil, nil}, errs)
	require.Equal(t, uint64(2), receipts[2].Offset)
	require.Len(t, b.batchInfos("q", 0), 1)
	_, errs = sendAll(t, p, nil, "d") // the timer works a second time
	require.NoError(t, errs[0])
}

func TestBatchesCarryWhatTheDestinationAndTheAckLevelNeed(t *testing.T) {
	for _, c := range []struct {
		name    string
		kind    Kind
		opts    []ProducerOption
		indexed bool
		id      bool
		acks    AckLevel
		synced  bool
	}{
		{"a queue at quorum", Queue, nil, true, true, AcksQuorum, true},
		{"a topic at quorum", Topic, nil, false, true, AcksQuorum, true},
		{"leader is not idempotent", Topic, []ProducerOption{Acks(AcksLeader)}, false, false, AcksLeader, false},
		{"quorum without idempotence", Topic, []ProducerOption{Idempotent(false)}, false, false, AcksQuorum, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := startBroker(t)
			b.create("d", c.kind, 1)
			conn := connect(t, b)
			p := newTestProducer(t, conn, "d", c.opts...)
			var seen *fakeRequest
			b.setScript(func(q *fakeRequest) bool {
				if q.header.Opcode == wire.OpProduce {
					seen = q
				}
				return false
			})
			receipts, errs := sendAll(t, p, []byte("key"), "a", "b")
			b.setScript(nil)
			require.Equal(t, []error{nil, nil}, errs)
			require.Equal(t, c.synced, receipts[0].Synced)
			require.Equal(t, c.acks, seen.produce.Acks)
			require.True(t, seen.produce.Keyed)
			require.Equal(t, uint32(1), seen.produce.SlotVersion)
			require.Equal(t, c.indexed, len(seen.produce.Index) > 0)
			info := b.batchInfos("d", 0)[0]
			require.Equal(t, c.id, info.ProducerID >= 0)
		})
	}
}

func TestAcksNoneIsDoneWhenWritten(t *testing.T) {
	b := startBroker(t)
	b.create("d", Topic, 1)
	c := connect(t, b)
	p := newTestProducer(t, c, "d", Acks(AcksNone))
	for i := range 10 {
		r, err := p.Send(testContext(t), &Record{Value: fmt.Appendf(nil, "%d", i)})
		require.NoError(t, err)
		require.Zero(t, r.Offset)
		require.Zero(t, r.Replicas)
		require.False(t, r.Synced)
	}
	require.NoError(t, c.Ping(testContext(t))) // the broker has read them all
	require.Len(t, b.values("d", 0), 10)
}

func TestCompressedBatchesAreReadableAndSmaller(t *testing.T) {
	value := bytes.Repeat([]byte("all work and no play "), 100)
	for _, codec := range []Codec{NoCompression, Snappy, Zstd} {
		t.Run(codec.String(), func(t *testing.T) {
			b := startBroker(t)
			b.create("d", Queue, 1)
			c := connect(t, b)
			p := newTestProducer(t, c, "d", Compression(codec), Linger(time.Hour))
			ctx := testContext(t)
			for i := range 20 {
				_, err := p.SendAsync(ctx, &Record{Key: fmt.Appendf(nil, "k%d", i), Value: value, Headers: []Header{{Key: "n"}}})
				require.NoError(t, err)
			}
			require.NoError(t, p.Close(ctx))
			info := b.batchInfos("d", 0)[0]
			require.Equal(t, codec, info.Codec)
			require.Equal(t, codec != NoCompression, info.Length < 21*100*5)
			r := newTestReader(t, c, "d", StopAtEnd())
			n := 0
			for rec, err := range r.Records(ctx) {
				require.NoError(t, err)
				require.Equal(t, fmt.Sprintf("k%d", n), string(rec.Key))
				require.Equal(t, value, rec.Value)
				require.Equal(t, []Header{{Key: "n"}}, rec.Headers)
				n++
			}
			require.Equal(t, 20, n)
		})
	}
}

func TestIncompressibleBatchesTravelAsTheyAre(t *testing.T) {
	b := startBroker(t)
	b.create("d", Topic, 1)
	c := connect(t, b)
	p := newTestProducer(t, c, "d", Compression(Zstd))
	_, err := p.Send(testContext(t), &Record{Value: []byte{0, 1, 2, 3}})
	require.NoError(t, err)
	require.Equal(t, NoCompression, b.batchInfos("d", 0)[0].Codec)
}

func TestSmallBatchesForQueuesAreNotCompressed(t *testing.T) {
	b := startBroker(t)
	b.create("q", Queue, 1)
	b.create("t", Topic, 1)
	c := connect(t, b)
	for _, tc := range []struct {
		destination string
		bytes       int
		want        Codec
	}{{"q", 3000, NoCompression}, {"q", 5000, Snappy}, {"t", 3000, Snappy}} {
		p := newTestProducer(t, c, tc.destination, Compression(Snappy))
		_, err := p.Send(testContext(t), &Record{Value: make([]byte, tc.bytes)})
		require.NoError(t, err)
		infos := b.batchInfos(tc.destination, 0)
		require.Equal(t, tc.want, infos[len(infos)-1].Codec)
	}
}

func TestLargeDestinationsAreOpenedPartitionByPartition(t *testing.T) {
	b := startBroker(t)
	b.create("d", Topic, 2000) // METADATA of 86 KB, more than the read buffer
	c := connect(t, b)
	opened := 0
	b.setScript(func(q *fakeRequest) bool {
		if q.header.Opcode == wire.OpOpenPartition {
			opened++
		}
		return false
	})
	p := newTestProducer(t, c, "d")
	for i := range 20 {
		_, err := p.Send(testContext(t), &Record{Key: fmt.Appendf(nil, "key %d", i)})
		require.NoError(t, err)
	}
	b.setScript(nil)
	require.LessOrEqual(t, opened, 20)
	d, err := c.Destination(testContext(t), "d")
	require.NoError(t, err)
	require.Len(t, d.Partitions, 2000)
}

func TestTooLargeRecordsAreRefusedHere(t *testing.T) {
	b := startBroker(t)
	d := b.create("d", Topic, 1)
	d.info.Settings.MaxRecordBytes = 1000
	c := connect(t, b)
	p := newTestProducer(t, c, "d")
	ctx := testContext(t)
	_, err := p.Send(ctx, &Record{Value: make([]byte, 1000)})
	require.ErrorIs(t, err, ErrRecordTooLarge)
	require.Equal(t, NotSent, outcomeOf(t, err))
	_, err = p.SendAsync(ctx, &Record{Key: make([]byte, 1000)})
	require.ErrorIs(t, err, ErrRecordTooLarge)
	err = p.SendFunc(ctx, &Record{Headers: []Header{{Key: "k", Value: make([]byte, 1000)}}}, func(Receipt, error) { t.Error("it is not sent") })
	require.ErrorIs(t, err, ErrRecordTooLarge)
	_, err = p.Send(ctx, &Record{Value: make([]byte, 960)})
	require.NoError(t, err)
}

func TestARecordAboveTheBatchSizeTravelsAlone(t *testing.T) {
	b := startBroker(t)
	b.create("d", Topic, 1)
	c := connect(t, b)
	p := newTestProducer(t, c, "d", BatchBytes(1000), Linger(time.Hour))
	ctx := testContext(t)
	for _, n := range []int{10, 200_000, 10} {
		_, err := p.SendAsync(ctx, &Record{Value: make([]byte, n)})
		require.NoError(t, err)
	}
	require.NoError(t, p.Flush(ctx))
	infos := b.batchInfos("d", 0)
	require.Len(t, infos, 3)
	require.Greater(t, infos[1].Length, 200_000)
}

func TestTheBrokersFrameLimitIsKept(t *testing.T) {
	b := startBroker(t, func(b *fakeBroker) { b.hello.MaxFrameBytes = 5000 })
	b.create("d", Topic, 1)
	c := connect(t, b)
	p := newTestProducer(t, c, "d")
	_, err := p.Send(testContext(t), &Record{Value: make([]byte, 6000)})
	require.ErrorIs(t, err, wire.CodeTooLarge)
	require.Equal(t, NotSent, outcomeOf(t, err))
	_, err = p.Send(testContext(t), &Record{Value: make([]byte, 4000)})
	require.NoError(t, err)
}

func TestTheBrokersInFlightLimitsAreKept(t *testing.T) {
	b := startBroker(t, func(b *fakeBroker) { b.hello.MaxInFlightRequests = 2 })
	b.create("d", Topic, 8)
	c := connect(t, b)
	p := newTestProducer(t, c, "d", BatchBytes(1))
	var mu sync.Mutex
	outstanding, most := 0, 0
	b.setScript(func(q *fakeRequest) bool {
		if q.header.Opcode != wire.OpProduce {
			return false
		}
		mu.Lock()
		outstanding++
		most = max(most, outstanding)
		mu.Unlock()
		go func() {
			r, code := q.apply()
			mu.Lock()
			outstanding--
			mu.Unlock()
			q.answerProduce(r, code)
		}()
		return true
	})
	_, errs := sendAll(t, p, nil, numbered(200)...)
	for _, err := range errs {
		require.NoError(t, err)
	}
	require.LessOrEqual(t, most, 2)
}

func TestTheBufferLimitMakesSendsWait(t *testing.T) {
	for _, opt := range []ProducerOption{MaxBufferedBytes(5 * 40), MaxBufferedRecords(5)} {
		b := startBroker(t)
		b.create("d", Topic, 1)
		c := connect(t, b)
		p := newTestProducer(t, c, "d", opt)
		held := b.holdProduce(10)
		ctx := testContext(t)
		for range 5 {
			_, err := p.SendAsync(ctx, &Record{Value: []byte("1234")}) // counts 40 bytes
			require.NoError(t, err)
		}
		short, cancel := context.WithTimeout(ctx, 5*time.Millisecond)
		_, err := p.SendAsync(short, &Record{Value: []byte("1234")})
		cancel()
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.Equal(t, NotSent, outcomeOf(t, err))

		sent := make(chan error)
		go func() {
			_, err := p.Send(ctx, &Record{Value: []byte("1234")})
			sent <- err
		}()
		for stored := false; !stored; {
			select {
			case q := <-held: // a full buffer sends what is not full too
				q.handle()
			case err := <-sent:
				require.NoError(t, err)
				stored = true
			}
		}
		require.NoError(t, p.Flush(ctx))
		require.Len(t, b.values("d", 0), 6)
	}
}

func TestAFullBufferDoesNotWaitForTheLinger(t *testing.T) {
	b := startBroker(t)
	b.create("d", Topic, 4)
	c := connect(t, b)
	p := newTestProducer(t, c, "d", Linger(time.Hour), MaxBufferedRecords(5))
	for i := range 21 {
		_, err := p.SendAsync(testContext(t), &Record{Key: fmt.Appendf(nil, "%d", i)})
		require.NoError(t, err)
	}
}

func TestSendFuncKeepsOrderAndCallsFromOneGoroutine(t *testing.T) {
	b := startBroker(t)
	b.create("d", Topic, 1)
	c := connect(t, b)
	p := newTestProducer(t, c, "d", BatchBytes(200))
	ctx := testContext(t)
	next := 0 // without a lock: the race detector checks the promise
	for i := range 1000 {
		err := p.SendFunc(ctx, &Record{Value: fmt.Appendf(nil, "%d", i)}, func(r Receipt, err error) {
			if err != nil || r.Offset != uint64(next) {
				t.Errorf("record %d: offset %d, %v", next, r.Offset, err)
			}
			next++
		})
		require.NoError(t, err)
	}
	require.NoError(t, p.Close(ctx))
	require.Equal(t, 1000, next)
}

func TestManyGoroutinesShareAProducer(t *testing.T) {
	b := startBroker(t)
	b.create("d", Queue, 3)
	c := connect(t, b)
	p := newTestProducer(t, c, "d", BatchBytes(500))
	ctx := testContext(t)
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := range 100 {
				if _, err := p.Send(ctx, &Record{Key: fmt.Appendf(nil, "g%d", g), Value: fmt.Appendf(nil, "g%d %03d", g, i)}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	last := map[string]string{}
	total := 0
	for n := range 3 {
		for _, v := range b.values("d", n) {
			g := v[:2]
			require.Less(t, last[g], v)
			last[g] = v
			total++
		}
	}
	require.Equal(t, 800, total)
}

func TestSendEndsWithItsContext(t *testing.T) {
	b := startBroker(t)
	b.create("d", Topic, 1)
	c := connect(t, b)
	p := newTestProducer(t, c, "d")
	held := b.holdProduce(1)
	ctx, cancel := context.WithCancel(testContext(t))
	done := make(chan error)
	go func() {
		_, err := p.Send(ctx, &Record{Value: []byte("x")})
		done <- err
	}()
	q := <-held
	cancel()
	err := <-done
	require.ErrorIs(t, err, context.Canceled)
	require.Equal(t, Unknown, outcomeOf(t, err))
	_, err = p.Send(ctx, &Record{})
	require.Equal(t, NotSent, outcomeOf(t, err))
	b.setScript(nil)
	q.handle()
	r, err := p.Send(testContext(t), &Record{Value: []byte("y")})
	require.NoError(t, err)
	require.Equal(t, uint64(1), r.Offset)
}

func TestFlushAndCloseEndWithTheirContext(t *testing.T) {
	b := startBroker(t)
	b.create("d", Topic, 1)
	c := connect(t, b)
	p := newTestProducer(t, c, "d", InFlight(1), BatchBytes(1))
	arrived := make(chan struct{}, 10)
	b.setScript(func(q *fakeRequest) bool {
		if q.header.Opcode == wire.OpProduce {
			arrived <- struct{}{}
			return true // never answered
		}
		return false
	})
	ctx := testContext(t)
	written, err := p.SendAsync(ctx, &Record{Value: []byte("a")})
	require.NoError(t, err)
	waiting, err := p.SendAsync(ctx, &Record{Value: []byte("b")})
	require.NoError(t, err)
	<-arrived
	short, cancel := context.WithTimeout(ctx, time.Millisecond)
	defer cancel()
	require.ErrorIs(t, p.Flush(short), context.DeadlineExceeded)
	require.ErrorIs(t, p.Close(short), context.DeadlineExceeded)
	_, err = written.Wait(ctx)
	require.Equal(t, Unknown, outcomeOf(t, err))
	require.ErrorIs(t, err, ErrClosed)
	_, err = waiting.Wait(ctx)
	require.Equal(t, NotSent, outcomeOf(t, err))
}

func TestCloseDrains(t *testing.T) {
	b := startBroker(t)
	b.create("d", Topic, 1)
	c := connect(t, b)
	p := newTestProducer(t, c, "d", Linger(time.Hour))
	for range 100 {
		_, err := p.SendAsync(testContext(t), &Record{Value: []byte("x")})
		require.NoError(t, err)
	}
	require.NoError(t, c.Close())
	require.Len(t, b.values("d", 0), 100)
}

func TestTimestampsAttributesAndMissingFieldsTravel(t *testing.T) {
	b := startBroker(t)
	b.create("d", Topic, 1)
	c := connect(t, b)
	p := newTestProducer(t, c, "d", Linger(time.Hour))
	ctx := testContext(t)
	before := time.Now().Truncate(time.Millisecond)
	at := time.UnixMilli(1_234_567_890_123)
	for _, r := range []Record{
		{Value: []byte("now")},
		{Key: []byte{}, Value: []byte{}, Timestamp: at, Attributes: -7},
		{Timestamp: at.Add(-1000 * time.Hour)},
	} {
		_, err := p.SendAsync(ctx, &r)
		require.NoError(t, err)
	}
	require.NoError(t, p.Close(ctx))
	r := newTestReader(t, c, "d", StopAtEnd())
	var got []*Record
	for rec, err := range r.Records(ctx) {
		require.NoError(t, err)
		got = append(got, rec.Clone())
	}
	require.Len(t, got, 3)
	require.False(t, got[0].Timestamp.Before(before))
	require.Nil(t, got[0].Key)
	require.Equal(t, time.UnixMilli(1_000_000), got[0].AppendTime)
	require.Equal(t, []byte{}, got[1].Key)
	require.Equal(t, []byte{}, got[1].Value)
	require.Equal(t, int8(-7), got[1].Attributes)
	require.True(t, got[1].Timestamp.Equal(at))
	require.Nil(t, got[2].Value)
	require.True(t, got[2].Timestamp.Equal(at.Add(-1000*time.Hour)))
}

// STYLE, memory: a record that is sent costs no allocation, once the buffers are
// there. The batches themselves, one for every 64 KiB, reuse theirs.
func TestSendFuncAllocatesNothing(t *testing.T) {
	b := startBroker(t)
	b.create("d", Topic, 1)
	c := connect(t, b)
	sink := newSink(b)
	p := newTestProducer(t, c, "d")
	ctx := context.Background()
	r := &Record{Key: []byte("key"), Value: make([]byte, 1000)}
	var failed error
	done := func(_ Receipt, err error) {
		if err != nil {
			failed = err
		}
	}
	send := func() {
		if err := p.SendFunc(ctx, r, done); err != nil {
			panic(err)
		}
	}
	for range 5000 { // batches, buffers and free lists come to be
		send()
	}
	require.NoError(t, p.Flush(testContext(t)))
	perRecord := testing.AllocsPerRun(5000, send)
	require.NoError(t, p.Flush(testContext(t)))
	require.NoError(t, failed)
	require.Zero(t, perRecord)
	require.GreaterOrEqual(t, sink.records.Load(), int64(10_000))
}

func TestSendErrorsCanBeTold(t *testing.T) {
	err := error(&SendError{Outcome: Unknown, Err: ErrDeliveryTimeout})
	require.True(t, errors.Is(err, ErrDeliveryTimeout))
}

func TestALargeRecordDoesNotWaitForABrokerThatDoesNotRead(t *testing.T) {
	b := startBroker(t)
	b.mu.Lock()
	b.createLocked("d", Topic, wire.Settings{Partitions: 1, MaxRecordBytes: 7 << 20})
	b.mu.Unlock()
	c := connect(t, b)
	p := newTestProducer(t, c, "d")
	_, errs := sendAll(t, p, nil, "a")
	require.NoError(t, errs[0])

	stuck, goOn := make(chan struct{}), make(chan struct{})
	b.setScript(func(*fakeRequest) bool { // called by the goroutine that reads
		close(stuck)
		<-goOn
		return false
	})
	var pings sync.WaitGroup
	pings.Go(func() { _ = c.Ping(t.Context()) })
	defer pings.Wait()
	<-stuck
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	sent := make(chan error, 1)
	go func() {
		_, err := p.SendAsync(ctx, &Record{Value: make([]byte, 6<<20)}) // more than a socket takes
		sent <- err
	}()
	select {
	case err := <-sent:
		require.NoError(t, err)
	case <-time.After(30 * time.Second):
		t.Error("SendAsync waits for the socket")
	}
	b.mu.Lock()
	b.script = nil
	b.mu.Unlock()
	close(goOn)
	require.NoError(t, p.Flush(testContext(t)))
}

// What has no answer may fill the socket unseen: a sender that writes itself would
// wait for a broker that does not read, whatever its ctx says.
func TestBesideBatchesWithoutAnswersNoSenderWrites(t *testing.T) {
	b := startBroker(t)
	b.create("d", Topic, 1)
	p := newTestProducer(t, connect(t, b), "d")
	_, errs := sendAll(t, p, nil, "a")
	require.NoError(t, errs[0])

	ours, theirs := net.Pipe() // nobody reads it
	defer theirs.Close()
	defer ours.Close()
	s := newSession(ours, nil, "pipe", wire.HelloResponse{}, nil)
	_, err := s.expect(&batch{request: wire.ProduceRequest{Acks: AcksNone}})
	require.NoError(t, err)
	ticket := &Ticket{done: make(chan struct{})}
	p.mu.Lock()
	a := p.lanes[0]
	before := a.session
	a.session, a.listed = s, nil
	added, listed := a.add(&Record{Value: []byte("b")}, 0, false, 100, promise{ticket: ticket}), a.list()
	p.mu.Unlock()
	require.True(t, added)
	require.Equal(t, s, listed)
	back := make(chan struct{})
	go func() {
		s.writeNow()
		close(back)
	}()
	select {
	case <-back:
	case <-time.After(30 * time.Second):
		t.Fatal("the sender waits for the socket")
	}
	require.Len(t, s.wake, 1, "the writer is to do it")
	p.mu.Lock()
	a.session, a.listed = before, nil
	a.signal()
	p.mu.Unlock()
	_, err = ticket.Wait(testContext(t))
	require.NoError(t, err)
}

// RULES R5: whoever opens a name learns in its own time where the holder before is not
// fenced, and names the partitions that it may write to.
func TestRuleR5_AnOpeningSaysInTimeWhatIsMissing(t *testing.T) {
	b := startBroker(t)
	b.create("orders", Queue, 3)
	c := connect(t, b)
	asked := make(chan wire.InitProducerRequest, 100)
	b.setScript(func(q *fakeRequest) bool {
		if q.header.Opcode != wire.OpInitProducer {
			return false
		}
		var m wire.InitProducerRequest
		q.parse(&m)
		asked <- m
		q.refuse(wire.CodeUnavailable)
		return true
	})
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	_, err := c.Producer(ctx, "orders", ProducerName("billing"), Partition(2))
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.ErrorIs(t, err, wire.CodeUnavailable)
	m := <-asked
	require.Equal(t, "orders", m.Destination)
	require.Equal(t, []uint32{2}, m.Partitions)
	require.Positive(t, m.PatienceMs)
	require.LessOrEqual(t, m.PatienceMs, uint32(300*7/8))
}

// Who gives nil in the place of a function is told so, at once, and nothing is sent.
func TestAFunctionThatIsMissingIsAnError(t *testing.T) {
	b := startBroker(t)
	b.create("orders", Queue, 1)
	c := connect(t, b)
	p := newTestProducer(t, c, "orders")
	require.ErrorIs(t, p.SendFunc(testContext(t), &Record{Value: []byte("x")}, nil), ErrNoFunction)
	require.NoError(t, p.Close(testContext(t)))
	require.ErrorIs(t, c.Serve(testContext(t), "orders", nil), ErrNoFunction)
	require.ErrorIs(t, new(Consumer).Run(testContext(t), nil), ErrNoFunction)
	require.ErrorIs(t, new(Consumer).Serve(testContext(t), nil), ErrNoFunction)
}

// A batch may be given up while a session's writer has it.
func TestABatchIsGivenUpWhileItIsWritten(t *testing.T) {
	b := startBroker(t)
	b.create("d", Topic, 1)
	p := newTestProducer(t, connect(t, b), "d")
	_, errs := sendAll(t, p, nil, "a")
	require.NoError(t, errs[0])

	ours, theirs := net.Pipe()
	defer theirs.Close()
	defer ours.Close()
	s := newSession(ours, nil, "pipe", wire.HelloResponse{}, nil)
	ticket := &Ticket{done: make(chan struct{})}
	p.mu.Lock()
	a := p.lanes[0]
	before := a.session
	a.session, a.listed = s, nil
	require.True(t, a.add(&Record{Value: []byte("b")}, 0, false, 100, promise{ticket: ticket}))
	taken := a.queue.at(0)
	require.Equal(t, s, a.list())
	p.mu.Unlock()
	var writer sync.WaitGroup
	writer.Go(func() { s.gather(&s.g, 1, 1<<20) })
	for given := false; !given; { // the race detector sees what both touch
		p.mu.Lock()
		if given = taken.inFlight; given {
			a.giveUp(ErrDeliveryTimeout)
			a.session, a.listed = before, nil
		}
		p.unlockAndFinish()
	}
	writer.Wait()
	_, err := ticket.Wait(testContext(t))
	require.Equal(t, Unknown, outcomeOf(t, err))
}
