package replication

import (
	"bytes"
	"fmt"
	"log/slog"
	"testing"

	"github.com/stretchr/testify/require"
	"go.etcd.io/raft/v3/raftpb"

	"github.com/lockstepmq/lockstep/log"
	"github.com/lockstepmq/lockstep/vfs"
	"github.com/lockstepmq/lockstep/wire"
)

// emptied is replica 2 of three, which comes back with an empty disk and its old ID
// while only 1 is left of those that hold the record "a". With 1 down, it returns
// whether 3, which lacks the record, becomes leader by its vote.
func emptied(t *testing.T, lapses lapse) (elected bool) {
	f := newFleet(t, 1, 2, 3)
	l := f.lead(1)
	f.isolate(3)
	l.propose("a")
	f.settle()
	require.Equal(t, []string{"a"}, l.applied())
	m := f.members[2]
	m.crash(true)
	m.files = vfs.NewSimulated(22)
	m.config = func(c *Config) { c.Waiting = true }
	m.open()
	m.group.lapses = lapses
	l.crash(false)
	f.heal()
	f.tick(6 * electionTicks)
	elected = f.leader() != nil
	if !elected {
		l.open()
		require.Same(t, l, f.elect())
		f.tick(3)
		require.Equal(t, []string{"a"}, f.members[3].applied())
	}
	return elected
}

func TestRuleR10_AWaitingReplicaDoesNotVote(t *testing.T) { require.False(t, emptied(t, 0)) }

func TestRuleR10_Catches_AWaitingReplicaThatVotes(t *testing.T) { require.True(t, emptied(t, early)) }

// toldToLead hands the leadership to a replica that may have forgotten what it had
// acknowledged, while the third one is down. It returns whether the old leader goes on
// in its term: the uncertain one cannot win.
func toldToLead(t *testing.T, lapses lapse) (goesOn bool) {
	f := newFleet(t, 1, 2, 3)
	l := f.lead(1)
	l.propose("a")
	f.settle()
	f.tick(3)
	u := f.members[3]
	u.crash(false)
	u.config = uncertain
	u.open()
	u.group.lapses = lapses
	f.tick(3)
	require.True(t, u.group.Uncertain())
	f.members[2].crash(false)
	term, _ := l.group.Leading()
	require.NoError(t, l.group.Transfer(3))
	f.settle()
	f.tick(electionTicks + 1)
	now, leads := l.group.Leading()
	return leads && now == term
}

func TestRuleL5_AnUncertainReplicaDoesNotTakeTheLead(t *testing.T) {
	require.True(t, toldToLead(t, 0))
}

func TestRuleL5_Catches_AnUncertainReplicaThatObeys(t *testing.T) {
	require.False(t, toldToLead(t, obedient))
}

// toldToLeadBelow tells a replica to lead whose log has not reached the checkpoint that
// it was given. It returns whether it asks anybody for a vote.
func toldToLeadBelow(t *testing.T, lapses lapse) (asks bool) {
	f, l := aTrimmedFleet(t)
	m := f.members[3]
	belowItsCheckpoint(f, m)
	m.group.lapses = lapses
	f.wires = nil
	term, _ := l.group.Leading()
	require.True(t, m.inbox.Put(&Message{Message: raftpb.Message{Type: raftpb.MsgTimeoutNow, From: 1, To: 3, Term: uint64(term)}}))
	m.group.Turn()
	m.work()
	asks = len(f.wires) > 0
	f.wires = nil
	f.tick(6 * electionTicks)
	f.caughtUp(m, f.elect())
	return asks
}

func TestRuleR1_NobodyIsToldToCampaignBelowItsCheckpoint(t *testing.T) {
	require.False(t, toldToLeadBelow(t, 0))
}

func TestRuleR1_Catches_AReplicaThatCampaignsBelowItsCheckpoint(t *testing.T) {
	require.True(t, toldToLeadBelow(t, obedient))
}

