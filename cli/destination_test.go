package cli

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestRemovingSeveralRemovesNoneIfOneIsWrong(t *testing.T) {
	address, _ := startServer(t)
	sh := at(address, "")
	must(t, sh, "queue", "create", "orders")
	must(t, sh, "topic", "create", "events")
	for _, wrong := range []string{"events", "missing"} {
		got := sh.run(context.Background(), "queue", "rm", "orders", wrong)
		require.Equal(t, 1, got.code)
		require.Empty(t, got.stdout)
	}
	require.Contains(t, must(t, sh, "queue", "ls"), "orders")
	require.Equal(t, "removed queue \"orders\"\n", must(t, sh, "queue", "rm", "orders", "missing", "--if-exists"))
}

func TestCreateIfNotExistsSaysWhatIsDifferent(t *testing.T) {
	address, _ := startServer(t)
	sh := at(address, "")
	must(t, sh, "queue", "create", "orders", "--partitions", "4")
	got := sh.run(context.Background(), "queue", "create", "orders", "--partitions", "9", "--if-not-exists")
	require.Equal(t, outcome{
		0, "exists already: queue \"orders\" (4 partitions)\n",
		"lockstep: queue \"orders\" has 4 partitions, not 9; see: lockstep queue describe orders\n",
	}, got)
	got = sh.run(context.Background(), "queue", "create", "orders", "--if-not-exists")
	require.Equal(t, outcome{0, "exists already: queue \"orders\" (4 partitions)\n", ""}, got)
}
