package server

import (
	"bytes"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.etcd.io/raft/v3/raftpb"

	"github.com/lockstepmq/lockstep/replication"
	"github.com/lockstepmq/lockstep/wire"
)

var pairings = flag.Int("peers.pairings", 25, "how often two nodes dial each other at once")

func TestPeersConnectTalkAndSeeEachOtherDie(t *testing.T) {
	leaks(t)
	a, b := startPeer(t, testSelf(1)), startPeer(t, testSelf(2))
	require.False(t, a.peers.Alive(2))
	a.peers.Send(2, &replication.Message{Message: raftpb.Message{Type: raftpb.MsgVote}}) // lost, and counted
	a.peers.Beat(2, replication.Heartbeat{})
	connect(t, a, b)
	require.True(t, a.peers.Alive(2))
	require.True(t, b.peers.Alive(1))
	require.Equal(t, uint64(2), a.peers.counters.unconnected.Load(), "to a node that nobody knew")

	data := bytes.Repeat([]byte("x"), 1<<20)
	a.peers.Send(2, &replication.Message{
		Message: raftpb.Message{Type: raftpb.MsgApp, From: 7, To: 8, Term: 3, Index: 4, Entries: []raftpb.Entry{
			{Term: 3, Index: 5, Data: []byte("abc")}, {Term: 3, Index: 6}, {Term: 3, Index: 7, Data: data},
		}},
		Checks: make([]uint32, 3),
	})
	require.Equal(t, `MsgApp 7->8 term 3 index 4 meta false "abc" "" 1048576×'x'`, next(t, b.handler.messages))
	for i := range uint64(3) {
		b.peers.Send(1, &replication.Message{Message: raftpb.Message{Type: raftpb.MsgAppResp, From: 8, To: 7, Term: 3, Index: i}, Meta: true})
	}
	for i := range 3 {
		require.Equal(t, fmt.Sprintf(`MsgAppResp 8->7 term 3 index %d meta true`, i), next(t, a.handler.messages))
	}
	a.peers.Send(2, &replication.Message{Message: raftpb.Message{Type: raftpb.MsgSnap, From: 7, To: 8, Term: 3}, Snapshot: &replication.SnapshotOffer{}})
	require.Equal(t, `MsgSnap 7->8 term 3 index 0 meta false`, next(t, b.handler.messages))

	a.peers.Send(2, &replication.Message{Message: raftpb.Message{Type: raftpb.MsgReadIndex}})
	require.Equal(t, uint64(1), a.peers.counters.dropped.Load(), "only leaders ask in this version")

	// Heartbeats wait for the tick, but not those of a read.
	a.peers.Beat(2, replication.Heartbeat{From: 7, To: 8, Term: 3})
	a.peers.Beat(2, replication.Heartbeat{From: 9, To: 10, Term: 3, Context: []byte("read")})
	eventually(t, "heartbeats", func() bool { return len(b.handler.taken()) == 2 })
	require.Equal(t, []replication.Heartbeat{{From: 7, To: 8, Term: 3}, {From: 9, To: 10, Term: 3, Context: []byte("read")}}, b.handler.taken())
	a.peers.Beat(2, replication.Heartbeat{From: 11, To: 12, Term: 3})
	a.peers.Tick()
	eventually(t, "heartbeats", func() bool { return len(b.handler.taken()) == 3 })

	began := time.Now()
	b.stop()
	require.Equal(t, "2 unreachable", next(t, a.handler.events))
	require.Equal(t, "2 down refused", next(t, a.handler.events), "without a tick: its port is closed")
	require.False(t, a.peers.Alive(2))
	t.Logf("the other node, which needed a while to stop, was known to be dead after %v", time.Since(began))
	require.Empty(t, a.handler.events)
	require.Contains(t, a.log.String(), "node is down")
}

// A node that comes back is up again, and hears who leads.
func TestPeersComeBackAndHearWhoLeads(t *testing.T) {
	a, b := startPeer(t, testSelf(1)), startPeer(t, testSelf(2))
	a.peers.Announce([]wire.PeerLeader{{Replica: 1, Epoch: 5}, {Replica: 2, Epoch: 6}})
	a.peers.Announce([]wire.PeerLeader{{Replica: 2}})
	connect(t, a, b)
	require.Equal(t, "node 1 replica 1 epoch 5", next(t, b.handler.leaders))
	require.Equal(t, "node 1 has said all", next(t, b.handler.leaders))
	a.peers.Announce([]wire.PeerLeader{{Replica: 1, Epoch: 7}, {Replica: 3, Epoch: 8}})
	require.Equal(t, "node 1 replica 1 epoch 7", next(t, b.handler.leaders))
	require.Equal(t, "node 1 replica 3 epoch 8", next(t, b.handler.leaders))
	b.stop()
	require.Equal(t, "2 unreachable", next(t, a.handler.events))
	require.Equal(t, "2 down refused", next(t, a.handler.events))

	self := testSelf(2)
	self.Boot = 2
	again := startPeer(t, self)
	again.peers.SetMembers([]peerMember{a.member()})
	a.peers.SetMembers([]peerMember{again.member()})
	require.Equal(t, "2 up", next(t, a.handler.events))
	require.Equal(t, "1 up", next(t, again.handler.events))
	heard := map[string]bool{next(t, again.handler.leaders): true, next(t, again.handler.leaders): true}
	require.Equal(t, map[string]bool{"node 1 replica 1 epoch 7": true, "node 1 replica 3 epoch 8": true}, heard)
	require.Equal(t, "node 1 has said all", next(t, again.handler.leaders))
}

