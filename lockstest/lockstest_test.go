package lockstest_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/lockstepmq/lockstep/client"
	"github.com/lockstepmq/lockstep/lockstest"
	"github.com/lockstepmq/lockstep/server"
	"github.com/lockstepmq/lockstep/wire"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m,
		// The pool of gnet's library is global and never ends.
		goleak.IgnoreAnyFunction("github.com/panjf2000/ants/v2.(*poolCommon).purgeStaleWorkers"),
		goleak.IgnoreAnyFunction("github.com/panjf2000/ants/v2.(*poolCommon).ticktock"),
		goleak.IgnoreAnyFunction("github.com/panjf2000/ants/v2.(*goWorker).run.func1"),
	)
}

// timeout is how long a test waits for what must happen.
const timeout = 60 * time.Second

func connect(t *testing.T, b *lockstest.Broker) (context.Context, *client.Conn) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	t.Cleanup(cancel)
	conn, err := client.Connect(ctx, b.URL())
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, conn.Close()) })
	return ctx, conn
}

func create(ctx context.Context, t *testing.T, conn *client.Conn, d client.Destination) {
	t.Helper()
	_, err := conn.CreateDestination(ctx, d)
	require.NoError(t, err)
}

// readAll reads every partition to its end: values by partition, checking that
// offsets have no gaps from the start.
func readAll(ctx context.Context, t *testing.T, conn *client.Conn, name string) map[uint32][]string {
	t.Helper()
	r, err := conn.Reader(ctx, name, client.FromEarliest(), client.StopAtEnd())
	require.NoError(t, err)
	defer r.Close()
	got := map[uint32][]string{}
	next := map[uint32]uint64{}
	for record, err := range r.Records(ctx) {
		require.NoError(t, err)
		if want, seen := next[record.Partition]; seen {
			require.Equal(t, want, record.Offset)
		}
		next[record.Partition] = record.Offset + 1
		got[record.Partition] = append(got[record.Partition], string(record.Value))
	}
	return got
}

func TestRecordsAreReadBackInOrderAndSurviveARestart(t *testing.T) {
	for _, mode := range []wire.SyncMode{client.SyncQuorumFsync, client.SyncInterval, client.SyncOS} {
		t.Run(mode.String(), func(t *testing.T) {
			b := lockstest.Start(t)
			ctx, conn := connect(t, b)
			create(ctx, t, conn, client.Destination{Name: "orders", Kind: client.Queue, Settings: client.Settings{Partitions: 3, Sync: mode}})
			p, err := conn.Producer(ctx, "orders")
			require.NoError(t, err)
			const n = 3000
			for i := range n {
				require.NoError(t, p.SendFunc(ctx, &client.Record{Key: fmt.Appendf(nil, "key-%d", i%100), Value: fmt.Appendf(nil, "%d", i)},
					func(r client.Receipt, err error) {
						if err != nil || r.Synced != (mode == client.SyncQuorumFsync) {
							t.Errorf("record %d: receipt %+v, error %v", i, r, err)
						}
					}))
			}
			require.NoError(t, p.Flush(ctx))
			check := func(conn *client.Conn) {
				total := 0
				for partition, values := range readAll(ctx, t, conn, "orders") {
					total += len(values)
					last := -1
					for _, v := range values {
						var i int
						_, err := fmt.Sscan(v, &i)
						require.NoError(t, err)
						require.Greater(t, i, last, "order of one producer in partition %d", partition)
						last = i
					}
				}
				require.Equal(t, n, total)
			}
			check(conn)
			b.Restart()
			_, again := connect(t, b)
			check(again)
		})
	}
}

// One producer goes on over a restart of the broker under the same sequences.
func TestRX6_AProducerGoesOnOverARestartWithoutLossOrDuplicates(t *testing.T) {
	b := lockstest.Start(t)
	ctx, conn := connect(t, b)
	create(ctx, t, conn, client.Destination{Name: "orders", Kind: client.Queue, Settings: client.Settings{Partitions: 1}})
	p, err := conn.Producer(ctx, "orders")
	require.NoError(t, err)
	for round := range 3 {
		for i := range 500 {
			require.NoError(t, p.SendFunc(ctx, &client.Record{Value: fmt.Appendf(nil, "%d", round*500+i)}, func(_ client.Receipt, err error) {
				if err != nil {
					t.Errorf("record %d: %v", i, err)
				}
			}))
		}
		b.Restart()
	}
	require.NoError(t, p.Flush(ctx))
	values := readAll(ctx, t, conn, "orders")[0]
	require.Len(t, values, 1500)
	for i, v := range values {
		require.Equal(t, fmt.Sprint(i), v)
	}
}

