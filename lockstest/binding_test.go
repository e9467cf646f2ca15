package lockstest_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/client"
	"github.com/lockstepmq/lockstep/lockstest"
	"github.com/lockstepmq/lockstep/server"
	"github.com/lockstepmq/lockstep/wire"
)

// bound is a consumer that acknowledges everything, and notes it.
type bound struct {
	consumer *client.Consumer
	cancel   context.CancelFunc
	done     chan error

	mu      sync.Mutex
	rebound [][]uint32
	seen    map[uint32]int // records by partition since the last look
	log     *received
}

// received is what all consumers of a test got: values by partition in the order in which
// they were handed out.
type received struct {
	mu   sync.Mutex
	list map[uint32][]string
}

func (r *received) count() (n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, list := range r.list {
		n += len(list)
	}
	return n
}

// bind starts a consumer of the queue "jobs".
func bind(ctx context.Context, t *testing.T, conn *client.Conn, log *received, policy wire.BindingPolicy, options ...client.ConsumerOption) *bound {
	t.Helper()
	b := &bound{seen: make(map[uint32]int), log: log, done: make(chan error, 1)}
	options = append([]client.ConsumerOption{
		client.Group("workers"), client.Mode(client.Serial), client.Binding(policy), client.OnEvent(func(e client.Event) {
			if r, ok := e.(client.Rebound); ok {
				b.mu.Lock()
				b.rebound = append(b.rebound, r.Partitions)
				b.mu.Unlock()
			}
		}),
	}, options...)
	var err error
	b.consumer, err = conn.Consumer(ctx, "jobs", options...)
	require.NoError(t, err)
	run, cancel := context.WithCancel(ctx)
	b.cancel = cancel
	go func() {
		b.done <- b.consumer.Run(run, func(_ context.Context, d *client.Delivery) error {
			b.mu.Lock()
			b.seen[d.Partition]++
			b.mu.Unlock()
			log.mu.Lock()
			log.list[d.Partition] = append(log.list[d.Partition], string(d.Value))
			log.mu.Unlock()
			return nil
		})
	}()
	t.Cleanup(func() { b.close(t) })
	return b
}

// close ends the consumer in order.
func (b *bound) close(t *testing.T) {
	if b.cancel == nil {
		return
	}
	b.cancel()
	b.cancel = nil
	<-b.done
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	require.NoError(t, b.consumer.Close(ctx))
}

// look is which partitions the consumer got records of since the last look.
func (b *bound) look() (list []uint32) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for n := range b.seen {
		list = append(list, n)
	}
	clear(b.seen)
	slices.Sort(list)
	return list
}

// last is the binding that the consumer heard of last.
func (b *bound) last() []uint32 {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.rebound) == 0 {
		return nil
	}
	return b.rebound[len(b.rebound)-1]
}

// filler sends numbers to the three partitions of "jobs".
type filler struct{ next [3]int }

// fill sends the next n numbers to each of some partitions.
func (f *filler) fill(ctx context.Context, t *testing.T, conn *client.Conn, n int, partitions ...uint32) {
	t.Helper()
	for _, p := range partitions {
		producer, err := conn.Producer(ctx, "jobs", client.Partition(p))
		require.NoError(t, err)
		for range n {
			_, err := producer.Send(ctx, &client.Record{Key: fmt.Appendf(nil, "key %d", p), Value: fmt.Appendf(nil, "%d", f.next[p])})
			require.NoError(t, err)
			f.next[p]++
		}
		require.NoError(t, producer.Close(ctx))
	}
}

// total is how many records were sent.
func (f *filler) total() int { return f.next[0] + f.next[1] + f.next[2] }

// drained waits until everything was handed out, once, in the order of each partition.
func (f *filler) drained(t *testing.T, log *received) {
	t.Helper()
	require.Eventually(t, func() bool { return log.count() == f.total() }, timeout, 5*time.Millisecond)
	log.mu.Lock()
	defer log.mu.Unlock()
	for p, list := range log.list {
		for i, v := range list {
			require.Equal(t, fmt.Sprint(i), v, "partition %d", p)
		}
	}
}

func jobs(ctx context.Context, t *testing.T, conn *client.Conn, replicas uint8) {
	t.Helper()
	create(ctx, t, conn, client.Destination{Name: "jobs", Kind: wire.Queue, Settings: client.Settings{Partitions: 3, Replicas: replicas, Sync: wire.SyncOS}})
}

