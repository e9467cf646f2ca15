package groupmodel

// Rule is a rule of the protocol that can be left out, or a part of one.
type Rule uint8

const (
	epochIsTerm          Rule = iota // epochs: the term alone
	epochForgotten                   // epochs: term and a counter that an idle scope forgets
	beforeNoop                       // 1: a new leader acts before its no-op is applied
	removalLooksAtLeases             // 2: apply of a removal looks at the leader's leases
	emptyTable                       // 2: a hand-over does not carry the leases
	forwarded                        // 3: a deposed leader passes its proposals on
	appliedOnly                      // 4: a leader forgets what it has proposed
	ackOfEnding                      // 4: an ack counts although the end of its lease is proposed
	endedTwice                       // 4: a lease is ended again while its end is proposed
	deliverEnding                    // 4: deliveries go on under a lease that ends
	joinVolatile                     // 5: a session works before its join is committed
	waitForBound                     // 6: a new leader waits for those that are bound
	removalVolatile                  // 7: a timer gives records away without an entry
	goneIsTold                       // 9: a session off the list is answered like others
	removedComesBack                 // 9: an attach does not say whether its session is new
	unclaimedAtOnce                  // 10: scopes do not wait
	oldRecordsAlone                  // 10: the records that may be in hands wait, and not their scopes
	removalOfAttached                // 11: the timer runs for those alone that have attached
	attachBeforeClaims               // 12: attach and claims are two messages
	attemptIgnored                   // 13: older attempts are taken
	termNotKept                      // 13: a consumer turns to an older leader
	formerLink                       // 14: deliveries of a former link are taken
	claimOfThisTerm                  // 15: a claim needs an epoch of this leader
	claimUnfenced                    // 15: the fence is not looked at
	claimGetsNewEpoch                // 15: a claimed lease gets a new epoch
	outcomesForgotten                // 16: claims do not have unconfirmed outcomes
	lostStays                        // 17: what was lost on the way is not returned
	horizonVolatile                  // 18: deliveries beyond the committed horizon
	noDoubt                          // 19: no doubt mark
	doubtVolatile                    // 19: the doubt mark is the leader's own
	okOnReceipt                      // 20: OK before commit
	nextOnReceipt                    // 21: the scope moves when the ack is read
	returnOnReceipt                  // 21: a returned record goes out before the return is committed
	removalOnReceipt                 // 21: a removed session's records go out before that is committed
	startsUnconfirmed                // 22: the next record starts before OK
	nackKeepsRest                    // 24: a consumer that nacks keeps what comes after
	nackForgotten                    // 24: what comes late of a lease that was given back is taken
	nackOfOne                        // 24: a nack gives back one record alone
	limitOnDeliveries                // 24: the limit counts deliveries
	aheadOfFence                     // 24: a returned record joins a lease that is older than the return
	settleOnReceipt                  // 26: the next record goes out before the verdict is committed
	staleAtOnce                      // 27: STALE before the end of the lease is committed
	ackOfAnyEpoch                    // 27: the epoch of an ack is not compared
	fencePerScope                    // 28: one fence for the scope
	noFenceForDone                   // 28: a done record is OK for everybody
	doneIsStale                      // 28: a done record is STALE for everybody
	seekWithoutDrain                 // 29: leases survive
	seekInGrace                      // 29: the wait set is not waited for
	seekWithoutFence                 // 29: the group is not fenced
	parkWithoutRevoke                // 30: park now takes the scope without a word
	skipHeld                         // 30: a skip does not revoke
	skipInGrace                      // 30: a skip does not wait for the wait set
	unboundAtOnce                    // 30: an unbound session is removed with what it holds
	tableStays                       // 31: a later no-op does not void the table
	voidVolatile                     // 31: a move is given up without an entry
	moveGoesOn                       // 31: dispatch does not stop
	moveInGrace                      // 31: the wait set is not waited for
	noDeadline                       // T1: consumers have no deadline
	queueSurvives                    // T1: queued records survive it
	staleConfirms                    // T1: any leader confirms heartbeats
	brokenIsDead                     // T3: a broken link is a dead consumer
	withoutRevoke                    // T4: a timeout returns the record at once
	deadlineOfAbsent                 // T4: so does one of a session that cannot be asked
	creditKept                       // T5: a timeout does not free the credit
	suspectExcluded                  // T6: who has timed out gets nothing
	activeVolatile                   // T7: a broken link makes another session active
	activeForever                    // T7: a suspect stays active
	rules
)
