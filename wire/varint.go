package wire

import "math/bits"

// Kafka's varints: zigzag, seven bits a byte, least significant first, at most 5
// bytes for 32 bits and 10 for 64. Only the shortest form of a number is accepted;
// a second form would let two parsers disagree about the same bytes.

// varint32 reads a varint at b[p:] and returns the position behind it, or -1 if it
// is cut short, too long or not minimal. A negative p yields -1, so that faults
// stick and a chain of reads is checked once.
func varint32(b []byte, p int) (int32, int) {
	u, next := uvarint32(b, p)
	return unzigzag32(u), next
}

func uvarint32(b []byte, p int) (uint32, int) {
	u, next := uvarint(b, p, 32)
	return uint32(u), next
}

// shortVarint reads the unsigned form of one or two bytes and returns -1 for any
// other. It is small enough to be inlined, and it branches on the length: where
// lengths repeat, the processor guesses them and reads the next field before this
// one is decoded.
func shortVarint(b []byte, p int) (uint32, int) {
	if uint(p) < uint(len(b)) {
		c := b[p]
		if c < 0x80 {
			return uint32(c), p + 1
		}
		if p+1 < len(b) {
			if d := b[p+1]; d-1 < 0x7f {
				return uint32(c)&0x7f | uint32(d)<<7, p + 2
			}
		}
	}
	return 0, -1
}

// varint64 is varint32 for 64 bits.
func varint64(b []byte, p int) (int64, int) {
	u, p := uvarint(b, p, 64)
	return int64(u>>1) ^ -int64(u&1), p
}

// uvarint reads the unsigned form of up to width bits.
func uvarint(b []byte, p int, width uint) (uint64, int) {
	if uint(p) >= uint(len(b)) {
		return 0, -1
	}
	var v uint64
	for shift := uint(0); shift < width && p < len(b); shift += 7 {
		c := b[p]
		p++
		low := uint64(c & 0x7f)
		if shift+7 > width && low>>(width-shift) != 0 {
			return 0, -1 // more bits than the number has
		}
		v |= low << shift
		if c < 0x80 {
			if c == 0 && shift > 0 {
				return 0, -1 // a shorter form exists
			}
			return v, p
		}
	}
	return 0, -1
}

func unzigzag32(u uint32) int32 { return int32(u>>1) ^ -int32(u&1) }

func zigzag32(v int32) uint32 { return uint32(v<<1) ^ uint32(v>>31) }

func zigzag64(v int64) uint64 { return uint64(v<<1) ^ uint64(v>>63) }

// uvarintSize is the number of bytes that putUvarint writes.
func uvarintSize(u uint64) int { return (bits.Len64(u|1) + 6) / 7 }

// putUvarint writes u at b[p:], which must have room, and returns the position
// behind it.
func putUvarint(b []byte, p int, u uint64) int {
	for u >= 0x80 {
		b[p] = byte(u) | 0x80
		u >>= 7
		p++
	}
	b[p] = byte(u)
	return p + 1
}
