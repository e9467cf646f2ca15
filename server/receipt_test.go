package server

import (
	"os"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/vfs"
	"github.com/lockstepmq/lockstep/wire"
)

// R-X-11: what a receipt says of replicas and syncs is so, also when disks are slow: who
// has not synced is not counted, and nobody says synced who has not waited for it. (That
// a loss of power takes nothing that was said to be synced: TestFleet, TestF1_….)
func TestR_X_11_ReceiptsAreTrueOfSlowDisks(t *testing.T) {
	t.Parallel()
	c := newDarkCrew(t, 3, nil)
	_, err := c.ask(1, &wire.CreateRequest{Name: "orders", Kind: wire.Topic, Settings: wire.Settings{
		Partitions: 1, Replicas: 3, RetentionTimeMs: wire.Unlimited, RetentionBytes: wire.Unlimited,
	}})
	require.NoError(t, err)
	c.await("a leader", func() bool { return c.leader("orders") != 0 })
	leader := c.leader("orders")
	client := dialOpen(t, c.servers[leader].Addr())
	handle := client.open("orders", 0)
	batch, _ := testBatch(t, "value")
	id := uint32(100)
	send := func(acks wire.Acks) uint32 {
		id++
		client.send(wire.OpProduce, id, &wire.ProduceRequest{Handle: handle, Acks: acks, Batch: batch})
		return id
	}
	receipt := func(id uint32) (r wire.Receipt) {
		client.ok(client.answer(id), &r)
		return r
	}
	receipt(send(wire.AcksQuorum))
	c.same("orders", 1)

	// hold stops the syncs of nodes, until the function is called that it returns.
	hold := func(nodes ...uint32) (release func()) {
		held := make(chan struct{})
		for _, n := range nodes {
			c.disks[n].Inject(func(op vfs.Op, _ string) error {
				if op == vfs.OpSync {
					<-held
				}
				return nil
			})
		}
		release = sync.OnceFunc(func() {
			for _, n := range nodes {
				c.disks[n].Inject(nil)
			}
			close(held)
		})
		t.Cleanup(release)
		return release
	}
	next := wire.Offset(1)
	slow, slower := leader%3+1, (leader+1)%3+1
	release := hold(slow)
	for range 5 {
		r := receipt(send(wire.AcksQuorum))
		require.Equal(t, next, r.BaseOffset)
		require.Equal(t, uint8(2), r.Replicas, "node %d is slow", slow)
		require.True(t, r.Synced)
		next++
	}
	release()
	c.same("orders", next)

	// Two slow disks are one too many: a record is in the leader's memory, and its receipt
	// says no more.
	release = hold(slow, slower)
	r := receipt(send(wire.AcksLeader))
	require.Equal(t, next, r.BaseOffset)
	require.Equal(t, uint8(1), r.Replicas)
	require.False(t, r.Synced)
	waiting := send(wire.AcksQuorum)
	require.NoError(t, client.conn.SetReadDeadline(time.Now().Add(20*time.Millisecond)))
	_, err = client.r.Peek(1)
	require.ErrorIs(t, err, os.ErrDeadlineExceeded, "request %d is answered, and no quorum has it", waiting)
	release()
	r = receipt(waiting)
	require.Equal(t, next+1, r.BaseOffset)
	require.GreaterOrEqual(t, r.Replicas, uint8(2))
	require.True(t, r.Synced)
}
