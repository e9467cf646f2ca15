package server

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lockstepmq/lockstep/cluster"
	"github.com/lockstepmq/lockstep/partition"
	"github.com/lockstepmq/lockstep/wire"
)

// testMember is a node that serves clients and, on its other port, sessions that others
// forward.
type testMember struct {
	*testNode
	id          uint32
	peerAddress string
	peers       *acceptor
}

// startMembers runs nodes that know each other.
func startMembers(t testing.TB, count int, limits Limits) []*testMember {
	t.Helper()
	clusterID := uuid.New()
	var listeners []net.Listener
	var commands []cluster.Command
	for i := range count {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		listeners = append(listeners, listener)
		address, peerAddress, store := fmt.Sprintf("127.0.0.1:%d", 7400+i), listener.Addr().String(), uuid.New()
		if i == 0 {
			commands = append(commands, cluster.Command{Register: &cluster.Register{
				ClusterID: clusterID, Node: 1, Store: store, Address: address, PeerAddress: peerAddress,
			}})
			continue
		}
		commands = append(commands, cluster.Command{Join: &cluster.Join{
			Node: uint32(i + 1), Store: store, Address: address, PeerAddress: peerAddress, MaxLevel: cluster.MaxLevel,
		}})
	}
	var members []*testMember
	for i, listener := range listeners {
		backend := newFakeBackend()
		backend.metadata, backend.clusterID, backend.node = cluster.NewMetadata(nil), clusterID, uint32(i+1)
		for _, c := range commands {
			backend.apply(c)
		}
		require.Len(t, backend.View().Nodes, count)
		m := &testMember{testNode: startNodeOf(t, backend, limits), id: uint32(i + 1), peerAddress: listener.Addr().String()}
		set := newPeerSet(peerOptions{Engine: m.engine, Handler: newFakePeerHandler(), Self: testSelf(m.id), Logger: slog.New(slog.DiscardHandler)})
		m.peers = newPeerAcceptor(set, listener)
		m.peers.run()
		t.Cleanup(func() {
			m.stopPeers()
			set.stop()
			require.Zero(t, set.counters.open.Load(), "connections are left")
		})
		members = append(members, m)
	}
	return members
}

func (m *testMember) stopPeers() {
	if m.peers != nil {
		m.peers.stop()
		m.peers = nil
	}
}

// create makes a destination that one of the members leads.
func create(members []*testMember, name string, partitions uint32, leader uint32) {
	c := createCommand(wire.Topic, name, partitions)
	for _, m := range members {
		m.backend.apply(c)
	}
	for number := range partitions {
		lead(members, name, number, leader, 5)
	}
}

// lead makes a member lead a partition as all know.
func lead(members []*testMember, name string, number, node, epoch uint32) {
	for _, m := range members {
		if m.id == node {
			m.backend.lead(name, number, 0, 0)
		} else {
			m.backend.lead(name, number, node, epoch)
		}
		m.engine.announceLeaders()
	}
}

// dialFollowing connects as a client that follows redirects.
func dialFollowing(t *testing.T, address string) *rawClient {
	c := dialRaw(t, address)
	c.write([]byte(wire.Preface))
	c.send(wire.OpHello, 1, &wire.HelloRequest{MinVersion: 1, MaxVersion: 1, Features: wire.FeatureFollowsRedirects})
	require.Equal(t, wire.CodeOK, c.answer(1).code())
	return c
}

