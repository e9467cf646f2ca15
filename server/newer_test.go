package server

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/cluster"
	"github.com/lockstepmq/lockstep/log"
	"github.com/lockstepmq/lockstep/replication"
	"github.com/lockstepmq/lockstep/vfs"
	"github.com/lockstepmq/lockstep/wire"
)

// newer commits a control entry that this build cannot apply, as a newer build
// would have.
func newer(t *testing.T, o *owner, g *replication.Group, body string) {
	t.Helper()
	owned(o, func() {
		data := make([]byte, wire.EntryPrefixSize)
		wire.PutEntryPrefix(data, wire.KindControl, 0, 0)
		data = append(data, body...)
		require.NoError(t, g.Reserve(wire.FrameSize(len(body))))
		_, err := g.Propose(data)
		require.NoError(t, err)
	})
}

// After a downgrade one partition may hold a command that this build does not know.
func TestAPartitionOfANewerVersionStaysDownAndTheOthersServe(t *testing.T) {
	disk := vfs.NewSimulated(1)
	b := testBroker(t, disk)
	createOrders(t, b)
	require.Equal(t, wire.CodeOK, produce(t, b, 0))
	require.Equal(t, wire.CodeOK, produce(t, b, 1))
	r := orders(t, b, 0)
	newer(t, &r.owner, r.group, "\xc8\x01\x00\x00\x00\x00\x00\x00")
	eventually(t, "the partition is fenced", func() bool { return r.State() == wire.PartitionFenced })
	require.ErrorIs(t, b.close(), log.ErrFenced)

	b = testBroker(t, disk)
	defer func() { require.NoError(t, b.close()) }()
	d, _ := b.View().Destination("orders")
	_, err := b.Partition(d.ID, 0)
	require.ErrorIs(t, err, wire.CodePartitionFenced)
	require.ErrorContains(t, err, "command 200 version 1: written by a newer version; upgrade this broker")
	require.Equal(t, wire.CodeOK, produce(t, b, 1))
}

func TestMetadataOfANewerVersionKeepsTheBrokerFromStarting(t *testing.T) {
	disk := vfs.NewSimulated(1)
	b := testBroker(t, disk)
	newer(t, &b.meta.owner, b.meta.group, `{"minimum_version":7}`)
	require.ErrorIs(t, administer(b, &wire.AlterRequest{Name: "orders", Kind: wire.Queue}), wire.CodeUnavailable)
	require.ErrorIs(t, b.close(), log.ErrFenced)

	_, err := openTestBroker(disk)
	require.ErrorIs(t, err, log.ErrTooNew)
	require.ErrorContains(t, err, fmt.Sprintf("needs metadata version 7, this build knows %d: written by a newer version; upgrade this broker", cluster.Version))
	require.Zero(t, disk.OpenCount())
}
