package wire

import "encoding/binary"

// PARTITION_RECOVER (40), since version 1: the last resort for a partition of which a
// majority of replicas is gone for good. One of those that are left goes on alone; what
// only the others had is lost.

// PartitionRecoverRequest asks what is left of a partition, and with Accept for it to go
// on with that.
//
//	destination string | partition u32 | node u32 | accept bool
type PartitionRecoverRequest struct {
	Destination string
	Partition   uint32
	Node        uint32 // whose replica is to go on, 0: the one with the longest log
	Accept      bool   // the loss; without it nothing changes
}

// PartitionRecovery answers PARTITION_RECOVER.
//
//	node u32 | next u64 | heardNode u32 | heardEpoch u32 | heardNext u64 | count u32, each: remainder
type PartitionRecovery struct {
	Node uint32 // whose replica goes on, or would
	Next uint64 // where its log ends: records from this offset on may be lost
	// What the leader that the asked node heard last has said of itself: its node, its
	// epoch and where its log ended. Zeros if that is not known. It is up to a second old.
	HeardNode  uint32
	HeardEpoch uint32
	HeardNext  uint64
	Replicas   []RemainingReplica
}

// RemainingReplica is what is left of one replica.
//
//	replica u64 | node u32 | reached bool | uncertain bool | votes bool | term u64 | index u64 | next u64
type RemainingReplica struct {
	Replica   uint64
	Node      uint32
	Reached   bool // it has answered; the rest is not known otherwise
	Uncertain bool // it may have lost what it had acknowledged, with its machine
	Votes     bool
	Term      uint64 // of the last entry of its log
	Index     uint64 // of that entry
	Next      uint64 // offset at which its log ends
}

const remainingReplicaSize = 8 + 4 + 1 + 1 + 1 + 8 + 8 + 8

// Append implements Message.
func (m *PartitionRecoverRequest) Append(dst []byte) []byte {
	dst = appendString(dst, m.Destination)
	dst = binary.LittleEndian.AppendUint32(dst, m.Partition)
	dst = binary.LittleEndian.AppendUint32(dst, m.Node)
	return appendBool(dst, m.Accept)
}

// Parse implements Message.
func (m *PartitionRecoverRequest) Parse(src []byte) error {
	r := reader{src: src}
	*m = PartitionRecoverRequest{Destination: r.string(), Partition: r.uint32(), Node: r.uint32(), Accept: r.bool()}
	return r.done("PARTITION_RECOVER request")
}

// Append implements Message.
func (m *PartitionRecovery) Append(dst []byte) []byte {
	le := binary.LittleEndian
	dst = le.AppendUint64(le.AppendUint32(dst, m.Node), m.Next)
	dst = le.AppendUint32(le.AppendUint32(dst, m.HeardNode), m.HeardEpoch)
	dst = le.AppendUint64(dst, m.HeardNext)
	dst = le.AppendUint32(dst, uint32(len(m.Replicas)))
	for i := range m.Replicas {
		dst = m.Replicas[i].Append(dst)
	}
	return dst
}

// Parse implements Message.
func (m *PartitionRecovery) Parse(src []byte) error {
	r := reader{src: src}
	*m = PartitionRecovery{Node: r.uint32(), Next: r.uint64(), HeardNode: r.uint32(), HeardEpoch: r.uint32(), HeardNext: r.uint64()}
	if n := r.count(remainingReplicaSize); n > 0 {
		m.Replicas = make([]RemainingReplica, n)
		for i := range m.Replicas {
			m.Replicas[i].read(&r)
		}
	}
	return r.done("PARTITION_RECOVER response")
}

// Append implements Message: it is also the answer to the peer request END.
func (m *RemainingReplica) Append(dst []byte) []byte {
	le := binary.LittleEndian
	dst = le.AppendUint32(le.AppendUint64(dst, m.Replica), m.Node)
	dst = appendBool(appendBool(appendBool(dst, m.Reached), m.Uncertain), m.Votes)
	return le.AppendUint64(le.AppendUint64(le.AppendUint64(dst, m.Term), m.Index), m.Next)
}

// Parse implements Message.
func (m *RemainingReplica) Parse(src []byte) error {
	r := reader{src: src}
	m.read(&r)
	return r.done("remaining replica")
}

func (m *RemainingReplica) read(r *reader) {
	*m = RemainingReplica{
		Replica: r.uint64(), Node: r.uint32(), Reached: r.bool(), Uncertain: r.bool(), Votes: r.bool(), Term: r.uint64(), Index: r.uint64(), Next: r.uint64(),
	}
}
