package lockstest_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/client"
	"github.com/lockstepmq/lockstep/lockstest"
	"github.com/lockstepmq/lockstep/promise"
	"github.com/lockstepmq/lockstep/wire"
)

// What the requirements ask of groups of a cluster whose nodes stop in order or hand over;
// nodes that are killed are in package fuzz.

var requirementTransfers = flag.Int("requirements.transfers", 4, "how often R-X-9 hands a leadership over")

func TestRequirementsOfGroupsInACluster(t *testing.T) {
	c := lockstest.StartCluster(t, 3)
	t.Run("R_X_9_PlannedMovesRepeatNothing", func(t *testing.T) { transferred(t, c) })
	t.Run("R_SIB_26_TheSoleConsumerKeepsItsOrderWithoutANode", func(t *testing.T) { soleOrder(t, c) })
	t.Run("R_SIB_22_R_LSN_2_ListenersAreActiveAsTheBindingSays", func(t *testing.T) { activation(t, c) })
	t.Run("R_SIB_18_AReplyIsVisibleFromAnyNode", func(t *testing.T) { gathered(t, c) })
	t.Run("R_SIB_19_AnAliasIsAlteredForAllNodesAtOnce", func(t *testing.T) {
		(&stage{broker: c.Broker(1), conn: connectTo(t, c.Broker(2).URL())}).retargeted(t)
	})
	t.Run("R_WLS_7_ThreeEventsAreToldApart", func(t *testing.T) { threeEvents(t, c) })
}

// leaderOf waits until a partition has a leader, other than one.
func leaderOf(t *testing.T, conn *client.Conn, queue string, partition int, other uint32) (leader uint32) {
	t.Helper()
	awaitThat(t, "a partition has a leader", func() bool {
		d, err := conn.Destination(t.Context(), queue)
		if err != nil {
			return false
		}
		leader = d.Partitions[partition].Leader
		return leader != 0 && leader != other
	})
	return leader
}

// transferred hands leaderships over under consumers that work: nothing comes twice.
func transferred(t *testing.T, c *lockstest.Cluster) {
	conn := connectTo(t, c.URL())
	create(t.Context(), t, conn, client.Destination{Name: "moved", Kind: client.Queue, Settings: client.Settings{Partitions: 2, Replicas: 3, Sync: client.SyncOS}})
	for p := range 2 {
		leaderOf(t, conn, "moved", p, 0)
	}
	const each, keys = 100, 20
	records := each * (*requirementTransfers + 1)
	m := newMembers(t, records, promise.Options{Steady: true, Flags: true})
	group := []client.ConsumerOption{client.Group("g"), client.Mode(client.Serial), client.Prefetch(20)}
	stopA := m.start(conn, "a", "moved", 4, succeed, group...)
	stopB := m.start(connectTo(t, c.URL()), "b", "moved", 4, succeed, group...)
	produceKeys(t, conn, "moved", keys, 0, each)
	moved := 0
	for n := range *requirementTransfers {
		p := n % 2
		from := leaderOf(t, conn, "moved", p, 0)
		var sending sync.WaitGroup
		sending.Go(func() { produceKeys(t, conn, "moved", keys, each*(n+1), each) })
		to := from%3 + 1
		awaitThat(t, "the leadership moves", func() bool {
			_ = conn.TransferLeader(t.Context(), "moved", uint32(p), to) // who is behind is not ready yet
			d, err := conn.Destination(t.Context(), "moved")
			return err == nil && d.Partitions[p].Leader == to
		})
		moved++
		sending.Wait()
	}
	<-m.done
	stopA()
	stopB()
	require.Len(t, m.handled, records)
	require.Zero(t, m.again)
	t.Logf("%d records over %d planned moves, none of them delivered again", records, moved)
}

// told keeps the events of a connection and of a consumer.
type told struct {
	mu   sync.Mutex
	list []client.Event
}

func (x *told) add(e client.Event) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.list = append(x.list, e)
}

// cases are the events that the three cases are told apart by.
type cases struct {
	lost        []uint32 // nodes
	unavailable []string // destinations, each once
	rebound     int
	closed      []error
}

