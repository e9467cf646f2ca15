package bench

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/lockstepmq/lockstep/client"
	"github.com/lockstepmq/lockstep/wire"
)

// Figure is what a workload found that is no rate: what a broker needs to come
// back, and to stand there with nothing to do.
type Figure struct {
	Name  string  `json:"name"`
	Unit  string  `json:"unit"` // s, bytes, or ms/s: milliseconds of CPU time in a second
	Value float64 `json:"value"`
	// Goal is what Value is meant to be at most. 0: there is none, or the workload
	// was scaled, and what it is meant for is the whole one.
	Goal float64 `json:"goal,omitempty"`
}

// Units of figures.
const (
	UnitSeconds = "s"
	UnitBytes   = "bytes"
	UnitCPU     = "ms/s"
)

// The goals of docs/performance.md.
const (
	goalStart          = 2         // seconds
	goalIdlePartitions = 200 << 20 // bytes
	goalIdleClients    = 50 << 20  // bytes
)

const (
	// readyInterval is the time between two looks at whether all partitions serve:
	// how exact a start is measured.
	readyInterval = 2 * time.Millisecond
	// serveTimeout bounds the wait for partitions of a broker that says it is ready.
	serveTimeout = time.Minute
)

// stand measures the figures of a broker that runs for this alone.
func (w Workload) stand(ctx context.Context, broker *Running, progress Progress) ([]Figure, error) {
	switch w.kind {
	case restartWorkload:
		return w.restart(ctx, broker, progress)
	case idlePartitionsWorkload:
		return w.idlePartitions(ctx, broker, progress)
	default:
		return w.idleClients(ctx, broker, progress)
	}
}

// restart stops a broker that holds data cleanly, then kills it, and measures each
// time how long it takes from the start of its process until every partition has a
// leader and all its records.
func (w Workload) restart(ctx context.Context, broker *Running, progress Progress) ([]Figure, error) {
	d := w.destination()
	fill := ProduceOptions{
		Target: broker.Target, Destination: d, Records: w.records, Size: w.size, Payload: PayloadRandom,
		Acks: client.AcksQuorum, Producers: w.producers, InFlight: w.inFlight, BatchBytes: 64 << 10, PartitionEach: true,
		Progress: progress,
	}
	if err := fill.validate(); err != nil {
		return nil, err
	}
	err := broker.with(ctx, func(conn *client.Conn) error {
		_, err := conn.CreateDestination(ctx, client.Destination{Name: d.Name, Kind: client.Topic, Settings: d.Settings})
		return err
	})
	if err != nil {
		return nil, err
	}
	if _, err := fill.run(ctx, "fill"); err != nil {
		return nil, err
	}
	figures := []Figure{
		{Name: "clean_start", Unit: UnitSeconds, Goal: goalStart},
		{Name: "killed_start", Unit: UnitSeconds, Goal: goalStart},
	}
	for i, kill := range []bool{false, true} {
		started, err := broker.Restart(ctx, kill)
		if err != nil {
			return nil, err
		}
		if err := broker.awaitPartitions(ctx, d.Name, w.records); err != nil {
			return nil, err
		}
		figures[i].Value = round(time.Since(started).Seconds(), 3)
	}
	return figures, nil
}

