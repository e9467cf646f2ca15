package server

import (
	"context"
	"errors"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/partition"
	"github.com/lockstepmq/lockstep/replication"
	"github.com/lockstepmq/lockstep/vfs"
	"github.com/lockstepmq/lockstep/wire"
)

// outcomes collects what becomes of appends.
type outcomes chan wire.ErrorCode

func (o outcomes) Appended(_ uint64, _ wire.Receipt, code wire.ErrorCode) { o <- code }

func testAppend(t *testing.T, receiver partition.Receiver) partition.Append {
	t.Helper()
	batch, _ := testBatch(t, "v")
	info, err := wire.ParseBatch(batch)
	require.NoError(t, err)
	return partition.Append{Batch: batch, Info: info, Acks: wire.AcksQuorum, Receiver: receiver}
}

// produce appends one batch to a partition of "orders" and returns its outcome.
func produce(t *testing.T, b *broker, number uint32) wire.ErrorCode {
	t.Helper()
	r := orders(t, b, number)
	done := make(outcomes, 1)
	if err := r.Append(testAppend(t, done)); err != nil {
		return errorBody(err).Code
	}
	r.Kick(true)
	select {
	case code := <-done:
		return code
	case <-time.After(60 * time.Second):
		require.Fail(t, "the batch is never answered")
		return 0
	}
}

// orders is a partition of "orders".
func orders(t *testing.T, b *broker, number uint32) *partitionReplica {
	t.Helper()
	d, ok := b.View().Destination("orders")
	require.True(t, ok)
	r := b.local(d.ID, number)
	require.NotNil(t, r)
	return r
}

// owned runs f with the owner's right. A turn of a pool worker follows.
func owned(o *owner, f func()) {
	for !o.state.CompareAndSwap(ownerIdle, ownerRunning) {
		runtime.Gosched()
	}
	f()
	o.release(true)
}

// panicking is a receiver that panics: a fault of ours in a turn outside raft.
type panicking struct{}

func (panicking) Appended(uint64, wire.Receipt, wire.ErrorCode) { panic("receiver") }

// panicOnRead has each read of the first partition of "orders" panic.
func panicOnRead(t *testing.T, b *broker, disk *vfs.Simulated) {
	require.Equal(t, wire.CodeOK, produce(t, b, 0))
	dir := orders(t, b, 0).destination.String() + "-0"
	disk.Inject(func(op vfs.Op, name string) error {
		if op == vfs.OpRead && strings.Contains(name, dir) {
			panic("read")
		}
		return nil
	})
}

