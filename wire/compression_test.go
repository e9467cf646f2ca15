package wire

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"testing"

	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/zstd"
	"github.com/stretchr/testify/require"
)

// xerial frames blocks as Java's snappy stream does.
func xerial(blocks ...[]byte) []byte {
	b := []byte("\x82SNAPPY\x00\x00\x00\x00\x01\x00\x00\x00\x01")
	for _, block := range blocks {
		b = binary.BigEndian.AppendUint32(b, uint32(len(block)))
		b = append(b, block...)
	}
	return b
}

func TestXerialChunksGolden(t *testing.T) {
	section := unhex(t, `
		82 53 4e 41 50 50 59 00 // magic
		00 00 00 01             // version 1
		00 00 00 01             // compatible with 1
		00 00 00 04             // block of 4 bytes
		02 04 61 62             // snappy: 2 bytes, literal "ab"
		00 00 00 03             // block of 3 bytes
		01 00 63                // snappy: 1 byte, literal "c"
	`)
	require.True(t, IsXerial(section))
	var chunks [][]byte
	for chunk, err := range XerialChunks(section) {
		require.NoError(t, err)
		require.Equal(t, len(chunk), cap(chunk))
		chunks = append(chunks, chunk)
	}
	require.Equal(t, [][]byte{section[20:24], section[28:31]}, chunks)
	require.Equal(t, "abc", string(decompress(t, CodecSnappy, section)))
	size, exact, err := UncompressedSize(CodecSnappy, section)
	require.NoError(t, err)
	require.True(t, exact)
	require.Equal(t, 3, size)

	for range XerialChunks(section) {
		break // stopping early is allowed
	}
	for _, short := range [][]byte{nil, section[:15], section[1:]} {
		require.False(t, IsXerial(short))
	}
	for n := xerialHeaderSize + 1; n < len(section); n++ {
		if n == 24 {
			continue // between two chunks
		}
		var last error
		for _, err := range XerialChunks(section[:n]) {
			last = err
		}
		require.ErrorIs(t, last, CodeCorrupt, "cut to %d bytes", n)
	}
}

