package client

import (
	"context"
	"errors"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// A broker that hangs, as one that was stopped, takes connections and answers nothing.
// Who knows others is with one of them before its own patience ends.
func TestF14_ABrokerThatHangsKeepsNobodyFromTheOthers(t *testing.T) {
	t.Parallel()
	hung, err := net.Listen("tcp", "127.0.0.1:0") // the kernel accepts
	require.NoError(t, err)
	defer hung.Close()
	b := startBroker(t)
	ctx, cancel := context.WithTimeout(t.Context(), handshakeTimeout-time.Millisecond) // what an attempt may take
	defer cancel()
	c, err := Connect(ctx, hung.Addr().String()+","+b.address(), InOrder())
	require.NoError(t, err)
	defer c.Close()
	require.Equal(t, b.hello.NodeID, c.Info().Node)
}

func TestAttemptsOverlap(t *testing.T) {
	failed := errors.New("connection refused")
	// after: how long an address takes to answer; negative: to fail.
	run := func(t *testing.T, patience time.Duration, after map[string]time.Duration, addresses ...string) (ended []string, took time.Duration, begun map[string]time.Duration) {
		synctest.Test(t, func(t *testing.T) {
			start := time.Now()
			var mu sync.Mutex
			begun = map[string]time.Duration{}
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			a := newAttempts(ctx, func(ctx context.Context, address string) (*session, error) {
				mu.Lock()
				begun[address] = time.Since(start)
				mu.Unlock()
				select {
				case <-ctx.Done():
					return nil, ctx.Err()
				case <-time.After(max(after[address], -after[address])):
				}
				if after[address] < 0 {
					return nil, failed
				}
				here, there := net.Pipe()
				there.Close()
				return &session{conn: here}, nil
			})
			for {
				rest, e, ok := a.next(addresses)
				if addresses = rest; !ok {
					break
				}
				ended = append(ended, e.address)
				if e.err == nil {
					e.session.conn.Close()
					break
				}
			}
			a.close()
			require.Zero(t, a.running)
			took = time.Since(start)
		})
		return ended, took, begun
	}
	const s = time.Second
	t.Run("one that answers is the only one", func(t *testing.T) {
		ended, took, begun := run(t, 5*s, map[string]time.Duration{"a": s / 2, "b": 0}, "a", "b")
		require.Equal(t, []string{"a"}, ended)
		require.Equal(t, s/2, took)
		require.NotContains(t, begun, "b")
	})
	t.Run("one that fails is followed at once, and none is tried twice", func(t *testing.T) {
		ended, took, begun := run(t, 5*s, map[string]time.Duration{"a": -s / 4, "b": -s / 4, "c": s / 4}, "a", "b", "a", "b", "c")
		require.Equal(t, []string{"a", "b", "c"}, ended)
		require.Equal(t, 3*s/4, took)
		require.Equal(t, map[string]time.Duration{"a": 0, "b": s / 4, "c": s / 2}, begun)
	})
	t.Run("those that hang are overtaken", func(t *testing.T) {
		ended, took, begun := run(t, 5*s, map[string]time.Duration{"a": time.Hour, "b": time.Hour, "c": s / 4}, "a", "b", "c")
		require.Equal(t, []string{"c"}, ended)
		require.Equal(t, 2*overlapAfter+s/4, took)
		require.Equal(t, map[string]time.Duration{"a": 0, "b": overlapAfter, "c": 2 * overlapAfter}, begun)
	})
	t.Run("one that is only slow may still be the first", func(t *testing.T) {
		ended, took, _ := run(t, 5*s, map[string]time.Duration{"a": 3 * s / 2, "b": time.Hour}, "a", "b")
		require.Equal(t, []string{"a"}, ended)
		require.Equal(t, 3*s/2, took)
	})
	t.Run("patience ends them all", func(t *testing.T) {
		ended, took, begun := run(t, 3*s/2, map[string]time.Duration{"a": time.Hour, "b": time.Hour, "c": 0}, "a", "b", "c")
		require.ElementsMatch(t, []string{"a", "b"}, ended)
		require.Equal(t, 3*s/2, took)
		require.NotContains(t, begun, "c")
	})
}
