package group

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/internal/invariants"
	"github.com/lockstepmq/lockstep/wire"
)

// oneScope are groups of whose records one session may hold several that are ordered.
var oneScope = []Settings{{Mode: wire.ModeStream}, {Mode: wire.ModeSerial, Scope: wire.ScopeDestination, Window: 2}, {Mode: wire.ModeSerial, Window: 2}}

// Rule 15: a claim counts only if the earlier unfinished records of its scope are claimed
// too: else its session would go on before them.
func TestRule15_AClaimBehindAGapIsRefused(t *testing.T) {
	for _, s := range oneScope {
		r := newRig(t, s)
		r.produce(1, 1)
		a := r.attach('A', 1, 5)
		require.Equal(t, []wire.Offset{0, 1}, a.offsets())
		epoch := a.grants[0].Epoch
		r.lead()
		a = r.attach('A', 2, 5, wire.Outcome{Offset: 1, Count: 1, Epoch: epoch})
		require.NoError(t, a.refused)
		require.Equal(t, []wire.OutcomeAnswer{{Offset: 1, Count: 1, Epoch: epoch, Code: wire.CodeStaleEpoch}}, a.response.Refused)
		r.settle()
		require.Equal(t, []wire.Offset{0, 1}, a.offsets())

		r.lead()
		a = r.attach('A', 3, 5, wire.Outcome{Offset: 0, Count: 2, Epoch: a.grants[0].Epoch})
		require.NoError(t, a.refused)
		require.Empty(t, a.response.Refused, "all are claimed")
	}
}

// Without the rule the session has record 1 and gets record 0 behind it.
func TestRule15_Catches_AGapThatIsNotSeen(t *testing.T) {
	if !invariants.Enabled {
		t.Skip("rules can be taken away in builds with invariants only")
	}
	r := newRig(t, Settings{Mode: wire.ModeStream})
	r.produce(1, 1)
	a := r.attach('A', 1, 5)
	r.lead(RuleGap)
	a = r.attach('A', 2, 5, wire.Outcome{Offset: 1, Count: 1, Epoch: a.grants[0].Epoch})
	require.Empty(t, a.response.Refused)
	require.Equal(t, []wire.Offset{0}, a.offsets())
}

// Rule 15: nor does a claim count behind a gap inside a scope. What is done in between, or
// belongs to another key, is no gap.
func TestRule15_AClaimBehindAGapInsideAKeyIsRefused(t *testing.T) {
	r := newRig(t, Settings{Mode: wire.ModeSerial, Window: 4})
	claims := func(epoch wire.Index, offsets ...wire.Offset) (c []wire.Outcome) {
		for _, o := range offsets {
			c = append(c, wire.Outcome{Offset: o, Count: 1, Epoch: epoch})
		}
		return c
	}
	r.produce(1, 2, 1, 1, 1)
	a := r.attach('A', 1, 10)
	require.Len(t, a.offsets(), 5)
	epoch := a.grants[0].Epoch
	r.lead()
	a = r.attach('A', 2, 10, claims(epoch, 0, 1, 3, 4)...)
	require.NoError(t, a.refused)
	require.Equal(t, []wire.OutcomeAnswer{{Offset: 3, Count: 2, Epoch: epoch, Code: wire.CodeStaleEpoch}}, a.response.Refused)
	r.settle()
	require.NotContains(t, a.offsets(), wire.Offset(0), "it has that")

	r = newRig(t, Settings{Mode: wire.ModeSerial, Window: 4})
	r.produce(1, 2, 1, 1, 1)
	a = r.attach('A', 1, 10)
	epoch = a.grants[0].Epoch
	a.say(wire.OutcomeAck, 0)
	a.say(wire.OutcomeAck, 2)
	r.settle()
	r.lead()
	a = r.attach('A', 2, 10, claims(epoch, 1, 3, 4)...)
	require.NoError(t, a.refused)
	require.Empty(t, a.response.Refused, "0 and 2 are done")
}

// A leader that has looked at as many records as it may knows nothing of the order behind
// them: what is claimed there is delivered again.
func TestRule15_BeyondTheLimitOfAChainClaimsAreRefused(t *testing.T) {
	r := newRig(t, Settings{Mode: wire.ModeSerial, Window: 4})
	r.produce(1, 1)
	a := r.attach('A', 1, 10)
	r.lead()
	r.leader.firsts = firsts{of: make(map[Scope]wire.Offset), chain: chain{last: map[Scope]wire.Offset{}, before: make(map[wire.Offset]wire.Offset, maxFirsts)}}
	for o := range wire.Offset(maxFirsts) {
		r.leader.firsts.chain.before[1<<32+o] = 0
	}
	epoch := a.grants[0].Epoch
	a = r.attach('A', 2, 10, wire.Outcome{Offset: 0, Count: 2, Epoch: epoch})
	require.NoError(t, a.refused)
	require.Equal(t, []wire.OutcomeAnswer{{Offset: 1, Count: 1, Epoch: epoch, Code: wire.CodeStaleEpoch}}, a.response.Refused, "the lowest one is known")
}

