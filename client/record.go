package client

import (
	"bytes"
	"time"

	"github.com/lockstepmq/lockstep/wire"
)

// Header is one header of a record: a key, which may repeat, and a value.
type Header = wire.RecordHeader

// Record is one message.
//
// For sending, Key, Value, Headers, Timestamp and Attributes are used; the
// other fields are ignored. The slices are copied before Send, SendAsync or
// SendFunc returns and belong to the caller again.
//
// A record that a Reader returns is a view: its slices are valid until the
// next call of Next, or until the loop over Records goes on. Clone keeps it.
type Record struct {
	Key        []byte // nil: no key, the record may go to any partition
	Value      []byte // nil: no value
	Headers    []Header
	Timestamp  time.Time // set by the producer; zero: the time its batch was started. Milliseconds.
	Attributes int8      // stored and returned as they are

	Partition  uint32
	Offset     uint64    // position in the partition
	Epoch      uint32    // term of the leader that appended the record
	AppendTime time.Time // leader's clock when the record was appended. Milliseconds.
}

// Clone returns a deep copy that stays valid.
func (r *Record) Clone() *Record {
	c := *r
	c.Key = bytes.Clone(r.Key)
	c.Value = bytes.Clone(r.Value)
	if r.Headers != nil {
		c.Headers = make([]Header, len(r.Headers))
		for i, h := range r.Headers {
			c.Headers[i] = Header{Key: h.Key, Value: bytes.Clone(h.Value)}
		}
	}
	return &c
}

// Receipt states where a record is and how safe it is there.
type Receipt struct {
	Partition  uint32
	Offset     uint64    // zero with AcksNone, where nothing is answered
	Epoch      uint32    // term of the leader that appended the record
	Replicas   int       // replicas that held the record when it was answered
	Synced     bool      // those replicas had synced it to their disks
	Duplicate  bool      // an earlier attempt of the same send had been stored: this is its receipt
	AppendTime time.Time // leader's clock
}
