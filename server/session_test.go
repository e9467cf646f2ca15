package server

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/lockstepmq/lockstep/wire"
)

// leaks checks that a node leaves no goroutine. gnet's pool of goroutines lives
// as long as the process.
func leaks(t *testing.T) {
	options := []goleak.Option{
		goleak.IgnoreCurrent(),
		goleak.IgnoreAnyFunction("github.com/panjf2000/ants/v2.(*goWorker).run.func1"),
		goleak.IgnoreAnyFunction("github.com/panjf2000/ants/v2.(*poolCommon).ticktock"),
		goleak.IgnoreAnyFunction("github.com/panjf2000/ants/v2.(*poolCommon).purgeStaleWorkers"),
	}
	t.Cleanup(func() { goleak.VerifyNone(t, options...) })
}

func TestHelloTellsWhoWeAreAndWhatIsAllowed(t *testing.T) {
	leaks(t)
	n := startNode(t, Limits{InFlightRequests: 7, InFlightBytes: 1 << 20, IdleTimeout: 3 * time.Second})
	c := dialRaw(t, n.address)
	c.write([]byte(wire.Preface))
	c.send(wire.OpHello, 9, &wire.HelloRequest{MinVersion: 1, MaxVersion: 5, Features: 1 << 40, ClusterID: n.backend.clusterID.String()})
	var m wire.HelloResponse
	c.ok(c.answer(9), &m)
	require.Equal(t, wire.HelloResponse{
		Version: 1, ClusterID: n.backend.clusterID.String(), NodeID: fakeNode, ServerVersion: "test",
		MaxFrameBytes: wire.MaxFrameBytes, MaxRecordBytes: wire.MaxRecordBytes, MaxInFlightRequests: 7, MaxInFlightBytes: 1 << 20,
		IdleTimeoutMs: 3000, Opcodes: wire.SupportedOpcodes(),
	}, m)
	c.send(wire.OpPing, 10, &wire.PingRequest{})
	require.Equal(t, wire.CodeOK, c.answer(10).code())
}

func TestProduceIsAnsweredInlineWithoutWakingTheLoop(t *testing.T) {
	n := startNode(t, Limits{})
	n.backend.create(wire.Topic, "events", 1)
	c := dialOpen(t, n.address)
	h := c.open("events", 0)
	triggers := n.engine.counters.triggers.Load()
	batch, _ := testBatch(t, "a", "b", "c")
	for i := range uint32(10) {
		c.send(wire.OpProduce, 100+i, &wire.ProduceRequest{Handle: h, Acks: wire.AcksQuorum, Batch: batch})
		var receipt wire.Receipt
		c.ok(c.answer(100+i), &receipt)
		require.Equal(t, wire.Receipt{Handle: h, BaseOffset: wire.Offset(3 * i), Epoch: 1, AppendTimeMs: 1, Replicas: 1}, receipt)
	}
	r := n.backend.replica("events", 0)
	inline, handed := r.turns()
	require.Equal(t, 10, inline)
	require.Zero(t, handed)
	// Ticks wake the loop ten times a second; answers did not.
	require.LessOrEqual(t, n.engine.counters.triggers.Load()-triggers, uint64(5))
}

func TestProduceOfManyPartitionsInOneReadKicksEachOnce(t *testing.T) {
	n := startNode(t, Limits{})
	n.backend.create(wire.Topic, "events", 4)
	c := dialOpen(t, n.address)
	batch, _ := testBatch(t, "x")
	var b []byte
	handles := make([]uint32, 4)
	for p := range handles {
		handles[p] = c.open("events", uint32(p))
	}
	for i := range uint32(40) {
		b = append(b, frameOf(wire.OpProduce, 200+i, &wire.ProduceRequest{Handle: handles[i%4], Acks: wire.AcksLeader, Batch: batch})...)
	}
	c.write(b)
	for i := range uint32(40) {
		require.Equal(t, wire.CodeOK, c.answer(200+i).code())
	}
	for p := range uint32(4) {
		r := n.backend.replica("events", p)
		require.EqualValues(t, 10, r.info().NextOffset)
		inline, handed := r.turns()
		require.LessOrEqual(t, inline+handed, 2, "one kick for each read, and 40 small frames are one read or two")
	}
}

