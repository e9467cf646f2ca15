package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/client"
	"github.com/lockstepmq/lockstep/lockstest"
	"github.com/lockstepmq/lockstep/wire"
)

func TestDeadLettersAreShownByteForByte(t *testing.T) {
	address, _ := startServer(t)
	sh := at(address, "")
	must(t, sh, "queue", "create", "orders.dead")
	must(t, sh, "queue", "create", "orders", "--delivery-limit", "1", "--dead-letter", "orders.dead")
	must(t, at(address, "\xfek:\xffbin\n"), "produce", "orders", "-K", ":", "--header", "trace=7", "--header", "trace=8")
	must(t, sh, "consume", "orders", "-g", "billing", "-c", "1", "--exec", "exit 1")
	var got string
	require.Eventually(t, func() bool {
		got = must(t, sh, "dlq", "show", "orders.dead", "-o", "json")
		return got != ""
	}, 30*time.Second, 20*time.Millisecond)
	require.Contains(t, got, `  "key": "/ms=",
  "key_encoding": "base64",
  "value": "/2Jpbg==",
  "value_encoding": "base64",
  "headers": [
    {
      "name": "trace",
      "value": "7"
    },
    {
      "name": "trace",
      "value": "8"
    }
  ]
}
`)
}

// Who removes where dead letters go, or a queue of which some are not written yet, is told so.
func TestRemovingSaysWhatBecomesOfDeadLetters(t *testing.T) {
	address, _ := startServer(t)
	sh := at(address, "")
	must(t, sh, "queue", "create", "dead")
	must(t, sh, "queue", "create", "orders", "--delivery-limit", "1", "--dead-letter", "dead")
	must(t, sh, "queue", "create", "bills")
	must(t, sh, "group", "create", "bills", "own", "--delivery-limit", "1", "--dead-letter", "dead")
	got := sh.run(t.Context(), "queue", "rm", "dead")
	require.Equal(t, outcome{0, "removed queue \"dead\"\n",
		"lockstep: dead letters of orders, bills/own are to go to \"dead\", and wait until it is there again; create it with: lockstep queue create dead\n"}, got)
	must(t, at(address, "bad\n"), "produce", "orders")
	sh.run(t.Context(), "consume", "orders", "-g", "billing", "-c", "1", "--exec", "exit 1")
	require.Eventually(t, func() bool {
		return strings.Contains(must(t, sh, "explain", "queue", "orders"), "letter_not_accepted")
	}, 30*time.Second, 20*time.Millisecond)
	got = sh.run(t.Context(), "queue", "rm", "orders")
	require.Equal(t, outcome{0, "removed queue \"orders\"\n",
		"lockstep: 1 dead letter of group billing went with it that could not be written to \"dead\"\n"}, got)
	got = sh.run(t.Context(), "queue", "rm", "bills")
	require.Equal(t, outcome{0, "removed queue \"bills\"\n", ""}, got)
}

// R-MQC-12: sending many dead letters back, or giving them up, takes as long as it gets on: the
// time that a request may take is not theirs.
func TestR_MQC_12_RedrivesAndPurgesOutliveARequest(t *testing.T) {
	address, _ := startServer(t)
	sh := at(address, "")
	must(t, sh, "queue", "create", "dead")
	must(t, sh, "queue", "create", "orders")
	letter := []string{"produce", "dead", "--header", wire.LetterOrigin + "=orders/0"}
	hurried := sh
	hurried.timeout = 1
	require.Contains(t, hurried.run(t.Context(), "dlq", "ls").stderr, "in time", "of a request")
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"redrive", "dead", "--dry-run"}, "would redrive 1 letter\n"}, {[]string{"redrive", "dead"}, "redrove 1 letter\n"},
		{[]string{"purge", "dead", "--yes"}, "purged 1 dead letter of \"dead\"\n"},
	} {
		if c.args[len(c.args)-1] != "dead" { // the redrive takes that of its dry run
			must(t, at(address, "x\n"), letter...)
		}
		require.Contains(t, must(t, hurried, append([]string{"dlq"}, c.args...)...), c.want)
	}
}

