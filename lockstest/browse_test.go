package lockstest_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/client"
	"github.com/lockstepmq/lockstep/lockstest"
	"github.com/lockstepmq/lockstep/wire"
)

// looked is what Browse shows, a line a record.
func looked(ctx context.Context, t *testing.T, conn *client.Conn, destination string, o client.BrowseOptions) (lines []string) {
	t.Helper()
	for r, err := range conn.Browse(ctx, destination, o) {
		require.NoError(t, err)
		line := fmt.Sprintf("%d@%d %s", r.Partition, r.Offset, r.Value)
		if r.Group != "" {
			line += fmt.Sprintf(" %s %s %d/%d", r.Group, r.State, r.Deliveries, r.Attempts)
		}
		lines = append(lines, line)
	}
	return lines
}

// Looking takes nothing away: of a queue it shows what its group is not done with, and how
// that stands, of a topic a range.
func TestBrowsingLeavesRecordsWhereTheyAre(t *testing.T) {
	for _, nodes := range []int{1, 3} {
		t.Run(fmt.Sprint(nodes, " brokers"), func(t *testing.T) {
			c := lockstest.StartCluster(t, nodes)
			ctx := limited(t)
			conn := to(ctx, t, c.Broker(nodes))
			create(ctx, t, conn, client.Destination{Name: "orders", Kind: client.Queue, Settings: client.Settings{Partitions: 1, Replicas: uint8(nodes)}})
			create(ctx, t, conn, client.Destination{Name: "events", Kind: client.Topic, Settings: client.Settings{Partitions: 2, Replicas: uint8(nodes)}})
			for i := range 8 {
				_, err := conn.Send(ctx, "orders", &client.Record{Key: fmt.Appendf(nil, "k%d", i%6), Value: fmt.Append(nil, i)})
				require.NoError(t, err)
			}
			require.Len(t, looked(ctx, t, conn, "orders", client.BrowseOptions{}), 8, "without a group everything is there")
			consumer, err := conn.Consumer(ctx, "orders", client.Group("billing"), client.Mode(client.Serial), client.Backoff(time.Hour, time.Hour), client.Prefetch(4, 0), client.AckWait(time.Hour))
			require.NoError(t, err)
			var held []*client.Delivery
			for len(held) < 4 {
				some, err := consumer.Fetch(ctx, 4-len(held), time.Minute)
				require.NoError(t, err)
				held = append(held, some...)
			}
			require.NoError(t, held[1].AckSync(ctx))
			require.NoError(t, held[2].Nack())
			expect := []string{"0@0 0 billing leased 1/0", "0@2 2 billing returned 1/1", "0@3 3 billing leased 1/0"}
			require.Eventually(t, func() bool {
				lines := looked(ctx, t, conn, "orders", client.BrowseOptions{Group: "billing", Limit: 3})
				return len(lines) == 3 && fmt.Sprint(lines) == fmt.Sprint(expect)
			}, 30*time.Second, time.Millisecond, "%q", looked(ctx, t, conn, "orders", client.BrowseOptions{Limit: 3}))
			require.Len(t, looked(ctx, t, conn, "orders", client.BrowseOptions{}), 7, "all but the one that is done, of the only group")
			rest := looked(ctx, t, conn, "orders", client.BrowseOptions{From: 4})
			require.Len(t, rest, 4)
			require.Equal(t, rest[:1], looked(ctx, t, conn, "orders", client.BrowseOptions{From: 4, Limit: 1}))
			require.Empty(t, looked(ctx, t, conn, "orders", client.BrowseOptions{From: 100}))
			require.NoError(t, held[0].Ack(), "the leases are as they were")
			require.NoError(t, held[3].AckSync(ctx))

			_, err = conn.CreateGroup(ctx, "orders", "audit", client.GroupIntent{})
			require.NoError(t, err)
			var failed error
			for _, err := range conn.Browse(ctx, "orders", client.BrowseOptions{}) {
				failed = errors.Join(failed, err)
			}
			require.ErrorContains(t, failed, "several groups, each with its own place: name one of audit, billing")

			for i := range 6 {
				p, err := conn.Producer(ctx, "events", client.Partition(uint32(i%2)))
				require.NoError(t, err)
				_, err = p.Send(ctx, &client.Record{Value: fmt.Append(nil, i)})
				require.NoError(t, err)
			}
			require.Equal(t, []string{"0@0 0", "0@1 2", "0@2 4", "1@0 1", "1@1 3", "1@2 5"}, looked(ctx, t, conn, "events", client.BrowseOptions{}))
			require.Equal(t, []string{"0@1 2", "0@2 4", "1@1 3"}, looked(ctx, t, conn, "events", client.BrowseOptions{From: 1, Limit: 3}))
			require.Equal(t, []string{"1@2 5"}, looked(ctx, t, conn, "events", client.BrowseOptions{From: 2, Partitions: []uint32{1}}))
			for _, err := range conn.Browse(ctx, "events", client.BrowseOptions{Partitions: []uint32{7}}) {
				require.ErrorIs(t, err, client.ErrUnknownPartition)
			}
			for _, err := range conn.Browse(ctx, "events", client.BrowseOptions{Group: "none"}) {
				require.ErrorIs(t, err, wire.CodeUnknownGroup)
			}
		})
	}
}

// What is finished while somebody looks is left out, and no more than that.
func TestBrowsingGoesOnBehindWhatGoesAway(t *testing.T) {
	ctx := limited(t)
	conn := to(ctx, t, lockstest.Start(t))
	create(ctx, t, conn, client.Destination{Name: "orders", Kind: client.Queue, Settings: client.Settings{Partitions: 1}})
	_, err := conn.CreateGroup(ctx, "orders", "g", client.GroupIntent{})
	require.NoError(t, err)
	p, err := conn.Producer(ctx, "orders")
	require.NoError(t, err)
	for range 4210 {
		_, err := p.SendAsync(ctx, &client.Record{Value: []byte("v")})
		require.NoError(t, err)
	}
	require.NoError(t, p.Close(ctx))
	done := func(spans ...wire.OffsetSpan) {
		require.NoError(t, conn.GroupOrder(ctx, wire.OrderSettle, "orders", 0, "g", wire.SettleRequest{Spans: spans}, nil))
	}
	done(wire.OffsetSpan{From: 2, To: 4200}) // more than is read over
	var seen []uint64
	for r, err := range conn.Browse(ctx, "orders", client.BrowseOptions{}) {
		require.NoError(t, err)
		if seen = append(seen, r.Offset); len(seen) == 1 {
			done(wire.OffsetSpan{From: 0, To: 2}, wire.OffsetSpan{From: 4200, To: 4205})
			require.Eventually(t, func() bool {
				d, err := conn.Destination(ctx, "orders")
				return err == nil && d.Partitions[0].StartOffset == 4205
			}, 30*time.Second, time.Millisecond)
		}
	}
	require.GreaterOrEqual(t, len(seen), 5)
	require.Equal(t, []uint64{4205, 4206, 4207, 4208, 4209}, seen[len(seen)-5:])
}
