package server

import (
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/cespare/xxhash/v2"
	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/cluster"
	"github.com/lockstepmq/lockstep/wire"
)

// consumer is a session of a group on a raw connection.
type consumer struct {
	t      testing.TB
	c      *rawClient
	handle uint32
	link   uint32
	beat   uint64
	id     byte
}

// read gives the next frame, and leaves out what heartbeats bring.
func (k *consumer) read() rawFrame {
	k.t.Helper()
	for {
		if f := k.c.read(); f.Opcode != wire.OpGroupHeartbeat && f.Opcode != wire.OpEvent {
			return f
		}
	}
}

// keepAlive sends heartbeats until the test ends.
func (k *consumer) keepAlive() {
	beat := frameOf(wire.OpGroupHeartbeat, k.link, &wire.GroupHeartbeat{Number: 1})
	done := make(chan struct{})
	k.t.Cleanup(func() { close(done) })
	go func() {
		for {
			select {
			case <-done:
				return
			case <-time.After(100 * time.Millisecond):
				_, _ = k.c.conn.Write(beat)
			}
		}
	}()
}

// createGroup makes a queue and a group of it.
func createGroup(t testing.TB, address string, settings wire.GroupSettings) {
	t.Helper()
	c := dialOpen(t, address)
	c.send(wire.OpCreate, 2, &wire.CreateRequest{Name: "jobs", Kind: wire.Queue, Settings: wire.Settings{
		Partitions: 1, Sync: wire.SyncOS, RetentionTimeMs: wire.Unlimited, RetentionBytes: wire.Unlimited,
	}})
	require.Equal(t, wire.CodeOK, c.answer(2).code())
	intent, err := json.Marshal(wire.GroupIntent{Settings: settings, Exists: true})
	require.NoError(t, err)
	c.send(wire.OpGroupAdmin, 3, &wire.GroupAdminRequest{Op: wire.GroupCreate, Destination: "jobs", Group: "workers", JSON: intent})
	var m wire.GroupJSON
	c.ok(c.answer(3), &m)
}

// produceKeyed appends records, one for each key, as one batch.
func produceKeyed(t testing.TB, address string, keys ...string) {
	t.Helper()
	c := dialOpen(t, address)
	var b wire.BatchBuilder
	b.Reset(true)
	for i, k := range keys {
		require.True(t, b.Append(1_000, 0, []byte(k), fmt.Appendf(nil, "value %d", i), nil, xxhash.Sum64String(k)))
	}
	batch, index := b.Finish(wire.ProducerIdentity{ID: wire.NoProducerID}, 0, wire.CodecNone, nil)
	c.send(wire.OpProduce, 5, &wire.ProduceRequest{Handle: c.open("jobs", 0), Acks: wire.AcksQuorum, Batch: batch, Index: index})
	require.Equal(t, wire.CodeOK, c.answer(5).code())
}

func attachTo(t testing.TB, address string, id byte, claims ...wire.Outcome) *consumer {
	t.Helper()
	k := &consumer{t: t, c: dialOpen(t, address), id: id}
	k.handle = k.c.open("jobs", 0)
	m := k.attach(claims...)
	require.Empty(t, m.Refused)
	return k
}

func (k *consumer) attach(claims ...wire.Outcome) wire.AttachResponse {
	k.t.Helper()
	k.beat++
	k.c.send(wire.OpGroupAttach, 7, &wire.AttachRequest{
		Handle: k.handle, Group: "workers", Session: [16]byte{k.id}, Attempt: k.beat, Capacity: 100, Refill: 50, Claims: claims,
	})
	var m wire.AttachResponse
	k.c.ok(k.c.answer(7), &m)
	k.link = m.Link
	return m
}

