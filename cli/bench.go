package cli

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/lockstepmq/lockstep/bench"
	"github.com/lockstepmq/lockstep/client"
	"github.com/lockstepmq/lockstep/wire"
)

func (a *app) benchCommand() *cobra.Command {
	c := a.group(&cobra.Command{
		Use:   "bench",
		Short: "Measure throughput and latency",
		Long: `Measure throughput and latency of a broker, or with --embedded of one of its own on
a temporary directory. stdout has the result, stderr the progress.

Without DEST a topic of a fresh name is made with the settings given by flags and
removed at the end. A named one that is missing is created and kept; one that
exists is used as it is.`,
		Example: `  lockstep bench produce --embedded
  lockstep bench latency --embedded --rate 10000 -o json`,
	})
	a.clientFlags(c)
	c.AddCommand(a.benchProduceCommand(), a.benchConsumeCommand(), a.benchLatencyCommand(), a.benchQueueCommand(), a.benchRequestCommand(), a.benchRunCommand(), a.benchFloorCommand())
	return c
}

// benchFlags are the flags that the benchmarks share.
type benchFlags struct {
	app        *app
	output     *choiceFlag
	embedded   bool
	directory  string
	serverHTTP string

	partitions uint32
	replicas   uint8
	storage    *choiceFlag
	sync       *choiceFlag

	size       sizeFlag
	batchBytes sizeFlag
	linger     durationFlag
	acks       *choiceFlag
	codec      *choiceFlag
	payload    *choiceFlag
}

func (a *app) newBenchFlags(c *cobra.Command) *benchFlags {
	b := &benchFlags{
		app:        a,
		storage:    newChoice("disk", "disk", "memory"),
		sync:       newChoice("quorum-fsync", "quorum-fsync", "interval", "os"),
		size:       sizeFlag{bytes: 1 << 10},
		batchBytes: sizeFlag{bytes: 64 << 10},
		acks:       newChoice("quorum", "quorum", "leader", "none"),
		codec:      newChoice("none", "none", "snappy", "zstd"),
		payload:    newChoice("random", "random", "text"),
	}
	flags := c.Flags()
	b.output = outputFlag(c)
	flags.BoolVar(&b.embedded, "embedded", false, "measure a broker that is started for this run, on a temporary directory")
	flags.StringVar(&b.directory, "embedded-dir", "", "`directory` below which the embedded broker keeps its data; without it the system's temporary directory")
	flags.StringVar(&b.serverHTTP, "server-http", "", "the broker's HTTP address, as `host:port`, to read its CPU time from /metrics")
	flags.Var(&b.size, "size", "a `size`: bytes of a record's value")
	flags.Var(b.payload, "payload", "what values are made of; text can be compressed")
	flags.Var(&b.batchBytes, "batch-bytes", "a `size`: bytes of a full batch")
	flags.Var(&b.linger, "linger", "wait a `duration` for more records before a batch is sent; 0 = only while others are on their way")
	flags.Var(b.acks, "acks", "what an acknowledgement waits for")
	flags.Var(b.codec, "compression", "compression of batches")
	flags.Uint32Var(&b.partitions, "partitions", 1, "`number` of partitions of a destination that is made")
	flags.Uint8Var(&b.replicas, "replicas", 0, "`number` of replicas of a destination that is made; 0 = automatic")
	flags.Var(b.sync, "sync", "sync setting of a destination that is made")
	flags.Var(b.storage, "storage", "where records of a destination that is made live")
	return b
}

// limits of --size and --batch-bytes in bytes; the client has the same for batches.
const (
	maxBenchSize       = wire.MaxRecordBytes
	maxBenchBatchBytes = 4 << 20
)

