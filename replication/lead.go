package replication

import (
	"errors"
	"fmt"
	"slices"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"go.etcd.io/raft/v3/tracker"

	"github.com/lockstepmq/lockstep/wire"
)

// ErrNoTransferee is returned by Transfer if no other voter is fit to lead.
var ErrNoTransferee = errors.New("no other voter can take over")

// alone says that the group has no other member: nobody to tick for.
func (g *Group) alone() bool {
	c := &g.confState
	return g.soleVoter() && len(c.Learners) == 0 && len(c.LearnersNext) == 0
}

// Tick is the passing of n times 100 ms for groups with other members. What the inbox
// holds has arrived before: an owner whose turn comes late must not take the others for
// silent while what they have said waits for that turn (RELIABILITY F21).
func (g *Group) Tick(n int) {
	if g.fenced != nil || g.waiting || g.Quiet() {
		return
	}
	g.guard(func() {
		if g.lapses&rash == 0 {
			hurry := g.hurry
			g.collect()
			g.advance()
			if g.hurry > hurry {
				g.hurry += n // a death that this turn has brought: these ticks were before it
			}
		}
		for range n {
			if !g.quiet {
				g.tick()
			}
		}
		g.advance()
		g.fallAsleep(n) // behind the last heartbeats, which would wake the others
	})
}

func (g *Group) tick() {
	g.ageFeeds()
	g.ageOffers()
	g.linger.ticks++
	g.release()
	status := g.node.BasicStatus()
	if status.RaftState != raft.StateLeader {
		g.stalled = stall{}
		// Time is what begins an election, and who has no room for what it has would have
		// none for the first entry of a term.
		if !g.Ready() || len(g.held) > 0 {
			// But who does not hear of its leader must not refuse its vote because of it.
			if g.unheard++; g.unheard >= 2*electionTicks && status.Lead != raft.None {
				g.forgetLeader(status.Lead)
			}
			return
		}
		if g.hurry > 0 {
			g.hurry--
			if g.hurry == 0 && status.Lead == raft.None {
				g.campaign()
			}
		}
	}
	g.node.Tick()
	g.look()
	if g.unasked {
		g.confirmLead() // of one that leads no longer there is nothing to confirm
	}
	for i := range g.reads {
		g.reads[i].ticks++
	}
	if status.RaftState == raft.StateLeader {
		g.escapeStall()
		g.reassure()
		g.leaveJoint()
	}
}

func (g *Group) campaign() {
	if err := g.node.Campaign(); err != nil {
		g.logger.Warn("campaign refused", "replica", g.id, "err", err)
	}
}

// Admit ends Config.Waiting: the replica takes part. With campaign it begins with
// an election if its log is empty, which the preferred leader of a new partition
// does.
func (g *Group) Admit(campaign bool) {
	if !g.waiting {
		return
	}
	g.waiting = false
	if campaign && g.log.LastIndex() == 0 {
		g.Campaign()
	}
}

// Waiting reports whether the replica does not take part before Admit.
func (g *Group) Waiting() bool { return g.waiting }

// SetPeers replaces the nodes of the other replicas. The group keeps the map, which
// must not change any more.
func (g *Group) SetPeers(peers map[uint64]uint32) {
	g.peers = peers
	g.wake()
}

// event takes notice of what happened to another node.
func (g *Group) event(e PeerEvent) {
	status := g.node.BasicStatus()
	g.wake()
	switch e.Kind {
	case PeerUnreachable, PeerDown:
		for _, id := range g.replicasOn(e.Node) {
			g.node.ReportUnreachable(id)
			g.snapshotLost(id)
		}
		if e.Kind == PeerDown {
			if g.down == nil {
				g.down = make(map[uint32]bool)
			}
			g.down[e.Node] = true
		}
		if e.Kind == PeerDown && status.Lead != raft.None && g.peers[status.Lead] == e.Node && status.RaftState == raft.StateFollower {
			g.leaderDied(status.Lead, e.Refused)
		}
	case PeerUp:
		delete(g.down, e.Node)
	case PeerResumed:
		if g.leading && !g.alone() && g.lapses&heedless == 0 {
			g.confirmLead()
		}
	}
}

// confirmLead pauses a leader until a quorum has said that it leads still (RULES R8). If
// none does in time, or too many reads wait, it is asked again with the next tick.
func (g *Group) confirmLead() {
	g.unconfirmed, g.unasked = true, false
	g.ReadIndex(func(_ wire.Index, err error) {
		if g.unasked = errors.Is(err, ErrUnconfirmed); !g.unasked {
			g.unconfirmed = false
		}
	})
}

