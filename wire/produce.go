package wire

import "encoding/binary"

// PRODUCE (9), since version 1: one record batch for one partition. The batch
// travels as the producer built it and is stored as it travelled.

// Acks says when a produce request is answered.
type Acks uint8

const (
	// AcksNone is never answered. The batch may be lost without notice.
	AcksNone Acks = 0
	// AcksLeader is answered from the leader's memory: not synced, one replica.
	AcksLeader Acks = 1
	// AcksQuorum is answered after commit: on a quorum, synced as the destination's
	// sync mode says. The only level with deduplication.
	AcksQuorum Acks = 2
)

// Valid reports whether a is one of the levels.
func (a Acks) Valid() bool { return a <= AcksQuorum }

func (a Acks) String() string {
	switch a {
	case AcksNone:
		return "none"
	case AcksLeader:
		return "leader"
	case AcksQuorum:
		return "quorum"
	}
	return "unknown"
}

// ProduceRequest carries one batch.
//
//	 0        4      5       6      8              12             16
//	+--------+------+-------+------+--------------+--------------+--------------+
//	| handle | acks | keyed | slot | slot version | index length | batch length |
//	+--------+------+-------+------+--------------+--------------+--------------+
//	| record index | record batch
//	20
type ProduceRequest struct {
	Handle      uint32
	Acks        Acks // not judged by Parse; see Acks.Valid
	Keyed       bool
	Slot        uint16 // key slot of all records, if Keyed
	SlotVersion uint32 // slot map that chose the partition, if Keyed; a stale one gets WRONG_PARTITION
	Index       []byte // record index, empty where the partition needs none
	Batch       []byte // record batch, magic 2
}

// ProducePrefixSize is the number of bytes in front of the record index.
const ProducePrefixSize = 20

// Append implements Message.
func (m *ProduceRequest) Append(dst []byte) []byte {
	dst = m.AppendPrefix(dst)
	dst = append(dst, m.Index...)
	return append(dst, m.Batch...)
}

// AppendPrefix appends the fields in front of the record index, for senders that
// hand index and batch to the socket as slices of their own.
func (m *ProduceRequest) AppendPrefix(dst []byte) []byte {
	le := binary.LittleEndian
	dst = le.AppendUint32(dst, m.Handle)
	dst = append(dst, byte(m.Acks))
	dst = appendBool(dst, m.Keyed)
	dst = le.AppendUint16(dst, m.Slot)
	dst = le.AppendUint32(dst, m.SlotVersion)
	dst = le.AppendUint32(dst, uint32(len(m.Index)))
	return le.AppendUint32(dst, uint32(len(m.Batch)))
}

// BodySize is the number of bytes that Append writes.
func (m *ProduceRequest) BodySize() int { return ProducePrefixSize + len(m.Index) + len(m.Batch) }

// Parse implements Message. Index and Batch are views into src. It allocates
// nothing unless it fails.
func (m *ProduceRequest) Parse(src []byte) error {
	r := reader{src: src}
	m.Handle = r.uint32()
	m.Acks = Acks(r.uint8())
	m.Keyed = r.bool()
	m.Slot = r.uint16()
	m.SlotVersion = r.uint32()
	indexLength, batchLength := uint64(r.uint32()), uint64(r.uint32())
	if indexLength+batchLength > uint64(len(r.src)) {
		r.fail("batch is cut short")
		indexLength, batchLength = 0, 0
	}
	m.Index = r.take(int(indexLength))
	m.Batch = r.take(int(batchLength))
	return r.done("PRODUCE request")
}

// Receipt is the answer to a produce request.
//
//	 0        4             12      16               24         25       26          27
//	+--------+-------------+-------+----------------+----------+--------+-----------+
//	| handle | base offset | epoch | append time ms | replicas | synced | duplicate |
//	+--------+-------------+-------+----------------+----------+--------+-----------+
type Receipt struct {
	Handle       uint32
	BaseOffset   Offset // of the batch's first record; the others follow without gaps
	Epoch        uint32 // term of the leader that appended it
	AppendTimeMs int64  // leader's clock, ms since 1970
	Replicas     uint8  // replicas that are known to hold it
	Synced       bool   // it is on stable storage of a quorum
	// Duplicate says that an earlier send of the same batch was appended. BaseOffset
	// is the original's; Epoch is the answering leader's and AppendTimeMs that of the
	// producer's latest batch: partitions remember no more.
	Duplicate bool
}

// ReceiptSize is the number of bytes of a receipt.
const ReceiptSize = 27

// Append implements Message.
func (m *Receipt) Append(dst []byte) []byte {
	le := binary.LittleEndian
	dst = le.AppendUint32(dst, m.Handle)
	dst = le.AppendUint64(dst, uint64(m.BaseOffset))
	dst = le.AppendUint32(dst, m.Epoch)
	dst = le.AppendUint64(dst, uint64(m.AppendTimeMs))
	dst = append(dst, m.Replicas)
	dst = appendBool(dst, m.Synced)
	return appendBool(dst, m.Duplicate)
}

// Parse implements Message.
func (m *Receipt) Parse(src []byte) error {
	r := reader{src: src}
	m.Handle = r.uint32()
	m.BaseOffset = Offset(r.uint64())
	m.Epoch = r.uint32()
	m.AppendTimeMs = int64(r.uint64())
	m.Replicas = r.uint8()
	m.Synced = r.bool()
	m.Duplicate = r.bool()
	return r.done("PRODUCE response")
}
