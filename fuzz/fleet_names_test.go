package fuzz

import (
	"flag"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/fuzz/sim"
)

var (
	namesSeeds = flag.Uint64("names.seeds", 8, "seeds of TestRuleR5_NamesOfAFleet")
	namesFirst = flag.Uint64("names.first", 1, "the first of them")
)

// namesOptions are those of a seed: the metadata and two partitions on three machines.
func namesOptions(seed uint64) sim.Options {
	return sim.Options{Seed: seed, Machines: 3, Cluster: true, Partitions: 2, Steps: 6000}
}

// TestRuleR5_NamesOfAFleet lets processes open names again and again, one after the other
// and side by side, while the machines that hold the metadata and the partitions fail and
// are cut from each other. Once an opening is answered, nothing of an earlier epoch lands in
// a partition that it named; behind a record of an epoch there is none of an earlier one;
// no leader takes a batch of an epoch that its node knows to be over; and nobody is fenced
// without a successor (RULES R5).
func TestRuleR5_NamesOfAFleet(t *testing.T) {
	var counts sim.NameCounts
	for seed := *namesFirst; seed < *namesFirst+*namesSeeds; seed++ {
		o := namesOptions(seed)
		result := simulate(t, o)
		if result.Err != nil {
			complain(t, o, result)
		}
		counts.Add(&result.Names)
	}
	t.Logf("%d seeds from %d on: %+v", *namesSeeds, *namesFirst, counts)
	require.NotZero(t, counts.Opened)
	require.NotZero(t, counts.Fenced)
	require.NotZero(t, counts.Renewed)
	require.NotZero(t, counts.Superseded)
	require.NotZero(t, counts.Refused)
	require.NotZero(t, counts.Late)
}

// caughtByNames runs a mutant until the simulation notices it, from a seed on that is not
// long before one that does.
func caughtByNames(t *testing.T, mutant sim.Mutant, first uint64, focus ...string) {
	t.Helper()
	for seed := first; seed < first+100; seed++ {
		o := namesOptions(seed)
		o.Mutant, o.Focus = mutant, focus
		if result := simulate(t, o); result.Err != nil {
			t.Logf("caught with seed %d at step %d: %.300s", seed, result.Step, fmt.Sprint(result.Err))
			return
		}
	}
	t.Fatalf("not caught in 100 seeds from %d on", first)
}

func TestRuleR5_Catches_AnEpochThatIsNotRaised(t *testing.T) {
	caughtByNames(t, sim.EpochsNotRaised, 1)
}
func TestRuleR5_Catches_ANameThatItsOldHolderTakesBack(t *testing.T) {
	caughtByNames(t, sim.AnyoneRenews, 17)
}
func TestRuleR5_Catches_EpochsThatLeadersDoNotHearOf(t *testing.T) {
	caughtByNames(t, sim.EpochsNotHeard, 1)
}
func TestRuleR5_Catches_FencesThatAreNotCommitted(t *testing.T) {
	caughtByNames(t, sim.FencesNotCommitted, 1)
}
func TestRuleR5_Catches_FencesThatNoPartitionTakesIn(t *testing.T) {
	caughtByNames(t, sim.FencesNotApplied, 68, "isolate", "open a name")
}
