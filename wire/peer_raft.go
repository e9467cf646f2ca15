package wire

import "encoding/binary"

// RAFT (5): small messages of Raft groups, of as many groups as have something to
// say to the same broker.
//
//	count u32 | count × { type u8 | flags u8 | zero u16 | context length u32 |
//	                      to | from | term | log term | index | commit | reject hint (u64 each) | context }
const peerRaftSize = 64

// PeerRaftType is the type of a message in a RAFT frame.
type PeerRaftType uint8

// The types. Numbers are never reused.
const (
	PeerVote          PeerRaftType = 1
	PeerVoteResp      PeerRaftType = 2
	PeerPreVote       PeerRaftType = 3
	PeerPreVoteResp   PeerRaftType = 4
	PeerAppendResp    PeerRaftType = 5
	PeerTimeoutNow    PeerRaftType = 6
	PeerSnapStatus    PeerRaftType = 7
	PeerReadIndex     PeerRaftType = 8 // reserved: only leaders ask in this version
	PeerReadIndexResp PeerRaftType = 9 // reserved
)

const (
	peerRaftMeta      = 1
	peerRaftReject    = 2
	peerRaftForced    = 4
	peerRaftUncertain = 8
)

// PeerRaftMessage is one message of a RAFT frame.
type PeerRaftMessage struct {
	Type PeerRaftType
	Meta bool // the replica IDs are those of the metadata group
	// Reject, Forced and Uncertain: the answer is no; the candidate was told to by its
	// leader (raft's CampaignTransfer); the sender may have lost what it acknowledged.
	Reject, Forced, Uncertain bool
	To, From                  uint64
	Term, LogTerm             Term
	Index, Commit             Index
	RejectHint                Index
	Context                   []byte // a view when parsed; at most MaxPeerContextBytes
}

// Size is the length of the encoded message.
func (m *PeerRaftMessage) Size() int { return peerRaftSize + len(m.Context) }

// Append appends one message without the count in front of all.
func (m *PeerRaftMessage) Append(dst []byte) []byte {
	le := binary.LittleEndian
	flags := byte(0)
	for i, set := range [...]bool{m.Meta, m.Reject, m.Forced, m.Uncertain} {
		if set {
			flags |= 1 << i
		}
	}
	dst = append(dst, byte(m.Type), flags, 0, 0)
	dst = le.AppendUint32(dst, uint32(len(m.Context)))
	dst = le.AppendUint64(dst, m.To)
	dst = le.AppendUint64(dst, m.From)
	dst = le.AppendUint64(dst, uint64(m.Term))
	dst = le.AppendUint64(dst, uint64(m.LogTerm))
	dst = le.AppendUint64(dst, uint64(m.Index))
	dst = le.AppendUint64(dst, uint64(m.Commit))
	dst = le.AppendUint64(dst, uint64(m.RejectHint))
	return append(dst, m.Context...)
}

func (m *PeerRaftMessage) parse(r *reader) {
	m.Type = PeerRaftType(r.uint8())
	flags := r.uint8()
	peerReserved(r, uint32(r.uint16()))
	length := r.uint32()
	m.To, m.From = r.uint64(), r.uint64()
	m.Term, m.LogTerm = Term(r.uint64()), Term(r.uint64())
	m.Index, m.Commit = Index(r.uint64()), Index(r.uint64())
	m.RejectHint = Index(r.uint64())
	if m.Type < PeerVote || m.Type > PeerReadIndexResp {
		r.fail("unknown type of message")
	}
	if flags&^(peerRaftMeta|peerRaftReject|peerRaftForced|peerRaftUncertain) != 0 {
		r.fail("unknown flags")
	}
	m.Meta, m.Reject = flags&peerRaftMeta != 0, flags&peerRaftReject != 0
	m.Forced, m.Uncertain = flags&peerRaftForced != 0, flags&peerRaftUncertain != 0
	m.Context = peerContext(r, length)
}

// peerContext reads a context of n bytes, nil if there are none.
func peerContext(r *reader, n uint32) []byte {
	if n > MaxPeerContextBytes {
		r.fail("context is too long")
		return nil
	}
	return r.bytes(int(n))
}

// PeerRaft is the body of a RAFT frame.
type PeerRaft struct{ Messages []PeerRaftMessage }