// idlePartitions writes to every partition once, leaves them alone and looks at
// the broker's memory and CPU time.
func (w Workload) idlePartitions(ctx context.Context, broker *Running, progress Progress) ([]Figure, error) {
	d := w.destination()
	err := broker.with(ctx, func(conn *client.Conn) error {
		if _, err := conn.CreateDestination(ctx, client.Destination{Name: d.Name, Kind: client.Topic, Settings: d.Settings}); err != nil {
			return err
		}
		record := client.Record{Value: makePayloads(PayloadRandom, w.size)[0]}
		for i := range w.partitions {
			p, err := conn.Producer(ctx, d.Name, client.Partition(i))
			if err != nil {
				return err
			}
			_, err = p.Send(ctx, &record)
			if err = errors.Join(err, p.Close(ctx)); err != nil {
				return fmt.Errorf("write to partition %d: %w", i, err)
			}
			if progress != nil {
				progress("fill", int64(i+1), int64(w.partitions))
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	cpu, resident, err := broker.atRest(ctx, w.duration)
	if err != nil {
		return nil, err
	}
	return []Figure{{Name: "resident", Unit: UnitBytes, Value: float64(resident), Goal: goalIdlePartitions}, cpu}, nil
}

// idleClients connects clients that do nothing but answer for being alive, and
// looks at what the broker's memory grows by and at its CPU time.
func (w Workload) idleClients(ctx context.Context, broker *Running, progress Progress) ([]Figure, error) {
	_, before, err := broker.atRest(ctx, w.duration/5)
	if err != nil {
		return nil, err
	}
	conns := make([]*client.Conn, 0, w.clients)
	defer func() {
		for _, c := range conns {
			c.Close()
		}
	}()
	for range w.clients {
		c, err := broker.connect(ctx, "idle")
		if err != nil {
			return nil, fmt.Errorf("idle client %d of %d: %w", len(conns)+1, w.clients, err)
		}
		conns = append(conns, c)
		if progress != nil {
			progress("connect", int64(len(conns)), int64(w.clients))
		}
	}
	cpu, after, err := broker.atRest(ctx, w.duration)
	if err != nil {
		return nil, err
	}
	return []Figure{{Name: "resident_growth", Unit: UnitBytes, Value: float64(after - before), Goal: goalIdleClients}, cpu}, nil
}

// destination is what a workload of this kind fills.
func (w Workload) destination() Destination {
	return Destination{Name: "bench-" + w.Name, Settings: client.Settings{Partitions: w.partitions, Sync: w.sync}}
}

// with calls f with a connection that is closed afterwards.
func (t Target) with(ctx context.Context, f func(*client.Conn) error) error {
	conn, err := t.connect(ctx, "admin")
	if err != nil {
		return err
	}
	return errors.Join(f(conn), conn.Close())
}

// awaitPartitions returns when every partition serves and the destination holds
// so many records. One that is fenced, or records that are lost, are an error.
func (t Target) awaitPartitions(ctx context.Context, name string, records int64) error {
	ctx, cancel := context.WithTimeoutCause(ctx, serveTimeout, fmt.Errorf("not every partition of %s served within %s", name, serveTimeout))
	defer cancel()
	return t.with(ctx, func(conn *client.Conn) error {
		for {
			d, err := conn.Destination(ctx, name)
			if err != nil {
				return err
			}
			serving, stored := 0, int64(0)
			for _, p := range d.Partitions {
				switch p.State {
				case wire.PartitionFenced:
					return fmt.Errorf("partition %s/%d does not serve after the restart: %s", name, p.Number, p.Problem)
				case wire.PartitionActive:
					serving++
					stored += int64(p.NextOffset - p.StartOffset)
				}
			}
			if serving == len(d.Partitions) {
				if stored != records {
					return fmt.Errorf("%s has %d records after the restart, of %d that were acknowledged", name, stored, records)
				}
				return nil
			}
			if err := sleep(ctx, readyInterval); err != nil {
				return err
			}
		}
	})
}

// atRest leaves the broker alone for a fifth of the duration, so that what came
// before is over, and then measures its CPU time over the duration. Its resident
// memory, in bytes, is as of the end.
func (t Target) atRest(ctx context.Context, duration time.Duration) (cpu Figure, resident int64, err error) {
	if t.ServerCPU == nil || t.ServerResident == nil {
		return Figure{}, 0, errors.New("the broker's CPU time and memory are not known")
	}
	if err := sleep(ctx, duration/5); err != nil {
		return Figure{}, 0, err
	}
	from, err := t.ServerCPU(ctx)
	if err != nil {
		return Figure{}, 0, err
	}
	started := startClock()
	if err := sleep(ctx, duration); err != nil {
		return Figure{}, 0, err
	}
	to, err := t.ServerCPU(ctx)
	if err != nil {
		return Figure{}, 0, err
	}
	cpu = Figure{Name: "cpu_at_rest", Unit: UnitCPU, Value: round((to-from)*1e3/started.seconds(), 2)}
	resident, err = t.ServerResident()
	return cpu, resident, err
}

// sleep returns early with the context's error.
func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
