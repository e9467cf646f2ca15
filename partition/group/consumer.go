package group

import (
	"github.com/lockstepmq/lockstep/log"
	"github.com/lockstepmq/lockstep/wire"
)

// Consumer is the link of one session as the Leader sees it. Its methods are called in
// the owner's turn: they must not block, must not call back, and copy what they keep.
type Consumer interface {
	// Attached answers the attach. With an error it is the last call.
	Attached(r *wire.AttachResponse, err error)
	Deliver(d *Delivery)
	Answer(a []wire.OutcomeAnswer)
	Revoke(r []wire.Revoke)
	Lost(r []wire.Lost)
	// Confirmed says that the heartbeat of that number was read by the leader.
	Confirmed(number uint64)
	// Closed is the last call. A nil error ends what the session left by itself.
	Closed(err error)
}

// Delivery are leases of records of one stored batch.
type Delivery struct {
	Place    Place
	From, To int  // the granted records are among these of the batch
	Whole    bool // the consumer asked for whole batches, or nothing else is possible
	Grants   []wire.Grant
	// Substitute is a body batch of the record to deliver instead of the stored one; nil: as it is stored.
	Substitute []byte
}

// Place is one stored body batch, as it was seen when it was applied, or scanned.
type Place struct {
	At         log.Position // of the 8-byte header in front of it
	IndexBytes int
	BatchBytes int
	Base       wire.Offset
	Count      int
	Publisher  uint64 // hash, 0 for none
	Compressed bool
	Damaged    bool
	Erased     bool   // acknowledged by all groups that there were, and gone
	Index      []byte // 16 bytes for each record, a view; empty if there is no record index
}

// Next is the offset behind the batch.
func (p *Place) Next() wire.Offset { return p.Base + wire.Offset(p.Count) }

// Feed is what is known of where records are, and of their keys.
type Feed interface {
	// At returns the batch that holds the record at o. If it is not known, a Want asks for
	// a scan; a turn follows when it has been made. The Place is valid for the turn.
	At(o wire.Offset) (*Place, bool)
}

// Want are the effects that a Leader asks for. It asks again only when the answer has
// been brought, or is lost with the leadership.
type Want struct {
	// Scan are offsets whose batches At did not know.
	Scan []wire.Offset
	Find []Find
	// Confirm asks for a quorum round that begins after this turn; the answer is Confirmed.
	Confirm bool
	Letters []Letter
}

// Find asks for the lowest record of a scope in (After, Below) that is not done; the answer
// is Found.
type Find struct {
	Scope     Scope
	Publisher bool
	After     wire.Offset
	Below     wire.Offset
}

// Empty reports whether nothing is wanted.
func (w *Want) Empty() bool {
	return len(w.Scan) == 0 && len(w.Find) == 0 && len(w.Letters) == 0 && !w.Confirm
}
