package lockstest_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/client"
	"github.com/lockstepmq/lockstep/lockstest"
	"github.com/lockstepmq/lockstep/promise"
	"github.com/lockstepmq/lockstep/wire"
)

// publishers is a run of members of a group by publisher, and what is known of it.
type publishers struct {
	t    *testing.T
	ctx  context.Context
	stop context.CancelFunc
	want int

	mu       sync.Mutex
	checkers map[uint32]*promise.Checker // by partition
	settled  map[string][]string         // values of a publisher in the order in which they were handled
	holder   map[string]string           // who had the publisher's record that was started last
	changes  int                         // of holders
	working  map[string]int              // records of a publisher that were started, without an ack on its way
	overlaps int                         // starts while another member had one of them
	done     int
	broken   error
}

// consumeAs lets members of the group by-publisher, each with a connection of its own, handle
// want records and watches them. It returns when all are acknowledged, or something is broken.
func consumeAs(t *testing.T, url string, members, want int) *publishers {
	t.Helper()
	ctx, stop := context.WithTimeout(context.Background(), 2*timeout)
	defer stop()
	p := &publishers{
		t: t, ctx: ctx, stop: stop, want: want, checkers: map[uint32]*promise.Checker{},
		settled: map[string][]string{}, holder: map[string]string{}, working: map[string]int{},
	}
	consumers := make([]*client.Consumer, members)
	for m := range consumers {
		conn, err := client.Connect(ctx, url)
		require.NoError(t, err)
		defer conn.Close()
		consumers[m], err = conn.Consumer(ctx, "readings", client.Group("by-publisher"), client.Prefetch(4))
		require.NoError(t, err)
		defer consumers[m].Close(context.WithoutCancel(ctx))
	}
	var running sync.WaitGroup
	for m, consumer := range consumers {
		running.Go(func() { p.handle(fmt.Sprintf("member %d", m), consumer) })
	}
	running.Wait()
	return p
}

func (p *publishers) handle(member string, consumer *client.Consumer) {
	for {
		d, err := consumer.Next(p.ctx)
		if p.ctx.Err() != nil {
			return
		}
		if err != nil {
			p.fail(err)
			return
		}
		name, value, _ := strings.Cut(string(d.Value), " ")
		e := promise.Event{
			Session: member, Scope: name, Record: d.Offset, Epoch: d.Epoch(), Redelivered: d.Redelivered,
		}
		p.observe(d.Partition, e, promise.Delivered, promise.Started)
		time.Sleep(100 * time.Microsecond) // the handler's work, for others to get in between
		p.observe(d.Partition, e, promise.Finished, promise.Acked)
		p.mu.Lock()
		p.working[name]--
		p.settled[name] = append(p.settled[name], value)
		p.mu.Unlock()
		e.Answer = promise.OK
		if err := d.AckSync(p.ctx); err != nil {
			e.Answer = promise.Other
			if errors.Is(err, client.ErrFenced) {
				e.Answer = promise.Stale
			}
		}
		p.observe(d.Partition, e, promise.Answered)
		p.mu.Lock()
		p.done++
		if p.done == p.want {
			p.stop()
		}
		p.mu.Unlock()
	}
}

// observe tells what happened to the checker of the partition.
func (p *publishers) observe(partition uint32, e promise.Event, kinds ...promise.Kind) {
	p.mu.Lock()
	defer p.mu.Unlock()
	c := p.checkers[partition]
	if c == nil {
		c = promise.New(promise.Options{Steady: true, Flags: true})
		p.checkers[partition] = c
	}
	for _, e.Kind = range kinds {
		if e.Kind == promise.Started {
			if before, known := p.holder[e.Scope]; known && before != e.Session {
				p.changes++
				if p.working[e.Scope] > 0 {
					p.overlaps++
				}
			}
			p.holder[e.Scope] = e.Session
			p.working[e.Scope]++
		}
		if err := c.Observe(e); err != nil && p.broken == nil {
			p.broken = err
			p.stop()
		}
	}
}

