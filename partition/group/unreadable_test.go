package group

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/wire"
)

// What turns out to be unreadable when it is to be sent goes back, uncounted, and is tried
// again after a while and not at once: its key waits until then, and others go on. Once it is
// known to be damaged it is not given out at all.
func TestARecordThatCannotBeSentWaitsWithItsKeyOnly(t *testing.T) {
	key := []byte("any")
	hash := uint64(HashOf(key))
	r := newRig(t, keyGroup)
	r.produce(hash)
	r.produce(hash)
	r.produce(2)
	a := r.attach('A', 1, 5)
	require.Equal(t, []wire.Offset{0, 2}, a.offsets())
	r.leader.Damaged(a, 0, 1)
	r.settle()
	require.Equal(t, []wire.Offset{0, 2}, a.offsets(), "it is not given out again at once")
	known, _ := r.state.Group(1).Record(0)
	require.Zero(t, known.Deliveries)
	require.Zero(t, known.Attempts)

	r.places[0].Damaged = true // the disk was looked at
	for range 3 {
		r.want = Want{}
		r.pass(rereadPause)
		r.settle()
		require.Equal(t, []wire.Offset{0, 2}, a.offsets())
		require.Contains(t, r.want.Scan, wire.Offset(0), "it is looked at again")
	}
	reason := r.leader.Explain(&wire.ExplainRequest{Key: &key}, 0).Reasons[0]
	require.Equal(t, "corrupt_range", reason.Code)
	require.EqualValues(t, 0, *reason.Offset)
	require.Contains(t, reason.Advice, "key skip")
	other := []byte("other")
	for _, reason := range r.leader.Explain(&wire.ExplainRequest{Key: &other}, 0).Reasons {
		require.NotEqual(t, "corrupt_range", reason.Code)
	}

	r.places[0].Damaged = false // another replica has mended it
	r.pass(rereadPause)
	r.settle()
	require.Equal(t, []wire.Offset{0, 2, 0}, a.offsets())
	a.say(wire.OutcomeAck, 0)
	r.settle()
	require.Equal(t, []wire.Offset{0, 2, 0, 1}, a.offsets())
}

// A key of which a record could not be read goes on when that is repaired, at once: whether it is
// known to be damaged, or was only found so when it was to be sent.
func TestRuleL8_AKeyGoesOnWhenItsRecordIsRepaired(t *testing.T) {
	for name, known := range map[string]bool{"found when it was to be sent": false, "known to be damaged": true} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, keyGroup)
			r.produce(1)
			r.produce(2)
			a := r.attach('A', 1, 5)
			require.Equal(t, []wire.Offset{0, 1}, a.offsets())
			r.leader.Damaged(a, 0, 1)
			r.leader.Damaged(a, 1, 2)
			r.settle()
			if known {
				r.places[0].Damaged, r.places[1].Damaged = true, true
				r.pass(rereadPause)
				r.settle()
			}
			r.places[0].Damaged = false
			r.leader.Repaired(0, 1)
			r.settle()
			require.Equal(t, []wire.Offset{0, 1, 0}, a.offsets(), "the other one rests")
			r.places[1].Damaged = false
			r.leader.Repaired(0, 2)
			r.settle()
			require.Equal(t, []wire.Offset{0, 1, 0, 1}, a.offsets())
			r.pass(rereadPause)
			r.settle()
			require.Len(t, a.offsets(), 4, "once")
		})
	}
}

// Records without a key are scopes of their own in a group by keys: they go on at once, too, when
// they are repaired, each once, and one that rests for another reason rests on.
func TestRuleL8_ARecordWithoutAKeyGoesOnWhenItIsRepaired(t *testing.T) {
	for name, known := range map[string]bool{"found when it was to be sent": false, "known to be damaged": true} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, keyGroup)
			for range 3 {
				r.produce(0)
			}
			a := r.attach('A', 1, 5)
			require.Equal(t, []wire.Offset{0, 1, 2}, a.offsets())
			r.leader.Outcomes(a, []wire.Outcome{{Offset: 2, Count: 1, Epoch: a.grants[2].Epoch, Kind: wire.OutcomeNack, DelayMs: 3_600_000}}, r.now)
			r.leader.Damaged(a, 0, 1)
			r.leader.Damaged(a, 1, 2)
			r.settle()
			if known {
				r.places[0].Damaged, r.places[1].Damaged = true, true
				r.pass(rereadPause)
				r.settle()
			}
			r.places[0].Damaged = false
			r.leader.Repaired(0, 1)
			r.settle()
			require.Equal(t, []wire.Offset{0, 1, 2, 0}, a.offsets(), "the other one rests")
			r.places[1].Damaged = false
			r.leader.Repaired(0, 3)
			r.settle()
			require.Equal(t, []wire.Offset{0, 1, 2, 0, 1}, a.offsets())
			r.pass(rereadPause)
			r.settle()
			require.Len(t, a.offsets(), 5, "once")
			require.Empty(t, r.leader.unreads)
		})
	}
}

