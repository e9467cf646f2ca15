package group

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/wire"
)

// A record that is its own scope waits in one place: it rests, waits for room, lies before the
// scan, or is parked and was passed over. An order to let it go on brings it back from the last
// of these alone: from two places it would go to two sessions.
func TestRule30_ARecordThatIsLetGoOnIsGivenOnce(t *testing.T) {
	const rest = 5 * time.Second
	for name, settings := range map[string]Settings{"shared": sharedGroup, "by key, without one": keyGroup} {
		for _, step := range []struct {
			name  string
			early func(r *rig) // while the record rests
			late  func(r *rig) // when it has rested
		}{
			{"it is not parked", func(r *rig) {
				r.leader.Unpark(0, nil)
				r.leader.Unpark(0, nil)
			}, func(r *rig) { r.leader.Unpark(0, nil) }},
			{"it is parked and goes on while it rests", func(r *rig) {
				r.leader.Park(0, "stop", false, nil)
				r.leader.Unpark(0, nil)
			}, func(*rig) {}},
			{"it goes on twice when it has rested", func(r *rig) { r.leader.Park(0, "stop", false, nil) }, func(r *rig) {
				r.leader.Unpark(0, nil)
				r.leader.Unpark(0, nil)
			}},
		} {
			t.Run(name+", "+step.name, func(t *testing.T) {
				r := newRig(t, settings)
				r.produce(0, 0)
				a, b := r.attach('A', 1, 2), r.attach('B', 1, 2)
				require.Equal(t, []wire.Offset{0, 1}, a.offsets())
				r.leader.Outcomes(a, []wire.Outcome{{Offset: 0, Count: 1, Epoch: a.grants[0].Epoch, Kind: wire.OutcomeNack, DelayMs: uint32(rest.Milliseconds())}}, r.now)
				r.settle()
				step.early(r)
				r.settle()
				require.Len(t, slices.Concat(a.offsets(), b.offsets()), 2, "its rest is not over")
				r.now += rest
				r.leader.Heard(a, r.now)
				r.leader.Heard(b, r.now)
				r.settle()
				step.late(r)
				r.settle()
				all := slices.Concat(a.offsets(), b.offsets())
				slices.Sort(all)
				require.Equal(t, []wire.Offset{0, 0, 1}, all)
			})
		}
	}
}

// Who skips or repairs the head of a key wants it to go on, also if its holder parks it by failing
// once more while the group stops for that.
func TestRule30_AHeadThatIsSettledLeavesNothingParked(t *testing.T) {
	for name, order := range map[string]func(r *rig, done func(error)){
		"skip": func(r *rig, done func(error)) {
			key := Scope(5)
			r.leader.Settle([]Span{{From: 0, To: 1}}, &key, done)
		},
		"repair": func(r *rig, done func(error)) { r.leader.Repair(5, 0, []byte("record"), done) },
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, Settings{Mode: wire.ModeSerial, DeliveryLimit: 1, DeadLetterMode: wire.DeadLetterPark})
			r.produce(5, 5)
			a := r.attach('A', 1, 2)
			require.Equal(t, []wire.Offset{0}, a.offsets())
			answered := errors.New("no answer")
			order(r, func(err error) { answered = err })
			r.settle()
			require.Len(t, a.revokes, 1)
			a.say(wire.OutcomeReject, 0)
			r.settle()
			require.NoError(t, answered)
			require.Empty(t, r.state.Group(1).Parked)
			require.Len(t, a.offsets(), 2, "the key goes on")
		})
	}
}

// A parked record that has expired is nobody's to bring back.
func TestRule30_WhatExpiresIsShelvedNoLonger(t *testing.T) {
	r := newRig(t, sharedGroup)
	r.produce(0, 0)
	r.leader.Park(0, "stop", false, nil)
	r.settle()
	a := r.attach('A', 1, 2)
	require.Equal(t, []wire.Offset{1}, a.offsets())
	require.Len(t, r.leader.shelved, 1)
	r.state.Trimmed(1)
	r.leader.Trimmed()
	require.Empty(t, r.leader.shelved)
}
