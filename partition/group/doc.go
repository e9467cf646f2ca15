// Package group is what one partition knows of its consumer groups: who consumes,
// what is done, and what goes to whom.
//
// It has two halves. State is replicated: it changes only by commands in applied
// entries of the partition's log, and all replicas agree on it. Leader is volatile: on
// the leader of the partition it hands records to consumers, and proposes the commands
// by which State changes.
//
//	consumers ──attach, outcomes──▶ Leader ──commands──▶ the partition's log
//	    ▲                            │  ▲                      │ committed
//	    └───────deliveries───────────┘  └─────── State ◀───────┘
//
// The package runs no goroutine, reads no clock and does no I/O: who calls it brings
// the time and takes the effects away. The package partition is the shell around it.
//
// The words: a session is one consumer as a partition's log lists it. A scope is what
// only one session handles at a time: the records of a key, of a publisher, or one
// record. A lease is a record that a session was given and has not settled. Its epoch is
// the index of the last entry that was applied when it was given, and the fence of a
// record is the index of the entry that took it away: a lease is stale if its epoch is
// below the fence. So nothing needs to be counted, and whatever a leader gives is above
// all that its predecessors gave.
//
// Commands are self-contained: one that takes records away lists them. What a leader
// knew when it proposed one is never looked at when it is applied, because another
// leader may be there by then.
package group
