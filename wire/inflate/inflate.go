// Package inflate decompresses what batches hold: readers do it for their records, and
// brokers for one record out of a batch. It compresses nothing and starts no goroutine of
// its own; what it allocates is bounded by the framing of what it is given.
package inflate

import (
	"fmt"
	"slices"
	"sync"

	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/zstd"

	"github.com/lockstepmq/lockstep/wire"
)

// The zstd decoder is shared by the whole process: it keeps several hundred kilobytes, and
// its DecodeAll may be called concurrently.
var zstdDecoder = sync.OnceValue(func() *zstd.Decoder {
	d, err := zstd.NewReader(nil,
		zstd.WithDecoderMaxMemory(wire.MaxUncompressedBytes),
		zstd.WithDecoderMaxWindow(wire.MaxZstdWindowBytes),
		zstd.WithDecodeAllCapLimit(true)) // never beyond what UncompressedSize allowed
	if err != nil {
		panic(fmt.Sprintf("inflate: zstd decoder: %v", err))
	}
	return d
})

// Records decompresses a records section into dst, whose memory it reuses. It
// allocates no more than the section's framing admits, and that is bounded by
// wire.MaxUncompressedBytes.
func Records(dst []byte, codec wire.Codec, section []byte) ([]byte, error) {
	size, exact, err := wire.UncompressedSize(codec, section)
	if err != nil {
		return dst, err
	}
	dst = slices.Grow(dst[:0], size)[:0]
	switch {
	case codec == wire.CodecZstd:
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
