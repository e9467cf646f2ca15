package server

import (
	"flag"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/wire"
)

var temporaryQueues = flag.Int("temporary.queues", 10_000, "how many temporary queues are made and gone")

// makeTemporary creates a temporary queue on a connection.
func (c *rawClient) makeTemporary(token byte, grace time.Duration) (m wire.TemporaryOpenResponse) {
	c.send(wire.OpTempOpen, 7, &wire.TemporaryOpenRequest{Token: [16]byte{token}, GraceMs: uint32(grace.Milliseconds())})
	c.ok(c.answer(7), &m)
	return m
}

// sendTemporary sends a batch to one and returns the answer.
func (c *rawClient) sendTemporary(name string, batch []byte) wire.ErrorCode {
	c.send(wire.OpTempSend, 8, &wire.TemporarySendRequest{Name: name, Batch: batch})
	return c.answer(8).code()
}

// outlived reports whether a temporary queue can be sent to although its connection has
// ended, the one without a grace and the one whose grace is over.
func outlived(t *testing.T, n *testNode) bool {
	owner, other := dialOpen(t, n.address), dialOpen(t, n.address)
	batch, _ := testBatch(t, "a")
	short, long := owner.makeTemporary(1, 0), owner.makeTemporary(2, time.Millisecond)
	require.Equal(t, wire.CodeOK, other.sendTemporary(short.Name, batch))
	require.NoError(t, owner.conn.Close())
	eventually(t, "the end of the session", func() bool { return n.engine.counters.sessions.Load() == 1 })
	n.engine.temporaries.expire(n.engine.now() + time.Second)
	codes := []wire.ErrorCode{other.sendTemporary(short.Name, batch), other.sendTemporary(long.Name, batch)}
	if codes[0] == wire.CodeDestinationGone {
		require.Equal(t, wire.CodeDestinationGone, codes[1])
		require.Zero(t, n.engine.temporaries.len())
		require.Zero(t, n.engine.temporaries.bytes.Load())
		return false
	}
	return true
}

func TestR_WLS_4_ATemporaryQueueEndsWithItsConnection(t *testing.T) {
	require.False(t, outlived(t, startNode(t, Limits{})))
}

func TestR_WLS_4_Catches_QueuesThatStay(t *testing.T) {
	n := startNode(t, Limits{}, func(o *engineOptions) { o.temporary.immortal = true })
	require.True(t, outlived(t, n))
}

// stolen reports whether somebody gets what is in a temporary queue by its name alone.
func stolen(t *testing.T, n *testNode) bool {
	q := dialOpen(t, n.address).makeTemporary(1, time.Minute)
	thief := dialOpen(t, n.address)
	thief.send(wire.OpTempOpen, 9, &wire.TemporaryOpenRequest{Name: q.Name, Token: [16]byte{2}})
	code := thief.answer(9).code()
	if code != wire.CodeOK {
		require.Equal(t, wire.CodeNotOwner, code)
	}
	return code == wire.CodeOK
}

func TestR_WLS_4_OnlyWhoMadeATemporaryQueueReceives(t *testing.T) {
	require.False(t, stolen(t, startNode(t, Limits{})))
}

func TestR_WLS_4_Catches_QueuesThatAnybodyTakes(t *testing.T) {
	n := startNode(t, Limits{}, func(o *engineOptions) { o.temporary.unasked = true })
	require.True(t, stolen(t, n))
}

// flooded sends to a consumer that takes nothing, and reports whether the node holds more
// than it may.
func flooded(t *testing.T, n *testNode) bool {
	owner, sender := dialOpen(t, n.address), dialOpen(t, n.address)
	q := owner.makeTemporary(1, 0)
	batch, _ := testBatch(t, strings.Repeat("x", 10_000))
	code := wire.CodeOK
	for range 20 {
		if code = sender.sendTemporary(q.Name, batch); code != wire.CodeOK {
			break
		}
	}
	if code == wire.CodeOK {
		return n.engine.temporaries.bytes.Load() > 100_000
	}
	require.Equal(t, wire.CodePartitionFull, code)
	require.LessOrEqual(t, n.engine.temporaries.bytes.Load(), int64(100_000))
	owner.send(wire.OpTempTaken, q.Link, &wire.TemporaryTaken{Next: 5})
	eventually(t, "room", func() bool { return sender.sendTemporary(q.Name, batch) == wire.CodeOK })
	return false
}

