package lockstest_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/client"
	"github.com/lockstepmq/lockstep/lockstest"
	"github.com/lockstepmq/lockstep/wire"
)

// liveGroup is a consumer of a group whose settings change, and what it says each time it
// has attached.
func liveGroup(t *testing.T, first client.GroupSettings) (ctx context.Context, conn *client.Conn, c *client.Consumer, attached chan struct{}) {
	ctx, conn = connect(t, lockstest.Start(t))
	create(ctx, t, conn, client.Destination{Name: "orders", Kind: wire.Queue, Settings: client.Settings{Partitions: 1, Sync: wire.SyncOS}})
	_, err := conn.CreateGroup(ctx, "orders", "g", client.GroupIntent{Settings: first})
	require.NoError(t, err)
	attached = make(chan struct{}, 10)
	c, err = conn.Consumer(ctx, "orders", client.Group("g"), client.Prefetch(50), client.OnEvent(func(e client.Event) {
		if _, ok := e.(client.Attached); ok {
			attached <- struct{}{}
		}
	}))
	require.NoError(t, err)
	<-attached
	return ctx, conn, c, attached
}

// A group that is serial from now on is that for consumers which came when it was shared:
// they hear of it, and one record of a key is at work at a time.
func TestAModeThatChangesReachesConsumersThatAreThere(t *testing.T) {
	ctx, conn, c, attached := liveGroup(t, client.GroupSettings{Mode: client.Shared})
	_, err := conn.AlterGroup(ctx, "orders", "g", client.GroupIntent{Settings: client.GroupSettings{Mode: client.Serial, Window: 8}})
	require.NoError(t, err)
	<-attached
	var mu sync.Mutex
	var order []uint64
	busy, most := 0, 0
	run, stop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() {
		ended <- c.Run(run, func(_ context.Context, d *client.Delivery) error {
			mu.Lock()
			busy++
			most = max(most, busy)
			order = append(order, d.Offset)
			if len(order) == 30 {
				stop()
			}
			mu.Unlock()
			time.Sleep(2 * time.Millisecond) // a handler
			mu.Lock()
			busy--
			mu.Unlock()
			return nil
		}, client.Workers(4))
	}()
	p, err := conn.Producer(ctx, "orders")
	require.NoError(t, err)
	want := make([]uint64, 30)
	for i := range want {
		want[i] = uint64(i)
		_, err = p.SendAsync(ctx, &client.Record{Key: []byte("k"), Value: []byte("v")})
		require.NoError(t, err)
	}
	require.ErrorIs(t, <-ended, context.Canceled)
	require.Equal(t, 1, most, "records of one key that were sent behind the change")
	require.Equal(t, want, order)
}

// A lower session timeout counts when nobody goes by the higher one any more: what is held
// under it is asked back first, and consumers attach anew.
func TestALowerSessionTimeoutWaitsForWhatIsHeldUnderTheHigher(t *testing.T) {
	ctx, conn, c, attached := liveGroup(t, client.GroupSettings{Mode: client.Serial, SessionMs: 30_000})
	p, err := conn.Producer(ctx, "orders")
	require.NoError(t, err)
	_, err = p.Send(ctx, &client.Record{Key: []byte("k"), Value: []byte("v")})
	require.NoError(t, err)
	held, err := c.Next(ctx)
	require.NoError(t, err)
	_, err = conn.AlterGroup(ctx, "orders", "g", client.GroupIntent{Settings: client.GroupSettings{Mode: client.Serial, SessionMs: 1_000}})
	require.NoError(t, err)
	<-held.Context().Done() // it is asked back
	require.Empty(t, attached)
	require.NoError(t, held.AckSync(ctx), "there is time to end it")
	<-attached
	require.NoError(t, c.Close(ctx))
}