// Rule L6: what a memory destination holds ends with the process; it begins anew
// and epochs rise.
func TestRuleL6_AMemoryDestinationBeginsAnewAfterARestart(t *testing.T) {
	b := lockstest.Start(t)
	ctx, conn := connect(t, b)
	create(ctx, t, conn, client.Destination{Name: "fast", Kind: client.Queue, Settings: client.Settings{Partitions: 1, Storage: client.StorageMemory}})
	p, err := conn.Producer(ctx, "fast")
	require.NoError(t, err)
	before, err := p.Send(ctx, &client.Record{Value: []byte("a")})
	require.NoError(t, err)
	require.False(t, before.Synced, "memory is no stable storage")
	require.Equal(t, map[uint32][]string{0: {"a"}}, readAll(ctx, t, conn, "fast"))
	tail, err := conn.Reader(ctx, "fast", client.FromLatest())
	require.NoError(t, err)
	b.Restart()
	// Who had read something learns that it is gone.
	_, err = tail.Next(ctx)
	var lost *client.DataLostError
	require.ErrorAs(t, err, &lost)
	require.ErrorIs(t, err, wire.CodePartitionReset)
	require.Equal(t, []uint64{1, 0}, []uint64{lost.Offset, lost.Next})
	require.NoError(t, tail.Close())
	ctx, conn = connect(t, b)
	require.Empty(t, readAll(ctx, t, conn, "fast"))
	p, err = conn.Producer(ctx, "fast")
	require.NoError(t, err)
	after, err := p.Send(ctx, &client.Record{Value: []byte("b")})
	require.NoError(t, err)
	require.Equal(t, uint64(0), after.Offset)
	require.Greater(t, after.Epoch, before.Epoch)
}

func TestADeletedDestinationIsGoneForEverybody(t *testing.T) {
	b := lockstest.Start(t)
	ctx, conn := connect(t, b)
	create(ctx, t, conn, client.Destination{Name: "orders", Kind: client.Queue, Settings: client.Settings{Partitions: 2}})
	p, err := conn.Producer(ctx, "orders")
	require.NoError(t, err)
	_, err = p.Send(ctx, &client.Record{Value: []byte("x")})
	require.NoError(t, err)
	orders, err := conn.Destination(ctx, "orders")
	require.NoError(t, err)
	require.NoError(t, conn.DeleteDestination(ctx, orders))
	_, err = conn.Destination(ctx, "orders")
	require.ErrorIs(t, err, wire.CodeUnknownDestination)
	_, err = p.Send(ctx, &client.Record{Value: []byte("y")})
	require.Error(t, err)
	require.Contains(t, []wire.ErrorCode{wire.CodeDestinationGone, wire.CodeUnknownDestination}, wire.CodeOf(err))
	create(ctx, t, conn, client.Destination{Name: "orders", Kind: client.Queue, Settings: client.Settings{Partitions: 2}})
	require.ErrorIs(t, conn.DeleteDestination(ctx, orders), wire.CodeRefused, "its successor stays")
	require.Empty(t, readAll(ctx, t, conn, "orders"), "a successor of the same name is another destination")
}

func TestRetentionMovesTheStart(t *testing.T) {
	b := lockstest.Start(t, lockstest.Configure(func(c *server.Config) { c.RetentionPeriod = 100 * time.Millisecond }))
	ctx, conn := connect(t, b)
	create(ctx, t, conn, client.Destination{Name: "events", Kind: client.Topic, Settings: client.Settings{
		Partitions: 1, SegmentBytes: 1 << 20, RetentionBytes: 2 << 20, Sync: client.SyncOS,
	}})
	p, err := conn.Producer(ctx, "events")
	require.NoError(t, err)
	value := make([]byte, 10_000)
	for range 1000 {
		require.NoError(t, p.SendFunc(ctx, &client.Record{Value: value}, func(_ client.Receipt, err error) {
			if err != nil {
				t.Error(err)
			}
		}))
	}
	require.NoError(t, p.Flush(ctx))
	require.Eventually(t, func() bool {
		start, err := conn.Offsets(ctx, "events", client.Earliest())
		require.NoError(t, err)
		if start[0] <= 500 {
			return false
		}
		values, err := readFrom(ctx, t, conn, "events", start[0])
		if errors.Is(err, wire.CodeOutOfRange) {
			return false // retention went on meanwhile
		}
		require.NoError(t, err)
		require.Len(t, values, int(1000-start[0]))
		return true
	}, timeout, 20*time.Millisecond)
	_, err = conn.Reader(ctx, "events", client.FromOffset(0))
	require.ErrorIs(t, err, wire.CodeOutOfRange)
}

func TestReadersFollowTheTailAndFindTimes(t *testing.T) {
	b := lockstest.Start(t)
	ctx, conn := connect(t, b)
	create(ctx, t, conn, client.Destination{Name: "events", Kind: client.Topic, Settings: client.Settings{Partitions: 1}})
	p, err := conn.Producer(ctx, "events")
	require.NoError(t, err)
	r, err := conn.Reader(ctx, "events", client.FromLatest())
	require.NoError(t, err)
	defer r.Close()
	var middle time.Time
	for i := range 20 {
		sent, err := p.Send(ctx, &client.Record{Value: fmt.Appendf(nil, "%d", i)})
		require.NoError(t, err)
		record, err := r.Next(ctx)
		require.NoError(t, err)
		require.Equal(t, fmt.Sprint(i), string(record.Value))
		require.Equal(t, sent.Offset, record.Offset)
		if i == 10 {
			middle = sent.AppendTime
		}
	}
	at, err := conn.Offsets(ctx, "events", client.AtTime(middle))
	require.NoError(t, err)
	require.LessOrEqual(t, at[0], uint64(10))
	end, err := conn.Offsets(ctx, "events", client.AtTime(time.Now().Add(time.Hour)))
	require.NoError(t, err)
	require.Equal(t, uint64(20), end[0])
}

