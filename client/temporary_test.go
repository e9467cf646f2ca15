package client

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/wire"
)

// R-SIB-21: what was received and not handed out is not taken, also when the queue is taken
// up again over another connection: if the process ends then, who resumes the queue gets it.
func TestR_SIB_21_WhatIsTakenUpAgainCountsAsTakenWhenItIsHandedOut(t *testing.T) {
	b := startBroker(t)
	var builder wire.BatchBuilder
	for i := range 3 {
		require.True(t, builder.Append(1, 0, nil, fmt.Append(nil, i), nil, 0))
	}
	batch, _ := builder.Finish(wire.ProducerIdentity{ID: wire.NoProducerID}, 0, NoCompression, nil)
	opened := make(chan wire.Offset, 2)
	b.setScript(func(q *fakeRequest) bool {
		if q.header.Opcode != wire.OpTempOpen {
			return q.header.Opcode == wire.OpTempTaken
		}
		var m wire.TemporaryOpenRequest
		q.parse(&m)
		opened <- m.Next
		q.reply(&wire.TemporaryOpenResponse{Link: 5, Name: wire.TemporaryName(1, [16]byte{1})})
		q.conn.send(wire.Header{Opcode: wire.OpTempDeliver, Version: wire.OpTempDeliver.Version(), ID: 5}, &wire.TemporaryDeliver{Batch: batch})
		return true
	})
	ctx := testContext(t)
	q, err := connect(t, b).TemporaryQueue(ctx, Grace(time.Minute))
	require.NoError(t, err)
	require.Equal(t, wire.Offset(0), <-opened)
	for i := range uint64(3) {
		r, err := q.Receive(ctx)
		require.NoError(t, err)
		require.Equal(t, i, r.Offset, "each comes once")
		if i == 0 {
			b.dropConns()
			require.Equal(t, wire.Offset(1), <-opened, "two records were received and are with nobody")
		}
	}
}

// What a temporary queue refuses when it is sent again may have been taken the first time.
func TestWhatWasLostOnItsWayToATemporaryQueueIsUnknown(t *testing.T) {
	b := startBroker(t)
	name := wire.TemporaryName(1, [16]byte{1})
	sent := 0
	b.setScript(func(q *fakeRequest) bool {
		if q.header.Opcode != wire.OpTempSend {
			return false
		}
		if sent++; sent%2 == 1 {
			q.conn.drop()
		} else {
			q.refuse(wire.CodePartitionFull)
		}
		return true
	})
	c := connect(t, b)
	_, err := c.Send(testContext(t), name, &Record{Value: []byte("x")})
	require.ErrorIs(t, err, wire.CodePartitionFull)
	require.Equal(t, Unknown, outcomeOf(t, err))
	p := newTestProducer(t, c, name, WaitForSpace(false))
	_, errs := sendAll(t, p, nil, "x")
	require.ErrorIs(t, errs[0], wire.CodePartitionFull)
	require.Equal(t, Unknown, outcomeOf(t, errs[0]))
}