// R-IS-6: every opcode that a client may send is served or redirected by every node,
// whoever leads: its leader, another that holds a replica, and a gateway.
func TestR_IS_6_EveryOpcodeIsServedOrRedirectedByEveryNode(t *testing.T) {
	members := startMembers(t, 3, Limits{})
	create(members, "events", 1, 1)
	numbered(members[0].backend.replica("events", 0), 10, 100)
	batch, _ := testBatch(t, "a")

	// Each sends its opcode under the ID 9 and returns the code of the answer; routed are
	// those that belong to a leader.
	type attempt struct {
		routed bool
		send   func(c *rawClient, handle, link uint32) wire.ErrorCode
	}
	ask := func(op wire.Opcode, m wire.Message) attempt {
		return attempt{send: func(c *rawClient, _, _ uint32) wire.ErrorCode {
			c.send(op, 9, m)
			return c.answer(9).code()
		}}
	}
	routed := func(op wire.Opcode, m func(handle uint32) wire.Message) attempt {
		return attempt{routed: true, send: func(c *rawClient, handle, _ uint32) wire.ErrorCode {
			c.send(op, 9, m(handle))
			return c.answer(9).code()
		}}
	}
	attempts := map[wire.Opcode]attempt{
		wire.OpPing:          ask(wire.OpPing, &wire.PingRequest{}),
		wire.OpMetadata:      ask(wire.OpMetadata, &wire.MetadataRequest{Scope: wire.MetadataAll}),
		wire.OpCreate:        ask(wire.OpCreate, &wire.CreateRequest{Name: "events", Kind: wire.Topic}),
		wire.OpAlter:         ask(wire.OpAlter, &wire.AlterRequest{Name: "events", Kind: wire.Topic}),
		wire.OpDelete:        ask(wire.OpDelete, &wire.DeleteRequest{Name: "none", Kind: wire.Topic}),
		wire.OpInitProducer:  ask(wire.OpInitProducer, &wire.InitProducerRequest{}),
		wire.OpJoin:          ask(wire.OpJoin, &wire.JoinRequest{}),
		wire.OpNodeAdmin:     ask(wire.OpNodeAdmin, &wire.NodeAdminRequest{}),
		wire.OpClusterStatus: ask(wire.OpClusterStatus, &wire.ClusterStatusRequest{}),
		wire.OpAlias:         ask(wire.OpAlias, &wire.AliasRequest{Alias: wire.Alias{Name: "other", Destination: "events"}}),
		wire.OpPartRecover:   ask(wire.OpPartRecover, &wire.PartitionRecoverRequest{Destination: "events"}),
		wire.OpPartAdmin:     ask(wire.OpPartAdmin, &wire.PartitionAdminRequest{Destination: "events"}),
		wire.OpOpenPartition: routed(wire.OpOpenPartition, func(uint32) wire.Message { return &wire.OpenPartitionRequest{Destination: "events"} }),
		wire.OpProduce: routed(wire.OpProduce, func(h uint32) wire.Message {
			return &wire.ProduceRequest{Handle: h, Acks: wire.AcksQuorum, Batch: batch}
		}),
		wire.OpListOffsets: routed(wire.OpListOffsets, func(h uint32) wire.Message { return &wire.ListOffsetsRequest{Handle: h, Kind: wire.OffsetAtTime} }),
		wire.OpLinkOpen:    routed(wire.OpLinkOpen, func(h uint32) wire.Message { return &wire.LinkOpenRequest{Handle: h} }),
		wire.OpLinkCredit: {routed: true, send: func(c *rawClient, _, link uint32) wire.ErrorCode {
			c.send(wire.OpLinkCredit, link, &wire.LinkCredit{Credit: 1 << 20})
			for {
				if f := c.read(); f.Opcode == wire.OpDeliver && f.ID == link {
					return wire.CodeOK
				}
			}
		}},
		wire.OpLinkClose: {routed: true, send: func(c *rawClient, _, link uint32) wire.ErrorCode {
			c.send(wire.OpLinkClose, link, &wire.LinkClose{})
			for {
				if f := c.read(); f.Opcode == wire.OpLinkClosed && f.ID == link {
					var m wire.LinkClosed
					require.NoError(t, m.Parse(f.body))
					return m.Code
				}
			}
		}},
		wire.OpReportDamage: {routed: true, send: func(c *rawClient, handle, _ uint32) wire.ErrorCode {
			r := members[0].backend.replica("events", 0)
			r.set(func() { r.reports = nil })
			c.send(wire.OpReportDamage, 0, &wire.ReportDamage{Handle: handle, Offset: 3})
			eventually(t, "a report", func() bool {
				r.mu.Lock()
				defer r.mu.Unlock()
				return slices.Equal(r.reports, []wire.Offset{3})
			})
			return wire.CodeOK
		}},
	}
	// A group of the leader takes whoever comes, and hears what is said on the link.
	leader := members[0].backend.replica("events", 0)
	heard := func(kind partition.InputKind) (in partition.Input) {
		eventually(t, "an input", func() bool {
			leader.mu.Lock()
			defer leader.mu.Unlock()
			// A connection of the test before may have ended meanwhile.
			leader.inputs = slices.DeleteFunc(leader.inputs, func(in partition.Input) bool { return in.Kind == partition.InputGone })
			if len(leader.inputs) == 0 {
				return false
			}
			in, leader.inputs = leader.inputs[0], leader.inputs[1:]
			return true
		})
		require.Equal(t, kind, in.Kind)
		return in
	}
	attach := func(c *rawClient, handle uint32) (link uint32, code wire.ErrorCode) {
		leader.set(func() { leader.inputs = nil })
		c.send(wire.OpGroupAttach, 9, &wire.AttachRequest{Handle: handle, Group: "g", Session: [16]byte{1}})
		heard(partition.InputAttach).Consumer.Attached(&wire.AttachResponse{}, nil)
		f := c.answer(9)
		var m wire.AttachResponse
		c.ok(f, &m)
		return m.Link, f.code()
	}
	said := func(op wire.Opcode, kind partition.InputKind, m wire.Message) attempt {
		return attempt{routed: true, send: func(c *rawClient, handle, _ uint32) wire.ErrorCode {
			link, code := attach(c, handle)
			c.send(op, link, m)
			heard(kind)
			return code
		}}
	}
	attempts[wire.OpGroupAttach] = attempt{routed: true, send: func(c *rawClient, handle, _ uint32) wire.ErrorCode {
		_, code := attach(c, handle)
		return code
	}}
	attempts[wire.OpGroupOutcome] = said(wire.OpGroupOutcome, partition.InputOutcomes, &wire.GroupOutcomes{Outcomes: []wire.Outcome{{Count: 1, Kind: wire.OutcomeAck}}})
	attempts[wire.OpGroupCapacity] = said(wire.OpGroupCapacity, partition.InputCapacity, &wire.GroupCapacity{Records: 1})
	attempts[wire.OpGroupHeartbeat] = said(wire.OpGroupHeartbeat, partition.InputHeartbeat, &wire.GroupHeartbeat{Number: 1})
	attempts[wire.OpGroupLeave] = said(wire.OpGroupLeave, partition.InputLeave, &wire.GroupLeave{})
	attempts[wire.OpGroupAdmin] = ask(wire.OpGroupAdmin, &wire.GroupAdminRequest{Op: wire.GroupList, Destination: "events"})
	attempts[wire.OpGroupOrder] = attempt{routed: true, send: func(c *rawClient, handle, _ uint32) wire.ErrorCode {
		leader.set(func() { leader.inputs = nil })
		c.send(wire.OpGroupOrder, 9, &wire.GroupOrderRequest{Handle: handle, Group: "g"})
		heard(partition.InputOrder).Reply(nil, nil)
		return c.answer(9).code()
	}}
	attempts[wire.OpGroupBind] = attempt{routed: true, send: func(c *rawClient, handle, _ uint32) wire.ErrorCode {
		leader.set(func() { leader.inputs = nil })
		c.send(wire.OpGroupBind, 9, &wire.BindRequest{Handle: handle, Group: "g", Session: [16]byte{1}})
		binder := heard(partition.InputBind).Binder
		binder.Bound(&wire.BindResponse{Generation: 1, Counter: 2}, nil)
		f := c.answer(9)
		var m wire.BindResponse
		c.ok(f, &m)
		c.send(wire.OpGroupHeartbeat, m.Link, &wire.GroupHeartbeat{Number: 7})
		require.Equal(t, uint64(7), heard(partition.InputHeartbeat).Number)
		binder.Rebound(&wire.GroupBinding{Generation: 1, Counter: 3, Partitions: []uint32{0}})
		for {
			if told := c.read(); told.Opcode == wire.OpGroupBinding && told.ID == m.Link {
				return f.code()
			}
		}
	}}
	attempts[wire.OpTempOpen] = ask(wire.OpTempOpen, &wire.TemporaryOpenRequest{Token: [16]byte{1}})
	home := dialOpen(t, members[0].address)
	var temporary wire.TemporaryOpenResponse
	home.send(wire.OpTempOpen, 3, &wire.TemporaryOpenRequest{Token: [16]byte{1}, GraceMs: 60_000})
	home.ok(home.answer(3), &temporary)
	attempts[wire.OpTempSend] = ask(wire.OpTempSend, &wire.TemporarySendRequest{Name: temporary.Name, Batch: batch})
	attempts[wire.OpTempTaken] = attempt{send: func(c *rawClient, _, _ uint32) wire.ErrorCode {
		// Taken up over another node, it comes from the first offset on, until that is taken.
		var m wire.TemporaryOpenResponse
		c.send(wire.OpTempOpen, 9, &wire.TemporaryOpenRequest{Name: temporary.Name, Token: [16]byte{1}})
		f := c.answer(9)
		c.ok(f, &m)
		c.send(wire.OpTempSend, 10, &wire.TemporarySendRequest{Name: temporary.Name, Batch: batch})
		for {
			if f := c.read(); f.Opcode == wire.OpTempDeliver && f.ID == m.Link {
				break
			}
		}
		c.send(wire.OpTempTaken, m.Link, &wire.TemporaryTaken{Next: 1 << 60})
		eventually(t, "room", func() bool { return members[0].engine.temporaries.bytes.Load() == 0 })
		return f.code()
	}}
	// What only brokers send, and what the session begins with.
	notAsked := []wire.Opcode{wire.OpHello, wire.OpDeliver, wire.OpLinkClosed, wire.OpEvent,
		wire.OpGroupAnswer, wire.OpGroupDeliver, wire.OpGroupRevoke, wire.OpGroupLost, wire.OpGroupBinding, wire.OpTempDeliver}
	expected := map[wire.Opcode]wire.ErrorCode{wire.OpCreate: wire.CodeAlreadyExists, wire.OpDelete: wire.CodeUnknownDestination}
	for _, supported := range wire.SupportedOpcodes() {
		op := supported.Opcode
		if slices.Contains(notAsked, op) {
			continue
		}
		a, ok := attempts[op]
		require.True(t, ok, "%v: who serves it?", op)
		for _, m := range members {
			t.Run(fmt.Sprintf("%v to node %d", op, m.id), func(t *testing.T) {
				c := dialOpen(t, m.address)
				h := c.open("events", 0)
				require.Equal(t, expected[op], a.send(c, h, c.link(h, 0, 0)))
				if !a.routed || m.id == 1 {
					return
				}
				c = dialFollowing(t, m.address)
				c.send(wire.OpOpenPartition, 2, &wire.OpenPartitionRequest{Destination: "events"})
				redirected(t, c.answer(2), 1, 5)
			})
		}
	}
}