// Whoever dials first, and however the handshakes cross, one connection remains.
func TestPeersDialEachOtherAtOnce(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d, %d pairings", seed, *pairings)
	random := rand.New(rand.NewPCG(seed, 0))
	a, b := startPeer(t, testSelf(1)), startPeer(t, testSelf(2))
	for range *pairings {
		first, second := a, b
		if random.IntN(2) == 0 {
			first, second = b, a
		}
		first.peers.SetMembers([]peerMember{second.member()})
		time.Sleep(time.Duration(random.IntN(1500)) * time.Microsecond) // the order that is tried, not a wait for anything
		second.peers.SetMembers([]peerMember{first.member()})
		settled := func() bool {
			x, y := a.peers.connTo(2), b.peers.connTo(1)
			return x != nil && y != nil && a.peers.counters.open.Load() == 1 && b.peers.counters.open.Load() == 1
		}
		eventually(t, "one connection", settled)
		a.peers.Send(2, &replication.Message{Message: raftpb.Message{Type: raftpb.MsgVote, From: 1}})
		require.Equal(t, "MsgVote 1->0 term 0 index 0 meta false", next(t, b.handler.messages))
		b.peers.Send(1, &replication.Message{Message: raftpb.Message{Type: raftpb.MsgVote, From: 2}})
		require.Equal(t, "MsgVote 2->0 term 0 index 0 meta false", next(t, a.handler.messages))
		a.peers.SetMembers(nil)
		b.peers.SetMembers(nil)
		eventually(t, "no connection", func() bool { return a.peers.counters.open.Load()+b.peers.counters.open.Load() == 0 })
	}
	t.Logf("node 1 connected %d times, node 2 %d times", a.peers.counters.connected.Load(), b.peers.counters.connected.Load())
}

// A node whose connection stays, but who says nothing or hears nothing, is down after
// ten ticks; one that hears us is not.
func TestPeersFallSilent(t *testing.T) {
	for _, c := range []struct {
		name string
		beat func(tick uint32) *wire.PeerBeats // what it says after our tick
		dies bool
	}{
		{"it says nothing", func(uint32) *wire.PeerBeats { return nil }, true},
		{"it hears nothing", func(tick uint32) *wire.PeerBeats { return &wire.PeerBeats{Tick: tick} }, true},
		{"it heard us once", func(tick uint32) *wire.PeerBeats { return &wire.PeerBeats{Tick: tick, Heard: 1} }, true},
		{"it claims to have heard what we never said", func(tick uint32) *wire.PeerBeats { return &wire.PeerBeats{Tick: tick, Heard: tick + 1000} }, true},
		{"it hears us", func(tick uint32) *wire.PeerBeats { return &wire.PeerBeats{Tick: tick, Heard: tick} }, false},
		{"it hears us late", func(tick uint32) *wire.PeerBeats { return &wire.PeerBeats{Tick: tick, Heard: tick - min(tick, 5)} }, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := startPeer(t, testSelf(1))
			r := connectRaw(t, n, 2)
			for tick := uint32(1); tick <= 15; tick++ {
				before := n.peers.counters.framesIn.Load()
				n.peers.Tick()
				if !n.peers.Alive(2) {
					require.True(t, c.dies, "at tick %d", tick)
					break
				}
				if m := c.beat(tick); m != nil {
					r.send(wire.PeerKindHeartbeats, 0, m)
					eventually(t, "the heartbeat's arrival", func() bool { return n.peers.counters.framesIn.Load() > before })
				}
			}
			if !c.dies {
				require.True(t, n.peers.Alive(2))
				require.Empty(t, n.handler.events)
				return
			}
			require.Equal(t, "2 down", next(t, n.handler.events))
			require.Equal(t, "2 unreachable", next(t, n.handler.events), "the connection is not kept")
			r.closed()

			// It comes back with a new connection.
			r = dialPeer(t, n)
			kind, _ := r.hello(testHello(2, 2))
			require.Equal(t, wire.PeerKindWelcome, kind)
			require.Equal(t, "2 up", next(t, n.handler.events))
		})
	}
}

