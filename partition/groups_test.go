package partition

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/log"
	"github.com/lockstepmq/lockstep/partition/group"
	"github.com/lockstepmq/lockstep/wire"
)

// world is what groups need, as far as tests need it.
type world struct {
	h         *harness
	scans     int
	scan      func(from wire.Offset) // answers instead
	confirms  []func(error)
	hold      bool // confirmations wait
	term      group.Term
	uncovered [][]uint32
	expired   uint64
	rounds    []*LetterRound // of letters, that are not over
	elsewhere error          // another partition coordinates
}

func (w *world) Scan(from wire.Offset, _ int) {
	w.scans++
	if w.scan != nil {
		w.scan(from)
		return
	}
	if from >= w.h.log.at {
		w.h.part.Scanned(nil, nil)
		return
	}
	w.h.part.Scanned([]log.Batch{{Base: from, Count: int(w.h.log.at - from)}}, nil)
}
func (w *world) NextOf(group.ID, group.Scope, bool, wire.Offset, wire.Offset, func(wire.Offset) bool) {
}
func (w *world) Locate(_ int64, then func(wire.Offset, error)) { then(2, nil) }
func (w *world) Letters(r *LetterRound)                        { w.rounds = append(w.rounds, r) }
func (w *world) Expired(n uint64)                              { w.expired += n }
func (w *world) Uncovered(_ string, p []uint32)                { w.uncovered = append(w.uncovered, p) }
func (w *world) Coordinates() (group.Term, error)              { return w.term, w.elsewhere }
func (w *world) Partitions() []group.PartitionLoad {
	return []group.PartitionLoad{{Number: 0}, {Number: 1}, {Number: 2}}
}
func (w *world) Confirm(then func(error)) {
	if w.hold {
		w.confirms = append(w.confirms, then)
		return
	}
	then(nil)
}

// What is produced while somebody consumes is known without a scan.
func TestTheTailNeedsNoScan(t *testing.T) {
	h, w := newGroups(t)
	h.log.immediate, h.log.places = true, true
	h.part.Groups().Intend(20, []Intent{intent(7, "workers")})
	c := h.attach("workers", 1)
	h.turns(0)
	for range 10 {
		h.send(-1, 0, 0, 2)
		require.False(t, h.part.Turn(1000, 0))
	}
	require.Equal(t, 20, c.records())
	require.Zero(t, w.scans)
}

// Key tables are kept where a group asks for keys, as long as this replica leads it.
func TestTheLogKeepsKeysForWhoAsksForThem(t *testing.T) {
	h, _ := newGroups(t)
	h.log.immediate = true
	byKey := intent(8, "by key")
	byKey.Settings.Mode, byKey.Settings.Scope = wire.ModeSerial, wire.ScopeKey
	h.part.Groups().Intend(20, []Intent{intent(7, "workers"), byKey})
	h.attach("workers", 1)
	h.turns(0)
	require.False(t, h.log.keys)
	h.attach("by key", 2)
	h.turns(0)
	require.True(t, h.log.keys)
	h.log.following = true
	h.turns(0)
	require.False(t, h.log.keys)
}

// consumer notes what its link hears.
type consumer struct {
	attached  *wire.AttachResponse
	grants    []wire.Grant
	answers   []wire.OutcomeAnswer
	lost      []wire.Lost
	confirmed []uint64
	closed    error
	over      bool
}

func (c *consumer) Attached(r *wire.AttachResponse, err error) {
	c.attached, c.closed, c.over = r, err, err != nil
}
func (c *consumer) Deliver(d *group.Delivery)     { c.grants = append(c.grants, d.Grants...) }
func (c *consumer) Answer(a []wire.OutcomeAnswer) { c.answers = append(c.answers, a...) }
func (c *consumer) Revoke([]wire.Revoke)          {}
func (c *consumer) Lost(r []wire.Lost)            { c.lost = append(c.lost, r...) }
func (c *consumer) Confirmed(number uint64)       { c.confirmed = append(c.confirmed, number) }
func (c *consumer) Closed(err error)              { c.closed, c.over = err, true }

