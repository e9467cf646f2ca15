package groupmodel

import (
	"bytes"
	"flag"
	"math/rand/v2"
	"reflect"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/promise"
)

var (
	limit = flag.Int("model.states", 1_000_000, "most states of one world")
	more  = flag.Int("model.more", 0, "faults in each world beyond those of a quick run")
	walks = flag.Int("model.walks", 2000, "random walks through larger worlds")
	seed  = flag.Uint64("model.seed", 1, "seed of the walks; 0 draws one")
)

// worlds are small enough to be explored whole. Each is about one part of the
// protocol; -model.more makes all of them larger.
var worlds = []struct {
	name   string
	config Config
}{
	{"leaders come and go", two(2, 1, Config{Break: true, Crash: true, LeaderCrash: true, LeaderStays: true})},
	{"three terms", one(3, 2, Config{LeaderCrash: true, LeaderStays: true})},
	{"links break and consumers die or hang", two(1, 2, Config{Patient: true, Break: true, Crash: true, Hang: true})},
	{"deadlines", two(1, 2, Config{Break: true})},
	{"late attaches", one(2, 3, Config{Patient: true, Late: true, Break: true, LeaderStays: true})},
	{"nacks", two(2, 1, Config{Nacks: 1, Break: true, LeaderCrash: true})},
	{"dead letters", two(2, 1, Config{Nacks: 2, Limit: 2, LeaderCrash: true})},
	{"timeouts", two(2, 1, Config{Timeouts: 1, Break: true, Hang: true, LeaderCrash: true})},
	{"handlers that do not end", two(1, 1, Config{Stick: true, Break: true})},
	{"mode shared", world([]int{0, 1}, 2, 2, 1, Config{Patient: true, Break: true, LeaderStays: true})},
	{"two keys", world([]int{0, 0, 1}, 2, 2, 1, Config{Patient: true, LeaderCrash: true})},
	{"three consumers", one(2, 1, Config{Consumers: 3, Crash: true, LeaderCrash: true})},
	{"three records", world([]int{0, 0, 0}, 2, 2, 1, Config{Nacks: 1, LeaderCrash: true})},
	{"sticky", two(2, 1, Config{Sticky: true, Stick: true, Break: true, LeaderStays: true})},
	{"horizon", one(2, 2, Config{Low: true, Break: true, LeaderStays: true})},
	{"joins", one(2, 2, Config{Patient: true, Latecomers: 1, Break: true, LeaderStays: true})},
	{"seek", two(2, 1, Config{Patient: true, Operations: 1, Seek: true, Break: true, LeaderStays: true, LeaderCrash: true})},
	{"park", two(2, 1, Config{Operations: 1, Park: true, Break: true, LeaderCrash: true})},
	{"skip", two(2, 1, Config{Operations: 1, Skip: true, Break: true, LeaderCrash: true})},
	{"planned move", one(3, 1, Config{Operations: 1, Move: true, Break: true, LeaderCrash: true})},
	{"rebinding", two(2, 1, Config{Operations: 1, Unbind: true, Break: true, LeaderCrash: true})},
	{"without timing", two(2, 1, Config{Timeless: true, Break: true, LeaderStays: true})},
	{"replay order, leader alone", two(2, 1, Config{Order: replay, Patient: true, LeaderCrash: true, LeaderStays: true})},
	{"replay order, holder alone", two(1, 1, Config{Order: replay, Crash: true, Break: true})},
	{"ungated, leader alone", two(2, 1, Config{Order: ungated, Patient: true, LeaderCrash: true})},
}

// TestGroupsModel explores the full set of rules: no promise breaks in any state.
func TestGroupsModel(t *testing.T) {
	total := make(chan *Result, len(worlds))
	t.Run("world", func(t *testing.T) {
		for _, w := range worlds {
			t.Run(w.name, func(t *testing.T) {
				t.Parallel()
				c := w.config
				c.Faults += *more
				from := time.Now()
				r := newModel(c).explore(*limit)
				t.Logf("%s: %v in %v", w.name, r, time.Since(from).Round(time.Millisecond))
				require.Empty(t, r.Promise)
				if *more == 0 {
					require.True(t, r.Complete, "more than %d states", *limit)
				}
				total <- r
			})
		}
	})
	close(total)
	states, steps, cut := 0, 0, 0
	for r := range total {
		states += r.States
		steps += r.Steps
		if !r.Complete {
			cut++
		}
	}
	t.Logf("%d worlds, %d states, %d steps; %d worlds were cut off at %d states", len(worlds), states, steps, cut, *limit)
}

