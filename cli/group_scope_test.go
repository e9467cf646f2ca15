package cli

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"
)

// Who asks for the order of a scope gets a serial group, or hears that the mode has none.
func TestAScopeMeansASerialGroup(t *testing.T) {
	address := groupQueue(t, "a:1\n")
	sh := at(address, "")
	require.Equal(t, "group audit of orders created: serial by publisher\n", must(t, sh, "group", "create", "orders", "audit", "--scope", "publisher"))
	got := sh.run(context.Background(), "group", "create", "orders", "etl", "--scope", "key", "--mode", "shared")
	require.Equal(t, 2, got.code)
	require.Contains(t, got.stderr, "--scope is about --mode serial, not shared")
	require.Equal(t, "1\n", must(t, sh, "consume", "orders", "-g", "billing", "--scope", "key", "-c", "1"))
	require.Contains(t, must(t, sh, "group", "describe", "orders", "billing"), "billing of orders: serial by key")
	must(t, sh, "group", "create", "orders", "free", "--mode", "shared")
	got = sh.run(context.Background(), "consume", "orders", "-g", "free", "--scope", "key", "-c", "1")
	require.NotEqual(t, 0, got.code)
	require.Contains(t, got.stderr, `group "free" has mode shared, not serial`)
}
