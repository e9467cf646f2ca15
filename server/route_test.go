package server

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/wire"
)

// redirected expects that the answer sends the client to a node.
func redirected(t *testing.T, f rawFrame, node, epoch uint32) {
	t.Helper()
	require.Equal(t, wire.CodeNotLeader, f.code())
	body := f.failure()
	require.Equal(t, wire.NotLeader(node, epoch).Next, body.Next)
}

// R-IS-3: a node that does not lead a partition says who does, in each answer, and
// counts it.
func TestR_IS_3_NodesThatDoNotLeadSayWhoDoes(t *testing.T) {
	n := startNode(t, Limits{})
	n.backend.create(wire.Topic, "events", 2)
	numbered(n.backend.replica("events", 0), 10, 100)
	c := dialFollowing(t, n.address)
	h := c.open("events", 0)
	idle := c.link(h, 0, 0)        // waits for credit
	parked := c.link(h, 0, 64<<20) // waits at the end
	batch, _ := testBatch(t, "a")
	produce := &wire.ProduceRequest{Handle: h, Acks: wire.AcksQuorum, Batch: batch}
	c.send(wire.OpProduce, 1, produce)
	require.Equal(t, wire.CodeOK, c.answer(1).code())

	n.backend.lead("events", 0, 2, 5)
	n.engine.announceLeaders()
	requests := func() {
		c.send(wire.OpProduce, 2, produce)
		c.send(wire.OpListOffsets, 3, &wire.ListOffsetsRequest{Handle: h})
		c.send(wire.OpLinkOpen, 4, &wire.LinkOpenRequest{Handle: h, Credit: 1})
		c.send(wire.OpOpenPartition, 5, &wire.OpenPartitionRequest{Destination: "events"})
	}
	requests()
	for id := range uint32(4) {
		redirected(t, c.answer(id+2), 2, 5)
	}
	closed := map[uint32]bool{}
	for len(closed) < 2 {
		if f := c.read(); f.Opcode == wire.OpLinkClosed {
			var why wire.LinkClosed
			require.NoError(t, why.Parse(f.body))
			require.Equal(t, wire.CodeNotLeader, why.Code)
			require.Equal(t, wire.NotLeader(2, 5).Next, why.Next)
			closed[f.ID] = true
		}
	}
	require.Equal(t, map[uint32]bool{idle: true, parked: true}, closed)
	require.Equal(t, uint64(6), n.engine.counters.errors[wire.CodeNotLeader].Load())
	require.Len(t, n.backend.replica("events", 0).stored(), 10*int(wire.FrameSize(100))+int(wire.FrameSize(wire.BodyBatchSize(0, len(batch)))),
		"nothing was appended that another leader would not know")

	// The other partition goes on, and this one too when it is led from here again.
	require.NotZero(t, c.open("events", 1))
	n.backend.lead("events", 0, 0, 0)
	n.engine.announceLeaders()
	requests()
	for id := range uint32(4) {
		require.Equal(t, wire.CodeOK, c.answer(id+2).code())
	}
}

// Nobody may be known to lead: that is said too, and does not look like a node.
func TestAPartitionWithoutALeaderIsNobodys(t *testing.T) {
	n := startNode(t, Limits{})
	n.backend.create(wire.Topic, "events", 1)
	c := dialOpen(t, n.address)
	h := c.open("events", 0)
	d, _ := n.backend.View().Destination("events")
	n.backend.mu.Lock()
	n.backend.elsewhere[replicaID{d.ID, 0}] = route{epoch: 7}
	n.backend.mu.Unlock()
	n.engine.announceLeaders()
	c.send(wire.OpListOffsets, 1, &wire.ListOffsetsRequest{Handle: h})
	redirected(t, c.answer(1), 0, 7)
}

