package cli

import (
	"context"
	"strings"
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
	require.Equal(t, "altered alias \"current\": it stands for partitions 0,2 of orders-2 now, and stood for orders before\n", must(t, sh, "alias", "alter", "current", "orders-2", "--partition", "2", "--partition", "0"))
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

// R-SIB-19: who looks by an alias goes on where it leads, from where the flags say, and ends
// where they say nothing about that.
func TestConsumeWithoutAGroupFollowsAnAlias(t *testing.T) {
	address, _ := startServer(t)
	sh := at(address, "")
	for name, c := range map[string]struct {
		args    []string
		changed []string // how the alias is; of orders-2 if not said
		after   string   // what is printed of the second queue
		ends    string   // what it says when it ends by itself
	}{
		"from-the-beginning": {nil, nil, "new\nlater\n", ""},
		"from-a-time-on":     {[]string{"--at", "10m ago"}, nil, "new\nlater\n", ""},
		"from-now-on":        {[]string{"--from", "latest"}, nil, "later\n", ""},
		"one-partition":      {[]string{"--partition", "0"}, []string{"alter", "one-partition", "one-partition-2", "--partition", "1"}, "", "destination has no such partition: 0; list its partitions with: lockstep queue describe one-partition"},
		"from-an-offset-on":  {[]string{"--offset", "0"}, nil, "", "offsets of the one say nothing about the other: name the destination, or begin anew there with: lockstep consume from-an-offset-on --from earliest"},
		"until-it-is-gone":   {nil, []string{"rm", "until-it-is-gone"}, "", `alias "until-it-is-gone" was removed; name what is meant, or create the alias again with: lockstep alias create until-it-is-gone DEST`},
	} {
		t.Run(name, func(t *testing.T) {
			before, after := name+"-1", name+"-2"
			must(t, sh, "queue", "create", before)
			must(t, sh, "queue", "create", after, "--partitions", "2")
			must(t, sh, "alias", "create", name, before)
			must(t, at(address, "new\n"), "produce", after, "--partition", "1")
			looking := at(address, "")
			looking.now = time.Now().Add(2 * time.Millisecond) // the clocks go by milliseconds
			require.Eventually(t, func() bool { return time.Now().After(looking.now) }, 30*time.Second, time.Millisecond)
			ctx, cancel := context.WithCancelCause(context.Background())
			defer cancel(nil)
			out, talk, done := &lockedBuffer{}, &lockedBuffer{}, make(chan int, 1)
			go func() { done <- looking.app(out, talk).run(ctx, append([]string{"consume", name}, c.args...)) }()
			require.Eventually(t, func() bool { // until it is there
				must(t, at(address, "old\n"), "produce", before)
				return out.String() != ""
			}, 30*time.Second, 20*time.Millisecond)
			change := c.changed
			if change == nil {
				change = []string{"alter", name, after}
			}
			must(t, sh, append([]string{"alias"}, change...)...)
			want := 1
			if c.ends == "" {
				must(t, at(address, "later\n"), "produce", name, "--partition", "1")
				require.Eventually(t, func() bool { return strings.HasSuffix(out.String(), c.after) }, 30*time.Second, 5*time.Millisecond)
				require.Contains(t, talk.String(), "; it is followed\n")
				cancel(errInterrupted)
				want = exitInterrupted
			}
			require.Equal(t, want, <-done, talk.String())
			require.Contains(t, talk.String(), c.ends)
			require.Equal(t, c.after, strings.ReplaceAll(out.String(), "old\n", ""))
		})
	}
}

// Requests that come to where an alias leads now are answered by who serves it.
func TestReplyFollowsAnAlias(t *testing.T) {
	address, _ := startServer(t)
	sh := at(address, "")
	for _, name := range []string{"prices", "prices-2"} {
		must(t, sh, "queue", "create", name)
	}
	must(t, sh, "alias", "create", "orders", "prices")
	done := replying(t, address, "--parallel", "2", "-c", "2", "--exec", "tr a-z A-Z")
	require.Equal(t, "A\n", must(t, sh, "request", "orders", "a", "--timeout", "30s"))
	must(t, sh, "alias", "alter", "orders", "prices-2")
	require.Equal(t, "B\n", must(t, sh, "request", "orders", "b", "--timeout", "30s"))
	end := <-done
	require.Equal(t, 0, end.code, end.stderr)
	require.Contains(t, end.stderr, `alias "orders" stands for "prices-2", not for "prices" any more; it is followed`)

	removed := replying(t, address, "--exec", "cat")
	require.Equal(t, "c\n", must(t, sh, "request", "orders", "c", "--timeout", "30s"))
	must(t, sh, "alias", "rm", "orders")
	end = <-removed
	require.Equal(t, 1, end.code)
	require.Contains(t, end.stderr, `alias "orders" was removed; name what is meant`)
}

// R-SIB-19: aliases are offered and guessed wherever destinations are that they may stand for.
func TestAliasesAreOfferedAndGuessed(t *testing.T) {
	address, _ := startServer(t)
	sh := at(address, "")
	must(t, sh, "queue", "create", "orders")
	must(t, sh, "topic", "create", "events")
	must(t, sh, "alias", "create", "current", "orders")
	must(t, sh, "alias", "create", "latest", "events")
	for line, want := range map[string]string{
		"consume":                "events orders current latest",
		"produce":                "events orders current latest",
		"request":                "events orders current latest",
		"queue describe":         "orders current",
		"queue alter":            "orders",
		"topic rm":               "events",
		"alias create":           "",
		"alias create x":         "events orders",
		"alias alter":            "current latest",
		"alias alter current":    "events orders",
		"alias rm":               "current latest",
		"topic describe":         "events latest",
		"queue describe current": "",
	} {
		got := sh.run(context.Background(), append(append([]string{"__complete"}, strings.Fields(line)...), "")...)
		words := strings.Fields(got.stdout)
		require.NotEmpty(t, words, line)
		require.Equal(t, want, strings.Join(words[:len(words)-1], " "), line)
	}
	for line, says := range map[string]string{
		"consume curent":            `destination "curent" not found; did you mean "current"?`,
		"request curent x":          `did you mean "current"?`,
		"alias alter curent orders": `alter alias "curent": alias "curent" not found; did you mean "current"?`,
		"alias alter current order": `alter alias "current": destination "order" not found; did you mean "orders"?`,
		"alias create x order":      `create alias "x": destination "order" not found; did you mean "orders"?`,
		"alias rm curent":           `remove alias "curent": alias "curent" not found; did you mean "current"?`,
	} {
		got := sh.run(context.Background(), strings.Fields(line)...)
		require.Equal(t, 1, got.code, line)
		require.Contains(t, got.stderr, says, line)
	}
}
