package replication

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"go.etcd.io/raft/v3/tracker"

	"github.com/lockstepmq/lockstep/log"
	"github.com/lockstepmq/lockstep/wire"
)

// A follower behind the start of the log gets a snapshot: where the log starts, and
// a checkpoint at or above that place (RULES R1). The message only offers it; the
// follower fetches the checkpoint, and raft sees the message when it is there. Then
// the log is replaced by one that begins at the start, and the entries from there on
// come as usual. Those up to the checkpoint are in its state already: they are
// written and not applied. Until the commit has reached the checkpoint the replica is
// not Ready: it neither campaigns nor serves.
//
// A follower that lacks entries which the leader has erased (RULES L7) gets the same, with
// the last of these entries in the place of the log's start. It keeps what it has before the
// run, and passes over the run (log.Pass). The checkpoint is at or above the run's end, so
// the state machine never meets an entry that is gone. It fetches none if its own is: of
// several runs below one checkpoint each costs a message.

// SnapshotGrace is how many ticks the log keeps its start for a follower that was
// offered a snapshot.
const SnapshotGrace = 6000

// offerTicks is after how many ticks an offer is repeated to a follower that has not
// installed it: the message may have been lost, or dropped by a replica that was not
// open yet or had no room, and raft itself waits for ever. Who fetches already takes no
// notice.
const offerTicks = 50

// offering is a follower that was offered a snapshot.
type offering struct {
	ticks int // since the first offer
	sent  int // since the last one
}

// errNotWanted is why an installation ends that raft has no use for.
var errNotWanted = errors.New("raft has no use for it any more")

// installation is a snapshot on its way into this replica.
type installation struct {
	offer   SnapshotOffer
	leader  uint64 // that offered last
	content []byte // of the checkpoint file, nil while it is fetched
}

// installing says that a snapshot is being fetched or put in place.
func (g *Group) installing() bool { return g.install != nil }

// offerSnapshot is what raft is told of: the start of the log, or the end of an erased run,
// if the newest checkpoint lies at or above it and knows all members. A log that starts
// with its first entry needs none, it is fed as a whole.
func (g *Group) offerSnapshot(start log.Link) (raftpb.Snapshot, bool) {
	saved := g.log.SavedCheckpoint()
	if start.Index == 0 {
		return raftpb.Snapshot{}, false
	}
	var conf raftpb.ConfState
	if saved == nil || saved.Applied < start.Index || conf.Unmarshal(saved.ConfState) != nil || !sameMembers(&conf, &g.confState) {
		g.wantCheckpoint = true
		return raftpb.Snapshot{}, false
	}
	return raftpb.Snapshot{Metadata: raftpb.SnapshotMetadata{Index: uint64(start.Index), Term: uint64(start.Term), ConfState: conf}}, true
}

func sameMembers(a, b *raftpb.ConfState) bool {
	return slices.Equal(a.Voters, b.Voters) && slices.Equal(a.Learners, b.Learners) &&
		slices.Equal(a.VotersOutgoing, b.VotersOutgoing) && slices.Equal(a.LearnersNext, b.LearnersNext)
}

// describe adds to a MsgSnap what the follower fetches, and holds the start of the
// log. It is false if that has moved in the meantime.
func (g *Group) describe(m *Message) bool {
	start, saved := g.log.Start(), g.log.SavedCheckpoint()
	var over *log.Link
	if s := m.Message.Snapshot; s != nil && s.Metadata.Index != uint64(start.Index) {
		for i := range g.storage.runs {
			if r := g.storage.runs[i]; uint64(r.After.Index) == s.Metadata.Index {
				start, over = r.After, &r.Before
			}
		}
	}
	if m.Message.Snapshot == nil || m.Message.Snapshot.Metadata.Index != uint64(start.Index) {
		g.node.ReportSnapshot(m.To, raft.SnapshotFailure)
		return false
	}
	m.Message.Snapshot = nil
	m.Snapshot = &SnapshotOffer{
		From: m.From, To: m.To, Term: wire.Term(m.Term), Start: start, Over: over,
		Applied: saved.Applied, Size: saved.Size, CRC: saved.CRC, ConfState: saved.ConfState,
	}
	if g.offers == nil {
		g.offers = make(map[uint64]*offering)
	}
	if o := g.offers[m.To]; o != nil {
		o.sent = 0
		return true
	}
	g.offers[m.To] = &offering{}
	if g.lapses&releasing == 0 {
		g.log.HoldStart(m.To, start.Index)
	}
	g.logger.Info("snapshot offered", "replica", g.id, "follower", m.To, "start", start.Index, "checkpoint", saved.Applied)
	return true
}

