package lockstest_test

import (
	"context"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/client"
	"github.com/lockstepmq/lockstep/lockstest"
	"github.com/lockstepmq/lockstep/wire"
)

// cutLine makes connections. When it is armed, the next thing that is received by one of
// them is lost with the connection, and no other is made until it is mended.
type cutLine struct{ armed, off atomic.Bool }

func (l *cutLine) dial(ctx context.Context, address string) (net.Conn, error) {
	if l.off.Load() {
		return nil, net.ErrClosed
	}
	var dialer net.Dialer
	c, err := dialer.DialContext(ctx, "tcp", address)
	return &cutConn{c, l}, err
}

type cutConn struct {
	net.Conn
	line *cutLine
}

func (c *cutConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if n > 0 && c.line.armed.CompareAndSwap(true, false) {
		c.line.off.Store(true)
		c.Conn.Close()
		return 0, net.ErrClosed
	}
	return n, err
}

// An order whose answer is lost is repeated, and carried out once: a skip passes over one
// record, a seek moves the group once, and both are told what was done the first time.
func TestAnOrderWhoseAnswerIsLostIsCarriedOutOnce(t *testing.T) {
	key := []byte("k")
	var skipped client.ScopeResponse
	var sought client.SeekResponse
	for _, tt := range []struct {
		name        string
		op          wire.GroupOrderOp
		ask, answer any
		floor       uint64
		check       func(t *testing.T)
	}{
		{"skip", wire.OrderSkip, &client.ScopeRequest{Key: &key}, &skipped, 1, func(t *testing.T) {
			require.EqualValues(t, 0, skipped.Offset)
		}},
		{"seek to latest", wire.OrderSeek, &client.SeekRequest{To: "latest"}, &sought, 3, func(t *testing.T) {
			require.Equal(t, client.SeekResponse{From: 0, To: 3, Records: 3}, sought)
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			broker := lockstest.Start(t)
			ctx, conn := connect(t, broker)
			create(ctx, t, conn, client.Destination{Name: "orders", Kind: wire.Queue, Settings: client.Settings{Partitions: 1, Sync: wire.SyncOS}})
			_, err := conn.CreateGroup(ctx, "orders", "billing", client.GroupIntent{Settings: client.GroupSettings{Mode: client.Serial}})
			require.NoError(t, err)
			p, err := conn.Producer(ctx, "orders")
			require.NoError(t, err)
			send := func(value string) {
				_, err := p.Send(ctx, &client.Record{Key: key, Value: []byte(value)})
				require.NoError(t, err)
			}
			send("a")
			send("b")
			send("c")
			// The order has to wait until the holder of "a" lets go.
			holder, err := conn.Consumer(ctx, "orders", client.Group("billing"), client.Prefetch(1))
			require.NoError(t, err)
			d, err := holder.Next(ctx)
			require.NoError(t, err)
			require.Equal(t, "a", string(d.Value))

			line := &cutLine{}
			operator, err := client.Connect(ctx, broker.URL(), client.WithDialer(line.dial))
			require.NoError(t, err)
			defer operator.Close()
			done := make(chan error, 1)
			go func() { done <- operator.GroupOrder(ctx, tt.op, "orders", 0, "billing", tt.ask, tt.answer) }()
			<-d.Context().Done() // the holder is asked for it
			line.armed.Store(true)
			require.NoError(t, d.Release())
			require.NoError(t, holder.Close(ctx))
			floor := func() uint64 {
				info, err := conn.DescribeGroup(ctx, "orders", "billing")
				require.NoError(t, err)
				return info.Partitions[0].Floor
			}
			require.Eventually(t, func() bool { return floor() == tt.floor && line.off.Load() }, 30*time.Second, 5*time.Millisecond, "it is carried out, and the answer lost")
			send("d")
			line.off.Store(false)
			require.NoError(t, <-done)
			tt.check(t)
			require.Equal(t, tt.floor, floor(), "the repetition has changed nothing")
		})
	}
}

// A skip that names the record it means skips no other one, and changes nothing when it is
// asked for again.
func TestASkipNamesTheRecordThatItMeans(t *testing.T) {
	ctx, conn := connect(t, lockstest.Start(t))
	create(ctx, t, conn, client.Destination{Name: "orders", Kind: wire.Queue, Settings: client.Settings{Partitions: 1, Sync: wire.SyncOS}})
	_, err := conn.CreateGroup(ctx, "orders", "billing", client.GroupIntent{Settings: client.GroupSettings{Mode: client.Serial}})
	require.NoError(t, err)
	p, err := conn.Producer(ctx, "orders")
	require.NoError(t, err)
	key, head, behind := []byte("k"), uint64(0), uint64(1)
	for range 3 {
		_, err := p.Send(ctx, &client.Record{Key: key, Value: []byte("v")})
		require.NoError(t, err)
	}
	skip := func(head *uint64) (answer client.ScopeResponse, err error) {
		return answer, conn.GroupOrder(ctx, wire.OrderSkip, "orders", 0, "billing", &client.ScopeRequest{Key: &key, Head: head}, &answer)
	}
	_, err = skip(&behind)
	require.ErrorIs(t, err, wire.CodeRefused)
	require.ErrorContains(t, err, "the record to be skipped is the one at offset 0, not 1")
	for range 2 {
		answer, err := skip(&head)
		require.NoError(t, err)
		require.EqualValues(t, 0, answer.Offset)
		info, err := conn.DescribeGroup(ctx, "orders", "billing")
		require.NoError(t, err)
		require.EqualValues(t, 1, info.Partitions[0].Floor)
	}
	for _, want := range []uint64{1, 2} { // without a head it is the next one when it is asked for
		answer, err := skip(nil)
		require.NoError(t, err)
		require.Equal(t, want, answer.Offset)
	}
	_, err = skip(nil)
	require.ErrorIs(t, err, wire.CodeRefused)
	require.ErrorContains(t, err, "the group is done with every record of it")
}
