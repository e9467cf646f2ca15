package bench

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"

	"github.com/lockstepmq/lockstep/client"
)

// RequestOptions describe requests and their replies, one after the other.
type RequestOptions struct {
	Target
	Destination Destination
	Requests    int64 // of all requesters together
	Size        int   // bytes of a request, and of its reply
	Payload     Payload
	Requesters  int // each with a connection of its own and one request at a time
	Progress    Progress
	Settings    map[string]any // copied into the Result
}

func (o *RequestOptions) validate() error {
	switch {
	case o.Requests < 1:
		return optionError("requests %d: at least 1", o.Requests)
	case o.Requesters < 1 || o.Requesters > 4096:
		return optionError("requesters %d: 1 to 4096", o.Requesters)
	case o.Size < 1:
		return optionError("size %d: at least 1 byte", o.Size)
	}
	return nil
}

// Request measures the time from a request until its reply: a record to a queue, to a
// server on another connection, which sends it back, and the reply to a temporary queue.
// Between requests each requester sends one record to a topic of the same settings and
// waits for the acknowledgement: Ack is what that takes in the same run.
func Request(ctx context.Context, o RequestOptions) (*Result, error) {
	if err := o.validate(); err != nil {
		return nil, err
	}
	conn, err := o.connect(ctx, "admin")
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	o.Destination.Kind = client.Queue
	alone := Destination{Kind: client.Topic, Settings: o.Destination.Settings}
	var cleanups []func() error
	for _, d := range []*Destination{&o.Destination, &alone} {
		cleanup, prepareErr := o.prepare(ctx, conn, d)
		if err = prepareErr; err != nil {
			break
		}
		cleanups = append(cleanups, cleanup)
	}
	var result *Result
	if err == nil {
		result, err = o.run(ctx, alone.Name)
	}
	for _, cleanup := range cleanups {
		err = errors.Join(err, cleanup())
	}
	return result, err
}

func (o *RequestOptions) run(ctx context.Context, alone string) (*Result, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	failed := &firstError{cancel: cancel}
	server, err := o.connect(ctx, "server")
	if err != nil {
		return nil, err
	}
	defer server.Close()
	serving, stop := context.WithCancel(ctx)
	var running sync.WaitGroup
	defer running.Wait()
	defer stop()
	running.Go(func() {
		err := server.Serve(serving, o.Destination.Name, func(_ context.Context, d *client.Delivery) (*client.Record, error) {
			return &client.Record{Value: d.Value}, nil
		})
		if serving.Err() == nil {
			failed.set(err)
		}
	})
	conns := make([]*client.Conn, o.Requesters)
	for i := range conns {
		if conns[i], err = o.connect(ctx, "requester"); err != nil {
			return nil, err
		}
		defer conns[i].Close()
	}
	value := makePayloads(o.Payload, o.Size)[0]
	answered, acked := newHistogram(), newHistogram()
	var done atomic.Int64
	var begun atomic.Int64
	exchange := func(conn *client.Conn, clock clock, toReply, toAck *histogram) error {
		before := clock.now()
		if _, err := conn.Request(ctx, o.Destination.Name, &client.Record{Value: value}); err != nil {
			return err
		}
		between := clock.now()
		if _, err := conn.Send(ctx, alone, &client.Record{Value: value}); err != nil {
			return err
		}
		toReply.record(between - before)
		toAck.record(clock.now() - between)
		return nil
	}
	started := startClock()
	for _, conn := range conns { // opens all that stays open
		if err := exchange(conn, started, newHistogram(), newHistogram()); err != nil {
			return nil, err
		}
	}
	use := o.startMeters(ctx)
	stopReport := report(o.Progress, "request", o.Requests, done.Load)
	started = startClock()
	var requesters sync.WaitGroup
	for _, conn := range conns {
		requesters.Go(func() {
			for failed.get() == nil && begun.Add(1) <= o.Requests {
				if err := exchange(conn, started, answered, acked); err != nil {
					failed.set(err)
					return
				}
				done.Add(1)
			}
		})
	}
	requesters.Wait()
	elapsed := started.seconds()
	used := use.stop(ctx)
	stopReport()
	if err := failed.get(); err != nil {
		return nil, err
	}
	ack := acked.latencies()
	result := &Result{
		Benchmark: "request", Records: done.Load(), Bytes: done.Load() * int64(2*len(value)), Seconds: elapsed, Settings: o.Settings,
		Latencies: answered.latencies(), Ack: &ack,
	}
	result.finish(used)
	return result, nil
}
