package partition

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/wire"
)

// A record of a shared group is parked, shown, explained and let go.
func TestAScopeIsParkedThroughTheLeader(t *testing.T) {
	h, _ := newGroups(t)
	h.log.immediate = true
	h.part.Groups().Intend(20, []Intent{intent(7, "workers")})
	h.turns(0)
	h.send(-1, 0, 0, 3)
	ask := func(op wire.GroupOrderOp, json string) (answer string, err error) {
		h.put(Input{Kind: InputOrder, Group: "workers", Order: &wire.GroupOrderRequest{Op: op, JSON: []byte(json)}, Reply: func(json []byte, e error) {
			answer, err = string(json), e
		}})
		h.turns(1)
		return answer, err
	}
	answer, err := ask(wire.OrderExplain, "")
	require.NoError(t, err)
	require.Contains(t, answer, `"code":"no_consumer"`)
	_, err = ask(wire.OrderPark, `{"key":"aw=="}`)
	require.ErrorIs(t, err, wire.CodeInvalidSetting)
	answer, err = ask(wire.OrderPark, `{"scope":1,"reason":"broken"}`)
	require.NoError(t, err)
	require.Equal(t, "{}", answer)
	c := h.attach("workers", 1)
	h.turns(2)
	require.Equal(t, 2, c.records())
	answer, err = ask(wire.OrderShow, `{"scope":1}`)
	require.NoError(t, err)
	require.Contains(t, answer, `{"scope":1,"offset":1,"known":true,"parked":true,"reason":"broken"`)
	_, err = ask(wire.OrderUnpark, `{"scope":1}`)
	require.NoError(t, err)
	require.Equal(t, 3, c.records())
	_, err = ask(wire.OrderExplain, "{")
	require.ErrorIs(t, err, wire.CodeMalformed)
}
