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

// Where a whole partition goes in order, naming a key gives up no record: the next one may have
// another. The partition itself can be named.
func TestAKeyIsNotTakenForAWholePartition(t *testing.T) {
	address := groupQueue(t, "a:1\nb:2\n")
	sh := at(address, "")
	must(t, sh, "group", "create", "orders", "audit", "--scope", "destination")
	for _, deed := range []string{"show", "park", "unpark", "skip"} {
		for _, name := range [][]string{{"b"}, {"a"}, {"p", "--publisher"}} {
			got := sh.run(t.Context(), append([]string{"key", deed, "orders", "audit"}, name...)...)
			require.Equal(t, 1, got.code, "%s %v: %s", deed, name, got.stdout)
			require.Contains(t, got.stderr, "name the --partition alone")
		}
	}
	require.Regexp(t, "waiting .* a ", must(t, sh, "browse", "orders", "-g", "audit"))
	must(t, sh, "key", "park", "orders", "audit", "--partition", "0", "--reason", "look at it")
	require.Contains(t, must(t, sh, "key", "show", "orders", "audit", "--partition", "0"), "parked: look at it\n")
	require.Equal(t, "skipped partition 0 of orders for audit: orders/0@0\n", must(t, sh, "key", "skip", "orders", "audit", "--partition", "0"))
}
