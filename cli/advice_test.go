package cli

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// What the broker advises by the names in question is not said again in general.
func TestAdviceIsGivenOnce(t *testing.T) {
	address, _ := startServer(t)
	sh := at(address, "")
	must(t, sh, "queue", "create", "orders", "--partitions", "4")
	must(t, sh, "group", "create", "orders", "shared")
	got := sh.run(t.Context(), "consume", "orders", "-g", "one", "--mode", "serial", "--scope", "destination")
	require.Equal(t, 1, got.code)
	require.Equal(t, 1, strings.Count(got.stderr, "use "), got.stderr)
	require.Contains(t, got.stderr, `"orders" has 4; use scope key or publisher, or create a destination with one partition`)
	got = sh.run(t.Context(), "consume", "orders", "-g", "shared", "--mode", "serial")
	require.Equal(t, 1, got.code)
	require.Equal(t, `lockstep: consume "orders": group "shared" has mode shared, not serial; consume as it is, alter the group, or take another name`+"\n", got.stderr)
}