// records is how many records the consumer was granted.
func (c *consumer) records() (n int) {
	for _, g := range c.grants {
		n += int(g.Count)
	}
	return n
}

func newGroups(t testing.TB) (*harness, *world) {
	h := &harness{t: t, log: &fakeLog{term: 3}}
	w := &world{h: h}
	h.part = New(Config{Log: h.log, State: NewState(), Synced: true, Queue: true, Groups: w})
	h.log.part = h.part
	h.part.Bind(h.log)
	h.noOp()
	return h, w
}

// noOp applies the first entry of the term.
func (h *harness) noOp() {
	h.log.applied++
	h.part.Apply(Entry{Index: h.log.applied, Term: h.log.term, Kind: wire.KindNoOp})
}

var shared = wire.GroupSettings{Mode: wire.ModeShared}.WithDefaults()

func intent(id group.ID, name string) Intent {
	return Intent{ID: id, Version: uint64(id), Name: name, Settings: shared}
}

// turns gives the partition turns until nothing is left to do, at a time in ms.
func (h *harness) turns(ms int) {
	h.t.Helper()
	for n := 0; h.part.Turn(1000, time.Duration(ms)*time.Millisecond) || len(h.part.groups.inbox.results) > 0; n++ {
		require.Less(h.t, n, 100, "the turns do not end")
	}
}

func (h *harness) attach(name string, session byte, claims ...wire.Outcome) *consumer {
	h.t.Helper()
	c := new(consumer)
	require.NoError(h.t, h.part.Groups().Put(Input{Kind: InputAttach, Consumer: c, Group: name, Client: "test", Attach: &wire.AttachRequest{
		Group: name, Session: [16]byte{session}, Attempt: 1, Term: h.log.term, Capacity: 100, Refill: 100, Bytes: 1 << 20, Claims: claims,
	}}))
	return c
}

func (h *harness) put(in Input) {
	h.t.Helper()
	require.NoError(h.t, h.part.Groups().Put(in))
}

// ack acknowledges all that the consumer was granted.
func (h *harness) ack(c *consumer) {
	h.t.Helper()
	var o []wire.Outcome
	for _, g := range c.grants {
		o = append(o, wire.Outcome{Offset: g.Offset, Count: g.Count, Epoch: g.Epoch, Kind: wire.OutcomeAck})
	}
	c.grants = nil
	h.put(Input{Kind: InputOutcomes, Consumer: c, Outcomes: o})
}

// The whole way on one node: the metadata has a group, a consumer attaches before the
// partition has it, gets what is produced, and acknowledges it; the queue is empty then.
func TestAGroupConsumesAQueue(t *testing.T) {
	h, _ := newGroups(t)
	h.log.immediate = true
	h.send(-1, 0, 0, 3)
	h.turns(0)
	c := h.attach("workers", 1)
	h.turns(1)
	require.Nil(t, c.attached)
	h.part.Groups().Intend(20, []Intent{intent(7, "workers")})
	h.turns(2)
	require.NotNil(t, c.attached)
	require.EqualValues(t, 7, c.attached.Group)
	require.EqualValues(t, 3, c.attached.Term)
	require.Equal(t, 3, c.records())
	h.ack(c)
	h.turns(3)
	require.Equal(t, []wire.OutcomeAnswer{{Offset: 0, Count: 3, Epoch: c.answers[0].Epoch}}, c.answers)
	require.EqualValues(t, 3, h.part.state.Start())
	require.EqualValues(t, 3, h.log.trimmed)

	h.send(-1, 0, 0, 2)
	h.turns(4)
	require.Equal(t, 2, c.records())
	require.EqualValues(t, 3, c.grants[0].Offset)

	h.put(Input{Kind: InputHeartbeat, Consumer: c, Number: 9})
	h.turns(5)
	require.Equal(t, []uint64{9}, c.confirmed)
	require.True(t, h.part.Idle())
}

