package bench

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/lockstepmq/lockstep/client"
	"github.com/lockstepmq/lockstep/wire"
)

// Subject is what a workload is run against.
type Subject string

// The subjects: a broker, and what no broker can go below (package floor).
const (
	Lockstep Subject = "lockstep"
	// Floor answers and fans out from memory; for a replay it sends a mapped file.
	Floor Subject = "floor"
	// FloorLog also checks and stores, and syncs where the workload does.
	FloorLog Subject = "floor-log"
)

// Launch is how a Starter starts a Subject.
type Launch struct {
	Subject Subject
	Replay  bool   // the floor that sends a mapped file
	Sync    bool   // a floor-log that acknowledges after fdatasync
	Dir     string // for what it stores; empty: the system's temporary directory
	Nodes   int    // of a cluster; 0 or 1: a broker alone
}

// Running is a started subject, a process of its own.
type Running struct {
	Target // of the process that runs now
	Stop   func() error
	// Restart ends a broker, cleanly or with SIGKILL, starts it again on the same
	// directory and replaces Target. It returns once the broker says that it is
	// ready, with the time at which its process was started.
	Restart func(ctx context.Context, kill bool) (started time.Time, err error)
}

// Starter starts a subject of its own for one measurement.
type Starter func(ctx context.Context, l Launch) (*Running, error)

// workloadKind is which measurement a workload is.
type workloadKind uint8

const (
	produceWorkload workloadKind = iota
	consumeWorkload
	latencyWorkload
	queueWorkload
	// The following find figures that stand beside a goal, see Figure.
	restartWorkload
	idlePartitionsWorkload
	idleClientsWorkload
)

// Workload is one of the named loads of docs/performance.md.
type Workload struct {
	Name  string
	About string
	// Reference is what it stands beside unless somebody asks for another: a
	// floor, or the name of another workload. Empty: its figures are no rates and
	// stand beside goals of their own, see Figure.
	Reference string
	// Goal is the ratio to Reference that the broker is meant to reach: of rates at
	// least, of the median latency of an open loop at most. 0: none.
	Goal float64

	kind       workloadKind
	records    int64
	size       int
	producers  int
	inFlight   int
	partitions uint32
	clients    int // idle ones
	consumers  int // of a group
	nodes      int // of a cluster, each with a replica; 0: one
	sync       wire.SyncMode
	rate       float64
	duration   time.Duration
}

// OpenLoop reports whether records are sent at a fixed rate: then latencies are
// compared, and less is better.
func (w Workload) OpenLoop() bool { return w.kind == latencyWorkload }

// Workloads are all of them.
var Workloads = []Workload{
	{Name: "W1", About: "produce 1 KiB, page cache, 2 × 2,048 outstanding", Reference: "floor-log", Goal: 0.9,
		records: 2_000_000, size: 1 << 10, producers: 2, inFlight: 2048, sync: wire.SyncOS},
	{Name: "W1s", About: "produce 100 B, page cache, 2 × 8,192 outstanding", Reference: "floor-log", Goal: 0.67,
		records: 10_000_000, size: 100, producers: 2, inFlight: 8192, sync: wire.SyncOS},
	{Name: "W2", About: "W1 synced before the answer", Reference: "floor-log", Goal: 0.8,
		records: 2_000_000, size: 1 << 10, producers: 2, inFlight: 2048},
	{Name: "W2s", About: "W1s synced before the answer", Reference: "floor-log",
		records: 10_000_000, size: 100, producers: 2, inFlight: 8192},
	{Name: "W2p", About: "64 producers with a partition each, 1 KiB, 64 outstanding each, synced", Reference: "W2", Goal: 0.5,
		records: 1_000_000, size: 1 << 10, producers: 64, inFlight: 64, partitions: 64},
	{Name: "W2p1", About: "W2p with one outstanding each", Reference: "W7f", Goal: 0.5,
		records: 200_000, size: 1 << 10, producers: 64, inFlight: 1, partitions: 64},
	{Name: "W3", About: "replay 1 M stored records of 1 KiB, one reader", Reference: "floor", Goal: 0.45,
		kind: consumeWorkload, records: 1_000_000, size: 1 << 10, producers: 2, inFlight: 2048, sync: wire.SyncOS},
	{Name: "W4", About: "end to end at 10,000/s, 1 KiB, open loop, page cache", Reference: "floor", Goal: 1.5,
		kind: latencyWorkload, size: 1 << 10, rate: 10_000, duration: 5 * time.Second, sync: wire.SyncOS},
	{Name: "W4f", About: "W4 synced before the answer", Reference: "floor",
		kind: latencyWorkload, size: 1 << 10, rate: 10_000, duration: 5 * time.Second},
	{Name: "W5", About: "work queue, 1 KiB, page cache, 2 producers × 2,048 outstanding, 4 consumers, an ack for each record", Reference: "W1",
		kind: queueWorkload, records: 1_000_000, size: 1 << 10, producers: 2, inFlight: 2048, consumers: 4, sync: wire.SyncOS},
	{Name: "W6", About: "W1 on three nodes of this machine, acknowledged by two", Reference: "W1", Goal: 0.3,
		records: 1_000_000, size: 1 << 10, producers: 2, inFlight: 2048, sync: wire.SyncOS, nodes: 3},
	{Name: "W6f", About: "W6 synced before the answer", Reference: "W2", Goal: 0.3,
		records: 1_000_000, size: 1 << 10, producers: 2, inFlight: 2048, nodes: 3},
	{Name: "W7", About: "64 connections, 100 B, one outstanding each, page cache", Reference: "floor", Goal: 0.8,
		records: 400_000, size: 100, producers: 64, inFlight: 1, sync: wire.SyncOS},
	{Name: "W7f", About: "W7 synced before the answer", Reference: "floor-log", Goal: 1.5,
		records: 200_000, size: 100, producers: 64, inFlight: 1},
	{Name: "restart", About: "start on 10 GiB in 100 partitions, after a clean stop and after SIGKILL",
		kind: restartWorkload, records: 10 << 20, size: 1 << 10, producers: 100, inFlight: 256, partitions: 100},
	{Name: "idle-partitions", About: "memory and CPU time at rest with 1,000 partitions written once",
		kind: idlePartitionsWorkload, size: 100, partitions: 1000, duration: 10 * time.Second},
	{Name: "idle-clients", About: "memory and CPU time at rest with 1,000 clients connected",
		kind: idleClientsWorkload, clients: 1000, duration: 10 * time.Second},
}

