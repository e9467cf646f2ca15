package server

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/cluster"
	"github.com/lockstepmq/lockstep/wire"
)

// A lone node that has erased something gets company: the new replicas pass over what is
// gone, while the old record stays, and have it when the first node is no more.
func TestRuleL7_AClusterThatGrowsPassesOverWhatIsErased(t *testing.T) {
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
	second := startMember(t, t.TempDir(), 2, s.Addr())
	third := startMember(t, t.TempDir(), 3, s.Addr())
	wait("the partition gets replicas", func() bool {
		d, _ := s.broker.View().Destination("jobs")
		active := 0
		for _, r := range d.Partitions[0].Replicas {
			if r.State == cluster.ReplicaActive {
				active++
			}
		}
		return active == 3
	})
	require.EqualValues(t, 0, s.jobs(t).StartOffset())
	produceLarge(t, s.Addr(), 8)
	for _, g := range k.next(8) {
		require.Equal(t, wire.CodeOK, k.say(ack(g))[0].Code)
	}
	for _, member := range []*Server{s, second, third} {
		_, err := member.jobs(t).records.Entries(1, 1)
		require.NoError(t, err)
		_, _, err = member.jobs(t).records.Locate(5)
		require.ErrorContains(t, err, "were acknowledged and erased")
		scrubWhole(t, member.jobs(t).records)
	}
	require.Equal(t, wire.CodeOK, k.say(ack(old))[0].Code)
	wait("the old record is done everywhere", func() bool {
		return s.jobs(t).StartOffset() > 0 && second.jobs(t).StartOffset() > 0 && third.jobs(t).StartOffset() > 0
	})
}