// Rule R2: a panic at the owner's turn fences that replica only. Here it comes from
// each place that runs code for a partition.
func TestRuleR2_APanicEndsOnePartitionOnly(t *testing.T) {
	for _, c := range []struct {
		name  string
		panic func(*testing.T, *broker, *vfs.Simulated)
	}{
		{"in a turn on the caller's goroutine", func(t *testing.T, b *broker, _ *vfs.Simulated) {
			r := orders(t, b, 0)
			for !r.owner.state.CompareAndSwap(ownerIdle, ownerRunning) {
				runtime.Gosched()
			}
			r.clock = func() time.Time { panic("clock") }
			r.owner.state.Store(ownerIdle)
			r.Kick(true)
		}},
		{"in a turn of a pool worker", func(t *testing.T, b *broker, _ *vfs.Simulated) {
			r := orders(t, b, 0)
			owned(&r.owner, func() { r.clock = func() time.Time { panic("clock") } })
		}},
		{"while an entry is applied", func(t *testing.T, b *broker, _ *vfs.Simulated) {
			require.NoError(t, orders(t, b, 0).Append(testAppend(t, panicking{})))
			orders(t, b, 0).Kick(true)
		}},
		{"in a storage job", func(t *testing.T, b *broker, disk *vfs.Simulated) {
			d, _ := b.View().Destination("orders")
			dir := d.ID.String() + "-0"
			var once atomic.Bool
			disk.Inject(func(op vfs.Op, name string) error {
				if op == vfs.OpSync && strings.Contains(name, dir) && once.CompareAndSwap(false, true) {
					panic("sync")
				}
				return nil
			})
			require.Equal(t, wire.CodePartitionFenced, produce(t, b, 0))
		}},
		{"in a read", func(t *testing.T, b *broker, _ *vfs.Simulated) {
			orders(t, b, 0).Blocking(func() { panic("read") })
		}},
		{"in a read for another replica", func(t *testing.T, b *broker, disk *vfs.Simulated) {
			panicOnRead(t, b, disk)
			r := orders(t, b, 0)
			c := newCatchUp(newBlockingPool(1), func() uint64 { return 0 }, nil)
			g := lagging{catchUp: c, own: r.replicaID, inbox: replication.NewInbox(nil), owner: &r.owner}
			require.True(t, g.Read(r.records, 2, 7, 1, 1<<20))
			c.done.Wait()
		}},
		{"in a repair of another replica", func(t *testing.T, b *broker, disk *vfs.Simulated) {
			panicOnRead(t, b, disk)
			r := orders(t, b, 0)
			c := newCatchUp(newBlockingPool(1), func() uint64 { return 0 }, nil)
			code := wire.CodeOK
			c.frames(&r.owner, r.records, 1, 2, func(said wire.ErrorCode, _ []byte) { code = said })
			c.done.Wait()
			require.Equal(t, wire.CodeUnavailable, code)
		}},
		{"in the scrubber", func(t *testing.T, b *broker, disk *vfs.Simulated) {
			panicOnRead(t, b, disk)
			b.scrub(context.Background())
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			disk := vfs.NewSimulated(1)
			b := testBroker(t, disk)
			createOrders(t, b)
			require.Equal(t, wire.CodeOK, produce(t, b, 1))
			c.panic(t, b, disk)
			eventually(t, "the partition is fenced", func() bool { return orders(t, b, 0).State() == wire.PartitionFenced })
			require.Equal(t, wire.CodePartitionFenced, produce(t, b, 0))
			require.Equal(t, wire.CodeOK, produce(t, b, 1), "the other partition goes on")
			disk.Inject(nil)
			_ = b.close() // returns, with the fence as its error or without

			b = testBroker(t, disk)
			require.Equal(t, wire.CodeOK, produce(t, b, 0), "a restart brings it back")
			require.NoError(t, b.close())
		})
	}
}

func TestRuleR2_APanicWhileAPartitionOpensOrClosesEndsThatOneOnly(t *testing.T) {
	disk := vfs.NewSimulated(1)
	b := testBroker(t, disk)
	createOrders(t, b)
	require.Equal(t, wire.CodeOK, produce(t, b, 0))
	require.Equal(t, wire.CodeOK, produce(t, b, 1))
	d, _ := b.View().Destination("orders")
	panicOn := func(op vfs.Op) {
		disk.Inject(func(o vfs.Op, name string) error {
			if o == op && strings.Contains(name, d.ID.String()+"-0") {
				panic("disk")
			}
			return nil
		})
	}
	require.NoError(t, b.close())

	panicOn(vfs.OpRead)
	b = testBroker(t, disk)
	_, err := b.Partition(d.ID, 0)
	require.ErrorIs(t, err, wire.CodePartitionFenced)
	require.ErrorContains(t, err, "opening panicked")
	require.Equal(t, wire.CodeOK, produce(t, b, 1))
	require.NoError(t, b.close())

	disk.Inject(nil)
	b = testBroker(t, disk)
	require.NoError(t, administer(b, &wire.AlterRequest{Name: "orders", Kind: wire.Queue, Mask: wire.MaskSync, Settings: wire.Settings{Sync: wire.SyncOS}}))
	require.Equal(t, wire.CodeOK, produce(t, b, 0))
	panicOn(vfs.OpSync)
	require.Error(t, b.close())
	disk.Inject(nil)
	b = testBroker(t, disk)
	require.Equal(t, wire.CodeOK, produce(t, b, 0))
	require.NoError(t, b.close())
}

