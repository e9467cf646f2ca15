package partition

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/log"
	"github.com/lockstepmq/lockstep/wire"
)

// fakeLog is consensus and storage of a partition in a few lines: entries are
// proposed into a slice and applied when the test says so.
type fakeLog struct {
	part      *Partition
	term      wire.Term
	following bool
	next      wire.Offset
	proposed  [][]byte // data of entries not applied yet
	data      []byte   // of the last one
	applied   wire.Index
	at        wire.Offset // next offset of the applied entries
	immediate bool        // apply inside Propose, as sync=os does
	reserve   error
	propose   error
	space     int64 // what entries take of it and nothing gives back; 0: there is no end
	trimmed   wire.Offset
	retain    wire.Offset
	maxAge    time.Duration // of the last call of RetentionPoint
	maxBytes  int64
	paused    bool
	bytes     int64
	holders   int                 // 0 means 1
	asked     map[wire.Index]bool // of Holders
	places    bool                // it knows where entries lie
	keys      bool                // somebody asks for keys
	records   int64               // bytes of frames with records, and of others
	control   int64
}

func (f *fakeLog) Bytes() int64 { return f.bytes }
func (f *fakeLog) BodyAt(i wire.Index, _ int) (log.Position, bool) {
	return log.Position{Segment: 1, Byte: int64(i) << 20}, f.places
}
func (f *fakeLog) KeepKeys(on bool) { f.keys = on }
func (f *fakeLog) Paused() bool     { return f.paused }
func (f *fakeLog) Holders(i wire.Index) int {
	if f.asked == nil {
		f.asked = map[wire.Index]bool{}
	}
	f.asked[i] = true
	return max(f.holders, 1)
}
func (f *fakeLog) Leading() (wire.Term, bool) { return f.term, !f.following }
func (f *fakeLog) NextOffset() wire.Offset    { return f.next }
func (f *fakeLog) Reserve(n int64, _ bool) error {
	if f.space > 0 && n > f.space {
		return log.ErrDiskFull
	}
	return f.reserve
}
func (f *fakeLog) Trim(start wire.Offset) { f.trimmed = start }
func (f *fakeLog) RetentionPoint(_ int64, maxAge time.Duration, maxBytes int64) (wire.Offset, bool) {
	f.maxAge, f.maxBytes = maxAge, maxBytes
	return f.retain, f.retain > 0
}

func (f *fakeLog) Propose(data []byte) (wire.Index, error) {
	if f.propose != nil {
		return 0, f.propose
	}
	_, count, _, _, err := wire.ParseEntryPrefix(data)
	if err != nil {
		panic(err)
	}
	if f.space > 0 {
		f.space -= wire.FrameSize(len(data) - wire.EntryPrefixSize)
	}
	if size := wire.FrameSize(len(data) - wire.EntryPrefixSize); count > 0 {
		f.records += size
	} else {
		f.control += size
	}
	f.next += wire.Offset(count)
	f.proposed = append(f.proposed, data)
	f.data = data
	if f.immediate {
		f.commit(1)
	}
	return f.applied + wire.Index(len(f.proposed)), nil
}

// commit applies the n oldest entries.
func (f *fakeLog) commit(n int) {
	for range n {
		data := f.proposed[0]
		f.proposed = f.proposed[1:]
		kind, count, ms, body, err := wire.ParseEntryPrefix(data)
		if err != nil {
			panic(err)
		}
		f.applied++
		f.part.Apply(Entry{
			Index: f.applied, Term: f.term, Kind: kind, RecordCount: count, BaseOffset: f.at, AppendTimeMs: ms, Body: body,
		})
		f.at += wire.Offset(count)
	}
}

type outcome struct {
	tag     uint64
	receipt wire.Receipt
	code    wire.ErrorCode
}

type recorder struct{ outcomes []outcome }

func (r *recorder) Appended(tag uint64, receipt wire.Receipt, code wire.ErrorCode) {
	r.outcomes = append(r.outcomes, outcome{tag, receipt, code})
}

// take returns the outcomes so far and forgets them.
func (r *recorder) take() []outcome {
	o := r.outcomes
	r.outcomes = nil
	return o
}

type harness struct {
	t    testing.TB
	log  *fakeLog
	part *Partition
	got  recorder
	tag  uint64
}

func newHarness(t testing.TB) *harness {
	h := &harness{t: t, log: &fakeLog{term: 3}}
	h.part = New(Config{Log: h.log, State: NewState(), Synced: true})
	h.log.part = h.part
	h.part.Bind(h.log)
	return h
}

// send puts a batch of count records into the mailbox and returns its tag.
func (h *harness) send(producer int64, epoch int16, sequence int32, count int) uint64 {
	h.t.Helper()
	return h.sendAcks(producer, epoch, sequence, count, wire.AcksQuorum)
}