// A partition that does not coordinate the groups says which one does, whichever node is
// asked.
func TestAPartitionThatDoesNotCoordinateNamesTheOneThatDoes(t *testing.T) {
	members := startMembers(t, 2, Limits{})
	create(members, "events", 2, 1)
	for _, m := range members {
		c := dialOpen(t, m.address)
		c.send(wire.OpGroupBind, 9, &wire.BindRequest{Handle: c.open("events", 1), Group: "g", Session: [16]byte{1}})
		f := c.answer(9)
		require.Equal(t, wire.CodeNotCoordinator, f.code())
		require.Zero(t, f.failure().Next)
		require.Contains(t, f.failure().Detail, `partition 1 of "events" does not coordinate groups; partition 0 does`)
	}
}

// What comes by way of another node is what the leader sends, and everything about it
// says the same: offsets, receipts, the end of the stream.
func TestForwardedSessionsLookLikeThoseOfTheLeader(t *testing.T) {
	leaks(t)
	members := startMembers(t, 2, Limits{})
	create(members, "other", 3, 1) // so that handles of the two nodes differ
	create(members, "events", 2, 2)
	owner := members[1].backend.replica("events", 1)
	numbered(owner, 100, 1000)
	c := dialOpen(t, members[0].address)
	for p := range uint32(3) {
		c.open("other", p)
	}
	h := c.open("events", 1)
	require.Equal(t, uint32(4), h)
	require.Equal(t, h, c.open("events", 1))

	c.send(wire.OpListOffsets, 5, &wire.ListOffsetsRequest{Handle: h, Kind: wire.OffsetLatest})
	var offsets wire.ListOffsetsResponse
	c.ok(c.answer(5), &offsets)
	require.Equal(t, wire.ListOffsetsResponse{Offset: 100, Epoch: 1}, offsets)

	link := c.link(h, 0, 10<<20)
	local := c.link(c.open("other", 0), 0, 10<<20)
	require.NotEqual(t, link, local)
	batch, _ := testBatch(t, "a", "b")
	c.send(wire.OpProduce, 6, &wire.ProduceRequest{Handle: h, Acks: wire.AcksQuorum, Batch: batch})
	var receipt wire.Receipt
	c.ok(c.answer(6), &receipt)
	require.Equal(t, wire.Receipt{Handle: h, BaseOffset: 100, Epoch: 1, Replicas: 1, AppendTimeMs: 1}, receipt)
	c.send(wire.OpProduce, 7, &wire.ProduceRequest{Handle: h, Acks: wire.AcksNone, Batch: batch})
	eventually(t, "a batch that nobody answers", func() bool { return owner.Watermark().Next == 104 })
	want := owner.stored()
	var got []byte
	for len(got) < len(want) {
		if f := c.read(); f.Opcode == wire.OpDeliver && f.ID == link {
			got = append(got, f.body[wire.DeliverPrefixSize:]...)
		}
	}
	require.True(t, bytes.Equal(want, got), "stream differs from what is stored")
	c.send(wire.OpProduce, 8, &wire.ProduceRequest{Handle: h, Acks: wire.AcksQuorum, Batch: []byte("no batch at all")})
	require.Equal(t, wire.CodeMalformed, c.answer(8).code(), "the leader's refusal")
	require.EqualValues(t, 1, members[0].engine.counters.upstreams.Load())
	require.Contains(t, []int64{1, 2}, members[1].engine.counters.sessions.Load())

	// The client goes, and with it all that was there for it.
	require.NoError(t, c.conn.Close())
	eventually(t, "the end of the forwarded session", func() bool { return members[1].engine.counters.sessions.Load() == 0 })
	require.Zero(t, members[0].engine.counters.upstreams.Load())
}

