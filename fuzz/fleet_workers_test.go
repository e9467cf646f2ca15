package fuzz

import (
	"flag"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/fuzz/sim"
	"github.com/lockstepmq/lockstep/internal/invariants"
	"github.com/lockstepmq/lockstep/partition/group"
)

var (
	workersSeeds = flag.Uint64("workers.seeds", 5, "seeds of TestRuleQ1_WorkersOfAFleet")
	workersFirst = flag.Uint64("workers.first", 1, "the first of them")
)

// workersOptions are those of a seed: the metadata and two partitions on three machines,
// and a group whose consumers are bound by its coordinator.
func workersOptions(seed uint64) sim.Options {
	o := namesOptions(seed)
	o.Groups = true
	return o
}

// TestRuleQ1_WorkersOfAFleet lets the consumers of a group be bound to partitions by the
// coordinator that the real metadata name, and name anew again and again, while machines
// fail and are cut from each other. It checks what TestF17_GroupsOfAFleet checks in each
// partition; that a coordinator says the same of a binding always; and that nobody is served
// by a binding of an earlier coordinator where a consumer of a later one is (RULES Q1).
func TestRuleQ1_WorkersOfAFleet(t *testing.T) {
	var counts sim.GroupCounts
	for seed := *workersFirst; seed < *workersFirst+*workersSeeds; seed++ {
		o := workersOptions(seed)
		result := simulate(t, o)
		if result.Err != nil {
			complain(t, o, result)
		}
		counts.Add(&result.Groups)
	}
	t.Logf("%d seeds from %d on: %+v", *workersSeeds, *workersFirst, counts)
	require.NotZero(t, counts.Attached)
	require.NotZero(t, counts.Consumed)
	require.NotZero(t, counts.Nacked)
	require.NotZero(t, counts.HandedOver)
	require.NotZero(t, counts.Bound)
	require.NotZero(t, counts.Rebound)
	require.NotZero(t, counts.Altered)
	require.NotZero(t, counts.Reshaped)
}

// plannedMoves are moves of leaderships, and no faults.
func plannedMoves(seed uint64) sim.Options {
	o := workersOptions(seed)
	o.Quiet, o.Focus = true, []string{"transfer"}
	return o
}

// TestF17_PlannedMovesOfAFleet moves leaderships while consumers work: no record is
// delivered again (RELIABILITY F17).
func TestF17_PlannedMovesOfAFleet(t *testing.T) {
	var counts sim.GroupCounts
	for seed := *workersFirst; seed < *workersFirst+*workersSeeds; seed++ {
		o := plannedMoves(seed)
		result := simulate(t, o)
		if result.Err != nil {
			complain(t, o, result)
		}
		counts.Add(&result.Groups)
	}
	t.Logf("%d seeds from %d on: %+v", *workersSeeds, *workersFirst, counts)
	require.NotZero(t, counts.HandedOver)
	require.NotZero(t, counts.Consumed)
}

func TestF17_Catches_AMoveThatWaitsForNobody(t *testing.T) {
	if !invariants.Enabled {
		t.Skip("rules can be taken away with -tags invariants only")
	}
	for seed := uint64(1); seed <= 200; seed++ {
		o := plannedMoves(seed)
		o.Without = []group.Rule{group.RuleWait}
		if result := simulate(t, o); result.Err != nil {
			t.Logf("caught with seed %d at step %d: %.300s", seed, result.Step, result.Err.What)
			return
		}
	}
	t.Fatal("not caught in 200 seeds")
}

func TestRuleQ1_Catches_ConsumersOfAnEarlierCoordinator(t *testing.T) {
	if !invariants.Enabled {
		t.Skip("rules can be taken away with -tags invariants only")
	}
	for seed := uint64(1); seed <= 200; seed++ {
		o := workersOptions(seed)
		o.Without = []group.Rule{group.RuleGeneration}
		if result := simulate(t, o); result.Err != nil {
			t.Logf("caught with seed %d at step %d: %.300s", seed, result.Step, result.Err.What)
			return
		}
	}
	t.Fatal("not caught in 200 seeds")
}