// check refuses flags that only look as if they had an effect.
func (b *benchFlags) check(c *cobra.Command, args []string) error {
	if len(args) > 1 {
		return usagef(c, "%q takes one DEST, not also %q", c.CommandPath(), args[1])
	}
	if b.embedded && c.Flags().Changed("server") {
		return usagef(c, "--embedded measures a broker of its own: --server has no place beside it")
	}
	if !b.embedded && b.directory != "" {
		return usagef(c, "--embedded-dir needs --embedded")
	}
	if b.partitions < 1 {
		return usagef(c, "flag --partitions: at least 1")
	}
	if b.size.bytes > maxBenchSize {
		return usagef(c, "flag --size: %s is above the largest record, %s", b.size.String(), formatSize(maxBenchSize))
	}
	if b.batchBytes.bytes < 1 || b.batchBytes.bytes > maxBenchBatchBytes {
		return usagef(c, "flag --batch-bytes: %s is not between 1B and %s", b.batchBytes.String(), exactSize(maxBenchBatchBytes))
	}
	return nil
}

func (b *benchFlags) destination(args []string) bench.Destination {
	d := bench.Destination{Settings: client.Settings{
		Partitions: b.partitions, Replicas: b.replicas, Sync: syncMode(b.sync.value),
		MaxRecordBytes: max(wire.DefaultMaxRecordBytes, min(uint32(b.size.bytes)+64<<10, wire.MaxRecordBytes)),
	}}
	if b.storage.value == "memory" {
		d.Settings.Storage = wire.StorageMemory
	}
	if len(args) == 1 {
		d.Name = args[0]
	}
	return d
}

// run finds or starts the broker, runs the measurement and prints its result.
func (b *benchFlags) run(c *cobra.Command, settings map[string]any,
	measure func(ctx context.Context, t bench.Target, progress bench.Progress) (*bench.Result, error)) (err error) {
	ctx := c.Context()
	a := b.app
	target := bench.Target{Servers: a.servers}
	if b.serverHTTP != "" {
		target.ServerCPU = bench.FromMetrics(b.serverHTTP, bench.MetricCPU)
		if _, err := target.ServerCPU(ctx); err != nil {
			return fmt.Errorf("read the broker's CPU time: %w; check --server-http", err)
		}
	}
	if b.embedded {
		broker, err := a.startEmbedded(ctx, b.directory)
		if err != nil {
			return interruptedOr(ctx, err)
		}
		defer func() {
			if stopErr := broker.stop(); err == nil {
				err = stopErr
			}
		}()
		a.servers, target = broker.address, broker.target()
		settings["embedded"] = true
	} else {
		settings["server"] = a.servers
	}

	var bar *progressBar
	phase := ""
	progress := func(name string, done, total int64) {
		if name != phase {
			if bar != nil {
				bar.finish()
			}
			phase, bar = name, startProgress(a.stderr, "bench "+name, total, false, linesWithoutTerminal)
		}
		bar.set(done)
	}
	result, err := measure(ctx, target, progress)
	if bar != nil {
		bar.finish()
	}
	if errors.Is(err, bench.ErrOption) {
		return usagef(c, "%v", err)
	}
	if err != nil {
		destination, _ := settings["destination"].(string)
		return interruptedOr(ctx, &failure{doing: "bench", destination: destination, err: err})
	}
	if b.output.value == "json" {
		return a.printJSON(result)
	}
	return a.printResult(result)
}

// settings are what the result repeats, so that a figure never stands without them.
func (b *benchFlags) settings(args []string) map[string]any {
	s := map[string]any{
		"size": b.size.bytes, "payload": b.payload.value, "batch_bytes": b.batchBytes.bytes,
		"linger_us": b.linger.value.Microseconds(), "acks": b.acks.value, "compression": b.codec.value,
		"version": version().Lockstep,
	}
	if len(args) == 1 {
		s["destination"] = args[0]
	} else {
		s["partitions"], s["replicas"], s["sync"], s["storage"] = b.partitions, b.replicas, b.sync.value, b.storage.value
	}
	return s
}

// produceFlags are those of bench produce and of the filling of bench consume.
type produceFlags struct {
	records   int64
	producers int
	inFlight  int
	keys      int
}

