package main

import (
	"encoding/json"
	"io"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// stream is what go test -json writes of these events.
func stream(t *testing.T, events ...event) io.Reader {
	t.Helper()
	var b strings.Builder
	for i := range events {
		line, err := json.Marshal(&events[i])
		require.NoError(t, err)
		b.Write(append(line, '\n'))
	}
	return strings.NewReader(b.String())
}

func TestAFailureIsToldWithItsReasonAndWithoutTheLogsOfBrokers(t *testing.T) {
	r := newReport(io.Discard)
	out := func(text string) event { return event{Action: "output", Package: "p", Test: "TestA", Output: text} }
	require.NoError(t, r.read(stream(t,
		event{Action: "run", Package: "p", Test: "TestA"},
		out("=== RUN   TestA\n"),
		out("    a_test.go:7: \n"),
		out("        Error Trace: a_test.go:7\n"),
		out("        Error:       one is "), out("not two\n"),
		out("    broker_test.go:74: the end of the broker's log:\n"),
		out("        time=2026-11-22T15:26:32Z level=WARN msg=\"node is down\"\n"),
		out("--- FAIL: TestA (0.10s)\n"),
		event{Action: "fail", Package: "p", Test: "TestA"},
		event{Action: "run", Package: "p", Test: "TestB"},
		event{Action: "pass", Package: "p", Test: "TestB"},
		event{Action: "fail", Package: "p"},
	)))
	require.Equal(t, `p TestA:
        a_test.go:7: 
            Error Trace: a_test.go:7
            Error:       one is not two
        broker_test.go:74: the end of the broker's log:
FAILED p TestA
`, shorten(r.short))
	require.Equal(t, 2, r.failed, "the test and its package")
}

func TestATestThatIsCutOffIsNamed(t *testing.T) {
	r := newReport(io.Discard)
	require.NoError(t, r.read(stream(t,
		event{Action: "run", Package: "p", Test: "TestA"},
		event{Action: "run", Package: "p", Test: "TestWaitsForItsTurn"},
		event{Action: "pause", Package: "p", Test: "TestWaitsForItsTurn"},
		event{Action: "output", Package: "p", Test: "TestA", Output: "    a_test.go:9: seed 7\n"},
	)))
	require.Equal(t, "p TestA (was cut off):\n        a_test.go:9: seed 7\nFAILED p TestA (was cut off)\n", shorten(r.short))
}

func TestOfManyFailuresAllAreNamedAndTheFirstAreExplained(t *testing.T) {
	var many []failure
	for range explained + 1 {
		many = append(many, failure{key: "p TestA", output: strings.Repeat("x", wide+1) + strings.Repeat("\ny", shown)})
	}
	got := shorten(many)
	require.Equal(t, explained+1, strings.Count(got, "FAILED p TestA\n"))
	require.Equal(t, explained, strings.Count(got, "    "+strings.Repeat("x", wide)+"\n"))
	require.Equal(t, explained*(1+shown)+explained+1, strings.Count(got, "\n"))
}
