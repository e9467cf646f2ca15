package fuzz

import (
	"flag"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/fuzz/sim"
)

var (
	councilSeeds = flag.Uint64("council.seeds", 8, "seeds of TestCouncil")
	councilFirst = flag.Uint64("council.first", 1, "the first of them")
)

// councilSteps is how long a run is.
const councilSteps = 6000

// councilOptions are those of a seed: five machines, all of which may become nodes, be
// decommissioned and join again.
func councilOptions(seed uint64) sim.Options {
	return sim.Options{Seed: seed, Machines: 5, Cluster: true, Steps: councilSteps}
}

// TestCouncil runs the metadata of a cluster and its controller on machines and a network
// that fail, while operators create, move, drain and decommission at random and nodes lose
// their disks, and disks fill up and are emptied. All nodes know the same at each entry; no directory goes that its partition
// counts on, no partition gets fewer voters than it is to have, none has two on one node;
// nobody is given anything whose disk is known to be full; in the end every partition is what the
// metadata say, whole and at rest, as far as there is room, and once there is every node has its
// share again.
func TestCouncil(t *testing.T) {
	var counts sim.CouncilCounts
	for seed := *councilFirst; seed < *councilFirst+*councilSeeds; seed++ {
		result := simulate(t, councilOptions(seed))
		if result.Err != nil {
			complain(t, councilOptions(seed), result)
		}
		counts.Add(&result.Council)
	}
	t.Logf("%d seeds from %d on", *councilSeeds, *councilFirst)
	for e := range sim.CouncilEventCount {
		t.Logf("%9d %s", counts[e], e)
	}
	for e := range sim.CouncilEventCount {
		require.NotZero(t, counts[e], "it never came to this: %s", e)
	}
}

// TestCouncilIsDeterministic runs a seed twice.
func TestCouncilIsDeterministic(t *testing.T) {
	first, second := simulate(t, councilOptions(2)), simulate(t, councilOptions(2))
	for i := range min(len(first.Trace), len(second.Trace)) {
		require.Equal(t, first.Trace[i], second.Trace[i], "line %d", i)
	}
	require.Equal(t, first.Hash, second.Hash)
}

// caughtInCouncil runs a mutant until the simulation notices it, from a seed on that is not
// long before one that does.
func caughtInCouncil(t *testing.T, mutant sim.Mutant, first uint64) {
	t.Helper()
	for seed := first; seed < first+60; seed++ {
		o := councilOptions(seed)
		o.Mutant = mutant
		if result := simulate(t, o); result.Err != nil {
			t.Logf("caught with seed %d at step %d: %.300s", seed, result.Step, fmt.Sprint(result.Err))
			return
		}
	}
	t.Fatalf("not caught in 60 seeds from %d on", first)
}

func TestCouncilCatches_RemovalBeforeReplacement(t *testing.T) {
	caughtInCouncil(t, sim.RemovalFirst, 1)
}
func TestCouncilCatches_ABalanceThatNeverRests(t *testing.T) {
	caughtInCouncil(t, sim.RestlessBalance, 1)
}
func TestCouncilCatches_DirectoriesRemovedTooEarly(t *testing.T) {
	caughtInCouncil(t, sim.EarlyBurial, 1)
}
func TestCouncilCatches_ReportsThatComeLate(t *testing.T) { caughtInCouncil(t, sim.LateReports, 301) }
func TestRuleL10_Catches_FullDisksThatNobodyHearsOf(t *testing.T) {
	caughtInCouncil(t, sim.SpaceUnheard, 1)
}
func TestRuleL10_Catches_RoomThatNobodyHearsOf(t *testing.T) { caughtInCouncil(t, sim.RoomUnheard, 1) }
