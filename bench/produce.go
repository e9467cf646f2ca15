package bench

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lockstepmq/lockstep/client"
)

// ProduceOptions describe a closed-loop produce run.
type ProduceOptions struct {
	Target
	Destination Destination
	Records     int64 // in total, over all producers
	Size        int   // bytes of a value
	Keys        int   // number of different keys; 0 = records without a key
	Payload     Payload
	Producers   int // each with a connection of its own
	InFlight    int // records outstanding per producer
	BatchBytes  int // bytes of a full batch
	Linger      time.Duration
	Acks        client.AckLevel
	Compression client.Codec
	// PartitionEach gives every producer a partition of its own, as far as there
	// are partitions.
	PartitionEach bool
	Progress      Progress
	Settings      map[string]any // copied into the Result
}

func (o *ProduceOptions) validate() error {
	switch {
	case o.Records < 1:
		return optionError("records %d: at least 1", o.Records)
	case o.Size < 0:
		return optionError("size %d is negative", o.Size)
	case o.Producers < 1 || o.Producers > 4096:
		return optionError("producers %d: 1 to 4096", o.Producers)
	case o.InFlight < 1 || o.InFlight > 1<<20:
		return optionError("in-flight %d: 1 to %d records", o.InFlight, 1<<20)
	case o.Keys < 0:
		return optionError("keys %d is negative", o.Keys)
	}
	return nil
}

// Produce sends Records records as fast as the window of outstanding records
// allows. Latencies are taken from sending a record to its acknowledgement; with
// large windows of one record in latencySampling.
func Produce(ctx context.Context, o ProduceOptions) (*Result, error) {
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
	result, err := o.run(ctx, "produce")
	if cleanupErr := cleanup(); err == nil {
		err = cleanupErr
	}
	return result, err
}

// run measures one produce run into an existing destination.
func (o *ProduceOptions) run(ctx context.Context, phase string) (*Result, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	failed := &firstError{cancel: cancel}
	senders := make([]*sender, 0, o.Producers)
	defer func() {
		for _, s := range senders {
			s.conn.Close()
		}
	}()
	for i := range o.Producers {
		share := o.Records / int64(o.Producers)
		if int64(i) < o.Records%int64(o.Producers) {
			share++
		}
		s, err := o.newSender(ctx, i, share, failed)
		if err != nil {
			return nil, err
		}
		senders = append(senders, s)
	}
	acknowledged := func() (n int64) {
		for _, s := range senders {
			n += s.acknowledged.Load()
		}
		return n
	}

	stopReport := report(o.Progress, phase, o.Records, acknowledged)
	use := o.startMeters(ctx)
	started := startClock()
	var running sync.WaitGroup
	for _, s := range senders {
		running.Go(func() { failed.set(s.run(ctx, started)) })
	}
	running.Wait()
	elapsed := started.seconds()
	used := use.stop(ctx)
	stopReport()
	if err := failed.get(); err != nil {
		return nil, err
	}

	result := &Result{Benchmark: "produce", Records: acknowledged(), Seconds: elapsed, Settings: o.Settings}
	latencies := newHistogram()
	for _, s := range senders {
		result.Bytes += s.bytes
		latencies.merge(s.latencies)
	}
	result.Latencies = latencies.latencies()
	result.finish(used)
	return result, nil
}

const (
	// latencySampling is the distance of records whose latency is taken when the
	// window is large. Reading the clock twice for each would cost a quarter of the
	// client's time. Prime, so that it does not fall in step with batches.
	latencySampling = 13
	// sampleAllBelow is the window, in records, below which every latency is taken.
	sampleAllBelow = 64
)

// sender is one producer with its connection and its window.
type sender struct {
	conn     *client.Conn
	producer *client.Producer
	share    int64 // records to send
	values   [][]byte
	keys     [][]byte
	sampling int64
	bytes    int64 // sent; owned by run

	window       int64
	resume       int64         // run goes on when so few are outstanding
	wake         chan struct{} // capacity 1
	outstanding  atomic.Int64
	acknowledged atomic.Int64
	failed       *firstError
	latencies    *histogram
	started      clock

	mu   sync.Mutex
	free []*sample
}

