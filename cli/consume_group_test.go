package cli

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/client"
	"github.com/lockstepmq/lockstep/server"
)

func groupQueue(t *testing.T, lines string) string {
	address, _ := startServer(t)
	must(t, at(address, ""), "queue", "create", "orders")
	must(t, at(address, lines), "produce", "orders", "-K", ":")
	return address
}

func TestMembersOfAGroupPrintEachRecordOnce(t *testing.T) {
	address := groupQueue(t, "a:1\nb:2\na:3\n")
	sh := at(address, "")
	must(t, sh, "group", "create", "orders", "audit") // a queue keeps records until its groups are done with them
	require.Equal(t, "1\n2\n", must(t, sh, "consume", "orders", "--group", "billing", "-c", "2"))
	require.Equal(t, "3\n", must(t, sh, "consume", "orders", "--group", "billing", "-c", "1"))
	require.Equal(t, "1\n2\n3\n", must(t, sh, "consume", "orders", "--group", "audit", "-c", "3"), "another group has records of its own")
	list := must(t, sh, "group", "ls", "orders")
	require.Contains(t, list, "billing")
	require.Contains(t, list, "shared")
	must(t, sh, "group", "rm", "orders", "audit")
	require.NotContains(t, must(t, sh, "group", "ls", "orders"), "audit")
}

// Who reads a queue without a group is told that its groups have consumed what it asks for,
// and that it has expired only where it can.
func TestAReaderIsToldThatAGroupHasConsumedItsRecords(t *testing.T) {
	address, _ := startServer(t)
	sh := at(address, "")
	for name, why := range map[string]string{
		"kept":    "were consumed by the groups of the queue, which removes them",
		"limited": "were consumed by the groups of the queue, which removes them, or have expired",
	} {
		retention := "unlimited"
		if name == "limited" {
			retention = "7d"
		}
		must(t, sh, "queue", "create", name, "--retention-time", retention)
		must(t, at(address, "1\n2\n"), "produce", name)
		require.Equal(t, "1\n2\n", must(t, sh, "consume", name, "--group", "billing", "-c", "2"))
		got := sh.run(context.Background(), "consume", name, "--partition", "0", "--offset", "0", "-c", "1")
		require.Equal(t, outcome{1, "", fmt.Sprintf(`lockstep: consume "%s": partition 0: offset 0: offset out of range: readable are [2, 2); those before offset 2 %s; `+
			"read with --from earliest or --from latest, or look at the range with: lockstep queue describe %[1]s\n", name, why)}, got)
	}
}

// What was looked at goes back in the end, and nobody is waited for.
func TestAMemberThatOnlyLooksGivesEverythingBack(t *testing.T) {
	address := groupQueue(t, "a:1\nb:2\na:3\n")
	sh := at(address, "")
	got := sh.run(context.Background(), "consume", "orders", "-g", "billing", "--ack", "none", "-c", "2")
	require.Equal(t, 0, got.code, got.stderr)
	require.Equal(t, "1\n2\n", got.stdout)
	require.Empty(t, got.stderr)
	require.Equal(t, "1\n2\n3\n", must(t, sh, "consume", "orders", "-g", "billing", "-c", "3", "--prefetch", "1"))
}

func TestATopicWithARecordIndexHasSerialGroups(t *testing.T) {
	address, _ := startServer(t)
	sh := at(address, "")
	must(t, sh, "topic", "create", "plain")
	got := sh.run(context.Background(), "consume", "plain", "-g", "billing", "--mode", "serial", "--scope", "key")
	require.Equal(t, 1, got.code)
	require.Contains(t, got.stderr, "topic \"plain\" has no record index; create another topic, with: lockstep topic create NAME --record-index")
	must(t, sh, "topic", "create", "events", "--record-index")
	must(t, at(address, "a:1\nb:2\na:3\n"), "produce", "events", "-K", ":")
	require.Equal(t, "1\n2\n3\n", must(t, sh, "consume", "events", "-g", "billing", "--from", "earliest", "--mode", "serial", "--scope", "key", "-c", "3"))
	got = sh.run(context.Background(), "topic", "alter", "plain", "--record-index")
	require.Equal(t, 2, got.code)
	require.Contains(t, got.stderr, "the records that a topic holds get no index afterwards; create another topic with the setting you want")
}

