// Package bench is the load generator. It is a black box that talks to a broker
// through package client only, as any application would, and reports what an
// application would see: records per second, latencies, CPU seconds of both sides.
//
// Four measurements. Produce runs producers in a closed loop, each with a fixed
// number of records outstanding: it finds the throughput, and its latencies are
// only the window divided by the rate. Consume replays what is stored. Latency
// runs an open loop: records are due at fixed times whatever the broker does,
// and every latency counts from the time a record was due, so that a stall is
// charged to all records it delayed and not only to the one that was under way. Queue
// runs producers and the consumers of a group, which acknowledge every record, at once.
//
// Each takes a context, connects, creates what it needs, measures and returns a
// Result. Cancelling the context ends it early with the context's error.
// Some named workloads find figures instead, see Figure: what a broker needs to
// start, and what it uses at rest.
//
// Where a destination was not named, a topic of a fresh name is made for the run
// and removed after it.
//
// On two shared cores throughput is decided by the CPU time of both sides: a
// Result names both, the server's only where it can be known.
package bench

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/lockstepmq/lockstep/client"
)

// ErrOption is wrapped by errors about options that contradict each other or
// are out of range.
var ErrOption = errors.New("invalid option")

// Target is the broker under load.
type Target struct {
	// Servers is the server list for client.Connect.
	Servers string
	// ServerCPU returns the CPU seconds the broker has used so far. Nil: not known.
	ServerCPU func(ctx context.Context) (float64, error)
	// ServerMallocs returns how many heap objects the broker has allocated so
	// far. Nil: not known.
	ServerMallocs func(ctx context.Context) (float64, error)
	// ServerAnonymous returns the broker's resident anonymous memory, in bytes.
	// Nil: not known.
	ServerAnonymous func() (int64, error)
	// ServerResident returns all of the broker's resident memory, in bytes: with what
	// it has mapped. Nil: not known.
	ServerResident func() (int64, error)
}

// Destination is where records go. An empty Name means a topic of a fresh name
// that is removed at the end; a named one that is missing is created and kept.
type Destination struct {
	Name     string
	Kind     client.Kind     // for creation only; zero: a topic
	Settings client.Settings // for creation only
}

// Progress is told now and then, from one goroutine, how many of total records
// are done.
type Progress func(phase string, done, total int64)

// progressInterval is the time between two calls of a Progress.
const progressInterval = 100 * time.Millisecond

// connect opens one connection for the load generator.
func (t Target) connect(ctx context.Context, name string) (*client.Conn, error) {
	return client.Connect(ctx, t.Servers, client.WithName("lockstep-bench-"+name))
}

// prepare makes sure that the destination exists. The returned function removes
// it if it was made for this run only; it works after ctx was cancelled.
func (t Target) prepare(ctx context.Context, conn *client.Conn, d *Destination) (cleanup func() error, err error) {
	if d.Kind == 0 {
		d.Kind = client.Topic
	}
	if d.Name != "" {
		existing, err := conn.Destinations(ctx)
		if err == nil && !slices.ContainsFunc(existing, func(e client.Destination) bool { return e.Name == d.Name }) {
			_, err = conn.CreateDestination(ctx, client.Destination{Name: d.Name, Kind: d.Kind, Settings: d.Settings})
		}
		return func() error { return nil }, err
	}
	suffix := make([]byte, 6)
	if _, err := rand.Read(suffix); err != nil {
		return nil, err
	}
	d.Name = "bench-" + hex.EncodeToString(suffix)
	created, err := conn.CreateDestination(ctx, client.Destination{Name: d.Name, Kind: d.Kind, Settings: d.Settings})
	if err != nil {
		return nil, err
	}
	return func() error {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		return conn.DeleteDestination(ctx, created)
	}, nil
}

// report calls progress every progressInterval with what done returns, until stop is called.
func report(progress Progress, phase string, total int64, done func() int64) (stop func()) {
	if progress == nil {
		return func() {}
	}
	end := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		ticks := time.NewTicker(progressInterval)
		defer ticks.Stop()
		for {
			select {
			case <-end:
				progress(phase, done(), total)
				return
			case <-ticks.C:
				progress(phase, done(), total)
			}
		}
	})
	return func() {
		close(end)
		wg.Wait()
	}
}

// firstError keeps the first error of several goroutines and cancels the rest.
type firstError struct {
	cancel context.CancelCauseFunc
	mu     sync.Mutex
	err    error
}

func (f *firstError) set(err error) {
	if err == nil {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err == nil {
		f.err = err
		f.cancel(err)
	}
}

func (f *firstError) get() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.err
}

// clock counts nanoseconds since its start on the monotonic clock.
type clock struct{ start time.Time }

func startClock() clock          { return clock{time.Now()} }
func (c clock) now() int64       { return int64(time.Since(c.start)) }
func (c clock) seconds() float64 { return time.Since(c.start).Seconds() }

func optionError(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrOption, fmt.Sprintf(format, args...))
}
