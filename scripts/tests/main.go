// Command tests reads what go test -json writes and says what a person wants to
// know: the output of what failed, what was skipped and why, how many tests ran
// in how many packages, and which took longest. It exits with 1 if anything failed.
//
//	go test -json ./... | go run ./scripts/tests
package main

import (
	"bufio"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
)

const (
	// longest is how many of the slowest tests are named.
	longest = 5
	// newest is how many lines are shown of a package that failed although none of
	// its tests did: it leaked, raced or ended outside of them.
	newest = 100
)

// event is one line of go test -json, as go doc test2json describes it.
type event struct {
	Action      string
	Package     string
	ImportPath  string // of a build
	Test        string
	Elapsed     float64 // seconds
	Output      string
	FailedBuild string
}

// result is a finished test.
type result struct {
	name    string
	seconds float64
}

type report struct {
	out      io.Writer
	output   map[string][]string // of tests that have not ended, by package and name
	tails    map[string][]string // the newest lines of packages
	faulty   map[string]bool     // packages with failed tests
	passed   []result
	skipped  int
	failed   int
	packages int
}

func main() {
	r := &report{out: os.Stdout, output: map[string][]string{}, tails: map[string][]string{}, faulty: map[string]bool{}}
	if err := r.read(os.Stdin); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	r.summary()
	if r.failed > 0 {
		os.Exit(1)
	}
}

func (r *report) read(in io.Reader) error {
	lines := bufio.NewReader(in)
	for {
		line, err := lines.ReadBytes('\n')
		if len(line) > 0 {
			var e event
			if json.Unmarshal(line, &e) != nil {
				fmt.Fprintf(r.out, "%s", line) // a message of the go command itself
			} else {
				r.take(&e)
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (r *report) take(e *event) {
	key := e.Package + e.ImportPath + " " + e.Test
	switch e.Action {
	case "output", "build-output":
		r.output[key] = append(r.output[key], e.Output)
		tail := append(r.tails[e.Package], e.Output)
		r.tails[e.Package] = tail[max(0, len(tail)-newest):]
		return
	case "pass":
		if e.Test != "" {
			r.passed = append(r.passed, result{name: e.Package + " " + e.Test, seconds: e.Elapsed})
		} else {
			r.packages++
		}
	case "skip":
		if e.Test != "" {
			r.skipped++
			fmt.Fprintf(r.out, "SKIPPED %s %s\n", e.Package, e.Test)
			r.print(key)
		}
	case "fail", "build-fail":
		r.failed++
		fmt.Fprintf(r.out, "FAILED %s\n", key)
		if e.Test == "" && !r.faulty[e.Package] {
			r.output[key] = r.tails[e.Package]
		}
		r.faulty[e.Package] = true
		r.print(key)
	default:
		return
	}
	delete(r.output, key)
}

// print shows what a test wrote, without the lines that every test has.
func (r *report) print(key string) {
	for _, line := range r.output[key] {
		if !strings.HasPrefix(line, "=== ") {
			fmt.Fprint(r.out, "    ", line)
		}
	}
}

func (r *report) summary() {
	slices.SortFunc(r.passed, func(a, b result) int { return cmp.Compare(b.seconds, a.seconds) })
	for _, t := range r.passed[:min(longest, len(r.passed))] {
		fmt.Fprintf(r.out, "%6.1f s %s\n", t.seconds, t.name)
	}
	fmt.Fprintf(r.out, "%d tests passed in %d packages, %d skipped, %d failed\n", len(r.passed), r.packages, r.skipped, r.failed)
}
