package replication

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
	"go.etcd.io/raft/v3/raftpb"

	"github.com/lockstepmq/lockstep/log"
	"github.com/lockstepmq/lockstep/wire"
)

// aDarkFleet is three replicas in mode os whose machines have lost power, and what they
// had not synced: 1 holds 10 records, 2 holds 20 and 3 holds 5 of the 30 that were
// committed. None is up.
func aDarkFleet(t *testing.T) *fleet {
	f := newFleet(t)
	f.mode, f.founders = log.SyncOS, []uint64{1, 2, 3}
	for _, id := range f.founders {
		f.add(id)
	}
	l := f.lead(1)
	syncs := map[int]uint64{5: 3, 10: 1, 20: 2}
	for i := range 30 {
		l.propose(fmt.Sprintf("record %d", i+1))
		f.settle()
		if id, ok := syncs[i+1]; ok {
			f.members[id].log.SyncNow()
			f.settle()
		}
	}
	f.equal()
	for _, id := range f.founders {
		m := f.members[id]
		m.files.CrashLoseAll()
		m.crash(false)
		m.config = func(c *Config) { c.Uncertain = true }
	}
	return f
}

func TestRuleL5_AGroupThatLostPowerAltogetherGoesOnWithTheLongestLog(t *testing.T) {
	f := aDarkFleet(t)
	reformed := map[uint64]wire.Offset{}
	for _, id := range f.founders {
		f.members[id].config = func(c *Config) {
			c.Uncertain = true
			c.Reform = func(next wire.Offset) bool { reformed[id] = next; return true }
		}
	}
	f.members[1].open()
	f.members[3].open()
	f.tick(100)
	require.Nil(t, f.leader(), "the one that is missing may have more")
	require.Empty(t, reformed)
	f.members[2].open()
	l := f.elect()
	require.Equal(t, uint64(2), l.id)
	require.Equal(t, map[uint64]wire.Offset{2: 20}, reformed)
	f.tick(5)
	f.equal()
	require.Len(t, f.members[3].applied(), 20)
	for _, m := range f.members {
		require.False(t, m.group.Uncertain())
	}
	// From here on a majority is enough again.
	l.crash(false)
	f.elect().propose("after")
	f.settle()
}

// Who says that it would elect a replica has not elected it: the votes of all count, not their
// answers to the question before.
func TestRuleL5_AnAnswerToAPreVoteIsNoVote(t *testing.T) {
	f := aDarkFleet(t)
	lost := 0
	f.lose = func(e envelope) bool {
		mute := e.from == 3 && e.message != nil && e.message.Type == raftpb.MsgVoteResp
		if mute {
			lost++
		}
		return mute
	}
	for _, id := range f.founders {
		f.members[id].open()
	}
	f.tick(100)
	require.Positive(t, lost)
	require.Nil(t, f.leader())
	f.lose = nil
	require.Equal(t, uint64(2), f.elect().id)
}

// While voters are exchanged, those of both configurations have to agree.
func TestRuleL5_AllVotersOfBothConfigurationsAgree(t *testing.T) {
	for _, c := range []struct {
		granted []uint64
		want    bool
	}{{[]uint64{2, 3, 4}, true}, {[]uint64{2, 4}, false}, {[]uint64{2, 3}, false}, {nil, false}} {
		g := &Group{id: 1, confState: raftpb.ConfState{Voters: []uint64{1, 2, 4}, VotersOutgoing: []uint64{1, 2, 3}}}
		g.ballot.granted = map[uint64]bool{}
		for _, id := range c.granted {
			g.ballot.granted[id] = true
		}
		require.Equal(t, c.want, g.unanimous(), "granted by %v", c.granted)
	}
}

// Nothing is served before it is known that records may be lost.
func TestRuleL5_TheGroupWaitsUntilItsLossIsKnown(t *testing.T) {
	f := aDarkFleet(t)
	known := false
	asked := 0
	for _, id := range f.founders {
		m := f.members[id]
		m.config = func(c *Config) {
			c.Uncertain = true
			c.Reform = func(wire.Offset) bool { asked++; return known }
		}
		m.open()
	}
	f.tick(100)
	require.Positive(t, asked)
	require.Nil(t, f.leader())
	require.Equal(t, f.members[2].group.bootTerm, f.members[2].log.HardState().Term, "not even a term has begun")
	known = true
	require.Equal(t, uint64(2), f.elect().id)
	f.tick(5)
	f.equal()
}

// A replica whose machine went on is certain of what it has. Two others that are not
// may have held more.
func TestRuleL5_ACertainReplicaDoesNotRelyOnUncertainVotesEither(t *testing.T) {
	for _, certain := range []uint64{1, 2, 3} {
		f := aDarkFleet(t)
		f.members[certain].config = nil
		f.members[certain].open()
		other := uint64(1)
		if certain == 1 {
			other = 3
		}
		f.members[other].open()
		f.tick(60)
		require.Nil(t, f.leader(), "replica %d is certain, %d is there", certain, other)
		f.members[6-certain-other].open()
		require.Equal(t, uint64(2), f.elect().id)
		f.tick(5)
		f.equal()
	}
}

// Two certain replicas are a majority whatever the third says.
func TestRuleL5_ACertainMajorityNeedsNobodyElse(t *testing.T) {
	f := aDarkFleet(t)
	for _, id := range []uint64{1, 2} {
		f.members[id].config = nil
		f.members[id].open()
	}
	m := f.members[3]
	m.open()
	f.isolate(3)
	require.Equal(t, uint64(2), f.elect().id)
	f.heal()
	f.tick(5)
	f.equal()
	require.False(t, m.group.Uncertain())
}

// With the protection taken away two of three go on, and what only the third holds, and
// a producer was told of, is gone.
func TestRuleL5_Catches_UncertainVotesThatCount(t *testing.T) {
	f := aDarkFleet(t)
	for _, id := range []uint64{1, 3} {
		f.members[id].open()
		f.members[id].group.lapses = trusting
	}
	f.tick(60)
	l := f.leader()
	require.NotNil(t, l)
	require.Len(t, l.applied(), 10, "replica 2 holds 20 of the 30 that were acknowledged")
}