// What a node sends at each tick says what it has heard of the other.
func TestPeersSayWhatTheyHeard(t *testing.T) {
	n := startPeer(t, testSelf(1))
	r := connectRaw(t, n, 2)
	var m wire.PeerBeats
	n.peers.Tick()
	_, body := r.await(wire.PeerKindHeartbeats)
	require.NoError(t, m.Parse(body))
	require.Equal(t, wire.PeerBeats{Tick: 1}, m)
	r.send(wire.PeerKindHeartbeats, 0, &wire.PeerBeats{Tick: 77, Heard: 1})
	eventually(t, "the heartbeat's arrival", func() bool { return n.peers.connTo(2).heard.Load() == 77 })
	n.peers.Beat(2, replication.Heartbeat{To: 5})
	n.peers.Tick()
	_, body = r.await(wire.PeerKindHeartbeats)
	require.NoError(t, m.Parse(body))
	require.Equal(t, wire.PeerBeats{Tick: 2, Heard: 77, Beats: []wire.PeerBeat{{To: 5}}}, m)

	// Heartbeats of many groups come in frames of 64 KiB.
	for i := range uint64(4000) {
		n.peers.Beat(2, replication.Heartbeat{To: i})
	}
	n.peers.Tick()
	seen := uint64(0)
	for seen < 4000 {
		h, body := r.await(wire.PeerKindHeartbeats)
		require.LessOrEqual(t, h.TotalSize(), wire.MaxPeerBeatsBytes)
		require.NoError(t, m.Parse(body))
		for i := range m.Beats {
			require.Equal(t, seen, m.Beats[i].To)
			seen++
		}
	}
}

// RELIABILITY 6.4, row 40: frames of clients on the peer port, and the reverse, and
// what is no protocol at all, close the connection without an answer.
func TestRow40_OtherProtocolsOnThePeerPort(t *testing.T) {
	self := testSelf(1)
	self.ClientAddress = "broker:4150"
	n := startPeer(t, self)
	header := func(change func(b []byte)) []byte {
		b := wire.AppendPeerFrame([]byte(wire.PeerPreface), wire.PeerKindHello, 0, testHello(2, 1))
		change(b[len(wire.PeerPreface):])
		return b
	}
	for _, c := range []struct {
		name string
		sent []byte
		hint string
	}{
		{"the preface of a client", []byte(wire.Preface), "clients connect to broker:4150"},
		{"HTTP", []byte("GET / HTTP/1.1\r\n\r\n"), "HTTP"},
		{"TLS", []byte{0x16, 3, 1, 2, 0, 1, 0, 1}, "TLS"},
		{"garbage", bytes.Repeat([]byte{0xa5}, 100), "not the peer protocol"},
		{"a frame header that nobody wrote", header(func(b []byte) { b[12] ^= 1 }), "checksum"},
		{"a long HELLO", append([]byte(wire.PeerPreface), wire.AppendPeerFrame(nil, wire.PeerKindHello, 0, &wire.PeerHello{ClientAddress: strings.Repeat("x", 5000)})...), "before WELCOME"},
		{"heartbeats before HELLO", wire.AppendPeerFrame([]byte(wire.PeerPreface), wire.PeerKindHeartbeats, 0, &wire.PeerBeats{}), "before HELLO"},
		{"a HELLO cut short", append([]byte(wire.PeerPreface), wire.AppendPeerFrame(nil, wire.PeerKindHello, 0, &wire.PeerRequest{})...), "cut short"},
	} {
		t.Run(c.name, func(t *testing.T) {
			before := n.peers.counters.badInput.Load()
			r := dialPeer(t, n)
			r.write(c.sent)
			require.Empty(t, r.closed())
			require.Equal(t, before+1, n.peers.counters.badInput.Load())
			require.Contains(t, n.log.String(), c.hint)
		})
	}
	t.Run("the peer preface on the port for clients", func(t *testing.T) {
		node := startNode(t, Limits{})
		conn, err := net.Dial("tcp", node.address)
		require.NoError(t, err)
		defer conn.Close()
		_, err = conn.Write([]byte(wire.PeerPreface))
		require.NoError(t, err)
		got, err := io.ReadAll(conn)
		if err != nil {
			require.ErrorContains(t, err, "reset")
		}
		require.Empty(t, got)
	})
	require.Empty(t, n.handler.events)
}

