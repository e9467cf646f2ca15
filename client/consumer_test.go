package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/cespare/xxhash/v2"
	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/wire"
)

// fakeGroup plays the leader's part of a group: it takes every session in and confirms
// it; what is delivered and answered, the test says.
type fakeGroup struct {
	t        testing.TB
	b        *fakeBroker
	settings wire.GroupSettings

	mu       sync.Mutex // of what follows
	refuse   func(*wire.AttachRequest) ([]wire.OutcomeAnswer, wire.ErrorCode)
	deaf     bool // heartbeats are not confirmed
	conn     *fakeConn
	link     uint32
	attached []wire.AttachRequest
	outcomes chan wire.Outcome
	capacity chan wire.GroupCapacity
	links    chan uint32 // of attachments
	left     chan wire.GroupLeave
}

const fakeEpoch = 7

func startGroup(t testing.TB, settings wire.GroupSettings) *fakeGroup {
	b := startBroker(t)
	b.create("orders", Queue, 1)
	settings.Binding = wire.BindingGather
	g := &fakeGroup{t: t, b: b, settings: settings.WithDefaults(), outcomes: make(chan wire.Outcome, 100), capacity: make(chan wire.GroupCapacity, 100),
		links: make(chan uint32, 100), left: make(chan wire.GroupLeave, 100)}
	b.mu.Lock()
	for _, op := range []wire.Opcode{wire.OpGroupAttach, wire.OpGroupOutcome, wire.OpGroupCapacity, wire.OpGroupHeartbeat, wire.OpGroupLeave, wire.OpGroupAdmin} {
		b.hello.Opcodes = append(b.hello.Opcodes, wire.OpcodeRange{Opcode: op, Min: 1, Max: 1})
	}
	b.mu.Unlock()
	b.setScript(g.serve)
	return g
}

func (g *fakeGroup) serve(q *fakeRequest) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch q.header.Opcode {
	case wire.OpGroupAdmin:
		info, err := json.Marshal(wire.GroupInfo{Settings: g.settings})
		require.NoError(g.t, err)
		q.reply(&wire.GroupJSON{JSON: info})
	case wire.OpGroupAttach:
		var m wire.AttachRequest
		q.parse(&m)
		g.attached = append(g.attached, m)
		var refused []wire.OutcomeAnswer
		if g.refuse != nil {
			var code wire.ErrorCode
			if refused, code = g.refuse(&m); code != wire.CodeOK {
				q.refuse(code)
				return true
			}
		}
		g.link++
		g.conn = q.conn
		q.reply(&wire.AttachResponse{Link: g.link, Term: m.Term, Group: 1, Mode: g.settings.Mode, Scope: g.settings.Scope, Order: g.settings.Order,
			Window: g.settings.Window, SessionMs: g.settings.SessionMs, AckWaitMs: g.settings.AckWaitMs, Refused: refused})
		g.links <- g.link
	case wire.OpGroupOutcome:
		var m wire.GroupOutcomes
		q.parse(&m)
		for _, o := range m.Outcomes {
			g.outcomes <- o
		}
	case wire.OpGroupHeartbeat:
		var m wire.GroupHeartbeat
		q.parse(&m)
		if !g.deaf {
			q.conn.send(wire.Header{Opcode: wire.OpGroupHeartbeat, Version: 1, ID: q.header.ID}, &m)
		}
	case wire.OpGroupCapacity:
		var m wire.GroupCapacity
		q.parse(&m)
		g.capacity <- m
	case wire.OpGroupLeave:
		var m wire.GroupLeave
		q.parse(&m)
		g.left <- m
		q.conn.send(wire.Header{Opcode: wire.OpLinkClosed, Version: 1, ID: q.header.ID}, &wire.LinkClosed{})
	default:
		return false
	}
	return true
}

func (g *fakeGroup) consumer(opts ...ConsumerOption) *Consumer {
	g.t.Helper()
	c := connect(g.t, g.b)
	x, err := c.Consumer(testContext(g.t), "orders", append([]ConsumerOption{Group("billing")}, opts...)...)
	require.NoError(g.t, err)
	<-g.links
	g.t.Cleanup(func() { x.end() })
	return x
}

// deliver sends one batch with the keys given, and leases all of its records.
func (g *fakeGroup) deliver(base wire.Offset, epoch wire.Index, keys ...string) {
	g.grant(base, keys, wire.Grant{Offset: base, Count: uint32(len(keys)), Epoch: epoch, Deliveries: 1})
}

func (g *fakeGroup) grant(base wire.Offset, keys []string, grants ...wire.Grant) {
	var builder wire.BatchBuilder
	builder.Reset(true)
	for _, key := range keys {
		var k []byte
		var hash uint64
		if key != "" {
			k, hash = []byte(key), xxhash.Sum64String(key)
		}
		require.True(g.t, builder.Append(1, 0, k, []byte("value of "+key), nil, hash))
	}
	batch, index := builder.Finish(wire.ProducerIdentity{ID: wire.NoProducerID}, 0, wire.CodecNone, nil)
	batch = bytes.Clone(batch)
	wire.PatchBatch(batch, base, fakeTerm)
	g.send(wire.OpGroupDeliver, &wire.GroupDeliver{Kind: wire.DeliverBatches, Grants: grants, Bytes: wire.AppendBodyBatch(nil, index, batch)})
}

func (g *fakeGroup) send(op wire.Opcode, m wire.Message) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.conn.send(wire.Header{Opcode: op, Version: op.Version(), ID: g.link}, m)
}

func (g *fakeGroup) answer(o wire.Outcome, code wire.ErrorCode) {
	g.send(wire.OpGroupAnswer, &wire.GroupAnswers{Answers: []wire.OutcomeAnswer{{Offset: o.Offset, Count: o.Count, Epoch: o.Epoch, Code: code}}})
}

func (g *fakeGroup) said(kind wire.OutcomeKind, offset wire.Offset, epoch wire.Index) wire.Outcome {
	g.t.Helper()
	o := <-g.outcomes
	require.Equal(g.t, []any{kind, offset, epoch}, []any{o.Kind, o.Offset, o.Epoch})
	return o
}

