package server

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cespare/xxhash/v2"
	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/zstd"
	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/partition"
	"github.com/lockstepmq/lockstep/partition/group"
	"github.com/lockstepmq/lockstep/wire"
)

// letterRig is a broker with the queue jobs, its group workers and a consumer of it.
type letterRig struct {
	t testing.TB
	s *Server
	c *rawClient
	k *consumer
	n uint32 // request
}

// rejecting is a rig with records of the keys given, in which the consumer has rejected
// the first.
func rejecting(t *testing.T, to string, keys ...string) *letterRig {
	s := startMember(t, t.TempDir(), 1)
	createGroup(t, s.Addr(), wire.GroupSettings{Mode: wire.ModeSerial, BackoffMs: 1, DeadLetter: to})
	r := &letterRig{t: t, s: s, c: dialOpen(t, s.Addr()), n: 100}
	produceKeyed(t, s.Addr(), keys...)
	r.k = attachTo(t, s.Addr(), 1)
	r.k.keepAlive()
	o := outcome(r.k.next(1)[0], wire.OutcomeReject)
	o.Count = 1
	r.k.say(o)
	return r
}

func (r *letterRig) ask(op wire.Opcode, m wire.Message) rawFrame {
	r.n++
	r.c.send(op, r.n, m)
	return r.c.answer(r.n)
}

func (r *letterRig) create(name string, kind wire.DestinationKind, settings wire.Settings) {
	settings.Partitions, settings.Sync, settings.RetentionTimeMs, settings.RetentionBytes = 1, wire.SyncOS, wire.Unlimited, wire.Unlimited
	require.Equal(r.t, wire.CodeOK, r.ask(wire.OpCreate, &wire.CreateRequest{Name: name, Kind: kind, Settings: settings}).code())
}

// explains waits until explain says, of the group and of the record at offset 0, what.
func (r *letterRig) explains(what string) {
	r.t.Helper()
	zero := uint64(0)
	for _, q := range []wire.ExplainRequest{{}, {Offset: &zero}} {
		body, err := json.Marshal(q)
		require.NoError(r.t, err)
		var got wire.ExplainResponse
		eventually(r.t, "explain says "+what, func() bool {
			var m wire.GroupJSON
			r.c.ok(r.ask(wire.OpGroupOrder, &wire.GroupOrderRequest{Handle: r.c.open("jobs", 0), Op: wire.OrderExplain, Group: "workers", JSON: body}), &m)
			got = wire.ExplainResponse{}
			require.NoError(r.t, json.Unmarshal(m.JSON, &got))
			for _, reason := range got.Reasons {
				if reason.Code == "letter_not_accepted" && reason.Object == "dead" {
					return containsAll(reason.Text, what)
				}
			}
			return false
		})
	}
}

// goesOn requires that the key of the letter goes on: the next record of it arrives.
func (r *letterRig) goesOn() {
	r.t.Helper()
	g := r.k.next(1)[0]
	require.EqualValues(r.t, 1, g.Offset)
	require.Equal(r.t, wire.CodeOK, r.k.say(ack(g))[0].Code)
}

const firstLetter = "a=value 0 origin:jobs/0 offset:0 group:workers reason:rejected text: number:0 deliveries:1 attempts:1"

// Bad input of the dead letter queue: missing. The letter waits, its key goes on, explain
// says what to do, and when that is done the letter arrives.
func TestLettersWaitForADestinationThatIsMissing(t *testing.T) {
	r := rejecting(t, "dead", "a", "a")
	r.goesOn()
	r.explains(`there is no "dead": create it`)
	r.create("dead", wire.Queue, wire.Settings{})
	require.Equal(t, []string{firstLetter}, readLetters(t, r.s, 1))
}

