package group

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/wire"
)

// What random histories meet too rarely, or what no consumer that works says: each test fails
// without the one check that it is about.

// T1: a quorum round that began before an attach or a heartbeat was read says nothing about
// the time after it. One that fails answers nobody.
func TestRuleT1_OnlyARoundThatBeganLaterConfirms(t *testing.T) {
	r := newRig(t, sharedGroup)
	a := r.attach('A', 1, 1)
	turn := func() (asks bool) {
		r.leader.Turn(r.now, r.applied, r.end)
		return r.leader.Wants().Confirm
	}
	r.leader.Heartbeat(a, 1, r.now)
	require.True(t, turn())
	again := &recorder{r: r, session: Session{'A'}}
	r.leader.Attach(again, &wire.AttachRequest{Session: Session{'A'}, Attempt: 2, Capacity: 1}, "", 1, r.now)
	require.False(t, turn(), "one is running")
	require.Nil(t, again.response)

	r.leader.Confirmed(nil)
	require.True(t, turn(), "and it was too old")
	require.Nil(t, again.response)
	r.leader.Heartbeat(again, 2, r.now) // not open: it is not counted
	r.leader.Confirmed(wire.CodeUnavailable)
	require.True(t, turn())
	require.Nil(t, again.response)
	r.leader.Confirmed(nil)
	require.False(t, turn())
	require.NotNil(t, again.response)

	r.leader.Heartbeat(again, 3, r.now)
	require.True(t, turn())
	r.leader.Heartbeat(again, 4, r.now)
	require.Empty(t, again.numbers)
	r.leader.Confirmed(nil)
	require.Equal(t, []uint64{3}, again.numbers)
	require.True(t, turn())
	r.leader.Confirmed(nil)
	require.Equal(t, []uint64{3, 4}, again.numbers)
}

// Rule 13: a session that has turned to a later leader gets nothing from this one, and its
// attach changes nothing here.
func TestRule13_AnAttachOfALaterTermIsRefused(t *testing.T) {
	r := newRig(t, sharedGroup)
	r.produce(0)
	a := r.attach('A', 1, 1)
	late := &recorder{r: r}
	r.leader.Attach(late, &wire.AttachRequest{Session: a.session, Attempt: 2, Term: 2, Capacity: 1}, "", 1, r.now)
	r.settle()
	require.Equal(t, wire.CodeNotLeader, wire.CodeOf(late.refused))
	require.Nil(t, late.response)
	require.Empty(t, late.grants)
	require.False(t, a.closed)
}

// Rule 14: an attach that was overtaken ends no newer link, also when the session has attached
// more than once before.
func TestRule14_AnAttachThatWasOvertakenIsRefused(t *testing.T) {
	r := newRig(t, sharedGroup)
	r.attach('A', 1, 1)
	now := r.attach('A', 3, 1)
	late := r.attach('A', 2, 1)
	require.Equal(t, wire.CodeDuplicate, wire.CodeOf(late.refused))
	require.Nil(t, late.response)
	require.False(t, now.closed)
}

// Rule 13: a leader that hears of a later one may be deposed and not know it: it gives nothing
// out until a quorum round that began after that confirms it. A consumer that invents a term
// stops nobody for longer.
func TestRule13_ALeaderThatHearsOfALaterOneStepsAside(t *testing.T) {
	r, a := steppedAsideRig(t)
	require.Empty(t, a.offsets())
	require.Equal(t, "no_quorum", r.leader.Explain(&wire.ExplainRequest{}, 0).Reasons[0].Code)
	r.leader.Confirmed(nil)
	r.turn()
	require.Empty(t, a.offsets(), "that round began before")
	r.leader.Confirmed(wire.CodeUnavailable)
	r.turn()
	require.Empty(t, a.offsets(), "nobody has confirmed it")
	r.leader.Confirmed(nil)
	r.turn()
	require.Equal(t, []wire.Offset{0}, a.offsets())
}

func TestRule13_Catches_ALeaderThatGoesOnAsIfNothingWas(t *testing.T) {
	_, a := steppedAsideRig(t, RuleAside)
	require.Equal(t, []wire.Offset{0}, a.offsets())
}

