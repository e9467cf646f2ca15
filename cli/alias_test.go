package cli

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestAliasesAreFollowed(t *testing.T) {
	address, _ := startServer(t)
	sh := at(address, "")
	must(t, sh, "queue", "create", "orders")
	must(t, sh, "queue", "create", "orders-2", "--partitions", "3")
	require.Equal(t, "created alias \"current\" of orders\n", must(t, sh, "alias", "create", "current", "orders"))

	consumed := make(chan outcome, 1)
	go func() { consumed <- sh.run(context.Background(), "consume", "current", "-g", "g", "-c", "2") }()
	must(t, at(address, "a\n"), "produce", "current")
	require.Eventually(t, func() bool {
		left := sh.run(context.Background(), "browse", "orders", "--group", "g", "-o", "json")
		return left.code == 0 && left.stdout == ""
	}, 30*time.Second, 20*time.Millisecond)
	require.Equal(t, "altered alias \"current\" of partitions 0,2 of orders-2\n", must(t, sh, "alias", "alter", "current", "orders-2", "--partition", "2", "--partition", "0"))
	must(t, at(address, "b\n"), "produce", "current")
	end := <-consumed
	require.Equal(t, 0, end.code, end.stderr)
	require.Equal(t, "a\nb\n", end.stdout)
	require.Contains(t, end.stderr, `alias "current" stands for partitions [0 2] of "orders-2", not for "orders" any more; it is followed`)

	require.Equal(t, "ALIAS    DESTINATION  PARTITIONS\ncurrent  orders-2     0,2\n", must(t, sh, "alias", "ls"))
	require.Contains(t, must(t, sh, "queue", "describe", "current"), "Alias:       current, which stands for partitions 0,2 of orders-2\nName:        orders-2\n")
	require.Contains(t, must(t, sh, "group", "ls", "current"), "g ")
	for _, c := range []struct {
		args []string
		says string
	}{
		{[]string{"queue", "rm", "orders-2"}, `alias "current" stands for queue "orders-2"; remove it, or have it stand for something else, first`},
		{[]string{"queue", "rm", "current"}, `it is an alias of "orders-2"; remove that, or the alias with: lockstep alias rm current`},
		{[]string{"queue", "alter", "current", "--sync", "os"}, `"current" is an alias of "orders-2"; name that`},
		{[]string{"queue", "create", "current"}, `create queue "current": an alias of "orders-2" has that name; choose another, or remove the alias with: lockstep alias rm current`},
		{[]string{"queue", "create", "current", "--if-not-exists"}, `an alias of "orders-2" has that name`},
		{[]string{"alias", "create", "current", "orders"}, `create alias "current": alias "current" exists and stands for "orders-2"; alter it to have it stand for something else`},
		{[]string{"alias", "create", "x", "current"}, `"current" is an alias itself and stands for "orders-2"`},
		{[]string{"alias", "create", "x", "none"}, `destination "none" not found`},
		{[]string{"alias", "rm", "none"}, `alias "none" not found`},
		{[]string{"consume", "current", "--partition", "1"}, `alias "current" has no partition 1: it stands for partitions 0,2 of orders-2`},
	} {
		r := sh.run(context.Background(), c.args...)
		require.Equal(t, 1, r.code, c.args)
		require.Contains(t, r.stderr, c.says)
	}
	must(t, sh, "alias", "rm", "current")
	must(t, sh, "alias", "rm", "current", "--if-exists")
	must(t, sh, "queue", "rm", "orders-2")
}