// next reads deliveries until it has so many records.
func (k *consumer) next(n int) (grants []wire.Grant) {
	k.t.Helper()
	for have := 0; have < n; {
		f := k.read()
		require.Equal(k.t, wire.OpGroupDeliver, f.Opcode, "%v", f.failure())
		var m wire.GroupDeliver
		require.NoError(k.t, m.Parse(f.body))
		held := map[wire.Offset]bool{}
		for body := m.Bytes; len(body) > 0; {
			b, rest, err := wire.NextBodyBatch(body)
			require.NoError(k.t, err)
			info, err := wire.VerifyBatch(b.Batch)
			require.NoError(k.t, err)
			for o := info.BaseOffset; o < info.NextOffset(); o++ {
				held[o] = true
			}
			body = rest
		}
		for _, g := range m.Grants {
			for o := g.Offset; o < g.Offset+wire.Offset(g.Count); o++ {
				require.True(k.t, held[o], "record %d is granted, and not there", o)
			}
			have += int(g.Count)
		}
		grants = append(grants, m.Grants...)
	}
	return grants
}

// say sends outcomes and reads their answers.
func (k *consumer) say(outcomes ...wire.Outcome) (answers []wire.OutcomeAnswer) {
	k.t.Helper()
	k.c.send(wire.OpGroupOutcome, k.link, &wire.GroupOutcomes{Outcomes: outcomes})
	want, have := uint32(0), uint32(0)
	for _, o := range outcomes {
		want += o.Count
	}
	var delivered []rawFrame
	defer func() { k.c.hold = append(delivered, k.c.hold...) }()
	for have < want {
		f := k.read()
		if f.Opcode == wire.OpGroupDeliver { // the next records may be faster
			delivered = append(delivered, f)
			continue
		}
		require.Equal(k.t, wire.OpGroupAnswer, f.Opcode)
		var m wire.GroupAnswers
		require.NoError(k.t, m.Parse(f.body))
		for _, a := range m.Answers {
			have += a.Count
		}
		answers = append(answers, m.Answers...)
	}
	return answers
}

func outcome(g wire.Grant, kind wire.OutcomeKind) wire.Outcome {
	return wire.Outcome{Offset: g.Offset, Count: g.Count, Epoch: g.Epoch, Kind: kind}
}

func ack(g wire.Grant) wire.Outcome { return outcome(g, wire.OutcomeAck) }

func TestASharedGroupHandsOutRecordsAndRemembersWhatIsDone(t *testing.T) {
	dir := t.TempDir()
	s := startMember(t, dir, 1)
	createGroup(t, s.Addr(), wire.GroupSettings{Mode: wire.ModeShared})
	produceKeyed(t, s.Addr(), "a", "b", "c")
	a := attachTo(t, s.Addr(), 1)
	got := a.next(3)
	require.EqualValues(t, 0, got[0].Offset)
	require.EqualValues(t, 3, got[0].Count)
	require.EqualValues(t, 1, got[0].Deliveries)
	two := got[0]
	two.Count = 2
	answers := a.say(ack(two))
	require.Equal(t, []wire.OutcomeAnswer{{Offset: 0, Count: 2, Epoch: two.Epoch}}, answers)

	a.c.send(wire.OpGroupHeartbeat, a.link, &wire.GroupHeartbeat{Number: 77})
	var beat wire.GroupHeartbeat
	f := a.c.read()
	require.Equal(t, wire.OpGroupHeartbeat, f.Opcode)
	require.NoError(t, beat.Parse(f.body))
	require.EqualValues(t, 77, beat.Number)

	produceKeyed(t, s.Addr(), "d") // while it is attached
	more := a.next(1)
	require.EqualValues(t, 3, more[0].Offset)
	a.say(ack(more[0]))

	// A broker that starts again knows what is done, and the session what it holds.
	closeMember(t, s)
	s = startMember(t, dir, 1)
	third := wire.Outcome{Offset: 2, Count: 1, Epoch: two.Epoch}
	b := attachTo(t, s.Addr(), 1, third)
	third.Kind = wire.OutcomeAck
	require.Equal(t, []wire.OutcomeAnswer{{Offset: 2, Count: 1, Epoch: two.Epoch}}, b.say(third))
	b.c.send(wire.OpGroupLeave, b.link, &wire.GroupLeave{})
	f = b.c.read()
	require.Equal(t, wire.OpLinkClosed, f.Opcode)
	var closed wire.LinkClosed
	require.NoError(t, closed.Parse(f.body))
	require.NoError(t, closed.Err())
	b.c.send(wire.OpListOffsets, 9, &wire.ListOffsetsRequest{Handle: b.handle, Kind: wire.OffsetEarliest})
	var earliest wire.ListOffsetsResponse
	b.c.ok(b.c.answer(9), &earliest)
	require.EqualValues(t, 4, earliest.Offset, "a queue keeps what is not done")
}