// Full: the same.
func TestLettersWaitForADestinationThatIsFull(t *testing.T) {
	s := startMember(t, t.TempDir(), 1)
	createGroup(t, s.Addr(), wire.GroupSettings{Mode: wire.ModeSerial, BackoffMs: 1, DeadLetter: "dead"})
	r := &letterRig{t: t, s: s, c: dialOpen(t, s.Addr()), n: 100}
	r.create("dead", wire.Queue, wire.Settings{ThresholdRecords: 1})
	produceKeyed(t, s.Addr(), "a", "a", "b")
	r.k = attachTo(t, s.Addr(), 1)
	r.k.keepAlive()
	both := r.k.next(2) // of a and of b
	r.k.say(outcome(both[0], wire.OutcomeReject))
	require.Equal(t, []string{firstLetter}, readLetters(t, s, 1))
	r.k.say(outcome(both[1], wire.OutcomeReject))
	r.goesOn()
	two := uint64(2)
	body, err := json.Marshal(wire.ExplainRequest{Offset: &two})
	require.NoError(t, err)
	eventually(t, "explain says that it is full", func() bool {
		var m wire.GroupJSON
		r.c.ok(r.ask(wire.OpGroupOrder, &wire.GroupOrderRequest{Handle: r.c.open("jobs", 0), Op: wire.OrderExplain, Group: "workers", JSON: body}), &m)
		return containsAll(string(m.JSON), "letter_not_accepted", "is full: redrive or purge")
	})
	require.Equal(t, wire.CodeOK, r.ask(wire.OpAlter, &wire.AlterRequest{Name: "dead", Kind: wire.Queue, Mask: wire.MaskThresholdRecords}).code())
	require.Len(t, readLetters(t, s, 2), 2)
}

// Closed to new records: the same.
func TestLettersWaitForADestinationThatIsClosed(t *testing.T) {
	s := startMember(t, t.TempDir(), 1)
	createGroup(t, s.Addr(), wire.GroupSettings{Mode: wire.ModeSerial, BackoffMs: 1, DeadLetter: "dead"})
	r := &letterRig{t: t, s: s, c: dialOpen(t, s.Addr()), n: 100}
	r.create("dead", wire.Queue, wire.Settings{})
	shut := func(on bool) {
		require.Equal(t, wire.CodeOK, r.ask(wire.OpPartAdmin, &wire.PartitionAdminRequest{Destination: "dead", Action: wire.PartitionPlace, Placement: wire.Placement{Mask: wire.MaskSend, SendDisabled: on}}).code())
	}
	shut(true)
	produceKeyed(t, s.Addr(), "a", "a")
	r.k = attachTo(t, s.Addr(), 1)
	r.k.keepAlive()
	r.k.say(outcome(r.k.next(1)[0], wire.OutcomeReject))
	r.goesOn()
	r.explains("closed to new records: open it")
	shut(false)
	require.Equal(t, []string{firstLetter}, readLetters(t, s, 1))
}

// A topic takes dead letters as a queue does.
func TestATopicTakesDeadLetters(t *testing.T) {
	r := rejecting(t, "dead", "a", "a")
	r.create("dead", wire.Topic, wire.Settings{})
	r.goesOn()
	require.Equal(t, []string{firstLetter}, readLetters(t, r.s, 1))
}

// A record that is too large for where it goes holds up the letters behind it, explain
// names it, and a larger limit lets them all go.
func TestLettersWaitForALargerLimit(t *testing.T) {
	s := startMember(t, t.TempDir(), 1)
	createGroup(t, s.Addr(), wire.GroupSettings{Mode: wire.ModeSerial, BackoffMs: 1, DeadLetter: "dead"})
	r := &letterRig{t: t, s: s, c: dialOpen(t, s.Addr()), n: 100}
	r.create("dead", wire.Queue, wire.Settings{MaxRecordBytes: 64})
	produceKeyed(t, s.Addr(), "a", "a")
	r.k = attachTo(t, s.Addr(), 1)
	r.k.keepAlive()
	r.k.say(outcome(r.k.next(1)[0], wire.OutcomeReject))
	r.goesOn()
	r.explains(`the record at offset 0 is too large for "dead"`)
	require.Equal(t, wire.CodeOK, r.ask(wire.OpAlter, &wire.AlterRequest{Name: "dead", Kind: wire.Queue, Mask: wire.MaskMaxRecordBytes, Settings: wire.Settings{MaxRecordBytes: 4096}}).code())
	require.Equal(t, []string{firstLetter}, readLetters(t, s, 1))
}

