package groupmodel

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/promise"
)

// one and two are worlds with one record, and with two of one scope.
func one(terms, faults int, with Config) Config { return world([]int{0}, terms, 1, faults, with) }
func two(terms, faults int, with Config) Config { return world([]int{0, 0}, terms, 2, faults, with) }

func world(scopes []int, terms, credit, faults int, c Config) Config {
	c.Scopes, c.Terms, c.Credit, c.Faults = scopes, terms, credit, faults
	if c.Consumers == 0 {
		c.Consumers = 2
	}
	return c
}

// variants have the number of the rule in GROUPS that they leave out, or weaken. Where
// GROUPS gives what goes wrong without it, this is what must be found.
var variants = []struct {
	name   string
	off    Rule
	config Config
	broken Promise
}{
	{"epoch_is_the_term", epochIsTerm, one(1, 0, Config{Nacks: 1}), G1},
	{"epoch_is_term_and_forgotten_counter", epochForgotten, two(1, 0, Config{}), G1},
	{"1_acting_before_the_no-op", beforeNoop, one(2, 2, Config{Patient: true, Break: true, LeaderCrash: true}), G2},
	{"2_removal_looks_at_leases", removalLooksAtLeases, one(2, 2, Config{Patient: true, Crash: true, LeaderCrash: true}), Counts},
	{"2_hand-over_without_leases", emptyTable, one(2, 0, Config{Operations: 1, Move: true}), G2},
	{"3_forwarded_proposals", forwarded, one(2, 2, Config{Patient: true, Hang: true, LeaderStays: true}), G1},
	{"4_proposals_are_forgotten", appliedOnly, one(1, 1, Config{Break: true, Timeless: true}), G1},
	{"4_ack_of_an_ending_lease", ackOfEnding, one(1, 2, Config{Consumers: 1, Hang: true, Break: true, Timeouts: 1}), G1},
	{"4_a_lease_is_ended_twice", endedTwice, one(1, 1, Config{Hang: true, Timeouts: 2, Consumers: 3}), G2},
	{"4_deliveries_under_an_ending_lease", deliverEnding, two(1, 0, Config{Nacks: 1}), G6},
	{"5_join_is_volatile", joinVolatile, one(2, 1, Config{Latecomers: 1, LeaderCrash: true}), G2},
	{"6_waiting_for_those_bound", waitForBound, one(2, 1, Config{Operations: 1, Unbind: true, LeaderCrash: true}), G2},
	{"7_volatile_timer", removalVolatile, one(1, 1, Config{Hang: true}), G1},
	{"9_off_the_list_and_told_OK", goneIsTold, one(1, 1, Config{Hang: true}), G1},
	{"9_removed_and_back_on_the_list", removedComesBack, one(2, 2, Config{Hang: true, LeaderCrash: true}), G1},
	{"10_unclaimed_scopes_do_not_wait", unclaimedAtOnce, one(2, 1, Config{LeaderCrash: true}), G2},
	{"10_old_records_wait_without_their_scopes", oldRecordsAlone, two(2, 1, Config{Low: true, LeaderCrash: true}), G2},
	{"11_timer_for_those_that_attached", removalOfAttached, one(2, 2, Config{Patient: true, Crash: true, LeaderCrash: true}), G6},
	{"12_attach_before_claims", attachBeforeClaims, one(2, 1, Config{LeaderCrash: true}), G2},
	{"13_older_attempts_count", attemptIgnored, one(1, 2, Config{Break: true, Late: true}), G2},
	{"13_turning_to_an_older_leader", termNotKept, one(2, 2, Config{Patient: true, Break: true, Late: true, LeaderStays: true}), G2},
	{"14_deliveries_of_a_former_link", formerLink, one(2, 1, Config{LeaderStays: true}), G2},
	{"15_claims_need_an_epoch_of_this_term", claimOfThisTerm, one(2, 1, Config{Patient: true, LeaderCrash: true}), G4},
	{"15_claims_below_the_fence", claimUnfenced, one(2, 2, Config{Patient: true, Hang: true, Timeouts: 1, LeaderCrash: true}), G1},
	{"27_stale_at_once", staleAtOnce, one(2, 2, Config{Patient: true, Hang: true, Timeouts: 1, LeaderCrash: true}), Counts},
	{"15_claims_get_a_new_epoch", claimGetsNewEpoch, one(2, 1, Config{LeaderCrash: true}), G6},
	{"16_claims_without_outcomes", outcomesForgotten, one(2, 1, Config{LeaderCrash: true}), G4},
	{"17_what_was_lost_stays_leased", lostStays, one(1, 1, Config{Break: true}), G6},
	{"18_horizon_is_volatile", horizonVolatile, one(2, 1, Config{Low: true, LeaderCrash: true}), G2},
	{"19_no_doubt", noDoubt, one(2, 2, Config{Patient: true, Crash: true, LeaderCrash: true}), Counts},
	{"19_doubt_is_volatile", doubtVolatile, one(3, 3, Config{Patient: true, Crash: true, LeaderCrash: true}), Counts},
	{"20_OK_before_commit", okOnReceipt, one(2, 1, Config{LeaderCrash: true}), G1},
	{"21_next_on_receipt_of_the_ack", nextOnReceipt, two(2, 1, Config{LeaderCrash: true}), G3},
	{"21_redelivered_on_receipt_of_the_nack", returnOnReceipt, one(2, 1, Config{Nacks: 1, LeaderCrash: true}), Counts},
	{"21_redelivered_before_the_removal", removalOnReceipt, one(1, 1, Config{Crash: true}), Counts},
	{"22_next_before_OK", startsUnconfirmed, two(1, 0, Config{}), G3},
	{"24_nack_keeps_the_rest", nackKeepsRest, two(1, 0, Config{Nacks: 1}), G3},
	{"24_late_deliveries_of_a_lease_given_back", nackForgotten, two(1, 0, Config{Nacks: 1}), G3},
	{"24_nack_of_one", nackOfOne, two(1, 0, Config{Nacks: 1}), G6},
	{"24_limit_on_deliveries", limitOnDeliveries, two(1, 0, Config{Nacks: 2, Limit: 2}), Counts},
	{"24_returned_record_joins_an_older_lease", aheadOfFence, two(2, 2, Config{Patient: true, Break: true, LeaderCrash: true}), G4},
	{"26_next_before_the_verdict", settleOnReceipt, two(2, 1, Config{Patient: true, Nacks: 1, Limit: 1, LeaderCrash: true}), G3},
	{"27_any_epoch", ackOfAnyEpoch, one(1, 1, Config{Consumers: 1, Hang: true, Timeouts: 1}), G1},
	{"28_fence_per_scope", fencePerScope, two(1, 2, Config{Patient: true, Break: true}), G1},
	{"28_no_fence_for_done_records", noFenceForDone, one(1, 1, Config{Hang: true, Timeouts: 1}), G1},
	{"28_stale_for_done_records", doneIsStale, one(1, 1, Config{Patient: true, Break: true}), G1},
	{"29_seek_without_drain", seekWithoutDrain, two(1, 0, Config{Operations: 1, Seek: true}), G2},
	{"29_seek_in_the_grace", seekInGrace, two(2, 1, Config{Patient: true, Operations: 1, Seek: true, LeaderCrash: true}), G2},
	{"29_seek_without_fence", seekWithoutFence, one(1, 1, Config{Operations: 1, Seek: true, Break: true}), G1},
	{"30_park_without_revoke", parkWithoutRevoke, one(1, 0, Config{Operations: 1, Park: true}), G2},
	{"30_skip_without_revoke", skipHeld, two(1, 0, Config{Operations: 1, Skip: true}), G2},
	{"30_skip_in_the_grace", skipInGrace, two(2, 1, Config{Patient: true, Operations: 1, Skip: true, LeaderCrash: true}), G2},
	{"30_unbound_at_once", unboundAtOnce, one(1, 0, Config{Operations: 1, Unbind: true}), G2},
	{"31_table_outlives_a_leader", tableStays, one(3, 1, Config{Patient: true, Operations: 1, Move: true, LeaderCrash: true}), G2},
	{"31_move_given_up_in_silence", voidVolatile, one(2, 1, Config{Operations: 1, Move: true, LeaderCrash: true}), G2},
	{"31_dispatch_goes_on", moveGoesOn, one(2, 0, Config{Operations: 1, Move: true}), G2},
	{"31_move_in_the_grace", moveInGrace, one(3, 1, Config{Patient: true, Operations: 1, Move: true, LeaderCrash: true}), G2},
	{"T1_no_deadline", noDeadline, one(1, 1, Config{Break: true}), G2},
	{"T1_queued_records_survive_it", queueSurvives, one(1, 1, Config{Break: true}), G2},
	{"T1_any_leader_confirms", staleConfirms, one(2, 1, Config{LeaderStays: true}), G2},
	{"T3_broken_is_dead", brokenIsDead, one(1, 1, Config{Break: true}), G2},
	{"T4_no_revoke", withoutRevoke, one(1, 0, Config{Timeouts: 1}), G2},
	{"T4_hard_deadline_of_the_absent", deadlineOfAbsent, one(1, 1, Config{Timeouts: 1, Break: true}), G2},
	{"T5_credit_kept", creditKept, one(1, 0, Config{Consumers: 1, Timeouts: 1}), G6},
	{"T6_suspects_get_nothing", suspectExcluded, one(1, 0, Config{Timeouts: 2}), G6},
	{"T7_active_is_volatile", activeVolatile, one(1, 1, Config{Sticky: true, Break: true}), G2},
	{"T7_suspect_stays_active", activeForever, one(1, 1, Config{Sticky: true, Stick: true}), G6},
}

