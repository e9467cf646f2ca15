package sim

import (
	"errors"
	"fmt"
	"hash/fnv"

	"github.com/lockstepmq/lockstep/log"
	"github.com/lockstepmq/lockstep/replication"
	"github.com/lockstepmq/lockstep/vfs"
	"github.com/lockstepmq/lockstep/wire"
)

// history is what the entries of one log are. It learns each when the state
// machine applies it for the first time; from then on that entry is committed
// and must be there, the same, for as long as the log promises.
//
//	survives ≤ len(entries)
type history struct {
	sim     *Simulation
	name    string // for traces and complaints
	entries []known
	// survives is the index up to which entries outlive a power cut.
	survives wire.Index
	// hard is the newest term and vote that were durable.
	hard   log.HardState
	fenced bool // by a storage error, and not open again since
	hurt   bool // a storage call failed since it was opened last, so it may be fenced
	// written is the last entry, committed or not, when the process ended.
	written wire.Index
}

// known is one applied entry.
type known struct {
	kind    wire.Kind
	term    wire.Term
	base    wire.Offset
	count   uint32
	timeMs  int64
	body    uint32 // CRC32C
	bytes   int64  // of its frame
	state   uint64 // hash of the saved state after it
	batches []*batch
	rotten  bool // its body is damaged on the disk
}

func (k *known) next() wire.Offset { return k.base + wire.Offset(k.count) }

func (k *known) String() string {
	return fmt.Sprintf("%s of term %d with %d records from offset %d at %d ms, body %08x", k.kind, k.term, k.count, k.base, k.timeMs, k.body)
}

// last is the index of the last entry that is known to be committed.
func (h *history) last() wire.Index { return wire.Index(len(h.entries)) }

func (h *history) at(i wire.Index) *known {
	if i == 0 || i > h.last() {
		return nil
	}
	return &h.entries[i-1]
}

// nextOffset is one past the last committed record.
func (h *history) nextOffset() wire.Offset {
	if k := h.at(h.last()); k != nil {
		return k.next()
	}
	return 0
}

// learn takes in an applied entry and reports whether it is new. One that is
// known must be the same.
func (h *history) learn(e replication.Entry) (k *known, fresh bool) {
	now := known{
		kind: e.Kind, term: e.Term, base: e.BaseOffset, count: e.RecordCount,
		timeMs: e.AppendTimeMs, body: wire.Checksum(e.Body), bytes: wire.FrameSize(len(e.Body)),
	}
	if old := h.at(e.Index); old != nil {
		h.compare(e.Index, old, &now)
		return old, false
	}
	if e.Index != h.last()+1 {
		h.sim.fail("%s: entry %d applied; the last committed one is %d", h.name, e.Index, h.last())
	}
	if last := h.at(h.last()); last != nil && now.term < last.term {
		h.sim.fail("%s: entry %d has term %d after term %d", h.name, e.Index, now.term, last.term)
	}
	if now.base != h.nextOffset() {
		h.sim.fail("%s: entry %d begins at offset %d; the next one is %d", h.name, e.Index, now.base, h.nextOffset())
	}
	h.entries = append(h.entries, now)
	return &h.entries[e.Index-1], true
}

func (h *history) compare(i wire.Index, old, now *known) {
	if old.kind != now.kind || old.term != now.term || old.base != now.base || old.count != now.count ||
		old.timeMs != now.timeMs || old.body != now.body {
		h.sim.fail("%s: entry %d was %s, and is now %s", h.name, i, old, now)
	}
}

// state compares the saved state after entry i with what it was when the entry
// was first applied, by this process or an earlier one.
func (h *history) state(i wire.Index, saved []byte) {
	sum := fnv.New64a()
	_, _ = sum.Write(saved)
	k := h.at(i)
	switch {
	case k == nil:
		h.sim.fail("%s: a state as of entry %d; the last committed one is %d", h.name, i, h.last())
	case k.state == 0:
		k.state = sum.Sum64()
	case k.state != sum.Sum64():
		h.sim.fail("%s: the state after entry %d is not what it was when the entry was first applied:\n%q", h.name, i, saved)
	}
}

