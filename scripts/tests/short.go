package main

import (
	"fmt"
	"regexp"
	"strings"
)

const (
	// shown is how many lines are shown of one failure, and wide how much of a line.
	shown = 15
	wide  = 200
	// explained is how many failures are shown with lines: the rest are named.
	explained = 5
)

// failure is a test or package that failed, and what it wrote.
type failure struct{ key, output string }

var (
	// reason begins what says why a test failed.
	reason = regexp.MustCompile(`Error Trace:|^panic: |^fatal error: |WARNING: DATA RACE|_test\.go:\d+: `)
	// noise is what a test says beside it: the go command's own lines, and the logs of brokers.
	noise = regexp.MustCompile(`^(=== |\s*--- (PASS|SKIP)|time=|\{"time")|^\s+time=\S+ level=`)
)

// shorten says why tests failed, and last of all which: only the end of it may be seen.
func shorten(failures []failure) string {
	var b strings.Builder
	for i, f := range failures {
		if lines := why(f.output); i < explained && len(lines) > 0 {
			fmt.Fprintf(&b, "%s:\n", f.key)
			for _, line := range lines {
				fmt.Fprintf(&b, "    %s\n", line)
			}
		}
	}
	for _, f := range failures {
		fmt.Fprintf(&b, "FAILED %s\n", f.key)
	}
	return b.String()
}

// why picks the lines of a failure: those from the first that gives a reason, or, if
// none does, the first of all.
func why(output string) []string {
	var lines []string
	from := -1
	for line := range strings.Lines(output) {
		line = strings.TrimRight(line, "\n")
		if noise.MatchString(line) || strings.TrimSpace(line) == "" || strings.HasPrefix(strings.TrimSpace(line), "--- FAIL") {
			continue
		}
		if from < 0 && reason.MatchString(line) {
			from = len(lines)
		}
		lines = append(lines, line[:min(len(line), wide)])
	}
	lines = lines[max(from, 0):]
	return lines[:min(shown, len(lines))]
}