func (x *told) cases() (c cases) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, e := range x.list {
		switch e := e.(type) {
		case client.Disconnected:
			c.lost = append(c.lost, e.Node)
		case client.DestinationUnavailable:
			if !slices.Contains(c.unavailable, e.Destination) {
				c.unavailable = append(c.unavailable, e.Destination)
			}
		case client.Rebound:
			c.rebound++
		case client.ConsumerClosed:
			c.closed = append(c.closed, e.Err)
		}
	}
	return c
}

// count is how often consumers have attached.
func (x *told) count() (n int) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, e := range x.list {
		if _, ok := e.(client.Attached); ok {
			n++
		}
	}
	return n
}

// threeEvents has a consumer that is bound anew and ended, a broker that leads what is in
// use and goes, and the broker that the client is connected to: three events, which do not
// come for one another.
func threeEvents(t *testing.T, c *lockstest.Cluster) {
	admin := connectTo(t, c.Broker(1).URL())
	create(t.Context(), t, admin, client.Destination{Name: "told", Kind: client.Queue, Settings: client.Settings{Partitions: 2, Replicas: 3, Sync: client.SyncOS}})
	var x told
	conn, err := client.Connect(t.Context(), c.Broker(1).URL(), client.WithEvents(x.add), client.AllowRedirect(true))
	require.NoError(t, err)
	defer conn.Close()
	consumer, err := conn.Consumer(t.Context(), "told", client.Group("g"), client.OnEvent(x.add))
	require.NoError(t, err)
	other, err := admin.Consumer(t.Context(), "told", client.Group("g"))
	require.NoError(t, err)
	awaitThat(t, "it is bound anew", func() bool { return x.cases().rebound == 1 })
	leave(t, other)
	awaitThat(t, "and again", func() bool { return x.cases().rebound == 2 })
	require.Equal(t, cases{rebound: 2}, x.cases())
	require.NoError(t, admin.RemoveGroup(t.Context(), "told", "g"))
	awaitThat(t, "it is ended", func() bool { return len(x.cases().closed) == 1 })
	_, err = consumer.Next(t.Context())
	require.ErrorIs(t, err, wire.CodeGroupGone)
	require.NoError(t, conn.Ping(t.Context()), "the connection stays")
	ended := x.cases()
	require.Equal(t, cases{rebound: 2, closed: ended.closed}, ended)
	require.ErrorIs(t, ended.closed[0], wire.CodeGroupGone)

	// A queue with one replica, elsewhere.
	elsewhere, name := uint32(0), ""
	var p *client.Producer
	for i := 0; elsewhere < 2; i++ {
		name = "alone" + string(rune('a'+i))
		create(t.Context(), t, admin, client.Destination{Name: name, Kind: client.Queue, Settings: client.Settings{Partitions: 1, Replicas: 1, Sync: client.SyncOS}})
		if elsewhere = leaderOf(t, admin, name, 0, 0); elsewhere == 1 {
			continue
		}
		consumer, err = conn.Consumer(t.Context(), name, client.Group("g"), client.OnEvent(x.add))
		require.NoError(t, err)
		p, err = conn.Producer(t.Context(), name)
		require.NoError(t, err)
	}
	works := func() {
		t.Helper()
		_, err = p.Send(t.Context(), &client.Record{Value: []byte("v")})
		require.NoError(t, err)
		done(t, take(t, consumer))
	}
	works()
	c.Stop(int(elsewhere))
	awaitThat(t, "the destination is not available", func() bool { return len(x.cases().unavailable) > 0 })
	require.NoError(t, conn.Ping(t.Context()))
	want := ended
	want.unavailable = []string{name}
	require.Equal(t, want, x.cases(), "connection and consumer stay")
	before := x.count()
	c.Start(int(elsewhere))
	c.Await()
	awaitThat(t, "the consumer is attached again", func() bool { return x.count() > before })
	works()

	c.Stop(1)
	awaitThat(t, "the connection is lost", func() bool { return len(x.cases().lost) == 1 })
	awaitThat(t, "another one is there", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		return conn.Ping(ctx) == nil
	})
	works()
	want.lost = []uint32{1}
	require.Equal(t, want, x.cases(), "the consumer stays")
}

