package lockstest_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/client"
	"github.com/lockstepmq/lockstep/wire"
)

// What one consumer at a time means, and how that changes: R-UM and the units of R-WLS-13.

var requirementRecords = flag.Int("requirements.records", 1000, "how many records the longer parts of TestRequirementsOfGroups handle")

var (
	stickyOne = client.GroupSettings{Mode: client.Serial, Scope: client.ByDestination, Holder: client.Sticky, SessionMs: 1000, BackoffMs: 1, BackoffMaxMs: 1}
	anyOne    = client.GroupSettings{Mode: client.Serial, Scope: client.ByDestination, Holder: client.Any}
)

// states counts the members by their state.
func (s *stage) states(t *testing.T, queue string) map[string]int {
	t.Helper()
	counts := map[string]int{}
	for _, m := range s.state(t, queue, 0).Sessions {
		counts[m.State]++
	}
	return counts
}

// sticky has one active consumer and two that stand by, whoever publishes.
func (s *stage) sticky(t *testing.T) {
	queue := s.queue(t, 1)
	s.group(t, queue, stickyOne)
	active := s.join(t, queue)
	standby := []*client.Consumer{s.join(t, queue), s.join(t, queue)}
	awaitThat(t, "one is active", func() bool { return s.states(t, queue)["standby"] == 2 })
	for i := range 10 {
		s.by(t, queue, fmt.Sprintf("%c%d", 'A'+i%3, i))
		d := take(t, active)
		require.Equal(t, fmt.Sprintf("%c%d", 'A'+i%3, i), string(d.Value))
		done(t, d)
	}
	s.send(t, queue, numbered("k", 3)...)
	first := take(t, active)
	for _, c := range standby {
		idle(t, c)
	}
	require.EqualValues(t, 1, s.state(t, queue, 0).Leased)
	done(t, first)
	done(t, take(t, active))
	done(t, take(t, active))
	leave(t, append(standby, active)...)
}

// takeover loses the active consumer with a record in hand: one of those that stand by goes
// on with that record, the others go on standing by.
func (s *stage) takeover(t *testing.T) { s.takesOver(t, stickyOne) }

// takesOver says how long it took.
func (s *stage) takesOver(t *testing.T, settings client.GroupSettings) (took time.Duration) {
	queue := s.queue(t, 1)
	s.group(t, queue, settings)
	active, die := s.mortal(t, queue)
	standby := []*client.Consumer{s.join(t, queue), s.join(t, queue)}
	s.send(t, queue, numbered("k", 20)...)
	done(t, take(t, active))
	done(t, take(t, active))
	require.Equal(t, "k 2", string(take(t, active).Value))
	die()
	began := time.Now()
	var got []string
	by := map[int]int{}
	for len(got) < 18 {
		for i, c := range standby {
			list, err := c.Fetch(t.Context(), 1, 5*time.Millisecond)
			require.NoError(t, err)
			for _, d := range list {
				if len(got) == 0 {
					took = time.Since(began)
					require.True(t, d.Redelivered)
					require.Equal(t, 2, d.Deliveries)
				}
				got = append(got, string(d.Value))
				by[i]++
				done(t, d)
			}
		}
	}
	require.Equal(t, numbered("k", 20)[2:], got)
	require.Len(t, by, 1, "one of them took over")
	leave(t, standby...)
	return took
}

// anyHolder gives each record to whoever is free, one at a time in the whole group.
func (s *stage) anyHolder(t *testing.T) {
	const members = 3
	queue := s.queue(t, 1)
	s.group(t, queue, anyOne)
	records := *requirementRecords
	var busy, most, handled atomic.Int64
	var by [members]atomic.Int64
	order := make([]string, 0, records)
	s.crew(t, queue, members, 4, func(m int, d *client.Delivery, stop func()) error {
		n := busy.Add(1)
		defer busy.Add(-1)
		most.Store(max(most.Load(), n))
		by[m].Add(1)
		order = append(order, string(d.Value)) // one at a time, so nobody else is here
		if handled.Add(1) == int64(records) {
			stop()
		}
		return nil
	}, func() { s.send(t, queue, numbered("k", records)...) })
	require.EqualValues(t, 1, most.Load())
	require.Equal(t, numbered("k", records), order)
	for m := range by {
		require.Positive(t, by[m].Load(), "member %d", m)
		t.Logf("member %d: %d", m, by[m].Load())
	}
}