// Leaders may move a thousand at a time: who wants to know is told once.
func TestNewsOfLeadersGoToThoseWhoAsked(t *testing.T) {
	n := startNode(t, Limits{})
	n.engine.announceTopology(42)
	plain := dialOpen(t, n.address)
	c := dialRaw(t, n.address)
	c.write([]byte(wire.Preface))
	c.send(wire.OpHello, 1, &wire.HelloRequest{MinVersion: 1, MaxVersion: 1, Features: wire.FeatureTopologyEvents | wire.FeatureFollowsRedirects | 1<<40})
	var hello wire.HelloResponse
	c.ok(c.answer(1), &hello)
	require.Equal(t, uint64(wire.FeatureTopologyEvents|wire.FeatureFollowsRedirects), hello.Features)
	for range 1000 {
		n.engine.announceLeaders()
	}
	var m wire.Event
	require.NoError(t, m.Parse(c.read().body))
	require.Equal(t, wire.Event{Kind: wire.EventTopologyChanged, Version: 42}, m)
	n.engine.announceTopology(43)
	events := 0
	for m.Version != 43 {
		require.NoError(t, m.Parse(c.read().body))
		events++
	}
	require.LessOrEqual(t, events, 2)
	f := plain.read()
	require.NoError(t, m.Parse(f.body))
	require.Equal(t, uint64(43), m.Version, "the first it hears")
}

// A client that wants to know hears once of a partition that stays without a leader,
// and again when it loses another one.
func TestPartitionsWithoutALeaderAreToldOf(t *testing.T) {
	n := startNode(t, Limits{})
	n.backend.create(wire.Topic, "events", 2)
	c := dialRaw(t, n.address)
	c.write([]byte(wire.Preface))
	c.send(wire.OpHello, 1, &wire.HelloRequest{MinVersion: 1, MaxVersion: 1, Features: wire.FeatureTopologyEvents})
	require.Equal(t, wire.CodeOK, c.answer(1).code())
	c.open("events", 0)
	c.open("events", 1)
	d, _ := n.backend.View().Destination("events")
	lose := func(number uint32) {
		n.backend.mu.Lock()
		n.backend.elsewhere[replicaID{d.ID, number}] = route{epoch: 7}
		n.backend.mu.Unlock()
		n.engine.announceLeaders()
	}
	heard := func() wire.Event {
		for {
			var m wire.Event
			require.NoError(t, m.Parse(c.read().body))
			if m.Kind != wire.EventTopologyChanged {
				return m
			}
		}
	}
	lose(1)
	require.Equal(t, wire.Event{Kind: wire.EventDestinationUnavailable, Destination: "events", Detail: "partition 1 has no leader"}, heard())
	lose(0)
	require.Equal(t, "partition 0 has no leader", heard().Detail, "the other one is known")
	n.backend.lead("events", 1, 0, 0)
	n.engine.announceLeaders()
	eventually(t, "that it is noticed", func() bool {
		noticed := make(chan bool, 1)
		n.engine.eachSession(func(s *session) { noticed <- !s.handles[1].toldOf })
		return <-noticed
	})
	lose(1)
	require.Equal(t, "partition 1 has no leader", heard().Detail)
}

// What a partition answers long after it was asked names the leader too.
func TestRejectedBatchesNameTheLeader(t *testing.T) {
	n := startNode(t, Limits{})
	n.backend.create(wire.Topic, "events", 1)
	r := n.backend.replica("events", 0)
	r.set(func() { r.hold = true })
	c := dialOpen(t, n.address)
	h := c.open("events", 0)
	batch, _ := testBatch(t, "a")
	c.send(wire.OpProduce, 1, &wire.ProduceRequest{Handle: h, Acks: wire.AcksQuorum, Batch: batch})
	eventually(t, "a batch in the mailbox", func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		return len(r.mailbox) == 1
	})
	r.mailbox[0].Receiver.Appended(r.mailbox[0].Tag, wire.Receipt{BaseOffset: 3<<32 | 9}, wire.CodeNotLeader)
	redirected(t, c.answer(1), 3, 9)
}
