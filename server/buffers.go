package server

import (
	"math/bits"
	"sync"
)

// Buffers of sessions come in powers of two, from a pool for each, so that an
// idle session holds none and a busy one does not allocate.
const (
	minBufferShift = 8  // 256 B
	maxBufferShift = 24 // 16 MiB, above the largest frame
)

var bufferPools [maxBufferShift + 1]sync.Pool

// buffer is a pooled byte slice. It has one owner, who frees it once.
type buffer struct {
	bytes []byte
}

// newBuffer returns an empty buffer with room for n bytes.
func newBuffer(n int) *buffer {
	shift := max(bits.Len(uint(max(n, 1)-1)), minBufferShift)
	if shift > maxBufferShift {
		return &buffer{bytes: make([]byte, 0, n)}
	}
	if b, ok := bufferPools[shift].Get().(*buffer); ok {
		return b
	}
	return &buffer{bytes: make([]byte, 0, 1<<shift)}
}

// room returns a buffer with the bytes of b, which may be nil, and space for n
// more. It is b itself if b has the space.
func (b *buffer) room(n int) *buffer {
	if b == nil {
		return newBuffer(n)
	}
	if len(b.bytes)+n <= cap(b.bytes) {
		return b
	}
	bigger := newBuffer(len(b.bytes) + n)
	bigger.bytes = append(bigger.bytes, b.bytes...)
	b.free()
	return bigger
}

// size is the number of bytes in b, which may be nil.
func (b *buffer) size() int {
	if b == nil {
		return 0
	}
	return len(b.bytes)
}

// capacity is the memory that b, which may be nil, takes.
func (b *buffer) capacity() int {
	if b == nil {
		return 0
	}
	return cap(b.bytes)
}

// free gives the buffer back; freeing nil does nothing. Nothing may refer to its
// bytes any more.
func (b *buffer) free() {
	if b == nil {
		return
	}
	capacity := cap(b.bytes)
	shift := bits.Len(uint(capacity)) - 1
	if shift < minBufferShift || shift > maxBufferShift || capacity != 1<<shift {
		return // grown by an append: not of a class
	}
	b.bytes = b.bytes[:0]
	bufferPools[shift].Put(b)
}
