package bench

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

// gnet's pool of goroutines, which a floor in the same process starts, lives as
// long as the process.
var gnetPool = []goleak.Option{
	goleak.IgnoreAnyFunction("github.com/panjf2000/ants/v2.(*goWorker).run.func1"),
	goleak.IgnoreAnyFunction("github.com/panjf2000/ants/v2.(*poolCommon).ticktock"),
	goleak.IgnoreAnyFunction("github.com/panjf2000/ants/v2.(*poolCommon).purgeStaleWorkers"),
}

func TestMain(m *testing.M) { goleak.VerifyTestMain(m, gnetPool...) }

func TestTheScheduleDoesNotDrift(t *testing.T) {
	p := pacer{rate: 30_000} // an interval of 33,333.3 ns
	require.Equal(t, int64(0), p.due(0))
	require.Equal(t, int64(33_333), p.due(1))
	require.Equal(t, int64(1_000_000_000), p.due(30_000))
	require.Equal(t, int64(3600_000_000_000), p.due(30_000*3600))
	require.Equal(t, int64(300_000), p.count(10*time.Second))
	require.Equal(t, int64(1), pacer{rate: 0.5}.count(2*time.Second))
	require.Equal(t, int64(2_000_000_000), pacer{rate: 0.5}.due(1))
}

func TestSleepUntilIsNeverEarly(t *testing.T) {
	done := make(chan [2]int64)
	go func() {
		lockPacingThread()
		c := startClock()
		due := c.now() + int64(2*time.Millisecond)
		c.sleepUntil(due)
		c.sleepUntil(due - 1) // past: returns at once
		done <- [2]int64{due, c.now()}
	}()
	times := <-done
	require.GreaterOrEqual(t, times[1], times[0])
}

func TestPercentiles(t *testing.T) {
	h, other := newHistogram(), newHistogram()
	for i := int64(1); i <= 500; i++ {
		h.record(i * 1000)
		other.record((500 + i) * 1000)
	}
	h.merge(other)
	got := h.latencies()
	require.Equal(t, int64(1000), got.Samples)
	require.InEpsilon(t, 500, got.P50Us, 0.001)
	require.InEpsilon(t, 990, got.P99Us, 0.001)
	require.InEpsilon(t, 999, got.P999Us, 0.001)
	require.InEpsilon(t, 1000, got.MaxUs, 0.001)

	require.Equal(t, Latencies{}, newHistogram().latencies())

	edges := newHistogram()
	edges.record(-5)
	edges.record(int64(time.Hour))
	require.Equal(t, int64(2), edges.latencies().Samples)
	require.InEpsilon(t, histogramMax.Microseconds(), edges.latencies().MaxUs, 0.001)
}

func TestResultsHaveTheFieldsThatWerePromised(t *testing.T) {
	r := &Result{
		Benchmark: "produce", Records: 2_000_000, Bytes: 2_048_000_000, Seconds: 4,
		Latencies: Latencies{Samples: 10, P50Us: 1, P99Us: 2, P999Us: 3, MaxUs: 4},
		Settings:  map[string]any{"size": 1024},
	}
	server, mallocs, anonymous := 3.0, 4000.0, int64(5<<20)
	r.finish(resources{clientCPU: 1, clientMallocs: 2000, serverCPU: &server, serverMallocs: &mallocs, serverAnonymous: &anonymous})
	encoded, err := json.Marshal(r)
	require.NoError(t, err)
	require.JSONEq(t, `{
		"benchmark": "produce", "records": 2000000, "bytes": 2048000000, "seconds": 4,
		"records_per_s": 500000, "mb_per_s": 512,
		"latency_samples": 10, "p50_us": 1, "p99_us": 2, "p999_us": 3, "max_us": 4,
		"client_cpu_s": 1, "server_cpu_s": 3, "client_cpu_per_record_us": 0.5, "server_cpu_per_record_us": 1.5,
		"client_mallocs_per_record": 0.001, "server_mallocs_per_record": 0.002, "server_anonymous_bytes": 5242880,
		"settings": {"size": 1024}
	}`, string(encoded))

	unknown := &Result{}
	unknown.finish(resources{})
	encoded, err = json.Marshal(unknown)
	require.NoError(t, err)
	require.Contains(t, string(encoded), `"server_cpu_s":null`)
	require.Contains(t, string(encoded), `"records_per_s":0`)
}

func TestPayloadsAreReproducibleAndOfTheRightSize(t *testing.T) {
	for _, kind := range []Payload{PayloadRandom, PayloadText} {
		for _, size := range []int{0, 1, 100, 1024} {
			values := makePayloads(kind, size)
			require.Len(t, values, payloadVariants)
			for _, v := range values {
				require.Len(t, v, size)
			}
			require.Equal(t, values, makePayloads(kind, size))
		}
	}
	require.NotEqual(t, makePayloads(PayloadRandom, 100)[0], makePayloads(PayloadRandom, 100)[1])
	require.Equal(t, [][]byte{[]byte("key-0"), []byte("key-1")}, makeKeys(2))
}

