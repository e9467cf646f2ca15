package wire

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestPeerBatchGolden(t *testing.T) {
	m := PeerBatch{Destination: [16]byte{15: 1}, Partition: 2, Index: []byte{0xaa}, Batch: []byte{0xbb, 0xcc}}
	want := unhex(t, `
		00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 01 // destination
		02 00 00 00 // partition 2
		01 00 00 00 aa // index
		bb cc       // batch
	`)
	require.Equal(t, want, m.Append(nil))
	var got PeerBatch
	require.NoError(t, got.Parse(want))
	require.Equal(t, m, got)
	for n := range 25 {
		require.ErrorIs(t, new(PeerBatch).Parse(want[:n]), CodeMalformed, "cut to %d bytes", n)
	}
	require.Equal(t, "PRODUCE", PeerProduce.String())
}