func TestATemporaryQueueIsBounded(t *testing.T) {
	require.False(t, flooded(t, startNode(t, Limits{TemporaryBytes: 100_000})))
}

func TestATemporaryQueueIsBounded_Catches_Hoarding(t *testing.T) {
	n := startNode(t, Limits{TemporaryBytes: 100_000}, func(o *engineOptions) { o.temporary.hoards = true })
	require.True(t, flooded(t, n))
}

// What is on its way to a consumer has a window; the rest follows when it has taken some.
func TestATemporaryQueueSendsWithinItsWindow(t *testing.T) {
	n := startNode(t, Limits{})
	owner, sender := dialOpen(t, n.address), dialOpen(t, n.address)
	q := owner.makeTemporary(1, 0)
	batch, _ := testBatch(t, strings.Repeat("x", 100_000))
	for range 5 {
		require.Equal(t, wire.CodeOK, sender.sendTemporary(q.Name, batch))
	}
	next := wire.Offset(0)
	for next < 5 {
		var m wire.TemporaryDeliver
		f := owner.read()
		require.Equal(t, wire.OpTempDeliver, f.Opcode)
		require.NoError(t, m.Parse(f.body))
		require.Equal(t, next, m.Base)
		require.Equal(t, batch, m.Batch)
		if next++; next == 2 { // a third does not fit
			require.Equal(t, wire.CodeOK, owner.sendTemporary(q.Name, batch), "its answer would follow a third")
		}
		owner.send(wire.OpTempTaken, q.Link, &wire.TemporaryTaken{Next: next})
	}
}

func TestBadRequestsForTemporaryQueues(t *testing.T) {
	n := startNode(t, Limits{TemporaryQueues: 2, NodeTemporaryQueues: 3, NodeTemporaryBytes: 5000})
	c := dialOpen(t, n.address)
	a, b := c.makeTemporary(1, 0), c.makeTemporary(2, 0)
	open := func(c *rawClient, m wire.TemporaryOpenRequest) wire.ErrorCode {
		c.send(wire.OpTempOpen, 9, &m)
		return c.answer(9).code()
	}
	other := dialOpen(t, n.address)
	other.makeTemporary(3, 0)
	require.Equal(t, wire.CodeTooMany, open(c, wire.TemporaryOpenRequest{Token: [16]byte{3}}), "of a connection")
	require.Equal(t, wire.CodeTooMany, open(other, wire.TemporaryOpenRequest{Token: [16]byte{4}}), "of a node")
	require.Equal(t, wire.CodeInvalidRequest, open(other, wire.TemporaryOpenRequest{}), "no token")
	require.Equal(t, wire.CodeInvalidName, open(other, wire.TemporaryOpenRequest{Name: "orders", Token: [16]byte{1}}))
	require.Equal(t, wire.CodeDestinationGone, open(other, wire.TemporaryOpenRequest{Name: wire.TemporaryName(fakeNode, [16]byte{}), Token: [16]byte{1}}))

	batch, _ := testBatch(t, "a")
	require.Equal(t, wire.CodeInvalidName, c.sendTemporary("orders", batch))
	require.Equal(t, wire.CodeMalformed, c.sendTemporary(a.Name, batch[:20]))
	broken := append([]byte(nil), batch...)
	broken[len(broken)-1]++
	require.Equal(t, wire.CodeCorrupt, c.sendTemporary(a.Name, broken))
	large, _ := testBatch(t, strings.Repeat("x", wire.DefaultMaxRecordBytes))
	require.Equal(t, wire.CodeTooLarge, c.sendTemporary(a.Name, large))
	full, _ := testBatch(t, strings.Repeat("x", 3000))
	require.Equal(t, wire.CodeOK, other.sendTemporary(a.Name, full))
	require.Equal(t, wire.CodeMemoryFull, other.sendTemporary(b.Name, full), "all queues together")
	require.Equal(t, wire.CodeOK, other.sendTemporary(b.Name, batch))

	c.send(wire.OpTempTaken, 4711, &wire.TemporaryTaken{Next: 1}) // of no link
	c.send(wire.OpOpenPartition, 5, &wire.OpenPartitionRequest{Destination: a.Name})
	require.Equal(t, wire.CodeInvalidRequest, c.answer(5).code())
	c.send(wire.OpCreate, 6, &wire.CreateRequest{Name: a.Name, Kind: wire.Queue, Settings: wire.Settings{Partitions: 1}})
	require.Equal(t, wire.CodeInvalidName, c.answer(6).code())
}