// followerAt is storage.follower.
func (g *Group) followerAt(next wire.Index) (any, matched bool) {
	g.node.WithProgress(func(id uint64, _ raft.ProgressType, pr tracker.Progress) {
		if id != g.id && wire.Index(pr.Next) == next {
			any = true
			matched = matched || pr.Match+1 == pr.Next
		}
	})
	return any, matched
}

// offerRuns makes raft offer an erased run to a follower in step that has all before it:
// by itself it does so with the next heartbeat only. It reports whether it did.
func (g *Group) offerRuns() (offered bool) {
	run := g.storage.run
	g.storage.run = nil
	status := g.node.BasicStatus()
	if run == nil || status.RaftState != raft.StateLeader {
		return false
	}
	if _, ok := g.offerSnapshot(run.After); !ok {
		return false // and asks for a checkpoint
	}
	var ready []uint64
	g.node.WithProgress(func(id uint64, _ raft.ProgressType, pr tracker.Progress) {
		if id != g.id && pr.State == tracker.StateReplicate && pr.RecentActive && pr.Match+1 == pr.Next &&
			run.Before.Index < wire.Index(pr.Next) && wire.Index(pr.Next) <= run.After.Index {
			ready = append(ready, id)
		}
	})
	for _, id := range ready {
		g.input(raftpb.Message{Type: raftpb.MsgHeartbeatResp, From: id, To: g.id, Term: status.Term})
	}
	return len(ready) > 0
}

// Snapshots is how many followers are being sent a snapshot.
func (g *Group) Snapshots() int { return len(g.offers) }

// ageOffers is called with every tick: what is not needed any more, or too old, no
// longer holds the start of the log; what was not taken up is offered again.
func (g *Group) ageOffers() {
	if len(g.offers) == 0 {
		return
	}
	sending := map[uint64]bool{}
	if g.node.BasicStatus().RaftState == raft.StateLeader {
		g.node.WithProgress(func(id uint64, _ raft.ProgressType, pr tracker.Progress) {
			// Until it is in step it may still need entries right behind the start.
			sending[id] = pr.State != tracker.StateReplicate
		})
	}
	for _, id := range slices.Sorted(maps.Keys(g.offers)) {
		o := g.offers[id]
		o.ticks, o.sent = o.ticks+1, o.sent+1
		if !sending[id] || o.ticks > SnapshotGrace {
			delete(g.offers, id)
			g.log.FreeStart(id)
			g.node.ReportSnapshot(id, raft.SnapshotFailure) // nothing if there is none
		} else if o.sent >= offerTicks {
			o.sent = 0
			g.node.ReportSnapshot(id, raft.SnapshotFailure) // raft offers it with its next message
		}
	}
}

// snapshotLost says that a follower may have missed an offer.
func (g *Group) snapshotLost(id uint64) { g.node.ReportSnapshot(id, raft.SnapshotFailure) }

// snapshotStatus is a follower's word about a snapshot that it was offered.
func (g *Group) snapshotStatus(m *Message, status *raft.BasicStatus) {
	if status.RaftState == raft.StateLeader && m.Term == status.Term && m.Reject {
		g.node.ReportSnapshot(m.From, raft.SnapshotFailure)
	}
}

