package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/wire"
)

func TestServerListIsParsed(t *testing.T) {
	for _, c := range []struct {
		name, list string
		want       []string
		fails      bool
	}{
		{"one broker with a scheme", "lockstep://a:7400", []string{"a:7400"}, false},
		{"several without one", "a:1, b:2,[::1]:3", []string{"a:1", "b:2", "[::1]:3"}, false},
		{"no port", "a", nil, true},
		{"empty", "", nil, true},
		{"empty element", "a:1,", nil, true},
		{"no host", ":7400", nil, true},
		{"no port behind the colon", "a:", nil, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := parseAddresses(c.list)
			if c.fails {
				require.ErrorIs(t, err, ErrAddress)
				return
			}
			require.NoError(t, err)
			require.Equal(t, c.want, got)
		})
	}
}

func TestOptionsOutOfRangeAreNamed(t *testing.T) {
	b := startBroker(t)
	b.create("q", Queue, 1)
	c := connect(t, b)
	ctx := testContext(t)
	for name, opt := range map[string]ProducerOption{
		"Linger": Linger(-1), "BatchBytes": BatchBytes(0), "InFlight": InFlight(0), "MaxBufferedBytes": MaxBufferedBytes(0),
		"DeliveryTimeout": DeliveryTimeout(0), "Compression": Compression(3), "Acks": Acks(9),
	} {
		_, err := c.Producer(ctx, "q", opt)
		require.ErrorContains(t, err, name)
	}
	_, err := c.Producer(ctx, "q", ProducerName("n"), Acks(AcksLeader))
	require.ErrorContains(t, err, "ProducerName")
	_, err = c.Producer(ctx, "q", Partition(1))
	require.ErrorIs(t, err, ErrUnknownPartition)
	_, err = c.Reader(ctx, "q", ReadAhead(1))
	require.ErrorContains(t, err, "ReadAhead")
	_, err = c.Reader(ctx, "q", Partitions(0, 7))
	require.ErrorIs(t, err, ErrUnknownPartition)
	_, err = Connect(ctx, b.address(), WithReconnectBackoff(2, 1))
	require.ErrorContains(t, err, "WithReconnectBackoff")
	_, err = Connect(ctx, b.address(), WithDialTimeout(0))
	require.ErrorContains(t, err, "WithDialTimeout")
}