// steppedAsideRig is a leader that hears of a later one while a quorum round runs, and has a
// record to give.
func steppedAsideRig(t *testing.T, without ...Rule) (*rig, *recorder) {
	r := newRig(t, sharedGroup, without...)
	a := r.attach('A', 1, 10)
	r.unheard = true
	r.leader.Heartbeat(a, 1, r.now)
	r.turn()
	r.leader.StepAside()
	r.produce(0)
	r.settle()
	return r, a
}

// Rules 15 and 26: a record that is a dead letter has left its scope; no epoch brings it back,
// or it would become a second letter.
func TestRule26_ADeadLetterCannotBeClaimed(t *testing.T) {
	r := newRig(t, Settings{Mode: wire.ModeShared, DeliveryLimit: 1, DeadLetter: "dead"})
	r.produce(0)
	a := r.attach('A', 1, 1)
	a.say(wire.OutcomeNack, 0)
	r.settle()
	require.Len(t, r.state.Group(1).Letters.Open, 1)
	r.lead()
	claim := wire.Outcome{Offset: 0, Count: 1, Epoch: r.applied}
	a = r.attach('A', 2, 1, claim)
	require.Equal(t, []wire.OutcomeAnswer{{Offset: 0, Count: 1, Epoch: claim.Epoch, Code: wire.CodeStaleEpoch}}, a.response.Refused)
	require.Empty(t, r.leader.members[a.session].leases.all())
}

// Rule 31: what was taken back after the leases were handed over is not in the hands of who
// held it.
func TestRule31_WhatEndedAfterTheHandOverIsNotTakenOver(t *testing.T) {
	for _, s := range []Settings{sharedGroup, keyGroup, {Mode: wire.ModeStream}} {
		r := newRig(t, s)
		r.produce(5)
		a := r.attach('A', 1, 1)
		require.Equal(t, []wire.Offset{0}, a.offsets())
		r.leader.HandOver(func(err error) { require.NoError(t, err) })
		r.settle()
		a.say(wire.OutcomeReleased, 0)
		r.settle()
		require.Equal(t, wire.CodeOK, a.code(0))
		require.Equal(t, []wire.Offset{0}, a.offsets())

		r.state.Term(2)
		r.lead()
		require.Empty(t, r.leader.members[a.session].leases.all(), "mode %v", s.Mode)
		require.Equal(t, []wire.Offset{0}, r.attach('A', 2, 1).offsets())
	}
}

// Rule 24: of what a session held when it died only the head of each scope has failed.
func TestRule24_OnlyTheHeadOfADeadSessionHasFailed(t *testing.T) {
	for _, s := range oneScope {
		s.Window = 3
		r := newRig(t, s)
		r.produce(1, 1, 1)
		a := r.attach('A', 1, 5)
		require.Equal(t, []wire.Offset{0, 1, 2}, a.offsets())
		r.pass(wire.DefaultSessionMs * time.Millisecond)
		r.settle()
		require.True(t, a.closed)
		for o, attempts := range []uint16{1, 0, 0} {
			known, _ := r.state.Group(1).Record(wire.Offset(o))
			require.Equal(t, []uint16{1, attempts}, []uint16{known.Deliveries, known.Attempts}, "mode %v, record %d", s.Mode, o)
		}
	}
}

// Rule 10: a record whose park ends while its session is waited for waits too.
func TestRule10_AnUnparkedRecordWaitsForItsSession(t *testing.T) {
	r := newRig(t, sharedGroup)
	r.produce(0, 0)
	a := r.attach('A', 1, 2)
	require.Equal(t, []wire.Offset{0, 1}, a.offsets())
	r.leader.Park(1, "broken", false, nil)
	r.settle()
	r.attach('B', 1, 2)
	r.lead()
	b := r.attach('B', 2, 2)
	r.leader.Unpark(1, nil)
	r.settle()
	require.Empty(t, b.offsets(), "A may be at work on it")
	expire(r, b)
	require.Equal(t, []wire.Offset{0, 1}, b.offsets())
}

