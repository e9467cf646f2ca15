package wire

import "encoding/binary"

// REQUEST (9), RESPONSE (10): a question of one broker to another and its answer,
// in any order, paired by the number in the header. A REQUEST for something large
// is answered with CHUNKs and then a RESPONSE with the outcome.
//
//	REQUEST   op u8 | zero 3 | body
//	RESPONSE  code i16 | zero u16 | body
//
// The body of a RESPONSE with a code other than OK is a detail string.

// PeerOp says what a REQUEST asks for. Numbers are never reused.
type PeerOp uint8

// The requests.
const (
	// PeerSubmit has a metadata command carried out by the leader of the metadata.
	PeerSubmit PeerOp = 1
	// PeerFetchCheckpoint asks for a checkpoint in chunks; PeerFetch is its body.
	PeerFetchCheckpoint PeerOp = 2
	// PeerFetchFrames asks for stored frames in chunks; PeerFetch is its body.
	PeerFetchFrames PeerOp = 3
	// PeerTransfer asks the leader of a partition to hand it over; PeerFetch is its body.
	PeerTransfer PeerOp = 4
	// PeerStatus asks what a broker knows of itself.
	PeerStatus PeerOp = 5
	// PeerRelayEvent passes news for clients on.
	PeerRelayEvent PeerOp = 6
	// PeerFence commits a fence in a partition that the other broker leads, or knows the
	// leader of; PeerFencing is its body. The code of the answer is the fence's.
	PeerFence PeerOp = 7
	// PeerProduce appends a batch to a partition that the other broker leads; PeerBatch is
	// its body. The code of the answer is the batch's.
	PeerProduce PeerOp = 8
	// PeerEnd asks where the log of a replica ends; PeerFetch is its body, RemainingReplica
	// the answer.
	PeerEnd PeerOp = 9
	// PeerHear asks whether a broker hears a node; PeerHears is its body, PeerHeard the answer.
	PeerHear PeerOp = 10
)

var peerOpNames = [...]string{
	PeerSubmit: "SUBMIT", PeerFetchCheckpoint: "FETCH_CHECKPOINT", PeerFetchFrames: "FETCH_FRAMES",
	PeerTransfer: "TRANSFER", PeerStatus: "STATUS", PeerRelayEvent: "RELAY_EVENT",
	PeerFence: "FENCE", PeerProduce: "PRODUCE", PeerEnd: "END", PeerHear: "HEAR",
}

// Known reports whether this build knows the request. One it does not know is
// answered UNSUPPORTED.
func (o PeerOp) Known() bool { return o != 0 && int(o) < len(peerOpNames) }

func (o PeerOp) String() string {
	if o.Known() {
		return peerOpNames[o]
	}
	return "UNKNOWN"
}

// PeerRequest is the body of a REQUEST frame. Body is a view when parsed.
type PeerRequest struct {
	Op   PeerOp
	Body []byte
}

// Append implements Message.
func (m *PeerRequest) Append(dst []byte) []byte {
	return append(append(dst, byte(m.Op), 0, 0, 0), m.Body...)
}

// Parse implements Message.
func (m *PeerRequest) Parse(src []byte) error {
	r := reader{src: src}
	m.Op = PeerOp(r.uint8())
	peerReserved(&r, uint32(r.uint8())|uint32(r.uint16()))
	m.Body = r.rest()
	return r.done("peer REQUEST")
}

// PeerResponse is the body of a RESPONSE frame. Body is a view when parsed; with a
// code other than OK it is a text for people.
type PeerResponse struct {
	Code ErrorCode
	Body []byte
}

// Append implements Message.
func (m *PeerResponse) Append(dst []byte) []byte {
	dst = binary.LittleEndian.AppendUint16(dst, uint16(m.Code))
	return append(append(dst, 0, 0), m.Body...)
}

// Parse implements Message.
func (m *PeerResponse) Parse(src []byte) error {
	r := reader{src: src}
	m.Code = ErrorCode(int16(r.uint16()))
	peerReserved(&r, uint32(r.uint16()))
	m.Body = r.rest()
	return r.done("peer RESPONSE")
}

// PeerFetch is the body of FETCH_CHECKPOINT, FETCH_FRAMES and TRANSFER.
//
//	replica u64 | meta u8 | zero 7 | from u64 | to u64
type PeerFetch struct {
	Meta    bool
	Replica uint64 // of the broker that is asked
	// From and To: the checkpoint is wanted at From or above; the frames [From, To];
	// the replica To is to lead, 0 for whichever is best.
	From, To uint64
}

