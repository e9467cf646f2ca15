package client

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/wire"
)

// RULES R7: records that stay where they are are not overtaken by those of their key behind
// them, when others of their batch move.
func TestRuleR7_WhatStaysKeepsItsOrderWhenOthersMove(t *testing.T) {
	b := startBroker(t)
	d := b.create("d", Queue, 2)
	b.moveSlots(d, 0)
	c := connect(t, b)
	p := newTestProducer(t, c, "d", InFlight(1), BatchBytes(300))
	held := make(chan *fakeRequest, 1)
	asked := make(chan struct{}, 10)
	b.setScript(func(q *fakeRequest) bool {
		switch q.header.Opcode {
		case wire.OpProduce:
			if len(held) == 0 && len(b.values("d", 0)) == 0 {
				held <- q
				return true
			}
		case wire.OpMetadata:
			var m wire.MetadataRequest
			if m.Parse(q.body) == nil && m.Scope == wire.MetadataNamed {
				asked <- struct{}{}
			}
		}
		return false
	})
	ctx := testContext(t)
	stays, moves := []byte("abc"), []byte("") // slots 4399 and 15313 of 16384
	var tickets []*Ticket
	send := func(key []byte, value string) {
		ticket, err := p.SendAsync(ctx, &Record{Key: key, Value: []byte(value)})
		require.NoError(t, err)
		tickets = append(tickets, ticket)
	}
	send(stays, "first")
	q := <-held
	receipt, code := q.apply()
	send(moves, "moves") // with the next in a batch
	send(stays, "second")
	for i := range 20 {
		send(stays, fmt.Sprintf("%06d", i))
	}
	b.mu.Lock()
	d.info.SlotVersion++
	d.info.Slots = []wire.SlotRun{{FirstSlot: 0, Partition: 0}, {FirstSlot: wire.SlotCount / 2, Partition: 1}}
	b.mu.Unlock()
	b.sendEvent(wire.Event{Kind: wire.EventTopologyChanged, Version: 43})
	<-asked
	require.NoError(t, c.Ping(ctx)) // the answer to METADATA came before this one
	q.answerProduce(receipt, code)
	for _, ticket := range tickets {
		_, err := ticket.Wait(ctx)
		require.NoError(t, err)
	}
	require.Equal(t, []string{"moves"}, b.values("d", 1))
	want := []string{"first", "second"}
	for i := range 20 {
		want = append(want, fmt.Sprintf("%06d", i))
	}
	require.Equal(t, want, b.values("d", 0))
}
