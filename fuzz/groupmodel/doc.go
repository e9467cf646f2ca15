// Package groupmodel is the protocol of groups on one partition as a small model,
// and goes through every state that it can get into. It is there before the real
// dispatcher, and beside it: the rules are tried out here, where a wrong one shows as
// a trace of fifteen lines.
//
// # State
//
// Everything is one block of bytes (state.go). There are two leaders: the current one, and
// one that was deposed and does not know it. Each has what it has applied (replicated: done
// records, fences, the list of sessions, horizon, doubt, …), a tail of entries that
// it has proposed and that are not committed, and what it keeps in memory: leases, the
// wait set, suspicion. A consumer has a session, a link to one leader with messages
// under way in both directions, and records that are queued, running, acked or nacked.
// Records are r0, r1 and r2; a scope is a number. The first session of consumer A
// is A1; after a restart or its own deadline it is A2.
//
// # Actions
//
// One action is one deed of one party (action.go): a leader reads a message, delivers,
// commits and applies its oldest entry; a consumer starts or finishes a record; a link
// breaks; a leader dies or is deposed, and the next one has any prefix of its tail.
// What does not matter for the promises is one step: commit and apply, and the
// conversation of a revoke. Time is a condition, not a number: a session may be
// removed when its consumer is dead, stands still, or has seen its own deadline pass,
// which T1 puts before the leader's.
//
// What may happen in one world, and how often, says a Config.
//
// # Promises
//
// After every action (promises.go):
//
//	G1      one accepted ack for a record, of the newest lease of its scope; in order;
//	        nothing is delivered after it; no two sessions share an epoch of a scope
//	G2      no two live sessions work in a scope; processes that have stood still are
//	        excused from then until their session ends
//	G3      no record starts before those before it in its scope are settled
//	G4      a record that was started comes again only if its consumer failed or gave it back
//	G5      nothing is settled that nobody finished
//	G6      from every state with a consumer that works there is a way to the end without
//	        another fault (explore.go goes backward from the ends through all that was seen)
//	counts  a record that comes again says so; none is dead-lettered untried
//
// # Rules and variants
//
// Each rule of the protocol that can be left out by itself is a Rule (rules.go), with the
// number that it has in the design. TestGroupsModelCatches leaves out one after
// another, in the smallest world in which it is missed.
//
// # Reading a counterexample
//
//	G2 is broken: B1 starts work in scope 0, and A1 works on r0 of it
//	   1  L1 leases scope 0 to A1 and delivers r0
//	   2  A1 reads DELIVER(r0, epoch 1)
//	   3  A1 starts r0 under epoch 1
//	   4  A1's link breaks
//	   5  L1 proposes the removal of A1, whose time is over
//	   …
//
// L1 is the leader of term 1. The search goes breadth first, so no shorter trace exists.
// An epoch is the index of the last entry that was applied when the lease was granted. What
// is proposed and not committed is in the tail: "L2 has 1 of its 3 uncommitted
// entries" says which of them outlived L1. Look first for the last line at which the two
// parties still agree; the fault is between there and the end.
//
// # How large
//
// States are told apart by a hash. They are one if they differ only in the numbers of their
// epochs but not in their order, in names of the first two consumers, or in what cannot
// matter any more (forget). Half a million a second on one core, 60 bytes each and
// half a KiB for those not gone on from.
//
// Not in the model: publishing of dead letters, claims in chunks, backoff, splits of
// partitions, and which of several ways is taken: G6 says that there is one.
package groupmodel
