package server

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/vfs"
	"github.com/lockstepmq/lockstep/wire"
)

// Event loops that end by themselves end the broker, with an error, and without
// waiting for answers that nobody can write any more.
func TestABrokerWhoseLoopsEndEndsToo(t *testing.T) {
	log := &lockedBuffer{}
	cfg := Config{
		DataDir: filepath.Join(t.TempDir(), "data"), Listen: "127.0.0.1:0", HTTP: "off",
		Logger: slog.New(slog.NewTextHandler(log, nil)),
	}
	s, err := Start(t.Context(), cfg)
	require.NoError(t, err)
	c := dialOpen(t, s.Addr())
	c.send(wire.OpPing, 2, &wire.PingRequest{})
	require.Equal(t, wire.CodeOK, c.answer(2).code())
	s.engine.counters.inFlight.Add(1) // a request that is never answered
	defer s.engine.counters.inFlight.Add(-1)

	require.NoError(t, s.engine.gnet.Stop(context.Background()))
	<-s.Done()
	require.ErrorIs(t, s.Err(), errLoopsEnded)
	require.Contains(t, log.String(), "the event loops ended by themselves")
	require.ErrorIs(t, s.Close(t.Context()), errLoopsEnded, "closing it once more says the same")
	require.Error(t, c.closed())

	again, err := Start(t.Context(), cfg) // the directory is free and clean
	require.NoError(t, err)
	require.NoError(t, again.Close(t.Context()))
	<-again.Done()
	require.NoError(t, again.Err(), "a shutdown that was asked for is none")
}

// A directory whose bytes are elsewhere is refused before anything is written to it,
// unless somebody insists, and that is in the log.
func TestNetworkFileSystemsAreRefused(t *testing.T) {
	for _, c := range []struct {
		name string
		kind vfs.Kind
		what string
	}{
		{"another machine's", vfs.Kind{Name: "nfs", Network: true}, "nfs, a network file system"},
		{"a user process's", vfs.Kind{Name: "fuse", FUSE: true}, "fuse, a file system that a user process serves"},
	} {
		t.Run(c.name, func(t *testing.T) {
			log := &lockedBuffer{}
			cfg := Config{
				DataDir: filepath.Join(t.TempDir(), "data"), Listen: "127.0.0.1:0", HTTP: "off",
				Logger: slog.New(slog.NewTextHandler(log, nil)),
				kindOf: func(string) (vfs.Kind, error) { return c.kind, nil },
			}
			_, err := Start(t.Context(), cfg)
			require.EqualError(t, err, "data directory "+cfg.DataDir+" is on "+c.what+
				": reads there can hang or fail, and syncs may promise nothing; choose a local disk with --data, or insist with --allow-network-fs")
			require.NoDirExists(t, cfg.DataDir)

			cfg.AllowNetworkFS = true
			s, err := Start(t.Context(), cfg)
			require.NoError(t, err)
			require.NoError(t, s.Close(t.Context()))
			require.Contains(t, log.String(), "reads there can hang or fail")
		})
	}
}

// HTTP connections come out of the descriptors that storage needs: few are accepted.
func TestHTTPServesFewConnectionsAtOnce(t *testing.T) {
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	l := &fewConnections{Listener: inner, places: make(chan struct{}, 2), closed: make(chan struct{})}
	accepted := make(chan net.Conn, 10)
	ended := make(chan error, 1)
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				ended <- err
				return
			}
			accepted <- conn
		}
	}()
	for range 3 {
		conn, err := net.Dial("tcp", inner.Addr().String())
		require.NoError(t, err)
		defer conn.Close()
	}
	first, second := <-accepted, <-accepted
	eventually(t, "both places taken", func() bool { return len(l.places) == 2 })
	require.Empty(t, accepted)
	require.NoError(t, first.Close())
	_ = first.Close() // a second time gives nothing back
	third := <-accepted
	require.NoError(t, l.Close())
	require.ErrorIs(t, <-ended, net.ErrClosed)
	require.NoError(t, errors.Join(second.Close(), third.Close()))
	require.Empty(t, l.places)
}