// Rule 24: a session hears what it has lost behind a record before it is answered for that
// record, or it would go on with what lies behind.
func TestRule24_WhatIsLostIsToldBeforeTheAnswer(t *testing.T) {
	for _, s := range oneScope {
		r := newRig(t, s)
		r.produce(1, 1)
		a := &inSequence{recorder: recorder{r: r}}
		r.leader.Attach(a, &wire.AttachRequest{Session: Session{'A'}, Attempt: 1, Capacity: 2}, "", 1, r.now)
		r.settle()
		require.Equal(t, []wire.Offset{0, 1}, a.offsets())
		r.leader.Outcomes(a, []wire.Outcome{{Offset: 0, Count: 1, Epoch: a.grants[0].Epoch, Kind: wire.OutcomeNack}}, r.now)
		r.settle()
		require.Equal(t, []string{"lost", "answer"}, a.heard, "mode %v", s.Mode)
		require.EqualValues(t, 1, a.lost[0].Offset)
		require.Equal(t, wire.CodeOK, a.code(0))
	}
}

// inSequence is a recorder that notes too in which order it hears what.
type inSequence struct {
	recorder
	heard []string
}

func (c *inSequence) Answer(a []wire.OutcomeAnswer) {
	c.heard = append(c.heard, "answer")
	c.recorder.Answer(a)
}

func (c *inSequence) Lost(v []wire.Lost) {
	c.heard = append(c.heard, "lost")
	c.recorder.Lost(v)
}

// Rule 29: other scopes or another order make all leases of before stale; settings that leave
// them as they are do not.
func TestRule29_OnlyAnotherShapeFencesTheGroup(t *testing.T) {
	b := newBook(t, 100)
	g := b.group(7, PutQueue)
	created := g.Fence
	longer, one := serial, serial
	longer.AckWaitMs += 1000
	one.Scope = wire.ScopeDestination
	require.False(t, g.Drains(&longer))
	for name, other := range map[string]func(*Settings){
		"mode": func(s *Settings) { s.Mode = wire.ModeShared }, "scope": func(s *Settings) { s.Scope = wire.ScopePublisher },
		"holder": func(s *Settings) { s.Holder = wire.HolderAny }, "order": func(s *Settings) { s.Order = wire.OrderReplay },
		"a lower session timeout": func(s *Settings) { s.SessionMs-- },
	} {
		s := g.Settings
		other(&s)
		require.True(t, g.Drains(&s), name)
	}
	b.apply(AppendPut(nil, 7, 8, g.Name, &longer, 0, PutQueue))
	require.Equal(t, created, g.Fence)
	b.apply(AppendPut(nil, 7, 9, g.Name, &one, 0, PutQueue))
	require.Equal(t, b.index, g.Fence)
	require.Equal(t, wire.CodeStaleEpoch, g.Late(5, b.index-1))
	require.Equal(t, wire.CodeNotOwner, g.Late(5, b.index))
}

// Rule 30: a key that was about to go out when it was parked does not.
func TestRule30_AParkedKeyThatIsNextStandsStill(t *testing.T) {
	r := newRig(t, keyGroup)
	r.produce(5, 6)
	a := r.attach('A', 1, 1)
	require.Equal(t, []wire.Offset{0}, a.offsets())
	r.leader.Leave(a, true, r.now)
	a.say(wire.OutcomeReleased, 0)
	r.settle()
	r.leader.Park(5, "broken", false, nil)
	require.Equal(t, []wire.Offset{1}, r.attach('B', 1, 2).offsets())
}

// A snapshot shares what a trim drops: letters, parked records, and what is delivered instead
// of a record.
func TestASnapshotOutlivesATrim(t *testing.T) {
	for name, command := range map[string][]byte{
		"a letter":        AppendLetter(nil, 7, Session{}, &Letter{Number: 0, Offset: 5}),
		"a parked record": AppendPark(nil, 7, 5, 5, "broken"),
		"a substitute":    AppendSubstitute(nil, 7, 5, []byte("repaired")),
	} {
		b := newBook(t, 100)
		b.group(7, PutQueue)
		b.apply(command)
		want, snapshot := b.Save(nil), b.Snapshot()
		b.Trimmed(50)
		require.NotEqual(t, want, b.Save(nil), name)
		require.Equal(t, want, snapshot(nil), name)
	}
}

