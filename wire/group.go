package wire

import (
	"encoding/binary"
	"fmt"
)

// Groups share the records of a destination. One consumer attaches to one partition as a
// session of a group and gets leases of records; the files group_*.go hold a message
// each, or a few that belong together. Whoever leads the partition checks every lease by
// its epoch, which is an Index: that of the last entry applied when the lease was granted.

// Limits of groups that both ends know.
const (
	// MaxGroupItems is the largest number of ranges in one ATTACH, OUTCOME or any other
	// frame of a group.
	MaxGroupItems = 1 << 16
	// MaxOutcomeBytes is the longest body of an OUTCOME frame, in bytes.
	MaxOutcomeBytes = 1 << 20
	// MaxGroupCapacity is the largest number of records that one session may hold.
	MaxGroupCapacity = 1 << 16
	// MaxGroupCapacityBytes is how many bytes of records one session may hold.
	MaxGroupCapacityBytes = 64 << 20
)

// LetterHeader begins the keys of the headers that a dead letter has besides those of its
// record: origin (destination/partition), offset, group, reason, text, number, deliveries
// and attempts, all as text.
const LetterHeader = "lockstep-dead-letter-"

// LetterOrigin is the key of the first of these headers; those before the last one are the
// record's own.
const LetterOrigin = LetterHeader + "origin"

// RedrivenHeader is the key of a header of records that came back from where dead letters go:
// the letter it was, as destination/partition@offset.
const RedrivenHeader = "lockstep-redriven"

// GroupMode says how a group shares records. Numbers are never reused; 0 in settings
// stands for what the destination or the build has as its default, here and in the types
// below.
type GroupMode uint8

// The modes.
const (
	ModeShared GroupMode = 1 // any record to any consumer
	ModeSerial GroupMode = 2 // one record of a scope at a time, in order
	ModeStream GroupMode = 3 // one consumer gets everything in order, with a window
)

// GroupScope says which records a serial group handles one after the other.
type GroupScope uint8

// The scopes.
const (
	ScopeKey         GroupScope = 1
	ScopePublisher   GroupScope = 2
	ScopeDestination GroupScope = 3
)

// GroupHolder says who gets the records of a scope.
type GroupHolder uint8

// The holders.
const (
	HolderSticky GroupHolder = 1 // one consumer while it lives
	HolderAny    GroupHolder = 2 // any, for each record anew
	HolderSole   GroupHolder = 3 // the one consumer that there is: a second one is refused
)

// BindingPolicy says which consumers of a group attach to which partitions.
type BindingPolicy uint8

// The policies.
const (
	BindingCover  BindingPolicy = 1 // each partition has a consumer, each consumer a partition
	BindingStrict BindingPolicy = 2 // each consumer has one partition, and keeps it
	BindingGather BindingPolicy = 3 // each consumer has all partitions
	BindingLocal  BindingPolicy = 4 // each consumer has partitions that are led at its node, and no other
)

// GroupOrder says when the next record of a scope may start.
type GroupOrder uint8

// The orders.
const (
	OrderStrict GroupOrder = 1 // when the outcome of the one before is committed
	OrderReplay GroupOrder = 2 // when it is known to the holder
)

// DeadLetterMode says what becomes of a record that has failed too often.
type DeadLetterMode uint8

// The modes.
const (
	DeadLetterRecord DeadLetterMode = 1 // it goes to the dead letter destination
	DeadLetterPark   DeadLetterMode = 2 // its scope is parked
	DeadLetterNone   DeadLetterMode = 3 // it is tried again for ever
)

// The names of the values, by number.
var (
	groupModeNames      = []string{"", "shared", "serial", "stream"}
	groupScopeNames     = []string{"", "key", "publisher", "destination"}
	groupHolderNames    = []string{"", "sticky", "any", "sole"}
	bindingPolicyNames  = []string{"", "cover", "strict", "gather", "local"}
	groupOrderNames     = []string{"", "strict", "replay"}
	deadLetterModeNames = []string{"", "record", "park", "none"}
)

func settingName[T ~uint8](names []string, v T) string {
	if int(v) < len(names) {
		return names[v]
	}
	return fmt.Sprintf("unknown (%d)", uint8(v))
}

// settingOf is the value of a name, an *Error with CodeInvalidSetting if it has none.
func settingOf[T ~uint8](names []string, what string, text []byte, v *T) error {
	for i, name := range names {
		if name == string(text) {
			*v = T(i)
			return nil
		}
	}
	return Errorf(CodeInvalidSetting, "%s %.64q is none of %q", what, text, names[1:])
}

