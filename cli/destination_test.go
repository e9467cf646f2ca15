package cli

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/client"
	"github.com/lockstepmq/lockstep/wire"
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

func TestAPartitionThatNobodyLeadsIsNotSaidToStart(t *testing.T) {
	d := client.Destination{Partitions: []client.PartitionInfo{
		{Replicas: make([]wire.ReplicaInfo, 3)},
		{Replicas: make([]wire.ReplicaInfo, 3), Leader: 2},
		{Replicas: make([]wire.ReplicaInfo, 1)}, // leads at its first record
		{Replicas: make([]wire.ReplicaInfo, 3), Problem: "it failed"},
	}}
	var texts []string
	for _, p := range describe(d).Partitions {
		texts = append(texts, stateText(p))
	}
	require.Equal(t, []string{"no leader: see lockstep cluster health", "starting", "starting", "starting: it failed"}, texts)
}