// What is no letter is not purged, and does not count.
func TestPurgeLeavesWhatIsNoLetter(t *testing.T) {
	address, _ := startServer(t)
	sh := at(address, "")
	must(t, sh, "queue", "create", "mixed")
	must(t, sh, "queue", "create", "orders", "--delivery-limit", "1", "--dead-letter", "mixed")
	must(t, at(address, "1\n2\n3\n"), "produce", "mixed")
	for _, more := range [][]string{nil, {"--yes"}} {
		require.Contains(t, must(t, sh, append([]string{"dlq", "purge", "mixed"}, more...)...), `"mixed" holds no dead letters`)
	}
	require.Equal(t, "redrove 0 letters\n", must(t, sh, "dlq", "redrive", "mixed"))
	must(t, sh, "group", "create", "orders", "billing")
	require.Equal(t, "no dead letters in \"orders\"; those of \"orders\" go to mixed\n", sh.run(t.Context(), "dlq", "show", "orders").stderr)
	require.Equal(t, "redrove 0 letters; those of \"orders\" go to mixed\n", must(t, sh, "dlq", "redrive", "orders"))
	require.Equal(t, "\"orders\" holds no dead letters; other records stay; those of \"orders\" go to mixed\n", must(t, sh, "dlq", "purge", "orders"))
	require.Equal(t, "[]\n", must(t, sh, "group", "ls", "mixed", "-o", "json"), "nobody else's records are held")
	must(t, at(address, "bad\n"), "produce", "orders")
	got := sh.run(context.Background(), "consume", "orders", "-g", "billing", "-c", "1", "--exec", "exit 1")
	require.Equal(t, 0, got.code, got.stderr)
	require.Eventually(t, func() bool {
		return strings.Contains(sh.run(context.Background(), "dlq", "purge", "mixed").stderr, "it holds 1 dead letter;")
	}, 30*time.Second, 50*time.Millisecond)
	require.Equal(t, "purged 1 dead letter of \"mixed\"\n", must(t, sh, "dlq", "purge", "mixed", "--yes"))
	require.Equal(t, "1\n2\n3\n", must(t, sh, "consume", "mixed", "-g", "dlq", "-c", "3"), "the rest is as it was")
}

// A letter whose origin is gone stays and says so; those behind it go back.
func TestLettersWithoutAnOriginHoldUpNoOthers(t *testing.T) {
	address, _ := startServer(t)
	sh := at(address, "")
	must(t, sh, "queue", "create", "dead")
	for _, name := range []string{"gone", "orders"} {
		must(t, sh, "queue", "create", name, "--delivery-limit", "1", "--dead-letter", "dead")
		must(t, at(address, name+"\n"), "produce", name)
		got := sh.run(context.Background(), "consume", name, "-g", "billing", "-c", "1", "--exec", "exit 1")
		require.Equal(t, 0, got.code, got.stderr)
		require.Eventually(t, func() bool {
			return strings.Contains(must(t, sh, "dlq", "show", "dead"), "from "+name+"/0@0")
		}, 30*time.Second, 50*time.Millisecond)
	}
	must(t, sh, "queue", "rm", "gone")
	for _, c := range []struct {
		args   []string
		result string
	}{{[]string{"dlq", "redrive", "dead", "--dry-run"}, "would redrive 1 letter\n"}, {[]string{"dlq", "redrive", "dead"}, "redrove 1 letter\n"}} {
		got := sh.run(context.Background(), c.args...)
		require.Equal(t, 1, got.code)
		require.Equal(t, "dead/0@1 to orders/0\n"+c.result, got.stdout)
		require.Contains(t, got.stderr, "lockstep: dead/0@0 cannot go back to gone/0: ")
		require.Contains(t, got.stderr, "letters that stay, because their origin is gone: 1;")
	}
	require.Contains(t, must(t, sh, "dlq", "show", "dead"), "from gone/0@0")
	require.Equal(t, "orders\n", must(t, sh, "consume", "orders", "-g", "billing", "-c", "1"))
}

