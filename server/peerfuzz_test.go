package server

import (
	"testing"

	"github.com/panjf2000/gnet/v2"
	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/replication"
	"github.com/lockstepmq/lockstep/wire"
)

// FuzzPeerConn gives a connection between nodes any bytes in pieces of any size,
// before and after its handshake: nothing panics, and what is kept is what arrived.
func FuzzPeerConn(f *testing.F) {
	hello := wire.AppendPeerFrame([]byte(wire.PeerPreface), wire.PeerKindHello, 0, testHello(2, 1))
	f.Add(uint16(7), false, hello)
	f.Add(uint16(7), false, []byte(wire.Preface))
	var all []byte
	for _, m := range []struct {
		kind wire.PeerKind
		m    wire.Message
	}{
		{wire.PeerKindAppend, &wire.PeerAppend{To: 1, From: 2, Entries: []wire.PeerEntry{{Term: 1, Data: []byte("abc")}}}},
		{wire.PeerKindRaft, &wire.PeerRaft{Messages: []wire.PeerRaftMessage{{Type: wire.PeerVote, To: 1}}}},
		{wire.PeerKindHeartbeats, &wire.PeerBeats{Tick: 1, Beats: []wire.PeerBeat{{To: 1}}}},
		{wire.PeerKindSnapshot, &wire.PeerSnapshot{To: 1, ConfState: []byte{1}}},
		{wire.PeerKindLeaders, &wire.PeerLeaders{Leaders: []wire.PeerLeader{{Replica: 1, Epoch: 1}}}},
		{wire.PeerKindRequest, &wire.PeerRequest{Op: wire.PeerStatus, Body: []byte("x")}},
		{wire.PeerKindResponse, &wire.PeerResponse{Code: wire.CodeOK}},
		{wire.PeerKindChunk, &wire.PeerChunk{Data: []byte("abc")}},
		{wire.PeerKindAck, &wire.PeerAck{Offset: 3}},
	} {
		frame := wire.AppendPeerFrame(nil, m.kind, 1, m.m)
		f.Add(uint16(100), true, frame)
		all = append(all, frame...)
	}
	f.Add(uint16(3), true, all)
	f.Add(uint16(1000), false, append(hello, all...))
	writables, err := newWritables()
	require.NoError(f, err)
	f.Cleanup(writables.stop)
	f.Fuzz(func(t *testing.T, piece uint16, open bool, stream []byte) {
		c := fuzzPeerConn(t, writables, open)
		kept := 0
		for rest := stream; len(rest) > 0 && c.phase < peerClosing; {
			n := min(int(piece)+1, len(rest))
			kept += n
			c.traffic(rest[:n])
			c.loop.drain()
			require.LessOrEqual(t, c.rest.size(), kept)
			require.LessOrEqual(t, c.rest.capacity(), max(8*kept, 1<<minBufferShift)) // a quarter of it, of a size that is a power of two
			rest = rest[n:]
		}
		require.Zero(t, c.set.engine.counters.panics.Load())
		c.close(errPeerStopped)
		require.Nil(t, c.rest)
		require.Zero(t, c.queue.size())
		require.Zero(t, c.set.counters.open.Load())
	})
}

// fuzzPeerConn is a connection without a socket.
func fuzzPeerConn(t *testing.T, writables *writables, open bool) *peerConn {
	e := &engine{logger: newDiscardLogger(), writables: writables}
	var err error
	e.limits, err = Limits{}.withDefaults(1000)
	require.NoError(t, err)
	e.bad = complaints{logger: e.logger, counters: &e.counters, kinds: make(map[string]*complaintWindow)}
	p := newPeerSet(peerOptions{Engine: e, Handler: mutePeerHandler{}, Self: testSelf(1), Logger: e.logger})
	n := &peerNode{set: p, id: 2, store: testStore(2), wake: make(chan struct{}, 1)}
	p.nodes.Store(&map[uint32]*peerNode{2: n})
	c := &peerConn{set: p, remote: "fuzz", release: func() {}}
	c.fd, c.timer.conn, c.calls.set = -1, c, p
	c.loop = &loop{engine: e, running: true, epoll: -1}
	c.loop.gnet = closingLoop{c: c}
	c.loop.wheel.init(0)
	p.counters.open.Add(1)
	c.awaiting.Store(true) // nothing is written
	if open {
		c.phase, c.node = peerOpen, n
		n.opened(c)
	}
	return c
}

// closingLoop closes the connection as gnet does.
type closingLoop struct {
	gnet.EventLoop
	c *peerConn
}

func (l closingLoop) Close(gnet.Conn) error {
	l.c.disconnected(false, nil)
	return nil
}

// mutePeerHandler takes everything.
type mutePeerHandler struct{}

func (mutePeerHandler) Message(*replication.Message) kicker { return nil }
func (mutePeerHandler) Beat(replication.Heartbeat) kicker   { return nil }
func (mutePeerHandler) Leaders(uint32, []wire.PeerLeader)   {}
func (mutePeerHandler) Node(replication.PeerEvent)          {}
func (mutePeerHandler) Dropped(bool, uint64, uint32)        {}
func (mutePeerHandler) Request(_ uint32, _ wire.PeerOp, body []byte, reply func(wire.ErrorCode, []byte)) {
	reply(wire.CodeOK, body)
}