// Rows 18 to 20 of the bad-input catalogue, as far as the framing shows them: the
// broker inflates nothing.
func TestUncompressedSize(t *testing.T) {
	text := bytes.Repeat([]byte("some text that compresses, "), 20_000) // 540,000 bytes
	noise := make([]byte, 300_000)
	random := rand.New(rand.NewPCG(3, 4))
	for i := range noise {
		noise[i] = byte(random.Uint32())
	}
	one := func(src []byte, options ...zstd.EOption) []byte {
		encoder, err := zstd.NewWriter(nil, append(options, zstd.WithEncoderConcurrency(1))...)
		require.NoError(t, err)
		defer encoder.Close()
		return encoder.EncodeAll(src, nil)
	}
	stream := func(src []byte, options ...zstd.EOption) []byte {
		var b bytes.Buffer
		encoder, err := zstd.NewWriter(&b, append(options, zstd.WithEncoderConcurrency(1))...)
		require.NoError(t, err)
		// In pieces, so that the encoder does not see the end coming.
		for len(src) > 0 {
			n := min(len(src), 50_000)
			_, err = encoder.Write(src[:n])
			require.NoError(t, err)
			src = src[n:]
		}
		require.NoError(t, encoder.Close())
		return b.Bytes()
	}
	zeros := make([]byte, 256<<20)
	joined := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	skippable := []byte{0x51, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 'a', 'b', 'c'}
	// A frame header alone: magic, descriptor, and what it announces; then one empty
	// raw block that is the last.
	frame := func(b ...byte) []byte {
		return joined([]byte{0x28, 0xb5, 0x2f, 0xfd}, b, []byte{1, 0, 0})
	}

	for _, test := range []struct {
		name    string
		codec   Codec
		section []byte
		size    int
		exact   bool
		want    error
	}{
		{"none", CodecNone, text, 540_000, true, nil},
		{"snappy", CodecSnappy, s2.EncodeSnappy(nil, text), 540_000, true, nil},
		{"snappy of noise", CodecSnappy, s2.EncodeSnappy(nil, noise), 300_000, true, nil},
		{"xerial", CodecSnappy, xerial(s2.EncodeSnappy(nil, text), s2.EncodeSnappy(nil, noise)), 840_000, true, nil},
		{"zstd", CodecZstd, one(text), 540_000, true, nil},
		{"zstd of noise", CodecZstd, one(noise), 300_000, true, nil},
		{"zstd of one byte", CodecZstd, one([]byte("a")), 1, true, nil},
		{"zstd of 300 bytes", CodecZstd, one(text[:300]), 300, true, nil},
		{"zstd with checksum", CodecZstd, one(text, zstd.WithEncoderCRC(true)), 540_000, true, nil},
		{"zstd with a window", CodecZstd, one(text, zstd.WithWindowSize(64<<10), zstd.WithSingleSegment(false)), 540_000, true, nil},
		{"zstd of repeated bytes", CodecZstd, one(zeros[:1<<20]), 1 << 20, true, nil},
		{"zstd stream, its size bounded by its blocks", CodecZstd, stream(text), 5 * 128 << 10, false, nil},
		{"two zstd frames", CodecZstd, joined(one(text), one(noise)), 840_000, true, nil},
		{"zstd with a skippable frame", CodecZstd, joined(skippable, one(text)), 540_000, true, nil},

		{"row 18: zstd bomb", CodecZstd, one(zeros), 0, false, CodeTooLarge},
		{"row 18: zstd bomb that does not say its size", CodecZstd, stream(zeros), 0, false, CodeTooLarge},
		{"row 18: zstd bomb in many frames", CodecZstd, bytes.Repeat(one(zeros[:1<<20]), 9), 0, false, CodeTooLarge},
		{"row 18: s2 bomb", CodecSnappy, s2.Encode(nil, zeros), 0, false, CodeTooLarge},
		{"row 18: snappy bomb in many chunks", CodecSnappy,
			xerial(bytes.Split(bytes.Repeat(append(s2.EncodeSnappy(nil, zeros[:1<<20]), "||"...), 9), []byte("||"))[:9]...), 0, false, CodeTooLarge},
		{"row 19: zstd declares more than its blocks can hold", CodecZstd, frame(0x20, 200), 0, false, CodeCorrupt},
		{"row 19: zstd declares less than its raw block holds", CodecZstd,
			[]byte{0x28, 0xb5, 0x2f, 0xfd, 0x20, 1, 2<<3 | 1, 0, 0, 'a', 'b'}, 0, false, CodeCorrupt},
		{"row 20: zstd window of 2 GiB", CodecZstd, frame(0x00, 21<<3), 0, false, CodeTooLarge},
		{"row 20: the largest window there is", CodecZstd, frame(0x00, 0xff), 0, false, CodeTooLarge},
		{"row 20: a single segment of 2 GiB", CodecZstd, frame(0xa0, 0, 0, 0, 0x80), 0, false, CodeTooLarge},
		{"row 20: a single segment of 2^64-1", CodecZstd, frame(0xe0, 255, 255, 255, 255, 255, 255, 255, 255), 0, false, CodeTooLarge},
		{"zstd window of 8 MiB, the largest allowed", CodecZstd, frame(0x00, 13<<3), 0, true, nil},
		{"zstd window just above 8 MiB", CodecZstd, frame(0x00, 13<<3|1), 0, false, CodeTooLarge},

		{"zstd with a dictionary", CodecZstd, frame(0x21, 1, 5), 0, false, CodeUnsupported},
		{"zstd with a reserved bit", CodecZstd, frame(0x28, 0), 0, false, CodeCorrupt},
		{"zstd with a reserved block type", CodecZstd, []byte{0x28, 0xb5, 0x2f, 0xfd, 0x20, 0, 3<<1 | 1, 0, 0}, 0, false, CodeCorrupt},
		{"zstd with a block above 128 KiB", CodecZstd, []byte{0x28, 0xb5, 0x2f, 0xfd, 0x00, 13 << 3, 0xff, 0xff, 0xff}, 0, false, CodeCorrupt},
		{"no zstd at all", CodecZstd, text, 0, false, CodeCorrupt},
		{"nothing, as zstd", CodecZstd, nil, 0, false, CodeCorrupt},
		{"zstd that ends in bytes of no frame", CodecZstd, joined(one(text), []byte("abcd")), 0, false, CodeCorrupt},
		{"a skippable frame that is cut short", CodecZstd, skippable[:10], 0, false, CodeCorrupt},
		{"a skippable frame that is cut short in its length", CodecZstd, skippable[:5], 0, false, CodeCorrupt},
		{"a skippable frame that is cut short behind its magic", CodecZstd, skippable[:4], 0, false, CodeCorrupt},
		{"a skippable frame of nothing before a frame", CodecZstd, joined(skippable[:4], make([]byte, 4), one([]byte("a"))), 1, true, nil},
		{"a frame with another magic", CodecZstd, joined([]byte{0x29}, one([]byte("a"))[1:]), 0, false, CodeCorrupt},
		{"zstd of as much as there may be", CodecZstd, one(zeros[:MaxUncompressedBytes]), MaxUncompressedBytes, true, nil},
		{"zstd of a byte more, in two frames", CodecZstd, joined(one(zeros[:MaxUncompressedBytes]), one([]byte("a"))), 0, false, CodeTooLarge},
		{"snappy of as much as there may be", CodecSnappy, s2.EncodeSnappy(nil, zeros[:MaxUncompressedBytes]), MaxUncompressedBytes, true, nil},
		{"xerial of as much as there may be", CodecSnappy, xerial(s2.EncodeSnappy(nil, zeros[:MaxUncompressedBytes-1]), s2.EncodeSnappy(nil, zeros[:1])), MaxUncompressedBytes, true, nil},
		{"xerial of nothing", CodecSnappy, xerial(), 0, true, nil},
		{"zstd with repeated bytes beyond a block", CodecZstd, []byte{0x28, 0xb5, 0x2f, 0xfd, 0x00, 13 << 3, 0x03, 0x00, 0x18, 'a'}, 0, false, CodeCorrupt},
		{"nothing, as snappy", CodecSnappy, nil, 0, false, CodeCorrupt},
		{"snappy with an overlong size", CodecSnappy, []byte{0x80, 0x00}, 0, false, CodeCorrupt},
		{"an empty xerial chunk", CodecSnappy, xerial(nil), 0, false, CodeCorrupt},
		{"a xerial chunk that is cut short", CodecSnappy, xerial([]byte{1, 0, 'a'})[:22], 0, false, CodeCorrupt},
		{"gzip", Codec(1), text, 0, false, CodeUnsupported},
	} {
		t.Run(test.name, func(t *testing.T) {
			size, exact, err := UncompressedSize(test.codec, test.section)
			if test.want != nil {
				require.ErrorIs(t, err, test.want)
				return
			}
			require.NoError(t, err)
			require.Equal(t, test.size, size)
			require.Equal(t, test.exact, exact)
		})
	}

	t.Run("any cut of a zstd frame", func(t *testing.T) {
		section := one(text[:5000], zstd.WithEncoderCRC(true))
		for n := range len(section) {
			_, _, err := UncompressedSize(CodecZstd, section[:n])
			require.ErrorIs(t, err, CodeCorrupt, "%d of %d bytes", n, len(section))
		}
	})
	t.Run("and without allocating", func(t *testing.T) {
		sections := map[Codec][]byte{CodecSnappy: xerial(s2.EncodeSnappy(nil, text)), CodecZstd: one(noise)}
		for codec, section := range sections {
			require.Zero(t, testing.AllocsPerRun(100, func() {
				if _, _, err := UncompressedSize(codec, section); err != nil {
					t.Fatal(err)
				}
			}), codec.String())
		}
	})
}