func TestAdministration(t *testing.T) {
	b := startBroker(t)
	c := connect(t, b)
	ctx := testContext(t)
	settings := Settings{Partitions: 3, RetentionTime: 24 * time.Hour, RetentionBytes: 10 << 30, Sync: wire.SyncOS}
	d, err := c.CreateDestination(ctx, Destination{Name: "events", Kind: Topic, Settings: settings})
	require.NoError(t, err)
	require.Equal(t, settings, d.Settings)

	_, err = c.CreateDestination(ctx, Destination{Name: "events", Kind: Topic})
	require.ErrorIs(t, err, wire.CodeAlreadyExists)

	d, err = c.AlterDestination(ctx, Destination{Name: "events", Kind: Topic, Settings: Settings{RetentionTime: time.Hour}}, wire.MaskRetentionTime)
	require.NoError(t, err)
	require.Equal(t, time.Hour, d.Settings.RetentionTime)
	require.Equal(t, int64(10<<30), d.Settings.RetentionBytes)

	d, err = c.AlterDestination(ctx, Destination{Name: "events", Kind: Topic}, wire.MaskRetentionBytes)
	require.NoError(t, err)
	require.Zero(t, d.Settings.RetentionBytes)
	b.mu.Lock()
	kept := b.destinations["events"].info.Settings.RetentionBytes
	b.mu.Unlock()
	require.Equal(t, int64(wire.Unlimited), kept)

	p := newTestProducer(t, c, "events", Partition(2))
	for range 3 {
		_, err := p.Send(ctx, &Record{Value: []byte("x")})
		require.NoError(t, err)
	}
	offsets, err := c.Offsets(ctx, "events", Latest())
	require.NoError(t, err)
	require.Equal(t, map[uint32]uint64{0: 0, 1: 0, 2: 3}, offsets)
	offsets, err = c.Offsets(ctx, "events", Earliest())
	require.NoError(t, err)
	require.Equal(t, map[uint32]uint64{0: 0, 1: 0, 2: 0}, offsets)
	offsets, err = c.Offsets(ctx, "events", AtTime(time.UnixMilli(1_000_010))) // the fake's clock: the second batch
	require.NoError(t, err)
	require.Equal(t, map[uint32]uint64{0: 0, 1: 0, 2: 1}, offsets)

	all, err := c.Destinations(ctx)
	require.NoError(t, err)
	require.Len(t, all, 1)
	require.Equal(t, uint64(3), all[0].Partitions[2].NextOffset)
	nodes, version, err := c.Nodes(ctx)
	require.NoError(t, err)
	require.Equal(t, []Node{{ID: 1, Address: b.address(), Alive: true}}, nodes)
	require.Equal(t, uint64(42), version)
	require.NoError(t, c.Ping(ctx))
	info := c.Info()
	require.Equal(t, Info{ClusterID: "cluster-a", Node: 1, Address: b.address(), ServerVersion: "fake", Connected: true, MaxRecordBytes: 1 << 20}, info)

	require.NoError(t, p.Close(ctx))
	require.NoError(t, c.DeleteDestination(ctx, all[0]))
	_, err = c.Destination(ctx, "events")
	require.ErrorIs(t, err, wire.CodeUnknownDestination)
	require.ErrorContains(t, err, `destination "events" not found`)
	_, err = c.Destination(ctx, "")
	require.ErrorIs(t, err, wire.CodeInvalidName)
	_, err = c.Producer(ctx, "events")
	require.ErrorIs(t, err, wire.CodeUnknownDestination)
}

func TestHandshakeRefusals(t *testing.T) {
	answer := func(m wire.Message, flags wire.Flags) func(*fakeRequest) bool {
		return func(q *fakeRequest) bool {
			q.conn.send(wire.Header{Opcode: wire.OpHello, Flags: flags, Version: 1, ID: q.header.ID}, m)
			return true
		}
	}
	for _, c := range []struct {
		name   string
		script func(*fakeRequest) bool
		want   []error
	}{
		{"the broker shares no version", answer(&wire.ErrorBody{Code: wire.CodeVersion, Detail: "2 to 3"}, wire.FlagResponse|wire.FlagError), []error{ErrVersion, wire.CodeVersion}},
		{"the broker chooses a version nobody offered", answer(&wire.HelloResponse{Version: 9}, wire.FlagResponse), []error{ErrVersion}},
		{"the broker is full", answer(&wire.ErrorBody{Code: wire.CodeBusy}, wire.FlagResponse|wire.FlagError), []error{wire.CodeBusy}},
		{"the answer is that of another opcode", func(q *fakeRequest) bool {
			q.conn.send(wire.Header{Opcode: wire.OpPing, Flags: wire.FlagResponse, Version: 1, ID: 1}, &wire.Empty{})
			return true
		}, []error{ErrProtocol}},
		{"the answer is cut short", answer(&wire.Empty{}, wire.FlagResponse), []error{ErrProtocol}},
		{"the peer speaks HTTP", func(q *fakeRequest) bool {
			io.WriteString(q.conn.net, "HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")
			return true
		}, []error{ErrProtocol}},
		{"the peer closes", func(q *fakeRequest) bool { q.conn.net.Close(); return true }, []error{ErrDisconnected}},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := startBroker(t, func(b *fakeBroker) { b.script = c.script })
			_, err := Connect(testContext(t), b.address())
			for _, want := range c.want {
				require.ErrorIs(t, err, want)
			}
			require.ErrorContains(t, err, b.address())
		})
	}
}