// While an entry is on its way, what comes waits and is one entry in the end.
func TestOutcomesOfManyTurnsAreOneEntry(t *testing.T) {
	h, _ := newGroups(t)
	h.log.immediate = true
	h.part.Groups().Intend(20, []Intent{intent(7, "workers")})
	c := h.attach("workers", 1)
	h.turns(0)
	for range 50 {
		h.send(-1, 0, 0, 1)
		h.turns(1)
	}
	require.Equal(t, 50, c.records())
	h.log.immediate = false
	for _, g := range c.grants {
		h.put(Input{Kind: InputOutcomes, Consumer: c, Outcomes: []wire.Outcome{{Offset: g.Offset, Count: g.Count, Epoch: g.Epoch, Kind: wire.OutcomeAck}}})
		h.turns(2)
	}
	require.Len(t, h.log.proposed, 1)
	require.Empty(t, c.answers)
	h.log.commit(1)
	h.turns(2)
	require.Len(t, h.log.proposed, 1)
	require.EqualValues(t, 1, h.part.state.Start())
	h.log.commit(1)
	require.EqualValues(t, 50, h.part.state.Start())
	var answered uint32
	for _, a := range c.answers {
		require.Equal(t, wire.CodeOK, a.Code)
		answered += a.Count
	}
	require.EqualValues(t, 50, answered)
}

// GROUPS 1 and 20: who has lost the leadership answers nothing, also when what it has
// proposed is applied later.
func TestADeposedLeaderAnswersNothing(t *testing.T) {
	h, _ := newGroups(t)
	h.log.immediate = true
	h.part.Groups().Intend(20, []Intent{intent(7, "workers")})
	c := h.attach("workers", 1)
	h.send(-1, 0, 0, 2)
	h.turns(0)
	h.log.immediate = false
	h.ack(c)
	h.turns(1)
	require.Len(t, h.log.proposed, 1)

	h.log.term, h.log.following = 4, true
	h.turns(2)
	require.ErrorIs(t, c.closed, wire.CodeNotLeader)
	require.Zero(t, h.part.Groups().Deadline())
	h.log.commit(1)
	require.Empty(t, c.answers)
	require.EqualValues(t, 2, h.part.state.Start())

	// It leads again: nobody is let in before the entry of its term is applied.
	h.log.term, h.log.following = 5, false
	again := h.attach("workers", 1)
	h.turns(3)
	require.False(t, again.over)
	require.Nil(t, again.attached)
	h.noOp()
	h.turns(4)
	require.NotNil(t, again.attached)
}

// GROUPS 3: an entry of the next leader, applied before this one knows that it is deposed, is
// not taken for one of its own.
func TestRule3_AnEntryOfAnotherTermAnswersNobody(t *testing.T) {
	h, _ := newGroups(t)
	h.log.immediate = true
	h.part.Groups().Intend(20, []Intent{intent(7, "workers")})
	c := h.attach("workers", 1)
	h.send(-1, 0, 0, 2)
	h.turns(0)
	h.log.immediate = false
	h.ack(c)
	h.turns(1)
	require.Len(t, h.log.proposed, 1)

	h.log.proposed = nil // overwritten by the next leader
	h.log.term, h.log.following = 4, true
	h.noOp()
	h.log.applied++
	h.part.Apply(Entry{Index: h.log.applied, Term: 4, Kind: wire.KindControl, Body: group.AppendHorizon(nil, 7, 1<<20)})
	require.Empty(t, c.answers)
	require.Zero(t, h.part.state.Start())
	h.turns(2)
	require.ErrorIs(t, c.closed, wire.CodeNotLeader)
	require.Empty(t, c.answers)
}