func TestAMissingDeadLetterDestinationIsSaid(t *testing.T) {
	address, _ := startServer(t)
	sh := at(address, "")
	const warning = "lockstep: dead letters are to go to \"orders.dead\", which does not exist yet; create it with: lockstep queue create orders.dead\n"
	for _, args := range []string{
		"queue create orders --delivery-limit 2 --dead-letter orders.dead", "queue alter orders --dead-letter orders.dead",
		"group create orders billing --delivery-limit 3 --dead-letter orders.dead", "group alter orders billing --delivery-limit 4",
	} {
		got := sh.run(context.Background(), strings.Fields(args)...)
		require.Equal(t, 0, got.code, args)
		require.Equal(t, warning, got.stderr, args)
	}
	must(t, sh, "queue", "create", "orders.dead")
	got := sh.run(context.Background(), "queue", "alter", "orders", "--dead-letter", "orders.dead")
	require.Equal(t, outcome{stdout: "altered queue \"orders\" (1 partition)\n"}, got)
}

// What an operator does about dead letters: sees them, sends some back, gives up the rest.
func TestDeadLettersAreListedShownRedrivenAndPurged(t *testing.T) {
	address, _ := startServer(t)
	sh := at(address, "")
	must(t, sh, "queue", "create", "orders", "--delivery-limit", "1", "--dead-letter", "orders.dead")
	require.Contains(t, must(t, sh, "queue", "describe", "orders"), `Dead letter: to "orders.dead" after 1 attempt, unless a group says otherwise`)
	must(t, at(address, "a:1\nb:2\na:3\n"), "produce", "orders", "-K", ":", "--header", "trace=7")
	require.Contains(t, must(t, sh, "dlq", "ls"), "it does not exist: lockstep queue create orders.dead")
	must(t, sh, "queue", "create", "orders.dead")
	got := sh.run(context.Background(), "consume", "orders", "-g", "billing", "--mode", "serial", "-c", "3", "--parallel", "1", "--exec", "echo no such customer >&2; exit 1")
	require.Equal(t, 0, got.code, got.stderr)
	require.Contains(t, must(t, sh, "group", "describe", "orders", "billing"), `after 1 attempt a record goes to "orders.dead" (as orders says)`)

	require.Eventually(t, func() bool {
		return strings.Contains(sh.run(context.Background(), "dlq", "redrive", "orders.dead", "--dry-run").stdout, "would redrive 3 letters\n")
	}, 30*time.Second, 50*time.Millisecond)
	listed := regexp.MustCompile(`orders.dead +orders +3 .* ago +0`)
	require.Eventually(t, func() bool { return listed.MatchString(must(t, sh, "dlq", "ls")) }, 30*time.Second, 50*time.Millisecond,
		"the group learns that its letters are written after they can be read")
	require.Regexp(t, `^orders.dead/0@0  from orders/0@0, group billing, delivery limit.*
  .*, delivered 1 time, failed 1 time
  key:   "a"
  trace: "7"
  value: "1"
$`, must(t, sh, "dlq", "show", "orders.dead", "--limit", "1"))
	require.Contains(t, must(t, sh, "dlq", "show", "orders.dead", "--key", "b", "-o", "json"), `"value": "2"`)

	require.Equal(t, "orders.dead/0@0 to orders/0\norders.dead/0@2 to orders/0\nredrove 2 letters\n", must(t, sh, "dlq", "redrive", "orders.dead", "--key", "a"))
	require.Contains(t, must(t, sh, "dlq", "redrive", "orders.dead", "--dry-run"), "would redrive 1 letter\n", "only b is left")
	require.Equal(t, "1\n3\n", must(t, sh, "consume", "orders", "-g", "billing", "-c", "2"), "they are back, in order")

	refused := sh.run(context.Background(), "dlq", "purge", "orders.dead")
	require.Equal(t, 1, refused.code)
	require.Contains(t, refused.stderr, "it holds 1 dead letter; repeat the command with --yes")
	require.Equal(t, "purged 1 dead letter of \"orders.dead\"\n", must(t, sh, "dlq", "purge", "orders.dead", "--yes"))
	require.Contains(t, must(t, sh, "dlq", "redrive", "orders.dead"), "redrove 0 letters\n")
	require.Equal(t, "[]\n", must(t, sh, "group", "ls", "orders.dead", "-o", "json"), "nothing holds the queue")
	require.Equal(t, 2, sh.run(context.Background(), "dlq", "show", "orders.dead", "--offset", "1").code)
}