func TestRecordsOfManySessionsShareATurn(t *testing.T) {
	n := startNode(t, Limits{}, func(o *engineOptions) { o.Loops = 1 })
	n.backend.create(wire.Topic, "events", 1)
	batch, _ := testBatch(t, "x")
	clients := make([]*rawClient, 20)
	handles := make([]uint32, len(clients))
	for i := range clients {
		clients[i] = dialOpen(t, n.address)
		handles[i] = clients[i].open("events", 0)
	}
	var l *loop
	n.engine.mu.Lock()
	for _, only := range n.engine.loops {
		l = only
	}
	n.engine.mu.Unlock()
	entered, leave := make(chan struct{}), make(chan struct{})
	l.post(func() { close(entered); <-leave })
	<-entered
	for i, c := range clients {
		c.send(wire.OpProduce, 7, &wire.ProduceRequest{Handle: handles[i], Acks: wire.AcksQuorum, Batch: batch})
	}
	close(leave) // all sockets are ready by now
	for _, c := range clients {
		require.Equal(t, wire.CodeOK, c.answer(7).code())
	}
	r := n.backend.replica("events", 0)
	require.EqualValues(t, 20, r.info().NextOffset)
	inline, handed := r.turns()
	require.Zero(t, handed)
	require.LessOrEqual(t, inline, 2, "one turn for all that were ready together")
	require.Positive(t, n.engine.counters.gatheredKicks.Load())
}

func TestFramesArriveCutAnywhere(t *testing.T) {
	n := startNode(t, Limits{})
	n.backend.create(wire.Topic, "events", 1)
	batch, _ := testBatch(t, strings.Repeat("long ", 50))
	stream := []byte(wire.Preface)
	stream = append(stream, frameOf(wire.OpHello, 1, &wire.HelloRequest{MinVersion: 1, MaxVersion: 1})...)
	stream = append(stream, frameOf(wire.OpOpenPartition, 2, &wire.OpenPartitionRequest{Destination: "events"})...)
	for i := range uint32(3) {
		stream = append(stream, frameOf(wire.OpProduce, 3+i, &wire.ProduceRequest{Handle: 1, Acks: wire.AcksQuorum, Batch: batch})...)
	}
	for _, step := range []int{1, 3, 16, 17, 100, 333} {
		c := dialRaw(t, n.address)
		go func() {
			for rest := stream; len(rest) > 0; {
				k := min(step, len(rest))
				if _, err := c.conn.Write(rest[:k]); err != nil {
					return
				}
				rest = rest[k:]
			}
		}()
		for id := uint32(1); id <= 5; id++ {
			require.Equal(t, wire.CodeOK, c.answer(id).code(), "step %d, request %d", step, id)
		}
		c.conn.Close()
	}
	require.EqualValues(t, 18, n.backend.replica("events", 0).info().NextOffset)
}

func TestAFrameOfTheLargestSizeArrives(t *testing.T) {
	n := startNode(t, Limits{})
	n.backend.create(wire.Topic, "events", 1)
	c := dialOpen(t, n.address)
	h := c.open("events", 0)
	var values []string
	for range 7 {
		values = append(values, strings.Repeat("v", 1<<20-100))
	}
	batch, _ := testBatch(t, values...)
	before := n.engine.counters.handedKicks.Load()
	c.send(wire.OpProduce, 5, &wire.ProduceRequest{Handle: h, Acks: wire.AcksQuorum, Batch: batch})
	require.Equal(t, wire.CodeOK, c.answer(5).code())
	require.Equal(t, before+1, n.engine.counters.handedKicks.Load(), "so much is a worker's task")
}

func TestAdministrationAndMetadata(t *testing.T) {
	n := startNode(t, Limits{})
	c := dialOpen(t, n.address)
	settings := wire.Settings{Partitions: 2, RetentionTimeMs: wire.Unlimited, RetentionBytes: wire.Unlimited}
	c.send(wire.OpCreate, 2, &wire.CreateRequest{Name: "orders", Kind: wire.Queue, Settings: settings})
	var created wire.DestinationInfo
	c.ok(c.answer(2), &created)
	require.Equal(t, "orders", created.Name)
	require.Len(t, created.Partitions, 2)
	c.send(wire.OpCreate, 3, &wire.CreateRequest{Name: "orders", Kind: wire.Queue, Settings: settings})
	require.Equal(t, wire.CodeAlreadyExists, c.answer(3).code())
	c.send(wire.OpMetadata, 4, &wire.MetadataRequest{Scope: wire.MetadataAll})
	var all wire.MetadataResponse
	c.ok(c.answer(4), &all)
	require.Equal(t, []wire.Node{{ID: 1, Address: "127.0.0.1:7400", Alive: true}}, all.Nodes)
	require.Len(t, all.Destinations, 1)
	require.Equal(t, created.ID, all.Destinations[0].ID)
	c.send(wire.OpMetadata, 5, &wire.MetadataRequest{Scope: wire.MetadataNamed, Names: []string{"nothing"}})
	var none wire.MetadataResponse
	c.ok(c.answer(5), &none)
	require.Empty(t, none.Destinations)
	c.send(wire.OpInitProducer, 6, &wire.InitProducerRequest{})
	var producer wire.InitProducerResponse
	c.ok(c.answer(6), &producer)
	require.EqualValues(t, 1, producer.ProducerID)
	c.send(wire.OpDelete, 7, &wire.DeleteRequest{Name: "orders", Kind: wire.Queue, ID: created.ID})
	require.Equal(t, wire.CodeOK, c.answer(7).code())
	c.send(wire.OpOpenPartition, 8, &wire.OpenPartitionRequest{Destination: "orders"})
	require.Equal(t, wire.CodeUnknownDestination, c.answer(8).code())
}