// TestGroupsModelReplaysOutOfOrder: order=replay promises less, and it shows.
func TestGroupsModelReplaysOutOfOrder(t *testing.T) {
	both := newModel(two(2, 2, Config{Order: replay, Patient: true, Crash: true, LeaderCrash: true})).explore(*limit)
	require.Equal(t, G3, both.Promise, "holder and leader together")
	t.Log(both)
	alone := newModel(two(1, 1, Config{Order: ungated, Crash: true})).explore(*limit)
	require.Equal(t, G3, alone.Promise, "holder alone, without a gate")
	t.Log(alone)
}

// TestStatesAreBytes: bytesOf hashes a state as a block of memory, so there must be
// nothing between its fields.
func TestStatesAreBytes(t *testing.T) {
	require.Equal(t, reflect.TypeFor[state]().Size(), packed(reflect.TypeFor[state]()))
}

func packed(typ reflect.Type) (size uintptr) {
	switch typ.Kind() {
	case reflect.Struct:
		for i := range typ.NumField() {
			size += packed(typ.Field(i).Type)
		}
		return size
	case reflect.Array:
		return uintptr(typ.Len()) * packed(typ.Elem())
	}
	return typ.Size()
}

// TestNamesDoNotMatter: an exchanged state has the exchanged successors.
func TestNamesDoNotMatter(t *testing.T) {
	m := newModel(two(2, 2, Config{Nacks: 1, Timeouts: 1, Operations: 1, Break: true, Late: true, Crash: true, Hang: true, Stick: true,
		LeaderCrash: true, LeaderStays: true, Seek: true, Park: true, Skip: true, Move: true, Unbind: true}))
	random := rand.New(rand.NewPCG(1, 2))
	for range 50 {
		s := *m.initial()
		for range 60 {
			var next []state
			after := map[string]bool{}
			m.successors(&s, func(_ action, n *state) {
				next = append(next, *n)
				n.exchange()
				after[string(bytesOf(n))] = true
			})
			exchanged := s
			exchanged.exchange()
			m.successors(&exchanged, func(_ action, n *state) { delete(after, string(bytesOf(n))) })
			require.Empty(t, after)
			exchanged.exchange()
			require.True(t, bytes.Equal(bytesOf(&s), bytesOf(&exchanged)))
			if len(next) == 0 {
				break
			}
			s = next[random.IntN(len(next))]
		}
	}
}

// TestGroupsModelWalks goes random ways through worlds that are too large to be
// explored, and shows what consumers see on the way to a promise.Checker: the model
// keeps its promises in the eyes of the check that the real dispatcher has to pass.
func TestGroupsModelWalks(t *testing.T) {
	if *seed == 0 {
		*seed = rand.Uint64()
	}
	t.Logf("-model.seed=%d", *seed)
	random := rand.New(rand.NewPCG(*seed, 0))
	seen := uint64(0)
	for i := range *walks {
		c := Config{
			Consumers: 2 + random.IntN(2), Scopes: [][]int{{0, 0, 0}, {0, 0, 1}, {0, 1, 2}}[random.IntN(3)], Terms: 3, Credit: 1 + random.IntN(3),
			Faults: 6, Nacks: 2, Timeouts: 2, Operations: 2, Latecomers: random.IntN(2),
			Break: true, Crash: true, Hang: true, Stick: true, Late: true, LeaderCrash: true, LeaderStays: true,
			Seek: random.IntN(2) == 0, Park: true, Skip: true, Move: true, Unbind: true, Sticky: random.IntN(4) == 0, Low: random.IntN(4) == 0,
		}
		way, bad := newModel(c).walk(random, 150)
		m := newModel(c)
		if bad != nil {
			trace, _ := m.replay(way, nil)
			require.Failf(t, "a promise is broken", "walk %d, %+v\n%s: %s\n%q", i, c, bad.promise, bad.what, trace)
		}
		checker := promise.New(promise.Options{Flags: true})
		trace, _ := m.replay(way, func(e promise.Event) { _ = checker.Observe(e) })
		require.NoError(t, checker.Err(), "walk %d, %+v\n%q", i, c, trace)
		seen += checker.Events()
	}
	t.Logf("%d walks, %d events", *walks, seen)
}

// walk takes random actions, faults less often than others, and stops at the first
// that breaks a promise.
func (m *model) walk(random *rand.Rand, length int) (way []action, bad *broken) {
	m.exact = true
	s := *m.initial()
	for range length {
		type choice struct {
			a action
			s state
			b *broken
		}
		var choices []choice
		m.successors(&s, func(a action, n *state) {
			if !m.edge && n.leaders[0].state.index < 60 && (a.kind.helps() || random.IntN(6) == 0) {
				choices = append(choices, choice{a, *n, m.bad})
			}
		})
		if len(choices) == 0 {
			break
		}
		c := choices[random.IntN(len(choices))]
		way, s = append(way, c.a), c.s
		if c.b != nil {
			return way, c.b
		}
	}
	return way, nil
}