func TestASerialGroupGivesAKeyToOneAtATime(t *testing.T) {
	s := startMember(t, t.TempDir(), 1)
	createGroup(t, s.Addr(), wire.GroupSettings{Mode: wire.ModeSerial, BackoffMs: 1})
	produceKeyed(t, s.Addr(), "a", "a", "b", "a")
	k := attachTo(t, s.Addr(), 1)
	first := k.next(2) // the heads of both keys
	require.EqualValues(t, 0, first[0].Offset)
	require.EqualValues(t, 2, first[1].Offset)
	k.say(ack(first[0]))
	second := k.next(1)
	require.EqualValues(t, 1, second[0].Offset)
	k.say(outcome(second[0], wire.OutcomeNack))
	again := k.next(1)
	require.EqualValues(t, 1, again[0].Offset, "before the next of its key")
	require.EqualValues(t, 2, again[0].Deliveries)
	require.EqualValues(t, 1, again[0].Attempts)
	require.Equal(t, wire.CodeStaleEpoch, k.say(ack(second[0]))[0].Code, "the lease has ended")
	require.Equal(t, wire.CodeOK, k.say(ack(again[0]))[0].Code)
	require.EqualValues(t, 3, k.next(1)[0].Offset)
}

func TestWhatADeadConsumerHeldGoesToAnother(t *testing.T) {
	s := startMember(t, t.TempDir(), 1)
	createGroup(t, s.Addr(), wire.GroupSettings{Mode: wire.ModeShared, SessionMs: 1000, BackoffMs: 1})
	produceKeyed(t, s.Addr(), "a", "b")
	a := attachTo(t, s.Addr(), 1)
	a.next(2)
	require.NoError(t, a.c.conn.Close())
	b := attachTo(t, s.Addr(), 2)
	b.keepAlive()
	got := b.next(2)
	require.EqualValues(t, 0, got[0].Offset)
	require.NotZero(t, got[0].Flags&wire.GrantRedelivered)
	for _, g := range got {
		require.Equal(t, wire.CodeOK, b.say(ack(g))[0].Code)
	}
}

// tryAttach attaches until the partition has a leader that lists the session.
func (k *consumer) tryAttach(claims ...wire.Outcome) (m wire.AttachResponse) {
	k.t.Helper()
	eventually(k.t, "a leader that takes the session", func() bool {
		k.beat++
		k.c.send(wire.OpGroupAttach, 7, &wire.AttachRequest{
			Handle: k.handle, Group: "workers", Session: [16]byte{k.id}, Attempt: k.beat, Capacity: 100, Refill: 50, Claims: claims,
		})
		f := k.c.answer(7)
		if f.Flags&wire.FlagError != 0 {
			require.Contains(k.t, []wire.ErrorCode{wire.CodeNotLeader, wire.CodeRetry, wire.CodeUnavailable}, f.code(), "%v", f.failure())
			return false
		}
		k.c.ok(f, &m)
		return true
	})
	k.link = m.Link
	return m
}

// startThree runs three brokers that know each other.
func startThree(t *testing.T) []*Server {
	t.Helper()
	a := startMember(t, t.TempDir(), 1)
	b := startMember(t, t.TempDir(), 2, a.Addr())
	c := startMember(t, t.TempDir(), 3, a.Addr(), b.Addr())
	all := []*Server{a, b, c}
	for _, s := range all {
		eventually(t, "every node sees the others", func() bool {
			v := s.broker.View()
			for _, n := range v.Nodes {
				if !s.broker.reachable(n.ID) {
					return false
				}
			}
			return len(v.Nodes) == 3 && v.Level == cluster.MaxLevel
		})
	}
	return all
}

// leaderOf is the broker that leads the queue, once that has three replicas.
func leaderOf(all []*Server) *Server {
	for _, s := range all {
		if d, ok := s.broker.View().Destination("jobs"); ok && len(d.Partitions[0].Replicas) == 3 {
			if r := s.broker.local(d.ID, 0); r != nil && r.Leading() {
				return s
			}
		}
	}
	return nil
}

