package replication

import (
	"fmt"
	"slices"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"

	"github.com/lockstepmq/lockstep/wire"
)

// A group of which a majority is gone for good cannot change its configuration: that
// takes the majority. What an operator decides then is done outside of consensus. One
// replica makes itself the only voter, in memory; it elects itself, by which all that its
// log holds is committed; and the first entry that it proposes takes the others out of the
// configuration for everybody who reads the log later. A crash before that entry is
// committed leaves a replica that has to be told again, which the metadata do until it has
// reported. Nothing is taken back by telling it twice.
//
// What the others hold and it does not is lost, committed or not. So nothing that they
// send may count any more: see Disown.

// takeOverTerms is how far a replica that takes over raises its term, so that it lies
// above those that the others may have reached without it.
const takeOverTerms = 1 << 10

// takeOver is how far TakeOver has come.
type takeOver struct {
	others []uint64   // that are to be out of the configuration
	index  wire.Index // of the entry that takes them out, 0: not proposed
}

// Disown has every message of some other replicas dropped: they were given up.
func (g *Group) Disown(outcast func(replica uint64) bool) { g.outcast = outcast }

// TakeOver makes this replica the only voter although a majority has not agreed, without
// others and every other member. It is to be called again until TookOver. The caller has
// made sure that others know what may be lost, and disowns the rest.
func (g *Group) TakeOver(others []uint64) error {
	if err := g.Err(); err != nil {
		return err
	}
	if !g.Ready() {
		return fmt.Errorf("%w: its state is newer than its log", ErrMembership)
	}
	g.waiting, g.uncertain = false, false
	g.wake()
	g.guard(func() { g.takeOver(others) })
	return g.fenced
}

func (g *Group) takeOver(others []uint64) {
	t := &g.taking
	for _, id := range slices.Concat(others, g.confState.Voters, g.confState.VotersOutgoing, g.confState.Learners, g.confState.LearnersNext) {
		if id != g.id && !slices.Contains(t.others, id) {
			t.others = append(t.others, id)
		}
	}
	slices.Sort(t.others)
	status := g.node.BasicStatus()
	switch {
	case g.leading && g.soleVoter():
		if t.index == 0 {
			t.index = g.NextIndex()
			if err := g.node.ProposeConfChange(t.change(g.id)); err != nil {
				t.index = 0
				g.logger.Warn("the other replicas are not taken out of the configuration yet", "replica", g.id, "err", err)
			}
		}
	case status.RaftState == raft.StateLeader:
		// It waits for its first entry, or notices by itself that it has no majority.
	case g.soleVoter() && status.RaftState != raft.StateFollower:
		// Its vote for itself is on the way to the disk.
	default:
		t.index = 0
		g.forceAlone()
		// Raft takes a term from any message of a member, and its own are as good.
		g.input(raftpb.Message{Type: raftpb.MsgHeartbeatResp, From: g.id, To: g.id, Term: min(status.Term+takeOverTerms, uint64(MaxTerm)-1)})
		g.campaign()
	}
	g.advance()
}

// change takes the others out of any configuration.
func (t *takeOver) change(self uint64) raftpb.ConfChangeV2 {
	change := raftpb.ConfChangeV2{Transition: raftpb.ConfChangeTransitionAuto, Changes: []raftpb.ConfChangeSingle{{Type: raftpb.ConfChangeAddNode, NodeID: self}}}
	for _, id := range t.others {
		change.Changes = append(change.Changes, raftpb.ConfChangeSingle{Type: raftpb.ConfChangeRemoveNode, NodeID: id})
	}
	return change
}

// forceAlone changes the configuration that counts here, and no entry says so.
func (g *Group) forceAlone() {
	if g.soleVoter() && len(g.confState.Learners) == 0 && len(g.confState.LearnersNext) == 0 {
		return
	}
	if len(g.confState.VotersOutgoing) > 0 {
		g.node.ApplyConfChange(raftpb.ConfChangeV2{})
	}
	change := g.taking.change(g.id)
	change.Transition = raftpb.ConfChangeTransitionJointExplicit
	g.node.ApplyConfChange(change)
	g.confState = *g.node.ApplyConfChange(raftpb.ConfChangeV2{})
	g.logger.Warn("this replica goes on alone, as its operator wants: what only others had is lost",
		"replica", g.id, "others", g.taking.others, "last", g.log.LastIndex(), "next_offset", g.NextOffset())
}

// TookOver reports whether the log says, and a majority knows, that this replica is the
// only voter.
func (g *Group) TookOver() bool {
	return g.taking.index > 0 && g.confIndex >= g.taking.index && g.soleVoter() && g.leading
}
