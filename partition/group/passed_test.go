package group

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/wire"
)

// RULES L8: whose a record is that is damaged after the scan has passed it nobody knows any more. A key whose next one it may
// be waits until it is repaired, and takes it only if it is its own.
func TestRuleL8_AKeyDoesNotOvertakeWhatMayBeItsNext(t *testing.T) {
	for _, key := range []uint64{5, 6} {
		r := newRig(t, keyGroup)
		for range inlineNext + 2 {
			r.produce(5)
		}
		damaged := r.end
		r.produce(key)
		r.produce(5)
		r.leader.Park(6, "stop", false, func(error) {})
		r.settle()
		a := r.attach('A', 1, 20)
		whole := r.places[damaged]
		r.places[damaged].Damaged, r.places[damaged].Index = true, nil
		finish := func() {
			for done := 0; done < len(a.grants); done++ {
				a.say(wire.OutcomeAck, a.offsets()[done])
				r.finish()
			}
		}
		finish()
		require.Len(t, a.grants, inlineNext+2, "what may be its next cannot be read")
		reasons := r.leader.ExplainScope(5, 0)
		require.Equal(t, "corrupt_range", reasons[0].Code)
		r.places[damaged] = whole
		r.leader.Repaired(damaged, damaged+1)
		r.settle()
		finish()
		want := []wire.Offset{damaged, damaged + 1}
		if key == 6 {
			want = want[1:]
		}
		require.Equal(t, want, a.offsets()[inlineNext+2:])
	}
}
