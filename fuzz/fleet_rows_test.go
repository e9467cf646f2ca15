package fuzz

import (
	"flag"
	"fmt"
	"math"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/fuzz/sim"
	"github.com/lockstepmq/lockstep/wire"
)

// Rows of RELIABILITY that the fleet of machines shows by a count of their own: each
// runs seeds in which one kind of fault comes up often.

var (
	fleetBlackouts    = flag.Int64("fleet.blackouts", 60, "power cuts of a whole cluster in TestF1_PowerCutsOfAWholeCluster")
	fleetWipes        = flag.Int64("fleet.wipes", 20, "disks lost under a dying leader in TestF10_DisksAreLostWhileTheLeaderDies")
	fleetReplacements = flag.Int("fleet.replacements", 8, "seeds of TestF18_MembersChangeUnderFaults")
	fleetHistories    = flag.Int("fleet.histories", 10, "seeds of TestF14_HistoriesOfAFleetHaveOneOrder")
)

// fleetRow runs seeds with a focus until enough has happened.
func fleetRow(t *testing.T, enough func(seeds int, counts *sim.FleetCounts) bool, focus ...string) (counts sim.FleetCounts) {
	t.Helper()
	seeds, seed := 0, *fleetFirst
	for ; !enough(seeds, &counts); seed++ {
		o := fleetOptions(seed)
		o.Focus = focus
		result := simulate(t, o)
		if result.Err != nil {
			complain(t, o, result)
		}
		counts.Add(&result.Fleet)
		seeds++
	}
	t.Logf("seeds %d to %d: %d blackouts, %d disks lost, %d replaced, %d elections, %d entries committed, %d batches acknowledged, 0 lost",
		*fleetFirst, seed-1, counts[sim.FleetBlackout], counts[sim.FleetWiped], counts[sim.FleetReplaced], counts[sim.FleetElected], counts[sim.FleetCommitted], counts[sim.FleetAcknowledged])
	return counts
}

// TestF1_PowerCutsOfAWholeCluster cuts the power of all machines at once: whatever was
// acknowledged is there afterwards (RELIABILITY F1).
func TestF1_PowerCutsOfAWholeCluster(t *testing.T) {
	fleetRow(t, func(_ int, c *sim.FleetCounts) bool { return c[sim.FleetBlackout] >= *fleetBlackouts }, "blackout")
}

// TestF1_Catches_SyncsThatDoNothingInACluster must be caught in at most ten power cuts.
func TestF1_Catches_SyncsThatDoNothingInACluster(t *testing.T) {
	cuts := int64(0)
	for seed := uint64(1); cuts <= 10; seed++ {
		result := simulate(t, sim.Options{Seed: seed, Machines: 3, Mutant: sim.NoSync, Focus: []string{"blackout"}})
		cuts += result.Fleet[sim.FleetBlackout]
		if result.Err != nil {
			t.Logf("caught with seed %d after %d power cuts: %.300s", seed, cuts, fmt.Sprint(result.Err))
			return
		}
	}
	t.Fatalf("not caught in %d power cuts", cuts)
}

// TestF10_DisksAreLostWhileTheLeaderDies wipes a machine and kills the leader's process
// at the same time: the replica comes back under another ID and as a learner (RULES R10).
func TestF10_DisksAreLostWhileTheLeaderDies(t *testing.T) {
	c := fleetRow(t, func(_ int, c *sim.FleetCounts) bool { return c[sim.FleetWiped] >= *fleetWipes }, "replace while the leader dies")
	require.Equal(t, c[sim.FleetWiped], c[sim.FleetReplaced])
}

// TestF18_MembersChangeUnderFaults replaces members under all faults there are, with
// leaderships handed over meanwhile (RELIABILITY F18). No group gets stuck: each comes to
// rest within 30 s of its own time.
func TestF18_MembersChangeUnderFaults(t *testing.T) {
	c := fleetRow(t, func(seeds int, _ *sim.FleetCounts) bool { return seeds >= *fleetReplacements }, "replace", "transfer", "isolate")
	require.Equal(t, c[sim.FleetWiped], c[sim.FleetReplaced])
	require.Positive(t, c[sim.FleetReplaced])
}

// TestF18_Catches_AnIDThatIsUsedAgain lets members come back empty under their old IDs.
func TestF18_Catches_AnIDThatIsUsedAgain(t *testing.T) {
	for seed := uint64(1); seed <= 200; seed++ {
		if result := simulate(t, sim.Options{Seed: seed, Machines: 3, Mutant: sim.WipedReplica, Focus: []string{"power cut"}}); result.Err != nil {
			t.Logf("caught with seed %d at step %d: %.300s", seed, result.Step, fmt.Sprint(result.Err))
			return
		}
	}
	t.Fatal("not caught in 200 seeds")
}

// fleetLog is the model of a fleet's history: a log of which only the end counts.
var fleetLog = porcupine.Model{
	Init: func() any { return wire.Offset(0) },
	Step: func(state, input, _ any) (bool, any) {
		end, op := state.(wire.Offset), input.(sim.Operation)
		if op.Append {
			return op.At == end, end + wire.Offset(op.Count)
		}
		return op.At == end, end
	},
}

// ordered reports whether a history has one order that the moments of its calls and
// answers allow.
func ordered(t *testing.T, history []sim.Operation) bool {
	t.Helper()
	ops := make([]porcupine.Operation, len(history))
	for i, op := range history {
		ops[i] = porcupine.Operation{Input: op, Call: op.Call, Return: op.Return}
		if op.Return == 0 {
			ops[i].Return = math.MaxInt64
		}
	}
	result := porcupine.CheckOperationsTimeout(fleetLog, ops, time.Minute)
	require.NotEqual(t, porcupine.Unknown, result, "%d operations take too long to check", len(ops))
	return result == porcupine.Ok
}

// readers are what makes reads interesting: leaders that stand still, are cut off, or
// hand over.
var readers = []string{"confirm", "stand still for long", "isolate", "transfer"}

// TestF14_HistoriesOfAFleetHaveOneOrder gives what all clients of a run did and heard to
// a linearizability check (RELIABILITY F14).
func TestF14_HistoriesOfAFleetHaveOneOrder(t *testing.T) {
	appends, reads := 0, 0
	for seed := *fleetFirst; seed < *fleetFirst+uint64(*fleetHistories); seed++ {
		o := fleetOptions(seed)
		o.Focus = readers
		result := simulate(t, o)
		if result.Err != nil {
			complain(t, o, result)
		}
		require.True(t, ordered(t, result.History), "seed %d: no order of %d operations", seed, len(result.History))
		for _, op := range result.History {
			if op.Append {
				appends++
			} else {
				reads++
			}
		}
	}
	t.Logf("%d histories from seed %d on: %d appends, %d reads, 0 violations", *fleetHistories, *fleetFirst, appends, reads)
	require.Positive(t, appends)
	require.Positive(t, reads)
}

// TestF14_Catches_ReadsFromADeposedLeader looks at the history alone.
func TestF14_Catches_ReadsFromADeposedLeader(t *testing.T) {
	for seed := uint64(1); seed <= 200; seed++ {
		result := simulate(t, sim.Options{Seed: seed, Machines: 3, Mutant: sim.DeposedRead, Focus: readers})
		require.Nil(t, result.Err, "nothing else looks")
		if !ordered(t, result.History) {
			t.Logf("caught with seed %d: no order of %d operations", seed, len(result.History))
			return
		}
	}
	t.Fatal("not caught in 200 seeds")
}