// Ten thousand come and go: what they took is given back, and the metadata has not heard of
// them.
func TestTemporaryQueuesLeaveNothing(t *testing.T) {
	n := startNode(t, Limits{})
	batch, _ := testBatch(t, strings.Repeat("x", 1000))
	sender := dialOpen(t, n.address)
	before := n.backend.View()
	heap := func() int64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	warm := dialOpen(t, n.address)
	warm.makeTemporary(1, 0)
	require.NoError(t, warm.conn.Close())
	eventually(t, "none", func() bool { return n.engine.temporaries.len() == 0 })
	was := heap()
	for made := 0; made < *temporaryQueues; {
		owner := dialOpen(t, n.address)
		for range min(1000, *temporaryQueues-made) {
			q := owner.makeTemporary(1, 0)
			if made++; made%10 == 0 {
				require.Equal(t, wire.CodeOK, sender.sendTemporary(q.Name, batch))
			}
		}
		require.NoError(t, owner.conn.Close())
	}
	eventually(t, "none", func() bool { return n.engine.temporaries.len() == 0 && n.engine.counters.sessions.Load() == 1 })
	require.Zero(t, n.engine.temporaries.bytes.Load())
	require.Same(t, before, n.backend.View())
	grown := heap() - was
	t.Logf("%d temporary queues: the heap grew by %d bytes", *temporaryQueues, grown)
	require.Less(t, grown, int64(2<<20), "of 10,000 queues")
}

// One connection has ten thousand, with and without a grace, and dies: all go, those with a
// grace when it is over and not before, unless they were taken up again.
func TestR_WLS_4_AllQueuesOfAConnectionEndWithIt(t *testing.T) {
	n := startNode(t, Limits{TemporaryQueues: *temporaryQueues, Links: *temporaryQueues})
	owner, other := dialOpen(t, n.address), dialOpen(t, n.address)
	batch, _ := testBatch(t, "a")
	var short, long, taken wire.TemporaryOpenResponse
	for i := range *temporaryQueues {
		switch q := owner.makeTemporary(1, time.Duration(i%2)*time.Minute); i {
		case 0:
			short = q
		case 1:
			long = q
		case 3:
			taken = q
		}
	}
	for _, q := range []wire.TemporaryOpenResponse{short, long, taken} {
		require.Equal(t, wire.CodeOK, other.sendTemporary(q.Name, batch))
	}
	require.NoError(t, owner.conn.Close())
	q := &n.engine.temporaries
	eventually(t, "the end of the session", func() bool { return q.len() == *temporaryQueues/2 })
	require.Equal(t, wire.CodeDestinationGone, other.sendTemporary(short.Name, batch))
	q.expire(n.engine.now() + 30*time.Second)
	require.Equal(t, *temporaryQueues/2, q.len(), "their grace is not over")
	require.Equal(t, wire.CodeOK, other.sendTemporary(long.Name, batch))
	heir := dialOpen(t, n.address)
	heir.send(wire.OpTempOpen, 9, &wire.TemporaryOpenRequest{Name: taken.Name, Token: [16]byte{1}})
	require.Equal(t, wire.CodeOK, heir.answer(9).code())
	q.expire(n.engine.now() + 2*time.Minute)
	require.Equal(t, 1, q.len())
	require.Equal(t, wire.CodeDestinationGone, other.sendTemporary(long.Name, batch))
	require.Equal(t, wire.CodeOK, other.sendTemporary(taken.Name, batch))
	require.NoError(t, heir.conn.Close())
	eventually(t, "the end of the heir", func() bool { return n.engine.counters.sessions.Load() == 1 })
	q.expire(n.engine.now() + 2*time.Minute)
	require.Equal(t, wire.CodeDestinationGone, other.sendTemporary(taken.Name, batch))
	require.Zero(t, q.len())
	require.Zero(t, q.bytes.Load())
	q.mu.Lock()
	defer q.mu.Unlock()
	require.Zero(t, q.alone)
}
