package server

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cespare/xxhash/v2"
	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/zstd"
	"github.com/stretchr/testify/require"

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
	for _, g := range r.k.next(2) { // of a and of b
		r.k.say(outcome(g, wire.OutcomeReject))
	}
	r.goesOn()
	require.Equal(t, []string{firstLetter}, readLetters(t, s, 1))
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

// letterBatch is a letter as a producer sends it.
func letterBatch(s *Server, producer wire.ProducerIdentity, number int) *wire.PeerBatch {
	d, _ := s.broker.View().Destination("dead")
	var b wire.BatchBuilder
	b.Reset(true)
	b.Append(1_000, 0, nil, []byte("letter"), []wire.RecordHeader{{Key: wire.LetterHeader + "number", Value: []byte(strconv.Itoa(number))}}, 0)
	batch, index := b.Finish(producer, 0, wire.CodecNone, nil)
	return &wire.PeerBatch{Destination: d.ID, Batch: batch, Index: index}
}

// producing writes a letter and returns the answer.
func producing(s *Server, producer wire.ProducerIdentity, number int) wire.ErrorCode {
	code := make(chan wire.ErrorCode, 1)
	s.broker.produce(letterBatch(s, producer, number), func(c wire.ErrorCode) { code <- c })
	return <-code
}

// forget has the partition for dead letters forget all producers but one that it returns.
func forget(s *Server, clock *setClock) {
	clock.advance(8 * 24 * time.Hour)
	id := make(chan int64, 1)
	s.broker.producerID(func(n int64, err error) { id <- n })
	if code := producing(s, wire.ProducerIdentity{ID: <-id}, 99); code != wire.CodeOK {
		panic(code)
	}
}

// writeOnce writes two letters, of which the answers are lost and the producer forgotten,
// again, and requires that each is there once.
func writeOnce(t testing.TB, s *Server, clock *setClock) {
	id := make(chan int64, 1)
	s.broker.producerID(func(n int64, err error) { id <- n })
	p := wire.ProducerIdentity{ID: <-id}
	require.Equal(t, wire.CodeOK, producing(s, p, 0))
	p.Sequence = 1
	require.Equal(t, wire.CodeOK, producing(s, p, 1))
	forget(s, clock)
	require.Equal(t, wire.CodeUnknownProducer, producing(s, p, 1), "it is forgotten: nobody knows whether it was written")
	for number := range 3 { // the third one is new
		p = wire.ProducerIdentity{ID: p.ID, Epoch: int16(number + 1)}
		require.Equal(t, wire.CodeOK, producing(s, p, number))
		require.Contains(t, []wire.ErrorCode{wire.CodeUnknownProducer, wire.CodeOK}, producing(s, p, number))
	}
	d, _ := s.broker.View().Destination("dead")
	require.EqualValues(t, 3+1, s.broker.local(d.ID, 0).records.Watermark().Next, "three letters and the one that made the partition forget")
}

// RULES Q3: a letter is written once, also if the partition that took it has forgotten who
// wrote it before the answer arrived.
func TestALetterIsWrittenOnceByAProducerThatWasForgotten(t *testing.T) {
	s, clock := startWithClock(t)
	createLetters(t, s.Addr(), 1)
	writeOnce(t, s, clock)
}

// The same with a partition that believes that a producer which begins again has written
// nothing.
func TestALetterIsWrittenOnce_CatchesAProducerThatIsBelieved(t *testing.T) {
	s, clock := startWithClock(t)
	createLetters(t, s.Addr(), 1)
	s.broker.unsearched.Store(true)
	caught(t, func(t testing.TB) { writeOnce(t, s, clock) })
}

// A group whose producer was forgotten goes on: its letters arrive, in order and once.
func TestLettersGoOnWhenTheirProducerWasForgotten(t *testing.T) {
	s, clock := startWithClock(t)
	createLetters(t, s.Addr(), 1)
	createGroup(t, s.Addr(), wire.GroupSettings{Mode: wire.ModeSerial, BackoffMs: 1, DeadLetter: "dead"})
	produceKeyed(t, s.Addr(), "a", "a", "a", "a")
	k := attachTo(t, s.Addr(), 1)
	k.keepAlive()
	k.say(outcome(k.next(1)[0], wire.OutcomeReject))
	require.Equal(t, []string{firstLetter}, readLetters(t, s, 1))
	for number := 1; number < 3; number++ {
		forget(s, clock)
		k.say(outcome(k.next(1)[0], wire.OutcomeReject))
		want := fmt.Sprintf("a=value %d origin:jobs/0 offset:%d group:workers reason:rejected text: number:%d deliveries:1 attempts:1", number, number, number)
		all := readLetters(t, s, 1+2*number)
		require.Len(t, all, 1+2*number)
		require.Equal(t, want, all[2*number])
	}
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