func next(t testing.TB, c *Consumer) *Delivery {
	t.Helper()
	d, err := c.Next(testContext(t))
	require.NoError(t, err)
	return d
}

// none reports that nothing is ready. What was sent before is known to have arrived
// because something behind it has.
func none(t testing.TB, c *Consumer) {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	require.Nil(t, c.take(time.Now()))
}

func TestSerialRecordsOfAKeyWaitForTheConfirmationOfTheOneBefore(t *testing.T) {
	g := startGroup(t, wire.GroupSettings{Mode: Serial})
	c := g.consumer(Mode(Serial))
	g.deliver(10, fakeEpoch, "a", "b", "a", "", "")
	a := next(t, c)
	require.Equal(t, "value of a", string(a.Value))
	require.Equal(t, uint64(10), a.Offset)
	require.Equal(t, uint64(fakeEpoch), a.Epoch())
	require.Equal(t, uint64(11), next(t, c).Offset)
	require.Equal(t, uint64(13), next(t, c).Offset, "without a key a record waits for nobody")
	require.Equal(t, uint64(14), next(t, c).Offset)
	require.NoError(t, a.Ack())
	said := g.said(wire.OutcomeAck, 10, fakeEpoch)
	none(t, c)
	g.answer(said, wire.CodeOK)
	require.Equal(t, uint64(12), next(t, c).Offset)
	require.NoError(t, a.Ack(), "said again it is the same")
	require.ErrorIs(t, a.Nack(), ErrSettled)
}

// GROUPS 27: a group that has forgotten whose outcome of a record counted says neither yes
// nor that it was lost; the next of its key goes on.
func TestRule27_WhatIsSettledPerhapsByAnotherIsNoYes(t *testing.T) {
	g := startGroup(t, wire.GroupSettings{Mode: Serial})
	c := g.consumer(Mode(Serial))
	g.deliver(10, fakeEpoch, "a", "a")
	d := next(t, c)
	told := make(chan error, 1)
	require.NoError(t, d.AckFunc(func(err error) { told <- err }))
	g.answer(g.said(wire.OutcomeAck, 10, fakeEpoch), wire.CodeAlreadyDone)
	err := <-told
	require.ErrorIs(t, err, wire.CodeAlreadyDone)
	require.NotErrorIs(t, err, ErrFenced)
	require.ErrorIs(t, d.AckSync(testContext(t)), wire.CodeAlreadyDone)
	require.Equal(t, uint64(11), next(t, c).Offset)
}

func TestWithReplayOrderTheNextRecordOfAKeyStartsAtTheAck(t *testing.T) {
	g := startGroup(t, wire.GroupSettings{Mode: Serial, Order: ReplayOrder})
	c := g.consumer(Mode(Serial))
	g.deliver(10, fakeEpoch, "a", "a")
	require.NoError(t, next(t, c).Ack())
	require.Equal(t, uint64(11), next(t, c).Offset)
}

// A stream has its capacity in flight without being asked to: nothing waits for a commit.
// What was given back comes again, with all behind it, in order.
func TestAStreamGoesOnAtTheAck(t *testing.T) {
	g := startGroup(t, wire.GroupSettings{Mode: Stream})
	c := g.consumer(Mode(Stream))
	g.deliver(10, fakeEpoch, "a", "b", "", "a", "b")
	require.Equal(t, uint64(10), next(t, c).Offset)
	none(t, c)
	for o := range uint64(3) {
		d := c.running.first
		require.Equal(t, 10+o, d.Offset)
		require.NoError(t, d.Ack())
		require.Equal(t, 11+o, next(t, c).Offset)
	}
	require.NoError(t, c.running.first.Nack())
	none(t, c)
	g.deliver(13, fakeEpoch+1, "a", "b")
	for _, o := range []uint64{13, 14} {
		d := next(t, c)
		require.Equal(t, []uint64{o, fakeEpoch + 1}, []uint64{d.Offset, d.Epoch()})
		require.NoError(t, d.Ack())
	}
	strict := startGroup(t, wire.GroupSettings{Mode: Stream, Order: StrictOrder})
	c = strict.consumer(Mode(Stream))
	strict.deliver(10, fakeEpoch, "a", "b")
	require.NoError(t, next(t, c).Ack())
	none(t, c)
}

func TestNackDropsWhatWaitsBehindTheRecord(t *testing.T) {
	g := startGroup(t, wire.GroupSettings{Mode: Serial})
	c := g.consumer(Mode(Serial))
	g.deliver(10, fakeEpoch, "a", "a", "a")
	d := next(t, c)
	require.NoError(t, d.Nack(Delay(3*time.Second)))
	o := g.said(wire.OutcomeNack, 10, fakeEpoch)
	require.EqualValues(t, 3000, o.DelayMs)
	require.EqualValues(t, 2, g.said(wire.OutcomeReleased, 11, fakeEpoch).Count)
	g.deliver(13, fakeEpoch, "a") // was on its way when the lease was given back
	g.deliver(14, fakeEpoch, "b")
	require.Equal(t, uint64(14), next(t, c).Offset)
	g.deliver(15, fakeEpoch+1, "a") // under another lease, and given back as well
	g.send(wire.OpGroupLost, &wire.GroupLost{Lost: []wire.Lost{
		{Offset: 11, Count: 3, Epoch: fakeEpoch, Reason: wire.ReasonReturned}, {Offset: 15, Count: 1, Epoch: fakeEpoch + 1, Reason: wire.ReasonReturned}}})
	g.answer(o, wire.CodeOK)
	require.EqualValues(t, 3, g.said(wire.OutcomeLostSeen, 11, fakeEpoch).Count)
	g.said(wire.OutcomeLostSeen, 15, fakeEpoch+1)
	g.deliver(10, fakeEpoch+2, "a", "a")
	d = next(t, c)
	require.Equal(t, []uint64{10, fakeEpoch + 2}, []uint64{d.Offset, d.Epoch()})
	none(t, c)
}