// Where several groups feed one queue for dead letters each is listed, and what is shown, sent
// back or purged can be chosen by it.
func TestDeadLettersAreChosenByTheirGroup(t *testing.T) {
	address, _ := startServer(t)
	sh := at(address, "")
	must(t, sh, "queue", "create", "dead")
	for _, name := range []string{"orders", "returns"} {
		must(t, sh, "queue", "create", name, "--delivery-limit", "1", "--dead-letter", "dead")
		for _, group := range []string{"audit", "billing"} {
			must(t, sh, "group", "create", name, group)
		}
		must(t, at(address, name+"\n"), "produce", name)
		for _, group := range []string{"audit", "billing"} {
			got := sh.run(context.Background(), "consume", name, "-g", group, "-c", "1", "--exec", "exit 1")
			require.Equal(t, 0, got.code, got.stderr)
		}
	}
	const all = "orders/audit 1, orders/billing 1, returns/audit 1, returns/billing 1"
	require.Eventually(t, func() bool { return strings.Contains(must(t, sh, "dlq", "ls"), all) }, 30*time.Second, 50*time.Millisecond)
	require.Contains(t, must(t, sh, "dlq", "ls", "-o", "json"), `"origin": "returns",
        "group": "billing",
        "letters": 1`)
	only := []string{"--origin", "returns", "--group", "audit"}
	require.Equal(t, 1, strings.Count(must(t, sh, append([]string{"dlq", "show", "dead"}, only...)...), "from returns/0@0, group audit"))
	refused := sh.run(context.Background(), append([]string{"dlq", "purge", "dead"}, only...)...)
	require.Contains(t, refused.stderr, "it holds 1 dead letter of that kind; repeat the command with --yes")
	require.Equal(t, "purged 1 dead letter of \"dead\"\n", must(t, sh, append([]string{"dlq", "purge", "dead", "--yes"}, only...)...))
	require.Contains(t, must(t, sh, append([]string{"dlq", "purge", "dead"}, only...)...), "holds no dead letters of that kind")
	require.Contains(t, must(t, sh, "dlq", "redrive", "dead", "--group", "billing"), "redrove 2 letters\n")
	require.Contains(t, must(t, sh, "dlq", "ls"), "orders/audit 1 ")
}

