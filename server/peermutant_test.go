package server

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/wire"
)

// What the rows of RELIABILITY 6.4 about nodes come down to, each with the mutant that
// takes the protection away.

// clientOnPeerPort sends a client's first bytes to the port for nodes.
func clientOnPeerPort(t testing.TB, m peerMutants) {
	n := startMutant(t, testSelf(1), m)
	r := dialPeer(t, n)
	r.write([]byte(wire.Preface))
	eventually(t, "a decision", func() bool {
		return n.peers.counters.badInput.Load() > 0 || n.engine.counters.errors[wire.CodeMalformed].Load() > 0 || n.peers.counters.bytesIn.Load() == uint64(len(wire.Preface))
	})
	require.Equal(t, uint64(1), n.peers.counters.badInput.Load(), "a client is no node")
	r.closed()
}

func TestRow40_AClientIsNoNode(t *testing.T) { clientOnPeerPort(t, peerMutants{}) }

func TestRow40_Catches_AClientTakenForANode(t *testing.T) {
	caught(t, func(tb testing.TB) { clientOnPeerPort(tb, peerMutants{anyPreface: true}) })
}

// usurper connects under the ID of a member with another data directory (RULES R10).
func usurper(t testing.TB, m peerMutants) {
	n := startMutant(t, testSelf(1), m)
	n.peers.SetMembers([]peerMember{{Node: 2, Store: testStore(2)}})
	h := testHello(2, 1)
	h.Store = testStore(7)
	kind, _ := dialPeer(t, n).hello(h)
	require.Equal(t, wire.PeerKindRefused, kind)
	require.False(t, n.peers.Alive(2))
}

func TestRow41_AnotherDirectoryIsAnotherNode(t *testing.T) { usurper(t, peerMutants{}) }

func TestRow41_Catches_ANodeThatIsNotAskedWhoItIs(t *testing.T) {
	caught(t, func(tb testing.TB) { usurper(tb, peerMutants{anyNode: true}) })
}

// twin connects as a second process of a member's data directory while the first is there.
func twin(t testing.TB, m peerMutants) {
	n := startMutant(t, testSelf(1), m)
	connectRaw(t, n, 2)
	first := n.peers.connTo(2)
	h := testHello(2, 1)
	h.Boot = 2
	kind, _ := dialPeer(t, n).hello(h)
	require.Equal(t, wire.PeerKindRefused, kind)
	require.Same(t, first, n.peers.connTo(2))
}

func TestRow41_ACopyOfADirectoryIsNoNode(t *testing.T) { twin(t, peerMutants{}) }

func TestRow41_Catches_ACopyThatIsTakenForItsOriginal(t *testing.T) {
	caught(t, func(tb testing.TB) { twin(tb, peerMutants{anyTwin: true}) })
}

// holeInATransfer leaves out a chunk in the middle of what a node sends.
func holeInATransfer(t testing.TB, m peerMutants) {
	n := startMutant(t, testSelf(1), m)
	r := connectRaw(t, n, 2)
	codes := make(chan wire.ErrorCode, 1)
	n.peers.Request(2, wire.PeerFetchCheckpoint, nil, func(code wire.ErrorCode, _ []byte) { codes <- code })
	h, _ := r.await(wire.PeerKindRequest)
	r.send(wire.PeerKindChunk, h.Number, &wire.PeerChunk{Data: []byte("abc")})
	r.send(wire.PeerKindChunk, h.Number, &wire.PeerChunk{Offset: 6, Last: true, Data: []byte("ghi")})
	require.Equal(t, wire.CodeMalformed, <-codes)
}

func TestRow42_AHoleIsNoTransfer(t *testing.T) { holeInATransfer(t, peerMutants{}) }

func TestRow42_Catches_ChunksThatAreTakenAsTheyCome(t *testing.T) {
	caught(t, func(tb testing.TB) { holeInATransfer(tb, peerMutants{anyChunk: true}) })
}

// oneWay lets a node talk that hears nothing.
func oneWay(t testing.TB, m peerMutants) {
	n := startMutant(t, testSelf(1), m)
	r := connectRaw(t, n, 2)
	for tick := uint32(1); tick <= silentTicks+2 && n.peers.Alive(2); tick++ {
		before := n.peers.counters.framesIn.Load()
		n.peers.Tick()
		if !n.peers.Alive(2) {
			break
		}
		r.send(wire.PeerKindHeartbeats, 0, &wire.PeerBeats{Tick: tick})
		eventually(t, "the heartbeat's arrival", func() bool { return n.peers.counters.framesIn.Load() > before })
	}
	require.False(t, n.peers.Alive(2), "who does not hear us is dead")
}

func TestRuleR8_ALifeIsTwoWay(t *testing.T) { oneWay(t, peerMutants{}) }

func TestRuleR8_Catches_ALifeThatIsOneWay(t *testing.T) {
	caught(t, func(tb testing.TB) { oneWay(tb, peerMutants{anySound: true}) })
}