func (h *harness) sendAcks(producer int64, epoch int16, sequence int32, count int, acks wire.Acks) uint64 {
	h.t.Helper()
	batch := testBatch(h.t, producer, epoch, sequence, count)
	info, err := wire.ParseBatch(batch)
	require.NoError(h.t, err)
	h.tag++
	require.NoError(h.t, h.part.Append(Append{Batch: batch, Info: info, Acks: acks, Receiver: &h.got, Tag: h.tag}))
	return h.tag
}

func ok(tag uint64, offset wire.Offset) outcome {
	return outcome{tag, wire.Receipt{BaseOffset: offset, Epoch: 3, AppendTimeMs: 1000, Replicas: 1, Synced: true}, wire.CodeOK}
}

func duplicate(tag uint64, offset wire.Offset) outcome {
	o := ok(tag, offset)
	o.receipt.Duplicate = true
	return o
}

func refused(tag uint64, code wire.ErrorCode) outcome { return outcome{tag: tag, code: code} }

// R-X-11: the receipt says how many replicas are known to hold the batch.
func TestR_X_11_ReceiptsCountTheReplicas(t *testing.T) {
	h := newHarness(t)
	first := h.send(1, 0, 0, 1)
	leader := h.sendAcks(-1, 0, 0, 1, wire.AcksLeader)
	require.False(t, h.part.Turn(1000, 0))
	require.Equal(t, []outcome{{leader, wire.Receipt{BaseOffset: 1, Epoch: 3, AppendTimeMs: 1000, Replicas: 1}, wire.CodeOK}}, h.got.take(), "the leader alone, and in memory")
	h.log.holders = 2
	h.log.commit(1)
	want := ok(first, 0)
	want.receipt.Replicas = 2
	require.Equal(t, []outcome{want}, h.got.take())
	require.Equal(t, map[wire.Index]bool{1: true}, h.log.asked)

	// A duplicate lies at or below what was applied last.
	h.send(2, 0, 0, 1)
	h.part.Turn(1000, 0)
	h.log.commit(1)
	h.got.take()
	clear(h.log.asked)
	h.log.holders = 3
	again := h.send(1, 0, 0, 1)
	h.part.Turn(1000, 0)
	want = duplicate(again, 0)
	want.receipt.Replicas = 3
	require.Equal(t, []outcome{want}, h.got.take())
	require.Equal(t, map[wire.Index]bool{2: true}, h.log.asked)
}

// R-SIB-25: a partition that holds as much as its threshold says refuses more, for
// certain, until there is room.
func TestR_SIB_25_FullPartitionsRefuse(t *testing.T) {
	h := newHarness(t)
	h.part.SetThreshold(Threshold{Records: 3, Bytes: 1000})
	first := h.send(1, 0, 0, 2)
	h.part.Turn(1000, 0)
	h.log.commit(1)
	require.False(t, h.part.Full())
	second := h.send(1, 0, 2, 2)
	h.part.Turn(1000, 0)
	h.log.commit(1)
	require.Equal(t, []outcome{ok(first, 0), ok(second, 2)}, h.got.take(), "the entry that reaches it is taken")
	require.True(t, h.part.Full())
	third := h.send(1, 0, 4, 1)
	h.part.Turn(1000, 0)
	require.Equal(t, []outcome{refused(third, wire.CodePartitionFull)}, h.got.take())
	require.True(t, wire.CodePartitionFull.Rejected() && wire.CodePartitionFull.Retriable())
	require.Empty(t, h.log.proposed)

	h.log.retain = 2
	h.part.SetPolicy(Retention{Bytes: 1}, true)
	h.part.Retain(1000)
	h.log.commit(1) // the start is at 2
	h.part.Turn(1000, 0)
	require.False(t, h.part.Full(), "also without records that ask")
	third = h.send(1, 0, 4, 1)
	h.part.Turn(1000, 0)
	h.log.commit(1)
	require.Equal(t, []outcome{ok(third, 4)}, h.got.take())

	// Several entries that waited together do not slip in behind the one that fills it.
	h.part.SetThreshold(Threshold{Bytes: 1000})
	h.log.bytes = 999
	h.part.Turn(1000, 0)
	require.False(t, h.part.Full())
	h.log.bytes = 1000
	fourth := h.send(1, 0, 5, 1)
	h.part.Turn(1000, 0)
	require.Equal(t, []outcome{refused(fourth, wire.CodePartitionFull)}, h.got.take())
	h.part.SetThreshold(Threshold{})
	h.part.Turn(1000, 0)
	require.False(t, h.part.Full())
}

