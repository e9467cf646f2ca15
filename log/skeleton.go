package log

import (
	"log/slog"
	"time"

	"github.com/lockstepmq/lockstep/vfs"
	"github.com/lockstepmq/lockstep/wire"
)

const notYet = "log: not written yet"

// SyncMode says when records count as stable. It governs appends that hold
// nothing but records; terms, votes, configuration and control entries and
// checkpoints are synced in every mode.
type SyncMode uint8

const (
	// SyncQuorum ("quorum-fsync") makes records stable by fdatasync. The default.
	SyncQuorum SyncMode = iota
	// SyncInterval ("interval") makes records stable when written; the broker
	// calls SyncNow periodically.
	SyncInterval
	// SyncOS ("os") makes records stable when written; the kernel decides when
	// they reach the disk.
	SyncOS
)

// StoreOptions configure one data directory.
type StoreOptions struct {
	FS  vfs.FS
	Dir string
	// UUID becomes the identity of a store that is created; an existing store
	// keeps its own.
	UUID [16]byte
	// BootID names this boot of the machine: it changes at every power loss and
	// not when only the process dies.
	BootID         string
	MinFreeBytes   int64 // records are refused below; 0 = 5 % of the device, at least 1 GiB; negative = none
	ReserveBytes   int64 // set aside for a full disk; 0 = 64 MiB; negative = none
	OpenSegments   int   // open files; 0 = 1024
	MappedSegments int   // mapped files; 0 = 1024
	Memory         bool  // FS keeps nothing over a restart: no lock, no reserve
	Logger         *slog.Logger
}

// Store is one data directory.
type Store struct{}

// OpenStore takes the lock and reads the hard states.
func OpenStore(o StoreOptions) (*Store, error) { panic(notYet) }

// UUID is the identity of the store.
func (s *Store) UUID() [16]byte { panic(notYet) }

// RefreshSpace looks at the free space. It blocks; call it about every 500 ms.
func (s *Store) RefreshSpace() error { panic(notYet) }

// Close gives the lock back. All logs must be closed.
func (s *Store) Close() error { panic(notYet) }

// Quarantine moves a partition's directory into quarantine/ durably.
func (s *Store) Quarantine(dir string) error { panic(notYet) }

// PurgeQuarantine deletes what lies in quarantine/.
func (s *Store) PurgeQuarantine() error { panic(notYet) }

// Options configure one log.
type Options struct {
	Store       *Store
	Dir         string // full path, e.g. DATA/partitions/<destination-id>-<n>
	PartitionID [16]byte
	Incarnation uint32
	ReplicaID   uint64
	Sync        SyncMode
	// SegmentBytes is the capacity of new segments; 0 = 64 MiB.
	SegmentBytes int64
	// TailBytes bounds the entries kept in memory; 0 = 8 MiB.
	TailBytes int64
	// Existing makes Open return ErrMissing instead of creating an empty log.
	Existing bool
	// RecoverFence lets Open bring back a log that was fenced and has no peers to
	// be replaced from (RULES L9); without it Open returns ErrFenced.
	RecoverFence bool
	Executor     Executor
	Logger       *slog.Logger
}

// Log is one partition's log.
type Log struct{}

// Entry is one Raft entry.
type Entry struct {
	Index wire.Index
	Term  wire.Term
	Kind  wire.Kind
	Data  []byte
}

// HardState is what Raft must not forget.
type HardState struct {
	Term   wire.Term
	Vote   uint64
	Commit wire.Index
}

// Checkpoint is a state of the state machine.
type Checkpoint struct {
	Applied      wire.Index
	Term         wire.Term
	NextOffset   wire.Offset
	AppendTimeMs int64
	ConfState    []byte
	State        []byte
}

// Position is a byte position in a segment.
type Position struct {
	Segment uint64
	Byte    int64
}

// Watermark is what readers may see.
type Watermark struct {
	Next     wire.Offset
	Index    wire.Index
	Position Position
}

// View is a range of committed bytes.
type View struct {
	Slices [][]byte
	Bytes  int
	Next   Position
}