// offered takes notice of a leader's offer. It reports whether raft can deal with
// the message at once: then nothing needs to be fetched.
func (g *Group) offered(m *Message, status *raft.BasicStatus) bool {
	o := m.Snapshot
	var conf raftpb.ConfState
	switch {
	case m.Term < status.Term:
		g.drop(m, DropTerm)
		return false
	case o == nil || o.Start.Index == 0 || o.Over != nil && o.Over.Index >= o.Start.Index || o.Start.Term > wire.Term(m.Term) || o.Applied < o.Start.Index || conf.Unmarshal(o.ConfState) != nil:
		g.drop(m, DropEntry)
		return false
	case g.install != nil:
		g.install.leader = m.From // whoever waits for an answer now
		return false
	}
	here, ok := g.term(o.Start.Index)
	if wire.Index(status.Commit) >= o.Start.Index || ok && here == o.Start.Term {
		m.Message.Snapshot = &raftpb.Snapshot{Metadata: raftpb.SnapshotMetadata{Index: uint64(o.Start.Index), Term: uint64(o.Start.Term), ConfState: conf}}
		return true
	}
	if o.Over != nil && !g.followsRun(m) {
		return false
	}
	node, known := g.peers[m.From]
	if g.fetch == nil || !known {
		g.drop(m, DropAddress)
		return false
	}
	if m.Term > status.Term {
		// Whoever offers leads: a heartbeat says so to raft, the offer itself waits.
		g.input(raftpb.Message{Type: raftpb.MsgHeartbeat, To: g.id, From: m.From, Term: m.Term})
	}
	offer := *o
	offer.From, offer.To, offer.Term = m.From, g.id, wire.Term(m.Term)
	g.install = &installation{offer: offer, leader: m.From}
	if saved := g.log.SavedCheckpoint(); o.Over != nil && saved != nil && saved.Applied >= o.Start.Index {
		g.install.content = []byte{}
		g.takeOffer(g.confState)
		return false
	}
	g.logger.Info("snapshot is fetched", "replica", g.id, "from", m.From, "start", o.Start.Index, "checkpoint", o.Applied)
	g.fetch(node, offer)
	return false
}

// followsRun reports whether this replica has all that precedes an erased run that it is
// offered. Who has not would lose it: the leader is told to look again where it is.
func (g *Group) followsRun(m *Message) bool {
	over := m.Snapshot.Over
	term, ok := g.log.Term(over.Index)
	known := wire.Index(g.node.BasicStatus().Commit) >= over.Index
	switch {
	case g.behind() || len(g.held) > 0:
		g.drop(m, DropRoom) // it is offered again
		return false
	case ok && term == over.Term || known && !ok:
	default:
		g.send(&raftpb.Message{Type: raftpb.MsgSnapStatus, To: m.From, From: g.id, Term: m.Term, Reject: true})
		return false
	}
	if chain, ok := g.log.Chain(over.Index); ok && chain != over.Chain {
		g.Fence(fmt.Errorf("%w: entry %d of term %d has the chain value %08x here and %08x on replica %d", ErrDiverged, over.Index, over.Term, chain, over.Chain, m.From))
		return false
	}
	return true
}

// fetched takes a checkpoint that was offered and lets raft see the offer.
func (g *Group) fetched(f Fetched) {
	in := g.install
	if in == nil || in.content != nil || f.Offer.Start != in.offer.Start || f.Offer.From != in.offer.From {
		return
	}
	conf, err := g.judge(&f)
	if err != nil {
		g.abortInstall(err)
		return
	}
	in.content = f.Content
	g.takeOffer(conf)
}

// takeOffer lets raft see an offer that can be carried out.
func (g *Group) takeOffer(conf raftpb.ConfState) {
	in := g.install
	start := in.offer.Start
	g.input(raftpb.Message{
		Type: raftpb.MsgSnap, To: g.id, From: in.offer.From, Term: uint64(in.offer.Term),
		Snapshot: &raftpb.Snapshot{Metadata: raftpb.SnapshotMetadata{Index: uint64(start.Index), Term: uint64(start.Term), ConfState: conf}},
	})
	if g.node.BasicStatus().Commit != uint64(start.Index) {
		g.abortInstall(errNotWanted)
	}
}