// While leadership is handed over raft drops proposals: nothing is proposed that
// would have to be answered as unknown.
func TestNothingIsProposedWhileThePartitionIsPaused(t *testing.T) {
	h := newHarness(t)
	first := h.send(1, 0, 0, 1)
	h.part.Turn(1000, 0)
	h.log.paused = true
	second := h.send(1, 0, 1, 1)
	require.False(t, h.part.Turn(1000, 0))
	require.Len(t, h.log.proposed, 1)
	require.Empty(t, h.got.take())

	// The transfer fails: it goes on where it was.
	h.log.paused = false
	h.log.commit(1)
	h.part.Turn(1000, 0)
	h.log.commit(1)
	require.Equal(t, []outcome{ok(first, 0), ok(second, 1)}, h.got.take())
}

// A replica that leads no longer answers what it did not propose as certain, and says
// who leads.
func TestWhatWasNotProposedIsRejectedWithTheLeader(t *testing.T) {
	h := newHarness(t)
	h.log.reserve = log.ErrNotReady
	held := h.send(1, 0, 0, 1)
	h.part.Turn(1000, 0) // takes it out of the mailbox, and has no room for it yet
	waits := h.send(1, 0, 1, 1)
	require.Empty(t, h.got.take())

	h.log.following = true
	h.part.Turn(1000, 0)
	require.Empty(t, h.got.take(), "nobody has said yet who leads")
	h.part.Reject(wire.NotLeader(7, 4))
	hint := wire.Receipt{BaseOffset: 7<<32 | 4}
	require.Equal(t, []outcome{{held, hint, wire.CodeNotLeader}, {waits, hint, wire.CodeNotLeader}}, h.got.take())
	require.True(t, h.part.Idle())
	h.part.Reject(wire.NotLeader(7, 4))
	require.Empty(t, h.got.take())
}

func TestBatchesThatWaitTogetherBecomeOneEntry(t *testing.T) {
	h := newHarness(t)
	a, b := h.send(1, 0, 0, 2), h.send(2, 0, 0, 3)
	require.False(t, h.part.Turn(1000, 0))
	require.Len(t, h.log.proposed, 1)
	require.Empty(t, h.got.take(), "nothing is answered before it is committed")
	body := h.log.proposed[0][wire.EntryPrefixSize:]
	first, rest, err := wire.NextBodyBatch(body)
	require.NoError(t, err)
	second, rest, err := wire.NextBodyBatch(rest)
	require.NoError(t, err)
	require.Empty(t, rest)
	for i, batch := range [][]byte{first.Batch, second.Batch} {
		info, err := wire.ParseBatch(batch)
		require.NoError(t, err)
		require.Equal(t, []wire.Offset{0, 2}[i], info.BaseOffset)
		require.Equal(t, int32(3), info.LeaderEpoch)
	}
	h.log.commit(1)
	require.Equal(t, []outcome{ok(a, 0), ok(b, 2)}, h.got.take())
	require.True(t, h.part.Idle())
}

func TestGroupCommitHoldsBatchesBackWhileAnEntryIsOnItsWay(t *testing.T) {
	h := newHarness(t)
	h.send(1, 0, 0, 1)
	h.part.Turn(1000, 0)
	h.send(1, 0, 1, 1)
	h.send(1, 0, 2, 1)
	h.part.Turn(1000, 0)
	require.Len(t, h.log.proposed, 1, "little waits: it joins the next entry")
	h.log.commit(1)
	h.part.Turn(1000, 0)
	require.Len(t, h.log.proposed, 1)
	h.log.commit(1)
	require.Equal(t, []outcome{ok(1, 0), ok(2, 1), ok(3, 2)}, h.got.take())
}

func TestRuleR3_DuplicateOfAnAppliedBatchGetsItsOffset(t *testing.T) {
	h := newHarness(t)
	h.log.immediate = true
	h.send(1, 0, 0, 2)
	h.part.Turn(1000, 0)
	h.send(7, 0, 0, 5)
	h.part.Turn(1000, 0)
	h.send(1, 0, 2, 2)
	h.part.Turn(1000, 0)
	h.got.take()
	again := h.send(1, 0, 0, 2)
	later := h.send(1, 0, 2, 2)
	h.part.Turn(1000, 0)
	require.Equal(t, []outcome{duplicate(again, 0), duplicate(later, 7)}, h.got.take())
	require.Equal(t, wire.Offset(9), h.log.next, "duplicates take no offsets")
}