// What a leadership could not read the next one looks for at once: it does not wait until the one
// before would have tried again.
func TestTheNextLeadershipReadsAtOnce(t *testing.T) {
	h, w := newGroups(t)
	h.log.immediate = true
	h.part.Groups().Intend(20, []Intent{intent(7, "workers")})
	h.send(-1, 0, 0, 2)
	w.scan = func(wire.Offset) { h.part.Scanned(nil, log.ErrNotReady) }
	h.attach("workers", 1)
	h.turns(0)
	require.Equal(t, 1, w.scans)
	h.log.term, h.log.following = 4, true
	h.turns(0)

	h.log.term, h.log.following = 5, false
	w.scan = nil
	h.noOp()
	c := h.attach("workers", 1)
	h.turns(0)
	require.Equal(t, 2, c.records())
}

// Whoever waits at a replica that does not lead hears who does.
func TestWhoWaitsForAGroupIsToldWhoLeads(t *testing.T) {
	h, _ := newGroups(t)
	h.log.following = true
	c := h.attach("workers", 1)
	h.turns(0)
	require.NotZero(t, h.part.Waiting())
	h.part.Reject(wire.NotLeader(2, 9))
	require.ErrorIs(t, c.closed, wire.CodeNotLeader)
	require.Zero(t, h.part.Waiting())
}

func TestAGroupThatNobodyKnows(t *testing.T) {
	h, _ := newGroups(t)
	h.log.immediate = true
	var waiting []*consumer
	for range MaxUnknown + 1 {
		waiting = append(waiting, h.attach("nobody", 1))
	}
	h.turns(0)
	last := waiting[MaxUnknown]
	require.ErrorIs(t, last.closed, wire.CodeRetry)
	require.False(t, waiting[0].over)
	require.Equal(t, unknownWait, h.part.Groups().Deadline())
	h.turns(int(unknownWait / time.Millisecond))
	require.ErrorIs(t, waiting[0].closed, wire.CodeUnknownGroup)
	require.Zero(t, h.part.Groups().Deadline())
}

// What replicas may erase is an entry; it is the same on all, and in their saved states.
func TestRuleL7_WhatMayBeErasedIsACommandInTheLog(t *testing.T) {
	h, _ := newGroups(t)
	h.log.immediate = true
	h.part.Groups().Intend(20, []Intent{intent(7, "workers")})
	c := h.attach("workers", 1)
	h.send(-1, 0, 0, 5)
	h.turns(0)
	require.Equal(t, 5, c.records())
	h.put(Input{Kind: InputOutcomes, Consumer: c, Outcomes: []wire.Outcome{{Offset: 2, Count: 2, Kind: wire.OutcomeAck, Epoch: c.grants[0].Epoch}}})
	h.turns(1)
	runs, _ := h.part.state.Finished(0)
	require.Equal(t, []group.Span{{From: 2, To: 4}}, runs)
	require.Equal(t, byte(versionGroups), h.part.state.Save(nil)[0])

	require.False(t, h.part.Erase(1000, nil))
	require.True(t, h.part.Erase(1000, append(runs, group.Span{From: 4, To: 5}))) // which is not done
	erased, _ := h.part.state.Erased(0)
	require.Equal(t, []group.Span{{From: 2, To: 4}}, erased)
	runs, _ = h.part.state.Finished(0)
	require.Empty(t, runs)
	saved := h.part.state.Save(nil)
	require.Equal(t, byte(stateVersion), saved[0])
	restored := NewState()
	require.NoError(t, restored.Restore(saved))
	require.Equal(t, saved, restored.Save(nil))
	erased, _ = restored.Erased(0)
	require.Equal(t, []group.Span{{From: 2, To: 4}}, erased)
	require.Equal(t, saved, h.part.state.Snapshot()(nil))
	saved[0] = versionGroups
	require.ErrorIs(t, NewState().Restore(saved), ErrState)

	h.log.following = true
	require.False(t, h.part.Erase(1000, []group.Span{{From: 0, To: 1}}), "only a leader says so")
}

