package replication

import (
	"errors"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"

	"github.com/lockstepmq/lockstep/log"
	"github.com/lockstepmq/lockstep/vfs"
	"github.com/lockstepmq/lockstep/wire"
)

// Whatever keeps a replica from ticking or answering, those that are left of a majority
// get a leader.

// A group sleeps, and its leader is fenced by the first thing that wakes it: its node lives,
// so nobody is told that the leader is gone.
func TestRuleR8_AFencedLeaderWakesTheOthers(t *testing.T) {
	f, l := asleep(t)
	l.group.Fence(errors.New("the disk is gone"))
	f.settle()
	f.tick(4 * electionTicks)
	next := uint64(0)
	for _, id := range []uint64{2, 3} {
		if _, leads := f.members[id].group.Leading(); leads {
			next = id
		}
	}
	require.NotZero(t, next, "a fenced leader sleeps on, and the others with it")
}

// A replica that lost power and nothing else comes back while the others are there. The
// leader whose term it knows goes on; later that one is lost.
func TestRuleL5_WhoCameBackUncertainIsCertainBeforeTheNextLossOfANode(t *testing.T) {
	f := newFleet(t)
	f.mode, f.founders = log.SyncOS, []uint64{1, 2, 3}
	for _, id := range f.founders {
		f.add(id)
	}
	l := f.lead(1)
	l.propose("a")
	f.settle()
	m := f.members[3]
	m.log.SyncNow()
	f.settle()
	m.crash(true)
	m.config = func(c *Config) { c.Uncertain = true }
	m.open()
	f.tick(2 * reassureTicks)
	require.False(t, m.group.Uncertain())
	l = f.elect()
	l.propose("b")
	f.settle()
	f.tick(5)
	f.equal()
	l.crash(false)
	f.elect()
}

// Between two attempts lies a while, whoever has led before: a follower is not certain at once
// when the next one leads, and two that hand on to each other would serve nobody.
func TestRuleL5_WhoHasJustBegunToLeadDoesNotHandOnAgain(t *testing.T) {
	f := newFleet(t)
	f.mode, f.founders = log.SyncOS, []uint64{1, 2, 3}
	for _, id := range f.founders {
		f.add(id)
	}
	l, next := f.lead(1), f.members[2]
	for _, to := range []*member{next, l} {
		l.propose("a")
		f.settle()
		f.tick(5)
		f.leader().group.sinceReassured = reassureTicks // as after 5 s
		require.NoError(t, f.leader().group.Transfer(to.id))
		f.settle()
		require.Same(t, to, f.leader())
		l = to
	}
	m := f.members[3]
	m.crash(true)
	m.config = func(c *Config) { c.Uncertain = true }
	m.open()
	f.lose = func(e envelope) bool { // what tells it that the first entry of the next term is committed
		return e.from == next.id && e.to == m.id && (e.beat != nil || len(e.message.Entries) == 0)
	}
	for range 2 * reassureTicks {
		f.tick(1)
		if f.leader() == next {
			break
		}
	}
	require.Same(t, next, f.leader())
	require.Contains(t, next.group.doubtful, m.id)
	f.tick(5)
	require.Same(t, next, f.leader())
	f.lose = nil
	f.tick(2 * reassureTicks)
	require.False(t, m.group.Uncertain())
}

// The entry that ends a joint configuration is refused while the leadership is being handed
// over. If nobody takes it, and nobody writes, the configuration ends all the same.
func TestF18_AJointConfigurationEndsAfterAHandOverThatFailed(t *testing.T) {
	f := newFleet(t)
	f.founders = []uint64{1, 2, 3}
	for _, id := range f.founders {
		f.add(id)
	}
	l := f.lead(1)
	require.NoError(t, l.group.Reconfigure(Membership{AddLearners: []uint64{4}}))
	f.add(4)
	f.settle()
	f.tick(10)
	require.NoError(t, l.group.Reconfigure(Membership{Promote: []uint64{4}, Remove: []uint64{3}}))
	f.lose = func(e envelope) bool { return e.message != nil && e.message.Type == raftpb.MsgTimeoutNow }
	require.NoError(t, l.group.Transfer(2))
	f.settle()
	require.Equal(t, raft.StateLeader, l.group.node.BasicStatus().RaftState)
	f.tick(100)
	require.Empty(t, l.group.Members().Outgoing)
	require.Equal(t, []uint64{1, 2, 4}, l.group.Members().Voters)
}

