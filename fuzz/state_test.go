package fuzz

import (
	"flag"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/fuzz/sim"
)

var stateRuns = flag.Int("state.runs", 30, "how many storage calls of checkpoints TestF20 crashes at")

// TestF20_AStateIsThatOfItsLogAfterEveryCrash runs quiet seeds and ends each, another
// time, at a storage call of a checkpoint on its way to the disk: between any two
// steps of create, write, sync, rename and sync of the directory, and of what
// others do meanwhile. The power goes there, or the call fails and the log fences.
// After every restart and after every entry from then on the saved state (dedupe
// table, start, next offset) has the hash that it had when that entry was first
// applied (RELIABILITY F20).
func TestF20_AStateIsThatOfItsLogAfterEveryCrash(t *testing.T) {
	const steps, callsOfASeed = 500, 20
	runs, cuts, failures, restored := 0, 0, 0, int64(0)
	for seed := uint64(1); runs < *stateRuns; seed++ {
		quiet := simulate(t, sim.Options{Seed: seed, Steps: steps, Quiet: true})
		require.NoError(t, asError(quiet.Err), "seed %d without faults", seed)
		stride := max(1, len(quiet.Saving)/callsOfASeed)
		for i := int(seed) % stride; i < len(quiet.Saving) && runs < *stateRuns; i += stride {
			o := sim.Options{Seed: seed, Steps: steps, Quiet: true, CutAt: quiet.Saving[i]}
			if runs%3 == 2 {
				o.CutAt, o.FailAt = 0, o.CutAt
				failures++
			} else {
				cuts++
			}
			result := simulate(t, o)
			if result.Err != nil {
				t.Fatalf("seed %d, fail at %d, cut at %d: %v\n%s", seed, o.FailAt, o.CutAt, result.Err,
					strings.Join(result.Trace[max(0, len(result.Trace)-100):], "\n"))
			}
			restored += result.Counts[sim.CheckpointRestored]
			runs++
		}
		require.True(t, slices.IsSorted(quiet.Saving))
	}
	t.Logf("%d runs: %d power cuts and %d failures at storage calls of checkpoints, %d checkpoints restored", runs, cuts, failures, restored)
	require.NotZero(t, restored)
}

func asError(v *sim.Violation) error {
	if v == nil {
		return nil
	}
	return v
}

func TestF20_Catches_AStateThatIsNotOfItsIndex(t *testing.T) { caught(t, sim.EarlierState, 20) }
func TestF20_Catches_ACheckpointNamedBeforeItIsSynced(t *testing.T) {
	caught(t, sim.UnsyncedCheckpoint, 100)
}