// What lies in compressed batches becomes a letter like any other.
func TestRecordsOfCompressedBatchesBecomeDeadLetters(t *testing.T) {
	encoder, err := zstd.NewWriter(nil)
	require.NoError(t, err)
	for codec, compress := range map[wire.Codec]func(dst, src []byte) []byte{
		wire.CodecZstd:   func(dst, src []byte) []byte { return encoder.EncodeAll(src, dst) },
		wire.CodecSnappy: func(dst, src []byte) []byte { return append(dst, s2.EncodeSnappy(nil, src)...) },
	} {
		t.Run(codec.String(), func(t *testing.T) {
			s := startMember(t, t.TempDir(), 1)
			createLetters(t, s.Addr(), 1)
			createGroup(t, s.Addr(), wire.GroupSettings{Mode: wire.ModeSerial, BackoffMs: 1, DeadLetter: "dead"})
			var b wire.BatchBuilder
			b.Reset(true)
			for i, key := range []string{"b", "a", "a"} {
				require.True(t, b.Append(1_000, 0, []byte(key), fmt.Appendf(nil, "value %d", i), nil, xxhash.Sum64String(key)))
			}
			batch, index := b.Finish(wire.ProducerIdentity{ID: wire.NoProducerID}, 0, codec, compress)
			c := dialOpen(t, s.Addr())
			c.send(wire.OpProduce, 5, &wire.ProduceRequest{Handle: c.open("jobs", 0), Acks: wire.AcksQuorum, Batch: batch, Index: index})
			require.Equal(t, wire.CodeOK, c.answer(5).code())
			k := attachTo(t, s.Addr(), 1)
			k.keepAlive()
			for _, g := range k.next(2) {
				if g.Offset <= 1 && 1 < g.Offset+wire.Offset(g.Count) {
					o := outcome(g, wire.OutcomeReject)
					o.Offset, o.Count = 1, 1
					k.say(o)
				}
			}
			require.EqualValues(t, 2, k.next(1)[0].Offset)
			require.Equal(t, []string{"a=value 1 origin:jobs/0 offset:1 group:workers reason:rejected text: number:0 deliveries:1 attempts:1"}, readLetters(t, s, 1))
		})
	}
}

// What becomes letters is read in whatever order it was rejected, a batch and a frame at a time.
func TestLettersOfAnyOrderAreTheirRecords(t *testing.T) {
	encoder, err := zstd.NewWriter(nil)
	require.NoError(t, err)
	s := startMember(t, t.TempDir(), 1)
	createGroup(t, s.Addr(), wire.GroupSettings{Mode: wire.ModeShared, BackoffMs: 1, DeadLetter: "dead"})
	r := &letterRig{t: t, s: s, c: dialOpen(t, s.Addr()), n: 100, k: attachTo(t, s.Addr(), 1)}
	r.k.keepAlive()
	const each = 4
	var grants []wire.Grant
	for batch, codec := range []wire.Codec{wire.CodecZstd, wire.CodecNone, wire.CodecZstd} {
		var b wire.BatchBuilder
		b.Reset(true)
		for i := range each {
			require.True(t, b.Append(1_000, 0, nil, fmt.Append(nil, batch*each+i), nil, 0))
		}
		records, index := b.Finish(wire.ProducerIdentity{ID: wire.NoProducerID}, 0, codec, func(dst, src []byte) []byte { return encoder.EncodeAll(src, dst) })
		require.Equal(t, wire.CodeOK, r.ask(wire.OpProduce, &wire.ProduceRequest{Handle: r.c.open("jobs", 0), Acks: wire.AcksQuorum, Batch: records, Index: index}).code())
		grants = append(grants, r.k.next(each)...)
	}
	order := []wire.Offset{11, 0, 5, 4, 1, 3, 8, 2, 7, 6, 10, 9}
	for _, o := range order {
		i := slices.IndexFunc(grants, func(g wire.Grant) bool { return g.Offset <= o && o < g.Offset+wire.Offset(g.Count) })
		rejected := outcome(grants[i], wire.OutcomeReject)
		rejected.Offset, rejected.Count = o, 1
		require.Equal(t, wire.CodeOK, r.k.say(rejected)[0].Code)
	}
	r.create("dead", wire.Queue, wire.Settings{})
	letters := readLetters(t, s, len(order))
	for number, o := range order {
		require.Equal(t, fmt.Sprintf("=%d origin:jobs/0 offset:%d group:workers reason:rejected text: number:%d deliveries:1 attempts:1", o, o, number), letters[number])
	}
}

