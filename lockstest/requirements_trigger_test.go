package lockstest_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/client"
)

// What serial triggers do: R-BRK.

// by sends records of publishers, in this order: the first letter of each is the publisher.
func (s *stage) by(t *testing.T, queue string, values ...string) {
	t.Helper()
	producers := map[string]*client.Producer{}
	for _, v := range values {
		p := producers[v[:1]]
		if p == nil {
			var err error
			p, err = s.conn.Producer(t.Context(), queue, client.Publisher(v[:1]))
			require.NoError(t, err)
			producers[v[:1]] = p
		}
		_, err := p.Send(t.Context(), &client.Record{Value: []byte(v)})
		require.NoError(t, err)
	}
	for _, p := range producers {
		require.NoError(t, p.Close(t.Context()))
	}
}

// byPublisher is a group as a trigger has it: a member takes several records of a
// publisher ahead.
var byPublisher = client.GroupSettings{Mode: client.Serial, Scope: client.ByPublisher, Window: 10, BackoffMs: 1, BackoffMaxMs: 1}

// pastPublishers is the example of the manual: server X holds A1 and B1, so server Z gets
// C1 and C2 although B2 comes before them.
func (s *stage) pastPublishers(t *testing.T) {
	queue := s.queue(t, 1)
	s.group(t, queue, byPublisher)
	s.by(t, queue, "A1", "B1", "B2", "C1", "C2")
	x := s.join(t, queue, client.Prefetch(2))
	a1, b1 := take(t, x), take(t, x)
	require.Equal(t, "A1 B1", fmt.Sprintf("%s %s", a1.Value, b1.Value))
	z := s.join(t, queue, client.Prefetch(2))
	s.leased(t, queue, 4)
	for _, want := range []string{"C1", "C2"} {
		d := take(t, z)
		require.Equal(t, want, string(d.Value))
		done(t, d)
	}
	idle(t, z)
	done(t, a1, b1)
	leave(t, x) // or B2 might go there
	b2 := take(t, z)
	require.Equal(t, "B2", string(b2.Value))
	done(t, b2)
	leave(t, z)
}

// prefetch has a member with room for ten records that asks for more at four.
func (s *stage) prefetch(t *testing.T) {
	queue := s.queue(t, 1)
	s.group(t, queue, client.GroupSettings{Mode: client.Shared})
	s.send(t, queue, numbered("k", 40)...)
	c := s.join(t, queue, client.Prefetch(10, 4))
	s.leased(t, queue, 10)
	for handled := 0; handled < 40; handled++ {
		done(t, take(t, c))
		held := 10 - (handled+1)%6
		require.EqualValues(t, min(held, 40-handled-1), s.state(t, queue, 0).Leased, "after %d records", handled+1)
	}
	leave(t, c)
}

// oneAtATime has three members that handle one record at a time each, though more lie
// ready for them, and no two of them records of one publisher.
func (s *stage) oneAtATime(t *testing.T) {
	const members, records = 3, 90
	queue := s.queue(t, 1)
	s.group(t, queue, byPublisher)
	var values []string
	for i := range records {
		values = append(values, fmt.Sprintf("%c%d", 'A'+i/10, i))
	}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	sent := make(chan struct{})
	var handled atomic.Int64
	var running sync.WaitGroup
	var busy, most, did [members]atomic.Int64
	var publishers [9]atomic.Int64 // records at work
	for m := range members {
		c := s.join(t, queue, client.Prefetch(4))
		running.Go(func() {
			err := c.Run(ctx, func(_ context.Context, d *client.Delivery) error {
				<-sent // until then each has taken what it has room for
				n := busy[m].Add(1)
				defer busy[m].Add(-1)
				most[m].Store(max(most[m].Load(), n))
				publisher := &publishers[d.Value[0]-'A']
				defer publisher.Add(-1)
				if n := publisher.Add(1); n > 1 {
					t.Errorf("%d records of the publisher of %s are at work", n, d.Value)
				}
				time.Sleep(200 * time.Microsecond) // work, during which a second one could begin
				did[m].Add(1)
				if handled.Add(1) == records {
					stop()
				}
				return nil
			})
			if !errors.Is(err, context.Canceled) {
				t.Errorf("member %d: %v", m, err)
			}
			leave(t, c)
		})
	}
	s.by(t, queue, values...)
	close(sent)
	running.Wait()
	require.EqualValues(t, records, handled.Load())
	for m := range members {
		require.Positive(t, did[m].Load(), "member %d had nothing to do", m)
		require.LessOrEqual(t, most[m].Load(), int64(1), "member %d", m)
	}
}