// RELIABILITY 6.4, row 41, as far as the connection can tell: who does not belong here
// is refused with the reason.
func TestRow41_NodesThatDoNotBelongHere(t *testing.T) {
	n := startPeer(t, testSelf(1))
	n.peers.SetMembers([]peerMember{{Node: 2, Store: testStore(2)}})
	for _, c := range []struct {
		name   string
		change func(h *wire.PeerHello)
		code   wire.ErrorCode
		detail string
	}{
		{"another cluster", func(h *wire.PeerHello) { h.Cluster[3] = 1 }, wire.CodeClusterMismatch, "another cluster"},
		{"no cluster", func(h *wire.PeerHello) { h.Cluster = [16]byte{} }, wire.CodeClusterMismatch, "another cluster"},
		{"a node that has not joined", func(h *wire.PeerHello) { h.Node = 9 }, wire.CodeNotMember, "join first"},
		{"a node ID with another store", func(h *wire.PeerHello) { h.Store[3] = 1 }, wire.CodeFenced, "another data directory"},
		{"this node's ID with another store", func(h *wire.PeerHello) { h.Node = 1 }, wire.CodeRefused, "another --node-id"},
		{"this node itself", func(h *wire.PeerHello) { h.Node, h.Store = 1, testStore(1) }, wire.CodeRefused, "to itself"},
		{"a newer protocol", func(h *wire.PeerHello) { h.MinVersion, h.MaxVersion = 3, 4 }, wire.CodeVersion, "versions 3 to 4"},
		{"HEARTBEATS without a state", func(h *wire.PeerHello) { h.MinVersion, h.MaxVersion = 1, 1 }, wire.CodeVersion, "versions 1 to 1"},
		{"a newer feature level", func(h *wire.PeerHello) { h.MinLevel, h.MaxLevel = 2, 3 }, wire.CodeVersion, "levels 2 to 3"},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := testHello(2, 1)
			c.change(h)
			r := dialPeer(t, n)
			kind, body := r.hello(h)
			require.Equal(t, wire.PeerKindRefused, kind)
			var m wire.PeerRefused
			require.NoError(t, m.Parse(body))
			require.Equal(t, c.code, m.Code)
			require.Contains(t, m.Detail, c.detail)
			require.Empty(t, r.closed())
			// One that has just joined is refused until this node hears of it: nothing is wrong.
			require.Equal(t, c.code != wire.CodeNotMember, strings.Contains(n.log.String(), c.detail))
		})
	}
	require.Empty(t, n.handler.events)
	require.Equal(t, uint64(9), n.peers.counters.refused.Load())

	t.Run("on an open connection", func(t *testing.T) {
		for name, frame := range map[string][]byte{
			"a second HELLO":          wire.AppendPeerFrame(nil, wire.PeerKindHello, 0, testHello(2, 1)),
			"a body that is cut":      wire.AppendPeerFrame(nil, wire.PeerKindAppend, 0, &wire.PeerAck{}),
			"heartbeats that are cut": wire.AppendPeerFrame(nil, wire.PeerKindHeartbeats, 0, &wire.PeerAck{}),
		} {
			t.Run(name, func(t *testing.T) {
				r := connectRaw(t, n, 2)
				r.write(frame)
				r.closed()
				require.Equal(t, "2 unreachable", next(t, n.handler.events))
				n.peers.SetMembers(nil)
				eventually(t, "that the node is forgotten", func() bool { return n.peers.counters.open.Load() == 0 })
				for len(n.handler.events) > 0 {
					<-n.handler.events
				}
			})
		}
	})
}

// Of two connections of the same node the newer one stays.
func TestPeersKeepTheNewerConnection(t *testing.T) {
	n := startPeer(t, testSelf(1))
	first := connectRaw(t, n, 2)
	same := dialPeer(t, n)
	kind, body := same.hello(testHello(2, 1))
	require.Equal(t, wire.PeerKindRefused, kind, "the same attempt")
	var m wire.PeerRefused
	require.NoError(t, m.Parse(body))
	require.Equal(t, wire.CodeDuplicate, m.Code)

	newer := dialPeer(t, n)
	kind, _ = newer.hello(testHello(2, 2))
	require.Equal(t, wire.PeerKindWelcome, kind)
	require.Equal(t, "2 unreachable", next(t, n.handler.events), "what was sent on the old one may be lost")
	first.closed()

	restarted := testHello(2, 1)
	restarted.Boot = 2
	kind, body = dialPeer(t, n).hello(restarted)
	require.Equal(t, wire.PeerKindRefused, kind, "the process before is connected still")
	require.NoError(t, m.Parse(body))
	require.Equal(t, wire.CodeAlreadyExists, m.Code)
	require.Contains(t, m.Detail, "node 2 runs already, from 127.0.0.1:")
	require.NoError(t, newer.conn.Close())
	require.Equal(t, "2 unreachable", next(t, n.handler.events))
	again := dialPeer(t, n)
	kind, _ = again.hello(restarted)
	require.Equal(t, wire.PeerKindWelcome, kind, "a newer start counts more than attempts")
	stale := dialPeer(t, n)
	kind, _ = stale.hello(testHello(2, 99))
	require.Equal(t, wire.PeerKindRefused, kind)
	require.Empty(t, n.handler.events)
	require.True(t, n.peers.Alive(2))

	// A HELLO that was under way for longer than the connection lasted comes too late.
	require.NoError(t, again.conn.Close())
	require.Equal(t, "2 unreachable", next(t, n.handler.events))
	kind, _ = dialPeer(t, n).hello(restarted)
	require.Equal(t, wire.PeerKindRefused, kind)
	restarted.Attempt++
	last := dialPeer(t, n)
	kind, _ = last.hello(restarted)
	require.Equal(t, wire.PeerKindWelcome, kind)
	require.Empty(t, n.handler.events, "it was never down")

	// A clock that went back over a restart shuts nobody out.
	require.NoError(t, last.conn.Close())
	require.Equal(t, "2 unreachable", next(t, n.handler.events))
	kind, _ = dialPeer(t, n).hello(testHello(2, 1))
	require.Equal(t, wire.PeerKindWelcome, kind)
}

