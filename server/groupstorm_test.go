package server

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/cluster"
	"github.com/lockstepmq/lockstep/partition"
	"github.com/lockstepmq/lockstep/wire"
)

// What the consumers of one connection say waits up to a limit, however many they are; then
// the connection is not read until half of it is taken. Others go on.
func TestWhatOneConnectionSaysToGroupsIsBounded(t *testing.T) {
	const limit = 64 << 10
	n := startNode(t, Limits{GroupInboxBytes: limit})
	n.backend.create(wire.Queue, "jobs", 1)
	r := n.backend.replica("jobs", 0)
	c := dialOpen(t, n.address)
	h := c.open("jobs", 0)
	var links []uint32
	for id := range byte(20) {
		c.send(wire.OpGroupAttach, 7, &wire.AttachRequest{Handle: h, Group: "workers", Session: [16]byte{id + 1}})
		in := r.input(t, partition.InputAttach)
		in.Sender.Taken(in.Size())
		in.Consumer.Attached(&wire.AttachResponse{}, nil)
		var m wire.AttachResponse
		c.ok(c.answer(7), &m)
		links = append(links, m.Link)
	}
	var said []byte
	const frames = 2000
	for i := range frames {
		said = append(said, frameOf(wire.OpGroupHeartbeat, links[i%len(links)], &wire.GroupHeartbeat{Number: 1})...)
	}
	c.write(said)
	c.send(wire.OpPing, 99, &wire.PingRequest{})
	eventually(t, "that it is not read on", func() bool { return n.engine.counters.paused.Load() == 1 })
	one := (&partition.Input{}).Size()
	r.set(func() { require.Len(t, r.inputs, limit/one) })

	other := dialOpen(t, n.address)
	require.NotZero(t, other.open("jobs", 0), "another connection has its own share")

	for total := 0; total < frames; {
		var inputs []partition.Input
		eventually(t, "that it is read on", func() bool {
			r.set(func() { inputs, r.inputs = r.inputs, nil })
			return len(inputs) > 0
		})
		require.LessOrEqual(t, len(inputs), limit/one)
		total += len(inputs)
		for i := range inputs {
			require.Equal(t, partition.InputHeartbeat, inputs[i].Kind)
			inputs[i].Sender.Taken(inputs[i].Size())
		}
	}
	require.Equal(t, wire.CodeOK, c.answer(99).code())
}