// Without the rule the session goes on with records 3 and 4, and gets record 2 behind them.
func TestRule15_Catches_AGapInsideAKeyThatIsNotSeen(t *testing.T) {
	if !invariants.Enabled {
		t.Skip("rules can be taken away in builds with invariants only")
	}
	r := newRig(t, Settings{Mode: wire.ModeSerial, Window: 4})
	r.produce(1, 1, 1)
	a := r.attach('A', 1, 5)
	epoch := a.grants[0].Epoch
	r.lead(RuleGap)
	a = r.attach('A', 2, 5, wire.Outcome{Offset: 0, Count: 1, Epoch: epoch}, wire.Outcome{Offset: 2, Count: 1, Epoch: epoch})
	require.Empty(t, a.response.Refused)
}

// After a change of the leader a failed record rests anew, in each kind of group.
func TestARestOutlastsTheLeader(t *testing.T) {
	for _, s := range append(oneScope, keyGroup, sharedGroup) {
		r := newRig(t, s)
		r.produce(1)
		a := r.attach('A', 1, 5)
		require.Len(t, a.grants, 1)
		r.leader.Outcomes(a, []wire.Outcome{{Offset: 0, Count: 1, Epoch: a.grants[0].Epoch, Kind: wire.OutcomeNack, DelayMs: 5_000}}, r.now)
		r.settle()
		r.lead()
		a = r.attach('A', 2, 5)
		require.NoError(t, a.refused)
		r.settle()
		require.Empty(t, a.grants, "mode %v", s.Mode)
		r.pass(5 * time.Second)
		r.settle()
		require.Len(t, a.grants, 1)
	}
}

// The active session is found among any number of those that stand by.
func TestAStickyGroupWithManyStandbysIsServed(t *testing.T) {
	for _, s := range []Settings{{Mode: wire.ModeStream}, {Mode: wire.ModeSerial, Scope: wire.ScopeDestination, Holder: wire.HolderAny, Window: 100}} {
		r := newRig(t, s)
		var all []*recorder
		for i := range 300 {
			c := &recorder{r: r, session: Session{byte(i), byte(i >> 8), 1}}
			r.leader.Attach(c, &wire.AttachRequest{Session: c.session, Attempt: 1, Term: 1, Capacity: 100, Refill: 50}, "", 1, r.now)
			all = append(all, c)
		}
		r.settle()
		for want := range 20 {
			r.produce(1)
			r.settle()
			got := 0
			for _, c := range all {
				got += len(c.offsets())
			}
			require.Equal(t, want+1, got, "mode %v", s.Mode)
		}
	}
}

// A returned record without a key gets its turn among keys with a backlog.
func TestLeaderStarvesNoRecordWithoutAKey(t *testing.T) {
	s := keyGroup
	s.BackoffMs, s.BackoffMaxMs = 1, 1
	r := newRig(t, s)
	r.produce(0)
	for range 100 {
		r.produce(1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4, 5, 5, 5)
	}
	a := r.attach('A', 1, 3)
	for n := 1; n < 300; n++ {
		o := a.offsets()[n]
		if o == 0 {
			return
		}
		if n == 100 {
			a.say(wire.OutcomeNack, 0)
			r.settle()
			r.now += 10 * time.Millisecond
		}
		a.say(wire.OutcomeAck, o)
		r.finish()
	}
	require.Fail(t, "200 others came first")
}

// Rule 30: nothing of a scope goes out from the order to park it on, also if nothing of it
// did before, and it goes on when it may.
func TestRule30_AParkedScopeStandsStillFromTheOrderOn(t *testing.T) {
	for _, key := range []uint64{1, 0} {
		r := newRig(t, keyGroup)
		a := r.attach('A', 1, 5)
		r.produce(key)
		r.leader.Park(Scope(key), "stop", true, nil)
		r.turn() // the order is proposed, not applied
		require.Empty(t, a.offsets())
		r.settle()
		require.Empty(t, a.offsets())
		r.leader.Unpark(Scope(key), nil)
		r.settle()
		require.Equal(t, []wire.Offset{0}, a.offsets())
	}
}

// A record that cannot be read holds up its scope, and as nobody knows which that is, what
// lies behind it, until it is repaired, or an operator has it skipped. A shared group goes on.
func TestNothingOvertakesARecordThatCannotBeRead(t *testing.T) {
	for _, s := range append(oneScope, keyGroup, sharedGroup) {
		for _, skipped := range []bool{false, true} {
			r := newRig(t, s)
			r.produce(1)
			r.produce(2)
			r.places[0].Damaged = true
			a := r.attach('A', 1, 5)
			if s.Mode == wire.ModeShared {
				require.Equal(t, []wire.Offset{1}, a.offsets())
				continue
			}
			require.Empty(t, a.offsets(), "mode %v", s.Mode)
			if skipped {
				r.leader.Settle([]Span{{0, 1}}, nil, func(err error) { require.NoError(t, err) })
				r.settle()
				require.Equal(t, []wire.Offset{1}, a.offsets())
				continue
			}
			r.places[0].Damaged = false // another replica has it
			r.pass(rereadPause)
			r.settle()
			require.Equal(t, []wire.Offset{0, 1}, a.offsets())
		}
	}
}
