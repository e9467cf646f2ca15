package group

import (
	"flag"
	"testing"

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