func TestCPUOfAProcessIsReadWhileItRuns(t *testing.T) {
	own := CPUOfProcess(os.Getpid())
	before, err := own(context.Background())
	require.NoError(t, err)
	for x, deadline := 0, time.Now().Add(20*time.Millisecond); time.Now().Before(deadline); x++ {
		_ = x
	}
	after, err := own(context.Background())
	require.NoError(t, err)
	require.Greater(t, after, before)
	require.InDelta(t, processCPU(), after, 0.1, "both clocks of this process")

	_, err = CPUOfProcess(1 << 22)(context.Background()) // above the largest process ID
	require.Error(t, err)
}

func TestCPUIsReadFromMetrics(t *testing.T) {
	body, status := "# HELP x\nprocess_cpu_seconds_total 12.25\nother 1\n", http.StatusOK
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		require.Equal(t, "/metrics", r.URL.Path)
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	}))
	defer http.DefaultTransport.(*http.Transport).CloseIdleConnections()
	defer server.Close()
	read := FromMetrics(server.Listener.Addr().String(), MetricCPU)
	got, err := read(context.Background())
	require.NoError(t, err)
	require.Equal(t, 12.25, got)

	body = "other 1\n"
	_, err = read(context.Background())
	require.ErrorContains(t, err, "has no process_cpu_seconds_total")
	status = http.StatusNotFound
	_, err = read(context.Background())
	require.ErrorContains(t, err, "404")
}

func TestOptionsAreCheckedBeforeAnythingIsConnected(t *testing.T) {
	ctx := context.Background()
	produce := ProduceOptions{Records: 1, Producers: 1, InFlight: 1}
	for _, change := range []func(*ProduceOptions){
		func(o *ProduceOptions) { o.Records = 0 },
		func(o *ProduceOptions) { o.Size = -1 },
		func(o *ProduceOptions) { o.Producers = 0 },
		func(o *ProduceOptions) { o.InFlight = 0 },
		func(o *ProduceOptions) { o.Keys = -1 },
	} {
		o := produce
		change(&o)
		_, err := Produce(ctx, o)
		require.ErrorIs(t, err, ErrOption)
	}
	_, err := Consume(ctx, ConsumeOptions{Readers: 0})
	require.ErrorIs(t, err, ErrOption)
	latency := LatencyOptions{Rate: 1, Duration: time.Second, Size: MinLatencySize, Producers: 1}
	for _, change := range []func(*LatencyOptions){
		func(o *LatencyOptions) { o.Rate = 0 },
		func(o *LatencyOptions) { o.Duration = 0 },
		func(o *LatencyOptions) { o.Size = MinLatencySize - 1 },
		func(o *LatencyOptions) { o.Producers = 0 },
	} {
		o := latency
		change(&o)
		_, err := Latency(ctx, o)
		require.ErrorIs(t, err, ErrOption)
	}
	queue := QueueOptions{Produce: produce, Consumers: 1}
	for _, change := range []func(*QueueOptions){
		func(o *QueueOptions) { o.Consumers = 0 },
		func(o *QueueOptions) { o.Prefetch = -1 },
		func(o *QueueOptions) { o.Produce.Records = 0 },
	} {
		o := queue
		change(&o)
		_, err := Queue(ctx, o)
		require.ErrorIs(t, err, ErrOption)
	}
	w5, err := FindWorkload("W5")
	require.NoError(t, err)
	require.ErrorIs(t, w5.Check(CompareOptions{Subjects: []string{"lockstep", "floor"}, Rounds: 1, Scale: 1}), ErrOption)
}

func TestTheFirstErrorWinsAndCancels(t *testing.T) {
	ctx, cancel := context.WithCancelCause(context.Background())
	f := &firstError{cancel: cancel}
	f.set(nil)
	require.NoError(t, ctx.Err())
	first := errors.New("first")
	f.set(first)
	f.set(errors.New("second"))
	require.Equal(t, first, f.get())
	require.Equal(t, first, context.Cause(ctx))
}

func TestProgressEndsWithTheFinalCount(t *testing.T) {
	var last [2]int64
	stop := report(func(phase string, done, total int64) {
		require.Equal(t, "fill", phase)
		last = [2]int64{done, total}
	}, "fill", 10, func() int64 { return 7 })
	stop()
	require.Equal(t, [2]int64{7, 10}, last)
	report(nil, "", 0, nil)()
}
