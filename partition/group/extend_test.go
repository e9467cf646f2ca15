package group

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/wire"
)

// An extended lease has the deadline that was asked for, and the others keep theirs. There
// is no answer: the session could take it for that to an ack that it has said behind.
func TestLeaderExtendsALease(t *testing.T) {
	r := newRig(t, sharedGroup) // an ack wait of 30 s
	r.produce(0, 0, 0)
	a := r.attach('A', 1, 10)
	extend := func(o wire.Offset, by time.Duration) {
		r.leader.Outcomes(a, []wire.Outcome{{Offset: o, Count: 1, Epoch: a.grants[0].Epoch, Kind: wire.OutcomeExtend, DelayMs: uint32(by.Milliseconds())}}, r.now)
		r.turn()
	}
	pass := func(d time.Duration) {
		for end := r.now + d; r.now < end; {
			r.now += time.Second
			r.leader.Heard(a, r.now)
			r.turn()
		}
	}
	asked := func() (out []wire.Offset) {
		for _, v := range a.revokes {
			for i := range v.Count {
				out = append(out, v.Offset+wire.Offset(i))
			}
		}
		return out
	}
	extend(1, time.Hour)
	extend(2, 10*time.Second)
	pass(9 * time.Second)
	require.Empty(t, a.revokes)
	pass(2 * time.Second)
	require.Equal(t, []wire.Offset{2}, asked())
	extend(2, time.Hour) // too late: it is asked back
	pass(40 * time.Second)
	require.Equal(t, []wire.Offset{2, 0}, asked())
	r.settle()
	require.Equal(t, []wire.Lost{
		{Offset: 2, Count: 1, Epoch: a.grants[0].Epoch, Reason: wire.ReasonAckWait},
	}, a.lost[:1])
	require.Empty(t, a.answers)
	a.sayUnder(wire.OutcomeAck, 1, a.grants[0].Epoch)
	r.settle()
	require.Equal(t, wire.CodeOK, a.code(1), "it is still the session's")
}