// R-SIB-8: what one producer sends by way of another node is stored in its order, also
// while the leader has not answered anything yet.
func TestR_SIB_8_ForwardingKeepsTheOrder(t *testing.T) {
	members := startMembers(t, 2, Limits{})
	create(members, "events", 1, 2)
	c := dialOpen(t, members[0].address)
	const count = 1000
	h := c.open("events", 0)
	var b []byte
	for i := range uint32(count) {
		batch, _ := testBatch(t, fmt.Sprintf("%04d", i))
		b = append(b, frameOf(wire.OpProduce, 100+i, &wire.ProduceRequest{Handle: h, Acks: wire.AcksQuorum, Batch: batch})...)
	}
	go func() { _, _ = c.conn.Write(b) }()
	for i := range uint32(count) {
		var r wire.Receipt
		c.ok(c.answer(100+i), &r)
		require.Equal(t, wire.Offset(i), r.BaseOffset)
	}
	stored := members[1].backend.replica("events", 0).stored()
	for at, i := 0, 0; i < count; i++ {
		n := bytes.Index(stored[at:], fmt.Appendf(nil, "%04d", i))
		require.GreaterOrEqual(t, n, 0, "record %d follows its predecessor", i)
		at += n + 4
	}
}

// R-SIB-9: a node that forwards keeps nothing. What it acknowledges the leader has, and
// what is lost with the connection is an error: one that says for certain that nothing
// was stored, or one that says that it is not known.
func TestR_SIB_9_ForwardingKeepsNoCopy(t *testing.T) {
	members := startMembers(t, 2, Limits{})
	create(members, "events", 1, 2)
	owner := members[1].backend.replica("events", 0)
	c := dialOpen(t, members[0].address)
	h := c.open("events", 0)
	link := c.link(h, 0, 0)
	batch, _ := testBatch(t, "a")
	owner.set(func() { owner.hold = true })
	c.send(wire.OpProduce, 5, &wire.ProduceRequest{Handle: h, Acks: wire.AcksQuorum, Batch: batch})
	eventually(t, "the batch at the leader", func() bool {
		owner.mu.Lock()
		defer owner.mu.Unlock()
		return len(owner.mailbox) == 1
	})
	require.Empty(t, c.hold, "no answer before the leader's")

	members[1].stopPeers()
	members[1].engine.eachSession(func(s *session) { s.close(closedIO, nil) })
	f := c.answer(5)
	require.Equal(t, wire.CodeUnavailable, f.code())
	require.False(t, f.code().Rejected(), "it may have been stored")
	closed := c.read()
	for closed.Opcode == wire.OpDeliver {
		closed = c.read()
	}
	require.Equal(t, wire.OpLinkClosed, closed.Opcode)
	require.Equal(t, link, closed.ID)

	c.send(wire.OpProduce, 6, &wire.ProduceRequest{Handle: h, Acks: wire.AcksQuorum, Batch: batch})
	f = c.answer(6)
	require.Equal(t, wire.CodeRetry, f.code())
	require.True(t, f.code().Rejected(), "nobody has got it")
	c.send(wire.OpPing, 7, &wire.PingRequest{})
	require.Equal(t, wire.CodeOK, c.answer(7).code())
	owner.release()
}

