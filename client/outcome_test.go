package client

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/wire"
)

// RULES R6: a batch whose attempt has ended and may have stored it is of unknown outcome, also
// if it is given up while another one behind it is on its way.
func TestRuleR6_WhatMayBeStoredIsUnknownWhenItIsGivenUp(t *testing.T) {
	b := startBroker(t)
	b.create("d", Topic, 1)
	p := newTestProducer(t, connect(t, b), "d", BatchBytes(1))
	b.setScript(produceScript(func(n int, q *fakeRequest) bool {
		if n == 1 {
			q.apply()
			q.refuse(wire.CodeInternal)
		}
		return true // the second one has no answer
	}))
	ctx := testContext(t)
	first, err := p.SendAsync(ctx, &Record{Value: []byte("a")})
	require.NoError(t, err)
	second, err := p.SendAsync(ctx, &Record{Value: []byte("b")})
	require.NoError(t, err)
	require.Eventually(t, func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		a := p.lanes[0]
		return a.draining && a.inFlight == 1
	}, 30*time.Second, time.Millisecond)
	ended, cancel := context.WithCancel(ctx)
	cancel()
	require.ErrorIs(t, p.Close(ended), context.Canceled)
	for _, ticket := range []*Ticket{first, second} {
		_, err = ticket.Wait(ctx)
		require.Equal(t, Unknown, outcomeOf(t, err))
	}
	require.Equal(t, []string{"a"}, b.values("d", 0))
}
