package server

import (
	"bytes"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/log"
	"github.com/lockstepmq/lockstep/partition"
	"github.com/lockstepmq/lockstep/partition/group"
	"github.com/lockstepmq/lockstep/wire"
)

// input waits for the next thing that a link has for the groups of a partition.
func (r *fakeReplica) input(t *testing.T, kind partition.InputKind) (in partition.Input) {
	t.Helper()
	eventually(t, "an input", func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		if len(r.inputs) == 0 {
			return false
		}
		in = r.inputs[0]
		r.inputs = r.inputs[1:]
		return true
	})
	require.Equal(t, kind, in.Kind)
	return in
}

// delivery is what the owner says when a consumer gets the frame that holds o.
func (r *fakeReplica) delivery(o wire.Offset, epoch wire.Index) *group.Delivery {
	r.mu.Lock()
	defer r.mu.Unlock()
	end := len(r.frames)
	if int(o)+1 < len(r.bases) {
		end = r.bases[o+1]
	}
	at := r.bases[o] + wire.FrameHeaderSize
	return &group.Delivery{
		Place:  group.Place{At: log.Position{Segment: 1, Byte: int64(at)}, BatchBytes: end - at - 8, Base: o, Count: 1},
		Whole:  true,
		To:     1,
		Grants: []wire.Grant{{Offset: o, Count: 1, Epoch: epoch, Deliveries: 1}},
	}
}

// body is the stored body of the frame that holds o.
func (r *fakeReplica) body(o wire.Offset) []byte {
	d := r.delivery(o, 0)
	return r.stored()[d.Place.At.Byte : d.Place.At.Byte+int64(wire.BodyBatchSize(0, d.Place.BatchBytes))]
}

// groupNode is a node with records, and a consumer that is attached.
type groupNode struct {
	*testNode
	r    *fakeReplica
	c    *rawClient
	k    group.Consumer
	link uint32
}

func attachGroup(t *testing.T, frames, size int) *groupNode {
	return attachGroupOf(t, frames, size, wire.ModeShared)
}

func attachGroupOf(t *testing.T, frames, size int, mode wire.GroupMode) *groupNode {
	n := &groupNode{testNode: startNode(t, Limits{})}
	n.backend.create(wire.Queue, "jobs", 1)
	n.r = n.backend.replica("jobs", 0)
	numbered(n.r, frames, size)
	n.c = dialOpen(t, n.address)
	n.c.send(wire.OpGroupAttach, 7, &wire.AttachRequest{Handle: n.c.open("jobs", 0), Group: "workers", Session: [16]byte{1}, Capacity: 1 << 30})
	in := n.r.input(t, partition.InputAttach)
	require.Equal(t, "workers", in.Group)
	require.EqualValues(t, wire.MaxGroupCapacity, in.Attach.Capacity)
	require.EqualValues(t, wire.MaxGroupCapacityBytes, in.Attach.Bytes)
	n.k = in.Consumer
	n.k.Attached(&wire.AttachResponse{Term: 3, Group: 4, Mode: mode}, nil)
	var m wire.AttachResponse
	n.c.ok(n.c.answer(7), &m)
	require.EqualValues(t, 3, m.Term)
	n.link = m.Link
	return n
}

// delivered reads deliveries until a record arrives, and checks the bytes of all.
func (n *groupNode) delivered(t *testing.T, upTo wire.Offset) (got []wire.Grant) {
	t.Helper()
	for len(got) == 0 || got[len(got)-1].Offset < upTo {
		f := n.c.read()
		require.Equal(t, wire.OpGroupDeliver, f.Opcode)
		require.Equal(t, n.link, f.ID)
		var m wire.GroupDeliver
		require.NoError(t, m.Parse(f.body))
		require.Equal(t, wire.DeliverBatches, m.Kind)
		require.Equal(t, n.r.next, m.Next)
		rest := m.Bytes
		for _, g := range m.Grants {
			want := n.r.body(g.Offset)
			require.True(t, bytes.HasPrefix(rest, want), "record %d", g.Offset)
			rest = rest[len(want):]
		}
		require.Empty(t, rest)
		got = append(got, m.Grants...)
	}
	return got
}

func TestAGroupLinkDeliversStoredBatches(t *testing.T) {
	n := attachGroup(t, 100, 50)
	for o := range wire.Offset(100) {
		n.k.Deliver(n.r.delivery(o, 9))
	}
	got := n.delivered(t, 99)
	require.Len(t, got, 100)
	for i, g := range got {
		require.Equal(t, wire.Grant{Offset: wire.Offset(i), Count: 1, Epoch: 9, Deliveries: 1}, g)
	}
	require.EqualValues(t, 1, n.engine.counters.groupLinks.Load())
}

