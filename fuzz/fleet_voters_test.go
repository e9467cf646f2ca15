package fuzz

import (
	"flag"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/fuzz/sim"
)

var (
	votersSeeds = flag.Uint64("voters.seeds", 6, "seeds of TestCouncilsVoters")
	votersFirst = flag.Uint64("voters.first", 1, "the first of them")
)

// votersOptions are those of a seed: seven nodes on three racks, of which five vote.
func votersOptions(seed uint64) sim.Options {
	return sim.Options{Seed: seed, Machines: 7, Cluster: true, Voters: true, Steps: 8000}
}

// TestCouncilsVoters changes who votes about the metadata of a cluster while machines fail
// and are cut from each other, as cluster.StepMeta says. There are never fewer voters; none
// loses its vote that most voters hear; who gets one stands where fewer vote, if there is
// such a node; and in the end five vote, two learn, and all know the same (RULES R10).
func TestCouncilsVoters(t *testing.T) {
	var counts sim.CouncilCounts
	for seed := *votersFirst; seed < *votersFirst+*votersSeeds; seed++ {
		o := votersOptions(seed)
		result := simulate(t, o)
		if result.Err != nil {
			complain(t, o, result)
		}
		counts.Add(&result.Council)
	}
	t.Logf("%d seeds from %d on: %d learners, %d new voters, %d votes taken", *votersSeeds, *votersFirst,
		counts[sim.CouncilLearner], counts[sim.CouncilPromoted], counts[sim.CouncilLeft])
	require.NotZero(t, counts[sim.CouncilPromoted])
}

// caughtByVoters runs a mutant until the simulation notices it.
func caughtByVoters(t *testing.T, mutant sim.Mutant) {
	t.Helper()
	for seed := uint64(1); seed <= 200; seed++ {
		o := votersOptions(seed)
		o.Mutant = mutant
		if result := simulate(t, o); result.Err != nil {
			t.Logf("caught with seed %d at step %d: %.300s", seed, result.Step, fmt.Sprint(result.Err))
			return
		}
	}
	t.Fatal("not caught in 200 seeds")
}

func TestCouncilCatches_AVoteThatOneNodeTakes(t *testing.T)      { caughtByVoters(t, sim.OneOpinion) }
func TestCouncilCatches_VotesWithoutRegardForRacks(t *testing.T) { caughtByVoters(t, sim.NoRacks) }
