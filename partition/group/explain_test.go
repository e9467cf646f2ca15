package group

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/wire"
)

// The next record of a key lies behind so many others that it is not in memory: that it is looked
// for is said, and from where.
func TestExplainSaysThatTheNextRecordIsLookedFor(t *testing.T) {
	r := newRig(t, keyGroup)
	key := []byte("k")
	h := uint64(HashOf(key))
	for range inlineNext + 3 {
		r.produce(h)
	}
	a := r.attach('A', 1, 10)
	r.settle()
	for o := wire.Offset(0); len(r.want.Find) == 0; o++ {
		require.Less(t, o, r.end)
		a.say(wire.OutcomeAck, o)
		r.settle()
	}
	last := func() wire.Reason {
		reasons := r.leader.Explain(&wire.ExplainRequest{Key: &key}, 0).Reasons
		return reasons[len(reasons)-1]
	}
	require.Equal(t, "finding_next", last().Code)
	require.Contains(t, last().Text, fmt.Sprintf("above offset %d is being looked for", r.want.Find[0].After))
	given := len(a.offsets())
	r.finish()
	require.Equal(t, given+1, len(a.offsets()))
	require.Equal(t, "held", last().Code)
}
