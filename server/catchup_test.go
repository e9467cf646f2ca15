package server

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/log"
	"github.com/lockstepmq/lockstep/replication"
	"github.com/lockstepmq/lockstep/vfs"
	"github.com/lockstepmq/lockstep/wire"
)

// pacedCatchUp is a catchUp whose clock and producers are the test's. Reads begin within
// pass and take no time.
type pacedCatchUp struct {
	*catchUp
	clock   int64
	arrives int64 // bytes a second that producers bring
	bytes   float64
	alarms  map[int64][]func()
}

func newPacedCatchUp() *pacedCatchUp {
	p := &pacedCatchUp{clock: int64(time.Hour), alarms: map[int64][]func(){}}
	p.catchUp = newCatchUp(newBlockingPool(1), func() uint64 { return uint64(p.bytes) }, nil)
	p.now = func() int64 { return p.clock }
	p.submit = func(f func()) { f() }
	p.after = func(d time.Duration, f func()) { p.alarms[p.clock+int64(d)] = append(p.alarms[p.clock+int64(d)], f) }
	return p
}

// pass lets time pass, with every tick and alarm at its time.
func (p *pacedCatchUp) pass(d time.Duration) {
	for end := p.clock + int64(d); ; {
		tick := (p.clock/int64(tickPeriod) + 1) * int64(tickPeriod)
		next := min(end, tick)
		for at := range p.alarms {
			next = min(next, at)
		}
		p.bytes += float64(p.arrives) * float64(next-p.clock) / float64(time.Second)
		if p.clock = next; next == tick {
			p.tick()
		}
		due := p.alarms[next]
		delete(p.alarms, next)
		for _, f := range due {
			f()
		}
		if next == end && len(p.alarms[end]) == 0 {
			return
		}
	}
}

// reader reads for followers on a node for ever: pieces of most bytes, of which there
// are size.
func (p *pacedCatchUp) reader(t *testing.T, node uint32, most, size int, read *int64) {
	var again func()
	again = func() {
		require.True(t, p.begin(false))
		p.paced(node, most, func(bool) int {
			*read += int64(size)
			p.after(time.Microsecond, again) // the follower asks for more
			return size
		})
	}
	again()
}

// While producers write, followers that lag get 8 MiB a second together, piece by piece
// and nothing on account; while nobody writes, all they can take.
func TestCatchUpKeepsToItsRate(t *testing.T) {
	p := newPacedCatchUp()
	read := 0
	ask := func() {
		require.True(t, p.begin(false))
		p.paced(2, 1<<20, func(bool) int { read++; return 1 << 20 })
	}
	for range 1000 {
		ask()
	}
	require.Equal(t, 1000, read, "nobody writes")
	p.arrives = 1000
	p.pass(time.Minute)
	ask()
	require.Equal(t, 1001, read, "what was not used for a minute is one piece")
	for range catchUpStreams {
		ask()
	}
	p.pass(time.Second/8 - 1)
	require.Equal(t, 1001, read)
	for i := range catchUpStreams {
		p.pass(time.Second / 8)
		require.Equal(t, 1002+i, read)
	}
	for range catchUpStreams {
		ask()
	}
	p.stop()
	require.Equal(t, 1001+2*catchUpStreams, read, "nothing waits for its time when the broker stops")
	require.False(t, p.begin(false))
}

// A second after the last record there is no limit any more.
func TestCatchUpHurriesWhenNobodyWrites(t *testing.T) {
	p := newPacedCatchUp()
	p.arrives = 1 << 20
	p.pass(time.Second)
	var read int64
	for range catchUpStreams {
		p.reader(t, 2, 512<<10, 512<<10, &read)
	}
	p.pass(10 * time.Second)
	require.InDelta(t, 80<<20, read, 1<<20)
	p.arrives = 0
	before := read
	p.submit = func(f func()) { // what begins from here on is a hundred reads at most
		if read < before+100<<20 {
			f()
		}
	}
	p.pass(2 * time.Second)
	require.GreaterOrEqual(t, read, before+100<<20)
}

// What a read has not found costs nothing: 2,000 partitions that are a little behind do
// not take the time of as many whole pieces.
func TestCatchUpChargesWhatWasRead(t *testing.T) {
	p := newPacedCatchUp()
	p.arrives = 1000
	p.pass(time.Minute)
	var read int64
	for range catchUpStreams {
		p.reader(t, 2, 512<<10, 8<<10, &read)
	}
	p.pass(10 * time.Second)
	require.InDelta(t, 80<<20, read, 1<<20)
}

// However much producers write, a follower gets more: it catches up.
func TestCatchUpIsFasterThanProducers(t *testing.T) {
	gains := func(t *testing.T, p *pacedCatchUp, arrives int64) int64 {
		p.arrives = arrives
		p.pass(time.Second)
		var read int64
		p.reader(t, 2, 512<<10, 512<<10, &read)
		p.pass(2 * time.Second) // what they write was measured
		before := read
		p.pass(10 * time.Second)
		return read - before - 10*arrives
	}
	for _, arrives := range []int64{1000, 1 << 20, 10 << 20, 11 << 20, 64 << 20, 1 << 30} {
		gained := gains(t, newPacedCatchUp(), arrives)
		require.Greater(t, gained, 4*arrives, "%d bytes a second, in ten seconds", arrives)
		require.GreaterOrEqual(t, gained, int64(49<<20), "%d bytes a second", arrives)
	}
	// The same check on a catchUp that does not see what producers write beyond its rate,
	// as it was.
	p := newPacedCatchUp()
	p.arrived = func() uint64 { return uint64(p.bytes) / 1000 }
	require.Negative(t, gains(t, p, 64<<20))
}

