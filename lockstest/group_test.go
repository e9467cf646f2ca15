package lockstest_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/client"
	"github.com/lockstepmq/lockstep/lockstest"
	"github.com/lockstepmq/lockstep/promise"
)

// members are consumers of one group, and what they have seen: compared with what a
// group promises, by partition.
type members struct {
	t       testing.TB
	options promise.Options

	mu       sync.Mutex
	checkers map[uint32]*promise.Checker
	handled  map[string]int // acknowledged records, by value
	by       map[string]int // how many each member has acknowledged
	broken   bool
	again    int // deliveries that were flagged as repeated
	total    int
	want     int
	done     chan struct{} // closed when as many are acknowledged as are wanted
}

func newMembers(t testing.TB, want int, options promise.Options) *members {
	return &members{t: t, options: options, checkers: map[uint32]*promise.Checker{}, handled: map[string]int{}, by: map[string]int{}, want: want, done: make(chan struct{})}
}

func (m *members) observe(partition uint32, e promise.Event) {
	m.mu.Lock()
	defer m.mu.Unlock()
	c := m.checkers[partition]
	if c == nil {
		c = promise.New(m.options)
		m.checkers[partition] = c
	}
	if err := c.Observe(e); err != nil && !m.broken {
		m.broken = true // the first says it
		m.t.Errorf("partition %d: %v", partition, err)
	}
}

// run lets a member handle records until ctx ends. handle says what becomes of one.
func (m *members) run(ctx context.Context, name string, c *client.Consumer, workers int, handle func(*client.Delivery) error) error {
	return c.Run(ctx, func(ctx context.Context, d *client.Delivery) error {
		e := promise.Event{Session: name, Scope: string(d.Key), Record: d.Offset, Epoch: d.Epoch(), Redelivered: d.Redelivered}
		say := func(kind promise.Kind, answer promise.Answer) {
			e.Kind, e.Answer = kind, answer
			m.observe(d.Partition, e)
		}
		say(promise.Delivered, 0)
		say(promise.Started, 0)
		err := handle(d)
		say(promise.Finished, 0)
		if err != nil {
			say(promise.Nacked, 0)
			if rest, ok := err.(later); ok {
				return d.Nack(client.Delay(time.Duration(rest)))
			}
			return err
		}
		say(promise.Acked, 0)
		answered := func(err error) {
			switch {
			case err == nil:
				say(promise.Answered, promise.OK)
				m.count(name, d)
			case errors.Is(err, client.ErrFenced):
				say(promise.Answered, promise.Stale)
			}
		}
		if err := d.AckFunc(answered); err != nil {
			answered(err)
		}
		return nil
	}, client.Workers(workers))
}

// later is how long a record that has failed is to rest, whatever the backoff.
type later time.Duration

func (l later) Error() string { return fmt.Sprintf("not for %v", time.Duration(l)) }

func (m *members) count(name string, d *client.Delivery) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.handled[string(d.Value)]++
	m.by[name]++
	if d.Redelivered {
		m.again++
	}
	if m.total++; m.total == m.want {
		close(m.done)
	}
}

// produceKeys sends records from number first on.
func produceKeys(t testing.TB, conn *client.Conn, destination string, keys, first, records int) {
	t.Helper()
	p, err := conn.Producer(t.Context(), destination)
	require.NoError(t, err)
	for i := first; i < first+records; i++ {
		key := fmt.Sprintf("key %d", i%keys)
		p.SendFunc(t.Context(), &client.Record{Key: []byte(key), Value: fmt.Appendf(nil, "%s: %d", key, i)}, func(_ client.Receipt, err error) {
			if err != nil {
				t.Errorf("send: %v", err)
			}
		})
	}
	require.NoError(t, p.Close(t.Context()))
}

func connectTo(t testing.TB, url string) *client.Conn {
	t.Helper()
	conn, err := client.Connect(t.Context(), url)
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close() })
	return conn
}

// start makes a member and runs it until the test is over or stop is called.
func (m *members) start(conn *client.Conn, name, destination string, workers int, handle func(*client.Delivery) error, opts ...client.ConsumerOption) (stop func()) {
	m.t.Helper()
	c, err := conn.Consumer(m.t.Context(), destination, opts...)
	require.NoError(m.t, err)
	ctx, cancel := context.WithCancel(m.t.Context())
	ended := make(chan error, 1)
	go func() { ended <- m.run(ctx, name, c, workers, handle) }()
	return func() {
		cancel()
		require.ErrorIs(m.t, <-ended, context.Canceled)
		require.NoError(m.t, c.Close(context.WithoutCancel(m.t.Context())))
	}
}

func succeed(*client.Delivery) error { return nil }

