package replication

import (
	"slices"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
)

// An uncertain replica may have lost entries that it had acknowledged, and committed
// ones among them (RULES L5). So its vote proves nothing in a majority. It counts
// where all voters agree: a log that is at least as long as every other one holds all
// that is left, and everything that any of them knows to be committed. That is how a
// group comes back whose machines have all lost power in the modes os and interval;
// what is gone is told to readers by a new incarnation of the partition.

// ballot is what voters have answered to this replica's last question.
type ballot struct {
	kind    raftpb.MessageType // MsgPreVoteResp or MsgVoteResp
	term    uint64
	granted map[uint64]bool
	held    []raftpb.Message // that count only if all agree
	allowed bool             // they do, and Config.Reform agrees too
}

// poll takes a vote for this replica. It reports whether raft may see it now.
func (g *Group) poll(m *Message, status *raft.BasicStatus) bool {
	certain := !g.uncertain && !m.Uncertain
	asked := m.Type == raftpb.MsgPreVoteResp && status.RaftState == raft.StatePreCandidate && m.Term == status.Term+1 ||
		m.Type == raftpb.MsgVoteResp && status.RaftState == raft.StateCandidate && m.Term == status.Term
	trusts := g.lapses&trusting != 0
	if !asked || trusts {
		return certain || trusts // raft has no use for what it has not asked for
	}
	b := &g.ballot
	if b.kind != m.Type || b.term != m.Term {
		*b = ballot{kind: m.Type, term: m.Term, granted: map[uint64]bool{}}
	}
	b.granted[m.From] = true
	if certain {
		g.input(m.Message)
	} else {
		b.held = append(slices.DeleteFunc(b.held, func(h raftpb.Message) bool { return h.From == m.From }), m.Message)
	}
	if len(b.held) == 0 || g.node.BasicStatus().RaftState != status.RaftState || !g.unanimous() {
		return false
	}
	if !b.allowed && g.reform != nil && !g.reform(g.NextOffset()) {
		return false // the next question finds out
	}
	if !b.allowed {
		b.allowed = true
		g.logger.Warn("all voters agree, and some may have lost what they had acknowledged; the group goes on with the longest log",
			"replica", g.id, "last", g.log.LastIndex(), "next_offset", g.NextOffset(), "pre_vote", m.Type == raftpb.MsgPreVoteResp)
	}
	held := b.held
	b.held = nil
	for i := range held {
		g.input(held[i])
	}
	return false
}

// unanimous reports whether every voter but this one has said yes.
func (g *Group) unanimous() bool {
	for _, voters := range [][]uint64{g.confState.Voters, g.confState.VotersOutgoing} {
		for _, id := range voters {
			if id != g.id && !g.ballot.granted[id] {
				return false
			}
		}
	}
	return true
}

// Uncertain reports whether the replica may have lost what it had acknowledged, and
// has not been made whole by a leader since.
func (g *Group) Uncertain() bool { return g.uncertain }
