package partition

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/wire"
)

// binder notes what its link hears.
type binder struct {
	bound     *wire.BindResponse
	err       error
	bindings  []wire.GroupBinding
	confirmed []uint64
	over      bool
}

func (b *binder) Bound(r *wire.BindResponse, err error) { b.bound, b.err, b.over = r, err, err != nil }
func (b *binder) Rebound(m *wire.GroupBinding)          { b.bindings = append(b.bindings, *m) }
func (b *binder) Confirmed(number uint64)               { b.confirmed = append(b.confirmed, number) }
func (b *binder) Closed(err error)                      { b.err, b.over = err, true }

func (h *harness) bind(name string, session byte) *binder {
	h.t.Helper()
	b := new(binder)
	require.NoError(h.t, h.part.Groups().Put(Input{Kind: InputBind, Binder: b, Group: name, Bind: &wire.BindRequest{Session: [16]byte{session}}}))
	return b
}

func TestMembersAreToldWhatTheBindingIs(t *testing.T) {
	h, _ := newGroups(t)
	h.log.immediate = true
	a := h.bind("workers", 1) // before there is a group
	h.turns(0)
	require.Nil(t, a.bound)
	h.part.Groups().Intend(20, []Intent{intent(7, "workers")})
	h.turns(1)
	require.Equal(t, &wire.BindResponse{Generation: 1, Counter: 1, Binding: wire.BindingCover, Partitions: []uint32{0, 1, 2}}, a.bound)

	b := h.bind("workers", 2)
	h.turns(2)
	require.Equal(t, &wire.BindResponse{Generation: 1, Counter: 2, Binding: wire.BindingCover, Partitions: []uint32{2}}, b.bound)
	require.Equal(t, []wire.GroupBinding{{Generation: 1, Counter: 2, Partitions: []uint32{0, 1}}}, a.bindings)

	// Who is not heard is taken off the list, who is heard stays.
	require.NoError(t, h.part.Groups().Put(Input{Kind: InputHeartbeat, Binder: a, Number: 4}))
	h.turns(4000)
	require.Equal(t, []uint64{4}, a.confirmed)
	h.turns(6001)
	require.Equal(t, 6002*time.Millisecond, h.part.Groups().Deadline())
	require.False(t, b.over)
	h.turns(6002)
	require.True(t, b.over)
	require.ErrorIs(t, b.err, wire.CodeSessionGone)
	require.Equal(t, wire.GroupBinding{Generation: 1, Counter: 3, Partitions: []uint32{0, 1, 2}}, a.bindings[1])

	// Another leader goes on with the same members.
	h.log.term++
	h.turns(6100)
	require.ErrorIs(t, a.err, wire.CodeNotLeader)
	h.noOp()
	a = h.bind("workers", 1)
	h.turns(6200)
	require.Equal(t, &wire.BindResponse{Generation: 1, Counter: 3, Binding: wire.BindingCover, Partitions: []uint32{0, 1, 2}}, a.bound)

	require.NoError(t, h.part.Groups().Put(Input{Kind: InputLeave, Binder: a}))
	h.turns(6300)
	require.True(t, a.over)
	require.NoError(t, a.err)
	require.Empty(t, h.part.state.groups.Named("workers").Members.List)
}