// R-BRK-1, R-BRK-4, R-X-2, R-X-3: in a serial group each record is handled by one member,
// one record of a key at a time, in order; what everybody is done with leaves the queue,
// and a restart of the broker repeats nothing.
func TestR_BRK_1_ASerialGroupHandlesEachRecordOnceAndInOrder(t *testing.T) {
	const records, keys = 1000, 10
	broker := lockstest.Start(t)
	conn := connectTo(t, broker.URL())
	_, err := conn.CreateDestination(t.Context(), client.Destination{Name: "orders", Kind: client.Queue})
	require.NoError(t, err)
	produceKeys(t, conn, "orders", keys, 0, records)

	m := newMembers(t, records, promise.Options{Steady: true, Flags: true})
	group := []client.ConsumerOption{client.Group("billing"), client.Mode(client.Serial), client.Scope(client.ByKey)}
	stopA := m.start(conn, "a", "orders", 4, succeed, group...)
	stopB := m.start(connectTo(t, broker.URL()), "b", "orders", 4, succeed, group...)
	<-m.done
	stopA()
	stopB()
	require.Len(t, m.handled, records)
	require.Zero(t, m.again)

	d, err := conn.Destination(t.Context(), "orders")
	require.NoError(t, err)
	require.EqualValues(t, records, d.Partitions[0].StartOffset, "a queue removes what all its groups are done with")

	broker.Restart()
	produceKeys(t, conn, "orders", 1, records, 1)
	c, err := conn.Consumer(t.Context(), "orders", group...)
	require.NoError(t, err)
	next, err := c.Next(t.Context())
	require.NoError(t, err)
	require.EqualValues(t, records, next.Offset)
	require.NoError(t, next.AckSync(t.Context()))
	require.NoError(t, c.Close(t.Context()))
}

// R-BRK-1 for shared groups: union complete, intersection empty.
func TestR_BRK_1_ASharedGroupHandlesEachRecordOnce(t *testing.T) {
	const records = 5000
	broker := lockstest.Start(t)
	conn := connectTo(t, broker.URL())
	_, err := conn.CreateDestination(t.Context(), client.Destination{Name: "orders", Kind: client.Queue, Settings: client.Settings{Partitions: 3}})
	require.NoError(t, err)
	m := newMembers(t, records, promise.Options{Shared: true, Steady: true, Flags: true})
	var stops []func()
	for i := range 4 {
		stops = append(stops, m.start(connectTo(t, broker.URL()), fmt.Sprint(i), "orders", 8, succeed, client.Group("g"), client.Mode(client.Shared), client.Prefetch(50)))
	}
	produceKeys(t, conn, "orders", 100, 0, records)
	<-m.done
	for _, stop := range stops {
		stop()
	}
	require.Len(t, m.handled, records)
	for i := range stops {
		require.Positive(t, m.by[fmt.Sprint(i)], "member %d", i)
	}
}

// A stream has many records in flight, and they come in order: after one that failed the
// next one is that one again.
func TestAStreamIsInOrder(t *testing.T) {
	const records = 1000
	broker := lockstest.Start(t)
	conn := connectTo(t, broker.URL())
	_, err := conn.CreateDestination(t.Context(), client.Destination{Name: "orders", Kind: client.Queue, Settings: client.Settings{Partitions: 1}})
	require.NoError(t, err)
	produceKeys(t, conn, "orders", 10, 0, records)
	c, err := conn.Consumer(t.Context(), "orders", client.Group("fold"), client.Mode(client.Stream), client.Backoff(time.Millisecond, time.Millisecond))
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	var order []uint64
	failed := map[uint64]bool{}
	err = c.Run(ctx, func(_ context.Context, d *client.Delivery) error {
		if order = append(order, d.Offset); d.Offset%100 == 50 && !failed[d.Offset] {
			failed[d.Offset] = true
			return errors.New("not now")
		}
		if d.Offset == records-1 {
			cancel()
		}
		return nil
	}, client.Workers(4))
	require.ErrorIs(t, err, context.Canceled)
	require.NoError(t, c.Close(t.Context()))
	var want []uint64
	for o := range uint64(records) {
		if want = append(want, o); o%100 == 50 {
			want = append(want, o)
		}
	}
	require.Equal(t, want, order)
}

