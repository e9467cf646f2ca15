package replication

import (
	"errors"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/wire"
)

// aTrimmedFleet is three replicas of which 3 is down and so far behind that the
// others no longer hold what it lacks.
func aTrimmedFleet(t *testing.T) (*fleet, *member) {
	f := newFleet(t)
	f.founders, f.segment, f.checkpoint = []uint64{1, 2, 3}, 64<<10, 100<<10
	for _, id := range f.founders {
		f.add(id)
	}
	l := f.lead(1)
	l.propose("first")
	f.settle()
	f.members[3].crash(false)
	f.fill(l, 300)
	return f, l
}

// fill appends records and trims all but the last of them everywhere.
func (f *fleet) fill(l *member, n int) {
	f.t.Helper()
	for i := range n {
		l.propose(fmt.Sprintf("%03d %02000d", i, i))
		f.settle()
	}
	f.tick(12)
	for _, id := range f.ids() {
		if m := f.members[id]; !m.down {
			m.log.Trim(m.log.NextOffset() - 5)
			m.log.MarkIdle()
			f.settle()
		}
	}
	require.Greater(f.t, l.log.FirstIndex(), wire.Index(n/2))
}

// caughtUp makes sure that a member has the state of the leader and the end of its log.
func (f *fleet) caughtUp(m, l *member) {
	f.t.Helper()
	require.NoError(f.t, m.group.Err())
	require.True(f.t, m.group.Ready())
	require.Equal(f.t, l.group.Applied(), m.group.Applied())
	require.Equal(f.t, l.log.NextOffset(), m.log.NextOffset())
	ours, theirs := l.frames(), m.frames()
	n := min(len(ours), len(theirs))
	require.Positive(f.t, n)
	require.Equal(f.t, ours[len(ours)-n:], theirs[len(theirs)-n:])
}

func TestRuleR1_AFollowerBehindTheStartGetsASnapshot(t *testing.T) {
	f, l := aTrimmedFleet(t)
	m := f.members[3]
	m.open()
	restored := 0
	m.group.OnRestore(func() { restored++ })
	f.tick(10)
	require.Equal(t, 1, m.fetches)
	require.Equal(t, 1, restored)
	require.Zero(t, l.group.Snapshots())
	f.caughtUp(m, l)
	require.Equal(t, l.log.FirstIndex(), m.log.FirstIndex())
	require.Contains(t, m.state.applied[0], "restored ")
	require.NotContains(t, m.state.applied[1:], "first", "nothing is applied twice")

	// It takes part again: with the leader gone it is needed for the quorum.
	l.crash(true)
	next := f.elect()
	next.propose("after")
	f.settle()
	f.tick(3)
	require.Equal(t, "after", m.state.applied[len(m.state.applied)-1])
	// And its log opens like any other.
	m.crash(true)
	m.open()
	f.tick(10)
	f.caughtUp(m, f.leader())
}

// Between the end of the job that replaces the log and the turn that replaces the
// state, the log's checkpoint is ahead of the state.
func TestRuleR1_NoCheckpointOfTheOldStateIsWrittenBesideTheNewLog(t *testing.T) {
	f, l := aTrimmedFleet(t)
	m := f.members[3]
	m.open()
	require.Positive(t, m.group.Applied())
	m.frozen = true
	for range 10 {
		f.tick(1)
		for len(m.exec.jobs) > 0 {
			j := m.exec.jobs[0]
			m.exec.jobs = m.exec.jobs[1:]
			j.Run()
			j.Done()
			m.group.Checkpoint()
			m.group.Turn()
		}
	}
	m.frozen = false
	f.tick(5)
	require.Equal(t, 1, m.fetches)
	f.caughtUp(m, l)
}

