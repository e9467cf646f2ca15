package replication

import (
	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"go.etcd.io/raft/v3/tracker"

	"github.com/lockstepmq/lockstep/log"
	"github.com/lockstepmq/lockstep/wire"
)

const (
	// FeedBytes is how much is read at a time for a follower that lags, in bytes of
	// entry data. One such range is kept for each of them.
	FeedBytes = MaxMessageBytes
	// TailKeepBytes bounds what stays in memory after it was applied, in bytes of entry
	// data, because a follower in step has not acknowledged it yet.
	TailKeepBytes = 4 << 20
	// feedPatience is how many ticks a read may take before another is asked for.
	feedPatience = 50
)

// feeding holds what was read for followers that lag. Raft asks the storage for
// entries without saying for whom; what is not in memory is noted, read by a worker,
// and raft is made to ask again.
type feeding struct {
	source Feed                 // nil: followers get what is in memory only
	wanted []wire.Index         // asked for and not there, since the last look
	ranges map[uint64]feedRange // by follower
}

// feedRange is what is in memory, or on its way, for one follower.
type feedRange struct {
	first   wire.Index
	entries []log.Entry // nil while they are being read
	reading bool
	ticks   int // since the read was asked for
}

func newFeeding(source Feed) *feeding {
	return &feeding{source: source, ranges: make(map[uint64]feedRange)}
}

// entries answers from what was read. If it is not there, that is noted.
func (f *feeding) entries(lo, hi wire.Index, maxBytes uint64) ([]log.Entry, bool) {
	for _, r := range f.ranges {
		if lo < r.first || lo >= r.first+wire.Index(len(r.entries)) {
			continue
		}
		entries := r.entries[lo-r.first:]
		if n := hi - lo; n < wire.Index(len(entries)) {
			entries = entries[:n]
		}
		size := uint64(0)
		for n := range entries {
			size += uint64(len(entries[n].Data))
			if n > 0 && size > maxBytes {
				return entries[:n], true
			}
		}
		return entries, true
	}
	f.wanted = append(f.wanted, lo)
	return nil, false
}

// entry finds one entry in what was read.
func (f *feeding) entry(i wire.Index) (*log.Entry, bool) {
	for _, r := range f.ranges {
		if i >= r.first && i < r.first+wire.Index(len(r.entries)) {
			return &r.entries[i-r.first], true
		}
	}
	return nil, false
}

// feedFollowers asks for what raft has wanted to send and not found in memory.
func (g *Group) feedFollowers() {
	f := g.storage.feed
	if len(f.wanted) == 0 {
		return
	}
	wanted := f.wanted
	f.wanted = f.wanted[:0]
	if f.source == nil || g.node.BasicStatus().RaftState != raft.StateLeader {
		return
	}
	g.node.WithProgress(func(id uint64, _ raft.ProgressType, pr tracker.Progress) {
		for _, lo := range wanted {
			if wire.Index(pr.Next) != lo || id == g.id {
				continue
			}
			if r := f.ranges[id]; r.reading && r.ticks < feedPatience {
				return
			}
			if f.source.Read(g.log, id, lo, FeedBytes) {
				f.ranges[id] = feedRange{first: lo, reading: true}
			}
			return
		}
	})
}

// fed takes what was read for a follower and makes raft ask for it again. A
// heartbeat answer does that; it also says that the follower is alive, so it is
// given only if raft thinks so already: the next real one does it otherwise.
func (g *Group) fed(r Fed) {
	f := g.storage.feed
	if old := f.ranges[r.To]; !old.reading || old.first != r.First {
		return
	}
	delete(f.ranges, r.To)
	if r.Err != nil || len(r.Entries) == 0 {
		g.logger.Warn("entries for a follower cannot be read", "replica", g.id, "follower", r.To, "first", r.First, "err", r.Err)
		return
	}
	f.ranges[r.To] = feedRange{first: r.First, entries: r.Entries}
	status := g.node.BasicStatus()
	active := false
	g.node.WithProgress(func(id uint64, _ raft.ProgressType, pr tracker.Progress) {
		active = active || id == r.To && pr.RecentActive
	})
	if active && status.RaftState == raft.StateLeader {
		g.input(raftpb.Message{Type: raftpb.MsgHeartbeatResp, From: r.To, To: g.id, Term: status.Term})
	}
}

// ageFeeds is called with every tick.
func (g *Group) ageFeeds() {
	for id, r := range g.storage.feed.ranges {
		r.ticks++
		if r.ticks > 2*feedPatience {
			delete(g.storage.feed.ranges, id)
			continue
		}
		g.storage.feed.ranges[id] = r
	}
}

// kept is the last entry that no follower in step waits for, within TailKeepBytes.
func (g *Group) kept() wire.Index {
	upto := g.applied
	if g.transport == nil || g.log.TailBytes() > TailKeepBytes || g.node.BasicStatus().RaftState != raft.StateLeader {
		return upto
	}
	g.node.WithProgress(func(id uint64, _ raft.ProgressType, pr tracker.Progress) {
		if id != g.id && pr.State == tracker.StateReplicate && pr.RecentActive {
			upto = min(upto, wire.Index(pr.Match))
		}
	})
	return upto
}