// One record of a group that goes by keys can be given up and shown by its offset, wherever it
// stands; it cannot be parked alone, and what is not parked cannot be unparked.
func TestOneRecordOfAKeyIsSkippedByItsOffset(t *testing.T) {
	address, _ := startServer(t)
	sh := at(address, "")
	must(t, sh, "queue", "create", "orders")
	must(t, sh, "group", "create", "orders", "billing", "--mode", "serial")
	must(t, at(address, "a:1\na:2\na:3\n"), "produce", "orders", "-K", ":")
	one := []string{"orders", "billing", "--partition", "0", "--offset"}
	require.Contains(t, must(t, sh, append([]string{"key", "show"}, append(one, "1")...)...), "next is orders/0@1")
	require.Equal(t, "skipped orders/0@1 of orders for billing: orders/0@1\n", must(t, sh, append([]string{"key", "skip"}, append(one, "1")...)...))
	for offset, why := range map[string]string{"1": "the group is done with it", "9": "the group is done with every record of it"} {
		got := sh.run(context.Background(), append([]string{"key", "skip"}, append(one, offset)...)...)
		require.Equal(t, 1, got.code)
		require.Contains(t, got.stderr, why)
	}
	refused := sh.run(context.Background(), append([]string{"key", "park"}, append(one, "2")...)...)
	require.Equal(t, 1, refused.code)
	require.Contains(t, refused.stderr, "group billing goes by key, and the record at offset 2 has one: park that")
	require.Equal(t, "\"a\" of orders was not parked for billing\n", must(t, sh, "key", "unpark", "orders", "billing", "a"))
	require.Equal(t, "1\n3\n", must(t, sh, "consume", "orders", "-g", "billing", "-c", "2"))
}

// Who removes a group hears of the dead letters that it leaves.
func TestARemovedGroupSaysWhatItLeaves(t *testing.T) {
	address, _ := startServer(t)
	sh := at(address, "")
	sh.run(context.Background(), "queue", "create", "orders", "--delivery-limit", "1", "--dead-letter", "dead")
	must(t, at(address, "bad\n"), "produce", "orders")
	got := sh.run(context.Background(), "consume", "orders", "-g", "billing", "-c", "1", "--exec", "exit 1")
	require.Equal(t, 0, got.code, got.stderr)
	got = sh.run(context.Background(), "group", "rm", "orders", "billing")
	require.Equal(t, outcome{
		stdout: "group billing of orders removed\n",
		stderr: "lockstep: 1 dead letter of it will be written to \"dead\" as soon as that takes them; their records are kept until then\n",
	}, got)
	must(t, sh, "queue", "create", "dead")
	require.Eventually(t, func() bool { return strings.Contains(must(t, sh, "dlq", "show", "dead"), "group billing") }, 30*time.Second, 50*time.Millisecond)
}