func TestRuleR1_ALearnerThatWasAddedLaterGetsASnapshotThatKnowsIt(t *testing.T) {
	f, l := aTrimmedFleet(t)
	require.NoError(t, l.group.Reconfigure(Membership{AddLearners: []uint64{4}}))
	f.settle()
	m := f.add(4)
	f.tick(10)
	f.caughtUp(m, l)
	require.Equal(t, []uint64{4}, m.group.Members().Learners)
	require.NoError(t, l.group.Reconfigure(Membership{Promote: []uint64{4}, Remove: []uint64{3}}))
	f.settle()
	f.tick(3)
	require.Equal(t, []uint64{1, 2, 4}, m.group.Members().Voters)
	require.Empty(t, m.group.Members().Outgoing)
}

// belowItsCheckpoint starts a member of a trimmed fleet and stops when it has a checkpoint
// of the leader, and not the entries up to it.
func belowItsCheckpoint(f *fleet, m *member) {
	f.t.Helper()
	m.open()
	for range 10_000 {
		if m.fetches == 1 && !m.group.installing() && m.group.Applied() > m.log.LastIndex() {
			break
		}
		if len(f.wires) == 0 {
			f.members[1].group.Tick(1)
		} else {
			f.deliver()
		}
		for _, id := range f.ids() {
			f.members[id].work()
		}
	}
	require.Greater(f.t, m.group.Applied(), m.log.LastIndex(), "the checkpoint is ahead of the log")
	require.False(f.t, m.group.Ready())
}

// While a replica's log has not caught up with the checkpoint that it was given, it
// does not campaign, and does not serve.
func TestRuleR1_NobodyCampaignsBelowItsCheckpoint(t *testing.T) {
	f, l := aTrimmedFleet(t)
	m := f.members[3]
	belowItsCheckpoint(f, m)
	f.isolate(3)
	f.wires = nil
	for range 100 {
		m.group.Tick(1)
		require.Empty(t, f.wires)
	}
	m.crash(true)
	m.open()
	require.Greater(t, m.group.Applied(), m.log.LastIndex())
	require.False(t, m.group.Ready(), "a restart does not change that")
	for range 100 {
		m.group.Tick(1)
		require.Empty(t, f.wires)
	}
	f.heal()
	f.tick(20)
	f.caughtUp(m, l)
}

// A replica below its checkpoint does not tick, so no election timeout ends its trust in a
// leader that is not heard any more while its connections stay. Its vote is needed all the same.
func TestRuleR1_WhoIsBelowItsCheckpointVotesAgainstASilentLeader(t *testing.T) {
	f, l := aTrimmedFleet(t)
	m := f.members[3]
	belowItsCheckpoint(f, m)
	f.lose = func(e envelope) bool { return e.from == l.id || e.to == l.id }
	f.tick(60)
	require.Same(t, f.members[2], f.leader(), "the vote of replica 3 is the second of three")
	f.caughtUp(m, f.members[2])
}

// Nor is a leader heard that asks to be elected again: it leads no longer. If it is the only
// other voter that is left, nobody would ever lead.
func TestRuleR1_WhoIsBelowItsCheckpointVotesForALeaderThatBeginsAnew(t *testing.T) {
	f, l := aTrimmedFleet(t)
	m := f.members[3]
	belowItsCheckpoint(f, m)
	f.members[2].crash(false)
	f.lose = func(e envelope) bool { return e.from == m.id }
	f.tick(30)
	require.Nil(t, f.leader(), "it heard of no quorum")
	f.lose = nil
	f.tick(60)
	require.Same(t, l, f.leader(), "the vote of replica 3 is the second of three")
	f.caughtUp(m, l)
}

// A leader that is heard again is not forgotten with every tick.
func TestRuleR1_WhoIsBelowItsCheckpointTrustsALeaderThatIsHeardAgain(t *testing.T) {
	f, l := aTrimmedFleet(t)
	m := f.members[3]
	belowItsCheckpoint(f, m)
	f.lose = func(e envelope) bool { return e.to == m.id }
	f.tick(3 * electionTicks)
	require.Zero(t, m.group.node.BasicStatus().Lead)
	f.lose = func(e envelope) bool { return e.to == m.id && e.beat == nil }
	f.tick(heartbeatTicks)
	for range 3 * electionTicks {
		f.tick(1)
		require.Equal(t, l.id, m.group.node.BasicStatus().Lead)
	}
	require.False(t, m.group.Ready(), "it does not tick")
}

