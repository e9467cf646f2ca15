package cli

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/client"
)

// replying runs reply until the test ends, or until it ends by itself; its outcome comes then.
func replying(t *testing.T, address string, args ...string) <-chan outcome {
	ctx, cancel := context.WithCancelCause(context.Background())
	done, over := make(chan outcome, 1), make(chan struct{})
	go func() {
		defer close(over)
		done <- at(address, "").run(ctx, append([]string{"reply", "orders"}, args...)...)
	}()
	t.Cleanup(func() {
		cancel(errInterrupted)
		<-over
	})
	return done
}

func TestARequestGetsWhatTheCommandPrints(t *testing.T) {
	address, _ := startServer(t)
	must(t, at(address, ""), "queue", "create", "orders", "--partitions", "2")
	done := replying(t, address, "--parallel", "4", "-c", "3", "--exec", `echo "$LOCKSTEP_KEY $(tr a-z A-Z) $LOCKSTEP_HEADERS"`)
	require.Regexp(t, `^ HELLO \[\{"name":"lockstep-reply-to","value":"\$tmp/1/[0-9a-f]{32}"\},\{"name":"lockstep-correlation","value":"[0-9a-f]{16}-1"\}\]\n$`,
		must(t, at(address, ""), "request", "orders", "hello"))
	require.Contains(t, must(t, at(address, "pears\n"), "request", "orders", "-k", "k", "-H", "unit=kg"), `k PEARS [{"name":"unit","value":"kg"},`)
	require.Contains(t, must(t, at(address, ""), "request", "orders", "x", "-o", "json"), `"value":" X [`)
	require.Equal(t, 0, (<-done).code, "three replies are enough")
}

func TestWhatACommandOfReplyDoesWrong(t *testing.T) {
	for _, test := range []struct{ name, exec, want, stderr string }{
		{"fails", `echo ' bad pears' >&2; exit 3`, "lockstep: the server answered with an error: exit status 3: bad pears\n", "orders/0@0 failed: exit status 3: bad pears"},
		{"is killed", `kill -9 $$`, "lockstep: the server answered with an error: signal: killed\n", "orders/0@0 failed: signal: killed"},
		{"prints megabytes", `yes`, "lockstep: the server answered with an error: the command printed more than 1 MiB less 4 KiB\n", "printed more than"},
	} {
		t.Run(test.name, func(t *testing.T) {
			address, _ := startServer(t)
			must(t, at(address, ""), "queue", "create", "orders")
			done := replying(t, address, "-c", "1", "--exec", test.exec)
			got := at(address, "").run(context.Background(), "request", "orders", "x", "--timeout", "30s")
			require.Equal(t, 1, got.code)
			require.Empty(t, got.stdout)
			want := strings.Replace(test.want, "1 MiB less 4 KiB", exactSize(maxReplyBytes), 1)
			require.Equal(t, want, got.stderr)
			server := <-done
			require.Equal(t, 0, server.code, server.stderr)
			require.Contains(t, server.stderr, test.stderr)
		})
	}
}

func TestACommandOfReplyThatIsNotThereLeavesTheRequest(t *testing.T) {
	address, _ := startServer(t)
	must(t, at(address, ""), "queue", "create", "orders")
	missing := replying(t, address, "--exec", "/no/such/program")
	asked := make(chan outcome, 1)
	go func() {
		asked <- at(address, "").run(context.Background(), "request", "orders", "x", "--timeout", "30s")
	}()
	got := <-missing
	require.Equal(t, 1, got.code)
	require.Contains(t, got.stderr, `reply to requests of "orders"`)
	require.Contains(t, got.stderr, "cannot be started")
	replying(t, address, "--exec", "cat")
	require.Equal(t, outcome{stdout: "x\n"}, <-asked, "another server answers it")
}

func TestARequestThatIsToBeTriedAgainIs(t *testing.T) {
	address, _ := startServer(t)
	must(t, at(address, ""), "queue", "create", "orders")
	must(t, at(address, ""), "group", "create", "orders", "slow", "--backoff", "1ms")
	replying(t, address, "-g", "slow", "--exec", `test "$LOCKSTEP_DELIVERY_COUNT" = 2 || exit 75; echo "$LOCKSTEP_DELIVERY_COUNT"`)
	require.Equal(t, "2\n", must(t, at(address, ""), "request", "orders", "x", "--timeout", "30s"))
}

