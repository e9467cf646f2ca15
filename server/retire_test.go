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