// startWithClock starts a broker on a clock of the test's.
func startWithClock(t *testing.T) (*Server, *setClock) {
	clock := &setClock{}
	clock.ms.Store(1_700_000_000_000)
	s, err := Start(t.Context(), Config{
		DataDir: t.TempDir(), Listen: "127.0.0.1:0", PeerListen: "127.0.0.1:0", HTTP: "off", MinFreeBytes: -1, NodeID: 1, ScrubInterval: -1, Logger: testLogger(1), clock: clock.now,
	})
	require.NoError(t, err)
	t.Cleanup(func() { closeMember(t, s) })
	return s, clock
}

// fleeting has every partition forget the producers that it forgets by time, by a producer of
// its own in the queue for dead letters.
func fleeting(t testing.TB, s *Server, clock *setClock) {
	clock.advance(8 * 24 * time.Hour)
	id := make(chan int64, 1)
	s.broker.producerID(func(n int64, err error) { id <- n })
	d, _ := s.broker.View().Destination("dead")
	var b wire.BatchBuilder
	b.Reset(true)
	b.Append(1_000, 0, nil, []byte("other"), nil, 0)
	batch, index := b.Finish(wire.ProducerIdentity{ID: <-id}, 0, wire.CodecNone, nil)
	code := make(chan wire.ErrorCode, 1)
	s.broker.produce(&wire.PeerBatch{Destination: d.ID, Batch: batch, Index: index}, func(c wire.ErrorCode) { code <- c })
	require.Equal(t, wire.CodeOK, <-code)
}

// The letters of a group go on after years: a partition does not forget who wrote them.
func TestLettersGoOnWhateverTheClockSays(t *testing.T) {
	s, clock := startWithClock(t)
	createLetters(t, s.Addr(), 1)
	createGroup(t, s.Addr(), wire.GroupSettings{Mode: wire.ModeSerial, BackoffMs: 1, DeadLetter: "dead"})
	produceKeyed(t, s.Addr(), "a", "a", "a", "a")
	k := attachTo(t, s.Addr(), 1)
	k.keepAlive()
	k.say(outcome(k.next(1)[0], wire.OutcomeReject))
	require.Equal(t, []string{firstLetter}, readLetters(t, s, 1))
	for number := 1; number < 3; number++ {
		fleeting(t, s, clock)
		k.say(outcome(k.next(1)[0], wire.OutcomeReject))
		want := fmt.Sprintf("a=value %d origin:jobs/0 offset:%d group:workers reason:rejected text: number:%d deliveries:1 attempts:1", number, number, number)
		all := readLetters(t, s, 1+2*number)
		require.Len(t, all, 1+2*number)
		require.Equal(t, want, all[2*number])
	}
}