func TestARequestThatNobodyAnswersSaysWhy(t *testing.T) {
	address, _ := startServer(t)
	must(t, at(address, ""), "queue", "create", "orders")
	got := at(address, "").run(context.Background(), "request", "orders", "x", "--timeout", "100ms")
	require.Equal(t, outcome{code: 1, stderr: "lockstep: no reply from \"orders\" within 100ms; the request is stored, orders/0@0: nobody consumes orders; " +
		"start a server with: lockstep reply orders --exec COMMAND\n"}, got)

	// The reply to one that has gone is dropped: the server goes on.
	started := make(chan struct{})
	conn, err := client.Connect(context.Background(), address)
	require.NoError(t, err)
	defer conn.Close()
	serve, stop := context.WithCancel(context.Background())
	answer, over := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(over)
		first := true
		_ = conn.Serve(serve, "orders", func(context.Context, *client.Delivery) (*client.Record, error) {
			if first {
				first = false
				close(started)
				<-answer
			}
			return &client.Record{Value: []byte("late")}, nil
		})
	}()
	<-started
	got = at(address, "").run(context.Background(), "request", "orders", "y", "--timeout", "100ms")
	require.Equal(t, 1, got.code)
	require.Contains(t, got.stderr, `orders/0@1: group "servers" consumes it and has not answered`)
	close(answer)
	require.Equal(t, "late\n", must(t, at(address, ""), "request", "orders", "z", "--timeout", "30s"))
	stop()
	<-over

	got = at(address, "").run(context.Background(), "request", "order", "x")
	require.Equal(t, outcome{code: 1, stderr: "lockstep: destination \"order\" not found; did you mean \"orders\"? Create it with: lockstep queue create order\n"}, got)
	got = at(address, strings.Repeat("x", 2<<20)).run(context.Background(), "request", "orders")
	require.Equal(t, 1, got.code)
	require.Contains(t, got.stderr, "record is too large")
}

func TestATemporaryQueueThatIsGoneIsNotToBeCreated(t *testing.T) {
	address, _ := startServer(t)
	name := "$tmp/1/00112233445566778899aabbccddeeff"
	got := at(address, "x\n").run(context.Background(), "produce", name)
	require.Equal(t, 1, got.code)
	require.Contains(t, got.stderr, "there is no temporary queue \""+name+"\": it ends with the connection that has made it")
}

func TestFlagsOfRequestsAreChecked(t *testing.T) {
	for _, test := range []struct{ args, text string }{
		{"reply orders", "give the command that answers: --exec COMMAND"},
		{"reply orders --exec cat --parallel 0", "flag --parallel: 0 is not positive"},
		{"reply orders --exec cat -c -1", "flag --count: -1 is negative"},
		{"request orders x -H unit", `"unit" is not name=value`},
		{"request orders x --timeout 0s", "is too short"},
		{"request", "needs DEST"},
		{"request orders x y", "takes no argument"},
	} {
		got := shell{}.run(context.Background(), strings.Fields(test.args)...)
		require.Equal(t, 2, got.code, test.args)
		require.Contains(t, got.stderr, test.text)
	}
}

func TestTheEndOfWhatACommandSaysIsKept(t *testing.T) {
	s := &tail{most: 10}
	for i := range 100 {
		fmt.Fprintf(s, "%d,", i)
	}
	require.Equal(t, "97,98,99,", s.String()[1:])
	fmt.Fprint(s, strings.Repeat("y", 100))
	require.Equal(t, strings.Repeat("y", 10), s.String())
}

func TestProduceSendsToATemporaryQueue(t *testing.T) {
	address, _ := startServer(t)
	conn, err := client.Connect(t.Context(), address)
	require.NoError(t, err)
	defer conn.Close()
	q, err := conn.TemporaryQueue(t.Context())
	require.NoError(t, err)
	must(t, at(address, "a:1\nb:2\n"), "produce", q.Name(), "-K", ":", "-H", "h=x")
	for _, want := range []string{"1", "2"} {
		r, err := q.Receive(t.Context())
		require.NoError(t, err)
		require.Equal(t, want, string(r.Value))
		require.Equal(t, []client.Header{{Key: "h", Value: []byte("x")}}, r.Headers)
	}
	got := at(address, "x\n").run(t.Context(), "produce", q.Name(), "--partition", "0")
	require.Equal(t, 1, got.code)
	require.Contains(t, got.stderr, "has no partitions; leave out --partition")
	require.NoError(t, q.Close(t.Context()))
	got = at(address, "x\ny\n").run(t.Context(), "produce", q.Name())
	require.Equal(t, 1, got.code)
	require.Equal(t, fmt.Sprintf("lockstep: line 1: not sent: there is no temporary queue %q: it ends with the connection that has made it, or with its broker; nothing is stored\n", q.Name()), got.stderr)
	got = at(address, "x\n").run(t.Context(), "produce", "$tmp/1")
	require.Equal(t, 1, got.code)
	require.Contains(t, got.stderr, "is not the name of a temporary queue")
}
