package wire

import "encoding/binary"

// GROUP_OUTCOME (24) and GROUP_ANSWER (25), since version 1: what became of records, and
// whether it is so for good.

// OutcomeKind is what became of a record. Numbers are never reused.
type OutcomeKind uint8

// The outcomes.
const (
	// OutcomeHeld, in claims only, is a record that is queued or being worked on.
	OutcomeHeld OutcomeKind = 0
	// OutcomeAck: done.
	OutcomeAck OutcomeKind = 1
	// OutcomeNack: it failed, and is to be tried again.
	OutcomeNack OutcomeKind = 2
	// OutcomeReleased: it was not worked on, or stopped on request; that is no attempt.
	OutcomeReleased OutcomeKind = 3
	// OutcomeReject: it will never succeed.
	OutcomeReject OutcomeKind = 4
	// OutcomeExtend: it takes longer.
	OutcomeExtend OutcomeKind = 5
	// OutcomeLostSeen: the consumer knows that it has lost the record.
	OutcomeLostSeen OutcomeKind = 6
)

// Outcome is what became of a range of records leased under one epoch. As an item:
//
//	offset u64 | count u32 | epoch u64 | kind u8 | zero 3 | delayMs u32
type Outcome struct {
	Offset Offset
	Count  uint32 // at least 1
	Epoch  Index
	Kind   OutcomeKind
	// DelayMs is before the next attempt, 0 for what the group has as its backoff, and of a release for none; with
	// OutcomeExtend how long it may take from now on.
	DelayMs uint32
	Text    string // a reason, for people; not in claims
}

const outcomeSize = 28

// Next is the first offset behind the range.
func (o *Outcome) Next() Offset { return o.Offset + Offset(o.Count) }

func appendOutcomes(dst []byte, items []Outcome) []byte {
	dst = binary.LittleEndian.AppendUint32(dst, uint32(len(items)))
	for i := range items {
		o := &items[i]
		dst = append(appendSpan(dst, o.Offset, o.Count, o.Epoch), byte(o.Kind), 0, 0, 0)
		dst = binary.LittleEndian.AppendUint32(dst, o.DelayMs)
	}
	return dst
}

// readOutcomes reads ranges that ascend and do not overlap, into the memory of items.
func readOutcomes(r *reader, items []Outcome) []Outcome {
	n := r.items(outcomeSize)
	items = items[:0]
	if n == 0 {
		return nil
	}
	end := Offset(0)
	for range n {
		var o Outcome
		var next Offset
		o.Offset, o.Count, o.Epoch, next = r.span()
		r.ascending(o.Offset, end)
		o.Kind = OutcomeKind(r.uint8())
		r.zero(3)
		o.DelayMs = r.uint32()
		if r.fault != "" {
			return nil
		}
		if o.Kind > OutcomeLostSeen {
			r.fail("an outcome of no known kind")
		}
		end = next
		items = append(items, o)
	}
	return items
}

// GroupOutcomes is the body of GROUP_OUTCOME.
//
//	count u32, each 28 | count u16, each: item u32 | text string
type GroupOutcomes struct {
	Outcomes []Outcome // by ascending offset, none twice
}

// Append implements Message.
func (m *GroupOutcomes) Append(dst []byte) []byte {
	le := binary.LittleEndian
	dst = appendOutcomes(dst, m.Outcomes)
	at, n := len(dst), 0
	dst = le.AppendUint16(dst, 0)
	for i := range m.Outcomes {
		if m.Outcomes[i].Text != "" && n < 1<<16-1 {
			dst = le.AppendUint32(dst, uint32(i))
			dst = appendDetail(dst, m.Outcomes[i].Text)
			n++
		}
	}
	le.PutUint16(dst[at:], uint16(n))
	return dst
}

// Parse implements Message. It uses the memory of m.Outcomes again.
func (m *GroupOutcomes) Parse(src []byte) error {
	r := reader{src: src}
	m.Outcomes = readOutcomes(&r, m.Outcomes)
	last := -1
	for range r.uint16() {
		i := r.uint32()
		text := r.string()
		if r.fault != "" {
			break
		}
		if int64(i) <= int64(last) || uint64(i) >= uint64(len(m.Outcomes)) || text == "" || len(text) > MaxDetailBytes {
			r.fail("a text that belongs to no outcome, or is empty or too long")
			break
		}
		last = int(i)
		m.Outcomes[i].Text = text
	}
	return r.done("GROUP_OUTCOME")
}

// OutcomeAnswer says what an outcome has come to. As an item:
//
//	offset u64 | count u32 | epoch u64 | code i16 | zero u16
type OutcomeAnswer struct {
	Offset Offset
	Count  uint32 // at least 1
	Epoch  Index  // as the outcome had it
	Code   ErrorCode
}

const answerSize = 24

func appendAnswers(dst []byte, items []OutcomeAnswer) []byte {
	dst = binary.LittleEndian.AppendUint32(dst, uint32(len(items)))
	for i := range items {
		a := &items[i]
		dst = binary.LittleEndian.AppendUint16(appendSpan(dst, a.Offset, a.Count, a.Epoch), uint16(a.Code))
		dst = append(dst, 0, 0)
	}
	return dst
}

