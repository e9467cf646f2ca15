package sim

import (
	"errors"
	"fmt"
	"path"
	"strings"

	"github.com/lockstepmq/lockstep/log"
	"github.com/lockstepmq/lockstep/wire"
)

// rot flips a bit in the body of a records entry below the checkpoint that the log
// was opened with: there a start does not look, and the state holds what the entry
// did. From then on its records are refused, and everything else is served (RULES L8).
func (s *Simulation) rot() {
	r := s.anyReplica()
	if r == nil || r.closed || s.faults.evicted || r.log.Checkpoint() == nil {
		return
	}
	first, applied := r.log.FirstIndex(), r.log.Checkpoint().Applied
	if applied < first {
		return
	}
	i := first + wire.Index(s.random.Uint64N(uint64(applied-first)+1))
	k := r.model.at(i)
	if k == nil || k.kind != wire.KindRecords || k.rotten {
		return
	}
	at, base, err := r.log.Locate(k.base)
	if err != nil || base != k.base {
		return // trimmed, or in the way of another fault
	}
	names, err := s.disk.List(r.dir)
	if err != nil {
		return
	}
	for _, name := range names {
		if strings.HasPrefix(name, fmt.Sprintf("%016x-", at.Segment)) && strings.HasSuffix(name, ".segment") {
			const batchHeader = 61 // no body is shorter
			if s.disk.Corrupt(path.Join(r.dir, name), at.Byte+wire.FrameHeaderSize+s.random.Int64N(batchHeader), s.random.IntN(8)) == nil {
				k.rotten = true
				s.counts[Rotten]++
				s.trace.add("%s: the body of entry %d is damaged", r.model.name, i)
			}
		}
	}
}

// report is a reader that received a damaged frame at an offset and says so. It
// returns where reading can go on.
func (s *Simulation) report(r *replica, offset wire.Offset) (wire.Offset, bool) {
	d, err := r.log.Verify(offset)
	switch {
	case err != nil:
		if !s.excused() && !r.gone(offset, err) {
			s.fail("%s: looking at damage at offset %d: %v", r.model.name, offset, err)
		}
		return 0, false
	case d == nil:
		s.fail("%s: a damaged frame was read at offset %d, and the log says it is whole", r.model.name, offset)
	}
	s.counts[DamageFound]++
	r.group.Checkpoint()
	return s.behind(&r.model.history, offset, d)
}

// refused reports whether an error is right because what stands at an offset is
// damaged, and where reading can go on.
func (s *Simulation) refused(h *history, offset wire.Offset, err error) (wire.Offset, bool) {
	var damaged *log.DamagedError
	if !errors.As(err, &damaged) {
		return 0, false
	}
	s.counts[DamageFound]++
	return s.behind(h, offset, &damaged.Damage)
}

// behind checks that a range holds the offset and nothing that is whole.
func (s *Simulation) behind(h *history, offset wire.Offset, d *log.Damage) (wire.Offset, bool) {
	if offset < d.Base || offset >= d.Next {
		s.fail("%s: offset %d is refused for damage at offsets %d to %d", h.name, offset, d.Base, d.Next)
	}
	for i := d.FirstIndex; i <= d.LastIndex; i++ {
		if k := h.at(i); k == nil || !k.rotten {
			s.fail("%s: entry %d is refused for damage and is whole", h.name, i)
		}
	}
	return d.Next, true
}
