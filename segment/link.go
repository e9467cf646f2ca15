package segment

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/lockstepmq/lockstep/internal/invariants"
	"github.com/lockstepmq/lockstep/wire"
)

// ErrChain is wrapped by the error for a frame that is whole but does not
// continue its predecessor: the end of the log with something stale behind it,
// or damage.
var ErrChain = errors.New("frame does not continue its predecessor")

// Link is what a frame leaves for its successor: together with the Raft entry
// it determines every byte of the successor's header. The zero index stands
// before the first entry of a partition; its chain value is the Seed.
type Link struct {
	Index  wire.Index
	Term   wire.Term
	Next   wire.Offset // base offset of the successor
	TimeMs int64       // append time, repeated by entries that Raft makes itself
	Chain  uint32      // header CRC
}

// Seed is the link before the first entry of a partition: index 0, offset 0 and
// a chain value of its own for every partition and incarnation.
func Seed(id Identity) Link {
	var b [20]byte
	copy(b[:], id.PartitionID[:])
	binary.LittleEndian.PutUint32(b[16:], id.Incarnation)
	return Link{Chain: wire.Checksum(b[:])}
}

// chainIgnored is set by IgnoreChain.
var chainIgnored atomic.Bool

// IgnoreChain takes the check of the chain away, or brings it back. It is for the
// test that shows the check to be needed, and does nothing in release builds.
func IgnoreChain(ignore bool) { chainIgnored.Store(ignore) }

// After is the link that the frame leaves.
func After(h *wire.FrameHeader) Link {
	if h.Kind == KindErased {
		return Link{Index: h.Index, Term: h.Term, Next: h.NextOffset(), TimeMs: h.AppendTimeMs, Chain: h.BodyCRC}
	}
	return Link{Index: h.Index, Term: h.Term, Next: h.NextOffset(), TimeMs: h.AppendTimeMs, Chain: h.HeaderCRC}
}

// Check reports whether a frame with a verified header may follow. A frame that
// does and is of a kind that only newer builds know is wire.ErrFrameVersion.
func (l *Link) Check(h *wire.FrameHeader) error {
	switch {
	case h.PrevCRC != l.Chain && !(invariants.Enabled && chainIgnored.Load()):
		return fmt.Errorf("%w: chain %08x after %08x", ErrChain, h.PrevCRC, l.Chain)
	case h.Index != l.Index+1 && (h.Kind != KindErased || h.Index <= l.Index):
		return fmt.Errorf("%w: index %d after %d", ErrChain, h.Index, l.Index)
	case h.Term < l.Term:
		return fmt.Errorf("%w: term %d after %d", ErrChain, h.Term, l.Term)
	case h.BaseOffset != l.Next:
		return fmt.Errorf("%w: base offset %d after %d", ErrChain, h.BaseOffset, l.Next)
	case h.Kind == KindErased && h.BodyLength == 0:
		return nil // see Passed
	case h.Kind < wire.KindRecords:
		return fmt.Errorf("%w: kind %d", ErrChain, h.Kind)
	case h.Kind > wire.KindNoOp:
		// It does follow: all that ties it to its predecessor was checked above.
		return fmt.Errorf("%w: kind %d, this build reads up to %d", wire.ErrFrameVersion, h.Kind, wire.KindNoOp)
	case h.RecordCount > 0 && h.Kind != wire.KindRecords:
		return fmt.Errorf("%w: %d records in a %v entry", ErrChain, h.RecordCount, h.Kind)
	}
	return nil
}
