package group

import (
	"github.com/lockstepmq/lockstep/wire"
)

// ID names a group for good: the index of the metadata entry that created it.
type ID uint64

// Session names one consumer of a partition: random bytes that it chose.
type Session [16]byte

// Scope names the records that only one session handles at a time: the hash of their
// key or publisher, or their offset.
type Scope uint64

// Settings of a group with every default filled in.
type Settings = wire.GroupSettings

// State is what all replicas of a partition agree on about its groups. It changes only
// by applied entries. Owner only.
type State struct {
	term   wire.Term   // of the last applied entry
	start  wire.Offset // of the partition
	next   wire.Offset // one past the last applied record
	byID   map[ID]*Group
	byName map[string]*Group
}

// NewState is the state of a partition without groups.
func NewState() *State {
	return &State{byID: make(map[ID]*Group), byName: make(map[string]*Group)}
}

// Group returns the group with an ID, or nil.
func (s *State) Group(id ID) *Group { return s.byID[id] }

// Named returns the group with a name, or nil.
func (s *State) Named(name string) *Group { return s.byName[name] }

// Effect says what an applied command changed, for the leader that proposed it and for
// the links of the group.
type Effect struct {
	Group   *Group // nil if the command meant a group that is not there
	Kind    Command
	Session Session // that the command is about, if it is about one
	Removed bool    // the group itself is gone; it belongs to no State any more
}

// Group is the replicated state of one group in one partition. The Leader reads it;
// only State writes it.
type Group struct {
	ID       ID
	Name     string
	Version  uint64 // metadata index of its settings
	Settings Settings
	Queue    bool // its floor moves the start of the partition
	Paused   bool

	Done    Done
	Expired uint64 // records that retention took before they were done

	// Horizon is one past the highest offset that may have been delivered, and Doubt
	// one past the highest of which a delivery may not have been counted: unfinished
	// records below it are delivered as if again.
	Horizon, Doubt wire.Offset
	// Fence makes every lease with an epoch below it stale, whatever its record.
	Fence     wire.Index
	SeekIndex wire.Index // of the entry of the last seek
	// Forgotten is the highest fence of a record that was dropped because there were
	// too many: a lease with a lower epoch on a record without a fence cannot be judged.
	Forgotten wire.Index

	// Sessions may hold leases here.
	Sessions map[Session]*Member
	// Active is the only session that gets records in a sticky group, zero for none.
	Active Session
	Parked map[Scope]Park
	// Substitutes are record encodings that are delivered in the place of a record.
	Substitutes map[wire.Offset][]byte
	Letters     Letters
	// Table are the leases that the leader of the term before handed over. It is nil
	// unless this term is the first one after the hand-over.
	Table []TableLease
	// Members are those of the whole destination, where this partition coordinates.
	Members *Members

	returned returned
}

// Member is a session that may hold leases. It is not changed once it is in a Group.
type Member struct {
	ID, Predecessor Session
	Name, Client    string
	Binding         Binding
	Since           wire.Index // of the entry that listed it
	Flags           wire.AttachFlags
}

// Binding says which binding of the group a consumer goes by: those of a higher
// generation are newer, and within a generation those of a higher counter.
type Binding struct{ Generation, Counter uint32 }

// Before reports whether b is older than c.
func (b Binding) Before(c Binding) bool {
	return b.Generation < c.Generation || b.Generation == c.Generation && b.Counter < c.Counter
}

// Park says why nothing of a scope is delivered from a record on.
type Park struct {
	Head   wire.Offset
	Reason string
	Since  wire.Index
}

// Letters are the dead letters of a group.
type Letters struct {
	Next     uint64 // number of the next letter
	Open     map[uint64]Letter
	Producer int64 // that writes them; below 0: none yet
	Epoch    int16
}

// Letter is a record that is out of its scope and not yet written where it belongs: it
// is not done, so its body stays.
type Letter struct {
	Number     uint64
	Offset     wire.Offset
	Deliveries uint16
	Attempts   uint16
	Reason     uint8
	Text       string
}

// TableLease says that a session holds records since the epoch.
type TableLease struct {
	Session  Session
	Epoch    wire.Index
	From, To wire.Offset
}

// Members are the consumers of a group in all partitions of its destination.
type Members struct{}

// Returned is what is known of a record that was given and taken back.
type Returned struct {
	Deliveries uint16     // so far
	Attempts   uint16     // so far: of those, how often it was the head
	Fence      wire.Index // of the last time it was taken back
	DelayMs    uint32     // how long it rests after that
	InDoubt    bool       // Deliveries is "at least"
}

// returned are what is known of records that were given and taken back.
type returned struct{}