// R-IS-3: nodes that take each other for the leader do not send a request round and
// round.
func TestR_IS_3_ACircleOfLeadersIsAnError(t *testing.T) {
	members := startMembers(t, 2, Limits{})
	create(members, "events", 1, 2)
	members[1].backend.lead("events", 0, 1, 6)
	members[1].engine.announceLeaders()
	c := dialOpen(t, members[0].address)
	c.send(wire.OpOpenPartition, 5, &wire.OpenPartitionRequest{Destination: "events"})
	f := c.answer(5)
	require.Equal(t, wire.CodeNotLeader, f.code())
	body := f.failure()
	require.Contains(t, body.Detail, "circle: 2 nodes")
	require.Equal(t, uint64(1), members[1].engine.counters.forwarded.Load())
	require.Equal(t, uint64(1), members[0].engine.counters.forwarded.Load(), "the client's; it did not come round again")

	// It ends when one of them knows better.
	lead(members, "events", 0, 1, 7)
	require.NotZero(t, c.open("events", 0))

	forgedHops(t, members[0])
}

// forgedHops forwards to a member what was forwarded too often, or not at all.
func forgedHops(t testing.TB, to *testMember) {
	for name, m := range map[string]*wire.ForwardRequest{
		"forged": {HelloRequest: wire.HelloRequest{MinVersion: 1, MaxVersion: 1}, Node: 9, Hops: 3},
		"nobody": {HelloRequest: wire.HelloRequest{MinVersion: 1, MaxVersion: 1}, Node: 9},
	} {
		raw := dialRaw(t, to.peerAddress)
		raw.write([]byte(wire.ForwardPreface))
		raw.send(wire.OpHello, 1, m)
		require.Equal(t, wire.CodeNotLeader, raw.answer(1).code(), name)
		_ = raw.closed()
	}
}