// Consumers that do what none should cost nobody else anything: after each of them, one of
// another group gets every record once, in order, and settles it.
func TestConsumersThatMisbehaveCostOthersNothing(t *testing.T) {
	s := startMember(t, t.TempDir(), 1)
	address := s.Addr()
	createGroup(t, address, wire.GroupSettings{Mode: wire.ModeSerial, SessionMs: 1000, AckWaitMs: 300, RevokeMs: 100, BackoffMs: 1})
	group := func(name string, settings wire.GroupSettings) wire.ErrorCode {
		c := dialOpen(t, address)
		intent, err := json.Marshal(wire.GroupIntent{Settings: settings, Exists: true})
		require.NoError(t, err)
		c.send(wire.OpGroupAdmin, 3, &wire.GroupAdminRequest{Op: wire.GroupCreate, Destination: "jobs", Group: name, JSON: intent})
		return c.answer(3).code()
	}
	require.Equal(t, wire.CodeOK, group("control", wire.GroupSettings{Mode: wire.ModeShared}))
	control := &consumer{t: t, c: dialOpen(t, address), id: 250}
	control.handle = control.c.open("jobs", 0)
	control.c.send(wire.OpGroupAttach, 7, &wire.AttachRequest{Handle: control.handle, Group: "control", Session: [16]byte{250}, Attempt: 1, Capacity: 1000, Refill: 500})
	var attached wire.AttachResponse
	control.c.ok(control.c.answer(7), &attached)
	control.link = attached.Link
	control.keepAlive()
	var end wire.Offset
	works := func(t *testing.T, keys ...string) {
		t.Helper()
		produceKeyed(t, address, keys...)
		for want := end + wire.Offset(len(keys)); end < want; {
			for _, g := range control.next(1) {
				require.Equal(t, end, g.Offset)
				require.Equal(t, wire.CodeOK, control.say(ack(g))[0].Code)
				end += wire.Offset(g.Count)
			}
		}
	}
	says := func(k *consumer, o wire.Outcome) wire.ErrorCode { return k.say(o)[0].Code }
	leave := func(list ...*consumer) {
		for _, k := range list {
			k.c.send(wire.OpGroupLeave, k.link, &wire.GroupLeave{})
		}
	}

	t.Run("acks of what is not theirs", func(t *testing.T) {
		holder := attachTo(t, address, 1)
		holder.keepAlive()
		works(t, "a")
		g := holder.next(1)[0]
		other := attachTo(t, address, 2)
		other.keepAlive()
		for _, c := range []struct {
			name string
			who  *consumer
			what wire.Outcome
			want wire.ErrorCode
		}{
			{"of another", other, ack(g), wire.CodeStaleEpoch},
			{"not written yet", holder, wire.Outcome{Offset: 1 << 40, Count: 1, Epoch: g.Epoch, Kind: wire.OutcomeAck}, wire.CodeOutOfRange},
			{"under another epoch", holder, wire.Outcome{Offset: g.Offset, Count: 1, Epoch: g.Epoch + 1<<30, Kind: wire.OutcomeAck}, wire.CodeNotOwner},
			{"its own", holder, ack(g), wire.CodeOK},
			{"again", holder, ack(g), wire.CodeOK},
		} {
			require.Equal(t, c.want, says(c.who, c.what), c.name)
		}
		leave(holder, other)
		works(t, "c")
		next := attachTo(t, address, 9)
		require.Equal(t, end-1, next.next(1)[0].Offset, "the acknowledged one does not come again")
		require.Equal(t, wire.CodeStaleEpoch, says(next, wire.Outcome{Offset: end - 2, Count: 1, Epoch: 1, Kind: wire.OutcomeNack}), "nor is it given back by others")
		leave(next)
	})
	t.Run("a storm of acks that nobody reads the answers of", func(t *testing.T) {
		k := attachTo(t, address, 3)
		outcomes := make([]wire.Outcome, 20_000)
		for i := range outcomes {
			outcomes[i] = wire.Outcome{Offset: wire.Offset(1000 + 2*i), Count: 1, Epoch: 1, Kind: wire.OutcomeAck}
		}
		frame := frameOf(wire.OpGroupOutcome, k.link, &wire.GroupOutcomes{Outcomes: outcomes})
		written := make(chan struct{})
		go func() {
			defer close(written)
			for {
				if _, err := k.c.conn.Write(frame); err != nil {
					return
				}
			}
		}()
		eventually(t, "that it is not read on", func() bool { return s.engine.counters.paused.Load() > 0 })
		works(t, "d", "e", "f")
		require.Less(t, s.engine.counters.outbound.Load(), int64(16<<20))
		require.NoError(t, k.c.conn.Close())
		<-written
		works(t, "d")
	})
	t.Run("credit taken and nothing said", func(t *testing.T) {
		k := attachTo(t, address, 4)
		k.keepAlive()
		silent := k.next(1)[0]
		works(t, "g")
		next := attachTo(t, address, 5)
		next.keepAlive()
		var again wire.Grant // it lives: it is asked to give back what it has, and then that is taken
		for again.Offset != silent.Offset || again.Count == 0 {
			f := next.read()
			var m wire.GroupDeliver
			if f.Opcode != wire.OpGroupDeliver || m.Parse(f.body) != nil {
				continue
			}
			for _, g := range m.Grants {
				if g.Offset == silent.Offset {
					again = g
				}
			}
		}
		require.NotZero(t, again.Flags&wire.GrantRedelivered)
		again.Count = 1
		require.Equal(t, wire.CodeOK, says(next, ack(again)))
		works(t, "h")
		leave(k, next)
	})
	t.Run("another mode than the group's", func(t *testing.T) {
		require.Equal(t, wire.CodeGroupMismatch, group("workers", wire.GroupSettings{Mode: wire.ModeShared}))
		require.Equal(t, wire.CodeGroupMismatch, group("workers", wire.GroupSettings{Mode: wire.ModeSerial, Scope: wire.ScopePublisher}))
		works(t, "i")
	})
	t.Run("names", func(t *testing.T) {
		c := dialOpen(t, address)
		h := c.open("jobs", 0)
		for _, name := range []string{"", ".", "..", "a//b", "/a", "a\x00b", "a\nb", "\xff\xfe", strings.Repeat("n", wire.MaxNameBytes+1)} {
			require.Equal(t, wire.CodeInvalidName, group(name, wire.GroupSettings{Mode: wire.ModeShared}), "%q", name)
			for op, m := range map[wire.Opcode]wire.Message{
				wire.OpGroupAttach: &wire.AttachRequest{Handle: h, Group: name, Session: [16]byte{1}},
				wire.OpGroupBind:   &wire.BindRequest{Handle: h, Group: name, Session: [16]byte{1}},
				wire.OpGroupOrder:  &wire.GroupOrderRequest{Handle: h, Group: name, Op: wire.OrderDescribe},
			} {
				c.send(op, 8, m)
				require.Equal(t, wire.CodeInvalidName, c.answer(8).code(), "%v %q", op, name)
			}
		}
		for _, name := range []string{"ä/ö", "*", "{}", "a b", "$(true)", strings.Repeat("n", wire.MaxNameBytes)} {
			require.Equal(t, wire.CodeOK, group(name, wire.GroupSettings{Mode: wire.ModeShared}), "%q", name)
			c.send(wire.OpGroupAdmin, 9, &wire.GroupAdminRequest{Op: wire.GroupRemove, Destination: "jobs", Group: name})
			require.Equal(t, wire.CodeOK, c.answer(9).code(), "%q", name)
		}
		works(t, "j")
	})
	t.Run("a key of 64 KiB", func(t *testing.T) {
		key := strings.Repeat("k", 64<<10)
		k := attachTo(t, address, 6)
		k.keepAlive()
		works(t, key)
		var g wire.Grant
		for g.Offset != end-1 {
			g = k.next(1)[0]
		}
		require.Equal(t, wire.CodeOK, says(k, ack(g)))
		name := []byte(key)
		park, err := json.Marshal(wire.ScopeRequest{Key: &name, Reason: "too long"})
		require.NoError(t, err)
		c := dialOpen(t, address)
		c.send(wire.OpGroupOrder, 8, &wire.GroupOrderRequest{Handle: c.open("jobs", 0), Group: "workers", Op: wire.OrderPark, JSON: park})
		require.Equal(t, wire.CodeOK, c.answer(8).code())
		leave(k)
		works(t, "k")
	})
}