func TestSharedRecordsAreAcknowledgedInRanges(t *testing.T) {
	g := startGroup(t, wire.GroupSettings{Mode: Shared})
	c := g.consumer()
	keys := make([]string, 100)
	g.deliver(50, fakeEpoch, keys...)
	first := next(t, c)
	c.mu.Lock() // the writer cannot take them one by one
	first.conclude(wire.OutcomeAck, 0, "")
	for range 99 {
		c.take(time.Now()).conclude(wire.OutcomeAck, 0, "")
	}
	c.mu.Unlock()
	o := <-g.outcomes
	require.Equal(t, wire.Outcome{Offset: 50, Count: 100, Epoch: fakeEpoch, Kind: wire.OutcomeAck}, o)
}

func TestOnlyGrantedRecordsOfABatchAreHandedOut(t *testing.T) {
	g := startGroup(t, wire.GroupSettings{Mode: Shared})
	c := g.consumer()
	g.grant(20, make([]string, 6),
		wire.Grant{Offset: 21, Count: 2, Epoch: fakeEpoch, Deliveries: 1},
		wire.Grant{Offset: 25, Count: 1, Epoch: 3, Deliveries: 4, Attempts: 2, Flags: wire.GrantRedelivered | wire.GrantAtLeast})
	require.Equal(t, uint64(21), next(t, c).Offset)
	require.Equal(t, uint64(22), next(t, c).Offset)
	d := next(t, c)
	require.Equal(t, uint64(25), d.Offset)
	require.Equal(t, []any{uint64(3), 4, 2, true, true}, []any{d.Epoch(), d.Deliveries, d.Attempts, d.Redelivered, d.AtLeast})
}

func TestAReturningConsumerClaimsWhatItHolds(t *testing.T) {
	g := startGroup(t, wire.GroupSettings{Mode: Serial})
	c := g.consumer(Mode(Serial))
	g.deliver(10, fakeEpoch, "a", "b", "c", "d")
	a, b, cc := next(t, c), next(t, c), next(t, c)
	g.mu.Lock()
	g.refuse = func(m *wire.AttachRequest) ([]wire.OutcomeAnswer, wire.ErrorCode) {
		return []wire.OutcomeAnswer{{Offset: 10, Count: 1, Epoch: fakeEpoch, Code: wire.CodeOK}, {Offset: 12, Count: 1, Epoch: fakeEpoch, Code: wire.CodeStaleEpoch}}, wire.CodeOK
	}
	g.mu.Unlock()
	require.NoError(t, a.Ack())
	g.said(wire.OutcomeAck, 10, fakeEpoch)
	g.b.dropConns()
	<-g.links
	g.mu.Lock()
	first, again := g.attached[0], g.attached[1]
	g.mu.Unlock()
	require.Equal(t, first.Session, again.Session)
	require.Greater(t, again.Attempt, first.Attempt)
	require.Equal(t, []wire.Outcome{{Offset: 10, Count: 1, Epoch: fakeEpoch, Kind: wire.OutcomeAck}, {Offset: 11, Count: 3, Epoch: fakeEpoch}}, again.Claims)
	<-cc.Context().Done()
	require.ErrorIs(t, cc.Ack(), ErrFenced)
	g.said(wire.OutcomeLostSeen, 12, fakeEpoch)
	require.NoError(t, b.AckSync(confirmedBy(t, g, 11)))
	require.Equal(t, uint64(13), next(t, c).Offset)
}

// A claim has no room for the reason of a Reject: the record is claimed as held, and the outcome is
// said again, with its reason, whichever answer was lost.
func TestAReasonOutlivesTheConnection(t *testing.T) {
	g := startGroup(t, wire.GroupSettings{Mode: Serial})
	c := g.consumer(Mode(Serial))
	g.deliver(10, fakeEpoch, "a", "b")
	a, b := next(t, c), next(t, c)
	require.NoError(t, a.Reject("no such customer"))
	require.Equal(t, "no such customer", (<-g.outcomes).Text)
	require.NoError(t, b.Ack())
	<-g.outcomes
	g.b.dropConns()
	<-g.links
	g.mu.Lock()
	claims := g.attached[1].Claims
	g.mu.Unlock()
	require.Equal(t, []wire.Outcome{{Offset: 10, Count: 1, Epoch: fakeEpoch}, {Offset: 11, Count: 1, Epoch: fakeEpoch, Kind: wire.OutcomeAck}}, claims)
	require.Equal(t, wire.Outcome{Offset: 10, Count: 1, Epoch: fakeEpoch, Kind: wire.OutcomeReject, Text: "no such customer"}, <-g.outcomes)
}

// What a connection had not written when it was lost keeps nothing from being said on the next one.
func TestAConsumerSpeaksAgainOnTheNextConnection(t *testing.T) {
	g := startGroup(t, wire.GroupSettings{Mode: Shared})
	c := g.consumer()
	g.deliver(10, fakeEpoch, "")
	d := next(t, c)
	c.mu.Lock()
	s := c.attachments[0].session
	c.mu.Unlock()
	s.writing.Lock() // as a write that does not end
	require.NoError(t, d.Ack())
	g.b.dropConns()
	<-s.done
	s.writing.Unlock()
	<-g.links
	g.mu.Lock()
	require.Equal(t, []wire.Outcome{{Offset: 10, Count: 1, Epoch: fakeEpoch, Kind: wire.OutcomeAck}}, g.attached[1].Claims)
	g.mu.Unlock()
	g.deliver(11, fakeEpoch, "")
	require.NoError(t, next(t, c).Ack())
	g.said(wire.OutcomeAck, 11, fakeEpoch)
}