// replicasOn lists the replicas of a node in order.
func (g *Group) replicasOn(node uint32) (ids []uint64) {
	for id, n := range g.peers {
		if n == node {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}

// leaderDied forgets a leader whose node is down, so that others may be voted for at
// once (RULES R9). If it is dead for certain, the voters that are left campaign one
// after the other, a tick apart, until one has won.
func (g *Group) leaderDied(leader uint64, certain bool) {
	g.forgetLeader(leader)
	if !certain || g.uncertain || !g.Ready() {
		return
	}
	rank := 0
	for _, id := range g.confState.Voters {
		if id != leader && id < g.id {
			rank++
		}
	}
	switch {
	case !slices.Contains(g.confState.Voters, g.id):
	case rank == 0:
		g.campaign()
	default:
		g.hurry = rank + 1 // a whole tick at least
	}
}

func (g *Group) forgetLeader(leader uint64) {
	if err := g.node.ForgetLeader(); err != nil {
		g.logger.Warn("a dead leader is not forgotten", "replica", g.id, "leader", leader, "err", err)
	}
}

// Lead is the replica that leads as far as this one knows, 0 if it knows of none,
// and the term it knows. A leader may be named before it takes proposals.
func (g *Group) Lead() (replica uint64, term wire.Term) {
	if g.fenced != nil {
		return 0, 0
	}
	status := g.node.BasicStatus()
	return status.Lead, wire.Term(status.Term)
}

// Paused says that nothing may be proposed or answered for the moment although the
// replica leads: leadership is being handed over, or has to be confirmed.
func (g *Group) Paused() bool {
	return g.transport != nil && (g.unconfirmed || g.node.BasicStatus().LeadTransferee != raft.None)
}

// Holders is how many voters are known to hold the entry at i stably, this replica
// included. It is for the leader.
func (g *Group) Holders(i wire.Index) int {
	if g.transport == nil || len(g.confState.Voters) == 1 && len(g.confState.VotersOutgoing) == 0 {
		return 1
	}
	n := 0
	g.node.WithProgress(func(_ uint64, typ raft.ProgressType, pr tracker.Progress) {
		if typ == raft.ProgressTypePeer && wire.Index(pr.Match) >= i {
			n++
		}
	})
	return n
}

// Transfer hands leadership to another voter, 0 for the one that has most of the
// log. It is for the leader; whether it succeeds, within an election timeout, shows
// in Lead. Until then the group is Paused.
func (g *Group) Transfer(to uint64) error {
	if err := g.Err(); err != nil {
		return err
	}
	if g.node.BasicStatus().RaftState != raft.StateLeader {
		return ErrNotLeading
	}
	if to == 0 {
		to = g.best()
	}
	if to == 0 || to == g.id || !slices.Contains(g.confState.Voters, to) {
		return fmt.Errorf("%w: replica %d", ErrNoTransferee, to)
	}
	g.wake()
	g.guard(func() { g.node.TransferLeader(to); g.advance() })
	return g.fenced
}

// stallTicks is for how many ticks a leader waits for its disk before it asks
// another replica to lead.
const stallTicks = 20

// stall is a leader's oldest append that is not durable, or not written yet, or the entry
// that it has to read before it can apply it.
type stall struct {
	ticket uint64
	held   bool
	reads  wire.Index // 0: none
	ticks  int
}

// patience is for how many ticks a leader bears it. A read may wait for those of other
// partitions.
func (s *stall) patience() int {
	if s.reads > 0 && s.ticket == 0 && !s.held {
		return feedPatience
	}
	return stallTicks
}

// mute says that a leader has had no room for an entry for so long that it says
// nothing any more: nobody can take over what it cannot write, so it has to be
// deposed.
func (g *Group) mute() bool { return g.stalled.held && g.stalled.ticks >= 2*stallTicks }

// escapeStall hands leadership over when the disk does not answer, or has no room:
// commits need no disk here, but answers do. It is called with every tick of a
// leader.
func (g *Group) escapeStall() {
	now := stall{held: len(g.held) > 0}
	if len(g.appends) > 0 {
		now.ticket = g.appends[0].ticket
	}
	if next, hungry := g.hungry(); hungry {
		now.reads = next
	}
	if now == (stall{}) || now.ticket != g.stalled.ticket || now.held != g.stalled.held || now.reads != g.stalled.reads {
		g.stalled = now
		return
	}
	if g.lapses&enduring != 0 {
		return
	}
	// From then on with every tick: in those after a check of the quorum nobody has
	// answered yet, and one check in so many ticks may always fall on them.
	if g.stalled.ticks++; g.stalled.ticks < g.stalled.patience() || g.node.BasicStatus().LeadTransferee != raft.None || g.mute() {
		return
	}
	if to := g.best(); to != 0 {
		g.logger.Warn("the disk does not answer; another replica is asked to lead", "replica", g.id, "next", to, "ticks", g.stalled.ticks)
		g.node.TransferLeader(to)
	}
}

// reassureTicks lie between two attempts to hand leadership on for followers that are
// uncertain.
const reassureTicks = 50

// reassure hands leadership on when a follower that may have lost what it acknowledged has
// caught up: it becomes certain with a later term only (RULES L5), and as long as it is not,
// the loss of this leader would leave too few votes. Certain voters in step are a majority, or
// it could not end well. It is called with every tick of a leader.
func (g *Group) reassure() {
	if g.sinceReassured++; len(g.doubtful) == 0 || g.sinceReassured < reassureTicks {
		return
	}
	status := g.node.BasicStatus()
	if !g.leading || status.LeadTransferee != raft.None || len(g.held) > 0 || len(g.confState.VotersOutgoing) > 0 {
		return
	}
	certain, waits := 1, uint64(0)
	var to uint64
	var most wire.Index
	g.node.WithProgress(func(id uint64, typ raft.ProgressType, pr tracker.Progress) {
		if id == g.id || typ != raft.ProgressTypePeer || !pr.RecentActive || pr.State != tracker.StateReplicate {
			return
		}
		match := wire.Index(pr.Match)
		switch {
		case g.doubtful[id] == status.Term:
			if g.promotable(match) {
				waits = id
			}
		default:
			certain++
			if match >= most && g.promotable(match) {
				to, most = id, match
			}
		}
	})
	if waits == 0 || to == 0 || certain <= len(g.confState.Voters)/2 {
		return // in the ticks after a check of the quorum nobody has answered yet
	}
	g.sinceReassured = 0
	g.logger.Info("a follower may have lost entries before it caught up; another replica is asked to lead, whose term makes it certain again",
		"replica", g.id, "follower", waits, "next", to)
	g.node.TransferLeader(to)
}

// leaveJoint proposes the end of a joint configuration that raft could not propose when the
// beginning was applied, because the leadership was being handed over: raft itself tries again
// with the next entry only. It is called with every tick of a leader.
func (g *Group) leaveJoint() {
	if len(g.confState.VotersOutgoing) == 0 || !g.leading || len(g.held) > 0 || g.raftApplied != g.log.LastIndex() {
		return
	}
	if err := g.node.ProposeConfChange(raftpb.ConfChangeV2{}); err != nil { // the leadership is still being handed over
		g.logger.Debug("the joint configuration cannot be left yet", "replica", g.id, "err", err)
	}
}

// best is the voter other than this one that has most of the log and answers.
func (g *Group) best() (to uint64) {
	match := uint64(0)
	g.node.WithProgress(func(id uint64, typ raft.ProgressType, pr tracker.Progress) {
		if id != g.id && typ == raft.ProgressTypePeer && pr.RecentActive && slices.Contains(g.confState.Voters, id) && (to == 0 || pr.Match > match) {
			to, match = id, pr.Match
		}
	})
	return to
}

// distrust hands leadership on if a follower has lost what it had acknowledged to
// this leader, which raft cannot send it again: a new term begins to count anew.
func (g *Group) distrust(m *Message) {
	lost := false
	g.node.WithProgress(func(id uint64, _ raft.ProgressType, pr tracker.Progress) {
		lost = lost || id == m.From && m.RejectHint < pr.Match
	})
	if !lost || g.node.BasicStatus().LeadTransferee != raft.None {
		return
	}
	to, match := uint64(0), uint64(0)
	g.node.WithProgress(func(id uint64, typ raft.ProgressType, pr tracker.Progress) {
		if id != g.id && id != m.From && typ == raft.ProgressTypePeer && pr.RecentActive && pr.Match >= match {
			to, match = id, pr.Match
		}
	})
	if to == 0 {
		return
	}
	g.logger.Warn("a follower has lost entries that it had acknowledged; another replica is asked to lead", "replica", g.id, "follower", m.From, "next", to)
	g.node.TransferLeader(to)
}

// Ready reports whether the state machine stands at or above the start of the log,
// all that it knows is known to be committed (RULES R1), and it is not about to apply
// what is on the disk only: raft looks through that before it campaigns.
func (g *Group) Ready() bool {
	return !g.installing() && g.node.BasicStatus().Commit >= uint64(g.applied) && !g.behind()
}
