package group

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/wire"
)

// How sessions get onto the list of a partition and off it again. Each test fails without one
// condition of the code that sees to it.

const sessionTime = wire.DefaultSessionMs * time.Millisecond

// ask begins a link and takes a turn: what that proposes is not applied.
func (r *rig) ask(q wire.AttachRequest) *recorder {
	c := &recorder{r: r, session: q.Session, attempt: q.Attempt}
	q.Term, q.Capacity = 1, 5
	r.leader.Attach(c, &q, "host", 1, r.now)
	r.turn()
	return c
}

// listed are the letters of the sessions on the list.
func (r *rig) listed() (out []byte) {
	for _, s := range sortedSessions(r.state.Group(1).Sessions) {
		out = append(out, s[0])
	}
	return out
}

// Rules 5, T2: the time of a session begins when it is listed, however long that took.
func TestRule5_TimeBeginsWhenASessionIsListed(t *testing.T) {
	r := newRig(t, sharedGroup)
	a := r.ask(wire.AttachRequest{Session: Session{'A'}, Attempt: 1})
	r.pass(2 * sessionTime) // there is no quorum
	require.Nil(t, a.response)
	r.settle()
	require.NotNil(t, a.response)
	r.pass(sessionTime - 1)
	r.settle()
	require.Equal(t, []byte{'A'}, r.listed())
	require.Equal(t, "host", r.state.Group(1).Sessions[a.session].Client)
	r.pass(1)
	r.settle()
	require.Empty(t, r.listed())
	require.True(t, a.closed)
	require.Equal(t, wire.CodeSessionGone, a.reason)
}

// Rule T1: the entry that lists a session answers the attach that it was proposed for. One that was
// read later waits for a quorum round.
func TestRuleT1_AnEntryConfirmsNoAttachThatWasReadLater(t *testing.T) {
	r := newRig(t, sharedGroup)
	r.unheard = true
	first := r.ask(wire.AttachRequest{Session: Session{'A'}, Attempt: 1})
	again := r.ask(wire.AttachRequest{Session: Session{'A'}, Attempt: 2})
	require.Equal(t, wire.CodeDuplicate, wire.CodeOf(first.refused))
	r.settle()
	require.Equal(t, []byte{'A'}, r.listed())
	require.Nil(t, again.response)
	r.leader.Confirmed(nil)
	r.settle()
	require.NotNil(t, again.response)
}

// Rule 9: who claims something and is not listed has lost it, whatever became of the record.
func TestRule9_WhoIsNotListedHasNothing(t *testing.T) {
	claims := []wire.Outcome{{Offset: 0, Count: 1, Epoch: 1 << 40, Kind: wire.OutcomeAck}}
	r := newRig(t, sharedGroup)
	r.produce(0)
	b := r.attach('B', 1, 1)
	b.say(wire.OutcomeAck, 0)
	r.settle()
	a := r.ask(wire.AttachRequest{Session: Session{'A'}, Attempt: 1, Claims: claims})
	require.Equal(t, wire.CodeSessionGone, a.refused)
	require.NoError(t, r.ask(wire.AttachRequest{Session: Session{'A'}, Attempt: 1}).refused)
	a = r.ask(wire.AttachRequest{Session: Session{'A'}, Attempt: 2, Claims: claims})
	require.Equal(t, wire.CodeSessionGone, a.refused, "it is about to be, and was not")
}

// Rule 4: a session whose end is proposed is not let in again: it would be given something, and
// that would go to others when the entry is applied.
func TestRule4_ASessionThatEndsIsNotLetIn(t *testing.T) {
	for name, end := range map[string]func(*rig){
		"it was silent":   func(r *rig) { r.pass(sessionTime) },
		"it was replaced": func(r *rig) { r.ask(wire.AttachRequest{Session: Session{'B'}, Attempt: 1, Predecessor: Session{'A'}}) },
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, sharedGroup)
			r.attach('A', 1, 5)
			end(r)
			require.Len(t, r.entries, 1)
			again := r.ask(wire.AttachRequest{Session: Session{'A'}, Attempt: 2, Flags: wire.AttachKnown})
			r.pass(sessionTime)
			require.Nil(t, again.response)
			require.Len(t, r.entries, 1, "its end is proposed once")
			r.settle()
			require.Equal(t, wire.CodeSessionGone, again.refused)
		})
	}
}

// Rule 8: who is replaced hears of it before its records go to others: two processes may have the
// same name.
func TestRule8_WhoIsReplacedHearsOfItFirst(t *testing.T) {
	r := newRig(t, sharedGroup)
	r.produce(0)
	a := r.attach('A', 1, 5)
	b := r.ask(wire.AttachRequest{Session: Session{'B'}, Attempt: 1, Predecessor: a.session})
	require.True(t, a.closed)
	require.Equal(t, wire.CodeSessionGone, a.reason)
	require.Equal(t, []byte{'A'}, r.listed())
	r.settle()
	require.Equal(t, []wire.Offset{0}, b.offsets())
	require.Equal(t, []byte{'B'}, r.listed())
}