// RULES of groups 14: a partition that is opened anew in the same session, because its broker was taken for
// the leader again before it had answered, is attached to once: the second attach would end the link of the
// first, and the session with it.
func TestRule14_APartitionThatIsOpenedTwiceIsAttachedToOnce(t *testing.T) {
	g := startGroup(t, wire.GroupSettings{Mode: Serial})
	c := g.consumer(Mode(Serial))
	c.mu.Lock()
	at := c.attachments[0]
	s := at.session
	at.unlink()
	at.open(s)
	at.open(s)
	c.mu.Unlock()
	<-g.links
	g.deliver(10, fakeEpoch, "a")
	require.NoError(t, next(t, c).AckSync(confirmedBy(t, g, 10)))
	g.mu.Lock()
	defer g.mu.Unlock()
	require.Len(t, g.attached, 2)
	require.Empty(t, g.left)
}

// RULES Q1: so it is with the link to the coordinator, which ends the older of two links of a consumer
// with DUPLICATE: that would end the consumer.
func TestRuleQ1_AConsumerThatOpensItsCoordinatorTwiceBindsItselfOnce(t *testing.T) {
	g := startGroup(t, wire.GroupSettings{Mode: Serial})
	g.settings.Binding = wire.BindingCover
	g.b.mu.Lock()
	g.b.hello.Opcodes = append(g.b.hello.Opcodes, wire.OpcodeRange{Opcode: wire.OpGroupBind, Min: 1, Max: 1})
	g.b.mu.Unlock()
	const links = 1000
	binds := make(chan uint32, 10)
	g.b.setScript(func(q *fakeRequest) bool {
		if q.header.Opcode != wire.OpGroupBind {
			return g.serve(q)
		}
		n := uint32(len(binds))
		if n > 0 {
			q.conn.send(wire.Header{Opcode: wire.OpLinkClosed, Version: 1, ID: links + n - 1}, &wire.LinkClosed{Code: wire.CodeDuplicate})
		}
		q.reply(&wire.BindResponse{Link: links + n, SessionMs: 10_000, Generation: 1, Counter: 1, Partitions: []uint32{0}})
		binds <- n
		return true
	})
	c := g.consumer(Mode(Serial))
	c.mu.Lock()
	b := c.bind
	s := b.session
	s.dropLink(b.link)
	b.session = nil
	b.open(s)
	b.open(s)
	c.mu.Unlock()
	require.Eventually(t, func() bool { return len(binds) > 1 }, 10*time.Second, time.Millisecond)
	g.deliver(10, fakeEpoch, "a")
	require.NoError(t, next(t, c).AckSync(confirmedBy(t, g, 10)))
	require.Len(t, binds, 2)
	c.mu.Lock()
	defer c.mu.Unlock()
	require.NoError(t, c.err)
	require.NotNil(t, b.session)
}

// confirmedBy has the group confirm the ack of a record when it comes.
func confirmedBy(t testing.TB, g *fakeGroup, offset wire.Offset) context.Context {
	go func() { g.answer(<-g.outcomes, wire.CodeOK) }()
	return testContext(t)
}

func TestASessionThatIsGoneLosesEverythingAndJoinsAnew(t *testing.T) {
	g := startGroup(t, wire.GroupSettings{Mode: Shared})
	c := g.consumer()
	g.deliver(10, fakeEpoch, "", "")
	d := next(t, c)
	g.send(wire.OpLinkClosed, &wire.LinkClosed{Code: wire.CodeSessionGone, Detail: "removed"})
	<-g.links
	g.mu.Lock()
	first, again := g.attached[0], g.attached[1]
	g.mu.Unlock()
	require.NotEqual(t, first.Session, again.Session)
	require.Equal(t, first.Session, again.Predecessor)
	require.Empty(t, again.Claims)
	require.ErrorIs(t, d.Ack(), ErrFenced)
	none(t, c)
}

// R-WLS-7: a consumer whose group is removed is told so at once; the connection stays.
func TestR_WLS_7_AConsumerThatTheBrokerEndsIsToldSo(t *testing.T) {
	g := startGroup(t, wire.GroupSettings{Mode: Shared})
	closed := make(chan ConsumerClosed, 10)
	c := g.consumer(OnEvent(func(e Event) {
		if e, ok := e.(ConsumerClosed); ok {
			closed <- e
		}
	}))
	g.send(wire.OpLinkClosed, &wire.LinkClosed{Code: wire.CodeGroupGone, Detail: "removed"})
	require.ErrorIs(t, (<-closed).Err, wire.CodeGroupGone)
	_, err := c.Next(testContext(t))
	require.ErrorIs(t, err, wire.CodeGroupGone)
	require.True(t, c.conn.Info().Connected)
	require.NoError(t, c.Close(testContext(t)), "there is nobody to wait for")
	require.Empty(t, closed, "once")
}

// R-WLS-10: a consumer whose connection is lost and not to come back is told so once, and
// then rests: upkeep finds the connection's error on each round, and must not wake itself.
func TestAConsumerWithoutItsConnectionRests(t *testing.T) {
	c := &Consumer{
		wake: make(chan struct{}, 1), signal: make(chan struct{}, 1), started: make(chan struct{}), events: newDispatcher(nil),
	}
	c.fail(ErrDisconnected)
	require.Len(t, c.wake, 1)
	<-c.wake
	c.fail(ErrDisconnected)
	require.Empty(t, c.wake)
	require.ErrorIs(t, c.err, ErrDisconnected)
}

// R-X-2, T1: a consumer that nobody confirms stops by itself before its broker gives its
// records to others.
func TestAConsumerThatIsNotConfirmedStops(t *testing.T) {
	g := startGroup(t, wire.GroupSettings{Mode: Shared, SessionMs: 300})
	g.mu.Lock()
	g.deaf = true
	g.mu.Unlock()
	lost := make(chan LeaseLost, 10)
	lapsed := make(chan Unconfirmed, 10)
	c := g.consumer(OnEvent(func(e Event) {
		switch e := e.(type) {
		case LeaseLost:
			lost <- e
		case Unconfirmed:
			lapsed <- e
		}
	}))
	g.deliver(10, fakeEpoch, "", "")
	d := next(t, c)
	<-d.Context().Done()
	require.Equal(t, Unconfirmed{Destination: "orders", Group: "billing", Partition: 0}, <-lapsed)
	require.ErrorIs(t, context.Cause(d.Context()), ErrFenced)
	require.ErrorIs(t, d.Ack(), ErrFenced)
	require.Equal(t, LeaseLost{Destination: "orders", Group: "billing", Partition: 0, Offset: 10, Reason: errUnconfirmed.Error()}, <-lost)
	none(t, c)
}

