package group

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/wire"
)

// Which records become dead letters, and what that leaves behind: each test fails without one
// condition of the code that decides on it.

var lettered = Settings{Mode: wire.ModeSerial, DeliveryLimit: 3, DeadLetter: "dead", BackoffMs: 1, BackoffMaxMs: 1}

// alter gives the group other settings that no lease depends on.
func (r *rig) alter(s Settings) {
	s = s.WithDefaults()
	g := r.state.Group(1)
	r.leader.Order(Order{Command: AppendPut(nil, 1, g.Version+1, g.Name, &s, 0, PutQueue)})
	r.settle()
}

// Rule 26: a record that is rejected is a dead letter at once, and says so; one that is given back
// is none, however often it has failed.
func TestRule26_OnlyAFailureMakesADeadLetter(t *testing.T) {
	r := newRig(t, lettered)
	r.produce(1, 2)
	a := r.attach('A', 1, 5)
	r.leader.Outcomes(a, []wire.Outcome{{Offset: 0, Count: 1, Epoch: a.grants[0].Epoch, Kind: wire.OutcomeReject, Text: "no such customer"}}, r.now)
	for range 2 {
		a.say(wire.OutcomeNack, 1)
		r.settle()
		r.pass(time.Millisecond)
	}
	require.Equal(t, []Letter{{Offset: 0, Deliveries: 1, Attempts: 1, Reason: Rejected, Text: "no such customer"}}, r.want.Letters)
	one := lettered
	one.DeliveryLimit = 1
	r.alter(one)
	a = r.attach('A', 2, 5, wire.Outcome{Offset: 1, Count: 1, Epoch: a.grants[len(a.grants)-1].Epoch})
	a.sayUnder(wire.OutcomeReleased, 1, r.leader.members[a.session].leases.find(1).epoch)
	r.settle()
	require.Len(t, r.want.Letters, 1)
	a.say(wire.OutcomeNack, 1)
	r.settle()
	require.Len(t, r.want.Letters, 2)
	require.Equal(t, []any{wire.Offset(1), DeliveryLimit}, []any{r.want.Letters[1].Offset, r.want.Letters[1].Reason})
}

// Rule 26: a letter takes no number that another has, also under another leader.
func TestRule26_LettersOfTwoLeadersHaveTwoNumbers(t *testing.T) {
	r := newRig(t, lettered)
	r.produce(1, 2)
	a := r.attach('A', 1, 5)
	a.say(wire.OutcomeReject, 0)
	r.settle()
	r.lead()
	a = r.attach('A', 2, 5)
	a.say(wire.OutcomeReject, 1)
	r.settle()
	open := r.state.Group(1).Letters.Open
	require.Len(t, open, 2)
	require.Equal(t, []wire.Offset{0, 1}, []wire.Offset{open[0].Offset, open[1].Offset})
}

// Rule 26: a session that did not decide on a record itself hears that it has lost it.
func TestRule26_WhoseRecordIsALetterHearsOfIt(t *testing.T) {
	one := lettered
	one.DeliveryLimit = 1
	r := newRig(t, one)
	r.produce(1)
	a := r.attach('A', 1, 5)
	r.overdue(a)
	r.settle()
	require.Len(t, r.want.Letters, 1)
	require.Equal(t, []wire.Lost{{Offset: 0, Count: 1, Epoch: a.grants[0].Epoch, Reason: wire.ReasonAckWait}}, a.lost)
	require.Empty(t, a.answers)
}

// Rule 26: what is a letter goes out nowhere: not when it is found among the records of its key,
// and not when what was passed over can be read again.
func TestRule26_ALetterIsNotFoundAmongWhatWaits(t *testing.T) {
	redrive := func(r *rig, o wire.Offset) {
		r.leader.Redrive([]Letter{{Offset: o, Text: TargetText("orders", 0)}}, func(wire.Offset) (bool, error) { return false, nil }, func(err error) { require.NoError(t, err) })
		r.settle()
	}
	t.Run("of its key", func(t *testing.T) {
		const records, letter = 2*inlineNext + 4, 2*inlineNext + 1
		r := newRig(t, keyGroup)
		r.produce(make([]uint64, records)...)
		for i := range records {
			r.places[0].Index[16*i] = 1
		}
		redrive(r, letter)
		a := r.attach('A', 1, 1)
		for n := 0; n < len(a.grants); n++ {
			a.say(wire.OutcomeAck, a.grants[n].Offset)
			r.finish()
		}
		require.Len(t, a.offsets(), records-1)
		require.NotContains(t, a.offsets(), wire.Offset(letter))
	})
	t.Run("behind a repair", func(t *testing.T) {
		r := newRig(t, sharedGroup)
		r.produce(0, 0)
		r.places[0].Damaged = true
		redrive(r, 0)
		a := r.attach('A', 1, 5)
		require.Empty(t, a.offsets())
		r.places[0].Damaged = false
		r.leader.Repaired(0, 2)
		r.settle()
		require.Equal(t, []wire.Offset{1}, a.offsets())
	})
}

