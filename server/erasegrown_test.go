package server

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/cluster"
	"github.com/lockstepmq/lockstep/wire"
)

// A lone node that has erased something gets company: the new replicas wait at what is gone,
// the partition goes on with the one that it has, and when the old record is done they
// catch up.
func TestRuleL7_AClusterThatGrowsWaitsForTheOldRecord(t *testing.T) {
	if *eraseMiB < 64 {
		t.Skip("three brokers and 10 s: make nightly runs it, with -erase-mib 64 or more")
	}
	dir := t.TempDir()
	s := startErasing(t, dir)
	createErasing(t, s.Addr())
	k := attachTo(t, s.Addr(), 1)
	k.keepAlive()
	produceLarge(t, s.Addr(), 1)
	old := k.next(1)[0]
	for range 4 {
		produceLarge(t, s.Addr(), 32)
		for _, g := range k.next(32) {
			require.Equal(t, wire.CodeOK, k.say(ack(g))[0].Code)
		}
	}
	wait := func(what string, condition func() bool) {
		t.Helper()
		for deadline := time.Now().Add(60 * time.Second); !condition(); time.Sleep(20 * time.Millisecond) {
			require.True(t, time.Now().Before(deadline), what)
		}
	}
	wait("something is erased", func() bool { return s.jobs(t).records.ErasedBytes() > 0 })
	startMember(t, t.TempDir(), 2, s.Addr())
	startMember(t, t.TempDir(), 3, s.Addr())
	replicas := func() (all, active int) {
		d, _ := s.broker.View().Destination("jobs")
		for _, r := range d.Partitions[0].Replicas {
			if all++; r.State == cluster.ReplicaActive {
				active++
			}
		}
		return all, active
	}
	wait("the partition gets replicas", func() bool { all, _ := replicas(); return all > 1 })
	produceLarge(t, s.Addr(), 8)
	for _, g := range k.next(8) {
		require.Equal(t, wire.CodeOK, k.say(ack(g))[0].Code)
	}
	_, active := replicas()
	require.Equal(t, 1, active)
	require.NoError(t, s.jobs(t).Err())
	require.Equal(t, wire.CodeOK, k.say(ack(old))[0].Code)
	wait("the replicas have caught up", func() bool { all, active := replicas(); return all == 3 && active == 3 })
}