// What METADATA costs is bounded by a page, however much is asked for.
func TestMetadataComesInPages(t *testing.T) {
	n := startNode(t, Limits{})
	var names []string
	for i := range 400 {
		name := fmt.Sprintf("a-destination-with-a-long-name-%03d", i)
		names = append(names, name)
		n.backend.create(wire.Topic, name, 8)
	}
	n.backend.create(wire.Topic, "wide", 1024)
	names = append(names, "wide")
	c := dialOpen(t, n.address)
	ask := func(request wire.MetadataRequest) (got []string, pages int) {
		for {
			c.send(wire.OpMetadata, 5, &request)
			f := c.answer(5)
			var m wire.MetadataResponse
			c.ok(f, &m)
			require.Equal(t, []wire.Node{{ID: 1, Address: "127.0.0.1:7400", Alive: true}}, m.Nodes)
			require.Less(t, len(f.body), 4*wire.MetadataPageBytes)
			for _, d := range m.Destinations {
				got = append(got, d.Name)
			}
			pages++
			if m.Next == "" {
				return got, pages
			}
			request.After = m.Next
		}
	}
	all, pages := ask(wire.MetadataRequest{Scope: wire.MetadataAll})
	require.Equal(t, names, all)
	require.Equal(t, 4, pages) // 400 × 501 bytes and one of 50 KB

	none, pages := ask(wire.MetadataRequest{Scope: wire.MetadataNodes})
	require.Empty(t, none)
	require.Equal(t, 1, pages)

	// A name given a thousand times is looked up and answered once: it was 44 MB.
	repeated := make([]string, wire.MaxMetadataNames)
	for i := range repeated {
		repeated[i] = "wide"
	}
	once, _ := ask(wire.MetadataRequest{Scope: wire.MetadataNamed, Names: repeated})
	require.Equal(t, []string{"wide"}, once)

	backwards := append([]string{"nothing", "also nothing"}, names...)
	slices.Reverse(backwards)
	named, pages := ask(wire.MetadataRequest{Scope: wire.MetadataNamed, Names: backwards})
	require.Equal(t, names, named)
	require.Equal(t, 4, pages)
}

func TestHandlesSurviveSettingsAndEndWithTheirDestination(t *testing.T) {
	n := startNode(t, Limits{Handles: 2})
	n.backend.create(wire.Queue, "orders", 3)
	c := dialOpen(t, n.address)
	h := c.open("orders", 0)
	require.Equal(t, h, c.open("orders", 0), "the same partition has the same handle")
	c.open("orders", 1)
	c.send(wire.OpOpenPartition, 3, &wire.OpenPartitionRequest{Destination: "orders", Partition: 2})
	require.Equal(t, wire.CodeTooMany, c.answer(3).code())

	batch, index := testBatch(t, "x")
	n.backend.create(wire.Queue, "another", 1) // a new view
	c.send(wire.OpProduce, 4, &wire.ProduceRequest{Handle: h, Acks: wire.AcksQuorum, Batch: batch, Index: index})
	require.Equal(t, wire.CodeOK, c.answer(4).code())
	c.send(wire.OpProduce, 5, &wire.ProduceRequest{Handle: h, Acks: wire.AcksQuorum, Batch: batch})
	require.Equal(t, wire.CodeInvalidRequest, c.answer(5).code(), "a queue needs the record index")

	n.backend.admin(&wire.DeleteRequest{Name: "orders", Kind: wire.Queue}, func(wire.Message, error) {})
	c.send(wire.OpProduce, 6, &wire.ProduceRequest{Handle: h, Acks: wire.AcksQuorum, Batch: batch, Index: index})
	require.Equal(t, wire.CodeDestinationGone, c.answer(6).code())
}

func TestRuleR7_KeyedProducesFollowTheSlotMap(t *testing.T) {
	n := startNode(t, Limits{})
	n.backend.create(wire.Topic, "events", 2)
	d, _ := n.backend.View().Destination("events")
	c := dialOpen(t, n.address)
	h := c.open("events", 1)
	batch, _ := testBatch(t, "x")
	produce := func(id uint32, slot uint16, version uint32) wire.ErrorCode {
		c.send(wire.OpProduce, id, &wire.ProduceRequest{Handle: h, Acks: wire.AcksQuorum, Batch: batch, Keyed: true, Slot: slot, SlotVersion: version})
		return c.answer(id).code()
	}
	require.Equal(t, wire.CodeOK, produce(2, wire.SlotCount-1, d.SlotVersion))
	require.Equal(t, wire.CodeWrongPartition, produce(3, 0, d.SlotVersion), "slot 0 belongs to partition 0")
	require.Equal(t, wire.CodeWrongPartition, produce(4, wire.SlotCount-1, d.SlotVersion+1))
	require.Equal(t, wire.CodeWrongPartition, produce(5, wire.SlotCount, d.SlotVersion))
}

