package client

import (
	"bytes"
	"errors"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/wire"
)

// hold keeps requests unanswered.
func (g *fakeGroup) hold(op wire.Opcode) chan *fakeRequest {
	unanswered := make(chan *fakeRequest, 10)
	g.b.setScript(func(q *fakeRequest) bool {
		if q.header.Opcode != op {
			return g.serve(q)
		}
		late := *q
		late.body = bytes.Clone(q.body)
		unanswered <- &late
		return true
	})
	return unanswered
}

// Rules 11 and 12: a consumer that has ended, but is not closed, keeps what it has handed out: an attach that
// claims it is no reason to leave, and a link that breaks is made again.
func TestRule12_AConsumerThatHasEndedKeepsWhatItWorksOn(t *testing.T) {
	for name, before := range map[string]bool{"before the link breaks": true, "while it attaches": false} {
		t.Run(name, func(t *testing.T) {
			g := startGroup(t, wire.GroupSettings{Mode: Shared})
			c := g.consumer()
			g.deliver(10, fakeEpoch, "", "")
			d := next(t, c)
			held := g.hold(wire.OpGroupAttach)
			end := func() {
				c.mu.Lock()
				defer c.mu.Unlock()
				c.stop(errors.New("the alias has moved"))
			}
			if before {
				end()
			}
			g.b.dropConns()
			attach := <-held
			if !before {
				end()
			}
			g.b.setScript(g.serve)
			require.True(t, g.serve(attach))
			<-g.links
			require.NoError(t, d.Ack())
			for o := range g.outcomes {
				if o.Kind == wire.OutcomeAck {
					g.answer(o, wire.CodeOK)
					break
				}
			}
			require.NoError(t, d.AckSync(testContext(t)))
			require.Empty(t, g.left)
		})
	}
}

// What is worked on more than an attach has said is told behind its answer.
func TestAConsumerThatIsBackSaysHowManyRecordsItWorksOn(t *testing.T) {
	g := startGroup(t, wire.GroupSettings{Mode: Shared, SessionMs: 5000})
	c := g.consumer()
	g.deliver(10, fakeEpoch, "", "", "", "")
	next(t, c)
	held := g.hold(wire.OpGroupAttach)
	g.b.dropConns()
	attach := <-held
	g.b.setScript(g.serve)
	next(t, c)
	next(t, c)
	require.True(t, g.serve(attach))
	<-g.links
	require.EqualValues(t, 4, (<-g.capacity).Working)
}

// Rule 14: the answer to an attach that is not waited for any more, because the consumer goes by another node
// now, is no reason to leave: the session goes on by the next attach.
func TestRule14_ALateAnswerEndsNoSession(t *testing.T) {
	g := startGroup(t, wire.GroupSettings{Mode: Shared, SessionMs: 5000})
	x := connect(t, g.b, AllowRedirect(false))
	c, err := x.Consumer(testContext(t), "orders", Group("billing"))
	require.NoError(t, err)
	<-g.links
	t.Cleanup(func() { c.end() })
	g.deliver(10, fakeEpoch, "", "")
	d := next(t, c)
	held := g.hold(wire.OpGroupAttach)
	g.b.dropConns()
	attach := <-held
	opens := g.hold(wire.OpOpenPartition)
	s, err := open(x.ctx, &x.options, g.b.address(), x.clusterID, x.brokerEvent)
	require.NoError(t, err)
	x.mu.Lock()
	x.nodes[99] = &node{session: x.current} // from lives on
	x.mu.Unlock()
	x.install(s)
	opened := <-opens
	require.True(t, g.serve(attach)) // the leader takes the session in, over the home before
	<-g.links
	g.b.setScript(g.serve)
	opened.handle()
	<-g.links
	require.NoError(t, d.AckSync(confirmedBy(t, g, 10)))
	require.Empty(t, g.left)
}

// What waits to be said when the consumer leaves goes first.
func TestOutcomesGoBeforeTheLeave(t *testing.T) {
	g := startGroup(t, wire.GroupSettings{Mode: Shared, SessionMs: 5000})
	c := g.consumer()
	g.deliver(10, fakeEpoch, "")
	d := next(t, c)
	order := make(chan wire.Opcode, 10)
	g.b.setScript(func(q *fakeRequest) bool {
		if op := q.header.Opcode; op == wire.OpGroupLeave || op == wire.OpGroupOutcome {
			order <- op
		}
		return g.serve(q)
	})
	c.mu.Lock()
	at := c.attachments[0]
	s := at.session
	c.mu.Unlock()
	s.writing.Lock() // the socket is not free at the moment
	require.NoError(t, d.Ack())
	c.mu.Lock()
	c.closing = true
	at.leave()
	c.mu.Unlock()
	s.writing.Unlock()
	require.Equal(t, []wire.Opcode{wire.OpGroupOutcome, wire.OpGroupLeave}, []wire.Opcode{<-order, <-order})
}

// Rule 24: what was dropped behind a nack is given back by name: of a record that has expired meanwhile the broker
// does not know what lies behind it.
func TestRule24_WhatIsDroppedBehindANackIsGivenBack(t *testing.T) {
	g := startGroup(t, wire.GroupSettings{Mode: Stream})
	c := g.consumer(Mode(Stream))
	g.deliver(10, fakeEpoch, "", "", "")
	d := next(t, c)
	require.NoError(t, d.Nack())
	g.said(wire.OutcomeNack, 10, fakeEpoch)
	require.EqualValues(t, 2, g.said(wire.OutcomeReleased, 11, fakeEpoch).Count)
}

// A consumer that leaves, and hears as it comes back that its session has been removed, has left: it does
// not join anew to leave.
func TestWhoLeavesAndIsRemovedMeanwhileHasLeft(t *testing.T) {
	g := startGroup(t, wire.GroupSettings{Mode: Shared, SessionMs: 5000})
	c := g.consumer()
	leaves := g.hold(wire.OpGroupLeave)
	closed := make(chan error, 1)
	go func() { closed <- c.Close(testContext(t)) }()
	<-leaves // it is not answered
	attaches := g.hold(wire.OpGroupAttach)
	g.b.dropConns()
	(<-attaches).refuse(wire.CodeSessionGone)
	require.NoError(t, <-closed)
	require.Empty(t, attaches)
}