// A trim is an entry of ours too; the order of entries says whose outcomes are applied.
func TestATrimDoesNotTakeTheTurnOfAGroup(t *testing.T) {
	h, _ := newGroups(t)
	h.log.immediate = true
	h.part.SetPolicy(Retention{Age: time.Hour}, true)
	h.part.Groups().Intend(20, []Intent{intent(7, "workers")})
	c := h.attach("workers", 1)
	h.send(-1, 0, 0, 5)
	h.turns(0)
	h.log.immediate = false
	h.log.retain = 1
	h.part.Retain(1000)
	h.ack(c)
	h.put(Input{Kind: InputOutcomes, Consumer: c, Outcomes: []wire.Outcome{}})
	h.turns(1)
	h.log.commit(1)
	require.Empty(t, c.answers, "the ack is not applied yet, also that of the record that is gone")
	h.turns(1)
	h.log.commit(1)
	require.Len(t, c.answers, 1)
	require.Equal(t, wire.CodeOK, c.answers[0].Code)
	require.EqualValues(t, 5, h.part.state.Start())
}

// What consensus, the log or the memory budget does not take is proposed again.
func TestWhatIsNotProposedIsProposedLater(t *testing.T) {
	for name, stop := range map[string]func(h *harness, on bool){
		"by consensus": func(h *harness, on bool) {
			h.log.propose = map[bool]error{true: wire.CodeUnavailable}[on]
		},
		"by the log": func(h *harness, on bool) {
			h.log.reserve = map[bool]error{true: log.ErrNotReady}[on]
		},
		"while the leadership moves": func(h *harness, on bool) { h.log.paused = on },
	} {
		t.Run(name, func(t *testing.T) {
			h, _ := newGroups(t)
			h.log.immediate = true
			h.part.Groups().Intend(20, []Intent{intent(7, "workers")})
			stop(h, true)
			c := h.attach("workers", 1)
			h.turns(0)
			require.Nil(t, c.attached)
			stop(h, false)
			h.send(-1, 0, 0, 2)
			h.turns(1)
			require.NotNil(t, c.attached)
			require.Equal(t, 2, c.records())
			stop(h, true)
			h.ack(c)
			h.turns(2)
			require.Empty(t, c.answers)
			stop(h, false)
			h.turns(3)
			require.Len(t, c.answers, 1)
		})
	}
}

// An entry that is larger than the smallest buffer is paid for, and given back; if there
// is no memory left, smaller ones go on.
func TestControlEntriesArePaidFor(t *testing.T) {
	memory := NewMemory(64 << 10)
	h := &harness{t: t, log: &fakeLog{term: 3, immediate: true}}
	w := &world{h: h}
	h.part = New(Config{Log: h.log, State: NewState(), Queue: true, Groups: w, Memory: memory})
	h.log.part = h.part
	h.part.Bind(h.log)
	h.noOp()
	h.part.Groups().Intend(20, []Intent{intent(7, "workers")})
	h.turns(0)
	var all []*consumer
	for n := range 100 {
		c := new(consumer)
		all = append(all, c)
		h.put(Input{Kind: InputAttach, Consumer: c, Group: "workers", Attach: &wire.AttachRequest{
			Session: [16]byte{byte(n), 1}, Attempt: 1, Term: 3, Capacity: 10, Refill: 10, Name: string(make([]byte, 100)),
		}})
	}
	require.True(t, memory.used.Add(60<<10) > 0)
	h.turns(0)
	for _, c := range all {
		require.NotNil(t, c.attached)
	}
	require.EqualValues(t, 60<<10, memory.Used())
	memory.used.Add(-60 << 10)

	for n := range 100 {
		h.put(Input{Kind: InputLeave, Consumer: all[n]})
	}
	h.turns(1)
	require.Greater(t, cap(h.log.data), 4096)
	require.EqualValues(t, cap(h.log.data), memory.Used())
	h.part.Recycle(h.log.data)
	require.Zero(t, memory.Used())
}