// The letters of a removed group that nobody takes are shown with what to do, and given up.
func TestLettersOfARemovedGroupAreShownAndGivenUp(t *testing.T) {
	address, _ := startServer(t)
	sh := at(address, "")
	must(t, sh, "queue", "create", "orders", "--delivery-limit", "1", "--dead-letter", "dead")
	for _, group := range []string{"billing", "audit"} {
		must(t, sh, "group", "create", "orders", group)
	}
	must(t, at(address, "bad\n"), "produce", "orders")
	for _, group := range []string{"billing", "audit"} {
		sh.run(t.Context(), "consume", "orders", "-g", group, "-c", "1", "--exec", "exit 1")
	}
	require.Eventually(t, func() bool {
		return strings.Contains(must(t, sh, "dlq", "ls", "-o", "json"), `"waiting": 2`)
	}, 30*time.Second, 20*time.Millisecond)
	got := sh.run(t.Context(), "group", "rm", "orders", "billing")
	require.Contains(t, got.stderr, `1 dead letter of it will be written to "dead"`)
	require.Eventually(t, func() bool {
		got := must(t, sh, "dlq", "ls", "-o", "json")
		return strings.Contains(got, `"waiting": 2`) && strings.Contains(got, `orders/billing (removed)`) && strings.Contains(got, "lockstep group rm orders billing --letters gives them up")
	}, 30*time.Second, 20*time.Millisecond)
	const why = `1 dead letter of it not written to "dead" yet: there is no "dead": create it, or name another one for dead letters`
	require.Eventually(t, func() bool {
		return strings.Contains(must(t, sh, "explain", "queue", "orders"), "billing, orders/0: The group is removed, and its records are kept for "+why+
			". lockstep group rm orders billing --letters gives them up. [letter_not_accepted: dead]\n")
	}, 30*time.Second, 20*time.Millisecond)
	for _, more := range [][]string{{"--group", "billing"}, {"--group", "billing", "--partition", "0", "--offset", "0"}} {
		got := must(t, sh, append([]string{"explain", "queue", "orders"}, more...)...)
		require.Equal(t, 1, strings.Count(got, "\n"), got)
		require.Contains(t, got, why)
	}
	require.NotContains(t, must(t, sh, "explain", "queue", "orders", "--key", "a"), "billing")
	require.Regexp(t, `orders +billing +removed, 1 dead letter to be written\n`, must(t, sh, "group", "ls"))
	require.Regexp(t, `orders +billing +removed, 1 dead letter to be written\n`, must(t, sh, "group", "ls", "orders"))
	require.NotContains(t, must(t, sh, "group", "ls", "orders", "-o", "json"), "billing", "it is no group")
	left := "partition 0: a group billing was removed, with " + why + "; lockstep group rm orders billing --letters gives them up\n"
	got = sh.run(t.Context(), "group", "describe", "orders", "billing")
	require.Contains(t, got.stderr, left)
	require.NotEqual(t, 0, got.code)
	require.Contains(t, must(t, sh, "group", "describe", "orders", "audit"), "partition 0: 1 dead letter to be written; lockstep explain says what they wait for\n")
	must(t, sh, "group", "create", "orders", "billing")
	require.Contains(t, must(t, sh, "group", "describe", "orders", "billing"), left, "of the one before")
	must(t, sh, "group", "rm", "orders", "billing")
	require.Equal(t, "gave up 1 dead letter of billing\n", must(t, sh, "group", "rm", "orders", "billing", "--letters"))
	require.Equal(t, "group audit of orders removed\ngave up 1 dead letter of audit\n", must(t, sh, "group", "rm", "orders", "audit", "--letters"))
	require.Contains(t, must(t, sh, "dlq", "ls", "-o", "json"), `"waiting": 0`)
	got = sh.run(t.Context(), "group", "rm", "orders", "billing", "--letters")
	require.NotEqual(t, 0, got.code)
}

// A redrive that ends removes the group that was made for it: one that runs beside it goes on
// with another, and no letter is back twice.
func TestRuleQ3_ARedriveOutlivesItsGroup(t *testing.T) {
	address, _ := startServer(t)
	sh := at(address, "")
	must(t, sh, "queue", "create", "dead", "--partitions", "3")
	must(t, sh, "queue", "create", "orders")
	conn, err := client.Connect(t.Context(), address)
	require.NoError(t, err)
	defer conn.Close()
	const each = 2 // letters of a partition
	for n := range uint32(3) {
		p, err := conn.Producer(t.Context(), "dead", client.Partition(n))
		require.NoError(t, err)
		for range each {
			_, err := p.Send(t.Context(), &client.Record{Value: []byte("x"), Headers: []client.Header{{Key: wire.LetterOrigin, Value: []byte("orders/0")}}})
			require.NoError(t, err)
		}
		require.NoError(t, p.Close(t.Context()))
	}
	removed := false
	n, err := conn.Redrive(t.Context(), "dead", client.LetterFilter{}, func(l *client.Letter, err error) {
		require.NoError(t, err)
		if l.Partition == 1 && !removed { // those of partition 0 are on their way
			removed = true
			require.NoError(t, conn.RemoveGroup(t.Context(), "dead", "dlq"))
		}
	})
	require.NoError(t, err)
	require.True(t, removed)
	require.Equal(t, 3*each, n)
	back := 0
	for _, err := range conn.Browse(t.Context(), "orders", client.BrowseOptions{}) {
		require.NoError(t, err)
		back++
	}
	require.Equal(t, 3*each, back)
	for l, err := range conn.DeadLetters(t.Context(), "dead", client.LetterFilter{}) {
		require.NoError(t, err)
		require.Fail(t, "a letter is left", "%d@%d", l.Partition, l.Offset)
	}
}

