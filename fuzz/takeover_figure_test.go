package fuzz

import (
	"flag"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lockstepmq/lockstep/promise"
)

var figureTakeovers = flag.Int("figure.takeovers", 0, "how often TestFigure_Takeovers measures each way in which a consumer ends; 0: not at all")

// takeover is a way in which a consumer ends. end returns when that was, in the machine's
// time.
type takeover struct {
	name   string
	victim string // its name
	waits  bool   // for the session timeout
	end    func(h *handovers, k *taker) (since int64)
	after  func(h *handovers, k *taker) // when others have its records
}

var takeovers = []takeover{
	{name: "killed (SIGKILL)", victim: "-", waits: true, end: func(_ *handovers, k *taker) int64 {
		since := machineTime()
		k.kill()
		return since
	}},
	{name: "its host is gone (links cut)", victim: "-", waits: true, end: func(h *handovers, k *taker) int64 {
		since := machineTime()
		for n := range clusterNodes {
			h.hosts.cut(k.host, n+1)
			h.hosts.cut(n+1, k.host)
		}
		return since
	}, after: func(h *handovers, k *taker) {
		for n := range clusterNodes {
			h.hosts.heal(k.host, n+1)
			h.hosts.heal(n+1, k.host)
		}
		k.kill()
	}},
	{name: "Close", victim: "-", end: func(h *handovers, k *taker) int64 {
		since := machineTime()
		require.NoError(h.t, k.command.Process.Signal(unix.SIGTERM))
		<-k.ended
		return since
	}},
	{name: "started again under its name", victim: "named", end: func(h *handovers, k *taker) int64 {
		k.kill()
		since := machineTime()
		h.replace(slices.Index(h.takers, k), k.name)
		return since
	}},
	{name: "release on disconnect (SIGKILL)", victim: takerReleases, end: func(_ *handovers, k *taker) int64 {
		since := machineTime()
		k.kill()
		return since
	}},
}

// last is when the last of the records that a consumer had was begun by others, and how
// many were; those that are settled already do not count.
func (h *handovers) last(victim *taker, numbers []uint64, since int64) (took time.Duration, moved int) {
	h.t.Helper()
	looked := time.Now()
	require.Eventually(h.t, func() bool {
		took, moved = 0, 0
		for _, n := range numbers {
			for _, k := range h.takers {
				if at := k.beganAt(n, since); k != victim && at > 0 {
					took = max(took, time.Duration(at-since))
					moved++
					break
				}
			}
		}
		if moved == len(numbers) {
			return true
		}
		if time.Since(looked) < handoverSession+time.Second {
			return false
		}
		looked = time.Now()
		return h.drained(func(n uint64) bool { return slices.Contains(numbers, n) })
	}, handoverPatience, 5*time.Millisecond, "records that %s had go to nobody", victim.session)
	return took, moved
}

// TestFigure_Takeovers measures how long it takes until the records that a consumer works
// on are with others, for each way in which it can end. What everybody saw is checked as
// TestF17_Handovers does.
func TestFigure_Takeovers(t *testing.T) {
	if *figureTakeovers == 0 {
		t.Skip("SKIPPED: TestF17_Handovers does the same without measuring; -figure.takeovers 20 measures")
	}
	inNamespaces(t, chaosNamespaces, chaosTools, func(t *testing.T) {
		h := newHandovers(t, "")
		for _, way := range takeovers {
			h.begin(promise.Options{Flags: true})
			var all []time.Duration
			records := 0
			for len(all) < *figureTakeovers {
				h.worked(20)
				i := h.random.IntN(len(h.takers))
				h.takers[i].kill()
				name := way.victim
				if name == "named" {
					name = fmt.Sprint("named", h.sessions) // two of one name would fence each other
				}
				h.replace(i, name)
				victim := h.takers[i]
				h.awaits(victim)
				h.worked(20)
				h.awaits(victim)
				numbers := victim.holds() // before: a consumer that leaves gives everything back
				since := way.end(h, victim)
				took, moved := h.last(victim, numbers, since)
				if way.after != nil {
					way.after(h, victim)
				}
				if h.takers[i] == victim {
					h.replace(i, "-")
				}
				if moved > 0 {
					all = append(all, took)
					records += moved
				}
			}
			require.NoError(t, h.end())
			timeout := "no matter"
			if way.waits {
				timeout = fmt.Sprint(handoverSession)
			}
			t.Logf("%s: %d times, %d records with others after %s (session timeout %s); %s", way.name, len(all), records, spread(all), timeout, machineLoad())
		}
	})
}
