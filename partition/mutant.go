package partition

import (
	"sync/atomic"

	"github.com/lockstepmq/lockstep/internal/invariants"
	"github.com/lockstepmq/lockstep/partition/group"
)

// Checks that a test takes away to show that they are needed.
var epochsIgnored, sequencesIgnored, majoritiesIgnored, ignoredWays, ignoredBegun atomic.Bool

// IgnoreEpochs takes batches of every epoch of a producer, and IgnoreSequences those of
// every sequence, as if nobody had written before. They are for the tests that show the
// checks to be needed, and do nothing in release builds.
func IgnoreEpochs(ignore bool)    { epochsIgnored.Store(ignore) }
func IgnoreSequences(ignore bool) { sequencesIgnored.Store(ignore) }

// IgnoreMajorities answers every batch from the leader's memory, also those that asked for
// a majority.
func IgnoreMajorities(ignore bool) { majoritiesIgnored.Store(ignore) }

// IgnoreWays has letters on their way back wait for none that another group has sent back
// before.
func IgnoreWays(ignore bool) { ignoredWays.Store(ignore) }

// IgnoreBegun has letters sent back that another group of the partition is not done with, as one
// is not that has begun since its groups were listed.
func IgnoreBegun(ignore bool) { ignoredBegun.Store(ignore) }

func begunIgnored() bool { return invariants.Enabled && ignoredBegun.Load() }

func waysIgnored() bool { return invariants.Enabled && ignoredWays.Load() }

// unchecked reports whether a batch is taken without a look at its sequence.
func unchecked(epochsDiffer bool) bool {
	return invariants.Enabled && (epochsDiffer && epochsIgnored.Load() || sequencesIgnored.Load())
}

// Without takes rules of the Leaders away, before the first turn. It is for tests that show
// the rules to be needed, and does nothing in release builds.
func (g *Groups) Without(rules ...group.Rule) { g.taken = rules }

// rulesIgnored are taken away from all Leaders that are made.
var rulesIgnored atomic.Pointer[[]group.Rule]

// IgnoreRules is Without for all partitions of the process, those of later on.
func IgnoreRules(rules ...group.Rule) { rulesIgnored.Store(&rules) }