// A leadership that moves by plan takes the leases with it: nobody waits for a consumer
// that does not come back.
func TestLeasesMoveWithTheLeader(t *testing.T) {
	all := startThree(t)
	createGroup(t, all[0].Addr(), wire.GroupSettings{Mode: wire.ModeSerial, SessionMs: 60_000})
	eventually(t, "a leader", func() bool { return leaderOf(all) != nil })
	old := leaderOf(all)
	produceKeyed(t, old.Addr(), "a", "b")
	silent := attachTo(t, old.Addr(), 1)
	held := silent.next(2)
	require.NoError(t, silent.c.conn.Close())
	k := &consumer{t: t, c: dialOpen(t, all[0].Addr()), id: 2}
	k.handle = k.c.open("jobs", 0)
	k.tryAttach()

	d, _ := old.broker.View().Destination("jobs")
	r := old.broker.local(d.ID, 0)
	require.NoError(t, old.broker.transferHere(r.replicaID, 0))
	eventually(t, "another leader", func() bool { s := leaderOf(all); return s != nil && s != old })
	f := k.read()
	require.Equal(t, wire.OpLinkClosed, f.Opcode)
	k.tryAttach()
	produceKeyed(t, old.Addr(), "c", "a")
	got := k.next(1)
	require.EqualValues(t, 2, got[0].Offset, "a key that nobody holds, long before the silent one is given up")
	require.Equal(t, wire.CodeOK, k.say(ack(got[0]))[0].Code)

	// The silent one comes back after all, and has not lost anything.
	back := &consumer{t: t, c: dialOpen(t, all[1].Addr()), id: 1, beat: 100}
	back.handle = back.c.open("jobs", 0)
	var claims []wire.Outcome
	for _, g := range held {
		claims = append(claims, outcome(g, wire.OutcomeHeld))
	}
	require.Empty(t, back.tryAttach(claims...).Refused)
	for _, g := range held {
		require.Equal(t, wire.CodeOK, back.say(ack(g))[0].Code)
	}
}

// The leader goes; a consumer that comes back within its grace, by way of a node that does
// not lead, keeps what it holds, and nothing that it began is delivered again (G4).
func TestLeasesOutliveTheLeader(t *testing.T) {
	all := startThree(t)
	createGroup(t, all[0].Addr(), wire.GroupSettings{Mode: wire.ModeSerial, SessionMs: 30_000})
	leader := func() *Server { return leaderOf(all) }
	eventually(t, "a leader", func() bool { return leader() != nil })
	gone := leader()
	var left []*Server
	for _, s := range all {
		if s != gone {
			left = append(left, s)
		}
	}
	produceKeyed(t, left[0].Addr(), "a", "a", "b")
	k := &consumer{t: t, c: dialOpen(t, left[0].Addr()), id: 1}
	k.handle = k.c.open("jobs", 0)
	require.Empty(t, k.tryAttach().Refused)
	heads := k.next(2)
	require.EqualValues(t, 0, heads[0].Offset)
	require.EqualValues(t, 2, heads[1].Offset)
	require.Equal(t, wire.CodeOK, k.say(ack(heads[1]))[0].Code)
	// One that does not come back, and is not waited for: the move is a planned one.
	idle := &consumer{t: t, c: dialOpen(t, left[1].Addr()), id: 2}
	idle.handle = idle.c.open("jobs", 0)
	require.Empty(t, idle.tryAttach().Refused)

	all = left
	closeMember(t, gone)
	closed := k.read()
	require.Equal(t, wire.OpLinkClosed, closed.Opcode)
	eventually(t, "another leader", func() bool { return leader() != nil })
	require.Empty(t, k.tryAttach(outcome(heads[0], wire.OutcomeHeld)).Refused)
	require.Equal(t, wire.CodeOK, k.say(ack(heads[0]))[0].Code, "under the epoch that the leader before gave")
	next := k.next(1)
	require.EqualValues(t, 1, next[0].Offset)
	require.EqualValues(t, 1, next[0].Deliveries)
	require.Equal(t, wire.CodeOK, k.say(ack(next[0]))[0].Code)
}