// sample is a record whose latency is taken. Samples are used again, so that
// sending allocates nothing.
type sample struct {
	sent int64
	done func(client.Receipt, error)
}

func (o *ProduceOptions) newSender(ctx context.Context, number int, share int64, failed *firstError) (*sender, error) {
	conn, err := o.connect(ctx, "produce")
	if err != nil {
		return nil, err
	}
	options := []client.ProducerOption{
		client.Linger(o.Linger), client.BatchBytes(o.BatchBytes), client.Acks(o.Acks), client.Compression(o.Compression),
		client.MaxBufferedRecords(int64(o.InFlight) + 1),
	}
	if o.PartitionEach {
		options = append(options, client.Partition(uint32(number)%max(1, o.Destination.Settings.Partitions)))
	}
	producer, err := conn.Producer(ctx, o.Destination.Name, options...)
	if err != nil {
		conn.Close()
		return nil, err
	}
	s := &sender{
		conn: conn, producer: producer, share: share,
		values: makePayloads(o.Payload, o.Size), keys: makeKeys(o.Keys),
		sampling: latencySampling,
		window:   int64(o.InFlight), resume: int64(o.InFlight) - max(1, int64(o.InFlight)/4),
		wake: make(chan struct{}, 1), failed: failed, latencies: newHistogram(),
	}
	if o.InFlight < sampleAllBelow {
		s.sampling = 1
	}
	return s, nil
}

// run sends the sender's share and waits until all of it is acknowledged.
func (s *sender) run(ctx context.Context, started clock) error {
	s.started = started
	if s.window == 1 {
		return s.oneByOne(ctx)
	}
	var record client.Record
	plain := s.answered
	for i := range s.share {
		if s.outstanding.Load() >= s.window {
			if err := s.waitForRoom(ctx); err != nil {
				return err
			}
		}
		record.Value = s.values[i%payloadVariants]
		if len(s.keys) > 0 {
			record.Key = s.keys[i%int64(len(s.keys))]
		}
		s.bytes += int64(len(record.Key) + len(record.Value))
		s.outstanding.Add(1)
		done := plain
		if i%s.sampling == 0 {
			done = s.sample().done
		}
		if err := s.producer.SendFunc(ctx, &record, done); err != nil {
			return err
		}
	}
	if err := s.producer.Flush(ctx); err != nil {
		return err
	}
	return s.failed.get()
}

// oneByOne sends the share with one record outstanding, as an application would
// that cannot go on before.
func (s *sender) oneByOne(ctx context.Context) error {
	var record client.Record
	for i := range s.share {
		record.Value = s.values[i%payloadVariants]
		if len(s.keys) > 0 {
			record.Key = s.keys[i%int64(len(s.keys))]
		}
		s.bytes += int64(len(record.Key) + len(record.Value))
		sent := s.started.now()
		if _, err := s.producer.Send(ctx, &record); err != nil {
			return err
		}
		s.latencies.record(s.started.now() - sent)
		s.acknowledged.Add(1)
	}
	return nil
}

// waitForRoom waits until a quarter of the window is free.
func (s *sender) waitForRoom(ctx context.Context) error {
	for s.outstanding.Load() > s.resume {
		select {
		case <-s.wake:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// answered is the callback of every record.
func (s *sender) answered(_ client.Receipt, err error) {
	if err != nil {
		s.failed.set(err)
	} else {
		s.acknowledged.Add(1)
	}
	if s.outstanding.Add(-1) == s.resume {
		select {
		case s.wake <- struct{}{}:
		default:
		}
	}
}

// sample takes a free sample and stamps it.
func (s *sender) sample() *sample {
	s.mu.Lock()
	var p *sample
	if n := len(s.free); n > 0 {
		p, s.free = s.free[n-1], s.free[:n-1]
	}
	s.mu.Unlock()
	if p == nil {
		p = &sample{}
		p.done = func(r client.Receipt, err error) {
			if err == nil {
				s.latencies.record(s.started.now() - p.sent)
			}
			s.mu.Lock()
			s.free = append(s.free, p)
			s.mu.Unlock()
			s.answered(r, err)
		}
	}
	p.sent = s.started.now()
	return p
}
