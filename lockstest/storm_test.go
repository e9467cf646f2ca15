package lockstest_test

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/client"
	"github.com/lockstepmq/lockstep/cluster"
	"github.com/lockstepmq/lockstep/lockstest"
	"github.com/lockstepmq/lockstep/server"
	"github.com/lockstepmq/lockstep/wire"
)

var (
	stormMembers = flag.Int("storm.members", 150, "consumers of one group that join at once")
	stormGroups  = flag.Int("storm.groups", 60, "groups of one destination")
)

// safeBuffer is a log that a test reads while it is written.
type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *safeBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *safeBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// R-SIB-16: what a strict group leaves without a consumer can be seen: in a metric, in the
// log of the coordinator's node, in how the group is described, and by an event that its consumers hear.
func TestR_SIB_16_PartitionsWithoutAConsumerAreVisible(t *testing.T) {
	var said safeBuffer
	broker := lockstest.Start(t, lockstest.Logger(slog.New(slog.NewTextHandler(&said, nil))), lockstest.Configure(func(c *server.Config) { c.HTTP = "127.0.0.1:0" }))
	ctx, conn := connect(t, broker)
	jobs(ctx, t, conn, 1)
	var f filler
	log := &received{list: make(map[uint32][]string)}
	metric := func(want int) bool {
		response, err := http.Get("http://" + broker.HTTPAddr() + "/metrics")
		require.NoError(t, err)
		defer func() { _ = response.Body.Close() }()
		body, err := io.ReadAll(response.Body)
		require.NoError(t, err)
		return strings.Contains(string(body), fmt.Sprintf(`lockstep_partitions_without_consumer{destination="jobs"} %d`, want))
	}
	f.fill(ctx, t, conn, 1, 1)
	told := make(chan []uint32, 16)
	hears := client.OnEvent(func(e client.Event) {
		if u, ok := e.(client.Uncovered); ok {
			told <- u.Partitions
		}
	})
	heard := func(n int) {
		t.Helper()
		for {
			select {
			case list := <-told:
				if len(list) == n {
					return
				}
			case <-time.After(timeout):
				require.Fail(t, "no event", "of %d partitions", n)
			}
		}
	}
	one := bind(ctx, t, conn, log, wire.BindingStrict, hears)
	heard(2)
	f.drained(t, log)
	require.True(t, metric(2), "it is so as soon as the consumer has its partition")
	require.Contains(t, said.String(), `partitions without a consumer: start more consumers, or bind with cover" coordinator=jobs/0 group=workers partitions="[0 2]"`)
	two, three := bind(ctx, t, conn, log, wire.BindingStrict), bind(ctx, t, conn, log, wire.BindingStrict)
	require.Eventually(t, func() bool { return metric(0) }, timeout, 5*time.Millisecond)
	heard(0)
	two.close(t)
	require.Eventually(t, func() bool { return metric(1) }, timeout, 5*time.Millisecond)
	heard(1)
	three.close(t)
	one.close(t)
	require.Eventually(t, func() bool { return metric(0) }, timeout, 5*time.Millisecond, "nobody wants anything")
	http.DefaultClient.CloseIdleConnections()
}