// Release must be called exactly once.
func (v *View) Release() { panic(notYet) }

func Open(o Options) (*Log, error)                                          { panic(notYet) }
func (l *Log) HardState() HardState                                         { panic(notYet) }
func (l *Log) SetHardState(hs HardState, sync bool)                         { panic(notYet) }
func (l *Log) Uncertain() bool                                              { panic(notYet) } // L5: must not vote or campaign yet
func (l *Log) SetCertain()                                                  { panic(notYet) } // caught up: the flag goes with the next sync
func (l *Log) Reserve(n int64, records bool) error                          { panic(notYet) }
func (l *Log) Append(entries []Entry) error                                 { panic(notYet) }
func (l *Log) Ticket() uint64                                               { panic(notYet) }
func (l *Log) Sync()                                                        { panic(notYet) }
func (l *Log) SyncNow()                                                     { panic(notYet) }
func (l *Log) DurableTicket() uint64                                        { panic(notYet) }
func (l *Log) DurableIndex() wire.Index                                     { panic(notYet) }
func (l *Log) Err() error                                                   { panic(notYet) }
func (l *Log) FirstIndex() wire.Index                                       { panic(notYet) }
func (l *Log) LastIndex() wire.Index                                        { panic(notYet) }
func (l *Log) NextOffset() wire.Offset                                      { panic(notYet) }
func (l *Log) StartOffset() wire.Offset                                     { panic(notYet) }
func (l *Log) Bytes() int64                                                 { panic(notYet) } // any goroutine: bytes from the logical start's segment to the tail
func (l *Log) Term(i wire.Index) (wire.Term, bool)                          { panic(notYet) }
func (l *Log) Tail(lo, hi wire.Index, maxBytes uint64) ([]Entry, bool)      { panic(notYet) }
func (l *Log) TailBytes() int64                                             { panic(notYet) }
func (l *Log) Release(upto wire.Index, recycle func(data []byte))           { panic(notYet) }
func (l *Log) WriteCheckpoint(c Checkpoint)                                 { panic(notYet) }
func (l *Log) Checkpoint() *Checkpoint                                      { panic(notYet) }
func (l *Log) CheckpointPending() bool                                      { panic(notYet) }
func (l *Log) BytesSinceCheckpoint() int64                                  { panic(notYet) }
func (l *Log) Trim(start wire.Offset)                                       { panic(notYet) }
func (l *Log) MarkIdle()                                                    { panic(notYet) }
func (l *Log) Publish(i wire.Index)                                         { panic(notYet) }
func (l *Log) Close(clean bool) error                                       { panic(notYet) }
func (l *Log) Watermark() *Watermark                                        { panic(notYet) }
func (l *Log) Locate(o wire.Offset) (Position, wire.Offset, error)          { panic(notYet) }
func (l *Log) LocateTime(ms int64) (wire.Offset, error)                     { panic(notYet) }
func (l *Log) View(p Position, maxBytes int) (*View, error)                 { panic(notYet) }
func (l *Log) Populate(p Position, n int) error                             { panic(notYet) }
func (l *Log) ReadAt(p Position, buf []byte) (n int, next Position, err error) { panic(notYet) }
func (l *Log) Replay(from wire.Index, fn func(h wire.FrameHeader, body []byte) error) error {
	panic(notYet)
}
func (l *Log) RetentionPoint(nowMs int64, maxAge time.Duration, maxBytes int64) (wire.Offset, bool) {
	panic(notYet)
}

// InspectedFrame is what Inspect tells about one frame.
type InspectedFrame struct {
	File     string // name in the directory
	Position int64
	Header   wire.FrameHeader // zero if it cannot be read
	Body     []byte           // valid during the call
	Mark     wire.Index       // durable mark of the local word, 0 if the word is not of this file
	Problem  error            // what is wrong with the frame; nil if it is whole
}

func Inspect(fs vfs.FS, dir string, fn func(InspectedFrame) error) error { panic(notYet) }