func TestACommandRunsForEachRecordInTheOrderOfItsKey(t *testing.T) {
	address := groupQueue(t, "a:1\nb:2\na:3\nb:4\na:5\n")
	out := filepath.Join(t.TempDir(), "out")
	got := at(address, "").run(context.Background(), "consume", "orders", "-g", "billing", "--mode", "serial", "--scope", "key", "--parallel", "4", "-c", "5",
		"--exec", `printf '%s %s %s %s\n' "$LOCKSTEP_KEY" "$(cat)" "$LOCKSTEP_OFFSET" "$LOCKSTEP_DELIVERY_COUNT" >> `+out)
	require.Equal(t, 0, got.code, got.stderr)
	text, err := os.ReadFile(out)
	require.NoError(t, err)
	byKey := map[string][]string{}
	for _, line := range strings.Split(strings.TrimSpace(string(text)), "\n") {
		key, rest, _ := strings.Cut(line, " ")
		byKey[key] = append(byKey[key], rest)
	}
	require.Equal(t, map[string][]string{"a": {"1 0 1", "3 2 1", "5 4 1"}, "b": {"2 1 1", "4 3 1"}}, byKey)
}

func TestACommandThatFailsGetsItsRecordAgain(t *testing.T) {
	address := groupQueue(t, "a:1\na:2\n")
	must(t, at(address, ""), "group", "create", "orders", "billing", "--mode", "serial", "--backoff", "1ms")
	out := filepath.Join(t.TempDir(), "out")
	got := at(address, "").run(context.Background(), "consume", "orders", "-g", "billing", "-c", "3",
		"--exec", `cat >> `+out+`; echo " $LOCKSTEP_DELIVERY_COUNT" >> `+out+`; test "$LOCKSTEP_DELIVERY_COUNT$LOCKSTEP_OFFSET" != 10`)
	require.Equal(t, 0, got.code, got.stderr)
	require.Contains(t, got.stderr, "lockstep: orders/0@0 failed, attempt 1: exit status 1\n")
	text, err := os.ReadFile(out)
	require.NoError(t, err)
	require.Equal(t, "1 1\n1 2\n2 1\n", string(text))
}

func TestACommandThatCannotStartEndsConsume(t *testing.T) {
	address := groupQueue(t, "a:1\n")
	got := at(address, "").run(context.Background(), "consume", "orders", "-g", "billing", "--exec", "/no/such/program")
	require.Equal(t, 1, got.code)
	require.Contains(t, got.stderr, "orders/0@0: the command of --exec cannot be started")
	require.Contains(t, got.stderr, "lockstep key skip orders billing --partition 0 --offset 0")
	require.Equal(t, "1\n", must(t, at(address, ""), "consume", "orders", "-g", "billing", "-c", "1"), "its record is there")
}

// Exit code 0 is an acknowledgement, also of a command that is told to end.
func TestACommandThatEndsWellWhenToldToIsDone(t *testing.T) {
	address := groupQueue(t, "a:1\nb:2\n")
	dir := t.TempDir()
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	go func() {
		for ctx.Err() == nil {
			if _, err := os.Stat(filepath.Join(dir, "started")); err == nil {
				cancel(errInterrupted)
			}
			time.Sleep(time.Millisecond) // nothing tells of a file of another process
		}
	}()
	got := at(address, "").run(ctx, "consume", "orders", "-g", "billing", "--exec",
		`trap 'exit 0' TERM; touch `+dir+`/started; while :; do sleep 0.01; done`)
	require.Equal(t, 130, got.code)
	require.Equal(t, "2\n", must(t, at(address, ""), "consume", "orders", "-g", "billing", "-c", "1"))
}

func TestACommandThatOutlivesTheAckWaitIsNamed(t *testing.T) {
	address := groupQueue(t, "a:1\n")
	must(t, at(address, ""), "group", "create", "orders", "billing", "--ack-wait", "50ms", "--backoff", "1ms")
	begun := filepath.Join(t.TempDir(), "begun") // on a slow machine the first delivery may be over before its command starts
	got := at(address, "").run(t.Context(), "consume", "orders", "-g", "billing", "-c", "2", "--exec", `test -e `+begun+` && exit 0; touch `+begun+`; exec sleep 1000`)
	require.Equal(t, 0, got.code)
	require.Contains(t, got.stderr, "lockstep: orders/0@0 was taken back before its command had ended, which was told to end: signal: terminated; "+
		"if the command needs more than the group's ack wait: lockstep group alter orders billing --ack-wait TIME\n")
}