// lasts says that everything up to index i outlives a power cut.
func (h *history) lasts(i wire.Index) { h.survives = max(h.survives, i) }

// mayStayDown reports whether the log may refuse to open: a fenced one needs
// space for a copy.
func (h *history) mayStayDown(err error) bool {
	return h.sim.excused() || h.hurt && h.sim.faults.full && errors.Is(err, vfs.ErrNoSpace)
}

// durable remembers the term and vote once everything asked for is durable.
func (h *history) durable(l *log.Log) {
	if l.DurableTicket() == l.Ticket() {
		h.hard = l.HardState()
	}
}

// reopened compares a log that was just opened, whole, with what is known.
// lossy says that records which were never synced may be gone.
func (h *history) reopened(l *log.Log, lossy bool) {
	must := h.last()
	if lossy {
		must = h.survives
	}
	if l.LastIndex() < must {
		h.sim.fail("%s: the log ends at entry %d; %d entries must be there", h.name, l.LastIndex(), must)
	}
	hard := l.HardState()
	if term, ok := l.Term(l.LastIndex()); ok && hard.Term < term {
		hard.Term = term
	}
	if hard.Term < h.hard.Term || hard.Term == h.hard.Term && h.hard.Vote != 0 && hard.Vote != h.hard.Vote {
		h.sim.fail("%s: term %d and vote %d after the restart, before it %d and %d were durable",
			h.name, hard.Term, hard.Vote, h.hard.Term, h.hard.Vote)
	}
	if l.LastIndex() < h.written {
		h.sim.counts[TailCut]++
	}
	h.hurt = false
	if h.fenced {
		h.fenced = false
		h.sim.counts[FenceRecovered]++
	}
	// What lies below the checkpoint is not looked at by a start, but by readers, who
	// tell what they find.
	for i := l.FirstIndex(); i <= h.last(); i++ {
		if k := h.at(i); k.rotten {
			if d, err := l.Verify(k.base); err == nil && d == nil && k.base >= l.StartOffset() {
				h.sim.fail("%s: the body of entry %d is damaged, and the log says it is whole", h.name, i)
			}
		}
	}
	var previous *wire.FrameHeader
	err := l.Replay(l.FirstIndex(), func(f wire.FrameHeader, body []byte) error {
		h.follows(previous, &f, l)
		if k := h.at(f.Index); k != nil && k.rotten && body == nil {
			previous = &f
			return nil
		}
		if sum := wire.Checksum(body); sum != f.BodyCRC {
			h.sim.fail("%s: entry %d: body %08x, its header says %08x", h.name, f.Index, sum, f.BodyCRC)
		}
		if k := h.at(f.Index); k != nil {
			h.compare(f.Index, k, &known{
				kind: f.Kind, term: f.Term, base: f.BaseOffset, count: f.RecordCount, timeMs: f.AppendTimeMs, body: f.BodyCRC,
			})
		}
		previous = &f
		return nil
	})
	if err != nil {
		if !h.sim.excused() {
			h.sim.fail("%s: the log does not read after the restart: %v", h.name, err)
		}
		return
	}
	if previous != nil && previous.Index != l.LastIndex() || previous == nil && l.LastIndex() >= l.FirstIndex() {
		h.sim.fail("%s: the log does not read to its end at %d", h.name, l.LastIndex())
	}
}

// follows checks what holds between neighbours in every log.
func (h *history) follows(previous, f *wire.FrameHeader, l *log.Log) {
	if previous == nil {
		if f.Index != l.FirstIndex() {
			h.sim.fail("%s: the log begins at entry %d, it reads from %d", h.name, l.FirstIndex(), f.Index)
		}
		return
	}
	if f.Index != previous.Index+1 || f.Term < previous.Term || f.BaseOffset != previous.NextOffset() || f.PrevCRC != previous.HeaderCRC {
		h.sim.fail("%s: entry %d of term %d at offset %d, chain %08x, follows entry %d of term %d that ends at offset %d, chain %08x",
			h.name, f.Index, f.Term, f.BaseOffset, f.PrevCRC, previous.Index, previous.Term, previous.NextOffset(), previous.HeaderCRC)
	}
}
