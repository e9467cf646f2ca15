package client

import (
	"context"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/wire"
)

// R-SIB-24: a client may prefer or require a node, or a rack, as its own.
func TestR_SIB_24_TheHomeIsTheBrokerThatIsWanted(t *testing.T) {
	nodes := startCluster(t, 3)
	nodes[0].mu.Lock()
	for i, rack := range []string{"a", "b", "c"} {
		nodes[i].rack = rack
	}
	nodes[0].mu.Unlock()
	nodes[0].create("d", Topic, 3)
	list := nodes[0].address()
	home := func(servers string, opts ...Option) (uint32, error) {
		c, err := Connect(testContext(t), servers, opts...)
		if err != nil {
			return 0, err
		}
		defer c.Close()
		p := newTestProducer(t, c, "d", LocalPreference(false))
		require.Len(t, sendOneByOne(t, p, 3), 3, "the leaders are reached as before")
		return c.Info().Node, nil
	}
	for _, c := range []struct {
		name string
		opt  Option
		want uint32
	}{
		{"a node that was not given", TargetNode(3, Require), 3},
		{"the node that was given", TargetNode(1, Require), 1},
		{"a node that would be nice", TargetNode(2, Prefer), 2},
		{"a rack", TargetRack("b", Require), 2},
		{"a rack that would be nice", TargetRack("c", Prefer), 3},
		{"a rack that does not exist but would be nice", TargetRack("z", Prefer), 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			node, err := home(list, c.opt)
			require.NoError(t, err)
			require.Equal(t, c.want, node)
		})
	}
	for name, opt := range map[string]Option{"node": TargetNode(9, Require), "rack": TargetRack("z", Require)} {
		t.Run("a "+name+" that does not exist is required", func(t *testing.T) {
			_, err := home(list, opt)
			require.ErrorIs(t, err, ErrTarget)
		})
	}
	t.Run("without redirects only those given count", func(t *testing.T) {
		_, err := home(list, TargetNode(3, Require), AllowRedirect(false))
		require.ErrorIs(t, err, ErrTarget)
		node, err := home(list+","+nodes[2].address(), TargetNode(3, Require), AllowRedirect(false))
		require.NoError(t, err)
		require.Equal(t, uint32(3), node)
	})
	_, err := Connect(testContext(t), list, TargetNode(1, 7))
	require.ErrorContains(t, err, "TargetNode")

	nodes[2].stop()
	t.Run("one that is down", func(t *testing.T) {
		_, err := Connect(testContext(t), list, TargetNode(3, Require))
		require.ErrorIs(t, err, ErrTarget)
		c := connect(t, nodes[0], TargetNode(3, Prefer))
		require.Equal(t, uint32(1), c.Info().Node)
	})
}

// R-SIB-24 after a loss: who requires a broker waits for it, who prefers it takes the
// next best until it is back.
func TestR_SIB_24_WhatIsWantedIsLookedForAfterALoss(t *testing.T) {
	nodes := startCluster(t, 3)
	for _, mode := range []TargetMode{Prefer, Require} {
		c := connect(t, nodes[0], TargetNode(3, mode), func(o *connOptions) { o.returnPause = 5 * time.Millisecond })
		require.Equal(t, uint32(3), c.Info().Node)
		nodes[2].stop()
		switch mode {
		case Prefer:
			require.NoError(t, c.Ping(testContext(t)))
			require.NotEqual(t, uint32(3), c.Info().Node)
		case Require:
			ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
			require.ErrorIs(t, c.Ping(ctx), context.DeadlineExceeded)
			cancel()
		}
		nodes[2].restart()
		require.NoError(t, c.Ping(testContext(t)))
		require.Eventually(t, func() bool { return c.Info().Node == 3 }, 60*time.Second, time.Millisecond)
		require.NoError(t, c.Ping(testContext(t)))
	}
}

// A broker may say something between the question and the answer.
func TestTheAnswerAboutNodesIsFoundAmongEvents(t *testing.T) {
	nodes := startCluster(t, 2)
	nodes[0].setScript(func(q *fakeRequest) bool {
		if q.header.Opcode == wire.OpMetadata {
			q.conn.send(wire.Header{Opcode: wire.OpEvent, Version: 1}, &wire.Event{Kind: wire.EventTopologyChanged, Version: 7})
		}
		return false
	})
	c := connect(t, nodes[0], TargetNode(2, Require))
	require.Equal(t, uint32(2), c.Info().Node)
}

// R-SIB-24: brokers that hear no majority may be all that answers. Who looks for another
// one then gets an error.
func TestR_SIB_24_WhatIsWantedIsLookedForWithoutAMajority(t *testing.T) {
	nodes := startCluster(t, 4)
	nodes[2].stop()
	nodes[3].stop()
	_, err := Connect(testContext(t), nodes[0].address()+","+nodes[1].address(), TargetNode(9, Require))
	require.ErrorIs(t, err, ErrTarget)
	c := connect(t, nodes[0], TargetNode(4, Prefer))
	require.Contains(t, []uint32{1, 2}, c.Info().Node)
}

// R-SIB-24: a broker that is preferred, and that takes no connection when it is tried again,
// keeps nobody from another one when the home is lost.
func TestR_SIB_24_WhoTriesToGoBackNoticesThatTheHomeIsLost(t *testing.T) {
	nodes := startCluster(t, 2)
	wanted, hangs := nodes[1].address(), make(chan struct{})
	var down, hang atomic.Bool
	c := connect(t, nodes[0], TargetNode(2, Prefer), WithDialTimeout(time.Hour), func(o *connOptions) { o.returnPause = time.Millisecond },
		WithDialer(func(ctx context.Context, address string) (net.Conn, error) {
			switch {
			case address != wanted || !down.Load():
				return new(net.Dialer).DialContext(ctx, "tcp", address)
			case hang.CompareAndSwap(true, false):
				close(hangs)
				<-ctx.Done()
			}
			return nil, context.DeadlineExceeded
		}))
	require.Equal(t, uint32(2), c.Info().Node)
	down.Store(true)
	nodes[1].dropConns()
	require.Eventually(t, func() bool { return c.Info().Node == 1 }, 30*time.Second, time.Millisecond)
	hang.Store(true)
	<-hangs
	nodes[0].dropConns()
	ctx, cancel := context.WithTimeout(testContext(t), 20*time.Second)
	defer cancel()
	require.NoError(t, c.Ping(ctx), "nobody looks for another home")
	require.Equal(t, uint32(1), c.Info().Node)
}
