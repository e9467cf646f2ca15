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

// promotable is how many entries a learner may lack when it becomes a voter.
const promotable = 1024

// promotable reports whether a replica that has the log up to match is near enough to the end.
func (g *Group) promotable(match wire.Index) bool { return match+promotable >= g.log.LastIndex() }

var (
	// ErrBusy is returned by Reconfigure while an earlier change is not complete.
	ErrBusy = errors.New("a membership change is on its way")
	// ErrMembership is returned by Reconfigure for a change that is not possible now.
	ErrMembership = errors.New("membership change is refused")
)

// Membership is a change of a group's configuration. Either AddLearners is set, or
// Promote and Remove are; the latter two happen together, by joint consensus if
// more than one voter changes. All are replica IDs.
type Membership struct {
	AddLearners []uint64
	Promote     []uint64
	Remove      []uint64
}

// Members is the configuration that counts, as of the last applied entry.
type Members struct {
	Voters   []uint64
	Outgoing []uint64 // voters of the configuration that is being left, joint only
	Learners []uint64
	// Index is the entry that brought this configuration. If a checkpoint brought it, that
	// entry is not known: it is the last one that is, which lies below, or 0.
	Index wire.Index
	// Progress is known to the leader only, by rising replica ID.
	Progress []Progress
}

// Progress is how far the leader knows a member to be.
type Progress struct {
	Replica  uint64
	Match    wire.Index
	Active   bool // it answered within the last election timeout
	InStep   bool // it is fed from memory or the log, neither probed nor sent a snapshot
	Snapshot bool // it is being sent one
}

// Members is the configuration. The slices are the caller's.
func (g *Group) Members() Members {
	c := &g.confState
	m := Members{
		Voters: slices.Clone(c.Voters), Outgoing: slices.Clone(c.VotersOutgoing),
		Learners: slices.Concat(c.Learners, c.LearnersNext), Index: g.confIndex,
	}
	if g.fenced == nil && g.node.BasicStatus().RaftState == raft.StateLeader {
		g.node.WithProgress(func(id uint64, _ raft.ProgressType, pr tracker.Progress) {
			m.Progress = append(m.Progress, Progress{
				Replica: id, Match: wire.Index(pr.Match), Active: pr.RecentActive || id == g.id,
				InStep: pr.State == tracker.StateReplicate, Snapshot: pr.State == tracker.StateSnapshot,
			})
		})
	}
	return m
}

// Reconfigure proposes a change of the configuration, one at a time. It is for the
// leader. nil means that the change is in the log; whether it commits shows in
// Members. ErrBusy passes by itself, ErrMembership says what is in the way.
func (g *Group) Reconfigure(c Membership) error {
	if err := g.Err(); err != nil {
		return err
	}
	if !g.leading {
		return ErrNotLeading
	}
	// Raft turns a change that it refuses into an empty entry without a word, so its
	// conditions are checked here. That the changes of earlier terms are applied, leading
	// says already.
	if g.proposedConf > g.applied || len(g.confState.VotersOutgoing) > 0 || len(g.held) > 0 {
		return ErrBusy
	}
	if g.Paused() {
		return fmt.Errorf("%w: leadership is being handed over", ErrBusy)
	}
	change, err := g.change(&c)
	if err != nil {
		return err
	}
	if len(change.Changes) == 0 {
		return nil
	}
	next, err := changed(g.confState, change, g.log.LastIndex())
	if err != nil {
		return fmt.Errorf("%w: %w", ErrMembership, err)
	}
	if err := g.viable(next.Voters); err != nil {
		return err
	}
	g.wake()
	index := g.NextIndex()
	g.guard(func() {
		if err = g.node.ProposeConfChange(change); err == nil {
			g.proposedConf = index
			g.advance()
		} else {
			err = fmt.Errorf("%w: %w", ErrProposalDropped, err)
		}
	})
	if g.fenced != nil {
		return g.fenced
	}
	return err
}

// change makes raft's form of a change that is allowed.
func (g *Group) change(c *Membership) (raftpb.ConfChangeV2, error) {
	var out raftpb.ConfChangeV2
	if len(c.AddLearners) > 0 && len(c.Promote)+len(c.Remove) > 0 {
		return out, fmt.Errorf("%w: learners are added before anything else happens", ErrMembership)
	}
	known := g.Members()
	if len(c.AddLearners) > 0 {
		id := c.AddLearners[0] // one at a time: the rest is asked for again when this one is in
		if id == raft.None || slices.Contains(known.Voters, id) || slices.Contains(known.Learners, id) {
			return out, fmt.Errorf("%w: replica %d is a member already", ErrMembership, id)
		}
		out.Changes = append(out.Changes, raftpb.ConfChangeSingle{Type: raftpb.ConfChangeAddLearnerNode, NodeID: id})
		return out, nil
	}
	for _, id := range c.Promote {
		if !slices.Contains(known.Learners, id) {
			return out, fmt.Errorf("%w: replica %d is no learner", ErrMembership, id)
		}
		i := slices.IndexFunc(known.Progress, func(p Progress) bool { return p.Replica == id })
		if p := known.Progress[i]; (!p.InStep || !g.promotable(p.Match)) && g.lapses&generous == 0 {
			return out, fmt.Errorf("%w: replica %d has %d of %d entries", ErrMembership, id, p.Match, g.log.LastIndex())
		}
		out.Changes = append(out.Changes, raftpb.ConfChangeSingle{Type: raftpb.ConfChangeAddNode, NodeID: id})
	}
	for _, id := range c.Remove {
		if id == g.id {
			return out, fmt.Errorf("%w: the leader cannot be removed; transfer the leadership first", ErrMembership)
		}
		if slices.Contains(known.Voters, id) || slices.Contains(known.Learners, id) {
			out.Changes = append(out.Changes, raftpb.ConfChangeSingle{Type: raftpb.ConfChangeRemoveNode, NodeID: id})
		}
	}
	out.Transition = raftpb.ConfChangeTransitionAuto
	return out, nil
}

// viable makes sure that the voters of a configuration can commit anything.
func (g *Group) viable(voters []uint64) error {
	alive := 0
	g.node.WithProgress(func(id uint64, _ raft.ProgressType, pr tracker.Progress) {
		if slices.Contains(voters, id) && (id == g.id || pr.RecentActive) {
			alive++
		}
	})
	if alive <= len(voters)/2 {
		return fmt.Errorf("%w: %d of %d voters are alive, no majority", ErrMembership, alive, len(voters))
	}
	return nil
}

// applyChange makes a committed change count.
func (g *Group) applyChange(change raftpb.ConfChangeV2) raftpb.ConfState {
	if g.lapses&abrupt == 0 {
		return *g.node.ApplyConfChange(change)
	}
	after := g.confState
	for i := range change.Changes {
		after = *g.node.ApplyConfChange(raftpb.ConfChangeV2{Changes: change.Changes[i : i+1]})
	}
	return after
}