// Batches that lie in the log one behind the other go in one frame; between these a frame
// header lies.
func TestNeighboursGoInOneFrame(t *testing.T) {
	k := &groupLink{queue: []order{
		{at: log.Position{Segment: 1, Byte: 100}, size: 20, grants: 1},
		{at: log.Position{Segment: 1, Byte: 120}, size: 30, grants: 2},
		{at: log.Position{Segment: 1, Byte: 190}, size: 30, grants: 1},
		{at: log.Position{Segment: 2, Byte: 220}, size: pieceBytes, grants: 1},
		{at: log.Position{Segment: 2, Byte: 220 + pieceBytes}, size: 10, grants: 1},
		{frame: []byte("x")},
	}}
	type run struct{ n, size, grants int }
	var got []run
	for ; k.head < 5; k.head++ {
		n, size, grants := k.run()
		got = append(got, run{n, size, grants})
		k.head += n - 1
	}
	require.Equal(t, []run{{2, 50, 3}, {1, 30, 1}, {1, pieceBytes, 1}, {1, 10, 1}}, got)
}

func TestWhatIsTakenBackWaitsBehindItsDelivery(t *testing.T) {
	n := attachGroup(t, 3, 50)
	n.k.Deliver(n.r.delivery(0, 9))
	n.k.Lost([]wire.Lost{{Offset: 0, Count: 1, Epoch: 9, Reason: wire.ReasonSeek}})
	n.k.Deliver(n.r.delivery(0, 12))
	n.k.Revoke([]wire.Revoke{{Offset: 0, Count: 1, Epoch: 12, Reason: wire.ReasonPark, GraceMs: 5}})
	require.EqualValues(t, 9, n.delivered(t, 0)[0].Epoch)
	f := n.c.read()
	require.Equal(t, wire.OpGroupLost, f.Opcode)
	var lost wire.GroupLost
	require.NoError(t, lost.Parse(f.body))
	require.Equal(t, []wire.Lost{{Offset: 0, Count: 1, Epoch: 9, Reason: wire.ReasonSeek}}, lost.Lost)
	require.EqualValues(t, 12, n.delivered(t, 0)[0].Epoch)
	f = n.c.read()
	var revoke wire.GroupRevoke
	require.NoError(t, revoke.Parse(f.body))
	require.Equal(t, []wire.Revoke{{Offset: 0, Count: 1, Epoch: 12, Reason: wire.ReasonPark, GraceMs: 5}}, revoke.Revokes)
	n.k.Answer([]wire.OutcomeAnswer{{Offset: 0, Count: 1, Epoch: 12}, {Offset: 1, Count: 2, Epoch: 12, Code: wire.CodeStaleEpoch}})
	var counted []uint64
	for i := range n.engine.counters.groupRecords {
		counted = append(counted, n.engine.counters.groupRecords[i].Load())
	}
	require.Equal(t, []uint64{2, 0, 1, 2, 1, 1}, counted, "delivered, redelivered, settled, refused, revoked, lost")
}

// An answer to a nack lets a consumer go on: it comes when the consumer has heard that what
// lies behind the record was taken back, however long the socket is full. When that is
// written, answers overtake deliveries again.
func TestRule24_AnAnswerDoesNotOvertakeWhatIsLost(t *testing.T) {
	const records = 8_000
	n := attachGroup(t, records, 3001)
	for o := range wire.Offset(records / 2) {
		n.k.Deliver(n.r.delivery(o, 9))
	}
	eventually(t, "a full socket", func() bool { return n.engine.counters.stalls.Load() > 0 })
	n.k.Lost([]wire.Lost{{Offset: 1, Count: records/2 - 1, Epoch: 9, Reason: wire.ReasonReturned}})
	n.k.Answer([]wire.OutcomeAnswer{{Offset: 0, Count: 1, Epoch: 9}})
	n.delivered(t, records/2-1)
	require.Equal(t, wire.OpGroupLost, n.c.read().Opcode)
	require.Equal(t, wire.OpGroupAnswer, n.c.read().Opcode)

	k := n.k.(*groupLink)
	eventually(t, "answers that do not wait", func() bool {
		k.session.out.mu.Lock()
		defer k.session.out.mu.Unlock()
		return !k.ordered
	})
	stalls := n.engine.counters.stalls.Load()
	for o := wire.Offset(records / 2); o < records; o++ {
		n.k.Deliver(n.r.delivery(o, 10))
	}
	eventually(t, "a full socket", func() bool { return n.engine.counters.stalls.Load() > stalls })
	n.k.Answer([]wire.OutcomeAnswer{{Offset: 0, Count: 1, Epoch: 9}})
	next := wire.Offset(records / 2)
	for n.c.read().Opcode == wire.OpGroupDeliver {
		next++
	}
	require.Less(t, next, wire.Offset(records))
}