// soleOrder loses the node that leads a strict order, with a record in hand: the consumer
// keeps it, a second one is refused there too, and what it gives back is the next again.
func soleOrder(t *testing.T, c *lockstest.Cluster) {
	conn := connectTo(t, c.URL())
	create(t.Context(), t, conn, client.Destination{Name: "sole", Kind: client.Queue, Settings: client.Settings{Partitions: 1, Replicas: 3, Sync: client.SyncOS}})
	leader := leaderOf(t, conn, "sole", 0, 0)
	_, err := conn.CreateGroup(t.Context(), "sole", "g", client.GroupIntent{Settings: client.GroupSettings{
		Mode: client.Serial, Scope: client.ByDestination, Holder: client.Sole, BackoffMs: 1, BackoffMaxMs: 1}})
	require.NoError(t, err)
	produceKeys(t, conn, "sole", 1, 0, 4)
	one, err := connectTo(t, c.URL()).Consumer(t.Context(), "sole", client.Group("g"))
	require.NoError(t, err)
	held := take(t, one)
	require.EqualValues(t, 0, held.Offset)
	c.Stop(int(leader))
	leaderOf(t, conn, "sole", 0, leader)
	awaitThat(t, "a second consumer is refused", func() bool {
		_, err := connectTo(t, c.URL()).Consumer(t.Context(), "sole", client.Group("g"))
		return errors.Is(err, wire.CodeRefused)
	})
	require.NoError(t, held.Nack())
	for want := range uint64(4) {
		d := take(t, one)
		require.Equal(t, want, d.Offset)
		done(t, d)
	}
	leave(t, one)
	c.Start(int(leader))
	c.Await()
}

// activation is which of three instances of a listener, one at each node, are active:
// those at nodes that lead a partition (local), all (cover), or exactly one (sticky, where the
// others stand by; of sole soleOrder shows it).
func activation(t *testing.T, c *lockstest.Cluster) {
	conn := connectTo(t, c.URL())
	at := func(node uint32, queue string, opts ...client.ConsumerOption) (*client.Consumer, error) {
		return connectTo(t, c.Broker(int(node)).URL()).Consumer(t.Context(), queue, append([]client.ConsumerOption{client.Group("g")}, opts...)...)
	}
	// Local only: two partitions are led at one or two of three nodes, and then one moves.
	create(t.Context(), t, conn, client.Destination{Name: "local", Kind: client.Queue, Settings: client.Settings{Partitions: 2, Replicas: 3, Sync: client.SyncOS}})
	for p := range 2 {
		leaderOf(t, conn, "local", p, 0)
	}
	_, err := conn.CreateGroup(t.Context(), "local", "g", client.GroupIntent{Settings: client.GroupSettings{Binding: client.BindLocal}})
	require.NoError(t, err)
	var listeners [4]*client.Consumer // by node
	for node := uint32(1); node <= 3; node++ {
		listeners[node], err = at(node, "local")
		require.NoError(t, err)
	}
	active := func() (nodes [4][]uint32) {
		for node := 1; node <= 3; node++ {
			nodes[node] = listeners[node].Partitions()
		}
		return nodes
	}
	local := func() (leader uint32, ok bool) { // of partition 1; the balancer may move them too
		d, err := conn.Destination(t.Context(), "local")
		if err != nil {
			return 0, false
		}
		want := [4][]uint32{1: {}, 2: {}, 3: {}}
		for _, p := range d.Partitions {
			want[p.Leader] = append(want[p.Leader], p.Number)
		}
		return d.Partitions[1].Leader, reflect.DeepEqual(want, active())
	}
	var before uint32
	awaitThat(t, "each partition is with the listener of its node", func() (ok bool) {
		before, ok = local()
		return ok
	})
	var free uint32 = 1 // it leads neither partition: the balancer has no reason to take it back
	for len(active()[free]) > 0 {
		free++
	}
	awaitThat(t, "it goes with the leader", func() bool {
		now, ok := local()
		if now == before { // or has other reasons
			_ = conn.TransferLeader(t.Context(), "local", 1, free)
			return false
		}
		return ok
	})
	leave(t, listeners[1:]...)

	// Everywhere: the partition has a listener at each node, and any of them gets records.
	create(t.Context(), t, conn, client.Destination{Name: "one", Kind: client.Queue, Settings: client.Settings{Partitions: 1, Replicas: 3, Sync: client.SyncOS}})
	leaderOf(t, conn, "one", 0, 0)
	for node := uint32(1); node <= 3; node++ {
		listeners[node], err = at(node, "one", client.Prefetch(1))
		require.NoError(t, err)
	}
	produceKeys(t, conn, "one", 1, 0, 3)
	for node := 1; node <= 3; node++ {
		d := take(t, listeners[node])
		defer d.Ack()
	}
	awaitThat(t, "all are active", func() bool { return reflect.DeepEqual([4][]uint32{1: {0}, 2: {0}, 3: {0}}, active()) })

	// Exactly one, wherever it is: the others stand by, and when it leaves another one is.
	create(t.Context(), t, conn, client.Destination{Name: "exactly", Kind: client.Queue, Settings: client.Settings{Partitions: 1, Replicas: 3, Sync: client.SyncOS}})
	leaderOf(t, conn, "exactly", 0, 0)
	settings := stickyOne
	settings.SessionMs = 60_000 // nobody dies
	_, err = conn.CreateGroup(t.Context(), "exactly", "g", client.GroupIntent{Settings: settings})
	require.NoError(t, err)
	left := map[uint32]*client.Consumer{}
	for node := uint32(1); node <= 3; node++ {
		left[node], err = at(node, "exactly")
		require.NoError(t, err)
	}
	for first := 0; len(left) > 0; first += 3 {
		produceKeys(t, conn, "exactly", 3, first, 3)
		var works uint32
		for next := uint64(first); next < uint64(first)+3; {
			for node, c := range left {
				list, err := c.Fetch(t.Context(), 1, 5*time.Millisecond)
				require.NoError(t, err)
				for _, d := range list {
					require.Equal(t, next, d.Offset)
					require.Contains(t, []uint32{0, node}, works, "two are active")
					works = node
					next++
					done(t, d)
				}
			}
		}
		t.Logf("the one at node %d is active", works)
		leave(t, left[works])
		delete(left, works)
	}
}