func TestConnectTriesTheWholeListOnceAndJoinsTheErrors(t *testing.T) {
	b := startBroker(t)
	dead, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	dead.Close()
	c, err := Connect(testContext(t), "lockstep://"+dead.Addr().String()+","+b.address())
	require.NoError(t, err)
	require.Equal(t, b.address(), c.Info().Address)
	require.NoError(t, c.Close())

	_, err = Connect(testContext(t), dead.Addr().String())
	require.ErrorContains(t, err, dead.Addr().String())
	require.ErrorContains(t, err, "refused")
}

func TestConnectEndsWithItsContext(t *testing.T) {
	arrived := make(chan struct{})
	b := startBroker(t, func(b *fakeBroker) {
		b.script = func(*fakeRequest) bool { close(arrived); return true } // never answers HELLO
	})
	ctx, cancel := context.WithCancel(testContext(t))
	go func() {
		<-arrived
		cancel()
	}()
	_, err := Connect(ctx, b.address())
	require.ErrorIs(t, err, context.Canceled)
}

// RULES, smaller decisions: clients remember the cluster ID of their first
// handshake and refuse another under the same bootstrap list.
func TestAnotherClusterIsRefusedAfterAReconnect(t *testing.T) {
	b := startBroker(t)
	log := newEventLog()
	c := connect(t, b, WithEvents(log.add))
	log.await(t, func(e Event) bool { _, ok := e.(Connected); return ok })

	asked := make(chan string, 100)
	b.mu.Lock()
	b.hello.ClusterID = "cluster-b"
	b.script = func(q *fakeRequest) bool {
		if q.header.Opcode == wire.OpHello {
			var m wire.HelloRequest
			q.parse(&m)
			select {
			case asked <- m.ClusterID:
			default:
			}
		}
		return false
	}
	b.mu.Unlock()
	b.dropConns()
	require.Equal(t, "cluster-a", <-asked)
	<-asked // the first attempt has failed, and its error is known

	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	err := c.Ping(ctx)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.ErrorIs(t, err, ErrClusterMismatch)

	b.mu.Lock()
	b.hello.ClusterID = "cluster-a"
	b.mu.Unlock()
	require.NoError(t, c.Ping(testContext(t)))
}

// R-WLS-6: no call hangs on a dead connection.
func TestR_WLS_6_NoCallOutlivesADeadConnection(t *testing.T) {
	for _, c := range []struct {
		name   string
		break_ func(*fakeRequest)
		want   error
	}{
		{"reset", func(q *fakeRequest) { q.conn.drop() }, ErrDisconnected},
		{"closed", func(q *fakeRequest) { q.conn.net.Close() }, ErrDisconnected},
		{"garbage", func(q *fakeRequest) { io.WriteString(q.conn.net, "this is no frame at all, is it?") }, ErrProtocol},
		{"frame of another kind", func(q *fakeRequest) {
			q.conn.send(wire.Header{Opcode: wire.OpCreate, Version: 1}, &wire.Empty{})
		}, ErrProtocol},
		{"answer that cannot be parsed", func(q *fakeRequest) { q.reply(&wire.PingResponse{}) }, ErrProtocol},
		{"error for the whole connection", func(q *fakeRequest) {
			q.conn.send(wire.Header{Opcode: wire.OpHello, Flags: wire.FlagResponse | wire.FlagError, Version: 1}, &wire.ErrorBody{Code: wire.CodeIdle})
		}, wire.CodeIdle},
		{"silence", func(*fakeRequest) {}, ErrKeepalive},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := startBroker(t, func(b *fakeBroker) { b.hello.IdleTimeoutMs = 60 }) // pings every 20 ms
			b.create("q", Queue, 1)
			conn := connect(t, b, WithReconnect(false))
			p := newTestProducer(t, conn, "q")
			r := newTestReader(t, conn, "q")
			silent := false
			b.setScript(func(q *fakeRequest) bool {
				if q.header.Opcode == wire.OpCreate {
					silent = true
					c.break_(q)
				}
				return silent
			})
			var wg sync.WaitGroup
			errs := make([]error, 2)
			wg.Go(func() {
				for errs[0] == nil {
					_, errs[0] = r.Next(context.Background())
				}
			})
			wg.Go(func() {
				for errs[1] == nil {
					_, errs[1] = p.Send(context.Background(), &Record{Value: []byte("x")})
				}
			})
			_, err := conn.CreateDestination(context.Background(), Destination{Name: "n", Kind: Queue})
			require.ErrorIs(t, err, c.want)
			wg.Wait()
			require.ErrorIs(t, errs[0], ErrDisconnected)
			require.ErrorIs(t, errs[0], c.want)
			require.ErrorIs(t, errs[1], ErrDisconnected)
			var sendErr *SendError
			require.ErrorAs(t, errs[1], &sendErr)

			// R-IS-2, R-WLS-10: with reconnect off, errors come at once from then on.
			require.ErrorIs(t, conn.Ping(context.Background()), ErrDisconnected)
			_, err = p.Send(context.Background(), &Record{})
			require.ErrorAs(t, err, &sendErr)
			require.Equal(t, NotSent, sendErr.Outcome)
			_, err = conn.Reader(context.Background(), "q")
			require.ErrorIs(t, err, ErrDisconnected)
			require.False(t, conn.Info().Connected)
		})
	}
}