// Rule 8: of sessions that follow each other fast under one name the last stays, and who was never
// asked for takes no name away with it.
func TestRule8_TheLastOfANameStays(t *testing.T) {
	named := func(s byte) wire.AttachRequest {
		return wire.AttachRequest{Session: Session{s}, Attempt: 1, Name: "worker"}
	}
	r := newRig(t, sharedGroup)
	r.ask(named('A'))
	r.settle()
	r.ask(named('B'))
	c := r.ask(named('C'))
	r.settle()
	require.Equal(t, []byte{'C'}, r.listed())
	require.NotNil(t, c.response)
	r.leader.Leave(c, false, r.now)
	r.settle()
	require.Empty(t, r.leader.names)

	a := r.ask(named('D'))
	r.ask(named('E')) // nobody is listed under the name yet
	r.settle()
	require.Equal(t, []byte{'D', 'E'}, r.listed())
	r.leader.Leave(a, false, r.now)
	r.settle()
	r.ask(named('F'))
	r.settle()
	require.Equal(t, []byte{'F'}, r.listed())
}

// Rule 8: a predecessor that is about to be listed goes all the same.
func TestRule8_APredecessorThatIsNotListedYetIsReplaced(t *testing.T) {
	r := newRig(t, sharedGroup)
	r.produce(0)
	a := r.ask(wire.AttachRequest{Session: Session{'A'}, Attempt: 1})
	b := r.ask(wire.AttachRequest{Session: Session{'B'}, Attempt: 1, Predecessor: a.session})
	r.settle()
	require.Equal(t, []byte{'B'}, r.listed())
	require.Empty(t, a.offsets())
	require.Equal(t, wire.CodeSessionGone, a.reason)
	require.Equal(t, []wire.Offset{0}, b.offsets())
}

// Rule 8: the one consumer that a group takes may be replaced, and another one may come when it
// is going.
func TestRule8_ASoleConsumerIsReplaced(t *testing.T) {
	r := newRig(t, soleGroup)
	a := r.attach('A', 1, 5)
	b := r.ask(wire.AttachRequest{Session: Session{'B'}, Attempt: 1, Predecessor: a.session})
	r.settle()
	require.NotNil(t, b.response)
	r.leader.Leave(b, false, r.now)
	c := r.ask(wire.AttachRequest{Session: Session{'C'}, Attempt: 1})
	r.settle()
	require.NotNil(t, c.response)
	require.Equal(t, []byte{'C'}, r.listed())
}

// Rule 9: a session that ends hears first what the same entry has settled.
func TestRule9_WhatIsSettledWithTheEndIsTold(t *testing.T) {
	r := newRig(t, sharedGroup)
	r.produce(0)
	a := r.attach('A', 1, 5)
	r.leader.Outcomes(a, []wire.Outcome{{Offset: 0, Count: 1, Epoch: a.grants[0].Epoch, Kind: wire.OutcomeAck}}, r.now)
	r.leader.Leave(a, false, r.now)
	r.leader.Gone(a, true)
	require.Len(t, r.leader.next.removes, 1, "it goes once")
	r.settle()
	require.True(t, r.state.Group(1).Done.Has(0))

	r.produce(0)
	b := r.attach('B', 1, 5)
	r.leader.Outcomes(b, []wire.Outcome{{Offset: 1, Count: 1, Epoch: b.grants[0].Epoch, Kind: wire.OutcomeAck}}, r.now)
	r.leader.Leave(b, false, r.now)
	r.turn()
	require.Len(t, r.entries, 1)
	r.settle()
	require.Equal(t, wire.CodeOK, b.code(1))
	require.NoError(t, b.reason)
}

// Rule 19: a session that has come back has said what it was given: its end leaves no doubt.
func TestRule19_ASessionThatHasComeBackLeavesNoDoubt(t *testing.T) {
	r := newRig(t, sharedGroup)
	r.produce(0)
	r.attach('A', 1, 5)
	r.attach('B', 1, 5)
	r.lead()
	a := r.attach('A', 2, 5)
	r.leader.Leave(a, false, r.now)
	r.settle()
	require.Equal(t, []byte{'B'}, r.listed())
	require.Zero(t, r.state.Group(1).Doubt)
	r.pass(sessionTime)
	r.settle()
	require.EqualValues(t, 1, r.state.Group(1).Doubt)
}

// Rule 19: the records of a batch behind the doubt mark are in no doubt.
func TestRule19_DoubtEndsAtItsMark(t *testing.T) {
	r := newRig(t, sharedGroup)
	r.produce(0, 0, 0, 0)
	r.state.Group(1).Doubt = 2
	a := r.attach('A', 1, 5)
	for o := range wire.Offset(4) {
		require.Equal(t, o < 2, a.flags(o) == wire.GrantRedelivered|wire.GrantAtLeast)
		require.Equal(t, o >= 2, a.flags(o) == 0)
	}
}

// Rule 6: a session that was to go when it holds nothing, and attaches anew, stays.
func TestRule6_WhoAttachesAnewStays(t *testing.T) {
	r := newRig(t, sharedGroup)
	r.produce(0)
	a := r.attach('A', 1, 5)
	r.leader.Leave(a, true, r.now)
	a = r.attach('A', 2, 5, wire.Outcome{Offset: 0, Count: 1, Epoch: a.grants[0].Epoch})
	a.say(wire.OutcomeAck, 0)
	r.produce(0)
	r.settle()
	require.Equal(t, []byte{'A'}, r.listed())
	require.Equal(t, []wire.Offset{1}, a.offsets())
}
