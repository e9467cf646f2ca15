package cli

import (
	"context"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestBrowsePrintsAndLeavesRecords(t *testing.T) {
	address := groupQueue(t, "a:1\nb:2\na:3\n")
	sh := at(address, "")
	require.Equal(t, "PARTITION  OFFSET  KEY  BYTES  VALUE\n        0       0  a        1  1\n        0       1  b        1  2\n        0       2  a        1  3\n",
		must(t, sh, "browse", "orders"))
	must(t, sh, "group", "create", "orders", "billing")
	hasty := sh.run(context.Background(), "group", "create", "orders", "hasty", "--session-timeout", "3s")
	require.Contains(t, hasty.stderr, "with a session timeout of 3s records may be delivered again when a leader hangs: another one leads within 3s, and consumers give up what they hold after 1s700ms; from 6s on")
	require.Empty(t, sh.run(context.Background(), "group", "alter", "orders", "hasty", "--session-timeout", "6s").stderr)
	must(t, sh, "group", "rm", "orders", "hasty")
	must(t, sh, "consume", "orders", "-g", "billing", "-c", "1")
	for range 2 {
		require.Regexp(t, `^PARTITION  OFFSET  STATE +DELIVERED  FAILED  HOLDER  KEY  BYTES  VALUE\n        0       1  (waiting|returned) +[01]       0          b        1  2\n$`,
			must(t, sh, "browse", "orders", "--limit", "1"))
	}
	require.Regexp(t, `^\{"partition":0,"offset":2,"epoch":\d+,"timestamp":"[^"]+","key":"a","value":"3","group":"billing","state":"(waiting|returned)"`,
		must(t, sh, "browse", "orders", "--from", "2", "-o", "json"))
	require.Equal(t, "2\n3\n", must(t, sh, "consume", "orders", "-g", "billing", "-c", "2"))
	require.Equal(t, "PARTITION  OFFSET  KEY  BYTES  VALUE\n", must(t, sh, "browse", "orders"))
	got := sh.run(context.Background(), "browse", "orders", "--limit", "-1")
	require.Equal(t, 2, got.code)
	got = sh.run(context.Background(), "browse", "orders", "-g", "none")
	require.Equal(t, 1, got.code)
	require.Contains(t, got.stderr, "none")
}

func TestCellsOfATableAreOneLine(t *testing.T) {
	require.Equal(t, "a b", shown([]byte("a\nb")))
	require.Equal(t, strings.Repeat("é", browsedRunes), shown([]byte(strings.Repeat("é", browsedRunes))))
	require.Equal(t, strings.Repeat("é", browsedRunes)+"…", shown([]byte(strings.Repeat("é", 1000))))
	require.Equal(t, "\ufffd", shown([]byte{0xff, 0xfe}))
	require.Equal(t, "billing-1", holderName("billing-1 (00112233445566778899aabbccddeeff)"))
	require.Equal(t, "00112233", holderName("00112233445566778899aabbccddeeff"))
}