func TestHealthAndMetrics(t *testing.T) {
	b := lockstest.Start(t, lockstest.Configure(func(c *server.Config) { c.HTTP = "127.0.0.1:0" }))
	ctx, conn := connect(t, b)
	create(ctx, t, conn, client.Destination{Name: "orders", Kind: client.Queue, Settings: client.Settings{Partitions: 2}})
	p, err := conn.Producer(ctx, "orders")
	require.NoError(t, err)
	_, err = p.Send(ctx, &client.Record{Value: []byte("x")})
	require.NoError(t, err)
	get := func(path string) (int, string) {
		response, err := http.Get("http://" + b.HTTPAddr() + path)
		require.NoError(t, err)
		defer response.Body.Close()
		body, err := io.ReadAll(response.Body)
		require.NoError(t, err)
		return response.StatusCode, string(body)
	}
	code, body := get("/healthz")
	require.Equal(t, http.StatusOK, code, body)
	require.Contains(t, body, `"status": "ok"`)
	_, body = get("/metrics")
	require.Contains(t, body, `lockstep_records_appended_total{destination="orders"} 1`)
	require.Contains(t, body, "lockstep_sessions 1")
	code, _ = get("/nothing")
	require.Equal(t, http.StatusNotFound, code)
	http.DefaultClient.CloseIdleConnections()
}

func TestRecordsWithoutAKeyAreSpreadBatchByBatch(t *testing.T) {
	b := lockstest.Start(t)
	ctx, conn := connect(t, b)
	create(ctx, t, conn, client.Destination{Name: "orders", Kind: client.Queue, Settings: client.Settings{Partitions: 4, Sync: client.SyncOS}})
	p, err := conn.Producer(ctx, "orders")
	require.NoError(t, err)
	value := make([]byte, 100)
	const n = 100_000
	for range n {
		require.NoError(t, p.SendFunc(ctx, &client.Record{Value: value}, func(_ client.Receipt, err error) {
			if err != nil {
				t.Error(err)
			}
		}))
	}
	require.NoError(t, p.Flush(ctx))
	next, err := conn.Offsets(ctx, "orders", client.Latest())
	require.NoError(t, err)
	for partition := range uint32(4) {
		require.InDelta(t, n/4, float64(next[partition]), n/20, "partition %d of %v", partition, next)
	}
}

// Retention frees space also where nothing more is written: on a full disk nothing
// else would.
func TestRetentionFreesSpaceWithoutFurtherRecords(t *testing.T) {
	b := lockstest.Start(t, lockstest.Configure(func(c *server.Config) { c.CheckpointBytes = 1 << 40 }))
	ctx, conn := connect(t, b)
	create(ctx, t, conn, client.Destination{Name: "d", Kind: client.Topic, Settings: client.Settings{Partitions: 1, Sync: client.SyncOS}})
	p, err := conn.Producer(ctx, "d", client.BatchBytes(1<<20), client.MaxBufferedBytes(8<<20))
	require.NoError(t, err)
	value := make([]byte, 512<<10)
	for range 300 { // 150 MiB: more than two segments
		require.NoError(t, p.SendFunc(ctx, &client.Record{Value: value}, func(_ client.Receipt, err error) {
			if err != nil {
				t.Error(err)
			}
		}))
	}
	require.NoError(t, p.Flush(ctx))
	_, err = conn.AlterDestination(ctx, client.Destination{Name: "d", Kind: client.Topic, Settings: client.Settings{RetentionBytes: 1 << 20}}, wire.MaskRetentionBytes)
	require.NoError(t, err)
	require.Eventually(t, func() bool {
		d, err := conn.Destination(ctx, "d")
		require.NoError(t, err)
		return d.Partitions[0].Bytes < 64<<20
	}, timeout, 20*time.Millisecond)
}

// A broker that is stopped finds its port free when it comes back, whatever connects or
// listens meanwhile: no system gives away ports below 32768 unasked (Linux) or 49152.
func TestAStoppedBrokersPortIsNotGivenAway(t *testing.T) {
	b := lockstest.Start(t)
	_, port, err := net.SplitHostPort(b.Addr())
	require.NoError(t, err)
	n, err := strconv.Atoi(port)
	require.NoError(t, err)
	require.Less(t, n, 32768)
	before := b.Addr()
	b.Restart()
	require.Equal(t, before, b.Addr())
}