// TestGroupsModelCatches leaves out one rule after another: the same world that is
// sound with the rule must break the promise without it.
func TestGroupsModelCatches(t *testing.T) {
	var states atomic.Int64
	t.Cleanup(func() { t.Logf("%d variants, each caught, in %d states", len(variants), states.Load()) })
	for _, v := range variants {
		t.Run(v.name, func(t *testing.T) {
			t.Parallel()
			sound(t, v.config)
			m := newModel(v.config, v.off)
			m.only = v.broken
			r := m.explore(*limit)
			states.Add(int64(r.States))
			t.Log(r)
			require.Equal(t, v.broken, r.Promise)
		})
	}
}

var explored sync.Map // Config → func() *Result

// sound requires that a world breaks nothing with all rules. Worlds that several
// variants share are explored once.
func sound(t *testing.T, c Config) *Result {
	t.Helper()
	explore, _ := explored.LoadOrStore(c.key(), sync.OnceValue(func() *Result { return newModel(c).explore(*limit) }))
	r := explore.(func() *Result)()
	require.True(t, r.Complete, "more than %d states; see -model.states", *limit)
	require.Empty(t, r.Promise, r)
	return r
}

// key tells worlds apart: a Config has a slice, and is no key of a map.
func (c Config) key() string { return fmt.Sprintf("%+v", c) }

