package lockstest_test

import (
	"flag"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/client"
	"github.com/lockstepmq/lockstep/lockstest"
	"github.com/lockstepmq/lockstep/wire"
)

// What the requirements of groups bound by seconds. `go test` shows what happens, and in
// which order; how long it takes depends on the machine, so that is a figure, which fails
// if a goal is missed.
var (
	figureIntervals = flag.Int("figure.intervals", 0, "how often TestFigure_Intervals measures each interval; 0: not at all")
	figureChurn     = flag.Duration("figure.churn", 10*time.Minute, "for how long TestFigure_Intervals has consumers come, leave and die")
	figureStrict    = flag.Duration("figure.strict", time.Minute, "for how long TestFigure_Intervals looks at a strict consumer that has nothing to do")
)

const (
	detectTime = 6 * time.Second // T_detect: the default session timeout
	bindTime   = time.Second     // T_bind
)

// TestFigure_Intervals measures everything so often, many at once: with `-parallel`.
func TestFigure_Intervals(t *testing.T) {
	if *figureIntervals == 0 {
		t.Skip("SKIPPED: TestRequirementsOfGroups does the same without measuring; -figure.intervals 20 measures")
	}
	s := &stage{broker: lockstest.Start(t)}
	s.conn = connectTo(t, s.broker.URL())
	sticky := stickyOne
	sticky.SessionMs = 0
	for _, c := range []struct {
		name    string
		what    string
		goal    time.Duration
		measure func(t *testing.T) time.Duration
	}{
		{"R_UM_2_R_LSN_2", "from the death of the active consumer to the first record of another", detectTime + bindTime, func(t *testing.T) time.Duration { return s.takesOver(t, sticky) }},
		{"R_BRK_9_Queue", "from a death in a handler to the last of its records elsewhere", detectTime + bindTime, func(t *testing.T) time.Duration { return s.losesHandlers(t, client.Queue, false, 0) }},
		{"R_BRK_9_Topic", "the same for what was published", detectTime + bindTime, func(t *testing.T) time.Duration { return s.losesHandlers(t, client.Topic, false, 0) }},
		{"R_WLS_15", "from a record that no consumer matches to no_consumer", time.Second, s.wedged},
		{"R_MQC_13", "from the start of a broker to a record that its listener has", 5 * time.Second, neverGivesUp},
		{"R_MQC_15", "from the end of a partition's consumer to the last record without a key there", 2 * time.Second, s.attended},
		{"R_SIB_16", "from the end of a strict consumer to the event of the others", 2 * time.Second, s.uncovered},
		{"R_SIB_17", "from the last of three consumers that come to a partition for each", bindTime, s.respread},
		{"R_SIB_14", "how many records a strict consumer had of others, in seconds", 0, s.strictly},
	} {
		t.Run(c.name, func(t *testing.T) {
			var mu sync.Mutex
			var took []time.Duration
			t.Run("all", func(t *testing.T) {
				for n := range *figureIntervals {
					t.Run(fmt.Sprint(n), func(t *testing.T) {
						t.Parallel()
						d := c.measure(t)
						mu.Lock()
						defer mu.Unlock()
						took = append(took, d)
					})
				}
			})
			judge(t, c.name, c.what, c.goal, took)
		})
	}
	t.Run("R_X_1", func(t *testing.T) {
		c := startChurn(t, lockstest.StartCluster(t, 3).URL(), 3, wire.BindingCover)
		c.goesOn()
		did := map[string]int{}
		for began := time.Now(); time.Since(began) < *figureChurn; {
			did[c.step(true)]++
			time.Sleep(time.Duration(c.random.Int64N(int64(2 * time.Second)))) // until the next one
		}
		records := c.end()
		judge(t, "R_X_1", fmt.Sprintf("the longest that one of %d records waited for a consumer, %v in %v", records, did, *figureChurn), detectTime+bindTime, []time.Duration{c.waited()})
	})
}

// judge says what was found, and whether the goal was met.
func judge(t *testing.T, name, what string, goal time.Duration, took []time.Duration) {
	t.Helper()
	if len(took) == 0 {
		return // it has failed
	}
	slices.Sort(took)
	worst := took[len(took)-1]
	verdict := "met"
	if worst > goal {
		verdict = "MISSED"
		t.Fail()
	}
	t.Logf("%s: %s: p50 %v, at worst %v of %d, goal %v: %s", name, what, took[len(took)/2].Round(time.Millisecond), worst.Round(time.Millisecond), len(took), goal, verdict)
}

// uncovered has two strict consumers of two partitions, one of which leaves, and says after
// what time the other one hears of it.
func (s *stage) uncovered(t *testing.T) time.Duration {
	queue := s.queue(t, 2)
	s.group(t, queue, client.GroupSettings{Mode: client.Serial, Binding: client.StrictlyOne})
	heard := make(chan int, 100)
	one := s.join(t, queue, client.OnEvent(func(e client.Event) {
		if u, ok := e.(client.Uncovered); ok {
			heard <- len(u.Partitions)
		}
	}))
	two := s.join(t, queue)
	for <-heard != 0 { // first nobody has the second partition
	}
	leave(t, two)
	began := time.Now()
	for <-heard != 1 {
	}
	took := time.Since(began)
	leave(t, one)
	return took
}

// respread has two more consumers come to one that has three partitions.
func (s *stage) respread(t *testing.T) time.Duration {
	queue := s.queue(t, 3)
	s.group(t, queue, client.GroupSettings{Mode: client.Serial})
	all := []*client.Consumer{s.join(t, queue), s.join(t, queue), s.join(t, queue)}
	began := time.Now()
	awaitThat(t, "each has one", func() bool {
		return !slices.ContainsFunc(all, func(c *client.Consumer) bool { return len(c.Partitions()) != 1 })
	})
	took := time.Since(began)
	leave(t, all...)
	return took
}

// strictly has a strict consumer whose own partition is empty, while the others are full:
// so many seconds as it gets records.
func (s *stage) strictly(t *testing.T) time.Duration {
	queue := s.queue(t, 3)
	s.group(t, queue, client.GroupSettings{Mode: client.Serial, Binding: client.StrictlyOne})
	only := s.join(t, queue)
	require.Len(t, only.Partitions(), 1)
	for p := range uint32(3) {
		if p == only.Partitions()[0] {
			continue
		}
		producer, err := s.conn.Producer(t.Context(), queue, client.Partition(p))
		require.NoError(t, err)
		for range 100 {
			_, err := producer.Send(t.Context(), &client.Record{Value: []byte("x")})
			require.NoError(t, err)
		}
		require.NoError(t, producer.Close(t.Context()))
	}
	list, err := only.Fetch(t.Context(), 1, *figureStrict)
	require.NoError(t, err)
	leave(t, only)
	return time.Duration(len(list)) * time.Second
}
