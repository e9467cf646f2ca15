package wire

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestPeerHearsGolden(t *testing.T) {
	m := PeerHears{Node: 3, Store: [16]byte{15: 1}}
	want := unhex(t, `
		03 00 00 00 // node 3
		00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 01 // store
	`)
	require.Equal(t, want, m.Append(nil))
	var got PeerHears
	require.NoError(t, got.Parse(want))
	require.Equal(t, m, got)
	for n := range want {
		require.ErrorIs(t, new(PeerHears).Parse(want[:n]), CodeMalformed, "cut to %d bytes", n)
	}
	var heard PeerHeard
	require.NoError(t, heard.Parse((&PeerHeard{Heard: true}).Append(nil)))
	require.True(t, heard.Heard)
	require.ErrorIs(t, heard.Parse([]byte{2}), CodeMalformed)
	require.Equal(t, "HEAR", PeerHear.String())
}