func newProduceFlags(flags *pflag.FlagSet) *produceFlags {
	var p produceFlags
	flags.Int64Var(&p.records, "records", 1_000_000, "`number` of records, over all producers")
	flags.IntVar(&p.producers, "producers", 2, "`number` of producers, each with a connection of its own")
	flags.IntVar(&p.inFlight, "in-flight", 2048, "`number` of records on their way per producer")
	flags.IntVar(&p.keys, "keys", 0, "`number` of different keys; 0 = records have none")
	return &p
}

func (b *benchFlags) produceOptions(p *produceFlags) bench.ProduceOptions {
	return bench.ProduceOptions{
		Records: p.records, Size: int(b.size.bytes), Keys: p.keys, Payload: bench.Payload(b.payload.value),
		Producers: p.producers, InFlight: p.inFlight, BatchBytes: int(b.batchBytes.bytes), Linger: b.linger.value,
		Acks: ackLevel(b.acks.value), Compression: codec(b.codec.value),
	}
}

func (p *produceFlags) addTo(settings map[string]any) {
	settings["records"], settings["producers"], settings["in_flight"], settings["keys"] = p.records, p.producers, p.inFlight, p.keys
}

func (a *app) benchProduceCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "produce [DEST]",
		Short: "Measure how fast records are taken (closed loop)",
		Long: `Measure how fast a broker takes records from producers that keep a fixed number of
them on their way. Latency then is that window divided by the rate and says little
about the broker: see bench latency.`,
		Example: `  lockstep bench produce --embedded --records 1000000 --size 1KiB
  lockstep bench produce --embedded --producers 64 --in-flight 1 --size 100B --sync os -o json`,
		ValidArgsFunction: a.completeDestinations(),
	}
	b := a.newBenchFlags(c)
	p := newProduceFlags(c.Flags())
	c.Args = b.check
	c.RunE = func(c *cobra.Command, args []string) error {
		settings := b.settings(args)
		p.addTo(settings)
		return b.run(c, settings, func(ctx context.Context, t bench.Target, progress bench.Progress) (*bench.Result, error) {
			o := b.produceOptions(p)
			o.Target, o.Destination, o.Progress, o.Settings = t, b.destination(args), progress, settings
			return bench.Produce(ctx, o)
		})
	}
	return c
}

func (a *app) benchConsumeCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "consume [DEST]",
		Short: "Measure how fast stored records are read",
		Long: `Measure how fast stored records are read from the earliest on. Without DEST a topic
is made and filled first, which is not measured: the flags about producing are for
that. Latencies are the times a reader waited for its next record.`,
		Example: `  lockstep bench consume --embedded --records 1000000 --size 1KiB
  lockstep bench consume --embedded --partitions 4 --readers 2 -o json`,
		ValidArgsFunction: a.completeDestinations(),
	}
	b := a.newBenchFlags(c)
	p := newProduceFlags(c.Flags())
	c.Flags().Lookup("records").Usage = "`number` of records to read; of a named DEST all, unless this is given"
	readers := c.Flags().Int("readers", 1, "`number` of readers, each with a connection of its own")
	readAhead := sizeFlag{}
	c.Flags().Var(&readAhead, "read-ahead", "a `size`: bytes the broker may send ahead per partition; 0 = 1MiB")
	c.Args = b.check
	c.RunE = func(c *cobra.Command, args []string) error {
		settings := b.settings(args)
		p.addTo(settings)
		settings["readers"], settings["read_ahead"] = *readers, readAhead.bytes
		return b.run(c, settings, func(ctx context.Context, t bench.Target, progress bench.Progress) (*bench.Result, error) {
			o := bench.ConsumeOptions{
				Target: t, Destination: b.destination(args), Fill: b.produceOptions(p),
				Readers: *readers, ReadAhead: int(readAhead.bytes), Progress: progress, Settings: settings,
			}
			if len(args) == 0 || c.Flags().Changed("records") {
				o.Records = p.records
			} else {
				delete(settings, "records")
			}
			return bench.Consume(ctx, o)
		})
	}
	return c
}