// TestGroupsModelShowsViolations shows the counterexamples to a promise.Checker, which
// sees no leader, only what consumers see. It has to find each, at the latest when
// the world goes on for a while.
func TestGroupsModelShowsViolations(t *testing.T) {
	invisible := map[Rule]bool{
		limitOnDeliveries: true, // only the dead-letter queue shows it
		forwarded:         true, // both sessions believe that theirs is the ack that counted,
		claimUnfenced:     true, // and with one record there is nothing after it to show the difference
	}
	for _, v := range variants {
		if v.broken == G6 || invisible[v.off] {
			continue // without progress there is nothing to see either
		}
		t.Run(v.name, func(t *testing.T) {
			t.Parallel()
			m := newModel(v.config, v.off)
			m.only = v.broken
			r := m.explore(*limit)
			require.Equal(t, v.broken, r.Promise)
			c := v.config
			options := promise.Options{Flags: true, Steady: c.Patient && !c.Crash && !c.Hang && !c.Stick && c.Timeouts+c.Operations+c.Nacks == 0}
			random := rand.New(rand.NewPCG(3, 4))
			for range 5000 {
				checker := promise.New(options)
				_, end := m.replay(r.actions, func(e promise.Event) { _ = checker.Observe(e) })
				if err := m.goesOn(end, random, 20, checker); err != nil {
					t.Log(err)
					return
				}
			}
			require.Fail(t, "nothing was seen", "%v", r)
		})
	}
}

// goesOn takes random steps from a state, faults less often than others, and returns
// what the checker sees.
func (m *model) goesOn(s *state, random *rand.Rand, steps int, checker *promise.Checker) error {
	again := *m
	again.exact, again.watched = true, true
	for range steps {
		var possible []action
		again.successors(s, func(a action, _ *state) {
			if !again.edge && (a.kind.helps() || a.kind == consumerWakes || random.IntN(8) == 0) {
				possible = append(possible, a)
			}
		})
		if len(possible) == 0 {
			break
		}
		next := again.after(s, possible[random.IntN(len(possible))])
		for _, e := range again.told {
			_ = checker.Observe(e)
		}
		*s = *next
	}
	if lost := checker.Unsettled(); checker.Err() == nil && len(lost) > 0 && m.over(s) {
		return fmt.Errorf("G5: everything is done, and nobody was told so of records %d", lost)
	}
	return checker.Err()
}

// over reports whether all records are done and no consumer can hear more of it.
func (m *model) over(s *state) bool {
	for ci := range m.consumers {
		if c := &s.consumers[ci]; c.condition != working || c.attached == 0 || c.link != s.leaders[0].term || c.ins+c.outs > 0 || c.holds() {
			return false
		}
	}
	return m.finished(s)
}