func TestACommandEndsWithConsume(t *testing.T) {
	address := groupQueue(t, "a:1\n")
	dir := t.TempDir()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	go func() {
		for ctx.Err() == nil {
			if _, err := os.Stat(filepath.Join(dir, "started")); err == nil {
				cancel()
			}
			time.Sleep(time.Millisecond) // nothing tells of a file of another process
		}
	}()
	got := at(address, "").run(ctx, "consume", "orders", "-g", "billing", "--exec",
		`trap 'touch `+dir+`/ended; exit 1' TERM; touch `+dir+`/started; while :; do sleep 0.01; done`)
	require.NotEqual(t, 0, got.code)
	require.FileExists(t, filepath.Join(dir, "ended"))
	require.Equal(t, "1\n", must(t, at(address, ""), "consume", "orders", "-g", "billing", "-c", "1"))
}

// Nobody reads what the commands print: that is no fault of the records, and consume ends.
func TestACommandWhoseReaderHasGoneCostsNoRecord(t *testing.T) {
	address, _ := startServer(t)
	sh := at(address, "")
	must(t, sh, "queue", "create", "orders.dead")
	must(t, sh, "queue", "create", "orders", "--delivery-limit", "2", "--dead-letter", "orders.dead")
	must(t, at(address, strings.Repeat("1\n", 200)), "produce", "orders")
	must(t, sh, "group", "create", "orders", "billing", "--backoff", "1ms")
	r, w, err := os.Pipe()
	require.NoError(t, err)
	defer w.Close()
	done, talk := make(chan int, 1), &lockedBuffer{}
	go func() {
		a := at(address, "").app(w, talk)
		done <- a.run(context.Background(), []string{"consume", "orders", "-g", "billing", "--exec", "cat; echo"})
	}()
	lines := bufio.NewScanner(r)
	for range 3 {
		require.True(t, lines.Scan())
	}
	require.NoError(t, r.Close())
	require.Equal(t, 0, <-done)
	require.Empty(t, talk.String())
	require.Contains(t, must(t, sh, "dlq", "ls", "-o", "json"), `"letters": 0`)
	// One that fails without printing is seen to have no reader as well.
	failed := at(address, "").app(w, talk)
	require.Equal(t, 0, failed.run(context.Background(), []string{"consume", "orders", "-g", "billing", "--exec", "exit 1"}))
	require.Empty(t, talk.String())
	require.Equal(t, "1\n", must(t, sh, "consume", "orders", "-g", "billing", "-c", "1"))
	// Printed by consume itself, it ends too where nothing more comes.
	must(t, sh, "queue", "create", "quiet")
	quiet := at(address, "").app(w, talk)
	require.Equal(t, 0, quiet.run(context.Background(), []string{"consume", "quiet", "-g", "billing"}))
}

// consumeChild runs consume as a process of its own; its stdout comes when it has ended.
func consumeChild(t *testing.T, address string, args ...string) (command *exec.Cmd, stdout *lockedBuffer) {
	executable, err := os.Executable()
	require.NoError(t, err)
	command, stdout = exec.Command(executable, append([]string{"consume", "orders", "-g", "billing", "--server", address}, args...)...), &lockedBuffer{}
	command.Env, command.Stdout = append(os.Environ(), childVariable+"=1"), stdout
	require.NoError(t, command.Start())
	t.Cleanup(func() {
		_ = command.Process.Kill()
		_ = command.Wait()
	})
	return command, stdout
}

func TestACommandIsEndedByAClosedPipeOfItsOwn(t *testing.T) {
	address := groupQueue(t, "a:1\n")
	command, stdout := consumeChild(t, address, "-c", "1", "--exec", "/bin/sh -c 'kill -PIPE $$; echo ignored'; echo $?")
	require.NoError(t, command.Wait())
	require.Equal(t, "141\n", stdout.String(), "128 and the number of SIGPIPE")
}

