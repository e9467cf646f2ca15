package client

import (
	"bytes"
	"context"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/wire"
)

// The context of a record lasts until its Ack is confirmed: AckSync waits with it, and says
// what came of the Ack, not that the context is over. A handler's ends with the handler.
func TestAckSyncTakesTheContextOfItsRecord(t *testing.T) {
	g := startGroup(t, wire.GroupSettings{Mode: Shared})
	c := g.consumer()
	g.deliver(8, fakeEpoch, "", "")
	gone, d := next(t, c), next(t, c)
	require.NoError(t, gone.Ack())
	require.NoError(t, gone.Context().Err(), "its ack is not confirmed")
	g.said(wire.OutcomeAck, 8, fakeEpoch)
	require.NoError(t, d.Nack())
	g.said(wire.OutcomeNack, 9, fakeEpoch)
	require.Error(t, d.Context().Err(), "nobody waits for that of a nack")
	impatient, stop := context.WithCancel(testContext(t))
	stop()
	require.ErrorIs(t, gone.AckSync(impatient), context.Canceled)

	g.deliver(10, fakeEpoch, "", "", "")
	ctx, cancel := context.WithCancel(testContext(t))
	acked := make(chan error, 3)
	handled := make(chan context.Context, 3)
	done := make(chan error, 1)
	go func() {
		done <- c.Run(ctx, func(ctx context.Context, d *Delivery) error {
			derived, cancel := context.WithCancel(ctx)
			defer cancel()
			defer func() { handled <- ctx }()
			if d.Offset == 12 {
				return d.Ack()
			}
			err := d.AckSync(derived)
			acked <- err
			return err
		})
	}()
	g.answer(g.said(wire.OutcomeAck, 10, fakeEpoch), wire.CodeOK)
	require.NoError(t, <-acked)
	<-handled
	g.answer(g.said(wire.OutcomeAck, 11, fakeEpoch), wire.CodeStaleEpoch)
	require.ErrorIs(t, <-acked, ErrFenced)
	<-handled
	g.said(wire.OutcomeLostSeen, 11, fakeEpoch)
	g.said(wire.OutcomeAck, 12, fakeEpoch) // and nobody confirms it
	<-(<-handled).Done()
	require.NoError(t, ctx.Err())

	cancel()
	require.ErrorIs(t, <-done, context.Canceled)
}

// AckFunc tells everybody who asks, once, also of a record that was acknowledged before.
func TestAckFuncOfWhatIsAcknowledged(t *testing.T) {
	g := startGroup(t, wire.GroupSettings{Mode: Shared})
	c := g.consumer()
	g.deliver(10, fakeEpoch, "", "")
	d, back := next(t, c), next(t, c)
	told := make(chan string, 10)
	as := func(who string) func(error) {
		return func(err error) { told <- who; require.NoError(t, err) }
	}
	require.NoError(t, d.Ack())
	require.NoError(t, d.AckFunc(as("first")))
	require.NoError(t, d.AckFunc(as("second")))
	require.Empty(t, told)
	g.answer(g.said(wire.OutcomeAck, 10, fakeEpoch), wire.CodeOK)
	require.Equal(t, "first", <-told)
	require.Equal(t, "second", <-told)
	require.NoError(t, d.AckSync(testContext(t)))
	require.NoError(t, d.AckFunc(as("late")))
	require.Equal(t, "late", <-told)
	require.NoError(t, back.Nack())
	require.ErrorIs(t, back.AckFunc(as("nobody")), ErrSettled)
	g.answer(g.said(wire.OutcomeNack, 11, fakeEpoch), wire.CodeOK)
	require.ErrorIs(t, back.AckFunc(as("nobody")), ErrSettled)
	require.Empty(t, told)
}

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

// Fetch without a time to wait gives what is there, asks for records if there are none, and
// says why there will be none.
func TestFetchGivesWhatIsThere(t *testing.T) {
	g := startGroup(t, wire.GroupSettings{Mode: Shared})
	c := g.consumer()
	g.deliver(10, fakeEpoch, "", "", "")
	first := next(t, c) // so that all have come
	for _, most := range []int{0, -1} {
		list, err := c.Fetch(testContext(t), most, time.Hour)
		require.NoError(t, err)
		require.Empty(t, list)
	}
	list, err := c.Fetch(testContext(t), 10, 0)
	require.NoError(t, err)
	require.Len(t, list, 2)
	list, err = c.Fetch(testContext(t), 10, 0)
	require.NoError(t, err)
	require.Empty(t, list)

	c.pause()
	for (<-g.capacity).Records > 0 { // how many are worked on was said before
	}
	_, err = c.Fetch(testContext(t), 10, 0)
	require.NoError(t, err)
	require.NotZero(t, (<-g.capacity).Records, "who fetches wants records")

	require.NoError(t, first.Ack())
	over, cancel := context.WithCancel(testContext(t))
	cancel()
	_, err = c.Fetch(over, 10, 0)
	require.ErrorIs(t, err, context.Canceled)
	require.ErrorIs(t, c.Close(over), context.Canceled)
	_, err = c.Fetch(testContext(t), 10, 0)
	require.ErrorIs(t, err, ErrClosed)
}

