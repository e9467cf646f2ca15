package replication

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/log"
	"github.com/lockstepmq/lockstep/wire"
)

// aKilledFleet is three replicas in mode os whose processes were killed when they had
// written much that no slot, mark or checkpoint calls committed. Replica 3 was down for
// the second half of it.
func aKilledFleet(t *testing.T) *fleet {
	f := newFleet(t)
	f.mode, f.founders, f.load = log.SyncOS, []uint64{1, 2, 3}, 10_000
	for _, id := range f.founders {
		f.add(id)
	}
	l := f.lead(1)
	write := func(from, to int) {
		for i := from; i < to; i++ {
			l.propose(fmt.Sprintf("%04d %03000d", i, i))
			if i%20 == 0 {
				f.settle()
			}
		}
		f.settle()
	}
	write(0, 600)
	f.members[3].crash(false)
	write(600, 1200)
	for _, id := range []uint64{1, 2} {
		f.members[id].crash(false)
	}
	return f
}

// What a replica finds at its start and does not know to be committed stays on the disk
// until it has to apply it, and then comes in pieces: there may be more than there is
// memory.
func TestRuleR2_WhatWasNotKnownToBeCommittedIsAppliedInPieces(t *testing.T) {
	f := aKilledFleet(t)
	for _, id := range f.founders {
		m := f.members[id]
		m.open()
		require.Zero(t, m.log.TailBytes())
		require.Less(t, int(m.group.Applied()), 10)
		require.Greater(t, int(m.log.LastIndex()), 600)
	}
	most := 0
	f.watch = func() {
		for _, m := range f.members {
			for _, r := range m.group.storage.feed.ranges {
				n := 0
				for i := range r.entries {
					n += len(r.entries[i].Data)
				}
				most = max(most, n)
			}
		}
	}
	l := f.elect()
	require.NotEqual(t, uint64(3), l.id, "it lacks a half")
	l.propose("after")
	f.settle()
	f.tick(10)
	f.equal()
	require.Len(t, l.applied(), 1201)
	require.Equal(t, l.applied(), f.members[3].applied())
	require.LessOrEqual(t, most, FeedBytes+4096)
	for _, m := range f.members {
		require.GreaterOrEqual(t, m.ownReads, 1, "replica %d", m.id)
		require.Empty(t, m.group.storage.feed.ranges)
		require.Zero(t, m.group.unloaded)
	}
	require.GreaterOrEqual(t, l.ownReads, 4)
}

// While it applies them it does not campaign: raft would look through all of them.
func TestRuleR2_NobodyCampaignsBeforeItHasAppliedWhatIsOnTheDisk(t *testing.T) {
	f := aKilledFleet(t)
	for _, id := range f.founders {
		f.members[id].open()
	}
	m := f.members[2]
	m.slow = true
	l := f.lead(1)
	f.tick(3)
	require.False(t, m.group.Ready())
	term := m.log.HardState().Term
	l.crash(false)
	m.inbox.PutEvent(PeerEvent{Kind: PeerDown, Node: 1, Refused: true}) // it would be the first to campaign
	m.group.Turn()
	for range 50 {
		m.group.Tick(1)
		m.group.Turn()
	}
	require.NoError(t, m.group.Err())
	require.Equal(t, term, m.log.HardState().Term, "it has not campaigned")
	m.slow = false
	l.open()
	f.elect()
	f.tick(2 * feedPatience) // then it asks again
	f.equal()
}

// A leader that waits for what it has to apply says that it is there, and counts who answers:
// it does not read from the beginning as a follower of the next one, which would have to read
// as much.
func TestRuleR9_ALeaderThatReadsWhatItFoundIsHeard(t *testing.T) {
	f := aKilledFleet(t)
	for _, id := range f.founders {
		f.members[id].open()
	}
	m := f.members[1]
	m.slow = true
	m.group.Campaign()
	f.settle()
	term := m.group.node.BasicStatus().Term
	f.tick(4 * electionTicks)
	require.Less(t, m.group.Applied(), m.group.unloaded, "or it waits for nothing")
	for _, id := range f.founders {
		status := f.members[id].group.node.BasicStatus()
		require.Equal(t, term, status.Term, "replica %d", id)
		require.EqualValues(t, 1, status.Lead, "replica %d", id)
	}
	require.Equal(t, f.members[2].log.LastIndex(), f.members[2].group.Applied(), "it is told what is committed")

	// But it does not wait for ever where another one can go on.
	f.tick(2 * feedPatience)
	require.Same(t, f.members[2], f.leader())
	require.Greater(t, f.members[2].group.node.BasicStatus().Term, term)
	m.slow = false
	f.tick(2 * feedPatience)
	f.equal()
}