func TestValidateBatchOfCompressedBatches(t *testing.T) {
	list := samples()
	encodings := func() (lengths []IndexEntry) {
		_, index := build(t, CodecNone, list)
		x, err := ParseRecordIndex(index)
		require.NoError(t, err)
		for i := range x.Len() {
			lengths = append(lengths, x.Entry(i))
		}
		return lengths
	}()
	for _, codec := range []Codec{CodecSnappy, CodecZstd} {
		t.Run(codec.String(), func(t *testing.T) {
			batch, index := build(t, codec, list)
			for _, test := range []struct {
				name   string
				batch  []byte
				index  []byte
				limits BatchLimits
				want   error
			}{
				{"as it should be", batch, index, BatchLimits{}, nil},
				{"without index", batch, nil, BatchLimits{}, nil},
				{"a length too large", batch, func() []byte {
					e := append([]IndexEntry(nil), encodings...)
					e[3].Length++
					return AppendRecordIndex(nil, 0, e)
				}(), BatchLimits{}, CodeMalformed},
				{"a length that no record has", batch, func() []byte {
					e := append([]IndexEntry(nil), encodings...)
					e[3].Length, e[4].Length = 6, e[4].Length+e[3].Length-6
					return AppendRecordIndex(nil, 0, e)
				}(), BatchLimits{}, CodeMalformed},
				{"a record above its limit, as the index says", batch, index, BatchLimits{MaxRecordBytes: 50_000}, CodeTooLarge},
				{"row 13: more records than the inflated bytes can hold",
					batchWith(codec, 60_000, compressors(t)[codec](nil, make([]byte, 1000))), nil, BatchLimits{}, CodeMalformed},
				{"row 12: damage", func() []byte {
					b := append([]byte(nil), batch...)
					b[len(b)/2] ^= 1
					return b
				}(), index, BatchLimits{}, CodeCorrupt},
				{"row 18: a bomb", batchWith(codec, 1, compressors(t)[codec](nil, make([]byte, 9<<20))), nil, BatchLimits{}, CodeTooLarge},
				{"a section that is not what it says", batchWith(codec, 1, bytes.Repeat([]byte{0xff}, 50)), nil, BatchLimits{}, CodeCorrupt},
			} {
				t.Run(test.name, func(t *testing.T) {
					_, err := ValidateBatch(test.batch, test.index, test.limits)
					if test.want == nil {
						require.NoError(t, err)
						return
					}
					require.ErrorIs(t, err, test.want)
				})
			}
		})
	}
	t.Run("a zstd stream, whose size is only bounded", func(t *testing.T) {
		list := append(samples(), samples()...) // more than a block
		uncompressed, index := build(t, CodecNone, list)
		var b bytes.Buffer
		encoder, err := zstd.NewWriter(&b, zstd.WithEncoderConcurrency(1))
		require.NoError(t, err)
		for rest := Records(uncompressed); len(rest) > 0; {
			n := min(len(rest), 10_000)
			_, err = encoder.Write(rest[:n])
			require.NoError(t, err)
			rest = rest[n:]
		}
		require.NoError(t, encoder.Close())
		_, exact, err := UncompressedSize(CodecZstd, b.Bytes())
		require.NoError(t, err)
		require.False(t, exact)
		_, err = ValidateBatch(batchWith(CodecZstd, int32(len(list)), b.Bytes()), index, BatchLimits{})
		require.NoError(t, err)
	})
}