// gathered has a requester at each node that gathers the replies of all partitions, each in
// a group of its own, and repliers at every node: all see all, each partition in its order.
// It has all partitions beside another member of its group, too.
func gathered(t *testing.T, c *lockstest.Cluster) {
	conn := connectTo(t, c.URL())
	create(t.Context(), t, conn, client.Destination{Name: "replies", Kind: client.Queue, Settings: client.Settings{Partitions: 3, Replicas: 1, Sync: client.SyncOS}})
	for p := range 3 {
		leaderOf(t, conn, "replies", p, 0)
	}
	var requesters []*client.Consumer
	gathers := func(node int, group string) *client.Consumer {
		at, err := client.Connect(t.Context(), c.Broker(node).URL(), client.AllowRedirect(false))
		require.NoError(t, err)
		t.Cleanup(func() { _ = at.Close() })
		r, err := at.Consumer(t.Context(), "replies", client.Group(group), client.Binding(client.Gather))
		require.NoError(t, err)
		return r
	}
	for node := 1; node <= 3; node++ {
		group := "requester " + strconv.Itoa(node)
		r, beside := gathers(node, group), gathers(node%3+1, group)
		for _, c := range []*client.Consumer{r, beside} {
			require.Equal(t, []uint32{0, 1, 2}, slices.Sorted(slices.Values(c.Partitions())))
		}
		leave(t, beside)
		requesters = append(requesters, r)
	}
	want := map[uint32][]string{}
	for node := 1; node <= 3; node++ {
		for partition := range uint32(3) {
			p, err := connectTo(t, c.Broker(node).URL()).Producer(t.Context(), "replies", client.Partition(partition))
			require.NoError(t, err)
			for i := range 5 {
				reply := fmt.Sprintf("%d from node %d", i, node)
				_, err := p.Send(t.Context(), &client.Record{Value: []byte(reply)})
				require.NoError(t, err)
				want[partition] = append(want[partition], reply)
			}
		}
	}
	for _, r := range requesters {
		got := map[uint32][]string{}
		for range 3 * 3 * 5 {
			d := take(t, r)
			got[d.Partition] = append(got[d.Partition], string(d.Value))
			done(t, d)
		}
		require.Equal(t, want, got)
	}
	leave(t, requesters...)
}