// Not even SIGKILL leaves a command behind, nor what it has started.
func TestCommandsDieWithConsume(t *testing.T) {
	address := groupQueue(t, "a:1\nb:2\n")
	dir := t.TempDir()
	command, _ := consumeChild(t, address, "--parallel", "2", "--exec", `sleep 1000 & echo $! > `+dir+`/new-$LOCKSTEP_OFFSET; mv `+dir+`/new-$LOCKSTEP_OFFSET `+dir+`/$LOCKSTEP_OFFSET; wait`)
	for _, name := range []string{"0", "1"} {
		var text []byte
		require.Eventually(t, func() bool {
			var err error
			text, err = os.ReadFile(filepath.Join(dir, name))
			return err == nil
		}, 30*time.Second, 5*time.Millisecond)
		pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
		require.NoError(t, err)
		defer func() {
			require.Eventually(t, func() bool { return !runs(pid) }, 30*time.Second, 5*time.Millisecond)
		}()
		require.True(t, runs(pid))
	}
	require.NoError(t, command.Process.Kill())
}

// runs reports whether a process is there and no zombie.
func runs(pid int) bool {
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	_, state, _ := strings.Cut(string(text), ") ")
	return err == nil && !strings.HasPrefix(state, "Z")
}

// Commands that do what none should: each record comes to its end, and the next one begins.
func TestCommandsThatMisbehave(t *testing.T) {
	for name, c := range map[string]struct {
		lines, command string
		stdout, stderr string
		size           int // of what is printed, if not all of it is of interest
	}{
		"killed":                              {"a:1\n", `test $LOCKSTEP_DELIVERY_COUNT = 2 || kill -9 $$`, "", "lockstep: orders/0@0 failed, attempt 1: signal: killed\n", 0},
		"prints megabytes":                    {"a:1\na:2\n", `head -c 4000000 /dev/zero`, "", "", 8_000_000},
		"ignores its input":                   {"a:" + strings.Repeat("x", 300_000) + "\na:2\n", `exec 0</dev/null; echo done`, "done\ndone\n", "", 0},
		"leaves children that hold the pipes": {"a:1\na:2\n", `sleep 1000 & echo left`, "left\nleft\n", "", 0},
		"leaves children that ignore signals": {"a:1\n", `(trap '' TERM HUP INT; sleep 1000) & echo left; exit 0`, "left\n", "", 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			address := groupQueue(t, c.lines)
			must(t, at(address, ""), "group", "create", "orders", "billing", "--mode", "serial", "--backoff", "1ms")
			n := strings.Count(c.lines, "\n")
			if c.stderr != "" {
				n++ // attempts are counted
			}
			got := at(address, "").run(context.Background(), "consume", "orders", "-g", "billing", "-c", strconv.Itoa(n), "--exec", c.command)
			require.Equal(t, 0, got.code, got.stderr)
			require.Equal(t, c.stderr, got.stderr)
			if c.size > 0 {
				require.Len(t, got.stdout, c.size)
			} else {
				require.Equal(t, c.stdout, got.stdout)
			}
			must(t, at(address, "b:9\n"), "produce", "orders", "-K", ":")
			require.Equal(t, "9\n", must(t, at(address, ""), "consume", "orders", "-g", "billing", "-c", "1"), "all others are settled")
		})
	}
}

// A record whose key and headers fit into no environment fails by itself: the command runs
// for the others.
func TestARecordThatFitsIntoNoEnvironmentFailsAlone(t *testing.T) {
	address := groupQueue(t, strings.Repeat("k", 200_000)+":1\nb:2\n")
	must(t, at(address, ""), "group", "create", "orders", "billing", "--mode", "serial", "--backoff", "1m")
	got := at(address, "").run(context.Background(), "consume", "orders", "-g", "billing", "-c", "2", "--exec", "cat")
	require.Equal(t, 0, got.code, got.stderr)
	require.Equal(t, "2", got.stdout)
	require.Contains(t, got.stderr, "orders/0@0 failed, attempt 1: its key and headers do not fit into an environment")
}

