package group

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/internal/invariants"
	"github.com/lockstepmq/lockstep/wire"
)

// Every rule that has code is needed (some have a scenario of their own in TestLeaderRules): without it the harness sees a promise broken, or
// work that is never finished.
func TestLeaderCatchesEveryRuleThatIsTakenAway(t *testing.T) {
	if !invariants.Enabled {
		t.Skip("rules can be taken away in builds with invariants only")
	}
	shared, key := Settings{Mode: wire.ModeShared}, Settings{Mode: wire.ModeSerial}
	window := Settings{Mode: wire.ModeSerial, Window: 3}
	for _, m := range []struct {
		name     string
		rule     Rule
		settings Settings
	}{
		{"an ack is answered before it is applied", RuleCommitted, key},
		{"a record goes on before its return is applied", RuleHandOver, shared},
		{"a session gets records before it is listed", RuleJoin, shared},
		{"a new leader waits for nobody", RuleWait, key},
		{"a new leader waits for nobody, mode shared", RuleWait, shared},
		{"a new leader looks at records and not at keys", RuleOld, key},
		{"a session that never came back stays", RuleSilent, shared},
		{"a claimed lease gets a new epoch", RuleKeepEpoch, shared},
		{"what is not claimed stays leased", RuleUnclaimed, shared},
		{"there is no horizon", RuleHorizon, shared},
		{"there is no doubt", RuleDoubt, shared},
		{"later records stay with their session", RuleTail, window},
		{"the next record goes to anybody", RuleSameHolder, key},
		{"a session that ends goes on", RuleEnding, shared},
		{"credit is not given back", RuleCredit, shared},
		{"there is no limit to what a session holds", RuleCapacity, shared},
		{"a leader hands over what it knows of", RuleWhole, shared},
		{"a leader that hands over goes on", RuleFrozen, shared},
		{"an order does not wait", RuleDrain, shared},
		{"consumers do not hear of new settings", RuleAnnounce, key},
		{"another mode does not wait", RuleShape, shared},
		{"a lower session timeout does not wait", RuleLower, key},
		{"it does not count what a consumer has chosen", RuleChosen, shared},
	} {
		t.Run(m.name, func(t *testing.T) {
			for seed := range uint64(200) {
				if err := newHarness(seed, m.settings, m.rule).run(3000); err != nil {
					t.Logf("seed %d: %s", seed, err)
					return
				}
			}
			require.Fail(t, "nothing was seen in 200 histories")
		})
	}
}

// F20: what a checkpoint of a group loses shows, as a broken promise or as two replicas that
// differ, once a replica that has begun with it leads.
func TestF20_Catches_CheckpointsThatForgetSomethingOfAGroup(t *testing.T) {
	limited := Settings{Mode: wire.ModeShared}
	for name, forgets := range map[string]func(*Group){
		"who may hold leases":       func(g *Group) { clear(g.Sessions) },
		"what is parked":            func(g *Group) { clear(g.Parked) },
		"dead letters on their way": func(g *Group) { g.Letters.Open = make(map[uint64]Letter) },
		"doubt":                     func(g *Group) { g.Doubt = 0 },
		"the horizon":               func(g *Group) { g.Horizon = 0 },
		"the fence of a seek":       func(g *Group) { g.Fence, g.SeekIndex = 0, 0 },
		"what was returned":         func(g *Group) { g.returned = runs{} },
		"fences of what is done":    func(g *Group) { g.settled = runs{} },
		"what is done behind a gap": func(g *Group) { floor := g.Done.Floor(); g.Done = Done{}; g.Done.Raise(floor) },
	} {
		t.Run(name, func(t *testing.T) {
			for seed := range uint64(3000) {
				h := newHarness(seed, limited)
				h.forgets = forgets
				if err := h.run(3000); err != nil {
					t.Logf("seed %d: %s", seed, err)
					return
				}
			}
			require.Fail(t, "nothing was seen in 3,000 histories")
		})
	}
}

// A link on which answers overtake what was taken back shows consumers an order that no
// leader has made: the harness sees it.
func TestRule24_Catches_AnswersThatOvertakeWhatIsLost(t *testing.T) {
	for seed := range uint64(1500) {
		h := newHarness(seed, Settings{Mode: wire.ModeStream})
		h.hasty = true
		if err := h.run(3000); err != nil {
			t.Logf("seed %d: %s", seed, err)
			return
		}
	}
	require.Fail(t, "nothing was seen in 1,500 histories")
}
