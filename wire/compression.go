package wire

import (
	"encoding/binary"
	"iter"
)

// Codec is the compression of a batch's records section. The numbers are Kafka's.
type Codec uint8

const (
	// CodecNone leaves the records as they are.
	CodecNone Codec = 0
	// CodecSnappy is a raw snappy block, or xerial chunks of snappy blocks as Java
	// clients write them. Lockstep writes raw.
	CodecSnappy Codec = 2
	// CodecZstd is a zstd frame.
	CodecZstd Codec = 4
)

// Supported reports whether Lockstep reads and writes the codec.
func (c Codec) Supported() bool { return c == CodecNone || c == CodecSnappy || c == CodecZstd }

func (c Codec) String() string {
	switch c {
	case CodecNone:
		return "none"
	case 1:
		return "gzip"
	case CodecSnappy:
		return "snappy"
	case 3:
		return "lz4"
	case CodecZstd:
		return "zstd"
	}
	return "unknown"
}

// UncompressedSize tells how large a compressed records section will be, from its
// framing alone and without inflating anything. If exact is false, size is an upper
// bound: a zstd frame need not say its size, but its blocks hold at most 128 KiB
// each. A decoder that finds another size than an exact one has found corruption.
//
// Errors are an *Error: CodeTooLarge if the section may inflate beyond
// MaxUncompressedBytes or needs a larger zstd window than MaxZstdWindowBytes,
// CodeCorrupt if the framing is damaged, CodeUnsupported for other codecs.
func UncompressedSize(codec Codec, section []byte) (size int, exact bool, err error) {
	var n uint64
	switch codec {
	case CodecNone:
		return len(section), true, nil
	case CodecSnappy:
		n, err = snappySectionSize(section)
		exact = true
	case CodecZstd:
		n, exact, err = zstdSectionSize(section)
	default:
		return 0, false, Errorf(CodeUnsupported, "compression %s (%d) is not supported", codec, uint8(codec))
	}
	if err != nil {
		return 0, false, err
	}
	if n > MaxUncompressedBytes {
		return 0, false, tooInflated(codec, n)
	}
	return int(n), exact, nil
}

func tooInflated(codec Codec, n uint64) error {
	return Errorf(CodeTooLarge, "%s: records may inflate to %d bytes, the limit is %d", codec, n, MaxUncompressedBytes)
}

// A snappy block starts with its uncompressed size as an unsigned varint of up to
// 32 bits.
func snappyBlockSize(block []byte) (uint64, error) {
	n, p := uvarint(block, 0, 32)
	if p < 0 {
		return 0, Errorf(CodeCorrupt, "snappy: block of %d bytes has no size", len(block))
	}
	return n, nil
}

func snappySectionSize(section []byte) (uint64, error) {
	if !IsXerial(section) {
		return snappyBlockSize(section)
	}
	var sum uint64
	for chunk, err := range XerialChunks(section) {
		if err != nil {
			return 0, err
		}
		n, err := snappyBlockSize(chunk)
		if err != nil {
			return 0, err
		}
		if sum += n; sum > MaxUncompressedBytes {
			return 0, tooInflated(CodecSnappy, sum)
		}
	}
	return sum, nil
}

// Xerial framing is what Java's snappy stream puts around snappy blocks. Integers
// are big-endian.
//
//	 0                      8             12                  16
//	+----------------------+-------------+-------------------+--------+-------
//	| 82 "SNAPPY" 00       | version u32 | compatible u32    | length | block  ...
//	+----------------------+-------------+-------------------+--------+-------
//
// length is an i32; length and block repeat to the end.
const (
	xerialMagic      = "\x82SNAPPY\x00"
	xerialHeaderSize = 16
)

// IsXerial reports whether a snappy section is framed in chunks. No raw block
// starts like that: behind the size its first element would be a copy from before
// the beginning.
func IsXerial(section []byte) bool {
	return len(section) >= xerialHeaderSize && string(section[:len(xerialMagic)]) == xerialMagic
}

// XerialChunks yields the snappy blocks of a section for which IsXerial holds, as
// views. Inflated one after another they are the records. An error, an *Error with
// CodeCorrupt, is the last element.
func XerialChunks(section []byte) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		for rest := section[xerialHeaderSize:]; len(rest) > 0; {
			if len(rest) < 4 {
				yield(nil, Errorf(CodeCorrupt, "snappy: %d bytes are left for a chunk", len(rest)))
				return
			}
			n := binary.BigEndian.Uint32(rest)
			rest = rest[4:]
			if uint64(n) > uint64(len(rest)) {
				yield(nil, Errorf(CodeCorrupt, "snappy: chunk of %d bytes in %d", n, len(rest)))
				return
			}
			if !yield(rest[:n:n], nil) {
				return
			}
			rest = rest[n:]
		}
	}
}