// RULES Q4: a member says which records its group has lost to retention, and goes on.
func TestConsumeSaysWhatRetentionHasTaken(t *testing.T) {
	s, err := server.Start(context.Background(), server.Config{DataDir: t.TempDir(), Listen: "127.0.0.1:0", HTTP: "off", MinFreeBytes: -1, RetentionPeriod: 10 * time.Millisecond})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Close(context.Background())) })
	sh := at(s.Addr(), "")
	conn, err := client.Connect(t.Context(), s.Addr())
	require.NoError(t, err)
	defer conn.Close()
	_, err = conn.CreateDestination(t.Context(), client.Destination{Name: "events", Kind: client.Topic, Settings: client.Settings{RetentionBytes: 1 << 20, SegmentBytes: 1 << 20}})
	require.NoError(t, err)
	must(t, sh, "group", "create", "events", "etl", "--from", "earliest")
	p, err := conn.Producer(t.Context(), "events")
	require.NoError(t, err)
	for i := range 7 { // three to a segment
		_, err = p.Send(t.Context(), &client.Record{Value: []byte(strings.Repeat(strconv.Itoa(i), 300_000))})
		require.NoError(t, err)
	}
	start := func() uint64 {
		d, err := conn.Destination(t.Context(), "events")
		require.NoError(t, err)
		return d.Partitions[0].StartOffset
	}
	require.Eventually(t, func() bool { return start() == 3 }, 30*time.Second, 5*time.Millisecond)
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	out, talk, done := &lockedBuffer{}, &lockedBuffer{}, make(chan int, 1)
	go func() { done <- sh.app(out, talk).run(ctx, []string{"consume", "events", "-g", "etl", "-f", "%o."}) }()
	require.Eventually(t, func() bool { return out.String() == "3.4.5.6." && talk.String() != "" }, 30*time.Second, 5*time.Millisecond)
	cancel(errInterrupted)
	require.Equal(t, exitInterrupted, <-done)
	require.Equal(t, "lockstep: events/0: retention has removed the records at offsets 0 to 2 before group etl was done with them; it goes on at 3\n", talk.String())
}

// A member that makes its group with a short session timeout hears what that costs, as group
// create says; one of a group that has another hears nothing.
func TestConsumeWarnsOfAShortSessionTimeout(t *testing.T) {
	address := groupQueue(t, "a:1\na:2\n")
	sh := at(address, "")
	got := sh.run(t.Context(), "consume", "orders", "-g", "short", "-c", "1", "--session-timeout", "2s")
	require.Equal(t, 0, got.code)
	require.Contains(t, got.stderr, "lockstep: with a session timeout of 2s records may be delivered again when a leader hangs")
	must(t, sh, "group", "create", "orders", "long")
	got = sh.run(t.Context(), "consume", "orders", "-g", "long", "-c", "1", "--session-timeout", "2s")
	require.Equal(t, outcome{stdout: "2\n"}, got)
}

func TestFlagsOfMembersAreChecked(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second) // no broker is there to be waited for
	defer cancel()
	for _, test := range []struct{ args, text string }{
		{"consume orders --mode shared", "--mode is about members of a group; give --group NAME"},
		{"consume orders -g billing --offset 3", "--offset and --group exclude each other: a group has its own place"},
		{"consume orders -g billing --exit", "--exit and --group exclude each other: other members"},
		{"consume orders -g billing --partition 1", "--partition and --group exclude each other: the group says"},
		{"consume orders --group= --exit", "--group is empty; give a value, or leave it out"},
		{"consume orders -g billing --exec=", "--exec is empty; give a value, or leave it out"},
		{"consume orders -g billing --name=", "--name is empty; give a value, or leave it out"},
		{"dlq purge letters --group= --yes", "--group is empty; give a value, or leave it out"},
		{"dlq redrive letters --origin=", "--origin is empty; give a value, or leave it out"},
		{"explain queue orders --group=", "--group is empty; give a value, or leave it out"},
		{"produce orders --publisher=", "--publisher is empty; give a value, or leave it out"},
		{"consume orders -g billing --mode shared --scope key", "--scope is about --mode serial, not shared"},
		{"consume orders -g billing --mode serial --holder sticky", "--holder is about --mode serial --scope destination; give these, too"},
		{"group create orders billing --mode serial --holder sticky", "--holder is about groups that are serial by destination, and this one is serial by key; make it so with: lockstep group create orders billing --mode serial --scope destination --holder sticky"},
		{"consume orders -g billing --mode serial --scope key --holder any", "--holder is about --mode serial --scope destination"},
		{"consume orders -g billing --exec true -o json", "--exec prints nothing itself"},
		{"consume orders -g billing --parallel 2", "--parallel is about --exec"},
		{"consume orders -g billing --mode serail", `did you mean serial?`},
		{"group create orders billing --from earliest --at now", "--from and --at say where the group begins: give only one of them"},
		{"key park orders billing a --reason " + strings.Repeat("x", 257), "flag --reason: 257 bytes are more than 256"},
		{"group seek orders billing", "say where to: one of --to, --offset and --at"},
	} {
		got := shell{}.run(ctx, strings.Fields(test.args)...)
		require.Equal(t, 2, got.code, test.args)
		require.Contains(t, got.stderr, test.text)
	}
}