func TestTheInboxIsBounded(t *testing.T) {
	h, _ := newGroups(t)
	c := new(consumer)
	for range MaxInboxBytes / 256 {
		h.put(Input{Kind: InputHeartbeat, Consumer: c})
	}
	require.ErrorIs(t, h.part.Groups().Put(Input{Kind: InputHeartbeat, Consumer: c}), ErrMailboxFull)
	h.put(Input{Kind: InputGone, Consumer: c})
	h.part.Close(wire.CodeShuttingDown)
	require.ErrorIs(t, h.part.Groups().Put(Input{Kind: InputGone, Consumer: c}), wire.CodeShuttingDown)

	h = newHarness(t)
	require.ErrorIs(t, h.part.Groups().Put(Input{Kind: InputHeartbeat}), wire.CodeUnsupported)
}

// The metadata says which groups there are; what is older than a group says nothing
// about it.
func TestGroupsFollowTheMetadata(t *testing.T) {
	h, _ := newGroups(t)
	h.log.immediate = true
	h.send(-1, 0, 0, 5)
	latest, offset, at := intent(8, "latest"), intent(9, "offset"), intent(10, "time")
	latest.Start.To, offset.Start, at.Start.To = "latest", wire.GroupStart{To: "offset", Offset: 4}, "time"
	at.Paused = true
	h.part.Groups().Intend(20, []Intent{intent(7, "earliest"), latest, offset, at})
	h.turns(0)
	floors := map[string]wire.Offset{}
	for g := range h.part.state.groups.All {
		floors[g.Name] = g.Done.Floor()
		require.Equal(t, g.Name == "time", g.Paused)
	}
	require.Equal(t, map[string]wire.Offset{"earliest": 0, "latest": 5, "offset": 4, "time": 2}, floors)
	require.Empty(t, h.part.Groups().located, "nothing is kept about a group that is there")

	c := h.attach("latest", 1)
	h.turns(1)
	h.part.Groups().Intend(7, nil) // older
	h.turns(2)
	require.Equal(t, 4, h.part.state.groups.Len())
	h.part.Groups().Intend(21, []Intent{latest, offset, at})
	h.turns(3)
	require.Equal(t, 3, h.part.state.groups.Len())
	require.EqualValues(t, 2, h.part.state.Start())
	require.False(t, c.over)
	h.part.Groups().Intend(22, []Intent{offset, at})
	h.turns(4)
	require.ErrorIs(t, c.closed, wire.CodeGroupGone)

	// A partition whose leader has not heard of the newest group does not remove it.
	h.log.immediate = false
	h.part.Groups().Intend(30, []Intent{offset, at, intent(25, "new")})
	h.turns(5)
	h.log.commit(1)
	h.log.immediate = true
	h.log.term = 4
	h.part.Groups().at = 22
	h.part.Groups().intents = []Intent{offset, at}
	h.noOp()
	h.turns(6)
	require.NotNil(t, h.part.state.groups.Named("new"))
}

// One quorum round serves all that a turn has read.
func TestOneConfirmationServesAll(t *testing.T) {
	h, w := newGroups(t)
	h.log.immediate = true
	h.part.Groups().Intend(20, []Intent{intent(7, "a"), intent(8, "b")})
	a, b := h.attach("a", 1), h.attach("b", 2)
	h.turns(0)
	w.hold = true
	h.put(Input{Kind: InputHeartbeat, Consumer: a, Number: 1})
	h.put(Input{Kind: InputHeartbeat, Consumer: b, Number: 2})
	h.turns(1)
	require.Len(t, w.confirms, 1)
	require.Empty(t, a.confirmed)
	w.confirms[0](nil)
	h.turns(1)
	require.Equal(t, []uint64{1}, a.confirmed)
	require.Equal(t, []uint64{2}, b.confirmed)
}