func TestAcksNoneIsNeverAnswered(t *testing.T) {
	n := startNode(t, Limits{})
	n.backend.create(wire.Topic, "events", 1)
	c := dialOpen(t, n.address)
	h := c.open("events", 0)
	batch, _ := testBatch(t, "x")
	for range 5 {
		c.send(wire.OpProduce, 7, &wire.ProduceRequest{Handle: h, Acks: wire.AcksNone, Batch: batch})
	}
	c.send(wire.OpPing, 8, &wire.PingRequest{})
	require.EqualValues(t, 8, c.read().ID)
	r := n.backend.replica("events", 0)
	r.set(func() { r.full = true })
	c.send(wire.OpProduce, 7, &wire.ProduceRequest{Handle: h, Acks: wire.AcksNone, Batch: batch})
	c.send(wire.OpPing, 8, &wire.PingRequest{})
	require.EqualValues(t, 8, c.read().ID)
	require.Equal(t, uint64(1), n.engine.counters.unackedRefused.Load())
	require.EqualValues(t, 5, r.info().NextOffset)
}

func TestListOffsets(t *testing.T) {
	n := startNode(t, Limits{})
	n.backend.create(wire.Topic, "events", 1)
	r := n.backend.replica("events", 0)
	r.fill(10, 100)
	r.set(func() { r.start = 4 })
	c := dialOpen(t, n.address)
	h := c.open("events", 0)
	for id, want := range map[wire.OffsetKind]wire.Offset{wire.OffsetEarliest: 4, wire.OffsetLatest: 10, wire.OffsetAtTime: 4} {
		c.send(wire.OpListOffsets, uint32(10+id), &wire.ListOffsetsRequest{Handle: h, Kind: id})
		var m wire.ListOffsetsResponse
		c.ok(c.answer(uint32(10+id)), &m)
		require.Equal(t, want, m.Offset)
	}
}

func TestReadingPausesAtTheInFlightCapAndGoesOn(t *testing.T) {
	for _, test := range []struct {
		name   string
		limits Limits
	}{
		{"requests", Limits{InFlightRequests: 10}},
		{"bytes", Limits{InFlightBytes: 1000}},
	} {
		t.Run(test.name, func(t *testing.T) {
			n := startNode(t, test.limits)
			n.backend.create(wire.Topic, "events", 1)
			r := n.backend.replica("events", 0)
			r.set(func() { r.hold = true })
			c := dialOpen(t, n.address)
			h := c.open("events", 0)
			batch, _ := testBatch(t, "x")
			const requests = 20_000
			written := make(chan error, 1)
			go func() {
				var b []byte
				for i := range uint32(requests) {
					b = append(b, frameOf(wire.OpProduce, i, &wire.ProduceRequest{Handle: h, Acks: wire.AcksQuorum, Batch: batch})...)
				}
				_, err := c.conn.Write(b)
				written <- err
			}()
			eventually(t, "pause", func() bool { return n.engine.counters.paused.Load() == 1 })
			r.mu.Lock()
			waiting := len(r.mailbox)
			r.mu.Unlock()
			require.LessOrEqual(t, waiting, 12, "a request has about 90 bytes")
			// Nothing moves while nothing is answered, and another client is served.
			read := n.engine.counters.bytesIn.Load()
			other := dialOpen(t, n.address)
			other.send(wire.OpPing, 5, &wire.PingRequest{})
			require.Equal(t, wire.CodeOK, other.answer(5).code())
			require.Less(t, n.engine.counters.bytesIn.Load()-read, uint64(1000))

			r.release()
			for i := range uint32(requests) {
				f := c.read()
				require.Equal(t, i, f.ID)
				require.Equal(t, wire.CodeOK, f.code())
			}
			require.NoError(t, <-written)
			require.NotZero(t, n.engine.counters.pauses.Load())
			require.Zero(t, n.engine.counters.panics.Load())
		})
	}
}

func TestWithoutPausingAFloodIsClosedAtTheBound(t *testing.T) {
	n := startNode(t, Limits{InFlightRequests: 4, WriteTimeout: time.Second})
	n.backend.create(wire.Topic, "events", 1)
	r := n.backend.replica("events", 0)
	r.set(func() { r.hold = true })
	c := dialOpen(t, n.address)
	h := c.open("events", 0)
	changed := make(chan struct{})
	n.engine.eachSession(func(s *session) { // as if gnet had changed
		s.loop.epoll = -1
		close(changed)
	})
	<-changed // a socket paused before would stay so
	batch, _ := testBatch(t, strings.Repeat("x", 1000))
	frame := frameOf(wire.OpProduce, 0, &wire.ProduceRequest{Handle: h, Acks: wire.AcksLeader, Batch: batch})
	go func() {
		for id := range uint32(20_000) {
			wire.PutHeader(frame, wire.Header{Length: uint32(len(frame) - 4), Opcode: wire.OpProduce, Version: 1, ID: id})
			if _, err := c.conn.Write(frame); err != nil {
				return
			}
		}
	}()
	eventually(t, "answers and the end", func() bool {
		f, err := c.tryRead()
		return err != nil || f.code() == wire.CodeTooMany
	})
	r.release()
}

