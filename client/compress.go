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

// The zstd encoder is shared by the whole process: it keeps several hundred kilobytes, and
// its EncodeAll may be called concurrently.
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

func compressZstd(dst, src []byte) []byte { return zstdEncoder().EncodeAll(src, dst) }