// GROUPS 13: who knows of a later leader of the partition is refused, and no group of it gets
// anything until a quorum has confirmed this one.
func TestRule13_AllGroupsOfAPartitionStepAside(t *testing.T) {
	h, w := newGroups(t)
	h.log.immediate = true
	h.part.Groups().Intend(20, []Intent{intent(7, "a"), intent(8, "b")})
	a, b := h.attach("a", 1), h.attach("b", 2)
	h.turns(0)
	w.hold = true
	h.log.term++
	h.attach("a", 3)
	h.log.term--
	h.turns(1)
	h.send(-1, 0, 0, 2)
	h.turns(2)
	require.Zero(t, a.records()+b.records())
	require.NotEmpty(t, w.confirms)
	for _, then := range w.confirms {
		then(nil)
	}
	h.turns(3)
	require.Equal(t, 2, a.records())
	require.Equal(t, 2, b.records())
}

// GROUPS 11: a consumer that is silent is removed in time, also when nothing else happens.
func TestASilentConsumerIsRemoved(t *testing.T) {
	h, _ := newGroups(t)
	h.log.immediate = true
	h.part.Groups().Intend(20, []Intent{intent(7, "workers")})
	c, other := h.attach("workers", 1), h.attach("workers", 2)
	h.turns(0)
	h.send(-1, 0, 0, 3)
	h.turns(1)
	require.Equal(t, 3, c.records()+other.records())
	deadline := h.part.Groups().Deadline()
	require.NotZero(t, deadline)
	require.LessOrEqual(t, deadline, time.Duration(shared.SessionMs+1)*time.Millisecond)
	h.put(Input{Kind: InputHeartbeat, Consumer: other})
	h.turns(5000)
	h.turns(6500)
	require.ErrorIs(t, c.closed, wire.CodeSessionGone)
	require.False(t, other.over)
	require.Equal(t, 3, other.records())
}

// GROUPS 29: a seek waits until nothing is leased; what was given before is stale.
func TestASeekGoesThroughTheLeader(t *testing.T) {
	h, _ := newGroups(t)
	h.log.immediate = true
	h.part.Groups().Intend(20, []Intent{intent(7, "workers")})
	c := h.attach("workers", 1)
	h.turns(0)
	h.send(-1, 0, 0, 5)
	h.turns(1)
	require.Equal(t, 5, c.records())
	order := func(op wire.GroupOrderOp, json string) (answer *string, err *error) {
		answer, err = new(string), new(error)
		h.put(Input{Kind: InputOrder, Group: "workers", Order: &wire.GroupOrderRequest{Op: op, JSON: []byte(json)}, Reply: func(json []byte, e error) {
			*answer, *err = string(json), e
		}})
		return answer, err
	}
	dry, _ := order(wire.OrderSeek, `{"to":"offset","offset":3,"dry_run":true}`)
	h.turns(2)
	require.JSONEq(t, `{"from":0,"to":3,"records":3}`, *dry)
	_, far := order(wire.OrderSeek, `{"to":"offset","offset":6}`)
	h.turns(2)
	require.ErrorIs(t, *far, wire.CodeOutOfRange)
	require.ErrorContains(t, *far, "offset 6 lies behind the end of the partition, 5")
	got, err := order(wire.OrderSeek, `{"to":"offset","offset":3}`)
	second, refused := order(wire.OrderSeek, `{"to":"earliest"}`)
	h.turns(3)
	require.Empty(t, *got)
	require.Empty(t, *second)
	require.ErrorIs(t, *refused, wire.CodeRetry)
	first := c.grants[0]
	c.grants = nil
	h.put(Input{Kind: InputOutcomes, Consumer: c, Outcomes: []wire.Outcome{ // what is held may be finished, or given back
		{Offset: 0, Count: 1, Epoch: first.Epoch, Kind: wire.OutcomeAck}, {Offset: 1, Count: 4, Epoch: first.Epoch, Kind: wire.OutcomeReleased},
	}})
	h.turns(4)
	require.NoError(t, *err)
	require.JSONEq(t, `{"from":0,"to":3,"records":3}`, *got)
	require.EqualValues(t, 3, h.part.state.Start(), "it is a queue: what is below is gone")
	require.Equal(t, 2, c.records(), "those from there on come again")
	require.Greater(t, c.grants[0].Epoch, first.Epoch)

	shown, _ := order(wire.OrderDescribe, "")
	h.turns(5)
	require.Contains(t, *shown, `"floor":3,"next":5,"scan":5`)
	nothing, _ := order(wire.OrderSeek, `{"to":"time"}`)
	h.log.term, h.log.following = 4, true
	h.turns(6)
	h.part.Reject(wire.CodeNotLeader)
	require.Empty(t, *nothing)
}