// anotherPast sends a follower an entry of a later term in the place of one that is
// committed. It returns what becomes of the follower, and whether it says that it has the
// entry.
func anotherPast(t *testing.T, lapses lapse) (fenced error, acknowledges bool) {
	f := newFleet(t, 1, 2, 3)
	l := f.lead(1)
	l.propose("a")
	f.settle()
	f.tick(3)
	m := f.members[2]
	m.group.lapses = lapses
	last := uint64(m.group.Applied())
	require.Equal(t, uint64(m.log.LastIndex()), last)
	term, _ := m.log.Term(wire.Index(last))
	data := make([]byte, wire.EntryPrefixSize+1)
	wire.PutEntryPrefix(data, wire.KindRecords, 1, 5000)
	require.True(t, m.inbox.Put(&Message{
		Message: raftpb.Message{Type: raftpb.MsgApp, From: 3, To: 2, Term: uint64(term) + 1, Index: last - 1, LogTerm: uint64(term), Commit: last,
			Entries: []raftpb.Entry{{Index: last, Term: uint64(term) + 1, Data: data}}},
		Checks: []uint32{EntryCheck(wire.KindRecords, wire.Checksum(data[wire.EntryPrefixSize:]), data)},
	}))
	m.group.Turn()
	m.work()
	require.Equal(t, []string{"a"}, m.applied())
	for _, e := range f.wires {
		r := e.message
		acknowledges = acknowledges || r != nil && r.Type == raftpb.MsgAppResp && !r.Reject && r.Term > uint64(term) && r.Index >= last
	}
	return m.group.Err(), acknowledges
}

func TestRuleL1_AnEntryInThePlaceOfACommittedOneFencesTheFollower(t *testing.T) {
	err, acknowledges := anotherPast(t, 0)
	require.ErrorIs(t, err, ErrDiverged)
	require.False(t, acknowledges)
}

// Raft does not compare what it knows to be committed: it says that it has it.
func TestRuleL1_Catches_AnEntryInThePlaceOfACommittedOne(t *testing.T) {
	err, acknowledges := anotherPast(t, unheeding)
	require.NoError(t, err)
	require.True(t, acknowledges)
}

// rivalled sends a leader what only another leader of its term could send: an entry whose
// chain differs, a heartbeat that counts on more than there is, a snapshot. It returns
// whether the leader is unharmed.
func rivalled(t *testing.T, kind raftpb.MessageType, lapses lapse) (unharmed bool) {
	f := newFleet(t, 1, 2, 3)
	l := f.lead(1)
	l.propose("a")
	f.settle()
	l.group.lapses = lapses
	term, _ := l.group.Leading()
	last := l.log.LastIndex()
	m := &Message{Message: raftpb.Message{Type: kind, From: 2, To: 1, Term: uint64(term), Index: uint64(last), LogTerm: uint64(term)}}
	switch kind {
	case raftpb.MsgApp:
		chain, known := l.log.Chain(last)
		require.True(t, known)
		m.Chain, m.ChainKnown = chain+1, true
		require.True(t, l.inbox.Put(m))
	case raftpb.MsgHeartbeat:
		l.inbox.PutBeat(Heartbeat{From: 2, To: 1, Term: term, Commit: last + 9})
	case raftpb.MsgSnap:
		conf, err := l.group.confState.Marshal()
		require.NoError(t, err)
		m.Snapshot = &SnapshotOffer{From: 2, To: 1, Term: term, Start: log.Link{Index: last + 9, Term: term}, Applied: last + 9, ConfState: conf}
		require.True(t, l.inbox.Put(m))
	}
	l.group.Turn()
	return l.group.Err() == nil && !l.group.installing()
}

func TestRuleL1_ALeaderListensToNoOtherOfItsTerm(t *testing.T) {
	for _, kind := range []raftpb.MessageType{raftpb.MsgApp, raftpb.MsgHeartbeat, raftpb.MsgSnap} {
		require.True(t, rivalled(t, kind, 0), "%s", kind)
	}
}

func TestRuleL1_Catches_ALeaderThatListensToAnotherOfItsTerm(t *testing.T) {
	for _, kind := range []raftpb.MessageType{raftpb.MsgApp, raftpb.MsgHeartbeat, raftpb.MsgSnap} {
		require.False(t, rivalled(t, kind, yielding), "%s", kind)
	}
}

// slowTransfer lets a follower fetch a checkpoint while its leader writes and trims as
// much again. It returns how many checkpoints it needs.
func slowTransfer(t *testing.T, lapses lapse) (fetches int) {
	f, l := aTrimmedFleet(t)
	l.group.lapses = lapses
	m := f.members[3]
	m.open()
	m.frozen = true
	f.tick(4)
	require.True(t, m.group.installing())
	f.fill(l, 300)
	m.frozen = false
	f.tick(4 * offerTicks)
	f.caughtUp(m, l)
	return m.fetches
}

func TestRuleR1_TheLogKeepsItsStartForAFollowerThatFetches(t *testing.T) {
	require.Equal(t, 1, slowTransfer(t, 0))
}