// writtenOnce rejects a record whose letter is written, and its answer lost until lose has
// been called; it returns where letters are by then, by destination.
func writtenOnce(t testing.TB, s *Server, lose func(r *letterRig)) {
	createGroup(t, s.Addr(), wire.GroupSettings{Mode: wire.ModeSerial, BackoffMs: 1})
	r := &letterRig{t: t, s: s, c: dialOpen(t, s.Addr()), n: 100}
	r.create("dead", wire.Queue, wire.Settings{})
	r.create("other", wire.Queue, wire.Settings{})
	r.lettersTo("dead")
	s.broker.deaf.Store(true)
	produceKeyed(t, s.Addr(), "a", "a")
	r.k = attachTo(t, s.Addr(), 1)
	r.k.keepAlive()
	r.k.say(outcome(r.k.next(1)[0], wire.OutcomeReject))
	eventually(t, "the letter is written", func() bool { return r.written("dead") == 1 })
	r.explains("does not take them")
	lose(r)
	s.broker.deaf.Store(false)
	r.goesOn()
	d, _ := s.broker.View().Destination("jobs")
	eventually(t, "the record is done", func() bool { return s.broker.local(d.ID, 0).StartOffset() == 2 })
}

// lettersTo has dead letters of the queue go to a destination.
func (r *letterRig) lettersTo(name string) {
	m := &wire.AlterRequest{Name: "jobs", Kind: wire.Queue, Mask: wire.MaskLetters, Settings: wire.Settings{DeliveryLimit: 9, DeadLetter: name}}
	require.Equal(r.t, wire.CodeOK, r.ask(wire.OpAlter, m).code())
}

// written is how many records a destination has taken.
func (r *letterRig) written(name string) int {
	d, _ := r.s.broker.View().Destination(name)
	p := r.s.broker.local(d.ID, 0)
	if p == nil {
		return 0
	}
	return int(p.records.Watermark().Next)
}

// RULES Q3: a letter whose answer was lost is there once, whatever happens before it is asked
// for again.
func TestRuleQ3_ALetterOfWhichTheAnswerWasLostIsWrittenOnce(t *testing.T) {
	for name, c := range map[string]struct {
		lose  func(r *letterRig)
		other int
	}{
		"asked again":       {lose: func(*letterRig) {}},
		"it goes elsewhere": {lose: func(r *letterRig) { r.lettersTo("other") }},
		"the queue is deleted": {other: 1, lose: func(r *letterRig) {
			d, _ := r.s.broker.View().Destination("dead")
			require.Equal(r.t, wire.CodeOK, r.ask(wire.OpDelete, &wire.DeleteRequest{Name: "dead", Kind: wire.Queue, ID: d.ID}).code())
			r.lettersTo("other")
		}},
	} {
		t.Run(name, func(t *testing.T) {
			s := startMember(t, t.TempDir(), 1)
			var rig *letterRig
			writtenOnce(t, s, func(r *letterRig) { rig = r; c.lose(r) })
			require.Equal(t, c.other, rig.written("other"))
			if c.other == 0 {
				require.Equal(t, 1, rig.written("dead"))
			}
		})
	}
}

// RULES Q3: many letters are on their way at the same time. If all answers are lost each is there
// once, in the order in which they were noted.
func TestRuleQ3_LettersOnTheirWayTogetherAreWrittenOnce(t *testing.T) {
	const batches, each = 3, 100
	const records = batches * each // more than one round sends
	s := startMember(t, t.TempDir(), 1)
	createLetters(t, s.Addr(), 1)
	createGroup(t, s.Addr(), wire.GroupSettings{Mode: wire.ModeShared, BackoffMs: 1, DeadLetter: "dead"})
	s.broker.deaf.Store(true)
	r := &letterRig{t: t, s: s, c: dialOpen(t, s.Addr()), n: 100, k: attachTo(t, s.Addr(), 1)}
	r.k.keepAlive()
	for range batches {
		produceKeyed(t, s.Addr(), slices.Repeat([]string{"a"}, each)...)
		for _, g := range r.k.next(each) {
			r.k.say(outcome(g, wire.OutcomeReject))
		}
	}
	eventually(t, "letters are written together", func() bool { return r.written("dead") >= 2 })
	r.explains("does not take them")
	s.broker.deaf.Store(false)
	letters := readLetters(t, s, records)
	require.Len(t, letters, records)
	for i, l := range letters {
		require.Contains(t, l, fmt.Sprintf(" number:%d ", i))
	}
	d, _ := s.broker.View().Destination("jobs")
	eventually(t, "the records are done", func() bool { return s.broker.local(d.ID, 0).StartOffset() == records })
	require.Equal(t, records, r.written("dead"))
	require.Zero(t, s.broker.letterFlight.Load())
}

