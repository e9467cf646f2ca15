package server

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/cluster"
	"github.com/lockstepmq/lockstep/log"
	"github.com/lockstepmq/lockstep/wire"
)

// A replica that cannot help with a damaged run is asked less and less often, for each run by
// itself; one that has none of it any more hardly ever. Whoever was not asked yet is asked at once.
func TestRuleL8_WhoCannotRepairIsAskedSeldom(t *testing.T) {
	const hour = 36_000
	var m mending
	damage := []log.Damage{{FirstIndex: 5, LastIndex: 5}, {FirstIndex: 8, LastIndex: 9}}
	a, b := cluster.Replica{ID: 1}, cluster.Replica{ID: 2}
	asked, seldom := map[repairAttempt]int{}, map[repairAttempt]int{}
	pass := func(from, ticks uint64, gone bool, sources ...cluster.Replica) {
		for tick := from; tick < from+ticks; tick += 10 {
			for d, source, ok := m.next(damage, sources, tick); ok; d, source, ok = m.next(damage, sources, tick) {
				attempt := repairAttempt{d.FirstIndex, d.LastIndex, source.ID}
				asked[attempt]++
				if m.failed(attempt, tick, gone) {
					seldom[attempt]++
				}
			}
		}
	}
	each := func(n int, in map[repairAttempt]int) {
		t.Helper()
		require.Equal(t, map[repairAttempt]int{{5, 5, 1}: n, {5, 5, 2}: n, {8, 9, 1}: n, {8, 9, 2}: n}, in)
	}
	pass(0, 10, false, a, b)
	each(1, asked)
	pass(10, 60, false, a, b)
	each(3, asked) // after 1 s and 2 s more
	pass(70, hour, false, a, b)
	each(20, asked) // six more in 5 min, and then every 5 min
	each(1, seldom)
	require.Zero(t, m.left(damage, []cluster.Replica{a, b}))

	clear(asked)
	pass(hour+70, 10, false, a, b, cluster.Replica{ID: 3})
	require.Equal(t, map[repairAttempt]int{{5, 5, 3}: 1, {8, 9, 3}: 1}, asked, "a new one at once")
	damage[1].LastIndex++
	pass(hour+80, 10, false, a)
	require.Equal(t, 1, asked[repairAttempt{8, 10, 1}], "and of what is damaged now")
	require.Len(t, m.asked, 4, "what is not damaged any more is forgotten")

	clear(asked)
	m = mending{}
	pass(0, hour, true, a)
	require.Equal(t, map[repairAttempt]int{{5, 5, 1}: 1, {8, 10, 1}: 1}, asked)
	require.Zero(t, m.left(damage, []cluster.Replica{a, b}), "the other one was not asked")
	pass(10, 10, true, b)
	require.Equal(t, 2, m.left(damage, []cluster.Replica{a, b}))
}

// What is damaged on one replica and erased on the other is not asked for again and again. It
// stays as it is, which is said and counted.
func TestRuleL8_DamageThatIsErasedOnTheOtherReplicaIsLeft(t *testing.T) {
	t.Parallel()
	start := func(dir string, node uint32, join ...string) *Server {
		s, err := Start(t.Context(), Config{
			DataDir: dir, Listen: "127.0.0.1:0", PeerListen: "127.0.0.1:0", HTTP: "off", MinFreeBytes: -1, NodeID: node, Join: join,
			ScrubInterval: -1, RetentionPeriod: time.Hour, Logger: testLogger(node),
		})
		require.NoError(t, err)
		t.Cleanup(func() { closeMember(t, s) })
		return s
	}
	dirs := []string{t.TempDir(), t.TempDir()}
	a := start(dirs[0], 1)
	b := start(dirs[1], 2, a.Addr())
	c := dialOpen(t, a.Addr())
	c.send(wire.OpCreate, 2, &wire.CreateRequest{Name: "jobs", Kind: wire.Queue, Settings: wire.Settings{
		Partitions: 1, Replicas: 2, Sync: wire.SyncOS, RetentionTimeMs: wire.Unlimited, RetentionBytes: wire.Unlimited, SegmentBytes: 1 << 20,
	}})
	require.Equal(t, wire.CodeOK, c.answer(2).code())
	createAnother(t, a.Addr(), "workers")
	lead := func(from, to *Server) {
		t.Helper()
		eventually(t, "the other one leads", func() bool {
			if to.jobs(t) != nil && to.jobs(t).Leading() {
				return true
			}
			_ = from.broker.transferHere(from.jobs(t).replicaID, to.jobs(t).replicaID)
			return false
		})
	}
	lead(b, a)
	k := attachTo(t, a.Addr(), 1)
	k.keepAlive()
	produceLarge(t, a.Addr(), 1)
	require.EqualValues(t, 0, k.next(1)[0].Offset) // and is never acknowledged
	for range 3 {
		produceLarge(t, a.Addr(), 32)
		for _, g := range k.next(32) {
			require.Equal(t, wire.CodeOK, k.say(ack(g))[0].Code)
		}
	}
	eventually(t, "both have everything", func() bool { return b.jobs(t).records.Watermark().Next == 97 })
	closeMember(t, b)
	b = startEraser(t, dirs[1], 2, a.Addr())
	eventually(t, "it is back", func() bool {
		_, known := b.broker.View().Destination("jobs")
		return known && b.jobs(t) != nil
	})
	lead(a, b)
	eventually(t, "it erases", func() bool { return b.jobs(t).records.ErasedBytes() > 0 })

	r := a.jobs(t)
	files, err := filepath.Glob(filepath.Join(r.dir, "*.segment"))
	require.NoError(t, err)
	require.NotEmpty(t, files)
	file, err := os.OpenFile(files[0], os.O_RDWR, 0)
	require.NoError(t, err)
	_, err = file.WriteAt([]byte{0xff}, 300<<10) // in the value of some record
	require.NoError(t, err)
	require.NoError(t, file.Close())
	for pass := r.records.NewScrub(); ; {
		if _, err := pass.Next(1 << 20); errors.Is(err, io.EOF) {
			break
		}
	}
	damage := r.records.Damage()
	require.Len(t, damage, 1)
	eventually(t, "nobody else has it", func() bool { return r.mending.left(damage, r.others()) == 1 })
	require.EqualValues(t, 1, a.broker.damage.asked.Load())
	for range 10 {
		a.broker.repair(r)
	}
	require.EqualValues(t, 1, a.broker.damage.asked.Load())
	eventually(t, "the one that asked has ended", func() bool { return !r.mending.busy.Load() })
	require.EqualValues(t, 1, a.broker.damage.asked.Load())
	require.Len(t, r.records.Damage(), 1, "the bytes are what they are")
	eventually(t, "to nobody it matters", func() bool { return r.info().Damaged == 0 })
}