// docs/guarantees.md: what consumers hold is theirs for longer than it takes until another leader is
// there, if the session timeout is the default, and not with 5 s.
func TestTheDefaultSessionTimeoutOutlastsAHungLeader(t *testing.T) {
	const nextLeader = 3 * time.Second // docs/replication.md, failover
	left := func(timeout time.Duration) time.Duration {
		at := &attachment{timeout: timeout}
		sent := time.Now()
		at.confirmed(sent)
		return at.valid.Sub(sent) - timeout/3 // as old the last confirmation may be
	}
	require.InDelta(t, 3.4, left(wire.DefaultSessionMs*time.Millisecond).Seconds(), 0.001)
	require.Greater(t, left(wire.DefaultSessionMs*time.Millisecond), nextLeader)
	require.Greater(t, left(5300*time.Millisecond), nextLeader)
	require.Less(t, left(5*time.Second), nextLeader)
}

// R-IS-7, R-BRK-7: a leader that falls silent is given up after a third of the session timeout
// of a consumer that is attached there, so that the consumer finds the next one while
// what it holds is its own.
func TestR_IS_7_ASilentLeaderIsGivenUpWithinTheSessionTimeout(t *testing.T) {
	g := startGroup(t, wire.GroupSettings{Mode: Shared, SessionMs: 3000})
	lost := make(chan LeaseLost, 10)
	c := g.consumer(OnEvent(func(e Event) {
		if e, ok := e.(LeaseLost); ok {
			lost <- e
		}
	}))
	g.deliver(10, fakeEpoch, "")
	d := next(t, c)
	ended, err := c.conn.session(testContext(t))
	require.NoError(t, err)
	first := g.conn
	g.b.setScript(func(q *fakeRequest) bool { return q.conn == first || g.serve(q) }) // it stays open, and is not answered
	<-g.links
	<-ended.done
	require.ErrorIs(t, ended.err, ErrKeepalive)
	require.ErrorContains(t, ended.err, "for 1s")
	require.Equal(t, []wire.Outcome{{Offset: 10, Count: 1, Epoch: fakeEpoch, Kind: wire.OutcomeHeld}}, g.attached[1].Claims)
	require.NoError(t, d.Ack())
	g.said(wire.OutcomeAck, 10, fakeEpoch)
	require.Empty(t, lost)
}

// A record that was sent ahead, and that nobody has seen, is not lost when it is given back at
// the end and the broker has ended its lease by itself; one whose ack comes too late is.
func TestWhatIsGivenBackIsNotLost(t *testing.T) {
	g := startGroup(t, wire.GroupSettings{Mode: Shared})
	lost := make(chan LeaseLost, 10)
	c := g.consumer(OnEvent(func(e Event) {
		if e, ok := e.(LeaseLost); ok {
			lost <- e
		}
	}))
	g.deliver(10, fakeEpoch, "", "")
	d := next(t, c)
	closed := make(chan error, 1)
	go func() { closed <- c.Close(testContext(t)) }()
	g.answer(g.said(wire.OutcomeReleased, 11, fakeEpoch), wire.CodeStaleEpoch)
	g.said(wire.OutcomeLostSeen, 11, fakeEpoch)
	require.NoError(t, d.Ack())
	g.answer(g.said(wire.OutcomeAck, 10, fakeEpoch), wire.CodeStaleEpoch)
	require.EqualValues(t, 10, (<-lost).Offset)
	require.NoError(t, <-closed)
	require.Empty(t, lost)
}

func TestAHandlerThatTakesTooLongIsStoppedAndItsRecordGivenBack(t *testing.T) {
	g := startGroup(t, wire.GroupSettings{Mode: Shared, AckWaitMs: 50, RevokeMs: 50})
	c := g.consumer()
	g.deliver(10, fakeEpoch, "")
	d := next(t, c)
	<-d.Context().Done()
	require.ErrorIs(t, context.Cause(d.Context()), errAckWait)
	back := g.said(wire.OutcomeNack, 10, fakeEpoch)
	require.ErrorIs(t, d.Ack(), ErrFenced)
	g.answer(back, wire.CodeOK)
	c.mu.Lock()
	for d.state != leaseOver {
		c.mu.Unlock()
		runtime.Gosched()
		c.mu.Lock()
	}
	c.mu.Unlock()
	require.ErrorIs(t, d.Ack(), ErrFenced, "also when the broker has confirmed that it is back")
}

// Extend sets when the record is to be done, here and, also after a reconnect, at the
// broker. It is no outcome: the ack behind it waits for an answer of its own.
func TestExtendGivesARecordMoreTimeAndNoOutcome(t *testing.T) {
	g := startGroup(t, wire.GroupSettings{Mode: Shared, AckWaitMs: 3_600_000})
	c := g.consumer()
	g.deliver(10, fakeEpoch, "", "")
	d, short := next(t, c), next(t, c)
	require.NoError(t, d.Extend(10*time.Hour))
	require.EqualValues(t, 36_000_000, g.said(wire.OutcomeExtend, 10, fakeEpoch).DelayMs)
	g.b.dropConns()
	<-g.links
	again := g.said(wire.OutcomeExtend, 10, fakeEpoch)
	require.InDelta(t, 36_000_000, again.DelayMs, 600_000)
	require.NoError(t, short.Extend(time.Millisecond))
	g.said(wire.OutcomeExtend, 11, fakeEpoch)
	<-short.Context().Done()
	require.ErrorIs(t, context.Cause(short.Context()), errAckWait)
	require.ErrorIs(t, short.Extend(time.Hour), ErrFenced, "it is to be given back")
	require.NoError(t, d.Context().Err())
	require.NoError(t, d.AckSync(confirmedBy(t, g, 10)))
	require.ErrorIs(t, d.Extend(time.Hour), ErrSettled)
}