// The same without asking what of it is there.
func TestRuleQ3_Catches_LettersThatGoElsewhereUnasked(t *testing.T) {
	s := startMember(t, t.TempDir(), 1)
	s.broker.unclosed.Store(true)
	caught(t, func(t testing.TB) {
		var rig *letterRig
		writtenOnce(t, s, func(r *letterRig) { rig = r; r.lettersTo("other") })
		require.Zero(t, rig.written("other"))
	})
}

// A letter whose answer was lost, whose queue has forgotten by time who wrote it, and that was
// consumed meanwhile, is not written again.
func TestRuleQ3_AConsumedLetterIsNotWrittenAgain(t *testing.T) {
	s, clock := startWithClock(t)
	var rig *letterRig
	writtenOnce(t, s, func(r *letterRig) {
		rig = r
		fleeting(t, s, clock)
		c := dialOpen(t, s.Addr())
		c.send(wire.OpGroupAdmin, 9, &wire.GroupAdminRequest{Destination: "dead", Group: "clerks", Op: wire.GroupCreate, JSON: []byte("{}")})
		require.Equal(t, wire.CodeOK, c.answer(9).code())
		body, err := json.Marshal(wire.SettleRequest{Spans: []wire.OffsetSpan{{From: 0, To: 2}}})
		require.NoError(t, err)
		require.Equal(t, wire.CodeOK, r.ask(wire.OpGroupOrder, &wire.GroupOrderRequest{Handle: r.c.open("dead", 0), Op: wire.OrderSettle, Group: "clerks", JSON: body}).code())
		d, _ := s.broker.View().Destination("dead")
		eventually(t, "the letter is consumed", func() bool { return s.broker.local(d.ID, 0).StartOffset() == 2 })
	})
	require.Equal(t, 2, rig.written("dead"), "the letter, and what made the queue forget")
}

// A partition that had to forget who wrote a letter finds it in its log.
func TestRuleQ3_AForgottenProducerIsLookedForInTheLog(t *testing.T) {
	s := startMember(t, t.TempDir(), 1)
	var rig *letterRig
	writtenOnce(t, s, func(r *letterRig) {
		rig = r
		r.forgets("dead")
		r.lettersTo("other")
	})
	require.Zero(t, rig.written("other"))
	require.Equal(t, 1, rig.written("dead"))
}

// redrivenOnce sends a dead letter back whose answer is lost until lose has been called: it is in
// the queue that it comes from once, and no letter any more.
func redrivenOnce(t testing.TB, s *Server, lose func(r *letterRig)) {
	r := &letterRig{t: t, s: s, c: dialOpen(t, s.Addr()), n: 100}
	createGroup(t, s.Addr(), wire.GroupSettings{Mode: wire.ModeSerial, DeliveryLimit: 1, DeadLetter: "dead"})
	r.create("dead", wire.Queue, wire.Settings{})
	produceKeyed(t, s.Addr(), "a")
	r.k = attachTo(t, s.Addr(), 1)
	r.k.keepAlive()
	r.k.say(outcome(r.k.next(1)[0], wire.OutcomeNack))
	require.Equal(t, []string{"a=value 0 origin:jobs/0 offset:0 group:workers reason:delivery limit text: number:0 deliveries:1 attempts:1"}, readLetters(t, s, 1))
	require.Equal(t, wire.CodeOK, r.ask(wire.OpGroupAdmin, &wire.GroupAdminRequest{Destination: "dead", Group: "dlq", Op: wire.GroupCreate, JSON: []byte("{}")}).code())
	s.broker.deaf.Store(true)
	redrive := func() {
		body, err := json.Marshal(wire.RedriveRequest{Letters: []wire.Redriven{{Offset: 0, To: "jobs", Partition: 0}}})
		require.NoError(t, err)
		require.Equal(t, wire.CodeOK, r.ask(wire.OpGroupOrder, &wire.GroupOrderRequest{Handle: r.c.open("dead", 0), Op: wire.OrderRedrive, Group: "dlq", JSON: body}).code())
	}
	redrive()
	eventually(t, "the letter is back", func() bool { return r.written("jobs") == 2 })
	redrive() // of somebody who does not know
	lose(r)
	s.broker.deaf.Store(false)
	d, _ := s.broker.View().Destination("dead")
	eventually(t, "it is no letter any more", func() bool { return s.broker.local(d.ID, 0).StartOffset() == 1 })
	require.Equal(t, 2, r.written("jobs"), "the record, and what came back")
	g := r.k.next(1)[0]
	require.EqualValues(t, 1, g.Offset)
	require.Equal(t, wire.CodeOK, r.k.say(ack(g))[0].Code)
}

