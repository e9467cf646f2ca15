package sim

import (
	"bytes"
	"encoding/binary"

	"github.com/lockstepmq/lockstep/wire"
)

// batch is one record batch that a client sends, perhaps several times, and the
// truth about it.
type batch struct {
	number   uint64 // unique in a run; also the base timestamp, so that stored bytes name it
	client   *client
	producer wire.ProducerIdentity
	acks     wire.Acks
	count    uint32
	bytes    []byte // as sent
	records  []byte // their index, nil for none
	info     wire.BatchInfo

	landed    bool // it is in the log, as far as anybody knows
	offset    wire.Offset
	index     wire.Index
	originals int  // positive answers without the duplicate flag
	gone      bool // it had landed and was lost in a mode that may lose records
	// promised is the offset that the leader named from memory, if promise is set.
	promise  bool
	promised wire.Offset
	// ends is the name in a fleet under which it is sent, nil for none.
	ends *name
	// sent and answered are moments of a fleet: the first attempt, the first receipt.
	sent, answered int64
}

// newBatch encodes a batch of records records of about size bytes each. A record's
// value begins with the batch's number, the rest is a function of it.
func newBatch(number uint64, p wire.ProducerIdentity, acks wire.Acks, records, size int) *batch {
	return buildBatch(number, p, acks, records, size, false)
}

// simKeys is how many keys the records of an indexed batch have.
const simKeys = 5

// buildBatch makes a batch, with a record index if it is to have one.
func buildBatch(number uint64, p wire.ProducerIdentity, acks wire.Acks, records, size int, indexed bool) *batch {
	var b wire.BatchBuilder
	b.Reset(indexed)
	value := make([]byte, 8+size)
	binary.LittleEndian.PutUint64(value, number)
	for i := range value[8:] {
		value[8+i] = byte(number) + byte(i)*31
	}
	for i := range records {
		value[0]++ // records of one batch differ
		key := []byte{byte(i)}
		if !b.Append(int64(number), 0, key, value, nil, 1+uint64(i)%simKeys) {
			panic("sim: a batch does not hold its records")
		}
	}
	encoded, index := b.Finish(p, 0, wire.CodecNone, nil)
	encoded, index = bytes.Clone(encoded), bytes.Clone(index)
	info, err := wire.ValidateBatch(encoded, index, wire.BatchLimits{})
	if err != nil {
		panic(err)
	}
	return &batch{number: number, producer: p, acks: acks, count: uint32(records), bytes: encoded, records: index, info: info}
}

// idempotent batches are sent again until they are answered.
func (b *batch) idempotent() bool { return b.producer.ID != wire.NoProducerID }