func TestAParkedKeyWaitsAndASkippedRecordIsPassedOver(t *testing.T) {
	address := groupQueue(t, "a:1\na:2\nb:3\na:4\n")
	sh := at(address, "")
	must(t, sh, "group", "create", "orders", "billing", "--mode", "serial")
	require.Equal(t, "1\n", must(t, at(address, ""), "consume", "orders", "-g", "billing", "-c", "1"))
	require.Equal(t, "parked \"a\" of orders for billing\n", must(t, sh, "key", "park", "orders", "billing", "a", "--reason", "later"))
	require.Contains(t, must(t, sh, "key", "show", "orders", "billing", "a"), "parked: later\n")
	require.Contains(t, must(t, sh, "key", "show", "orders", "billing", "a"), "then lockstep key unpark orders billing a; or lockstep key skip orders billing a passes its head over. [parked]\n")
	require.Contains(t, must(t, sh, "key", "show", "orders", "billing", "a", "-o", "json"), "lockstep key unpark orders billing a;")
	require.Regexp(t, `"scope": "\d+"`, must(t, sh, "key", "show", "orders", "billing", "a", "-o", "json"), "above 2^53 most readers round numbers")
	require.Contains(t, must(t, sh, "explain", "queue", "orders", "--key", "a"), "parked")
	must(t, at(address, "c:5\n"), "produce", "orders", "-K", ":")
	require.Equal(t, "3\n5\n", must(t, sh, "consume", "orders", "-g", "billing", "-c", "2"), "others go on")
	require.Equal(t, "skipped \"a\" of orders for billing: orders/0@1\n", must(t, sh, "key", "skip", "orders", "billing", "a"))
	must(t, sh, "key", "unpark", "orders", "billing", "a")
	require.Equal(t, "4\n", must(t, sh, "consume", "orders", "-g", "billing", "-c", "1"))
}

func TestAKeyIsSkippedAndRepairedThatNoMemberHasMet(t *testing.T) {
	address := groupQueue(t, "a:1\na:2\nb:3\na:4\n")
	sh := at(address, "")
	must(t, sh, "group", "create", "orders", "billing", "--mode", "serial")
	require.Equal(t, "skipped \"a\" of orders for billing: orders/0@0\n", must(t, sh, "key", "skip", "orders", "billing", "a"))
	must(t, sh, "key", "park", "orders", "billing", "a")
	require.Contains(t, must(t, sh, "key", "show", "orders", "billing", "a"), "\"a\": next is orders/0@1, delivered 0 times, failed 0 times\nparked")
	require.Equal(t, "repaired \"a\" of orders for billing: orders/0@1\n", must(t, at(address, "two\n"), "key", "repair", "orders", "billing", "a", "--value", "@-"))
	require.Contains(t, must(t, sh, "browse", "orders", "-g", "billing", "-o", "json"), `"value":"two\n"`, "what will be delivered")
	require.Equal(t, "skipped orders/0@2 of orders for other: orders/0@2\n", func() string {
		must(t, sh, "group", "create", "orders", "other")
		return must(t, sh, "key", "skip", "orders", "other", "--partition", "0", "--offset", "2")
	}())
	require.Equal(t, "two\n\n3\n4\n", must(t, sh, "consume", "orders", "-g", "billing", "-c", "3"), "the key goes on, in order, and what is stored stays")
	require.Equal(t, "2\n4\n", must(t, sh, "consume", "orders", "-g", "other", "-c", "2"), "what was done when it was created is gone")
	got := sh.run(context.Background(), "key", "skip", "orders", "billing", "a")
	require.Equal(t, 1, got.code)
	require.Contains(t, got.stderr, "the group is done with every record of it")
	for _, bad := range []string{"key skip orders billing", "key skip orders billing a --offset 1", "key repair orders billing a"} {
		require.Equal(t, 2, sh.run(context.Background(), strings.Fields(bad)...).code, bad)
	}
}

