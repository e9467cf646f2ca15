package partition

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/partition/group"
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
	require.Equal(t, &wire.BindResponse{Generation: 1, Counter: 1, Binding: wire.BindingCover, SessionMs: 6000, Partitions: []uint32{0, 1, 2}}, a.bound)

	require.Equal(t, "cover 1.1 of 1 consumer", h.part.Groups().describe("workers").Binding)

	b := h.bind("workers", 2)
	h.turns(2)
	require.Equal(t, "cover 1.2 of 2 consumers", h.part.Groups().describe("workers").Binding)
	require.Equal(t, &wire.BindResponse{Generation: 1, Counter: 2, Binding: wire.BindingCover, SessionMs: 6000, Partitions: []uint32{2}}, b.bound)
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
	require.Equal(t, &wire.BindResponse{Generation: 1, Counter: 3, Binding: wire.BindingCover, SessionMs: 6000, Partitions: []uint32{0, 1, 2}}, a.bound)

	require.NoError(t, h.part.Groups().Put(Input{Kind: InputLeave, Binder: a}))
	h.turns(6300)
	require.True(t, a.over)
	require.Equal(t, "cover 1.4, no consumers", h.part.Groups().describe("workers").Binding)
	require.NoError(t, a.err)
	require.Empty(t, h.part.state.groups.Named("workers").Members.List)
}

// The session timeout of the group is that of its list of members too, down to a bound.
func TestMembersAreSilentForTheSessionTimeoutOfTheirGroup(t *testing.T) {
	for _, c := range []struct {
		session uint32
		told    uint32
	}{{wire.DefaultSessionMs, 6000}, {1500, 1500}, {500, 1000}, {60_000, 60_000}} {
		h, _ := newGroups(t)
		h.log.immediate = true
		v := intent(7, "workers")
		v.Settings.SessionMs = c.session
		h.part.Groups().Intend(20, []Intent{v})
		a := h.bind("workers", 1)
		h.turns(0)
		h.turns(1)
		require.Equal(t, c.told, a.bound.SessionMs)
		at := h.part.Groups().Deadline()
		require.InDelta(t, c.told, at.Milliseconds(), 1)
		h.turns(int(at.Milliseconds()) - 1)
		require.False(t, a.over)

		// Who was told a longer time goes by it until it binds again.
		v.Version, v.Settings.SessionMs = 21, 500
		h.part.Groups().Intend(21, []Intent{v})
		h.turns(int(at.Milliseconds()) - 1)
		require.False(t, a.over)
		require.EqualValues(t, 500, h.part.state.groups.Named("workers").Settings.SessionMs)
		h.turns(int(at.Milliseconds()))
		require.ErrorIs(t, a.err, wire.CodeSessionGone)
	}
}

// Another partition becomes the coordinator: this one lets its members go, takes no more,
// and when it becomes the coordinator again, its bindings are of a higher generation.
func TestAPartitionThatCoordinatesNoLongerLetsItsMembersGo(t *testing.T) {
	h, w := newGroups(t)
	h.log.immediate = true
	h.part.Groups().Intend(20, []Intent{intent(7, "workers")})
	a, b := h.bind("workers", 1), h.bind("workers", 2)
	h.turns(0)
	h.turns(1)
	require.Equal(t, []uint32{0, 2}, a.bound.Partitions)

	w.elsewhere = &wire.Error{Code: wire.CodeNotCoordinator, Next: 2}
	h.part.Groups().Intend(21, []Intent{intent(7, "workers")})
	h.turns(2)
	for _, m := range []*binder{a, b} {
		require.ErrorIs(t, m.err, wire.CodeNotCoordinator)
		require.True(t, m.over)
	}
	c := h.bind("workers", 3)
	h.turns(3)
	require.Equal(t, w.elsewhere, c.err)

	w.elsewhere, w.term = nil, group.Term{Generation: 3, Since: 22}
	h.part.Groups().Intend(22, []Intent{intent(7, "workers")})
	request := func(session byte, partitions ...uint32) *binder {
		b := new(binder)
		require.NoError(t, h.part.Groups().Put(Input{Kind: InputBind, Binder: b, Group: "workers", Bind: &wire.BindRequest{
			Session: [16]byte{session}, Generation: 2, Counter: 7, Partitions: partitions,
		}}))
		return b
	}
	// The first waits until the others have had time to come, and nobody loses anything.
	c = request(3, 1)
	h.turns(100)
	require.Nil(t, c.bound)
	d := request(4, 0, 2)
	h.turns(6099)
	require.Nil(t, c.bound)
	h.turns(6200)
	require.Equal(t, &wire.BindResponse{Generation: 3, Counter: 1, Binding: wire.BindingCover, SessionMs: 6000, Partitions: []uint32{1}}, c.bound)
	require.Equal(t, []uint32{0, 2}, d.bound.Partitions)
}