// lostMember loses a member that holds ten records of a publisher and has begun with the
// first.
func (s *stage) lostMember(t *testing.T) {
	queue := s.queue(t, 1)
	s.group(t, queue, byPublisher)
	var want []string
	for i := range 10 {
		want = append(want, fmt.Sprintf("A%d", i))
	}
	s.by(t, queue, want...)
	lost, die := s.mortal(t, queue, client.Prefetch(10), client.ReleaseOnDisconnect(true))
	s.leased(t, queue, 10)
	first := take(t, lost)
	require.Equal(t, 1, first.Deliveries)
	require.False(t, first.Redelivered)
	die()
	other := s.join(t, queue, client.Prefetch(10))
	var got []string
	for range want {
		d := take(t, other)
		got = append(got, string(d.Value))
		require.Equal(t, 2, d.Deliveries, "record %s", d.Value)
		require.True(t, d.Redelivered, "record %s", d.Value)
		done(t, d)
	}
	require.Equal(t, want, got)
	leave(t, other)
}

// midHandler loses members in the middle of their handlers: one whose end is seen, and one
// that just falls silent, with what was sent to a queue and what was published to a topic.
// Their records come again, elsewhere.
func (s *stage) midHandler(t *testing.T) {
	for _, kind := range []client.Kind{client.Queue, client.Topic} {
		for _, seen := range []bool{true, false} {
			t.Run(fmt.Sprintf("%v, end seen %t", kind, seen), func(t *testing.T) {
				t.Parallel()
				s.losesHandlers(t, kind, seen, 1000)
			})
		}
	}
}

// losesHandlers says how long it took until the last record was with another member.
func (s *stage) losesHandlers(t *testing.T, kind client.Kind, seen bool, sessionMs uint32) (took time.Duration) {
	name := s.destination(t, kind, 1)
	s.group(t, name, client.GroupSettings{Mode: client.Serial, SessionMs: sessionMs, BackoffMs: 1})
	s.send(t, name, "a 0", "b 0", "a 1")
	victim, die := s.mortal(t, name, client.ReleaseOnDisconnect(seen))
	started := make(chan struct{}, 3)
	go victim.Run(t.Context(), func(ctx context.Context, _ *client.Delivery) error {
		started <- struct{}{}
		<-ctx.Done()
		return nil // too late for anybody to hear
	}, client.Workers(2))
	<-started
	<-started
	require.Zero(t, s.state(t, name, 0).Floor)
	require.Zero(t, s.state(t, name, 0).Done)
	die()
	began := time.Now()
	other := s.join(t, name)
	values := map[string]int{}
	for range 3 {
		d := take(t, other)
		values[string(d.Value)] = d.Deliveries
		took = time.Since(began)
		done(t, d)
	}
	require.Equal(t, map[string]int{"a 0": 2, "b 0": 2, "a 1": values["a 1"]}, values)
	require.EqualValues(t, 3, s.state(t, name, 0).Floor)
	leave(t, other)
	return took
}

// listeners has four instances of one listener: each record is handled by exactly one of
// them, and each of them gets some.
func (s *stage) listeners(t *testing.T) {
	const instances = 4
	queue := s.queue(t, 1)
	s.group(t, queue, client.GroupSettings{Mode: client.Shared})
	records := *requirementRecords
	var mu sync.Mutex
	handled := map[string]int{}
	var by [instances]int
	s.crew(t, queue, instances, 2, func(m int, d *client.Delivery, stop func()) error {
		mu.Lock()
		defer mu.Unlock()
		handled[string(d.Value)]++
		by[m]++
		if len(handled) == records {
			stop()
		}
		return nil
	}, func() { s.send(t, queue, numbered("k", records)...) }, client.Prefetch(10))
	require.Len(t, handled, records)
	for value, n := range handled {
		require.Equal(t, 1, n, value)
	}
	for m, n := range by {
		require.Positive(t, n, "instance %d", m)
	}
}

// identities has two listeners of different names over one connection: both run, and each
// gets everything.
func (s *stage) identities(t *testing.T) {
	queue := s.queue(t, 1)
	s.send(t, queue, numbered("k", 5)...)
	conn := connectTo(t, s.broker.URL())
	var both []*client.Consumer
	for _, name := range []string{"one", "two"} {
		c, err := conn.Consumer(t.Context(), queue, client.Group(name), client.Mode(client.Serial), client.StartAt(client.Earliest()))
		require.NoError(t, err)
		both = append(both, c)
	}
	for _, want := range numbered("k", 5) {
		for _, c := range both {
			d := take(t, c)
			require.Equal(t, want, string(d.Value))
			done(t, d)
		}
	}
	leave(t, both...)
}