func TestAClientThatReadsNoRepliesIsPausedAndThenClosed(t *testing.T) {
	n := startNode(t, Limits{OutboxBytes: 64 << 10, WriteTimeout: time.Second})
	for i := range 100 {
		n.backend.create(wire.Topic, fmt.Sprintf("a-destination-with-a-long-name-%d", i), 4)
	}
	c := dialOpen(t, n.address)
	require.NoError(t, c.conn.SetReadBuffer(4096))
	go func() {
		request := frameOf(wire.OpMetadata, 3, &wire.MetadataRequest{Scope: wire.MetadataAll})
		for {
			if _, err := c.conn.Write(request); err != nil {
				return
			}
		}
	}()
	eventually(t, "pause", func() bool { return n.engine.counters.paused.Load() == 1 })
	healthy := dialOpen(t, n.address)
	healthy.send(wire.OpPing, 5, &wire.PingRequest{})
	require.Equal(t, wire.CodeOK, healthy.answer(5).code())
	eventually(t, "close at the write deadline", func() bool { return n.engine.counters.closed[closedWrite].Load() == 1 })
	require.Contains(t, n.log.String(), "write-timeout")
	require.EqualValues(t, 1, n.engine.counters.sessions.Load())
}

// A client that does not read costs nothing while it waits: it gets a turn when its
// socket takes more, and no other.
func TestAStuckSocketIsLeftAlone(t *testing.T) {
	n := startNode(t, Limits{OutboxBytes: 64 << 20})
	for i := range 100 {
		n.backend.create(wire.Topic, fmt.Sprintf("a-destination-with-a-long-name-%d", i), 8)
	}
	c := dialOpen(t, n.address)
	require.NoError(t, c.conn.SetReadBuffer(64<<10))
	const requests = 200
	var b []byte
	for i := range uint32(requests) {
		b = append(b, frameOf(wire.OpMetadata, 10+i, &wire.MetadataRequest{Scope: wire.MetadataAll})...)
	}
	c.write(b)
	awaiting := func() bool {
		found := make(chan bool, 1)
		n.engine.eachSession(func(s *session) { found <- s.awaiting.Load() && !s.drained() })
		return <-found
	}
	eventually(t, "a stuck socket", awaiting)
	out := n.engine.counters.bytesOut.Load()
	for range 20 {
		require.True(t, awaiting())
	}
	require.Equal(t, out, n.engine.counters.bytesOut.Load())
	for i := range uint32(requests) {
		require.Equal(t, 10+i, c.read().ID)
	}
	require.False(t, awaiting())
}

func TestUnfinishedFramesOfAllClientsAreBounded(t *testing.T) {
	n := startNode(t, Limits{InboundBytes: 3 << 20})
	head := wire.AppendHeader(nil, wire.Header{Length: wire.MaxFrameBytes, Opcode: wire.OpProduce, Version: 1, ID: 2})
	first := dialOpen(t, n.address)
	first.write(append(head, make([]byte, 1500<<10)...))
	eventually(t, "1.5 MiB", func() bool { return n.engine.counters.inbound.Load() == 2<<20 })
	second := dialOpen(t, n.address)
	second.write(append(head, make([]byte, 1500<<10)...))
	require.Equal(t, wire.CodeBusy, second.read().code())
	third := dialOpen(t, n.address) // who needs little is served all the same
	third.write(append(head, make([]byte, 2000<<10)...)[:50_000])
	eventually(t, "a kept beginning", func() bool { return n.engine.counters.inbound.Load() > 2<<20 })
	require.EqualValues(t, 1, n.engine.counters.errors[wire.CodeBusy].Load())
}

func TestRepliesOfAllClientsThatDoNotReadAreBounded(t *testing.T) {
	n := startNode(t, Limits{OutboundBytes: 200 << 10})
	for i := range 100 {
		n.backend.create(wire.Topic, fmt.Sprintf("a-destination-with-a-long-name-%d", i), 4)
	}
	c := dialOpen(t, n.address)
	go func() {
		request := frameOf(wire.OpMetadata, 3, &wire.MetadataRequest{Scope: wire.MetadataAll})
		for {
			if _, err := c.conn.Write(request); err != nil {
				return
			}
		}
	}()
	begin := time.Now()
	eventually(t, "close", func() bool { return n.engine.counters.closed[closedWrite].Load() == 1 })
	require.Less(t, time.Since(begin), n.engine.limits.WriteTimeout)
	require.Contains(t, n.log.String(), "replies to clients that do not read take")
}

