package wire

import "hash/crc32"

// JoinChecksums returns the CRC32C of two pieces behind each other, of which the checksums
// are known, and the length of the second in bytes. It takes some 0.5 µs.
//
// A checksum is a polynomial over GF(2) modulo that of Castagnoli, with the coefficient of
// x^0 in the highest bit; what is behind a piece multiplies it by x for each bit. That both
// checksums are inverted at the beginning and at the end cancels out.
func JoinChecksums(first, second uint32, length int) uint32 {
	for k := 0; length > 0; k, length = k+1, length>>1 {
		if length&1 != 0 {
			first = multiply(first, powers[k])
		}
	}
	return first ^ second
}

// powers[k] is x to the power of 8·2^k.
var powers = func() (p [48]uint32) {
	p[0] = 1 << (31 - 8)
	for k := 1; k < len(p); k++ {
		p[k] = multiply(p[k-1], p[k-1])
	}
	return p
}()

// multiply multiplies two polynomials.
func multiply(a, b uint32) (product uint32) {
	for ; a != 0; a <<= 1 {
		if a>>31 != 0 {
			product ^= b
		}
		b = b>>1 ^ -(b&1)&crc32.Castagnoli
	}
	return product
}