var all = []uint32{0, 1, 2}

// R-SIB-17: one consumer has all partitions, three have one each, and who stays takes over
// from who leaves. The order of each partition holds throughout.
func TestR_SIB_17_EveryPartitionHasAConsumer(t *testing.T) {
	ctx, conn := connect(t, lockstest.Start(t))
	jobs(ctx, t, conn, 1)
	var f filler
	log := &received{list: make(map[uint32][]string)}

	f.fill(ctx, t, conn, 20, all...)
	first := bind(ctx, t, conn, log, wire.BindingCover)
	f.drained(t, log)
	require.Equal(t, all, first.look())

	second, third := bind(ctx, t, conn, log, wire.BindingCover), bind(ctx, t, conn, log, wire.BindingCover)
	require.Eventually(t, func() bool { return len(first.last()) == 1 }, timeout, time.Millisecond)
	var each []uint32
	require.Eventually(t, func() bool { // what was being worked on when they came is finished by who had it
		f.fill(ctx, t, conn, 1, all...)
		f.drained(t, log)
		a, b, c := first.look(), second.look(), third.look()
		each = slices.Concat(a, b, c)
		return len(a) == 1 && len(b) == 1 && len(c) == 1
	}, timeout, time.Millisecond)
	slices.Sort(each)
	require.Equal(t, all, each)

	second.close(t)
	third.close(t)
	require.Eventually(t, func() bool { return len(first.last()) == 3 }, timeout, time.Millisecond)
	first.look()
	f.fill(ctx, t, conn, 5, all...)
	f.drained(t, log)
	require.Equal(t, all, first.look())
}

// R-SIB-11, 14, 16: a strictly bound consumer has one partition and keeps it, whatever lies
// in the others, and these can be seen.
func TestR_SIB_11_R_SIB_14_AStrictConsumerTakesNothingFromOthers(t *testing.T) {
	ctx, conn := connect(t, lockstest.Start(t))
	jobs(ctx, t, conn, 1)
	var f filler
	log := &received{list: make(map[uint32][]string)}
	f.fill(ctx, t, conn, 10, 1)

	only := bind(ctx, t, conn, log, wire.BindingStrict)
	f.drained(t, log)
	require.Equal(t, []uint32{1}, only.look(), "no partition is local alone, so that with the largest backlog is served")

	f.fill(ctx, t, conn, 10, 0, 2) // its own is empty: for how long this may be so, TestFigure_Intervals shows
	f.fill(ctx, t, conn, 10, 1)
	require.Eventually(t, func() bool { return log.count() == 20 }, timeout, time.Millisecond)
	require.Equal(t, []uint32{1}, only.look())
	require.Empty(t, only.last(), "its binding has not changed")

	info, err := conn.DescribeGroup(ctx, "jobs", "workers")
	require.NoError(t, err)
	require.Equal(t, "strict 1.1 of 1 consumer", info.Partitions[0].Binding)
	require.Equal(t, []uint32{0, 2}, info.Partitions[0].Uncovered)
	require.Empty(t, info.Partitions[0].Problem, "it has answered")

	others := []*bound{bind(ctx, t, conn, log, wire.BindingStrict), bind(ctx, t, conn, log, wire.BindingStrict)}
	f.drained(t, log)
	for range 2 { // who comes, and who leaves, changes nothing for it
		require.Empty(t, only.last())
		require.Equal(t, []uint32{1}, only.consumer.Partitions())
		f.fill(ctx, t, conn, 5, 1)
		f.drained(t, log)
		require.Equal(t, []uint32{1}, only.look())
		for _, b := range others {
			require.NotContains(t, b.look(), uint32(1))
			b.close(t)
		}
	}
}

