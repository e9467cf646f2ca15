package fuzz

import (
	"flag"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/fuzz/sim"
	"github.com/lockstepmq/lockstep/internal/invariants"
	"github.com/lockstepmq/lockstep/partition/group"
)

var (
	groupsDuration = flag.Duration("groups.duration", 2*time.Second, "how long TestF17_GroupsOfAFleet tries seeds")
	groupsSeed     = flag.Uint64("groups.seed", 0, "run this seed of TestF17_GroupsOfAFleet alone and print its trace; 0 tries many")
	groupsFirst    = flag.Uint64("groups.first", 1, "the first seed that TestF17_GroupsOfAFleet tries")
)

// minGroupsSeeds is how many seeds are tried however slow they are, and mostGroupsSeeds how
// many until a replica has passed over what the others have erased.
const (
	minGroupsSeeds  = 8
	mostGroupsSeeds = 60
)

// TestF17_GroupsOfAFleet lets consumers share the queue that a fleet of replicas holds,
// through all that happens to a fleet, and checks what groups promise without any
// assumption about time: no record goes that nobody has acknowledged, one acknowledgement of
// each is accepted, no two sessions have the same epoch of a scope, what is acknowledged
// is not delivered again, the replicas agree to the byte, what is not done is not erased, and
// in the end everything is consumed.
func TestF17_GroupsOfAFleet(t *testing.T) {
	if *groupsSeed != 0 {
		result := simulate(t, sim.Options{Seed: *groupsSeed, Machines: 3, Groups: true})
		t.Log("trace:\n" + strings.Join(result.Trace, "\n"))
		if result.Err != nil {
			t.Fatal(result.Err)
		}
		return
	}
	var counts sim.GroupCounts
	var fleet sim.FleetCounts
	seeds := 0
	began := time.Now()
	for seed := *groupsFirst; time.Since(began) < *groupsDuration || seeds < minGroupsSeeds || fleet[sim.FleetPassed] == 0 && seeds < mostGroupsSeeds; seed++ {
		o := sim.Options{Seed: seed, Machines: 3, Groups: true}
		if result := simulate(t, o); result.Err != nil {
			complain(t, o, result)
		} else {
			counts.Add(&result.Groups)
			fleet.Add(&result.Fleet)
		}
		seeds++
	}
	t.Logf("%d seeds in %.1f s: %+v, %d times %s, %d times %s",
		seeds, time.Since(began).Seconds(), counts, fleet[sim.FleetErased], sim.FleetErased, fleet[sim.FleetPassed], sim.FleetPassed)
	require.NotZero(t, counts.Attached)
	require.NotZero(t, counts.Consumed)
	require.NotZero(t, counts.Nacked)
	require.NotZero(t, counts.Stale)
	require.NotZero(t, counts.Heard)
	require.NotZero(t, counts.SessionGone)
	require.NotZero(t, counts.HandedOver)
	require.NotZero(t, counts.Altered)
	require.NotZero(t, counts.Reshaped)
	require.NotZero(t, fleet[sim.FleetErased])
	require.NotZero(t, fleet[sim.FleetPassed])
}

// caughtByGroups takes a rule away until the simulation notices it, from a seed on that is
// not long before one that does.
func caughtByGroups(t *testing.T, rule group.Rule, first uint64) {
	t.Helper()
	if !invariants.Enabled {
		t.Skip("rules can be taken away with -tags invariants only")
	}
	for seed := first; seed < first+60; seed++ {
		if result := simulate(t, sim.Options{Seed: seed, Machines: 3, Groups: true, Without: []group.Rule{rule}}); result.Err != nil {
			t.Logf("caught with seed %d at step %d: %.300s", seed, result.Step, result.Err.What)
			return
		}
	}
	t.Fatalf("not caught in 60 seeds from %d on", first)
}

func TestF17_Catches_AnswersBeforeTheCommit(t *testing.T) {
	caughtByGroups(t, group.RuleCommitted, 1)
}
func TestF17_Catches_RecordsThatGoOnBeforeTheirReturnIsCommitted(t *testing.T) {
	caughtByGroups(t, group.RuleHandOver, 1)
}
func TestF17_Catches_NoWaitAfterAChangeOfTheLeader(t *testing.T) {
	caughtByGroups(t, group.RuleWait, 28)
}
func TestF17_Catches_LostDeliveriesThatNobodyClaims(t *testing.T) {
	caughtByGroups(t, group.RuleUnclaimed, 18)
}
func TestF17_Catches_RecordsThatAreLeftWhenAnEarlierOneIsGivenBack(t *testing.T) {
	caughtByGroups(t, group.RuleTail, 9)
}
func TestF17_Catches_TheNextRecordForAnotherSessionTooEarly(t *testing.T) {
	caughtByGroups(t, group.RuleSameHolder, 1)
}
func TestF17_Catches_ClaimsThatGetAnotherEpoch(t *testing.T) {
	caughtByGroups(t, group.RuleKeepEpoch, 15)
}
func TestF17_Catches_RoomThatIsNeverFreed(t *testing.T) {
	caughtByGroups(t, group.RuleCredit, 1)
}
func TestF17_Catches_DoneRecordsThatANewLeaderGivesAgain(t *testing.T) {
	caughtByGroups(t, group.RuleDone, 1)
}

func TestF17_Catches_SettingsOfWhichConsumersDoNotHear(t *testing.T) {
	caughtByGroups(t, group.RuleAnnounce, 1)
}
func TestF17_Catches_AModeThatChangesUnderLeases(t *testing.T) {
	caughtByGroups(t, group.RuleShape, 1)
}

// A replica that goes on with its own state after it was told that entries are erased does
// not know what groups are done with.
func TestRuleL7_Catches_AReplicaThatPassesOverRecordsWithTheStateThatItHad(t *testing.T) {
	const first, most = 2, 20 // of the seeds of which an old record stays, see sim
	for seed := uint64(first); seed < first+3*most; seed += 3 {
		o := sim.Options{Seed: seed, Machines: 3, Groups: true, Mutant: sim.StateNotFetched, Focus: []string{"leave behind"}}
		if result := simulate(t, o); result.Err != nil {
			t.Logf("caught with seed %d at step %d: %.300s", seed, result.Step, result.Err.What)
			return
		}
	}
	t.Fatalf("not caught in %d seeds", most)
}
