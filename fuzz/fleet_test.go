package fuzz

import (
	"flag"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/fuzz/sim"
)

var (
	fleetDuration = flag.Duration("fleet.duration", 2*time.Second, "how long TestFleet tries seeds")
	fleetSeed     = flag.Uint64("fleet.seed", 0, "run this seed of TestFleet alone and print its trace; 0 tries many")
	fleetSteps    = flag.Int("fleet.steps", 0, "steps of one run of TestFleet; 0 means its default")
	fleetMachines = flag.Int("fleet.machines", 0, "how many machines TestFleet has; 0 lets the seed choose 3 or 5")
	fleetFirst    = flag.Uint64("fleet.first", 1, "the first seed that TestFleet tries")
)

// fleetOptions are those of a seed: one run in four has five machines.
func fleetOptions(seed uint64) sim.Options {
	o := sim.Options{Seed: seed, Steps: *fleetSteps, Machines: *fleetMachines}
	if o.Machines == 0 {
		o.Machines = 3
		if seed%4 == 0 {
			o.Machines = 5
		}
	}
	return o
}

// TestFleet runs the replicas of one partition on machines that lose power, processes
// that crash and stand still, and a network that drops, doubles, reorders and cuts, one
// seed after the other, and checks that they hold one log (RELIABILITY F1, F7, F15,
// F16, F20).
func TestFleet(t *testing.T) {
	if *fleetSeed != 0 {
		result := simulate(t, fleetOptions(*fleetSeed))
		t.Log("trace:\n" + strings.Join(result.Trace, "\n"))
		if result.Err != nil {
			complain(t, fleetOptions(*fleetSeed), result)
		}
		return
	}
	var counts sim.FleetCounts
	seeds := 0
	began := time.Now()
	for seed := *fleetFirst; time.Since(began) < *fleetDuration || seeds < minFleetSeeds; seed++ {
		result := simulate(t, fleetOptions(seed))
		if result.Err != nil {
			complain(t, fleetOptions(seed), result)
		}
		counts.Add(&result.Fleet)
		seeds++
	}
	took := time.Since(began)
	t.Logf("%d seeds in %.1f s, %.1f seeds/s", seeds, took.Seconds(), float64(seeds)/took.Seconds())
	for e := range sim.FleetEventCount {
		t.Logf("%9d %s", counts[e], e)
	}
	for e := range sim.FleetEventCount {
		require.NotZero(t, counts[e], "it never came to this: %s", e)
	}
}

// minFleetSeeds is how many seeds TestFleet tries however slow they are: enough for
// every kind of event to come up.
const minFleetSeeds = 40

// TestFleetIsDeterministic runs seeds twice: everything that happens is the same, or
// no failure could be replayed.
func TestFleetIsDeterministic(t *testing.T) {
	for seed := uint64(1); seed <= 2; seed++ {
		first, second := simulate(t, fleetOptions(seed)), simulate(t, fleetOptions(seed))
		for i := range min(len(first.Trace), len(second.Trace)) {
			require.Equal(t, first.Trace[i], second.Trace[i], "seed %d, line %d", seed, i)
		}
		require.Equal(t, first.Hash, second.Hash, "seed %d", seed)
	}
}

// caughtInFleet runs a mutant on three machines until the simulation notices it.
func caughtInFleet(t *testing.T, mutant sim.Mutant, seeds uint64) {
	t.Helper()
	for seed := uint64(1); seed <= seeds; seed++ {
		if result := simulate(t, sim.Options{Seed: seed, Machines: 3, Mutant: mutant}); result.Err != nil {
			t.Logf("caught with seed %d at step %d: %.300s", seed, result.Step, fmt.Sprint(result.Err))
			return
		}
	}
	t.Fatalf("not caught in %d seeds", seeds)
}

func TestFleetCatches_AcknowledgedBeforeAQuorumHasIt(t *testing.T) {
	caughtInFleet(t, sim.AckBeforeQuorum, 20)
}
func TestFleetCatches_SyncThatDoesNothing(t *testing.T)   { caughtInFleet(t, sim.NoSync, 20) }
func TestFleetCatches_DurableTooEarly(t *testing.T)       { caughtInFleet(t, sim.LateSync, 20) }
func TestFleetCatches_HardStateNotWritten(t *testing.T)   { caughtInFleet(t, sim.NoHardState, 20) }
func TestFleetCatches_ForgedPromise(t *testing.T)         { caughtInFleet(t, sim.ForgedPromise, 20) }
func TestFleetCatches_ForgedVote(t *testing.T)            { caughtInFleet(t, sim.ForgedVote, 20) }
func TestF10_Catches_AWipedReplicaThatVotes(t *testing.T) { caughtInFleet(t, sim.WipedReplica, 40) }
func TestF14_Catches_StaleReads(t *testing.T)             { caughtInFleet(t, sim.StaleRead, 200) }
func TestF14_Catches_DirtyReads(t *testing.T)             { caughtInFleet(t, sim.DirtyRead, 200) }
func TestF20_Catches_ForgottenProducers(t *testing.T)     { caughtInFleet(t, sim.ForgottenProducers, 20) }
func TestF20_Catches_CheckpointsOfEarlierStates(t *testing.T) {
	caughtInFleet(t, sim.EarlierState, 20)
}
