package wire

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestPeerFencingGolden(t *testing.T) {
	m := PeerFencing{Destination: [16]byte{15: 1}, Partition: 2, Epoch: 0x0102, Hops: 1, ProducerID: 0x0102030405060708}
	want := unhex(t, `
		00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 01 // destination
		02 00 00 00             // partition 2
		02 01                   // epoch
		01 00                   // one hop
		08 07 06 05 04 03 02 01 // producer ID
	`)
	require.Equal(t, want, m.Append(nil))
	var got PeerFencing
	require.NoError(t, got.Parse(want))
	require.Equal(t, m, got)
	for n := range want {
		require.ErrorIs(t, new(PeerFencing).Parse(want[:n]), CodeMalformed, "cut to %d bytes", n)
	}
	want[23] = 1
	require.ErrorIs(t, new(PeerFencing).Parse(want), CodeMalformed, "a byte that is not zero")
	require.Equal(t, "FENCE", PeerFence.String())
}
