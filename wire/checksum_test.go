package wire

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestChecksumsOfPiecesAreJoined(t *testing.T) {
	b := []byte("123456789")
	require.Equal(t, uint32(0xe3069283), JoinChecksums(Checksum(b[:4]), Checksum(b[4:]), 5)) // the known check value
	const seed = 3
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	long := make([]byte, 1<<20)
	for i := range long {
		long[i] = byte(random.Uint32())
	}
	for _, cut := range []int{0, 1, 40, 4096, 65_537, 1<<20 - 1, 1 << 20} {
		require.Equal(t, Checksum(long), JoinChecksums(Checksum(long[:cut]), Checksum(long[cut:]), len(long)-cut), "cut at %d", cut)
	}
}

// A plain batch is the same bytes as one that is summed at the end, whatever the sizes of
// its records.
func TestPlainBatchesAreTheSameBytes(t *testing.T) {
	for _, sizes := range [][]int{{1}, {100, 100, 100}, {4096}, {1000, 1000, 1000, 1000, 1000, 1000}, {5000, 1, 5000, 3}, {70_000, 10}} {
		t.Run(fmt.Sprint(sizes), func(t *testing.T) {
			var plain, other BatchBuilder
			for range 2 { // the builder is used again
				plain.Reset(true)
				plain.Plain()
				other.Reset(true)
				for i, n := range sizes {
					value := bytes.Repeat([]byte{byte(i + 1)}, n)
					require.True(t, plain.Append(7, 0, []byte("k"), value, nil, 9))
					require.True(t, other.Append(7, 0, []byte("k"), value, nil, 9))
				}
				producer := ProducerIdentity{ID: 5, Epoch: 1, Sequence: 2}
				got, gotIndex := plain.Finish(producer, 3, CodecNone, nil)
				want, wantIndex := other.Finish(producer, 3, CodecNone, nil)
				require.Equal(t, want, got)
				require.Equal(t, wantIndex, gotIndex)
				_, err := VerifyBatch(got)
				require.NoError(t, err)
			}
		})
	}
}

func BenchmarkJoinChecksums(b *testing.B) {
	crc := uint32(1)
	for range b.N {
		crc = JoinChecksums(crc, 2, 64<<10-61)
	}
	if crc == 0 {
		b.Log(crc)
	}
}
