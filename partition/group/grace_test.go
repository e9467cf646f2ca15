package group

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/wire"
)

// change has session A get the records of the keys given, session B attach, and another
// leader begin, to which B alone comes back.
func change(t *testing.T, s Settings, keys ...uint64) (r *rig, b *recorder) {
	r = newRig(t, s)
	r.produce(keys...)
	a := r.attach('A', 1, 10)
	require.NotEmpty(t, a.grants)
	r.attach('B', 1, 10)
	r.lead()
	b = r.attach('B', 2, 10)
	require.NotNil(t, b.response)
	require.Empty(t, b.grants)
	return r, b
}

// expire lets the time of A's session pass, while B is heard.
func expire(r *rig, b *recorder) {
	for range 4 {
		r.now += 2 * time.Second
		r.leader.Heard(b, r.now)
		r.settle()
	}
	require.Zero(r.t, r.leader.waiting)
}

// flags are those of the last grant of a record.
func (c *recorder) flags(o wire.Offset) (f wire.GrantFlags) {
	for _, g := range c.grants {
		if g.Offset <= o && o < g.Offset+wire.Offset(g.Count) {
			f = g.Flags
		}
	}
	return f
}

// After an unplanned change of the leader a key waits for a session that may hold
// something of it, and a key that cannot be in its hands does not.
func TestRule10_KeysWithoutOldRecordsGoOn(t *testing.T) {
	r, b := change(t, keyGroup, 1, 2)
	r.produce(1, 3, 0, 3)
	r.settle()
	require.Equal(t, []wire.Offset{3, 4}, b.offsets(), "key 3, and the record without a key")
	b.say(wire.OutcomeAck, 3)
	r.settle()
	require.Equal(t, []wire.Offset{3, 4, 5}, b.offsets(), "the next one of key 3")
	require.Equal(t, wire.GrantFlags(0), b.flags(3))
	key, offset := []byte("key"), uint64(0)
	require.Equal(t, "waiting_for_session", r.leader.Explain(&wire.ExplainRequest{Key: &key}, 0).Reasons[0].Code)
	require.Equal(t, "waiting_for_session", r.leader.Explain(&wire.ExplainRequest{Offset: &offset}, 0).Reasons[0].Code)

	expire(r, b)
	require.Equal(t, []wire.Offset{3, 4, 5, 0, 1}, b.offsets())
	require.Equal(t, wire.GrantRedelivered|wire.GrantAtLeast, b.flags(0), "A may have had it")
	b.say(wire.OutcomeAck, 0)
	r.settle()
	require.Equal(t, []wire.Offset{3, 4, 5, 0, 1, 2}, b.offsets(), "key 1 in its order")
	require.Equal(t, wire.GrantFlags(0), b.flags(2), "the one before A's end cannot have had it")
}

// As long as one of the old records was not looked at it may be of any key: all wait.
func TestRule10_EveryOldRecordIsLookedAt(t *testing.T) {
	r := newRig(t, keyGroup)
	r.produce(1)
	r.produce(3)
	require.Len(t, r.attach('A', 1, 10).offsets(), 2)
	r.attach('B', 1, 10)
	r.hidden = map[wire.Offset]bool{1: true}
	r.lead()
	b := r.attach('B', 2, 10)
	require.Empty(t, b.offsets())
	require.Contains(t, r.want.Scan, wire.Offset(1))
	r.produce(3, 5)
	r.settle()
	require.Empty(t, b.offsets())
	r.hidden = nil
	r.settle()
	require.Equal(t, []wire.Offset{3}, b.offsets(), "A may have key 3")
}

func TestRule10_RecordsOfASharedGroupBehindTheOldOnesGoOn(t *testing.T) {
	r, b := change(t, sharedGroup, 1, 2)
	r.produce(3, 4)
	r.settle()
	require.Equal(t, []wire.Offset{2, 3}, b.offsets())
	b.say(wire.OutcomeAck, 3)
	b.say(wire.OutcomeNack, 2) // it rests when the scan comes by again
	r.settle()
	expire(r, b)
	require.Equal(t, []wire.Offset{2, 3, 2, 0, 1}, b.offsets())
}

// Rule 18: of what the leader before had in its log and not below its horizon it has given nothing:
// that waits for nobody.
func TestRule18_WhatTheHorizonDidNotReachGoesOn(t *testing.T) {
	for _, s := range []Settings{sharedGroup, keyGroup} {
		r := newRig(t, s)
		r.leader.step = 4
		a := r.attach('A', 1, 1)
		r.produce(1, 2, 3, 4, 5, 6, 7)
		r.settle()
		require.Equal(t, []wire.Offset{0}, a.offsets())
		require.EqualValues(t, 4, r.state.Group(1).Horizon)
		r.lead()
		b := r.attach('B', 1, 10)
		require.Equal(t, []wire.Offset{4, 5, 6}, b.offsets(), "mode %v", s.Mode)
	}
}

