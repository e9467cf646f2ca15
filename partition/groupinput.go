package partition

import (
	"github.com/lockstepmq/lockstep/partition/group"
	"github.com/lockstepmq/lockstep/wire"
)

// InputKind says what a link has for a group.
type InputKind uint8

// The kinds.
const (
	// InputAttach begins a link: Group and Attach are set. It is the first input of its
	// Consumer.
	InputAttach InputKind = iota + 1
	// InputOutcomes brings Outcomes.
	InputOutcomes
	// InputCapacity brings Capacity.
	InputCapacity
	// InputHeartbeat brings Number, which Consumer.Confirmed hears when the leader is
	// confirmed.
	InputHeartbeat
	// InputLeave ends the session; Drain says how.
	InputLeave
	// InputGone says that the link has ended without a word; Dead that the consumer has
	// too, as far as its own node can tell. It is the last input of its Consumer.
	InputGone
	// InputDamaged says that the records [From, To), which the Consumer was given, cannot be read.
	InputDamaged
	// InputOrder brings Order; Reply hears the answer.
	InputOrder
	// InputBind begins a link to the coordinator: Group, Bind and Binder are set. What else
	// comes on that link has the Binder too, and no Consumer.
	InputBind
)

// Input is what a link, or somebody who gives orders, has for a group. What it points to
// belongs to the partition from then on.
type Input struct {
	Kind     InputKind
	Consumer group.Consumer // of all kinds but InputOrder, unless there is a Binder
	Binder   group.Binder
	Bind     *wire.BindRequest
	Group    string // of InputAttach and InputOrder
	Attach   *wire.AttachRequest
	Outcomes []wire.Outcome
	Capacity wire.GroupCapacity
	Number   uint64
	Drain    bool
	Dead     bool
	From, To wire.Offset
	Order    *wire.GroupOrderRequest
	// Reply is called once, in an owner's turn; it must not block. The bytes are JSON.
	Reply func(json []byte, err error)
	// Client is where the consumer comes from, for people: of InputAttach.
	Client string
	// Sender hears, in an owner's turn, that the input does not wait any more; nil: nobody
	// wants to know.
	Sender Sender
}

// Sender bounds what it has waiting in the inboxes of partitions. Taken must not block.
type Sender interface{ Taken(bytes int) }

// Size is about the memory of an input while it waits, in bytes.
func (in *Input) Size() int {
	n := 256 + 48*len(in.Outcomes)
	for i := range in.Outcomes {
		n += len(in.Outcomes[i].Text)
	}
	if in.Attach != nil {
		n += 32 * len(in.Attach.Claims)
	}
	return n
}

// taken tells the sender.
func (in *Input) taken() {
	if in.Sender != nil {
		in.Sender.Taken(in.Size())
		in.Sender = nil
	}
}

// refuse answers what begins something with an error.
func (in *Input) refuse(err error) {
	switch in.Kind {
	case InputAttach:
		in.Consumer.Attached(nil, err)
	case InputBind:
		in.Binder.Bound(nil, err)
	case InputOrder:
		in.Reply(nil, err)
	}
}

// Intent is what the metadata says about one group of the partition's destination.
type Intent struct {
	ID       group.ID
	Version  uint64
	Name     string
	Settings wire.GroupSettings // resolved: nothing is left open
	Start    wire.GroupStart
	Paused   bool
}

// Effects are what the groups of a partition need of the world. The methods are called in
// the owner's turn and must not block; what they bring comes back as is said, followed by
// a turn.
type Effects interface {
	// Scan reads what batches lie from an offset on, at most so many records of them, and
	// brings it to Partition.Scanned.
	Scan(from wire.Offset, limit int)
	// NextOf looks for the first record of a scope in (after, below) that is not done, and
	// brings it to Partition.Found. done is called on another goroutine.
	NextOf(g group.ID, s group.Scope, publisher bool, after, below wire.Offset, done func(wire.Offset) bool)
	// Confirm calls then, in a turn of the owner, when this node is confirmed to have led
	// the partition at some time since the call. It may do so before it returns.
	Confirm(then func(error))
	// Locate calls then, in a turn of the owner, with the first offset appended at a time
	// or later.
	Locate(timeMs int64, then func(wire.Offset, error))
	// Partitions are those of the destination as they are known at the moment, ascending.
	Partitions() []group.PartitionLoad
	// Coordinates is since when, and in which generation, this partition keeps the members
	// of the destination's groups; CodeNotCoordinator, with the number of the partition that
	// does as its next, if it does not.
	Coordinates() (group.Term, error)
	// Expired counts records that retention has taken from a group which was not done with
	// them, while it is led here.
	Expired(records uint64)
	// Uncovered says which partitions no consumer of a group has, while it has consumers.
	Uncovered(name string, partitions []uint32)
	// Letters carries out a round of writing dead letters: it tells Partition.LetterWritten of
	// each that is written, and Partition.LettersDone at its end, once.
	Letters(r *LetterRound)
}
