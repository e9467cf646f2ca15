package replication

import (
	"encoding/binary"
	"errors"

	"go.etcd.io/raft/v3"

	"github.com/lockstepmq/lockstep/wire"
)

// MaxReads bounds the reads that wait for their index.
const MaxReads = 1024

// readTicks is how many ticks a read may take: two election timeouts.
const readTicks = 2 * electionTicks

// ErrUnconfirmed is handed to a read when no quorum has confirmed in time that this
// replica still leads.
var ErrUnconfirmed = errors.New("leadership is not confirmed")

// reading is one read on its way.
type reading struct {
	number uint64
	index  wire.Index // 0 until a quorum has confirmed it
	ticks  int
	done   func(i wire.Index, err error)
}

// ReadIndex calls done, in this turn or a later one, with an index that covers all
// that was committed when it was called, once this replica has applied it and a
// quorum has confirmed that it leads. It is for the leader.
func (g *Group) ReadIndex(done func(i wire.Index, err error)) {
	switch {
	case g.Err() != nil:
		done(0, g.Err())
		return
	case !g.leading:
		done(0, ErrNotLeading)
		return
	case g.transport == nil || g.alone():
		done(g.applied, nil) // what is committed is applied in the same turn
		return
	case len(g.reads) >= MaxReads:
		done(0, ErrUnconfirmed)
		return
	}
	g.wake()
	g.readNumber++
	g.reads = append(g.reads, reading{number: g.readNumber, done: done})
	// Raft matches answers by context alone, among those of its term. It leads a term once, so
	// no other node and no other start of this one asks in it: the number is enough.
	context := binary.LittleEndian.AppendUint64(nil, g.readNumber)
	g.guard(func() { g.node.ReadIndex(context); g.advance() })
}

// confirmed takes the indexes that a quorum has confirmed.
func (g *Group) confirmed(states []raft.ReadState) {
	for _, s := range states {
		number := binary.LittleEndian.Uint64(s.RequestCtx)
		for i := range g.reads {
			if r := &g.reads[i]; r.number == number {
				r.index = max(wire.Index(s.Index), 1)
			}
		}
	}
}

// answerReads ends the reads whose index is applied, and all of them when this
// replica leads no longer.
func (g *Group) answerReads() {
	if len(g.reads) == 0 {
		return
	}
	var ended []reading
	waiting := g.reads[:0:0]
	for _, r := range g.reads {
		if !g.leading || r.ticks > readTicks || r.index != 0 && r.index <= g.applied {
			ended = append(ended, r)
		} else {
			waiting = append(waiting, r)
		}
	}
	g.reads = waiting
	for _, r := range ended {
		switch {
		case r.index != 0 && r.index <= g.applied:
			r.done(r.index, nil)
		case !g.leading:
			r.done(0, ErrNotLeading)
		default:
			r.done(0, ErrUnconfirmed)
		}
	}
}
