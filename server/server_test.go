package server

import (
	"context"
	"log/slog"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

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