func (v GroupMode) String() string      { return settingName(groupModeNames, v) }
func (v GroupScope) String() string     { return settingName(groupScopeNames, v) }
func (v GroupHolder) String() string    { return settingName(groupHolderNames, v) }
func (v BindingPolicy) String() string  { return settingName(bindingPolicyNames, v) }
func (v GroupOrder) String() string     { return settingName(groupOrderNames, v) }
func (v DeadLetterMode) String() string { return settingName(deadLetterModeNames, v) }

// MarshalText implements encoding.TextMarshaler: the name, empty for 0.
func (v GroupMode) MarshalText() ([]byte, error) { return []byte(v.String()), nil }

// MarshalText implements encoding.TextMarshaler: the name, empty for 0.
func (v GroupScope) MarshalText() ([]byte, error) { return []byte(v.String()), nil }

// MarshalText implements encoding.TextMarshaler: the name, empty for 0.
func (v GroupHolder) MarshalText() ([]byte, error) { return []byte(v.String()), nil }

// MarshalText implements encoding.TextMarshaler: the name, empty for 0.
func (v BindingPolicy) MarshalText() ([]byte, error) { return []byte(v.String()), nil }

// MarshalText implements encoding.TextMarshaler: the name, empty for 0.
func (v GroupOrder) MarshalText() ([]byte, error) { return []byte(v.String()), nil }

