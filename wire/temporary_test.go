package wire

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestTemporaryNamesSayTheirNode(t *testing.T) {
	name := TemporaryName(7, [16]byte{0: 0xab, 15: 1})
	require.Equal(t, "$tmp/7/ab000000000000000000000000000001", name)
	require.NoError(t, ValidateName(name))
	require.True(t, IsTemporary(name))
	node, err := ParseTemporaryName(name)
	require.NoError(t, err)
	require.EqualValues(t, 7, node)

	require.False(t, IsTemporary("tmp/7/ab"))
	require.False(t, IsTemporary("$tmp"))
	for _, bad := range []string{
		"", "orders", "$tmp/", "$tmp/7", "$tmp/7/", name + "0", name[:len(name)-1], strings.ToUpper(name), "$tmp/+7" + name[6:], "$tmp/07" + name[6:],
		"$tmp/4294967296" + name[6:], "$tmp/-1" + name[6:], strings.Replace(name, "ab", "xy", 1), strings.Replace(name, "/ab", "/AB", 1),
	} {
		_, err := ParseTemporaryName(bad)
		require.ErrorIs(t, err, CodeInvalidName, bad)
	}
}
