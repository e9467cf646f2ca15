package group

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/wire"
)

// What a session says that it can hold is bounded.
func TestWhatASessionAsksForIsBounded(t *testing.T) {
	m := &member{}
	for _, c := range []struct {
		name                    string
		said                    wire.GroupCapacity
		capacity, refill, bytes int
	}{
		{"as it is", wire.GroupCapacity{Records: 10, Refill: 5, Bytes: 1000}, 10, 5, 1000},
		{"nothing said of bytes", wire.GroupCapacity{Records: 10, Refill: 5}, 10, 5, wire.MaxGroupCapacityBytes},
		{"all there is", wire.GroupCapacity{Records: 1<<32 - 1, Refill: 1<<32 - 1, Bytes: wire.MaxGroupCapacityBytes + 1}, wire.MaxGroupCapacity, wire.MaxGroupCapacity - 1, wire.MaxGroupCapacityBytes},
	} {
		m.limits(&c.said)
		require.Equal(t, []int{c.capacity, c.refill, c.bytes}, []int{m.capacity, m.refill, m.bytes}, c.name)
	}
}

// A session that is full gets nothing before it is down to its refill, also if it comes back, and
// one that is not gets what it has room for, also if it says again how much that is.
func TestTheRefillOutlastsALink(t *testing.T) {
	r := newRig(t, sharedGroup)
	r.produce(make([]uint64, 8)...)
	a := r.attach('A', 1, 4) // with a refill of 2
	require.Len(t, a.offsets(), 4)
	a = r.attach('A', 2, 4, wire.Outcome{Offset: 0, Count: 1, Epoch: a.grants[0].Epoch, Kind: wire.OutcomeAck}, wire.Outcome{Offset: 1, Count: 3, Epoch: a.grants[0].Epoch})
	require.Empty(t, a.response.Refused)
	require.Empty(t, a.offsets(), "it is down to 3")
	ack := func(o wire.Offset) {
		a.sayUnder(wire.OutcomeAck, o, r.leader.members[a.session].leases.find(o).epoch)
		r.settle()
	}
	ack(1)
	require.Equal(t, []wire.Offset{4, 5}, a.offsets())

	r.leader.Capacity(a, &wire.GroupCapacity{Records: 6, Refill: 1})
	r.settle()
	require.Equal(t, []wire.Offset{4, 5, 6, 7}, a.offsets())
	ack(2)
	r.leader.Capacity(a, &wire.GroupCapacity{Records: 6, Refill: 1})
	r.produce(0)
	r.settle()
	require.Equal(t, []wire.Offset{4, 5, 6, 7, 8}, a.offsets(), "with 5 of 6 it is not full")
}

// T5: room that a session asks for is used without anything else that happens.
func TestRuleT5_MoreCapacityIsUsedAtOnce(t *testing.T) {
	r := newRig(t, sharedGroup)
	a := r.attach('A', 1, 0)
	r.produce(0)
	r.settle()
	require.Empty(t, a.offsets())
	r.leader.Capacity(a, &wire.GroupCapacity{Records: 1})
	r.settle()
	require.Equal(t, []wire.Offset{0}, a.offsets())
}

// Rules 6, 30: a session that drains and attaches again is as any other: it has said anew what it
// wants.
func TestRule30_WhoAttachesAgainDrainsNoMore(t *testing.T) {
	r := newRig(t, sharedGroup)
	r.produce(0)
	a := r.attach('A', 1, 1)
	r.leader.Leave(a, true, r.now)
	r.settle()
	a = r.attach('A', 2, 1, wire.Outcome{Offset: 0, Count: 1, Epoch: a.grants[0].Epoch, Kind: wire.OutcomeAck})
	r.produce(0)
	r.settle()
	require.False(t, a.closed)
	require.Equal(t, []wire.Offset{1}, a.offsets())
}

// T4: an ack that comes with an attach is a word as any other: what waits behind it begins then.
func TestRuleT4_AnAckThatIsClaimedBeginsTheNext(t *testing.T) {
	const ackWait = wire.DefaultAckWaitMs * time.Millisecond
	r := newRig(t, sharedGroup)
	r.produce(0, 0)
	a := r.attach('A', 1, 2)
	r.heard(a, ackWait-time.Second)
	epoch := a.grants[0].Epoch
	a = r.attach('A', 2, 2, wire.Outcome{Offset: 0, Count: 1, Epoch: epoch, Kind: wire.OutcomeAck}, wire.Outcome{Offset: 1, Count: 1, Epoch: epoch})
	require.Empty(t, a.response.Refused)
	r.heard(a, ackWait-1)
	require.Empty(t, a.revokes)
	r.heard(a, 1)
	require.Len(t, a.revokes, 1)
}

// T2: who is off the list is not looked at any more, or each session that there ever was would cost
// a timer.
func TestRuleT2_WhoIsGoneHasNoTimer(t *testing.T) {
	r := newRig(t, sharedGroup)
	a := r.attach('A', 1, 1)
	r.leader.Leave(a, false, r.now)
	r.settle()
	for range 3 {
		r.pass(time.Hour)
	}
	require.Zero(t, r.leader.Deadline())
}