func TestHalfCloseGetsItsReplies(t *testing.T) {
	for _, inline := range []bool{true, false} {
		t.Run(fmt.Sprintf("inline=%v", inline), func(t *testing.T) {
			n := startNode(t, Limits{})
			n.backend.create(wire.Topic, "events", 1)
			r := n.backend.replica("events", 0)
			r.set(func() { r.hold = !inline })
			c := dialOpen(t, n.address)
			h := c.open("events", 0)
			batch, _ := testBatch(t, "x")
			for i := range uint32(3) {
				c.send(wire.OpProduce, 10+i, &wire.ProduceRequest{Handle: h, Acks: wire.AcksQuorum, Batch: batch})
			}
			require.NoError(t, c.conn.CloseWrite())
			if !inline {
				eventually(t, "end of stream", func() bool { return n.engine.counters.halfClosed.Load() == 1 })
				r.release()
			}
			for i := range uint32(3) {
				require.Equal(t, wire.CodeOK, c.answer(10+i).code())
			}
			require.ErrorContains(t, c.closed(), "EOF")
			eventually(t, "end of the session", func() bool { return n.engine.counters.sessions.Load() == 0 })
		})
	}
}

// A link that is being opened when the client ends its side is answered too, and
// nothing stays in flight that a shutdown would wait for.
func TestHalfCloseGetsAnAnswerToALinkThatIsBeingOpened(t *testing.T) {
	n := startNode(t, Limits{})
	n.backend.create(wire.Topic, "events", 1)
	r := n.backend.replica("events", 0)
	located := make(chan struct{})
	r.set(func() { r.locate = located })
	c := dialOpen(t, n.address)
	h := c.open("events", 0)
	c.send(wire.OpLinkOpen, 5, &wire.LinkOpenRequest{Handle: h, Credit: 1 << 20})
	require.NoError(t, c.conn.CloseWrite())
	eventually(t, "end of stream", func() bool { return n.engine.counters.halfClosed.Load() == 1 })
	close(located)
	require.Equal(t, wire.CodeUnavailable, c.answer(5).code())
	require.ErrorContains(t, c.closed(), "EOF")
	eventually(t, "end of the session", func() bool { return n.engine.counters.sessions.Load() == 0 })
	require.Zero(t, n.engine.counters.inFlight.Load())
}

func TestHalfCloseGetsMoreRepliesThanTheSocketTakes(t *testing.T) {
	n := startNode(t, Limits{})
	for i := range 100 {
		n.backend.create(wire.Topic, fmt.Sprintf("a-destination-with-a-long-name-%d", i), 8)
	}
	c := dialOpen(t, n.address)
	require.NoError(t, c.conn.SetReadBuffer(256<<10))
	const requests = 200
	var b []byte
	for i := range uint32(requests) {
		b = append(b, frameOf(wire.OpMetadata, 10+i, &wire.MetadataRequest{Scope: wire.MetadataAll})...)
	}
	c.write(b)
	require.NoError(t, c.conn.CloseWrite())
	eventually(t, "a full socket", func() bool { return n.engine.counters.stalls.Load() > 0 })
	for i := range uint32(requests) {
		f := c.read()
		require.Equal(t, 10+i, f.ID)
		var m wire.MetadataResponse
		c.ok(f, &m)
		require.Len(t, m.Destinations, 100)
	}
	require.ErrorContains(t, c.closed(), "EOF")
}

func TestHalfCloseGetsWhatTheSocketDidNotTake(t *testing.T) {
	// No cap is reached, so the end of stream is read while the socket is full.
	n := startNode(t, Limits{OutboxBytes: 64 << 20})
	for i := range 100 {
		n.backend.create(wire.Topic, fmt.Sprintf("a-destination-with-a-long-name-%d", i), 8)
	}
	c := dialOpen(t, n.address)
	require.NoError(t, c.conn.SetReadBuffer(128<<10))
	const requests = 200
	var b []byte
	for i := range uint32(requests) {
		b = append(b, frameOf(wire.OpMetadata, 10+i, &wire.MetadataRequest{Scope: wire.MetadataAll})...)
	}
	c.write(b)
	eventually(t, "a full socket", func() bool { return n.engine.counters.stalls.Load() > 0 })
	require.NoError(t, c.conn.CloseWrite())
	eventually(t, "the end of stream", func() bool { return n.engine.counters.halfClosed.Load() == 1 })
	for i := range uint32(requests) {
		f := c.read()
		require.Equal(t, 10+i, f.ID)
		var m wire.MetadataResponse
		c.ok(f, &m)
		require.Len(t, m.Destinations, 100)
	}
	require.ErrorContains(t, c.closed(), "EOF")
}

