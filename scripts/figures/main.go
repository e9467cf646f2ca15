// Command figures measures the table of docs/performance.md: every workload
// with a broker of its own, interleaved with what the bare machine does, several
// rounds, medians. It prints the table in Markdown.
//
//	go run ./scripts/figures -binary dist/lockstep -rounds 5 -dir /a/disk
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

type workload struct {
	name string
	args []string
	raw  string // the figure of the bare machine it stands beside
}

var workloads = []workload{
	{"W1 produce 1 KiB, sync=os", []string{"produce", "--size", "1KiB", "--sync", "os", "--records", "2000000"}, "RawPwrite/64KiB"},
	{"W1s produce 100 B, sync=os", []string{"produce", "--size", "100B", "--sync", "os", "--in-flight", "8192", "--records", "5000000"}, "RawPwrite/64KiB"},
	{"W2 produce 1 KiB, quorum-fsync", []string{"produce", "--size", "1KiB", "--records", "2000000"}, "RawPwriteFdatasync/1MiB"},
	{"W2s produce 100 B, quorum-fsync", []string{"produce", "--size", "100B", "--in-flight", "8192", "--records", "5000000"}, "RawPwriteFdatasync/1MiB"},
	{"W3 replay 1 KiB", []string{"consume", "--size", "1KiB", "--sync", "os", "--records", "1000000"}, "RawLoopback"},
	{"W4 latency 10,000/s, sync=os", []string{"latency", "--rate", "10000", "--sync", "os", "--duration", "10s"}, "RawLoopback"},
	{"W4 latency 10,000/s, quorum-fsync", []string{"latency", "--rate", "10000", "--duration", "10s"}, "RawPwriteFdatasync/1KiB"},
	{"W7 64 connections, 100 B, one each, sync=os", []string{"produce", "--size", "100B", "--producers", "64", "--in-flight", "1", "--sync", "os", "--records", "300000"}, "RawPwrite/64KiB"},
	{"W7f the same, quorum-fsync", []string{"produce", "--size", "100B", "--producers", "64", "--in-flight", "1", "--records", "200000"}, "RawPwriteFdatasync/1KiB"},
}

type result struct {
	RecordsPerS float64  `json:"records_per_s"`
	MBPerS      float64  `json:"mb_per_s"`
	P50         float64  `json:"p50_us"`
	P99         float64  `json:"p99_us"`
	Client      float64  `json:"client_cpu_per_record_us"`
	Server      *float64 `json:"server_cpu_per_record_us"`
}

func main() {
	binary := flag.String("binary", "dist/lockstep", "broker and load generator, built with -tags release")
	rounds := flag.Int("rounds", 3, "how often everything is measured")
	dir := flag.String("dir", "", "directory on the disk to measure; default the system's temporary directory")
	only := flag.String("only", "", "regular expression of the workloads to measure")
	flag.Parse()
	if err := run(*binary, *rounds, *dir, *only); err != nil {
		fmt.Fprintln(os.Stderr, "figures:", err)
		os.Exit(1)
	}
}

func run(binary string, rounds int, dir, only string) error {
	selected, err := regexp.Compile(only)
	if err != nil {
		return err
	}
	binary, err = filepath.Abs(binary)
	if err != nil {
		return err
	}
	found := map[string][]result{}
	raw := map[string][]float64{} // MB/s
	for round := range rounds {
		fmt.Fprintf(os.Stderr, "round %d of %d\n", round+1, rounds)
		if err := measureRaw(dir, raw); err != nil {
			return err
		}
		for _, w := range workloads {
			if !selected.MatchString(w.name) {
				continue
			}
			r, err := measure(binary, dir, w)
			if err != nil {
				return fmt.Errorf("%s: %w", w.name, err)
			}
			fmt.Fprintf(os.Stderr, "  %-45s %10.0f records/s  p50 %.0f µs\n", w.name, r.RecordsPerS, r.P50)
			found[w.name] = append(found[w.name], r)
		}
	}
	fmt.Printf("| workload | records/s | MB/s | p50 µs | p99 µs | CPU µs a record, server / client | bare machine |\n")
	fmt.Printf("|---|---|---|---|---|---|---|\n")
	for _, w := range workloads {
		all := found[w.name]
		if len(all) == 0 {
			continue
		}
		fmt.Printf("| %s | %.0f | %.0f | %.0f | %.0f | %.2f / %.2f | %s %.0f MB/s |\n", w.name,
			median(all, func(r result) float64 { return r.RecordsPerS }), median(all, func(r result) float64 { return r.MBPerS }),
			median(all, func(r result) float64 { return r.P50 }), median(all, func(r result) float64 { return r.P99 }),
			median(all, func(r result) float64 {
				if r.Server == nil {
					return 0
				}
				return *r.Server
			}), median(all, func(r result) float64 { return r.Client }),
			w.raw, median(raw[w.raw], func(v float64) float64 { return v }))
	}
	return nil
}

func median[T any](values []T, of func(T) float64) float64 {
	if len(values) == 0 {
		return 0
	}
	numbers := make([]float64, len(values))
	for i, v := range values {
		numbers[i] = of(v)
	}
	slices.Sort(numbers)
	return numbers[len(numbers)/2]
}

func measure(binary, dir string, w workload) (result, error) {
	args := append([]string{"bench"}, w.args...)
	args = append(args, "--embedded", "--json")
	if dir != "" {
		args = append(args, "--embedded-dir", dir)
	}
	command := exec.Command(binary, args...)
	out, err := command.Output()
	if err != nil {
		return result{}, fmt.Errorf("%s: %w", strings.Join(command.Args, " "), err)
	}
	var r result
	return r, json.Unmarshal(out, &r)
}

var rawLine = regexp.MustCompile(`(?m)^Benchmark(\S+?)(?:-\d+)?\s.*?([\d.]+) MB/s`)

func measureRaw(dir string, into map[string][]float64) error {
	command := exec.Command("go", "test", "-tags", "release", "./bench", "-run", "^$", "-bench", "Raw", "-benchtime", "1s")
	command.Env = append(os.Environ(), "LOCKSTEP_BENCH_DIR="+dir)
	out, err := command.CombinedOutput()
	if err != nil {
		return fmt.Errorf("bare machine: %w: %s", err, out)
	}
	for _, m := range rawLine.FindAllStringSubmatch(string(out), -1) {
		v, err := strconv.ParseFloat(m[2], 64)
		if err != nil {
			return err
		}
		into[m[1]] = append(into[m[1]], v)
	}
	return nil
}
