package replication

import (
	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"go.etcd.io/raft/v3/tracker"

	"github.com/lockstepmq/lockstep/wire"
)

// A follower that lags is sent what is committed already, so nobody waits for its
// promises. Each sync of a disk holds up all others of it: 32 of 512 KiB in a second cost
// whoever syncs small writes on the same disk eight times as much at the 99th percentile,
// 4 of 4 MiB hardly anything. So it takes more together, if the leader allows that by a
// commit beyond what it sends: a leader does while producers keep its disk busy, and goes
// on sending meanwhile.
const (
	// lingerBytes is how much entry data a follower writes before it syncs, at the most.
	// The leader sends twice as much without an answer.
	lingerBytes = MaxInflightBytes / 2
	// lingerTicks is for how many ticks it waits for that much.
	lingerTicks = 3
)

// linger is what was written since the last sync was asked for.
type linger struct {
	allowed bool // for what was received last
	bytes   int  // of entries for which it was
	ticks   int
	not     bool // something else waits for the disk
}

// allow takes notice of a message that raft is about to get.
func (l *linger) allow(m *Message) {
	l.allowed = m.Type == raftpb.MsgApp && len(m.Entries) > 0 && m.Commit > m.Entries[len(m.Entries)-1].Index
}

// wrote takes notice of what was written and of the promises about it.
func (l *linger) wrote(m *raftpb.Message) {
	if !l.allowed || len(m.Entries) == 0 || m.Snapshot != nil {
		l.not = true
		return
	}
	l.allowed = false
	for i := range m.Responses {
		if t := m.Responses[i].Type; t != raftpb.MsgAppResp && t != raftpb.MsgStorageAppendResp {
			l.not = true
		}
	}
	for i := range m.Entries {
		l.bytes += len(m.Entries[i].Data) + 1
	}
}

// on says that a sync may wait.
func (l *linger) on() bool {
	return !l.not && l.bytes > 0 && l.bytes < lingerBytes && l.ticks < lingerTicks
}

// sync has the log make durable what somebody waits for.
func (g *Group) sync() {
	if len(g.appends) == 0 && !g.reconfigured || g.linger.on() && g.node.BasicStatus().RaftState == raft.StateFollower {
		return
	}
	g.log.Sync()
	g.reconfigured = false
	g.linger.bytes, g.linger.ticks, g.linger.not = 0, 0, false
}

// hold says by the commit of a MsgApp, which is for a follower that lags, whether it may
// linger: not if its answer is waited for, as before what is erased.
func (g *Group) hold(m *Message) {
	last := m.Entries[len(m.Entries)-1].Index
	if m.Commit <= last {
		return
	}
	if r := g.storage.feed.of(m.To); r != nil && r.paced {
		if _, erased := g.log.ErasedRun(wire.Index(last) + 1); !erased {
			return
		}
	}
	m.Commit = last
}

// readAhead asks for what followers lack next that were sent what was read for them.
func (g *Group) readAhead() {
	f := g.storage.feed
	if len(f.ranges) == 0 || g.node.BasicStatus().RaftState != raft.StateLeader {
		return
	}
	g.node.WithProgress(func(id uint64, _ raft.ProgressType, pr tracker.Progress) {
		r := f.of(id)
		next := wire.Index(pr.Next)
		if id == g.id || r == nil || r.reading || pr.State != tracker.StateReplicate || next != r.first+wire.Index(len(r.entries)) || next > g.log.LastIndex() {
			return
		}
		if _, there := g.log.InTail(next); there {
			return
		}
		if _, erased := g.log.ErasedRun(next); !erased {
			f.wanted = append(f.wanted, next)
		}
	})
}