// FuzzUncompressedSize holds the bound against what the decoders produce.
func FuzzUncompressedSize(f *testing.F) {
	text := bytes.Repeat([]byte("text "), 100)
	encoder, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1))
	require.NoError(f, err)
	defer encoder.Close()
	f.Add(true, encoder.EncodeAll(text, nil))
	f.Add(true, append(encoder.EncodeAll(text, nil), encoder.EncodeAll(text, nil)...))
	f.Add(true, []byte{0x28, 0xb5, 0x2f, 0xfd, 0x00, 0x58, 0xff, 0xff, 0x0f, 'a', 1, 0, 0})
	f.Add(false, s2.EncodeSnappy(nil, text))
	f.Add(false, xerial(s2.EncodeSnappy(nil, text), s2.EncodeSnappy(nil, text)))
	decoder, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(2*MaxUncompressedBytes))
	require.NoError(f, err)
	defer decoder.Close()
	f.Fuzz(func(t *testing.T, isZstd bool, section []byte) {
		if isZstd {
			size, exact, err := UncompressedSize(CodecZstd, section)
			inflated, decodeErr := decoder.DecodeAll(section, nil)
			if err != nil || decodeErr != nil {
				return
			}
			require.LessOrEqual(t, len(inflated), size)
			if exact {
				require.Len(t, inflated, size)
			}
			return
		}
		size, exact, err := UncompressedSize(CodecSnappy, section)
		if err != nil {
			return
		}
		require.True(t, exact)
		require.LessOrEqual(t, size, MaxUncompressedBytes)
		if IsXerial(section) {
			sum := 0
			for chunk, err := range XerialChunks(section) {
				require.NoError(t, err)
				n, err := s2.DecodedLen(chunk)
				if err != nil {
					return
				}
				sum += n
			}
			require.Equal(t, sum, size)
			return
		}
		if inflated, err := s2.Decode(nil, section); err == nil {
			require.Len(t, inflated, size)
		}
	})
}
