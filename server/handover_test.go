package server

import (
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/cluster"
	"github.com/lockstepmq/lockstep/partition"
	"github.com/lockstepmq/lockstep/vfs"
	"github.com/lockstepmq/lockstep/wire"
)

// A leadership that somebody wants elsewhere goes there as soon as the replica has caught up:
// nobody asks a second time, and who asked was told that it has begun.
func TestAHandOverWaitsForAReplicaThatLags(t *testing.T) {
	t.Parallel()
	c := newCrew(t, 2)
	disk, held := vfs.NewSimulated(3), make(chan struct{})
	release := sync.OnceFunc(func() { close(held) })
	c.change = func(cfg *Config) {
		require.NoError(t, disk.MkdirAll(cfg.DataDir))
		cfg.fs, cfg.bootID = disk, "boot"
	}
	c.start(3)
	t.Cleanup(release) // before the crew stops
	c.change = nil
	c.create(1, "orders", 1, 3)
	d, _ := c.broker(1).View().Destination("orders")
	c.append(d, 0)
	mine := d.Partitions[0].On(3)
	leader := func() *partitionReplica {
		for node := range c.servers {
			if r := c.broker(node).local(d.ID, 0); r != nil && r.leads.Load() {
				return r
			}
		}
		return nil
	}
	c.await("another node leads", func() bool {
		r := leader()
		if r != nil && r.node == 3 {
			_, _ = c.ask(1, &wire.PartitionAdminRequest{Destination: "orders", Partition: 0, Action: wire.PartitionTransfer, To: 1})
		}
		return r != nil && r.node != 3
	})
	disk.Inject(func(op vfs.Op, name string) error {
		if (op == vfs.OpWrite || op == vfs.OpSync) && !strings.Contains(name, "meta") {
			<-held
		}
		return nil
	})
	for range maxTransferLag + 20 {
		c.append(d, 0)
	}
	from := leader()
	require.NotNil(t, from)
	require.NotEqual(t, uint32(3), from.node)
	_, err := c.ask(from.node, &wire.PartitionAdminRequest{Destination: "orders", Partition: 0, Action: wire.PartitionTransfer, To: 3})
	require.NoError(t, err)
	c.await("it was asked for", func() bool { return from.requests.Load()&requestTransfer == 0 && from.transfer.Load() == 0 })
	require.NotZero(t, mine.ID)
	release()
	c.await("node 3 leads", func() bool { return c.leaders(1, "orders")[3] == 1 })
}

// The first record after a sleep is proposed in a turn that began asleep: from its end on the
// group has its ticks, or nobody would repeat what gets lost.
func TestAGroupThatWakesInATurnIsTickedAfterIt(t *testing.T) {
	t.Parallel()
	c := newCrew(t, 3)
	c.create(1, "orders", 1, 3)
	d, _ := c.broker(1).View().Destination("orders")
	c.append(d, 0)
	var r *partitionReplica
	c.await("the group sleeps", func() bool {
		for node := range c.servers {
			if l := c.broker(node).local(d.ID, 0); l != nil && l.leads.Load() && l.quiet.Load() {
				r = l
			}
		}
		return r != nil
	})
	for !r.owner.state.CompareAndSwap(ownerIdle, ownerRunning) {
		time.Sleep(time.Millisecond) // another goroutine has the right
	}
	batch, index := testBatch(t, "value")
	info, err := wire.ValidateBatch(batch, index, wire.BatchLimits{MaxRecordBytes: wire.DefaultMaxRecordBytes})
	require.NoError(t, err)
	done := make(chan wire.ErrorCode, 1)
	require.NoError(t, r.part.Append(partition.Append{Batch: batch, Index: index, Info: info, Acks: wire.AcksQuorum, Receiver: codeReceiver(done)}))
	r.turn()
	awake, quiet := !r.group.Quiet(), r.quiet.Load()
	r.release(true)
	require.True(t, awake, "it has proposed the record")
	require.False(t, quiet)
	require.Equal(t, wire.CodeOK, <-done)
}

// A replica that cannot go on, while the metadata cannot be told: another leads all the same,
// and the metadata is told later.
func TestAReplicaThatCannotGoOnIsReplacedSoonerOrLater(t *testing.T) {
	t.Parallel()
	c := newCrew(t, 3)
	c.create(1, "orders", 3, 3)
	d, _ := c.broker(1).View().Destination("orders")
	controller := c.controller()
	var r *partitionReplica
	c.await("a partition is led beside the metadata", func() bool {
		for i := range d.Partitions {
			if l := c.broker(controller).local(d.ID, uint32(i)); l != nil && l.leads.Load() {
				r = l
			}
		}
		return r != nil
	})
	c.append(d, r.number)

	meta := c.broker(controller).meta
	for !meta.owner.state.CompareAndSwap(ownerIdle, ownerRunning) {
		time.Sleep(time.Millisecond) // another goroutine has the right
	}
	for range cluster.MaxWaitingCommands {
		meta.metadata.Submit(cluster.Command{AllocateIDs: &cluster.AllocateIDs{}}, func(cluster.Result) {})
	}
	cause := errors.New("damaged")
	r.condemned.CompareAndSwap(nil, &cause)
	r.schedule()
	other := controller%3 + 1
	c.await("another leads", func() bool {
		l, known := c.broker(other).hints.of(&d.Partitions[r.number])
		return known && l.node != controller && l.Replica != r.replicaID
	})
	meta.release(true)
	c.await("it is replaced", func() bool {
		d, _ := c.broker(other).View().Destination("orders")
		p := &d.Partitions[r.number]
		o := p.Replica(r.replicaID)
		return (o == nil || o.State == cluster.ReplicaLost || o.State == cluster.ReplicaLeft) && len(p.Replicas) >= 3
	})
}
