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
	// behind says that raft was last refused an entry below the start of the log: only
	// then it is told of a snapshot.
	behind bool
	offer  func() (raftpb.Snapshot, bool)
}

var _ raft.Storage = (*storage)(nil)

func (s *storage) InitialState() (raftpb.HardState, raftpb.ConfState, error) {
	return raftpb.HardState{
		Term: uint64(s.hard.Term), Vote: s.hard.Vote, Commit: uint64(s.hard.Commit),
	}, s.confState, nil
}

func (s *storage) Entries(lo, hi, maxBytes uint64) ([]raftpb.Entry, error) {
	s.behind = wire.Index(lo) < s.log.FirstIndex()
	if s.behind {
		return nil, raft.ErrCompacted
	}
	entries, ok := s.log.Tail(wire.Index(lo), wire.Index(hi), maxBytes)
	if !ok && s.feed != nil {
		entries, ok = s.feed.entries(wire.Index(lo), wire.Index(hi), maxBytes)
	}
	if !ok {
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
			s.behind = true
			return 0, raft.ErrCompacted
		}
		return 0, raft.ErrUnavailable
	}
	return uint64(term), nil
}

func (s *storage) LastIndex() (uint64, error)  { return uint64(s.log.LastIndex()), nil }
func (s *storage) FirstIndex() (uint64, error) { return uint64(s.log.FirstIndex()), nil }

// Snapshot is asked for when raft did not get what it wants to send: because it is
// not in memory, which passes, or because the follower is behind the start of the
// log.
func (s *storage) Snapshot() (raftpb.Snapshot, error) {
	if s.behind && s.offer != nil {
		s.behind = false
		if snapshot, ok := s.offer(); ok {
			return snapshot, nil
		}
	}
	return raftpb.Snapshot{}, raft.ErrSnapshotTemporarilyUnavailable
}
