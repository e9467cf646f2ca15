package client

// Attached is sent when a consumer gets the records of a partition, or gets them again.
type Attached struct {
	Destination, Group string
	Partition          uint32
}

// LeaseLost is sent when records that were handed out and not settled are not the
// consumer's any more: somebody else may be working on them. That is also so when the ack wait
// of the group and its grace are over. Of what the application gave back it is not sent.
type LeaseLost struct {
	Destination, Group string
	Partition          uint32
	Offset             uint64
	Reason             string
}

// DataExpired is sent when retention has removed the records [From, To) of a partition
// before the group was done with all of them, or when a consumer is attached to a group that has
// lost them and has done nothing since: it goes on at To. What the consumer had of them is
// lost as well: their outcomes end with ErrFenced and wire.CodeDataExpired.
type DataExpired struct {
	Destination, Group string
	Partition          uint32
	From, To           uint64
}

// Unconfirmed is sent when no broker has confirmed for the session timeout that what a
// consumer holds of a partition is its own. What is worked on is lost. What is
// acknowledged and not answered yet may be: the answer that comes when a broker is there
// again decides.
type Unconfirmed struct {
	Destination, Group string
	Partition          uint32
}

// Rebound is sent when a consumer has other partitions than before.
type Rebound struct {
	Destination, Group string
	Partitions         []uint32
}

// Uncovered is sent to the consumers of a group when other partitions than before have no
// consumer of the group, the first 64 of them; none: each has one again. That happens with
// the bindings StrictlyOne and BindLocal.
type Uncovered struct {
	Destination, Group string
	Partitions         []uint32
}

// Blocked is sent when a consumer has had no link to one of its partitions for 1 s: nobody
// leads it, or nobody can be reached who does; or, while it has none, to the one that
// keeps the members of its group. Err is what was said last. The consumer goes
// on trying; Attached says that it has succeeded.
type Blocked struct {
	Destination, Group string
	Partition          uint32
	Err                error
}

// ConsumerClosed is sent when a consumer has ended, because it was closed or because the
// broker ended it: CONSUMER_CLOSED. The connection stays.
type ConsumerClosed struct {
	Destination, Group string
	Err                error
}

func (Attached) event()       {}
func (LeaseLost) event()      {}
func (DataExpired) event()    {}
func (Unconfirmed) event()    {}
func (Rebound) event()        {}
func (Uncovered) event()      {}
func (Blocked) event()        {}
func (ConsumerClosed) event() {}
