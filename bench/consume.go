package bench

import (
	"context"
	"errors"
	"io"
	"sync"
	"sync/atomic"

	"github.com/lockstepmq/lockstep/client"
)

// ConsumeOptions describe a replay.
type ConsumeOptions struct {
	Target
	// Destination is what is read. If its Name is empty, a topic is made and
	// filled with Fill first, which is not measured.
	Destination Destination
	Fill        ProduceOptions // Records, Size and so on; Target and Destination are ignored
	Records     int64          // stop after so many; 0 = all that is stored at the start
	Readers     int            // each with a connection of its own; partitions are dealt out among them
	ReadAhead   int            // bytes per partition; 0 = the client's default
	Progress    Progress
	Settings    map[string]any // copied into the Result
}

func (o *ConsumeOptions) validate() error {
	switch {
	case o.Records < 0:
		return optionError("records %d is negative", o.Records)
	case o.Readers < 1:
		return optionError("readers %d: at least 1", o.Readers)
	}
	return nil
}

// Consume reads from the earliest record on. Its latencies are the times an
// application waited for its next record, of one record in latencySampling.
func Consume(ctx context.Context, o ConsumeOptions) (*Result, error) {
	if err := o.validate(); err != nil {
		return nil, err
	}
	conn, err := o.connect(ctx, "admin")
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	fill := o.Destination.Name == ""
	cleanup := func() error { return nil }
	if fill {
		if err := o.Fill.validate(); err != nil {
			return nil, err
		}
		if cleanup, err = o.prepare(ctx, conn, &o.Destination); err != nil {
			return nil, err
		}
	}
	result, err := o.fillAndRun(ctx, conn, fill)
	if cleanupErr := cleanup(); err == nil {
		err = cleanupErr
	}
	return result, err
}

func (o *ConsumeOptions) fillAndRun(ctx context.Context, conn *client.Conn, fill bool) (*Result, error) {
	if fill {
		o.Fill.Target, o.Fill.Destination, o.Fill.Progress = o.Target, o.Destination, o.Progress
		if _, err := o.Fill.run(ctx, "fill"); err != nil {
			return nil, err
		}
	}
	info, err := conn.Destination(ctx, o.Destination.Name)
	if err != nil {
		return nil, err
	}
	var stored int64
	partitions := make([][]uint32, min(o.Readers, len(info.Partitions)))
	for i, p := range info.Partitions {
		stored += int64(p.NextOffset - p.StartOffset)
		r := i % len(partitions)
		partitions[r] = append(partitions[r], p.Number)
	}
	total := stored
	if o.Records > 0 {
		total = min(stored, o.Records)
	}
	return o.run(ctx, partitions, total)
}

// readCount is what one reader has read. Padded: each is written for every record.
type readCount struct {
	records atomic.Int64
	bytes   int64
	_       [48]byte
}

// run reads total records, each reader its list of partitions.
func (o *ConsumeOptions) run(ctx context.Context, partitions [][]uint32, total int64) (*Result, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	failed := &firstError{cancel: cancel}
	conns := make([]*client.Conn, len(partitions))
	defer func() {
		for _, c := range conns {
			if c != nil {
				c.Close()
			}
		}
	}()
	for i := range conns {
		var err error
		if conns[i], err = o.connect(ctx, "consume"); err != nil {
			return nil, err
		}
	}
	counts := make([]readCount, len(partitions))
	read := func() (n int64) {
		for i := range counts {
			n += counts[i].records.Load()
		}
		return n
	}
	waits := newHistogram()

	stopReport := report(o.Progress, "consume", total, read)
	use := o.startMeters(ctx)
	started := startClock()
	var running sync.WaitGroup
	for i := range partitions {
		running.Go(func() {
			enough := int64(-1)
			if o.Records > 0 {
				enough = total
			}
			err := o.read(ctx, conns[i], partitions[i], &counts[i], waits, started, func() bool {
				return enough >= 0 && (len(counts) == 1 && counts[i].records.Load() >= enough || len(counts) > 1 && read() >= enough)
			})
			if errors.Is(err, errEnough) {
				cancel(errEnough)
				return
			}
			if !errors.Is(context.Cause(ctx), errEnough) {
				failed.set(err)
			}
		})
	}
	running.Wait()
	elapsed := started.seconds()
	used := use.stop(context.WithoutCancel(ctx))
	stopReport()
	if err := failed.get(); err != nil {
		return nil, err
	}
	result := &Result{Benchmark: "consume", Records: read(), Seconds: elapsed, Settings: o.Settings, Latencies: waits.latencies()}
	for i := range counts {
		result.Bytes += counts[i].bytes
	}
	result.finish(used)
	return result, nil
}

// errEnough ends all readers once the number of records asked for was read.
var errEnough = errors.New("read enough")

// read reads its partitions to their end, or until enough.
func (o *ConsumeOptions) read(ctx context.Context, conn *client.Conn, partitions []uint32, count *readCount,
	waits *histogram, started clock, enough func() bool) error {
	opts := []client.ReaderOption{client.FromEarliest(), client.Partitions(partitions...), client.StopAtEnd()}
	if o.ReadAhead > 0 {
		opts = append(opts, client.ReadAhead(o.ReadAhead))
	}
	reader, err := conn.Reader(ctx, o.Destination.Name, opts...)
	if err != nil {
		return err
	}
	defer reader.Close()
	for n := int64(1); ; n++ {
		sampled := n%latencySampling == 0
		var before int64
		if sampled {
			before = started.now()
		}
		record, err := reader.Next(ctx)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if sampled {
			waits.record(started.now() - before)
		}
		count.bytes += int64(len(record.Key) + len(record.Value))
		count.records.Store(n)
		if enough() {
			return errEnough
		}
	}
}
