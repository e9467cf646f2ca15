package server

import (
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/log"
	"github.com/lockstepmq/lockstep/vfs"
	"github.com/lockstepmq/lockstep/wire"
)

// RULES L9: a node whose metadata's storage fails does not go on with what it knew. It ends with
// the reason, the others lead what it led, and it follows them when it is started again.
func TestRuleL9_ANodeThatLosesItsMetadataEnds(t *testing.T) {
	t.Parallel()
	c := newDarkCrew(t, 3, nil)
	c.create(1, "orders", 3, 3)
	c.await("all vote about the metadata", func() bool { return c.broker(1).meta.voters.Load() == 3 })
	victim := c.broker(1).meta.leader.Load()
	other := victim%3 + 1
	c.await("who leads is known", func() bool { return c.broker(other).meta.leader.Load() == victim })
	var failed atomic.Bool
	c.disks[victim].Inject(func(op vfs.Op, name string) error {
		if op == vfs.OpSync && strings.Contains(name, "/meta/") && failed.CompareAndSwap(false, true) {
			return syscall.EIO
		}
		return nil
	})
	made := func() bool {
		_, err := c.ask(other, &wire.CreateRequest{Name: "more", Kind: wire.Queue, Settings: wire.Settings{
			Partitions: 1, Replicas: 2, RetentionTimeMs: wire.Unlimited, RetentionBytes: wire.Unlimited,
		}})
		return wire.CodeOf(err) == wire.CodeAlreadyExists
	}
	c.await("the others change the metadata", made)
	s := c.servers[victim]
	<-s.Done()
	require.ErrorIs(t, s.Err(), log.ErrFenced)
	require.ErrorContains(t, s.Err(), "the storage of the cluster's metadata failed")
	require.True(t, failed.Load())
	c.end(victim)
	c.await("the others lead what it led", func() bool {
		led := c.leaders(other, "orders")
		return led[0] == 0 && led[victim] == 0
	})

	c.disks[victim].Inject(nil)
	c.start(victim)
	c.await("it follows them again", func() bool {
		_, knows := c.broker(victim).View().Destination("more")
		return knows && c.broker(victim).meta.voters.Load() == 3
	})
}