// What a partition without a leader would say is not known, and not nothing.
func TestAGroupOfPartitionsThatDoNotAnswerIsNotKnown(t *testing.T) {
	var out strings.Builder
	a := &app{stdout: &out}
	require.NoError(t, a.printGroup(&client.GroupInfo{Destination: "orders", Name: "billing", Partitions: []client.GroupPartition{
		{Number: 0, Floor: 3, Next: 5, Backlog: 2, Uncovered: []uint32{1, 2}}, {Number: 1, Problem: "no leader"},
	}}))
	require.Regexp(t, `(?m)^ *0 +3 +5 +2 +0 +0 +0 *$`, out.String())
	require.Regexp(t, `(?m)^ *1( +\?){6} +no leader$`, out.String())
	require.Contains(t, out.String(), "partitions without a consumer: [1 2]; start more consumers, or bind with cover\n", "which is no lack of an answer")
	require.Contains(t, out.String(), "1 partition without an answer: how the group stands there")
	require.NotContains(t, out.String(), "no members")
}

func TestASeekOfAGroupThatIsNotThereSaysSo(t *testing.T) {
	address := groupQueue(t, "a:1\n")
	got := at(address, "").run(context.Background(), "group", "seek", "orders", "nog", "--to", "earliest")
	require.Equal(t, 1, got.code)
	require.Contains(t, got.stderr, `"orders" has no group "nog"`)
	require.Empty(t, got.stdout)
	must(t, at(address, ""), "group", "create", "orders", "billing")
	got = at(address, "").run(context.Background(), "group", "seek", "orders", "billing", "--offset", "99", "--partition", "0")
	require.Equal(t, 1, got.code)
	require.Contains(t, got.stderr, "move it with --to earliest or --to latest")
}

// What changes nothing says so.
func TestGroupCommandsSayWhatTheyChange(t *testing.T) {
	address := groupQueue(t, "a:1\nb:2\na:3\n")
	sh := at(address, "")
	must(t, sh, "group", "create", "orders", "billing")
	require.Equal(t, "group billing of orders was not paused\n", must(t, sh, "group", "resume", "orders", "billing"))
	require.Equal(t, "group billing of orders paused\n", must(t, sh, "group", "pause", "orders", "billing"))
	require.Equal(t, "group billing of orders was paused already\n", must(t, sh, "group", "pause", "orders", "billing"))
	require.Equal(t, "group billing of orders resumed\n", must(t, sh, "group", "resume", "orders", "billing"))
	require.Equal(t, outcome{2, "", "lockstep: nothing to change in group \"billing\" of \"orders\"; give at least one setting, as in --ack-wait 5m (see lockstep group alter --help)\n"},
		sh.run(t.Context(), "group", "alter", "orders", "billing"))
	require.Contains(t, must(t, sh, "group", "alter", "orders", "billing", "--ack-wait", "5m"), "altered")
	require.Contains(t, must(t, sh, "consume", "orders", "--group", "billing", "-c", "3"), "3")
	require.Eventually(t, func() bool {
		return strings.Contains(must(t, sh, "group", "seek", "orders", "billing", "--to", "earliest", "--dry-run", "-o", "json"), `"are": "repeated"`)
	}, 30*time.Second, 20*time.Millisecond)
}

// A record that was taken back before its command was started says nothing about the
// command: the consumer goes on.
func TestACommandThatIsCalledOffBeforeItStartsIsNoneThatCannotBeStarted(t *testing.T) {
	guard, err := newGuard()
	require.NoError(t, err)
	defer guard.close()
	ctx, stop := context.WithCancel(t.Context())
	stop()
	err = runShell(ctx, guard, "exit 0", &client.Delivery{}, io.Discard, io.Discard)
	require.ErrorIs(t, err, context.Canceled)
	require.NotErrorIs(t, err, errCommand)
}

// What a downstream refuses late writes by is in JSON as in the environment of --exec, and
// counts have the names that browse gives them.
func TestR_X_2_JSONOfMembersHasTheFencingToken(t *testing.T) {
	address := groupQueue(t, "a:1\n")
	sh := at(address, "")
	consume := []string{"consume", "orders", "-g", "billing", "--mode", "serial", "-c", "1"}
	environment := must(t, sh, append(consume, "--exec", `echo $LOCKSTEP_EPOCH $LOCKSTEP_DELIVERY_COUNT; exit 1`)...)
	var epoch uint64
	var count int
	_, err := fmt.Sscan(environment, &epoch, &count)
	require.NoError(t, err, environment)
	var r struct {
		Group      string `json:"group"`
		LeaseEpoch uint64 `json:"lease_epoch"`
		Deliveries int    `json:"deliveries"`
		Attempts   int    `json:"attempts"`
	}
	require.NoError(t, json.Unmarshal([]byte(must(t, sh, append(consume, "-o", "json")...)), &r))
	require.Greater(t, r.LeaseEpoch, epoch, "a later delivery has a higher one")
	require.Equal(t, count+1, r.Deliveries)
	require.Equal(t, 1, r.Attempts)
	require.Equal(t, "billing", r.Group)
}