// Append implements Message.
func (m *PeerFetch) Append(dst []byte) []byte {
	le := binary.LittleEndian
	dst = le.AppendUint64(dst, m.Replica)
	dst = append(appendBool(dst, m.Meta), 0, 0, 0, 0, 0, 0, 0)
	dst = le.AppendUint64(dst, m.From)
	return le.AppendUint64(dst, m.To)
}

// Parse implements Message.
func (m *PeerFetch) Parse(src []byte) error {
	r := reader{src: src}
	m.Replica = r.uint64()
	m.Meta = r.bool()
	for range 7 {
		peerReserved(&r, uint32(r.uint8()))
	}
	m.From, m.To = r.uint64(), r.uint64()
	return r.done("peer FETCH")
}

// PeerFrame is the body of the stored frame of one entry.
type PeerFrame struct {
	Index Index
	Body  []byte // a view when parsed
}

// PeerFrames answers FETCH_FRAMES.
//
//	count u32 | zero u32 | count × { index u64 | length u32 | zero u32 | body }
type PeerFrames struct{ Frames []PeerFrame }

const peerFrameSize = 16

// Append implements Message.
func (m *PeerFrames) Append(dst []byte) []byte {
	le := binary.LittleEndian
	dst = le.AppendUint32(dst, uint32(len(m.Frames)))
	dst = le.AppendUint32(dst, 0)
	for i := range m.Frames {
		dst = le.AppendUint64(dst, uint64(m.Frames[i].Index))
		dst = le.AppendUint32(dst, uint32(len(m.Frames[i].Body)))
		dst = le.AppendUint32(dst, 0)
		dst = append(dst, m.Frames[i].Body...)
	}
	return dst
}

// Parse implements Message.
func (m *PeerFrames) Parse(src []byte) error {
	r := reader{src: src}
	n := r.uint32()
	peerReserved(&r, r.uint32())
	if uint64(n)*peerFrameSize > uint64(len(r.src)) {
		r.fail("count is larger than the bytes that follow")
		n = 0
	}
	m.Frames = nil
	for range n {
		f := PeerFrame{Index: Index(r.uint64())}
		length := r.uint32()
		peerReserved(&r, r.uint32())
		f.Body = r.bytes(int(length))
		if r.fault != "" {
			break
		}
		m.Frames = append(m.Frames, f)
	}
	return r.done("peer FRAMES")
}

// CHUNK (11), ACK (12): a piece of what a REQUEST asked for, and how far the one
// who asked has it. The number is that of the REQUEST.
//
//	CHUNK  offset u64 | flags u32 | CRC32C u32 | data, at most 64 KiB      flag 1: the last one
//	ACK    offset u64
//
// The CRC covers the data. A chunk that is out of order, too long or damaged ends
// the transfer; whoever wants it asks again. An ACK of 2^64 - 1 says that no more is
// wanted.

const peerChunkFixed = 16

// PeerChunk is one CHUNK. Data is a view when parsed.
type PeerChunk struct {
	Offset uint64 // bytes before this piece
	Last   bool
	Data   []byte
}

// Append implements Message. The data is copied.
func (m *PeerChunk) Append(dst []byte) []byte {
	le := binary.LittleEndian
	dst = le.AppendUint64(dst, m.Offset)
	flags := uint32(0)
	if m.Last {
		flags = 1
	}
	dst = le.AppendUint32(dst, flags)
	dst = le.AppendUint32(dst, Checksum(m.Data))
	return append(dst, m.Data...)
}

// Parse implements Message. Errors: an *Error with CodeCorrupt for data that does
// not match its CRC, with CodeTooLarge for more than PeerChunkBytes, else with
// CodeMalformed.
func (m *PeerChunk) Parse(src []byte) error {
	if len(src) > peerChunkFixed+PeerChunkBytes {
		return Errorf(CodeTooLarge, "peer CHUNK: %d bytes of data are more than %d", len(src)-peerChunkFixed, PeerChunkBytes)
	}
	r := reader{src: src}
	m.Offset = r.uint64()
	flags := r.uint32()
	if flags > 1 {
		r.fail("unknown flags")
	}
	m.Last = flags == 1
	sum := r.uint32()
	m.Data = r.rest()
	if err := r.done("peer CHUNK"); err != nil {
		return err
	}
	if Checksum(m.Data) != sum {
		return Errorf(CodeCorrupt, "peer CHUNK at %d: checksum mismatch", m.Offset)
	}
	return nil
}

// PeerAck is one ACK.
type PeerAck struct{ Offset uint64 }

// Append implements Message.
func (m *PeerAck) Append(dst []byte) []byte { return binary.LittleEndian.AppendUint64(dst, m.Offset) }

// Parse implements Message.
func (m *PeerAck) Parse(src []byte) error {
	r := reader{src: src}
	m.Offset = r.uint64()
	return r.done("peer ACK")
}
