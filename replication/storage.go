package replication

import (
	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"

	"github.com/lockstepmq/lockstep/log"
	"github.com/lockstepmq/lockstep/wire"
)

// storage is the log as raft reads it. It answers from memory only: entries from
// the log's tail or from what was read for a follower, terms from the log's table
// of term runs. Raft panics on most errors, so the only ones it gets are those it
// treats as "not now" (RULES R2).
type storage struct {
	log       *log.Log
	hard      log.HardState // as of the start; raft asks once
	confState raftpb.ConfState
	feed      *feeding // nil for a group that is alone
	// absent says that raft was last refused entries that are in the log and not in
	// memory: then no snapshot is needed. Otherwise raft asks for one by itself, because
	// the follower is behind the start of the log.
	absent bool
	// starved says that raft looks for what to apply, which is not in memory: it gets nothing,
	// and looks again when it was read.
	starved bool
	offer   func(at log.Link) (raftpb.Snapshot, bool)

	// follower says whether a follower is to get the entry at an index next, and whether one
	// of them is known to have what precedes it.
	follower func(next wire.Index) (any, matched bool)
	run      *log.ErasedRun  // raft was refused entries that are erased
	runs     []log.ErasedRun // offered lately, at most maxOfferedRuns
}

// maxOfferedRuns bounds the runs that are remembered until their message goes out.
const maxOfferedRuns = 16

var _ raft.Storage = (*storage)(nil)

func (s *storage) InitialState() (raftpb.HardState, raftpb.ConfState, error) {
	return raftpb.HardState{
		Term: uint64(s.hard.Term), Vote: s.hard.Vote, Commit: uint64(s.hard.Commit),
	}, s.confState, nil
}

func (s *storage) Entries(lo, hi, maxBytes uint64) ([]raftpb.Entry, error) {
	if s.starved {
		return nil, nil
	}
	s.absent, s.run = false, nil
	if wire.Index(lo) < s.log.FirstIndex() {
		return nil, raft.ErrCompacted
	}
	entries, ok := s.log.Tail(wire.Index(lo), wire.Index(hi), maxBytes)
	if !ok && s.follower != nil {
		if run, erased := s.log.ErasedRun(wire.Index(lo)); erased {
			switch any, matched := s.follower(wire.Index(lo)); {
			case matched:
				s.run = &run
				return nil, raft.ErrCompacted // raft asks for a snapshot
			case any:
				return nil, nil // raft asks the follower whether it has what precedes the run
			}
		}
	}
	if !ok && s.feed != nil {
		entries, ok = s.feed.entries(wire.Index(lo), wire.Index(hi), maxBytes)
	}
	if !ok {
		s.absent = true
		return nil, raft.ErrCompacted // not in memory: raft keeps its state and asks again
	}
	out := make([]raftpb.Entry, len(entries))
	for i := range entries {
		out[i] = raftEntry(&entries[i])
	}
	return out, nil
}

func (s *storage) Term(i uint64) (uint64, error) {
	term, ok := s.log.Term(wire.Index(i))
	if !ok {
		if wire.Index(i) < s.log.FirstIndex() {
			return 0, raft.ErrCompacted
		}
		return 0, raft.ErrUnavailable
	}
	return uint64(term), nil
}

func (s *storage) LastIndex() (uint64, error)  { return uint64(s.log.LastIndex()), nil }
func (s *storage) FirstIndex() (uint64, error) { return uint64(s.log.FirstIndex()), nil }

// Snapshot is asked for when raft did not get what it wants to send: because it is
// not in memory, which passes, because the follower is behind the start of the
// log, or because it is erased.
func (s *storage) Snapshot() (raftpb.Snapshot, error) {
	absent, run := s.absent, s.run
	s.absent, s.run = false, nil
	switch {
	case s.offer == nil || absent:
	case run != nil:
		if snapshot, ok := s.offer(run.After); ok {
			if len(s.runs) == maxOfferedRuns {
				s.runs = append(s.runs[:0], s.runs[1:]...)
			}
			s.runs = append(s.runs, *run)
			return snapshot, nil
		}
	default:
		if snapshot, ok := s.offer(s.log.Start()); ok {
			return snapshot, nil
		}
	}
	return raftpb.Snapshot{}, raft.ErrSnapshotTemporarilyUnavailable
}