// Who only looks fails at nothing: a record is given back, when its time is over and at the
// end, and Close waits for nobody to say what became of it.
func TestALookerGivesEverythingBack(t *testing.T) {
	g := startGroup(t, wire.GroupSettings{Mode: Shared, AckWaitMs: 50, RevokeMs: 50})
	c := g.consumer(LookOnly(true))
	g.mu.Lock()
	require.NotZero(t, g.attached[0].Flags&wire.AttachLookOnly)
	g.mu.Unlock()
	g.deliver(10, fakeEpoch, "")
	next(t, c)
	g.answer(g.said(wire.OutcomeReleased, 10, fakeEpoch), wire.CodeOK)

	g = startGroup(t, wire.GroupSettings{Mode: Shared})
	c = g.consumer(LookOnly(true))
	g.deliver(10, fakeEpoch, "", "")
	next(t, c)
	closed := make(chan error)
	go func() { closed <- c.Close(testContext(t)) }()
	for n := uint32(0); n < 2; {
		o := <-g.outcomes
		require.Equal(t, wire.OutcomeReleased, o.Kind)
		g.answer(o, wire.CodeOK)
		n += o.Count
	}
	require.NoError(t, <-closed)
}

func TestARevokedRecordIsReleasedByItsHandler(t *testing.T) {
	g := startGroup(t, wire.GroupSettings{Mode: Serial})
	c := g.consumer(Mode(Serial))
	g.deliver(10, fakeEpoch, "a", "a", "b")
	ctx, cancel := context.WithCancel(testContext(t))
	started := make(chan uint64, 10)
	done := make(chan error)
	go func() {
		done <- c.Run(ctx, func(ctx context.Context, d *Delivery) error {
			started <- d.Offset
			<-ctx.Done()
			return ctx.Err()
		})
	}()
	require.Equal(t, uint64(10), <-started)
	g.send(wire.OpGroupRevoke, &wire.GroupRevoke{Revokes: []wire.Revoke{{Offset: 10, Count: 3, Epoch: fakeEpoch, Reason: wire.ReasonSeek, GraceMs: 10_000}}})
	kinds := map[wire.Offset]wire.OutcomeKind{}
	for len(kinds) < 3 {
		for o := <-g.outcomes; o.Count > 0; o.Count-- {
			kinds[o.Next()-1] = o.Kind
		}
	}
	require.Equal(t, map[wire.Offset]wire.OutcomeKind{10: wire.OutcomeReleased, 11: wire.OutcomeReleased, 12: wire.OutcomeReleased}, kinds)
	cancel()
	require.ErrorIs(t, <-done, context.Canceled)
}

// Rules 29, 30: what the broker wants back is not started, also if it waits for the
// confirmation of the ack before it.
func TestRule30_ARevokedRecordBehindAnAckIsNotStarted(t *testing.T) {
	g := startGroup(t, wire.GroupSettings{Mode: Serial})
	c := g.consumer(Mode(Serial))
	g.deliver(10, fakeEpoch, "a", "a", "a", "b")
	a := next(t, c)
	require.EqualValues(t, 13, next(t, c).Offset)
	require.NoError(t, a.Ack())
	said := g.said(wire.OutcomeAck, 10, fakeEpoch)
	g.send(wire.OpGroupRevoke, &wire.GroupRevoke{Revokes: []wire.Revoke{{Offset: 11, Count: 1, Epoch: fakeEpoch, Reason: wire.ReasonPark, GraceMs: 10_000}}})
	released := g.said(wire.OutcomeReleased, 11, fakeEpoch)
	g.answer(said, wire.CodeOK)
	g.deliver(14, fakeEpoch, "a") // the broker had sent it before it read that
	g.deliver(15, fakeEpoch, "z")
	require.EqualValues(t, 15, next(t, c).Offset, "neither 11, nor what lies behind it")
	g.send(wire.OpGroupLost, &wire.GroupLost{Lost: []wire.Lost{{Offset: 12, Count: 1, Epoch: fakeEpoch, Reason: wire.ReasonPark}, {Offset: 14, Count: 1, Epoch: fakeEpoch, Reason: wire.ReasonPark}}})
	g.answer(released, wire.CodeOK)
	g.deliver(11, fakeEpoch+1, "a", "a")
	d := next(t, c)
	require.Equal(t, []uint64{11, fakeEpoch + 1}, []uint64{d.Offset, d.Epoch()})
}

// Rule 24: with a record that waits, those behind it go back, and those before it stay; what was
// given back before is claimed until that is confirmed.
func TestRule24_OnlyWhatLiesBehindGoesBack(t *testing.T) {
	g := startGroup(t, wire.GroupSettings{Mode: Serial})
	c := g.consumer(Mode(Serial))
	g.deliver(10, fakeEpoch, "a", "a", "a", "a")
	d := next(t, c)
	g.send(wire.OpGroupRevoke, &wire.GroupRevoke{Revokes: []wire.Revoke{{Offset: 12, Count: 1, Epoch: fakeEpoch, Reason: wire.ReasonPark, GraceMs: 10_000}}})
	g.said(wire.OutcomeReleased, 12, fakeEpoch)
	require.NoError(t, d.AckSync(confirmedBy(t, g, 10)))
	d = next(t, c)
	require.EqualValues(t, 11, d.Offset)
	require.NoError(t, d.Nack())
	c.mu.Lock()
	claims := c.attachments[0].claims()
	c.mu.Unlock()
	require.Equal(t, []wire.Outcome{
		{Offset: 11, Count: 1, Epoch: fakeEpoch, Kind: wire.OutcomeNack}, {Offset: 12, Count: 1, Epoch: fakeEpoch, Kind: wire.OutcomeReleased},
	}, claims)
}