func TestKeepaliveKeepsAnIdleConnection(t *testing.T) {
	pings := make(chan struct{}, 100)
	b := startBroker(t, func(b *fakeBroker) {
		b.hello.IdleTimeoutMs = 150
		b.script = func(q *fakeRequest) bool {
			if q.header.Opcode == wire.OpPing {
				pings <- struct{}{}
			}
			return false
		}
	})
	c := connect(t, b, WithReconnect(false))
	for range 5 {
		<-pings
	}
	require.NoError(t, c.Ping(testContext(t)))
}

func TestABrokerMayPing(t *testing.T) {
	answered := make(chan struct{})
	b := startBroker(t)
	c := connect(t, b)
	b.setScript(func(q *fakeRequest) bool {
		if q.header.Opcode == wire.OpPing && q.header.Flags&wire.FlagResponse != 0 {
			require.Equal(t, uint32(77), q.header.ID)
			close(answered)
			return true
		}
		return false
	})
	require.NoError(t, c.Ping(testContext(t)))
	b.mu.Lock()
	for conn := range b.conns {
		conn.send(wire.Header{Opcode: wire.OpPing, Version: 1, ID: 77}, &wire.PingRequest{})
	}
	b.mu.Unlock()
	<-answered
}

func TestACallEndsWithItsContextAndItsLateAnswerIsIgnored(t *testing.T) {
	b := startBroker(t)
	c := connect(t, b)
	asked := make(chan *fakeRequest, 1)
	b.setScript(func(q *fakeRequest) bool {
		if q.header.Opcode == wire.OpCreate {
			asked <- q
			return true
		}
		return false
	})
	ctx, cancel := context.WithCancel(testContext(t))
	done := make(chan error)
	go func() {
		_, err := c.CreateDestination(ctx, Destination{Name: "n", Kind: Queue})
		done <- err
	}()
	q := <-asked
	cancel()
	require.ErrorIs(t, <-done, context.Canceled)
	q.handle()
	require.NoError(t, c.Ping(testContext(t)))
	require.Equal(t, 1, b.connections())
}