// Enough of zstd (RFC 8878) to bound what a section inflates to. Integers are
// little-endian.
//
//	frame: magic u32 | descriptor u8 | window u8? | dictionary 0-4 | content size 0-8 | blocks | checksum u32?
//	block: 3 bytes (bit 0 last, bits 1-2 type, bits 3-23 size) | content
const (
	zstdMagic         = 0xfd2fb528
	zstdSkipMagic     = 0x184d2a50 // to ...5f
	zstdMaxBlockBytes = 128 << 10

	zstdBlockRaw        = 0
	zstdBlockRLE        = 1
	zstdBlockCompressed = 2
)

// zstdSectionSize adds up the frames of a section.
func zstdSectionSize(section []byte) (size uint64, exact bool, err error) {
	exact = true
	for first := true; first || len(section) > 0; first = false {
		if len(section) < 4 {
			return 0, false, errZstdShort()
		}
		magic := binary.LittleEndian.Uint32(section)
		if magic&^0xf == zstdSkipMagic {
			if len(section) < 8 || uint64(binary.LittleEndian.Uint32(section[4:])) > uint64(len(section)-8) {
				return 0, false, errZstdShort()
			}
			section = section[8+int(binary.LittleEndian.Uint32(section[4:])):]
			continue
		}
		if magic != zstdMagic {
			return 0, false, Errorf(CodeCorrupt, "zstd: frame starts with %08x", magic)
		}
		n, isExact, rest, err := zstdFrameSize(section[4:])
		if err != nil {
			return 0, false, err
		}
		if size += n; size > MaxUncompressedBytes {
			return 0, false, tooInflated(CodecZstd, size)
		}
		exact = exact && isExact
		section = rest
	}
	return size, exact, nil
}

// zstdFrameSize reads a frame behind its magic.
func zstdFrameSize(b []byte) (size uint64, exact bool, rest []byte, err error) {
	r := reader{src: b}
	descriptor := r.uint8()
	singleSegment := descriptor&0x20 != 0
	if descriptor&0x08 != 0 {
		return 0, false, nil, Errorf(CodeCorrupt, "zstd: reserved bit of the frame header is set")
	}
	if descriptor&0x03 != 0 {
		return 0, false, nil, Errorf(CodeUnsupported, "zstd: dictionaries are not supported")
	}
	var window uint64
	if !singleSegment {
		w := r.uint8()
		base := uint64(1) << (10 + w>>3)
		window = base + base/8*uint64(w&7)
	}
	switch descriptor >> 6 {
	case 0:
		if singleSegment {
			size, exact = uint64(r.uint8()), true
		}
	case 1:
		size, exact = uint64(r.uint16())+256, true
	case 2:
		size, exact = uint64(r.uint32()), true
	case 3:
		size, exact = r.uint64(), true
	}
	if singleSegment {
		window = size
	}
	if r.fault != "" {
		return 0, false, nil, errZstdShort()
	}
	if exact && size > MaxUncompressedBytes {
		return 0, false, nil, tooInflated(CodecZstd, size)
	}
	if window > MaxZstdWindowBytes {
		return 0, false, nil, Errorf(CodeTooLarge, "zstd: window of %d bytes, the limit is %d", window, MaxZstdWindowBytes)
	}

	var least, most uint64 // bounds of what the blocks inflate to
	blockMax := min(max(window, 1), zstdMaxBlockBytes)
	for last := false; !last; {
		h := r.take(3)
		if h == nil {
			return 0, false, nil, errZstdShort()
		}
		header := uint32(h[0]) | uint32(h[1])<<8 | uint32(h[2])<<16
		last = header&1 != 0
		n := uint64(header >> 3)
		content := n
		switch header >> 1 & 3 {
		case zstdBlockRaw:
			least, most = least+n, most+n
		case zstdBlockRLE:
			least, most = least+n, most+n
			content = 1
		case zstdBlockCompressed:
			most += blockMax
		default:
			return 0, false, nil, Errorf(CodeCorrupt, "zstd: reserved block type")
		}
		if n > zstdMaxBlockBytes {
			return 0, false, nil, Errorf(CodeCorrupt, "zstd: block of %d bytes", n)
		}
		r.take(int(content))
		if !exact && most > MaxUncompressedBytes {
			return 0, false, nil, tooInflated(CodecZstd, most)
		}
	}
	if descriptor&0x04 != 0 {
		r.take(4)
	}
	if r.fault != "" {
		return 0, false, nil, errZstdShort()
	}
	if !exact {
		return most, least == most, r.src, nil
	}
	if size < least || size > most {
		return 0, false, nil, Errorf(CodeCorrupt, "zstd: frame declares %d bytes, its blocks hold %d to %d", size, least, most)
	}
	return size, true, r.src, nil
}

func errZstdShort() error { return Errorf(CodeCorrupt, "zstd: frame is cut short") }
