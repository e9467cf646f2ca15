package client

import (
	"context"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/wire"
)

// A record that is given back because its handler has taken too long is lost, and that is told,
// once, whatever the broker answers.
func TestWhoTakesTooLongIsToldThatTheRecordIsLost(t *testing.T) {
	g := startGroup(t, wire.GroupSettings{Mode: Shared, AckWaitMs: 20, RevokeMs: 20})
	lost := make(chan LeaseLost, 10)
	c := g.consumer(OnEvent(func(e Event) {
		if e, ok := e.(LeaseLost); ok {
			lost <- e
		}
	}))
	for i, code := range []wire.ErrorCode{wire.CodeOK, wire.CodeStaleEpoch} {
		offset := wire.Offset(10 + i)
		g.deliver(offset, fakeEpoch, "")
		d := next(t, c)
		back := g.said(wire.OutcomeNack, offset, fakeEpoch)
		require.Equal(t, LeaseLost{Destination: "orders", Group: "billing", Offset: uint64(offset), Reason: errAckWait.Error()}, <-lost)
		g.answer(back, code)
		require.ErrorIs(t, d.Ack(), ErrFenced)
	}
	g.said(wire.OutcomeLostSeen, 11, fakeEpoch)
	require.NoError(t, c.Close(testContext(t)))
	require.Empty(t, lost)
}

// Rules 17 and 24: a consumer that was only late, and has given up what it held, gives it back:
// its broker still lists it, and would wait for nobody until the ack wait is over. What was on its
// way behind such a record of its scope is not started before it.
func TestRule17_WhatALateConsumerGivesUpGoesBack(t *testing.T) {
	for name, test := range map[string]func(t *testing.T, g *fakeGroup, c *Consumer, released wire.Outcome){
		"its broker has waited": func(t *testing.T, g *fakeGroup, c *Consumer, released wire.Outcome) {
			g.send(wire.OpGroupLost, &wire.GroupLost{Lost: []wire.Lost{{Offset: 11, Count: 2, Epoch: fakeEpoch, Reason: wire.ReasonReturned}}})
			g.said(wire.OutcomeLostSeen, 12, fakeEpoch)
			g.answer(released, wire.CodeOK)
			g.deliver(10, fakeEpoch+1, "a", "a")
			d := next(t, c)
			require.EqualValues(t, 10, d.Offset)
			require.NoError(t, d.Ack())
			g.said(wire.OutcomeAck, 10, fakeEpoch+1)
			none(t, c)
		},
		"its link breaks": func(t *testing.T, g *fakeGroup, c *Consumer, released wire.Outcome) {
			g.b.dropConns()
			<-g.links
			g.mu.Lock()
			defer g.mu.Unlock()
			claims := g.attached[len(g.attached)-1].Claims
			require.NotEmpty(t, claims)
			require.Equal(t, wire.OutcomeReleased, claims[0].Kind)
		},
		"its broker has not": func(t *testing.T, g *fakeGroup, c *Consumer, released wire.Outcome) {
			g.answer(released, wire.CodeStaleEpoch)
			g.said(wire.OutcomeLostSeen, 10, fakeEpoch)
			require.EqualValues(t, 12, next(t, c).Offset, "it is still ours")
		},
	} {
		t.Run(name, func(t *testing.T) {
			g := startGroup(t, wire.GroupSettings{Mode: Serial, SessionMs: 300})
			g.mu.Lock()
			g.deaf = true
			g.mu.Unlock()
			lost := make(chan LeaseLost, 10)
			c := g.consumer(Mode(Serial), OnEvent(func(e Event) {
				if e, ok := e.(LeaseLost); ok {
					lost <- e
				}
			}))
			g.deliver(10, fakeEpoch, "a", "a")
			d := next(t, c)
			<-d.Context().Done()
			require.ErrorIs(t, context.Cause(d.Context()), ErrFenced)
			require.ErrorIs(t, d.Ack(), ErrFenced)
			released := g.said(wire.OutcomeReleased, 10, fakeEpoch)
			g.mu.Lock()
			g.deaf = false
			g.mu.Unlock()
			for confirmed := false; !confirmed; runtime.Gosched() {
				c.mu.Lock()
				confirmed = time.Now().Before(c.attachments[0].valid)
				c.mu.Unlock()
			}
			g.deliver(12, fakeEpoch, "a") // of the same key, on its way meanwhile
			g.deliver(13, fakeEpoch, "z")
			require.EqualValues(t, 13, next(t, c).Offset)
			none(t, c)
			test(t, g, c, released)
			require.EqualValues(t, 10, (<-lost).Offset)
			require.Empty(t, lost, "once")
		})
	}
}