func TestR_IS_3_Catches_HopsThatNobodyCounts(t *testing.T) {
	caught(t, func(tb testing.TB) {
		members := startMembers(tb, 1, Limits{})
		members[0].engine.endless.Store(true)
		forgedHops(tb, members[0])
	})
}

// A client that does not read what comes by way of another node holds up nobody else,
// and the node in between does not keep it for it.
func TestASlowReaderBehindAnotherNodeHoldsUpNobody(t *testing.T) {
	members := startMembers(t, 2, Limits{})
	create(members, "events", 1, 2)
	owner := members[1].backend.replica("events", 0)
	numbered(owner, 400, 60<<10) // 24 MB
	want := len(owner.stored())
	slow := dialOpen(t, members[0].address)
	require.NoError(t, slow.conn.SetReadBuffer(64<<10))
	slow.link(slow.open("events", 0), 0, 64<<20)
	paused := func() (is bool, unread int) { // of the only session
		type state struct {
			is     bool
			unread int
		}
		seen := make(chan state, 1)
		members[0].engine.eachSession(func(s *session) {
			for _, u := range s.upstreams {
				seen <- state{u.paused, s.out.unread()}
			}
		})
		now := <-seen
		return now.is, now.unread
	}
	eventually(t, "that the leader's connection is not read", func() bool { is, _ := paused(); return is })
	_, unread := paused()
	require.Less(t, unread, 1<<20)

	other := dialOpen(t, members[0].address)
	batch, _ := testBatch(t, "a")
	h := other.open("events", 0)
	other.send(wire.OpProduce, 5, &wire.ProduceRequest{Handle: h, Acks: wire.AcksQuorum, Batch: batch})
	require.Equal(t, wire.CodeOK, other.answer(5).code())

	got := 0
	for got < want {
		if f := slow.read(); f.Opcode == wire.OpDeliver {
			got += len(f.body) - wire.DeliverPrefixSize
		}
	}
}

// Leaders move while links stream and requests are on their way: what came by way of
// the old leader ends, what is asked next goes to the new one.
func TestForwardedSessionsFollowTheLeader(t *testing.T) {
	members := startMembers(t, 3, Limits{})
	create(members, "events", 1, 2)
	c := dialOpen(t, members[0].address)
	h := c.open("events", 0)
	batch, _ := testBatch(t, "a")
	produce := &wire.ProduceRequest{Handle: h, Acks: wire.AcksQuorum, Batch: batch}
	for i, leader := range []uint32{2, 3, 1, 2} {
		lead(members, "events", 0, leader, uint32(10+i))
		link := c.link(h, 0, 1<<20)
		id := uint32(100 + 10*i)
		c.send(wire.OpProduce, id, produce)
		require.Equal(t, wire.CodeOK, c.answer(id).code())
		require.NotEmpty(t, members[leader-1].backend.replica("events", 0).stored())
		c.hold = nil
		next := []uint32{3, 1, 2, 3}[i]
		lead(members, "events", 0, next, uint32(50+i))
		for {
			f := c.read()
			if f.Opcode != wire.OpLinkClosed {
				continue
			}
			require.Equal(t, link, f.ID)
			var why wire.LinkClosed
			require.NoError(t, why.Parse(f.body))
			require.Equal(t, wire.CodeNotLeader, why.Code, why.Detail)
			break
		}
	}
}

// What cannot be read on the port for other nodes is answered as on the port for
// clients, and harms nobody.
func TestBadInputOfForwardedSessions(t *testing.T) {
	members := startMembers(t, 1, Limits{HandshakeTimeout: 300 * time.Millisecond})
	m := members[0]
	m.backend.create(wire.Topic, "events", 1)
	good := func() []byte {
		return append([]byte(wire.ForwardPreface), frameOf(wire.OpHello, 1, &wire.ForwardRequest{
			HelloRequest: wire.HelloRequest{MinVersion: 1, MaxVersion: 1, ClientName: "c"}, Node: 2, Hops: 1, ClientAddress: "127.0.0.1:1",
		})...)
	}
	for _, c := range []struct {
		name string
		sent []byte
		want wire.ErrorCode // CodeOK: closed without an answer
	}{
		{"the body of a client", append([]byte(wire.ForwardPreface), frameOf(wire.OpHello, 1, &wire.HelloRequest{MinVersion: 1, MaxVersion: 1})...), wire.CodeMalformed},
		{"another cluster", append([]byte(wire.ForwardPreface), frameOf(wire.OpHello, 1, &wire.ForwardRequest{
			HelloRequest: wire.HelloRequest{MinVersion: 1, MaxVersion: 1, ClusterID: uuid.NewString()}, Node: 2, Hops: 1})...), wire.CodeClusterMismatch},
		{"another opcode first", append([]byte(wire.ForwardPreface), frameOf(wire.OpPing, 1, &wire.PingRequest{})...), wire.CodeMalformed},
		{"a header that nobody wrote", append([]byte(wire.ForwardPreface), make([]byte, wire.HeaderSize)...), wire.CodeOK},
		{"the preface alone", []byte(wire.ForwardPreface), wire.CodeOK},
		{"a second HELLO", append(good(), good()[len(wire.ForwardPreface):]...), wire.CodeMalformed},
	} {
		t.Run(c.name, func(t *testing.T) {
			raw := dialRaw(t, m.peerAddress)
			raw.write(c.sent)
			if c.want != wire.CodeOK {
				f := raw.read()
				if f.code() == wire.CodeOK {
					f = raw.read() // after the answer to a HELLO that is good
				}
				require.Equal(t, c.want, f.code())
			}
			_ = raw.closed()
		})
	}
	raw := dialRaw(t, m.peerAddress)
	for _, b := range good() { // one byte at a time
		raw.write([]byte{b})
	}
	require.Equal(t, wire.CodeOK, raw.answer(1).code())
	require.NotZero(t, raw.open("events", 0))
}