// What a node says of its leaders on a connection that another has taken the place of is
// older than all that it says on the newer one, whenever it is read.
func TestPeersHearNothingOfAReplacedConnection(t *testing.T) {
	n := startPeer(t, testSelf(1))
	connectRaw(t, n, 2)
	old := n.peers.connTo(2)
	says := func(r *rawPeer, epoch uint32) {
		r.send(wire.PeerKindLeaders, 0, &wire.PeerLeaders{Leaders: []wire.PeerLeader{{Replica: 9, Epoch: epoch}}})
	}
	newer := dialPeer(t, n)
	kind, _ := newer.hello(testHello(2, 2))
	require.Equal(t, wire.PeerKindWelcome, kind)
	says(newer, 7)
	require.Equal(t, "node 2 replica 9 epoch 7", next(t, n.handler.leaders))
	frame := wire.AppendPeerFrame(nil, wire.PeerKindLeaders, 0, &wire.PeerLeaders{Leaders: []wire.PeerLeader{{Replica: 9, Epoch: 0}}})
	h, err := wire.ParsePeerHeader(frame)
	require.NoError(t, err)
	read := make(chan error)
	old.loop.post(func() { read <- old.dispatch(h, frame[wire.HeaderSize:]) })
	require.NoError(t, <-read)
	require.Empty(t, n.handler.leaders)

	// Nor of one whose node has fallen silent: it says everything when it is back.
	now := n.peers.connTo(2)
	n.peers.node(2).mu.Lock()
	n.peers.node(2).downLocked(false, errPeerSilent)
	n.peers.node(2).mu.Unlock()
	now.loop.post(func() { read <- now.dispatch(h, frame[wire.HeaderSize:]) })
	require.NoError(t, <-read)
	require.Empty(t, n.handler.leaders)
}

// A dialer tells whom it has reached, and goes on trying.
func TestPeersCheckWhoAnswers(t *testing.T) {
	n := startPeer(t, testSelf(1))
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer listener.Close()
	n.peers.SetMembers([]peerMember{{Node: 2, Store: testStore(2), Address: listener.Addr().String()}})
	answer := func(kind wire.PeerKind, m wire.Message) *rawPeer {
		conn, err := listener.Accept()
		require.NoError(t, err)
		t.Cleanup(func() { _ = conn.Close() })
		r := newRawPeer(t, conn)
		preface := make([]byte, len(wire.PeerPreface))
		_, err = io.ReadFull(r.r, preface)
		require.NoError(t, err)
		require.Equal(t, wire.PeerPreface, string(preface))
		h, body := r.read()
		require.Equal(t, wire.PeerKindHello, h.Kind)
		var hello wire.PeerHello
		require.NoError(t, hello.Parse(body))
		require.Equal(t, uint32(1), hello.Node)
		r.send(kind, 0, m)
		return r
	}
	answer(wire.PeerKindWelcome, testHello(3, 1)).closed()
	answer(wire.PeerKindRefused, &wire.PeerRefused{Code: wire.CodeRefused, Detail: "not today"}).closed()
	answer(wire.PeerKindAck, &wire.PeerAck{}).closed()
	require.Empty(t, n.handler.events)
	answer(wire.PeerKindWelcome, testHello(2, 1))
	require.Equal(t, "2 up", next(t, n.handler.events))
	require.Contains(t, n.log.String(), "answered by node 3")
	require.Contains(t, n.log.String(), "not today")
}

// A node serves nobody while those that answer do not know it: what it knows of the cluster
// is old. One that reaches nobody does not wait.
func TestANodeWaitsForAWelcome(t *testing.T) {
	n := startPeer(t, testSelf(1))
	n.peers.awaitWelcome(nil, nil) // it is alone
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer listener.Close()
	answer := func(kind wire.PeerKind, m wire.Message) {
		conn, err := listener.Accept()
		require.NoError(t, err)
		t.Cleanup(func() { _ = conn.Close() })
		r := newRawPeer(t, conn)
		_, err = io.ReadFull(r.r, make([]byte, len(wire.PeerPreface)))
		require.NoError(t, err)
		h, _ := r.read()
		require.Equal(t, wire.PeerKindHello, h.Kind)
		r.send(kind, 0, m)
	}
	n.peers.SetMembers([]peerMember{{Node: 2, Store: testStore(2), Address: listener.Addr().String()}})
	welcome := make(chan struct{})
	go func() {
		n.peers.awaitWelcome(nil, nil)
		close(welcome)
	}()
	answer(wire.PeerKindRefused, &wire.PeerRefused{Code: wire.CodeNotMember, Detail: "who?"})
	eventually(t, "that it says why it waits", func() bool { return strings.Contains(n.log.String(), "it serves nobody before one does") })
	answer(wire.PeerKindRefused, &wire.PeerRefused{Code: wire.CodeFenced, Detail: "another has the ID"})
	eventually(t, "that the other word counts", func() bool { return n.peers.standing() == standing{nodes: 1, stranger: 1, word: wordReplaced} })
	select {
	case <-welcome:
		require.Fail(t, "it serves")
	default:
	}
	answer(wire.PeerKindWelcome, testHello(2, 1))
	<-welcome

	alone := startPeer(t, testSelf(1))
	require.NoError(t, listener.Close())
	alone.peers.SetMembers([]peerMember{{Node: 2, Store: testStore(2), Address: listener.Addr().String()}})
	alone.peers.awaitWelcome(nil, nil)
	require.Equal(t, standing{nodes: 1}, alone.peers.standing())
	removed := make(chan struct{})
	close(removed)
	n.peers.awaitWelcome(nil, removed)
}

