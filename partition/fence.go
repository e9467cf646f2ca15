package partition

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"

	"github.com/lockstepmq/lockstep/log"
	"github.com/lockstepmq/lockstep/wire"
)

// A fence ends the epochs of a producer below one (RULES R5). It is an entry of the
// partition's log like any other: what its leader had proposed before lies before it, and
// nothing of an older epoch lies behind it, whoever leads and whatever that one knows of the
// metadata. In the dedupe table it is a producer that has not sent yet.

const (
	// MaxFences bounds the fences that wait for the owner; beyond it: ErrMailboxFull.
	MaxFences = 4096
	// maxEntryFences bounds those of one entry, which stays smaller than the buffers that
	// memory is counted for.
	maxEntryFences = 128
	fencePayload   = 16
)

// Fence is one that is asked for.
type Fence struct {
	ID    int64
	Epoch int16 // the first that is not ended
	// Then learns the outcome, once, in an owner's turn, and must not block: OK when the
	// fence is committed, FENCED if a higher epoch is; with any other code it may be
	// committed or not.
	Then func(code wire.ErrorCode)
}

// fences are those that wait for the owner, and those that it has proposed.
type fences struct {
	mu     sync.Mutex
	asked  []Fence
	closed error // why no more are taken

	proposed map[int64]fencing // by producer ID; owner only
}

// fencing is the highest epoch that fences on their way begin with.
type fencing struct {
	epoch int16
	count int // of fences
}

// Fence takes one. When it returns nil, f.Then will be called; the caller sees to it that
// the owner takes a turn. Any goroutine.
func (p *Partition) Fence(f Fence) error {
	q := &p.fences
	q.mu.Lock()
	defer q.mu.Unlock()
	switch {
	case q.closed != nil:
		return q.closed
	case len(q.asked) >= MaxFences:
		return ErrMailboxFull
	}
	q.asked = append(q.asked, f)
	return nil
}

// waiting is how many wait.
func (q *fences) waiting() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.asked)
}

// take hands over those that wait, at most n.
func (q *fences) take(n int) []Fence {
	q.mu.Lock()
	defer q.mu.Unlock()
	n = min(n, len(q.asked))
	taken := append([]Fence(nil), q.asked[:n]...)
	q.asked = append(q.asked[:0], q.asked[n:]...)
	return taken
}

// putBack makes those wait again that could not be proposed.
func (q *fences) putBack(all []Fence) {
	q.mu.Lock()
	q.asked = append(all, q.asked...)
	q.mu.Unlock()
}

// shut refuses further ones with err.
func (q *fences) shut(err error) {
	q.mu.Lock()
	if q.closed == nil {
		q.closed = err
	}
	q.mu.Unlock()
}

// reject answers those that wait with code.
func (q *fences) reject(code wire.ErrorCode) {
	for _, f := range q.take(MaxFences) {
		f.Then(code)
	}
}

// ends reports whether a fence on its way ends an epoch.
func (q *fences) ends(id int64, epoch int16) bool {
	if len(q.proposed) == 0 {
		return false
	}
	f, ok := q.proposed[id]
	return ok && epoch < f.epoch
}

// left takes fences out that are applied, or were not proposed after all.
func (q *fences) left(all []Fence) {
	for _, f := range all {
		if on := q.proposed[f.ID]; on.count > 1 {
			on.count--
			q.proposed[f.ID] = on
		} else {
			delete(q.proposed, f.ID)
		}
	}
}