// What a panicked sync has not made durable is never acknowledged, nor marked durable
// when the log is closed.
func TestAPanickedSyncIsNoSync(t *testing.T) {
	disk := vfs.NewSimulated(1)
	b := testBroker(t, disk)
	createOrders(t, b)
	require.Equal(t, wire.CodeOK, produce(t, b, 0))
	var armed atomic.Bool
	armed.Store(true)
	disk.Inject(func(op vfs.Op, name string) error {
		if op == vfs.OpSync && strings.HasPrefix(name, "data/partitions/") && armed.CompareAndSwap(true, false) {
			panic("sync")
		}
		return nil
	})
	require.Equal(t, wire.CodePartitionFenced, produce(t, b, 0))
	disk.Inject(nil)
	_ = b.close()
	disk.CrashLoseAll()

	b = testBroker(t, disk)
	defer func() { require.NoError(t, b.close()) }()
	require.Equal(t, wire.Offset(1), orders(t, b, 0).records.Watermark().Next)
}

// A disk that never answers again does not keep the process from ending.
func TestAWedgedPartitionDoesNotHoldUpShutdownForEver(t *testing.T) {
	disk := vfs.NewSimulated(1)
	b, err := openTestBroker(disk, func(c *Config) { c.stopPatience = 50 * time.Millisecond })
	require.NoError(t, err)
	createOrders(t, b)
	require.Equal(t, wire.CodeOK, produce(t, b, 0))
	release := make(chan struct{})
	orders(t, b, 0).Submit(&countedJob{run: func() { <-release }, done: func() {}})
	err = b.close()
	require.ErrorIs(t, err, errWedged)
	require.ErrorContains(t, err, "orders/0")
	close(release)
	eventually(t, "everything is closed after all", func() bool { return disk.OpenCount() == 0 })
}

// When the broker does not open, what was open is closed: the directory can be
// opened again at once.
func TestAFailedStartLeavesNothingOpen(t *testing.T) {
	disk := vfs.NewSimulated(1)
	b := testBroker(t, disk)
	createOrders(t, b)
	require.Equal(t, wire.CodeOK, produce(t, b, 0))
	require.NoError(t, b.close())
	for _, c := range []struct {
		name string
		fail func(vfs.Op, string) bool
	}{
		{"identity", func(op vfs.Op, name string) bool { return strings.HasSuffix(name, "node.json") }},
		{"metadata", func(op vfs.Op, name string) bool { return strings.HasPrefix(name, "data/meta/checkpoint") }},
		{"registering", func(op vfs.Op, name string) bool {
			return op == vfs.OpWrite && strings.HasPrefix(name, "data/meta/")
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			disk.Inject(func(op vfs.Op, name string) error {
				if c.fail(op, name) {
					return errors.New("injected")
				}
				return nil
			})
			_, err := openTestBroker(disk)
			require.ErrorContains(t, err, "injected")
			disk.Inject(nil)
			require.Zero(t, disk.OpenCount())
			b, err := openTestBroker(disk)
			require.NoError(t, err)
			require.NoError(t, b.close())
		})
	}
}

// A leader that fails and has others behind it does not say that all is over: what is not
// answered is asked of the next one.
func TestRuleL9_WhatAFencedLeaderOwesIsAskedOfTheNext(t *testing.T) {
	all := startThree(t)
	createGroup(t, all[0].Addr(), wire.GroupSettings{Mode: wire.ModeShared})
	eventually(t, "a leader", func() bool { return leaderOf(all) != nil })
	old := leaderOf(all)
	d, _ := old.broker.View().Destination("jobs")
	r := old.broker.local(d.ID, 0)
	done := make(outcomes, 1)
	owned(&r.owner, func() {
		require.NoError(t, r.Append(testAppend(t, done)))
		r.clock = func() time.Time { panic("clock") }
	})
	r.Kick(true)
	select {
	case code := <-done:
		require.Equal(t, wire.CodeUnavailable, code)
	case <-time.After(time.Minute):
		require.Fail(t, "the batch is never answered")
	}
	require.Equal(t, wire.PartitionFenced, r.State())
	eventually(t, "another leader", func() bool { s := leaderOf(all); return s != nil && s != old })
	produceKeyed(t, old.Addr(), "a")
}
