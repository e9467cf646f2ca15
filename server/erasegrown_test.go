package server

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/cluster"
	"github.com/lockstepmq/lockstep/wire"
)

// A lone node that has erased something gets company: the new replicas pass over what is
// gone, while the old record stays. From then on all three erase; one that loses its disk
// gets what is there, and passes over the rest.
func TestRuleL7_ThreeNodesEraseBehindAnOldRecord(t *testing.T) {
	if *eraseMiB < 64 {
		t.Skip("three brokers and 15 s: make nightly runs it, with -erase-mib 64 or more")
	}
	dirs := map[uint32]string{1: t.TempDir(), 2: t.TempDir(), 3: t.TempDir()}
	servers := map[uint32]*Server{1: startEraser(t, dirs[1], 1)}
	s := servers[1]
	createErasing(t, s.Addr())
	k := attachTo(t, s.Addr(), 1)
	k.keepAlive()
	produceLarge(t, s.Addr(), 1)
	old := k.next(1)[0]
	count := 1
	handle := func(mib int) {
		t.Helper()
		for range mib {
			produceLarge(t, s.Addr(), 32)
			for _, g := range k.next(32) {
				require.Equal(t, wire.CodeOK, k.say(ack(g))[0].Code)
			}
			count += 32
		}
	}
	wait := func(what string, condition func() bool) {
		t.Helper()
		for deadline := time.Now().Add(60 * time.Second); !condition(); time.Sleep(20 * time.Millisecond) {
			require.True(t, time.Now().Before(deadline), what)
		}
	}
	active := func() (n int, third uint64) {
		d, _ := s.broker.View().Destination("jobs")
		for _, r := range d.Partitions[0].Replicas {
			if r.State == cluster.ReplicaActive {
				n++
			}
		}
		if on := d.Partitions[0].On(3); on != nil {
			third = on.ID
		}
		return n, third
	}
	// alike makes sure that every node has the old record, its end, and a hole in between.
	alike := func() {
		t.Helper()
		for node, member := range servers {
			r := member.jobs(t)
			wait("everybody has everything", func() bool { return r.records.Watermark().Next == wire.Offset(count) })
			require.EqualValues(t, 0, r.StartOffset())
			for _, o := range []wire.Offset{0, wire.Offset(count - 1)} {
				p, base, err := r.records.Locate(o)
				require.NoError(t, err, "node %d, offset %d", node, o)
				require.Equal(t, o, base)
				first, _, err := s.jobs(t).records.Locate(o)
				require.NoError(t, err)
				mine, theirs := make([]byte, 32<<10), make([]byte, 32<<10)
				_, _, err = r.records.ReadAt(p, mine)
				require.NoError(t, err)
				_, _, err = s.jobs(t).records.ReadAt(first, theirs)
				require.NoError(t, err)
				clear(mine[wire.FrameHeaderSize-8 : wire.FrameHeaderSize]) // what is local
				clear(theirs[wire.FrameHeaderSize-8 : wire.FrameHeaderSize])
				require.Equal(t, theirs, mine)
			}
			_, _, err := r.records.Locate(5)
			require.ErrorContains(t, err, "were acknowledged and erased")
			scrubWhole(t, r.records)
		}
	}
	handle(4)
	wait("something is erased", func() bool { return s.jobs(t).records.ErasedBytes() > 0 })
	servers[2] = startEraser(t, dirs[2], 2, s.Addr())
	servers[3] = startEraser(t, dirs[3], 3, s.Addr())
	wait("the partition gets replicas", func() bool { n, _ := active(); return n == 3 })
	alike()

	handle(16)
	for node, member := range servers {
		wait("every node erases", func() bool {
			return member.jobs(t).records.ErasedBytes() > 12<<20 || node != 1 && diskUse(t, dirs[node]) < 6<<20
		})
		require.Less(t, diskUse(t, dirs[node]), int64(12<<20), "node %d", node)
		t.Logf("node %d: %d MiB handled behind one record, %d KiB on the disk", node, count/32, diskUse(t, dirs[node])>>10)
	}
	alike()

	_, before := active()
	closeMember(t, servers[3])
	delete(servers, 3)
	handle(4)
	dirs[3] = t.TempDir()
	servers[3] = startEraser(t, dirs[3], 3, s.Addr(), servers[2].Addr())
	wait("the wiped node has a replica again", func() bool { n, third := active(); return n == 3 && third != 0 && third != before })
	alike()

	require.Equal(t, wire.CodeOK, k.say(ack(old))[0].Code)
	for _, member := range servers {
		wait("the old record is done everywhere", func() bool { return member.jobs(t).StartOffset() == wire.Offset(count) })
	}
}
