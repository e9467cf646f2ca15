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

// An extension may also be to an earlier time than the ack wait, and than the next look at the
// session; and it is a day at most.
func TestRuleT4_AnExtensionIsFromNowAndADayAtMost(t *testing.T) {
	r := newRig(t, sharedGroup)
	r.produce(0, 0)
	a := r.attach('A', 1, 10)
	extend := func(o wire.Offset, by time.Duration) {
		r.leader.Outcomes(a, []wire.Outcome{{Offset: o, Count: 1, Epoch: a.grants[0].Epoch, Kind: wire.OutcomeExtend, DelayMs: uint32(by.Milliseconds())}}, r.now)
		r.turn()
	}
	extend(0, 48*time.Hour)
	extend(1, 300*time.Millisecond)
	require.Equal(t, r.now+300*time.Millisecond, r.leader.Deadline())
	r.pass(300*time.Millisecond - 1)
	require.Empty(t, a.revokes)
	r.pass(1)
	require.Len(t, a.revokes, 1)
	require.EqualValues(t, 1, a.revokes[0].Offset)
	a.say(wire.OutcomeAck, 1)
	r.settle()
	late := r.leader.members[a.session].leases.find(0)
	require.Equal(t, time.Second+24*time.Hour, late.until)
}

// What a session only looks at is no attempt: not when it ends, by itself or not, not when
// another one takes its place, and not when it keeps it for too long, also not under the
// next leader.
func TestLookingIsNoAttempt(t *testing.T) {
	limited := sharedGroup
	limited.DeliveryLimit, limited.DeadLetter, limited.DeadLetterMode = 1, "dead", wire.DeadLetterRecord
	look := func(t *testing.T, flags wire.AttachFlags) (*rig, *recorder) {
		r := newRig(t, limited)
		r.produce(0)
		a := &recorder{r: r, session: Session{'A'}, attempt: 1}
		r.leader.Attach(a, &wire.AttachRequest{Session: a.session, Attempt: 1, Term: 1, Capacity: 10, Refill: 5, Flags: flags, Name: "looker"}, "", 1, r.now)
		r.settle()
		require.Equal(t, []wire.Offset{0}, a.offsets())
		return r, a
	}
	ends := map[string]func(*rig, *recorder){
		"dead":   func(r *rig, a *recorder) { r.leader.Gone(a, true); r.settle() },
		"silent": func(r *rig, a *recorder) { r.pass(7 * time.Second); r.settle() },
		"slow":   func(r *rig, a *recorder) { r.overdue(a); r.settle() },
		"slow, and gives it back when asked": func(r *rig, a *recorder) {
			for range 16 {
				r.now += 2 * time.Second
				r.leader.Heard(a, r.now)
				r.turn()
			}
			require.Len(r.t, a.revokes, 1)
			a.say(wire.OutcomeReleased, 0)
			r.settle()
		},
		"replaced": func(r *rig, a *recorder) {
			b := &recorder{r: r, session: Session{'B'}, attempt: 1}
			r.leader.Attach(b, &wire.AttachRequest{Session: b.session, Attempt: 1, Term: 1, Name: "looker"}, "", 1, r.now)
			r.settle()
		},
	}
	for name, end := range ends {
		t.Run(name, func(t *testing.T) {
			const flags = wire.AttachReleaseOnDisconnect | wire.AttachReleaseChosen
			r, a := look(t, flags|wire.AttachLookOnly)
			end(r, a)
			known, _ := r.state.Group(1).Record(0)
			require.Equal(t, Returned{Deliveries: 1}, Returned{Deliveries: known.Deliveries, Attempts: known.Attempts})
			require.Empty(t, r.want.Letters)
			r, a = look(t, flags)
			end(r, a)
			require.Len(t, r.want.Letters, 1, "a worker's is one")
		})
	}
}

// Whether the end of a connection is the end of a consumer is what the consumer has chosen,
// or what the mode says that the group has then, not what it had when the consumer came.
func TestWhoIsReleasedWithItsConnection(t *testing.T) {
	const release, chosen = wire.AttachReleaseOnDisconnect, wire.AttachReleaseChosen
	for _, mode := range []wire.GroupMode{wire.ModeShared, wire.ModeSerial, wire.ModeStream} {
		require.True(t, released(chosen|release, mode), mode)
		require.False(t, released(chosen, mode), mode)
		require.Equal(t, mode == wire.ModeShared, released(0, mode), mode)
		require.Equal(t, mode == wire.ModeShared, released(release, mode), mode)
	}
}