// crew runs members with so many workers each until one of the handlers stops them.
func (s *stage) crew(t *testing.T, queue string, members, workers int, handle func(m int, d *client.Delivery, stop func()) error, meanwhile func(), opts ...client.ConsumerOption) {
	t.Helper()
	ctx, stop := context.WithTimeout(t.Context(), timeout+time.Duration(*requirementRecords)*5*time.Millisecond)
	defer stop()
	var running sync.WaitGroup
	for m := range members {
		c := s.join(t, queue, opts...)
		running.Go(func() {
			err := c.Run(ctx, func(_ context.Context, d *client.Delivery) error { return handle(m, d, stop) }, client.Workers(workers))
			if !errors.Is(err, context.Canceled) {
				t.Errorf("member %d: %v", m, err)
			}
			leave(t, c)
		})
	}
	meanwhile()
	running.Wait()
}

// unordered has as many records at work as there are members: a mode of its own.
func (s *stage) unordered(t *testing.T) {
	const members = 4
	queue := s.queue(t, 1)
	s.group(t, queue, client.GroupSettings{Mode: client.Shared})
	var busy atomic.Int64
	all := make(chan struct{})
	s.crew(t, queue, members, 1, func(_ int, _ *client.Delivery, stop func()) error {
		if busy.Add(1) == members {
			close(all)
			stop()
		}
		<-all // none goes on before each has one
		return nil
	}, func() { s.send(t, queue, numbered("k", members)...) }, client.Prefetch(1))
	require.EqualValues(t, members, busy.Load())
}

// preference has a consumer that would rather stand by: it is active while there is no
// other. It makes way for one that comes later only if the group says so.
func (s *stage) preference(t *testing.T) {
	for _, failback := range []bool{false, true} {
		queue := s.queue(t, 1)
		settings := stickyOne
		settings.Failback = failback
		s.group(t, queue, settings)
		spare := s.join(t, queue, client.ConsumerName("spare"), client.StandbyPreferred(true))
		s.send(t, queue, "k 0")
		first := take(t, spare)
		one := s.join(t, queue, client.ConsumerName("one"))
		two := s.join(t, queue, client.ConsumerName("two"))
		s.send(t, queue, "k 1", "k 2")
		idle(t, one)
		done(t, first)
		if !failback {
			done(t, take(t, spare))
			idle(t, one)
			leave(t, spare) // of the two that are left, the one that came first
		} else {
			done(t, take(t, one))
			idle(t, spare)
		}
		last := take(t, one)
		require.Equal(t, "k 2", string(last.Value))
		done(t, last)
		third := s.join(t, queue, client.ConsumerName("third"), client.StandbyPreferred(true))
		leave(t, one) // not to one that would rather stand by
		s.send(t, queue, "k 3")
		done(t, take(t, two))
		leave(t, two, third)
		if failback {
			leave(t, spare)
		}
	}
}

// refused asks for one record at a time of several partitions: for a new group, for one that
// is altered, and by more partitions for one that there is.
func (s *stage) refused(t *testing.T) {
	queue := s.queue(t, 2)
	_, err := s.conn.CreateGroup(t.Context(), queue, "g", client.GroupIntent{Settings: stickyOne})
	require.ErrorIs(t, err, wire.CodeSerialNeedsOnePartition)
	s.group(t, queue, client.GroupSettings{Mode: client.Shared})
	_, err = s.conn.AlterGroup(t.Context(), queue, "g", client.GroupIntent{Settings: stickyOne})
	require.ErrorIs(t, err, wire.CodeSerialNeedsOnePartition)
	one := s.queue(t, 1)
	s.group(t, one, stickyOne)
	d, err := s.conn.Destination(t.Context(), one)
	require.NoError(t, err)
	d.Settings.Partitions = 2
	_, err = s.conn.AlterDestination(t.Context(), d, wire.MaskPartitions)
	require.ErrorIs(t, err, wire.CodeInvalidSetting, "a queue keeps its partitions")
}

