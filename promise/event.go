package promise

import (
	"fmt"
	"strings"
)

// Kind says what was observed.
type Kind uint8

const (
	// Delivered says that a session got a record under an epoch. Report it when the
	// library has taken the delivery, not what it dropped.
	Delivered Kind = iota + 1
	// Started says that the session's handler begins with a delivered record. Report
	// it before the handler does anything.
	Started
	// Finished says that the handler has returned or was killed. Report it before
	// anything that follows from it, an ack above all, is sent.
	Finished
	// Acked says that the session sends an ack. Report it before it is sent; again
	// for a repetition, or not.
	Acked
	// Answered says that the session got an Answer to an ack.
	Answered
	// Nacked says that the session gives the record back, and with it all later ones
	// that it holds of the scope: a nack, a release, the rest of a range that was
	// broken off. Report it before it is sent.
	Nacked
	// Revoked says that the broker took the record away, and all later ones that the
	// session holds of the scope: a revoke, LEASE_LOST, a timeout. Report it when the
	// session learns of it and its handlers have been told to stop.
	Revoked
	// Removed says that a session is at its end for the broker, or fenced itself at its
	// deadline: whatever it held may go to others. Its handlers may still run.
	Removed
	// Died says that the session's process is gone, and its handlers with it.
	Died
	// Stopped says that the session's process stands still (SIGSTOP, a paused machine)
	// or that its handlers ignore cancellation. G2 does not cover it from here on.
	Stopped
	// Settled says that something else than an ack settled the record: it was skipped
	// or dead-lettered, or it expired. Report it when it is known to be committed.
	// Epoch is the index of that entry, 0 if it is not known.
	Settled
	// Sought says that a seek is committed: records of all scopes, from Record on, may
	// be delivered again, under epochs that are not below Epoch. Those before are passed
	// over, done or not.
	Sought
	// Published says that a record of the scope exists. Needed for Unsettled alone.
	Published
	// LeaderLost says that the partition changes its leader. Needed for order=replay alone.
	LeaderLost
)

var kindNames = [...]string{
	Delivered: "delivered", Started: "started", Finished: "finished", Acked: "acked", Answered: "answered",
	Nacked: "nacked", Revoked: "revoked", Removed: "removed", Died: "died", Stopped: "stopped",
	Settled: "settled", Sought: "sought", Published: "published", LeaderLost: "leader lost",
}

func (k Kind) String() string {
	if int(k) < len(kindNames) && kindNames[k] != "" {
		return kindNames[k]
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

// Answer is what a session was told about an ack.
type Answer uint8

const (
	// OK says that this ack, or an equal one before it, settled the record.
	OK Answer = iota + 1
	// Stale says that the lease is lost or the session gone; it covers every code of
	// that class.
	Stale
	// Other is any answer that neither accepts nor fences: OUT_OF_ORDER, NOT_OWNER,
	// ALREADY_DONE, or an error of the connection.
	Other
)

func (a Answer) String() string {
	switch a {
	case OK:
		return "OK"
	case Stale:
		return "STALE"
	}
	return "another answer"
}

// Event is one observation. Kind says which fields count: Session, Scope, Record
// and Epoch for what concerns a delivery, Session alone for Removed, Died and
// Stopped, Scope and Record for Settled and Published, Record and Epoch for Sought.
type Event struct {
	Kind Kind
	// Session names one life of a consumer: a restarted process and a session that
	// joined anew have new names.
	Session string
	// Scope is the key, the publisher, or "" where the scope is the whole partition.
	// In mode shared it is ignored: every record is its own scope.
	Scope string
	// Record is the record's offset.
	Record uint64
	// Epoch is the fencing epoch that the delivery carried.
	Epoch uint64
	// Redelivered is what a delivery says about itself; see Options.Flags.
	Redelivered bool
	// Answer is set for Answered.
	Answer Answer
}

// String is the event as a line of a trace.
func (e Event) String() string {
	var b strings.Builder
	if e.Session != "" {
		fmt.Fprintf(&b, "%s: ", e.Session)
	}
	b.WriteString(e.Kind.String())
	switch e.Kind {
	case Delivered, Started, Finished, Acked, Answered, Nacked, Revoked, Settled, Published:
		fmt.Fprintf(&b, " record %d", e.Record)
		if e.Scope != "" {
			fmt.Fprintf(&b, " of scope %q", e.Scope)
		}
	case Sought:
		fmt.Fprintf(&b, " from record %d", e.Record)
	}
	if e.Epoch != 0 {
		fmt.Fprintf(&b, " under epoch %d", e.Epoch)
	}
	if e.Redelivered {
		b.WriteString(", redelivered")
	}
	if e.Kind == Answered {
		fmt.Fprintf(&b, ": %s", e.Answer)
	}
	return b.String()
}
