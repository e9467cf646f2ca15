package bench

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lockstepmq/lockstep/client"
)

// LatencyOptions describe an open-loop run.
type LatencyOptions struct {
	Target
	Destination Destination
	Rate        float64       // records per second, over all producers
	Duration    time.Duration // of the measured part
	Warmup      time.Duration // sent at the same rate before it, not measured
	Size        int           // bytes of a value, at least stampSize
	Payload     Payload
	Producers   int // each with a connection and a pacing thread of its own
	BatchBytes  int
	Linger      time.Duration
	Acks        client.AckLevel
	Compression client.Codec
	Progress    Progress
	Settings    map[string]any // copied into the Result
}

// MinLatencySize is the smallest value a latency run can send, in bytes: it
// carries the stamp of the record.
const MinLatencySize = stampSize

func (o *LatencyOptions) validate() error {
	switch {
	case !(o.Rate > 0) || o.Rate > 10e6:
		return optionError("rate %v: above 0, at most 10,000,000 records per second", o.Rate)
	case o.Duration <= 0:
		return optionError("duration %v is not positive", o.Duration)
	case o.Size < stampSize:
		return optionError("size %d: a latency run needs at least %d bytes", o.Size, stampSize)
	case o.Producers < 1 || o.Producers > 64:
		return optionError("producers %d: 1 to 64", o.Producers)
	}
	return nil
}

// Every value of a latency run starts with a stamp, little-endian:
//
//	+--------+-------------------------+-----------------+----------
//	| run ID | due (ns on run's clock) | measured 0 or 1 | filler
//	+--------+-------------------------+-----------------+----------
//	0        8                         16                17
const stampSize = 17

const (
	// drainTimeout is how long a latency run waits at its end for records that
	// did not come back. What is missing then is counted as lost.
	drainTimeout = 10 * time.Second
	// readyTimeout is how long it waits for the first record of the warm-up.
	readyTimeout = 10 * time.Second
)

// Latency sends records at a fixed rate and receives them again on another
// connection of this process, so that both ends read one clock.
func Latency(ctx context.Context, o LatencyOptions) (*Result, error) {
	if err := o.validate(); err != nil {
		return nil, err
	}
	conn, err := o.connect(ctx, "admin")
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	cleanup, err := o.prepare(ctx, conn, &o.Destination)
	if err != nil {
		return nil, err
	}
	result, err := o.run(ctx)
	if cleanupErr := cleanup(); err == nil {
		err = cleanupErr
	}
	return result, err
}

// openLoop is one latency run.
type openLoop struct {
	o       *LatencyOptions
	id      uint64 // run ID
	clock   clock
	failed  *firstError
	toAck   *histogram
	toEnd   *histogram   // due until received
	total   atomic.Int64 // measured records that will be sent
	arrived atomic.Int64 // of these, received
	latest  atomic.Int64 // when the last of them was received
	lateMax atomic.Int64 // ns the schedule was missed by, at most

	first    chan struct{} // closed when the first record of this run was received
	complete chan struct{} // closed when all measured ones were

	mu   sync.Mutex
	free []*dueRecord
}

// dueRecord is a record on its way. They are used again.
type dueRecord struct {
	due  int64
	done func(client.Receipt, error)
}

func (o *LatencyOptions) run(ctx context.Context) (*Result, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var id [8]byte
	if _, err := rand.Read(id[:]); err != nil {
		return nil, err
	}
	l := &openLoop{
		o: o, id: binary.LittleEndian.Uint64(id[:]), clock: startClock(), failed: &firstError{cancel: cancel},
		toAck: newHistogram(), toEnd: newHistogram(), first: make(chan struct{}), complete: make(chan struct{}),
	}

	receiving, err := o.connect(ctx, "consume")
	if err != nil {
		return nil, err
	}
	defer receiving.Close()
	reader, err := receiving.Reader(ctx, o.Destination.Name, client.FromLatest())
	if err != nil {
		return nil, err
	}
	defer reader.Close()
	producers := make([]*client.Producer, o.Producers)
	for i := range producers {
		conn, err := o.connect(ctx, "produce")
		if err != nil {
			return nil, err
		}
		defer conn.Close()
		producers[i], err = conn.Producer(ctx, o.Destination.Name,
			client.Linger(o.Linger), client.BatchBytes(o.BatchBytes), client.Acks(o.Acks), client.Compression(o.Compression))
		if err != nil {
			return nil, err
		}
	}

	receiveCtx, stopReceiving := context.WithCancel(ctx)
	defer stopReceiving()
	var receiver sync.WaitGroup
	receiver.Go(func() { l.failed.set(l.receive(receiveCtx, reader)) })
	defer receiver.Wait()
	defer stopReceiving()

	if err := l.meet(ctx, producers); err != nil {
		return nil, err
	}
	return l.measure(ctx, producers)
}

// meet sends single records until one of them arrives: then the reader's links
// are open, and everything sent afterwards will come back.
func (l *openLoop) meet(ctx context.Context, producers []*client.Producer) error {
	deadline := time.NewTimer(readyTimeout)
	defer deadline.Stop()
	value := make([]byte, l.o.Size)
	for {
		for _, p := range producers {
			l.stamp(value, l.clock.now(), false)
			if _, err := p.Send(ctx, &client.Record{Value: value}); err != nil {
				return err
			}
		}
		pause := time.NewTimer(50 * time.Millisecond)
		select {
		case <-l.first:
			pause.Stop()
			return nil
		case <-pause.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-deadline.C:
			return errors.New("records were acknowledged but did not reach the reader")
		}
	}
}

