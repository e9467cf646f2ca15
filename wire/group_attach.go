package wire

import "encoding/binary"

// GROUP_ATTACH (23), since version 1: a consumer begins, or goes on, to take records of
// one partition as a session of a group. What it holds it claims in the same message.

// AttachFlags are what a consumer chooses when it attaches.
type AttachFlags uint8

// The flags.
const (
	// AttachReleaseOnDisconnect has the session removed at once when its connection to
	// the leader ends by itself. It counts with AttachReleaseChosen only.
	AttachReleaseOnDisconnect AttachFlags = 1 << 0
	// AttachStandby asks not to be the active session of a sticky scope.
	AttachStandby AttachFlags = 1 << 1
	// AttachWholeBatches has batches delivered as they are stored, never as records of them.
	AttachWholeBatches AttachFlags = 1 << 2
	// AttachKnown says that the session was told before that it is attached. If it is not
	// listed any more it was removed, and is not listed anew.
	AttachKnown AttachFlags = 1 << 3
	// AttachLookOnly says that the session works on nothing: that it had a record when it
	// ended, or for longer than the ack wait, is no failed attempt.
	AttachLookOnly AttachFlags = 1 << 4
	// AttachReleaseChosen says that the consumer has chosen whether AttachReleaseOnDisconnect
	// is set. Without it the mode decides that the group has when the connection ends: shared
	// groups release.
	AttachReleaseChosen AttachFlags = 1 << 5
)

// AttachRequest is answered with AttachResponse when the session is listed and the claims
// are decided. NOT_LEADER names who leads.
//
//	handle u32 | group string | session 16 | predecessor 16 | attempt u64 | term u64 | generation u32 |
//	counter u32 | flags u8 | capacity u32 | refill u32 | bytes u32 | working u32 | name string | count u32, each claim 28
type AttachRequest struct {
	Handle      uint32
	Group       string
	Session     [16]byte
	Predecessor [16]byte // the session that this one takes the place of, zero: none
	Attempt     uint64   // rises with each attach of the session; an older one is ignored
	Term        Term     // the highest of the partition that the consumer has sent an attach for
	Generation  uint32   // of the binding under which it attaches, 0 and 0: none
	Counter     uint32
	Flags       AttachFlags
	Capacity    uint32 // records that it holds at most
	Refill      uint32 // and down to which it goes before it gets more
	Bytes       uint32 // that it holds at most, 0: no limit of its own
	Working     uint32 // how many of those it has worked on at once, at most, so far; 0: maybe all
	Name        string // of the consumer, for people and for restarts; may be empty
	// Claims are all records that the session holds, by ascending offset: OutcomeHeld, or
	// the outcome that was not confirmed.
	Claims []Outcome
}

// Append implements Message.
func (m *AttachRequest) Append(dst []byte) []byte {
	le := binary.LittleEndian
	dst = le.AppendUint32(dst, m.Handle)
	dst = appendString(dst, m.Group)
	dst = append(dst, m.Session[:]...)
	dst = append(dst, m.Predecessor[:]...)
	dst = le.AppendUint64(dst, m.Attempt)
	dst = le.AppendUint64(dst, uint64(m.Term))
	dst = le.AppendUint32(dst, m.Generation)
	dst = le.AppendUint32(dst, m.Counter)
	dst = append(dst, byte(m.Flags))
	dst = le.AppendUint32(dst, m.Capacity)
	dst = le.AppendUint32(dst, m.Refill)
	dst = le.AppendUint32(dst, m.Bytes)
	dst = le.AppendUint32(dst, m.Working)
	dst = appendString(dst, m.Name)
	return appendOutcomes(dst, m.Claims)
}

// Parse implements Message.
func (m *AttachRequest) Parse(src []byte) error {
	r := reader{src: src}
	m.Handle = r.uint32()
	m.Group = r.string()
	m.Session = r.uuid()
	m.Predecessor = r.uuid()
	m.Attempt = r.uint64()
	m.Term = Term(r.uint64())
	m.Generation = r.uint32()
	m.Counter = r.uint32()
	m.Flags = AttachFlags(r.uint8())
	m.Capacity = r.uint32()
	m.Refill = r.uint32()
	m.Bytes = r.uint32()
	m.Working = r.uint32()
	m.Name = r.string()
	m.Claims = readOutcomes(&r, m.Claims)
	return r.done("GROUP_ATTACH request")
}