func TestRuleR3_DuplicateOfAPendingBatchWaitsForTheOriginal(t *testing.T) {
	h := newHarness(t)
	original := h.send(1, 0, 0, 2)
	h.part.Turn(1000, 0)
	large := testBatch(t, 9, 0, 0, groupBytes/10) // enough to be proposed at once
	info, err := wire.ParseBatch(large)
	require.NoError(t, err)
	again := h.send(1, 0, 0, 2)
	require.NoError(t, h.part.Append(Append{Batch: large, Info: info, Acks: wire.AcksNone}))
	h.part.Turn(1000, 0)
	require.Empty(t, h.got.take())
	h.log.commit(1)
	require.Equal(t, []outcome{duplicate(again, 0), ok(original, 0)}, h.got.take())
}

func TestSequencesAreScreenedByTheLeader(t *testing.T) {
	h := newHarness(t)
	h.log.immediate = true
	turn := func(tag uint64) outcome {
		h.part.Turn(1000, 0)
		o := h.got.take()
		require.Len(t, o, 1)
		require.Equal(t, tag, o[0].tag)
		return o[0]
	}
	require.Equal(t, wire.CodeUnknownProducer, turn(h.send(1, 0, 5, 1)).code, "an unknown producer begins at 0")
	require.Equal(t, wire.CodeOK, turn(h.send(1, 4, 0, 3)).code)
	require.Equal(t, wire.CodeOutOfSequence, turn(h.send(1, 4, 4, 1)).code, "3 is missing")
	require.Equal(t, wire.CodeFenced, turn(h.send(1, 3, 3, 1)).code, "an old epoch")
	require.Equal(t, wire.CodeOutOfSequence, turn(h.send(1, 5, 3, 1)).code, "a new epoch begins at 0")
	require.Equal(t, wire.CodeOK, turn(h.send(1, 5, 0, 1)).code)
	require.Equal(t, wire.CodeFenced, turn(h.send(1, 4, 3, 1)).code)
}

func TestAGapInOneBatchDoesNotHoldUpOthers(t *testing.T) {
	h := newHarness(t)
	a := h.send(1, 0, 0, 1)
	gap := h.send(1, 0, 9, 4)
	b := h.send(2, 0, 0, 2)
	h.part.Turn(1000, 0)
	require.Equal(t, []outcome{refused(gap, wire.CodeOutOfSequence)}, h.got.take())
	h.log.commit(1)
	require.Equal(t, []outcome{ok(a, 0), ok(b, 1)}, h.got.take())
}

func TestRuleR3_DuplicateIsNotTakenForABatchOfAnOlderEpoch(t *testing.T) {
	h := newHarness(t)
	older := h.send(1, 0, 0, 3)
	newer := h.send(1, 1, 0, 3)
	h.part.Turn(1000, 0)
	again := h.send(1, 1, 0, 3)
	large := testBatch(t, 9, 0, 0, groupBytes/10) // enough to be screened at once
	info, err := wire.ParseBatch(large)
	require.NoError(t, err)
	require.NoError(t, h.part.Append(Append{Batch: large, Info: info, Acks: wire.AcksNone}))
	h.part.Turn(1000, 0)
	h.log.commit(1)
	require.ElementsMatch(t, []outcome{ok(older, 0), ok(newer, 3), duplicate(again, 3)}, h.got.take())
}

func TestDuplicateOfARecordFromAWeakerSyncModeIsNotCalledSynced(t *testing.T) {
	h := newHarness(t)
	h.log.immediate = true
	h.part.SetPolicy(Retention{}, false)
	h.send(1, 0, 0, 2)
	h.part.Turn(1000, 0)
	h.part.SetPolicy(Retention{}, true)
	h.send(1, 0, 2, 2)
	h.part.Turn(1000, 0)
	h.got.take()
	weak, strong := h.send(1, 0, 0, 2), h.send(1, 0, 2, 2)
	h.part.Turn(1000, 0)
	want := duplicate(weak, 0)
	want.receipt.Synced = false
	require.Equal(t, []outcome{want, duplicate(strong, 2)}, h.got.take())
}

// A record proposed in a weaker mode and committed after the change was acknowledged
// by nothing but the page cache.
func TestARecordOnItsWayWhenTheModeChangesIsNotCalledSynced(t *testing.T) {
	h := newHarness(t)
	h.part.SetPolicy(Retention{}, false)
	weak := h.send(1, 0, 0, 2)
	h.part.Turn(1000, 0)
	twice := h.send(1, 0, 0, 2)
	strong := h.send(2, 0, 0, 1)
	h.part.SetPolicy(Retention{}, true)
	h.log.commit(1)
	h.part.Turn(1000, 0)
	h.log.commit(1)
	want, again := ok(weak, 0), duplicate(twice, 0)
	want.receipt.Synced, again.receipt.Synced = false, false
	require.Equal(t, []outcome{want, again, ok(strong, 2)}, h.got.take())
}