// Settings on which leases depend change when nothing is leased, others at once.
func TestSettingsOfAGroupChange(t *testing.T) {
	h, _ := newGroups(t)
	h.log.immediate = true
	h.part.Groups().Intend(20, []Intent{intent(7, "workers")})
	c := h.attach("workers", 1)
	h.turns(0)
	h.send(-1, 0, 0, 5)
	h.turns(1)
	g := h.part.state.groups.Named("workers")
	v := intent(7, "workers")
	v.Version, v.Settings.RevokeMs = 30, 9000
	h.part.Groups().Intend(30, []Intent{v})
	h.turns(2)
	require.EqualValues(t, 9000, g.Settings.RevokeMs)
	require.Less(t, g.Fence, c.grants[0].Epoch)
	require.False(t, c.over)
	v.Version, v.Settings.Mode = 31, wire.ModeStream
	h.part.Groups().Intend(31, []Intent{v})
	h.turns(3)
	require.Equal(t, wire.ModeShared, g.Settings.Mode)
	h.ack(c)
	h.turns(4)
	require.Equal(t, wire.ModeStream, g.Settings.Mode)
	require.Len(t, c.answers, 1)
	require.True(t, c.over, "it has to hear what the group is now")
}

// Settings that are taken back while those before them are on their way wait until it is known
// what those have made of the group: it may have another shape by then, and leases of it.
func TestRule29_SettingsThatAreTakenBackWaitForThoseBefore(t *testing.T) {
	h, _ := newGroups(t)
	h.log.immediate = true
	h.part.Groups().Intend(20, []Intent{intent(7, "workers")})
	h.attach("workers", 1)
	h.turns(0)
	h.log.immediate = false
	for i, mode := range []wire.GroupMode{wire.ModeSerial, wire.ModeShared} {
		v := intent(7, "workers")
		v.Version, v.Settings.Mode = uint64(30+i), mode
		h.part.Groups().Intend(wire.Index(v.Version), []Intent{v})
		h.part.groups.since = controlBytes // so much comes that there is a second entry at once
		h.turns(1)
	}
	for range 4 {
		h.log.commit(len(h.log.proposed))
		h.turns(2)
	}
	g := h.part.state.groups.Named("workers")
	require.Equal(t, wire.ModeShared, g.Settings.Mode)
	require.False(t, h.part.groups.leads[7].Hashed(), "the Leader goes by what the group is")
}

// What is known of records is forgotten when nobody has consumed for a while, and that is all:
// a partition without consumers needs no further turns, and who comes later begins anew.
func TestAPartitionThatNobodyConsumesRests(t *testing.T) {
	h, _ := newGroups(t)
	h.log.immediate = true
	g := h.part.Groups()
	g.Intend(20, []Intent{intent(7, "workers")})
	at := 0
	for range 2 {
		c := h.attach("workers", 1)
		h.turns(at)
		require.NotNil(t, c.attached)
		h.put(Input{Kind: InputLeave, Consumer: c})
		h.turns(at)
		h.put(Input{Kind: InputGone, Consumer: c})
		h.turns(at)
		at += int(feedIdle / time.Millisecond)
		h.turns(at - 1)
		require.True(t, g.feed.on)
		require.Equal(t, time.Duration(at)*time.Millisecond, g.Deadline())
		h.turns(at)
		require.False(t, g.feed.on)
		require.Zero(t, g.Deadline())
		at++
	}
}
