package bench

import (
	"math"
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// Result is what a run found. Its JSON form is a contract.
type Result struct {
	Benchmark   string  `json:"benchmark"` // produce, consume, latency, queue or request
	Records     int64   `json:"records"`   // acknowledged or received within Seconds
	Bytes       int64   `json:"bytes"`     // of keys and values
	Seconds     float64 `json:"seconds"`
	RecordsPerS float64 `json:"records_per_s"`
	MBPerS      float64 `json:"mb_per_s"` // 10^6 bytes of keys and values
	Latencies
	// Ack is the time until the broker acknowledged a record that was sent; in Latency
	// runs, where the fields above are the time until a consumer had it, and in Queue
	// runs, where they are how long consumers waited for the next; in Request runs, where
	// they are the time until a reply, that of a record sent alone.
	Ack *Latencies `json:"ack,omitempty"`
	// Lost is the number of records that were sent and did not come back
	// within the time a Latency run waits at its end.
	Lost int64 `json:"lost,omitempty"`
	// LatestSend is the furthest the load generator itself fell behind its
	// schedule in a Latency run, in µs. It is part of every latency.
	LatestSend *float64 `json:"latest_send_us,omitempty"`

	// ClientCPUSeconds is that of this process: in a Latency run with the
	// consumer and with the pacing, some 25 µs for every sleep.
	ClientCPUSeconds     float64  `json:"client_cpu_s"`
	ServerCPUSeconds     *float64 `json:"server_cpu_s"` // null where unknown
	ClientCPUPerRecordUs float64  `json:"client_cpu_per_record_us"`
	ServerCPUPerRecordUs *float64 `json:"server_cpu_per_record_us"`
	// ClientMallocs and ServerMallocs are heap allocations for each record.
	ClientMallocs float64  `json:"client_mallocs_per_record"`
	ServerMallocs *float64 `json:"server_mallocs_per_record,omitempty"`
	// ServerAnonymousBytes is the most anonymous memory the broker was seen with.
	ServerAnonymousBytes *int64         `json:"server_anonymous_bytes,omitempty"`
	Settings             map[string]any `json:"settings"`
}

// Latencies are percentiles in microseconds, with three significant digits.
type Latencies struct {
	Samples int64   `json:"latency_samples"`
	P50Us   float64 `json:"p50_us"`
	P99Us   float64 `json:"p99_us"`
	P999Us  float64 `json:"p999_us"`
	MaxUs   float64 `json:"max_us"`
}

// histogramMax is the longest latency that is told apart from longer ones.
const histogramMax = 10 * time.Minute

// histogram counts latencies in nanoseconds. Safe for several goroutines.
type histogram struct {
	mu sync.Mutex
	h  *hdrhistogram.Histogram
}

func newHistogram() *histogram {
	return &histogram{h: hdrhistogram.New(1, int64(histogramMax), 3)}
}

// record counts one latency; what lies outside of the range counts at its edge.
func (h *histogram) record(ns int64) {
	h.mu.Lock()
	_ = h.h.RecordValue(min(max(ns, 1), int64(histogramMax))) // in range: cannot fail
	h.mu.Unlock()
}

func (h *histogram) merge(other *histogram) {
	h.mu.Lock()
	h.h.Merge(other.h)
	h.mu.Unlock()
}

func (h *histogram) latencies() Latencies {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.h.TotalCount() == 0 {
		return Latencies{}
	}
	us := func(percentile float64) float64 { return round(float64(h.h.ValueAtPercentile(percentile))/1e3, 2) }
	return Latencies{
		Samples: h.h.TotalCount(),
		P50Us:   us(50), P99Us: us(99), P999Us: us(99.9),
		MaxUs: round(float64(h.h.Max())/1e3, 2),
	}
}

// finish computes the rates from records, bytes and seconds.
func (r *Result) finish(used resources) {
	r.Seconds = round(r.Seconds, 6)
	if r.Seconds > 0 {
		r.RecordsPerS = round(float64(r.Records)/r.Seconds, 1)
		r.MBPerS = round(float64(r.Bytes)/1e6/r.Seconds, 3)
	}
	r.ClientCPUSeconds = round(used.clientCPU, 4)
	if used.serverCPU != nil {
		server := round(*used.serverCPU, 4)
		r.ServerCPUSeconds = &server
	}
	r.ServerAnonymousBytes = used.serverAnonymous
	if r.Records > 0 {
		r.ClientCPUPerRecordUs = round(used.clientCPU*1e6/float64(r.Records), 3)
		r.ClientMallocs = round(used.clientMallocs/float64(r.Records), 4)
		if used.serverCPU != nil {
			perRecord := round(*used.serverCPU*1e6/float64(r.Records), 3)
			r.ServerCPUPerRecordUs = &perRecord
		}
		if used.serverMallocs != nil {
			perRecord := round(*used.serverMallocs/float64(r.Records), 4)
			r.ServerMallocs = &perRecord
		}
	}
}

func round(v float64, digits int) float64 {
	p := math.Pow10(digits)
	return math.Round(v*p) / p
}
