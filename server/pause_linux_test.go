package server

import (
	"reflect"
	"runtime/debug"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/wire"
)

// The layout that pausing relies on is that of this version. When the version
// moves, look at connection_unix.go, eventloop_unix.go and the poller again: the
// fields, the events that are asked for, what write, close and read do.
func TestPausingIsBuiltForThisGnet(t *testing.T) {
	info, ok := debug.ReadBuildInfo()
	require.True(t, ok)
	for _, d := range info.Deps {
		if d.Path == "github.com/panjf2000/gnet/v2" {
			require.Equal(t, "v2.10.0", d.Version)
		}
	}
}

func TestPauseStopsAndResumesReading(t *testing.T) {
	n := startNode(t, Limits{})
	c := dialOpen(t, n.address)
	on := func(f func(s *session)) {
		done := make(chan struct{})
		n.engine.eachSession(func(s *session) {
			f(s)
			close(done)
		})
		<-done
	}
	on(func(s *session) {
		require.NoError(t, n.engine.layoutErr)
		require.Greater(t, s.loop.epoll, 2)
		s.full = true
		s.pause()
	})
	read := n.engine.counters.bytesIn.Load()
	c.send(wire.OpPing, 2, &wire.PingRequest{})
	other := dialOpen(t, n.address)
	other.send(wire.OpPing, 2, &wire.PingRequest{})
	other.answer(2)
	other.conn.Close()
	eventually(t, "one session", func() bool { return n.engine.counters.sessions.Load() == 1 })
	hello := uint64(len(wire.Preface) + len(frameOf(wire.OpHello, 1, &wire.HelloRequest{ClientName: t.Name()})) + wire.HeaderSize)
	require.Equal(t, read+hello, n.engine.counters.bytesIn.Load(), "only the other client was read")
	on(func(s *session) {
		s.full = false
		s.resume()
	})
	require.Equal(t, wire.CodeOK, c.answer(2).code())
}

// Writing to a client whose socket was full does not make it be read again.
func TestWritingDoesNotEndAPause(t *testing.T) {
	n := startNode(t, Limits{InFlightRequests: 4})
	n.backend.create(wire.Topic, "events", 1)
	r := n.backend.replica("events", 0)
	numbered(r, 16_000, 1000)
	r.set(func() { r.hold = true })
	c := dialOpen(t, n.address)
	h := c.open("events", 0)
	c.link(h, 0, 64<<20)
	eventually(t, "a full socket", func() bool { return n.engine.counters.stalls.Load() > 0 })
	batch, _ := testBatch(t, "x")
	go func() {
		for id := uint32(10); ; id++ {
			if _, err := c.conn.Write(frameOf(wire.OpProduce, id, &wire.ProduceRequest{Handle: h, Acks: wire.AcksQuorum, Batch: batch})); err != nil {
				return
			}
		}
	}()
	eventually(t, "pause", func() bool { return n.engine.counters.paused.Load() == 1 })
	for got := 0; got < len(r.stored()); {
		got += len(c.read().body) - wire.DeliverPrefixSize
	}
	require.EqualValues(t, 1, n.engine.counters.paused.Load())
	unparsed := make(chan int, 1)
	n.engine.eachSession(func(s *session) { unparsed <- s.rest.size() })
	require.LessOrEqual(t, <-unparsed, 3*readBufferBytes)
	read := n.engine.counters.bytesIn.Load()
	time.Sleep(50 * time.Millisecond) // that a socket is not read has no event
	require.Equal(t, read, n.engine.counters.bytesIn.Load(), "the socket is read")
	c.conn.Close()
	r.release()
}

func TestAResetIsSeenWhilePaused(t *testing.T) {
	n := startNode(t, Limits{})
	c := dialOpen(t, n.address)
	n.engine.eachSession(func(s *session) {
		s.full = true
		s.pause()
	})
	eventually(t, "pause", func() bool { return n.engine.counters.paused.Load() == 1 })
	require.NoError(t, c.conn.SetLinger(0))
	require.NoError(t, c.conn.Close())
	eventually(t, "end of the session", func() bool { return n.engine.counters.sessions.Load() == 0 })
}

func TestAnotherGnetIsRecognised(t *testing.T) {
	type loop struct{ Poller int }
	for name, conn := range map[string]any{
		"not a pointer":   struct{}{},
		"no loop":         &struct{ outboundBuffer int }{},
		"no poller":       &struct{ loop *loop }{},
		"loop by value":   &struct{ loop loop }{},
		"pointer to zero": (*int)(nil),
	} {
		_, err := findLayout(reflect.TypeOf(conn))
		require.Error(t, err, name)
	}
}