// A leader that is stopped accepts connections and does not answer.
func TestALeaderThatDoesNotAnswerIsGivenUp(t *testing.T) {
	members := startMembers(t, 2, Limits{})
	create(members, "events", 1, 2)
	members[1].stopPeers()
	deaf, err := net.Listen("tcp", members[1].peerAddress)
	require.NoError(t, err)
	defer deaf.Close()
	c := dialOpen(t, members[0].address)
	c.send(wire.OpOpenPartition, 5, &wire.OpenPartitionRequest{Destination: "events"})
	f := c.answer(5)
	require.Equal(t, wire.CodeRetry, f.code())
	body := f.failure()
	require.Contains(t, body.Detail, errUpstreamSilent.Error())
}

// A node that stops does not wait for connections that it is making.
func TestStoppingEndsForwarding(t *testing.T) {
	leaks(t)
	members := startMembers(t, 2, Limits{})
	create(members, "events", 1, 2)
	c := dialOpen(t, members[0].address)
	c.open("events", 0)
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	members[0].acceptor.stop()
	members[0].stopPeers()
	require.NoError(t, members[0].engine.stop(ctx))
	require.Zero(t, members[0].engine.counters.upstreams.Load())
	members[0].stopped = true
}

// TestR_WLS_4_ATakenUpQueueKeepsItsGraceWhenTheTakerGoes: the answer to who takes up a temporary
// queue of another node comes when that client has ended its side: the queue waits for the next.
func TestR_WLS_4_ATakenUpQueueKeepsItsGraceWhenTheTakerGoes(t *testing.T) {
	members := startMembers(t, 2, Limits{})
	owner := dialOpen(t, members[1].address)
	q := owner.makeTemporary(1, time.Minute)
	require.NoError(t, owner.conn.Close())
	here := &members[1].engine.temporaries
	waits := func() bool {
		here.mu.Lock()
		defer here.mu.Unlock()
		return here.alone == 1
	}
	eventually(t, "the queue waits", waits)
	taker := dialOpen(t, members[0].address)
	taker.send(wire.OpTempOpen, 9, &wire.TemporaryOpenRequest{Name: q.Name, Token: [16]byte{1}})
	require.NoError(t, taker.conn.CloseWrite())
	_ = taker.answer(9)
	_ = taker.closed()
	eventually(t, "its session is over", func() bool { return members[1].engine.counters.sessions.Load() == 0 })
	require.Equal(t, 1, here.len())
	require.True(t, waits())
	heir := dialOpen(t, members[0].address)
	heir.send(wire.OpTempOpen, 9, &wire.TemporaryOpenRequest{Name: q.Name, Token: [16]byte{1}})
	require.Equal(t, wire.CodeOK, heir.answer(9).code())
}

// A producer that wants no acknowledgements uses its connection to the leader, although nothing
// is ever answered on it.
func TestAnUpstreamThatIsOnlySentToIsUsed(t *testing.T) {
	e := &engine{}
	var err error
	e.limits, err = Limits{}.withDefaults(10_000)
	require.NoError(t, err)
	l := &loop{engine: e, now: upstreamIdle - time.Second}
	l.wheel.init(0)
	s := newSession(e, "a client", func() {})
	s.loop = l
	to := &handle{node: 2}
	u := &upstream{session: s, node: 2, phase: upstreamOpen, handles: map[*handle]*leaderHandle{to: {number: 7}}}
	u.loop, u.fd = l, -1
	s.upstreams = map[uint32]*upstream{2: u}
	s.forward(wire.Header{Opcode: wire.OpProduce}, to, make([]byte, 8), false)
	l.now = upstreamIdle
	u.checkDeadlines()
	require.Equal(t, upstreamOpen, u.phase)
	l.now = 2 * upstreamIdle
	u.checkDeadlines()
	require.Equal(t, upstreamClosed, u.phase)
}

