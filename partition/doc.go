// Package partition is the deterministic state machine of one partition and the
// shell its owner runs around it.
//
// A produced batch takes this path. Append, called on any goroutine, copies it
// into the mailbox, where batches that wait together already form the body of
// the next entry. Turn, called by whoever holds the owner's right, swaps the
// mailbox, drops duplicates, gives offsets, and proposes one entry for all of
// them. Apply, called for every committed entry, updates the State and answers
// the senders whose batches the entry holds.
//
//	Append ──copy──▶ mailbox ──Turn──▶ screen, offsets ──▶ Proposer
//	                                                         │ committed
//	Receiver ◀──────────── receipts ◀──────── Apply ◀────────┘
//
// State is what a checkpoint holds: producers with their sequences, and the
// start of the partition. It is rebuilt from the log alone; Apply never rejects.
// The overlay is what the leader adds: batches proposed in this term and not yet
// applied (RULES R3).
//
// Nothing here starts a goroutine or reads a clock: time is an argument of Turn
// and travels inside entries. The package does not know consensus; it sees a
// Proposer one way and is applied to the other.
package partition