func (a *app) benchLatencyCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "latency [DEST]",
		Short: "Measure latency at a fixed rate (open loop)",
		Long: `Measure latency at a fixed rate. Records are due at fixed times whatever the broker
does, and every latency counts from the time its record was due until a consumer
of the same process has it, and until it was acknowledged. A stall is thereby
charged to every record that it delayed.`,
		Example: `  lockstep bench latency --embedded --rate 10000
  lockstep bench latency --embedded --rate 1000 --duration 30s --size 100B -o json`,
		ValidArgsFunction: a.completeDestinations(),
	}
	b := a.newBenchFlags(c)
	flags := c.Flags()
	rate := flags.Float64("rate", 10_000, "`number` of records per second, over all producers")
	duration, warmup := durationFlag{value: 10 * time.Second}, durationFlag{value: 2 * time.Second}
	flags.Var(&duration, "duration", "measure for a `duration`")
	flags.Var(&warmup, "warmup", "send for a `duration` before, not measured")
	producers := flags.Int("producers", 1, "`number` of producers, each with a connection and a pacing thread of its own")
	c.Args = b.check
	c.RunE = func(c *cobra.Command, args []string) error {
		settings := b.settings(args)
		settings["rate"], settings["producers"] = *rate, *producers
		settings["duration_s"], settings["warmup_s"] = duration.value.Seconds(), warmup.value.Seconds()
		return b.run(c, settings, func(ctx context.Context, t bench.Target, progress bench.Progress) (*bench.Result, error) {
			return bench.Latency(ctx, bench.LatencyOptions{
				Target: t, Destination: b.destination(args), Rate: *rate, Duration: duration.value, Warmup: warmup.value,
				Size: int(b.size.bytes), Payload: bench.Payload(b.payload.value), Producers: *producers,
				BatchBytes: int(b.batchBytes.bytes), Linger: b.linger.value,
				Acks: ackLevel(b.acks.value), Compression: codec(b.codec.value),
				Progress: progress, Settings: settings,
			})
		})
	}
	return c
}

func (a *app) benchQueueCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "queue",
		Short: "Measure a work queue: producers and a group that acknowledges every record",
		Long: `Measure a work queue: producers send to a queue that is made for the run, while the
consumers of one group take the records and acknowledge each by itself. The time counts
until the last of these acks is confirmed. Latencies are the times a consumer waited for
its next record, and the times until producers had their acknowledgement.

With --mode serial the records of one of --keys keys are handled one after the other, and
records without a key in any order. With --mode stream one consumer of each partition gets
all in order, the next one at the ack of the one before; the others stand by.`,
		Example: `  lockstep bench queue --embedded --sync os
  lockstep bench queue --embedded --mode serial --keys 10000 --consumers 8 -o json`,
	}
	b := a.newBenchFlags(c)
	p := newProduceFlags(c.Flags())
	mode := newChoice("shared", "shared", "serial", "stream")
	c.Flags().Var(mode, "mode", "how consumers share records")
	c.Args = func(c *cobra.Command, args []string) error {
		if len(args) > 0 {
			return usagef(c, "%q makes a queue of its own; leave %q away", c.CommandPath(), args[0])
		}
		return b.check(c, args)
	}
	consumers := c.Flags().Int("consumers", 4, "`number` of consumers, each with a connection of its own")
	prefetch := c.Flags().Int("prefetch", 0, "`number` of records that a broker may send ahead to a consumer; 0 = 512")
	c.RunE = func(c *cobra.Command, args []string) error {
		settings := b.settings(args)
		p.addTo(settings)
		settings["mode"], settings["consumers"], settings["prefetch"] = mode.value, *consumers, *prefetch
		modes := map[string]client.GroupMode{"shared": client.Shared, "serial": client.Serial, "stream": client.Stream}
		return b.run(c, settings, func(ctx context.Context, t bench.Target, progress bench.Progress) (*bench.Result, error) {
			o := bench.QueueOptions{Produce: b.produceOptions(p), Mode: modes[mode.value], Consumers: *consumers, Prefetch: *prefetch}
			o.Produce.Target, o.Produce.Destination, o.Produce.Progress, o.Produce.Settings = t, b.destination(args), progress, settings
			return bench.Queue(ctx, o)
		})
	}
	return c
}