// Frames are put together however they arrive.
func TestPeerFramesInPieces(t *testing.T) {
	n := startPeer(t, testSelf(1))
	r := connectRaw(t, n, 2)
	var stream []byte
	var want []string
	random := rand.New(rand.NewPCG(1, 2))
	for i := range 60 {
		data := bytes.Repeat([]byte{byte('a' + i%26)}, 1+random.IntN(40_000))
		m := wire.PeerAppend{To: 1, From: 2, PrevIndex: wire.Index(i), Entries: []wire.PeerEntry{{Term: 1, Data: data}}}
		stream = wire.AppendPeerFrame(stream, wire.PeerKindAppend, 0, &m)
		stream = wire.AppendPeerFrame(stream, wire.PeerKind(200), 0, &wire.PeerAck{}) // of a newer broker
		if len(data) < 100 {
			want = append(want, fmt.Sprintf("MsgApp 2->1 term 0 index %d meta false %q", i, data))
		} else {
			want = append(want, fmt.Sprintf("MsgApp 2->1 term 0 index %d meta false %d×%q", i, len(data), data[0]))
		}
	}
	for len(stream) > 0 {
		size := 1 + random.IntN(17)
		if random.IntN(10) == 0 {
			size = random.IntN(100_000)
		}
		size = min(size, len(stream))
		if size < 20 && len(stream) > 5000 && random.IntN(3) > 0 {
			size = min(5000, len(stream))
		}
		r.write(stream[:size])
		stream = stream[size:]
	}
	for _, text := range want {
		require.Equal(t, text, next(t, n.handler.messages))
	}
	require.Equal(t, uint64(60), n.peers.counters.unknown.Load())
}

// What waits for a node that does not read is bounded; elections and heartbeats get a
// place behind it, and everything that was taken arrives once it reads.
func TestSlowPeerIsBounded(t *testing.T) {
	n := startPeer(t, testSelf(1))
	r := connectRaw(t, n, 2)
	data := bytes.Repeat([]byte("x"), 1<<20)
	sent, highest := 0, 0
	for len(n.handler.dropped) == 0 {
		n.peers.Send(2, &replication.Message{
			Message: raftpb.Message{Type: raftpb.MsgApp, From: 7, To: 8, Index: uint64(sent), Entries: []raftpb.Entry{{Data: data}}}, Checks: []uint32{0},
		})
		sent++
		highest = max(highest, n.peers.connTo(2).queue.size())
		require.Less(t, sent, 1000)
	}
	require.Equal(t, "false 7 to 2", next(t, n.handler.dropped))
	require.LessOrEqual(t, highest, peerQueueBytes-peerReserveBytes)
	require.Greater(t, highest, peerQueueBytes-peerReserveBytes-2<<20)
	n.peers.Send(2, &replication.Message{Message: raftpb.Message{Type: raftpb.MsgVote, From: 7, To: 8}})
	require.Empty(t, n.handler.dropped, "there is room for votes")
	t.Logf("%d messages of 1 MiB were sent until one was dropped, at most %d bytes waited", sent, highest)

	appends, votes := 0, 0
	for appends < sent-1 || votes < 1 {
		h, body := r.read()
		switch h.Kind {
		case wire.PeerKindAppend:
			var m wire.PeerAppend
			require.NoError(t, m.Parse(body))
			require.Equal(t, wire.Index(appends), m.PrevIndex, "in order")
			require.Equal(t, data, m.Entries[0].Data)
			appends++
		case wire.PeerKindRaft:
			votes++
			require.Less(t, appends, sent-1, "the vote has overtaken what waited")
		}
	}
	eventually(t, "an empty queue", func() bool { return n.peers.connTo(2).queue.size() == 0 })
}

// Chunks of many checkpoints, as a node gets that comes back with many partitions behind, leave
// the place of elections and heartbeats alone too.
func TestChunksLeaveRoomForElectionsAndHeartbeats(t *testing.T) {
	var q peerQueue
	defer q.close()
	chunk := func(class peerClass) (taken bool) {
		b := newBuffer(wire.PeerChunkBytes)
		b.bytes = b.bytes[:wire.PeerChunkBytes]
		f := peerFrame{head: b, size: len(b.bytes)}
		if taken, _ = q.put(class, f); !taken {
			f.free()
		}
		return taken
	}
	for chunk(peerBulk) {
	}
	require.Equal(t, peerQueueBytes-peerReserveBytes, q.size())
	taken, _ := q.putRaft(&wire.PeerRaftMessage{})
	require.True(t, taken, "a vote")
	require.True(t, q.putBeat(&wire.PeerBeat{}, pulse{}), "a heartbeat")
	require.True(t, chunk(peerUrgent), "a request")
}

