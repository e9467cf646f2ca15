package lockstest_test

import (
	"context"
	"errors"
	"fmt"
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

// consumeAs lets members, each with a connection of its own, handle want records and
// watches them. It returns when all are acknowledged, or something is broken.
func consumeAs(t *testing.T, url string, members, want int, options ...client.ConsumerOption) *publishers {
	t.Helper()
	ctx, stop := context.WithTimeout(context.Background(), 2*timeout)
	defer stop()
	p := &publishers{
		t: t, ctx: ctx, stop: stop, want: want, checkers: map[uint32]*promise.Checker{},
		settled: map[string][]string{}, holder: map[string]string{}, working: map[string]int{},
	}
	options = append(options, client.Group("by-publisher"), client.Binding(client.Gather), client.Prefetch(2))
	consumers := make([]*client.Consumer, members)
	for m := range consumers {
		conn, err := client.Connect(ctx, url)
		require.NoError(t, err)
		defer conn.Close()
		consumers[m], err = conn.Consumer(ctx, "readings", options...)
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

// publisherRun has 20 publishers send to a queue of partitions partitions, while six
// members are at work.
func publisherRun(t *testing.T, partitions uint32, options ...client.ConsumerOption) (p *publishers, names []string, each int) {
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
	return consumeAs(t, b.URL(), 6, each*len(names), options...), names, each
}

// R-BRK-2: a publisher's record starts when the one before it is acknowledged, across
// all members of the group.
func TestR_BRK_2_APublishersRecordsAreHandledInOrderAcrossMembers(t *testing.T) {
	for _, partitions := range []uint32{1, 3} {
		t.Run(fmt.Sprintf("%d partitions", partitions), func(t *testing.T) {
			p, names, each := publisherRun(t, partitions, client.Mode(client.Serial), client.Scope(client.ByPublisher))
			p.sound(names, each)
		})
	}
}

// The same check sees a group that does not keep the order.
func TestR_BRK_2_Catches_AGroupWithoutOrder(t *testing.T) {
	p, _, _ := publisherRun(t, 1, client.Mode(client.Shared))
	require.Error(t, p.broken)
	require.NotZero(t, p.overlaps)
}

// R-BRK-3: a member keeps a publisher while it has a record of it that is not
// acknowledged, and no longer.
func TestR_BRK_3_AMemberKeepsAPublisherOnlyWhileItHasARecordOfIt(t *testing.T) {
	p, names, each := publisherRun(t, 1, client.Mode(client.Serial), client.Scope(client.ByPublisher))
	p.sound(names, each)
	require.NotZero(t, p.changes, "publishers go to other members")
	require.Zero(t, p.overlaps, "never with a record that is not acknowledged")
	t.Logf("%d changes of holders over %d records", p.changes, p.done)
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
		require.Equal(t, receipts[0].Partition, r.Partition, "a publisher is in one partition")
		require.EqualValues(t, i, r.Offset)
	}
	reader, err := conn.Reader(ctx, "readings", client.FromEarliest(), client.StopAtEnd())
	require.NoError(t, err)
	for record, err := range reader.Records(ctx) {
		require.NoError(t, err)
		require.Equal(t, []client.Header{{Key: wire.PublisherHeader, Value: []byte("sensor-7")}}, record.Headers)
	}
	require.NoError(t, reader.Close())
	p := consumeAs(t, c.Broker(3).URL(), 3, turns*burst, client.Mode(client.Serial), client.Scope(client.ByPublisher))
	p.sound([]string{"sensor-7"}, turns*burst)
}
