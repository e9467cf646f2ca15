package server

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
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

// RuleL9, F26: nodes of a cluster that meet metadata of a newer build while they run end, and say what to do:
// they would go on with what grows old.
func TestF26_NodesThatCannotFollowTheMetadataEnd(t *testing.T) {
	t.Parallel()
	c := newDarkCrew(t, 3, nil)
	c.create(1, "orders", 3, 3)
	c.await("all vote about the metadata, and one leads", func() bool {
		return c.broker(1).meta.voters.Load() == 3 && c.broker(1).meta.leader.Load() != 0
	})
	meta := c.broker(c.broker(1).meta.leader.Load()).meta
	newer(t, &meta.owner, meta.group, `{"minimum_version":7}`)
	for n := uint32(1); n <= 3; n++ {
		s := c.servers[n]
		<-s.Done()
		require.ErrorIs(t, s.Err(), log.ErrTooNew)
		require.ErrorContains(t, s.Err(), "cannot follow the cluster's metadata any more")
		require.ErrorContains(t, s.Err(), "upgrade this broker")
	}
	for n := uint32(1); n <= 3; n++ {
		c.end(n)
	}
}

// A build that does not know the level of its cluster saves nothing: what it cannot read of
// the metadata would be missing. It finds the level in the log, or in the checkpoint.
func TestF26_AnOlderBuildSavesNoMetadataOfANewerLevel(t *testing.T) {
	disk := vfs.NewSimulated(1)
	require.NoError(t, testBroker(t, disk).close(), "there is a checkpoint")
	saved := func() map[string]string {
		found := map[string]string{}
		for _, name := range []string{"data/meta/checkpoint.0", "data/meta/checkpoint.1"} {
			f, err := disk.OpenReadOnly(name)
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			require.NoError(t, err)
			size, err := f.Size()
			require.NoError(t, err)
			content := make([]byte, size)
			_, err = f.ReadAt(content, 0)
			require.NoError(t, err)
			require.NoError(t, f.Close())
			found[name] = string(content)
		}
		require.NotEmpty(t, found)
		return found
	}
	refused := func() {
		t.Helper()
		before := saved()
		_, err := openTestBroker(disk)
		require.ErrorIs(t, err, log.ErrTooNew)
		require.ErrorContains(t, err, fmt.Sprintf("the cluster works at feature level %d, this build knows up to %d: ", cluster.MaxLevel+1, cluster.MaxLevel))
		require.Zero(t, disk.OpenCount())
		require.Equal(t, before, saved())
	}

	b := testBroker(t, disk)
	n, _ := b.View().Node(b.identity.NodeID)
	for _, c := range []cluster.Command{
		{Register: &cluster.Register{Node: n.ID, Store: n.Store, Address: n.Address, MinLevel: cluster.MinLevel, MaxLevel: cluster.MaxLevel + 1}},
		{SetLevel: &cluster.SetLevel{Level: cluster.MaxLevel + 1}},
	} {
		body, err := json.Marshal(&c)
		require.NoError(t, err)
		newer(t, &b.meta.owner, b.meta.group, string(body))
	}
	eventually(t, "metadata is fenced", func() bool { return errors.Is(createNamed(b, "more"), wire.CodeUnavailable) })
	before := saved() // what was begun before is written
	require.ErrorIs(t, b.close(), log.ErrFenced)
	require.Equal(t, before, saved())
	refused()
	refused()
}
