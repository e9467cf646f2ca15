// Package lockstest starts brokers for tests: in the test's own process, on a
// free loopback port, with a data directory that goes with the test.
//
//	func TestBilling(t *testing.T) {
//		broker := lockstest.Start(t)
//		conn, err := client.Connect(t.Context(), broker.URL())
//		…
//	}
//
// StartCluster starts several that are one cluster.
package lockstest

import (
	"context"
	"log/slog"
	"os"
	"testing"
	"time"

	"github.com/lockstepmq/lockstep/server"
)

// shutdownTimeout bounds how long the end of a test waits for requests in flight.
const shutdownTimeout = 5 * time.Second

// Broker is a running broker.
type Broker struct {
	t      testing.TB
	config server.Config
	server *server.Server
}

// Option changes how the broker runs.
type Option func(*server.Config)

// DataDir keeps the data in dir instead of a directory of the test's.
func DataDir(dir string) Option { return func(c *server.Config) { c.DataDir = dir } }

// Logger sends the broker's log somewhere. By default warnings and errors go to
// standard error.
func Logger(l *slog.Logger) Option { return func(c *server.Config) { c.Logger = l } }

// Configure changes any setting of the broker.
func Configure(f func(*server.Config)) Option { return f }

// Start runs a broker until the test ends. It fails the test if that does not work.
func Start(t testing.TB, options ...Option) *Broker {
	t.Helper()
	b := newBroker(t, options)
	b.start()
	t.Cleanup(func() { b.stop() })
	return b
}

func newBroker(t testing.TB, options []Option) *Broker {
	b := &Broker{t: t, config: server.Config{
		DataDir: t.TempDir(), Listen: freeAddress(t), HTTP: "off",
		MinFreeBytes: -1, // a full development machine is not this test's business
		Logger:       slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})),
	}}
	for _, o := range options {
		o(&b.config)
	}
	return b
}

func (b *Broker) start() {
	b.t.Helper()
	s, err := server.Start(context.Background(), b.config)
	if err != nil {
		b.t.Fatalf("lockstest: %v", err)
	}
	b.server = s
	b.config.Listen = s.Addr() // a restart comes back where clients look for it
	if b.config.PeerListen != "" {
		b.config.PeerListen = s.PeerAddr()
	}
}

func (b *Broker) stop() {
	if b.server == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), shutdownTimeout)
	defer cancel()
	if err := b.server.Close(ctx); err != nil {
		b.t.Errorf("lockstest: stopping the broker: %v", err)
	}
	b.server = nil
}

// Restart stops the broker cleanly and starts it again on the same data and
// address. Functions are called in between, while nobody uses the data.
func (b *Broker) Restart(meanwhile ...func()) {
	b.t.Helper()
	b.stop()
	for _, f := range meanwhile {
		f()
	}
	b.start()
}

// URL is what client.Connect takes.
func (b *Broker) URL() string { return "lockstep://" + b.server.Addr() }

// Addr is the host and port clients connect to.
func (b *Broker) Addr() string { return b.server.Addr() }

// HTTPAddr is the address of health and metrics, empty unless configured.
func (b *Broker) HTTPAddr() string { return b.server.HTTPAddr() }
