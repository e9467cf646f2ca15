package fuzz

import (
	"flag"
	"fmt"
	"strings"
	"testing"
	"testing/cryptotest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/fuzz/sim"
)

var (
	simDuration = flag.Duration("sim.duration", time.Second, "how long TestSimulation tries seeds")
	simSeed     = flag.Uint64("seed", 0, "run this seed of TestSimulation alone and print its trace; 0 tries many")
	simSteps    = flag.Int("sim.steps", 0, "steps of one simulation; 0 means its default")
	simCalls    = flag.Bool("sim.calls", false, "with -seed: print every storage call")
	simFirst    = flag.Uint64("sim.first", 1, "the first seed that TestSimulation tries")
	catchFirst  = flag.Uint64("catch.first", 1, "the first seed that tests of mutants try")
)

// simulate runs one seed with raft's randomness fixed.
func simulate(t *testing.T, o sim.Options) *sim.Result {
	cryptotest.SetGlobalRandom(t, o.Seed)
	return sim.Run(o)
}

// TestSimulation runs the broker's core on a disk that loses power, fails and
// fills up, one seed after the other, and checks that nothing acknowledged is
// lost, doubled, moved or changed (RELIABILITY F1, F5 to F8, F11, F12, F16, F19, F20).
func TestSimulation(t *testing.T) {
	if *simSeed != 0 {
		result := simulate(t, sim.Options{Seed: *simSeed, Steps: *simSteps, Calls: *simCalls})
		t.Log("trace:\n" + strings.Join(result.Trace, "\n"))
		if result.Err != nil {
			complain(t, sim.Options{Seed: *simSeed, Steps: *simSteps}, result)
		}
		return
	}
	var counts sim.Counts
	seeds := 0
	began := time.Now()
	run := func(seed uint64) {
		result := simulate(t, sim.Options{Seed: seed, Steps: *simSteps})
		if result.Err != nil {
			complain(t, sim.Options{Seed: seed, Steps: *simSteps}, result)
		}
		counts.Add(&result.Counts)
		seeds++
	}
	for seed := *simFirst; time.Since(began) < *simDuration || seeds < minSeeds; seed++ {
		run(seed)
	}
	took := time.Since(began)
	t.Logf("%d seeds in %.1f s, %.1f seeds/s", seeds, took.Seconds(), float64(seeds)/took.Seconds())
	for e := range sim.EventCount {
		t.Logf("%9d %s", counts[e], e)
	}
	for e := range sim.EventCount {
		require.NotZero(t, counts[e], "it never came to this: %s", e)
	}
}

// minSeeds is how many seeds TestSimulation tries however slow they are: enough
// for every kind of event to come up.
const minSeeds = 60

// shrinkFor is how long a failing seed is made smaller before it is printed.
const shrinkFor = 20 * time.Second

// complain shrinks a failing run and prints what a person needs to replay it.
func complain(t *testing.T, o sim.Options, result *sim.Result) {
	t.Helper()
	deadline := time.Now().Add(shrinkFor)
	cryptotest.SetGlobalRandom(t, o.Seed)
	small, shrunk := sim.Shrink(o, func() bool {
		cryptotest.SetGlobalRandom(t, o.Seed)
		return time.Now().Before(deadline)
	})
	kept := 0
	for i := range small.Steps {
		if i >= len(small.Skip) || !small.Skip[i] {
			kept++
		}
	}
	const lines = 150
	tail := shrunk.Trace[max(0, len(shrunk.Trace)-lines):]
	replay := fmt.Sprintf("'TestSimulation$' -seed %d -sim.steps %d", o.Seed, o.Steps)
	if o.Machines > 0 {
		replay = fmt.Sprintf("'TestFleet$' -fleet.seed %d -fleet.steps %d -fleet.machines %d", o.Seed, o.Steps, o.Machines)
	}
	if o.Groups {
		replay = fmt.Sprintf("'TestF17_GroupsOfAFleet$' -groups.seed %d", o.Seed)
	}
	if o.Cluster {
		replay = fmt.Sprintf("'TestCouncil$' -council.first %d -council.seeds 1", o.Seed)
		switch {
		case o.Voters:
			replay = fmt.Sprintf("'TestCouncilsVoters$' -voters.first %d -voters.seeds 1", o.Seed)
		case o.Partitions > 0 && o.Groups:
			replay = fmt.Sprintf("'TestRuleQ1_WorkersOfAFleet$' -workers.first %d -workers.seeds 1", o.Seed)
		case o.Partitions > 0:
			replay = fmt.Sprintf("'TestRuleR5_NamesOfAFleet$' -names.first %d -names.seeds 1", o.Seed)
		}
	}
	t.Fatalf("seed %d, step %d: %v\nreplay: go test ./fuzz -run %s -v\n"+
		"shrunk to %d steps, which end with: %v\nthe newest %d of %d lines of its trace:\n%s",
		o.Seed, result.Step, result.Err, replay, kept, shrunk.Err, len(tail), len(shrunk.Trace), strings.Join(tail, "\n"))
}