// Append implements Message.
func (m *PeerRaft) Append(dst []byte) []byte {
	dst = binary.LittleEndian.AppendUint32(dst, uint32(len(m.Messages)))
	for i := range m.Messages {
		dst = m.Messages[i].Append(dst)
	}
	return dst
}

// Parse implements Message. It reuses the memory of Messages.
func (m *PeerRaft) Parse(src []byte) error {
	r := reader{src: src}
	m.Messages = m.Messages[:0]
	for range r.count(peerRaftSize) {
		var message PeerRaftMessage
		message.parse(&r)
		if r.fault != "" {
			break
		}
		m.Messages = append(m.Messages, message)
	}
	return r.done("peer RAFT")
}

// HEARTBEATS (6): once a tick at least, with the heartbeats of all groups since.
// The two tick numbers tell that the other side lives and hears.
//
//	tick u32 | heard u32 | state u32 (bit 0 its disk refuses records) | count u32 |
//	count × { to u64 | from u64 | term u64 | commit u64 | flags u8 | context length u8 | zero u16 | zero u32 | context }
const (
	peerBeatSize = 40

	peerBeatMeta     = 1
	peerBeatResponse = 2
	peerBeatQuiet    = 4
	peerBeatWake     = 8

	// PeerLacksSpace is a bit of the state in HEARTBEATS. Bits that a build does not know
	// say nothing to it: a newer one may set more.
	PeerLacksSpace = 1
)

// PeerBeat is the heartbeat of one group, or the answer to one.
type PeerBeat struct {
	Meta     bool
	Response bool
	Quiet    bool // the leader sleeps at Commit
	Wake     bool // one side does not
	To, From uint64
	Term     Term
	Commit   Index
	Context  []byte // a view when parsed; at most MaxPeerContextBytes
}

// Size is the length of the encoded heartbeat.
func (b *PeerBeat) Size() int { return peerBeatSize + len(b.Context) }

// Append appends one heartbeat without the fields in front of all.
func (b *PeerBeat) Append(dst []byte) []byte {
	le := binary.LittleEndian
	dst = le.AppendUint64(dst, b.To)
	dst = le.AppendUint64(dst, b.From)
	dst = le.AppendUint64(dst, uint64(b.Term))
	dst = le.AppendUint64(dst, uint64(b.Commit))
	flags := byte(0)
	for i, set := range [...]bool{b.Meta, b.Response, b.Quiet, b.Wake} {
		if set {
			flags |= 1 << i
		}
	}
	dst = append(dst, flags, byte(len(b.Context)), 0, 0, 0, 0, 0, 0)
	return append(dst, b.Context...)
}

func (b *PeerBeat) parse(r *reader) {
	b.To, b.From = r.uint64(), r.uint64()
	b.Term, b.Commit = Term(r.uint64()), Index(r.uint64())
	flags, length := r.uint8(), r.uint8()
	peerReserved(r, uint32(r.uint16()))
	peerReserved(r, r.uint32())
	if flags&^(peerBeatMeta|peerBeatResponse|peerBeatQuiet|peerBeatWake) != 0 {
		r.fail("unknown flags")
	}
	b.Meta, b.Response = flags&peerBeatMeta != 0, flags&peerBeatResponse != 0
	b.Quiet, b.Wake = flags&peerBeatQuiet != 0, flags&peerBeatWake != 0
	b.Context = peerContext(r, uint32(length))
}

// PeerBeats is the body of a HEARTBEATS frame.
type PeerBeats struct {
	Tick  uint32 // of the sender
	Heard uint32 // the highest Tick that it has received
	State uint32 // of the sender: PeerLacksSpace, and bits that are not known here
	Beats []PeerBeat
}

// Append implements Message.
func (m *PeerBeats) Append(dst []byte) []byte {
	le := binary.LittleEndian
	dst = le.AppendUint32(dst, m.Tick)
	dst = le.AppendUint32(dst, m.Heard)
	dst = le.AppendUint32(dst, m.State)
	dst = le.AppendUint32(dst, uint32(len(m.Beats)))
	for i := range m.Beats {
		dst = m.Beats[i].Append(dst)
	}
	return dst
}