// R-SIB-13: who is connected to a node that has no partition is bound where the fewest
// consumers are, and of those to the largest backlog, wherever it lies.
func TestR_SIB_13_RemoteConsumersGoWhereTheLoadIs(t *testing.T) {
	nodes := 0
	c := lockstest.StartCluster(t, 4, lockstest.Configure(func(cfg *server.Config) {
		if nodes++; nodes == 4 {
			cfg.Role = "gateway"
		}
	}))
	ctx, conn := connect(t, c.Broker(1))
	jobs(ctx, t, conn, 1)
	var f filler
	f.fill(ctx, t, conn, 10, 0)
	f.fill(ctx, t, conn, 30, 1)
	f.fill(ctx, t, conn, 20, 2)
	coordinates, err := client.Connect(ctx, c.Broker(int(leaderOf(t, conn, "jobs", 0, 0))).URL(), client.AllowRedirect(false))
	require.NoError(t, err)
	defer func() { _ = coordinates.Close() }()
	awaitThat(t, "who coordinates knows how much lies elsewhere", func() bool {
		d, err := coordinates.Destination(ctx, "jobs")
		require.NoError(t, err)
		return d.Partitions[0].NextOffset == 10 && d.Partitions[1].NextOffset == 30 && d.Partitions[2].NextOffset == 20
	})
	gateway, err := client.Connect(ctx, c.Broker(4).URL(), client.AllowRedirect(false))
	require.NoError(t, err)
	defer func() { _ = gateway.Close() }()
	var order []uint32
	for range 6 {
		consumer, err := gateway.Consumer(ctx, "jobs", client.Group("workers"), client.Binding(client.StrictlyOne))
		require.NoError(t, err)
		defer leave(t, consumer)
		require.Len(t, consumer.Partitions(), 1)
		order = append(order, consumer.Partitions()...)
	}
	require.Equal(t, []uint32{1, 2, 0, 1, 2, 0}, order, "two each, the largest backlog first")
}

// R-SIB-18: who gathers sees all partitions, beside others who do.
func TestR_SIB_18_WhoGathersSeesAllPartitions(t *testing.T) {
	ctx, conn := connect(t, lockstest.Start(t))
	jobs(ctx, t, conn, 1)
	var f filler
	log := &received{list: make(map[uint32][]string)}
	one, two := bind(ctx, t, conn, log, wire.BindingGather), bind(ctx, t, conn, log, wire.BindingGather)
	seen := [2]map[uint32]bool{{}, {}}
	require.Eventually(t, func() bool {
		f.fill(ctx, t, conn, 5, all...)
		f.drained(t, log)
		for i, b := range []*bound{one, two} {
			for _, p := range b.look() {
				seen[i][p] = true
			}
		}
		return len(seen[0]) == 3 && len(seen[1]) == 3
	}, timeout, time.Millisecond)
}

// R-SIB-12: a consumer is bound to the partition that its own node leads.
func TestR_SIB_12_TheLocalPartitionIsPreferred(t *testing.T) {
	c := lockstest.StartCluster(t, 3)
	ctx, conn := connect(t, c.Broker(1))
	jobs(ctx, t, conn, 3)
	var d client.Destination
	require.Eventually(t, func() bool {
		var err error
		d, err = conn.Destination(ctx, "jobs")
		require.NoError(t, err)
		return !slices.ContainsFunc(d.Partitions, func(p client.PartitionInfo) bool { return p.Leader == 0 })
	}, timeout, 10*time.Millisecond)
	var f filler
	log := &received{list: make(map[uint32][]string)}
	for _, p := range slices.Backward(d.Partitions) { // else the first that is free is the right one, too
		_, at := connect(t, c.Broker(int(p.Leader)))
		b := bind(ctx, t, at, log, wire.BindingStrict)
		has := b.consumer.Partitions()
		require.Len(t, has, 1)
		require.Equal(t, p.Leader, d.Partitions[has[0]].Leader, "partition %d of %v", has[0], d.Partitions)
		f.fill(ctx, t, conn, 5, has[0])
		f.drained(t, log)
		require.Equal(t, has, b.look())
	}
}

// The node of the coordinator stops: consumers go on with what they have, and the next
// coordinator spreads the partitions over them and over who comes then.
func TestANewCoordinatorGoesOnWithTheMembers(t *testing.T) {
	c := lockstest.StartCluster(t, 3)
	ctx, cancel := context.WithTimeout(context.Background(), 2*timeout)
	defer cancel()
	conn, err := client.Connect(ctx, c.URL())
	require.NoError(t, err)
	defer func() { require.NoError(t, conn.Close()) }()
	jobs(ctx, t, conn, 3)
	var f filler
	log := &received{list: make(map[uint32][]string)}
	one, two := bind(ctx, t, conn, log, wire.BindingCover), bind(ctx, t, conn, log, wire.BindingCover)
	require.Eventually(t, func() bool { return len(one.last()) == 2 || len(one.last()) == 1 }, timeout, time.Millisecond)
	f.fill(ctx, t, conn, 10, all...)
	f.drained(t, log)

	d, err := conn.Destination(ctx, "jobs")
	require.NoError(t, err)
	c.Stop(int(d.Partitions[0].Leader))
	f.fill(ctx, t, conn, 10, all...)
	f.drained(t, log)
	one.look()
	two.look()
	three := bind(ctx, t, conn, log, wire.BindingCover)
	require.Eventually(t, func() bool {
		f.fill(ctx, t, conn, 1, all...)
		f.drained(t, log)
		each := slices.Concat(one.look(), two.look(), three.look())
		slices.Sort(each)
		return slices.Equal(all, each) && len(one.last()) == 1
	}, timeout, time.Millisecond)
	for _, b := range []*bound{one, two, three} {
		b.close(t)
	}
}