// Rule 24: what was given back because nobody asks for records holds up what was on its way
// behind it, also when somebody asks again.
func TestRule24_WhatComesBehindAReleasedRecordWaits(t *testing.T) {
	g := startGroup(t, wire.GroupSettings{Mode: Serial})
	c := g.consumer(Mode(Serial))
	g.deliver(10, fakeEpoch, "a", "a", "a")
	var first *Delivery
	for d, err := range c.Messages(testContext(t)) {
		require.NoError(t, err)
		first = d
		break
	}
	released := g.said(wire.OutcomeReleased, 11, fakeEpoch)
	require.NoError(t, first.AckSync(confirmedBy(t, g, 10)))
	ready := make(chan *Delivery)
	go func() { ready <- next(t, c) }() // asks again
	require.Zero(t, (<-g.capacity).Records)
	require.NotZero(t, (<-g.capacity).Records)
	g.deliver(13, fakeEpoch, "a")
	g.deliver(14, fakeEpoch, "z")
	require.EqualValues(t, 14, (<-ready).Offset)
	g.send(wire.OpGroupLost, &wire.GroupLost{Lost: []wire.Lost{{Offset: 12, Count: 2, Epoch: fakeEpoch, Reason: wire.ReasonReturned}}})
	g.answer(released, wire.CodeOK)
	g.deliver(11, fakeEpoch+1, "a")
	require.EqualValues(t, 11, next(t, c).Offset)
}

// Before more records are worked on at once than ever, the broker hears how many that will
// be, rounded up: what a consumer that dies had only prefetched has not failed.
func TestAConsumerSaysHowManyRecordsItWorksOn(t *testing.T) {
	g := startGroup(t, wire.GroupSettings{Mode: Shared})
	c := g.consumer(Prefetch(10))
	g.deliver(10, fakeEpoch, "", "", "", "", "")
	first := next(t, c)
	require.Empty(t, g.capacity, "one was said with the attach")
	next(t, c)
	said := <-g.capacity
	require.EqualValues(t, 2, said.Working)
	require.EqualValues(t, 10, said.Records)
	next(t, c)
	require.EqualValues(t, 4, (<-g.capacity).Working)
	require.NoError(t, first.Ack())
	next(t, c)
	next(t, c)
	require.Empty(t, g.capacity)
}

// RULES Q4: what retention took from the group is an event, and the error of what the consumer
// had of it.
func TestRuleQ4_WhatHasExpiredIsToldAsARangeAndAsAnError(t *testing.T) {
	g := startGroup(t, wire.GroupSettings{Mode: Shared})
	expired := make(chan DataExpired, 1)
	c := g.consumer(OnEvent(func(e Event) {
		if e, ok := e.(DataExpired); ok {
			expired <- e
		}
	}))
	g.deliver(10, fakeEpoch, "")
	d := next(t, c)
	g.send(wire.OpGroupLost, &wire.GroupLost{Lost: []wire.Lost{
		{Offset: 3, Count: 9, Reason: wire.ReasonExpired}, {Offset: 10, Count: 1, Epoch: fakeEpoch, Reason: wire.ReasonExpired},
	}})
	e := <-expired
	require.Equal(t, []uint64{3, 12}, []uint64{e.From, e.To})
	<-d.Context().Done()
	err := d.Ack()
	require.ErrorIs(t, err, ErrFenced)
	require.ErrorIs(t, err, wire.CodeDataExpired)
}

func TestLeavingTheLoopGivesBackWhatWasSentAhead(t *testing.T) {
	g := startGroup(t, wire.GroupSettings{Mode: Shared})
	c := g.consumer(Prefetch(10))
	g.deliver(10, fakeEpoch, "", "", "")
	for d, err := range c.Messages(testContext(t)) {
		require.NoError(t, err)
		require.Equal(t, uint64(10), d.Offset)
		break
	}
	require.Equal(t, wire.GroupCapacity{Working: 1}, <-g.capacity)
	o := <-g.outcomes
	require.Equal(t, wire.Outcome{Offset: 11, Count: 2, Epoch: fakeEpoch, Kind: wire.OutcomeReleased}, o)
	g.answer(o, wire.CodeOK)
	g.deliver(13, fakeEpoch, "") // it was on its way
	g.answer(g.said(wire.OutcomeReleased, 13, fakeEpoch), wire.CodeOK)
	ctx, cancel := context.WithCancel(testContext(t))
	go func() {
		require.Equal(t, wire.GroupCapacity{Records: 10, Refill: 5, Bytes: defaultPrefetchBytes, Working: 1}, <-g.capacity)
		cancel()
	}()
	_, err := c.Next(ctx)
	require.ErrorIs(t, err, context.Canceled)
}

func TestRunSettlesRecordsByWhatTheirHandlersReturn(t *testing.T) {
	g := startGroup(t, wire.GroupSettings{Mode: Serial})
	c := g.consumer(Mode(Serial))
	g.deliver(10, fakeEpoch, "a", "b", "c")
	ctx, cancel := context.WithCancel(testContext(t))
	done := make(chan error)
	go func() {
		done <- c.Run(ctx, func(_ context.Context, d *Delivery) error {
			switch string(d.Key) {
			case "b":
				return errors.New("no stock")
			case "c":
				return d.Reject("never")
			}
			return nil
		}, Workers(3))
	}()
	kinds := map[wire.Offset]wire.OutcomeKind{}
	for len(kinds) < 3 {
		o := <-g.outcomes
		kinds[o.Offset] = o.Kind
		if o.Kind == wire.OutcomeReject {
			require.Equal(t, "never", o.Text)
		}
	}
	require.Equal(t, map[wire.Offset]wire.OutcomeKind{10: wire.OutcomeAck, 11: wire.OutcomeNack, 12: wire.OutcomeReject}, kinds)
	cancel()
	require.ErrorIs(t, <-done, context.Canceled)
}

func TestCloseWaitsForOutcomesAndLeaves(t *testing.T) {
	g := startGroup(t, wire.GroupSettings{Mode: Shared})
	c := g.consumer()
	g.deliver(10, fakeEpoch, "", "")
	require.NoError(t, next(t, c).Ack())
	done := make(chan error)
	go func() { done <- c.Close(testContext(t)) }()
	seen := map[wire.Offset]bool{}
	for len(seen) < 2 {
		o := <-g.outcomes
		for i := range wire.Offset(o.Count) {
			seen[o.Offset+i] = true
		}
		select {
		case <-g.left:
			t.Error("it has left before its ack was confirmed")
		default:
		}
		g.answer(o, wire.CodeOK)
	}
	require.Equal(t, wire.GroupLeave{}, <-g.left)
	require.NoError(t, <-done)
	_, err := c.Next(testContext(t))
	require.ErrorIs(t, err, ErrClosed)
}

