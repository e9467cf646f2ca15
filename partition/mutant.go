package partition

import (
	"sync/atomic"

	"github.com/lockstepmq/lockstep/internal/invariants"
)

// Checks that a test takes away to show that they are needed.
var epochsIgnored, sequencesIgnored atomic.Bool

// IgnoreEpochs takes batches of every epoch of a producer, and IgnoreSequences those of
// every sequence, as if nobody had written before. They are for the tests that show the
// checks to be needed, and do nothing in release builds.
func IgnoreEpochs(ignore bool)    { epochsIgnored.Store(ignore) }
func IgnoreSequences(ignore bool) { sequencesIgnored.Store(ignore) }

// unchecked reports whether a batch is taken without a look at its sequence.
func unchecked(epochsDiffer bool) bool {
	return invariants.Enabled && (epochsDiffer && epochsIgnored.Load() || sequencesIgnored.Load())
}