func (a *app) benchRequestCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "request",
		Short: "Measure the time from a request to its reply",
		Long: `Measure the time from a request to its reply. Requesters ask one after the other, each on a
connection of its own; a server on another connection sends back what it gets. Between two
requests each sends a record to a topic of the same settings: what is printed as
acknowledged after is the time of one record alone, in the same run.`,
		Example: `  lockstep bench request --embedded --sync os
  lockstep bench request --embedded --requesters 8 --records 20000 -o json`,
	}
	b := a.newBenchFlags(c)
	records := c.Flags().Int64("records", 10_000, "`number` of requests")
	requesters := c.Flags().Int("requesters", 1, "`number` of requesters, each with a connection of its own and one request at a time")
	c.Args = func(c *cobra.Command, args []string) error {
		if len(args) > 0 {
			return usagef(c, "%q makes a queue of its own; leave %q away", c.CommandPath(), args[0])
		}
		for _, name := range []string{"acks", "compression", "linger", "batch-bytes"} {
			if c.Flags().Changed(name) {
				return usagef(c, "--%s has no place here: requests are sent one by one with the client's defaults", name)
			}
		}
		return b.check(c, args)
	}
	c.RunE = func(c *cobra.Command, args []string) error {
		settings := b.settings(args)
		settings["records"], settings["requesters"] = *records, *requesters
		return b.run(c, settings, func(ctx context.Context, t bench.Target, progress bench.Progress) (*bench.Result, error) {
			return bench.Request(ctx, bench.RequestOptions{
				Target: t, Destination: b.destination(args), Requests: *records, Size: int(b.size.bytes), Payload: bench.Payload(b.payload.value),
				Requesters: *requesters, Progress: progress, Settings: settings,
			})
		})
	}
	return c
}

// printResult writes a result for people.
func (a *app) printResult(r *bench.Result) error {
	rows := [][]string{
		{"records", formatCount(r.Records)},
		{"time", fmt.Sprintf("%.2f s", r.Seconds)},
		{"records/s", formatCount(int64(r.RecordsPerS + 0.5))},
		{"MB/s", fmt.Sprintf("%.1f", r.MBPerS)},
	}
	name := map[string]string{"produce": "acknowledged after", "consume": "waited for next", "latency": "received after", "queue": "waited for next", "request": "answered after"}[r.Benchmark]
	rows = append(rows, []string{name, latencyText(r.Latencies)})
	if r.Ack != nil {
		rows = append(rows, []string{"acknowledged after", latencyText(*r.Ack)})
	}
	if r.Lost > 0 {
		rows = append(rows, []string{"LOST", formatCount(r.Lost)})
	}
	if r.LatestSend != nil {
		rows = append(rows, []string{"behind schedule", microseconds(*r.LatestSend) + " at most"})
	}
	rows = append(rows, []string{"CPU client", fmt.Sprintf("%.2f s, %.3f µs a record", r.ClientCPUSeconds, r.ClientCPUPerRecordUs)})
	server := "not known; use --embedded or --server-http"
	if r.ServerCPUSeconds != nil && r.ServerCPUPerRecordUs != nil {
		server = fmt.Sprintf("%.2f s, %.3f µs a record", *r.ServerCPUSeconds, *r.ServerCPUPerRecordUs)
	}
	rows = append(rows, []string{"CPU server", server})
	return a.printTable([]string{"bench " + r.Benchmark, ""}, rows)
}

func latencyText(l bench.Latencies) string {
	return fmt.Sprintf("p50 %s, p99 %s, p99.9 %s, max %s",
		microseconds(l.P50Us), microseconds(l.P99Us), microseconds(l.P999Us), microseconds(l.MaxUs))
}

func microseconds(us float64) string {
	switch {
	case us >= 1e6:
		return fmt.Sprintf("%.2f s", us/1e6)
	case us >= 1e3:
		return fmt.Sprintf("%.2f ms", us/1e3)
	}
	return fmt.Sprintf("%.1f µs", us)
}