func TestRuleR1_Catches_AStartThatMovesDuringATransfer(t *testing.T) {
	require.Greater(t, slowTransfer(t, releasing), 1)
}

// laggard is learner 4 in a group of three, cut off or with a disk that does not answer.
// It returns the answer to its promotion in the place of 3, and whether the group still
// commits when 2 dies after that.
func laggard(t *testing.T, cut bool, lapses lapse) (refused error, commits bool) {
	f := newFleet(t, 1, 2, 3)
	l := f.lead(1)
	l.group.lapses = lapses
	m := f.add(4)
	if cut {
		f.isolate(4)
	}
	require.NoError(t, l.group.Reconfigure(Membership{AddLearners: []uint64{4}}))
	f.settle()
	f.tick(3)
	m.frozen = !cut
	for i := range promotable + 2 {
		l.propose(fmt.Sprintf("record %d", i))
		f.settle()
	}
	refused = l.group.Reconfigure(Membership{Promote: []uint64{4}, Remove: []uint64{3}})
	f.settle()
	f.members[2].crash(false)
	l.propose("after")
	f.settle()
	applied := l.applied()
	return refused, applied[len(applied)-1] == "after"
}

func TestF18_ALearnerThatLagsDoesNotBecomeAVoter(t *testing.T) {
	for _, cut := range []bool{true, false} {
		err, commits := laggard(t, cut, 0)
		require.ErrorIs(t, err, ErrMembership)
		require.True(t, commits)
	}
}

func TestF18_Catches_ALearnerThatLagsAndBecomesAVoter(t *testing.T) {
	for _, cut := range []bool{true, false} {
		err, commits := laggard(t, cut, generous)
		require.NoError(t, err)
		require.False(t, commits, "the next death ends the group")
	}
}

// strangersCheckpoint lets a learner fetch a checkpoint from before it was added, and
// returns what is said about that.
func strangersCheckpoint(t *testing.T, lapses lapse) string {
	f, l := aTrimmedFleet(t)
	before, err := l.log.ReadCheckpoint()
	require.NoError(t, err)
	require.NoError(t, l.group.Reconfigure(Membership{AddLearners: []uint64{4}}))
	f.settle()
	var said bytes.Buffer
	m := &member{f: f, id: 4, files: vfs.NewSimulated(4)}
	m.config = func(c *Config) { c.Logger = slog.New(slog.NewTextHandler(&said, nil)) }
	m.garble = func(fetched *Fetched) {
		if m.fetches == 1 {
			fetched.Content = before
		}
	}
	f.members[4] = m
	m.open()
	m.group.lapses = lapses
	f.tick(20)
	require.Equal(t, 2, m.fetches)
	f.caughtUp(m, l)
	return said.String()
}

func TestRuleR1_ACheckpointThatDoesNotKnowItsReceiverIsRefused(t *testing.T) {
	require.Contains(t, strangersCheckpoint(t, 0), "does not know replica 4")
}

func TestRuleR1_Catches_ACheckpointThatDoesNotKnowItsReceiver(t *testing.T) {
	require.NotContains(t, strangersCheckpoint(t, credulous), "does not know replica 4", "raft drops it without a reason")
}

// moved moves a replica from 3 to 4. All have the change in their logs; 3 does not hear
// that it is committed. Then 1 and 3 are cut off from 2 and 4. It returns whether either
// side commits anything.
func moved(t *testing.T, lapses lapse) (old, next bool) {
	f := newFleet(t, 1, 2, 3)
	l := f.lead(1)
	f.add(4)
	require.NoError(t, l.group.Reconfigure(Membership{AddLearners: []uint64{4}}))
	f.settle()
	f.tick(5)
	for _, id := range f.ids() {
		f.members[id].group.lapses = lapses
	}
	change := uint64(l.group.NextIndex())
	f.lose = func(e envelope) bool {
		return e.to == 3 && (e.message != nil && e.message.Commit >= change || e.beat != nil && uint64(e.beat.Commit) >= change)
	}
	require.NoError(t, l.group.Reconfigure(Membership{Promote: []uint64{4}, Remove: []uint64{3}}))
	f.settle()
	f.isolate(1, 3)
	f.lose = nil
	require.Equal(t, []uint64{1, 2, 4}, l.group.Members().Voters)
	require.Equal(t, wire.Index(change), f.members[3].log.LastIndex())
	before := l.group.Applied()
	f.tick(10 * electionTicks)
	old = f.members[1].group.Applied() > before
	next = f.members[2].group.Applied() > before
	return old, next
}