// forgets has the first partition of a destination forget who wrote to it.
func (r *letterRig) forgets(name string) {
	d, _ := r.s.broker.View().Destination(name)
	p := r.s.broker.local(d.ID, 0)
	forgotten := make(chan struct{})
	require.NoError(r.t, p.part.Fence(partition.Fence{ID: 0, Then: func(wire.ErrorCode) { // in the owner's turn
		p.part.ForgetProducers()
		close(forgotten)
	}}))
	p.Kick(false)
	<-forgotten
}

// A dead letter on its way back whose answer was lost is there once, also if it is sent back
// again and if its queue has forgotten who wrote it.
func TestRuleQ3_ALetterOnItsWayBackIsWrittenOnce(t *testing.T) {
	for name, lose := range map[string]func(r *letterRig){
		"asked again":             func(*letterRig) {},
		"its writer is forgotten": func(r *letterRig) { r.forgets("jobs") },
	} {
		t.Run(name, func(t *testing.T) { redrivenOnce(t, startMember(t, t.TempDir(), 1), lose) })
	}
}

// The same without asking what of it is there.
func TestRuleQ3_Catches_LettersThatGoBackUnasked(t *testing.T) {
	s := startMember(t, t.TempDir(), 1)
	s.broker.unclosed.Store(true)
	caught(t, func(t testing.TB) { redrivenOnce(t, s, func(r *letterRig) { r.forgets("jobs") }) })
}

// A letter that cannot be written waits for itself: those behind it are written, and explain
// and the list of letters name it.
func TestALetterThatCannotBeWrittenHoldsUpNoOthers(t *testing.T) {
	s := startMember(t, t.TempDir(), 1)
	createGroup(t, s.Addr(), wire.GroupSettings{Mode: wire.ModeSerial, BackoffMs: 1, DeadLetter: "dead"})
	r := &letterRig{t: t, s: s, c: dialOpen(t, s.Addr()), n: 100}
	r.create("dead", wire.Queue, wire.Settings{MaxRecordBytes: 400})
	large := strings.Repeat("large", 80)
	produceKeyed(t, s.Addr(), large, "b", large, "c")
	r.k = attachTo(t, s.Addr(), 1)
	r.k.keepAlive()
	for got := 0; got < 4; {
		for _, g := range r.k.next(1) {
			r.k.say(outcome(g, wire.OutcomeReject))
			got += int(g.Count)
		}
	}
	short := readLetters(t, s, 2)
	require.Len(t, short, 2)
	for i, want := range []string{"b=value 1 origin:jobs/0 offset:1", "c=value 3 origin:jobs/0 offset:3"} {
		require.True(t, strings.HasPrefix(short[i], want), short[i])
	}
	r.explains(`the record at offset 0 is too large for "dead"`)
	var letters wire.LettersResponse
	eventually(t, "the two that are too large are left, and each says so", func() bool {
		letters = wire.LettersResponse{}
		require.Equal(t, wire.CodeOK, ordering(t, r.c, wire.OrderLetters, wire.LettersRequest{}, &letters))
		for _, l := range letters.Letters {
			if !strings.Contains(l.Problem, fmt.Sprintf("the record at offset %d is too large", l.Offset)) {
				return false
			}
		}
		return letters.Count == 2
	})
	require.Equal(t, wire.CodeOK, r.ask(wire.OpAlter, &wire.AlterRequest{Name: "dead", Kind: wire.Queue, Mask: wire.MaskMaxRecordBytes, Settings: wire.Settings{MaxRecordBytes: 4096}}).code())
	require.Len(t, readLetters(t, s, 4), 4)
}