// A DELIVER that is half sent when the client ends its side is sent to its end.
func TestHalfCloseCompletesTheFrameThatIsOnItsWay(t *testing.T) {
	n := startNode(t, Limits{})
	n.backend.create(wire.Topic, "events", 1)
	r := n.backend.replica("events", 0)
	numbered(r, 16_000, 1000)
	c := dialOpen(t, n.address)
	c.link(c.open("events", 0), 0, 64<<20)
	cut := make(chan bool, 1)
	eventually(t, "a frame that is half sent", func() bool {
		n.engine.eachSession(func(s *session) { cut <- len(s.cut.rest) > 0 })
		return <-cut
	})
	require.NoError(t, c.conn.CloseWrite())
	eventually(t, "the end of stream", func() bool { return n.engine.counters.halfClosed.Load() == 1 })
	var got []byte
	var end error
	for end == nil {
		var f rawFrame
		if f, end = c.tryRead(); end == nil {
			got = append(got, f.body[wire.DeliverPrefixSize:]...)
		}
	}
	require.Equal(t, io.EOF, end, "not in the middle of a frame")
	require.Less(t, len(got), len(r.stored()))
	require.True(t, bytes.Equal(r.stored()[:len(got)], got))
}

// Closing a socket that still has input resets the connection, and a reset
// destroys the error frame on its way: the session lingers.
func TestTheErrorFrameSurvivesWhatFollowsIt(t *testing.T) {
	n := startNode(t, Limits{})
	bad := wire.AppendHeader(nil, wire.Header{Length: 3, Opcode: wire.OpPing, Version: 1, ID: 77})
	junk := make([]byte, 700<<10)
	for range 20 {
		c := dialOpen(t, n.address)
		c.write(append(append([]byte(nil), bad...), junk...))
		f := c.read()
		require.Equal(t, wire.CodeMalformed, f.code())
		require.EqualValues(t, 77, f.ID)
		c.conn.Close()
	}
	// Who sends on and on is cut off.
	c := dialOpen(t, n.address)
	c.write(bad)
	eventually(t, "the end", func() bool {
		_, err := c.conn.Write(junk)
		return err != nil
	})
}

func TestAPanicEndsOneSessionOnly(t *testing.T) {
	n := startNode(t, Limits{})
	n.backend.mu.Lock()
	n.backend.panicOn = "boom"
	n.backend.mu.Unlock()
	healthy := dialOpen(t, n.address)
	c := dialOpen(t, n.address)
	c.send(wire.OpCreate, 2, &wire.CreateRequest{Name: "boom", Kind: wire.Topic, Settings: wire.Settings{Partitions: 1}})
	c.closed()
	require.Equal(t, uint64(1), n.engine.counters.panics.Load())
	require.Equal(t, uint64(1), n.engine.counters.closed[closedPanic].Load())
	require.Contains(t, n.log.String(), "a bug in the administration")
	healthy.send(wire.OpPing, 2, &wire.PingRequest{})
	require.Equal(t, wire.CodeOK, healthy.answer(2).code())
}

func TestIdleSessionsAreTold(t *testing.T) {
	n := startNode(t, Limits{IdleTimeout: 300 * time.Millisecond})
	n.backend.create(wire.Topic, "events", 1)
	r := n.backend.replica("events", 0)
	r.set(func() { r.hold = true })
	waiting := dialOpen(t, n.address)
	h := waiting.open("events", 0)
	batch, _ := testBatch(t, "x")
	waiting.send(wire.OpProduce, 5, &wire.ProduceRequest{Handle: h, Acks: wire.AcksQuorum, Batch: batch})
	idle := dialOpen(t, n.address)
	f := idle.read()
	require.Equal(t, wire.CodeIdle, f.code())
	require.Zero(t, f.ID)
	require.Equal(t, wire.OpEvent, f.Opcode)
	idle.closed()
	idle.conn.Close()
	eventually(t, "end of the session", func() bool { return n.engine.counters.sessions.Load() == 1 })
	// The other one waits for us, not we for it.
	time.Sleep(500 * time.Millisecond) // longer than the idle timeout: that nothing happens has no event
	require.EqualValues(t, 1, n.engine.counters.sessions.Load())
	r.release()
	require.Equal(t, wire.CodeOK, waiting.answer(5).code())
	require.Equal(t, wire.CodeIdle, waiting.read().code())
}

func TestShutdownAnswersWhatIsInFlightAndSaysGoodbye(t *testing.T) {
	n := startNode(t, Limits{})
	n.backend.create(wire.Topic, "events", 1)
	r := n.backend.replica("events", 0)
	r.set(func() { r.hold = true })
	c := dialOpen(t, n.address)
	h := c.open("events", 0)
	batch, _ := testBatch(t, "x")
	c.send(wire.OpProduce, 5, &wire.ProduceRequest{Handle: h, Acks: wire.AcksQuorum, Batch: batch})
	eventually(t, "request", func() bool { return n.engine.counters.inFlight.Load() == 1 })
	done := make(chan struct{})
	go func() {
		defer close(done)
		n.engine.drain(t.Context())
	}()
	event := c.read()
	require.Equal(t, wire.OpEvent, event.Opcode)
	var m wire.Event
	require.NoError(t, m.Parse(event.body))
	require.Equal(t, wire.EventGoAway, m.Kind)
	r.release()
	require.Equal(t, wire.CodeOK, c.answer(5).code())
	require.Equal(t, wire.CodeShuttingDown, c.read().code())
	c.closed()
	<-done
}