func TestAGroupLinkCarriesWhatTheClientSays(t *testing.T) {
	n := attachGroup(t, 1, 50)
	outcomes := []wire.Outcome{{Offset: 1, Count: 2, Epoch: 3, Kind: wire.OutcomeAck}, {Offset: 5, Count: 1, Epoch: 3, Kind: wire.OutcomeNack, Text: "no"}}
	n.c.send(wire.OpGroupOutcome, n.link, &wire.GroupOutcomes{Outcomes: outcomes})
	n.c.send(wire.OpGroupCapacity, n.link, &wire.GroupCapacity{Records: 1 << 20, Refill: 2})
	n.c.send(wire.OpGroupHeartbeat, n.link, &wire.GroupHeartbeat{Number: 4})
	n.c.send(wire.OpGroupLeave, n.link, &wire.GroupLeave{Drain: true})
	require.Equal(t, outcomes, n.r.input(t, partition.InputOutcomes).Outcomes)
	require.Equal(t, wire.GroupCapacity{Records: wire.MaxGroupCapacity, Refill: 2, Bytes: wire.MaxGroupCapacityBytes}, n.r.input(t, partition.InputCapacity).Capacity)
	require.EqualValues(t, 4, n.r.input(t, partition.InputHeartbeat).Number)
	leave := n.r.input(t, partition.InputLeave)
	require.True(t, leave.Drain)
	require.Equal(t, n.k, leave.Consumer)

	answers := []wire.OutcomeAnswer{{Offset: 1, Count: 2, Epoch: 3}}
	n.k.Answer(answers)
	n.k.Confirmed(4)
	n.k.Closed(nil)
	var m wire.GroupAnswers
	require.NoError(t, m.Parse(n.c.read().body))
	require.Equal(t, answers, m.Answers)
	require.Equal(t, wire.OpGroupHeartbeat, n.c.read().Opcode)
	f := n.c.read()
	require.Equal(t, wire.OpLinkClosed, f.Opcode)
	var closed wire.LinkClosed
	require.NoError(t, closed.Parse(f.body))
	require.NoError(t, closed.Err())
	require.Zero(t, n.engine.counters.groupLinks.Load())
	require.Equal(t, n.k, n.r.input(t, partition.InputGone).Consumer, "the owner forgets it, too")

	// What was on its way is no error.
	n.c.send(wire.OpGroupHeartbeat, n.link, &wire.GroupHeartbeat{Number: 5})
	n.c.send(wire.OpPing, 8, &wire.PingRequest{})
	require.Equal(t, wire.CodeOK, n.c.answer(8).code())
	require.Empty(t, n.r.inputs)
}

func TestAnAttachThatIsRefusedLeavesNoLink(t *testing.T) {
	n := startNode(t, Limits{})
	n.backend.create(wire.Queue, "jobs", 1)
	r := n.backend.replica("jobs", 0)
	c := dialOpen(t, n.address)
	h := c.open("jobs", 0)
	c.send(wire.OpGroupAttach, 7, &wire.AttachRequest{Handle: h, Group: "workers", Session: [16]byte{1}})
	r.input(t, partition.InputAttach).Consumer.Attached(nil, wire.NotLeader(2, 5))
	require.Equal(t, wire.CodeNotLeader, c.answer(7).code())
	r.input(t, partition.InputGone)
	c.send(wire.OpGroupAttach, 7, &wire.AttachRequest{Handle: h, Group: "workers", Session: [16]byte{1}})
	r.input(t, partition.InputAttach).Consumer.Closed(wire.CodeShuttingDown)
	require.Equal(t, wire.CodeShuttingDown, c.answer(7).code())
	r.input(t, partition.InputGone)
	r.set(func() { r.full = true })
	c.send(wire.OpGroupAttach, 7, &wire.AttachRequest{Handle: h, Group: "workers", Session: [16]byte{1}})
	require.Equal(t, wire.CodeMailboxFull, c.answer(7).code())
	r.set(func() { r.full = false })
	r.input(t, partition.InputGone) // of a link that the group has never heard of
	for code, m := range map[wire.ErrorCode]*wire.AttachRequest{
		wire.CodeInvalidName:    {Handle: h, Session: [16]byte{1}},
		wire.CodeInvalidRequest: {Handle: h, Group: "workers"},
		wire.CodeUnknownHandle:  {Handle: 9, Group: "workers", Session: [16]byte{1}},
	} {
		c.send(wire.OpGroupAttach, 7, m)
		require.Equal(t, code, c.answer(7).code())
	}
	eventually(t, "no link", func() bool { return n.engine.counters.groupLinks.Load() == 0 })
	c.send(wire.OpPing, 8, &wire.PingRequest{}) // and no LINK_CLOSED
	require.Equal(t, wire.OpPing, c.read().Opcode)
}

