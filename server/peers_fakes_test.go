package server

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/replication"
	"github.com/lockstepmq/lockstep/wire"
)

// fakePeerHandler notes what a node hears of others.
type fakePeerHandler struct {
	events   chan string // of nodes, in order
	messages chan string
	leaders  chan string
	dropped  chan string
	request  func(node uint32, op wire.PeerOp, body []byte, reply func(wire.ErrorCode, []byte))

	mu    sync.Mutex
	beats []replication.Heartbeat
}

func newFakePeerHandler() *fakePeerHandler {
	return &fakePeerHandler{
		events: make(chan string, 1000), messages: make(chan string, 1000), leaders: make(chan string, 1000), dropped: make(chan string, 1000),
		request: func(_ uint32, op wire.PeerOp, body []byte, reply func(wire.ErrorCode, []byte)) {
			reply(wire.CodeOK, append([]byte(op.String()+" "), body...))
		},
	}
}

func (h *fakePeerHandler) Message(m *replication.Message) kicker {
	text := fmt.Sprintf("%v %d->%d term %d index %d meta %v", m.Type, m.From, m.To, m.Term, m.Index, m.Meta)
	for i := range m.Entries {
		if len(m.Entries[i].Data) < 100 {
			text += fmt.Sprintf(" %q", m.Entries[i].Data)
		} else {
			text += fmt.Sprintf(" %d×%q", len(m.Entries[i].Data), m.Entries[i].Data[0])
		}
	}
	h.messages <- text
	return nil
}

func (h *fakePeerHandler) Beat(b replication.Heartbeat) kicker {
	h.mu.Lock()
	defer h.mu.Unlock()
	b.Context = bytes.Clone(b.Context)
	h.beats = append(h.beats, b)
	return nil
}

func (h *fakePeerHandler) taken() []replication.Heartbeat {
	h.mu.Lock()
	defer h.mu.Unlock()
	return append([]replication.Heartbeat(nil), h.beats...)
}

func (h *fakePeerHandler) Leaders(node uint32, leaders []wire.PeerLeader) {
	if len(leaders) == 0 {
		h.leaders <- fmt.Sprintf("node %d has said all", node)
	}
	for _, l := range leaders {
		h.leaders <- fmt.Sprintf("node %d replica %d epoch %d", node, l.Replica, l.Epoch)
	}
}

func (h *fakePeerHandler) Request(node uint32, op wire.PeerOp, body []byte, reply func(wire.ErrorCode, []byte)) {
	h.request(node, op, body, reply)
}

func (h *fakePeerHandler) Node(e replication.PeerEvent) {
	what := map[replication.PeerEventKind]string{
		replication.PeerUnreachable: "unreachable", replication.PeerDown: "down", replication.PeerUp: "up",
	}[e.Kind]
	if e.Refused {
		what += " refused"
	}
	h.events <- fmt.Sprintf("%d %s", e.Node, what)
}

func (h *fakePeerHandler) Dropped(meta bool, replica uint64, node uint32) {
	h.dropped <- fmt.Sprintf("%v %d to %d", meta, replica, node)
}

// next waits for one thing that a node hears.
func next(t testing.TB, from chan string) string {
	t.Helper()
	select {
	case s := <-from:
		return s
	case <-time.After(60 * time.Second):
		require.FailNow(t, "nothing was heard")
		return ""
	}
}

// testPeer is a node that is nothing but its connections to others.
type testPeer struct {
	t        testing.TB
	id       uint32
	engine   *engine
	acceptor *acceptor
	peers    *peerSet
	handler  *fakePeerHandler
	address  string
	log      *lockedBuffer
	stopped  bool
}

func testStore(node uint32) [16]byte { return [16]byte{0: 0x50, 15: byte(node)} }

var testCluster = [16]byte{0: 0xc0, 15: 0xcf}

func testSelf(node uint32) peerSelf {
	return peerSelf{Cluster: testCluster, Store: testStore(node), Node: node, Boot: 1, MinLevel: 1, MaxLevel: 1}
}

// startPeer runs a node's peer port on loopback until the test ends.
func startPeer(t testing.TB, self peerSelf) *testPeer {
	t.Helper()
	return startMutant(t, self, peerMutants{})
}

func startMutant(t testing.TB, self peerSelf, m peerMutants) *testPeer {
	t.Helper()
	n := &testPeer{t: t, id: self.Node, handler: newFakePeerHandler(), log: &lockedBuffer{}}
	logger := slog.New(slog.NewTextHandler(n.log, nil))
	var err error
	n.engine, err = newEngine(engineOptions{Backend: newFakeBackend(), Dir: t.TempDir(), Loops: 1, Limits: Limits{LogLines: 1000}, Logger: logger})
	require.NoError(t, err)
	require.NoError(t, n.engine.run())
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	n.address = listener.Addr().String()
	n.peers = newPeerSet(peerOptions{Engine: n.engine, Handler: n.handler, Self: self, Logger: logger, mutant: m})
	n.acceptor = newPeerAcceptor(n.peers, listener)
	n.acceptor.run()
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("log of node %d:\n%s", n.id, n.log)
		}
		n.stop()
	})
	return n
}

