package sim

// Event is something that a simulation must have seen happen before its silence
// means anything.
type Event int

// Faults first, then what the broker did, then what clients were told.
const (
	PowerCut             Event = iota // everything unsynced in doubt
	PowerCutAtCall                    // at a storage call in the middle of an operation
	PowerCutInRecovery                // at a storage call while the node was starting
	ProcessCrash                      // nothing lost, same boot of the machine
	CleanStop                         // everything synced
	WriteError                        // EIO
	TornWrite                         // EIO after some of the bytes
	SyncError                         // EIO, and the bytes are gone
	SyncDirError                      // EIO
	AllocateError                     // EIO
	NameError                         // EIO of create, rename or remove
	ReadError                         // EIO of open, read, map or populate
	ErrorInRecovery                   // any of them while the node was starting
	DiskFilled                        //
	DiskFreed                         //
	CacheEvicted                      // reads show what a failed sync has lost
	ClockJump                         // by up to ten years
	Rotten                            // a bit of a body was flipped
	DamageFound                       // by a reader, or refused to one
	Told                              // a reader, that what it had read is lost
	Fenced                            // a log gave up after a storage error
	FenceRecovered                    // and came back after a restart
	TailCut                           // recovery dropped entries that were never confirmed
	Uncertain                         // power was lost in a mode that does not sync
	SegmentCreated                    //
	SegmentRecycled                   // a segment began its life as a recycled file
	SegmentRemoved                    // by retention
	Trimmed                           // the start moved
	CheckpointWritten                 //
	CheckpointRestored                //
	DirectoryQuarantined              // after a committed delete
	JournalGroup                      // one sync served several logs
	JournalReused                     // a journal file that nobody held any more
	JournalFound                      // a start that finds a journal
	JobInterrupted                    // an owner's turn ran in the middle of a job
	Acknowledged                      // batches
	Duplicate                         // receipts with the duplicate flag
	DiskFullAnswer                    // batches refused with DISK_FULL
	ProducerFenced                    // batches refused with FENCED
	SequenceLost                      // producers that began anew after a loss in os or interval mode
	Forgotten                         // producers that began anew because a clock that jumped made them old
	Read                              // reads that compared at least one frame
	TimeLookup                        // lookups by time
	EventCount                        // number of events
)

var eventNames = [EventCount]string{
	"power cut", "power cut at a call", "power cut in recovery", "process crash", "clean stop",
	"write error", "torn write", "sync error", "directory sync error", "allocation error", "name error",
	"read error", "error in recovery", "disk filled", "disk freed", "cache evicted", "clock jump", "rotten body", "damage found", "reader told of a loss", "fenced",
	"fence recovered", "tail cut", "uncertain", "segment created", "segment recycled", "segment removed",
	"trimmed", "checkpoint written", "checkpoint restored", "directory quarantined",
	"journal group", "journal reused", "journal found", "job interrupted", "acknowledged",
	"duplicate", "disk full answer", "producer fenced", "sequence lost", "producer forgotten", "read", "time lookup",
}

func (e Event) String() string { return eventNames[e] }

// Counts says how often each event happened.
type Counts [EventCount]int64

// Add adds another run's counts.
func (c *Counts) Add(other *Counts) {
	for i := range c {
		c[i] += other[i]
	}
}