// What one consumer can make this leader remember has an end.
func TestWhatSessionsSayIsBounded(t *testing.T) {
	r := newRig(t, sharedGroup)
	r.produce(0, 0)
	a := r.attach('A', 1, 1)
	seen := make([]wire.Outcome, maxSeen+1)
	for i := range seen {
		seen[i] = wire.Outcome{Offset: 1, Count: 1, Epoch: 1, Kind: wire.OutcomeLostSeen}
	}
	r.leader.Outcomes(a, seen, r.now)
	require.Len(t, r.leader.next.seen, maxSeen)

	for i := range uint64(maxBeats + 1) {
		r.leader.Heartbeat(a, i, r.now)
	}
	r.turn()
	require.Len(t, a.numbers, maxBeats)
	require.EqualValues(t, maxBeats-1, a.numbers[maxBeats-1])
	r.leader.Heartbeat(a, maxBeats+1, r.now)
	r.turn()
	require.Len(t, a.numbers, maxBeats+1, "there is room again")
}

// What is delivered instead of stored records is bounded in all, and what replaces an earlier
// repair does not count twice.
func TestRepairedRecordsAreBounded(t *testing.T) {
	r := newRig(t, sharedGroup)
	const most = MaxSubstitutesBytes / MaxSubstituteBytes
	r.produce(make([]uint64, most+1)...)
	for o := range wire.Offset(most) {
		r.state.Group(1).Substitutes[o] = make([]byte, MaxSubstituteBytes)
	}
	repair := func(o wire.Offset) error {
		err := error(wire.CodeRetry)
		r.leader.Repair(Scope(o), o, make([]byte, MaxSubstituteBytes), func(e error) { err = e })
		r.settle()
		return err
	}
	require.Equal(t, wire.CodeTooMany, wire.CodeOf(repair(most)))
	require.NoError(t, repair(0))
}

// Of more scopes than a new leader looks up nobody knows where they begin: what is claimed of
// them is delivered again, and all wait for the sessions of before.
func TestRule15_ScopesBeyondTheLimitCannotBeClaimed(t *testing.T) {
	r := newRig(t, keyGroup)
	r.produce(5)
	a := r.attach('A', 1, 1)
	r.lead()
	r.leader.firsts.of = make(map[Scope]wire.Offset, maxFirsts)
	for h := range Scope(maxFirsts) {
		r.leader.firsts.of[1<<32+h] = 0
	}
	again := r.attach('A', 2, 1, wire.Outcome{Offset: 0, Count: 1, Epoch: a.grants[0].Epoch})
	require.Len(t, again.response.Refused, 1)
	require.Equal(t, wire.CodeStaleEpoch, again.response.Refused[0].Code)
	require.Equal(t, []wire.Offset{0}, again.offsets())
	require.Equal(t, wire.GrantRedelivered, again.grants[0].Flags)
}

// Rule 15: with one record of a key at a time, too, a claim does not pass over an earlier one that
// is unfinished: here the ack, at which the next one went out, died with its leader.
func TestRule15_AClaimBehindAnAckThatIsLostIsRefused(t *testing.T) {
	r := newRig(t, keyGroup)
	r.produce(1, 1)
	a := r.attach('A', 1, 5)
	a.say(wire.OutcomeAck, 0)
	r.turn()
	require.Equal(t, []wire.Offset{0, 1}, a.offsets())
	claim := wire.Outcome{Offset: 1, Count: 1, Epoch: a.grants[1].Epoch}
	r.lead()
	a = r.attach('A', 2, 5, claim)
	require.NoError(t, a.refused)
	require.Equal(t, []wire.OutcomeAnswer{{Offset: 1, Count: 1, Epoch: claim.Epoch, Code: wire.CodeStaleEpoch}}, a.response.Refused)
	r.settle()
	require.Equal(t, []wire.Offset{0}, a.offsets())
}

// Rule T2: a session is not silent while the broker stands still, nor before its leader began.
func TestRuleT2_AStandstillIsNotSilence(t *testing.T) {
	session := wire.DefaultSessionMs * time.Millisecond
	for name, begin := range map[string]func(*rig){
		"a standstill":   func(r *rig) { r.leader.Resumed(r.now) },
		"another leader": func(r *rig) { r.lead() },
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, sharedGroup)
			r.attach('A', 1, 5)
			r.now += 2 * session
			begin(r)
			r.settle()
			require.Len(t, r.state.Group(1).Sessions, 1)
			require.Equal(t, r.now+session, r.leader.Deadline(), "nothing is looked at before")
			r.pass(session - 1)
			r.settle()
			require.Len(t, r.state.Group(1).Sessions, 1)
			r.pass(1)
			r.settle()
			require.Empty(t, r.state.Group(1).Sessions)
		})
	}
}
