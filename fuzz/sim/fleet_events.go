package sim

// FleetEvent is something that simulations of several machines must have seen happen
// before their silence means anything.
type FleetEvent int

// Faults first, then what the replicas did, then what clients were told.
const (
	FleetPowerCut           FleetEvent = iota // of one machine
	FleetPowerCutAtCall                       // at a storage call in the middle of an operation
	FleetBlackout                             // of all machines at once
	FleetCrash                                // of a process
	FleetCleanStop                            //
	FleetPaused                               // a process stood still
	FleetDropped                              // a frame was lost
	FleetOfferDropped                         // one that offers a snapshot, which raft sends once
	FleetDuplicated                           // a frame came twice
	FleetReordered                            // a frame overtook others
	FleetDamaged                              // a bit of an entry was flipped on the way
	FleetCut                                  // a link, both ways
	FleetCutOneWay                            //
	FleetHealed                               //
	FleetOverflow                             // a queue was full
	FleetDownSeen                             // a dead process was told to another
	FleetSilent                               // a node was supposed to be dead
	FleetWiped                                // a disk was lost, and its replica is replaced
	FleetReplaced                             // by a voter with a new ID
	FleetDelivered                            // frames
	FleetReplicated                           // frames with entries
	FleetElected                              // terms with a leader
	FleetTransferred                          // leadership was handed over, or tried to
	FleetTakenBack                            // entries that a later leader replaced
	FleetFed                                  // reads for followers that lag, and for the replica itself
	FleetLingered                             // messages to followers that need not sync them at once
	FleetFedItself                            // reads of what was too much to be loaded at a start
	FleetCommitted                            // entries
	FleetCheckpointRestored                   //
	FleetInstalled                            // a replica got the checkpoint of another one
	FleetErased                               // a replica gave records back, and had done so before
	FleetPassed                               // a replica passed over what its leader had erased
	FleetQuiet                                // ticks that a sleeping group did not need
	FleetConfirmed                            // reads that a quorum has confirmed
	FleetRead                                 // reads that compared at least one entry
	FleetTimeout                              // a client waited in vain
	FleetRefused                              // batches
	FleetAcknowledged                         // batches
	FleetDuplicate                            // receipts with the duplicate flag
	FleetEventCount                           // number of events
)

var fleetEventNames = [FleetEventCount]string{
	"power cut", "power cut at a call", "blackout", "process crash", "clean stop", "pause",
	"frame dropped", "snapshot offer dropped", "frame duplicated", "frame reordered", "entry damaged on the way", "link cut", "link cut one way", "network healed", "queue overflow",
	"death seen", "silence", "disk lost", "replica replaced", "frame delivered", "frame with entries", "term with a leader", "transfer", "entry taken back",
	"read for a lagging follower", "sync that may wait", "read for the replica itself", "entry committed", "checkpoint restored", "snapshot installed", "records erased", "erased run passed over", "tick slept", "read confirmed", "read", "client timeout",
	"batch refused", "batch acknowledged", "duplicate detected",
}

func (e FleetEvent) String() string { return fleetEventNames[e] }

// FleetCounts says how often each event happened.
type FleetCounts [FleetEventCount]int64

// Add adds another run's counts.
func (c *FleetCounts) Add(other *FleetCounts) {
	for i := range c {
		c[i] += other[i]
	}
}
