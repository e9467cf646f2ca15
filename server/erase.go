package server

import (
	"github.com/lockstepmq/lockstep/log"
	"github.com/lockstepmq/lockstep/partition/group"
	"github.com/lockstepmq/lockstep/wire"
)

// One record that nobody acknowledges must not keep the disk of all that were acknowledged
// behind it (RULES L7). What all groups of a queue are done with as a checkpoint is taken is
// remembered; when that is the older of the two checkpoints, the log may erase it.
//
// Only for a partition whose one replica is on the only node of its cluster: another replica
// would have to be given what is gone (docs/decisions/0023-erasing-on-one-node.md).

const (
	// eraseWorth is how many bytes must be there to be given back before checkpoints are
	// taken for it, or an eighth of a segment if that is less. Those that are taken anyway
	// need no such reason.
	eraseWorth = 8 << 20
	// erasureMemory is how many sets of finished records are remembered: of the checkpoint
	// that is being written and of the two before it.
	erasureMemory = checkpointsKept + 1
)

// erasures is what a replica knows of records that may be erased. Owner only.
type erasures struct {
	finished []finished // as checkpoints were taken, oldest first
	from     wire.Offset
	wanted   bool // checkpoints are worth being taken
}

// finished is what was done with as of a checkpoint.
type finished struct {
	applied wire.Index
	runs    []group.Span
}

// mayErase says whether nobody else has, or is about to get, a replica.
func (r *partitionReplica) mayErase() bool {
	p := r.intent.Load()
	if p == nil || len(p.Replicas) != 1 || len(r.broker.View().Nodes) != 1 {
		return false
	}
	members := r.group.Members()
	return len(members.Voters) == 1 && len(members.Learners)+len(members.Outgoing) == 0
}

// noteFinished remembers what is done with, as a checkpoint of the state is taken.
func (r *partitionReplica) noteFinished() {
	if r.group == nil || !r.mayErase() {
		return
	}
	e := &r.erasures
	f := finished{applied: r.group.Applied()}
	f.runs, e.from = r.state.Finished(e.from)
	if len(f.runs) == 0 {
		return
	}
	if len(e.finished) == erasureMemory {
		e.finished = append(e.finished[:0], e.finished[1:]...)
	}
	e.finished = append(e.finished, f)
}

// considerErasing finds out whether there is so much to be erased that checkpoints should
// be taken for it.
func (r *partitionReplica) considerErasing() {
	e := &r.erasures
	e.wanted = false
	if !r.mayErase() {
		return
	}
	runs, _ := r.state.Finished(e.from)
	bytes, left := r.records.Erasable(recordsOf(runs))
	if left {
		r.records.Erase(nil)
		r.moved.Store(true)
	}
	worth := int64(eraseWorth)
	if n := int64(r.settings.Load().SegmentBytes) / 8; n > 0 {
		worth = min(worth, n)
	}
	if e.wanted = bytes >= worth; e.wanted {
		r.moved.Store(true) // until nothing is left, whatever comes in between
	}
}

// erase lets the log erase what the older checkpoint knows to be finished.
func (r *partitionReplica) erase() {
	e := &r.erasures
	if r.records.Erasing() {
		return // its end brings the next turn
	}
	n := 0
	for n < len(e.finished) && e.finished[n].applied <= r.records.OlderCheckpoint() {
		n++
	}
	if n == 0 {
		return
	}
	if runs := r.state.StillFinished(e.finished[n-1].runs); len(runs) > 0 && r.mayErase() {
		r.records.Erase(recordsOf(runs))
	}
	e.finished = append(e.finished[:0], e.finished[n:]...)
}

func recordsOf(runs []group.Span) []log.Records {
	out := make([]log.Records, len(runs))
	for i, r := range runs {
		out[i] = log.Records{From: r.From, To: r.To}
	}
	return out
}