// withoutRoom has replica 3 of three without room for what its leader, 1, has given it. The
// function that it returns makes room.
func withoutRoom(t *testing.T) (f *fleet, m *member, room func()) {
	f = newFleet(t)
	f.founders = []uint64{1, 2, 3}
	for _, id := range f.founders {
		f.add(id)
	}
	m = f.members[3]
	l := f.lead(1)
	l.propose("a")
	f.settle()
	room = f.crowd(m)
	for range 100_000 {
		data := l.pool.Get(wire.EntryPrefixSize + 2000)
		wire.PutEntryPrefix(data, wire.KindControl, 0, 5000)
		if _, err := l.group.Propose(data); err != nil {
			l.pool.Put(data)
		}
		f.settle()
		if errors.Is(m.group.Stalled(), log.ErrDiskFull) {
			break
		}
	}
	require.ErrorIs(t, m.group.Stalled(), log.ErrDiskFull)
	return f, m, room
}

// crowd leaves a member's disk without space for new files, until the function that it returns makes
// some.
func (f *fleet) crowd(m *member) (room func()) {
	full := true
	m.files.Inject(func(op vfs.Op, _ string) error {
		if full && op == vfs.OpAllocate {
			return errors.Join(vfs.ErrNoSpace, syscall.ENOSPC)
		}
		return nil
	})
	return func() {
		full = false
		require.NoError(f.t, m.store.RefreshSpace())
		m.group.Turn()
		f.settle()
	}
}

// A follower whose disk has no room for what it was given cannot answer either: what it
// would say waits behind that. Its leader asks with every heartbeat, for as long as it takes.
func TestRuleL10_WhatAFollowerWithoutRoomHasToSayIsBounded(t *testing.T) {
	f, m, room := withoutRoom(t)
	f.tick(1000)
	require.LessOrEqual(t, len(m.group.held), 2*maxHeld)
	room()
	f.tick(5)
	f.equal()
}

// Who has no room for what it was given would have none for the first entry of a term: it does
// not ask to be elected, however long nobody leads, and gives its vote once it has room.
func TestRuleL10_WhoHasNoRoomDoesNotCampaign(t *testing.T) {
	f, m, room := withoutRoom(t)
	asked := 0
	f.lose = func(e envelope) bool {
		if e.from == m.id && e.message != nil && (e.message.Type == raftpb.MsgPreVote || e.message.Type == raftpb.MsgVote) {
			asked++
		}
		return false
	}
	l := f.members[1]
	l.crash(false)
	f.tick(10 * electionTicks)
	require.Zero(t, asked)
	room()
	require.Contains(t, []uint64{2, 3}, f.elect().id)
	l.open()
	f.tick(5)
	f.equal()
}

// Whoever has no room for what it was given has it all the same. A leader that does not know
// that, and whose log begins behind it by then, offers a snapshot for nothing: raft only moves
// its commit, and what was fetched for it must not keep out what follows.
func TestRuleR1_WhoHoldsWhatItHasNoRoomForNeedsNoSnapshot(t *testing.T) {
	f := newFleet(t)
	f.founders, f.segment, f.checkpoint = []uint64{1, 2, 3}, 4096, 1<<40 // one large entry for each segment
	for _, id := range f.founders {
		f.add(id)
	}
	l, m := f.lead(1), f.members[3]
	l.propose("a")
	f.settle()
	room := f.crowd(m)
	f.lose = func(e envelope) bool { // what tells it how far that is committed
		return e.to == m.id && e.message != nil && e.message.Type == raftpb.MsgApp && len(e.message.Entries) == 0
	}
	for m.group.Stalled() == nil {
		data := l.pool.Get(wire.EntryPrefixSize + 2000)
		wire.PutEntryPrefix(data, wire.KindControl, 0, 5000)
		_, err := l.group.Propose(data)
		require.NoError(t, err)
		f.settle()
	}
	require.ErrorIs(t, m.group.Stalled(), log.ErrDiskFull)
	held := m.group.lastIndex()
	require.Equal(t, held, m.log.LastIndex()+1)
	start := l.log.NextOffset()
	l.propose(string(make([]byte, 2000)))
	f.settle()
	for range 2 {
		l.propose(string(make([]byte, 2000)))
		f.settle()
		l.group.Checkpoint()
		f.settle()
	}
	l.log.Trim(start)
	l.log.MarkIdle()
	f.settle()
	require.Equal(t, held, l.log.Start().Index)
	f.lost(l.id, m.id)
	f.tick(offerTicks)
	f.lose = nil
	room()
	f.tick(2 * offerTicks)
	require.Zero(t, m.fetches)
	require.False(t, m.group.installing())
	f.caughtUp(m, l)
}
