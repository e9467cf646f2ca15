package replication

import "github.com/lockstepmq/lockstep/wire"

// Membership is a change of a group's configuration. Either AddLearners is set, or
// Promote and Remove are; the latter two happen together, by joint consensus if
// more than one voter changes. All are replica IDs.
type Membership struct {
	AddLearners []uint64
	Promote     []uint64
	Remove      []uint64
}

// Members is the configuration that counts, as of the last applied entry.
type Members struct {
	Voters   []uint64
	Outgoing []uint64 // voters of the configuration that is being left, joint only
	Learners []uint64
	// Index is the entry that brought this configuration, 0 for the founding one or
	// if a checkpoint brought it.
	Index wire.Index
	// Progress is known to the leader only.
	Progress []Progress
}

// Progress is how far the leader knows a member to be.
type Progress struct {
	Replica  uint64
	Match    wire.Index
	Active   bool // it answered within the last election timeout
	InStep   bool // it is fed from memory or the log, neither probed nor sent a snapshot
	Snapshot bool // it is being sent one
}