// AttachResponse says that the session is listed and heard.
//
//	link u32 | term u64 | group u64 | mode u8 | scope u8 | order u8 | zero u8 | window u32 | sessionMs u32 |
//	ackWaitMs u32 | count u32, each refused claim 24
type AttachResponse struct {
	Link      uint32 // ID of the frames that belong to the attachment
	Term      Term
	Group     uint64 // ID: never reused
	Mode      GroupMode
	Scope     GroupScope
	Order     GroupOrder
	Window    uint32
	SessionMs uint32
	AckWaitMs uint32
	// Refused are the claims that are decided: OK for an outcome that is committed, and the
	// reason for those that are not the session's any more. All others are leased on.
	Refused []OutcomeAnswer
}

// Append implements Message.
func (m *AttachResponse) Append(dst []byte) []byte {
	le := binary.LittleEndian
	dst = le.AppendUint32(dst, m.Link)
	dst = le.AppendUint64(dst, uint64(m.Term))
	dst = le.AppendUint64(dst, m.Group)
	dst = append(dst, byte(m.Mode), byte(m.Scope), byte(m.Order), 0)
	dst = le.AppendUint32(dst, m.Window)
	dst = le.AppendUint32(dst, m.SessionMs)
	dst = le.AppendUint32(dst, m.AckWaitMs)
	return appendAnswers(dst, m.Refused)
}

// Parse implements Message.
func (m *AttachResponse) Parse(src []byte) error {
	r := reader{src: src}
	m.Link = r.uint32()
	m.Term = Term(r.uint64())
	m.Group = r.uint64()
	m.Mode = GroupMode(r.uint8())
	m.Scope = GroupScope(r.uint8())
	m.Order = GroupOrder(r.uint8())
	r.zero(1)
	m.Window = r.uint32()
	m.SessionMs = r.uint32()
	m.AckWaitMs = r.uint32()
	m.Refused = readAnswers(&r, m.Refused)
	return r.done("GROUP_ATTACH response")
}

// GROUP_LEAVE (31), since version 1: the session wants no more records. The broker says
// LINK_CLOSED, code OK, when the session is removed.

// GroupLeave ends an attachment.
//
//	drain bool
type GroupLeave struct {
	Drain bool // what is held is finished first; else it is given back at once
}

// Append implements Message.
func (m *GroupLeave) Append(dst []byte) []byte { return appendBool(dst, m.Drain) }

// Parse implements Message.
func (m *GroupLeave) Parse(src []byte) error {
	r := reader{src: src}
	m.Drain = r.bool()
	return r.done("GROUP_LEAVE")
}

// GROUP_HEARTBEAT (30), since version 1: the broker sends the number back when it has
// been confirmed to have led the partition at some time since the heartbeat came in. The
// session counts as alive for nine tenths of its timeout, from the sending on.

// GroupHeartbeat goes both ways.
//
//	number u64
type GroupHeartbeat struct{ Number uint64 }

// Append implements Message.
func (m *GroupHeartbeat) Append(dst []byte) []byte {
	return binary.LittleEndian.AppendUint64(dst, m.Number)
}

// Parse implements Message.
func (m *GroupHeartbeat) Parse(src []byte) error {
	r := reader{src: src}
	m.Number = r.uint64()
	return r.done("GROUP_HEARTBEAT")
}

// GROUP_CAPACITY (27), since version 1.

// GroupCapacity replaces what AttachRequest said. Records 0 is a pause.
//
//	records u32 | refill u32 | bytes u32 | working u32
type GroupCapacity struct{ Records, Refill, Bytes, Working uint32 }

// Append implements Message.
func (m *GroupCapacity) Append(dst []byte) []byte {
	le := binary.LittleEndian
	dst = le.AppendUint32(dst, m.Records)
	dst = le.AppendUint32(dst, m.Refill)
	dst = le.AppendUint32(dst, m.Bytes)
	return le.AppendUint32(dst, m.Working)
}

// Parse implements Message.
func (m *GroupCapacity) Parse(src []byte) error {
	r := reader{src: src}
	m.Records, m.Refill, m.Bytes, m.Working = r.uint32(), r.uint32(), r.uint32(), r.uint32()
	return r.done("GROUP_CAPACITY")
}