// A run of records of a batch reads like the batch; a record in it that does not match its
// checksum goes back with all that was granted behind it.
func TestRunsOfRecordsAreCheckedOneByOne(t *testing.T) {
	g := startGroup(t, wire.GroupSettings{Mode: Serial, Scope: ByKey})
	c := g.consumer()
	var builder wire.BatchBuilder
	builder.Reset(true)
	for i := range 6 {
		builder.Append(int64(i), 0, []byte{'a' + byte(i)}, []byte("value"), nil, uint64(i+1))
	}
	batch, index := builder.Finish(wire.ProducerIdentity{ID: wire.NoProducerID}, 0, wire.CodecNone, nil)
	wire.PatchBatch(batch, 10, fakeTerm)
	x, err := wire.ParseRecordIndex(index)
	require.NoError(t, err)
	size := int(x.Entry(0).Length)
	run := func(first, count int) []byte {
		entries := index[wire.RecordIndexHeaderSize+first*wire.RecordIndexEntrySize:][:count*wire.RecordIndexEntrySize]
		b := wire.AppendRecordRun(nil, first, 0, batch[:wire.BatchHeaderSize], entries)
		return append(b, batch[wire.BatchHeaderSize+first*size:][:count*size]...)
	}
	grants := []wire.Grant{{Offset: 11, Count: 1, Epoch: fakeEpoch, Deliveries: 1}, {Offset: 13, Count: 1, Epoch: fakeEpoch, Deliveries: 1}}
	g.send(wire.OpGroupDeliver, &wire.GroupDeliver{Kind: wire.DeliverRecords, Grants: grants, Bytes: run(1, 3)})
	for _, want := range []string{"b", "d"} {
		d := next(t, c)
		require.Equal(t, want, string(d.Key))
		require.EqualValues(t, want[0]-'a', d.Timestamp.UnixMilli())
	}
	rotten := run(4, 2)
	rotten[len(rotten)-2] ^= 1
	g.send(wire.OpGroupDeliver, &wire.GroupDeliver{Kind: wire.DeliverRecords, Grants: []wire.Grant{{Offset: 14, Count: 2, Epoch: fakeEpoch, Deliveries: 1}}, Bytes: rotten})
	require.Equal(t, uint64(14), next(t, c).Offset)
	require.Equal(t, "damaged", g.said(wire.OutcomeReleased, 15, fakeEpoch).Text)
}

func TestDamagedRecordsAreReportedAndGivenBack(t *testing.T) {
	g := startGroup(t, wire.GroupSettings{Mode: Shared})
	c := g.consumer()
	var builder wire.BatchBuilder
	builder.Reset(true)
	builder.Append(1, 0, nil, []byte("value"), nil, 0)
	batch, index := builder.Finish(wire.ProducerIdentity{ID: wire.NoProducerID}, 0, wire.CodecNone, nil)
	wire.PatchBatch(batch, 10, fakeTerm)
	body := wire.AppendBodyBatch(nil, index, batch)
	body[len(body)-2] ^= 1
	g.send(wire.OpGroupDeliver, &wire.GroupDeliver{Kind: wire.DeliverBatches, Grants: []wire.Grant{{Offset: 10, Count: 1, Epoch: fakeEpoch}}, Bytes: body})
	require.Equal(t, "damaged", g.said(wire.OutcomeReleased, 10, fakeEpoch).Text)
	g.deliver(11, fakeEpoch, "")
	require.Equal(t, uint64(11), next(t, c).Offset)
}

// Rules 16, 24: a record that arrived damaged holds up what lies behind it in its scope, and
// is claimed, until it is confirmed that it goes back.
func TestRule24_NothingOvertakesARecordThatArrivedDamaged(t *testing.T) {
	g := startGroup(t, wire.GroupSettings{Mode: Serial})
	c := g.consumer(Mode(Serial))
	var builder wire.BatchBuilder
	builder.Reset(true)
	builder.Append(1, 0, []byte("a"), []byte("value"), nil, xxhash.Sum64String("a"))
	batch, index := builder.Finish(wire.ProducerIdentity{ID: wire.NoProducerID}, 0, wire.CodecNone, nil)
	wire.PatchBatch(batch, 10, fakeTerm)
	body := wire.AppendBodyBatch(nil, index, batch)
	body[len(body)-2] ^= 1
	g.send(wire.OpGroupDeliver, &wire.GroupDeliver{Kind: wire.DeliverBatches, Grants: []wire.Grant{{Offset: 10, Count: 1, Epoch: fakeEpoch}}, Bytes: body})
	o := g.said(wire.OutcomeReleased, 10, fakeEpoch)
	g.deliver(11, fakeEpoch, "a")
	g.deliver(12, fakeEpoch, "b")
	require.EqualValues(t, 12, next(t, c).Offset)
	g.b.dropConns()
	<-g.links
	g.mu.Lock()
	claims := g.attached[1].Claims
	g.mu.Unlock()
	require.Equal(t, []wire.Outcome{{Offset: 10, Count: 3, Epoch: fakeEpoch}}, claims, "all are held; why one goes back is said behind that")
	require.Equal(t, "damaged", g.said(wire.OutcomeReleased, 10, fakeEpoch).Text)
	g.send(wire.OpGroupLost, &wire.GroupLost{Lost: []wire.Lost{{Offset: 11, Count: 1, Epoch: fakeEpoch, Reason: wire.ReasonReturned}}})
	g.answer(o, wire.CodeOK)
	g.deliver(10, fakeEpoch+1, "a", "a")
	require.EqualValues(t, 10, next(t, c).Offset)
	none(t, c)
}