// Records that rest are left out where the scan comes by again when all have come back.
func TestRule10_RestsOutlastTheGrace(t *testing.T) {
	r, b := change(t, sharedGroup, 1)
	r.produce(2, 3)
	r.settle()
	require.Equal(t, []wire.Offset{1, 2}, b.offsets())
	r.leader.Outcomes(b, []wire.Outcome{{Offset: 1, Count: 1, Epoch: b.grants[0].Epoch, Kind: wire.OutcomeNack, DelayMs: 60_000}}, r.now)
	r.settle()
	expire(r, b)
	require.Equal(t, []wire.Offset{1, 2, 0}, b.offsets())
	b.say(wire.OutcomeAck, 0)
	b.say(wire.OutcomeAck, 2)
	r.settle()
	for range 30 {
		r.now += 2 * time.Second
		r.leader.Heard(b, r.now)
		r.settle()
	}
	require.Equal(t, []wire.Offset{1, 2, 0, 1}, b.offsets())
}

// Nobody knows of which keys a damaged batch has records: then all wait.
func TestRule10_WithDamagedRecordsAllKeysWait(t *testing.T) {
	r := newRig(t, keyGroup)
	r.produce(1, 2)
	r.attach('A', 1, 10)
	r.attach('B', 1, 10)
	r.places[0].Damaged = true
	r.lead()
	b := r.attach('B', 2, 10)
	r.produce(3)
	r.settle()
	require.Empty(t, b.offsets())
	expire(r, b)
	require.Empty(t, b.offsets(), "one of the damaged ones may have the same key")
	r.places[0].Damaged = false
	r.pass(rereadPause)
	r.settle()
	require.Equal(t, []wire.Offset{0, 1, 2}, b.offsets())
}

// When what hid the keys is repaired those that it does not hold go on, while the others wait.
func TestRule10_WhenWhatHidThemIsRepairedTheOtherKeysGoOn(t *testing.T) {
	r := newRig(t, keyGroup)
	r.produce(1)
	r.produce(2)
	r.produce(1)
	a := r.attach('A', 1, 10)
	r.attach('B', 1, 10)
	r.places[0].Damaged, r.places[1].Damaged = true, true
	r.lead()
	b := r.attach('B', 2, 10)
	r.produce(2, 3)
	r.settle()
	require.Empty(t, b.offsets())
	for _, i := range []int{1, 0} {
		require.Empty(t, b.offsets(), "nobody knows which keys the rest hides")
		r.places[i].Damaged = false
		r.leader.Repaired(wire.Offset(i), wire.Offset(i+1))
		r.settle()
	}
	require.Equal(t, []wire.Offset{4}, b.offsets(), "key 3; the others may be with A")
	back := r.attach('A', 2, 10, wire.Outcome{Offset: 0, Count: 2, Epoch: a.grants[0].Epoch})
	require.Empty(t, back.response.Refused, "the first of key 1 is known again")
}

// A group whose scope is the whole partition waits as long as something is unfinished.
func TestRule10_AStreamGoesOnWhenEverythingOldIsDone(t *testing.T) {
	destination := Settings{Mode: wire.ModeSerial, Scope: wire.ScopeDestination, Holder: wire.HolderAny}
	r, b := change(t, destination, 1)
	r.produce(2)
	r.settle()
	require.Empty(t, b.offsets(), "record 0 may be with A")

	r = newRig(t, destination)
	r.produce(1)
	a := r.attach('A', 1, 10)
	a.say(wire.OutcomeAck, 0)
	r.settle()
	r.attach('B', 1, 10)
	r.lead()
	b = r.attach('B', 2, 10)
	r.produce(2)
	r.settle()
	require.Equal(t, []wire.Offset{1}, b.offsets())
}

// The claims of a session that comes back late count as they would have without the
// records that went out meanwhile.
func TestRule10_ALateSessionFindsItsRecords(t *testing.T) {
	r := newRig(t, keyGroup)
	r.produce(1, 2)
	a := r.attach('A', 1, 10)
	require.Equal(t, []wire.Offset{0, 1}, a.offsets())
	r.attach('B', 1, 10)
	r.lead()
	b := r.attach('B', 2, 10)
	r.produce(1, 3, 2)
	r.settle()
	require.Equal(t, []wire.Offset{3}, b.offsets())
	back := r.attach('A', 2, 10, wire.Outcome{Offset: 0, Count: 2, Epoch: a.grants[0].Epoch})
	require.Empty(t, back.response.Refused)
	r.leader.Outcomes(back, []wire.Outcome{{Offset: 0, Count: 1, Epoch: a.grants[0].Epoch, Kind: wire.OutcomeAck}}, r.now)
	r.settle()
	require.Equal(t, []wire.Offset{3}, b.offsets())
	require.Equal(t, []wire.Offset{2}, back.offsets(), "key 1 goes on, key 2 is held, key 3 is B's")
}
