package cli

import (
	"bytes"
	"encoding/json"
	"os"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/verify"
)

func TestVerify(t *testing.T) {
	address, _ := startServer(t)
	sh := at(address, "")
	got := must(t, sh, "verify", "--records", "300", "--rate", "0", "--nack", "10", "--seed", "5", "-o", "json")
	var r verify.Result
	require.NoError(t, json.Unmarshal([]byte(got), &r))
	require.Equal(t, verify.Kept, r.Verdict)
	require.Equal(t, []int{300, 300, 300}, []int{r.Sent, r.Stored, r.Handled})
	require.EqualValues(t, 5, r.Seed)

	must(t, sh, "topic", "create", "events", "--record-index")
	require.Contains(t, must(t, sh, "topic", "describe", "events"), "\nKind:        topic, with a record index\n")
	require.Contains(t, must(t, sh, "verify", "events", "-n", "100", "--rate", "0"), "kept: no promise was broken\n")
	must(t, sh, "topic", "create", "plain")
	got = must(t, sh, "verify", "checked", "--for", "100ms", "--keep")
	require.Contains(t, got, "kept: no promise was broken\nsent ")
	require.Contains(t, got, "explain queue checked --group verify-")
	require.Contains(t, must(t, sh, "queue", "ls"), "checked")

	for _, test := range []struct {
		args []string
		says string
	}{
		{[]string{"checked"}, `destination "checked" is a queue, which removes`},
		{[]string{"plain"}, `topic "plain" has no record index`},
		{[]string{"--kill", "1"}, "process 1: 1 is the system's first process"},
		{[]string{"--pause", strconv.Itoa(os.Getpid())}, "is this check itself"},
		{[]string{"--steady", "--kill", "4711"}, "leave out --kill and --pause"},
		{[]string{"--for", "1s", "-n", "5"}, "--records and --for exclude each other"},
		{[]string{"--nack", "95"}, "flag --nack: 95 is not between 0 and 90"},
		{[]string{"a", "b"}, `takes one DEST, not also "b"`},
		{[]string{"--keys", "0"}, "are at least 1"},
		{[]string{"--records", "0"}, "are at least 1"},
		{[]string{"--kill", "1x"}, `flag --kill: "1x" is not a whole number in range`},
	} {
		got := sh.run(t.Context(), append([]string{"verify"}, test.args...)...)
		require.Equal(t, 2, got.code, got)
		require.Contains(t, got.stderr, test.says)
		require.Contains(t, got.stderr, "(see lockstep verify --help)")
	}
}

// What is not kept is named, and ends with another exit code.
func TestVerifySaysWhatIsBroken(t *testing.T) {
	var out bytes.Buffer
	a := shell{}.app(&out, discard{})
	require.NoError(t, a.printVerified(&verify.Result{
		Verdict: verify.Broken, Destination: "orders", Seed: 9, Violations: []string{"partition 1: two\nholders"}, More: 2,
		Lost: []verify.Place{{Number: 3, Partition: 1, Offset: 40}}, LostCount: 5, Again: map[string]int{"given back": 1200},
	}))
	require.Equal(t, `BROKEN
sent        0 records, 0 stored, 0 failed (0 of them may be stored)
handled     0 in 0 deliveries; 0 acknowledgements refused because the lease was lost
repeated    1,200: given back
compared    0 events in 0.0 s
VIOLATION   partition 1: two; holders
VIOLATION   and 2 more
LOST        record number 3, orders/1@40
LOST        and 4 more
seed        9
`, out.String())
}