// judge says whether a checkpoint that was fetched fits its offer.
func (g *Group) judge(f *Fetched) (conf raftpb.ConfState, err error) {
	if f.Err != nil {
		return conf, f.Err
	}
	offer := &g.install.offer
	c, err := g.log.ParseCheckpoint(f.Content)
	if err != nil {
		return conf, err
	}
	if c.Applied < offer.Start.Index {
		return conf, fmt.Errorf("checkpoint at %d for a log from %d on", c.Applied, offer.Start.Index)
	}
	if err := conf.Unmarshal(c.ConfState); err != nil {
		return conf, fmt.Errorf("checkpoint at %d: configuration: %w", c.Applied, err)
	}
	// Raft drops a snapshot without a word that does not know its receiver.
	if !isMember(&conf, g.id) && g.lapses&credulous == 0 {
		return conf, fmt.Errorf("checkpoint at %d does not know replica %d", c.Applied, g.id)
	}
	if term := g.node.BasicStatus().Term; term != uint64(offer.Term) {
		return conf, fmt.Errorf("offered in term %d, now it is %d", offer.Term, term)
	}
	return conf, nil
}

func isMember(c *raftpb.ConfState, id uint64) bool {
	return slices.Contains(slices.Concat(c.Voters, c.Learners, c.VotersOutgoing), id)
}

// abortInstall gives up what was offered and tells the leader, who offers anew.
func (g *Group) abortInstall(cause error) {
	in := g.install
	g.install = nil
	g.logger.Warn("snapshot is not installed", "replica", g.id, "from", in.leader, "start", in.offer.Start.Index, "err", cause)
	g.send(&raftpb.Message{Type: raftpb.MsgSnapStatus, To: in.leader, From: g.id, Term: g.node.BasicStatus().Term, Reject: true})
}

// replace puts the snapshot of a MsgStorageAppend in the place of log and state.
func (g *Group) replace(m *raftpb.Message) error {
	in := g.install
	if in == nil || uint64(in.offer.Start.Index) != m.Snapshot.Metadata.Index {
		return fmt.Errorf("raft wants a snapshot at %d that was not fetched", m.Snapshot.Metadata.Index)
	}
	if over := in.offer.Over; over == nil {
		if err := g.log.Install(in.offer.Start, in.content); err != nil {
			return err
		}
	} else if err := g.log.Pass(log.ErasedRun{Before: *over, After: in.offer.Start}, in.content); err != nil {
		return err
	}
	cp := g.log.Checkpoint()
	if len(in.content) > 0 {
		if err := g.restore(cp); err != nil {
			return err
		}
	}
	g.raftApplied, g.unloaded = in.offer.Start.Index, 0
	g.storage.feed.ranges = nil // what was read is of the log before
	g.install = nil
	g.logger.Info("snapshot installed", "replica", g.id, "start", in.offer.Start.Index, "checkpoint", cp.Applied)
	if g.restored != nil && len(in.content) > 0 {
		g.restored()
	}
	return nil
}

// restore makes the state that of a checkpoint.
func (g *Group) restore(cp *log.Checkpoint) error {
	g.confState = raftpb.ConfState{}
	if err := g.confState.Unmarshal(cp.ConfState); err != nil {
		return fmt.Errorf("checkpoint at index %d: configuration: %w", cp.Applied, err)
	}
	if err := g.state.Restore(cp.State); err != nil {
		return fmt.Errorf("checkpoint at index %d: state: %w", cp.Applied, err)
	}
	g.applied, g.appliedTerm = cp.Applied, cp.Term
	g.appliedOffset, g.appliedTimeMs = cp.NextOffset, cp.AppendTimeMs
	return nil
}

// OnRestore names the function that is called when the state was replaced by that of
// a fetched checkpoint, in a turn.
func (g *Group) OnRestore(f func()) { g.restored = f }
