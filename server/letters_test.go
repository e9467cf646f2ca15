package server

import (
	"encoding/json"
	"fmt"
	"math"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/wire"
)

// createLetters makes a queue for dead letters.
func createLetters(t *testing.T, address string, partitions uint32) {
	t.Helper()
	c := dialOpen(t, address)
	c.send(wire.OpCreate, 2, &wire.CreateRequest{Name: "dead", Kind: wire.Queue, Settings: wire.Settings{
		Partitions: partitions, Sync: wire.SyncOS, RetentionTimeMs: wire.Unlimited, RetentionBytes: wire.Unlimited,
	}})
	require.Equal(t, wire.CodeOK, c.answer(2).code())
}

// readLetters reads so many records of all partitions of the queue for dead letters.
func readLetters(t testing.TB, s *Server, want int) (found []string) {
	t.Helper()
	eventually(t, "dead letters", func() bool {
		found = nil
		d, _ := s.broker.View().Destination("dead")
		for i := range d.Partitions {
			r := s.broker.local(d.ID, uint32(i))
			if r == nil {
				continue
			}
			entries, err := r.records.Entries(1, 1<<20)
			if err != nil {
				continue
			}
			for _, e := range entries {
				if e.Kind != wire.KindRecords {
					continue
				}
				for body := e.Data[wire.EntryPrefixSize:]; len(body) > 0; {
					b, rest, err := wire.NextBodyBatch(body)
					require.NoError(t, err)
					info, err := wire.VerifyBatch(b.Batch)
					require.NoError(t, err)
					var reader wire.RecordReader
					var rec wire.Record
					for reader.Reset(&info, wire.Records(b.Batch)); reader.Next(&rec); {
						said := fmt.Sprintf("%s=%s", rec.Key, rec.Value)
						for key, value := range rec.Headers() {
							said += fmt.Sprintf(" %s:%s", key[len("lockstep-dead-letter-"):], value)
						}
						found = append(found, said)
					}
					body = rest
				}
			}
		}
		return len(found) >= want
	})
	return found
}

// RULES Q3: a record that fails too often, or is rejected, goes to the dead letters with
// where it came from, once, and its key goes on.
func TestRecordsThatFailTooOftenBecomeDeadLetters(t *testing.T) {
	dir := t.TempDir()
	s := startMember(t, dir, 1)
	createLetters(t, s.Addr(), 3)
	createGroup(t, s.Addr(), wire.GroupSettings{Mode: wire.ModeSerial, BackoffMs: 1, DeliveryLimit: 2, DeadLetter: "dead"})
	produceKeyed(t, s.Addr(), "a", "a", "a")
	k := attachTo(t, s.Addr(), 1)
	for range 2 {
		k.say(outcome(k.next(1)[0], wire.OutcomeNack))
	}
	second := k.next(1)
	require.EqualValues(t, 1, second[0].Offset, "the key goes on")
	rejected := outcome(second[0], wire.OutcomeReject)
	rejected.Text = "no such customer"
	k.say(rejected)
	third := k.next(1)
	require.EqualValues(t, 2, third[0].Offset)
	require.Equal(t, wire.CodeOK, k.say(ack(third[0]))[0].Code)
	want := []string{
		"a=value 0 origin:jobs/0 offset:0 group:workers reason:delivery limit text: number:0 deliveries:2 attempts:2",
		"a=value 1 origin:jobs/0 offset:1 group:workers reason:rejected text:no such customer number:1 deliveries:1 attempts:1",
	}
	require.Equal(t, want, readLetters(t, s, 2))
	eventually(t, "everything is done", func() bool {
		d, _ := s.broker.View().Destination("jobs")
		return s.broker.local(d.ID, 0).StartOffset() == 3
	})

	// The next leader knows what was written, and by whom.
	closeMember(t, s)
	s = startMember(t, dir, 1)
	produceKeyed(t, s.Addr(), "b")
	k = attachTo(t, s.Addr(), 1) // whom it waits for
	k.say(outcome(k.next(1)[0], wire.OutcomeReject))
	require.Equal(t, append(want, "b=value 0 origin:jobs/0 offset:3 group:workers reason:rejected text: number:2 deliveries:1 attempts:1"), readLetters(t, s, 3))
}