// units are the rules of a unit of order, for keys: M1, M2, … of the key a, with N of
// another key beside them.
func (s *stage) units(t *testing.T) {
	group := client.GroupSettings{Mode: client.Serial, Window: 10, BackoffMs: 1, BackoffMaxMs: 1}
	begin := func(t *testing.T, values ...string) string {
		queue := s.queue(t, 1)
		s.group(t, queue, group)
		s.send(t, queue, values...)
		return queue
	}
	rest := func(t *testing.T, c *client.Consumer, want ...string) {
		t.Helper()
		for _, w := range want {
			d := take(t, c)
			require.Equal(t, w, string(d.Value))
			done(t, d)
		}
		idle(t, c)
		leave(t, c)
	}
	t.Run("one at a time", func(t *testing.T) {
		queue := begin(t, "a M1", "a M2", "a M3")
		c := s.join(t, queue)
		m1 := take(t, c)
		idle(t, c)
		done(t, m1)
		rest(t, c, "a M2", "a M3")
	})
	t.Run("what is not acknowledged is one session's", func(t *testing.T) {
		queue := begin(t, "a M1", "a M2", "a M3")
		c, other := s.join(t, queue, client.Prefetch(2)), s.join(t, queue, client.Prefetch(2))
		awaitThat(t, "two are leased", func() bool { return s.state(t, queue, 0).Leased >= 2 })
		holds := 0
		for _, m := range s.state(t, queue, 0).Sessions {
			if m.Leased > 0 {
				holds++
			}
		}
		require.Equal(t, 1, holds)
		first, err := c.Fetch(t.Context(), 1, 50*time.Millisecond)
		require.NoError(t, err)
		if len(first) == 0 {
			c, other = other, c
			first = []*client.Delivery{take(t, c)}
		}
		idle(t, other)
		done(t, first...)
		leave(t, other)
		rest(t, c, "a M2", "a M3")
	})
	t.Run("a delayed head holds up its unit alone", func(t *testing.T) {
		queue := begin(t, "a M1", "a M2", "b N1")
		c := s.join(t, queue)
		m1 := take(t, c)
		require.NoError(t, m1.Nack(client.Delay(time.Hour)))
		n1 := take(t, c)
		require.Equal(t, "b N1", string(n1.Value))
		done(t, n1)
		idle(t, c) // M2 waits for as long as M1 does
		key := []byte("a")
		why := s.because(t, queue, "backoff", client.ExplainRequest{Key: &key})
		require.EqualValues(t, 0, *why.Offset)
		require.Greater(t, why.UntilMs, time.Now().Add(50*time.Minute).UnixMilli())
		leave(t, c)
	})
	t.Run("a delayed head comes before what waited for it", func(t *testing.T) {
		queue := begin(t, "a M1", "a M2")
		c := s.join(t, queue)
		require.NoError(t, take(t, c).Nack(client.Delay(20*time.Millisecond)))
		rest(t, c, "a M1", "a M2")
	})
	t.Run("rolled back, all come again in order", func(t *testing.T) {
		queue := begin(t, "a M1", "a M2", "a M3")
		c := s.join(t, queue)
		require.NoError(t, take(t, c).Nack())
		again := take(t, c)
		require.Equal(t, "a M1", string(again.Value))
		require.Equal(t, 1, again.Attempts)
		require.NoError(t, again.Release()) // recover: no attempt
		again = take(t, c)
		require.Equal(t, "a M1", string(again.Value))
		require.Equal(t, 1, again.Attempts)
		done(t, again)
		rest(t, c, "a M2", "a M3")
	})
	t.Run("a session that ends gives its unit back in order", func(t *testing.T) {
		queue := begin(t, "a M1", "a M2", "a M3")
		c, die := s.mortal(t, queue, client.ReleaseOnDisconnect(true))
		take(t, c)
		other := s.join(t, queue)
		die()
		rest(t, other, "a M1", "a M2", "a M3")
	})
}

// sole is a strict order that takes one consumer: a second one is refused, in a sticky
// group it stands by. What the one gives back comes again before what is behind it; when it
// leaves, or starts again under its name, there is room for the next.
func (s *stage) sole(t *testing.T) {
	for _, binding := range []wire.BindingPolicy{client.Cover, client.Gather} {
		queue := s.queue(t, 1)
		settings := stickyOne
		settings.Holder, settings.Binding = client.Sole, binding
		s.group(t, queue, settings)
		s.send(t, queue, numbered("k", 4)...)
		one, die := s.mortal(t, queue, client.ConsumerName("one"))
		first := take(t, one)
		_, err := connectTo(t, s.broker.URL()).Consumer(t.Context(), queue, client.Group("g"))
		require.ErrorIs(t, err, wire.CodeRefused)
		require.ErrorContains(t, err, "takes one consumer")
		require.NoError(t, first.Nack())
		for i := range 2 {
			d := take(t, one)
			require.Equal(t, fmt.Sprintf("k %d", i), string(d.Value), "binding %v", binding)
			done(t, d)
		}
		die()
		again := s.join(t, queue, client.ConsumerName("one"))
		d := take(t, again)
		require.Equal(t, "k 2", string(d.Value))
		done(t, d)
		leave(t, again)
		var next *client.Consumer
		awaitThat(t, "there is room for the next", func() bool {
			next, err = connectTo(t, s.broker.URL()).Consumer(t.Context(), queue, client.Group("g"))
			return err == nil
		})
		d = take(t, next)
		require.Equal(t, "k 3", string(d.Value))
		done(t, d)
		leave(t, next)
	}
	queue := s.queue(t, 1)
	s.group(t, queue, stickyOne)
	active, standby := s.join(t, queue), s.join(t, queue)
	awaitThat(t, "one stands by", func() bool { return s.states(t, queue)["standby"] == 1 })
	leave(t, active, standby)
}