// Close waits for the outcome of what is worked on as long as its ctx has until its deadline, and
// one that is called meanwhile as long as its own.
func TestCloseWaitsAsLongAsItsContextAllows(t *testing.T) {
	g := startGroup(t, wire.GroupSettings{Mode: Shared})
	c := g.consumer()
	g.deliver(10, fakeEpoch, "")
	d := next(t, c)
	hour, cancel := context.WithTimeout(t.Context(), time.Hour)
	defer cancel()
	patient, stop := c.patience(hour)
	defer stop()
	require.Equal(t, hour, patient)
	bounded, stop := c.patience(t.Context())
	defer stop()
	deadline, _ := bounded.Deadline()
	require.WithinDuration(t, time.Now(), deadline, goneTimeout)

	closed := make(chan error, 1)
	go func() { closed <- c.Close(hour) }()
	require.Zero(t, (<-g.capacity).Records)
	over, stop := context.WithCancel(testContext(t))
	stop()
	require.ErrorIs(t, c.Close(over), context.Canceled, "the first one waits still")
	require.NoError(t, d.Ack())
	g.answer(g.said(wire.OutcomeAck, 10, fakeEpoch), wire.CodeOK)
	require.NoError(t, <-closed)
	require.NoError(t, c.Close(testContext(t)))
}

// Whoever does not hear that his record is given up loses it when the revoke grace is over.
func TestRule17_AHandlerThatDoesNotEndHoldsNoRecordOfALateConsumer(t *testing.T) {
	g := startGroup(t, wire.GroupSettings{Mode: Serial, SessionMs: 300, RevokeMs: 50})
	g.mu.Lock()
	g.deaf = true
	g.mu.Unlock()
	c := g.consumer(Mode(Serial))
	g.deliver(10, fakeEpoch, "a")
	d := next(t, c)
	g.said(wire.OutcomeReleased, 10, fakeEpoch)
	require.ErrorIs(t, context.Cause(d.Context()), ErrFenced)
	require.ErrorIs(t, d.Ack(), ErrFenced)
}

// Rules 17 and 24: a consumer that was only late, and has given up what it held, gives it back when the
// application has ended:
// its broker still lists it, and would wait for nobody until the ack wait is over. What was on its
// way behind such a record of its scope is not started before it.
func TestRule17_WhatALateConsumerGivesUpGoesBack(t *testing.T) {
	for name, test := range map[string]func(t *testing.T, g *fakeGroup, c *Consumer, behind, released wire.Outcome){
		"its broker has waited": func(t *testing.T, g *fakeGroup, c *Consumer, behind, released wire.Outcome) {
			g.answer(behind, wire.CodeOK)
			g.send(wire.OpGroupLost, &wire.GroupLost{Lost: []wire.Lost{{Offset: 12, Count: 1, Epoch: fakeEpoch, Reason: wire.ReasonReturned}}})
			g.said(wire.OutcomeLostSeen, 12, fakeEpoch)
			g.answer(released, wire.CodeOK)
			g.deliver(10, fakeEpoch+1, "a", "a")
			d := next(t, c)
			require.EqualValues(t, 10, d.Offset)
			require.NoError(t, d.Ack())
			g.said(wire.OutcomeAck, 10, fakeEpoch+1)
			none(t, c)
		},
		"its link breaks": func(t *testing.T, g *fakeGroup, c *Consumer, behind, released wire.Outcome) {
			g.b.dropConns()
			<-g.links
			g.mu.Lock()
			defer g.mu.Unlock()
			claims := g.attached[len(g.attached)-1].Claims
			require.NotEmpty(t, claims)
			require.Equal(t, wire.OutcomeReleased, claims[0].Kind)
		},
		"its broker has not": func(t *testing.T, g *fakeGroup, c *Consumer, behind, released wire.Outcome) {
			g.answer(behind, wire.CodeStaleEpoch)
			g.said(wire.OutcomeLostSeen, 11, fakeEpoch)
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
			behind := g.said(wire.OutcomeReleased, 11, fakeEpoch)
			require.ErrorIs(t, d.Extend(time.Hour), ErrFenced)
			require.ErrorIs(t, d.Ack(), ErrFenced, "only now has it ended")
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
			test(t, g, c, behind, released)
			require.EqualValues(t, 10, (<-lost).Offset)
			require.Empty(t, lost, "once")
		})
	}
}

// Rules 12 and 17: what a consumer gives up while the attach that claims it is on its way goes back, too:
// its broker takes it for held, and it would wait for nobody until the ack wait is over.
func TestRule17_WhatIsGivenUpWhileItsClaimIsOnItsWayGoesBack(t *testing.T) {
	g := startGroup(t, wire.GroupSettings{Mode: Shared, SessionMs: 300, RevokeMs: 50})
	lapsed := make(chan Unconfirmed, 10)
	c := g.consumer(OnEvent(func(e Event) {
		if e, ok := e.(Unconfirmed); ok {
			lapsed <- e
		}
	}))
	g.deliver(10, fakeEpoch, "", "")
	d := next(t, c)
	unanswered := make(chan *fakeRequest, 1)
	g.b.setScript(func(q *fakeRequest) bool {
		if q.header.Opcode != wire.OpGroupAttach {
			return g.serve(q)
		}
		late := *q
		late.body = bytes.Clone(q.body)
		unanswered <- &late
		return true
	})
	g.b.dropConns()
	attach := <-unanswered
	<-lapsed
	g.b.setScript(g.serve)
	require.True(t, g.serve(attach))
	g.mu.Lock()
	require.Equal(t, []wire.Outcome{{Offset: 10, Count: 2, Epoch: fakeEpoch}}, g.attached[1].Claims)
	g.mu.Unlock()
	g.said(wire.OutcomeReleased, 11, fakeEpoch)
	g.said(wire.OutcomeReleased, 10, fakeEpoch)
	require.ErrorIs(t, d.Ack(), ErrFenced)
	none(t, c)
}