// Many consumers join one group at once, over real sockets: all are served, each record
// once, the broker's memory is that of its members, and a producer and a consumer of
// another queue notice nothing.
func TestManyMembersThatJoinAtOnce(t *testing.T) {
	members := *stormMembers
	broker := lockstest.Start(t)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	control := newControl(t, broker)
	conn := connectTo(t, broker.URL())
	create(ctx, t, conn, client.Destination{Name: "jobs", Kind: client.Queue, Settings: client.Settings{Partitions: 8, Sync: client.SyncOS}})
	before := heap()

	var all []*client.Consumer
	var mu sync.Mutex
	var handled sync.Map
	var count atomic.Int64
	run, stop := context.WithCancel(ctx)
	defer stop()
	var running, joining sync.WaitGroup
	const each = 50 // consumers of a connection
	begun := time.Now()
	for first := 0; first < members; first += each {
		many := connectTo(t, broker.URL())
		for range min(each, members-first) {
			joining.Go(func() {
				c, err := many.Consumer(ctx, "jobs", client.Group("crowd"), client.Mode(client.Shared), client.Prefetch(4))
				if err != nil {
					t.Errorf("a consumer: %v", err)
					return
				}
				mu.Lock()
				all = append(all, c)
				mu.Unlock()
				running.Go(func() {
					_ = c.Run(run, func(_ context.Context, d *client.Delivery) error {
						if _, again := handled.LoadOrStore(string(d.Value), true); again {
							t.Errorf("%s came twice", d.Value)
						}
						count.Add(1)
						return nil
					})
				})
			})
		}
	}
	joining.Wait()
	require.Len(t, all, members)
	joined := time.Since(begun)
	grown := heap() - before
	control.works(t)

	records := 10 * members
	produceKeys(t, conn, "jobs", 100, 0, records)
	require.Eventually(t, func() bool { return count.Load() == int64(records) }, 2*time.Minute, 10*time.Millisecond)
	info, err := conn.DescribeGroup(ctx, "jobs", "crowd")
	require.NoError(t, err)
	require.Contains(t, info.Partitions[0].Binding, fmt.Sprintf("of %d consumers", members))
	most, fewest := 0, members
	for _, p := range info.Partitions {
		most, fewest = max(most, len(p.Sessions)), min(fewest, len(p.Sessions))
	}
	require.LessOrEqual(t, most-fewest, members/8+1, "they are spread: %d to %d", fewest, most)
	t.Logf("%d members joined in %v, heap of both sides grew by %d KiB a member; binding %s", members, joined.Round(time.Millisecond), grown/int64(members)/1024, info.Partitions[0].Binding)
	require.Less(t, grown/int64(members), int64(256<<10), "bytes of a member, its own side included")
	stop()
	running.Wait()
	for _, c := range all {
		joining.Go(func() { _ = c.Close(ctx) })
	}
	joining.Wait()
	control.works(t)
}

func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// control is a client that has nothing to do with what is wrong elsewhere.
type control struct {
	producer *client.Producer
	consumer *client.Consumer
	n        int
}

func newControl(t *testing.T, broker *lockstest.Broker) *control {
	t.Helper()
	conn := connectTo(t, broker.URL())
	create(t.Context(), t, conn, client.Destination{Name: "control", Kind: client.Queue, Settings: client.Settings{Sync: client.SyncOS}})
	c := &control{}
	var err error
	c.producer, err = conn.Producer(t.Context(), "control")
	require.NoError(t, err)
	c.consumer, err = conn.Consumer(t.Context(), "control", client.Group("g"), client.Mode(client.Serial))
	require.NoError(t, err)
	return c
}

// works sends a record and gets it.
func (c *control) works(t *testing.T) {
	t.Helper()
	c.n++
	_, err := c.producer.Send(t.Context(), &client.Record{Key: []byte("k"), Value: fmt.Append(nil, c.n)})
	require.NoError(t, err)
	d, err := c.consumer.Next(t.Context())
	require.NoError(t, err)
	require.Equal(t, fmt.Sprint(c.n), string(d.Value))
	require.Equal(t, 1, d.Deliveries)
	require.NoError(t, d.AckSync(t.Context()))
}