// RULES Q3: the producers of dead letters are brokers. A client that carries on with the identity
// of one, as whoever copies the batches of a queue of dead letters as they are stored would, is
// refused: the next letter would be taken for a repetition of its batch, and be lost.
func TestRuleQ3_AClientIsNoProducerOfDeadLetters(t *testing.T) {
	s := startMember(t, t.TempDir(), 1)
	createLetters(t, s.Addr(), 1)
	createGroup(t, s.Addr(), wire.GroupSettings{Mode: wire.ModeSerial, DeadLetter: "dead"})
	produceKeyed(t, s.Addr(), "a", "a")
	k := attachTo(t, s.Addr(), 1)
	k.say(outcome(k.next(1)[0], wire.OutcomeReject))
	want := []string{"a=value 0 origin:jobs/0 offset:0 group:workers reason:rejected text: number:0 deliveries:1 attempts:1"}
	require.Equal(t, want, readLetters(t, s, 1))

	d, _ := s.broker.View().Destination("dead")
	r := s.broker.local(d.ID, 0)
	writer := int64(-1)
	entries, err := r.records.Entries(1, 1<<20)
	require.NoError(t, err)
	for _, e := range entries {
		if e.Kind == wire.KindRecords {
			b, _, err := wire.NextBodyBatch(e.Data[wire.EntryPrefixSize:])
			require.NoError(t, err)
			info, err := wire.ParseBatch(b.Batch)
			require.NoError(t, err)
			writer = info.ProducerID
		}
	}
	require.GreaterOrEqual(t, writer, wire.LetterProducers)
	c := dialOpen(t, s.Addr())
	h := c.open("dead", 0)
	for i, identity := range []wire.ProducerIdentity{
		{ID: writer, Sequence: 1}, {ID: writer, Epoch: 1}, {ID: wire.LetterProducers}, {ID: math.MaxInt64, Epoch: math.MaxInt16, Sequence: math.MaxInt32},
	} {
		var b wire.BatchBuilder
		b.Reset(true)
		require.True(t, b.Append(1_000, 0, nil, []byte("forged"), nil, 0))
		batch, index := b.Finish(identity, 0, wire.CodecNone, nil)
		c.send(wire.OpProduce, uint32(10+i), &wire.ProduceRequest{Handle: h, Acks: wire.AcksQuorum, Batch: batch, Index: index})
		require.Equal(t, wire.CodeInvalidRequest, c.answer(uint32(10+i)).code(), "%+v", identity)
	}

	k.say(outcome(k.next(1)[0], wire.OutcomeReject))
	require.Equal(t, append(want, "a=value 1 origin:jobs/0 offset:1 group:workers reason:rejected text: number:1 deliveries:1 attempts:1"), readLetters(t, s, 2))
}

// A dead letter goes to whoever leads its partition, and not twice.
func TestABatchOfAnotherNodeIsAppendedByTheLeader(t *testing.T) {
	all := startThree(t)
	createLetters(t, all[0].Addr(), 1)
	var b wire.BatchBuilder
	b.Reset(true)
	require.True(t, b.Append(1_000, 0, nil, []byte("letter"), nil, 0))
	ids := make(chan int64, 1)
	all[0].broker.producerID(func(id int64, err error) { ids <- id })
	batch, index := b.Finish(wire.ProducerIdentity{ID: <-ids}, 0, wire.CodecNone, nil)
	d, _ := all[0].broker.View().Destination("dead")
	for _, s := range all {
		eventually(t, "the batch is appended", func() bool {
			code := make(chan wire.ErrorCode, 1)
			s.broker.produce(&wire.PeerBatch{Destination: d.ID, Index: append([]byte(nil), index...), Batch: append([]byte(nil), batch...)}, func(c wire.ErrorCode) { code <- c })
			c := <-code
			require.Contains(t, []wire.ErrorCode{wire.CodeOK, wire.CodeNotLeader, wire.CodeRetry, wire.CodeUnavailable}, c)
			return c == wire.CodeOK
		})
	}
	for _, s := range all {
		eventually(t, "one record", func() bool { return s.broker.local(d.ID, 0).records.Watermark().Next >= 1 })
		require.EqualValues(t, 1, s.broker.local(d.ID, 0).records.Watermark().Next)
	}
}

