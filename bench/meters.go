package bench

import (
	"bufio"
	"context"
	"fmt"
	"net/http"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// processCPU is the CPU time this process has used so far, in seconds.
func processCPU() float64 {
	var usage unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &usage); err != nil {
		return 0
	}
	return seconds(usage.Utime) + seconds(usage.Stime)
}

func seconds(t unix.Timeval) float64 { return float64(t.Sec) + float64(t.Usec)/1e6 }

// Together is the target of several brokers of one cluster: what they use is added up.
func Together(brokers []Target) Target {
	var servers []string
	for _, b := range brokers {
		servers = append(servers, b.Servers)
	}
	sum := func(of func(Target) func(context.Context) (float64, error)) func(context.Context) (float64, error) {
		return func(ctx context.Context) (total float64, err error) {
			for _, b := range brokers {
				used, err := of(b)(ctx)
				if err != nil {
					return 0, err
				}
				total += used
			}
			return total, nil
		}
	}
	bytes := func(of func(Target) func() (int64, error)) func() (int64, error) {
		return func() (total int64, err error) {
			for _, b := range brokers {
				n, err := of(b)()
				if err != nil {
					return 0, err
				}
				total += n
			}
			return total, nil
		}
	}
	return Target{
		Servers:         strings.Join(servers, ","),
		ServerCPU:       sum(func(t Target) func(context.Context) (float64, error) { return t.ServerCPU }),
		ServerMallocs:   sum(func(t Target) func(context.Context) (float64, error) { return t.ServerMallocs }),
		ServerAnonymous: bytes(func(t Target) func() (int64, error) { return t.ServerAnonymous }),
		ServerResident:  bytes(func(t Target) func() (int64, error) { return t.ServerResident }),
	}
}

// CPUOfProcess reads the CPU time of another process of this machine, exact to
// the nanosecond, while it runs.
func CPUOfProcess(pid int) func(context.Context) (float64, error) {
	// The clock of a process's CPU time: the complement of its ID, and in the
	// lowest three bits the kind (2 = scheduler time, all threads).
	id := int32(^pid<<3 | 2)
	return func(context.Context) (float64, error) {
		var t unix.Timespec
		if err := unix.ClockGettime(id, &t); err != nil {
			return 0, fmt.Errorf("CPU time of process %d: %w", pid, err)
		}
		return float64(t.Sec) + float64(t.Nsec)/1e9, nil
	}
}

// Names of metrics that every broker exports.
const (
	MetricCPU     = "process_cpu_seconds_total"
	MetricMallocs = "go_memstats_mallocs_total"
)

// FromMetrics reads one number without labels from the Prometheus metrics at a
// broker's HTTP address.
func FromMetrics(address, metric string) func(context.Context) (float64, error) {
	url := "http://" + strings.TrimPrefix(address, "http://")
	if !strings.HasSuffix(url, "/metrics") {
		url = strings.TrimSuffix(url, "/") + "/metrics"
	}
	httpClient := &http.Client{Timeout: 3 * time.Second}
	return func(ctx context.Context) (float64, error) {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return 0, err
		}
		response, err := httpClient.Do(request)
		if err != nil {
			return 0, err
		}
		defer response.Body.Close()
		if response.StatusCode != http.StatusOK {
			return 0, fmt.Errorf("%s: %s", url, response.Status)
		}
		lines := bufio.NewScanner(response.Body)
		for lines.Scan() {
			if value, found := strings.CutPrefix(lines.Text(), metric+" "); found {
				return strconv.ParseFloat(strings.TrimSpace(value), 64)
			}
		}
		if err := lines.Err(); err != nil {
			return 0, err
		}
		return 0, fmt.Errorf("%s has no %s", url, metric)
	}
}

// AnonymousOfProcess reads how much anonymous memory another process of this
// machine has resident, in bytes.
func AnonymousOfProcess(pid int) func() (int64, error) { return memoryOfProcess(pid, "RssAnon:") }

// ResidentOfProcess reads how much memory another process of this machine has
// resident, in bytes, with what it has mapped: its binary and parts of segments.
func ResidentOfProcess(pid int) func() (int64, error) { return memoryOfProcess(pid, "VmRSS:") }

func memoryOfProcess(pid int, field string) func() (int64, error) {
	name := fmt.Sprintf("/proc/%d/status", pid)
	return func() (int64, error) {
		status, err := os.ReadFile(name)
		if err != nil {
			return 0, err
		}
		_, rest, found := strings.Cut(string(status), field)
		if !found {
			return 0, fmt.Errorf("%s has no %s", name, field)
		}
		line, _, _ := strings.Cut(rest, "\n")
		kib, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(line), "kB")), 10, 64)
		return kib << 10, err
	}
}

// anonymousInterval is the time between two looks at the broker's memory.
const anonymousInterval = 20 * time.Millisecond

// resources are what both sides used between two points; pointers are nil where
// that is not known. CPU times are in seconds.
type resources struct {
	clientCPU       float64
	clientMallocs   float64
	serverCPU       *float64
	serverMallocs   *float64
	serverAnonymous *int64 // bytes, the most that was seen
}

// meters measure what is used from their start.
type meters struct {
	target        Target
	clientCPU     float64
	clientMallocs float64
	serverCPU     *float64
	serverMallocs *float64

	end       chan struct{}
	sampling  sync.WaitGroup
	anonymous *int64
}

func processMallocs() float64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return float64(m.Mallocs)
}

func read(ctx context.Context, f func(context.Context) (float64, error)) *float64 {
	if f == nil {
		return nil
	}
	v, err := f(ctx)
	if err != nil {
		return nil // not known is said in the result
	}
	return &v
}

func (t Target) startMeters(ctx context.Context) *meters {
	m := &meters{target: t, end: make(chan struct{})}
	if t.ServerAnonymous != nil {
		m.sampling.Go(func() { m.sampleAnonymous(ctx) })
	}
	m.serverMallocs = read(ctx, t.ServerMallocs)
	m.serverCPU = read(ctx, t.ServerCPU)
	m.clientMallocs, m.clientCPU = processMallocs(), processCPU()
	return m
}

func (m *meters) sampleAnonymous(ctx context.Context) {
	ticks := time.NewTicker(anonymousInterval)
	defer ticks.Stop()
	for {
		if n, err := m.target.ServerAnonymous(); err == nil && (m.anonymous == nil || n > *m.anonymous) {
			m.anonymous = &n
		}
		select {
		case <-m.end:
			return
		case <-ctx.Done():
			return
		case <-ticks.C:
		}
	}
}

func (m *meters) stop(ctx context.Context) resources {
	used := resources{clientCPU: processCPU() - m.clientCPU, clientMallocs: processMallocs() - m.clientMallocs}
	since := func(start *float64, f func(context.Context) (float64, error)) *float64 {
		if start == nil {
			return nil
		}
		now := read(ctx, f)
		if now != nil {
			*now -= *start
		}
		return now
	}
	used.serverCPU = since(m.serverCPU, m.target.ServerCPU)
	used.serverMallocs = since(m.serverMallocs, m.target.ServerMallocs)
	close(m.end)
	m.sampling.Wait()
	used.serverAnonymous = m.anonymous
	return used
}
