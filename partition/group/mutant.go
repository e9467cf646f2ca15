package group

import (
	"slices"

	"github.com/lockstepmq/lockstep/internal/invariants"
)

// Rule is a rule of the Leader that a test can take away, to show that it is needed and
// that the checks see it missing.
type Rule uint8

// The rules that can be taken away.
const (
	// RuleCommitted: only an applied entry of the own term settles anything; without it an ack is
	// answered when it is read.
	RuleCommitted Rule = iota
	// RuleHandOver: a record goes to another session when its return is applied; without it
	// when the return is read.
	RuleHandOver
	// RuleJoin: a session is listed before it is given anything.
	RuleJoin
	// RuleWait: after a change of the leader nothing is given before all listed sessions
	// have come back or are removed.
	RuleWait
	// RuleOld: until then a scope goes on only if it has no unfinished record that the leader
	// before may have given.
	RuleOld
	// RuleSilent: a listed session that never attached to this leader is removed too.
	RuleSilent
	// RuleAttempt: an attach that is older than the last one is ignored.
	RuleAttempt
	// RuleFence: a claim below the fence of its record is refused.
	RuleFence
	// RuleKeepEpoch: a lease that is claimed keeps its epoch.
	RuleKeepEpoch
	// RuleGap: where a session may have several records of a scope, a claim counts only with all
	// before it.
	RuleGap
	// RuleUnclaimed: what was given here and is not claimed was lost, and is returned.
	RuleUnclaimed
	// RuleHorizon: nothing at or above the horizon is given.
	RuleHorizon
	// RuleDoubt: removing a session that has not come back raises the doubt mark.
	RuleDoubt
	// RuleTail: with a record all later ones of its scope are given back.
	RuleTail
	// RuleInOrder: acks of a scope are taken in the order of the records.
	RuleInOrder
	// RuleSameHolder: the next record of a scope goes to the session whose ack is not
	// applied yet, never to another.
	RuleSameHolder
	// RuleStale: what is said under a lease that was taken back is refused.
	RuleStale
	// RuleEnding: a session whose removal is proposed gets and settles nothing.
	RuleEnding
	// RuleCredit: what is given back or lost frees the session's credit.
	RuleCredit
	// RuleSuspect: suspicion never excludes the last candidate.
	RuleSuspect
	// RuleCapacity: a session holds no more than it asked for.
	RuleCapacity
	// RuleDrain: a seek waits until nothing is leased.
	RuleDrain
	// RuleActive: nothing is given while another session is about to become the active one.
	RuleActive
	// RuleKnown: a session that was removed is not listed again.
	RuleKnown
	// RuleWhole: a leader that does not know all leases hands none over.
	RuleWhole
	// RuleFrozen: nothing is given out after the leases are handed over.
	RuleFrozen
	// RuleGeneration: where a consumer of a newer generation of bindings is, none of an
	// older one stays or comes.
	RuleGeneration
	// RuleDone: what is done is not given again; without it a new leader begins at the
	// floor and gives everything above it.
	RuleDone
	// RuleSole: a group that takes one consumer refuses a second.
	RuleSole
	// RuleAside: who hears of a later leader gives nothing out before a quorum has confirmed
	// that it leads.
	RuleAside
	// RuleAnnounce: consumers attach anew when what they go by has changed.
	RuleAnnounce
	// RuleShape: another mode, scope, holder or order comes when nothing is leased.
	RuleShape
	// RuleLower: a lower session timeout comes when nothing is leased.
	RuleLower
	// RuleChosen: whether the end of its connection is the end of a consumer is what it has
	// chosen; without it the mode decides for all.
	RuleChosen
	rules
)

// Without takes rules away. It does nothing in release builds.
func (l *Leader) Without(r ...Rule) {
	for _, r := range r {
		l.taken |= 1 << r
	}
}

// keeps reports whether a rule is in force.
func (l *Leader) keeps(r Rule) bool { return !invariants.Enabled || l.taken&(1<<r) == 0 }

// keeps reports whether a rule is in force where there is no Leader.
func keeps(without []Rule, r Rule) bool { return !invariants.Enabled || !slices.Contains(without, r) }

// CoordinatorRule is a rule of the Coordinator that a test can take away.
type CoordinatorRule uint8

// The rules of the Coordinator that can be taken away.
const (
	// RuleEnrolled: a consumer hears its partitions when the entry that lists it is applied.
	RuleEnrolled CoordinatorRule = iota
	// RuleTold: all members hear of a binding, not only those who caused it.
	RuleTold
	// RuleAbove: a binding is newer than every one that a member knows.
	RuleAbove
	// RuleNewest: a coordinator of an older generation serves no member of a newer one.
	RuleNewest
	// RuleQuiet: who is not heard is taken off the list.
	RuleQuiet
	// RuleInherits: who takes the place of another takes its partitions.
	RuleInherits
	// RuleAgain: what was not committed is proposed again.
	RuleAgain
	// RuleThere: who may be dead is given no partition of another.
	RuleThere
)

// Without takes rules away. It does nothing in release builds.
func (c *Coordinator) Without(r ...CoordinatorRule) {
	for _, r := range r {
		c.taken |= 1 << r
	}
}

// keeps reports whether a rule is in force.
func (c *Coordinator) keeps(r CoordinatorRule) bool {
	return !invariants.Enabled || c.taken&(1<<r) == 0
}