func TestRuleR1_ASnapshotThatArrivesDamagedIsFetchedAgain(t *testing.T) {
	f, l := aTrimmedFleet(t)
	m := f.members[3]
	m.open()
	m.garble = func(f *Fetched) {
		switch m.fetches {
		case 1:
			f.Content[len(f.Content)/2] ^= 4
		case 2:
			f.Err = errors.New("took too long")
		case 3:
			f.Content = f.Content[:len(f.Content)-1]
		}
	}
	f.tick(30)
	require.Equal(t, 4, m.fetches)
	f.caughtUp(m, l)
}

func TestRuleR1_ALeaderThatDiesWhileItSendsASnapshotIsReplaced(t *testing.T) {
	f, l := aTrimmedFleet(t)
	m := f.members[3]
	m.open()
	m.frozen = true
	f.tick(4)
	require.True(t, m.group.installing())
	require.Equal(t, 1, l.group.Snapshots())
	l.crash(false)
	m.frozen = false
	f.tick(60)
	next := f.leader()
	require.NotNil(t, next)
	f.caughtUp(m, next)
}

// An offer is one message, and raft does not repeat it. When it gets lost without the
// connection, the follower gets another one.
func TestRuleR1_AnOfferThatGotLostIsRepeated(t *testing.T) {
	f, l := aTrimmedFleet(t)
	m := f.members[3]
	m.open()
	lost := 0
	f.lose = func(e envelope) bool {
		if e.message == nil || e.message.Snapshot == nil || lost == 2 {
			return false
		}
		lost++
		return true
	}
	f.tick(4 * offerTicks)
	require.Equal(t, 2, lost)
	require.Equal(t, 1, m.fetches)
	require.Zero(t, l.group.Snapshots())
	f.caughtUp(m, l)
}

// A follower that fetches a large checkpoint for long is offered it again, and does not
// begin anew.
func TestRuleR1_AnOfferThatIsRepeatedDoesNotDisturbTheTransfer(t *testing.T) {
	f, l := aTrimmedFleet(t)
	m := f.members[3]
	m.open()
	m.frozen = true
	f.tick(5 * offerTicks)
	require.True(t, m.group.installing())
	m.frozen = false
	f.tick(10)
	require.Equal(t, 1, m.fetches)
	f.caughtUp(m, l)
}

// A machine that stops at any moment of an installation comes back with the old log
// or the new one, and catches up.
func TestF20_AReplicaThatStopsWhileASnapshotIsInstalledCatchesUp(t *testing.T) {
	for stop := int64(1); stop < 60; stop += 4 {
		f, l := aTrimmedFleet(t)
		m := f.members[3]
		m.open()
		m.files.StopAt(m.files.Ops() + stop)
		f.tick(8)
		m.files.StopAt(0)
		m.crash(true)
		m.open()
		f.tick(12)
		f.caughtUp(m, l)
	}
}

// A long absence after the start has moved twice, with the leader changing: 20 rounds
// from one seed.
func TestF18_AFollowerComesBackAgainAndAgain(t *testing.T) {
	f, _ := aTrimmedFleet(t)
	for round := range 6 {
		f.members[3].open()
		f.tick(15)
		l := f.leader()
		require.NotNil(t, l, "round %d", round)
		f.caughtUp(f.members[3], l)
		if l.id != 3 {
			require.NoError(t, l.group.Transfer(3-l.id))
			f.settle()
		}
		l = f.leader()
		if l.id == 3 {
			require.NoError(t, l.group.Transfer(1))
			f.settle()
			l = f.leader()
		}
		f.members[3].crash(round%2 == 0)
		f.fill(l, 150)
	}
}