func TestTheLogLearnsTheStartOfARestoredState(t *testing.T) {
	h := newHarness(t)
	saved := NewState()
	saved.start, saved.next = 40, 70
	require.NoError(t, h.part.state.Restore(saved.Save(nil)))
	h.part.Bind(h.log)
	require.Equal(t, wire.Offset(40), h.log.trimmed)
}

func TestRuleR4_LeaderAcksComeFromMemoryAndSaySo(t *testing.T) {
	h := newHarness(t)
	tag := h.sendAcks(wire.NoProducerID, -1, -1, 2, wire.AcksLeader)
	h.sendAcks(wire.NoProducerID, -1, -1, 2, wire.AcksNone)
	h.part.Turn(1000, 0)
	want := ok(tag, 0)
	want.receipt.Synced = false
	require.Equal(t, []outcome{want}, h.got.take())
	h.log.commit(1)
	require.Empty(t, h.got.take())
}

func TestLostLeadershipAnswersWhatIsOnItsWayAndForgetsTheOverlay(t *testing.T) {
	h := newHarness(t)
	tag := h.send(1, 0, 0, 1)
	h.part.Turn(1000, 0)
	h.log.following = true
	h.part.Turn(1000, 0)
	require.Equal(t, []outcome{refused(tag, wire.CodeUnavailable)}, h.got.take())
	// The entry did not survive; the next leader's log is empty.
	h.log.proposed, h.log.next, h.log.term, h.log.following = nil, 0, 4, false
	again := h.send(1, 0, 0, 1)
	h.part.Turn(1000, 0)
	h.log.commit(1)
	got := h.got.take()
	require.Len(t, got, 1)
	require.Equal(t, again, got[0].tag)
	require.Equal(t, wire.CodeOK, got[0].code)
	require.False(t, got[0].receipt.Duplicate)
}

// RULES R3: an entry of the next leader that has the offset of one of ours, applied before
// this one knows that it is deposed, is no answer for ours.
func TestRuleR3_AnEntryOfAnotherTermAcknowledgesNothing(t *testing.T) {
	h := newHarness(t)
	tag := h.send(1, 0, 0, 1)
	h.part.Turn(1000, 0)
	ours := h.log.proposed
	require.Len(t, ours, 1)
	h.log.term = 4 // the next leader's log has a record of its own there
	h.log.commit(1)
	require.Empty(t, h.got.take())
	h.log.following = true
	h.part.Turn(1000, 0)
	require.Equal(t, []outcome{refused(tag, wire.CodeUnavailable)}, h.got.take())
}

func TestADroppedProposalGivesOffsetsAndSequencesBack(t *testing.T) {
	h := newHarness(t)
	h.log.propose = wire.CodeUnavailable
	tag := h.send(1, 0, 0, 2)
	h.part.Turn(1000, 0)
	require.Equal(t, []outcome{refused(tag, wire.CodeUnavailable)}, h.got.take())
	h.log.propose = nil
	again := h.send(1, 0, 0, 2)
	h.part.Turn(1000, 0)
	h.log.commit(1)
	require.Equal(t, []outcome{ok(again, 0)}, h.got.take())
}

// The batch that is taken back was the first of a new epoch: the older epoch, whose
// batch is still on its way, goes on.
func TestADroppedProposalGivesTheEpochBack(t *testing.T) {
	h := newHarness(t)
	first := h.send(1, 0, 0, 2)
	h.part.Turn(1000, 0)
	h.log.propose = wire.CodeUnavailable
	raised := h.send(1, 1, 0, groupBytes/10) // enough to be proposed at once
	h.part.Turn(1000, 0)
	require.Equal(t, []outcome{refused(raised, wire.CodeUnavailable)}, h.got.take())
	h.log.propose = nil
	second := h.send(1, 0, 2, groupBytes/10)
	h.part.Turn(1000, 0)
	h.log.commit(2)
	require.Equal(t, []outcome{ok(first, 0), ok(second, 2)}, h.got.take())
}

func TestAFullDiskRefusesRecordsAndAPreparationDelaysThem(t *testing.T) {
	h := newHarness(t)
	h.log.reserve = log.ErrNotReady
	tag := h.send(1, 0, 0, 1)
	h.part.Turn(1000, 0)
	require.Empty(t, h.got.take())
	h.log.reserve = log.ErrDiskFull
	h.part.Turn(1000, 0)
	require.Equal(t, []outcome{refused(tag, wire.CodeDiskFull)}, h.got.take())
	h.log.reserve = nil
	again := h.send(1, 0, 0, 1)
	h.part.Turn(1000, 0)
	h.log.commit(1)
	require.Equal(t, []outcome{ok(again, 0)}, h.got.take())
}

