package client

import (
	"fmt"
	"slices"
	"sync"

	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/zstd"

	"github.com/lockstepmq/lockstep/wire"
)

// Codec is the compression of a producer's batches.
type Codec = wire.Codec

// The codecs. Readers understand all of them whatever a producer uses.
const (
	NoCompression = wire.CodecNone
	Snappy        = wire.CodecSnappy // cheap
	Zstd          = wire.CodecZstd   // small, at zstd's fastest level
)

// minQueueCompression is the size in bytes from which batches for queues are
// compressed. A queue's broker has to inflate a batch that goes to several
// consumers (RULES Q2), which small ones are not worth.
const minQueueCompression = 4 << 10

// compressor returns the function that appends the compressed src to dst.
func compressor(c Codec) func(dst, src []byte) []byte {
	switch c {
	case Snappy:
		return compressSnappy
	case Zstd:
		return compressZstd
	}
	return nil
}

func compressSnappy(dst, src []byte) []byte {
	n := len(dst)
	dst = slices.Grow(dst, s2.MaxEncodedLen(len(src)))
	block := s2.EncodeSnappy(dst[n:cap(dst)], src)
	return dst[:n+len(block)]
}

// The zstd coders are shared by the whole process: each keeps several hundred
// kilobytes, and their EncodeAll and DecodeAll may be called concurrently.
var zstdEncoder = sync.OnceValue(func() *zstd.Encoder {
	e, err := zstd.NewWriter(nil,
		zstd.WithEncoderLevel(zstd.SpeedFastest),
		zstd.WithEncoderCRC(false), // the batch has a checksum
		zstd.WithWindowSize(1<<20))
	if err != nil {
		panic(fmt.Sprintf("client: zstd encoder: %v", err)) // the options are constants
	}
	return e
})

var zstdDecoder = sync.OnceValue(func() *zstd.Decoder {
	d, err := zstd.NewReader(nil,
		zstd.WithDecoderMaxMemory(wire.MaxUncompressedBytes),
		zstd.WithDecoderMaxWindow(wire.MaxZstdWindowBytes),
		zstd.WithDecodeAllCapLimit(true)) // never beyond what UncompressedSize allowed
	if err != nil {
		panic(fmt.Sprintf("client: zstd decoder: %v", err))
	}
	return d
})

func compressZstd(dst, src []byte) []byte { return zstdEncoder().EncodeAll(src, dst) }

// inflate decompresses a records section into dst, whose memory it reuses. It
// allocates no more than the section's framing admits, and that is bounded by
// wire.MaxUncompressedBytes.
func inflate(dst []byte, codec Codec, section []byte) ([]byte, error) {
	size, exact, err := wire.UncompressedSize(codec, section)
	if err != nil {
		return dst, err
	}
	dst = slices.Grow(dst[:0], size)[:0]
	switch {
	case codec == Zstd:
		dst, err = zstdDecoder().DecodeAll(section, dst[:0:size])
	case wire.IsXerial(section):
		for chunk, chunkErr := range wire.XerialChunks(section) {
			if err = chunkErr; err == nil {
				var out []byte
				out, err = s2.Decode(dst[len(dst):size], chunk)
				dst = dst[:len(dst)+len(out)]
			}
			if err != nil {
				break
			}
		}
	default:
		dst, err = s2.Decode(dst[:size], section)
	}
	if err != nil {
		return dst, wire.Errorf(wire.CodeCorrupt, "%v: %v", codec, err)
	}
	if exact && len(dst) != size {
		return dst, wire.Errorf(wire.CodeCorrupt, "%v: %d bytes, the section declares %d", codec, len(dst), size)
	}
	return dst, nil
}