// GROUP_BIND by way of a node that has no replica of the coordinator's partition: the node
// passes it on, and what the coordinator says comes back.
func TestBindingsComeThroughAnyNode(t *testing.T) {
	c := lockstest.StartCluster(t, 3)
	ctx, conn := connect(t, c.Broker(1))
	jobs(ctx, t, conn, 1)
	var f filler
	log := &received{list: make(map[uint32][]string)}
	var list []*bound
	for node := 1; node <= 3; node++ {
		gateway, err := client.Connect(ctx, c.Broker(node).URL(), client.AllowRedirect(false))
		require.NoError(t, err)
		defer func() { _ = gateway.Close() }()
		list = append(list, bind(ctx, t, gateway, log, wire.BindingCover))
	}
	require.Eventually(t, func() bool {
		f.fill(ctx, t, conn, 1, all...)
		f.drained(t, log)
		each := slices.Concat(list[0].look(), list[1].look(), list[2].look())
		slices.Sort(each)
		return slices.Equal(all, each)
	}, timeout, time.Millisecond)
	for _, b := range list {
		b.close(t)
	}
}

// R-SIB-15: the node that leads the coordinator's partition is lost, and its partition with
// it. Another partition becomes the coordinator in a higher generation: who has partitions
// keeps them, who comes gets his share, and the lost partition is adopted when it is back.
func TestR_SIB_15_ALostCoordinatorIsReplaced(t *testing.T) {
	t.Parallel() // most of it waits until the coordinator is given up
	c := lockstest.StartCluster(t, 3)
	ctx, cancel := context.WithTimeout(context.Background(), 4*timeout)
	defer cancel()
	conn, err := client.Connect(ctx, c.URL())
	require.NoError(t, err)
	defer func() { require.NoError(t, conn.Close()) }()
	jobs(ctx, t, conn, 1)
	var f filler
	log := &received{list: make(map[uint32][]string)}
	short := client.SessionTimeout(3 * time.Second) // consumers ask every 2 s whether another coordinates: all come in that time
	one, two := bind(ctx, t, conn, log, wire.BindingCover, short), bind(ctx, t, conn, log, wire.BindingCover, short)
	f.fill(ctx, t, conn, 5, all...)
	f.drained(t, log)
	var d client.Destination
	d, err = conn.Destination(ctx, "jobs")
	require.NoError(t, err)
	lost := int(d.Partitions[0].Leader)
	had := slices.Sorted(slices.Values(slices.Concat(one.last(), two.last())))
	c.Stop(lost)
	require.Eventually(t, func() bool {
		info, err := conn.DescribeGroup(ctx, "jobs", "workers")
		return err == nil && slices.ContainsFunc(info.Partitions, func(p client.GroupPartition) bool { return p.Binding == "cover 2.1 of 2 consumers" })
	}, 2*timeout, 50*time.Millisecond)
	require.Equal(t, had, slices.Sorted(slices.Values(slices.Concat(one.last(), two.last()))), "nobody has lost anything by it")
	f.fill(ctx, t, conn, 5, 1, 2)
	f.drained(t, log)

	c.Start(lost)
	require.Eventually(t, func() bool {
		d, err := conn.Destination(ctx, "jobs")
		return err == nil && d.Partitions[0].Leader != 0
	}, timeout, 10*time.Millisecond)
	// The node may serve who comes before it has heard of the metadata of now: then its
	// partition coordinates in the old generation until then. No record is worked on twice by
	// that, as drained checks, and in the end there is one coordinator.
	three := bind(ctx, t, conn, log, wire.BindingCover, short)
	require.Eventually(t, func() bool {
		f.fill(ctx, t, conn, 1, all...)
		f.drained(t, log)
		each := slices.Concat(one.look(), two.look(), three.look())
		slices.Sort(each)
		info, err := conn.DescribeGroup(ctx, "jobs", "workers")
		return err == nil && slices.Equal(all, each) && info.Partitions[0].Binding == "" &&
			slices.ContainsFunc(info.Partitions[1:], func(p client.GroupPartition) bool {
				return strings.HasPrefix(p.Binding, "cover 2.") && strings.HasSuffix(p.Binding, " of 3 consumers")
			})
	}, timeout, time.Millisecond)
	for _, b := range []*bound{one, two, three} {
		b.close(t)
	}
}