// Commands that change something say in JSON what they have done, in the names that others use.
func TestCommandsOnGroupsAndKeysAnswerInJSON(t *testing.T) {
	sh := at(groupQueue(t, "a b:1\na b:2\n"), "")
	must(t, sh, "group", "create", "orders", "billing", "--mode", "serial")
	for _, c := range []struct{ command, want string }{
		{"park", `{"partition":0,"group":"billing","key":"a b","outcome":"parked"}`},
		{"skip", `{"partition":0,"group":"billing","key":"a b","offset":0,"outcome":"skipped"}`}, // which unparks it
		{"park", `{"partition":0,"group":"billing","key":"a b","outcome":"parked"}`},
		{"unpark", `{"partition":0,"group":"billing","key":"a b","outcome":"unparked"}`},
		{"unpark", `{"partition":0,"group":"billing","key":"a b","outcome":"not parked"}`},
	} {
		require.JSONEq(t, c.want, must(t, sh, "key", c.command, "orders", "billing", "a b", "-o", "json"))
	}
	require.JSONEq(t, `{"partition":0,"group":"billing","key":"a b","offset":1,"outcome":"repaired"}`, must(t, sh, "key", "repair", "orders", "billing", "a b", "--value", "3", "-o", "json"))
	var info client.GroupInfo
	require.NoError(t, json.Unmarshal([]byte(must(t, sh, "group", "alter", "orders", "billing", "--ack-wait", "5m", "-o", "json")), &info))
	require.Equal(t, "billing", info.Name)
	require.EqualValues(t, 300_000, info.Settings.AckWaitMs)
}

// What several change at a time is all changed: each changes what it was given, and nothing else.
func TestWhoAltersAGroupAtTheSameTimeLosesNothing(t *testing.T) {
	address := groupQueue(t, "a:1\n")
	must(t, at(address, ""), "group", "create", "orders", "billing", "--dead-letter=orders.dead", "--delivery-limit=3")
	flags := []string{"--ack-wait=5m", "--session-timeout=11s", "--revoke-grace=7s", "--backoff=3s", "--backoff-max=9s", "--delivery-limit=4", "--scope-window=5"}
	outcomes := make([]outcome, len(flags))
	var altering sync.WaitGroup
	for i, flag := range flags {
		altering.Go(func() { outcomes[i] = at(address, "").run(t.Context(), "group", "alter", "orders", "billing", flag) })
	}
	altering.Wait()
	for i, got := range outcomes {
		require.Equal(t, 0, got.code, "%s: %s", flags[i], got.stderr)
	}
	var list []client.GroupInfo
	require.NoError(t, json.Unmarshal([]byte(must(t, at(address, ""), "group", "ls", "orders", "-o", "json")), &list))
	s := list[0].Own
	require.Equal(t, []uint32{300_000, 11_000, 7000, 3000, 9000, 4, 5}, []uint32{s.AckWaitMs, s.SessionMs, s.RevokeMs, s.BackoffMs, s.BackoffMaxMs, s.DeliveryLimit, s.Window})
	require.Equal(t, "orders.dead", s.DeadLetter)
}

// What would count for nothing is refused with the command that means it.
func TestAScopeOfASharedGroupIsRefusedWithWhatToDo(t *testing.T) {
	sh := at(groupQueue(t, "a:1\n"), "")
	must(t, sh, "group", "create", "orders", "billing")
	got := sh.run(t.Context(), "group", "alter", "orders", "billing", "--scope", "publisher")
	const command = "lockstep group alter orders billing --mode serial --scope publisher"
	require.Equal(t, outcome{2, "", "lockstep: --scope is about serial groups, and this one is shared; make it serial with: " + command + " (see lockstep group alter --help)\n"}, got)
	must(t, sh, strings.Fields(command)[1:]...)
}
