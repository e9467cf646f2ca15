package server

import (
	"path"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/vfs"
	"github.com/lockstepmq/lockstep/wire"
)

// RELIABILITY F13: a range of one partition that the disk does not deliver holds
// up its own readers. Others, cold or warm, and lookups by offset and time go on,
// however many links wait for the stalled one.
func TestF13_AStalledReadHoldsUpItsOwnPartitionOnly(t *testing.T) {
	disk := vfs.NewSimulated(1)
	dir := t.TempDir() // a real one, for the loops' socket
	require.NoError(t, disk.MkdirAll(dir))
	cfg := Config{
		DataDir: dir, Listen: "127.0.0.1:0", HTTP: "off", MinFreeBytes: -1,
		fs: disk, memoryFS: vfs.NewMemory(func(int64) error { return nil }), bootID: "boot",
	}
	start := func() *Server {
		s, err := Start(t.Context(), cfg)
		require.NoError(t, err)
		return s
	}
	s := start()
	ids := map[string][16]byte{}
	c := dialOpen(t, s.Addr())
	batch, _ := testBatch(t, strings.Repeat("x", 10_000))
	for i, name := range []string{"stalled", "cold", "warm"} {
		c.send(wire.OpCreate, uint32(10+i), &wire.CreateRequest{Name: name, Kind: wire.Topic, Settings: wire.Settings{
			Partitions: 1, RetentionTimeMs: wire.Unlimited, RetentionBytes: wire.Unlimited,
		}})
		var info wire.DestinationInfo
		c.ok(c.answer(uint32(10+i)), &info)
		ids[name] = info.ID
		c.send(wire.OpProduce, 5, &wire.ProduceRequest{Handle: c.open(name, 0), Acks: wire.AcksQuorum, Batch: batch})
		require.Equal(t, wire.CodeOK, c.answer(5).code())
	}
	require.NoError(t, s.Close(t.Context()))

	s = start() // now everything is cold
	defer func() { require.NoError(t, s.Close(t.Context())) }()
	reader := func(name string) func() {
		c := dialOpen(t, s.Addr())
		got := &streamed{}
		links := map[uint32]*streamed{c.link(c.open(name, 0), 0, 1<<20): got}
		return func() {
			c.stream(links, func() bool { return got.ends > 0 })
			require.Greater(t, len(got.bytes), 10_000)
		}
	}
	reader("warm")()
	stalled := make(chan struct{})
	release := sync.OnceFunc(func() { close(stalled) })
	defer release()
	var inside atomic.Int32
	directory := path.Base(s.broker.partitionDir(wire.StorageDisk, ids["stalled"], 0))
	disk.Inject(func(op vfs.Op, name string) error {
		if op == vfs.OpPopulate && strings.Contains(name, directory) {
			inside.Add(1)
			<-stalled
		}
		return nil
	})
	for range 3 {
		c := dialOpen(t, s.Addr())
		h := c.open("stalled", 0)
		for id := range uint32(40) {
			c.send(wire.OpLinkOpen, 100+id, &wire.LinkOpenRequest{Handle: h, Credit: 1 << 20})
		}
	}
	eventually(t, "a stalled read", func() bool { return inside.Load() > 0 })

	reader("cold")()
	reader("warm")()
	healthy := dialOpen(t, s.Addr())
	h := healthy.open("cold", 0)
	healthy.send(wire.OpListOffsets, 6, &wire.ListOffsetsRequest{Handle: h, Kind: wire.OffsetAtTime, TimeMs: 1})
	require.Equal(t, wire.CodeOK, healthy.answer(6).code())
	healthy.send(wire.OpProduce, 7, &wire.ProduceRequest{Handle: h, Acks: wire.AcksQuorum, Batch: batch})
	require.Equal(t, wire.CodeOK, healthy.answer(7).code())
	require.LessOrEqual(t, inside.Load(), int32(defaultReadWorkers/lineShare))
	release()
	reader("stalled")()
}

// One session with many links has its share of the workers at work and no more.
func TestASessionHasItsShareOfTheReadWorkers(t *testing.T) {
	n := startNode(t, Limits{}, func(o *engineOptions) { o.ReadWorkers = 6 })
	n.backend.create(wire.Topic, "events", 8)
	located := make(chan struct{})
	var locating atomic.Int32
	for i := range uint32(8) {
		r := n.backend.replica("events", i)
		r.set(func() { r.locate = located })
	}
	counted := func() { locating.Add(1) }
	n.backend.blocking.Store(&counted)
	c := dialOpen(t, n.address)
	for i := range uint32(8) {
		h := c.open("events", i)
		for j := range uint32(5) {
			c.send(wire.OpLinkOpen, 100+10*i+j, &wire.LinkOpenRequest{Handle: h, Credit: 1})
		}
	}
	c.send(wire.OpPing, 5, &wire.PingRequest{})
	require.Equal(t, wire.CodeOK, c.answer(5).code())
	require.EqualValues(t, 3, locating.Load())
	close(located)
	for i := range uint32(8) {
		for j := range uint32(5) {
			require.Equal(t, wire.CodeOK, c.answer(100+10*i+j).code())
		}
	}
	require.EqualValues(t, 40, locating.Load())
}

// A session that ends while its reads wait forgets them.
func TestReadsOfAnEndedSessionAreForgotten(t *testing.T) {
	n := startNode(t, Limits{}, func(o *engineOptions) { o.ReadWorkers = 2 })
	n.backend.create(wire.Topic, "events", 1)
	r := n.backend.replica("events", 0)
	located := make(chan struct{})
	r.set(func() { r.locate = located })
	var started atomic.Int32
	counted := func() { started.Add(1) }
	n.backend.blocking.Store(&counted)
	c := dialOpen(t, n.address)
	h := c.open("events", 0)
	for id := range uint32(10) {
		c.send(wire.OpLinkOpen, 100+id, &wire.LinkOpenRequest{Handle: h, Credit: 1})
	}
	c.send(wire.OpPing, 5, &wire.PingRequest{})
	require.Equal(t, wire.CodeOK, c.answer(5).code())
	c.conn.SetLinger(0)
	c.conn.Close()
	eventually(t, "end of the session", func() bool { return n.engine.counters.sessions.Load() == 0 })
	close(located)
	again := dialOpen(t, n.address)
	again.link(again.open("events", 0), 0, 1)
	require.EqualValues(t, 2, started.Load(), "one of the first session, one of the second")
}