func (p *publishers) fail(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.broken == nil {
		p.broken = err
		p.stop()
	}
}

// sound requires that nothing is broken and that every publisher's records are done in
// their order.
func (p *publishers) sound(names []string, each int) {
	p.t.Helper()
	require.NoError(p.t, p.broken)
	require.Equal(p.t, p.want, p.done, "all records are acknowledged in time")
	for _, name := range names {
		require.Len(p.t, p.settled[name], each)
		for i, value := range p.settled[name] {
			require.Equal(p.t, strconv.Itoa(i), value, "record %d of publisher %s", i, name)
		}
	}
}

// publish sends numbers from, from+1, … to-1 as a publisher. The value names it.
func publish(ctx context.Context, conn *client.Conn, name string, from, to int) (receipts []client.Receipt, err error) {
	producer, err := conn.Producer(ctx, "readings", client.Publisher(name))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, producer.Close(ctx)) }()
	var tickets []*client.Ticket
	for i := from; i < to; i++ {
		ticket, err := producer.SendAsync(ctx, &client.Record{Value: fmt.Appendf(nil, "%s %d", name, i)})
		if err != nil {
			return nil, err
		}
		tickets = append(tickets, ticket)
	}
	for _, ticket := range tickets {
		receipt, err := ticket.Wait(ctx)
		if err != nil {
			return nil, err
		}
		receipts = append(receipts, receipt)
	}
	return receipts, nil
}

// groupByPublisher makes the group by-publisher; what its members have, they have of all partitions.
func groupByPublisher(t *testing.T, conn *client.Conn, settings client.GroupSettings) {
	t.Helper()
	settings.Binding = client.Gather
	_, err := conn.CreateGroup(t.Context(), "readings", "by-publisher", client.GroupIntent{Settings: settings, Start: client.GroupStart{To: "earliest"}})
	require.NoError(t, err)
}

// publisherRun has 20 publishers send to a queue of partitions partitions, while six
// members are at work.
func publisherRun(t *testing.T, partitions uint32, settings client.GroupSettings) (p *publishers, names []string, each int) {
	t.Helper()
	b := lockstest.Start(t)
	ctx, conn := connect(t, b)
	ctx, cancel := context.WithCancel(ctx)
	var publishing sync.WaitGroup
	t.Cleanup(func() {
		cancel()
		publishing.Wait()
	})
	create(ctx, t, conn, client.Destination{Name: "readings", Kind: wire.Queue, Settings: client.Settings{Partitions: partitions, Sync: client.SyncOS}})
	groupByPublisher(t, conn, settings)
	each = 50
	for i := range 20 {
		names = append(names, fmt.Sprintf("sensor-%d", i))
	}
	for _, name := range names {
		publishing.Go(func() {
			for from := 0; from < each; from += 10 { // in bursts, with other publishers between them
				if _, err := publish(ctx, conn, name, from, from+10); err != nil {
					if ctx.Err() == nil {
						t.Errorf("publisher %s: %v", name, err)
					}
					return
				}
			}
		})
	}
	return consumeAs(t, b.URL(), 6, each*len(names)), names, each
}

// triggers are groups whose members have one record of a publisher at a time, and such as have
// more of them, sent ahead.
var triggers = map[string]client.GroupSettings{
	"one record": {Mode: client.Serial, Scope: client.ByPublisher},
	"sent ahead": {Mode: client.Serial, Scope: client.ByPublisher, Window: 4},
}

// R-BRK-2: a publisher's record starts when the one before it is acknowledged, across
// all members of the group.
func TestR_BRK_2_APublishersRecordsAreHandledInOrderAcrossMembers(t *testing.T) {
	for _, partitions := range []uint32{1, 3} {
		for name, settings := range triggers {
			t.Run(fmt.Sprintf("%d partitions, %s", partitions, name), func(t *testing.T) {
				p, names, each := publisherRun(t, partitions, settings)
				p.sound(names, each)
			})
		}
	}
}

