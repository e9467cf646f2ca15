package replication

import (
	"testing"

	"github.com/stretchr/testify/require"
	"go.etcd.io/raft/v3/raftpb"
)

// A leader hands on if a follower that is uncertain lacks what it had acknowledged to it. From
// one that is certain, such an answer is an old one, or it lacks nothing.
func TestRuleL5_OnlyALossCostsTheLeadership(t *testing.T) {
	for name, c := range map[string]struct {
		uncertain bool
		lacks     uint64 // of what it had acknowledged
		handsOn   bool
	}{
		"it has lost something": {true, 1, true},
		"it has all":            {true, 0, false},
		"it is certain":         {false, 1, false},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFleet(t, 1, 2, 3)
			l := f.lead(1)
			l.propose("a")
			f.settle()
			f.tick(3)
			term, _ := l.group.Leading()
			last := uint64(l.log.LastIndex())
			require.True(t, l.inbox.Put(&Message{
				Message:   raftpb.Message{Type: raftpb.MsgAppResp, From: 3, To: 1, Term: uint64(term), Index: last, Reject: true, RejectHint: last - c.lacks},
				Uncertain: c.uncertain,
			}))
			l.group.Turn()
			require.Equal(t, c.handsOn, l.group.Paused())
			if c.handsOn {
				require.EqualValues(t, 2, l.group.node.BasicStatus().LeadTransferee, "not to the one that has lost it")
			}
		})
	}
}

// A follower counts as uncertain for as long as it says so, in the term of this leader.
func TestRuleL5_WhoSaysThatItIsUncertainIsUntilItSaysOtherwise(t *testing.T) {
	g := &Group{}
	says := func(term uint64, uncertain bool) {
		g.doubt(&Message{Message: raftpb.Message{From: 3, Term: term}, Uncertain: uncertain}, 7)
	}
	says(6, true)
	require.Empty(t, g.doubtful)
	says(7, true)
	says(6, false)
	require.Equal(t, map[uint64]uint64{3: 7}, g.doubtful)
	says(7, false)
	require.Empty(t, g.doubtful)
}

// A leader hands on for the sake of an uncertain follower only where the certain voters in step
// are a majority of all: fewer might not elect anybody.
func TestRuleL5_ALeaderHandsOnAmongACertainMajority(t *testing.T) {
	for _, c := range []struct {
		uncertain []uint64
		handsOn   bool
	}{{[]uint64{5}, true}, {[]uint64{4, 5}, true}, {[]uint64{3, 4, 5}, false}, {nil, false}} {
		f := newFleet(t, 1, 2, 3, 4, 5)
		l := f.lead(1)
		l.propose("a")
		f.settle()
		f.tick(3)
		term, _ := l.group.Leading()
		l.group.doubtful = map[uint64]uint64{}
		for _, id := range c.uncertain {
			l.group.doubtful[id] = uint64(term)
		}
		l.group.sinceReassured = reassureTicks
		l.group.reassure()
		require.Equal(t, c.handsOn, l.group.Paused(), "uncertain: %v", c.uncertain)
	}
}
