package client

import (
	"fmt"
	"math"
	"time"

	"github.com/lockstepmq/lockstep/wire"
)

// GroupMode says how the consumers of a group share records.
type GroupMode = wire.GroupMode

// GroupScope says which records a serial group handles one after the other.
type GroupScope = wire.GroupScope

// The modes and scopes of groups.
const (
	Shared = wire.ModeShared // any record to any consumer, acknowledged one by one
	Serial = wire.ModeSerial // one record of a scope at a time, in order; scopes in parallel
	Stream = wire.ModeStream // one consumer of a partition gets everything, in order

	ByKey         = wire.ScopeKey         // a record's key; records without one are free
	ByPublisher   = wire.ScopePublisher   // who published it
	ByDestination = wire.ScopeDestination // all records; the destination has one partition
)

// The other choices of a group.
const (
	Sticky = wire.HolderSticky // one consumer is active while it lives, the others stand by
	Any    = wire.HolderAny    // whoever is free gets the next record
	Sole   = wire.HolderSole   // there is one consumer: a second one is refused with wire.CodeRefused

	Cover        = wire.BindingCover  // each partition has a consumer, each consumer a partition
	StrictlyOne  = wire.BindingStrict // each consumer has one partition and never another
	Gather       = wire.BindingGather // each consumer has all partitions
	BindLocal    = wire.BindingLocal  // each consumer has partitions that are led at the node it is connected to; without one it has none
	StrictOrder  = wire.OrderStrict   // a record starts when the outcome of the one before is committed
	ReplayOrder  = wire.OrderReplay   // or when it is known here, which a fault may then repeat
	DeadLetter   = wire.DeadLetterRecord
	ParkScope    = wire.DeadLetterPark
	NoDeadLetter = wire.DeadLetterNone
)

const (
	defaultPrefetch      = 512
	defaultPrefetchBytes = 8 << 20
)

// ConsumerOption configures a Consumer. What concerns the group counts when the
// consumer's group is created; for a group that exists already, mode, scope and binding
// must agree with it, and the rest stays as it is.
type ConsumerOption func(*consumerOptions)

type consumerOptions struct {
	group    string
	settings wire.GroupSettings
	start    OffsetQuery
	startSet bool
	create   bool
	name     string
	prefetch int
	refill   int
	bytes    int
	flags    wire.AttachFlags
	events   func(Event)
	err      error // of an option that cannot be
}

func newConsumerOptions(opts []ConsumerOption) (consumerOptions, error) {
	o := consumerOptions{prefetch: defaultPrefetch, refill: -1, bytes: defaultPrefetchBytes, create: true}
	for _, opt := range opts {
		opt(&o)
	}
	if o.refill < 0 {
		o.refill = o.prefetch / 2
	}
	if o.settings.Scope != 0 && o.settings.Mode == 0 {
		o.settings.Mode = Serial
	}
	switch {
	case o.err != nil:
		return o, o.err
	case o.settings.Scope != 0 && o.settings.Mode != Serial:
		return o, fmt.Errorf("option Scope: it is about Mode(Serial), not %v", o.settings.Mode)
	case o.group == "":
		return o, fmt.Errorf("option Group: a consumer belongs to a group; name one")
	case o.prefetch < 1 || o.prefetch > wire.MaxGroupCapacity:
		return o, fmt.Errorf("option Prefetch: %d is not in [1, %d]", o.prefetch, wire.MaxGroupCapacity)
	case o.refill >= o.prefetch:
		return o, fmt.Errorf("option Prefetch: a refill at %d of %d records would never be one", o.refill, o.prefetch)
	case o.bytes < 1 || o.bytes > wire.MaxGroupCapacityBytes:
		return o, fmt.Errorf("option PrefetchBytes: %d is not in [1, %d]", o.bytes, wire.MaxGroupCapacityBytes)
	}
	return o, nil
}

// Group names the group. It is needed.
func Group(name string) ConsumerOption { return func(o *consumerOptions) { o.group = name } }

// Mode sets how the group shares records. Default: that of the group, Shared for a new one; with
// Scope it is Serial.
func Mode(m GroupMode) ConsumerOption { return func(o *consumerOptions) { o.settings.Mode = m } }

// Scope sets which records a serial group handles one after the other. Default: ByKey.
func Scope(s GroupScope) ConsumerOption { return func(o *consumerOptions) { o.settings.Scope = s } }

// Holder says whether one consumer stays active and others stand by, any may get the next
// record, or there is but one consumer, where the scope is the destination. Default: Sticky.
func Holder(h wire.GroupHolder) ConsumerOption {
	return func(o *consumerOptions) { o.settings.Holder = h }
}

// Failback has an active consumer that asked to stand by (StandbyPreferred) make way, as
// soon as it holds nothing, for one that did not ask and has come since. Default: false,
// who is active stays active.
func Failback(on bool) ConsumerOption {
	return func(o *consumerOptions) { o.settings.Failback = on }
}

// Binding says which partitions each consumer has. Default: Cover.
func Binding(b wire.BindingPolicy) ConsumerOption {
	return func(o *consumerOptions) { o.settings.Binding = b }
}

