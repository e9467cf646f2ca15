package group

import (
	"flag"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/wire"
)

var (
	leaderSeeds = flag.Int("leader.seeds", 60, "how many random histories of each kind of group are played")
	leaderLines = flag.Int("leader.lines", 80, "how many lines of a failed history are shown")
	leaderSeed  = flag.Uint64("leader.seed", 0, "the first seed")
)

var leaderKinds = []struct {
	name     string
	settings Settings
}{
	{"shared", Settings{Mode: wire.ModeShared}},
	{"serial by key", Settings{Mode: wire.ModeSerial}},
	{"serial by key with a window", Settings{Mode: wire.ModeSerial, Window: 3}},
	{"serial, one for all", Settings{Mode: wire.ModeSerial, Scope: wire.ScopeDestination, Failback: true}},
	{"serial, any of all", Settings{Mode: wire.ModeSerial, Scope: wire.ScopeDestination, Holder: wire.HolderAny}},
	{"shared, and in a hurry", Settings{Mode: wire.ModeShared, AckWaitMs: 300, RevokeMs: 100}},
	{"serial by key, and in a hurry", Settings{Mode: wire.ModeSerial, AckWaitMs: 300, RevokeMs: 100}},
	{"stream", Settings{Mode: wire.ModeStream}},
	{"stream, and in a hurry", Settings{Mode: wire.ModeStream, AckWaitMs: 300, RevokeMs: 100}},
}

func TestLeaderKeepsItsPromises(t *testing.T) {
	for _, k := range leaderKinds {
		t.Run(k.name, func(t *testing.T) {
			for seed := *leaderSeed; seed < *leaderSeed+uint64(*leaderSeeds); seed++ {
				h := newHarness(seed, k.settings)
				if err := h.run(3000); err != nil {
					require.NoError(t, err, "seed %d\n%s", seed, h.tail(*leaderLines))
				}
			}
		})
	}
}

func TestRuleQ3_LettersThatExpiredDoNotCount(t *testing.T) {
	s := Settings{Mode: wire.ModeShared, DeliveryLimit: 1, DeadLetterMode: wire.DeadLetterRecord, DeadLetter: "dead", BackoffMs: 1, BackoffMaxMs: 1}
	r := newRig(t, s)
	r.leader.letterLimit = 2
	r.produce(1, 1, 1, 1)
	a := r.attach('A', 1, 2)
	a.say(wire.OutcomeNack, 0)
	a.say(wire.OutcomeNack, 1)
	r.settle()
	require.Len(t, r.state.Group(1).Letters.Open, 2)
	r.state.Trimmed(2)
	r.leader.Trimmed()
	r.settle()
	require.Empty(t, r.state.Group(1).Letters.Open)
	a.say(wire.OutcomeNack, 2)
	r.settle()
	require.Len(t, r.state.Group(1).Letters.Open, 1, "letters about records that are gone do not count")
}

// With as many dead letters as a partition keeps, open and on their way, a record that has
// failed too often is tried again.
func TestDeadLettersThatAreNotWrittenAreBounded(t *testing.T) {
	r := newRig(t, Settings{Mode: wire.ModeShared, DeliveryLimit: 1, DeadLetter: "dead", BackoffMs: 1, BackoffMaxMs: 1})
	r.leader.letterLimit = 2
	r.produce(0, 0, 0)
	a := r.attach('A', 1, 3)
	for o := range wire.Offset(3) {
		a.say(wire.OutcomeNack, o)
	}
	r.settle()
	require.Len(t, r.state.Group(1).Letters.Open, 2)
	r.pass(time.Millisecond)
	require.Equal(t, []wire.Offset{0, 1, 2, 2}, a.offsets())
	a.say(wire.OutcomeNack, 2)
	r.settle()
	require.Len(t, r.state.Group(1).Letters.Open, 2)
	r.pass(time.Millisecond)
	r.leader.LetterWritten(0)
	r.settle()
	a.say(wire.OutcomeNack, 2)
	r.settle()
	require.Equal(t, wire.Offset(2), r.state.Group(1).Letters.Open[2].Offset)
}

func TestRule28_AnAckOfADeadLetterIsRefused(t *testing.T) {
	s := keyGroup
	s.DeliveryLimit, s.DeadLetterMode, s.DeadLetter = 1, wire.DeadLetterRecord, "dead"
	r := newRig(t, s)
	r.produce(1)
	a := r.attach('A', 1, 5)
	require.Len(t, a.grants, 1)
	epoch := a.grants[0].Epoch
	r.overdue(a)
	// its link is broken: it does not hear LOST
	r.leader.Gone(a, false)
	r.settle()
	require.Len(t, r.state.Group(1).Letters.Open, 1)
	for n := range r.state.Group(1).Letters.Open {
		r.leader.LetterWritten(n)
	}
	r.settle()
	require.True(t, r.state.Group(1).Done.Has(0))
	again := r.attach('A', 2, 5, wire.Outcome{Offset: 0, Count: 1, Epoch: epoch, Kind: wire.OutcomeAck})
	require.NoError(t, again.refused)
	require.Equal(t, wire.CodeStaleEpoch, again.response.Refused[0].Code, "it is a dead letter; its handler's ack is not what counted")
}

func TestParkedRecordsAreBounded(t *testing.T) {
	r := newRig(t, Settings{Mode: wire.ModeShared, DeliveryLimit: 1, DeadLetterMode: wire.DeadLetterPark, BackoffMs: 1, BackoffMaxMs: 1})
	r.leader.parkLimit = 3
	r.produce(make([]uint64, 5)...)
	a := r.attach('A', 1, 5)
	for o := range wire.Offset(5) {
		a.say(wire.OutcomeReject, o)
	}
	r.settle()
	require.Len(t, r.state.Group(1).Parked, 3)
	var refused error
	r.leader.Park(4, "by hand", false, func(err error) { refused = err })
	require.Equal(t, wire.CodeTooMany, wire.CodeOf(refused))
	r.leader.Park(2, "by hand", false, func(err error) { refused = err })
	r.settle()
	require.NoError(t, refused, "it is one of those that are")
	// What expires is not parked any more.
	r.state.Trimmed(2)
	r.leader.Trimmed()
	require.Len(t, r.state.Group(1).Parked, 1)
	r.leader.Park(4, "by hand", false, func(err error) { refused = err })
	r.settle()
	require.NoError(t, refused)
	require.Contains(t, r.state.Group(1).Parked, Scope(4))
}
