package replication

import (
	"testing"

	"github.com/stretchr/testify/require"
	"go.etcd.io/raft/v3/raftpb"

	"github.com/lockstepmq/lockstep/wire"
)

// A leader does not take itself out, but who comes to lead may find in its log that the one
// before has taken it out. It leads until that is committed, and not longer: who is no member
// would decide for those who are.
func TestF18_WhoLeadsWhenItIsTakenOutStepsDown(t *testing.T) {
	f := newFleet(t, 1, 2, 3)
	l := f.lead(1)
	l.propose("a")
	f.settle()
	f.tick(3)
	f.lose = func(e envelope) bool { return e.to == 1 } // it does not hear that its change is committed
	require.NoError(t, l.group.Reconfigure(Membership{Remove: []uint64{3}}))
	change := l.group.NextIndex() - 1
	f.settle()
	require.Equal(t, change, f.members[3].log.LastIndex())
	l.crash(false)
	f.lose = nil

	taken := f.members[3]
	taken.inbox.PutEvent(PeerEvent{Kind: PeerDown, Node: 1}) // 2 may vote for it now
	f.members[2].inbox.PutEvent(PeerEvent{Kind: PeerDown, Node: 1})
	f.members[2].group.Turn()
	taken.group.Campaign()
	f.settle()
	require.Equal(t, []uint64{1, 2}, f.members[2].group.Members().Voters, "committed by 3, in whose term")
	require.Greater(t, taken.group.Applied(), change)
	_, leads := taken.group.Leading()
	require.False(t, leads)
	_, err := taken.group.Propose(make([]byte, wire.EntryPrefixSize))
	require.ErrorIs(t, err, ErrNotLeading)
	f.tick(5 * electionTicks)
	require.Nil(t, f.leader(), "2 alone is no majority of 1 and 2")

	l.open()
	f.elect().propose("b")
	f.settle()
	require.Contains(t, f.leader().applied(), "b")
}

// Who is to be the only voter is not yet, as long as the others have to agree to that: what it
// alone holds is not committed, also not for a replica that is started again.
func TestF18_WhoIsToBeTheOnlyVoterCommitsNothingAloneYet(t *testing.T) {
	f := newFleet(t, 1, 2, 3)
	l := f.lead(1)
	l.propose("a")
	f.settle()
	f.tick(3)
	f.lose = func(e envelope) bool { return e.to == 1 && len(l.group.confState.VotersOutgoing) > 0 }
	require.NoError(t, l.group.Reconfigure(Membership{Remove: []uint64{2, 3}}))
	f.settle()
	require.ErrorIs(t, l.group.Reconfigure(Membership{AddLearners: []uint64{4}}), ErrBusy)
	l.propose("b")
	f.settle()
	require.Equal(t, []string{"a"}, l.applied())
	l.crash(false)
	f.isolate(1)
	l.open()
	require.Equal(t, []string{"a"}, l.applied())
	require.Equal(t, []uint64{1, 2, 3}, l.group.Members().Outgoing)
	f.tick(3 * electionTicks)
	require.Equal(t, []string{"a"}, l.applied())
	f.lose = nil
	f.heal()
	f.tick(5 * electionTicks)
	require.Equal(t, []uint64{1}, f.elect().group.Members().Voters)
	require.Contains(t, f.leader().applied(), "b")
}

// A learner that had everything and is gone is no voter to count on.
func TestF18_ALearnerThatIsGoneDoesNotBecomeAVoter(t *testing.T) {
	f := newFleet(t, 1, 2, 3)
	l := f.lead(1)
	f.add(4)
	require.NoError(t, l.group.Reconfigure(Membership{AddLearners: []uint64{4}}))
	f.settle()
	f.tick(5)
	f.members[4].crash(false)
	require.ErrorIs(t, l.group.Reconfigure(Membership{Promote: []uint64{4}, Remove: []uint64{3}}), ErrMembership)
	f.members[4].open()
	f.tick(5)
	require.NoError(t, l.group.Reconfigure(Membership{Promote: []uint64{4}, Remove: []uint64{3}}))
}

// Offsets are given by the leader, so what anybody else proposes goes to nobody.
func TestAFollowerPassesNoProposalOn(t *testing.T) {
	f := newFleet(t, 1, 2, 3)
	l := f.lead(1)
	l.propose("a")
	f.settle()
	last := l.log.LastIndex()
	m := f.members[2]
	_, err := m.group.Propose(make([]byte, wire.EntryPrefixSize))
	require.ErrorIs(t, err, ErrNotLeading)
	require.Error(t, m.group.node.Propose(make([]byte, wire.EntryPrefixSize)), "nor does raft, if it is asked all the same")
	m.group.Turn()
	for _, e := range f.wires {
		require.NotEqual(t, raftpb.MsgProp, e.message.Type)
	}
	f.settle()
	require.Equal(t, last, l.log.LastIndex())
}

func TestF18_ChangesOfWhoIsNotWhatTheySayAreRefused(t *testing.T) {
	f := newFleet(t, 1, 2, 3)
	l := f.lead(1)
	for _, c := range []Membership{{AddLearners: []uint64{2}}, {AddLearners: []uint64{0}}, {Promote: []uint64{9}}, {Promote: []uint64{2}}} {
		require.ErrorIs(t, l.group.Reconfigure(c), ErrMembership, "%+v", c)
	}
}

// A learner that lacks as much as it may becomes a voter, and one that lacks one entry more
// does not, as long as it is so: who votes and lags holds up those that count on it.
func TestF18_ALearnerMayLackSoMuchAndNotMore(t *testing.T) {
	for more, refusal := range map[int]error{0: nil, 1: ErrMembership} {
		f := newFleet(t, 1, 2, 3)
		l := f.lead(1)
		m := f.add(4)
		require.NoError(t, l.group.Reconfigure(Membership{AddLearners: []uint64{4}}))
		f.settle()
		f.tick(3)
		m.frozen = true
		for range promotable + more {
			l.propose("a")
			f.settle()
		}
		require.ErrorIs(t, l.group.Reconfigure(Membership{Promote: []uint64{4}}), refusal, "%d more", more)
		m.frozen = false
		f.settle()
		if refusal != nil {
			require.NoError(t, l.group.Reconfigure(Membership{Promote: []uint64{4}}))
			f.settle()
		}
		require.Equal(t, []uint64{1, 2, 3, 4}, l.group.Members().Voters)
	}
}
