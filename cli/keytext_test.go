package cli

import (
	"context"
	"encoding/json"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/client"
	"github.com/lockstepmq/lockstep/wire"
)

// What is printed for a key is that key when it is given to a command again.
func TestKeysArePrintedAsTheyAreTaken(t *testing.T) {
	for key, want := range map[string]string{
		"customer-17": "customer-17", "two words": "two words", `"quoted"`: `"quoted"`, "ключ": "ключ",
		"": "hex:", "\x00\x01": "hex:0001", "a\nb": "hex:610a62", "\xfe": "hex:fe", "hex:00": "hex:6865783a3030", "hex:": "hex:6865783a", "-1": "hex:2d31", "a-1": "a-1", "\ufffd": "hex:efbfbd",
	} {
		require.Equal(t, want, keyText([]byte(key)))
		got, err := parseKey(want)
		require.NoError(t, err)
		require.Equal(t, key, string(got))
	}
	for text, says := range map[string]string{
		"":        "the key of no bytes is written hex:",
		"hex:0":   `a key that begins so is written hex:6865783a30`,
		"hex:xyz": `two hexadecimal digits for each byte follow hex:`,
	} {
		_, err := parseKey(text)
		require.ErrorContains(t, err, says)
	}
	for _, line := range [][]string{
		{"key", "park", "orders", "g", ""}, {"key", "show", "orders", "g", "hex:z"}, {"explain", "queue", "orders", "--key", ""},
		{"explain", "queue", "orders", "--publisher", "hex:0"}, {"dlq", "redrive", "dead", "--key", ""}, {"request", "orders", "x", "--key", ""},
	} {
		require.Equal(t, 2, shell{}.run(context.Background(), line...).code, line)
	}
}

// What is parked is listed with its name, since when and why, so that the commands on keys can
// be called with it; explain says the same.
func TestWhatIsParkedIsListed(t *testing.T) {
	address := groupQueue(t, "a:1\n\x00\xff:2\n:3\na:4\n")
	sh := at(address, "")
	must(t, sh, "group", "create", "orders", "billing", "--mode", "serial")
	for _, key := range []string{"a", "hex:00ff", "hex:", "nobody"} {
		must(t, sh, "key", "park", "orders", "billing", key, "--reason", "it is "+key)
	}
	text := must(t, sh, "group", "describe", "orders", "billing")
	require.Regexp(t, `(?m)^PARTITION +PARKED +FROM +FOR +REASON\n +0 +a +0 +\d+s +it is a\n +0 +hex:00ff +\d +\d+s +it is hex:00ff\n +0 +hex: +\d +\d+s +it is hex:\n +0 +key with hash [0-9a-f]{16} +\d +\d+s +it is nobody$`, text)
	var info client.GroupInfo
	require.NoError(t, json.Unmarshal([]byte(must(t, sh, "group", "describe", "orders", "billing", "-o", "json")), &info))
	require.Len(t, info.Partitions[0].ParkedScopes, 4)
	require.Equal(t, "hex:00ff", info.Partitions[0].ParkedScopes[1].Name)
	why := must(t, sh, "explain", "queue", "orders")
	require.Contains(t, why, `The key "hex:00ff" is parked from offset 0 on: it is hex:00ff.`)
	require.Contains(t, why, "lockstep key unpark orders billing hex:00ff; ")
	require.Contains(t, why, "A key is parked from offset 0 on: it is nobody.")
	require.Contains(t, why, " Since ")
	require.Contains(t, must(t, sh, "explain", "queue", "orders", "--key", "hex:00ff"), "[parked: hex:00ff]")
	for _, key := range []string{"a", "hex:00ff", "hex:", "nobody"} {
		must(t, sh, "key", "unpark", "orders", "billing", key)
	}
	require.NotContains(t, must(t, sh, "group", "describe", "orders", "billing"), "REASON")
	require.Equal(t, "1\n2\n3\n4\n", must(t, sh, "consume", "orders", "-g", "billing", "-c", "4"))
}