var simCallsTried = flag.Int64("sim.tries", 10, "how many storage calls TestSimulationOfEveryCall picks for each fault; 0 takes all")

// TestSimulationOfEveryCall runs one quiet seed again and again. Each time another
// storage call fails, or the power goes at it (RELIABILITY F5, F8).
func TestSimulationOfEveryCall(t *testing.T) {
	const steps = 500
	for _, seed := range []uint64{1, 2, 3} {
		quiet := simulate(t, sim.Options{Seed: seed, Steps: steps, Quiet: true})
		if quiet.Err != nil {
			t.Fatalf("seed %d without faults: %v\n%s", seed, quiet.Err, strings.Join(quiet.Trace, "\n"))
		}
		stride := int64(1)
		if *simCallsTried > 0 {
			stride = max(1, quiet.Calls / *simCallsTried)
		}
		tried := 0
		for call := 1 + int64(seed)%stride; call <= quiet.Calls; call += stride {
			for _, o := range []sim.Options{{FailAt: call}, {CutAt: call}} {
				o.Seed, o.Steps, o.Quiet = seed, steps, true
				if result := simulate(t, o); result.Err != nil {
					t.Fatalf("seed %d, fail at %d, cut at %d: %v\n%s", seed, o.FailAt, o.CutAt, result.Err, strings.Join(result.Trace[max(0, len(result.Trace)-100):], "\n"))
				}
				tried++
			}
		}
		t.Logf("seed %d: %d faults at %d storage calls", seed, tried, quiet.Calls)
	}
}

// TestSimulationIsDeterministic runs seeds twice: everything that happens is the
// same, or no failure could be replayed.
func TestSimulationIsDeterministic(t *testing.T) {
	for seed := uint64(1); seed <= 5; seed++ {
		first := simulate(t, sim.Options{Seed: seed, Calls: true})
		second := simulate(t, sim.Options{Seed: seed, Calls: true})
		for i := range min(len(first.Trace), len(second.Trace)) {
			require.Equal(t, first.Trace[i], second.Trace[i], "seed %d, line %d", seed, i)
		}
		require.Equal(t, first.Hash, second.Hash, "seed %d", seed)
	}
}

// caught runs a mutant until the simulation notices it.
func caught(t *testing.T, mutant sim.Mutant, seeds uint64, focus ...string) {
	t.Helper()
	for seed := *catchFirst; seed < *catchFirst+seeds; seed++ {
		if result := simulate(t, sim.Options{Seed: seed, Mutant: mutant, Focus: focus}); result.Err != nil {
			t.Logf("caught with seed %d at step %d: %.300s", seed, result.Step, fmt.Sprint(result.Err))
			return
		}
	}
	t.Fatalf("not caught in %d seeds", seeds)
}

func TestSimulationCatches_SyncThatDoesNothing(t *testing.T)          { caught(t, sim.NoSync, 10) }
func TestSimulationCatches_DurableTooEarly(t *testing.T)              { caught(t, sim.LateSync, 10) }
func TestSimulationCatches_DirectorySyncThatDoesNothing(t *testing.T) { caught(t, sim.NoSyncDir, 20) }
func TestSimulationCatches_IgnoredSyncError(t *testing.T)             { caught(t, sim.IgnoredSyncError, 100) }
func TestSimulationCatches_HardStateNotWritten(t *testing.T)          { caught(t, sim.NoHardState, 100) }
func TestSimulationCatches_AcknowledgedBeforeSynced(t *testing.T)     { caught(t, sim.AckBeforeSync, 10) }
func TestSimulationCatches_ForgottenProducers(t *testing.T)           { caught(t, sim.ForgottenProducers, 20) }
func TestSimulationCatches_RemovalBeforeCommit(t *testing.T)          { caught(t, sim.EarlyRemoval, 20) }
func TestSimulationCatches_GreedyRetention(t *testing.T)              { caught(t, sim.GreedyRetention, 20) }
func TestSimulationCatches_JournalThatIsNotSynced(t *testing.T)       { caught(t, sim.NoJournalSync, 20) }
func TestSimulationCatches_JournalThatIsNotReplayed(t *testing.T)     { caught(t, sim.NoJournalReplay, 20) }
func TestSimulationCatches_JournalTrimmedTooEarly(t *testing.T)       { caught(t, sim.EarlyJournalTrim, 100) }
func TestRuleL5_Catches_ALossWithoutANewIncarnation(t *testing.T)     { caught(t, sim.NoReform, 60) }
func TestSimulationCatches_ForgottenTrim(t *testing.T)                { caught(t, sim.ForgottenTrim, 20) }

func TestF19_Catches_RetentionByTheTimeOfAClient(t *testing.T) { caught(t, sim.ClientTime, 20) }
func TestF16_Catches_AForgottenProducerThatBegins(t *testing.T) {
	caught(t, sim.BeginAgain, 200, "clock jump", "repeat")
}