// apart is three nodes whose clocks stand still, five minutes apart.
func apart(t *testing.T) (all []*Server, clocks []*setClock) {
	t.Helper()
	for i, off := range []time.Duration{0, 5 * time.Minute, -5 * time.Minute} {
		clock := &setClock{}
		clock.ms.Store(time.Now().Add(off).UnixMilli())
		clocks = append(clocks, clock)
		var join []string
		for _, other := range all {
			join = append(join, other.Addr())
		}
		s, err := Start(t.Context(), Config{
			DataDir: t.TempDir(), Listen: "127.0.0.1:0", PeerListen: "127.0.0.1:0", HTTP: "off", MinFreeBytes: -1, NodeID: uint32(i + 1), Join: join,
			ScrubInterval: -1, Logger: testLogger(uint32(i + 1)), clock: clock.now,
		})
		require.NoError(t, err)
		t.Cleanup(func() { closeMember(t, s) })
		all = append(all, s)
	}
	for _, s := range all {
		eventually(t, "every node sees the others", func() bool { v := s.broker.View(); return len(v.Nodes) == 3 && v.Level == cluster.MaxLevel })
	}
	return all, clocks
}

// R-LSN-3: the clocks of three nodes are five minutes apart, and jump. Leaders change, and
// the one active consumer stays the only one: nobody else is given anything, and nothing
// that it holds is taken from it.
func TestR_LSN_3_ClocksThatAreApartMakeNoSecondPrimary(t *testing.T) {
	all, clocks := apart(t)
	createGroup(t, all[0].Addr(), wire.GroupSettings{Mode: wire.ModeStream, SessionMs: 30_000, AckWaitMs: 60_000})
	eventually(t, "a leader", func() bool { return leaderOf(all) != nil })
	primary := &consumer{t: t, c: dialOpen(t, all[0].Addr()), id: 1}
	primary.handle = primary.c.open("jobs", 0)
	primary.tryAttach()
	standby := &consumer{t: t, c: dialOpen(t, all[1].Addr()), id: 2}
	standby.handle = standby.c.open("jobs", 0)
	standby.tryAttach()
	for round := range 3 {
		produceKeyed(t, all[0].Addr(), "a")
		g := primary.next(1)[0]
		require.EqualValues(t, round, g.Offset)
		require.EqualValues(t, 1, g.Deliveries)
		for i, jump := range []time.Duration{5, -5, 10} { // while it is being worked on
			clocks[(i+round)%3].advance(jump * time.Minute)
		}
		old := leaderOf(all)
		require.NotNil(t, old)
		d, _ := old.broker.View().Destination("jobs")
		require.NoError(t, old.broker.transferHere(old.broker.local(d.ID, 0).replicaID, 0))
		eventually(t, "another leader", func() bool { s := leaderOf(all); return s != nil && s != old })
		for _, k := range []*consumer{primary, standby} { // what the standby hears is that its link has moved
			require.Equal(t, wire.OpLinkClosed, k.read().Opcode)
		}
		standby.tryAttach()
		require.Empty(t, primary.tryAttach(outcome(g, wire.OutcomeHeld)).Refused)
		require.Equal(t, wire.CodeOK, primary.say(ack(g))[0].Code)
	}
}