// Changes that come faster than a loop tells of them are told of once.
func TestNewsOfTheMetadataDoNotPileUp(t *testing.T) {
	n := startNode(t, Limits{})
	c := dialOpen(t, n.address)
	busy := make(chan struct{})
	n.engine.eachSession(func(*session) { <-busy })
	for version := range uint64(1000) {
		n.engine.announceTopology(version + 1)
	}
	close(busy)
	var m wire.Event
	for events := 1; m.Version != 1000; events++ {
		require.NoError(t, m.Parse(c.read().body))
		require.LessOrEqual(t, events, 2)
	}
}

func TestEventsReachEverySession(t *testing.T) {
	n := startNode(t, Limits{}, func(o *engineOptions) { o.Loops = 2 })
	var clients []*rawClient
	for range 4 {
		clients = append(clients, dialOpen(t, n.address))
	}
	n.engine.announceTopology(42)
	for _, c := range clients {
		f := c.read()
		require.Equal(t, wire.Header{Length: f.Length, Opcode: wire.OpEvent, Version: 1}, f.Header)
		var m wire.Event
		require.NoError(t, m.Parse(f.body))
		require.EqualValues(t, 42, m.Version)
	}
}

// A producer that has as much in flight as it may is told too: that is how one under load is
// all the time, and one whose partition has lost its leader.
func TestEventsReachWhoHasAsMuchInFlightAsItMay(t *testing.T) {
	n := startNode(t, Limits{InFlightRequests: 1})
	n.backend.create(wire.Topic, "events", 1)
	r := n.backend.replica("events", 0)
	r.set(func() { r.hold = true })
	c := dialOpen(t, n.address)
	h := c.open("events", 0)
	batch, _ := testBatch(t, "x")
	c.send(wire.OpProduce, 5, &wire.ProduceRequest{Handle: h, Acks: wire.AcksQuorum, Batch: batch})
	eventually(t, "request", func() bool { return n.engine.counters.inFlight.Load() == 1 })
	n.engine.announceTopology(42)
	event := c.read()
	require.Equal(t, wire.OpEvent, event.Opcode)
	var m wire.Event
	require.NoError(t, m.Parse(event.body))
	require.EqualValues(t, 42, m.Version)
	r.release()
	require.Equal(t, wire.CodeOK, c.answer(5).code())
}

func TestNobodyGetsInThroughTheLoopsOwnSocket(t *testing.T) {
	n := startNode(t, Limits{})
	conn, err := net.Dial("unix", strings.TrimPrefix(n.engine.address, "unix://"))
	require.NoError(t, err)
	defer conn.Close()
	require.NoError(t, conn.SetReadDeadline(time.Now().Add(clientPatience)))
	_, err = conn.Read(make([]byte, 1))
	require.ErrorContains(t, err, "EOF")
}

func TestALongDataDirectoryGetsItsSocketElsewhere(t *testing.T) {
	dir := t.TempDir() + "/" + strings.Repeat("long", 40)
	n := startNode(t, Limits{}, func(o *engineOptions) { o.Dir = dir })
	require.NotContains(t, n.engine.address, "longlong")
	require.LessOrEqual(t, len(n.engine.address), unixPathBytes+len("unix://"))
	dialOpen(t, n.address)
}

func TestSteadyProduceDoesNotAllocate(t *testing.T) {
	backend := newFakeBackend()
	backend.create(wire.Topic, "events", 1)
	e, err := newEngine(engineOptions{Backend: &discardBackend{backend}, Dir: t.TempDir(), Logger: newDiscardLogger()})
	require.NoError(t, err)
	conn, peer := net.Pipe()
	defer conn.Close()
	defer peer.Close()
	s := newSession(e, conn.RemoteAddr().String(), func() {})
	l := &loop{engine: e, sessions: make(map[*session]struct{}), running: true}
	l.wheel.init(0)
	s.loop, s.phase = l, phaseOpen
	s.out.requests = make(map[uint32]inFlight)
	_, err = s.openHandle("events", 0)
	require.NoError(t, err)
	batch, _ := testBatch(t, strings.Repeat("v", 1000))
	frame := frameOf(wire.OpProduce, 7, &wire.ProduceRequest{Handle: 1, Acks: wire.AcksQuorum, Batch: batch})
	allocations := testing.AllocsPerRun(1000, func() {
		s.parse(frame)
		l.giveTurns(true)
		// What the loop does once it has written.
		s.out.mu.Lock()
		s.out.pending.free()
		s.out.pending, s.out.queued = nil, false
		s.out.mu.Unlock()
		l.ready = l.ready[:0]
	})
	require.Zero(t, allocations)
}