func TestWhatCameWhileDraftsWereHeldIsNotForgotten(t *testing.T) {
	h := newHarness(t)
	h.log.reserve = log.ErrNotReady
	held := h.send(1, 0, 0, 1)
	require.False(t, h.part.Turn(1000, 0), "a job will bring the next turn")
	later := h.send(2, 0, 0, 1)
	h.log.reserve = log.ErrDiskFull
	require.True(t, h.part.Turn(1000, 0), "nothing else would bring the next turn")
	require.False(t, h.part.Turn(1000, 0))
	require.Equal(t, []outcome{refused(held, wire.CodeDiskFull), refused(later, wire.CodeDiskFull)}, h.got.take())
}

func TestAFullMailboxPushesBack(t *testing.T) {
	h := newHarness(t)
	h.part.mailbox.limit = 200
	batch := testBatch(t, 1, 0, 0, 1)
	info, err := wire.ParseBatch(batch)
	require.NoError(t, err)
	a := Append{Batch: batch, Info: info, Acks: wire.AcksQuorum, Receiver: &h.got}
	var taken int
	for err = h.part.Append(a); err == nil; err = h.part.Append(a) {
		taken++
		require.Less(t, taken, 4)
	}
	require.ErrorIs(t, err, ErrMailboxFull)
	h.part.Turn(1000, 0)
	require.NoError(t, h.part.Append(a))
}

func TestEntriesAreCutAtTheirLimit(t *testing.T) {
	h := newHarness(t)
	batch := testBatch(t, wire.NoProducerID, -1, -1, 20_000)
	info, err := wire.ParseBatch(batch)
	require.NoError(t, err)
	const n = 12
	for i := range n {
		require.NoError(t, h.part.Append(Append{Batch: batch, Info: info, Acks: wire.AcksQuorum, Receiver: &h.got, Tag: uint64(i)}))
	}
	for h.part.Turn(1000, 0) {
	}
	for _, data := range h.log.proposed {
		require.LessOrEqual(t, len(data), wire.EntryPrefixSize+MaxEntryBytes)
	}
	require.Greater(t, len(h.log.proposed), 1)
	h.log.commit(len(h.log.proposed))
	require.Len(t, h.got.outcomes, n)
}

func TestCloseAnswersEverythingThatWaits(t *testing.T) {
	h := newHarness(t)
	a := h.send(1, 0, 0, 1)
	h.part.Turn(1000, 0)
	b := h.send(1, 0, 1, 1)
	h.part.Close(wire.CodeShuttingDown)
	require.Equal(t, []outcome{refused(a, wire.CodeShuttingDown), refused(b, wire.CodeShuttingDown)}, h.got.take())
	require.ErrorIs(t, h.part.Append(Append{}), wire.CodeShuttingDown)
}

func TestRetentionIsACommandInTheLog(t *testing.T) {
	h := newHarness(t)
	h.log.immediate = true
	h.send(1, 0, 0, 10)
	h.part.Turn(1000, 0)
	h.log.retain = 6
	h.part.Retain(2000)
	require.Equal(t, wire.Offset(0), h.part.state.Start(), "no policy, no trim")
	h.part.SetPolicy(Retention{Bytes: 1}, true)
	h.part.Retain(2000)
	require.Equal(t, wire.Offset(6), h.part.state.Start())
	require.Equal(t, wire.Offset(6), h.log.trimmed)
	h.log.retain = 4
	h.part.Retain(3000)
	require.Equal(t, wire.Offset(6), h.part.state.Start(), "the start never moves back")
}

// Decision 9: on a full disk records leave room for trims, and trims leave room for
// the elections of restarts, a frame header each.
func TestF12_RecordsLeaveRoomForTrimsAndTheseForElections(t *testing.T) {
	h := newHarness(t)
	h.log.immediate = true
	h.log.space = 20 << 10
	h.part.SetPolicy(Retention{Bytes: 1}, true)
	for sequence := int32(0); ; sequence++ {
		h.send(1, 0, sequence, 1)
		h.part.Turn(1000, 0)
		if h.got.take()[0].code == wire.CodeDiskFull {
			break
		}
	}
	trims := 0
	for h.log.retain = 1; ; h.log.retain++ {
		before := h.part.state.Start()
		h.part.Retain(2000)
		if h.part.state.Start() == before {
			break
		}
		trims++
	}
	require.GreaterOrEqual(t, trims, 20)
	require.GreaterOrEqual(t, h.log.space/wire.FrameHeaderSize, int64(30), "elections")
}

func TestAMissingRetentionLimitIsNoLimit(t *testing.T) {
	h := newHarness(t)
	h.log.immediate = true
	h.part.SetPolicy(Retention{Age: time.Hour}, true)
	h.part.Turn(1000, 0)
	h.part.Retain(2000)
	require.Equal(t, time.Hour, h.log.maxAge)
	require.Negative(t, h.log.maxBytes, "the log takes 0 bytes for a limit that everything exceeds")
	h.part.SetPolicy(Retention{Bytes: 10}, true)
	h.part.Retain(2000)
	require.Negative(t, h.log.maxAge)
	require.Equal(t, int64(10), h.log.maxBytes)
}

