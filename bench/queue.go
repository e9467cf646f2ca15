package bench

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lockstepmq/lockstep/client"
)

// QueueOptions describe a work queue: producers and the consumers of one group, at once.
type QueueOptions struct {
	// Produce is what is sent, and its Target where to. The queue is made for the run.
	Produce   ProduceOptions
	Mode      client.GroupMode
	Consumers int // each with a connection of its own
	Prefetch  int // records per consumer; 0 = the client's default
}

func (o *QueueOptions) validate() error {
	switch {
	case o.Consumers < 1 || o.Consumers > 4096:
		return optionError("consumers %d: 1 to 4096", o.Consumers)
	case o.Prefetch < 0:
		return optionError("prefetch %d is negative", o.Prefetch)
	}
	return o.Produce.validate()
}

// queueDrainTimeout is how long a queue run waits for acks to be confirmed once all
// records were handed out.
const queueDrainTimeout = 30 * time.Second

// Queue sends Records records and lets the consumers acknowledge each one by itself. The
// time counts from the first record sent to the last ack confirmed. Its latencies are
// the times a consumer waited for its next record, of one in latencySampling; Ack is how
// long producers waited for theirs.
func Queue(ctx context.Context, o QueueOptions) (*Result, error) {
	if err := o.validate(); err != nil {
		return nil, err
	}
	p := &o.Produce
	conn, err := p.connect(ctx, "admin")
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	p.Destination.Kind = client.Queue
	cleanup, err := p.prepare(ctx, conn, &p.Destination)
	if err != nil {
		return nil, err
	}
	result, err := o.run(ctx)
	if cleanupErr := cleanup(); err == nil {
		err = cleanupErr
	}
	return result, err
}

// worker is one consumer of the group. Padded: each writes for every record.
type worker struct {
	consumer *client.Consumer
	bytes    int64
	_        [48]byte
}

func (o *QueueOptions) run(ctx context.Context) (*Result, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	failed := &firstError{cancel: cancel}
	options := []client.ConsumerOption{client.Group("bench"), client.Mode(o.Mode), client.Binding(client.Gather)}
	if o.Prefetch > 0 {
		options = append(options, client.Prefetch(o.Prefetch))
	}
	workers := make([]worker, o.Consumers)
	for i := range workers {
		conn, err := o.Produce.connect(ctx, "queue")
		if err != nil {
			return nil, err
		}
		defer conn.Close()
		if workers[i].consumer, err = conn.Consumer(ctx, o.Produce.Destination.Name, options...); err != nil {
			return nil, err
		}
	}
	total := o.Produce.Records
	var done atomic.Int64
	handling, enough := context.WithCancelCause(ctx)
	defer enough(nil)
	waits := newHistogram()
	use := o.Produce.startMeters(ctx)
	started := startClock()
	var running sync.WaitGroup
	for i := range workers {
		running.Go(func() {
			err := workers[i].work(handling, waits, started, func() {
				if done.Add(1) == total {
					enough(errEnough)
				}
			})
			if !errors.Is(context.Cause(handling), errEnough) {
				failed.set(err)
				enough(err)
			}
		})
	}
	stopReport := report(o.Produce.Progress, "queue", total, done.Load)
	o.Produce.Progress = nil
	produced, err := o.Produce.run(ctx, "queue")
	failed.set(err)
	if err != nil {
		enough(err)
	}
	running.Wait()
	if err := failed.get(); err != nil {
		stopReport()
		return nil, err
	}
	confirmed, cancelConfirmed := context.WithTimeout(ctx, queueDrainTimeout)
	defer cancelConfirmed()
	for i := range workers {
		running.Go(func() { failed.set(workers[i].consumer.Close(confirmed)) })
	}
	running.Wait()
	elapsed := started.seconds()
	used := use.stop(ctx)
	stopReport()
	if err := failed.get(); err != nil {
		return nil, err
	}
	result := &Result{
		Benchmark: "queue", Records: done.Load(), Seconds: elapsed, Settings: o.Produce.Settings,
		Latencies: waits.latencies(), Ack: &produced.Latencies,
	}
	for i := range workers {
		result.Bytes += workers[i].bytes
	}
	result.finish(used)
	return result, nil
}

// work takes records and acknowledges each, until ctx ends or an error.
func (w *worker) work(ctx context.Context, waits *histogram, started clock, done func()) error {
	for n := int64(1); ; n++ {
		sampled := n%latencySampling == 0
		var before int64
		if sampled {
			before = started.now()
		}
		d, err := w.consumer.Next(ctx)
		if err != nil {
			return err
		}
		if sampled {
			waits.record(started.now() - before)
		}
		w.bytes += int64(len(d.Key) + len(d.Value))
		if err := d.Ack(); err != nil {
			return err
		}
		done()
	}
}
