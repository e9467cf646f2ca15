package replication

import (
	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"

	"github.com/lockstepmq/lockstep/log"
	"github.com/lockstepmq/lockstep/wire"
)

// storage is the log as raft reads it. It answers from memory only: entries from
// the log's tail, terms from its table of term runs. Raft panics on most errors,
// so the only ones it gets are those it treats as "not now" (RULES R2).
type storage struct {
	log       *log.Log
	hard      log.HardState // as of the start; raft asks once
	confState raftpb.ConfState
}

var _ raft.Storage = (*storage)(nil)

func (s *storage) InitialState() (raftpb.HardState, raftpb.ConfState, error) {
	return raftpb.HardState{
		Term: uint64(s.hard.Term), Vote: s.hard.Vote, Commit: uint64(s.hard.Commit),
	}, s.confState, nil
}

func (s *storage) Entries(lo, hi, maxBytes uint64) ([]raftpb.Entry, error) {
	if wire.Index(lo) < s.log.FirstIndex() {
		return nil, raft.ErrCompacted
	}
	tail, ok := s.log.Tail(wire.Index(lo), wire.Index(hi), maxBytes)
	if !ok {
		return nil, raft.ErrCompacted // not in memory: raft keeps its state and asks again
	}
	entries := make([]raftpb.Entry, len(tail))
	for i, e := range tail {
		entries[i] = raftEntry(e)
	}
	return entries, nil
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

// Snapshot is asked for when a follower is behind the start of the log.
func (s *storage) Snapshot() (raftpb.Snapshot, error) {
	return raftpb.Snapshot{}, raft.ErrSnapshotTemporarilyUnavailable
}