func TestPeerRequests(t *testing.T) {
	a, b := startPeer(t, testSelf(1)), startPeer(t, testSelf(2))
	type answer struct {
		code wire.ErrorCode
		body []byte
	}
	ask := func(op wire.PeerOp, body []byte) answer {
		answers := make(chan answer, 2)
		a.peers.Request(2, op, body, func(code wire.ErrorCode, body []byte) { answers <- answer{code, body} })
		select {
		case got := <-answers:
			return got
		case <-time.After(60 * time.Second):
			require.FailNow(t, "no answer")
			return answer{}
		}
	}
	require.Equal(t, wire.CodeUnavailable, ask(wire.PeerStatus, nil).code, "before it is connected")
	connect(t, a, b)
	require.Equal(t, answer{wire.CodeOK, []byte("STATUS hello")}, ask(wire.PeerStatus, []byte("hello")))
	require.Equal(t, wire.CodeUnsupported, ask(wire.PeerOp(99), nil).code)
	for _, size := range []int{wire.PeerChunkBytes, wire.PeerChunkBytes + 1, 4 * wire.PeerChunkBytes, 3<<20 + 17} {
		large := make([]byte, size)
		for i := range large {
			large[i] = byte(i * 7 / 5)
		}
		b.handler.request = func(_ uint32, _ wire.PeerOp, _ []byte, reply func(wire.ErrorCode, []byte)) { reply(wire.CodeOK, large) }
		got := ask(wire.PeerFetchCheckpoint, nil)
		require.Equal(t, wire.CodeOK, got.code)
		require.True(t, bytes.Equal(large, got.body), "%d bytes", size)
	}
	b.handler.request = func(_ uint32, _ wire.PeerOp, _ []byte, reply func(wire.ErrorCode, []byte)) {
		reply(wire.CodeNotLeader, []byte("no"))
		reply(wire.CodeOK, nil) // once is enough
	}
	require.Equal(t, answer{wire.CodeNotLeader, []byte("no")}, ask(wire.PeerTransfer, nil))

	// One that is never answered ends with its connection, or after 30 s.
	asked := make(chan struct{}, 2)
	b.handler.request = func(uint32, wire.PeerOp, []byte, func(wire.ErrorCode, []byte)) { asked <- struct{}{} }
	late := make(chan wire.ErrorCode, 2)
	a.peers.Request(2, wire.PeerStatus, nil, func(code wire.ErrorCode, _ []byte) { late <- code })
	<-asked
	c := a.peers.connTo(2)
	c.calls.expire(a.peers.tick.Load() + peerCallTicks)
	require.Empty(t, late)
	c.calls.expire(a.peers.tick.Load() + peerCallTicks + 1)
	require.Equal(t, wire.CodeTimeout, <-late)
	a.peers.Request(2, wire.PeerStatus, nil, func(code wire.ErrorCode, _ []byte) { late <- code })
	<-asked
	b.stop()
	require.Equal(t, wire.CodeUnavailable, <-late)
}

// RELIABILITY 6.4, row 42: a chunk that is out of order, too long or damaged ends the
// transfer, and whoever wants it asks anew on the same connection.
func TestRow42_ChunksThatDoNotFit(t *testing.T) {
	n := startPeer(t, testSelf(1))
	r := connectRaw(t, n, 2)
	piece := bytes.Repeat([]byte("p"), 1000)
	damaged := (&wire.PeerChunk{Data: piece}).Append(nil)
	damaged[len(damaged)-1] ^= 1
	for _, c := range []struct {
		name   string
		chunks [][]byte
		code   wire.ErrorCode
	}{
		{"a gap", [][]byte{(&wire.PeerChunk{Data: piece}).Append(nil), (&wire.PeerChunk{Offset: 1001, Data: piece}).Append(nil)}, wire.CodeMalformed},
		{"twice the same", [][]byte{(&wire.PeerChunk{Data: piece}).Append(nil), (&wire.PeerChunk{Data: piece}).Append(nil)}, wire.CodeMalformed},
		{"too long", [][]byte{(&wire.PeerChunk{Data: make([]byte, wire.PeerChunkBytes+1)}).Append(nil)}, wire.CodeTooLarge},
		{"a wrong CRC", [][]byte{damaged}, wire.CodeCorrupt},
		{"empty and not the last", [][]byte{(&wire.PeerChunk{}).Append(nil)}, wire.CodeMalformed},
	} {
		t.Run(c.name, func(t *testing.T) {
			codes := make(chan wire.ErrorCode, 2)
			ask := func() uint32 {
				n.peers.Request(2, wire.PeerFetchCheckpoint, nil, func(code wire.ErrorCode, body []byte) {
					if code == wire.CodeOK && !bytes.Equal(body, append(bytes.Clone(piece), piece...)) {
						code = wire.CodeInternal
					}
					codes <- code
				})
				h, _ := r.await(wire.PeerKindRequest)
				return h.Number
			}
			before := n.peers.counters.badTransfers.Load()
			number := ask()
			for _, chunk := range c.chunks {
				r.write(wire.AppendPeerFrame(nil, wire.PeerKindChunk, number, rawBody(chunk)))
			}
			require.Equal(t, c.code, <-codes)
			require.Equal(t, before+1, n.peers.counters.badTransfers.Load())
			for {
				_, body := r.await(wire.PeerKindAck)
				var m wire.PeerAck
				require.NoError(t, m.Parse(body))
				if m.Offset == peerAbandon {
					break
				}
			}
			r.write(wire.AppendPeerFrame(nil, wire.PeerKindChunk, number, rawBody(c.chunks[0]))) // nobody waits for it any more
			number = ask()
			r.send(wire.PeerKindChunk, number, &wire.PeerChunk{Data: piece})
			r.send(wire.PeerKindChunk, number, &wire.PeerChunk{Offset: 1000, Last: true, Data: piece})
			require.Equal(t, wire.CodeOK, <-codes)
		})
	}
	require.Empty(t, n.handler.events)
	require.NotZero(t, n.peers.counters.strayChunks.Load())
}

