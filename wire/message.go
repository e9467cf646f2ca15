package wire

import "encoding/binary"

// Message is the body of a protocol frame. Append and Parse are inverse to each
// other.
type Message interface {
	// Append appends the encoded body to dst.
	Append(dst []byte) []byte
	// Parse replaces the message by the body in src. Byte slices of the message
	// are views into src, strings are copies. Errors are an *Error with
	// CodeMalformed: the body is cut short, has bytes too many, or holds a value
	// that the field cannot have; CodeTooMany for a list above its limit. After an
	// error the content is undefined.
	Parse(src []byte) error
}

// versioned is a Message that an earlier version of its opcode laid out otherwise. Append
// and Parse are of the newest one.
type versioned interface {
	appendVersion(dst []byte, version uint16) []byte
	parseVersion(src []byte, version uint16) error
}

func appendMessage(dst []byte, m Message, version uint16) []byte {
	if v, ok := m.(versioned); ok {
		return v.appendVersion(dst, version)
	}
	return m.Append(dst)
}

// ParseMessage is m.Parse of a body of the version in its header, between Opcode.Oldest
// and Opcode.Version.
func ParseMessage(m Message, src []byte, version uint16) error {
	if v, ok := m.(versioned); ok {
		return v.parseVersion(src, version)
	}
	return m.Parse(src)
}

// Empty is the body of messages without fields: PING both ways, the answer to
// DELETE, and LINK_CLOSE.
type Empty struct{}

// Append implements Message.
func (*Empty) Append(dst []byte) []byte { return dst }

// Parse implements Message.
func (*Empty) Parse(src []byte) error {
	r := reader{src: src}
	return r.done("empty body")
}

// Strings are a u16 length and the bytes, byte slices a u32 length and the bytes,
// lists a u32 count and the elements, booleans a byte that is 0 or 1.

// appendString appends s, cut at what the length field can say. No valid name is
// longer, so a cut name is refused by the other side like the whole one.
func appendString(dst []byte, s string) []byte {
	s = s[:min(len(s), 1<<16-1)]
	dst = binary.LittleEndian.AppendUint16(dst, uint16(len(s)))
	return append(dst, s...)
}

func appendBool(dst []byte, v bool) []byte {
	if v {
		return append(dst, 1)
	}
	return append(dst, 0)
}

// reader takes a body apart and remembers the first fault, so that a decoder
// reads all fields in a row and asks once, with done.
type reader struct {
	src   []byte
	fault string // empty while all is well
}

func (r *reader) fail(fault string) {
	if r.fault == "" {
		r.fault = fault
	}
	r.src = nil
}

// take splits n bytes off, or returns nil.
func (r *reader) take(n int) []byte {
	if n > len(r.src) {
		r.fail("body is cut short")
		return nil
	}
	b := r.src[:n:n]
	r.src = r.src[n:]
	return b
}

func (r *reader) uint8() uint8 {
	if b := r.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (r *reader) uint16() uint16 {
	if b := r.take(2); b != nil {
		return binary.LittleEndian.Uint16(b)
	}
	return 0
}

func (r *reader) uint32() uint32 {
	if b := r.take(4); b != nil {
		return binary.LittleEndian.Uint32(b)
	}
	return 0
}

func (r *reader) uint64() uint64 {
	if b := r.take(8); b != nil {
		return binary.LittleEndian.Uint64(b)
	}
	return 0
}

func (r *reader) bool() bool {
	v := r.uint8()
	if v > 1 {
		r.fail("boolean is neither 0 nor 1")
	}
	return v == 1
}

func (r *reader) string() string { return string(r.take(int(r.uint16()))) }

// uuid reads 16 bytes.
func (r *reader) uuid() (id [16]byte) {
	copy(id[:], r.take(len(id)))
	return id
}

// count reads the number of elements of a list, of which each takes at least
// minSize bytes. The result is safe to allocate.
func (r *reader) count(minSize int) int {
	n := r.uint32()
	if uint64(n)*uint64(minSize) > uint64(len(r.src)) {
		r.fail("count is larger than the bytes that follow")
		return 0
	}
	return int(n)
}

// done reports the first fault, or bytes that nothing read.
func (r *reader) done(what string) error {
	if r.fault != "" {
		return Errorf(CodeMalformed, "%s: %s", what, r.fault)
	}
	if len(r.src) != 0 {
		return Errorf(CodeMalformed, "%s: %d bytes follow the last field", what, len(r.src))
	}
	return nil
}