// Parse implements Message. It reuses the memory of Beats.
func (m *PeerBeats) Parse(src []byte) error {
	r := reader{src: src}
	m.Tick, m.Heard, m.State = r.uint32(), r.uint32(), r.uint32()
	m.Beats = m.Beats[:0]
	for range r.count(peerBeatSize) {
		var beat PeerBeat
		beat.parse(&r)
		if r.fault != "" {
			break
		}
		m.Beats = append(m.Beats, beat)
	}
	return r.done("peer HEARTBEATS")
}

// SNAPSHOT (7): a leader offers a checkpoint to a follower that its log no longer
// reaches back to.
//
//	to u64 | from u64 | term u64 | flags u32 |
//	start: index u64 | term u64 | next offset u64 | time ms i64 | chain u32 |
//	applied u64 | checkpoint bytes u64 | checkpoint CRC u32 | length u32 | configuration
//
// Flag 1: the replica IDs are those of the metadata group. start describes the
// entry before the first of the leader's log, or with flag 2 the last one of a run of
// entries that the leader has erased. The follower keeps what it has before that run; behind
// start comes then what precedes the run:
//
//	index u64 | term u64 | chain u32
//
// The configuration is a
// raftpb.ConfState as of the checkpoint.
type PeerSnapshot struct {
	Meta     bool
	To, From uint64
	Term     Term

	StartIndex  Index
	StartTerm   Term
	StartOffset Offset // next offset after that entry
	StartTimeMs int64
	StartChain  uint32

	// Erased says that a run of erased entries is offered, from the one behind BeforeIndex
	// to StartIndex.
	Erased      bool
	BeforeIndex Index
	BeforeTerm  Term
	BeforeChain uint32

	Applied         Index // of the checkpoint
	CheckpointBytes uint64
	CheckpointCRC   uint32
	ConfState       []byte // a view when parsed
}

// Append implements Message.
func (m *PeerSnapshot) Append(dst []byte) []byte {
	le := binary.LittleEndian
	dst = le.AppendUint64(dst, m.To)
	dst = le.AppendUint64(dst, m.From)
	dst = le.AppendUint64(dst, uint64(m.Term))
	flags := uint32(0)
	if m.Meta {
		flags = 1
	}
	if m.Erased {
		flags |= 2
	}
	dst = le.AppendUint32(dst, flags)
	dst = le.AppendUint64(dst, uint64(m.StartIndex))
	dst = le.AppendUint64(dst, uint64(m.StartTerm))
	dst = le.AppendUint64(dst, uint64(m.StartOffset))
	dst = le.AppendUint64(dst, uint64(m.StartTimeMs))
	dst = le.AppendUint32(dst, m.StartChain)
	if m.Erased {
		dst = le.AppendUint64(dst, uint64(m.BeforeIndex))
		dst = le.AppendUint64(dst, uint64(m.BeforeTerm))
		dst = le.AppendUint32(dst, m.BeforeChain)
	}
	dst = le.AppendUint64(dst, uint64(m.Applied))
	dst = le.AppendUint64(dst, m.CheckpointBytes)
	dst = le.AppendUint32(dst, m.CheckpointCRC)
	dst = le.AppendUint32(dst, uint32(len(m.ConfState)))
	return append(dst, m.ConfState...)
}

// Parse implements Message.
func (m *PeerSnapshot) Parse(src []byte) error {
	r := reader{src: src}
	m.To, m.From = r.uint64(), r.uint64()
	m.Term = Term(r.uint64())
	flags := r.uint32()
	if flags > 3 {
		r.fail("unknown flags")
	}
	m.Meta, m.Erased = flags&1 != 0, flags&2 != 0
	m.StartIndex, m.StartTerm = Index(r.uint64()), Term(r.uint64())
	m.StartOffset, m.StartTimeMs = Offset(r.uint64()), int64(r.uint64())
	m.StartChain = r.uint32()
	m.BeforeIndex, m.BeforeTerm, m.BeforeChain = 0, 0, 0
	if m.Erased {
		m.BeforeIndex, m.BeforeTerm, m.BeforeChain = Index(r.uint64()), Term(r.uint64()), r.uint32()
	}
	m.Applied = Index(r.uint64())
	m.CheckpointBytes, m.CheckpointCRC = r.uint64(), r.uint32()
	m.ConfState = r.bytes(r.count(1))
	return r.done("peer SNAPSHOT")
}
