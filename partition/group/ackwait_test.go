package group

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/wire"
)

// heard lets time pass in which a session says nothing but that it is there.
func (r *rig) heard(c *recorder, d time.Duration) {
	for end := r.now + d; r.now < end; {
		r.now = min(end, r.now+time.Second)
		r.leader.Heard(c, r.now)
		r.settle()
	}
}

// T4: the ack wait of a record runs from its own delivery. What a session was given earlier, and
// works on for long, takes nothing of it away.
func TestRuleT4_WhatIsGivenLaterIsNotOverdueEarlier(t *testing.T) {
	const ackWait = wire.DefaultAckWaitMs * time.Millisecond
	for _, c := range []struct {
		name     string
		extended bool
		later    time.Duration
		revoked  []wire.Offset // an ack wait after the first
	}{
		{"the first is extended", true, 2 * ackWait, nil},
		{"the first is late", false, ackWait - time.Second, []wire.Offset{0}},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, s := range []Settings{sharedGroup, keyGroup} {
				r := newRig(t, s)
				r.produce(1)
				a := r.attach('A', 1, 5)
				if c.extended {
					r.leader.Outcomes(a, []wire.Outcome{{Offset: 0, Count: 1, Epoch: a.grants[0].Epoch, Kind: wire.OutcomeExtend, DelayMs: 3_600_000}}, r.now)
				}
				r.heard(a, c.later)
				r.produce(2)
				r.settle()
				require.Equal(t, []wire.Offset{0, 1}, a.offsets())
				asked := func() (out []wire.Offset) {
					for _, v := range a.revokes {
						require.EqualValues(t, 1, v.Count)
						out = append(out, v.Offset)
					}
					return out
				}
				r.heard(a, ackWait-1)
				require.NotContains(t, asked(), wire.Offset(1), "mode %v", s.Mode)
				require.Equal(t, c.revoked, asked())
				if c.extended {
					r.heard(a, time.Second)
					require.Equal(t, []wire.Offset{1}, asked())
				}
			}
		})
	}
}
