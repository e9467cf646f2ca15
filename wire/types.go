package wire

// Offset numbers the records of one partition without gaps. Consumers see only
// offsets.
type Offset uint64

// Index numbers the entries of one partition's Raft log. Configuration, control
// and no-op entries take indexes too, so an Index is never an Offset.
type Index uint64

// Term is a Raft term. As clients see it, the term of the leader is the epoch.
type Term uint64

// Kind says what an entry is. It travels in the frame header and in the first
// byte of the Raft entry's data.
type Kind uint8

const (
	// KindRecords carries record batches: the only kind that consumes offsets.
	KindRecords Kind = 1
	// KindControl carries commands for the state machine: trims, acks, members.
	KindControl Kind = 2
	// KindConfiguration is a Raft membership change (raftpb.ConfChangeV2).
	KindConfiguration Kind = 3
	// KindNoOp is the empty entry a Raft leader appends when its term begins.
	KindNoOp Kind = 4
)

func (k Kind) String() string {
	switch k {
	case KindRecords:
		return "records"
	case KindControl:
		return "control"
	case KindConfiguration:
		return "configuration"
	case KindNoOp:
		return "no-op"
	}
	return "unknown"
}
