package replication

import (
	"maps"
	"slices"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/tracker"

	"github.com/lockstepmq/lockstep/wire"
)

// A group in which nothing happens sleeps: its members are not ticked and send no
// heartbeats, so that thousands of idle partitions cost nothing. The leader sends
// everybody to sleep when all have all of the log, know that it is committed and
// answer. Any input wakes a replica, and a follower that wakes wakes its leader. That
// a sleeping leader is alive is what the connections between nodes say: PeerDown
// wakes the replicas of the others (RULES R8, R9).

// quietTicks is for how many ticks nothing must happen before a leader sends its
// group to sleep.
const quietTicks = 20

// Quiet reports whether the group needs no ticks. It may change in every turn.
func (g *Group) Quiet() bool { return g.quiet || g.transport == nil || g.alone() }

// wake ends the sleep.
func (g *Group) wake() {
	g.still = 0
	if !g.quiet {
		return
	}
	g.quiet = false
	g.call(g.node.BasicStatus().Lead)
}

// call wakes a leader.
func (g *Group) call(leader uint64) {
	if node, ok := g.peers[leader]; ok && leader != g.id {
		term := wire.Term(g.node.BasicStatus().Term)
		g.transport.Beat(node, Heartbeat{Meta: g.meta, To: leader, From: g.id, Term: term, Response: true, Wake: true})
	}
}

// rouse wakes the others before a leader falls silent for good: its node lives, so nobody
// tells those that sleep that it is gone.
func (g *Group) rouse() {
	if g.transport == nil || g.node == nil {
		return
	}
	status := g.node.BasicStatus()
	if status.RaftState != raft.StateLeader {
		return
	}
	for _, id := range slices.Sorted(maps.Keys(g.peers)) {
		g.transport.Beat(g.peers[id], Heartbeat{Meta: g.meta, To: id, From: g.id, Term: wire.Term(status.Term), Wake: true})
	}
}

// fallAsleep is called after n ticks.
func (g *Group) fallAsleep(n int) {
	settled, active := g.restful()
	if !settled {
		g.still = 0
		return
	}
	// Raft counts anew who is active in every election timeout.
	if g.still += n; g.still < quietTicks || !active {
		return
	}
	g.quiet, g.storage.feed.ranges = true, nil
	g.node.WithProgress(func(id uint64, _ raft.ProgressType, _ tracker.Progress) {
		if node, ok := g.peers[id]; ok && id != g.id {
			g.transport.Beat(node, Heartbeat{Meta: g.meta, To: id, From: g.id, Term: g.leadTerm, Commit: g.applied, Quiet: true})
		}
	})
}

// restful says that no member lacks anything, and that all of them answer.
func (g *Group) restful() (settled, active bool) {
	last := g.log.LastIndex()
	if !g.leading || !g.settled(last) || len(g.offers) > 0 || len(g.reads) > 0 ||
		len(g.confState.VotersOutgoing) > 0 || g.node.BasicStatus().LeadTransferee != raft.None {
		return false, false
	}
	settled, active = true, true
	g.node.WithProgress(func(id uint64, _ raft.ProgressType, pr tracker.Progress) {
		settled = settled && wire.Index(pr.Match) == last && !g.down[g.peers[id]]
		active = active && (id == g.id || pr.RecentActive)
	})
	return settled, active
}

// settled says that all up to last is written, durable, committed and applied here,
// and that there is no more.
func (g *Group) settled(last wire.Index) bool {
	return len(g.held) == 0 && len(g.appends) == 0 && len(g.queue) == 0 && g.install == nil && !g.uncertain &&
		g.log.LastIndex() == last && g.applied == last && g.raftApplied == last && g.node.BasicStatus().Commit == uint64(last)
}

// sleepWith does as the leader says, if nothing is missing here. It reports whether
// the heartbeat is dealt with.
func (g *Group) sleepWith(h *Heartbeat) bool {
	status := g.node.BasicStatus()
	if status.RaftState != raft.StateFollower || status.Lead != h.From || wire.Term(status.Term) != h.Term || !g.settled(h.Commit) || g.hurry > 0 {
		g.wake()
		g.call(h.From)
		return false
	}
	g.quiet, g.storage.feed.ranges = true, nil
	return true
}