// A client that has ended is told apart from one that another node was talking for.
func TestALinkThatEndsIsGoneOnce(t *testing.T) {
	n := attachGroup(t, 1, 50)
	require.NoError(t, n.c.conn.Close())
	gone := n.r.input(t, partition.InputGone)
	require.True(t, gone.Dead)
	require.Equal(t, n.k, gone.Consumer)
	n.k.Closed(nil)
	eventually(t, "no session", func() bool { return n.engine.counters.sessions.Load() == 0 })
	require.Empty(t, n.r.inputs)
	require.Zero(t, n.engine.counters.groupLinks.Load())

	members := startMembers(t, 2, Limits{})
	create(members, "jobs", 1, 2)
	r := members[1].backend.replica("jobs", 0)
	numbered(r, 3, 50)
	c := dialOpen(t, members[0].address)
	c.send(wire.OpGroupAttach, 7, &wire.AttachRequest{Handle: c.open("jobs", 0), Group: "workers", Session: [16]byte{1}})
	k := r.input(t, partition.InputAttach).Consumer
	k.Attached(&wire.AttachResponse{Term: 3}, nil)
	var m wire.AttachResponse
	c.ok(c.answer(7), &m)
	forwarded := &groupNode{r: r, c: c, k: k, link: m.Link}
	k.Deliver(r.delivery(1, 9))
	require.Len(t, forwarded.delivered(t, 1), 1)
	c.send(wire.OpGroupOutcome, m.Link, &wire.GroupOutcomes{Outcomes: []wire.Outcome{{Offset: 1, Count: 1, Epoch: 9, Kind: wire.OutcomeAck}}})
	r.input(t, partition.InputOutcomes)
	k.Answer([]wire.OutcomeAnswer{{Offset: 1, Count: 1, Epoch: 9}})
	require.Equal(t, wire.OpGroupAnswer, c.read().Opcode)
	require.NoError(t, c.conn.Close())
	require.False(t, r.input(t, partition.InputGone).Dead)
}

// A process that ends before it has read what was sent leaves a reset, and no end of
// stream; it has ended all the same.
func TestAResetSaysThatTheConsumerHasEnded(t *testing.T) {
	n := attachGroup(t, 1, 50)
	require.NoError(t, n.c.conn.SetLinger(0))
	require.NoError(t, n.c.conn.Close())
	require.True(t, n.r.input(t, partition.InputGone).Dead)
}

func TestInputsThatDoNotFitEndTheLink(t *testing.T) {
	n := attachGroup(t, 1, 50)
	n.r.set(func() { n.r.full = true })
	n.c.send(wire.OpGroupHeartbeat, n.link, &wire.GroupHeartbeat{Number: 4})
	f := n.c.read()
	require.Equal(t, wire.OpLinkClosed, f.Opcode)
	var closed wire.LinkClosed
	require.NoError(t, closed.Parse(f.body))
	require.ErrorIs(t, closed.Err(), wire.CodeMailboxFull)
	require.False(t, n.r.input(t, partition.InputGone).Dead)
}

// The socket stops in the middle of a frame again and again; what it did not take is sent
// later, once and in order.
func TestASlowConsumerGetsEverythingOnce(t *testing.T) {
	const records = 8_000
	n := attachGroup(t, records, 3001)
	for o := range wire.Offset(records) {
		n.k.Deliver(n.r.delivery(o, 9))
		if o%100 == 50 {
			n.k.Lost([]wire.Lost{{Offset: o, Count: 1, Epoch: 9, Reason: wire.ReasonSeek}})
		}
	}
	eventually(t, "a full socket", func() bool { return n.engine.counters.stalls.Load() > 0 })
	next, lost := wire.Offset(0), 0
	for next < records {
		f := n.c.read()
		if f.Opcode == wire.OpGroupLost {
			var m wire.GroupLost
			require.NoError(t, m.Parse(f.body))
			require.Equal(t, next-1, m.Lost[0].Offset)
			lost++
			continue
		}
		var m wire.GroupDeliver
		require.NoError(t, m.Parse(f.body))
		require.Equal(t, n.r.body(next), m.Bytes)
		next++
		if next%500 == 0 {
			time.Sleep(time.Millisecond) // a reader slower than the writer
		}
	}
	require.Equal(t, records/100, lost)
	require.Zero(t, n.engine.counters.preads.Load())
}