// So does a follower: it answers its leader, and gives its vote.
func TestRuleR9_AFollowerThatReadsWhatItFoundAnswers(t *testing.T) {
	f := aKilledFleet(t)
	for _, id := range f.founders {
		f.members[id].open()
	}
	for _, id := range []uint64{2, 3} {
		f.members[id].slow = true
	}
	l := f.lead(1)
	term := l.group.node.BasicStatus().Term
	f.tick(4 * electionTicks)
	require.Less(t, f.members[2].group.Applied(), f.members[2].group.unloaded, "or it waits for nothing")
	require.Same(t, l, f.leader(), "most of the others answer")
	require.Equal(t, term, l.group.node.BasicStatus().Term)
	l.crash(false)
	f.members[3].slow = false
	f.members[3].group.Turn()
	require.EqualValues(t, 1, f.members[2].group.node.BasicStatus().Lead)
	f.tick(2 * electionTicks)
	require.Zero(t, f.members[2].group.node.BasicStatus().Lead, "it is not heard any more")
}

// Another leader may take back what was found; nothing that was read of it is applied.
func TestRuleR2_WhatIsTakenBackIsNotApplied(t *testing.T) {
	f := newFleet(t)
	f.mode, f.founders, f.load = log.SyncOS, []uint64{1, 2, 3}, 1
	for _, id := range f.founders {
		f.add(id)
	}
	l := f.lead(1)
	for i := range 100 {
		l.propose(fmt.Sprintf("common %04d", i))
	}
	f.settle()
	f.isolate(1)
	for i := range 50 {
		l.propose(fmt.Sprintf("lost %04d", i))
	}
	l.crash(false)
	f.tick(20)
	next := f.elect()
	for i := range 20 {
		next.propose(fmt.Sprintf("other %04d", i))
	}
	f.settle()
	l.open()
	require.Equal(t, next.log.LastIndex()+29, l.log.LastIndex())
	f.heal()
	f.tick(10)
	f.equal()
	require.Len(t, l.applied(), 120)
	require.Positive(t, l.ownReads)
}

// What another leader has taken back is not on the disk any more, and is not waited for: a
// replica that afterwards falls behind the start of the leader's log gets a snapshot.
func TestRuleR2_WhatWasTakenBackKeepsNoSnapshotOut(t *testing.T) {
	f := newFleet(t)
	f.mode, f.founders, f.load, f.segment, f.checkpoint = log.SyncOS, []uint64{1, 2, 3}, 1, 64<<10, 100<<10
	for _, id := range f.founders {
		f.add(id)
	}
	l := f.lead(1)
	l.propose("common")
	f.settle()
	f.isolate(1)
	for i := range 50 {
		l.propose(fmt.Sprintf("lost %04d", i))
	}
	l.crash(false)
	f.tick(20)
	next := f.elect()
	next.propose("other")
	f.settle()
	l.open()
	last := l.log.LastIndex()
	f.heal()
	f.tick(10)
	f.equal()
	require.Less(t, l.log.LastIndex(), last, "most of what was found is taken back")
	f.isolate(1)
	for i := range 300 {
		next.propose(fmt.Sprintf("%03d %02000d", i, i))
		f.settle()
	}
	f.tick(12)
	for _, m := range f.members {
		if m != l {
			m.log.Trim(m.log.NextOffset() - 5)
			m.log.MarkIdle()
			f.settle()
		}
	}
	require.Greater(t, next.log.FirstIndex(), last)
	l.slow = true // nothing has to be read
	f.heal()
	f.tick(30)
	require.Equal(t, 1, l.fetches)
	f.caughtUp(l, next)
}

// Who has two changes of the configuration in its log knows that the first counts, however
// it came by them: what the leader says to be committed is not left behind with what this
// replica has not loaded yet. It could elect itself with voters of before otherwise.
func TestRuleR10_WhatIsCommittedBeforeAChangeIsKnownWithIt(t *testing.T) {
	f := aKilledFleet(t)
	f.members[1].open()
	f.members[2].open()
	l := f.elect()
	f.settle()
	f.add(4)
	f.add(5)
	var changes []wire.Index
	for _, id := range []uint64{4, 5} {
		changes = append(changes, l.group.NextIndex())
		require.NoError(t, l.group.Reconfigure(Membership{AddLearners: []uint64{id}}))
		f.settle()
	}
	m := f.members[3]
	m.open()
	f.until(l, func() bool {
		if commit := wire.Index(m.group.node.BasicStatus().Commit); m.log.LastIndex() >= changes[1] {
			require.GreaterOrEqual(t, commit, changes[0])
		}
		return m.group.Applied() >= changes[1]
	})
	f.tick(2 * feedPatience)
	require.Equal(t, []uint64{4, 5}, m.group.Members().Learners)
	require.Equal(t, l.applied(), m.applied())
}