// Two followers of the same partitions that lag each get more than is written, as do as
// many as a partition has: a voter that came back, and a learner that is being added.
func TestCatchUpIsFasterThanProducersForEveryFollower(t *testing.T) {
	const arrives = 64 << 20
	gains := func(t *testing.T, nodes ...uint32) (least int64) {
		p := newPacedCatchUp()
		p.arrives = arrives
		p.pass(2 * time.Second) // what they write was measured
		read := make([]int64, len(nodes))
		for i, node := range nodes {
			p.reader(t, node, 512<<10, 512<<10, &read[i])
		}
		p.pass(10 * time.Second)
		return slices.Min(read) - 10*arrives
	}
	require.Greater(t, gains(t, 2, 3), int64(4*arrives))
	require.Greater(t, gains(t, 2, 3, 4, 5, 6, 7, 8), int64(4*arrives))
	// The same check where two followers count as one, as they did.
	require.Negative(t, gains(t, 2, 2))
}

// A node counts while its replicas read or wait for their time, and for a second after;
// beyond the replicas of a partition one more does not.
func TestCatchUpCountsTheNodesThatRead(t *testing.T) {
	p := newPacedCatchUp()
	rate := func() int64 { // MiB a second
		p.mu.Lock()
		defer p.mu.Unlock()
		return p.rateLocked() >> 20
	}
	p.arrives = 16 << 20
	p.pass(2 * time.Second)
	require.EqualValues(t, 24, rate(), "nobody lags")
	waits := func(node uint32) {
		require.True(t, p.begin(true))
		p.paced(node, 512<<10, func(bool) int { return 512 << 10 })
	}
	waits(0)
	require.EqualValues(t, 24, rate(), "a repair is no follower")
	waits(2)
	waits(2)
	require.EqualValues(t, 24, rate())
	waits(3)
	require.EqualValues(t, 48, rate())
	for node := uint32(4); node < 40; node++ {
		waits(node)
	}
	require.EqualValues(t, 7*24, rate(), "the replicas of a partition are the limit")
	p.pass(3 * time.Second)
	require.Empty(t, p.waiting)
	require.EqualValues(t, 24, rate(), "all were served more than a second ago")
	require.Empty(t, p.readers)

	p.arrives = 1000 // 8 MiB a second: nine reads of 4 MiB wait for four seconds
	p.pass(2 * time.Second)
	for node := uint32(2); node < 11; node++ {
		require.True(t, p.begin(true))
		p.paced(node, catchUpCharge, func(bool) int { return catchUpCharge })
	}
	p.pass(3 * time.Second / 2)
	require.NotEmpty(t, p.waiting)
	require.Contains(t, p.readers, uint32(10), "it waits for longer than a second")
	require.NotContains(t, p.readers, uint32(2))
	p.stop()
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
	c := newCatchUp(newBlockingPool(catchUpStreams), func() uint64 { return 0 }, nil)
	var later []func()
	c.submit = func(f func()) { later = append(later, f) }
	g := lagging{catchUp: c, inbox: replication.NewInbox(nil), owner: &owner{turns: &turnPool{}}}
	for range catchUpStreams {
		require.True(t, g.Read(l, 2, 7, 1, 1<<20))
	}
	require.False(t, g.Read(l, 2, 7, 1, 1<<20), "the group asks again")
	require.Len(t, later, catchUpStreams)
	for _, f := range later {
		f()
	}
	c.done.Wait()
	require.True(t, g.Read(l, 2, 7, 1, 1<<20))
	later[len(later)-1]()
	c.stop()
	require.False(t, g.Read(l, 2, 7, 1, 1<<20), "the logs are about to be closed")
}

func TestCatchUpFetchesCheckpoints(t *testing.T) {
	l := openTestLog(t)
	asked := make(chan wire.PeerFetch, 1)
	answer := func(then func(wire.ErrorCode, []byte)) { then(wire.CodeOK, []byte("content")) }
	c := newCatchUp(newBlockingPool(1), func() uint64 { return 0 }, func(node uint32, op wire.PeerOp, body []byte, then func(wire.ErrorCode, []byte)) {
		require.Equal(t, uint32(7), node)
		require.Equal(t, wire.PeerFetchCheckpoint, op)
		var m wire.PeerFetch
		require.NoError(t, m.Parse(body))
		asked <- m
		answer(then)
	})
	turns := &turnPool{}
	g := lagging{catchUp: c, meta: true, inbox: replication.NewInbox(nil), owner: &owner{turns: turns}}
	g.fetch(7, replication.SnapshotOffer{From: 3, To: 4, Applied: 9})
	require.Equal(t, wire.PeerFetch{Meta: true, Replica: 3, From: 9}, <-asked)
	require.Len(t, turns.queue, 1)

	var code wire.ErrorCode
	c.checkpoint(&owner{}, l, 1, func(c wire.ErrorCode, _ []byte) { code = c })
	require.Equal(t, wire.CodeRetry, code, "there is none yet")
	require.False(t, errors.Is(code, wire.CodeOK))
}