// A client of the version before creates, alters and sees destinations as it knows them.
func TestRequestsOfTheVersionBeforeAreServed(t *testing.T) {
	s := startMember(t, t.TempDir(), 1)
	c := dialOpen(t, s.Addr())
	ask := func(id uint32, op wire.Opcode, version uint16, m, answer wire.Message) {
		c.write(wire.AppendFrame(nil, wire.Header{Opcode: op, Version: version, ID: id}, m))
		f := c.answer(id)
		require.Equal(t, wire.FlagResponse, f.Flags, "%v", f.code())
		require.Equal(t, version, f.Version)
		require.NoError(t, wire.ParseMessage(answer, f.body, version))
	}
	settings := wire.Settings{Partitions: 1, Sync: wire.SyncOS, RetentionTimeMs: wire.Unlimited, RetentionBytes: wire.Unlimited}
	var info wire.DestinationInfo
	ask(2, wire.OpCreate, 3, &wire.CreateRequest{Name: "old", Kind: wire.Queue, Settings: settings}, &info)
	require.Equal(t, "old", info.Name)
	letters := &wire.AlterRequest{Name: "old", Kind: wire.Queue, Mask: wire.MaskLetters, Settings: wire.Settings{DeliveryLimit: 5, DeadLetter: "dead"}}
	ask(3, wire.OpAlter, 4, letters, &info)
	require.EqualValues(t, 5, info.Settings.DeliveryLimit)
	ask(4, wire.OpAlter, 3, &wire.AlterRequest{Name: "old", Kind: wire.Queue, Mask: wire.MaskThresholdRecords, Settings: wire.Settings{ThresholdRecords: 9}}, &info)
	require.Zero(t, info.Settings.DeliveryLimit, "it does not know it")
	for version, limit := range map[uint16]uint32{4: 0, 5: 5} {
		var all wire.MetadataResponse
		ask(4+uint32(version), wire.OpMetadata, version, &wire.MetadataRequest{Scope: wire.MetadataAll}, &all)
		require.Len(t, all.Destinations, 1)
		require.EqualValues(t, 9, all.Destinations[0].Settings.ThresholdRecords)
		require.Equal(t, limit, all.Destinations[0].Settings.DeliveryLimit, "and does not take it away")
	}
	c.write(wire.AppendFrame(nil, wire.Header{Opcode: wire.OpCreate, Version: 2, ID: 20}, &wire.CreateRequest{Name: "older", Kind: wire.Queue, Settings: settings}))
	require.Equal(t, wire.CodeUnsupported, c.answer(20).code())
}

// A group that says nothing goes by what its destination says, also when that is altered
// while it consumes.
func TestAGroupFollowsItsAlteredDestination(t *testing.T) {
	s := startMember(t, t.TempDir(), 1)
	createLetters(t, s.Addr(), 1)
	createGroup(t, s.Addr(), wire.GroupSettings{Mode: wire.ModeSerial, BackoffMs: 1})
	produceKeyed(t, s.Addr(), "a", "a")
	k := attachTo(t, s.Addr(), 1)
	for range 3 {
		k.say(outcome(k.next(1)[0], wire.OutcomeNack))
	}
	c := dialOpen(t, s.Addr())
	c.send(wire.OpAlter, 2, &wire.AlterRequest{Name: "jobs", Kind: wire.Queue, Mask: wire.MaskLetters, Settings: wire.Settings{DeliveryLimit: 4, DeadLetter: "dead"}})
	require.Equal(t, wire.CodeOK, c.answer(2).code())
	g := k.next(1)
	for ; g[0].Offset == 0; g = k.next(1) {
		k.say(outcome(g[0], wire.OutcomeNack))
	}
	require.EqualValues(t, 1, g[0].Offset)
	require.Contains(t, readLetters(t, s, 1)[0], "a=value 0 origin:jobs/0 offset:0 group:workers reason:delivery limit")
}