// R-LSN-3: the clocks of three nodes and of two producers are five minutes apart. The times of
// a group are distances on one machine: what rests goes on resting wherever it is led from, what
// was to come soon comes, and what is held, or was given more time, stays its consumer's. What
// is said about a rest goes by the clock of who says it, which says what time it is there. Who
// seeks a time gets all that was appended since, by whatever clock.
func TestR_LSN_3_ClocksThatAreApartChangeNoTimesOfAGroup(t *testing.T) {
	const skew = 5 * time.Minute
	all, clocks := apart(t)
	createGroup(t, all[0].Addr(), wire.GroupSettings{Mode: wire.ModeShared, SessionMs: 30_000, AckWaitMs: 60_000, BackoffMs: 1})
	eventually(t, "a leader", func() bool { return leaderOf(all) != nil })
	c := dialOpen(t, all[0].Addr())
	handle := c.open("jobs", 0)
	var appended []int64 // when, by the leader of that time
	produce := func(off time.Duration) {
		t.Helper()
		var b wire.BatchBuilder
		b.Reset(true)
		require.True(t, b.Append(time.Now().Add(off).UnixMilli(), 0, nil, []byte("value"), nil, 0))
		batch, index := b.Finish(wire.ProducerIdentity{ID: wire.NoProducerID}, 0, wire.CodecNone, nil)
		c.send(wire.OpProduce, 5, &wire.ProduceRequest{Handle: handle, Acks: wire.AcksQuorum, Batch: batch, Index: index})
		var m wire.Receipt
		c.ok(c.answer(5), &m)
		appended = append(appended, m.AppendTimeMs)
	}
	k := &consumer{t: t, c: dialOpen(t, all[0].Addr()), id: 1}
	k.handle = k.c.open("jobs", 0)
	k.tryAttach()
	take := func() wire.Grant {
		t.Helper()
		g := k.next(1)
		require.Len(t, g, 1)
		require.EqualValues(t, 1, g[0].Count)
		return g[0]
	}
	var given []wire.Grant
	for i := range 4 {
		produce(skew * time.Duration(1-i%2*2))
		given = append(given, take())
	}
	const held, rests, extended, soon = 0, 1, 2, 3
	rest, more := outcome(given[rests], wire.OutcomeNack), outcome(given[extended], wire.OutcomeExtend)
	rest.DelayMs, more.DelayMs = uint32((skew / 2).Milliseconds()), uint32((2 * skew).Milliseconds())
	require.Equal(t, wire.CodeOK, k.say(rest)[0].Code)
	k.c.send(wire.OpGroupOutcome, k.link, &wire.GroupOutcomes{Outcomes: []wire.Outcome{more}}) // a yes has no answer
	require.Equal(t, wire.CodeOK, k.say(outcome(given[soon], wire.OutcomeNack))[0].Code)
	again := take()
	require.EqualValues(t, soon, again.Offset)
	given[soon] = again

	offset := uint64(rests)
	why, err := json.Marshal(wire.ExplainRequest{Offset: &offset})
	require.NoError(t, err)
	for round := range 2 {
		old := leaderOf(all)
		require.NotNil(t, old)
		d, _ := old.broker.View().Destination("jobs")
		require.NoError(t, old.broker.transferHere(old.broker.local(d.ID, 0).replicaID, 0))
		eventually(t, "another leader", func() bool { s := leaderOf(all); return s != nil && s != old })
		require.Equal(t, wire.OpLinkClosed, k.read().Opcode)
		require.Empty(t, k.tryAttach(outcome(given[held], wire.OutcomeHeld), outcome(given[extended], wire.OutcomeHeld), outcome(given[soon], wire.OutcomeHeld)).Refused)
		leader := slices.Index(all, leaderOf(all))
		clocks[leader].ms.Store(clocks[slices.Index(all, old)].ms.Load()) // five minutes behind it, and then before it
		clocks[leader].advance([]time.Duration{-skew, skew}[round])
		produce(skew)
		g := take()
		require.EqualValues(t, len(appended)-1, g.Offset, "the one that rests goes on resting")
		require.Equal(t, wire.CodeOK, k.say(ack(g))[0].Code)

		there := dialOpen(t, all[leader].Addr())
		there.send(wire.OpGroupOrder, 8, &wire.GroupOrderRequest{Handle: there.open("jobs", 0), Group: "workers", Op: wire.OrderExplain, JSON: why})
		var m wire.GroupJSON
		there.ok(there.answer(8), &m)
		var answer wire.ExplainResponse
		require.NoError(t, json.Unmarshal(m.JSON, &answer))
		require.Equal(t, clocks[leader].now().UnixMilli(), answer.NowMs)
		i := slices.IndexFunc(answer.Reasons, func(r wire.Reason) bool { return r.Code == "backoff" })
		require.GreaterOrEqual(t, i, 0, "%+v", answer)
		left := time.Duration(answer.Reasons[i].UntilMs-answer.NowMs) * time.Millisecond
		require.Greater(t, left, time.Duration(0))
		require.LessOrEqual(t, left, skew/2)
	}
	n := len(appended)
	require.Less(t, appended[n-2], appended[n-3], "append times go back where a leader's clock is behind that of the one before")
	require.Less(t, appended[n-2], appended[n-1])
	for i, ms := range appended {
		c.send(wire.OpListOffsets, 6, &wire.ListOffsetsRequest{Handle: handle, Kind: wire.OffsetAtTime, TimeMs: ms})
		var m wire.ListOffsetsResponse
		c.ok(c.answer(6), &m)
		require.LessOrEqual(t, m.Offset, wire.Offset(i), "all that was appended since")
	}
	for _, i := range []int{held, extended, soon} {
		require.Equal(t, wire.CodeOK, k.say(ack(given[i]))[0].Code, "record %d is its consumer's", i)
	}
}
