package client

import (
	"context"
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/wire"
)

// A partition that still knows a removed group of the same name has not heard of the new one.
func TestAGroupThatIsMadeAgainIsWaitedFor(t *testing.T) {
	b := startBroker(t)
	b.create("orders", Queue, 2)
	asked := map[uint32]int{}
	b.setScript(func(q *fakeRequest) bool {
		var answer any
		switch q.header.Opcode {
		case wire.OpGroupAdmin:
			answer = wire.GroupInfo{Name: "billing", ID: 9, Created: true}
		case wire.OpGroupOrder:
			var m wire.GroupOrderRequest
			q.parse(&m)
			number := q.b.handles[m.Handle-1].number
			asked[number]++
			answer = wire.GroupPartition{GroupID: 9}
			if number == 1 && asked[number] < 3 {
				answer = wire.GroupPartition{GroupID: 7}
			}
		default:
			return false
		}
		text, err := json.Marshal(answer)
		if err != nil {
			panic(err)
		}
		q.reply(&wire.GroupJSON{JSON: text})
		return true
	})
	info, err := connect(t, b).CreateGroup(testContext(t), "orders", "billing", GroupIntent{})
	require.NoError(t, err)
	require.Equal(t, uint64(9), info.ID)
	require.Equal(t, map[uint32]int{0: 1, 1: 3}, asked)
}

// What was answered before the time was over is there for who words the error.
func TestAnErrorOfAnEndedContextKnowsTheLastAnswer(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var answered interface{ LastAnswer() error }
	require.ErrorAs(t, overdue(ctx, ctx.Err(), wire.CodeNotLeader), &answered)
	require.ErrorIs(t, answered.LastAnswer(), wire.CodeNotLeader)
}