// Many groups of one destination: all get everything, and others are not held up. One more
// than there may be is refused by name.
func TestManyGroupsOfOneDestination(t *testing.T) {
	groups := *stormGroups
	broker := lockstest.Start(t)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Minute)
	defer cancel()
	control := newControl(t, broker)
	conn := connectTo(t, broker.URL())
	create(ctx, t, conn, client.Destination{Name: "jobs", Kind: client.Queue, Settings: client.Settings{Sync: client.SyncOS}})
	before := heap()
	begun := time.Now()
	var making sync.WaitGroup
	const makers = 16
	for m := range makers {
		making.Go(func() {
			for g := m; g < groups; g += makers {
				if _, err := conn.CreateGroup(ctx, "jobs", fmt.Sprintf("group-%d", g), client.GroupIntent{Settings: client.GroupSettings{Mode: client.Serial}}); err != nil {
					t.Errorf("group %d: %v", g, err)
					return
				}
			}
		})
	}
	making.Wait()
	t.Logf("%d groups in %v, heap grew by %d KiB", groups, time.Since(begun).Round(time.Millisecond), (heap()-before)>>10)
	if groups == cluster.MaxGroups {
		_, err := conn.CreateGroup(ctx, "jobs", "one-more", client.GroupIntent{Settings: client.GroupSettings{Mode: client.Serial}})
		require.ErrorIs(t, err, wire.CodeTooMany)
		require.Contains(t, err.Error(), "has 10000 groups, its limit")
	}
	produceKeys(t, conn, "jobs", 1, 0, 3)
	for _, g := range []int{0, groups / 2, groups - 1} {
		c, err := conn.Consumer(ctx, "jobs", client.Group(fmt.Sprintf("group-%d", g)), client.Create(false))
		require.NoError(t, err)
		for n := range 3 {
			d, err := c.Next(ctx)
			require.NoError(t, err)
			require.EqualValues(t, n, d.Offset)
			require.NoError(t, d.AckSync(ctx))
		}
		require.NoError(t, c.Close(ctx))
	}
	control.works(t)
}

// R-SIB-15: a consumer hears what happens to it: that it has a partition, that the partition
// is lost and why, and that it has it again, with higher epochs than before; or that it is at
// its end, if it is not to come back.
func TestR_SIB_15_AConsumerHearsThatItsPartitionIsLost(t *testing.T) {
	broker := lockstest.Start(t)
	conn := connectTo(t, broker.URL())
	create(t.Context(), t, conn, client.Destination{Name: "jobs", Kind: client.Queue, Settings: client.Settings{Sync: client.SyncOS}})
	events := make(chan client.Event, 64)
	c, err := conn.Consumer(t.Context(), "jobs", client.Group("g"), client.Mode(client.Serial), client.OnEvent(func(e client.Event) {
		switch e.(type) {
		case client.Attached, client.Blocked, client.ConsumerClosed:
			events <- e
		}
	}))
	require.NoError(t, err)
	closed := make(chan client.ConsumerClosed, 2)
	once, err := client.Connect(t.Context(), broker.URL(), client.WithReconnect(false))
	require.NoError(t, err)
	defer func() { _ = once.Close() }()
	other, err := once.Consumer(t.Context(), "jobs", client.Group("other"), client.OnEvent(func(e client.Event) {
		if e, ok := e.(client.ConsumerClosed); ok {
			closed <- e
		}
	}))
	require.NoError(t, err)
	epoch := func() uint64 {
		produceKeys(t, conn, "jobs", 1, 0, 1)
		d := take(t, c)
		done(t, d)
		return d.Epoch()
	}
	next := func() client.Event {
		select {
		case e := <-events:
			return e
		case <-time.After(timeout):
			require.Fail(t, "no event")
			return nil
		}
	}
	require.Equal(t, client.Attached{Destination: "jobs", Group: "g"}, next())
	before := epoch()
	broker.Restart(func() {
		lost, ok := next().(client.Blocked)
		require.True(t, ok)
		require.Equal(t, "jobs", lost.Destination)
		require.Error(t, lost.Err)
	})
	require.Equal(t, client.Attached{Destination: "jobs", Group: "g"}, next())
	require.Greater(t, epoch(), before)
	require.ErrorIs(t, (<-closed).Err, client.ErrDisconnected)
	_, err = other.Next(t.Context())
	require.ErrorIs(t, err, client.ErrDisconnected)
	require.NoError(t, c.Close(t.Context()))
	require.IsType(t, client.ConsumerClosed{}, next())
}
