package server

import (
	"sync/atomic"

	"github.com/lockstepmq/lockstep/cluster"
	"github.com/lockstepmq/lockstep/log"
	"github.com/lockstepmq/lockstep/partition/group"
	"github.com/lockstepmq/lockstep/wire"
)

// One record that nobody acknowledges must not keep the disk of all that were acknowledged
// behind it (RULES L7). The leader proposes that what all groups of a queue are done with may
// be erased; from the entry on that is so on every replica, whatever becomes of groups. Each
// replica remembers what may be erased as it takes a checkpoint, and when that is the older
// of its two, its log may erase it (docs/decisions/0026-erasing-on-every-replica.md).

const (
	// eraseWorth is how many bytes must be there to be given back before checkpoints are
	// taken for it, or an eighth of a segment if that is less. Those that are taken anyway
	// need no such reason.
	eraseWorth = 8 << 20
	// erasureMemory is how many sets of erasable records are remembered: of the checkpoint
	// that is being written and of the two before it.
	erasureMemory = checkpointsKept + 1
)

// erasures is what a replica knows of records that may be erased. Owner only.
type erasures struct {
	erasable []erasable  // as checkpoints were taken, oldest first
	from     wire.Offset // where the next checkpoint goes on
	asked    wire.Offset // where the leader goes on to look for what is finished
	wanted   bool        // checkpoints are worth being taken
	raising  atomic.Bool // the level of a lone node is being raised; any goroutine
}

// erasable is what might be erased as of a checkpoint.
type erasable struct {
	applied wire.Index
	runs    []group.Span
}

// noteErasable remembers what may be erased, as a checkpoint of the state is taken.
func (r *partitionReplica) noteErasable() {
	if r.group == nil {
		return
	}
	e := &r.erasures
	f := erasable{applied: r.group.Applied()}
	f.runs, e.from = r.state.Erased(e.from)
	if len(f.runs) == 0 {
		return
	}
	if len(e.erasable) == erasureMemory {
		e.erasable = append(e.erasable[:0], e.erasable[1:]...)
	}
	e.erasable = append(e.erasable, f)
}

// considerErasing finds out whether there is so much to be erased that checkpoints should
// be taken for it, and on the leader whether so much is finished that more may be erased.
func (r *partitionReplica) considerErasing(nowMs int64) {
	e := &r.erasures
	erased, _ := r.state.Erased(e.from)
	bytes, left := r.records.Erasable(recordsOf(erased))
	if left {
		r.records.Erase(nil)
		r.moved.Store(true)
	}
	worth := int64(eraseWorth)
	if n := int64(r.settings.Load().SegmentBytes) / 8; n > 0 {
		worth = min(worth, n)
	}
	e.wanted = bytes >= worth
	if e.wanted {
		r.moved.Store(true) // until nothing is left, whatever comes in between
		return
	}
	if _, leading := r.group.Leading(); !leading {
		return
	}
	var runs []group.Span
	runs, e.asked = r.state.Finished(e.asked)
	runs = below(runs, r.records.ErasableBelow())
	if bytes, _ = r.records.Erasable(recordsOf(runs, erased...)); bytes >= worth && r.levelAllowsErasing() && r.part.Erase(nowMs, runs) {
		r.moved.Store(true)
	}
}

// levelAllowsErasing reports whether all nodes know what an entry says that lets records be
// erased. A node that is alone knows it, and says so.
func (r *partitionReplica) levelAllowsErasing() bool {
	view := r.broker.View()
	if view.Level >= cluster.LevelErasing {
		return true
	}
	if len(view.Nodes) == 1 && r.erasures.raising.CompareAndSwap(false, true) {
		r.broker.submit(cluster.Command{SetLevel: &cluster.SetLevel{Level: cluster.LevelErasing}}, func(result cluster.Result) {
			r.erasures.raising.Store(false)
			if result.Err != nil {
				r.logger.Warn("acknowledged records behind an old one keep the disk", "err", result.Err)
			}
		})
	}
	r.moved.Store(true)
	return false
}

// erase lets the log erase what may be erased as of the older checkpoint.
func (r *partitionReplica) erase() {
	e := &r.erasures
	if r.records.Erasing() {
		return // its end brings the next turn
	}
	n := 0
	for n < len(e.erasable) && e.erasable[n].applied <= r.records.OlderCheckpoint() {
		n++
	}
	if n == 0 {
		return
	}
	r.records.Erase(recordsOf(e.erasable[n-1].runs))
	e.erasable = append(e.erasable[:0], e.erasable[n:]...)
}

// below are the parts of runs below an offset: a group that is made later still gets the
// finished records that are not about to be erased.
func below(runs []group.Span, o wire.Offset) []group.Span {
	for n := range runs {
		if runs[n].To > o {
			if runs[n].From < o {
				runs[n].To, n = o, n+1
			}
			return runs[:n]
		}
	}
	return runs
}

// recordsOf are the records of runs that ascend, and of more that do and have none of them.
func recordsOf(runs []group.Span, more ...group.Span) []log.Records {
	out := make([]log.Records, 0, len(runs)+len(more))
	for len(runs)+len(more) > 0 {
		if len(runs) == 0 || len(more) > 0 && more[0].From < runs[0].From {
			runs, more = more, runs
		}
		r := runs[0]
		runs = runs[1:]
		if n := len(out); n > 0 && out[n-1].To == r.From {
			out[n-1].To = r.To
			continue
		}
		out = append(out, log.Records{From: r.From, To: r.To})
	}
	return out
}