// Sessions that are forwarded share the port of the nodes, and leave places to these.
func TestForwardedSessionsLeavePlacesToNodes(t *testing.T) {
	m := startMembers(t, 1, Limits{})[0]
	in := &m.engine.counters.forwardedIn
	places := int64(m.engine.peerLimits.Connections)
	in.Store(places - places/8 - 1)
	dial := func() *rawClient {
		c := dialRaw(t, m.peerAddress)
		c.write([]byte(wire.ForwardPreface))
		c.send(wire.OpHello, 1, &wire.ForwardRequest{HelloRequest: wire.HelloRequest{MinVersion: 1, MaxVersion: 1}, Node: 2, Hops: 1})
		return c
	}
	last := dial()
	require.Equal(t, wire.CodeOK, last.answer(1).code())
	_ = dial().closed()
	require.NoError(t, last.conn.Close())
	eventually(t, "it is gone", func() bool { return in.Load() == places-places/8-1 })
	require.Equal(t, wire.CodeOK, dial().answer(1).code())
}

// What waits for a leader that is always a little behind is bounded by what it has not taken.
func TestAnUpstreamThatIsAlwaysBehindGivesBackWhatItHasSent(t *testing.T) {
	e := &engine{asleep: true}
	var err error
	e.limits, err = Limits{}.withDefaults(10_000)
	require.NoError(t, err)
	e.writables, err = newWritables()
	require.NoError(t, err)
	defer e.writables.stop()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK, 0)
	require.NoError(t, err)
	defer unix.Close(pair[1])
	defer unix.Close(pair[0])
	l := &loop{engine: e}
	l.wheel.init(0)
	s := newSession(e, "a client", func() {})
	s.loop = l
	u := &upstream{session: s, phase: upstreamOpen}
	u.loop, u.fd = l, pair[0]
	defer e.writables.forget(u)

	const backlog, frame = 1 << 20, 16 << 10
	body, in := make([]byte, frame-wire.HeaderSize), make([]byte, frame)
	sent, taken := 0, 0
	for sent < 32*backlog {
		binary.LittleEndian.PutUint64(body, uint64(sent))
		u.put(wire.Header{Opcode: wire.OpProduce}, body)
		sent += frame
		require.NotNil(t, u.out, "what waits at %d", sent)
		require.LessOrEqual(t, u.out.capacity(), 4*backlog, "after %d bytes", sent)
		if sent <= backlog {
			continue
		}
		u.awaiting.Store(false)
		u.flush()
		for n := 0; n < frame; {
			got, err := unix.Read(pair[1], in[n:])
			require.NoError(t, err)
			n += got
		}
		require.Equal(t, uint64(taken), binary.LittleEndian.Uint64(in[wire.HeaderSize:]), "in order")
		taken += frame
	}
	require.Equal(t, upstreamOpen, u.phase)
}

// An answer of the leader that cannot be read ends the connection to it, and whoever waits for
// the answer hears that its outcome is unknown.
func TestAnAnswerThatCannotBeReadIsAnsweredAllTheSame(t *testing.T) {
	for _, op := range []wire.Opcode{wire.OpOpenPartition, wire.OpLinkOpen, wire.OpTempOpen} {
		t.Run(op.String(), func(t *testing.T) {
			e := &engine{asleep: true}
			var err error
			e.limits, err = Limits{}.withDefaults(10_000)
			require.NoError(t, err)
			e.bad = complaints{logger: slog.New(slog.DiscardHandler), counters: &e.counters, kinds: make(map[string]*complaintWindow)}
			l := &loop{engine: e}
			l.wheel.init(0)
			s := newSession(e, "a client", func() {})
			s.loop, s.phase = l, phaseOpen
			s.out.requests = map[uint32]inFlight{}
			u := &upstream{session: s, phase: upstreamOpen, pending: map[uint32]forwarded{}}
			u.loop, u.fd = l, -1
			require.True(t, s.begin(wire.Header{Opcode: op, ID: 9}, inFlight{}))
			id := u.note(forwarded{opcode: op, id: 9, handle: &handle{}})
			if opensLink(op) {
				s.opening++
			}
			u.traffic(append(wire.AppendHeader(nil, wire.Header{
				Length: wire.FrameLength(2), Opcode: op, Flags: wire.FlagResponse, Version: op.Version(), ID: id,
			}), 1, 2))
			require.Equal(t, upstreamClosed, u.phase)
			require.Zero(t, s.out.waiting())
			require.Zero(t, s.opening)
			require.Zero(t, e.counters.inFlight.Load())
			var body wire.ErrorBody
			require.NoError(t, body.Parse(s.out.pending.bytes[wire.HeaderSize:]))
			require.Equal(t, wire.CodeUnavailable, body.Code)
		})
	}
}