func readAnswers(r *reader, items []OutcomeAnswer) []OutcomeAnswer {
	n := r.items(answerSize)
	items = items[:0]
	if n == 0 {
		return nil
	}
	for range n {
		var a OutcomeAnswer
		a.Offset, a.Count, a.Epoch, _ = r.span()
		a.Code = ErrorCode(int16(r.uint16()))
		r.zero(2)
		if r.fault != "" {
			return nil
		}
		items = append(items, a)
	}
	return items
}

// GroupAnswers is the body of GROUP_ANSWER.
//
//	count u32, each 24
type GroupAnswers struct{ Answers []OutcomeAnswer }

// Append implements Message.
func (m *GroupAnswers) Append(dst []byte) []byte { return appendAnswers(dst, m.Answers) }

// Parse implements Message. It uses the memory of m.Answers again.
func (m *GroupAnswers) Parse(src []byte) error {
	r := reader{src: src}
	m.Answers = readAnswers(&r, m.Answers)
	return r.done("GROUP_ANSWER")
}

// GROUP_REVOKE (28) and GROUP_LOST (29), since version 1: the consumer is asked to stop
// work on records, or has lost them.

// LeaseReason is why a lease ends, or is to end. Numbers are never reused.
type LeaseReason uint8

// The reasons.
const (
	ReasonAckWait   LeaseReason = 1  // the handler has taken too long
	ReasonRebinding LeaseReason = 2  // the partition goes to another consumer
	ReasonSeek      LeaseReason = 3  // the group goes on elsewhere
	ReasonPark      LeaseReason = 4  // the scope is parked
	ReasonSettings  LeaseReason = 5  // the group changes
	ReasonActive    LeaseReason = 6  // another session is the active one
	ReasonReturned  LeaseReason = 7  // an earlier record of the scope was given back
	ReasonRemoved   LeaseReason = 8  // the session was removed
	ReasonExpired   LeaseReason = 9  // retention has removed the record
	ReasonGroupGone LeaseReason = 10 // the group was removed
)

var leaseReasonNames = []string{"", "ack wait", "rebinding", "seek", "park", "settings", "active session", "returned", "removed", "expired", "group gone"}

func (v LeaseReason) String() string { return settingName(leaseReasonNames, v) }

// Revoke asks for a range of records back. As an item:
//
//	offset u64 | count u32 | epoch u64 | reason u8 | zero 3 | graceMs u32
type Revoke struct {
	Offset  Offset
	Count   uint32 // at least 1
	Epoch   Index
	Reason  LeaseReason
	GraceMs uint32 // after which they are taken
}

const revokeSize = 28

// GroupRevoke is the body of GROUP_REVOKE.
//
//	count u32, each 28
type GroupRevoke struct{ Revokes []Revoke }

// Append implements Message.
func (m *GroupRevoke) Append(dst []byte) []byte {
	dst = binary.LittleEndian.AppendUint32(dst, uint32(len(m.Revokes)))
	for i := range m.Revokes {
		v := &m.Revokes[i]
		dst = append(appendSpan(dst, v.Offset, v.Count, v.Epoch), byte(v.Reason), 0, 0, 0)
		dst = binary.LittleEndian.AppendUint32(dst, v.GraceMs)
	}
	return dst
}

// Parse implements Message.
func (m *GroupRevoke) Parse(src []byte) error {
	r := reader{src: src}
	n := r.items(revokeSize)
	m.Revokes = nil
	for range n {
		var v Revoke
		v.Offset, v.Count, v.Epoch, _ = r.span()
		v.Reason = LeaseReason(r.uint8())
		r.zero(3)
		v.GraceMs = r.uint32()
		if r.fault != "" {
			break
		}
		m.Revokes = append(m.Revokes, v)
	}
	return r.done("GROUP_REVOKE")
}

// Lost is a range of records that the session has lost. As an item:
//
//	offset u64 | count u32 | epoch u64 | reason u8 | zero 3
type Lost struct {
	Offset Offset
	Count  uint32 // at least 1
	Epoch  Index
	Reason LeaseReason
}

const lostSize = 24

// GroupLost is the body of GROUP_LOST. An item of epoch 0 is about no lease: retention has
// removed these records, and the group was not done with all of them.
//
//	count u32, each 24
type GroupLost struct{ Lost []Lost }

// Append implements Message.
func (m *GroupLost) Append(dst []byte) []byte {
	dst = binary.LittleEndian.AppendUint32(dst, uint32(len(m.Lost)))
	for i := range m.Lost {
		v := &m.Lost[i]
		dst = append(appendSpan(dst, v.Offset, v.Count, v.Epoch), byte(v.Reason), 0, 0, 0)
	}
	return dst
}

// Parse implements Message.
func (m *GroupLost) Parse(src []byte) error {
	r := reader{src: src}
	n := r.items(lostSize)
	m.Lost = nil
	for range n {
		var v Lost
		v.Offset, v.Count, v.Epoch, _ = r.span()
		v.Reason = LeaseReason(r.uint8())
		r.zero(3)
		if r.fault != "" {
			break
		}
		m.Lost = append(m.Lost, v)
	}
	return r.done("GROUP_LOST")
}