func TestColdDeliveriesAreMadeResidentFirst(t *testing.T) {
	n := attachGroup(t, 50, 500)
	d := n.r.delivery(20, 9)
	n.r.set(func() { n.r.cold[int(d.Place.At.Byte)] = true })
	for o := range wire.Offset(50) {
		n.k.Deliver(n.r.delivery(o, 9))
	}
	require.Len(t, n.delivered(t, 49), 50)
	require.EqualValues(t, 1, n.engine.counters.cold.Load())
	require.Zero(t, n.engine.counters.preads.Load())
}

func TestDeliveriesWithoutAMapAreRead(t *testing.T) {
	n := attachGroup(t, 20, 500)
	n.r.set(func() { n.r.unmap = true })
	for o := range wire.Offset(20) {
		n.k.Deliver(n.r.delivery(o, 9))
	}
	require.Len(t, n.delivered(t, 19), 20)
	require.EqualValues(t, 20, n.engine.counters.preads.Load())
}

func TestDeliveriesThatTheDiskDoesNotGiveAreReported(t *testing.T) {
	n := attachGroup(t, 3, 500)
	bad := n.r.delivery(1, 9)
	n.r.set(func() { n.r.block = int(bad.Place.At.Byte) + 100 })
	n.k.Deliver(bad)
	in := n.r.input(t, partition.InputDamaged)
	require.Equal(t, []wire.Offset{1, 2}, []wire.Offset{in.From, in.To})
	n.k.Deliver(n.r.delivery(2, 9))
	require.Len(t, n.delivered(t, 2), 1)
}

// Where records go out in order nothing follows one that cannot be read, neither what waits
// for it nor what is granted until the leader hears of it: the link ends.
func TestNothingFollowsAnUnreadableRecordWhereOrderCounts(t *testing.T) {
	for _, mode := range []wire.GroupMode{wire.ModeSerial, wire.ModeStream} {
		n := attachGroupOf(t, 4, 500, mode)
		bad := n.r.delivery(1, 9)
		n.r.set(func() { n.r.block = int(bad.Place.At.Byte) + 100 })
		n.k.Deliver(n.r.delivery(0, 9))
		n.k.Deliver(bad)
		n.k.Deliver(n.r.delivery(2, 9))
		require.Len(t, n.delivered(t, 0), 1)
		in := n.r.input(t, partition.InputDamaged)
		require.Equal(t, []wire.Offset{1, 2}, []wire.Offset{in.From, in.To})
		require.False(t, n.r.input(t, partition.InputGone).Dead)
		n.k.Deliver(n.r.delivery(3, 9))
		f := n.c.read()
		require.Equal(t, wire.OpLinkClosed, f.Opcode)
		var m wire.LinkClosed
		require.NoError(t, m.Parse(f.body))
		require.Equal(t, wire.CodeRetry, m.Code)
		require.Contains(t, m.Detail, "offset 1 cannot be read")
	}
}

func TestASubstituteIsSentAsItIs(t *testing.T) {
	n := attachGroup(t, 1, 50)
	n.k.Deliver(&group.Delivery{Substitute: []byte("record"), Grants: []wire.Grant{{Offset: 0, Count: 1, Epoch: 9}}})
	var m wire.GroupDeliver
	require.NoError(t, m.Parse(n.c.read().body))
	require.Equal(t, wire.GroupDeliver{Kind: wire.DeliverSubstitute, Next: 1, Grants: []wire.Grant{{Offset: 0, Count: 1, Epoch: 9}}, Bytes: []byte("record")}, m)
}

func TestOrdersToAGroupGoToItsLeader(t *testing.T) {
	members := startMembers(t, 2, Limits{})
	create(members, "jobs", 1, 2)
	r := members[1].backend.replica("jobs", 0)
	for _, m := range members {
		c := dialOpen(t, m.address)
		c.send(wire.OpGroupOrder, 7, &wire.GroupOrderRequest{Handle: c.open("jobs", 0), Op: wire.OrderExplain, Group: "workers", JSON: []byte("{}")})
		in := r.input(t, partition.InputOrder)
		require.Equal(t, wire.OrderExplain, in.Order.Op)
		require.Equal(t, "{}", string(in.Order.JSON))
		in.Reply([]byte("[]"), nil)
		var answer wire.GroupJSON
		c.ok(c.answer(7), &answer)
		require.Equal(t, "[]", string(answer.JSON))
	}
}