// MarshalText implements encoding.TextMarshaler: the name, empty for 0.
func (v DeadLetterMode) MarshalText() ([]byte, error) { return []byte(v.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (v *GroupMode) UnmarshalText(b []byte) error { return settingOf(groupModeNames, "mode", b, v) }

// UnmarshalText implements encoding.TextUnmarshaler.
func (v *GroupScope) UnmarshalText(b []byte) error { return settingOf(groupScopeNames, "scope", b, v) }

// UnmarshalText implements encoding.TextUnmarshaler.
func (v *GroupHolder) UnmarshalText(b []byte) error {
	return settingOf(groupHolderNames, "holder", b, v)
}

// UnmarshalText implements encoding.TextUnmarshaler.
func (v *BindingPolicy) UnmarshalText(b []byte) error {
	return settingOf(bindingPolicyNames, "binding", b, v)
}

// UnmarshalText implements encoding.TextUnmarshaler.
func (v *GroupOrder) UnmarshalText(b []byte) error { return settingOf(groupOrderNames, "order", b, v) }

// UnmarshalText implements encoding.TextUnmarshaler.
func (v *DeadLetterMode) UnmarshalText(b []byte) error {
	return settingOf(deadLetterModeNames, "dead letter mode", b, v)
}

// GroupSettings say how a group works. On the wire and in the metadata a zero field means
// what the destination says, or else the default; in a partition's log nothing is left
// open.
//
//	mode u8 | scope u8 | holder u8 | binding u8 | order u8 | hold bool | deadLetterMode u8 | failback bool |
//	window u32 | sessionMs u32 | ackWaitMs u32 | revokeMs u32 | backoffMs u32 | backoffMaxMs u32 |
//	deliveryLimit u32 | deadLetter string
type GroupSettings struct {
	Mode           GroupMode      `json:"mode,omitempty"`
	Scope          GroupScope     `json:"scope,omitempty"`
	Holder         GroupHolder    `json:"holder,omitempty"`
	Binding        BindingPolicy  `json:"binding,omitempty"`
	Order          GroupOrder     `json:"order,omitempty"`
	Hold           bool           `json:"hold,omitempty"` // records that the group is not done with stay in a topic until its threshold
	DeadLetterMode DeadLetterMode `json:"dead_letter_mode,omitempty"`
	Failback       bool           `json:"failback,omitempty"`       // a sticky active consumer that would rather stand by makes way for one that would not
	Window         uint32         `json:"window,omitempty"`         // records of one scope that are leased at once
	SessionMs      uint32         `json:"session_ms,omitempty"`     // silence after which a consumer is taken for dead
	AckWaitMs      uint32         `json:"ack_wait_ms,omitempty"`    // how long a handler may take
	RevokeMs       uint32         `json:"revoke_ms,omitempty"`      // how long it has to stop
	BackoffMs      uint32         `json:"backoff_ms,omitempty"`     // before the second attempt; it doubles with each
	BackoffMaxMs   uint32         `json:"backoff_max_ms,omitempty"` // and ends here
	DeliveryLimit  uint32         `json:"delivery_limit,omitempty"` // attempts, 0: as many as it takes
	DeadLetter     string         `json:"dead_letter,omitempty"`    // the destination; empty: none
}

const groupSettingsMinSize = 8 + 7*4 + 2

// Append appends the encoded settings.
func (m *GroupSettings) Append(dst []byte) []byte {
	le := binary.LittleEndian
	dst = append(dst, byte(m.Mode), byte(m.Scope), byte(m.Holder), byte(m.Binding), byte(m.Order))
	dst = appendBool(append(appendBool(dst, m.Hold), byte(m.DeadLetterMode)), m.Failback)
	for _, v := range [...]uint32{m.Window, m.SessionMs, m.AckWaitMs, m.RevokeMs, m.BackoffMs, m.BackoffMaxMs, m.DeliveryLimit} {
		dst = le.AppendUint32(dst, v)
	}
	return appendString(dst, m.DeadLetter)
}

func (m *GroupSettings) read(r *reader) {
	m.Mode = GroupMode(r.uint8())
	m.Scope = GroupScope(r.uint8())
	m.Holder = GroupHolder(r.uint8())
	m.Binding = BindingPolicy(r.uint8())
	m.Order = GroupOrder(r.uint8())
	m.Hold = r.bool()
	m.DeadLetterMode = DeadLetterMode(r.uint8())
	m.Failback = r.bool()
	for _, v := range [...]*uint32{&m.Window, &m.SessionMs, &m.AckWaitMs, &m.RevokeMs, &m.BackoffMs, &m.BackoffMaxMs, &m.DeliveryLimit} {
		*v = r.uint32()
	}
	m.DeadLetter = r.string()
}

// ParseGroupSettings reads settings from the start of src and returns what follows them.
// Errors: an *Error with CodeMalformed.
func ParseGroupSettings(src []byte) (m GroupSettings, rest []byte, err error) {
	r := reader{src: src}
	m.read(&r)
	rest, r.src = r.src, nil
	return m, rest, r.done("group settings")
}

// The defaults of groups.
const (
	DefaultSessionMs    = 6_000
	DefaultAckWaitMs    = 30_000
	DefaultRevokeMs     = 5_000
	DefaultBackoffMs    = 1_000
	DefaultBackoffMaxMs = 300_000
	DefaultWindow       = 1
)

// WithDefaults is the settings with every zero field that has a default set to it. What a
// destination has as its own must be in place before.
func (m GroupSettings) WithDefaults() GroupSettings {
	def := func(v *uint32, d uint32) {
		if *v == 0 {
			*v = d
		}
	}
	if m.Mode == 0 {
		m.Mode = ModeShared
	}
	if m.Scope == 0 {
		m.Scope = ScopeKey
	}
	if m.Holder == 0 {
		m.Holder = HolderAny
		if m.Mode == ModeStream || m.Mode == ModeSerial && m.Scope == ScopeDestination {
			m.Holder = HolderSticky
		}
	}
	if m.Binding == 0 {
		m.Binding = BindingCover
	}
	if m.Order == 0 {
		m.Order = OrderStrict
		if m.Mode == ModeStream {
			m.Order = OrderReplay
		}
	}
	if m.DeadLetterMode == 0 {
		m.DeadLetterMode = DeadLetterNone
		if m.DeadLetter != "" {
			m.DeadLetterMode = DeadLetterRecord
		}
	}
	def(&m.Window, DefaultWindow)
	def(&m.SessionMs, DefaultSessionMs)
	def(&m.AckWaitMs, DefaultAckWaitMs)
	def(&m.RevokeMs, DefaultRevokeMs)
	def(&m.BackoffMs, DefaultBackoffMs)
	def(&m.BackoffMaxMs, DefaultBackoffMaxMs)
	return m
}

// zero reads bytes that must be 0.
func (r *reader) zero(n int) {
	for _, b := range r.take(n) {
		if b != 0 {
			r.fail("reserved bytes are not zero")
		}
	}
}

// items reads the number of ranges of a group that follow, each of size bytes.
func (r *reader) items(size int) int {
	n := r.count(size)
	if n > MaxGroupItems {
		r.fail("more ranges than a frame may have")
		return 0
	}
	return n
}

// span reads the first fields of an item: a range of offsets and the epoch of its lease.
// next is where it ends; a range has at least one offset.
func (r *reader) span() (o Offset, count uint32, epoch Index, next Offset) {
	o, count, epoch = Offset(r.uint64()), r.uint32(), Index(r.uint64())
	next = o + Offset(count)
	if r.fault == "" && (count == 0 || next < o) {
		r.fail("a range of offsets is empty or wraps")
	}
	return o, count, epoch, next
}

// ascending checks that a range begins at or behind the end of the one before.
func (r *reader) ascending(o, end Offset) {
	if o < end {
		r.fail("ranges of offsets do not ascend")
	}
}

func appendSpan(dst []byte, o Offset, count uint32, epoch Index) []byte {
	le := binary.LittleEndian
	dst = le.AppendUint64(dst, uint64(o))
	dst = le.AppendUint32(dst, count)
	return le.AppendUint64(dst, uint64(epoch))
}