// ordering asks the leader of jobs something about the group workers.
func ordering(t testing.TB, c *rawClient, op wire.GroupOrderOp, ask, answer any) wire.ErrorCode {
	t.Helper()
	body, err := json.Marshal(ask)
	require.NoError(t, err)
	c.send(wire.OpGroupOrder, 77, &wire.GroupOrderRequest{Handle: c.open("jobs", 0), Op: op, Group: "workers", JSON: body})
	f := c.answer(77)
	if code := f.code(); code != wire.CodeOK {
		return code
	}
	var m wire.GroupJSON
	require.NoError(t, m.Parse(f.body))
	require.NoError(t, json.Unmarshal(m.JSON, answer))
	return wire.CodeOK
}

// In park mode a poison message keeps its key in order until an operator repairs,
// replays or skips it, and then the key goes on in order.
func TestAParkedKeyGoesOnInOrderWhenItsHeadIsRepairedReplayedOrSkipped(t *testing.T) {
	for name, operator := range map[string]struct {
		op    wire.GroupOrderOp
		first string // what comes next
	}{
		"repaired": {wire.OrderRepair, "0: better"},
		"replayed": {wire.OrderUnpark, "0: value 0"},
		"skipped":  {wire.OrderSkip, "1: value 1"},
	} {
		t.Run(name, func(t *testing.T) {
			s := startMember(t, t.TempDir(), 1)
			createGroup(t, s.Addr(), wire.GroupSettings{Mode: wire.ModeSerial, BackoffMs: 1, DeliveryLimit: 2, DeadLetterMode: wire.DeadLetterPark})
			produceKeyed(t, s.Addr(), "a", "a", "a", "b")
			k := attachTo(t, s.Addr(), 1)
			k.keepAlive()
			for failed := 0; failed < 2; {
				for _, g := range k.next(1) {
					if kind := wire.OutcomeNack; g.Offset == 0 {
						k.say(outcome(g, kind))
						failed++
					} else {
						require.EqualValues(t, 3, g.Offset, "the others go on")
						k.say(ack(g))
					}
				}
			}
			c := dialOpen(t, s.Addr())
			key, better := []byte("a"), []byte("better")
			scope := wire.ScopeRequest{Key: &key}
			var shown wire.ScopeResponse
			eventually(t, "the key is parked", func() bool {
				require.Equal(t, wire.CodeOK, ordering(t, c, wire.OrderShow, scope, &shown))
				return shown.Parked
			})
			require.EqualValues(t, 0, shown.Offset)
			if operator.op == wire.OrderRepair {
				require.Equal(t, wire.CodeRefused, ordering(t, c, operator.op, wire.RepairRequest{ScopeRequest: scope, Offset: 1, Key: &key, Value: &better}, &shown), "another record than he looked at")
				other := []byte("b")
				require.Equal(t, wire.CodeInvalidRequest, ordering(t, c, operator.op, wire.RepairRequest{ScopeRequest: scope, Key: &other, Value: &better}, &shown))
				big := make([]byte, 600<<10)
				require.Equal(t, wire.CodeTooLarge, ordering(t, c, operator.op, wire.RepairRequest{ScopeRequest: scope, Key: &key, Value: &big}, &shown))
				require.Equal(t, wire.CodeOK, ordering(t, c, operator.op, wire.RepairRequest{ScopeRequest: scope, Key: &key, Value: &better, TimestampMs: 5}, &shown))
			} else {
				require.Equal(t, wire.CodeOK, ordering(t, c, operator.op, scope, &shown))
			}
			var got []string
			for len(got) == 0 || !strings.HasPrefix(got[len(got)-1], "2:") {
				g, text := k.nextText()
				got = append(got, text)
				k.say(ack(g))
			}
			want := []string{operator.first, "1: value 1", "2: value 2"}
			if operator.op == wire.OrderSkip {
				want = want[1:]
			}
			require.Equal(t, want, got)
		})
	}
}