// Publishers, records and whole partitions that are parked are named as their commands take them.
func TestWhatIsParkedIsNamedAsCommandsTakeIt(t *testing.T) {
	for name, c := range map[string]struct{ create, park, listed, asked, says string }{
		"a publisher":       {"--mode serial --scope publisher", "till-7 --publisher", "till-7", "--publisher till-7", `The publisher "till-7" is parked from offset 0 on\. Since \d+m?s\. Repair what was wrong, then lockstep key unpark orders g till-7 --publisher; `},
		"a record":          {"--mode shared", "--partition 0 --offset 0", "--partition 0 --offset 0", "--partition 0 --offset 0", `Record 0 is parked\. Since \d+m?s\. Repair what was wrong, then lockstep key unpark orders g --partition 0 --offset 0; `},
		"a record by keys":  {"--mode serial", "--partition 0 --offset 0", "--partition 0 --offset 0", "--partition 0 --offset 0", `Record 0 is parked\. Since \d+m?s\. Repair what was wrong, then lockstep key unpark orders g --partition 0 --offset 0; `},
		"a whole partition": {"--mode serial --scope destination", "--partition 0", "--partition 0", "--partition 0 --offset 0", `The whole partition is parked from offset 0 on\. Since \d+m?s\. Repair what was wrong, then lockstep key unpark orders g --partition 0; `},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			address, _ := startServer(t)
			sh := at(address, "")
			must(t, sh, "queue", "create", "orders")
			must(t, at(address, "1\n"), "produce", "orders", "--publisher", "till-7")
			must(t, sh, append([]string{"group", "create", "orders", "g"}, strings.Fields(c.create)...)...)
			order := append([]string{"key", "park", "orders", "g"}, strings.Fields(c.park)...)
			require.Eventually(t, func() bool { return sh.run(t.Context(), order...).code == 0 }, 30*time.Second, 20*time.Millisecond)
			require.Regexp(t, `(?m)^ +0 +`+c.listed+` +0 +\d+s *$`, must(t, sh, "group", "describe", "orders", "g"))
			for _, more := range [][]string{nil, strings.Fields(c.asked)} {
				require.Regexp(t, c.says, must(t, sh, append([]string{"explain", "queue", "orders"}, more...)...))
			}
			order[1] = "unpark"
			must(t, sh, order...)
			require.NotContains(t, must(t, sh, "explain", "queue", "orders"), "parked")
		})
	}
}

// A table does not grow with what is parked: the rest is a number.
func TestMoreThanIsListedIsParked(t *testing.T) {
	var out strings.Builder
	a := &app{stdout: &out}
	require.NoError(t, a.printParked(&client.GroupInfo{Settings: client.GroupSettings{Mode: client.Serial}, Partitions: []client.GroupPartition{
		{Parked: 4001, ParkedScopes: []wire.ParkedScope{{Scope: 7, Name: "a", ForMs: 61_000, AtLeast: true, Reason: "b"}}},
	}}))
	require.Regexp(t, `(?m)^ +0 +a +0 +more than 1m1s +b$`, out.String())
	require.Contains(t, out.String(), "and 4,000 more, the 100 that were parked first of each partition are shown\n")
}

// The commands that explain names can be pasted into a shell, whatever bytes are in a key.
func TestCommandsOfExplainCanBePasted(t *testing.T) {
	address, _ := startServer(t)
	sh := at(address, "")
	must(t, sh, "queue", "create", "orders")
	must(t, sh, "group", "create", "orders", "default", "--mode", "serial")
	keys := []string{"a b", "--force", "it's", "-1", "end.", "\x00\xff"}
	must(t, at(address, strings.Join(keys, "|1\n")+"|1\n"), "produce", "orders", "-K", "|")
	for _, key := range keys {
		must(t, sh, "key", "park", "orders", "default", keyText([]byte(key)))
	}
	var reasons []explainJSON
	require.NoError(t, json.Unmarshal([]byte(must(t, sh, "explain", "queue", "orders", "-o", "json")), &reasons))
	skipped := 0
	for _, r := range reasons {
		if r.Code != "parked" {
			continue
		}
		advice := regexp.MustCompile(`lockstep key unpark (.+); or lockstep key skip (.+) passes its head over\.$`).FindStringSubmatch(r.Advice)
		require.NotNil(t, advice, r.Advice)
		require.Equal(t, advice[1], advice[2])
		out, err := exec.Command("sh", "-c", `printf '%s\n' `+advice[2]).Output()
		require.NoError(t, err)
		words := strings.Split(strings.TrimSuffix(string(out), "\n"), "\n")
		must(t, sh, append([]string{"key", "skip"}, words...)...)
		skipped++
	}
	require.Equal(t, len(keys), skipped)
	require.NotContains(t, must(t, sh, "explain", "queue", "orders"), "parked", "a skip unparks")
}