// A record that arrived damaged comes back without having failed, after as long as its
// consumer says: no handler has seen it.
func TestARecordThatArrivedDamagedHasNotFailed(t *testing.T) {
	r := newRig(t, Settings{Mode: wire.ModeSerial, DeliveryLimit: 1})
	r.produce(1)
	a := r.attach('A', 1, 5)
	r.leader.Outcomes(a, []wire.Outcome{{Offset: 0, Count: 1, Epoch: a.grants[0].Epoch, Kind: wire.OutcomeReleased, DelayMs: 500}}, r.now)
	r.settle()
	require.Len(t, a.grants, 1)
	r.pass(500 * time.Millisecond)
	r.settle()
	require.Len(t, a.grants, 2)
	require.EqualValues(t, 2, a.grants[1].Deliveries)
	require.Zero(t, a.grants[1].Attempts)
}

// Explain names the first unreadable record that is not done, and nothing that was mended or
// given up.
func TestExplainNamesWhatCannotBeRead(t *testing.T) {
	for _, s := range []Settings{keyGroup, sharedGroup} {
		r := newRig(t, s)
		r.produce(1, 1)
		r.produce(1)
		r.places[0].Damaged = true
		a := r.attach('A', 1, 5)
		corrupt := func() (o int) {
			o = -1
			for _, reason := range r.leader.Explain(&wire.ExplainRequest{}, 0).Reasons {
				if reason.Code == "corrupt_range" {
					o = int(*reason.Offset)
				}
			}
			return o
		}
		require.Equal(t, 0, corrupt())
		r.leader.Settle([]Span{{0, 1}}, nil, func(error) {})
		for range 4 { // what is held is asked back first
			r.settle()
			r.pass(3 * time.Second)
			r.leader.Heard(a, r.now)
		}
		require.Equal(t, 1, corrupt())
		r.places[0].Damaged = false
		r.leader.Repaired(0, 2)
		r.settle()
		require.Equal(t, -1, corrupt())
	}
}

// A record that cannot be read is named to who asks for it, also behind others of its key.
func TestExplainNamesTheRecordThatCannotBeRead(t *testing.T) {
	for name, s := range map[string]Settings{"key": keyGroup, "shared": sharedGroup} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, s)
			r.produce(1)
			r.produce(1)
			r.produce(1)
			if s.Mode == wire.ModeShared { // it passes over them
				r.places[1].Damaged = true
			}
			a := r.attach('A', 1, 3)
			r.settle()
			r.places[1].Damaged, r.places[1].Index = true, nil // the scan has passed it
			a.say(wire.OutcomeAck, 0)
			r.settle()
			offset := uint64(1)
			var codes []string
			for _, reason := range r.leader.Explain(&wire.ExplainRequest{Offset: &offset}, 0).Reasons {
				codes = append(codes, reason.Code)
			}
			require.Contains(t, codes, "corrupt_range")
			require.NotContains(t, codes, "no_credit")
		})
	}
}

// What a shared group has passed over goes out when it is repaired, at once and once, and what
// is still damaged waits for its own repair.
func TestRuleL8_ASharedGroupGetsWhatWasRepaired(t *testing.T) {
	r := newRig(t, sharedGroup)
	for range 4 {
		r.produce(1, 1)
	}
	for _, i := range []int{0, 1, 3} {
		r.places[i].Damaged = true
	}
	a := r.attach('A', 1, 10)
	require.Equal(t, []wire.Offset{4, 5}, a.offsets())
	corrupt := func() *uint64 {
		for _, reason := range r.leader.Explain(&wire.ExplainRequest{}, 0).Reasons {
			if reason.Code == "corrupt_range" {
				return reason.Offset
			}
		}
		return nil
	}
	require.EqualValues(t, 0, *corrupt())

	r.leader.Repaired(0, 8)
	r.settle()
	require.Equal(t, []wire.Offset{4, 5}, a.offsets(), "nothing is readable yet")
	require.EqualValues(t, 0, *corrupt())

	r.places[0].Damaged = false
	for range 2 {
		r.leader.Repaired(0, 4)
		r.settle()
		require.Equal(t, []wire.Offset{4, 5, 0, 1}, a.offsets())
		require.EqualValues(t, 2, *corrupt())
	}
	r.places[1].Damaged, r.places[3].Damaged = false, false
	r.leader.Repaired(3, 7)
	r.settle()
	require.Equal(t, []wire.Offset{4, 5, 0, 1, 3, 6}, a.offsets())
	r.leader.Repaired(0, 8)
	r.settle()
	require.Equal(t, []wire.Offset{4, 5, 0, 1, 3, 6, 2, 7}, a.offsets())
	require.Nil(t, corrupt())
	r.pass(2 * rereadPause)
	require.Len(t, a.offsets(), 8, "once")
}

// What the scan of a new leader has passed over, and meets again when nobody is waited for any
// more, goes out once, also if it was repaired in between.
func TestRuleL8_WhatIsMetAgainAfterARepairIsGivenOnce(t *testing.T) {
	r, b := change(t, sharedGroup, 1, 2)
	r.produce(3)
	r.places[1].Damaged = true
	r.settle()
	require.Empty(t, b.offsets())
	r.places[1].Damaged = false
	expire(r, b)
	require.Equal(t, []wire.Offset{0, 1, 2}, b.offsets())
	r.leader.Repaired(2, 3)
	r.settle()
	require.Equal(t, []wire.Offset{0, 1, 2}, b.offsets())
}