// The same check sees a group that does not keep the order.
func TestR_BRK_2_Catches_AGroupWithoutOrder(t *testing.T) {
	p, _, _ := publisherRun(t, 1, client.GroupSettings{Mode: client.Shared})
	require.Error(t, p.broken)
	require.NotZero(t, p.overlaps)
}

// R-BRK-3: a member keeps a publisher while it has a record of it that is not
// acknowledged, and no longer.
func TestR_BRK_3_AMemberKeepsAPublisherOnlyWhileItHasARecordOfIt(t *testing.T) {
	for name, settings := range triggers {
		t.Run(name, func(t *testing.T) {
			p, names, each := publisherRun(t, 1, settings)
			p.sound(names, each)
			require.NotZero(t, p.changes, "publishers go to other members")
			require.Zero(t, p.overlaps, "never with a record that is not acknowledged")
			t.Logf("%d changes of holders over %d records", p.changes, p.done)
		})
	}
}

// R-BRK-8: a publisher is a name. It goes on with another connection, on another node,
// and with two producers at once, and its order holds.
func TestR_BRK_8_APublisherGoesOnOverAnotherNode(t *testing.T) {
	c := lockstest.StartCluster(t, 3)
	ctx, conn := connect(t, c.Broker(1))
	create(ctx, t, conn, client.Destination{Name: "readings", Kind: wire.Queue, Settings: client.Settings{Partitions: 3, Replicas: 3, Sync: client.SyncOS}})
	const turns, burst = 6, 20
	var receipts []client.Receipt
	for turn := range turns {
		conn, err := client.Connect(ctx, c.Broker(1+turn%3).URL(), client.AllowRedirect(turn%2 == 0))
		require.NoError(t, err)
		stored, err := publish(ctx, conn, "sensor-7", turn*burst, (turn+1)*burst)
		require.NoError(t, err)
		receipts = append(receipts, stored...)
		require.NoError(t, conn.Close())
	}
	for i, r := range receipts {
		require.EqualValues(t, i, r.Offset)
	}
	const both = turns * burst // from here on two producers share the name, each by way of a node of its own
	var publishing sync.WaitGroup
	stored := make([][]client.Receipt, 2)
	for half := range stored {
		conn := connectTo(t, c.Broker(1+half).URL())
		publishing.Go(func() {
			from := both + half*burst
			var err error
			if stored[half], err = publish(ctx, conn, "sensor-7", from, from+burst); err != nil {
				t.Errorf("producer %d: %v", half, err)
			}
		})
	}
	publishing.Wait()
	for _, r := range slices.Concat(receipts, stored[0], stored[1]) {
		require.Equal(t, receipts[0].Partition, r.Partition, "a publisher is in one partition")
	}
	reader, err := conn.Reader(ctx, "readings", client.FromEarliest(), client.StopAtEnd())
	require.NoError(t, err)
	for record, err := range reader.Records(ctx) {
		require.NoError(t, err)
		require.Equal(t, []client.Header{{Key: wire.PublisherHeader, Value: []byte("sensor-7")}}, record.Headers)
	}
	require.NoError(t, reader.Close())
	groupByPublisher(t, conn, triggers["sent ahead"])
	p := consumeAs(t, c.Broker(3).URL(), 3, both+2*burst)
	require.NoError(t, p.broken)
	require.Zero(t, p.overlaps, "one record of both at a time")
	require.Equal(t, p.want, p.done)
	var order [3][]int // of the first, and of each of the two
	for _, value := range p.settled["sensor-7"] {
		i, err := strconv.Atoi(value)
		require.NoError(t, err)
		from := max(0, (i-both)/burst+1)
		if i < both {
			from = 0
			require.Empty(t, slices.Concat(order[1], order[2]), "what came later is handled later")
		}
		order[from] = append(order[from], i)
	}
	for i, list := range order {
		require.True(t, slices.IsSorted(list), "%d: %v", i, list)
	}
	require.Len(t, order[0], both)
}
