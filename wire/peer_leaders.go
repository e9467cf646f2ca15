package wire

import "encoding/binary"

// LEADERS (8): the sender leads these partitions, or leads them no longer. All are
// told when a connection begins; a frame with none of them ends that, and what the
// sender has said on earlier connections and not on this one is over. Afterwards it
// tells what has changed.
//
//	count u32 | count × { replica u64 | epoch u32 | state u8 | flags u8 | zero u16 |
//	                      start u64 | next u64 | bytes u64 }
const (
	peerLeaderSize = 40

	peerLeaderFull       = 1
	peerLeaderUnattended = 2 // never where a node is older than groups
)

// PeerLeader is one partition that the sender leads. It is a hint: who serves a
// partition is decided by its replicas.
type PeerLeader struct {
	Replica     uint64 // the sender's
	Epoch       uint32 // its term as leader; 0: it leads no longer
	State       PartitionState
	Full        bool   // above a threshold: PARTITION_FULL
	Unattended  bool   // see PartitionUnattended
	Start, Next Offset // what can be read
	Bytes       uint64
}

// PeerLeaders is the body of a LEADERS frame.
type PeerLeaders struct{ Leaders []PeerLeader }

// Append implements Message.
func (m *PeerLeaders) Append(dst []byte) []byte {
	le := binary.LittleEndian
	dst = le.AppendUint32(dst, uint32(len(m.Leaders)))
	for i := range m.Leaders {
		l := &m.Leaders[i]
		flags := byte(0)
		if l.Full {
			flags |= peerLeaderFull
		}
		if l.Unattended {
			flags |= peerLeaderUnattended
		}
		dst = le.AppendUint64(dst, l.Replica)
		dst = le.AppendUint32(dst, l.Epoch)
		dst = append(dst, byte(l.State), flags, 0, 0)
		dst = le.AppendUint64(dst, uint64(l.Start))
		dst = le.AppendUint64(dst, uint64(l.Next))
		dst = le.AppendUint64(dst, l.Bytes)
	}
	return dst
}

// Parse implements Message. It reuses the memory of Leaders.
func (m *PeerLeaders) Parse(src []byte) error {
	r := reader{src: src}
	m.Leaders = m.Leaders[:0]
	for range r.count(peerLeaderSize) {
		l := PeerLeader{Replica: r.uint64(), Epoch: r.uint32(), State: PartitionState(r.uint8())}
		flags := r.uint8()
		if flags&^(peerLeaderFull|peerLeaderUnattended) != 0 {
			r.fail("unknown flags")
		}
		l.Full, l.Unattended = flags&peerLeaderFull != 0, flags&peerLeaderUnattended != 0
		peerReserved(&r, uint32(r.uint16()))
		l.Start, l.Next, l.Bytes = Offset(r.uint64()), Offset(r.uint64()), r.uint64()
		m.Leaders = append(m.Leaders, l)
	}
	return r.done("peer LEADERS")
}
