package lockstest_test

import (
	"context"
	"errors"
	"flag"
	"reflect"
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

// kinds counts those that the three cases are told apart by.
func (x *told) kinds() (lost, unavailable, consumer int) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, e := range x.list {
		switch e.(type) {
		case client.Disconnected:
			lost++
		case client.DestinationUnavailable:
			unavailable++
		case client.Rebound, client.ConsumerClosed:
			consumer++
		}
	}
	return lost, unavailable, consumer
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
	awaitThat(t, "it is bound anew", func() bool { _, _, n := x.kinds(); return n == 1 })
	leave(t, other)
	awaitThat(t, "and again", func() bool { _, _, n := x.kinds(); return n == 2 })
	require.NoError(t, admin.RemoveGroup(t.Context(), "told", "g"))
	awaitThat(t, "it is ended", func() bool { _, _, n := x.kinds(); return n == 3 })
	_, err = consumer.Next(t.Context())
	require.Error(t, err)
	require.NoError(t, conn.Ping(t.Context()))
	lost, unavailable, _ := x.kinds()
	require.Zero(t, lost, "the connection stays")
	require.Zero(t, unavailable)

	// A queue with one replica, elsewhere.
	elsewhere := uint32(0)
	for i := 0; elsewhere < 2; i++ {
		name := "alone" + string(rune('a'+i))
		create(t.Context(), t, admin, client.Destination{Name: name, Kind: client.Queue, Settings: client.Settings{Partitions: 1, Replicas: 1, Sync: client.SyncOS}})
		if elsewhere = leaderOf(t, admin, name, 0, 0); elsewhere == 1 {
			continue
		}
		_, err = conn.Consumer(t.Context(), name, client.Group("g"), client.OnEvent(x.add))
		require.NoError(t, err)
		p, err := conn.Producer(t.Context(), name)
		require.NoError(t, err)
		_, err = p.Send(t.Context(), &client.Record{Value: []byte("v")})
		require.NoError(t, err)
	}
	c.Stop(int(elsewhere))
	awaitThat(t, "the destination is not available", func() bool { _, n, _ := x.kinds(); return n > 0 })
	require.NoError(t, conn.Ping(t.Context()))
	lost, _, closed := x.kinds()
	require.Zero(t, lost, "the connection stays")
	require.Equal(t, 3, closed, "the consumer stays, too")
	before := x.count()
	c.Start(int(elsewhere))
	c.Await()

	c.Stop(1)
	awaitThat(t, "the connection is lost", func() bool { n, _, _ := x.kinds(); return n == 1 })
	awaitThat(t, "another one is there", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		return conn.Ping(ctx) == nil
	})
	_, _, closed = x.kinds()
	require.Equal(t, 3, closed, "the consumer stays")
	awaitThat(t, "and is attached again", func() bool { return x.count() > before })
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
// those at nodes that lead a partition (local), all (cover), or exactly one (sole, and
// sticky where others stand by).
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
}