func TestF18_AMoveLeavesOneMajority(t *testing.T) {
	old, next := moved(t, 0)
	require.False(t, old)
	require.True(t, next)
}

func TestF18_Catches_AMoveInOneStep(t *testing.T) {
	old, next := moved(t, abrupt)
	require.True(t, old)
	require.True(t, next, "two sides commit at once")
}

// comesBack starts replica 3 of three again, which hears of nobody until its patience has
// ended more than once, as one of a node that has thousands to start. It returns whether
// the leader goes on in its term once they can talk.
func comesBack(t *testing.T, lapses lapse) (undisturbed bool) {
	f := newFleet(t, 1, 2, 3)
	l := f.lead(1)
	l.propose("a")
	f.settle()
	f.tick(3)
	term, _ := l.group.Leading()
	m := f.members[3]
	m.crash(false)
	f.isolate(3)
	m.config = func(c *Config) { c.lapses = lapses }
	m.open()
	f.tick(5 * electionTicks)
	f.heal()
	f.tick(3 * electionTicks)
	require.NotNil(t, f.leader())
	f.equal()
	now, leads := l.group.Leading()
	return leads && now == term
}

func TestF21_AReplicaThatComesBackDeposesNobody(t *testing.T) { require.True(t, comesBack(t, 0)) }

func TestF21_Catches_AReplicaThatCampaignsUnasked(t *testing.T) {
	require.False(t, comesBack(t, brash))
}

// lateTurns are those of the owners of a busy node: what the others say lies in the inbox
// when the turn comes, and so do the ticks. It returns whether the leader still leads.
func lateTurns(t *testing.T, lapses lapse) (leads bool) {
	f := newFleet(t, 1, 2, 3)
	l := f.lead(1)
	f.settle()
	term, _ := l.group.Leading()
	for _, id := range f.ids() {
		f.members[id].group.lapses = lapses
	}
	for range 3 * electionTicks {
		for _, id := range f.ids() {
			f.members[id].group.Tick(electionTicks - 1)
		}
		wires := f.wires
		f.wires = nil
		for _, e := range wires {
			f.hand(f.members[e.to], e)
			if e.message != nil {
				e.message.Done()
			}
		}
	}
	now, leads := l.group.Leading()
	return leads && now == term
}

func TestF21_WhatHasArrivedComesBeforeTheTimeThatPasses(t *testing.T) {
	require.True(t, lateTurns(t, 0))
}

func TestF21_Catches_TimeThatPassesBeforeWhatHasArrived(t *testing.T) {
	require.False(t, lateTurns(t, rash))
}

// A death that comes with the turn in which time has passed counts from then on: the voters
// campaign one after the other.
func TestRuleR9_TheTicksBeforeADeathDoNotCount(t *testing.T) {
	f := newFleet(t, 1, 2, 3)
	l := f.lead(1)
	f.settle()
	l.crash(false)
	m := f.members[3]
	m.inbox.PutEvent(PeerEvent{Kind: PeerDown, Node: 1, Refused: true})
	m.group.Tick(2)
	require.Empty(t, f.wires, "replica 2 comes first")
	m.group.Tick(1)
	require.Empty(t, f.wires, "a whole tick at least")
	m.group.Tick(1)
	require.NotEmpty(t, f.wires)
}

// Who has heard that its partition has new voters knows it after a power cut, without any
// record after that: it does not need a majority of the old ones, whose disks may be gone.
func TestF18_NewVotersAreKnownAfterABlackout(t *testing.T) {
	f := newFleet(t, 1, 2, 3)
	l := f.lead(1)
	f.add(4)
	require.NoError(t, l.group.Reconfigure(Membership{AddLearners: []uint64{4}}))
	f.settle()
	f.tick(5)
	require.NoError(t, l.group.Reconfigure(Membership{Promote: []uint64{4}, Remove: []uint64{3}}))
	f.settle()
	f.tick(5)
	for _, id := range f.ids() {
		f.members[id].files.CrashLoseAll()
		f.members[id].down = true
	}
	for _, id := range []uint64{2, 4} {
		f.members[id].open()
		require.Empty(t, f.members[id].group.Members().Outgoing, "replica %d", id)
		require.Equal(t, []uint64{1, 2, 4}, f.members[id].group.Members().Voters, "replica %d", id)
	}
	f.elect().propose("after")
	f.settle()
	f.tick(3)
	require.Contains(t, f.members[2].applied(), "after")
	require.Contains(t, f.members[4].applied(), "after")
}
