package server

import (
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/log"
	"github.com/lockstepmq/lockstep/replication"
	"github.com/lockstepmq/lockstep/vfs"
	"github.com/lockstepmq/lockstep/wire"
)

// While producers wait, followers that lag get 64 MiB a second, with a quarter of a
// second of it at once; while nobody waits, all they can take.
func TestCatchUpKeepsToItsRate(t *testing.T) {
	busy, now := false, int64(time.Hour)
	c := newCatchUp(newBlockingPool(1), func() bool { return busy }, nil)
	c.now = func() int64 { return now }
	for range 1000 {
		require.Zero(t, c.delay(1<<20))
	}
	busy = true
	for range 16 {
		require.Zero(t, c.delay(1<<20), "a quarter of a second")
	}
	for i := range 640 {
		require.Equal(t, time.Duration(i+1)*time.Second/64, c.delay(1<<20), "read %d", i)
	}
	now += int64(time.Hour)
	for range 16 {
		require.Zero(t, c.delay(1<<20), "what was not used for an hour counts for a quarter of a second")
	}
	require.Equal(t, time.Second/64, c.delay(1<<20))
}

func openTestLog(t *testing.T) *log.Log {
	store, err := log.OpenStore(log.StoreOptions{FS: vfs.NewMemory(func(int64) error { return nil }), Dir: "/d", BootID: "b", Memory: true})
	require.NoError(t, err)
	l, err := log.Open(log.Options{Store: store, Dir: "/d/l", ReplicaID: 1, Executor: inlineJobs{}})
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, l.Close(true))
		require.NoError(t, store.Close())
	})
	return l
}

// inlineJobs runs storage jobs at once.
type inlineJobs struct{}

func (inlineJobs) Submit(j log.Job) { j.Run(); j.Done() }

func TestCatchUpBoundsItsStreams(t *testing.T) {
	l := openTestLog(t)
	c := newCatchUp(newBlockingPool(catchUpStreams), func() bool { return true }, nil)
	var later []func()
	c.after = func(_ time.Duration, f func()) { later = append(later, f) }
	c.next = monotonic() + int64(time.Hour)
	g := lagging{catchUp: c, inbox: replication.NewInbox(nil), wake: func() {}}
	for range catchUpStreams {
		require.True(t, g.Read(l, 2, 1, 1<<20))
	}
	require.False(t, g.Read(l, 2, 1, 1<<20), "the group asks again")
	require.Len(t, later, catchUpStreams)
	for _, f := range later {
		f()
	}
	c.done.Wait()
	require.True(t, g.Read(l, 2, 1, 1<<20))
	later[len(later)-1]()
	c.stop()
	require.False(t, g.Read(l, 2, 1, 1<<20), "the logs are about to be closed")
}

func TestCatchUpFetchesCheckpoints(t *testing.T) {
	l := openTestLog(t)
	asked := make(chan wire.PeerFetch, 1)
	answer := func(then func(wire.ErrorCode, []byte)) { then(wire.CodeOK, []byte("content")) }
	c := newCatchUp(newBlockingPool(1), func() bool { return false }, func(node uint32, op wire.PeerOp, body []byte, then func(wire.ErrorCode, []byte)) {
		require.Equal(t, uint32(7), node)
		require.Equal(t, wire.PeerFetchCheckpoint, op)
		var m wire.PeerFetch
		require.NoError(t, m.Parse(body))
		asked <- m
		answer(then)
	})
	woken := 0
	g := lagging{catchUp: c, meta: true, inbox: replication.NewInbox(nil), wake: func() { woken++ }}
	g.fetch(7, replication.SnapshotOffer{From: 3, To: 4, Applied: 9})
	require.Equal(t, wire.PeerFetch{Meta: true, Replica: 3, From: 9}, <-asked)
	require.Equal(t, 1, woken)

	var code wire.ErrorCode
	c.checkpoint(l, 1, func(c wire.ErrorCode, _ []byte) { code = c })
	require.Equal(t, wire.CodeRetry, code, "there is none yet")
	require.False(t, errors.Is(code, wire.CodeOK))
}