// rawBody is a body that is written as it is.
type rawBody []byte

func (b rawBody) Append(dst []byte) []byte { return append(dst, b...) }
func (b rawBody) Parse([]byte) error       { return nil }

// A sender keeps to the window, and forgets a transfer that is abandoned.
func TestTransfersKeepToTheWindow(t *testing.T) {
	n := startPeer(t, testSelf(1))
	large := make([]byte, 10*wire.PeerChunkBytes)
	n.handler.request = func(_ uint32, _ wire.PeerOp, _ []byte, reply func(wire.ErrorCode, []byte)) { reply(wire.CodeOK, large) }
	r := connectRaw(t, n, 2)
	r.send(wire.PeerKindRequest, 5, &wire.PeerRequest{Op: wire.PeerFetchFrames})
	for range wire.PeerChunkWindow {
		h, _ := r.read()
		require.Equal(t, wire.PeerKindChunk, h.Kind)
		require.Equal(t, uint32(5), h.Number)
	}
	n.peers.Tick()
	h, _ := r.read()
	require.Equal(t, wire.PeerKindHeartbeats, h.Kind, "no fifth chunk before an ACK")
	r.send(wire.PeerKindAck, 5, &wire.PeerAck{Offset: 2 * wire.PeerChunkBytes})
	for range 2 {
		h, _ := r.read()
		require.Equal(t, wire.PeerKindChunk, h.Kind)
	}
	r.send(wire.PeerKindAck, 5, &wire.PeerAck{Offset: peerAbandon})
	r.send(wire.PeerKindAck, 5, &wire.PeerAck{Offset: 6 * wire.PeerChunkBytes})
	r.send(wire.PeerKindRequest, 6, &wire.PeerRequest{Op: 99})
	h, _ = r.read()
	require.Equal(t, wire.PeerKindResponse, h.Kind, "no chunk of what was abandoned")
}

func TestLiveness(t *testing.T) {
	var l liveness
	require.False(t, l.passed(100), "nobody has come up")
	require.False(t, l.refused())
	require.True(t, l.welcomed(100))
	require.False(t, l.welcomed(101), "another connection")
	require.False(t, l.passed(111))
	l.beat(111, 105)
	require.False(t, l.passed(121))
	l.beat(121, 105)
	require.True(t, l.passed(122), "it has heard nothing new")
	require.False(t, l.passed(123), "it is said once")
	require.True(t, l.welcomed(124))
	require.True(t, l.refused())
	require.False(t, l.refused())
}

// That the others know this node no longer is heard once: what stops it takes a while, in which
// one of them may be away and come back.
func TestThatANodeWasRemovedIsSaidOnce(t *testing.T) {
	said := 0
	p := newPeerSet(peerOptions{Self: testSelf(1), Logger: slog.New(slog.DiscardHandler), Removed: func(peerWord) { said++ }})
	n := &peerNode{set: p, id: 2}
	p.nodes.Store(&map[uint32]*peerNode{2: n})
	for _, word := range []peerWord{wordStranger, wordTried, wordStranger} {
		n.word.Store(uint32(word))
		for range 2 * removedTicks {
			p.Tick()
		}
	}
	require.Equal(t, 1, said)
}

// A node that is removed between the two halves of a handshake has no connection afterwards:
// nobody would end it, and to the node it would say that it is a member still.
func TestANodeThatIsRemovedWithinItsHandshakeIsNotConnected(t *testing.T) {
	a, b := startPeer(t, testSelf(1)), startPeer(t, testSelf(2))
	connect(t, a, b)
	n := a.peers.node(2)
	n.mu.Lock()
	c := n.conn.Swap(nil) // as before the second half
	n.mu.Unlock()
	a.peers.SetMembers(nil)
	opened := make(chan struct{})
	c.loop.post(func() { n.opened(c); close(opened) })
	<-opened
	eventually(t, "the connection ends", func() bool { return n.conn.Load() == nil && !n.alive.Load() })
}

// Entries go before chunks. Where they fill the connection for long a transfer goes on all the
// same, by a chunk with each look at the queue: what it is for would time out, again and again.
func TestChunksGoOnBehindEntriesThatNeverEnd(t *testing.T) {
	var q peerQueue
	const size = peerBatchBytes / 2
	put := func(class peerClass) {
		b := newBuffer(size)
		b.bytes = b.bytes[:size]
		b.bytes[0] = byte(class)
		taken, _ := q.put(class, peerFrame{head: b, size: size})
		require.True(t, taken)
	}
	for range 3 {
		put(peerBulk)
	}
	for range 3 {
		put(peerEntries)
		put(peerEntries)
		put(peerUrgent)
		put(peerEntries)
		var b peerBatch
		q.take(&b, peerBatchBytes)
		var classes []byte
		for _, f := range b.frames {
			classes = append(classes, f.head.bytes[0])
		}
		require.Equal(t, []byte{byte(peerUrgent), byte(peerEntries), byte(peerBulk)}, classes)
		b.clear()
	}
	var b peerBatch
	q.take(&b, peerBatchBytes)
	require.Len(t, b.frames, 2)
	b.clear()
	q.close()
}
