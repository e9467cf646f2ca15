package client

// Attached is sent when a consumer gets the records of a partition, or gets them again.
type Attached struct {
	Destination, Group string
	Partition          uint32
}

// LeaseLost is sent when records that were handed out and not settled are not the
// consumer's any more: somebody else may be working on them.
type LeaseLost struct {
	Destination, Group string
	Partition          uint32
	Offset             uint64
	Reason             string
}

// Rebound is sent when a consumer has other partitions than before.
type Rebound struct {
	Destination, Group string
	Partitions         []uint32
}

// ConsumerClosed is sent when a consumer has ended, because it was closed or because the
// broker ended it: CONSUMER_CLOSED. The connection stays.
type ConsumerClosed struct {
	Destination, Group string
	Err                error
}

func (Attached) event()       {}
func (LeaseLost) event()      {}
func (Rebound) event()        {}
func (ConsumerClosed) event() {}