// turnFences proposes what waits as one entry, and reports whether there is more. What is
// in force already needs none.
func (p *Partition) turnFences(nowMs int64) (again bool) {
	q := &p.fences
	if q.waiting() == 0 || p.proposer.Paused() {
		return false
	}
	all := q.take(maxEntryFences)
	data := make([]byte, wire.EntryPrefixSize, wire.EntryPrefixSize+len(all)*(commandHeader+fencePayload))
	kept := all[:0]
	for _, f := range all {
		if code, done := p.state.producers.fenced(f.ID, f.Epoch); done {
			f.Then(code)
			continue
		}
		kept = append(kept, f)
		data = appendCommand(data, commandFence, appendFence(nil, f.ID, f.Epoch))
	}
	if len(kept) == 0 {
		return q.waiting() > 0
	}
	wire.PutEntryPrefix(data, wire.KindControl, 0, nowMs)
	switch err := p.log.Reserve(wire.FrameSize(len(data)-wire.EntryPrefixSize)+ElectionRoom, false); {
	case errors.Is(err, log.ErrNotReady):
		q.putBack(kept)
		return false
	case err != nil:
		for _, f := range kept {
			f.Then(codeOf(err))
		}
		return false
	}
	// Applying may happen inside Propose, so they are on their way before it.
	if q.proposed == nil {
		q.proposed = make(map[int64]fencing)
	}
	for _, f := range kept {
		on := q.proposed[f.ID]
		q.proposed[f.ID] = fencing{max(on.epoch, f.Epoch), on.count + 1}
	}
	c := &control{fences: kept}
	p.groups.controls = append(p.groups.controls, c)
	if _, err := p.proposer.Propose(data); err != nil && p.groups.forget(c) {
		p.endFences(c, codeOf(err))
	}
	return q.waiting() > 0
}

// landFences answers the fences of an entry that is applied.
func (p *Partition) landFences(c *control) {
	p.fences.left(c.fences)
	for _, f := range c.fences {
		code, _ := p.state.producers.fenced(f.ID, f.Epoch)
		f.Then(code)
	}
}

// endFences answers the fences of an entry of which nobody here will know the outcome.
func (p *Partition) endFences(c *control, code wire.ErrorCode) {
	p.fences.left(c.fences)
	for _, f := range c.fences {
		f.Then(code)
	}
}

// The payload of a fence is: producer ID i64, first epoch i16, 6 zero bytes.
func appendFence(dst []byte, id int64, epoch int16) []byte {
	dst = binary.LittleEndian.AppendUint64(dst, uint64(id))
	return binary.LittleEndian.AppendUint64(dst, uint64(uint16(epoch)))
}

func parseFence(payload []byte) (id int64, epoch int16) {
	if len(payload) != fencePayload {
		panic(fmt.Sprintf("partition: fence of %d bytes", len(payload)))
	}
	return int64(binary.LittleEndian.Uint64(payload)), int16(binary.LittleEndian.Uint16(payload[8:]))
}

// fenced reports whether all epochs of a producer below one are ended. The code says
// whether that one is too.
func (t *producers) fenced(id int64, epoch int16) (code wire.ErrorCode, done bool) {
	last, known := int16(-1), false
	if p := t.byID[id]; p != nil {
		last, known = p.epoch, true
	} else {
		last, known = t.retiredEpoch(id)
	}
	if known && last > epoch {
		return wire.CodeFenced, true
	}
	return wire.CodeOK, known && last == epoch
}

// fence ends the epochs of a producer below one. It changes nothing if they are ended.
func (t *producers) fence(id int64, epoch int16, appendTimeMs int64) {
	if _, done := t.fenced(id, epoch); done {
		return
	}
	known := t.byID[id] != nil
	p := t.touch(id, epoch)
	switch letters := id >= wire.LetterProducers; {
	case letters && known: // that is over: what it has written stays known
	case letters && epoch > 0:
		p.next = nextForgotten
	default:
		p.next, p.runs = 0, p.runs[:0]
	}
	t.listOf(p).Remove(p.element)
	p.epoch = epoch
	p.element = t.listOf(p).PushBack(p)
	t.latest(p, appendTimeMs)
}

// nextForgotten is the next sequence of a producer of dead letters that was forgotten before
// its last epoch was ended.
const nextForgotten = -1

// ForgetProducers has the partition forget who wrote to it, as damage does. Tests only, in an
// owner's turn.
func (p *Partition) ForgetProducers() { p.state.producers.removeAll() }

// ProducerNext is the next sequence of a producer of dead letters of which an epoch was
// ended; false if the partition had forgotten it before. It is for a Fence's Then.
func (p *Partition) ProducerNext(id int64) (next int32, known bool) {
	x := p.state.producers.byID[id]
	if x == nil || x.next == nextForgotten {
		return 0, false
	}
	return x.next, true
}