// Rules 22, 24: what lies behind a record that failed is on its way in great number, and the
// socket is full of it: none of it starts before the record is done.
func TestRule24_NothingOvertakesAFailedRecord(t *testing.T) {
	const records, failures = 60, 2
	for name, settings := range map[string]client.GroupSettings{
		"stream":                {Mode: client.Stream},
		"serial, with a window": {Mode: client.Serial, Window: records},
	} {
		order := promise.Strict
		if settings.Mode == client.Stream {
			order = promise.ReplayOnReceipt
		}
		t.Run(name, func(t *testing.T) {
			broker := lockstest.Start(t)
			ctx, conn := connect(t, broker)
			create(ctx, t, conn, client.Destination{Name: "orders", Kind: client.Queue, Settings: client.Settings{Sync: client.SyncOS}})
			settings.BackoffMs, settings.BackoffMaxMs = 20, 20
			_, err := conn.CreateGroup(ctx, "orders", "g", client.GroupIntent{Settings: settings})
			require.NoError(t, err)
			p, err := conn.Producer(ctx, "orders")
			require.NoError(t, err)
			large := make([]byte, 100<<10)
			for range records {
				p.SendFunc(ctx, &client.Record{Key: []byte("k"), Value: large}, func(_ client.Receipt, err error) {
					if err != nil {
						t.Error(err)
					}
				})
			}
			require.NoError(t, p.Close(ctx))
			m := newMembers(t, records, promise.Options{Order: order, Flags: true})
			left := failures
			stop := m.start(connectTo(t, broker.URL()), "a", "orders", 1, func(d *client.Delivery) error {
				if d.Offset%20 == 0 && d.Attempts == 0 && left > 0 {
					left--
					return errors.New("try again")
				}
				return nil
			}, client.Group("g"), client.Prefetch(records), client.PrefetchBytes(64<<20))
			<-m.done
			stop()
			require.Zero(t, left)
		})
	}
}

// R-X-3: with one in ten records failing, with the group's backoff, with a delay of their own,
// or because their handlers take too long, no later record of a key overtakes an earlier one.
func TestR_X_3_FailuresDoNotChangeTheOrderOfAKey(t *testing.T) {
	const records, keys = 500, 7
	broker := lockstest.Start(t)
	conn := connectTo(t, broker.URL())
	_, err := conn.CreateDestination(t.Context(), client.Destination{Name: "orders", Kind: client.Queue, Settings: client.Settings{Partitions: 2}})
	require.NoError(t, err)
	// Who is told that its time is over says so before anybody takes the record from it.
	settings := client.GroupSettings{Mode: client.Serial, BackoffMs: 1, BackoffMaxMs: 10, AckWaitMs: 20, RevokeMs: 60_000}
	_, err = conn.CreateGroup(t.Context(), "orders", "g", client.GroupIntent{Settings: settings, Start: client.GroupStart{To: "earliest"}})
	require.NoError(t, err)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	var mu sync.Mutex
	var failed [3]int // by kind
	handle := func(d *client.Delivery) error {
		mu.Lock()
		kind := random.IntN(30)
		if kind < len(failed) {
			failed[kind]++
		}
		mu.Unlock()
		switch kind {
		case 0:
			return errors.New("not now")
		case 1:
			return later(5 * time.Millisecond)
		case 2:
			<-d.Context().Done()
			return context.Cause(d.Context())
		}
		return nil
	}
	m := newMembers(t, records, promise.Options{Flags: true})
	group := []client.ConsumerOption{client.Group("g")}
	stopA := m.start(conn, "a", "orders", 4, handle, group...)
	stopB := m.start(connectTo(t, broker.URL()), "b", "orders", 4, handle, group...)
	produceKeys(t, conn, "orders", keys, 0, records)
	<-m.done
	stopA()
	stopB()
	require.Len(t, m.handled, records)
	require.NotContains(t, failed, 0, "each kind of failure")
	t.Logf("%d failed, %d with a delay of their own, %d took too long", failed[0], failed[1], failed[2])
}

// R-X-9, G4: leaders that move while a serial group works repeat nothing, and those that
// are killed neither.
func TestALostLeaderRepeatsNothing(t *testing.T) {
	const records, keys = 2000, 50
	cluster := lockstest.StartCluster(t, 3)
	conn := connectTo(t, cluster.URL())
	_, err := conn.CreateDestination(t.Context(), client.Destination{Name: "orders", Kind: client.Queue, Settings: client.Settings{Partitions: 2, Replicas: 3}})
	require.NoError(t, err)
	m := newMembers(t, records, promise.Options{Flags: true})
	group := []client.ConsumerOption{client.Group("g"), client.Mode(client.Serial)}
	stopA := m.start(conn, "a", "orders", 4, succeed, group...)
	stopB := m.start(connectTo(t, cluster.URL()), "b", "orders", 4, succeed, group...)
	half := records / 2
	produceKeys(t, conn, "orders", keys, 0, half)
	d, err := conn.Destination(t.Context(), "orders")
	require.NoError(t, err)
	leader := int(d.Partitions[0].Leader)
	cluster.Stop(leader)
	produceKeys(t, conn, "orders", keys, half, half)
	<-m.done
	cluster.Start(leader)
	stopA()
	stopB()
	var repeated []string
	for value, n := range m.handled {
		if n > 1 {
			repeated = append(repeated, value)
		}
	}
	slices.Sort(repeated)
	require.Empty(t, repeated[:min(len(repeated), 10)])
	require.Zero(t, m.again)
}
