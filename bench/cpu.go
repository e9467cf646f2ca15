package bench

import (
	"bufio"
	"context"
	"fmt"
	"net/http"
	"strconv"
	"strings"
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

// CPUFromMetrics reads the CPU time of a broker from the Prometheus metrics at
// its HTTP address.
func CPUFromMetrics(address string) func(context.Context) (float64, error) {
	const metric = "process_cpu_seconds_total"
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
