package replication

import (
	"errors"
	"fmt"
	"slices"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"go.etcd.io/raft/v3/tracker"

	"github.com/lockstepmq/lockstep/log"
	"github.com/lockstepmq/lockstep/wire"
)

const (
	// FeedBytes is how much is read at a time for a follower that lags, in bytes of
	// entry data, or one entry. One such range is kept for each of them. It is less than
	// a message may hold: what is read, sent, written and synced in one piece holds up
	// what producers wait for.
	FeedBytes = MaxMessageBytes / 2
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
	source Feed         // nil: followers get what is in memory only
	wanted []wire.Index // asked for and not there, since the last look
	ranges []feedRange  // at most one for each follower
}

// feedRange is what is in memory, or on its way, for one follower.
type feedRange struct {
	to      uint64
	first   wire.Index
	entries []log.Entry // nil while they are being read
	reading bool
	paced   bool // Fed.Paced
	ticks   int  // since the read was asked for
}

func newFeeding(source Feed) *feeding { return &feeding{source: source} }

// of is the range for a follower, nil if there is none.
func (f *feeding) of(to uint64) *feedRange {
	for i := range f.ranges {
		if f.ranges[i].to == to {
			return &f.ranges[i]
		}
	}
	return nil
}

func (f *feeding) drop(to uint64) {
	f.ranges = slices.DeleteFunc(f.ranges, func(r feedRange) bool { return r.to == to })
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

// find finds an entry of raft in what was read. Ranges for several followers may hold
// the same entry, each with memory of its own.
func (f *feeding) find(e *raftpb.Entry) (*log.Entry, bool) {
	i := wire.Index(e.Index)
	for _, r := range f.ranges {
		if i < r.first || i >= r.first+wire.Index(len(r.entries)) {
			continue
		}
		if kept := &r.entries[i-r.first]; sameEntry(kept, e) {
			return kept, true
		}
	}
	return nil, false
}

// feedFollowers asks for what raft has wanted to send and not found in memory.
func (g *Group) feedFollowers() {
	f := g.storage.feed
	g.readAhead()
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
			if r := f.of(id); r != nil && r.reading && r.ticks < feedPatience {
				return
			}
			if f.source.Read(g.log, id, g.peers[id], lo, FeedBytes) {
				f.drop(id)
				f.ranges = append(f.ranges, feedRange{to: id, first: lo, reading: true})
			}
			return
		}
	})
}

// hungry is the next entry that raft is about to hand over, if it is on the disk only and
// has to be read first, see ready.
func (g *Group) hungry() (next wire.Index, yes bool) {
	if g.unloaded == 0 {
		return 0, false
	}
	next = max(g.handed, g.raftApplied) + 1
	if !g.behind() || next > g.unloaded || wire.Index(g.node.BasicStatus().Commit) < next {
		return 0, false
	}
	if _, there := g.log.InTail(next); there {
		return 0, false // another leader has replaced what was on the disk
	}
	r := g.storage.feed.of(g.id)
	return next, r == nil || next < r.first || next >= r.first+wire.Index(len(r.entries))
}

// behind says that entries which are on the disk only are known to be committed and
// not applied.
func (g *Group) behind() bool {
	return g.unloaded > 0 && g.raftApplied < min(g.unloaded, wire.Index(g.node.BasicStatus().Commit))
}

// feedSelf asks for what this replica itself has to apply and was too much to be
// loaded at the start.
func (g *Group) feedSelf() {
	f := g.storage.feed
	if g.unloaded > 0 && g.raftApplied >= g.unloaded {
		g.unloaded = 0
		f.drop(g.id)
	}
	next, yes := g.hungry()
	if r := f.of(g.id); !yes || r != nil && r.reading && r.first == next && r.ticks < feedPatience {
		return
	}
	if f.source.Read(g.log, g.id, g.nodeID, next, FeedBytes) {
		f.drop(g.id)
		f.ranges = append(f.ranges, feedRange{to: g.id, first: next, reading: true})
	}
}

// fed takes what was read for a follower and makes raft ask for it again. A
// heartbeat answer does that; it also says that the follower is alive, so it is
// given only if raft thinks so already: the next real one does it otherwise.
func (g *Group) fed(r Fed) {
	f := g.storage.feed
	asked := f.of(r.To)
	if asked == nil || !asked.reading || asked.first != r.First {
		return
	}
	for i := range r.Entries {
		if term, ok := g.log.Term(r.Entries[i].Index); !ok || term != r.Entries[i].Term {
			f.drop(r.To) // it was taken back meanwhile
			return
		}
	}
	if r.To == g.id && errors.Is(r.Err, log.ErrCorrupt) {
		g.Fence(fmt.Errorf("an entry that is not applied yet cannot be read: %w", r.Err))
		return
	}
	if r.Err != nil || len(r.Entries) == 0 {
		g.logger.Warn("entries for a follower cannot be read", "replica", g.id, "follower", r.To, "first", r.First, "err", r.Err)
		f.drop(r.To)
		return
	}
	asked.reading, asked.entries, asked.paced, asked.ticks = false, r.Entries, r.Paced, 0
	if r.To == g.id {
		return
	}
	status := g.node.BasicStatus()
	active := false
	g.node.WithProgress(func(id uint64, _ raft.ProgressType, pr tracker.Progress) {
		active = active || id == r.To && pr.RecentActive
	})
	if active && status.RaftState == raft.StateLeader {
		g.input(raftpb.Message{Type: raftpb.MsgHeartbeatResp, From: r.To, To: g.id, Term: status.Term})
	}
}

// ageFeeds is called with every tick: what a follower has, or nobody asks for any
// more, is forgotten.
func (g *Group) ageFeeds() {
	f := g.storage.feed
	if len(f.ranges) == 0 {
		return
	}
	if g.node.BasicStatus().RaftState != raft.StateLeader {
		f.ranges = slices.DeleteFunc(f.ranges, func(r feedRange) bool { return r.to != g.id })
	}
	for i := range f.ranges {
		f.ranges[i].ticks++
	}
	g.node.WithProgress(func(id uint64, _ raft.ProgressType, pr tracker.Progress) {
		if r := f.of(id); r != nil && id != g.id && !r.reading && wire.Index(pr.Match) >= r.first+wire.Index(len(r.entries))-1 {
			f.drop(id)
		}
	})
	f.ranges = slices.DeleteFunc(f.ranges, func(r feedRange) bool { return r.ticks > 2*feedPatience })
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