// Order says when the next record of a scope may start. Default: StrictOrder, and
// ReplayOrder with Stream.
func Order(order wire.GroupOrder) ConsumerOption {
	return func(o *consumerOptions) { o.settings.Order = order }
}

// Prefetch is how many records a broker may send ahead per partition, and, if given,
// the number down to which they are handled before it sends more. Default: 512, and
// half of it.
func Prefetch(records int, refill ...int) ConsumerOption {
	return func(o *consumerOptions) {
		o.prefetch, o.refill = records, -1
		if len(refill) > 0 {
			o.refill = refill[0]
		}
	}
}

// PrefetchBytes is how many bytes of records a broker may send ahead per partition.
// One larger record is still sent. Default: 8 MiB.
func PrefetchBytes(n int) ConsumerOption { return func(o *consumerOptions) { o.bytes = n } }

// AckWait is how long a record may be worked on. Then its context is cancelled, and the
// record goes to another consumer. Default: 30 s.
func AckWait(d time.Duration) ConsumerOption {
	return func(o *consumerOptions) {
		if d <= 0 {
			o.err = fmt.Errorf("option AckWait: %v is not positive", d)
		}
		o.settings.AckWaitMs = milliseconds(d)
	}
}

// SessionTimeout is how long the brokers wait for a consumer that is not heard of before
// its records go to others. Default: 6 s.
func SessionTimeout(d time.Duration) ConsumerOption {
	return func(o *consumerOptions) { o.settings.SessionMs = milliseconds(d) }
}

// Backoff is the pause before the second attempt at a record, which doubles with each
// attempt up to max. Default: 1 s, 5 min.
func Backoff(first, max time.Duration) ConsumerOption {
	return func(o *consumerOptions) {
		o.settings.BackoffMs, o.settings.BackoffMaxMs = milliseconds(first), milliseconds(max)
	}
}

// DeliveryLimit is after how many failed attempts a record goes to the destination
// letters, or, with ParkScope, its scope is parked. Default: what the destination says.
func DeliveryLimit(attempts int, mode wire.DeadLetterMode, letters string) ConsumerOption {
	return func(o *consumerOptions) {
		if attempts < 0 || attempts > math.MaxUint32 {
			o.err = fmt.Errorf("option DeliveryLimit: %d is not in [0, %d]", attempts, uint32(math.MaxUint32))
		}
		o.settings.DeliveryLimit, o.settings.DeadLetterMode, o.settings.DeadLetter = uint32(attempts), mode, letters
	}
}

// StartAt says where a new group begins: Earliest, Latest or AtTime. Default: at the
// earliest record of a queue and behind the latest of a topic.
func StartAt(q OffsetQuery) ConsumerOption {
	return func(o *consumerOptions) { o.start, o.startSet = q, true }
}

// Create says whether a group that does not exist is created. Default: true.
func Create(on bool) ConsumerOption { return func(o *consumerOptions) { o.create = on } }

// ConsumerName gives the consumer a name that outlives the process: a new one of the
// same name takes over at once what the old one held, and the old one, if it lives, ends
// with ErrFenced.
func ConsumerName(name string) ConsumerOption { return func(o *consumerOptions) { o.name = name } }

// ReleaseOnDisconnect gives what the consumer holds to others as soon as its connection
// ends, where otherwise they wait for the session timeout. Handlers that outlive the
// connection may then overlap with their successors. Default: true for shared groups.
func ReleaseOnDisconnect(on bool) ConsumerOption {
	return func(o *consumerOptions) {
		o.setFlag(wire.AttachReleaseOnDisconnect, on)
		o.setFlag(wire.AttachReleaseChosen, true)
	}
}

// StandbyPreferred asks not to be the active consumer where only one is.
func StandbyPreferred(on bool) ConsumerOption {
	return func(o *consumerOptions) { o.setFlag(wire.AttachStandby, on) }
}

// LookOnly says that records are only looked at: what the consumer has for longer than the
// ack wait, or when it is closed or lost, goes back to the group as no failed attempt.
func LookOnly(on bool) ConsumerOption {
	return func(o *consumerOptions) { o.setFlag(wire.AttachLookOnly, on) }
}

func (o *consumerOptions) setFlag(f wire.AttachFlags, on bool) {
	o.flags &^= f
	if on {
		o.flags |= f
	}
}

// OnEvent sets a function that is called, from one goroutine, in order, for what happens to the
// consumer: Attached, Blocked, LeaseLost, DataExpired, Unconfirmed, Rebound, Uncovered,
// ConsumerClosed. While it runs, newer events wait, the last 64 of them: to stop work on a record
// that is lost, go by Delivery.Context. It must not call Consumer.Close or Conn.Close,
// which wait for it.
func OnEvent(f func(Event)) ConsumerOption { return func(o *consumerOptions) { o.events = f } }

// milliseconds is a duration as the protocol has it: at least one, at most what fits.
func milliseconds(d time.Duration) uint32 {
	return uint32(min(max(d.Milliseconds(), 1), 1<<32-1))
}