// measure runs warm-up and schedule and collects the result.
func (l *openLoop) measure(ctx context.Context, producers []*client.Producer) (*Result, error) {
	o := l.o
	pace := pacer{rate: o.Rate / float64(o.Producers)}
	warmup, measured := pace.count(o.Warmup), pace.count(o.Duration)
	total := measured * int64(o.Producers)
	l.total.Store(total)
	stopReport := report(o.Progress, "latency", total, l.arrived.Load)
	defer stopReport()

	begin := l.clock.now() + int64(10*time.Millisecond)
	measureFrom := begin + pace.due(warmup)
	var senders sync.WaitGroup
	for i, p := range producers {
		offset := int64(float64(i) / o.Rate * 1e9) // producers take turns
		senders.Go(func() { l.failed.set(l.send(ctx, p, pace, begin+offset, warmup, warmup+measured)) })
	}
	select {
	case <-time.After(time.Duration(measureFrom - l.clock.now())):
	case <-ctx.Done():
	}
	use := o.startMeters(ctx)
	senders.Wait()
	for _, p := range producers {
		l.failed.set(p.Flush(ctx))
	}
	select {
	case <-l.complete:
	case <-ctx.Done():
	case <-time.After(drainTimeout):
	}
	used := use.stop(context.WithoutCancel(ctx))
	if err := l.failed.get(); err != nil {
		return nil, err
	}
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	elapsed := max(float64(l.latest.Load()-measureFrom)/1e9, o.Duration.Seconds())

	late := round(float64(l.lateMax.Load())/1e3, 2)
	ack := l.toAck.latencies()
	result := &Result{
		Benchmark: "latency", Records: l.arrived.Load(), Seconds: elapsed,
		Bytes: l.arrived.Load() * int64(o.Size), Latencies: l.toEnd.latencies(), Ack: &ack,
		Lost: total - l.arrived.Load(), LatestSend: &late, Settings: o.Settings,
	}
	result.finish(used)
	return result, nil
}

// send sends records [0, total) when they are due; those from measureFrom on
// are measured. If it falls behind it sends without pause until it has caught
// up, and the records carry the times at which they were due.
func (l *openLoop) send(ctx context.Context, p *client.Producer, pace pacer, begin, measureFrom, total int64) error {
	lockPacingThread()
	values := makePayloads(l.o.Payload, l.o.Size)
	var record client.Record
	for i := range total {
		due := begin + pace.due(i)
		l.clock.sleepUntil(due)
		if i >= measureFrom {
			l.late(l.clock.now() - due)
		}
		record.Value = values[i%payloadVariants]
		l.stamp(record.Value, due, i >= measureFrom)
		if err := p.SendFunc(ctx, &record, l.onTheWay(due, i >= measureFrom)); err != nil {
			return err
		}
	}
	return nil
}

// late remembers the furthest the schedule was missed by.
func (l *openLoop) late(ns int64) {
	for {
		most := l.lateMax.Load()
		if ns <= most || l.lateMax.CompareAndSwap(most, ns) {
			return
		}
	}
}

func (l *openLoop) stamp(value []byte, due int64, measured bool) {
	binary.LittleEndian.PutUint64(value, l.id)
	binary.LittleEndian.PutUint64(value[8:], uint64(due))
	value[16] = 0
	if measured {
		value[16] = 1
	}
}

// onTheWay returns the callback for a record that was due at the given time.
func (l *openLoop) onTheWay(due int64, measured bool) func(client.Receipt, error) {
	if !measured {
		return func(_ client.Receipt, err error) { l.failed.set(err) }
	}
	l.mu.Lock()
	var r *dueRecord
	if n := len(l.free); n > 0 {
		r, l.free = l.free[n-1], l.free[:n-1]
	}
	l.mu.Unlock()
	if r == nil {
		r = &dueRecord{}
		r.done = func(_ client.Receipt, err error) {
			if err != nil {
				l.failed.set(err)
				return
			}
			l.toAck.record(l.clock.now() - r.due)
			l.mu.Lock()
			l.free = append(l.free, r)
			l.mu.Unlock()
		}
	}
	r.due = due
	return r.done
}

// receive takes the time of every record of this run until ctx ends.
func (l *openLoop) receive(ctx context.Context, reader *client.Reader) error {
	met := false
	for {
		record, err := reader.Next(ctx)
		if ctx.Err() != nil || errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if len(record.Value) < stampSize || binary.LittleEndian.Uint64(record.Value) != l.id {
			continue // another run's
		}
		if !met {
			met = true
			close(l.first)
		}
		if record.Value[16] == 1 {
			now := l.clock.now()
			l.toEnd.record(now - int64(binary.LittleEndian.Uint64(record.Value[8:])))
			l.latest.Store(now)
			if l.arrived.Add(1) == l.total.Load() {
				close(l.complete)
			}
		}
	}
}