func TestReadOnlyRequestsAreRepeatedOthersAreNot(t *testing.T) {
	b := startBroker(t)
	b.create("q", Queue, 1)
	c := connect(t, b)
	for _, op := range []wire.Opcode{wire.OpMetadata, wire.OpPing} {
		first := true
		b.setScript(func(q *fakeRequest) bool {
			if q.header.Opcode == op && first {
				first = false
				q.conn.drop()
				return true
			}
			return false
		})
		if op == wire.OpPing {
			require.NoError(t, c.Ping(testContext(t)))
		} else {
			_, err := c.Destination(testContext(t), "q")
			require.NoError(t, err)
		}
		b.setScript(nil)
		require.False(t, first)
	}
	created := 0
	b.setScript(func(q *fakeRequest) bool {
		if q.header.Opcode == wire.OpCreate {
			if created++; created == 1 {
				q.refuse(wire.CodeRetry) // rejected: may be repeated
				return true
			}
			q.handle()
			q.conn.drop()
			return true
		}
		return false
	})
	_, err := c.CreateDestination(testContext(t), Destination{Name: "n", Kind: Queue})
	if err != nil { // the answer may have been lost in the reset, and then nobody knows
		require.ErrorIs(t, err, ErrDisconnected)
	}
	b.setScript(nil)
	require.Equal(t, 2, created)
}

func TestOffsetsSurviveDisconnectsAndRefusals(t *testing.T) {
	b := startBroker(t)
	d := b.create("d", Topic, 3)
	for i, p := range d.partitions {
		b.fill(p, NoCompression, i+1)
	}
	c := connect(t, b)
	n := 0
	b.setScript(func(q *fakeRequest) bool {
		if q.header.Opcode == wire.OpListOffsets {
			switch n++; n {
			case 2:
				q.conn.drop()
				return true
			case 4:
				q.refuse(wire.CodeUnavailable)
				return true
			}
		}
		return false
	})
	offsets, err := c.Offsets(testContext(t), "d", Latest())
	require.NoError(t, err)
	require.Equal(t, map[uint32]uint64{0: 1, 1: 2, 2: 3}, offsets)
	b.setScript(func(q *fakeRequest) bool {
		if q.header.Opcode == wire.OpListOffsets {
			q.refuse(wire.CodePartitionFenced)
			return true
		}
		return false
	})
	_, err = c.Offsets(testContext(t), "d", Latest())
	require.ErrorIs(t, err, wire.CodePartitionFenced)
}

func TestDestinationsGathersAllPages(t *testing.T) {
	b := startBroker(t, func(b *fakeBroker) {
		for i := range 2*fakePage + 1 {
			b.create(fmt.Sprintf("d%d", i), Topic, 1)
		}
	})
	c := connect(t, b)
	all, err := c.Destinations(testContext(t))
	require.NoError(t, err)
	var names []string
	for _, d := range all {
		names = append(names, d.Name)
	}
	require.Equal(t, []string{"d0", "d1", "d2", "d3", "d4", "d5", "d6"}, names)
}

func TestPagesThatDoNotAdvanceAreAProtocolError(t *testing.T) {
	b := startBroker(t)
	c := connect(t, b)
	b.setScript(func(q *fakeRequest) bool {
		if q.header.Opcode == wire.OpMetadata {
			q.reply(&wire.MetadataResponse{Next: "a"})
			return true
		}
		return false
	})
	_, err := c.Destinations(testContext(t))
	require.ErrorIs(t, err, ErrProtocol)
}

func TestUnsupportedOpcodesFailLocally(t *testing.T) {
	b := startBroker(t, func(b *fakeBroker) {
		b.hello.Opcodes = []wire.OpcodeRange{{Opcode: wire.OpPing, Min: 1, Max: 3}, {Opcode: wire.OpMetadata, Min: wire.OpMetadata.Version() + 1, Max: 100}}
	})
	c := connect(t, b)
	require.NoError(t, c.Ping(testContext(t)))
	_, err := c.Destinations(testContext(t))
	require.ErrorIs(t, err, wire.CodeUnsupported)
	require.ErrorContains(t, err, "this client is older than broker")
	require.ErrorContains(t, err, "METADATA from version")
	require.ErrorContains(t, err, "upgrade the client")
	require.ErrorContains(t, c.AdministerNode(testContext(t), 1, NodeDrain), "does not know NODE_ADMIN; upgrade the broker")

	b.setScript(nil)
	b.hello.Opcodes = []wire.OpcodeRange{{Opcode: wire.OpPing, Min: 1, Max: 3}, {Opcode: wire.OpMetadata, Min: 1, Max: 2}}
	_, err = connect(t, b).Destinations(testContext(t))
	require.ErrorContains(t, err, "is older than this client: it understands METADATA up to version 2")
}