// A partition that nobody leads is named within seconds, and what is not known is no success.
func TestDeadLettersOfPartitionsWithoutALeaderAreMissedAloud(t *testing.T) {
	c := lockstest.StartCluster(t, 2, lockstest.Logger(slog.New(slog.DiscardHandler)))
	sh := at(c.Broker(1).Addr(), "")
	must(t, sh, "queue", "create", "orders.dead", "--partitions", "2", "--replicas", "1")
	must(t, sh, "queue", "create", "orders", "--replicas", "1", "--delivery-limit", "1", "--dead-letter", "orders.dead")
	must(t, sh, "group", "create", "orders", "billing")
	var partitions []partitionJSON
	require.NoError(t, json.Unmarshal([]byte(must(t, sh, "partition", "ls", "orders.dead", "-o", "json")), &partitions))
	lost := slices.IndexFunc(partitions, func(p partitionJSON) bool { return p.Leader == 2 })
	require.GreaterOrEqual(t, lost, 0, "each node has one")
	name := fmt.Sprintf("orders.dead/%d", lost)
	must(t, sh, "dlq", "show", "orders.dead")
	sh.stdin = strings.NewReader("readable\n")
	must(t, sh, "produce", "orders.dead", "--partition", fmt.Sprint(1-lost))
	c.Stop(2)
	for _, args := range [][]string{{"dlq", "ls"}, {"dlq", "ls", "-o", "json"}, {"dlq", "purge", "orders.dead", "--yes"}, {"browse", "orders.dead"}} {
		sh.timeout = time.Minute // who waits for that long has not been told
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Second)
		got := sh.run(ctx, args...)
		cancel()
		require.Equal(t, 1, got.code, "%v: %s%s", args, got.stdout, got.stderr)
		require.Regexp(t, "no leader of .*"+name, got.stderr, "orders/0 may be lost too")
		require.Contains(t, got.stderr, "lockstep cluster health")
		require.NotContains(t, got.stdout, fmt.Sprintf("orders.dead/%d", 1-lost))
		require.Equal(t, args[0] == "browse", strings.Contains(got.stdout, "readable"), "what answers is printed")
	}
	must(t, sh, "dlq", "show", "orders.dead", "--partition", fmt.Sprint(1-lost))
}

// A topic keeps letters as it keeps all records, by its retention: a group that is made later from
// its beginning gets those that went back, too, and a redrive does not send them back again.
func TestADeadLetterTopicKeepsWhatWentBack(t *testing.T) {
	address := groupQueue(t, "a:1\n")
	sh := at(address, "")
	must(t, sh, "topic", "create", "orders.dead")
	must(t, sh, "queue", "alter", "orders", "--delivery-limit", "1", "--dead-letter", "orders.dead")
	must(t, sh, "consume", "orders", "-g", "billing", "-c", "1", "--exec", "false")
	require.Eventually(t, func() bool { return strings.Contains(must(t, sh, "dlq", "show", "orders.dead"), "from orders/0@0") }, 30*time.Second, 50*time.Millisecond)
	require.Contains(t, must(t, sh, "dlq", "redrive", "orders.dead"), "redrove 1 letter\n")
	must(t, sh, "group", "create", "orders.dead", "late", "--from", "earliest")
	require.Empty(t, must(t, sh, "dlq", "show", "orders.dead"), "it is dealt with")
	require.Contains(t, must(t, sh, "dlq", "redrive", "orders.dead"), "redrove 0 letters\n")
	require.Equal(t, "1\n", must(t, sh, "consume", "orders.dead", "-g", "late", "-c", "1"))
	got := sh.run(t.Context(), "dlq", "purge", "orders.dead", "--yes")
	require.Equal(t, 1, got.code)
	require.Contains(t, got.stderr, "is a topic, which keeps records by its retention")
}
