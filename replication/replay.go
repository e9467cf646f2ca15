package replication

import (
	"errors"
	"fmt"

	"go.etcd.io/raft/v3/confchange"
	"go.etcd.io/raft/v3/raftpb"
	"go.etcd.io/raft/v3/tracker"

	"github.com/lockstepmq/lockstep/log"
	"github.com/lockstepmq/lockstep/wire"
)

// replay applies from the disk, before the node exists, what lies above the
// checkpoint and is committed, and returns how far that is. Afterwards
// Config.Applied tells raft that it is done.
//
// What the only voter holds durably is what a quorum holds: while this replica is
// it, every entry counts, the configuration entry that ends it included. From there
// on only those count that are known to be committed. What the only voter had
// committed before it knew of its change is committed again later and cannot get
// lost: every quorum of the next configuration needs this replica, or one that has
// all of its log.
func (g *Group) replay(known wire.Index) (commit wire.Index, err error) {
	// A checkpoint that was fetched may lie above the end of the log. What the log holds
	// below it came from leaders that had all of it, so it is committed.
	commit = max(known, min(g.applied, g.log.LastIndex()))
	alone := g.soleVoter()
	if !alone && known <= g.applied || g.applied >= g.log.LastIndex() {
		return commit, nil
	}
	err = g.log.Replay(g.applied+1, func(h wire.FrameHeader, body []byte) error {
		if !alone && h.Index > known {
			return errReplayed
		}
		commit = max(commit, h.Index)
		damaged := body == nil && h.BodyLength > 0
		if damaged && h.Kind != wire.KindRecords {
			// What a command did to the state cannot be left out.
			return fmt.Errorf("index %d: %w: the body of a %v entry above the newest checkpoint is damaged; restore the file %s",
				h.Index, log.ErrCorrupt, h.Kind, g.damagedFile(h.Index))
		}
		if h.Kind == wire.KindConfiguration {
			var change raftpb.ConfChangeV2
			if err := change.Unmarshal(body); err != nil {
				return fmt.Errorf("index %d: membership change: %w", h.Index, err)
			}
			next, err := changed(g.confState, change, h.Index)
			if err != nil {
				return fmt.Errorf("index %d: membership change: %w", h.Index, err)
			}
			g.confState, g.confIndex = next, h.Index
			alone = g.soleVoter()
			h.Kind, body = wire.KindNoOp, nil // to the state machine it is none of its own
		}
		g.applyEntry(Entry{
			Index: h.Index, Term: h.Term, Kind: h.Kind, RecordCount: h.RecordCount,
			BaseOffset: h.BaseOffset, AppendTimeMs: h.AppendTimeMs, Body: body, Damaged: damaged,
		})
		return nil
	})
	if err != nil && !errors.Is(err, errReplayed) {
		return 0, fmt.Errorf("replay from index %d: %w", g.applied+1, err)
	}
	return commit, nil
}

// shown is how far a log shows by itself that it is committed, beyond what is known. A
// change of the configuration is proposed when the one before is applied: of two, the
// first is committed. Who began with the configuration before both could elect itself with
// a majority that has no member in common with one of the configuration behind them.
func (g *Group) shown(known wire.Index) (wire.Index, error) {
	known = max(known, min(g.applied, g.log.LastIndex())) // see replay
	from := max(known+1, g.log.FirstIndex())
	if from > g.log.LastIndex() {
		return known, nil
	}
	var newest wire.Index
	err := g.log.ReplayHeaders(from, func(h wire.FrameHeader) error {
		if h.Kind == wire.KindConfiguration {
			known, newest = max(known, newest), h.Index
		}
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("changes of the configuration from index %d: %w", from, err)
	}
	return known, nil
}

var errReplayed = errors.New("replayed")

// leftAlready reports whether a change ends the joint configuration of a replica that has
// none: it has taken over meanwhile.
func leftAlready(conf raftpb.ConfState, change raftpb.ConfChangeV2) bool {
	return change.LeaveJoint() && len(conf.VotersOutgoing) == 0
}

// changed is the configuration after a change.
func changed(conf raftpb.ConfState, change raftpb.ConfChangeV2, index wire.Index) (raftpb.ConfState, error) {
	if leftAlready(conf, change) {
		return conf, nil
	}
	c := confchange.Changer{Tracker: tracker.MakeProgressTracker(1, 0), LastIndex: uint64(index)}
	config, progress, err := confchange.Restore(c, conf)
	if err != nil {
		return conf, err
	}
	c.Tracker.Config, c.Tracker.Progress = config, progress
	if change.LeaveJoint() {
		config, progress, err = c.LeaveJoint()
	} else if autoLeave, joint := change.EnterJoint(); joint {
		config, progress, err = c.EnterJoint(autoLeave, change.Changes...)
	} else {
		config, progress, err = c.Simple(change.Changes...)
	}
	if err != nil {
		return conf, err
	}
	c.Tracker.Config, c.Tracker.Progress = config, progress
	return c.Tracker.ConfState(), nil
}

// damagedFile names where an entry lies that is known to be damaged.
func (g *Group) damagedFile(i wire.Index) string {
	for _, d := range g.log.Damage() {
		if d.FirstIndex <= i && i <= d.LastIndex {
			return fmt.Sprintf("%s (position %d)", d.File, d.Position)
		}
	}
	return "of that entry"
}