// count is how many events there have been of a kind.
func (l *eventLog) count(of func(Event) bool) (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range l.events {
		if of(e) {
			n++
		}
	}
	return n
}

// eventLog collects events and lets tests wait for them.
type eventLog struct {
	mu     sync.Mutex
	events []Event
	more   chan struct{}
}

func newEventLog() *eventLog { return &eventLog{more: make(chan struct{}, 1)} }

func (l *eventLog) add(e Event) {
	l.mu.Lock()
	l.events = append(l.events, e)
	l.mu.Unlock()
	poke(l.more)
}

func (l *eventLog) await(t *testing.T, match func(Event) bool) Event {
	t.Helper()
	for {
		l.mu.Lock()
		for _, e := range l.events {
			if match(e) {
				l.mu.Unlock()
				return e
			}
		}
		l.mu.Unlock()
		select {
		case <-l.more:
		case <-testContext(t).Done():
			t.Fatal("the event does not come")
		}
	}
}

// R-WLS-5: the client is told about the failure of its node.
func TestR_WLS_5_Events(t *testing.T) {
	b := startBroker(t)
	log := newEventLog()
	c := connect(t, b, WithEvents(log.add))
	b.sendEvent(wire.Event{Kind: wire.EventGoAway, Detail: "logged only"})
	b.sendEvent(wire.Event{Kind: wire.EventTopologyChanged, Version: 5})
	log.await(t, func(e Event) bool { return e == TopologyChanged{Epoch: 5} })
	b.dropConns()
	lost := log.await(t, func(e Event) bool { _, ok := e.(Disconnected); return ok }).(Disconnected)
	require.ErrorIs(t, lost.Err, ErrDisconnected)
	require.Equal(t, b.address(), lost.Address)
	require.NoError(t, c.Ping(testContext(t)))
	require.NoError(t, c.Close())

	log.mu.Lock()
	defer log.mu.Unlock()
	require.Len(t, log.events, 5)
	require.Equal(t, Connected{Address: b.address(), Node: 1}, log.events[0])
	require.Equal(t, Connected{Address: b.address(), Node: 1}, log.events[3])
	require.Equal(t, Disconnected{Address: b.address(), Node: 1, Err: ErrClosed}, log.events[4])
}

func TestASlowListenerBlocksNobodyAndLosesTheOldestEvents(t *testing.T) {
	entered, block := make(chan struct{}, 100), make(chan struct{})
	var seen []Event
	d := newDispatcher(func(e Event) {
		entered <- struct{}{}
		<-block
		seen = append(seen, e)
	})
	d.send(TopologyChanged{Epoch: 0})
	<-entered
	for i := range 100 {
		d.send(TopologyChanged{Epoch: uint64(i + 1)})
	}
	close(block)
	d.close()
	require.Len(t, seen, 1+eventLimit)
	require.Equal(t, TopologyChanged{Epoch: 37}, seen[1])
	require.Equal(t, TopologyChanged{Epoch: 100}, seen[64])
}