// FindWorkload looks a workload up by its name.
func FindWorkload(name string) (Workload, error) {
	i := slices.IndexFunc(Workloads, func(w Workload) bool { return strings.EqualFold(w.Name, name) })
	if i < 0 {
		var names []string
		for _, w := range Workloads {
			names = append(names, w.Name)
		}
		return Workload{}, optionError("there is no workload %q; there are %s", name, strings.Join(names, ", "))
	}
	return Workloads[i], nil
}

// scaled returns the workload with its count or its time multiplied.
func (w Workload) scaled(scale float64) Workload {
	switch w.kind {
	case idlePartitionsWorkload:
		w.partitions = max(uint32(float64(w.partitions)*scale), 1)
	case idleClientsWorkload:
		w.clients = max(int(float64(w.clients)*scale), 1)
	}
	w.records = max(int64(float64(w.records)*scale), int64(w.producers))
	w.duration = max(time.Duration(float64(w.duration)*scale), 100*time.Millisecond)
	return w
}

// run measures the workload once against what was started for it.
func (w Workload) run(ctx context.Context, on Launch, target Target, progress Progress) (*Result, error) {
	settings := map[string]any{
		"workload": w.Name, "subject": on.Subject, "size": w.size,
		"sync": w.sync.String(), "replicas": max(1, w.nodes), "partitions": max(1, w.partitions),
	}
	destination := Destination{Settings: client.Settings{Partitions: max(1, w.partitions), Replicas: uint8(w.nodes), Sync: w.sync}}
	produce := ProduceOptions{
		Target: target, Destination: destination, Records: w.records, Size: w.size, Payload: PayloadRandom,
		Acks: client.AcksQuorum, Producers: w.producers, InFlight: w.inFlight, BatchBytes: 64 << 10,
		PartitionEach: w.partitions > 1,
		Progress:      progress, Settings: settings,
	}
	latency := LatencyOptions{
		Target: target, Destination: destination, Rate: w.rate, Duration: w.duration, Warmup: w.duration / 5, Size: w.size,
		Acks: client.AcksQuorum, Payload: PayloadRandom, Producers: 1, BatchBytes: 64 << 10, Progress: progress, Settings: settings,
	}
	consume := ConsumeOptions{
		Target: target, Destination: destination, Fill: produce, Records: w.records, Readers: 1, Progress: progress, Settings: settings,
	}
	if w.kind == queueWorkload {
		return Queue(ctx, QueueOptions{Produce: produce, Mode: client.Shared, Consumers: w.consumers})
	}
	floor := on.Subject != Lockstep
	switch w.kind {
	case consumeWorkload:
		if floor {
			return floorReplay(ctx, consume)
		}
		return Consume(ctx, consume)
	case latencyWorkload:
		if floor {
			return floorLatency(ctx, latency)
		}
		return Latency(ctx, latency)
	default:
		if floor {
			return floorProduce(ctx, produce)
		}
		return Produce(ctx, produce)
	}
}

// launch says what has to be started for the workload.
func (w Workload) launch(s Subject, dir string) Launch {
	return Launch{Subject: s, Replay: w.kind == consumeWorkload, Sync: w.sync == wire.SyncQuorumFsync, Dir: dir, Nodes: w.nodes}
}

// touchMemory makes the machine's memory present before a run that fills the page
// cache: on a virtual machine the first use of a page can cost ten times its
// copy, and the run that happens to come first would pay for it.
func (w Workload) touchMemory(dir string) error {
	if dir == "" {
		dir = os.TempDir()
	}
	name := filepath.Join(dir, fmt.Sprintf("lockstep-bench-memory-%d", os.Getpid()))
	file, err := os.Create(name)
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(name) }()
	defer file.Close()
	chunk := make([]byte, 1<<20)
	for left := w.records * int64(w.size); left > 0; left -= int64(len(chunk)) {
		if _, err := file.Write(chunk); err != nil {
			return err
		}
	}
	return nil
}