func (n *testPeer) stop() {
	if n.stopped {
		return
	}
	n.stopped = true
	n.acceptor.stop()
	n.peers.stop()
	require.NoError(n.t, n.engine.stop(context.Background()))
	require.Zero(n.t, n.peers.counters.open.Load(), "connections are left")
	require.Zero(n.t, n.engine.counters.peers.Load(), "connections are left")
}

func (n *testPeer) member() peerMember {
	return peerMember{Node: n.id, Store: testStore(n.id), Address: n.address}
}

// connect makes two nodes know each other and waits until they are connected.
func connect(t testing.TB, a, b *testPeer) {
	t.Helper()
	a.peers.SetMembers([]peerMember{b.member()})
	b.peers.SetMembers([]peerMember{a.member()})
	require.Equal(t, fmt.Sprintf("%d up", b.id), next(t, a.handler.events))
	require.Equal(t, fmt.Sprintf("%d up", a.id), next(t, b.handler.events))
}

// rawPeer is the other end of a connection to a peer port, frame by frame.
type rawPeer struct {
	t    testing.TB
	conn *net.TCPConn
	r    *bufio.Reader
}

func dialPeer(t testing.TB, n *testPeer) *rawPeer {
	t.Helper()
	conn, err := net.Dial("tcp", n.address)
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	return newRawPeer(t, conn)
}

func newRawPeer(t testing.TB, conn net.Conn) *rawPeer {
	require.NoError(t, conn.SetDeadline(time.Now().Add(20*time.Second)))
	return &rawPeer{t: t, conn: conn.(*net.TCPConn), r: bufio.NewReader(conn)}
}

func (r *rawPeer) write(b []byte) {
	_, err := r.conn.Write(b)
	require.NoError(r.t, err)
}

func (r *rawPeer) send(kind wire.PeerKind, number uint32, m wire.Message) {
	r.write(wire.AppendPeerFrame(nil, kind, number, m))
}

// read is the next frame.
func (r *rawPeer) read() (wire.PeerHeader, []byte) {
	r.t.Helper()
	h, body, err := r.tryRead()
	require.NoError(r.t, err)
	return h, body
}

func (r *rawPeer) tryRead() (wire.PeerHeader, []byte, error) {
	header := make([]byte, wire.HeaderSize)
	if _, err := io.ReadFull(r.r, header); err != nil {
		return wire.PeerHeader{}, nil, err
	}
	h, err := wire.ParsePeerHeader(header)
	if err != nil {
		return h, nil, err
	}
	body := make([]byte, h.BodySize())
	_, err = io.ReadFull(r.r, body)
	return h, body, err
}

// await reads frames until one of a kind comes.
func (r *rawPeer) await(kind wire.PeerKind) (wire.PeerHeader, []byte) {
	r.t.Helper()
	for {
		if h, body := r.read(); h.Kind == kind {
			return h, body
		}
	}
}

// closed waits for the end of the connection and returns what came before.
func (r *rawPeer) closed() []byte {
	r.t.Helper()
	rest, err := io.ReadAll(r.r)
	if err != nil {
		require.ErrorContains(r.t, err, "reset")
	}
	return rest
}

// testHello is what node says of itself in attempt.
func testHello(node, attempt uint32) *wire.PeerHello {
	return &wire.PeerHello{MinVersion: wire.MinPeerVersion, MaxVersion: wire.MaxPeerVersion, MinLevel: 1, MaxLevel: 1, Cluster: testCluster, Node: node, Store: testStore(node), Boot: 1, Attempt: attempt}
}

// hello opens the connection as a node and returns the frame that answers.
func (r *rawPeer) hello(h *wire.PeerHello) (wire.PeerKind, []byte) {
	r.t.Helper()
	r.write(wire.AppendPeerFrame([]byte(wire.PeerPreface), wire.PeerKindHello, 0, h))
	answer, body := r.read()
	return answer.Kind, body
}

// connectRaw makes a node that the test plays a member of n, and connects it.
func connectRaw(t testing.TB, n *testPeer, node uint32) *rawPeer {
	t.Helper()
	n.peers.SetMembers([]peerMember{{Node: node, Store: testStore(node)}})
	r := dialPeer(t, n)
	kind, _ := r.hello(testHello(node, 1))
	require.Equal(t, wire.PeerKindWelcome, kind)
	require.Equal(t, fmt.Sprintf("%d up", node), next(t, n.handler.events))
	r.await(wire.PeerKindLeaders)
	return r
}