func TestAfterCloseEverythingIsErrClosed(t *testing.T) {
	b := startBroker(t)
	b.create("q", Queue, 1)
	c := connect(t, b)
	p := newTestProducer(t, c, "q")
	r := newTestReader(t, c, "q")
	waiting := make(chan error)
	go func() { _, err := r.Next(context.Background()); waiting <- err }()
	require.NoError(t, c.Close())
	require.NoError(t, c.Close())
	ctx := testContext(t)
	require.ErrorIs(t, <-waiting, ErrClosed)
	require.ErrorIs(t, c.Ping(ctx), ErrClosed)
	_, err := p.Send(ctx, &Record{})
	require.ErrorIs(t, err, ErrClosed)
	_, err = r.Next(ctx)
	require.ErrorIs(t, err, ErrClosed)
	_, err = c.Producer(ctx, "q")
	require.ErrorIs(t, err, ErrClosed)
	_, err = c.Reader(ctx, "q")
	require.ErrorIs(t, err, ErrClosed)
	require.NoError(t, p.Close(ctx))
	require.NoError(t, r.Close())
}

func TestCloseWhileDisconnectedDoesNotHang(t *testing.T) {
	b := startBroker(t)
	log := newEventLog()
	c := connect(t, b, WithEvents(log.add), WithReconnectBackoff(time.Hour, time.Hour))
	b.listener.Close()
	b.dropConns()
	log.await(t, func(e Event) bool { _, ok := e.(Disconnected); return ok })
	require.NoError(t, c.Close())
}

func TestErrorsSayWhatTheyAre(t *testing.T) {
	err := error(&SendError{Outcome: NotSent, Err: wire.Errorf(wire.CodeDiskFull, "3 bytes are free")})
	require.EqualError(t, err, "not sent: DISK_FULL: 3 bytes are free")
	require.ErrorIs(t, err, wire.CodeDiskFull)
	require.Equal(t, "outcome unknown", Unknown.String())
	require.Equal(t, "applied", Applied.String())
	corrupt := &CorruptError{Partition: 3, Offset: 9, Err: io.ErrUnexpectedEOF}
	require.EqualError(t, corrupt, "partition 3: offset 9: corrupt data: unexpected EOF")
	require.ErrorIs(t, corrupt, ErrCorrupt)
	require.True(t, errors.Is(corrupt, io.ErrUnexpectedEOF))
}

// What a broker says right behind its HELLO answer must find the Conn complete,
// and reach the listener after Connected.
func TestAnEventRightBehindTheHandshakeComesAfterConnected(t *testing.T) {
	b := startBroker(t)
	b.setScript(func(q *fakeRequest) bool {
		if q.header.Opcode != wire.OpHello {
			return false
		}
		q.handle()
		q.conn.send(wire.Header{Opcode: wire.OpEvent, Version: 1}, &wire.Event{Kind: wire.EventTopologyChanged, Version: 7})
		return true
	})
	for range 20 {
		events := make(chan Event, 8)
		c, err := Connect(testContext(t), b.address(), WithEvents(func(e Event) { events <- e }))
		require.NoError(t, err)
		require.IsType(t, Connected{}, <-events)
		require.Equal(t, TopologyChanged{Epoch: 7}, <-events)
		require.NoError(t, c.Close())
	}
}

// A broker that ends every session at once, a wrong load balancer say, is not asked
// again and again without a pause.
func TestShortSessionsAreFollowedByAPause(t *testing.T) {
	b := startBroker(t)
	lines := make(chan string, 64)
	logger := slog.New(slog.NewTextHandler(lineWriter(lines), nil))
	connect(t, b, WithLogger(logger), WithReconnectBackoff(time.Hour, time.Hour), WithEvents(func(e Event) {
		if _, ok := e.(Connected); ok {
			b.dropConns()
		}
	}))
	ctx := testContext(t)
	connected := 0
	for {
		select {
		case line := <-lines:
			if strings.Contains(line, "msg=connected") {
				connected++
			}
			if strings.Contains(line, "reconnecting after a pause") {
				require.Equal(t, 2, connected, "the first loss is mended at once")
				return
			}
		case <-ctx.Done():
			t.Fatal("no pause")
		}
	}
}

// lineWriter passes on what is written, line by line.
type lineWriter chan string

func (w lineWriter) Write(p []byte) (int, error) {
	w <- string(p)
	return len(p), nil
}
