package server

import (
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/cluster"
	"github.com/lockstepmq/lockstep/vfs"
	"github.com/lockstepmq/lockstep/wire"
)

// A delete that takes its time, because it has many directories to remove, holds up
// nobody else, and is finished by the next start if this one ends before.
func TestADeleteHoldsUpNothing(t *testing.T) {
	disk := vfs.NewSimulated(1)
	b := testBroker(t, disk)
	createOrders(t, b)
	require.Equal(t, wire.CodeOK, produce(t, b, 0))
	old := orders(t, b, 0)
	release := make(chan struct{})
	disk.Inject(func(op vfs.Op, name string) error {
		if op == vfs.OpRename && strings.HasPrefix(name, "data/partitions/"+old.destination.String()) && !strings.Contains(name, "manifest") {
			<-release
		}
		return nil
	})
	require.NoError(t, deleteNamed(b, "orders"))
	require.ErrorIs(t, old.Append(testAppend(t, nil)), wire.CodeDestinationGone, "from the answer on nothing is taken")
	require.NoError(t, createNamed(b, "events"))
	createOrders(t, b)
	require.Equal(t, wire.CodeOK, produce(t, b, 0))
	require.Len(t, b.View().Deleted, 1)
	close(release)
	eventually(t, "the directories are gone", func() bool { return len(b.View().Deleted) == 0 })
	require.NoError(t, b.close())
}

// RULES L6: a memory partition that begins anew gets another replica. The one before
// is stopped, not forgotten.
func TestAReplacedReplicaIsStopped(t *testing.T) {
	b := testBroker(t, vfs.NewSimulated(1))
	require.NoError(t, administer(b, &wire.CreateRequest{Name: "orders", Kind: wire.Queue, Settings: wire.Settings{
		Partitions: 1, RetentionTimeMs: wire.Unlimited, RetentionBytes: wire.Unlimited, Storage: wire.StorageMemory,
	}}))
	require.Equal(t, wire.CodeOK, produce(t, b, 0))
	old := orders(t, b, 0)
	require.NoError(t, b.command(cluster.Command{ResetMemory: &cluster.ResetMemory{Node: b.identity.NodeID}}).Err)
	settled := make(chan struct{})
	b.whenSettled(b.View().Epoch, func() { close(settled) })
	<-settled
	<-old.stopped
	require.NotEqual(t, old.replicaID, orders(t, b, 0).replicaID)
	require.ErrorIs(t, old.Append(testAppend(t, nil)), wire.CodeDestinationGone)
	require.Equal(t, wire.CodeOK, produce(t, b, 0))
	require.NoError(t, b.close())
}

// What the metadata could not be told, here because too much waits for it, it is
// told again.
func TestTheMetadataLearnsOfNewReplicasSoonerOrLater(t *testing.T) {
	disk := vfs.NewSimulated(1)
	b := testBroker(t, disk)
	var once sync.Once
	disk.Inject(func(op vfs.Op, name string) error {
		if op == vfs.OpCreate && strings.HasPrefix(name, "data/partitions/") {
			once.Do(func() {
				o := &b.meta.owner
				for !o.state.CompareAndSwap(ownerIdle, ownerRunning) {
					runtime.Gosched()
				}
				for range cluster.MaxWaitingCommands {
					b.meta.metadata.Submit(cluster.Command{AllocateIDs: &cluster.AllocateIDs{}}, func(cluster.Result) {})
				}
				go func() {
					for !b.unsaid.Load() {
						runtime.Gosched()
					}
					o.release(true)
				}()
			})
		}
		return nil
	})
	createOrders(t, b)
	eventually(t, "both replicas are active", func() bool {
		d, ok := b.View().Destination("orders")
		return ok && d.Partitions[0].Replicas[0].State == cluster.ReplicaActive && d.Partitions[1].Replicas[0].State == cluster.ReplicaActive
	})
	require.NoError(t, b.close())
}

// RULES R10, L9: a replica that was lost on a node that lives is replaced there, in the same
// directory. As long as the one before is not closed it writes there, and into its slot among the
// hard states: the next one would get both.
func TestRuleR10_AReplicaWaitsForTheOneBeforeToClose(t *testing.T) {
	c := newDarkCrew(t, 3, nil)
	create := func(name string) {
		_, err := c.ask(1, &wire.CreateRequest{Name: name, Kind: wire.Queue, Settings: wire.Settings{
			Partitions: 1, Replicas: 3, RetentionTimeMs: wire.Unlimited, RetentionBytes: wire.Unlimited,
		}})
		require.NoError(t, err)
		c.await("a leader", func() bool { return c.leader(name) != 0 })
	}
	create("large")
	create("orders")
	node := c.leader("orders")%3 + 1
	b := c.broker(node)
	large, _ := b.View().Destination("large")
	orders, _ := b.View().Destination("orders")
	old := b.local(orders.ID, 0)
	require.NotNil(t, old)

	blocked, release := make(chan struct{}), make(chan struct{})
	var once sync.Once
	c.disks[node].Inject(func(op vfs.Op, name string) error {
		if op == vfs.OpRename && strings.Contains(name, "partitions/"+large.ID.String()) && !strings.Contains(name, "manifest") {
			once.Do(func() { close(blocked) })
			<-release
		}
		return nil
	})
	free := sync.OnceFunc(func() { close(release) })
	t.Cleanup(free)
	_, err := c.ask(1, &wire.DeleteRequest{Name: "large", Kind: wire.Queue, ID: large.ID})
	require.NoError(t, err)
	<-blocked // what removes and closes has its hands full
	require.NoError(t, b.command(cluster.Command{Lost: &cluster.Lost{Destination: orders.ID, Replica: old.replicaID, Reason: "a test"}}).Err)
	another := func() *cluster.Replica {
		d, _ := b.View().Destination("orders")
		r := d.Partitions[0].On(node)
		if r == nil || r.ID == old.replicaID {
			return nil
		}
		return r
	}
	c.await("another replica is wanted there", func() bool { return another() != nil })
	settled := make(chan struct{})
	b.whenSettled(b.View().Epoch, func() { close(settled) })
	<-settled
	require.True(t, b.local(orders.ID, 0) == nil, "the one before is not closed")
	free()
	c.await("it is there", func() bool { return another().State == cluster.ReplicaActive && b.local(orders.ID, 0) != nil })
	c.fill("orders", 5)
	c.same("orders", 5)
}

// Who waits for the directory of a replica that is being closed gets it when that is done, whatever
// else the metadata say meanwhile.
func TestRuleR10_TheEndOfTheOneBeforeIsNotMissed(t *testing.T) {
	b := testBroker(t, vfs.NewSimulated(1))
	createOrders(t, b)
	require.Equal(t, wire.CodeOK, produce(t, b, 0))
	old := orders(t, b, 0)
	key := replicaKey{old.destination, old.number}
	b.mu.Lock()
	delete(b.replicas, key)
	delete(b.byID, old.replicaID)
	b.leaving[old.dir] = false
	b.mu.Unlock()
	old.askStop(wire.CodeDestinationGone)
	b.metadataChanged(nil)
	eventually(t, "somebody waits", func() bool {
		b.mu.RLock()
		defer b.mu.RUnlock()
		return b.leaving[old.dir]
	})
	require.True(t, b.local(key.destination, key.number) == nil)
	b.remove(old)
	eventually(t, "it is opened", func() bool { return b.local(key.destination, key.number) != nil })
	require.Equal(t, wire.CodeOK, produce(t, b, 0))
	require.Empty(t, b.leaving)
	require.NoError(t, b.close())
}