// Rules 6, 30: a consumer that is to leave a partition, and has it again before its handlers
// are done, keeps what they work on, also if it has a name: no record is handled twice.
func TestRule30_APartitionThatComesBackIsKept(t *testing.T) {
	for _, name := range []string{"", "alice"} {
		broker := lockstest.Start(t)
		ctx, conn := connect(t, broker)
		create(ctx, t, conn, client.Destination{Name: "jobs", Kind: client.Queue, Settings: client.Settings{Partitions: 2, Sync: client.SyncOS}})
		options := []client.ConsumerOption{client.Group("workers"), client.Mode(client.Serial), client.Binding(client.Cover)}
		a, err := conn.Consumer(ctx, "jobs", append(options, client.ConsumerName(name))...)
		require.NoError(t, err)
		started, release, acked := make(chan *client.Delivery, 100), make(chan struct{}), make(chan error, 100)
		run, stop := context.WithCancel(ctx)
		done := make(chan error)
		go func() {
			done <- a.Run(run, func(_ context.Context, d *client.Delivery) error {
				started <- d
				<-release // does not look at its context
				acked <- d.AckSync(ctx)
				return nil
			}, client.Workers(8))
		}()
		send := func(round string) (lasts []*client.Delivery) {
			for p := range uint32(2) {
				producer, err := conn.Producer(ctx, "jobs", client.Partition(p))
				require.NoError(t, err)
				_, err = producer.Send(ctx, &client.Record{Key: fmt.Appendf(nil, "%s %d", round, p), Value: []byte("v")})
				require.NoError(t, err)
				require.NoError(t, producer.Close(ctx))
				lasts = append(lasts, <-started)
			}
			return lasts
		}
		send("first")
		other, err := connectTo(t, broker.URL()).Consumer(ctx, "jobs", options...)
		require.NoError(t, err)
		require.Eventually(t, func() bool { return len(a.Partitions()) == 1 }, timeout, time.Millisecond)
		require.NoError(t, other.Close(ctx))
		require.Eventually(t, func() bool { return len(a.Partitions()) == 2 }, timeout, time.Millisecond)
		for _, d := range send("second") {
			require.Equal(t, 1, d.Deliveries)
			require.Contains(t, string(d.Key), "second", "the first two are at work")
		}
		close(release)
		for range 4 {
			require.NoError(t, <-acked)
		}
		stop()
		require.ErrorIs(t, <-done, context.Canceled)
		require.NoError(t, a.Close(ctx))
	}
}

// A consumer takes over the name of another one, which ends and says why.
func TestANameIsForOneConsumer(t *testing.T) {
	broker := lockstest.Start(t)
	ctx, conn := connect(t, broker)
	create(ctx, t, conn, client.Destination{Name: "jobs", Kind: client.Queue, Settings: client.Settings{Partitions: 2, Sync: client.SyncOS}})
	join := func() *client.Consumer {
		c, err := connectTo(t, broker.URL()).Consumer(ctx, "jobs", client.Group("workers"), client.Mode(client.Serial), client.ConsumerName("bob"))
		require.NoError(t, err)
		require.Eventually(t, func() bool { return len(c.Partitions()) == 2 }, timeout, time.Millisecond)
		return c
	}
	first := join()
	second := join()
	_, err := first.Next(ctx)
	require.ErrorIs(t, err, client.ErrFenced)
	require.ErrorContains(t, err, `another consumer has the name "bob" in group "workers"`)
	producer, err := conn.Producer(ctx, "jobs")
	require.NoError(t, err)
	_, err = producer.Send(ctx, &client.Record{Value: []byte("v")})
	require.NoError(t, err)
	d, err := second.Next(ctx)
	require.NoError(t, err)
	require.NoError(t, d.AckSync(ctx))
	require.NoError(t, second.Close(ctx))
}