// Q3: of the letters that are to go back, those that are done or on their way are passed over,
// those that another group has sent back are done, and there are no more than may be.
func TestRuleQ3_WhatGoesBackGoesOnce(t *testing.T) {
	r := newRig(t, sharedGroup)
	r.leader.letterLimit = 3
	r.produce(0, 0, 0, 0, 0)
	a := r.attach('A', 1, 5)
	a.say(wire.OutcomeAck, 0)
	r.leader.Capacity(a, &wire.GroupCapacity{})
	for o := range wire.Offset(4) {
		a.say(wire.OutcomeReleased, 1+o)
	}
	r.settle()
	redrive := func(offsets ...wire.Offset) (err error) {
		var letters []Letter
		for _, o := range offsets {
			letters = append(letters, Letter{Offset: o, Text: TargetText("orders", 0)})
		}
		err = wire.CodeRetry
		r.leader.Redrive(letters, func(o wire.Offset) (bool, error) { return o == 2, nil }, func(e error) { err = e })
		r.settle()
		return err
	}
	require.NoError(t, redrive(0, 1))
	require.NoError(t, redrive(1, 2))
	g := r.state.Group(1)
	require.True(t, g.Done.Has(2), "another group has sent it back")
	require.Equal(t, wire.CodeTooMany, wire.CodeOf(redrive(1, 3, 4)))
	require.NoError(t, redrive(1, 3))
	require.Len(t, g.Letters.Open, 2)
	require.Equal(t, []any{wire.Offset(1), wire.Offset(3), Redriven}, []any{g.Letters.Open[0].Offset, g.Letters.Open[1].Offset, g.Letters.Open[1].Reason})
	require.EqualValues(t, 1, g.Letters.Open[1].Deliveries, "with what was counted")
	require.EqualValues(t, 2, g.Letters.Next)
}

// Q3: a record that a seek has left behind its letter is given out, by this leader and the next.
func TestRuleQ3_ALeaderGivesARecordAgainThatASeekHasTakenFromItsLetter(t *testing.T) {
	r := newRig(t, lettered)
	r.produce(1)
	a := r.attach('A', 1, 5)
	a.say(wire.OutcomeReject, 0)
	r.settle()
	r.leader.Order(Order{Drain: true, Reason: wire.ReasonSeek, Command: AppendSeek(nil, 1, 0, 0)})
	r.settle()
	require.Equal(t, []wire.Offset{0, 0}, a.offsets())
	a.say(wire.OutcomeReleased, 0)
	r.leader.Gone(a, true)
	r.settle()
	r.lead()
	require.Equal(t, []wire.Offset{0}, r.attach('A', 2, 5).offsets())
}

// Rule 2: what a session held is back, or a letter, before it is off the list, however many entries
// that takes: a leader that knows only the beginning waits for it.
func TestRule2_WhatASessionHeldIsBackBeforeItIsGone(t *testing.T) {
	const records = 60
	for name, say := range map[string]func(a *recorder, o wire.Offset){
		"back": func(*recorder, wire.Offset) {},
		"letters": func(a *recorder, o wire.Offset) {
			a.r.leader.Outcomes(a, []wire.Outcome{{Offset: o, Count: 1, Epoch: a.grants[0].Epoch, Kind: wire.OutcomeReject, Text: strings.Repeat("no", 250)}}, a.r.now)
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, lettered)
			keys := make([]uint64, records)
			for i := range keys {
				keys[i] = uint64(i + 1)
			}
			r.produce(keys...)
			a := r.attach('A', 1, records)
			require.Len(t, a.offsets(), records)
			for o := range wire.Offset(records) {
				say(a, o)
			}
			r.now += wire.DefaultSessionMs * time.Millisecond
			for r.leader.Turn(r.now, r.applied, r.end) {
			}
			entries := 0
			for ; len(r.state.Group(1).Sessions) > 0; entries++ {
				data, ok := r.leader.Propose(nil, 1000)
				require.True(t, ok)
				r.apply(data)
				r.leader.Applied(r.applied)
			}
			require.Greater(t, entries, 1)
			deliveries, _ := r.counts()
			for o, n := range deliveries {
				require.EqualValues(t, 1, n, "record %d", o)
			}
		})
	}
}

// A letter about a record that is done by the time its entry is applied is none: it would take the
// record out of what is done.
func TestRule2_ALetterOfADoneRecordIsNone(t *testing.T) {
	b := newBook(t, 100)
	g := b.group(7, PutQueue)
	b.apply(AppendOutcomes(nil, 7, []Span{{5, 6}}, nil))
	b.apply(AppendLetter(nil, 7, Session{}, &Letter{Number: 3, Offset: 5}))
	require.Empty(t, g.Letters.Open)
	require.EqualValues(t, 4, g.Letters.Next, "its number is taken")
}

// Rule 26: a group without a limit tries a record as often as it takes; what is rejected is a dead
// letter at once.
func TestRule26_WithoutALimitOnlyARejectMakesADeadLetter(t *testing.T) {
	r := newRig(t, Settings{Mode: wire.ModeShared, DeadLetterMode: wire.DeadLetterRecord, DeadLetter: "dead", BackoffMs: 1, BackoffMaxMs: 1})
	r.produce(0)
	a := r.attach('A', 1, 5)
	for n := range 5 {
		require.Len(t, a.offsets(), n+1)
		a.say(wire.OutcomeNack, 0)
		r.settle()
		require.Empty(t, r.state.Group(1).Letters.Open)
		r.pass(time.Millisecond)
	}
	a.say(wire.OutcomeReject, 0)
	r.settle()
	require.Len(t, r.state.Group(1).Letters.Open, 1)
}

// Rule 26: a record that became a letter while a session was waited for is not met again when the
// scan goes back to the floor; who gave it up is answered once, and has lost nothing.
func TestRule26_ALetterOfTheGraceIsNotGivenAgain(t *testing.T) {
	s := sharedGroup
	s.DeadLetterMode, s.DeadLetter = wire.DeadLetterRecord, "dead"
	r, b := change(t, s, 1)
	r.produce(2)
	r.settle()
	require.Equal(t, []wire.Offset{1}, b.offsets())
	b.say(wire.OutcomeReject, 1)
	r.settle()
	require.Equal(t, wire.CodeOK, b.code(1))
	require.Equal(t, 1, b.answered(1))
	require.Empty(t, b.lost)
	expire(r, b)
	require.Equal(t, []wire.Offset{1, 0}, b.offsets())
}