// RULES L8: what the damaged entry said about producers is lost, so nobody is
// refused or deduplicated by what stands in the table before it.
func TestRuleL8_ADamagedEntryForgetsTheProducers(t *testing.T) {
	h := newHarness(t)
	h.log.immediate = true
	h.send(1, 0, 0, 1)
	h.part.Turn(1000, 0)
	require.Equal(t, []outcome{ok(1, 0)}, h.got.take())
	h.part.Apply(Entry{Kind: wire.KindRecords, Term: 2, RecordCount: 3, BaseOffset: 1, Damaged: true})
	h.log.next, h.log.at = 4, 4
	require.Equal(t, wire.Offset(4), h.part.state.next)
	tag := h.send(1, 0, 1, 1) // it may have been in there, or a later one
	h.part.Turn(1000, 0)
	require.Equal(t, []outcome{refused(tag, wire.CodeUnknownProducer)}, h.got.take())
	tag = h.send(1, 1, 0, 1)
	h.part.Turn(1000, 0)
	require.Equal(t, []outcome{ok(tag, 4)}, h.got.take())
}

func TestStateIsTheSameAfterSaveAndRestore(t *testing.T) {
	h := newHarness(t)
	h.log.immediate = true
	for i := range int32(5) {
		h.send(1, 0, i*2, 2)
		h.send(2, 0, i, 1)
		h.part.Turn(1000, 0)
	}
	saved := h.part.state.Save(nil)
	restored := NewState()
	require.NoError(t, restored.Restore(saved))
	require.Equal(t, saved, restored.Save(nil))
	require.Equal(t, wire.Offset(15), restored.next)
	offset, found := restored.producers.byID[1].find(4, 2)
	require.True(t, found)
	require.Equal(t, wire.Offset(6), offset)

	for cut := range saved {
		require.ErrorIs(t, NewState().Restore(saved[:cut]), ErrState, "cut at %d", cut)
	}
	newer := append([]byte(nil), saved...)
	newer[0] = stateVersion + 1
	require.ErrorIs(t, NewState().Restore(newer), log.ErrTooNew)
	require.NotErrorIs(t, NewState().Restore(newer), ErrState)
}

// A snapshot is encoded by a worker while the owner goes on.
func TestASnapshotStaysWhatItWas(t *testing.T) {
	s := NewState()
	apply := func(producer int64, epoch int16, sequence int32) {
		info := wire.BatchInfo{ProducerID: producer, ProducerEpoch: epoch, BaseSequence: sequence, RecordCount: 1}
		s.producers.append(&info, s.next, 1000)
		s.next++
	}
	for id := range int64(4) {
		apply(id, 0, 0)
	}
	apply(2, 0, 1) // a second run
	saved, save := s.Save(nil), s.Snapshot()
	apply(0, 0, 1)
	apply(1, 1, 0)
	apply(2, 0, 2) // grows the run that the snapshot shares
	apply(9, 0, 0)
	s.producers.expire(1000 + ProducerExpiryMs)
	again := s.Snapshot()
	require.Equal(t, saved, save(nil))
	require.Equal(t, s.Save(nil), again(nil))
	require.NotEqual(t, saved, s.Save(nil))
}

func TestSequencesWrapAtTheirEnd(t *testing.T) {
	p := &producer{}
	p.add(1<<31-3, 2, 100)
	require.Equal(t, int32(1<<31-1), p.next)
	p.add(1<<31-1, 3, 102)
	require.Equal(t, int32(2), p.next)
	require.Len(t, p.runs, 1)
	offset, found := p.find(0, 2)
	require.True(t, found)
	require.Equal(t, wire.Offset(103), offset)
	_, found = p.find(1, 2)
	require.False(t, found, "2 was not written")
}

func TestTheProducerTableForgetsTheMostSilent(t *testing.T) {
	table := newProducers()
	for i := range int64(MaxProducers) {
		table.append(&wire.BatchInfo{ProducerID: i, RecordCount: 1}, wire.Offset(i), 1000)
	}
	table.append(&wire.BatchInfo{ProducerID: 0, BaseSequence: 1, RecordCount: 1}, 1<<20, 1000)
	table.append(&wire.BatchInfo{ProducerID: MaxProducers, RecordCount: 1}, 1<<21, 1000)
	require.Len(t, table.byID, MaxProducers)
	require.NotContains(t, table.byID, int64(1))
	require.Contains(t, table.byID, int64(0))
	table.append(&wire.BatchInfo{ProducerID: 5, BaseSequence: 1, RecordCount: 1}, 1<<22, 1000+ProducerExpiryMs)
	require.Len(t, table.byID, 1, "all others were silent for longer than the expiry")
}

