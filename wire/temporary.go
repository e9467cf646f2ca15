package wire

import (
	"encoding/binary"
	"encoding/hex"
	"strconv"
	"strings"
)

// TEMPORARY_OPEN (36), TEMPORARY_DELIVER (37), TEMPORARY_TAKEN (38) and TEMPORARY_SEND
// (39), since version 1: queues that live in the memory of one node, as long as a
// connection or a little longer. The metadata knows nothing of them: their names say where
// they are.

// temporaryPrefix begins the name of every temporary queue, and of nothing else.
const temporaryPrefix = "$tmp/"

// MaxTemporaryGraceMs is how long a temporary queue waits for its consumer to come back at
// most, in milliseconds.
const MaxTemporaryGraceMs = 10 * 60 * 1000

// TemporaryName is the name of a temporary queue of a node. The nonce is random: no two
// queues ever have the same name, whatever was restarted.
//
//	$tmp/NODE/32 hexadecimal digits
func TemporaryName(node uint32, nonce [16]byte) string {
	return temporaryPrefix + strconv.FormatUint(uint64(node), 10) + "/" + hex.EncodeToString(nonce[:])
}

// IsTemporary reports whether a name is one that only a temporary queue may have.
func IsTemporary(name string) bool { return strings.HasPrefix(name, temporaryPrefix) }

// ParseTemporaryName returns the node on which a temporary queue lives. The error is an
// *Error with CodeInvalidName.
func ParseTemporaryName(name string) (node uint32, err error) {
	rest, ok := strings.CutPrefix(name, temporaryPrefix)
	number, nonce, _ := strings.Cut(rest, "/")
	n, err := strconv.ParseUint(number, 10, 32)
	var b [16]byte
	if ok && err == nil && len(nonce) == hex.EncodedLen(len(b)) {
		if _, err = hex.Decode(b[:], []byte(nonce)); err == nil && TemporaryName(uint32(n), b) == name {
			return uint32(n), nil
		}
	}
	return 0, Errorf(CodeInvalidName, "%.64q is not the name of a temporary queue: it begins with %q, and a broker gives it", name, temporaryPrefix)
}

// TemporaryOpenRequest creates a temporary queue on the node that gets it, or, with a name,
// takes up one again whose connection was lost.
//
//	name string | token 16 | graceMs u32 | next u64
type TemporaryOpenRequest struct {
	Name    string   // empty: a new one
	Token   [16]byte // that its creator chose; who knows the name does not know it
	GraceMs uint32   // how long it waits for its creator after a connection was lost; 0: not at all
	Next    Offset   // of the record that is wanted next; what is before it is dropped
}

// Append implements Message.
func (m *TemporaryOpenRequest) Append(dst []byte) []byte {
	dst = append(appendString(dst, m.Name), m.Token[:]...)
	dst = binary.LittleEndian.AppendUint32(dst, m.GraceMs)
	return binary.LittleEndian.AppendUint64(dst, uint64(m.Next))
}

// Parse implements Message.
func (m *TemporaryOpenRequest) Parse(src []byte) error {
	r := reader{src: src}
	m.Name = r.string()
	m.Token = r.uuid()
	m.GraceMs = r.uint32()
	m.Next = Offset(r.uint64())
	return r.done("TEMPORARY_OPEN request")
}

// TemporaryOpenResponse says that the queue is there. LINK_CLOSE on the link removes it.
//
//	link u32 | name string | graceMs u32
type TemporaryOpenResponse struct {
	Link    uint32
	Name    string
	GraceMs uint32 // that it has: at most MaxTemporaryGraceMs
}

// Append implements Message.
func (m *TemporaryOpenResponse) Append(dst []byte) []byte {
	dst = appendString(binary.LittleEndian.AppendUint32(dst, m.Link), m.Name)
	return binary.LittleEndian.AppendUint32(dst, m.GraceMs)
}

// Parse implements Message.
func (m *TemporaryOpenResponse) Parse(src []byte) error {
	r := reader{src: src}
	m.Link = r.uint32()
	m.Name = r.string()
	m.GraceMs = r.uint32()
	return r.done("TEMPORARY_OPEN response")
}

// TemporaryDeliver is one batch of a temporary queue, on its link. Batches come in order.
//
//	base u64 | batch
type TemporaryDeliver struct {
	Base  Offset // of the first record
	Batch []byte // a view when parsed
}

// Append implements Message.
func (m *TemporaryDeliver) Append(dst []byte) []byte {
	return append(binary.LittleEndian.AppendUint64(dst, uint64(m.Base)), m.Batch...)
}

// Parse implements Message.
func (m *TemporaryDeliver) Parse(src []byte) error {
	r := reader{src: src}
	m.Base = Offset(r.uint64())
	m.Batch = r.take(len(r.src))
	return r.done("TEMPORARY_DELIVER")
}

// TemporaryTaken says, on the link, that everything below an offset was taken: it is
// dropped, and makes room for what follows. It has no answer.
//
//	next u64
type TemporaryTaken struct{ Next Offset }

// Append implements Message.
func (m *TemporaryTaken) Append(dst []byte) []byte {
	return binary.LittleEndian.AppendUint64(dst, uint64(m.Next))
}

// Parse implements Message.
func (m *TemporaryTaken) Parse(src []byte) error {
	r := reader{src: src}
	m.Next = Offset(r.uint64())
	return r.done("TEMPORARY_TAKEN")
}

// TemporarySendRequest sends a batch to a temporary queue by its name, from any node. It is
// not deduplicated.
//
//	name string | batch
type TemporarySendRequest struct {
	Name  string
	Batch []byte // a view when parsed
}

// Append implements Message.
func (m *TemporarySendRequest) Append(dst []byte) []byte {
	return append(appendString(dst, m.Name), m.Batch...)
}

// Parse implements Message.
func (m *TemporarySendRequest) Parse(src []byte) error {
	r := reader{src: src}
	m.Name = r.string()
	m.Batch = r.take(len(r.src))
	return r.done("TEMPORARY_SEND request")
}

// TemporarySendResponse is the receipt: the batch is in the memory of the queue's node.
//
//	base u64
type TemporarySendResponse struct{ Base Offset }

// Append implements Message.
func (m *TemporarySendResponse) Append(dst []byte) []byte {
	return binary.LittleEndian.AppendUint64(dst, uint64(m.Base))
}

// Parse implements Message.
func (m *TemporarySendResponse) Parse(src []byte) error {
	r := reader{src: src}
	m.Base = Offset(r.uint64())
	return r.done("TEMPORARY_SEND response")
}