// What a removed group has decided on is written, and its name can be used meanwhile.
func TestRuleQ3_AGroupThatIsRemovedLeavesItsLetters(t *testing.T) {
	r := rejecting(t, "dead", "a", "a")
	r.goesOn()
	r.explains(`there is no "dead": create it`)
	m := &wire.GroupAdminRequest{Destination: "jobs", Group: "workers", Op: wire.GroupRemove}
	require.Equal(t, wire.CodeOK, r.ask(wire.OpGroupAdmin, m).code())
	d, _ := r.s.broker.View().Destination("jobs")
	m = &wire.GroupAdminRequest{Destination: "jobs", Group: "workers", Op: wire.GroupCreate, JSON: []byte(`{"start":{"to":"latest"}}`)}
	require.Equal(t, wire.CodeOK, r.ask(wire.OpGroupAdmin, m).code())
	eventually(t, "the partition has the new one", func() bool { // where the latest is, is said when it hears of it
		var now wire.GroupPartition
		return ordering(t, r.c, wire.OrderDescribe, struct{}{}, &now) == wire.CodeOK && now.Floor == 2 && now.Letters == 0
	})
	produceKeyed(t, r.s.Addr(), "b")
	r.create("dead", wire.Queue, wire.Settings{})
	require.Equal(t, []string{firstLetter}, readLetters(t, r.s, 1))
	k := attachTo(t, r.s.Addr(), 7)
	g := k.next(1)[0]
	require.EqualValues(t, 2, g.Offset)
	require.Equal(t, wire.CodeOK, k.say(ack(g))[0].Code)
	eventually(t, "nothing is left of it", func() bool { return r.s.broker.local(d.ID, 0).StartOffset() == 3 })
}

// A seek back over a record whose letter waits has it given out again.
func TestRuleQ3_ASeekBackGivesOutALetterAgain(t *testing.T) {
	r := rejecting(t, "dead", "a")
	r.explains(`there is no "dead": create it`)
	var moved wire.SeekResponse
	require.Equal(t, wire.CodeOK, ordering(t, dialOpen(t, r.s.Addr()), wire.OrderSeek, wire.SeekRequest{To: "earliest"}, &moved))
	g := r.k.next(1)[0]
	require.EqualValues(t, 0, g.Offset)
	r.create("dead", wire.Queue, wire.Settings{})
	require.Equal(t, []string{firstLetter}, readLetters(t, r.s, 1))
	require.Equal(t, wire.CodeOK, r.k.say(ack(g))[0].Code, "it is still its consumer's")
}

// containsAll reports whether text has all parts.
func containsAll(text string, parts ...string) bool {
	for _, p := range parts {
		if !strings.Contains(text, p) {
			return false
		}
	}
	return true
}

// Groups that come and go leave no more behind than has a limit.
func TestTheNewsOfLettersHaveALimit(t *testing.T) {
	r := &partitionReplica{owner: owner{logger: slog.New(slog.DiscardHandler)}}
	for id := range 3 * maxLettersTold {
		l := &letterRound{groupEffects: groupEffects{r}, LetterRound: &partition.LetterRound{Group: group.ID(id)}}
		l.tell(wire.CodeUnavailable)
		require.Contains(t, r.letters.told, group.ID(id))
	}
	require.LessOrEqual(t, len(r.letters.told), maxLettersTold)
}
