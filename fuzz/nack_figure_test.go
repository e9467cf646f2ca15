package fuzz

import (
	"context"
	"flag"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/client"
	verifier "github.com/lockstepmq/lockstep/verify" // verify is a function here
)

var figureNacks = flag.Int("figure.nacks", 5_000, "records in TestFigure_Nacks, of which one delivery in ten is given back")

// TestFigure_Nacks counts how often the order of a key is broken when one delivery in ten
// is given back at random, with backoff: never, and nothing is lost or had by two.
func TestFigure_Nacks(t *testing.T) {
	b := newBroker(t)
	b.start()
	_ = b.connect().Close()
	result, err := verifier.Run(t.Context(), verifier.Options{
		Connect: func(ctx context.Context) (*client.Conn, error) { return client.Connect(ctx, b.address) },
		Records: *figureNacks, Keys: 10_000, Nack: 0.1, Backoff: 5 * time.Millisecond, Consumers: 4, Workers: 64,
		Settings: client.Settings{Partitions: 2},
	})
	require.NoError(t, err)
	require.Equal(t, verifier.Kept, result.Verdict, "%+v", result)
	require.Equal(t, *figureNacks, result.Handled)
	require.Equal(t, map[string]int{"given back": result.Deliveries - result.Handled}, result.Again)
	t.Logf("%d deliveries of %d records of 10,000 keys in %.0f s, %d given back: no order of a key broken, nothing lost, %d events compared; seed %d; %s",
		result.Deliveries, result.Handled, result.Seconds, result.Again["given back"], result.Events, result.Seed, machineLoad())
}