// nextText is the next record, as offset and value.
func (k *consumer) nextText() (g wire.Grant, text string) {
	f := k.read()
	require.Equal(k.t, wire.OpGroupDeliver, f.Opcode, "%v", f.failure())
	var m wire.GroupDeliver
	require.NoError(k.t, m.Parse(f.body))
	require.Len(k.t, m.Grants, 1)
	b, _, err := wire.NextBodyBatch(m.Bytes)
	require.NoError(k.t, err)
	info, err := wire.VerifyBatch(b.Batch)
	require.NoError(k.t, err)
	var reader wire.RecordReader
	var rec wire.Record
	for reader.Reset(&info, wire.Records(b.Batch)); reader.Next(&rec); {
		if rec.Offset == m.Grants[0].Offset {
			return m.Grants[0], fmt.Sprintf("%d: %s", rec.Offset, rec.Value)
		}
	}
	require.FailNow(k.t, "the record is not in its batch")
	return g, ""
}

// What is not done, what waits to be a letter, and settling both: orders that tools use.
func TestOrdersTellAndSettleWhatIsUnfinished(t *testing.T) {
	r := rejecting(t, "dead", "a", "b", "c", "d", "e")
	c := dialOpen(t, r.s.Addr())
	var letters wire.LettersResponse
	eventually(t, "the letter is refused", func() bool {
		require.Equal(t, wire.CodeOK, ordering(t, c, wire.OrderLetters, wire.LettersRequest{}, &letters))
		return letters.Problem == `there is no "dead": create it, or name another one for dead letters`
	})
	require.Equal(t, []wire.LetterInfo{{Number: 0, Offset: 0, Deliveries: 1, Attempts: 1, Reason: "rejected"}}, letters.Letters)
	drop := uint64(0)
	var none struct{}
	require.Equal(t, wire.CodeOK, ordering(t, c, wire.OrderLetters, wire.LettersRequest{Drop: &drop}, &none))
	require.Equal(t, wire.CodeRefused, ordering(t, c, wire.OrderLetters, wire.LettersRequest{Drop: &drop}, &none), "it is gone")
	r.k.c.send(wire.OpGroupLeave, r.k.link, &wire.GroupLeave{})
	require.Equal(t, wire.CodeOK, ordering(t, c, wire.OrderSettle, wire.SettleRequest{Spans: []wire.OffsetSpan{{From: 2, To: 4}}}, &none))
	var left wire.GroupPartition
	require.Equal(t, wire.CodeOK, ordering(t, c, wire.OrderDescribe, struct{}{}, &left))
	require.EqualValues(t, 2, left.Backlog, "records 1 and 4")
	for _, bad := range [][]wire.OffsetSpan{nil, {{From: 3, To: 3}}, {{From: 2, To: 3}, {From: 1, To: 2}}, {{From: 4, To: 6}}} {
		require.Equal(t, wire.CodeInvalidRequest, ordering(t, c, wire.OrderSettle, wire.SettleRequest{Spans: bad}, &none))
	}
	// The letter that is left out leaves a gap, which the next one steps over.
	k := attachTo(t, r.s.Addr(), 2)
	k.keepAlive()
	r.create("dead", wire.Queue, wire.Settings{})
	for _, g := range k.next(2) {
		k.say(outcome(g, wire.OutcomeReject))
	}
	require.Len(t, readLetters(t, r.s, 2), 2)
}
