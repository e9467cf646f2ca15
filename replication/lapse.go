package replication

// lapse is a protection that a replica does without. Only tests set one, to show that it
// would be missed; the zero value has all.
type lapse uint16

const (
	unpinned  lapse = 1 << iota // entries are used again while a message refers to them
	hasty                       // promises are sent before the disk has them
	enduring                    // a leader waits for its disk for ever
	trusting                    // uncertain votes count as others
	heedless                    // a leader that stood still asks nobody
	early                       // a waiting replica takes part before Admit
	obedient                    // an uncertain replica, or one that is not Ready, campaigns when it is told to
	unheeding                   // entries may replace committed ones
	yielding                    // a leader listens to another one of its term
	releasing                   // the log's start moves although a follower was offered it
	generous                    // any learner becomes a voter
	credulous                   // a checkpoint need not know the replica that it is for
	brash                       // a candidate does not ask first whether it could win; set in Config
	abrupt                      // voters change one by one instead of by joint consensus
	rash                        // time passes before what has arrived is looked at
)