// A consumer that has heard of a lower session timeout goes by it at once: what the higher
// one had confirmed does not count on. It has given up a record when another gets it.
func TestALowerSessionTimeoutCountsForWhoHasHeardOfIt(t *testing.T) {
	b := lockstest.Start(t)
	ctx, conn := connect(t, b)
	create(ctx, t, conn, client.Destination{Name: "orders", Kind: wire.Queue, Settings: client.Settings{Partitions: 1, Sync: wire.SyncOS}})
	_, err := conn.CreateGroup(ctx, "orders", "g", client.GroupIntent{Settings: client.GroupSettings{Mode: client.Serial, SessionMs: 600_000}})
	require.NoError(t, err)
	k := newLink(t, b.Addr())
	far, err := client.Connect(ctx, "lockstep://"+k.Addr().String(), client.AllowRedirect(false))
	require.NoError(t, err)
	defer far.Close()
	attached := make(chan struct{}, 10)
	first, err := far.Consumer(ctx, "orders", client.Group("g"), client.OnEvent(func(e client.Event) {
		if _, ok := e.(client.Attached); ok {
			attached <- struct{}{}
		}
	}))
	require.NoError(t, err)
	<-attached
	_, err = conn.AlterGroup(ctx, "orders", "g", client.GroupIntent{Settings: client.GroupSettings{Mode: client.Serial, SessionMs: 1_000}})
	require.NoError(t, err)
	<-attached
	_, err = conn.Send(ctx, "orders", &client.Record{Key: []byte("k"), Value: []byte("v")})
	require.NoError(t, err)
	held, err := first.Next(ctx)
	require.NoError(t, err)
	k.set(true)
	second, err := conn.Consumer(ctx, "orders", client.Group("g"))
	require.NoError(t, err)
	again, err := second.Next(ctx)
	require.NoError(t, err)
	require.Equal(t, held.Offset, again.Offset)
	require.Error(t, held.Ack(), "two consumers hold one record")
	require.Error(t, held.Context().Err())
	require.NoError(t, again.AckSync(ctx))
	k.set(false)
	require.NoError(t, second.Close(ctx))
	require.NoError(t, first.Close(ctx))
}

// A higher ack wait counts for a handler that is at work: whoever raises it does so because
// that one needs longer.
func TestAHigherAckWaitCountsForWhatIsAtWork(t *testing.T) {
	b := lockstest.Start(t)
	ctx, conn := connect(t, b)
	for wait := uint32(500); ; wait *= 2 { // until the machine is fast enough for it
		queue := fmt.Sprintf("orders%d", wait)
		create(ctx, t, conn, client.Destination{Name: queue, Kind: wire.Queue, Settings: client.Settings{Partitions: 1, Sync: wire.SyncOS}})
		_, err := conn.Send(ctx, queue, &client.Record{Key: []byte("k"), Value: []byte("v")})
		require.NoError(t, err)
		attached := make(chan struct{}, 10)
		begin := func(group string) (*client.Consumer, *client.Delivery) {
			_, err := conn.CreateGroup(ctx, queue, group, client.GroupIntent{Settings: client.GroupSettings{Mode: client.Serial, AckWaitMs: wait}})
			require.NoError(t, err)
			c, err := conn.Consumer(ctx, queue, client.Group(group), client.OnEvent(func(e client.Event) {
				if _, ok := e.(client.Attached); ok && group == "g" {
					attached <- struct{}{}
				}
			}))
			require.NoError(t, err)
			d, err := c.Next(ctx)
			require.NoError(t, err)
			return c, d
		}
		c, held := begin("g")
		<-attached
		_, err = conn.AlterGroup(ctx, queue, "g", client.GroupIntent{Settings: client.GroupSettings{Mode: client.Serial, AckWaitMs: 3_600_000}})
		require.NoError(t, err)
		<-attached
		late := held.Context().Err() != nil
		other, lost := begin("other") // begun later, under the ack wait that the first one had
		<-lost.Context().Done()
		require.NoError(t, lost.Release())
		if !late {
			require.NoError(t, held.Context().Err())
			require.NoError(t, held.AckSync(ctx))
		}
		require.NoError(t, c.Close(ctx))
		require.NoError(t, other.Close(ctx))
		if !late {
			return
		}
	}
}