// RELIABILITY F16: whoever was forgotten may have been here, so its first batch is
// not taken for new: not by silence, not by a clock that jumps, not for want of room.
func TestF16_AForgottenProducerDoesNotBeginAgain(t *testing.T) {
	const years = 10 * 365 * 24 * 3600 * 1000
	forget := map[string]func(h *harness){
		"by a clock that jumps": func(h *harness) { h.sendAt(1_000+years, 50) },
		"for want of room": func(h *harness) {
			for i := range int64(MaxProducers) {
				h.sendAt(1_000, 50+i)
			}
		},
	}
	for name, forget := range forget {
		t.Run(name, func(t *testing.T) {
			h := newHarness(t)
			h.log.immediate = true
			h.sendAt(1_000, 7)
			h.send(9, 4, 0, 1)
			h.part.Turn(1_000, 0)
			forget(h)
			require.NotContains(t, h.part.state.producers.byID, int64(7))
			require.NotContains(t, h.part.state.producers.byID, int64(9))
			restored := NewState()
			require.NoError(t, restored.Restore(h.part.state.Save(nil)))
			require.Equal(t, h.part.state.Save(nil), restored.Save(nil))
			h.part.state.producers = restored.producers
			h.got.take()
			for _, c := range []struct {
				what     string
				producer int64
				epoch    int16
				sequence int32
				code     wire.ErrorCode
			}{
				{"the first batch again", 7, 0, 0, wire.CodeUnknownProducer},
				{"one that may never have been here", 6, 0, 0, wire.CodeUnknownProducer},
				{"of a name, again", 9, 4, 0, wire.CodeUnknownProducer},
				{"of a name, a later batch", 9, 5, 3, wire.CodeUnknownProducer},
				{"of a name, an older holder", 9, 3, 0, wire.CodeFenced},
				{"of a name, an older holder's later batch", 9, 3, 8, wire.CodeFenced},
			} {
				tag := h.send(c.producer, c.epoch, c.sequence, 1)
				h.part.Turn(1_000, 0)
				require.Equal(t, []outcome{refused(tag, c.code)}, h.got.take(), c.what)
			}
			next := h.part.state.next
			a, b := h.send(9, 5, 0, 1), h.send(1<<40, 0, 0, 1)
			h.part.Turn(1_000, 0)
			require.Equal(t, []outcome{ok(a, next), ok(b, next+1)}, h.got.take(), "a new epoch and a new ID")
		})
	}
}

// A producer that sends is not silent, though a clock that jumped says so.
func TestF19_AJumpOfTheClockKeepsTheProducerThatSends(t *testing.T) {
	h := newHarness(t)
	h.log.immediate = true
	h.send(7, 0, 0, 1)
	h.part.Turn(1000, 0)
	h.send(7, 0, 1, 1)
	h.part.Turn(1000+2*ProducerExpiryMs, 0)
	h.got.take()
	tag := h.send(7, 0, 0, 1)
	h.part.Turn(1000, 0)
	answer := h.got.take()
	require.Len(t, answer, 1)
	require.Equal(t, tag, answer[0].tag)
	require.Equal(t, wire.CodeOK, answer[0].code)
	require.True(t, answer[0].receipt.Duplicate)
	require.Equal(t, wire.Offset(0), answer[0].receipt.BaseOffset)
}

// sendAt sends the first batch of a producer at a time.
func (h *harness) sendAt(nowMs, producer int64) {
	h.send(producer, 0, 0, 1)
	h.part.Turn(nowMs, 0)
}

func TestRetiredEpochsAreBounded(t *testing.T) {
	table := newProducers()
	for i := range int64(MaxRetired + 5) {
		table.append(&wire.BatchInfo{ProducerID: i, ProducerEpoch: 1, RecordCount: 1}, wire.Offset(i), 1000)
		table.removeAll()
	}
	require.Len(t, table.retired, MaxRetired)
	require.Equal(t, retired{5, 1}, table.retired[0])
	require.Equal(t, int64(MaxRetired+5), table.forgotten)
}

// A state of version 1 ends behind the producers.
func TestAStateOfVersion1Restores(t *testing.T) {
	saved := NewState().Save(nil)
	old := append([]byte{1}, saved[1:len(saved)-12]...)
	s := NewState()
	require.NoError(t, s.Restore(old))
	require.Equal(t, saved, s.Save(nil))
	require.ErrorIs(t, NewState().Restore(append([]byte{1}, saved[1:]...)), ErrState)
}
